//! Sorted entries in, a finished and synced table out.
//!
//! ```text
//! add ──> block under construction ──> sealed frame ──> write buffer, 2 MiB ──> file
//!    └──> value above 64 KiB: a run of frames ahead of the block that will point to it
//!    └──> key's hash, index entry: kept until the end
//! ```
//! Memory is bounded by one block, one frame, the write buffer, eight bytes per key up to [`FILTER_KEYS_MAX`], and
//! one index entry per block: for a table of 64 MiB a few MiB.
//!
//! A [`TableWriter`] that has returned an error does nothing more and must be [abandoned](TableWriter::abandon): what
//! reached the file is unknown then, and an ordinal is never sealed twice. The caller syncs the directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crypto::{TableKey, Wiped};
use crate::error::{Error, Result};
use crate::format::block::BlockBuilder;
use crate::format::frame::{FRAME_OVERHEAD_BYTES, FileSealer, FrameKind, HEADER_BYTES, SealedFrame};
use crate::format::manifest::{Extent, FileRecord};
use crate::format::table::{
    Filter, FilterKind, Footer, Handle, INDEX_BLOCK_BYTES, Properties, RUN_CHUNK_BYTES, RunPointer, Section,
    encode_bounds, hash, separator,
};
use crate::io::{Entropy, File, Vfs};
use crate::options::Compression;
use crate::sstable::{Container, TableSettings};
use crate::types::{
    FileKind, FileNumber, KEY_BYTES_MAX, Kind, Seq, Trailer, UserKey, VALUE_BYTES_MAX, VALUE_INLINE_BYTES_MAX,
};

/// The write buffer goes to the file when it holds this much.
const WRITE_BYTES: usize = 2 << 20;
/// How much is given to the system at a time to begin writing back, so that the sync at the end finds little left to do.
const WRITE_BACK_BYTES: u64 = 1 << 20;
/// A block under construction is closed when its entries take this much memory, however well their keys share a prefix.
const BLOCK_MEMORY_BYTES_MAX: usize = 4 << 20;
/// A table of more keys gets no filter: 256 MiB of hashes would have to be kept.
const FILTER_KEYS_MAX: usize = 32 << 20;
/// Behind every version of a key, in an index. No put has this trailer, and a delete with it (sequence number 0) is the only
/// entry that could come later.
const OLDEST: Trailer = Trailer::new(Seq::ZERO, Kind::Put);

/// Writes one sorted table.
pub(crate) struct TableWriter {
    output: Output,
    sealer: FileSealer,
    key: Arc<TableKey>,
    settings: TableSettings,
    number: FileNumber,
    block: BlockBuilder,
    index: IndexBuilder,
    /// Of different keys, as far as there is to be a filter.
    hashes: Option<Vec<u64>>,
    smallest: Wiped,
    /// The last key and trailer of the blocks that are closed.
    last_key: Wiped,
    last_trailer: Trailer,
    totals: Totals,
    /// Whether something went wrong, so that nothing more is written.
    failed: bool,
}

#[derive(Default)]
struct Totals {
    entries: u64,
    keys: u64,
    tombstones: u64,
    raw_bytes: u64,
    runs: u64,
    blocks: u64,
    seq_min: Option<Seq>,
    seq_max: Seq,
}

/// A finished table.
pub(crate) struct FinishedTable {
    /// What the manifest has to know.
    pub(crate) record: FileRecord,
    /// The smallest user key.
    pub(crate) smallest: UserKey,
    /// The largest user key.
    pub(crate) largest: UserKey,
}

impl TableWriter {
    /// Create the file at `path`; `name` is what errors call it.
    ///
    /// # Errors
    /// `Io` if the file cannot be created or there is no randomness.
    pub(crate) fn create(
        vfs: &Arc<dyn Vfs>,
        path: &Path,
        name: &str,
        key: &Arc<TableKey>,
        settings: &TableSettings,
        number: FileNumber,
        entropy: &dyn Entropy,
    ) -> Result<TableWriter> {
        let mut buffer = Vec::with_capacity(WRITE_BYTES + RUN_CHUNK_BYTES);
        let sealer =
            FileSealer::create(key, settings.suite, FileKind::Table, number, settings.table, entropy, &mut buffer)?;
        let file = vfs.create(path).map_err(|source| Error::io("create", name, source))?;
        let own = OwnFile { vfs: vfs.clone(), path: path.to_owned(), file, name: name.to_owned(), written_bytes: 0 };
        Ok(TableWriter::with(Output { buffer, home: Home::Own(own) }, sealer, key, settings, number))
    }

