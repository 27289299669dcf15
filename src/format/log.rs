//! The write-ahead log: groups of an envelope and its sections.
//!
//! A segment is a file header and journal frames ([`frame`](crate::format::frame)) with ordinals 0, 1, 2, ... in the order in
//! which they lie. What one leader commits is a *group*: an envelope, and one section for each table that is written to.
//!
//! ```text
//! header | envelope 0 | section 1 | section 2 | envelope 3 | envelope 4 | section 5 | section 6 | ...
//!          '---------- group -----------'       sync mark    '---------- group ------------'
//! ```
//!
//! # Envelope
//! Sealed under the system key's stream key for the segment, so that recovery needs that key alone.
//!
//! ```text
//! offset  size  field
//!      0     8  epoch            of the manifest when the group was written (u64)
//!      8     8  first_seq        sequence number of the group's first entry (u64)
//!     16    16  previous         tag of the envelope before, across segments; zeros for a store's first
//!     32     8  synced segment   everything before this point of the log was durable (u64)
//!     40     8  synced end       ... bytes of that segment (u64)
//!     48     4  sections         how many follow (u32); none: a sync mark
//!     52     4  reserved         zero
//!     56  64*n  sections
//!
//! section, 64 bytes
//!      0     4  slot             the table (u32)
//!      4     4  generation       of the table's key (u32)
//!      8     1  suite
//!      9     3  reserved         zero
//!     12     4  entries          at least 1 (u32)
//!     16     8  first_seq        sequence number of its first entry; entry i has first_seq + i (u64)
//!     24     8  first_ordinal    ordinal of its first frame; the others follow (u64)
//!     32     4  frames           at least 1 (u32)
//!     36     4  reserved         zero
//!     40     8  len_bytes        of all its frames, heads and tags included (u64)
//!     48    16  tag              of its last frame
//! ```
//!
//! # Section
//! Sealed under the table's own stream key for the segment. Its plaintext is one row of entries, cut into frames of at most
//! 1 MiB without regard to where entries end; the last frame says so in its associated data.
//!
//! ```text
//! entry: kind u8 | key length varint | value length varint (puts only) | key | value (puts only)
//! ```
//!
//! # What attests what
//! A frame that opens proves that it was written at its ordinal of its segment under its key. An envelope pins its sections by
//! ordinals, lengths and last tag, so a section that is missing, cut or exchanged is noticed with the system key alone
//! (by the last frame's stored tag and the CRCs) and proved when the table's key opens it. `previous` chains the envelopes,
//! and the manifest pins where the chain stood when the store was recovered or closed. *Synced*
//! says how far the log was durable when the envelope was written: a hole before that point is damage, one behind it is
//! where a power cut ended the log.
//!
//! # What this part leaves to others
//! Order, durability and where the log ends (`wal`).

use crate::crypto::{
    Authentic, Ordinals, Place, Places, Salt, StreamKey, StreamSealer, Suite, TAG_BYTES, TableKey, Tag, Wiped,
};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, VARINT_BYTES_MAX, Where, require, varint_bytes};
use crate::format::frame::{
    Expected, FileHeader, FrameKind, HEADER_BYTES, JOURNAL_HEAD_BYTES, JOURNAL_OVERHEAD_BYTES,
    JOURNAL_PAYLOAD_BYTES_MAX, JournalFrame, JournalHead, decode_number, decode_suite, open_journal_frame,
};
use crate::io::Entropy;
use crate::types::{Epoch, FileKind, FileNumber, Generation, KEY_BYTES_MAX, Kind, Seq, Slot, TableId, VALUE_BYTES_MAX};

const ENVELOPE_BYTES: usize = 56;
/// Bytes of a section in an envelope, and in the index of parked sections.
pub(crate) const SECTION_BYTES: usize = 64;
/// The most sections that one envelope can list.
pub(crate) const ENVELOPE_SECTIONS_MAX: usize = (JOURNAL_PAYLOAD_BYTES_MAX - ENVELOPE_BYTES) / SECTION_BYTES;
/// Kind, and two lengths.
const ENTRY_HEAD_BYTES_MAX: usize = 1 + 2 * VARINT_BYTES_MAX;

