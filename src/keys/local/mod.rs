//! [`LocalKms`]: master keys in a keyring of their own, under a passphrase or a key. The embedded provider.
//!
//! ```text
//! unlock.rs    passphrase or 32-byte key
//! keyring.rs   what a keyring holds: keys, versions, aliases, states
//! file.rs      its file: sealed, replaced as a whole under a lock
//! mod.rs       the provider: names to keys, states enforced, wrapping
//! ```
//!
//! A wrapped data key names the key and the version that made it:
//! ```text
//! offset  size  field       meaning
//!      0     1  format      1
//!      1    16  key         id of the master key
//!     17     4  version     of the master key (u32 LE)
//!     21   112  message     one sealed message (`crypto/once.rs`) of 32 bytes
//!                           associated data: the 21 bytes before it, and the canonical encryption context
//! ```
//!
//! The keyring's file is looked at on each call, so that a key disabled from the command line is refused to a running
//! process from then on. The states are enforced by this code, not by mathematics: **whoever puts back an older copy of the keyring's file
//! undoes what was decided since**, except in a process that has seen the newer one.

mod file;
mod keyring;
mod unlock;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use self::file::{KeyringFile, Loaded, Stamp};
use self::keyring::{KeyId, Keyring, Manager, MasterKeyRecord, check_alias};
pub use self::unlock::Unlock;
use super::provider::*;
use crate::crypto::{Stretching, open_once, seal_once};
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::io::Environment;

/// Format of a wrapped data key.
const WRAP_FORMAT: u8 = 1;
/// Format, key id, version: what stands before the sealed message.
const WRAP_HEAD_BYTES: usize = 21;
/// What the seal is for.
const WRAP_PURPOSE: &str = "data key";

/// A key provider whose master keys lie in a keyring: a file outside every store, or memory.
///
/// Cheap to clone; all clones are one keyring. It decides by key alone and does not tell principals apart.
#[derive(Clone)]
pub struct LocalKms(Arc<Shared>);

struct Shared {
    environment: Environment,
    /// Where the keyring lives, unless it lives in memory alone.
    file: Option<KeyringFile>,
    state: Mutex<State>,
}

struct State {
    keyring: Keyring,
    /// Present only with a file.
    filed: Option<Filed>,
}

/// What is known about the file that the keyring was read from.
struct Filed {
    unlock: Unlock,
    stretching: Stretching,
    revision: u64,
    /// `None` after a failed rewrite, when nobody knows which of two files stands there.
    stamp: Option<Stamp>,
}

impl LocalKms {
    /// Create a keyring at `path`, where nothing may be yet.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Io`], or [`Error::InvalidArgument`] for an empty passphrase.
    pub fn create(path: impl AsRef<Path>, unlock: Unlock) -> Result<LocalKms> {
        LocalKms::create_in(Environment::os(), path, unlock)
    }

    /// Open the keyring at `path`.
    ///
    /// # Errors
    /// [`Error::WrongPassphrase`] if `unlock` does not open it, [`Error::BitRot`] or [`Error::Tampered`] if the file is not what was
    /// written, [`Error::Io`] if it cannot be read. The file stays as it is in every case.
    pub fn open(path: impl AsRef<Path>, unlock: Unlock) -> Result<LocalKms> {
        LocalKms::open_in(Environment::os(), path, unlock)
    }

    /// Like [`create`](LocalKms::create), in a world of files, time and randomness of the caller's.
    pub fn create_in(environment: Environment, path: impl AsRef<Path>, unlock: Unlock) -> Result<LocalKms> {
        LocalKms::create_with(environment, path.as_ref(), unlock, Stretching::DEFAULT)
    }

    /// Like [`open`](LocalKms::open), in a world of files, time and randomness of the caller's.
    pub fn open_in(environment: Environment, path: impl AsRef<Path>, unlock: Unlock) -> Result<LocalKms> {
        let file = KeyringFile::new(path.as_ref(), environment.clone())?;
        let loaded = file.load(&unlock)?;
        let (keyring, filed) = loaded.part(unlock);
        Ok(LocalKms::shared(environment, Some(file), State { keyring, filed: Some(filed) }))
    }

