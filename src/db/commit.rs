//! The one way in: how writes become durable and visible.
//!
//! ```text
//! admission ─ permits ─ queue ─┬─ leader: sequence numbers, sealing, one write to the log,
//!                              │          memtables, visibility          (the writer's lock is held)
//!                              └─ followers: wait for the leader's answer, or lead the next group
//! sync, if asked for ─ outside the lock, one for all who wait
//! ```
//!
//! A *group* is what one leader commits: its own writes and those of everybody who queued up while the
//! leader before was busy. A group is one envelope in the log, so it is recovered whole or not at all, and
//! visibility moves over whole groups, so no reader sees half a batch.
//!
//! **Order.** The log has a group before any memtable does; memtables have it before it is visible; it is
//! visible before it is acknowledged. An error after the first byte went to the log poisons the store: what
//! the log holds then is unknown, and only a recovery can tell.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Engine;
use super::batch::{Write, WriteSet, Writes};
use super::catalog::{Seat, TableState, View};
use crate::error::{Error, Result};
use crate::format::log::{ENVELOPE_SECTIONS_MAX, LogPoint};
use crate::metrics::Count;
use crate::options::Durability;
use crate::trace;
use crate::types::{Kind, Seq, Trailer};
use crate::wal::{self, LogWriter};

/// A leader takes followers until the group has this many bytes of keys and values.
const GROUP_BYTES: usize = 1 << 20;

/// Those who wait for a leader, and whether there is one.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: VecDeque<Arc<Pending>>,
    led: bool,
}

/// Writes in the queue, and what became of them.
struct Pending {
    writes: Writes,
    outcome: Mutex<Option<Outcome>>,
}

/// What became of the writes of one caller.
#[derive(Clone)]
enum Outcome {
    /// In the log up to this point, and visible.
    Done(LogPoint),
    /// A table was put away between the caller's check and the group: check again.
    Again,
    /// Not written, or not known to be.
    Failed(Error),
}

impl Engine {
    /// Commit `writes` and return once they are as durable as asked.
    pub(crate) fn commit(&self, writes: &dyn WriteSet, durability: Durability) -> Result<()> {
        if !self.meters.begin(Count::CommitCalls) {
            return self.commit_at_all(writes, durability);
        }
        let began = self.env.clock.tick();
        let outcome = self.commit_at_all(writes, durability);
        self.meters.commit_ns.record(self.env.clock.tick().since(began));
        outcome
    }

    fn commit_at_all(&self, writes: &dyn WriteSet, durability: Durability) -> Result<()> {
        if writes.len() == 0 {
            return match durability {
                Durability::Buffered => Ok(()),
                Durability::Sync => self.sync(),
            };
        }
        // Refused here, since an error while a group is being written poisons the store.
        check_tables(writes.tables().len())?;
        loop {
            // Room first and permits second: a permit may end during the wait.
            self.throttle(writes)?;
            for seat in writes.tables() {
                self.with_view(seat, |_| Ok(()))?;
            }
            match self.enter(writes) {
                Outcome::Done(point) => {
                    return match durability {
                        Durability::Buffered => Ok(()),
                        Durability::Sync => self.sync_to(point),
                    };
                }
                Outcome::Again => {}
                Outcome::Failed(error) => return Err(error),
            }
        }
    }

