//! A byte buffer that is wiped when it is freed, because it held plaintext.
//!
//! ```text
//! buffer   ┌───────────┬──────────────────────────┬───────────────┐
//!          │ head      │ window: what Deref shows │ tag           │
//!          └───────────┴──────────────────────────┴───────────────┘
//!          0           start                      end             bytes.len()
//! ```
//! A frame is read whole and opened in place; the plaintext is then a *window* of the buffer, so that nothing is moved to
//! get rid of head and tag. All of the buffer is wiped, whatever the window shows.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use zeroize::optimization_barrier;

#[cfg(test)]
use super::secret::last_words;

/// Bytes that are, were or will be plaintext: wiped when dropped, and when they move because they grew.
#[derive(Default)]
pub(crate) struct Wiped {
    /// What lies between its length and its capacity never held anything: it shrinks only after a wipe.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Wiped {
    /// An empty buffer, without an allocation.
    pub(crate) fn new() -> Wiped {
        Wiped::default()
    }

    /// An empty buffer with room for this many bytes.
    pub(crate) fn with_capacity(capacity_bytes: usize) -> Wiped {
        Wiped { bytes: Vec::with_capacity(capacity_bytes), start: 0, end: 0 }
    }

    /// Narrow the window to `range` of what it shows now; `None` if it does not show that much.
    pub(crate) fn window(mut self, range: Range<usize>) -> Option<Wiped> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        self.end = self.start + range.end;
        self.start += range.start;
        Some(self)
    }

    /// Show at most the first `len` bytes of what is shown now.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start.saturating_add(len));
    }

    /// Make the window empty, with the whole buffer's room before it.
    pub(crate) fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Append to the window; what lay behind it is overwritten.
    pub(crate) fn extend_from_slice(&mut self, more: &[u8]) {
        self.make_room(more.len());
        self.bytes.extend_from_slice(more);
        self.end = self.bytes.len();
    }

    /// Append one byte to the window.
    pub(crate) fn push(&mut self, byte: u8) {
        self.extend_from_slice(&[byte]);
    }

    /// Make the window `len` bytes long, with `fill` in what is new.
    pub(crate) fn resize(&mut self, len: usize, fill: u8) {
        if len <= self.len() {
            return self.truncate(len);
        }
        self.make_room(len - self.len());
        self.bytes.resize(self.start + len, fill);
        self.end = self.bytes.len();
    }

    /// Make room for appending this many bytes, so that they need not be moved while they are appended.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.make_room(more);
    }

    /// Show `len` bytes from the buffer's beginning, whatever they are: for who writes over all of them.
    pub(crate) fn show(&mut self, len: usize) {
        if self.bytes.capacity() < len {
            // In steps, so that a buffer which is used for frames of many lengths grows seldom.
            *self = Wiped::with_capacity(len.next_multiple_of(4096));
        }
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        (self.start, self.end) = (0, len);
    }

    /// Wipe the first `used` bytes of the buffer, which are all that were ever written since it was last wiped, and show nothing.
    pub(crate) fn reset(&mut self, used: usize) {
        let used = used.min(self.bytes.len());
        wipe(&mut self.bytes[..used]);
        (self.start, self.end) = (0, 0);
    }

    /// Write `more` over what the window shows from `at` on, and end it behind that.
    #[inline]
    pub(crate) fn overwrite(&mut self, at: usize, more: &[u8]) {
        match self.get_mut(at..) {
            // The commonest case by far, keys of one length, leaves nothing behind that would have to be wiped.
            Some(old) if old.len() == more.len() => old.copy_from_slice(more),
            _ => {
                self.truncate(at);
                self.extend_from_slice(more);
            }
        }
    }

    /// Room in the buffer, in bytes: what it costs in memory.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// End the buffer at the window's end, with room for `more` bytes behind it. A `Vec` that grows by itself would free
    /// its old bytes as they are.
    fn make_room(&mut self, more: usize) {
        wipe(&mut self.bytes[self.end..]);
        self.bytes.truncate(self.end);
        if self.bytes.capacity() - self.bytes.len() >= more {
            return;
        }
        let shown_bytes = self.len();
        let mut larger = Vec::with_capacity((shown_bytes + more).max(2 * shown_bytes));
        larger.extend_from_slice(self);
        drop(std::mem::replace(self, Wiped { bytes: larger, start: 0, end: shown_bytes }));
    }
}

/// Write zeros that stay written. A fill and a barrier, where `zeroize` writes byte by byte: every block that leaves the
/// cache is wiped, so this has to run at the speed of `memset`.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    optimization_barrier(bytes);
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.bytes);
        #[cfg(test)]
        last_words::record(&self.bytes);
    }
}

impl From<Vec<u8>> for Wiped {
    /// Takes the buffer over; what lay behind its length is not wiped, so fill it only once.
    fn from(bytes: Vec<u8>) -> Wiped {
        Wiped { start: 0, end: bytes.len(), bytes }
    }
}

impl Deref for Wiped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }
}

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wiped({} bytes)", self.len())
    }
}