    /// Write a small table that goes into `container` as a whole when it is [finished](TableWriter::finish), and into no file
    /// before that. The container's owner syncs it.
    ///
    /// # Errors
    /// `Io` if there is no randomness.
    pub(crate) fn create_in(
        container: &Arc<Container>,
        key: &Arc<TableKey>,
        settings: &TableSettings,
        number: FileNumber,
        entropy: &dyn Entropy,
    ) -> Result<TableWriter> {
        let mut buffer = Vec::new();
        let sealer =
            FileSealer::create(key, settings.suite, FileKind::Table, number, settings.table, entropy, &mut buffer)?;
        let home = Home::Shared(container.clone());
        Ok(TableWriter::with(Output { buffer, home }, sealer, key, settings, number))
    }

    fn with(
        output: Output,
        sealer: FileSealer,
        key: &Arc<TableKey>,
        settings: &TableSettings,
        number: FileNumber,
    ) -> TableWriter {
        TableWriter {
            output,
            sealer,
            key: key.clone(),
            settings: settings.clone(),
            number,
            block: BlockBuilder::new(),
            index: IndexBuilder::default(),
            hashes: (settings.filter_bits_per_key > 0).then(Vec::new),
            smallest: Wiped::new(),
            last_key: Wiped::new(),
            last_trailer: OLDEST,
            totals: Totals::default(),
            failed: false,
        }
    }