/// A point of the log: everything in older segments, and this many bytes of this one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct LogPoint {
    /// The segment.
    pub(crate) segment: FileNumber,
    /// Bytes of the segment before the point, header included.
    pub(crate) end_bytes: u64,
}

/// What a group consists of, and what was true when it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Envelope {
    /// The manifest's epoch.
    pub(crate) epoch: Epoch,
    /// The group's first sequence number; a sync mark has the next one to come.
    pub(crate) first_seq: Seq,
    /// Tag of the envelope before, across segments.
    pub(crate) previous: Tag,
    /// How far the log was durable.
    pub(crate) synced: LogPoint,
    /// What the group consists of; empty for a sync mark.
    pub(crate) sections: Vec<Section>,
}

/// One table's part of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Section {
    /// The table.
    pub(crate) slot: Slot,
    /// Of the table's key.
    pub(crate) generation: Generation,
    /// Of its frames.
    pub(crate) suite: Suite,
    /// Of its first entry.
    pub(crate) first_seq: Seq,
    /// How many entries it has.
    pub(crate) entries: u32,
    /// Of its first frame.
    pub(crate) first_ordinal: u64,
    /// How many frames it has.
    pub(crate) frames: u32,
    /// Bytes of all its frames.
    pub(crate) len_bytes: u64,
    /// Of its last frame.
    pub(crate) tag: Tag,
}

impl Section {
    /// Sequence number of the last entry.
    pub(crate) fn last_seq(&self) -> Seq {
        // Checked when it was decoded, and by whoever gave the numbers out.
        self.first_seq.advanced(u64::from(self.entries).saturating_sub(1)).unwrap_or(Seq::MAX)
    }

    /// The section as its envelope lists it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.slot.0);
        out.put_u32(self.generation.0);
        out.put_u8(self.suite as u8);
        out.put_reserved::<3>();
        out.put_u32(self.entries);
        out.put_u64(self.first_seq.get());
        out.put_u64(self.first_ordinal);
        out.put_u32(self.frames);
        out.put_reserved::<4>();
        out.put_u64(self.len_bytes);
        out.put(&self.tag);
    }

    /// Read what [`encode`](Section::encode) writes.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Decoded<Section> {
        let slot = Slot(reader.u32()?);
        let generation = Generation(reader.u32()?);
        let suite = decode_suite(reader)?;
        reader.reserved::<3>()?;
        let entries = reader.u32()?;
        let first_seq = decode_seq(reader)?;
        let first_ordinal = reader.u64()?;
        let frames = reader.u32()?;
        reader.reserved::<4>()?;
        let len_bytes = reader.u64()?;
        let tag = reader.array()?;
        require(entries >= 1 && first_seq.advanced(u64::from(entries) - 1).is_some())?;
        require(frames >= 1 && first_ordinal.checked_add(u64::from(frames)).is_some())?;
        // Every frame has a body, and none is larger than a frame can be.
        let overhead = u64::from(frames) * JOURNAL_OVERHEAD_BYTES as u64;
        let raw_bytes = len_bytes.checked_sub(overhead).ok_or(Refusal::Malformed)?;
        require(section_frames(raw_bytes) == u64::from(frames))?;
        Ok(Section { slot, generation, suite, first_seq, entries, first_ordinal, frames, len_bytes, tag })
    }
}

/// A sequence number.
pub(crate) fn decode_seq(reader: &mut Reader<'_>) -> Decoded<Seq> {
    Seq::new(reader.u64()?).ok_or(Refusal::Malformed)
}

impl Envelope {
    /// Bytes on disk of an envelope with this many sections.
    pub(crate) const fn disk_bytes(sections: usize) -> usize {
        JOURNAL_OVERHEAD_BYTES + ENVELOPE_BYTES + SECTION_BYTES * sections
    }

