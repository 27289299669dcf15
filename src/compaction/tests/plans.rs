use std::sync::Arc;

use proptest::prelude::*;

use super::super::Readers;
use super::super::plan::{Busy, Plan, Reason, flush_level, plan, split, urgency};
use crate::merge::KeyRange;
use crate::options::StoreOptions;
use crate::types::{LEVELS, Seq};
use crate::version::tests::{add, file, file_with, remove};
use crate::version::{Change, TableFile, Version};

const LAST: usize = LEVELS - 1;

fn options() -> StoreOptions {
    StoreOptions { table_file_bytes: 100, level_one_bytes: 1000, level_factor: 10, ..StoreOptions::default() }
}

fn readers() -> Readers {
    Readers::new(Vec::new(), Seq::MAX)
}

fn next(version: &Version) -> Option<Plan> {
    plan(version, &options(), &Busy::default(), &readers())
}

fn with(changes: &[Change]) -> Version {
    Version::empty().apply(changes).unwrap()
}

fn numbers(files: &[Arc<TableFile>]) -> Vec<u64> {
    files.iter().map(|file| file.number().0).collect()
}

/// A level of `count` files of 100 bytes, each of two letters' keys with the given first letter.
fn row(level: usize, first: u8, count: u8, number: u64) -> Vec<Change> {
    (0..count)
        .map(|i| add(level, &file(number + u64::from(i), &[first + i, b'a'], &[first + i, b'z'], 100, (1, 1))))
        .collect()
}

#[test]
fn an_empty_table_and_a_small_one_have_nothing_to_do() {
    assert!(next(&Version::empty()).is_none());
    let version = with(&[add(0, &file(1, b"a", b"z", 100, (1, 9))), add(LAST, &file(2, b"a", b"z", 900, (0, 0)))]);
    assert!(next(&version).is_none());
    assert!(urgency(&version, &options(), &Busy::default()) < 1.0);
}

#[test]
fn level_zero_goes_straight_to_the_base_with_all_that_overlaps() {
    // A file of level 0 that stays behind while a newer one goes down would hide the newer one.
    let version = with(&[
        add(0, &file(5, b"m", b"p", 10, (50, 59))),
        add(0, &file(4, b"d", b"n", 10, (40, 49))),
        add(0, &file(3, b"x", b"z", 10, (30, 39))),
        add(0, &file(2, b"a", b"e", 10, (20, 29))),
        add(LAST, &file(1, b"b", b"c", 10, (0, 0))),
        add(LAST, &file(6, b"q", b"r", 10, (0, 0))),
    ]);
    let plan = next(&version).unwrap();
    assert_eq!((plan.reason, plan.source, plan.target, plan.is_move), (Reason::LevelZero, 0, LAST, false));
    assert_eq!((numbers(&plan.upper), numbers(&plan.lower)), (vec![5, 4, 2], vec![1]));
    assert_eq!(plan.input_bytes(), 40);
    assert_eq!(plan.range(), (b"a"[..].into(), b"p"[..].into()));
}

#[test]
fn the_base_rises_as_the_table_grows_and_never_passes_a_level_with_files() {
    // Data that passes a level with older files would be older than what is above it.
    let zero: Vec<Change> =
        (0..4).map(|i| add(0, &file(100 + i, b"a", b"z", 10, (10 * i + 10, 10 * i + 19)))).collect();
    let target = |changes: &[Change]| {
        let version = with(&[&zero, changes].concat());
        next(&version).unwrap().target
    };
    assert_eq!(target(&row(LAST, b'a', 9, 1)), LAST);
    assert_eq!(target(&row(LAST, b'a', 11, 1)), LAST - 1);
    assert_eq!(target(&[row(LAST, b'a', 9, 1), row(4, b'a', 1, 50)].concat()), 4);
    assert_eq!(target(&[add(LAST, &file(1, b"a", b"z", 200_000, (0, 0)))]), LAST - 3);
}

