//! Recent writes of one table in order: readable without a lock while one writer adds to them.
//!
//! A B+-tree ([`tree`]) in an arena that only ever grows ([`arena`]). Entries are in the engine's order, key ascending and
//! trailer descending, so that the newest version of a key that a reader at some sequence number may see is the first entry at or
//! behind `(key, Trailer::seek(number))`.
//!
//! * **Readers** take no lock, and look again if the writer changed a node under them (a reader whom that happens to again and again waits
//!   for it). They see every entry whose insert came before the sequence number that they read at became visible; of later
//!   ones they may see any, and pass them over by their number.
//! * **The writer** is one at a time, by a lock inside, so that [`Memtable::insert`] is safe to call from anywhere.
//! * **Rising keys**, the commonest way to fill a store, skip the search, and fill every leaf.
//! * **A cursor** goes both ways alike within a leaf, and searches from the top for the next one.
//! * **Nothing is random**: what an insert costs follows from the keys, and no choice of keys makes the tree deep.
//!
//! A skiplist is simpler and stood here first. What one costs is cache misses: a search looks at some twenty nodes, one after the other
//! and each somewhere else. Here a search looks at four or five nodes, all but the last of which are in the cache, and at an entry if
//! it is the one sought. A tree whose readers never look again stood here second: what they may find in a node that is half split
//! took pages to argue, and the argument had holes. A radix tree would need fewer comparisons, but nodes of many sizes, and has no leaves in
//! which scans and flushes find many entries at once.

mod arena;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::Result;
use crate::types::{Seq, Trailer};
use crate::value::Value;
use arena::{Arena, Entry, Place};
use tree::Sought;

/// Recent writes of one table.
pub(crate) struct Memtable {
    arena: Arc<Arena>,
}

impl Memtable {
    /// An empty memtable. It holds one chunk of 2 KiB.
    pub(crate) fn new() -> Memtable {
        Memtable { arena: Arc::new(Arena::new()) }
    }

    /// Add an entry. A second one with the same key and trailer changes nothing.
    ///
    /// # Errors
    /// [`LimitExceeded`](crate::Error::LimitExceeded) if key or value are too long or the memtable holds 4 GiB; nothing was
    /// added then.
    pub(crate) fn insert(&self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        self.arena.writer().insert(key, trailer, value)
    }

    /// The newest version of `key` that a reader at `seq` sees, deletes included.
    pub(crate) fn get(&self, key: &[u8], seq: Seq) -> Option<(Trailer, Value)> {
        let entry = tree::first_from(&self.arena, &Sought::new(key, Trailer::seek(seq)))?;
        (entry.key() == key).then(|| (entry.trailer(), value_of(entry)))
    }

    /// A cursor over the entries. Entries added later may or may not be met.
    pub(crate) fn cursor(self: &Arc<Self>) -> MemtableCursor {
        MemtableCursor { place: Place::none(self.arena.clone()) }
    }

    /// Bytes of memory held: chunks of the arena, and large values.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Entries, all versions and deletes counted.
    pub(crate) fn entries(&self) -> usize {
        self.arena.entries()
    }

    /// Whether nothing was ever added.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries() == 0
    }

    /// A memtable that is full sooner.
    #[cfg(test)]
    fn with_end(end: u64) -> Memtable {
        Memtable { arena: Arc::new(Arena::with_end(end)) }
    }
}

impl fmt::Debug for Memtable {
    /// Counts alone: keys and values must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memtable({} entries, {} bytes)", self.entries(), self.bytes())
    }
}

/// Walks a memtable, and keeps it alive.
pub(crate) struct MemtableCursor {
    place: Place,
}

impl MemtableCursor {
    fn entry(&self) -> Entry<'_> {
        self.place.entry().expect("the cursor must be valid")
    }
}

impl Cursor for MemtableCursor {
    fn valid(&self) -> bool {
        self.place.entry().is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.place.set(|arena, _| tree::first(arena));
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.place.set(|arena, _| tree::last(arena));
        Ok(())
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        self.place.set(|arena, _| tree::spot_from(arena, &Sought::new(key, trailer)));
        Ok(())
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        self.place.set(|arena, _| tree::last_before(arena, &Sought::new(key, trailer)));
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.place.set(|arena, here| tree::following(arena, here.expect("the cursor must be valid")));
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        self.place.set(|arena, here| tree::preceding(arena, here.expect("the cursor must be valid")));
        Ok(())
    }

    fn key(&self) -> &[u8] {
        self.entry().key()
    }

    fn trailer(&self) -> Trailer {
        self.entry().trailer()
    }

    fn value_ref(&self) -> Option<&[u8]> {
        Some(self.entry().value())
    }

    fn value(&self) -> Result<Value> {
        Ok(value_of(self.entry()))
    }
}

fn value_of(entry: Entry<'_>) -> Value {
    match entry.shared_value() {
        Some(value) => Value::shared(&value, 0, entry.value().len()),
        None => Value::copied(entry.value()),
    }
}
