//! A table's first use, and how it is put away.
//!
//! ```text
//!  put away ── admit: provider asked, bounds opened, parked sections and log replayed ──> in use
//!     ^                                                                                    │
//!     ├── permits ended ── memtables flushed ── keys, blocks, readers gone ────────────────┤
//!     └── key refused, or flushing not possible ── everything gone, unflushed (access.rs) ──┘
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::catalog::{Memory, Seat, TableState, Unreplayed, View};
use crate::error::{Error, Result};
use crate::format::manifest::KeyPin;
use crate::io::Tick;
use crate::keys::{Ending, KeySet, Permit, Principal};
use crate::types::{FileNumber, Seq, Trailer};
use crate::version::state::State;
use crate::version::{Change, Version};
use crate::wal;

impl Engine {
    /// Read a table under a principal's permit. Two loads if there is one and the table is in use.
    #[inline]
    pub(super) fn with_view<T>(&self, seat: &Seat, read: impl FnOnce(&View) -> Result<T>) -> Result<T> {
        let now = self.tick.load().ok_or(Error::Forked)?;
        if seat.permit.check(now)
            && let Some(view) = &*seat.table.view.load()
        {
            return read(view);
        }
        read(&*self.admit_anew(seat)?)
    }

    /// The present view of a table, for as long as the caller wants it.
    pub(super) fn admit(&self, seat: &Seat) -> Result<Arc<View>> {
        let now = self.tick.load().ok_or(Error::Forked)?;
        if seat.permit.check(now)
            && let Some(view) = seat.table.view.load_owned()
        {
            return Ok(view);
        }
        self.admit_anew(seat)
    }

    /// That the principal may use the table now, for who holds a view already.
    #[inline]
    pub(super) fn check_permit(&self, seat: &Seat) -> Result<()> {
        let now = self.tick.load().ok_or(Error::Forked)?;
        if seat.permit.check(now) {
            return Ok(());
        }
        self.acquire(&seat.table, &seat.permit).map(drop)
    }

    #[cold]
    fn admit_anew(&self, seat: &Seat) -> Result<Arc<View>> {
        loop {
            let keys = self.acquire(&seat.table, &seat.permit)?;
            if let Some(view) = seat.table.view.load_owned() {
                return Ok(view);
            }
            self.load(&seat.table, keys)?;
        }
    }

    /// The keys of `table`, for a principal who has or gets a permit. Asks the provider if need be.
    pub(super) fn acquire(&self, table: &Arc<TableState>, permit: &Arc<Permit>) -> Result<Arc<KeySet>> {
        self.check_open()?;
        self.check_not_dropped(table)?;
        self.check_access(table)?;
        self.ask(table, permit)
    }

    /// As [`acquire`](Engine::acquire), whatever was answered a moment ago.
    pub(super) fn ask(&self, table: &Arc<TableState>, permit: &Arc<Permit>) -> Result<Arc<KeySet>> {
        self.check_open()?;
        self.check_not_dropped(table)?;
        let keys = self.keys.acquire(&table.lease, permit, &|| self.read_key_file(table.slot, table.id));
        if keys.is_err() {
            // The lease of a closed store is closed too, and cannot know why.
            self.check_open()?;
        }
        self.look_after(table, permit);
        if self.closed.load(Ordering::Acquire) {
            // The close lets go of the tables on the list that this one was just put on: perhaps it has done so already.
            table.lease.close();
            return Err(Error::Closed);
        }
        self.learn(table, permit.principal(), keys)
    }

    /// As [`acquire`](Engine::acquire), for the engine's own work: a user's revocation does not stop it.
    pub(super) fn acquire_for_service(&self, table: &Arc<TableState>) -> Result<Arc<KeySet>> {
        self.acquire(table, &table.lease.permit(&Principal::Service))
    }

    /// Bring a table into use, or wait until whoever is at it has done so.
    pub(super) fn load(&self, table: &Arc<TableState>, keys: Arc<KeySet>) -> Result<()> {
        let Some(loading) = Loading::begin(self, table.clone()) else {
            let mut is_over = || !table.is_loading();
            self.env.scheduler.wait_until(&self.loaded, &*self.env.clock, None, &mut is_over);
            return Ok(());
        };
        let outcome = if table.view.load().is_some() { Ok(()) } else { self.build_view(table, keys) };
        drop(loading);
        if outcome.is_ok() {
            // What was replayed may be over the budget, and no commit that waits for room would freeze it.
            self.relieve_budget_soon();
        }
        outcome
    }

