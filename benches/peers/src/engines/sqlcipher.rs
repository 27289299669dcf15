//! SQLCipher as a peer, through rusqlite.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use crate::Result;
use crate::settings::Settings;
use crate::workload::{Access, Key, Open, Peer, Value};

/// How to open databases: with a key of its own rather than a passphrase, whose stretching would count as opening.
pub fn open(_: &Settings) -> Box<Open> {
    Box::new(|path, access| Ok(Box::new(SqlCipher::open(path, access)?)))
}

struct SqlCipher {
    connection: Connection,
}

const PUT: &str =
    "INSERT INTO entries (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";

impl SqlCipher {
    fn open(path: &Path, access: &Access) -> Result<SqlCipher> {
        if access.create {
            std::fs::create_dir(path)?;
        }
        let connection = Connection::open(path.join("data.db"))?;
        let synchronous = if access.sync { "FULL" } else { "OFF" };
        connection.execute_batch(&format!(
            "PRAGMA key = \"x'{}'\";
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = {synchronous};
             PRAGMA cache_size = -{};
             CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",
            "07".repeat(32),
            access.cache_bytes >> 10,
        ))?;
        let version: Option<String> = connection.query_row("PRAGMA cipher_version", [], |row| row.get(0)).optional()?;
        version.ok_or("this SQLite has no encryption")?;
        Ok(SqlCipher { connection })
    }

    fn walk(&self, key: &[u8], steps: usize) -> Result<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        let mut statement =
            self.connection.prepare_cached("SELECT key, value FROM entries WHERE key >= ?1 ORDER BY key")?;
        let mut rows = statement.query([key])?;
        while entries < steps as u64
            && let Some(row) = rows.next()?
        {
            entries += 1;
            bytes += (row.get_ref(0)?.as_blob()?.len() + row.get_ref(1)?.as_blob()?.len()) as u64;
        }
        Ok((entries, bytes))
    }
}

impl Peer for SqlCipher {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.connection.prepare_cached(PUT)?.execute((&key[..], value))?;
        Ok(())
    }

    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()> {
        let transaction = self.connection.unchecked_transaction()?;
        for (key, value) in entries {
            self.put(key, value)?;
        }
        Ok(transaction.commit()?)
    }

    fn get(&self, key: &Key) -> Result<Option<usize>> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM entries WHERE key = ?1")?;
        Ok(statement.query_row([&key[..]], |row| Ok(row.get_ref(0)?.as_blob()?.len())).optional()?)
    }

    fn scan(&self) -> Result<(u64, u64)> {
        self.walk(&[], usize::MAX)
    }

    fn seek(&self, key: &Key, steps: usize) -> Result<usize> {
        Ok(self.walk(key, steps)?.0 as usize)
    }

    /// Nothing happens in the background; the log goes into the file.
    fn settle(&self) -> Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}