#[test]
fn the_largest_score_goes_first_and_the_oldest_file_of_its_level() {
    // A range of keys that never has its turn keeps its old versions and deletes forever.
    let mut changes = [row(LAST, b'a', 20, 1), row(LAST - 1, b'a', 10, 50)].concat();
    changes.extend((0..4).map(|i| add(0, &file(100 + i, b"z", b"zz", 10, (10 * i + 10, 10 * i + 19)))));
    let oldest = file(40, b"da", b"dz", 100, (1, 1));
    let version = with(&changes).apply(&[remove(LAST - 1, 53), add(LAST - 1, &oldest)]).unwrap();
    let plan = next(&version).unwrap();
    assert_eq!((plan.reason, plan.source, plan.target), (Reason::Size, LAST - 1, LAST));
    assert_eq!((numbers(&plan.upper), numbers(&plan.lower)), (vec![40], vec![4]));
}

#[test]
fn busy_files_are_left_alone_and_the_next_ones_taken() {
    // Two jobs with one file would both write its entries, and one of them would find it gone.
    let version = with(&[row(LAST, b'a', 20, 1), row(LAST - 1, b'a', 10, 50)].concat());
    let mut busy = Busy::default();
    let mut taken = Vec::new();
    while let Some(plan) = plan(&version, &options(), &busy, &readers()) {
        assert!(plan.inputs().all(|(_, file)| !busy.holds(file.number())));
        taken.push((busy.claim(&plan), numbers(&plan.upper)));
    }
    // 1,000 bytes where 200 are allowed: eight files go before the score falls below one.
    assert_eq!(taken.len(), 8, "{taken:?}");
    assert_eq!(taken[0].1, [50]);
    busy.release(taken[3].0);
    assert_eq!(numbers(&plan(&version, &options(), &busy, &readers()).unwrap().upper), taken[3].1);
    taken.iter().for_each(|(id, _)| busy.release(*id));
    assert!(busy.is_idle());
}

#[test]
fn a_file_without_anything_below_it_moves_unless_it_spans_too_much_of_the_next_level() {
    // A move costs nothing; moved on top of a large range, its next step would cost all of that.
    let lone = |changes: &[Change]| next(&with(changes)).unwrap();
    let mut changes = row(LAST, b'a', 20, 1);
    changes.push(add(LAST - 1, &file(50, b"xa", b"xz", 900, (1, 1))));
    let plan = lone(&changes);
    assert!(plan.is_move && plan.lower.is_empty() && plan.target == LAST);

    let mut changes = [row(LAST, b'a', 20, 1), row(LAST, b'A', 20, 30)].concat();
    changes.push(add(LAST - 2, &file(50, b"a", b"z", 5000, (1, 1))));
    changes.push(add(LAST - 1, &file(51, b"0", b"1", 10, (1, 1))));
    let plan = lone(&changes);
    assert_eq!((plan.source, numbers(&plan.upper), numbers(&plan.lower)), (LAST - 2, vec![50], vec![]));
    assert!(!plan.is_move, "2,000 bytes below, 1,000 allowed");
}

#[test]
fn neighbours_come_along_when_they_cost_nothing() {
    let mut changes = row(LAST, b'p', 20, 1);
    changes.push(add(LAST, &file(30, b"a", b"k", 100, (0, 0))));
    changes.push(add(LAST - 1, &file(50, b"b", b"c", 200, (1, 1))));
    changes.push(add(LAST - 1, &file(51, b"d", b"e", 200, (1, 1))));
    changes.push(add(LAST - 1, &file(52, b"j", b"l", 200, (1, 1))));
    changes.push(add(LAST - 1, &file(53, b"m", b"q", 200, (1, 1))));
    let plan = next(&with(&changes)).unwrap();
    assert_eq!((numbers(&plan.upper), numbers(&plan.lower)), (vec![50, 51, 52], vec![30]));
}

