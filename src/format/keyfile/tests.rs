use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::format::testing::*;
use crate::types::StoreId;

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn wrap(generation: u32, commitment: Commitment) -> Wrap {
    Wrap {
        generation: Generation(generation),
        key_arn: "arn:strongroom:kms:local:keyring:key/1".to_owned(),
        context: pairs(&[("purpose", "table"), ("store", "61"), ("table", "62")]),
        wrapped: noise(92),
        commitment,
        created_ms: 1_790_000_000_000,
        retired: generation == 1,
    }
}

pub(crate) fn record() -> KeyFile {
    KeyFile {
        table: TABLE,
        version: 5,
        state: KeyState::Active,
        since_ms: 1_790_000_000_001,
        master: MasterKind::Customer,
        wraps: vec![wrap(1, Commitment::from_bytes([1; 32])), wrap(3, *table_key().commitment())],
    }
}

pub(crate) fn system_record() -> KeyFile {
    KeyFile {
        table: TableId::SYSTEM,
        version: 2,
        state: KeyState::Active,
        since_ms: 3,
        master: MasterKind::Owned,
        wraps: vec![wrap(1, *system_key().commitment())],
    }
}

fn sealed() -> (Vec<u8>, Tag) {
    record().seal(&system_key(), Suite::Aes256Gcm, &Counting::default()).unwrap()
}

fn open(bytes: &[u8]) -> Result<OpenedKeyFile> {
    KeyFile::open(bytes, &system_key(), TABLE, &here())
}

fn sealed_system() -> (Vec<u8>, Tag) {
    SystemKeyFile::seal(&system_record(), &system_key(), Suite::Aes256Gcm, &Counting::default()).unwrap()
}

fn open_system(bytes: &[u8]) -> Result<OpenedKeyFile> {
    SystemKeyFile::decode_unauthenticated(bytes, &here())?.authenticate(&system_key(), &here())
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_encode_back(bytes in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, to: u8) {
        let mut changed = record().encode();
        let at = at.index(changed.len());
        changed[at] = to;
        for bytes in [bytes, changed] {
            if let Ok(record) = KeyFile::decode(&bytes) {
                let again = record.encode();
                prop_assert_eq!(&again[..], &bytes[..again.len()]);
                prop_assert!(bytes[again.len()..].iter().all(|&byte| byte == 0));
            }
            if let Ok(pairs) = decode_context(&bytes) {
                prop_assert_eq!(encode_context(&pairs).unwrap(), &bytes[..]);
            }
            prop_assert!(open(&bytes).is_err());
            prop_assert!(open_system(&bytes).is_err());
        }
    }

    #[test]
    fn a_context_has_one_encoding_whatever_the_order(context in prop::collection::btree_map("[a-zé]{1,8}", ".{0,8}", 0..6), seed: u64) {
        let sorted: Vec<(String, String)> = context.into_iter().collect();
        let mut shuffled = sorted.clone();
        if !shuffled.is_empty() {
            let by = seed as usize % shuffled.len();
            shuffled.rotate_left(by);
        }
        let bytes = encode_context(&shuffled).unwrap();
        prop_assert_eq!(&bytes, &encode_context(&sorted).unwrap());
        prop_assert_eq!(decode_context(&bytes).unwrap(), sorted);
    }
}

#[test]
fn contexts_with_doubts_are_refused() {
    // A failure would let one context be read as another, and a wrap be unwrapped where it does not belong.
    let refused = |context: &[(&str, &str)]| refusal(encode_context(&pairs(context)));
    assert_eq!(refused(&[("a", "1"), ("a", "2")]), ErrorKind::InvalidArgument);
    assert_eq!(refused(&[("a", "1"), ("a", "1")]), ErrorKind::InvalidArgument);
    assert_eq!(refused(&[("", "1")]), ErrorKind::InvalidArgument);
    assert_eq!(refused(&[("a", &"x".repeat(CONTEXT_BYTES_MAX))]), ErrorKind::LimitExceeded);
    let good = encode_context(&pairs(&[("a", "1"), ("b", "")])).unwrap();
    every_other_length_is_refused(&good, decode_context);
    assert_eq!(
        decode_context(&[2, 0, 0, 0, 1, 0, 0, 0, b'b', 0, 0, 0, 0, 1, 0, 0, 0, b'a', 0, 0, 0, 0]),
        Err(Refusal::Malformed)
    );
    assert_eq!(decode_context(&[0xff; 12]), Err(Refusal::Malformed));
}

