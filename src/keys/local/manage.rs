//! What the keyring's holder does to keys: making them, their states, material, rotation, aliases and policies.
//!
//! Every method acts as the [owner](Principal::Owner). What each does in which state is as at AWS KMS:
//!
//! | | enabled | disabled | pending deletion | pending import |
//! |---|---|---|---|---|
//! | `enable` | as it is | enabled | refused | refused |
//! | `disable` | disabled | as it is | refused | refused |
//! | `schedule_deletion` | pending deletion | pending deletion | refused | pending deletion |
//! | `cancel_deletion` | refused | refused | disabled, or pending import if its bytes are gone | refused |
//! | `rotate`, `set_rotation_period` | done | refused | refused | (imported keys are not rotated) |
//! | `import_material` | new expiry | new expiry | refused | enabled |
//! | `delete_imported_material` | pending import | pending import | bytes go, state stays | as it is |
//! | `add_alias`, `update_alias` to it, `set_description` | done | done | refused | done |
//! | `remove_alias`, `put_policy`, all that only looks | done | done | done | done |
//!
//! The managed key can be looked at and nothing else; the owned key is not even listed.

use super::contents::policy_bytes;
use super::grant::{Asked, GrantRecord};
use super::keyring::*;
use super::policy::*;
use super::{LocalKms, find, permitted, unavailable, usable};
use crate::crypto::Secret;
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::keys::provider::*;

/// Least and most days that a key waits for its deletion.
const DELETION_DAYS: std::ops::RangeInclusive<u32> = 7..=30;

/// A grant, as the key's manager sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GrantDescription {
    /// Its id, by which it can be retired or revoked.
    pub id: String,
    /// The name that it was asked for by.
    pub name: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Who is allowed something.
    pub grantee: Principal,
    /// Who besides the grantee may give it up.
    pub retiring_principal: Option<Principal>,
    /// What is allowed.
    pub operations: Vec<GrantOperation>,
    /// With which encryption contexts; with all, if there is no constraint.
    pub constraint: Option<GrantConstraint>,
}

/// How often a key was rotated, and when it will be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RotationStatus {
    /// Days between two rotations by themselves, if there are any.
    pub period_days: Option<u32>,
    /// When the next one is due, in milliseconds since 1970.
    pub next_ms: Option<u64>,
    /// The version that wraps; 0 while an imported key waits for its bytes.
    pub current_version: u32,
    /// How many versions there are, all of which unwrap.
    pub versions: usize,
    /// How many more rotations can be asked for.
    pub on_demand_left: usize,
}

impl LocalKms {
    /// Most rotations of one key that can be asked for with [`rotate`](LocalKms::rotate).
    pub const ROTATIONS_ON_DEMAND_MAX: usize = ON_DEMAND_MAX;

    /// Make a master key, enabled, and describe it. Give it an alias to find it by.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the alias is malformed, reserved or taken; [`Error::LimitExceeded`] if the keyring is full; as for
    /// [`open`](LocalKms::open) if the file cannot be read or replaced.
    pub fn create_key(&self, alias: Option<&str>, description: &str) -> Result<KeyDescription> {
        self.add_customer_key(alias, description, KeyOrigin::Generated)
    }

    /// Make a master key that waits for [`import_material`](LocalKms::import_material).
    ///
    /// # Errors
    /// As for [`create_key`](LocalKms::create_key).
    pub fn create_key_without_material(&self, alias: Option<&str>, description: &str) -> Result<KeyDescription> {
        self.add_customer_key(alias, description, KeyOrigin::Imported)
    }

    /// Give a key that was made without them its 32 bytes, which `fill` writes in place so that no copy is left on the way. They go at
    /// `expiry_ms` (milliseconds since 1970), if that is given. Once a key has had bytes, only the same ones can be imported again: others
    /// would open nothing of what it wrapped.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`] if there is no such key, if these are other bytes than before
    /// ([`ProviderReason::InvalidRequest`]), if its bytes were generated ([`ProviderReason::Unsupported`]) or it waits for its deletion;
    /// [`Error::InvalidArgument`] if the time has passed; as for [`create_key`](LocalKms::create_key) if the file cannot be replaced.
    pub fn import_material(
        &self,
        key: &str,
        expiry_ms: Option<u64>,
        fill: impl FnOnce(&mut [u8; 32]),
    ) -> Result<KeyDescription> {
        let secret = Secret::fill_with(fill);
        self.rewrite(|keyring, shared| {
            let index = customer(keyring, key)?;
            imported(keyring, index, key)?;
            not_pending_deletion(&keyring.keys[index], key)?;
            let now_ms = shared.environment.clock.wall_ms();
            if expiry_ms.is_some_and(|expiry_ms| expiry_ms <= now_ms) {
                return invalid("expiry", "it is over already".to_owned());
            }
            // 256: a version and a pin.
            keyring.require_room(256)?;
            if !keyring.keys[index].import(secret, expiry_ms, now_ms, &*shared.environment.entropy)? {
                let message = "these are not the bytes that the key had; nothing it wrapped would open with them";
                return Err(refused(key, ProviderReason::InvalidRequest, message));
            }
            Ok(description(keyring, &keyring.keys[index]))
        })
    }

