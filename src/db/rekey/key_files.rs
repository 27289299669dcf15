//! Key files: read against their pins, replaced, erased.
//!
//! A replacement leaves no older wrap behind where the medium overwrites in place: the file is overwritten before its successor,
//! durable under its temporary name by then, takes its name. See the module above for the order, and for what a crash leaves.
//!
//! Whoever replaces a key file holds [`Engine`]'s `creating` lock, under which nobody waits: no provider is asked meanwhile, and what
//! can be written ahead was. The temporary name of a table's key file is written to by whoever has marked the table as `changing`, under
//! that lock, or by whoever holds the lock and finds it unmarked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::crypto::{TableKey, Tag};
use crate::db::Engine;
use crate::db::catalog::{TableState, View};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::FileName;
use crate::format::keyfile::{KeyFile, OpenedKeyFile};
use crate::format::manifest::{Edit, KeyPin};
use crate::io::directory::Directory;
use crate::io::{Signal, Step, Task};
use crate::keys::KeySet;
use crate::types::{FileKind, Slot, TableId};
use crate::version::system::{Pinned, pin_of, read_key_file, read_named_key_file, read_staged_key_file};

/// Tasks among which provider calls and syncs for many tables are shared out. A provider that answers in 10 ms then gives 1,600 answers a second.
const PARALLEL: usize = 16;

/// A key file that is to replace the pinned one.
pub(in crate::db) struct Change {
    pub(in crate::db) table: Arc<TableState>,
    /// What it was made from.
    pub(in crate::db) from: KeyFile,
    pub(in crate::db) record: KeyFile,
    /// The key of a new generation.
    pub(in crate::db) key: Option<Arc<TableKey>>,
    /// What goes into the manifest beside the pin.
    pub(in crate::db) edits: Vec<Edit>,
}

impl Engine {
    /// A table's key file, checked against its pin. What a crash left half done is brought to its end first.
    pub(in crate::db) fn read_key_file(&self, slot: Slot, table: TableId) -> Result<KeyFile> {
        let found = self.look_at_key_file(slot, table);
        let opened = match found {
            Ok((opened, Pinned::Same)) => opened,
            // Or somebody is replacing it just now: then it is looked at again when he is done.
            _ => {
                let _creating = self.creating.lock();
                self.settle_key_file(slot, table)?
            }
        };
        if !opened.both_copies_good {
            self.events.event(&Event::KeyFileCopyDamaged { file: FileName::KeyFile(table).path() });
        }
        Ok(opened.record.into_inner())
    }

    fn look_at_key_file(&self, slot: Slot, table: TableId) -> Result<(OpenedKeyFile, Pinned)> {
        read_key_file(&self.dir, &*self.system.all()?, table, &self.key_pin(slot, table)?)
    }

    fn key_pin(&self, slot: Slot, table: TableId) -> Result<KeyPin> {
        self.manifest.with_state(|state| state.pin(slot).cloned()).ok_or(Error::TableDropped { table })
    }

    /// Pin a key file that is ahead of its pin, and give it its name if it has not got it. The caller holds `creating`.
    pub(in crate::db) fn settle_key_file(&self, slot: Slot, table: TableId) -> Result<OpenedKeyFile> {
        let (opened, pinned) = self.look_at_key_file(slot, table)?;
        // A store that may not be written seals nothing under what is not pinned either.
        if pinned == Pinned::Same || self.check_writable().is_err() {
            return Ok(opened);
        }
        if pinned == Pinned::Staged {
            self.put_in_place(table).map_err(|error| self.poison(error))?;
        }
        self.pin(slot, &opened.record, opened.tag, Vec::new())?;
        if let Some(table) = self.catalog.of_slot(slot) {
            self.background.note_rotation(&table, &opened.record);
        }
        Ok(opened)
    }

