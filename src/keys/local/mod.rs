//! [`LocalKms`]: master keys in a keyring of their own, under a passphrase or a key. The embedded provider.
//!
//! ```text
//! unlock.rs    passphrase or 32-byte key
//! keyring.rs   what a keyring holds: keys, versions, aliases, states; what time does to it
//! policy.rs    policies: who may do what
//! grant.rs     grants, and the decision over both
//! contents.rs  the bytes of all this
//! file.rs      their file: sealed, replaced as a whole under a lock
//! manage.rs    what the keyring's holder does: making keys, their states, rotation, import, policies
//! mod.rs       the provider: names to keys, permission, state, wrapping
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
//! # The order of checks
//! As at AWS KMS, a request meets: does the key exist, may the principal, is the key's state right, are the bytes what was wrapped.
//! Each failure has its own reason, and the first one decides. So whoever may not use a key learns that it exists, and
//! nothing about its state. That much is told on purpose: a principal to whom a deleted key were "denied" would lose a
//! permit where every table of the key has to go. Key ids are random; what can be guessed at is whether an alias is taken.
//!
//! # Who decides
//! Principals are told apart, and taken at the caller's word: a keyring has no passwords for them, since whoever can
//! open it could do without. Policies and grants keep tenants apart *within* a program that opened the keyring and says truly for whom it
//! asks; they are no protection from that program.
//!
//! The keyring's file is looked at on each call, so that a key disabled from the command line is refused to a running
//! process from then on. States, policies and grants are enforced by this code, not by mathematics: **whoever puts back an older copy of the
//! keyring's file undoes what was decided since**, deletions and revoked grants included, except in a process that has seen the newer one.

mod contents;
mod file;
mod grant;
mod keyring;
mod manage;
mod policy;
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
use self::grant::{Asked, Basis, decide, denied};
use self::keyring::{Keyring, MasterKeyRecord};
pub use self::manage::{GrantDescription, RotationStatus};
pub use self::policy::{KeyOperation, KeyPolicy, PolicyEffect, PolicyPrincipal, PolicyStatement};
pub use self::unlock::Unlock;
use super::provider::*;
use crate::crypto::{SameProcess, Stretching, open_once, seal_once};
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
/// Cheap to clone; all clones are one keyring. It tells principals apart, and decides by the key's policy and grants. Its own methods act
/// as the keyring's holder, who is the [owner](Principal::Owner); what others ask comes in through [`KeyProvider`].
///
/// # Example
/// ```
/// use strongroom::LocalKms;
/// use strongroom::io::Environment;
/// use strongroom::keys::{CreateGrantRequest, GrantOperation, KeyProvider, Principal};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let kms = LocalKms::in_memory(Environment::os())?;
/// let key = kms.create_key(Some("alias/ratings"), "for the ratings")?;
/// kms.set_rotation_period("alias/ratings", Some(365))?;
///
/// let ada = Principal::Named("ada".to_owned());
/// kms.create_grant(&CreateGrantRequest::new(key.arn, ada, [GrantOperation::Decrypt], Principal::Owner))?;
///
/// kms.schedule_deletion("alias/ratings", 30)?; // refused from now on, and still to be saved
/// kms.cancel_deletion("alias/ratings")?;
/// kms.enable("alias/ratings")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LocalKms(Arc<Shared>);

struct Shared {
    environment: Environment,
    process: SameProcess,
    /// Where the keyring lives, unless it lives in memory alone.
    file: Option<KeyringFile>,
    state: Mutex<State>,
}

struct State {
    keyring: Keyring,
    /// Present only with a file.
    filed: Option<Filed>,
    /// Whether time has brought something that the file does not say yet.
    unwritten: bool,
}

