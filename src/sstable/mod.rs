//! Sorted tables: write one, open one, get from it, walk it, verify it.
//!
//! ```text
//! TableWriter  (writer.rs)   sorted entries in, synced file and manifest record out
//! Container    (container.rs) a file that many small tables share
//! TableReader  (here)        get: filter, index, block through the cache, search
//! TableCursor  (cursor.rs)   both ways
//! ReadAhead    (ahead.rs)    many blocks with one read, opened on another core too
//! Index        (index.rs)    from a key to a block
//! BlockCache   (cache.rs)    opened blocks of all tables, each in a slot beside its entry in the index
//! verify       (verify.rs)   every frame, and that index, filter, properties and bounds tell the truth
//! ```
//!
//! A reader trusts nothing that the manifest does not vouch for: header, length and footer tag must be those of the
//! [`FileRecord`], the footer's directory must account for every byte, and all else is read under its own tag. What is authentic is still
//! checked before it is used as a length or an index, so that a table written by a broken program is an error and
//! no panic.
//!
//! Held per open table: filter, index (those of its leaves that were used, once it is more than one block), eight bytes and a count for each data
//! block, and some hundred bytes. The format is `format/table.rs`.

use std::sync::Arc;

use crate::crypto::{Authentic, Suite, TableKey, Wiped};
use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::codec::Where;
use crate::format::frame::{Expected, FRAME_HEAD_BYTES, FileOpener, FrameHead, FrameKind, HEADER_BYTES};
use crate::format::manifest::FileRecord;
use crate::format::table::{Filter, FilterKind, Footer, Handle, Properties, RunPointer, Section, decode_bounds};
use crate::io::File;
#[cfg(any(test, fuzzing))]
use crate::metrics::Count;
use crate::metrics::{Meters, Probes};
use crate::options::Compression;
use crate::types::{FRAME_BYTES_MAX, FileKind, Kind, Seq, TableId, Trailer, UserKey};
use crate::value::{Backing, Value};

mod ahead;
pub(crate) mod cache;
mod container;
mod cursor;
mod index;
mod verify;
mod writer;

pub(crate) use ahead::{AheadTask, HelpQueue, Helper};
pub(crate) use cache::BlockCache;
pub(crate) use container::Container;
pub(crate) use cursor::{ReadMode, TableCursor};
pub(crate) use writer::{FinishedTable, TableWriter};

use cache::{Keep, OpenBlock};
use index::Index;
use writer::FOOTER_FRAME_BYTES;

/// What all sorted tables of one table of the store have in common.
#[derive(Clone, Debug)]
pub(crate) struct TableSettings {
    /// Whose they are.
    pub(crate) table: TableId,
    /// What seals a new one.
    pub(crate) suite: Suite,
    /// How blocks of a new one are compressed.
    pub(crate) compression: Compression,
    /// Size of a block of a new one, before compression.
    pub(crate) block_bytes: usize,
    /// Bits of filter per key of a new one; 0 for no filter.
    pub(crate) filter_bits_per_key: u8,
    /// Seed of the hashes of keys.
    pub(crate) filter_seed: u64,
}

/// Smallest and largest user key of a table, from what the manifest says about it, without the file.
///
/// # Errors
/// `Tampered` or `BitRot` if the record's bounds are not what was sealed for this file.
pub(crate) fn bounds(key: &TableKey, record: &FileRecord, name: &str) -> Result<(UserKey, UserKey)> {
    let opener = FileOpener::from_pinned(key, record.suite, FileKind::Table, record.number, &record.salt);
    let place = Where::new(name, 0);
    let payload = opener.open_frame(FrameKind::Bounds, false, record.bounds_ordinal, record.bounds.clone(), &place)?;
    decode_bounds(&payload).map_err(|refusal| refusal.at(&place))
}

