//! The order of a memtable's entries: a B+-tree that one writer changes in place while others read it.
//!
//! ```text
//!                    root   │ child │ e │ child │ g │ child │          a border stands before or behind an entry
//!                     ┌─────────┘         │         └─────┐
//!                   leaf ──────────> leaf ──────────────> leaf          each begins at the border that it was split off with
//!                   a b c d          e f                  g h
//! ```
//! [`arena::node`](super::arena::node) says how one node is changed and read; this file says why a row of such changes is a
//! tree to every reader at every moment.
//!
//! # Splits, and readers that are on their way
//! A node that is full keeps its lower part; its upper part becomes a new node to its right. In this order:
//!
//! 1. the new node is filled, the new entry with it if that belongs there;
//! 2. a leaf's `next` leads to the new leaf, which leads on to what the old one led to;
//! 3. the parent gets border and new child, being split first if it is full, up to a new root;
//! 4. the old node lets go of its upper part, and the new entry is put into it if it belongs there.
//!
//! So where a node *begins* never changes, and nothing ever moves to the left. Readers rest on this alone:
//!
//! * **A way down** ends at the leaf that the place sought belongs to or at one left of it: each border that a reader went right
//!   of was and is one, and what it missed are borders that are new. From there it goes right along `next` while a leaf has
//!   nothing at or behind the place. It needs few steps for that, or it begins again at the root.
//! * **Nothing is missed.** At each moment a leaf holds all entries from where it begins to where its `next` begins. A reader loads
//!   the order first and `next` after it. Between the two, `next` can only have come closer, so that the leaf as seen and the row from
//!   `next` on overlap, and leave no gap. All of this is so from the moment on when a reader entered the tree, and whatever it must see,
//!   since the visible number that it loaded before covers it, was in the tree then. (In the terms of the memory model: inserting
//!   happened before raising the number, and so before every load of this reader; each word that it loads is at least as new.)
//! * **Nothing is met twice, none backwards**: a cursor that comes to another leaf looks there for the first entry *behind the one
//!   that it is on*, and does not simply take the first. Within a leaf it goes by the order that it saw when it came, whose slots
//!   keep their contents until a split ([`View`] tells); after a split it finds its place again from the root.
//! * **Backwards** there are no links: at the first entry of a leaf a cursor goes down from the root again, and remembers on
//!   the way the nearest child to the left.
//!
//! # Prefixes
//! The seven bytes that a node keeps of each key are those behind the *prefix* that its keys share, so that they decide nearly always
//! and no entry need be looked at. They decide only for keys that share the prefix, too. A key that lies between two others
//! shares what those share, so for a node between two borders the prefix is what these have in common, or less, and whoever was led
//! there by them has it: that costs nothing. At the edges of the tree there is a border on one side at most; there the prefix is a
//! guess (what was there so far shares it, less [`SLACK`]), and is compared. A new key that does not fit it lies before or behind all
//! of the node, and gets a new node ([`Writer::divide`] at an end), with the border chosen so that all that does not fit is on
//! that side. As a node never grows to either side, its prefix stays good for ever.
//!
//! A reader may use a border only if it holds for the node that it is in. The border on the left does, because nodes begin where they began. The
//! border on the right does for the child that it stands beside, however that was split since, for a child's prefix was chosen
//! when it reached at least this far. A last child has its border somewhere above. That one is not used: when the child is split, the new
//! border may go to any level above it and leave all nodes below that one as they were, so that a reader who is on its way there
//! has passed a border unseen. For one child in eight or so, the prefix is compared instead.
//!
//! # Where a full node is split
//! In the middle; but behind all that is there if the new entry comes last, and, at the left edge, before. So rising keys fill
//! every leaf and copy nothing (and find their leaf without a search, from the last entry), falling ones fill every leaf and
//! copy it once, and clusters of rising keys fill their leaves wherever they lie.

