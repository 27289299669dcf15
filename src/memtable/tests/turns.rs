//! Threads that meet at chosen moments between any two words that they load or store.
//!
//! A reader that goes on while the writer is half-way through a split, and the other way round, happens once in billions of searches when
//! both just run. Here it happens in each.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::splitmix;

thread_local! {
    static AT_STEP: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// A moment between two words.
pub(in crate::memtable) fn step() {
    AT_STEP.with_borrow_mut(|at_step| at_step.iter_mut().for_each(|at_step| at_step()));
}

/// Do something, and something else at each of its steps.
fn with_steps<T>(at_step: impl FnMut() + 'static, work: impl FnOnce() -> T) -> T {
    AT_STEP.set(Some(Box::new(at_step)));
    let done = work();
    AT_STEP.set(None);
    done
}

#[derive(Default)]
struct Turns {
    whose: AtomicUsize,
    over: [AtomicBool; 2],
}

impl Turns {
    fn wait(&self, own: usize) {
        let mut looks = 0_u32;
        while self.whose.load(Ordering::SeqCst) != own && !self.over[1 - own].load(Ordering::SeqCst) {
            looks += 1;
            if looks.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    fn take_part(self: Arc<Self>, own: usize, seed: u64, steps: u64, part: impl FnOnce()) {
        /// Also when the part panics, so that nobody waits for it.
        struct Over(Arc<Turns>, usize);
        impl Drop for Over {
            fn drop(&mut self) {
                self.0.over[self.1].store(true, Ordering::SeqCst);
            }
        }
        let _over = Over(self.clone(), own);
        self.wait(own);
        let mut random = splitmix(seed);
        let hand_over = move || {
            if random().is_multiple_of(steps) {
                self.whose.store(1 - own, Ordering::SeqCst);
                self.wait(own);
            }
        };
        with_steps(hand_over, part);
    }
}

/// Run both on threads of their own, one at a time, each going on for so many steps on average.
pub(super) fn in_turns(seed: u64, steps: [u64; 2], first: impl FnOnce(), second: impl FnOnce() + Send) {
    let turns = Arc::new(Turns::default());
    std::thread::scope(|scope| {
        let other = turns.clone();
        scope.spawn(move || other.take_part(1, seed ^ 1, steps[1], second));
        turns.take_part(0, seed, steps[0], first);
    });
}

/// Run every one of `readers` on a thread of its own, hold it at its given step, and let it go on once `write` is over.
pub(super) fn held_meanwhile(readers: Vec<(u64, impl FnOnce() + Send)>, write: impl FnOnce()) {
    let everybody = readers.len() + 1;
    let (arrived, released) = (Arc::new(Barrier::new(everybody)), Arc::new(Barrier::new(everybody)));
    std::thread::scope(|scope| {
        for (steps, read) in readers {
            let (arrived, released) = (arrived.clone(), released.clone());
            let (mut steps_left, was_held) = (steps, Arc::new(AtomicBool::new(false)));
            let hold = {
                let (arrived, released, was_held) = (arrived.clone(), released.clone(), was_held.clone());
                move || {
                    if steps_left == 0 && !was_held.swap(true, Ordering::Relaxed) {
                        arrived.wait();
                        released.wait();
                    }
                    steps_left = steps_left.saturating_sub(1);
                }
            };
            scope.spawn(move || {
                with_steps(hold, read);
                // One with fewer steps has come to its end.
                if !was_held.load(Ordering::Relaxed) {
                    arrived.wait();
                    released.wait();
                }
            });
        }
        arrived.wait();
        write();
        released.wait();
    });
}
