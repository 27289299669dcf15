use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::error::Error;

type Entry = (Vec<u8>, Trailer, Vec<u8>);

/// A sorted row in memory. Values of [`FAR`] bytes can be had by [`Cursor::value`] alone, as if they lay in a file.
struct Row {
    entries: Vec<Entry>,
    /// One past the place, so that 0 and `len + 1` are on no entry.
    place: usize,
    /// Moves that still succeed.
    moves_left: usize,
}

const FAR: usize = 7;

impl Row {
    fn new(entries: Vec<Entry>) -> Row {
        Row { entries, place: 0, moves_left: usize::MAX }
    }

    fn go(&mut self, place: usize) -> Result<()> {
        self.moves_left = self.moves_left.checked_sub(1).ok_or(Error::Closed)?;
        self.place = place;
        Ok(())
    }

    fn before(&self, key: &[u8], trailer: Trailer) -> usize {
        self.entries.partition_point(|entry| order(entry, key, trailer) == Ordering::Less)
    }

    fn entry(&self) -> &Entry {
        &self.entries[self.place - 1]
    }
}

fn order(entry: &Entry, key: &[u8], trailer: Trailer) -> Ordering {
    entry.0.as_slice().cmp(key).then(trailer.cmp(&entry.1))
}

impl Cursor for Row {
    fn valid(&self) -> bool {
        (1..=self.entries.len()).contains(&self.place)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.go(1)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.go(self.entries.len())
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        self.go(self.before(key, trailer) + 1)
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        self.go(self.before(key, trailer))
    }

    fn next(&mut self) -> Result<()> {
        assert!(self.valid());
        self.go(self.place + 1)
    }

    fn prev(&mut self) -> Result<()> {
        assert!(self.valid());
        self.go(self.place - 1)
    }

    fn key(&self) -> &[u8] {
        &self.entry().0
    }

    fn trailer(&self) -> Trailer {
        self.entry().1
    }

    fn value_ref(&self) -> Option<&[u8]> {
        (self.entry().2.len() != FAR).then_some(&self.entry().2)
    }

    fn value(&self) -> Result<Value> {
        Ok(Value::copied(&self.entry().2))
    }
}

#[derive(Clone, Debug)]
enum Move {
    First,
    Last,
    Seek(Vec<u8>, u64),
    SeekBefore(Vec<u8>, u64),
    Next(u8),
    Prev(u8),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(prop_oneof![Just(b'a'), Just(b'b')], 1..4),
        // Keys that agree in their first eight bytes, or differ from them by padding alone.
        vec(prop_oneof![Just(0), Just(b'c')], 0..3).prop_map(|end| [&b"common-p"[..], &end].concat()),
        vec(Just(0), 1..10),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        1 => Just(Move::First),
        1 => Just(Move::Last),
        2 => (key(), 0u64..60).prop_map(|(key, seq)| Move::Seek(key, seq)),
        2 => (key(), 0u64..60).prop_map(|(key, seq)| Move::SeekBefore(key, seq)),
        5 => (1u8..6).prop_map(Move::Next),
        5 => (1u8..6).prop_map(Move::Prev),
    ];
    vec(one, 1..40)
}

/// All entries in order, and the same dealt out to sources.
fn sources() -> impl Strategy<Value = (Vec<Entry>, Vec<Vec<Entry>>)> {
    let value = prop_oneof![Just(Vec::new()), vec(any::<u8>(), FAR), Just(vec![1; 300]), vec(any::<u8>(), 0..20)];
    let entry = (key(), 1u64..50, prop::bool::weighted(0.3), value, any::<usize>());
    (vec(entry, 0..80), 1usize..10).prop_map(|(drawn, count)| {
        let mut seen = std::collections::BTreeSet::new();
        let mut all = Vec::new();
        for (key, seq, deleted, value, source) in drawn {
            // Of several entries with one key and number the first stays: that is what commits make sure of.
            if seen.insert((key.clone(), seq)) {
                let kind = if deleted { Kind::Delete } else { Kind::Put };
                let value = if deleted { Vec::new() } else { value };
                all.push(((key, Trailer::new(Seq::new(seq).unwrap(), kind), value), source % count));
            }
        }
        all.sort_by(|(a, _), (b, _)| order(a, &b.0, b.1));
        let mut dealt = vec![Vec::new(); count];
        for (entry, source) in &all {
            dealt[*source].push(entry.clone());
        }
        (all.into_iter().map(|(entry, _)| entry).collect(), dealt)
    })
}

