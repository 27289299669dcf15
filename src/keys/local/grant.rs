//! Grants: single permissions to single principals; and the one decision over policies and grants.
//!
//! ```text
//! request: principal, operation, encryption context
//!    │
//!    ├─ a policy statement denies it? ──────────────────── Denied
//!    ├─ a policy statement allows it? ──────────────────── allowed
//!    ├─ a grant to this principal allows it? ───────────── allowed
//!    └─ nothing says anything ──────────────────────────── Denied
//! ```
//! A policy says who is who; grants come and go with what needs them: an engine asks for one when it begins to use a key, and gives
//! it up when nothing of its is under the key any more.
//!
//! A **constraint** asks something of the encryption context, and leaves operations alone that have none (describing, grants). Whoever
//! creates grants by virtue of a grant can pass on its operations or fewer, under its constraint or a narrower one. Both as at AWS KMS.
//!
//! **What grants cost.** Each one that is made or ended replaces the keyring's file, which grows by a hundred or two bytes per grant. Whoever
//! needs one for each of 10,000 tables should rather ask for one with a constraint that all their contexts fulfil, under a name of its
//! own: asking again finds it, and writes nothing.

use std::fmt;

use super::contents::grant_bytes;
use super::keyring::{GRANTS_MAX, KeyId, Keyring, MasterKeyRecord, fresh_grant_id, limit};
use super::policy::*;
use super::{LocalKms, find, permitted, refusal, unavailable, usable};
use crate::error::{ProviderError, ProviderReason, Result};
use crate::keys::provider::*;

/// What is asked of a key, as far as permission is concerned.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) principal: &'a Principal,
    pub(super) operation: KeyOperation,
    /// For operations that have one.
    pub(super) context: Option<&'a EncryptionContext>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(principal: &'a Principal, operation: KeyOperation) -> Asked<'a> {
        Asked { principal, operation, context: None }
    }

    pub(super) fn about(
        principal: &'a Principal,
        operation: KeyOperation,
        context: &'a EncryptionContext,
    ) -> Asked<'a> {
        Asked { principal, operation, context: Some(context) }
    }
}

/// Where a permission comes from.
pub(super) enum Basis<'a> {
    Policy,
    Grants(Vec<&'a GrantRecord>),
}

/// Why there is none.
pub(super) enum Refused {
    /// A statement denies it.
    Explicitly,
    /// Nothing allows it.
    ForWantOfPermission,
}

/// One permission to one principal.
#[derive(Clone, Debug)]
pub(super) struct GrantRecord {
    pub(super) id: GrantId,
    pub(super) created_ms: u64,
    pub(super) grantee: Principal,
    pub(super) retiring_principal: Option<Principal>,
    /// In order, each once.
    pub(super) operations: Vec<GrantOperation>,
    pub(super) constraint: Option<GrantConstraint>,
    pub(super) name: Option<String>,
}

/// A grant's identity, shown as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GrantId(pub(super) [u8; 16]);

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl GrantRecord {
    /// The grant that is asked for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] and [`Error::LimitExceeded`] if it cannot be meant so.
    pub(super) fn asked_for(request: &CreateGrantRequest, id: GrantId, created_ms: u64) -> Result<GrantRecord> {
        let mut operations = request.operations.clone();
        operations.sort_unstable();
        operations.dedup();
        if operations.is_empty() {
            return invalid("a grant allows at least one operation".to_owned());
        }
        check_principal(&request.grantee)?;
        request.retiring_principal.as_ref().map_or(Ok(()), check_principal)?;
        check_constraint(request.constraint.as_ref())?;
        if let Some(name) = &request.name {
            check_name("a grant's name", name)?;
        }
        Ok(GrantRecord {
            id,
            created_ms,
            grantee: request.grantee.clone(),
            retiring_principal: request.retiring_principal.clone(),
            operations,
            constraint: request.constraint.clone(),
            name: request.name.clone(),
        })
    }

    /// Whether both allow the same to the same.
    pub(super) fn same_contents(&self, other: &GrantRecord) -> bool {
        let contents = |grant: &GrantRecord| {
            let GrantRecord { grantee, retiring_principal, operations, constraint, name, .. } = grant.clone();
            (grantee, retiring_principal, operations, constraint, name)
        };
        contents(self) == contents(other)
    }

    /// Whether this grant allows what is asked.
    fn allows(&self, request: &Asked<'_>) -> bool {
        let in_context = match (&self.constraint, request.context) {
            (Some(constraint), Some(context)) => constraint.permits(context),
            _ => true,
        };
        in_context
            && self.grantee == *request.principal
            && self.operations.iter().any(|&operation| KeyOperation::from(operation) == request.operation)
    }

    /// Whether `child` allows nothing that this grant does not.
    fn covers(&self, child: &GrantRecord) -> bool {
        let narrower = match (&self.constraint, &child.constraint) {
            (None, _) => true,
            (Some(GrantConstraint::Equals(context)), Some(GrantConstraint::Equals(exactly))) => context == exactly,
            (Some(GrantConstraint::Contains(some)), Some(GrantConstraint::Equals(context)))
            | (Some(GrantConstraint::Contains(some)), Some(GrantConstraint::Contains(context))) => {
                context.contains_all(some)
            }
            _ => false,
        };
        narrower && child.operations.iter().all(|operation| self.operations.contains(operation))
    }

    /// Whether this principal may give the grant up without further permission.
    pub(super) fn is_party(&self, principal: &Principal) -> bool {
        self.grantee == *principal || self.retiring_principal.as_ref() == Some(principal)
    }
}

