//! A table's key, and the keys of its files whose frames each have a key of their own.

use std::io;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::kdf::{Expander, LABEL_COMMITMENT, LABEL_FILE, LABEL_HEADER, LABEL_STREAM, LABEL_TRAIL, Owner, block_info};
use super::place::STREAM_SEALS_MAX;
use super::secret::{wipe_frame_stack, wipe_stack};
use super::suite::{Cipher, NONCE_ZERO};
use super::{
    Authentic, Commitment, NotAuthentic, Ordinals, Place, Salt, Secret, StreamKey, StreamSealer, Suite, TAG_BYTES, Tag,
    Wiped,
};
use crate::error::{Error, Result};
use crate::io::Entropy;
use crate::types::{FRAME_BYTES_MAX, FileKind, FileNumber, Generation, StoreId, TableId};

/// One generation of a table's key, or of the system key ([`TableId::SYSTEM`]), unwrapped.
///
/// The bytes exist once, in the [`Secret`]; every key below is derived when a file is opened or created.
pub(crate) struct TableKey {
    secret: Secret,
    owner: Owner,
    commitment: Commitment,
}

impl TableKey {
    /// The key of this generation of this table of this store.
    pub(crate) fn new(secret: Secret, store: StoreId, table: TableId, generation: Generation) -> TableKey {
        let owner = Owner { store, table, generation };
        let commitment = commit(&secret, &owner);
        wipe_stack();
        TableKey { secret, owner, commitment }
    }

    /// The same bytes as if they were another generation's: what somebody could try who has got hold of them.
    #[cfg(test)]
    pub(crate) fn as_if_of(&self, generation: Generation) -> TableKey {
        let secret = Secret::fill_with(|bytes| bytes.copy_from_slice(self.secret.expose()));
        TableKey::new(secret, self.owner.store, self.owner.table, generation)
    }

    /// What is pinned of the key, to recognise it by.
    pub(crate) fn commitment(&self) -> &Commitment {
        &self.commitment
    }

    /// The store.
    pub(crate) fn store(&self) -> StoreId {
        self.owner.store
    }

    /// The table, or [`TableId::SYSTEM`].
    pub(crate) fn table(&self) -> TableId {
        self.owner.table
    }

    /// Which of the table's keys.
    pub(crate) fn generation(&self) -> Generation {
        self.owner.generation
    }

    /// The key of a file that exists: it opens, and cannot seal.
    pub(crate) fn file_key(&self, suite: Suite, kind: FileKind, number: FileNumber, salt: &Salt) -> FileKey {
        let expander = ready_expander(&self.derive(LABEL_FILE, suite, kind, number, salt));
        wipe_stack();
        FileKey { inner: Arc::new(FileKeyInner { suite, expander }) }
    }

    /// The key of a new instance of a file, with a fresh salt: the only way to a key that seals.
    pub(crate) fn sealing_key(
        &self,
        suite: Suite,
        kind: FileKind,
        number: FileNumber,
        entropy: &dyn Entropy,
    ) -> io::Result<SealingKey> {
        let ordinals = Ordinals::fresh(kind, number, entropy)?;
        let key = self.file_key(suite, kind, number, ordinals.salt());
        Ok(SealingKey { key, ordinals })
    }

    /// This table's key in a log segment (or parked sections) that exists: it opens, and cannot seal.
    pub(crate) fn stream_key(&self, suite: Suite, kind: FileKind, number: FileNumber, salt: &Salt) -> StreamKey {
        let key = StreamKey::new(suite, &self.derive(LABEL_STREAM, suite, kind, number, salt));
        wipe_stack();
        key
    }

    /// The tag of the header of the file that `ordinals` counts, over all the header's bytes before it: for files whose frames
    /// are sealed by [`StreamSealer`]s.
    pub(crate) fn header_tag(&self, suite: Suite, ordinals: &Ordinals, header: &[u8]) -> Tag {
        self.file_key(suite, ordinals.kind(), ordinals.number(), ordinals.salt()).header_tag(header)
    }

