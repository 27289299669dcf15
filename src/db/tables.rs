//! How tables come and go.
//!
//! ```text
//! create   provider asked ─ key files written and synced ─ one manifest append ─ known
//! drop     DROPPING in the manifest ─ key file overwritten, synced, unlinked, directory synced ─ files unlinked ─ forgotten
//! ```
//! A provider that refuses leaves the directory as it was. A crash between two steps of a creation leaves key files that
//! nobody names, which the next open sets aside; a crash within a drop is carried on by the next open.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::Engine;
use super::catalog::{TableState, Unreplayed};
use super::trail::Begun;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::FileName;
use crate::format::keyfile::{KeyFile, KeyState};
use crate::format::manifest::{Edit, KeyPin, TableRecord};
use crate::io::directory::Directory;
use crate::keys::{NewKey, Principal, TableLease};
use crate::options::TableOptions;
use crate::types::{Generation, Slot, TABLE_NAME_BYTES_MAX, TableId};
use crate::version::system;

/// A table that is about to exist.
struct Draft {
    record: TableRecord,
    key: NewKey,
    key_file: KeyFile,
}

impl Engine {
    /// Make tables: all or none. `begun` gets those that got so far that they have an id.
    pub(super) fn create_tables(
        &self,
        tables: &[(&str, TableOptions)],
        creator: &Principal,
        begun: &mut Vec<Begun>,
    ) -> Result<Vec<Arc<TableState>>> {
        self.check_writable()?;
        let mut names = HashSet::new();
        for (name, options) in tables {
            check_name(name)?;
            options.validate()?;
            if self.catalog.contains(name) || !names.insert(*name) {
                return Err(Error::TableExists { name: (*name).to_owned() });
            }
        }
        // The provider is asked for everything before anything is written.
        let mut drafts = Vec::with_capacity(tables.len());
        for (name, options) in tables {
            drafts.push(self.draft(name, options, creator, begun)?);
        }
        let creating = self.creating.lock();
        // Nor may the store have been closed meanwhile: somebody else may have opened it.
        self.check_writable()?;
        // Somebody else may have created one of them while the provider was asked.
        if let Some((name, _)) = tables.iter().find(|(name, _)| self.catalog.contains(name)) {
            return Err(Error::TableExists { name: (*name).to_owned() });
        }
        let written = self.write_key_files(&mut drafts).and_then(|()| {
            let edits = drafts.iter().map(|draft| Edit::CreateTable(Box::new(draft.record.clone()))).collect();
            self.manifest.append(edits).map_err(|error| self.poison(error))
        });
        if let Err(error) = written {
            // Whether the manifest names them is not known if its append failed; then they must stay.
            if self.poison.get().is_none() {
                drafts.iter().for_each(|draft| drop(self.dir.remove(&FileName::KeyFile(draft.record.id).path())));
            }
            return Err(error);
        }
        let mut made = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let state =
                Arc::new(TableState::new(&draft.record, TableLease::new(draft.record.id), Unreplayed::Nothing, None));
            // The provider has just answered for this table: its first use need not ask again. If that was so long ago that
            // the permit is over already, it will.
            let permit = state.lease.permit(creator);
            let _ = self.keys.prime(&state.lease, &permit, draft.key);
            self.look_after(&state, &permit);
            self.catalog.insert(state.clone());
            made.push(state);
        }
        drop(creating);
        self.advance_anchor();
        Ok(made)
    }

    fn draft(&self, name: &str, options: &TableOptions, creator: &Principal, begun: &mut Vec<Begun>) -> Result<Draft> {
        let mut id = [0; 16];
        let mut seed = [0; 8];
        self.env.entropy.fill(&mut id).and_then(|()| self.env.entropy.fill(&mut seed)).map_err(no_entropy)?;
        let id = TableId::from_bytes(id);
        let generation = Generation(1);
        let own = self.begin_recording(id, name, begun);
        let master = self.keys.resolve(&options.master_key, creator)?;
        own.under(&master);
        let key = self.keys.new_table_key(id, generation, &master, creator)?;
        let created_ms = self.env.clock.wall_ms();
        let slot = self.next_slot()?;
        let key_file = KeyFile {
            table: id,
            version: 1,
            state: KeyState::Active,
            since_ms: created_ms,
            master: master.kind,
            wraps: vec![key.wrap.clone()],
        };
        let pin =
            KeyPin { version: 1, tag: Default::default(), generations: vec![(generation, *key.key.commitment())] };
        let record = TableRecord {
            slot,
            id,
            name: name.to_owned(),
            created_ms,
            suite: self.system_suite.for_table(options.cipher),
            compression: options.compression,
            block_bytes: options.block_bytes as u32,
            filter_bits_per_key: options.filter_bits_per_key,
            filter_seed: u64::from_le_bytes(seed),
            master: master.kind,
            key: pin,
            dropping: false,
        };
        Ok(Draft { record, key, key_file })
    }

    /// Write the drafts' key files durably and pin them in the drafts.
    fn write_key_files(&self, drafts: &mut [Draft]) -> Result<()> {
        let mut directories = BTreeSet::new();
        for draft in drafts {
            let name = FileName::KeyFile(draft.record.id);
            self.dir.ensure_dir(&name.directory())?;
            let (bytes, tag) = draft.key_file.seal(&*self.system.sealing()?, self.system_suite, &*self.env.entropy)?;
            draft.record.key.tag = tag;
            self.dir.replace(&name.path(), &name.temporary_path(), &bytes)?;
            directories.insert(name.directory());
        }
        for directory in directories {
            self.dir.sync_dir(&directory)?;
        }
        Ok(())
    }

    /// A table's key file, checked against its pin.
    pub(super) fn read_key_file(&self, slot: Slot, table: TableId) -> Result<KeyFile> {
        let pin = self.manifest.with_state(|state| state.pin(slot).cloned()).ok_or(Error::TableDropped { table })?;
        let (opened, _) = system::read_key_file(&self.dir, &*self.system.all()?, table, &pin)?;
        if !opened.both_copies_good {
            self.events.event(&Event::KeyFileCopyDamaged { file: FileName::KeyFile(table).path() });
        }
        Ok(opened.record.into_inner())
    }

    /// Drop the table of this name.
    pub(super) fn drop_table(&self, name: &str) -> Result<()> {
        // The store is not closed before this is done, or else somebody who opens it then would find it changing.
        let creating = self.creating.lock();
        self.check_writable()?;
        let table = self.catalog.named(name)?;
        {
            // Nobody is inserting while the writer's lock is held, and nobody finds the table afterwards. Nor is a flush or a
            // compaction being installed: its edits behind this one would be about files that are not there.
            let _writer = self.writer.lock();
            let _structure = table.structure.lock();
            if table.is_dropped() {
                return Err(Error::TableNotFound { name: name.to_owned() });
            }
            table.mark_dropped();
        }
        let files: Vec<FileName> = self.manifest.with_state(|state| {
            let meta = state.tables.get(&table.slot);
            let sorted = meta.into_iter().flat_map(|meta| meta.files.keys().map(|&number| FileName::Table(number)));
            let parked = state.parked.values().filter(|record| record.slot == table.slot);
            sorted.chain(parked.map(|record| record.name())).collect()
        });
        self.manifest.append(vec![Edit::DropTable { slot: table.slot }]).map_err(|error| self.poison(error))?;
        self.catalog.remove(&table);
        self.forget(&table);
        shred_key_file(&self.dir, table.id)?;
        self.events.event(&Event::TableShredded { table: table.id });
        for file in files {
            // What cannot be removed now is an orphan that the next open removes.
            let _ = self.dir.remove(&file.path());
        }
        self.manifest.append(vec![Edit::ForgetTable { slot: table.slot }]).map_err(|error| self.poison(error))?;
        drop(creating);
        self.advance_anchor();
        Ok(())
    }

    fn next_slot(&self) -> Result<Slot> {
        use std::sync::atomic::Ordering;
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        match u32::try_from(slot) {
            Ok(slot) if slot < u32::MAX => Ok(Slot(slot)),
            _ => {
                Err(Error::LimitExceeded { what: "tables ever created", limit: u64::from(u32::MAX) - 1, actual: slot })
            }
        }
    }

    /// Fails if a table is being dropped.
    pub(super) fn check_not_dropped(&self, table: &TableState) -> Result<()> {
        match table.is_dropped() {
            true => Err(Error::TableDropped { table: table.id }),
            false => Ok(()),
        }
    }
}

/// Overwrite and remove a table's key file, durably. Doing it twice is fine.
pub(super) fn shred_key_file(dir: &Directory, table: TableId) -> Result<()> {
    let name = FileName::KeyFile(table);
    dir.erase(&name.path())?;
    dir.sync_dir(&name.directory())
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::InvalidArgument { what: "table name", detail: "a name has at least one byte".into() });
    }
    if name.len() > TABLE_NAME_BYTES_MAX {
        let (limit, actual) = (TABLE_NAME_BYTES_MAX as u64, name.len() as u64);
        return Err(Error::LimitExceeded { what: "length of a table name in bytes", limit, actual });
    }
    Ok(())
}

fn no_entropy(error: std::io::Error) -> Error {
    Error::io("draw", "random bytes", error)
}
