//! The one error of the engine, grouped by what the caller can do about it.
//!
//! Every variant belongs to one [`ErrorKind`], and every kind has one sentence of advice
//! ([`Error::advice`]). Fields carry numbers with units and names of files relative to the store, never
//! a key, a value or a secret. Errors are `Clone`, because one failed write answers every commit that
//! was waiting for it.

use std::sync::Arc;

use crate::types::{Epoch, Generation, TableId};

/// What every fallible call of the engine returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the numbers that are needed to find the place.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The provider gave a key, and it is not the key that the data was sealed under.
    #[error("the key unwrapped for table {table}, generation {}, is not the one its data was sealed under", generation.0)]
    WrongKey {
        /// The table, or [`TableId::SYSTEM`] for the store's own metadata.
        table: TableId,
        /// Which of the table's keys.
        generation: Generation,
    },
    /// The passphrase or key given for a keyring does not open it.
    #[error("the passphrase or key does not open the keyring {path}")]
    WrongPassphrase {
        /// The keyring's path.
        path: String,
    },
    /// Bytes that carry a right checksum do not carry a right tag under a right key, or a sealed
    /// statement contradicts the file that it is about.
    #[error("{file} is not what was sealed at byte {offset_bytes}: {detail}")]
    Tampered {
        /// The file, relative to the store.
        file: String,
        /// Where in the file the refused bytes begin.
        offset_bytes: u64,
        /// What did not hold.
        detail: &'static str,
    },
    /// Bytes do not match their checksum: a failing disk, or a careless hand.
    #[error("{file} is damaged at byte {offset_bytes}: {detail}")]
    BitRot {
        /// The file, relative to the store.
        file: String,
        /// Where in the file the damaged bytes begin.
        offset_bytes: u64,
        /// What did not hold.
        detail: &'static str,
    },
    /// The log or the manifest ends before a point that later bytes attest was durable.
    #[error("{file} breaks off at byte {offset_bytes}, but what follows was written after that point was durable")]
    LogDamaged {
        /// The file, relative to the store.
        file: String,
        /// Where the first hole begins.
        offset_bytes: u64,
    },
    /// The directory holds evidence of a later state than its manifest: an older copy was put back.
    #[error("the store is at epoch {} but epoch {} has been attested: an older copy was put back", found.0, attested.0)]
    RolledBack {
        /// The manifest's last epoch.
        found: Epoch,
        /// The highest epoch that is attested, by the directory or by the caller.
        attested: Epoch,
    },
    /// A file that the store's metadata names is not there.
    #[error("{file} is named by the store's metadata but is missing")]
    MissingFile {
        /// The file, relative to the store.
        file: String,
    },
    /// Another process, or another handle of this one, has the store or keyring open.
    #[error("{path} is in use by another process or handle")]
    Locked {
        /// The path that is locked.
        path: String,
    },
    /// The file was written by a version, or needs a feature, that this build does not know.
    #[error("{file} needs {what} {number}, which this build does not know")]
    UnknownVersion {
        /// The file, relative to the store.
        file: String,
        /// What is unknown: "format version", "feature", "suite", "file kind", and so on.
        what: &'static str,
        /// The number found.
        number: u64,
    },
    /// The provider did not give a key that an operation needs.
    #[error("the key of table {table} is not available: {source}")]
    KeyUnavailable {
        /// The table, or [`TableId::SYSTEM`] for the store's own metadata.
        table: TableId,
        /// The provider's answer, with its class and scope.
        source: ProviderError,
    },
    /// A table's key is refused: disabled, about to be deleted, gone, or no longer the engine's to use. Nothing is lost, and nothing of the
    /// table is in memory; it answers again by itself once its key does.
    #[error("table {table} is inaccessible since {since_ms} ms after 1970-01-01 00:00 UTC: {source}")]
    TableInaccessible {
        /// The table.
        table: TableId,
        /// Wall time of the first refusal, in milliseconds since 1970-01-01 00:00 UTC.
        since_ms: u64,
        /// The provider's last answer.
        source: ProviderError,
    },
    /// The key of the store's own metadata is refused: no table answers, and nothing is written. Nothing is lost; the store answers again by
    /// itself once that key does.
    #[error("the store is inaccessible since {since_ms} ms after 1970-01-01 00:00 UTC: {source}")]
    StoreInaccessible {
        /// Wall time of the first refusal, in milliseconds since 1970-01-01 00:00 UTC.
        since_ms: u64,
        /// The provider's last answer.
        source: ProviderError,
    },
    /// The provider refused a master key that was given by name.
    #[error("master key {key}: {source}")]
    MasterKeyUnavailable {
        /// The key id, ARN or alias given.
        key: String,
        /// The provider's answer, with its class and scope.
        source: ProviderError,
    },
    /// There is no session for this principal.
    #[error("no session for {principal}: {source}")]
    SessionRefused {
        /// Who was to have one.
        principal: String,
        /// Why not, with its class and scope.
        source: ProviderError,
    },
    /// This principal may not do this, whatever the key provider says.
    #[error("{principal} may not {action}")]
    AccessDenied {
        /// Whose session it is.
        principal: String,
        /// What was tried.
        action: &'static str,
    },
    /// A size or a counter is beyond what the engine supports.
    #[error("{what} is {actual}, the limit is {limit}")]
    LimitExceeded {
        /// What was too large, with its unit.
        what: &'static str,
        /// The largest allowed.
        limit: u64,
        /// What was given or would be needed.
        actual: u64,
    },
    /// An earlier write or sync failed, so that nothing more is written until the store is reopened.
    #[error("the store is read-only since a write failed: {cause}")]
    Poisoned {
        /// The failure that poisoned it.
        cause: Arc<Error>,
    },
    /// There is no room on the disk for what was asked, beside what is kept for bringing to the disk what is in memory. Nothing was written, and the
    /// store goes on by itself once there is room.
    #[error("the disk has {free_bytes} bytes free, and {needed_bytes} are needed")]
    DiskFull {
        /// Bytes that the file system has free for the store.
        free_bytes: u64,
        /// Bytes that must be free for this, those included that are kept for what is under way.
        needed_bytes: u64,
    },
    /// The operating system refused an operation.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried: "create", "read", "write", "sync", and so on.
        operation: &'static str,
        /// The file or directory.
        path: String,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// There is no store at this path.
    #[error("{path} holds no store")]
    NotAStore {
        /// The path given.
        path: String,
    },
    /// There is something at this path already.
    #[error("{path} already exists and is not empty")]
    AlreadyExists {
        /// The path given.
        path: String,
    },
    /// There is no table of this name.
    #[error("there is no table {name:?}")]
    TableNotFound {
        /// The name given.
        name: String,
    },
    /// There is a table of this name already.
    #[error("there is already a table {name:?}")]
    TableExists {
        /// The name given.
        name: String,
    },
    /// The table was dropped while this handle to it lived.
    #[error("table {table} has been dropped")]
    TableDropped {
        /// The dropped table.
        table: TableId,
    },
    /// The keys of the table are being changed by another call.
    #[error("the keys of table {name:?} are being changed already")]
    TableUpdating {
        /// The table's name.
        name: String,
    },
    /// The table's master key was changed as often as the store allows.
    #[error(
        "the master key of table {name:?} was changed {changes} times within 24 hours, the limit is {limit}; the next change may be made in {wait_ms} ms"
    )]
    KeyChangesExceeded {
        /// The table's name.
        name: String,
        /// How many changes the store allows in 24 hours.
        limit: u32,
        /// How many there were, counted as the limit is.
        changes: u32,
        /// How long until the next one is allowed, in milliseconds.
        wait_ms: u64,
    },
    /// An argument cannot be meant so.
    #[error("{what}: {detail}")]
    InvalidArgument {
        /// The argument.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The store was closed while this handle to it lived.
    #[error("the store has been closed")]
    Closed,
    /// The process is a fork of the one that opened the store, or the keyring.
    #[error("the store or keyring was opened by the parent of this process")]
    Forked,
}

