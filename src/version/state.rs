//! The picture that the manifest's edits add up to: which tables, files, log segments and key pins exist.
//!
//! Pure: applying an edit either yields the next picture or says why the edit cannot follow from this
//! one. The same code runs when a manifest is read and when it is written, so that what a store
//! believes while it is open is what it will find when it opens again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crypto::{Salt, Suite, Tag};
use crate::error::{Error, Result};
use crate::format::Where;
use crate::format::log::LogPoint;
use crate::format::manifest::{Edit, FileRecord, KeyPin, TableRecord};
use crate::types::{Epoch, FileNumber, LEVELS, Seq, Slot, StoreId};

/// Everything that the manifest says, after so many edits.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// What was fixed when the store was created, and its present lineage.
    pub store: StoreMeta,
    /// Number of the last durable group of edits.
    pub epoch: Epoch,
    /// The system key file that goes with this picture.
    pub system_key: KeyPin,
    /// No file of this number or a higher one was ever named.
    pub next_file: FileNumber,
    /// No table ever had this slot or a higher one.
    pub next_slot: Slot,
    /// Some commit had this sequence number, and none that this picture knows of had a higher one.
    pub last_seq: Seq,
    /// Tables by slot, those that are being dropped included.
    pub tables: BTreeMap<Slot, TableMeta>,
    /// The log was durable up to here.
    pub log_synced: LogPoint,
    /// Live log segments in the order in which they were written.
    pub segments: BTreeMap<FileNumber, SegmentMeta>,
}

/// What was fixed when the store was created, and its present lineage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StoreMeta {
    /// Its identity.
    pub store: StoreId,
    /// Random; new each time the store is opened for writing.
    pub lineage: [u8; 16],
    /// Wall time of its creation.
    pub created_ms: u64,
    /// Whether its keys and salts come from the operating system's randomness.
    pub real_entropy: bool,
    /// How its own metadata is sealed.
    pub suite: Suite,
}

/// One table, as the manifest knows it.
#[derive(Clone, Debug)]
pub(crate) struct TableMeta {
    /// Identity, settings and key pin.
    pub record: Arc<TableRecord>,
    /// Every entry up to this sequence number is in sorted tables.
    pub flushed: Seq,
    /// Sorted tables with their levels.
    pub files: BTreeMap<FileNumber, (u8, Arc<FileRecord>)>,
}

/// One log segment, as the manifest knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentMeta {
    /// The salt in its header.
    pub salt: Salt,
    /// Where it ends, once that was decided by a clean close or a recovery.
    pub end: Option<SegmentEnd>,
}

/// Where a log segment ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentEnd {
    /// Length of what counts, header included.
    pub end_bytes: u64,
    /// Tag of the last envelope before that.
    pub tag: Tag,
}

impl State {
    /// The picture that begins with these facts and has neither tables nor segments.
    pub(crate) fn new(store: StoreMeta, system_key: KeyPin) -> State {
        State {
            store,
            epoch: Epoch(0),
            system_key,
            next_file: FileNumber(1),
            next_slot: Slot(1),
            last_seq: Seq::ZERO,
            log_synced: LogPoint::default(),
            tables: BTreeMap::new(),
            segments: BTreeMap::new(),
        }
    }

    /// The picture that begins with the first two edits of a manifest.
    pub(crate) fn begin(edits: &[Edit], place: &Where<'_>) -> Result<State> {
        match edits {
            [Edit::Store { store, lineage, created_ms, real_entropy, suite }, Edit::SystemKey(pin), ..] => {
                let (store, lineage, created_ms) = (*store, *lineage, *created_ms);
                let meta = StoreMeta { store, lineage, created_ms, real_entropy: *real_entropy, suite: *suite };
                Ok(State::new(meta, pin.clone()))
            }
            _ => Err(contradiction(place, "the picture does not begin with the store and its system key")),
        }
    }

    /// The edits that make this picture again, from nothing.
    pub(crate) fn picture(&self) -> Vec<Edit> {
        let mut edits = vec![
            Edit::Store {
                store: self.store.store,
                lineage: self.store.lineage,
                created_ms: self.store.created_ms,
                real_entropy: self.store.real_entropy,
                suite: self.store.suite,
            },
            Edit::SystemKey(self.system_key.clone()),
            Edit::Counters { next_file: self.next_file, next_slot: self.next_slot, last_seq: self.last_seq },
        ];
        for (&number, segment) in &self.segments {
            edits.push(Edit::AddSegment { number, salt: segment.salt });
            if let Some(end) = segment.end {
                edits.push(Edit::LogEnds {
                    segment: number,
                    end_bytes: end.end_bytes,
                    tag: end.tag,
                    seq: self.last_seq,
                });
            }
        }
        edits.push(Edit::LogSynced { point: self.log_synced });
        for (&slot, table) in &self.tables {
            edits.push(Edit::CreateTable(Box::new((*table.record).clone())));
            edits.push(Edit::Flushed { slot, seq: table.flushed });
            edits.extend(table.files.values().map(|(level, file)| Edit::AddFile {
                slot,
                level: *level,
                file: (**file).clone(),
            }));
        }
        edits
    }

