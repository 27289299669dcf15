//! Reading the log back after a crash: what is there, where it ends, and why.
//!
//! Walks envelopes with the system key alone. Sections are indexed and checked against their checksums and tags, and left
//! sealed: a table opens its own when it is first used ([`entries`]).
//!
//! # Where the log ends
//! At the first *hole*: a group of which a byte is missing or does not match its checksum. What a crash or a power
//! cut leaves looks so, and so does damage. They are told apart by what is behind the hole: any authentic envelope that says
//! that the log was durable past the hole makes it damage ([`Error::LogDamaged`]), and so does the manifest if it says where a segment ends
//! or how far the log was durable. Otherwise nothing behind the hole was ever acknowledged as durable, and it is discarded.
//!
//! Bytes that match their checksum but not their tag were not torn: that is [`Error::Tampered`], wherever they lie.
//! Nothing is changed here. What was decided becomes durable in the manifest before the first new commit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::crypto::{Salt, StreamKey, TAG_BYTES, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::frame::{Expected, FrameKind, JOURNAL_HEAD_BYTES, JournalHead, next_head_within};
use crate::format::log::{Envelope, LogPoint, SEGMENT_BEGIN_BYTES, Section, SectionReader, SegmentOpener};
use crate::format::{FileName, Where};
use crate::io::File;
use crate::io::directory::{Directory, refused};
use crate::keys::KeySet;
use crate::types::{Epoch, FRAME_BYTES_MAX, FileKind, FileNumber, Generation, Kind, Seq, Slot, TableId};

/// Bytes of a segment that are in memory at a time.
const WINDOW_BYTES: usize = 2 * FRAME_BYTES_MAX;

/// A live segment, as the manifest knows it.
#[derive(Clone, Copy)]
pub(crate) struct SegmentInput {
    pub number: FileNumber,
    pub salt: Salt,
    /// Length and last tag, where a recovery or a clean close has decided them.
    pub end: Option<(u64, Tag)>,
}

/// Where a section lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SectionRef {
    pub segment: FileNumber,
    pub offset_bytes: u64,
    pub section: Section,
}

/// What the log holds.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// Each table's sections in order.
    pub sections: HashMap<Slot, Vec<SectionRef>>,
    /// Where the log ends, unless it has no segment.
    pub end: LogPoint,
    /// Tag of the last envelope before that; zeros if there is none.
    pub last_tag: Tag,
    /// The last sequence number in it.
    pub last_seq: Seq,
    /// The highest epoch that an envelope names.
    pub epoch: Epoch,
    /// Where each segment that counts ends, and the tag of the last envelope up to there.
    pub ends: BTreeMap<FileNumber, (u64, Tag)>,
    /// Segments wholly behind the end.
    pub discarded_segments: Vec<FileNumber>,
    /// Bytes behind the end.
    pub discarded_bytes: u64,
}

/// Read the segments, oldest first. `attested` is how far the manifest says that the log was durable; after a clean close
/// (`closed`) there may be no hole at all.
pub(crate) fn replay(
    dir: &Directory,
    system: &KeySet,
    segments: &[SegmentInput],
    attested: LogPoint,
    closed: bool,
) -> Result<Replayed> {
    let mut walk = Walk { found: Replayed::default(), attested, previous: None, blank: false, hole: None };
    for input in segments {
        walk.segment(&mut Segment::open(dir, system, input.number, Some(input.salt))?, input.end)?;
    }
    if let Some(hole) = &walk.hole
        && (closed || walk.attested > hole.point)
    {
        return Err(hole.damage());
    }
    // A segment that was cut between two groups has no hole, but ends before what is attested.
    let ends = walk.found.ends.iter().map(|(&segment, &(end_bytes, _))| LogPoint { segment, end_bytes });
    let cut = |end: &LogPoint| end.segment == walk.attested.segment && end.end_bytes < walk.attested.end_bytes;
    if let Some(point) = ends.into_iter().find(cut) {
        return Err(Hole { point }.damage());
    }
    Ok(walk.found)
}

/// The highest epoch that an authentic envelope names in a segment that the manifest does not know. What cannot be read
/// attests nothing.
pub(crate) fn highest_epoch(dir: &Directory, system: &KeySet, number: FileNumber) -> Epoch {
    let mut walk =
        Walk { found: Replayed::default(), attested: LogPoint::default(), previous: None, blank: false, hole: None };
    if let Ok(mut segment) = Segment::open(dir, system, number, None) {
        let _ = walk.search(&mut segment, SEGMENT_BEGIN_BYTES);
    }
    walk.found.epoch
}

