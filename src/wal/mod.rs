//! The write-ahead log: one for all tables, in segments that are written once and deleted.
//!
//! ```text
//! segment:  header │ envelope section section │ envelope section │ mark │ envelope ...
//!                    \_____ one group ______/
//! ```
//!
//! A *group* is an envelope, sealed under the system key, and one section per table, each under that table's key for
//! this segment. It goes to the file with one write. An envelope names its sections by length and tag, the envelope
//! before it by tag, and how far the log was durable when it was written, so recovery needs the system key alone to know
//! what is there and what is missing ([`replay`]).
//!
//! # Invariants
//! - Places are taken from the segment's own counter, under the writer's lock, in the order in which they lie in the
//!   file; a place that was taken is never written twice, because any error ends the log's life.
//! - A segment of an earlier opening is never written to. A spare is a segment that nobody has written to yet.
//! - [`Log::sync`] makes older segments durable before newer ones, so that what is durable is a prefix.
//! - An append takes no lock but the writer's: how long a segment is stands in an atomic beside it, raised when the bytes are there.
//!
//! How a group is written, and to what room, is in [`segment`]. What poisons the store, and which segments nobody needs any more, is the
//! caller's business.

pub(crate) mod parked;
pub(crate) mod replay;
mod segment;
pub(crate) mod window;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub(crate) use self::replay::SectionRef;
pub(crate) use self::segment::{OpenSegment, Sealed};

use self::segment::{Length, PAGE_BYTES, PIECE_BYTES, Streams, Unsynced};

