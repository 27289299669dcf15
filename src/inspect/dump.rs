//! One file, described for a person: what stands in clear, and with keys what is sealed.
//!
//! ```text
//! wal/000012.wal, 4711 bytes
//! @0 header: Log 12, format version 1, Aes256Gcm, ...        the header's fields, its CRC and, with the key, its tag
//! @160 +120 ordinal 0 Envelope: crc ok, opens                one line per frame, and
//!     group: epoch 3, first #18, ...                         what is in it
//! @280 damaged at byte 280: the frame does not match ...     what is wrong, in place
//! ```
//! Damage is described and reading goes on as far as the file lets it: frames of log and manifest are searched for behind a hole, the second
//! copy of a key file begins in its middle, and of a sorted table nothing can be found behind a frame whose length is wrong.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::Write;
use std::sync::Arc;

use super::contents::{self, hex};
use super::{Inspection, Source};
use crate::crypto::{Authentic, StreamKey, Suite, TableKey, Wiped};
use crate::error::{Error, Result};
use crate::format::block::Block;
use crate::format::codec::Refusal;
use crate::format::current::Current;
use crate::format::frame::{
    Expected, FRAME_HEAD_BYTES, FileHeader, FileOpener, FrameHead, FrameKind, HEADER_BYTES, JOURNAL_HEAD_BYTES,
    JournalHead, authenticate_in_clear, next_head_within, read_in_clear,
};
use crate::format::keyfile::KeyFile;
use crate::format::log::{Section, SectionReader, SegmentOpener};
use crate::format::manifest::EditGroup;
use crate::format::parked::{Origin, ParkedOpener};
use crate::format::table::{Footer, Properties, decode_bounds};
use crate::format::{FileName, Where};
use crate::io::directory::Directory;
use crate::keys::{KeyBroker, KeySet, Principal};
use crate::types::{FRAME_BYTES_MAX, FileKind, Kind, Slot, TableId, UserKey};
use crate::version::manifest;
use crate::version::system::{SystemFile, SystemKey};

/// Bytes that are searched at a time for the next frame of a journal.
const SEARCH_BYTES: u64 = 256 << 10;

/// What a [dump](Inspection::dump) shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DumpOptions {
    keys: bool,
}

impl DumpOptions {
    /// Neither keys nor values.
    pub fn new() -> DumpOptions {
        DumpOptions::default()
    }

    /// Whether to show the keys of entries. They are data: who may not read the table must not read them.
    #[must_use]
    pub fn keys(mut self, keys: bool) -> DumpOptions {
        self.keys = keys;
        self
    }
}

pub(super) fn dump(inspection: &Inspection, file: &str, options: &DumpOptions, out: &mut dyn Write) -> Result<()> {
    let dir = inspection.directory();
    let source = Source::open(&dir, file)?;
    let keys = Keys::unlock(inspection, &dir)?;
    let mut dump = Dump { source: &source, keys, show_keys: options.keys, out };
    dump.line(0, format_args!("{file}, {} bytes", source.len_bytes))?;
    dump.file()
}

/// The keys of a store, as far as they were asked for.
struct Keys<'a> {
    dir: &'a Directory,
    broker: KeyBroker,
    system: SystemKey,
    /// Which table a section of the log is of, if the manifest can be read.
    slots: HashMap<Slot, TableId>,
    tables: HashMap<TableId, Result<Arc<KeySet>>>,
}

