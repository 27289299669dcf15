//! How a store is created and opened.
//!
//! ```text
//! create  provider asked ─ LOCK ─ directories ─ keys/system ─ first log segment ─ manifest ─ CURRENT
//! open    LOCK ─ keys/system ─ provider asked ─ CURRENT ─ manifest ─ epochs ─ every named file is there ─ log walked
//!         ·················· nothing has been written so far: a refusal leaves the directory as it was ··················
//!         what survived of the log made durable ─ new log segment ─ new manifest ─ CURRENT ─ orphans ─ drops carried on
//! ```
//! No file of an earlier opening is written to again, so every opening begins a log segment and a manifest of its own.
//! Nothing is repaired, truncated or removed because a key failed; files that nobody names go only after everything that
//! the manifest names was found, and key files never do.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::access::{Custodian, Prober};
use super::anchor;
use super::builder::{Builder, RecoveryReport};
use super::catalog::{Catalog, TableState, Unreplayed};
use super::commit::Queue;
use super::grants::Grants;
use super::maintenance::{Background, Compactor, Flusher, Keeper, Rotator, Ticker};
use super::readers::Readers;
use super::rekey::erase_key_file;
use super::session::Handle;
use super::snapshot::Moments;
use super::warden::{Agenda, Warden};
use super::{Engine, Store};
use crate::error::{Error, Result};
use crate::event::{Event, EventSink};
use crate::format::keyfile::{KeyFile, KeyState, MasterKind, SystemKeyFile};
use crate::format::manifest::{Edit, KeyPin, TrailHead};
use crate::format::{DIRECTORIES, FileName};
use crate::io::directory::{Directory, refused};
use crate::io::os::TickCell;
use crate::io::{EntryKind, Lock, Signal, Task};
use crate::keys::trail::{Trail, TrailEnd};
use crate::keys::{KeyBroker, KeyProvider, KeySet, SystemKeys, TableLease, refuse_keyring_inside};
use crate::sstable::AheadTask;
use crate::sync::VisibleSeq;
use crate::trace;
use crate::types::{Epoch, FileNumber, Generation, Slot, StoreId, TableId};
use crate::version::manifest::{self, Manifest};
use crate::version::state::{SegmentEnd, SegmentMeta, State, StoreMeta};
use crate::version::system::{Pinned, SystemFile, SystemKey, pin_of};
use crate::wal::replay::{Replayed, SectionRef, SegmentInput, highest_epoch, replay};
use crate::wal::{Log, Sealed};

/// Suffix of a key file that nobody names and that was set aside.
const SET_ASIDE_SUFFIX: &str = ".orphan";

/// Hears nothing.
#[derive(Debug)]
struct NoSink;

impl EventSink for NoSink {
    fn event(&self, _event: &Event) {}
}

/// A store that is about to be open.
pub(super) struct Opening {
    builder: Builder,
    provider: Arc<dyn KeyProvider>,
    dir: Arc<Directory>,
    events: Arc<dyn EventSink>,
}

/// All that an engine is made of once its directory is in order.
struct Parts {
    lock: Box<dyn Lock>,
    keys: KeyBroker,
    system: SystemKeys,
    trail_end: Option<TrailEnd>,
    state: State,
    manifest_number: FileNumber,
    log_segments: BTreeMap<FileNumber, u64>,
    last_tag: crate::crypto::Tag,
    sections: HashMap<Slot, Vec<SectionRef>>,
    next_file: FileNumber,
    /// What was there before this opening made any file.
    listing: Listing,
    report: RecoveryReport,
}

impl Opening {
    pub(super) fn new(builder: Builder) -> Result<Opening> {
        builder.options.validate()?;
        let missing = || Error::InvalidArgument { what: "key provider", detail: "a store needs one".into() };
        let provider = builder.provider.clone().ok_or_else(missing)?;
        let dir = Arc::new(Directory::new(builder.env.vfs.clone(), builder.path.clone()));
        let events = builder.events.clone().unwrap_or_else(|| Arc::new(NoSink));
        #[cfg(feature = "tracing")]
        let events = trace::heard(events);
        for provider in [Some(&provider), builder.owned_provider.as_ref()].into_iter().flatten() {
            refuse_keyring_inside(&**provider, &builder.path, &*builder.env.vfs)?;
        }
        if let Some(trail) = &builder.trail {
            trail.check_outside(&builder.path, &*builder.env.vfs)?;
        }
        Ok(Opening { builder, provider, dir, events })
    }

