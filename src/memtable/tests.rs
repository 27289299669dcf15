use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

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

/// Short keys of few letters, zero among them, so that heads are equal and keys prefixes of each other.
fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(255u8)], 1..12),
        (0u32..50).prop_map(|n| format!("user{n:08}").into_bytes()),
    ]
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 2 } else { 100 }, failure_persistence: None, ..ProptestConfig::default() }
}

fn length_max() -> usize {
    if cfg!(miri) { 12 } else { 200 }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_memtable_holds_what_a_map_holds(
        writes in proptest::collection::vec((keys(), proptest::option::of(0usize..6000)), 1..length_max()),
        probes in proptest::collection::vec((keys(), 0u64..200), 1..length_max()),
    ) {
        // A difference is a lost write or a write that nobody made.
        let (table, mut model) = (Arc::new(Memtable::new()), Model::new());
        for (i, (key, len)) in writes.iter().enumerate() {
            let kind = if len.is_some() { Kind::Put } else { Kind::Delete };
            let (trailer, value) = (Trailer::new(seq(i as u64 + 1), kind), vec![i as u8; len.unwrap_or(0)]);
            table.insert(key, trailer, &value).unwrap();
            model.insert((key.clone(), !trailer.raw()), value);
        }
        prop_assert_eq!(table.entries(), model.len());

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
fn rising_and_falling_and_random_keys_end_up_in_order() {
    // The shortcut for rising keys must not link an entry into the wrong gap.
    let count = if cfg!(miri) { 40u64 } else { 5000 };
    let scattered = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for order in [|i: u64, _: u64| i, |i, count| count - i, |i, _| i ^ 1, |i, count| (i % 2) * count + i] {
        let table = Arc::new(Memtable::with_seed(scattered(count)));
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
    // Replaying a log over what is there already must change nothing.
    let table = Memtable::new();
    for _ in 0..2 {
        table.insert(b"a", put(1), b"1").unwrap();
        table.insert(b"b", put(2), b"2").unwrap();
    }
    assert_eq!(table.entries(), 2);
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
    let long = vec![0; KEY_BYTES_MAX + 1];
    assert!(matches!(Memtable::new().insert(&long, put(1), b""), Err(Error::LimitExceeded { .. })));
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
        let table = Arc::new(Memtable::new());
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
