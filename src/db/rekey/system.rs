//! The system key's turn: a new generation for the store's own metadata, and the end of the old one.
//!
//! ```text
//! at once         provider asked ─ keys/system replaced (as any key file) ─ manifest: the pin ─ new manifest and CURRENT,
//!                 new log segment, all under the new generation
//! in background   every key file sealed anew, many with one append ─ log segments under the old generation go ─ files of parked
//!                 sections under it are waited for
//! at the end      keys/system staged without the old wrap ─ manifest: the pin without it ─ keys/system replaced ─ manifest: the pin
//! ```
//! What is left to do is read from the headers of the files, which name their generation, as long as the pin has more than one. So a
//! crash leaves nothing to be remembered. Records of the audit trail that were chained under a generation that is gone can be shown
//! and no longer verified.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Change;
use crate::db::catalog::TableState;
use crate::db::{Engine, Store};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::FileName;
use crate::format::Where;
use crate::format::frame::{FileHeader, HEADER_BYTES};
use crate::format::keyfile::{KeyFile, SystemKeyFile};
use crate::format::manifest::{Edit, KeyPin};
use crate::keys::{KeySet, Principal, Rekey, present_master};
use crate::options::MasterKey;
use crate::types::{FileNumber, Generation, Slot, TableId};
use crate::version::system::{pin_of, read_system_file};

/// Key files that are looked at, and sealed anew if need be, at a time.
const GROUP_TABLES: usize = 256;

impl Store {
    /// Begin a new generation of the system key, which seals the store's own metadata: manifest, log envelopes, key files. New files are under it
    /// at once; the others follow in the background, also after the store was reopened, and then the old wrap is erased.
    ///
    /// # Errors
    /// [`Error::TableUpdating`] while another call changes the system key; [`Error::KeyUnavailable`] if the provider refuses: then the directory is as it was.
    /// [`Error::Io`] if something cannot be written.
    pub fn rotate_system_key(&self) -> Result<()> {
        self.keyholder()?.change_system_key(Rekey::NewGeneration, Vec::new())
    }

    /// Wrap the system key anew under the owned master key as the provider names it now: another one than before, or a newer version of the same.
    ///
    /// # Errors
    /// As for [`rotate_system_key`](Store::rotate_system_key), and [`Error::MasterKeyUnavailable`].
    pub fn rewrap_system_key(&self) -> Result<()> {
        self.keyholder()?.change_system_key(Rekey::Rewrap, Vec::new())
    }

    /// How many generations of the system key there are: one, unless a rotation goes on.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn system_key_generations(&self) -> Result<Vec<Generation>> {
        self.handle.check_open()?;
        Ok(self.handle.system_pin().generations.into_iter().map(|(generation, _)| generation).collect())
    }

    /// Wait until the system key has one generation.
    ///
    /// # Errors
    /// Why the work for that last failed; [`Error::Closed`].
    pub fn wait_for_system_rotation(&self) -> Result<()> {
        self.handle.wait_for_system_rotation()
    }
}

impl Engine {
    pub(in crate::db) fn system_pin(&self) -> KeyPin {
        self.manifest.with_state(|state| state.system_key.clone())
    }

    fn system_record(&self) -> Result<KeyFile> {
        Ok(read_system_file(&self.dir, &*self.system.all()?, &self.system_pin())?.record.into_inner())
    }

    /// A new generation of the system key, or its keys wrapped anew. `edits` go into the manifest with it.
    pub(in crate::db) fn change_system_key(self: &Arc<Engine>, rekey: Rekey, edits: Vec<Edit>) -> Result<()> {
        self.check_writable()?;
        let busy = &self.background.changing_system;
        if busy.swap(true, Ordering::AcqRel) {
            return Err(Error::TableUpdating { name: "the system key".to_owned() });
        }
        let outcome = self.try_change_system_key(rekey, edits);
        busy.store(false, Ordering::Release);
        outcome
    }

