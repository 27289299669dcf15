//! The store: the face of the engine, and what holds its parts together.
//!
//! ```text
//! Store, Table, Batch, Snapshot, Cursor, Range     what callers hold; each acts for one principal
//!       │ Handle (session)                         keeps the store open; the last one to go closes it
//! Engine ─┬─ commit       batches, group commit, durability
//!         ├─ catalog      tables, and what of each is in memory
//!         ├─ grants       the engine's own right to use master keys
//!         ├─ load         a table's first use: keys, bounds, replay; and how it is put away
//!         ├─ warden       permits: renewed in time, their end noticed
//!         ├─ access       tables whose key is refused, and how they come back
//!         ├─ park         what becomes of their part of the log
//!         ├─ readers      open sorted tables
//!         ├─ rekey        other master keys, new generations, the end of old ones
//!         ├─ scan         point reads, cursors, iterators
//!         ├─ metrics      figures of what was counted, and of how it is
//!         ├─ maintenance  flush, compaction, permits, log segments, backpressure
//!         ├─ log, manifest, keys, readers: the parts below
//!         ├─ trail        what is recorded besides what providers are asked
//!         ├─ builder      how a store is asked for
//!         ├─ open         create, lock, recover
//!         └─ close        the end in good order
//! ```
//!
//! # Locks, in the order in which they may be taken
//! `creating` → `writer` (who commits) → `preparing` → `TableState::structure` (which files there are) → the manifest's own →
//! `TableState::publisher` (who replaces a view) → everything else, each alone. Who commits takes the last but one without those between, and so never
//! waits for a disk that the manifest is written to. None is held while a provider is asked or anything is waited for.

mod access;
mod anchor;
mod batch;
mod builder;
mod catalog;
mod close;
mod commit;
mod describe;
mod grants;
mod load;
mod maintenance;
mod metrics;
mod open;
mod park;
mod readers;
mod rekey;
mod scan;
mod session;
mod snapshot;
mod table;
mod tables;
mod trail;
mod warden;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use self::anchor::{Anchor, EpochAnchor};
pub use self::batch::Batch;
pub use self::builder::{Builder, RecoveryReport};
pub use self::describe::{SseDescription, SseStatus, SseType, TableDescription, TableStatus};
pub use self::rekey::{
    Delay, GenerationReport, KeyChange, KeyReport, RewrapReport, Rotation, RotationProgress, SealedBytes,
};
pub use self::scan::{Cursor, EntryRef, Keys, Range};
pub use self::session::{AccessKeys, AccessRequest, Action, Authorizer};
pub use self::snapshot::Snapshot;
pub use self::table::Table;

use self::catalog::Catalog;
use self::commit::Queue;
use self::grants::Grants;
use self::maintenance::Background;
use self::readers::Readers;
use self::session::Handle;
use self::snapshot::Moments;
use self::warden::Agenda;
use crate::crypto::Suite;
use crate::error::{Error, Result};
use crate::event::EventSink;
use crate::io::directory::Directory;
use crate::io::os::TickCell;
use crate::io::{Environment, Join, Lock, Signal, Tick};
use crate::keys::{KeyBroker, Principal, SystemKeys};
use crate::metrics::{Meters, Metrics};
use crate::options::{StoreOptions, TableOptions};
use crate::sync::VisibleSeq;
use crate::types::{Epoch, FileNumber, StoreId};
use crate::version::manifest::Manifest;
use crate::wal::{Log, LogWriter};

/// An open store: tables under one log, one sequence of commits, one memory budget.
///
/// Cheap to clone, and safe to use from many threads. [`close`](Store::close) ends it in good order; dropping the last handle
/// (store, table, batch, snapshot, cursor or iterator) does the same but cannot report an error.
///
/// # Example
/// ```
/// use strongroom::{LocalKms, Store, TableOptions, Unlock};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let (keyring, data) = (folder.path().join("keyring"), folder.path().join("data"));
/// let kms = LocalKms::create(&keyring, Unlock::key(|key| key.fill(7)))?;      // a passphrase in real life
/// let store = Store::builder(&data).key_provider(kms).create()?;
///
/// let ratings = store.create_table("ratings", TableOptions::new())?;
/// ratings.put(b"ada#2026", b"5")?;
/// assert_eq!(ratings.get(b"ada#2026")?.as_deref(), Some(&b"5"[..]));
/// for entry in ratings.prefix(b"ada#").rev() {
///     let (key, value) = entry?;
///     println!("{key:?} {value:?}");
/// }
/// store.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