    /// Make every commit so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.check_writable()?;
        self.sync_to(self.log.end())
    }

    fn sync_to(&self, point: LogPoint) -> Result<()> {
        if self.log.is_synced(point) {
            return Ok(());
        }
        self.sync_log(point)?;
        // What is durable now is attested by the next envelope, or by a mark if none comes by itself.
        let mut writer = self.writer.lock();
        match self.check_writable() {
            // What was asked for is done, and the close has recorded how far the log is durable.
            Err(Error::Closed) => return Ok(()),
            outcome => outcome?,
        }
        let next = self.visible.load().advanced(1).ok_or_else(sequence_exhausted)?;
        self.log.mark(&mut writer, self.manifest.epoch(), next).map_err(|error| self.poison(error))
    }

    /// Make the log durable up to a point. A failure poisons the store.
    pub(super) fn sync_log(&self, point: LogPoint) -> Result<()> {
        if self.log.is_synced(point) {
            return Ok(());
        }
        let _span = trace::span!(TRACE, "sync"; segment = point.segment.0, bytes = point.end_bytes).entered();
        let began = self.env.clock.tick();
        let outcome = self.log.sync(point).map_err(|error| self.poison(error));
        self.meters.sync_ns.record(self.env.clock.tick().since(began));
        outcome
    }

    /// Lead a group or have a leader commit these writes.
    fn enter(&self, writes: &dyn WriteSet) -> Outcome {
        let mut queue = self.queue.lock();
        if !queue.led {
            queue.led = true;
            let followers = take_followers(&mut queue, writes);
            drop(queue);
            return self.lead(writes, followers);
        }
        let pending = Arc::new(Pending { writes: writes.to_owned(), outcome: Mutex::new(None) });
        queue.waiting.push_back(pending.clone());
        drop(queue);
        self.wait_or_lead(&pending)
    }

    fn wait_or_lead(&self, pending: &Arc<Pending>) -> Outcome {
        let mut leads = None;
        self.env.scheduler.wait_until(&self.committed, &*self.env.clock, None, &mut || {
            if pending.outcome.lock().is_some() {
                return true;
            }
            let mut queue = self.queue.lock();
            // The leader takes from the front, so whoever is at the front is next.
            if queue.led || queue.waiting.front().is_none_or(|first| !Arc::ptr_eq(first, pending)) {
                return false;
            }
            queue.led = true;
            queue.waiting.pop_front();
            leads = Some(take_followers(&mut queue, &pending.writes));
            true
        });
        match leads {
            Some(followers) => self.lead(&pending.writes, followers),
            None => pending.outcome.lock().take().unwrap_or(Outcome::Again),
        }
    }

    /// Commit a group, answer the followers, and leave the lead to whoever is next.
    fn lead(&self, own: &dyn WriteSet, followers: Vec<Arc<Pending>>) -> Outcome {
        let outcome = {
            let mut writer = self.writer.lock();
            if followers.is_empty() {
                self.commit_group(&mut writer, &[own]).swap_remove(0)
            } else {
                let mut group: Vec<&dyn WriteSet> = Vec::with_capacity(followers.len() + 1);
                group.push(own);
                group.extend(followers.iter().map(|pending| &pending.writes as &dyn WriteSet));
                let mut outcomes = self.commit_group(&mut writer, &group).into_iter();
                let own = outcomes.next().unwrap_or(Outcome::Again);
                for (pending, outcome) in followers.iter().zip(outcomes) {
                    *pending.outcome.lock() = Some(outcome);
                }
                own
            }
        };
        let contended = {
            let mut queue = self.queue.lock();
            queue.led = false;
            !queue.waiting.is_empty()
        };
        if contended || !followers.is_empty() {
            self.committed.raise();
        }
        outcome
    }

    /// Commit the sets of a group in order; one outcome each.
    fn commit_group(&self, writer: &mut LogWriter, group: &[&dyn WriteSet]) -> Vec<Outcome> {
        if let Err(error) = self.check_writable() {
            return vec![Outcome::Failed(error); group.len()];
        }
        let mut sections: Vec<Section<'_>> = Vec::with_capacity(1);
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(group.len());
        for set in group {
            outcomes.push(gather(*set, &mut sections).err());
        }
        let written = match sections.is_empty() {
            true => Ok(LogPoint::default()),
            false => self.write_group(writer, &mut sections),
        };
        if written.is_ok() {
            self.count_group(&sections, outcomes.iter().filter(|refused| refused.is_none()).count() as u64);
        }
        outcomes
            .into_iter()
            .map(|refused| match (refused, &written) {
                (Some(outcome), _) => outcome,
                (None, Ok(point)) => Outcome::Done(*point),
                (None, Err(error)) => Outcome::Failed(error.clone()),
            })
            .collect()
    }

    /// Log, memtables, visibility: in this order.
    fn write_group(&self, writer: &mut LogWriter, sections: &mut [Section<'_>]) -> Result<LogPoint> {
        let _span = trace::span!(TRACE, "group"; tables = sections.len() as u64).entered();
        let mut last = self.visible.load();
        let first = last.advanced(1).ok_or_else(sequence_exhausted)?;
        for section in sections.iter_mut() {
            section.first_seq = last.advanced(1).ok_or_else(sequence_exhausted)?;
            last = last.advanced(section.writes.len() as u64).ok_or_else(sequence_exhausted)?;
        }
        let inputs: Vec<wal::SectionInput<'_>> = sections.iter().map(Section::input).collect();
        self.background.resume();
        self.ensure_segment(writer)?;
        let point =
            self.log.append(writer, self.manifest.epoch(), first, &inputs).map_err(|error| self.poison(error))?;
        for section in sections.iter() {
            self.insert(section, point).map_err(|error| self.poison(error))?;
        }
        self.visible.raise(last);
        self.prepare_segment_soon(point);
        for section in sections.iter() {
            self.freeze_if_full(section.table, &section.view);
        }
        self.relieve_budget();
        Ok(point)
    }

    /// Count what a group wrote. The caller holds the writer's lock.
    fn count_group(&self, sections: &[Section<'_>], commits: u64) {
        let (mut puts, mut deletes, mut bytes) = (0, 0, 0);
        for write in sections.iter().flat_map(|section| &section.writes) {
            match write.kind {
                Kind::Delete => deletes += 1,
                _ => puts += 1,
            }
            bytes += (write.key.len() + write.value.len()) as u64;
        }
        self.meters.tally(|tally| {
            tally.add(Count::Commits, commits);
            tally.add(Count::Groups, u64::from(commits > 0));
            tally.add(Count::Puts, puts);
            tally.add(Count::Deletes, deletes);
            tally.add(Count::UserBytes, bytes);
        });
        if commits > 0 {
            self.meters.group_commits.record_alone(commits);
        }
    }

    fn insert(&self, section: &Section<'_>, point: LogPoint) -> Result<()> {
        let memory = &section.view.active;
        let mut seq = section.first_seq;
        for write in &section.writes {
            memory.table.insert(write.key, Trailer::new(seq, write.kind), write.value)?;
            memory.reached(seq);
            seq = seq.advanced(1).ok_or_else(sequence_exhausted)?;
        }
        self.charge(section.table, memory, point.segment);
        Ok(())
    }
}

/// The writes of a group that go to one table.
struct Section<'a> {
    table: &'a Arc<TableState>,
    view: Arc<View>,
    first_seq: Seq,
    writes: Vec<wal::Op<'a>>,
}