    fn try_change_system_key(self: &Arc<Engine>, rekey: Rekey, mut edits: Vec<Edit>) -> Result<()> {
        let from = self.system_record()?;
        let present = present_master(&from);
        let owned = match rekey {
            Rekey::NewGeneration => None,
            Rekey::Rewrap | Rekey::Both => Some(self.keys.resolve(&MasterKey::Owned, &Principal::Service)?),
        };
        let Some(master) = owned.or(present) else {
            return Err(Error::WrongKey { table: TableId::SYSTEM, generation: Generation::default() });
        };
        let next = self.keys.successor(&from, &master, rekey, &Principal::Service)?;
        let all = self.system.all()?;
        let keys = all.iter().cloned().chain(next.key.map(Arc::new)).collect();
        let Some(keys) = KeySet::new(keys) else { return Err(Error::Closed) };

        let _creating = self.creating.lock();
        self.check_writable()?;
        let (bytes, tag) = SystemKeyFile::seal(&next.record, keys.current(), self.system_suite, &*self.env.entropy)?;
        let name = FileName::SystemKey;
        self.dir.stage(&name.temporary_path(), &bytes)?;
        self.put_system_file_in_place().map_err(|error| self.poison(error))?;
        edits.insert(0, Edit::SystemKey(pin_of(&next.record, tag)));
        self.manifest.append(edits).map_err(|error| self.poison(error))?;
        let generation = keys.current().generation();
        if rekey != Rekey::Rewrap {
            self.system.replace(keys);
            self.begin_under_present_system_key().map_err(|error| self.poison(error))?;
            self.background.rotate_system();
        }
        self.events.event(&Event::TableRekeyed { table: TableId::SYSTEM, generation });
        Ok(())
    }

    fn put_system_file_in_place(&self) -> Result<()> {
        let name = FileName::SystemKey;
        // The successor's name must be durable before what it succeeds is gone.
        self.dir.sync_dir(&name.directory())?;
        self.dir.overwrite(&[name.path()])?;
        self.dir.rename(&name.temporary_path(), &name.path())?;
        self.dir.sync_dir(&name.directory())
    }

    /// Begin a manifest and a log segment under the present system key.
    fn begin_under_present_system_key(&self) -> Result<()> {
        let number = self.next_file()?;
        self.manifest.rewrite(number)?;
        let mut writer = self.writer.lock();
        let end = self.log.end().segment;
        self.background.let_log_go(end);
        {
            let _preparing = self.preparing.lock();
            self.log.sync(self.log.end())?;
            // The spare has a header already, under the key before.
            if let Some(number) = self.log.retire_open_segments(&mut writer) {
                self.manifest.append(vec![Edit::RemoveSegment { number }])?;
                self.log.remove_segments(&[number]);
            }
        }
        self.prepare_segment()?;
        self.begin_segment(&mut writer)
    }

    /// Do the next part of what a rotation of the system key leaves to be done. True once it is over.
    pub(in crate::db) fn continue_system_rotation(self: &Arc<Engine>, from: &mut Slot) -> Result<Progress> {
        let present = self.system.sealing()?.generation();
        let tables: Vec<Arc<TableState>> = self.catalog.slots_from(*from, GROUP_TABLES);
        if let Some(last) = tables.last() {
            *from = last.slot.next().unwrap_or(last.slot);
            return self.seal_anew(&tables, present).map(|()| Progress::More);
        }
        // Every key file was looked at once. What has few files is asked first, again and again while it is waited for.
        let (segments, parked, key_files) = self.manifest.with_state(|state| {
            let segments: Vec<FileNumber> = state.segments.keys().copied().collect();
            let parked: Vec<FileName> = state.parked.values().map(|record| record.name()).collect();
            let live = state.tables.values().filter(|meta| !meta.record.dropping);
            (segments, parked, live.map(|meta| FileName::KeyFile(meta.record.id)).collect::<Vec<_>>())
        });
        for number in segments.into_iter().rev() {
            if self.is_sealed_before(present, &FileName::Log(number))? {
                self.background.let_log_go(number);
                return Ok(Progress::Waits);
            }
        }
        for name in &parked {
            if self.is_sealed_before(present, name)? {
                return Ok(Progress::Waits);
            }
        }
        for name in &key_files {
            if self.is_sealed_before(present, name)? {
                *from = Slot(0);
                return Ok(Progress::Waits);
            }
        }
        self.erase_old_system_generations(present)
    }

