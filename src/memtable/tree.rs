//! The order of a memtable's entries: a B+-tree that one writer changes in place while others read it.
//!
//! ```text
//!                    root   │ child │ e │ child │ g │ child │          each entry of an inner node is the first of the child behind it
//!                     ┌─────────┘         │         └─────┐
//!                   leaf                leaf            leaf
//!                   a b c d             e f             g h
//! ```
//! # Readers
//! Optimistic lock coupling (Leis et al., "The ART of Practical Synchronization", 2016). Each node has a version
//! ([`node`](super::arena::node)). On the way down a reader takes the version of the child *before* it makes sure that the
//! parent is still what it was: so the child was the right one, and covered all between its two borders, at the moment from which on the
//! reader watches it. The writer marks every node that a split changes before it changes the first of them, and unmarks them when all are
//! changed. So whatever a reader takes from a leaf that still has its version is what was there at one moment, wherever
//! the reader was held up on its way, and a reader who learns that something changed begins again. One that does so
//! [`ATTEMPTS`] times waits for the writer instead. An insert marks one leaf for some ten nanoseconds as a rule; where it splits nodes
//! or chooses another prefix, for as long as it takes to look at some dozens of entries.
//!
//! # Borders
//! Entries are never removed, and one that is equal to a border does not come a second time. So the border on a leaf's left *is* its
//! first entry, and the border on its right is the first entry of the leaf behind it, for as long as the leaf
//! is not split. Leaves therefore need not know each other: whoever comes to the end of one has the next entry already.
//!
//! # Prefixes
//! The seven bytes that a node keeps of each key are those behind the *prefix* that its keys share, so that they decide nearly always
//! and no entry need be looked at. They decide only for keys that share the prefix, too. A key that lies between two others
//! shares what those share. So the prefix of a node between two borders is what these have in common, or less, and whoever was led
//! there by them has it: that costs nothing. At the edges of the tree, where there is a border on one side at most, it is
//! what the node's own entries share. There a reader compares it, and the writer makes it shorter for a key that does not share it.
//!
//! # Where a full node is split
//! In the middle, and else where it fills nodes: behind all that is there if the new entry comes last of all, and before all that is there
//! if it comes first of all, so that rising keys move nothing (and find their leaf without a search, from the last entry), and
//! falling ones move each entry once. Clusters of rising keys fill their leaves, too: a leaf between others is split behind the new entry if
//! that follows the newest one there was. It is never split at its end, though, if the next leaf begins with something newer still: else
//! what comes before that again and again, as do falling keys or new versions of its first one, would begin a leaf each time.

use std::cmp::Ordering;

use smallvec::SmallVec;
use zeroize::Zeroize;

use super::arena::node::{Change, HEAD_BYTES, Item, Node, SLOTS, Version};
use super::arena::{Arena, Entry, Spot, Writer, check_lengths};
use crate::error::Result;
use crate::types::Trailer;

