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
//! A segment may be longer than what was written to it: room is reserved in zeros, so that a sync need not write down a new
//! length. Zeros up to the end of the file therefore are no hole: the segment ends before them, as one does that was cut there.
//!
//! Bytes that match their checksum but not their tag were not torn: that is [`Error::Tampered`], wherever they lie.
//! Nothing is changed here. What was decided becomes durable in the manifest before the first new commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::window::Window;
use crate::crypto::{Salt, StreamKey, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::frame::{Expected, FrameKind, JournalHead};
use crate::format::log::{Envelope, LogPoint, SEGMENT_BEGIN_BYTES, Section, SectionReader, SegmentOpener};
use crate::io::directory::Directory;
use crate::keys::KeySet;
use crate::types::{Epoch, FileKind, FileNumber, Generation, Kind, Seq, Slot, TableId};

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
    let mut walk = Walk { closed, ..Walk::new(attested) };
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
    let mut walk = Walk::new(LogPoint::default());
    if let Ok(mut segment) = Segment::open(dir, system, number, None) {
        let _ = walk.search(&mut segment, SEGMENT_BEGIN_BYTES);
    }
    walk.found.epoch
}

struct Walk<'a> {
    found: Replayed,
    /// The tables whose sections are collected, if not all.
    only: Option<&'a BTreeSet<Slot>>,
    attested: LogPoint,
    /// After a clean close no segment is longer than what is in it.
    closed: bool,
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

