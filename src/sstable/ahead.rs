//! Reading ahead of a cursor: many frames with one read, and their blocks opened on another core while the cursor is still busy with
//! those before.
//!
//! ```text
//!            cursor ──>                                  <── helper
//! span       [frame][frame][frame][frame][frame][frame][frame][frame]     one read, ciphertext
//!               │ opened by the cursor                         │ opened by the helper, from the far end
//!               └────────────── they meet somewhere ───────────┘
//! span       [ the next one, read when the cursor enters this one, and given to the helper ]
//! ```
//! A span is a frame's length at first, because nobody knows whether a second one will be wanted, and doubles while the next frame lies right
//! behind (or before) the last one: up to 256 KiB for a scan, from 256 KiB to 2 MiB for a compaction, which is known to read all. From
//! 64 KiB on a scan has the next span read before it needs it, and tells the helper.
//!
//! Neither waits for the other: a block that the helper has not finished is opened by the cursor itself, which costs nothing more than without
//! a helper, but for at most one block per span that both open. So it does not matter whether there is a core to spare, and a simulation comes to
//! the same entries whenever it lets the helper run.
//!
//! # What is held
//! Two spans of ciphertext, and of the opened blocks of a span no more than [`OPENED_BYTES_MAX`]; they count in the cache's budget as every
//! block does. The helper asks before each block whether the cursor is still there and may still read, and what it opened for
//! a cursor that is gone is wiped with its span.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::Result;
use crate::format::block::Block;
use crate::format::frame::FrameKind;
use crate::format::table::Handle;
use crate::io::{Clock, Signal, Step, Task};
use crate::metrics::Count;
use crate::sstable::cache::{Keep, OpenBlock};
use crate::sstable::index::{IndexPlace, Leaf};
use crate::sstable::{ReadMode, TableReader};

/// First span behind a frame that turned out to be one of several.
const SCAN_SPAN_BYTES_MIN: u64 = 32 << 10;
const SCAN_SPAN_BYTES_MAX: u64 = 256 << 10;
const BYPASS_SPAN_BYTES_MIN: u64 = 256 << 10;
const BYPASS_SPAN_BYTES_MAX: u64 = 2 << 20;
/// From this length on, the next span is read before it is needed.
const ASSISTED_SPAN_BYTES_MIN: u64 = 64 << 10;
/// What the helper opens of one span at most, decompressed.
const OPENED_BYTES_MAX: usize = 2 << 20;
/// Spans that wait for the helper at most. Whoever comes when there are more goes without.
const WAITING_MAX: usize = 64;

/// Ciphertext of consecutive data blocks, and those of the blocks that were opened ahead.
struct Span {
    reader: Arc<TableReader>,
    /// Of the block with the smallest key.
    first: IndexPlace,
    direction: Direction,
    /// Where `bytes` begin in the table.
    start: u64,
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    /// How many bytes of blocks the helper has opened.
    opened_bytes: AtomicUsize,
}

/// One block of a span.
struct Cell {
    handle: Handle,
    /// Whether somebody opens it, or has.
    taken: AtomicBool,
    opened: Mutex<Option<Arc<OpenBlock>>>,
}

impl Span {
    fn cell(&self, place: IndexPlace) -> Option<&Cell> {
        let at = place.at.checked_sub(self.first.at).filter(|_| place.leaf == self.first.leaf)?;
        self.cells.get(at)
    }

    /// The block that the cursor comes to behind this span, if there is one.
    fn beyond(&self, reader: &TableReader) -> Result<Option<IndexPlace>> {
        match self.direction {
            Direction::Forward => {
                let last = IndexPlace { at: self.first.at + self.cells.len() - 1, ..self.first };
                reader.index.next(reader, last)
            }
            Direction::Backward => reader.index.prev(reader, self.first),
        }
    }

    /// Open a block that lies in the span.
    fn open(&self, handle: &Handle) -> Result<Block> {
        let (source, cache) = (&self.reader.source, &self.reader.cache);
        let from = handle.offset_bytes.saturating_sub(self.start) as usize;
        let frame = self.bytes.get(from..from + handle.len_bytes as usize);
        let frame = frame.ok_or_else(|| source.at(handle.offset_bytes).bit_rot("the frame is cut off"))?;
        let mut buffer = cache.take_scratch(frame.len());
        buffer.copy_from_slice(frame);
        source.open_block(FrameKind::Data, handle, buffer, cache)
    }

