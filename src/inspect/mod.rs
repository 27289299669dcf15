//! Looking into a store from outside, also one that does not open: nothing here uses `db`, and nothing here changes a byte.
//!
//! ```text
//!           needs          finds
//! scrub     no key         bytes that are not the bytes that were written            any machine, any time
//! verify    every key      ... and bytes that nobody who has the keys wrote, or that are missing, old, or in the wrong place
//! trail     the system key nothing in the store: records of its audit trail that are missing or that it did not write
//! dump      no key or all  nothing: it shows what a file says, for a person
//! ```
//!
//! - [`verify`] checks every seal and every link between files. It takes the store's lock, so the store must not be open elsewhere.
//! - [`scrub`] checks every checksum. It takes no lock: files are written once and deleted, except that log and manifest grow at their
//!   ends; what looks unfinished there is reported apart from damage.
//! - [`dump`] describes one file, frame by frame, with what it can open; never a value, and keys only if asked.
//!
//! A damaged file ends none of them: what is wrong is collected, and the rest is looked at all the same. [`Inspection`] is the long form of
//! the three functions, with a second provider or another environment.
//!
//! ```no_run
//! # fn example(kms: std::sync::Arc<dyn strongroom::keys::KeyProvider>) -> strongroom::Result<()> {
//! let report = strongroom::inspect::verify("data", kms, &mut |progress| {
//!     eprintln!("{}: {} of {} bytes", progress.file, progress.bytes_done, progress.bytes_total);
//! })?;
//! for damage in &report.damages {
//!     eprintln!("{damage}; {}", damage.advice());
//! }
//! # Ok(())
//! # }
//! ```

mod contents;
mod dump;
mod scrub;
#[cfg(feature = "trail")]
mod trail;
mod verify;

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::dump::DumpOptions;
pub use self::scrub::ScrubReport;
pub use self::verify::{UnavailableTable, VerifyReport};

use crate::error::{Error, Result};
use crate::format::{DIRECTORIES, FileName, Where};
use crate::io::directory::{Directory, refused};
use crate::io::{EntryKind, Environment, File};
use crate::keys::KeyProvider;

/// At most so many damaged places are listed of one file: somebody who overwrites all of a large one shall not fill the memory of
/// whoever looks.
pub const DAMAGES_MAX: usize = 1024;
/// Progress is told at least this often, in bytes.
const PROGRESS_BYTES: u64 = 1 << 20;

/// How far an inspection has come. Told when a file begins and then every MiB or so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file that is being read, relative to the store.
    pub file: &'a str,
    /// Files that are done.
    pub files_done: u64,
    /// Files in all, as they were when the inspection began.
    pub files_total: u64,
    /// Bytes that are done.
    pub bytes_done: u64,
    /// Bytes in all, as they were when the inspection began.
    pub bytes_total: u64,
}

