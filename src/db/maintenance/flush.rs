//! The flusher: frozen memtables become sorted tables.
//!
//! ```text
//! batch    many memtables of many tables, in the order in which they were frozen
//!          large ones into files of their own; small ones behind one another into one container    sstable/container.rs
//!          those of small tables merged with what the table has at level 0, before that becomes too many files
//! install  log synced ─ container synced ─ directories synced ─ one manifest append names them all
//! ```
//! What a batch that failed would have written is still in its memtables and in the log.
//!
//! **Why merges here.** Of 10,000 tables that are written evenly, each gets a few KiB with every round of flushes, and after four rounds it
//! would want a compaction: a job that opens, creates, syncs and names files for a few KiB. Along with a flush the same merge costs microseconds, since
//! batch, container, syncs and append are there already. A merge whose inputs cannot be read is left to compaction, which says so: the
//! memtable is then flushed by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compact::file_bytes;
use super::space::Reservation;
use super::{FlushItem, JobKind, Writing};
use crate::compaction::plan::{Busy, ClaimId, Plan, flush_level, flush_merge, plan};
use crate::compaction::run::{Job, Progress, sync_directories};
use crate::db::Engine;
use crate::db::catalog::{Memory, Seat, TableState, View};
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::manifest::{Edit, FileRecord};
use crate::io::{Step, Task, Tick};
use crate::metrics::Count;
use crate::sstable::{Container, FinishedTable};
use crate::trace::{self, Span};
use crate::types::Slot;
use crate::version::{Change, TableFile};

/// One flush job takes at most this many memtables.
const FLUSH_TABLES_MAX: usize = 4096;
/// It goes on taking memtables until they have this much together, or as much as one large memtable.
const FLUSH_BYTES_MIN: usize = 8 << 20;
/// A memtable of at most this size goes into a container,
const SMALL_BYTES: usize = 1 << 20;
/// if they are of at least so many tables: few files of their own cost little, and go as soon as they are dead.
const CONTAINER_TABLES_MIN: usize = 4;

/// Writes frozen memtables to sorted tables.
pub(crate) struct Flusher {
    engine: Arc<Engine>,
    batch: Option<FlushBatch>,
}

/// The memtables that one manifest append will name.
struct FlushBatch {
    items: Vec<FlushItem>,
    /// What came of the items so far, in order.
    outputs: Vec<Flushed>,
    job: Option<Job>,
    /// What the running job is merged with.
    merge: Option<Merge>,
    /// Items that are flushed by themselves, since a merge failed.
    unmerged: BTreeSet<u64>,
    /// Where small memtables go.
    container: Arc<Container>,
    /// Whether there are so many of them that they do.
    is_shared: bool,
    began: Tick,
    span: Span,
    /// How often memtables were withdrawn when this was last looked at.
    withdrawals: u64,
    _writing: Writing,
}

/// What came of one memtable.
#[derive(Default)]
struct Flushed {
    files: Vec<FinishedTable>,
    merge: Option<Merge>,
}

/// Files that are replaced along with a flush; taken until this is dropped, which takes [`TableState::structure`].
struct Merge {
    table: Arc<TableState>,
    plan: Plan,
    claim: ClaimId,
    _room: Reservation,
}

impl Drop for Merge {
    fn drop(&mut self) {
        self.table.structure.lock().busy.release(self.claim);
    }
}

