//! A walk over a sorted table, both ways.
//!
//! A step within a block is arithmetic and the copy of one key suffix behind the prefix that is already in the key buffer; no step
//! allocates. A step into another block asks the cache, or reads.
//!
//! # Reading ahead
//! Scans and compactions read consecutive frames with one call. The window is a frame's length at first, because nobody
//! knows whether a second one will be wanted, and doubles while the next frame lies right behind (or before) the last one:
//! up to 256 KiB for a scan, from 256 KiB to 2 MiB for a compaction, which is known to read all. What is read ahead is ciphertext, and is
//! opened when its turn comes.

use std::sync::Arc;

use crate::crypto::Wiped;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::format::block::Block;
use crate::format::frame::FrameKind;
use crate::format::table::Handle;
use crate::metrics::Count;
use crate::sstable::index::IndexPlace;
use crate::sstable::{TableReader, shown, stored};
use crate::types::{Kind, Trailer};
use crate::value::Value;

/// How a cursor comes by its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadMode {
    /// From the cache, and into its free space; reads ahead: scans.
    Scan,
    /// Past the cache, with large reads: compaction.
    Bypass,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// Walks one sorted table.
pub(crate) struct TableCursor {
    reader: Arc<TableReader>,
    mode: ReadMode,
    index: IndexPlace,
    /// The block that the cursor stands in; `None` when it stands on no entry.
    block: Option<Arc<Block>>,
    /// Of that block.
    handle: Option<Handle>,
    at: usize,
    /// The block's prefix and the entry's suffix.
    key: Wiped,
    ahead: ReadAhead,
}

impl TableCursor {
    pub(super) fn new(reader: Arc<TableReader>, mode: ReadMode) -> TableCursor {
        TableCursor {
            reader,
            mode,
            index: IndexPlace::default(),
            block: None,
            handle: None,
            at: 0,
            key: Wiped::new(),
            ahead: ReadAhead::default(),
        }
    }

    /// Make the block at `handle` the current one, or none. The caller chooses the entry.
    fn enter(&mut self, handle: Option<Handle>, direction: Direction) -> Result<Option<Arc<Block>>> {
        let Some(handle) = handle else {
            self.leave();
            return Ok(None);
        };
        if self.handle == Some(handle)
            && let Some(block) = &self.block
        {
            return Ok(Some(block.clone()));
        }
        self.leave();
        let block = self.read_ahead(&handle, direction)?;
        self.key.clear();
        self.key.extend_from_slice(block.key_prefix());
        self.handle = Some(handle);
        self.block = Some(block.clone());
        Ok(Some(block))
    }

    fn read_ahead(&mut self, handle: &Handle, direction: Direction) -> Result<Arc<Block>> {
        let id = (self.reader.id, handle.ordinal);
        let is_scan = self.mode == ReadMode::Scan;
        if is_scan && let Some(block) = self.reader.cache.get(id) {
            self.reader.source.meters.count(Count::CacheHits, 1);
            self.ahead.passed(handle);
            return Ok(block);
        }
        let frame = self.ahead.frame(&self.reader, handle, direction, self.mode)?;
        let source = &self.reader.source;
        let block = Arc::new(source.open_block(FrameKind::Data, handle, frame)?.counted(&source.meters));
        if is_scan {
            source.meters.count(Count::CacheMisses, 1);
            self.reader.cached.store(true, std::sync::atomic::Ordering::Relaxed);
            self.reader.cache.insert_if_free(id, &block);
        }
        Ok(block)
    }

    /// Stand on no entry.
    fn leave(&mut self) {
        self.block = None;
        self.handle = None;
    }

    /// Stand on the `at`-th entry of the current block.
    #[inline]
    fn stand(&mut self, at: usize) {
        self.at = at;
        if let Some(block) = &self.block {
            self.key.truncate(block.key_prefix().len());
            self.key.extend_from_slice(block.suffix(at));
        }
    }

    fn enter_first(&mut self, handle: Option<Handle>) -> Result<()> {
        if self.enter(handle, Direction::Forward)?.is_some() {
            self.stand(0);
        }
        Ok(())
    }

    fn enter_last(&mut self, handle: Option<Handle>) -> Result<()> {
        if let Some(block) = self.enter(handle, Direction::Backward)? {
            self.stand(block.len() - 1);
        }
        Ok(())
    }

    fn next_block(&mut self) -> Result<()> {
        let handle = self.reader.index.next(&self.reader, &mut self.index)?;
        self.enter_first(handle)
    }

    fn prev_block(&mut self) -> Result<()> {
        let handle = self.reader.index.prev(&self.reader, &mut self.index)?;
        self.enter_last(handle)
    }

