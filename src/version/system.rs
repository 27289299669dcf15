//! The system key, and key files against their pins: what is needed before the manifest can be believed, and what it says then.
//!
//! ```text
//! keys/system ──CRC──> wraps ──provider──> system key ──tag──> keys/system ──> CURRENT ──> manifest ──pin──> keys/system, keys/xx/..
//! ```
//! `keys/system` says how to unwrap the key that authenticates it, so it is read in two steps: [`SystemFile::read`] believes its
//! checksums, which is enough for asking a provider and for nothing else; [`SystemFile::unlock`] checks what came back against
//! the commitment and the file against the key. Whether it is the *right version* of the file only the manifest knows: [`check_pin`].
//!
//! Nothing here changes anything, whatever fails.

use crate::crypto::Tag;
use crate::error::{Error, Result};
use crate::format::keyfile::{KEY_FILE_BYTES_MAX, KeyFile, OpenedKeyFile, SystemKeyFile};
use crate::format::manifest::KeyPin;
use crate::format::{FileName, Where};
use crate::io::directory::Directory;
use crate::keys::{KeyBroker, KeySet, Principal};
use crate::types::{FileKind, StoreId, TableId};

/// `keys/system`, read and not believed yet.
#[derive(Debug)]
pub(crate) struct SystemFile {
    name: String,
    file: SystemKeyFile,
}

/// The system key of a store, and the file that it came from. The file is authentic; that it is not an older one is for the
/// manifest to say ([`SystemKey::check_pin`]).
#[derive(Debug)]
pub(crate) struct SystemKey {
    /// The store.
    pub(crate) store: StoreId,
    /// Every generation that is wrapped in the file.
    pub(crate) keys: KeySet,
    /// The file.
    pub(crate) file: OpenedKeyFile,
}

impl SystemFile {
    /// Read the file of the store in `dir`.
    ///
    /// # Errors
    /// [`Error::NotAStore`] if there is neither this file nor a `CURRENT`, [`Error::MissingFile`] if only this file is
    /// missing; if neither copy in it can be read, why the first cannot.
    pub(crate) fn read(dir: &Directory) -> Result<SystemFile> {
        let name = FileName::SystemKey.path();
        let bytes = match dir.read(&name, KEY_FILE_BYTES_MAX) {
            Err(Error::MissingFile { .. }) if dir.metadata(&FileName::Current.path())?.is_none() => {
                return Err(Error::NotAStore { path: dir.root().display().to_string() });
            }
            outcome => outcome?,
        };
        let file = SystemKeyFile::decode_unauthenticated(&bytes, &Where::new(&name, 0));
        // It is erased before its successor takes its name: then that is there under the temporary one.
        let staged = || {
            let name = FileName::SystemKey.temporary_path();
            let bytes = dir.read(&name, KEY_FILE_BYTES_MAX).ok()?;
            let file = SystemKeyFile::decode_unauthenticated(&bytes, &Where::new(&name, 0)).ok()?;
            Some(SystemFile { name, file })
        };
        match file {
            Ok(file) if file.both_copies_good() => Ok(SystemFile { name, file }),
            Ok(file) => Ok(staged().unwrap_or(SystemFile { name, file })),
            Err(error) => staged().ok_or(error),
        }
    }

    /// The store that it says it belongs to, unbelieved: for the [`KeyBroker`] that is about to unlock it. Keys are bound to the store, so
    /// another id makes another key, which the commitment refuses.
    pub(crate) fn store(&self) -> StoreId {
        self.file.header().store
    }

    /// Unwrap the system key as the service principal, and check the file with it. Asks the provider; no lock may be held.
    ///
    /// # Errors
    /// [`Error::KeyUnavailable`] with the provider's reason, [`Error::WrongKey`] if another key came back,
    /// [`Error::Tampered`] if the file is not what was sealed.
    pub(crate) fn unlock(self, broker: &KeyBroker) -> Result<SystemKey> {
        let place = Where::new(&self.name, 0);
        let header = self.file.header();
        let (store, generation) = (header.store, header.generation);
        let record = self.file.unauthenticated();
        if record.table != TableId::SYSTEM {
            return Err(place.tampered("it is a table's key file"));
        }
        let keys = broker.unwrap_all(record, &Principal::Service)?.keys;
        let key =
            keys.generation(generation).ok_or_else(|| place.tampered("it does not hold the key that seals it"))?;
        let file = self.file.authenticate(key, &place)?;
        Ok(SystemKey { store, keys, file })
    }
}

