//! The real world: the operating system's files, clocks and randomness, and threads.
//!
//! What differs between platforms stays in here. Three habits make the file system safe to use beside
//! others who write to the same machine:
//!
//! * A file is opened first and looked at through its descriptor afterwards, never the other way round,
//!   so that nobody can put something else in its place in between.
//! * `O_NOFOLLOW` everywhere, `O_EXCL` when creating, and `O_NONBLOCK` when opening, so that a pipe somebody
//!   left under one of our names is refused instead of waited for.
//! * Permissions are looked at after creation and set right if the umask took away what the owner needs.
//!
//! A path that ends in a slash names what lies behind a link of that name; the engine makes none.
//!
//! Why there is `unsafe` here: some facilities have no safe wrapper. `sync_file_range` (a hint to begin
//! write-back), reads that copy out of a mapping (`MappedFile`), `MADV_WIPEONFORK` with an atomic in the page it wipes ([`TickCell`]), memory that is locked and
//! kept out of core dumps (`pages`), and registers that held keys (`registers`).
#![allow(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this file is where the engine meets the operating system; everything else goes through io/"
)]

#[cfg(not(unix))]
compile_error!("strongroom's file system layer knows Unix only: it needs O_NOFOLLOW, directory sync and flock");

pub(crate) mod pages;
pub(crate) mod registers;

use std::fs::{File as OsFile, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

pub use self::pages::KeyMemory;
use super::{
    Clock, DirEntry, Entropy, EntryKind, File, Join, Lock, Metadata, Scheduler, Signal, Step, Task, TaskPanicked, Tick,
    Vfs,
};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// The operating system's file system.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct OsVfs;

impl OsVfs {
    /// The file system as this process sees it.
    pub fn new() -> OsVfs {
        OsVfs
    }
}

impl Vfs for OsVfs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        retry_on_intr(|| rustix::fs::mkdirat(CWD, path, DIRECTORY_MODE))?;
        let status = retry_on_intr(|| rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW))?;
        if permissions(Mode::from_raw_mode(status.st_mode)) != DIRECTORY_MODE {
            retry_on_intr(|| rustix::fs::chmodat(CWD, path, DIRECTORY_MODE, AtFlags::empty()))?;
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = open_regular(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        make_private(&file)?;
        Ok(Arc::new(OpenFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OpenFile(open_regular(path, OFlags::RDONLY)?)))
    }

    fn open_mapped(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = open_regular(path, OFlags::RDONLY)?;
        if file.metadata()?.len() == 0 {
            // What is empty cannot be mapped.
            return Ok(Arc::new(OpenFile(file)));
        }
        let map = memmap2::MmapOptions::new().map_raw_read_only(&file)?;
        Ok(Arc::new(MappedFile { file: OpenFile(file), map }))
    }

    fn open_to_erase(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(OpenFile(open_regular(path, OFlags::RDWR)?)))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let file = open_regular(path, OFlags::RDWR | OFlags::CREATE)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Somebody may have removed the file while we were opening it: a lock on a file without a name
        // keeps nobody out.
        let held = file.metadata()?;
        let named = retry_on_intr(|| rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW))?;
        if (named.st_dev as u64, named.st_ino as u64) != (held.dev(), held.ino()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        make_private(&file)?;
        Ok(Box::new(HeldLock { file, process: std::process::id() }))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let directory = open_directory(path)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not say; then the entry itself is asked.
                FileType::Unknown => {
                    match retry_on_intr(|| rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)) {
                        Ok(status) => entry_kind(FileType::from_raw_mode(status.st_mode)),
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                kind => entry_kind(kind),
            };
            entries.push(DirEntry { name: name.to_string_lossy().into_owned(), kind });
        }
        Ok(entries)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let status = retry_on_intr(|| rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW))?;
        let kind = entry_kind(FileType::from_raw_mode(status.st_mode));
        let len_bytes = if kind == EntryKind::File { u64::try_from(status.st_size).unwrap_or(0) } else { 0 };
        Ok(Metadata { kind, len_bytes })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::renameat(CWD, from, CWD, to))?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::unlinkat(CWD, path, AtFlags::empty()))?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR))?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        open_directory(path)?.sync_all()
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let absolute = std::path::absolute(path)?;
        let parts: Vec<Component<'_>> = absolute.components().collect();
        for existing in (0..=parts.len()).rev() {
            let head: PathBuf = parts[..existing].iter().collect();
            match std::fs::canonicalize(&head) {
                Ok(mut resolved) => {
                    // What follows does not exist, so there is no link in it and `..` can be taken at its word.
                    for part in &parts[existing..] {
                        match part {
                            Component::ParentDir => drop(resolved.pop()),
                            other => resolved.push(other),
                        }
                    }
                    return Ok(resolved);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && existing > 1 => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<Option<u64>> {
        let status = retry_on_intr(|| rustix::fs::statvfs(path))?;
        // What is left for those who are not root. A file system without blocks is one that does not count.
        Ok((status.f_blocks > 0).then(|| status.f_bavail.saturating_mul(status.f_frsize)))
    }
    fn open_files_max(&self) -> Option<usize> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
        usize::try_from(limit).ok()
    }

    fn check_private(&self, dir: &Path) -> io::Result<()> {
        let mode = open_directory(dir)?.metadata()?.mode();
        if mode & 0o022 == 0 {
            return Ok(());
        }
        let message = format!("others than its owner may write to this directory (mode {:03o})", mode & 0o777);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    }
}

/// Open what is a regular file, or refuse it.
fn open_regular(path: &Path, flags: OFlags) -> io::Result<OsFile> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let descriptor = match retry_on_intr(|| rustix::fs::openat(CWD, path, flags, FILE_MODE)) {
        Ok(descriptor) => descriptor,
        // A link (EMLINK on some BSDs), a directory, and a socket or a pipe that nobody reads.
        Err(Errno::LOOP | Errno::MLINK | Errno::ISDIR | Errno::NXIO) => return Err(not_a("regular file")),
        Err(error) => return Err(error.into()),
    };
    let file = OsFile::from(descriptor);
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a("regular file")) }
}

