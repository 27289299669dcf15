//! Room in memory for large writes: had before anything is copied, and held until the memtable has been charged for them.
//!
//! ```text
//! memtables ──────────┬─ reserved ─┬─ this one ─┤ limit
//!                     │ for others │
//! ```
//! A small write is let in while memtables take less than they may, and is over the limit by no more than itself. A value of 512 MiB would be over
//! it by four times the budget, and so would each of several that come at once. So a large write waits until it fits under the limit at which all
//! writers stop. One that alone is larger than that waits until the others' memtables take no more than a quarter of the budget, which is the
//! most that is then in memory besides it.

use std::time::Duration;

use crate::db::Engine;
use crate::db::batch::WriteSet;
use crate::error::Result;

/// Writes with at least as many bytes of keys and values reserve their room.
const LARGE_WRITE_BYTES: usize = 1 << 20;
/// How often those who wait look whether others have filled new memtables, which have to be flushed for them.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Room for one write in memtables. Dropped once they have been charged for it.
pub(in crate::db) struct Admission<'a> {
    engine: &'a Engine,
    bytes: usize,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        *self.engine.background.reserved_bytes.lock() -= self.bytes;
        self.engine.background.progress.raise();
    }
}

impl Engine {
    /// Wait until there is room for these writes, if they are large.
    pub(in crate::db) fn admit_large(&self, writes: &dyn WriteSet) -> Result<Option<Admission<'_>>> {
        let bytes = writes.bytes();
        if bytes < LARGE_WRITE_BYTES {
            return Ok(None);
        }
        let budget = self.options.write_budget_bytes;
        let limit = (budget + budget / 2).max(bytes.saturating_add(budget / 4));
        loop {
            if let Some(admission) = self.try_admit(bytes, limit) {
                return Ok(Some(admission));
            }
            // Background work may be quiet, and nobody else freezes what is below the budget.
            self.background.resume();
            self.freeze_down_to(limit - bytes);
            let until = self.env.clock.tick().after(LOOK_AGAIN);
            let mut failed = None;
            self.wait_for_progress(Some(until), &mut || {
                failed = self.hindrance(writes.tables());
                failed.is_some() || self.has_memory_for(bytes, limit)
            });
            self.check_writable()?;
            match failed {
                Some(error) if !self.has_memory_for(bytes, limit) => return Err(error),
                _ => {}
            }
        }
    }

    fn try_admit(&self, bytes: usize, limit: usize) -> Option<Admission<'_>> {
        let mut reserved = self.background.reserved_bytes.lock();
        if self.memory_bytes().saturating_add(*reserved).saturating_add(bytes) > limit {
            return None;
        }
        *reserved += bytes;
        Some(Admission { engine: self, bytes })
    }

    fn has_memory_for(&self, bytes: usize, limit: usize) -> bool {
        let reserved = *self.background.reserved_bytes.lock();
        self.memory_bytes().saturating_add(reserved).saturating_add(bytes) <= limit
    }
}
