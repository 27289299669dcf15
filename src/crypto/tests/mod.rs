//! The rules of sealing, each broken on purpose, and what the hierarchy promises.

mod golden;
mod places;
mod vectors;
mod wiping;

use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::*;
use crate::error::ErrorKind;
use crate::types::{FileKind, FileNumber, Generation, StoreId, TableId};

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// Bytes that repeat from run to run, and never within one.
#[derive(Debug, Default)]
struct Seeded {
    calls: AtomicU64,
}

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        for chunk in bytes.chunks_mut(32) {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            chunk.copy_from_slice(&Sha256::digest(call.to_le_bytes())[..chunk.len()]);
        }
        Ok(())
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// Everything that identifies a frame.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Address {
    secret: u8,
    store: u8,
    table: u8,
    generation: u32,
    suite: Suite,
    kind: FileKind,
    number: u64,
    salt: Salt,
    ordinal: u64,
    aad: &'static [u8],
}

impl Address {
    fn table_key(&self) -> TableKey {
        TableKey::new(
            Secret::fill_with(|bytes| bytes.fill(self.secret)),
            StoreId::from_bytes([self.store; 16]),
            TableId::from_bytes([self.table; 16]),
            Generation(self.generation),
        )
    }

    fn file_key(&self) -> FileKey {
        self.table_key().file_key(self.suite, self.kind, FileNumber(self.number), &self.salt)
    }

    fn stream_key(&self) -> StreamKey {
        self.table_key().stream_key(self.suite, self.kind, FileNumber(self.number), &self.salt)
    }

    /// The same address with each field changed in turn.
    fn neighbours(&self) -> Vec<Address> {
        let other_suite = match self.suite {
            Suite::Aes256Gcm => Suite::ChaCha20Poly1305,
            _ => Suite::Aes256Gcm,
        };
        let mut other_salt = *self.salt.as_bytes();
        other_salt[31] ^= 1;
        vec![
            Address { secret: self.secret + 1, ..*self },
            Address { store: self.store + 1, ..*self },
            Address { table: self.table + 1, ..*self },
            Address { generation: self.generation + 1, ..*self },
            Address { suite: other_suite, ..*self },
            Address { kind: FileKind::Parked, ..*self },
            Address { number: self.number + 1, ..*self },
            Address { salt: Salt::from_bytes(other_salt), ..*self },
            Address { ordinal: self.ordinal + 1, ..*self },
            Address { aad: b"somewhere else", ..*self },
        ]
    }
}

fn address(suite: Suite, kind: FileKind, salt: Salt, ordinal: u64) -> Address {
    Address {
        secret: 1,
        store: 2,
        table: 3,
        generation: 4,
        suite,
        kind,
        number: 5,
        salt,
        ordinal,
        aad: b"where it stands",
    }
}

const PLAINTEXT: &[u8] = b"what nobody may read";

fn sealed(body: &[u8], tag: &Tag) -> Wiped {
    Wiped::from([body, tag].concat())
}

/// A frame under a block key, and where it belongs.
fn block_frame(suite: Suite) -> (Address, Vec<u8>, Tag) {
    let start = address(suite, FileKind::Table, Salt::from_bytes([0; 32]), 0);
    let key = start.table_key().sealing_key(suite, start.kind, FileNumber(start.number), &Seeded::default()).unwrap();
    drop(key.take());
    let place = key.take().unwrap();
    let end = Address { salt: *key.salt(), ordinal: place.ordinal(), ..start };
    let mut body = PLAINTEXT.to_vec();
    let tag = key.seal(place, end.aad, &mut body).unwrap();
    (end, body, tag)
}

/// A frame under a stream key, and where it belongs.
fn stream_frame(suite: Suite) -> (Address, Vec<u8>, Tag) {
    let start = address(suite, FileKind::Log, Salt::from_bytes([0; 32]), 0);
    let ordinals = Ordinals::fresh(start.kind, FileNumber(start.number), &Seeded::default()).unwrap();
    drop(ordinals.take());
    let place = ordinals.take().unwrap();
    let end = Address { salt: *ordinals.salt(), ordinal: place.ordinal(), ..start };
    let mut body = PLAINTEXT.to_vec();
    let tag = start.table_key().stream_sealer(suite, &ordinals).seal(place, end.aad, &mut body).unwrap();
    (end, body, tag)
}

#[test]
fn frame_opens_at_its_own_place_and_shows_the_body_alone() {
    // Otherwise nothing that was stored could be read.
    for suite in SUITES {
        let (place, body, tag) = block_frame(suite);
        assert_ne!(body, PLAINTEXT);
        let opened = place.file_key().open(place.ordinal, place.aad, sealed(&body, &tag)).unwrap();
        assert_eq!(&**opened, PLAINTEXT);

        let (place, body, tag) = stream_frame(suite);
        let framed =
            Wiped::from([b"the head", &body[..], &tag].concat()).window(8..8 + body.len() + TAG_BYTES).unwrap();
        let opened = place.stream_key().open(place.ordinal, place.aad, framed).unwrap();
        assert_eq!(&**opened, PLAINTEXT);
    }
}