    fn broker(&self, store: StoreId) -> KeyBroker {
        KeyBroker::new(
            store,
            self.provider.clone(),
            self.builder.owned_provider.clone(),
            &self.builder.env,
            self.builder.options.permit,
            Some(self.events.clone()),
        )
        .serving_stale(self.builder.options.serve_stale)
        .counting(self.dir.meters().clone())
    }

    fn path(&self) -> String {
        self.builder.path.display().to_string()
    }

    fn take_lock(&self) -> Result<Box<dyn Lock>> {
        self.builder.env.vfs.lock(&self.dir.path(&FileName::Lock.path())).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked { path: self.path() },
            _ => refused("lock", "LOCK", error),
        })
    }

    fn random<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.builder.env.entropy.fill(&mut bytes).map_err(|error| Error::io("draw", "random bytes", error))?;
        Ok(bytes)
    }

    // ---- create ----

    pub(super) fn create(self) -> Result<Store> {
        let _span = trace::span!(INFO, "create").entered();
        self.check_vacant()?;
        let store = StoreId::from_bytes(self.random()?);
        let lineage = self.random()?;
        // The provider is asked before anything is written.
        let keys = self.broker(store);
        let generation = Generation(1);
        let new = keys.new_system_key(generation)?;
        let suite = self.builder.system_suite();
        let system = KeySet::one(new.key);
        let trail_end = self.find_trail(store, &system, None)?;

        self.make_directory()?;
        let lock = self.take_lock()?;
        // Somebody else may have created a store here before the lock was ours.
        self.check_vacant()?;
        self.clear_unfinished()?;
        for name in DIRECTORIES {
            self.dir.ensure_dir(name)?;
        }
        let created_ms = self.builder.env.clock.wall_ms();
        let record = KeyFile {
            table: TableId::SYSTEM,
            version: 1,
            state: KeyState::Active,
            since_ms: created_ms,
            master: MasterKind::Owned,
            wraps: vec![new.wrap.clone()],
        };
        let (bytes, tag) = SystemKeyFile::seal(&record, system.current(), suite, &*self.builder.env.entropy)?;
        let name = FileName::SystemKey;
        self.dir.replace(&name.path(), &name.temporary_path(), &bytes)?;
        self.dir.sync_dir(&name.directory())?;

        let pin = KeyPin { version: 1, tag, generations: vec![(generation, *system.current().commitment())] };
        let real_entropy = self.builder.env.entropy.is_real();
        let meta = StoreMeta { store, lineage, created_ms, real_entropy, suite };
        let parts = Parts {
            lock,
            keys,
            system: SystemKeys::new(system),
            trail_end,
            state: State::new(meta, pin),
            manifest_number: FileNumber(1),
            log_segments: BTreeMap::new(),
            last_tag: Default::default(),
            sections: HashMap::new(),
            next_file: FileNumber(2),
            listing: Listing::default(),
            report: RecoveryReport { clean: true, ..RecoveryReport::default() },
        };
        let store = self.start(parts)?;
        self.sync_parent()?;
        Ok(store)
    }

    /// That there is nothing at the path, or an empty directory, or what a creation that was cut short left.
    fn check_vacant(&self) -> Result<()> {
        let taken = || Error::AlreadyExists { path: self.path() };
        match self.dir.metadata("")? {
            None => return Ok(()),
            Some(metadata) if metadata.kind != EntryKind::Directory => return Err(taken()),
            Some(_) => {}
        }
        let ours = |name: &str| DIRECTORIES.contains(&name) || name == "LOCK" || name.starts_with("CURRENT.");
        let entries = self.dir.list("")?;
        if entries.iter().all(|entry| ours(&entry.name)) && self.dir.metadata(&FileName::Current.path())?.is_none() {
            // Directories of ours without a CURRENT are an unfinished creation, unless they hold tables.
            let tables = self.dir.list("keys")?.into_iter().any(|entry| entry.kind == EntryKind::Directory);
            let sorted = !self.dir.list("sst")?.is_empty();
            if !tables && !sorted {
                return Ok(());
            }
        }
        Err(taken())
    }

    fn make_directory(&self) -> Result<()> {
        match self.builder.env.vfs.create_dir(&self.builder.path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(refused("create", &self.path(), error))
            }
            _ => self.check_private(),
        }
    }

    fn check_private(&self) -> Result<()> {
        let checked = self.builder.env.vfs.check_private(&self.builder.path);
        checked.map_err(|error| Error::io("trust", self.path(), error))
    }

    /// Remove what a creation that was cut short left: nothing of it was ever anybody's data.
    fn clear_unfinished(&self) -> Result<()> {
        for directory in ["manifest", "wal", "keys", ""] {
            for entry in self.dir.list(directory)? {
                let name = join(directory, &entry.name);
                if entry.kind == EntryKind::File && name != FileName::Lock.path() {
                    self.dir.remove(&name)?;
                }
            }
        }
        Ok(())
    }

    fn sync_parent(&self) -> Result<()> {
        let Some(parent) = self.builder.path.parent() else { return Ok(()) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        self.builder.env.vfs.sync_dir(parent).map_err(|error| Error::io("sync", parent.display(), error))
    }

    // ---- open ----

    pub(super) fn open(self) -> Result<Store> {
        let _span = trace::span!(INFO, "open").entered();
        let not_a_store = || Error::NotAStore { path: self.path() };
        match self.dir.metadata("")? {
            Some(metadata) if metadata.kind == EntryKind::Directory => {}
            _ => return Err(not_a_store()),
        }
        let exists = |name: FileName| Ok::<_, Error>(self.dir.metadata(&name.path())?.is_some());
        // A creation that was cut short made no store: CURRENT comes last. And a directory of other things is not to be
        // touched, not even by a lock.
        if !exists(FileName::Current)? && (!exists(FileName::SystemKey)? || self.check_vacant().is_ok()) {
            return Err(not_a_store());
        }
        self.check_private()?;
        let lock = self.take_lock()?;
        let file = SystemFile::read(&self.dir)?;
        let keys = self.broker(file.store());
        let system = file.unlock(&keys)?;
        let found = manifest::read(&self.dir, &system.keys)?;
        let state = found.state;
        self.check_state(&state, &system)?;
        let listing = self.check_files(&state)?;
        let log = self.walk_log(&state, &system.keys, found.closed)?;
        let attested = log.epoch.max(self.epoch_beside(&listing, &state, &system.keys));
        if attested > state.epoch {
            return Err(Error::RolledBack { found: state.epoch, attested });
        }
        let trail_end = self.find_trail(state.store.store, &system.keys, state.trail.as_ref())?;

        trace::event!(
            INFO, "recovered";
            clean = found.closed,
            tables = state.tables.len() as u64,
            log_segments = state.segments.len() as u64,
            discarded_log_bytes = log.discarded_bytes,
            discarded_manifest_bytes = found.discarded_bytes
        );

        // From here on the directory changes.
        if !found.closed {
            self.make_log_durable(&log)?;
        }
        let report = RecoveryReport {
            clean: found.closed,
            discarded_log_bytes: log.discarded_bytes,
            discarded_manifest_bytes: found.discarded_bytes,
            ..RecoveryReport::default()
        };
        let next_file = next_number(&listing, &state)?;
        let manifest_number = next_file;
        let next_file = next_file.next().ok_or_else(|| exhausted("file number"))?;
        let next = self.next_state(state, &system, &log)?;
        let lengths = |(&number, meta): (&FileNumber, &SegmentMeta)| Some((number, meta.end?.end_bytes));
        let next_segments = next.segments.iter().filter_map(lengths).collect();
        let parts = Parts {
            lock,
            keys,
            system: SystemKeys::new(system.keys),
            trail_end,
            state: next,
            manifest_number,
            log_segments: next_segments,
            last_tag: log.last_tag,
            sections: log.sections,
            next_file,
            listing,
            report,
        };
        self.start(parts)
    }

    /// Where the trail goes on, if there is to be one.
    fn find_trail(&self, store: StoreId, system: &KeySet, head: Option<&TrailHead>) -> Result<Option<TrailEnd>> {
        self.builder.trail.as_ref().map(|trail| trail.find_end(store, system, head)).transpose()
    }

    fn check_state(&self, state: &State, system: &SystemKey) -> Result<()> {
        system.check_pin(&state.system_key)?;
        #[cfg(strongroom_plaintext_baseline)]
        self.builder.check_suite(state.store.suite)?;
        if self.builder.min_epoch > state.epoch {
            return Err(Error::RolledBack { found: state.epoch, attested: self.builder.min_epoch });
        }
        if let Some(anchor) = &self.builder.anchor {
            anchor::check(&**anchor, state.store.store, state.epoch, state.store.lineage)?;
        }
        if self.builder.env.entropy.is_real() && !state.store.real_entropy {
            let detail = "it was made with injected randomness, so its keys may be known; it is for tests only";
            return Err(Error::InvalidArgument { what: "store", detail: detail.into() });
        }
        Ok(())
    }

    /// That every file that the manifest names is there. Returns all that are.
    fn check_files(&self, state: &State) -> Result<Listing> {
        let listing = Listing::of(&self.dir)?;
        let tables = state.tables.values().filter(|table| !table.record.dropping);
        let named = tables.flat_map(|table| {
            let files = table.files.values().map(|(_, file)| file.file_name());
            files.chain([FileName::KeyFile(table.record.id)])
        });
        let journals = state.segments.keys().map(|&number| FileName::Log(number));
        let parked = state.parked.values().map(|record| record.name());
        for name in named.chain(journals).chain(parked) {
            if !listing.files.contains(&name) {
                return Err(Error::MissingFile { file: name.path() });
            }
        }
        Ok(listing)
    }

    /// The highest epoch that log segments attest which the manifest does not know. A segment has commits only once a durable
    /// manifest names it, so one with a higher epoch than the manifest's shows that an older manifest was put back.
    fn epoch_beside(&self, listing: &Listing, state: &State, system: &KeySet) -> Epoch {
        let unknown = listing.files.iter().filter_map(|name| match *name {
            FileName::Log(number) if !state.segments.contains_key(&number) => Some(number),
            _ => None,
        });
        unknown.map(|number| highest_epoch(&self.dir, system, number)).max().unwrap_or_default()
    }

    fn walk_log(&self, state: &State, system: &KeySet, closed: bool) -> Result<Replayed> {
        let input = |(&number, meta): (&FileNumber, &SegmentMeta)| SegmentInput {
            number,
            salt: meta.salt,
            end: meta.end.map(|end| (end.end_bytes, end.tag)),
        };
        let segments: Vec<SegmentInput> = state.segments.iter().map(input).collect();
        replay(&self.dir, system, &segments, state.log_synced, closed)
    }

    /// What was found of the log may be in the system's memory only. It must be on the medium before the manifest says that the
    /// log ends behind it.
    fn make_log_durable(&self, log: &Replayed) -> Result<()> {
        for &number in log.ends.keys() {
            let name = FileName::Log(number).path();
            self.dir.open(&name)?.sync().map_err(|error| refused("sync", &name, error))?;
        }
        Ok(())
    }

    /// The picture with which this opening begins: the old one, with where the log ends.
    fn next_state(&self, mut state: State, system: &SystemKey, log: &Replayed) -> Result<State> {
        state.epoch = state.epoch.next().ok_or_else(|| exhausted("epoch"))?;
        // A map that grew entry by entry is half empty.
        state.tables = std::mem::take(&mut state.tables).into_iter().collect();
        state.store.lineage = self.random()?;
        state.last_seq = state.last_seq.max(log.last_seq);
        state.log_synced = state.log_synced.max(log.end);
        for number in &log.discarded_segments {
            state.segments.remove(number);
        }
        for (number, &(end_bytes, tag)) in &log.ends {
            if let Some(meta) = state.segments.get_mut(number) {
                meta.end = Some(SegmentEnd { end_bytes, tag });
            }
        }
        // Segments of which no table needs anything go with this picture.
        let needed = |(slot, sections): (&Slot, &Vec<SectionRef>)| {
            let flushed = state.tables.get(slot).filter(|meta| !meta.record.dropping)?.flushed;
            sections.iter().find(|section| section.section.last_seq() > flushed).map(|section| section.segment)
        };
        let oldest = log.sections.iter().filter_map(needed).min();
        state.segments.retain(|number, _| oldest.is_some_and(|oldest| *number >= oldest));
        // A key file that is one ahead of its pin was written just before a crash cut its edit off.
        if system.check_pin(&state.system_key)? != Pinned::Same {
            state.system_key = pin_of(&system.file.record, system.file.tag);
        }
        Ok(state)
    }

    // ---- both ----

    /// Write the first files of this opening, and bring the engine up.
    fn start(&self, parts: Parts) -> Result<Store> {
        let Parts {
            lock,
            keys,
            system,
            trail_end,
            mut state,
            manifest_number,
            log_segments,
            last_tag,
            sections,
            next_file,
            listing,
            report,
        } = parts;
        let env = self.builder.env.clone();
        let suite = state.store.suite;
        let (log, writer) =
            Log::new(self.dir.clone(), env.entropy.clone(), system.clone(), suite, log_segments.clone(), last_tag);
        // The first segment is named by the picture itself, so that the first commit finds it ready.
        let segment_number = next_file;
        let next_file = next_file.next().ok_or_else(|| exhausted("file number"))?;
        let segment = log.create_segment(segment_number)?;
        state.segments.insert(segment_number, SegmentMeta { salt: segment.salt(), end: None });
        state.next_file = state.next_file.max(next_file);
        log.offer_spare(segment);
        if let (Some(setting), Some(end)) = (&self.builder.trail, &trail_end) {
            let trail = Trail::new(setting, state.store.store, end, system.clone(), &env, Some(self.events.clone()));
            for meta in state.tables.values() {
                trail.name_table(meta.record.id, &meta.record.name);
            }
            // What survived a crash is attested from now on.
            if let Some(head) = trail.head_due(true) {
                state.trail = Some(head);
                trail.attested(&head);
            }
            keys.set_trail(trail);
        }
        let manifest = Manifest::create(
            self.dir.clone(),
            env.entropy.clone(),
            system.clone(),
            suite,
            manifest_number,
            state.clone(),
        )?;

        let sealed = sealed_in(&sections, &state);
        log.note_sealed(sealed);
        let mut tables = Vec::with_capacity(state.tables.len());
        let background = Background::new();
        let mut sections = sections;
        for meta in state.tables.values().filter(|meta| !meta.record.dropping) {
            let mut own = sections.remove(&meta.record.slot).unwrap_or_default();
            own.retain(|section| section.section.last_seq() > meta.flushed);
            let own = Unreplayed::sections(own);
            if let Some(segment) = own.first_segment() {
                background.hold_segment(segment);
            }
            let (lease, since_ms) = (TableLease::new(meta.record.id), meta.rare.inaccessible_since_ms);
            let table = Arc::new(TableState::new(&meta.record, lease, own, since_ms));
            if since_ms.is_some() {
                background.custody.take_in(&table);
            }
            if meta.record.key.generations.len() > 1 {
                background.hold_rotation(&table);
            }
            tables.push(table);
        }
        let catalog = Catalog::of(tables);
        state.grants.values().for_each(|grant| keys.know_grant(grant));
        if state.system_key.generations.len() > 1 {
            background.rotate_system();
        }
        background.schedules.take_in(&state);
        let mut options = self.builder.options.clone();
        // The other half is the program's own, the log's and the key provider's.
        let open_max = env.vfs.open_files_max().map_or(usize::MAX, |files| (files / 2).max(1));
        options.open_tables_max = options.open_tables_max.min(open_max);
        let readers = Readers::new(self.dir.clone(), &options);
        let files = state.tables.iter().flat_map(|(slot, meta)| meta.files.values().map(|(_, file)| (&**file, *slot)));
        readers.know_containers(files);
        let engine = Arc::new(Engine {
            store: state.store.store,
            tick: TickCell::new(keys.advance()),
            readers: Arc::new(readers),
            meters: self.dir.meters().clone(),
            opened: env.clock.tick(),
            dir: self.dir.clone(),
            env,
            options,
            events: self.events.clone(),
            keys,
            system,
            system_suite: suite,
            catalog,
            manifest,
            log,
            writer: Mutex::new(writer),
            queue: Queue::default(),
            visible: VisibleSeq::new(state.last_seq),
            moments: Arc::new(Moments::default()),
            background,
            agenda: Agenda::default(),
            grants: Grants::default(),
            authorizer: self.builder.authorizer.clone(),
            loaded: Signal::new(),
            creating: Mutex::new(()),
            preparing: Mutex::new(()),
            next_file: AtomicU64::new(next_file.0),
            next_slot: AtomicU64::new(u64::from(state.next_slot.0)),
            poison: OnceLock::new(),
            closed: AtomicBool::new(false),
            recovery: OnceLock::new(),
            anchor: self.builder.anchor.clone(),
            anchoring: Mutex::new(()),
            tasks: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        });
        // From here on dropping the handle closes the engine.
        let handle = Arc::new(Handle::new(engine.clone()));
        let report = engine.tidy_up(&state, listing, report)?;
        let _ = engine.recovery.set(report);
        engine.spawn_tasks()?;
        engine.advance_anchor();
        Ok(Store { handle })
    }
}