use std::cmp::Ordering;

use super::arena::node::{HEAD_BYTES, Item, Node, SLOTS, View};
use super::arena::{Arena, Entry, Spot, Writer};
use crate::error::Result;
use crate::types::Trailer;

/// What the guess of a prefix leaves room for, in bytes: how much earlier than so far keys may differ.
const SLACK: usize = 2;
/// A prefix is made longer once this many bytes more are shared, since all heads must be read from the keys then.
const GAIN_MIN: usize = 3;
/// One key in so many may be a misfit; once there are more, guesses are not worth it.
const ENTRIES_PER_MISFIT: usize = 64;
/// So many leaves a reader goes to the right before it begins again at the root.
const STEPS_MAX: usize = 4;

/// A place in the order of entries: before or behind a key and trailer.
pub(super) struct Sought<'k> {
    key: &'k [u8],
    trailer: u64,
    behind: bool,
}

impl<'k> Sought<'k> {
    /// The place right before an entry with this key and trailer.
    pub(super) fn new(key: &'k [u8], trailer: Trailer) -> Sought<'k> {
        Sought { key, trailer: trailer.raw(), behind: false }
    }

    /// The place right before an entry.
    pub(super) fn before(entry: Entry<'k>) -> Sought<'k> {
        Sought { key: entry.key(), trailer: entry.trailer_raw(), behind: false }
    }

    /// The place right behind an entry.
    pub(super) fn behind(entry: Entry<'k>) -> Sought<'k> {
        Sought { key: entry.key(), trailer: entry.trailer_raw(), behind: true }
    }

    /// How its first bytes compare with those that all keys of a node share.
    fn cmp_prefix(&self, prefix: usize, entry: Entry<'_>) -> Ordering {
        let (ours, theirs) = (self.key, entry.key());
        ours[..prefix.min(ours.len())].cmp(&theirs[..prefix.min(theirs.len())])
    }

    /// Whether its key has these first bytes in common with an entry's, or as many as both have.
    fn shares(&self, prefix: usize, entry: Entry<'_>) -> bool {
        self.cmp_prefix(prefix, entry) == Ordering::Equal
    }

    /// How its key and trailer compare with an entry's whose key shares so many bytes, and has the same head behind them.
    fn cmp_rest(&self, prefix: usize, entry: Entry<'_>) -> Ordering {
        let key = entry.key();
        let keys = match (self.key.get(prefix + HEAD_BYTES..), key.get(prefix + HEAD_BYTES..)) {
            (Some(rest), Some(other)) => rest.cmp(other),
            // With equal heads, a key that ends within its head differs from the other at most by zeros at the end
            // of one of them, so that the longer one comes later.
            _ => self.key.len().cmp(&key.len()),
        };
        // Newest first: the higher trailer comes first.
        keys.then_with(|| entry.trailer_raw().cmp(&self.trailer))
    }

    /// Whether the place lies behind an entry.
    fn is_behind(&self, entry: Entry<'_>) -> bool {
        let order = self.key.cmp(entry.key()).then_with(|| entry.trailer_raw().cmp(&self.trailer));
        order == Ordering::Greater || order == Ordering::Equal && self.behind
    }

    /// Whether an entry is the very one with this key and trailer.
    fn is(&self, entry: Entry<'_>) -> bool {
        self.trailer == entry.trailer_raw() && self.key == entry.key()
    }
}

/// The first entry at or behind a place.
pub(super) fn first_from<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Spot<'a>> {
    loop {
        let way = Way::down(arena, sought);
        if let Ok(found) = first_in_row(way.leaf, way.fenced, sought) {
            return found;
        }
    }
}

/// The entry behind the one that a walk is on.
pub(super) fn following<'a>(arena: &'a Arena, here: Spot<'a>) -> Option<Spot<'a>> {
    let rank = here.rank + 1;
    if rank < here.view.order.count() {
        let entry = here.leaf.entry(here.view.order.slot(rank));
        if here.leaf.is_undivided(here.view) {
            return Some(Spot { entry, rank, ..here });
        }
    } else if here.leaf.is_undivided(here.view)
        && let Ok(found) = first_in_row(here.leaf.next()?, false, &Sought::behind(here.entry))
    {
        found.into_iter().for_each(prefetch_all);
        return found;
    }
    first_from(arena, &Sought::behind(here.entry))
}

/// The entry before the one that a walk is on.
pub(super) fn preceding<'a>(arena: &'a Arena, here: Spot<'a>) -> Option<Spot<'a>> {
    if let Some(rank) = here.rank.checked_sub(1) {
        let entry = here.leaf.entry(here.view.order.slot(rank));
        if here.leaf.is_undivided(here.view) {
            return Some(Spot { entry, rank, ..here });
        }
    }
    let found = last_before(arena, &Sought::before(here.entry));
    found.into_iter().for_each(prefetch_all);
    found
}

/// Ask for all entries of a leaf that a walk has come to, so that the cache misses are under way at once, and not one per step.
fn prefetch_all(Spot { leaf, view, .. }: Spot<'_>) {
    (0..view.order.count()).for_each(|rank| leaf.entry(view.order.slot(rank)).prefetch());
    leaf.next().into_iter().for_each(Node::prefetch);
}

/// The last entry before a place.
pub(super) fn last_before<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Spot<'a>> {
    loop {
        let way = Way::down(arena, sought);
        if let Some(found) = last_in_row(way.leaf, way.fenced, Some(sought)) {
            return Some(found);
        }
        let (node, view, rank) = way.left?;
        let left = child_of(node, view, rank - 1);
        if node.is_undivided(view) {
            return last_in_row(last_leaf(left), false, Some(sought));
        }
    }
}

/// The first entry of all.
pub(super) fn first<'a>(arena: &'a Arena) -> Option<Spot<'a>> {
    // No key is empty.
    let sought = Sought { key: &[], trailer: u64::MAX, behind: false };
    first_in_row(arena.first_leaf(), false, &sought).unwrap_or_else(|Astray| first_from(arena, &sought))
}

