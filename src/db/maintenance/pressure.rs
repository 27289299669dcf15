//! What memtables cost, when they are frozen, and how writers are slowed when background work falls behind.
//!
//! ```text
//! bytes of all memtables   0 ───────────── budget ──────────── 1.5 budget ───>
//! level-0 files of a table 0 ───────────── slow ────────────── stop ─────────>
//! a commit                   goes through   pays from a bucket    waits for room, or for the
//!                                           (throttle.rs)         reason why there is none
//! ```
//! Memory is one bucket for all, filled at the rate of flushes; every table with too many level-0 files has a bucket of its own, filled at the
//! rate at which such files are merged away. Who writes to neither pays nothing, and looks at no clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::throttle::Fill;
use super::{Background, JobKind};
use crate::db::Engine;
use crate::db::batch::WriteSet;
use crate::db::catalog::{Memory, Seat, TableState, View};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::io::Tick;
use crate::trace;
use crate::types::{FileNumber, Slot};

/// A commit freezes at most so many memtables because of the budget: the next commit goes on with it, and none waits for thousands.
const FREEZES_PER_COMMIT: usize = 8;

/// What keeps writers back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reason {
    Memory,
    LevelZero,
}

impl Reason {
    /// In a word.
    fn name(self) -> &'static str {
        match self {
            Reason::Memory => "memory",
            Reason::LevelZero => "level zero",
        }
    }
}

impl Engine {
    /// Account for what a group added to a memtable.
    pub(crate) fn charge(&self, table: &Arc<TableState>, memory: &Memory, segment: FileNumber) {
        let grown = memory.uncharged_bytes();
        let begins = memory.begins_in(segment);
        if begins {
            self.background.hold_segment(segment);
        }
        if begins || grown > 0 {
            self.background.memory_bytes.fetch_add(grown, Ordering::Relaxed);
            let first = memory.first_segment().unwrap_or(segment);
            self.background.dirty.lock().note(table, memory.charged_bytes(), first);
        }
    }

    /// Account for a memtable that was filled from the log.
    pub(in crate::db) fn adopt(&self, table: &Arc<TableState>, memory: &Memory) {
        if let Some(segment) = memory.first_segment() {
            self.background.memory_bytes.fetch_add(memory.uncharged_bytes(), Ordering::Relaxed);
            self.background.hold_segment(segment);
            self.background.dirty.lock().note(table, memory.charged_bytes(), segment);
        }
    }

    /// Account for a memtable that is gone: in sorted tables, or with its table.
    pub(in crate::db) fn discharge(&self, table: &TableState, memory: &Memory) {
        if let Some(segment) = memory.first_segment() {
            self.background.memory_bytes.fetch_sub(memory.charged_bytes(), Ordering::Relaxed);
            if memory.is_frozen() {
                self.background.frozen_bytes.fetch_sub(memory.charged_bytes(), Ordering::Relaxed);
            }
            self.background.release_segment(segment);
        }
        if table.is_dropped() {
            self.background.dirty.lock().remove(table.slot);
        }
    }

    /// Freeze a table's active memtable if it has reached its size. The caller holds the writer's lock.
    pub(crate) fn freeze_if_full(&self, table: &Arc<TableState>, view: &View) {
        if view.active.table.bytes() >= self.options.memtable_bytes {
            self.freeze(table);
        }
    }

    /// Freeze some of the largest memtables if all together are over the budget. The caller holds the writer's lock.
    pub(crate) fn relieve_budget(&self) {
        for _ in 0..FREEZES_PER_COMMIT {
            if !self.is_short_of_room() || self.active_bytes() <= self.options.write_budget_bytes / 2 {
                return;
            }
            // The guard goes before the table is frozen, which takes it off the list.
            let largest = self.background.dirty.lock().largest();
            let Some(table) = largest else { return };
            self.freeze(&table);
        }
    }

    /// As [`relieve_budget`](Engine::relieve_budget), until it is relieved, for those who do not hold the writer's lock.
    pub(in crate::db) fn relieve_budget_soon(&self) {
        while self.is_short_of_room() && self.active_bytes() > self.options.write_budget_bytes / 2 {
            let _writer = self.writer.lock();
            self.relieve_budget();
            if self.background.dirty.lock().largest().is_none() {
                return;
            }
        }
    }

    /// Freeze the largest memtables until those that are not frozen take no more than so many bytes.
    pub(super) fn freeze_down_to(&self, bytes: usize) {
        while self.active_bytes() > bytes {
            let _writer = self.writer.lock();
            let largest = self.background.dirty.lock().largest();
            let Some(table) = largest else { return };
            self.freeze(&table);
        }
    }