    /// Open the last block, as seen from the cursor, that nobody has opened yet; false if there is none left to open.
    fn help(&self) -> bool {
        if self.opened_bytes.load(Ordering::Relaxed) >= OPENED_BYTES_MAX {
            return false;
        }
        let is_left = |(_, cell): &(usize, &Cell)| !cell.taken.swap(true, Ordering::AcqRel);
        let mut cells = self.cells.iter().enumerate();
        let left = match self.direction {
            Direction::Forward => cells.rev().find(is_left),
            Direction::Backward => cells.find(is_left),
        };
        let Some((i, cell)) = left else { return false };
        // Whatever is wrong, the cursor finds out for itself.
        let Ok(Some(leaf)) = self.reader.index.leaf_at(&self.reader, self.first) else { return false };
        let Ok(block) = self.open(&cell.handle) else { return false };
        self.opened_bytes.fetch_add(block.memory_bytes(), Ordering::Relaxed);
        *cell.opened.lock() = Some(leaf.slots.keep(self.first.at + i, block, Keep::IfFree));
        true
    }
}

/// Which way a cursor goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// What one cursor has read ahead.
#[derive(Default)]
pub(super) struct ReadAhead {
    span: Option<Arc<Span>>,
    /// The one behind it, on which the helper works.
    next: Option<Arc<Span>>,
    span_bytes: u64,
    /// The last block asked for.
    last: Option<IndexPlace>,
}

impl ReadAhead {
    /// The block at `place` came from elsewhere; it counts for what is consecutive.
    #[inline]
    pub(super) fn passed(&mut self, place: IndexPlace) {
        self.last = Some(place);
    }

    /// The block at `place`, from what was read ahead or from the file.
    pub(super) fn block(
        &mut self,
        reader: &Arc<TableReader>,
        place: IndexPlace,
        leaf: &Leaf,
        direction: Direction,
        mode: &ReadMode,
    ) -> Result<Arc<OpenBlock>> {
        let last = self.last.replace(place);
        if self.span.as_ref().and_then(|span| span.cell(place)).is_none() {
            let consecutive = match direction {
                Direction::Forward => last.is_some_and(|last| place.is_next_of(last)),
                Direction::Backward => last.is_some_and(|last| last.is_next_of(place)),
            };
            self.enter(reader, place, direction, mode, consecutive)?;
        }
        let Some((span, cell)) = self.span.as_ref().and_then(|span| Some((span, span.cell(place)?))) else {
            return Err(reader.source.at(reader.footer.data.offset_bytes).tampered("a block that is not in its span"));
        };
        if cell.taken.swap(true, Ordering::AcqRel)
            && let Some(block) = cell.opened.lock().take()
        {
            return Ok(block);
        }
        let block = span.open(&cell.handle)?;
        Ok(match mode {
            ReadMode::Bypass => Arc::new(OpenBlock::uncounted(block)),
            ReadMode::Scan(_) => {
                reader.source.meters.count(Count::CacheMisses, 1);
                leaf.slots.keep(place.at, block, Keep::IfFree)
            }
        })
    }

    /// Have a span in which the block at `place` lies, and the one behind it on its way.
    fn enter(
        &mut self,
        reader: &Arc<TableReader>,
        place: IndexPlace,
        direction: Direction,
        mode: &ReadMode,
        consecutive: bool,
    ) -> Result<()> {
        self.span_bytes = match (mode, consecutive) {
            (ReadMode::Bypass, true) => (self.span_bytes * 2).clamp(BYPASS_SPAN_BYTES_MIN, BYPASS_SPAN_BYTES_MAX),
            (ReadMode::Bypass, false) => BYPASS_SPAN_BYTES_MIN,
            (_, true) => (self.span_bytes * 2).clamp(SCAN_SPAN_BYTES_MIN, SCAN_SPAN_BYTES_MAX),
            (_, false) => 0,
        };
        // Nothing is held while a read may fail. The memory of what was read before is used again, unless the helper is still at it.
        let mut spare = self.span.take().and_then(Arc::into_inner).map(|old| old.bytes).unwrap_or_default();
        let next = self.next.take().filter(|next| next.direction == direction && next.cell(place).is_some());
        let span = match next {
            Some(next) => next,
            None => match self.read(reader, place, direction, std::mem::take(&mut spare)) {
                Err(_) if self.span_bytes > 0 => {
                    // What cannot be read may lie beside the block that is wanted, and perhaps nobody will want that.
                    self.span_bytes = 0;
                    self.read(reader, place, direction, Vec::new())?
                }
                read => read?,
            },
        };
        if let ReadMode::Scan(Some(helper)) = mode
            && self.span_bytes >= ASSISTED_SPAN_BYTES_MIN
            // What is wrong there is found out when the cursor gets there, if it does.
            && let Ok(Some(place)) = span.beyond(reader)
            && let Ok(next) = self.read(reader, place, direction, spare)
        {
            helper.help(&next);
            self.next = Some(next);
        }
        self.span = Some(span);
        Ok(())
    }