impl<'a> Keys<'a> {
    /// The keys of the store, if there is a provider.
    fn unlock(inspection: &Inspection, dir: &'a Directory) -> Result<Option<Keys<'a>>> {
        let Some(provider) = inspection.main.clone() else { return Ok(None) };
        let file = SystemFile::read(dir)?;
        let permit = std::time::Duration::MAX;
        let owned = inspection.owned.clone();
        let broker = KeyBroker::new(file.store(), provider, owned, &inspection.environment, permit, None);
        let system = file.unlock(&broker)?;
        let slots = match manifest::read(dir, &system.keys) {
            Ok(found) => found.state.tables.iter().map(|(&slot, table)| (slot, table.record.id)).collect(),
            // Sections are not opened then, and everything else is.
            Err(_) => HashMap::new(),
        };
        Ok(Some(Keys { dir, broker, system, slots, tables: HashMap::new() }))
    }

    /// The keys of a table, whatever version its key file has.
    fn table(&mut self, table: TableId) -> Result<Arc<KeySet>> {
        if let Some(known) = self.tables.get(&table) {
            return known.clone();
        }
        let keys = self.unwrap(table);
        self.tables.insert(table, keys.clone());
        keys
    }

    fn unwrap(&self, table: TableId) -> Result<Arc<KeySet>> {
        let name = FileName::KeyFile(table).path();
        let bytes = self.dir.read(&name, crate::format::keyfile::KEY_FILE_BYTES_MAX)?;
        let place = Where::new(&name, 0);
        let opened = KeyFile::open(&bytes, self.system.keys.opening_twin(&bytes, &place)?, table, &place)?;
        Ok(Arc::new(self.broker.unwrap_all(&opened.record, &Principal::Owner)?.keys))
    }

    /// The key that seals a file with this header.
    fn of(&mut self, header: &FileHeader) -> Result<Arc<TableKey>> {
        let missing = Error::WrongKey { table: header.subject, generation: header.generation };
        match header.kind {
            FileKind::Table => self.table(header.subject)?.generation(header.generation).cloned().ok_or(missing),
            _ => self.system.keys.generation(header.generation).cloned().ok_or(missing),
        }
    }
}

struct Dump<'a> {
    source: &'a Source,
    keys: Option<Keys<'a>>,
    show_keys: bool,
    out: &'a mut dyn Write,
}

/// A header that could be read.
struct Header {
    header: FileHeader,
    bytes: Vec<u8>,
    /// The key that seals the file, if it is there and the header is authentic.
    key: Option<Arc<TableKey>>,
}

impl Header {
    fn expected(&self) -> Expected {
        let FileHeader { kind, number, subject, .. } = self.header;
        Expected { kind, number, subject, suite: None, salt: None }
    }

    /// What opens the file's frames.
    fn opener(&self, place: &Where<'_>) -> Option<FileOpener> {
        FileOpener::open(&self.bytes, self.key.as_ref()?, &self.expected(), place).ok()
    }

    fn parked_opener(&self, place: &Where<'_>) -> Option<ParkedOpener> {
        ParkedOpener::open(&self.bytes, self.key.as_ref()?, &self.expected(), place).ok()
    }

    fn segment_opener(&self, place: &Where<'_>) -> Option<SegmentOpener> {
        SegmentOpener::open(&self.bytes, self.key.as_ref()?, &self.expected(), place).ok()
    }
}

impl<'a> Dump<'a> {
    fn file(&mut self) -> Result<()> {
        let (len, middle) = (self.source.len_bytes, self.source.len_bytes / 2);
        let header = self.header(0)?;
        let stated = header.as_ref().map(|header| header.header.kind);
        let Some(kind) = stated.or_else(|| FileName::parse(&self.source.name)?.kind()) else {
            return self.line(0, "neither its header nor its name says what this is");
        };
        match kind {
            FileKind::Manifest | FileKind::Log | FileKind::Parked => self.journal(header.as_ref()),
            FileKind::Current => self.frames(kind, header.as_ref(), 0, len),
            FileKind::Table => {
                let mut end = self.table_end(0)?;
                self.frames(kind, header.as_ref(), 0, end)?;
                // The other tables of a container.
                while end < len {
                    let start = end;
                    let header = self.header(start)?;
                    end = self.table_end(start)?;
                    self.frames(kind, header.as_ref(), start, end)?;
                }
                Ok(())
            }
            FileKind::KeyFile | FileKind::SystemKey => {
                self.frames(kind, header.as_ref(), 0, middle)?;
                self.line(0, "second copy")?;
                let header = self.header(middle)?;
                self.frames(kind, header.as_ref(), middle, len)
            }
            FileKind::Keyring => self.line(0, "a keyring is no part of a store"),
        }
    }

