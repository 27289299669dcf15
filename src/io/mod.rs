//! The outside world: files, time, randomness, and when anything waits or runs.
//!
//! Nothing outside this folder touches `std::fs`, a clock, a sleep or the operating system's randomness
//! (`clippy.toml` sees to it), so a whole store with its background work can run on one thread from one
//! seed, over files that forget what was not synced.
//!
//! ```text
//! Environment ─┬─ Vfs ── File        os.rs: the real file system      mem.rs: one that can lose power
//!              ├─ Clock              os.rs: boot time and wall time   sim.rs: set by hand
//!              ├─ Entropy            os.rs: getrandom                 sim.rs: a seed
//!              └─ Scheduler          os.rs: threads                   sim.rs: one thread, seeded order
//!                                    fault.rs: wraps a Vfs; fails, tears or delays the n-th operation
//! ```
//!
//! # What a [`Vfs`] promises about durability
//! A file's bytes survive a power cut once [`File::sync`] has returned, its name once
//! [`Vfs::sync_dir`] of its directory has. Until then any part of either may survive or not: writes
//! may be lost, kept, torn at a sector boundary or kept out of order. [`Vfs::rename`] is atomic. After a failed
//! sync nothing is known about the bytes written since the last good one.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use parking_lot::{Condvar, Mutex};

pub(crate) mod directory;
pub mod fault;
pub mod mem;
pub mod os;
pub mod sim;

/// Everything a store needs from the outside.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Files and directories.
    pub vfs: Arc<dyn Vfs>,
    /// Boot time and wall time.
    pub clock: Arc<dyn Clock>,
    /// Random bytes for keys, salts and identities.
    pub entropy: Arc<dyn Entropy>,
    /// Threads, or what stands for them.
    pub scheduler: Arc<dyn Scheduler>,
}

impl Environment {
    /// The real world: the operating system's files, clocks and randomness, and threads.
    pub fn os() -> Environment {
        Environment {
            vfs: Arc::new(os::OsVfs::new()),
            clock: Arc::new(os::OsClock::new()),
            entropy: Arc::new(os::OsEntropy::new()),
            scheduler: Arc::new(os::Threads::new()),
        }
    }

    /// A world of its own, in memory and on one thread, in which everything follows from `seed`.
    ///
    /// [`sim::Simulation`] makes the same and keeps hold of its parts, for tests that move the clock or cut the power.
    pub fn simulated(seed: u64) -> Environment {
        sim::Simulation::new(seed).environment()
    }
}