/// What the caller can do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key is not the one the data was sealed under.
    WrongKey,
    /// The keyring's passphrase or key is wrong.
    WrongPassphrase,
    /// Somebody changed the bytes.
    Tampering,
    /// The medium changed the bytes.
    BitRot,
    /// An older copy of the store was put back.
    RolledBack,
    /// A file is gone.
    MissingFile,
    /// Somebody else has it open.
    Locked,
    /// A newer version wrote it.
    UnknownVersion,
    /// The provider did not give the key.
    KeyUnavailable,
    /// This principal may not.
    AccessDenied,
    /// Too large, or a counter ran out.
    LimitExceeded,
    /// There is no room on the disk.
    DiskFull,
    /// An earlier write failed.
    Poisoned,
    /// The operating system refused.
    Io,
    /// What was named does not exist.
    NotFound,
    /// What was to be created exists.
    AlreadyExists,
    /// Somebody else is at it, or depends on it.
    Busy,
    /// The call itself is wrong.
    InvalidArgument,
    /// The handle outlived what it stood for.
    Closed,
}

impl Error {
    /// Which group of errors this belongs to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::WrongKey { .. } => ErrorKind::WrongKey,
            Error::WrongPassphrase { .. } => ErrorKind::WrongPassphrase,
            Error::Tampered { .. } => ErrorKind::Tampering,
            Error::BitRot { .. } | Error::LogDamaged { .. } => ErrorKind::BitRot,
            Error::RolledBack { .. } => ErrorKind::RolledBack,
            Error::MissingFile { .. } => ErrorKind::MissingFile,
            Error::Locked { .. } => ErrorKind::Locked,
            Error::UnknownVersion { .. } => ErrorKind::UnknownVersion,
            Error::KeyUnavailable { .. }
            | Error::TableInaccessible { .. }
            | Error::StoreInaccessible { .. }
            | Error::MasterKeyUnavailable { .. } => ErrorKind::KeyUnavailable,
            Error::SessionRefused { .. } | Error::AccessDenied { .. } => ErrorKind::AccessDenied,
            Error::LimitExceeded { .. } | Error::KeyChangesExceeded { .. } => ErrorKind::LimitExceeded,
            Error::TableUpdating { .. } => ErrorKind::Busy,
            Error::Poisoned { .. } => ErrorKind::Poisoned,
            Error::DiskFull { .. } => ErrorKind::DiskFull,
            Error::Io { .. } => ErrorKind::Io,
            Error::NotAStore { .. } | Error::TableNotFound { .. } => ErrorKind::NotFound,
            Error::AlreadyExists { .. } | Error::TableExists { .. } => ErrorKind::AlreadyExists,
            Error::InvalidArgument { .. } => ErrorKind::InvalidArgument,
            Error::TableDropped { .. } | Error::Closed | Error::Forked => ErrorKind::Closed,
        }
    }

    /// What to do about it, in one sentence.
    pub fn advice(&self) -> &'static str {
        match self.kind() {
            ErrorKind::WrongKey => "give the key provider that the store was created with; nothing was changed",
            ErrorKind::WrongPassphrase => "try again with the right passphrase or key file; nothing was changed",
            ErrorKind::Tampering => {
                "stop writing, keep a copy of the directory, run `verify` on it, and restore the file from a backup you trust"
            }
            ErrorKind::BitRot => {
                "stop writing, run `scrub` on a copy of the directory to see how far it goes, and restore the file from a backup"
            }
            ErrorKind::RolledBack => {
                "find the newest copy of the directory; open an older one only if you know why it is older"
            }
            ErrorKind::MissingFile => "put the file back from a backup of the same epoch; nothing was changed",
            ErrorKind::Locked => "close the other process or handle, then open again",
            ErrorKind::UnknownVersion => "open it with the version of strongroom that wrote it, or a newer one",
            ErrorKind::KeyUnavailable => {
                "see the provider's reason; the data is safe and the table answers again once its key does"
            }
            ErrorKind::AccessDenied => "use a session that may; nothing was changed, and the provider was not asked",
            ErrorKind::LimitExceeded => "ask for less, or later; nothing was written",
            ErrorKind::Busy => "wait until the other is done, then try again; nothing was changed",
            ErrorKind::DiskFull => {
                "free some space, then try again; nothing was written, and nothing needs to be reopened"
            }
            ErrorKind::Poisoned => "find out why the write failed, then close and reopen the store",
            ErrorKind::Io => {
                "see the operating system's reason; free space, permissions and descriptors are the usual ones"
            }
            ErrorKind::NotFound => "check the name, or create it first",
            ErrorKind::AlreadyExists => "choose another name or path, or open what is there",
            ErrorKind::InvalidArgument => "correct the argument; nothing was written",
            ErrorKind::Closed => "open the store, or the table, again in this process",
        }
    }

    /// An error of the operating system, with what was tried and where.
    pub(crate) fn io(operation: &'static str, path: impl ToString, source: std::io::Error) -> Error {
        Error::Io { operation, path: path.to_string(), source: Arc::new(source) }
    }
}

