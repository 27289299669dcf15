use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::format::testing::*;

pub(crate) fn current(closed: bool) -> Current {
    Current {
        manifest: FileNumber(7),
        salt: Salt::from_bytes([5; 32]),
        epoch: Epoch(40),
        picture_end_bytes: 9000,
        picture_last_ordinal: 2,
        closed: closed.then_some(Closed { len_bytes: 10_000, last_tag: [6; 16], epoch: Epoch(43) }),
    }
}

fn sealed() -> Vec<u8> {
    current(true).seal(&system_key(), Suite::Aes256Gcm, &Counting::default()).unwrap()
}

fn open(bytes: &[u8]) -> Result<Authentic<Current>> {
    Current::open(bytes, &system_key(), &here())
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_encode_back(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..CURRENT_BYTES, to: u8, closed: bool) {
        let mut changed = current(closed).encode();
        changed[at] = to;
        for bytes in [bytes, changed] {
            if let Ok(current) = Current::decode(&bytes) {
                prop_assert_eq!(current.encode(), &bytes[..]);
            }
            prop_assert!(open(&bytes).is_err());
        }
    }
}

#[test]
fn what_is_sealed_opens_again() {
    for closed in [false, true] {
        for suite in SUITES {
            let bytes = current(closed).seal(&system_key(), suite, &Counting::default()).unwrap();
            assert_eq!(*open(&bytes).unwrap(), current(closed));
        }
        every_other_length_is_refused(&current(closed).encode(), Current::decode);
    }
}

#[test]
fn every_bit_and_the_length_matter() {
    every_flip_is_refused(&sealed(), open);
    every_other_length_is_refused(&sealed(), open);
}

#[test]
fn a_file_that_was_renamed_to_current_is_refused() {
    let entropy = Counting::default();
    let other = Current { manifest: FileNumber(8), ..current(false) };
    let mut bytes = Vec::new();
    let (kind, number) = (FileKind::Current, FileNumber(7));
    let mut sealer =
        FileSealer::create(&system_key(), Suite::Aes256Gcm, kind, number, TableId::SYSTEM, &entropy, &mut bytes)
            .unwrap();
    sealer.seal(FrameKind::Current, true, Compression::None, &other.encode(), &mut bytes).unwrap();
    assert_eq!(refusal(open(&bytes)), ErrorKind::Tampering, "header and content name different manifests");

    let mut bytes = Vec::new();
    let kind = FileKind::KeyFile;
    let mut sealer =
        FileSealer::create(&system_key(), Suite::Aes256Gcm, kind, number, TableId::SYSTEM, &entropy, &mut bytes)
            .unwrap();
    sealer.seal(FrameKind::KeyRecord, true, Compression::None, &current(false).encode(), &mut bytes).unwrap();
    assert_eq!(refusal(open(&bytes)), ErrorKind::Tampering, "another kind of file");
}

#[test]
fn another_key_is_a_wrong_key() {
    let opened = Current::open(&sealed(), &key_of(9, STORE, TableId::SYSTEM, 1), &here());
    assert_eq!(refusal(opened), ErrorKind::WrongKey);
}
