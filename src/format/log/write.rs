//! Writing groups: entries go into the group's buffer in clear and are sealed where they lie, a frame at a time.

use super::{
    ENTRIES_MAX, ENTRY_HEAD_BYTES_MAX, ENVELOPE_BYTES, Envelope, LISTED_BYTES, LogPoint, Section, check_sections,
    section_disk_bytes, section_frames,
};
use crate::crypto::{Ordinals, Place, Places, Salt, StreamSealer, Suite, TAG_BYTES, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::codec::Put;
use crate::format::frame::{
    FileHeader, FrameKind, JOURNAL_HEAD_BYTES, JOURNAL_PAYLOAD_BYTES_MAX, JournalFrame, finish_journal_frame,
};
use crate::io::Entropy;
use crate::types::{Epoch, FileKind, FileNumber, Generation, KEY_BYTES_MAX, Kind, Seq, Slot, TableId, VALUE_BYTES_MAX};

/// A new segment: its counter of ordinals, and what seals its envelopes.
#[derive(Debug)]
pub(crate) struct SegmentSealer {
    ordinals: Ordinals,
    system: StreamSealer,
}

impl SegmentSealer {
    /// Begin a segment: draw its salt and append its header to `out`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness.
    pub(crate) fn create(
        system: &TableKey,
        suite: Suite,
        number: FileNumber,
        entropy: &dyn Entropy,
        out: &mut Vec<u8>,
    ) -> Result<SegmentSealer> {
        let ordinals = Ordinals::fresh(FileKind::Log, number, entropy)
            .map_err(|source| Error::io("draw", "the salt of a new segment", source))?;
        let what = (FileKind::Log, number, TableId::SYSTEM);
        let header =
            FileHeader::seal(system, suite, what, ordinals.salt(), |bytes| system.header_tag(suite, &ordinals, bytes));
        out.put(&header.encode());
        let system = system.stream_sealer(suite, &ordinals);
        Ok(SegmentSealer { ordinals, system })
    }

    /// What counts the segment's frames; a table's [`StreamSealer`] is made from it.
    pub(crate) fn ordinals(&self) -> &Ordinals {
        &self.ordinals
    }

    /// What seals envelopes.
    pub(crate) fn system(&self) -> &StreamSealer {
        &self.system
    }

    /// The salt of this segment, which the manifest names before the first acknowledgement.
    pub(crate) fn salt(&self) -> &Salt {
        self.ordinals.salt()
    }
}

/// Puts a group together at the end of a vector: room for the envelope, sections one after the other, and then the envelope.
///
/// ```text
/// let mut group = GroupWriter::begin(&ordinals, (2, frames), first_seq, &mut out, keep)?;
/// let mut section = group.section(&sealer, slot, generation, raw_bytes)?;
/// section.put(key, value)?; ...
/// let section = section.finish(); group.add(&section);
/// ...
/// let tag = group.finish(segment.system(), epoch, previous, synced)?;
/// ```
/// After each frame that was sealed, `drain` gets the vector, in which then is no plaintext: what lies behind the room for the envelope may be
/// taken out and written, so that a group needs a buffer of a frame or two however large it is.
///
/// Groups of a segment are put together one at a time, so that ordinals rise as the bytes do. After an error the segment
/// is abandoned, because a place may be spent.
#[derive(Debug)]
pub(crate) struct GroupWriter<'a, D> {
    places: Places,
    envelope: Place,
    /// Where the envelope is to lie.
    start: usize,
    sections_announced: usize,
    sections: usize,
    first_seq: Seq,
    next_seq: Seq,
    out: &'a mut Vec<u8>,
    drain: D,
}

/// Leave sealed frames where they are.
#[cfg(any(test, fuzzing))]
pub(crate) fn keep(_sealed: &mut Vec<u8>) -> Result<()> {
    Ok(())
}