    /// Bytes on disk of the group: the envelope and all its sections.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn group_bytes(&self) -> u64 {
        let sections = self.sections.iter().fold(0u64, |sum, section| sum.saturating_add(section.len_bytes));
        sections.saturating_add(Envelope::disk_bytes(self.sections.len()) as u64)
    }

    /// Sequence number of the group's last entry; `None` for a sync mark.
    pub(crate) fn last_seq(&self) -> Option<Seq> {
        self.sections.iter().map(Section::last_seq).max()
    }

    /// The plaintext of the envelope.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENVELOPE_BYTES + SECTION_BYTES * self.sections.len());
        out.put_u64(self.epoch.0);
        out.put_u64(self.first_seq.get());
        out.put(&self.previous);
        out.put_u64(self.synced.segment.0);
        out.put_u64(self.synced.end_bytes);
        out.put_u32(self.sections.len() as u32);
        out.put_reserved::<4>();
        self.sections.iter().for_each(|section| section.encode(&mut out));
        out
    }

    /// Read an envelope's plaintext.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Envelope> {
        let mut reader = Reader::new(bytes);
        let epoch = Epoch(reader.u64()?);
        let first_seq = decode_seq(&mut reader)?;
        let previous = reader.array()?;
        let synced = LogPoint { segment: FileNumber(reader.u64()?), end_bytes: reader.u64()? };
        let count = reader.u32()? as usize;
        reader.reserved::<4>()?;
        require(count == reader.remaining() / SECTION_BYTES)?;
        let mut sections: Vec<Section> = Vec::with_capacity(count);
        for _ in 0..count {
            let section = Section::decode(&mut reader)?;
            require(section.first_seq >= first_seq)?;
            // Sections lie one behind the other, and ordinals count frames in the order in which they lie.
            if let Some(before) = sections.last() {
                require(section.first_ordinal == before.first_ordinal + u64::from(before.frames))?;
            }
            sections.push(section);
        }
        reader.finish()?;
        Ok(Envelope { epoch, first_seq, previous, synced, sections })
    }

    /// Seal the envelope and append its frame to `out`; the result is its tag, which the next one names.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for more than [`ENVELOPE_SECTIONS_MAX`] sections; what sealing fails with.
    pub(crate) fn seal(&self, sealer: &StreamSealer, place: Place, out: &mut Vec<u8>) -> Result<Tag> {
        check_sections(self.sections.len())?;
        let bytes = self.encode();
        debug_assert_eq!(Envelope::decode(&bytes).as_ref(), Ok(self), "what is written can be read");
        let ordinal = place.ordinal();
        let frame = JournalFrame::begin(FrameKind::Envelope, bytes.len(), out);
        out.put(&bytes);
        frame.finish(true, ordinal, out, |aad, body| sealer.seal(place, aad, body))
    }
}

fn check_sections(count: usize) -> Result<()> {
    if count <= ENVELOPE_SECTIONS_MAX {
        return Ok(());
    }
    let limit = ENVELOPE_SECTIONS_MAX as u64;
    Err(Error::LimitExceeded { what: "tables in one group of commits", limit, actual: count as u64 })
}

// ---- writing ---------------------------------------------------------------------------------------------------

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

/// Puts a group together at the end of a vector: sections one after the other, and the envelope before them.
///
/// ```text
/// let mut group = GroupWriter::begin(&ordinals, 2, &mut out)?;
/// let mut section = group.section(&sealer, slot, generation, first_seq, raw_bytes)?;
/// section.put(key, value)?; ...
/// let section = section.finish(); group.add(section);
/// ...
/// let tag = group.finish(segment.system(), epoch, first_seq, previous, synced)?;
/// ```
/// Groups of a segment are put together one at a time, so that ordinals rise as the bytes do. After an error the segment
/// is abandoned, because a place may be spent.
#[derive(Debug)]
pub(crate) struct GroupWriter<'a> {
    ordinals: &'a Ordinals,
    place: Place,
    start: usize,
    sections_announced: usize,
    sections: Vec<Section>,
    out: &'a mut Vec<u8>,
}