/// Check every seal of the store at `path` with the keys of `provider`; see [`Inspection::verify`].
///
/// # Errors
/// As for [`Inspection::verify`].
pub fn verify(
    path: impl AsRef<Path>,
    provider: Arc<dyn KeyProvider>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<VerifyReport> {
    Inspection::of(path).key_provider(provider).verify(progress)
}

/// Check every checksum of the store at `path` without any key; see [`Inspection::scrub`].
///
/// # Errors
/// As for [`Inspection::scrub`].
pub fn scrub(path: impl AsRef<Path>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<ScrubReport> {
    Inspection::of(path).scrub(progress)
}

/// Describe one file, without any key: header and frames. With keys: [`Inspection::dump`].
///
/// `file` may lie anywhere; what kind of file it is, its header says.
///
/// # Errors
/// [`Error::MissingFile`]; [`Error::Io`] if the file cannot be read or `out` not written. Damage is described and no error.
pub fn dump(file: impl AsRef<Path>, out: &mut dyn Write) -> Result<()> {
    let file = file.as_ref();
    let (folder, name) = match (file.parent(), file.file_name()) {
        (Some(folder), Some(name)) => (folder, name.to_string_lossy()),
        _ => return Err(Error::MissingFile { file: file.display().to_string() }),
    };
    Inspection::of(folder).dump(&name, &DumpOptions::new(), out)
}

/// Which store to look at, and with whose keys.
#[derive(Clone)]
pub struct Inspection {
    path: PathBuf,
    main: Option<Arc<dyn KeyProvider>>,
    owned: Option<Arc<dyn KeyProvider>>,
    environment: Environment,
}

impl Inspection {
    /// Of the store at `path`, without any key so far.
    pub fn of(path: impl AsRef<Path>) -> Inspection {
        Inspection { path: path.as_ref().to_owned(), main: None, owned: None, environment: Environment::os() }
    }

    /// The provider that the store was created with.
    #[must_use]
    pub fn key_provider(mut self, provider: Arc<dyn KeyProvider>) -> Inspection {
        self.main = Some(provider);
        self
    }

    /// The provider of the store's owned keys, if it is another one.
    #[must_use]
    pub fn owned_key_provider(mut self, provider: Arc<dyn KeyProvider>) -> Inspection {
        self.owned = Some(provider);
        self
    }

    /// Look at files and clocks of another world than the operating system's.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Inspection {
        self.environment = environment;
        self
    }

    /// Check every seal, and every link from one file to another, with the keys.
    ///
    /// Checked are: the system key's file and every key file (both copies, and that they are the versions that the manifest pins), `CURRENT`, the manifest, the log
    /// (that it is whole as far as anything attests, and every entry), every sorted table (each frame, and that its parts and the manifest agree), that every file named by
    /// the manifest is there, and after a clean close that not a byte is missing or added. Files that nobody names are listed.
    ///
    /// What is wrong is collected in [`VerifyReport::damages`]. A table whose key the provider does not give is listed in
    /// [`VerifyReport::unavailable`]; of its files only the checksums are checked.
    ///
    /// Takes the store's lock for as long as it runs, unless there is no lock file or the file system is read-only. Changes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a provider; [`Error::NotAStore`]; [`Error::Locked`] if the store is open elsewhere; [`Error::KeyUnavailable`] or
    /// [`Error::WrongKey`] for the system key, without which there is nothing to verify; [`Error::Io`] if a directory cannot be listed.
    pub fn verify(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<VerifyReport> {
        verify::verify(self, progress)
    }

    /// Check the audit trail in `folder`: that no record is missing, altered, moved or repeated, up to the last one that the store attests; and that
    /// those behind it are authentic. See [`TrailReport`](crate::keys::trail::TrailReport) for what that leaves open.
    ///
    /// Takes the store's lock for as long as it runs. Changes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a provider; [`Error::NotAStore`]; [`Error::Locked`] if the store is open elsewhere; whatever keeps the
    /// system key or the manifest from being read; [`Error::Io`] if the folder or a file in it cannot be read.
    #[cfg(feature = "trail")]
    pub fn verify_trail(&self, folder: &crate::keys::trail::TrailFolder) -> Result<crate::keys::trail::TrailReport> {
        trail::verify_trail(self, folder)
    }

    /// Check every checksum. Needs no key, so it can run where no key may ever be.
    ///
    /// That all checksums are right means that the bytes are those that were written: the medium is in order. It does not mean that
    /// nobody changed them, that no file is missing, or that a file has not been cut where a frame ends: [`verify`](Inspection::verify) finds that.
    ///
    /// Takes no lock, and works while the store is open elsewhere; files that are deleted meanwhile are left out. Memory
    /// is bounded, whatever the size of the files.
    ///
    /// # Errors
    /// [`Error::NotAStore`]; [`Error::Io`] if a directory cannot be listed.
    pub fn scrub(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<ScrubReport> {
        scrub::scrub(self, progress)
    }

    /// Describe a file, given by its name relative to the store: its header by field, and each frame's offset, length, kind, ordinal and
    /// checksum. With a provider also what is sealed: envelopes, edits, key records, indexes, properties, and how many entries a section
    /// or block has; never a value, and keys only if `options` ask for them.
    ///
    /// Takes no lock and changes nothing. The text is for people, and may change from version to version.
    ///
    /// # Errors
    /// [`Error::MissingFile`]; with a provider, whatever keeps the system key from being read; [`Error::Io`] if the
    /// file cannot be read or `out` not written. Damage in the file is described and no error.
    pub fn dump(&self, file: &str, options: &DumpOptions, out: &mut dyn Write) -> Result<()> {
        dump::dump(self, file, options, out)
    }

    fn directory(&self) -> Directory {
        Directory::new(self.environment.vfs.clone(), self.path.clone())
    }
}

impl fmt::Debug for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inspection").field(&self.path).finish()
    }
}

/// The provider of the keys without which nothing can be verified.
fn provider(inspection: &Inspection) -> Result<Arc<dyn KeyProvider>> {
    let missing =
        || Error::InvalidArgument { what: "key provider", detail: "nothing can be verified without keys".into() };
    inspection.main.clone().ok_or_else(missing)
}

/// A name in a store's directory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Listed {
    /// Relative to the store.
    name: String,
    /// What it is, by its name.
    what: What,
    len_bytes: u64,
}

/// What a name in a store's directory stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// One of ours.
    File(FileName),
    /// One of ours that was not finished, or nothing of ours at all.
    Stray,
}

