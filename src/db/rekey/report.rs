//! What is sealed under which generation of a table's key, by authenticated metadata alone; and who delays the end of an old one.
//!
//! ```text
//! tables       the manifest: each sorted table's generation and length
//! parked       the manifest: bytes by generation in files of parked sections
//! log          envelopes of the log, which are sealed under the system key: bytes by segment, table and generation
//! pinned       sorted tables that no picture names any more and that somebody still looks at
//! checkpoints  copies that share files with the store: there are none so far
//! ```
//! A log section counts as long as its segment is there, whether or not it was flushed: the bytes are what the question is about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::db::catalog::TableState;
use crate::db::{Engine, Store};
use crate::error::Result;
use crate::format::keyfile::MasterKind;
use crate::options::MasterKey;
use crate::types::{FileNumber, Generation, TableId};

/// What is sealed under each generation of a table's key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyReport {
    /// The table's name.
    pub name: String,
    /// Its durable identity.
    pub id: TableId,
    /// The kind of its master key; the name of a customer's key is its ARN.
    pub master: MasterKey,
    /// Every generation that is still wrapped, oldest first; the last one is what everything new is under.
    pub generations: Vec<GenerationReport>,
    /// Who keeps older generations from being erased. Empty if there are none, or if it is only a matter of time.
    pub delays: Vec<Delay>,
}

/// What is sealed under one generation of a table's key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GenerationReport {
    /// Which one.
    pub generation: Generation,
    /// ARN of the master key that wraps it, whatever its kind.
    pub master_key_arn: String,
    /// When it was made, in milliseconds since 1970-01-01 00:00 UTC.
    pub created_ms: u64,
    /// Whether nothing new is sealed under it.
    pub retired: bool,
    /// Bytes that are sealed under it.
    pub bytes: SealedBytes,
}

/// Bytes on disk by where they lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SealedBytes {
    /// Log sections.
    pub log: u64,
    /// Log sections that were carried out of segments that had to go.
    pub parked: u64,
    /// Sorted tables.
    pub tables: u64,
    /// Sorted tables that only iterators and cursors still look at.
    pub pinned: u64,
    /// Checkpoints. There are none so far.
    pub checkpoints: u64,
}

impl SealedBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.log + self.parked + self.tables + self.pinned + self.checkpoints
    }
}

/// What keeps an old generation from being erased.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Delay {
    /// Iterators or cursors are open on files under it: they hold this many files.
    Pinned {
        /// How many.
        files: usize,
    },
    /// The oldest log segment with sections under it is needed by these tables, whose entries in it are in memory alone or not read yet.
    Log {
        /// The segment.
        segment: FileNumber,
        /// The tables' names.
        tables: Vec<String>,
    },
    /// The table's master key is refused, so nothing can be written anew.
    Inaccessible {
        /// Since when, in milliseconds since 1970-01-01 00:00 UTC.
        since_ms: u64,
    },
    /// Sections under it are parked until the table's key is usable again.
    Parked {
        /// In so many files.
        files: usize,
    },
}

impl Store {
    /// What is sealed under which generation of a table's key, from authenticated metadata: the proof that an old key is out of use, or who
    /// delays it. Needs no permit, and asks no provider.
    ///
    /// # Errors
    /// [`Error::TableNotFound`](crate::Error::TableNotFound), or what keeps the table's key file from being read.
    pub fn key_report(&self, name: &str) -> Result<KeyReport> {
        self.handle.key_report(self.table(name)?.state())
    }
}

impl Engine {
    pub(in crate::db) fn key_report(&self, table: &Arc<TableState>) -> Result<KeyReport> {
        self.check_open()?;
        self.check_not_dropped(table)?;
        let record = self.read_key_file(table.slot, table.id)?;
        let used = self.sealed_bytes(table);
        let generations = record.wraps.iter().map(|wrap| GenerationReport {
            generation: wrap.generation,
            master_key_arn: wrap.key_arn.clone(),
            created_ms: wrap.created_ms,
            retired: wrap.retired,
            bytes: used.of(wrap.generation),
        });
        let master = match (record.master, record.wraps.last()) {
            (MasterKind::Customer, Some(wrap)) => MasterKey::Customer(wrap.key_arn.clone()),
            (MasterKind::Managed, _) => MasterKey::Managed,
            _ => MasterKey::Owned,
        };
        let newest = record.wraps.last().map(|wrap| wrap.generation).unwrap_or_default();
        Ok(KeyReport {
            name: table.name.to_string(),
            id: table.id,
            master,
            generations: generations.collect(),
            delays: self.delays(table, &used, newest),
        })
    }