/// Open what is a directory, or refuse it.
fn open_directory(path: &Path) -> io::Result<OsFile> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty())) {
        Ok(descriptor) => Ok(OsFile::from(descriptor)),
        Err(Errno::LOOP | Errno::MLINK | Errno::NOTDIR) => Err(not_a("directory")),
        Err(error) => Err(error.into()),
    }
}

fn not_a(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("not a {what}"))
}

/// Give a file of ours mode 0600. Looks first, because some file systems refuse any change.
fn make_private(file: &OsFile) -> io::Result<()> {
    let status = retry_on_intr(|| rustix::fs::fstat(file))?;
    if permissions(Mode::from_raw_mode(status.st_mode)) != FILE_MODE {
        retry_on_intr(|| rustix::fs::fchmod(file, FILE_MODE))?;
    }
    Ok(())
}

/// Who may read, write and execute; without the bits that a directory passes on.
fn permissions(mode: Mode) -> Mode {
    mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO)
}

fn entry_kind(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        _ => EntryKind::Other,
    }
}

/// An open regular file.
#[derive(Debug)]
struct OpenFile(OsFile);

impl File for OpenFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset_bytes)
    }

    fn write_all_at(&self, mut bytes: &[u8], mut offset_bytes: u64) -> io::Result<()> {
        // The system call itself: around it, the C library opens and closes a window in which the thread may be cancelled, which is a tenth of
        // what a small write costs.
        while !bytes.is_empty() {
            let written = retry_on_intr(|| rustix::io::pwrite(&self.0, bytes, offset_bytes))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
            offset_bytes += written as u64;
        }
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// `fdatasync`, which includes the length; on Apple's systems the standard library asks for `F_FULLFSYNC`.
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn reserve(&self, len_bytes: u64) -> io::Result<()> {
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        {
            let flags = rustix::fs::FallocateFlags::empty();
            Ok(retry_on_intr(|| rustix::fs::fallocate(&self.0, flags, 0, len_bytes))?)
        }
        #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
        {
            let _ = len_bytes;
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        if self.0.metadata()?.len() > len_bytes {
            self.0.set_len(len_bytes)?;
        }
        Ok(())
    }

    fn begin_write_back(&self, offset_bytes: u64, len_bytes: u64) {
        #[cfg(all(target_os = "linux", not(miri)))]
        if let (Ok(offset), Ok(len)) = (i64::try_from(offset_bytes), i64::try_from(len_bytes)) {
            use std::os::fd::AsRawFd;
            // A hint: what it answers changes nothing, and a real error comes back at the next sync.
            // SAFETY: the descriptor is open as long as `self.0` lives, and no memory is passed.
            let _ = unsafe { linux::sync_file_range(self.0.as_raw_fd(), offset, len, linux::SYNC_FILE_RANGE_WRITE) };
        }
        // Elsewhere there is no such call, and the system writes back when it sees fit.
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let _ = (offset_bytes, len_bytes);
    }

    fn will_read(&self, offset_bytes: u64, len_bytes: u64) {
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        if let Some(len) = NonZeroU64::new(len_bytes) {
            // A hint: a file system that does not take it says so here, and nothing changes.
            let _ = rustix::fs::fadvise(&self.0, offset_bytes, Some(len), rustix::fs::Advice::WillNeed);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
        let _ = (offset_bytes, NonZeroU64::new(len_bytes));
    }
}

/// An open regular file that is read through a mapping.
///
/// Every read copies, once, into memory of ours, and nothing else looks into the mapping: so nobody can change bytes between the check of their
/// tag and their use, and no plaintext ever lies in a mapping. There is no reference into it either, since the bytes
/// may change under us if somebody writes to the file; what was copied then does not open.
#[derive(Debug)]
struct MappedFile {
    file: OpenFile,
    map: memmap2::MmapRaw,
}

impl File for MappedFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let from = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        if from.checked_add(buffer.len()).is_none_or(|end| end > self.map.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: source and destination are valid for `buffer.len()` bytes: the range was just compared with the mapping's length, and the mapping lives as
        // long as `self`. They do not overlap, because `buffer` is exclusively borrowed memory and the mapping hands out none. Bytes may have
        // any value. If the file was cut meanwhile, the kernel ends the process, as the setting's documentation says.
        unsafe { std::ptr::copy_nonoverlapping(self.map.as_ptr().add(from), buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    fn write_all_at(&self, _bytes: &[u8], _offset_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn reserve(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn cut(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn begin_write_back(&self, _offset_bytes: u64, _len_bytes: u64) {}

    fn will_read(&self, offset_bytes: u64, len_bytes: u64) {
        self.file.will_read(offset_bytes, len_bytes);
    }
}

/// What `rustix` does not wrap.
#[cfg(all(target_os = "linux", not(miri)))]
mod linux {
    use std::ffi::{c_int, c_uint};

    /// "Start write-out of all dirty pages in the range", and wait for nothing.
    pub(super) const SYNC_FILE_RANGE_WRITE: c_uint = 2;

    unsafe extern "C" {
        /// In every Linux C library; `off64_t` is `i64` in all of them.
        pub(super) fn sync_file_range(descriptor: c_int, offset: i64, len: i64, flags: c_uint) -> c_int;
    }
}

/// A lock file that is held. The lock belongs to the open file, so a second open of the same path is
/// refused in the same process too.
#[derive(Debug)]
struct HeldLock {
    file: OsFile,
    process: u32,
}

impl Lock for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        // A forked child shares the lock. Closing alone would leave it locked while the child lives,
        // and a child that unlocks would take it away from its parent.
        if self.process == std::process::id() {
            let _ = self.file.unlock();
        }
    }
}

/// The operating system's clocks.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct OsClock;

impl OsClock {
    /// The clocks of this machine.
    pub fn new() -> OsClock {
        OsClock
    }
}

impl Clock for OsClock {
    fn tick(&self) -> Tick {
        // Apple's and FreeBSD's monotonic clocks are the ones that count suspend there.
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "openbsd"))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "openbsd")))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(CLOCK);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0));
        Tick(nanos.max(1))
    }

    fn wall_ms(&self) -> u64 {
        // A clock that stands before 1970 reads as 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The operating system's randomness.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct OsEntropy;

impl OsEntropy {
    /// The randomness of this machine.
    pub fn new() -> OsEntropy {
        OsEntropy
    }
}

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(|error| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::other(error.to_string()),
        })
    }

    fn is_real(&self) -> bool {
        true
    }
}

