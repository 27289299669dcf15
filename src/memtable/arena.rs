//! Memory of a memtable: nodes of a skiplist in chunks that only grow, and are wiped when freed.
//!
//! This file needs `unsafe` because a node is of variable size, is written once, and is read without a lock
//! while others are added; no safe container does that. Everything outside sees [`Node`]s, which borrow the
//! arena, and [`Writer`], which holds its lock, so that no call of this file's interface can do harm.
//!
//! ```text
//! node, 8-byte aligned, never moved, never changed but for its links
//!   offset  size  field
//!        0     8  head       first 8 bytes of the key, big-endian, zero-padded
//!        8     8  trailer    sequence number and kind
//!       16     4  value_len  bytes of the value
//!       20     2  key_len    bytes of the key
//!       22     1  height     links in the tower, 1 to 12
//!       23     1  large      1 if the value lies in an allocation of its own
//!       24  4 * h tower      per level the offset of the next node, 0 for none (atomic)
//!  24 + 4h     k  key
//!        …     v  value; if large, at the next multiple of 8, the pointer of an `Arc<LargeValue>` instead
//! ```
//!
//! # Offsets and chunks
//! Links are 32-bit offsets into one address space that is cut into chunks: the chunk at 2 KiB is 2 KiB long, the one
//! at 4 KiB 4 KiB, and so on to 512 KiB; from 1 MiB on each chunk is 1 MiB. So chunk and place within it follow from an offset's
//! bits alone, a small memtable is small, and 0 is free to mean "none". A node that does not fit into what is left of a
//! chunk begins the next one that it fits into.
//!
//! # What makes it sound
//! 1. *Only nodes are linked.* A link holds 0 or the offset of a node of the same arena that was written in full
//!    before, and is at least as high as the link's level. [`Writer::insert`] alone stores links, and checks this.
//! 2. *One writer.* Memory is handed out and links are stored only with the lock of [`State`] held.
//! 3. *Publication.* A link is stored with Release after the node's bytes, its chunk's pointer and its own links
//!    of this level and below; readers load links with Acquire. So who has an offset may read the node.
//! 4. *Nothing moves.* Chunks are freed only when the arena is dropped, and a [`Node`] borrows the arena.

#![allow(unsafe_code, reason = "variable-sized nodes read without a lock while others are added; see above")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::types::{KEY_BYTES_MAX, Trailer, VALUE_BYTES_MAX};
use crate::value::Backing;

/// Links of the highest tower. With one node in four reaching the next level, 4^12 nodes are searched in
/// logarithmic time; an arena holds at most a few times as many.
pub(super) const HEIGHT_MAX: usize = 12;
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

/// The fixed part of a node.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fixed {
    head: u64,
    trailer: u64,
    value_len: u32,
    key_len: u16,
    height: u8,
    large: u8,
}

const FIXED_BYTES: usize = size_of::<Fixed>();
const LINK_BYTES: usize = size_of::<AtomicU32>();
const ALIGN: usize = 8;

/// A value in an allocation of its own, wiped when its last reader lets go.
pub(super) struct LargeValue(Zeroizing<Box<[u8]>>);

impl Backing for LargeValue {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Chunks of nodes, and the lock of the one who may add to them.
pub(super) struct Arena {
    near: [AtomicPtr<u8>; CHUNKS_NEAR],
    /// Pointers of the chunks behind the near ones, for memtables above 32 MiB.
    far: OnceLock<Box<[AtomicPtr<u8>]>>,
    state: Mutex<State>,
    /// Where the list's head lies: a node of full height that comes before all keys.
    head: u32,
    /// Height of the highest node.
    height: AtomicUsize,
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

/// What only the writer knows.
struct State {
    /// Offset of the first byte that was not handed out.
    next: u64,
    /// No offset at or above this is handed out.
    end: u64,
    /// Per level the last node at or before the latest insert.
    hint: [u32; HEIGHT_MAX],
    /// State of the generator of heights.
    random: u64,
    /// Nodes whose value is an allocation of its own.
    large: Vec<u32>,
}

impl Arena {
    /// An arena with nothing but the head of the list. `seed` decides how high nodes are.
    pub(super) fn new(seed: u64) -> Arena {
        Arena::with_end(seed, OFFSETS_END)
    }