impl SystemKey {
    /// That the file is the one that the manifest pins, or its successor.
    ///
    /// # Errors
    /// [`Error::Tampered`] if it is another.
    pub(crate) fn check_pin(&self, pin: &KeyPin) -> Result<Pinned> {
        check_pin(pin, &self.file, &Where::new(&FileName::SystemKey.path(), 0))
    }
}

/// `keys/system`, checked with keys that are at hand and against its pin.
///
/// # Errors
/// As for [`SystemFile::read`], [`SystemFile::unlock`] and [`check_pin`].
pub(crate) fn read_system_file(dir: &Directory, keys: &KeySet, pin: &KeyPin) -> Result<OpenedKeyFile> {
    read_system_file_at(dir, keys, pin, &FileName::SystemKey.path())
}

/// As [`read_system_file`], of the file with this name: its own or the temporary one.
pub(crate) fn read_system_file_at(dir: &Directory, keys: &KeySet, pin: &KeyPin, name: &str) -> Result<OpenedKeyFile> {
    let bytes = dir.read(name, KEY_FILE_BYTES_MAX)?;
    let place = Where::new(name, 0);
    let file = SystemKeyFile::decode_unauthenticated(&bytes, &place)?
        .authenticate(keys.opening_twin(&bytes, &place)?, &place)?;
    check_pin(pin, &file, &place)?;
    Ok(file)
}

/// How a key file stands to its pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pinned {
    /// It is the one that is pinned.
    Same,
    /// It is the next one: a crash came between the file and the manifest's word of it. To be adopted.
    Next,
    /// It is the next one and still has its temporary name: a crash came after the file before it was erased. To be renamed and adopted.
    Staged,
}

/// A table's key file, checked against its pin.
///
/// A key file is erased before its successor takes its name, so that no older wrap outlives a change. If the file cannot be read, its
/// successor may be what is under the temporary name.
///
/// # Errors
/// [`Error::MissingFile`]; those of [`KeyFile::open`] and [`check_pin`].
pub(crate) fn read_key_file(
    dir: &Directory,
    system: &KeySet,
    table: TableId,
    pin: &KeyPin,
) -> Result<(OpenedKeyFile, Pinned)> {
    read_named_key_file(dir, system, table, pin)
        .or_else(|refusal| read_staged_key_file(dir, system, table, pin).ok_or(refusal))
}

/// As [`read_key_file`], of the file under its own name alone.
pub(crate) fn read_named_key_file(
    dir: &Directory,
    system: &KeySet,
    table: TableId,
    pin: &KeyPin,
) -> Result<(OpenedKeyFile, Pinned)> {
    open_key_file(dir, system, table, pin, &FileName::KeyFile(table).path())
}

/// The successor of the pinned key file under its temporary name, if it is there, whole, and holds every key that is pinned.
pub(crate) fn read_staged_key_file(
    dir: &Directory,
    system: &KeySet,
    table: TableId,
    pin: &KeyPin,
) -> Option<(OpenedKeyFile, Pinned)> {
    match open_key_file(dir, system, table, pin, &FileName::KeyFile(table).temporary_path()) {
        Ok((opened, Pinned::Next)) => Some((opened, Pinned::Staged)),
        _ => None,
    }
}

fn open_key_file(
    dir: &Directory,
    system: &KeySet,
    table: TableId,
    pin: &KeyPin,
    name: &str,
) -> Result<(OpenedKeyFile, Pinned)> {
    let bytes = dir.read(name, KEY_FILE_BYTES_MAX)?;
    let place = Where::new(name, 0);
    dir.meters().opened(FileKind::KeyFile, 1, bytes.len() as u64);
    let opened = KeyFile::open(&bytes, system.opening_twin(&bytes, &place)?, table, &place)?;
    let pinned = check_pin(pin, &opened, &place)?;
    Ok((opened, pinned))
}

