//! A cursor over one sorted level: its files one after the other, each opened when the cursor reaches it.

use std::ops::Range;
use std::sync::Arc;

use super::{TableFile, Version};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::sstable::{ReadMode, TableCursor, TableReader};
use crate::types::{Seq, Trailer};
use crate::value::Value;

/// How a file's reader is had: from the file itself if it is open, by opening it otherwise.
pub(crate) type OpenTable = Arc<dyn Fn(&Arc<TableFile>) -> Result<Arc<TableReader>> + Send + Sync>;

/// Walks files that are sorted by key and do not overlap.
///
/// A merge over a level's files themselves would open them all and compare keys of files that never interleave.
pub(crate) struct LevelCursor {
    files: Files,
    open: OpenTable,
    mode: ReadMode,
    /// The file that `cursor` walks.
    at: usize,
    cursor: Option<TableCursor>,
}

/// Files that are sorted by key and do not overlap.
enum Files {
    These(Vec<Arc<TableFile>>),
    /// Those of a level of a version, from one index to another: a level may have very many, so they are not counted one by one.
    Of(Arc<Version>, usize, Range<usize>),
}

impl Files {
    fn get(&self, at: usize) -> Option<&Arc<TableFile>> {
        self.all().get(at)
    }

    fn all(&self) -> &[Arc<TableFile>] {
        match self {
            Files::These(files) => files,
            Files::Of(version, level, range) => version.files(*level).get(range.clone()).unwrap_or(&[]),
        }
    }

    /// The first file whose largest key is at or after `key`.
    fn first_reaching(&self, key: &[u8]) -> usize {
        match self {
            Files::Of(version, level, range) if *level > 0 => {
                version.first_reaching(*level, key).clamp(range.start, range.end) - range.start
            }
            _ => self.all().partition_point(|file| *file.largest < *key),
        }
    }
}

impl LevelCursor {
    /// A cursor over `files`, which are sorted by key and do not overlap.
    pub(crate) fn new(files: Vec<Arc<TableFile>>, open: OpenTable, mode: ReadMode) -> LevelCursor {
        debug_assert!(files.windows(2).all(|pair| pair[0].largest < pair[1].smallest));
        LevelCursor { files: Files::These(files), open, mode, at: 0, cursor: None }
    }

    /// A cursor over the files of `version` at `level` with these indexes; at level 0, one file.
    pub(crate) fn of(
        version: &Arc<Version>,
        level: usize,
        files: Range<usize>,
        open: OpenTable,
        mode: ReadMode,
    ) -> LevelCursor {
        debug_assert!(level > 0 || files.len() <= 1);
        LevelCursor { files: Files::Of(version.clone(), level, files), open, mode, at: 0, cursor: None }
    }

    /// Open the `at`th file, or stand on nothing if there is none.
    fn enter(&mut self, at: Option<usize>) -> Result<Option<&mut TableCursor>> {
        let Some((at, file)) = at.and_then(|at| Some((at, self.files.get(at)?))) else {
            self.cursor = None;
            return Ok(None);
        };
        if self.at != at || self.cursor.is_none() {
            // Let go of the old cursor first: if opening fails, the level cursor must not be valid.
            self.cursor = None;
            self.cursor = Some((self.open)(file)?.cursor(self.mode.clone()));
            self.at = at;
        }
        Ok(self.cursor.as_mut())
    }

    /// Go on in the next file if this one has ended.
    fn skip_forward(&mut self) -> Result<()> {
        while self.cursor.as_ref().is_some_and(|cursor| !cursor.valid()) {
            if let Some(cursor) = self.enter(self.at.checked_add(1))? {
                cursor.seek_to_first()?;
            }
        }
        Ok(())
    }

    /// Go on in the file before if this one has ended.
    fn skip_backward(&mut self) -> Result<()> {
        while self.cursor.as_ref().is_some_and(|cursor| !cursor.valid()) {
            if let Some(cursor) = self.enter(self.at.checked_sub(1))? {
                cursor.seek_to_last()?;
            }
        }
        Ok(())
    }

    fn current(&self) -> &TableCursor {
        self.cursor.as_ref().expect("the cursor must be valid")
    }

    fn current_mut(&mut self) -> &mut TableCursor {
        self.cursor.as_mut().expect("the cursor must be valid")
    }
}

impl Cursor for LevelCursor {
    #[inline]
    fn valid(&self) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| cursor.valid())
    }

    fn seek_to_first(&mut self) -> Result<()> {
        if let Some(cursor) = self.enter(Some(0))? {
            cursor.seek_to_first()?;
        }
        self.skip_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        if let Some(cursor) = self.enter(self.files.all().len().checked_sub(1))? {
            cursor.seek_to_last()?;
        }
        self.skip_backward()
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        let at = self.files.first_reaching(key);
        if let Some(cursor) = self.enter(Some(at))? {
            cursor.seek(key, trailer)?;
        }
        self.skip_forward()
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        // The file that begins with this very key may hold newer versions of it.
        let at = self.files.all().partition_point(|file| *file.smallest <= *key);
        if let Some(cursor) = self.enter(at.checked_sub(1))? {
            cursor.seek_before(key, trailer)?;
        }
        self.skip_backward()
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let cursor = self.current_mut();
        cursor.next()?;
        if cursor.valid() {
            return Ok(());
        }
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        self.current_mut().prev()?;
        self.skip_backward()
    }

    #[inline]
    fn plain_ahead(&self, seq: Seq, before: Option<&[u8]>) -> usize {
        self.current().plain_ahead(seq, before)
    }

    #[inline]
    fn next_plain(&mut self) {
        self.current_mut().next_plain();
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.current().key()
    }

    fn trailer(&self) -> Trailer {
        self.current().trailer()
    }

    #[inline]
    fn value_ref(&self) -> Option<&[u8]> {
        self.current().value_ref()
    }

    fn value(&self) -> Result<Value> {
        self.current().value()
    }
}
