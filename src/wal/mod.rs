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
//!
//! # Room ahead
//! Where commits are synced one by one, a sync would write down a new length of the file each time, which costs a file system with a
//! journal as much as the data. So the syncer reserves room ahead in zeros, of which [`replay`] knows, and gives it back with the next
//! sync after the segment was left.
//!
//! What poisons the store, and which segments nobody needs any more, is the caller's business.

pub(crate) mod parked;
pub(crate) mod replay;
mod window;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

pub(crate) use self::replay::SectionRef;

use crate::crypto::{Salt, StreamSealer, Suite, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::log::{GroupWriter, LogPoint, SegmentSealer, entry_bytes};
use crate::io::directory::{Directory, refused};
use crate::io::{Entropy, LogFile, PlainLogFile};
use crate::keys::SystemKeys;
use crate::metrics::{Count, LogFigures};
use crate::types::{Epoch, FileKind, FileNumber, Generation, Kind, Seq, Slot};

/// What the system writes back at a time, at least.
const PAGE_BYTES: u64 = 4096;
/// What is reserved of a segment at a time that is often synced.
const RESERVE_BYTES_MIN: u64 = 4 << 10;
const RESERVE_BYTES_MAX: u64 = 1 << 20;
/// A group buffer larger than this is given back after the write.
const BUFFER_BYTES_KEPT: usize = 4 << 20;

/// One entry of a section.
#[derive(Clone, Copy)]
pub(crate) struct Op<'a> {
    pub kind: Kind,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// What one table contributes to a group.
pub(crate) struct SectionInput<'a> {
    pub slot: Slot,
    pub suite: Suite,
    pub key: &'a TableKey,
    pub first_seq: Seq,
    pub ops: &'a [Op<'a>],
}

/// The log of an open store: what everybody may ask, while the writer writes.
pub(crate) struct Log {
    dir: Arc<Directory>,
    entropy: Arc<dyn Entropy>,
    system: SystemKeys,
    suite: Suite,
    shared: Mutex<Shared>,
    /// Held while files are synced, so that those who come meanwhile share the next sync. Keeps why a sync failed: the
    /// system tells of lost pages once, and would call the next sync of the same file a success.
    syncing: Mutex<Syncing>,
}

/// What only the one who syncs may touch.
#[derive(Default)]
struct Syncing {
    failed: Option<Error>,
    reserved: Reserved,
}

struct Shared {
    /// Where the next group will begin.
    end: LogPoint,
    /// Everything before this is durable.
    synced: LogPoint,
    /// Written segments that are not known to be durable, oldest first, with their lengths; the last is the current one.
    unsynced: VecDeque<Unsynced>,
    /// Lengths of all live segments.
    segments: BTreeMap<FileNumber, u64>,
    spare: Option<OpenSegment>,
    /// What is in live segments, the current one excepted.
    sealed: BTreeMap<FileNumber, Sealed>,
}

#[derive(Clone)]
struct Unsynced {
    number: FileNumber,
    file: Arc<dyn LogFile>,
    end_bytes: u64,
    /// Written to no more: what is reserved behind its end is given back, so that the file is as long as what is in it.
    left: bool,
}

/// Room that was asked for in a segment, so that a sync behind it has only data to write and no new length.
#[derive(Default)]
struct Reserved {
    segment: FileNumber,
    end_bytes: u64,
}

impl Reserved {
    /// Before a sync of what lies in `segment` up to `end_bytes`, of which everything up to `synced_bytes` is durable: as much again
    /// as there is, within bounds, if the last sync was so close that more of them will fit in there. Syncs that are far apart, as
    /// those of flushes are, gain nothing from it.
    fn before_sync(&mut self, file: &dyn LogFile, segment: FileNumber, synced_bytes: u64, end_bytes: u64) {
        let room = end_bytes.clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
        let covered = self.segment == segment && end_bytes <= self.end_bytes;
        if !covered && end_bytes - synced_bytes.min(end_bytes) <= room / 4 {
            *self = Reserved { segment, end_bytes: end_bytes + room };
            file.reserve(self.end_bytes);
        }
    }
}