/// An open sorted table.
pub(crate) struct TableReader {
    source: Source,
    footer: Footer,
    properties: Properties,
    filter: Option<Filter>,
    index: Index,
    cache: Arc<BlockCache>,
    /// The manifest's record, which [`TableReader::verify`] compares with the file.
    record: FileRecord,
}

/// The file's bytes and what opens them.
struct Source {
    file: Arc<dyn File>,
    name: Box<str>,
    opener: FileOpener,
    meters: Arc<Meters>,
    /// Where the table begins in its container.
    base_bytes: u64,
    len_bytes: u64,
}

impl TableReader {
    /// Open the table that `record` describes. `name` is what errors call the file.
    ///
    /// # Errors
    /// `WrongKey` if the file was sealed under another key than `key`; `Tampered` if it is not the file of the record, or contradicts
    /// itself; `BitRot`; `UnknownVersion`; `Io`.
    pub(crate) fn open(
        file: Arc<dyn File>,
        name: &str,
        key: &TableKey,
        record: &FileRecord,
        settings: &TableSettings,
        cache: Arc<BlockCache>,
    ) -> Result<Arc<TableReader>> {
        let source = Source::open(file, name, key, record, settings.table, cache.meters())?;
        let footer = source.footer(record)?;
        let properties = source.properties(&footer, record, settings)?;
        let filter = source.filter(&footer, &properties)?;
        let index = Index::load(&source, &footer, &cache)?;
        Ok(Arc::new(TableReader { source, footer, properties, filter, index, cache, record: record.clone() }))
    }

    /// The newest version of `key` that a reader at `seq` sees here, deletes included. `hash` is
    /// [`table::hash`](crate::format::table::hash) of the key under the table's seed.
    ///
    /// # Errors
    /// `Tampered`, `BitRot` or `Io` with the place of the frame that could not be read.
    pub(crate) fn get_counted(
        &self,
        probes: &mut Probes,
        key: &[u8],
        hash: u64,
        seq: Seq,
    ) -> Result<Option<(Trailer, Value)>> {
        let Some(filter) = &self.filter else { return self.find(probes, key, seq) };
        if !filter.may_hold(hash) {
            probes.useful += 1;
            return Ok(None);
        }
        let found = self.find(probes, key, seq)?;
        match found {
            Some(_) => probes.passed += 1,
            None => probes.false_positives += 1,
        }
        Ok(found)
    }

