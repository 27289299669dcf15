//! A batch: writes to any number of tables that become visible and durable together or not at all.

use std::sync::Arc;

use super::catalog::{Seat, TableState};
use super::session::{AccessKeys, Action, Handle};
use super::table::Table;
use crate::crypto::Wiped;
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::types::{BATCH_BYTES_MAX, BATCH_WRITES_MAX, KEY_BYTES_MAX, Kind, VALUE_BYTES_MAX};

/// Writes to any number of tables that are committed together or not at all.
///
/// Later writes of the same key win over earlier ones. Nothing is written before
/// [`commit`](Batch::commit); dropping a batch forgets it. Limits: 1 GiB of keys and values, 16,777,216 writes, and
/// 16,382 tables.
///
/// # Example
/// ```
/// # let store = strongroom::Store::temporary()?;
/// # let (users, log) = (store.create_table("users", Default::default())?, store.create_table("log", Default::default())?);
/// let mut batch = store.batch();
/// batch.put(&users, b"ada", b"1815").put(&log, b"1", b"ada joined").delete(&users, b"bob");
/// batch.commit()?;
/// # Ok::<(), strongroom::Error>(())
/// ```
pub struct Batch {
    engine: Arc<Handle>,
    writes: Writes,
    refused: Option<Error>,
}

impl Batch {
    pub(crate) fn new(engine: Arc<Handle>) -> Batch {
        Batch { engine, writes: Writes::default(), refused: None }
    }

    /// Set `key` to `value` in `table`.
    ///
    /// An argument that the engine cannot accept is reported by [`commit`](Batch::commit).
    pub fn put(&mut self, table: &Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Batch {
        self.push(table, Kind::Put, key.as_ref(), value.as_ref())
    }

    /// Remove `key` from `table`; it need not be there.
    ///
    /// An argument that the engine cannot accept is reported by [`commit`](Batch::commit).
    pub fn delete(&mut self, table: &Table, key: impl AsRef<[u8]>) -> &mut Batch {
        self.push(table, Kind::Delete, key.as_ref(), &[])
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.ops.len()
    }

    /// Whether there are no writes.
    pub fn is_empty(&self) -> bool {
        self.writes.ops.is_empty()
    }

    /// Commit everything, acknowledged once the operating system has it ([`Durability::Buffered`]).
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] or [`Error::InvalidArgument`] if a write was refused: then nothing is
    /// written. Otherwise as for [`Table::put`].
    pub fn commit(self) -> Result<()> {
        self.commit_with(Durability::Buffered)
    }

    /// Commit everything with this durability.
    ///
    /// # Errors
    /// As for [`Batch::commit`].
    pub fn commit_with(self, durability: Durability) -> Result<()> {
        match self.refused {
            Some(refused) => Err(refused),
            None => self.engine.commit(&self.writes, durability),
        }
    }

    fn push(&mut self, table: &Table, kind: Kind, key: &[u8], value: &[u8]) -> &mut Batch {
        if self.refused.is_none() {
            let checked = self.engine.check_own(table).and_then(|()| check_write(key, value)).and_then(|()| {
                self.engine.authorise(table.state(), Action::Write, AccessKeys::One(key))?;
                let bytes = self.writes.bytes.len() + key.len() + value.len();
                limit("bytes of keys and values in a batch", bytes, BATCH_BYTES_MAX)?;
                limit("writes in a batch", self.writes.len() + 1, BATCH_WRITES_MAX)
            });
            match checked {
                Ok(()) => self.writes.push(table.seat(), kind, key, value),
                Err(error) => self.refused = Some(error),
            }
        }
        self
    }
}

/// Whether a key and a value are within the engine's limits.
pub(crate) fn check_write(key: &[u8], value: &[u8]) -> Result<()> {
    check_key(key)?;
    limit("length of a value in bytes", value.len(), VALUE_BYTES_MAX)
}

/// Whether a key is within the engine's limits.
pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::InvalidArgument { what: "key", detail: "a key has at least one byte".into() });
    }
    limit("length of a key in bytes", key.len(), KEY_BYTES_MAX)
}

fn limit(what: &'static str, actual: usize, limit: usize) -> Result<()> {
    if actual <= limit {
        return Ok(());
    }
    Err(Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 })
}

/// One write, wherever its bytes lie.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    pub table: &'a Arc<TableState>,
    pub kind: Kind,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// What a commit is made of.
pub(crate) trait WriteSet {
    /// Every write, in order.
    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(Write<'a>));
    /// The tables written to, each once, with the writer's permits.
    fn tables(&self) -> &[Seat];
    /// Number of writes.
    fn len(&self) -> usize;
    /// Bytes of keys and values.
    fn bytes(&self) -> usize;
    /// A copy that can wait in a queue.
    fn to_owned(&self) -> Writes;
}

/// A single write, borrowed from the caller.
pub(crate) struct Single<'a> {
    seat: &'a Seat,
    kind: Kind,
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Single<'a> {
    pub(crate) fn new(seat: &'a Seat, kind: Kind, key: &'a [u8], value: &'a [u8]) -> Single<'a> {
        Single { seat, kind, key, value }
    }
}

impl WriteSet for Single<'_> {
    fn for_each<'b>(&'b self, visit: &mut dyn FnMut(Write<'b>)) {
        visit(Write { table: &self.seat.table, kind: self.kind, key: self.key, value: self.value });
    }

    fn tables(&self) -> &[Seat] {
        std::slice::from_ref(self.seat)
    }

    fn len(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }

    fn to_owned(&self) -> Writes {
        let mut writes = Writes::default();
        writes.push(self.seat, self.kind, self.key, self.value);
        writes
    }
}

/// Writes that own their bytes, which are wiped when they are dropped.
#[derive(Default)]
pub(crate) struct Writes {
    tables: Vec<Seat>,
    ops: Vec<Op>,
    bytes: Wiped,
}

/// One write of [`Writes`]: the key ends where the value begins.
struct Op {
    table: u32,
    kind: Kind,
    start: usize,
    key_bytes: u32,
    value_bytes: u32,
}

impl Writes {
    fn push(&mut self, seat: &Seat, kind: Kind, key: &[u8], value: &[u8]) {
        // Batches mostly go on with the table that they wrote last.
        let index = match self.tables.iter().rposition(|known| Arc::ptr_eq(&known.table, &seat.table)) {
            Some(index) => index,
            None => {
                self.tables.push(seat.clone());
                self.tables.len() - 1
            }
        };
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.ops.push(Op {
            table: index as u32,
            kind,
            start,
            key_bytes: key.len() as u32,
            value_bytes: value.len() as u32,
        });
    }
}

impl WriteSet for Writes {
    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(Write<'a>)) {
        for op in &self.ops {
            let (key, rest) = self.bytes[op.start..].split_at(op.key_bytes as usize);
            let table = &self.tables[op.table as usize].table;
            visit(Write { table, kind: op.kind, key, value: &rest[..op.value_bytes as usize] });
        }
    }

    fn tables(&self) -> &[Seat] {
        &self.tables
    }

    fn len(&self) -> usize {
        self.ops.len()
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn to_owned(&self) -> Writes {
        let mut writes = Writes::default();
        for op in &self.ops {
            let (key, rest) = self.bytes[op.start..].split_at(op.key_bytes as usize);
            writes.push(&self.tables[op.table as usize], op.kind, key, &rest[..op.value_bytes as usize]);
        }
        writes
    }
}
