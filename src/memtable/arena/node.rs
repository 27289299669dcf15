//! A node of the tree: a sorted row of items, and a version that tells readers whether it changed under them.
//!
//! ```text
//! offset  size  field
//!      0     4  version   odd while the node is being changed
//!      4     2  count     how many slots are filled, from the first on
//!      6     2  prefix    bytes that all keys in the node share
//!      8   8 h  heads     per slot the 7 key bytes behind the prefix as a big-endian number, zero-padded; above all if empty
//!    256   4 e  entries   per slot an entry's offset
//!    384   4 c  children  inner node only: one more than slots, the offsets of the nodes before, between and behind its entries
//! ```
//! A leaf is six cache lines, an inner node eight.
//!
//! # What a reader may rely on
//! Every field may change at any time. Whoever reads takes the version before and compares it after (a sequence lock: Boehm, "Can
//! seqlocks get along with programming language memory models?", 2012):
//!
//! ```text
//! writer   version + 1 (Relaxed) · fence(Release) · fields (Relaxed) · version + 1 (Release)
//! reader   version (Acquire): odd? then again · fields (Relaxed) · fence(Acquire) · version: another? then again
//! ```
//! If anything that was read was stored behind the writer's fence, then the reader's fence makes the second load see the odd version
//! that was stored before it, or a later one. A version comes but once, although cursors keep them as long as they live: there are at most a
//! few changes per insert, and an arena has no room for 2^28 entries.
//!
//! What was read between the two loads may be torn, and yet does no harm: entries' and children's offsets are stored with Release and
//! loaded with Acquire, so that even a wrong one leads to a whole entry or node, and a slot that was never filled is told by its 0.
//! Only [`Change`] stores, and whoever makes one marks the node.

#![forbid(unsafe_code)]

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::{Arena, Entry, prefetch};

/// A moment at which a test may have something else go on.
#[cfg(test)]
use crate::memtable::tests::turns::step;
#[cfg(not(test))]
#[inline(always)]
fn step() {}

/// Items that a node has room for.
pub(in crate::memtable) const SLOTS: usize = 31;
/// Bytes that a head has of a key. Not eight, so that the sign of a difference says which of two is less.
pub(in crate::memtable) const HEAD_BYTES: usize = 7;
/// Greater than every head.
const HEAD_NONE: u64 = 1 << (8 * HEAD_BYTES);
/// The highest level that a root may have: the low bits of a node's offset.
pub(super) const LEVELS_MAX: u32 = 63;

#[repr(C)]
pub(super) struct Slots {
    version: AtomicU32,
    count: AtomicU16,
    prefix: AtomicU16,
    heads: [AtomicU64; SLOTS],
    entries: [AtomicU32; SLOTS],
    unused: u32,
}

/// The nodes before, between and behind the entries.
pub(super) type Children = [AtomicU32; SLOTS + 1];

/// A state of a node: an even number.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::memtable) struct Version(u32);

/// What stands in a slot: in a leaf an entry, in an inner node the first entry of a child, and the child.
#[derive(Clone, Copy)]
pub(in crate::memtable) struct Item<'a> {
    pub(in crate::memtable) entry: Entry<'a>,
    /// The bytes of its key behind the prefix of the node.
    pub(in crate::memtable) head: u64,
    pub(in crate::memtable) child: Option<Node<'a>>,
}

/// A node.
#[derive(Clone, Copy)]
pub(in crate::memtable) struct Node<'a> {
    arena: &'a Arena,
    at: u32,
    level: u32,
    slots: &'a Slots,
    children: Option<&'a Children>,
}

