use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::crypto::{Secret, Suite, TableKey};
use crate::error::Error;
use crate::types::{FileKind, FileNumber, Generation, StoreId, TableId};

/// Entries in the engine's order.
type Entries = Vec<(Vec<u8>, Trailer, Vec<u8>)>;

/// Bytes behind a checked tag: sealed under a key that only this test has, and opened again.
fn authentic(bytes: &[u8]) -> Authentic<Wiped> {
    let secret = Secret::fill_with(|bytes| bytes.fill(7));
    let key = TableKey::new(secret, StoreId::from_bytes([1; 16]), TableId::from_bytes([2; 16]), Generation(1));
    let entropy = crate::io::sim::SeededEntropy::new(3);
    let sealing = key.sealing_key(Suite::Aes256Gcm, FileKind::Table, FileNumber(1), &entropy).unwrap();
    let place = sealing.take().unwrap();
    let ordinal = place.ordinal();
    let mut sealed = bytes.to_vec();
    let tag = sealing.seal(place, b"", &mut sealed).unwrap();
    sealed.extend_from_slice(&tag);
    sealing.key().open(ordinal, b"", Wiped::from(sealed)).unwrap()
}

fn parse(bytes: &[u8]) -> Result<Block> {
    Block::parse(authentic(bytes), &Where::new("sst/00/1.sst", 77))
}

fn build(entries: &Entries) -> Vec<u8> {
    let mut builder = BlockBuilder::new();
    for (key, trailer, value) in entries {
        let bytes = builder.bytes_with(key, *trailer, value.len());
        builder.add(key, *trailer, value);
        assert_eq!(builder.bytes(), bytes);
    }
    let bytes = builder.bytes();
    let block = builder.finish().to_vec();
    assert_eq!(block.len(), bytes, "the size is known exactly before the block is laid out");
    block
}

/// Keys and versions in every shape that has a layout of its own: equal and unequal lengths, shared prefixes, one version and
/// many, puts alone and with deletes, zero and far sequence numbers.
fn entries() -> impl Strategy<Value = Entries> {
    let key = prop_oneof![
        vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xff)], 1..12),
        vec(any::<u8>(), 1..40),
        any::<[u8; 6]>().prop_map(|bytes| bytes.to_vec()),
    ];
    let seq = prop_oneof![Just(0u64), 0u64..300, 0..Seq::MAX.get(), Just(Seq::MAX.get())];
    let kind = prop_oneof![4 => Just(Kind::Put), 1 => Just(Kind::Delete), 1 => Just(Kind::PutRun)];
    let value = prop_oneof![Just(Vec::new()), vec(any::<u8>(), 8), vec(any::<u8>(), 0..300)];
    let versions = btree_map(seq, (kind, value), 1..4);
    (btree_map(key, versions, 1..30), vec(any::<u8>(), 0..20), any::<bool>(), any::<bool>()).prop_map(
        |(keys, prefix, puts_only, zero_seqs)| {
            let mut entries = Entries::new();
            for (key, versions) in keys {
                let key: Vec<u8> = prefix.iter().copied().chain(key).collect();
                for (seq, (kind, value)) in versions.into_iter().rev() {
                    let seq = if zero_seqs { Seq::ZERO } else { Seq::new(seq).unwrap() };
                    let kind = if puts_only { Kind::Put } else { kind };
                    entries.push((key.clone(), Trailer::new(seq, kind), value));
                }
            }
            // Without sequence numbers there is one version of a key.
            if zero_seqs {
                entries.dedup_by(|a, b| a.0 == b.0);
            }
            entries
        },
    )
}

fn key_of(block: &Block, i: usize) -> Vec<u8> {
    [block.key_prefix(), block.suffix(i)].concat()
}

fn is_before(entry: &(Vec<u8>, Trailer, Vec<u8>), key: &[u8], trailer: Trailer) -> bool {
    entry.0.as_slice().cmp(key).then(trailer.cmp(&entry.1)) == std::cmp::Ordering::Less
}

proptest! {
    #[test]
    fn every_entry_reads_back_as_it_was_added(entries in entries()) {
        let block = parse(&build(&entries)).unwrap();
        prop_assert_eq!(block.len(), entries.len());
        prop_assert!(block.is_ordered());
        for (i, (key, trailer, value)) in entries.iter().enumerate() {
            prop_assert_eq!(&key_of(&block, i), key);
            prop_assert!(block.key_is(i, key));
            prop_assert_eq!(block.trailer(i), *trailer);
            prop_assert_eq!(block.value(i), &value[..]);
            let (start, len) = block.value_range(i);
            prop_assert_eq!(&block.bytes()[start..start + len], &value[..]);
        }
    }

    #[test]
    fn a_search_finds_what_a_walk_finds(entries in entries(), keys in vec(vec(any::<u8>(), 0..12), 0..8), seq in 0u64..300) {
        // A failure would lose keys that are there.
        let block = parse(&build(&entries)).unwrap();
        let indexed = parse(&build(&entries)).unwrap().with_heads();
        let mut targets: Vec<(Vec<u8>, Trailer)> = entries.iter().map(|entry| (entry.0.clone(), entry.1)).collect();
        for (key, ..) in &entries {
            targets.push((key.clone(), Trailer::seek(Seq::new(seq).unwrap())));
            targets.push((key[..key.len() - 1].to_vec(), Trailer::seek(Seq::MAX)));
            targets.push(([key, &[0][..]].concat(), Trailer::seek(Seq::MAX)));
        }
        targets.extend(keys.into_iter().map(|key| (key, Trailer::seek(Seq::ZERO))));
        for (key, trailer) in targets {
            let expected = entries.iter().take_while(|entry| is_before(entry, &key, trailer)).count();
            prop_assert_eq!(block.lower_bound(&key, trailer), expected);
            prop_assert_eq!(indexed.lower_bound(&key, trailer), expected);
        }
    }

    #[test]
    fn no_sealed_bytes_make_a_block_panic(bytes in vec(any::<u8>(), 0..300)) {
        poke(&bytes);
    }

    #[test]
    fn no_change_to_a_block_makes_it_panic(entries in entries(), changes in vec((any::<u16>(), any::<u8>()), 1..4), cut in any::<u16>()) {
        let mut bytes = build(&entries);
        for (place, byte) in changes {
            // Most fields that matter lie in the first bytes.
            let place = usize::from(place) % if place & 1 == 0 { HEAD_BYTES } else { bytes.len() };
            bytes[place] = byte;
        }
        if cut % 4 == 0 {
            bytes.truncate(usize::from(cut) % (bytes.len() + 1));
        }
        poke(&bytes);
    }
}