    /// Append an entry; it must come after the last one in the engine's order.
    ///
    /// # Errors
    /// `InvalidArgument` for an entry out of order or of a kind that only tables themselves use, `LimitExceeded` for a key or value
    /// beyond its limit, `Io`. After any error the writer is of no use.
    pub(crate) fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        self.attempt(|writer| writer.try_add(key, trailer, value))
    }

    /// How large the file would be if it ended here, without index and filter.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        self.sealer.len_bytes() + self.block.bytes() as u64
    }

    /// Write what remains, and sync the file if it is the table's own.
    ///
    /// # Errors
    /// `InvalidArgument` without entries: there is no empty table. `Io`. The file is removed after an error, as far as that is possible.
    pub(crate) fn finish(mut self) -> Result<FinishedTable> {
        match self.attempt(TableWriter::try_finish) {
            Ok(finished) => Ok(finished),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    /// Give the table up and remove its file. If that fails, recovery removes it: no manifest names it. Nothing of it has reached a file
    /// that it would share with others.
    pub(crate) fn abandon(self) {
        if let Home::Own(OwnFile { vfs, path, file, .. }) = self.output.home {
            drop(file);
            let _ = vfs.remove_file(&path);
        }
    }

    fn attempt<T>(&mut self, work: impl FnOnce(&mut TableWriter) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(invalid("a table writer cannot be used after an error"));
        }
        let result = work(self);
        self.failed = result.is_err();
        result
    }

    fn try_add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let is_new_key = self.check_entry(key, trailer, value)?;
        let is_run = value.len() > VALUE_INLINE_BYTES_MAX;
        let (stored_trailer, stored_bytes) = match is_run {
            true => (Trailer::new(trailer.seq(), Kind::PutRun), RunPointer::BYTES),
            false => (trailer, value.len()),
        };
        let mut shape = self.block.shape_with(key, stored_trailer, stored_bytes);
        let full =
            shape.encoded_bytes() > self.settings.block_bytes || self.block.memory_bytes() > BLOCK_MEMORY_BYTES_MAX;
        if self.block.entries() > 0 && full {
            self.close_block(Some(key))?;
            shape = self.block.shape_with(key, stored_trailer, stored_bytes);
        }

        let pointer;
        let stored_value = match is_run {
            true => {
                pointer = self.write_run(value)?.encode();
                &pointer[..]
            }
            false => value,
        };
        if self.totals.entries == 0 {
            self.smallest.extend_from_slice(key);
        }
        self.block.add_shaped(shape, key, stored_trailer, stored_value);
        self.count(key, trailer, value, is_new_key);
        Ok(())
    }

    /// Whether the key differs from the last one, if the entry may follow the last one at all.
    fn check_entry(&self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<bool> {
        limit("bytes of a key", KEY_BYTES_MAX, key.len())?;
        limit("bytes of a value", VALUE_BYTES_MAX, value.len())?;
        if key.is_empty() {
            return Err(invalid("a key has at least one byte"));
        }
        match trailer.kind() {
            Kind::Put => {}
            Kind::Delete if value.is_empty() => {}
            _ => return Err(invalid("a table takes puts, and deletes without a value")),
        }
        let (last_key, last_trailer) = match (self.block.last_key(), self.block.last_trailer()) {
            (Some(key), Some(trailer)) => (key, trailer),
            _ => (&*self.last_key, self.last_trailer),
        };
        // By number alone: the kind stored for a large value is not the kind given.
        let in_order =
            self.totals.entries == 0 || last_key < key || last_key == key && last_trailer.seq() > trailer.seq();
        if in_order { Ok(last_key != key) } else { Err(invalid("entries of a table come in order")) }
    }

    fn count(&mut self, key: &[u8], trailer: Trailer, value: &[u8], is_new_key: bool) {
        let totals = &mut self.totals;
        totals.entries += 1;
        totals.tombstones += u64::from(trailer.kind() == Kind::Delete);
        totals.raw_bytes += (key.len() + value.len()) as u64;
        totals.seq_min = Some(totals.seq_min.map_or(trailer.seq(), |min| min.min(trailer.seq())));
        totals.seq_max = totals.seq_max.max(trailer.seq());
        if !is_new_key {
            return;
        }
        totals.keys += 1;
        if let Some(hashes) = &mut self.hashes {
            hashes.push(hash(self.settings.filter_seed, key));
            if hashes.len() > FILTER_KEYS_MAX {
                self.hashes = None;
            }
        }
    }

    /// Seal a large value ahead of the block that will point to it.
    fn write_run(&mut self, value: &[u8]) -> Result<RunPointer> {
        let (first_ordinal, offset_bytes) = (self.sealer.frames(), self.sealer.len_bytes());
        let chunks = value.chunks(RUN_CHUNK_BYTES);
        let frames = chunks.len() as u32;
        for chunk in chunks {
            self.seal(FrameKind::ValueRun, self.settings.compression, chunk)?;
        }
        self.totals.runs += 1;
        let len_bytes = (self.sealer.len_bytes() - offset_bytes) as u32;
        Ok(RunPointer { first_ordinal, offset_bytes, len_bytes, value_bytes: value.len() as u32, frames })
    }

    /// Seal the block under construction and index it; `next` is the key that made it too large.
    fn close_block(&mut self, next: Option<&[u8]>) -> Result<()> {
        self.last_key.clear();
        self.last_key.extend_from_slice(self.block.last_key().unwrap_or(&[]));
        self.last_trailer = self.block.last_trailer().unwrap_or(OLDEST);
        let compression = self.settings.compression;
        let sealed =
            self.sealer.seal(FrameKind::Data, false, compression, self.block.finish(), &mut self.output.buffer)?;
        self.output.drain_if_full()?;
        self.totals.blocks += 1;

        let last_key = &*self.last_key;
        let separator = match next {
            Some(next) if next != last_key => separator(last_key, next),
            _ => last_key,
        };
        let ends_within_key = next == Some(last_key) || separator == last_key && self.last_trailer < OLDEST;
        let trailer = if ends_within_key { self.last_trailer } else { OLDEST };
        self.index.add(separator, trailer, handle(&sealed));
        Ok(())
    }

    fn seal(&mut self, kind: FrameKind, compression: Compression, payload: &[u8]) -> Result<SealedFrame> {
        let sealed =
            self.sealer.seal(kind, kind == FrameKind::Footer, compression, payload, &mut self.output.buffer)?;
        self.output.drain_if_full()?;
        Ok(sealed)
    }

    fn try_finish(&mut self) -> Result<FinishedTable> {
        if self.totals.entries == 0 {
            return Err(invalid("a table has at least one entry"));
        }
        self.close_block(None)?;
        let largest = UserKey::from(&*self.last_key);
        let smallest = UserKey::from(&*self.smallest);

        let start = Mark { offset_bytes: HEADER_BYTES as u64, frames: 0 };
        let mut footer = Footer { data: self.section_since(start), ..Footer::default() };
        let properties = self.write_filter(&mut footer)?;
        self.write_index(&mut footer)?;
        let start = self.mark();
        self.seal(FrameKind::Properties, Compression::None, &properties.encode())?;
        footer.properties = self.section_since(start);
        let (bounds, bounds_ordinal) = self.write_bounds(&mut footer, &smallest, &largest)?;

        footer.frames = self.sealer.frames() + 1;
        footer.len_bytes = self.sealer.len_bytes() + FOOTER_FRAME_BYTES as u64;
        let sealed = self.seal(FrameKind::Footer, Compression::None, &footer.encode())?;
        debug_assert_eq!(footer.len_bytes, self.sealer.len_bytes());
        let (container, offset_bytes) = self.output.finish(self.number)?;

        let record = FileRecord {
            number: self.number,
            extent: Extent { container, offset_bytes, len_bytes: footer.len_bytes },
            salt: *self.sealer.salt(),
            final_tag: sealed.tag,
            generation: self.key.generation(),
            suite: self.settings.suite,
            entries: properties.entries,
            tombstones: properties.tombstones,
            raw_bytes: properties.raw_bytes,
            min_seq: properties.seq_min,
            max_seq: properties.seq_max,
            bounds,
            bounds_ordinal,
        };
        Ok(FinishedTable { record, smallest, largest })
    }

    /// Write the filter, if there is one, and give the properties that describe it.
    fn write_filter(&mut self, footer: &mut Footer) -> Result<Properties> {
        let start = self.mark();
        let hashes = self.hashes.take().unwrap_or_default();
        let filter = Filter::build(&hashes, self.settings.filter_bits_per_key);
        drop(hashes);
        if let Some(filter) = &filter {
            for chunk in filter.chunks() {
                // Half of a filter's bits are set, at random: nothing to compress.
                self.seal(FrameKind::Filter, Compression::None, &chunk)?;
            }
            footer.filter = self.section_since(start);
        }
        Ok(Properties {
            filter: if filter.is_some() { FilterKind::BlockedBloom } else { FilterKind::None },
            suite: self.settings.suite,
            compression: self.settings.compression,
            probes: filter.as_ref().map_or(0, Filter::probes),
            filter_seed: self.settings.filter_seed,
            filter_lines: filter.as_ref().map_or(0, Filter::lines),
            entries: self.totals.entries,
            keys: self.totals.keys,
            tombstones: self.totals.tombstones,
            raw_bytes: self.totals.raw_bytes,
            runs: self.totals.runs,
            blocks: self.totals.blocks,
            seq_min: self.totals.seq_min.unwrap_or(Seq::ZERO),
            seq_max: self.totals.seq_max,
        })
    }

    /// Write the index, and an index over it if it takes more than one block.
    fn write_index(&mut self, footer: &mut Footer) -> Result<()> {
        let start = self.mark();
        let mut top = IndexBuilder::default();
        let blocks = std::mem::take(&mut self.index).finish();
        for block in &blocks {
            let sealed = self.seal(FrameKind::Index, self.settings.compression, &block.encoded)?;
            top.add(&block.last_key, block.last_trailer, handle(&sealed));
        }
        footer.index = self.section_since(start);
        if blocks.len() > 1 {
            let start = self.mark();
            for block in top.finish() {
                self.seal(FrameKind::IndexTop, self.settings.compression, &block.encoded)?;
            }
            footer.index_top = self.section_since(start);
        }
        Ok(())
    }

    /// Write the bounds' frame, and give a copy of it for the manifest.
    fn write_bounds(&mut self, footer: &mut Footer, smallest: &[u8], largest: &[u8]) -> Result<(Vec<u8>, u64)> {
        let start = self.mark();
        let payload = encode_bounds(smallest, largest);
        let mut frame = Vec::new();
        let sealed = self.sealer.seal(FrameKind::Bounds, false, Compression::None, &payload, &mut frame)?;
        self.output.buffer.extend_from_slice(&frame);
        self.output.drain_if_full()?;
        footer.bounds = self.section_since(start);
        Ok((frame, sealed.ordinal))
    }

    fn mark(&self) -> Mark {
        Mark { offset_bytes: self.sealer.len_bytes(), frames: self.sealer.frames() }
    }

    fn section_since(&self, start: Mark) -> Section {
        Section {
            offset_bytes: start.offset_bytes,
            len_bytes: self.sealer.len_bytes() - start.offset_bytes,
            first_ordinal: start.frames,
            frames: self.sealer.frames() - start.frames,
        }
    }
}

