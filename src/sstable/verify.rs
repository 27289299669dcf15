//! Every frame of a table, opened in order, and whether its parts tell the truth about each other.
//!
//! Frames are walked from the header to the footer without a gap, so that nothing in the file is left unread:
//!
//! ```text
//! data        each block is where the index says, in order within and to the block before, within its separator;
//!             each run before it is pointed to by it, in order; each key is in the filter
//! filter, index, index top, properties, bounds, footer      as many frames as the directory says
//! totals      entries, keys, tombstones, bytes, runs, blocks, sequence numbers: as in the properties
//! bounds      first and last key; the frame is the one in the manifest, byte for byte
//! ```

use crate::crypto::{Authentic, Wiped};
use crate::error::Result;
use crate::format::block::Block;
use crate::format::frame::{FrameKind, HEADER_BYTES};
use crate::format::table::{Handle, RunPointer, Section, decode_bounds, hash};
use crate::sstable::index::{IndexPlace, joined};
use crate::sstable::{Source, TableReader, shown};
use crate::types::{Kind, Seq, Trailer};

/// See the module's documentation.
pub(super) fn verify(reader: &TableReader, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let mut walk = Walk { source: &reader.source, offset_bytes: HEADER_BYTES as u64, ordinal: 0, progress };
    (walk.progress)(HEADER_BYTES as u64);
    let mut found = Found::default();
    let mut next = Some(IndexPlace::default());
    while let Some(place) = next {
        let Some(leaf) = reader.index.leaf_at(reader, place)? else { break };
        let handle = leaf.handle(reader, place.at)?;
        let bound = reader.index.separator(place);
        found.runs_before(&mut walk, &handle)?;
        found.block(reader, &mut walk, &handle, bound)?;
        next = reader.index.next(reader, place)?;
    }
    let data = &reader.footer.data;
    if walk.offset_bytes != data.offset_bytes + data.len_bytes || walk.ordinal != data.frames {
        return Err(walk.wrong("the index does not account for all data"));
    }
    found.check_totals(reader)?;
    check_sections(reader, &mut walk, &found)
}

/// Frames one after the other.
struct Walk<'a> {
    source: &'a Source,
    offset_bytes: u64,
    ordinal: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Walk<'_> {
    fn wrong(&self, detail: &'static str) -> crate::error::Error {
        self.source.at(self.offset_bytes).tampered(detail)
    }

    /// Read and open the next frame, which must be of this kind; also its bytes on disk.
    fn frame(&mut self, kind: FrameKind) -> Result<(Handle, Vec<u8>, Authentic<Wiped>)> {
        let len_bytes = self.source.frame_bytes(kind, self.offset_bytes)?;
        let frame = self.source.read(self.offset_bytes, len_bytes as usize)?;
        let payload = self.source.open_frame(kind, self.ordinal, frame.clone(), self.offset_bytes)?;
        let handle = Handle { offset_bytes: self.offset_bytes, len_bytes: len_bytes as u32, ordinal: self.ordinal };
        self.offset_bytes += len_bytes;
        self.ordinal += 1;
        (self.progress)(len_bytes);
        Ok((handle, frame, payload))
    }
}

/// What the data turned out to hold.
#[derive(Default)]
struct Found {
    entries: u64,
    keys: u64,
    tombstones: u64,
    raw_bytes: u64,
    runs: u64,
    blocks: u64,
    seqs: Option<(Seq, Seq)>,
    first_key: Wiped,
    last: Option<(Wiped, Trailer)>,
    /// Runs that no block has pointed to yet, with the lengths of their chunks as found.
    pending: Vec<Handle>,
    pending_bytes: Vec<usize>,
    /// The separator of the block before.
    bound: Option<(Wiped, Trailer)>,
}

