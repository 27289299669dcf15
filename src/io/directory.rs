//! A store's directory: names relative to it, errors of the engine.
//!
//! The parts above think in names such as `wal/000012.wal`; what can go wrong with one is said with that name, so that
//! an error means the same wherever the store lies.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DirEntry, File, Metadata, Vfs};
use crate::error::{Error, Result};
use crate::metrics::Meters;

/// Bytes that are overwritten at a time when a file is erased.
const ERASE_BYTES: usize = 64 << 10;

/// A file that is to come in the place of another, or of none.
pub(crate) struct Replacement {
    /// What it is called,
    pub(crate) name: String,
    /// and what until it is whole.
    pub(crate) temporary: String,
    pub(crate) bytes: Vec<u8>,
}

/// A directory in which all names are relative.
pub(crate) struct Directory {
    vfs: Arc<dyn Vfs>,
    root: PathBuf,
    /// Subdirectories that are known to exist durably.
    known: Mutex<HashSet<String>>,
    /// What is counted of all that is done with the files in it.
    meters: Arc<Meters>,
}

impl Directory {
    /// The directory `root` of `vfs`.
    pub(crate) fn new(vfs: Arc<dyn Vfs>, root: PathBuf) -> Directory {
        Directory { vfs, root, known: Mutex::default(), meters: Arc::new(Meters::new()) }
    }

    /// The files that it lies in.
    pub(crate) fn vfs(&self) -> &dyn Vfs {
        &*self.vfs
    }

