pub(super) mod turns;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::arena::Entry;
use super::arena::node::{Node, SLOTS};
use super::*;
use crate::Error;
use crate::types::{KEY_BYTES_MAX, Kind};

/// A key and its trailer inverted, so that the newest comes first.
type Place = (Vec<u8>, u64);
/// Entries in the engine's order.
type Model = BTreeMap<Place, Vec<u8>>;

fn put(seq: u64) -> Trailer {
    Trailer::new(Seq::new(seq).unwrap(), Kind::Put)
}

fn seq(number: u64) -> Seq {
    Seq::new(number).unwrap()
}

fn entry(cursor: &MemtableCursor) -> Option<(Place, Vec<u8>)> {
    cursor.valid().then(|| {
        let value = cursor.value().unwrap().to_vec();
        assert_eq!(cursor.value_ref(), Some(&value[..]));
        ((cursor.key().to_vec(), !cursor.trailer().raw()), value)
    })
}

/// Keys of few letters, zero among them, so that heads are equal and keys prefixes of each other; some behind prefixes of all
/// lengths that many share.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    let letters = || proptest::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(255u8)], 1..12);
    let long = if cfg!(miri) { 300 } else { KEY_BYTES_MAX - 12 };
    prop_oneof![
        4 => letters(),
        4 => (0u32..50).prop_map(|n| format!("user{n:08}").into_bytes()),
        4 => (0u32..3, 0u32..1000).prop_map(|(family, n)| format!("/families/number/{family}/members/{n:012}").into_bytes()),
        2 => (0usize..40, letters()).prop_map(|(shared, rest)| [vec![b'p'; shared], rest].concat()),
        1 => (prop_oneof![Just(0), Just(long)], letters()).prop_map(|(shared, rest)| [vec![b'q'; shared], rest].concat()),
    ]
}

/// Check what the tree's own text says of it, and give its entries.
fn check(table: &Memtable) -> Vec<Place> {
    let mut found = Vec::new();
    check_below(table.arena.root(), [None, None], &mut found);
    assert!(found.is_sorted_by(|a, b| a < b), "in order");
    assert_eq!(found.len(), table.entries());
    found
}

fn place(entry: Entry<'_>) -> Place {
    (entry.key().to_vec(), !entry.trailer_raw())
}

fn check_below(node: Node<'_>, fences: [Option<Entry<'_>>; 2], found: &mut Vec<Place>) {
    let (from, entries) = (found.len(), entries_of(node));
    if node.is_leaf() {
        found.extend(entries.iter().map(|entry| place(*entry)));
    } else {
        for rank in 0..=entries.len() {
            let (before, begins) = (rank.checked_sub(1).map(|before| entries[before]), found.len());
            let fences = [before.or(fences[0]), entries.get(rank).copied().or(fences[1])];
            check_below(node.child(rank).unwrap(), fences, found);
            assert!(
                before.is_none_or(|border| place(border) == found[begins]),
                "a border is the first entry behind it"
            );
        }
    }
    let shared = match fences {
        [Some(left), Some(right)] => {
            assert!(place(left) <= found[from] && *found.last().unwrap() < place(right), "between its borders");
            assert!(left.key().starts_with(&right.key()[..node.prefix()]), "whatever comes between shares the prefix");
            &left.key()[..node.prefix()]
        }
        _ => entries.first().map_or(&[][..], |entry| &entry.key()[..node.prefix()]),
    };
    for (slot, entry) in entries.iter().enumerate() {
        assert!(entry.key().starts_with(shared), "all keys in a node share its prefix");
        assert_eq!(node.head(slot), tree::head_of(entry.key(), node.prefix()));
    }
    assert_eq!(node.heads_below(1 << 56), entries.len(), "empty slots are above all others");
}

fn entries_of(node: Node<'_>) -> Vec<Entry<'_>> {
    (0..node.count()).map(|slot| node.entry(slot).unwrap()).collect()
}

fn leaves_below(node: Node<'_>) -> usize {
    if node.is_leaf() { 1 } else { (0..=node.count()).map(|rank| leaves_below(node.child(rank).unwrap())).sum() }
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 2 } else { 100 }, failure_persistence: None, ..ProptestConfig::default() }
}

