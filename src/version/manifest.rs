//! The log of version edits: which picture of the store is true, whatever happens in between.
//!
//! ```text
//! CURRENT ──> manifest/N.manifest:  header │ picture (one group) │ group │ mark │ group │ mark │ ...
//!                                           \_ synced before CURRENT names it    \_ synced before it counts
//! ```
//!
//! - A *group* of edits is atomic, has the next epoch, and is synced before anybody acts on it.
//! - A *mark* follows each group, unsynced: it attests that the group before was durable. So reading can tell a group
//!   that a power cut tore (nothing behind it attests it) from one that was damaged afterwards (the mark does).
//! - Every opening for writing begins a new file, so no file of an earlier opening is ever appended to. A file that has grown to
//!   more than twice its picture is replaced by a new one.
//! - After a clean close `CURRENT` says where the file ends; any missing byte is then an error.
//!
//! # A new picture is written beside live edits
//! ```text
//! live     │ group 7 │ group 8 │ group 9 │ ...            appended and synced as ever, and remembered from the picture on
//! new      picture of 7 ············ written, synced │ 8 │ 9 │ synced ─ CURRENT names it ─ it is live, the old one goes
//! ```
//! The lock that appends take is held for a copy of the picture in memory, and for the few groups that came meanwhile. Until `CURRENT` has been
//! switched, whatever goes wrong (a full disk, most likely) costs the new file alone, and the old one goes on.
//!
//! An error in [`Manifest::append`] leaves the file's end unknown: every further call fails, and only reading the manifest anew
//! can tell what is true. After [`Manifest::close`] every further call fails, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::state::{SegmentEnd, State};
use crate::crypto::{Suite, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::current::{Closed, Current};
use crate::format::frame::{Expected, HEADER_BYTES};
use crate::format::manifest::{Edit, EditGroup, ManifestOpener, ManifestSealer};
use crate::format::{FileName, Where};
use crate::io::directory::{Directory, refused};
use crate::io::{Entropy, File};
use crate::keys::{KeySet, SystemKeys};
use crate::metrics::{Count, Meters, Metrics};
use crate::types::{Epoch, FileKind, FileNumber, Seq, TableId};
use crate::wal::window::Window;

/// A manifest is replaced once its edits take more than twice as many bytes as its picture, and at least this many.
const REWRITE_BYTES_MIN: u64 = 64 << 10;
/// Edits of a picture that go into one group.
const PICTURE_GROUP_EDITS: usize = 4096;
/// `CURRENT` is much smaller.
const CURRENT_BYTES_MAX: usize = 16 << 10;

/// The manifest of a store that is open for writing.
pub(crate) struct Manifest {
    dir: Arc<Directory>,
    entropy: Arc<dyn Entropy>,
    system: SystemKeys,
    suite: Suite,
    inner: Mutex<Inner>,
    /// Held by whoever writes a new picture.
    rewriting: Mutex<()>,
    /// The epoch of the last durable group, readable without the lock.
    epoch: AtomicU64,
}

struct Inner {
    state: State,
    live: LiveFile,
    /// The live file is not to be written again; the next append begins a file of this number.
    next_number: Option<FileNumber>,
    /// What was appended since the picture that is being written beside.
    since_picture: Option<Vec<EditGroup>>,
    /// The file is rewritten once it is longer than this, if it is: one that could not be is not tried again at once.
    longer_than: u64,
    /// Why nothing more may be written: the store was closed, or a write failed. Kept here and not left to the callers, because
    /// those who wait for the lock meanwhile have asked already.
    ended: Option<Error>,
}

impl Inner {
    fn check(&self) -> Result<()> {
        self.ended.clone().map_or(Ok(()), Err)
    }

    fn end_if_failed<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.ended = Some(error.clone());
        }
        outcome
    }
}

