//! `CURRENT`: which manifest is live.
//!
//! A file header and one frame, sealed under the system key; its file number is the manifest's. It is replaced as a whole (temporary
//! file, sync, rename, directory sync) when a manifest's picture is complete and when the store is closed.
//!
//! ```text
//! offset  size  field
//!      0     8  manifest              number of the live manifest (u64)
//!      8    32  salt                  of that manifest
//!     40     8  epoch                 at which the picture was complete (u64)
//!     48     8  picture end           bytes of the manifest with which the picture ends (u64)
//!     56     8  picture last ordinal  of the frame with which it ends (u64)
//!     64     1  closed                1 if the store was closed cleanly, and then:
//!     65     7  reserved              zero
//!     72     8  len_bytes             of the manifest (u64), or zero
//!     80    16  last tag              of its last frame, or zero
//!     96     8  epoch                 of its last group (u64), or zero
//!    104
//! ```
//! The picture was durable before it was named here, so anything missing before *picture end* is damage. After a clean close the
//! same is true of the whole manifest.

use crate::crypto::{Authentic, Salt, Suite, TAG_BYTES, TableKey, Tag};
use crate::error::Result;
use crate::format::codec::{Decoded, Put, Reader, Refusal, Where, require};
use crate::format::frame::{Expected, FileHeader, FileOpener, FileSealer, FrameKind, HEADER_BYTES};
use crate::io::Entropy;
use crate::options::Compression;
use crate::types::{Epoch, FileKind, FileNumber, TableId};

const CURRENT_BYTES: usize = 104;

/// What `CURRENT` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Current {
    /// The live manifest.
    pub(crate) manifest: FileNumber,
    /// Its salt.
    pub(crate) salt: Salt,
    /// The epoch at which its picture was complete.
    pub(crate) epoch: Epoch,
    /// Bytes of it with which the picture ends.
    pub(crate) picture_end_bytes: u64,
    /// Ordinal of the frame with which the picture ends.
    pub(crate) picture_last_ordinal: u64,
    /// What was true at the end, if the store was closed cleanly.
    pub(crate) closed: Option<Closed>,
}

/// The manifest's end when the store was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Closed {
    /// Its length.
    pub(crate) len_bytes: u64,
    /// The tag of its last frame.
    pub(crate) last_tag: Tag,
    /// The epoch of its last group.
    pub(crate) epoch: Epoch,
}

impl Current {
    /// All bytes of the file.
    ///
    /// # Errors
    /// What sealing fails with.
    pub(crate) fn seal(&self, system: &TableKey, suite: Suite, entropy: &dyn Entropy) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut sealer =
            FileSealer::create(system, suite, FileKind::Current, self.manifest, TableId::SYSTEM, entropy, &mut out)?;
        sealer.seal(FrameKind::Current, true, Compression::None, &self.encode(), &mut out)?;
        Ok(out)
    }

    /// Open the file's bytes. Its suite is its own affair: the manifest, which says what suite the store has, is found
    /// through it.
    ///
    /// # Errors
    /// Those of [`FileOpener::open`] and [`FileOpener::open_frame`].
    pub(crate) fn open(bytes: &[u8], system: &TableKey, place: &Where<'_>) -> Result<Authentic<Current>> {
        let header = FileHeader::decode(bytes, place)?;
        let expected = Expected {
            kind: FileKind::Current,
            number: header.number,
            subject: TableId::SYSTEM,
            suite: None,
            salt: None,
        };
        let opener = FileOpener::open(bytes, system, &expected, place)?;
        let place = place.at(place.offset_bytes + HEADER_BYTES as u64);
        let frame = bytes.get(HEADER_BYTES..).unwrap_or_default().to_vec();
        let payload = opener.open_frame(FrameKind::Current, true, 0, frame, &place)?;
        let current = payload.try_map(|payload| {
            let current = Current::decode(&payload)?;
            require(current.manifest == header.number)?;
            Ok(current)
        });
        current.map_err(|refusal: Refusal| refusal.at(&place))
    }

    /// The plaintext.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CURRENT_BYTES);
        out.put_u64(self.manifest.0);
        out.put(self.salt.as_bytes());
        out.put_u64(self.epoch.0);
        out.put_u64(self.picture_end_bytes);
        out.put_u64(self.picture_last_ordinal);
        out.put_bool(self.closed.is_some());
        out.put_reserved::<7>();
        let closed = self.closed.unwrap_or(Closed { len_bytes: 0, last_tag: [0; TAG_BYTES], epoch: Epoch(0) });
        out.put_u64(closed.len_bytes);
        out.put(&closed.last_tag);
        out.put_u64(closed.epoch.0);
        out
    }

    /// Read the plaintext.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Current> {
        let mut reader = Reader::new(bytes);
        let manifest = FileNumber(reader.u64()?);
        let salt = Salt::from_bytes(reader.array()?);
        let epoch = Epoch(reader.u64()?);
        let picture_end_bytes = reader.u64()?;
        let picture_last_ordinal = reader.u64()?;
        let closed = if reader.bool()? {
            reader.reserved::<7>()?;
            Some(Closed { len_bytes: reader.u64()?, last_tag: reader.array()?, epoch: Epoch(reader.u64()?) })
        } else {
            reader.reserved::<{ 7 + 8 + TAG_BYTES + 8 }>()?;
            None
        };
        reader.finish()?;
        Ok(Current { manifest, salt, epoch, picture_end_bytes, picture_last_ordinal, closed })
    }
}

#[cfg(test)]
pub(crate) mod tests;