/// What is known about the file that the keyring was read from.
struct Filed {
    unlock: Unlock,
    stretching: Stretching,
    revision: u64,
    /// Of this revision.
    stamp: Stamp,
    /// Not after a failed rewrite, when nobody knows which of two files stands there.
    certain: bool,
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
        let kms = LocalKms::shared(environment, Some(file), keyring, Some(filed));
        // What fell due while nobody looked.
        drop(kms.current()?);
        Ok(kms)
    }

    /// A keyring that lives in memory and is gone with its last clone: for tests and temporary stores.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness.
    pub fn in_memory(environment: Environment) -> Result<LocalKms> {
        let keyring = Keyring::new(environment.clock.wall_ms(), &*environment.entropy)?;
        Ok(LocalKms::shared(environment, None, keyring, None))
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
        let filed = Filed { unlock, stretching, revision: 1, stamp, certain: true };
        Ok(LocalKms::shared(environment, Some(file), keyring, Some(filed)))
    }

    fn shared(environment: Environment, file: Option<KeyringFile>, keyring: Keyring, filed: Option<Filed>) -> LocalKms {
        let state = Mutex::new(State { keyring, filed, unwritten: false });
        LocalKms(Arc::new(Shared { environment, process: SameProcess::new(), file, state }))
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
        let mut state = self.look()?;
        let State { keyring, filed: Some(filed), unwritten } = &mut *state else {
            return Ok(());
        };
        let before = std::mem::replace(&mut filed.unlock, unlock);
        if let Err(error) = filed.store(file, keyring) {
            filed.unlock = before;
            return Err(error);
        }
        *unwritten = false;
        Ok(())
    }

    /// The keyring as it is now: as it stands on disk, and as time has left it.
    fn current(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.look()?;
        if !state.unwritten && !state.keyring.is_rotation_due(self.now_ms()) {
            return Ok(state);
        }
        drop(state);
        // Writes down what fell due. If that is not possible at present, what is over is refused all the same, since `look` sees
        // to that in memory; a rotation waits, since nobody may wrap under a version that could be lost.
        let _ = self.rewrite(|_, _| Ok(()));
        self.look()
    }

    /// Read the file if it is another one than before, and let time do its work in memory.
    fn look(&self) -> Result<MutexGuard<'_, State>> {
        // A forked child has zeros for keys, and must neither wrap with them nor write them to the file.
        self.0.process.check()?;
        let mut state = self.0.state.lock();
        if let Some(file) = &self.0.file {
            state.catch_up(file)?;
        }
        let settled = state.keyring.settle(self.now_ms());
        state.unwritten |= settled;
        Ok(state)
    }

    /// Change the keyring, in memory and on disk, or neither. `change` checks before it changes anything.
    fn rewrite<T>(&self, change: impl FnOnce(&mut Keyring, &Shared) -> Result<T>) -> Result<T> {
        let lock = self.0.file.as_ref().map(KeyringFile::lock).transpose()?;
        let mut state = self.look()?;
        let now_ms = self.now_ms();
        let State { keyring, filed, unwritten } = &mut *state;
        // Whatever happens from here on, the next look at the file decides what the keyring is ...
        if let Some(filed) = filed {
            filed.certain = false;
        }
        let rotated = keyring.rotate_due(now_ms, &*self.0.environment.entropy)?;
        let answer = match change(keyring, &self.0) {
            Ok(answer) => answer,
            Err(error) => {
                // ... unless nothing did: a refusal must not cost the next caller the stretching of a passphrase.
                if let (Some(filed), false) = (filed, rotated) {
                    filed.certain = true;
                }
                return Err(error);
            }
        };
        keyring.written_ms = keyring.written_ms.max(now_ms);
        if let (Some(file), Some(filed)) = (&self.0.file, filed) {
            filed.store(file, keyring)?;
        }
        *unwritten = false;
        drop(state);
        drop(lock);
        Ok(answer)
    }

    fn now_ms(&self) -> u64 {
        self.0.environment.clock.wall_ms()
    }

    fn engine_key(&self, alias: &str, manager: KeyManager, principal: &Principal) -> ProviderResult<KeyDescription> {
        let describe = |keyring: &Keyring, index| {
            permitted(keyring, index, &Asked::new(principal, KeyOperation::DescribeKey))?;
            Ok(manage::description(keyring, &keyring.keys[index]))
        };
        {
            let state = self.current().map_err(refusal)?;
            if let Some(index) = state.keyring.find(alias) {
                return describe(&state.keyring, index);
            }
        }
        // Nobody makes a key that he may not use.
        let asked = Asked::new(principal, KeyOperation::DescribeKey);
        if decide(&KeyPolicy::of(manager), &[], &asked).is_err() {
            return Err(ProviderError::new(ProviderReason::Denied, format!("{principal} may not use {alias}")));
        }
        let made = self.rewrite(|keyring, shared| {
            // Somebody else may have been faster.
            if let Some(index) = keyring.find(alias) {
                return Ok(describe(keyring, index));
            }
            let (now_ms, entropy) = (shared.environment.clock.wall_ms(), &*shared.environment.entropy);
            let index = keyring.add_key(manager, KeyOrigin::Generated, "made by strongroom", now_ms, entropy)?;
            keyring.keys[index].aliases.push(alias.to_owned());
            Ok(describe(keyring, index))
        });
        made.map_err(refusal)?
    }

    fn wrap(
        &self,
        keyring: &Keyring,
        index: usize,
        context: &EncryptionContext,
        plaintext: &DataKey,
    ) -> ProviderResult<Vec<u8>> {
        let key = &keyring.keys[index];
        let (version, secret) = key.current().ok_or_else(|| internal("the key has no version"))?;
        let mut wrapped = Vec::with_capacity(WRAP_HEAD_BYTES);
        wrapped.push(WRAP_FORMAT);
        wrapped.extend_from_slice(&key.id.0);
        wrapped.extend_from_slice(&version.to_le_bytes());
        let bound = [&wrapped[..], &context.canonical()].concat();
        let message = seal_once(secret, WRAP_PURPOSE, &bound, plaintext.expose(), &*self.0.environment.entropy)
            .map_err(refusal)?;
        wrapped.extend_from_slice(&message);
        Ok(wrapped)
    }
}

