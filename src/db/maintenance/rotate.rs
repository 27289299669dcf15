//! The rotator: what is sealed under an old generation of a table's key is written anew, and then the old generation goes.
//!
//! ```text
//! sorted tables   one after the other, each into its own level, with all versions that anybody can see: a job like a compaction's,
//!                 in steps, at the pace that was set. What a compaction is at is left to it, for its output is under the new key
//! log             the current segment is left, and every segment up to it is to go: the keeper sees to that
//! parked, pinned  are waited for
//! wraps           erased, once nothing is left
//! ```
//! That there is something to do follows from the manifest: a table whose key file is pinned with more than one generation. So nothing needs to be
//! remembered across a crash, and a rotation goes on where it was.
//!
//! # Nothing more is sealed under an old generation
//! The switch to a generation publishes a view under the lock under which compactions claim their files, so those that still seal under
//! the one before have claims older than what [`Busy`](crate::compaction::plan::Busy) has given out by then. Flushes
//! that do so are of memtables that hold a log segment with sections under it. So when those claims are given back and no such segment
//! is left, no job is under way whose file would be under an old generation.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::compact::file_bytes;
use super::space::Reservation;
use super::{Background, JobKind, Writing};
use crate::compaction::plan::{ClaimId, Plan, rewrite};
use crate::compaction::run::{Job, Progress};
use crate::db::Engine;
use crate::db::catalog::{TableState, View};
use crate::db::rekey::SystemProgress;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::keyfile::KeyFile;
use crate::format::manifest::Edit;
use crate::io::{Step, Task, Tick};
use crate::keys::KeySet;
use crate::metrics::Count;
use crate::trace::{self, Span};
use crate::types::{FileNumber, Generation, Slot, TableId};

/// Stands for the system key where tables are told apart by their slots; no table has it.
const SYSTEM_SLOT: Slot = Slot(0);
/// How often what is waited for is looked at again.
const WAIT: Duration = Duration::from_millis(100);
/// How long the rotator stands back while writers wait for room.
const STAND_BACK: Duration = Duration::from_millis(10);

/// Tables with more than one generation of their key, and how the work on them goes.
#[derive(Default)]
pub(super) struct Rotations {
    tables: parking_lot::Mutex<BTreeMap<Slot, Rotating>>,
    /// Bytes that have lately been read per second.
    rate: AtomicU64,
    /// Log segments up to this number are to go.
    log_until: AtomicU64,
    /// Whether the system key has more than one generation.
    system: AtomicBool,
}

#[derive(Clone)]
struct Rotating {
    table: Arc<TableState>,
    /// Compactions that claimed their files before seal under an older generation; `None` until it was looked at.
    claims: Option<u64>,
}

impl Background {
    /// A table has this key file now: there may be generations to bring to their end.
    pub(in crate::db) fn note_rotation(&self, table: &Arc<TableState>, record: &KeyFile) {
        if record.wraps.len() > 1 {
            self.rotations.tables.lock().insert(table.slot, Rotating { table: table.clone(), claims: None });
            self.work.raise();
        }
    }

    /// As [`note_rotation`](Background::note_rotation), for a table that the manifest pins with more than one generation.
    pub(in crate::db) fn hold_rotation(&self, table: &Arc<TableState>) {
        self.rotations.tables.lock().insert(table.slot, Rotating { table: table.clone(), claims: None });
    }

    /// Bytes that rotations have lately read per second.
    pub(in crate::db) fn rotation_rate(&self) -> u64 {
        self.rotations.rate.load(Ordering::Relaxed)
    }

    /// Log segments up to this number are to go, because they hold something under an old key.
    pub(in crate::db) fn log_until(&self) -> FileNumber {
        FileNumber(self.rotations.log_until.load(Ordering::Relaxed))
    }

    /// Log segments up to this one are to go: the keeper sees to it.
    pub(in crate::db) fn let_log_go(&self, until: FileNumber) {
        self.rotations.log_until.fetch_max(until.0, Ordering::Relaxed);
    }

