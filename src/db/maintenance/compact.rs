//! The compactor: sorted tables are merged, the most urgent table first.
//!
//! What is to be merged, and what may be dropped by it, is [`compaction`](crate::compaction)'s business; here it is carried out
//! beside everything else that goes on. What compactors share is in [`merges`](super::merges).
//!
//! # Helpers
//! Besides the compactors there is one that begins nothing. While nobody commits and nothing is to be flushed, or while level 0 of a table is so full that
//! who writes to it is slowed, it works on parts of the others' merges; as soon as somebody commits, it gives its part back as far as it
//! is. So a machine's second core goes to whoever can use it. Readers are not asked: they wait for nothing that a compaction holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::merges::{Merge, Next, Part, Priority, State};
use super::{JobKind, Writing};
use crate::compaction::Readers;
use crate::compaction::plan::{Plan, grandparents, plan, split};
use crate::compaction::run::{Job, Progress, sync_directories};
use crate::db::Engine;
use crate::db::catalog::{Seat, TableState, View};
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::format::manifest::Edit;
use crate::io::{Step, Task, Tick};
use crate::metrics::Count;
use crate::sstable::FinishedTable;
use crate::trace;
use crate::types::{Seq, Slot};
use crate::version::Change;

/// A store to which nothing was committed for this long has room for helpers.
const IDLE: Duration = Duration::from_millis(20);

/// Compacts tables, the most urgent first.
pub(crate) struct Compactor {
    engine: Arc<Engine>,
    /// A helper begins nothing, and helps only while the foreground is idle or has to wait anyway.
    helper: Option<Foreground>,
    running: Option<Running>,
}

/// What a compactor is at.
struct Running {
    merge: Arc<Merge>,
    part: Option<Part>,
    is_owner: bool,
    _writing: Writing,
}

/// When something was last committed.
struct Foreground {
    visible: Seq,
    since: Tick,
}

impl Compactor {
    pub(crate) fn new(engine: Arc<Engine>) -> Compactor {
        Compactor { engine, helper: None, running: None }
    }

    /// One that works on parts of other compactors' merges while nobody commits.
    pub(crate) fn helper(engine: Arc<Engine>) -> Compactor {
        let foreground = Foreground { visible: engine.visible.load(), since: engine.env.clock.tick() };
        Compactor { engine, helper: Some(foreground), running: None }
    }

    /// Whether this compactor may work on a merge of somebody else's at present, and otherwise when to ask again.
    fn may_help(&mut self, merge: &Merge) -> Result<(), Tick> {
        let Some(foreground) = &mut self.helper else { return Ok(()) };
        // Those who write to this table are slowed already: what helps them is the end of this.
        let level_zero_files = merge.table.pressure.level_zero_files();
        if merge.plan.source == 0 && level_zero_files >= self.engine.options.level_zero_slow_files {
            return Ok(());
        }
        let (visible, now) = (self.engine.visible.load(), self.engine.env.clock.tick());
        if visible != foreground.visible {
            *foreground = Foreground { visible, since: now };
        }
        let idle_from = foreground.since.after(IDLE);
        // Flushes come first.
        let is_flushing = !self.engine.background.flushes.lock().is_empty();
        if is_flushing || now < idle_from { Err(idle_from.max(now.after(IDLE))) } else { Ok(()) }
    }

