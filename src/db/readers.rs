//! Open sorted tables: opened at first use, closed when too many are, removed when nobody needs them.
//!
//! ```text
//! TableFile ── reader, while open ── file, shared by all readers of one container
//!    known      every file that some view names
//!    open       those with a reader, in the order of a clock: who was used since its last turn gets another
//!    obsolete   replaced, and perhaps still looked at
//!    shared     how many tables of a container are not gone yet: with the last of them goes the file
//! ```
//! What is removed goes by containers (`sstable/container.rs`): a table that has a file to itself is one in a container of one, and has no entry.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::manifest::FileRecord;
use crate::io::File;
use crate::io::directory::Directory;
use crate::keys::KeySet;
use crate::options::StoreOptions;
use crate::sstable::{self, BlockCache, TableReader, TableSettings};
use crate::types::{FileNumber, Generation, Slot};
use crate::version::{OpenTable, TableFile};

/// Opens sorted tables and keeps at most so many open.
pub(crate) struct Readers {
    dir: Arc<Directory>,
    cache: Arc<BlockCache>,
    open_max: usize,
    mapped: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Every file that some view names, so that a table that was put away and comes back finds the same objects that older
    /// cursors still hold.
    known: HashMap<FileNumber, Weak<TableFile>>,
    /// Files that have a reader, in the order in which they got it or had their last turn.
    open: VecDeque<Weak<TableFile>>,
    /// Files that no view to come will name.
    obsolete: Vec<(Slot, Arc<TableFile>)>,
    /// Containers of several tables.
    shared: HashMap<FileNumber, Share>,
    /// Those of which more than half is dead.
    sparse: BTreeSet<FileNumber>,
}

/// A container of several tables.
#[derive(Default)]
struct Share {
    /// Tables in it that are named, or may still be looked at, and whose they are.
    tables: HashMap<FileNumber, Slot>,
    /// Bytes of these, and of all that the container is known to hold.
    live_bytes: u64,
    bytes: u64,
    /// The file, while a reader has it open.
    file: Option<Weak<dyn File>>,
    /// It could not be carried over.
    stays: bool,
}

impl Share {
    fn add(&mut self, record: &FileRecord, slot: Slot) {
        self.tables.insert(record.number, slot);
        self.live_bytes += record.extent.len_bytes;
        self.bytes = self.bytes.max(record.extent.offset_bytes + record.extent.len_bytes);
    }

    fn is_sparse(&self) -> bool {
        !self.stays && self.live_bytes < self.bytes / 2
    }
}

impl Readers {
    pub(crate) fn new(dir: Arc<Directory>, options: &StoreOptions) -> Readers {
        let (open_max, mapped) = (options.open_tables_max, options.map_tables);
        let cache = BlockCache::new(options.cache_bytes).counting(dir.meters().clone());
        Readers { dir, cache: Arc::new(cache), open_max, mapped, state: Mutex::default() }
    }

    /// The file that the manifest describes so, with its bounds opened.
    pub(crate) fn known(&self, record: &FileRecord, keys: &KeySet) -> Result<Arc<TableFile>> {
        if let Some(file) = self.state.lock().known.get(&record.number).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let key = key_of(record, keys)?;
        let (smallest, largest) = sstable::bounds(key, record, &record.file_name().path())?;
        Ok(self.new_file(TableFile::new(record.clone(), smallest, largest)))
    }

    /// Take in a file that was just written.
    pub(crate) fn new_file(&self, file: TableFile) -> Arc<TableFile> {
        let file = Arc::new(file);
        self.state.lock().known.insert(file.number(), Arc::downgrade(&file));
        file
    }

    /// Look into a file, which is opened if it is not.
    pub(crate) fn with_reader<T>(
        &self,
        file: &Arc<TableFile>,
        settings: &TableSettings,
        keys: &KeySet,
        look: impl FnOnce(&Arc<TableReader>) -> Result<T>,
    ) -> Result<T> {
        match &*file.reader() {
            Some(reader) => {
                file.note_use();
                look(reader)
            }
            None => look(&self.open(file, settings, keys)?),
        }
    }

    /// What opens the files of one table, for cursors and jobs that outlive a call.
    pub(crate) fn opener(self: &Arc<Readers>, settings: &TableSettings, keys: &Arc<KeySet>) -> OpenTable {
        let (readers, settings, keys) = (self.clone(), settings.clone(), keys.clone());
        Arc::new(move |file| readers.with_reader(file, &settings, &keys, |reader| Ok(reader.clone())))
    }

