//! A node of the tree: up to fourteen slots, and the one word that says which of them count and in which order.
//!
//! ```text
//! offset  size  field
//!      0     8  order     4 bits per rank: which slot; then how many ranks there are
//!      8     4  link      leaf: the leaf to its right; inner node: its first child
//!     12     4  prefix    bytes that all keys in the node share
//!     16   8 h  heads     per slot the 7 key bytes behind the prefix as a big-endian number, zero-padded
//!    128   4 e  entries   per slot an entry's offset; in an inner node bit 0 says on which side of it the border lies
//!    184     4  splits    how often slots were taken out of the order
//!    188     4  -
//!    192   4 c  children  inner node only: per slot the offset of the child to the right of its entry
//! ```
//! A leaf is three cache lines, an inner node four. A slot is filled while nothing leads to it; a Release store of *order* puts
//! it between its neighbours. So an insert writes one slot and one word, and who loads the word (Acquire) sees a sorted
//! row of slots that were filled before. Ranks behind the count name the free slots.
//!
//! # What a reader may rely on
//! A split takes the upper ranks out of *order*, and their slots are filled again later. A reader that loaded *order* before would
//! find other contents under it. So:
//!
//! ```text
//! writer   order without them (Release) · splits + 1 (Release) · fence(Release) · slots, prefix (Relaxed) · order (Release)
//! reader   splits (Acquire) · order (Acquire) · slots, prefix · fence(Acquire) · splits again: another? then again from the start
//! ```
//! If anything that was read from slots or prefix was stored behind the writer's fence, then the reader's fence makes the second
//! load see the count that was stored before it. If the first load saw that count already, the order loaded next is one
//! without those slots, or newer. A reader never waits: it begins again only when the writer got ahead. 2^32 splits of a node
//! do not happen, since each makes a new one.
//!
//! Entries' and children's offsets are stored with Release and loaded with Acquire themselves, so that a reader that goes by an order
//! that is no longer true meets a wrong entry, but a whole one.

#![forbid(unsafe_code)]

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::{Arena, Entry, prefetch};

/// A moment at which a test may have another thread go on.
#[cfg(test)]
use crate::memtable::tests::turns::step;
#[cfg(not(test))]
#[inline(always)]
fn step() {}

/// Slots of a node: as many as one word can put in order.
pub(in crate::memtable) const SLOTS: usize = 14;
/// Bytes that a head has of a key. Not eight, so that the sign of a difference says which of two is less.
pub(in crate::memtable) const HEAD_BYTES: usize = 7;
/// Greater than every head.
const HEAD_NONE: u64 = 1 << (8 * HEAD_BYTES);
/// The highest level that a root may have: the low bits of a node's offset.
pub(super) const LEVELS_MAX: u32 = 63;

const RANK_BITS: usize = 4;
const COUNT_SHIFT: usize = RANK_BITS * SLOTS;
/// Set in an inner node's entry if the border lies behind the entry, and not before it.
const BEHIND: u32 = 1;

#[repr(C)]
pub(super) struct Slots {
    order: AtomicU64,
    link: AtomicU32,
    prefix: AtomicU32,
    heads: [AtomicU64; SLOTS],
    entries: [AtomicU32; SLOTS],
    splits: AtomicU32,
    unused: u32,
}

/// Per slot the child to the right of its entry.
pub(super) type Children = [AtomicU32; SLOTS];

/// Which slots of a node count, in which order.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::memtable) struct Order(u64);

impl Order {
    /// No rank, and all slots free, in their own order.
    const EMPTY: Order = Order(0x00DC_BA98_7654_3210);

    /// How many slots count.
    #[inline]
    pub(in crate::memtable) fn count(self) -> usize {
        (self.0 >> COUNT_SHIFT) as usize
    }

    /// The slot of this rank; of ranks behind the count, a free one.
    #[inline]
    pub(in crate::memtable) fn slot(self, rank: usize) -> usize {
        (self.0 >> (RANK_BITS * rank)) as usize & 15
    }

    /// This order with the first free slot at `rank`, and which that is. There must be a free one.
    fn with(self, rank: usize) -> (Order, usize) {
        let (count, below) = (self.count(), |rank: usize| (1u64 << (RANK_BITS * rank)) - 1);
        let slot = self.slot(count);
        let before = self.0 & below(rank);
        let moved = (self.0 & below(count) & !below(rank)) << RANK_BITS;
        let free = self.0 & below(SLOTS) & !below(count + 1);
        let word = before | (slot as u64) << (RANK_BITS * rank) | moved | free | (count as u64 + 1) << COUNT_SHIFT;
        (Order(word), slot)
    }

