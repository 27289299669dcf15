//! An immutable picture of a table's sorted files: which exist, and at which level.
//!
//! ```text
//! level 0    files may overlap; newest first          [c ....... q]
//!                                                  [a .......... p]
//! level 1    sorted, disjoint                     [a..d][e....k][m..z]
//! ...
//! level 6    sorted, disjoint                     [a.][b..c][d...f][h..k][l.....z]
//! ```
//!
//! # Invariants
//! 1. Of one key, every version at a level is newer than every version at a deeper level.
//! 2. Of two files of level 0 that overlap, all of one is newer than all of the other: a key's versions in them do not
//!    interleave. So the first file, newest first, that holds a key visible to a reader holds the newest such version.
//! 3. In deeper levels no two files overlap: all versions of a key within one level are in one file.
//!
//! [`Version::apply`] checks 2 and 3 whenever it makes a picture; a manifest that states otherwise contradicts itself.
//! 1 cannot be seen from bounds; it is kept by [`compaction`](crate::compaction), which says how.
//!
//! From these follows how a key is looked up: at level 0 in every file whose bounds include it, newest first, then in
//! at most one file per level, and the first version found is the newest. Files are compared by the first eight bytes of their
//! largest keys, which lie in one array per level, before any key is touched.
//!
//! Pictures share the levels that did not change. What is at a place but not in a picture yet (files being
//! written) is no concern of this part, nor is when a file that no picture names any more is deleted: `db` keeps a
//! [`TableFile`] until the last picture that names it is gone.

mod level;
pub(crate) mod manifest;
pub(crate) mod state;
pub(crate) mod system;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::format::manifest::FileRecord;
use crate::sstable::TableReader;
use crate::types::{FileNumber, LEVELS, UserKey};

pub(crate) use level::{LevelCursor, OpenTable};

/// One sorted file of a table, wherever it stands.
pub(crate) struct TableFile {
    /// What the manifest says about it.
    pub(crate) record: FileRecord,
    /// Its first user key.
    pub(crate) smallest: UserKey,
    /// Its last user key.
    pub(crate) largest: UserKey,
    reader: ArcSwapOption<TableReader>,
    /// Readers that were let go of here while somebody had them still: what they keep in the cache has to go with the rest.
    former: Mutex<Vec<Weak<TableReader>>>,
    /// Whether its reader was used since that was last asked.
    used: AtomicBool,
}

impl TableFile {
    /// The file with this record and the bounds that its record carries sealed.
    pub(crate) fn new(record: FileRecord, smallest: UserKey, largest: UserKey) -> TableFile {
        let (reader, former, used) = (ArcSwapOption::empty(), Mutex::default(), AtomicBool::new(false));
        TableFile { record, smallest, largest, reader, former, used }
    }

    /// The file's number.
    pub(crate) fn number(&self) -> FileNumber {
        self.record.number
    }

    /// The file's length.
    pub(crate) fn bytes(&self) -> u64 {
        self.record.extent.len_bytes
    }

    /// Whether some key from `smallest` to `largest`, both included, may be in it.
    pub(crate) fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        *self.smallest <= *largest && *smallest <= *self.largest
    }

    /// The open reader, if there is one. Pinned without a shared count: meant for the length of one read.
    pub(crate) fn reader(&self) -> arc_swap::Guard<Option<Arc<TableReader>>> {
        self.reader.load()
    }

    /// Note that the reader was used. Writes nothing if that is known already, so that readers share the line of memory.
    #[inline]
    pub(crate) fn note_use(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the reader was used since this was last asked.
    pub(crate) fn take_use(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Keep a reader, or with `None` let it go once its last reads have ended.
    pub(crate) fn set_reader(&self, reader: Option<Arc<TableReader>>) {
        let Some(before) = self.reader.swap(reader) else { return };
        if Arc::strong_count(&before) > 1 {
            let mut former = self.former.lock();
            former.retain(|reader| reader.strong_count() > 0);
            former.push(Arc::downgrade(&before));
        }
    }

    /// Let the reader go, and all blocks that any reader of this file keeps in the cache.
    pub(crate) fn close(&self) {
        // One that nobody else has empties its slots as it goes.
        self.set_reader(None);
        self.former.lock().iter().filter_map(Weak::upgrade).for_each(|reader| reader.purge());
    }
}

impl fmt::Debug for TableFile {
    /// The number alone: bounds are keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableFile({}, {} bytes)", self.number(), self.bytes())
    }
}

/// One step from a picture to the next.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The file stands at this level from now on.
    Add {
        /// The level.
        level: usize,
        /// The file.
        file: Arc<TableFile>,
    },
    /// The file does not stand at this level any more.
    Remove {
        /// The level.
        level: usize,
        /// The file.
        number: FileNumber,
    },
}