    /// An arena whose offsets are exhausted at `end`.
    pub(super) fn with_end(seed: u64, end: u64) -> Arena {
        let mut arena = Arena {
            near: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS_NEAR],
            far: OnceLock::new(),
            state: Mutex::new(State {
                next: CHUNK_BYTES_MIN,
                end: end.clamp(2 * CHUNK_BYTES_MIN, OFFSETS_END),
                hint: [0; HEIGHT_MAX],
                random: seed | 1,
                large: Vec::new(),
            }),
            head: CHUNK_BYTES_MIN as u32,
            height: AtomicUsize::new(1),
            entries: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        };
        arena.add_chunk(chunk_of(CHUNK_BYTES_MIN).0);
        let fixed = Fixed { head: 0, trailer: 0, value_len: 0, key_len: 0, height: HEIGHT_MAX as u8, large: 0 };
        let at = arena.resolve(arena.head).cast::<Fixed>();
        // SAFETY: `at` is the start of the first chunk, which is 8-aligned, 2 KiB long, and nobody else's yet. The links
        // behind the fixed part are zero as allocated, which is what an `AtomicU32` of 0 looks like.
        unsafe { at.write(fixed) };
        let state = arena.state.get_mut();
        state.next += node_bytes(HEIGHT_MAX, 0, 0).next_multiple_of(ALIGN) as u64;
        state.hint = [arena.head; HEIGHT_MAX];
        arena
    }

    /// The head of the list, which comes before all keys and has none itself.
    pub(super) fn head(&self) -> Node<'_> {
        self.node(self.head)
    }

    /// Height of the highest node: a search may begin at the level below. It may rise at any time.
    pub(super) fn height(&self) -> usize {
        // Relaxed: a search from a lower level than the highest finds the same.
        self.height.load(Ordering::Relaxed)
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
        Writer { arena: self, state: self.state.lock() }
    }

    /// The node at an offset that was read from a link, the head or the hint: the callers' side of rule 1.
    fn node(&self, at: u32) -> Node<'_> {
        Node { arena: self, at, start: self.resolve(at) }
    }

    /// Where an offset lies in memory. Its chunk must exist.
    fn resolve(&self, at: u32) -> NonNull<u8> {
        let (chunk, within) = chunk_of(u64::from(at));
        // Relaxed: the pointer was stored before any offset into its chunk was published (rule 3).
        let start = self.slot(chunk).load(Ordering::Relaxed);
        let start = NonNull::new(start).expect("an offset is only handed out once its chunk exists");
        // SAFETY: `within` is less than the chunk's length, by the arithmetic of `chunk_of`.
        unsafe { start.add(within) }
    }

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
            let value = self.node(at).large_value();
            // SAFETY: `Writer::write` put the pointer of `Arc::into_raw` there, this is the one place that takes it
            // back, and no `Node` that could read it again outlives the arena (rule 4).
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

/// A node of the list: one entry, or the head.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    arena: &'a Arena,
    at: u32,
    start: NonNull<u8>,
}

impl<'a> Node<'a> {
    fn fixed(self) -> &'a Fixed {
        // SAFETY: a node was written here in full before its offset could be known (rules 1 and 3), is 8-aligned, is
        // never changed in this part, and lives as long as the arena (rule 4).
        unsafe { self.start.cast::<Fixed>().as_ref() }
    }

    /// The first eight bytes of the key, as [`key_head`] makes them.
    pub(super) fn key_head(self) -> u64 {
        self.fixed().head
    }

    /// Sequence number and kind.
    pub(super) fn trailer(self) -> Trailer {
        Trailer::from_raw(self.fixed().trailer).expect("the writer stored the raw form of a trailer")
    }

    /// The trailer as a number, for comparisons.
    pub(super) fn trailer_raw(self) -> u64 {
        self.fixed().trailer
    }

    /// The user key.
    pub(super) fn key(self) -> &'a [u8] {
        let fixed = self.fixed();
        let offset = FIXED_BYTES + LINK_BYTES * usize::from(fixed.height);
        // SAFETY: the node is at least `node_bytes(height, key_len, 0)` long, all in one chunk.
        let start = unsafe { self.start.add(offset) };
        let key = NonNull::slice_from_raw_parts(start, usize::from(fixed.key_len));
        // SAFETY: written before the node was published, never changed, alive as long as the arena.
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
        let offset = FIXED_BYTES + LINK_BYTES * usize::from(fixed.height) + usize::from(fixed.key_len);
        // SAFETY: the node is `node_bytes(height, key_len, value_len)` long, all in one chunk.
        let start = unsafe { self.start.add(offset) };
        let value = NonNull::slice_from_raw_parts(start, fixed.value_len as usize);
        // SAFETY: written before the node was published, never changed, alive as long as the arena.
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

    /// The pointer in place of a large value. Only for nodes with `large` set.
    fn large_value(self) -> *const LargeValue {
        let fixed = self.fixed();
        assert!(fixed.large != 0, "only a large value is a pointer");
        let offset = large_value_offset(usize::from(fixed.height), usize::from(fixed.key_len));
        // SAFETY: the node was allocated with room for the pointer at this offset.
        let place = unsafe { self.start.add(offset) };
        // SAFETY: written there, 8-aligned, before the node was published.
        unsafe { place.cast::<*const LargeValue>().read() }
    }

    /// The next node of at least `level + 1` links.
    ///
    /// # Panics
    /// If this node has no link at `level`.
    pub(super) fn next(self, level: usize) -> Option<Node<'a>> {
        // Acquire: pairs with the Release in `Writer::insert` (rule 3).
        match self.link(level).load(Ordering::Acquire) {
            0 => None,
            at => Some(self.arena.node(at)),
        }
    }

    /// Whether both are the same node.
    pub(super) fn is(self, other: Node<'_>) -> bool {
        self.start == other.start
    }

    fn link(self, level: usize) -> &'a AtomicU32 {
        assert!(level < usize::from(self.fixed().height), "no link at this level");
        // SAFETY: the tower has `height` links behind the fixed part, which is a multiple of their alignment long.
        let link = unsafe { self.start.add(FIXED_BYTES + LINK_BYTES * level) };
        // SAFETY: zeroed when allocated and only ever accessed as `AtomicU32`; alive as long as the arena.
        unsafe { link.cast::<AtomicU32>().as_ref() }
    }
}

