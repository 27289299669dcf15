//! Opened blocks, kept for the next reader that wants them.
//!
//! A block is named by its reader's number, which no other reader of this process ever had, and its ordinal in the file: never by a
//! path or a file number, which a re-created table could share. So a reader that is opened again starts with nothing cached, and what
//! an earlier one left behind can never be taken for its own; to free that memory (and wipe it) a reader purges by
//! its own ordinals, without a walk over everybody's.
//!
//! Two threads that miss the same block both read it, and the second copy replaces the first. The other way, one waits for
//! the other's read, would be a place where the engine blocks outside its scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::format::block::Block;
use crate::metrics::Meters;

/// What one entry costs beyond its block: key, links, counts.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// A reader's number and a block's ordinal.
pub(crate) type BlockId = (u64, u64);

/// Opened blocks of all tables, up to a number of bytes in all.
pub(crate) struct BlockCache {
    blocks: Cache<BlockId, Arc<Block>, ByBytes>,
    next_reader: AtomicU64,
    meters: Arc<Meters>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<BlockId, Arc<Block>> for ByBytes {
    fn weight(&self, _: &BlockId, block: &Arc<Block>) -> u64 {
        block.memory_bytes() as u64 + ENTRY_OVERHEAD_BYTES
    }
}

impl BlockCache {
    /// A cache of at most this many bytes; of 0 bytes, one that keeps nothing.
    pub(crate) fn new(capacity_bytes: usize) -> BlockCache {
        // Blocks of 4 KiB are the usual ones; the number only sizes tables that grow by themselves.
        let blocks_estimated = (capacity_bytes / 4096).max(16);
        BlockCache {
            blocks: Cache::with_weighter(blocks_estimated, capacity_bytes as u64, ByBytes),
            next_reader: AtomicU64::new(1),
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

    /// A number for a reader, never given out before.
    pub(crate) fn new_reader(&self) -> u64 {
        self.next_reader.fetch_add(1, Ordering::Relaxed)
    }

    /// The block, if it is cached.
    #[inline]
    pub(crate) fn get(&self, id: BlockId) -> Option<Arc<Block>> {
        self.blocks.get(&id)
    }

    /// Keep the block, at the cost of others if there is no room.
    pub(crate) fn insert(&self, id: BlockId, block: &Arc<Block>) {
        self.blocks.insert(id, block.clone());
    }

    /// Keep the block if there is room, so that a scan does not push out what point reads live on.
    pub(crate) fn insert_if_free(&self, id: BlockId, block: &Arc<Block>) {
        let weight = ByBytes.weight(&id, block);
        if self.blocks.weight().saturating_add(weight) <= self.blocks.capacity() {
            self.blocks.insert(id, block.clone());
        }
    }

    /// Forget the block.
    pub(crate) fn remove(&self, id: BlockId) {
        self.blocks.remove(&id);
    }

    /// Bytes of the cached blocks themselves.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.blocks.weight().saturating_sub(self.blocks.len() as u64 * ENTRY_OVERHEAD_BYTES)
    }

    /// Bytes that it may hold.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.blocks.capacity()
    }

    /// Bytes that the cached blocks hold, with what each costs beyond its block.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.blocks.weight()
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockCache({} of {} bytes)", self.blocks.weight(), self.blocks.capacity())
    }
}
