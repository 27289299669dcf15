//! Parked sections: what the log held of a table whose key is refused, in a file of its own.
//!
//! A segment of the log must go some day, and a table's sections in it cannot be brought into sorted tables while the table's key is
//! not to be had. So they are carried out as they are, still sealed under the table's key for *that segment*.
//!
//! ```text
//! header | index 0 | index 1 | section frame | section frame | ... | end
//!          '-- system key --'  '-- the table's key, as in the log --'  system key
//! ```
//! The header names the table as its subject. Index and end are journal frames with ordinals 0, 1, 2, ... of this file, sealed under the
//! system key; section frames keep the ordinals that they had in their segment. Whose they are, and whether all are there, can so be checked
//! with the system key alone.
//!
//! ```text
//! index
//! offset  size  field
//!      0     8  segment     that the sections were written to (u64)
//!      8    32  salt        of that segment
//!     40     4  sections    listed here, at least 1 (u32)
//!     44     1  more        1: another index frame follows
//!     45     3  reserved    zero
//!     48  64*n  sections    as the envelope listed them (log.rs); sequence numbers and ordinals rise over all index frames
//!
//! end
//! offset  size  field
//!      0     8  sections    in the file (u64)
//!      8     8  frames      of these sections (u64)
//!     16     8  len_bytes   of the whole file, this frame included (u64)
//! ```
//!
//! # What attests what
//! The manifest pins the file's number, table, salt, length and last tag. The index pins each section by its ordinals, length and last
//! tag, as its envelope did, so a section that is missing, cut, repeated or another's is noticed without the table's key. And a section
//! opens only at its ordinal of its segment under its table's key, which is why it can be carried without being opened: *place* never was a
//! byte offset.

use crate::crypto::{Authentic, Salt, Suite, TAG_BYTES, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, Where, require};
use crate::format::frame::{
    Expected, FileOpener, FileSealer, FrameKind, JOURNAL_OVERHEAD_BYTES, JOURNAL_PAYLOAD_BYTES_MAX,
};
use crate::format::log::{SECTION_BYTES, Section};
use crate::io::Entropy;
use crate::types::{FileKind, FileNumber, Seq, TableId};

const INDEX_HEAD_BYTES: usize = 48;
const END_BYTES: usize = 24;
/// The most sections that one index frame lists.
const INDEX_SECTIONS_MAX: usize = (JOURNAL_PAYLOAD_BYTES_MAX - INDEX_HEAD_BYTES) / SECTION_BYTES;

/// The segment that sections were written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    /// Its number.
    pub(crate) segment: FileNumber,
    /// Its salt, which the table's key for it comes from.
    pub(crate) salt: Salt,
}

/// One frame of the index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct IndexPiece {
    /// The segment that all of the file's sections were written to.
    pub(crate) origin: Origin,
    /// In the order in which they lie in the file.
    pub(crate) sections: Vec<Section>,
    /// Whether another index frame follows.
    pub(crate) more: bool,
}

impl IndexPiece {
    /// The plaintext of the frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(INDEX_HEAD_BYTES + SECTION_BYTES * self.sections.len());
        out.put_u64(self.origin.segment.0);
        out.put(self.origin.salt.as_bytes());
        out.put_u32(self.sections.len() as u32);
        out.put_bool(self.more);
        out.put_reserved::<3>();
        self.sections.iter().for_each(|section| section.encode(&mut out));
        out
    }

    /// Read the frame's plaintext.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<IndexPiece> {
        let mut reader = Reader::new(bytes);
        let origin = Origin { segment: FileNumber(reader.u64()?), salt: Salt::from_bytes(reader.array()?) };
        let count = reader.u32()? as usize;
        let more = reader.bool()?;
        reader.reserved::<3>()?;
        require(count >= 1 && count == reader.remaining() / SECTION_BYTES)?;
        let mut sections: Vec<Section> = Vec::with_capacity(count);
        for _ in 0..count {
            let section = Section::decode(&mut reader)?;
            require(sections.last().is_none_or(|before| follows(before, &section)))?;
            sections.push(section);
        }
        reader.finish()?;
        Ok(IndexPiece { origin, sections, more })
    }
}

