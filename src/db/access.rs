//! INACCESSIBLE: a table whose key is refused, from the refusal to the return.
//!
//! ```text
//!               the key itself is refused, or the service's use of it
//!  accessible ──────────────────────────────────────────────────────────> INACCESSIBLE since T
//!      ^        at once       every permit has ended; calls are refused with the provider's reason and T
//!      │        custodian     the view goes, under the writer's lock; memtables, cached blocks, readers, keys are let go of;
//!      │                      what was not flushed is in the log, sealed, and the segments with it are held
//!      │                      T in the manifest: many tables, one append; while the store is quiet (`quiesce`), later
//!      │        over the log's limit: sections are carried out of segments that must go (park.rs)
//!      │
//!      └──────── the service's own unwrap succeeds: asked by the prober, with back-off, or because somebody calls
//!                custodian    the manifest says so; the next use replays parked sections and log
//! ```
//!
//! What is refused to one principal is that principal's affair (`keys/lease.rs`). A failure that may pass changes nothing here.
//!
//! # Who asks, and how often
//! A table comes back when the *service* may use its key: a user's own permission says nothing about flush and compaction, and a table
//! that came back without them would only go again. Callers share the last refusal for [`REFUSAL_SHARED`], so a thousand failing
//! calls a second are one request. The prober asks for one table per master key, first after [`PROBE_MIN`] and then after pauses that double
//! up to [`PROBE_MAX`]; only when that one is back does it ask for the others under the same key. An opening asks nothing.
//!
//! # The store's own key
//! is asked for every five minutes, too. While it is refused, no call is answered ([`Error::StoreInaccessible`]), at no cost to calls: the tick that permits are
//! compared with stands at the end of time.
//!
//! # No commit slips through
//! A commit that found its table's view inserts while it holds the writer's lock, and the view goes under that lock. So everything that was
//! acknowledged lies before the log's end as it is read there, and the range from the oldest memtable's first segment to that end is all
//! that has to be remembered: sections are looked up in it when they are needed ([`Unreplayed::Somewhere`]), with the system key alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Engine;
use super::catalog::{TableState, Unreplayed};
use super::maintenance::Writing;
use crate::error::{Error, ProviderClass, ProviderError, Result};
use crate::event::Event;
use crate::format::FileName;
use crate::format::log::LogPoint;
use crate::format::manifest::Edit;
use crate::io::{Signal, Step, Task, Tick};
use crate::keys::{KeySet, Principal};
use crate::types::{FileNumber, Slot, TableId};
use crate::version::state::State;
use crate::version::system::SystemFile;
use crate::wal::replay::{KnownSegment, sections_of};

/// How long callers share a refusal before the provider is asked again for one of them.
const REFUSAL_SHARED: Duration = Duration::from_secs(1);
/// When a refused key is asked for again in the background; the pause doubles up to [`PROBE_MAX`].
const PROBE_MIN: Duration = Duration::from_secs(5);
const PROBE_MAX: Duration = Duration::from_secs(240);
/// How often the custodian looks whether something has to be parked.
const CUSTODIAN_PERIOD: Duration = Duration::from_millis(250);
/// Tables that go into one append to the manifest.
const TABLES_PER_APPEND: usize = 256;

/// Whether a table's key is refused, and what is known about it. Only slow paths look at it: what keeps everybody out is that nobody has
/// a permit.
#[derive(Default)]
pub(crate) struct Access {
    /// Boxed, because most tables never have one and there are very many tables.
    refused: Mutex<Option<Box<Refused>>>,
}

struct Refused {
    since_ms: u64,
    /// The last answer, and when it came; none since the store was opened.
    answer: Option<(ProviderError, Tick)>,
    /// ARN of the master key, once somebody has read it.
    master_arn: Option<Arc<str>>,
}

impl Access {
    /// What the manifest says when a store is opened.
    pub(crate) fn new(inaccessible_since_ms: Option<u64>) -> Access {
        let refused = |since_ms| Box::new(Refused { since_ms, answer: None, master_arn: None });
        Access { refused: Mutex::new(inaccessible_since_ms.map(refused)) }
    }

