//! A segment that is being written: its end, its keys, and the room ahead of it.
//!
//! # Groups of any size
//! A group is sealed in one buffer and written with one call. One that is larger than [`PIECE_BYTES`] goes to the file in pieces as it is sealed, and
//! its envelope last of all, to the room that was left before the pieces: a crash in between leaves a hole where the group begins, and
//! the log ends there. So a value of 512 MiB needs no more memory than one of 2 MiB here.
//!
//! # Room ahead
//! Where commits are synced one by one, a sync would write down a new length of the file each time, which costs a file system with a
//! journal as much as the data. So the syncer reserves room ahead in zeros, of which [`replay`](super::replay) knows, and gives it back with the next
//! sync after the segment was left. A file system that reserves blocks without writing to them notes with the first write of each that it
//! is written to, in its journal again. So the writer, who alone knows where it will write next, writes the zeros, some pages at a time,
//! each time that it marks a sync.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SectionSource;
use crate::crypto::{Salt, StreamSealer, Tag};
use crate::error::Result;
use crate::format::FileName;
use crate::format::log::{Envelope, GroupWriter, LogPoint, SegmentSealer, section_frames};
use crate::io::LogFile;
use crate::io::directory::refused;
use crate::types::{Epoch, FileNumber, Generation, Kind, Seq, Slot};

/// What the system writes back at a time, at least.
pub(super) const PAGE_BYTES: u64 = 4096;
/// What is sealed of a group is written once it is this long.
pub(super) const PIECE_BYTES: usize = 2 << 20;
/// What is filled with zeros at a time of what is reserved.
pub(super) const FILL_BYTES: u64 = 64 << 10;
/// What is reserved of a segment at a time that is often synced.
const RESERVE_BYTES_MIN: u64 = 4 << 10;
const RESERVE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a segment: written ones, raised by the writer alone when what lies before is there; or reserved ones, raised by the syncer alone.
#[derive(Debug)]
pub(super) struct Length(AtomicU64);

impl Length {
    pub(super) fn of(bytes: u64) -> Arc<Length> {
        Arc::new(Length(AtomicU64::new(bytes)))
    }

    pub(super) fn load(&self) -> u64 {
        // Pairs with the Release in `raise`: what was written before is written for whoever sees the length.
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn raise(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Release);
    }
}

/// A segment that is being written.
pub(crate) struct OpenSegment {
    pub(super) number: FileNumber,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) sealer: SegmentSealer,
    pub(super) streams: Streams,
    pub(super) end: Arc<Length>,
    /// Up to where the syncer asked for room.
    pub(super) room: Arc<Length>,
    /// Up to where the room is filled with zeros.
    pub(super) filled_bytes: u64,
}

/// The generations of tables that have sections in one segment.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) all: Vec<Stream>,
    places: HashMap<(Slot, Generation), usize, BuildHasherDefault<NumberHasher>>,
    /// The one that was asked for last: writes mostly go on with the same table.
    last: usize,
}

/// A generation of a table in one segment.
pub(super) struct Stream {
    pub(super) whose: (Slot, Generation),
    /// Forgotten when the table's keys are.
    pub(super) sealer: Option<StreamSealer>,
    /// Bytes of its sections.
    pub(super) bytes: u64,
}

impl Streams {
    fn of(&mut self, whose: (Slot, Generation)) -> &mut Stream {
        if self.all.get(self.last).is_none_or(|stream| stream.whose != whose) {
            let Streams { all, places, last } = self;
            *last = *places.entry(whose).or_insert_with(|| {
                all.push(Stream { whose, sealer: None, bytes: 0 });
                all.len() - 1
            });
        }
        &mut self.all[self.last]
    }
}

/// Spreads numbers that the engine gave out itself: nobody can choose them so that they collide.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Bytes of sections by table and generation.
pub(crate) type Sealed = BTreeMap<(Slot, Generation), u64>;

#[derive(Clone)]
pub(super) struct Unsynced {
    pub(super) number: FileNumber,
    pub(super) file: Arc<dyn LogFile>,
    pub(super) end: Arc<Length>,
    /// Up to where room was asked for, so that a sync behind it has only data to write and no new length.
    pub(super) room: Arc<Length>,
    /// Written to no more: what is reserved behind its end is given back, so that the file is as long as what is in it.
    pub(super) left: bool,
}

impl Unsynced {
    pub(super) fn point(&self) -> LogPoint {
        LogPoint { segment: self.number, end_bytes: self.end.load() }
    }

