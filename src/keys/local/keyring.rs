//! What a keyring holds, and what time does to it. Plain data; its bytes are in `contents.rs`.
//!
//! ```text
//!                    disable                       schedule_deletion            its time has come
//!        Enabled <-------------> Disabled   any state ---------------> Pending ------------------> gone: secrets, aliases,
//!           ▲        enable         ▲       of a customer's key        Deletion                    grants, policy
//!  import   │                       └────────────────────────────────────┘
//!  material │  delete_imported_material,          cancel_deletion (PendingImport, if there is no material)
//!           ▼  or it expires
//!      PendingImport
//! ```
//! A master key is a list of versions: wraps name the version that made them, so that a rotated key still opens
//! what its older versions wrapped. Imported keys have one version, or none while they wait for their bytes.
//!
//! **Time.** What falls due (a deletion, the expiry of imported bytes, a rotation) is done by [`settle`](Keyring::settle) and
//! [`rotate_due`](Keyring::rotate_due) when somebody looks at the keyring next, and it counts in wall time, because keyrings outlive
//! processes and machines. A clock that is behind delays a deletion and never hastens it: the waiting time is counted from the latest
//! time that the keyring has ever been written at, or now, whichever is later. A clock that is *ahead* by more than the
//! waiting time would delete at once, and nothing in a file can know better; that is what the week at least, and copies of the keyring, are
//! for. Deleting is the one thing that waits for a whole file to be replaced: what is due is refused from the first look on, and erased from the file
//! as soon as the file can be written.

use std::fmt;

use super::contents::KEYRING_BYTES_MAX;
use super::grant::{GrantId, GrantRecord};
use super::policy::KeyPolicy;
use crate::crypto::{Secret, open_once, seal_once};
use crate::error::{Error, Result};
use crate::io::Entropy;
use crate::keys::provider::{KeyManager, KeyOrigin, KeyState};

/// Longest alias, in bytes.
pub(super) const ALIAS_BYTES_MAX: usize = 256;
/// Longest description, in bytes.
pub(super) const DESCRIPTION_BYTES_MAX: usize = 8192;
/// Most keys in one keyring. What it is sealed as has a limit, too, which long descriptions, policies and grants reach earlier.
const KEYS_MAX: usize = 50_000;
/// Most grants of one key, as at AWS. The keyring's size may be reached earlier.
pub(super) const GRANTS_MAX: usize = 50_000;
/// Most rotations on demand of one key, as at AWS: whoever wants more wants a schedule.
pub(super) const ON_DEMAND_MAX: usize = 25;
/// Least and most days between two rotations by themselves.
pub(super) const ROTATION_DAYS: std::ops::RangeInclusive<u32> = 90..=2560;
/// How often the managed key is rotated, in days.
pub(super) const MANAGED_ROTATION_DAYS: u32 = 365;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// What the pin of imported bytes is sealed for.
const PIN_PURPOSE: &str = "imported master key";

/// The present contents of a keyring.
#[derive(Debug)]
pub(super) struct Keyring {
    pub(super) id: KeyringId,
    pub(super) created_ms: u64,
    /// The latest wall time at which it was written.
    pub(super) written_ms: u64,
    pub(super) keys: Vec<MasterKeyRecord>,
}

/// One master key.
#[derive(Debug)]
pub(super) struct MasterKeyRecord {
    pub(super) id: KeyId,
    pub(super) manager: KeyManager,
    pub(super) state: KeyState,
    pub(super) created_ms: u64,
    /// There if, and only if, the key waits for its deletion.
    pub(super) deletion_ms: Option<u64>,
    pub(super) description: String,
    pub(super) aliases: Vec<String>,
    /// The last one wraps, all of them unwrap. Empty only in an imported key whose bytes are not there.
    pub(super) versions: Vec<Version>,
    pub(super) material: Material,
    pub(super) policy: KeyPolicy,
    pub(super) grants: Vec<GrantRecord>,
}

/// Where a key's bytes come from.
#[derive(Debug)]
pub(super) enum Material {
    /// Drawn here, and drawn anew in a rotation.
    Generated { rotation: Option<Rotation> },
    /// Brought by the user, who can take them away and bring the same again.
    Imported {
        /// A message without content, sealed under the bytes when they first came: only the same bytes open it.
        pin: Option<Vec<u8>>,
        expiry_ms: Option<u64>,
    },
}

/// A rotation that comes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rotation {
    pub(super) period_days: u32,
    pub(super) next_ms: u64,
}

#[derive(Debug)]
pub(super) struct Version {
    pub(super) number: u32,
    pub(super) created_ms: u64,
    pub(super) cause: Cause,
    pub(super) secret: Secret,
}

/// Why there is a version. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Cause {
    /// It came with the key, or was imported.
    First = 0,
    /// Somebody asked for a rotation.
    OnDemand = 1,
    /// It was time.
    Schedule = 2,
}

/// A keyring's identity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyringId(pub(super) [u8; 16]);

/// A master key's identity, shown in the form of a UUID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyId(pub(super) [u8; 16]);

impl KeyringId {
    pub(super) fn fresh(entropy: &dyn Entropy) -> Result<KeyringId> {
        random_id(entropy).map(KeyringId)
    }
}

