//! What fuzzing needs of a keyring: its decoder, and a file whose seal is right around contents of any kind.

use std::path::Path;

use super::file::KeyringFile;
use super::keyring::{Keyring, KeyringId};
use super::{LocalKms, Unlock};
use crate::crypto::{Stretching, Wiped};
use crate::io::Environment;

/// What the contents of a keyring encode to again, if they can be decoded.
pub(crate) fn reencoded(contents: &[u8]) -> Option<Wiped> {
    Keyring::decode(contents).ok().map(|keyring| keyring.encode())
}

/// The contents of the keyring in this memory.
pub(crate) fn contents(kms: &LocalKms) -> Wiped {
    kms.0.state.lock().keyring.encode()
}

/// The bytes of a keyring's file with these contents.
pub(crate) fn sealed(contents: &[u8], unlock: &Unlock, environment: Environment) -> Vec<u8> {
    let id = KeyringId(contents.first_chunk().copied().unwrap_or_default());
    let file = KeyringFile::new(Path::new("/keyring"), environment).expect("the path names a file");
    file.seal_contents(id, contents, 1, unlock, &Stretching::DEFAULT).expect("the contents are small")
}
