//! What sealed records say, in words: the part of a dump that needs keys. Values are never shown, keys only if asked.

use crate::format::block::Block;
use crate::format::current::Current;
use crate::format::frame::FrameKind;
use crate::format::keyfile::KeyFile;
use crate::format::log::{Envelope, Section};
use crate::format::manifest::{Edit, EditGroup, FileRecord, KeyPin, ParkedRecord, TableRecord};
use crate::format::parked::{IndexPiece, Origin, ParkedEnd};
use crate::format::table::{self, Footer, Handle, Properties, RunPointer};
use crate::types::Kind;

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key, with bytes that are no printable ASCII escaped.
pub(super) fn key(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

pub(super) fn current(current: &Current) -> Vec<String> {
    let mut lines = vec![
        format!("manifest {}, salt {}", current.manifest, hex(current.salt.as_bytes())),
        format!(
            "picture: epoch {}, ends at byte {} with ordinal {}",
            current.epoch, current.picture_end_bytes, current.picture_last_ordinal
        ),
    ];
    lines.push(match &current.closed {
        None => "not closed cleanly".to_owned(),
        Some(closed) => format!(
            "closed cleanly: epoch {}, manifest of {} bytes, last tag {}",
            closed.epoch,
            closed.len_bytes,
            hex(&closed.last_tag)
        ),
    });
    lines
}

pub(super) fn key_record(record: &KeyFile) -> Vec<String> {
    let mut lines = vec![format!(
        "table {}, version {}, {:?} since {} ms, master key {:?}",
        record.table, record.version, record.state, record.since_ms, record.master
    )];
    for wrap in &record.wraps {
        let retired = if wrap.retired { ", retired" } else { "" };
        lines.push(format!(
            "generation {}{retired}: wrapped at {} ms in {} bytes, commitment {}",
            wrap.generation,
            wrap.created_ms,
            wrap.wrapped.len(),
            hex(wrap.commitment.as_bytes())
        ));
        lines.push(format!("  under {}", wrap.key_arn.escape_debug()));
        let context = wrap.context.iter();
        lines.extend(context.map(|(name, value)| format!("  {} = {}", name.escape_debug(), value.escape_debug())));
    }
    lines
}

pub(super) fn edit_group(group: &EditGroup) -> Vec<String> {
    let synced = match group.synced_ordinal {
        Some(ordinal) => format!("durable up to ordinal {ordinal}"),
        None => "nothing durable yet".to_owned(),
    };
    let what = if group.edits.is_empty() { "mark" } else { "group" };
    let mut lines = vec![format!("{what}: epoch {}, {} edits, {synced}", group.epoch, group.edits.len())];
    lines.extend(group.edits.iter().map(|one| format!("  {}", edit(one))));
    lines
}

fn edit(edit: &Edit) -> String {
    match edit {
        Edit::Store { store, lineage, created_ms, real_entropy, suite } => {
            let entropy = if *real_entropy { "the system's randomness" } else { "INJECTED randomness" };
            let lineage = hex(lineage);
            format!(
                "store {store}, lineage {lineage}, created at {created_ms} ms with {entropy}, sealed with {suite:?}"
            )
        }
        Edit::SystemKey(pin) => format!("system key: {}", key_pin(pin)),
        Edit::Counters { next_file, next_slot, last_seq } => {
            format!("counters: next file {next_file}, next slot {next_slot}, last sequence number {last_seq:?}")
        }
        Edit::CreateTable(record) => table_record(record),
        Edit::TableKey { slot, key, master } => format!("key of slot {slot}: {master:?}, {}", key_pin(key)),
        Edit::DropTable { slot } => format!("drop slot {slot}"),
        Edit::ForgetTable { slot } => format!("forget slot {slot}"),
        Edit::AddFile { slot, level, file } => format!("add to slot {slot}, level {level}: {}", file_record(file)),
        Edit::RemoveFile { slot, level, number } => format!("remove from slot {slot}, level {level}: file {number}"),
        Edit::Flushed { slot, seq } => format!("slot {slot} is flushed up to {seq:?}"),
        Edit::AddSegment { number, salt } => format!("add segment {number}, salt {}", hex(salt.as_bytes())),
        Edit::RemoveSegment { number } => format!("remove segment {number}"),
        Edit::LogEnds { segment, end_bytes, tag, seq } => {
            format!("log ended at byte {end_bytes} of segment {segment}, at {seq:?}, tag {}", hex(tag))
        }
        Edit::CleanClose { segment, end_bytes, tag, seq } => {
            format!("closed at byte {end_bytes} of segment {segment}, at {seq:?}, tag {}", hex(tag))
        }
        Edit::PictureEnds => "picture ends".to_owned(),
        Edit::LogSynced { point } => {
            format!("log durable up to byte {} of segment {}", point.end_bytes, point.segment)
        }
        Edit::Access { slot, since_ms: Some(ms) } => format!("slot {slot} is inaccessible since {ms} ms"),
        Edit::Access { slot, since_ms: None } => format!("slot {slot} is accessible"),
        Edit::Park(parked) => parked_record(parked),
        Edit::Unpark { number } => format!("remove parked sections, file {number}"),
        Edit::Schedule { slot, schedule } => {
            let key = slot.map_or("the system key".to_owned(), |slot| format!("the key of slot {slot}"));
            match schedule {
                Some(one) => format!("rotate {key} every {} ms, next at {} ms", one.every_ms, one.next_ms),
                None => format!("do not rotate {key} by itself"),
            }
        }
        Edit::KeyChanged { slot, at_ms } => format!("master key of slot {slot} changed at {at_ms} ms"),
        Edit::TrailHead(head) => {
            format!("trail at {} events at {} ms, link {}", head.events, head.at_ms, hex(&head.mac))
        }
        Edit::Grant(grant) => format!("grant {} for {:?} key {}", grant.grant_id, grant.master, grant.key_arn),
        Edit::GrantEnded { key_arn } => format!("no grant for key {key_arn} any more"),
        Edit::Creator { slot, principal } => format!("slot {slot} was created by {principal}"),
    }
}

fn parked_record(parked: &ParkedRecord) -> String {
    let generations: Vec<String> =
        parked.generations.iter().map(|(generation, bytes)| format!("{bytes} under generation {generation}")).collect();
    format!(
        "park sections of slot {}: file {}, {} bytes ({}), up to {:?}, salt {}, last tag {}",
        parked.slot,
        parked.number,
        parked.len_bytes,
        generations.join(", "),
        parked.last_seq,
        hex(parked.salt.as_bytes()),
        hex(&parked.final_tag)
    )
}

fn key_pin(pin: &KeyPin) -> String {
    let generations: Vec<String> = pin
        .generations
        .iter()
        .map(|(generation, commitment)| format!("{generation} ({})", hex(commitment.as_bytes())))
        .collect();
    format!("version {}, tag {}, generations {}", pin.version, hex(&pin.tag), generations.join(", "))
}

fn table_record(record: &TableRecord) -> String {
    format!(
        "create slot {} as {:?}, table {}{}: at {} ms, {:?}, {:?}, blocks of {} bytes, {} filter bits per key, master key {:?}, key {}",
        record.slot,
        record.name,
        record.id,
        if record.dropping { ", being dropped" } else { "" },
        record.created_ms,
        record.suite,
        record.compression,
        record.block_bytes,
        record.filter_bits_per_key,
        record.master,
        key_pin(&record.key)
    )
}

fn file_record(file: &FileRecord) -> String {
    format!(
        "file {}, bytes {} +{} of {}, generation {}, {:?}, {} entries with {} deletes, {} bytes of keys and values, {:?} to {:?}, salt {}, last tag {}, bounds at ordinal {}",
        file.number,
        file.extent.offset_bytes,
        file.extent.len_bytes,
        file.extent.container,
        file.generation,
        file.suite,
        file.entries,
        file.tombstones,
        file.raw_bytes,
        file.min_seq,
        file.max_seq,
        hex(file.salt.as_bytes()),
        hex(&file.final_tag),
        file.bounds_ordinal
    )
}

pub(super) fn envelope(envelope: &Envelope) -> Vec<String> {
    let what = if envelope.sections.is_empty() { "sync mark" } else { "group" };
    let mut lines = vec![format!(
        "{what}: epoch {}, first {:?}, log durable up to byte {} of segment {}, envelope before {}",
        envelope.epoch,
        envelope.first_seq,
        envelope.synced.end_bytes,
        envelope.synced.segment,
        hex(&envelope.previous)
    )];
    lines.extend(envelope.sections.iter().map(|one| format!("  {}", section(one))));
    lines
}

pub(super) fn parked_index(index: &IndexPiece) -> Vec<String> {
    let goes_on = if index.more { ", goes on in the next frame" } else { "" };
    let Origin { segment, salt } = index.origin;
    let mut lines = vec![format!("carried out of segment {segment}, salt {}{goes_on}", hex(salt.as_bytes()))];
    lines.extend(index.sections.iter().map(|one| format!("  {}", section(one))));
    lines
}

pub(super) fn parked_end(end: &ParkedEnd) -> Vec<String> {
    vec![format!("end: {} sections in {} frames, {} bytes of file", end.sections, end.frames, end.len_bytes)]
}

fn section(section: &Section) -> String {
    format!(
        "section of slot {}, generation {}, {:?}: {} entries from {:?}, {} frames from ordinal {}, {} bytes, last tag {}",
        section.slot,
        section.generation,
        section.suite,
        section.entries,
        section.first_seq,
        section.frames,
        section.first_ordinal,
        section.len_bytes,
        hex(&section.tag)
    )
}

/// A data or index block.
pub(super) fn block(kind: FrameKind, block: &Block, show_keys: bool) -> Vec<String> {
    let count = |kind| (0..block.len()).filter(|&i| block.trailer(i).kind() == kind).count();
    let mut lines = vec![match kind {
        FrameKind::Data => format!(
            "{} entries: {} puts, {} of them outside the block, {} deletes; keys share {} bytes",
            block.len(),
            count(Kind::Put) + count(Kind::PutRun),
            count(Kind::PutRun),
            count(Kind::Delete),
            block.key_prefix().len()
        ),
        _ => format!("{} handles", block.len()),
    }];
    for i in 0..block.len() {
        let what = match (kind, block.trailer(i).kind()) {
            (FrameKind::Data, _) if !show_keys => continue,
            (FrameKind::Data, Kind::PutRun) => match RunPointer::decode(block.value(i)) {
                Ok(run) => format!(
                    "{} bytes in {} frames from ordinal {}, @{}",
                    run.value_bytes, run.frames, run.first_ordinal, run.offset_bytes
                ),
                Err(_) => "a pointer that cannot be decoded".to_owned(),
            },
            (FrameKind::Data, Kind::Delete) => "deleted".to_owned(),
            (FrameKind::Data, _) => format!("{} bytes", block.value(i).len()),
            _ => match Handle::decode(block.value(i)) {
                Ok(handle) => format!("ordinal {} @{} +{}", handle.ordinal, handle.offset_bytes, handle.len_bytes),
                Err(_) => "a handle that cannot be decoded".to_owned(),
            },
        };
        let shown = match show_keys {
            true => format!("{} {:?}: ", key(&[block.key_prefix(), block.suffix(i)].concat()), block.trailer(i).seq()),
            false => String::new(),
        };
        lines.push(format!("  {shown}{what}"));
    }
    lines
}

pub(super) fn properties(properties: &Properties) -> Vec<String> {
    vec![
        format!(
            "{} entries of {} keys, {} deletes, {} values outside blocks, {} blocks, {} bytes of keys and values",
            properties.entries,
            properties.keys,
            properties.tombstones,
            properties.runs,
            properties.blocks,
            properties.raw_bytes
        ),
        format!(
            "{:?} to {:?}, {:?}, {:?}",
            properties.seq_min, properties.seq_max, properties.suite, properties.compression
        ),
        format!("filter {:?}: {} lines, {} probes", properties.filter, properties.filter_lines, properties.probes),
    ]
}

pub(super) fn footer(footer: &Footer) -> Vec<String> {
    let sections = [
        ("data", &footer.data),
        ("filter", &footer.filter),
        ("index", &footer.index),
        ("index top", &footer.index_top),
        ("properties", &footer.properties),
        ("bounds", &footer.bounds),
    ];
    let mut lines = vec![format!("{} frames, {} bytes", footer.frames, footer.len_bytes)];
    lines.extend(sections.into_iter().filter(|(_, section)| section.is_there()).map(|(name, section)| {
        let table::Section { offset_bytes, len_bytes, first_ordinal, frames } = section;
        format!("  {name}: @{offset_bytes} +{len_bytes}, {frames} frames from ordinal {first_ordinal}")
    }));
    lines
}
