//! The manifest: a log of edits from which the picture of the whole store follows.
//!
//! A file header and journal frames ([`frame`](crate::format::frame)) of kind *edits*, ordinals 0, 1, 2, ..., each frame under a key of its
//! own that comes from the system key. A *group* of edits is atomic: it takes effect when all its frames are there.
//!
//! ```text
//! payload of a frame: more u8 (1: the group goes on in the next frame), then the next piece of the group
//!
//! group
//! offset  size  field
//!      0     8  epoch            of this group; one more than the group's before (u64)
//!      8     1  synced known     0 while the picture is being written, 1 afterwards
//!      9     8  synced ordinal   highest ordinal of this manifest known durable when this was written, or zero (u64)
//!     17     4  edits            how many follow (u32); none: a mark, which attests what was durable
//!     21     -  edits            (`edit.rs` has their bytes)
//! ```
//! What the edits mean together is `version`'s and `db`'s affair; here they are only bytes.

mod edit;

pub(crate) use self::edit::{
    Edit, Extent, FileRecord, GrantRecord, KeyPin, ParkedRecord, Schedule, TableRecord, TrailHead,
};
use crate::crypto::{Authentic, Salt, Suite, TableKey, Wiped};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, Where};
use crate::format::frame::{Expected, FileOpener, FileSealer, FrameKind, JOURNAL_PAYLOAD_BYTES_MAX};
use crate::io::Entropy;
use crate::types::{Epoch, FileKind, FileNumber, TableId};

/// The most bytes that one group of edits has, so that reading one is bounded (64 MiB). A picture is many groups.
pub(crate) const GROUP_BYTES_MAX: usize = 64 << 20;
/// What of a group fits one frame, behind the byte that says whether it goes on.
const PIECE_BYTES_MAX: usize = JOURNAL_PAYLOAD_BYTES_MAX - 1;

/// Edits that take effect together or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EditGroup {
    /// The epoch that the store is at once the group is durable.
    pub(crate) epoch: Epoch,
    /// Highest ordinal of this manifest known durable when this was written; `None` until its picture is.
    pub(crate) synced_ordinal: Option<u64>,
    /// What changed; nothing in a mark.
    pub(crate) edits: Vec<Edit>,
}

impl EditGroup {
    /// The group's bytes, before they are cut into frames. They hold table names, so they are wiped when dropped.
    pub(crate) fn encode(&self) -> Wiped {
        let mut out = Wiped::new();
        // Each edit is encoded in a small vector, because a growing one would free old bytes as they are.
        let mut edit_bytes = Vec::with_capacity(4096);
        edit_bytes.put_u64(self.epoch.0);
        edit_bytes.put_bool(self.synced_ordinal.is_some());
        edit_bytes.put_u64(self.synced_ordinal.unwrap_or(0));
        edit_bytes.put_u32(self.edits.len() as u32);
        out.extend_from_slice(&edit_bytes);
        for edit in &self.edits {
            edit_bytes.clear();
            edit.encode(&mut edit_bytes);
            out.extend_from_slice(&edit_bytes);
            edit_bytes.fill(0);
        }
        out
    }

    /// Read a whole group's bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<EditGroup> {
        let mut reader = Reader::new(bytes);
        let epoch = Epoch(reader.u64()?);
        let synced_ordinal = match (reader.bool()?, reader.u64()?) {
            (true, ordinal) => Some(ordinal),
            (false, 0) => None,
            (false, _) => return Err(Refusal::Malformed),
        };
        let count = reader.u32()?;
        let mut edits = Vec::new();
        for _ in 0..count {
            edits.push(Edit::decode(&mut reader)?);
        }
        reader.finish()?;
        Ok(EditGroup { epoch, synced_ordinal, edits })
    }
}

/// Writes a new manifest.
#[derive(Debug)]
pub(crate) struct ManifestSealer {
    sealer: FileSealer,
}

impl ManifestSealer {
    /// Begin a manifest: append its header to `out`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness.
    pub(crate) fn create(
        system: &TableKey,
        suite: Suite,
        number: FileNumber,
        entropy: &dyn Entropy,
        out: &mut Vec<u8>,
    ) -> Result<ManifestSealer> {
        let sealer = FileSealer::create(system, suite, FileKind::Manifest, number, TableId::SYSTEM, entropy, out)?;
        Ok(ManifestSealer { sealer })
    }

