use proptest::prelude::*;

use super::super::{Fate, Judge, Readers};
use crate::types::{Kind, Seq, Trailer};

fn seq(number: u64) -> Seq {
    Seq::new(number).unwrap()
}

/// What a reader at `at` sees among versions of one key, newest first: the value's number, or none.
fn seen(versions: &[(Trailer, u64)], at: u64) -> Option<u64> {
    let (trailer, value) = versions.iter().find(|(trailer, _)| trailer.seq().get() <= at)?;
    (trailer.kind() != Kind::Delete).then_some(*value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_after_the_rules_what_it_saw_before(
        versions in proptest::collection::btree_map(1u64..20, any::<bool>(), 1..10),
        snapshots in proptest::collection::vec(0u64..20, 0..4),
        visible in 0u64..22,
        deeper in proptest::option::of(Just(0u64)),
    ) {
        // A difference is a value lost to a snapshot, or a deleted one come back to life.
        let visible = snapshots.iter().copied().max().unwrap_or(0).max(visible);
        let readers = Readers::new(snapshots.iter().map(|at| seq(*at)).collect(), seq(visible));
        let kind = |is_put: bool| if is_put { Kind::Put } else { Kind::Delete };
        let before: Vec<(Trailer, u64)> =
            versions.iter().rev().map(|(at, put)| (Trailer::new(seq(*at), kind(*put)), *at)).collect();
        let mut judge = Judge::new(readers);
        let after: Vec<(Trailer, u64)> = before
            .iter()
            .filter_map(|(trailer, value)| match judge.judge(b"k", *trailer, || deeper.is_some()) {
                Fate::Stays(trailer) => Some((trailer, *value)),
                Fate::Goes => None,
            })
            .collect();
        prop_assert!(after.windows(2).all(|pair| pair[0].0 > pair[1].0), "newest first, no two alike");
        // Something deeper is older than all of the input: value 100, seen by everyone whom nothing newer serves.
        let below = deeper.map(|_| (Trailer::new(Seq::ZERO, Kind::Put), 100));
        let with_below = |versions: &[(Trailer, u64)]| versions.iter().copied().chain(below).collect::<Vec<_>>();
        for at in snapshots.iter().copied().chain(visible..25) {
            prop_assert_eq!(seen(&with_below(&after), at), seen(&with_below(&before), at), "at {}", at);
        }
    }
}

#[test]
fn without_snapshots_one_version_remains_and_the_last_level_holds_no_deletes() {
    // Rules that keep everything are safe and fill the disk.
    let mut judge = Judge::new(Readers::new(Vec::new(), seq(100)));
    let trailer = |at, kind| Trailer::new(seq(at), kind);
    assert_eq!(
        judge.judge(b"a", trailer(9, Kind::Put), || true),
        Fate::Stays(trailer(9, Kind::Put)),
        "something deeper: the number stays"
    );
    assert_eq!(judge.judge(b"a", trailer(8, Kind::Put), || true), Fate::Goes);
    assert_eq!(judge.judge(b"a", trailer(7, Kind::Delete), || false), Fate::Goes);
    assert_eq!(judge.judge(b"b", trailer(6, Kind::Delete), || false), Fate::Goes);
    assert_eq!(judge.judge(b"b", trailer(5, Kind::Put), || false), Fate::Goes);
    assert_eq!(judge.judge(b"c", trailer(4, Kind::Put), || false), Fate::Stays(trailer(0, Kind::Put)));
    assert_eq!(judge.judge(b"d", trailer(3, Kind::Delete), || true), Fate::Stays(trailer(3, Kind::Delete)));
}

#[test]
fn what_is_not_visible_yet_is_kept_whole() {
    // A number between the visible one and an entry's may become a snapshot while the job runs.
    let mut judge = Judge::new(Readers::new(Vec::new(), seq(5)));
    for at in [9, 8, 7] {
        let trailer = Trailer::new(seq(at), Kind::Put);
        assert_eq!(judge.judge(b"a", trailer, || false), Fate::Stays(trailer));
    }
}