#[test]
fn files_of_deletes_go_down_and_are_rewritten_at_the_bottom_once_no_reader_needs_them() {
    // Deletes that are never dropped make an emptied table slow for good.
    let heavy = |number, smallest: &[u8], largest: &[u8]| file_with(number, smallest, largest, 50, (10, 20), (100, 26));
    let check = |changes: &[Change], readers: &Readers| plan(&with(changes), &options(), &Busy::default(), readers);
    // Large enough for level 4 to be one that may have files.
    let below = add(LAST, &file(2, b"a", b"c", 50_000, (0, 0)));

    let plan = check(&[add(4, &heavy(1, b"a", b"b")), below.clone()], &readers()).unwrap();
    assert_eq!((plan.reason, plan.source, plan.target), (Reason::Tombstones, 4, 5));
    let plan = check(&[add(4, &heavy(1, b"x", b"z")), below.clone()], &readers()).unwrap();
    assert_eq!((plan.reason, plan.source, plan.target, plan.is_move), (Reason::Tombstones, 4, 4, false));
    let plan = check(&[add(LAST, &heavy(1, b"x", b"z"))], &readers()).unwrap();
    assert_eq!((plan.source, plan.target, numbers(&plan.upper)), (LAST, LAST, vec![1]));

    let held = Readers::new(vec![Seq::new(19).unwrap()], Seq::MAX);
    assert!(check(&[add(LAST, &heavy(1, b"x", b"z"))], &held).is_none(), "a snapshot may need them");
    let light = file_with(1, b"x", b"z", 50, (10, 20), (100, 25));
    assert!(check(&[add(LAST, &light)], &readers()).is_none());
}

#[test]
fn a_flushed_file_lands_as_deep_as_nothing_overlaps_it() {
    // One level too deep and it hides behind older data; too high and rising keys are all written twice.
    let level = |changes: &[Change], busy: &Busy| flush_level(&with(changes), &options(), busy, b"f", b"h");
    let idle = Busy::default();
    assert_eq!(level(&[], &idle), LAST);
    assert_eq!(level(&[add(LAST, &file(1, b"i", b"z", 10, (0, 0)))], &idle), LAST);
    assert_eq!(level(&[add(LAST, &file(1, b"a", b"z", 10, (0, 0)))], &idle), 0, "the base is the last level");
    assert_eq!(level(&[add(LAST, &file(1, b"a", b"z", 1500, (0, 0)))], &idle), LAST - 1);
    assert_eq!(level(&[add(0, &file(1, b"h", b"z", 10, (1, 9)))], &idle), 0);
    let apart = [add(4, &file(1, b"a", b"b", 10, (1, 1))), add(5, &file(2, b"a", b"g", 10, (0, 0)))];
    assert_eq!(level(&apart, &idle), 4);

    // A job that may write from a to z into the last level takes that range, though no file of it overlaps.
    let changes = [
        row(LAST, b'A', 20, 10),
        vec![add(LAST - 1, &file(1, b"a", b"e", 500, (1, 1))), add(LAST, &file(2, b"d", b"e", 10, (0, 0)))],
        vec![add(LAST, &file(3, b"j", b"z", 10, (0, 0))), add(LAST - 1, &file(4, b"i", b"k", 500, (1, 1)))],
    ]
    .concat();
    assert_eq!(level(&changes, &idle), LAST);
    let version = with(&changes);
    let upper = version.files(LAST - 1).to_vec();
    let lower = version.overlapping(LAST, b"a", b"z");
    let (source, target) = (LAST - 1, LAST);
    let mut busy = Busy::default();
    busy.claim(&Plan { reason: Reason::Size, source, target, upper, lower, is_move: false });
    assert_eq!(level(&changes, &busy), LAST - 1);
}