    /// As [`opener`](Readers::opener), for who reads each file once: what is not open is not kept open.
    pub(crate) fn passing_opener(self: &Arc<Readers>, settings: &TableSettings, keys: &Arc<KeySet>) -> OpenTable {
        let (readers, settings, keys) = (self.clone(), settings.clone(), keys.clone());
        Arc::new(move |file| match &*file.reader() {
            Some(reader) => Ok(reader.clone()),
            None => readers.open_reader(file, &settings, &keys),
        })
    }

    fn open_reader(&self, file: &TableFile, settings: &TableSettings, keys: &KeySet) -> Result<Arc<TableReader>> {
        let record = &file.record;
        let name = record.file_name().path();
        let key = key_of(record, keys)?;
        let bytes = self.open_file(record.extent.container, &name)?;
        TableReader::open(bytes, &name, key, record, settings, self.cache.clone())
    }

    /// The file of a container: the one that others have open, if they have.
    fn open_file(&self, container: FileNumber, name: &str) -> Result<Arc<dyn File>> {
        let shared = |share: &Share| share.file.as_ref().and_then(Weak::upgrade);
        if let Some(file) = self.state.lock().shared.get(&container).and_then(shared) {
            return Ok(file);
        }
        let file = if self.mapped { self.dir.open_mapped(name)? } else { self.dir.open(name)? };
        if let Some(share) = self.state.lock().shared.get_mut(&container) {
            share.file = Some(Arc::downgrade(&file));
        }
        Ok(file)
    }

    fn open(&self, file: &Arc<TableFile>, settings: &TableSettings, keys: &KeySet) -> Result<Arc<TableReader>> {
        let reader = self.open_reader(file, settings, keys)?;
        let mut state = self.state.lock();
        // Others may have opened it meanwhile, and it is to have one place among the open ones however many there were.
        if let Some(first) = &*file.reader() {
            return Ok(first.clone());
        }
        file.set_reader(Some(reader.clone()));
        // A place that it still has from before it was closed goes when its turn comes, and each other is passed over once at most before
        // it goes, so this ends.
        while state.open.len() >= self.open_max
            && let Some(oldest) = state.open.pop_front()
        {
            let Some(oldest) = oldest.upgrade().filter(|oldest| !Arc::ptr_eq(oldest, file)) else { continue };
            if oldest.take_use() {
                state.open.push_back(Arc::downgrade(&oldest));
            } else {
                oldest.set_reader(None);
            }
        }
        state.open.push_back(Arc::downgrade(file));
        Ok(reader)
    }

