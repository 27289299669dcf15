//! What may be dropped and when: the rules, with their proofs.
//!
//! A job ([`run`]) merges some of a table's files (or its frozen memtables) and writes what must stay into new files. Which files is
//! decided by [`plan`]; what must stay is decided here, entry by entry, by [`Judge`].
//!
//! # Words
//! A *reader* is a sequence number at which somebody reads, now or later: every registered snapshot, the
//! visible number as of when the job was made, and everything above that. All of them were taken together under the lock under
//! which snapshots are registered, so no reader is missed ([`Readers`]). *Deeper* means in a level below the one that the job
//! writes into. A reader at `r` sees of a key its newest version with a number of at most `r`.
//!
//! # Rule 1: an older version may go if no reader lies between it and the next newer one
//! Let `o < n` be neighbouring versions of a key in the job's input, and let no reader `r` have `o <= r < n`. A reader below `o`
//! does not see `o`. A reader at or above `n` sees `n` or something newer, or, if `n` itself went by this rule, what
//! made it go. So nobody sees `o`.
//!
//! # Rule 2: a delete may go if all readers are at or above it and nothing deeper can hold its key
//! Let `d` be the delete. All readers being at or above it, every older version in the input goes by rule 1. Older versions outside the
//! input could only be deeper (invariant 1 of [`version`](crate::version)) and are not there. So without `d` a reader finds no
//! version at all, which means the same. If a reader were below `d`, an older version might stay for it, and without
//! `d` that version would come back to life for everybody else: hence the first condition.
//!
//! # Rule 3: under the same two conditions the number of a put may become zero
//! All readers see the put, or something newer, with either number. Every older version in the input goes by rule 1 and there is
//! none elsewhere, so zero is the number of one version of a key at most, and the oldest. Blocks whose numbers are all zero
//! store none.
//!
//! # Levels stay in order
//! Invariant 1 holds because data only moves down by a job that takes along *everything* that overlaps it at
//! the level it goes to, because what moves down from level 0 takes along all that overlaps it at level 0, because no
//! level between source and target has files, and because a flushed file goes no deeper than the last level above which nothing overlaps
//! it ([`plan::flush_level`]). Jobs at the same time are kept apart by [`plan::Busy`]: no file is in two jobs, and the key
//! range of a job counts as taken at the level it writes into, for other jobs and for flushed files. So nothing gets below a job that was
//! not there when it was planned, and "nothing deeper" remains true while it runs.
//!
//! # A key's versions stay together
//! Outputs are cut only between different keys (invariant 3): otherwise a later job could move the newer versions of a key down past
//! the older ones.

pub(crate) mod plan;
pub(crate) mod run;

#[cfg(test)]
mod tests;

use crate::crypto::Wiped;
use crate::types::{Kind, Seq, Trailer};

/// Who reads, now or later: see "Words" above.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    snapshots: Vec<Seq>,
    visible: Seq,
}

impl Readers {
    /// The registered snapshots, in any order, and the visible number: both read under the lock under which snapshots are
    /// registered.
    pub(crate) fn new(mut snapshots: Vec<Seq>, visible: Seq) -> Readers {
        snapshots.sort_unstable();
        snapshots.dedup();
        Readers { snapshots, visible }
    }

    /// No reader is below this.
    pub(crate) fn oldest(&self) -> Seq {
        self.snapshots.first().map_or(self.visible, |first| *first.min(&self.visible))
    }

    /// Whether a reader `r` can have `older <= r < newer`.
    fn any_between(&self, older: Seq, newer: Seq) -> bool {
        // Any number from the visible one on can become a snapshot yet.
        newer > self.visible
            || self.snapshots.get(self.snapshots.partition_point(|seq| *seq < older)).is_some_and(|seq| *seq < newer)
    }
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is written with this trailer.
    Stays(Trailer),
    /// It is not written.
    Goes,
}

/// Applies the rules to entries in the engine's order.
struct Judge {
    readers: Readers,
    /// The key of the entry judged last, which is plaintext.
    key: Wiped,
    /// Its number: the next newer version, if the next entry has the same key.
    newer: Option<Seq>,
}

impl Judge {
    fn new(readers: Readers) -> Judge {
        Judge { readers, key: Wiped::new(), newer: None }
    }

    /// Whether an entry with this key would be the first version of it.
    fn is_new_key(&self, key: &[u8]) -> bool {
        self.newer.is_none() || self.key[..] != *key
    }

    #[cfg(test)]
    fn judge(&mut self, key: &[u8], trailer: Trailer, deeper: impl FnOnce() -> bool) -> Fate {
        let is_new_key = self.is_new_key(key);
        self.judge_known(key, trailer, is_new_key, deeper)
    }

    /// What becomes of the next entry. `is_new_key` is what [`is_new_key`](Judge::is_new_key) says of it; `deeper` tells whether anything
    /// deeper can hold its key.
    fn judge_known(&mut self, key: &[u8], trailer: Trailer, is_new_key: bool, deeper: impl FnOnce() -> bool) -> Fate {
        let seq = trailer.seq();
        if is_new_key {
            self.key.clear();
            self.key.extend_from_slice(key);
        } else if self.newer.is_some_and(|newer| !self.readers.any_between(seq, newer)) {
            self.newer = Some(seq);
            return Fate::Goes; // Rule 1.
        }
        self.newer = Some(seq);
        if seq > self.readers.oldest() || deeper() {
            return Fate::Stays(trailer);
        }
        match trailer.kind() {
            Kind::Delete => Fate::Goes,                         // Rule 2.
            kind => Fate::Stays(Trailer::new(Seq::ZERO, kind)), // Rule 3.
        }
    }
}