    /// As [`get_counted`](TableReader::get_counted), for those who have nothing to count in.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn get(&self, key: &[u8], hash: u64, seq: Seq) -> Result<Option<(Trailer, Value)>> {
        let mut probes = Probes::default();
        let found = self.get_counted(&mut probes, key, hash, seq);
        self.source.meters.read(Count::GetAbsent as usize, &probes);
        found
    }

    fn find(&self, probes: &mut Probes, key: &[u8], seq: Seq) -> Result<Option<(Trailer, Value)>> {
        let target = Trailer::seek(seq);
        let Some((leaf, place)) = self.index.find(self, key, target)? else { return Ok(None) };
        // The slot is let go of before anything is read from the file.
        let kept = leaf.slots.look(place.at).as_ref().map(|block| look_up(block, key, target));
        let found = match kept {
            Some(found) => {
                probes.hits += 1;
                found
            }
            None => {
                probes.misses += 1;
                let block = self.load_block(FrameKind::Data, &leaf.handle(self, place.at)?)?;
                look_up(&leaf.slots.keep(place.at, block, Keep::Always), key, target)
            }
        };
        let Some((trailer, found)) = found else { return Ok(None) };
        let value = match found {
            Found::Value(value) => value,
            Found::Run(pointer) => self.run(&pointer, || leaf.handle(self, place.at))?,
        };
        Ok(Some((trailer, value)))
    }

    /// A cursor on no entry yet.
    pub(crate) fn cursor(self: &Arc<Self>, mode: ReadMode) -> TableCursor {
        TableCursor::new(self.clone(), mode)
    }

    /// Frames of the file, the footer included.
    pub(crate) fn frames(&self) -> u64 {
        self.footer.frames
    }

    /// Forget this table's cached blocks, so that their memory is wiped once the last value and cursor let go of them.
    pub(crate) fn purge(&self) {
        self.index.slots().for_each(|slots| slots.purge());
    }

    /// Open every frame of the file in order and check that all parts agree with the data and with the manifest's record.
    /// `progress` is told how many bytes were done since the last time.
    ///
    /// # Errors
    /// The first thing found wrong, with its place.
    pub(crate) fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        verify::verify(self, progress)
    }

    /// A data or index block, from the file.
    fn load_block(&self, kind: FrameKind, handle: &Handle) -> Result<Block> {
        self.source.check_handle(handle, self.section_of(kind))?;
        let mut frame = self.cache.take_scratch(handle.len_bytes as usize);
        self.source.read_into(handle.offset_bytes, &mut frame)?;
        self.source.open_block(kind, handle, frame, &self.cache)
    }

    /// Where blocks of this kind lie.
    fn section_of(&self, kind: FrameKind) -> &Section {
        match kind {
            FrameKind::Index => &self.footer.index,
            FrameKind::IndexTop => &self.footer.index_top,
            _ => &self.footer.data,
        }
    }

    /// A value that lies in a run of frames. `handle` gives the block's that points to it.
    fn run(&self, pointer: &[u8; RunPointer::BYTES], handle: impl FnOnce() -> Result<Handle>) -> Result<Value> {
        let place = &self.source.at(handle()?.offset_bytes);
        let pointer = RunPointer::decode(pointer).map_err(|refusal| refusal.at(place))?;
        let data = &self.footer.data;
        let end = pointer.offset_bytes.checked_add(u64::from(pointer.len_bytes));
        let inside = pointer.offset_bytes >= data.offset_bytes
            && end.is_some_and(|end| end <= data.offset_bytes + data.len_bytes)
            // Nothing larger than the file itself is made room for, unless it was compressed: at most 255 times by LZ4.
            && u64::from(pointer.value_bytes) <= u64::from(pointer.len_bytes) * 256;
        if !inside {
            return Err(place.tampered("a value is said to lie outside the data"));
        }
        let mut value = Wiped::with_capacity(pointer.value_bytes as usize);
        let mut offset_bytes = pointer.offset_bytes;
        for i in 0..pointer.frames {
            let at = self.source.at(offset_bytes);
            let len_bytes = self.source.frame_bytes(FrameKind::ValueRun, offset_bytes)?;
            if Some(offset_bytes + len_bytes) > end {
                return Err(at.tampered("a value's frame reaches beyond its run"));
            }
            let ordinal = pointer.first_ordinal.saturating_add(u64::from(i));
            let frame = self.source.read(offset_bytes, len_bytes as usize)?;
            let chunk = self.source.open_frame(FrameKind::ValueRun, ordinal, frame, offset_bytes)?;
            if chunk.len() != pointer.chunk_bytes(i) {
                return Err(at.tampered("a value's frame has another length than the pointer says"));
            }
            value.extend_from_slice(&chunk);
            offset_bytes += len_bytes;
        }
        if Some(offset_bytes) != end {
            return Err(place.tampered("a value's run is shorter than the pointer says"));
        }
        let len = value.len();
        Ok(Value::shared(&Arc::new(Run(value)), 0, len))
    }
}

impl Drop for TableReader {
    fn drop(&mut self) {
        // No other reader can ask for them: they would only fill the cache.
        self.purge();
    }
}

impl std::fmt::Debug for TableReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TableReader({}, {} entries)", self.source.name, self.properties.entries)
    }
}

/// The bytes of a large value.
struct Run(Wiped);