/// A place in the list that keeps the arena alive, for cursors.
pub(super) struct Place {
    arena: Arc<Arena>,
    /// 0 for none; otherwise read from a node of this arena.
    at: u32,
}

impl Place {
    /// No node.
    pub(super) fn none(arena: Arc<Arena>) -> Place {
        Place { arena, at: 0 }
    }

    /// The node, if it is on one.
    pub(super) fn node(&self) -> Option<Node<'_>> {
        match self.at {
            0 => None,
            at => Some(self.arena.node(at)),
        }
    }

    /// Move to what `find` finds in the arena.
    ///
    /// # Panics
    /// If `find` gives a node of another arena.
    pub(super) fn set(&mut self, find: impl for<'a> FnOnce(&'a Arena) -> Option<Node<'a>>) {
        self.at = self.offset_of(find(&self.arena));
    }

    /// Move to the next node.
    ///
    /// # Panics
    /// If it is on none.
    pub(super) fn advance(&mut self) {
        let node = self.node().expect("on a node");
        self.at = node.next(0).map_or(0, |next| next.at);
    }

    /// Move to what `find` finds in the arena, given the node it is on.
    ///
    /// # Panics
    /// If it is on none, or `find` gives a node of another arena.
    pub(super) fn retreat(&mut self, find: impl for<'a> FnOnce(&'a Arena, Node<'a>) -> Option<Node<'a>>) {
        let node = self.node().expect("on a node");
        self.at = self.offset_of(find(&self.arena, node));
    }

    fn offset_of(&self, node: Option<Node<'_>>) -> u32 {
        node.map_or(0, |node| {
            assert!(ptr::eq(node.arena, &*self.arena), "a node of another arena");
            node.at
        })
    }
}

/// The right to add nodes.
pub(super) struct Writer<'a> {
    arena: &'a Arena,
    state: MutexGuard<'a, State>,
}

impl<'a> Writer<'a> {
    /// Per level the last node at or before the latest insert: where rising keys go next.
    pub(super) fn hint(&self) -> [Node<'a>; HEIGHT_MAX] {
        self.state.hint.map(|at| self.arena.node(at))
    }

