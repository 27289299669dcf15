//! The keyring's file: sealed, replaced as a whole, never changed because it did not open.
//!
//! ```text
//! offset  size  field       meaning
//!      0     8  magic       "strongKR"
//!      8     4  format      2; of the contents as well, and 1 is still read (`contents.rs`)
//!     12     4  required    feature bits a reader has to know; none so far
//!     16     1  kind        8, a keyring among the kinds of file
//!     17     1  unlock      1 passphrase, 2 key
//!     18     2  zero
//!     20    12  stretching  memory in KiB, passes, lanes of Argon2id, each u32; zeros for a key
//!     32    16  id          of the keyring
//!     48     8  revision    one more at each rewrite
//!     56    32  salt        of the stretching; fresh at each rewrite
//!     88     4  body_len    bytes of the body
//!     92     4  body_crc    CRC-32 of the body
//!     96     4  header_crc  CRC-32 of the 96 bytes before it
//!    100     n  body        one sealed message (`crypto/once.rs`): salt 32, check 32, ciphertext, tag 16;
//!                           associated data: the 92 bytes before body_crc
//! ```
//! All numbers are little-endian. In clear stands what is needed before the secret is at hand; all of it is authenticated with the
//! body. The checksums tell a failing disk, the check tells a wrong passphrase, the tag tells a changed file: three
//! different errors, and none of them makes this code write. Header and its checksum keep their place in later formats.
//!
//! A rewrite goes to `<name>.tmp`, which is synced and renamed over the old file while `<name>.lock` is locked, so that two
//! processes do not lose each other's keys; readers take no lock, because a rename shows them the old file or the new one. What a crash
//! leaves as `<name>.tmp` is never read, and removed by the next rewrite.
//!
//! Once the new file is durable, the old one, which has no name any more, is overwritten with zeros: a key that was deleted, or a passphrase that
//! was changed because others knew it, should not live on in the blocks of a file that nobody sees. File systems that copy on write, journals and
//! SSDs keep copies all the same, and nobody is told when the overwriting fails. A reader that still had the old file open finds zeros, sees
//! that another file has its name now, and reads that.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::contents::{KEYRING_BYTES_MAX, VERSION, VERSION_OLDEST};
use super::keyring::{Keyring, KeyringId};
use super::unlock::{KEY, PASSPHRASE, Unlock};
use crate::crypto::{ONCE_OVERHEAD_BYTES, Refused, Salt, Stretching, open_once, seal_once};
use crate::error::{Error, Result};
use crate::format::codec::Where;
use crate::io::{Environment, File, Lock, Signal};
use crate::types::FileKind;

const MAGIC: &[u8; 8] = b"strongKR";
pub(super) const HEADER_BYTES: usize = 100;
/// How much of the header is associated data: all but the two checksums.
const AUTHENTICATED_BYTES: usize = 92;
/// Bodies beyond this are refused before anything is sized by them.
const BODY_BYTES_MAX: usize = KEYRING_BYTES_MAX + ONCE_OVERHEAD_BYTES;
/// What the seal is for.
const PURPOSE: &str = "keyring";
/// How long a rewrite waits for another one, and how long between two tries.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// The bytes that tell one state of the file from another: its header, in which the salt is fresh at each rewrite.
pub(super) type Stamp = [u8; HEADER_BYTES];

/// Where a keyring's file is.
#[derive(Debug)]
pub(super) struct KeyringFile {
    path: PathBuf,
    environment: Environment,
}

/// What a header says, once its checksum held.
struct Header {
    version: u32,
    unlock: u8,
    stretching: Stretching,
    id: KeyringId,
    revision: u64,
    salt: Salt,
    body_bytes: usize,
    body_crc: u32,
}

/// A keyring as it was read, and what is needed to write the next one.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) keyring: Keyring,
    pub(super) revision: u64,
    pub(super) stretching: Stretching,
    pub(super) stamp: Stamp,
}

impl KeyringFile {
    pub(super) fn new(path: &Path, environment: Environment) -> Result<KeyringFile> {
        if path.file_name().is_none() {
            return Err(Error::InvalidArgument {
                what: "keyring",
                detail: format!("{} names no file", path.display()),
            });
        }
        Ok(KeyringFile { path: path.to_owned(), environment })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something stands at the path.
    pub(super) fn exists(&self) -> Result<bool> {
        match self.environment.vfs.metadata(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed("examine", error)),
        }
    }

    /// The file's present stamp, by one small read.
    pub(super) fn stamp(&self) -> Result<Stamp> {
        self.open().map(|(_, _, stamp)| stamp)
    }