    /// Seal those of the tables' key files anew that are under an older generation.
    fn seal_anew(self: &Arc<Engine>, tables: &[Arc<TableState>], present: Generation) -> Result<()> {
        let (mut changes, mut marks) = (Vec::new(), Vec::new());
        for table in tables {
            let is_old = self.is_sealed_before(present, &FileName::KeyFile(table.id))?;
            // One that is being changed is sealed under the present key by that.
            let Some(mark) = is_old.then(|| self.mark(table).ok()).flatten() else { continue };
            let from = self.read_key_file(table.slot, table.id)?;
            let record = KeyFile { version: from.version + 1, ..from.clone() };
            changes.push(Change { table: table.clone(), from, record, key: None, edits: Vec::new() });
            marks.push(mark);
        }
        match changes.is_empty() {
            true => Ok(()),
            false => self.install_changes(changes, &mut Vec::new()).map(drop),
        }
    }

    /// Whether a file's header names an older generation of the system key. A file that is gone by now is under no key; one that cannot be read
    /// may be under any, and then nothing is erased.
    fn is_sealed_before(&self, present: Generation, name: &FileName) -> Result<bool> {
        let path = name.path();
        let file = match self.dir.open(&path) {
            Err(Error::MissingFile { .. }) => return Ok(false),
            file => file?,
        };
        let mut header = [0; HEADER_BYTES];
        let read = file.read_exact_at(&mut header, 0);
        read.map_err(|error| crate::io::directory::refused("read", &path, error))?;
        Ok(FileHeader::decode(&header, &Where::new(&path, 0))?.generation < present)
    }

    /// Erase the wraps of all generations but the present one: nothing is under them.
    fn erase_old_system_generations(&self, present: Generation) -> Result<Progress> {
        let _creating = self.creating.lock();
        self.check_writable()?;
        if self.background.changing_system.load(Ordering::Acquire) {
            return Ok(Progress::Waits);
        }
        let mut record = self.system_record()?;
        let keys = self.system.all()?;
        if keys.current().generation() != present {
            return Ok(Progress::Waits);
        }
        record.version += 1;
        record.wraps.retain(|wrap| wrap.generation == present);
        let (bytes, tag) = SystemKeyFile::seal(&record, keys.current(), self.system_suite, &*self.env.entropy)?;
        let name = FileName::SystemKey;
        self.dir.stage(&name.temporary_path(), &bytes)?;
        self.dir.sync_dir(&name.directory())?;
        let mut pin = self.system_pin();
        pin.generations.retain(|(generation, _)| *generation == present);
        let pins = |pin| self.manifest.append(vec![Edit::SystemKey(pin)]).map_err(|error| self.poison(error));
        pins(pin)?;
        self.put_system_file_in_place().map_err(|error| self.poison(error))?;
        pins(pin_of(&record, tag))?;
        if let Some(keys) = KeySet::new(vec![keys.current().clone()]) {
            self.system.replace(keys);
        }
        self.events.event(&Event::GenerationsErased { table: TableId::SYSTEM, oldest: present });
        self.advance_anchor();
        Ok(Progress::Over)
    }

    /// Bring to its end what a crash left of a replacement of `keys/system`, told by its temporary name. For the opening.
    pub(in crate::db) fn settle_staged_system_key(&self) -> Result<()> {
        let _creating = self.creating.lock();
        let name = FileName::SystemKey;
        let (system, pin) = (self.system.all()?, self.system_pin());
        let at = |path: &str| crate::version::system::read_system_file_at(&self.dir, &system, &pin, path);
        match (at(&name.path()), at(&name.temporary_path())) {
            // It holds a wrap that the manifest lets go of, or it is half erased.
            (Ok(named), Ok(staged)) if named.record.wraps.len() > pin.generations.len() || !named.both_copies_good => {
                self.put_system_file_in_place().map_err(|error| self.poison(error))?;
                self.pin_system(&staged.record, staged.tag)
            }
            (Ok(_), _) => self.dir.erase(&name.temporary_path()),
            // It was erased, and its successor is what was opened with.
            (Err(_), Ok(staged)) => {
                self.put_system_file_in_place().map_err(|error| self.poison(error))?;
                self.pin_system(&staged.record, staged.tag)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    fn pin_system(&self, record: &KeyFile, tag: crate::crypto::Tag) -> Result<()> {
        let edit = Edit::SystemKey(pin_of(record, tag));
        self.manifest.append(vec![edit]).map(drop).map_err(|error| self.poison(error))
    }
}

/// How far a step of a system key's rotation has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::db) enum Progress {
    /// There is more to do at once.
    More,
    /// Something must go first.
    Waits,
    /// Nothing is under an old generation, and there is none.
    Over,
}
