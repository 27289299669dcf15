//! Walking a table: the lending cursor, and the iterators that are a thin layer on it.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::Engine;
use super::catalog::{Seat, TableState, View};
use super::session::Handle;
use super::snapshot::Pin;
use crate::error::{Error, Result};
use crate::merge::{KeyRange, MergeCursor, Source, VisibleCursor};
use crate::metrics::{Count, Tally};
use crate::sstable::{ReadMode, TableReader};
use crate::types::{Kind, LEVELS, Seq, Trailer, UserKey};
use crate::value::Value;
use crate::version::LevelCursor;

/// A place in a table, from which one can go either way.
///
/// What [`next`](Cursor::next) and the others return is borrowed from the cursor and valid until it moves, so walking
/// allocates nothing. A new cursor stands before the first entry. It sees the table as it was when the
/// cursor was made, and holds what it needs for that until it is dropped.
///
/// # Example
/// ```
/// # let store = strongroom::Store::temporary()?;
/// # let table = store.create_table("t", Default::default())?;
/// # table.put(b"a", b"1")?; table.put(b"b", b"2")?;
/// let mut cursor = table.cursor()?;
/// let mut entry = cursor.seek(b"a")?;
/// while let Some((key, value)) = entry {
///     println!("{key:?} {value:?}");
///     entry = cursor.next()?;
/// }
/// # Ok::<(), strongroom::Error>(())
/// ```
pub struct Cursor {
    engine: Arc<Handle>,
    seat: Seat,
    inner: VisibleCursor<MergeCursor>,
    place: Place,
    /// A value that had to be read from a file, for as long as the cursor stands on it.
    value: Option<Value>,
    /// Keeps the versions of entries that this cursor may see from being compacted away.
    _pin: Pin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeFirst,
    OnEntry,
    BehindLast,
    /// Reading failed on the way: where the cursor stands is not known until it is told where to go.
    Lost,
}

/// An entry borrowed from a cursor: key and value.
pub type EntryRef<'a> = (&'a [u8], &'a [u8]);

impl Cursor {
    pub(crate) fn new(engine: Arc<Handle>, seat: Seat, view: &Arc<View>, pin: Pin, range: KeyRange) -> Result<Cursor> {
        engine.meters.count(Count::Cursors, 1);
        let inner = VisibleCursor::new(sources(&engine, &seat.table, view), pin.seq(), range);
        Ok(Cursor { engine, seat, inner, place: Place::BeforeFirst, value: None, _pin: pin })
    }

    /// Go to the first entry whose key is `key` or greater.
    ///
    /// # Errors
    /// Whatever kept the entry from being read: [`Error::KeyUnavailable`](crate::Error::KeyUnavailable),
    /// [`Error::Tampered`](crate::Error::Tampered), [`Error::BitRot`](crate::Error::BitRot), [`Error::Io`](crate::Error::Io).
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<Option<EntryRef<'_>>> {
        self.moved(Place::BehindLast, |inner| inner.seek(key.as_ref()))
    }

    /// Go to the last entry whose key is less than `key`.
    ///
    /// # Errors
    /// As for [`seek`](Cursor::seek).
    pub fn seek_before(&mut self, key: impl AsRef<[u8]>) -> Result<Option<EntryRef<'_>>> {
        self.moved(Place::BeforeFirst, |inner| inner.seek_before(key.as_ref()))
    }

    /// Go to the first entry.
    ///
    /// # Errors
    /// As for [`seek`](Cursor::seek).
    pub fn first(&mut self) -> Result<Option<EntryRef<'_>>> {
        self.moved(Place::BehindLast, VisibleCursor::seek_to_first)
    }

    /// Go to the last entry.
    ///
    /// # Errors
    /// As for [`seek`](Cursor::seek).
    pub fn last(&mut self) -> Result<Option<EntryRef<'_>>> {
        self.moved(Place::BeforeFirst, VisibleCursor::seek_to_last)
    }

    /// Go to the next entry; from the last one, behind it, where [`prev`](Cursor::prev) leads back.
    ///
    /// # Errors
    /// As for [`seek`](Cursor::seek).
    #[allow(clippy::should_implement_trait, reason = "a lending step cannot be Iterator::next")]
    pub fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
        match self.place {
            Place::BeforeFirst => self.first(),
            Place::OnEntry => self.moved(Place::BehindLast, VisibleCursor::next),
            Place::BehindLast => Ok(None),
            Place::Lost => Err(lost()),
        }
    }

    /// Go to the entry before; from the first one, before it, where [`next`](Cursor::next) leads back.
    ///
    /// # Errors
    /// As for [`seek`](Cursor::seek).
    pub fn prev(&mut self) -> Result<Option<EntryRef<'_>>> {
        match self.place {
            Place::BeforeFirst => Ok(None),
            Place::OnEntry => self.moved(Place::BeforeFirst, VisibleCursor::prev),
            Place::BehindLast => self.last(),
            Place::Lost => Err(lost()),
        }
    }

    fn moved(
        &mut self,
        otherwise: Place,
        step: impl FnOnce(&mut VisibleCursor<MergeCursor>) -> Result<()>,
    ) -> Result<Option<EntryRef<'_>>> {
        self.step(otherwise, step)?;
        self.entry()
    }

    fn step(
        &mut self,
        otherwise: Place,
        step: impl FnOnce(&mut VisibleCursor<MergeCursor>) -> Result<()>,
    ) -> Result<()> {
        self.value = None;
        self.engine.check_permit(&self.seat)?;
        // Not "no more entries", which is what an inner cursor that failed would say from now on.
        self.place = Place::Lost;
        step(&mut self.inner)?;
        self.place = if self.inner.valid() { Place::OnEntry } else { otherwise };
        Ok(())
    }

    fn entry(&mut self) -> Result<Option<EntryRef<'_>>> {
        if self.place != Place::OnEntry {
            return Ok(None);
        }
        if self.inner.value_ref().is_none() {
            self.value = Some(self.inner.value()?);
        }
        let value = self.value.as_deref().or(self.inner.value_ref()).unwrap_or_default();
        Ok(Some((self.inner.key(), value)))
    }

    /// The entry that the cursor stands on, owned; large values share memory.
    fn owned(&self, keys_only: bool) -> Result<Option<(Value, Value)>> {
        if self.place != Place::OnEntry {
            return Ok(None);
        }
        let value = if keys_only { Value::copied(&[]) } else { self.inner.value()? };
        Ok(Some((Value::copied(self.inner.key()), value)))
    }
}

