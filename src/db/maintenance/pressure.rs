//! What memtables cost, when they are frozen, and how writers are slowed when background work falls behind.
//!
//! ```text
//! bytes of all memtables   0 ───────────── budget ──────────── 1.5 budget ───>
//! level-0 files of a table 0 ───────────── slow ────────────── stop ─────────>
//! a commit                   goes through   owes its share of    waits for room, or for the
//!                                           flushing time        reason why there is none
//! ```

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::JobKind;
use crate::db::Engine;
use crate::db::batch::WriteSet;
use crate::db::catalog::{Memory, Seat, TableState, View};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::types::{FileNumber, Slot};

/// A delay shorter than this is saved up.
const DELAY_MIN: Duration = Duration::from_millis(1);
/// The longest that one commit is delayed while background work is behind but not stuck.
const DELAY_MAX: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Congestion {
    None,
    Behind,
    Full,
}

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
    pub(in crate::db) fn adopt(&self, table: &Arc<TableState>, memory: &Memory) {
        if let Some(segment) = memory.first_segment() {
            self.background.memory_bytes.fetch_add(memory.uncharged_bytes(), Ordering::Relaxed);
            self.background.hold_segment(segment);
            self.background.dirty.lock().insert(table.slot, table.clone());
        }
    }

    /// Account for a memtable that is gone: in sorted tables, or with its table.
    pub(in crate::db) fn discharge(&self, table: &TableState, memory: &Memory) {
        if let Some(segment) = memory.first_segment() {
            self.background.memory_bytes.fetch_sub(memory.charged_bytes(), Ordering::Relaxed);
            self.background.release_segment(segment);
        }
        if table.is_dropped() {
            self.background.dirty.lock().remove(&table.slot);
        }
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
        if active <= self.options.write_budget_bytes / 2 {
            return;
        }
        let bytes = |table: &TableState| table.view.load().as_ref().map_or(0, |view| view.active.table.bytes());
        let mut tables: Vec<_> =
            self.background.dirty.lock().values().map(|table| (bytes(table), table.clone())).collect();
        tables.sort_by_key(|(bytes, table)| (Reverse(*bytes), table.slot));
        for (bytes, table) in tables {
            if active <= self.options.write_budget_bytes / 2 {
                return;
            }
            self.freeze(&table);
            active = active.saturating_sub(bytes);
        }
    }

    /// As [`relieve_budget`](Engine::relieve_budget), for those who do not hold the writer's lock.
    pub(in crate::db) fn relieve_budget_soon(&self) {
        if self.background.memory_bytes.load(Ordering::Relaxed) >= self.options.write_budget_bytes {
            let _writer = self.writer.lock();
            self.relieve_budget();
        }
    }

    /// Freeze a table's active memtable, if it has entries. The caller holds the writer's lock, so that nothing is being
    /// inserted.
    pub(crate) fn freeze(&self, table: &Arc<TableState>) {
        let _structure = table.structure.lock();
        self.background.dirty.lock().remove(&table.slot);
        let Some(view) = table.view.load_owned() else { return };
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
                // Background work may be quiet, and what is in memory may have come from the log: then nobody is at it yet.
                self.background.resume();
                self.relieve_budget_soon();
                self.events.event(&Event::StallBegan);
                let began = self.env.clock.tick();
                let mut failed = None;
                self.wait_for_progress(None, &mut || {
                    failed = self.hindrance(writes.tables());
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

    /// Why there will be no room soon: everything that is to be flushed has failed lately, or the compaction of one of these tables
    /// with too many files of level 0.
    fn hindrance(&self, tables: &[Seat]) -> Option<Error> {
        let is_full = |seat: &&Seat| seat.table.pressure.level_zero_files() >= self.options.level_zero_stop_files;
        let full = tables.iter().filter(is_full).map(|seat| seat.table.slot).collect();
        if let Some(error) = self.background.failure(JobKind::Compaction, &full) {
            return Some(error);
        }
        let to_flush: BTreeSet<Slot> = self.background.flushes.lock().iter().map(|item| item.table.slot).collect();
        let failures = self.background.failures.lock();
        let all = to_flush.iter().map(|slot| failures.get(&(JobKind::Flush, *slot))).collect::<Option<Vec<_>>>()?;
        all.first().map(|failure| failure.error.clone())
    }

    /// Whether memtables take more than they may: writers are slowed, and background work that can wait should.
    pub(super) fn is_short_of_room(&self) -> bool {
        self.background.memory_bytes.load(Ordering::Relaxed) >= self.options.write_budget_bytes
    }

    fn congestion(&self, tables: &[Seat]) -> Congestion {
        let bytes = self.background.memory_bytes.load(Ordering::Relaxed);
        let files = tables.iter().map(|seat| seat.table.pressure.level_zero_files()).max().unwrap_or(0);
        let (budget, options) = (self.options.write_budget_bytes, &self.options);
        if bytes >= budget + budget / 2 || files >= options.level_zero_stop_files {
            Congestion::Full
        } else if bytes >= budget || files >= options.level_zero_slow_files {
            Congestion::Behind
        } else {
            Congestion::None
        }
    }
}
