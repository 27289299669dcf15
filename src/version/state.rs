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
use crate::format::manifest::{Edit, FileRecord, GrantRecord, KeyPin, ParkedRecord, Schedule, TableRecord, TrailHead};
use crate::sync::{Empty, Seldom};
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
    /// Files of log sections that were carried out of segments that had to go.
    pub parked: BTreeMap<FileNumber, Arc<ParkedRecord>>,
    /// Grants by the ARN of the master key that they are for.
    pub grants: BTreeMap<String, Arc<GrantRecord>>,
    /// When the system key is to be rotated by itself.
    pub system_schedule: Option<Schedule>,
    /// How far the audit trail had come, if there ever was one.
    pub trail: Option<TrailHead>,
    /// What the sorted tables of all tables add up to, by level.
    pub levels: [LevelTotal; LEVELS],
    /// The creator that was named last, whose name others share.
    pub last_creator: Option<Arc<str>>,
}

/// Sorted tables of one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LevelTotal {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl LevelTotal {
    fn add(&mut self, file: &FileRecord) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(file.extent.len_bytes);
    }

    fn remove(&mut self, file: &FileRecord) {
        self.files = self.files.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(file.extent.len_bytes);
    }
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
    /// What is so of few tables.
    pub rare: Seldom<Rare>,
    /// Who created it, as that principal is shown; none if it was created before that was recorded.
    pub creator: Option<Arc<str>>,
}

/// What is so of few tables.
#[derive(Clone, Default, Debug)]
pub(crate) struct Rare {
    /// Wall time since when its master key is refused, if it is.
    pub inaccessible_since_ms: Option<u64>,
    /// When its key is to be rotated by itself.
    pub schedule: Option<Schedule>,
    /// Wall times of the last changes of its master key, oldest first.
    pub key_changes_ms: Vec<u64>,
}

impl Empty for Rare {
    fn empty() -> &'static Rare {
        static EMPTY: Rare = Rare { inaccessible_since_ms: None, schedule: None, key_changes_ms: Vec::new() };
        &EMPTY
    }
}

impl TableMeta {
    fn new(record: Arc<TableRecord>) -> TableMeta {
        TableMeta { record, flushed: Seq::ZERO, files: BTreeMap::new(), rare: Seldom::default(), creator: None }
    }

    /// The edits, beside the record, that make this table's part of the picture again.
    fn picture(&self, slot: Slot) -> impl Iterator<Item = Edit> {
        let mut edits = vec![Edit::Flushed { slot, seq: self.flushed }];
        edits.extend(self.files.values().map(|(level, file)| Edit::AddFile {
            slot,
            level: *level,
            file: (**file).clone(),
        }));
        edits.extend(self.rare.inaccessible_since_ms.map(|ms| Edit::Access { slot, since_ms: Some(ms) }));
        edits.extend(self.rare.schedule.map(|schedule| Edit::Schedule { slot: Some(slot), schedule: Some(schedule) }));
        edits.extend(self.rare.key_changes_ms.iter().map(|&at_ms| Edit::KeyChanged { slot, at_ms }));
        edits.extend(self.creator.as_ref().map(|creator| Edit::Creator { slot, principal: creator.to_string() }));
        edits.into_iter()
    }
}

/// As many changes of a master key are remembered as any limit per day counts.
const KEY_CHANGES_MAX: usize = 64;

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
            parked: BTreeMap::new(),
            grants: BTreeMap::new(),
            system_schedule: None,
            trail: None,
            levels: [LevelTotal::default(); LEVELS],
            last_creator: None,
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
            edits.extend(table.picture(slot));
        }
        edits.extend(self.parked.values().map(|parked| Edit::Park(Box::new((**parked).clone()))));
        edits.extend(self.grants.values().map(|grant| Edit::Grant(Box::new((**grant).clone()))));
        edits.extend(self.system_schedule.map(|schedule| Edit::Schedule { slot: None, schedule: Some(schedule) }));
        edits.extend(self.trail.map(Edit::TrailHead));
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
                if self.tables.insert(slot, TableMeta::new(Arc::from(record))).is_some() {
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
                for (level, file) in std::mem::take(&mut table.files).into_values() {
                    self.levels[usize::from(level)].remove(&file);
                }
                self.parked.retain(|_, parked| parked.slot != slot);
            }
            Edit::ForgetTable { slot } => {
                self.table(slot, place)?;
                self.tables.remove(&slot);
            }
            Edit::AddFile { slot, level, file } => {
                self.next_file = self.next_file.max(next_file(file.number.max(file.extent.container), place)?);
                if usize::from(level) >= LEVELS {
                    return Err(contradiction(place, "a sorted table at a level that does not exist"));
                }
                self.levels[usize::from(level)].add(&file);
                if self.table(slot, place)?.files.insert(file.number, (level, Arc::new(file))).is_some() {
                    return Err(contradiction(place, "a sorted table that exists is added"));
                }
            }
            Edit::RemoveFile { slot, level, number } => match self.table(slot, place)?.files.remove(&number) {
                Some((found, file)) if found == level => self.levels[usize::from(level)].remove(&file),
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
            Edit::Access { slot, since_ms } => self.table(slot, place)?.rare.inaccessible_since_ms = since_ms,
            Edit::Park(record) => {
                self.next_file = self.next_file.max(next_file(record.number, place)?);
                self.table(record.slot, place)?;
                if self.parked.insert(record.number, Arc::from(record)).is_some() {
                    return Err(contradiction(place, "a file of parked sections that exists is added"));
                }
            }
            Edit::Unpark { number } => {
                if self.parked.remove(&number).is_none() {
                    return Err(contradiction(place, "a file of parked sections that does not exist is removed"));
                }
            }
            Edit::Schedule { slot: Some(slot), schedule } => self.table(slot, place)?.rare.schedule = schedule,
            Edit::Schedule { slot: None, schedule } => self.system_schedule = schedule,
            Edit::KeyChanged { slot, at_ms } => {
                let changes = &mut self.table(slot, place)?.rare.key_changes_ms;
                changes.push(at_ms);
                if changes.len() > KEY_CHANGES_MAX {
                    changes.remove(0);
                }
            }
            Edit::TrailHead(head) => self.trail = Some(head),
            Edit::Grant(grant) => drop(self.grants.insert(grant.key_arn.clone(), Arc::from(grant))),
            Edit::GrantEnded { key_arn } => drop(self.grants.remove(&key_arn)),
            Edit::Creator { slot, principal } => {
                // Most tables have the creator of the one before.
                let creator = match &self.last_creator {
                    Some(creator) if **creator == *principal => creator.clone(),
                    _ => Arc::from(principal),
                };
                self.last_creator = Some(creator.clone());
                self.table(slot, place)?.creator = Some(creator);
            }
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
