//! fjall as a peer.

use std::path::Path;
use std::time::Duration;

use fjall::config::{BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::Result;
use crate::settings::{MEMTABLE_BYTES, Settings};
use crate::workload::{Access, Key, Open, Peer, Value};

/// How long nothing must have happened in the background to call it rest.
const REST: Duration = Duration::from_millis(300);

/// How to open databases with these settings.
pub fn open(settings: &Settings) -> Box<Open> {
    let compression = if settings.lz4 { CompressionType::Lz4 } else { CompressionType::None };
    Box::new(move |path, access| Ok(Box::new(Fjall::open(path, access, compression)?)))
}

struct Fjall {
    database: Database,
    keyspace: Keyspace,
    sync: bool,
}

impl Fjall {
    fn open(path: &Path, access: &Access, compression: CompressionType) -> Result<Fjall> {
        // As many threads as Strongroom has for flushing and compaction; filters and indexes always in memory, as there.
        let database = Database::builder(path).cache_size(access.cache_bytes as u64).worker_threads(2).open()?;
        let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
        let keyspace = database.keyspace("entries", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES as u64)
                .filter_policy(FilterPolicy::all(filter))
                .filter_block_pinning_policy(PinningPolicy::all(true))
                .index_block_pinning_policy(PinningPolicy::all(true))
                .data_block_compression_policy(CompressionPolicy::all(compression))
        })?;
        Ok(Fjall { database, keyspace, sync: access.sync })
    }
}

impl Peer for Fjall {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.keyspace.insert(key, value)?;
        if self.sync {
            self.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
        let mut batch = self.database.batch();
        for (key, value) in entries {
            batch.insert(&self.keyspace, key, value);
        }
        Ok(batch.commit()?)
    }

    fn get(&self, key: &Key) -> Result<Option<usize>> {
        Ok(self.keyspace.get(key)?.map(|value| value.len()))
    }

    /// It has no other way than the iterator.
    fn scan(&self) -> Result<(u64, u64)> {
        self.iterate()
    }

    fn iterate(&self) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        for entry in self.keyspace.iter() {
            let (key, value) = entry.into_inner()?;
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        Ok((entries, bytes))
    }

    fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
        let mut met = 0;
        for entry in self.keyspace.range(&key[..]..).take(steps) {
            entry.into_inner()?;
            met += 1;
        }
        Ok(met)
    }

    fn settle(&self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait()?;
        let mut completed = self.database.compactions_completed();
        loop {
            std::thread::sleep(REST);
            let now = self.database.compactions_completed();
            if now == completed && self.database.active_compactions() == 0 && self.database.outstanding_flushes() == 0 {
                return Ok(());
            }
            completed = now;
        }
    }
}
