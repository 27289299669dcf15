//! A walk over a sorted table, both ways.
//!
//! A step within a block is arithmetic and the copy of one key suffix behind the prefix that is already in the key buffer; no step
//! allocates. A step into another block finds it in its slot, or in what was read ahead (`ahead.rs`), or reads.

use std::sync::Arc;

use crate::crypto::Wiped;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::metrics::Count;
use crate::sstable::ahead::{Direction, Helper, ReadAhead};
use crate::sstable::cache::OpenBlock;
use crate::sstable::index::IndexPlace;
use crate::sstable::{Found, TableReader, found_at, shown, stored};
use crate::types::{Kind, Seq, Trailer};
use crate::value::Value;

/// How a cursor comes by its blocks.
#[derive(Clone)]
pub(crate) enum ReadMode {
    /// From their slots, and into free ones; reads ahead, perhaps with a helper: scans.
    Scan(Option<Arc<Helper>>),
    /// Past the cache, with large reads: compaction.
    Bypass,
}

/// Walks one sorted table.
pub(crate) struct TableCursor {
    reader: Arc<TableReader>,
    mode: ReadMode,
    /// Where the block is; of no meaning when the cursor stands on no entry.
    place: IndexPlace,
    /// The block that the cursor stands in; `None` when it stands on no entry.
    block: Option<Arc<OpenBlock>>,
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
            place: IndexPlace::default(),
            block: None,
            at: 0,
            key: Wiped::new(),
            ahead: ReadAhead::default(),
        }
    }

    /// Make the block at `place` the current one, or none if there is no such block. Gives its number of entries, of which the caller chooses one.
    fn enter(&mut self, place: Option<IndexPlace>, direction: Direction) -> Result<Option<usize>> {
        if let Some(block) = &self.block
            && place == Some(self.place)
        {
            return Ok(Some(block.len()));
        }
        self.block = None;
        let Some(place) = place else { return Ok(None) };
        let Some(leaf) = self.reader.index.leaf_at(&self.reader, place)? else { return Ok(None) };
        let kept = match self.mode {
            ReadMode::Bypass => None,
            ReadMode::Scan(_) => leaf.slots.get(place.at),
        };
        let block = match kept {
            Some(block) => {
                self.reader.source.meters.count(Count::CacheHits, 1);
                self.ahead.passed(place);
                block
            }
            None => self.ahead.block(&self.reader, place, leaf, direction, &self.mode)?,
        };
        let entries = block.len();
        self.key.clear();
        self.key.extend_from_slice(block.key_prefix());
        self.place = place;
        self.block = Some(block);
        Ok(Some(entries))
    }

    /// Stand on the `at`-th entry of the current block.
    #[inline]
    fn stand(&mut self, at: usize) {
        self.at = at;
        if let Some(block) = &self.block {
            self.key.overwrite(block.key_prefix().len(), block.suffix(at));
        }
    }

    fn enter_first(&mut self, place: Option<IndexPlace>) -> Result<()> {
        if self.enter(place, Direction::Forward)?.is_some() {
            self.stand(0);
        }
        Ok(())
    }

    fn enter_last(&mut self, place: Option<IndexPlace>) -> Result<()> {
        if let Some(entries) = self.enter(place, Direction::Backward)? {
            self.stand(entries - 1);
        }
        Ok(())
    }

    fn next_block(&mut self) -> Result<()> {
        let place = self.reader.index.next(&self.reader, self.place)?;
        self.enter_first(place)
    }

    fn prev_block(&mut self) -> Result<()> {
        let place = self.reader.index.prev(&self.reader, self.place)?;
        self.enter_last(place)
    }

    fn find(&self, key: &[u8], target: Trailer) -> Result<Option<IndexPlace>> {
        Ok(self.reader.index.find(&self.reader, key, target)?.map(|(_, place)| place))
    }

    fn try_seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let target = stored(trailer);
        let place = self.find(key, target)?;
        if self.enter(place, Direction::Forward)?.is_none() {
            return Ok(());
        }
        let Some(block) = &self.block else { return Ok(()) };
        match block.lower_bound(key, target) {
            at if at == block.len() => self.next_block(),
            at => {
                self.stand(at);
                Ok(())
            }
        }
    }

    fn try_seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let target = stored(trailer);
        let Some(place) = self.find(key, target)? else { return self.try_seek_to_last() };
        self.enter(Some(place), Direction::Backward)?;
        match self.block.as_ref().map(|block| block.lower_bound(key, target).checked_sub(1)) {
            Some(Some(at)) => self.stand(at),
            Some(None) => self.prev_block()?,
            None => {}
        }
        Ok(())
    }

    fn try_seek_to_last(&mut self) -> Result<()> {
        let place = self.reader.index.last(&self.reader)?;
        self.enter_last(place)
    }

    #[inline]
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

    /// After a failure the cursor stands on no entry.
    #[inline]
    fn or_leave(&mut self, result: Result<()>) -> Result<()> {
        if result.is_err() {
            self.block = None;
        }
        result
    }
}

impl Cursor for TableCursor {
    #[inline]
    fn valid(&self) -> bool {
        self.block.is_some()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        let result = self.enter_first(Some(IndexPlace::default()));
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

    #[inline]
    fn next(&mut self) -> Result<()> {
        let result = self.try_next();
        self.or_leave(result)
    }

    fn prev(&mut self) -> Result<()> {
        let result = self.try_prev();
        self.or_leave(result)
    }

    #[inline]
    fn plain_ahead(&self, seq: Seq, before: Option<&[u8]>) -> usize {
        let Some(block) = self.block.as_ref().filter(|block| block.is_plain(seq)) else { return 0 };
        let end = match before {
            Some(before) => block.lower_bound(before, Trailer::seek(Seq::MAX)),
            None => block.len(),
        };
        end.saturating_sub(self.at + 1)
    }

    #[inline]
    fn next_plain(&mut self) {
        self.stand(self.at + 1);
    }

    #[inline]
    fn key(&self) -> &[u8] {
        &self.key
    }

    fn trailer(&self) -> Trailer {
        match &self.block {
            Some(block) => shown(block.trailer(self.at)),
            None => Trailer::seek(crate::types::Seq::ZERO),
        }
    }

    #[inline]
    fn value_ref(&self) -> Option<&[u8]> {
        let block = self.block.as_ref()?;
        match block.kind(self.at) {
            Kind::Put => Some(block.value(self.at)),
            Kind::PutRun => None,
            _ => Some(&[]),
        }
    }

    fn value(&self) -> Result<Value> {
        let Some(block) = &self.block else { return Ok(Value::copied(&[])) };
        let handle = || match self.reader.index.leaf_at(&self.reader, self.place)? {
            Some(leaf) => leaf.handle(&self.reader, self.place.at),
            None => {
                Err(self.reader.source.at(self.reader.footer.data.offset_bytes).tampered("an index without this block"))
            }
        };
        match found_at(block, self.at) {
            Found::Value(value) => Ok(value),
            Found::Run(pointer) => self.reader.run(&pointer, handle),
        }
    }
}
