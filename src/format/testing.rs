//! What the tests of this folder share: fixed keys, entropy that counts, and sweeps over damaged bytes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::crypto::{Secret, Suite, TableKey};
use crate::error::{ErrorKind, Result};
use crate::format::codec::Where;
use crate::io::Entropy;
use crate::types::{Generation, StoreId, TableId};

pub(crate) const STORE: StoreId = StoreId::from_bytes(*b"a store for test");
pub(crate) const TABLE: TableId = TableId::from_bytes(*b"a table for test");
pub(crate) const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

pub(crate) fn here() -> Where<'static> {
    Where::new("file", 0)
}

pub(crate) fn key_of(fill: u8, store: StoreId, table: TableId, generation: u32) -> TableKey {
    TableKey::new(Secret::fill_with(|bytes| bytes.fill(fill)), store, table, Generation(generation))
}

pub(crate) fn system_key() -> TableKey {
    key_of(1, STORE, TableId::SYSTEM, 1)
}

pub(crate) fn table_key() -> TableKey {
    key_of(2, STORE, TABLE, 3)
}

/// Bytes that never change and never repeat within 2^64 calls, so that golden files can be written again.
#[derive(Debug, Default)]
pub(crate) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        for chunk in bytes.chunks_mut(8) {
            let number = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
        Ok(())
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// Bytes that do not repeat soon and do not compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Every single-bit flip of `bytes` makes `open` fail, and is reported as rot: the flip left the CRC as it was.
#[track_caller]
pub(crate) fn every_flip_is_refused<T>(bytes: &[u8], open: impl Fn(&[u8]) -> Result<T>) {
    assert!(open(bytes).is_ok(), "the bytes open as they are");
    let mut damaged = bytes.to_vec();
    for bit in 0..8 * bytes.len() {
        damaged[bit / 8] ^= 1 << (bit % 8);
        match open(&damaged) {
            Ok(_) => panic!("bit {bit} of {} may be flipped unnoticed", 8 * bytes.len()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::BitRot, "bit {bit}: {error}"),
        }
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Every truncation of `bytes`, and a byte more, make `open` fail.
#[track_caller]
pub(crate) fn every_other_length_is_refused<T, E>(bytes: &[u8], open: impl Fn(&[u8]) -> Result<T, E>) {
    assert!(open(bytes).is_ok(), "the bytes open as they are");
    for len in 0..bytes.len() {
        assert!(open(&bytes[..len]).is_err(), "{len} of {} bytes are enough", bytes.len());
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(open(&longer).is_err(), "a byte more is accepted");
}

/// The kind of error, which there must be.
#[track_caller]
pub(crate) fn refusal<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.kind(),
    }
}