/// Sleepers look at their clock at least this often. The system's timed waits do not count time asleep and the store's
/// clock does, so after a suspend a deadline is noticed this much late at the most.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// A thread for every task.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Threads;

impl Threads {
    /// Threads of this process.
    pub fn new() -> Threads {
        Threads
    }
}

impl Scheduler for Threads {
    fn spawn(&self, name: &'static str, task: Box<dyn Task>) -> io::Result<Box<dyn Join>> {
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || run(task))?;
        let thread = handle.thread().id();
        Ok(Box::new(ThreadJoin { name, thread, state: Mutex::new(JoinState::Running(handle)) }))
    }

    fn wait_until(
        &self,
        signal: &Signal,
        clock: &dyn Clock,
        deadline: Option<Tick>,
        ready: &mut dyn FnMut() -> bool,
    ) -> bool {
        signal.block_until(ready, &mut || deadline.map(|deadline| time_left(clock, deadline)))
    }
}

/// Step `task` until it is done, and drop it on this thread: also when it panics, while the stack unwinds.
fn run(mut task: Box<dyn Task>) {
    loop {
        match task.step() {
            Step::Again => {}
            Step::Wait { signal, seen, clock, deadline } => {
                let changed = &mut || signal.count() != seen;
                signal.block_until(changed, &mut || deadline.map(|deadline| time_left(&*clock, deadline)));
            }
            Step::Done => return,
        }
    }
}