impl Engine {
    /// What was found when the store was opened.
    pub(super) fn recovery(&self) -> &RecoveryReport {
        self.recovery.get_or_init(RecoveryReport::default)
    }

    /// Remove what nobody names of the files there were, set key files aside, and carry on with drops that were cut short.
    /// Everything that the manifest names has been found.
    fn tidy_up(&self, state: &State, listing: Listing, mut report: RecoveryReport) -> Result<RecoveryReport> {
        for meta in state.tables.values().filter(|meta| meta.record.dropping) {
            erase_key_file(&self.dir, meta.record.id)?;
            self.events.event(&Event::TableShredded { table: meta.record.id });
            let forget = vec![Edit::ForgetTable { slot: meta.record.slot }];
            self.manifest.append(forget).map_err(|error| self.poison(error))?;
            // Its key file may be half erased already. The next creation or drop finds out whose grant is needed no more.
            self.suspect_all_grants();
        }
        let manifest = self.manifest.number();
        let tables: HashMap<TableId, (Slot, bool)> =
            state.tables.values().map(|meta| (meta.record.id, (meta.record.slot, meta.record.dropping))).collect();
        let files = state.tables.values().flat_map(|meta| meta.files.values());
        let files: HashSet<FileName> = files.map(|(_, file)| file.file_name()).collect();
        for name in listing.files {
            let keep = match name {
                FileName::Lock | FileName::Current | FileName::SystemKey => true,
                FileName::Manifest(number) => number == manifest,
                FileName::Log(number) => state.segments.contains_key(&number),
                FileName::Table(_) | FileName::Container(_) => files.contains(&name),
                FileName::Parked(number, _) => state.parked.contains_key(&number),
                // That of a table that is being dropped was erased above.
                FileName::KeyFile(table) if tables.contains_key(&table) => true,
                FileName::KeyFile(_) => {
                    let path = name.path();
                    self.dir.rename(&path, &format!("{path}{SET_ASIDE_SUFFIX}"))?;
                    self.events.event(&Event::OrphanSetAside { file: path.clone() });
                    report.set_aside_files.push(path);
                    true
                }
            };
            if !keep {
                self.dir.remove(&name.path())?;
                report.removed_files.push(name.path());
            }
        }
        for name in listing.temporary {
            match name {
                // A replacement of a key file was cut short.
                FileName::KeyFile(table) => match tables.get(&table) {
                    Some(&(slot, false)) => self.settle_staged(slot, table)?,
                    _ => erase_key_file(&self.dir, table)?,
                },
                FileName::SystemKey => self.settle_staged_system_key()?,
                // This opening's own has taken its place, and was renamed since.
                FileName::Current => {}
                // Any other was never anybody's.
                _ => {
                    self.dir.remove(&name.temporary_path())?;
                    report.removed_files.push(name.temporary_path());
                }
            }
        }
        if report.discarded_log_bytes > 0 {
            let end = self.log.synced();
            self.events.event(&Event::TailDiscarded {
                file: FileName::Log(end.segment).path(),
                offset_bytes: end.end_bytes,
                len_bytes: report.discarded_log_bytes,
            });
        }
        Ok(report)
    }