/// Files and directories. Paths are absolute or relative to the process, as given by the opener.
///
/// Directories are made 0700 and files 0600, whatever the umask. No call follows a symbolic link in the last component of
/// its path, and what is not a regular file is refused with [`io::ErrorKind::InvalidInput`].
pub trait Vfs: Send + Sync + Debug {
    /// Make a directory; fails if anything of that name exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Create a file that did not exist, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Open an existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// As [`open`](Vfs::open), for a file that will not change any more and is read through a mapping if there is such a thing here: without a system call, but a
    /// file that is cut, or a disk that cannot read, then ends the process with `SIGBUS` instead of giving an error.
    fn open_mapped(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path)
    }
    /// Open an existing file for reading and writing: only to overwrite a key file that is shredded.
    fn open_to_erase(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Take the lock file at `path`, which is created if missing, for as long as the result lives.
    /// [`io::ErrorKind::WouldBlock`] if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
    /// What a directory holds, in no particular order.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// What stands at `path`, which is not followed if it is a link.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
    /// Rename a file atomically over whatever file had the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Remove a file's name.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Remove an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Make creations, renames and removals in this directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// `path` made absolute, with links in it resolved, so that two spellings of one place compare equal.
    /// The last components need not exist.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;
    /// How many bytes can still be written to files below `path`; `None` if nobody knows.
    fn free_bytes(&self, _path: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }
    /// How many files this process may have open at a time; `None` if nothing limits it.
    fn open_files_max(&self) -> Option<usize> {
        None
    }
    /// Refuse with [`io::ErrorKind::PermissionDenied`] a directory that others than its owner may write:
    /// they could swap its files between two looks at them.
    fn check_private(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. All positions are absolute, so that many threads may read and write at once.
pub trait File: Send + Sync + Debug {
    /// Fill `buffer` from `offset_bytes` on; [`io::ErrorKind::UnexpectedEof`] if the file is shorter.
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()>;
    /// Write all of `bytes` at `offset_bytes`.
    fn write_all_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Make everything written, and the length, durable.
    fn sync(&self) -> io::Result<()>;
    /// Make a shorter file `len_bytes` long, with blocks of its own that read as zeros; nothing is changed in a longer one. A hint: a file
    /// system that cannot says so, and how long the file is then is open.
    fn reserve(&self, len_bytes: u64) -> io::Result<()>;
    /// Make a longer file end at `len_bytes`. Durable with the next sync.
    fn cut(&self, len_bytes: u64) -> io::Result<()>;
    /// Ask the system to begin writing back this range; a hint that promises nothing.
    fn begin_write_back(&self, offset_bytes: u64, len_bytes: u64);
    /// Tell the system that this range will be read soon; a hint that promises nothing.
    fn will_read(&self, offset_bytes: u64, len_bytes: u64);
}

/// What the write-ahead log writes through: a seam for reserved and mapped segments.
pub trait LogFile: Send + Sync + Debug {
    /// Ask for room for this many bytes in all, so that later writes neither need new blocks nor make the file longer; behind what is
    /// written the file holds zeros then. A hint, as [`File::reserve`] is.
    fn reserve(&self, len_bytes: u64);
    /// Give back what is reserved behind `len_bytes`.
    fn cut(&self, len_bytes: u64) -> io::Result<()>;
    /// Write zeros to a range of what is reserved, so that later writes to it change data alone.
    fn fill(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()>;
    /// Write all of `bytes` at `offset_bytes`.
    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()>;
    /// Ask the system to begin writing back this range; a hint that promises nothing.
    fn begin_write_back(&self, offset_bytes: u64, len_bytes: u64);
    /// Make everything written before `end_bytes` durable.
    fn sync_to(&self, end_bytes: u64) -> io::Result<()>;
}

/// A [`LogFile`] over any [`File`]: plain writes and plain syncs.
#[derive(Debug)]
pub struct PlainLogFile(pub Arc<dyn File>);

impl LogFile for PlainLogFile {
    fn reserve(&self, len_bytes: u64) {
        // Without it, every sync writes down a new length, too; that is all.
        let _ = self.0.reserve(len_bytes);
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        self.0.cut(len_bytes)
    }

    fn fill(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 16 << 10];
        let mut left = len_bytes;
        while left > 0 {
            let part = &ZEROS[..left.min(ZEROS.len() as u64) as usize];
            self.0.write_all_at(part, offset_bytes + len_bytes - left)?;
            left -= part.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset_bytes)
    }

    fn begin_write_back(&self, offset_bytes: u64, len_bytes: u64) {
        self.0.begin_write_back(offset_bytes, len_bytes);
    }

    fn sync_to(&self, _end_bytes: u64) -> io::Result<()> {
        self.0.sync()
    }
}

/// Held while a lock file is locked; dropping it unlocks.
pub trait Lock: Send + Sync + Debug {}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name, without the directory. Names that are not UTF-8 come with replacement characters.
    pub name: String,
    /// What it names.
    pub kind: EntryKind,
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A link, pipe, socket or device: nothing of ours.
    Other,
}

/// What stands at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// File, directory or something else.
    pub kind: EntryKind,
    /// Length in bytes; 0 for what is not a file.
    pub len_bytes: u64,
}

/// A moment of boot time: nanoseconds since the machine started, time asleep included. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tick(pub u64);

