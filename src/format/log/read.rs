//! Reading segments: envelopes with the system key, the entries of a section with its table's.

use super::{ENTRY_HEAD_BYTES_MAX, Envelope, Section};
use crate::crypto::{Authentic, StreamKey, Suite, TAG_BYTES, TableKey, Tag, Wiped};
use crate::error::Result;
use crate::format::codec::{Decoded, Reader, Refusal, Where, require};
use crate::format::frame::{
    Expected, FileHeader, FrameKind, HEADER_BYTES, JOURNAL_OVERHEAD_BYTES, JournalHead, decode_number,
    open_journal_frame,
};
use crate::types::{KEY_BYTES_MAX, Kind, Seq, VALUE_BYTES_MAX};

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
        let envelope = bytes.try_map(|bytes| Envelope::decode(&bytes, head.ordinal));
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
/// Memory grows with the frames that are there of an entry, never with what its head claims.
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
            let mut rest = rest.window(self.position..rest_bytes).unwrap_or_default();
            // Room for all of the entry at once: growing by and by, a value of 512 MiB would be there twice.
            rest.reserve(self.room_for(&rest, body.len()));
            rest.extend_from_slice(&body);
            self.buffer = rest;
        }
        self.position = 0;
        Ok(())
    }

    /// How much more the entry that begins with `rest` takes, of which `arrived` bytes are there: never more than the section still has, by the
    /// word of its envelope.
    fn room_for(&self, rest: &[u8], arrived: usize) -> usize {
        let read_bytes = self.bytes_read - u64::from(self.frames_read) * JOURNAL_OVERHEAD_BYTES as u64;
        let to_come = usize::try_from(self.section.raw_bytes().saturating_sub(read_bytes)).unwrap_or(0);
        let missing = match decode_entry_head(rest) {
            Ok((head, left)) => (head.key_bytes + head.value_bytes).saturating_sub(left.remaining()),
            Err(_) => 0,
        };
        missing.clamp(arrived, arrived + to_come)
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
pub(super) fn entry_len(bytes: &[u8], complete: bool) -> Decoded<Option<usize>> {
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