    fn try_seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let target = stored(trailer);
        let handle = self.reader.index.seek(&self.reader, &mut self.index, key, target)?;
        let Some(block) = self.enter(handle, Direction::Forward)? else { return Ok(()) };
        let at = block.lower_bound(key, target);
        if at == block.len() {
            return self.next_block();
        }
        self.stand(at);
        Ok(())
    }

    fn try_seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let target = stored(trailer);
        let handle = match self.reader.index.seek(&self.reader, &mut self.index, key, target)? {
            Some(handle) => handle,
            None => return self.try_seek_to_last(),
        };
        let Some(block) = self.enter(Some(handle), Direction::Backward)? else { return Ok(()) };
        match block.lower_bound(key, target).checked_sub(1) {
            Some(at) => {
                self.stand(at);
                Ok(())
            }
            None => self.prev_block(),
        }
    }

    fn try_seek_to_last(&mut self) -> Result<()> {
        let handle = self.reader.index.last(&self.reader, &mut self.index)?;
        self.enter_last(handle)
    }

    fn try_next(&mut self) -> Result<()> {
        match &self.block {
            Some(block) if self.at + 1 < block.len() => self.stand(self.at + 1),
            Some(_) => return self.next_block(),
            None => debug_assert!(false, "a cursor on no entry has no next one"),
        }
        Ok(())
    }

    fn try_prev(&mut self) -> Result<()> {
        match (&self.block, self.at.checked_sub(1)) {
            (Some(_), Some(at)) => self.stand(at),
            (Some(_), None) => return self.prev_block(),
            (None, _) => debug_assert!(false, "a cursor on no entry has none before it"),
        }
        Ok(())
    }

    /// After a failure the cursor stands on no entry: its place in the index may be ahead of its block.
    #[inline]
    fn or_leave(&mut self, result: Result<()>) -> Result<()> {
        if result.is_err() {
            self.leave();
        }
        result
    }
}

impl Cursor for TableCursor {
    fn valid(&self) -> bool {
        self.block.is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        let first = self.reader.index.first(&self.reader, &mut self.index);
        let result = first.and_then(|handle| self.enter_first(handle));
        self.or_leave(result)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        let result = self.try_seek_to_last();
        self.or_leave(result)
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let result = self.try_seek(key, trailer);
        self.or_leave(result)
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let result = self.try_seek_before(key, trailer);
        self.or_leave(result)
    }

    fn next(&mut self) -> Result<()> {
        let result = self.try_next();
        self.or_leave(result)
    }

    fn prev(&mut self) -> Result<()> {
        let result = self.try_prev();
        self.or_leave(result)
    }

    fn key(&self) -> &[u8] {
        &self.key
    }

    fn trailer(&self) -> Trailer {
        match &self.block {
            Some(block) => shown(block.trailer(self.at)),
            None => Trailer::seek(crate::types::Seq::ZERO),
        }
    }

    fn value_ref(&self) -> Option<&[u8]> {
        let block = self.block.as_ref()?;
        match block.trailer(self.at).kind() {
            Kind::Put => Some(block.value(self.at)),
            Kind::PutRun => None,
            _ => Some(&[]),
        }
    }

    fn value(&self) -> Result<Value> {
        let (Some(block), Some(handle)) = (&self.block, &self.handle) else { return Ok(Value::copied(&[])) };
        self.reader.resolve(block, self.at, &self.reader.source.at(handle.offset_bytes)).map(|(_, value)| value)
    }
}

/// First window behind a frame that turned out to be one of several.
const SCAN_WINDOW_BYTES_MIN: u64 = 32 << 10;
const SCAN_WINDOW_BYTES_MAX: u64 = 256 << 10;
const BYPASS_WINDOW_BYTES_MIN: u64 = 256 << 10;
const BYPASS_WINDOW_BYTES_MAX: u64 = 2 << 20;

/// Ciphertext read ahead of its use.
#[derive(Default)]
struct ReadAhead {
    bytes: Vec<u8>,
    /// Where `bytes` begin in the table.
    start: u64,
    window_bytes: u64,
    /// Where the last frame asked for begins and ends.
    last: Option<(u64, u64)>,
}

impl ReadAhead {
    /// The frame at `handle` came from elsewhere; it counts for what is consecutive.
    fn passed(&mut self, handle: &Handle) {
        self.last = Some((handle.offset_bytes, handle.offset_bytes.saturating_add(u64::from(handle.len_bytes))));
    }

    fn frame(
        &mut self,
        reader: &TableReader,
        handle: &Handle,
        direction: Direction,
        mode: ReadMode,
    ) -> Result<Vec<u8>> {
        let data = &reader.footer.data;
        reader.source.check_handle(handle, data)?;
        let (start, end) = (handle.offset_bytes, handle.offset_bytes + u64::from(handle.len_bytes));
        let last = self.last.replace((start, end));
        if let Some(frame) = self.held(start, end) {
            return Ok(frame.to_vec());
        }
        let consecutive = match direction {
            Direction::Forward => last.is_some_and(|(_, last_end)| last_end == start),
            Direction::Backward => last.is_some_and(|(last_start, _)| last_start == end),
        };
        self.window_bytes = match (mode, consecutive) {
            (ReadMode::Bypass, true) => (self.window_bytes * 2).clamp(BYPASS_WINDOW_BYTES_MIN, BYPASS_WINDOW_BYTES_MAX),
            (ReadMode::Bypass, false) => BYPASS_WINDOW_BYTES_MIN,
            (_, true) => (self.window_bytes * 2).clamp(SCAN_WINDOW_BYTES_MIN, SCAN_WINDOW_BYTES_MAX),
            (_, false) => 0,
        };
        let data_end = data.offset_bytes + data.len_bytes;
        let (from, to) = match direction {
            Direction::Forward => (start, end.max(start.saturating_add(self.window_bytes).min(data_end))),
            Direction::Backward => (start.min(end.saturating_sub(self.window_bytes).max(data.offset_bytes)), end),
        };
        // Nothing is held while the buffer is not what its place says.
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize((to - from) as usize, 0);
        reader.source.read_into(from, &mut bytes)?;
        (self.bytes, self.start) = (bytes, from);
        if consecutive && direction == Direction::Forward && to < data_end {
            reader.source.file.will_read(reader.source.base_bytes + to, self.window_bytes.min(data_end - to));
        }
        Ok(self.held(start, end).unwrap_or(&[]).to_vec())
    }

    fn held(&self, start: u64, end: u64) -> Option<&[u8]> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(end.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..to)
    }
}
