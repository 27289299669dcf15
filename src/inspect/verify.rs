//! Every seal and every link, with the keys.
//!
//! ```text
//! keys/system ──> CURRENT ──> manifest ──┬──> keys/system, keys/xx/..   version, tag and commitments pinned
//!      system key opens                  ├──> wal/..                    salt pinned; envelopes chained; sections under the tables' keys
//!                                        ├──> parked/..                 salt, length and last tag pinned; sections as in the log
//!                                        └──> sst/xx/..                 salt, length, last tag, counts and bounds pinned
//! ```
//! It goes along the arrows. Where one breaks before the manifest is known, there is no telling what should be there; then the
//! checksums of all files are checked instead, so that the report still says how far the damage goes.
//!
//! What each part means by *whole* is that part's own code, the same that runs when a store opens: a store that verifies opens, and one that
//! does not open says here why. What opening leaves for later (sections, sorted tables, key files of tables) is done here at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::scrub::{Walked, walk, walk_within};
use super::{Inspection, Listed, Meter, Progress, Source, What, list, provider};
use crate::crypto::TableKey;
use crate::error::{Error, Result};
use crate::format::frame::{FileHeader, HEADER_BYTES};
use crate::format::log::LogPoint;
use crate::format::manifest::{FileRecord, KeyPin, ParkedRecord};
use crate::format::{FileName, Where};
use crate::io::Lock;
use crate::io::directory::{Directory, refused};
use crate::keys::{KeyBroker, KeyProvider, KeySet, Principal};
use crate::sstable::{self, BlockCache, TableReader, TableSettings};
use crate::types::{Epoch, FileNumber, Seq, Slot, TableId};
use crate::version::manifest::{self, Found};
use crate::version::state::TableMeta;
use crate::version::system::{Pinned, SystemFile, SystemKey, read_key_file};
use crate::version::{Change, TableFile, Version};
use crate::wal::parked::ParkedFile;
use crate::wal::replay::{self, Replayed, SectionRef, SegmentInput};

/// Nothing is read twice but index blocks.
const CACHE_BYTES: usize = 4 << 20;

/// What [`verify`](super::verify) found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Files that were read.
    pub files: u64,
    /// Frames whose seals were opened and found right.
    pub frames: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Frames whose checksums are right and whose seals could not be opened: those of tables whose keys are
    /// [unavailable](VerifyReport::unavailable) or were shredded, and all that no authentic manifest vouches for.
    pub unopened_frames: u64,
    /// Entries that were read in the log and in sorted tables, older versions and deletes included.
    pub entries: u64,
    /// Number of the last durable change of the store's metadata, if the manifest could be read. That it is the one that you expect is
    /// not for the directory to say: an older copy of all of it verifies.
    pub epoch: Option<Epoch>,
    /// Whether the store was closed cleanly. Otherwise it has to recover when it is opened, which this report foresees: whatever is wrong beyond
    /// what recovery discards is in `damages`.
    pub closed: bool,
    /// Bytes of log and manifest that were never durable, so that recovery discards or has discarded them.
    pub discarded_bytes: u64,
    /// What is wrong, in the order in which it was found; of one file at most [`DAMAGES_MAX`](super::DAMAGES_MAX) places.
    pub damages: Vec<Error>,
    /// Tables whose keys the provider did not give, so that their seals were not verified.
    pub unavailable: Vec<UnavailableTable>,
    /// Files that nothing in the store names, relative to it: what a crash or an earlier state left, which the next open removes,
    /// or what somebody else put there. They are no part of the store.
    pub orphans: Vec<String>,
}

impl VerifyReport {
    /// Whether every seal was opened and is right. Orphans do no harm.
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty() && self.unavailable.is_empty()
    }
}

/// A table whose seals could not be verified.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnavailableTable {
    /// The table.
    pub table: TableId,
    /// Its name.
    pub name: String,
    /// Why its key was not to be had.
    pub error: Error,
    /// Frames of the log and of sorted tables that were checked against their checksums only.
    pub frames: u64,
}

