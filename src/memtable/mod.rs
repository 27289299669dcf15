//! Recent writes of one table in order: readable without a lock while one writer adds to them.
//!
//! A skiplist whose nodes are only ever added, in an arena that only ever grows. Entries are in the
//! engine's order, key ascending and trailer descending, so the newest version of a key that a reader at
//! some sequence number may see is the first entry at or behind `(key, Trailer::seek(number))`.
//!
//! * **Readers** take no lock and never wait. They see every entry whose insert came before the sequence number that
//!   they read at became visible; of later ones they may see any, and pass them over by their number.
//! * **The writer** is one at a time, by a lock inside, so that [`Memtable::insert`] is safe to call from anywhere.
//! * **Rising keys**, the commonest way to fill a store, skip the search: the writer remembers where the latest entry
//!   went, and an entry that belongs right behind it is linked there.
//! * **Backwards** a cursor searches from the top again. Links back would be a second publication per insert that readers
//!   could see half of, to speed up the rarest kind of scan over the smallest part of the data.
//!
//! A skiplist was chosen because it is the simplest ordered structure whose readers need no lock and no
//! reclamation. It stands behind this interface alone, so that a B+-tree or a radix tree may take its place.

mod arena;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::Result;
use crate::types::{Seq, Trailer};
use crate::value::Value;
use arena::{Arena, HEIGHT_MAX, Node, Place, key_head};

/// What a memtable decides the heights of its nodes with unless told otherwise.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// Recent writes of one table.
pub(crate) struct Memtable {
    arena: Arc<Arena>,
}

impl Memtable {
    /// An empty memtable. It holds one chunk of 2 KiB.
    pub(crate) fn new() -> Memtable {
        Memtable::with_seed(SEED)
    }

    /// An empty memtable whose node heights follow from `seed`. A seed that who writes the keys does not know keeps him
    /// from choosing keys that make searches slow.
    pub(crate) fn with_seed(seed: u64) -> Memtable {
        Memtable { arena: Arc::new(Arena::new(seed)) }
    }

    /// Add an entry. A second one with the same key and trailer changes nothing.
    ///
    /// # Errors
    /// [`LimitExceeded`](crate::Error::LimitExceeded) if key or value are too long or the memtable holds 4 GiB; nothing was
    /// added then.
    pub(crate) fn insert(&self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let sought = Sought::new(key, trailer);
        let mut writer = self.arena.writer();
        let latest = writer.latest();
        // The hint is one consistent set of neighbours, those of the place right behind the latest entry. If the new
        // entry belongs into that very gap, the whole set serves it as it is.
        let behind_latest = (latest.is(self.arena.head()) || sought.is_behind(latest))
            && latest.next(0).is_none_or(|next| !sought.is_behind(next));
        let before = if behind_latest { writer.hint() } else { nodes_before(&self.arena, &sought) };
        if before[0].next(0).is_some_and(|next| sought.cmp(next) == Ordering::Equal) {
            return Ok(());
        }
        writer.insert(&before, key, trailer, value)
    }

    /// The newest version of `key` that a reader at `seq` sees, deletes included.
    pub(crate) fn get(&self, key: &[u8], seq: Seq) -> Option<(Trailer, Value)> {
        let node = first_at_or_after(&self.arena, &Sought::new(key, Trailer::seek(seq)))?;
        (node.key() == key).then(|| (node.trailer(), value_of(node)))
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
        Memtable { arena: Arc::new(Arena::with_end(SEED, end)) }
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
    fn node(&self) -> Node<'_> {
        self.place.node().expect("the cursor must be valid")
    }
}

impl Cursor for MemtableCursor {
    fn valid(&self) -> bool {
        self.place.node().is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.place.set(|arena| arena.head().next(0));
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.place.set(|arena| not_head(arena, last_before(arena, |_| true)));
        Ok(())
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let sought = Sought::new(key, trailer);
        self.place.set(|arena| first_at_or_after(arena, &sought));
        Ok(())
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let sought = Sought::new(key, trailer);
        self.place.set(|arena| not_head(arena, last_before(arena, |node| sought.is_behind(node))));
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.place.advance();
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        self.place.retreat(|arena, here| {
            let sought = Sought { head: here.key_head(), key: here.key(), trailer: here.trailer_raw() };
            not_head(arena, last_before(arena, |node| sought.is_behind(node)))
        });
        Ok(())
    }