/// Everything that is shared by the handles and the background tasks of an open store.
pub(crate) struct Engine {
    dir: Arc<Directory>,
    env: Environment,
    options: StoreOptions,
    events: Arc<dyn EventSink>,
    store: StoreId,
    keys: KeyBroker,
    system: SystemKeys,
    system_suite: Suite,
    /// Now, as far as permits are concerned; reads as none in a forked child.
    tick: TickCell,
    catalog: Catalog,
    manifest: Manifest,
    log: Log,
    writer: Mutex<LogWriter>,
    queue: Queue,
    visible: VisibleSeq,
    moments: Arc<Moments>,
    readers: Arc<Readers>,
    background: Background,
    agenda: Agenda,
    grants: Grants,
    authorizer: Option<Arc<dyn Authorizer>>,
    /// Raised when a loader is done, whatever came of it.
    loaded: Signal,
    /// What is counted of all this.
    meters: Arc<Meters>,
    opened: Tick,
    next_file: AtomicU64,
    next_slot: AtomicU64,
    poison: OnceLock<Error>,
    closed: AtomicBool,
    recovery: OnceLock<RecoveryReport>,
    /// Held while tables are made or dropped, key files are replaced and the store is closed, so that no name is taken twice, no key file has two
    /// successors, and nothing is written behind the close.
    creating: Mutex<()>,
    /// Held while a log segment is prepared.
    preparing: Mutex<()>,
    anchor: Option<Arc<dyn EpochAnchor>>,
    /// Held while the anchor is told.
    anchoring: Mutex<()>,
    tasks: Mutex<Vec<Box<dyn Join>>>,
    lock: Mutex<Option<Box<dyn Lock>>>,
}

impl Store {
    /// Open or create the store at `path`: settings first, then
    /// [`open`](Builder::open), [`create`](Builder::create) or [`open_or_create`](Builder::open_or_create).
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    /// A store in memory, under keys that are made for it: gone when it is dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system gives no randomness or no threads.
    pub fn temporary() -> Result<Store> {
        Builder::temporary()
    }

    fn engine(&self) -> &Engine {
        &self.handle
    }

    /// The same open store for somebody else: whatever is made from the result acts for `principal`, under permits of its own.
    ///
    /// A permit is had by that principal's own unwrap of a table's key, so what one session has read is no way in for another. Named principals
    /// read, write, create tables and sync; all else is the owner's ([`Error::AccessDenied`]). Only the owner makes sessions for others.
    /// Sessions are cheap; one per person or task is what they are for. A new table is recorded as made by its creator ([`TableDescription::creator`]).
    ///
    /// # Errors
    /// [`Error::SessionRefused`] if the provider does not tell principals apart; [`Error::InvalidArgument`] for
    /// [`Principal::Service`], which is nobody's; [`Error::AccessDenied`] in a session that is not the owner's.
    ///
    /// # Example
    /// ```
    /// # fn show(store: &strongroom::Store) -> strongroom::Result<()> {
    /// use strongroom::Principal;
    ///
    /// let ada = store.session(Principal::Named("ada".into()))?;
    /// let ratings = ada.table("ratings")?;
    /// ratings.get("ada#2026")?;           // asks the provider whether ada may, at most once in five minutes
    /// # Ok(())
    /// # }
    /// ```
    pub fn session(&self, principal: Principal) -> Result<Store> {
        Ok(Store { handle: Arc::new(self.handle.session(principal)?) })
    }

    /// For whom this handle, and everything that is made from it, acts.
    pub fn principal(&self) -> &Principal {
        self.handle.principal()
    }

    /// Make a table.
    ///
    /// # Errors
    /// [`Error::TableExists`]; [`Error::InvalidArgument`] or [`Error::LimitExceeded`] for a name or setting that cannot be;
    /// [`Error::KeyUnavailable`] if the provider does not give a key; [`Error::AccessDenied`] if the [`Authorizer`] does not allow it. In these
    /// cases the directory is as it was.
    pub fn create_table(&self, name: &str, options: TableOptions) -> Result<Table> {
        let mut made = self.create_tables(&[(name, options)])?;
        made.pop().ok_or(Error::Closed)
    }

    /// Make many tables at once: all of them or none, with one write to the manifest.
    ///
    /// # Errors
    /// As for [`create_table`](Store::create_table).
    pub fn create_tables(&self, tables: &[(&str, TableOptions)]) -> Result<Vec<Table>> {
        self.engine().check_open()?;
        let mut begun = Vec::new();
        let allowed = tables.iter().try_for_each(|(name, _)| self.handle.authorise_create(name));
        let made = allowed.and_then(|()| self.engine().create_tables(tables, self.handle.principal(), &mut begun));
        self.handle.record_creations(tables, &begun, &made);
        Ok(made?.into_iter().map(|state| Table::new(self.handle.clone(), state)).collect())
    }

    /// The table of this name.
    ///
    /// # Errors
    /// [`Error::TableNotFound`].
    pub fn table(&self, name: &str) -> Result<Table> {
        self.engine().check_open()?;
        Ok(Table::new(self.handle.clone(), self.engine().catalog.named(name)?))
    }

    /// The names of all tables, in byte order.
    pub fn table_names(&self) -> Vec<String> {
        self.engine().catalog.names()
    }

    /// Status, key, sizes and counts of a table.
    ///
    /// # Errors
    /// [`Error::TableNotFound`], or as for [`Table::describe`].
    pub fn describe_table(&self, name: &str) -> Result<TableDescription> {
        self.table(name)?.describe()
    }