impl Flusher {
    pub(crate) fn new(engine: Arc<Engine>) -> Flusher {
        Flusher { engine, batch: None }
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Take the next batch, or say until when there is nothing to do.
    fn take_batch(&mut self) -> Result<(), Option<Tick>> {
        let began = self.engine.env.clock.tick();
        let resting = self.engine.background.resting(JobKind::Flush, began);
        let withdrawals = self.engine.background.withdrawals.load(Ordering::Acquire);
        let (mut items, mut gone, mut again, mut bytes): (Vec<FlushItem>, Vec<FlushItem>, _, _) =
            (Vec::new(), Vec::new(), None, 0);
        let bytes_max = self.engine.options.memtable_bytes.max(FLUSH_BYTES_MIN);
        {
            let mut queue = self.engine.background.flushes.lock();
            for item in queue.iter() {
                if items.len() == FLUSH_TABLES_MAX {
                    break;
                }
                if item.table.is_gone() {
                    gone.push(item.clone());
                } else if item.table.is_dropped() {
                    // It holds the log until the manifest says so: a crash before that brings the table back.
                    continue;
                } else if let Some(tick) = resting.get(&item.table.slot) {
                    again = Some(again.map_or(*tick, |again: Tick| again.min(*tick)));
                } else {
                    // One large memtable at a time, so that its memory is free before the next is written: who waits for room waits half as long.
                    bytes += item.memory.table.bytes();
                    if !items.is_empty() && bytes > bytes_max {
                        break;
                    }
                    items.push(item.clone());
                }
            }
            gone.iter().for_each(|item| queue.remove(item));
        }
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
        let small: BTreeSet<Slot> = items.iter().filter(|item| item.is_small()).map(|item| item.table.slot).collect();
        let is_shared = small.len() >= CONTAINER_TABLES_MIN;
        let span = trace::span!(DEBUG, "flush"; memtables = items.len() as u64);
        self.batch = Some(FlushBatch {
            items,
            is_shared,
            outputs: Vec::new(),
            job: None,
            merge: None,
            unmerged: BTreeSet::new(),
            container: self.engine.new_container(),
            began,
            span,
            withdrawals,
            _writing: writing,
        });
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
                    batch.outputs.push(Flushed { files, merge: batch.merge.take() });
                    batch.job = None;
                }
                Err(error) => self.fail(error)?,
            }
            return Ok(false);
        }
        let Some(item) = batch.items.get(batch.outputs.len()) else {
            match batch.items.is_empty() {
                true => self.engine.discard_batch(batch),
                false => self.engine.install_flush(batch)?,
            }
            return Ok(true);
        };
        let view = item.table.view.load_owned().filter(|_| !item.table.is_dropped());
        match view {
            Some(_) => {
                // The service's own permission: a user's revocation does not stop maintenance.
                // If it is a refusal, the memtables are on their way out of memory; otherwise they are tried again.
                if let Err(error) = self.engine.acquire_for_service(&item.table) {
                    self.leave_out(error);
                    return Ok(false);
                }
                batch.begin_job(&self.engine);
            }
            None => batch.outputs.push(Flushed::default()),
        }
        Ok(false)
    }

    /// The running job failed: a merge is tried again without the files that it was to replace, a container that failed takes the batch with it,
    /// and for any other reason the table is left out.
    fn fail(&mut self, error: Error) -> Result<()> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        batch.job = None;
        batch.container.check()?;
        if batch.merge.take().is_some()
            && let Some(item) = batch.items.get(batch.outputs.len())
        {
            batch.unmerged.insert(item.ticket);
            return Ok(());
        }
        self.leave_out(error);
        Ok(())
    }

    /// Let go of memtables that were put away unflushed, the one that is being written included: their plaintext must not stay.
    fn leave_out_withdrawn(&mut self) {
        let Some(batch) = &mut self.batch else { return };
        let withdrawals = self.engine.background.withdrawals.load(Ordering::Acquire);
        if std::mem::replace(&mut batch.withdrawals, withdrawals) == withdrawals {
            return;
        }
        // Files that are finished go with the batch, which names none of a memtable that is not in the queue.
        let mut later = batch.items.split_off(batch.outputs.len());
        let queue = self.engine.background.flushes.lock();
        let goes = later.first().is_some_and(|item| !queue.holds(item));
        later.retain(|item| queue.holds(item));
        drop(queue);
        if goes {
            batch.job = None;
            batch.merge = None;
        }
        batch.items.extend(later);
    }

    /// The table whose turn it is cannot be flushed now: the others go on. None of its later memtables may be flushed before this one.
    fn leave_out(&mut self, error: Error) {
        let Some(batch) = &mut self.batch else { return };
        (batch.job, batch.merge) = (None, None);
        let later = batch.items.split_off(batch.outputs.len());
        let Some(table) = later.first().map(|item| item.table.clone()) else { return };
        batch.items.extend(later.into_iter().filter(|item| !Arc::ptr_eq(&item.table, &table)));
        // A dropped table's memtables are let go of before a later batch.
        if !table.is_dropped() {
            self.engine.job_failed(JobKind::Flush, &table, error);
        }
    }

    /// The batch is over; the tables that are still in it were flushed, or failed together.
    fn end(&mut self, outcome: Result<()>) {
        let Some(batch) = &self.batch else { return };
        let tables: BTreeMap<Slot, Arc<TableState>> =
            batch.items.iter().map(|item| (item.table.slot, item.table.clone())).collect();
        match outcome {
            Ok(()) => {
                self.batch = None;
                self.engine.background.note_successes(JobKind::Flush, tables.into_keys());
            }
            Err(error) => {
                self.give_up();
                tables.values().for_each(|table| self.engine.job_failed(JobKind::Flush, table, error.clone()));
            }
        }
    }

    /// Give the batch up; what it would have written is still in memory and in the log.
    fn give_up(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.engine.discard_batch(&batch);
        }
    }
}