/// The last entry of all.
pub(super) fn last(arena: &Arena) -> Option<Spot<'_>> {
    last_in_row(last_leaf(arena.root()), false, None)
}

/// Too far left to go on.
struct Astray;

/// The first entry at or behind a place that lies in this leaf or to its right.
fn first_in_row<'a>(mut leaf: Node<'a>, mut fenced: bool, sought: &Sought<'_>) -> Result<Option<Spot<'a>>, Astray> {
    let mut steps = 0;
    loop {
        let view = leaf.view();
        let rank = rank_of(leaf, view, sought, fenced);
        if rank < view.order.count() {
            let entry = leaf.entry(view.order.slot(rank));
            if leaf.is_undivided(view) {
                return Ok(Some(Spot { entry, leaf, view, rank }));
            }
        } else if leaf.is_undivided(view) {
            // After the order: see above.
            let Some(next) = leaf.next() else { return Ok(None) };
            steps += 1;
            if steps > STEPS_MAX {
                return Err(Astray);
            }
            (leaf, fenced) = (next, false);
        }
    }
}

/// The last entry before a place, or of all, that lies in this leaf or to its right.
fn last_in_row<'a>(mut leaf: Node<'a>, mut fenced: bool, sought: Option<&Sought<'_>>) -> Option<Spot<'a>> {
    loop {
        let view = leaf.view();
        let count = view.order.count();
        let rank = sought.map_or(count, |sought| rank_of(leaf, view, sought, fenced));
        let found = rank.checked_sub(1).map(|rank| Spot { entry: leaf.entry(view.order.slot(rank)), leaf, view, rank });
        if !leaf.is_undivided(view) {
            continue;
        }
        match leaf.next() {
            Some(next) if rank == count && begins_before(next, sought) => (leaf, fenced) = (next, false),
            _ => return found,
        }
    }
}