impl Walk<'_> {
    fn new(attested: LogPoint) -> Self {
        Walk {
            found: Replayed::default(),
            only: None,
            attested,
            closed: false,
            previous: None,
            blank: false,
            hole: None,
        }
    }

    fn segment(&mut self, segment: &mut Segment, end: Option<(u64, Tag)>) -> Result<()> {
        if self.hole.is_some() {
            self.found.discarded_segments.push(segment.number);
            self.found.discarded_bytes += segment.window.len_bytes.saturating_sub(SEGMENT_BEGIN_BYTES);
            return self.search(segment, SEGMENT_BEGIN_BYTES);
        }
        let limit = end.map_or(segment.window.len_bytes, |(end_bytes, _)| end_bytes);
        let mut place = Place { offset: SEGMENT_BEGIN_BYTES, ordinal: 0 };
        let mut hole = limit > segment.window.len_bytes;
        while place.offset < limit && !hole {
            match self.group(segment, place, limit) {
                Ok(next) => place = next,
                Err(Refusal::Hole) => {
                    hole = true;
                    if end.is_none() && !self.closed && segment.window.is_zero_from(place.offset)? {
                        // Room that nothing was written to yet, or nothing that was kept: as if the file ended here.
                        segment.window.len_bytes = place.offset;
                        hole = false;
                        break;
                    }
                }
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
                self.found.discarded_bytes += segment.window.len_bytes - place.offset;
                self.search(segment, place.offset)?;
            }
            return Ok(());
        };
        debug_assert!(broken.segment < segment.number);
        self.found.discarded_segments.push(segment.number);
        self.found.discarded_bytes += segment.window.len_bytes.saturating_sub(SEGMENT_BEGIN_BYTES);
        self.search(segment, SEGMENT_BEGIN_BYTES)
    }

    /// Take the group at `place`; where the next one begins.
    fn group(&mut self, segment: &mut Segment, place: Place, limit: u64) -> Result<Place, Refusal> {
        let (envelope, head, tag) = segment.envelope(place.offset, limit)?;
        let at = segment.window.at(place.offset);
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
            segment.window.check_section(section, next.offset, limit)?;
            next.offset += section.len_bytes;
            next.ordinal += u64::from(section.frames);
        }
        let wanted = |part: &SectionRef| self.only.is_none_or(|only| only.contains(&part.section.slot));
        for section in refs.into_iter().filter(wanted) {
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
        while offset < segment.window.len_bytes {
            let Some((found, head)) = segment.window.next_head(offset)? else { return Ok(()) };
            offset = found + 1;
            if head.kind == FrameKind::Envelope
                && let Ok((envelope, _, _)) = segment.envelope(found, segment.window.len_bytes)
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

/// A segment that is being read.
struct Segment {
    number: FileNumber,
    window: Window,
    opener: SegmentOpener,
}

impl Segment {
    fn open(dir: &Directory, system: &KeySet, number: FileNumber, salt: Option<Salt>) -> Result<Segment> {
        let mut window = Window::open(dir, FileName::Log(number).path())?;
        let header = window.header()?;
        let expected = Expected { kind: FileKind::Log, number, subject: TableId::SYSTEM, suite: None, salt };
        let opener = SegmentOpener::open(&header, system.opening(&header, &window.at(0))?, &expected, &window.at(0))?;
        Ok(Segment { number, window, opener })
    }

    fn envelope(&mut self, offset: u64, limit: u64) -> Result<(Envelope, JournalHead, Tag)> {
        let (head, frame) = self.window.frame(offset, limit)?;
        let frame = frame.to_vec();
        let at = self.window.at(offset);
        if head.kind != FrameKind::Envelope {
            return Err(at.tampered("there is no envelope where a group begins"));
        }
        self.window.meters.opened(FileKind::Log, 1, frame.len() as u64);
        let (envelope, tag) = self.opener.open_envelope(frame, &at)?;
        Ok((envelope.into_inner(), head, tag))
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
        let visit = &mut |seq, kind, key: &[u8], value: &[u8]| visit(part.segment, seq, kind, key, value);
        section_entries(&mut segment.window, part.offset_bytes, section, stream, after, visit)?;
    }
    Ok(())
}

/// Takes an entry of one section: sequence number, kind, key and value.
pub(super) type VisitEntry<'a> = dyn FnMut(Seq, Kind, &[u8], &[u8]) -> Result<()> + 'a;

/// Open the section that lies at `start`, and hand out its entries that are newer than `after`.
pub(super) fn section_entries(
    window: &mut Window,
    start: u64,
    section: &Section,
    key: StreamKey,
    after: Seq,
    visit: &mut VisitEntry<'_>,
) -> Result<()> {
    let mut reader = SectionReader::new(key, section);
    let mut offset = start;
    while reader.frames_left() > 0 {
        let (head, frame) = window.frame(offset, u64::MAX)?;
        let frame = frame.to_vec();
        let at = window.at(offset);
        window.meters.opened(FileKind::Log, 1, frame.len() as u64);
        reader.feed(frame, &at)?;
        while let Some(entry) = reader.next_entry(&at)? {
            if entry.seq > after {
                visit(entry.seq, entry.kind, entry.key, entry.value)?;
            }
        }
        offset += head.frame_bytes();
    }
    reader.finish(&window.at(start))
}

/// The sections of some tables in segments that are known to be whole, each up to an end that is known too, oldest segment first.
/// What was read back once, or written since, has no hole: one is [`Error::LogDamaged`].
pub(crate) fn sections_of(
    dir: &Directory,
    system: &KeySet,
    segments: &[KnownSegment],
    tables: &BTreeSet<Slot>,
) -> Result<HashMap<Slot, Vec<SectionRef>>> {
    let mut walk = Walk { only: Some(tables), ..Walk::new(LogPoint::default()) };
    for known in segments {
        let mut segment = Segment::open(dir, system, known.number, Some(known.salt))?;
        let mut place = Place { offset: SEGMENT_BEGIN_BYTES, ordinal: 0 };
        while place.offset < known.end_bytes {
            place = match walk.group(&mut segment, place, known.end_bytes) {
                Ok(next) => next,
                Err(Refusal::Error(error)) => return Err(error),
                Err(Refusal::Hole) => {
                    let point = LogPoint { segment: known.number, end_bytes: place.offset };
                    return Err(Hole { point }.damage());
                }
            };
        }
    }
    Ok(walk.found.sections)
}

/// A segment of which it is known where it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownSegment {
    pub number: FileNumber,
    pub salt: Salt,
    pub end_bytes: u64,
}