fn length_max() -> usize {
    if cfg!(miri) { 12 } else { 1000 }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_memtable_holds_what_a_map_holds(
        writes in proptest::collection::vec((keys(), proptest::option::of(0usize..6000)), 1..length_max()),
        probes in proptest::collection::vec((keys(), 0u64..1500), 1..length_max()),
        disorder in 0u64..1024,
    ) {
        // A difference is a lost write or a write that nobody made.
        let (table, mut model) = (Arc::new(Memtable::new()), Model::new());
        for (i, (key, len)) in writes.iter().enumerate() {
            let kind = if len.is_some() { Kind::Put } else { Kind::Delete };
            // Threads that commit at once insert in any order.
            let (trailer, value) = (Trailer::new(seq((i as u64 ^ disorder) + 1), kind), vec![i as u8; len.unwrap_or(0)]);
            table.insert(key, trailer, &value).unwrap();
            model.insert((key.clone(), !trailer.raw()), value);
        }
        prop_assert_eq!(check(&table), model.keys().cloned().collect::<Vec<_>>());

        let mut cursor = table.cursor();
        cursor.seek_to_first().unwrap();
        for (place, value) in &model {
            prop_assert_eq!(entry(&cursor), Some((place.clone(), value.clone())));
            cursor.next().unwrap();
        }
        prop_assert!(!cursor.valid());
        cursor.seek_to_last().unwrap();
        for (place, value) in model.iter().rev() {
            prop_assert_eq!(entry(&cursor), Some((place.clone(), value.clone())));
            cursor.prev().unwrap();
        }
        prop_assert!(!cursor.valid());

        for (key, at) in probes {
            let trailer = Trailer::seek(seq(at));
            let place = (key.clone(), !trailer.raw());
            let at_or_after = model.range(place.clone()..).next().map(|(k, v)| (k.clone(), v.clone()));
            let before = model.range((Bound::Unbounded, Bound::Excluded(place))).next_back();
            cursor.seek(&key, trailer).unwrap();
            prop_assert_eq!(entry(&cursor), at_or_after.clone());
            cursor.seek_before(&key, trailer).unwrap();
            prop_assert_eq!(entry(&cursor), before.map(|(k, v)| (k.clone(), v.clone())));
            let seen = table.get(&key, seq(at)).map(|(trailer, value)| (!trailer.raw(), value.to_vec()));
            prop_assert_eq!(seen, at_or_after.filter(|((k, _), _)| *k == key).map(|((_, t), v)| (t, v)));
        }
    }
}

#[test]
fn rising_and_falling_and_alternating_keys_end_up_in_order() {
    // The shortcut for rising keys must not put an entry where another order belongs.
    let count = if cfg!(miri) { 40u64 } else { 5000 };
    for order in [|i: u64, _: u64| i, |i, count| count - i, |i, _| i ^ 1, |i, count| (i % 2) * count + i] {
        let table = Arc::new(Memtable::new());
        let mut model = BTreeMap::new();
        for i in 0..count {
            let key = order(i, count).to_be_bytes();
            table.insert(&key, put(i + 1), &key).unwrap();
            model.insert(key, i + 1);
        }
        let mut cursor = table.cursor();
        cursor.seek_to_first().unwrap();
        for (key, number) in model {
            assert_eq!((cursor.key(), cursor.trailer()), (&key[..], put(number)));
            cursor.next().unwrap();
        }
        assert!(!cursor.valid());
        check(&table);
    }
}

