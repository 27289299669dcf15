//! The sink that writes files: one record to a line, one file per day and opening of a store.
//!
//! ```text
//! record ── its day's file, created exclusively ── one write at the file's end ── sync ── kept
//!              │ another day, another opening, or a write that failed: a new file
//! ```
//! A file is appended to only by whoever created it and only as long as every write succeeded, so at most its last line is torn. Its lines are synced
//! one by one: a record that a power cut could take away would be worth little, and requests to a provider are rare. Files are 0600, folders
//! 0700, and no link is followed.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::TrailSink;
use super::calendar::Day;
use super::reader::{TrailFolder, file_name};
use super::record::TrailRecord;
use crate::io::{EntryKind, Environment, File, Vfs};
use crate::types::StoreId;

/// Writes a trail to files below a folder: `YYYY/MM/DD/`, in UTC, and lines of JSON.
///
/// The folder may be shared by several stores. It must be nobody else's to write, and must not lie inside a store.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use strongroom::keys::trail::{JsonLinesTrail, TrailFolder};
/// use strongroom::{LocalKms, MasterKey, Store, TableOptions, TrailOptions, Unlock};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (keyring, data, trail) = (folder.path().join("keyring"), folder.path().join("data"), folder.path().join("trail"));
/// let kms = LocalKms::create(&keyring, Unlock::key(|key| key.fill(7)))?;
/// kms.create_key(Some("alias/ratings"), "")?;
/// let sink = Arc::new(JsonLinesTrail::new(&trail));
/// let store = Store::builder(&data).key_provider(kms).trail(sink, TrailOptions::new()).create()?;
/// store.create_table("ratings", TableOptions::new().master_key(MasterKey::customer("alias/ratings")))?;
///
/// let names: Vec<String> = TrailFolder::at(&trail).records(None)?.into_iter().map(|entry| entry.record.name).collect();
/// assert!(names.iter().any(|name| name == "GenerateDataKey") && names.iter().any(|name| name == "CreateTable"));
/// # Ok(())
/// # }
/// ```
pub struct JsonLinesTrail {
    vfs: Arc<dyn Vfs>,
    root: PathBuf,
    open: Mutex<HashMap<StoreId, OpenFile>>,
}

/// A file that is being written.
struct OpenFile {
    file: Arc<dyn File>,
    day: Day,
    len_bytes: u64,
}

impl JsonLinesTrail {
    /// A trail in `folder`, which is made when there is something to write.
    pub fn new(folder: impl AsRef<Path>) -> JsonLinesTrail {
        JsonLinesTrail::in_environment(folder, &Environment::os())
    }

    /// The same in another world than the operating system's.
    pub fn in_environment(folder: impl AsRef<Path>, environment: &Environment) -> JsonLinesTrail {
        JsonLinesTrail { vfs: environment.vfs.clone(), root: folder.as_ref().to_owned(), open: Mutex::default() }
    }

    fn begin(&self, record: &TrailRecord, day: Day) -> io::Result<OpenFile> {
        self.make_folder(&self.root)?;
        self.vfs.check_private(&self.root)?;
        let mut folder = self.root.clone();
        for part in day.folder().split('/') {
            folder.push(part);
            self.make_folder(&folder)?;
        }
        // The same number and moment again: the record before this one could not be written.
        for attempt in 0.. {
            let path = folder.join(file_name(record, attempt));
            match self.vfs.create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                outcome => {
                    let file = outcome?;
                    self.vfs.sync_dir(&folder)?;
                    return Ok(OpenFile { file, day, len_bytes: 0 });
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Make a folder, durably, if it is not there, and those above it.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let parent = folder.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
        match self.vfs.create_dir(folder) {
            Ok(()) => parent.map_or(Ok(()), |parent| self.vfs.sync_dir(parent)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.vfs.metadata(folder)?.kind {
                EntryKind::Directory => Ok(()),
                _ => Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no folder", folder.display()))),
            },
            Err(error) => match parent {
                Some(parent) if error.kind() == io::ErrorKind::NotFound => {
                    self.make_folder(parent)?;
                    self.vfs.create_dir(folder)?;
                    self.vfs.sync_dir(parent)
                }
                _ => Err(error),
            },
        }
    }
}

impl OpenFile {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all_at(line, self.len_bytes)?;
        self.file.sync()?;
        self.len_bytes += line.len() as u64;
        Ok(())
    }
}

impl TrailSink for JsonLinesTrail {
    fn record(&self, record: &TrailRecord) -> io::Result<()> {
        let mut line = record.json();
        line.push('\n');
        let day = Day::of_ms(record.time_ms);
        let mut open = self.open.lock();
        // Taken out, and put back only if all went well: a write that failed ends the file.
        let mut file = match open.remove(&record.store) {
            Some(file) if file.day == day => file,
            _ => self.begin(record, day)?,
        };
        file.append(line.as_bytes())?;
        open.insert(record.store, file);
        Ok(())
    }

    fn records_from(&self, store: StoreId, from: u64) -> io::Result<Option<Vec<String>>> {
        // The store is being opened: what comes belongs into a file of its own.
        self.open.lock().remove(&store);
        TrailFolder::over(self.vfs.clone(), self.root.clone()).lines_from(store, from).map(Some)
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

impl fmt::Debug for JsonLinesTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JsonLinesTrail").field(&self.root).finish()
    }
}