impl<'a> GroupWriter<'a> {
    /// Begin a group of exactly this many sections.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for more than [`ENVELOPE_SECTIONS_MAX`], or when the ordinals have run out.
    pub(crate) fn begin(ordinals: &'a Ordinals, sections: usize, out: &'a mut Vec<u8>) -> Result<GroupWriter<'a>> {
        check_sections(sections)?;
        let place = ordinals.take()?;
        let start = out.len();
        out.resize(start + Envelope::disk_bytes(sections), 0);
        Ok(GroupWriter {
            ordinals,
            place,
            start,
            sections_announced: sections,
            sections: Vec::with_capacity(sections),
            out,
        })
    }

    /// Begin a table's section, whose entries are `raw_bytes` long in all ([`entry_bytes`] each).
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the ordinals have run out.
    pub(crate) fn section(
        &mut self,
        sealer: &'a StreamSealer,
        slot: Slot,
        generation: Generation,
        first_seq: Seq,
        raw_bytes: u64,
    ) -> Result<SectionWriter<'_>> {
        let places = self.ordinals.take_run(section_frames(raw_bytes))?;
        Ok(SectionWriter::new(sealer, places, slot, generation, first_seq, raw_bytes, self.out))
    }

    /// Take a finished section in.
    pub(crate) fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Seal the envelope; the result is its tag, which the next envelope names.
    ///
    /// # Errors
    /// What sealing fails with.
    ///
    /// # Panics
    /// If there are not as many sections as were announced.
    pub(crate) fn finish(
        self,
        system: &StreamSealer,
        epoch: Epoch,
        first_seq: Seq,
        previous: Tag,
        synced: LogPoint,
    ) -> Result<Tag> {
        assert_eq!(self.sections.len(), self.sections_announced, "a group has the sections that were announced");
        let envelope = Envelope { epoch, first_seq, previous, synced, sections: self.sections };
        let mut frame = Vec::new();
        let tag = envelope.seal(system, self.place, &mut frame)?;
        self.out[self.start..self.start + frame.len()].copy_from_slice(&frame);
        Ok(tag)
    }
}

/// Bytes of one entry in a section's plaintext; `None` stands for a delete.
pub(crate) fn entry_bytes(key_bytes: usize, value_bytes: Option<usize>) -> u64 {
    let value = value_bytes.map_or(0, |len| varint_bytes(len as u64) + len);
    (1 + varint_bytes(key_bytes as u64) + key_bytes + value) as u64
}

/// Frames of a section whose entries are this many bytes long.
pub(crate) const fn section_frames(raw_bytes: u64) -> u64 {
    raw_bytes.div_ceil(JOURNAL_PAYLOAD_BYTES_MAX as u64)
}

/// Bytes on disk of a section whose entries are this many bytes long.
#[cfg(any(test, fuzzing))]
pub(crate) const fn section_disk_bytes(raw_bytes: u64) -> u64 {
    raw_bytes + section_frames(raw_bytes) * JOURNAL_OVERHEAD_BYTES as u64
}

/// Streams entries into sealed frames at the end of a vector. The length is known beforehand, so that each frame's
/// room is made before there is plaintext in it.
#[derive(Debug)]
pub(crate) struct SectionWriter<'a> {
    sealer: &'a StreamSealer,
    places: Places,
    slot: Slot,
    generation: Generation,
    first_seq: Seq,
    first_ordinal: u64,
    raw_bytes_left: u64,
    entries: u32,
    frames: u32,
    tag: Tag,
    frame: Option<JournalFrame>,
    start: usize,
    out: &'a mut Vec<u8>,
}