#[test]
fn what_is_sealed_opens_again_and_stands_twice() {
    for suite in SUITES {
        let (bytes, tag) = record().seal(&system_key(), suite, &Counting::default()).unwrap();
        let opened = open(&bytes).unwrap();
        assert_eq!((&*opened.record, opened.tag, opened.both_copies_good), (&record(), tag, true));
        assert_eq!(bytes.len() % (2 * UNIT_ALIGN_BYTES), 0);
    }
    let (bytes, tag) = sealed_system();
    let opened = open_system(&bytes).unwrap();
    assert_eq!((&*opened.record, opened.tag, opened.both_copies_good), (&system_record(), tag, true));
    assert_eq!(bytes.len() % (2 * UNIT_ALIGN_BYTES), 0);
}

#[test]
fn a_record_has_one_length() {
    let bytes = record().encode();
    for len in 0..bytes.len() {
        assert!(KeyFile::decode(&bytes[..len]).is_err());
    }
    let mut padded = bytes;
    padded.resize(padded.len() + UNIT_ALIGN_BYTES - 1, 0);
    assert_eq!(KeyFile::decode(&padded), Ok(record()));
    padded.push(0);
    assert_eq!(KeyFile::decode(&padded), Err(Refusal::Malformed), "padding that is more than padding");
    padded.truncate(padded.len() - 2);
    padded.push(1);
    assert_eq!(KeyFile::decode(&padded), Err(Refusal::Malformed), "padding that says something");
}

#[test]
fn either_copy_alone_is_enough_and_the_damage_is_told() {
    // A failure would lose a whole table to one bad sector, or hide that one copy is gone.
    for (bytes, open) in [(sealed().0, open as fn(&[u8]) -> Result<OpenedKeyFile>), (sealed_system().0, open_system)] {
        let middle = bytes.len() / 2;
        for byte in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 0x10;
            let opened = open(&damaged).unwrap();
            assert!(!opened.both_copies_good, "byte {byte}");
            damaged[(byte + middle) % bytes.len()] ^= 0x10;
            assert_eq!(refusal(open(&damaged)), ErrorKind::BitRot, "byte {byte} in both");
        }
        for half in [0..middle, middle..bytes.len()] {
            let mut damaged = bytes.clone();
            damaged[half].fill(0);
            assert!(!open(&damaged).unwrap().both_copies_good);
        }
        for len in 0..bytes.len() {
            match open(&bytes[..len]) {
                Ok(opened) => assert!(len >= middle && !opened.both_copies_good, "{len} bytes"),
                Err(error) => assert!(len < middle, "{len} bytes: {error}"),
            }
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(!open(&longer).unwrap().both_copies_good);
    }
}

#[test]
fn halves_of_two_versions_are_tampering() {
    let entropy = Counting::default();
    let later = KeyFile { version: 6, ..record() };
    let (one, _) = record().seal(&system_key(), Suite::Aes256Gcm, &entropy).unwrap();
    let (two, _) = later.seal(&system_key(), Suite::Aes256Gcm, &entropy).unwrap();
    let middle = one.len() / 2;
    let mixed = [&one[..middle], &two[middle..]].concat();
    assert_eq!(refusal(open(&mixed)), ErrorKind::Tampering);
}