    fn key(&self) -> &[u8] {
        self.node().key()
    }

    fn trailer(&self) -> Trailer {
        self.node().trailer()
    }

    fn value_ref(&self) -> Option<&[u8]> {
        Some(self.node().value())
    }

    fn value(&self) -> Result<Value> {
        Ok(value_of(self.node()))
    }
}

/// A place in the order of entries.
struct Sought<'k> {
    head: u64,
    key: &'k [u8],
    trailer: u64,
}

impl<'k> Sought<'k> {
    fn new(key: &'k [u8], trailer: Trailer) -> Sought<'k> {
        Sought { head: key_head(key), key, trailer: trailer.raw() }
    }

    /// Whether this place lies strictly behind `node`.
    fn is_behind(&self, node: Node<'_>) -> bool {
        self.cmp(node) == Ordering::Greater
    }

    #[inline]
    fn cmp(&self, node: Node<'_>) -> Ordering {
        // The heads decide nearly always, and lie in the cache line that the tower is in.
        let heads = self.head.cmp(&node.key_head());
        if heads.is_ne() {
            return heads;
        }
        let key = node.key();
        let keys = match (self.key.get(8..), key.get(8..)) {
            (Some(rest), Some(other)) => rest.cmp(other),
            // With equal heads, a key shorter than eight bytes differs from the other at most by zeros at the
            // end of one of them, so that the longer one comes later.
            _ => self.key.len().cmp(&key.len()),
        };
        // Newest first: the higher trailer comes first.
        keys.then_with(|| node.trailer_raw().cmp(&self.trailer))
    }
}

fn value_of(node: Node<'_>) -> Value {
    match node.shared_value() {
        Some(value) => Value::shared(&value, 0, node.value().len()),
        None => Value::copied(node.value()),
    }
}

/// The head is before every entry, and none.
fn not_head<'a>(arena: &'a Arena, node: Node<'a>) -> Option<Node<'a>> {
    (!node.is(arena.head())).then_some(node)
}

fn first_at_or_after<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Node<'a>> {
    let (mut node, mut checked) = (arena.head(), None);
    for level in (0..arena.height()).rev() {
        checked = walk(&mut node, level, checked, |next| sought.is_behind(next));
    }
    // Not `node.next(0)`: an entry may have been linked right here since that link was compared.
    checked
}

/// The last node, the head included, for which `is_before` holds, as it does for all nodes before it.
fn last_before(arena: &Arena, is_before: impl Fn(Node<'_>) -> bool) -> Node<'_> {
    let (mut node, mut checked) = (arena.head(), None);
    for level in (0..arena.height()).rev() {
        checked = walk(&mut node, level, checked, &is_before);
    }
    node
}

/// Per level the last node before the place sought. Only the writer asks, so that nothing changes meanwhile.
fn nodes_before<'a>(arena: &'a Arena, sought: &Sought<'_>) -> [Node<'a>; HEIGHT_MAX] {
    let mut before = [arena.head(); HEIGHT_MAX];
    let (mut node, mut checked) = (arena.head(), None);
    for level in (0..arena.height()).rev() {
        checked = walk(&mut node, level, checked, |next| sought.is_behind(next));
        before[level] = node;
    }
    before
}

/// Go along one level while the next node is before the place sought, and give the node that is not. `checked` is what
/// the level above ended at: met again, it need not be compared again.
#[inline]
fn walk<'a>(
    node: &mut Node<'a>,
    level: usize,
    checked: Option<Node<'a>>,
    is_before: impl Fn(Node<'a>) -> bool,
) -> Option<Node<'a>> {
    loop {
        let next = node.next(level)?;
        if checked.is_some_and(|checked| checked.is(next)) || !is_before(next) {
            return Some(next);
        }
        *node = next;
    }
}