    /// Read and open the file.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`], [`Error::WrongPassphrase`], [`Error::UnknownVersion`], [`Error::Io`]. The file stays as
    /// it is in every case.
    pub(super) fn load(&self, unlock: &Unlock) -> Result<Loaded> {
        unlock.check()?;
        loop {
            let (file, len_bytes, stamp) = self.open()?;
            match self.read(&*file, len_bytes, stamp, unlock) {
                // It was replaced, and erased, while it was read.
                Err(Error::BitRot { .. }) if self.stamp()? != stamp => {}
                read => return read,
            }
        }
    }

    fn read(&self, file: &dyn File, len_bytes: u64, stamp: Stamp, unlock: &Unlock) -> Result<Loaded> {
        let header = self.decode_header(&stamp)?;
        if len_bytes != (HEADER_BYTES + header.body_bytes) as u64 {
            return Err(self.bit_rot(88, "the file is shorter or longer than its header says"));
        }
        let mut body = vec![0; header.body_bytes];
        file.read_exact_at(&mut body, HEADER_BYTES as u64).map_err(|error| self.failed("read", error))?;
        if crc32fast::hash(&body) != header.body_crc {
            return Err(self.bit_rot(HEADER_BYTES, "checksum of the body"));
        }
        if header.unlock != unlock.number() {
            return Err(self.wrong_passphrase());
        }
        let keyring = unlock.with_secret(&header.stretching, &header.salt, |secret| {
            let opened =
                open_once(secret, PURPOSE, &stamp[..AUTHENTICATED_BYTES], &body).map_err(|refused| match refused {
                    Refused::WrongKey => self.wrong_passphrase(),
                    Refused::NotAuthentic => self.tampered(HEADER_BYTES, "seal of the body"),
                })?;
            Keyring::decode(&opened, header.version)
                .map_err(|refusal| refusal.at(&Where::new(&self.name(), HEADER_BYTES as u64)))
        })?;
        if keyring.id != header.id {
            return Err(self.tampered(32, "the header names another keyring than the contents"));
        }
        Ok(Loaded { keyring, revision: header.revision, stretching: header.stretching, stamp })
    }

