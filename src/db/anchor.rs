//! What makes a restored old copy of a store visible: its last epoch, kept somewhere else.

use std::fmt::Debug;

use super::Engine;
use crate::error::{Error, Result};
use crate::types::{Epoch, FileNumber, StoreId};

/// How far a store had come, as an [`EpochAnchor`] keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Anchor {
    /// The store.
    pub store: StoreId,
    /// Drawn anew each time a store is opened for writing, so that two copies that were both written to differ.
    pub lineage: [u8; 16],
    /// The last durable change of its metadata.
    pub epoch: Epoch,
    /// The log segment in use.
    pub log_segment: FileNumber,
    /// How far that segment was known to be durable, in bytes.
    pub log_synced_bytes: u64,
}

/// A place outside the store that remembers how far it had come: a file on another disk, a row in a database, a
/// monotonic counter.
///
/// The store calls [`advance`](EpochAnchor::advance) after each change became durable, and refuses to open a directory that is behind what
/// [`load`](EpochAnchor::load) returns. Both are called without any lock held but the one that keeps the calls in order. An anchor in the same directory, or restored together with it, protects nothing.
pub trait EpochAnchor: Send + Sync + Debug {
    /// The last anchor of this store, if there is one.
    ///
    /// # Errors
    /// Whatever keeps it from being read; the store is then not opened.
    fn load(&self, store: StoreId) -> std::io::Result<Option<Anchor>>;

    /// Replace the store's anchor.
    ///
    /// # Errors
    /// Whatever keeps it from being written. The store goes on: an anchor that lags behind detects less, and loses nothing.
    fn advance(&self, anchor: &Anchor) -> std::io::Result<()>;
}

/// Refuse a store that is behind its anchor.
pub(super) fn check(anchor: &dyn EpochAnchor, store: StoreId, epoch: Epoch, lineage: [u8; 16]) -> Result<()> {
    let known = anchor.load(store).map_err(|error| Error::io("load", "the epoch anchor", error))?;
    match known {
        Some(known) if known.epoch > epoch || (known.epoch == epoch && known.lineage != lineage) => {
            Err(Error::RolledBack { found: epoch, attested: known.epoch })
        }
        _ => Ok(()),
    }
}

impl Engine {
    /// Tell the anchor how far the store has come.
    pub(super) fn advance_anchor(&self) {
        let Some(anchor) = &self.anchor else { return };
        // One after the other, so that no anchor is overtaken by an older one.
        let _turn = self.anchoring.lock();
        let synced = self.log.synced();
        let (lineage, epoch) = self.manifest.with_state(|state| (state.store.lineage, state.epoch));
        // An anchor that cannot be written detects less; it must not stop the store.
        let _ = anchor.advance(&Anchor {
            store: self.store,
            lineage,
            epoch,
            log_segment: synced.segment,
            log_synced_bytes: synced.end_bytes,
        });
    }
}
