//! The tables of an open store, and what of each is in memory.
//!
//! ```text
//! Catalog ── TableState (small, always there) ── View (only while the table is in use)
//!                 identity, settings, lease         ├ keys      the generations that its data is under
//!                                                   ├ active    the memtable that commits go to
//!                                                   ├ frozen    memtables on their way to the disk, newest first
//!                                                   └ version   sorted tables by level
//! ```
//!
//! A table is *loaded* at first use: its keys are unwrapped, the bounds of its files opened, its part of
//! the log replayed. It is *put away* when its last permit has ended and its memtables are flushed. A view
//! is immutable; whoever changes it publishes another ([`TableState::publisher`]), so a reader who holds one
//! sees one moment of the table for as long as it likes.
//!
//! A view disappears only under the writer's lock, so a commit that found one there inserts into a memtable that
//! somebody will flush.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::access::Access;
use super::maintenance::Bucket;
use crate::compaction::plan::Busy;
use crate::error::{Error, Result};
use crate::format::log::LogPoint;
use crate::format::manifest::TableRecord;
use crate::io::Tick;
use crate::keys::{KeySet, Permit, TableLease};
use crate::memtable::Memtable;
use crate::options::Compression;
use crate::sstable::TableSettings;
use crate::sync::{Published, Seldom};
use crate::types::{FileNumber, Seq, Slot, TableId};
use crate::version::Version;
use crate::wal::SectionRef;

/// All tables of an open store, by name and by slot.
#[derive(Default)]
pub(crate) struct Catalog {
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    by_name: BTreeSet<ByName>,
    by_slot: BTreeMap<Slot, Arc<TableState>>,
}

/// A table in the order of names: one pointer, since its name is its own.
struct ByName(Arc<TableState>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &ByName) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &ByName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &ByName) -> std::cmp::Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl Catalog {
    /// The table of this name.
    pub(crate) fn named(&self, name: &str) -> Result<Arc<TableState>> {
        let tables = self.tables.read();
        tables
            .by_name
            .get(name)
            .map(|table| table.0.clone())
            .ok_or_else(|| Error::TableNotFound { name: name.to_owned() })
    }

    /// The table with this slot, unless it was dropped.
    pub(crate) fn of_slot(&self, slot: Slot) -> Option<Arc<TableState>> {
        self.tables.read().by_slot.get(&slot).cloned()
    }

    /// At most so many tables, from this slot on.
    pub(crate) fn slots_from(&self, slot: Slot, count_max: usize) -> Vec<Arc<TableState>> {
        self.tables.read().by_slot.range(slot..).take(count_max).map(|(_, table)| table.clone()).collect()
    }

    /// Whether a table of this name exists.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tables.read().by_name.contains(name)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.tables.read().by_name.len()
    }

    /// All names in byte order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.tables.read().by_name.iter().map(|table| table.0.name.to_string()).collect()
    }

    /// Every table, in the order in which they were made.
    pub(crate) fn all(&self) -> Vec<Arc<TableState>> {
        self.tables.read().by_slot.values().cloned().collect()
    }

    /// All tables of a store that is being opened, in as little room as there can be.
    #[allow(
        clippy::mutable_key_type,
        reason = "what changes of a table is not its name, which is all that the order rests on"
    )]
    pub(crate) fn of(tables: Vec<Arc<TableState>>) -> Catalog {
        let by_name = tables.iter().cloned().map(ByName).collect();
        let by_slot = tables.into_iter().map(|table| (table.slot, table)).collect();
        Catalog { tables: RwLock::new(Tables { by_name, by_slot }) }
    }

    /// Make a table known.
    pub(crate) fn insert(&self, table: Arc<TableState>) {
        let mut tables = self.tables.write();
        tables.by_slot.insert(table.slot, table.clone());
        tables.by_name.insert(ByName(table));
    }

    /// Forget a table.
    pub(crate) fn remove(&self, table: &TableState) {
        let mut tables = self.tables.write();
        tables.by_slot.remove(&table.slot);
        tables.by_name.remove(&*table.name);
    }
}

/// What is always in memory of a table.
pub(crate) struct TableState {
    pub slot: Slot,
    pub id: TableId,
    pub name: Arc<str>,
    pub created_ms: u64,
    pub settings: TableSettings,
    /// Keys and permits.
    pub lease: TableLease,
    /// Everything else, while the table is in use.
    pub view: Published<View>,
    /// Held by whoever decides which sorted tables there are and at which levels, also while the manifest is told, or brings the table
    /// into use or puts it away.
    pub structure: Mutex<Structure>,
    publishing: Mutex<()>,
    /// Level-0 files and frozen memtables, for the backpressure of commits.
    pub pressure: Pressure,
    /// What the log holds of the table and nobody has in memory.
    pub unreplayed: Mutex<Unreplayed>,
    /// Whether its key is refused.
    pub access: Access,
    /// Whether somebody is loading the table.
    pub loading: AtomicBool,
    /// Whether a call is changing the table's keys.
    pub changing: AtomicBool,
    dropped: AtomicBool,
    gone: AtomicBool,
}

