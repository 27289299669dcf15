//! Memory of a memtable: entries and nodes of a tree in chunks that only grow, and are wiped when freed.
//!
//! This file needs `unsafe` because entries are of variable size, are written once, and are read without a lock while
//! others are added; no safe container does that. Everything outside sees [`Entry`] and [`Node`], which borrow the arena, and
//! [`Writer`], which holds its lock, so that no call of this file's interface can do harm. What nodes look like, and the
//! order in which their parts are read and written, is in [`node`], which needs no `unsafe` any more.
//!
//! ```text
//! entry, 4-byte aligned, never moved, never changed
//!   offset  size  field
//!        0     8  trailer    sequence number and kind
//!        8     4  value_len  bytes of the value
//!       12     2  key_len    bytes of the key
//!       14     1  large      1 if the value lies in an allocation of its own
//!       15     1  -
//!       16     k  key
//!        …     v  value; if large, the pointer of an `Arc<LargeValue>` instead
//!
//! chunk      entries ──>            free            <── nodes, each at a multiple of 64
//! ```
//!
//! # Offsets and chunks
//! Entries and nodes know each other by 32-bit offsets into one address space that is cut into chunks: the chunk at 2 KiB is 2 KiB
//! long, the one at 4 KiB 4 KiB, and so on to 512 KiB; from 1 MiB on each chunk is 1 MiB. So chunk and place within it
//! follow from an offset's bits alone, a small memtable is small, and 0 is free to mean "none". What does not fit into what is
//! left of a chunk begins the next one that it fits into. Nodes lie together at the chunk's end, so that a search, which looks at
//! nodes only, meets few pages of memory.
//!
//! # What makes it sound
//! 1. *Only what was written is led to.* A place of a node that holds the offset of an entry or of a node holds 0 or the offset
//!    of such a thing in the same arena, which was there in full before; a child is of the level below its parent's.
//!    The methods that store such offsets check it.
//! 2. *One writer.* Memory is handed out with the lock of [`State`] held.
//! 3. *Publication.* An offset is stored with Release after all bytes that it leads to and its chunk's pointer, and loaded
//!    with Acquire. So who has an offset may read what is there.
//! 4. *Nothing moves.* Chunks are freed only when the arena is dropped, and [`Entry`] and [`Node`] borrow the arena.
//! 5. *Entries are plain bytes, nodes are atomics*, and no byte belongs to both: so whatever a reader meets in a node, torn
//!    between two changes or not, leads it to whole entries.

#![allow(unsafe_code, reason = "variable-sized entries read without a lock while others are added; see above")]

pub(super) mod node;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::types::{KEY_BYTES_MAX, Trailer, VALUE_BYTES_MAX};
use crate::value::Backing;
use node::{Children, LEVELS_MAX, Node, Slots, Version};

/// Values above this many bytes are allocations of their own: they would waste chunks, and a reader can share them.
pub(super) const VALUE_IN_ARENA_BYTES_MAX: usize = 4 << 10;

const CHUNK_BYTES_MIN: u64 = 2 << 10;
const CHUNK_BYTES_MAX: u64 = 1 << 20;
/// Offsets end here: 2^32.
const OFFSETS_END: u64 = 1 << 32;
/// Chunks of 2, 4, ... 512 KiB.
const CHUNKS_GROWING: usize = 9;
/// Chunks whose pointers lie in the arena itself: the growing ones and 31 MiB more.
const CHUNKS_NEAR: usize = CHUNKS_GROWING + 31;
/// All chunks: 4,095 of 1 MiB lie between offsets 2^20 and 2^32.
const CHUNKS: usize = CHUNKS_GROWING + 4095;

/// The fixed part of an entry.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fixed {
    /// Low half first.
    trailer: [u32; 2],
    value_len: u32,
    key_len: u16,
    large: u8,
    unused: u8,
}