impl Tick {
    /// This moment, `duration` later; the end of time if that is past it.
    pub fn after(self, duration: std::time::Duration) -> Tick {
        Tick(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Nanoseconds from `earlier` to this moment; 0 if it is later.
    pub(crate) fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Two clocks: one that only goes forward and counts suspend, one that people read.
pub trait Clock: Send + Sync + Debug {
    /// Boot time now.
    fn tick(&self) -> Tick;
    /// Wall time now, in milliseconds since 1970-01-01 00:00 UTC.
    fn wall_ms(&self) -> u64;
}

/// Random bytes from which keys can be made.
pub trait Entropy: Send + Sync + Debug {
    /// Fill `bytes`, all of them, or fail.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()>;
    /// Whether the bytes come from the operating system. A store made with others says so in its
    /// metadata, and is refused by an opener whose entropy is real.
    fn is_real(&self) -> bool;
}

/// When anything waits or runs.
///
/// The engine blocks nowhere but in [`Scheduler::wait_until`], and runs background work only as
/// [`Task`]s. No lock is held across either, so that a simulation can run everything on one thread.
pub trait Scheduler: Send + Sync + Debug {
    /// Run `task` in the background, one step after the other, until it is done.
    fn spawn(&self, name: &'static str, task: Box<dyn Task>) -> io::Result<Box<dyn Join>>;

    /// Return true once `ready` does, or false once `deadline` is past on `clock`. `ready` is called again
    /// whenever `signal` is raised, and may be called more often than that.
    ///
    /// `ready` is called with the signal's own mutex held (so that no wake-up is lost between its answer
    /// and going to sleep): it must not raise or wait for the **same** signal. It should only look.
    fn wait_until(
        &self,
        signal: &Signal,
        clock: &dyn Clock,
        deadline: Option<Tick>,
        ready: &mut dyn FnMut() -> bool,
    ) -> bool;
}

/// Background work in steps of at most a MiB of input or output.
///
/// A task that panics is dropped while the stack unwinds, so its `Drop` may ask [`std::thread::panicking`] and tell
/// those who wait for its work that none will come.
pub trait Task: Send {
    /// Do the next step.
    fn step(&mut self) -> Step;
}

/// What a [`Task`] wants next.
#[derive(Debug)]
pub enum Step {
    /// Another step, now.
    Again,
    /// Another step when the signal is raised or the deadline (on the store's clock) is past.
    Wait {
        /// What to wait for.
        signal: Arc<Signal>,
        /// [`Signal::count`] as read **before** the task looked for work, so that nothing raised since is missed.
        seen: u64,
        /// The clock of the deadline.
        clock: Arc<dyn Clock>,
        /// When to go on in any case.
        deadline: Option<Tick>,
    },
    /// No more steps.
    Done,
}

/// A spawned task. Its owner joins it.
pub trait Join: Send + Sync + Debug {
    /// Return once the task is done and dropped, or at once when the task itself calls this, which would otherwise wait
    /// for ever. In a simulation, run tasks until it is done. May be called again, with the same answer.
    ///
    /// # Errors
    /// [`TaskPanicked`] if the task ended by a panic.
    fn join(&self) -> Result<(), TaskPanicked>;
}

/// A background task ended by a panic instead of [`Step::Done`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the background task {name} panicked: {message}")]
pub struct TaskPanicked {
    /// The name that the task was spawned with.
    pub name: &'static str,
    /// What it panicked with, if that was text.
    pub message: String,
}

/// Something that others may be waiting for has changed.
#[derive(Debug, Default)]
pub struct Signal {
    count: AtomicU64,
    waiters: AtomicUsize,
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Signal {
    /// A signal that was never raised.
    pub fn new() -> Signal {
        Signal::default()
    }

    /// How often it was raised.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Wake all who wait. Change what they wait for first.
    pub fn raise(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // A waiter announces itself before it looks at its condition for the last time, and the
        // condition was changed before this line: one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            drop(self.mutex.lock());
            self.condvar.notify_all();
        }
    }

    /// Block this thread until `ready` holds or `timeout` gives `Some(ZERO)`: the waiting half, for [`Scheduler`]s
    /// with real threads. `timeout` is asked again at every wake-up for the time that is left. Both are called with the
    /// signal's mutex held, so neither may raise or wait for this signal.
    pub fn block_until(
        &self,
        ready: &mut dyn FnMut() -> bool,
        timeout: &mut dyn FnMut() -> Option<std::time::Duration>,
    ) -> bool {
        if ready() {
            return true;
        }
        self.waiters.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut guard = self.mutex.lock();
        let outcome = loop {
            if ready() {
                break true;
            }
            match timeout() {
                None => self.condvar.wait(&mut guard),
                Some(left) if left.is_zero() => break false,
                Some(left) => {
                    self.condvar.wait_for(&mut guard, left);
                }
            }
        };
        drop(guard);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}
