//! How a store is asked for: settings first, then open or create.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Store;
use super::anchor::EpochAnchor;
use super::open::Opening;
use super::session::Authorizer;
use crate::crypto::Suite;
use crate::error::{Error, Result};
use crate::event::EventSink;
use crate::io::Environment;
use crate::keys::trail::{TrailSetting, TrailSink};
use crate::keys::{KeyProvider, LocalKms};
use crate::options::{StoreOptions, TrailOptions};
use crate::types::Epoch;

/// Settings for opening or creating a store. Made by [`Store::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) path: PathBuf,
    pub(super) provider: Option<Arc<dyn KeyProvider>>,
    pub(super) owned_provider: Option<Arc<dyn KeyProvider>>,
    pub(super) options: StoreOptions,
    pub(super) env: Environment,
    pub(super) min_epoch: Epoch,
    pub(super) anchor: Option<Arc<dyn EpochAnchor>>,
    pub(super) events: Option<Arc<dyn EventSink>>,
    pub(super) authorizer: Option<Arc<dyn Authorizer>>,
    pub(super) trail: Option<TrailSetting>,
    #[cfg(strongroom_plaintext_baseline)]
    plaintext: bool,
}

/// What was found when a store was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Whether the store had been closed in good order (or was just created).
    pub clean: bool,
    /// Bytes at the end of the log that nothing attests as durable, and that were discarded because something before them
    /// was missing. Commits in them were never acknowledged as [`Durability::Sync`](crate::Durability::Sync).
    pub discarded_log_bytes: u64,
    /// Bytes at the end of the manifest of which the same is true.
    pub discarded_manifest_bytes: u64,
    /// Files that nobody named any more and that were removed, relative to the store.
    pub removed_files: Vec<String>,
    /// Key files that nobody named, and that were renamed and kept, relative to the store.
    pub set_aside_files: Vec<String>,
}

impl Builder {
    pub(super) fn new(path: &Path) -> Builder {
        Builder {
            path: path.to_owned(),
            provider: None,
            owned_provider: None,
            options: StoreOptions::default(),
            env: Environment::os(),
            min_epoch: Epoch(0),
            anchor: None,
            events: None,
            authorizer: None,
            trail: None,
            #[cfg(strongroom_plaintext_baseline)]
            plaintext: false,
        }
    }

    /// The provider that holds the master keys. Required.
    pub fn key_provider(self, provider: impl KeyProvider + 'static) -> Builder {
        self.shared_key_provider(Arc::new(provider))
    }

    /// As [`key_provider`](Builder::key_provider), for a provider that others use as well.
    pub fn shared_key_provider(mut self, provider: Arc<dyn KeyProvider>) -> Builder {
        self.provider = Some(provider);
        self
    }

    /// A provider of its own for the store's owned key. Default: the other one.
    pub fn owned_key_provider(mut self, provider: Arc<dyn KeyProvider>) -> Builder {
        self.owned_provider = Some(provider);
        self
    }

    /// Sizes, limits and times. Default: [`StoreOptions::default`].
    pub fn options(mut self, options: StoreOptions) -> Builder {
        self.options = options;
        self
    }

    /// Files, clocks, randomness and threads. Default: the operating system's.
    pub fn environment(mut self, environment: Environment) -> Builder {
        self.env = environment;
        self
    }

    /// Refuse a store whose epoch is lower: it is an older copy. See [`Store::epoch`].
    pub fn min_epoch(mut self, epoch: Epoch) -> Builder {
        self.min_epoch = epoch;
        self
    }

    /// Where to look up, and keep, how far the store had come.
    pub fn anchor(mut self, anchor: Arc<dyn EpochAnchor>) -> Builder {
        self.anchor = Some(anchor);
        self
    }

    /// Who hears what happens in the store.
    pub fn events(mut self, events: Arc<dyn EventSink>) -> Builder {
        self.events = Some(events);
        self
    }

    /// Who decides what named principals may do with which keys, before the key provider is asked. Default: nobody, so that the provider
    /// alone decides, about whole tables.
    pub fn authorizer(mut self, authorizer: Arc<dyn Authorizer>) -> Builder {
        self.authorizer = Some(authorizer);
        self
    }

    /// Record every use of a master key, and every call that creates, changes or drops a table: see [`trail`](crate::keys::trail). Default: nothing
    /// is recorded. Give it at every open, since what happens without it stands nowhere.
    pub fn trail(mut self, sink: Arc<dyn TrailSink>, options: TrailOptions) -> Builder {
        self.trail = Some(TrailSetting { sink, options });
        self
    }

    /// A store that seals nothing, tables and metadata alike, to measure what sealing costs. Whether a store is one is decided when it is
    /// created and must be said again at each open; builds without `--cfg strongroom_plaintext_baseline` refuse it and cannot make one.
    #[cfg(strongroom_plaintext_baseline)]
    pub fn plaintext_baseline(mut self) -> Builder {
        self.plaintext = true;
        self
    }

    /// That a store is sealed, or is not, as the opener said.
    #[cfg(strongroom_plaintext_baseline)]
    pub(super) fn check_suite(&self, suite: Suite) -> Result<()> {
        if self.plaintext == (suite == Suite::None) {
            return Ok(());
        }
        let detail = "it is sealed, or is not, against what the opener said".into();
        Err(crate::error::Error::InvalidArgument { what: "store", detail })
    }

    /// How the metadata of a new store is sealed.
    pub(super) fn system_suite(&self) -> Suite {
        #[cfg(strongroom_plaintext_baseline)]
        if self.plaintext {
            return Suite::None;
        }
        Suite::choose(None)
    }

    /// Create a store in a directory that does not exist or is empty.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::InvalidArgument`] without a provider, with one whose keyring lies inside the directory, with a trail inside of it, or for a setting that
    /// cannot be; [`Error::KeyUnavailable`] or [`Error::MasterKeyUnavailable`] if the provider gives no key. In these cases nothing was written.
    pub fn create(self) -> Result<Store> {
        Opening::new(self)?.create()
    }

    /// Open a store.
    ///
    /// # Errors
    /// [`Error::NotAStore`]; [`Error::Locked`]; [`Error::WrongKey`] or [`Error::KeyUnavailable`] for the system key;
    /// [`Error::RolledBack`]; [`Error::MissingFile`]; [`Error::LogDamaged`], [`Error::Tampered`] or [`Error::BitRot`];
    /// [`Error::UnknownVersion`]. In these cases nothing was changed.
    pub fn open(self) -> Result<Store> {
        Opening::new(self)?.open()
    }

    /// Open the store, or create it if there is none.
    ///
    /// # Errors
    /// As for [`open`](Builder::open) and [`create`](Builder::create).
    pub fn open_or_create(self) -> Result<Store> {
        match self.clone().open() {
            Err(Error::NotAStore { .. }) => self.create(),
            outcome => outcome,
        }
    }

    pub(super) fn temporary() -> Result<Store> {
        let mut env = Environment::os();
        env.vfs = Arc::new(crate::io::mem::MemVfs::unjournaled());
        let kms = LocalKms::in_memory(env.clone())?;
        Builder::new(Path::new("/temporary")).environment(env).key_provider(kms).create()
    }
}
