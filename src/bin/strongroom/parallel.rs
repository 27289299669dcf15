//! Work over a list on a few threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::failure::Result;

/// Threads for reading files: as many as there are processors, and eight at most.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// The next item that nobody has taken yet. Dealt out one at a time, so that one large file does not
/// leave the other threads without work.
pub struct Deal<'a, T> {
    items: &'a [T],
    next: AtomicUsize,
    stopped: AtomicBool,
}

impl<'a, T> Deal<'a, T> {
    /// Take the next item; none once all are taken or another thread has failed.
    pub fn take(&self) -> Option<&'a T> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        self.items.get(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Run `work` on several threads, each of which takes items from the deal until none is left. The first
/// failure stops the deal and is returned.
pub fn deal<T: Sync>(items: &[T], work: impl Fn(&Deal<'_, T>) -> Result<()> + Sync) -> Result<()> {
    let deal = Deal { items, next: AtomicUsize::new(0), stopped: AtomicBool::new(false) };
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads().min(items.len()).max(1) {
            scope.spawn(|| {
                if let Err(error) = work(&deal) {
                    deal.stopped.store(true, Ordering::Relaxed);
                    // A poisoned mutex means that another thread panicked, which the scope passes on.
                    if let Ok(mut first) = failure.lock() {
                        first.get_or_insert(error);
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(failure)) => Err(failure),
        _ => Ok(()),
    }
}