    /// The tables of which anything is wrapped under this managed or customer key, by name: those that cannot be used without it. While a
    /// table is being moved to another key, it uses both. Owned keys show no tables.
    ///
    /// Reads the key file of every table that is not under an owned key.
    ///
    /// # Errors
    /// [`Error::Tampered`], [`Error::BitRot`] or [`Error::MissingFile`] for a key file.
    pub fn tables_using_key(&self, arn: &str) -> Result<Vec<TableDescription>> {
        self.engine().tables_using_key(arn)
    }

    /// Drop a table: its wrapped keys are erased durably, then its files.
    ///
    /// Handles, snapshots and cursors that look at it fail from now on. What was written under its key is unreadable afterwards to anyone without
    /// *both* the master key and an earlier copy of the key file; see `docs/THREATS.md` for where such copies may be.
    ///
    /// # Errors
    /// [`Error::TableNotFound`]; [`Error::Io`] if the manifest or key file cannot be written. A drop that was begun is ended when
    /// the store is next opened.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        self.engine().check_open()?;
        let table = self.engine().catalog.named(name).ok().map(|table| table.id);
        let dropped = self.handle.check_owner("drop a table").and_then(|()| self.engine().drop_table(name));
        self.handle.record_drop(name, table, &dropped);
        dropped
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new(self.handle.clone())
    }

    /// The whole store as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.handle.clone())
    }

    /// Make every commit so far durable.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system cannot, and [`Error::Poisoned`] from then on.
    pub fn sync(&self) -> Result<()> {
        self.engine().sync()
    }

    /// Write what is in memory to sorted tables, and return once it is there.
    ///
    /// # Errors
    /// As for [`Table::flush`].
    pub fn flush(&self) -> Result<()> {
        self.handle.check_owner("flush")?;
        self.engine().flush_all()
    }

    /// Compact until nothing is left to do.
    ///
    /// # Errors
    /// As for [`Table::compact`].
    pub fn compact(&self) -> Result<()> {
        self.handle.check_owner("compact")?;
        self.engine().compact_all()
    }

    /// Close every file that is open for writing, durably, so that nothing that seals is left in memory: to be called before the machine
    /// is snapshotted **with its memory**. Otherwise two machines that go on from one snapshot would seal different data under the same key and nonce. The next write begins new files,
    /// so writers are to rest from before this is called until the snapshot is taken: a commit, flush or compaction that is called meanwhile counts as that next write.
    ///
    /// # Errors
    /// As for [`sync`](Store::sync).
    pub fn quiesce(&self) -> Result<()> {
        self.handle.check_owner("quiesce the store")?;
        self.engine().quiesce()
    }

    /// The store's durable identity.
    pub fn id(&self) -> StoreId {
        self.engine().store
    }

    /// Number of the last durable change of the store's metadata. Kept elsewhere and given to [`Builder::min_epoch`], it
    /// makes an older copy of the directory visible.
    pub fn epoch(&self) -> Epoch {
        self.engine().manifest.epoch()
    }

    /// What the store has counted since it was opened, and how it is now: where reads were answered, what was written for each byte that callers wrote,
    /// what was sealed and opened, how long writers waited, what providers were asked. Whoever holds a handle may know it: no figure says anything about one table.
    ///
    /// Costs some microseconds, and no walk over tables. Of a store that is closed, the figures are those of its end.
    pub fn metrics(&self) -> Metrics {
        self.engine().metrics()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.engine().dir.root()
    }

    /// What was found when the store was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        self.engine().recovery()
    }

    /// Make everything durable, end background work, record that the log ends here, and unlock. Every handle fails with
    /// [`Error::Closed`] from then on. Closing twice is fine.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Poisoned`]: the store is closed all the same, and the next open recovers.
    pub fn close(&self) -> Result<()> {
        self.handle.check_owner("close the store")?;
        self.engine().close()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("id", &self.handle.store)
            .field("path", &self.handle.dir.root())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Fails once the store is closed, while its own key is refused, or in a forked child.
    fn check_open(&self) -> Result<()> {
        if self.tick.load().is_none() {
            return Err(Error::Forked);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if let Some(refusal) = self.background.custody.system_refusal() {
            return Err(refusal);
        }
        Ok(())
    }

    /// Fails once nothing may be written any more.
    fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        match self.poison.get() {
            Some(cause) => Err(Error::Poisoned { cause: Arc::new(cause.clone()) }),
            None => Ok(()),
        }
    }

    /// Remember that a write failed after its bytes may have reached a file: what is on disk now, only recovery can tell.
    fn poison(&self, error: Error) -> Error {
        let _ = self.poison.set(error.clone());
        // Whoever waits for room or for background work must hear of it.
        self.background.wake();
        error
    }

    /// The next file number.
    fn next_file(&self) -> Result<FileNumber> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        // Half the range is left as a margin, so that the counter itself never wraps.
        if number > u64::MAX / 2 {
            return Err(Error::LimitExceeded { what: "file number", limit: u64::MAX / 2, actual: number });
        }
        Ok(FileNumber(number))
    }
}
