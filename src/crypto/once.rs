//! One sealed message under any secret: a keyring, a wrapped key.
//!
//! ```text
//! offset  size  field       meaning
//!      0    32  salt        fresh for every message, so that the derived key seals once
//!     32    32  check       HKDF-Expand of the extracted key: says whether the key is right
//!     64     n  body        ciphertext, AES-256-GCM, nonce zero
//!   64+n    16  tag         over body and associated data
//! ```
//! AES-256-GCM alone can be made to open under two keys. The check cannot, and it tells a wrong passphrase from bytes that
//! were changed behind it. Changed salt or check bytes read as a wrong key; whoever must tell these apart as well keeps a
//! checksum.

use zeroize::Zeroizing;

use super::hierarchy::{check_sealable, open_in_place};
use super::kdf::{Expander, FORMAT_VERSION, LABEL_ONCE, LABEL_ONCE_CHECK};
use super::secret::wipe_stack;
use super::suite::{Cipher, NONCE_ZERO};
use super::{Authentic, Commitment, NotAuthentic, Salt, Secret, Suite, TAG_BYTES, Wiped};
use crate::error::{Error, Result};
use crate::io::Entropy;

/// What a sealed message has more than its plaintext: salt, check and tag.
pub(crate) const ONCE_OVERHEAD_BYTES: usize = 32 + 32 + TAG_BYTES;

/// The largest message: a keyring with tens of thousands of keys.
const ONCE_BYTES_MAX: usize = 16 << 20;

/// One suite everywhere, because a wrap is read where it was not made.
const ONCE_SUITE: Suite = Suite::Aes256Gcm;

/// Why a message does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// It was sealed under another secret.
    WrongKey,
    /// The secret is right; the bytes, the associated data or the purpose are not what was sealed.
    NotAuthentic,
}

/// Seal `plaintext` for one `purpose` under a secret that may seal any number of messages.
///
/// # Errors
/// [`Error::Io`] if there is no randomness, [`Error::LimitExceeded`] above 16 MiB.
pub(crate) fn seal_once(
    secret: &Secret,
    purpose: &str,
    aad: &[u8],
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>> {
    check_sealable(plaintext, ONCE_BYTES_MAX)?;
    let salt = Salt::fresh(entropy).map_err(|error| Error::io("draw", "a salt", error))?;
    let (cipher, check) = set_up(secret, purpose, &salt);
    wipe_stack();

    // Sized once: growing would leave plaintext behind in the old buffer.
    let mut message = Vec::with_capacity(plaintext.len() + ONCE_OVERHEAD_BYTES);
    message.extend_from_slice(salt.as_bytes());
    message.extend_from_slice(check.as_bytes());
    message.extend_from_slice(plaintext);
    let tag = cipher.seal(&NONCE_ZERO, aad, &mut message[64..])?;
    message.extend_from_slice(&tag);
    Ok(message)
}

/// Open what [`seal_once`] sealed for the same purpose and with the same associated data.
pub(crate) fn open_once(
    secret: &Secret,
    purpose: &str,
    aad: &[u8],
    message: &[u8],
) -> Result<Authentic<Wiped>, Refused> {
    let (salt, rest) = message.split_first_chunk::<32>().ok_or(Refused::NotAuthentic)?;
    let (check, sealed) = rest.split_first_chunk::<32>().ok_or(Refused::NotAuthentic)?;
    if sealed.len() > ONCE_BYTES_MAX + TAG_BYTES {
        return Err(Refused::NotAuthentic);
    }
    let (cipher, right_check) = set_up(secret, purpose, &Salt::from_bytes(*salt));
    wipe_stack();
    if right_check != Commitment::from_bytes(*check) {
        return Err(Refused::WrongKey);
    }
    open_in_place(&cipher, &NONCE_ZERO, aad, Wiped::from(sealed.to_vec())).map_err(|NotAuthentic| Refused::NotAuthentic)
}

#[inline(never)]
fn set_up(secret: &Secret, purpose: &str, salt: &Salt) -> (Cipher, Commitment) {
    let expander = Expander::extract(salt, secret);
    let version = FORMAT_VERSION.to_le_bytes();
    let mut check = [0; 32];
    expander.expand_into(&[LABEL_ONCE_CHECK, &version], &mut check);
    let mut key = Zeroizing::new([0; 32]);
    // The purpose comes last, so that it may have any length.
    expander.expand_into(&[LABEL_ONCE, &version, &[ONCE_SUITE as u8], purpose.as_bytes()], &mut key);
    (Cipher::new(ONCE_SUITE, &key), Commitment::from_bytes(check))
}