    /// Append a group's frames to `out`; the result is the ordinal of the last one.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a group above [`GROUP_BYTES_MAX`]; what sealing fails with. The manifest is abandoned then.
    pub(crate) fn append(&mut self, group: &EditGroup, out: &mut Vec<u8>) -> Result<u64> {
        let bytes = group.encode();
        debug_assert_eq!(EditGroup::decode(&bytes).as_ref(), Ok(group), "what is written can be read");
        if bytes.len() > GROUP_BYTES_MAX {
            let limit = GROUP_BYTES_MAX as u64;
            return Err(Error::LimitExceeded {
                what: "bytes of one group of edits",
                limit,
                actual: bytes.len() as u64,
            });
        }
        let mut last_ordinal = 0;
        let mut pieces = bytes.chunks(PIECE_BYTES_MAX).peekable();
        while let Some(piece) = pieces.next() {
            let mut payload = Wiped::with_capacity(1 + piece.len());
            payload.push(u8::from(pieces.peek().is_some()));
            payload.extend_from_slice(piece);
            last_ordinal = self.sealer.seal_journal(FrameKind::Edits, &payload, out)?.ordinal;
        }
        Ok(last_ordinal)
    }

    /// The salt of this manifest, for `CURRENT`.
    pub(crate) fn salt(&self) -> &Salt {
        self.sealer.salt()
    }

    /// Bytes of the file so far.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.sealer.len_bytes()
    }

    /// Frames so far, which is also the next ordinal.
    pub(crate) fn frames(&self) -> u64 {
        self.sealer.frames()
    }
}

/// Reads a manifest's groups from its frames, in order.
#[derive(Debug)]
pub(crate) struct ManifestOpener {
    opener: FileOpener,
    next_ordinal: u64,
    /// Pieces of a group of which more is to come.
    pending: Option<Authentic<Wiped>>,
}

impl ManifestOpener {
    /// For the manifest that begins with `header`.
    ///
    /// # Errors
    /// Those of [`FileOpener::open`].
    pub(crate) fn open(
        header: &[u8],
        system: &TableKey,
        expected: &Expected,
        place: &Where<'_>,
    ) -> Result<ManifestOpener> {
        let opener = FileOpener::open(header, system, expected, place)?;
        Ok(ManifestOpener { opener, next_ordinal: 0, pending: None })
    }

    /// The ordinal of the frame that [`feed`](ManifestOpener::feed) takes next.
    pub(crate) fn next_ordinal(&self) -> u64 {
        self.next_ordinal
    }

    /// Whether a group has begun and not ended.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_within_group(&self) -> bool {
        self.pending.is_some()
    }

    /// Open a whole frame anywhere in the manifest without reading it as the next: how a frame behind a hole attests
    /// something. The frame's group may have begun before it, so there is only the fact that it opens.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn attest(&self, ordinal: u64, frame: Vec<u8>, place: &Where<'_>) -> Result<Authentic<Wiped>> {
        self.opener.open_journal(FrameKind::Edits, ordinal, frame, place)
    }

    /// Open the next whole frame; the result is the group that it completes, if it does.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`], [`Error::UnknownVersion`]. What was fed stays as it was then.
    pub(crate) fn feed(&mut self, frame: Vec<u8>, place: &Where<'_>) -> Result<Option<Authentic<EditGroup>>> {
        let payload = self.opener.open_journal(FrameKind::Edits, self.next_ordinal, frame, place)?;
        let refuse = |refusal: Refusal| refusal.at(place);
        let more = Reader::new(&payload).bool().map_err(refuse)?;
        let piece = payload.try_map(|bytes| {
            let end = bytes.len();
            bytes.window(1..end).ok_or(Refusal::Malformed)
        });
        let piece = piece.map_err(refuse)?;
        let pending_bytes = self.pending.as_ref().map_or(0, |pending| pending.len());
        // The bytes are there, so this is no promise of a length; it keeps out a group without an end.
        if pending_bytes + piece.len() > GROUP_BYTES_MAX {
            return Err(Refusal::Malformed.at(place));
        }
        let bytes = match self.pending.take() {
            None => piece,
            Some(pending) => pending.map(|mut bytes| {
                bytes.extend_from_slice(&piece);
                bytes
            }),
        };
        self.next_ordinal += 1;
        if more {
            self.pending = Some(bytes);
            return Ok(None);
        }
        bytes.try_map(|bytes| EditGroup::decode(&bytes)).map(Some).map_err(refuse)
    }
}

#[cfg(test)]
pub(crate) mod tests;