    /// The system key has more than one generation.
    pub(in crate::db) fn rotate_system(&self) {
        self.rotations.system.store(true, Ordering::Release);
        self.work.raise();
    }

    fn is_rotating_system(&self) -> bool {
        self.rotations.system.load(Ordering::Acquire)
    }

    fn is_rotating(&self, slot: Slot) -> bool {
        self.rotations.tables.lock().contains_key(&slot)
    }
}

/// Brings tables under the newest generation of their keys.
pub(crate) struct Rotator {
    engine: Arc<Engine>,
    running: Option<Rewriting>,
    /// The table that was looked at last: each has its turn.
    last: Slot,
    /// When the next step may be done.
    due: Tick,
    /// Key files from this slot on are to be looked at, if the system key is rotating.
    system_at: Slot,
}

/// A sorted table that is being written anew.
struct Rewriting {
    table: Arc<TableState>,
    plan: Plan,
    claim: ClaimId,
    job: Job,
    began: Tick,
    span: Span,
    _room: Reservation,
    _writing: Writing,
}

/// What looking at a table came to.
enum Look {
    /// A file of it is being written anew.
    Begun(Box<Rewriting>),
    /// It waits for something.
    Waits,
    /// Nothing is left to do.
    Over,
}

impl Rotator {
    pub(crate) fn new(engine: Arc<Engine>) -> Rotator {
        Rotator { engine, running: None, last: Slot(0), due: Tick(0), system_at: Slot(0) }
    }

    /// The next table that is not resting after a failure.
    fn next_table(&mut self) -> Option<Rotating> {
        let resting = self.engine.background.resting(JobKind::Rotation, self.engine.env.clock.tick());
        let tables = self.engine.background.rotations.tables.lock();
        let behind = tables.range((Bound::Excluded(self.last), Bound::Unbounded));
        let mut turns = behind.chain(tables.range(..=self.last));
        let (slot, next) = turns.find(|(slot, _)| !resting.contains_key(slot))?;
        self.last = *slot;
        Some(next.clone())
    }

    /// See what a table needs next, and begin it.
    fn look(&self, rotating: &Rotating) -> Result<Look> {
        let (engine, table) = (&self.engine, &rotating.table);
        if table.is_dropped() {
            return Ok(Look::Over);
        }
        // The service's own permission: rotation is maintenance.
        let keys = engine.acquire_for_service(table)?;
        let Some(view) = table.view.load_owned() else {
            engine.load(table, keys)?;
            return Ok(Look::Waits);
        };
        let newest = view.keys.current().generation();
        let claims = match rotating.claims {
            Some(claims) => claims,
            None => engine.note_claims(table),
        };
        if let Some(rewriting) = self.begin(table, newest)? {
            return Ok(Look::Begun(Box::new(rewriting)));
        }
        let used = engine.sealed_bytes(table);
        if let Some(segment) = used.newest_segment(newest) {
            engine.leave_log_behind(segment)?;
            return Ok(Look::Waits);
        }
        engine.readers.remove_obsolete();
        match engine.erase_old_generations(table, claims)? {
            true => Ok(Look::Over),
            false => Ok(Look::Waits),
        }
    }

    /// Begin to write a sorted table anew, if there is one under an older generation that nobody is at.
    fn begin(&self, table: &Arc<TableState>, newest: Generation) -> Result<Option<Rewriting>> {
        let engine = &self.engine;
        let Some(writing) = Writing::begin(engine) else { return Ok(None) };
        let (view, plan, claim, readers) = {
            let mut structure = table.structure.lock();
            let Some(view) = table.view.load_owned() else { return Ok(None) };
            let Some(plan) = rewrite(&view.version, &structure.busy, newest) else { return Ok(None) };
            let claim = structure.busy.claim(&plan);
            (view, plan, claim, engine.moments.readers(&engine.visible))
        };
        let room = match engine.reserve(&plan) {
            Ok(room) => room,
            Err(error) => {
                table.structure.lock().busy.release(claim);
                return Err(error);
            }
        };
        let mut context = engine.job_context(table, &view);
        // One file becomes one file: level 0 has as many as before.
        context.file_bytes = u64::MAX;
        let open = engine.readers.opener(&table.settings, &view.keys);
        let job = Job::rewrite(context, &plan, readers, open);
        let began = engine.env.clock.tick();
        let span = trace::span!(
            DEBUG, "rewrite", table = table.id;
            generation = u64::from(newest.0),
            read_bytes = plan.input_bytes()
        );
        Ok(Some(Rewriting { table: table.clone(), plan, claim, job, began, span, _room: room, _writing: writing }))
    }