/// A prefix is made longer once this many bytes more are shared, since all heads must be read from the keys then.
const GAIN_MIN: usize = 3;
/// How often a reader begins again before it waits for the writer.
const ATTEMPTS: usize = 64;

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
    fn before(entry: Entry<'k>) -> Sought<'k> {
        Sought { key: entry.key(), trailer: entry.trailer_raw(), behind: false }
    }

    /// The place right behind an entry.
    fn behind(entry: Entry<'k>) -> Sought<'k> {
        Sought { key: entry.key(), trailer: entry.trailer_raw(), behind: true }
    }

    /// How its first bytes compare with those that all keys of a node share.
    fn cmp_prefix(&self, prefix: usize, entry: Entry<'_>) -> Ordering {
        let (ours, theirs) = (self.key, entry.key());
        ours[..prefix.min(ours.len())].cmp(&theirs[..prefix.min(theirs.len())])
    }

    /// How its key and trailer compare with an entry's whose key shares so many bytes, and has the same head behind them.
    fn cmp_rest(&self, prefix: usize, entry: Entry<'_>) -> Ordering {
        let key = entry.key();
        let keys = match (self.key.get(prefix + HEAD_BYTES..), key.get(prefix + HEAD_BYTES..)) {
            (Some(rest), Some(other)) => rest.cmp(other),
            // One of them ends within its head. With equal heads, the other begins with it, or is it without some zeros at its end: so
            // the longer one comes later.
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

    /// How many entries of a node lie before the place; none if the node changed meanwhile.
    #[inline]
    fn rank_in(&self, node: Node<'_>, fences: Fences<'_>) -> Option<usize> {
        let (prefix, count) = (node.prefix(), node.count());
        if prefix > 0 && count > 0 && !fences.are_two() {
            match self.cmp_prefix(prefix, node.entry(0)?) {
                Ordering::Less => return Some(0),
                Ordering::Equal => {}
                Ordering::Greater => return Some(count),
            }
        }
        let head = head_of(self.key, prefix);
        let rank = node.heads_below(head).min(count);
        if rank == count || node.head(rank) != head {
            return Some(rank);
        }
        let is_behind = |slot: usize| {
            if node.head(slot) != head {
                return Some(node.head(slot) < head);
            }
            let order = self.cmp_rest(prefix, node.entry(slot)?);
            Some(order == Ordering::Greater || order == Ordering::Equal && self.behind)
        };
        // The first one first: of many versions of a key the newest is sought most often.
        if is_behind(rank)? { partition(rank + 1, count, is_behind) } else { Some(rank) }
    }
}

/// The first of these slots of which `is_before` does not hold, as it does of all before it.
fn partition(mut from: usize, mut to: usize, is_before: impl Fn(usize) -> Option<bool>) -> Option<usize> {
    while from < to {
        let middle = (from + to) / 2;
        if is_before(middle)? {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    Some(from)
}

/// The entries at the nearest borders to both sides of a node: its own first one or less, and the first one behind it.
#[derive(Clone, Copy, Default)]
struct Fences<'a> {
    left: Option<Entry<'a>>,
    right: Option<Entry<'a>>,
}

impl<'a> Fences<'a> {
    /// Whether all that was led here lies between two others.
    fn are_two(self) -> bool {
        self.left.is_some() && self.right.is_some()
    }

    /// Those of the child that so many entries come before; none if the node changed meanwhile.
    #[inline]
    fn of_child(self, node: Node<'a>, rank: usize) -> Option<Fences<'a>> {
        Some(Fences {
            left: if rank > 0 { Some(node.entry(rank - 1)?) } else { self.left },
            right: if rank < node.count() { Some(node.entry(rank)?) } else { self.right },
        })
    }
}

/// The end of a way down the tree.
struct Way<'a> {
    leaf: Node<'a>,
    /// That of the leaf, so long as which the rest holds.
    version: Version,
    /// How many entries of the leaf come before, and how many it has.
    rank: usize,
    count: usize,
    fences: Fences<'a>,
}

impl<'a> Way<'a> {
    /// Go down by what `rank_in` says of how many entries of a node come before; none if a node changed meanwhile. What is taken from the
    /// leaf must be checked by its version.
    fn down(arena: &'a Arena, rank_in: impl Fn(Node<'a>, Fences<'a>) -> Option<usize>) -> Option<Way<'a>> {
        let (mut node, mut fences) = (arena.root(), Fences::default());
        let mut version = node.version()?;
        if !arena.root().is(node) {
            return None;
        }
        while !node.is_leaf() {
            let rank = rank_in(node, fences)?;
            let child = node.child(rank)?;
            child.prefetch();
            fences = fences.of_child(node, rank)?;
            // In this order: see above.
            let child_version = child.version()?;
            if !node.is_still(version) {
                return None;
            }
            (node, version) = (child, child_version);
        }
        Some(Way { leaf: node, version, rank: rank_in(node, fences)?, count: node.count(), fences })
    }

    /// The way to a place; none as above.
    fn to(arena: &'a Arena, sought: &Sought<'_>) -> Option<Way<'a>> {
        Way::down(arena, |node, fences| sought.rank_in(node, fences))
    }

    /// The entry of this rank in the leaf, or the first of the next one, if there is one. None also if the leaf changed meanwhile.
    fn entry(&self) -> Option<Option<Entry<'a>>> {
        let entry = if self.is_within() { Some(self.leaf.entry(self.rank)?) } else { self.fences.right };
        self.leaf.is_still(self.version).then_some(entry)
    }

    /// The entry before this rank, if there is one, and where it is. None also if the leaf changed meanwhile.
    fn spot_before(&self) -> Option<Option<Spot<'a>>> {
        let spot = match self.rank.checked_sub(1) {
            None => None,
            Some(rank) => Some(self.spot(rank, self.leaf.entry(rank)?)),
        };
        self.leaf.is_still(self.version).then_some(spot)
    }

    /// Whether the very entry sought is there already. For the writer, who is alone.
    fn leads_to(&self, sought: &Sought<'_>) -> bool {
        // The head first: looking at an entry is a cache miss.
        let is_other = self.is_within() && self.leaf.head(self.rank) != head_of(sought.key, self.leaf.prefix());
        !is_other && self.entry().flatten().is_some_and(|entry| sought.is(entry))
    }

    /// Whether the entry of this rank is in the leaf.
    fn is_within(&self) -> bool {
        self.rank < self.count
    }

    fn spot(&self, rank: usize, entry: Entry<'a>) -> Spot<'a> {
        Spot {
            entry,
            leaf: self.leaf,
            version: self.version,
            rank,
            count: self.count,
            next_leaf_from: self.fences.right,
        }
    }
}

/// Look again until nothing changed meanwhile.
fn settled<T>(arena: &Arena, look: impl Fn() -> Option<T>) -> T {
    for _ in 0..ATTEMPTS {
        if let Some(found) = look() {
            return found;
        }
        std::hint::spin_loop();
    }
    let _writer = arena.writer();
    look().expect("only the writer changes anything")
}

/// The first entry at or behind a place.
pub(super) fn first_from<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Entry<'a>> {
    settled(arena, || look_for_first_from(arena, sought))
}

/// One look for [`first_from`]. None also if something changed meanwhile.
pub(super) fn look_for_first_from<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Option<Entry<'a>>> {
    Way::to(arena, sought)?.entry()
}

/// As [`first_from`], and where it is.
pub(super) fn spot_from<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Spot<'a>> {
    let (way, entry) = settled(arena, || {
        let way = Way::to(arena, sought)?;
        let entry = way.entry()?;
        Some((way, entry))
    });
    entry.map(|entry| if way.is_within() { way.spot(way.rank, entry) } else { spot_of(arena, entry) })
}

