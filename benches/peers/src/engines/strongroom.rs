//! Strongroom as a peer.

use std::path::Path;

use strongroom::{
    Builder, Cipher, Compression, Durability, LocalKms, Store, StoreOptions, Table, TableOptions, Unlock,
};

use crate::Result;
use crate::settings::{MEMTABLE_BYTES, Settings};
use crate::workload::{Access, Key, Open, Peer, Value};

/// How to open stores that are sealed with `cipher`, or with nothing.
pub fn open(settings: &Settings, cipher: Option<Cipher>) -> Box<Open> {
    let compression = if settings.lz4 { Compression::Lz4 } else { Compression::None };
    Box::new(move |path, access| Ok(Box::new(Strongroom::open(path, access, cipher, compression)?)))
}

struct Strongroom {
    store: Store,
    table: Table,
    durability: Durability,
}

impl Strongroom {
    fn open(path: &Path, access: &Access, cipher: Option<Cipher>, compression: Compression) -> Result<Strongroom> {
        let keyring = path.with_extension("keyring");
        let unlock = Unlock::key(|key| key.fill(7));
        let kms = if access.create { LocalKms::create(keyring, unlock)? } else { LocalKms::open(keyring, unlock)? };
        let options =
            StoreOptions { cache_bytes: access.cache_bytes, memtable_bytes: MEMTABLE_BYTES, ..StoreOptions::default() };
        let builder = Store::builder(path).key_provider(kms).options(options);
        let builder = if cipher.is_none() { unsealed(builder)? } else { builder };
        let mut table_options = TableOptions::new().compression(compression).filter_bits_per_key(10).block_bytes(4096);
        if let Some(cipher) = cipher {
            table_options = table_options.cipher(cipher);
        }
        let store = if access.create { builder.create()? } else { builder.open()? };
        let table =
            if access.create { store.create_table("entries", table_options)? } else { store.table("entries")? };
        let durability = if access.sync { Durability::Sync } else { Durability::Buffered };
        Ok(Strongroom { store, table, durability })
    }
}

#[cfg(strongroom_plaintext_baseline)]
fn unsealed(builder: Builder) -> Result<Builder> {
    Ok(builder.plaintext_baseline())
}

#[cfg(not(strongroom_plaintext_baseline))]
fn unsealed(_: Builder) -> Result<Builder> {
    Err("this build always encrypts: engine none needs --baseline".into())
}

impl Peer for Strongroom {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.table.put_with(key, value, self.durability)?)
    }

    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
        let mut batch = self.store.batch();
        for (key, value) in entries {
            batch.put(&self.table, key, value);
        }
        Ok(batch.commit()?)
    }

    fn get(&self, key: &Key) -> Result<Option<usize>> {
        Ok(self.table.get(key)?.map(|value| value.len()))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        let mut cursor = self.table.cursor()?;
        while let Some((key, value)) = cursor.next()? {
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        Ok((entries, bytes))
    }

    fn iterate(&self) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        for entry in self.table.iter() {
            let (key, value) = entry?;
            entries += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        Ok((entries, bytes))
    }

    fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
        let mut cursor = self.table.cursor()?;
        let mut met = 0;
        let mut entry = cursor.seek(key)?;
        while entry.is_some() && met < steps {
            met += 1;
            entry = cursor.next()?;
        }
        Ok(met)
    }

    fn settle(&self) -> Result<()> {
        self.store.flush()?;
        Ok(self.store.compact()?)
    }
}
