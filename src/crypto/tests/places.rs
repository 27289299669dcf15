//! No (key, nonce) pair seals twice: salts, places, and the limits of both.

use std::collections::HashSet;

use super::*;
use crate::error::Error;
use crate::types::FRAME_BYTES_MAX;

#[test]
fn every_instance_of_a_file_has_a_salt_and_ciphertext_of_its_own() {
    // Otherwise a file written again after a failure would seal twice under one key.
    let entropy = Seeded::default();
    let table = address(Suite::Aes256Gcm, FileKind::Table, Salt::from_bytes([0; 32]), 0).table_key();
    let mut seen = HashSet::new();
    for _ in 0..100 {
        let key = table.sealing_key(Suite::Aes256Gcm, FileKind::Table, FileNumber(5), &entropy).unwrap();
        let mut body = PLAINTEXT.to_vec();
        key.seal(key.take().unwrap(), b"", &mut body).unwrap();
        assert!(seen.insert(key.salt().as_bytes().to_vec()));
        assert!(seen.insert(body));
    }
}

#[test]
#[should_panic(expected = "another file")]
fn place_of_another_file_instance_is_refused() {
    // Otherwise one file's counter could repeat an ordinal of another.
    let entropy = Seeded::default();
    let table = address(Suite::Aes256Gcm, FileKind::Table, Salt::from_bytes([0; 32]), 0).table_key();
    let one = table.sealing_key(Suite::Aes256Gcm, FileKind::Table, FileNumber(5), &entropy).unwrap();
    let two = table.sealing_key(Suite::Aes256Gcm, FileKind::Table, FileNumber(5), &entropy).unwrap();
    let _ = two.seal(one.take().unwrap(), b"", &mut []);
}

#[test]
#[should_panic(expected = "logs alone")]
fn stream_key_does_not_seal_where_ordinals_go_on_for_ever() {
    // Otherwise a stream key could seal more often than its cipher allows.
    let table = address(Suite::Aes256Gcm, FileKind::Log, Salt::from_bytes([0; 32]), 0).table_key();
    let ordinals = Ordinals::fresh(FileKind::Table, FileNumber(5), &Seeded::default()).unwrap();
    let _ = table.stream_sealer(Suite::Aes256Gcm, &ordinals);
}

#[test]
fn ordinals_run_out_with_an_error_and_never_start_again() {
    // Otherwise a log segment that grew too long would use a nonce twice.
    let ordinals = Ordinals::fresh(FileKind::Log, FileNumber(1), &Seeded::default()).unwrap();
    ordinals.skip_to((1 << 32) - 2);
    assert!(ordinals.take_run(3).is_err());
    assert_eq!(ordinals.take().unwrap().ordinal(), (1 << 32) - 2);
    assert_eq!(ordinals.take_run(1).unwrap().map(|place| place.ordinal()).collect::<Vec<_>>(), [(1 << 32) - 1]);
    for _ in 0..3 {
        let error = ordinals.take().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }
    assert_eq!(ordinals.taken(), 1 << 32);

    let ordinals = Ordinals::fresh(FileKind::Table, FileNumber(1), &Seeded::default()).unwrap();
    ordinals.skip_to(u64::MAX - 1);
    assert_eq!(ordinals.take().unwrap().ordinal(), u64::MAX - 1);
    assert!(ordinals.take().is_err());
    assert!(ordinals.take_run(u64::MAX).is_err());
}

#[test]
fn places_taken_by_many_threads_are_all_different() {
    // Otherwise two threads that seal at once could use one nonce.
    let ordinals = Ordinals::fresh(FileKind::Log, FileNumber(1), &Seeded::default()).unwrap();
    let mut taken: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|run| {
                let take = move |ordinals: &Ordinals| {
                    (0..200).flat_map(|_| ordinals.take_run(run).unwrap()).map(|place| place.ordinal()).collect()
                };
                let ordinals = &ordinals;
                scope.spawn(move || -> Vec<u64> { take(ordinals) })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    taken.sort_unstable();
    assert_eq!(taken, (0..2000).collect::<Vec<_>>());
}

#[test]
fn body_larger_than_a_frame_is_refused_with_an_error() {
    // Otherwise a frame that no reader accepts would be written.
    let table = address(Suite::Aes256Gcm, FileKind::Table, Salt::from_bytes([0; 32]), 0).table_key();
    let key = table.sealing_key(Suite::Aes256Gcm, FileKind::Table, FileNumber(5), &Seeded::default()).unwrap();
    key.seal(key.take().unwrap(), b"", &mut vec![0; FRAME_BYTES_MAX]).unwrap();
    let error = key.seal(key.take().unwrap(), b"", &mut vec![0; FRAME_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, Error::LimitExceeded { actual, .. } if actual == FRAME_BYTES_MAX as u64 + 1));
}

#[cfg(debug_assertions)]
#[test]
fn record_of_seals_shows_a_pair_that_is_used_twice() {
    // Otherwise the crash tests would assert nothing.
    use crate::crypto::suite::{Cipher, NONCE_ZERO};
    let table = address(Suite::Aes256Gcm, FileKind::Table, Salt::from_bytes([0; 32]), 0).table_key();
    audit::start();
    let key = table.sealing_key(Suite::Aes256Gcm, FileKind::Table, FileNumber(5), &Seeded::default()).unwrap();
    for _ in 0..10 {
        key.seal(key.take().unwrap(), b"", &mut [0; 100]).unwrap();
    }
    let ordinals = Ordinals::fresh(FileKind::Log, FileNumber(6), &Seeded::default()).unwrap();
    let sealer = table.stream_sealer(Suite::Aes256Gcm, &ordinals);
    for place in ordinals.take_run(10).unwrap() {
        sealer.seal(place, b"", &mut [0; 100]).unwrap();
    }
    let pairs = audit::finish();
    assert_eq!(pairs.len(), 20);
    assert_eq!(pairs.iter().collect::<HashSet<_>>().len(), 20);

    audit::start();
    for _ in 0..2 {
        Cipher::new(Suite::Aes256Gcm, &[1; 32]).seal(&NONCE_ZERO, b"", &mut [0; 100]).unwrap();
    }
    let pairs = audit::finish();
    assert_eq!(pairs[0], pairs[1]);
    assert!(audit::finish().is_empty());
}