/// The file that is being appended to.
struct LiveFile {
    number: FileNumber,
    meters: Arc<Meters>,
    file: Arc<dyn File>,
    /// Gone with the store's close.
    sealer: Option<ManifestSealer>,
    /// The last ordinal that is known to be durable.
    synced_ordinal: u64,
    picture: PictureEnd,
    last_tag: Tag,
}

/// Where the picture at the front of a manifest ends.
#[derive(Clone, Copy)]
struct PictureEnd {
    bytes: u64,
    ordinal: u64,
}

impl Manifest {
    /// Write `state` as the picture of a new manifest file and make it the store's. The state's epoch is the picture's.
    pub(crate) fn create(
        dir: Arc<Directory>,
        entropy: Arc<dyn Entropy>,
        system: SystemKeys,
        suite: Suite,
        number: FileNumber,
        state: State,
    ) -> Result<Manifest> {
        let key = system.sealing()?;
        let live = LiveFile::create(&dir, &*entropy, &key, suite, number, &state)?;
        live.make_current(&dir, &*entropy, &key, suite, &state, false)?;
        let epoch = AtomicU64::new(state.epoch.0);
        let inner = Inner { state, live, next_number: None, since_picture: None, longer_than: 0, ended: None };
        let (inner, rewriting) = (Mutex::new(inner), Mutex::new(()));
        Ok(Manifest { dir, entropy, system, suite, inner, rewriting, epoch })
    }

    /// Epoch of the last durable group of edits.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// What the picture adds up to, for the store's figures.
    pub(crate) fn look_at(&self, metrics: &mut Metrics) {
        let inner = self.inner.lock();
        for (level, total) in inner.state.levels.iter().enumerate() {
            metrics.store.level_files[level] = total.files;
            metrics.store.level_bytes[level] = total.bytes;
        }
        metrics.log.parked_files = inner.state.parked.len() as u64;
        metrics.log.parked_bytes = inner.state.parked.values().map(|parked| parked.len_bytes).sum();
        metrics.manifest.epoch = inner.state.epoch.0;
        metrics.manifest.bytes = inner.live.len_bytes().unwrap_or(0);
    }

    /// Number of the live file.
    pub(crate) fn number(&self) -> FileNumber {
        self.inner.lock().live.number
    }

