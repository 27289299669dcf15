//! Room on the disk: nothing is begun that might not fit, so that a full disk stops work before it does any harm.
//!
//! ```text
//! free bytes of the file system
//! ├─ what flushing everything in memory takes at most, and a little        kept for flushes, log segments, the manifest
//! ├─ what compactions and copies of containers under way may still write   reserved
//! └─ the rest                                                              for commits, and for compactions and copies that begin
//! ```
//! A compaction that would not fit is not begun, a container for which there is no room is not carried (carry.rs), and a commit that would not
//! fit is refused before a byte of it is written, which poisons nothing. Flushes may use everything: they are what lets log segments go. What was
//! refused is tried again, jobs after their pause and commits whenever somebody makes one, so the store goes on by itself once there is room.
//!
//! A commit does not ask the file system. It takes from an allowance, which is made anew when it is used up; so what *others* write to the
//! same disk is noticed late, and a write that hits the end of the disk all the same is what any failed write is.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};

use crate::compaction::plan::Plan;
use crate::db::Engine;
use crate::db::batch::WriteSet;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::metrics::Count;

/// What a file takes besides its data, at most: header, footer, properties, and its edit in the manifest.
const FILE_OVERHEAD_BYTES: u64 = 4 << 10;
/// What a commit takes in the log besides its entries: envelope, sections' frames, and a length per entry.
const COMMIT_OVERHEAD_BYTES: u64 = 512;
const ENTRY_OVERHEAD_BYTES: u64 = 32;
/// Kept for what is written besides: headers of log segments and what is reserved ahead in them, manifests, key files.
const SLACK_BYTES: u64 = 4 << 20;
/// The file system is asked again when commits have used up so much.
const ALLOWANCE_BYTES: u64 = 64 << 20;

/// What is refused at present.
#[derive(Clone, Copy)]
pub(super) enum Wants {
    Commit = 1,
    Flush = 2,
    Compaction = 4,
}

/// How much room is spoken for.
#[derive(Debug, Default)]
pub(in crate::db) struct Space {
    /// What compactions under way may still write.
    reserved: Arc<AtomicU64>,
    /// What commits may use before the file system is asked again.
    allowance: AtomicI64,
    /// Which of [`Wants`] were refused when they last asked.
    short: AtomicU8,
}

impl Space {
    /// What compactions under way may still write.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }
}

/// Room that is kept for a job, less what it has written.
#[derive(Debug)]
pub(super) struct Reservation {
    reserved: Arc<AtomicU64>,
    left: AtomicU64,
}

