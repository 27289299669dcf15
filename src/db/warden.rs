//! Looks after permits: has those renewed that are in use, and tables put away whose last one has ended.
//!
//! ```text
//!  permit begins ── look_after ──► agenda ── due ──► Warden ─┬─ look again later ──► agenda
//!                                                            ├─ renew ──► due ──► Renewer, Renewer, ...   ask providers
//!                                                            ├─ ended, the table's last ──► ending ── put away (load.rs)
//!                                                            └─ the log is over its limit ──► Loader   brings its owners into use
//! ```
//!
//! The warden itself asks nobody, so a provider that takes its time delays no other permit: each question is a [`Renewer`]'s, of which there
//! are as many as there is work, and never more than [`RENEWALS_MAX`]. They end when nothing is due, so an idle store has none. That no two ask for
//! the same principal and table is the lease's business.
//!
//! **No walk over tables.** Each beginning of a permit stands on the agenda once, by the time when something may have to be done about it; a store with
//! 100,000 tables in use looks at 1,000 dates a second, and at none of those whose time has not come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use super::catalog::TableState;
use crate::io::{Join, Signal, Step, Task, Tick};
use crate::keys::{Look, Permit, Renewal};
use crate::types::{FileNumber, Slot};

/// How often the agenda is looked at.
const WARDEN_PERIOD: Duration = Duration::from_millis(250);
/// Renewals that may be under way at once: enough that some may hang at a provider for as long as its time limit, few enough that a KMS
/// does not throttle us.
const RENEWALS_MAX: usize = 8;

/// When tables are brought into use again for the same log segment.
const LOAD_AGAIN: Duration = Duration::from_secs(1);

/// What there is to do about permits.
#[derive(Default)]
pub(crate) struct Agenda {
    dates: Mutex<Dates>,
    renewals: Mutex<Renewals>,
    /// Brings tables into use for the log's sake, if somebody does.
    loader: Mutex<Option<Running>>,
    /// For which segment it was hired last, and when.
    loaded_for: Mutex<Option<(FileNumber, Tick)>>,
    /// Tables that nobody may use any more and that are still to be put away.
    ending: Mutex<BTreeMap<Slot, Arc<TableState>>>,
}

#[derive(Default)]
struct Dates {
    /// By time, and within it in the order in which they were made.
    by_time: BTreeMap<(Tick, u64), Date>,
    made: u64,
}

/// When to look at a permit.
struct Date {
    table: Arc<TableState>,
    permit: Arc<Permit>,
    /// Which beginning of the permit it is about.
    begun: u64,
}

#[derive(Default)]
struct Renewals {
    due: VecDeque<Date>,
    renewers: Vec<Running>,
}

struct Running {
    done: Arc<AtomicBool>,
    join: Box<dyn Join>,
}

impl Agenda {
    fn list(&self, at: Tick, date: Date) {
        let mut dates = self.dates.lock();
        dates.made += 1;
        let place = (at, dates.made);
        dates.by_time.insert(place, date);
    }

    /// How many dates there are: about one for each permit.
    pub(super) fn len(&self) -> usize {
        self.dates.lock().by_time.len()
    }

    fn next_due(&self, now: Tick) -> Option<Date> {
        let mut dates = self.dates.lock();
        let first = dates.by_time.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Wait for the renewals that are under way. No others begin.
    pub(super) fn join(&self) {
        let renewers = {
            let mut renewals = self.renewals.lock();
            renewals.due.clear();
            std::mem::take(&mut renewals.renewers)
        };
        let loader = self.loader.lock().take();
        for renewer in renewers.into_iter().chain(loader) {
            // One that panicked has nothing that anybody waits for.
            let _ = renewer.join.join();
        }
    }
}

impl Engine {
    /// See to it that a permit which may have begun is renewed or its end noticed. After every question to a provider.
    pub(super) fn look_after(&self, table: &Arc<TableState>, permit: &Arc<Permit>) {
        self.background.in_use.lock().insert(table.slot, table.clone());
        if let Some((begun, at)) = permit.to_list() {
            self.agenda.list(at, Date { table: table.clone(), permit: permit.clone(), begun });
        }
        if table.has_ended(self.keys.advance()) {
            self.agenda.ending.lock().insert(table.slot, table.clone());
        }
    }

    /// Look at every permit whose time has come, and put tables away.
    fn look_after_permits(self: &Arc<Engine>) {
        let now = self.keys.advance();
        while let Some(date) = self.agenda.next_due(now) {
            match self.keys.look(&date.table.lease, &date.permit, date.begun) {
                Look::Later(at) => self.agenda.list(at, date),
                Look::Renew => self.agenda.renewals.lock().due.push_back(date),
                Look::Ended if date.table.has_ended(now) => {
                    self.agenda.ending.lock().insert(date.table.slot, date.table);
                }
                Look::Ended | Look::Superseded => {}
            }
        }
        self.hire();
        let ending: Vec<_> = self.agenda.ending.lock().values().cloned().collect();
        for table in ending {
            if table.is_dropped() {
                self.background.in_use.lock().remove(&table.slot);
            } else if table.has_ended(now) {
                self.put_away(&table, now);
            }
            // Put away, dropped, or in use again.
            if !table.has_ended(now) || !self.background.in_use.lock().contains_key(&table.slot) {
                self.agenda.ending.lock().remove(&table.slot);
            }
        }
    }

