//! The words of the engine: newtypes for every number that means something, and every size limit.
//!
//! Two bare `u64` arguments are a bug in waiting, so a sequence number, a file number and an epoch are
//! types of their own. Nothing here does anything; every other part may use it.

use std::fmt;
use std::ops::Deref;

use zeroize::optimization_barrier;

/// A key is 1 to this many bytes long.
pub const KEY_BYTES_MAX: usize = 65_535;
/// A value is 0 to this many bytes long (512 MiB).
pub const VALUE_BYTES_MAX: usize = 512 << 20;
/// The keys and values of one batch together, in bytes (1 GiB).
pub const BATCH_BYTES_MAX: usize = 1 << 30;
/// A batch has at most this many writes: so that, with its bytes and 96 of overhead each, it fits into the 4 GiB of a memtable
/// that holds 1 GiB already.
pub const BATCH_WRITES_MAX: usize = 1 << 24;
/// A table's name is 1 to this many bytes of UTF-8.
pub const TABLE_NAME_BYTES_MAX: usize = 255;
/// No sealed frame is larger than this on disk, head and tag included (1 MiB).
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Values above this many bytes lie outside data blocks, as a run of frames of their own (64 KiB).
pub const VALUE_INLINE_BYTES_MAX: usize = 64 << 10;
/// Data block target, smallest setting, in bytes before compression.
pub const BLOCK_BYTES_MIN: usize = 256;
/// Data block target, largest setting, in bytes before compression.
pub const BLOCK_BYTES_MAX: usize = 512 << 10;
/// Levels of a table's tree, level 0 included.
pub const LEVELS: usize = 7;

/// A user's key that the engine keeps for itself, such as a file's smallest one: not secret enough for key pages, and wiped when
/// freed like all that is sealed on disk.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct UserKey(Box<[u8]>);

impl From<&[u8]> for UserKey {
    fn from(bytes: &[u8]) -> UserKey {
        UserKey(bytes.into())
    }
}

impl From<Box<[u8]>> for UserKey {
    fn from(bytes: Box<[u8]>) -> UserKey {
        UserKey(bytes)
    }
}

impl Deref for UserKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for UserKey {
    fn drop(&mut self) {
        self.0.fill(0);
        optimization_barrier(&*self.0);
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserKey({} bytes)", self.len())
    }
}

/// Position of one entry in the order of all commits of a store. 56 bits; 0 means "before any commit".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(u64);

impl Seq {
    /// Before any commit.
    pub const ZERO: Seq = Seq(0);
    /// The last sequence number there can be: 2^56 - 1.
    pub const MAX: Seq = Seq((1 << 56) - 1);

    /// The sequence number `value`, or `None` above [`Seq::MAX`].
    pub const fn new(value: u64) -> Option<Seq> {
        if value <= Seq::MAX.0 { Some(Seq(value)) } else { None }
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This number `count` later, or `None` when the sequence is exhausted.
    pub const fn advanced(self, count: u64) -> Option<Seq> {
        match self.0.checked_add(count) {
            Some(value) => Seq::new(value),
            None => None,
        }
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What an entry says about its key. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// The key is gone as of this sequence number.
    Delete = 0,
    /// The key has this value.
    Put = 1,
    /// The key has a value that lies in a run of frames of the same file; only in sorted tables.
    PutRun = 2,
    // Reserved for later: 3 range delete, 4 single delete, 5 merge, 6 put with expiry, 7 blob pointer.
}

impl Kind {
    /// The kind with this number on disk, or `None` for numbers that this version does not know.
    pub const fn from_u8(number: u8) -> Option<Kind> {
        match number {
            0 => Some(Kind::Delete),
            1 => Some(Kind::Put),
            2 => Some(Kind::PutRun),
            _ => None,
        }
    }
}

/// What follows a user key in the order of entries: 56-bit sequence number and 8-bit kind.
///
/// Entries are ordered by key ascending, then by trailer **descending**, so that the newest version of
/// a key comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trailer(u64);

impl Trailer {
    /// The trailer of an entry with this sequence number and kind.
    pub const fn new(seq: Seq, kind: Kind) -> Trailer {
        Trailer(seq.0 << 8 | kind as u64)
    }

    /// The first trailer, in entry order, that a reader at `seq` may see.
    pub const fn seek(seq: Seq) -> Trailer {
        Trailer(seq.0 << 8 | 0xff)
    }

    /// The trailer packed in `raw`, or `None` for a kind that this version does not know.
    pub const fn from_raw(raw: u64) -> Option<Trailer> {
        match Kind::from_u8(raw as u8) {
            Some(_) => Some(Trailer(raw)),
            None => None,
        }
    }

    /// Sequence number in the high 56 bits, kind in the low 8.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The sequence number.
    pub const fn seq(self) -> Seq {
        Seq(self.0 >> 8)
    }

    /// The kind. A seek trailer, which is never stored, reads as [`Kind::Delete`].
    pub const fn kind(self) -> Kind {
        match Kind::from_u8(self.0 as u8) {
            Some(kind) => kind,
            None => Kind::Delete,
        }
    }
}

impl fmt::Debug for Trailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.seq(), self.kind())
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The identity with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> $name {
                $name(bytes)
            }

            /// The sixteen bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            /// 32 lower-case hexadecimal digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

identity! {
    /// A store's durable identity: 16 random bytes, drawn when it is created.
    StoreId
}
identity! {
    /// A table's durable identity: 16 random bytes, never a name that a re-created table could share.
    TableId
}

impl TableId {
    /// Stands for the store's own metadata, which is sealed under the system key.
    pub const SYSTEM: TableId = TableId([0; 16]);
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next one, or `None` when the counter is exhausted.
            pub const fn next(self) -> Option<$name> {
                match self.0.checked_add(1) {
                    Some(value) => Some($name(value)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// Which of a table's successive keys: 1 for the first, one more for each new key.
    Generation(u32)
}
number! {
    /// Number of a file within its store. Never used twice in a store's life, whatever the kind.
    FileNumber(u64)
}
number! {
    /// Number of a durable change of the manifest; each group of edits has the next one.
    Epoch(u64)
}
number! {
    /// A table's short name within the log and the manifest of one store; never used twice.
    Slot(u32)
}

/// Kinds of file. Reaches the disk and the derivation of keys: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FileKind {
    /// `keys/system`: the wrapped system key; authenticated, not sealed.
    SystemKey = 1,
    /// `CURRENT`: which manifest is live.
    Current = 2,
    /// `manifest/N.manifest`: the log of version edits.
    Manifest = 3,
    /// `wal/N.wal`: a segment of the write-ahead log.
    Log = 4,
    /// `sst/xx/N.sst`: a sorted table.
    Table = 5,
    /// `keys/xx/<table id>`: a table's wrapped keys.
    KeyFile = 6,
    /// `parked/N-n.log`: sections of an inaccessible table.
    Parked = 7,
    /// A local key provider's keyring, which lies outside every store.
    Keyring = 8,
}

impl FileKind {
    /// The kind with this number on disk, or `None` for numbers that this version does not know.
    pub const fn from_u8(number: u8) -> Option<FileKind> {
        match number {
            1 => Some(FileKind::SystemKey),
            2 => Some(FileKind::Current),
            3 => Some(FileKind::Manifest),
            4 => Some(FileKind::Log),
            5 => Some(FileKind::Table),
            6 => Some(FileKind::KeyFile),
            7 => Some(FileKind::Parked),
            8 => Some(FileKind::Keyring),
            _ => None,
        }
    }
}
