//! Walking a table: the lending cursor, and the iterators that are a thin layer on it.
//!
//! A permit is compared with the tick at every step but those that only go on within a block that was looked at as a whole already; then at
//! every block.

use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::Engine;
use super::catalog::{Seat, TableState, View};
use super::session::Handle;
use super::snapshot::Pin;
use crate::error::{Error, Result};
use crate::memtable::MemtableCursor;
use crate::merge::{KeyRange, MergeCursor, VisibleCursor};
use crate::metrics::{self, Count, Probes};
use crate::sstable::{Helper, ReadMode, TableReader};
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
    inner: VisibleCursor<MergeCursor<Source>>,
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
        let inner = VisibleCursor::new(sources(&engine, &seat, view, &range), pin.seq(), range);
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
    #[inline]
    pub fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
        // Only an entry with a value in its block is followed by such a step, so that no other value has to be let go of.
        if self.inner.next_plain() {
            return self.entry();
        }
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
        step: impl FnOnce(&mut VisibleCursor<MergeCursor<Source>>) -> Result<()>,
    ) -> Result<Option<EntryRef<'_>>> {
        self.step(otherwise, step)?;
        self.entry()
    }

    fn step(
        &mut self,
        otherwise: Place,
        step: impl FnOnce(&mut VisibleCursor<MergeCursor<Source>>) -> Result<()>,
    ) -> Result<()> {
        self.value = None;
        self.engine.check_permit(&self.seat)?;
        // Not "no more entries", which is what an inner cursor that failed would say from now on.
        self.place = Place::Lost;
        step(&mut self.inner)?;
        self.place = if self.inner.valid() { Place::OnEntry } else { otherwise };
        Ok(())
    }

    #[inline]
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

    /// The key of the entry that the cursor stands on, if it stands on one.
    #[inline]
    fn key(&self) -> Option<&[u8]> {
        (self.place == Place::OnEntry).then(|| self.inner.key())
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
        Range { front: None, back: None, make, keys_only: false, done: false }
    }

    /// The keys alone; values are not read.
    pub fn keys(mut self) -> Keys {
        self.keys_only = true;
        Keys(self)
    }

    #[inline]
    fn pull(&mut self, from: End) -> Result<Option<(Value, Value)>> {
        let (own, other) = match from {
            End::Front => (&mut self.front, &self.back),
            End::Back => (&mut self.back, &self.front),
        };
        let cursor = match own {
            Some(cursor) => {
                match from {
                    End::Front if cursor.inner.next_plain() => {}
                    End::Front => cursor.step(Place::BehindLast, VisibleCursor::next)?,
                    End::Back => cursor.step(Place::BeforeFirst, VisibleCursor::prev)?,
                }
                cursor
            }
            None => {
                let cursor = match &mut self.make {
                    Ok(maker) => own.insert(maker.cursor()?),
                    Err(error) => return error.take().map_or(Ok(None), Err),
                };
                match from {
                    End::Front => cursor.step(Place::BehindLast, VisibleCursor::seek_to_first)?,
                    End::Back => cursor.step(Place::BeforeFirst, VisibleCursor::seek_to_last)?,
                }
                cursor
            }
        };
        let Some(key) = cursor.key() else { return Ok(None) };
        // Each cursor stands on the last entry that came from its end, so there the two ends meet.
        let met = other.as_ref().and_then(Cursor::key).is_some_and(|other| match from {
            End::Front => key >= other,
            End::Back => key <= other,
        });
        if met {
            return Ok(None);
        }
        let value = if self.keys_only { Value::copied(&[]) } else { cursor.inner.value()? };
        Ok(Some((Value::copied(key), value)))
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

/// What a view consists of. One type with two shapes, rather than any cursor behind a pointer, because a step is a few nanoseconds.
enum Source {
    Memory(MemtableCursor),
    Level(LevelCursor),
}

/// Calls the same of either.
macro_rules! either {
    ($source:expr, $cursor:ident => $call:expr) => {
        match $source {
            Source::Memory($cursor) => $call,
            Source::Level($cursor) => $call,
        }
    };
}

impl crate::cursor::Cursor for Source {
    #[inline]
    fn valid(&self) -> bool {
        either!(self, cursor => cursor.valid())
    }

    fn seek_to_first(&mut self) -> Result<()> {
        either!(self, cursor => cursor.seek_to_first())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        either!(self, cursor => cursor.seek_to_last())
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        either!(self, cursor => cursor.seek(key, trailer))
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        either!(self, cursor => cursor.seek_before(key, trailer))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        either!(self, cursor => cursor.next())
    }

    fn prev(&mut self) -> Result<()> {
        either!(self, cursor => cursor.prev())
    }

    #[inline]
    fn plain_ahead(&self, seq: Seq, before: Option<&[u8]>) -> usize {
        either!(self, cursor => cursor.plain_ahead(seq, before))
    }

    #[inline]
    fn next_plain(&mut self) {
        either!(self, cursor => cursor.next_plain());
    }

    #[inline]
    fn key(&self) -> &[u8] {
        either!(self, cursor => cursor.key())
    }

    #[inline]
    fn trailer(&self) -> Trailer {
        either!(self, cursor => cursor.trailer())
    }

    #[inline]
    fn value_ref(&self) -> Option<&[u8]> {
        either!(self, cursor => cursor.value_ref())
    }

    #[inline]
    fn value(&self) -> Result<Value> {
        either!(self, cursor => cursor.value())
    }
}

/// Everything of a view in which an entry of `range` may be found. No file is opened yet.
fn sources(engine: &Arc<Handle>, seat: &Seat, view: &View, range: &KeyRange) -> MergeCursor<Source> {
    let mut sources: Vec<Source> = Vec::with_capacity(4);
    for memory in std::iter::once(&view.active).chain(&view.frozen) {
        if !memory.table.is_empty() {
            sources.push(Source::Memory(memory.table.cursor()));
        }
    }
    let opener = engine.readers.opener(&seat.table.settings, &view.keys);
    let mode = read_mode(engine, seat);
    let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
    let mut add = |level, files: std::ops::Range<usize>| {
        if !files.is_empty() {
            sources.push(Source::Level(LevelCursor::of(&view.version, level, files, opener.clone(), mode.clone())));
        }
    };
    for (i, file) in view.version.files(0).iter().enumerate() {
        let is_below = lower.is_some_and(|lower| *file.largest < *lower);
        let is_above = upper.is_some_and(|upper| *file.smallest >= *upper);
        if !is_below && !is_above {
            add(0, i..i + 1);
        }
    }
    for level in 1..LEVELS {
        add(level, view.version.between(level, lower, upper));
    }
    MergeCursor::new(sources)
}

/// How scans of this seat read: with somebody who opens blocks ahead, as long as the principal may read at all.
fn read_mode(engine: &Arc<Handle>, seat: &Seat) -> ReadMode {
    // Not the handle, which would keep the store open.
    let (engine, permit) = (engine.engine().clone(), seat.permit.clone());
    let queue = engine.background.ahead.clone();
    let may_read = Box::new(move || engine.tick.load().is_some_and(|now| permit.check(now)));
    ReadMode::Scan(Some(Arc::new(Helper { queue, may_read })))
}

/// The value of `key` that a reader at `seq` sees in `view`.
pub(crate) fn lookup(engine: &Engine, table: &TableState, view: &View, key: &[u8], seq: Seq) -> Result<Option<Value>> {
    if !metrics::is_sampled() {
        return find(engine, table, view, key, seq);
    }
    let began = engine.env.clock.tick();
    let found = find(engine, table, view, key, seq);
    engine.meters.get_ns.record(engine.env.clock.tick().since(began));
    found
}

#[inline]
fn find(engine: &Engine, table: &TableState, view: &View, key: &[u8], seq: Seq) -> Result<Option<Value>> {
    // What there is to count is counted at the end, with one look for this thread's tally.
    let shown = |(trailer, value): (Trailer, Value)| (trailer.kind() != Kind::Delete).then_some(value);
    // Memtables, then level 0, then the levels below are each newer than what follows, so the first hit is the newest.
    for memory in std::iter::once(&view.active).chain(&view.frozen) {
        if memory.table.is_empty() {
            continue;
        }
        if let Some(found) = memory.table.get(key, seq) {
            engine.meters.count(Count::GetMemtable, 1);
            return Ok(shown(found));
        }
    }
    let mut probes = Probes::default();
    let hash = crate::format::table::hash(table.settings.filter_seed, key);
    for (level, file) in view.version.candidates(key) {
        let probe = |reader: &Arc<TableReader>| reader.get_counted(&mut probes, key, hash, seq);
        let found = engine.readers.with_reader(file, &table.settings, &view.keys, probe)?;
        if let Some(found) = found {
            engine.meters.read(Count::level(level), &probes);
            return Ok(shown(found));
        }
    }
    engine.meters.read(Count::GetAbsent as usize, &probes);
    Ok(None)
}