    /// A keyring that lives in memory and is gone with its last clone: for tests and temporary stores.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness.
    pub fn in_memory(environment: Environment) -> Result<LocalKms> {
        let keyring = Keyring::new(environment.clock.wall_ms(), &*environment.entropy)?;
        Ok(LocalKms::shared(environment, None, State { keyring, filed: None }))
    }

    fn create_with(environment: Environment, path: &Path, unlock: Unlock, stretching: Stretching) -> Result<LocalKms> {
        let file = KeyringFile::new(path, environment.clone())?;
        unlock.check()?;
        let lock = file.lock()?;
        if file.exists()? {
            return Err(Error::AlreadyExists { path: path.display().to_string() });
        }
        let keyring = Keyring::new(environment.clock.wall_ms(), &*environment.entropy)?;
        let stamp = file.store(&keyring, 1, &unlock, &stretching)?;
        drop(lock);
        let filed = Filed { unlock, stretching, revision: 1, stamp: Some(stamp) };
        Ok(LocalKms::shared(environment, Some(file), State { keyring, filed: Some(filed) }))
    }

    fn shared(environment: Environment, file: Option<KeyringFile>, state: State) -> LocalKms {
        LocalKms(Arc::new(Shared { environment, file, state: Mutex::new(state) }))
    }

    /// Make a master key, enabled, and describe it. Give it an alias to find it by.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the alias is malformed, reserved or taken; as for [`open`](LocalKms::open) if the file cannot be
    /// read or replaced.
    pub fn create_key(&self, alias: Option<&str>, description: &str) -> Result<KeyDescription> {
        self.rewrite(|keyring, shared| {
            if let Some(alias) = alias {
                check_new_alias(keyring, alias)?;
            }
            let made = shared.environment.clock.wall_ms();
            let key = keyring.add_key(Manager::Customer, description, made, &*shared.environment.entropy)?;
            key.aliases.extend(alias.map(str::to_owned));
            let id = key.id;
            described(keyring, id)
        })
    }

    /// All master keys but the owned one, which is the engine's, in the order in which they were made.
    ///
    /// # Errors
    /// As for [`open`](LocalKms::open) if the file has changed.
    pub fn list_keys(&self) -> Result<Vec<KeyDescription>> {
        let state = self.current()?;
        let listed = state.keyring.keys.iter().filter(|key| key.manager != Manager::Owned);
        Ok(listed.map(|key| description(&state.keyring, key)).collect())
    }

    /// The key that an id, an ARN or an alias stands for.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`] if there is none; as for [`open`](LocalKms::open) if the file has changed.
    pub fn key(&self, name: &str) -> Result<KeyDescription> {
        let state = self.current()?;
        let index = find(&state.keyring, name).map_err(|error| unavailable(name, error))?;
        Ok(description(&state.keyring, &state.keyring.keys[index]))
    }

