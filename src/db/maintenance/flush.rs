//! The flusher: frozen memtables become sorted tables.
//!
//! One batch takes many memtables of many tables: all their files are synced, each directory once, and one manifest append names them
//! all. What a batch that failed would have written is still in its memtables and in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compact::file_bytes;
use super::{JobKind, Writing};
use crate::compaction::plan::flush_level;
use crate::compaction::run::{Job, Progress, sync_directories};
use crate::db::Engine;
use crate::db::catalog::{Memory, Seat, TableState, View};
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::manifest::Edit;
use crate::io::{Step, Task, Tick};
use crate::metrics::Count;
use crate::sstable::FinishedTable;
use crate::trace::{self, Span};
use crate::types::Slot;
use crate::version::Change;

/// One flush job takes at most this many memtables.
const FLUSH_TABLES_MAX: usize = 256;
/// It goes on taking memtables until they have this much together, or as much as one large memtable.
const FLUSH_BYTES_MIN: usize = 8 << 20;

/// A memtable on its way to the disk.
#[derive(Clone)]
pub(super) struct FlushItem {
    pub(super) table: Arc<TableState>,
    pub(super) memory: Arc<Memory>,
}

/// Writes frozen memtables to sorted tables.
pub(crate) struct Flusher {
    engine: Arc<Engine>,
    batch: Option<FlushBatch>,
}

/// The memtables that one manifest append will name.
struct FlushBatch {
    items: Vec<FlushItem>,
    /// Finished files, one list per item so far.
    outputs: Vec<Vec<FinishedTable>>,
    job: Option<Job>,
    began: Tick,
    span: Span,
    /// How often memtables were withdrawn when this was last looked at.
    withdrawals: u64,
    _writing: Writing,
}

impl Flusher {
    pub(crate) fn new(engine: Arc<Engine>) -> Flusher {
        Flusher { engine, batch: None }
    }

    /// Take the next batch, or say until when there is nothing to do.
    fn take_batch(&mut self) -> Result<(), Option<Tick>> {
        let began = self.engine.env.clock.tick();
        let resting = self.engine.background.resting(JobKind::Flush, began);
        let (mut gone, mut again) = (Vec::new(), None);
        let withdrawals = self.engine.background.withdrawals.load(Ordering::Acquire);
        let items: Vec<FlushItem> = {
            let mut queue = self.engine.background.flushes.lock();
            queue.retain(|item| {
                let dropped = item.table.is_dropped();
                gone.extend(dropped.then(|| item.clone()));
                !dropped
            });
            // They leave the queue only once they are on disk, so that a batch that failed is still there, in order.
            let is_due = |item: &&FlushItem| match resting.get(&item.table.slot) {
                None => true,
                Some(tick) => {
                    again = Some(again.map_or(*tick, |again: Tick| again.min(*tick)));
                    false
                }
            };
            // One large memtable at a time, so that its memory is free before the next is written: who waits for room waits half as long.
            let mut bytes = 0;
            let fits = |item: &&FlushItem| {
                let before = bytes;
                bytes += item.memory.table.bytes();
                before == 0 || bytes <= self.engine.options.memtable_bytes.max(FLUSH_BYTES_MIN)
            };
            queue.iter().filter(is_due).take(FLUSH_TABLES_MAX).take_while(fits).cloned().collect()
        };
        // Off the queue, they are nobody else's to discharge.
        gone.iter().for_each(|item| self.engine.discharge(&item.table, &item.memory));
        if !gone.is_empty() {
            self.engine.background.progress.raise();
        }
        if items.is_empty() {
            return Err(again);
        }
        let items = self.those_with_room(items).ok_or(Some(began))?;
        // The log is synced before these are named in the manifest: the disk may begin with that while they are written.
        self.engine.log.write_back();
        let writing = Writing::begin(&self.engine).ok_or(None)?;
        let span = trace::span!(DEBUG, "flush"; memtables = items.len() as u64);
        self.batch =
            Some(FlushBatch { span, items, outputs: Vec::new(), job: None, began, withdrawals, _writing: writing });
        Ok(())
    }