    /// This table's key in the segment that `ordinals` counts.
    ///
    /// A table asks for it once per segment; asking again is safe, because the places are counted in `ordinals`.
    ///
    /// # Panics
    /// If the file's kind is not one whose ordinals end before a stream key is worn out.
    pub(crate) fn stream_sealer(&self, suite: Suite, ordinals: &Ordinals) -> StreamSealer {
        assert!(ordinals.limit() <= STREAM_SEALS_MAX, "a stream key seals for logs alone");
        let key = self.stream_key(suite, ordinals.kind(), ordinals.number(), ordinals.salt());
        StreamSealer::new(key, ordinals.instance())
    }

    /// The key of the audit trail's chain, which is the system key's to give.
    pub(crate) fn trail_key(&self) -> TrailKey {
        let key = expand(&self.secret, &self.owner.info(LABEL_TRAIL));
        let expander = ready_expander(&key);
        wipe_stack();
        TrailKey { generation: self.owner.generation, expander }
    }

    fn derive(&self, label: &[u8; 16], suite: Suite, kind: FileKind, number: FileNumber, salt: &Salt) -> Secret {
        let key = extract_and_expand(&self.secret, salt, &self.owner.identity(label, suite, kind, number));
        wipe_stack();
        key
    }
}

impl std::fmt::Debug for TableKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableKey").field("owner", &self.owner).finish_non_exhaustive()
    }
}

// What sets up from a long-lived key is never inlined, so that all it leaves behind lies below its caller's frame, where
// the wipe that follows reaches.

#[inline(never)]
fn commit(secret: &Secret, owner: &Owner) -> Commitment {
    let mut commitment = [0; 32];
    Expander::from_key(secret).expand_into(&[&owner.info(LABEL_COMMITMENT)], &mut commitment);
    Commitment(commitment)
}

#[inline(never)]
fn ready_expander(key: &Secret) -> Expander {
    Expander::from_key(key)
}

#[inline(never)]
fn expand(key: &Secret, info: &[u8]) -> Secret {
    Expander::from_key(key).expand(&[info])
}

#[inline(never)]
fn extract_and_expand(secret: &Secret, salt: &Salt, info: &[u8]) -> Secret {
    Expander::extract(salt, secret).expand(&[info])
}

/// Chains the records of an audit trail: whoever does not have it can neither make one up nor change one.
pub(crate) struct TrailKey {
    generation: Generation,
    expander: Expander,
}

impl TrailKey {
    /// Generation of the system key that this is derived from.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// HMAC-SHA256 of the text and the byte 1, which is what HKDF expands it to. The text is public; like a header's tag, its MAC is a
    /// pseudo-random function of it and nothing that must be made once.
    pub(crate) fn mac(&self, text: &[u8]) -> [u8; 32] {
        let mac = self.expand_mac(text);
        wipe_frame_stack();
        mac
    }

    #[inline(never)]
    fn expand_mac(&self, text: &[u8]) -> [u8; 32] {
        let mut mac = [0; 32];
        self.expander.expand_into(&[text], &mut mac);
        mac
    }

    /// Whether this is the text's MAC, in constant time.
    pub(crate) fn is_mac(&self, text: &[u8], mac: &[u8; 32]) -> bool {
        self.mac(text).ct_eq(mac).into()
    }
}

impl std::fmt::Debug for TrailKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrailKey").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Opens the frames of one file instance. Cheap to clone; ready, so that a frame costs two hash compressions and one
/// cipher set-up.
#[derive(Clone)]
pub(crate) struct FileKey {
    inner: Arc<FileKeyInner>,
}

struct FileKeyInner {
    suite: Suite,
    expander: Expander,
}

impl FileKey {
    /// Open the frame at `ordinal` where it lies. `sealed` shows body ‖ tag, the result shows the body.
    ///
    /// # Errors
    /// [`NotAuthentic`] if these are not the bytes that were sealed there with `aad`; the buffer is gone then.
    pub(crate) fn open(&self, ordinal: u64, aad: &[u8], sealed: Wiped) -> Result<Authentic<Wiped>, NotAuthentic> {
        let opened = self.open_frame(ordinal, aad, sealed);
        wipe_frame_stack();
        opened
    }

    #[inline(never)]
    fn open_frame(&self, ordinal: u64, aad: &[u8], sealed: Wiped) -> Result<Authentic<Wiped>, NotAuthentic> {
        open_in_place(&self.block_cipher(ordinal), &NONCE_ZERO, aad, sealed)
    }

