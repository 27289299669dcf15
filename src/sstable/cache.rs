//! Opened blocks, kept for the next reader that wants them.
//!
//! ```text
//! TableReader ── index leaf ── Slots   one per data block of the leaf: the block, if it is kept
//!                                ▲  ╲
//!                    Ticket ─────╯   ╲ OpenBlock ── Shard   counts the block's bytes until its memory is freed
//!                       ▲
//! BlockCache ── Shard ── young, old   in which order blocks are let go
//! ```
//! A block lies in a slot beside the entry of the index that leads to it. So finding a kept block is one step once the index has been searched, without a
//! hash, and without a lock or a count that blocks share; no name is needed either, by which a block of one table could be taken for another's. Forgetting
//! a table's blocks is emptying its own slots, however large the cache is. What orders the blocks is a row of tickets, each naming a
//! slot; a ticket whose slot was emptied meanwhile is stale, and is thrown away when its turn comes or when most are.
//!
//! Each slot has a lock of its own that readers share for the length of one search in memory. Nobody waits for it but who purges: a block that is being read
//! while it should make room is spared, and a slot that is being looked at is not filled.
//!
//! # What goes first
//! New blocks are *young*. A young one that is used twice more becomes *old* when its turn comes; one that is not is let go, and if it is read again
//! soon (before as many others have gone as there are old ones), it becomes old at once. An old one whose turn comes goes
//! to the end of the row as often as it was used since, up to three times. The young have a tenth of the room. So a row of blocks that are read once passes
//! through that tenth and leaves the rest alone.
//!
//! # Memory
//! A block counts from when it is made for a reader until its memory is freed, so that a block which a large value or a cursor holds still counts when its
//! slot is empty: what is held is room that others do not get. Making room ends when nothing is left to let go.
//!
//! Two threads that miss the same block both read it, and one of the two copies is dropped. The other way, one waits for
//! the other's read, would be a place where the engine blocks outside its scheduler.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::crypto::Wiped;
use crate::format::block::Block;
use crate::metrics::Meters;
use crate::sync::CachePadded;
use crate::value::Backing;

/// What one entry costs beyond its block: its slot, its ticket, counts.
const ENTRY_OVERHEAD_BYTES: usize = 64;
/// A shard has at least this much room, so that the largest blocks fit many times.
const SHARD_BYTES_MIN: usize = 64 << 20;
const SHARDS_MAX: usize = 16;
/// Uses of a block that are remembered.
const HEAT_MAX: u8 = 3;
/// Old blocks that are spared at most while room is made for one, so that nobody waits while everything is spared.
const SPARED_MAX: usize = 64;
/// Stale tickets that are not worth a look.
const STALE_MIN: usize = 1024;
/// Buffers for frames that are kept, and the size up to which they are.
const BUFFERS_KEPT: usize = 8;
const SCRATCH_BYTES_MAX: usize = 64 << 10;
/// Payloads' buffers have a multiple of this, so that those of blocks of nearly one size can take each other's place.
const ROOM_STEP_BYTES: usize = 128;

/// An opened block in memory, counted until it is freed.
pub(crate) struct OpenBlock {
    block: Block,
    /// What it counts for, and where; nowhere if no cache knows of it.
    weight_bytes: usize,
    home: Option<Arc<Shard>>,
}

impl OpenBlock {
    /// A block that counts nowhere: a compaction's, gone as soon as it is merged.
    pub(super) fn uncounted(block: Block) -> OpenBlock {
        OpenBlock { block, weight_bytes: 0, home: None }
    }

    /// The buffer alone, wiped.
    fn into_buffer(mut self) -> Wiped {
        self.block.take_buffer()
    }
}

impl Deref for OpenBlock {
    type Target = Block;

    #[inline]
    fn deref(&self) -> &Block {
        &self.block
    }
}

impl Backing for OpenBlock {
    fn bytes(&self) -> &[u8] {
        self.block.bytes()
    }
}

impl Drop for OpenBlock {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.used_bytes.fetch_sub(self.weight_bytes, Ordering::Relaxed);
        }
    }
}

/// Whether a block that was just opened is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// At the cost of others.
    Always,
    /// If there is room: a scan does not push out what point reads live on.
    IfFree,
}

