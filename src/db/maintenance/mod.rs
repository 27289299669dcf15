//! Background work: flush, compaction, permits, log segments; and how writers are slowed when it falls behind.
//!
//! ```text
//! flusher    frozen memtables become sorted tables: all files synced, directories synced, one manifest append
//! compactor  sorted tables are merged, those of the table with the most level-0 files first; helpers take parts of large merges (merges.rs)
//! rotator    what is under an old generation of a table's key is written anew (rotate.rs)
//! ticker     a few times a second: the tick that permits are compared with, and nothing that could keep it waiting
//! keeper     a few times a second: the next log segment, memtables that hold the oldest one, files that nobody needs
//! warden     permits to renew, tables to put away; a task of its own because it asks providers (load.rs)
//! custodian  tables whose key is refused leave memory, and the log if it must go (access.rs, park.rs)
//! prober     asks whether refused keys are back; it too asks providers (access.rs)
//! ahead      opens blocks ahead of scans (sstable/ahead.rs)
//! unflushed  what is in memory, in the orders in which it is asked for
//! pressure   what memtables cost, and when writers are slowed; throttle, by how much
//! space      room on the disk: what would not fit is not begun
//! failures   what became of jobs that failed
//! ```
//!
//! Each is a [`Task`] in steps of at most a MiB, so that a simulation can stop between any two. A job that fails is given up
//! whole (its files are removed) and tried again after a pause that doubles; what it would have written is still in the
//! log or in its inputs. The pause is the table's alone: one whose key is refused or whose files are damaged keeps no other waiting.
//! Only the log and the manifest poison the store.

mod admission;
mod carry;
mod compact;
mod failures;
mod flush;
mod keeper;
mod merges;
mod pressure;
mod rotate;
mod space;
#[cfg(test)]
mod tests;
mod throttle;
mod unflushed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

pub(super) use self::compact::Compactor;
use self::failures::{Failure, JobKind};
pub(super) use self::flush::Flusher;
pub(super) use self::keeper::{Keeper, Ticker};
use self::merges::Compactions;
use self::rotate::Rotations;
pub(super) use self::rotate::Rotator;
use self::space::Space;
pub(in crate::db) use self::throttle::Bucket;
use self::throttle::Drain;
use self::unflushed::{Dirty, FlushItem, Frozen};
use super::Engine;
use super::access::Custody;
use super::catalog::{TableState, View};
use super::rekey::Schedules;
use crate::compaction::run::JobContext;
use crate::error::Result;
use crate::format::FileName;
use crate::format::manifest::Edit;
use crate::io::{Signal, Step, Tick};
use crate::metrics::Metrics;
use crate::sstable::{FinishedTable, HelpQueue};
use crate::types::{FileNumber, Slot};
use crate::version::TableFile;

/// Bytes per second that background work is taken to do until it is measured.
const RATE_ASSUMED: u64 = 64 << 20;

