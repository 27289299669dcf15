//! The ticker: time. The keeper: log segments, and files that nobody needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Writing;
use crate::db::Engine;
use crate::error::{Error, Result};
use crate::format::log::LogPoint;
use crate::format::manifest::Edit;
use crate::io::{Step, Task, Tick};
use crate::keys::TICK_PERIOD;
use crate::types::{FileNumber, Seq};
use crate::wal::LogWriter;

/// How often the ticker and the keeper look around; the resolution of permits.
const KEEPER_PERIOD: Duration = TICK_PERIOD;

/// Keeps the store's tick. A task of its own that never waits for a disk or a provider: while the tick stands still, no permit ends.
pub(crate) struct Ticker {
    engine: Arc<Engine>,
}

impl Ticker {
    pub(crate) fn new(engine: Arc<Engine>) -> Ticker {
        Ticker { engine }
    }
}

impl Task for Ticker {
    fn step(&mut self) -> Step {
        let engine = &self.engine;
        // Before anything is looked at: an end that comes afterwards is not slept through.
        let signal = engine.background.quit.clone();
        let seen = signal.count();
        if engine.background.stopping() {
            return Step::Done;
        }
        let now = engine.keys.advance();
        // While the store's own key is refused, no permit lasts.
        let refused = engine.background.custody.is_system_refused();
        engine.tick.store(if refused { Tick(u64::MAX) } else { now });
        let deadline = engine.env.clock.tick().after(KEEPER_PERIOD);
        Step::Wait { signal, seen, clock: engine.env.clock.clone(), deadline: Some(deadline) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Every permit has ended as far as operations can tell, so each asks anew.
            self.engine.tick.store(Tick(u64::MAX));
        }
    }
}

/// Looks after log segments and files that nobody needs.
pub(crate) struct Keeper {
    engine: Arc<Engine>,
}

impl Keeper {
    pub(crate) fn new(engine: Arc<Engine>) -> Keeper {
        Keeper { engine }
    }
}

impl Task for Keeper {
    fn step(&mut self) -> Step {
        let engine = &self.engine;
        // Before anything is looked at: an end that comes afterwards is not slept through.
        let signal = engine.background.chores.clone();
        let seen = signal.count();
        if engine.background.stopping() {
            return Step::Done;
        }
        if engine.poison.get().is_none() {
            engine.relieve_log();
            if let Some(_writing) = Writing::begin(engine) {
                engine.keep_files();
            }
            engine.readers.remove_obsolete();
            if engine.readers.has_sparse() {
                engine.background.work.raise();
            }
        }
        let deadline = engine.env.clock.tick().after(KEEPER_PERIOD);
        Step::Wait { signal, seen, clock: engine.env.clock.clone(), deadline: Some(deadline) }
    }
}

impl Engine {
    /// See to log segments, and to what the manifest says and how long it is. The caller is counted among those who write.
    fn keep_files(&self) {
        if self.log.wants_spare(self.options.log_segment_bytes) {
            // A failure here shows again, and is reported, when a commit needs the segment.
            let _ = self.prepare_segment();
        }
        // A failure has poisoned the store.
        let _ = self.retire_segments();
        if self.manifest.is_long() {
            // One that cannot be written is tried again when the old one has grown some more.
            let rewritten = self.next_file().and_then(|number| self.manifest.rewrite(number));
            if let Err(error) = rewritten
                && self.manifest.has_ended()
            {
                self.poison(error);
            }
        }
        // A failure poisons the store, and is reported by whoever writes next.
        let _ = self.attest_trail(false);
    }

    /// Make sure that the next group has a segment with room. The caller is the writer.
    pub(crate) fn ensure_segment(&self, writer: &mut LogWriter) -> Result<()> {
        if self.log.has_room(writer, self.options.log_segment_bytes) || self.log.take_spare(writer) {
            return Ok(());
        }
        self.prepare_segment()?;
        self.log.take_spare(writer);
        Ok(())
    }

    /// Have the next segment prepared once this one is half full, so that no commit waits for that. The caller is the writer.
    pub(crate) fn prepare_segment_soon(&self, end: LogPoint) {
        let half_full = &self.background.half_full;
        if end.end_bytes > self.options.log_segment_bytes / 2 && half_full.load(Ordering::Relaxed) != end.segment.0 {
            half_full.store(end.segment.0, Ordering::Relaxed);
            self.background.chores.raise();
        }
    }

    /// Leave the current log segment for the spare, if there is one, though it has room.
    pub(in crate::db) fn begin_segment(&self, writer: &mut LogWriter) -> Result<()> {
        if !self.log.take_spare(writer) {
            return Ok(());
        }
        // A segment without a group, behind which others come, would look as if it had lost them.
        let next = self.visible.load().advanced(1);
        let limit = Seq::MAX.get();
        let next = next.ok_or(Error::LimitExceeded { what: "sequence number", limit, actual: limit })?;
        let marked = self.log.append_mark(writer, self.manifest.epoch(), next);
        marked.map(drop).map_err(|error| self.poison(error))
    }

    /// Make the next log segment, durable and named by the manifest, so that taking it into use costs nothing.
    pub(in crate::db) fn prepare_segment(&self) -> Result<()> {
        #[cfg(test)]
        self.background.between.want_and_prepare.came();
        // One at a time, so that numbers reach the manifest in order; whoever waited for the other may find it done.
        let _preparing = self.preparing.lock();
        if self.log.spare_end().is_some() {
            return Ok(());
        }
        self.require_for_segment()?;
        let number = self.next_file()?;
        let spare = self.log.create_segment(number)?;
        // Number and salt are in the manifest before the first acknowledgement from this segment.
        self.manifest
            .append(vec![Edit::AddSegment { number, salt: spare.salt() }])
            .map_err(|error| self.poison(error))?;
        self.log.offer_spare(spare);
        Ok(())
    }

    /// Take out of the log the segments before the oldest that is needed, as `oldest_needed` finds it; they are the caller's to remove.
    pub(in crate::db) fn take_segments(&self, oldest_needed: impl FnOnce() -> Option<FileNumber>) -> Vec<FileNumber> {
        // Where commits go is asked first. A commit writes to a segment before it holds it, so one that is under way may need this segment
        // though nobody holds it. Segments before this one were left only after all their commits held them.
        let current = self.log.end().segment;
        let limit = oldest_needed().map_or(current, |needed| needed.min(current));
        #[cfg(test)]
        self.background.between.need_and_take.came();
        self.log.take_segments_before(limit)
    }

    /// Freeze the memtables that hold the oldest segment while the log is over its limit.
    fn relieve_log(&self) {
        let Some(oldest) = self.segment_to_relieve() else { return };
        let owners = self.background.dirty.lock().beginning_in(oldest);
        let _writer = self.writer.lock();
        owners.iter().for_each(|table| self.freeze(table));
    }

    /// The oldest segment that anybody needs, while the log is over its limit or holds what is under an old key.
    pub(in crate::db) fn segment_to_relieve(&self) -> Option<FileNumber> {
        let is_over = self.log.total_bytes() > self.options.log_bytes_max;
        let oldest = self.background.oldest_segment()?;
        (is_over || oldest <= self.background.log_until()).then_some(oldest)
    }
}
