//! The system key of an open store: one place that all who seal or open its metadata share.
//!
//! Log, manifest and key files ask here for the key each time they begin a file, so a rotation is one [`replace`](SystemKeys::replace): what
//! is begun afterwards is under the new generation, and what lies there already opens with the generation that its header names.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::lease::KeySet;
use crate::crypto::TableKey;
use crate::error::{Error, Result};

/// The unwrapped generations of a store's system key. Cheap to clone; clones see what one of them replaces or forgets.
#[derive(Clone)]
pub(crate) struct SystemKeys(Arc<ArcSwapOption<KeySet>>);

impl SystemKeys {
    /// These generations.
    pub(crate) fn new(keys: KeySet) -> SystemKeys {
        SystemKeys(Arc::new(ArcSwapOption::from_pointee(keys)))
    }

    /// The key that new files are sealed under.
    ///
    /// # Errors
    /// [`Error::Closed`] once the store is.
    pub(crate) fn sealing(&self) -> Result<Arc<TableKey>> {
        self.all().map(|keys| keys.current().clone())
    }

    /// From now on these are the generations, and files that are begun are sealed under the newest.
    pub(crate) fn replace(&self, keys: KeySet) {
        self.0.store(Some(Arc::new(keys)));
    }

    /// All generations, to open files with.
    ///
    /// # Errors
    /// [`Error::Closed`] once the store is.
    pub(crate) fn all(&self) -> Result<Arc<KeySet>> {
        self.0.load_full().ok_or(Error::Closed)
    }

    /// Let go of all generations: the store is closed, and handles of it may live on.
    pub(crate) fn forget(&self) {
        self.0.store(None);
    }
}

impl fmt::Debug for SystemKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemKeys")
    }
}