    /// Bring to its end what a crash left of a key file's replacement, told by its temporary name. For the opening, when nobody else is at it.
    pub(in crate::db) fn settle_staged(&self, slot: Slot, table: TableId) -> Result<()> {
        let _creating = self.creating.lock();
        let pin = self.key_pin(slot, table)?;
        let system = self.system.all()?;
        let staged = read_staged_key_file(&self.dir, &system, table, &pin);
        let named = read_named_key_file(&self.dir, &system, table, &pin);
        match (named, staged) {
            // It holds a wrap that the manifest lets go of, or it is half erased: its successor is to take its place.
            (Ok((named, Pinned::Same)), Some((staged, _)))
                if named.record.wraps.len() > pin.generations.len() || !named.both_copies_good =>
            {
                self.put_in_place(table).map_err(|error| self.poison(error))?;
                self.pin(slot, &staged.record, staged.tag, Vec::new())?;
                let table = self.catalog.of_slot(slot);
                table.iter().for_each(|table| self.background.note_rotation(table, &staged.record));
                Ok(())
            }
            // Nothing depends on the staged one yet.
            (Ok(_), _) => erase_named(&self.dir, &FileName::KeyFile(table).temporary_path(), table),
            (Err(_), Some(_)) => self.settle_key_file(slot, table).map(drop),
            // Neither opens. Nothing is removed because a key file is damaged; the table's first use says so.
            (Err(_), None) => Ok(()),
        }
    }

    /// Erase a key file and give its name to the one that is staged.
    fn put_in_place(&self, table: TableId) -> Result<()> {
        let name = FileName::KeyFile(table);
        self.dir.overwrite(&[name.path()])?;
        self.dir.rename(&name.temporary_path(), &name.path())?;
        self.dir.sync_dir(&name.directory())
    }

    fn pin(&self, slot: Slot, record: &KeyFile, tag: Tag, mut edits: Vec<Edit>) -> Result<()> {
        edits.insert(0, Edit::TableKey { slot, key: pin_of(record, tag), master: record.master });
        self.manifest.append(edits).map(drop).map_err(|error| self.poison(error))
    }

    /// Replace the key files of many tables and use the new generations. `others` are edits that go into the manifest with the first of them. All of them, with one append to the manifest; those whose
    /// pinned key file is not the one that the change was made from any more are given back, unchanged. The caller has marked the tables as `changing`.
    ///
    /// # Errors
    /// If the next key files cannot be written, nothing was changed. Any other error poisons the store.
    pub(in crate::db) fn install_changes(
        self: &Arc<Engine>,
        changes: Vec<Change>,
        others: &mut Vec<Edit>,
    ) -> Result<Vec<Change>> {
        let changes = Arc::new(changes);
        let tags = match self.stage(&changes) {
            Ok(tags) => tags,
            Err(error) => {
                self.unstage(&changes);
                return Err(error);
            }
        };
        let changes = Arc::into_inner(changes).unwrap_or_default();
        let creating = self.creating.lock();
        if let Err(error) = self.check_writable() {
            self.unstage(&changes);
            return Err(error);
        }
        let follows = |change: &Change| {
            !change.table.is_dropped()
                && self
                    .key_pin(change.table.slot, change.table.id)
                    .is_ok_and(|pin| pin.version + 1 == change.record.version)
        };
        let (staged, stale): (Vec<_>, Vec<_>) = changes.into_iter().zip(tags).partition(|(change, _)| follows(change));
        let stale = Vec::from_iter(stale.into_iter().map(|(change, _)| change));
        self.unstage(&stale);
        if staged.is_empty() {
            return Ok(stale);
        }
        let (changes, tags): (Vec<Change>, Vec<Tag>) = staged.into_iter().unzip();
        self.put_all_in_place(&changes).map_err(|error| self.poison(error))?;
        let mut edits = std::mem::take(others);
        for (change, tag) in changes.iter().zip(tags) {
            let (slot, record) = (change.table.slot, &change.record);
            edits.push(Edit::TableKey { slot, key: pin_of(record, tag), master: record.master });
            edits.extend(change.edits.iter().cloned());
        }
        self.manifest.append(edits).map_err(|error| self.poison(error))?;
        for change in changes.iter() {
            self.note_master_keys(change.table.slot, Some(&change.record));
            if let Some(key) = &change.key {
                self.use_generation(&change.table, key);
            }
        }
        drop(creating);
        for change in changes.iter() {
            self.suspect_grants(&change.from);
            if change.from.wraps == change.record.wraps {
                continue;
            }
            let generation = change.record.wraps.last().map(|wrap| wrap.generation).unwrap_or_default();
            self.events.event(&Event::TableRekeyed { table: change.table.id, generation });
            self.background.note_rotation(&change.table, &change.record);
        }
        self.advance_anchor();
        Ok(stale)
    }

