//! The system key of an open store: one place that all who seal or open its metadata share.
//!
//! Log, manifest and key files ask here for the key each time they begin a file, so a rotation is one [`replace`](SystemKeys::replace): what
//! is begun afterwards is under the new generation, and what lies there already opens with the generation that its header names.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::lease::KeySet;
use crate::crypto::TableKey;

/// The unwrapped generations of a store's system key. Cheap to clone; clones see what one of them replaces.
#[derive(Clone)]
pub(crate) struct SystemKeys(Arc<ArcSwap<KeySet>>);

impl SystemKeys {
    /// These generations.
    pub(crate) fn new(keys: KeySet) -> SystemKeys {
        SystemKeys(Arc::new(ArcSwap::from_pointee(keys)))
    }

    /// The key that new files are sealed under.
    pub(crate) fn sealing(&self) -> Arc<TableKey> {
        self.0.load().current().clone()
    }

    /// All generations, to open files with.
    pub(crate) fn all(&self) -> Arc<KeySet> {
        self.0.load_full()
    }
}

impl fmt::Debug for SystemKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemKeys")
    }
}