/// Room for one block, and what is known about its use: a search touches one line of memory for all of it.
#[derive(Default)]
struct Slot {
    block: RwLock<Option<Arc<OpenBlock>>>,
    /// When the block was last let go while it was young, in departures of its shard; 0 for never.
    departed: AtomicU32,
    /// How often the block was used since its turn last came, roughly.
    heat: AtomicU8,
}

impl Slot {
    /// Note a use.
    #[inline]
    fn touch(&self) {
        // Two uses at the same moment may count as one, and in full heat nothing is written at all.
        let heat = self.heat.load(Ordering::Relaxed);
        if heat < HEAT_MAX {
            self.heat.store(heat + 1, Ordering::Relaxed);
        }
    }
}

/// The kept blocks behind one leaf of an index.
pub(crate) struct Slots {
    shards: Arc<[Arc<Shard>]>,
    slots: Box<[Slot]>,
    /// Spreads the leaves over the shards.
    spread: usize,
}

impl Slots {
    pub(super) fn new(cache: &BlockCache, count: usize) -> Arc<Slots> {
        Arc::new(Slots {
            shards: cache.shards.clone(),
            slots: (0..count).map(|_| Slot::default()).collect(),
            spread: cache.leaves.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The block, if it is kept, for one search in memory: nothing is read from a file while this is held.
    #[inline]
    pub(super) fn look(&self, at: usize) -> RwLockReadGuard<'_, Option<Arc<OpenBlock>>> {
        let slot = &self.slots[at];
        let block = slot.block.read();
        if block.is_some() {
            slot.touch();
        }
        block
    }

    /// The block, if it is kept, for as long as the caller wants it.
    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<Arc<OpenBlock>> {
        self.look(at).clone()
    }

    /// Count a block that was just opened, and keep it if it is worth it.
    pub(super) fn keep(self: &Arc<Slots>, at: usize, block: Block, how: Keep) -> Arc<OpenBlock> {
        let shard = self.shard(at);
        let weight_bytes = block.memory_bytes() + ENTRY_OVERHEAD_BYTES;
        let block = Arc::new(OpenBlock { block, weight_bytes, home: Some(shard.clone()) });
        shard.used_bytes.fetch_add(weight_bytes, Ordering::Relaxed);
        shard.keep(self, at, &block, how);
        block
    }

    /// Forget all blocks, so that their memory is wiped once the last value and cursor let go of them.
    pub(super) fn purge(&self) {
        for (at, slot) in self.slots.iter().enumerate() {
            if let Some(block) = slot.block.write().take() {
                let shard = self.shard(at);
                shard.stale.fetch_add(1, Ordering::Relaxed);
                shard.kept_bytes.fetch_sub(block.weight_bytes, Ordering::Relaxed);
            }
        }
    }

    /// The turn of this block has come: take it out of its slot, unless it is to be spared.
    fn take_if_cold(&self, at: usize, is_young: bool, may_spare: bool) -> Turn {
        let slot = &self.slots[at];
        let Some(mut block) = slot.block.try_write() else { return Turn::Spared };
        let heat = slot.heat.load(Ordering::Relaxed);
        slot.heat.store(if is_young { 0 } else { heat.saturating_sub(1) }, Ordering::Relaxed);
        if block.is_some() && may_spare && heat > u8::from(is_young) {
            return Turn::Spared;
        }
        block.take().map_or(Turn::Gone, Turn::Taken)
    }

    fn shard(&self, at: usize) -> &Arc<Shard> {
        &self.shards[self.spread.wrapping_add(at) & (self.shards.len() - 1)]
    }
}

/// What became of a block whose turn came.
enum Turn {
    Spared,
    Taken(Arc<OpenBlock>),
    /// Its slot was empty already.
    Gone,
}

/// Opened blocks of all tables, up to a number of bytes in all.
pub(crate) struct BlockCache {
    /// A power of two of them, so that threads which miss seldom meet.
    shards: Arc<[Arc<Shard>]>,
    leaves: AtomicUsize,
    /// Wiped buffers for frames, each for one read at a time.
    scratch: Mutex<Vec<Wiped>>,
    /// Wiped buffers of blocks that were let go.
    rooms: Arc<Mutex<Vec<Wiped>>>,
    meters: Arc<Meters>,
}

/// A part of the room.
struct Shard {
    capacity_bytes: usize,
    /// Of all blocks that count here and were not freed yet.
    used_bytes: CachePadded<AtomicUsize>,
    /// Of those of them that are in a slot.
    kept_bytes: AtomicUsize,
    /// Tickets whose slots somebody emptied.
    stale: AtomicUsize,
    queues: Mutex<Queues>,
    /// Where the buffers go of blocks that are let go.
    rooms: Arc<Mutex<Vec<Wiped>>>,
}

/// Names a slot that had a block when it was made out.
struct Ticket {
    slots: Weak<Slots>,
    at: u32,
    weight_bytes: u32,
}

#[derive(Default)]
struct Queues {
    young: VecDeque<Ticket>,
    old: VecDeque<Ticket>,
    /// Of the young ones' tickets, stale ones too.
    young_bytes: usize,
    /// How many young blocks were let go.
    departures: u32,
}

impl BlockCache {
    /// A cache of at most this many bytes; of 0 bytes, one that keeps nothing.
    pub(crate) fn new(capacity_bytes: usize) -> BlockCache {
        let shards = (capacity_bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        // Rounded down to a power of two: a few larger shards rather than many small ones.
        let shards = 1_usize << shards.ilog2();
        let rooms = Arc::new(Mutex::new(Vec::with_capacity(BUFFERS_KEPT)));
        let shard = |_| {
            Arc::new(Shard {
                capacity_bytes: capacity_bytes / shards,
                used_bytes: CachePadded::default(),
                kept_bytes: AtomicUsize::new(0),
                stale: AtomicUsize::new(0),
                queues: Mutex::default(),
                rooms: rooms.clone(),
            })
        };
        let shards = (0..shards).map(shard).collect();
        BlockCache {
            shards,
            leaves: AtomicUsize::new(0),
            scratch: Mutex::new(Vec::with_capacity(BUFFERS_KEPT)),
            rooms,
            meters: Arc::new(Meters::new()),
        }
    }

    /// As it is, but what it is asked for, and what its readers open, is counted here.
    pub(crate) fn counting(self, meters: Arc<Meters>) -> BlockCache {
        BlockCache { meters, ..self }
    }

    /// Where that is counted.
    pub(crate) fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }

    /// Bytes of all blocks that readers have opened and that are still in memory, kept or held by somebody.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.used_bytes.load(Ordering::Relaxed) as u64).sum()
    }

    /// Of those, the ones that are kept for the next reader.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.kept_bytes.load(Ordering::Relaxed) as u64).sum()
    }