impl<'a> Node<'a> {
    pub(super) fn new(
        arena: &'a Arena,
        at: u32,
        level: u32,
        slots: &'a Slots,
        children: Option<&'a Children>,
    ) -> Node<'a> {
        Node { arena, at, level, slots, children }
    }

    /// Its offset in this arena.
    ///
    /// # Panics
    /// If it lies in another.
    pub(super) fn offset_in(self, arena: &Arena) -> u32 {
        assert!(ptr::eq(self.arena, arena), "a node of another arena");
        self.at
    }

    /// Whether both are one node.
    pub(in crate::memtable) fn is(self, other: Node<'_>) -> bool {
        ptr::eq(self.slots, other.slots)
    }

    /// How many levels there are below it.
    pub(in crate::memtable) fn level(self) -> u32 {
        self.level
    }

    /// Whether it has entries, and not children.
    pub(in crate::memtable) fn is_leaf(self) -> bool {
        self.level == 0
    }

    /// How it is now; none while it is being changed.
    #[inline]
    pub(in crate::memtable) fn version(self) -> Option<Version> {
        step();
        let version = self.slots.version.load(Ordering::Acquire);
        version.is_multiple_of(2).then_some(Version(version))
    }

    /// Whether everything that was read of it since it had this version is what it was then.
    #[inline]
    pub(in crate::memtable) fn is_still(self, version: Version) -> bool {
        step();
        fence(Ordering::Acquire);
        self.slots.version.load(Ordering::Relaxed) == version.0
    }

    /// How many slots are filled.
    #[inline]
    pub(in crate::memtable) fn count(self) -> usize {
        step();
        usize::from(self.slots.count.load(Ordering::Relaxed))
    }

    /// Whether there is no slot left.
    pub(in crate::memtable) fn is_full(self) -> bool {
        self.count() == SLOTS
    }

    /// Bytes that all keys in it share.
    #[inline]
    pub(in crate::memtable) fn prefix(self) -> usize {
        step();
        usize::from(self.slots.prefix.load(Ordering::Relaxed))
    }

    /// The [`HEAD_BYTES`] bytes behind the prefix of the key in this slot, as a number.
    #[inline]
    pub(in crate::memtable) fn head(self, slot: usize) -> u64 {
        step();
        self.slots.heads[slot].load(Ordering::Relaxed)
    }

    /// Slots whose head is less than this.
    #[inline]
    pub(in crate::memtable) fn heads_below(self, head: u64) -> usize {
        step();
        // All of them, without a branch: the cache misses are all under way at once, and nothing is mispredicted. By the
        // sign of the difference, because compilers make twice as many instructions of a comparison.
        let below = |other: &AtomicU64| {
            step();
            other.load(Ordering::Relaxed).wrapping_sub(head) >> 63
        };
        self.slots.heads.iter().fold(0, |count, other| count + below(other)) as usize
    }

    /// What a slot leads to: in an inner node, the first entry of the child behind it. Some for every filled slot of a node that
    /// is not being changed.
    #[inline]
    pub(in crate::memtable) fn entry(self, slot: usize) -> Option<Entry<'a>> {
        step();
        // Acquire: pairs with the Release in `Change::fill`.
        match self.slots.entries[slot].load(Ordering::Acquire) {
            0 => None,
            at => Some(self.arena.entry(at)),
        }
    }

    /// The child that so many entries come before. Some for those of a node that is not being changed.
    ///
    /// # Panics
    /// In a leaf.
    #[inline]
    pub(in crate::memtable) fn child(self, rank: usize) -> Option<Node<'a>> {
        step();
        let children = self.children.expect("an inner node");
        // Acquire: pairs with the Release in `Change::fill` and `Change::set_first_child`.
        match children[rank].load(Ordering::Acquire) {
            0 => None,
            at => Some(self.arena.node(at, self.level - 1)),
        }
    }

    /// All that stands in it, for the writer, while nothing changes.
    pub(in crate::memtable) fn items(self) -> impl Iterator<Item = Item<'a>> {
        (0..self.count()).map(move |slot| Item {
            entry: self.entry(slot).expect("a filled slot"),
            head: self.head(slot),
            child: self.children.and_then(|_| self.child(slot + 1)),
        })
    }

    /// Ask for it to be in the cache soon.
    #[inline]
    pub(in crate::memtable) fn prefetch(self) {
        let slots = NonNull::from(self.slots).cast::<u8>();
        for line in 0..size_of::<Slots>() / 64 {
            prefetch(slots.map_addr(|at| at.saturating_add(64 * line)));
        }
    }

    /// Mark it as being changed, until what this gives is dropped.
    ///
    /// # Panics
    /// If it is being changed.
    pub(in crate::memtable) fn change(self) -> Change<'a> {
        step();
        let version = self.slots.version.load(Ordering::Relaxed);
        assert!(version.is_multiple_of(2), "one change at a time");
        self.slots.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees a store of this change sees that version.
        fence(Ordering::Release);
        Change { node: self }
    }
}

