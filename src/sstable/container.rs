//! A file of many small sorted tables, one behind the other.
//!
//! ```text
//! sst/22/000034.set   table 35: header frames footer │ table 36: header frames footer │ table 37 ...
//!                     └─ the manifest says where each begins and how long it is
//! ```
//! A store with 10,000 tables that are written evenly has memtables of a few KiB. A file for each would cost a creation, a sync and a
//! removal, milliseconds for what is sealed in microseconds; in a container all of them share one.
//!
//! Each table is sealed as if it were alone, under its own table's key, with a header, salt and number of its own. Nothing of the container
//! itself is sealed and nothing needs to be: where a table begins is no part of its place, and a reader opens at an offset
//! only what the manifest's record describes. So a table may be carried to another container byte for byte, without its key.
//!
//! A container lives until the last table in it is dead. What is dead before is carried by those that live, within the bounds that `db` keeps.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::writer::write_back;
use crate::error::{Error, Result};
use crate::io::{File, Vfs};
use crate::types::FileNumber;

/// Tables go to the file when so many bytes of them have come together.
const WRITE_BYTES: usize = 1 << 20;

/// A container that is being written.
pub(crate) struct Container {
    vfs: Arc<dyn Vfs>,
    /// Gives out its number, where it lies and what errors call it; its directory exists.
    place: Box<dyn Fn() -> Result<(FileNumber, PathBuf, String)> + Send + Sync>,
    inner: Mutex<Option<Inner>>,
}

struct Inner {
    number: FileNumber,
    path: PathBuf,
    name: String,
    file: Arc<dyn File>,
    written_bytes: u64,
    buffer: Vec<u8>,
    /// Why nothing more can be written: what reached the file is unknown since.
    failure: Option<Error>,
}

impl Container {
    /// A container whose file is created with the first table.
    pub(crate) fn new(
        vfs: Arc<dyn Vfs>,
        place: impl Fn() -> Result<(FileNumber, PathBuf, String)> + Send + Sync + 'static,
    ) -> Arc<Container> {
        Arc::new(Container { vfs, place: Box::new(place), inner: Mutex::default() })
    }

    /// Take in a whole table; the container's number, and where in it the table begins.
    ///
    /// # Errors
    /// `Io`. Nothing in the container can be relied on then.
    pub(crate) fn append(&self, table: &[u8]) -> Result<(FileNumber, u64)> {
        let mut inner = self.inner.lock();
        let inner = match &mut *inner {
            Some(inner) => inner,
            None => {
                let (number, path, name) = (self.place)()?;
                let file = self.vfs.create(&path).map_err(|source| Error::io("create", &name, source))?;
                let buffer = Vec::with_capacity(table.len());
                inner.insert(Inner { number, path, name, file, written_bytes: 0, buffer, failure: None })
            }
        };
        inner.check()?;
        let offset_bytes = inner.written_bytes + inner.buffer.len() as u64;
        inner.buffer.extend_from_slice(table);
        if inner.buffer.len() >= WRITE_BYTES {
            inner.drain()?;
        }
        Ok((inner.number, offset_bytes))
    }

    /// Make everything in it durable. The name is the caller's, who syncs the directory.
    ///
    /// # Errors
    /// `Io`. Nothing in the container can be relied on then.
    pub(crate) fn sync(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        let Some(inner) = &mut *inner else { return Ok(()) };
        inner.check()?;
        inner.drain()?;
        let synced = inner.file.sync().map_err(|source| Error::io("sync", &inner.name, source));
        inner.fail_with(synced)
    }

    /// Fails if anything could not be written.
    pub(crate) fn check(&self) -> Result<()> {
        self.inner.lock().as_ref().map_or(Ok(()), Inner::check)
    }

    /// Its number, once there is a table in it.
    pub(crate) fn number(&self) -> Option<FileNumber> {
        self.inner.lock().as_ref().map(|inner| inner.number)
    }

    /// Remove the file: no manifest names anything in it. If that fails, recovery removes it.
    pub(crate) fn abandon(&self) {
        if let Some(inner) = self.inner.lock().take() {
            let _ = self.vfs.remove_file(&inner.path);
        }
    }
}

impl Inner {
    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn fail_with<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|error| self.failure = Some(error.clone()))
    }

    fn drain(&mut self) -> Result<()> {
        let start = self.written_bytes;
        let written = self.file.write_all_at(&self.buffer, start);
        let written = written.map_err(|source| Error::io("write", &self.name, source));
        self.fail_with(written)?;
        self.written_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        write_back(&*self.file, start, self.written_bytes);
        Ok(())
    }
}