impl Backing for Run {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Where a value was found.
enum Found {
    Value(Value),
    /// Outside the blocks: what points there, undecoded.
    Run([u8; RunPointer::BYTES]),
}

/// The first entry of a block at or after (`key`, `target`), if it is of this key.
#[inline]
fn look_up(block: &Arc<OpenBlock>, key: &[u8], target: Trailer) -> Option<(Trailer, Found)> {
    let i = block.lower_bound(key, target);
    block.key_is(i, key).then(|| (shown(block.trailer(i)), found_at(block, i)))
}

/// The value of a block's `i`-th entry.
#[inline]
fn found_at(block: &Arc<OpenBlock>, i: usize) -> Found {
    match block.kind(i) {
        Kind::Put => {
            let (start, len) = block.value_range(i);
            Found::Value(Value::shared(block, start, len))
        }
        // One of another length makes no sense, and zeros are no pointer either.
        Kind::PutRun => Found::Run(block.value(i).try_into().unwrap_or([0; RunPointer::BYTES])),
        _ => Found::Value(Value::copied(&[])),
    }
}

/// What the world outside sees of a stored trailer: where a value lies is the table's own business.
#[inline]
fn shown(stored: Trailer) -> Trailer {
    match stored.kind() {
        Kind::PutRun => Trailer::new(stored.seq(), Kind::Put),
        _ => stored,
    }
}

/// The place in the stored order for a place in the order that is shown: a put may be stored as a run, which comes first.
#[inline]
fn stored(target: Trailer) -> Trailer {
    match Trailer::from_raw(target.raw()) {
        Some(trailer) if trailer.kind() == Kind::Put => Trailer::new(trailer.seq(), Kind::PutRun),
        _ => target,
    }
}

impl Source {
    fn open(
        file: Arc<dyn File>,
        name: &str,
        key: &TableKey,
        record: &FileRecord,
        table: TableId,
        meters: &Arc<Meters>,
    ) -> Result<Source> {
        let extent = &record.extent;
        let place = Where::new(name, extent.offset_bytes);
        let file_bytes = file.len_bytes().map_err(|source| Error::io("read length of", name, source))?;
        let end = extent.offset_bytes.checked_add(extent.len_bytes);
        let alone = extent.container == record.number;
        if end.is_none_or(|end| end > file_bytes) || alone && file_bytes != extent.len_bytes {
            return Err(place.tampered("the file is not as long as the manifest says"));
        }
        if extent.len_bytes < (HEADER_BYTES + FOOTER_FRAME_BYTES) as u64 {
            return Err(place.tampered("the manifest names a table too short for header and footer"));
        }
        let mut header = vec![0; HEADER_BYTES];
        read_exact(&*file, name, &mut header, extent.offset_bytes)?;
        let expected = Expected {
            kind: FileKind::Table,
            number: record.number,
            subject: table,
            suite: Some(record.suite),
            salt: Some(record.salt),
        };
        let opener = FileOpener::open(&header, key, &expected, &place)?;
        let (meters, base_bytes) = (meters.clone(), extent.offset_bytes);
        Ok(Source { file, name: name.into(), opener, meters, base_bytes, len_bytes: extent.len_bytes })
    }

    /// Where errors say that byte `offset_bytes` of the table is.
    fn at(&self, offset_bytes: u64) -> Where<'_> {
        Where::new(&self.name, self.base_bytes + offset_bytes)
    }

    fn read(&self, offset_bytes: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_into(offset_bytes, &mut bytes)?;
        Ok(bytes)
    }

    fn read_into(&self, offset_bytes: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact(&*self.file, &self.name, bytes, self.base_bytes + offset_bytes)
    }