impl<'a> SectionWriter<'a> {
    /// Begin a section of `raw_bytes` bytes of entries, at least one, with [`section_frames`] places.
    pub(crate) fn new(
        sealer: &'a StreamSealer,
        places: Places,
        slot: Slot,
        generation: Generation,
        first_seq: Seq,
        raw_bytes: u64,
        out: &'a mut Vec<u8>,
    ) -> SectionWriter<'a> {
        SectionWriter {
            sealer,
            first_ordinal: places.next_ordinal(),
            places,
            slot,
            generation,
            first_seq,
            raw_bytes_left: raw_bytes,
            entries: 0,
            frames: 0,
            tag: [0; TAG_BYTES],
            frame: None,
            start: out.len(),
            out,
        }
    }

    /// Append a put.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a key or value beyond the engine's limits; what sealing fails with.
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
        Section {
            slot: self.slot,
            generation: self.generation,
            suite: self.sealer.suite(),
            first_seq: self.first_seq,
            entries: self.entries,
            first_ordinal: self.first_ordinal,
            frames: self.frames,
            len_bytes: (self.out.len() - self.start) as u64,
            tag: self.tag,
        }
    }

    fn entry(&mut self, kind: Kind, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let limit = |what, limit: usize, actual: usize| Error::LimitExceeded {
            what,
            limit: limit as u64,
            actual: actual as u64,
        };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(limit("bytes of a key", KEY_BYTES_MAX, key.len()));
        }
        let value_bytes = value.map_or(0, <[u8]>::len);
        if value_bytes > VALUE_BYTES_MAX {
            return Err(limit("bytes of a value", VALUE_BYTES_MAX, value_bytes));
        }
        self.entries =
            self.entries.checked_add(1).ok_or(limit("entries of one section", u32::MAX as usize, usize::MAX))?;

        // On the stack and not in a vector of its own: lengths alone, nothing that would have to be wiped.
        let mut head = [0; ENTRY_HEAD_BYTES_MAX];
        let head_bytes = encode_entry_head(&mut head, kind, key.len(), value.map(<[u8]>::len));
        self.append(&head[..head_bytes])?;
        self.append(key)?;
        self.append(value.unwrap_or_default())
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let frame = self.frame.get_or_insert_with(|| {
                let body_bytes = self.raw_bytes_left.min(JOURNAL_PAYLOAD_BYTES_MAX as u64) as usize;
                JournalFrame::begin(FrameKind::Section, body_bytes, self.out)
            });
            let filled = self.out.len() - frame.start - JOURNAL_HEAD_BYTES;
            let room = frame.body_bytes_max - filled;
            assert!(room > 0, "a section is as long as was announced");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.out.put(now);
            self.raw_bytes_left -= now.len() as u64;
            bytes = later;
            if now.len() == room {
                self.seal_frame()?;
            }
        }
        Ok(())
    }

    fn seal_frame(&mut self) -> Result<()> {
        let Some(frame) = &self.frame else { return Ok(()) };
        let place = self.places.next().ok_or(Error::LimitExceeded {
            what: "frames of one section",
            limit: u64::from(self.frames),
            actual: u64::from(self.frames) + 1,
        })?;
        let last = self.raw_bytes_left == 0;
        let ordinal = place.ordinal();
        self.tag = frame.finish(last, ordinal, self.out, |aad, body| self.sealer.seal(place, aad, body))?;
        self.frame = None;
        self.frames += 1;
        Ok(())
    }
}

impl Drop for SectionWriter<'_> {
    /// A section that was given up leaves no plaintext behind.
    fn drop(&mut self) {
        if let Some(frame) = &self.frame {
            self.out[frame.start..].fill(0);
            self.out.truncate(frame.start);
        }
    }
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

// ---- reading ---------------------------------------------------------------------------------------------------

/// An existing segment: what opens its envelopes, and the salt that tables need to open their sections.
#[derive(Clone, Debug)]
pub(crate) struct SegmentOpener {
    header: FileHeader,
    system: StreamKey,
}

impl SegmentOpener {
    /// For the segment that begins with `header`.
    ///
    /// # Errors
    /// Those of [`FileOpener::open`](crate::format::frame::FileOpener::open).
    pub(crate) fn open(
        header: &[u8],
        system: &TableKey,
        expected: &Expected,
        place: &Where<'_>,
    ) -> Result<SegmentOpener> {
        let header = FileHeader::decode(header, place)?;
        header.authenticate(system, expected, place)?;
        let system = system.stream_key(header.suite, header.kind, header.number, &header.salt);
        Ok(SegmentOpener { header, system })
    }

