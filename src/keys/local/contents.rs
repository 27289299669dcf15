//! The bytes of a keyring: what stands *inside* the seal of its file (`file.rs`).
//!
//! ```text
//! contents    id of the keyring 16, made u64, written u64 (latest wall time), keys: count varint, then each
//! key         id 16, manager u8 (1 customer, 2 managed, 3 owned), origin u8 (1 generated, 2 imported), state u8, zero u8,
//!             made u64, deletion u64 (0: none), description, aliases: count varint, then each; versions: count varint, then each;
//!             material, policy (a customer's keys only), grants: count varint, then each
//! version     number u32, made u64, state u8 (1: present), cause u8 (0 first, 1 on demand, 2 schedule), zeros 2, secret 32
//! material    generated: rotation period in days u32, next rotation u64 (both 0: none)
//!             imported: expiry u64 (0: none), pin: length varint (0: never imported), then a sealed message
//! policy      statements: count varint, then each
//! statement   effect u8 (1 allow, 2 deny), operations u32 (bit n - 1: operation n), name, principals: count varint, then each;
//!             constraint
//! principal   kind u8 (1 owner, 2 service, 3 named, 4 everyone), and for a named one its name
//! grant       id 16, made u64, operations u32, grantee: principal, retiring: principal or u8 0, constraint, name
//! constraint  kind u8 (0 none, 1 equals, 2 contains), and for a kind its pairs: count varint, then each name and value
//! text        length varint, then UTF-8; no name: length 0
//! ```
//! All fixed numbers are little-endian, all times milliseconds since 1970. This is version 2, and what is written. **Version 1**, which
//! is still read, lacks *written*, *material*, *policy* and *grants*, and has zeros for *cause*: its keys were generated, never rotated, and made before
//! there were grants, so that their policy lets the engine go on without one.
//!
//! There is one encoding of everything, and nothing is decoded that could not have been encoded: what decodes, encodes to the same bytes.

use super::grant::{GrantId, GrantRecord};
use super::keyring::*;
use super::policy::*;
use crate::crypto::{ONCE_OVERHEAD_BYTES, Secret, Wiped};
use crate::format::codec::{Decoded, Put, Reader, Refusal, require};
use crate::keys::provider::*;

/// The version that is written.
pub(super) const VERSION: u32 = 2;
/// The oldest version that is read.
pub(super) const VERSION_OLDEST: u32 = 1;
/// What can be sealed as one message.
pub(super) const KEYRING_BYTES_MAX: usize = 16 << 20;

/// A version whose bytes are there.
const VERSION_PRESENT: u8 = 1;
/// Least bytes of an encoded key: 16 + 4 + 8 + 8, a length and two counts.
const KEY_BYTES_MIN: usize = 39;
/// Bytes of an encoded version: 4 + 8 + 4 + 32.
pub(super) const VERSION_BYTES: usize = 48;
/// Least bytes of an encoded grant: 16 + 8 + 4, two principals, a constraint and a name.
const GRANT_BYTES_MIN: usize = 32;

impl Keyring {
    /// Everything, to be sealed.
    pub(super) fn encode(&self) -> Wiped {
        // Sized once: growing would wipe and copy secrets for nothing.
        let mut out = Wiped::with_capacity(self.encoded_bytes());
        self.put_into(&mut out);
        out
    }

    /// How many bytes [`encode`](Keyring::encode) gives.
    pub(super) fn encoded_bytes(&self) -> usize {
        let mut count = Count(0);
        self.put_into(&mut count);
        count.0
    }

    fn put_into(&self, out: &mut impl Put) {
        out.put(&self.id.0);
        out.put_u64(self.created_ms);
        out.put_u64(self.written_ms);
        out.put_varint(self.keys.len() as u64);
        self.keys.iter().for_each(|key| put_key(out, key));
    }

    /// What this version, or an older one, of [`encode`](Keyring::encode) wrote.
    pub(super) fn decode(bytes: &[u8], version: u32) -> Decoded<Keyring> {
        let mut reader = Reader::new(bytes);
        let id = KeyringId(reader.array()?);
        let created_ms = reader.u64()?;
        let written_ms = if version == 1 { created_ms } else { reader.u64()? };
        let count = reader.count(KEY_BYTES_MIN)?;
        let keys = (0..count).map(|_| decode_key(&mut reader, version)).collect::<Decoded<Vec<_>>>()?;
        reader.finish()?;
        Ok(Keyring { id, created_ms, written_ms, keys })
    }
}

/// How many bytes a grant takes.
pub(super) fn grant_bytes(grant: &GrantRecord) -> usize {
    let mut count = Count(0);
    put_grant(&mut count, grant);
    count.0
}

