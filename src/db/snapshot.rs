//! Moments of the whole store, and what keeps them readable.
//!
//! Compaction may drop a version of an entry that no registered moment can see. A moment is registered
//! under the lock with which compaction reads the registered ones, so there is no gap between choosing a moment and
//! protecting it.

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Engine;
use super::batch::check_key;
use super::catalog::View;
use super::scan::{Cursor, Range, key_range, lookup, prefix_range};
use super::session::{AccessKeys, Action, Handle};
use super::table::Table;
use crate::compaction::Readers;
use crate::error::Result;
use crate::io::Tick;
use crate::merge::KeyRange;
use crate::sync::VisibleSeq;
use crate::types::Seq;
use crate::value::Value;

/// The moments that somebody may still look at.
#[derive(Default)]
pub(crate) struct Moments {
    held: Mutex<BTreeMap<Seq, Held>>,
}

/// A moment that somebody may still look at.
struct Held {
    pins: usize,
    /// When it was first registered.
    since: Tick,
}

impl Moments {
    /// Register the present moment. `now` may be a little behind.
    fn pin(self: &Arc<Moments>, visible: &VisibleSeq, now: Tick) -> Pin {
        let mut held = self.held.lock();
        let seq = visible.load();
        held.entry(seq).or_insert_with(|| Held { pins: 0, since: now }).pins += 1;
        Pin { moments: self.clone(), seq }
    }

    /// How many moments are registered, and the oldest with the time since when it is.
    pub(crate) fn oldest(&self) -> (usize, Option<(Seq, Tick)>) {
        let held = self.held.lock();
        (held.len(), held.first_key_value().map(|(&seq, oldest)| (seq, oldest.since)))
    }

    /// Who reads, now or later: every registered moment and the present one.
    pub(crate) fn readers(&self, visible: &VisibleSeq) -> Readers {
        let held = self.held.lock();
        Readers::new(held.keys().copied().collect(), visible.load())
    }
}

impl Engine {
    /// Register the present moment, without a call to a clock.
    pub(crate) fn pin_moment(&self) -> Pin {
        // In a forked child, or while the store is inaccessible, no time passes.
        self.moments.pin(&self.visible, self.tick.load().unwrap_or(Tick(u64::MAX)))
    }
}

/// Holds one moment until it is dropped.
pub(crate) struct Pin {
    moments: Arc<Moments>,
    seq: Seq,
}

impl Pin {
    /// The sequence number of the last commit that is seen.
    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }
}

impl Clone for Pin {
    fn clone(&self) -> Pin {
        if let Some(held) = self.moments.held.lock().get_mut(&self.seq) {
            held.pins += 1;
        }
        Pin { moments: self.moments.clone(), seq: self.seq }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.moments.held.lock();
        if let Some(moment) = held.get_mut(&self.seq) {
            moment.pins -= 1;
            if moment.pins == 0 {
                held.remove(&self.seq);
            }
        }
    }
}

/// The whole store as it was at one moment.
///
/// Costs nothing to make. While it lives, what it sees is kept on disk. Cheap to clone.
///
/// # Example
/// ```
/// # let store = strongroom::Store::temporary()?;
/// # let table = store.create_table("t", Default::default())?;
/// table.put(b"k", b"old")?;
/// let snapshot = store.snapshot();
/// table.put(b"k", b"new")?;
/// assert_eq!(snapshot.get(&table, b"k")?.as_deref(), Some(&b"old"[..]));
/// # Ok::<(), strongroom::Error>(())
/// ```
#[derive(Clone)]
pub struct Snapshot {
    engine: Arc<Handle>,
    pin: Pin,
}

impl Snapshot {
    pub(crate) fn new(engine: Arc<Handle>) -> Snapshot {
        let pin = engine.pin_moment();
        Snapshot { engine, pin }
    }

    /// The value that `key` had in `table`.
    ///
    /// # Errors
    /// As for [`Table::get`].
    pub fn get(&self, table: &Table, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine.check_own(table)?;
        let (key, seq) = (key.as_ref(), self.pin.seq());
        check_key(key)?;
        self.engine.authorise(table.state(), Action::Read, AccessKeys::One(key))?;
        self.engine.with_view(table.seat(), |view| lookup(&self.engine, table.state(), view, key, seq))
    }

    /// The entries of `table` with keys in `keys`, from either end. Errors come as items, as for [`Table::range`].
    pub fn range<K: AsRef<[u8]>>(&self, table: &Table, keys: impl RangeBounds<K>) -> Range {
        self.walk(table, key_range(&keys))
    }

    /// The entries of `table` whose keys begin with `prefix`, from either end. Errors come as items, as for [`Table::range`].
    pub fn prefix(&self, table: &Table, prefix: impl AsRef<[u8]>) -> Range {
        self.walk(table, prefix_range(prefix.as_ref()))
    }

    /// All entries of `table`, from either end. Errors come as items, as for [`Table::range`].
    pub fn iter(&self, table: &Table) -> Range {
        self.walk(table, KeyRange::default())
    }

    /// A cursor over `table`.
    ///
    /// # Errors
    /// As for [`Table::get`].
    pub fn cursor(&self, table: &Table) -> Result<Cursor> {
        let view = self.admit(table, &KeyRange::default())?;
        Cursor::new(self.engine.clone(), table.seat().clone(), &view, self.pin.clone(), KeyRange::default())
    }

    fn walk(&self, table: &Table, range: KeyRange) -> Range {
        let view = self.admit(table, &range);
        Range::new(self.engine.clone(), table.seat().clone(), view, self.pin.clone(), range)
    }

    fn admit(&self, table: &Table, range: &KeyRange) -> Result<Arc<View>> {
        self.engine.check_own(table)?;
        self.engine.authorise_range(table.state(), range)?;
        self.engine.admit(table.seat())
    }
}