/// What background tasks and writers tell each other.
pub(crate) struct Background {
    /// Raised when there is something to do.
    work: Arc<Signal>,
    /// Raised when something was done.
    progress: Signal,
    stop: AtomicBool,
    /// No file may be written until the next commit or flush.
    paused: AtomicBool,
    /// Jobs that have files open for writing, and tasks that may be about to begin one.
    writing: AtomicUsize,
    /// Raised when tasks are asked to end.
    pub(in crate::db) quit: Arc<Signal>,
    /// Raised when the keeper should look before its time, and when tasks are asked to end.
    chores: Arc<Signal>,
    /// The log segment for whose successor the keeper was last called.
    half_full: AtomicU64,
    /// Tables that somebody has or had a permit for since they were last put away.
    pub(in crate::db) in_use: Mutex<BTreeMap<Slot, Arc<TableState>>>,
    /// Bytes of all memtables, frozen ones included.
    memory_bytes: AtomicUsize,
    /// Bytes of large writes that were let in and are not in memtables yet.
    reserved_bytes: Mutex<usize>,
    /// Tables whose active memtable has entries.
    dirty: Mutex<Dirty>,
    /// Bytes of frozen memtables, which will be gone without anything being done about it.
    frozen_bytes: AtomicUsize,
    /// Frozen memtables, oldest first.
    flushes: Mutex<Frozen>,
    /// How often memtables were taken off that queue unflushed.
    withdrawals: AtomicU64,
    compactions: Mutex<Compactions>,
    rotations: Rotations,
    /// Rotations that are due by themselves.
    pub(in crate::db) schedules: Schedules,
    /// Whether a call is changing the system key.
    pub(in crate::db) changing_system: AtomicBool,
    /// Memtables by the log segment of their first entry.
    segments: Mutex<BTreeMap<FileNumber, usize>>,
    /// Why the last job of a kind failed for a table, until one succeeds.
    failures: Mutex<BTreeMap<(JobKind, Slot), Failure>>,
    /// What writers pay with while memtables are over the budget.
    bucket: Bucket,
    /// How fast memtables are flushed.
    flushing: Drain,
    /// How fast level-0 files are merged away, in bytes of the memtables that they were.
    merging: Drain,
    /// Bytes of memtables per file that was flushed last.
    flushed_file_bytes: AtomicU64,
    /// Room on the disk.
    pub(in crate::db) space: Space,
    /// Tables whose key is refused.
    pub(in crate::db) custody: Custody,
    /// Where scans ask for blocks to be opened ahead.
    pub(in crate::db) ahead: Arc<HelpQueue>,
    #[cfg(test)]
    pub(in crate::db) between: tests::Between,
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
            chores: Arc::new(Signal::new()),
            half_full: AtomicU64::new(0),
            in_use: Mutex::default(),
            memory_bytes: AtomicUsize::new(0),
            reserved_bytes: Mutex::new(0),
            dirty: Mutex::default(),
            frozen_bytes: AtomicUsize::new(0),
            flushes: Mutex::default(),
            withdrawals: AtomicU64::new(0),
            compactions: Mutex::default(),
            rotations: Rotations::default(),
            schedules: Schedules::default(),
            changing_system: AtomicBool::new(false),
            segments: Mutex::default(),
            failures: Mutex::default(),
            bucket: Bucket::default(),
            flushing: Drain::new(RATE_ASSUMED),
            merging: Drain::new(RATE_ASSUMED),
            flushed_file_bytes: AtomicU64::new(0),
            space: Space::default(),
            custody: Custody::default(),
            ahead: Arc::default(),
            #[cfg(test)]
            between: tests::Between::default(),
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
        self.chores.raise();
        self.custody.wake();
        self.ahead.stop();
        self.wake();
    }

    /// Let background work write again.
    pub(in crate::db) fn resume(&self) {
        if self.paused.load(Ordering::Relaxed) {
            self.paused.store(false, Ordering::SeqCst);
            self.work.raise();
        }
    }

    pub(in crate::db) fn stopping(&self) -> bool {
        let stopping = self.stop.load(Ordering::Acquire);
        #[cfg(test)]
        self.between.look_and_work.came();
        stopping
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

    /// The oldest segment that anybody needs.
    pub(in crate::db) fn oldest_segment(&self) -> Option<FileNumber> {
        self.segments.lock().keys().next().copied()
    }

    /// How many need this segment.
    pub(in crate::db) fn holders_of(&self, segment: FileNumber) -> usize {
        self.segments.lock().get(&segment).copied().unwrap_or(0)
    }

    /// How things are with memtables, compactions and rotations.
    pub(in crate::db) fn look_at(&self, metrics: &mut Metrics) {
        metrics.memtables.bytes = self.memory_bytes.load(Ordering::Relaxed) as u64;
        metrics.memtables.dirty_tables = self.dirty.lock().len() as u64;
        metrics.memtables.frozen = self.flushes.lock().len() as u64;
        metrics.stalls.flush_bytes_per_s = self.flushing.rate();
        metrics.stalls.merge_bytes_per_s = self.merging.rate();
        metrics.stalls.reserved_bytes = self.space.reserved_bytes();
        metrics.compactions.queued_tables = self.compactions.lock().tables() as u64;
        metrics.keys.tables_in_use = self.in_use.lock().len() as u64;
        metrics.keys.rotating_tables = self.rotations.tables() as u64;
    }

    /// Let go of the memtables that were to be flushed: nobody will do that.
    pub(in crate::db) fn forget_frozen(&self) {
        *self.flushes.lock() = Frozen::default();
    }

    /// A table has no active memtable any more.
    pub(in crate::db) fn forget_dirty(&self, table: &TableState) {
        self.dirty.lock().remove(table.slot);
    }

    /// The oldest segment that anybody other than `flushed` needs.
    fn oldest_segment_without(&self, flushed: &[&FlushItem]) -> Option<FileNumber> {
        let mut segments = self.segments.lock().clone();
        for segment in flushed.iter().filter_map(|item| item.memory.first_segment()) {
            if let Some(count) = segments.get_mut(&segment) {
                *count = count.saturating_sub(1);
            }
        }
        segments.into_iter().find(|(_, count)| *count > 0).map(|(segment, _)| segment)
    }
}