/// Whether a leaf has an entry before a place.
fn begins_before(leaf: Node<'_>, sought: Option<&Sought<'_>>) -> bool {
    loop {
        let view = leaf.view();
        // Only the first leaf is ever empty, and it is nobody's next one.
        let Some(sought) = sought.filter(|_| view.order.count() > 0) else { return true };
        let first = leaf.entry(view.order.slot(0));
        if leaf.is_undivided(view) {
            return sought.is_behind(first);
        }
    }
}

/// The last leaf below a node, or one that was the last a moment ago.
fn last_leaf(mut node: Node<'_>) -> Node<'_> {
    while !node.is_leaf() {
        let view = node.view();
        let child = child_of(node, view, view.order.count());
        if node.is_undivided(view) {
            node = child;
        }
    }
    node
}

/// The end of a way down the tree.
struct Way<'a> {
    leaf: Node<'a>,
    /// Whether it is known that the place sought shares the leaf's prefix.
    fenced: bool,
    /// The lowest node that has children left of the way, and how many.
    left: Option<(Node<'a>, View, usize)>,
}

impl<'a> Way<'a> {
    fn down(arena: &'a Arena, sought: &Sought<'_>) -> Way<'a> {
        let mut node = arena.root();
        let (mut left, mut has_right) = (None, false);
        while !node.is_leaf() {
            let view = node.view();
            let rank = rank_of(node, view, sought, left.is_some() && has_right);
            let child = child_of(node, view, rank);
            child.prefetch();
            if !node.is_undivided(view) {
                continue;
            }
            if rank > 0 {
                left = Some((node, view, rank));
            }
            // A last child has a border too, somewhere above, but there may be a nearer one by now: see above.
            has_right = rank < view.order.count();
            node = child;
        }
        Way { leaf: node, fenced: left.is_some() && has_right, left }
    }
}

/// How many entries or borders of a node lie before a place. `fenced`: the place is known to share the node's prefix.
#[inline]
fn rank_of(node: Node<'_>, view: View, sought: &Sought<'_>, fenced: bool) -> usize {
    let (prefix, count, order) = (node.prefix(), view.order.count(), view.order);
    if !fenced && prefix > 0 && count > 0 {
        match sought.cmp_prefix(prefix, node.entry(order.slot(0))) {
            Ordering::Less => return 0,
            Ordering::Equal => {}
            Ordering::Greater => return count,
        }
    }
    let head = head_of(sought.key, prefix);
    // Counted over all slots, which are those of this order unless the node is being changed.
    let mut rank = node.heads_below(head).min(count);
    let is_below = |rank: usize| node.head(order.slot(rank)) < head;
    if rank > 0 && !is_below(rank - 1) || rank < count && is_below(rank) {
        rank = partition(0, count, is_below);
    }
    if rank == count || node.head(order.slot(rank)) != head {
        return rank;
    }
    let is_before = |rank: usize| {
        let slot = order.slot(rank);
        if node.head(slot) != head {
            return node.head(slot) < head;
        }
        let item = node.item(slot);
        match sought.cmp_rest(prefix, item.entry) {
            Ordering::Less => false,
            Ordering::Greater => true,
            // Right of a border that stands before the entry, but never right of the entry itself.
            Ordering::Equal => sought.behind || !node.is_leaf() && !item.behind,
        }
    };
    // The first one first: of many versions of a key the newest is sought most often.
    if is_before(rank) { partition(rank + 1, count, is_before) } else { rank }
}