const FIXED_BYTES: usize = size_of::<Fixed>();
const ENTRY_ALIGN: u64 = align_of::<Fixed>() as u64;
/// Nodes begin with a cache line. The low bits of their offsets are free.
const NODE_ALIGN: u64 = 64;
/// Bytes of a leaf.
const LEAF_BYTES: u64 = (size_of::<Slots>() as u64).next_multiple_of(NODE_ALIGN);
/// Bytes of a node with children, which follow its slots.
const INNER_BYTES: u64 = ((size_of::<Slots>() + size_of::<Children>()) as u64).next_multiple_of(NODE_ALIGN);

/// A value in an allocation of its own, wiped when its last reader lets go.
pub(super) struct LargeValue(Zeroizing<Box<[u8]>>);

impl Backing for LargeValue {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Chunks of entries and nodes, and the lock of the one who may add to them.
pub(super) struct Arena {
    near: [AtomicPtr<u8>; CHUNKS_NEAR],
    /// Pointers of the chunks behind the near ones, for memtables above 32 MiB.
    far: OnceLock<Box<[AtomicPtr<u8>]>>,
    state: Mutex<State>,
    /// Offset of the root, and its level in the low bits.
    root: AtomicU32,
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

/// What only the writer knows.
struct State {
    space: Space,
    /// Entries whose value is an allocation of its own.
    large: Vec<u32>,
    /// The last leaf.
    last_leaf: u32,
    /// The last entry of all, 0 if there is none.
    greatest: u32,
}

impl Arena {
    /// An arena with nothing but an empty leaf.
    pub(super) fn new() -> Arena {
        Arena::with_end(OFFSETS_END)
    }

    /// An arena whose offsets are exhausted at `end`.
    pub(super) fn with_end(end: u64) -> Arena {
        let mut arena = Arena {
            near: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS_NEAR],
            far: OnceLock::new(),
            state: Mutex::new(State {
                space: Space::new(end.clamp(2 * CHUNK_BYTES_MIN, OFFSETS_END)),
                large: Vec::new(),
                last_leaf: 0,
                greatest: 0,
            }),
            root: AtomicU32::new(0),
            entries: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        };
        arena.add_chunk(0);
        let at = arena.state.get_mut().space.node(LEAF_BYTES).expect("the first chunk has room for a leaf");
        arena.state.get_mut().last_leaf = at;
        arena.node(at, 0).change().set_items(&[]);
        *arena.root.get_mut() = at;
        arena
    }

    /// The root. It may be replaced at any time by one that leads to it.
    pub(super) fn root(&self) -> Node<'_> {
        // Acquire: pairs with the Release in `Writer::set_root` (rule 3).
        let root = self.root.load(Ordering::Acquire);
        self.node(root & !LEVELS_MAX, root & LEVELS_MAX)
    }