    /// Let an alias, which no key has yet, stand for a key.
    ///
    /// # Errors
    /// As for [`create_key`](LocalKms::create_key) and [`key`](LocalKms::key).
    pub fn add_alias(&self, key: &str, alias: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            check_new_alias(keyring, alias)?;
            keyring.keys[index].aliases.push(alias.to_owned());
            Ok(())
        })
    }

    /// Let an alias stand for nothing any more. What was wrapped while it stood for a key is not concerned: wraps name the key.
    ///
    /// # Errors
    /// As for [`key`](LocalKms::key).
    pub fn remove_alias(&self, alias: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            check_alias(alias)?;
            let index = customer(keyring, alias)?;
            keyring.keys[index].aliases.retain(|other| other != alias);
            Ok(())
        })
    }

    /// Let a disabled key be used again.
    ///
    /// # Errors
    /// As for [`disable`](LocalKms::disable).
    pub fn enable(&self, key: &str) -> Result<()> {
        self.set_state(key, KeyState::Disabled, KeyState::Enabled)
    }

    /// Refuse every use of a key until it is enabled again. Stores notice it when their permission ends, within five minutes.
    ///
    /// # Errors
    /// As for [`key`](LocalKms::key); [`Error::InvalidArgument`] for a key of the engine's.
    pub fn disable(&self, key: &str) -> Result<()> {
        self.set_state(key, KeyState::Enabled, KeyState::Disabled)
    }

    /// Seal the keyring under another passphrase or key from now on. Others who have it open can go on only after opening it
    /// again.
    ///
    /// # Errors
    /// As for [`create`](LocalKms::create); [`Error::InvalidArgument`] for a keyring in memory.
    pub fn change_unlock(&self, unlock: Unlock) -> Result<()> {
        unlock.check()?;
        let Some(file) = &self.0.file else {
            return Err(Error::InvalidArgument { what: "keyring", detail: "it lives in memory alone".to_owned() });
        };
        let _lock = file.lock()?;
        let mut state = self.current()?;
        let State { keyring, filed: Some(filed) } = &mut *state else {
            return Ok(());
        };
        let revision = next(filed.revision)?;
        filed.stamp = None;
        filed.stamp = Some(file.store(keyring, revision, &unlock, &filed.stretching)?);
        filed.revision = revision;
        filed.unlock = unlock;
        Ok(())
    }

    fn set_state(&self, name: &str, from: KeyState, to: KeyState) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, name)?;
            let key = &mut keyring.keys[index];
            if key.state != from && key.state != to {
                let reason = state_refusal(key).map_or(ProviderReason::InvalidRequest, |error| error.reason);
                return Err(unavailable(name, ProviderError::new(reason, format!("it is {:?}", key.state))));
            }
            key.state = to;
            Ok(())
        })
    }

    /// The keyring as it stands on disk now.
    fn current(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.0.state.lock();
        if let Some(file) = &self.0.file {
            state.catch_up(file)?;
        }
        Ok(state)
    }

    /// Change the keyring, in memory and on disk, or neither. `change` checks before it changes anything.
    fn rewrite<T>(&self, change: impl FnOnce(&mut Keyring, &Shared) -> Result<T>) -> Result<T> {
        let lock = self.0.file.as_ref().map(KeyringFile::lock).transpose()?;
        let mut state = self.current()?;
        let State { keyring, filed } = &mut *state;
        if let Some(filed) = filed {
            // Whatever happens from here on, the next look at the file decides what the keyring is.
            filed.stamp = None;
        }
        let answer = change(keyring, &self.0)?;
        if let (Some(file), Some(filed)) = (&self.0.file, filed) {
            let revision = next(filed.revision)?;
            filed.stamp = Some(file.store(keyring, revision, &filed.unlock, &filed.stretching)?);
            filed.revision = revision;
        }
        drop(state);
        drop(lock);
        Ok(answer)
    }

    fn engine_key(&self, alias: &str, manager: Manager) -> Result<KeyDescription> {
        {
            let state = self.current()?;
            if let Some(index) = state.keyring.find(alias) {
                return Ok(description(&state.keyring, &state.keyring.keys[index]));
            }
        }
        self.rewrite(|keyring, shared| {
            // Somebody else may have been faster.
            if let Some(index) = keyring.find(alias) {
                return Ok(description(keyring, &keyring.keys[index]));
            }
            let made = shared.environment.clock.wall_ms();
            let key = keyring.add_key(manager, "made by strongroom", made, &*shared.environment.entropy)?;
            key.aliases.push(alias.to_owned());
            let id = key.id;
            described(keyring, id)
        })
    }

    fn wrap(&self, key: &str, context: &EncryptionContext, plaintext: &DataKey) -> ProviderResult<(Vec<u8>, String)> {
        let state = self.current().map_err(refusal)?;
        let key = usable(&state.keyring, key)?;
        let (version, secret) = key.current().ok_or_else(|| internal("the key has no version"))?;
        let mut wrapped = Vec::with_capacity(WRAP_HEAD_BYTES);
        wrapped.push(WRAP_FORMAT);
        wrapped.extend_from_slice(&key.id.0);
        wrapped.extend_from_slice(&version.to_le_bytes());
        let bound = [&wrapped[..], &context.canonical()].concat();
        let message = seal_once(secret, WRAP_PURPOSE, &bound, plaintext.expose(), &*self.0.environment.entropy)
            .map_err(refusal)?;
        wrapped.extend_from_slice(&message);
        Ok((wrapped, state.keyring.arn(key.id)))
    }

    fn unwrap(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        let state = self.current().map_err(refusal)?;
        let key = usable(&state.keyring, &request.key_arn)?;
        let invalid = |detail: &str| ProviderError::new(ProviderReason::InvalidCiphertext, detail);
        let (head, message) = request
            .ciphertext
            .split_first_chunk::<WRAP_HEAD_BYTES>()
            .filter(|(head, _)| head[0] == WRAP_FORMAT)
            .ok_or_else(|| invalid("these bytes are no wrapped key"))?;
        if head[1..17] != key.id.0 {
            return Err(invalid("it was wrapped under another master key"));
        }
        let version = u32::from_le_bytes(std::array::from_fn(|index| head[17 + index]));
        let secret = key.version(version).ok_or_else(|| invalid("it names a version that the master key never had"))?;
        let bound = [&head[..], &request.context.canonical()].concat();
        let opened = open_once(secret, WRAP_PURPOSE, &bound, message)
            .map_err(|_| invalid("it was wrapped with another context, or changed"))?;
        Ok(DecryptedDataKey::new(DataKey::try_from_slice(&opened)?, state.keyring.arn(key.id)))
    }
}