    /// Apply one edit, or say why it contradicts this picture.
    pub(crate) fn apply(&mut self, edit: Edit, place: &Where<'_>) -> Result<()> {
        match edit {
            Edit::Store { .. } => return Err(contradiction(place, "a second store record")),
            Edit::SystemKey(pin) => self.system_key = pin,
            Edit::Counters { next_file, next_slot, last_seq } => {
                self.next_file = self.next_file.max(next_file);
                self.next_slot = self.next_slot.max(next_slot);
                self.last_seq = self.last_seq.max(last_seq);
            }
            Edit::CreateTable(record) => {
                let slot = record.slot;
                self.next_slot = self.next_slot.max(next_slot(slot, place)?);
                let table = TableMeta { record: Arc::from(record), flushed: Seq::ZERO, files: BTreeMap::new() };
                if self.tables.insert(slot, table).is_some() {
                    return Err(contradiction(place, "a table that exists is created"));
                }
            }
            Edit::TableKey { slot, key, master } => {
                let table = self.table(slot, place)?;
                table.record = Arc::new(TableRecord { key, master, ..(*table.record).clone() });
            }
            Edit::DropTable { slot } => {
                let table = self.table(slot, place)?;
                table.record = Arc::new(TableRecord { dropping: true, ..(*table.record).clone() });
                table.files.clear();
            }
            Edit::ForgetTable { slot } => {
                self.table(slot, place)?;
                self.tables.remove(&slot);
            }
            Edit::AddFile { slot, level, file } => {
                self.next_file = self.next_file.max(next_file(file.number, place)?);
                if usize::from(level) >= LEVELS {
                    return Err(contradiction(place, "a sorted table at a level that does not exist"));
                }
                if self.table(slot, place)?.files.insert(file.number, (level, Arc::new(file))).is_some() {
                    return Err(contradiction(place, "a sorted table that exists is added"));
                }
            }
            Edit::RemoveFile { slot, level, number } => match self.table(slot, place)?.files.remove(&number) {
                Some((found, _)) if found == level => {}
                _ => return Err(contradiction(place, "a sorted table that does not exist is removed")),
            },
            Edit::Flushed { slot, seq } => {
                let table = self.table(slot, place)?;
                table.flushed = table.flushed.max(seq);
                self.last_seq = self.last_seq.max(seq);
            }
            Edit::LogSynced { point } => self.log_synced = self.log_synced.max(point),
            Edit::AddSegment { number, salt } => {
                self.next_file = self.next_file.max(next_file(number, place)?);
                if self.segments.last_key_value().is_some_and(|(last, _)| *last >= number) {
                    return Err(contradiction(place, "log segments out of order"));
                }
                self.segments.insert(number, SegmentMeta { salt, end: None });
            }
            Edit::RemoveSegment { number } => {
                if self.segments.remove(&number).is_none() {
                    return Err(contradiction(place, "a log segment that does not exist is removed"));
                }
            }
            Edit::LogEnds { segment, end_bytes, tag, seq } | Edit::CleanClose { segment, end_bytes, tag, seq } => {
                match self.segments.get_mut(&segment) {
                    Some(meta) => meta.end = Some(SegmentEnd { end_bytes, tag }),
                    None => return Err(contradiction(place, "a log segment that does not exist ends")),
                }
                self.last_seq = self.last_seq.max(seq);
            }
            Edit::PictureEnds => {}
        }
        Ok(())
    }

    /// The pinned commitment of a table's generation.
    pub(crate) fn pin(&self, slot: Slot) -> Option<&KeyPin> {
        self.tables.get(&slot).map(|table| &table.record.key)
    }

    fn table(&mut self, slot: Slot, place: &Where<'_>) -> Result<&mut TableMeta> {
        self.tables.get_mut(&slot).ok_or_else(|| contradiction(place, "an edit of a table that does not exist"))
    }
}

fn next_file(number: FileNumber, place: &Where<'_>) -> Result<FileNumber> {
    number.next().ok_or_else(|| contradiction(place, "a file number at the end of its range"))
}

fn next_slot(slot: Slot, place: &Where<'_>) -> Result<Slot> {
    slot.next().ok_or_else(|| contradiction(place, "a table slot at the end of its range"))
}

fn contradiction(place: &Where<'_>, detail: &'static str) -> Error {
    Error::Tampered { file: place.file.to_owned(), offset_bytes: place.offset_bytes, detail }
}