    fn spawn_tasks(self: &Arc<Engine>) -> Result<()> {
        for (name, task) in self.background_tasks() {
            let join = self.env.scheduler.spawn(name, task).map_err(|error| Error::io("spawn", name, error))?;
            self.tasks.lock().push(join);
        }
        Ok(())
    }

    /// The tasks that run for as long as the store is open.
    pub(super) fn background_tasks(self: &Arc<Engine>) -> Vec<(&'static str, Box<dyn Task>)> {
        let mut tasks: Vec<(&'static str, Box<dyn Task>)> = vec![
            ("strongroom-ticker", Box::new(Ticker::new(self.clone()))),
            ("strongroom-keeper", Box::new(Keeper::new(self.clone()))),
            ("strongroom-warden", Box::new(Warden::new(self.clone()))),
            ("strongroom-flush", Box::new(Flusher::new(self.clone()))),
            ("strongroom-custodian", Box::new(Custodian::new(self.clone()))),
            ("strongroom-prober", Box::new(Prober::new(self.clone()))),
            ("strongroom-rotate", Box::new(Rotator::new(self.clone()))),
        ];
        for _ in 0..self.options.compaction_threads {
            tasks.push(("strongroom-compact", Box::new(Compactor::new(self.clone()))));
        }
        tasks.push(("strongroom-helper", Box::new(Compactor::helper(self.clone()))));
        let ahead = AheadTask::new(self.background.ahead.clone(), self.env.clock.clone());
        tasks.push(("strongroom-ahead", Box::new(ahead)));
        tasks
    }
}