fn boxed(dealt: Vec<Vec<Entry>>) -> Vec<Source> {
    dealt.into_iter().map(|entries| Box::new(Row::new(entries)) as Source).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_merge_walks_the_union_of_its_sources_whichever_way_it_turns((all, dealt) in sources(), moves in moves()) {
        // A failure would lose or repeat entries in scans and compactions.
        let mut model = Row::new(all);
        let mut merge = MergeCursor::new(boxed(dealt));
        for step in moves {
            let (times, forward) = match step {
                Move::First => { model.seek_to_first()?; merge.seek_to_first()?; (0, true) }
                Move::Last => { model.seek_to_last()?; merge.seek_to_last()?; (0, true) }
                Move::Seek(key, seq) => {
                    let trailer = Trailer::seek(Seq::new(seq).unwrap());
                    model.seek(&key, trailer)?;
                    merge.seek(&key, trailer)?;
                    (0, true)
                }
                Move::SeekBefore(key, seq) => {
                    let trailer = Trailer::new(Seq::new(seq).unwrap(), Kind::Put);
                    model.seek_before(&key, trailer)?;
                    merge.seek_before(&key, trailer)?;
                    (0, true)
                }
                Move::Next(times) => (times, true),
                Move::Prev(times) => (times, false),
            };
            check_same(&model, &merge)?;
            for _ in 0..times {
                if !model.valid() {
                    break;
                }
                if forward { model.next()?; merge.next()?; } else { model.prev()?; merge.prev()?; }
                check_same(&model, &merge)?;
            }
        }
    }

    #[test]
    fn a_snapshot_sees_the_newest_version_of_each_key_that_is_not_deleted(
        (all, dealt) in sources(),
        moves in moves(),
        seq in 0u64..60,
        lower in prop::option::of(key()),
        upper in prop::option::of(key()),
    ) {
        // A failure would show old, deleted or future values, or miss keys.
        let seq = Seq::new(seq).unwrap();
        let range = KeyRange { lower: lower.map(|key| (&key[..]).into()), upper: upper.map(|key| (&key[..]).into()) };
        let mut seen: BTreeMap<Vec<u8>, (Trailer, Vec<u8>)> = BTreeMap::new();
        // Oldest last in entry order, so that going backward the newest visible one is what remains.
        for (key, trailer, value) in all.iter().rev().filter(|entry| entry.1.seq() <= seq) {
            match trailer.kind() {
                Kind::Delete => drop(seen.remove(key)),
                _ => drop(seen.insert(key.clone(), (*trailer, value.clone()))),
            }
        }
        seen.retain(|key, _| !range.is_below(key) && !range.is_above(key));

        let mut cursor = VisibleCursor::new(MergeCursor::new(boxed(dealt)), seq, range);
        let mut place: Option<Vec<u8>> = None;
        for step in moves {
            let before = |key: &[u8]| seen.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
            let after = |key: &[u8]| seen.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next();
            let (times, forward) = match step {
                Move::First => { cursor.seek_to_first()?; place = seen.keys().next().cloned(); (0, true) }
                Move::Last => { cursor.seek_to_last()?; place = seen.keys().next_back().cloned(); (0, true) }
                Move::Seek(key, _) => {
                    cursor.seek(&key)?;
                    place = seen.range(key..).next().map(|(key, _)| key.clone());
                    (0, true)
                }
                Move::SeekBefore(key, _) => {
                    cursor.seek_before(&key)?;
                    place = before(&key).map(|(key, _)| key.clone());
                    (0, true)
                }
                Move::Next(times) => (times, true),
                Move::Prev(times) => (times, false),
            };
            check_shown(&seen, &place, &cursor)?;
            for _ in 0..times {
                if forward { cursor.next()? } else { cursor.prev()? }
                place = place.and_then(|key| if forward { after(&key) } else { before(&key) }.map(|(key, _)| key.clone()));
                check_shown(&seen, &place, &cursor)?;
            }
        }
    }

    #[test]
    fn a_merge_of_a_failing_source_stands_on_no_entry((_, dealt) in sources(), moves_left in 0usize..6, forward: bool) {
        // A failure would let a scan go on past entries that could not be read.
        let mut rows: Vec<Row> = dealt.into_iter().map(Row::new).collect();
        rows[0].moves_left = moves_left;
        let mut merge = MergeCursor::new(rows.into_iter().map(|row| Box::new(row) as Source).collect());
        let mut result = merge.seek_to_first();
        for i in 0..20 {
            if result.is_err() || !merge.valid() {
                break;
            }
            result = if forward || i % 3 != 0 { merge.next() } else { merge.prev() };
        }
        prop_assert!(result.is_ok() || !merge.valid());
    }
}