#[test]
fn readers_see_every_visible_entry_while_a_writer_adds() {
    // A reader that misses a published entry loses an acknowledged write; one that meets a half-written
    // node reads garbage.
    let count = if cfg!(miri) { 60u64 } else { 20_000 };
    let table = Arc::new(Memtable::new());
    let visible = Arc::new(crate::sync::VisibleSeq::default());
    let done = Arc::new(AtomicBool::new(false));
    let key = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes();
    let value = |i: u64| vec![i as u8; if i.is_multiple_of(50) { 5000 } else { i as usize % 40 }];
    let readers: Vec<_> = (0..2u64)
        .map(|reader| {
            let (table, visible, done) = (table.clone(), visible.clone(), done.clone());
            std::thread::spawn(move || {
                let mut round = reader;
                while !done.load(Ordering::Relaxed) {
                    let top = visible.load().get();
                    if top == 0 {
                        std::thread::yield_now();
                        continue;
                    }
                    round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let i = round % top + 1;
                    let (trailer, found) = table.get(&key(i), seq(top)).expect("visible");
                    assert_eq!((trailer, found.to_vec()), (put(i), value(i)));
                    let mut cursor = table.cursor();
                    cursor.seek(&key(i), Trailer::seek(Seq::MAX)).unwrap();
                    let mut before = Vec::new();
                    for _ in 0..10 {
                        if !cursor.valid() {
                            break;
                        }
                        assert!(cursor.key() > &before[..], "out of order");
                        let i = cursor.trailer().seq().get();
                        assert_eq!((cursor.key(), cursor.value_ref()), (&key(i)[..], Some(&value(i)[..])));
                        before = cursor.key().to_vec();
                        cursor.next().unwrap();
                    }
                }
            })
        })
        .collect();
    for i in 1..=count {
        table.insert(&key(i), put(i), &value(i)).unwrap();
        visible.raise(seq(i));
    }
    done.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(table.entries() as u64, count);
}

