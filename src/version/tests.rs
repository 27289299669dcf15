use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::crypto::{Salt, Suite};
use crate::format::manifest::{Extent, FileRecord};
use crate::types::{Generation, Seq};

/// A file as a manifest would describe it; nothing of it is on any disk.
pub(crate) fn file(number: u64, smallest: &[u8], largest: &[u8], bytes: u64, seqs: (u64, u64)) -> Arc<TableFile> {
    file_with(number, smallest, largest, bytes, seqs, (100, 0))
}

pub(crate) fn file_with(
    number: u64,
    smallest: &[u8],
    largest: &[u8],
    bytes: u64,
    seqs: (u64, u64),
    (entries, tombstones): (u64, u64),
) -> Arc<TableFile> {
    let record = FileRecord {
        number: FileNumber(number),
        extent: Extent { container: FileNumber(number), offset_bytes: 0, len_bytes: bytes },
        salt: Salt::from_bytes([0; 32]),
        final_tag: [0; 16],
        generation: Generation(1),
        suite: Suite::Aes256Gcm,
        entries,
        tombstones,
        raw_bytes: bytes,
        min_seq: Seq::new(seqs.0).unwrap(),
        max_seq: Seq::new(seqs.1).unwrap(),
        bounds: Vec::new(),
        bounds_ordinal: 0,
    };
    Arc::new(TableFile::new(record, smallest.into(), largest.into()))
}

pub(crate) fn add(level: usize, file: &Arc<TableFile>) -> Change {
    Change::Add { level, file: file.clone() }
}

pub(crate) fn remove(level: usize, number: u64) -> Change {
    Change::Remove { level, number: FileNumber(number) }
}

fn numbers<'a>(files: impl IntoIterator<Item = &'a Arc<TableFile>>) -> Vec<u64> {
    files.into_iter().map(|file| file.number().0).collect()
}

#[test]
fn files_stand_newest_first_at_level_zero_and_by_key_below() {
    // A read that takes an older file first returns a value that was overwritten.
    let version = Version::empty()
        .apply(&[
            add(0, &file(7, b"a", b"m", 10, (20, 29))),
            add(0, &file(9, b"c", b"z", 10, (30, 39))),
            add(0, &file(8, b"b", b"c", 10, (10, 19))),
            add(2, &file(3, b"n", b"z", 10, (1, 9))),
            add(2, &file(4, b"a", b"m", 20, (1, 9))),
        ])
        .unwrap();
    assert_eq!(numbers(version.files(0)), [9, 7, 8]);
    assert_eq!(numbers(version.files(2)), [4, 3]);
    assert_eq!(numbers(version.candidates(b"c").map(|(_, file)| file)), [9, 7, 8, 4]);
    assert_eq!(numbers(version.candidates(b"z").map(|(_, file)| file)), [9, 3]);
    assert_eq!(numbers(version.candidates(b"mm").map(|(_, file)| file)), [9]);
    assert_eq!((version.level_bytes(0), version.level_bytes(2), version.bytes()), (30, 30, 60));
    assert_eq!(version.entries(), 500);
    assert!(version.files(99).is_empty() && !version.overlaps(99, b"", b"z"));
}

#[test]
fn changes_that_contradict_the_picture_are_typed_errors() {
    // A picture with overlapping files would hide entries; going on with one would lose them for good.
    let version = Version::empty()
        .apply(&[add(0, &file(1, b"a", b"m", 1, (10, 20))), add(1, &file(2, b"a", b"m", 1, (1, 9)))])
        .unwrap();
    let check = |changes: &[Change], expected: Contradiction| {
        let error = version.apply(changes).expect_err("contradiction");
        assert_eq!(error, expected);
        assert_eq!(error.in_file("manifest/000001.manifest", 7).kind(), crate::ErrorKind::Tampering);
    };
    let one = FileNumber(1);
    check(&[add(1, &file(3, b"m", b"z", 1, (1, 9)))], Contradiction::Overlap(FileNumber(2), FileNumber(3)));
    check(&[add(0, &file(3, b"m", b"z", 1, (20, 30)))], Contradiction::Interleaved(FileNumber(3), one));
    check(&[add(0, &file(3, b"a", b"z", 1, (1, 10)))], Contradiction::Interleaved(one, FileNumber(3)));
    check(&[add(2, &file(1, b"a", b"m", 1, (10, 20)))], Contradiction::Twice(one));
    check(&[remove(2, 1)], Contradiction::NotThere(one));
    check(&[remove(1, 2), remove(1, 2)], Contradiction::NotThere(FileNumber(2)));
    check(&[add(2, &file(3, b"b", b"a", 1, (1, 9)))], Contradiction::Reversed(FileNumber(3)));
    check(&[add(7, &file(3, b"a", b"b", 1, (1, 9)))], Contradiction::NoSuchLevel);
    assert!(version.apply(&[add(0, &file(3, b"n", b"z", 1, (10, 20)))]).is_ok(), "disjoint files of one flush");
}

#[test]
fn a_file_moves_and_is_replaced_within_one_step() {
    // Between the steps of a move the file's data would be gone.
    let moved = file(1, b"a", b"m", 5, (1, 9));
    let version = Version::empty().apply(&[add(0, &moved)]).unwrap();
    let next = version.apply(&[add(1, &moved), remove(0, 1)]).unwrap();
    assert!(Arc::ptr_eq(&next.files(1)[0], &moved) && next.files(0).is_empty());
    let last = next.apply(&[add(1, &file(2, b"a", b"m", 6, (1, 9))), remove(1, 1)]).unwrap();
    assert_eq!((numbers(last.files(1)), last.bytes()), (vec![2], 6));
    assert_eq!(numbers(version.files(0)), [1], "an old picture stays what it was");
    assert!(last.apply(&[remove(1, 2)]).unwrap().is_empty());
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn search_by_heads_finds_what_comparing_every_file_finds(
        prefix in proptest::collection::vec(Just(b'p'), 0..12),
        mut keys in proptest::collection::btree_set(proptest::collection::vec(0u8..4, 1..4), 2..40),
        probes in proptest::collection::vec((proptest::collection::vec(0u8..5, 0..5), proptest::collection::vec(0u8..5, 0..5)), 20),
    ) {
        // A file that the search passes by is data that is not found.
        if keys.len() % 2 == 1 {
            keys.pop_last();
        }
        let with_prefix = |key: &[u8]| [&prefix[..], key].concat();
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| with_prefix(key)).collect();
        let files: Vec<_> = keys
            .chunks(2)
            .enumerate()
            .map(|(i, pair)| file(i as u64 + 1, &pair[0], &pair[1], 1, (1, 1)))
            .collect();
        let changes: Vec<_> = files.iter().rev().map(|file| add(3, file)).collect();
        let version = Version::empty().apply(&changes).unwrap();
        for (low, high) in probes {
            let (low, high) = (with_prefix(&low), with_prefix(&high));
            let expected: Vec<u64> = numbers(files.iter().filter(|file| file.overlaps(&low, &low)));
            prop_assert_eq!(numbers(version.candidates(&low).map(|(_, file)| file)), expected);
            let expected: Vec<u64> = match low <= high {
                true => numbers(files.iter().filter(|file| file.overlaps(&low, &high))),
                false => continue,
            };
            prop_assert_eq!(version.overlaps(3, &low, &high), !expected.is_empty());
            prop_assert_eq!(numbers(&version.overlapping(3, &low, &high)), expected);
        }
    }
}