    /// A table's key for its sections in this segment.
    pub(crate) fn table_key(&self, key: &TableKey, suite: Suite) -> StreamKey {
        key.stream_key(suite, self.header.kind, self.header.number, &self.header.salt)
    }

    /// Open an envelope's whole frame at the ordinal that its head claims; the result is the envelope and its tag.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`], [`Error::UnknownVersion`].
    pub(crate) fn open_envelope(&self, frame: Vec<u8>, place: &Where<'_>) -> Result<(Authentic<Envelope>, Tag)> {
        let head = JournalHead::decode(&frame, place)?;
        let tag = *frame.last_chunk::<TAG_BYTES>().ok_or_else(|| place.bit_rot("the frame is cut off"))?;
        let bytes = open_journal_frame(&self.system, FrameKind::Envelope, true, head.ordinal, frame, place)?;
        let envelope = bytes.try_map(|bytes| {
            let envelope = Envelope::decode(&bytes)?;
            let follows = |section: &Section| section.first_ordinal == head.ordinal + 1;
            require(envelope.sections.first().is_none_or(follows))?;
            Ok(envelope)
        });
        Ok((envelope.map_err(|refusal: Refusal| refusal.at(place))?, tag))
    }
}

/// Where the frames of a segment begin.
pub(crate) const SEGMENT_BEGIN_BYTES: u64 = HEADER_BYTES as u64;

/// One entry of a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry<'a> {
    /// Its sequence number.
    pub(crate) seq: Seq,
    /// Put or delete.
    pub(crate) kind: Kind,
    /// The key.
    pub(crate) key: &'a [u8],
    /// The value; empty for a delete.
    pub(crate) value: &'a [u8],
}

/// Reads the entries of a section whose frames are handed in one by one.
///
/// ```text
/// let mut reader = SectionReader::new(key, &section);
/// for frame in frames {
///     reader.feed(frame, &place)?;
///     while let Some(entry) = reader.next_entry(&place)? { ... }
/// }
/// reader.finish(&place)?;
/// ```
/// Memory grows with the frames that have arrived of an entry, never with what its head claims.
#[derive(Debug)]
pub(crate) struct SectionReader {
    key: StreamKey,
    section: Section,
    frames_read: u32,
    bytes_read: u64,
    entries_read: u32,
    buffer: Wiped,
    position: usize,
}

impl SectionReader {
    /// For the section that an authentic envelope describes, with the table's key for the segment.
    pub(crate) fn new(key: StreamKey, section: &Section) -> SectionReader {
        SectionReader {
            key,
            section: *section,
            frames_read: 0,
            bytes_read: 0,
            entries_read: 0,
            buffer: Wiped::new(),
            position: 0,
        }
    }

    /// Frames that were not fed yet.
    pub(crate) fn frames_left(&self) -> u32 {
        self.section.frames - self.frames_read
    }