/// Entries of a table in key order, from either end.
///
/// Each item is a key and a value, or what kept it from being read; after an error there are no more items.
pub struct Range {
    /// One cursor per end that was asked for; both see the same moment.
    front: Option<Cursor>,
    back: Option<Cursor>,
    make: Result<Maker, Option<Error>>,
    /// The last key that came from the front, and the first from the back: where the two ends meet.
    front_key: Option<Value>,
    back_key: Option<Value>,
    keys_only: bool,
    done: bool,
}

/// Makes a cursor of one moment, as often as needed.
struct Maker {
    engine: Arc<Handle>,
    seat: Seat,
    view: Arc<View>,
    pin: Pin,
    range: KeyRange,
}

impl Maker {
    fn cursor(&self) -> Result<Cursor> {
        Cursor::new(self.engine.clone(), self.seat.clone(), &self.view, self.pin.clone(), self.range.clone())
    }
}

impl Range {
    /// The entries of `view` in `range`, or an iterator whose only item says why there is no view.
    pub(crate) fn new(engine: Arc<Handle>, seat: Seat, view: Result<Arc<View>>, pin: Pin, range: KeyRange) -> Range {
        let make = match view {
            Ok(view) => Ok(Maker { engine, seat, view, pin, range }),
            Err(error) => Err(Some(error)),
        };
        Range { front: None, back: None, make, front_key: None, back_key: None, keys_only: false, done: false }
    }

    /// The keys alone; values are not read.
    pub fn keys(mut self) -> Keys {
        self.keys_only = true;
        Keys(self)
    }

    fn pull(&mut self, from: End) -> Result<Option<(Value, Value)>> {
        let cursor = match from {
            End::Front => &mut self.front,
            End::Back => &mut self.back,
        };
        let first = cursor.is_none();
        if first {
            *cursor = match &mut self.make {
                Ok(maker) => Some(maker.cursor()?),
                Err(error) => return error.take().map_or(Ok(None), Err),
            };
        }
        let Some(cursor) = cursor else { return Ok(None) };
        match (from, first) {
            (End::Front, true) => cursor.step(Place::BehindLast, VisibleCursor::seek_to_first)?,
            (End::Back, true) => cursor.step(Place::BeforeFirst, VisibleCursor::seek_to_last)?,
            (End::Front, false) => cursor.step(Place::BehindLast, VisibleCursor::next)?,
            (End::Back, false) => cursor.step(Place::BeforeFirst, VisibleCursor::prev)?,
        }
        let Some(entry) = cursor.owned(self.keys_only)? else { return Ok(None) };
        let met = match from {
            End::Front => self.back_key.as_ref().is_some_and(|back| *entry.0 >= **back),
            End::Back => self.front_key.as_ref().is_some_and(|front| *entry.0 <= **front),
        };
        if met {
            return Ok(None);
        }
        match from {
            End::Front => self.front_key = Some(entry.0.clone()),
            End::Back => self.back_key = Some(entry.0.clone()),
        }
        Ok(Some(entry))
    }

