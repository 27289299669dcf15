//! How tables come and go.
//!
//! ```text
//! create   provider asked ─ key files written and synced ─ one manifest append ─ known
//! drop     DROPPING in the manifest ─ key file overwritten, synced, unlinked, directory synced ─ files unlinked ─ forgotten ─ grant given up
//! ```
//! A provider that refuses leaves the directory as it was. A crash between two steps of a creation leaves key files that
//! nobody names, which the next open sets aside; a crash within a drop is carried on by the next open.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::Engine;
use super::catalog::{TableState, Unreplayed};
use super::grants::Held;
use super::rekey::erase_key_file;
use super::trail::Begun;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::FileName;
use crate::format::keyfile::{KeyFile, KeyState};
use crate::format::manifest::{Edit, FileRecord, KeyPin, TableRecord};
use crate::io::directory::Replacement;
use crate::keys::{Master, NewKey, Principal, TableLease};
use crate::options::{MasterKey, TableOptions};
use crate::types::{FileKind, Generation, Slot, TABLE_NAME_BYTES_MAX, TableId};

/// Key files that are open at a time: far below any limit on descriptors, and enough that waiting for the disk is shared.
const KEY_FILES_AT_ONCE: usize = 256;

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
        // The provider is asked for everything before anything is written: who wants the tables must be allowed to use the keys, and to let
        // the engine use them; the keys themselves are then made for the engine.
        for (name, _) in tables {
            self.begin_recording(TableId::from_bytes(self.random()?), name, begun);
        }
        let mut masters: Vec<(&MasterKey, Master)> = Vec::with_capacity(1);
        for (_, options) in tables {
            if masters.iter().all(|(key, _)| *key != &options.master_key) {
                masters.push((&options.master_key, self.keys.resolve(&options.master_key, creator)?));
            }
        }
        for ((_, options), begun) in tables.iter().zip(begun.iter_mut()) {
            let master = masters.iter().find(|(key, _)| **key == options.master_key);
            master.into_iter().for_each(|(_, master)| begun.under(master));
        }
        let held = self.hold_grants(masters.iter().map(|(_, master)| master), creator)?;
        let made = self.create_under(&masters, tables, creator, begun, &held);
        self.release_grants(held);
        self.advance_anchor();
        made
    }

    fn create_under(
        &self,
        masters: &[(&MasterKey, Master)],
        tables: &[(&str, TableOptions)],
        creator: &Principal,
        begun: &[Begun],
        held: &Held,
    ) -> Result<Vec<Arc<TableState>>> {
        let mut drafts = Vec::with_capacity(tables.len());
        for (name, options) in tables {
            let master = masters.iter().find(|(key, _)| **key == options.master_key);
            if let (Some((_, master)), Some(begun)) = (master, begun.get(drafts.len())) {
                drafts.push(self.draft(name, options, master, begun)?);
            }
        }
        let _creating = self.creating.lock();
        // Nor may the store have been closed meanwhile: somebody else may have opened it.
        self.check_writable()?;
        // Somebody else may have created one of them while the provider was asked.
        if let Some((name, _)) = tables.iter().find(|(name, _)| self.catalog.contains(name)) {
            return Err(Error::TableExists { name: (*name).to_owned() });
        }
        let written = self.write_key_files(&mut drafts).and_then(|()| {
            let creator = creator.to_string();
            let mut edits: Vec<Edit> = held.edits().collect();
            for draft in &drafts {
                edits.push(Edit::CreateTable(Box::new(draft.record.clone())));
                edits.push(Edit::Creator { slot: draft.record.slot, principal: creator.clone() });
            }
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
            self.note_master_keys(draft.record.slot, Some(&draft.key_file));
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
        Ok(made)
    }

    fn draft(&self, name: &str, options: &TableOptions, master: &Master, begun: &Begun) -> Result<Draft> {
        let (id, seed) = (begun.table(), self.random()?);
        let generation = Generation(1);
        let key = self.keys.proven_key(id, generation, master, &Principal::Service)?;
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
            name: name.into(),
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
        for drafts in drafts.chunks_mut(KEY_FILES_AT_ONCE) {
            let mut files = Vec::with_capacity(drafts.len());
            for draft in drafts {
                let name = FileName::KeyFile(draft.record.id);
                self.dir.ensure_dir(&name.directory())?;
                let system = self.system.sealing()?;
                let (bytes, tag) = draft.key_file.seal(&system, self.system_suite, &*self.env.entropy)?;
                self.meters.sealed(FileKind::KeyFile, 1, bytes.len() as u64);
                draft.record.key.tag = tag;
                files.push(Replacement { name: name.path(), temporary: name.temporary_path(), bytes });
                directories.insert(name.directory());
            }
            self.dir.replace_all(&files)?;
        }
        for directory in directories {
            self.dir.sync_dir(&directory)?;
        }
        Ok(())
    }

    /// Drop the table of this name.
    pub(super) fn drop_table(&self, name: &str) -> Result<()> {
        // The store is not closed before this is done, or else somebody who opens it then would find it changing.
        let creating = self.creating.lock();
        self.check_writable()?;
        let table = self.catalog.named(name)?;
        let keys = self.settled_key_file(&table).ok();
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
        let (sorted, parked): (Vec<Arc<FileRecord>>, Vec<FileName>) = self.manifest.with_state(|state| {
            let meta = state.tables.get(&table.slot);
            let sorted = meta.into_iter().flat_map(|meta| meta.files.values().map(|(_, file)| file.clone()));
            let parked = state.parked.values().filter(|record| record.slot == table.slot);
            (sorted.collect(), parked.map(|record| record.name()).collect())
        });
        #[cfg(test)]
        self.background.between.mark_and_drop.came();
        self.manifest.append(vec![Edit::DropTable { slot: table.slot }]).map_err(|error| self.poison(error))?;
        // Before anything of it is let go of: whoever finds something of it later can tell that nobody else will.
        table.mark_gone();
        self.catalog.remove(&table);
        self.forget(&table);
        erase_key_file(&self.dir, table.id)?;
        self.events.event(&Event::TableShredded { table: table.id });
        sorted.iter().for_each(|record| self.readers.remove(record));
        self.remove_parked(&parked);
        self.manifest.append(vec![Edit::ForgetTable { slot: table.slot }]).map_err(|error| self.poison(error))?;
        self.note_master_keys(table.slot, None);
        drop(creating);
        match keys {
            Some(keys) => self.suspect_grants(&keys),
            None => self.suspect_all_grants(),
        }
        self.end_idle_grants();
        self.advance_anchor();
        Ok(())
    }

    fn random<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.env.entropy.fill(&mut bytes).map_err(|error| Error::io("draw", "random bytes", error))?;
        Ok(bytes)
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