    /// One step; true once the file has been replaced.
    fn advance(&mut self, rewriting: &mut Rewriting) -> Result<bool> {
        let _span = rewriting.span.entered();
        let files = match rewriting.job.step()? {
            Progress::More { read_bytes } => {
                let rate = self.engine.options.rotation_bytes_per_sec;
                let cost = Duration::from_nanos((u128::from(read_bytes) * 1_000_000_000 / u128::from(rate)) as u64);
                let now = self.engine.env.clock.tick();
                self.due = self.due.max(now).after(cost);
                return Ok(false);
            }
            Progress::Done(files) => files,
        };
        let installed = self.engine.install_compaction(&rewriting.table, &rewriting.plan, &files);
        if installed.is_err() {
            self.engine.discard(files.iter());
        } else {
            self.engine.meters.tally(|tally| {
                tally.add(Count::RewrittenFiles, 1);
                tally.add(Count::RewriteReadBytes, rewriting.plan.input_bytes());
                tally.add(Count::RewriteWrittenBytes, file_bytes(&files));
            });
        }
        installed.map(|()| true)
    }

    /// Give up what is being written: it will be begun anew.
    fn give_up(&mut self) {
        if let Some(rewriting) = self.running.take() {
            rewriting.table.structure.lock().busy.release(rewriting.claim);
            self.engine.enqueue_compaction(&rewriting.table);
        }
    }

    /// Go on with a rotation of the system key; when to go on with it after that.
    fn advance_system(&mut self, now: Tick) -> Option<Tick> {
        let resting = self.engine.background.resting(JobKind::Rotation, now);
        if let Some(until) = resting.get(&SYSTEM_SLOT) {
            return Some(*until);
        }
        match self.engine.continue_system_rotation(&mut self.system_at) {
            Ok(SystemProgress::More) => Some(now),
            Ok(SystemProgress::Waits) => Some(now.after(WAIT)),
            Ok(SystemProgress::Over) => {
                self.engine.background.rotations.system.store(false, Ordering::Release);
                self.system_at = Slot(0);
                self.engine.background.note_success(JobKind::Rotation, SYSTEM_SLOT);
                None
            }
            Err(error) => {
                let (kind, message) = (error.kind(), error.to_string());
                self.engine.background.note_failure(JobKind::Rotation, SYSTEM_SLOT, error, now);
                self.engine.background.progress.raise();
                self.engine.events.event(&Event::RotationFailed { table: TableId::SYSTEM, kind, message });
                Some(now.after(WAIT))
            }
        }
    }

    fn wait(&self, seen: u64, until: Tick) -> Step {
        self.engine.wait_for_work(seen, Some(until))
    }

    fn work(&mut self, mut rewriting: Rewriting, seen: u64) -> Step {
        let engine = self.engine.clone();
        let now = engine.env.clock.tick();
        // A compaction that readers and writers wait for may need the very file.
        if rewriting.table.pressure.level_zero_files() >= engine.options.level_zero_slow_files {
            self.running = Some(rewriting);
            self.give_up();
            return self.wait(seen, now.after(WAIT));
        }
        let stand_back = engine.is_short_of_room().then(|| now.after(STAND_BACK));
        if let Some(until) = stand_back.or((now < self.due).then_some(self.due)) {
            self.running = Some(rewriting);
            return self.wait(seen, until);
        }
        match self.advance(&mut rewriting) {
            Ok(false) => self.running = Some(rewriting),
            outcome => {
                let Rewriting { table, plan, claim, job, began, _room, _writing, .. } = rewriting;
                table.structure.lock().busy.release(claim);
                // It lets go of its input before anybody asks whether that is still looked at.
                drop((job, _room, _writing));
                let bytes = plan.input_bytes();
                drop(plan);
                match outcome {
                    Ok(_) => {
                        engine.background.rotations.note_rate(bytes, began, engine.env.clock.tick());
                        engine.job_done(JobKind::Rotation, &table);
                    }
                    Err(error) => engine.rotation_failed(&table, error),
                }
                // Compactions that stood back have their turn.
                engine.enqueue_compaction(&table);
                engine.readers.remove_obsolete();
            }
        }
        Step::Again
    }
}

