//! A batch: writes to any number of tables that become visible and durable together or not at all.
//!
//! ```text
//! tables   a            b          in the order in which they were first written to
//! parts    2 writes     1 write    how many writes each has, and how long they are in the log
//!          │  └─────────│──────┐
//!          v            v      v
//! ops      put a 1   put b 1   put a 2    each knows the next one of its table
//! bytes    k v       k v       k v
//! ```
//! So a commit goes over the writes of one table after the other without sorting or copying them, and putting a batch together takes the same
//! time per write however many tables there are.

use std::collections::HashMap;
use std::sync::Arc;

use super::catalog::Seat;
use super::session::{AccessKeys, Action, Handle};
use super::table::Table;
use crate::crypto::Wiped;
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::types::{BATCH_BYTES_MAX, BATCH_WRITES_MAX, KEY_BYTES_MAX, Kind, Slot, VALUE_BYTES_MAX};
use crate::wal::Op;

/// Writes to any number of tables that are committed together or not at all.
///
/// Later writes of the same key win over earlier ones. Nothing is written before
/// [`commit`](Batch::commit); dropping a batch forgets it. Limits: 1 GiB of keys and values, 16,777,216 writes, and
/// 32,765 tables.
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

/// What a commit is made of.
pub(crate) trait WriteSet {
    /// The tables written to, each once, with the writer's permits.
    fn tables(&self) -> &[Seat];
    /// The writes to the table at this place in [`tables`](WriteSet::tables).
    fn part(&self, index: usize) -> Part<'_>;
    /// Number of writes.
    fn len(&self) -> usize;
    /// Bytes of keys and values.
    fn bytes(&self) -> usize;
    /// A copy that can wait in a queue.
    fn to_owned(&self) -> Writes;
}

/// The writes to one table, at least one.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub seat: &'a Seat,
    /// How many there are.
    pub entries: u64,
    /// How many of these are deletes.
    pub deletes: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// What they take in the log.
    pub raw_bytes: u64,
    row: Row<'a>,
}

#[derive(Clone, Copy)]
enum Row<'a> {
    One(Op<'a>),
    Chain { writes: &'a Writes, first: u32 },
}

impl<'a> Part<'a> {
    /// Every write, in order.
    #[inline]
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Op<'a>) -> Result<()>) -> Result<()> {
        match self.row {
            Row::One(op) => visit(op),
            Row::Chain { writes, mut first } => {
                while let Some(link) = writes.ops.get(first as usize) {
                    visit(writes.op(link))?;
                    first = link.next;
                }
                Ok(())
            }
        }
    }
}

/// A single write, borrowed from the caller.
pub(crate) struct Single<'a> {
    seat: &'a Seat,
    op: Op<'a>,
}

impl<'a> Single<'a> {
    pub(crate) fn new(seat: &'a Seat, kind: Kind, key: &'a [u8], value: &'a [u8]) -> Single<'a> {
        Single { seat, op: Op { kind, key, value } }
    }
}

impl WriteSet for Single<'_> {
    fn tables(&self) -> &[Seat] {
        std::slice::from_ref(self.seat)
    }

    fn part(&self, _index: usize) -> Part<'_> {
        let Single { seat, op } = *self;
        let (bytes, deletes) = (self.bytes() as u64, u64::from(op.kind == Kind::Delete));
        Part { seat, entries: 1, deletes, bytes, raw_bytes: op.raw_bytes(), row: Row::One(op) }
    }

    fn len(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        self.op.key.len() + self.op.value.len()
    }

    fn to_owned(&self) -> Writes {
        let mut writes = Writes { bytes: Wiped::with_capacity(self.bytes()), ..Writes::default() };
        writes.push(self.seat, self.op.kind, self.op.key, self.op.value);
        writes
    }
}

/// Writes that own their bytes, which are wiped when they are dropped.
#[derive(Default)]
pub(crate) struct Writes {
    tables: Vec<Seat>,
    /// What is written to each of these.
    chains: Vec<Chain>,
    ops: Vec<Link>,
    bytes: Wiped,
    /// Where each table stands, once there are more than are looked through.
    places: HashMap<Slot, u32>,
    /// The table of the latest write.
    latest: usize,
}

/// The writes to one table.
struct Chain {
    first: u32,
    last: u32,
    entries: u64,
    deletes: u64,
    bytes: u64,
    raw_bytes: u64,
}

/// One write of [`Writes`]: the key ends where the value begins.
struct Link {
    start: usize,
    key_bytes: u32,
    value_bytes: u32,
    /// The next write to the same table; [`END`] for none.
    next: u32,
    kind: Kind,
}

/// No write has this number: there are at most [`BATCH_WRITES_MAX`].
const END: u32 = u32::MAX;
/// So many tables are looked through.
const TABLES_LOOKED_THROUGH: usize = 8;

impl Writes {
    fn push(&mut self, seat: &Seat, kind: Kind, key: &[u8], value: &[u8]) {
        let link = Link {
            start: self.bytes.len(),
            key_bytes: key.len() as u32,
            value_bytes: value.len() as u32,
            next: END,
            kind,
        };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        let number = self.ops.len() as u32;
        self.ops.push(link);
        let place = match self.place_of(seat) {
            Some(place) => {
                let last = std::mem::replace(&mut self.chains[place].last, number);
                self.ops[last as usize].next = number;
                place
            }
            None => self.begin(seat, number),
        };
        let chain = &mut self.chains[place];
        chain.entries += 1;
        chain.deletes += u64::from(kind == Kind::Delete);
        chain.bytes += (key.len() + value.len()) as u64;
        chain.raw_bytes += Op { kind, key, value }.raw_bytes();
        self.latest = place;
    }