    fn build_view(&self, table: &Arc<TableState>, keys: Arc<KeySet>) -> Result<()> {
        let (files, flushed, is_present) = self
            .manifest
            .with_state(|state| {
                let meta = state.tables.get(&table.slot).filter(|meta| !meta.record.dropping)?;
                let files: Vec<_> = meta.files.values().cloned().collect();
                Some((files, meta.flushed, covers(&keys, &meta.record.key)))
            })
            .ok_or(Error::TableDropped { table: table.id })?;
        if !is_present {
            // The table's keys were changed meanwhile: whoever wants it asks for the present ones.
            return Ok(());
        }
        let mut changes = Vec::with_capacity(files.len());
        for (level, record) in files {
            changes.push(Change::Add { level: usize::from(level), file: self.readers.known(&record, &keys)? });
        }
        let version = Version::empty().apply(&changes).map_err(|contradiction| contradiction.in_file("manifest", 0))?;
        let mut memories = self.replay(table, &keys, flushed)?;
        let active = memories.pop().unwrap_or_else(Memory::new);
        memories.reverse();

        let structure = table.structure.lock();
        // What is shown behind a close would stay for as long as anybody has a handle.
        self.check_open()?;
        if table.is_dropped() {
            return Err(Error::TableDropped { table: table.id });
        }
        // Refused since these keys were asked for. What is published now would stay: the custodian has been here.
        if let Some(error) = table.access.refused(table.id) {
            return Err(error);
        }
        // Here as well, for the keys may have been changed since.
        if !self.manifest.with_state(|state| state.pin(table.slot).is_some_and(|pin| covers(&keys, pin))) {
            return Ok(());
        }
        for memory in memories.iter().rev().chain([&active]) {
            self.adopt(table, memory);
        }
        // The memtables hold the log themselves now.
        self.set_unreplayed(table, Unreplayed::Nothing);
        let publisher = table.publisher();
        publisher.show(Some(View { keys, active, frozen: memories.clone(), version: Arc::new(version) }));
        // Before anybody can freeze the active one: memtables of a table are flushed in the order in which they stand in the
        // queue, and what the manifest calls flushed is everything up to the last.
        for memory in memories.into_iter().rev() {
            self.enqueue_flush(table, memory);
        }
        drop(publisher);
        drop(structure);
        self.enqueue_compaction(table);
        Ok(())
    }

    /// What parked files and the log hold of a table and its sorted tables do not, in memtables, oldest first.
    fn replay(&self, table: &Arc<TableState>, keys: &KeySet, flushed: Seq) -> Result<Vec<Arc<Memory>>> {
        self.index_log(table)?;
        let sections = match &*table.unreplayed.lock() {
            Unreplayed::Sections(sections) => sections.clone(),
            Unreplayed::Nothing | Unreplayed::Somewhere { .. } => Vec::new(),
        };
        let mut memories: Vec<Arc<Memory>> = Vec::new();
        let mut insert = |segment, seq, kind, key: &[u8], value: &[u8]| {
            let memory = match memories.last() {
                Some(memory) if memory.table.bytes() < self.options.memtable_bytes => memory,
                _ => {
                    memories.push(Memory::new());
                    &memories[memories.len() - 1]
                }
            };
            memory.table.insert(key, Trailer::new(seq, kind), value)?;
            memory.begins_in(segment);
            memory.reached(seq);
            Ok(())
        };
        let key_of = |generation| {
            keys.generation(generation).map(|key| &**key).ok_or(Error::WrongKey { table: table.id, generation })
        };
        // What was parked needs no segment. A memtable needs one all the same: that of the log's sections behind it, which may come into the same
        // memtable, or one that no commit to come is older than.
        let segment = sections.first().map_or_else(|| self.log.segment_to_come(), |part| part.segment);
        let system = self.system.all()?;
        for record in self.parked_files(table, flushed) {
            let mut file = wal::parked::ParkedFile::open(&self.dir, &system, table.id, &record)?;
            file.entries(&key_of, flushed, &mut |seq, kind, key, value| insert(segment, seq, kind, key, value))?;
        }
        let salts = |segment| self.manifest.with_state(|state| state.segments.get(&segment).map(|meta| meta.salt));
        wal::replay::entries(&self.dir, &system, &salts, &key_of, &sections, flushed, &mut insert)?;
        Ok(memories)
    }