#[test]
fn a_key_file_of_another_table_or_key_is_refused() {
    let bytes = sealed().0;
    let of = |system: &TableKey, table| refusal(KeyFile::open(&bytes, system, table, &here()));
    assert_eq!(of(&system_key(), TableId::from_bytes([9; 16])), ErrorKind::Tampering);
    assert_eq!(of(&key_of(9, STORE, TableId::SYSTEM, 1), TABLE), ErrorKind::WrongKey);
    assert_eq!(of(&key_of(1, StoreId::from_bytes([9; 16]), TableId::SYSTEM, 1), TABLE), ErrorKind::Tampering);
    assert_eq!(refusal(open(&sealed_system().0)), ErrorKind::Tampering, "the system key's file");
}

#[test]
fn the_system_keys_record_is_not_believed_without_its_tag() {
    // A failure would let whoever can write the directory choose the master key that guards the store.
    let (bytes, _) = sealed_system();
    let middle = bytes.len() / 2;
    let mut unit = bytes[..middle].to_vec();
    let at = unit.windows(5).position(|window| window == b"local").unwrap();
    unit[at] = b'L';
    let crc = crate::format::codec::crc32(&[&unit[HEADER_BYTES..HEADER_BYTES + 4], &unit[HEADER_BYTES + 8..]]);
    unit[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&crc.to_le_bytes());
    let changed = [&unit[..], &unit[..]].concat();
    let file = SystemKeyFile::decode_unauthenticated(&changed, &here()).unwrap();
    assert!(file.unauthenticated().wraps[0].key_arn.contains("Local"));
    assert_eq!(refusal(file.authenticate(&system_key(), &here())), ErrorKind::Tampering);
    let mixed = [&unit[..], &bytes[middle..]].concat();
    assert_eq!(refusal(SystemKeyFile::decode_unauthenticated(&mixed, &here())), ErrorKind::Tampering);

    let file = SystemKeyFile::decode_unauthenticated(&bytes, &here()).unwrap();
    assert_eq!((file.header().store, file.header().generation), (STORE, Generation(1)));
    assert_eq!(refusal(file.authenticate(&key_of(9, STORE, TableId::SYSTEM, 1), &here())), ErrorKind::WrongKey);
}

#[test]
fn a_record_that_could_not_be_read_again_is_not_written() {
    let refused = |change: &dyn Fn(&mut KeyFile)| {
        let mut record = record();
        change(&mut record);
        refusal(record.seal(&system_key(), Suite::Aes256Gcm, &Counting::default()))
    };
    assert_eq!(refused(&|record| record.wraps.clear()), ErrorKind::InvalidArgument);
    assert_eq!(refused(&|record| record.wraps.swap(0, 1)), ErrorKind::InvalidArgument);
    assert_eq!(refused(&|record| record.wraps[0].wrapped = vec![0; WRAPPED_BYTES_MAX + 1]), ErrorKind::InvalidArgument);
    assert_eq!(
        refused(&|record| record.wraps[0].key_arn = "x".repeat(KEY_ARN_BYTES_MAX + 1)),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        refused(&|record| record.wraps[0].context = pairs(&[("a", "1"), ("a", "2")])),
        ErrorKind::InvalidArgument
    );
    let foreign = SystemKeyFile::seal(
        &system_record(),
        &key_of(9, STORE, TableId::SYSTEM, 1),
        Suite::Aes256Gcm,
        &Counting::default(),
    );
    assert_eq!(refusal(foreign), ErrorKind::InvalidArgument);
}

#[test]
fn unknown_states_and_kinds_are_refused_by_name() {
    let mut bytes = record().encode();
    bytes[24] = 4;
    assert_eq!(KeyFile::decode(&bytes), Err(Refusal::Unknown { what: "key state", number: 4 }));
    let mut bytes = record().encode();
    bytes[33] = 4;
    assert_eq!(KeyFile::decode(&bytes), Err(Refusal::Unknown { what: "master key kind", number: 4 }));
}