/// Whether `section` may stand behind `before`: of the same table, and written later.
fn follows(before: &Section, section: &Section) -> bool {
    before.slot == section.slot
        && before.last_seq() < section.first_seq
        && before.first_ordinal + u64::from(before.frames) <= section.first_ordinal
}

/// What the last frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ParkedEnd {
    /// Sections in the file.
    pub(crate) sections: u64,
    /// Frames of these sections.
    pub(crate) frames: u64,
    /// Bytes of the whole file.
    pub(crate) len_bytes: u64,
}

impl ParkedEnd {
    /// The plaintext of the frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(END_BYTES);
        out.put_u64(self.sections);
        out.put_u64(self.frames);
        out.put_u64(self.len_bytes);
        out
    }

    /// Read the frame's plaintext.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<ParkedEnd> {
        let mut reader = Reader::new(bytes);
        let end = ParkedEnd { sections: reader.u64()?, frames: reader.u64()?, len_bytes: reader.u64()? };
        reader.finish()?;
        Ok(end)
    }
}

// ---- writing ---------------------------------------------------------------------------------------------------

/// Writes the frames around the sections of a new file. After an error the file is abandoned.
#[derive(Debug)]
pub(crate) struct ParkedSealer {
    sealer: FileSealer,
    end: ParkedEnd,
}

impl ParkedSealer {
    /// Begin the file of these sections, at least one: append its header and its index to `out`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness; what sealing fails with.
    ///
    /// # Panics
    /// If there are no sections.
    pub(crate) fn create(
        system: &TableKey,
        suite: Suite,
        (number, table): (FileNumber, TableId),
        origin: Origin,
        sections: &[Section],
        entropy: &dyn Entropy,
        out: &mut Vec<u8>,
    ) -> Result<ParkedSealer> {
        assert!(!sections.is_empty(), "a file of parked sections has some");
        debug_assert!(sections.windows(2).all(|pair| follows(&pair[0], &pair[1])), "in the order of the log");
        let mut sealer = FileSealer::create(system, suite, FileKind::Parked, number, table, entropy, out)?;
        let mut pieces = sections.chunks(INDEX_SECTIONS_MAX).peekable();
        while let Some(piece) = pieces.next() {
            let piece = IndexPiece { origin, sections: piece.to_vec(), more: pieces.peek().is_some() };
            sealer.seal_journal(FrameKind::ParkedIndex, &piece.encode(), out)?;
        }
        let sum = |each: fn(&Section) -> u64| sections.iter().map(each).sum::<u64>();
        let section_bytes = sum(|section| section.len_bytes);
        let end = ParkedEnd {
            sections: sections.len() as u64,
            frames: sum(|section| u64::from(section.frames)),
            len_bytes: sealer.len_bytes() + section_bytes + (JOURNAL_OVERHEAD_BYTES + END_BYTES) as u64,
        };
        Ok(ParkedSealer { sealer, end })
    }

    /// The salt of this file.
    pub(crate) fn salt(&self) -> Salt {
        *self.sealer.salt()
    }

    /// End the file, behind its sections: append the last frame to `out`. The result is its tag and the length of the whole file.
    ///
    /// # Errors
    /// What sealing fails with.
    pub(crate) fn finish(mut self, out: &mut Vec<u8>) -> Result<(Tag, u64)> {
        let frame = self.sealer.seal_journal(FrameKind::ParkedEnd, &self.end.encode(), out)?;
        Ok((frame.tag, self.end.len_bytes))
    }
}

// ---- reading ---------------------------------------------------------------------------------------------------