    /// Take in the containers of what the manifest names.
    pub(crate) fn know_containers<'a>(&self, records: impl Iterator<Item = (&'a FileRecord, Slot)>) {
        let mut state = self.state.lock();
        for (record, slot) in records.filter(|(record, _)| record.extent.container != record.number) {
            state.shared.entry(record.extent.container).or_default().add(record, slot);
        }
        let State { shared, sparse, .. } = &mut *state;
        sparse.extend(shared.iter().filter(|(_, share)| share.is_sparse()).map(|(container, _)| *container));
    }

    /// Take in a container that was just written, with the tables in it that the manifest is about to name.
    pub(crate) fn share<'a>(&self, container: FileNumber, tables: impl Iterator<Item = (&'a FileRecord, Slot)>) {
        let mut share = Share::default();
        tables.for_each(|(record, slot)| share.add(record, slot));
        if !share.tables.is_empty() {
            self.state.lock().shared.insert(container, share);
        }
    }

    /// Whether a container is mostly dead.
    pub(crate) fn has_sparse(&self) -> bool {
        !self.state.lock().sparse.is_empty()
    }

    /// A container that is mostly dead, if there is one; it is not given again before more of it is dead, or it is [put back](Readers::put_back).
    pub(crate) fn take_sparse(&self) -> Option<FileNumber> {
        let state = &mut *self.state.lock();
        std::iter::from_fn(|| state.sparse.pop_first())
            .find(|container| state.shared.get(container).is_some_and(Share::is_sparse))
    }

    /// A container that was taken could not be carried over yet: it is given again.
    pub(crate) fn put_back(&self, container: FileNumber) {
        self.state.lock().sparse.insert(container);
    }

    /// A container could not be carried over, and is not tried again.
    pub(crate) fn leave_as_it_is(&self, container: FileNumber) {
        self.state.lock().shared.entry(container).and_modify(|share| share.stays = true);
    }

    /// The tables in a container, and whose they are. Some may be retired already.
    pub(crate) fn tables_in(&self, container: FileNumber) -> Vec<(FileNumber, Slot)> {
        let state = self.state.lock();
        let share = state.shared.get(&container);
        let mut tables: Vec<_> = share.into_iter().flat_map(|share| &share.tables).map(|(n, s)| (*n, *s)).collect();
        tables.sort_unstable();
        tables
    }

    /// Nobody will look at this table any more: its file goes, if nothing else is in it.
    pub(crate) fn remove(&self, record: &FileRecord) {
        let container = record.extent.container;
        {
            let mut state = self.state.lock();
            if let Some(share) = state.shared.get_mut(&container) {
                if share.tables.remove(&record.number).is_some() {
                    share.live_bytes -= record.extent.len_bytes;
                }
                if !share.tables.is_empty() {
                    if share.is_sparse() {
                        state.sparse.insert(container);
                    }
                    return;
                }
                state.shared.remove(&container);
                state.sparse.remove(&container);
            }
        }
        // What cannot be removed now is an orphan that the next open removes.
        let _ = self.dir.remove(&record.file_name().path());
    }

    /// Let go of the readers of a table that leaves memory: of its present files, and of those retired before that somebody still looks at.
    pub(crate) fn close_table(&self, slot: Slot, present: &[FileNumber]) {
        let files: Vec<Arc<TableFile>> = {
            let state = self.state.lock();
            let present = present.iter().filter_map(|number| state.known.get(number)?.upgrade());
            let retired = state.obsolete.iter().filter(|(of, _)| *of == slot).map(|(_, file)| file.clone());
            present.chain(retired).collect()
        };
        files.iter().for_each(|file| file.close());
    }

    /// Let go of every reader: the store is closed.
    pub(crate) fn close_all(&self) {
        let files: Vec<Arc<TableFile>> = {
            let state = self.state.lock();
            let known = state.known.values().filter_map(Weak::upgrade);
            known.chain(state.obsolete.iter().map(|(_, file)| file.clone())).collect()
        };
        files.iter().for_each(|file| file.close());
    }

    /// A file of a table that no view to come will name: it is removed once no view that is left does.
    pub(crate) fn retire(&self, slot: Slot, file: Arc<TableFile>) {
        self.state.lock().obsolete.push((slot, file));
    }

    /// How many files are open, and how many were retired and are still there.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.open.len() as u64, state.obsolete.len() as u64)
    }

    /// Opened blocks.
    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// As [`retire`](Readers::retire), for a file that no view names, by what the manifest said of it.
    pub(crate) fn retire_unshown(&self, slot: Slot, record: &FileRecord) {
        let mut state = self.state.lock();
        match state.known.remove(&record.number).and_then(|file| file.upgrade()) {
            Some(file) => state.obsolete.push((slot, file)),
            None => {
                drop(state);
                self.remove(record);
            }
        }
    }

    /// Generation and length of each retired file of a table that somebody still looks at, or that has not been removed yet.
    pub(crate) fn obsolete_bytes(&self, slot: Slot) -> Vec<(Generation, u64)> {
        let state = self.state.lock();
        let own = state.obsolete.iter().filter(|(of, _)| *of == slot);
        own.map(|(_, file)| (file.record.generation, file.bytes())).collect()
    }

    /// Remove the retired files that nobody looks at any more.
    pub(crate) fn remove_obsolete(&self) {
        let unused: Vec<(Slot, Arc<TableFile>)> = {
            let mut state = self.state.lock();
            // Nobody can get at one that only this list holds, so it stays unused.
            let (unused, used) =
                std::mem::take(&mut state.obsolete).into_iter().partition(|(_, file)| Arc::strong_count(file) == 1);
            state.obsolete = used;
            for (_, file) in &unused {
                // One that was carried to another container is known under its number by another object.
                let is_it = |known: &Weak<TableFile>| Weak::as_ptr(known) == Arc::as_ptr(file);
                if state.known.get(&file.number()).is_some_and(is_it) {
                    state.known.remove(&file.number());
                }
            }
            state.open.retain(|file| file.strong_count() > 0);
            unused
        };
        for (_, file) in unused {
            file.close();
            self.remove(&file.record);
        }
    }
}

fn key_of<'a>(record: &FileRecord, keys: &'a KeySet) -> Result<&'a crate::crypto::TableKey> {
    let table = keys.current().table();
    let missing = Error::WrongKey { table, generation: record.generation };
    keys.generation(record.generation).map(|key| &**key).ok_or(missing)
}

#[cfg(test)]
mod tests;