fn check_same(model: &Row, merge: &MergeCursor) -> Result<(), TestCaseError> {
    prop_assert_eq!(model.valid(), merge.valid());
    if model.valid() {
        prop_assert_eq!((model.key(), model.trailer()), (merge.key(), merge.trailer()));
        prop_assert_eq!(model.value_ref(), merge.value_ref());
        prop_assert_eq!(model.value()?, merge.value()?);
    }
    Ok(())
}

fn check_shown<C: Cursor>(
    seen: &BTreeMap<Vec<u8>, (Trailer, Vec<u8>)>,
    place: &Option<Vec<u8>>,
    cursor: &VisibleCursor<C>,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(place.is_some(), cursor.valid());
    if let Some((key, (trailer, value))) = place.as_ref().and_then(|key| seen.get_key_value(key)) {
        prop_assert_eq!((&key[..], *trailer), (cursor.key(), cursor.trailer()));
        prop_assert_eq!(&cursor.value()?[..], &value[..]);
        match cursor.value_ref() {
            Some(bytes) => prop_assert_eq!(bytes, &value[..]),
            None => prop_assert_eq!(value.len(), FAR),
        }
    }
    Ok(())
}

#[test]
fn many_hidden_versions_are_passed_by_seeking() {
    // A failure would make one hot key cost every scan a step per version.
    let version =
        |seq: u64| (b"hot".to_vec(), Trailer::new(Seq::new(seq).unwrap(), Kind::Put), seq.to_be_bytes().to_vec());
    let mut entries = vec![(b"a".to_vec(), Trailer::new(Seq::new(1).unwrap(), Kind::Put), b"1".to_vec())];
    entries.extend((2..10_000).rev().map(version));
    entries.push((b"z".to_vec(), Trailer::new(Seq::new(1).unwrap(), Kind::Put), b"2".to_vec()));
    let mut row = Row::new(entries);
    row.moves_left = 200;
    let mut cursor = VisibleCursor::new(row, Seq::new(5000).unwrap(), KeyRange::default());
    let mut shown = Vec::new();
    cursor.seek_to_first().unwrap();
    while cursor.valid() {
        shown.push((cursor.key().to_vec(), cursor.value().unwrap().to_vec()));
        cursor.next().unwrap();
    }
    assert_eq!(shown.len(), 3);
    assert_eq!(shown[1], (b"hot".to_vec(), 5000u64.to_be_bytes().to_vec()));
    cursor.seek_to_last().unwrap();
    for (key, value) in shown.iter().rev() {
        assert_eq!((cursor.key(), &*cursor.value().unwrap()), (&key[..], &value[..]));
        cursor.prev().unwrap();
    }
    assert!(!cursor.valid());
}

#[test]
fn a_merge_of_nothing_has_no_entries() {
    let mut merge: MergeCursor = MergeCursor::new(Vec::new());
    merge.seek_to_first().unwrap();
    assert!(!merge.valid());
    merge.seek_to_last().unwrap();
    assert!(!merge.valid());
}