    /// Begin as many renewers as there is work for.
    fn hire(self: &Arc<Engine>) {
        let mut renewals = self.agenda.renewals.lock();
        let mut left = Vec::new();
        let mut index = 0;
        while index < renewals.renewers.len() {
            match renewals.renewers[index].done.load(Ordering::Acquire) {
                true => left.push(renewals.renewers.swap_remove(index)),
                false => index += 1,
            }
        }
        let wanted = renewals.due.len().min(RENEWALS_MAX.saturating_sub(renewals.renewers.len()));
        drop(renewals);
        for renewer in left {
            let _ = renewer.join.join();
        }
        for _ in 0..wanted {
            let done = Arc::new(AtomicBool::new(false));
            let task = Renewer { engine: self.clone(), done: done.clone() };
            // Without a thread, permits end, and the next use asks.
            let Ok(join) = self.env.scheduler.spawn("strongroom-renew", Box::new(task)) else { return };
            self.agenda.renewals.lock().renewers.push(Running { done, join });
        }
    }

    /// While the log is over its limit, have tables brought into use that keep it from shrinking: by a task of its own, because that asks providers.
    fn hire_loader(self: &Arc<Engine>) {
        let Some(segment) = self.segment_to_relieve().filter(|_| self.poison.get().is_none()) else { return };
        let now = self.env.clock.tick();
        // Owners whose key is not to be had are not there for the asking: parking is what helps then (park.rs).
        if self.agenda.loaded_for.lock().is_some_and(|(last, at)| last == segment && now < at.after(LOAD_AGAIN)) {
            return;
        }
        let before = {
            let mut loader = self.agenda.loader.lock();
            if loader.as_ref().is_some_and(|loader| !loader.done.load(Ordering::Acquire)) {
                return;
            }
            loader.take()
        };
        if let Some(before) = before {
            let _ = before.join.join();
        }
        let done = Arc::new(AtomicBool::new(false));
        let task = Loader { engine: self.clone(), done: done.clone() };
        if let Ok(join) = self.env.scheduler.spawn("strongroom-load", Box::new(task)) {
            *self.agenda.loader.lock() = Some(Running { done, join });
            *self.agenda.loaded_for.lock() = Some((segment, now));
        }
    }

    /// Renew one permit that is due; false if there was none.
    fn renew_one(&self) -> bool {
        let Some(date) = self.agenda.renewals.lock().due.pop_front() else { return false };
        let table = &date.table;
        let renewal = match table.is_dropped() {
            true => Ok(Renewal::NotDue),
            // What came of it is told as an event; the permit itself says what it means.
            false => self.keys.refresh(&table.lease, &date.permit, &|| self.read_key_file(table.slot, table.id)),
        };
        self.look_after(table, &date.permit);
        if !matches!(renewal, Ok(Renewal::Renewed)) {
            self.agenda.list(self.keys.advance(), date);
        }
        true
    }
}

/// Looks at the agenda a few times a second.
pub(super) struct Warden {
    engine: Arc<Engine>,
}

impl Warden {
    pub(super) fn new(engine: Arc<Engine>) -> Warden {
        Warden { engine }
    }
}

impl Task for Warden {
    fn step(&mut self) -> Step {
        // Before anything is looked at: an end that comes afterwards is not slept through.
        let signal: Arc<Signal> = self.engine.background.quit.clone();
        let seen = signal.count();
        if self.engine.background.stopping() {
            return Step::Done;
        }
        self.engine.look_after_permits();
        self.engine.hire_loader();
        let deadline = self.engine.env.clock.tick().after(WARDEN_PERIOD);
        Step::Wait { signal, seen, clock: self.engine.env.clock.clone(), deadline: Some(deadline) }
    }
}

/// Asks providers for what is due, and ends when nothing is.
struct Renewer {
    engine: Arc<Engine>,
    done: Arc<AtomicBool>,
}

impl Task for Renewer {
    fn step(&mut self) -> Step {
        match !self.engine.background.stopping() && self.engine.renew_one() {
            true => Step::Again,
            false => Step::Done,
        }
    }
}

/// Brings tables into use for the log's sake, once.
struct Loader {
    engine: Arc<Engine>,
    done: Arc<AtomicBool>,
}

impl Task for Loader {
    fn step(&mut self) -> Step {
        if !self.engine.background.stopping() {
            self.engine.load_for_log();
        }
        Step::Done
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
    }
}
