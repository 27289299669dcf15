//! One target for each file of `format/`, and the keyring of `keys/local/`.

use std::sync::LazyLock;

use crate::crypto::{Authentic, Suite, TableKey, Wiped};
use crate::error::ProviderReason;
use crate::format::FileName;
use crate::format::block::{Block, BlockBuilder};
use crate::format::codec::{Decoded, Put, Reader, crc32};
use crate::format::current::Current;
use crate::format::frame::{
    Expected, FRAME_HEAD_BYTES, FileHeader, FileSealer, FrameHead, FrameKind, HEADER_BYTES, JOURNAL_HEAD_BYTES,
    JournalFrame, JournalHead, PAYLOAD_BYTES_MAX, authenticate_in_clear, next_head, read_in_clear, seal_in_clear,
};
use crate::format::keyfile::{KeyFile, SystemKeyFile, decode_context, encode_context};
use crate::format::log::{
    Envelope, GroupWriter, LogPoint, Section, SectionReader, SegmentOpener, SegmentSealer, entry_bytes, keep,
    section_frames,
};
use crate::format::manifest::{EditGroup, ManifestOpener, ManifestSealer};
use crate::format::parked::{IndexPiece, ParkedEnd, ParkedOpener};
use crate::format::scrub::Scrub;
use crate::format::testing::{Counting, TABLE, here, system_key, table_key};
use crate::io::Environment;
use crate::io::sim::Simulation;
use crate::keys::{
    DecryptRequest, EncryptionContext, GenerateDataKeyRequest, KeyProvider, LocalKms, Principal, Unlock, local_fuzz,
};
use crate::options::Compression;
use crate::types::{Epoch, FileKind, FileNumber, Generation, KEY_BYTES_MAX, Kind, Seq, Slot, TableId, Trailer};
use crate::version::state::State;

static SYSTEM: LazyLock<TableKey> = LazyLock::new(system_key);
static OWNER: LazyLock<TableKey> = LazyLock::new(table_key);
const SUITE: Suite = Suite::Aes256Gcm;

/// A new sorted table's file, with nothing but its header.
fn sealer(out: &mut Vec<u8>) -> FileSealer {
    let (kind, number) = (FileKind::Table, FileNumber(34));
    FileSealer::create(&OWNER, SUITE, kind, number, TABLE, &Counting::default(), out).unwrap()
}

/// Bytes behind a checked tag.
fn authentic(bytes: &[u8]) -> Authentic<Wiped> {
    let mut file = Vec::new();
    let mut sealer = sealer(&mut file);
    let mut frame = Vec::new();
    sealer.seal(FrameKind::Data, false, Compression::None, bytes, &mut frame).unwrap();
    sealer.opener().open_frame(FrameKind::Data, false, 0, frame, &here()).unwrap()
}

/// Cut an input: a length in its first byte, so many bytes, and the rest.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = data.split_first()?;
    Some(rest.split_at(usize::from(len).min(rest.len())))
}

// ---- codec ---------------------------------------------------------------------------------------------------

/// The first bytes choose what is read from the rest; what was read is written, and must be the same bytes.
pub fn codec(data: &[u8]) {
    let Some((choices, bytes)) = split(data) else { return };
    let mut reader = Reader::new(bytes);
    let mut again = Vec::new();
    for &choice in choices {
        if read_and_write(choice, &mut reader, &mut again).is_err() {
            return;
        }
        assert_eq!(again, bytes[..bytes.len() - reader.remaining()]);
    }
    assert_eq!(reader.rest().len(), reader.remaining());
    assert_eq!(reader.clone().finish().is_ok(), reader.remaining() == 0);
}

