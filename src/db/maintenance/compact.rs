//! The compactor: sorted tables are merged, the most urgent table first.
//!
//! What is to be merged, and what may be dropped by it, is [`compaction`](crate::compaction)'s business; here it is carried out
//! beside everything else that goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Pause, Writing};
use crate::compaction::plan::{ClaimId, Plan, grandparents, plan};
use crate::compaction::run::{Job, Progress, sync_directories};
use crate::db::Engine;
use crate::db::catalog::{TableState, View};
use crate::error::{Error, Result};
use crate::format::manifest::Edit;
use crate::io::{Step, Task};
use crate::keys::Seat;
use crate::sstable::FinishedTable;
use crate::version::Change;

/// Compacts tables, the most urgent first.
pub(crate) struct Compactor {
    engine: Arc<Engine>,
    running: Option<Running>,
    pause: Pause,
}

/// A compaction under way, and what it has taken of its table.
struct Running {
    table: Arc<TableState>,
    plan: Plan,
    claim: ClaimId,
    /// None for a move, which has nothing to do.
    job: Option<Job>,
    _writing: Writing,
}

impl Compactor {
    pub(crate) fn new(engine: Arc<Engine>) -> Compactor {
        Compactor { engine, running: None, pause: Pause::new() }
    }

    /// The queued table with the most level-0 files.
    fn take(&self) -> Option<Arc<TableState>> {
        let mut queue = self.engine.background.compactions.lock();
        let urgent = (0..queue.len()).max_by_key(|&index| queue[index].pressure.level_zero_files())?;
        // Counted before it leaves the queue, so that nobody sees neither.
        self.engine.background.compacting.fetch_add(1, Ordering::AcqRel);
        queue.remove(urgent)
    }

    /// Begin the compaction that a table needs most, if any.
    fn begin(&self, table: &Arc<TableState>) -> Result<Option<Running>> {
        let engine = &self.engine;
        let Some(view) = table.view.load_full().filter(|_| !table.is_dropped()) else { return Ok(None) };
        let readers = engine.moments.readers(&engine.visible);
        // The provider is not asked for a table that needs nothing.
        if plan(&view.version, &engine.options, &table.structure.lock().busy, &readers).is_none() {
            return Ok(None);
        }
        engine.acquire(table, Seat::Service)?;
        let Some(writing) = Writing::begin(engine) else {
            engine.enqueue_compaction(table);
            return Ok(None);
        };
        let (view, plan, claim, readers) = {
            let mut structure = table.structure.lock();
            let Some(view) = table.view.load_full() else { return Ok(None) };
            let readers = engine.moments.readers(&engine.visible);
            let Some(plan) = plan(&view.version, &engine.options, &structure.busy, &readers) else { return Ok(None) };
            let claim = structure.busy.claim(&plan);
            (view, plan, claim, readers)
        };
        if plan.is_move {
            return Ok(Some(Running { table: table.clone(), plan, claim, job: None, _writing: writing }));
        }
        let open = engine.readers.opener(&table.settings, &view.keys);
        let limits = grandparents(&view.version, &plan, &engine.options);
        match Job::compaction(engine.job_context(table, &view), &plan, &view.version, readers, limits, open) {
            Ok(job) => Ok(Some(Running { table: table.clone(), plan, claim, job: Some(job), _writing: writing })),
            Err(error) => {
                table.structure.lock().busy.release(claim);
                Err(error)
            }
        }
    }

    /// One step; true once the compaction is installed.
    fn advance(&self, running: &mut Running) -> Result<bool> {
        let files = match &mut running.job {
            None => Vec::new(),
            Some(job) => match job.step()? {
                Progress::More { .. } => return Ok(false),
                Progress::Done(files) => files,
            },
        };
        let installed = self.engine.install_compaction(running, &files);
        if installed.is_err() {
            self.engine.discard(files.iter());
        }
        installed.map(|()| true)
    }

    /// Give the running compaction up: its files are removed, and it will be planned anew.
    fn give_up(&mut self) {
        if let Some(running) = self.running.take() {
            running.table.structure.lock().busy.release(running.claim);
            self.engine.enqueue_compaction(&running.table);
            self.engine.background.compacting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A compaction, or the look whether there is one to do, is over.
    fn end(&mut self, table: &Arc<TableState>, outcome: Result<bool>) -> Step {
        if !matches!(outcome, Ok(false)) && !table.is_dropped() {
            // There may be more to do, or it is to be tried again.
            self.engine.enqueue_compaction(table);
        }
        self.engine.background.compacting.fetch_sub(1, Ordering::AcqRel);
        match outcome {
            Ok(_) => {
                self.pause.reset();
                self.engine.job_ended(&Ok(()));
                Step::Again
            }
            Err(error) => {
                self.engine.job_ended(&Err(error));
                self.pause.after_failure(&self.engine)
            }
        }
    }
}

impl Task for Compactor {
    fn step(&mut self) -> Step {
        if self.engine.background.stopping() || self.engine.poison.get().is_some() {
            self.give_up();
            return Step::Done;
        }
        let seen = self.engine.background.work.count();
        if self.engine.background.paused.load(Ordering::SeqCst) {
            self.give_up();
            return self.engine.wait_for_work(seen, None);
        }
        let Some(mut running) = self.running.take() else {
            let Some(table) = self.take() else { return self.engine.wait_for_work(seen, None) };
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

impl Engine {
    /// Have a table's levels looked at.
    pub(crate) fn enqueue_compaction(&self, table: &Arc<TableState>) {
        let mut queue = self.background.compactions.lock();
        if !queue.iter().any(|queued| Arc::ptr_eq(queued, table)) {
            queue.push_back(table.clone());
        }
        drop(queue);
        self.background.work.raise();
    }

    /// Compact one table until its plan is empty.
    pub(crate) fn compact_table(&self, table: &Arc<TableState>) -> Result<()> {
        self.flush_table(table)?;
        self.enqueue_compaction(table);
        self.settle_compactions()
    }

    /// Compact every table in memory until all plans are empty.
    pub(crate) fn compact_all(&self) -> Result<()> {
        self.flush_all()?;
        for table in self.catalog.all() {
            if table.view.load().is_some() {
                self.enqueue_compaction(&table);
            }
        }
        self.settle_compactions()
    }

    fn settle_compactions(&self) -> Result<()> {
        self.background.resume();
        self.settle(|| {
            self.background.compacting.load(Ordering::Acquire) == 0 && self.background.compactions.lock().is_empty()
        })
    }

    /// Replace a compaction's inputs by its outputs, in the manifest and for readers.
    fn install_compaction(&self, running: &Running, files: &[FinishedTable]) -> Result<()> {
        let Running { table, plan, .. } = running;
        sync_directories(&self.dir, files.iter().map(|file| file.record.number))?;
        let _structure = table.structure.lock();
        let Some(view) = table.view.load_full().filter(|_| !table.is_dropped()) else {
            return Err(Error::TableDropped { table: table.id });
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
        table.publish(Some(View { version: Arc::new(version), ..View::clone(&view) }));
        if !plan.is_move {
            plan.inputs().for_each(|(_, file)| self.readers.retire(file.clone()));
        }
        self.advance_anchor();
        Ok(())
    }
}