impl Reservation {
    /// So much of it has been written.
    pub(super) fn spend(&self, bytes: u64) {
        let less = |left: u64| Some(left.saturating_sub(bytes));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or_else(|left| left);
        self.reserved.fetch_sub(before.min(bytes), Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.left.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// What writing a memtable of so many bytes to a sorted table takes at most.
pub(super) fn flush_bytes(memtable_bytes: usize) -> u64 {
    let bytes = memtable_bytes as u64;
    // Frames, filter and index are far less than an eighth, and entries take more room in a memtable than in a block.
    bytes.saturating_add(bytes / 8).saturating_add(FILE_OVERHEAD_BYTES)
}

/// What carrying out a plan takes at most: its input as it is, should nothing of it go. What compresses worse among other neighbours, and
/// one more file per input, is within the rest.
pub(super) fn plan_bytes(plan: &Plan) -> u64 {
    if plan.is_move {
        return 0;
    }
    let (bytes, files) = (plan.input_bytes(), plan.inputs().count() as u64);
    bytes.saturating_add(bytes / 8).saturating_add(files * FILE_OVERHEAD_BYTES)
}

impl Engine {
    /// Keep room for what a plan writes.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if there is not enough.
    pub(super) fn reserve(&self, plan: &Plan) -> Result<Reservation> {
        self.reserve_bytes(plan_bytes(plan))
    }

    /// Keep room for a job that writes at most so many bytes, and that is not needed to let log segments go.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if there is not enough.
    pub(super) fn reserve_bytes(&self, needed: u64) -> Result<Reservation> {
        let space = &self.background.space;
        if needed > 0 {
            let kept = self.kept_bytes().saturating_add(space.reserved_bytes());
            self.require(Wants::Compaction, needed, kept)?;
            space.allowance.fetch_sub(i64::try_from(needed).unwrap_or(i64::MAX / 2), Ordering::Relaxed);
        }
        space.reserved.fetch_add(needed, Ordering::Relaxed);
        Ok(Reservation { reserved: space.reserved.clone(), left: AtomicU64::new(needed) })
    }

    /// Check that there is room for flushing a memtable of so many bytes.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if there is not.
    pub(super) fn require_for_flush(&self, memtable_bytes: usize) -> Result<()> {
        self.require(Wants::Flush, flush_bytes(memtable_bytes), 0).map(drop)
    }

    /// Check that there is room for beginning a log segment, and for saying so in the manifest.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if there is not.
    pub(super) fn require_for_segment(&self) -> Result<()> {
        // Nobody is told: the caller holds locks, and commits that come will say it.
        self.fits(self.slack_bytes(), 0).map(drop)
    }

    /// Let a commit use what it takes in the log now and in a sorted table later.
    ///
    /// # Errors
    /// [`Error::DiskFull`] if there is no room for it. Nothing was written.
    pub(super) fn take_room(&self, writes: &dyn WriteSet) -> Result<()> {
        let entries_bytes = writes.bytes() as u64 + writes.len() as u64 * ENTRY_OVERHEAD_BYTES;
        let needed = entries_bytes.saturating_mul(2).saturating_add(COMMIT_OVERHEAD_BYTES);
        let space = &self.background.space;
        let cost = i64::try_from(needed).unwrap_or(i64::MAX / 2);
        if space.allowance.fetch_sub(cost, Ordering::Relaxed) >= cost {
            return Ok(());
        }
        let kept = self.kept_bytes().saturating_add(space.reserved_bytes());
        let left = self.require(Wants::Commit, needed, kept).inspect_err(|_| {
            self.meters.count(Count::RefusedCommits, 1);
        })?;
        // Commits that are under way between the two have been let in for less than this.
        space.allowance.store(left.min(ALLOWANCE_BYTES) as i64, Ordering::Relaxed);
        Ok(())
    }

    /// Room that only flushes and the log may use.
    fn kept_bytes(&self) -> u64 {
        let memory = self.background.memory_bytes.load(Ordering::Relaxed);
        flush_bytes(memory).saturating_add(self.slack_bytes())
    }

    fn slack_bytes(&self) -> u64 {
        self.options.log_segment_bytes.min(SLACK_BYTES)
    }

    /// As [`fits`](Engine::fits), and whoever listens is told when the disk becomes full and when all that was refused fits again.
    fn require(&self, wants: Wants, needed: u64, kept: u64) -> Result<u64> {
        let (bit, short) = (wants as u8, &self.background.space.short);
        let fits = self.fits(needed, kept);
        match &fits {
            Ok((free_bytes, _)) => {
                if short.load(Ordering::Relaxed) & bit != 0 && short.fetch_and(!bit, Ordering::Relaxed) == bit {
                    self.events.event(&Event::DiskHasRoom { free_bytes: *free_bytes });
                }
            }
            Err(Error::DiskFull { free_bytes, needed_bytes }) => {
                if short.fetch_or(bit, Ordering::Relaxed) == 0 {
                    let (free_bytes, needed_bytes) = (*free_bytes, *needed_bytes);
                    self.events.event(&Event::DiskFull { free_bytes, needed_bytes });
                }
            }
            Err(_) => {}
        }
        fits.map(|(_, left)| left)
    }

    /// Whether `needed` bytes fit beside those that are kept: what is free, and what is left of it then.
    fn fits(&self, needed: u64, kept: u64) -> Result<(u64, u64)> {
        // Where nobody knows, there is room until a write fails.
        let Some(free) = self.dir.free_bytes() else { return Ok((u64::MAX, u64::MAX)) };
        let needed_bytes = needed.saturating_add(kept);
        let left = free.checked_sub(needed_bytes);
        left.map(|left| (free, left)).ok_or(Error::DiskFull { free_bytes: free, needed_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_shrinks_by_what_is_written_and_gives_back_the_rest() {
        // What is kept for ever would make a store refuse commits on an empty disk.
        let reserved = Arc::new(AtomicU64::new(0));
        let make = |bytes| {
            reserved.fetch_add(bytes, Ordering::Relaxed);
            Reservation { reserved: reserved.clone(), left: AtomicU64::new(bytes) }
        };
        let kept = || reserved.load(Ordering::Relaxed);
        let (one, other) = (make(100), make(50));
        one.spend(30);
        assert_eq!(kept(), 120);
        one.spend(1000);
        assert_eq!(kept(), 50, "what a job writes beyond its estimate is nobody else's");
        drop(one);
        assert_eq!(kept(), 50);
        drop(other);
        assert_eq!(kept(), 0);
    }
}