    /// Open the next whole frame. Take all entries out before feeding another.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn feed(&mut self, frame: Vec<u8>, place: &Where<'_>) -> Result<()> {
        if self.frames_left() == 0 {
            return Err(place.tampered("the section has more frames than its envelope says"));
        }
        let last = self.frames_left() == 1;
        let ordinal = self.section.first_ordinal.saturating_add(u64::from(self.frames_read));
        let frame_bytes = frame.len() as u64;
        let tag = frame.last_chunk::<TAG_BYTES>().copied();
        let body = open_journal_frame(&self.key, FrameKind::Section, last, ordinal, frame, place)?.into_inner();
        if last && tag != Some(self.section.tag) {
            return Err(place.tampered("the section's last tag is not the one its envelope names"));
        }
        self.frames_read += 1;
        self.bytes_read += frame_bytes;
        if self.position == self.buffer.len() {
            self.buffer = body;
        } else {
            let rest = std::mem::take(&mut self.buffer);
            let rest_bytes = rest.len();
            self.buffer = rest.window(self.position..rest_bytes).unwrap_or_default();
            self.buffer.extend_from_slice(&body);
        }
        self.position = 0;
        Ok(())
    }

    /// The next entry, or `None` until another frame is fed.
    ///
    /// # Errors
    /// [`Error::Tampered`] or [`Error::UnknownVersion`] for authentic bytes that are no entries.
    pub(crate) fn next_entry(&mut self, place: &Where<'_>) -> Result<Option<Entry<'_>>> {
        let rest = &self.buffer[self.position..];
        let Some(entry_len) = entry_len(rest, self.frames_left() == 0).map_err(|refusal| refusal.at(place))? else {
            return Ok(None);
        };
        let seq = self.section.first_seq.advanced(u64::from(self.entries_read));
        let (Some(seq), true) = (seq, self.entries_read < self.section.entries) else {
            return Err(Refusal::Malformed.at(place));
        };
        self.entries_read += 1;
        let start = self.position;
        self.position += entry_len;
        let (head, mut reader) =
            decode_entry_head(&self.buffer[start..start + entry_len]).map_err(|refusal| refusal.at(place))?;
        let mut take = |len| reader.bytes(len).map_err(|refusal: Refusal| refusal.at(place));
        Ok(Some(Entry { seq, kind: head.kind, key: take(head.key_bytes)?, value: take(head.value_bytes)? }))
    }

    /// That the section was read to its end and is as long as its envelope says.
    ///
    /// # Errors
    /// [`Error::Tampered`].
    pub(crate) fn finish(self, place: &Where<'_>) -> Result<()> {
        let whole = self.frames_left() == 0
            && self.position == self.buffer.len()
            && self.entries_read == self.section.entries
            && self.bytes_read == self.section.len_bytes;
        if whole { Ok(()) } else { Err(Refusal::Malformed.at(place)) }
    }
}

/// What stands before an entry's key.
struct EntryHead {
    kind: Kind,
    key_bytes: usize,
    value_bytes: usize,
}

/// Bytes of the entry at the front of `bytes`; `None` if it does not end within them, unless nothing else is to `come`.
fn entry_len(bytes: &[u8], complete: bool) -> Decoded<Option<usize>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let head = match decode_entry_head(bytes) {
        // A head that breaks off goes on in the next frame; one with room for everything is just wrong.
        Err(Refusal::Malformed) if !complete && bytes.len() < ENTRY_HEAD_BYTES_MAX => return Ok(None),
        decoded => decoded?,
    };
    let (head, rest) = (head.0, head.1.remaining());
    let entry_bytes = bytes.len() - rest + head.key_bytes + head.value_bytes;
    if entry_bytes <= bytes.len() {
        Ok(Some(entry_bytes))
    } else if complete {
        Err(Refusal::Malformed)
    } else {
        Ok(None)
    }
}

fn decode_entry_head(bytes: &[u8]) -> Decoded<(EntryHead, Reader<'_>)> {
    let mut reader = Reader::new(bytes);
    let kind = decode_number(&mut reader, "kind of log entry", |number| match Kind::from_u8(number) {
        Some(kind @ (Kind::Put | Kind::Delete)) => Some(kind),
        _ => None,
    })?;
    let key_bytes = bounded(reader.varint()?, 1, KEY_BYTES_MAX)?;
    let value_bytes = if kind == Kind::Put { bounded(reader.varint()?, 0, VALUE_BYTES_MAX)? } else { 0 };
    Ok((EntryHead { kind, key_bytes, value_bytes }, reader))
}

fn bounded(value: u64, min: usize, max: usize) -> Decoded<usize> {
    let value = usize::try_from(value).map_err(|_| Refusal::Malformed)?;
    require((min..=max).contains(&value))?;
    Ok(value)
}

#[cfg(test)]
mod tests;
