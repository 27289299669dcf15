//! The AEADs: which there are, which one the CPU wants, and the two libraries that do the work.
//!
//! Both backends give the same bytes, which the tests check, so which one is compiled in is nothing that a file says.
//! RustCrypto is always there: as the only one without the feature `aws-lc-rs`, and as the oracle in tests. Where a
//! backend reports an error that cannot be the caller's (no memory for a key schedule), setting up falls back to
//! RustCrypto, opening answers [`NotAuthentic`], and sealing answers an error that ends the file.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use chacha20poly1305::ChaCha20Poly1305;

use super::{NotAuthentic, Tag};
use crate::error::{Error, Result};
use crate::io::os::pages::Strongbox;
use crate::options;

/// An AEAD. Reaches the disk and the derivation of keys: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Suite {
    /// AES-256-GCM (NIST SP 800-38D), 96-bit nonce, 128-bit tag.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305 = 2,
    /// Plaintext and a tag of zeros: only to measure what encryption costs, in a build made for that.
    #[cfg(strongroom_plaintext_baseline)]
    None = 0x80,
}

impl Suite {
    /// The suite with this number on disk, or `None` for numbers that this build does not know.
    pub(crate) const fn from_u8(number: u8) -> Option<Suite> {
        match number {
            1 => Some(Suite::Aes256Gcm),
            2 => Some(Suite::ChaCha20Poly1305),
            #[cfg(strongroom_plaintext_baseline)]
            0x80 => Some(Suite::None),
            _ => None,
        }
    }

    /// The name that people know it by.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Suite::Aes256Gcm => "AES-256-GCM",
            Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            #[cfg(strongroom_plaintext_baseline)]
            Suite::None => "none",
        }
    }

    /// The suite asked for, or the one that is faster on this CPU at equal strength.
    pub(crate) fn choose(asked: Option<options::Cipher>) -> Suite {
        match asked {
            Some(options::Cipher::Aes256Gcm) => Suite::Aes256Gcm,
            Some(options::Cipher::ChaCha20Poly1305) => Suite::ChaCha20Poly1305,
            None if cpu_has_aes() => Suite::Aes256Gcm,
            None => Suite::ChaCha20Poly1305,
        }
    }

    /// The suite of a new table in a store whose own metadata is sealed with this one: as asked, and none where nothing is sealed.
    pub(crate) fn for_table(self, asked: Option<options::Cipher>) -> Suite {
        #[cfg(strongroom_plaintext_baseline)]
        if self == Suite::None {
            return Suite::None;
        }
        Suite::choose(asked)
    }
}

/// Whether both halves of AES-GCM, the cipher and the carry-less product, are instructions here.
fn cpu_has_aes() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    {
        false
    }
}

/// A 96-bit nonce.
pub(super) type NonceBytes = [u8; 12];

/// The nonce of a key that seals once.
pub(super) const NONCE_ZERO: NonceBytes = [0; 12];

/// The nonce of an ordinal under a stream key: the ordinal in the first 8 bytes, little-endian, then zeros.
pub(super) fn nonce_of(ordinal: u64) -> NonceBytes {
    let mut nonce = NONCE_ZERO;
    nonce[..8].copy_from_slice(&ordinal.to_le_bytes());
    nonce
}

/// Which library does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    #[cfg(feature = "aws-lc-rs")]
    AwsLc,
    #[cfg_attr(feature = "aws-lc-rs", allow(dead_code, reason = "then it is the oracle of tests"))]
    RustCrypto,
}

impl Backend {
    #[cfg(feature = "aws-lc-rs")]
    pub(super) const DEFAULT: Backend = Backend::AwsLc;
    #[cfg(not(feature = "aws-lc-rs"))]
    pub(super) const DEFAULT: Backend = Backend::RustCrypto;
}

/// An AEAD with its key schedule ready. Schedules lie in key pages, or where aws-lc allocates them: on the heap of C, which wipes what
/// it frees. Neither sealing nor opening copies a key, but setting up does, and is for callers that wipe the stack.
pub(super) struct Cipher {
    ready: Ready,
    #[cfg(debug_assertions)]
    fingerprint: super::audit::Fingerprint,
}

enum Ready {
    #[cfg(feature = "aws-lc-rs")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    Aes(Strongbox<Aes256Gcm>),
    ChaCha(Strongbox<ChaCha20Poly1305>),
    #[cfg(strongroom_plaintext_baseline)]
    None,
}

impl Cipher {
    /// Set up with the backend that this build prefers. The caller zeroes the key, and wipes the stack if the cipher is to
    /// live longer than one frame.
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Cipher {
        Cipher::with_backend(Backend::DEFAULT, suite, key)
    }

