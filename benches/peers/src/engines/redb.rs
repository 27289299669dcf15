//! redb as a peer.

use std::path::Path;

use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::Result;
use crate::settings::Settings;
use crate::workload::{Access, Key, Open, Peer, Value};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");

/// How to open databases: it has nothing to set but its cache.
pub fn open(_: &Settings) -> Box<Open> {
    Box::new(|path, access| Ok(Box::new(Redb::open(path, access)?)))
}

struct Redb {
    database: Database,
    durability: Durability,
}

impl Redb {
    fn open(path: &Path, access: &Access) -> Result<Redb> {
        if access.create {
            std::fs::create_dir(path)?;
        }
        let database = Builder::new().set_cache_size(access.cache_bytes).create(path.join("data.redb"))?;
        let durability = if access.sync { Durability::Immediate } else { Durability::None };
        let redb = Redb { database, durability };
        if access.create {
            // So that readers find the table before there is anything in it.
            redb.write(redb.durability, |_| Ok(()))?;
        }
        Ok(redb)
    }

    fn write(
        &self,
        durability: Durability,
        work: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<()>,
    ) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        work(&mut transaction.open_table(TABLE)?)?;
        Ok(transaction.commit()?)
    }
}

impl Peer for Redb {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.write(self.durability, |table| {
            table.insert(&key[..], value)?;
            Ok(())
        })
    }

    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
        self.write(self.durability, |table| {
            for (key, value) in entries {
                table.insert(&key[..], &value[..])?;
            }
            Ok(())
        })
    }

    fn get(&self, key: &Key) -> Result<Option<usize>> {
        let table = self.database.begin_read()?.open_table(TABLE)?;
        Ok(table.get(&key[..])?.map(|value| value.value().len()))
    }

    fn scan(&self) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        for entry in self.database.begin_read()?.open_table(TABLE)?.iter()? {
            let (key, value) = entry?;
            entries += 1;
            bytes += (key.value().len() + value.value().len()) as u64;
        }
        Ok((entries, bytes))
    }

    fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
        let mut met = 0;
        for entry in self.database.begin_read()?.open_table(TABLE)?.range(&key[..]..)?.take(steps) {
            entry?;
            met += 1;
        }
        Ok(met)
    }

    /// Nothing happens in the background; what was committed without a sync reaches the file with the next that has one.
    fn settle(&self) -> Result<()> {
        self.write(Durability::Immediate, |_| Ok(()))
    }
}