pub(super) fn verify(inspection: &Inspection, progress: &mut dyn FnMut(Progress<'_>)) -> Result<VerifyReport> {
    let provider = provider(inspection)?;
    let dir = inspection.directory();
    // Looked at before the lock is taken, which would make a lock file in a directory that is no store.
    list(&dir)?;
    let _lock = lock(&dir)?;
    let listed = list(&dir)?;
    let mut verifier = Verifier {
        dir: &dir,
        meter: Meter::new(&listed, progress),
        listed: listed.iter().map(|listed| (listed.name.as_str(), listed)).collect(),
        read: BTreeSet::new(),
        places: BTreeSet::new(),
        report: VerifyReport::default(),
    };
    verifier.run(inspection, provider)?;
    verifier.meter.end();
    Ok(verifier.report)
}

/// Keep others from opening the store meanwhile. A store without a lock file is a copy that nobody ever opened, and none is made; on
/// media that cannot be written nobody can have it open for writing.
pub(super) fn lock(dir: &Directory) -> Result<Option<Box<dyn Lock>>> {
    let name = FileName::Lock.path();
    if dir.metadata(&name)?.is_none() {
        return Ok(None);
    }
    match dir.vfs().lock(&dir.path(&name)) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::Locked { path: dir.root().display().to_string() })
        }
        Err(error) => Err(refused("lock", &name, error)),
    }
}

struct Verifier<'a> {
    dir: &'a Directory,
    meter: Meter<'a>,
    listed: BTreeMap<&'a str, &'a Listed>,
    /// Files that were looked at.
    read: BTreeSet<String>,
    /// Places of which a damage was noted.
    places: BTreeSet<(String, u64)>,
    report: VerifyReport,
}

