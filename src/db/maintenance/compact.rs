//! The compactor: sorted tables are merged, the most urgent table first.
//!
//! What is to be merged, and what may be dropped by it, is [`compaction`](crate::compaction)'s business; here it is carried out
//! beside everything else that goes on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Background, JobKind, Writing};
use crate::compaction::plan::{ClaimId, Plan, grandparents, plan};
use crate::compaction::run::{Job, Progress, sync_directories};
use crate::db::Engine;
use crate::db::catalog::{Seat, TableState, View};
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::format::manifest::Edit;
use crate::io::{Step, Task, Tick};
use crate::metrics::Count;
use crate::sstable::FinishedTable;
use crate::types::Slot;
use crate::version::Change;

/// Tables to compact. A table is in the queue, or a compactor is at it, or there is nothing to do: read under one lock.
#[derive(Default)]
pub(super) struct Compactions {
    /// Tables whose levels changed since they were last looked at, with the order in which they came.
    queue: BTreeMap<Slot, (u64, Arc<TableState>)>,
    came: u64,
    /// How many compactors are at a table.
    running: BTreeMap<Slot, usize>,
}

impl Compactions {
    /// Tables in the queue, and those that are being compacted.
    pub(super) fn tables(&self) -> usize {
        self.queue.len() + self.running.keys().filter(|slot| !self.queue.contains_key(slot)).count()
    }
}

impl Background {
    /// A compactor has left this table alone.
    fn compaction_over(&self, slot: Slot) {
        let mut compactions = self.compactions.lock();
        if let Some(count) = compactions.running.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                compactions.running.remove(&slot);
            }
        }
    }
}

/// Compacts tables, the most urgent first.
pub(crate) struct Compactor {
    engine: Arc<Engine>,
    running: Option<Running>,
}

/// A compaction under way, and what it has taken of its table.
struct Running {
    table: Arc<TableState>,
    plan: Plan,
    claim: ClaimId,
    /// None for a move, which has nothing to do.
    job: Option<Job>,
    began: Tick,
    _writing: Writing,
}

impl Compactor {
    pub(crate) fn new(engine: Arc<Engine>) -> Compactor {
        Compactor { engine, running: None }
    }

    /// The queued table with the most level-0 files, of equals the first to come; or until when there is nothing to do.
    fn take(&self) -> Result<Arc<TableState>, Option<Tick>> {
        let background = &self.engine.background;
        let resting = background.resting(JobKind::Compaction, self.engine.env.clock.tick());
        let compactions = &mut *background.compactions.lock();
        let due = compactions.queue.iter().filter(|(slot, _)| !resting.contains_key(slot));
        let urgent = due.max_by_key(|(_, (came, table))| (table.pressure.level_zero_files(), Reverse(*came)));
        let urgent = urgent.map(|(slot, _)| *slot);
        match urgent.and_then(|slot| compactions.queue.remove(&slot)) {
            Some((_, table)) => {
                *compactions.running.entry(table.slot).or_default() += 1;
                Ok(table)
            }
            None => Err(compactions.queue.keys().filter_map(|slot| resting.get(slot)).min().copied()),
        }
    }

    /// Begin the compaction that a table needs most, if any.
    fn begin(&self, table: &Arc<TableState>) -> Result<Option<Running>> {
        let engine = &self.engine;
        let Some(view) = table.view.load_owned().filter(|_| !table.is_dropped()) else { return Ok(None) };
        let readers = engine.moments.readers(&engine.visible);
        // The provider is not asked for a table that needs nothing.
        if plan(&view.version, &engine.options, &table.structure.lock().busy, &readers).is_none() {
            return Ok(None);
        }
        engine.acquire_for_service(table)?;
        let Some(writing) = Writing::begin(engine) else {
            engine.enqueue_compaction(table);
            return Ok(None);
        };
        let (view, plan, claim, readers) = {
            let mut structure = table.structure.lock();
            let Some(view) = table.view.load_owned() else { return Ok(None) };
            let readers = engine.moments.readers(&engine.visible);
            let Some(plan) = plan(&view.version, &engine.options, &structure.busy, &readers) else { return Ok(None) };
            let claim = structure.busy.claim(&plan);
            (view, plan, claim, readers)
        };
        let began = engine.env.clock.tick();
        if plan.is_move {
            return Ok(Some(Running { table: table.clone(), plan, claim, job: None, began, _writing: writing }));
        }
        let open = engine.readers.opener(&table.settings, &view.keys);
        let limits = grandparents(&view.version, &plan, &engine.options);
        match Job::compaction(engine.job_context(table, &view), &plan, &view.version, readers, limits, open) {
            Ok(job) => {
                Ok(Some(Running { table: table.clone(), plan, claim, job: Some(job), began, _writing: writing }))
            }
            Err(error) => {
                table.structure.lock().busy.release(claim);
                Err(error)
            }
        }
    }