    /// Entries so far.
    pub(super) fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes allocated: whole chunks, and large values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Wait to be the one writer.
    pub(super) fn writer(&self) -> Writer<'_> {
        #[cfg(test)]
        super::tests::turns::steps_until(|| !self.state.is_locked());
        Writer { arena: self, state: self.state.lock() }
    }

    /// The entry at an offset that was read from a node or from the state: the callers' side of rule 1.
    #[inline]
    fn entry(&self, at: u32) -> Entry<'_> {
        Entry { arena: self, at, start: self.resolve(at) }
    }

    /// The node of this level at an offset that was read from a node, the root or the state: the callers' side of rule 1.
    #[inline]
    fn node(&self, at: u32, level: u32) -> Node<'_> {
        let start = self.resolve(at);
        // SAFETY: `Writer::new_node` gave this place, 64-aligned and long enough, to a node. It was zeroed, which all its
        // atomics may be, is accessed as these atomics alone (rule 5), and lives as long as the arena (rule 4).
        let slots = unsafe { start.cast::<Slots>().as_ref() };
        if level == 0 {
            return Node::new(self, at, level, slots, None);
        }
        // SAFETY: a node of a level above 0 was given room for its children behind its slots (rule 1).
        let children = unsafe { start.add(size_of::<Slots>()) };
        // SAFETY: as for the slots, whose size is a multiple of the children's alignment.
        let children = unsafe { children.cast::<Children>().as_ref() };
        Node::new(self, at, level, slots, Some(children))
    }

    /// Where an offset lies in memory. Its chunk must exist.
    #[inline]
    fn resolve(&self, at: u32) -> NonNull<u8> {
        let (chunk, within) = chunk_of(u64::from(at));
        // Relaxed: the pointer was stored before any offset into its chunk was published (rule 3).
        let start = self.slot(chunk).load(Ordering::Relaxed);
        let start = NonNull::new(start).expect("an offset is only handed out once its chunk exists");
        // SAFETY: `within` is less than the chunk's length, by the arithmetic of `chunk_of`.
        unsafe { start.add(within) }
    }

    #[inline]
    fn slot(&self, chunk: usize) -> &AtomicPtr<u8> {
        match self.near.get(chunk) {
            Some(slot) => slot,
            None => &self.far()[chunk - CHUNKS_NEAR],
        }
    }

    #[cold]
    fn far(&self) -> &[AtomicPtr<u8>] {
        self.far.get_or_init(|| (CHUNKS_NEAR..CHUNKS).map(|_| AtomicPtr::new(ptr::null_mut())).collect())
    }

    /// Allocate a chunk, zeroed. Only the writer does.
    fn add_chunk(&self, chunk: usize) {
        let layout = chunk_layout(chunk);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        self.slot(chunk).store(start, Ordering::Relaxed);
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for at in std::mem::take(&mut self.state.get_mut().large) {
            let value = self.entry(at).large_value();
            // SAFETY: `Writer::write` put the pointer of `Arc::into_raw` there, this is the one place that takes it
            // back, and no `Entry` that could read it again outlives the arena (rule 4).
            drop(unsafe { Arc::from_raw(value) });
        }
        for chunk in 0..if self.far.get().is_some() { CHUNKS } else { CHUNKS_NEAR } {
            let start = self.slot(chunk).load(Ordering::Relaxed);
            if start.is_null() {
                continue;
            }
            let layout = chunk_layout(chunk);
            let words = ptr::slice_from_raw_parts_mut(start.cast::<u64>(), layout.size() / size_of::<u64>());
            // SAFETY: the chunk is 8-aligned, was zeroed when allocated (so all of it is initialised), and with `&mut self`
            // nobody else reads or writes it.
            let words = unsafe { &mut *words };
            // In words, because a wipe may not be merged into wider stores by the compiler.
            words.zeroize();
            // SAFETY: allocated in `add_chunk` with this very layout, and freed once.
            unsafe { dealloc(start, layout) };
        }
    }
}

/// One entry.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    arena: &'a Arena,
    at: u32,
    start: NonNull<u8>,
}

impl<'a> Entry<'a> {
    fn fixed(self) -> &'a Fixed {
        // SAFETY: an entry was written here in full before its offset could be known (rules 1 and 3), is 4-aligned, is
        // never changed, and lives as long as the arena (rule 4).
        unsafe { self.start.cast::<Fixed>().as_ref() }
    }

    /// Sequence number and kind.
    pub(super) fn trailer(self) -> Trailer {
        Trailer::from_raw(self.trailer_raw()).expect("the writer stored the raw form of a trailer")
    }

    /// The trailer as a number, for comparisons.
    pub(super) fn trailer_raw(self) -> u64 {
        let [low, high] = self.fixed().trailer;
        u64::from(high) << 32 | u64::from(low)
    }

    /// The user key.
    pub(super) fn key(self) -> &'a [u8] {
        // SAFETY: the entry is at least `entry_bytes(key_len, 0)` long, all in one chunk.
        let start = unsafe { self.start.add(FIXED_BYTES) };
        let key = NonNull::slice_from_raw_parts(start, usize::from(self.fixed().key_len));
        // SAFETY: written before the entry was published, never changed, alive as long as the arena.
        unsafe { key.as_ref() }
    }

    /// The value where it lies.
    pub(super) fn value(self) -> &'a [u8] {
        let fixed = self.fixed();
        if fixed.large != 0 {
            // SAFETY: the arena holds a count of this `Arc` for as long as it lives, and `'a` is within that.
            let value: &'a LargeValue = unsafe { &*self.large_value() };
            return value.bytes();
        }
        // SAFETY: the entry is `entry_bytes(key_len, value_len)` long, all in one chunk.
        let start = unsafe { self.start.add(FIXED_BYTES + usize::from(fixed.key_len)) };
        let value = NonNull::slice_from_raw_parts(start, fixed.value_len as usize);
        // SAFETY: written before the entry was published, never changed, alive as long as the arena.
        unsafe { value.as_ref() }
    }

    /// The allocation that the value shares with its readers, if it has one of its own.
    pub(super) fn shared_value(self) -> Option<Arc<LargeValue>> {
        if self.fixed().large == 0 {
            return None;
        }
        let value = self.large_value();
        // SAFETY: the pointer came from `Arc::into_raw`, and the arena holds that count while `self` borrows it.
        unsafe { Arc::increment_strong_count(value) };
        // SAFETY: as above; this takes over the count just added.
        Some(unsafe { Arc::from_raw(value) })
    }

    /// The pointer in place of a large value. Only for entries with `large` set.
    fn large_value(self) -> *const LargeValue {
        let fixed = self.fixed();
        assert!(fixed.large != 0, "only a large value is a pointer");
        // SAFETY: the entry was allocated with room for the pointer behind the key.
        let place = unsafe { self.start.add(FIXED_BYTES + usize::from(fixed.key_len)) };
        // SAFETY: written there before the entry was published.
        unsafe { place.cast::<*const LargeValue>().read_unaligned() }
    }

    /// Whether it was written after another one of the same arena.
    pub(super) fn is_newer_than(self, other: Entry<'_>) -> bool {
        // Offsets only grow.
        self.at > other.at
    }

    /// Ask for its first bytes to be in the cache soon.
    pub(super) fn prefetch(self) {
        prefetch(self.start);
        prefetch(self.start.map_addr(|at| at.saturating_add(64)));
    }
}