#[test]
fn frame_moved_to_any_other_place_does_not_open() {
    // Otherwise whoever writes the disk could answer one question with the answer to another.
    for suite in SUITES {
        let (place, body, tag) = block_frame(suite);
        for other in place.neighbours() {
            let outcome = other.file_key().open(other.ordinal, other.aad, sealed(&body, &tag));
            assert_eq!(outcome.err(), Some(NotAuthentic), "{other:?}");
        }
        let (place, body, tag) = stream_frame(suite);
        for other in place.neighbours() {
            let outcome = other.stream_key().open(other.ordinal, other.aad, sealed(&body, &tag));
            assert_eq!(outcome.err(), Some(NotAuthentic), "{other:?}");
        }
    }
}

#[test]
fn stream_frame_does_not_open_under_the_file_key_of_the_same_identity() {
    // Otherwise a key under which nonces count could meet a key whose nonce is always zero.
    for suite in SUITES {
        let (place, body, tag) = stream_frame(suite);
        let outcome = place.file_key().open(place.ordinal, place.aad, sealed(&body, &tag));
        assert_eq!(outcome.err(), Some(NotAuthentic));
    }
}

#[test]
fn frame_with_any_bit_changed_does_not_open() {
    // Otherwise a changed value would be handed out as the stored one.
    for suite in SUITES {
        let (place, body, tag) = block_frame(suite);
        let frame = [&body[..], &tag].concat();
        let key = place.file_key();
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(place.ordinal, place.aad, changed.into()).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(key.open(place.ordinal, place.aad, frame[..len].to_vec().into()).is_err(), "{len} bytes");
        }
    }
}

#[test]
fn commitment_tells_every_identity_apart() {
    // Otherwise the key of another table or generation would pass for the right one, and its tags for tampering.
    let base = address(Suite::Aes256Gcm, FileKind::Table, Salt::from_bytes([0; 32]), 0);
    let own = *base.table_key().commitment();
    assert_eq!(own, *base.table_key().commitment());
    assert_eq!(own, Commitment::from_bytes(*own.as_bytes()));
    for other in base.neighbours().into_iter().take(4) {
        assert_ne!(own, *other.table_key().commitment(), "{other:?}");
    }
}

#[test]
fn wrong_key_and_tampering_are_told_apart() {
    // Otherwise a user with the wrong keyring would be told to restore a backup.
    let (place, mut body, tag) = block_frame(Suite::Aes256Gcm);
    let pinned = *place.table_key().commitment();

    let wrong = Address { secret: 9, ..place }.table_key();
    assert_ne!(*wrong.commitment(), pinned);

    body[0] ^= 1;
    assert_eq!(*place.table_key().commitment(), pinned);
    assert!(place.file_key().open(place.ordinal, place.aad, sealed(&body, &tag)).is_err());
}

#[test]
fn header_of_another_file_or_with_a_changed_bit_is_refused() {
    // Otherwise a file could be passed off as another kind, suite or generation before any frame is read.
    for suite in SUITES {
        let start = address(suite, FileKind::Table, Salt::from_bytes([0; 32]), 0);
        let key =
            start.table_key().sealing_key(suite, start.kind, FileNumber(start.number), &Seeded::default()).unwrap();
        let place = Address { salt: *key.salt(), ..start };
        let header = *b"a header in clear";
        let tag = key.header_tag(&header);
        assert_eq!(place.file_key().check_header(&header, &tag), Ok(()));
        for bit in 0..header.len() * 8 {
            let mut changed = header;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(place.file_key().check_header(&changed, &tag), Err(NotAuthentic));
        }
        for other in place.neighbours().into_iter().take(8) {
            assert_eq!(other.file_key().check_header(&header, &tag), Err(NotAuthentic), "{other:?}");
        }
    }
}

#[test]
fn unknown_suites_are_refused_and_plaintext_is_one_of_them() {
    // Otherwise a header could talk a reader into trusting what nobody sealed.
    let known: Vec<u8> = (0..=255).filter(|number| Suite::from_u8(*number).is_some()).collect();
    if cfg!(strongroom_plaintext_baseline) {
        assert_eq!(known, [1, 2, 0x80]);
    } else {
        assert_eq!(known, [1, 2]);
        assert_eq!(Suite::from_u8(0x80), None);
    }
    for number in [1, 2] {
        assert_eq!(Suite::from_u8(number).unwrap() as u8, number);
    }
}