use crate::crypto::{Suite, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::log::{LogPoint, SegmentSealer, entry_bytes};
use crate::io::directory::{Directory, refused};
use crate::io::{Entropy, PlainLogFile};
use crate::keys::SystemKeys;
use crate::metrics::{Count, LogFigures};
use crate::types::{Epoch, FileKind, FileNumber, Generation, Kind, Seq, Slot};

/// A group buffer larger than this is given back after the write: two pieces, unless very many tables made the envelope large.
const BUFFER_BYTES_KEPT: usize = 2 * PIECE_BYTES;

/// One entry of a section.
#[derive(Clone, Copy)]
pub(crate) struct Op<'a> {
    pub kind: Kind,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// What one table contributes to a group.
pub(crate) trait SectionSource {
    /// The table.
    fn slot(&self) -> Slot;
    /// How its section is sealed.
    fn suite(&self) -> Suite;
    /// Under which key.
    fn key(&self) -> &TableKey;
    /// Bytes of all entries ([`Op::raw_bytes`] each); at least one entry.
    fn raw_bytes(&self) -> u64;
    /// Every entry, in order.
    fn for_each(&self, visit: impl FnMut(Op<'_>) -> Result<()>) -> Result<()>;
}

/// The log of an open store: what everybody may ask, while the writer writes.
pub(crate) struct Log {
    dir: Arc<Directory>,
    entropy: Arc<dyn Entropy>,
    system: SystemKeys,
    suite: Suite,
    shared: Mutex<Shared>,
    /// Counts how often `Shared::synced` has risen, so that the writer need not look there for nothing.
    syncs: AtomicU64,
    /// Held while files are synced, so that those who come meanwhile share the next sync. Keeps why a sync failed: the
    /// system tells of lost pages once, and would call the next sync of the same file a success.
    syncing: Mutex<Option<Error>>,
}

struct Shared {
    /// The segment that the next group goes to, or went to if there is none at present.
    current: FileNumber,
    /// Its length.
    end: Arc<Length>,
    /// Everything before this is durable.
    synced: LogPoint,
    /// Segments of this opening that are not known to be durable, oldest first, or to be cut; the current one is always among them.
    unsynced: VecDeque<Unsynced>,
    /// All live segments.
    segments: BTreeMap<FileNumber, Arc<Length>>,
    spare: Option<OpenSegment>,
    /// What is in live segments, the current one excepted.
    sealed: BTreeMap<FileNumber, Sealed>,
}

/// What only the one who commits may touch.
pub(crate) struct LogWriter {
    current: Option<OpenSegment>,
    /// Tag of the last envelope, across segments.
    previous: Tag,
    /// How far the last envelope said that the log was durable.
    attested: LogPoint,
    /// [`Log::synced`] as it was when [`Log::syncs`] was this.
    synced: (u64, LogPoint),
    /// Ciphertext, except while a group is put together.
    buffer: Vec<u8>,
}

impl Log {
    /// A log whose older segments (number and length) are durable, and which has no segment to write to yet.
    pub(crate) fn new(
        dir: Arc<Directory>,
        entropy: Arc<dyn Entropy>,
        system: SystemKeys,
        suite: Suite,
        segments: BTreeMap<FileNumber, u64>,
        previous: Tag,
    ) -> (Log, LogWriter) {
        let synced = segments
            .last_key_value()
            .map_or(LogPoint::default(), |(&segment, &end_bytes)| LogPoint { segment, end_bytes });
        let segments: BTreeMap<_, _> =
            segments.into_iter().map(|(number, bytes)| (number, Length::of(bytes))).collect();
        let end = segments.get(&synced.segment).cloned().unwrap_or_else(|| Length::of(0));
        let (unsynced, sealed) = (VecDeque::new(), BTreeMap::new());
        let shared = Shared { current: synced.segment, end, synced, unsynced, segments, spare: None, sealed };
        let shared = Mutex::new(shared);
        let log = Log { dir, entropy, system, suite, shared, syncs: AtomicU64::new(0), syncing: Mutex::default() };
        (log, LogWriter { current: None, previous, attested: synced, synced: (0, synced), buffer: Vec::new() })
    }

    /// Create a segment file with its header, durably. Nobody knows it until the manifest names it.
    pub(crate) fn create_segment(&self, number: FileNumber) -> Result<OpenSegment> {
        let name = FileName::Log(number).path();
        let mut header = Vec::new();
        let sealer = SegmentSealer::create(&*self.system.sealing()?, self.suite, number, &*self.entropy, &mut header)?;
        let file = self.dir.create(&name)?;
        let written = file
            .write_all_at(&header, 0)
            .map_err(|error| refused("write", &name, error))
            .and_then(|()| file.sync().map_err(|error| refused("sync", &name, error)))
            .and_then(|()| self.dir.sync_dir("wal"));
        if let Err(error) = written {
            // Nobody knows it yet. It is tried again with another number, many times perhaps while the disk is full.
            let _ = self.dir.remove(&name);
            return Err(error);
        }
        let file = Arc::new(PlainLogFile(file));
        let (end, room) = (Length::of(header.len() as u64), Length::of(0));
        Ok(OpenSegment { number, file, sealer, streams: Streams::default(), end, room, filled_bytes: 0 })
    }

    /// Keep a segment that the manifest names now for when it is needed.
    pub(crate) fn offer_spare(&self, spare: OpenSegment) {
        let mut shared = self.shared.lock();
        shared.segments.insert(spare.number, spare.end.clone());
        shared.spare = Some(spare);
    }

    /// Whether the next group may go to the current segment.
    pub(crate) fn has_room(&self, writer: &LogWriter, segment_bytes: u64) -> bool {
        writer.current.as_ref().is_some_and(|current| current.end.load() < segment_bytes)
    }

    /// Whether it is time to prepare the next segment.
    pub(crate) fn wants_spare(&self, segment_bytes: u64) -> bool {
        let shared = self.shared.lock();
        shared.spare.is_none() && shared.end.load() > segment_bytes / 2
    }

    /// Never write to the current segment or the spare again. Returns the spare's number, if there was one.
    pub(crate) fn retire_open_segments(&self, writer: &mut LogWriter) -> Option<FileNumber> {
        let mut shared = self.shared.lock();
        shared.leave(writer.current.take());
        let spare = shared.spare.take()?;
        Some(spare.number)
    }

    /// Note what recovery found in the segments that there are.
    pub(crate) fn note_sealed(&self, sealed: BTreeMap<FileNumber, Sealed>) {
        self.shared.lock().sealed = sealed;
    }

    /// Bytes of a table's sections in each live segment, by generation.
    pub(crate) fn sealed_bytes(
        &self,
        writer: &LogWriter,
        slot: Slot,
    ) -> BTreeMap<FileNumber, BTreeMap<Generation, u64>> {
        let mut found: BTreeMap<FileNumber, BTreeMap<Generation, u64>> = BTreeMap::new();
        let mut add = |number: FileNumber, (of, generation): (Slot, Generation), bytes: u64| {
            if of == slot && bytes > 0 {
                *found.entry(number).or_default().entry(generation).or_default() += bytes;
            }
        };
        for (number, sealed) in &self.shared.lock().sealed {
            let own = sealed.range((slot, Generation(0))..=(slot, Generation(u32::MAX)));
            own.for_each(|(key, bytes)| add(*number, *key, *bytes));
        }
        if let Some(current) = &writer.current {
            current.streams.all.iter().for_each(|stream| add(current.number, stream.whose, stream.bytes));
        }
        found
    }

    /// Go on with the spare segment, if there is one.
    pub(crate) fn take_spare(&self, writer: &mut LogWriter) -> bool {
        let mut shared = self.shared.lock();
        let Some(spare) = shared.spare.take() else { return false };
        shared.leave(writer.current.take());
        shared.current = spare.number;
        shared.end = spare.end.clone();
        shared.unsynced.push_back(spare.unsynced(false));
        writer.current = Some(spare);
        self.dir.meters().count(Count::SegmentsBegun, 1);
        true
    }

    /// Append one group, whose first entry has `first_seq`, with a section for each source in order; where it ends. After an error the log
    /// must not be written again.
    pub(crate) fn append(
        &self,
        writer: &mut LogWriter,
        epoch: Epoch,
        first_seq: Seq,
        sources: &[impl SectionSource],
    ) -> Result<LogPoint> {
        let synced = self.synced_for(writer);
        let LogWriter { current, previous, attested, buffer, .. } = writer;
        let segment = current.as_mut().ok_or_else(no_segment)?;
        let start = segment.end.load();
        let (tag, frames) = segment.write_group((epoch, first_seq, *previous, synced), sources, buffer)?;
        let end_bytes = segment.end.load();
        self.dir.meters().sealed(FileKind::Log, frames, end_bytes - start);
        *previous = tag;
        *attested = synced;
        if buffer.capacity() > BUFFER_BYTES_KEPT {
            *buffer = Vec::new();
        }
        Ok(LogPoint { segment: segment.number, end_bytes })
    }

    /// Attest what has become durable since the last envelope, by an envelope without sections that is not synced itself.
    pub(crate) fn mark(&self, writer: &mut LogWriter, epoch: Epoch, next_seq: Seq) -> Result<()> {
        let synced = self.synced_for(writer);
        if writer.current.is_none() || writer.attested >= synced {
            return Ok(());
        }
        self.append_mark(writer, epoch, next_seq)?;
        writer.current.as_mut().map_or(Ok(()), OpenSegment::fill_room)
    }

    /// Append an envelope without sections.
    pub(crate) fn append_mark(&self, writer: &mut LogWriter, epoch: Epoch, next_seq: Seq) -> Result<LogPoint> {
        const NOTHING: &[Nothing] = &[];
        self.append(writer, epoch, next_seq, NOTHING)
    }

    /// As [`synced`](Log::synced), without its lock while nothing has been synced.
    fn synced_for(&self, writer: &mut LogWriter) -> LogPoint {
        let syncs = self.syncs.load(Ordering::Acquire);
        if writer.synced.0 != syncs {
            writer.synced = (syncs, self.synced());
        }
        writer.synced.1
    }

    /// Where the segment that nobody has written to yet ends, if there is one.
    pub(crate) fn spare_end(&self) -> Option<LogPoint> {
        let shared = self.shared.lock();
        shared.spare.as_ref().map(|spare| LogPoint { segment: spare.number, end_bytes: spare.end.load() })
    }

    /// Where the next group will begin.
    pub(crate) fn end(&self) -> LogPoint {
        self.shared.lock().end()
    }

    /// Everything before this is durable.
    pub(crate) fn synced(&self) -> LogPoint {
        self.shared.lock().synced
    }

    /// Whether everything before `point` is durable.
    pub(crate) fn is_synced(&self, point: LogPoint) -> bool {
        self.shared.lock().synced >= point
    }

    /// Make everything before `point` durable, older segments first. After an error nobody knows what is, and every further
    /// call fails.
    pub(crate) fn sync(&self, point: LogPoint) -> Result<()> {
        let mut syncing = self.syncing.lock();
        if self.is_synced(point) {
            return Ok(());
        }
        self.sync_unless_failed(&mut syncing)
    }

    /// Make everything durable, and every segment as long as what is in it: nothing more will be written.
    pub(crate) fn finish(&self, writer: &LogWriter) -> Result<()> {
        let mut syncing = self.syncing.lock();
        if let Some(current) = &writer.current {
            self.shared.lock().mark_left(current);
        }
        self.sync_unless_failed(&mut syncing)
    }

    fn sync_unless_failed(&self, failed: &mut Option<Error>) -> Result<()> {
        if let Some(error) = failed {
            return Err(error.clone());
        }
        let outcome = self.sync_all();
        *failed = outcome.as_ref().err().cloned();
        outcome
    }

    fn sync_all(&self) -> Result<()> {
        // What is written by now is synced along with what was asked for.
        let (entries, synced) = {
            let shared = self.shared.lock();
            let is_due = |entry: &&Unsynced| entry.left || entry.point() > shared.synced;
            (shared.unsynced.iter().filter(is_due).cloned().collect::<Vec<_>>(), shared.synced)
        };
        for entry in entries {
            let Unsynced { number, ref file, left, .. } = entry;
            let point = entry.point();
            let lost = |error| refused("sync", &FileName::Log(number).path(), error);
            if left {
                file.cut(point.end_bytes).map_err(lost)?;
            } else {
                let synced_bytes = if synced.segment == number { synced.end_bytes } else { 0 };
                entry.reserve(synced_bytes, point.end_bytes);
            }
            file.sync_to(point.end_bytes).map_err(lost)?;
            let mut shared = self.shared.lock();
            shared.synced = shared.synced.max(point);
            self.syncs.fetch_add(1, Ordering::Release);
            if left {
                shared.unsynced.retain(|entry| entry.number != number);
            }
        }
        Ok(())
    }

    /// Have the system begin to write what is not durable yet, so that a sync that comes later finds little left to do.
    pub(crate) fn write_back(&self) {
        let (entries, synced) = {
            let shared = self.shared.lock();
            (shared.unsynced.iter().cloned().collect::<Vec<_>>(), shared.synced)
        };
        for entry in entries {
            let start = if synced.segment == entry.number { synced.end_bytes } else { 0 };
            // Without the last page: commits write to it yet, and would write it twice.
            let end = entry.end.load() / PAGE_BYTES * PAGE_BYTES;
            if end > start {
                entry.file.begin_write_back(start, end - start);
            }
        }
    }

    /// How it is now, for the store's figures.
    pub(crate) fn look_at(&self, figures: &mut LogFigures) {
        let shared = self.shared.lock();
        figures.bytes = shared.segments.values().map(|end| end.load()).sum();
        figures.segments = shared.segments.len() as u64;
        figures.oldest_segment = shared.segments.first_key_value().map_or(0, |(number, _)| number.0);
        figures.newest_segment = shared.current.0;
    }

    /// Bytes of all live segments.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(|end| end.load()).sum()
    }

    /// The oldest live segment.
    pub(crate) fn oldest_segment(&self) -> Option<FileNumber> {
        self.shared.lock().segments.first_key_value().map(|(&number, _)| number)
    }

    /// Take out the segments before `limit`; never the current one or the spare. Each is given to one caller, who has the manifest forget it
    /// and then removes it.
    pub(crate) fn take_segments_before(&self, limit: FileNumber) -> Vec<FileNumber> {
        let mut shared = self.shared.lock();
        let limit = limit.min(shared.current);
        let left = shared.segments.split_off(&limit);
        std::mem::replace(&mut shared.segments, left).into_keys().collect()
    }

    /// Live segments from `from` up to `to`, with their lengths up to there.
    pub(crate) fn segments_between(&self, from: FileNumber, to: LogPoint) -> Vec<(FileNumber, u64)> {
        let shared = self.shared.lock();
        let segments = shared.segments.range(from..=to.segment.max(from));
        let end_bytes =
            |number, len_bytes: u64| if number == to.segment { len_bytes.min(to.end_bytes) } else { len_bytes };
        segments.map(|(&number, end)| (number, end_bytes(number, end.load()))).collect()
    }

    /// The live segment that follows this one.
    pub(crate) fn segment_behind(&self, number: FileNumber) -> Option<FileNumber> {
        use std::ops::Bound::{Excluded, Unbounded};
        let shared = self.shared.lock();
        shared.segments.range((Excluded(number), Unbounded)).next().map(|(&next, _)| next)
    }

    /// A segment that no commit to come is older than: what is held for no segment of its own is held for this one.
    pub(crate) fn segment_to_come(&self) -> FileNumber {
        let shared = self.shared.lock();
        let current = shared.segments.contains_key(&shared.current).then_some(shared.current);
        let newest = || shared.segments.last_key_value().map(|(&number, _)| number);
        current.or_else(newest).unwrap_or(FileNumber(1))
    }

    /// Remove segments that the manifest no longer names.
    pub(crate) fn remove_segments(&self, numbers: &[FileNumber]) {
        for number in numbers {
            // One that cannot be removed now is an orphan that the next open removes.
            let _ = self.dir.remove(&FileName::Log(*number).path());
            self.dir.meters().count(Count::SegmentsRemoved, 1);
            let mut shared = self.shared.lock();
            shared.segments.remove(number);
            shared.sealed.remove(number);
        }
    }
}

impl Shared {
    /// Where the next group will begin.
    fn end(&self) -> LogPoint {
        LogPoint { segment: self.current, end_bytes: self.end.load() }
    }

    /// A segment is written to no more.
    fn leave(&mut self, segment: Option<OpenSegment>) {
        if let Some(segment) = segment {
            self.mark_left(&segment);
            let bytes = segment.streams.all.into_iter().map(|stream| (stream.whose, stream.bytes));
            self.sealed.insert(segment.number, bytes.collect());
        }
    }

    /// Have the next sync give back what is reserved in a segment.
    fn mark_left(&mut self, segment: &OpenSegment) {
        match self.unsynced.iter_mut().find(|entry| entry.number == segment.number) {
            Some(entry) => entry.left = true,
            None => self.unsynced.push_back(segment.unsynced(true)),
        }
    }
}

/// A section of writes that lie in a row.
#[cfg(test)]
pub(crate) struct SectionInput<'a> {
    pub slot: Slot,
    pub suite: Suite,
    pub key: &'a TableKey,
    pub ops: &'a [Op<'a>],
}