    /// Take in a table whose first write is this one; where it stands.
    fn begin(&mut self, seat: &Seat, first: u32) -> usize {
        self.tables.push(seat.clone());
        self.chains.push(Chain { first, last: first, entries: 0, deletes: 0, bytes: 0, raw_bytes: 0 });
        if self.tables.len() > TABLES_LOOKED_THROUGH {
            // All of them the first time, and the new one from then on.
            let known = self.places.len();
            let slots = self.tables.iter().map(|seat| seat.table.slot).zip(0..);
            self.places.extend(slots.skip(known));
        }
        self.tables.len() - 1
    }

    fn place_of(&self, seat: &Seat) -> Option<usize> {
        let is_it = |known: &Seat| Arc::ptr_eq(&known.table, &seat.table);
        // Batches mostly go on with the table that they wrote last.
        if self.tables.get(self.latest).is_some_and(is_it) {
            return Some(self.latest);
        }
        if self.places.is_empty() {
            return self.tables.iter().position(is_it);
        }
        self.places.get(&seat.table.slot).map(|place| *place as usize)
    }

    fn op(&self, link: &Link) -> Op<'_> {
        let (key, rest) = self.bytes[link.start..].split_at(link.key_bytes as usize);
        Op { kind: link.kind, key, value: &rest[..link.value_bytes as usize] }
    }
}

impl WriteSet for Writes {
    fn tables(&self) -> &[Seat] {
        &self.tables
    }

    fn part(&self, index: usize) -> Part<'_> {
        let Chain { first, entries, deletes, bytes, raw_bytes, .. } = self.chains[index];
        let row = Row::Chain { writes: self, first };
        Part { seat: &self.tables[index], entries, deletes, bytes, raw_bytes, row }
    }

    fn len(&self) -> usize {
        self.ops.len()
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn to_owned(&self) -> Writes {
        let mut writes = Writes { bytes: Wiped::with_capacity(self.bytes.len()), ..Writes::default() };
        // Table by table: what matters is the order of the writes to one table.
        for index in 0..self.tables.len() {
            let part = self.part(index);
            // Copying cannot fail.
            let _ = part.for_each(|op| {
                writes.push(part.seat, op.kind, op.key, op.value);
                Ok(())
            });
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::TableOptions;
    use crate::{Store, Table};

    fn tables(store: &Store, count: usize) -> Vec<Table> {
        let names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        let wanted: Vec<(&str, TableOptions)> = names.iter().map(|name| (name.as_str(), TableOptions::new())).collect();
        store.create_tables(&wanted).unwrap()
    }

    /// Keys of the writes to the table at this place, in order.
    fn keys(writes: &Writes, place: usize) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let visit = |op: Op<'_>| {
            keys.push(op.key.to_vec());
            Ok(())
        };
        writes.part(place).for_each(visit).unwrap();
        keys
    }

    #[test]
    fn a_write_of_a_batch_finds_its_table_without_looking_through_the_others() {
        // Looked through one by one, a batch over 4,000 tables took a thousand times as long per write as one over four.
        let store = Store::temporary().unwrap();
        let tables = tables(&store, 400);
        let mut batch = store.batch();
        for round in 0..3u8 {
            for (number, table) in tables.iter().enumerate() {
                batch.put(table, [round], []);
                let known = batch.writes.tables.len();
                assert_eq!(known, if round == 0 { number + 1 } else { tables.len() });
                // Few are looked through, and of more it is known where each stands.
                let listed = if known > TABLES_LOOKED_THROUGH { known } else { 0 };
                assert_eq!(batch.writes.places.len(), listed);
            }
        }
        for (place, table) in tables.iter().enumerate() {
            assert!(Arc::ptr_eq(&batch.writes.tables[place].table, table.state()));
            assert_eq!(keys(&batch.writes, place), [[0], [1], [2]], "a table's own writes in order, and no others");
        }
        let copy = WriteSet::to_owned(&batch.writes);
        assert!((0..tables.len()).all(|place| keys(&copy, place) == [[0], [1], [2]]));
        batch.commit().unwrap();
    }

    #[test]
    fn a_part_says_what_it_takes_in_the_log() {
        // A section is sealed into room that was made for it: a wrong length would end the process.
        let store = Store::temporary().unwrap();
        let tables = tables(&store, 2);
        let mut batch = store.batch();
        batch.put(&tables[0], "key", vec![7; 300]).delete(&tables[1], "gone").put(&tables[0], "k", "");
        let part = batch.writes.part(0);
        assert_eq!((part.entries, part.deletes, part.bytes), (2, 0, 304));
        // Kind, one byte of key length, two of value length; and kind, key length, value length.
        assert_eq!(part.raw_bytes, (1 + 1 + 2 + 3 + 300) + (1 + 1 + 1 + 1));
        let part = batch.writes.part(1);
        assert_eq!((part.entries, part.deletes, part.bytes, part.raw_bytes), (1, 1, 4, 1 + 1 + 4));
    }
}