/// What only the one who commits may touch.
pub(crate) struct LogWriter {
    current: Option<OpenSegment>,
    /// Tag of the last envelope, across segments.
    previous: Tag,
    /// How far the last envelope said that the log was durable.
    attested: LogPoint,
    buffer: Vec<u8>,
}

/// A segment that is being written.
pub(crate) struct OpenSegment {
    number: FileNumber,
    file: Arc<dyn LogFile>,
    sealer: SegmentSealer,
    sections: HashMap<(Slot, Generation), Stream>,
    end_bytes: u64,
}

/// A generation of a table in one segment.
#[derive(Default)]
struct Stream {
    /// Forgotten when the table's keys are.
    sealer: Option<StreamSealer>,
    /// Bytes of its sections.
    bytes: Cell<u64>,
}

/// Bytes of sections by table and generation.
pub(crate) type Sealed = BTreeMap<(Slot, Generation), u64>;

impl OpenSegment {
    /// The salt in its header.
    pub(crate) fn salt(&self) -> Salt {
        *self.sealer.salt()
    }
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
        let shared =
            Shared { end: synced, synced, unsynced: VecDeque::new(), segments, spare: None, sealed: BTreeMap::new() };
        let log = Log { dir, entropy, system, suite, shared: Mutex::new(shared), syncing: Mutex::default() };
        (log, LogWriter { current: None, previous, attested: synced, buffer: Vec::new() })
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
        Ok(OpenSegment { number, file, sealer, sections: HashMap::new(), end_bytes: header.len() as u64 })
    }

    /// Keep a segment that the manifest names now for when it is needed.
    pub(crate) fn offer_spare(&self, spare: OpenSegment) {
        let mut shared = self.shared.lock();
        shared.segments.insert(spare.number, spare.end_bytes);
        shared.spare = Some(spare);
    }

    /// Whether the next group may go to the current segment.
    pub(crate) fn has_room(&self, writer: &LogWriter, segment_bytes: u64) -> bool {
        writer.current.as_ref().is_some_and(|current| current.end_bytes < segment_bytes)
    }

    /// Whether it is time to prepare the next segment.
    pub(crate) fn wants_spare(&self, segment_bytes: u64) -> bool {
        let shared = self.shared.lock();
        shared.spare.is_none() && shared.end.end_bytes > segment_bytes / 2
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
            current.sections.iter().for_each(|(key, stream)| add(current.number, *key, stream.bytes.get()));
        }
        found
    }

    /// Go on with the spare segment, if there is one.
    pub(crate) fn take_spare(&self, writer: &mut LogWriter) -> bool {
        let mut shared = self.shared.lock();
        let Some(spare) = shared.spare.take() else { return false };
        shared.leave(writer.current.take());
        shared.end = LogPoint { segment: spare.number, end_bytes: spare.end_bytes };
        shared.unsynced.push_back(Unsynced {
            number: spare.number,
            file: spare.file.clone(),
            end_bytes: spare.end_bytes,
            left: false,
        });
        writer.current = Some(spare);
        self.dir.meters().count(Count::SegmentsBegun, 1);
        true
    }

    /// Append one group, whose first entry has `first_seq`; where it ends. After an error the log must not be written again.
    pub(crate) fn append(
        &self,
        writer: &mut LogWriter,
        epoch: Epoch,
        first_seq: Seq,
        inputs: &[SectionInput<'_>],
    ) -> Result<LogPoint> {
        let synced = self.shared.lock().synced;
        let LogWriter { current, previous, attested, buffer } = writer;
        let segment = current.as_mut().ok_or_else(no_segment)?;
        buffer.clear();
        let (tag, frames) = segment.seal_group(epoch, first_seq, *previous, synced, inputs, buffer)?;
        self.dir.meters().sealed(FileKind::Log, frames, buffer.len() as u64);
        let written = segment.file.write_at(buffer, segment.end_bytes);
        written.map_err(|error| refused("write", &FileName::Log(segment.number).path(), error))?;
        segment.end_bytes += buffer.len() as u64;
        *previous = tag;
        *attested = synced;
        if buffer.capacity() > BUFFER_BYTES_KEPT {
            *buffer = Vec::new();
        }
        Ok(self.advance(segment))
    }

    /// Attest what has become durable since the last envelope, by an envelope without sections that is not synced itself.
    pub(crate) fn mark(&self, writer: &mut LogWriter, epoch: Epoch, next_seq: Seq) -> Result<()> {
        if writer.current.is_none() || writer.attested >= self.shared.lock().synced {
            return Ok(());
        }
        self.append(writer, epoch, next_seq, &[]).map(drop)
    }

    /// Note how far the current segment has come.
    fn advance(&self, segment: &OpenSegment) -> LogPoint {
        let mut shared = self.shared.lock();
        shared.end = LogPoint { segment: segment.number, end_bytes: segment.end_bytes };
        shared.segments.insert(segment.number, segment.end_bytes);
        match shared.unsynced.back_mut() {
            Some(last) if last.number == segment.number => last.end_bytes = segment.end_bytes,
            _ => shared.unsynced.push_back(Unsynced {
                number: segment.number,
                file: segment.file.clone(),
                end_bytes: segment.end_bytes,
                left: false,
            }),
        }
        shared.end
    }

    /// Where the segment that nobody has written to yet ends, if there is one.
    pub(crate) fn spare_end(&self) -> Option<LogPoint> {
        let shared = self.shared.lock();
        shared.spare.as_ref().map(|spare| LogPoint { segment: spare.number, end_bytes: spare.end_bytes })
    }

    /// Where the next group will begin.
    pub(crate) fn end(&self) -> LogPoint {
        self.shared.lock().end
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

    fn sync_unless_failed(&self, syncing: &mut Syncing) -> Result<()> {
        if let Some(error) = &syncing.failed {
            return Err(error.clone());
        }
        let outcome = self.sync_all(&mut syncing.reserved);
        syncing.failed = outcome.as_ref().err().cloned();
        outcome
    }

    fn sync_all(&self, reserved: &mut Reserved) -> Result<()> {
        // What is written by now is synced along with what was asked for.
        let (entries, synced) = {
            let shared = self.shared.lock();
            (shared.unsynced.iter().cloned().collect::<Vec<_>>(), shared.synced)
        };
        for Unsynced { number, file, end_bytes, left } in entries {
            let lost = |error| refused("sync", &FileName::Log(number).path(), error);
            if left {
                file.cut(end_bytes).map_err(lost)?;
            } else {
                let synced_bytes = if synced.segment == number { synced.end_bytes } else { 0 };
                reserved.before_sync(&*file, number, synced_bytes, end_bytes);
            }
            file.sync_to(end_bytes).map_err(lost)?;
            let mut shared = self.shared.lock();
            shared.synced = shared.synced.max(LogPoint { segment: number, end_bytes });
            let done = |entry: &Unsynced| entry.number == number && entry.end_bytes == end_bytes && entry.left == left;
            if shared.unsynced.front().is_some_and(done) {
                shared.unsynced.pop_front();
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
            let end = entry.end_bytes / PAGE_BYTES * PAGE_BYTES;
            if end > start {
                entry.file.begin_write_back(start, end - start);
            }
        }
    }

    /// How it is now, for the store's figures.
    pub(crate) fn look_at(&self, figures: &mut LogFigures) {
        let shared = self.shared.lock();
        figures.bytes = shared.segments.values().sum();
        figures.segments = shared.segments.len() as u64;
        figures.oldest_segment = shared.segments.first_key_value().map_or(0, |(number, _)| number.0);
        figures.newest_segment = shared.end.segment.0;
    }

    /// Bytes of all live segments.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.shared.lock().segments.values().sum()
    }

    /// The oldest live segment.
    pub(crate) fn oldest_segment(&self) -> Option<FileNumber> {
        self.shared.lock().segments.first_key_value().map(|(&number, _)| number)
    }

    /// Take out the segments before `needed`, or before the current one if none is needed; never the current one or the spare. Each is given
    /// to one caller, who has the manifest forget it and then removes it.
    pub(crate) fn take_segments_before(&self, needed: Option<FileNumber>) -> Vec<FileNumber> {
        let mut shared = self.shared.lock();
        let limit = needed.map_or(shared.end.segment, |needed| needed.min(shared.end.segment));
        let left = shared.segments.split_off(&limit);
        std::mem::replace(&mut shared.segments, left).into_keys().collect()
    }

    /// Live segments from `from` up to `to`, with their lengths up to there.
    pub(crate) fn segments_between(&self, from: FileNumber, to: LogPoint) -> Vec<(FileNumber, u64)> {
        let shared = self.shared.lock();
        let segments = shared.segments.range(from..=to.segment.max(from));
        let end_bytes =
            |number, len_bytes: u64| if number == to.segment { len_bytes.min(to.end_bytes) } else { len_bytes };
        segments.map(|(&number, &len_bytes)| (number, end_bytes(number, len_bytes))).collect()
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
        let current = shared.segments.contains_key(&shared.end.segment).then_some(shared.end.segment);
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
    /// A segment is written to no more.
    fn leave(&mut self, segment: Option<OpenSegment>) {
        if let Some(segment) = segment {
            self.mark_left(&segment);
            let bytes = segment.sections.into_iter().map(|(key, stream)| (key, stream.bytes.get()));
            self.sealed.insert(segment.number, bytes.collect());
        }
    }

    /// Have the next sync give back what is reserved in a segment.
    fn mark_left(&mut self, segment: &OpenSegment) {
        let OpenSegment { number, file, end_bytes, .. } = segment;
        match self.unsynced.back_mut() {
            Some(last) if last.number == *number => last.left = true,
            _ => {
                let file = file.clone();
                self.unsynced.push_back(Unsynced { number: *number, file, end_bytes: *end_bytes, left: true });
            }
        }
    }
}

impl OpenSegment {
    /// Seal a group into `out`, envelope first; its envelope's tag.
    fn seal_group(
        &mut self,
        epoch: Epoch,
        first_seq: Seq,
        previous: Tag,
        synced: LogPoint,
        inputs: &[SectionInput<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(Tag, u64)> {
        // The envelope is one.
        let mut frames = 1;
        for input in inputs {
            let sealer = || input.key.stream_sealer(input.suite, self.sealer.ordinals());
            let stream = self.sections.entry((input.slot, input.key.generation())).or_default();
            stream.sealer.get_or_insert_with(sealer);
        }
        let mut group = GroupWriter::begin(self.sealer.ordinals(), inputs.len(), out)?;
        for input in inputs {
            let generation = input.key.generation();
            let raw_bytes = input.ops.iter().map(Op::raw_bytes).sum();
            let stream = &self.sections[&(input.slot, generation)];
            let mut section = group.section(
                stream.sealer.as_ref().ok_or_else(no_segment)?,
                input.slot,
                generation,
                input.first_seq,
                raw_bytes,
            )?;
            for op in input.ops {
                match op.kind {
                    Kind::Delete => section.delete(op.key)?,
                    _ => section.put(op.key, op.value)?,
                }
            }
            let section = section.finish();
            stream.bytes.set(stream.bytes.get() + section.len_bytes);
            frames += u64::from(section.frames);
            group.add(section);
        }
        let tag = group.finish(self.sealer.system(), epoch, first_seq, previous, synced)?;
        Ok((tag, frames))
    }
}

impl Op<'_> {
    fn raw_bytes(&self) -> u64 {
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
            let own = current.sections.iter_mut().filter(|((other, _), _)| *other == slot);
            own.for_each(|(_, stream)| stream.sealer = None);
        }
    }
}

fn no_segment() -> Error {
    Error::InvalidArgument { what: "log", detail: "there is no segment to write to".into() }
}
