//! The seal-once types: a counter that belongs to one instance of one file, and the places that it gives out.
//!
//! A place is *authenticated, not stored*: (file salt, kind, ordinal), never a byte offset. So sealing and compressing run
//! in parallel, and sections of a log can be carried elsewhere verbatim. Nothing rewinds the counter, and nothing makes
//! one for a salt that was read from disk.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Salt;
use crate::error::{Error, Result};
use crate::io::Entropy;
use crate::types::{FileKind, FileNumber};

/// Most seals under one stream key: NIST SP 800-38D allows 2^32 uses of a key, and 2^32 frames of a MiB are far below
/// what GCM can seal before two counter blocks may meet. One limit for all keys that share a salt is on the safe side.
pub(super) const STREAM_SEALS_MAX: u64 = 1 << 32;

/// One instance of a file that is being written: its fresh salt, and the ordinals that were not taken yet.
///
/// All keys that seal into the file share it, from any number of threads.
#[derive(Debug)]
pub(crate) struct Ordinals {
    kind: FileKind,
    number: FileNumber,
    salt: Salt,
    next: AtomicU64,
    limit: u64,
}

impl Ordinals {
    /// Count for a new instance of a file, with a salt drawn for it.
    pub(crate) fn fresh(kind: FileKind, number: FileNumber, entropy: &dyn Entropy) -> io::Result<Ordinals> {
        let salt = Salt::fresh(entropy)?;
        Ok(Ordinals { kind, number, salt, next: AtomicU64::new(0), limit: limit_of(kind) })
    }

    /// The file's kind.
    pub(crate) fn kind(&self) -> FileKind {
        self.kind
    }

    /// The file's number.
    pub(crate) fn number(&self) -> FileNumber {
        self.number
    }

    /// The salt that was drawn for this instance.
    pub(crate) fn salt(&self) -> &Salt {
        &self.salt
    }

    /// How many ordinals have been taken, which is also the next one.
    pub(crate) fn taken(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// The next place.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] once the kind's ordinals have run out; the file must be ended then.
    pub(crate) fn take(&self) -> Result<Place> {
        let ordinal = self.advance(1)?;
        Ok(Place { instance: self.instance(), ordinal })
    }

    /// The next `count` places, one behind the other.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] as for [`take`](Ordinals::take); then none is taken.
    pub(crate) fn take_run(&self, count: u64) -> Result<Places> {
        let first = self.advance(count)?;
        Ok(Places { instance: self.instance(), next: first, end: first + count })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn instance(&self) -> Instance {
        Instance::of(&self.salt)
    }

    /// Relaxed, because the number alone matters: no other memory is published with it.
    fn advance(&self, count: u64) -> Result<u64> {
        let step = |next: u64| next.checked_add(count).filter(|end| *end <= self.limit);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).map_err(|next| Error::LimitExceeded {
            what: "sealed frames of one file",
            limit: self.limit,
            actual: next.saturating_add(count),
        })
    }

    #[cfg(test)]
    pub(super) fn skip_to(&self, ordinal: u64) {
        self.next.fetch_max(ordinal, Ordering::Relaxed);
    }
}

/// Where every frame has a key of its own, the counter's width is the only limit.
const fn limit_of(kind: FileKind) -> u64 {
    match kind {
        FileKind::Log | FileKind::Parked => STREAM_SEALS_MAX,
        _ => u64::MAX,
    }
}

/// Which file instance a place belongs to: the first 8 bytes of its salt. A mark against mix-ups in the program, not
/// against attackers, so 64 bits do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Instance(u64);

impl Instance {
    pub(super) fn of(salt: &Salt) -> Instance {
        let [a, b, c, d, e, f, g, h, ..] = *salt.as_bytes();
        Instance(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// The right to seal one frame, at one ordinal of one file instance. A seal consumes it, whether it succeeds or not.
#[derive(Debug)]
#[must_use = "a place that seals nothing leaves a hole in the file's ordinals"]
pub(crate) struct Place {
    instance: Instance,
    ordinal: u64,
}

impl Place {
    /// The ordinal, which readers must know to open the frame.
    pub(crate) fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// Give the place up for sealing.
    ///
    /// # Panics
    /// If it belongs to another file instance, which is a mistake in the program: sealing there could use a (key, nonce)
    /// pair twice.
    pub(super) fn spend(self, instance: Instance) -> u64 {
        assert!(self.instance == instance, "a place was taken to another file than the one that gave it out");
        self.ordinal
    }
}

/// Places with consecutive ordinals.
#[derive(Debug)]
pub(crate) struct Places {
    instance: Instance,
    next: u64,
    end: u64,
}

impl Places {
    /// The ordinal of the next place.
    pub(crate) fn next_ordinal(&self) -> u64 {
        self.next
    }

    /// Whether all were taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.end
    }
}

impl Iterator for Places {
    type Item = Place;

    fn next(&mut self) -> Option<Place> {
        if self.next == self.end {
            return None;
        }
        let ordinal = self.next;
        self.next += 1;
        Some(Place { instance: self.instance, ordinal })
    }
}
