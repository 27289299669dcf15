//! Rotations that are due by themselves.
//!
//! A schedule is in the manifest: how often, and the wall time of the next rotation, which is replaced in the same append that begins a rotation. So none is begun
//! twice, whatever a crash or a clock that is put back does; a clock that runs ahead begins one early. Which is due next is found without a walk over
//! the tables: they are kept by their time. A rotation that cannot be begun is told as an event and tried again after a pause that doubles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::db::{Engine, Store};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::manifest::{Edit, Schedule};
use crate::io::Tick;
use crate::keys::Rekey;
use crate::types::{Slot, TableId};
use crate::version::state::State;

/// The pause after a rotation could not be begun; it doubles up to [`PAUSE_MAX_MS`].
const PAUSE_MIN_MS: u64 = 60_000;
const PAUSE_MAX_MS: u64 = 3_600_000;
/// Longest time until the wall clock is looked at again: it may be put forward meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// A shorter time between two rotations than this is a mistake: the first would not be over.
const EVERY_MIN: Duration = Duration::from_secs(60);

/// Which schedules there are, by the wall time when they are due. Slot 0 is the system key.
#[derive(Default)]
pub(in crate::db) struct Schedules {
    state: Mutex<Due>,
}

#[derive(Default)]
struct Due {
    by_time: BTreeMap<(u64, Slot), Entry>,
    times: BTreeMap<Slot, u64>,
}

#[derive(Clone, Copy)]
struct Entry {
    every_ms: u64,
    pause_ms: u64,
}

const SYSTEM: Slot = Slot(0);

impl Schedules {
    /// The schedules of a store that is being opened.
    pub(in crate::db) fn take_in(&self, state: &State) {
        let tables = state.tables.iter().filter(|(_, meta)| !meta.record.dropping);
        let tables = tables.filter_map(|(slot, meta)| Some((*slot, meta.rare.schedule?)));
        for (slot, schedule) in tables.chain(state.system_schedule.map(|schedule| (SYSTEM, schedule))) {
            self.set(slot, Some(schedule), 0);
        }
    }

    fn set(&self, slot: Slot, schedule: Option<Schedule>, pause_ms: u64) {
        let mut due = self.state.lock();
        if let Some(before) = due.times.remove(&slot) {
            due.by_time.remove(&(before, slot));
        }
        if let Some(Schedule { every_ms, next_ms }) = schedule {
            due.times.insert(slot, next_ms);
            due.by_time.insert((next_ms, slot), Entry { every_ms, pause_ms });
        }
    }

    fn first(&self) -> Option<(u64, Slot, Entry)> {
        let due = self.state.lock();
        due.by_time.first_key_value().map(|(&(next_ms, slot), entry)| (next_ms, slot, *entry))
    }
}

impl Store {
    /// Have a table's key rotated by itself every so often, the first time after that long; `None` ends it. Survives restarts: what was
    /// due while the store was closed is done soon after it is opened, once.
    ///
    /// # Errors
    /// [`Error::TableNotFound`]; [`Error::InvalidArgument`] for less than a minute; [`Error::Io`] if the manifest cannot be written.
    pub fn set_rotation_schedule(&self, name: &str, every: Option<Duration>) -> Result<()> {
        let table = self.table(name)?;
        self.keyholder()?.set_schedule(table.state().slot, every)
    }

    /// As [`set_rotation_schedule`](Store::set_rotation_schedule), for the system key.
    ///
    /// # Errors
    /// As for [`set_rotation_schedule`](Store::set_rotation_schedule).
    pub fn set_system_rotation_schedule(&self, every: Option<Duration>) -> Result<()> {
        self.keyholder()?.set_schedule(SYSTEM, every)
    }

    /// How often a table's key is rotated by itself, and when next in milliseconds since 1970-01-01 00:00 UTC, if it is.
    ///
    /// # Errors
    /// [`Error::TableNotFound`].
    pub fn rotation_schedule(&self, name: &str) -> Result<Option<(Duration, u64)>> {
        let slot = self.table(name)?.state().slot;
        let schedule =
            self.handle.manifest.with_state(|state| state.tables.get(&slot).and_then(|meta| meta.rare.schedule));
        Ok(schedule.map(|schedule| (Duration::from_millis(schedule.every_ms), schedule.next_ms)))
    }
}

impl Engine {
    fn set_schedule(&self, slot: Slot, every: Option<Duration>) -> Result<()> {
        if let Some(every) = every.filter(|every| *every < EVERY_MIN) {
            let detail = format!("{} ms is less than a minute", every.as_millis());
            return Err(Error::InvalidArgument { what: "time between rotations", detail });
        }
        let schedule = every.map(|every| self.next_schedule(every.as_millis() as u64));
        let _creating = self.creating.lock();
        self.check_writable()?;
        if slot != SYSTEM && self.catalog.of_slot(slot).is_none() {
            return Err(Error::Closed);
        }
        self.manifest.append(vec![edit(slot, schedule)]).map_err(|error| self.poison(error))?;
        self.background.schedules.set(slot, schedule, 0);
        self.background.wake();
        Ok(())
    }

    fn next_schedule(&self, every_ms: u64) -> Schedule {
        Schedule { every_ms, next_ms: self.env.clock.wall_ms().saturating_add(every_ms) }
    }

    /// Begin the rotations that are due. Asks providers; no lock may be held. When to look again, if there are schedules.
    pub(in crate::db) fn begin_due_rotations(self: &Arc<Engine>) -> Option<Tick> {
        loop {
            let now_ms = self.env.clock.wall_ms();
            let (next_ms, slot, entry) = self.background.schedules.first()?;
            if next_ms > now_ms {
                let wait = Duration::from_millis(next_ms - now_ms).min(LOOK_MAX);
                return Some(self.env.clock.tick().after(wait));
            }
            let next = self.next_schedule(entry.every_ms);
            let edits = vec![edit(slot, Some(next))];
            let (id, outcome) = match self.catalog.of_slot(slot) {
                _ if slot == SYSTEM => (TableId::SYSTEM, self.change_system_key(Rekey::NewGeneration, edits)),
                Some(table) => (table.id, self.rotate(&table, edits)),
                // It was dropped, and its schedule with it.
                None => {
                    self.background.schedules.set(slot, None, 0);
                    continue;
                }
            };
            match outcome {
                Ok(()) => self.background.schedules.set(slot, Some(next), 0),
                Err(error) => {
                    self.events.event(&Event::RotationFailed {
                        table: id,
                        kind: error.kind(),
                        message: error.to_string(),
                    });
                    let pause_ms = (entry.pause_ms * 2).clamp(PAUSE_MIN_MS, PAUSE_MAX_MS);
                    // In memory alone: by the manifest it stays due.
                    let again = Schedule { every_ms: entry.every_ms, next_ms: now_ms.saturating_add(pause_ms) };
                    self.background.schedules.set(slot, Some(again), pause_ms);
                    if self.check_writable().is_err() {
                        return None;
                    }
                }
            }
        }
    }
}

fn edit(slot: Slot, schedule: Option<Schedule>) -> Edit {
    Edit::Schedule { slot: (slot != SYSTEM).then_some(slot), schedule }
}
