//! What a keyring holds: master keys, their versions, names and states. Plain data and its encoding.
//!
//! ```text
//! contents   id of the keyring 16, made u64, keys: count varint, then each
//! key        id 16, manager u8, origin u8, state u8, zero u8, made u64, deletion u64 (0: none),
//!            description, aliases: count varint, then each; versions: count varint, then each
//! version    number u32, made u64, state u8 (1: present), zeros 3, secret 32
//! text       length varint, then UTF-8
//! ```
//! All fixed numbers are little-endian, all times milliseconds since 1970. This is what stands *inside* the seal of a keyring file
//! (`file.rs`). A master key is a list of versions from the start: wraps name the version that made them, so that a rotated key still opens
//! what its older versions wrapped. Grants and policies will come with another version of the file's format.

use std::fmt;

use crate::crypto::{Secret, Wiped};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, require};
use crate::io::Entropy;
use crate::keys::provider::KeyState;

/// Longest alias, in bytes.
const ALIAS_BYTES_MAX: usize = 256;
/// Longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 8192;
/// Most keys in one keyring: what it is sealed as has a limit, too, and this stays below it.
const KEYS_MAX: usize = 50_000;

/// The present contents of a keyring.
#[derive(Debug)]
pub(super) struct Keyring {
    pub(super) id: KeyringId,
    pub(super) created_ms: u64,
    pub(super) keys: Vec<MasterKeyRecord>,
}

/// One master key.
#[derive(Debug)]
pub(super) struct MasterKeyRecord {
    pub(super) id: KeyId,
    pub(super) manager: Manager,
    pub(super) state: KeyState,
    pub(super) created_ms: u64,
    pub(super) deletion_ms: Option<u64>,
    pub(super) description: String,
    pub(super) aliases: Vec<String>,
    /// Never empty; the last one wraps, all of them unwrap.
    versions: Vec<Version>,
}

#[derive(Debug)]
struct Version {
    number: u32,
    created_ms: u64,
    secret: Secret,
}

/// Who decides about a key. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Manager {
    /// The user.
    Customer = 1,
    /// The engine, in the user's sight.
    Managed = 2,
    /// The engine, out of the user's sight.
    Owned = 3,
}

/// Where a key's bytes came from. Reaches the disk. 2 is reserved for keys that were imported.
const ORIGIN_GENERATED: u8 = 1;
/// A version whose bytes are there. Reaches the disk. 2 is reserved for imported bytes that were taken away.
const VERSION_PRESENT: u8 = 1;