/// How many bytes a policy takes.
pub(super) fn policy_bytes(policy: &KeyPolicy) -> usize {
    let mut count = Count(0);
    put_policy(&mut count, policy);
    count.0
}

/// Counts what would be written.
struct Count(usize);

impl Put for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

fn put_key(out: &mut impl Put, key: &MasterKeyRecord) {
    out.put(&key.id.0);
    out.put(&[key.manager as u8, key.origin() as u8, key.state as u8, 0]);
    out.put_u64(key.created_ms);
    out.put_u64(key.deletion_ms.unwrap_or(0));
    out.put_prefixed(key.description.as_bytes());
    out.put_varint(key.aliases.len() as u64);
    key.aliases.iter().for_each(|alias| out.put_prefixed(alias.as_bytes()));
    out.put_varint(key.versions.len() as u64);
    for version in &key.versions {
        out.put_u32(version.number);
        out.put_u64(version.created_ms);
        out.put(&[VERSION_PRESENT, version.cause as u8, 0, 0]);
        out.put(version.secret.expose());
    }
    match &key.material {
        Material::Generated { rotation } => {
            out.put_u32(rotation.map_or(0, |rotation| rotation.period_days));
            out.put_u64(rotation.map_or(0, |rotation| rotation.next_ms));
        }
        Material::Imported { pin, expiry_ms } => {
            out.put_u64(expiry_ms.unwrap_or(0));
            out.put_prefixed(pin.as_deref().unwrap_or(&[]));
        }
    }
    if key.manager == KeyManager::Customer {
        put_policy(out, &key.policy);
    }
    out.put_varint(key.grants.len() as u64);
    key.grants.iter().for_each(|grant| put_grant(out, grant));
}

fn decode_key(reader: &mut Reader<'_>, format: u32) -> Decoded<MasterKeyRecord> {
    let id = KeyId(reader.array()?);
    let manager = match reader.u8()? {
        1 => KeyManager::Customer,
        2 => KeyManager::Managed,
        3 => KeyManager::Owned,
        number => return Err(unknown("manager of a master key", number)),
    };
    let origin = match reader.u8()? {
        1 => KeyOrigin::Generated,
        2 if format > 1 => KeyOrigin::Imported,
        number => return Err(unknown("origin of a master key", number)),
    };
    let number = reader.u8()?;
    let state = KeyState::from_u8(number).ok_or_else(|| unknown("state of a master key", number))?;
    reader.reserved::<1>()?;
    let created_ms = reader.u64()?;
    let deletion_ms = time(reader)?;
    let description = reader.string(DESCRIPTION_BYTES_MAX)?;
    let aliases = reader.count(1)?;
    let aliases = (0..aliases).map(|_| reader.string(ALIAS_BYTES_MAX)).collect::<Decoded<Vec<_>>>()?;
    let versions = reader.count(VERSION_BYTES)?;
    let versions = (0..versions).map(|_| decode_version(reader, format)).collect::<Decoded<Vec<_>>>()?;
    let mut key = MasterKeyRecord {
        id,
        manager,
        state,
        created_ms,
        deletion_ms,
        description,
        aliases,
        versions,
        material: Material::Generated { rotation: None },
        policy: KeyPolicy::of(manager),
        grants: Vec::new(),
    };
    if format == 1 {
        if manager == KeyManager::Customer {
            key.policy = KeyPolicy::before_grants();
        }
        if manager == KeyManager::Managed {
            key.material = Material::Generated { rotation: Some(Rotation::from(created_ms, MANAGED_ROTATION_DAYS)) };
        }
    } else {
        key.material = decode_material(reader, origin)?;
        if manager == KeyManager::Customer {
            key.policy = decode_policy(reader)?;
        }
        let grants = reader.count(GRANT_BYTES_MIN)?;
        require(grants <= GRANTS_MAX)?;
        key.grants = (0..grants).map(|_| decode_grant(reader)).collect::<Decoded<Vec<_>>>()?;
    }
    require(is_sound(&key))?;
    Ok(key)
}

/// Whether state, versions and material fit each other.
fn is_sound(key: &MasterKeyRecord) -> bool {
    let has_material = !key.versions.is_empty();
    let by_state = match key.state {
        KeyState::Enabled | KeyState::Disabled => has_material,
        KeyState::PendingImport => !has_material,
        KeyState::PendingDeletion => true,
        // A keyring does not know why it should be.
        KeyState::Unavailable => false,
    };
    let by_material = match &key.material {
        Material::Generated { rotation } => {
            has_material && rotation.is_none_or(|rotation| ROTATION_DAYS.contains(&rotation.period_days))
        }
        Material::Imported { pin, expiry_ms } => {
            key.versions.len() <= 1 && (has_material || expiry_ms.is_none()) && (!has_material || pin.is_some())
        }
    };
    let by_manager =
        key.manager == KeyManager::Customer || key.state == KeyState::Enabled && key.origin() == KeyOrigin::Generated;
    by_state
        && by_material
        && by_manager
        && key.deletion_ms.is_some() == (key.state == KeyState::PendingDeletion)
        && key.versions.is_sorted_by(|one, next| one.number < next.number)
}

