//! An embedded, encrypted key-value storage engine: an LSM tree in which every table is sealed under a key of its own, and
//! that key is wrapped by a master key which never has to enter the process.
//!
//! It is the key hierarchy of Amazon DynamoDB's encryption at rest, inside one process. A key per table means that a
//! tenant's table can be dropped so that nobody reads it again, and that a key which is disabled at its provider takes down that table
//! and nothing else. Nothing that the engine writes into a store stands there in clear: no key, no value, no table name.
//!
//! # A program
//!
//! ```
//! use strongroom::{Durability, LocalKms, Store, TableOptions, Unlock};
//!
//! fn main() -> strongroom::Result<()> {
//! #   let folder = tempfile::tempdir().expect("a temporary folder");
//! #   std::env::set_current_dir(&folder).expect("to enter it");
//!     // The keyring lies outside the store: a key beside the data protects nothing.
//!     let kms = LocalKms::create("my.keyring", Unlock::passphrase("correct horse battery staple"))?;
//!     let store = Store::builder("my-store").key_provider(kms).create()?;
//!     let ratings = store.create_table("ratings", TableOptions::new())?;
//!
//!     ratings.put_with("ada#2026", "5", Durability::Sync)?;
//!     for entry in ratings.prefix("ada#") {
//!         let (key, value) = entry?;
//!         println!("{} = {}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value));
//!     }
//!     store.close()
//! }
//! ```
//!
//! The next time, [`LocalKms::open`] and [`Builder::open`] find everything again. [`Store::temporary`] is a store in memory, for tests.
//!
//! # Where to read on
//! - [`Store`], [`Table`], [`Batch`], [`Snapshot`] and [`Cursor`]: the face of the engine.
//! - [`Store::session`]: the same store for several [`Principal`]s, each under permits of his own; [`Authorizer`]: who may do what with which keys.
//! - [`KeyProvider`]: how to keep master keys somewhere else. [`LocalKms`]: the provider that comes with the crate. Behind features:
//!   `keys::Pkcs11Provider` (an HSM), `keys::AwsKms`. For tests: [`keys::faulty`].
//! - [`Error`]: every error says what to do about it ([`Error::advice`]).
//! - [`inspect`]: checks a store from outside, with its key or without any.
//! - `ARCHITECTURE.md`, `docs/FORMAT.md` and `docs/THREATS.md` in the repository.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "unit tests use threads, clocks and files of their own; clippy sees the library without `test` too"
    )
)]

pub mod error;
pub mod event;
pub mod inspect;
pub mod io;
pub mod keys;
pub mod metrics;
pub mod options;
pub mod types;

mod compaction;
mod crypto;
mod cursor;
mod db;
mod format;
mod memtable;
mod merge;
mod sstable;
mod sync;
mod trace;
mod value;
mod version;
mod wal;

pub use db::{
    AccessKeys, AccessRequest, Action, Anchor, Authorizer, Batch, Builder, Cursor, Delay, EntryRef, EpochAnchor,
    GenerationReport, KeyChange, KeyReport, Keys, Range, RecoveryReport, RewrapReport, Rotation, RotationProgress,
    SealedBytes, Snapshot, SseDescription, SseStatus, SseType, Store, Table, TableDescription, TableStatus,
};
pub use error::{Error, ErrorKind, Result};
pub use io::os::KeyMemory;
pub use keys::{KeyProvider, LocalKms, Principal, Unlock};
pub use metrics::Metrics;
pub use options::{Cipher, Compression, Durability, MasterKey, StoreOptions, TableOptions, TrailOptions};
pub use value::Value;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;

#[cfg(debug_assertions)]
#[doc(hidden)]
pub use crypto::audit as crypto_audit;

/// The example of the README compiles, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