    fn header(&mut self, offset: u64) -> Result<Option<Header>> {
        let end = self.source.len_bytes.min(offset + HEADER_BYTES as u64);
        let bytes = self.source.read(offset..end)?;
        let source = self.source;
        let place = Where::new(&source.name, offset);
        let header = match FileHeader::decode(&bytes, &place) {
            Ok(header) => header,
            Err(error) => {
                self.line(0, format_args!("@{offset} header: {error}"))?;
                return Ok(None);
            }
        };
        let mut header = Header { header, bytes, key: None };
        let tag = match self.keys.as_mut().map(|keys| keys.of(&header.header)) {
            None => "crc ok, tag not checked".to_owned(),
            Some(Err(error)) => format!("crc ok, tag not checked: {error}"),
            Some(Ok(key)) => match header.header.authenticate(&key, &header.expected(), &place) {
                Ok(_) => {
                    header.key = Some(key);
                    "crc ok, tag ok".to_owned()
                }
                Err(error) => format!("crc ok, {error}"),
            },
        };
        let FileHeader { kind, suite, optional, generation, number, store, subject, salt, commitment, .. } =
            header.header;
        self.line(0, format_args!("@{offset} header: {kind:?} {number}, {suite:?}, generation {generation}: {tag}"))?;
        self.line(1, format_args!("store {store}, subject {subject}, optional features {optional:#x}"))?;
        self.line(1, format_args!("salt {}", hex(salt.as_bytes())))?;
        self.line(1, format_args!("commitment {}", hex(commitment.as_bytes())))?;
        Ok(Some(header))
    }

    // ---- frames that say nothing in clear but their length ---------------------------------------------------

    /// Where the sorted table that begins at `start` ends: at the next one's header, or with the file.
    fn table_end(&self, start: u64) -> Result<u64> {
        let len = self.source.len_bytes;
        let mut offset = start + HEADER_BYTES as u64;
        while offset < len {
            let head = self.source.read(offset..len.min(offset + FRAME_HEAD_BYTES as u64))?;
            if FileHeader::begins_with(&head) {
                return Ok(offset);
            }
            let place = Where::new(&self.source.name, offset);
            match head.first_chunk().map(|head| FrameHead::decode(head, FRAME_BYTES_MAX, &place)) {
                Some(Ok(head)) => offset += head.frame_bytes(),
                // What is behind it cannot be found.
                _ => break,
            }
        }
        Ok(len)
    }

    /// The frames of one unit: a header at `start`, frames behind it, up to `end`.
    fn frames(&mut self, kind: FileKind, header: Option<&Header>, start: u64, end: u64) -> Result<()> {
        let source = self.source;
        let opener = header.and_then(|header| header.opener(&Where::new(&source.name, start)));
        let mut offset = start + HEADER_BYTES as u64;
        let mut before = FrameKind::Data;
        for ordinal in 0.. {
            if offset >= end {
                return Ok(());
            }
            let place = Where::new(&source.name, offset);
            let head = source.read(offset..end.min(offset + FRAME_HEAD_BYTES as u64))?;
            let head = match head.first_chunk().map(|head| FrameHead::decode(head, FRAME_BYTES_MAX, &place)) {
                Some(Ok(head)) if head.frame_bytes() <= end - offset => head,
                Some(Err(error)) => return self.line(0, format_args!("@{offset} {error}")),
                _ => return self.line(0, format_args!("@{offset} ordinal {ordinal} breaks off")),
            };
            let len = head.frame_bytes();
            let frame = source.read(offset..offset + len)?;
            let crc = crc(head.check_crc(&frame, &place));
            let last = offset + len == end;
            let (what, lines) = match (kind, &opener) {
                (FileKind::SystemKey, opener) => self.clear_record(opener.as_ref(), &frame, &place),
                (_, None) => ("sealed".to_owned(), Vec::new()),
                (_, Some(opener)) => match open_any(opener, kind, before, last, ordinal, &frame, &place) {
                    Ok((found, payload)) => {
                        before = found;
                        (format!("{found:?}, opens, {} bytes", payload.len()), self.contents(found, payload, &place))
                    }
                    Err(error) => (format!("does not open: {error}"), Vec::new()),
                },
            };
            self.line(0, format_args!("@{offset} +{len} ordinal {ordinal}: {crc}, {what}"))?;
            self.lines(&lines)?;
            offset += len;
        }
        Ok(())
    }