impl Engine {
    fn wait_for_progress(&self, until: Option<Tick>, ready: &mut dyn FnMut() -> bool) {
        self.env.scheduler.wait_until(&self.background.progress, &*self.env.clock, until, &mut || {
            self.background.stopping() || self.poison.get().is_some() || ready()
        });
    }

    /// Close every file that is open for writing, durably.
    pub(in crate::db) fn quiesce(&self) -> Result<()> {
        self.check_writable()?;
        self.background.paused.store(true, Ordering::SeqCst);
        self.background.wake();
        self.wait_for_progress(None, &mut || self.background.writing.load(Ordering::SeqCst) == 0);
        let mut writer = self.writer.lock();
        let _preparing = self.preparing.lock();
        self.check_writable()?;
        self.log.finish(&writer).map_err(|error| self.poison(error))?;
        if let Some(number) = self.log.retire_open_segments(&mut writer) {
            self.manifest.append(vec![Edit::RemoveSegment { number }]).map_err(|error| self.poison(error))?;
            self.log.remove_segments(&[number]);
        }
        self.manifest.retire_file(self.next_file()?);
        Ok(())
    }

    fn wait_for_work(&self, seen: u64, deadline: Option<Tick>) -> Step {
        Step::Wait { signal: self.background.work.clone(), seen, clock: self.env.clock.clone(), deadline }
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
            container: None,
        }
    }

    /// A number for a sorted table, whose directory exists.
    fn next_table_file(&self) -> Result<FileNumber> {
        let number = self.next_file()?;
        self.dir.ensure_dir(&FileName::Table(number).directory())?;
        Ok(number)
    }

    /// Remove files that were written and that the manifest does not name. What lies in a container goes with that.
    fn discard<'a>(&self, files: impl Iterator<Item = &'a FinishedTable>) {
        // If the manifest was being written, it may name them after all. Then they stay, and the next open knows.
        if self.poison.get().is_none() {
            let own = files.filter(|file| file.record.extent.container == file.record.number);
            own.for_each(|file| drop(self.dir.remove(&file.record.file_name().path())));
        }
    }

    fn take_in(&self, file: &FinishedTable) -> Arc<TableFile> {
        self.readers.new_file(TableFile::new(file.record.clone(), file.smallest.clone(), file.largest.clone()))
    }
}

/// Counts its owner among those that have files open for writing or may begin one, for as long as it lives: whatever seals in the background has
/// one, or a snapshot of memory taken behind `quiesce` would hold a sealer that goes on.
pub(super) struct Writing(Arc<Engine>);

impl Writing {
    /// None while the store is quiet.
    pub(super) fn begin(engine: &Arc<Engine>) -> Option<Writing> {
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