/// The last entry before a place, and where it is.
pub(super) fn last_before<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Spot<'a>> {
    settled(arena, || look_for_last_before(arena, sought))
}

/// One look for [`last_before`]. None also if something changed meanwhile.
pub(super) fn look_for_last_before<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Option<Option<Spot<'a>>> {
    Way::to(arena, sought)?.spot_before()
}

/// Where an entry of the tree is.
fn spot_of<'a>(arena: &'a Arena, entry: Entry<'a>) -> Spot<'a> {
    last_before(arena, &Sought::behind(entry)).expect("entries stay in the tree")
}

/// The first entry of all.
pub(super) fn first(arena: &Arena) -> Option<Spot<'_>> {
    let first = settled(arena, || Way::down(arena, |_, _| Some(0))?.entry());
    first.map(|entry| spot_of(arena, entry))
}

/// The last entry of all.
pub(super) fn last(arena: &Arena) -> Option<Spot<'_>> {
    settled(arena, || Way::down(arena, |node, _| Some(node.count()))?.spot_before())
}

/// The entry behind the one that a walk is on.
pub(super) fn following<'a>(arena: &'a Arena, here: Spot<'a>) -> Option<Spot<'a>> {
    let rank = here.rank + 1;
    if rank < here.count {
        if let Some(entry) = here.leaf.entry(rank)
            && here.leaf.is_still(here.version)
        {
            return Some(Spot { entry, rank, ..here });
        }
        return spot_from(arena, &Sought::behind(here.entry));
    }
    let next = match here.leaf.is_still(here.version) {
        true => here.next_leaf_from.map(|entry| spot_of(arena, entry)),
        false => spot_from(arena, &Sought::behind(here.entry)),
    };
    next.inspect(prefetch_entries)
}

/// The entry before the one that a walk is on.
pub(super) fn preceding<'a>(arena: &'a Arena, here: Spot<'a>) -> Option<Spot<'a>> {
    if let Some(rank) = here.rank.checked_sub(1)
        && let Some(entry) = here.leaf.entry(rank)
        && here.leaf.is_still(here.version)
    {
        return Some(Spot { entry, rank, ..here });
    }
    last_before(arena, &Sought::before(here.entry)).inspect(prefetch_entries)
}