impl<'a, D: FnMut(&mut Vec<u8>) -> Result<()>> GroupWriter<'a, D> {
    /// Begin a group of exactly this many sections, with so many frames in all ([`section_frames`]), whose first entry has `first_seq`.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for more than [`ENVELOPE_SECTIONS_MAX`](super::ENVELOPE_SECTIONS_MAX) sections, or when the ordinals have run out.
    pub(crate) fn begin(
        ordinals: &Ordinals,
        (sections, frames): (usize, u64),
        first_seq: Seq,
        out: &'a mut Vec<u8>,
        drain: D,
    ) -> Result<GroupWriter<'a, D>> {
        check_sections(sections)?;
        let mut places = ordinals.take_run(1 + frames)?;
        let Some(envelope) = places.next() else { unreachable!("the run has a place at least") };
        let start = out.len();
        out.resize(start + Envelope::disk_bytes(sections), 0);
        Ok(GroupWriter {
            places,
            envelope,
            start,
            sections_announced: sections,
            sections: 0,
            first_seq,
            next_seq: first_seq,
            out,
            drain,
        })
    }

    /// Begin a table's section, whose entries are `raw_bytes` long in all ([`entry_bytes`](super::entry_bytes) each).
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for more bytes than an envelope can tell.
    pub(crate) fn section<'s>(
        &'s mut self,
        sealer: &'s StreamSealer,
        slot: Slot,
        generation: Generation,
        raw_bytes: u64,
    ) -> Result<SectionWriter<'s, D>> {
        if raw_bytes > u64::from(u32::MAX) {
            return Err(limit("bytes of one table in one group", u32::MAX as usize, raw_bytes as usize));
        }
        let whose = (slot, generation, self.next_seq);
        Ok(SectionWriter::new(sealer, &mut self.places, whose, raw_bytes, self.out, &mut self.drain))
    }

    /// Take a finished section in.
    ///
    /// # Panics
    /// If there are more than were announced.
    pub(crate) fn add(&mut self, section: &Section) {
        assert!(self.sections < self.sections_announced, "a group has the sections that were announced");
        let at = self.start + JOURNAL_HEAD_BYTES + ENVELOPE_BYTES + self.sections * LISTED_BYTES;
        self.out[at..at + LISTED_BYTES].copy_from_slice(&section.list());
        self.sections += 1;
        self.next_seq = section.first_seq.advanced(u64::from(section.entries)).unwrap_or(Seq::MAX);
    }

    /// Seal the envelope where it lies; the result is its tag, which the next envelope names.
    ///
    /// # Errors
    /// What sealing fails with.
    ///
    /// # Panics
    /// If there are not as many sections and frames as were announced.
    pub(crate) fn finish(self, system: &StreamSealer, epoch: Epoch, previous: Tag, synced: LogPoint) -> Result<Tag> {
        assert!(self.sections == self.sections_announced, "a group has the sections that were announced");
        assert!(self.places.is_empty(), "a group has the frames that were announced");
        let frame = &mut self.out[self.start..self.start + Envelope::disk_bytes(self.sections)];
        let head = Envelope::head(epoch, self.first_seq, &previous, synced);
        frame[JOURNAL_HEAD_BYTES..JOURNAL_HEAD_BYTES + ENVELOPE_BYTES].copy_from_slice(&head);
        let (ordinal, place) = (self.envelope.ordinal(), self.envelope);
        finish_journal_frame(frame, FrameKind::Envelope, true, ordinal, |aad, body| system.seal(place, aad, body))
    }
}

/// Streams entries into sealed frames at the end of a vector. The length is known beforehand, so that each frame's
/// room is made before there is plaintext in it.
#[derive(Debug)]
pub(crate) struct SectionWriter<'a, D> {
    sealer: &'a StreamSealer,
    places: &'a mut Places,
    slot: Slot,
    generation: Generation,
    first_seq: Seq,
    first_ordinal: u64,
    raw_bytes: u64,
    raw_bytes_left: u64,
    entries: u32,
    frames: u32,
    tag: Tag,
    frame: Option<JournalFrame>,
    out: &'a mut Vec<u8>,
    drain: &'a mut D,
}