    /// The first `count` ranks of this order.
    fn first(self, count: usize) -> Order {
        Order(self.0 & ((1 << COUNT_SHIFT) - 1) | (count as u64) << COUNT_SHIFT)
    }
}

/// How a node looked when a reader came to it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::memtable) struct View {
    pub(in crate::memtable) order: Order,
    splits: u32,
}

/// What stands in a slot: in a leaf an entry, in an inner node the border between two children, and the right one.
#[derive(Clone, Copy)]
pub(in crate::memtable) struct Item<'a> {
    pub(in crate::memtable) entry: Entry<'a>,
    /// The bytes of its key behind the prefix of the node, as [`Node::head`] gives them.
    pub(in crate::memtable) head: u64,
    /// Whether what lies to the right begins behind the entry, and not with it.
    pub(in crate::memtable) behind: bool,
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

    /// How many levels there are below it.
    pub(in crate::memtable) fn level(self) -> u32 {
        self.level
    }

    /// Whether it has entries, and not children.
    pub(in crate::memtable) fn is_leaf(self) -> bool {
        self.level == 0
    }

    /// How it looks now.
    #[inline]
    pub(in crate::memtable) fn view(self) -> View {
        step();
        // In this order: see above.
        let splits = self.slots.splits.load(Ordering::Acquire);
        step();
        View { order: Order(self.slots.order.load(Ordering::Acquire)), splits }
    }

    /// Whether everything that was read of slots in the order of `view` since is what it was then.
    #[inline]
    pub(in crate::memtable) fn is_undivided(self, view: View) -> bool {
        step();
        fence(Ordering::Acquire);
        self.slots.splits.load(Ordering::Relaxed) == view.splits
    }

    /// Bytes that all keys in it share; of no meaning while it has none.
    #[inline]
    pub(in crate::memtable) fn prefix(self) -> usize {
        step();
        self.slots.prefix.load(Ordering::Relaxed) as usize
    }

    /// The [`HEAD_BYTES`] bytes behind the prefix of the key in this slot, as a number.
    #[inline]
    pub(in crate::memtable) fn head(self, slot: usize) -> u64 {
        step();
        self.slots.heads[slot].load(Ordering::Relaxed)
    }

    /// Slots whose head is less than this, of those that were ever filled. Of those that count now, unless the node is
    /// being changed.
    #[inline]
    pub(in crate::memtable) fn heads_below(self, head: u64) -> usize {
        step();
        // All of them, without a branch: the cache misses are all under way at once, and nothing is mispredicted. By the
        // sign of the difference, because compilers make twice as many instructions of a comparison.
        let below = |other: &AtomicU64| other.load(Ordering::Relaxed).wrapping_sub(head) >> 63;
        self.slots.heads.iter().fold(0, |count, other| count + below(other)) as usize
    }

    /// What a slot of its order leads to. In an inner node, the entry at a border.
    #[inline]
    pub(in crate::memtable) fn entry(self, slot: usize) -> Entry<'a> {
        step();
        // Acquire: pairs with the Release in `fill`, for a slot that was filled again.
        self.arena.entry(self.slots.entries[slot].load(Ordering::Acquire) & !BEHIND)
    }

    /// All that stands in a slot of its order.
    pub(in crate::memtable) fn item(self, slot: usize) -> Item<'a> {
        step();
        // Acquire: as in `entry`.
        let word = self.slots.entries[slot].load(Ordering::Acquire);
        let child = self.children.is_some().then(|| self.child(Some(slot)));
        Item { entry: self.arena.entry(word & !BEHIND), head: self.head(slot), behind: word & BEHIND != 0, child }
    }

    /// The child to the right of a slot of its order, or the first.
    ///
    /// # Panics
    /// In a leaf.
    #[inline]
    pub(in crate::memtable) fn child(self, slot: Option<usize>) -> Node<'a> {
        step();
        let children = self.children.expect("an inner node");
        let link = slot.map_or(&self.slots.link, |slot| &children[slot]);
        // Acquire: pairs with the Release in `fill` or `set_first_child`.
        self.arena.node(link.load(Ordering::Acquire), self.level - 1)
    }

    /// The leaf to the right of this leaf.
    ///
    /// # Panics
    /// In an inner node.
    pub(in crate::memtable) fn next(self) -> Option<Node<'a>> {
        step();
        assert!(self.is_leaf(), "only leaves are in a row");
        // Acquire: pairs with the Release in `set_next`.
        match self.slots.link.load(Ordering::Acquire) {
            0 => None,
            at => Some(self.arena.node(at, 0)),
        }
    }

    /// Ask for it to be in the cache soon.
    #[inline]
    pub(in crate::memtable) fn prefetch(self) {
        let slots = NonNull::from(self.slots).cast::<u8>();
        for line in 0..size_of::<Slots>() / 64 {
            prefetch(slots.map_addr(|at| at.saturating_add(64 * line)));
        }
        self.children.into_iter().for_each(|children| prefetch(NonNull::from(children).cast()));
    }
}