impl Task for Rotator {
    fn step(&mut self) -> Step {
        let engine = self.engine.clone();
        // Before anything is looked at: an end that comes afterwards is not slept through.
        let seen = engine.background.work.count();
        if engine.background.stopping() || engine.poison.get().is_some() {
            self.give_up();
            return Step::Done;
        }
        let now = engine.env.clock.tick();
        // For all of the step: nearly everything that it may come to ends in the manifest.
        let Some(_writing) = Writing::begin(&engine) else {
            self.give_up();
            return engine.wait_for_work(seen, None);
        };
        if let Some(rewriting) = self.running.take() {
            return self.work(rewriting, seen);
        }
        let scheduled = engine.begin_due_rotations();
        let system = match engine.background.is_rotating_system() {
            true => self.advance_system(now),
            false => None,
        };
        let Some(rotating) = self.next_table() else {
            let again = engine.background.resting(JobKind::Rotation, now).into_values().min();
            let again = [again, scheduled, system].into_iter().flatten().min();
            return engine.wait_for_work(seen, again);
        };
        match self.look(&rotating) {
            Ok(Look::Begun(rewriting)) => {
                self.running = Some(*rewriting);
                Step::Again
            }
            Ok(Look::Waits) => self.wait(seen, now.after(WAIT)),
            Ok(Look::Over) => {
                engine.background.rotations.tables.lock().remove(&rotating.table.slot);
                engine.job_done(JobKind::Rotation, &rotating.table);
                Step::Again
            }
            Err(error) => {
                engine.rotation_failed(&rotating.table, error);
                Step::Again
            }
        }
    }
}

impl Drop for Rotator {
    fn drop(&mut self) {
        self.engine.poison_if_panicking("the rotator");
    }
}

impl Rotations {
    /// Tables with more than one generation of their key.
    pub(super) fn tables(&self) -> usize {
        self.tables.lock().len()
    }

    fn note_rate(&self, bytes: u64, began: Tick, ended: Tick) {
        let nanos = u128::from(ended.0.saturating_sub(began.0).max(1));
        let rate = (u128::from(bytes) * 1_000_000_000 / nanos).min(1 << 40) as u64;
        let before = self.rate.load(Ordering::Relaxed);
        self.rate.store(if before == 0 { rate } else { (before * 3 + rate) / 4 }, Ordering::Relaxed);
    }
}

impl Engine {
    /// Wait until the system key has one generation.
    pub(in crate::db) fn wait_for_system_rotation(&self) -> Result<()> {
        self.check_writable()?;
        self.background.resume();
        let slots = [SYSTEM_SLOT].into();
        self.background.retry(JobKind::Rotation, &slots);
        let mut failed = None;
        self.wait_for_progress(None, &mut || {
            failed = self.background.failure(JobKind::Rotation, &slots);
            failed.is_some() || !self.background.is_rotating_system()
        });
        match failed {
            Some(error) if self.background.is_rotating_system() => Err(error),
            _ => self.check_writable(),
        }
    }

    /// Wait until a table has one generation. Whether it has.
    pub(in crate::db) fn wait_for_rotation(&self, table: &Arc<TableState>, limit: Option<Duration>) -> Result<bool> {
        self.check_writable()?;
        self.background.resume();
        let slots = [table.slot].into();
        self.background.retry(JobKind::Rotation, &slots);
        let until = limit.map(|limit| self.env.clock.tick().after(limit));
        let mut failed = None;
        self.wait_for_progress(until, &mut || {
            failed = self.background.failure(JobKind::Rotation, &slots);
            failed.is_some() || !self.background.is_rotating(table.slot)
        });
        match failed {
            Some(error) if self.background.is_rotating(table.slot) => Err(error),
            _ => {
                self.check_writable()?;
                self.check_not_dropped(table)?;
                Ok(!self.background.is_rotating(table.slot))
            }
        }
    }