    /// Take a key's imported bytes away: every use is refused until the same bytes are imported again. They are gone from the keyring, but
    /// not from copies of it.
    ///
    /// # Errors
    /// As for [`import_material`](LocalKms::import_material).
    pub fn delete_imported_material(&self, key: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            imported(keyring, index, key)?;
            keyring.keys[index].take_material_away();
            Ok(())
        })
    }

    /// All master keys but the owned one, which is the engine's, in the order in which they were made.
    ///
    /// # Errors
    /// As for [`open`](LocalKms::open) if the file has changed.
    pub fn list_keys(&self) -> Result<Vec<KeyDescription>> {
        let state = self.current()?;
        let listed = state.keyring.keys.iter().filter(|key| key.manager != KeyManager::Owned);
        Ok(listed.map(|key| description(&state.keyring, key)).collect())
    }

    /// The key that an id, an ARN or an alias stands for.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`] if there is none; as for [`open`](LocalKms::open) if the file has changed.
    pub fn key(&self, name: &str) -> Result<KeyDescription> {
        self.inspect(name, |keyring, index| description(keyring, &keyring.keys[index]))
    }

    /// Change what a key is said to be for.
    ///
    /// # Errors
    /// As for [`disable`](LocalKms::disable); [`Error::LimitExceeded`] above 8 KiB.
    pub fn set_description(&self, key: &str, text: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            not_pending_deletion(&keyring.keys[index], key)?;
            check_description(text)?;
            keyring.require_room(text.len() + 10)?;
            text.clone_into(&mut keyring.keys[index].description);
            Ok(())
        })
    }

    /// Let an alias, which no key has yet, stand for a key.
    ///
    /// # Errors
    /// As for [`create_key`](LocalKms::create_key) and [`key`](LocalKms::key).
    pub fn add_alias(&self, key: &str, alias: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            not_pending_deletion(&keyring.keys[index], key)?;
            check_new_alias(keyring, alias)?;
            keyring.require_room(alias.len() + 10)?;
            keyring.keys[index].aliases.push(alias.to_owned());
            Ok(())
        })
    }

    /// Let an alias stand for another key from now on. What was wrapped while it stood for the one before is not concerned: wraps name the
    /// key.
    ///
    /// # Errors
    /// As for [`add_alias`](LocalKms::add_alias), if one of the two keys is not the user's or there is no such alias.
    pub fn update_alias(&self, alias: &str, key: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            check_alias(alias)?;
            let before = customer(keyring, alias)?;
            let after = customer(keyring, key)?;
            not_pending_deletion(&keyring.keys[after], key)?;
            keyring.keys[before].aliases.retain(|other| other != alias);
            keyring.keys[after].aliases.push(alias.to_owned());
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
        self.set_state(key, KeyState::Enabled)
    }

    /// Refuse every use of a key until it is enabled again. Stores notice it when their permission ends, within five minutes.
    ///
    /// # Errors
    /// As for [`key`](LocalKms::key); [`Error::InvalidArgument`] for a key of the engine's; [`Error::MasterKeyUnavailable`] with the state as the
    /// reason, if it waits for its deletion or its bytes.
    pub fn disable(&self, key: &str) -> Result<()> {
        self.set_state(key, KeyState::Disabled)
    }

    /// Refuse every use of a key from now on, and erase it from the keyring in so many days, 7 to 30: its bytes, aliases, grants and
    /// policy. Until then, [`cancel_deletion`](LocalKms::cancel_deletion) saves it. **After that, whatever is under it is lost for good**, except with an
    /// older copy of the keyring.
    ///
    /// The days are counted in wall time, from now or from the latest time that the keyring was written at, whichever is later: a clock that
    /// is behind makes it wait longer. A clock that is ahead by the whole waiting time deletes at once.
    ///
    /// # Errors
    /// As for [`disable`](LocalKms::disable); [`Error::InvalidArgument`] for other numbers of days.
    pub fn schedule_deletion(&self, key: &str, days: u32) -> Result<KeyDescription> {
        if !DELETION_DAYS.contains(&days) {
            return invalid("days until deletion", format!("{days}, and it has to be 7 to 30"));
        }
        self.rewrite(|keyring, shared| {
            let index = customer(keyring, key)?;
            not_pending_deletion(&keyring.keys[index], key)?;
            let deletion_ms = keyring.deletion_time(shared.environment.clock.wall_ms(), days);
            let record = &mut keyring.keys[index];
            record.state = KeyState::PendingDeletion;
            record.deletion_ms = Some(deletion_ms);
            Ok(description(keyring, &keyring.keys[index]))
        })
    }

    /// Call a deletion off. The key stays disabled until it is enabled.
    ///
    /// # Errors
    /// As for [`disable`](LocalKms::disable); [`Error::MasterKeyUnavailable`] with [`ProviderReason::InvalidRequest`] if it does not
    /// wait for its deletion.
    pub fn cancel_deletion(&self, key: &str) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            let record = &mut keyring.keys[index];
            if record.state != KeyState::PendingDeletion {
                let message = format!("it is {:?} and does not wait for its deletion", record.state);
                return Err(refused(key, ProviderReason::InvalidRequest, message));
            }
            record.state = record.state_after_cancelling();
            record.deletion_ms = None;
            Ok(())
        })
    }

    /// Give a key new bytes, which wrap from now on; all earlier ones still open what they wrapped. Name, aliases, policy and grants stay. Gives the number
    /// of the new version. This can be asked for [25 times](LocalKms::ROTATIONS_ON_DEMAND_MAX) per key; rotations
    /// [by themselves](LocalKms::set_rotation_period) are not counted.
    ///
    /// # Errors
    /// As for [`disable`](LocalKms::disable), also if the key is disabled; [`ProviderReason::Unsupported`] if its bytes were
    /// imported; [`Error::LimitExceeded`].
    pub fn rotate(&self, key: &str) -> Result<u32> {
        self.rewrite(|keyring, shared| {
            let index = customer(keyring, key)?;
            rotatable(keyring, index, key)?;
            let rotations = keyring.keys[index].rotations_on_demand();
            limit("rotations of a master key on demand", rotations + 1, ON_DEMAND_MAX)?;
            let now_ms = shared.environment.clock.wall_ms();
            keyring.rotate(index, now_ms, Cause::OnDemand, &*shared.environment.entropy)
        })
    }

    /// Rotate a key by itself every so many days, 90 to 2560, counted from now; or no more. It is done by whoever uses the keyring next when the time has
    /// come; a disabled key is rotated once it is enabled again, and one that missed several rotations gets one.
    ///
    /// # Errors
    /// As for [`rotate`](LocalKms::rotate); [`Error::InvalidArgument`] for other numbers of days.
    pub fn set_rotation_period(&self, key: &str, days: Option<u32>) -> Result<()> {
        if let Some(days) = days.filter(|days| !ROTATION_DAYS.contains(days)) {
            return invalid("days between rotations", format!("{days}, and it has to be 90 to 2560"));
        }
        self.rewrite(|keyring, shared| {
            let index = customer(keyring, key)?;
            rotatable(keyring, index, key)?;
            let now_ms = shared.environment.clock.wall_ms();
            if let Material::Generated { rotation } = &mut keyring.keys[index].material {
                *rotation = days.map(|days| Rotation::from(now_ms, days));
            }
            Ok(())
        })
    }

    /// How a key has been rotated, and when it will be.
    ///
    /// # Errors
    /// As for [`key`](LocalKms::key).
    pub fn rotation_status(&self, key: &str) -> Result<RotationStatus> {
        self.inspect(key, |keyring, index| {
            let key = &keyring.keys[index];
            RotationStatus {
                period_days: key.rotation().map(|rotation| rotation.period_days),
                next_ms: key.rotation().map(|rotation| rotation.next_ms),
                current_version: key.current().map_or(0, |(number, _)| number),
                versions: key.versions.len(),
                on_demand_left: match (key.manager, key.origin()) {
                    (KeyManager::Customer, KeyOrigin::Generated) => ON_DEMAND_MAX - key.rotations_on_demand(),
                    _ => 0,
                },
            }
        })
    }

    /// Who may do what with a key, besides its grants.
    ///
    /// # Errors
    /// As for [`key`](LocalKms::key).
    pub fn policy(&self, key: &str) -> Result<KeyPolicy> {
        self.inspect(key, |keyring, index| keyring.keys[index].policy.clone())
    }

    /// Replace a key's policy. Grants are not concerned, except that a statement that denies wins over them.
    ///
    /// # Errors
    /// As for [`disable`](LocalKms::disable), but in every state of the key; [`Error::InvalidArgument`] if a statement is
    /// empty, or if the owner would be locked out; [`Error::LimitExceeded`].
    pub fn put_policy(&self, key: &str, policy: KeyPolicy) -> Result<()> {
        let policy = policy.normalised();
        policy.check()?;
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            keyring.require_room(policy_bytes(&policy))?;
            keyring.keys[index].policy = policy;
            Ok(())
        })
    }

    /// A key's grants, oldest first. They are made and ended through [`KeyProvider`], as whoever may.
    ///
    /// # Errors
    /// As for [`key`](LocalKms::key).
    pub fn list_grants(&self, key: &str) -> Result<Vec<GrantDescription>> {
        self.inspect(key, |keyring, index| keyring.keys[index].grants.iter().map(grant_description).collect())
    }

    fn add_customer_key(&self, alias: Option<&str>, text: &str, origin: KeyOrigin) -> Result<KeyDescription> {
        self.rewrite(|keyring, shared| {
            if let Some(alias) = alias {
                check_new_alias(keyring, alias)?;
            }
            let made_ms = shared.environment.clock.wall_ms();
            let entropy = &*shared.environment.entropy;
            let index = keyring.add_key(KeyManager::Customer, origin, text, made_ms, entropy)?;
            keyring.keys[index].aliases.extend(alias.map(str::to_owned));
            Ok(description(keyring, &keyring.keys[index]))
        })
    }

    fn set_state(&self, key: &str, state: KeyState) -> Result<()> {
        self.rewrite(|keyring, _| {
            let index = customer(keyring, key)?;
            let record = &mut keyring.keys[index];
            match record.state {
                KeyState::Enabled | KeyState::Disabled => record.state = state,
                _ => usable(record).map_err(|source| unavailable(key, source))?,
            }
            Ok(())
        })
    }

    fn inspect<T>(&self, name: &str, look: impl FnOnce(&Keyring, usize) -> T) -> Result<T> {
        let state = self.current()?;
        let index = find(&state.keyring, name).map_err(|source| unavailable(name, source))?;
        Ok(look(&state.keyring, index))
    }
}

