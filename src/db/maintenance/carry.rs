//! What keeps containers from being mostly dead: the tables in them that live are carried into another one, byte for byte.
//!
//! ```text
//! sst/22/000034.set   a │ B │ c │ d │ E │ f         capitals live; less than half of the bytes do
//! sst/23/000291.set   B │ E                         copied as they are, synced, directory synced
//!                     one manifest append: each removed from where it was and added where it is now
//!                     then the old file goes, once nobody looks at it any more
//! ```
//! No key is needed, for where a table lies is not part of what is sealed: so tables whose key is refused or not in memory are carried, too.
//!
//! **The bound.** A container is carried when more than half of it is dead, so what is carried is never more than what became dead
//! since it was written: dead bytes cost at most one more write each, and all containers together take at most twice what lives in them, but
//! for those whose turn it is. They wait while the disk has no room for the copy, and while all that lives in them is being loaded or
//! compacted. A container of which something cannot be read or written
//! stays as it is until the store is next opened.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Writing;
use super::flush::Flusher;
use super::space::Reservation;
use crate::compaction::run::sync_directories;
use crate::crypto::TAG_BYTES;
use crate::db::Engine;
use crate::db::catalog::{TableState, View};
use crate::db::load::Loading;
use crate::error::{Error, Result};
use crate::format::codec::Where;
use crate::format::frame::{FileHeader, HEADER_BYTES};
use crate::format::manifest::{Edit, Extent, FileRecord};
use crate::sstable::Container;
use crate::types::{FileNumber, Slot};
use crate::version::{Change, TableFile, Version};

/// A table that was copied.
struct Carried {
    slot: Slot,
    old: Arc<FileRecord>,
    new: FileRecord,
}

impl Flusher {
    /// Carry one container over, if there is one that is mostly dead and can be carried now; whether there was.
    pub(super) fn carry_one(&self) -> bool {
        let engine = self.engine();
        if !engine.readers.has_sparse() {
            return false;
        }
        // Before one is taken, for it is not given again by itself.
        let Some(_writing) = Writing::begin(engine) else { return false };
        // Those that have to wait keep their turn, for which the keeper calls now and again, and hold up no other.
        let mut waiting = Vec::new();
        let was_one = loop {
            let Some(container) = engine.readers.take_sparse() else { break false };
            match engine.carry_tables(container) {
                Ok(true) => break true,
                Ok(false) => waiting.push(container),
                Err(Error::DiskFull { .. }) => {
                    waiting.push(container);
                    break false;
                }
                Err(_) => {
                    engine.readers.leave_as_it_is(container);
                    break true;
                }
            }
        };
        waiting.into_iter().for_each(|container| engine.readers.put_back(container));
        was_one
    }
}

impl Engine {
    /// Carry what of a container can be carried now. False if nothing can, and something will.
    fn carry_tables(self: &Arc<Engine>, container: FileNumber) -> Result<bool> {
        let (busy, named): (Vec<_>, Vec<_>) =
            self.named_in(container).into_iter().partition(|(table, record)| is_busy(table, record.number));
        if named.is_empty() {
            return Ok(busy.is_empty());
        }
        let room = self.reserve_bytes(named.iter().map(|(_, record)| record.extent.len_bytes).sum())?;
        let target = self.new_container();
        let carried = self.copy_tables(named, &target, &room).and_then(|carried| {
            target.sync()?;
            sync_directories(&self.dir, target.number().into_iter())?;
            Ok(carried)
        });
        let moved = carried.and_then(|carried| self.install_carried(&carried, &target));
        if !matches!(moved, Ok(1..)) && self.poison.get().is_none() {
            target.abandon();
        }
        // What stayed has its turn once what was moved is gone.
        moved.map(|count| count > 0)
    }

    /// What of a container the manifest names, and whose it is. What is of a table that is being dropped goes without being carried.
    fn named_in(&self, container: FileNumber) -> Vec<(Arc<TableState>, Arc<FileRecord>)> {
        let tables = self.readers.tables_in(container);
        let records: Vec<(Slot, Arc<FileRecord>)> = self.manifest.with_state(|state| {
            let record = |(number, slot): &(FileNumber, Slot)| {
                let (_, record) = state.tables.get(slot)?.files.get(number)?;
                (record.extent.container == container).then(|| (*slot, record.clone()))
            };
            tables.iter().filter_map(record).collect()
        });
        let owner = |slot| self.catalog.of_slot(slot).filter(|table| !table.is_dropped());
        records.into_iter().filter_map(|(slot, record)| Some((owner(slot)?, record))).collect()
    }

