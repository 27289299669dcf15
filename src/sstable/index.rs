//! From a key to the handle of the one block that can hold it.
//!
//! ```text
//! one index block      roots = [that block], its values are handles of data blocks
//! several              roots = top blocks, their values are handles of index blocks, which come through the cache
//! ```
//! Roots are pinned and have their keys' first eight bytes copied out, so that a search of thousands of separators stays in
//! a few cache lines. Usually there is one root; several only where separators are huge.

use std::sync::Arc;

use crate::crypto::Wiped;
use crate::error::Result;
use crate::format::block::Block;
use crate::format::frame::FrameKind;
use crate::format::table::{Footer, Handle};
use crate::sstable::{Source, TableReader};
use crate::types::Trailer;

/// The pinned part of a table's index.
pub(super) struct Index {
    roots: Box<[Block]>,
    /// Whether roots lead to index blocks, and those to data blocks.
    partitioned: bool,
}

/// A place in the index: one data block. Moved by [`Index`], which knows what lies where.
#[derive(Clone, Default)]
pub(super) struct IndexPlace {
    root: usize,
    in_root: usize,
    partition: Option<Arc<Block>>,
    in_partition: usize,
}

impl Index {
    pub(super) fn load(source: &Source, footer: &Footer) -> Result<Index> {
        let partitioned = footer.index_top.is_there();
        let (kind, section) = match partitioned {
            true => (FrameKind::IndexTop, &footer.index_top),
            false => (FrameKind::Index, &footer.index),
        };
        let frames = source.section_frames(kind, section)?;
        let roots = frames
            .into_iter()
            .map(|(handle, frame)| Ok(source.open_block(kind, &handle, frame)?.with_heads()))
            .collect::<Result<Box<[Block]>>>()?;
        Ok(Index { roots, partitioned })
    }

    /// The data block in which the first entry at or after (`key`, `trailer`) lies, if `key` is not behind the last one. The
    /// entry can be the next block's first one, but then it is of another key.
    #[inline]
    pub(super) fn find(&self, reader: &TableReader, key: &[u8], trailer: Trailer) -> Result<Option<Handle>> {
        let Some((root, i)) = self.find_root(key, trailer) else { return Ok(None) };
        let handle = handle(reader, root, i)?;
        if !self.partitioned {
            return Ok(Some(handle));
        }
        let partition = reader.cached_block(FrameKind::Index, &handle)?;
        let i = partition.lower_bound(key, trailer);
        if i == partition.len() {
            return Ok(None);
        }
        self::handle(reader, &partition, i).map(Some)
    }

    fn find_root(&self, key: &[u8], trailer: Trailer) -> Option<(&Block, usize)> {
        self.roots.iter().map(|root| (root, root.lower_bound(key, trailer))).find(|(root, i)| *i < root.len())
    }

    /// As [`Index::find`], leaving `place` there.
    pub(super) fn seek(
        &self,
        reader: &TableReader,
        place: &mut IndexPlace,
        key: &[u8],
        trailer: Trailer,
    ) -> Result<Option<Handle>> {
        for (root, block) in self.roots.iter().enumerate() {
            let in_root = block.lower_bound(key, trailer);
            if in_root == block.len() {
                continue;
            }
            self.enter(reader, place, root, in_root)?;
            if let Some(partition) = &place.partition {
                place.in_partition = partition.lower_bound(key, trailer);
                if place.in_partition == partition.len() {
                    // Only an index that contradicts itself gets here; the next partition's first block is as near as can be.
                    return self.next(reader, place);
                }
            }
            return self.handle_at(reader, place).map(Some);
        }
        Ok(None)
    }

    /// The first data block.
    pub(super) fn first(&self, reader: &TableReader, place: &mut IndexPlace) -> Result<Option<Handle>> {
        self.enter(reader, place, 0, 0)?;
        self.handle_at(reader, place).map(Some)
    }

    /// The last data block.
    pub(super) fn last(&self, reader: &TableReader, place: &mut IndexPlace) -> Result<Option<Handle>> {
        let Some(root) = self.roots.len().checked_sub(1) else { return Ok(None) };
        self.enter_last(reader, place, root)
    }