/// The position of a key that the user may change.
fn customer(keyring: &Keyring, name: &str) -> Result<usize> {
    let index = find(keyring, name).map_err(|source| unavailable(name, source))?;
    if keyring.keys[index].manager != KeyManager::Customer {
        return invalid("master key", format!("{name} is managed by the engine"));
    }
    let asked = Asked::new(&Principal::Owner, KeyOperation::Manage);
    permitted(keyring, index, &asked).map_err(|source| unavailable(name, source))?;
    Ok(index)
}

fn not_pending_deletion(key: &MasterKeyRecord, name: &str) -> Result<()> {
    match key.state {
        KeyState::PendingDeletion => usable(key).map_err(|source| unavailable(name, source)),
        _ => Ok(()),
    }
}

fn imported(keyring: &Keyring, index: usize, name: &str) -> Result<()> {
    match keyring.keys[index].origin() {
        KeyOrigin::Imported => Ok(()),
        KeyOrigin::Generated => Err(refused(name, ProviderReason::Unsupported, "its bytes were made here")),
    }
}

fn rotatable(keyring: &Keyring, index: usize, name: &str) -> Result<()> {
    let key = &keyring.keys[index];
    if key.origin() == KeyOrigin::Imported {
        return Err(refused(name, ProviderReason::Unsupported, "its bytes were imported, and would have to be again"));
    }
    usable(key).map_err(|source| unavailable(name, source))
}