    /// Where what is done with its files is counted.
    pub(crate) fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// How many bytes can still be written to files of it; `None` if nobody knows.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.vfs.free_bytes(&self.root).ok().flatten()
    }

    /// The path of `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Create a file that did not exist.
    pub(crate) fn create(&self, name: &str) -> Result<Arc<dyn File>> {
        self.vfs.create(&self.path(name)).map_err(|error| refused("create", name, error))
    }

    /// Open a file for reading; [`Error::MissingFile`] if there is none.
    pub(crate) fn open(&self, name: &str) -> Result<Arc<dyn File>> {
        self.vfs.open(&self.path(name)).map_err(|error| refused("open", name, error))
    }

    /// As [`open`](Directory::open), to be read through a mapping.
    pub(crate) fn open_mapped(&self, name: &str) -> Result<Arc<dyn File>> {
        self.vfs.open_mapped(&self.path(name)).map_err(|error| refused("open", name, error))
    }

    /// All bytes of a file that may have at most `len_max` of them; [`Error::LimitExceeded`] otherwise. For small files: so much is taken from
    /// memory at once, if whoever can write the directory says so.
    pub(crate) fn read(&self, name: &str, len_max: usize) -> Result<Vec<u8>> {
        let file = self.open(name)?;
        let actual = file.len_bytes().map_err(|error| refused("measure", name, error))?;
        let Some(len) = usize::try_from(actual).ok().filter(|len| *len <= len_max) else {
            return Err(Error::LimitExceeded { what: "length of a file in bytes", limit: len_max as u64, actual });
        };
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map_err(|error| refused("read", name, error))?;
        Ok(bytes)
    }

    /// Put `bytes` under `name` atomically, by way of `temporary`. Durable once the directory is synced too.
    pub(crate) fn replace(&self, name: &str, temporary: &str, bytes: &[u8]) -> Result<()> {
        let written = self.stage(temporary, bytes).and_then(|()| self.rename(temporary, name));
        if written.is_err() {
            let _ = self.vfs.remove_file(&self.path(temporary));
        }
        written
    }

    /// As [`replace`](Directory::replace) for many files: all are written before the first is waited for, so that the system can make them durable
    /// together. After an error some may have their names, and no temporary one is left.
    pub(crate) fn replace_all(&self, replacements: &[Replacement]) -> Result<()> {
        let staged = self.stage_all(replacements);
        let renamed =
            staged.and_then(|()| replacements.iter().try_for_each(|new| self.rename(&new.temporary, &new.name)));
        if renamed.is_err() {
            for new in replacements {
                let _ = self.vfs.remove_file(&self.path(&new.temporary));
            }
        }
        renamed
    }

    fn stage_all(&self, replacements: &[Replacement]) -> Result<()> {
        let write = |new: &Replacement| {
            let file = self.write_temporary(&new.temporary, &new.bytes)?;
            file.begin_write_back(0, new.bytes.len() as u64);
            Ok(file)
        };
        let files = replacements.iter().map(write).collect::<Result<Vec<_>>>()?;
        let sync = |(file, new): (&Arc<dyn File>, &Replacement)| {
            file.sync().map_err(|error| refused("sync", &new.temporary, error))
        };
        files.iter().zip(replacements).try_for_each(sync)
    }

    /// Write a temporary file whose bytes are durable; its name is, once the directory is synced.
    pub(crate) fn stage(&self, temporary: &str, bytes: &[u8]) -> Result<()> {
        let written = self
            .write_temporary(temporary, bytes)
            .and_then(|file| file.sync().map_err(|error| refused("sync", temporary, error)));
        if written.is_err() {
            let _ = self.vfs.remove_file(&self.path(temporary));
        }
        written
    }

    fn write_temporary(&self, temporary: &str, bytes: &[u8]) -> Result<Arc<dyn File>> {
        // What a crash left of an earlier attempt is in the way of an exclusive create.
        self.remove_if_there(temporary)?;
        let file = self.create(temporary)?;
        file.write_all_at(bytes, 0).map_err(|error| refused("write", temporary, error))?;
        Ok(file)
    }

    /// Rename a file over whatever had the new name.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.vfs.rename(&self.path(from), &self.path(to)).map_err(|error| refused("rename", from, error))
    }

    /// Remove a file; [`Error::MissingFile`] if there is none.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.vfs.remove_file(&self.path(name)).map_err(|error| refused("remove", name, error))
    }

    /// Remove a file if there is one.
    pub(crate) fn remove_if_there(&self, name: &str) -> Result<()> {
        match self.remove(name) {
            Err(Error::MissingFile { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Overwrite a file with zeros, durably, then remove its name. The directory's sync is the caller's.
    pub(crate) fn erase(&self, name: &str) -> Result<()> {
        match self.overwrite(&[name.to_owned()]) {
            Ok(()) => self.remove(name),
            Err(Error::MissingFile { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Overwrite files with zeros, durably: all are written before the first is waited for. They keep their names and lengths.
    pub(crate) fn overwrite(&self, names: &[String]) -> Result<()> {
        let files = names.iter().map(|name| self.overwrite_unsynced(name)).collect::<Result<Vec<_>>>()?;
        let sync = |(file, name): (&Arc<dyn File>, &String)| file.sync().map_err(|error| refused("sync", name, error));
        files.iter().zip(names).try_for_each(sync)
    }

    fn overwrite_unsynced(&self, name: &str) -> Result<Arc<dyn File>> {
        let file = self.vfs.open_to_erase(&self.path(name)).map_err(|error| refused("open", name, error))?;
        let len = file.len_bytes().map_err(|error| refused("measure", name, error))?;
        let zeros = [0; ERASE_BYTES];
        let mut offset = 0;
        while offset < len {
            let count = (len - offset).min(ERASE_BYTES as u64);
            file.write_all_at(&zeros[..count as usize], offset).map_err(|error| refused("overwrite", name, error))?;
            offset += count;
        }
        file.begin_write_back(0, len);
        Ok(file)
    }

    /// Make creations, renames and removals in a subdirectory durable; "" for the directory itself.
    pub(crate) fn sync_dir(&self, name: &str) -> Result<()> {
        self.vfs.sync_dir(&self.path(name)).map_err(|error| refused("sync", name, error))
    }

    /// Make a subdirectory, durably, if it is not there. Its parent must be.
    pub(crate) fn ensure_dir(&self, name: &str) -> Result<()> {
        let mut known = self.known.lock();
        if known.contains(name) {
            return Ok(());
        }
        match self.vfs.create_dir(&self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refused("create", name, error)),
            // One that was there may be so only in memory: a crash could have come before its parent's sync.
            _ => self.sync_dir(name.rsplit_once('/').map_or("", |(parent, _)| parent))?,
        }
        known.insert(name.to_owned());
        Ok(())
    }

    /// What a subdirectory holds; nothing if it does not exist.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<DirEntry>> {
        match self.vfs.read_dir(&self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            outcome => outcome.map_err(|error| refused("list", name, error)),
        }
    }

    /// What stands at `name`, if anything.
    pub(crate) fn metadata(&self, name: &str) -> Result<Option<Metadata>> {
        match self.vfs.metadata(&self.path(name)) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused("look at", name, error)),
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Directory").field(&self.root).finish()
    }
}

/// The engine's error for what the operating system said about `name`.
pub(crate) fn refused(operation: &'static str, name: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::MissingFile { file: name.to_owned() },
        _ => Error::io(operation, name, error),
    }
}
