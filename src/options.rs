//! Every setting, with its unit, its default and what it does.
//!
//! Sizes are in bytes. A value outside its range is a typed error when the store or table is opened or created;
//! nothing is clamped silently.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN};

/// When a commit is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Once the operating system has the bytes: survives the end of the process, not a power cut.
    #[default]
    Buffered,
    /// Once the bytes, and those of all earlier commits of all tables, are on the medium.
    Sync,
}

/// How blocks are compressed before they are sealed. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Compression {
    /// Not at all: the choice where several parties who distrust each other write one table, because
    /// the length of what was compressed tells something about its contents.
    None = 0,
    /// LZ4.
    #[default]
    Lz4 = 1,
}

impl Compression {
    /// The method with this number on disk.
    pub(crate) const fn from_u8(number: u8) -> Option<Compression> {
        match number {
            0 => Some(Compression::None),
            1 => Some(Compression::Lz4),
            _ => None,
        }
    }
}

/// Which AEAD seals a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cipher {
    /// AES-256-GCM: the default where the CPU has instructions for it.
    Aes256Gcm,
    /// ChaCha20-Poly1305: the default elsewhere.
    ChaCha20Poly1305,
}

/// The master key that a table's key is wrapped under.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MasterKey {
    /// The store's default key: never in the user's trail.
    #[default]
    Owned,
    /// A key that is made in the user's provider on first use, under `alias/strongroom`.
    Managed,
    /// A key of the user's, by key id, ARN or alias. An alias is resolved once, when it is given.
    Customer(String),
}

impl MasterKey {
    /// The store's default key.
    pub fn owned() -> MasterKey {
        MasterKey::Owned
    }

    /// The provider's key for this engine.
    pub fn managed() -> MasterKey {
        MasterKey::Managed
    }

    /// What it was called: `owned`, `managed`, or the customer's key as it was named.
    pub(crate) fn name(&self) -> &str {
        match self {
            MasterKey::Owned => "owned",
            MasterKey::Managed => "managed",
            MasterKey::Customer(name) => name,
        }
    }

    /// A key of the user's, by key id, ARN or alias.
    pub fn customer(key: impl Into<String>) -> MasterKey {
        MasterKey::Customer(key.into())
    }
}

/// Settings of one table, fixed when it is created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableOptions {
    pub(crate) master_key: MasterKey,
    pub(crate) cipher: Option<Cipher>,
    pub(crate) compression: Compression,
    pub(crate) block_bytes: usize,
    pub(crate) filter_bits_per_key: u8,
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        TableOptions {
            master_key: MasterKey::Owned,
            cipher: None,
            compression: Compression::default(),
            block_bytes: 4096,
            filter_bits_per_key: 10,
        }
    }
}

impl TableOptions {
    /// The defaults: owned key, the CPU's cipher, LZ4, 4 KiB blocks, 10 filter bits per key.
    pub fn new() -> TableOptions {
        TableOptions::default()
    }

    /// The master key that wraps the table's key. Default: the store's owned key.
    pub fn master_key(mut self, key: MasterKey) -> TableOptions {
        self.master_key = key;
        self
    }

    /// The AEAD that seals the table. Default: AES-256-GCM if the CPU has instructions for it,
    /// ChaCha20-Poly1305 otherwise.
    pub fn cipher(mut self, cipher: Cipher) -> TableOptions {
        self.cipher = Some(cipher);
        self
    }

    /// How blocks are compressed before they are sealed. Default: LZ4.
    pub fn compression(mut self, compression: Compression) -> TableOptions {
        self.compression = compression;
        self
    }

    /// Size of a data block before compression, 256 bytes to 512 KiB. Default: 4,096. Smaller blocks
    /// make point reads cheaper, larger ones compress better.
    pub fn block_bytes(mut self, bytes: usize) -> TableOptions {
        self.block_bytes = bytes;
        self
    }

    /// Bits of filter per key, 0 (no filter) to 32. Default: 10, about one false positive in a hundred.
    pub fn filter_bits_per_key(mut self, bits: u8) -> TableOptions {
        self.filter_bits_per_key = bits;
        self
    }

    /// Check every setting against its range.
    pub(crate) fn validate(&self) -> Result<()> {
        in_range("block_bytes", self.block_bytes as u64, BLOCK_BYTES_MIN as u64, BLOCK_BYTES_MAX as u64)?;
        in_range("filter_bits_per_key", u64::from(self.filter_bits_per_key), 0, 32)
    }
}

/// Settings of a store's audit trail.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrailOptions {
    pub(crate) required: bool,
    pub(crate) table_names: bool,
}

impl TrailOptions {
    /// The defaults: the store goes on when the trail cannot be written, and tables are shown by their ids.
    pub fn new() -> TrailOptions {
        TrailOptions::default()
    }

    /// Use no provider's answer that could not be recorded: such a request fails with
    /// [`NotRecorded`](crate::error::ProviderReason::NotRecorded), a transient failure. Default: an event says so, and the next record counts
    /// what is missing.
    pub fn required(mut self, required: bool) -> TrailOptions {
        self.required = required;
        self
    }

    /// Show tables' names beside their ids. The trail lies in clear, and so will the names. Default: ids alone.
    pub fn table_names(mut self, shown: bool) -> TrailOptions {
        self.table_names = shown;
        self
    }
}