fn check_new_alias(keyring: &Keyring, alias: &str) -> Result<()> {
    check_alias(alias)?;
    let refuse = |detail: &str| invalid("alias", format!("{alias:?} {detail}"));
    if alias == MANAGED_ALIAS || alias == OWNED_ALIAS || alias.starts_with("alias/aws/") {
        return refuse("is reserved");
    }
    if keyring.find(alias).is_some() {
        return refuse("stands for another key already");
    }
    Ok(())
}

pub(super) fn description(keyring: &Keyring, key: &MasterKeyRecord) -> KeyDescription {
    let mut description = KeyDescription::new(keyring.arn(key.id), key.id.to_string(), key.state);
    description.aliases.clone_from(&key.aliases);
    description.description.clone_from(&key.description);
    description.created_ms = Some(key.created_ms);
    description.deletion_ms = key.deletion_ms;
    description.expiry_ms = key.expiry_ms();
    description.manager = Some(key.manager);
    description.origin = Some(key.origin());
    description
}

fn grant_description(grant: &GrantRecord) -> GrantDescription {
    let GrantRecord { id, created_ms, grantee, retiring_principal, operations, constraint, name } = grant.clone();
    GrantDescription { id: id.to_string(), name, created_ms, grantee, retiring_principal, operations, constraint }
}

fn refused(key: &str, reason: ProviderReason, message: impl Into<String>) -> Error {
    unavailable(key, ProviderError::new(reason, message))
}

fn invalid<T>(what: &'static str, detail: String) -> Result<T> {
    Err(Error::InvalidArgument { what, detail })
}
