//! A file system that fails, tears or delays what a test tells it to.
//!
//! ```text
//! store ── FaultVfs ── rules: "the 3rd write to *.wal: half of it, then EIO"     MemVfs or OsVfs
//!             │        capacity: "room for 1 MiB in all"                          beneath
//!             └─ counts: how many writes, syncs, ... there were
//! ```
//!
//! Each operation is counted, then held against the rules in the order in which they were given. A [`Rule`] has its own count
//! of the operations that it matches, so "the 3rd write to a log" does not depend on what happened before the rule was given.
//! Hints ([`File::begin_write_back`], [`File::will_read`]) neither count nor fail: they promise nothing.
//!
//! A failed sync may or may not have reached the medium. Here the file beneath is then *not* synced, so that a power cut
//! of a [`MemVfs`](super::mem::MemVfs) may lose what it was to make durable.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{DirEntry, File, Lock, Metadata, Vfs};

/// What is done to files and directories.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the method of `Vfs` or `File` of that name")]
pub enum Operation {
    CreateDir,
    Create,
    Open,
    OpenToErase,
    Lock,
    ReadDir,
    Metadata,
    Rename,
    RemoveFile,
    RemoveDir,
    SyncDir,
    Canonical,
    CheckPrivate,
    Read,
    Write,
    Len,
    Sync,
    /// Making a file longer or shorter, as the log's segments are.
    Reserve,
}

impl Operation {
    /// One more than the last operation's number.
    const COUNT: usize = Operation::Reserve as usize + 1;
}

/// What shall happen to some operations: which kind, on which paths, the how-manieth, and what.
///
/// ```
/// use strongroom::io::fault::{Operation, Rule};
///
/// // The third sync of a log from now on, and all later ones.
/// let rule = Rule::on(Operation::Sync).path(|path| path.extension().is_some_and(|e| e == "wal")).from_nth(3);
/// # let _ = rule;
/// ```
#[derive(Clone)]
pub struct Rule {
    operation: Option<Operation>,
    path: Matcher,
    first: u64,
    last: u64,
    effect: Effect,
}

type Matcher = Arc<dyn Fn(&Path) -> bool + Send + Sync>;
type Hook = Arc<dyn Fn(Operation, &Path) + Send + Sync>;

#[derive(Clone)]
enum Effect {
    Fail { error: Failure, written_bytes: usize },
    Call(Hook),
}

#[derive(Clone, Copy)]
enum Failure {
    Kind(io::ErrorKind),
    Os(i32),
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        match failure {
            Failure::Kind(kind) => io::Error::new(kind, "injected fault"),
            Failure::Os(code) => io::Error::from_raw_os_error(code),
        }
    }
}

impl Rule {
    /// The first operation of this kind fails; the methods below say otherwise.
    pub fn on(operation: Operation) -> Rule {
        Rule { operation: Some(operation), ..Rule::on_any() }
    }

    /// The first operation of whatever kind fails.
    pub fn on_any() -> Rule {
        let effect = Effect::Fail { error: Failure::Kind(io::ErrorKind::Other), written_bytes: 0 };
        Rule { operation: None, path: Arc::new(|_| true), first: 1, last: 1, effect }
    }

    /// Only on paths for which `matches` is true. A rename has two, and either will do.
    pub fn path(mut self, matches: impl Fn(&Path) -> bool + Send + Sync + 'static) -> Rule {
        self.path = Arc::new(matches);
        self
    }

    /// Only the `n`-th such operation, counted from 1.
    pub fn nth(mut self, n: u64) -> Rule {
        (self.first, self.last) = (n, n);
        self
    }

    /// The `n`-th such operation, counted from 1, and all after it.
    pub fn from_nth(mut self, n: u64) -> Rule {
        (self.first, self.last) = (n, u64::MAX);
        self
    }

    /// Every such operation.
    pub fn always(self) -> Rule {
        self.from_nth(1)
    }

    /// Fail with an error of this kind. Without this it is [`io::ErrorKind::Other`].
    pub fn fail(self, kind: io::ErrorKind) -> Rule {
        self.with_failure(Failure::Kind(kind))
    }

    /// Fail with this error number of the operating system, such as 5 for `EIO`.
    pub fn fail_os(self, code: i32) -> Rule {
        self.with_failure(Failure::Os(code))
    }

    fn with_failure(mut self, failure: Failure) -> Rule {
        let written_bytes = match self.effect {
            Effect::Fail { written_bytes, .. } => written_bytes,
            Effect::Call(_) => 0,
        };
        self.effect = Effect::Fail { error: failure, written_bytes };
        self
    }

