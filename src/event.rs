//! What an embedder may want to hear about while the store runs: typed events and the sink they go to.
//!
//! Events carry identities, numbers and file names relative to the store, never a key, a value or a table's
//! name. They are told after the fact and never while a lock is held; a sink should return quickly, because a
//! background step waits for it.

use std::fmt::Debug;

use crate::error::{ErrorKind, ProviderError};
use crate::types::{Generation, TableId};

/// Takes events. The store calls it from whichever thread something happened on.
pub trait EventSink: Send + Sync + Debug {
    /// Something happened.
    fn event(&self, event: &Event);
}

/// Something that happened in a store.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The provider unwrapped a table's key and it is the one that was sealed under.
    KeyUnwrapped {
        /// The table, or [`TableId::SYSTEM`].
        table: TableId,
        /// Which of the table's keys.
        generation: Generation,
    },
    /// A principal's permission to use a table was renewed before it ended.
    PermitRefreshed {
        /// The table, or [`TableId::SYSTEM`].
        table: TableId,
        /// Whose permission.
        principal: String,
    },
    /// A principal's permission to use a table was not renewed, or was ended early.
    PermitEnded {
        /// The table, or [`TableId::SYSTEM`].
        table: TableId,
        /// Whose permission.
        principal: String,
        /// Why.
        why: PermitEnd,
    },
    /// The provider does not answer, and this permission is used beyond its end meanwhile
    /// ([`StoreOptions::serve_stale`](crate::StoreOptions::serve_stale)).
    StaleBegan {
        /// The table.
        table: TableId,
        /// Whose permission.
        principal: String,
        /// How long after its end it may be used, in milliseconds.
        limit_ms: u64,
    },
    /// A permission is no longer used beyond its end: the provider answered, or the limit was reached.
    StaleEnded {
        /// The table.
        table: TableId,
        /// Whose permission.
        principal: String,
    },
    /// Nobody may use the table at present: its key and its decrypted blocks have left memory.
    TablePurged {
        /// The table.
        table: TableId,
    },
    /// A table's key began to be refused: nobody may use the table, and what was in memory of it is let go of. Its data is safe.
    TableInaccessible {
        /// The table.
        table: TableId,
        /// Wall time of the first refusal, in milliseconds since 1970-01-01 00:00 UTC. It outlives the process.
        since_ms: u64,
        /// What the provider said.
        reason: ProviderError,
    },
    /// A table's key may be used again, and so may the table.
    TableAccessible {
        /// The table.
        table: TableId,
    },
    /// The store's own key began to be refused: no call is answered. Its data is safe.
    StoreInaccessible {
        /// Wall time of the first refusal, in milliseconds since 1970-01-01 00:00 UTC.
        since_ms: u64,
        /// What the provider said.
        reason: ProviderError,
    },
    /// The store's own key may be used again, and so may the store.
    StoreAccessible,
    /// A dropped table's wrapped keys have been erased durably.
    TableShredded {
        /// The table.
        table: TableId,
    },
    /// An event of the audit trail could not be recorded.
    TrailFailed {
        /// How many could not since the last one that could.
        lost: u64,
        /// What kept this one from being recorded.
        reason: String,
    },
    /// A table's key was wrapped anew, or got a new generation: durable, and in force.
    TableRekeyed {
        /// The table, or [`TableId::SYSTEM`].
        table: TableId,
        /// The generation that is sealed under from now on.
        generation: Generation,
    },
    /// Nothing in the store is sealed under some generations of a key any more, and their wraps have been erased durably.
    GenerationsErased {
        /// The table, or [`TableId::SYSTEM`].
        table: TableId,
        /// The oldest generation that is left.
        oldest: Generation,
    },
    /// A rotation that was due could not be begun, or its work could not go on. It is tried again.
    RotationFailed {
        /// The table, or [`TableId::SYSTEM`].
        table: TableId,
        /// Why.
        kind: ErrorKind,
        /// Why, in words.
        message: String,
    },
    /// Writers are being slowed down because flushes or compaction cannot keep up.
    StallBegan,
    /// Writers are no longer slowed down.
    StallEnded {
        /// How long the stall lasted.
        lasted_ms: u64,
    },
    /// The disk has too little room for what is to be written: commits are refused, or files wait to be merged. Nothing is lost, and reads go on.
    DiskFull {
        /// Bytes that the file system has free for the store.
        free_bytes: u64,
        /// Bytes that must be free for what was to be done.
        needed_bytes: u64,
    },
    /// Everything that the disk had no room for can go on.
    DiskHasRoom {
        /// Bytes that the file system has free for the store.
        free_bytes: u64,
    },
    /// Recovery found bytes at the end of the log that nothing attests as durable, and discarded them.
    TailDiscarded {
        /// The log segment.
        file: String,
        /// Where the log ends now.
        offset_bytes: u64,
        /// Length of what was discarded.
        len_bytes: u64,
    },
    /// One of the two copies within a key file is damaged; the other one was used.
    KeyFileCopyDamaged {
        /// The key file.
        file: String,
    },
    /// A file that the manifest does not name was moved out of the way, not erased.
    OrphanSetAside {
        /// Where the file was.
        file: String,
    },
}

/// Why a permission ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PermitEnd {
    /// It was not used, so that it was not renewed.
    Idle,
    /// The provider refused to renew it, or could not be asked in time.
    Refused(ProviderError),
}
