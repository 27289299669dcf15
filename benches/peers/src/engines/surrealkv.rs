//! SurrealKV as a peer, with and without its encryption.

use std::path::Path;
use std::sync::Arc;

use surrealkv::{
    CipherSuite, CompactRangeOptions, CompressionType, Durability, LSMIterator, Mode, Options, ReadOptions,
    SoftwareKeyManager, Tree, TreeBuilder,
};
use tokio::runtime::{Builder, Runtime};

use crate::Result;
use crate::settings::{MEMTABLE_BYTES, Settings};
use crate::workload::{Access, Key, Open, Peer, Value};

/// How to open databases with these settings.
pub fn open(settings: &Settings, sealed: bool) -> Box<Open> {
    let compression = if settings.lz4 { CompressionType::SnappyCompression } else { CompressionType::None };
    Box::new(move |path, access| Ok(Box::new(SurrealKv::open(path, access, compression, sealed)?)))
}

struct SurrealKv {
    tree: Tree,
    runtime: Runtime,
    durability: Durability,
}

impl SurrealKv {
    fn open(path: &Path, access: &Access, compression: CompressionType, sealed: bool) -> Result<SurrealKv> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut options = Options::new()
            .with_path(path.to_owned())
            .with_block_size(4096)
            .with_compression_per_level(vec![compression])
            .with_max_memtable_size(MEMTABLE_BYTES)
            .with_block_cache_capacity(access.cache_bytes as u64);
        if sealed {
            options = options.with_encryption(Arc::new(SoftwareKeyManager::new([7; 32])), CipherSuite::Aes256Gcm);
        }
        let tree = {
            let _inside = runtime.enter();
            TreeBuilder::with_options(options).build()?
        };
        let durability = if access.sync { Durability::Immediate } else { Durability::Eventual };
        Ok(SurrealKv { tree, runtime, durability })
    }

    fn write<'a>(&self, entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<()> {
        let mut transaction = self.tree.begin_with_mode(Mode::WriteOnly)?.with_durability(self.durability);
        for (key, value) in entries {
            transaction.set(key, value)?;
        }
        Ok(self.runtime.block_on(transaction.commit())?)
    }

    fn walk(&self, from: Option<&[u8]>, steps: u64) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        let transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        let mut bounds = ReadOptions::new();
        bounds.set_iterate_lower_bound(from.map(<[u8]>::to_vec));
        let mut cursor = transaction.range_with_options(&bounds)?;
        let mut standing = cursor.seek_first()?;
        while standing && entries < steps {
            entries += 1;
            bytes += (cursor.key().user_key().len() + cursor.value_encoded()?.len()) as u64;
            standing = cursor.next()?;
        }
        Ok((entries, bytes))
    }
}

impl Peer for SurrealKv {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(std::iter::once((&key[..], value)))
    }

    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
        self.write(entries.iter().map(|(key, value)| (&key[..], &value[..])))
    }

    fn get(&self, key: &Key) -> Result<Option<usize>> {
        let transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        Ok(transaction.get(key)?.map(|value| value.len()))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        self.walk(None, u64::MAX)
    }

    fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
        Ok(self.walk(Some(key), steps as u64)?.0 as usize)
    }

    /// Its background work cannot be waited for; compacting everything leaves none.
    fn settle(&self) -> Result<()> {
        let options = CompactRangeOptions { rewrite_bottommost: false, ..CompactRangeOptions::default() };
        Ok(self.tree.compact_range(None, None, &options)?)
    }
}

impl Drop for SurrealKv {
    fn drop(&mut self) {
        // Otherwise the next to open the directory would find it in use. A failure shows there.
        let _ = self.runtime.block_on(self.tree.close());
    }
}