/// Where a section begins.
#[derive(Clone, Copy)]
struct Mark {
    offset_bytes: u64,
    frames: u64,
}

/// Bytes of the footer's frame: what a reader reads first.
pub(super) const FOOTER_FRAME_BYTES: usize = Footer::BYTES + FRAME_OVERHEAD_BYTES;

fn handle(sealed: &SealedFrame) -> Handle {
    Handle { offset_bytes: sealed.offset_bytes, len_bytes: sealed.len_bytes, ordinal: sealed.ordinal }
}

fn invalid(detail: &str) -> Error {
    Error::InvalidArgument { what: "sorted table", detail: detail.to_owned() }
}

fn limit(what: &'static str, limit: usize, actual: usize) -> Result<()> {
    if actual <= limit {
        return Ok(());
    }
    Err(Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 })
}

/// Gathers separators and handles into index blocks.
#[derive(Default)]
struct IndexBuilder {
    block: BlockBuilder,
    closed: Vec<IndexBlock>,
}

struct IndexBlock {
    encoded: Wiped,
    last_key: Wiped,
    last_trailer: Trailer,
}

impl IndexBuilder {
    fn add(&mut self, separator: &[u8], trailer: Trailer, handle: Handle) {
        let full = self.block.bytes_with(separator, trailer, Handle::BYTES) > INDEX_BLOCK_BYTES
            || self.block.memory_bytes() > BLOCK_MEMORY_BYTES_MAX;
        if self.block.entries() > 0 && full {
            self.close();
        }
        self.block.add(separator, trailer, &handle.encode());
    }