/// A table, and one principal's permit for it: what handles are made of.
#[derive(Clone)]
pub(crate) struct Seat {
    pub table: Arc<TableState>,
    pub permit: Arc<Permit>,
}

/// What the log holds of a table and nobody has in memory. It holds the segment in which it begins.
#[derive(Default, Debug)]
pub(crate) enum Unreplayed {
    /// Nothing.
    #[default]
    Nothing,
    /// These sections, at least one, in order.
    Sections(Vec<SectionRef>),
    /// Sections in these segments, up to this point. They are looked up when they are needed: there may be very many, and the table may
    /// be away for long.
    Somewhere { from: FileNumber, to: LogPoint },
}

impl Unreplayed {
    /// These sections, which may be none.
    pub(crate) fn sections(sections: Vec<SectionRef>) -> Unreplayed {
        if sections.is_empty() { Unreplayed::Nothing } else { Unreplayed::Sections(sections) }
    }

    /// The segment in which it begins, at the earliest.
    pub(crate) fn first_segment(&self) -> Option<FileNumber> {
        match self {
            Unreplayed::Nothing => None,
            Unreplayed::Sections(sections) => sections.first().map(|part| part.segment),
            Unreplayed::Somewhere { from, .. } => Some(*from),
        }
    }

    /// What is left of it behind `segment`; `next` is the live segment that follows.
    pub(crate) fn behind(&self, segment: FileNumber, next: Option<FileNumber>) -> Unreplayed {
        match self {
            Unreplayed::Nothing => Unreplayed::Nothing,
            Unreplayed::Sections(sections) => {
                let left = sections.iter().filter(|part| part.segment > segment);
                Unreplayed::sections(left.copied().collect())
            }
            Unreplayed::Somewhere { from, to } => match next.map(|next| next.max(*from)) {
                Some(from) if from <= to.segment => Unreplayed::Somewhere { from, to: *to },
                _ => Unreplayed::Nothing,
            },
        }
    }
}

/// What must not change while a view is replaced.
#[derive(Default)]
pub(crate) struct Structure {
    /// What running compactions have taken: the levels that they write to look emptier than they are.
    pub busy: Seldom<Busy>,
}

/// How far a table's background work is behind.
#[derive(Default)]
pub(crate) struct Pressure {
    level_zero_files: AtomicUsize,
    /// What writers pay with while there are too many of them.
    pub(crate) bucket: Bucket,
}

impl Pressure {
    /// Level-0 files of the published version.
    pub(crate) fn level_zero_files(&self) -> usize {
        self.level_zero_files.load(Ordering::Relaxed)
    }
}

impl TableState {
    /// The state of a table that nobody has used yet.
    pub(crate) fn new(
        record: &TableRecord,
        lease: TableLease,
        unreplayed: Unreplayed,
        inaccessible_since_ms: Option<u64>,
    ) -> TableState {
        TableState {
            slot: record.slot,
            id: record.id,
            name: record.name.clone(),
            created_ms: record.created_ms,
            settings: settings(record),
            lease,
            view: Published::nothing(),
            structure: Mutex::default(),
            publishing: Mutex::default(),
            pressure: Pressure::default(),
            unreplayed: Mutex::new(unreplayed),
            access: Access::new(inaccessible_since_ms),
            loading: AtomicBool::new(false),
            changing: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }
    }

    /// How the table's blocks are compressed.
    pub(crate) fn compression(&self) -> Compression {
        self.settings.compression
    }

    /// Whether somebody is bringing it into use.
    pub(crate) fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Acquire)
    }

    /// Whether the table is being dropped.
    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// From now on every operation fails with [`Error::TableDropped`].
    pub(crate) fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
        self.lease.close();
    }

    /// Whether the manifest says that the table is dropped. Until then a crash brings it back, with what the log holds of it.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The manifest says that the table is dropped: from now on the log need not hold anything of it.
    pub(crate) fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Whether nobody may use the table any more: its last permit has ended, or its keys have gone already.
    pub(crate) fn has_ended(&self, now: Tick) -> bool {
        self.lease.ending(now).is_some() || self.lease.material().is_none()
    }

    /// The right to publish another view, of which there is one at a time. It is kept for an instant, so that a commit that freezes a
    /// memtable never waits for a disk, as it would behind [`TableState::structure`].
    ///
    /// Who holds `structure` while the manifest is told makes the next view from the one that is there *afterwards*: a memtable may
    /// have been frozen meanwhile.
    pub(crate) fn publisher(&self) -> Publisher<'_> {
        Publisher { table: self, _only: self.publishing.lock() }
    }
}

