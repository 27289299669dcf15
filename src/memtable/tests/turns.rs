//! Readers and the writer that meet at chosen moments between any two words that they load or store.
//!
//! A reader that goes on while the writer is half-way through a split, and the other way round, happens once in billions of searches when
//! both just run. Here it happens in each. What may be reordered between two threads is not seen here, but argued in `arena::node`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::{OnDrop, Place, check, put, seq, splitmix};
use crate::memtable::arena::Entry;
use crate::memtable::arena::node::Node;
use crate::memtable::tree::{self, Sought};
use crate::memtable::{Memtable, Trailer};

thread_local! {
    static AT_STEP: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// A moment between two words. What is done at it has no steps of its own.
pub(in crate::memtable) fn step() {
    let Some(mut at_step) = AT_STEP.take() else { return };
    at_step();
    AT_STEP.set(Some(at_step));
}

/// Steps until something is so; none at all if nothing is done at them.
pub(in crate::memtable) fn steps_until(is_so: impl Fn() -> bool) {
    while AT_STEP.with_borrow(Option::is_some) && !is_so() {
        step();
    }
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
                // One with fewer steps has come to its end, or has failed.
                let _passes_by = OnDrop(|| {
                    if !was_held.load(Ordering::Relaxed) {
                        arrived.wait();
                        released.wait();
                    }
                });
                with_steps(hold, read);
            });
        }
        arrived.wait();
        let _releases = OnDrop(|| {
            released.wait();
        });
        write();
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
    for (kind, inserts) in [(0, 15_000), (1, 15_000), (3, 15_000)] {
        let insert = |table: &Memtable, n| table.insert(&key_like(kind, n), put(n), b"v").unwrap();
        let table = Memtable::new();
        let mut sorted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let (mut levels, mut splits) = (0, 0);
        for next in 1..=inserts {
            let nodes = nodes_by_level(&table);
            insert(&table, next);
            let split = nodes_by_level(&table).iter().zip(&nodes).filter(|(after, before)| after > before).count();
            let new = key_like(kind, next);
            levels += usize::from(split >= 2);
            if split >= 3 || split == 2 && levels.is_multiple_of(4) {
                splits += 1;
                let before = Memtable::new();
                (1..next).for_each(|n| insert(&before, n));
                let lower = sorted.range(..new.clone()).rev().step_by(7).take(12);
                let upper = sorted.range(new.clone()..).step_by(7).take(12);
                let steps = |near| (4..300).step_by(13).map(move |step| (step, near));
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
            // Leaves are not looked at: counting them all at each insert would take its time.
            (0..=node.count()).for_each(|rank| match level {
                1 => counts[0] += 1,
                _ => count(node.child(rank).unwrap(), counts),
            });
        }
    }
    let mut counts = Vec::new();
    count(table.arena.root(), &mut counts);
    counts
}

#[test]
fn a_look_at_any_step_of_an_insert_finds_what_is_there_or_that_it_must_look_again() {
    // A reader who takes a half-changed node for a whole one answers with an older version, or with none.
    let [mut settled, mut unsettled] = [0; 2];
    for kind in 0..5 {
        let mut random = splitmix(kind);
        let table = Memtable::new();
        let mut model: BTreeMap<Place, u64> = BTreeMap::new();
        let inserts = if cfg!(miri) { 80 } else { 14_000 };
        for n in 1..=inserts {
            let (key, trailer) = (key_like(kind, n), put(n));
            let new: Place = (key.clone(), !trailer.raw());
            let nodes = tree::full_nodes_on_way_to(&table.arena, &Sought::new(&key, trailer));
            if nodes < 2 && random() % 20 > nodes as u64 {
                table.insert(&key, trailer, b"v").unwrap();
                model.insert(new, n);
                continue;
            }
            // Right at the new entry, next to it, and anywhere.
            let near = model.range(..new.clone()).rev().take(3).chain(model.range(new.clone()..).take(3));
            let near = near.map(|((key, inverted), _)| (key.clone(), Trailer::from_raw(!inverted).unwrap()));
            let anywhere = (0..3).map(|_| (key_like(kind, 1 + random() % n), Trailer::seek(seq(n))));
            let places: Vec<_> = near.chain(anywhere).chain([(key.clone(), trailer)]).collect();
            let before = model.clone();
            model.insert(new.clone(), n);
            let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
            let look = {
                let (table, counts, after) = (table.arena.clone(), counts.clone(), model.clone());
                move || {
                    for (key, trailer) in &places {
                        let (sought, place) = (Sought::new(key, *trailer), (key.clone(), !trailer.raw()));
                        let model = |model: &BTreeMap<Place, u64>| {
                            let next = model.range(place.clone()..).next().map(|(place, _)| place.clone());
                            (next, model.range(..place.clone()).next_back().map(|(place, _)| place.clone()))
                        };
                        let possible = [model(&before), model(&after)];
                        let found = |entry: Option<Entry<'_>>| entry.map(super::place);
                        let first_from = tree::look_for_first_from(&table, &sought);
                        let last_before = tree::look_for_last_before(&table, &sought);
                        counts[usize::from(first_from.is_some())].fetch_add(1, Ordering::Relaxed);
                        if let Some(first) = first_from.map(found) {
                            assert!(possible.iter().any(|(next, _)| *next == first), "kind {kind}, insert {n}");
                        }
                        if let Some(last) = last_before.map(|spot| found(spot.map(|spot| spot.entry))) {
                            assert!(possible.iter().any(|(_, before)| *before == last), "kind {kind}, insert {n}");
                        }
                    }
                }
            };
            with_steps(look, || table.insert(&key, trailer, b"v").unwrap());
            unsettled += counts[0].load(Ordering::Relaxed);
            settled += counts[1].load(Ordering::Relaxed);
        }
        assert_eq!(check(&table), model.into_keys().collect::<Vec<_>>());
    }
    assert!(settled > 1000 && unsettled > 1000, "{settled} {unsettled}");
}