impl KeyProvider for LocalKms {
    fn describe(&self) -> ProviderDescription {
        ProviderDescription::new("local keyring", true)
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        let state = self.current().map_err(refusal)?;
        let index = find(&state.keyring, &request.key)?;
        permitted(&state.keyring, index, &Asked::new(&request.principal, KeyOperation::DescribeKey))?;
        Ok(manage::description(&state.keyring, &state.keyring.keys[index]))
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        let GenerateDataKeyRequest { key, context, principal, .. } = request;
        let plaintext = DataKey::generate(&*self.0.environment.entropy)
            .map_err(|error| internal(&format!("no randomness: {error}")))?;
        let state = self.current().map_err(refusal)?;
        let index = admitted(&state.keyring, key, &Asked::about(principal, KeyOperation::GenerateDataKey, context))?;
        let ciphertext = self.wrap(&state.keyring, index, context, &plaintext)?;
        Ok(GeneratedDataKey::new(plaintext, ciphertext, arn(&state.keyring, index)))
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        let DecryptRequest { key_arn, ciphertext, context, principal, .. } = request;
        let state = self.current().map_err(refusal)?;
        let index = admitted(&state.keyring, key_arn, &Asked::about(principal, KeyOperation::Decrypt, context))?;
        let plaintext = unwrap(&state.keyring.keys[index], ciphertext, context)?;
        Ok(DecryptedDataKey::new(plaintext, arn(&state.keyring, index)))
    }

    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        let EncryptRequest { key, plaintext, context, principal, .. } = request;
        let state = self.current().map_err(refusal)?;
        let index = admitted(&state.keyring, key, &Asked::about(principal, KeyOperation::Encrypt, context))?;
        let ciphertext = self.wrap(&state.keyring, index, context, plaintext)?;
        Ok(EncryptedDataKey::new(ciphertext, arn(&state.keyring, index)))
    }

    /// Asks both keys whether they may be used so before it opens anything: a right to re-encrypt is none to decrypt.
    fn re_encrypt(&self, request: &ReEncryptRequest) -> ProviderResult<EncryptedDataKey> {
        let ReEncryptRequest {
            source_key_arn, source_context, destination_key, destination_context, principal, ..
        } = request;
        let state = self.current().map_err(refusal)?;
        let from = Asked::about(principal, KeyOperation::ReEncryptFrom, source_context);
        let source = admitted(&state.keyring, source_key_arn, &from)?;
        let to = Asked::about(principal, KeyOperation::ReEncryptTo, destination_context);
        let destination = admitted(&state.keyring, destination_key, &to)?;
        let plaintext = unwrap(&state.keyring.keys[source], &request.ciphertext, source_context)?;
        let ciphertext = self.wrap(&state.keyring, destination, destination_context, &plaintext)?;
        Ok(EncryptedDataKey::new(ciphertext, arn(&state.keyring, destination)))
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.engine_key(MANAGED_ALIAS, KeyManager::Managed, &request.principal)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.engine_key(OWNED_ALIAS, KeyManager::Owned, &request.principal)
    }

    /// A grant holds from when this returns, everywhere: its token is its id, and no request needs it. A second request with the same name and
    /// contents finds the first one's grant and writes nothing, so that it may be made as often as is convenient.
    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        self.grant(request)
    }

    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.end_grant(request, KeyOperation::RetireGrant)
    }

    fn revoke_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.end_grant(request, KeyOperation::RevokeGrant)
    }

    /// The owner alone may ask for it. A key that waits for its deletion already goes on waiting for that.
    fn schedule_key_deletion(&self, request: &ScheduleKeyDeletionRequest) -> ProviderResult<KeyDescription> {
        let refuse = |reason, detail: String| Err(ProviderError::new(reason, detail));
        if request.principal != Principal::Owner {
            return refuse(ProviderReason::Denied, format!("{} may not have a key deleted", request.principal));
        }
        match self.key(&request.key_arn).map_err(refusal)? {
            pending if pending.state == KeyState::PendingDeletion => Ok(pending),
            _ => match self.schedule_deletion(&request.key_arn, request.days) {
                Err(error @ Error::InvalidArgument { .. }) => refuse(ProviderReason::InvalidRequest, error.to_string()),
                outcome => outcome.map_err(refusal),
            },
        }
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
        (keyring, Filed { unlock, stretching, revision, stamp, certain: true })
    }
}