#[test]
fn two_threads_may_insert_at_once() {
    // `insert` takes `&self`: called from two threads it must lose nothing.
    let count = if cfg!(miri) { 30u64 } else { 3000 };
    let table = Arc::new(Memtable::new());
    let writers: Vec<_> = (0..2u64)
        .map(|writer| {
            let table = table.clone();
            std::thread::spawn(move || {
                for i in 0..count {
                    table.insert(&(2 * i + writer).to_be_bytes(), put(2 * i + writer + 1), b"v").unwrap();
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    for i in 0..2 * count {
        assert!(table.get(&i.to_be_bytes(), Seq::MAX).is_some());
    }
}

#[test]
fn a_large_value_outlives_its_memtable_and_is_shared() {
    // A value handed out is the caller's: it must not become garbage when the memtable is flushed.
    let table = Arc::new(Memtable::new());
    let bytes = vec![7u8; 100_000];
    table.insert(b"k", put(1), &bytes).unwrap();
    assert!(table.bytes() >= 102_048, "large values are counted");
    assert!(table.bytes() < 110_000, "and take no room in the chunks");
    let (_, value) = table.get(b"k", Seq::MAX).unwrap();
    let (_, again) = table.get(b"k", Seq::MAX).unwrap();
    assert_eq!(value.as_ptr(), again.as_ptr());
    drop((table, again));
    assert_eq!(&value[..], &bytes[..]);
}

#[test]
fn an_entry_that_is_inserted_twice_is_there_once() {
    // Replaying a log over what is there already must change nothing. Full leaves, and entries that borders stand before, are among these.
    let count = if cfg!(miri) { 70 } else { 3000 };
    for order in [|i: u64, _: u64| i, |i, count| count - 1 - i, |i, count| (i * 7919) % count] {
        let number = |i| order(i, count);
        let table = filled((0..count).map(number));
        let found = check(&table);
        (0..count).map(number).for_each(|n| table.insert(&spaced(n), put(n + 1), &[n as u8; 20]).unwrap());
        assert_eq!((table.entries() as u64, check(&table) == found), (count, true));
    }
}

#[test]
fn a_full_memtable_and_too_long_a_key_are_typed_errors_that_add_nothing() {
    // Exhaustion must not wrap around into memory that is in use.
    let table = Memtable::with_end(8 << 10);
    let mut entries = 0;
    let error = loop {
        match table.insert(&u32::to_be_bytes(entries as u32), put(entries as u64 + 1), &[1; 100]) {
            Ok(()) => entries += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::LimitExceeded { limit: 8192, .. }), "{error}");
    assert!((30..80).contains(&entries), "{entries}");
    assert_eq!(table.entries(), entries);
    for i in 0..entries {
        assert!(table.get(&u32::to_be_bytes(i as u32), Seq::MAX).is_some());
    }
    // Into a leaf with room, and into one that would have to be split.
    for entries in [0, SLOTS as u64] {
        let (table, long) = (filled(0..entries), vec![0; KEY_BYTES_MAX + 1]);
        let bytes = table.bytes();
        for _ in 0..100 {
            assert!(matches!(table.insert(&long, put(9999), b""), Err(Error::LimitExceeded { .. })));
        }
        assert_eq!((table.entries() as u64, table.bytes()), (entries, bytes));
    }
}

#[test]
fn the_longest_key_finds_a_chunk_and_small_tables_stay_small() {
    // Chunks double: one entry must not cost a MiB, and none may be too long for its chunk.
    let table = Memtable::new();
    assert_eq!(table.bytes(), 2 << 10);
    table.insert(b"small", put(1), b"x").unwrap();
    assert_eq!(table.bytes(), 2 << 10);
    let long = vec![b'k'; KEY_BYTES_MAX];
    table.insert(&long, put(2), &[9; 4096]).unwrap();
    assert_eq!(table.get(&long, Seq::MAX).unwrap().1.to_vec(), vec![9; 4096]);
    assert!(table.bytes() <= (2 << 10) + (128 << 10));
}

#[test]
#[cfg_attr(miri, ignore = "40 MiB take Miri minutes; nothing here is not covered by smaller tests but the far chunks")]
fn chunks_beyond_the_near_ones_hold_entries_too() {
    // Behind 32 MiB pointers to chunks lie elsewhere; entries there must be found all the same.
    let table = Memtable::new();
    for i in 0..10_500u64 {
        table.insert(&i.to_be_bytes(), put(i + 1), &[i as u8; 4000]).unwrap();
    }
    assert!(table.bytes() > 40 << 20);
    for i in (0..10_500u64).step_by(97) {
        assert_eq!(table.get(&i.to_be_bytes(), Seq::MAX).unwrap().1.to_vec(), vec![i as u8; 4000]);
    }
}

/// A key with a place left before and behind it, long enough that no head can decide alone without a prefix.
fn spaced(number: u64) -> Vec<u8> {
    format!("shared by all of them {number:08}").into_bytes()
}

fn filled(numbers: impl Iterator<Item = u64>) -> Arc<Memtable> {
    let table = Arc::new(Memtable::new());
    numbers.for_each(|number| table.insert(&spaced(number), put(number + 1), &[number as u8; 20]).unwrap());
    table
}

/// All keys by a cursor that goes on from where it is.
fn rest(cursor: &mut MemtableCursor, step: fn(&mut MemtableCursor) -> Result<()>) -> Vec<Vec<u8>> {
    let mut met = Vec::new();
    while cursor.valid() {
        met.push(cursor.key().to_vec());
        step(cursor).unwrap();
    }
    met
}

#[test]
fn a_split_at_any_place_of_a_leaf_or_a_parent_loses_nothing() {
    // A border on the wrong side of one entry hides that entry from everybody.
    let leaves = if cfg!(miri) { vec![1] } else { vec![1, 2, 3, SLOTS as u64, SLOTS as u64 + 1, 3 * SLOTS as u64] };
    for leaves in leaves {
        let count = leaves * SLOTS as u64;
        // Inserted at every place, entries enough to split whatever leaf they come to.
        for at in (0..=count).step_by(if cfg!(miri) { 7 } else { 1 + count as usize / 60 }) {
            for keys in [|at: u64, i: u64| 100 * at + 99 - i, |at, i| 100 * at + i] {
                let table = filled((0..count).map(|i| 100 * i + 50));
                let mut model: Vec<Vec<u8>> = (0..count).map(|i| spaced(100 * i + 50)).collect();
                for i in 0..SLOTS as u64 + 1 {
                    table.insert(&spaced(keys(at, i)), put(1_000_000 + i), b"").unwrap();
                    model.push(spaced(keys(at, i)));
                }
                model.sort();
                assert_eq!(check(&table).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), model);
                for key in &model {
                    assert!(table.get(key, Seq::MAX).is_some());
                }
            }
        }
    }
}

#[test]
fn a_cursor_goes_on_in_order_from_any_entry_whatever_was_split_meanwhile() {
    // An iterator that skips a key, meets it twice or goes back shows its user a state that never was.
    let count = if cfg!(miri) { 20u64 } else { 100 };
    type Step = fn(&mut MemtableCursor) -> Result<()>;
    for (step, forwards) in [(Cursor::next as Step, true), (Cursor::prev as Step, false)] {
        // New entries before, behind and between the old ones: few splits, and many.
        for new in [vec![0, 99], (0..40).collect::<Vec<u64>>(), (51..99).rev().collect(), (0..100).collect()] {
            let new = if cfg!(miri) { vec![new[0], new[1]] } else { new };
            let table = filled((0..count).map(|i| 100 * i + 50));
            let mut cursors: Vec<MemtableCursor> = (0..count)
                .map(|i| {
                    let mut cursor = table.cursor();
                    cursor.seek(&spaced(100 * i + 50), Trailer::seek(Seq::MAX)).unwrap();
                    cursor
                })
                .collect();
            for i in 0..count {
                for new in new.iter().filter(|new| **new != 50) {
                    table.insert(&spaced(100 * i + new), put(1_000_000 + i), b"").unwrap();
                }
            }
            check(&table);
            for (i, cursor) in cursors.iter_mut().enumerate().step_by(if cfg!(miri) { 6 } else { 1 }) {
                let met = rest(cursor, step);
                let is_old = |key: &&Vec<u8>| key.ends_with(b"50");
                let old = met.iter().filter(is_old).cloned();
                if forwards {
                    assert!(met.is_sorted_by(|a, b| a < b), "never twice, never backwards");
                    assert!(old.eq((i as u64..count).map(|i| spaced(100 * i + 50))), "all that was there");
                } else {
                    assert!(met.is_sorted_by(|a, b| a > b), "never twice, never forwards");
                    assert!(old.eq((0..=i as u64).rev().map(|i| spaced(100 * i + 50))), "all that was there");
                }
            }
        }
    }
}

#[test]
fn keys_that_share_ever_less_neither_get_lost_nor_make_the_tree_deep() {
    // Each of them fits no prefix that was there before: whoever chooses keys must not be able to make every search long.
    let count = if cfg!(miri) { 40 } else { 8000usize };
    // Rising, falling, to both sides, and with long runs that share much between.
    let shapes: [fn(usize, usize) -> Vec<u8>; 4] = [
        |i, count| [vec![b'm'; count - i], vec![b'z']].concat(),
        |i, count| [vec![b'm'; count - i], vec![b'a']].concat(),
        |i, count| [vec![b'm'; count - i], vec![if i % 2 == 0 { b'z' } else { b'a' }]].concat(),
        |i, count| [vec![b'm'; (count - i) / 20 * 20], format!("z{i:08}").into_bytes()].concat(),
    ];
    for shape in shapes {
        let table = Memtable::new();
        for i in 0..count {
            table.insert(&shape(i, count), put(i as u64 + 1), b"").unwrap();
        }
        check(&table);
        for i in 0..count {
            assert!(table.get(&shape(i, count), Seq::MAX).is_some());
        }
        assert!(table.arena.root().level() <= 4, "{} levels", table.arena.root().level());
    }
}

#[test]
fn leaves_are_filled_whatever_order_keys_come_in() {
    // Half-empty leaves would flush a third sooner; nearly empty ones would fill 4 GiB with a batch that fits.
    let count = if cfg!(miri) { 200u64 } else { 20_000 };
    let (slots, wide) = (SLOTS as u64, 1_000_000);
    let leaves = |table: &Memtable| leaves_below(table.arena.root()) as u64;
    // Rising and falling keys, those of many tenants in turns, and those of one tenant after another.
    let full: [Box<dyn Fn(u64) -> u64>; 4] = [
        Box::new(|i| i),
        Box::new(|i| count - i),
        Box::new(|i| i % 5 * wide + i),
        Box::new(|i| i / (count / 5) * wide + i),
    ];
    for number in full {
        let table = filled((0..count).map(number));
        assert!(leaves(&table) <= count / slots + count / 500 + 15, "{} leaves for {count} keys", leaves(&table));
        assert!(table.arena.root().level() <= 3, "{} levels", table.arena.root().level());
        check(&table);
    }
    // Falling keys in front of a full leaf, of many tenants in turns, and of one tenant after another.
    let half: [Box<dyn Fn(u64) -> u64>; 3] = [
        Box::new(|i| if i < slots { i } else { wide - i }),
        Box::new(|i| i % 5 * wide + count - i),
        Box::new(|i| i / (count / 5) * wide + count - i),
    ];
    for number in half {
        let table = filled((0..count).map(number));
        assert!(leaves(&table) <= 2 * count / slots + 15, "{} leaves", leaves(&table));
        assert!(table.arena.root().level() <= 3, "{} levels", table.arena.root().level());
        check(&table);
    }
    // New versions of the first entries of leaves and of their parents.
    for border in [slots, slots * (slots + 1), 5 * slots] {
        let table = filled(0..count);
        let before = leaves(&table);
        (0..count).for_each(|i| table.insert(&spaced(border), put(wide + i), b"").unwrap());
        assert!(leaves(&table) - before <= 2 * count / slots + 15, "{} more leaves", leaves(&table) - before);
        assert!(table.arena.root().level() <= 3, "{} levels", table.arena.root().level());
        check(&table);
    }
}

#[test]
fn versions_of_one_key_come_newest_first_and_are_found_at_every_number() {
    // A counter that is written all the time: a reader must see the version of its own time.
    let count = if cfg!(miri) { 40u64 } else { 3000 };
    let table = Arc::new(Memtable::new());
    for i in 1..=count {
        for key in [&b"before"[..], b"counter", b"counter behind"] {
            table.insert(key, put(i), &i.to_be_bytes()).unwrap();
        }
    }
    check(&table);
    for at in 1..=count {
        assert_eq!(table.get(b"counter", seq(at)).unwrap().0, put(at));
    }
    assert!(table.get(b"counter", Seq::ZERO).is_none());
    let mut cursor = table.cursor();
    cursor.seek(b"counter", Trailer::seek(Seq::MAX)).unwrap();
    for at in (1..=count).rev() {
        assert_eq!((cursor.key(), cursor.trailer()), (&b"counter"[..], put(at)));
        cursor.next().unwrap();
    }
    assert_eq!(cursor.key(), b"counter behind");
}

#[test]
fn a_walk_in_either_direction_meets_all_that_is_visible_once_while_a_writer_splits() {
    // A flush or a scan that passes over a key beside a writer loses it, or shows half of a commit.
    let count = if cfg!(miri) { 60u64 } else { 30_000 };
    // Scattered keys and clusters of rising ones, with a prefix that some share.
    let keys: [fn(u64) -> Vec<u8>; 2] = [
        |i| format!("{:020}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes(),
        |i| format!("/{}/{}/{i:08}", ["a", "b", "the same for many"][i as usize % 3], i % 7).into_bytes(),
    ];
    for key in keys {
        let table = Arc::new(Memtable::new());
        let visible = Arc::new(crate::sync::VisibleSeq::default());
        let done = Arc::new(AtomicBool::new(false));
        let walkers: Vec<_> = [(true, 1), (false, 1), (true, 2), (false, 3)][..if cfg!(miri) { 2 } else { 4 }]
            .iter()
            .map(|&(forwards, part)| {
                let (table, visible, done) = (table.clone(), visible.clone(), done.clone());
                std::thread::spawn(move || {
                    loop {
                        let last_round = done.load(Ordering::Acquire);
                        let top = visible.load().get();
                        let mut cursor = table.cursor();
                        let from = top / part;
                        let expected: Vec<Vec<u8>> = match (forwards, part) {
                            (true, 1) => cursor.seek_to_first().map(|()| (1..=top).map(key).collect()).unwrap(),
                            (false, 1) => cursor.seek_to_last().map(|()| (1..=top).map(key).collect()).unwrap(),
                            (true, _) => {
                                cursor.seek(&key(from), Trailer::seek(Seq::MAX)).unwrap();
                                (1..=top).map(key).filter(|other| *other >= key(from)).collect()
                            }
                            (false, _) => {
                                cursor.seek_before(&key(from), Trailer::seek(Seq::MAX)).unwrap();
                                (1..=top).map(key).filter(|other| *other < key(from)).collect()
                            }
                        };
                        let mut expected = expected;
                        expected.sort();
                        if !forwards {
                            expected.reverse();
                        }
                        let (mut met, mut before) = (Vec::with_capacity(expected.len()), None);
                        while cursor.valid() {
                            let here = cursor.key().to_vec();
                            assert!(before.is_none_or(|before| (before < here) == forwards && before != here), "order");
                            if cursor.trailer().seq().get() <= top {
                                met.push(here.clone());
                            }
                            before = Some(here);
                            if forwards { cursor.next() } else { cursor.prev() }.unwrap();
                        }
                        assert!(met == expected, "{} of {} met", met.len(), expected.len());
                        if last_round {
                            break;
                        }
                    }
                })
            })
            .collect();
        for i in 1..=count {
            table.insert(&key(i), put(i), b"v").unwrap();
            visible.raise(seq(i));
        }
        done.store(true, Ordering::Release);
        walkers.into_iter().for_each(|walker| walker.join().unwrap());
        check(&table);
    }
}

#[test]
fn a_memtable_that_is_full_at_any_moment_of_a_split_holds_what_it_held() {
    // Exhaustion half-way through a split must not lose the half that was on its way.
    for end in (4 << 10..24 << 10).step_by(if cfg!(miri) { 9984 } else { 64 }) {
        let table = Memtable::with_end(end);
        let mut model = Vec::new();
        for i in 0u64.. {
            let key = spaced(i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 100_000_000);
            match table.insert(&key, put(i + 1), b"") {
                Ok(()) => model.push((key, !put(i + 1).raw())),
                Err(Error::LimitExceeded { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
        model.sort();
        assert_eq!(check(&table), model);
    }
}

/// Numbers that look random (splitmix64).
fn splitmix(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[test]
fn readers_find_the_newest_visible_version_of_a_key_while_others_are_added() {
    // A reader that misses an entry for an instant answers with an older version, or with none, and nobody ever learns of it.
    use std::sync::atomic::AtomicU64;
    const KEYS: u64 = 1200;
    let (rounds, versions) = if cfg!(miri) { (1, 40) } else { (200, 3000) };
    let key = |n: u64| format!("writer {} key {:04}", n / 300, n % 300).into_bytes();
    for round in 0..rounds {
        let table = Memtable::new();
        let visible = AtomicU64::new(0);
        let latest: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (table, visible, latest) = (&table, &visible, &latest);
                scope.spawn(move || {
                    let mut random = splitmix(round * 4 + reader);
                    while visible.load(std::sync::atomic::Ordering::Acquire) < versions {
                        let n = random() % KEYS;
                        let least = latest[n as usize].load(std::sync::atomic::Ordering::Acquire);
                        let seq = visible.load(std::sync::atomic::Ordering::Acquire);
                        let found =
                            table.get(&key(n), Seq::new(seq).unwrap()).map_or(0, |(found, _)| found.seq().get());
                        assert!(found >= least, "key {n} has version {found} and not {least} at {seq}");
                    }
                });
            }
            let _over = OnDrop(|| visible.store(versions, std::sync::atomic::Ordering::Release));
            let mut random = splitmix(round * 4 + 3);
            for seq in 1..=versions {
                let n = random() % KEYS;
                table.insert(&key(n), Trailer::new(Seq::new(seq).unwrap(), Kind::Put), &[0; 30]).unwrap();
                visible.store(seq, std::sync::atomic::Ordering::Release);
                latest[n as usize].store(seq, std::sync::atomic::Ordering::Release);
            }
        });
    }
}

/// Does something when it is dropped, so that nobody waits for a thread that has failed.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}