    /// Look at the picture. `look` must not call back.
    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.inner.lock().state)
    }

    /// Make a group of edits durable: all of them or, if this fails, nobody knows.
    pub(crate) fn append(&self, edits: Vec<Edit>) -> Result<Epoch> {
        self.append_to(&mut self.inner.lock(), edits)
    }

    fn append_to(&self, inner: &mut Inner, edits: Vec<Edit>) -> Result<Epoch> {
        inner.check()?;
        let outcome = self.try_append(inner, edits);
        inner.end_if_failed(outcome)
    }

    fn try_append(&self, inner: &mut Inner, edits: Vec<Edit>) -> Result<Epoch> {
        // A group without edits is a mark, and has no epoch of its own.
        if edits.is_empty() {
            return Ok(inner.state.epoch);
        }
        if let Some(number) = inner.next_number.take() {
            self.begin_file(inner, number)?;
        }
        let epoch = self.next_epoch(inner)?;
        let name = FileName::Manifest(inner.live.number).path();
        let place = Where::new(&name, inner.live.len_bytes()?);
        // An edit that does not follow is a mistake of this program. It must not reach the disk, so the picture is
        // changed first: that it is wrong in memory afterwards does not matter, since the caller gives the store up.
        for edit in &edits {
            inner.state.apply(edit.clone(), &place)?;
        }
        let count = edits.len() as u64;
        let synced_ordinal = inner.live.synced_ordinal;
        let group = EditGroup { epoch, synced_ordinal: Some(synced_ordinal), edits };
        inner.live.append_group(&group)?;
        if let Some(since) = &mut inner.since_picture {
            since.push(group);
        }
        inner.state.epoch = epoch;
        self.epoch.store(epoch.0, Ordering::Release);
        self.dir.meters().tally(|tally| {
            tally.add(Count::ManifestAppends, 1);
            tally.add(Count::ManifestEdits, count);
        });
        Ok(epoch)
    }

    /// Whether the file has grown so long that it should be [rewritten](Manifest::rewrite).
    pub(crate) fn is_long(&self) -> bool {
        let inner = self.inner.lock();
        let longest = (3 * inner.live.picture.bytes).max(REWRITE_BYTES_MIN).max(inner.longer_than);
        inner.live.len_bytes().is_ok_and(|len_bytes| len_bytes > longest)
    }

    /// Begin a new file, of this number, with the present picture, and remove the old one. Others append meanwhile; if they begin a new file
    /// themselves, as behind [`retire_file`](Manifest::retire_file), that one does as well. After an error the old file goes on, unless the
    /// manifest [has ended](Manifest::has_ended).
    pub(crate) fn rewrite(&self, number: FileNumber) -> Result<()> {
        let _rewriting = self.rewriting.lock();
        let (picture, old) = {
            let mut inner = self.inner.lock();
            inner.check()?;
            inner.since_picture = Some(Vec::new());
            (inner.state.clone(), inner.live.number)
        };
        let written = self.system.sealing().and_then(|key| {
            let live = LiveFile::create(&self.dir, &*self.entropy, &key, self.suite, number, &picture)?;
            Ok((key, live))
        });
        let mut inner = self.inner.lock();
        let since = inner.since_picture.take().unwrap_or_default();
        if inner.live.number != old {
            // It was begun behind this call, so its picture is no older, and it is under a key that is not older either.
            let _ = self.dir.remove(&FileName::Manifest(number).path());
            return inner.check();
        }
        let staged = written.and_then(|(key, mut live)| {
            inner.check()?;
            live.catch_up(since)?;
            live.stage_current(&self.dir, &*self.entropy, &key, self.suite, &inner.state, false)?;
            Ok(live)
        });
        let live = match staged {
            Ok(live) => live,
            Err(error) => {
                // Nobody knows it. If it cannot be removed, the next open does so.
                let _ = self.dir.remove(&FileName::Manifest(number).path());
                inner.longer_than = inner.live.len_bytes().unwrap_or(0) + REWRITE_BYTES_MIN;
                return Err(error);
            }
        };
        // From here on nobody knows which of the two counts if this fails.
        let switched = switch_current(&self.dir);
        inner.end_if_failed(switched)?;
        inner.longer_than = 0;
        self.replace_live(&mut inner, live);
        Ok(())
    }

    /// Whether nothing can be appended any more: the store was closed, or it is not known what the file holds.
    pub(crate) fn has_ended(&self) -> bool {
        self.inner.lock().ended.is_some()
    }

    /// Never write to the live file again: the next append begins a new one, of this number.
    pub(crate) fn retire_file(&self, number: FileNumber) {
        self.inner.lock().next_number = Some(number);
    }

    fn begin_file(&self, inner: &mut Inner, number: FileNumber) -> Result<()> {
        inner.state.epoch = self.next_epoch(inner)?;
        let key = self.system.sealing()?;
        let live = LiveFile::create(&self.dir, &*self.entropy, &key, self.suite, number, &inner.state)?;
        live.make_current(&self.dir, &*self.entropy, &key, self.suite, &inner.state, false)?;
        self.epoch.store(inner.state.epoch.0, Ordering::Release);
        self.replace_live(inner, live);
        Ok(())
    }

    fn replace_live(&self, inner: &mut Inner, live: LiveFile) {
        let old = std::mem::replace(&mut inner.live, live);
        // One that cannot be removed now is an orphan that the next open removes.
        let _ = self.dir.remove(&FileName::Manifest(old.number).path());
    }

    /// Record that the log ends here and that nothing more will be written, here and in `CURRENT`.
    pub(crate) fn close(&self, segment: FileNumber, end: SegmentEnd, seq: Seq) -> Result<()> {
        let inner = &mut *self.inner.lock();
        self.append_to(inner, vec![Edit::CleanClose { segment, end_bytes: end.end_bytes, tag: end.tag, seq }])?;
        // With a byte more, CURRENT would call the file damaged.
        inner.ended = Some(Error::Closed);
        // The mark behind the last group is part of the length that CURRENT will insist on.
        inner.live.sync()?;
        let key = self.system.sealing()?;
        inner.live.make_current(&self.dir, &*self.entropy, &key, self.suite, &inner.state, true)
    }

    /// Let go of the keys, at the end of a close, whatever came of it: nothing can be appended any more.
    pub(crate) fn forget_keys(&self) {
        let mut inner = self.inner.lock();
        inner.ended.get_or_insert(Error::Closed);
        inner.live.sealer = None;
    }

    fn next_epoch(&self, inner: &Inner) -> Result<Epoch> {
        inner.state.epoch.next().ok_or(Error::LimitExceeded {
            what: "epoch",
            limit: u64::MAX,
            actual: inner.state.epoch.0,
        })
    }
}

