//! Seal and open: the key hierarchy below a table's key, seal-once places, and the proof that a tag was checked.
//!
//! ```text
//! table key      32 random bytes of one generation of a table, unwrapped by a key provider      TableKey
//!   │
//!   ├─ Expand "strongroom pin  " + store, table, generation ............ commitment, pinned      Commitment
//!   │
//!   ├─ Expand "strongroom trail" + store, table, generation ............ (system key) chain key  TrailKey
//!   │
//!   ├─ Extract(salt) then Expand "strongroom file " + identity ......... file key                FileKey, SealingKey
//!   │     ├─ Expand "strongroom head " + header bytes .................. header tag, 16 bytes
//!   │     └─ Expand "strongroom block" + ordinal ....................... block key, nonce 0: seals one frame
//!   │
//!   └─ Extract(salt) then Expand "strongroom strm " + identity ......... stream key              StreamKey, StreamSealer
//!         └─ nonce = ordinal ........................................... seals one frame per ordinal
//!
//! any secret     a master key, or what a passphrase was stretched to
//!   ├─ Extract(salt) then Expand "strongroom once " + suite, purpose ... one-time key, nonce 0    seal_once
//!   └─ Extract(salt) then Expand "strongroom chck" ..................... says whether the key is right
//!
//! identity = format version, suite, store, table, generation, file kind, file number    (fixed width; see kdf.rs)
//! ```
//!
//! Everything is HKDF-SHA256. **Each label stands for one use**, so that no two uses can ever get the same key: a
//! commitment is published beside the data and must say nothing about a file key; the header tag covers bytes in clear
//! and must not share a key with a frame; a log's stream key and a file's block keys seal under different nonce rules,
//! so a file that is both must not share keys. The identity is in every derivation, so a frame carried to another
//! file, table, store, kind, generation or suite meets another key, and its tag is wrong.
//!
//! # Why a key per block, and why not for the log
//! A sorted table's frames are read one by one, in any order, by readers that know nothing but an ordinal. One key per
//! frame makes "nonce used twice" impossible to even write down, and costs two hash compressions and one cipher
//! set-up. A log frame is often smaller than that costs, so a log segment has one ready key per table, and the ordinal as
//! nonce.
//!
//! # What keeps a (key, nonce) pair from sealing twice
//! Only a [`SealingKey`] or a [`StreamSealer`] can seal, both exist only for a salt that was drawn freshly
//! ([`Ordinals::fresh`]), and each seal consumes a [`Place`], which [`Ordinals::take`] gives out once. A [`FileKey`] or
//! [`StreamKey`] made from a salt that was read from disk opens and never seals. Builds with debug assertions can record
//! every pair (`audit.rs`), and the crash tests assert that none repeats.
//!
//! # What comes back from opening
//! [`Authentic`]: it is made in this folder alone and only behind a checked tag. Buffers are [`Wiped`] when dropped, and a
//! buffer that failed to open is dropped here and never seen.
//!
//! # What this part leaves to others
//! What goes into the associated data and where frames lie (`format`), who may have a key (`keys`), and everything about
//! files: nothing here does I/O or reads a clock.

mod authentic;
mod hierarchy;
mod kdf;
mod once;
mod passphrase;
mod place;
mod secret;
mod stream;
mod suite;
mod wiped;

#[cfg(debug_assertions)]
pub mod audit;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use subtle::ConstantTimeEq;

pub(crate) use authentic::Authentic;
pub(crate) use hierarchy::{FileKey, SealingKey, TableKey, TrailKey};
pub(crate) use kdf::FORMAT_VERSION;
pub(crate) use once::{ONCE_OVERHEAD_BYTES, Refused, open_once, seal_once};
pub(crate) use passphrase::Stretching;
pub(crate) use place::{Ordinals, Place, Places};
pub(crate) use secret::{SameProcess, Secret};
pub(crate) use stream::{StreamKey, StreamSealer};
pub(crate) use suite::Suite;
pub(crate) use wiped::Wiped;

use crate::io::Entropy;

/// Every tag is this many bytes long, in every suite.
pub(crate) const TAG_BYTES: usize = 16;

/// What a seal leaves beside the ciphertext.
pub(crate) type Tag = [u8; TAG_BYTES];

/// A tag is not the one that was sealed here: the bytes, the place, the associated data or the key differ.
///
/// Which of these it was cannot be known; that the key is right is what the [`Commitment`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NotAuthentic;

/// 32 random bytes that make one file instance's keys its own. Stands in clear in the file's header.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Salt([u8; 32]);

impl Salt {
    /// A salt that was never used before.
    pub(crate) fn fresh(entropy: &dyn Entropy) -> io::Result<Salt> {
        let mut bytes = [0; 32];
        entropy.fill(&mut bytes)?;
        Ok(Salt(bytes))
    }

    /// The salt with these bytes, which were read from disk.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Salt {
        Salt(bytes)
    }

    /// The 32 bytes.
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, "Salt", &self.0)
    }
}

/// Says which key something was sealed under without saying anything about the key.
///
/// Two keys with one commitment would be a SHA-256 collision, so a *wrong key* is told from a *wrong tag* before any
/// tag is looked at. Compares in constant time.
#[derive(Clone, Copy)]
pub(crate) struct Commitment([u8; 32]);

impl Commitment {
    /// The commitment with these bytes, which were read from disk.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Commitment {
        Commitment(bytes)
    }

    /// The 32 bytes.
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Commitment {
    fn eq(&self, other: &Commitment) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Commitment {}

impl fmt::Debug for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, "Commitment", &self.0)
    }
}

fn hex(f: &mut fmt::Formatter<'_>, name: &str, bytes: &[u8]) -> fmt::Result {
    write!(f, "{name}(")?;
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
    write!(f, ")")
}
