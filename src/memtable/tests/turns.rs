//! Readers and the writer that meet at chosen moments between any two words that they load or store.
//!
//! A reader that goes on while the writer is half-way through a split, and the other way round, happens once in billions of searches when
//! both just run. Here it happens in each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::{put, seq, splitmix};
use crate::memtable::Memtable;
use crate::memtable::arena::node::Node;

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
fn in_turns(seed: u64, steps: [u64; 2], first: impl FnOnce(), second: impl FnOnce() + Send) {
    let turns = Arc::new(Turns::default());
    std::thread::scope(|scope| {
        let other = turns.clone();
        scope.spawn(move || other.take_part(1, seed ^ 1, steps[1], second));
        turns.take_part(0, seed, steps[0], first);
    });
}

/// Run every one of `readers` on a thread of its own, hold it at its given step, and let it go on once `write` is over.
fn held_meanwhile(readers: Vec<(u64, impl FnOnce() + Send)>, write: impl FnOnce()) {
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

/// Keys of one kind by number: random, in rising clusters, falling, with prefixes of different lengths, and of few letters.
fn key_like(kind: u64, number: u64) -> Vec<u8> {
    let mut random = splitmix(number);
    match kind {
        0 => format!("{:08}", random() % 10_000_000).into_bytes(),
        1 => format!("writer {} key {:06}", number % 3, number / 3).into_bytes(),
        2 => format!("{:08}", 90_000_000 - number).into_bytes(),
        3 => {
            format!("{}{:05}", ["user", "u", "order:item:", "zz"][random() as usize % 4], random() % 3000).into_bytes()
        }
        _ => (0..1 + random() % 6).map(|_| b"ab\0z"[random() as usize % 4]).collect(),
    }
}

#[test]
fn a_reader_that_meets_the_writer_at_any_step_finds_what_is_visible() {
    // A reader that misses an entry for an instant answers with an older version, or with none, and nobody ever learns of it.
    for trial in 0..if cfg!(miri) { 5 } else { 2000 } {
        let key = |number| key_like(trial % 5, number);
        let mut random = splitmix(trial);
        let there = 1 + random() % if cfg!(miri) { 60 } else { [20, 200, 4000][random() as usize % 3] };
        let all = there + 40;
        let table = Arc::new(Memtable::new());
        let insert = |n: u64| table.insert(&key(n), put(n), b"v").unwrap();
        (1..=there).for_each(insert);
        let visible = AtomicU64::new(there);
        let write = || {
            for n in there + 1..=all {
                insert(n);
                visible.store(n, Ordering::SeqCst);
            }
        };
        let steps = [1 + random() % 30, 1 + random() % 30];
        let read = || {
            loop {
                let top = visible.load(Ordering::SeqCst);
                let n = if random().is_multiple_of(2) { top - random() % top.min(30) } else { 1 + random() % top };
                let found = table.get(&key(n), seq(top)).map_or(0, |(trailer, _)| trailer.seq().get());
                assert!((n..=top).contains(&found), "trial {trial}: key {n} has version {found} at {top}");
                if top == all {
                    break;
                }
            }
        };
        in_turns(trial, steps, write, read);
    }
}

#[test]
#[cfg_attr(miri, ignore = "only large trees have so many levels")]
fn a_reader_who_is_held_at_any_step_while_nodes_of_many_levels_are_split_finds_what_was_visible() {
    // The border that a split makes may end up far above the node that is split, and whoever is on his way down there does not see it.
    for (kind, inserts) in [(0, 15_000), (1, 9_400), (3, 5_300)] {
        let insert = |table: &Memtable, n| table.insert(&key_like(kind, n), put(n), b"v").unwrap();
        let table = Memtable::new();
        let mut sorted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut splits = 0;
        for next in 1..=inserts {
            let nodes = nodes_by_level(&table);
            insert(&table, next);
            let split = nodes_by_level(&table).iter().zip(&nodes).filter(|(after, before)| after > before).count();
            let new = key_like(kind, next);
            if split >= 3 {
                splits += 1;
                let before = Memtable::new();
                (1..next).for_each(|n| insert(&before, n));
                let lower = sorted.range(..new.clone()).rev().step_by(7).take(12);
                let upper = sorted.range(new.clone()..).step_by(7).take(12);
                let steps = |near| (4..60).step_by(2).map(move |step| (step, near));
                let readers = lower.chain(upper).flat_map(steps).map(|(step, (key, &n))| {
                    let before = &before;
                    let read = move || {
                        let found = before.get(key, seq(next - 1)).map_or(0, |(trailer, _)| trailer.seq().get());
                        assert_eq!(found, n, "kind {kind}, insert {next}, step {step}");
                    };
                    (step, read)
                });
                held_meanwhile(readers.collect(), || insert(&before, next));
            }
            sorted.insert(new, next);
        }
        assert!(splits > 3, "kind {kind}: {splits}");
    }
}

fn nodes_by_level(table: &Memtable) -> Vec<usize> {
    fn count(node: Node<'_>, counts: &mut Vec<usize>) {
        let level = node.level() as usize;
        counts.resize(counts.len().max(level + 1), 0);
        counts[level] += 1;
        if !node.is_leaf() {
            let order = node.view().order;
            count(node.child(None), counts);
            // Leaves are not looked at: counting them all at each insert would take its time.
            (0..order.count()).for_each(|rank| match level {
                1 => counts[0] += 1,
                _ => count(node.child(Some(order.slot(rank))), counts),
            });
        }
    }
    let mut counts = Vec::new();
    count(table.arena.root(), &mut counts);
    counts
}