/// A key provider's refusal or failure.
///
/// What the engine does about it depends on its [`class`](ProviderError::class) alone; the message is
/// for people. A message must not contain key material.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ProviderError {
    /// What happened.
    pub reason: ProviderReason,
    /// The provider's own words.
    pub message: String,
}

impl ProviderError {
    /// A failure for this reason, in these words.
    pub fn new(reason: ProviderReason, message: impl Into<String>) -> ProviderError {
        ProviderError { reason, message: message.into() }
    }

    /// What the failure is about, and so whom it concerns.
    pub fn class(&self) -> ProviderClass {
        self.reason.class()
    }
}

/// Why a key provider did not answer with a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderReason {
    /// The provider cannot be reached.
    #[error("provider unreachable")]
    Unreachable,
    /// The provider asks for fewer requests.
    #[error("provider throttles")]
    Throttled,
    /// No answer came in time.
    #[error("provider timed out")]
    TimedOut,
    /// The provider answered, but the audit trail, which [must be written](crate::TrailOptions::required), could not be.
    #[error("not recorded in the trail")]
    NotRecorded,
    /// A policy denies the request to this principal.
    #[error("access denied")]
    Denied,
    /// The grant that the request rests on is missing, retired or revoked.
    #[error("no grant")]
    NoGrant,
    /// The principal's credentials are not valid.
    #[error("bad credentials")]
    BadCredentials,
    /// The provider cannot tell principals apart, and the request is for another than its own.
    #[error("principal not supported")]
    PrincipalUnsupported,
    /// The master key is disabled.
    #[error("master key disabled")]
    KeyDisabled,
    /// The master key waits for its deletion.
    #[error("master key pending deletion")]
    KeyPendingDeletion,
    /// The master key's bytes have not been imported, were taken away, or have expired.
    #[error("master key pending import")]
    KeyPendingImport,
    /// There is no such master key.
    #[error("master key not found")]
    KeyNotFound,
    /// The ciphertext was not made by this key with this context, or was changed.
    #[error("invalid ciphertext")]
    InvalidCiphertext,
    /// The provider's answer names another key, has the wrong length, or is otherwise not what was asked for.
    #[error("unexpected answer")]
    UnexpectedAnswer,
    /// The provider does not offer this operation.
    #[error("operation not supported")]
    Unsupported,
    /// The request itself cannot be meant so.
    #[error("invalid request")]
    InvalidRequest,
    /// The grant that was to be retired or revoked is not there.
    #[error("grant not found")]
    GrantNotFound,
    /// The provider has no room for what is asked.
    #[error("provider's limit exceeded")]
    LimitExceeded,
}

impl ProviderReason {
    /// What the failure is about.
    pub fn class(self) -> ProviderClass {
        use ProviderReason::*;
        match self {
            Unreachable | Throttled | TimedOut | NotRecorded => ProviderClass::Transient,
            Denied | NoGrant | BadCredentials | PrincipalUnsupported => ProviderClass::Principal,
            KeyDisabled | KeyPendingDeletion | KeyPendingImport | KeyNotFound => ProviderClass::Key,
            InvalidCiphertext | UnexpectedAnswer => ProviderClass::Material,
            Unsupported | InvalidRequest | GrantNotFound | LimitExceeded => ProviderClass::Request,
        }
    }
}

/// What a provider's failure is about, and so whom it concerns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ProviderClass {
    /// Nobody's fault and likely to pass: permits live on until they end.
    Transient,
    /// This principal alone: its permit ends, nobody else notices.
    Principal,
    /// The master key itself: every table under it is inaccessible until the key is back.
    Key,
    /// The wrapped bytes or the answer: an integrity error, never a reason to forget a good key.
    Material,
    /// The request: a mistake of the caller, or something that this provider does not do.
    Request,
}