/// The first of these ranks of which `is_before` does not hold, as it does of all before it.
fn partition(mut from: usize, mut to: usize, is_before: impl Fn(usize) -> bool) -> usize {
    while from < to {
        let middle = (from + to) / 2;
        if is_before(middle) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from
}

/// The child that has so many borders before it.
#[inline(always)]
fn child_of(node: Node<'_>, view: View, rank: usize) -> Node<'_> {
    node.child(rank.checked_sub(1).map(|rank| view.order.slot(rank)))
}

/// The seven bytes of a key behind its prefix as a number that compares as they do; padded with zeros.
#[inline]
pub(super) fn head_of(key: &[u8], prefix: usize) -> u64 {
    let len = key.len().saturating_sub(prefix).min(8);
    let eight = match key.get(prefix..).and_then(<[u8]>::first_chunk) {
        Some(bytes) => u64::from_be_bytes(*bytes),
        // The last bytes of the key, without those that belong to the prefix.
        None => match key.last_chunk() {
            Some(bytes) => u64::from_be_bytes(*bytes).checked_shl(64 - 8 * len as u32).unwrap_or(0),
            None => key[key.len() - len..].iter().rev().fold(0, |head, byte| head >> 8 | u64::from(*byte) << 56),
        },
    };
    eight >> 8
}

/// Whether so many bytes of two heads are the same.
fn agree(a: u64, b: u64, bytes: usize) -> bool {
    (a ^ b) >> (8 * (HEAD_BYTES - bytes)) == 0
}

/// Bytes that two entries' keys share.
fn shared(a: Entry<'_>, b: Entry<'_>) -> usize {
    a.key().iter().zip(b.key()).take_while(|(a, b)| a == b).count()
}

/// An inner node on the way to where something is added, and how many of its borders lie before that.
struct Step<'a> {
    node: Node<'a>,
    rank: usize,
}

/// An end of the tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    Left = 0,
    Right = 1,
}

/// What is being inserted.
#[derive(Clone, Copy)]
struct New<'a> {
    entry: Entry<'a>,
    /// Nodes of lower levels than this must not hold it, except new ones: it does not share the prefix of one of them, or of
    /// one that they are the last or first descendants of.
    levels_unfit: u32,
}

impl<'a> Writer<'a> {
    /// Add an entry. A second one with the same key and trailer changes nothing.
    ///
    /// # Errors
    /// `LimitExceeded` when key or value are too long or offsets are exhausted; nothing was added then.
    pub(super) fn insert(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let sought = Sought::new(key, trailer);
        let (leaf, rank, fits) = match self.greatest() {
            // Rising keys need no search.
            Some((greatest, leaf)) if sought.is_behind(greatest) => {
                (leaf, leaf.view().order.count(), sought.shares(self.edge_prefix(Edge::Right), greatest))
            }
            _ => {
                let Way { leaf, fenced, left } = Way::down(self.arena(), &sought);
                let order = leaf.view().order;
                let rank = rank_of(leaf, leaf.view(), &sought, fenced);
                // Heads first: looking at an entry is a cache miss.
                if rank < order.count()
                    && leaf.head(order.slot(rank)) == head_of(key, leaf.prefix())
                    && sought.is(leaf.entry(order.slot(rank)))
                {
                    return Ok(());
                }
                // What lies between two others shares what they do.
                let is_least = left.is_none() && rank == 0 && order.count() > 0;
                let fits = !is_least || sought.shares(self.edge_prefix(Edge::Left), leaf.entry(order.slot(0)));
                (leaf, rank, fits)
            }
        };
        let count = leaf.view().order.count();
        let is_last = leaf.next().is_none();
        let entry = if fits && (1..SLOTS).contains(&count) {
            let entry = self.write(key, trailer, value)?;
            leaf.put(rank, &Item { entry, head: head_of(key, leaf.prefix()), behind: false, child: None });
            entry
        } else {
            let path = path_to(self.arena(), &sought);
            let levels_unfit = if fits { 0 } else { levels_unfit(&path, leaf, &sought) };
            *self.misfits() += usize::from(levels_unfit > 0);
            // One node of each level may be split, and a new root made.
            self.check_room(key, value, path.len() + 2)?;
            let entry = self.write(key, trailer, value)?;
            self.add(
                &path,
                leaf,
                rank,
                Item { entry, head: 0, behind: false, child: None },
                New { entry, levels_unfit },
            )?;
            entry
        };
        if is_last {
            self.set_last(leaf.next().unwrap_or(leaf), (rank == count).then_some(entry));
        }
        Ok(())
    }