impl FlushBatch {
    /// Begin to write the item whose turn it is.
    fn begin_job(&mut self, engine: &Arc<Engine>) {
        let Some(item) = self.items.get(self.outputs.len()) else { return };
        let Some((view, merge)) = engine.merge_for(item, !self.unmerged.contains(&item.ticket)) else {
            return self.outputs.push(Flushed::default());
        };
        let readers = engine.moments.readers(&engine.visible);
        let mut context = engine.job_context(&item.table, &view);
        if self.is_shared && item.is_small() {
            context.container = Some(self.container.clone());
        }
        self.merge = merge;
        self.job = Some(match &self.merge {
            Some(merge) => {
                let open = engine.readers.passing_opener(&item.table.settings, &view.keys);
                Job::merging_flush(context, &item.memory.table, &merge.plan, readers, open)
            }
            None => {
                // One file: every file of level 0 counts.
                context.file_bytes = u64::MAX;
                Job::flush(context, std::slice::from_ref(&item.memory.table), readers)
            }
        });
    }
}

impl FlushItem {
    fn is_small(&self) -> bool {
        self.memory.table.bytes() <= SMALL_BYTES
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
            if self.carry_one() {
                return Step::Again;
            }
            return self.engine.wait_for_work(seen, again);
        }
        match self.advance() {
            Ok(false) => {}
            Ok(true) => {
                self.end(Ok(()));
                // Also under load that leaves no other moment for it.
                self.carry_one();
            }
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
        self.background.flushes.lock().push(table, memory);
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
        self.background.flushes.lock().withdraw(table.slot);
        self.background.withdrawals.fetch_add(1, Ordering::Release);
        self.background.forgive(table);
    }

    /// The view to flush a memtable from, and what it is to be merged with. None if the table is not in use any more.
    fn merge_for(&self, item: &FlushItem, may_merge: bool) -> Option<(Arc<View>, Option<Merge>)> {
        let plan = |view: &View, busy: &Busy| {
            // What is merged with older files must be next to them in time: not while an older memtable, or what this batch made of one, is missing there.
            let is_next = view.frozen.last().is_some_and(|oldest| Arc::ptr_eq(oldest, &item.memory));
            let bytes = item.memory.table.bytes() as u64;
            flush_merge(&view.version, &self.options, busy, bytes).filter(|_| may_merge && is_next)
        };
        let view = item.table.view.load_owned()?;
        let wanted = plan(&view, &item.table.structure.lock().busy);
        // Without room for it, the memtable is flushed all the same.
        let Some(room) = wanted.and_then(|plan| self.reserve(&plan).ok()) else { return Some((view, None)) };
        let mut structure = item.table.structure.lock();
        // Anew, under the lock under which files are replaced.
        let view = item.table.view.load_owned()?;
        let merge = plan(&view, &structure.busy).map(|plan| {
            let claim = structure.busy.claim(&plan);
            Merge { table: item.table.clone(), plan, claim, _room: room }
        });
        Some((view, merge))
    }