/// Everything in the store's directory, in order of names. Directories that are not ours are listed and not entered.
///
/// # Errors
/// [`Error::NotAStore`] if there is nothing in it that only a store has.
fn list(dir: &Directory) -> Result<Vec<Listed>> {
    let not_a_store = || Error::NotAStore { path: dir.root().display().to_string() };
    match dir.vfs().metadata(dir.root()) {
        Ok(metadata) if metadata.kind == EntryKind::Directory => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused("look at", "the store", error)),
        _ => return Err(not_a_store()),
    }
    let mut found = Vec::new();
    list_into(dir, "", &mut found)?;
    let is_ours = |listed: &Listed| matches!(listed.what, What::File(name) if name != FileName::Lock);
    if !found.iter().any(is_ours) {
        return Err(not_a_store());
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn list_into(dir: &Directory, folder: &str, found: &mut Vec<Listed>) -> Result<()> {
    for entry in dir.list(folder)? {
        let name = if folder.is_empty() { entry.name } else { format!("{folder}/{}", entry.name) };
        if entry.kind == EntryKind::Directory && is_our_folder(&name) {
            list_into(dir, &name, found)?;
            continue;
        }
        // It may have been deleted since the directory was read.
        let Some(metadata) = dir.metadata(&name)? else { continue };
        let what = match FileName::parse(&name) {
            Some(file) if metadata.kind == EntryKind::File => What::File(file),
            _ => What::Stray,
        };
        found.push(Listed { name, what, len_bytes: metadata.len_bytes });
    }
    Ok(())
}

/// One of the fixed directories, or one of two hexadecimal digits below `keys` or `sst`.
fn is_our_folder(name: &str) -> bool {
    let is_shard =
        |shard: &str| shard.len() == 2 && shard.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    DIRECTORIES.contains(&name) || matches!(name.split_once('/'), Some(("keys" | "sst", shard)) if is_shard(shard))
}

/// Tells how far an inspection has come.
struct Meter<'a> {
    tell: &'a mut dyn FnMut(Progress<'_>),
    file: String,
    files_begun: u64,
    files_total: u64,
    bytes_done: u64,
    bytes_told: u64,
    bytes_total: u64,
}

impl<'a> Meter<'a> {
    fn new(listed: &[Listed], tell: &'a mut dyn FnMut(Progress<'_>)) -> Meter<'a> {
        Meter {
            tell,
            file: String::new(),
            files_begun: 0,
            files_total: listed.len() as u64,
            bytes_done: 0,
            bytes_told: 0,
            bytes_total: listed.iter().map(|listed| listed.len_bytes).sum(),
        }
    }

    /// A file begins.
    fn begin(&mut self, file: &str) {
        file.clone_into(&mut self.file);
        self.files_begun += 1;
        self.tell(self.files_begun - 1);
    }

    /// So many more bytes are done.
    fn add(&mut self, bytes: u64) {
        self.bytes_done += bytes;
        if self.bytes_done - self.bytes_told >= PROGRESS_BYTES {
            self.tell(self.files_begun.saturating_sub(1));
        }
    }

    /// All is done.
    fn end(&mut self) {
        self.tell(self.files_begun);
    }

    fn tell(&mut self, files_done: u64) {
        self.bytes_told = self.bytes_done;
        (self.tell)(Progress {
            file: &self.file,
            files_done,
            // Files may have come, and grown, since they were counted.
            files_total: self.files_total.max(self.files_begun),
            bytes_done: self.bytes_done,
            bytes_total: self.bytes_total.max(self.bytes_done),
        });
    }
}

/// A file that is being read piece by piece.
struct Source {
    file: Arc<dyn File>,
    name: String,
    len_bytes: u64,
}

impl Source {
    fn open(dir: &Directory, name: &str) -> Result<Source> {
        let file = dir.open(name)?;
        let len_bytes = file.len_bytes().map_err(|error| refused("measure", name, error))?;
        Ok(Source { file, name: name.to_owned(), len_bytes })
    }

    /// The bytes in `range`, which lies within the file as it was when it was opened.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let len = range.end.saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| self.shorter(range.start))?];
        match self.file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.shorter(range.start)),
            Err(error) => Err(refused("read", &self.name, error)),
        }
    }

    /// Whether nothing but zeros stands from `from` on.
    fn is_zero_from(&self, from: u64) -> Result<bool> {
        let mut start = from;
        while start < self.len_bytes {
            let end = self.len_bytes.min(start + PROGRESS_BYTES);
            if self.read(start..end)?.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            start = end;
        }
        Ok(true)
    }

    fn shorter(&self, offset_bytes: u64) -> Error {
        Where::new(&self.name, offset_bytes).bit_rot("the file has become shorter since it was opened")
    }
}