    pub(super) fn with_backend(backend: Backend, suite: Suite, key: &[u8; 32]) -> Cipher {
        Cipher {
            ready: Ready::new(backend, suite, key),
            #[cfg(debug_assertions)]
            fingerprint: super::audit::fingerprint(key),
        }
    }

    /// What stands for the suite that seals nothing: no key is derived for it.
    #[cfg(strongroom_plaintext_baseline)]
    pub(super) fn none() -> Cipher {
        Cipher {
            ready: Ready::None,
            #[cfg(debug_assertions)]
            fingerprint: super::audit::NONE,
        }
    }

    /// Turn plaintext into ciphertext where it lies.
    ///
    /// # Errors
    /// [`Error::Io`] if the backend refused; the body is lost then, and so is its place.
    pub(super) fn seal(&self, nonce: &NonceBytes, aad: &[u8], body: &mut [u8]) -> Result<Tag> {
        #[cfg(debug_assertions)]
        super::audit::record(&self.fingerprint, nonce);
        match &self.ready {
            #[cfg(feature = "aws-lc-rs")]
            Ready::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), body).map_err(|_| refused())?;
                Tag::try_from(tag.as_ref()).map_err(|_| refused())
            }
            Ready::Aes(cipher) => seal_with(&**cipher, nonce, aad, body),
            Ready::ChaCha(cipher) => seal_with(&**cipher, nonce, aad, body),
            #[cfg(strongroom_plaintext_baseline)]
            Ready::None => Ok(Tag::default()),
        }
    }

    /// Turn ciphertext into plaintext where it lies. What the body holds after a failure is nothing to look at.
    pub(super) fn open(&self, nonce: &NonceBytes, aad: &[u8], body: &mut [u8], tag: &Tag) -> Result<(), NotAuthentic> {
        match &self.ready {
            #[cfg(feature = "aws-lc-rs")]
            Ready::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(*nonce);
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, body).map_err(|_| NotAuthentic)?;
                Ok(())
            }
            Ready::Aes(cipher) => open_with(&**cipher, nonce, aad, body, tag),
            Ready::ChaCha(cipher) => open_with(&**cipher, nonce, aad, body, tag),
            #[cfg(strongroom_plaintext_baseline)]
            Ready::None => {
                if *tag == Tag::default() {
                    Ok(())
                } else {
                    Err(NotAuthentic)
                }
            }
        }
    }
}

impl Ready {
    fn new(backend: Backend, suite: Suite, key: &[u8; 32]) -> Ready {
        #[cfg(feature = "aws-lc-rs")]
        if backend == Backend::AwsLc
            && let Some(ready) = Ready::aws_lc(suite, key)
        {
            return ready;
        }
        // Either asked for, or the other one had no memory for its schedule.
        let _ = backend;
        match suite {
            Suite::Aes256Gcm => Ready::Aes(Strongbox::new(Aes256Gcm::new(key.into()))),
            Suite::ChaCha20Poly1305 => Ready::ChaCha(Strongbox::new(ChaCha20Poly1305::new(key.into()))),
            #[cfg(strongroom_plaintext_baseline)]
            Suite::None => Ready::None,
        }
    }

    #[cfg(feature = "aws-lc-rs")]
    fn aws_lc(suite: Suite, key: &[u8; 32]) -> Option<Ready> {
        use aws_lc_rs::aead::{AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            #[cfg(strongroom_plaintext_baseline)]
            Suite::None => return None,
        };
        let key = UnboundKey::new(algorithm, key).ok()?;
        Some(Ready::AwsLc(LessSafeKey::new(key)))
    }
}

fn seal_with<C>(cipher: &C, nonce: &NonceBytes, aad: &[u8], body: &mut [u8]) -> Result<Tag>
where
    C: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16>,
{
    let nonce = Nonce::from(*nonce);
    let tag = cipher.encrypt_inout_detached(&nonce, aad, body.into()).map_err(|_| refused())?;
    Ok(tag.into())
}

fn open_with<C>(cipher: &C, nonce: &NonceBytes, aad: &[u8], body: &mut [u8], tag: &Tag) -> Result<(), NotAuthentic>
where
    C: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16>,
{
    let nonce = Nonce::from(*nonce);
    cipher.decrypt_inout_detached(&nonce, aad, body.into(), &(*tag).into()).map_err(|_| NotAuthentic)
}

fn refused() -> Error {
    Error::io("seal", "a frame", std::io::Error::other("the cipher refused"))
}