    /// Write the next key files under their temporary names, durably; their tags.
    fn stage(self: &Arc<Engine>, changes: &Arc<Vec<Change>>) -> Result<Vec<Tag>> {
        let (engine, of) = (self.clone(), changes.clone());
        let staged = self.share_out(changes.len(), move |index| engine.stage_one(&of[index].record));
        let tags = staged.into_iter().collect::<Result<Vec<Tag>>>()?;
        self.sync_key_directories(changes)?;
        Ok(tags)
    }

    pub(super) fn stage_one(&self, record: &KeyFile) -> Result<Tag> {
        let (bytes, tag) = record.seal(&*self.system.sealing()?, self.system_suite, &*self.env.entropy)?;
        self.meters.sealed(FileKind::KeyFile, 1, bytes.len() as u64);
        self.dir.stage(&FileName::KeyFile(record.table).temporary_path(), &bytes)?;
        Ok(tag)
    }

    /// Remove what was staged and that nobody knows of yet.
    fn unstage(&self, changes: &[Change]) {
        for change in changes {
            // What stays is removed, or erased, by the next open.
            let _ = self.dir.erase(&FileName::KeyFile(change.table.id).temporary_path());
        }
    }

    fn put_all_in_place(&self, changes: &[Change]) -> Result<()> {
        let names = || changes.iter().map(|change| FileName::KeyFile(change.table.id));
        self.dir.overwrite(&Vec::from_iter(names().map(|name| name.path())))?;
        names().try_for_each(|name| self.dir.rename(&name.temporary_path(), &name.path()))?;
        self.sync_key_directories(changes)
    }

    fn sync_key_directories(&self, changes: &[Change]) -> Result<()> {
        let names: BTreeSet<String> =
            changes.iter().map(|change| FileName::KeyFile(change.table.id).directory()).collect();
        names.iter().try_for_each(|name| self.dir.sync_dir(name))
    }

    /// Seal what comes from now on under this generation of a table's key, which is pinned. What is in memory is frozen: its log sections are
    /// under the generation before.
    fn use_generation(&self, table: &Arc<TableState>, key: &Arc<TableKey>) {
        let mut writer = self.writer.lock();
        self.freeze(table);
        let structure = table.structure.lock();
        let with = |keys: &KeySet| KeySet::new(keys.iter().cloned().chain([key.clone()]).collect()).map(Arc::new);
        let view = table.view.load_owned();
        let held = view.as_ref().map(|view| view.keys.clone()).or_else(|| table.lease.material());
        let keys = held.and_then(|keys| with(&keys));
        if let Some(keys) = keys {
            table.lease.replace(&keys);
            if let Some(view) = view {
                table.publisher().show(Some(View { keys, ..View::clone(&view) }));
            }
        }
        // A sealer that is kept is the old generation's.
        writer.forget(table.slot);
        drop(structure);
    }