    /// Replace the file by this keyring, and return its new stamp. The caller holds the lock.
    pub(super) fn store(
        &self,
        keyring: &Keyring,
        revision: u64,
        unlock: &Unlock,
        stretching: &Stretching,
    ) -> Result<Stamp> {
        unlock.check()?;
        let bytes = self.seal(keyring, revision, unlock, stretching)?;
        let temporary = self.beside(".tmp");
        let vfs = &self.environment.vfs;
        // None if this is the first.
        let replaced = vfs.open_to_erase(&self.path).ok();
        match vfs.remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.failed("remove leftovers of", error)),
            _ => {}
        }
        let written = vfs.create(&temporary).and_then(|file| {
            file.write_all_at(&bytes, 0)?;
            // Before the name: a keyring that survives a power cut under its name must survive whole.
            file.sync()
        });
        if let Err(error) = written {
            // Of no use any more; if it stays, the next rewrite removes it.
            let _ = vfs.remove_file(&temporary);
            return Err(self.failed("write", error));
        }
        vfs.rename(&temporary, &self.path).map_err(|error| self.failed("replace", error))?;
        vfs.sync_dir(self.directory()).map_err(|error| self.failed("sync the directory of", error))?;
        // Not before: until now, a power cut could have brought the old file back.
        if let Some(replaced) = replaced {
            let _ = erase(&*replaced);
        }
        let mut stamp = [0; HEADER_BYTES];
        stamp.copy_from_slice(&bytes[..HEADER_BYTES]);
        Ok(stamp)
    }

    /// Keep others from rewriting; waits for one who is at it. Never called with a mutex held.
    pub(super) fn lock(&self) -> Result<Box<dyn Lock>> {
        let path = self.beside(".lock");
        let clock = &*self.environment.clock;
        let give_up = clock.tick().after(LOCK_WAIT);
        loop {
            match self.environment.vfs.lock(&path) {
                Ok(lock) => return Ok(lock),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if clock.tick() >= give_up {
                        return Err(Error::Locked { path: self.path.display().to_string() });
                    }
                }
                Err(error) => return Err(self.failed("lock", error)),
            }
            // Nobody raises a signal when another process unlocks a file.
            let retry = clock.tick().after(LOCK_RETRY);
            self.environment.scheduler.wait_until(&Signal::new(), clock, Some(retry), &mut || false);
        }
    }

    fn seal(&self, keyring: &Keyring, revision: u64, unlock: &Unlock, stretching: &Stretching) -> Result<Vec<u8>> {
        self.seal_contents(keyring.id, VERSION, &keyring.encode(), revision, unlock, stretching)
    }

    pub(super) fn seal_contents(
        &self,
        id: KeyringId,
        version: u32,
        contents: &[u8],
        revision: u64,
        unlock: &Unlock,
        stretching: &Stretching,
    ) -> Result<Vec<u8>> {
        let entropy = &*self.environment.entropy;
        let salt = Salt::fresh(entropy).map_err(|error| Error::io("draw", "a salt", error))?;
        let body_bytes = contents.len() + ONCE_OVERHEAD_BYTES;
        if body_bytes > BODY_BYTES_MAX {
            return Err(Error::LimitExceeded {
                what: "bytes of a keyring",
                limit: BODY_BYTES_MAX as u64,
                actual: body_bytes as u64,
            });
        }

        let mut bytes = Vec::with_capacity(HEADER_BYTES + body_bytes);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.extend_from_slice(&[FileKind::Keyring as u8, unlock.number(), 0, 0]);
        bytes.extend_from_slice(&if unlock.number() == PASSPHRASE { stretching.encode() } else { [0; 12] });
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&revision.to_le_bytes());
        bytes.extend_from_slice(salt.as_bytes());
        bytes.extend_from_slice(&(body_bytes as u32).to_le_bytes());
        let body =
            unlock.with_secret(stretching, &salt, |secret| seal_once(secret, PURPOSE, &bytes, contents, entropy))?;
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    fn open(&self) -> Result<(std::sync::Arc<dyn File>, u64, Stamp)> {
        let file = self.environment.vfs.open(&self.path).map_err(|error| self.failed("open", error))?;
        let len_bytes = file.len_bytes().map_err(|error| self.failed("read", error))?;
        if len_bytes < HEADER_BYTES as u64 {
            return Err(self.bit_rot(0, "the file is shorter than its header"));
        }
        let mut stamp = [0; HEADER_BYTES];
        file.read_exact_at(&mut stamp, 0).map_err(|error| self.failed("read", error))?;
        Ok((file, len_bytes, stamp))
    }

    fn decode_header(&self, stamp: &Stamp) -> Result<Header> {
        let u32_at = |offset: usize| u32::from_le_bytes(std::array::from_fn(|index| stamp[offset + index]));
        if stamp[..8] != MAGIC[..] {
            return Err(self.bit_rot(0, "it does not begin like a keyring"));
        }
        if u32_at(96) != crc32fast::hash(&stamp[..96]) {
            return Err(self.bit_rot(0, "checksum of the header"));
        }
        let unknown = |what, number: u32| Error::UnknownVersion { file: self.name(), what, number: number.into() };
        let version = u32_at(8);
        if !(VERSION_OLDEST..=VERSION).contains(&version) {
            return Err(unknown("format version", version));
        }
        if u32_at(12) != 0 {
            return Err(unknown("feature", u32_at(12)));
        }
        if stamp[16] != FileKind::Keyring as u8 {
            return Err(unknown("file kind", stamp[16].into()));
        }
        let unlock = stamp[17];
        if stamp[18..20] != [0, 0] {
            return Err(self.tampered(18, "reserved bytes are in use"));
        }
        let stretching = match unlock {
            // What a file asks for is checked against the limits before any work is done for it.
            PASSPHRASE => Stretching::decode(&std::array::from_fn(|index| stamp[20 + index]))
                .map_err(|_| self.tampered(20, "settings of the passphrase are outside their limits"))?,
            KEY => Stretching::DEFAULT,
            other => return Err(unknown("kind of unlocking", other.into())),
        };
        let body_bytes = u32_at(88) as usize;
        if body_bytes > BODY_BYTES_MAX {
            return Err(self.tampered(88, "length of the body is beyond its limit"));
        }
        Ok(Header {
            version,
            unlock,
            stretching,
            id: KeyringId(std::array::from_fn(|index| stamp[32 + index])),
            revision: u64::from_le_bytes(std::array::from_fn(|index| stamp[48 + index])),
            salt: Salt::from_bytes(std::array::from_fn(|index| stamp[56 + index])),
            body_bytes,
            body_crc: u32_at(92),
        })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.file_name().map(OsString::from).unwrap_or_default();
        name.push(suffix);
        self.path.with_file_name(name)
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    #[cold]
    fn failed(&self, operation: &'static str, error: std::io::Error) -> Error {
        Error::io(operation, self.path.display(), error)
    }

    #[cold]
    fn bit_rot(&self, offset: usize, detail: &'static str) -> Error {
        Error::BitRot { file: self.name(), offset_bytes: offset as u64, detail }
    }

    #[cold]
    fn tampered(&self, offset: usize, detail: &'static str) -> Error {
        Error::Tampered { file: self.name(), offset_bytes: offset as u64, detail }
    }

    #[cold]
    fn wrong_passphrase(&self) -> Error {
        Error::WrongPassphrase { path: self.name() }
    }
}

fn erase(file: &dyn File) -> std::io::Result<()> {
    // Its length is at most that of a keyring, of which there is one in memory anyway.
    let len_bytes = file.len_bytes()?.min((HEADER_BYTES + BODY_BYTES_MAX) as u64);
    file.write_all_at(&vec![0; len_bytes as usize], 0)?;
    file.sync()
}