    /// Whether the key is refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.lock().is_some()
    }

    /// Wall time since when it is.
    pub(crate) fn since_ms(&self) -> Option<u64> {
        self.refused.lock().as_ref().map(|refused| refused.since_ms)
    }

    /// Note an answer; true if it made the table inaccessible. The time is set once.
    fn refuse(&self, source: &ProviderError, now: Tick, wall_ms: u64) -> bool {
        let mut refused = self.refused.lock();
        let first = refused.is_none();
        // 0 stands for "accessible" in the manifest.
        let made = || Box::new(Refused { since_ms: wall_ms.max(1), answer: None, master_arn: None });
        refused.get_or_insert_with(made).answer = Some((source.clone(), now));
        first
    }

    /// The key may be used again; true if it was refused before.
    fn reopen(&self) -> bool {
        self.refused.lock().take().is_some()
    }

    /// What a call is refused with, if it is and there was an answer in this opening.
    pub(super) fn refused(&self, table: TableId) -> Option<Error> {
        self.refusal(table).map(|(error, _)| error)
    }

    /// What a call is refused with, and when that answer came, if there was one in this opening.
    fn refusal(&self, table: TableId) -> Option<(Error, Tick)> {
        let refused = self.refused.lock();
        let Refused { since_ms, answer, .. } = &**refused.as_ref()?;
        let (source, at) = answer.clone()?;
        Some((Error::TableInaccessible { table, since_ms: *since_ms, source }, at))
    }
}

/// Tables whose key is refused, or was until just now.
#[derive(Default)]
pub(crate) struct Custody {
    /// Raised when a table's access changed, or something else is to be done.
    signal: Arc<Signal>,
    /// Tables whose access changed since the manifest was last told.
    changed: Mutex<BTreeMap<Slot, Arc<TableState>>>,
    /// Tables whose key is refused.
    refused: Mutex<BTreeMap<Slot, Arc<TableState>>>,
    /// Tables of which it is not known where in the log their sections are.
    unindexed: Mutex<BTreeMap<Slot, Arc<TableState>>>,
    /// Held while segments are searched for sections, and while parking removes segments.
    pub(super) searching: Mutex<()>,
    /// The same for the store's own key; the flag says at a glance whether it is refused.
    system: Access,
    system_refused: AtomicBool,
}

impl Custody {
    /// Wake the custodian and the prober.
    pub(crate) fn wake(&self) {
        self.signal.raise();
    }

    /// Whether the store's own key is refused.
    pub(crate) fn is_system_refused(&self) -> bool {
        self.system_refused.load(Ordering::Acquire)
    }

    /// What every call is refused with while the store's own key is.
    pub(crate) fn system_refusal(&self) -> Option<Error> {
        if !self.is_system_refused() {
            return None;
        }
        match self.system.refused(TableId::SYSTEM)? {
            Error::TableInaccessible { since_ms, source, .. } => Some(Error::StoreInaccessible { since_ms, source }),
            error => Some(error),
        }
    }

    /// A table that is inaccessible when the store is opened.
    pub(super) fn take_in(&self, table: &Arc<TableState>) {
        self.refused.lock().insert(table.slot, table.clone());
    }

    /// The tables whose key is refused.
    pub(super) fn refused(&self) -> Vec<Arc<TableState>> {
        self.refused.lock().values().cloned().collect()
    }

    /// How many there are.
    pub(super) fn refused_count(&self) -> usize {
        self.refused.lock().len()
    }

    /// Let go of a table that is dropped.
    pub(super) fn forget(&self, slot: Slot) {
        self.changed.lock().remove(&slot);
        self.refused.lock().remove(&slot);
        self.unindexed.lock().remove(&slot);
    }
}

// ---- the refusal, as callers and jobs meet it ------------------------------------------------------------------

impl Engine {
    /// Fails if the table's key is refused: with the last answer if that is fresh, or else with a new one. No lock may be held.
    pub(super) fn check_access(&self, table: &Arc<TableState>) -> Result<()> {
        if !table.access.is_refused() {
            return Ok(());
        }
        match table.access.refusal(table.id) {
            Some((error, at)) if self.env.clock.tick() < at.after(REFUSAL_SHARED) => Err(error),
            _ => self.ask_for_service(table).map(drop),
        }
    }

    /// The table's keys for the engine's own work, whatever was answered a moment ago.
    fn ask_for_service(&self, table: &Arc<TableState>) -> Result<Arc<KeySet>> {
        self.ask(table, &table.lease.permit(&Principal::Service))
    }