impl Section<'_> {
    fn input(&self) -> wal::SectionInput<'_> {
        wal::SectionInput {
            slot: self.table.slot,
            suite: self.table.settings.suite,
            key: self.view.keys.current(),
            first_seq: self.first_seq,
            ops: &self.writes,
        }
    }
}

/// Sort the writes of one set into sections, or say why none of them can be.
fn gather<'a>(set: &'a dyn WriteSet, sections: &mut Vec<Section<'a>>) -> Result<(), Outcome> {
    // Looked at for all tables first, since a batch is taken whole or not at all.
    for Seat { table, .. } in set.tables() {
        if table.is_dropped() {
            return Err(Outcome::Failed(Error::TableDropped { table: table.id }));
        }
        if table.view.load().is_none() {
            return Err(Outcome::Again);
        }
    }
    set.for_each(&mut |write: Write<'a>| {
        let op = wal::Op { kind: write.kind, key: write.key, value: write.value };
        // Writes mostly go on with the table of the one before.
        match sections.iter_mut().rev().find(|section| section.table.slot == write.table.slot) {
            Some(section) => section.writes.push(op),
            // The view cannot have gone since: putting a table away takes the writer's lock.
            None => {
                if let Some(view) = write.table.view.load_owned() {
                    sections.push(Section { table: write.table, view, first_seq: Seq::ZERO, writes: vec![op] });
                }
            }
        }
    });
    Ok(())
}

fn take_followers(queue: &mut Queue, own: &dyn WriteSet) -> Vec<Arc<Pending>> {
    let mut followers = Vec::new();
    let (mut bytes, mut tables) = (own.bytes(), own.tables().len());
    while let Some(next) = queue.waiting.front() {
        bytes = bytes.saturating_add(next.writes.bytes());
        // Some may be the same ones; what counts is that one envelope can list them.
        tables = tables.saturating_add(next.writes.tables().len());
        if bytes > GROUP_BYTES || tables > ENVELOPE_SECTIONS_MAX {
            break;
        }
        followers.extend(queue.waiting.pop_front());
    }
    followers
}

fn check_tables(count: usize) -> Result<()> {
    if count <= ENVELOPE_SECTIONS_MAX {
        return Ok(());
    }
    let limit = ENVELOPE_SECTIONS_MAX as u64;
    Err(Error::LimitExceeded { what: "tables in one batch", limit, actual: count as u64 })
}

fn sequence_exhausted() -> Error {
    Error::LimitExceeded { what: "sequence number", limit: Seq::MAX.get(), actual: Seq::MAX.get() }
}