/// Why changes do not lead from one picture to another. Either the manifest was made by something else
/// than this engine, or the engine is wrong; in both cases going on would lose data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Contradiction {
    /// There is no such level.
    #[error("a file at a level that does not exist")]
    NoSuchLevel,
    /// What is to be removed is not there.
    #[error("a file is removed from a level where it does not stand")]
    NotThere(FileNumber),
    /// One file stands twice.
    #[error("a file stands at two places")]
    Twice(FileNumber),
    /// A file's smallest key is behind its largest.
    #[error("a file's bounds are reversed")]
    Reversed(FileNumber),
    /// Two files of a sorted level share keys.
    #[error("two files of one level overlap")]
    Overlap(FileNumber, FileNumber),
    /// Two files of level 0 share keys, and neither is newer.
    #[error("of two overlapping files of level 0 neither is newer")]
    Interleaved(FileNumber, FileNumber),
}

impl Contradiction {
    /// The contradiction as an error about the manifest that states it.
    pub(crate) fn in_file(self, file: &str, offset_bytes: u64) -> Error {
        let detail = match self {
            Contradiction::NoSuchLevel => "it names a level that does not exist",
            Contradiction::NotThere(_) => "it removes a file from a level where the file does not stand",
            Contradiction::Twice(_) => "it names a file at two places",
            Contradiction::Reversed(_) => "it names a file whose bounds are reversed",
            Contradiction::Overlap(..) => "it names two files of one level that overlap",
            Contradiction::Interleaved(..) => "it names overlapping files of level 0 of which neither is newer",
        };
        Error::Tampered { file: file.to_owned(), offset_bytes, detail }
    }
}

/// Which files a table consists of.
#[derive(Clone)]
pub(crate) struct Version {
    levels: [Arc<Level>; LEVELS],
}

/// The files of one level.
#[derive(Default)]
struct Level {
    files: Vec<Arc<TableFile>>,
    /// First eight bytes of each file's largest key: plaintext, as the key is.
    heads: Zeroizing<Vec<u64>>,
    bytes: u64,
}

impl Version {
    /// No files.
    pub(crate) fn empty() -> Version {
        let level = Arc::new(Level::default());
        Version { levels: std::array::from_fn(|_| level.clone()) }
    }

    /// The picture after `changes`. Their order does not matter, so a file may move between levels.
    pub(crate) fn apply(&self, changes: &[Change]) -> Result<Version, Contradiction> {
        let level_of = |change: &Change| match change {
            Change::Add { level, .. } | Change::Remove { level, .. } => *level,
        };
        if changes.iter().any(|change| level_of(change) >= LEVELS) {
            return Err(Contradiction::NoSuchLevel);
        }
        let mut next = self.clone();
        for (level, place) in next.levels.iter_mut().enumerate() {
            let mut own = changes.iter().filter(|change| level_of(change) == level).peekable();
            if own.peek().is_some() {
                *place = Arc::new(place.changed(level == 0, own)?);
            }
        }
        next.check_numbers()?;
        Ok(next)
    }

    /// Files of a level: by key, but level 0 newest first.
    pub(crate) fn files(&self, level: usize) -> &[Arc<TableFile>] {
        self.levels.get(level).map_or(&[], |level| &level.files)
    }

    /// All files with their levels, from the top.
    pub(crate) fn all_files(&self) -> impl Iterator<Item = (usize, &Arc<TableFile>)> {
        self.levels.iter().enumerate().flat_map(|(level, files)| files.files.iter().map(move |file| (level, file)))
    }

    /// Bytes of all files of a level.
    pub(crate) fn level_bytes(&self, level: usize) -> u64 {
        self.levels.get(level).map_or(0, |level| level.bytes)
    }