/// Where a walk over the tree stands: an entry, and the leaf that it was found in.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) entry: Entry<'a>,
    pub(super) leaf: Node<'a>,
    /// That of the leaf, so long as which the rest holds.
    pub(super) version: Version,
    pub(super) rank: usize,
    /// How many entries the leaf has.
    pub(super) count: usize,
    /// The first entry of the next leaf.
    pub(super) next_leaf_from: Option<Entry<'a>>,
}

/// A [`Spot`] that keeps the arena alive, for cursors.
pub(super) struct Place {
    arena: Arc<Arena>,
    /// 0 for none; otherwise, as `leaf`, that of a spot in this arena.
    entry: u32,
    leaf: u32,
    version: Version,
    rank: usize,
    count: usize,
    /// As in a spot; 0 for none.
    next_leaf_from: u32,
}

impl Place {
    /// No entry.
    pub(super) fn none(arena: Arc<Arena>) -> Place {
        Place { arena, entry: 0, leaf: 0, version: Version::default(), rank: 0, count: 0, next_leaf_from: 0 }
    }

    /// The entry, if it is on one.
    pub(super) fn entry(&self) -> Option<Entry<'_>> {
        match self.entry {
            0 => None,
            at => Some(self.arena.entry(at)),
        }
    }

    /// Move to what `find` finds in the arena, given where this is.
    ///
    /// # Panics
    /// If `find` gives a spot in another arena.
    pub(super) fn set(&mut self, find: impl for<'a> FnOnce(&'a Arena, Option<Spot<'a>>) -> Option<Spot<'a>>) {
        let arena = &*self.arena;
        let entry = |at| if at == 0 { None } else { Some(arena.entry(at)) };
        let here = entry(self.entry).map(|entry_here| Spot {
            entry: entry_here,
            leaf: arena.node(self.leaf, 0),
            version: self.version,
            rank: self.rank,
            count: self.count,
            next_leaf_from: entry(self.next_leaf_from),
        });
        match find(arena, here) {
            None => self.entry = 0,
            Some(Spot { entry, leaf, version, rank, count, next_leaf_from }) => {
                let offset = |entry: Entry<'_>| {
                    assert!(ptr::eq(entry.arena, arena), "an entry of another arena");
                    entry.at
                };
                (self.entry, self.next_leaf_from) = (offset(entry), next_leaf_from.map_or(0, offset));
                (self.leaf, self.version) = (leaf.offset_in(arena), version);
                (self.rank, self.count) = (rank, count);
            }
        }
    }
}