    /// The record of the system key's file, which stands in clear.
    fn clear_record(&self, opener: Option<&FileOpener>, frame: &[u8], place: &Where<'_>) -> (String, Vec<String>) {
        let read = read_in_clear(FrameKind::KeyRecord, frame, place).and_then(|(body, tag)| {
            let record = KeyFile::decode(body).map_err(|refusal: Refusal| refusal.at(place))?;
            Ok((body, tag, record))
        });
        let (body, tag, record) = match read {
            Ok(read) => read,
            Err(error) => return (error.to_string(), Vec::new()),
        };
        let tag = match opener {
            None => "in clear, tag not checked".to_owned(),
            Some(opener) => {
                let checked = authenticate_in_clear(opener, FrameKind::KeyRecord, 0, body, &tag, (), place);
                match checked {
                    Ok(_) => "in clear, tag ok".to_owned(),
                    Err(error) => format!("in clear, {error}"),
                }
            }
        };
        (tag, contents::key_record(&record))
    }

    fn contents(&self, kind: FrameKind, payload: Authentic<Wiped>, place: &Where<'_>) -> Vec<String> {
        let refuse = |refusal: Refusal| refusal.at(place);
        let lines = match kind {
            FrameKind::Data | FrameKind::Index | FrameKind::IndexTop => {
                Block::parse(payload, place).map(|block| contents::block(kind, &block, self.show_keys))
            }
            FrameKind::Properties => {
                Properties::decode(&payload).map(|found| contents::properties(&found)).map_err(refuse)
            }
            FrameKind::Footer => {
                Footer::decode(&payload, HEADER_BYTES as u64).map(|found| contents::footer(&found)).map_err(refuse)
            }
            FrameKind::Bounds => decode_bounds(&payload).map(|found| self.bounds(&found)).map_err(refuse),
            FrameKind::KeyRecord => KeyFile::decode(&payload).map(|found| contents::key_record(&found)).map_err(refuse),
            FrameKind::Current => Current::decode(&payload).map(|found| contents::current(&found)).map_err(refuse),
            _ => Ok(Vec::new()),
        };
        lines.unwrap_or_else(|error| vec![error.to_string()])
    }

    fn bounds(&self, (smallest, largest): &(UserKey, UserKey)) -> Vec<String> {
        vec![match self.show_keys {
            true => format!("{} to {}", contents::key(smallest), contents::key(largest)),
            false => format!("keys of {} and {} bytes", smallest.len(), largest.len()),
        }]
    }

    // ---- journals: log and manifest --------------------------------------------------------------------------

    fn journal(&mut self, header: Option<&Header>) -> Result<()> {
        let source = self.source;
        let place = Where::new(&source.name, 0);
        let mut reader = match header {
            Some(header) if header.header.kind == FileKind::Manifest => Reader::manifest(header.opener(&place)),
            Some(header) if header.header.kind == FileKind::Parked => Reader::parked(header.parked_opener(&place)),
            Some(header) => Reader::log(header.segment_opener(&place)),
            None => Reader::Sealed,
        };
        let mut offset = HEADER_BYTES as u64;
        while offset < source.len_bytes {
            let place = Where::new(&source.name, offset);
            let front = source.read(offset..source.len_bytes.min(offset + JOURNAL_HEAD_BYTES as u64))?;
            let head = match JournalHead::decode(&front, &place) {
                Ok(head) if head.frame_bytes() <= source.len_bytes - offset => head,
                outcome => {
                    match outcome {
                        Ok(head) => {
                            let (ordinal, kind) = (head.ordinal, head.kind);
                            self.line(0, format_args!("@{offset} ordinal {ordinal} {kind:?} breaks off"))?;
                        }
                        Err(error) => self.line(0, format_args!("@{offset} {error}"))?,
                    }
                    reader.lose_the_way();
                    let Some(found) = search(source, offset + 1)? else {
                        return self.line(0, "no whole frame follows");
                    };
                    offset = found;
                    continue;
                }
            };
            let len = head.frame_bytes();
            let frame = source.read(offset..offset + len)?;
            let crc = crc(head.check_crc(&frame, &place));
            let (what, lines) = match self.read_journal(&mut reader, &head, frame, &place) {
                Ok(read) => read,
                Err(error) => (format!("does not open: {error}"), Vec::new()),
            };
            let JournalHead { ordinal, kind, .. } = head;
            self.line(0, format_args!("@{offset} +{len} ordinal {ordinal} {kind:?}: {crc}, {what}"))?;
            self.lines(&lines)?;
            offset += len;
        }
        Ok(())
    }