fn decode_version(reader: &mut Reader<'_>, format: u32) -> Decoded<Version> {
    let number = reader.u32()?;
    let created_ms = reader.u64()?;
    match reader.u8()? {
        VERSION_PRESENT => {}
        number => return Err(unknown("state of a master key's version", number)),
    }
    let cause = match reader.u8()? {
        0 => Cause::First,
        1 if format > 1 => Cause::OnDemand,
        2 if format > 1 => Cause::Schedule,
        number => return Err(unknown("cause of a master key's version", number)),
    };
    reader.reserved::<2>()?;
    let bytes = reader.bytes(32)?;
    Ok(Version { number, created_ms, cause, secret: Secret::fill_with(|secret| secret.copy_from_slice(bytes)) })
}

fn decode_material(reader: &mut Reader<'_>, origin: KeyOrigin) -> Decoded<Material> {
    match origin {
        KeyOrigin::Generated => {
            let (period_days, next_ms) = (reader.u32()?, reader.u64()?);
            require((period_days == 0) == (next_ms == 0))?;
            let rotation = (period_days != 0).then_some(Rotation { period_days, next_ms });
            Ok(Material::Generated { rotation })
        }
        KeyOrigin::Imported => {
            let expiry_ms = time(reader)?;
            let pin = reader.prefixed(ONCE_OVERHEAD_BYTES)?;
            require(pin.is_empty() || pin.len() == ONCE_OVERHEAD_BYTES)?;
            Ok(Material::Imported { pin: (!pin.is_empty()).then(|| pin.to_vec()), expiry_ms })
        }
    }
}

fn put_policy(out: &mut impl Put, policy: &KeyPolicy) {
    out.put_varint(policy.statements.len() as u64);
    for statement in &policy.statements {
        out.put_u8(statement.effect as u8);
        out.put_u32(statement.operations.iter().fold(0, |bits, &operation| bits | bit(operation as u8)));
        put_name(out, statement.sid.as_deref());
        out.put_varint(statement.principals.len() as u64);
        for principal in &statement.principals {
            match principal {
                PolicyPrincipal::One(principal) => put_principal(out, Some(principal)),
                PolicyPrincipal::Everyone => out.put_u8(EVERYONE),
            }
        }
        put_constraint(out, statement.constraint.as_ref());
    }
}

fn decode_policy(reader: &mut Reader<'_>) -> Decoded<KeyPolicy> {
    // 1 + 4, a name, a count and a constraint.
    let count = reader.count(8)?;
    require(count <= STATEMENTS_MAX)?;
    let statements = (0..count).map(|_| decode_statement(reader)).collect::<Decoded<Vec<_>>>()?;
    let policy = KeyPolicy { statements };
    require(policy.check().is_ok())?;
    Ok(policy)
}

fn decode_statement(reader: &mut Reader<'_>) -> Decoded<PolicyStatement> {
    let effect = match reader.u8()? {
        1 => PolicyEffect::Allow,
        2 => PolicyEffect::Deny,
        number => return Err(unknown("effect of a policy statement", number)),
    };
    let operations = decode_operations(reader, &KeyOperation::ALL, |operation| operation as u8)?;
    let sid = decode_name(reader)?;
    let count = reader.count(1)?;
    require(count <= STATEMENT_PRINCIPALS_MAX)?;
    let principals = (0..count).map(|_| decode_policy_principal(reader)).collect::<Decoded<Vec<_>>>()?;
    let constraint = decode_constraint(reader)?;
    Ok(PolicyStatement { sid, effect, principals, operations, constraint })
}

fn decode_policy_principal(reader: &mut Reader<'_>) -> Decoded<PolicyPrincipal> {
    if reader.rest().first() == Some(&EVERYONE) {
        reader.u8()?;
        return Ok(PolicyPrincipal::Everyone);
    }
    decode_principal(reader)?.map(PolicyPrincipal::One).ok_or(Refusal::Malformed)
}