/// The writer's hold on a node that it changes.
pub(in crate::memtable) struct Change<'a> {
    node: Node<'a>,
}

impl<'a> Change<'a> {
    /// The node.
    pub(in crate::memtable) fn node(&self) -> Node<'a> {
        self.node
    }

    /// Set the bytes that all of its keys share. What heads it has are of no use then.
    pub(in crate::memtable) fn set_prefix(&self, prefix: usize) {
        step();
        let prefix = u16::try_from(prefix).expect("no key is longer than 64 KiB");
        self.node.slots.prefix.store(prefix, Ordering::Relaxed);
    }

    /// Set the child before all entries.
    ///
    /// # Panics
    /// If this is a leaf, or the child of another level or arena.
    pub(in crate::memtable) fn set_first_child(&self, child: Node<'a>) {
        self.store_child(0, child);
    }

    /// Put an item between others.
    ///
    /// # Panics
    /// If no slot is free, or the item does not belong into a node of this kind or arena.
    #[inline]
    pub(in crate::memtable) fn put(&self, rank: usize, item: &Item<'a>) {
        let (node, count) = (self.node, self.node.count());
        assert!(rank <= count && count < SLOTS, "a free slot");
        for slot in (rank..count).rev() {
            step();
            let head = node.slots.heads[slot].load(Ordering::Relaxed);
            node.slots.heads[slot + 1].store(head, Ordering::Relaxed);
            step();
            let entry = node.slots.entries[slot].load(Ordering::Relaxed);
            node.slots.entries[slot + 1].store(entry, Ordering::Release);
        }
        if let Some(children) = node.children {
            for slot in (rank..count).rev() {
                step();
                children[slot + 2].store(children[slot + 1].load(Ordering::Relaxed), Ordering::Release);
            }
        }
        self.fill(rank, item);
        step();
        node.slots.count.store(count as u16 + 1, Ordering::Relaxed);
    }

    /// Have these items in it, and no others.
    ///
    /// # Panics
    /// As [`put`](Change::put).
    pub(in crate::memtable) fn set_items(&self, items: &[Item<'a>]) {
        step();
        assert!(items.len() <= SLOTS, "no more than there are slots");
        for head in &self.node.slots.heads[items.len()..] {
            step();
            head.store(HEAD_NONE, Ordering::Relaxed);
        }
        items.iter().enumerate().for_each(|(slot, item)| self.fill(slot, item));
        step();
        self.node.slots.count.store(items.len() as u16, Ordering::Relaxed);
    }

    fn fill(&self, slot: usize, item: &Item<'a>) {
        step();
        let node = self.node;
        assert!(ptr::eq(item.entry.arena, node.arena), "an entry of another arena");
        assert!(item.child.is_none() == node.is_leaf(), "inner nodes have children, and leaves have none");
        node.slots.heads[slot].store(item.head, Ordering::Relaxed);
        step();
        // Release: publishes the entry's bytes and its chunk, even to those who read what they must not use.
        node.slots.entries[slot].store(item.entry.at, Ordering::Release);
        item.child.into_iter().for_each(|child| self.store_child(slot + 1, child));
    }

    fn store_child(&self, rank: usize, child: Node<'a>) {
        step();
        let children = self.node.children.expect("an inner node");
        assert!(child.level + 1 == self.node.level, "a child is of the level below");
        // Release: publishes the child's contents and its chunk.
        children[rank].store(child.offset_in(self.node.arena), Ordering::Release);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        step();
        let version = self.node.slots.version.load(Ordering::Relaxed);
        // Release: who sees this version sees all that was stored before it, in other nodes too.
        self.node.slots.version.store(version.wrapping_add(1), Ordering::Release);
    }
}