    /// The first of these memtables for which the disk has room, one after the other; none if not even the first has. Its table then rests.
    fn those_with_room(&self, mut items: Vec<FlushItem>) -> Option<Vec<FlushItem>> {
        let bytes = |items: &[FlushItem]| items.iter().map(|item| item.memory.table.bytes()).sum();
        while let Err(error) = self.engine.require_for_flush(bytes(&items)) {
            if items.len() == 1 {
                self.engine.job_failed(JobKind::Flush, &items[0].table, error);
                return None;
            }
            items.truncate(items.len() / 2);
        }
        Some(items)
    }

    /// One step of the batch; whether it is done.
    fn advance(&mut self) -> Result<bool> {
        self.leave_out_withdrawn();
        let Some(batch) = &mut self.batch else { return Ok(true) };
        let _span = batch.span.entered();
        if let Some(job) = &mut batch.job {
            match job.step() {
                Ok(Progress::More { .. }) => {}
                Ok(Progress::Done(files)) => {
                    batch.outputs.push(files);
                    batch.job = None;
                }
                Err(error) => self.leave_out(error),
            }
            return Ok(false);
        }
        let Some(item) = batch.items.get(batch.outputs.len()) else {
            if !batch.items.is_empty() {
                self.engine.install_flush(batch)?;
            }
            return Ok(true);
        };
        let view = item.table.view.load_owned().filter(|_| !item.table.is_dropped());
        match view {
            Some(view) => {
                // The service's own permission: a user's revocation does not stop maintenance.
                // If it is a refusal, the memtables are on their way out of memory; otherwise they are tried again.
                if let Err(error) = self.engine.acquire_for_service(&item.table) {
                    self.leave_out(error);
                    return Ok(false);
                }
                let readers = self.engine.moments.readers(&self.engine.visible);
                let mut context = self.engine.job_context(&item.table, &view);
                // One file: every file of level 0 counts.
                context.file_bytes = u64::MAX;
                batch.job = Some(Job::flush(context, std::slice::from_ref(&item.memory.table), readers));
            }
            None => batch.outputs.push(Vec::new()),
        }
        Ok(false)
    }

    /// Let go of memtables that were put away unflushed, the one that is being written included: their plaintext must not stay.
    fn leave_out_withdrawn(&mut self) {
        let Some(batch) = &mut self.batch else { return };
        let withdrawals = self.engine.background.withdrawals.load(Ordering::Acquire);
        if std::mem::replace(&mut batch.withdrawals, withdrawals) == withdrawals {
            return;
        }
        let queue = self.engine.background.flushes.lock();
        let is_queued = |item: &FlushItem| queue.iter().any(|queued| Arc::ptr_eq(&queued.memory, &item.memory));
        // Files that are finished go with the batch, which names none of a memtable that is not in the queue.
        let mut later = batch.items.split_off(batch.outputs.len());
        if later.first().is_some_and(|item| !is_queued(item)) {
            batch.job = None;
        }
        later.retain(is_queued);
        batch.items.extend(later);
    }

    /// The table whose turn it is cannot be flushed now: the others go on. None of its later memtables may be flushed before this one.
    fn leave_out(&mut self, error: Error) {
        let Some(batch) = &mut self.batch else { return };
        batch.job = None;
        let later = batch.items.split_off(batch.outputs.len());
        let Some(table) = later.first().map(|item| item.table.clone()) else { return };
        batch.items.extend(later.into_iter().filter(|item| !Arc::ptr_eq(&item.table, &table)));
        // A dropped table's memtables are let go of before the next batch.
        if !table.is_dropped() {
            self.engine.job_failed(JobKind::Flush, &table, error);
        }
    }

    /// The batch is over; the tables that are still in it were flushed, or failed together.
    fn end(&mut self, outcome: Result<()>) {
        let Some(batch) = &self.batch else { return };
        let tables: BTreeMap<Slot, Arc<TableState>> =
            batch.items.iter().map(|item| (item.table.slot, item.table.clone())).collect();
        match &outcome {
            Ok(()) => self.batch = None,
            Err(_) => self.give_up(),
        }
        for table in tables.values() {
            match &outcome {
                Ok(()) => self.engine.job_done(JobKind::Flush, table),
                Err(error) => self.engine.job_failed(JobKind::Flush, table, error.clone()),
            }
        }
    }

    /// Give the batch up; what it would have written is still in memory and in the log.
    fn give_up(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.engine.discard(batch.outputs.iter().flatten());
        }
    }
}

