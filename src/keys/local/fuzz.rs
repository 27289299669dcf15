//! What fuzzing needs of a keyring: its decoder, and a file whose seal is right around contents of any kind.

use std::path::Path;

use super::contents::{VERSION, VERSION_OLDEST};
use super::file::KeyringFile;
use super::keyring::{Keyring, KeyringId};
use super::{LocalKms, Unlock};
use crate::crypto::{Stretching, Wiped};
use crate::io::Environment;

/// The versions of a keyring's contents that are read; the last one is written.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = VERSION_OLDEST..=VERSION;

/// What the contents of a keyring of some version encode to again, if they can be decoded.
pub(crate) fn reencoded(contents: &[u8], version: u32) -> Option<Wiped> {
    Keyring::decode(contents, version).ok().map(|keyring| keyring.encode())
}

/// The contents of the keyring in this memory.
pub(crate) fn contents(kms: &LocalKms) -> Wiped {
    kms.0.state.lock().keyring.encode()
}

/// The bytes of a keyring's file with these contents.
pub(crate) fn sealed(contents: &[u8], version: u32, unlock: &Unlock, environment: Environment) -> Vec<u8> {
    let id = KeyringId(contents.first_chunk().copied().unwrap_or_default());
    let file = KeyringFile::new(Path::new("/keyring"), environment).expect("the path names a file");
    file.seal_contents(id, version, contents, 1, unlock, &Stretching::DEFAULT).expect("the contents are small")
}