/// Reads the frames around the sections of a file, handed in one by one: index frames first, and at last the end.
#[derive(Debug)]
pub(crate) struct ParkedOpener {
    opener: FileOpener,
    ordinal: u64,
    origin: Option<Origin>,
    sections: Vec<Section>,
    complete: bool,
}

impl ParkedOpener {
    /// For the file that begins with `header`.
    ///
    /// # Errors
    /// Those of [`FileOpener::open`].
    pub(crate) fn open(
        header: &[u8],
        system: &TableKey,
        expected: &Expected,
        place: &Where<'_>,
    ) -> Result<ParkedOpener> {
        let opener = FileOpener::open(header, system, expected, place)?;
        Ok(ParkedOpener { opener, ordinal: 0, origin: None, sections: Vec::new(), complete: false })
    }

    /// Take the next frame of the index; true if it was the last.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn feed_index(&mut self, frame: Vec<u8>, place: &Where<'_>) -> Result<bool> {
        let piece = self.open_index(frame, self.ordinal, place)?.into_inner();
        self.ordinal += 1;
        let goes_on = self.origin.is_none_or(|origin| origin == piece.origin)
            && self.sections.last().is_none_or(|before| follows(before, &piece.sections[0]));
        if !goes_on || self.complete {
            return Err(place.tampered("a frame of the index does not follow the one before it"));
        }
        self.origin = Some(piece.origin);
        self.sections.extend(piece.sections);
        self.complete = !piece.more;
        Ok(self.complete)
    }

    /// What the index frames listed so far.
    pub(crate) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Open one frame of the index, wherever it lies in the file: for those who only look.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn open_index(&self, frame: Vec<u8>, ordinal: u64, place: &Where<'_>) -> Result<Authentic<IndexPiece>> {
        let bytes = self.opener.open_journal(FrameKind::ParkedIndex, ordinal, frame, place)?;
        bytes.try_map(|bytes| IndexPiece::decode(&bytes)).map_err(|refusal: Refusal| refusal.at(place))
    }

    /// Open the last frame, wherever it lies in the file: for those who only look.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn open_end(&self, frame: Vec<u8>, ordinal: u64, place: &Where<'_>) -> Result<Authentic<ParkedEnd>> {
        let bytes = self.opener.open_journal(FrameKind::ParkedEnd, ordinal, frame, place)?;
        bytes.try_map(|bytes| ParkedEnd::decode(&bytes)).map_err(|refusal: Refusal| refusal.at(place))
    }

    /// Take the last frame, which ends at `end_bytes` of the file; the result is what the file holds.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn finish(
        self,
        frame: Vec<u8>,
        pinned: (Tag, u64),
        end_bytes: u64,
        place: &Where<'_>,
    ) -> Result<(Origin, Vec<Section>)> {
        let tag = frame.last_chunk::<TAG_BYTES>().copied();
        let end = self.open_end(frame, self.ordinal, place)?.into_inner();
        let frames = self.sections.iter().map(|section| u64::from(section.frames)).sum::<u64>();
        let whole = self.complete
            && end == ParkedEnd { sections: self.sections.len() as u64, frames, len_bytes: end_bytes }
            && pinned == (tag.unwrap_or_default(), end_bytes);
        match self.origin {
            Some(origin) if whole => Ok((origin, self.sections)),
            _ => Err(place.tampered("the end of the file is not the one that its index and the manifest name")),
        }
    }
}

/// The largest sequence number in these sections.
pub(crate) fn last_seq(sections: &[Section]) -> Seq {
    sections.last().map_or(Seq::ZERO, Section::last_seq)
}

/// What a file is refused with whose length is not the one that the manifest pins.
pub(crate) fn check_len(len_bytes: u64, pinned: u64, place: &Where<'_>) -> Result<(), Error> {
    match len_bytes.cmp(&pinned) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(place.bit_rot("the file is shorter than the manifest says")),
        std::cmp::Ordering::Greater => Err(place.tampered("the file is longer than the manifest says")),
    }
}

#[cfg(test)]
pub(crate) mod tests;
