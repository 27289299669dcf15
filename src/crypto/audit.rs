//! A record of every (key, nonce) pair that seals, for tests: no pair may ever be seen twice.
//!
//! Compiled only with debug assertions. It is per thread, because a simulated store runs on one thread, crashes and all,
//! and other tests run beside it.

use std::cell::RefCell;

use sha2::{Digest, Sha256};

use super::suite::NonceBytes;

/// SHA-256 of the key, the nonce, and 4 zero bytes.
pub type Pair = [u8; 32 + 16];

pub(super) type Fingerprint = [u8; 32];

thread_local!(static SEALED: RefCell<Option<Vec<Pair>>> = const { RefCell::new(None) });

/// Forget what was recorded on this thread, and record from now on.
pub fn start() {
    SEALED.set(Some(Vec::new()));
}

/// Every pair that sealed on this thread since [`start`], in order; recording ends.
pub fn finish() -> Vec<Pair> {
    SEALED.take().unwrap_or_default()
}

/// What stands for the suite without a key.
#[cfg(strongroom_plaintext_baseline)]
pub(super) const NONE: Fingerprint = [0; 32];

pub(super) fn fingerprint(key: &[u8; 32]) -> Fingerprint {
    Sha256::digest(key).into()
}

pub(super) fn record(key: &Fingerprint, nonce: &NonceBytes) {
    SEALED.with_borrow_mut(|sealed| {
        if let Some(sealed) = sealed {
            let mut pair = [0; 48];
            pair[..32].copy_from_slice(key);
            pair[32..44].copy_from_slice(nonce);
            sealed.push(pair);
        }
    });
}