/// What the writer alone does. Done by two at once it would lead to wrong answers, and yet to nothing worse.
impl<'a> Node<'a> {
    /// Make it an empty one. Nothing may have been read of its slots since it was divided, or it must be new.
    pub(in crate::memtable) fn clear(self) {
        step();
        self.slots.heads.iter().for_each(|head| head.store(HEAD_NONE, Ordering::Relaxed));
        self.slots.order.store(Order::EMPTY.0, Ordering::Release);
    }

    /// Set the bytes that all of its keys share, before its first slot counts.
    pub(in crate::memtable) fn set_prefix(self, prefix: usize) {
        step();
        self.slots.prefix.store(prefix as u32, Ordering::Relaxed);
    }

    /// Put an item between others.
    ///
    /// # Panics
    /// If no slot is free, or the item does not belong into a node of this kind or arena.
    pub(in crate::memtable) fn put(self, rank: usize, item: &Item<'a>) {
        step();
        let order = Order(self.slots.order.load(Ordering::Relaxed));
        assert!(rank <= order.count() && order.count() < SLOTS, "a free slot");
        let (order, slot) = order.with(rank);
        assert!(ptr::eq(item.entry.arena, self.arena), "an entry of another arena");
        self.slots.heads[slot].store(item.head, Ordering::Relaxed);
        step();
        // Release: publishes the entry's bytes and its chunk, even to those who come by an old order.
        self.slots.entries[slot].store(item.entry.at | if item.behind { BEHIND } else { 0 }, Ordering::Release);
        match (self.children, item.child) {
            (None, None) => {}
            (Some(children), Some(child)) => {
                assert!(child.level + 1 == self.level, "a child is of the level below");
                // Release: publishes the child's contents and its chunk.
                children[slot].store(child.offset_in(self.arena), Ordering::Release);
            }
            _ => panic!("inner nodes have children, and leaves have none"),
        }
        step();
        // Release: publishes the slot, and with it all the rest to those who come by this order.
        self.slots.order.store(order.0, Ordering::Release);
    }

    /// Keep the first `count` ranks. The others must be in place elsewhere by now.
    pub(in crate::memtable) fn keep(self, count: usize) {
        step();
        let order = Order(self.slots.order.load(Ordering::Relaxed));
        assert!(count <= order.count(), "no more than there are");
        self.slots.order.store(order.first(count).0, Ordering::Release);
        step();
        // Release: who sees this number sees the order without them. The fence: who sees their slots filled again
        // sees this number.
        self.slots.splits.store(self.slots.splits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        fence(Ordering::Release);
    }

    /// Set the leaf to the right of this leaf.
    ///
    /// # Panics
    /// If either is none, or they lie in different arenas.
    pub(in crate::memtable) fn set_next(self, next: Option<Node<'a>>) {
        step();
        assert!(self.is_leaf() && next.is_none_or(Node::is_leaf), "only leaves are in a row");
        // Release: publishes the leaf's contents and its chunk.
        self.slots.link.store(next.map_or(0, |next| next.offset_in(self.arena)), Ordering::Release);
    }

    /// Set the child to the left of all borders.
    ///
    /// # Panics
    /// If this is a leaf, or the child of another level or arena.
    pub(in crate::memtable) fn set_first_child(self, child: Node<'a>) {
        step();
        assert!(child.level + 1 == self.level, "a child is of the level below");
        // Release: publishes the child's contents and its chunk.
        self.slots.link.store(child.offset_in(self.arena), Ordering::Release);
    }
}