#[cfg(test)]
impl SectionSource for SectionInput<'_> {
    fn slot(&self) -> Slot {
        self.slot
    }

    fn suite(&self) -> Suite {
        self.suite
    }

    fn key(&self) -> &TableKey {
        self.key
    }

    fn raw_bytes(&self) -> u64 {
        self.ops.iter().map(Op::raw_bytes).sum()
    }

    fn for_each(&self, visit: impl FnMut(Op<'_>) -> Result<()>) -> Result<()> {
        self.ops.iter().copied().try_for_each(visit)
    }
}

/// The source of sections that a mark does not have.
enum Nothing {}

impl SectionSource for Nothing {
    fn slot(&self) -> Slot {
        match *self {}
    }

    fn suite(&self) -> Suite {
        match *self {}
    }

    fn key(&self) -> &TableKey {
        match *self {}
    }

    fn raw_bytes(&self) -> u64 {
        match *self {}
    }

    fn for_each(&self, _visit: impl FnMut(Op<'_>) -> Result<()>) -> Result<()> {
        match *self {}
    }
}

impl Op<'_> {
    /// Bytes that it takes in a section.
    pub(crate) fn raw_bytes(&self) -> u64 {
        entry_bytes(self.key.len(), (self.kind != Kind::Delete).then_some(self.value.len()))
    }
}

impl LogWriter {
    /// Whether anything was written in this opening.
    pub(crate) fn has_segment(&self) -> bool {
        self.current.is_some()
    }

    /// Tag of the last envelope.
    pub(crate) fn last_tag(&self) -> Tag {
        self.previous
    }

    /// Forget the keys with which a table's sections were sealed.
    pub(crate) fn forget(&mut self, slot: Slot) {
        if let Some(current) = &mut self.current {
            let own = current.streams.all.iter_mut().filter(|stream| stream.whose.0 == slot);
            own.for_each(|stream| stream.sealer = None);
        }
    }
}

fn no_segment() -> Error {
    Error::InvalidArgument { what: "log", detail: "there is no segment to write to".into() }
}