impl LiveFile {
    fn create(
        dir: &Directory,
        entropy: &dyn Entropy,
        system: &TableKey,
        suite: Suite,
        number: FileNumber,
        state: &State,
    ) -> Result<LiveFile> {
        let mut bytes = Vec::new();
        let mut sealer = ManifestSealer::create(system, suite, number, entropy, &mut bytes)?;
        let mut edits = state.picture();
        edits.push(Edit::PictureEnds);
        let mut last_ordinal = 0;
        for part in edits.chunks(PICTURE_GROUP_EDITS) {
            let group = EditGroup { epoch: state.epoch, synced_ordinal: None, edits: part.to_vec() };
            last_ordinal = sealer.append(&group, &mut bytes)?;
        }
        let name = FileName::Manifest(number).path();
        let file = dir.create(&name)?;
        file.write_all_at(&bytes, 0).map_err(|error| refused("write", &name, error))?;
        file.sync().map_err(|error| refused("sync", &name, error))?;
        dir.sync_dir("manifest")?;
        let picture = PictureEnd { bytes: sealer.len_bytes(), ordinal: last_ordinal };
        let last_tag = last_tag(&bytes);
        let meters = dir.meters().clone();
        meters.count(Count::ManifestRewrites, 1);
        meters.sealed(FileKind::Manifest, sealer.frames(), sealer.len_bytes());
        Ok(LiveFile { number, meters, file, sealer: Some(sealer), synced_ordinal: last_ordinal, picture, last_tag })
    }

    fn append_group(&mut self, group: &EditGroup) -> Result<()> {
        let last = self.write(group)?;
        self.sync()?;
        self.synced_ordinal = last;
        // The mark is not synced: if it is lost, so is nothing else.
        self.write(&EditGroup { epoch: group.epoch, synced_ordinal: Some(last), edits: Vec::new() }).map(drop)
    }

    /// Append, durably, what came since the picture.
    fn catch_up(&mut self, groups: Vec<EditGroup>) -> Result<()> {
        let Some(epoch) = groups.last().map(|group| group.epoch) else { return Ok(()) };
        let synced_ordinal = Some(self.synced_ordinal);
        let mut last = self.synced_ordinal;
        for group in groups {
            last = self.write(&EditGroup { synced_ordinal, ..group })?;
        }
        self.sync()?;
        self.synced_ordinal = last;
        self.write(&EditGroup { epoch, synced_ordinal: Some(last), edits: Vec::new() }).map(drop)
    }

    fn len_bytes(&self) -> Result<u64> {
        self.sealer.as_ref().map(ManifestSealer::len_bytes).ok_or(Error::Closed)
    }