    fn close(&mut self) {
        let copy = |bytes: &[u8]| {
            let mut copy = Wiped::with_capacity(bytes.len());
            copy.extend_from_slice(bytes);
            copy
        };
        let last_key = copy(self.block.last_key().unwrap_or(&[]));
        let last_trailer = self.block.last_trailer().unwrap_or(OLDEST);
        self.closed.push(IndexBlock { encoded: copy(self.block.finish()), last_key, last_trailer });
    }

    /// All blocks, at least one if anything was added.
    fn finish(mut self) -> Vec<IndexBlock> {
        if self.block.entries() > 0 {
            self.close();
        }
        self.closed
    }
}

/// What has not reached a file yet, and which that will be.
struct Output {
    buffer: Vec<u8>,
    home: Home,
}

/// Where a table's bytes go.
enum Home {
    /// Into a file of its own, as they come.
    Own(OwnFile),
    /// Behind others, all at once.
    Shared(Arc<Container>),
}

struct OwnFile {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    file: Arc<dyn File>,
    name: String,
    written_bytes: u64,
}

impl Output {
    fn drain_if_full(&mut self) -> Result<()> {
        match &mut self.home {
            Home::Own(own) if self.buffer.len() >= WRITE_BYTES => own.drain(&mut self.buffer),
            Home::Own(_) | Home::Shared(_) => Ok(()),
        }
    }

    /// Write what is left, and make all of it durable if the file is the table's own. Which file that is, and where in it the table begins.
    fn finish(&mut self, number: FileNumber) -> Result<(FileNumber, u64)> {
        match &mut self.home {
            Home::Own(own) => {
                own.drain(&mut self.buffer)?;
                own.file.sync().map_err(|source| Error::io("sync", &own.name, source))?;
                Ok((number, 0))
            }
            Home::Shared(container) => container.append(&self.buffer),
        }
    }
}

impl OwnFile {
    fn drain(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        let start = self.written_bytes;
        self.file.write_all_at(buffer, start).map_err(|source| Error::io("write", &self.name, source))?;
        self.written_bytes += buffer.len() as u64;
        buffer.clear();
        write_back(&*self.file, start, self.written_bytes);
        Ok(())
    }
}

/// Have the system begin to write this part of a file back.
pub(super) fn write_back(file: &dyn File, start_bytes: u64, end_bytes: u64) {
    let mut from = start_bytes;
    while from < end_bytes {
        let len = WRITE_BACK_BYTES.min(end_bytes - from);
        file.begin_write_back(from, len);
        from += len;
    }
}

/// What a writer can be made to say that is not so: for the test of verify.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lie {
    None,
    FilterWithoutKeys,
    KeysMiscounted,
    BlocksMiscounted,
    SmallestKeyWrong,
}

#[cfg(test)]
impl TableWriter {
    pub(super) fn tell(&mut self, lie: Lie) {
        match lie {
            Lie::None => {}
            Lie::FilterWithoutKeys => self.hashes = Some(vec![1]),
            Lie::KeysMiscounted => self.totals.keys += 1,
            Lie::BlocksMiscounted => self.totals.blocks += 1,
            Lie::SmallestKeyWrong => self.smallest[0] -= 1,
        }
    }
}
