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
//!
//! **What waits and who is woken.** Each follower has a signal of its own. A leader that is done wakes the one who leads next, and then those
//! whose writes it committed; nobody wakes to find that it was for somebody else. Whoever comes while nobody leads and nobody waits goes
//! straight to the lead, and takes no lock but the writer's.
//!
//! **What is copied.** The leader's writes are not: they go from the caller's memory to the log's buffer and the memtable. Followers' are, into
//! the queue, unless they are larger than [`QUEUED_BYTES_MAX`]: those wait for their turn to lead. A commit to one table allocates nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Engine;
use super::batch::{Part, WriteSet, Writes};
use super::catalog::{Seat, TableState, View};
use crate::crypto::{Suite, TableKey};
use crate::error::{Error, Result};
use crate::format::log::{ENVELOPE_SECTIONS_MAX, LogPoint};
use crate::io::Signal;
use crate::metrics::{self, Count};
use crate::options::Durability;
use crate::sync::Pinned;
use crate::trace;
use crate::types::{Seq, Slot, Trailer};
use crate::wal::{LogWriter, Op, SectionSource};

/// A leader takes followers until the group has this many bytes of keys and values.
const GROUP_BYTES: usize = 1 << 20;
/// Writes with more bytes than this are not copied into the queue.
const QUEUED_BYTES_MAX: usize = 64 << 10;

/// Those who wait for a leader, and whether there is one.
#[derive(Default)]
pub(crate) struct Queue {
    led: AtomicBool,
    /// How many wait. Changed with the list's lock held.
    waiting: AtomicUsize,
    list: Mutex<VecDeque<Arc<Pending>>>,
}

/// A call in the queue, and what became of its writes.
struct Pending {
    /// None: they are too large to be copied, so their owner leads.
    writes: Option<Writes>,
    outcome: Mutex<Option<Outcome>>,
    /// Raised when there is an outcome, or this is the first in the queue and nobody leads.
    turn: Signal,
}

impl Queue {
    /// Whether the caller leads now, because nobody does and nobody waits.
    fn lead_at_once(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.take_lead()
    }

    fn take_lead(&self) -> bool {
        !self.led.load(Ordering::Relaxed) && !self.led.swap(true, Ordering::SeqCst)
    }

