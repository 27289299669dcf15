//! Counters that cost a load and a store on a line that nobody else writes to.
//!
//! ```text
//! Counters ── shards ─┬─ Tally   one thread's, for as long as it lives
//!                     ├─ Tally
//!                     └─ Tally   of a thread that has ended: the next one goes on with it
//! ```
//! A thread keeps the tallies that are its own, each with the store that it is about, and nobody else writes to them: so a count needs no locked
//! instruction, which would cost as much as five of these and hold up the loads around it. What is read is the sum over all tallies.
//!
//! # Invariants
//! - Whoever holds a tally besides the list is its only writer: the list gives one out only while nobody else holds it, which
//!   [`Arc::get_mut`] finds out, and sees everything that the one before has written.
//! - Nothing is lost: a tally outlives its thread, with what it has counted.
//! - A tally is found by its store's address, and holds what keeps that address from being given to another.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{COUNTS, Count};

/// Stores that a thread keeps its tallies of. One that works with more at a time takes a lock now and then.
const KEPT_MAX: usize = 8;

thread_local! {
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

/// A tally of this thread, and the address of the counters that it belongs to.
struct Kept {
    home: usize,
    tally: Arc<Tally>,
}

/// Everything that one store counts.
pub(crate) struct Counters {
    /// Its address names these counters for as long as anybody has a tally of them.
    home: Arc<Home>,
    tallies: Mutex<Vec<Arc<Tally>>>,
}

/// Not of size zero, so that no two are at one address.
struct Home(#[allow(dead_code, reason = "it is there to be somewhere")] u8);

/// What one thread has counted. Two lines at the least lie between one and the next, whatever they lie in.
#[repr(align(128))]
pub(crate) struct Tally {
    counts: [AtomicU64; COUNTS],
    _home: Arc<Home>,
}

impl Tally {
    /// Add `n`; what was counted on this thread before.
    #[inline]
    pub(crate) fn add(&self, what: Count, n: u64) -> u64 {
        self.add_at(what as usize, n)
    }

    /// As [`add`](Tally::add), for counters that stand in a row.
    #[inline]
    pub(crate) fn add_at(&self, index: usize, n: u64) -> u64 {
        // Nobody else writes here, so nothing comes between the two.
        let Some(count) = self.counts.get(index) else { return 0 };
        let before = count.load(Ordering::Relaxed);
        count.store(before.wrapping_add(n), Ordering::Relaxed);
        before
    }
}

impl Counters {
    pub(crate) fn new() -> Counters {
        Counters { home: Arc::new(Home(0)), tallies: Mutex::default() }
    }

    /// Count with this thread's tally. `count` is called once.
    #[inline]
    pub(crate) fn tally<T>(&self, mut count: impl FnMut(&Tally) -> T) -> T {
        let home = Arc::as_ptr(&self.home).addr();
        let counted = KEPT.try_with(|kept| {
            let kept = kept.try_borrow().ok()?;
            // Most threads work with one store.
            let found = kept.iter().find(|kept| kept.home == home)?;
            Some(count(&found.tally))
        });
        match counted {
            Ok(Some(counted)) => counted,
            _ => count(&self.claim(home)),
        }
    }

    /// A tally that nobody else has, for this thread to keep if it can. It cannot while it ends.
    #[cold]
    fn claim(&self, home: usize) -> Arc<Tally> {
        let tally = self.unused();
        let _ = KEPT.try_with(|kept| {
            if let Ok(mut kept) = kept.try_borrow_mut() {
                kept.insert(0, Kept { home, tally: tally.clone() });
                kept.truncate(KEPT_MAX);
            }
        });
        tally
    }

    fn unused(&self) -> Arc<Tally> {
        let mut tallies = self.tallies.lock();
        if let Some(tally) = tallies.iter_mut().find_map(|tally| Arc::get_mut(tally).is_some().then(|| tally.clone())) {
            return tally;
        }
        let tally = Arc::new(Tally { counts: [const { AtomicU64::new(0) }; COUNTS], _home: self.home.clone() });
        tallies.push(tally.clone());
        tally
    }

    /// All sums, in the order of [`Count`].
    pub(crate) fn sums(&self) -> [u64; COUNTS] {
        let mut sums = [0u64; COUNTS];
        for tally in &*self.tallies.lock() {
            for (sum, count) in sums.iter_mut().zip(&tally.counts) {
                *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
            }
        }
        sums
    }

    /// How many tallies there are: as many as threads have counted at the same time.
    #[cfg(test)]
    pub(super) fn tallies(&self) -> usize {
        self.tallies.lock().len()
    }
}