impl State {
    /// Read the file again if it is not the one that was read last.
    fn catch_up(&mut self, file: &KeyringFile) -> Result<()> {
        let Some(filed) = &mut self.filed else {
            return Ok(());
        };
        if filed.certain && filed.stamp == file.stamp()? {
            return Ok(());
        }
        let loaded = file.load(&filed.unlock)?;
        // A revoked key must not come back because somebody put an old file back under a running process; nor because an old one
        // was changed until it had the same age.
        let older = loaded.revision < filed.revision;
        let forked = loaded.revision == filed.revision && loaded.stamp != filed.stamp;
        if loaded.keyring.id != self.keyring.id || older || forked {
            return Err(Error::Tampered {
                file: file.path().display().to_string(),
                offset_bytes: 32,
                detail: "it was replaced by another keyring, or by an older copy of this one",
            });
        }
        filed.revision = loaded.revision;
        filed.stretching = loaded.stretching;
        filed.stamp = loaded.stamp;
        filed.certain = true;
        self.keyring = loaded.keyring;
        self.unwritten = false;
        Ok(())
    }
}

impl Filed {
    /// Replace the file by the next revision.
    fn store(&mut self, file: &KeyringFile, keyring: &Keyring) -> Result<()> {
        let what = "rewrites of a keyring";
        let limit = u64::MAX;
        let revision = self.revision.checked_add(1).ok_or(Error::LimitExceeded { what, limit, actual: limit })?;
        self.certain = false;
        self.stamp = file.store(keyring, revision, &self.unlock, &self.stretching)?;
        self.revision = revision;
        self.certain = true;
        Ok(())
    }
}

fn find(keyring: &Keyring, name: &str) -> ProviderResult<usize> {
    keyring
        .find(name)
        .ok_or_else(|| ProviderError::new(ProviderReason::KeyNotFound, format!("{name} is not in the keyring")))
}

/// On what basis the principal may do what is asked with the key at this position.
fn permitted<'a>(keyring: &'a Keyring, index: usize, asked: &Asked<'_>) -> ProviderResult<Basis<'a>> {
    let key = &keyring.keys[index];
    decide(&key.policy, &key.grants, asked).map_err(|_| denied(key.id, asked))
}

/// The position of the key of this name, if it is there, the principal may do this with it, and it can be used: in this order.
fn admitted(keyring: &Keyring, name: &str, asked: &Asked<'_>) -> ProviderResult<usize> {
    let index = find(keyring, name)?;
    permitted(keyring, index, asked)?;
    usable(&keyring.keys[index])?;
    Ok(index)
}

/// Whether a key's state lets it be used, or why not.
fn usable(key: &MasterKeyRecord) -> ProviderResult<()> {
    let reason = match key.state {
        KeyState::Enabled => return Ok(()),
        KeyState::PendingDeletion => ProviderReason::KeyPendingDeletion,
        KeyState::PendingImport => ProviderReason::KeyPendingImport,
        KeyState::Disabled | KeyState::Unavailable => ProviderReason::KeyDisabled,
    };
    Err(ProviderError::new(reason, format!("key {} is {:?}", key.id, key.state)))
}

fn unwrap(key: &MasterKeyRecord, ciphertext: &[u8], context: &EncryptionContext) -> ProviderResult<DataKey> {
    let invalid = |detail: &str| ProviderError::new(ProviderReason::InvalidCiphertext, detail);
    let (head, message) = ciphertext
        .split_first_chunk::<WRAP_HEAD_BYTES>()
        .filter(|(head, _)| head[0] == WRAP_FORMAT)
        .ok_or_else(|| invalid("these bytes are no wrapped key"))?;
    if head[1..17] != key.id.0 {
        return Err(invalid("it was wrapped under another master key"));
    }
    let version = u32::from_le_bytes(std::array::from_fn(|index| head[17 + index]));
    let secret = key.version(version).ok_or_else(|| invalid("it names a version that the master key never had"))?;
    let bound = [&head[..], &context.canonical()].concat();
    let opened = open_once(secret, WRAP_PURPOSE, &bound, message)
        .map_err(|_| invalid("it was wrapped with another context, or changed"))?;
    DataKey::try_from_slice(&opened)
}

fn arn(keyring: &Keyring, index: usize) -> String {
    keyring.arn(keyring.keys[index].id)
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
        Error::InvalidArgument { .. } => ProviderReason::InvalidRequest,
        Error::LimitExceeded { .. } => ProviderReason::LimitExceeded,
        _ => ProviderReason::Unreachable,
    };
    ProviderError::new(reason, error.to_string())
}