impl Task for Flusher {
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
        if self.batch.is_none()
            && let Err(again) = self.take_batch()
        {
            return self.engine.wait_for_work(seen, again);
        }
        match self.advance() {
            Ok(false) => {}
            Ok(true) => self.end(Ok(())),
            Err(error) => self.end(Err(error)),
        }
        Step::Again
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.engine.poison_if_panicking("the flusher");
    }
}

impl Engine {
    /// Have a frozen memtable written to sorted tables, after those that were frozen before it.
    pub(in crate::db) fn enqueue_flush(&self, table: &Arc<TableState>, memory: Arc<Memory>) {
        if memory.freeze() {
            self.background.frozen_bytes.fetch_add(memory.charged_bytes(), Ordering::Relaxed);
        }
        self.background.flushes.lock().push_back(FlushItem { table: table.clone(), memory });
        self.background.work.raise();
    }

    /// Freeze what a table has in memory and wait until it is in sorted tables.
    pub(crate) fn flush_table(&self, seat: &Seat) -> Result<()> {
        self.admit(seat)?;
        self.flush_tables(std::slice::from_ref(&seat.table))
    }

    /// Freeze everything in memory and wait until it is in sorted tables.
    pub(crate) fn flush_all(&self) -> Result<()> {
        self.check_writable()?;
        let mut tables: BTreeMap<Slot, Arc<TableState>> =
            self.background.dirty.lock().tables().map(|table| (table.slot, table.clone())).collect();
        // What was frozen before is to be waited for, too.
        tables.extend(self.background.flushes.lock().iter().map(|item| (item.table.slot, item.table.clone())));
        let tables: Vec<_> = tables.into_values().collect();
        self.flush_tables(&tables)
    }

    fn flush_tables(&self, tables: &[Arc<TableState>]) -> Result<()> {
        self.check_writable()?;
        self.background.resume();
        {
            let _writer = self.writer.lock();
            tables.iter().for_each(|table| self.freeze(table));
        }
        let done = || tables.iter().all(|table| table.view.load().as_ref().is_none_or(|view| view.frozen.is_empty()));
        self.settle(JobKind::Flush, &tables.iter().map(|table| table.slot).collect(), done)?;
        // One whose key was refused meanwhile has nothing in memory any more, and yet it was not flushed.
        tables.iter().find_map(|table| table.access.refused(table.id)).map_or(Ok(()), Err)
    }

    /// Take a table's memtables off the queue: they will not be flushed, because they are in the log and nobody has the key. The
    /// caller holds [`TableState::structure`].
    pub(in crate::db) fn withdraw_flushes(&self, table: &TableState) {
        self.background.flushes.lock().retain(|item| item.table.slot != table.slot);
        self.background.withdrawals.fetch_add(1, Ordering::Release);
        self.background.forgive(table);
    }

