//! Strongroom: an embedded, encrypted key-value storage engine.

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
mod value;
mod version;
mod wal;

pub use db::{
    Anchor, Batch, Builder, Cursor, EntryRef, EpochAnchor, Keys, Range, RecoveryReport, Snapshot, SseDescription,
    SseStatus, SseType, Store, Table, TableDescription, TableStatus,
};
pub use error::{Error, ErrorKind, Result};
pub use keys::{KeyProvider, LocalKms, Unlock};
pub use options::{Cipher, Compression, Durability, MasterKey, StoreOptions, TableOptions};
pub use value::Value;

#[cfg(debug_assertions)]
#[doc(hidden)]
pub use crypto::audit as crypto_audit;