impl Verifier<'_> {
    fn run(&mut self, inspection: &Inspection, provider: Arc<dyn KeyProvider>) -> Result<()> {
        if let Some((broker, system)) = self.system_key(inspection, provider)?
            && let Some(found) = self.manifest(&system)
        {
            self.check_system_key(&system, &found.state.system_key, found.state.store.store == system.store);
            let log = self.log(&system, &found);
            self.tables(&broker, &system, &found, &log);
            self.orphans(&system, found.state.epoch);
        }
        self.rest();
        Ok(())
    }

    // ---- what everything else hangs on -----------------------------------------------------------------------

    /// The system key; `None` if its file is damaged, and an error if the provider does not give it.
    fn system_key(
        &mut self,
        inspection: &Inspection,
        provider: Arc<dyn KeyProvider>,
    ) -> Result<Option<(KeyBroker, SystemKey)>> {
        let file = match SystemFile::read(self.dir) {
            Ok(file) => file,
            Err(Error::NotAStore { .. }) => {
                // There is more in the directory, or this would have ended earlier.
                for name in [FileName::SystemKey, FileName::Current] {
                    self.damage(Error::MissingFile { file: name.path() });
                }
                return Ok(None);
            }
            Err(error) => {
                self.damage(error);
                return Ok(None);
            }
        };
        let environment = &inspection.environment;
        let owned = inspection.owned.clone();
        // No permits here: a key that was unwrapped is used for this run.
        let permit = std::time::Duration::MAX;
        let broker = KeyBroker::new(file.store(), provider, owned, environment, permit, None);
        match file.unlock(&broker) {
            Ok(system) => Ok(Some((broker, system))),
            // Not what is in the directory is wrong here, but who looks at it: no report could say anything.
            Err(error @ (Error::KeyUnavailable { .. } | Error::WrongKey { .. })) => Err(error),
            Err(error) => {
                self.damage(error);
                Ok(None)
            }
        }
    }

    /// `CURRENT` and the manifest.
    fn manifest(&mut self, system: &SystemKey) -> Option<Found> {
        let found = match manifest::read(self.dir, &system.keys) {
            Ok(found) => found,
            Err(error) => {
                self.damage(error);
                return None;
            }
        };
        self.report.epoch = Some(found.state.epoch);
        self.report.closed = found.closed;
        self.report.discarded_bytes += found.discarded_bytes;
        // Their seals are opened already; the walks count frames, and see that nothing else is wrong.
        self.walk(FileName::Current, 0);
        self.walk(FileName::Manifest(found.number), found.discarded_bytes);
        Some(found)
    }

    /// Walk through a file whose seals are checked, all but the `behind` bytes at its end.
    fn walk(&mut self, name: FileName, behind: u64) {
        if let Some(walked) = self.walk_file(name, behind) {
            self.report.frames += walked.frames;
            self.add(walked.damages);
            self.add(walked.unfinished);
        }
    }

    fn check_system_key(&mut self, system: &SystemKey, pin: &KeyPin, is_this_store: bool) {
        let name = FileName::SystemKey;
        let path = name.path();
        if !is_this_store {
            self.damage(Where::new(&path, 0).tampered("the manifest is another store's"));
        }
        if let Err(error) = system.check_pin(pin) {
            self.damage(error);
        }
        self.copies(name, system.file.both_copies_good);
    }

    /// Walk through a key file that was opened.
    fn copies(&mut self, name: FileName, both_good: bool) {
        let before = self.report.damages.len();
        self.walk(name, 0);
        if !both_good && self.report.damages.len() == before {
            self.damage(Where::new(&name.path(), 0).tampered("one of the two copies does not open"));
        }
    }

    // ---- the log ---------------------------------------------------------------------------------------------

    fn log(&mut self, system: &SystemKey, found: &Found) -> Replayed {
        let state = &found.state;
        let inputs = state.segments.iter().map(|(&number, segment)| SegmentInput {
            number,
            salt: segment.salt,
            end: segment.end.map(|end| (end.end_bytes, end.tag)),
        });
        let inputs: Vec<SegmentInput> = inputs.collect();
        let replayed = replay::replay(self.dir, &system.keys, &inputs, state.log_synced, found.closed);
        let log = match replayed {
            Ok(log) => log,
            Err(error) => {
                self.damage(error);
                // All that is wrong, and not only where reading ended.
                for input in &inputs {
                    if let Some(walked) = self.walk_file(FileName::Log(input.number), 0) {
                        self.report.unopened_frames += walked.frames;
                        self.add(walked.damages);
                    }
                }
                return Replayed::default();
            }
        };
        if log.epoch > state.epoch {
            self.damage(Error::RolledBack { found: state.epoch, attested: log.epoch });
        }
        self.segments(found, &log);
        log
    }

    /// Walk through the segments as far as they count.
    fn segments(&mut self, found: &Found, log: &Replayed) {
        let closed_in = found.state.segments.iter().rfind(|(_, segment)| segment.end.is_some());
        let closed_in = closed_in.map(|(&number, _)| number).filter(|_| found.closed);
        let mut frames = 0;
        for &number in found.state.segments.keys() {
            let name = FileName::Log(number);
            let path = name.path();
            let len_bytes = self.listed.get(path.as_str()).map_or(0, |listed| listed.len_bytes);
            let counts_bytes = log.ends.get(&number).map(|(end_bytes, _)| *end_bytes).unwrap_or_default();
            let behind = len_bytes.saturating_sub(counts_bytes);
            // What recovery left behind an end is no damage; behind a clean close there was nothing.
            if closed_in == Some(number) && behind > 0 {
                let added = "bytes were added behind the end of the closed log";
                self.damage(Where::new(&path, counts_bytes).tampered(added));
            } else if behind > 0 && !self.is_reserved(&path, counts_bytes) {
                self.report.discarded_bytes += behind;
            }
            if let Some(walked) = self.walk_file(name, behind) {
                frames += walked.frames;
                self.add(walked.damages);
                self.add(walked.unfinished);
            }
        }
        // Those of envelopes; sections are counted when they are opened.
        self.report.frames += frames.saturating_sub(log.sections.values().flatten().map(section_frames).sum());
    }

    /// Open a table's sections and decode all their entries.
    fn sections(&mut self, system: &SystemKey, found: &Found, table: TableId, keys: &KeySet, sections: &[SectionRef]) {
        let salts = |segment: FileNumber| found.state.segments.get(&segment).map(|segment| segment.salt);
        let key_of =
            |generation| keys.generation(generation).map(|key| &**key).ok_or(Error::WrongKey { table, generation });
        let mut from = 0;
        while from < sections.len() {
            let (mut seen, mut entries) = (Seq::ZERO, 0);
            let read = replay::entries(
                self.dir,
                &system.keys,
                &salts,
                &key_of,
                &sections[from..],
                Seq::ZERO,
                &mut |_, seq, _, _, _| {
                    seen = seq;
                    entries += 1;
                    Ok(())
                },
            );
            self.report.entries += entries;
            let Err(error) = read else {
                self.report.frames += sections[from..].iter().map(section_frames).sum::<u64>();
                return;
            };
            self.damage(error);
            // Go on behind the section in which that happened, which is the first that did not end.
            let whole = sections[from..].iter().take_while(|part| part.section.last_seq() <= seen).count();
            self.report.frames += sections[from..from + whole].iter().map(section_frames).sum::<u64>();
            self.report.unopened_frames += sections.get(from + whole).map_or(0, section_frames);
            from += whole + 1;
        }
    }

    // ---- tables ----------------------------------------------------------------------------------------------

    fn tables(&mut self, broker: &KeyBroker, system: &SystemKey, found: &Found, log: &Replayed) {
        for (slot, meta) in &found.state.tables {
            self.table(broker, system, found, *slot, meta, log);
        }
        // What is left in the log of tables that are gone, key and all.
        let gone = log.sections.iter().filter(|(slot, _)| !found.state.tables.contains_key(slot));
        self.report.unopened_frames += gone.flat_map(|(_, sections)| sections).map(section_frames).sum::<u64>();
    }

    fn table(
        &mut self,
        broker: &KeyBroker,
        system: &SystemKey,
        found: &Found,
        slot: Slot,
        meta: &TableMeta,
        log: &Replayed,
    ) {
        let record = &meta.record;
        let sections = log.sections.get(&slot).map(Vec::as_slice).unwrap_or_default();
        let section_total: u64 = sections.iter().map(section_frames).sum();
        let name = FileName::KeyFile(record.id);
        if record.dropping {
            // Half shredded at best. The next open ends it.
            self.read.insert(name.path());
            self.report.unopened_frames += section_total;
            return;
        }
        let keys = match read_key_file(self.dir, &system.keys, record.id, &record.key) {
            Ok((opened, Pinned::Same | Pinned::Next | Pinned::Staged)) => {
                self.copies(name, opened.both_copies_good);
                broker.unwrap_all(&opened.record, &Principal::Owner).map(|unwrapped| unwrapped.keys)
            }
            Err(error) => {
                if let Some(walked) = self.walk_file(name, 0) {
                    self.report.unopened_frames += walked.frames;
                }
                Err(error)
            }
        };
        let parked: Vec<_> = found.state.parked.values().filter(|parked| parked.slot == slot).cloned().collect();
        let error = match keys {
            Ok(keys) => {
                for parked in &parked {
                    self.report.unopened_frames += self.parked(system, record.id, parked, Some(&keys));
                }
                self.sections(system, found, record.id, &keys, sections);
                return self.files(meta, &keys);
            }
            Err(error) => error,
        };
        let parked = parked.iter().map(|parked| self.parked(system, record.id, parked, None));
        let mut frames = section_total + parked.sum::<u64>();
        for (_, file) in meta.files.values() {
            frames += self.file_without_key(file);
        }
        self.report.unopened_frames += frames;
        match error {
            Error::KeyUnavailable { .. } => self.report.unavailable.push(UnavailableTable {
                table: record.id,
                name: record.name.to_string(),
                error,
                frames,
            }),
            error => self.damage(error),
        }
    }

    /// Verify a file of parked sections: with the table's keys all of it, without them all but what is in the sections. Frames whose seals
    /// were not opened.
    fn parked(&mut self, system: &SystemKey, table: TableId, record: &ParkedRecord, keys: Option<&KeySet>) -> u64 {
        let name = record.name();
        let mut file = match ParkedFile::open(self.dir, &system.keys, table, record) {
            Ok(file) => file,
            Err(error) => {
                self.damage(error);
                let Some(walked) = self.walk_file(name, 0) else { return 0 };
                self.add(walked.damages);
                return walked.frames;
            }
        };
        // The walk finds what rotted, all of it; what is read below ends at the first finding.
        if let Some(walked) = self.walk_file(name, 0) {
            self.add(walked.damages);
            self.add(walked.unfinished);
        }
        let (frames, of_sections) = (file.frames(), file.section_frames());
        let mut entries = 0;
        let read = match keys {
            None => file.check(),
            Some(keys) => {
                let key_of = |generation| {
                    keys.generation(generation).map(|key| &**key).ok_or(Error::WrongKey { table, generation })
                };
                file.entries(&key_of, Seq::ZERO, &mut |_, _, _, _| {
                    entries += 1;
                    Ok(())
                })
            }
        };
        let opened = keys.is_some() && read.is_ok();
        self.report.entries += entries;
        if let Err(error) = read {
            self.damage(error);
        }
        self.report.frames += if opened { frames } else { frames - of_sections };
        if opened { 0 } else { of_sections }
    }

    /// Verify a table's sorted tables, and that they make a picture.
    fn files(&mut self, meta: &TableMeta, keys: &KeySet) {
        let settings = TableSettings {
            table: meta.record.id,
            suite: meta.record.suite,
            compression: meta.record.compression,
            block_bytes: meta.record.block_bytes as usize,
            filter_bits_per_key: meta.record.filter_bits_per_key,
            filter_seed: meta.record.filter_seed,
        };
        let cache = Arc::new(BlockCache::new(CACHE_BYTES));
        let mut changes = Vec::with_capacity(meta.files.len());
        for (level, file) in meta.files.values() {
            let Some(key) = keys.generation(file.generation) else {
                self.damage(Error::WrongKey { table: meta.record.id, generation: file.generation });
                self.report.unopened_frames += self.file_without_key(file);
                continue;
            };
            if let Err(error) = self.file(file, key, &settings, &cache) {
                self.damage(error);
            }
            match sstable::bounds(key, file, &file.file_name().path()) {
                Ok((smallest, largest)) => changes.push(Change::Add {
                    level: usize::from(*level),
                    file: Arc::new(TableFile::new((**file).clone(), smallest, largest)),
                }),
                // The record's own bounds: what the manifest says is wrong, whatever the file is like.
                Err(error) => self.damage(error),
            }
        }
        if let Err(contradiction) = Version::empty().apply(&changes) {
            self.damage(contradiction.in_file("manifest", 0));
        }
    }

    fn file(
        &mut self,
        record: &FileRecord,
        key: &TableKey,
        settings: &TableSettings,
        cache: &Arc<BlockCache>,
    ) -> Result<()> {
        let path = record.file_name().path();
        self.begin(&path);
        let file = self.dir.open(&path)?;
        let reader = TableReader::open(file, &path, key, record, settings, cache.clone())?;
        let meter = &mut self.meter;
        let mut bytes = 0;
        let verified = reader.verify(&mut |more| {
            bytes += more;
            meter.add(more);
        });
        self.report.bytes += bytes;
        verified?;
        self.report.frames += reader.frames();
        self.report.entries += record.entries;
        Ok(())
    }

    /// Check the checksums of a sorted table; its frames.
    fn file_without_key(&mut self, record: &FileRecord) -> u64 {
        let path = record.file_name().path();
        self.begin(&path);
        let source = match Source::open(self.dir, &path) {
            Ok(source) => source,
            Err(error) => {
                self.damage(error);
                return 0;
            }
        };
        let extent = &record.extent;
        let part = extent.offset_bytes..extent.offset_bytes + extent.len_bytes;
        let part = if record.extent.container == record.number { 0..source.len_bytes } else { part };
        self.report.bytes += part.end - part.start;
        let walked = walk_within(&source, record.file_name(), part, &mut self.meter);
        self.add(walked.damages);
        self.add(walked.unfinished);
        walked.frames
    }

    // ---- what is left ----------------------------------------------------------------------------------------

    /// List what nobody names. A log segment among it that was written at a later epoch than the manifest's proves that a later manifest named it.
    fn orphans(&mut self, system: &SystemKey, epoch: Epoch) {
        let orphans = self.listed.values().filter(|listed| !self.read.contains(&listed.name));
        let orphans: Vec<Listed> =
            orphans.filter(|listed| listed.what != What::File(FileName::Lock)).map(|&listed| listed.clone()).collect();
        for orphan in orphans {
            if let What::File(FileName::Log(number)) = orphan.what
                && let Some(attested) = epoch_of_segment(self.dir, system, number)
                && attested > epoch
            {
                self.damage(Error::RolledBack { found: epoch, attested });
            }
            self.read.insert(orphan.name.clone());
            self.report.orphans.push(orphan.name);
        }
    }

    /// Check the checksums of every file that was not looked at, because there is no manifest that says what it should be.
    fn rest(&mut self) {
        let rest: Vec<Listed> = self
            .listed
            .values()
            .filter(|listed| !self.read.contains(&listed.name))
            .map(|&listed| listed.clone())
            .collect();
        for listed in rest {
            let What::File(name) = listed.what else { continue };
            if let Some(walked) = self.walk_file(name, 0) {
                self.report.unopened_frames += walked.frames;
                self.add(walked.damages);
            }
        }
    }

    // ---- helpers ---------------------------------------------------------------------------------------------

    /// Walk through a file that must be there, all but the `behind` bytes at its end. What the walk finds is the caller's.
    fn walk_file(&mut self, name: FileName, behind: u64) -> Option<Walked> {
        let path = name.path();
        self.begin(&path);
        match Source::open(self.dir, &path) {
            Ok(source) => {
                let len_bytes = source.len_bytes.saturating_sub(behind);
                self.report.bytes += len_bytes;
                Some(walk(&source, name, len_bytes, &mut self.meter))
            }
            Err(error) => {
                self.damage(error);
                None
            }
        }
    }

    /// Whether a log segment holds nothing but zeros from here on. What cannot be read is somebody else's finding.
    fn is_reserved(&self, path: &str, from: u64) -> bool {
        let Ok(source) = Source::open(self.dir, path) else { return true };
        source.is_zero_from(from).unwrap_or(true)
    }

    fn begin(&mut self, path: &str) {
        if self.read.insert(path.to_owned()) {
            self.report.files += u64::from(self.listed.contains_key(path));
            self.meter.begin(path);
        }
    }

    fn add(&mut self, damages: Vec<Error>) {
        damages.into_iter().for_each(|damage| self.damage(damage));
    }

    /// Note what is wrong, unless it is about a place of which something is noted already.
    fn damage(&mut self, error: Error) {
        let place = place(&error).map(|(file, offset_bytes)| (file.to_owned(), offset_bytes));
        if place.is_none_or(|place| self.places.insert(place)) {
            self.report.damages.push(error);
        }
    }
}

fn section_frames(part: &SectionRef) -> u64 {
    u64::from(part.section.frames)
}

/// The place that an error is about.
fn place(error: &Error) -> Option<(&str, u64)> {
    match error {
        Error::BitRot { file, offset_bytes, .. }
        | Error::Tampered { file, offset_bytes, .. }
        | Error::LogDamaged { file, offset_bytes } => Some((file, *offset_bytes)),
        Error::MissingFile { file } => Some((file, 0)),
        _ => None,
    }
}

/// The highest epoch that an authentic envelope in this segment names.
fn epoch_of_segment(dir: &Directory, system: &SystemKey, number: FileNumber) -> Option<Epoch> {
    let name = FileName::Log(number).path();
    let source = Source::open(dir, &name).ok()?;
    let header = source.read(0..source.len_bytes.min(HEADER_BYTES as u64)).ok()?;
    let salt = FileHeader::decode(&header, &Where::new(&name, 0)).ok()?.salt;
    let input = SegmentInput { number, salt, end: None };
    let log = replay::replay(dir, &system.keys, &[input], LogPoint::default(), false).ok()?;
    Some(log.epoch)
}