    /// Bytes that a key before or behind all others must share with them to fit into the leaf at that edge of the tree and into all
    /// nodes above it.
    fn edge_prefix(&mut self, edge: Edge) -> usize {
        if let Some(known) = self.edge_prefixes()[edge as usize] {
            return known;
        }
        let (mut node, mut longest) = (self.arena().root(), 0);
        loop {
            let (view, count) = (node.view(), node.view().order.count());
            if count > 0 {
                longest = longest.max(node.prefix());
            }
            if node.is_leaf() {
                self.edge_prefixes()[edge as usize] = Some(longest);
                return longest;
            }
            node = child_of(node, view, if edge == Edge::Left { 0 } else { count });
        }
    }

    /// Add an item to a node, on account of what is new.
    fn add(&mut self, path: &[Step<'a>], node: Node<'a>, rank: usize, item: Item<'a>, new: New<'a>) -> Result<()> {
        let count = node.view().order.count();
        *self.edge_prefixes() = [None; 2];
        if count == 0 {
            // Nobody has used its prefix. A root that was made because the one before did not fit need never be replaced for
            // that: else each key that shares less than all before it could make the tree deeper.
            let is_refuge = path.is_empty() && node.level() == new.levels_unfit;
            let (left, right) = borders(path);
            node.set_prefix(if is_refuge { 0 } else { self.common(left, right, new) });
        }
        let item = Item { head: head_of(item.entry.key(), node.prefix()), ..item };
        if node.level() < new.levels_unfit || count == SLOTS {
            return self.divide(path, node, rank, item, new);
        }
        node.put(rank, &item);
        Ok(())
    }

    /// Split a node and add an item to one of the parts, in the order that the module's text explains.
    fn divide(&mut self, path: &[Step<'a>], node: Node<'a>, rank: usize, item: Item<'a>, new: New<'a>) -> Result<()> {
        let (order, count) = (node.view().order, node.view().order.count());
        let (left, right) = borders(path);
        // All items there will be in the two parts.
        let item_at = |at: usize| match at.cmp(&rank) {
            Ordering::Less => node.item(order.slot(at)),
            Ordering::Equal => item,
            Ordering::Greater => node.item(order.slot(at - 1)),
        };
        // In an inner node, the border at `at` goes up; in a leaf, the entry at `at` is the first to the right.
        let at = match rank {
            rank if rank == count => count,
            0 if left.is_none() => usize::from(node.is_leaf()),
            _ => count.div_ceil(2),
        };
        let upper = self.new_node(node.level())?;
        let (border, moved) = match item_at(at).child {
            // A new entry that follows all others begins a leaf, and what comes to lie between belongs there, too: it need
            // not fit the prefix here.
            None if at == count => (Item { behind: true, child: Some(upper), ..item_at(at - 1) }, at),
            None => (Item { child: Some(upper), ..item_at(at) }, at),
            Some(child) => {
                upper.set_first_child(child);
                (Item { child: Some(upper), ..item_at(at) }, at + 1)
            }
        };
        if moved <= count {
            // Whatever lies between the same borders or less shares what it did; a key that did not fit is alone.
            let fits = node.level() >= new.levels_unfit || moved < count;
            let present = if fits { Some(node.prefix()) } else { None };
            let prefix = match present {
                // A first look at the heads, which are at hand: seldom do they agree far enough for a longer prefix.
                Some(present) if !agree(item_at(moved).head, item_at(count).head, GAIN_MIN) => present,
                _ => {
                    let longer = self.common(Some(border.entry), right, new);
                    present.filter(|present| longer < present + GAIN_MIN).unwrap_or(longer)
                }
            };
            upper.set_prefix(prefix);
            for at in moved..=count {
                let item = item_at(at);
                let head = if present == Some(prefix) { item.head } else { head_of(item.entry.key(), prefix) };
                upper.put(at - moved, &Item { head, ..item });
            }
        }
        if node.is_leaf() {
            upper.set_next(node.next());
            node.set_next(Some(upper));
        }
        match path.split_last() {
            Some((parent, path)) => self.add(path, parent.node, parent.rank, border, new)?,
            None => {
                let root = self.new_node(node.level() + 1)?;
                root.set_first_child(node);
                self.add(&[], root, 0, border, new)?;
                self.set_root(root);
            }
        }
        let kept = if rank < at { at - 1 } else { at };
        if kept < count {
            node.keep(kept);
        }
        if kept == 0 {
            node.clear();
        }
        if rank < at {
            if kept == 0 {
                node.set_prefix(self.common(left, Some(border.entry), new));
            }
            node.put(rank, &Item { head: head_of(item.entry.key(), node.prefix()), ..item });
        }
        Ok(())
    }

    /// Bytes that all keys between two borders share, or, where there is none, probably will.
    fn common(&mut self, left: Option<Entry<'a>>, right: Option<Entry<'a>>, new: New<'a>) -> usize {
        if let (Some(left), Some(right)) = (left, right) {
            return shared(left, right);
        }
        let (Some((greatest, _)), Some(least)) = (self.greatest(), first(self.arena())) else {
            // Of the first key it is not known how much others share with it.
            return 0;
        };
        if *self.misfits() > self.arena().entries() / ENTRIES_PER_MISFIT + SLOTS {
            return 0;
        }
        let new_lies_behind = |entry| Sought::before(new.entry).is_behind(entry);
        let left = left.unwrap_or(if new_lies_behind(least.entry) { least.entry } else { new.entry });
        let right = right.unwrap_or(if new_lies_behind(greatest) { new.entry } else { greatest });
        shared(left, right).saturating_sub(SLACK)
    }
}

/// Below which level nodes must not hold a key, because it does not share the prefix of one of them or above them.
fn levels_unfit(path: &[Step<'_>], leaf: Node<'_>, sought: &Sought<'_>) -> u32 {
    let fits = |node: Node<'_>| {
        let order = node.view().order;
        order.count() == 0 || sought.shares(node.prefix(), node.entry(order.slot(0)))
    };
    let unfit = path.iter().map(|step| step.node).chain([leaf]).find(|node| !fits(*node));
    unfit.map_or(0, |node| node.level() + 1)
}

/// The inner nodes on the way to a place, from the root on. Only the writer asks, so that nothing changes meanwhile.
fn path_to<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Vec<Step<'a>> {
    let mut path = Vec::new();
    let mut node = arena.root();
    let (mut has_left, mut has_right) = (false, false);
    while !node.is_leaf() {
        let view = node.view();
        let rank = rank_of(node, view, sought, has_left && has_right);
        has_left |= rank > 0;
        has_right |= rank < view.order.count();
        path.push(Step { node, rank });
        node = child_of(node, view, rank);
    }
    path
}

/// The entries at the nearest borders to the left and right of a way.
fn borders<'a>(path: &[Step<'a>]) -> (Option<Entry<'a>>, Option<Entry<'a>>) {
    let entry = |step: &Step<'a>, rank: usize| step.node.entry(step.node.view().order.slot(rank));
    let left = path.iter().rev().find(|step| step.rank > 0).map(|step| entry(step, step.rank - 1));
    let right = path.iter().rev().find(|step| step.rank < step.node.view().order.count());
    (left, right.map(|step| entry(step, step.rank)))
}