    /// Write a group at the end; the ordinal of its last frame.
    fn write(&mut self, group: &EditGroup) -> Result<u64> {
        let sealer = self.sealer.as_mut().ok_or(Error::Closed)?;
        let (offset, frames_before, mut bytes) = (sealer.len_bytes(), sealer.frames(), Vec::new());
        let last = sealer.append(group, &mut bytes)?;
        self.meters.sealed(FileKind::Manifest, sealer.frames() - frames_before, bytes.len() as u64);
        self.last_tag = last_tag(&bytes);
        let written = self.file.write_all_at(&bytes, offset);
        written.map_err(|error| refused("write", &FileName::Manifest(self.number).path(), error))?;
        Ok(last)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| refused("sync", &FileName::Manifest(self.number).path(), error))
    }

    /// Make this file the store's manifest, atomically and durably.
    fn make_current(
        &self,
        dir: &Directory,
        entropy: &dyn Entropy,
        system: &TableKey,
        suite: Suite,
        state: &State,
        closed: bool,
    ) -> Result<()> {
        self.stage_current(dir, entropy, system, suite, state, closed)?;
        switch_current(dir)
    }

    /// Write the `CURRENT` that names this file under a temporary name.
    fn stage_current(
        &self,
        dir: &Directory,
        entropy: &dyn Entropy,
        system: &TableKey,
        suite: Suite,
        state: &State,
        closed: bool,
    ) -> Result<()> {
        let sealer = self.sealer.as_ref().ok_or(Error::Closed)?;
        let current = Current {
            manifest: self.number,
            salt: *sealer.salt(),
            epoch: state.epoch,
            picture_end_bytes: self.picture.bytes,
            picture_last_ordinal: self.picture.ordinal,
            closed: closed.then(|| Closed {
                len_bytes: sealer.len_bytes(),
                last_tag: self.last_tag,
                epoch: state.epoch,
            }),
        };
        let bytes = current.seal(system, suite, entropy)?;
        self.meters.sealed(FileKind::Current, 1, bytes.len() as u64);
        dir.stage(&FileName::Current.temporary_path(), &bytes)
    }
}

/// Put the staged `CURRENT` in the place of the one before, durably.
fn switch_current(dir: &Directory) -> Result<()> {
    dir.rename(&FileName::Current.temporary_path(), &FileName::Current.path())?;
    dir.sync_dir("")
}

/// The tag of the last of these whole frames.
fn last_tag(frames: &[u8]) -> Tag {
    frames.last_chunk().copied().unwrap_or_default()
}

/// What reading a store's manifest found.
pub(crate) struct Found {
    pub state: State,
    /// The file that was read.
    pub number: FileNumber,
    /// Whether the store was closed cleanly.
    pub closed: bool,
    /// Bytes at the end that nothing attests as durable, which are ignored.
    pub discarded_bytes: u64,
}

/// Read `CURRENT` and the manifest that it names, each with the generation of the system key that its header names. Changes nothing.
pub(crate) fn read(dir: &Directory, system: &KeySet) -> Result<Found> {
    let current_name = FileName::Current.path();
    let bytes = dir.read(&current_name, CURRENT_BYTES_MAX)?;
    let place = Where::new(&current_name, 0);
    let current = Current::open(&bytes, system.opening(&bytes, &place)?, &place)?.into_inner();
    let mut window = Window::open(dir, FileName::Manifest(current.manifest).path())?;
    let header = window.header()?;
    let system = system.opening(&header, &window.at(0))?;
    Reading { window, system, current: &current }.run(&header)
}

struct Reading<'a> {
    window: Window,
    system: &'a TableKey,
    current: &'a Current,
}

