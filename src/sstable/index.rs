//! From a key to the one block that can hold it, and to the slot in which that block lies while it is kept.
//!
//! ```text
//! tops      none if there is one leaf only; otherwise their values are handles of leaves
//!   │
//! leaves    their values are handles of data blocks; read when they are first needed
//!   │
//! slots     one per data block, beside its entry in the leaf (cache.rs)
//! ```
//! All of it is pinned: tops from the opening on, a leaf from its first use on, until the table is closed. Each has its keys' first eight bytes copied out, so
//! that a search of thousands of separators stays in a few cache lines. A leaf is a row of data blocks, so that a place in the index is two
//! numbers, and the blocks of a table are one row.

use std::sync::{Arc, OnceLock};

use crate::crypto::Wiped;
use crate::error::Result;
use crate::format::block::Block;
use crate::format::frame::FrameKind;
use crate::format::table::{Footer, Handle};
use crate::sstable::cache::{BlockCache, Slots};
use crate::sstable::{Source, TableReader};
use crate::types::Trailer;

/// The index of a table.
pub(super) struct Index {
    tops: Box<[Top]>,
    leaves: Box<[OnceLock<Leaf>]>,
}

/// A block of the top index.
struct Top {
    block: Block,
    /// Which leaf its first entry leads to.
    first_leaf: usize,
}

/// A block of the index that leads to data blocks, and those of them that are kept.
pub(super) struct Leaf {
    block: Block,
    pub(super) slots: Arc<Slots>,
}

/// A data block: which leaf leads to it, and which of the leaf's entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct IndexPlace {
    pub(super) leaf: usize,
    pub(super) at: usize,
}

impl IndexPlace {
    /// Whether this is the place behind `other`, given that both are places.
    pub(super) fn is_next_of(self, other: IndexPlace) -> bool {
        (self.leaf, self.at) == (other.leaf, other.at + 1) || (self.leaf, self.at) == (other.leaf + 1, 0)
    }
}

impl Leaf {
    fn new(block: Block, cache: &BlockCache) -> Leaf {
        let slots = Slots::new(cache, block.len());
        Leaf { block: block.with_heads(), slots }
    }

    /// The handle of the `at`-th data block; an error if there is none.
    pub(super) fn handle(&self, reader: &TableReader, at: usize) -> Result<Handle> {
        handle(&reader.source, &reader.footer, &self.block, at)
    }
}

impl Index {
    pub(super) fn load(source: &Source, footer: &Footer, cache: &BlockCache) -> Result<Index> {
        let open = |kind, section| -> Result<Vec<Block>> {
            let frames = source.section_frames(kind, section)?.into_iter();
            frames.map(|(handle, frame)| source.open_block(kind, &handle, frame, cache)).collect()
        };
        if !footer.index_top.is_there() {
            let leaves = open(FrameKind::Index, &footer.index)?.into_iter();
            let leaves = leaves.map(|block| OnceLock::from(Leaf::new(block, cache))).collect();
            return Ok(Index { tops: Box::default(), leaves });
        }
        let mut leaves = 0;
        let mut tops = Vec::new();
        for block in open(FrameKind::IndexTop, &footer.index_top)? {
            let first_leaf = leaves;
            leaves += block.len();
            tops.push(Top { block: block.with_heads(), first_leaf });
        }
        if leaves as u64 != footer.index.frames {
            let place = source.at(footer.index_top.offset_bytes);
            return Err(place.tampered("the top index names another number of blocks than there are"));
        }
        Ok(Index { tops: tops.into(), leaves: (0..leaves).map(|_| OnceLock::new()).collect() })
    }

    /// The place of the data block in which the first entry at or after (`key`, `trailer`) lies, if `key` is not behind the last one. The
    /// entry can be the next block's first one, but then it is of another key.
    #[inline]
    pub(super) fn find(
        &self,
        reader: &TableReader,
        key: &[u8],
        trailer: Trailer,
    ) -> Result<Option<(&Leaf, IndexPlace)>> {
        let Some(number) = self.find_leaf(key, trailer) else { return Ok(None) };
        let Some(leaf) = self.leaf(reader, number)? else { return Ok(None) };
        let at = leaf.block.lower_bound(key, trailer);
        if at < leaf.block.len() {
            return Ok(Some((leaf, IndexPlace { leaf: number, at })));
        }
        // Only an index that contradicts itself gets here; the next leaf's first block is as near as can be.
        let place = IndexPlace { leaf: number + 1, at: 0 };
        Ok(self.leaf(reader, place.leaf)?.map(|leaf| (leaf, place)))
    }