fn read_and_write(choice: u8, reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Decoded<()> {
    let limit = usize::from(choice >> 4);
    match choice & 15 {
        0 => out.put_u8(reader.u8()?),
        1 => out.put_u16(reader.u16()?),
        2 => out.put_u32(reader.u32()?),
        3 => out.put_u64(reader.u64()?),
        4 => out.put_bool(reader.bool()?),
        5 => {
            reader.reserved::<3>()?;
            out.put_reserved::<3>();
        }
        6 | 7 => out.put_varint(reader.varint()?),
        8 => {
            let bytes = reader.prefixed(limit)?;
            assert!(bytes.len() <= limit);
            out.put_prefixed(bytes);
        }
        9 => {
            let text = reader.string(limit)?;
            assert!(text.len() <= limit && text.capacity() <= limit);
            out.put_prefixed(text.as_bytes());
        }
        10 => {
            let count = reader.count(limit)?;
            assert!(count * limit.max(1) <= reader.remaining());
            out.put_varint(count as u64);
        }
        11 => out.put(&reader.array::<7>()?),
        _ => out.put(reader.bytes(limit)?),
    }
    Ok(())
}

/// A path that is recognised is the only spelling of what it names.
pub fn names(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    if let Some(name) = FileName::parse(path) {
        assert_eq!(name.path(), path);
        assert_eq!(FileName::parse_temporary(&name.temporary_path()), Some(name));
        assert!(path.starts_with(&name.directory()));
        assert!(!path.contains("..") && !path.starts_with('/'));
    }
    if let Some(name) = FileName::parse_temporary(path) {
        assert_eq!(name.temporary_path(), path);
    }
}

// ---- frames --------------------------------------------------------------------------------------------------

/// Headers and frames, as they are and with checksums that fit; bodies under a right tag.
pub fn frame(data: &[u8]) {
    header(data);
    frame_head(data);
    journal_heads(data);
    sealed_body(data);
    sealed_payload(data);
    sealed_journal(data);
    sealed_in_clear(data);
}

fn header(data: &[u8]) {
    let mut fitting = data.to_vec();
    if data.len() >= HEADER_BYTES {
        let crc = crc32(&[&data[..140], &data[144..HEADER_BYTES]]);
        fitting[140..144].copy_from_slice(&crc.to_le_bytes());
    }
    for bytes in [data, &fitting] {
        let Ok(header) = FileHeader::decode(bytes, &here()) else { continue };
        assert_eq!(header.encode(), &bytes[..HEADER_BYTES]);
        let (kind, number, subject) = (header.kind, header.number, header.subject);
        let expected = Expected { kind, number, subject, suite: None, salt: None };
        for key in [&*SYSTEM, &*OWNER] {
            let _ = header.authenticate(key, &expected, &here());
        }
    }
}

fn frame_head(data: &[u8]) {
    let Some(head) = data.first_chunk() else { return };
    if let Ok(decoded) = FrameHead::decode(head, 1 << 20, &here()) {
        assert_eq!(&decoded.encode(), head);
        assert!(decoded.frame_bytes() <= 1 << 20);
        let fits = decoded.check_crc(data, &here()).is_ok();
        assert!(!fits || data.len() as u64 == decoded.frame_bytes());
    }
    let opener = sealer(&mut Vec::new()).opener();
    let mut fitting = data.to_vec();
    let body_len = (data.len().saturating_sub(FRAME_HEAD_BYTES + 16) as u32).to_le_bytes();
    fitting[..4].copy_from_slice(&body_len);
    let crc = crc32(&[&body_len, &data[FRAME_HEAD_BYTES..]]);
    fitting[4..FRAME_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    for frame in [data, &fitting] {
        let _ = opener.open_frame(FrameKind::Data, false, 0, frame.to_vec(), &here());
        let _ = read_in_clear(FrameKind::KeyRecord, frame, &here());
    }
}

fn journal_heads(data: &[u8]) {
    let mut from = 0;
    while let Some((offset, head)) = next_head(data, from) {
        assert!(offset >= from && offset as u64 + head.frame_bytes() <= data.len() as u64);
        assert_eq!(head.encode(), data[offset..offset + JOURNAL_HEAD_BYTES]);
        assert_eq!(JournalHead::decode(&data[offset..], &here()).ok(), Some(head));
        let _ = head.check_crc(&data[offset..offset + head.frame_bytes() as usize], &here());
        from = offset + 1;
    }
    if data.len() >= JOURNAL_HEAD_BYTES {
        let mut fitting = data.to_vec();
        let crc = crc32(&[&data[..16]]);
        fitting[16..20].copy_from_slice(&crc.to_le_bytes());
        if let Ok(head) = JournalHead::decode(&fitting, &here()) {
            assert_eq!(head.encode(), fitting[..JOURNAL_HEAD_BYTES]);
        }
    }
}

/// A body with any suffix, under a right tag: what is decompressed is bounded, and is what the suffix says.
fn sealed_body(data: &[u8]) {
    let mut sealer = sealer(&mut Vec::new());
    let mut frame = Vec::new();
    let sealed = sealer.seal_body(FrameKind::Data, false, data.to_vec(), &mut frame).unwrap();
    assert_eq!(sealed.len_bytes as usize, frame.len());
    let Ok(payload) = sealer.opener().open_frame(FrameKind::Data, false, 0, frame, &here()) else { return };
    let (stored, suffix) = data.split_at(data.len() - 5);
    assert_eq!(payload.len(), u32::from_le_bytes([suffix[1], suffix[2], suffix[3], suffix[4]]) as usize);
    assert!(payload.len() <= PAYLOAD_BYTES_MAX && payload.capacity_bytes() <= PAYLOAD_BYTES_MAX + data.len());
    assert!(suffix[0] != Compression::None as u8 || &**payload == stored);
}

fn sealed_payload(data: &[u8]) {
    let mut sealer = sealer(&mut Vec::new());
    let mut frame = Vec::new();
    sealer.seal(FrameKind::Data, true, Compression::Lz4, data, &mut frame).unwrap();
    let opener = sealer.opener();
    let open = |kind, last, ordinal, frame: &[u8]| opener.open_frame(kind, last, ordinal, frame.to_vec(), &here());
    assert_eq!(&**open(FrameKind::Data, true, 0, &frame).unwrap(), data);
    assert!(open(FrameKind::Data, false, 0, &frame).is_err());
    assert!(open(FrameKind::Data, true, 1, &frame).is_err());
    assert!(open(FrameKind::Index, true, 0, &frame).is_err());
    // One byte somewhere, chosen by the input.
    let place = crc32(&[data]) as usize % frame.len();
    frame[place] ^= 1 << (data.len() % 8);
    assert!(open(FrameKind::Data, true, 0, &frame).is_err());
}

fn sealed_journal(data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let mut sealer = sealer(&mut Vec::new());
    let mut frame = Vec::new();
    sealer.seal_journal(FrameKind::Edits, data, &mut frame).unwrap();
    assert_eq!(next_head(&frame, 0).map(|(offset, _)| offset), Some(0));
    let opener = sealer.opener();
    assert_eq!(&**opener.open_journal(FrameKind::Edits, 0, frame.clone(), &here()).unwrap(), data);
    assert!(opener.open_journal(FrameKind::Edits, 1, frame.clone(), &here()).is_err());
    let place = crc32(&[data]) as usize % frame.len();
    frame[place] ^= 1 << (data.len() % 8);
    assert!(opener.open_journal(FrameKind::Edits, 0, frame, &here()).is_err());
}

fn sealed_in_clear(data: &[u8]) {
    let mut sealer = sealer(&mut Vec::new());
    let mut frame = Vec::new();
    seal_in_clear(&mut sealer, FrameKind::KeyRecord, data, &mut frame).unwrap();
    let (body, tag) = read_in_clear(FrameKind::KeyRecord, &frame, &here()).unwrap();
    assert_eq!(body, data);
    let check = |ordinal, body: &[u8]| {
        authenticate_in_clear(&sealer.opener(), FrameKind::KeyRecord, ordinal, body, &tag, (), &here()).is_ok()
    };
    assert!(check(0, body) && !check(1, body) && !check(0, &[data, &[0]].concat()));
}

// ---- blocks --------------------------------------------------------------------------------------------------

/// Bytes as a block, and bytes as the entries of one.
pub fn block(data: &[u8]) {
    if let Ok(block) = Block::parse(authentic(data), &here()) {
        poke_block(&block);
        if block.is_ordered() {
            rebuild_block(&block, data);
        }
        poke_block(&block.with_heads());
    }
    if let Some(entries) = block_entries(data) {
        build_block(&entries);
    }
}

/// Ask a block everything, also behind its end.
fn poke_block(block: &Block) {
    for i in 0..block.len() + 2 {
        let (start, len) = block.value_range(i);
        assert!(start + len <= crate::value::Backing::bytes(block).len());
        assert!(i < block.len() || !block.key_is(i, b"key"));
        let key = [block.key_prefix(), block.suffix(i)].concat();
        assert!(i >= block.len() || (1..=KEY_BYTES_MAX).contains(&key.len()));
        assert!(block.lower_bound(&key, block.trailer(i)) <= block.len());
    }
    assert!(block.lower_bound(b"", Trailer::seek(Seq::MAX)) <= block.len());
}

/// A block in order says the same when it is built again, in no more bytes; and what was built once is built the same
/// again.
fn rebuild_block(block: &Block, data: &[u8]) {
    let mut builder = BlockBuilder::new();
    for i in 0..block.len() {
        builder.add(&[block.key_prefix(), block.suffix(i)].concat(), block.trailer(i), block.value(i));
    }
    let again = builder.finish().to_vec();
    assert!(again.len() <= data.len());
    let rebuilt = Block::parse(authentic(&again), &here()).unwrap();
    assert_eq!(rebuilt.len(), block.len());
    for i in 0..block.len() {
        let key = |block: &Block| [block.key_prefix(), block.suffix(i)].concat();
        assert_eq!(key(&rebuilt), key(block));
        assert_eq!(rebuilt.trailer(i), block.trailer(i));
        assert_eq!(rebuilt.value(i), block.value(i));
        assert_eq!(block.lower_bound(&key(block), block.trailer(i)), i);
        builder.add(&key(&rebuilt), rebuilt.trailer(i), rebuilt.value(i));
    }
    assert_eq!(builder.finish(), again);
}

type BlockEntry = (Vec<u8>, Trailer, Vec<u8>);

/// Entries in order: length of what is kept of the key before, rest of the key, sequence number, kind, value.
fn block_entries(data: &[u8]) -> Option<Vec<BlockEntry>> {
    let mut reader = Reader::new(data);
    let mut entries: Vec<BlockEntry> = Vec::new();
    while reader.remaining() > 0 && entries.len() < 300 {
        let mut key = entries.last().map(|entry| entry.0.clone()).unwrap_or_default();
        key.truncate(usize::from(reader.u8().ok()?));
        key.extend_from_slice(reader.prefixed(4096).ok()?);
        let seq = Seq::new(reader.varint().ok()?)?;
        let trailer = Trailer::new(seq, Kind::from_u8(reader.u8().ok()? % 3)?);
        let value = reader.prefixed(4096).ok()?.to_vec();
        if key.is_empty() {
            return None;
        }
        entries.push((key, trailer, value));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    entries.dedup_by(|a, b| a.0 == b.0 && a.1.seq() == b.1.seq());
    (!entries.is_empty()).then_some(entries)
}

fn build_block(entries: &[(Vec<u8>, Trailer, Vec<u8>)]) {
    let mut builder = BlockBuilder::new();
    for (key, trailer, value) in entries {
        let bytes = builder.bytes_with(key, *trailer, value.len());
        builder.add(key, *trailer, value);
        assert_eq!(builder.bytes(), bytes);
    }
    let bytes = builder.finish().to_vec();
    let block = Block::parse(authentic(&bytes), &here()).unwrap();
    assert!(block.is_ordered() && block.len() == entries.len());
    poke_block(&block);
    rebuild_block(&block, &bytes);
    let block = block.with_heads();
    for (i, (key, trailer, value)) in entries.iter().enumerate() {
        assert!(block.key_is(i, key) && block.trailer(i) == *trailer && block.value(i) == value);
        assert_eq!(block.lower_bound(key, *trailer), i);
        assert_eq!(block.lower_bound(&[key, &[0][..]].concat(), Trailer::seek(Seq::MAX)), {
            let behind = |entry: &(Vec<u8>, Trailer, Vec<u8>)| entry.0 <= *key;
            entries.iter().take_while(|entry| behind(entry)).count()
        });
    }
}

// ---- the log -------------------------------------------------------------------------------------------------

/// Envelopes and sections.
pub fn log(data: &[u8]) {
    let decoded = Envelope::decode(data, 0).ok();
    if let Some(envelope) = &decoded {
        assert_eq!(envelope.encode(), data);
        assert!(envelope.sections.capacity() * 32 <= data.len());
        let _ = (envelope.group_bytes(), envelope.last_seq());
    }
    if data.is_empty() {
        return;
    }
    let mut file = Vec::new();
    let segment = SegmentSealer::create(&SYSTEM, SUITE, FileNumber(12), &Counting::default(), &mut file).unwrap();
    let opener = segment_opener(&file);
    sealed_envelope(data, decoded, &segment, &opener);
    sealed_section(data, &segment, &opener);
    written_section(data, &segment, &opener);
}

fn segment_opener(file: &[u8]) -> SegmentOpener {
    let (kind, number) = (FileKind::Log, FileNumber(12));
    let expected = Expected { kind, number, subject: TableId::SYSTEM, suite: None, salt: None };
    SegmentOpener::open(file, &SYSTEM, &expected, &here()).unwrap()
}

fn sealed_envelope(data: &[u8], decoded: Option<Envelope>, segment: &SegmentSealer, opener: &SegmentOpener) {
    let mut out = Vec::new();
    let place = segment.ordinals().take().unwrap();
    let ordinal = place.ordinal();
    let frame = JournalFrame::begin(FrameKind::Envelope, data.len(), &mut out);
    out.put(data);
    frame.finish(true, ordinal, &mut out, |aad, body| segment.system().seal(place, aad, body)).unwrap();
    assert_eq!(ordinal, 0, "the ordinal that `decoded` was decoded for");
    match opener.open_envelope(out, &here()) {
        Ok((envelope, _)) => assert_eq!(Some(&*envelope), decoded.as_ref()),
        Err(_) => assert!(decoded.is_none(), "an envelope that decodes opens"),
    }
}

/// The first byte says how long the frames are into which the rest is cut, as the plaintext of a section.
fn sealed_section(data: &[u8], segment: &SegmentSealer, opener: &SegmentOpener) {
    let (&cut, plaintext) = data.split_first().unwrap();
    let frame_bytes = (1 + usize::from(cut)).max(plaintext.len() / 64);
    if plaintext.is_empty() {
        return;
    }
    let sealer = OWNER.stream_sealer(SUITE, segment.ordinals());
    let pieces: Vec<&[u8]> = plaintext.chunks(frame_bytes).collect();
    let mut places = segment.ordinals().take_run(pieces.len() as u64).unwrap();
    let first_ordinal = places.next_ordinal();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut tag = [0; 16];
    for (i, piece) in pieces.iter().enumerate() {
        let mut out = Vec::new();
        let place = places.next().unwrap();
        let ordinal = place.ordinal();
        let frame = JournalFrame::begin(FrameKind::Section, piece.len(), &mut out);
        out.put(piece);
        let last = i + 1 == pieces.len();
        tag = frame.finish(last, ordinal, &mut out, |aad, body| sealer.seal(place, aad, body)).unwrap();
        frames.push(out);
    }
    let section = Section {
        slot: Slot(3),
        generation: Generation(3),
        suite: SUITE,
        first_seq: Seq::ZERO,
        entries: u32::MAX,
        first_ordinal,
        frames: frames.len() as u32,
        len_bytes: frames.iter().map(|frame| frame.len() as u64).sum(),
        tag,
    };
    let mut again = Vec::new();
    let Some(entries) = read_section(&section, &frames, opener, &mut again, false) else { return };
    assert_eq!(again, plaintext, "entries that were read to the end are the bytes that were sealed");
    let counted = Section { entries, ..section };
    assert!(entries == 0 || read_section(&counted, &frames, opener, &mut Vec::new(), true).is_some());
}

/// The entries of a section, written to `again`; `None` if they could not be read to the end.
fn read_section(
    section: &Section,
    frames: &[Vec<u8>],
    opener: &SegmentOpener,
    again: &mut Vec<u8>,
    counted: bool,
) -> Option<u32> {
    let mut reader = SectionReader::new(opener.table_key(&OWNER, SUITE), section);
    let mut entries = 0;
    for frame in frames {
        reader.feed(frame.clone(), &here()).expect("the frame is authentic and in its place");
        while let Some(entry) = reader.next_entry(&here()).ok()? {
            assert_eq!(entry.seq.get(), u64::from(entries));
            entries += 1;
            again.put_u8(entry.kind as u8);
            again.put_varint(entry.key.len() as u64);
            match entry.kind {
                Kind::Put => again.put_varint(entry.value.len() as u64),
                _ => assert!(entry.value.is_empty()),
            }
            again.put(entry.key);
            again.put(entry.value);
        }
    }
    let finished = reader.finish(&here()).is_ok();
    assert_eq!(finished, counted);
    Some(entries)
}

/// The bytes as keys and values, through the writer and back.
fn written_section(data: &[u8], segment: &SegmentSealer, opener: &SegmentOpener) {
    let Some((key, value)) = split(data).filter(|(key, _)| !key.is_empty()) else { return };
    let mut out = Vec::new();
    let sealer = OWNER.stream_sealer(SUITE, segment.ordinals());
    let raw_bytes = entry_bytes(key.len(), Some(value.len())) + entry_bytes(key.len(), None);
    let shape = (1, section_frames(raw_bytes));
    let mut group = GroupWriter::begin(segment.ordinals(), shape, Seq::ZERO, &mut out, keep).unwrap();
    let mut writer = group.section(&sealer, Slot(3), Generation(3), raw_bytes).unwrap();
    writer.put(key, value).unwrap();
    writer.delete(key).unwrap();
    let section = writer.finish();
    group.add(&section);
    group.finish(segment.system(), Epoch(1), [0; 16], LogPoint::default()).unwrap();

    let envelope_bytes = JournalHead::decode(&out, &here()).unwrap().frame_bytes() as usize;
    let (envelope, frame) = out.split_at(envelope_bytes);
    let (envelope, _) = opener.open_envelope(envelope.to_vec(), &here()).unwrap();
    assert_eq!(envelope.sections, [section]);
    let mut again = Vec::new();
    assert_eq!(read_section(&section, &[frame.to_vec()], opener, &mut again, true), Some(2));
    assert_eq!(again.len() as u64, raw_bytes);
}

// ---- the manifest --------------------------------------------------------------------------------------------

/// Groups of edits, alone and cut into frames; and the picture that they add up to.
pub fn manifest(data: &[u8]) {
    if let Ok(group) = EditGroup::decode(data) {
        assert_eq!(&*group.encode(), data);
        picture(&group);
        written_manifest(&group);
    }
    sealed_manifest(data);
}

/// What a picture says of itself makes the same picture.
fn picture(group: &EditGroup) {
    let apply = |edits: &[crate::format::manifest::Edit]| {
        let mut state = State::begin(edits, &here()).ok()?;
        edits[2..].iter().try_for_each(|edit| state.apply(edit.clone(), &here())).ok()?;
        Some(state)
    };
    if let Some(state) = apply(&group.edits) {
        let edits = state.picture();
        assert_eq!(apply(&edits).expect("a picture can be read").picture(), edits);
    }
}

fn manifest_opener(file: &[u8]) -> ManifestOpener {
    let (kind, number) = (FileKind::Manifest, FileNumber(7));
    let expected = Expected { kind, number, subject: TableId::SYSTEM, suite: None, salt: None };
    ManifestOpener::open(file, &SYSTEM, &expected, &here()).unwrap()
}

fn written_manifest(group: &EditGroup) {
    let mut file = Vec::new();
    let mut sealer = ManifestSealer::create(&SYSTEM, SUITE, FileNumber(7), &Counting::default(), &mut file).unwrap();
    assert_eq!(sealer.append(group, &mut file).unwrap(), 0);
    let mut opener = manifest_opener(&file);
    let read = opener.feed(file[HEADER_BYTES..].to_vec(), &here()).unwrap().unwrap();
    assert_eq!(&*read, group);
}

/// The first byte says how long the frames are into which the rest is cut.
fn sealed_manifest(data: &[u8]) {
    let Some((&cut, plaintext)) = data.split_first() else { return };
    let (kind, number) = (FileKind::Manifest, FileNumber(7));
    let mut file = Vec::new();
    let entropy = Counting::default();
    let mut sealer = FileSealer::create(&SYSTEM, SUITE, kind, number, TableId::SYSTEM, &entropy, &mut file).unwrap();
    let mut opener = manifest_opener(&file);
    for payload in plaintext.chunks((1 + usize::from(cut)).max(plaintext.len() / 64)) {
        let mut frame = Vec::new();
        sealer.seal_journal(FrameKind::Edits, payload, &mut frame).unwrap();
        match opener.feed(frame, &here()) {
            Ok(Some(_)) => assert!(!opener.is_within_group()),
            Ok(None) => assert!(opener.is_within_group()),
            Err(_) => return,
        }
    }
    assert_eq!(opener.next_ordinal(), sealer.frames());
}

// ---- key files and CURRENT -----------------------------------------------------------------------------------

/// Records, contexts, and whole files whose seals are right.
pub fn keyfile(data: &[u8]) {
    let decoded = KeyFile::decode(data).ok();
    if let Some(record) = &decoded {
        let encoded = record.encode();
        assert_eq!(encoded, data[..encoded.len()]);
        assert!(data.len() - encoded.len() < 512 && data[encoded.len()..].iter().all(|&byte| byte == 0));
        assert!(record.wraps.capacity() * 48 <= data.len());
        written_key_file(record);
    }
    if let Ok(pairs) = decode_context(data) {
        assert_eq!(encode_context(&pairs).ok().as_deref(), (data.len() <= 8192).then_some(data));
    }
    let _ = KeyFile::open(data, &SYSTEM, TABLE, &here());
    if let Ok(file) = SystemKeyFile::decode_unauthenticated(data, &here()) {
        let _ = file.authenticate(&SYSTEM, &here());
    }
    sealed_key_file(data);
}

fn written_key_file(record: &KeyFile) {
    let entropy = Counting::default();
    if record.table != TableId::SYSTEM {
        let (bytes, tag) = record.seal(&SYSTEM, SUITE, &entropy).unwrap();
        assert!(bytes.len().is_multiple_of(1024));
        let opened = KeyFile::open(&bytes, &SYSTEM, record.table, &here()).unwrap();
        assert!(opened.both_copies_good && opened.tag == tag && *opened.record == *record);
        either_half_is_enough(&bytes, |bytes| {
            KeyFile::open(bytes, &SYSTEM, record.table, &here()).map(|opened| opened.both_copies_good)
        });
    } else if let Ok((bytes, _)) = SystemKeyFile::seal(record, &SYSTEM, SUITE, &entropy) {
        let open = |bytes: &[u8]| {
            let file = SystemKeyFile::decode_unauthenticated(bytes, &here())?;
            file.authenticate(&SYSTEM, &here()).map(|opened| opened.both_copies_good)
        };
        assert!(open(&bytes).unwrap());
        either_half_is_enough(&bytes, open);
    }
}

fn either_half_is_enough(bytes: &[u8], open: impl Fn(&[u8]) -> crate::Result<bool>) {
    let mut damaged = bytes.to_vec();
    let place = crc32(&[bytes]) as usize % bytes.len();
    damaged[place] ^= 0x10;
    assert!(!open(&damaged).unwrap(), "one copy is enough, and the damage to the other is noticed");
}

fn sealed_key_file(data: &[u8]) {
    let entropy = Counting::default();
    let (kind, number) = (FileKind::KeyFile, FileNumber(5));
    let mut unit = Vec::new();
    let mut sealer = FileSealer::create(&SYSTEM, SUITE, kind, number, TABLE, &entropy, &mut unit).unwrap();
    sealer.seal(FrameKind::KeyRecord, true, Compression::None, data, &mut unit).unwrap();
    for copies in [&[][..], &unit, &unit[..unit.len() / 2]] {
        let opened = KeyFile::open(&[&unit, copies].concat(), &SYSTEM, TABLE, &here());
        if let Ok(opened) = opened {
            assert_eq!(KeyFile::decode(data).as_ref(), Ok(&*opened.record));
            assert_eq!(opened.both_copies_good, copies.len() == unit.len());
        }
    }
    let (kind, number) = (FileKind::SystemKey, FileNumber(2));
    let mut unit = Vec::new();
    let mut sealer = FileSealer::create(&SYSTEM, SUITE, kind, number, TableId::SYSTEM, &entropy, &mut unit).unwrap();
    seal_in_clear(&mut sealer, FrameKind::KeyRecord, data, &mut unit).unwrap();
    if let Ok(file) = SystemKeyFile::decode_unauthenticated(&unit, &here()) {
        assert_eq!(KeyFile::decode(data).as_ref(), Ok(file.unauthenticated()));
        assert!(file.authenticate(&SYSTEM, &here()).is_ok());
    }
}

/// `CURRENT`.
pub fn current(data: &[u8]) {
    let decoded = Current::decode(data).ok();
    if let Some(current) = decoded {
        assert_eq!(current.encode(), data);
        let bytes = current.seal(&SYSTEM, SUITE, &Counting::default()).unwrap();
        assert_eq!(*Current::open(&bytes, &SYSTEM, &here()).unwrap(), current);
        let mut damaged = bytes.clone();
        let place = crc32(&[data]) as usize % bytes.len();
        damaged[place] ^= 0x10;
        assert!(Current::open(&damaged, &SYSTEM, &here()).is_err());
        assert!(Current::open(&[&bytes[..], &[0]].concat(), &SYSTEM, &here()).is_err());
    }
    let _ = Current::open(data, &SYSTEM, &here());

    let number = data.first_chunk().map_or(FileNumber(0), |bytes| FileNumber(u64::from_le_bytes(*bytes)));
    let mut file = Vec::new();
    let entropy = Counting::default();
    let kind = FileKind::Current;
    let mut sealer = FileSealer::create(&SYSTEM, SUITE, kind, number, TableId::SYSTEM, &entropy, &mut file).unwrap();
    if sealer.seal(FrameKind::Current, true, Compression::None, data, &mut file).is_ok() {
        assert_eq!(Current::open(&file, &SYSTEM, &here()).ok().map(Authentic::into_inner), decoded);
    }
}

// ---- scrub ---------------------------------------------------------------------------------------------------

const KINDS: [FileKind; 7] = [
    FileKind::SystemKey,
    FileKind::Current,
    FileKind::Manifest,
    FileKind::Log,
    FileKind::Table,
    FileKind::KeyFile,
    FileKind::Parked,
];

/// The first byte chooses a kind of file; the rest is one, or the payloads of one that is whole and then damaged.
pub fn scrub(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let kind = KINDS[usize::from(choice) % KINDS.len()];
    walk(kind, bytes);

    let (mut file, frames) = whole_file(kind, bytes);
    assert_eq!(walk(kind, &file), (frames, 0), "a whole file has no findings");
    let place = crc32(&[data]) as usize % file.len();
    file[place] ^= 1 << (choice % 8);
    assert!(walk(kind, &file).1 > 0, "byte {place} of {} was changed and not found", file.len());
}

/// Frames and findings of a file.
fn walk(kind: FileKind, bytes: &[u8]) -> (u64, u64) {
    let mut walk = Scrub::new(kind, bytes.len() as u64);
    let (mut steps, mut findings) = (0, 0);
    while let Some(range) = walk.wants() {
        assert!(range.start <= range.end && range.end <= bytes.len() as u64);
        findings += u64::from(walk.feed(&bytes[range.start as usize..range.end as usize], "file").is_err());
        steps += 1;
        assert!(steps <= 4 * bytes.len() + 4, "the walk has no end");
        assert!(walk.position() <= bytes.len() as u64 + HEADER_BYTES as u64);
    }
    (walk.frames(), findings)
}

fn whole_file(kind: FileKind, payloads: &[u8]) -> (Vec<u8>, u64) {
    let mut file = Vec::new();
    let subject = TableId::SYSTEM;
    let mut sealer =
        FileSealer::create(&SYSTEM, SUITE, kind, FileNumber(9), subject, &Counting::default(), &mut file).unwrap();
    let twice = matches!(kind, FileKind::KeyFile | FileKind::SystemKey);
    let journal = matches!(kind, FileKind::Manifest | FileKind::Log | FileKind::Parked);
    let frames: Vec<&[u8]> = if twice { vec![payloads] } else { payloads.chunks(100).collect() };
    for payload in frames {
        if journal {
            sealer.seal_journal(FrameKind::Edits, payload, &mut file).unwrap();
        } else {
            sealer.seal(FrameKind::Data, false, Compression::None, payload, &mut file).unwrap();
        }
    }
    if twice {
        file.extend_from_within(..);
        return (file, 2);
    }
    (file, sealer.frames())
}

// ---- parked sections -----------------------------------------------------------------------------------------

/// Index and end of a file of parked sections.
pub fn parked(data: &[u8]) {
    let index = IndexPiece::decode(data).ok();
    if let Some(index) = &index {
        assert_eq!(index.encode(), data);
        assert!(index.sections.capacity() * 64 <= data.len());
    }
    let end = ParkedEnd::decode(data).ok();
    if let Some(end) = &end {
        assert_eq!(end.encode(), data);
    }
    if data.is_empty() || data.len() > 2_000 {
        return;
    }
    // As the plaintext of a frame with a right tag, once as each kind.
    let mut file = Vec::new();
    let (kind, number, subject) = (FileKind::Parked, FileNumber(34), OWNER.table());
    let entropy = Counting::default();
    let mut sealer = FileSealer::create(&SYSTEM, SUITE, kind, number, subject, &entropy, &mut file).unwrap();
    let expected = Expected { kind, number, subject, suite: None, salt: None };
    let mut opener = ParkedOpener::open(&file, &SYSTEM, &expected, &here()).unwrap();
    let mut frame = Vec::new();
    let tag = sealer.seal_journal(FrameKind::ParkedIndex, data, &mut frame).unwrap().tag;
    let (frame_bytes, fed) = (frame.len() as u64, opener.feed_index(frame, &here()));
    assert_eq!(fed.ok(), index.as_ref().map(|index| !index.more));
    assert!(opener.sections().len() * 64 <= data.len());
    let mut frame = Vec::new();
    let last = sealer.seal_journal(FrameKind::ParkedEnd, data, &mut frame).unwrap().tag;
    assert_ne!(tag, last);
    // It cannot be both: index and end have different lengths.
    assert!(opener.finish(frame, (last, frame_bytes), frame_bytes, &here()).is_err());
}

// ---- keyring -------------------------------------------------------------------------------------------------

/// A keyring's contents, its file, and keys that it is asked to unwrap.
pub fn keyring(data: &[u8]) {
    let unlock = || Unlock::key(|key| key.fill(7));
    // What an older version held is written in the latest one, which has one encoding of everything.
    let decoded = local_fuzz::VERSIONS.map(|version| (version, local_fuzz::reencoded(data, version)));
    let decoded: Vec<_> = decoded.collect();
    for (version, again) in &decoded {
        let Some(again) = again else { continue };
        let latest = *local_fuzz::VERSIONS.end();
        assert_eq!(local_fuzz::reencoded(again, latest).as_deref(), Some(&**again));
        assert!(*version < latest || **again == *data);
    }
    let sim = Simulation::new(1);
    let open = |bytes: &[u8]| {
        let _ = sim.vfs.delete("/keyring");
        sim.vfs.plant("/keyring", bytes).unwrap();
        LocalKms::open_in(sim.environment(), "/keyring", unlock())
    };
    let mut fitting = data.to_vec();
    if let Some((header, body)) = fitting.split_at_mut_checked(100) {
        header[88..92].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[92..96].copy_from_slice(&crc32(&[body]).to_le_bytes());
        let crc = crc32(&[&header[..96]]);
        header[96..].copy_from_slice(&crc.to_le_bytes());
    }
    let _ = (open(data), open(&fitting));
    for (version, decoded) in &decoded {
        let opened = open(&local_fuzz::sealed(data, *version, &unlock(), sim.environment()));
        assert_eq!(opened.is_ok(), decoded.is_some());
        let Ok(kms) = opened else { continue };
        for key in kms.list_keys().unwrap() {
            wrap_and_unwrap(&kms, &key.arn, data);
        }
    }
    in_memory(data, sim.environment());
}

/// A key of any state wraps and unwraps, or refuses both.
fn wrap_and_unwrap(kms: &LocalKms, arn: &str, data: &[u8]) {
    let context = EncryptionContext::new();
    let Ok(wrapped) = kms.generate_data_key(&GenerateDataKeyRequest::new(arn, context.clone(), Principal::Owner))
    else {
        return;
    };
    let unwrap =
        |bytes: Vec<u8>| kms.decrypt(&DecryptRequest::new(&wrapped.key_arn, bytes, context.clone(), Principal::Owner));
    match unwrap(wrapped.ciphertext.clone()) {
        Ok(opened) => assert_eq!(opened.plaintext.expose(), wrapped.plaintext.expose()),
        // A policy may well allow the one and not the other.
        Err(error) => return assert_eq!(error.reason, ProviderReason::Denied),
    }
    assert!(unwrap(data.to_vec()).is_err());
    let mut changed = wrapped.ciphertext.clone();
    let place = crc32(&[data]) as usize % changed.len();
    changed[place] ^= 1 << (data.len() % 8);
    assert!(unwrap(changed).is_err());
}

fn in_memory(data: &[u8], environment: Environment) {
    let kms = LocalKms::in_memory(environment).unwrap();
    let key = kms.create_key(None, "").unwrap();
    wrap_and_unwrap(&kms, &key.arn, data);
    if let Ok(alias) = std::str::from_utf8(data)
        && kms.add_alias(&key.arn, alias).is_ok()
    {
        assert_eq!(kms.key(alias).unwrap().arn, key.arn);
        assert!(local_fuzz::reencoded(&local_fuzz::contents(&kms), *local_fuzz::VERSIONS.end()).is_some());
    }
}
