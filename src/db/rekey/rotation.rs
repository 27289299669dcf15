//! The handle of a rotation that goes on in the background.

use std::fmt;
use std::time::Duration;

use crate::db::Table;
use crate::error::Result;
use crate::types::Generation;

/// A table's key on its way to a new generation: how far everything is that was sealed under older ones.
///
/// There is nothing to be stopped: dropping the handle leaves the work to go on, closing the store interrupts it, and opening the store lets it
/// go on.
#[derive(Clone)]
pub struct Rotation {
    table: Table,
}

/// How far a rotation has come.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub struct RotationProgress {
    /// The generation that everything new is under.
    pub generation: Generation,
    /// Whether it is over: nothing is under older generations, and their wraps are erased.
    pub done: bool,
    /// Share of the bytes that are under the new generation, from 0 to 100.
    pub percent: f64,
    /// Bytes under the new generation, those written since by others included.
    pub bytes_done: u64,
    /// Bytes under older generations.
    pub bytes_left: u64,
    /// Bytes that the rotation has lately been reading per second; 0 if it has not begun in this opening.
    pub bytes_per_sec: u64,
    /// How long the rest will take at this rate.
    pub remaining: Option<Duration>,
}

impl Rotation {
    pub(super) fn new(table: Table) -> Rotation {
        Rotation { table }
    }

    /// How far it is.
    ///
    /// # Errors
    /// [`Error::TableDropped`](crate::Error::TableDropped), [`Error::Closed`](crate::Error::Closed), or what keeps the table's key file from being read.
    pub fn progress(&self) -> Result<RotationProgress> {
        let engine = self.table.engine();
        let report = engine.key_report(self.table.state())?;
        let done = report.generations.len() == 1;
        let newest = report.generations.last();
        let generation = newest.map(|newest| newest.generation).unwrap_or_default();
        let bytes_done = newest.map_or(0, |newest| newest.bytes.total());
        let bytes_left = report.generations.iter().map(|one| one.bytes.total()).sum::<u64>() - bytes_done;
        let percent = match bytes_done + bytes_left {
            _ if done => 100.0,
            0 => 0.0,
            all => bytes_done as f64 * 100.0 / all as f64,
        };
        let bytes_per_sec = if done { 0 } else { engine.background.rotation_rate() };
        let remaining = (bytes_per_sec > 0).then(|| Duration::from_secs_f64(bytes_left as f64 / bytes_per_sec as f64));
        Ok(RotationProgress { generation, done, percent, bytes_done, bytes_left, bytes_per_sec, remaining })
    }

    /// Wait until it is over, however long that takes: an iterator that is left open holds files under the old key for as long as it lives.
    ///
    /// # Errors
    /// Why its work last failed: it is tried again, so waiting again makes sense. [`Error::TableDropped`](crate::Error::TableDropped) and
    /// [`Error::Closed`](crate::Error::Closed).
    pub fn wait(&self) -> Result<()> {
        self.table.engine().wait_for_rotation(self.table.state(), None).map(drop)
    }

    /// As [`wait`](Rotation::wait), for at most this long. Whether it is over.
    ///
    /// # Errors
    /// As for [`wait`](Rotation::wait).
    pub fn wait_for(&self, limit: Duration) -> Result<bool> {
        self.table.engine().wait_for_rotation(self.table.state(), Some(limit))
    }
}

impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rotation").field(&self.table.id()).finish()
    }
}