    /// Before a sync of what lies before `end_bytes`, of which everything up to `synced_bytes` is durable: ask for as much again
    /// as there is, within bounds, if the last sync was so close that more of them will fit in there. Syncs that are far apart, as
    /// those of flushes are, gain nothing from it.
    pub(super) fn reserve(&self, synced_bytes: u64, end_bytes: u64) {
        let more = end_bytes.clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
        if end_bytes > self.room.load() && end_bytes - synced_bytes.min(end_bytes) <= more / 4 {
            self.file.reserve(end_bytes + more);
            self.room.raise(end_bytes + more);
        }
    }
}

impl OpenSegment {
    /// The salt in its header.
    pub(crate) fn salt(&self) -> Salt {
        *self.sealer.salt()
    }

    pub(super) fn unsynced(&self, left: bool) -> Unsynced {
        let OpenSegment { number, file, end, room, .. } = self;
        Unsynced { number: *number, file: file.clone(), end: end.clone(), room: room.clone(), left }
    }

    /// Have the room that groups will soon be written to filled with zeros. An error is one of the log's, except where there is no room
    /// after all because the file system cannot reserve any.
    pub(super) fn fill_room(&mut self) -> Result<()> {
        let (end, room) = (self.end.load(), self.room.load());
        let from = self.filled_bytes.max(end);
        // The last page of what is filled is the one that the end is in or comes to next.
        if from >= room || from - end >= PAGE_BYTES {
            return Ok(());
        }
        self.filled_bytes = room.min(from + FILL_BYTES);
        match self.file.fill(from, self.filled_bytes - from) {
            Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                Err(refused("write", &FileName::Log(self.number).path(), error))
            }
            _ => Ok(()),
        }
    }

    /// Seal a group and write it at the segment's end; its envelope's tag, and how many frames there are.
    pub(super) fn write_group(
        &mut self,
        (epoch, first_seq, previous, synced): (Epoch, Seq, Tag, LogPoint),
        sources: &[impl SectionSource],
        buffer: &mut Vec<u8>,
    ) -> Result<(Tag, u64)> {
        let OpenSegment { number, file, sealer, streams, end, .. } = self;
        let mut target = Target::new(&**file, *number, end.load(), sources.len());
        buffer.clear();
        let frames = sources.iter().map(|source| section_frames(source.raw_bytes())).sum();
        let drain = |buffer: &mut Vec<u8>| if buffer.len() < PIECE_BYTES { Ok(()) } else { target.write_piece(buffer) };
        let mut group = GroupWriter::begin(sealer.ordinals(), (sources.len(), frames), first_seq, buffer, drain)?;
        for source in sources {
            let (slot, generation) = (source.slot(), source.key().generation());
            let stream = streams.of((slot, generation));
            let sealing = || source.key().stream_sealer(source.suite(), sealer.ordinals());
            let sealing = &*stream.sealer.get_or_insert_with(sealing);
            let mut section = group.section(sealing, slot, generation, source.raw_bytes())?;
            source.for_each(|op| match op.kind {
                Kind::Delete => section.delete(op.key),
                _ => section.put(op.key, op.value),
            })?;
            let section = section.finish();
            stream.bytes += section.len_bytes;
            group.add(&section);
        }
        let tag = group.finish(sealer.system(), epoch, previous, synced)?;

        end.raise(target.finish(buffer)?);
        // The envelope is one.
        Ok((tag, 1 + frames))
    }
}

/// Where a group is written to.
struct Target<'a> {
    file: &'a dyn LogFile,
    number: FileNumber,
    /// Where the envelope goes.
    start: u64,
    envelope_bytes: usize,
    /// Where what is behind the envelope's room in the buffer goes.
    next: u64,
}

impl<'a> Target<'a> {
    fn new(file: &'a dyn LogFile, number: FileNumber, start: u64, sections: usize) -> Target<'a> {
        let envelope_bytes = Envelope::disk_bytes(sections);
        Target { file, number, start, envelope_bytes, next: start + envelope_bytes as u64 }
    }

    /// Write the sealed frames that are in the buffer, and take them out.
    fn write_piece(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        self.write_at(&buffer[self.envelope_bytes..], self.next)?;
        self.next += (buffer.len() - self.envelope_bytes) as u64;
        buffer.truncate(self.envelope_bytes);
        Ok(())
    }

    /// Write what is left in the buffer, and the envelope last: what lies behind it belongs to nothing until it is there. Where the group ends.
    fn finish(mut self, buffer: &mut Vec<u8>) -> Result<u64> {
        let in_pieces = self.next > self.start + self.envelope_bytes as u64;
        if in_pieces && buffer.len() > self.envelope_bytes {
            self.write_piece(buffer)?;
        }
        self.write_at(buffer, self.start)?;
        Ok(if in_pieces { self.next } else { self.start + buffer.len() as u64 })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let failed = |error| refused("write", &FileName::Log(self.number).path(), error);
        self.file.write_at(bytes, offset).map_err(failed)
    }
}