    /// The data block after `place`.
    pub(super) fn next(&self, reader: &TableReader, place: &mut IndexPlace) -> Result<Option<Handle>> {
        if let Some(partition) = &place.partition
            && place.in_partition + 1 < partition.len()
        {
            place.in_partition += 1;
            return self.handle_at(reader, place).map(Some);
        }
        let (mut root, mut in_root) = (place.root, place.in_root + 1);
        if self.roots.get(root).is_none_or(|block| in_root >= block.len()) {
            (root, in_root) = (root + 1, 0);
        }
        if root >= self.roots.len() {
            return Ok(None);
        }
        self.enter(reader, place, root, in_root)?;
        self.handle_at(reader, place).map(Some)
    }

    /// The data block before `place`.
    pub(super) fn prev(&self, reader: &TableReader, place: &mut IndexPlace) -> Result<Option<Handle>> {
        if place.partition.is_some() && place.in_partition > 0 {
            place.in_partition -= 1;
            return self.handle_at(reader, place).map(Some);
        }
        if place.in_root > 0 {
            let (root, in_root) = (place.root, place.in_root - 1);
            self.enter(reader, place, root, in_root)?;
            place.in_partition = place.partition.as_ref().map_or(0, |partition| partition.len() - 1);
            return self.handle_at(reader, place).map(Some);
        }
        match place.root.checked_sub(1) {
            Some(root) => self.enter_last(reader, place, root),
            None => Ok(None),
        }
    }

    fn enter_last(&self, reader: &TableReader, place: &mut IndexPlace, root: usize) -> Result<Option<Handle>> {
        let Some(block) = self.roots.get(root) else { return Ok(None) };
        self.enter(reader, place, root, block.len() - 1)?;
        place.in_partition = place.partition.as_ref().map_or(0, |partition| partition.len() - 1);
        self.handle_at(reader, place).map(Some)
    }

    /// Go to the first data block below one entry of a root.
    fn enter(&self, reader: &TableReader, place: &mut IndexPlace, root: usize, in_root: usize) -> Result<()> {
        let same = place.partition.is_some() && (place.root, place.in_root) == (root, in_root);
        if self.partitioned && !same {
            // Not there until the partition is.
            place.partition = None;
            if let Some(block) = self.roots.get(root) {
                let handle = handle(reader, block, in_root)?;
                place.partition = Some(reader.cached_block(FrameKind::Index, &handle)?);
            }
        }
        (place.root, place.in_root, place.in_partition) = (root, in_root, 0);
        Ok(())
    }

    fn handle_at(&self, reader: &TableReader, place: &IndexPlace) -> Result<Handle> {
        match (&place.partition, self.roots.get(place.root)) {
            (Some(partition), _) => handle(reader, partition, place.in_partition),
            (None, Some(root)) => handle(reader, root, place.in_root),
            (None, None) => Err(reader.source.at(reader.footer.index.offset_bytes).tampered("an index without blocks")),
        }
    }

    /// The separator behind the block at `place`.
    pub(super) fn separator(&self, place: &IndexPlace) -> Option<(Wiped, Trailer)> {
        let (block, i) = match &place.partition {
            Some(partition) => (&**partition, place.in_partition),
            None => (self.roots.get(place.root)?, place.in_root),
        };
        Some((joined(block.key_prefix(), block.suffix(i)), block.trailer(i)))
    }

    /// The pinned blocks.
    pub(super) fn roots(&self) -> &[Block] {
        &self.roots
    }
}

#[inline]
fn handle(reader: &TableReader, block: &Block, i: usize) -> Result<Handle> {
    Handle::decode(block.value(i))
        .map_err(|_| reader.source.at(reader.footer.index.offset_bytes).tampered("an index entry is not a handle"))
}

/// A whole key.
pub(super) fn joined(prefix: &[u8], suffix: &[u8]) -> Wiped {
    let mut key = Wiped::with_capacity(prefix.len() + suffix.len());
    key.extend_from_slice(prefix);
    key.extend_from_slice(suffix);
    key
}