/// How long to sleep for `deadline`; zero once it is past.
fn time_left(clock: &dyn Clock, deadline: Tick) -> Duration {
    Duration::from_nanos(deadline.0.saturating_sub(clock.tick().0)).min(SLEEP_MAX)
}

#[derive(Debug)]
struct ThreadJoin {
    name: &'static str,
    thread: thread::ThreadId,
    state: Mutex<JoinState>,
}

#[derive(Debug)]
enum JoinState {
    Running(JoinHandle<()>),
    Ended(Result<(), TaskPanicked>),
}

impl Join for ThreadJoin {
    fn join(&self) -> Result<(), TaskPanicked> {
        if thread::current().id() == self.thread {
            return Ok(());
        }
        let mut state = self.state.lock();
        if let JoinState::Ended(outcome) = &*state {
            return outcome.clone();
        }
        let JoinState::Running(handle) = std::mem::replace(&mut *state, JoinState::Ended(Ok(()))) else {
            return Ok(());
        };
        let outcome = handle.join().map_err(|payload| {
            let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
                (Some(text), _) => (*text).to_owned(),
                (_, Some(text)) => text.clone(),
                _ => "no message".to_owned(),
            };
            TaskPanicked { name: self.name, message }
        });
        *state = JoinState::Ended(outcome.clone());
        outcome
    }
}

/// The store's current moment, kept up to date by one background task and read before every operation.
///
/// Reading it is one relaxed load. In a forked child it reads `None`, for good: the kernel gives the child
/// a page of zeros (`MADV_WIPEONFORK`), and no moment is 0. So a child that inherits an open store finds out at its
/// first call, before it uses a key, an ordinal or a file position that its parent goes on using.
///
/// Where the kernel has no such advice, every load compares the process id, which costs a system call.
#[derive(Debug)]
pub struct TickCell(Word);

#[derive(Debug)]
enum Word {
    /// A page that a fork wipes; the number stands at its start.
    Wiped(memmap2::MmapMut),
    Owned {
        tick: AtomicU64,
        process: u32,
    },
}

impl TickCell {
    /// A cell that reads `initial`.
    pub fn new(initial: Tick) -> TickCell {
        let word = match wiped_page() {
            Some(page) => Word::Wiped(page),
            None => Word::Owned { tick: AtomicU64::new(0), process: std::process::id() },
        };
        let cell = TickCell(word);
        cell.number().store(initial.0.max(1), Ordering::Relaxed);
        cell
    }

    /// The moment last stored, or `None` in a process forked since.
    #[inline]
    pub fn load(&self) -> Option<Tick> {
        if let Word::Owned { process, .. } = &self.0
            && *process != std::process::id()
        {
            return None;
        }
        match self.number().load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Tick(nanos)),
        }
    }

    /// Make it `tick`. Does nothing in a forked child, where the cell must not come to life again. Only one thread stores.
    pub fn store(&self, tick: Tick) {
        if self.load().is_some() {
            self.number().store(tick.0.max(1), Ordering::Relaxed);
        }
    }

    #[inline]
    fn number(&self) -> &AtomicU64 {
        match &self.0 {
            Word::Wiped(page) => {
                let start = page.as_ptr().cast_mut().cast::<u64>();
                // SAFETY: the mapping is page-aligned, at least eight bytes long, readable and writable, lives as
                // long as `self`, starts as zeros, and is only ever used through this function.
                unsafe { AtomicU64::from_ptr(start) }
            }
            Word::Owned { tick, .. } => tick,
        }
    }
}

/// A page of zeros that is zeros again in a forked child, if the kernel can do that.
fn wiped_page() -> Option<memmap2::MmapMut> {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        let mut page = memmap2::MmapMut::map_anon(size_of::<u64>()).ok()?;
        let (start, len) = (page.as_mut_ptr().cast(), page.len());
        // SAFETY: the range is a private anonymous mapping that we own and that nobody looks into yet; the
        // advice changes nothing in this process.
        let advised = unsafe { rustix::mm::madvise(start, len, rustix::mm::Advice::LinuxWipeOnFork) };
        advised.ok().map(|()| page)
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    None
}

#[cfg(test)]
mod tests;
