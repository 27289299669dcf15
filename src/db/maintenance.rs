//! Background work: flush, compaction, permits, log segments; and how writers are slowed when it falls behind.
//!
//! ```text
//! flusher    frozen memtables -> sorted tables: all files synced, directories synced, one manifest append
//! compactor  the table with the most level-0 files first; one compaction per table at a time
//! keeper     a few times a second: the tick that permits are compared with, permits to renew, tables to put away,
//!            the next log segment, memtables that hold the oldest one
//! ```
//!
//! Each is a [`Task`] in steps of at most a MiB, so that a simulation can stop between any two. A job that fails is given up
//! whole (its files are removed) and tried again after a pause that doubles; what it would have written is still in the
//! log or in its inputs. Only the log and the manifest poison the store.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use super::batch::WriteSet;
use super::catalog::{Memory, TableState, View};
use crate::compaction::plan::{ClaimId, Plan, flush_level, grandparents, plan};
use crate::compaction::run::{Job, JobContext, Progress, sync_directories};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::FileName;
use crate::format::manifest::Edit;
use crate::io::{Signal, Step, Task, Tick};
use crate::keys::Seat;
use crate::sstable::FinishedTable;
use crate::types::{FileNumber, Slot};
use crate::version::{Change, TableFile};
use crate::wal::LogWriter;

/// How often the keeper looks around; the resolution of permits.
const KEEPER_PERIOD: Duration = Duration::from_millis(100);
/// The pause after a job failed for the first time; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// One flush job takes at most this many memtables.
const FLUSH_TABLES_MAX: usize = 256;
/// A delay shorter than this is saved up.
const DELAY_MIN: Duration = Duration::from_millis(1);
/// The longest that one commit is delayed while background work is behind but not stuck.
const DELAY_MAX: Duration = Duration::from_millis(10);

/// What background tasks and writers tell each other.
pub(crate) struct Background {
    /// Raised when there is something to do.
    work: Arc<Signal>,
    /// Raised when something was done.
    progress: Signal,
    stop: AtomicBool,
    /// No file may be written until the next commit or flush.
    paused: AtomicBool,
    /// Flushes and compactions that have files open for writing.
    writing: AtomicUsize,
    /// Raised when tasks are asked to end.
    pub(super) quit: Arc<Signal>,
    /// Tables that somebody has or had a permit for since they were last put away.
    pub(super) in_use: Mutex<HashMap<Slot, Arc<TableState>>>,
    /// Bytes of all memtables, frozen ones included.
    memory_bytes: AtomicUsize,
    /// Tables whose active memtable has entries.
    dirty: Mutex<HashMap<Slot, Arc<TableState>>>,
    /// Frozen memtables, oldest first.
    flushes: Mutex<VecDeque<FlushItem>>,
    /// Tables whose levels changed since they were last looked at.
    compactions: Mutex<VecDeque<Arc<TableState>>>,
    /// Compactions that run now.
    compacting: AtomicUsize,
    /// Memtables by the log segment of their first entry.
    segments: Mutex<BTreeMap<FileNumber, usize>>,
    /// Why the last background job failed, until one succeeds.
    failure: Mutex<Option<Error>>,
    /// Bytes per second that flushes have been writing lately.
    drain_rate: AtomicU64,
    /// Nanoseconds that writers owe for being let in while work was behind.
    debt_ns: AtomicU64,
}

#[derive(Clone)]
struct FlushItem {
    table: Arc<TableState>,
    memory: Arc<Memory>,
}

impl Background {
    pub(crate) fn new() -> Background {
        Background {
            work: Arc::new(Signal::new()),
            progress: Signal::new(),
            stop: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            writing: AtomicUsize::new(0),
            quit: Arc::new(Signal::new()),
            in_use: Mutex::default(),
            memory_bytes: AtomicUsize::new(0),
            dirty: Mutex::default(),
            flushes: Mutex::default(),
            compactions: Mutex::default(),
            compacting: AtomicUsize::new(0),
            segments: Mutex::default(),
            failure: Mutex::default(),
            drain_rate: AtomicU64::new(64 << 20),
            debt_ns: AtomicU64::new(0),
        }
    }

    /// Wake everybody: tasks and those who wait for them.
    pub(crate) fn wake(&self) {
        self.work.raise();
        self.progress.raise();
    }