    /// One step; true once the compaction is installed.
    fn advance(&self, running: &mut Running) -> Result<bool> {
        // Given up at once, so that its keys and blocks leave memory.
        if let Some(error) = running.table.access.refused(running.table.id) {
            return Err(error);
        }
        let files = match &mut running.job {
            None => Vec::new(),
            Some(job) => match job.step()? {
                Progress::More { .. } => return Ok(false),
                Progress::Done(files) => files,
            },
        };
        let installed = self.engine.install_compaction(&running.table, &running.plan, &files);
        match &installed {
            Ok(()) if running.plan.source == 0 => self.engine.note_merged(running.plan.upper.len(), running.began),
            Ok(()) => {}
            Err(_) => self.engine.discard(files.iter()),
        }
        if installed.is_ok() {
            self.engine.count_compaction(&running.plan, &files, running.began);
        }
        installed.map(|()| true)
    }

    /// Give the running compaction up: its files are removed, and it will be planned anew.
    fn give_up(&mut self) {
        if let Some(running) = self.running.take() {
            running.table.structure.lock().busy.release(running.claim);
            self.engine.enqueue_compaction(&running.table);
            self.engine.background.compaction_over(running.table.slot);
        }
    }

    /// A compaction, or the look whether there is one to do, is over.
    fn end(&mut self, table: &Arc<TableState>, outcome: Result<bool>) -> Step {
        // What fails because its table was dropped meanwhile has not failed.
        let outcome = if table.is_dropped() { Ok(false) } else { outcome };
        let is_over = matches!(outcome, Ok(false));
        match outcome {
            Ok(_) => self.engine.job_done(JobKind::Compaction, table),
            Err(error) => self.engine.job_failed(JobKind::Compaction, table, error),
        }
        if !is_over {
            // There may be more to do, or it is to be tried again.
            self.engine.enqueue_compaction(table);
        }
        self.engine.background.compaction_over(table.slot);
        self.engine.background.progress.raise();
        Step::Again
    }
}

impl Task for Compactor {
    fn step(&mut self) -> Step {
        // Before anything is looked at: what is raised afterwards, an end too, is not slept through.
        let seen = self.engine.background.work.count();
        if self.engine.background.stopping() || self.engine.poison.get().is_some() {
            self.give_up();
            return Step::Done;
        }
        if self.engine.background.paused.load(Ordering::SeqCst) {
            self.give_up();
            return self.engine.wait_for_work(seen, None);
        }
        let Some(mut running) = self.running.take() else {
            let table = match self.take() {
                Ok(table) => table,
                Err(again) => return self.engine.wait_for_work(seen, again),
            };
            return match self.begin(&table) {
                Ok(Some(running)) => {
                    self.running = Some(running);
                    Step::Again
                }
                Ok(None) => self.end(&table, Ok(false)),
                Err(error) => self.end(&table, Err(error)),
            };
        };
        match self.advance(&mut running) {
            Ok(false) => {
                self.running = Some(running);
                Step::Again
            }
            outcome => {
                running.table.structure.lock().busy.release(running.claim);
                let table = running.table.clone();
                // The job lets go of its inputs before anybody asks whether they are still looked at.
                drop(running);
                self.engine.readers.remove_obsolete();
                self.end(&table, outcome)
            }
        }
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.engine.poison_if_panicking("a compactor");
    }
}