    /// Name a batch's files in the manifest and show them to readers.
    fn install_flush(&self, batch: &FlushBatch) -> Result<()> {
        // The log must be durable through the last entry before the manifest says that entries up to it are in sorted
        // tables: otherwise a power cut could keep this table's part of a commit and lose another's.
        self.sync_log(self.log.end())?;
        sync_directories(&self.dir, batch.outputs.iter().flatten().map(|file| file.record.number))?;

        let tables: BTreeMap<Slot, &Arc<TableState>> =
            batch.items.iter().map(|item| (item.table.slot, &item.table)).collect();
        // All of them at once, in slot order, so that the levels chosen here are still right when the files land.
        let structures: BTreeMap<Slot, _> =
            tables.iter().map(|(slot, table)| (*slot, table.structure.lock())).collect();
        // Those that were taken off the queue meanwhile were put away unflushed, and others hold the log for them now.
        let queued: Vec<bool> = {
            let queue = self.background.flushes.lock();
            let is_queued = |item: &FlushItem| queue.iter().any(|queued| Arc::ptr_eq(&queued.memory, &item.memory));
            batch.items.iter().map(is_queued).collect()
        };
        let done: Vec<&FlushItem> =
            batch.items.iter().zip(&queued).filter(|(_, queued)| **queued).map(|(item, _)| item).collect();
        let mut views: BTreeMap<Slot, View> = BTreeMap::new();
        let mut edits = vec![Edit::LogSynced { point: self.log.synced() }];
        let mut unnamed: Vec<&FinishedTable> = Vec::new();
        let mut unparked: Vec<FileName> = Vec::new();
        for ((item, files), queued) in batch.items.iter().zip(&batch.outputs).zip(&queued) {
            let slot = item.table.slot;
            // A table that was dropped meanwhile has no view, and the manifest no longer knows it.
            let present = item.table.view.load_owned().filter(|_| *queued && !item.table.is_dropped());
            let Some(present) = present else {
                unnamed.extend(files);
                continue;
            };
            let view = views.entry(slot).or_insert_with(|| View::clone(&present));
            for file in files {
                let (smallest, largest) = (&file.smallest, &file.largest);
                let busy = &structures[&slot].busy;
                let level = flush_level(&view.version, &self.options, busy, smallest, largest);
                edits.push(Edit::AddFile { slot, level: level as u8, file: file.record.clone() });
                let change = Change::Add { level, file: self.take_in(file) };
                let version = view.version.apply(&[change]).map_err(|wrong| wrong.in_file("manifest", 0))?;
                view.version = Arc::new(version);
            }
            let flushed = item.memory.last_seq();
            edits.push(Edit::Flushed { slot, seq: flushed });
            for (number, name) in self.obsolete_parked(slot, flushed) {
                if !unparked.contains(&name) {
                    edits.push(Edit::Unpark { number });
                    unparked.push(name);
                }
            }
        }
        let retired = self.log.take_segments_before(self.background.oldest_segment_without(&done));
        edits.extend(retired.iter().map(|&number| Edit::RemoveSegment { number }));
        self.manifest.append(edits).map_err(|error| self.poison(error))?;

        for (slot, view) in views {
            // A commit may have frozen another memtable meanwhile: what is there now is kept, but for what was flushed.
            let publisher = tables[&slot].publisher();
            let Some(present) = publisher.present() else { continue };
            let mut next = View { version: view.version, ..View::clone(&present) };
            next.frozen.retain(|memory| !done.iter().any(|done| Arc::ptr_eq(&done.memory, memory)));
            publisher.show(Some(next));
        }
        self.background.flushes.lock().retain(|item| !done.iter().any(|done| Arc::ptr_eq(&done.memory, &item.memory)));
        drop(structures);
        self.discard(unnamed.into_iter());
        let files = batch.outputs.iter().flatten().count() as u64;
        let written: u64 = batch.outputs.iter().map(|files| file_bytes(files)).sum();
        let (mut bytes, memtables) = (0, done.len());
        for item in done {
            bytes += item.memory.table.bytes();
            self.discharge(&item.table, &item.memory);
            self.enqueue_compaction(&item.table);
        }
        self.meters.tally(|tally| {
            tally.add(Count::FlushBatches, 1);
            tally.add(Count::FlushMemtables, memtables as u64);
            tally.add(Count::FlushMemtableBytes, bytes as u64);
            tally.add(Count::FlushFiles, files);
            tally.add(Count::FlushBytes, written);
        });
        trace::event!(DEBUG, "flushed"; memtables = memtables as u64, files = files, written_bytes = written);
        self.meters.flush_ns.record(self.env.clock.tick().since(batch.began));
        self.note_flushed(bytes, memtables, batch.began);
        self.remove_parked(&unparked);
        self.log.remove_segments(&retired);
        self.advance_anchor();
        Ok(())
    }

    /// Remove the log segments that hold something under an old key and that nobody needs.
    pub(super) fn retire_segments(&self) -> Result<()> {
        if self.log.oldest_segment().is_none_or(|oldest| oldest > self.background.log_until()) {
            return Ok(());
        }
        // Those behind them may be needed by nobody either, and have time.
        let until = self.background.log_until().next();
        let needed = [self.background.oldest_segment(), until].into_iter().flatten().min();
        let retired = self.log.take_segments_before(needed);
        if retired.is_empty() {
            return Ok(());
        }
        self.sync_log(self.log.end())?;
        let mut edits = vec![Edit::LogSynced { point: self.log.synced() }];
        edits.extend(retired.iter().map(|&number| Edit::RemoveSegment { number }));
        self.manifest.append(edits).map_err(|error| self.poison(error))?;
        self.log.remove_segments(&retired);
        self.background.progress.raise();
        Ok(())
    }
}