    /// Ask the tasks to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.quit.raise();
        self.wake();
    }

    /// Let background work write again.
    pub(super) fn resume(&self) {
        if self.paused.load(Ordering::Relaxed) {
            self.paused.store(false, Ordering::SeqCst);
            self.work.raise();
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// A memtable or an unreplayed part of the log needs this segment.
    pub(crate) fn hold_segment(&self, segment: FileNumber) {
        *self.segments.lock().entry(segment).or_default() += 1;
    }

    /// One of those that needed this segment does no more.
    pub(crate) fn release_segment(&self, segment: FileNumber) {
        let mut segments = self.segments.lock();
        if let Some(count) = segments.get_mut(&segment) {
            *count -= 1;
            if *count == 0 {
                segments.remove(&segment);
            }
        }
    }

    /// The oldest segment that anybody other than `flushed` needs.
    fn oldest_segment_without(&self, flushed: &[FlushItem]) -> Option<FileNumber> {
        let mut segments = self.segments.lock().clone();
        for segment in flushed.iter().filter_map(|item| item.memory.first_segment()) {
            if let Some(count) = segments.get_mut(&segment) {
                *count = count.saturating_sub(1);
            }
        }
        segments.into_iter().find(|(_, count)| *count > 0).map(|(segment, _)| segment)
    }
}

// Writers' side.
impl Engine {
    /// Account for what a group added to a memtable.
    pub(crate) fn charge(&self, table: &Arc<TableState>, memory: &Memory, segment: FileNumber) {
        self.background.memory_bytes.fetch_add(memory.uncharged_bytes(), Ordering::Relaxed);
        if memory.begins_in(segment) {
            self.background.hold_segment(segment);
            self.background.dirty.lock().insert(table.slot, table.clone());
        }
    }

    /// Account for a memtable that was filled from the log.
    pub(super) fn adopt(&self, table: &Arc<TableState>, memory: &Memory) {
        if let Some(segment) = memory.first_segment() {
            self.background.memory_bytes.fetch_add(memory.uncharged_bytes(), Ordering::Relaxed);
            self.background.hold_segment(segment);
            self.background.dirty.lock().insert(table.slot, table.clone());
        }
    }

    /// Account for a memtable that is gone: in sorted tables, or with its table.
    pub(super) fn discharge(&self, table: &TableState, memory: &Memory) {
        if let Some(segment) = memory.first_segment() {
            self.background.memory_bytes.fetch_sub(memory.charged_bytes(), Ordering::Relaxed);
            self.background.release_segment(segment);
        }
        if table.is_dropped() {
            self.background.dirty.lock().remove(&table.slot);
        }
    }

    /// Have a frozen memtable written to sorted tables, after those that were frozen before it.
    pub(super) fn enqueue_flush(&self, table: &Arc<TableState>, memory: Arc<Memory>) {
        self.background.flushes.lock().push_back(FlushItem { table: table.clone(), memory });
        self.background.work.raise();
    }

    /// Freeze a table's active memtable if it has reached its size. The caller holds the writer's lock.
    pub(crate) fn freeze_if_full(&self, table: &Arc<TableState>, view: &View) {
        if view.active.table.bytes() >= self.options.memtable_bytes {
            self.freeze(table);
        }
    }

    /// Freeze the largest memtables while all together are over the budget. The caller holds the writer's lock.
    pub(crate) fn relieve_budget(&self) {
        if self.background.memory_bytes.load(Ordering::Relaxed) < self.options.write_budget_bytes {
            return;
        }
        // What is frozen already will be gone without this.
        let frozen: usize = self.background.flushes.lock().iter().map(|item| item.memory.table.bytes()).sum();
        let mut active = self.background.memory_bytes.load(Ordering::Relaxed).saturating_sub(frozen);
        while active > self.options.write_budget_bytes / 2 {
            let largest = {
                let dirty = self.background.dirty.lock();
                let bytes =
                    |table: &Arc<TableState>| table.view.load().as_ref().map_or(0, |view| view.active.table.bytes());
                dirty.values().max_by_key(|table| bytes(table)).map(|table| (table.clone(), bytes(table)))
            };
            let Some((table, bytes)) = largest else { return };
            self.freeze(&table);
            active = active.saturating_sub(bytes.max(1));
        }
    }

    /// Freeze a table's active memtable, if it has entries. The caller holds the writer's lock, so that nothing is being
    /// inserted.
    pub(crate) fn freeze(&self, table: &Arc<TableState>) {
        let _structure = table.structure.lock();
        self.background.dirty.lock().remove(&table.slot);
        let Some(view) = table.view.load_full() else { return };
        if view.active.table.is_empty() {
            return;
        }
        let mut next = View::clone(&view);
        next.frozen.insert(0, std::mem::replace(&mut next.active, Memory::new()));
        table.publish(Some(next));
        self.enqueue_flush(table, view.active.clone());
    }

    /// Wait for room for these writes: not at all while background work keeps up, a little while it is behind, until it is
    /// done when there is no room.
    pub(crate) fn throttle(&self, writes: &dyn WriteSet) -> Result<()> {
        let congestion = || self.congestion(writes.tables());
        match congestion() {
            Congestion::None => Ok(()),
            Congestion::Behind => {
                // Writers owe the time that flushing their bytes takes, and pay once the debt is worth a wait.
                let rate = self.background.drain_rate.load(Ordering::Relaxed).max(1 << 20);
                let owed_ns = (writes.bytes() as u64).saturating_mul(1_000_000_000) / rate;
                let debt_ns = self.background.debt_ns.fetch_add(owed_ns, Ordering::Relaxed).saturating_add(owed_ns);
                if debt_ns < DELAY_MIN.as_nanos() as u64 {
                    return Ok(());
                }
                self.background.debt_ns.store(0, Ordering::Relaxed);
                let until = self.env.clock.tick().after(Duration::from_nanos(debt_ns).min(DELAY_MAX));
                self.wait_for_progress(Some(until), &mut || congestion() != Congestion::Behind);
                self.check_writable()
            }
            Congestion::Full => {
                self.events.event(&Event::StallBegan);
                let began = self.env.clock.tick();
                let mut failed = None;
                self.wait_for_progress(None, &mut || {
                    failed = self.background.failure.lock().clone();
                    failed.is_some() || congestion() != Congestion::Full
                });
                let lasted_ms = self.env.clock.tick().0.saturating_sub(began.0) / 1_000_000;
                self.events.event(&Event::StallEnded { lasted_ms });
                match (congestion(), failed) {
                    (Congestion::Full, Some(error)) => Err(error),
                    _ => self.check_writable(),
                }
            }
        }
    }

    fn congestion(&self, tables: &[Arc<TableState>]) -> Congestion {
        let bytes = self.background.memory_bytes.load(Ordering::Relaxed);
        let files = tables.iter().map(|table| table.pressure.level_zero_files()).max().unwrap_or(0);
        let (budget, options) = (self.options.write_budget_bytes, &self.options);
        if bytes >= budget + budget / 2 || files >= options.level_zero_stop_files {
            Congestion::Full
        } else if bytes >= budget || files >= options.level_zero_slow_files {
            Congestion::Behind
        } else {
            Congestion::None
        }
    }

    fn wait_for_progress(&self, until: Option<Tick>, ready: &mut dyn FnMut() -> bool) {
        self.env.scheduler.wait_until(&self.background.progress, &*self.env.clock, until, &mut || {
            self.background.stopping() || self.poison.get().is_some() || ready()
        });
    }

    /// Freeze what a table has in memory and wait until it is in sorted tables.
    pub(crate) fn flush_table(&self, table: &Arc<TableState>) -> Result<()> {
        self.admit(table)?;
        self.flush_tables(std::slice::from_ref(table))
    }

    /// Freeze everything in memory and wait until it is in sorted tables.
    pub(crate) fn flush_all(&self) -> Result<()> {
        self.check_writable()?;
        let dirty: Vec<_> = self.background.dirty.lock().values().cloned().collect();
        self.flush_tables(&dirty)
    }

    fn flush_tables(&self, tables: &[Arc<TableState>]) -> Result<()> {
        self.check_writable()?;
        self.background.resume();
        {
            let _writer = self.writer.lock();
            tables.iter().for_each(|table| self.freeze(table));
        }
        let done = || tables.iter().all(|table| table.view.load().as_ref().is_none_or(|view| view.frozen.is_empty()));
        self.settle(done)
    }

    /// Wait until `done`, or until background work fails.
    fn settle(&self, done: impl Fn() -> bool) -> Result<()> {
        let mut failed = None;
        self.wait_for_progress(None, &mut || {
            failed = self.background.failure.lock().clone();
            failed.is_some() || done()
        });
        match failed {
            Some(error) if !done() => Err(error),
            _ => self.check_writable(),
        }
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

    /// Have a table's levels looked at.
    pub(crate) fn enqueue_compaction(&self, table: &Arc<TableState>) {
        let mut queue = self.background.compactions.lock();
        if !queue.iter().any(|queued| Arc::ptr_eq(queued, table)) {
            queue.push_back(table.clone());
        }
        drop(queue);
        self.background.work.raise();
    }

    /// Close every file that is open for writing, durably.
    pub(super) fn quiesce(&self) -> Result<()> {
        self.check_writable()?;
        self.background.paused.store(true, Ordering::SeqCst);
        self.background.wake();
        self.wait_for_progress(None, &mut || self.background.writing.load(Ordering::SeqCst) == 0);
        let mut writer = self.writer.lock();
        let _preparing = self.preparing.lock();
        self.check_writable()?;
        self.log.sync(self.log.end()).map_err(|error| self.poison(error))?;
        if let Some(number) = self.log.retire_open_segments(&mut writer) {
            self.manifest.append(vec![Edit::RemoveSegment { number }]).map_err(|error| self.poison(error))?;
            self.log.remove_segments(&[number]);
        }
        self.manifest.retire_file(self.next_file()?);
        Ok(())
    }

    /// Make sure that the next group has a segment with room. The caller is the writer.
    pub(crate) fn ensure_segment(&self, writer: &mut LogWriter) -> Result<()> {
        if self.log.has_room(writer, self.options.log_segment_bytes) || self.log.take_spare(writer) {
            return Ok(());
        }
        self.prepare_segment()?;
        self.log.take_spare(writer);
        Ok(())
    }

    /// Make the next log segment, durable and named by the manifest, so that taking it into use costs nothing.
    fn prepare_segment(&self) -> Result<()> {
        // One at a time, so that numbers reach the manifest in order; whoever waited for the other may find it done.
        let _preparing = self.preparing.lock();
        if self.log.spare_end().is_some() {
            return Ok(());
        }
        let number = self.next_file()?;
        let spare = self.log.create_segment(number)?;
        // Number and salt are in the manifest before the first acknowledgement from this segment.
        self.manifest
            .append(vec![Edit::AddSegment { number, salt: spare.salt() }])
            .map_err(|error| self.poison(error))?;
        self.log.offer_spare(spare);
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Congestion {
    None,
    Behind,
    Full,
}

/// A pause that doubles with each failure in a row.
struct Pause {
    next: Duration,
}

impl Pause {
    fn new() -> Pause {
        Pause { next: PAUSE_MIN }
    }

    fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    fn after_failure(&mut self, engine: &Engine) -> Step {
        let deadline = engine.env.clock.tick().after(self.next);
        self.next = (self.next * 2).min(PAUSE_MAX);
        // Not for work: what is added meanwhile would fail the same way.
        let signal = engine.background.quit.clone();
        Step::Wait { seen: signal.count(), signal, clock: engine.env.clock.clone(), deadline: Some(deadline) }
    }
}

impl Engine {
    fn wait_for_work(&self, seen: u64, deadline: Option<Tick>) -> Step {
        Step::Wait { signal: self.background.work.clone(), seen, clock: self.env.clock.clone(), deadline }
    }

    /// Note how a background job went, and wake whoever waits for it.
    fn job_ended(&self, outcome: &Result<()>) {
        *self.background.failure.lock() = outcome.as_ref().err().cloned();
        self.background.progress.raise();
    }

    fn job_context(self: &Arc<Engine>, table: &TableState, view: &View) -> JobContext {
        let engine = self.clone();
        JobContext {
            environment: self.env.clone(),
            directory: self.dir.clone(),
            key: view.keys.current().clone(),
            settings: table.settings.clone(),
            numbers: Arc::new(move || engine.next_table_file()),
            file_bytes: self.options.table_file_bytes,
            sync_directories: false,
        }
    }

    /// A number for a sorted table, whose directory exists.
    fn next_table_file(&self) -> Result<FileNumber> {
        let number = self.next_file()?;
        self.dir.ensure_dir(&FileName::Table(number).directory())?;
        Ok(number)
    }

    /// Remove files that were written and that the manifest does not name.
    fn discard<'a>(&self, files: impl Iterator<Item = &'a FinishedTable>) {
        // If the manifest was being written, it may name them after all. Then they stay, and the next open knows.
        if self.poison.get().is_none() {
            files.for_each(|file| drop(self.dir.remove(&FileName::Table(file.record.number).path())));
        }
    }

    fn take_in(&self, file: &FinishedTable) -> Arc<TableFile> {
        self.readers.new_file(TableFile::new(file.record.clone(), file.smallest.clone(), file.largest.clone()))
    }
}

/// Writes frozen memtables to sorted tables.
pub(crate) struct Flusher {
    engine: Arc<Engine>,
    batch: Option<FlushBatch>,
    pause: Pause,
}

/// Counts its owner among those that have files open for writing, for as long as it lives.
struct Writing(Arc<Engine>);

impl Writing {
    /// None while the store is quiet.
    fn begin(engine: &Arc<Engine>) -> Option<Writing> {
        // Counted first and looked second, while `quiesce` says it first and counts second: one of the two sees the other.
        engine.background.writing.fetch_add(1, Ordering::SeqCst);
        let writing = Writing(engine.clone());
        (!engine.background.paused.load(Ordering::SeqCst)).then_some(writing)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.background.writing.fetch_sub(1, Ordering::SeqCst);
        self.0.background.progress.raise();
    }
}

/// The memtables that one manifest append will name.
struct FlushBatch {
    items: Vec<FlushItem>,
    /// Finished files, one list per item so far.
    outputs: Vec<Vec<FinishedTable>>,
    job: Option<Job>,
    began: Tick,
    _writing: Writing,
}

impl Flusher {
    pub(crate) fn new(engine: Arc<Engine>) -> Flusher {
        Flusher { engine, batch: None, pause: Pause::new() }
    }

    fn take_batch(&mut self) -> bool {
        let mut gone = Vec::new();
        let items: Vec<FlushItem> = {
            let mut queue = self.engine.background.flushes.lock();
            queue.retain(|item| {
                let dropped = item.table.is_dropped();
                gone.extend(dropped.then(|| item.clone()));
                !dropped
            });
            // They leave the queue only once they are on disk, so that a batch that failed is still there, in order.
            queue.iter().take(FLUSH_TABLES_MAX).cloned().collect()
        };
        gone.iter().for_each(|item| self.engine.discharge(&item.table, &item.memory));
        if !gone.is_empty() {
            self.engine.background.progress.raise();
        }
        if items.is_empty() {
            return false;
        }
        let Some(writing) = Writing::begin(&self.engine) else { return false };
        let began = self.engine.env.clock.tick();
        self.batch = Some(FlushBatch { items, outputs: Vec::new(), job: None, began, _writing: writing });
        true
    }

    /// One step of the batch; whether it is done.
    fn advance(&mut self) -> Result<bool> {
        let Some(batch) = &mut self.batch else { return Ok(true) };
        if let Some(job) = &mut batch.job {
            if let Progress::Done(files) = job.step()? {
                batch.outputs.push(files);
                batch.job = None;
            }
            return Ok(false);
        }
        let Some(item) = batch.items.get(batch.outputs.len()) else {
            self.engine.install_flush(batch)?;
            self.batch = None;
            return Ok(true);
        };
        let view = item.table.view.load_full().filter(|_| !item.table.is_dropped());
        match view {
            Some(view) => {
                // The service's own permission: a user's revocation does not stop maintenance.
                self.engine.acquire(&item.table, Seat::Service)?;
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

    /// Give the batch up; what it would have written is still in memory and in the log.
    fn give_up(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.engine.discard(batch.outputs.iter().flatten());
        }
    }
}

impl Task for Flusher {
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
        if self.batch.is_none() && !self.take_batch() {
            return self.engine.wait_for_work(seen, None);
        }
        match self.advance() {
            Ok(false) => Step::Again,
            Ok(true) => {
                self.pause.reset();
                self.engine.job_ended(&Ok(()));
                Step::Again
            }
            Err(error) => {
                self.give_up();
                self.engine.job_ended(&Err(error));
                self.pause.after_failure(&self.engine)
            }
        }
    }
}

impl Engine {
    /// Name a batch's files in the manifest and show them to readers.
    fn install_flush(&self, batch: &FlushBatch) -> Result<()> {
        // The log must be durable through the last entry before the manifest says that entries up to it are in sorted
        // tables: otherwise a power cut could keep this table's part of a commit and lose another's.
        self.log.sync(self.log.end()).map_err(|error| self.poison(error))?;
        sync_directories(&self.dir, batch.outputs.iter().flatten().map(|file| file.record.number))?;

        let tables: BTreeMap<Slot, &Arc<TableState>> =
            batch.items.iter().map(|item| (item.table.slot, &item.table)).collect();
        // All of them at once, in slot order, so that the levels chosen here are still right when the files land.
        let structures: BTreeMap<Slot, _> =
            tables.iter().map(|(slot, table)| (*slot, table.structure.lock())).collect();
        let mut views: BTreeMap<Slot, View> = BTreeMap::new();
        let mut edits = vec![Edit::LogSynced { point: self.log.synced() }];
        for (item, files) in batch.items.iter().zip(&batch.outputs) {
            let slot = item.table.slot;
            // A table that was dropped meanwhile has no view, and the manifest no longer knows it.
            let Some(present) = item.table.view.load_full().filter(|_| !item.table.is_dropped()) else { continue };
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
            edits.push(Edit::Flushed { slot, seq: item.memory.last_seq() });
            view.frozen.retain(|memory| !Arc::ptr_eq(memory, &item.memory));
        }
        let retired = self.log.segments_before(self.background.oldest_segment_without(&batch.items));
        edits.extend(retired.iter().map(|&number| Edit::RemoveSegment { number }));
        self.manifest.append(edits).map_err(|error| self.poison(error))?;

        for (slot, view) in views {
            tables[&slot].publish(Some(view));
        }
        drop(structures);
        let is_done = |item: &FlushItem| batch.items.iter().any(|done| Arc::ptr_eq(&done.memory, &item.memory));
        self.background.flushes.lock().retain(|item| !is_done(item));
        let mut bytes = 0;
        for item in &batch.items {
            bytes += item.memory.table.bytes();
            self.discharge(&item.table, &item.memory);
            self.enqueue_compaction(&item.table);
        }
        self.note_drained(bytes, batch.began);
        self.log.remove_segments(&retired);
        self.advance_anchor();
        Ok(())
    }

    fn note_drained(&self, bytes: usize, began: Tick) {
        let nanos = self.env.clock.tick().0.saturating_sub(began.0).max(1);
        let rate = (bytes as u128 * 1_000_000_000 / u128::from(nanos)).min(1 << 40) as u64;
        let before = self.background.drain_rate.load(Ordering::Relaxed);
        self.background.drain_rate.store((before * 3 + rate) / 4, Ordering::Relaxed);
    }
}

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

/// Looks after time, log segments and files that nobody needs.
pub(crate) struct Keeper {
    engine: Arc<Engine>,
}

impl Keeper {
    pub(crate) fn new(engine: Arc<Engine>) -> Keeper {
        Keeper { engine }
    }
}

impl Task for Keeper {
    fn step(&mut self) -> Step {
        let engine = &self.engine;
        if engine.background.stopping() {
            return Step::Done;
        }
        let signal = engine.background.quit.clone();
        let seen = signal.count();
        engine.tick.store(engine.keys.advance());
        if engine.poison.get().is_none() {
            let paused = engine.background.paused.load(Ordering::SeqCst);
            if !paused && engine.log.wants_spare(engine.options.log_segment_bytes) {
                // A failure here shows again, and is reported, when a commit needs the segment.
                let _ = engine.prepare_segment();
            }
            engine.relieve_log();
            if !paused && engine.manifest.is_long() {
                let _ = engine
                    .next_file()
                    .and_then(|number| engine.manifest.rewrite(number))
                    .map_err(|error| engine.poison(error));
            }
        }
        engine.readers.remove_obsolete();
        let deadline = engine.env.clock.tick().after(KEEPER_PERIOD);
        Step::Wait { signal, seen, clock: engine.env.clock.clone(), deadline: Some(deadline) }
    }
}

impl Engine {
    /// Freeze the memtables that hold the oldest segment while the log is over its limit.
    fn relieve_log(&self) {
        if self.log.total_bytes() <= self.options.log_bytes_max {
            return;
        }
        let Some(oldest) = self.background.segments.lock().keys().next().copied() else { return };
        let owners: Vec<_> = {
            let dirty = self.background.dirty.lock();
            let begins = |table: &&Arc<TableState>| {
                table.view.load().as_ref().is_some_and(|view| view.active.first_segment() == Some(oldest))
            };
            dirty.values().filter(begins).cloned().collect()
        };
        {
            let _writer = self.writer.lock();
            owners.iter().for_each(|table| self.freeze(table));
        }
        if owners.is_empty() {
            self.load_owner_of(oldest);
        }
    }
}