struct Walk {
    found: Replayed,
    attested: LogPoint,
    /// Tag of the last envelope; unknown before the first.
    previous: Option<Tag>,
    /// Whether a segment was passed that has no group, though nobody decided that it ends there.
    blank: bool,
    hole: Option<Hole>,
}

/// Where the log breaks off.
struct Hole {
    point: LogPoint,
}

impl Hole {
    fn damage(&self) -> Error {
        Error::LogDamaged { file: FileName::Log(self.point.segment).path(), offset_bytes: self.point.end_bytes }
    }
}

/// Why a group could not be taken.
enum Refusal {
    /// Bytes are missing or do not match their checksum.
    Hole,
    /// Anything that no crash leaves behind.
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::BitRot { .. } => Refusal::Hole,
            error => Refusal::Error(error),
        }
    }
}

impl Walk {
    fn segment(&mut self, segment: &mut Segment, end: Option<(u64, Tag)>) -> Result<()> {
        if self.hole.is_some() {
            self.found.discarded_segments.push(segment.number);
            self.found.discarded_bytes += segment.len_bytes.saturating_sub(SEGMENT_BEGIN_BYTES);
            return self.search(segment, SEGMENT_BEGIN_BYTES);
        }
        let limit = end.map_or(segment.len_bytes, |(end_bytes, _)| end_bytes);
        let mut place = Place { offset: SEGMENT_BEGIN_BYTES, ordinal: 0 };
        let mut hole = limit > segment.len_bytes;
        while place.offset < limit && !hole {
            match self.group(segment, place, limit) {
                Ok(next) => place = next,
                Err(Refusal::Hole) => hole = true,
                Err(Refusal::Error(error)) => return Err(error),
            }
        }
        let point = LogPoint { segment: segment.number, end_bytes: place.offset };
        if let Some((end_bytes, tag)) = end {
            // Somebody decided where this segment ends, after making that much durable.
            let whole = place.offset == end_bytes && self.previous.is_none_or(|previous| previous == tag);
            if hole || !whole {
                return Err(Hole { point }.damage());
            }
        }
        // A segment whose first group does not go on where the one before ended leaves no trace of its own.
        let Some(broken) = self.hole.as_ref().map(|hole| hole.point) else {
            self.found.ends.insert(segment.number, (place.offset, self.previous.unwrap_or_default()));
            self.found.end = point;
            self.blank |= end.is_none() && place.offset == SEGMENT_BEGIN_BYTES;
            if hole {
                self.hole = Some(Hole { point });
                self.found.discarded_bytes += segment.len_bytes - place.offset;
                self.search(segment, place.offset)?;
            }
            return Ok(());
        };
        debug_assert!(broken.segment < segment.number);
        self.found.discarded_segments.push(segment.number);
        self.found.discarded_bytes += segment.len_bytes.saturating_sub(SEGMENT_BEGIN_BYTES);
        self.search(segment, SEGMENT_BEGIN_BYTES)
    }

    /// Take the group at `place`; where the next one begins.
    fn group(&mut self, segment: &mut Segment, place: Place, limit: u64) -> Result<Place, Refusal> {
        let (envelope, head, tag) = segment.envelope(place.offset, limit)?;
        let at = segment.at(place.offset);
        if head.ordinal != place.ordinal {
            return Err(Refusal::Error(at.tampered("a group of the log is missing before this one")));
        }
        // A segment is begun only when the one before is full, so one without a group, behind which there are groups, has
        // lost them all.
        let follows = self.previous.map_or(!self.blank, |previous| envelope.previous == previous);
        if !follows {
            if place.ordinal > 0 {
                return Err(Refusal::Error(at.tampered("an envelope does not follow the one before it")));
            }
            // The end of the segment before is missing.
            self.hole = Some(Hole { point: self.found.end });
            return Err(Refusal::Hole);
        }
        if envelope.sections.iter().any(|section| section.first_seq <= self.found.last_seq) {
            return Err(Refusal::Error(at.tampered("sequence numbers do not rise")));
        }
        let mut next = Place { offset: place.offset + head.frame_bytes(), ordinal: place.ordinal + 1 };
        let mut refs = Vec::with_capacity(envelope.sections.len());
        for section in &envelope.sections {
            refs.push(SectionRef { segment: segment.number, offset_bytes: next.offset, section: *section });
            segment.check_section(section, next.offset, limit)?;
            next.offset += section.len_bytes;
            next.ordinal += u64::from(section.frames);
        }
        for section in refs {
            self.found.sections.entry(section.section.slot).or_default().push(section);
        }
        self.found.last_seq = self.found.last_seq.max(envelope.last_seq().unwrap_or(Seq::ZERO));
        self.found.last_tag = tag;
        self.previous = Some(tag);
        self.attest(&envelope);
        Ok(next)
    }