    fn item(&mut self, from: End) -> Option<Result<(Value, Value)>> {
        if self.done {
            return None;
        }
        let item = self.pull(from).transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

impl Iterator for Range {
    type Item = Result<(Value, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.item(End::Front)
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.item(End::Back)
    }
}

/// Keys of a table in order, from either end.
pub struct Keys(Range);

impl Iterator for Keys {
    type Item = Result<Value>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|entry| entry.map(|(key, _)| key))
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|entry| entry.map(|(key, _)| key))
    }
}

/// The half-open range of keys that `bounds` means.
pub(crate) fn key_range<K: AsRef<[u8]>>(bounds: &impl RangeBounds<K>) -> KeyRange {
    KeyRange {
        lower: match bounds.start_bound() {
            Bound::Included(key) => Some(key.as_ref().into()),
            Bound::Excluded(key) => Some(successor(key.as_ref())),
            Bound::Unbounded => None,
        },
        upper: match bounds.end_bound() {
            Bound::Included(key) => Some(successor(key.as_ref())),
            Bound::Excluded(key) => Some(key.as_ref().into()),
            Bound::Unbounded => None,
        },
    }
}

/// The range of keys that begin with `prefix`.
pub(crate) fn prefix_range(prefix: &[u8]) -> KeyRange {
    // The first key behind all of them: the prefix with its last byte that can grow grown by one.
    let grown = prefix.iter().rposition(|byte| *byte < u8::MAX).map(|last| {
        let mut upper: Box<[u8]> = prefix[..=last].into();
        upper[last] += 1;
        UserKey::from(upper)
    });
    KeyRange { lower: Some(prefix.into()), upper: grown }
}

/// The least key greater than `key`.
fn successor(key: &[u8]) -> UserKey {
    UserKey::from([key, &[0]].concat().into_boxed_slice())
}

fn lost() -> Error {
    let detail = "an error kept it from moving on; tell it where to go".to_owned();
    Error::InvalidArgument { what: "cursor", detail }
}

/// Everything of a view in which an entry may be found.
fn sources(engine: &Engine, table: &Arc<TableState>, view: &View) -> MergeCursor {
    let mut sources: Vec<Source> = Vec::with_capacity(2 + view.frozen.len());
    for memory in std::iter::once(&view.active).chain(&view.frozen) {
        if !memory.table.is_empty() {
            sources.push(Box::new(memory.table.cursor()));
        }
    }
    let opener = engine.readers.opener(&table.settings, &view.keys);
    for file in view.version.files(0) {
        sources.push(Box::new(LevelCursor::new(vec![file.clone()], opener.clone(), ReadMode::Scan)));
    }
    for level in 1..LEVELS {
        let files = view.version.files(level);
        if !files.is_empty() {
            sources.push(Box::new(LevelCursor::new(files.to_vec(), opener.clone(), ReadMode::Scan)));
        }
    }
    MergeCursor::new(sources)
}

/// The value of `key` that a reader at `seq` sees in `view`.
pub(crate) fn lookup(engine: &Engine, table: &TableState, view: &View, key: &[u8], seq: Seq) -> Result<Option<Value>> {
    // All that a read counts is counted with one look for this thread's tally.
    engine.meters.tally(|tally| {
        if !tally.begins(Count::Gets) {
            return find(engine, tally, table, view, key, seq);
        }
        let began = engine.env.clock.tick();
        let found = find(engine, tally, table, view, key, seq);
        engine.meters.get_ns.record(engine.env.clock.tick().since(began));
        found
    })
}

#[inline]
fn find(
    engine: &Engine,
    tally: &Tally,
    table: &TableState,
    view: &View,
    key: &[u8],
    seq: Seq,
) -> Result<Option<Value>> {
    let shown = |(trailer, value): (Trailer, Value)| (trailer.kind() != Kind::Delete).then_some(value);
    // Memtables, then level 0, then the levels below are each newer than what follows, so the first hit is the newest.
    for memory in std::iter::once(&view.active).chain(&view.frozen) {
        if let Some(found) = memory.table.get(key, seq) {
            tally.add(Count::GetMemtable, 1);
            return Ok(shown(found));
        }
    }
    let hash = crate::format::table::hash(table.settings.filter_seed, key);
    for (level, file) in view.version.candidates(key) {
        let probe = |reader: &Arc<TableReader>| reader.get_counted(tally, key, hash, seq);
        let found = engine.readers.with_reader(file, &table.settings, &view.keys, probe)?;
        if let Some(found) = found {
            tally.answered_at(level);
            return Ok(shown(found));
        }
    }
    tally.add(Count::GetAbsent, 1);
    Ok(None)
}