    #[inline(never)]
    fn seal_frame(&self, ordinal: u64, aad: &[u8], body: &mut [u8]) -> Result<Tag> {
        self.block_cipher(ordinal).seal(&NONCE_ZERO, aad, body)
    }

    /// Check the tag of the file's header.
    pub(crate) fn check_header(&self, header: &[u8], tag: &Tag) -> Result<(), NotAuthentic> {
        if bool::from(self.header_tag(header).ct_eq(tag)) { Ok(()) } else { Err(NotAuthentic) }
    }

    /// The tag of the file's header.
    fn header_tag(&self, header: &[u8]) -> Tag {
        let tag = self.expand_header_tag(header);
        wipe_frame_stack();
        tag
    }

    /// A header stands in clear, so its tag is a pseudo-random function of it and no AEAD: asked twice, it answers twice
    /// and gives nothing away.
    #[inline(never)]
    fn expand_header_tag(&self, header: &[u8]) -> Tag {
        let mut tag = [0; TAG_BYTES];
        #[cfg(strongroom_plaintext_baseline)]
        if self.inner.suite == Suite::None {
            return tag;
        }
        self.inner.expander.expand_into(&[LABEL_HEADER, header], &mut tag);
        tag
    }

    fn block_cipher(&self, ordinal: u64) -> Cipher {
        #[cfg(strongroom_plaintext_baseline)]
        if self.inner.suite == Suite::None {
            return Cipher::none();
        }
        let mut key = Zeroizing::new([0; 32]);
        self.inner.expander.expand_into(&[&block_info(ordinal)], &mut key);
        Cipher::new(self.inner.suite, &key)
    }
}

impl std::fmt::Debug for FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileKey").field("suite", &self.inner.suite).finish_non_exhaustive()
    }
}

/// Seals the frames of one new file instance, from any number of threads.
#[derive(Debug)]
pub(crate) struct SealingKey {
    key: FileKey,
    ordinals: Ordinals,
}

impl SealingKey {
    /// The salt that was drawn for this instance, for the header.
    pub(crate) fn salt(&self) -> &Salt {
        self.ordinals.salt()
    }

    /// What opens the frames again.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn key(&self) -> &FileKey {
        &self.key
    }

    /// How many places have been taken.
    pub(crate) fn taken(&self) -> u64 {
        self.ordinals.taken()
    }

    /// The next place.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the ordinals have run out.
    pub(crate) fn take(&self) -> Result<Place> {
        self.ordinals.take()
    }

    /// Seal `body` where it lies.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a body above [`FRAME_BYTES_MAX`], [`Error::Io`] if the cipher refused. The place is
    /// spent and the body lost: the file has to be abandoned.
    ///
    /// # Panics
    /// If the place belongs to another file instance.
    pub(crate) fn seal(&self, place: Place, aad: &[u8], body: &mut [u8]) -> Result<Tag> {
        let ordinal = place.spend(self.ordinals.instance());
        check_sealable(body, FRAME_BYTES_MAX)?;
        let tag = self.key.seal_frame(ordinal, aad, body);
        wipe_frame_stack();
        tag
    }

    /// The tag of the file's header, over all the bytes before it.
    pub(crate) fn header_tag(&self, header: &[u8]) -> Tag {
        self.key.header_tag(header)
    }
}

/// Open body ‖ tag where it lies, and show the body.
pub(super) fn open_in_place(
    cipher: &Cipher,
    nonce: &[u8; 12],
    aad: &[u8],
    mut sealed: Wiped,
) -> Result<Authentic<Wiped>, NotAuthentic> {
    let (body, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(NotAuthentic)?;
    cipher.open(nonce, aad, body, tag)?;
    let body_bytes = body.len();
    sealed.truncate(body_bytes);
    Ok(Authentic::vouch(sealed))
}

/// The proof that a body's length is far below every AEAD's limit.
pub(super) fn check_sealable(body: &[u8], limit: usize) -> Result<()> {
    if body.len() <= limit {
        return Ok(());
    }
    Err(Error::LimitExceeded { what: "bytes of a sealed body", limit: limit as u64, actual: body.len() as u64 })
}