/// The right to add entries and nodes.
pub(super) struct Writer<'a> {
    arena: &'a Arena,
    state: MutexGuard<'a, State>,
}

impl<'a> Writer<'a> {
    /// The arena that this is the writer of.
    pub(super) fn arena(&self) -> &'a Arena {
        self.arena
    }

    /// The last entry of all, and the leaf that it is in.
    pub(super) fn greatest(&self) -> Option<(Entry<'a>, Node<'a>)> {
        match self.state.greatest {
            0 => None,
            at => Some((self.arena.entry(at), self.arena.node(self.state.last_leaf, 0))),
        }
    }

    /// Remember which leaf is the last, and which entry, if it is another now.
    pub(super) fn set_last(&mut self, leaf: Node<'_>, greatest: Option<Entry<'_>>) {
        assert!(leaf.is_leaf(), "entries are in leaves");
        self.state.last_leaf = leaf.offset_in(self.arena);
        if let Some(greatest) = greatest {
            assert!(ptr::eq(greatest.arena, self.arena), "an entry of another arena");
            self.state.greatest = greatest.at;
        }
    }

    /// Begin the tree at `root` from now on.
    pub(super) fn set_root(&self, root: Node<'_>) {
        let word = root.offset_in(self.arena) | root.level();
        // Release: publishes the node's contents and its chunk (rule 3).
        self.arena.root.store(word, Ordering::Release);
    }

    /// Write an entry that nothing leads to yet.
    ///
    /// # Errors
    /// `LimitExceeded` when key or value are too long or offsets are exhausted; nothing was added then.
    #[inline]
    pub(super) fn write(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<Entry<'a>> {
        check_lengths(key, value)?;
        let at = self.state.space.entry(entry_bytes(key, value))?;
        self.add_chunk_of(at);
        let start = self.arena.resolve(at);
        let large = value.len() > VALUE_IN_ARENA_BYTES_MAX;
        let fixed = Fixed {
            trailer: [trailer.raw() as u32, (trailer.raw() >> 32) as u32],
            value_len: value.len() as u32,
            key_len: key.len() as u16,
            large: u8::from(large),
            unused: 0,
        };
        // SAFETY: `space` just gave these bytes, 4-aligned and in one chunk, to this call alone (rule 2).
        unsafe { start.cast::<Fixed>().write(fixed) };
        // SAFETY: within the bytes just allocated.
        let key_start = unsafe { start.add(FIXED_BYTES) };
        // SAFETY: `entry_bytes` has room for the key there, and fresh memory does not overlap the caller's.
        unsafe { ptr::copy_nonoverlapping(key.as_ptr(), key_start.as_ptr(), key.len()) };
        // SAFETY: within the bytes just allocated.
        let place = unsafe { key_start.add(key.len()) };
        if large {
            add(&self.arena.bytes, value.len());
            let value = Arc::into_raw(Arc::new(LargeValue(Zeroizing::new(value.into()))));
            // SAFETY: `entry_bytes` has room for the pointer there.
            unsafe { place.cast::<*const LargeValue>().write_unaligned(value) };
            self.state.large.push(at);
        } else {
            // SAFETY: `entry_bytes` has room for the value there, and fresh memory does not overlap the caller's.
            unsafe { ptr::copy_nonoverlapping(value.as_ptr(), place.as_ptr(), value.len()) };
        }
        add(&self.arena.entries, 1);
        Ok(self.arena.entry(at))
    }

    /// An empty node that nothing leads to yet.
    ///
    /// # Errors
    /// `LimitExceeded` when offsets are exhausted, or so many levels are too many.
    pub(super) fn new_node(&mut self, level: u32) -> Result<Node<'a>> {
        limit("levels of a memtable", level as usize, LEVELS_MAX as usize)?;
        let at = self.state.space.node(if level == 0 { LEAF_BYTES } else { INNER_BYTES })?;
        self.add_chunk_of(at);
        let node = self.arena.node(at, level);
        node.change().set_items(&[]);
        Ok(node)
    }

    fn add_chunk_of(&self, at: u32) {
        let (chunk, _) = chunk_of(u64::from(at));
        if self.arena.slot(chunk).load(Ordering::Relaxed).is_null() {
            self.arena.add_chunk(chunk);
        }
    }
}