#[cfg(strongroom_plaintext_baseline)]
#[test]
fn plaintext_baseline_keeps_the_layout_and_has_a_tag_of_zeros() {
    // Otherwise the cost of encryption would be measured against something else.
    let (place, body, tag) = block_frame(Suite::None);
    assert_eq!((&body[..], tag), (PLAINTEXT, [0; TAG_BYTES]));
    assert_eq!(&**place.file_key().open(place.ordinal, place.aad, sealed(&body, &tag)).unwrap(), PLAINTEXT);
    assert!(place.file_key().open(place.ordinal, place.aad, sealed(&body, &[1; TAG_BYTES])).is_err());
    assert_eq!(place.file_key().check_header(b"a header", &[0; TAG_BYTES]), Ok(()));
    let (_, body, tag) = stream_frame(Suite::None);
    assert_eq!((&body[..], tag), (PLAINTEXT, [0; TAG_BYTES]));
}

#[test]
fn suite_asked_for_is_the_suite_taken() {
    // Otherwise a table would say one thing and be sealed with another.
    use crate::options::Cipher;
    assert_eq!(Suite::choose(Some(Cipher::Aes256Gcm)), Suite::Aes256Gcm);
    assert_eq!(Suite::choose(Some(Cipher::ChaCha20Poly1305)), Suite::ChaCha20Poly1305);
    assert!(SUITES.contains(&Suite::choose(None)));
}

#[test]
fn message_opens_for_its_secret_purpose_and_data_alone() {
    // Otherwise a wrapped key would open with another context, or a keyring under another passphrase.
    let secret = Secret::fill_with(|bytes| bytes.fill(7));
    let other = Secret::fill_with(|bytes| bytes.fill(8));
    let entropy = Seeded::default();
    let message = seal_once(&secret, "wrap", b"context", PLAINTEXT, &entropy).unwrap();
    assert_eq!(message.len(), PLAINTEXT.len() + ONCE_OVERHEAD_BYTES);
    assert_eq!(&**open_once(&secret, "wrap", b"context", &message).unwrap(), PLAINTEXT);

    assert_eq!(open_once(&other, "wrap", b"context", &message).unwrap_err(), Refused::WrongKey);
    assert_eq!(open_once(&secret, "ring", b"context", &message).unwrap_err(), Refused::NotAuthentic);
    assert_eq!(open_once(&secret, "wrap", b"another", &message).unwrap_err(), Refused::NotAuthentic);
    for byte in 0..message.len() {
        let mut changed = message.clone();
        changed[byte] ^= 0x10;
        let expected = if byte < 64 { Refused::WrongKey } else { Refused::NotAuthentic };
        assert_eq!(open_once(&secret, "wrap", b"context", &changed).unwrap_err(), expected, "byte {byte}");
        assert!(open_once(&secret, "wrap", b"context", &message[..byte]).is_err(), "{byte} bytes");
    }
    assert_ne!(message, seal_once(&secret, "wrap", b"context", PLAINTEXT, &entropy).unwrap());
}

#[test]
fn stretching_outside_the_limits_is_refused_before_any_work() {
    // Otherwise a changed keyring could exhaust the machine that opens it, or make guessing cheap.
    for (memory_kib, passes, lanes, kind) in [
        ((1 << 20) + 1, 3, 4, ErrorKind::LimitExceeded),
        (u32::MAX, u32::MAX, u32::MAX, ErrorKind::LimitExceeded),
        (64 << 10, 17, 4, ErrorKind::LimitExceeded),
        (64 << 10, 3, 17, ErrorKind::LimitExceeded),
        ((19 << 10) - 1, 3, 4, ErrorKind::InvalidArgument),
        (64 << 10, 0, 4, ErrorKind::InvalidArgument),
        (64 << 10, 3, 0, ErrorKind::InvalidArgument),
    ] {
        assert_eq!(Stretching::new(memory_kib, passes, lanes).unwrap_err().kind(), kind);
    }
    for setting in [Stretching::DEFAULT, Stretching::LEAST, Stretching::new(1 << 20, 16, 16).unwrap()] {
        assert_eq!(Stretching::decode(&setting.encode()).unwrap(), setting);
    }
    assert!(Stretching::decode(&[0xff; 12]).is_err());
}

#[test]
fn nothing_that_is_printed_shows_a_secret() {
    // Otherwise a log would hold the key.
    let secret = Secret::fill_with(|bytes| bytes.fill(0xab));
    assert!(secret.ct_eq(&Secret::fill_with(|bytes| bytes.fill(0xab))));
    assert!(!secret.ct_eq(&Secret::fill_with(|bytes| bytes.fill(0xac))));
    let printed = format!("{secret:?} {:?}", Wiped::from(vec![0xab; 8]));
    let table = Address { secret: 0xab, ..address(Suite::Aes256Gcm, FileKind::Log, Salt::from_bytes([0; 32]), 0) };
    let printed = format!("{printed} {:?} {:?} {:?}", table.table_key(), table.file_key(), table.stream_key());
    assert!(!printed.contains("abab") && !printed.contains("171"), "{printed}");
}
