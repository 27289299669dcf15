//! What opens a keyring: a passphrase, or a key of 32 bytes.

use std::fmt;
use std::path::Path;

use crate::crypto::{Salt, Secret, Stretching, Wiped};
use crate::error::{Error, Result};
use crate::io::Environment;

/// A secret file holds at most this many bytes: a passphrase, or a key in hexadecimal.
const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

/// A passphrase or a key. Wiped when dropped, never printed.
pub struct Unlock(Kind);

enum Kind {
    Passphrase(Wiped),
    Key(Secret),
}

impl Unlock {
    /// A passphrase, whose buffer is taken over and wiped when it is not needed any more. It is stretched with
    /// Argon2id, so that opening takes a good part of a second.
    pub fn passphrase(passphrase: impl Into<Vec<u8>>) -> Unlock {
        Unlock(Kind::Passphrase(Wiped::from(passphrase.into())))
    }

    /// A key of 32 random bytes, which `fill` writes in place so that no copy is left on the way.
    pub fn key(fill: impl FnOnce(&mut [u8; 32])) -> Unlock {
        Unlock(Kind::Key(Secret::fill_with(fill)))
    }

    /// The passphrase that a file holds, without a line end behind it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::LimitExceeded`] above 64 KiB.
    pub fn passphrase_file(path: impl AsRef<Path>) -> Result<Unlock> {
        let mut text = secret_file(path.as_ref())?;
        for line_end in [b'\n', b'\r'] {
            if text.last() == Some(&line_end) {
                text.truncate(text.len() - 1);
            }
        }
        Ok(Unlock(Kind::Passphrase(text)))
    }

    /// The key that a file holds: 32 bytes, or 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::InvalidArgument`] if it holds anything else.
    pub fn key_file(path: impl AsRef<Path>) -> Result<Unlock> {
        let bytes = secret_file(path.as_ref())?;
        let key = match <&[u8; 32]>::try_from(&bytes[..]) {
            Ok(key) => Some(Secret::fill_with(|secret| secret.copy_from_slice(key))),
            Err(_) => from_hex(bytes.trim_ascii()),
        };
        key.map(|key| Unlock(Kind::Key(key))).ok_or_else(|| Error::InvalidArgument {
            what: "key file",
            detail: format!("{} holds neither 32 bytes nor 64 hexadecimal digits", path.as_ref().display()),
        })
    }

    /// The kind's number in a keyring's header.
    pub(super) fn number(&self) -> u8 {
        match self.0 {
            Kind::Passphrase(_) => PASSPHRASE,
            Kind::Key(_) => KEY,
        }
    }

    /// An empty passphrase is a mistake, whoever makes it.
    pub(super) fn check(&self) -> Result<()> {
        match &self.0 {
            Kind::Passphrase(passphrase) if passphrase.is_empty() => {
                Err(Error::InvalidArgument { what: "passphrase", detail: "it is empty".to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Do `work` with the secret that a keyring with this salt is sealed under.
    pub(super) fn with_secret<T>(
        &self,
        stretching: &Stretching,
        salt: &Salt,
        work: impl FnOnce(&Secret) -> Result<T>,
    ) -> Result<T> {
        match &self.0 {
            Kind::Passphrase(passphrase) => work(&stretching.stretch(passphrase, salt)?),
            Kind::Key(key) => work(key),
        }
    }
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Passphrase(_) => "Unlock::passphrase(..)",
            Kind::Key(_) => "Unlock::key(..)",
        })
    }
}

/// A keyring under a passphrase. Reaches the disk.
pub(super) const PASSPHRASE: u8 = 1;
/// A keyring under a key of 32 bytes. Reaches the disk.
pub(super) const KEY: u8 = 2;

fn secret_file(path: &Path) -> Result<Wiped> {
    let failed = |error| Error::io("read", path.display(), error);
    let file = Environment::os().vfs.open(path).map_err(failed)?;
    let len_bytes = file.len_bytes().map_err(failed)?;
    if len_bytes > SECRET_FILE_BYTES_MAX {
        return Err(Error::LimitExceeded {
            what: "bytes of a file with a secret",
            limit: SECRET_FILE_BYTES_MAX,
            actual: len_bytes,
        });
    }
    let mut bytes = Wiped::new();
    bytes.resize(len_bytes as usize, 0);
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

fn from_hex(digits: &[u8]) -> Option<Secret> {
    if digits.len() != 64 {
        return None;
    }
    Secret::try_fill_with(|key| {
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(())?;
            let low = char::from(pair[1]).to_digit(16).ok_or(())?;
            *byte = (high << 4 | low) as u8;
        }
        Ok::<(), ()>(())
    })
    .ok()
}