    fn rotation_failed(&self, table: &TableState, error: Error) {
        if table.is_dropped() {
            return;
        }
        let (kind, message) = (error.kind(), error.to_string());
        self.job_failed(JobKind::Rotation, table, error);
        self.events.event(&Event::RotationFailed { table: table.id, kind, message });
    }

    /// Note which compactions of a table may still seal under an older generation than the present one.
    fn note_claims(&self, table: &TableState) -> u64 {
        let claims = table.structure.lock().busy.claims_made();
        if let Some(rotating) = self.background.rotations.tables.lock().get_mut(&table.slot) {
            rotating.claims = Some(claims);
        }
        claims
    }

    /// Have every log segment up to this one go.
    fn leave_log_behind(&self, segment: FileNumber) -> Result<()> {
        self.background.let_log_go(segment);
        if self.log.end().segment <= segment {
            self.prepare_segment()?;
            let mut writer = self.writer.lock();
            // Asked again under the lock. In an opening that has written nothing yet, the log ends in a segment of an earlier one.
            if self.log.end().segment <= segment {
                self.begin_segment(&mut writer)?;
            }
        }
        Ok(())
    }

    /// Erase the wraps of all generations but the present one, if nothing is under them. False if something is, or if this is not the moment.
    fn erase_old_generations(&self, table: &Arc<TableState>, claims: u64) -> Result<bool> {
        let _creating = self.creating.lock();
        self.check_writable()?;
        // The file is somebody else's at present.
        if table.changing.load(Ordering::Acquire) || table.is_dropped() {
            return Ok(table.is_dropped());
        }
        let mut record = self.settled_key_file(table)?;
        let Some(newest) = record.wraps.last().map(|wrap| wrap.generation) else { return Ok(false) };
        if record.wraps.len() == 1 {
            return Ok(true);
        }
        // The log loses what is under old generations, and gets no more of it.
        if self.sealed_bytes(table).generations().iter().any(|generation| *generation != newest) {
            return Ok(false);
        }
        record.version += 1;
        record.wraps.retain(|wrap| wrap.generation == newest);
        let erased = self.erase_wraps(table, &record, |edit| self.unpin(table, newest, claims, edit))?;
        if erased {
            self.events.event(&Event::GenerationsErased { table: table.id, oldest: newest });
            self.advance_anchor();
        }
        Ok(erased)
    }

    /// Let go of all generations but the newest, in the manifest and in memory, if nothing is under them.
    fn unpin(&self, table: &Arc<TableState>, newest: Generation, claims: u64, edit: Edit) -> Result<bool> {
        let used = self.sealed_bytes(table);
        // Under this lock files change places, so that what was looked at is still so when the manifest says it.
        let structure = table.structure.lock();
        if table.is_dropped() || structure.busy.any_before(claims) {
            return Ok(false);
        }
        let files = self.files_by_generation(table);
        let is_old = |generation: &Generation| *generation != newest;
        if used.generations().iter().chain(&files).any(is_old) {
            return Ok(false);
        }
        self.manifest.append(vec![edit]).map_err(|error| self.poison(error))?;
        let publisher = table.publisher();
        let view = publisher.present();
        let keys = view.as_ref().map(|view| view.keys.clone()).or_else(|| table.lease.material());
        let left =
            keys.and_then(|keys| KeySet::new(keys.iter().filter(|key| key.generation() >= newest).cloned().collect()));
        if let Some(keys) = left.map(Arc::new) {
            table.lease.replace(&keys);
            if let Some(view) = view {
                publisher.show(Some(View { keys, ..View::clone(&view) }));
            }
        }
        Ok(true)
    }
}
