//! RocksDB as a peer.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, IteratorMode, Options, WaitForCompactOptions, WriteBatch, WriteOptions,
};

use crate::Result;
use crate::settings::{MEMTABLE_BYTES, Settings};
use crate::workload::{Access, Key, Open, Peer, Value};

/// How to open databases with these settings.
pub fn open(settings: &Settings) -> Box<Open> {
    let compression = if settings.lz4 { DBCompressionType::Lz4 } else { DBCompressionType::None };
    Box::new(move |path, access| Ok(Box::new(RocksDb::open(path, access, compression)?)))
}

struct RocksDb {
    database: DB,
    write: WriteOptions,
}

impl RocksDb {
    fn open(path: &Path, access: &Access, compression: DBCompressionType) -> Result<RocksDb> {
        // Filters and indexes stay in memory unless they are put into the cache, which they are not.
        let mut table = BlockBasedOptions::default();
        table.set_bloom_filter(10.0, false);
        table.set_block_size(4096);
        table.set_block_cache(&Cache::new_lru_cache(access.cache_bytes));
        let mut options = Options::default();
        options.create_if_missing(access.create);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(compression);
        options.set_write_buffer_size(MEMTABLE_BYTES);
        // As many threads as the others have for flushing and compaction.
        options.set_max_background_jobs(2);
        let mut write = WriteOptions::default();
        write.set_sync(access.sync);
        Ok(RocksDb { database: DB::open(&options, path)?, write })
    }
}

impl Peer for RocksDb {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.database.put_opt(key, value, &self.write)?)
    }

    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in entries {
            batch.put(key, value);
        }
        Ok(self.database.write_opt(batch, &self.write)?)
    }

    fn get(&self, key: &Key) -> Result<Option<usize>> {
        Ok(self.database.get_pinned(key)?.map(|value| value.len()))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        let mut cursor = self.database.raw_iterator();
        cursor.seek_to_first();
        while let Some((key, value)) = cursor.item() {
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
            cursor.next();
        }
        cursor.status()?;
        Ok((entries, bytes))
    }

    fn iterate(&self) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        for entry in self.database.iterator(IteratorMode::Start) {
            let (key, value) = entry?;
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        Ok((entries, bytes))
    }

    fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
        let mut cursor = self.database.raw_iterator();
        let mut met = 0;
        cursor.seek(key);
        while met < steps && cursor.item().is_some() {
            met += 1;
            cursor.next();
        }
        cursor.status()?;
        Ok(met)
    }

    fn settle(&self) -> Result<()> {
        let mut options = WaitForCompactOptions::default();
        options.set_flush(true);
        Ok(self.database.wait_for_compact(&options)?)
    }
}