    /// Bytes of the frame that begins at `offset_bytes`, all of it within the table.
    fn frame_bytes(&self, kind: FrameKind, offset_bytes: u64) -> Result<u64> {
        let mut head = [0; FRAME_HEAD_BYTES];
        if offset_bytes + FRAME_HEAD_BYTES as u64 > self.len_bytes {
            return Err(self.at(offset_bytes).tampered("a frame begins behind the table's end"));
        }
        self.read_into(offset_bytes, &mut head)?;
        let head = FrameHead::decode(&head, kind.frame_bytes_max(), &self.at(offset_bytes))?;
        if offset_bytes + head.frame_bytes() > self.len_bytes {
            return Err(self.at(offset_bytes).bit_rot("a frame reaches beyond the table's end"));
        }
        Ok(head.frame_bytes())
    }

    /// The frame that `handle` names, which must lie in `section`.
    fn read_handle(&self, handle: &Handle, section: &Section) -> Result<Vec<u8>> {
        self.check_handle(handle, section)?;
        self.read(handle.offset_bytes, handle.len_bytes as usize)
    }

    fn check_handle(&self, handle: &Handle, section: &Section) -> Result<()> {
        let end = handle.offset_bytes.checked_add(u64::from(handle.len_bytes));
        let inside = handle.offset_bytes >= section.offset_bytes
            && end.is_some_and(|end| end <= section.offset_bytes + section.len_bytes)
            && handle.len_bytes as usize <= FRAME_BYTES_MAX;
        if inside {
            Ok(())
        } else {
            Err(self.at(section.offset_bytes).tampered("an index names a block outside its section"))
        }
    }

    fn open_frame(&self, kind: FrameKind, ordinal: u64, frame: Vec<u8>, offset_bytes: u64) -> Result<Authentic<Wiped>> {
        self.meters.opened(FileKind::Table, 1, frame.len() as u64);
        self.opener.open_frame(kind, kind == FrameKind::Footer, ordinal, frame, &self.at(offset_bytes))
    }

    /// The block in this frame, which lies in a buffer of the cache's.
    fn open_block(&self, kind: FrameKind, handle: &Handle, frame: Wiped, cache: &BlockCache) -> Result<Block> {
        let (place, len) = (self.at(handle.offset_bytes), frame.len());
        self.meters.opened(FileKind::Table, 1, len as u64);
        let (payload, used) =
            self.opener.open_frame_from(kind, handle.ordinal, frame, |len| cache.room(len), &place)?;
        cache.give_back(used, len);
        Block::parse(payload, &place)
    }

    /// All frames of a section, read at once, each with its handle.
    fn section_frames(&self, kind: FrameKind, section: &Section) -> Result<Vec<(Handle, Wiped)>> {
        let mut frames = Vec::new();
        let bytes = self.read(section.offset_bytes, section.len_bytes as usize)?;
        let mut rest = &bytes[..];
        let mut handle = Handle { offset_bytes: section.offset_bytes, len_bytes: 0, ordinal: section.first_ordinal };
        while !rest.is_empty() {
            let place = self.at(handle.offset_bytes);
            let head = rest.first_chunk().ok_or_else(|| place.bit_rot("a section ends within a frame"))?;
            let head = FrameHead::decode(head, kind.frame_bytes_max(), &place)?;
            let split = usize::try_from(head.frame_bytes()).ok().and_then(|len| rest.split_at_checked(len));
            let (frame, behind) = split.ok_or_else(|| place.bit_rot("a section ends within a frame"))?;
            handle.len_bytes = frame.len() as u32;
            frames.push((handle, Wiped::from(frame.to_vec())));
            handle.offset_bytes += frame.len() as u64;
            handle.ordinal += 1;
            rest = behind;
        }
        if frames.len() as u64 != section.frames {
            return Err(self
                .at(section.offset_bytes)
                .tampered("a section has another number of frames than the footer says"));
        }
        Ok(frames)
    }