    /// Draw the consequences of a provider's answer for a table.
    pub(super) fn learn(
        &self,
        table: &Arc<TableState>,
        who: &Principal,
        answer: Result<Arc<KeySet>>,
    ) -> Result<Arc<KeySet>> {
        match answer {
            Ok(keys) => {
                if *who == Principal::Service && table.access.reopen() {
                    self.access_changed(table);
                }
                Ok(keys)
            }
            Err(Error::KeyUnavailable { source, .. }) if self.concerns_all(table, who, &source) => {
                Err(self.refuse(table, &source))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this answer is about the table, and not about who asked or the way to the provider.
    fn concerns_all(&self, table: &TableState, who: &Principal, source: &ProviderError) -> bool {
        match source.class() {
            ProviderClass::Key => true,
            ProviderClass::Principal => *who == Principal::Service,
            // What else goes wrong while it is refused is the newest there is to tell.
            _ => *who == Principal::Service && table.access.is_refused(),
        }
    }

    /// The table's key is refused: nobody may use it from now on. The caller's error.
    pub(super) fn refuse(&self, table: &Arc<TableState>, source: &ProviderError) -> Error {
        let (now, wall_ms) = (self.env.clock.tick(), self.env.clock.wall_ms());
        if table.access.refuse(source, now, wall_ms) {
            self.access_changed(table);
        }
        let plain = || Error::KeyUnavailable { table: table.id, source: source.clone() };
        table.access.refused(table.id).unwrap_or_else(plain)
    }

    fn access_changed(&self, table: &Arc<TableState>) {
        let custody = &self.background.custody;
        match table.access.is_refused() {
            true => drop(custody.refused.lock().insert(table.slot, table.clone())),
            false => drop(custody.refused.lock().remove(&table.slot)),
        }
        custody.changed.lock().insert(table.slot, table.clone());
        custody.wake();
    }
}

// ---- the custodian ---------------------------------------------------------------------------------------------

/// Takes tables whose key is refused out of memory, records it, and parks what the log cannot keep. Asks no provider.
pub(super) struct Custodian {
    engine: Arc<Engine>,
}

impl Custodian {
    pub(super) fn new(engine: Arc<Engine>) -> Custodian {
        Custodian { engine }
    }
}

impl Task for Custodian {
    fn step(&mut self) -> Step {
        let engine = &self.engine;
        // Before anything is looked at: an end that comes afterwards is not slept through.
        let signal = engine.background.custody.signal.clone();
        let seen = signal.count();
        if engine.background.stopping() {
            return Step::Done;
        }
        if engine.poison.get().is_none() {
            // What fails here and poisons nothing is tried again.
            let _ = engine.settle_accesses();
            // Not while the store is quiet: nothing may be open for writing then.
            if let Some(_writing) = Writing::begin(engine) {
                let _ = engine.park_for_log();
            }
        }
        let deadline = engine.env.clock.tick().after(CUSTODIAN_PERIOD);
        Step::Wait { signal, seen, clock: engine.env.clock.clone(), deadline: Some(deadline) }
    }
}

impl Drop for Custodian {
    fn drop(&mut self) {
        self.engine.poison_if_panicking("the custodian");
    }
}

impl Engine {
    /// Write down what was heard so late that the custodian has not come to it: at the close, when it has ended. What cannot be
    /// written is heard again by whoever uses the table next.
    pub(super) fn record_last_accesses(&self) {
        let changed = std::mem::take(&mut *self.background.custody.changed.lock());
        if !changed.is_empty() && self.poison.get().is_none() {
            let _ = self.record_accesses(&changed.into_values().collect::<Vec<_>>());
        }
    }

    /// Bring memory and manifest into line with the accesses that changed.
    fn settle_accesses(self: &Arc<Engine>) -> Result<()> {
        // Those that somebody is loading, or of which nothing may be written now, get their turn in a later round.
        let mut later: Vec<Arc<TableState>> = Vec::new();
        loop {
            let tables: Vec<Arc<TableState>> = {
                let mut changed = self.background.custody.changed.lock();
                let slots: Vec<Slot> = changed.keys().take(TABLES_PER_APPEND).copied().collect();
                slots.into_iter().filter_map(|slot| changed.remove(&slot)).collect()
            };
            if tables.is_empty() {
                break;
            }
            for table in tables.iter().filter(|table| table.access.is_refused()) {
                if !self.seclude(table) {
                    later.push(table.clone());
                }
            }
            match Writing::begin(self) {
                Some(_writing) => self.record_accesses(&tables)?,
                None => later.extend(tables),
            }
        }
        let mut changed = self.background.custody.changed.lock();
        later.into_iter().for_each(|table| drop(changed.insert(table.slot, table)));
        Ok(())
    }

    /// Let go of what is in memory of a table, without flushing it: everything is in the log. False if somebody is loading it, so that it has to be
    /// tried again.
    pub(super) fn seclude(&self, table: &Arc<TableState>) -> bool {
        let view = {
            let mut writer = self.writer.lock();
            let structure = table.structure.lock();
            // Who drops it lets go of all that is in memory, and the flusher of what was frozen: perhaps it has done so already.
            if table.is_dropped() {
                return true;
            }
            let view = table.view.load_owned();
            if view.is_none() && table.is_loading() {
                return false;
            }
            // Without a view there are none, but perhaps there is the key.
            let memories = || view.iter().flat_map(|view| view.frozen.iter().chain([&view.active]));
            if let Some(from) = memories().filter_map(|memory| memory.first_segment()).min() {
                // Before the view goes: whoever loads the table then must find it.
                self.background.hold_segment(from);
                *table.unreplayed.lock() = Unreplayed::Somewhere { from, to: self.log.end() };
                self.background.custody.unindexed.lock().insert(table.slot, table.clone());
            }
            table.publisher().show(None);
            writer.forget(table.slot);
            self.withdraw_flushes(table);
            memories().for_each(|memory| self.discharge(table, memory));
            self.background.forget_dirty(table);
            drop(structure);
            view
        };
        self.purge(table);
        self.close_files(table);
        drop(view);
        self.background.wake();
        true
    }

    /// Tell the manifest whose access changed, in one append, and then whoever listens.
    fn record_accesses(&self, tables: &[Arc<TableState>]) -> Result<()> {
        // In slot order, as whoever takes many: so that no drop comes between the look and the edit.
        let structures: Vec<_> = tables.iter().map(|table| table.structure.lock()).collect();
        let mut told: Vec<(&Arc<TableState>, Option<u64>)> = Vec::new();
        for table in tables.iter().filter(|table| !table.is_dropped()) {
            let since_ms = table.access.since_ms();
            let recorded = |state: &State| state.tables.get(&table.slot).map(|meta| meta.rare.inaccessible_since_ms);
            if self.manifest.with_state(recorded).is_some_and(|recorded| recorded != since_ms) {
                told.push((table, since_ms));
            }
        }
        let edits = told.iter().map(|(table, since_ms)| Edit::Access { slot: table.slot, since_ms: *since_ms });
        self.manifest.append(edits.collect()).map_err(|error| self.poison(error))?;
        drop(structures);
        for (table, since_ms) in &told {
            let id = table.id;
            match (since_ms, table.access.refused(id)) {
                (Some(since_ms), Some(Error::TableInaccessible { source, .. })) => {
                    self.events.event(&Event::TableInaccessible { table: id, since_ms: *since_ms, reason: source });
                }
                // It came back while this was being written: that is told next.
                (Some(_), _) => {}
                (None, _) => self.events.event(&Event::TableAccessible { table: id }),
            }
        }
        if !told.is_empty() {
            self.advance_anchor();
        }
        Ok(())
    }

    /// Find the sections of a table in the log, if it is not known where they are; and of others that come back, since the same
    /// segments have to be read for them.
    pub(super) fn index_log(&self, table: &Arc<TableState>) -> Result<()> {
        let custody = &self.background.custody;
        let _searching = custody.searching.lock();
        let range = |table: &Arc<TableState>| match &*table.unreplayed.lock() {
            Unreplayed::Somewhere { from, to } => Some((*from, *to)),
            _ => None,
        };
        if range(table).is_none() {
            return Ok(());
        }
        let wanted = |other: &&Arc<TableState>| Arc::ptr_eq(other, table) || !other.access.is_refused();
        let tables: Vec<_> = custody.unindexed.lock().values().filter(wanted).cloned().collect();
        let ranges: BTreeMap<Slot, _> = tables.iter().filter_map(|table| Some((table.slot, range(table)?))).collect();
        let bounds = ranges.values().copied().reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
        let Some((from, to)) = bounds else { return Ok(()) };
        let slots = ranges.keys().copied().collect();
        let mut found = sections_of(&self.dir, &*self.system.all()?, &self.known_segments(from, to)?, &slots)?;
        for table in &tables {
            let Some((from, to)) = ranges.get(&table.slot) else { continue };
            let flushed = self.manifest.with_state(|state| state.tables.get(&table.slot).map(|meta| meta.flushed));
            let mut own = found.remove(&table.slot).unwrap_or_default();
            own.retain(|part| {
                let behind = (part.segment, part.offset_bytes) < (to.segment, to.end_bytes);
                part.segment >= *from && behind && flushed.is_some_and(|flushed| part.section.last_seq() > flushed)
            });
            #[cfg(test)]
            self.background.between.search_and_note.came();
            self.set_unreplayed(table, Unreplayed::sections(own));
            // Whoever drops the table says so before he lets go of its part of the log: one of the two sees the other.
            if table.is_gone() {
                self.set_unreplayed(table, Unreplayed::Nothing);
            }
        }
        Ok(())
    }

    /// Live segments from `from` up to `to`, with their lengths up to there.
    pub(super) fn known_segments(&self, from: FileNumber, to: LogPoint) -> Result<Vec<KnownSegment>> {
        let segments = self.log.segments_between(from, to);
        let salt_of = |number| self.manifest.with_state(|state| state.segments.get(&number).map(|meta| meta.salt));
        let known = |(number, end_bytes)| {
            let missing = || Error::MissingFile { file: FileName::Log(number).path() };
            Ok(KnownSegment { number, salt: salt_of(number).ok_or_else(missing)?, end_bytes })
        };
        segments.into_iter().map(known).collect()
    }

    /// Replace what is known of a table's part of the log, and hold the segment in which that begins instead of the one before.
    pub(super) fn set_unreplayed(&self, table: &TableState, next: Unreplayed) {
        if !matches!(next, Unreplayed::Somewhere { .. }) {
            self.background.custody.unindexed.lock().remove(&table.slot);
        }
        let new = next.first_segment();
        // The new one first: in between, nobody may think that neither is needed.
        if let Some(segment) = new {
            self.background.hold_segment(segment);
        }
        let before = std::mem::replace(&mut *table.unreplayed.lock(), next);
        if let Some(segment) = before.first_segment() {
            self.background.release_segment(segment);
        }
    }
}

// ---- the prober ------------------------------------------------------------------------------------------------

/// Asks whether refused keys are back, and whether the store's own still is to be had. A task of its own, because it asks providers, which may
/// take their time.
pub(super) struct Prober {
    engine: Arc<Engine>,
    /// When the store's own key is asked for again.
    system: Turn,
    /// When each master key is asked for again, by its ARN.
    turns: BTreeMap<Arc<str>, Turn>,
    /// Tables under a key that is back: each is asked for once.
    wave: Vec<Arc<TableState>>,
}

struct Turn {
    again: Tick,
    pause: Duration,
    /// The table that was asked for last: a refusal may be about one table alone, so each has its turn.
    last: Slot,
}

impl Prober {
    pub(super) fn new(engine: Arc<Engine>) -> Prober {
        // It was asked for just now: nothing is open without it.
        let again = engine.env.clock.tick().after(engine.options.permit);
        let system = Turn { again, pause: PROBE_MIN, last: Slot(0) };
        Prober { engine, system, turns: BTreeMap::new(), wave: Vec::new() }
    }

    /// Ask for the store's own key if it is due; whether it was.
    fn probe_system(&mut self) -> bool {
        if self.engine.env.clock.tick() < self.system.again {
            return false;
        }
        self.system.pause = match self.engine.check_system_key() {
            // As long as any permit lasts.
            true => {
                self.system.again = self.engine.env.clock.tick().after(self.engine.options.permit);
                PROBE_MIN
            }
            false => {
                self.system.again = self.engine.env.clock.tick().after(self.system.pause);
                (self.system.pause * 2).min(PROBE_MAX)
            }
        };
        true
    }

    /// The tables whose key is refused, by the ARN of their master key.
    fn groups(&self) -> BTreeMap<Arc<str>, Vec<Arc<TableState>>> {
        let mut groups: BTreeMap<Arc<str>, Vec<Arc<TableState>>> = BTreeMap::new();
        for table in self.engine.background.custody.refused() {
            groups.entry(self.engine.master_arn(&table)).or_default().push(table);
        }
        groups
    }

    /// Ask for one table of one key that is due; or when there will be one.
    fn probe(&mut self) -> Result<(), Option<Tick>> {
        let now = self.engine.env.clock.tick();
        let groups = self.groups();
        self.turns.retain(|arn, _| groups.contains_key(arn));
        for arn in groups.keys() {
            let first = || Turn { again: now.after(PROBE_MIN), pause: PROBE_MIN, last: Slot(0) };
            self.turns.entry(arn.clone()).or_insert_with(first);
        }
        let Some((arn, turn)) = self.turns.iter_mut().min_by_key(|(_, turn)| turn.again) else { return Err(None) };
        if now < turn.again {
            return Err(Some(turn.again));
        }
        let tables = &groups[arn];
        let Some(table) = tables.iter().find(|table| table.slot > turn.last).or(tables.first()) else {
            return Err(None);
        };
        turn.last = table.slot;
        match self.engine.ask_for_service(table) {
            Ok(_) => {
                self.wave = tables.iter().filter(|other| !Arc::ptr_eq(other, table)).cloned().collect();
                // What is still refused after the wave begins anew.
                turn.pause = PROBE_MIN;
            }
            Err(_) => turn.pause = (turn.pause * 2).min(PROBE_MAX),
        }
        turn.again = self.engine.env.clock.tick().after(turn.pause);
        Ok(())
    }
}

impl Task for Prober {
    fn step(&mut self) -> Step {
        let background = &self.engine.background;
        // Before anything is looked at: an end that comes afterwards is not slept through.
        let signal = background.custody.signal.clone();
        let seen = signal.count();
        if background.stopping() || self.engine.poison.get().is_some() {
            return Step::Done;
        }
        if let Some(table) = self.wave.pop() {
            if table.access.is_refused() && !table.is_dropped() {
                let _ = self.engine.ask_for_service(&table);
            }
            return Step::Again;
        }
        if self.probe_system() {
            return Step::Again;
        }
        match self.probe().map_err(|tick| Some(tick.map_or(self.system.again, |tick| tick.min(self.system.again)))) {
            Ok(()) => Step::Again,
            Err(deadline) => Step::Wait { signal, seen, clock: self.engine.env.clock.clone(), deadline },
        }
    }
}

impl Engine {
    /// The master key that a refused table is under; the table's own id while that cannot be read.
    fn master_arn(&self, table: &Arc<TableState>) -> Arc<str> {
        let known = |refused: &Option<Box<Refused>>| refused.as_ref().and_then(|refused| refused.master_arn.clone());
        if let Some(arn) = known(&table.access.refused.lock()) {
            return arn;
        }
        let read = self.read_key_file(table.slot, table.id).ok();
        let Some(wrap) = read.and_then(|record| record.wraps.into_iter().next_back()) else {
            return table.id.to_string().into();
        };
        let arn: Arc<str> = wrap.key_arn.into();
        if let Some(refused) = &mut *table.access.refused.lock() {
            refused.master_arn = Some(arn.clone());
        }
        arn
    }
}

// ---- the store's own key ---------------------------------------------------------------------------------------

impl Engine {
    /// Ask for the store's own key, as the service, and draw the consequences; whether it may be used. While it is refused every call is, and
    /// nothing is committed; log and manifest stay as they are. It is asked for every five minutes (as long as a permit lasts), and what may pass
    /// changes nothing.
    ///
    /// The key itself stays in memory: the manifest has to say how the store was closed.
    fn check_system_key(&self) -> bool {
        let custody = &self.background.custody;
        let asked = SystemFile::read(&self.dir).and_then(|file| file.unlock(&self.keys));
        let refusal = match asked {
            Ok(_) => None,
            Err(Error::KeyUnavailable { source, .. })
                if matches!(source.class(), ProviderClass::Key | ProviderClass::Principal) =>
            {
                Some(source)
            }
            Err(_) => return !custody.is_system_refused(),
        };
        let Some(source) = refusal else {
            if custody.system_refused.swap(false, Ordering::AcqRel) {
                custody.system.reopen();
                self.events.event(&Event::StoreAccessible);
            }
            return true;
        };
        let (now, wall_ms) = (self.env.clock.tick(), self.env.clock.wall_ms());
        let first = custody.system.refuse(&source, now, wall_ms);
        custody.system_refused.store(true, Ordering::Release);
        // No permit lasts from now on, so that every call finds out why. The ticker sees the flag and leaves it so.
        self.tick.store(Tick(u64::MAX));
        if let (true, Some(since_ms)) = (first, custody.system.since_ms()) {
            self.events.event(&Event::StoreInaccessible { since_ms, reason: source });
        }
        false
    }
}

#[cfg(test)]
mod tests;
