//! Parking: what becomes of an inaccessible table's part of the log when the log cannot keep it.
//!
//! ```text
//! log over its limit ── the oldest segment is needed only by tables whose key is not to be had
//!     │ envelopes walked with the system key; the tables' sections copied as they are      parked/N-slot.log, synced
//!     │ directory synced, log synced
//!     └ one append: Park (each table), RemoveSegment                                       then the segment goes
//! table is back ── parked files replayed in order, then the log ── flushed: Unpark in the append that says so
//! ```
//! One segment at a time, the oldest; all tables that need it together, with one append. A table that can be flushed is: its
//! segment waits for it. While the log is over its limit, tables whose key is *refused* are parked. When it is over twice its limit, so are
//! tables that nobody can load for another reason, be it one that will pass: the log must end somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::catalog::TableState;
use super::load::Loading;
use crate::error::Result;
use crate::format::FileName;
use crate::format::log::LogPoint;
use crate::format::manifest::{Edit, ParkedRecord};
use crate::format::parked::Origin;
use crate::types::{FileNumber, Seq, Slot};
use crate::wal::parked::Carrier;
use crate::wal::replay::{SectionRef, sections_of};

impl Engine {
    /// Park until the log is within its limit, or the oldest segment has to wait for tables that can be flushed.
    pub(super) fn park_for_log(&self) -> Result<()> {
        while let Some(segment) = self.segment_to_relieve() {
            if segment >= self.log.end().segment || !self.park_segment(segment)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Carry everything out of a segment that is needed by none but tables whose key is not to be had, and remove it. False if there are others.
    fn park_segment(&self, segment: FileNumber) -> Result<bool> {
        let begins = |table: &Arc<TableState>| table.unreplayed.lock().first_segment() == Some(segment);
        let mut owners = self.background.custody.refused();
        if self.log.total_bytes() > self.options.log_bytes_max.saturating_mul(2) {
            // The warden has tried to load them by now, or is at it.
            owners = self.catalog.all();
        }
        owners.retain(begins);
        // Nobody loads them meanwhile.
        let owners: Vec<Loading<'_>> = owners
            .into_iter()
            .filter_map(|table| Loading::begin(self, table))
            .filter(|own| begins(&own.table))
            .collect();
        if owners.is_empty() || self.background.holders_of(segment) > owners.len() {
            return Ok(false);
        }
        let _searching = self.background.custody.searching.lock();
        let Some(salt) = self.manifest.with_state(|state| state.segments.get(&segment).map(|meta| meta.salt)) else {
            return Ok(false);
        };
        let end = LogPoint { segment, end_bytes: u64::MAX };
        let slots: BTreeSet<Slot> = owners.iter().map(|own| own.table.slot).collect();
        let mut sections = sections_of(&self.dir, &*self.system.all()?, &self.known_segments(segment, end)?, &slots)?;
        let mut parked: BTreeMap<Slot, ParkedRecord> = BTreeMap::new();
        let carried = owners.iter().try_for_each(|own| {
            let own_sections = sections.remove(&own.table.slot).unwrap_or_default();
            let record = self.carry(&own.table, Origin { segment, salt }, own_sections)?;
            parked.extend(record.map(|record| (own.table.slot, record)));
            Ok(())
        });
        let outcome = carried.and_then(|()| self.install_parked(segment, &owners, &parked));
        if !matches!(outcome, Ok(true)) && self.poison.get().is_none() {
            parked.values().for_each(|record| drop(self.dir.remove(&record.name().path())));
        }
        outcome
    }

    /// Write what a table needs of these sections into a file, if it needs any.
    fn carry(&self, table: &TableState, origin: Origin, mut sections: Vec<SectionRef>) -> Result<Option<ParkedRecord>> {
        let flushed = self.manifest.with_state(|state| state.tables.get(&table.slot).map(|meta| meta.flushed));
        sections.retain(|part| flushed.is_some_and(|flushed| part.section.last_seq() > flushed));
        if sections.is_empty() {
            return Ok(None);
        }
        let system = self.system.sealing()?;
        let carrier =
            Carrier { dir: &self.dir, entropy: &*self.env.entropy, system: &system, suite: self.system_suite };
        carrier.carry(self.next_file()?, (table.slot, table.id), origin, &sections).map(Some)
    }

    /// Name the files in the manifest and remove the segment. False if a table was dropped meanwhile: then it is tried again.
    fn install_parked(
        &self,
        segment: FileNumber,
        owners: &[Loading<'_>],
        parked: &BTreeMap<Slot, ParkedRecord>,
    ) -> Result<bool> {
        // What is parked is durable. So must be everything that was committed before it, or a power cut could keep this table's part of
        // a commit and lose another's.
        self.sync_log(self.log.end())?;
        self.dir.sync_dir("parked")?;
        let owners: BTreeMap<Slot, &Arc<TableState>> = owners.iter().map(|own| (own.table.slot, &own.table)).collect();
        let structures: Vec<_> = owners.values().map(|table| table.structure.lock()).collect();
        if owners.values().any(|table| table.is_dropped()) {
            return Ok(false);
        }
        let next = self.log.segment_behind(segment);
        for table in owners.values() {
            let left = table.unreplayed.lock().behind(segment, next);
            self.set_unreplayed(table, left);
        }
        let retired = self.take_segments(|| self.background.oldest_segment());
        let mut edits = vec![Edit::LogSynced { point: self.log.synced() }];
        edits.extend(parked.values().map(|record| Edit::Park(Box::new(record.clone()))));
        edits.extend(retired.iter().map(|&number| Edit::RemoveSegment { number }));
        self.manifest.append(edits).map_err(|error| self.poison(error))?;
        drop(structures);
        self.log.remove_segments(&retired);
        self.advance_anchor();
        Ok(true)
    }

    /// Files of parked sections that hold something of a table that is not in sorted tables, in the order of their sections.
    pub(super) fn parked_files(&self, table: &TableState, flushed: Seq) -> Vec<Arc<ParkedRecord>> {
        self.manifest.with_state(|state| {
            let own = state.parked.values().filter(|record| record.slot == table.slot && record.last_seq > flushed);
            own.cloned().collect()
        })
    }

    /// Files of parked sections of which nothing is needed once everything up to `flushed` is in sorted tables.
    pub(super) fn obsolete_parked(&self, slot: Slot, flushed: Seq) -> Vec<(FileNumber, FileName)> {
        self.manifest.with_state(|state| {
            let own = state.parked.values().filter(|record| record.slot == slot && record.last_seq <= flushed);
            own.map(|record| (record.number, record.name())).collect()
        })
    }

    /// Remove files of parked sections that the manifest no longer names.
    pub(super) fn remove_parked(&self, names: &[FileName]) {
        // What cannot be removed now is an orphan that the next open removes.
        names.iter().for_each(|name| drop(self.dir.remove(&name.path())));
    }
}