    /// Copy tables that lie in one container.
    fn copy_tables(
        &self,
        named: Vec<(Arc<TableState>, Arc<FileRecord>)>,
        target: &Container,
        room: &Reservation,
    ) -> Result<Vec<Carried>> {
        let Some(name) = named.first().map(|(_, record)| record.file_name().path()) else { return Ok(Vec::new()) };
        let file = self.dir.open(&name)?;
        let mut carried = Vec::with_capacity(named.len());
        for (table, old) in named {
            let Extent { offset_bytes, len_bytes, .. } = old.extent;
            let place = Where::new(&name, offset_bytes);
            let file_bytes = file.len_bytes().map_err(|source| Error::io("read length of", &name, source))?;
            if offset_bytes + len_bytes > file_bytes {
                return Err(place.tampered("the file is not as long as the manifest says"));
            }
            let mut bytes = vec![0; len_bytes as usize];
            file.read_exact_at(&mut bytes, offset_bytes).map_err(|source| Error::io("read", &name, source))?;
            // What rotted meanwhile must be found where it rotted.
            let header = FileHeader::decode(&bytes, &place)?;
            if bytes.len() < HEADER_BYTES + TAG_BYTES || header.salt != old.salt || !bytes.ends_with(&old.final_tag) {
                return Err(place.tampered("this is not the table that the manifest names"));
            }
            let (container, offset_bytes) = target.append(&bytes)?;
            room.spend(len_bytes);
            let new = FileRecord { extent: Extent { container, offset_bytes, len_bytes }, ..(*old).clone() };
            carried.push(Carried { slot: table.slot, old, new });
        }
        Ok(carried)
    }

    /// Name what was copied where it is now, but for what was replaced or dropped meanwhile; how many tables that are.
    fn install_carried(&self, carried: &[Carried], target: &Container) -> Result<usize> {
        let tables: BTreeMap<Slot, Arc<TableState>> =
            carried.iter().filter_map(|one| Some((one.slot, self.catalog.of_slot(one.slot)?))).collect();
        // Nobody loads them meanwhile: a view is made from what the manifest said when that began. Who is being loaded stays where it is.
        let loads: BTreeMap<Slot, Loading<'_>> =
            tables.iter().filter_map(|(slot, table)| Some((*slot, Loading::begin(self, table.clone())?))).collect();
        // In slot order, as whoever takes many.
        let structures: BTreeMap<Slot, _> =
            tables.iter().map(|(slot, table)| (*slot, table.structure.lock())).collect();
        let mut edits = Vec::new();
        let mut moved: Vec<(&Carried, Option<Arc<TableFile>>)> = Vec::new();
        // Made before the manifest says so: what contradicts itself must not get there.
        let mut versions: BTreeMap<Slot, Arc<Version>> = BTreeMap::new();
        for one in carried {
            let (slot, number) = (one.slot, one.old.number);
            let Some(structure) = structures.get(&slot).filter(|_| loads.contains_key(&slot)) else { continue };
            // A job that is at it replaces it anyway.
            if tables[&slot].is_dropped() || structure.busy.holds(number) {
                continue;
            }
            let level = self.manifest.with_state(|state| {
                let (level, record) = state.tables.get(&slot)?.files.get(&number)?;
                (record.extent == one.old.extent).then_some(*level)
            });
            let Some(level) = level else { continue };
            edits.push(Edit::RemoveFile { slot, level, number });
            edits.push(Edit::AddFile { slot, level, file: one.new.clone() });
            let view = tables[&slot].view.load_owned();
            let shown = match versions.get(&slot).or(view.as_ref().map(|view| &view.version)) {
                Some(version) => self.moved_in(version, usize::from(level), one)?,
                None => None,
            };
            let old = shown.map(|(version, old)| {
                versions.insert(slot, version);
                old
            });
            moved.push((one, old));
        }
        if moved.is_empty() {
            return Ok(0);
        }
        if let Some(container) = target.number() {
            self.readers.share(container, moved.iter().map(|(one, _)| (&one.new, one.slot)));
        }
        self.manifest.append(edits).map_err(|error| self.poison(error))?;
        for (slot, version) in versions {
            let publisher = tables[&slot].publisher();
            // A commit may have frozen a memtable meanwhile. That the view is gone, nobody can have brought about.
            if let Some(present) = publisher.present() {
                publisher.show(Some(View { version, ..View::clone(&present) }));
            }
        }
        let count = moved.len();
        for (one, shown) in moved {
            match shown {
                Some(old) => self.readers.retire(one.slot, old),
                // Nobody uses the table; but a cursor from before it was put away may.
                None => self.readers.retire_unshown(one.slot, &one.old),
            }
        }
        drop(structures);
        drop(loads);
        self.advance_anchor();
        Ok(count)
    }

    /// A version with a table where it was copied to, and what stood for it where it was; none if the version does not show it.
    fn moved_in(
        &self,
        version: &Version,
        level: usize,
        one: &Carried,
    ) -> Result<Option<(Arc<Version>, Arc<TableFile>)>> {
        let number = one.old.number;
        let Some(old) = version.files(level).iter().find(|file| file.number() == number) else { return Ok(None) };
        let (smallest, largest) = (old.smallest.clone(), old.largest.clone());
        let file = self.readers.new_file(TableFile::new(one.new.clone(), smallest, largest));
        let changes = [Change::Remove { level, number }, Change::Add { level, file }];
        let next = version.apply(&changes).map_err(|wrong| wrong.in_file("manifest", 0))?;
        Ok(Some((Arc::new(next), old.clone())))
    }
}

/// Whether a table's file has to stay where it is for now: the table is being loaded from there, or a job is at the file, which replaces it
/// if it comes to its end.
fn is_busy(table: &TableState, number: FileNumber) -> bool {
    table.is_loading() || table.structure.lock().busy.holds(number)
}