    /// The last node at or before the latest insert.
    pub(super) fn latest(&self) -> Node<'a> {
        self.arena.node(self.state.hint[0])
    }

    /// Add an entry right behind `before`, which names per level the last node that comes before it.
    ///
    /// # Errors
    /// `LimitExceeded` when key or value are too long or offsets are exhausted; nothing was added then.
    pub(super) fn insert(
        &mut self,
        before: &[Node<'a>; HEIGHT_MAX],
        key: &[u8],
        trailer: Trailer,
        value: &[u8],
    ) -> Result<()> {
        limit("key bytes", key.len(), KEY_BYTES_MAX)?;
        limit("value bytes", value.len(), VALUE_BYTES_MAX)?;
        let height = self.draw_height();
        let node = self.write(height, key, trailer, value)?;
        // Bottom up: whoever arrives by a link of level l goes on at l or below, and there the links are set.
        for (level, before) in before.iter().enumerate().take(height) {
            assert!(ptr::eq(before.arena, self.arena), "a node of another arena");
            // Relaxed: read by others only through the link below.
            node.link(level).store(before.link(level).load(Ordering::Relaxed), Ordering::Relaxed);
            // Release: publishes the node's bytes, its chunk and its link of this level (rule 3).
            before.link(level).store(node.at, Ordering::Release);
        }
        for (level, hint) in self.state.hint.iter_mut().enumerate() {
            assert!(ptr::eq(before[level].arena, self.arena), "a node of another arena");
            *hint = if level < height { node.at } else { before[level].at };
        }
        self.arena.height.fetch_max(height, Ordering::Relaxed);
        self.arena.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// One node in four is higher than 1, one in four of these higher than 2, and so on.
    fn draw_height(&mut self) -> usize {
        // xorshift64*: the high bits of the product are good, and taken in pairs.
        let mut x = self.state.random;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state.random = x;
        let bits = x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        1 + ((bits as u32 | 1 << (2 * (HEIGHT_MAX - 1))).trailing_zeros() / 2) as usize
    }

    /// Write a node that is linked nowhere yet.
    fn write(&mut self, height: usize, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<Node<'a>> {
        let large = value.len() > VALUE_IN_ARENA_BYTES_MAX;
        let bytes = match large {
            true => large_value_offset(height, key.len()) + size_of::<*const LargeValue>(),
            false => node_bytes(height, key.len(), value.len()),
        };
        let at = self.allocate(bytes)?;
        let start = self.arena.resolve(at);
        let fixed = Fixed {
            head: key_head(key),
            trailer: trailer.raw(),
            value_len: value.len() as u32,
            key_len: key.len() as u16,
            height: height as u8,
            large: u8::from(large),
        };
        // SAFETY: `allocate` just gave these bytes, 8-aligned and in one chunk, to this call alone (rule 2).
        unsafe { start.cast::<Fixed>().write(fixed) };
        let key_offset = FIXED_BYTES + LINK_BYTES * height;
        // SAFETY: within the bytes just allocated.
        let key_start = unsafe { start.add(key_offset) };
        // SAFETY: `bytes` has room for the key there, and fresh memory does not overlap the caller's.
        unsafe { ptr::copy_nonoverlapping(key.as_ptr(), key_start.as_ptr(), key.len()) };
        if large {
            self.arena.bytes.fetch_add(value.len(), Ordering::Relaxed);
            let value = Arc::into_raw(Arc::new(LargeValue(Zeroizing::new(value.into()))));
            // SAFETY: within the bytes just allocated.
            let place = unsafe { start.add(large_value_offset(height, key.len())) };
            // SAFETY: `bytes` has room for the pointer there; both summands are multiples of 8.
            unsafe { place.cast::<*const LargeValue>().write(value) };
            self.state.large.push(at);
        } else {
            // SAFETY: within the bytes just allocated.
            let place = unsafe { key_start.add(key.len()) };
            // SAFETY: `bytes` has room for the value there, and fresh memory does not overlap the caller's.
            unsafe { ptr::copy_nonoverlapping(value.as_ptr(), place.as_ptr(), value.len()) };
        }
        Ok(self.arena.node(at))
    }

    /// Room for a node, 8-aligned and within one chunk.
    fn allocate(&mut self, bytes: usize) -> Result<u32> {
        let bytes = bytes.next_multiple_of(ALIGN) as u64;
        let mut at = self.state.next;
        while at + bytes > chunk_end(at) {
            at = chunk_end(at);
        }
        if at + bytes > self.state.end {
            return Err(Error::LimitExceeded {
                what: "bytes of a memtable",
                limit: self.state.end,
                actual: at + bytes,
            });
        }
        let (chunk, _) = chunk_of(at);
        if self.arena.slot(chunk).load(Ordering::Relaxed).is_null() {
            self.arena.add_chunk(chunk);
        }
        self.state.next = at + bytes;
        // `at + bytes` is at most 2^32, and a node is not empty.
        Ok(at as u32)
    }
}

/// The first eight bytes of a key as a number that compares as they do; a shorter key is padded with zeros.
pub(super) fn key_head(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => key.iter().enumerate().fold(0, |head, (i, byte)| head | u64::from(*byte) << (56 - 8 * i)),
    }
}

/// Bytes of a node whose value lies in it.
fn node_bytes(height: usize, key_len: usize, value_len: usize) -> usize {
    FIXED_BYTES + LINK_BYTES * height + key_len + value_len
}

/// Where in a node the pointer of a large value lies.
fn large_value_offset(height: usize, key_len: usize) -> usize {
    node_bytes(height, key_len, 0).next_multiple_of(ALIGN)
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
    Layout::from_size_align(bytes, ALIGN).expect("2 KiB to 1 MiB, aligned to 8")
}

fn limit(what: &'static str, actual: usize, limit: usize) -> Result<()> {
    if actual <= limit {
        return Ok(());
    }
    Err(Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 })
}