/// Decide about a request, by policy and grants.
pub(super) fn decide<'a>(
    policy: &KeyPolicy,
    grants: &'a [GrantRecord],
    request: &Asked<'_>,
) -> Result<Basis<'a>, Refused> {
    match policy.says(request) {
        Some(PolicyEffect::Deny) => Err(Refused::Explicitly),
        Some(PolicyEffect::Allow) => Ok(Basis::Policy),
        None => {
            let granting: Vec<&GrantRecord> = grants.iter().filter(|grant| grant.allows(request)).collect();
            if granting.is_empty() { Err(Refused::ForWantOfPermission) } else { Ok(Basis::Grants(granting)) }
        }
    }
}

impl Basis<'_> {
    /// Whether who may create grants on this basis may create this one.
    pub(super) fn covers(&self, grant: &GrantRecord) -> bool {
        match self {
            Basis::Policy => true,
            Basis::Grants(grants) => grants.iter().any(|parent| parent.covers(grant)),
        }
    }
}

/// What a principal without permission is told. The key's state is not in it: whoever may not use a key may not know.
pub(super) fn denied(key: KeyId, request: &Asked<'_>) -> ProviderError {
    let Asked { principal, operation, .. } = request;
    ProviderError::new(ProviderReason::Denied, format!("{principal} may not {operation:?} with key {key}"))
}

impl LocalKms {
    /// Make a grant, or find the one that was made by an earlier request of this name.
    pub(super) fn grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        // Found, or refused, without a rewrite.
        if let (_, Some(grant)) = grantable(&self.current().map_err(refusal)?.keyring, request)? {
            return Ok(grant);
        }
        let made = self.rewrite(|keyring, shared| {
            let found = grantable(keyring, request).map_err(|source| unavailable(&request.key, source))?;
            let index = match found {
                // Somebody else was faster.
                (_, Some(grant)) => return Ok(grant),
                (index, None) => index,
            };
            let id = fresh_grant_id(&*shared.environment.entropy)?;
            let grant = GrantRecord::asked_for(request, id, shared.environment.clock.wall_ms())?;
            limit("grants of a master key", keyring.keys[index].grants.len() + 1, GRANTS_MAX)?;
            // 10: the count of grants may take more bytes than before.
            keyring.require_room(grant_bytes(&grant) + 10)?;
            let answer = granted(keyring, &keyring.keys[index], &grant);
            keyring.keys[index].grants.push(grant);
            Ok(answer)
        });
        made.map_err(refusal)
    }

    /// Retire or revoke a grant.
    pub(super) fn end_grant(&self, request: &EndGrantRequest, operation: KeyOperation) -> ProviderResult<()> {
        let asked = Asked::new(&request.principal, operation);
        endable(&self.current().map_err(refusal)?.keyring, request, &asked)?;
        let ended = self.rewrite(|keyring, _| {
            let found = endable(keyring, request, &asked).map_err(|source| unavailable(&request.key_arn, source));
            let (index, position) = found?;
            keyring.keys[index].grants.remove(position);
            Ok(())
        });
        ended.map_err(refusal)
    }
}

/// The position of the key to grant, and the grant if there is one of this name and with these contents; or why it may not be made.
fn grantable(keyring: &Keyring, request: &CreateGrantRequest) -> ProviderResult<(usize, Option<Grant>)> {
    let wanted = GrantRecord::asked_for(request, GrantId([0; 16]), 0).map_err(refusal)?;
    let asked = Asked::new(&request.principal, KeyOperation::CreateGrant);
    let index = find(keyring, &request.key)?;
    let key = &keyring.keys[index];
    if !permitted(keyring, index, &asked)?.covers(&wanted) {
        return Err(denied(key.id, &asked));
    }
    usable(key)?;
    let Some(same_name) = key.grants.iter().find(|grant| grant.name.is_some() && grant.name == wanted.name) else {
        return Ok((index, None));
    };
    if !same_name.same_contents(&wanted) {
        let message = format!("key {} has a grant of that name with other contents", key.id);
        return Err(ProviderError::new(ProviderReason::InvalidRequest, message));
    }
    Ok((index, Some(granted(keyring, key, same_name))))
}

/// The positions of the key and the grant to end, or why it may not be ended.
///
/// To retire a grant that is not there is told so to everybody: its parties, who are the ones to ask, are not known any more, and one that asks
/// again after a crash must learn that it is done. To revoke one is a question of the key, so that comes first.
fn endable(keyring: &Keyring, request: &EndGrantRequest, asked: &Asked<'_>) -> ProviderResult<(usize, usize)> {
    let index = find(keyring, &request.key_arn)?;
    let key = &keyring.keys[index];
    let position = key.grants.iter().position(|grant| grant.id.to_string() == request.grant_id).ok_or_else(|| {
        let message = format!("key {} has no grant {}", key.id, request.grant_id);
        ProviderError::new(ProviderReason::GrantNotFound, message)
    });
    let retiring = asked.operation == KeyOperation::RetireGrant;
    let by_position = match &position {
        Ok(position) => retiring && key.grants[*position].is_party(asked.principal),
        Err(_) => retiring,
    };
    // What a grant says about retiring is about itself, so that here the grants have no say. And whoever manages a key is not to be kept from ending
    // what he allowed.
    match decide(&key.policy, &[], asked) {
        Ok(_) => {}
        Err(Refused::ForWantOfPermission) if by_position || *asked.principal == Principal::Owner => {}
        Err(_) => return Err(denied(key.id, asked)),
    }
    Ok((index, position?))
}

fn granted(keyring: &Keyring, key: &MasterKeyRecord, grant: &GrantRecord) -> Grant {
    Grant::new(grant.id.to_string(), grant.id.to_string(), keyring.arn(key.id))
}