impl Engine {
    fn count_compaction(&self, plan: &Plan, files: &[FinishedTable], began: Tick) {
        let inputs = plan.inputs().count() as u64;
        if plan.is_move {
            self.meters.count(Count::CompactionMoves, inputs);
            return;
        }
        self.meters.tally(|tally| {
            tally.add(Count::Compactions, 1);
            tally.add(Count::CompactionReadFiles, inputs);
            tally.add(Count::CompactionReadBytes, plan.input_bytes());
            tally.add(Count::CompactionWrittenFiles, files.len() as u64);
            tally.add(Count::CompactionWrittenBytes, file_bytes(files));
        });
        self.meters.compaction_ns.record(self.env.clock.tick().since(began));
    }

    /// Have a table's levels looked at.
    pub(crate) fn enqueue_compaction(&self, table: &Arc<TableState>) {
        {
            let mut compactions = self.background.compactions.lock();
            compactions.came += 1;
            let came = compactions.came;
            compactions.queue.entry(table.slot).or_insert_with(|| (came, table.clone()));
        }
        self.background.work.raise();
    }

    /// Compact one table until its plan is empty.
    pub(crate) fn compact_table(&self, seat: &Seat) -> Result<()> {
        self.flush_table(seat)?;
        self.compact_tables(std::slice::from_ref(&seat.table))
    }

    /// Compact every table in memory until all plans are empty.
    pub(crate) fn compact_all(&self) -> Result<()> {
        self.flush_all()?;
        let mut tables = self.catalog.all();
        tables.retain(|table| table.view.load().is_some());
        self.compact_tables(&tables)
    }

    fn compact_tables(&self, tables: &[Arc<TableState>]) -> Result<()> {
        self.background.resume();
        tables.iter().for_each(|table| self.enqueue_compaction(table));
        let slots: BTreeSet<Slot> = tables.iter().map(|table| table.slot).collect();
        self.settle(JobKind::Compaction, &slots, || {
            let compactions = self.background.compactions.lock();
            let mut busy = compactions.queue.keys().chain(compactions.running.keys());
            !busy.any(|slot| slots.contains(slot))
        })
    }

    /// Replace a compaction's inputs by its outputs, in the manifest and for readers.
    pub(super) fn install_compaction(
        &self,
        table: &Arc<TableState>,
        plan: &Plan,
        files: &[FinishedTable],
    ) -> Result<()> {
        sync_directories(&self.dir, files.iter().map(|file| file.record.number))?;
        let structure = table.structure.lock();
        let Some(view) = table.view.load_owned().filter(|_| !table.is_dropped()) else {
            return Err(put_away_meanwhile(table));
        };
        let slot = table.slot;
        let mut changes: Vec<Change> = Vec::new();
        let mut edits: Vec<Edit> = Vec::new();
        for (level, file) in plan.inputs() {
            edits.push(Edit::RemoveFile { slot, level: level as u8, number: file.number() });
            changes.push(Change::Remove { level, number: file.number() });
        }
        let level = plan.target;
        let moved = plan.upper.iter().filter(|_| plan.is_move).cloned();
        for file in moved.chain(files.iter().map(|file| self.take_in(file))) {
            edits.push(Edit::AddFile { slot, level: level as u8, file: file.record.clone() });
            changes.push(Change::Add { level, file });
        }
        let version = view.version.apply(&changes).map_err(|wrong| wrong.in_file("manifest", 0))?;
        self.manifest.append(edits).map_err(|error| self.poison(error))?;
        {
            // A memtable may have been frozen meanwhile. That the view is gone, nobody can have brought about.
            let publisher = table.publisher();
            let view = publisher.present().unwrap_or(view);
            publisher.show(Some(View { version: Arc::new(version), ..View::clone(&view) }));
        }
        if !plan.is_move {
            plan.inputs().for_each(|(_, file)| self.readers.retire(slot, file.clone()));
        }
        drop(structure);
        self.advance_anchor();
        Ok(())
    }
}

/// Bytes of these files.
pub(super) fn file_bytes(files: &[FinishedTable]) -> u64 {
    files.iter().map(|file| file.record.extent.len_bytes).sum()
}

/// Why a compaction has no table any more to be installed in.
fn put_away_meanwhile(table: &TableState) -> Error {
    if table.is_dropped() {
        return Error::TableDropped { table: table.id };
    }
    let message = "the table was put away while it was being compacted";
    let source = || ProviderError::new(ProviderReason::Unreachable, message);
    table.access.refused(table.id).unwrap_or_else(|| Error::KeyUnavailable { table: table.id, source: source() })
}