impl KeyProvider for LocalKms {
    fn describe(&self) -> ProviderDescription {
        ProviderDescription::new("local keyring", false)
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        admit(&request.principal)?;
        let state = self.current().map_err(refusal)?;
        let index = find(&state.keyring, &request.key)?;
        Ok(description(&state.keyring, &state.keyring.keys[index]))
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        admit(&request.principal)?;
        let plaintext = DataKey::generate(&*self.0.environment.entropy)
            .map_err(|error| internal(&format!("no randomness: {error}")))?;
        let (ciphertext, key_arn) = self.wrap(&request.key, &request.context, &plaintext)?;
        Ok(GeneratedDataKey::new(plaintext, ciphertext, key_arn))
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        admit(&request.principal)?;
        self.unwrap(request)
    }

    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        admit(&request.principal)?;
        let (ciphertext, key_arn) = self.wrap(&request.key, &request.context, &request.plaintext)?;
        Ok(EncryptedDataKey::new(ciphertext, key_arn))
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        admit(&request.principal)?;
        self.engine_key(MANAGED_ALIAS, Manager::Managed).map_err(refusal)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        admit(&request.principal)?;
        self.engine_key(OWNED_ALIAS, Manager::Owned).map_err(refusal)
    }

    fn keyring_path(&self) -> Option<&Path> {
        self.0.file.as_ref().map(KeyringFile::path)
    }
}

impl fmt::Debug for LocalKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKms").field("path", &self.0.file.as_ref().map(KeyringFile::path)).finish_non_exhaustive()
    }
}

impl Loaded {
    fn part(self, unlock: Unlock) -> (Keyring, Filed) {
        let Loaded { keyring, revision, stretching, stamp } = self;
        (keyring, Filed { unlock, stretching, revision, stamp: Some(stamp) })
    }
}

impl State {
    /// Read the file again if it is not the one that was read last.
    fn catch_up(&mut self, file: &KeyringFile) -> Result<()> {
        let Some(filed) = &mut self.filed else {
            return Ok(());
        };
        if filed.stamp == Some(file.stamp()?) {
            return Ok(());
        }
        let loaded = file.load(&filed.unlock)?;
        // A revoked key must not come back because somebody put an old file back under a running process.
        if loaded.keyring.id != self.keyring.id || loaded.revision < filed.revision {
            return Err(Error::Tampered {
                file: file.path().display().to_string(),
                offset_bytes: 32,
                detail: "it was replaced by another keyring, or by an older copy of this one",
            });
        }
        filed.revision = loaded.revision;
        filed.stretching = loaded.stretching;
        filed.stamp = Some(loaded.stamp);
        self.keyring = loaded.keyring;
        Ok(())
    }
}