/// Ask for all entries of a leaf that a walk has come to, so that the cache misses are under way at once, and not one per step.
fn prefetch_entries(spot: &Spot<'_>) {
    (0..spot.count).filter_map(|slot| spot.leaf.entry(slot)).for_each(Entry::prefetch);
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

/// Bytes that two entries' keys share.
fn shared(a: Entry<'_>, b: Entry<'_>) -> usize {
    const WORD: usize = 16;
    let (a, b) = (a.key(), b.key());
    let words = a.chunks_exact(WORD).zip(b.chunks_exact(WORD)).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[words * WORD..], &b[words * WORD..]);
    words * WORD + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A node on the way to where something is added, and how many of its entries come before that.
struct Step<'a> {
    node: Node<'a>,
    rank: usize,
    fences: Fences<'a>,
}

/// One per level; more levels than this are allocated.
type Levels<T> = SmallVec<[T; 8]>;
/// What is in a node, or is to be divided between two.
type Items<'a> = SmallVec<[Item<'a>; SLOTS + 1]>;

impl<'a> Writer<'a> {
    /// Add an entry. A second one with the same key and trailer changes nothing.
    ///
    /// # Errors
    /// `LimitExceeded` when key or value are too long or offsets are exhausted; nothing was added then.
    pub(super) fn insert(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let sought = Sought::new(key, trailer);
        let (leaf, rank, fences) = match self.greatest() {
            // Rising keys need no search.
            Some((greatest, leaf)) if sought.is_behind(greatest) => (leaf, leaf.count(), Fences::default()),
            _ => {
                let way = Way::to(self.arena(), &sought).expect("only the writer changes anything");
                if way.leads_to(&sought) {
                    return Ok(());
                }
                (way.leaf, way.rank, way.fences)
            }
        };
        let (is_last, is_greatest) = (fences.right.is_none(), rank == leaf.count());
        let (entry, last) = if leaf.is_full() {
            let path = path_to(self.arena(), &sought);
            // All that can fail comes first.
            check_lengths(key, value)?;
            let upper = self.new_nodes(&path)?;
            let entry = self.write(key, trailer, value)?;
            self.split(&path, entry, &upper);
            (entry, upper[0])
        } else {
            let entry = self.write(key, trailer, value)?;
            put(&leaf.change(), rank, Item { entry, head: 0, child: None }, fences);
            (entry, leaf)
        };
        if is_last {
            self.set_last(last, is_greatest.then_some(entry));
        }
        Ok(())
    }