    fn footer(&self, record: &FileRecord) -> Result<Footer> {
        let offset_bytes = self.len_bytes - FOOTER_FRAME_BYTES as u64;
        let place = self.at(offset_bytes);
        let frame = self.read(offset_bytes, FOOTER_FRAME_BYTES)?;
        let head = frame.first_chunk().ok_or_else(|| place.bit_rot("the footer is cut off"))?;
        FrameHead::decode(head, FrameKind::Footer.frame_bytes_max(), &place)?.check_crc(&frame, &place)?;
        if !frame.ends_with(&record.final_tag) {
            return Err(place.tampered("the footer is not the one that the manifest names"));
        }
        // The footer's ordinal is the number of frames before it, which only the footer itself says. It is found where the bounds
        // are, which the manifest names: they are the last frame before it.
        let ordinal =
            record.bounds_ordinal.checked_add(1).ok_or_else(|| place.tampered("a count beyond all bounds"))?;
        let payload = self.open_frame(FrameKind::Footer, ordinal, frame, offset_bytes)?;
        let footer = Footer::decode(&payload, HEADER_BYTES as u64).map_err(|refusal| refusal.at(&place))?;
        if footer.len_bytes != self.len_bytes || footer.frames != ordinal + 1 {
            return Err(place.tampered("the footer counts other frames or bytes than there are"));
        }
        if footer.bounds.offset_bytes + footer.bounds.len_bytes != offset_bytes {
            return Err(place.tampered("the footer's sections do not account for the whole file"));
        }
        Ok(footer)
    }

    fn properties(&self, footer: &Footer, record: &FileRecord, settings: &TableSettings) -> Result<Properties> {
        let section = &footer.properties;
        let place = self.at(section.offset_bytes);
        let handle = Handle {
            offset_bytes: section.offset_bytes,
            len_bytes: u32::try_from(section.len_bytes).unwrap_or(u32::MAX),
            ordinal: section.first_ordinal,
        };
        let frame = self.read_handle(&handle, section)?;
        let payload = self.open_frame(FrameKind::Properties, handle.ordinal, frame, handle.offset_bytes)?;
        let properties = Properties::decode(&payload).map_err(|refusal| refusal.at(&place))?;
        let as_recorded = properties.suite == record.suite
            && properties.entries == record.entries
            && properties.tombstones == record.tombstones
            && properties.raw_bytes == record.raw_bytes
            && properties.seq_min == record.min_seq
            && properties.seq_max == record.max_seq;
        if !as_recorded {
            return Err(place.tampered("the table's properties are not what the manifest says of it"));
        }
        if properties.filter_seed != settings.filter_seed {
            return Err(place.tampered("the table's filter has another seed than the manifest says"));
        }
        Ok(properties)
    }

    fn filter(&self, footer: &Footer, properties: &Properties) -> Result<Option<Filter>> {
        let place = self.at(footer.filter.offset_bytes);
        if (properties.filter == FilterKind::None) == footer.filter.is_there() {
            return Err(place.tampered("properties and footer disagree on whether there is a filter"));
        }
        if properties.filter == FilterKind::None {
            return Ok(None);
        }
        let chunks = self
            .section_frames(FrameKind::Filter, &footer.filter)?
            .into_iter()
            .map(|(handle, frame)| {
                let place = self.at(handle.offset_bytes);
                self.meters.opened(FileKind::Table, 1, frame.len() as u64);
                let room = |len| Wiped::from(vec![0; len]);
                let opened = self.opener.open_frame_from(FrameKind::Filter, handle.ordinal, frame, room, &place);
                opened.map(|(payload, _)| payload.into_inner())
            })
            .collect::<Result<Vec<Wiped>>>()?;
        Filter::from_bytes(&chunks, properties).map(Some).map_err(|refusal| refusal.at(&place))
    }
}

fn read_exact(file: &dyn File, name: &str, bytes: &mut [u8], offset_bytes: u64) -> Result<()> {
    file.read_exact_at(bytes, offset_bytes).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Where::new(name, offset_bytes).tampered("the file has become shorter since it was opened")
        }
        _ => Error::io("read", format_args!("{name} at byte {offset_bytes}"), source),
    })
}

#[cfg(test)]
mod tests;
