//! What compactors share: which table is next, and the parts of compactions that are under way.
//!
//! ```text
//! queue    tables, most urgent first: many level-0 files before all, then the largest debt
//! merges   compactions under way; each is owned by the compactor that began it
//!            waiting ──> a compactor has it ──> outputs
//!               ^───────────────┘ given back
//! ```
//! The owner works through the parts of its merge, and any other compactor that has nothing more urgent to do takes some of them. When all are done, the owner
//! installs what they wrote as one change. A part that fails, fails all of it; a part that is given up makes the owner give up
//! the rest, and the table is looked at again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Background;
use super::space::Reservation;
use crate::compaction::plan::{Busy, ClaimId, Plan, urgency};
use crate::compaction::run::Job;
use crate::db::catalog::TableState;
use crate::error::Error;
use crate::io::Tick;
use crate::options::StoreOptions;
use crate::sstable::FinishedTable;
use crate::trace::{self, Span};
use crate::types::Slot;
use crate::version::Version;

/// How much a table needs a compaction: level 0, where readers and soon writers wait, before anything else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Priority {
    /// Files of level 0, if they are so many that they should go down.
    level_zero_files: usize,
    /// The highest score of any level, in thousandths.
    debt: u64,
}

impl Priority {
    pub(super) fn of(version: &Version, options: &StoreOptions) -> Priority {
        let files = version.files(0).len();
        Priority {
            level_zero_files: if files >= options.level_zero_files { files } else { 0 },
            debt: (urgency(version, options, &Busy::default()) * 1000.0) as u64,
        }
    }
}

/// Tables to compact, and compactions under way. A table is in the queue, or a compactor is at it, or there is nothing to do: read under one
/// lock.
#[derive(Default)]
pub(super) struct Compactions {
    /// Tables whose levels changed since they were last looked at.
    queued: BTreeMap<Slot, Queued>,
    /// The same, least urgent first, and of equals the last to come.
    order: BTreeSet<(Priority, Reverse<u64>, Slot)>,
    came: u64,
    /// How many compactors are at a table.
    running: BTreeMap<Slot, usize>,
    /// Those with parts that others may take.
    merges: Vec<Arc<Merge>>,
}

struct Queued {
    priority: Priority,
    came: u64,
    table: Arc<TableState>,
}

/// What a compactor should do next.
pub(super) enum Next {
    /// Take a part of this merge.
    Part(Arc<Merge>),
    /// See what this table needs.
    Table(Arc<TableState>),
    /// Nothing until then, or until something happens.
    Rest(Option<Tick>),
}

impl Compactions {
    /// Have a table looked at. One that is queued already keeps its turn among equals.
    pub(super) fn enqueue(&mut self, table: &Arc<TableState>, priority: Priority) {
        let slot = table.slot;
        let came = match self.queued.get(&slot) {
            Some(queued) => {
                self.order.remove(&(queued.priority, Reverse(queued.came), slot));
                queued.came
            }
            None => {
                self.came += 1;
                self.came
            }
        };
        self.order.insert((priority, Reverse(came), slot));
        self.queued.insert(slot, Queued { priority, came, table: table.clone() });
    }

    /// What is most urgent. A table that is given out counts as being worked on from now on.
    pub(super) fn next(&mut self, resting: &BTreeMap<Slot, Tick>) -> Next {
        let merge = self.open_merge();
        let urgent = self.order.iter().rev().find(|(.., slot)| !resting.contains_key(slot)).copied();
        match (merge, urgent) {
            // What was begun is finished first, and of a table that other compactors are at, little is left to be planned.
            (Some(merge), urgent) if urgent.is_none_or(|(priority, ..)| priority <= merge.priority) => {
                Next::Part(merge)
            }
            (_, Some(urgent)) => match self.queued.remove(&urgent.2) {
                Some(queued) => {
                    self.order.remove(&urgent);
                    *self.running.entry(urgent.2).or_default() += 1;
                    Next::Table(queued.table)
                }
                None => Next::Rest(None),
            },
            (_, None) => Next::Rest(self.queued.keys().filter_map(|slot| resting.get(slot)).min().copied()),
        }
    }

    /// The most urgent merge with a part that nobody is at.
    pub(super) fn open_merge(&self) -> Option<Arc<Merge>> {
        let open = self.merges.iter().filter(|merge| merge.has_waiting());
        // Of equals the first.
        open.reduce(|best, merge| if merge.priority > best.priority { merge } else { best }).cloned()
    }

    /// Tables in the queue, and those that are being compacted.
    pub(super) fn tables(&self) -> usize {
        self.queued.len() + self.running.keys().filter(|slot| !self.queued.contains_key(slot)).count()
    }

    /// Whether one of these tables is in the queue or being worked on.
    pub(super) fn any_of(&self, slots: &BTreeSet<Slot>) -> bool {
        let mut busy = self.queued.keys().chain(self.running.keys());
        busy.any(|slot| slots.contains(slot))
    }
}