impl Found {
    /// Open the frames that lie before a block: the runs that it points to.
    fn runs_before(&mut self, walk: &mut Walk<'_>, block: &Handle) -> Result<()> {
        while walk.ordinal < block.ordinal {
            let (handle, _, payload) = walk.frame(FrameKind::ValueRun)?;
            self.pending.push(handle);
            self.pending_bytes.push(payload.len());
        }
        if (walk.ordinal, walk.offset_bytes) != (block.ordinal, block.offset_bytes) {
            return Err(walk.wrong("a block is not where the index says"));
        }
        Ok(())
    }

    fn block(
        &mut self,
        reader: &TableReader,
        walk: &mut Walk<'_>,
        expected: &Handle,
        bound: Option<(Wiped, Trailer)>,
    ) -> Result<()> {
        let place = walk.source.at(walk.offset_bytes);
        // Opened here and not through the reader, whose cache may hold it from before the damage.
        let block = reader.load_block(FrameKind::Data, expected)?;
        walk.offset_bytes += u64::from(expected.len_bytes);
        walk.ordinal += 1;
        (walk.progress)(u64::from(expected.len_bytes));

        if !block.is_ordered() {
            return Err(place.tampered("a block's entries are not in order"));
        }
        for i in 0..block.len() {
            self.entry(reader, &block, i).map_err(|detail| place.tampered(detail))?;
        }
        if !self.pending.is_empty() {
            return Err(place.tampered("a value outside the blocks is pointed to by none"));
        }
        let (Some(last), Some(bound)) = (&self.last, bound) else {
            return Err(place.tampered("a block without a separator"));
        };
        if is_after(last, &bound) {
            return Err(place.tampered("a block's last entry is behind its separator"));
        }
        self.blocks += 1;
        self.bound = Some(bound);
        Ok(())
    }

    fn entry(&mut self, reader: &TableReader, block: &Block, i: usize) -> Result<(), &'static str> {
        let entry = (joined(block.key_prefix(), block.suffix(i)), block.trailer(i));
        if self.bound.as_ref().is_some_and(|bound| !is_after(&entry, bound)) {
            return Err("a block's first entry is not behind the separator before it");
        }
        self.bound = None;
        let same_key = self.last.as_ref().is_some_and(|last| *last.0 == *entry.0);
        if self.last.as_ref().is_some_and(|last| !is_after(&entry, last) || same_key && last.1.seq() == entry.1.seq()) {
            return Err("entries are not in order");
        }
        if !same_key {
            self.keys += 1;
            let hash = hash(reader.properties.filter_seed, &entry.0);
            if reader.filter.as_ref().is_some_and(|filter| !filter.may_hold(hash)) {
                return Err("a key is missing from the filter");
            }
        }
        let value_bytes = match entry.1.kind() {
            Kind::Delete if !block.value(i).is_empty() => return Err("a delete with a value"),
            Kind::PutRun => self.run(block.value(i))?,
            _ => block.value(i).len(),
        };
        let seq = shown(entry.1).seq();
        let (min, max) = self.seqs.unwrap_or((seq, seq));
        self.seqs = Some((min.min(seq), max.max(seq)));
        self.entries += 1;
        self.tombstones += u64::from(entry.1.kind() == Kind::Delete);
        self.raw_bytes += (entry.0.len() + value_bytes) as u64;
        if self.first_key.is_empty() {
            self.first_key.extend_from_slice(&entry.0);
        }
        self.last = Some(entry);
        Ok(())
    }

    /// Take the frames of one run, which must be the next ones.
    fn run(&mut self, pointer: &[u8]) -> Result<usize, &'static str> {
        let pointer = RunPointer::decode(pointer).map_err(|_| "a pointer to a value that cannot be decoded")?;
        let frames = pointer.frames as usize;
        if self.pending.len() < frames {
            return Err("a pointer to more frames than there are");
        }
        let len_bytes: u64 = self.pending.iter().take(frames).map(|handle| u64::from(handle.len_bytes)).sum();
        let first = self.pending.first().map(|handle| (handle.ordinal, handle.offset_bytes));
        let chunks_match =
            self.pending_bytes.iter().take(frames).zip(0..).all(|(&bytes, i)| bytes == pointer.chunk_bytes(i));
        if first != Some((pointer.first_ordinal, pointer.offset_bytes))
            || len_bytes != u64::from(pointer.len_bytes)
            || !chunks_match
        {
            return Err("a pointer to other frames than those before its block");
        }
        self.pending.drain(..frames);
        self.pending_bytes.drain(..frames);
        self.runs += 1;
        Ok(pointer.value_bytes as usize)
    }

    fn check_totals(&self, reader: &TableReader) -> Result<()> {
        let properties = &reader.properties;
        let same = self.entries == properties.entries
            && self.keys == properties.keys
            && self.tombstones == properties.tombstones
            && self.raw_bytes == properties.raw_bytes
            && self.runs == properties.runs
            && self.blocks == properties.blocks
            && self.seqs == Some((properties.seq_min, properties.seq_max));
        if same {
            return Ok(());
        }
        Err(reader
            .source
            .at(reader.footer.properties.offset_bytes)
            .tampered("the properties do not agree with the data"))
    }
}