#[test]
fn a_large_job_is_cut_where_its_files_begin() {
    // Parts of very different size leave one thread with most of the work; parts that overlap or leave a gap lose keys.
    let low = |part: &KeyRange| part.lower.as_deref().map(|key| key[0]);
    let cuts = |plan: &Plan| split(plan, &options()).iter().map(low).collect::<Vec<_>>();
    let zero = |bytes| add(0, &file(90, b"a", b"z", bytes, (10, 19)));
    let job = |source, target, changes: &[Change]| {
        let version = with(changes);
        let (upper, lower) = (version.files(source).to_vec(), version.files(target).to_vec());
        let lower = if source == target { Vec::new() } else { lower };
        Plan { reason: Reason::Size, source, target, upper, lower, is_move: false }
    };
    // 100 bytes are a full-size file, and 200 the least for a part.
    let check = |source, target, changes: &[Change], expected: &[u8]| {
        let plan = job(source, target, changes);
        let expected: Vec<_> = std::iter::once(None).chain(expected.iter().copied().map(Some)).collect();
        assert_eq!(cuts(&plan), expected);
        let parts = split(&plan, &options());
        assert!(parts.windows(2).all(|pair| pair[0].upper == pair[1].lower), "no gap, no overlap");
        assert!(parts[0].lower.is_none() && parts[parts.len() - 1].upper.is_none());
    };
    check(0, LAST, &[zero(1000)], &[]);
    check(0, LAST, &[vec![zero(90)], row(LAST, b'a', 3, 1)].concat(), &[]);
    check(0, LAST, &[vec![zero(100)], row(LAST, b'a', 3, 1)].concat(), b"c");
    check(0, LAST, &[vec![zero(2000)], row(LAST, b'a', 3, 1)].concat(), b"bc");
    check(0, LAST, &[vec![zero(400)], row(LAST, b'a', 8, 1)].concat(), b"cdegh");
    check(4, 5, &[row(4, b'a', 6, 1), vec![add(5, &file(50, b"a", b"z", 100, (0, 0)))]].concat(), b"ce");
    // What goes to level 0 is to be one file.
    let plan = Plan { target: 0, lower: Vec::new(), ..job(0, LAST, &[zero(5000)]) };
    assert_eq!(cuts(&plan), [None]);
    let many = job(0, LAST, &[vec![zero(1)], row(LAST, b'A', 50, 1)].concat());
    assert_eq!(split(&many, &options()).len(), 16);
}

#[test]
fn level_zero_is_merged_within_itself_only_while_it_cannot_go_down() {
    // Otherwise it is written once more for nothing; and without it, readers look into ever more files and writers are stopped.
    let zero = |number: u64, bytes| add(0, &file(number, b"a", b"z", bytes, (10 * number, 10 * number + 9)));
    let mut busy = Busy::default();
    let version = with(&(1..=4).map(|number| zero(number, 40)).collect::<Vec<_>>());
    let down = plan(&version, &options(), &busy, &readers()).unwrap();
    assert_eq!((down.reason, down.target), (Reason::LevelZero, LAST));
    busy.claim(&down);
    let version = version.apply(&(5..=7).map(|number| zero(number, 40)).collect::<Vec<_>>()).unwrap();
    assert!(plan(&version, &options(), &busy, &readers()).is_none(), "three files are not too many");
    let version = version.apply(&[zero(8, 40)]).unwrap();
    let within = plan(&version, &options(), &busy, &readers()).unwrap();
    assert_eq!((within.reason, within.source, within.target), (Reason::Crowded, 0, 0));
    assert_eq!(numbers(&within.upper), [8, 7, 6, 5]);
    assert_eq!(flush_level(&version, &options(), &busy, b"a", b"b"), 0);
    // What comes out is to be small enough to go down soon: 200 bytes.
    let version = version.apply(&[zero(9, 90)]).unwrap();
    assert!(
        plan(&version, &options(), &busy, &readers()).is_none(),
        "90 and three times 40 bytes: three more would fit, not four"
    );
}