/// What is left of the chunk in use, and which chunks there may be behind it.
#[derive(Clone, Copy)]
struct Space {
    /// Where the next entry may begin.
    low: u64,
    /// Where the next node must end.
    high: u64,
    /// Where the next chunk begins.
    next: u64,
    /// No offset at or above this is handed out.
    end: u64,
}

impl Space {
    fn new(end: u64) -> Space {
        let next = chunk_end(CHUNK_BYTES_MIN);
        Space { low: CHUNK_BYTES_MIN, high: next, next, end }
    }

    /// Room for an entry, 4-aligned and within one chunk.
    fn entry(&mut self, bytes: u64) -> Result<u32> {
        let bytes = bytes.next_multiple_of(ENTRY_ALIGN);
        self.find(bytes)?;
        let at = self.low;
        self.low += bytes;
        // Below `end`, which is at most 2^32.
        Ok(at as u32)
    }

    /// Room for a node of a multiple of 64 bytes, 64-aligned and within one chunk.
    fn node(&mut self, bytes: u64) -> Result<u32> {
        self.find(bytes)?;
        // Chunks end at multiples of 64.
        self.high -= bytes;
        Ok(self.high as u32)
    }

    /// Go on to the first chunk with so many bytes.
    fn find(&mut self, bytes: u64) -> Result<()> {
        let mut found = *self;
        while found.low + bytes > found.high {
            let (low, limit) = (found.next, self.end);
            if low + bytes > limit {
                return Err(Error::LimitExceeded { what: "bytes of a memtable", limit, actual: low + bytes });
            }
            let next = chunk_end(low);
            found = Space { low, high: next.min(limit & !(NODE_ALIGN - 1)), next, end: limit };
        }
        *self = found;
        Ok(())
    }
}

/// Add to a count that only the writer changes.
fn add(count: &AtomicUsize, more: usize) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// Ask for a cache line. Any address will do.
#[inline]
fn prefetch(at: NonNull<u8>) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch is a hint: it reads nothing that the program could see, and may be given any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Check that these may be an entry's.
///
/// # Errors
/// `LimitExceeded` if one of them is too long.
pub(super) fn check_lengths(key: &[u8], value: &[u8]) -> Result<()> {
    limit("key bytes", key.len(), KEY_BYTES_MAX)?;
    limit("value bytes", value.len(), VALUE_BYTES_MAX)
}

/// Bytes of an entry.
fn entry_bytes(key: &[u8], value: &[u8]) -> u64 {
    let value = if value.len() > VALUE_IN_ARENA_BYTES_MAX { size_of::<*const LargeValue>() } else { value.len() };
    (FIXED_BYTES + key.len() + value) as u64
}

/// Which chunk an offset lies in, and where in it.
fn chunk_of(at: u64) -> (usize, usize) {
    if at >= CHUNK_BYTES_MAX {
        (CHUNKS_GROWING - 1 + (at / CHUNK_BYTES_MAX) as usize, (at % CHUNK_BYTES_MAX) as usize)
    } else {
        let size = at.ilog2();
        ((size - CHUNK_BYTES_MIN.ilog2()) as usize, (at - (1 << size)) as usize)
    }
}

/// The first offset behind the chunk that `at` lies in.
fn chunk_end(at: u64) -> u64 {
    if at >= CHUNK_BYTES_MAX { (at / CHUNK_BYTES_MAX + 1) * CHUNK_BYTES_MAX } else { 2 << at.ilog2() }
}

fn chunk_layout(chunk: usize) -> Layout {
    let bytes = (CHUNK_BYTES_MIN << chunk.min(CHUNKS_GROWING)) as usize;
    Layout::from_size_align(bytes, NODE_ALIGN as usize).expect("2 KiB to 1 MiB, aligned to 64")
}

fn limit(what: &'static str, actual: usize, limit: usize) -> Result<()> {
    if actual <= limit {
        return Ok(());
    }
    Err(Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 })
}