/// Whether the first is behind the second in the engine's order.
fn is_after(a: &(Wiped, Trailer), b: &(Wiped, Trailer)) -> bool {
    a.0.as_ref().cmp(b.0.as_ref()).then(b.1.cmp(&a.1)) == std::cmp::Ordering::Greater
}

/// The frames behind the data.
fn check_sections(reader: &TableReader, walk: &mut Walk<'_>, found: &Found) -> Result<()> {
    let footer = &reader.footer;
    each(walk, FrameKind::Filter, &footer.filter, |_, _| Ok(()))?;
    let mut tops = reader.index.tops().flat_map(|root| (0..root.len()).map(move |i| (root, i)));
    each(walk, FrameKind::Index, &footer.index, |handle, payload| {
        if !footer.index_top.is_there() {
            return Ok(());
        }
        let place = reader.source.at(handle.offset_bytes);
        let block = Block::parse(payload, &place)?;
        let last = block.len() - 1;
        let is_named = tops.next().is_some_and(|(root, i)| {
            let separator = joined(root.key_prefix(), root.suffix(i));
            root.value(i) == handle.encode() && block.key_is(last, &separator) && block.trailer(last) == root.trailer(i)
        });
        if is_named { Ok(()) } else { Err(place.tampered("the top index does not agree with the index")) }
    })?;
    each(walk, FrameKind::IndexTop, &footer.index_top, |_, _| Ok(()))?;
    each(walk, FrameKind::Properties, &footer.properties, |_, _| Ok(()))?;

    let (handle, frame, payload) = walk.frame(FrameKind::Bounds)?;
    let place = reader.source.at(handle.offset_bytes);
    if frame != reader.record.bounds || handle.ordinal != reader.record.bounds_ordinal {
        return Err(place.tampered("the bounds are not those of the manifest"));
    }
    let (smallest, largest) = decode_bounds(&payload).map_err(|refusal| refusal.at(&place))?;
    let last = found.last.as_ref().map(|last| &*last.0);
    if *smallest != *found.first_key || Some(&*largest) != last {
        return Err(place.tampered("the bounds are not the first and last key"));
    }
    walk.frame(FrameKind::Footer)?;
    if walk.offset_bytes != reader.source.len_bytes {
        return Err(walk.wrong("bytes behind the footer"));
    }
    Ok(())
}

fn each(
    walk: &mut Walk<'_>,
    kind: FrameKind,
    section: &Section,
    mut look: impl FnMut(Handle, Authentic<Wiped>) -> Result<()>,
) -> Result<()> {
    for _ in 0..section.frames {
        let (handle, _, payload) = walk.frame(kind)?;
        look(handle, payload)?;
    }
    if section.is_there() && walk.offset_bytes != section.offset_bytes + section.len_bytes {
        return Err(walk.wrong("a section has another length than the footer says"));
    }
    Ok(())
}