/// What the simulation below knows about a file: its keys, each with the number of its newest version.
type Contents = std::collections::BTreeMap<u64, Vec<(u8, u64)>>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_of_flushes_and_jobs_keeps_the_newest_version_on_top_and_comes_to_rest(
        steps in proptest::collection::vec((0u8..4, 0u8..60, 1u8..30, any::<u8>()), 1..120),
        level_one_bytes in 20u64..200,
    ) {
        // Versions out of order between levels are reads of overwritten values. Jobs are only planned and installed
        // here, in any order; the keys of each file are tracked by hand.
        let options = StoreOptions { table_file_bytes: 10, level_one_bytes, level_factor: 3, ..StoreOptions::default() };
        let (mut version, mut busy) = (Version::empty(), Busy::default());
        let (mut contents, mut newest) = (Contents::new(), std::collections::BTreeMap::<u8, u64>::new());
        let (mut seq, mut number, mut running) = (0u64, 0u64, Vec::new());
        let mut rounds = steps.into_iter();
        loop {
            let step = rounds.next();
            match step {
                Some((0 | 1, first, count, stride)) => {
                    let first_seq = seq + 1;
                    let keys: std::collections::BTreeSet<u8> =
                        (0..count).map(|i| first.wrapping_add(i * (1 + stride % 5)) % 90).collect();
                    let keys: Vec<(u8, u64)> = keys.into_iter().map(|key| { seq += 1; (key, seq) }).collect();
                    newest.extend(keys.iter().copied());
                    number += 1;
                    let (low, high) = (keys[0].0, keys[keys.len() - 1].0);
                    let file = file(number, &[low], &[high], keys.len() as u64, (first_seq, seq));
                    contents.insert(number, keys);
                    let level = flush_level(&version, &options, &busy, &[low], &[high]);
                    version = version.apply(&[add(level, &file)]).unwrap();
                }
                Some((2, ..)) => {
                    if let Some(plan) = plan(&version, &options, &busy, &readers()) {
                        running.push((busy.claim(&plan), plan));
                    }
                }
                Some((.., pick)) if !running.is_empty() => {
                    let (id, plan) = running.remove(pick as usize % running.len());
                    version = install(&version, &plan, &mut contents, &mut number);
                    busy.release(id);
                }
                Some(_) => {}
                None => {
                    let Some((id, plan)) = running.pop().or_else(|| {
                        let plan = plan(&version, &options, &busy, &readers())?;
                        Some((busy.claim(&plan), plan))
                    }) else { break };
                    version = install(&version, &plan, &mut contents, &mut number);
                    busy.release(id);
                }
            }
            for (key, expected) in &newest {
                let found = version.candidates(std::slice::from_ref(key)).find_map(|(_, file)| {
                    contents[&file.number().0].iter().find(|(own, _)| own == key).map(|(_, seq)| *seq)
                });
                prop_assert_eq!(found, Some(*expected), "key {}", key);
            }
        }
        prop_assert!(busy.is_idle());
        prop_assert!(version.files(0).len() < options.level_zero_files);
    }
}

/// The picture after a plan: a file moved, or its inputs merged and cut into files of ten keys.
fn install(version: &Version, plan: &Plan, contents: &mut Contents, number: &mut u64) -> Version {
    let mut changes: Vec<Change> =
        plan.inputs().map(|(level, file)| Change::Remove { level, number: file.number() }).collect();
    if plan.is_move {
        changes.push(add(plan.target, &plan.upper[0]));
        return version.apply(&changes).unwrap();
    }
    let mut merged = std::collections::BTreeMap::new();
    for (_, file) in plan.inputs() {
        for (key, seq) in contents.remove(&file.number().0).unwrap() {
            let entry = merged.entry(key).or_insert(seq);
            *entry = seq.max(*entry);
        }
    }
    let merged: Vec<(u8, u64)> = merged.into_iter().collect();
    for keys in merged.chunks(10) {
        *number += 1;
        let (low, high) = (keys[0].0, keys[keys.len() - 1].0);
        let seqs = keys.iter().map(|(_, seq)| *seq);
        let seqs = (seqs.clone().min().unwrap(), seqs.max().unwrap());
        changes.push(add(plan.target, &file(*number, &[low], &[high], keys.len() as u64, seqs)));
        contents.insert(*number, keys.to_vec());
    }
    version.apply(&changes).unwrap()
}