/// Settings of an open store. Nothing here reaches the disk; all may differ at the next open.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Memory for data that is not yet in sorted tables, all tables together. Beyond it writers are slowed, and stopped at one and a half times as
    /// much. Default 128 MiB.
    pub write_budget_bytes: usize,
    /// A memtable is frozen and flushed once it is this large; at most 1 GiB. Default 32 MiB.
    pub memtable_bytes: usize,
    /// Decrypted blocks kept for reading, all tables together. Default 256 MiB.
    pub cache_bytes: usize,
    /// Size at which a log segment is full. Default 64 MiB.
    pub log_segment_bytes: u64,
    /// Size of all log segments at which the oldest one's memtables are flushed. Default 512 MiB.
    pub log_bytes_max: u64,
    /// Size at which compaction ends a sorted table and begins the next. Default 64 MiB.
    pub table_file_bytes: u64,
    /// Largest size of the level that level 0 is merged into. Which level that is follows from the table's size: each further one is
    /// [`level_factor`](Self::level_factor) times as large, down to the last, which holds most. Default 256 MiB.
    pub level_one_bytes: u64,
    /// How much larger each level is than the one above. Default 10.
    pub level_factor: u64,
    /// Level-0 files at which they are compacted. Default 4.
    pub level_zero_files: usize,
    /// Level-0 files of a table from which on its writers are slowed: at half way between this and
    /// [`level_zero_stop_files`](Self::level_zero_stop_files) to the rate at which such files are merged away. Default 12.
    pub level_zero_slow_files: usize,
    /// Level-0 files at which writers wait. Default 24.
    pub level_zero_stop_files: usize,
    /// Threads for compaction, besides the one that flushes and one that helps with large merges while nobody commits. Default 1.
    pub compaction_threads: usize,
    /// Sorted tables kept open for reading. Default 512, and never more than half the descriptor limit.
    pub open_tables_max: usize,
    /// Read sorted tables through a mapping instead of with system calls. Default: no.
    ///
    /// A block that is not in the cache then costs no system call, which pays when most of a store lies in the operating system's page cache. What is read is copied
    /// before it is checked, as always. What it costs: a file that somebody cuts while it is open, or a medium that cannot be read, ends the
    /// process with `SIGBUS`, where otherwise a call fails with [`Error::Tampered`] or [`Error::Io`].
    pub map_tables: bool,
    /// How fast the rest of a table is written anew after its key was rotated, in bytes per second of what is read, all tables together. It
    /// gives way to compaction in any case. Default 256 MiB.
    pub rotation_bytes_per_sec: u64,
    /// How often a table's master key may be changed in each 24 hours since the table was created; one more change is allowed whenever there was none in
    /// the last 6 hours. Changing to the store's owned key is never refused, and not counted. Default: no limit. DynamoDB's is 4.
    pub key_changes_per_day: Option<u32>,
    /// How long a permission to use a table's key lasts from when it was asked for. Default 5 minutes, which is also the most; a
    /// provider may shorten it.
    pub permit: Duration,
    /// How long after its end a permission may still be used while the provider cannot be reached, throttles or is too slow, as long as the
    /// table's keys are in memory. Any refusal ends that at once. Default 0: not at all; at most 12 hours. What it costs: a key that was revoked
    /// at a provider whom nobody reaches serves so much longer.
    pub serve_stale: Duration,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            write_budget_bytes: 128 << 20,
            memtable_bytes: 32 << 20,
            cache_bytes: 256 << 20,
            log_segment_bytes: 64 << 20,
            log_bytes_max: 512 << 20,
            table_file_bytes: 64 << 20,
            level_one_bytes: 256 << 20,
            level_factor: 10,
            level_zero_files: 4,
            level_zero_slow_files: 12,
            level_zero_stop_files: 24,
            compaction_threads: 1,
            open_tables_max: 512,
            map_tables: false,
            rotation_bytes_per_sec: 256 << 20,
            key_changes_per_day: None,
            permit: Duration::from_secs(300),
            serve_stale: Duration::ZERO,
        }
    }
}

impl StoreOptions {
    /// Check every setting against its range and against the others.
    pub(crate) fn validate(&self) -> Result<()> {
        in_range("memtable_bytes", self.memtable_bytes as u64, 1 << 10, 1 << 30)?;
        in_range("write_budget_bytes", self.write_budget_bytes as u64, self.memtable_bytes as u64, 1 << 40)?;
        in_range("log_segment_bytes", self.log_segment_bytes, 1 << 12, 1 << 40)?;
        in_range("log_bytes_max", self.log_bytes_max, self.log_segment_bytes, 1 << 50)?;
        in_range("table_file_bytes", self.table_file_bytes, 1 << 10, 1 << 40)?;
        in_range("level_one_bytes", self.level_one_bytes, 1 << 10, 1 << 50)?;
        in_range("level_factor", self.level_factor, 2, 100)?;
        in_range("level_zero_files", self.level_zero_files as u64, 1, 1000)?;
        in_range("level_zero_slow_files", self.level_zero_slow_files as u64, self.level_zero_files as u64, 10_000)?;
        in_range(
            "level_zero_stop_files",
            self.level_zero_stop_files as u64,
            self.level_zero_slow_files as u64,
            100_000,
        )?;
        in_range("compaction_threads", self.compaction_threads as u64, 1, 256)?;
        in_range("open_tables_max", self.open_tables_max as u64, 8, 1 << 20)?;
        in_range("rotation_bytes_per_sec", self.rotation_bytes_per_sec, 1 << 10, u64::MAX)?;
        // As many changes are remembered as this can count.
        in_range("key_changes_per_day", u64::from(self.key_changes_per_day.unwrap_or(1)), 1, 48)?;
        in_range("permit, in ms", self.permit.as_millis() as u64, 1, 300_000)?;
        in_range("serve_stale, in s", self.serve_stale.as_secs(), 0, 12 * 3600)
    }
}

fn in_range(what: &'static str, actual: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&actual) {
        return Ok(());
    }
    Err(Error::InvalidArgument { what, detail: format!("{actual} is outside {min} to {max}") })
}