fn next(revision: u64) -> Result<u64> {
    let what = "rewrites of a keyring";
    revision.checked_add(1).ok_or(Error::LimitExceeded { what, limit: u64::MAX, actual: u64::MAX })
}

/// The owner and the engine are the same to a keyring; it knows nobody else.
fn admit(principal: &Principal) -> ProviderResult<()> {
    match principal {
        Principal::Owner | Principal::Service => Ok(()),
        other => Err(ProviderError::new(
            ProviderReason::PrincipalUnsupported,
            format!("a local keyring does not tell principals apart, and {other} is not its owner"),
        )),
    }
}

fn find(keyring: &Keyring, name: &str) -> ProviderResult<usize> {
    keyring
        .find(name)
        .ok_or_else(|| ProviderError::new(ProviderReason::KeyNotFound, format!("{name} is not in the keyring")))
}

fn usable<'a>(keyring: &'a Keyring, name: &str) -> ProviderResult<&'a MasterKeyRecord> {
    let key = &keyring.keys[find(keyring, name)?];
    match state_refusal(key) {
        None => Ok(key),
        Some(error) => Err(error),
    }
}

/// Why a key cannot be used, if it cannot.
fn state_refusal(key: &MasterKeyRecord) -> Option<ProviderError> {
    let reason = match key.state {
        KeyState::Enabled => return None,
        KeyState::PendingDeletion => ProviderReason::KeyPendingDeletion,
        KeyState::Disabled | KeyState::PendingImport | KeyState::Unavailable => ProviderReason::KeyDisabled,
    };
    Some(ProviderError::new(reason, format!("key {} is {:?}", key.id, key.state)))
}

/// The position of a key that the user may change.
fn customer(keyring: &Keyring, name: &str) -> Result<usize> {
    let index = find(keyring, name).map_err(|error| unavailable(name, error))?;
    match keyring.keys[index].manager {
        Manager::Customer => Ok(index),
        Manager::Managed | Manager::Owned => {
            Err(Error::InvalidArgument { what: "master key", detail: format!("{name} is managed by the engine") })
        }
    }
}

fn check_new_alias(keyring: &Keyring, alias: &str) -> Result<()> {
    check_alias(alias)?;
    let refuse = |detail: &str| Err(Error::InvalidArgument { what: "alias", detail: format!("{alias:?} {detail}") });
    if alias == MANAGED_ALIAS || alias == OWNED_ALIAS {
        return refuse("is reserved for the engine");
    }
    if keyring.find(alias).is_some() {
        return refuse("stands for another key already");
    }
    Ok(())
}

fn description(keyring: &Keyring, key: &MasterKeyRecord) -> KeyDescription {
    let mut description = KeyDescription::new(keyring.arn(key.id), key.id.to_string(), key.state);
    description.aliases.clone_from(&key.aliases);
    description.description.clone_from(&key.description);
    description.created_ms = Some(key.created_ms);
    description.deletion_ms = key.deletion_ms;
    description
}

fn described(keyring: &Keyring, id: KeyId) -> Result<KeyDescription> {
    let index = find(keyring, &id.to_string()).map_err(|error| unavailable(&id.to_string(), error))?;
    Ok(description(keyring, &keyring.keys[index]))
}

fn unavailable(key: &str, source: ProviderError) -> Error {
    Error::MasterKeyUnavailable { key: key.to_owned(), source }
}

fn internal(message: &str) -> ProviderError {
    ProviderError::new(ProviderReason::Unreachable, message)
}

/// What the engine is told when the keyring itself does not work. A file that cannot be read at the moment is like a
/// KMS that does not answer: the permissions at hand run out, and nothing is forgotten before that.
fn refusal(error: Error) -> ProviderError {
    let reason = match &error {
        Error::WrongPassphrase { .. } => ProviderReason::BadCredentials,
        Error::MasterKeyUnavailable { source, .. } => return source.clone(),
        _ => ProviderReason::Unreachable,
    };
    ProviderError::new(reason, error.to_string())
}
