//! Keys that seal many frames: one per table generation and log segment, with the ordinal as nonce.
//!
//! All tables of a segment share its [`Ordinals`](super::Ordinals), so a nonce is used by one of them and by no other, which
//! is more than is needed: their keys differ.

use std::fmt;
use std::sync::Arc;

use super::hierarchy::{check_sealable, open_in_place};
use super::place::Instance;
use super::suite::{Cipher, nonce_of};
use super::{Authentic, NotAuthentic, Place, Secret, Suite, Tag, Wiped};
use crate::error::Result;
use crate::types::FRAME_BYTES_MAX;

/// Opens the frames of one table in one log segment. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StreamKey {
    inner: Arc<StreamKeyInner>,
}

struct StreamKeyInner {
    suite: Suite,
    cipher: Cipher,
}

impl StreamKey {
    /// For callers that wipe the stack afterwards.
    #[inline(never)]
    pub(super) fn new(suite: Suite, key: &Secret) -> StreamKey {
        StreamKey { inner: Arc::new(StreamKeyInner { suite, cipher: Cipher::new(suite, key.expose()) }) }
    }

    /// The suite that the frames are sealed with.
    pub(crate) fn suite(&self) -> Suite {
        self.inner.suite
    }

    /// Open the frame at `ordinal` where it lies. `sealed` shows body ‖ tag, the result shows the body.
    ///
    /// # Errors
    /// [`NotAuthentic`] if these are not the bytes that were sealed there with `aad`; the buffer is gone then.
    pub(crate) fn open(&self, ordinal: u64, aad: &[u8], sealed: Wiped) -> Result<Authentic<Wiped>, NotAuthentic> {
        open_in_place(&self.inner.cipher, &nonce_of(ordinal), aad, sealed)
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamKey").field("suite", &self.inner.suite).finish_non_exhaustive()
    }
}

/// Seals frames of one table into one log segment that is being written. Cheap to clone: a clone seals under the same
/// places.
#[derive(Clone, Debug)]
pub(crate) struct StreamSealer {
    key: StreamKey,
    instance: Instance,
}

impl StreamSealer {
    pub(super) fn new(key: StreamKey, instance: Instance) -> StreamSealer {
        StreamSealer { key, instance }
    }

    /// The suite that the frames are sealed with.
    pub(crate) fn suite(&self) -> Suite {
        self.key.suite()
    }

    /// Seal `body` where it lies.
    ///
    /// # Errors
    /// [`LimitExceeded`](crate::Error::LimitExceeded) for a body above [`FRAME_BYTES_MAX`], [`Io`](crate::Error::Io) if
    /// the cipher refused. The place is spent and the body lost: the segment has to be abandoned.
    ///
    /// # Panics
    /// If the place belongs to another file instance.
    pub(crate) fn seal(&self, place: Place, aad: &[u8], body: &mut [u8]) -> Result<Tag> {
        let ordinal = place.spend(self.instance);
        check_sealable(body, FRAME_BYTES_MAX)?;
        self.key.inner.cipher.seal(&nonce_of(ordinal), aad, body)
    }
}