impl Reading<'_> {
    fn run(&mut self, header: &[u8]) -> Result<Found> {
        let expected = Expected {
            kind: FileKind::Manifest,
            number: self.current.manifest,
            subject: TableId::SYSTEM,
            suite: None,
            salt: Some(self.current.salt),
        };
        let mut opener = ManifestOpener::open(header, self.system, &expected, &self.window.at(0))?;
        let mut picture = Picture { state: None, complete: false };
        let len = self.window.len_bytes;
        // However much there is behind a clean close, nothing of it is looked at.
        if let Some(closed) = self.current.closed.as_ref().filter(|closed| closed.len_bytes < len) {
            return Err(self.damaged(closed.len_bytes));
        }
        let mut offset = HEADER_BYTES as u64;
        // Where the last whole group ends: what counts.
        let mut end = offset;
        let mut tag = Tag::default();
        let mut attested = Some(self.current.picture_last_ordinal);
        while offset < len {
            let ordinal = opener.next_ordinal();
            let frame = match self.window.frame(offset, len) {
                Ok((_, frame)) => frame.to_vec(),
                // Missing, or not what its checksum says: the tail of a crash, unless something knows better.
                Err(Error::BitRot { .. }) => break,
                Err(error) => return Err(error),
            };
            let (frame_len, place) = (frame.len() as u64, self.window.at(offset));
            tag = last_tag(&frame);
            if let Some(group) = opener.feed(frame, &place)? {
                let group = group.into_inner();
                attested = attested.max(group.synced_ordinal);
                picture.apply(group, &place)?;
                end = offset + frame_len;
            }
            offset += frame_len;
            debug_assert_eq!(opener.next_ordinal(), ordinal + 1);
        }
        self.window.meters.opened(FileKind::Manifest, opener.next_ordinal(), offset);
        attested = attested.max(self.attested_behind(&opener, offset)?);
        // The first ordinal that is not there as a whole.
        let missing = opener.next_ordinal();
        if attested.is_some_and(|attested| missing <= attested) {
            return Err(self.damaged(offset));
        }
        let closed = match &self.current.closed {
            None => false,
            Some(closed) if closed.len_bytes == len && end == len && closed.last_tag == tag => true,
            Some(_) => return Err(self.damaged(end)),
        };
        match picture.state {
            Some(state) if picture.complete => {
                Ok(Found { state, number: self.current.manifest, closed, discarded_bytes: len - end })
            }
            _ => Err(self.damaged(end)),
        }
    }

    /// The highest ordinal that an authentic frame behind the hole at `offset` says was durable.
    fn attested_behind(&mut self, opener: &ManifestOpener, offset: u64) -> Result<Option<u64>> {
        let mut attested = None;
        let mut from = offset;
        while let Some((found, head)) = self.window.next_head(from)? {
            from = found + 1;
            let frame = match self.window.frame(found, self.window.len_bytes) {
                Ok((_, frame)) => frame.to_vec(),
                // What cannot be read may attest something.
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(_) => continue,
            };
            let Ok(payload) = opener.attest(head.ordinal, frame, &self.window.at(found)) else { continue };
            from = found + head.frame_bytes();
            // A group in one frame, as every mark is; a piece of a longer group attests nothing by itself.
            if let Some(group) = payload.strip_prefix(&[0]).and_then(|bytes| EditGroup::decode(bytes).ok()) {
                attested = attested.max(group.synced_ordinal);
            }
        }
        Ok(attested)
    }

    fn damaged(&self, offset_bytes: u64) -> Error {
        Error::LogDamaged { file: self.window.name.clone(), offset_bytes }
    }
}

/// The picture as it grows while a manifest is read.
struct Picture {
    state: Option<State>,
    complete: bool,
}

impl Picture {
    fn apply(&mut self, group: EditGroup, place: &Where<'_>) -> Result<()> {
        let mut edits = group.edits;
        let state = match &mut self.state {
            Some(state) => state,
            None => {
                let state = State::begin(&edits, place)?;
                edits.drain(..2);
                self.state.insert(state)
            }
        };
        // Groups of the picture and marks repeat an epoch, every other group has the next one.
        let follows = match self.complete && !edits.is_empty() {
            true => state.epoch.next() == Some(group.epoch),
            false => state.epoch == group.epoch || state.epoch == Epoch(0),
        };
        if !follows {
            return Err(place.tampered("an epoch is missing before this one"));
        }
        state.epoch = group.epoch;
        for edit in edits {
            self.complete |= edit == Edit::PictureEnds;
            state.apply(edit, place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