    /// What of a table is sealed, and under what.
    pub(in crate::db) fn sealed_bytes(&self, table: &TableState) -> Used {
        // What leaves one class for a later one meanwhile is counted twice rather than not at all: tables are retired into `pinned`, the log is
        // flushed into tables.
        let log = self.log.sealed_bytes(&self.writer.lock(), table.slot);
        let mut used = Used { log, ..Used::default() };
        self.manifest.with_state(|state| {
            let Some(meta) = state.tables.get(&table.slot) else { return };
            for (_, file) in meta.files.values() {
                used.add(file.generation, |bytes| bytes.tables += file.extent.len_bytes);
            }
            for parked in state.parked.values().filter(|parked| parked.slot == table.slot) {
                for (generation, len_bytes) in &parked.generations {
                    used.add(*generation, |bytes| bytes.parked += len_bytes);
                    *used.parked_files.entry(*generation).or_default() += 1;
                }
            }
        });
        for (generation, len_bytes) in self.readers.obsolete_bytes(table.slot) {
            used.add(generation, |bytes| bytes.pinned += len_bytes);
            *used.pinned_files.entry(generation).or_default() += 1;
        }
        let log: Vec<(Generation, u64)> = used
            .log
            .values()
            .flat_map(|segment| segment.iter().map(|(generation, bytes)| (*generation, *bytes)))
            .collect();
        for (generation, len_bytes) in log {
            used.add(generation, |bytes| bytes.log += len_bytes);
        }
        used
    }

    /// The generations that sorted tables of a table are under, those included that are only looked at.
    pub(in crate::db) fn files_by_generation(&self, table: &TableState) -> BTreeSet<Generation> {
        let named = self.manifest.with_state(|state| {
            let files = state.tables.get(&table.slot).map(|meta| meta.files.values().map(|(_, file)| file.generation));
            files.map(BTreeSet::from_iter).unwrap_or_default()
        });
        let obsolete = self.readers.obsolete_bytes(table.slot).into_iter().map(|(generation, _)| generation);
        obsolete.chain(named).collect()
    }

    fn delays(&self, table: &TableState, used: &Used, newest: Generation) -> Vec<Delay> {
        let mut delays = Vec::new();
        let older = |files: &BTreeMap<Generation, usize>| files.range(..newest).map(|(_, count)| *count).sum::<usize>();
        match older(&used.pinned_files) {
            0 => {}
            files => delays.push(Delay::Pinned { files }),
        }
        match older(&used.parked_files) {
            0 => {}
            files => delays.push(Delay::Parked { files }),
        }
        if let Some(segment) = used.oldest_segment(newest) {
            let tables = self.needing(segment);
            if !tables.is_empty() {
                delays.push(Delay::Log { segment, tables });
            }
        }
        let since_ms = self.manifest.with_state(|state| state.tables.get(&table.slot)?.rare.inaccessible_since_ms);
        if let Some(since_ms) = since_ms.filter(|_| !used.is_only(newest)) {
            delays.push(Delay::Inaccessible { since_ms });
        }
        delays
    }

    /// The tables that need a log segment, or one before it.
    fn needing(&self, segment: FileNumber) -> Vec<String> {
        let needs = |table: &&Arc<TableState>| {
            let unreplayed = table.unreplayed.lock().first_segment().is_some_and(|first| first <= segment);
            unreplayed
                || table.view.load().as_ref().is_some_and(|view| {
                    let memories = std::iter::once(&view.active).chain(&view.frozen);
                    memories.filter_map(|memory| memory.first_segment()).any(|first| first <= segment)
                })
        };
        self.catalog.all().iter().filter(needs).map(|table| table.name.to_string()).collect()
    }
}

/// What of a table is sealed, and under what.
#[derive(Default)]
pub(in crate::db) struct Used {
    bytes: BTreeMap<Generation, SealedBytes>,
    log: BTreeMap<FileNumber, BTreeMap<Generation, u64>>,
    pinned_files: BTreeMap<Generation, usize>,
    parked_files: BTreeMap<Generation, usize>,
}

impl Used {
    fn add(&mut self, generation: Generation, add: impl FnOnce(&mut SealedBytes)) {
        add(self.bytes.entry(generation).or_default());
    }

    /// What is under a generation.
    pub(in crate::db) fn of(&self, generation: Generation) -> SealedBytes {
        self.bytes.get(&generation).copied().unwrap_or_default()
    }

    /// The generations that something is under.
    pub(in crate::db) fn generations(&self) -> BTreeSet<Generation> {
        self.bytes.iter().filter(|(_, bytes)| bytes.total() > 0).map(|(generation, _)| *generation).collect()
    }

    fn is_only(&self, newest: Generation) -> bool {
        self.generations().iter().all(|generation| *generation == newest)
    }

    /// The oldest log segment with something under a generation before this one.
    fn oldest_segment(&self, newest: Generation) -> Option<FileNumber> {
        self.log.iter().find(|(_, segment)| segment.range(..newest).next().is_some()).map(|(number, _)| *number)
    }

    /// The newest such segment.
    pub(in crate::db) fn newest_segment(&self, newest: Generation) -> Option<FileNumber> {
        self.log.iter().rev().find(|(_, segment)| segment.range(..newest).next().is_some()).map(|(number, _)| *number)
    }
}
