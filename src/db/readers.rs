//! Open sorted tables: opened at first use, closed when too many are, removed when nobody needs them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::manifest::FileRecord;
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
    /// Files that have a reader, in the order in which they got it.
    open: VecDeque<Weak<TableFile>>,
    /// Files that no view to come will name.
    obsolete: Vec<(Slot, Arc<TableFile>)>,
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
        let (smallest, largest) = sstable::bounds(key, record, &FileName::Table(record.number).path())?;
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
            Some(reader) => look(reader),
            None => look(&self.open(file, settings, keys)?),
        }
    }

    /// What opens the files of one table, for cursors and jobs that outlive a call.
    pub(crate) fn opener(self: &Arc<Readers>, settings: &TableSettings, keys: &Arc<KeySet>) -> OpenTable {
        let (readers, settings, keys) = (self.clone(), settings.clone(), keys.clone());
        Arc::new(move |file| readers.with_reader(file, &settings, &keys, |reader| Ok(reader.clone())))
    }

    fn open(&self, file: &Arc<TableFile>, settings: &TableSettings, keys: &KeySet) -> Result<Arc<TableReader>> {
        let record = &file.record;
        let name = FileName::Table(record.number).path();
        let key = key_of(record, keys)?;
        let data = if self.mapped { self.dir.open_mapped(&name)? } else { self.dir.open(&name)? };
        let reader = TableReader::open(data, &name, key, record, settings, self.cache.clone())?;
        file.set_reader(Some(reader.clone()));
        let mut state = self.state.lock();
        state.open.push_back(Arc::downgrade(file));
        while state.open.len() > self.open_max {
            if let Some(oldest) = state.open.pop_front().and_then(|file| file.upgrade())
                && !Arc::ptr_eq(&oldest, file)
            {
                oldest.set_reader(None);
            }
        }
        Ok(reader)
    }

    /// Let go of a file's reader and of its blocks in the cache.
    pub(crate) fn close(&self, file: &TableFile) {
        if let Some(reader) = &*file.reader() {
            reader.purge();
        }
        file.set_reader(None);
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
                let file: &Arc<TableFile> = file;
                state.known.remove(&file.number());
            }
            state.open.retain(|file| file.strong_count() > 0);
            unused
        };
        for (_, file) in unused {
            self.close(&file);
            // What cannot be removed now is an orphan that the next open removes.
            let _ = self.dir.remove(&FileName::Table(file.number()).path());
        }
    }
}

fn key_of<'a>(record: &FileRecord, keys: &'a KeySet) -> Result<&'a crate::crypto::TableKey> {
    let table = keys.current().table();
    let missing = Error::WrongKey { table, generation: record.generation };
    keys.generation(record.generation).map(|key| &**key).ok_or(missing)
}