/// Bytes of sections in each live segment.
fn sealed_in(sections: &HashMap<Slot, Vec<SectionRef>>, state: &State) -> BTreeMap<FileNumber, Sealed> {
    let mut sealed: BTreeMap<FileNumber, Sealed> = BTreeMap::new();
    for part in sections.values().flatten().filter(|part| state.segments.contains_key(&part.segment)) {
        let key = (part.section.slot, part.section.generation);
        *sealed.entry(part.segment).or_default().entry(key).or_default() += part.section.len_bytes;
    }
    sealed
}

fn exhausted(what: &'static str) -> Error {
    Error::LimitExceeded { what, limit: u64::MAX, actual: u64::MAX }
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// What lies in a store's directory, as far as it is ours.
#[derive(Default)]
struct Listing {
    files: BTreeSet<FileName>,
    /// Files that would have been these.
    temporary: BTreeSet<FileName>,
}

impl Listing {
    /// Down to the depth at which we keep files.
    fn of(dir: &Directory) -> Result<Listing> {
        let mut listing = Listing::default();
        let mut directories = vec![(String::new(), 0)];
        while let Some((directory, depth)) = directories.pop() {
            for entry in dir.list(&directory)? {
                let path = join(&directory, &entry.name);
                match entry.kind {
                    EntryKind::File => listing.add(&path),
                    EntryKind::Directory if depth < 2 => directories.push((path, depth + 1)),
                    _ => {}
                }
            }
        }
        Ok(listing)
    }

    fn add(&mut self, path: &str) {
        if let Some(name) = FileName::parse(path) {
            self.files.insert(name);
        } else if let Some(name) = FileName::parse_temporary(path) {
            self.temporary.insert(name);
        }
    }
}

/// A number that no file of this store has or had.
fn next_number(listing: &Listing, state: &State) -> Result<FileNumber> {
    let number = |name: &FileName| match *name {
        FileName::Manifest(number)
        | FileName::Log(number)
        | FileName::Table(number)
        | FileName::Container(number)
        | FileName::Parked(number, _) => Some(number),
        _ => None,
    };
    let highest = listing.files.iter().chain(&listing.temporary).filter_map(number).max().unwrap_or_default();
    let next = highest.next().ok_or_else(|| exhausted("file number"))?;
    Ok(next.max(state.next_file))
}