    /// Bytes that it may hold.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.capacity_bytes as u64).sum()
    }

    /// A buffer that shows `len` bytes, for the frame of one read.
    pub(super) fn take_scratch(&self, len: usize) -> Wiped {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        scratch.show(len);
        scratch
    }

    /// Take a buffer back, of which at most the first `len` bytes were used. They are wiped.
    pub(super) fn give_back(&self, mut scratch: Wiped, len: usize) {
        if scratch.capacity_bytes() <= SCRATCH_BYTES_MAX {
            scratch.reset(len);
            keep_buffer(&self.scratch, scratch);
        }
    }

    /// A buffer that shows `len` bytes, for the payload of a frame: that of a block which was let go, if it is as large.
    pub(super) fn room(&self, len: usize) -> Wiped {
        let capacity = len.next_multiple_of(ROOM_STEP_BYTES);
        let old = self.rooms.lock().pop_if(|old| old.capacity_bytes() == capacity);
        let mut room = old.unwrap_or_else(|| Wiped::with_capacity(capacity));
        room.show(len);
        room
    }
}

fn keep_buffer(buffers: &Mutex<Vec<Wiped>>, buffer: Wiped) {
    let mut buffers = buffers.lock();
    if buffers.len() < BUFFERS_KEPT {
        buffers.push(buffer);
    }
}