/// The one who may replace a table's view.
pub(crate) struct Publisher<'a> {
    table: &'a TableState,
    _only: MutexGuard<'a, ()>,
}

impl Publisher<'_> {
    /// The view that is to be replaced.
    pub(crate) fn present(&self) -> Option<Arc<View>> {
        self.table.view.load_owned()
    }

    /// Show another one, or none.
    pub(crate) fn show(&self, view: Option<View>) {
        let level_zero_files = view.as_ref().map_or(0, |view| view.version.files(0).len());
        self.table.pressure.level_zero_files.store(level_zero_files, Ordering::Relaxed);
        self.table.view.store(view.map(Arc::new));
    }
}

/// The settings that sorted tables need, from a table's record.
pub(crate) fn settings(record: &TableRecord) -> TableSettings {
    TableSettings {
        table: record.id,
        suite: record.suite,
        compression: record.compression,
        block_bytes: record.block_bytes as usize,
        filter_bits_per_key: record.filter_bits_per_key,
        filter_seed: record.filter_seed,
    }
}

/// One moment of a table in use. Cloning one is the beginning of the next.
#[derive(Clone)]
pub(crate) struct View {
    pub keys: Arc<KeySet>,
    pub active: Arc<Memory>,
    /// Newest first.
    pub frozen: Vec<Arc<Memory>>,
    pub version: Arc<Version>,
}

/// A memtable, and what must be known to flush it.
pub(crate) struct Memory {
    pub table: Arc<Memtable>,
    /// Number of the log segment with its first entry; 0 while it is empty.
    first_segment: AtomicU64,
    /// The last sequence number in it.
    last_seq: AtomicU64,
    /// What of its bytes the write budget knows of.
    charged_bytes: AtomicUsize,
    /// Whether it is on its way to the disk.
    frozen: AtomicBool,
}

impl Memory {
    /// An empty one.
    pub(crate) fn new() -> Arc<Memory> {
        Arc::new(Memory {
            table: Arc::new(Memtable::new()),
            first_segment: AtomicU64::new(0),
            last_seq: AtomicU64::new(0),
            charged_bytes: AtomicUsize::new(0),
            frozen: AtomicBool::new(false),
        })
    }

    /// Note that an entry of this number is in it. Only the writer calls this, or who fills it before anybody else knows it.
    pub(crate) fn reached(&self, seq: Seq) {
        if self.last_seq.load(Ordering::Relaxed) < seq.get() {
            self.last_seq.store(seq.get(), Ordering::Relaxed);
        }
    }

    /// From now on it is on its way to the disk; true if it was not before.
    pub(crate) fn freeze(&self) -> bool {
        !self.frozen.swap(true, Ordering::Relaxed)
    }

    /// Whether it is on its way to the disk.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    /// The last sequence number in it.
    pub(crate) fn last_seq(&self) -> Seq {
        Seq::new(self.last_seq.load(Ordering::Relaxed)).unwrap_or(Seq::MAX)
    }

    /// The log segment with its first entry, if it has any.
    pub(crate) fn first_segment(&self) -> Option<FileNumber> {
        match self.first_segment.load(Ordering::Relaxed) {
            0 => None,
            number => Some(FileNumber(number)),
        }
    }

    /// Bytes that it has grown by since this was last asked. Only the writer calls this.
    pub(crate) fn uncharged_bytes(&self) -> usize {
        let (bytes, charged) = (self.table.bytes(), self.charged_bytes.load(Ordering::Relaxed));
        if bytes != charged {
            self.charged_bytes.store(bytes, Ordering::Relaxed);
        }
        bytes.saturating_sub(charged)
    }

    /// What of its bytes the write budget knows of.
    pub(crate) fn charged_bytes(&self) -> usize {
        self.charged_bytes.load(Ordering::Relaxed)
    }

    /// Note that an entry of this log segment is in it; true if it is the first. Only the writer calls this.
    pub(crate) fn begins_in(&self, segment: FileNumber) -> bool {
        let first = self.first_segment.load(Ordering::Relaxed) == 0;
        if first {
            self.first_segment.store(segment.0, Ordering::Relaxed);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_not_in_use_fits_into_half_a_kilobyte() {
        // 100,000 of them are a normal store. 16 bytes of counts, 32 of a name, and 24 for each of its two entries in the catalog.
        let bytes = size_of::<TableState>() + 16 + 32 + 2 * 24;
        assert!(bytes <= 512, "{bytes} bytes");
    }
}