    fn read_journal(
        &mut self,
        reader: &mut Reader,
        head: &JournalHead,
        frame: Vec<u8>,
        place: &Where<'_>,
    ) -> Result<(String, Vec<String>)> {
        let opens = |lines| Ok(("opens".to_owned(), lines));
        match (reader, head.kind) {
            (Reader::Manifest { opener, pending }, FrameKind::Edits) => {
                let payload = opener.open_journal(FrameKind::Edits, head.ordinal, frame, place)?;
                let Some((&more, piece)) = payload.split_first() else { return opens(Vec::new()) };
                pending.extend_from_slice(piece);
                if more != 0 {
                    return opens(vec!["part of a group".to_owned()]);
                }
                let group = EditGroup::decode(&std::mem::take(pending));
                opens(match group {
                    Ok(group) => contents::edit_group(&group),
                    Err(_) => vec!["edits that cannot be decoded, or whose beginning is missing".to_owned()],
                })
            }
            (Reader::Log { opener, sections, .. }, FrameKind::Envelope) => {
                let (envelope, _) = opener.open_envelope(frame, place)?;
                sections.clone_from(&envelope.sections);
                opens(contents::envelope(&envelope))
            }
            (Reader::Log { opener, sections, section }, FrameKind::Section) => {
                let stream = |key: &TableKey, suite| opener.table_key(key, suite);
                self.section(&stream, sections, section, head, frame, place)
            }
            (Reader::Parked { opener, sections, origin, .. }, FrameKind::ParkedIndex) => {
                let piece = opener.open_index(frame, head.ordinal, place)?.into_inner();
                sections.extend_from_slice(&piece.sections);
                *origin = Some(piece.origin);
                opens(contents::parked_index(&piece))
            }
            (Reader::Parked { sections, section, origin: Some(Origin { segment, salt }), .. }, FrameKind::Section) => {
                let stream = |key: &TableKey, suite| key.stream_key(suite, FileKind::Log, *segment, salt);
                self.section(&stream, sections, section, head, frame, place)
            }
            (Reader::Parked { opener, .. }, FrameKind::ParkedEnd) => {
                let end = opener.open_end(frame, head.ordinal, place)?;
                opens(contents::parked_end(&end))
            }
            _ => Ok(("sealed".to_owned(), Vec::new())),
        }
    }

    /// The next frame of a section, which is one of these if it is a section's first.
    fn section(
        &mut self,
        stream: &dyn Fn(&TableKey, Suite) -> StreamKey,
        sections: &[Section],
        section: &mut Option<Box<SectionReader>>,
        head: &JournalHead,
        frame: Vec<u8>,
        place: &Where<'_>,
    ) -> Result<(String, Vec<String>)> {
        if let Some(found) = sections.iter().find(|section| section.first_ordinal == head.ordinal) {
            *section = None;
            let key = self.section_key(found)?;
            *section = Some(Box::new(SectionReader::new(stream(&key, found.suite), found)));
        }
        match section {
            Some(section) => Ok(("opens".to_owned(), self.entries(section, frame, place)?)),
            None => Ok(("sealed".to_owned(), Vec::new())),
        }
    }

    fn section_key(&mut self, section: &Section) -> Result<Arc<TableKey>> {
        let unknown = || Error::TableNotFound { name: format!("slot {}", section.slot) };
        let keys = self.keys.as_mut().ok_or_else(unknown)?;
        let table = *keys.slots.get(&section.slot).ok_or_else(unknown)?;
        let generation = section.generation;
        keys.table(table)?.generation(generation).cloned().ok_or(Error::WrongKey { table, generation })
    }

    /// The entries that end in the next frame of a section.
    fn entries(&self, section: &mut SectionReader, frame: Vec<u8>, place: &Where<'_>) -> Result<Vec<String>> {
        section.feed(frame, place)?;
        let (mut puts, mut deletes, mut key_bytes, mut value_bytes) = (0u64, 0u64, 0u64, 0u64);
        let mut lines = vec![String::new()];
        while let Some(entry) = section.next_entry(place)? {
            key_bytes += entry.key.len() as u64;
            value_bytes += entry.value.len() as u64;
            let what = match entry.kind {
                Kind::Delete => "deleted".to_owned(),
                _ => format!("{} bytes", entry.value.len()),
            };
            *(if entry.kind == Kind::Delete { &mut deletes } else { &mut puts }) += 1;
            if self.show_keys {
                lines.push(format!("  {} {:?}: {what}", contents::key(entry.key), entry.seq));
            }
        }
        lines[0] =
            format!("{puts} puts and {deletes} deletes end here: {key_bytes} bytes of keys, {value_bytes} of values");
        Ok(lines)
    }