    /// Write this much of what was to be written before the write fails. Other operations take no notice.
    pub fn torn_after(mut self, written_bytes: usize) -> Rule {
        let error = match self.effect {
            Effect::Fail { error, .. } => error,
            Effect::Call(_) => Failure::Kind(io::ErrorKind::Other),
        };
        self.effect = Effect::Fail { error, written_bytes };
        self
    }

    /// Do not fail, but call `hook` before the operation: to let it wait, or to do something in between.
    pub fn call(mut self, hook: impl Fn(Operation, &Path) + Send + Sync + 'static) -> Rule {
        self.effect = Effect::Call(Arc::new(hook));
        self
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match &self.effect {
            Effect::Fail { error, written_bytes } => {
                format!("{:?} after {written_bytes} bytes", io::Error::from(*error))
            }
            Effect::Call(_) => "call".to_owned(),
        };
        write!(f, "Rule({:?}, {} to {}: {effect})", self.operation, self.first, self.last)
    }
}

/// Wraps a file system. Clones share rules and counts.
#[derive(Clone, Debug)]
pub struct FaultVfs {
    inner: Arc<dyn Vfs>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Faults {
    rules: Mutex<Vec<ActiveRule>>,
    counts: [AtomicU64; Operation::COUNT],
    room: Mutex<Option<Room>>,
}

#[derive(Debug)]
struct ActiveRule {
    rule: Rule,
    seen: u64,
}

/// What a disk of limited size has left.
#[derive(Debug)]
struct Room {
    free_bytes: u64,
}

impl FaultVfs {
    /// A file system that does as `inner` does until it is told otherwise.
    pub fn new(inner: Arc<dyn Vfs>) -> FaultVfs {
        let faults = Faults {
            rules: Mutex::new(Vec::new()),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            room: Mutex::new(None),
        };
        FaultVfs { inner, faults: Arc::new(faults) }
    }

    /// Obey `rule` from now on.
    pub fn inject(&self, rule: Rule) {
        self.faults.rules.lock().push(ActiveRule { rule, seen: 0 });
    }

    /// Forget all rules.
    pub fn clear(&self) {
        self.faults.rules.lock().clear();
    }

    /// How many operations of this kind there were, failed ones included.
    pub fn count(&self, operation: Operation) -> u64 {
        self.faults.counts[operation as usize].load(Ordering::SeqCst)
    }

    /// How many operations there were in all, failed ones included.
    pub fn count_all(&self) -> u64 {
        self.faults.counts.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    /// Leave room for `free_bytes` more, or for as much as fits. A write that does not fit writes what does, then fails with
    /// [`io::ErrorKind::StorageFull`]; a removed or replaced file gives back its length at once.
    pub fn set_room(&self, free_bytes: Option<u64>) {
        *self.faults.room.lock() = free_bytes.map(|free_bytes| Room { free_bytes });
    }

    /// Count the operation and obey the rules.
    fn before(&self, operation: Operation, paths: &[&Path]) -> io::Result<()> {
        self.faults.before(operation, paths).map_err(|fault| fault.error.into())
    }

    fn wrap(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultFile { path: path.to_owned(), inner: file, faults: self.faults.clone() })
    }

    /// The length of the file at `path`, if room is limited and it is there.
    fn len_if_limited(&self, path: &Path) -> u64 {
        if self.faults.room.lock().is_none() {
            return 0;
        }
        self.inner.metadata(path).map_or(0, |metadata| metadata.len_bytes)
    }
}

/// An operation that shall fail.
struct Fault {
    error: Failure,
    written_bytes: usize,
}

impl Faults {
    fn before(&self, operation: Operation, paths: &[&Path]) -> Result<(), Fault> {
        self.counts[operation as usize].fetch_add(1, Ordering::SeqCst);
        let mut hooks = Vec::new();
        let mut fault = None;
        for ActiveRule { rule, seen } in self.rules.lock().iter_mut() {
            let path_matches = paths.iter().any(|path| (rule.path)(path));
            if rule.operation.is_some_and(|wanted| wanted != operation) || !path_matches {
                continue;
            }
            *seen += 1;
            if !(rule.first..=rule.last).contains(seen) {
                continue;
            }
            match &rule.effect {
                Effect::Call(hook) => hooks.push(hook.clone()),
                Effect::Fail { error, written_bytes } if fault.is_none() => {
                    fault = Some(Fault { error: *error, written_bytes: *written_bytes });
                }
                Effect::Fail { .. } => {}
            }
        }
        // Called without the lock: a hook may wait, use the file system and give further rules.
        for hook in hooks {
            hook(operation, paths.first().unwrap_or(&Path::new("")));
        }
        fault.map_or(Ok(()), Err)
    }