impl Background {
    /// A compactor has left this table alone.
    pub(super) fn compaction_over(&self, slot: Slot) {
        let mut compactions = self.compactions.lock();
        if let Some(count) = compactions.running.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                compactions.running.remove(&slot);
            }
        }
    }

    /// Let others take parts of a merge.
    pub(super) fn offer_merge(&self, merge: &Arc<Merge>) {
        self.compactions.lock().merges.push(merge.clone());
        self.work.raise();
    }

    /// A merge is over, whatever came of it.
    pub(super) fn withdraw_merge(&self, merge: &Arc<Merge>) {
        self.compactions.lock().merges.retain(|other| !Arc::ptr_eq(other, merge));
    }
}

/// A compaction under way.
pub(super) struct Merge {
    pub(super) table: Arc<TableState>,
    pub(super) plan: Plan,
    pub(super) claim: ClaimId,
    /// What it may still write.
    pub(super) room: Reservation,
    pub(super) priority: Priority,
    pub(super) began: Tick,
    pub(super) span: Span,
    progress: Mutex<Parts>,
}

struct Parts {
    /// Those that nobody is at, last first.
    waiting: Vec<Part>,
    /// What each part has written, once it is done.
    outputs: Vec<Option<Vec<FinishedTable>>>,
    end: Option<End>,
}

/// A part of a merge, begun or not.
pub(super) struct Part {
    index: usize,
    pub(super) job: Job,
}

/// How a merge ended before it was done.
enum End {
    Failed(Error),
    GivenUp,
}

/// How far a merge is.
pub(super) enum State {
    /// Parts are waiting or being worked on.
    Open,
    /// Everything is written.
    Done,
    /// A part has failed.
    Failed(Error),
    /// A part was given up.
    GivenUp,
}

impl Merge {
    /// A merge of these parts, in the order of their keys; of none if it is a move.
    pub(super) fn new(
        table: &Arc<TableState>,
        (plan, claim, room): (Plan, ClaimId, Reservation),
        priority: Priority,
        began: Tick,
        jobs: Vec<Job>,
    ) -> Arc<Merge> {
        let span = trace::span!(
            DEBUG, "compaction", table = table.id;
            source = plan.source as u64,
            target = plan.target as u64,
            read_bytes = plan.input_bytes(),
            parts = jobs.len() as u64
        );
        let outputs = jobs.iter().map(|_| None).collect();
        let waiting = jobs.into_iter().enumerate().rev().map(|(index, job)| Part { index, job }).collect();
        let progress = Mutex::new(Parts { waiting, outputs, end: None });
        Arc::new(Merge { table: table.clone(), plan, claim, room, priority, began, span, progress })
    }

    /// A part to work on.
    pub(super) fn take(&self) -> Option<Part> {
        self.progress.lock().waiting.pop()
    }

    /// Leave a part, where it is, to somebody else. If the merge is over, so is the part.
    pub(super) fn put_back(&self, part: Part) {
        let mut progress = self.progress.lock();
        if progress.end.is_none() {
            progress.waiting.push(part);
            return;
        }
        // Its files are removed, without a lock.
        drop(progress);
        drop(part);
    }

    /// A part is done. What it wrote is given back if the owner has taken everything already, because the merge had ended.
    #[must_use]
    pub(super) fn finish(&self, part: Part, files: Vec<FinishedTable>) -> Vec<FinishedTable> {
        let Part { index, job } = part;
        // It lets go of its inputs before the merge is over.
        drop(job);
        match self.progress.lock().outputs.get_mut(index) {
            Some(output) => {
                *output = Some(files);
                Vec::new()
            }
            None => files,
        }
    }

    /// A part has failed, or with `None` was given up. What nobody has begun is dropped.
    pub(super) fn end(&self, error: Option<Error>) {
        let waiting = {
            let mut progress = self.progress.lock();
            progress.end.get_or_insert(error.map_or(End::GivenUp, End::Failed));
            std::mem::take(&mut progress.waiting)
        };
        // Files are removed, without a lock.
        drop(waiting);
    }

    pub(super) fn state(&self) -> State {
        let progress = self.progress.lock();
        match &progress.end {
            Some(End::Failed(error)) => State::Failed(error.clone()),
            Some(End::GivenUp) => State::GivenUp,
            None if progress.outputs.iter().all(Option::is_some) => State::Done,
            None => State::Open,
        }
    }

    /// What was written so far, in the order of the keys. It is the caller's from now on.
    pub(super) fn take_outputs(&self) -> Vec<FinishedTable> {
        let outputs = std::mem::take(&mut self.progress.lock().outputs);
        outputs.into_iter().flatten().flatten().collect()
    }

    fn has_waiting(&self) -> bool {
        !self.progress.lock().waiting.is_empty()
    }
}
