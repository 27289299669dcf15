//! The engines that can be compared, each behind a feature of its own, and what each of them promises.

#[cfg(feature = "fjall")]
mod fjall;
#[cfg(any(feature = "lmdb", feature = "lmdb-encrypted"))]
mod lmdb;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sqlcipher")]
mod sqlcipher;
mod strongroom;
#[cfg(feature = "surrealkv")]
mod surrealkv;

use ::strongroom::Cipher;

use crate::settings::Settings;
use crate::workload::Open;

/// An engine, as it is called on the command line.
pub struct Engine {
    pub name: &'static str,
    /// What is sealed, and how.
    pub encryption: &'static str,
    /// What survives when no sync is asked for.
    pub durability: &'static str,
    /// What notices that bytes were changed.
    pub integrity: &'static str,
    /// Where its settings differ from everybody's.
    pub differs: &'static str,
    /// How to open it.
    pub open: fn(&Settings) -> Box<Open>,
}

const LOG: &str = "log: end of the process";

/// Every engine of this build.
pub const ALL: &[Engine] = &[
    Engine {
        name: "none",
        encryption: "none (suite none, --baseline)",
        durability: LOG,
        integrity: "checksum per frame",
        differs: "",
        open: |settings| strongroom::open(settings, None),
    },
    Engine {
        name: "aes",
        encryption: "everything, AES-256-GCM",
        durability: LOG,
        integrity: "tag per frame, place bound",
        differs: "",
        open: |settings| strongroom::open(settings, Some(Cipher::Aes256Gcm)),
    },
    Engine {
        name: "chacha",
        encryption: "everything, ChaCha20-Poly1305",
        durability: LOG,
        integrity: "tag per frame, place bound",
        differs: "",
        open: |settings| strongroom::open(settings, Some(Cipher::ChaCha20Poly1305)),
    },
    #[cfg(feature = "fjall")]
    Engine {
        name: "fjall",
        encryption: "none",
        durability: LOG,
        integrity: "checksum per block",
        differs: "",
        open: fjall::open,
    },
    #[cfg(feature = "rocksdb")]
    Engine {
        name: "rocksdb",
        encryption: "none",
        durability: LOG,
        integrity: "checksum per block",
        differs: "",
        open: rocksdb::open,
    },
    #[cfg(feature = "surrealkv")]
    Engine {
        name: "surrealkv",
        encryption: "none",
        durability: LOG,
        integrity: "checksum per block",
        differs: "Snappy for LZ4, which it lacks; a transaction per operation",
        open: |settings| surrealkv::open(settings, false),
    },
    #[cfg(feature = "surrealkv")]
    Engine {
        name: "surrealkv-aes",
        encryption: "everything, AES-256-GCM",
        durability: LOG,
        integrity: "tag per block",
        differs: "Snappy for LZ4, which it lacks; a transaction per operation",
        open: |settings| surrealkv::open(settings, true),
    },
    #[cfg(feature = "redb")]
    Engine {
        name: "redb",
        encryption: "none",
        durability: "no log: nothing since the last synced commit",
        integrity: "checksum per page, checked on repair",
        differs: "B-tree, not compressed; a transaction per operation",
        open: redb::open,
    },
    #[cfg(feature = "lmdb")]
    Engine {
        name: "lmdb",
        encryption: "none",
        durability: "no log: end of the process; a power cut may cost the whole file",
        integrity: "none",
        differs: "B-tree, not compressed, the page cache is its cache; a transaction per operation",
        open: lmdb::open_plain,
    },
    #[cfg(feature = "lmdb-encrypted")]
    Engine {
        name: "lmdb-aes",
        encryption: "pages, AES-256-GCM",
        durability: "no log: end of the process; a power cut may cost the whole file",
        integrity: "tag per page; an older page passes",
        differs: "B-tree, not compressed; a transaction per operation, which opens its pages anew",
        open: lmdb::open_sealed,
    },
    #[cfg(feature = "sqlcipher")]
    Engine {
        name: "sqlcipher",
        encryption: "pages, AES-256-CBC and HMAC-SHA512",
        durability: LOG,
        integrity: "HMAC per page; an older page passes",
        differs: "B-tree behind SQL, not compressed; a statement per operation",
        open: sqlcipher::open,
    },
];

/// The engine of this name.
pub fn named(name: &str) -> Option<&'static Engine> {
    ALL.iter().find(|engine| engine.name == name)
}