    #[inline]
    fn find_leaf(&self, key: &[u8], trailer: Trailer) -> Option<usize> {
        if self.tops.is_empty() {
            return Some(0);
        }
        self.tops.iter().find_map(|top| {
            let at = top.block.lower_bound(key, trailer);
            (at < top.block.len()).then_some(top.first_leaf + at)
        })
    }

    /// The leaf of this number, which is read if it was not yet; `None` behind the last.
    #[inline]
    pub(super) fn leaf(&self, reader: &TableReader, number: usize) -> Result<Option<&Leaf>> {
        let Some(cell) = self.leaves.get(number) else { return Ok(None) };
        match cell.get() {
            Some(leaf) => Ok(Some(leaf)),
            None => self.read_leaf(reader, number, cell).map(Some),
        }
    }

    #[cold]
    fn read_leaf<'a>(&self, reader: &TableReader, number: usize, cell: &'a OnceLock<Leaf>) -> Result<&'a Leaf> {
        let top = &self.tops[self.tops.partition_point(|top| top.first_leaf <= number) - 1];
        let handle = handle(&reader.source, &reader.footer, &top.block, number - top.first_leaf)?;
        let block = reader.load_block(FrameKind::Index, &handle)?;
        // Somebody else may have read it at the same time; one of the two is dropped.
        Ok(cell.get_or_init(|| Leaf::new(block, &reader.cache)))
    }

    /// The leaf of a place, if there is such a place.
    pub(super) fn leaf_at(&self, reader: &TableReader, place: IndexPlace) -> Result<Option<&Leaf>> {
        Ok(self.leaf(reader, place.leaf)?.filter(|leaf| place.at < leaf.block.len()))
    }

    /// The last data block.
    pub(super) fn last(&self, reader: &TableReader) -> Result<Option<IndexPlace>> {
        self.last_of(reader, self.leaves.len().checked_sub(1))
    }

    /// The data block after `place`.
    #[inline]
    pub(super) fn next(&self, reader: &TableReader, place: IndexPlace) -> Result<Option<IndexPlace>> {
        let here = IndexPlace { at: place.at + 1, ..place };
        if self.leaf_at(reader, here)?.is_some() {
            return Ok(Some(here));
        }
        let next = IndexPlace { leaf: place.leaf + 1, at: 0 };
        Ok(self.leaf(reader, next.leaf)?.map(|_| next))
    }

    /// The data block before `place`.
    pub(super) fn prev(&self, reader: &TableReader, place: IndexPlace) -> Result<Option<IndexPlace>> {
        match place.at.checked_sub(1) {
            Some(at) => Ok(Some(IndexPlace { at, ..place })),
            None => self.last_of(reader, place.leaf.checked_sub(1)),
        }
    }

    fn last_of(&self, reader: &TableReader, leaf: Option<usize>) -> Result<Option<IndexPlace>> {
        let Some(number) = leaf else { return Ok(None) };
        Ok(self.leaf(reader, number)?.map(|leaf| IndexPlace { leaf: number, at: leaf.block.len() - 1 }))
    }

    /// The separator behind the block at `place`.
    pub(super) fn separator(&self, place: IndexPlace) -> Option<(Wiped, Trailer)> {
        let block = &self.leaves.get(place.leaf)?.get()?.block;
        Some((joined(block.key_prefix(), block.suffix(place.at)), block.trailer(place.at)))
    }

    /// The blocks of the top index.
    pub(super) fn tops(&self) -> impl Iterator<Item = &Block> {
        self.tops.iter().map(|top| &top.block)
    }

    /// The kept blocks of all leaves that were read.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Arc<Slots>> {
        self.leaves.iter().filter_map(|leaf| leaf.get()).map(|leaf| &leaf.slots)
    }
}

#[inline]
fn handle(source: &Source, footer: &Footer, block: &Block, at: usize) -> Result<Handle> {
    Handle::decode(block.value(at))
        .map_err(|_| source.at(footer.index.offset_bytes).tampered("an index entry is not a handle"))
}

/// A whole key.
pub(super) fn joined(prefix: &[u8], suffix: &[u8]) -> Wiped {
    let mut key = Wiped::with_capacity(prefix.len() + suffix.len());
    key.extend_from_slice(prefix);
    key.extend_from_slice(suffix);
    key
}