    /// Find something to do.
    fn find(&mut self, seen: u64) -> Step {
        let engine = self.engine.clone();
        let resting = engine.background.resting(JobKind::Compaction, engine.env.clock.tick());
        let next = match self.helper {
            Some(_) => engine.background.compactions.lock().open_merge().map_or(Next::Rest(None), Next::Part),
            None => engine.background.compactions.lock().next(&resting),
        };
        match next {
            Next::Rest(until) => engine.wait_for_work(seen, until),
            Next::Part(merge) => {
                if let Err(again) = self.may_help(&merge) {
                    return engine.wait_for_work(seen, Some(again));
                }
                if let Some(writing) = Writing::begin(&engine)
                    && let Some(part) = merge.take()
                {
                    self.running = Some(Running { merge, part: Some(part), is_owner: false, _writing: writing });
                }
                Step::Again
            }
            Next::Table(table) => match self.begin(&table) {
                Ok(Some(running)) => {
                    self.running = Some(running);
                    Step::Again
                }
                Ok(None) => self.end(&table, Ok(false)),
                Err(error) => self.end(&table, Err(error)),
            },
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
        let room = match engine.reserve(&plan) {
            Ok(room) => room,
            Err(error) => {
                table.structure.lock().busy.release(claim);
                return Err(error);
            }
        };
        let jobs = match self.jobs(table, &view, &plan, &readers) {
            Ok(jobs) => jobs,
            Err(error) => {
                table.structure.lock().busy.release(claim);
                return Err(error);
            }
        };
        let priority = Priority::of(&view.version, &engine.options);
        let is_shared = jobs.len() > 1;
        let merge = Merge::new(table, (plan, claim, room), priority, engine.env.clock.tick(), jobs);
        if is_shared {
            engine.background.offer_merge(&merge);
        }
        Ok(Some(Running { merge, part: None, is_owner: true, _writing: writing }))
    }

    /// A job for each part of a plan.
    fn jobs(&self, table: &Arc<TableState>, view: &View, plan: &Plan, readers: &Readers) -> Result<Vec<Job>> {
        let engine = &self.engine;
        if plan.is_move {
            return Ok(Vec::new());
        }
        let open = engine.readers.opener(&table.settings, &view.keys);
        let job = |part| {
            let mut context = engine.job_context(table, view);
            if plan.target == 0 {
                // One file: every file of level 0 counts.
                context.file_bytes = u64::MAX;
            }
            let limits = grandparents(&view.version, plan, &engine.options);
            Job::compaction(context, (plan, part), &view.version, readers.clone(), limits, open.clone())
        };
        split(plan, &engine.options).into_iter().map(job).collect()
    }

    /// One step of what this compactor is at.
    fn go_on(&mut self, mut running: Running, seen: u64) -> Step {
        let merge = running.merge.clone();
        let _span = merge.span.entered();
        // Given up at once, so that its keys and blocks leave memory.
        if let Some(error) = merge.table.access.refused(merge.table.id) {
            merge.end(Some(error));
        }
        match merge.state() {
            State::Open => {}
            _ if !running.is_owner => return self.leave(running),
            State::Done => {
                let installed = self.install(&merge);
                return self.close(running, installed.map(|()| true));
            }
            State::Failed(error) => return self.close(running, Err(error)),
            State::GivenUp => {
                self.running = Some(running);
                self.give_up();
                return Step::Again;
            }
        }
        if !running.is_owner && self.may_help(&merge).is_err() {
            return self.leave(running);
        }
        let Some(mut part) = running.part.take().or_else(|| merge.take()) else {
            // The last parts are others', who raise this when they are done.
            self.running = Some(running);
            return self.engine.wait_for_work(seen, None);
        };
        let written_bytes = part.job.written_bytes();
        let stepped = part.job.step();
        merge.room.spend(part.job.written_bytes().saturating_sub(written_bytes));
        match stepped {
            Ok(Progress::More { .. }) => running.part = Some(part),
            Ok(Progress::Done(files)) => self.finish(&merge, part, files),
            Err(error) => {
                drop(part);
                merge.end(Some(error));
            }
        }
        if running.is_owner || running.part.is_some() {
            self.running = Some(running);
            return Step::Again;
        }
        self.leave(running)
    }

    /// A part is done. If the merge has ended meanwhile, its owner has removed what was written and does not come back for this.
    fn finish(&self, merge: &Merge, part: Part, files: Vec<FinishedTable>) {
        self.engine.discard(merge.finish(part, files).iter());
    }

    /// Leave a merge to its owner and the others.
    fn leave(&mut self, mut running: Running) -> Step {
        if let Some(part) = running.part.take() {
            running.merge.put_back(part);
        }
        drop(running);
        self.engine.background.work.raise();
        Step::Again
    }

    fn install(&self, merge: &Merge) -> Result<()> {
        let files = merge.take_outputs();
        let installed = self.engine.install_compaction(&merge.table, &merge.plan, &files);
        match &installed {
            Ok(()) if merge.plan.source == 0 => self.engine.note_merged(merge.plan.upper.len(), merge.began),
            Ok(()) => {}
            Err(_) => self.engine.discard(files.iter()),
        }
        if installed.is_ok() {
            self.engine.count_compaction(&merge.plan, &files, merge.began);
        }
        installed
    }

    /// The merge that this compactor owns is over.
    fn close(&mut self, running: Running, outcome: Result<bool>) -> Step {
        let merge = running.merge.clone();
        self.release(&merge);
        // Jobs let go of their inputs before anybody asks whether they are still looked at.
        drop(running);
        let table = merge.table.clone();
        drop(merge);
        self.engine.readers.remove_obsolete();
        self.end(&table, outcome)
    }

    fn release(&self, merge: &Arc<Merge>) {
        self.engine.background.withdraw_merge(merge);
        merge.table.structure.lock().busy.release(merge.claim);
        // None, if they were installed.
        self.engine.discard(merge.take_outputs().iter());
    }

    /// Give up what this compactor is at: files are removed, and the owner has it planned anew.
    fn give_up(&mut self) {
        let Some(Running { merge, part, is_owner, .. }) = self.running.take() else { return };
        drop(part);
        merge.end(None);
        if is_owner {
            self.release(&merge);
            self.engine.enqueue_compaction(&merge.table);
            self.engine.background.compaction_over(merge.table.slot);
        } else {
            self.engine.background.work.raise();
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
        match self.running.take() {
            Some(running) => self.go_on(running, seen),
            None => self.find(seen),
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
        trace::event!(DEBUG, "compacted"; files = files.len() as u64, written_bytes = file_bytes(files));
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
        let view = table.view.load_owned();
        let priority = view.map_or(Priority::default(), |view| Priority::of(&view.version, &self.options));
        self.background.compactions.lock().enqueue(table, priority);
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
        self.settle(JobKind::Compaction, &slots, || !self.background.compactions.lock().any_of(&slots))
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

#[cfg(test)]
mod tests;