impl Shard {
    fn keep(&self, slots: &Arc<Slots>, at: usize, block: &Arc<OpenBlock>, how: Keep) {
        let weight_bytes = block.weight_bytes;
        let (Ok(number), Ok(ticket_bytes)) = (u32::try_from(at), u32::try_from(weight_bytes)) else { return };
        if weight_bytes > self.capacity_bytes {
            return;
        }
        // What makes room is freed, which means wiped, outside the lock if it is one block, as it nearly always is.
        let mut freed: Option<Arc<OpenBlock>> = None;
        let mut queues = self.queues.lock();
        while self.used_bytes.load(Ordering::Relaxed) - freed_soon(&freed) > self.capacity_bytes {
            if how == Keep::IfFree {
                return;
            }
            drop(freed.take());
            freed = queues.let_go(self);
            if freed.is_none() {
                // All that is left is held by somebody.
                return;
            }
        }
        let slot = &slots.slots[at];
        match slot.block.try_write() {
            Some(mut empty) if empty.is_none() => {
                // Before anybody can empty the slot again and take this away.
                self.kept_bytes.fetch_add(weight_bytes, Ordering::Relaxed);
                *empty = Some(block.clone());
            }
            _ => return,
        }
        let ticket = Ticket { slots: Arc::downgrade(slots), at: number, weight_bytes: ticket_bytes };
        let stamp = slot.departed.load(Ordering::Relaxed);
        if stamp != 0 && queues.departures.wrapping_sub(stamp) as usize <= queues.old.len() {
            queues.old.push_back(ticket);
        } else {
            queues.young_bytes += weight_bytes;
            queues.young.push_back(ticket);
        }
        queues.throw_stale_away(self);
        drop(queues);
        if let Some(freed) = freed.and_then(Arc::into_inner) {
            keep_buffer(&self.rooms, freed.into_buffer());
        }
    }

    /// A stale ticket was thrown away. A slot that was filled again has two tickets, of which neither is known as stale.
    fn found_stale(&self) {
        let _ = self.stale.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |stale| stale.checked_sub(1));
    }
}

/// Bytes that are free once this is dropped, unless somebody else holds it.
fn freed_soon(block: &Option<Arc<OpenBlock>>) -> usize {
    block.as_ref().filter(|block| Arc::strong_count(block) == 1).map_or(0, |block| block.weight_bytes)
}

impl Queues {
    /// Take the block whose turn it is out of its slot; `None` if there is none left.
    fn let_go(&mut self, shard: &Shard) -> Option<Arc<OpenBlock>> {
        let mut spared = 0;
        loop {
            let is_young = self.young_bytes > shard.capacity_bytes / 10 || self.old.is_empty();
            let ticket = if is_young { self.young.pop_front()? } else { self.old.pop_front()? };
            if is_young {
                self.young_bytes -= ticket.weight_bytes as usize;
            }
            let (slots, at) = (ticket.slots.upgrade(), ticket.at as usize);
            let turn = slots.as_ref().map_or(Turn::Gone, |slots| slots.take_if_cold(at, is_young, spared < SPARED_MAX));
            match turn {
                Turn::Taken(block) => {
                    shard.kept_bytes.fetch_sub(block.weight_bytes, Ordering::Relaxed);
                    if is_young && let Some(slots) = &slots {
                        self.departures = self.departures.wrapping_add(1).max(1);
                        slots.slots[at].departed.store(self.departures, Ordering::Relaxed);
                    }
                    return Some(block);
                }
                Turn::Spared => {
                    self.old.push_back(ticket);
                    spared += 1;
                    if spared > 2 * SPARED_MAX {
                        // All of these are being read at this moment.
                        return None;
                    }
                }
                Turn::Gone => shard.found_stale(),
            }
        }
    }

    /// Once most tickets are stale, throw those away: they take room as long as nothing has to make any.
    fn throw_stale_away(&mut self, shard: &Shard) {
        let stale = shard.stale.load(Ordering::Relaxed);
        if stale < STALE_MIN || stale * 2 < self.young.len() + self.old.len() {
            return;
        }
        let is_there = |ticket: &Ticket| {
            ticket.slots.upgrade().is_some_and(|slots| slots.slots[ticket.at as usize].block.read().is_some())
        };
        self.young.retain(is_there);
        self.old.retain(is_there);
        self.young_bytes = self.young.iter().map(|ticket| ticket.weight_bytes as usize).sum();
        shard.stale.fetch_sub(stale, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockCache({} of {} bytes)", self.used_bytes(), self.capacity_bytes())
    }
}
