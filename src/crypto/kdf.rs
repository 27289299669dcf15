//! Labelled subkeys: HKDF-SHA256 (RFC 5869), and the fixed-width bytes that go into it.
//!
//! ```text
//! identity: 66 bytes, little-endian
//! offset  size  field
//!      0    16  label            one per use of a key
//!     16     4  format version   u32
//!     20     1  suite
//!     21    16  store id
//!     37    16  table id         the key's table; zeros for the system key
//!     53     4  generation       u32
//!     57     1  file kind
//!     58     8  file number      u64
//!
//! commitment, trail: the same without suite, kind and number: label, version, store id, table id, generation (56 bytes)
//! block:      label, ordinal u64 (24 bytes)
//! header:     label, then the header's bytes
//! ```
//! Fixed widths, so that no two different identities are ever the same bytes. A block's info and HKDF's counter (24 + 1)
//! fit one SHA-256 block with its padding (55), so that a block key costs two hash compressions.

use hkdf::hmac::digest::block_api::{CoreProxy, OutputSizeUser};
use hkdf::hmac::digest::{FixedOutput, Output, Update};
use hkdf::hmac::{Hmac, KeyInit};
use hkdf::{GenericHkdf, HmacImpl};
use sha2::Sha256;

use super::{Salt, Secret, Suite};
use crate::io::os::pages::Strongbox;
use crate::types::{FileKind, FileNumber, Generation, StoreId, TableId};

/// The version of the formats, and so of every derivation: a file of another version meets other keys.
pub(crate) const FORMAT_VERSION: u32 = 1;

const LABEL_BYTES: usize = 16;
type Label = [u8; LABEL_BYTES];

pub(super) const LABEL_COMMITMENT: &Label = b"strongroom pin  ";
pub(super) const LABEL_FILE: &Label = b"strongroom file ";
pub(super) const LABEL_STREAM: &Label = b"strongroom strm ";
pub(super) const LABEL_BLOCK: &Label = b"strongroom block";
pub(super) const LABEL_HEADER: &Label = b"strongroom head ";
pub(super) const LABEL_TRAIL: &Label = b"strongroom trail";
pub(super) const LABEL_ONCE: &Label = b"strongroom once ";
pub(super) const LABEL_ONCE_CHECK: &Label = b"strongroom chck ";

const IDENTITY_BYTES: usize = LABEL_BYTES + 4 + 1 + 16 + 16 + 4 + 1 + 8;
const OWNER_INFO_BYTES: usize = LABEL_BYTES + 4 + 16 + 16 + 4;
const BLOCK_INFO_BYTES: usize = LABEL_BYTES + 8;

// 9 bytes of padding leave 55 of a SHA-256 block, and HKDF's counter wants one of them.
const _: () = assert!(BLOCK_INFO_BYTES < 64 - 9);

/// Whose key it is: all that a table key's commitment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    pub(super) store: StoreId,
    pub(super) table: TableId,
    pub(super) generation: Generation,
}

impl Owner {
    /// What a key's commitment, or another thing that there is once per key, is derived with.
    pub(super) fn info(&self, label: &Label) -> [u8; OWNER_INFO_BYTES] {
        let mut info = Fields::new();
        info.put(label);
        info.put(&FORMAT_VERSION.to_le_bytes());
        info.put(self.store.as_bytes());
        info.put(self.table.as_bytes());
        info.put(&self.generation.0.to_le_bytes());
        info.finish()
    }

    pub(super) fn identity(
        &self,
        label: &Label,
        suite: Suite,
        kind: FileKind,
        number: FileNumber,
    ) -> [u8; IDENTITY_BYTES] {
        let mut info = Fields::new();
        info.put(label);
        info.put(&FORMAT_VERSION.to_le_bytes());
        info.put(&[suite as u8]);
        info.put(self.store.as_bytes());
        info.put(self.table.as_bytes());
        info.put(&self.generation.0.to_le_bytes());
        info.put(&[kind as u8]);
        info.put(&number.0.to_le_bytes());
        info.finish()
    }
}

pub(super) fn block_info(ordinal: u64) -> [u8; BLOCK_INFO_BYTES] {
    let mut info = Fields::new();
    info.put(LABEL_BLOCK);
    info.put(&ordinal.to_le_bytes());
    info.finish()
}

/// An array that is filled from the front. Widths are constants, so a field too many or too few fails every test.
struct Fields<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Fields<N> {
    fn new() -> Fields<N> {
        Fields { bytes: [0; N], len: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
    }

    fn finish(self) -> [u8; N] {
        assert!(self.len == N, "an info of fixed width is filled to its end");
        self.bytes
    }
}

/// HKDF-SHA256 whose states are all that it holds.
pub(super) type Hkdf = GenericHkdf<BlankHmac>;

/// HMAC-SHA256 (RFC 2104) that keeps nothing but its states.
///
/// A new hash has room for a block that nobody has written yet, so that whatever was on the stack where it was made lies in it: the masked
/// key, as it turned out, from which HMAC's states had just been made.
#[derive(Clone)]
pub(super) struct BlankHmac(Hmac<Sha256>);

impl OutputSizeUser for BlankHmac {
    type OutputSize = <Hmac<Sha256> as OutputSizeUser>::OutputSize;
}

impl HmacImpl for BlankHmac {
    fn new_from_slice(key: &[u8]) -> BlankHmac {
        let hmac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of all lengths");
        let (states, mut room) = hmac.decompose();
        room.set(Default::default(), 0);
        BlankHmac(Hmac::compose(states, room))
    }

    fn update(&mut self, data: &[u8]) {
        Update::update(&mut self.0, data);
    }

    fn finalize(self) -> Output<BlankHmac> {
        self.0.finalize_fixed()
    }
}

/// A key from which subkeys are expanded, kept as the two states of HMAC that a key costs.
///
/// In key pages, because the states are as good as the key. (`sha2` can wipe its states itself, but would then wipe at every
/// expansion too, byte by byte.) An expansion works on a copy of them on the stack, so it is for callers that wipe that.
pub(super) struct Expander(Strongbox<Hkdf>);

impl Expander {
    /// Expand from what HKDF extracts of a secret and a salt. For callers that wipe the stack afterwards.
    pub(super) fn extract(salt: &Salt, secret: &Secret) -> Expander {
        Expander(Strongbox::new(Hkdf::new(Some(salt.as_bytes()), secret.expose())))
    }

    /// Expand from a key that is uniformly random. For callers that wipe the stack afterwards.
    pub(super) fn from_key(key: &Secret) -> Expander {
        Expander(Strongbox::new(Hkdf::from_prk(key.expose()).expect("32 bytes are what SHA-256 puts out")))
    }

    /// Write the subkey for `info`, which is the parts one behind the other, into `subkey`.
    pub(super) fn expand_into<const N: usize>(&self, info: &[&[u8]], subkey: &mut [u8; N]) {
        const { assert!(N <= 32, "one round of HMAC") };
        self.0.expand_multi_info(info, subkey).expect("HKDF gives up to 255 times 32 bytes");
    }

    pub(super) fn expand(&self, info: &[&[u8]]) -> Secret {
        Secret::fill_with(|subkey| self.expand_into(info, subkey))
    }
}