    fn attest(&mut self, envelope: &Envelope) {
        self.attested = self.attested.max(envelope.synced);
        self.found.epoch = self.found.epoch.max(envelope.epoch);
    }

    /// Look for authentic envelopes from `from` on, for what they attest.
    fn search(&mut self, segment: &mut Segment, from: u64) -> Result<()> {
        let mut offset = from;
        while offset < segment.len_bytes {
            let Some((found, head)) = segment.next_head(offset)? else { return Ok(()) };
            offset = found + 1;
            if head.kind == FrameKind::Envelope
                && let Ok((envelope, _, _)) = segment.envelope(found, segment.len_bytes)
            {
                self.attest(&envelope);
                offset = found + head.frame_bytes();
            }
        }
        Ok(())
    }
}

/// Where a group begins.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    ordinal: u64,
}

/// A segment that is being read, through a window.
struct Segment {
    number: FileNumber,
    name: String,
    file: Arc<dyn File>,
    len_bytes: u64,
    opener: SegmentOpener,
    window_start: u64,
    window: Vec<u8>,
}

impl Segment {
    fn open(dir: &Directory, system: &KeySet, number: FileNumber, salt: Option<Salt>) -> Result<Segment> {
        let name = FileName::Log(number).path();
        let file = dir.open(&name)?;
        let len_bytes = file.len_bytes().map_err(|error| refused("measure", &name, error))?;
        let place = Where::new(&name, 0);
        if len_bytes < SEGMENT_BEGIN_BYTES {
            return Err(place.bit_rot("the file is shorter than its header"));
        }
        let mut header = vec![0; SEGMENT_BEGIN_BYTES as usize];
        file.read_exact_at(&mut header, 0).map_err(|error| refused("read", &name, error))?;
        let expected = Expected { kind: FileKind::Log, number, subject: TableId::SYSTEM, suite: None, salt };
        let opener = SegmentOpener::open(&header, system.opening(&header, &place)?, &expected, &place)?;
        Ok(Segment { number, name, file, len_bytes, opener, window_start: 0, window: Vec::new() })
    }