    /// Read the frame at `place` and as many behind it, in this direction, as belong into a span.
    fn read(
        &self,
        reader: &Arc<TableReader>,
        place: IndexPlace,
        direction: Direction,
        mut bytes: Vec<u8>,
    ) -> Result<Arc<Span>> {
        let (source, data) = (&reader.source, &reader.footer.data);
        let Some(leaf) = reader.index.leaf_at(reader, place)? else {
            return Err(source.at(data.offset_bytes).tampered("an index without this block"));
        };
        let handle = leaf.handle(reader, place.at)?;
        source.check_handle(&handle, data)?;
        let (mut from, mut to) = (handle.offset_bytes, handle.end_bytes());
        let (mut handles, mut at) = (VecDeque::from([handle]), place.at);
        while let Some(beside) = match direction {
            Direction::Forward => at.checked_add(1),
            Direction::Backward => at.checked_sub(1),
        } {
            // What is wrong with a handle beside the one that is wanted, is found out when that is.
            let Ok(handle) = leaf.handle(reader, beside) else { break };
            if source.check_handle(&handle, data).is_err() {
                break;
            }
            let (adjoins, all_bytes) = match direction {
                Direction::Forward => (handle.offset_bytes == to, handle.end_bytes() - from),
                Direction::Backward => (handle.end_bytes() == from, to - handle.offset_bytes),
            };
            if !adjoins || all_bytes > self.span_bytes {
                break;
            }
            at = beside;
            match direction {
                Direction::Forward => {
                    to = handle.end_bytes();
                    handles.push_back(handle);
                }
                Direction::Backward => {
                    from = handle.offset_bytes;
                    handles.push_front(handle);
                }
            }
        }
        bytes.resize((to - from) as usize, 0);
        source.read_into(from, &mut bytes)?;
        let data_end = data.offset_bytes + data.len_bytes;
        if self.span_bytes > 0 && direction == Direction::Forward && to < data_end {
            source.file.will_read(source.base_bytes + to, self.span_bytes.min(data_end - to));
        }
        let cell = |handle| Cell { handle, taken: AtomicBool::new(false), opened: Mutex::default() };
        Ok(Arc::new(Span {
            reader: reader.clone(),
            first: IndexPlace { at: at.min(place.at), ..place },
            direction,
            start: from,
            bytes,
            cells: handles.into_iter().map(cell).collect(),
            opened_bytes: AtomicUsize::new(0),
        }))
    }
}

/// Who opens blocks ahead of one cursor: the store's helper, as long as the cursor's reader may read.
pub(crate) struct Helper {
    pub(crate) queue: Arc<HelpQueue>,
    /// Asked before each block.
    pub(crate) may_read: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Helper {
    fn help(self: &Arc<Helper>, span: &Arc<Span>) {
        let mut waiting = self.queue.waiting.lock();
        // Looked at under the lock under which those who wait are let go of, so that nobody comes behind that.
        if waiting.len() < WAITING_MAX && !self.queue.stopped.load(Ordering::Acquire) {
            waiting.push_back((Arc::downgrade(span), self.clone()));
            drop(waiting);
            self.queue.work.raise();
        }
    }
}

/// Spans whose blocks are to be opened ahead. One per store.
#[derive(Default)]
pub(crate) struct HelpQueue {
    waiting: Mutex<VecDeque<(Weak<Span>, Arc<Helper>)>>,
    work: Arc<Signal>,
    stopped: AtomicBool,
}

impl HelpQueue {
    /// Let the helper end.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.waiting.lock().clear();
        self.work.raise();
    }
}

/// The background task that opens blocks ahead of cursors.
pub(crate) struct AheadTask {
    queue: Arc<HelpQueue>,
    clock: Arc<dyn Clock>,
}

impl AheadTask {
    pub(crate) fn new(queue: Arc<HelpQueue>, clock: Arc<dyn Clock>) -> AheadTask {
        AheadTask { queue, clock }
    }
}

impl Task for AheadTask {
    fn step(&mut self) -> Step {
        let seen = self.queue.work.count();
        if self.queue.stopped.load(Ordering::Acquire) {
            // The one that was being worked on while the others were let go of was put back since.
            self.queue.waiting.lock().clear();
            return Step::Done;
        }
        let Some((waiting, helper)) = self.queue.waiting.lock().pop_front() else {
            return Step::Wait { signal: self.queue.work.clone(), seen, clock: self.clock.clone(), deadline: None };
        };
        // The cursor owns the span; without it nobody wants the blocks.
        let is_more = waiting.upgrade().is_some_and(|span| (helper.may_read)() && span.help());
        if is_more {
            // To the front: the cursor that came first is the one that is nearest to needing its blocks.
            self.queue.waiting.lock().push_front((waiting, helper));
        }
        Step::Again
    }
}