    /// Replace a table's key file by one without the wraps of generations that nothing is under any more. The caller holds `creating`, has
    /// found the table unmarked, and `unpin` makes the edit that lets go of them durable, unless it finds something under them.
    pub(in crate::db) fn erase_wraps(
        &self,
        table: &TableState,
        record: &KeyFile,
        unpin: impl FnOnce(Edit) -> Result<bool>,
    ) -> Result<bool> {
        let name = FileName::KeyFile(table.id);
        let mut pin = self.key_pin(table.slot, table.id)?;
        let staged = self.stage_one(record).and_then(|tag| self.dir.sync_dir(&name.directory()).map(|()| tag));
        pin.generations.retain(|(generation, _)| record.wrap(*generation).is_some());
        let edit = Edit::TableKey { slot: table.slot, key: pin, master: record.master };
        let tag = match staged.and_then(|tag| Ok(unpin(edit)?.then_some(tag))) {
            Ok(Some(tag)) => tag,
            outcome => {
                // If the manifest may say so already, the staged file must stay.
                if self.poison.get().is_none() {
                    let _ = self.dir.remove_if_there(&name.temporary_path());
                }
                return outcome.map(|_| false);
            }
        };
        self.put_in_place(table.id).map_err(|error| self.poison(error))?;
        self.pin(table.slot, record, tag, Vec::new())?;
        self.note_master_keys(table.slot, Some(record));
        Ok(true)
    }

    /// A table's key file, with what a crash left of a replacement brought to its end. The caller holds `creating`.
    pub(in crate::db) fn settled_key_file(&self, table: &TableState) -> Result<KeyFile> {
        Ok(self.settle_key_file(table.slot, table.id)?.record.into_inner())
    }

    /// Do `work` for each number below `count`, on a few tasks at once, and wait for all of them. No lock may be held.
    pub(super) fn share_out<T: Send + 'static>(
        &self,
        count: usize,
        work: impl Fn(usize) -> T + Send + Sync + 'static,
    ) -> Vec<T> {
        if count <= 2 {
            return (0..count).map(work).collect();
        }
        let shared = Arc::new(Shared {
            work: Box::new(work),
            next: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            done: Mutex::new((0..count).map(|_| None).collect()),
            over: Signal::new(),
        });
        let mut joins = Vec::new();
        for _ in 0..PARALLEL.min(count / 2) {
            shared.live.fetch_add(1, Ordering::SeqCst);
            let share = Share { of: shared.clone(), count };
            // Where there are no threads to be had, those that there are do more, or the caller does all.
            joins.extend(self.env.scheduler.spawn("strongroom-keys", Box::new(share)).ok());
        }
        self.env
            .scheduler
            .wait_until(&shared.over, &*self.env.clock, None, &mut || shared.live.load(Ordering::SeqCst) == 0);
        joins.iter().for_each(|join| drop(join.join()));
        let done = std::mem::take(&mut *shared.done.lock());
        done.into_iter().enumerate().map(|(index, done)| done.unwrap_or_else(|| (shared.work)(index))).collect()
    }
}

/// Work that several tasks share.
struct Shared<T> {
    work: Box<dyn Fn(usize) -> T + Send + Sync>,
    next: AtomicUsize,
    /// Tasks that are not over.
    live: AtomicUsize,
    done: Mutex<Vec<Option<T>>>,
    over: Signal,
}

struct Share<T> {
    of: Arc<Shared<T>>,
    count: usize,
}

impl<T: Send> Task for Share<T> {
    fn step(&mut self) -> Step {
        let index = self.of.next.fetch_add(1, Ordering::SeqCst);
        if index >= self.count {
            return Step::Done;
        }
        let done = (self.of.work)(index);
        self.of.done.lock()[index] = Some(done);
        Step::Again
    }
}

impl<T> Drop for Share<T> {
    fn drop(&mut self) {
        self.of.live.fetch_sub(1, Ordering::SeqCst);
        self.of.over.raise();
    }
}

/// Overwrite and remove a table's key file, and what is staged to follow it, durably. Doing it twice is fine.
pub(in crate::db) fn erase_key_file(dir: &Directory, table: TableId) -> Result<()> {
    let name = FileName::KeyFile(table);
    dir.erase(&name.path())?;
    erase_named(dir, &name.temporary_path(), table)
}

fn erase_named(dir: &Directory, path: &str, table: TableId) -> Result<()> {
    dir.erase(path)?;
    dir.sync_dir(&FileName::KeyFile(table).directory())
}