    fn at(&self, offset_bytes: u64) -> Where<'_> {
        Where::new(&self.name, offset_bytes)
    }

    /// `len` bytes at `offset`; a hole if they are not all before `limit`.
    fn bytes(&mut self, offset: u64, len: u64, limit: u64) -> Result<&[u8]> {
        if offset.checked_add(len).is_none_or(|end| end > limit.min(self.len_bytes)) || len > FRAME_BYTES_MAX as u64 {
            return Err(self.at(offset).bit_rot("the frame is cut off"));
        }
        let in_window = offset >= self.window_start && offset + len <= self.window_start + self.window.len() as u64;
        if !in_window {
            self.fill(offset)?;
        }
        let start = (offset - self.window_start) as usize;
        Ok(&self.window[start..start + len as usize])
    }

    fn fill(&mut self, offset: u64) -> Result<()> {
        let len = (self.len_bytes - offset).min(WINDOW_BYTES as u64) as usize;
        self.window.resize(len, 0);
        self.window_start = offset;
        self.file.read_exact_at(&mut self.window, offset).map_err(|error| refused("read", &self.name, error))
    }

    /// The journal frame at `offset`, checked against its checksums.
    fn frame(&mut self, offset: u64, limit: u64) -> Result<(JournalHead, &[u8])> {
        let head = self.bytes(offset, JOURNAL_HEAD_BYTES as u64, limit)?.to_vec();
        let head = JournalHead::decode(&head, &self.at(offset))?;
        let name = self.name.clone();
        let frame = self.bytes(offset, head.frame_bytes(), limit)?;
        head.check_crc(frame, &Where::new(&name, offset))?;
        Ok((head, frame))
    }

    fn envelope(&mut self, offset: u64, limit: u64) -> Result<(Envelope, JournalHead, Tag)> {
        let (head, frame) = self.frame(offset, limit)?;
        let frame = frame.to_vec();
        if head.kind != FrameKind::Envelope {
            return Err(self.at(offset).tampered("there is no envelope where a group begins"));
        }
        let (envelope, tag) = self.opener.open_envelope(frame, &self.at(offset))?;
        Ok((envelope.into_inner(), head, tag))
    }

    /// That all frames of a section are there, with the key of nobody but the system.
    fn check_section(&mut self, section: &Section, start: u64, limit: u64) -> Result<()> {
        let mut offset = start;
        let mut last_tag = None;
        for index in 0..section.frames {
            let (head, frame) = self.frame(offset, limit)?;
            last_tag = frame.last_chunk::<TAG_BYTES>().copied();
            if head.kind != FrameKind::Section || head.ordinal != section.first_ordinal + u64::from(index) {
                return Err(self.at(offset).tampered("a section's frame is not where its envelope says"));
            }
            offset += head.frame_bytes();
        }
        if last_tag != Some(section.tag) || offset - start != section.len_bytes {
            return Err(self.at(start).tampered("a section is not the one that its envelope names"));
        }
        Ok(())
    }

    /// The next offset at or after `from` where a head with a right checksum stands.
    fn next_head(&mut self, from: u64) -> Result<Option<(u64, JournalHead)>> {
        let mut start = from;
        while start < self.len_bytes {
            self.fill(start)?;
            let window_len = self.window.len() as u64;
            if let Some((offset, head)) = next_head_within(&self.window, 0, self.len_bytes - start) {
                return Ok(Some((start + offset as u64, head)));
            }
            // The last bytes may be the front of a head that goes on behind the window.
            let step = window_len.saturating_sub(JOURNAL_HEAD_BYTES as u64 - 1);
            if step == 0 || start + window_len >= self.len_bytes {
                return Ok(None);
            }
            start += step;
        }
        Ok(None)
    }
}

/// Takes an entry: its segment, sequence number, kind, key and value.
pub(crate) type Visit<'a> = dyn FnMut(FileNumber, Seq, Kind, &[u8], &[u8]) -> Result<()> + 'a;

/// Open a table's sections in order and hand out their entries that are newer than `after`.
pub(crate) fn entries<'k>(
    dir: &Directory,
    system: &KeySet,
    salts: &dyn Fn(FileNumber) -> Option<Salt>,
    key_of: &dyn Fn(Generation) -> Result<&'k TableKey>,
    sections: &[SectionRef],
    after: Seq,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let mut open: Option<Segment> = None;
    let mut key: Option<(Generation, StreamKey)> = None;
    for part in sections.iter().filter(|part| part.section.last_seq() > after) {
        if open.as_ref().is_none_or(|segment| segment.number != part.segment) {
            let name = FileName::Log(part.segment).path();
            let salt = salts(part.segment).ok_or(Error::MissingFile { file: name })?;
            open = Some(Segment::open(dir, system, part.segment, Some(salt))?);
            key = None;
        }
        let Some(segment) = &mut open else { continue };
        let section = &part.section;
        let stream = match &key {
            Some((generation, stream)) if *generation == section.generation => stream.clone(),
            _ => {
                let stream = segment.opener.table_key(key_of(section.generation)?, section.suite);
                key = Some((section.generation, stream.clone()));
                stream
            }
        };
        let mut reader = SectionReader::new(stream, section);
        let mut offset = part.offset_bytes;
        while reader.frames_left() > 0 {
            let (head, frame) = segment.frame(offset, u64::MAX)?;
            let frame = frame.to_vec();
            let at = segment.at(offset);
            reader.feed(frame, &at)?;
            while let Some(entry) = reader.next_entry(&at)? {
                if entry.seq > after {
                    visit(part.segment, entry.seq, entry.kind, entry.key, entry.value)?;
                }
            }
            offset += head.frame_bytes();
        }
        reader.finish(&segment.at(part.offset_bytes))?;
    }
    Ok(())
}