    /// Bytes of all files.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| level.bytes).sum()
    }

    /// Entries of all files, deletes and old versions counted.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn entries(&self) -> u64 {
        self.all_files().map(|(_, file)| file.record.entries).sum()
    }

    /// Whether there are no files.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.files.is_empty())
    }

    /// The files that may hold `key`, in the order in which the first version found is the newest.
    pub(crate) fn candidates<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (usize, &'a Arc<TableFile>)> {
        let head = key_head(key);
        let zero = self.levels[0].files.iter().filter(move |file| file.overlaps(key, key)).map(|file| (0, file));
        let below = self.levels.iter().enumerate().skip(1);
        zero.chain(below.filter_map(move |(number, level)| Some((number, level.find(head, key)?))))
    }

    /// The files of a level that may hold a key from `smallest` to `largest`, both included.
    pub(crate) fn overlapping(&self, level: usize, smallest: &[u8], largest: &[u8]) -> Vec<Arc<TableFile>> {
        match level {
            0 => self.levels[0].files.iter().filter(|file| file.overlaps(smallest, largest)).cloned().collect(),
            _ => self.levels.get(level).map_or_else(Vec::new, |level| level.overlapping(smallest, largest).to_vec()),
        }
    }

    /// Which files of a sorted level may hold a key from `lower`, included, to `upper`, not included; no limit where there is none.
    pub(crate) fn between(&self, level: usize, lower: Option<&[u8]>, upper: Option<&[u8]>) -> Range<usize> {
        let Some(level) = self.levels.get(level) else { return 0..0 };
        let start = lower.map_or(0, |lower| level.first_reaching(key_head(lower), lower));
        let end = upper.map_or(level.files.len(), |upper| level.files.partition_point(|file| *file.smallest < *upper));
        start..end.max(start)
    }

    /// Index of the first file of a sorted level whose largest key is at or after `key`.
    pub(crate) fn first_reaching(&self, level: usize, key: &[u8]) -> usize {
        self.levels.get(level).map_or(0, |level| level.first_reaching(key_head(key), key))
    }

    /// Whether a level may hold a key from `smallest` to `largest`, both included.
    pub(crate) fn overlaps(&self, level: usize, smallest: &[u8], largest: &[u8]) -> bool {
        match level {
            0 => self.levels[0].files.iter().any(|file| file.overlaps(smallest, largest)),
            _ => self.levels.get(level).is_some_and(|level| !level.overlapping(smallest, largest).is_empty()),
        }
    }

    fn check_numbers(&self) -> Result<(), Contradiction> {
        let mut numbers: Vec<FileNumber> = self.all_files().map(|(_, file)| file.number()).collect();
        numbers.sort_unstable();
        match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Contradiction::Twice(pair[0])),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.levels.iter().map(|level| &level.files)).finish()
    }
}

impl Level {
    fn changed<'a>(&self, is_zero: bool, changes: impl Iterator<Item = &'a Change>) -> Result<Level, Contradiction> {
        let (mut files, mut added) = (self.files.clone(), Vec::new());
        let mut removed = Vec::new();
        for change in changes {
            match change {
                Change::Add { file, .. } if file.smallest > file.largest => {
                    return Err(Contradiction::Reversed(file.number()));
                }
                Change::Add { file, .. } => added.push(file.clone()),
                Change::Remove { number, .. } => removed.push(*number),
            }
        }
        removed.sort_unstable();
        let before = files.len();
        files.retain(|file| removed.binary_search(&file.number()).is_err());
        if before - files.len() != removed.len() {
            let is_there = |number: &FileNumber| self.files.iter().any(|file| file.number() == *number);
            let missing = removed.iter().find(|number| !is_there(number)).or(removed.first());
            return Err(Contradiction::NotThere(missing.copied().unwrap_or_default()));
        }
        files.append(&mut added);
        if is_zero {
            files.sort_by_key(|file| std::cmp::Reverse((file.record.max_seq, file.number())));
            check_ages(&files)?;
        } else {
            files.sort_by(|a, b| a.smallest.cmp(&b.smallest));
            if let Some(pair) = files.windows(2).find(|pair| pair[0].largest >= pair[1].smallest) {
                return Err(Contradiction::Overlap(pair[0].number(), pair[1].number()));
            }
        }
        Ok(Level {
            heads: Zeroizing::new(files.iter().map(|file| key_head(&file.largest)).collect()),
            bytes: files.iter().map(|file| file.bytes()).sum(),
            files,
        })
    }

    /// Index of the first file of a sorted level whose largest key is at or after `key`.
    fn first_reaching(&self, head: u64, key: &[u8]) -> usize {
        let start = self.heads.partition_point(|own| *own < head);
        // Keys with a long prefix in common have equal heads, all of them perhaps.
        let equal = self.heads[start..].partition_point(|own| *own == head);
        start + self.files[start..start + equal].partition_point(|file| *file.largest < *key)
    }

    fn find(&self, head: u64, key: &[u8]) -> Option<&Arc<TableFile>> {
        let file = self.files.get(self.first_reaching(head, key))?;
        (*file.smallest <= *key).then_some(file)
    }

    fn overlapping(&self, smallest: &[u8], largest: &[u8]) -> &[Arc<TableFile>] {
        let rest = &self.files[self.first_reaching(key_head(smallest), smallest)..];
        &rest[..rest.partition_point(|file| *file.smallest <= *largest)]
    }
}

/// Invariant 2, for files sorted newest first.
fn check_ages(files: &[Arc<TableFile>]) -> Result<(), Contradiction> {
    for (i, newer) in files.iter().enumerate() {
        for older in &files[i + 1..] {
            if older.record.max_seq >= newer.record.min_seq && older.overlaps(&newer.smallest, &newer.largest) {
                return Err(Contradiction::Interleaved(newer.number(), older.number()));
            }
        }
    }
    Ok(())
}

/// The first eight bytes of a key as a number that compares as they do, padded with zeros.
fn key_head(key: &[u8]) -> u64 {
    crate::format::block::head(key)
}