/// Ask a block everything, also behind its end.
fn poke(bytes: &[u8]) {
    match parse(bytes) {
        Err(error) => assert!(matches!(error, Error::Tampered { offset_bytes: 77, .. })),
        Ok(block) => {
            for i in 0..block.len() + 2 {
                let _ = (block.suffix(i), block.trailer(i), block.value(i), block.key_is(i, b"key"));
                let (start, len) = block.value_range(i);
                let _ = &block.bytes()[start..start + len];
            }
            assert!(block.lower_bound(b"key", Trailer::seek(Seq::MAX)) <= block.len());
            block.is_ordered();
            let block = block.with_heads();
            assert!(block.lower_bound(b"key", Trailer::seek(Seq::MAX)) <= block.len());
        }
    }
}

fn put(key: &[u8], seq: u64, value: &[u8]) -> (Vec<u8>, Trailer, Vec<u8>) {
    (key.to_vec(), Trailer::new(Seq::new(seq).unwrap(), Kind::Put), value.to_vec())
}

#[test]
fn columns_that_say_nothing_take_no_bytes() {
    // Two puts of one length at one sequence number: 24 of head, 4 of prefix, two bytes of suffix, two of value.
    let bytes = build(&vec![put(b"key-a", 9, b"1"), put(b"key-b", 9, b"2")]);
    assert_eq!(bytes.len(), 24 + 4 + 2 + 2);
}

#[test]
fn the_layout_is_what_the_table_of_offsets_says() {
    // A failure means that stores written by an earlier build no longer open.
    let mut entries = vec![put(b"ka", 5, b"x"), put(b"kab", 4, b"yz")];
    entries.push((b"kb".to_vec(), Trailer::new(Seq::new(260).unwrap(), Kind::Delete), Vec::new()));
    let bytes = build(&entries);
    #[rustfmt::skip]
    let expected = [
        3, 0, 0, 0,  0b1000_0001, 0,  1, 0,  4, 0, 0, 0, 0, 0, 0, 0,  4, 0, 0, 0,  3, 0, 0, 0,
        b'k',
        0, 0, 1, 0, 3, 0, 4, 0,  b'a', b'a', b'b', b'b',
        1, 0, 0, 0, 0, 1,
        1, 1, 0,
        0, 0, 1, 0, 3, 0, 3, 0,  b'x', b'y', b'z',
    ];
    assert_eq!(bytes, expected);
}

#[test]
#[cfg_attr(miri, ignore = "sealing 250 KB takes Miri minutes")]
fn columns_above_64_kib_have_wide_offsets() {
    let long = |first: u8, len: usize| [&[first][..], &vec![first; len]].concat();
    let entries = vec![
        put(&long(1, 40_000), 1, &long(4, 50_000)),
        put(&long(2, 40_001), 2, &long(5, 50_001)),
        put(&long(3, 65_534), 3, &long(6, 7)),
    ];
    let block = parse(&build(&entries)).unwrap();
    for (i, (key, trailer, value)) in entries.iter().enumerate() {
        assert_eq!((key_of(&block, i), block.trailer(i), block.value(i)), (key.clone(), *trailer, &value[..]));
    }
}

#[test]
fn a_few_bytes_cannot_stand_for_billions_of_entries() {
    // A failure would let one block keep a reader busy for seconds.
    let mut bytes = build(&vec![put(b"key", 0, b"")]);
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(parse(&bytes).is_err());
}

#[test]
fn a_block_out_of_order_or_with_a_false_flag_is_noticed_by_verify() {
    let mut bytes = build(&vec![put(b"key-a", 9, b"1"), put(b"key-b", 9, b"2")]);
    bytes.swap(28, 29);
    assert!(!parse(&bytes).unwrap().is_ordered());
    let mut bytes = build(&vec![put(b"key", 9, b"1"), put(b"key", 8, b"2")]);
    assert!(parse(&bytes).unwrap().is_ordered());
    bytes[4] |= UNIQUE_KEYS as u8;
    assert!(!parse(&bytes).unwrap().is_ordered());
}