    fn push(&self, pending: Arc<Pending>) {
        let mut list = self.list.lock();
        list.push_back(pending);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    /// Lead with these writes and those that are taken along, if it is their turn.
    fn lead_in_turn(&self, pending: &Arc<Pending>, own: &dyn WriteSet) -> Option<Vec<Arc<Pending>>> {
        let mut list = self.list.lock();
        // The leader takes from the front, so whoever is at the front is next.
        if list.front().is_none_or(|first| !Arc::ptr_eq(first, pending)) || !self.take_lead() {
            return None;
        }
        list.pop_front();
        let followers = take_followers(&mut list, own);
        self.waiting.fetch_sub(1 + followers.len(), Ordering::SeqCst);
        Some(followers)
    }

    /// Leave the lead to whoever is next.
    fn leave_lead(&self) {
        // The lead is given up first and the queue looked at second, while followers enter the queue first and look at the lead second:
        // one of the two sees the other.
        self.led.store(false, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let first = self.list.lock().front().cloned();
            if let Some(first) = first {
                first.turn.raise();
            }
        }
    }
}

/// What became of the writes of one caller.
#[derive(Clone)]
enum Outcome {
    /// In the log up to this point, and visible.
    Done(LogPoint),
    /// A table is not in use, or was put away between the caller's check and the group: bring it into use.
    Again,
    /// Not written, or not known to be.
    Failed(Error),
}

impl From<Result<LogPoint>> for Outcome {
    fn from(written: Result<LogPoint>) -> Outcome {
        written.map_or_else(Outcome::Failed, Outcome::Done)
    }
}

impl Engine {
    /// Commit `writes` and return once they are as durable as asked.
    pub(crate) fn commit(&self, writes: &dyn WriteSet, durability: Durability) -> Result<()> {
        if !metrics::is_sampled() {
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
        let mut in_use = true;
        loop {
            // Room first and permits second: a permit may end during the wait.
            self.throttle(writes)?;
            let _admission = self.admit_large(writes)?;
            for seat in writes.tables() {
                // Nearly always the table is in use, which the leader sees anyway.
                match in_use {
                    true => self.check_permit(seat)?,
                    false => drop(self.admit(seat)?),
                }
            }
            match self.enter(writes) {
                Outcome::Done(point) => {
                    return match durability {
                        Durability::Buffered => Ok(()),
                        Durability::Sync => self.sync_to(point),
                    };
                }
                Outcome::Again => in_use = false,
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
        if self.queue.lead_at_once() {
            return self.lead(writes, &[]);
        }
        let copied = (writes.bytes() <= QUEUED_BYTES_MAX).then(|| writes.to_owned());
        let pending = Arc::new(Pending { writes: copied, outcome: Mutex::new(None), turn: Signal::new() });
        self.queue.push(pending.clone());
        let mut followers = None;
        self.env.scheduler.wait_until(&pending.turn, &*self.env.clock, None, &mut || {
            if pending.outcome.lock().is_some() {
                return true;
            }
            followers = self.queue.lead_in_turn(&pending, writes);
            followers.is_some()
        });
        match followers {
            Some(followers) => self.lead(writes, &followers),
            None => pending.outcome.lock().take().unwrap_or(Outcome::Again),
        }
    }

    /// Commit a group, leave the lead to whoever is next, and answer the followers.
    fn lead(&self, own: &dyn WriteSet, followers: &[Arc<Pending>]) -> Outcome {
        let outcome = {
            let mut writer = self.writer.lock();
            match followers {
                [] => self.commit_set(&mut writer, own),
                _ => self.commit_sets(&mut writer, own, followers),
            }
        };
        self.queue.leave_lead();
        followers.iter().for_each(|pending| pending.turn.raise());
        outcome
    }

    /// Commit a leader's writes alone.
    fn commit_set(&self, writer: &mut LogWriter, set: &dyn WriteSet) -> Outcome {
        let [seat] = set.tables() else { return self.commit_sets(writer, set, &[]) };
        if let Err(error) = self.check_writable() {
            return Outcome::Failed(error);
        }
        let view = seat.table.view.load();
        match &*view {
            Some(view) if !seat.table.is_dropped() => {
                let parts = [set.part(0)];
                let mut sections = [Section::new(&parts, view)];
                let written = self.write_group(writer, &mut sections);
                if written.is_ok() {
                    self.count_group(&sections, 1);
                }
                written.into()
            }
            _ => refusal(seat).unwrap_or(Outcome::Again),
        }
    }

    /// Commit the writes of a leader and its followers, and put down what became of theirs; what became of the leader's.
    fn commit_sets(&self, writer: &mut LogWriter, own: &dyn WriteSet, followers: &[Arc<Pending>]) -> Outcome {
        let theirs =
            followers.iter().filter_map(|pending| pending.writes.as_ref()).map(|writes| writes as &dyn WriteSet);
        let sets: Vec<&dyn WriteSet> = [own].into_iter().chain(theirs).collect();
        let unwritable = self.check_writable().err().map(Outcome::Failed);
        // Looked at for all tables first, since a set is taken whole or not at all.
        let refused = |set: &&dyn WriteSet| unwritable.clone().or_else(|| set.tables().iter().find_map(refusal));
        let refused: Vec<Option<Outcome>> = sets.iter().map(refused).collect();

        let taken = sets.iter().zip(&refused).filter(|(_, refused)| refused.is_none()).map(|(set, _)| *set);
        let mut parts: Vec<Part<'_>> =
            taken.flat_map(|set| (0..set.tables().len()).map(move |index| set.part(index))).collect();
        if sets.len() > 1 {
            // Stable, so that of two writes to one key that of the later set wins.
            parts.sort_by_key(|part| part.seat.table.slot);
        }
        let rows: Vec<&[Part<'_>]> =
            parts.chunk_by(|one, other| one.seat.table.slot == other.seat.table.slot).collect();
        // They cannot have gone since they were looked at: putting a table away takes the writer's lock.
        let views: Vec<Pinned<View>> = rows.iter().map(|row| row[0].seat.table.view.load()).collect();
        let mut sections: Vec<Section<'_>> =
            rows.iter().zip(&views).filter_map(|(row, view)| Some(Section::new(row, (**view).as_ref()?))).collect();
        let written = match sections.is_empty() {
            true => Ok(LogPoint::default()),
            false => self.write_group(writer, &mut sections),
        };
        if written.is_ok() {
            self.count_group(&sections, refused.iter().filter(|refused| refused.is_none()).count() as u64);
        }
        let written = Outcome::from(written);
        let mut outcomes = refused.into_iter().map(|refused| refused.unwrap_or_else(|| written.clone()));
        let outcome = outcomes.next().unwrap_or(Outcome::Again);
        for (pending, outcome) in followers.iter().zip(outcomes) {
            *pending.outcome.lock() = Some(outcome);
        }
        outcome
    }

    /// Log, memtables, visibility: in this order.
    fn write_group(&self, writer: &mut LogWriter, sections: &mut [Section<'_>]) -> Result<LogPoint> {
        let _span = trace::span!(TRACE, "group"; tables = sections.len() as u64).entered();
        let mut last = self.visible.load();
        let first = last.advanced(1).ok_or_else(sequence_exhausted)?;
        for section in sections.iter_mut() {
            section.first_seq = last.advanced(1).ok_or_else(sequence_exhausted)?;
            last = last.advanced(section.entries).ok_or_else(sequence_exhausted)?;
            section.last_seq = last;
        }
        self.background.resume();
        self.ensure_segment(writer)?;
        let point =
            self.log.append(writer, self.manifest.epoch(), first, sections).map_err(|error| self.poison(error))?;
        for section in sections.iter() {
            self.insert(section, point).map_err(|error| self.poison(error))?;
        }
        self.visible.raise(last);
        self.prepare_segment_soon(point);
        for section in sections.iter() {
            self.freeze_if_full(section.table(), section.view);
        }
        self.relieve_budget();
        Ok(point)
    }

    /// Count what a group wrote. The caller holds the writer's lock.
    fn count_group(&self, sections: &[Section<'_>], commits: u64) {
        let (mut entries, mut deletes, mut bytes) = (0, 0, 0);
        for part in sections.iter().flat_map(|section| section.parts) {
            entries += part.entries;
            deletes += part.deletes;
            bytes += part.bytes;
        }
        self.meters.tally(|tally| {
            tally.add(Count::Commits, commits);
            tally.add(Count::Groups, u64::from(commits > 0));
            tally.add(Count::Puts, entries - deletes);
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
        section.for_each(|op| {
            memory.table.insert(op.key, Trailer::new(seq, op.kind), op.value)?;
            seq = seq.advanced(1).unwrap_or(Seq::MAX);
            Ok(())
        })?;
        memory.reached(section.last_seq);
        self.charge(section.table(), memory, point.segment);
        Ok(())
    }
}

/// The writes of a group that go to one table.
struct Section<'a> {
    /// At least one, all of the same table.
    parts: &'a [Part<'a>],
    view: &'a View,
    entries: u64,
    raw_bytes: u64,
    first_seq: Seq,
    last_seq: Seq,
}

impl<'a> Section<'a> {
    fn new(parts: &'a [Part<'a>], view: &'a View) -> Section<'a> {
        let entries = parts.iter().map(|part| part.entries).sum();
        let raw_bytes = parts.iter().map(|part| part.raw_bytes).sum();
        Section { parts, view, entries, raw_bytes, first_seq: Seq::ZERO, last_seq: Seq::ZERO }
    }

    fn table(&self) -> &'a Arc<TableState> {
        &self.parts[0].seat.table
    }
}

impl SectionSource for Section<'_> {
    fn slot(&self) -> Slot {
        self.table().slot
    }

    fn suite(&self) -> Suite {
        self.table().settings.suite
    }

    fn key(&self) -> &TableKey {
        self.view.keys.current()
    }

    fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    fn for_each(&self, mut visit: impl FnMut(Op<'_>) -> Result<()>) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.for_each(&mut visit))
    }
}

/// Why nothing can be written to a table now.
fn refusal(seat: &Seat) -> Option<Outcome> {
    let table = &seat.table;
    if table.is_dropped() {
        return Some(Outcome::Failed(Error::TableDropped { table: table.id }));
    }
    table.view.load().is_none().then_some(Outcome::Again)
}

/// Take from the front of the queue what goes into one group with `own`.
fn take_followers(list: &mut VecDeque<Arc<Pending>>, own: &dyn WriteSet) -> Vec<Arc<Pending>> {
    let mut followers = Vec::new();
    let (mut bytes, mut tables) = (own.bytes(), own.tables().len());
    // What was not copied leads by itself.
    while let Some(writes) = list.front().and_then(|next| next.writes.as_ref()) {
        bytes = bytes.saturating_add(writes.bytes());
        // Some may be the same ones; what counts is that one envelope can list them.
        tables = tables.saturating_add(writes.tables().len());
        if bytes > GROUP_BYTES || tables > ENVELOPE_SECTIONS_MAX {
            break;
        }
        followers.extend(list.pop_front());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(queue: &Queue, writes: Option<Writes>) -> Arc<Pending> {
        let pending = Arc::new(Pending { writes, outcome: Mutex::new(None), turn: Signal::new() });
        queue.push(pending.clone());
        pending
    }

    #[test]
    fn nobody_is_woken_but_who_leads_next() {
        // Where everybody is woken by every group, a hundred writers switch a hundred times as often as there are groups.
        let queue = Queue::default();
        let own = Writes::default();
        assert!(queue.lead_at_once());
        assert!(!queue.lead_at_once(), "one leader at a time");
        let (first, second) = (pending(&queue, Some(Writes::default())), pending(&queue, Some(Writes::default())));
        let (large, last) = (pending(&queue, None), pending(&queue, Some(Writes::default())));
        let woken = || [&first, &second, &large, &last].map(|pending| pending.turn.count());
        assert!(queue.lead_in_turn(&first, &own).is_none(), "somebody leads");

        queue.leave_lead();
        assert_eq!(woken(), [1, 0, 0, 0]);
        assert!(!queue.lead_at_once(), "whoever waits comes first");
        assert!(queue.lead_in_turn(&second, &own).is_none(), "it is not its turn");
        let followers = queue.lead_in_turn(&first, &own).unwrap();
        assert_eq!(followers.len(), 1, "what was not copied leads by itself, and nobody overtakes it");
        assert!(Arc::ptr_eq(&followers[0], &second));

        queue.leave_lead();
        assert_eq!(woken(), [1, 0, 1, 0]);
        assert_eq!(queue.lead_in_turn(&large, &own).unwrap().len(), 1);
        queue.leave_lead();
        assert_eq!(woken(), [1, 0, 1, 0], "nobody waits");
        assert!(queue.lead_at_once());
    }
}
