//! What became of jobs that failed: each table has a pause of its own.
//!
//! A table whose key is refused, or one of whose files is damaged, must keep no other waiting. So a failure is noted for the table and
//! the kind of job, only that table rests, and who waits hears only of what he waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Background;
use crate::db::Engine;
use crate::db::catalog::TableState;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Tick;
use crate::metrics::Count;
use crate::types::Slot;

/// The pause after a job failed for the first time; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JobKind {
    Flush,
    Compaction,
    Rotation,
}

impl JobKind {
    /// Where failures are counted.
    fn failures(self) -> Count {
        match self {
            JobKind::Flush => Count::FlushFailures,
            JobKind::Compaction => Count::CompactionFailures,
            JobKind::Rotation => Count::RotationFailures,
        }
    }
}

/// Why the last job of a kind failed for a table.
pub(super) struct Failure {
    pub(super) error: Error,
    /// Doubles with each failure in a row.
    pause: Duration,
    /// When it is tried again.
    again: Tick,
}

impl Background {
    pub(super) fn note_failure(&self, kind: JobKind, slot: Slot, error: Error, now: Tick) {
        let mut failures = self.failures.lock();
        let pause = failures.get(&(kind, slot)).map_or(PAUSE_MIN, |last| (last.pause * 2).min(PAUSE_MAX));
        failures.insert((kind, slot), Failure { error, pause, again: now.after(pause) });
    }

    pub(super) fn note_success(&self, kind: JobKind, slot: Slot) {
        self.note_successes(kind, std::iter::once(slot));
    }

    /// The same for many tables at once, so that who waits is woken once.
    pub(super) fn note_successes(&self, kind: JobKind, slots: impl Iterator<Item = Slot>) {
        {
            let mut failures = self.failures.lock();
            slots.for_each(|slot| drop(failures.remove(&(kind, slot))));
        }
        self.progress.raise();
    }

    /// Why the last job of this kind failed for one of these tables, if it did.
    pub(super) fn failure(&self, kind: JobKind, tables: &BTreeSet<Slot>) -> Option<Error> {
        let failures = self.failures.lock();
        let mut failed = failures.iter().filter(|((other, slot), _)| *other == kind && tables.contains(slot));
        failed.next().map(|(_, failure)| failure.error.clone())
    }

    /// Whether a table's last flush failed because the service did not get its key.
    pub(in crate::db) fn cannot_be_flushed(&self, table: &TableState) -> bool {
        let failures = self.failures.lock();
        let failure = failures.get(&(JobKind::Flush, table.slot));
        failure.is_some_and(|failure| failure.error.kind() == ErrorKind::KeyUnavailable)
    }

    /// Nothing of a table is to be done any more: what failed of it is no failure.
    pub(super) fn forgive(&self, table: &TableState) {
        let kinds = [JobKind::Flush, JobKind::Compaction];
        let mut failures = self.failures.lock();
        kinds.into_iter().for_each(|kind| drop(failures.remove(&(kind, table.slot))));
    }

    /// Try again now what failed before.
    pub(super) fn retry(&self, kind: JobKind, tables: &BTreeSet<Slot>) {
        self.failures.lock().retain(|(other, slot), _| *other != kind || !tables.contains(slot));
        self.work.raise();
    }

    /// Tables of which such jobs are not to be tried yet, and until when.
    pub(super) fn resting(&self, kind: JobKind, now: Tick) -> BTreeMap<Slot, Tick> {
        let failures = self.failures.lock();
        let of_kind = failures.iter().filter(|((other, _), failure)| *other == kind && now < failure.again);
        of_kind.map(|((_, slot), failure)| (*slot, failure.again)).collect()
    }
}

impl Engine {
    /// Note that a background job went well, and wake whoever waits for it.
    pub(super) fn job_done(&self, kind: JobKind, table: &TableState) {
        self.background.note_success(kind, table.slot);
    }

    /// Note that a background job failed, and wake whoever waits for it.
    pub(super) fn job_failed(&self, kind: JobKind, table: &TableState, error: Error) {
        self.meters.count(kind.failures(), 1);
        self.background.note_failure(kind, table.slot, error, self.env.clock.tick());
        self.background.progress.raise();
    }

    /// Wait until `done`, or until such a job fails for one of these tables.
    pub(super) fn settle(&self, kind: JobKind, tables: &BTreeSet<Slot>, done: impl Fn() -> bool) -> Result<()> {
        // What failed earlier is tried again, not reported.
        self.background.retry(kind, tables);
        let mut failed = None;
        self.wait_for_progress(None, &mut || {
            failed = self.background.failure(kind, tables);
            failed.is_some() || done()
        });
        match failed {
            Some(error) if !done() => Err(error),
            _ => self.check_writable(),
        }
    }

    /// A background task panicked: nobody does its work any more, so nobody must go on waiting for it.
    pub(in crate::db) fn poison_if_panicking(&self, task: &'static str) {
        if std::thread::panicking() {
            self.poison(Error::io("run", task, std::io::Error::other("the background task panicked")));
        }
    }
}