    /// What a split takes of new nodes: one for the upper part of each full node, and one for a root above them if there is none with room.
    fn new_nodes(&mut self, path: &[Step<'a>]) -> Result<Levels<Node<'a>>> {
        let full = path.iter().rev().take_while(|step| step.node.is_full()).count();
        let roots = usize::from(full == path.len());
        (0..full + roots).map(|level| self.new_node(level as u32)).collect()
    }

    /// Add an entry at the end of a path, to a full leaf.
    fn split(&self, path: &[Step<'a>], entry: Entry<'a>, upper: &[Node<'a>]) {
        let mut item = Item { entry, head: 0, child: None };
        // All that changes is marked before the first change, and until behind the last.
        let changed = &path[path.len().saturating_sub(upper.len() + 1)..];
        let changes: Levels<Change<'a>> = changed.iter().map(|step| step.node.change()).collect();
        let mut upper = upper.iter().copied();
        for (step, change) in changed.iter().zip(&changes).rev() {
            match upper.next() {
                Some(upper) => item = divide(step, change, upper, item),
                None => return put(change, step.rank, item, step.fences),
            }
        }
        let root = upper.next().expect("a root was divided");
        let change = root.change();
        change.set_first_child(self.arena().root());
        put(&change, 0, item, Fences::default());
        drop(change);
        self.set_root(root);
    }
}

/// The nodes on the way to a place, from the root on.
fn path_to<'a>(arena: &'a Arena, sought: &Sought<'_>) -> Levels<Step<'a>> {
    let (mut node, mut fences) = (arena.root(), Fences::default());
    let mut path = Levels::new();
    let unchanged = "only the writer changes anything";
    loop {
        let rank = sought.rank_in(node, fences).expect(unchanged);
        path.push(Step { node, rank, fences });
        if node.is_leaf() {
            return path;
        }
        fences = fences.of_child(node, rank).expect(unchanged);
        node = node.child(rank).expect(unchanged);
    }
}

/// Put an item into a node that is not full.
fn put<'a>(change: &Change<'a>, rank: usize, item: Item<'a>, fences: Fences<'a>) {
    let node = change.node();
    let (prefix, more) = (node.prefix(), node.count() + 1);
    // At an edge of the tree keys may come that share less, and, once there are a few, it is seen that they share more.
    if more > 1 && !fences.are_two() {
        let first = |entry: Entry<'a>| entry.key().get(..prefix);
        let is_misfit = prefix > 0 && node.entry(0).is_none_or(|entry| first(entry) != first(item.entry));
        if is_misfit || more.is_power_of_two() {
            let mut items: Items<'a> = node.items().collect();
            items.insert(rank, with_head(item, prefix));
            set_items(change, prefix, fences, &mut items);
            return wipe(&mut items);
        }
    }
    change.put(rank, &with_head(item, prefix));
}

/// Move the upper part of a full node, as it is with one item more, to a new node, and give the item that leads there.
fn divide<'a>(step: &Step<'a>, change: &Change<'a>, upper: Node<'a>, item: Item<'a>) -> Item<'a> {
    let (node, fences) = (step.node, step.fences);
    let prefix = node.prefix();
    let mut items: Items<'a> = node.items().collect();
    items.insert(step.rank, with_head(item, prefix));
    let at = split_at(step, &items);
    let (lower_items, mut upper_items) = items.split_at_mut(at);
    let border = upper_items[0];
    let new = upper.change();
    if let Some(child) = border.child {
        // An inner node's border goes up, and its child begins the upper part.
        new.set_first_child(child);
        upper_items = &mut upper_items[1..];
    }
    set_items(&new, prefix, Fences { left: Some(border.entry), ..fences }, upper_items);
    set_items(change, prefix, Fences { right: Some(border.entry), ..fences }, lower_items);
    wipe(&mut items);
    Item { entry: border.entry, head: 0, child: Some(upper) }
}

/// How many of the items of a node that is one too full stay in it: see the module's text.
fn split_at(step: &Step<'_>, items: &[Item<'_>]) -> usize {
    let Step { node, rank, fences } = *step;
    let (half, full) = (items.len() / 2, items.len() - 1);
    if rank == full && fences.right.is_none() {
        return full;
    }
    if rank == 0 && fences.left.is_none() {
        return usize::from(node.is_leaf());
    }
    if node.is_leaf() && rank > half {
        let before = items[rank - 1].entry;
        let is_newest = items.iter().enumerate().all(|(at, item)| at == rank || !item.entry.is_newer_than(before));
        if is_newest && (rank < full || fences.right.is_some_and(|right| before.is_newer_than(right))) {
            return full.min(rank + 1);
        }
    }
    half
}

/// Have these items in a node, whose heads are those behind `prefix`, and a prefix that suits them.
fn set_items<'a>(change: &Change<'a>, prefix: usize, fences: Fences<'a>, items: &mut [Item<'a>]) {
    let shared_by_all = match (fences, &*items) {
        (Fences { left: Some(left), right: Some(right) }, _) => shared(left, right),
        (_, [first, .., last]) => shared(first.entry, last.entry),
        _ => 0,
    };
    let suits = prefix <= shared_by_all && shared_by_all < prefix + GAIN_MIN;
    let suiting = if suits { prefix } else { shared_by_all };
    if !suits {
        items.iter_mut().for_each(|item| *item = with_head(*item, suiting));
    }
    change.set_prefix(suiting);
    change.set_items(items);
}

/// Leave nothing of keys on the stack.
fn wipe(items: &mut Items<'_>) {
    items.iter_mut().for_each(|item| item.head.zeroize());
}

fn with_head<'a>(item: Item<'a>, prefix: usize) -> Item<'a> {
    Item { head: head_of(item.entry.key(), prefix), ..item }
}

/// How many nodes from the leaf up are full where something is to be added.
#[cfg(test)]
pub(super) fn full_nodes_on_way_to(arena: &Arena, sought: &Sought<'_>) -> usize {
    path_to(arena, sought).iter().rev().take_while(|step| step.node.is_full()).count()
}
