//! How a store is closed in good order.
//!
//! ```text
//! background work ended ─ log synced ─ trail attested ─ CleanClose in the manifest ─ its length in CURRENT ─ memtables, readers, keys gone ─ unlocked
//! ```
//! From then on any missing byte of log or manifest is an error. A store that could not be closed so is recovered when it is next opened.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::error::{Error, Result};
use crate::format::log::LogPoint;
use crate::io::Tick;
use crate::version::state::SegmentEnd;

impl Engine {
    /// Close in good order; the first call does it, later ones find it done.
    pub(super) fn close(&self) -> Result<()> {
        // A forked child has neither the threads nor the right to write.
        if self.tick.load().is_none() || self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.background.stop();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has nothing in the files that the log does not have.
            let _ = task.join();
        }
        self.agenda.join();
        // No permit lasts from now on, so that every call finds out that the store is closed.
        self.tick.store(Tick(u64::MAX));
        let creating = self.creating.lock();
        self.record_last_accesses();
        let outcome = self.end_log();
        let in_use = std::mem::take(&mut *self.background.in_use.lock());
        for table in in_use.values() {
            table.lease.close();
            let _structure = table.structure.lock();
            table.publisher().show(None);
        }
        drop(in_use);
        // Nobody flushes or reads any more. What iterators look at goes too, and whether or not the files may be removed.
        self.background.forget_frozen();
        self.readers.close_all();
        if self.poison.get().is_none() {
            self.readers.remove_obsolete();
        }
        self.forget_keys();
        drop(creating);
        self.advance_anchor();
        *self.lock.lock() = None;
        outcome
    }

    /// Let go of every key that is left, since handles may live on: the log's, the manifest's, and the system key. What a snapshot or an
    /// iterator holds goes with it.
    fn forget_keys(&self) {
        self.log.retire_open_segments(&mut self.writer.lock());
        self.manifest.forget_keys();
        self.system.forget();
        if let Some(trail) = self.keys.trail() {
            trail.forget_key();
        }
    }

    /// Make everything durable and record that the log ends here.
    fn end_log(&self) -> Result<()> {
        let writer = self.writer.lock();
        if let Some(cause) = self.poison.get() {
            return Err(Error::Poisoned { cause: Arc::new(cause.clone()) });
        }
        self.log.finish(&writer).map_err(|error| self.poison(error))?;
        let end = self.log.end();
        let end = match writer.has_segment() {
            true => end,
            // Nothing was committed: the segment that is ready is empty.
            false => {
                if end == LogPoint::default() {
                    // There is none at all any more if the store was quieted: the end must be in some segment.
                    self.prepare_segment()?;
                }
                self.log.spare_end().unwrap_or(end)
            }
        };
        self.attest_trail(true)?;
        let tag = writer.last_tag();
        let last = SegmentEnd { end_bytes: end.end_bytes, tag };
        self.manifest.close(end.segment, last, self.visible.load()).map_err(|error| self.poison(error))
    }
}

#[cfg(test)]
mod tests;