impl<'a, D: FnMut(&mut Vec<u8>) -> Result<()>> SectionWriter<'a, D> {
    /// Begin a section of `raw_bytes` bytes of entries, at least one, which takes [`section_frames`] of the places.
    pub(crate) fn new(
        sealer: &'a StreamSealer,
        places: &'a mut Places,
        (slot, generation, first_seq): (Slot, Generation, Seq),
        raw_bytes: u64,
        out: &'a mut Vec<u8>,
        drain: &'a mut D,
    ) -> SectionWriter<'a, D> {
        SectionWriter {
            sealer,
            first_ordinal: places.next_ordinal(),
            places,
            slot,
            generation,
            first_seq,
            raw_bytes,
            raw_bytes_left: raw_bytes,
            entries: 0,
            frames: 0,
            tag: [0; TAG_BYTES],
            frame: None,
            out,
            drain,
        }
    }

    /// Append a put.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a key or value beyond the engine's limits; what sealing and the drain fail with.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.entry(Kind::Put, key, Some(value))
    }

    /// Append a delete.
    ///
    /// # Errors
    /// As for [`put`](SectionWriter::put).
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.entry(Kind::Delete, key, None)
    }

    /// What the envelope says about the section.
    ///
    /// # Panics
    /// If the entries were not as long as was announced.
    pub(crate) fn finish(self) -> Section {
        assert!(self.raw_bytes_left == 0 && self.entries > 0, "a section is as long as was announced");
        debug_assert_eq!(u64::from(self.frames), section_frames(self.raw_bytes));
        Section {
            slot: self.slot,
            generation: self.generation,
            suite: self.sealer.suite(),
            first_seq: self.first_seq,
            entries: self.entries,
            first_ordinal: self.first_ordinal,
            frames: self.frames,
            len_bytes: section_disk_bytes(self.raw_bytes),
            tag: self.tag,
        }
    }

    fn entry(&mut self, kind: Kind, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(limit("bytes of a key", KEY_BYTES_MAX, key.len()));
        }
        let value_bytes = value.map(<[u8]>::len);
        let value = value.unwrap_or_default();
        if value.len() > VALUE_BYTES_MAX {
            return Err(limit("bytes of a value", VALUE_BYTES_MAX, value.len()));
        }
        if self.entries >= ENTRIES_MAX {
            return Err(limit("entries of one section", ENTRIES_MAX as usize, self.entries as usize + 1));
        }
        self.entries += 1;

        // On the stack and not in a vector of its own: lengths alone, nothing that would have to be wiped.
        let mut head = [0; ENTRY_HEAD_BYTES_MAX];
        let head_bytes = encode_entry_head(&mut head, kind, key.len(), value_bytes);
        let head = &head[..head_bytes];
        // Nearly always the entry ends before its frame does.
        let room = self.room();
        if head.len() + key.len() + value.len() <= room {
            self.append(head);
            self.append(key);
            self.append(value);
            return if head.len() + key.len() + value.len() == room { self.seal_frame() } else { Ok(()) };
        }
        self.append_over_frames(head)?;
        self.append_over_frames(key)?;
        self.append_over_frames(value)
    }

    /// What is free in the present frame, which is begun if there is none.
    fn room(&mut self) -> usize {
        let frame = self.frame.get_or_insert_with(|| {
            assert!(self.raw_bytes_left > 0, "a section is as long as was announced");
            let body_bytes = self.raw_bytes_left.min(JOURNAL_PAYLOAD_BYTES_MAX as u64) as usize;
            JournalFrame::begin(FrameKind::Section, body_bytes, self.out)
        });
        frame.room(self.out)
    }

    /// Append what fits into the frame.
    fn append(&mut self, bytes: &[u8]) {
        self.out.put(bytes);
        self.raw_bytes_left -= bytes.len() as u64;
    }

    fn append_over_frames(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.append(now);
            bytes = later;
            if now.len() == room {
                self.seal_frame()?;
            }
        }
        Ok(())
    }

    fn seal_frame(&mut self) -> Result<()> {
        let Some(frame) = &self.frame else { return Ok(()) };
        let place = self.places.next().ok_or_else(|| {
            let frames = self.frames as usize;
            limit("frames of one section", frames, frames + 1)
        })?;
        let last = self.raw_bytes_left == 0;
        let ordinal = place.ordinal();
        self.tag = frame.finish(last, ordinal, self.out, |aad, body| self.sealer.seal(place, aad, body))?;
        self.frame = None;
        self.frames += 1;
        (self.drain)(self.out)
    }
}

impl<D> Drop for SectionWriter<'_, D> {
    /// A section that was given up leaves no plaintext behind.
    fn drop(&mut self) {
        if let Some(frame) = &self.frame {
            self.out[frame.start..].fill(0);
            self.out.truncate(frame.start);
        }
    }
}

fn limit(what: &'static str, limit: usize, actual: usize) -> Error {
    Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 }
}

fn encode_entry_head(
    head: &mut [u8; ENTRY_HEAD_BYTES_MAX],
    kind: Kind,
    key_bytes: usize,
    value_bytes: Option<usize>,
) -> usize {
    struct Front<'a>(&'a mut [u8], usize);
    impl Put for Front<'_> {
        fn put(&mut self, bytes: &[u8]) {
            self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
            self.1 += bytes.len();
        }
    }
    let mut front = Front(head, 0);
    front.put_u8(kind as u8);
    front.put_varint(key_bytes as u64);
    if let Some(value_bytes) = value_bytes {
        front.put_varint(value_bytes as u64);
    }
    front.1
}
