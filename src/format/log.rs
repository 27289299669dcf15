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
//!      8     8  first_seq        sequence number of the group's first entry; of the next to come in a sync mark (u64)
//!     16    16  previous         tag of the envelope before, across segments; zeros for a store's first
//!     32     8  synced segment   everything before this point of the log was durable (u64)
//!     40     8  synced end       ... bytes of that segment (u64)
//!     48  32*n  sections         none: a sync mark
//!
//! section, 32 bytes
//!      0     4  slot             the table (u32)
//!      4     4  generation       of the table's key (u32)
//!      8     3  entries          less one (u24)
//!     11     1  suite
//!     12     4  raw_bytes        of all its entries, at least 1 (u32)
//!     16    16  tag              of its last frame
//! ```
//! Every commit has one, so it says nothing twice. A section has as many frames as its bytes need, and is as long as these. Ordinals follow
//! from the envelope's own, sequence numbers from `first_seq`: sections lie, and are numbered, one behind the other. An envelope of one section
//! is 80 bytes, and any is a whole number of AES blocks, since the rest of a block costs more than a block.
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
//! # Why two seals
//! A commit to one table is sealed twice: its entries under the table's key, and what the group consists of under the system key. One seal is
//! not enough, for neither key may do the work of the other. Without the system key's, recovery would have to believe the checksums of sections
//! whose keys it does not have: whose they are, how many sequence numbers they take, and that none was put there. Without the table's, whoever
//! has the system key could write entries that open as the table's, and an erased table key would leave its entries readable.
//!
//! # Groups of any size
//! Section frames leave the buffer as they are sealed, when there are many ([`GroupWriter`]), and the envelope is written last, to the room that was
//! left for it. Until it stands there, a crash has left a hole behind which nothing is attested.
//!
//! # What this part leaves to others
//! Order, durability and where the log ends (`wal`).

mod read;
mod write;

pub(crate) use self::read::{SEGMENT_BEGIN_BYTES, SectionReader, SegmentOpener};
pub(crate) use self::write::{GroupWriter, SegmentSealer};
#[cfg(any(test, fuzzing))]
pub(crate) use self::write::{SectionWriter, keep};

use crate::crypto::{Suite, Tag};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, VARINT_BYTES_MAX, require, varint_bytes};
use crate::format::frame::{JOURNAL_OVERHEAD_BYTES, JOURNAL_PAYLOAD_BYTES_MAX, decode_suite};
use crate::types::{Epoch, FileNumber, Generation, Seq, Slot};

