//! The handle to one table.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use super::batch::{Single, check_key, check_write};
use super::catalog::{Seat, TableState};
use super::describe::TableDescription;
use super::scan::{Cursor, Range, key_range, lookup, prefix_range};
use super::session::{AccessKeys, Action, Handle};
use crate::error::Result;
use crate::merge::KeyRange;
use crate::options::Durability;
use crate::types::{Kind, TableId};
use crate::value::Value;

/// A table of an open store, for one principal: keys and values in byte order, sealed under a key of their own.
///
/// Cheap to clone, and safe to use from many threads. A handle outlives neither the table nor the store: once
/// either is gone its calls fail with [`Error::TableDropped`](crate::Error::TableDropped) or [`Error::Closed`](crate::Error::Closed).
#[derive(Clone)]
pub struct Table {
    engine: Arc<Handle>,
    seat: Seat,
}

impl Table {
    pub(crate) fn new(engine: Arc<Handle>, state: Arc<TableState>) -> Table {
        let seat = engine.seat(state);
        Table { engine, seat }
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    pub(crate) fn state(&self) -> &Arc<TableState> {
        &self.seat.table
    }

    pub(crate) fn engine(&self) -> &Arc<Handle> {
        &self.engine
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.seat.table.name
    }

    /// The table's durable identity.
    pub fn id(&self) -> TableId {
        self.seat.table.id
    }

    /// Set `key` to `value`, acknowledged once the operating system has it ([`Durability::Buffered`]).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an empty key;
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded) for a key over 65,535 bytes or a value over 512 MiB;
    /// [`Error::TableInaccessible`](crate::Error::TableInaccessible) if the table's key is refused to everybody; callers share such an answer for a second.
    /// [`Error::KeyUnavailable`](crate::Error::KeyUnavailable) if the provider does not give the table's key to this principal;
    /// [`Error::AccessDenied`](crate::Error::AccessDenied) if the [`Authorizer`](crate::Authorizer) does not allow it. In these cases nothing was written.
    /// [`Error::Io`](crate::Error::Io) if writing failed, and [`Error::Poisoned`](crate::Error::Poisoned) from then on.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.put_with(key, value, Durability::Buffered)
    }

    /// Set `key` to `value` with this durability.
    ///
    /// # Errors
    /// As for [`put`](Table::put).
    pub fn put_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, durability: Durability) -> Result<()> {
        self.write(Kind::Put, key.as_ref(), value.as_ref(), durability)
    }

    /// Remove `key`; it need not be there.
    ///
    /// # Errors
    /// As for [`put`](Table::put).
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.delete_with(key, Durability::Buffered)
    }

    /// Remove `key` with this durability; it need not be there.
    ///
    /// # Errors
    /// As for [`put`](Table::put).
    pub fn delete_with(&self, key: impl AsRef<[u8]>, durability: Durability) -> Result<()> {
        self.write(Kind::Delete, key.as_ref(), &[], durability)
    }

    fn write(&self, kind: Kind, key: &[u8], value: &[u8], durability: Durability) -> Result<()> {
        check_write(key, value)?;
        self.engine.authorise(&self.seat.table, Action::Write, AccessKeys::One(key))?;
        self.engine.commit(&Single::new(&self.seat, kind, key, value), durability)
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) or [`Error::LimitExceeded`](crate::Error::LimitExceeded) for a key that cannot be;
    /// [`Error::KeyUnavailable`](crate::Error::KeyUnavailable) if the provider does not give the table's key to this principal;
    /// [`Error::AccessDenied`](crate::Error::AccessDenied) if the [`Authorizer`](crate::Authorizer) does not allow it;
    /// [`Error::Tampered`](crate::Error::Tampered), [`Error::BitRot`](crate::Error::BitRot), [`Error::MissingFile`](crate::Error::MissingFile) or
    /// [`Error::Io`](crate::Error::Io) if a block that may hold it cannot be read as it was written.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let key = key.as_ref();
        check_key(key)?;
        self.engine.authorise(&self.seat.table, Action::Read, AccessKeys::One(key))?;
        // The view first and the visible number second: what the number shows is then in the view, or came after the call.
        self.engine
            .with_view(&self.seat, |view| lookup(&self.engine, &self.seat.table, view, key, self.engine.visible.load()))
    }

    /// Whether `key` has a value.
    ///
    /// # Errors
    /// As for [`get`](Table::get).
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// The entries with keys in `keys`, from either end, as they are now.
    ///
    /// What keeps the table from being read comes as the first item, what keeps an entry from being read in its place;
    /// the errors are those of [`get`](Table::get).
    ///
    /// # Example
    /// ```
    /// # let store = strongroom::Store::temporary()?;
    /// # let table = store.create_table("t", Default::default())?;
    /// table.put("b", "2")?;
    /// table.put("c", "3")?;
    /// let last = table.range("a".."c").next_back().transpose()?;
    /// assert_eq!(last.map(|(key, _)| key.to_vec()), Some(b"b".to_vec()));
    /// # Ok::<(), strongroom::Error>(())
    /// ```
    pub fn range<K: AsRef<[u8]>>(&self, keys: impl RangeBounds<K>) -> Range {
        self.walk(key_range(&keys))
    }

    /// The entries whose keys begin with `prefix`, from either end, as they are now. Errors come as items, as for [`range`](Table::range).
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        self.walk(prefix_range(prefix.as_ref()))
    }

    /// All entries, from either end, as they are now. Errors come as items, as for [`range`](Table::range).
    pub fn iter(&self) -> Range {
        self.walk(KeyRange::default())
    }

    /// A cursor over the entries as they are now: the fastest way to walk.
    ///
    /// # Errors
    /// As for [`get`](Table::get).
    pub fn cursor(&self) -> Result<Cursor> {
        // The moment first: what compaction drops from now on, it cannot see.
        let pin = self.engine.pin_moment();
        self.engine.authorise_range(&self.seat.table, &KeyRange::default())?;
        let view = self.engine.admit(&self.seat)?;
        Cursor::new(self.engine.clone(), self.seat.clone(), &view, pin, KeyRange::default())
    }

    fn walk(&self, range: KeyRange) -> Range {
        let pin = self.engine.pin_moment();
        let allowed = self.engine.authorise_range(&self.seat.table, &range);
        let view = allowed.and_then(|()| self.engine.admit(&self.seat));
        Range::new(self.engine.clone(), self.seat.clone(), view, pin, range)
    }

    /// Status, key, sizes and counts.
    ///
    /// # Errors
    /// [`Error::TableDropped`](crate::Error::TableDropped), [`Error::Closed`](crate::Error::Closed), or what kept the table's key file from being read.
    pub fn describe(&self) -> Result<TableDescription> {
        self.engine.describe(&self.seat.table)
    }

    /// Write what is in memory to sorted tables, and return once it is there. The owner's.
    ///
    /// # Errors
    /// As for [`put`](Table::put); [`Error::AccessDenied`](crate::Error::AccessDenied) in another's session.
    pub fn flush(&self) -> Result<()> {
        self.engine.check_owner("flush a table")?;
        self.engine.flush_table(&self.seat)
    }

    /// Compact until nothing is left to do for this table. The owner's.
    ///
    /// # Errors
    /// As for [`put`](Table::put); [`Error::AccessDenied`](crate::Error::AccessDenied) in another's session.
    pub fn compact(&self) -> Result<()> {
        self.engine.check_owner("compact a table")?;
        self.engine.compact_table(&self.seat)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("id", &self.seat.table.id).finish_non_exhaustive()
    }
}