    /// Bytes of all memtables.
    pub(super) fn memory_bytes(&self) -> usize {
        self.background.memory_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of memtables that are not frozen, and so will not be gone by themselves.
    fn active_bytes(&self) -> usize {
        let all = self.memory_bytes();
        all.saturating_sub(self.background.frozen_bytes.load(Ordering::Relaxed))
    }

    /// Freeze a table's active memtable, if it has entries. The caller holds the writer's lock, so that nothing is being
    /// inserted.
    pub(crate) fn freeze(&self, table: &Arc<TableState>) {
        let publisher = table.publisher();
        self.background.dirty.lock().remove(table.slot);
        let Some(view) = publisher.present() else { return };
        if view.active.table.is_empty() {
            return;
        }
        let mut next = View::clone(&view);
        next.frozen.insert(0, std::mem::replace(&mut next.active, Memory::new()));
        publisher.show(Some(next));
        self.enqueue_flush(table, view.active.clone());
    }

    /// Wait for room for these writes: not at all while background work keeps up, a little while it is behind, until it is
    /// done when there is no room.
    pub(crate) fn throttle(&self, writes: &dyn WriteSet) -> Result<()> {
        self.take_room(writes)?;
        match self.congestion(writes.tables()) {
            None => Ok(()),
            Some((Fill::STOP, reason)) => self.stop(writes.tables(), reason),
            Some(_) => self.slow(writes),
        }
    }

    /// Have a write pay for being let in while work is behind.
    fn slow(&self, writes: &dyn WriteSet) -> Result<()> {
        let Background { bucket, flushing, merging, .. } = &self.background;
        let (now, bytes) = (self.env.clock.tick(), writes.bytes() as u64);
        let of_memory = self.memory_fill().and_then(|fill| bucket.take(now, bytes, fill, flushing.rate()));
        let own_bytes = bytes / (writes.tables().len() as u64).max(1);
        let own = |seat: &Seat| {
            let fill = self.level_zero_fill(seat)?;
            seat.table.pressure.bucket.take(now, own_bytes, fill, merging.rate())
        };
        let of_level_zero = writes.tables().iter().filter_map(own).max();
        let (until, stall) = match (of_memory, of_level_zero) {
            (None, None) => return Ok(()),
            (Some(date), other) if other.is_none_or(|other| other <= date) => (date, &self.meters.slowed_by_memory_ns),
            (date, other) => (date.max(other).unwrap_or(now), &self.meters.slowed_by_level_zero_ns),
        };
        self.wait_for_progress(Some(until), &mut || self.congestion(writes.tables()).is_none());
        stall.record(self.env.clock.tick().since(now));
        self.check_writable()
    }

    /// Wait until there is room, or for the reason why there will be none.
    fn stop(&self, tables: &[Seat], reason: Reason) -> Result<()> {
        let is_stopped = || self.congestion(tables).is_some_and(|(fill, _)| fill == Fill::STOP);
        // Background work may be quiet, and what is in memory may have come from the log: then nobody is at it yet.
        self.background.resume();
        self.relieve_budget_soon();
        let _span = trace::span!(INFO, "stall"; reason = reason.name()).entered();
        self.events.event(&Event::StallBegan);
        let began = self.env.clock.tick();
        let mut failed = None;
        self.wait_for_progress(None, &mut || {
            failed = self.hindrance(tables);
            failed.is_some() || !is_stopped()
        });
        let lasted_ns = self.env.clock.tick().since(began);
        match reason {
            Reason::Memory => self.meters.stopped_by_memory_ns.record(lasted_ns),
            Reason::LevelZero => self.meters.stopped_by_level_zero_ns.record(lasted_ns),
        }
        self.events.event(&Event::StallEnded { lasted_ms: lasted_ns / 1_000_000 });
        match failed {
            Some(error) if is_stopped() => Err(error),
            _ => self.check_writable(),
        }
    }

    /// Why there will be no room soon: everything that is to be flushed has failed lately, or the compaction of one of these tables
    /// with too many files of level 0.
    pub(super) fn hindrance(&self, tables: &[Seat]) -> Option<Error> {
        let is_full = |seat: &&Seat| seat.table.pressure.level_zero_files() >= self.options.level_zero_stop_files;
        let full = tables.iter().filter(is_full).map(|seat| seat.table.slot).collect();
        if let Some(error) = self.background.failure(JobKind::Compaction, &full) {
            return Some(error);
        }
        if !self.background.failures.lock().keys().any(|(kind, _)| *kind == JobKind::Flush) {
            return None;
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

    /// What keeps these tables' writers back most, if anything does.
    fn congestion(&self, tables: &[Seat]) -> Option<(Fill, Reason)> {
        let memory = self.memory_fill().map(|fill| (fill, Reason::Memory));
        let level_zero = tables.iter().filter_map(|seat| self.level_zero_fill(seat)).max();
        memory.max(level_zero.map(|fill| (fill, Reason::LevelZero)))
    }

    fn memory_fill(&self) -> Option<Fill> {
        let bytes = self.background.memory_bytes.load(Ordering::Relaxed);
        let budget = self.options.write_budget_bytes;
        Fill::of(bytes as u64, budget as u64, (budget + budget / 2) as u64)
    }

    fn level_zero_fill(&self, seat: &Seat) -> Option<Fill> {
        let (slow, stop) = (self.options.level_zero_slow_files, self.options.level_zero_stop_files);
        Fill::of(seat.table.pressure.level_zero_files() as u64, slow as u64, stop as u64)
    }

    /// Memtables of so many bytes were flushed, each into about one file.
    pub(super) fn note_flushed(&self, bytes: usize, memtables: usize, began: Tick) {
        self.background.flushing.note(bytes as u64, began, self.env.clock.tick());
        if let Some(each) = (bytes as u64).checked_div(memtables as u64) {
            self.background.flushed_file_bytes.store(each, Ordering::Relaxed);
        }
    }

    /// So many level-0 files were merged away.
    pub(super) fn note_merged(&self, level_zero_files: usize, began: Tick) {
        let each = self.background.flushed_file_bytes.load(Ordering::Relaxed);
        self.background.merging.note(each.saturating_mul(level_zero_files as u64), began, self.env.clock.tick());
    }
}