/// Least bytes of an encoded key: 16 + 4 + 8 + 8, a length, two counts and one version of 48.
const KEY_BYTES_MIN: usize = 87;
/// Bytes of an encoded version: 4 + 8 + 4 + 32.
const VERSION_BYTES: usize = 48;

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
        Ok(Keyring { id: KeyringId::fresh(entropy)?, created_ms, keys: Vec::new() })
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

    /// Add a key with one fresh version, enabled.
    pub(super) fn add_key(
        &mut self,
        manager: Manager,
        description: &str,
        created_ms: u64,
        entropy: &dyn Entropy,
    ) -> Result<&mut MasterKeyRecord> {
        limit("keys in a keyring", self.keys.len() + 1, KEYS_MAX)?;
        limit("bytes of a key's description", description.len(), DESCRIPTION_BYTES_MAX)?;
        let mut id = random_id(entropy)?;
        // The marks of a random UUID (RFC 9562, version 4), so that tools which know UUIDs take it for one.
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        let secret = Secret::generate(entropy).map_err(|error| Error::io("draw", "a master key", error))?;
        self.keys.push(MasterKeyRecord {
            id: KeyId(id),
            manager,
            state: KeyState::Enabled,
            created_ms,
            deletion_ms: None,
            description: description.to_owned(),
            aliases: Vec::new(),
            versions: vec![Version { number: 1, created_ms, secret }],
        });
        let last = self.keys.len() - 1;
        Ok(&mut self.keys[last])
    }

    /// Everything, to be sealed.
    pub(super) fn encode(&self) -> Wiped {
        let mut out = Wiped::with_capacity(256 + self.keys.len() * 256);
        out.put(&self.id.0);
        out.put_u64(self.created_ms);
        out.put_varint(self.keys.len() as u64);
        for key in &self.keys {
            out.put(&key.id.0);
            out.put(&[key.manager as u8, ORIGIN_GENERATED, key.state as u8, 0]);
            out.put_u64(key.created_ms);
            out.put_u64(key.deletion_ms.unwrap_or(0));
            out.put_prefixed(key.description.as_bytes());
            out.put_varint(key.aliases.len() as u64);
            key.aliases.iter().for_each(|alias| out.put_prefixed(alias.as_bytes()));
            out.put_varint(key.versions.len() as u64);
            for version in &key.versions {
                out.put_u32(version.number);
                out.put_u64(version.created_ms);
                out.put(&[VERSION_PRESENT, 0, 0, 0]);
                out.put(version.secret.expose());
            }
        }
        out
    }

    /// What [`encode`](Keyring::encode) wrote.
    pub(super) fn decode(bytes: &[u8]) -> Decoded<Keyring> {
        let mut reader = Reader::new(bytes);
        let id = KeyringId(reader.array()?);
        let created_ms = reader.u64()?;
        let count = reader.count(KEY_BYTES_MIN)?;
        let keys = (0..count).map(|_| decode_key(&mut reader)).collect::<Decoded<Vec<_>>>()?;
        reader.finish()?;
        Ok(Keyring { id, created_ms, keys })
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
}

fn decode_key(reader: &mut Reader<'_>) -> Decoded<MasterKeyRecord> {
    let id = KeyId(reader.array()?);
    let manager = match reader.u8()? {
        1 => Manager::Customer,
        2 => Manager::Managed,
        3 => Manager::Owned,
        number => return Err(unknown("manager of a master key", number)),
    };
    match reader.u8()? {
        ORIGIN_GENERATED => {}
        number => return Err(unknown("origin of a master key", number)),
    }
    let number = reader.u8()?;
    let state = KeyState::from_u8(number).ok_or_else(|| unknown("state of a master key", number))?;
    reader.reserved::<1>()?;
    let created_ms = reader.u64()?;
    let deletion_ms = Some(reader.u64()?).filter(|&ms| ms != 0);
    let description = reader.string(DESCRIPTION_BYTES_MAX)?;
    let aliases = reader.count(1)?;
    let aliases = (0..aliases).map(|_| reader.string(ALIAS_BYTES_MAX)).collect::<Decoded<Vec<_>>>()?;
    let versions = reader.count(VERSION_BYTES)?;
    let versions = (0..versions).map(|_| decode_version(reader)).collect::<Decoded<Vec<_>>>()?;
    require(!versions.is_empty() && versions.is_sorted_by(|one, next| one.number < next.number))?;
    Ok(MasterKeyRecord { id, manager, state, created_ms, deletion_ms, description, aliases, versions })
}

fn decode_version(reader: &mut Reader<'_>) -> Decoded<Version> {
    let number = reader.u32()?;
    let created_ms = reader.u64()?;
    match reader.u8()? {
        VERSION_PRESENT => {}
        number => return Err(unknown("state of a master key's version", number)),
    }
    reader.reserved::<3>()?;
    let bytes = reader.bytes(32)?;
    Ok(Version { number, created_ms, secret: Secret::fill_with(|secret| secret.copy_from_slice(bytes)) })
}

fn unknown(what: &'static str, number: u8) -> Refusal {
    Refusal::Unknown { what, number: number.into() }
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

fn limit(what: &'static str, actual: usize, limit: usize) -> Result<()> {
    if actual > limit {
        return Err(Error::LimitExceeded { what, limit: limit as u64, actual: actual as u64 });
    }
    Ok(())
}