    /// While the log is over its limit, bring the tables into use whose unreplayed part of it begins in the oldest segment that is
    /// needed, so that they can be flushed.
    pub(super) fn load_for_log(&self) {
        let Some(segment) = self.segment_to_relieve() else { return };
        let begins = |table: &&Arc<TableState>| {
            table.unreplayed.lock().first_segment() == Some(segment) && !table.access.is_refused()
        };
        let owners: Vec<_> = self.catalog.all().into_iter().filter(|table| begins(&table)).collect();
        for table in owners {
            if self.background.stopping() {
                return;
            }
            // One whose key is not to be had keeps its segment, until that is parked.
            if let Ok(keys) = self.acquire_for_service(&table) {
                let _ = self.load(&table, keys);
            }
        }
    }

    /// Let go of a table that nobody may use any more: first what it has in memory goes to sorted tables, then, in a later
    /// round, its keys, blocks and readers go.
    pub(super) fn put_away(&self, table: &Arc<TableState>, now: Tick) {
        if let Some(Ending::Refused(reason)) = table.lease.ending(now) {
            // A refusal that came with a renewal. What follows is the custodian's.
            self.refuse(table, &reason);
            return;
        }
        if self.background.cannot_be_flushed(table) {
            // The service may not, or cannot ask. The log has everything, and plaintext must not stay because a provider is away.
            self.seclude(table);
            return;
        }
        let mut writer = self.writer.lock();
        let Some(view) = table.view.load_owned() else {
            drop(writer);
            if !table.loading.load(Ordering::Acquire) {
                // An iterator may have used it all the same: it asks for the key, and looks at files of its own.
                self.purge(table);
                self.close_files(table);
            }
            return;
        };
        if !view.active.table.is_empty() {
            self.freeze(table);
            return;
        }
        let structure = table.structure.lock();
        let busy = !structure.busy.is_idle() || table.loading.load(Ordering::Acquire);
        if busy || !view.frozen.is_empty() || !table.has_ended(now) {
            return;
        }
        table.publisher().show(None);
        writer.forget(table.slot);
        drop(structure);
        drop(writer);
        self.purge(table);
        self.close_files(table);
    }

    /// Let go of what is open of a table's files, and of their blocks: also for iterators, which may stand still for long.
    pub(super) fn close_files(&self, table: &TableState) {
        let present = |state: &State| -> Vec<FileNumber> {
            state.tables.get(&table.slot).into_iter().flat_map(|meta| meta.files.keys().copied()).collect()
        };
        self.readers.close_table(table.slot, &self.manifest.with_state(present));
    }

    /// Let go of a table's keys, unless somebody has got a permit meanwhile.
    pub(super) fn purge(&self, table: &Arc<TableState>) {
        // First off the list and then asked, while who gets a permit puts the table on the list afterwards: so no table with
        // a permit is missing there.
        self.background.in_use.lock().remove(&table.slot);
        if !self.keys.purge(&table.lease) && table.lease.material().is_some() {
            self.background.in_use.lock().insert(table.slot, table.clone());
        }
    }

    /// Let go of everything of a table that is gone. Frozen memtables go when the flusher, who is woken, finds them.
    pub(super) fn forget(&self, table: &Arc<TableState>) {
        let mut writer = self.writer.lock();
        let structure = table.structure.lock();
        writer.forget(table.slot);
        let view = table.view.load_owned();
        table.publisher().show(None);
        drop(structure);
        drop(writer);
        self.background.wake();
        self.background.in_use.lock().remove(&table.slot);
        self.set_unreplayed(table, Unreplayed::Nothing);
        self.background.custody.forget(table.slot);
        // The manifest does not know them any more.
        let mut files: Vec<FileNumber> = Vec::new();
        if let Some(view) = view {
            self.discharge(table, &view.active);
            files.extend(view.version.all_files().map(|(_, file)| file.number()));
        }
        self.readers.close_table(table.slot, &files);
    }
}

/// The right to load a table, or to keep others from it.
pub(super) struct Loading<'a> {
    engine: &'a Engine,
    pub(super) table: Arc<TableState>,
}

impl<'a> Loading<'a> {
    /// None if somebody else has it.
    pub(super) fn begin(engine: &'a Engine, table: Arc<TableState>) -> Option<Loading<'a>> {
        // Made only if the right was free: one that is dropped gives it back, whoever has it.
        (!table.loading.swap(true, Ordering::AcqRel)).then(|| Loading { engine, table })
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.table.loading.store(false, Ordering::Release);
        self.engine.loaded.raise();
    }
}

/// Whether these are all keys that the manifest pins, and the newest of them seals.
fn covers(keys: &KeySet, pin: &KeyPin) -> bool {
    let newest = pin.generations.last().map(|(generation, _)| *generation);
    newest == Some(keys.current().generation())
        && pin.generations.iter().all(|(generation, _)| keys.generation(*generation).is_some())
}

#[cfg(test)]
mod tests;