    // ---- text ------------------------------------------------------------------------------------------------

    fn lines(&mut self, lines: &[String]) -> Result<()> {
        lines.iter().try_for_each(|line| self.line(1, line))
    }

    fn line(&mut self, indent: usize, text: impl Display) -> Result<()> {
        let written = writeln!(self.out, "{:1$}{text}", "", 4 * indent);
        written.map_err(|error| Error::io("write", "the description", error))
    }
}

/// What a journal's frames are opened with, and what is known from those before.
enum Reader {
    /// Nothing opens them.
    Sealed,
    Manifest {
        opener: FileOpener,
        /// Pieces of a group of which more is to come.
        pending: Wiped,
    },
    Parked {
        opener: Box<ParkedOpener>,
        origin: Option<Origin>,
        sections: Vec<Section>,
        section: Option<Box<SectionReader>>,
    },
    Log {
        opener: Box<SegmentOpener>,
        /// Those of the last envelope.
        sections: Vec<Section>,
        section: Option<Box<SectionReader>>,
    },
}

impl Reader {
    fn manifest(opener: Option<FileOpener>) -> Reader {
        opener.map_or(Reader::Sealed, |opener| Reader::Manifest { opener, pending: Wiped::new() })
    }

    fn parked(opener: Option<ParkedOpener>) -> Reader {
        opener.map_or(Reader::Sealed, |opener| Reader::Parked {
            opener: Box::new(opener),
            origin: None,
            sections: Vec::new(),
            section: None,
        })
    }

    fn log(opener: Option<SegmentOpener>) -> Reader {
        opener.map_or(Reader::Sealed, |opener| Reader::Log {
            opener: Box::new(opener),
            sections: Vec::new(),
            section: None,
        })
    }

    /// Forget what was begun before a hole.
    fn lose_the_way(&mut self) {
        match self {
            Reader::Sealed => {}
            Reader::Manifest { pending, .. } => *pending = Wiped::new(),
            // Its index still says what is behind a hole.
            Reader::Parked { section, .. } => *section = None,
            Reader::Log { sections, section, .. } => {
                sections.clear();
                *section = None;
            }
        }
    }
}

/// Open a frame of a file whose frames do not say in clear of what kind they are, beginning with the kind of the one before.
fn open_any(
    opener: &FileOpener,
    file: FileKind,
    before: FrameKind,
    last: bool,
    ordinal: u64,
    frame: &[u8],
    place: &Where<'_>,
) -> Result<(FrameKind, Authentic<Wiped>)> {
    use FrameKind::*;
    let kinds: &[FrameKind] = match (file, last) {
        (FileKind::Current, _) => &[Current],
        (FileKind::KeyFile, _) => &[KeyRecord],
        (_, true) => &[Footer],
        (_, false) => &[before, Data, ValueRun, Filter, Index, IndexTop, Properties, Bounds],
    };
    let last = last || file != FileKind::Table;
    let mut error = place.tampered("the frame's tag is wrong");
    for &kind in kinds {
        match opener.open_frame(kind, last, ordinal, frame.to_vec(), place) {
            Ok(payload) => return Ok((kind, payload)),
            Err(refused) => error = refused,
        }
    }
    Err(error)
}

/// Where the next frame of a journal begins that lies whole in the file, at or behind `from`.
fn search(source: &Source, mut from: u64) -> Result<Option<u64>> {
    while from < source.len_bytes {
        let left = source.len_bytes - from;
        let window = source.read(from..from + left.min(SEARCH_BYTES))?;
        if let Some((offset, _)) = next_head_within(&window, 0, left) {
            return Ok(Some(from + offset as u64));
        }
        // The last bytes of a window may be the first of a head.
        match (window.len() as u64).checked_sub(JOURNAL_HEAD_BYTES as u64 - 1) {
            Some(passed @ 1..) if (window.len() as u64) < left => from += passed,
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn crc(checked: Result<()>) -> String {
    match checked {
        Ok(()) => "crc ok".to_owned(),
        Err(error) => error.to_string(),
    }
}