    /// How much of `growth_bytes` there is room for; that much is taken.
    fn take_room(&self, growth_bytes: u64) -> u64 {
        match &mut *self.room.lock() {
            None => growth_bytes,
            Some(room) => {
                let taken = growth_bytes.min(room.free_bytes);
                room.free_bytes -= taken;
                taken
            }
        }
    }

    fn give_room(&self, bytes: u64) {
        if let Some(room) = &mut *self.room.lock() {
            room.free_bytes = room.free_bytes.saturating_add(bytes);
        }
    }
}

impl Vfs for FaultVfs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::CreateDir, &[path])?;
        self.inner.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.before(Operation::Create, &[path])?;
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.before(Operation::Open, &[path])?;
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn open_to_erase(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.before(Operation::OpenToErase, &[path])?;
        Ok(self.wrap(path, self.inner.open_to_erase(path)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.before(Operation::Lock, &[path])?;
        self.inner.lock(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.before(Operation::ReadDir, &[path])?;
        self.inner.read_dir(path)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.before(Operation::Metadata, &[path])?;
        self.inner.metadata(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Operation::Rename, &[from, to])?;
        let replaced_bytes = self.len_if_limited(to);
        self.inner.rename(from, to)?;
        self.faults.give_room(replaced_bytes);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::RemoveFile, &[path])?;
        let removed_bytes = self.len_if_limited(path);
        self.inner.remove_file(path)?;
        self.faults.give_room(removed_bytes);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::RemoveDir, &[path])?;
        self.inner.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::SyncDir, &[path])?;
        self.inner.sync_dir(path)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.before(Operation::Canonical, &[path])?;
        self.inner.canonical(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        let room = self.faults.room.lock().as_ref().map(|room| room.free_bytes);
        Ok([room, self.inner.free_bytes(path)?].into_iter().flatten().min())
    }
    fn open_files_max(&self) -> Option<usize> {
        self.inner.open_files_max()
    }

    fn check_private(&self, dir: &Path) -> io::Result<()> {
        self.before(Operation::CheckPrivate, &[dir])?;
        self.inner.check_private(dir)
    }
}

#[derive(Debug)]
struct FaultFile {
    /// As it was opened: a rename does not change it.
    path: PathBuf,
    inner: Arc<dyn File>,
    faults: Arc<Faults>,
}

impl FaultFile {
    fn before(&self, operation: Operation) -> Result<(), Fault> {
        self.faults.before(operation, &[&self.path])
    }
}

impl File for FaultFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.before(Operation::Read).map_err(|fault| fault.error)?;
        self.inner.read_exact_at(buffer, offset_bytes)
    }

    fn write_all_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        let (bytes, error) = match self.before(Operation::Write) {
            Ok(()) => (bytes, None),
            Err(fault) => (&bytes[..fault.written_bytes.min(bytes.len())], Some(fault.error)),
        };
        let len = self.inner.len_bytes()?;
        let growth = (offset_bytes.saturating_add(bytes.len() as u64)).saturating_sub(len);
        let missing = growth - self.faults.take_room(growth);
        let fits = bytes.len() - usize::try_from(missing).unwrap_or(bytes.len()).min(bytes.len());
        if fits > 0 {
            self.inner.write_all_at(&bytes[..fits], offset_bytes)?;
        }
        match error {
            Some(error) => Err(error.into()),
            None if missing > 0 => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(()),
        }
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.before(Operation::Len).map_err(|fault| fault.error)?;
        self.inner.len_bytes()
    }

    fn sync(&self) -> io::Result<()> {
        self.before(Operation::Sync).map_err(|fault| fault.error)?;
        self.inner.sync()
    }

    fn reserve(&self, len_bytes: u64) -> io::Result<()> {
        self.before(Operation::Reserve).map_err(|fault| fault.error)?;
        let growth = len_bytes.saturating_sub(self.inner.len_bytes()?);
        let taken = self.faults.take_room(growth);
        if taken < growth {
            self.faults.give_room(taken);
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.reserve(len_bytes)
    }

    /// Gives back room.
    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        self.before(Operation::Reserve).map_err(|fault| fault.error)?;
        let given = self.inner.len_bytes()?.saturating_sub(len_bytes);
        self.inner.cut(len_bytes)?;
        self.faults.give_room(given);
        Ok(())
    }

    fn begin_write_back(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.begin_write_back(offset_bytes, len_bytes);
    }

    fn will_read(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.will_read(offset_bytes, len_bytes);
    }
}

#[cfg(test)]
mod tests;