fn put_grant(out: &mut impl Put, grant: &GrantRecord) {
    out.put(&grant.id.0);
    out.put_u64(grant.created_ms);
    out.put_u32(grant.operations.iter().fold(0, |bits, &operation| bits | bit(operation as u8)));
    put_principal(out, Some(&grant.grantee));
    put_principal(out, grant.retiring_principal.as_ref());
    put_constraint(out, grant.constraint.as_ref());
    put_name(out, grant.name.as_deref());
}

fn decode_grant(reader: &mut Reader<'_>) -> Decoded<GrantRecord> {
    let id = GrantId(reader.array()?);
    let created_ms = reader.u64()?;
    let operations = decode_operations(reader, &GrantOperation::ALL, |operation| operation as u8)?;
    require(!operations.is_empty())?;
    let grantee = decode_principal(reader)?.ok_or(Refusal::Malformed)?;
    let retiring_principal = decode_principal(reader)?;
    let constraint = decode_constraint(reader)?;
    let name = decode_name(reader)?;
    Ok(GrantRecord { id, created_ms, grantee, retiring_principal, operations, constraint, name })
}

const OWNER: u8 = 1;
const SERVICE: u8 = 2;
const NAMED: u8 = 3;
const EVERYONE: u8 = 4;

fn put_principal(out: &mut impl Put, principal: Option<&Principal>) {
    match principal {
        None => out.put_u8(0),
        Some(Principal::Owner) => out.put_u8(OWNER),
        Some(Principal::Service) => out.put_u8(SERVICE),
        Some(Principal::Named(name)) => {
            out.put_u8(NAMED);
            out.put_prefixed(name.as_bytes());
        }
    }
}

fn decode_principal(reader: &mut Reader<'_>) -> Decoded<Option<Principal>> {
    Ok(Some(match reader.u8()? {
        0 => return Ok(None),
        OWNER => Principal::Owner,
        SERVICE => Principal::Service,
        NAMED => Principal::Named(decode_name(reader)?.ok_or(Refusal::Malformed)?),
        number => return Err(unknown("kind of principal", number)),
    }))
}

fn put_constraint(out: &mut impl Put, constraint: Option<&GrantConstraint>) {
    let (kind, context) = match constraint {
        None => return out.put_u8(0),
        Some(GrantConstraint::Equals(context)) => (1, context),
        Some(GrantConstraint::Contains(context)) => (2, context),
    };
    out.put_u8(kind);
    out.put_varint(context.pairs().len() as u64);
    for (name, value) in context.pairs() {
        out.put_prefixed(name.as_bytes());
        out.put_prefixed(value.as_bytes());
    }
}

fn decode_constraint(reader: &mut Reader<'_>) -> Decoded<Option<GrantConstraint>> {
    let constraint: fn(EncryptionContext) -> GrantConstraint = match reader.u8()? {
        0 => return Ok(None),
        1 => GrantConstraint::Equals,
        2 => GrantConstraint::Contains,
        number => return Err(unknown("kind of constraint", number)),
    };
    let count = reader.count(2)?;
    let pairs = (0..count)
        .map(|_| Ok((reader.string(CONSTRAINT_BYTES_MAX)?, reader.string(CONSTRAINT_BYTES_MAX)?)))
        .collect::<Decoded<Vec<_>>>()?;
    require(pairs.is_sorted_by(|one, next| one.0 < next.0))?;
    let context = EncryptionContext::from_pairs(pairs).map_err(|_| Refusal::Malformed)?;
    require(context.canonical().len() <= CONSTRAINT_BYTES_MAX)?;
    Ok(Some(constraint(context)))
}

fn put_name(out: &mut impl Put, name: Option<&str>) {
    out.put_prefixed(name.unwrap_or("").as_bytes());
}

fn decode_name(reader: &mut Reader<'_>) -> Decoded<Option<String>> {
    Ok(Some(reader.string(NAME_BYTES_MAX)?).filter(|name| !name.is_empty()))
}

fn decode_operations<T: Copy>(reader: &mut Reader<'_>, all: &[T], number: impl Fn(T) -> u8) -> Decoded<Vec<T>> {
    let bits = reader.u32()?;
    let known = all.iter().fold(0, |bits, &operation| bits | bit(number(operation)));
    if bits & !known != 0 {
        return Err(Refusal::Unknown { what: "operation", number: bits.into() });
    }
    Ok(all.iter().copied().filter(|&operation| bits & bit(number(operation)) != 0).collect())
}

fn bit(operation: u8) -> u32 {
    1 << (operation - 1)
}

fn time(reader: &mut Reader<'_>) -> Decoded<Option<u64>> {
    Ok(Some(reader.u64()?).filter(|&ms| ms != 0))
}

fn unknown(what: &'static str, number: u8) -> Refusal {
    Refusal::Unknown { what, number: number.into() }
}