impl fmt::Display for KeyringId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyringId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn random_id(entropy: &dyn Entropy) -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes).map_err(|error| Error::io("draw", "an identity", error))?;
    Ok(bytes)
}

impl Keyring {
    /// An empty keyring.
    pub(super) fn new(created_ms: u64, entropy: &dyn Entropy) -> Result<Keyring> {
        Ok(Keyring { id: KeyringId::fresh(entropy)?, created_ms, written_ms: created_ms, keys: Vec::new() })
    }

    /// The ARN of one of its keys.
    pub(super) fn arn(&self, key: KeyId) -> String {
        format!("{}key/{key}", self.arn_prefix())
    }

    fn arn_prefix(&self) -> String {
        format!("arn:strongroom:kms:local:{}:", self.id)
    }

    /// The position of the key that an id, an ARN, an alias or an alias' ARN stands for.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let local = name.strip_prefix(&self.arn_prefix()).unwrap_or(name);
        if local.starts_with("alias/") {
            return self.keys.iter().position(|key| key.aliases.iter().any(|alias| alias == local));
        }
        let id = match (local.strip_prefix("key/"), local.len() == name.len()) {
            (Some(id), false) => id,
            // An ARN of something else, or of another keyring.
            (None, false) => return None,
            (_, true) => local,
        };
        self.keys.iter().position(|key| key.id.to_string() == id)
    }

    /// Add a key with the policy of its manager: enabled and with one fresh version, or waiting for its bytes. Gives its position.
    pub(super) fn add_key(
        &mut self,
        manager: KeyManager,
        origin: KeyOrigin,
        description: &str,
        created_ms: u64,
        entropy: &dyn Entropy,
    ) -> Result<usize> {
        limit("keys in a keyring", self.keys.len() + 1, KEYS_MAX)?;
        check_description(description)?;
        // Whatever a new key takes besides its description.
        self.require_room(1024 + description.len())?;
        let mut id = random_id(entropy)?;
        // The marks of a random UUID (RFC 9562, version 4), so that tools which know UUIDs take it for one.
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        let (state, versions, material) = match origin {
            KeyOrigin::Generated => {
                let rotation =
                    (manager == KeyManager::Managed).then(|| Rotation::from(created_ms, MANAGED_ROTATION_DAYS));
                let first = Version { number: 1, created_ms, cause: Cause::First, secret: fresh_secret(entropy)? };
                (KeyState::Enabled, vec![first], Material::Generated { rotation })
            }
            KeyOrigin::Imported => {
                (KeyState::PendingImport, Vec::new(), Material::Imported { pin: None, expiry_ms: None })
            }
        };
        self.keys.push(MasterKeyRecord {
            id: KeyId(id),
            manager,
            state,
            created_ms,
            deletion_ms: None,
            description: description.to_owned(),
            aliases: Vec::new(),
            versions,
            material,
            policy: KeyPolicy::of(manager),
            grants: Vec::new(),
        });
        Ok(self.keys.len() - 1)
    }

    /// Whether this many bytes more can be sealed.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub(super) fn require_room(&self, more_bytes: usize) -> Result<()> {
        limit("bytes of a keyring", self.encoded_bytes() + more_bytes, KEYRING_BYTES_MAX)
    }

    /// Do what time has brought: erase the keys whose deletion is due, and imported bytes that have expired. Whether anything was.
    pub(super) fn settle(&mut self, now_ms: u64) -> bool {
        let keys = self.keys.len();
        self.keys.retain(|key| key.deletion_ms.is_none_or(|deletion_ms| now_ms < deletion_ms));
        let mut changed = self.keys.len() != keys;
        for key in &mut self.keys {
            if key.expiry_ms().is_some_and(|expiry_ms| expiry_ms <= now_ms) {
                key.take_material_away();
                changed = true;
            }
        }
        changed
    }

    /// Whether a key is to be rotated by now.
    pub(super) fn is_rotation_due(&self, now_ms: u64) -> bool {
        self.keys.iter().any(|key| key.is_rotation_due(now_ms))
    }

    /// Rotate what is to be rotated by now, once, however often it was missed. Whether anything was.
    pub(super) fn rotate_due(&mut self, now_ms: u64, entropy: &dyn Entropy) -> Result<bool> {
        let mut changed = false;
        for index in 0..self.keys.len() {
            if self.keys[index].is_rotation_due(now_ms) {
                self.rotate(index, now_ms, Cause::Schedule, entropy)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Give a generated key another version, which wraps from now on. Gives its number.
    pub(super) fn rotate(&mut self, index: usize, now_ms: u64, cause: Cause, entropy: &dyn Entropy) -> Result<u32> {
        self.require_room(super::contents::VERSION_BYTES)?;
        let key = &mut self.keys[index];
        let latest = key.versions.last().map_or(0, |version| version.number);
        let number = latest.checked_add(1).ok_or(Error::LimitExceeded {
            what: "versions of a master key",
            limit: u32::MAX.into(),
            actual: u64::from(u32::MAX) + 1,
        })?;
        let secret = fresh_secret(entropy)?;
        key.versions.push(Version { number, created_ms: now_ms, cause, secret });
        if let (Cause::Schedule, Material::Generated { rotation: Some(rotation) }) = (cause, &mut key.material) {
            *rotation = Rotation::from(now_ms, rotation.period_days);
        }
        Ok(number)
    }

    /// When a key is deleted that has to wait so many days from now on.
    pub(super) fn deletion_time(&self, now_ms: u64, days: u32) -> u64 {
        now_ms.max(self.written_ms).saturating_add(u64::from(days) * DAY_MS)
    }
}

impl Rotation {
    pub(super) fn from(start_ms: u64, period_days: u32) -> Rotation {
        Rotation { period_days, next_ms: start_ms.saturating_add(u64::from(period_days) * DAY_MS) }
    }
}

impl MasterKeyRecord {
    /// The version that wraps.
    pub(super) fn current(&self) -> Option<(u32, &Secret)> {
        self.versions.last().map(|version| (version.number, &version.secret))
    }

    /// A version that may unwrap.
    pub(super) fn version(&self, number: u32) -> Option<&Secret> {
        self.versions.iter().find(|version| version.number == number).map(|version| &version.secret)
    }

    pub(super) fn origin(&self) -> KeyOrigin {
        match self.material {
            Material::Generated { .. } => KeyOrigin::Generated,
            Material::Imported { .. } => KeyOrigin::Imported,
        }
    }

    pub(super) fn expiry_ms(&self) -> Option<u64> {
        match self.material {
            Material::Imported { expiry_ms, .. } => expiry_ms,
            Material::Generated { .. } => None,
        }
    }

    pub(super) fn rotation(&self) -> Option<Rotation> {
        match self.material {
            Material::Generated { rotation } => rotation,
            Material::Imported { .. } => None,
        }
    }

    /// How often it was rotated because somebody asked.
    pub(super) fn rotations_on_demand(&self) -> usize {
        self.versions.iter().filter(|version| version.cause == Cause::OnDemand).count()
    }

    /// Put imported bytes in, unless others were imported before. Whether they were the right ones.
    pub(super) fn import(
        &mut self,
        secret: Secret,
        expiry: Option<u64>,
        now_ms: u64,
        entropy: &dyn Entropy,
    ) -> Result<bool> {
        let Material::Imported { pin, expiry_ms } = &mut self.material else {
            return Ok(false);
        };
        match pin {
            Some(pin) if open_once(&secret, PIN_PURPOSE, &self.id.0, pin).is_err() => return Ok(false),
            Some(_) => {}
            None => *pin = Some(seal_once(&secret, PIN_PURPOSE, &self.id.0, &[], entropy)?),
        }
        *expiry_ms = expiry;
        if self.versions.is_empty() {
            self.versions.push(Version { number: 1, created_ms: now_ms, cause: Cause::First, secret });
        }
        if self.state == KeyState::PendingImport {
            self.state = KeyState::Enabled;
        }
        Ok(true)
    }

    /// Forget imported bytes; the pin stays. A key that waits for its deletion goes on waiting.
    pub(super) fn take_material_away(&mut self) {
        if let Material::Imported { expiry_ms, .. } = &mut self.material {
            *expiry_ms = None;
            self.versions.clear();
            if self.state != KeyState::PendingDeletion {
                self.state = KeyState::PendingImport;
            }
        }
    }

    /// What the key is when its deletion is called off.
    pub(super) fn state_after_cancelling(&self) -> KeyState {
        if self.versions.is_empty() { KeyState::PendingImport } else { KeyState::Disabled }
    }

    fn is_rotation_due(&self, now_ms: u64) -> bool {
        self.state == KeyState::Enabled && self.rotation().is_some_and(|rotation| rotation.next_ms <= now_ms)
    }
}

/// A random id for a grant.
pub(super) fn fresh_grant_id(entropy: &dyn Entropy) -> Result<GrantId> {
    random_id(entropy).map(GrantId)
}

fn fresh_secret(entropy: &dyn Entropy) -> Result<Secret> {
    Secret::generate(entropy).map_err(|error| Error::io("draw", "a master key", error))
}

pub(super) fn check_description(description: &str) -> Result<()> {
    limit("bytes of a key's description", description.len(), DESCRIPTION_BYTES_MAX)
}

/// Check the shape of an alias that a user gives.
pub(super) fn check_alias(alias: &str) -> Result<()> {
    limit("bytes of an alias", alias.len(), ALIAS_BYTES_MAX)?;
    let invalid = |detail: &str| Err(Error::InvalidArgument { what: "alias", detail: format!("{alias:?} {detail}") });
    let Some(name) = alias.strip_prefix("alias/") else {
        return invalid("does not begin with \"alias/\"");
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b":/_-".contains(&byte);
    if name.is_empty() || !name.bytes().all(legal) {
        return invalid("may hold letters, digits and \":/_-\" behind \"alias/\"");
    }
    Ok(())
}

pub(super) fn limit(what: &'static str, actual: usize, limit: usize) -> Result<()> {
    if actual > limit {
        return Err(Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 });
    }
    Ok(())
}