/// The pin of a key file with all that it holds.
pub(crate) fn pin_of(record: &KeyFile, tag: Tag) -> KeyPin {
    let generations = record.wraps.iter().map(|wrap| (wrap.generation, wrap.commitment)).collect();
    KeyPin { version: record.version, tag, generations }
}

/// That a key file is the one that is pinned, or the one after it. An older one was put back, to bring back a key that was taken out
/// of it; a much newer one belongs to a later state of the store than the manifest does.
///
/// # Errors
/// [`Error::Tampered`] if it is another.
pub(crate) fn check_pin(pin: &KeyPin, opened: &OpenedKeyFile, place: &Where<'_>) -> Result<Pinned> {
    let record = &*opened.record;
    let pinned = match record.version.checked_sub(pin.version) {
        Some(0) if opened.tag == pin.tag => Pinned::Same,
        Some(0) => return Err(place.tampered("the key file is not the one that the manifest pins")),
        Some(1) => Pinned::Next,
        Some(_) => return Err(place.tampered("the key file is much newer than the manifest")),
        None => return Err(place.tampered("the key file is older than the one that the manifest pins")),
    };
    for (generation, commitment) in &pin.generations {
        match record.wrap(*generation) {
            Some(wrap) if wrap.commitment == *commitment => {}
            Some(_) => return Err(place.tampered("the key file holds another key than the manifest pins")),
            // What is pinned is in use: something in the store is sealed under it.
            None => return Err(place.tampered("the key file lacks a key that the manifest pins")),
        }
    }
    Ok(pinned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Commitment, Suite};
    use crate::format::keyfile::{KeyState, MasterKind, Wrap};
    use crate::format::testing::{Counting, TABLE, system_key};
    use crate::types::Generation;

    fn commitment(generation: u32) -> Commitment {
        Commitment::from_bytes([generation as u8; 32])
    }

    /// A key file of this version that wraps these generations.
    fn file(version: u64, generations: &[u32]) -> OpenedKeyFile {
        let wrap = |&generation: &u32| Wrap {
            generation: Generation(generation),
            key_arn: "arn".to_owned(),
            context: Vec::new(),
            wrapped: vec![1],
            commitment: commitment(generation),
            created_ms: version,
            retired: false,
        };
        let (state, master) = (KeyState::Active, MasterKind::Owned);
        let wraps = generations.iter().map(wrap).collect();
        let record = KeyFile { table: TABLE, version, state, since_ms: 0, master, wraps };
        let (bytes, _) = record.seal(&system_key(), Suite::Aes256Gcm, &Counting::default()).unwrap();
        KeyFile::open(&bytes, &system_key(), TABLE, &Where::new("keys", 0)).unwrap()
    }

    fn pin(file: &OpenedKeyFile, generations: &[u32]) -> KeyPin {
        let generations = generations.iter().map(|&one| (Generation(one), commitment(one))).collect();
        KeyPin { version: file.record.version, tag: file.tag, generations }
    }

    #[test]
    fn a_key_file_counts_if_it_is_the_pinned_one_or_the_next_with_all_keys_that_are_in_use() {
        // An older file would bring back a key that was taken out; a file without a key in use would lose what is sealed under it.
        let pinned = file(5, &[1, 2]);
        let pin = pin(&pinned, &[1, 2]);
        let check = |file: &OpenedKeyFile| check_pin(&pin, file, &Where::new("keys", 0)).ok();
        assert_eq!(check(&pinned), Some(Pinned::Same));
        assert_eq!(check(&file(6, &[1, 2, 3])), Some(Pinned::Next));
        for other in [file(5, &[1, 2, 3]), file(4, &[1, 2]), file(7, &[1, 2, 3]), file(6, &[2, 3]), file(6, &[1])] {
            assert_eq!(check(&other), None, "{other:?}");
        }
        let mut exchanged = pin.clone();
        exchanged.generations[1].1 = commitment(9);
        assert!(check_pin(&exchanged, &pinned, &Where::new("keys", 0)).is_err());
    }
}