const ENVELOPE_BYTES: usize = 48;
/// Bytes of a section in an envelope.
const LISTED_BYTES: usize = 32;
/// Bytes of a section in the index of parked sections.
pub(crate) const SECTION_BYTES: usize = 64;
/// The most sections that one envelope can list.
pub(crate) const ENVELOPE_SECTIONS_MAX: usize = (JOURNAL_PAYLOAD_BYTES_MAX - ENVELOPE_BYTES) / LISTED_BYTES;
/// The most entries of one section.
const ENTRIES_MAX: u32 = 1 << 24;
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

    /// Bytes of its entries.
    fn raw_bytes(&self) -> u64 {
        self.len_bytes - u64::from(self.frames) * JOURNAL_OVERHEAD_BYTES as u64
    }

    /// What an envelope says of it.
    fn list(&self) -> [u8; LISTED_BYTES] {
        let mut out = [0; LISTED_BYTES];
        out[..4].copy_from_slice(&self.slot.0.to_le_bytes());
        out[4..8].copy_from_slice(&self.generation.0.to_le_bytes());
        out[8..11].copy_from_slice(&(self.entries - 1).to_le_bytes()[..3]);
        out[11] = self.suite as u8;
        out[12..16].copy_from_slice(&(self.raw_bytes() as u32).to_le_bytes());
        out[16..].copy_from_slice(&self.tag);
        out
    }

    /// The section that an envelope lists so, behind everything up to this sequence number and ordinal.
    fn listed(reader: &mut Reader<'_>, first_seq: Seq, first_ordinal: u64) -> Decoded<Section> {
        let slot = Slot(reader.u32()?);
        let generation = Generation(reader.u32()?);
        let [low, middle, high] = reader.array()?;
        let entries = u32::from_le_bytes([low, middle, high, 0]) + 1;
        let suite = decode_suite(reader)?;
        let raw_bytes = u64::from(reader.u32()?);
        let tag = reader.array()?;
        require(raw_bytes >= 1 && first_seq.advanced(u64::from(entries) - 1).is_some())?;
        // At most 2^32 bytes are a few thousand frames.
        let frames = section_frames(raw_bytes) as u32;
        require(first_ordinal.checked_add(u64::from(frames)).is_some())?;
        let len_bytes = section_disk_bytes(raw_bytes);
        Ok(Section { slot, generation, suite, first_seq, entries, first_ordinal, frames, len_bytes, tag })
    }

    /// The section as the index of parked sections lists it.
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
        JOURNAL_OVERHEAD_BYTES + ENVELOPE_BYTES + LISTED_BYTES * sections
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

    /// What stands before the sections.
    fn head(epoch: Epoch, first_seq: Seq, previous: &Tag, synced: LogPoint) -> [u8; ENVELOPE_BYTES] {
        let mut out = [0; ENVELOPE_BYTES];
        out[..8].copy_from_slice(&epoch.0.to_le_bytes());
        out[8..16].copy_from_slice(&first_seq.get().to_le_bytes());
        out[16..32].copy_from_slice(previous);
        out[32..40].copy_from_slice(&synced.segment.0.to_le_bytes());
        out[40..].copy_from_slice(&synced.end_bytes.to_le_bytes());
        out
    }

    /// The plaintext of the envelope.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Envelope::head(self.epoch, self.first_seq, &self.previous, self.synced).to_vec();
        self.sections.iter().for_each(|section| out.put(&section.list()));
        out
    }

    /// Read the plaintext of the envelope whose frame has this ordinal.
    pub(crate) fn decode(bytes: &[u8], ordinal: u64) -> Decoded<Envelope> {
        let mut reader = Reader::new(bytes);
        let epoch = Epoch(reader.u64()?);
        let first_seq = decode_seq(&mut reader)?;
        let previous = reader.array()?;
        let synced = LogPoint { segment: FileNumber(reader.u64()?), end_bytes: reader.u64()? };
        require(reader.remaining().is_multiple_of(LISTED_BYTES))?;
        let mut sections: Vec<Section> = Vec::with_capacity(reader.remaining() / LISTED_BYTES);
        let (mut next_seq, mut next_ordinal) = (Some(first_seq), ordinal.checked_add(1));
        while reader.remaining() > 0 {
            let (seq, first) = (next_seq.ok_or(Refusal::Malformed)?, next_ordinal.ok_or(Refusal::Malformed)?);
            let section = Section::listed(&mut reader, seq, first)?;
            next_seq = seq.advanced(u64::from(section.entries));
            next_ordinal = first.checked_add(u64::from(section.frames));
            sections.push(section);
        }
        Ok(Envelope { epoch, first_seq, previous, synced, sections })
    }
}

fn check_sections(count: usize) -> Result<()> {
    if count <= ENVELOPE_SECTIONS_MAX {
        return Ok(());
    }
    let limit = ENVELOPE_SECTIONS_MAX as u64;
    Err(Error::LimitExceeded { what: "tables in one group of commits", limit, actual: count as u64 })
}

/// Bytes of one entry in a section's plaintext; `None` stands for a delete.
#[inline]
pub(crate) fn entry_bytes(key_bytes: usize, value_bytes: Option<usize>) -> u64 {
    let value = value_bytes.map_or(0, |len| varint_bytes(len as u64) + len);
    (1 + varint_bytes(key_bytes as u64) + key_bytes + value) as u64
}

/// Frames of a section whose entries are this many bytes long.
#[inline]
pub(crate) const fn section_frames(raw_bytes: u64) -> u64 {
    raw_bytes.div_ceil(JOURNAL_PAYLOAD_BYTES_MAX as u64)
}

/// Bytes on disk of a section whose entries are this many bytes long.
#[inline]
pub(crate) const fn section_disk_bytes(raw_bytes: u64) -> u64 {
    raw_bytes + section_frames(raw_bytes) * JOURNAL_OVERHEAD_BYTES as u64
}

#[cfg(test)]
mod tests;