    pub(super) fn new_container(self: &Arc<Engine>) -> Arc<Container> {
        let engine = self.clone();
        Container::new(self.env.vfs.clone(), move || {
            let number = engine.next_file()?;
            let name = FileName::Container(number);
            engine.dir.ensure_dir(&name.directory())?;
            Ok((number, engine.dir.path(&name.path()), name.path()))
        })
    }

    /// Remove what a batch has written: the manifest names nothing of it.
    fn discard_batch(&self, batch: &FlushBatch) {
        self.discard(batch.outputs.iter().flat_map(|output| &output.files));
        self.abandon_container(batch);
    }

    /// Remove a batch's container, of which the manifest names nothing. There may be more in it than came of the batch: what was written for
    /// jobs that failed or were given up.
    fn abandon_container(&self, batch: &FlushBatch) {
        // If the manifest was being written, it may name some after all.
        if self.poison.get().is_none() {
            batch.container.abandon();
        }
    }

    /// Name a batch's files in the manifest and show them to readers.
    fn install_flush(&self, batch: &FlushBatch) -> Result<()> {
        // The log must be durable through the last entry before the manifest says that entries up to it are in sorted
        // tables: otherwise a power cut could keep this table's part of a commit and lose another's.
        self.sync_log(self.log.end())?;
        batch.container.sync()?;
        let files = || batch.outputs.iter().flat_map(|output| &output.files);
        sync_directories(&self.dir, files().map(|file| file.record.extent.container))?;

        let tables: BTreeMap<Slot, &Arc<TableState>> =
            batch.items.iter().map(|item| (item.table.slot, &item.table)).collect();
        // All of them at once, in slot order, so that the levels chosen here are still right when the files land.
        let structures: BTreeMap<Slot, _> =
            tables.iter().map(|(slot, table)| (*slot, table.structure.lock())).collect();
        // Those that were taken off the queue meanwhile were put away unflushed, and others hold the log for them now. Those of a table
        // that was dropped meanwhile hold it themselves, until the manifest says so.
        let is_done: Vec<bool> = {
            let queue = self.background.flushes.lock();
            batch.items.iter().map(|item| queue.holds(item) && !item.table.is_dropped()).collect()
        };
        let done: Vec<&FlushItem> =
            batch.items.iter().zip(&is_done).filter(|(_, is_done)| **is_done).map(|(item, _)| item).collect();
        let mut by_table: BTreeMap<Slot, Vec<&Arc<Memory>>> = BTreeMap::new();
        done.iter().for_each(|item| by_table.entry(item.table.slot).or_default().push(&item.memory));
        let mut views: BTreeMap<Slot, View> = BTreeMap::new();
        let mut edits = vec![Edit::LogSynced { point: self.log.synced() }];
        let mut unnamed: Vec<&FinishedTable> = Vec::new();
        let mut named: Vec<(&FileRecord, Slot)> = Vec::new();
        let mut replaced: Vec<(Slot, Arc<TableFile>)> = Vec::new();
        let mut unparked: Vec<FileName> = Vec::new();
        for ((item, output), is_done) in batch.items.iter().zip(&batch.outputs).zip(&is_done) {
            let slot = item.table.slot;
            let present = item.table.view.load_owned().filter(|_| *is_done);
            let Some(present) = present else {
                unnamed.extend(&output.files);
                continue;
            };
            let view = views.entry(slot).or_insert_with(|| View::clone(&present));
            let mut changes = Vec::with_capacity(1);
            for (level, file) in output.merge.iter().flat_map(|merge| merge.plan.inputs()) {
                edits.push(Edit::RemoveFile { slot, level: level as u8, number: file.number() });
                changes.push(Change::Remove { level, number: file.number() });
                replaced.push((slot, file.clone()));
            }
            for file in &output.files {
                let level = match &output.merge {
                    Some(merge) => merge.plan.target,
                    None => {
                        let busy = &structures[&slot].busy;
                        flush_level(&view.version, &self.options, busy, &file.smallest, &file.largest)
                    }
                };
                edits.push(Edit::AddFile { slot, level: level as u8, file: file.record.clone() });
                changes.push(Change::Add { level, file: self.take_in(file) });
                named.push((&file.record, slot));
            }
            let version = view.version.apply(&changes).map_err(|wrong| wrong.in_file("manifest", 0))?;
            view.version = Arc::new(version);
            let flushed = item.memory.last_seq();
            edits.push(Edit::Flushed { slot, seq: flushed });
            for (number, name) in self.obsolete_parked(slot, flushed) {
                if !unparked.contains(&name) {
                    edits.push(Edit::Unpark { number });
                    unparked.push(name);
                }
            }
        }
        if let Some(container) = batch.container.number() {
            self.readers.share(container, named.iter().copied().filter(|(file, _)| file.extent.container == container));
        }
        let retired = self.take_segments(|| self.background.oldest_segment_without(&done));
        edits.extend(retired.iter().map(|&number| Edit::RemoveSegment { number }));
        self.manifest.append(edits).map_err(|error| self.poison(error))?;

        let mut to_compact: Vec<&Arc<TableState>> = Vec::new();
        let readers = self.moments.readers(&self.visible);
        for (slot, view) in views {
            // A commit may have frozen another memtable meanwhile: what is there now is kept, but for what was flushed.
            let (table, version) = (tables[&slot], view.version);
            let publisher = table.publisher();
            let Some(present) = publisher.present() else { continue };
            let mut next = View { version: version.clone(), ..View::clone(&present) };
            next.frozen.retain(|memory| !by_table[&slot].iter().any(|flushed| Arc::ptr_eq(flushed, memory)));
            publisher.show(Some(next));
            let busy = &structures[&slot].busy;
            if plan(&version, &self.options, busy, &readers).is_some() {
                to_compact.push(table);
            }
        }
        {
            let mut queue = self.background.flushes.lock();
            done.iter().for_each(|item| queue.remove(item));
        }
        // Before a table can be put away, which closes its retired files too.
        replaced.into_iter().for_each(|(slot, file)| self.readers.retire(slot, file));
        drop(structures);
        self.discard(unnamed.into_iter());
        let is_named = |container| named.iter().any(|(file, _)| file.extent.container == container);
        if !batch.container.number().is_some_and(is_named) {
            self.abandon_container(batch);
        }
        let written: u64 = batch.outputs.iter().map(|output| file_bytes(&output.files)).sum();
        let (mut bytes, memtables) = (0, done.len());
        for item in done {
            bytes += item.memory.table.bytes();
            self.discharge(&item.table, &item.memory);
        }
        to_compact.into_iter().for_each(|table| self.enqueue_compaction(table));
        self.meters.tally(|tally| {
            tally.add(Count::FlushBatches, 1);
            tally.add(Count::FlushMemtables, memtables as u64);
            tally.add(Count::FlushMemtableBytes, bytes as u64);
            tally.add(Count::FlushFiles, files().count() as u64);
            tally.add(Count::FlushBytes, written);
        });
        trace::event!(
            DEBUG, "flushed";
            memtables = memtables as u64,
            files = files().count() as u64,
            written_bytes = written
        );
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
        let retired = self.take_segments(|| [self.background.oldest_segment(), until].into_iter().flatten().min());
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
