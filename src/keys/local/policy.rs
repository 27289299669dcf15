//! Who may do what with a key: policies, grants, and the one decision over both.
//!
//! ```text
//! request: principal, operation, encryption context
//!    │
//!    ├─ a policy statement denies it? ──────────────────── Denied
//!    ├─ a policy statement allows it? ──────────────────── allowed
//!    ├─ a grant to this principal allows it? ───────────── allowed
//!    └─ nothing says anything ──────────────────────────── Denied
//! ```
//! A denial wins over everything, so that one statement is enough to be sure; what nobody allowed is denied. A policy is
//! one document that the key's manager writes as a whole; a grant is one permission to one principal, which whoever has it can pass on or give
//! up. So the policy says who is who, and grants come and go with what needs them.
//!
//! **Constraints** ask something of the encryption context. In a policy, a statement with a constraint says nothing about operations that
//! have no context (describing, grants): it neither allows nor denies them. In a grant, the constraint leaves such operations alone; and
//! whoever creates grants by virtue of a grant can pass on its operations or fewer, under its constraint or a narrower one.
//! Both are as at AWS KMS.
//!
//! Policies of keys that the engine manages are fixed and not stored ([`KeyPolicy::of`]); a customer's can be replaced, but never by one that
//! locks the owner out of replacing it again.

use std::fmt;

use super::keyring::{KeyId, limit};
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::keys::provider::*;

/// Most statements in a policy.
pub(super) const STATEMENTS_MAX: usize = 256;
/// Most principals that one statement names.
pub(super) const STATEMENT_PRINCIPALS_MAX: usize = 256;
/// Longest name of a principal, statement or grant, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// Most bytes of a constraint's context, in its canonical encoding.
pub(super) const CONSTRAINT_BYTES_MAX: usize = 4096;

/// Who may do what with a key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct KeyPolicy {
    /// In no particular order: a statement that denies wins over all that allow.
    pub statements: Vec<PolicyStatement>,
}

/// Allows or denies some principals some operations.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PolicyStatement {
    /// What it is for, in its writer's words.
    pub sid: Option<String>,
    /// What it does.
    pub effect: PolicyEffect,
    /// To whom.
    pub principals: Vec<PolicyPrincipal>,
    /// What they may or may not do.
    pub operations: Vec<KeyOperation>,
    /// With which encryption contexts; with any, and without one, if there is no constraint.
    pub constraint: Option<GrantConstraint>,
}

/// What a statement does. Reaches a keyring's bytes: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum PolicyEffect {
    /// It allows.
    Allow = 1,
    /// It denies, whatever else allows.
    Deny = 2,
}

/// Whom a statement is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PolicyPrincipal {
    /// This principal.
    One(Principal),
    /// Every principal.
    Everyone,
}

/// What a policy can allow or deny. Reaches a keyring's bytes: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum KeyOperation {
    /// [`KeyProvider::describe_key`].
    DescribeKey = 1,
    /// [`KeyProvider::generate_data_key`].
    GenerateDataKey = 2,
    /// [`KeyProvider::decrypt`].
    Decrypt = 3,
    /// [`KeyProvider::encrypt`].
    Encrypt = 4,
    /// [`KeyProvider::re_encrypt`], as the key that the wrap is under.
    ReEncryptFrom = 5,
    /// [`KeyProvider::re_encrypt`], as the key to wrap under.
    ReEncryptTo = 6,
    /// [`KeyProvider::create_grant`].
    CreateGrant = 7,
    /// [`KeyProvider::retire_grant`] of a grant that is somebody else's: its own parties always may.
    RetireGrant = 8,
    /// [`KeyProvider::revoke_grant`].
    RevokeGrant = 9,
    /// Everything that [`LocalKms`](super::LocalKms) does to a key: its state, material, rotation, aliases, policy, and the list of its grants. The owner
    /// always may.
    Manage = 10,
}

impl KeyOperation {
    /// All of them, in the order of their numbers.
    pub const ALL: [KeyOperation; 10] = [
        KeyOperation::DescribeKey,
        KeyOperation::GenerateDataKey,
        KeyOperation::Decrypt,
        KeyOperation::Encrypt,
        KeyOperation::ReEncryptFrom,
        KeyOperation::ReEncryptTo,
        KeyOperation::CreateGrant,
        KeyOperation::RetireGrant,
        KeyOperation::RevokeGrant,
        KeyOperation::Manage,
    ];

    /// What wrapping and unwrapping data keys takes.
    pub const DATA_KEYS: [KeyOperation; 6] = [
        KeyOperation::DescribeKey,
        KeyOperation::GenerateDataKey,
        KeyOperation::Decrypt,
        KeyOperation::Encrypt,
        KeyOperation::ReEncryptFrom,
        KeyOperation::ReEncryptTo,
    ];
}

impl From<GrantOperation> for KeyOperation {
    fn from(operation: GrantOperation) -> KeyOperation {
        match operation {
            GrantOperation::DescribeKey => KeyOperation::DescribeKey,
            GrantOperation::GenerateDataKey => KeyOperation::GenerateDataKey,
            GrantOperation::Decrypt => KeyOperation::Decrypt,
            GrantOperation::Encrypt => KeyOperation::Encrypt,
            GrantOperation::ReEncryptFrom => KeyOperation::ReEncryptFrom,
            GrantOperation::ReEncryptTo => KeyOperation::ReEncryptTo,
            GrantOperation::CreateGrant => KeyOperation::CreateGrant,
            GrantOperation::RetireGrant => KeyOperation::RetireGrant,
        }
    }
}

impl From<Principal> for PolicyPrincipal {
    fn from(principal: Principal) -> PolicyPrincipal {
        PolicyPrincipal::One(principal)
    }
}

impl PolicyPrincipal {
    fn is(&self, principal: &Principal) -> bool {
        match self {
            PolicyPrincipal::One(one) => one == principal,
            PolicyPrincipal::Everyone => true,
        }
    }
}

impl PolicyStatement {
    /// A statement that allows these operations.
    pub fn allow(
        principals: impl IntoIterator<Item = impl Into<PolicyPrincipal>>,
        operations: impl IntoIterator<Item = KeyOperation>,
    ) -> PolicyStatement {
        PolicyStatement {
            sid: None,
            effect: PolicyEffect::Allow,
            principals: principals.into_iter().map(Into::into).collect(),
            operations: operations.into_iter().collect(),
            constraint: None,
        }
    }

    /// A statement that denies these operations.
    pub fn deny(
        principals: impl IntoIterator<Item = impl Into<PolicyPrincipal>>,
        operations: impl IntoIterator<Item = KeyOperation>,
    ) -> PolicyStatement {
        PolicyStatement { effect: PolicyEffect::Deny, ..PolicyStatement::allow(principals, operations) }
    }

    /// The same, for some encryption contexts only.
    pub fn with(mut self, constraint: GrantConstraint) -> PolicyStatement {
        self.constraint = Some(constraint);
        self
    }

    /// The same, with words that say what it is for.
    pub fn named(mut self, sid: impl Into<String>) -> PolicyStatement {
        self.sid = Some(sid.into());
        self
    }

    fn applies(&self, request: &Asked<'_>) -> bool {
        let in_context = match (&self.constraint, request.context) {
            (None, _) => true,
            (Some(constraint), Some(context)) => constraint.permits(context),
            (Some(_), None) => false,
        };
        in_context
            && self.operations.contains(&request.operation)
            && self.principals.iter().any(|principal| principal.is(request.principal))
    }
}

impl KeyPolicy {
    /// A policy of these statements.
    pub fn new(statements: impl IntoIterator<Item = PolicyStatement>) -> KeyPolicy {
        KeyPolicy { statements: statements.into_iter().collect() }
    }

    /// The policy that a customer's key is made with.
    pub fn default_policy() -> KeyPolicy {
        KeyPolicy::before_grants()
    }

    /// The policy of keys that were made before there were grants: the engine's own work must go on without one.
    pub(super) fn before_grants() -> KeyPolicy {
        KeyPolicy::new([PolicyStatement::allow([Principal::Owner, Principal::Service], KeyOperation::ALL)])
    }

    /// The policy that a new key of this manager has. Those of the engine's own keys are never changed.
    pub(super) fn of(manager: KeyManager) -> KeyPolicy {
        match manager {
            KeyManager::Customer => KeyPolicy::default_policy(),
            // Everybody's key, in whose state nobody has a say.
            KeyManager::Managed => KeyPolicy::new([
                PolicyStatement::allow([PolicyPrincipal::Everyone], KeyOperation::DATA_KEYS),
                PolicyStatement::allow(
                    [Principal::Owner, Principal::Service],
                    [KeyOperation::CreateGrant, KeyOperation::RetireGrant, KeyOperation::RevokeGrant],
                ),
            ]),
            // Nobody but the engine and who opened the store knows that it is there.
            KeyManager::Owned => KeyPolicy::new([PolicyStatement::allow(
                [Principal::Owner, Principal::Service],
                KeyOperation::ALL.into_iter().filter(|&operation| operation != KeyOperation::Manage),
            )]),
        }
    }

    /// The same policy, with each statement's operations once and in order.
    pub(super) fn normalised(mut self) -> KeyPolicy {
        for statement in &mut self.statements {
            statement.operations.sort_unstable();
            statement.operations.dedup();
        }
        self
    }

    /// Whether a key can have this policy.
    pub(super) fn check(&self) -> Result<()> {
        limit("statements of a policy", self.statements.len(), STATEMENTS_MAX)?;
        for statement in &self.statements {
            statement.sid.as_deref().map_or(Ok(()), |sid| check_name("a statement's name", sid))?;
            limit("principals of a statement", statement.principals.len(), STATEMENT_PRINCIPALS_MAX)?;
            if statement.principals.is_empty() || statement.operations.is_empty() {
                return invalid("a statement names no principal or no operation".to_owned());
            }
            for principal in &statement.principals {
                if let PolicyPrincipal::One(principal) = principal {
                    check_principal(principal)?;
                }
            }
            check_constraint(statement.constraint.as_ref())?;
        }
        if !self.lets_the_owner_manage() {
            return invalid("it would lock the owner out: the owner must be allowed Manage".to_owned());
        }
        Ok(())
    }

    pub(super) fn lets_the_owner_manage(&self) -> bool {
        let request = Asked { principal: &Principal::Owner, operation: KeyOperation::Manage, context: None };
        self.says(&request) == Some(PolicyEffect::Allow)
    }

    fn says(&self, request: &Asked<'_>) -> Option<PolicyEffect> {
        let effect =
            |effect| self.statements.iter().any(|statement| statement.effect == effect && statement.applies(request));
        match (effect(PolicyEffect::Deny), effect(PolicyEffect::Allow)) {
            (true, _) => Some(PolicyEffect::Deny),
            (false, true) => Some(PolicyEffect::Allow),
            (false, false) => None,
        }
    }
}

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

fn check_principal(principal: &Principal) -> Result<()> {
    match principal {
        Principal::Owner | Principal::Service => Ok(()),
        Principal::Named(name) => check_name("a principal's name", name),
    }
}

fn check_name(what: &'static str, name: &str) -> Result<()> {
    if name.is_empty() {
        return invalid(format!("{what} is empty"));
    }
    limit("bytes of a name", name.len(), NAME_BYTES_MAX)
}

fn check_constraint(constraint: Option<&GrantConstraint>) -> Result<()> {
    let bytes = match constraint {
        None => 0,
        Some(GrantConstraint::Equals(context) | GrantConstraint::Contains(context)) => context.canonical().len(),
    };
    limit("bytes of a constraint", bytes, CONSTRAINT_BYTES_MAX)
}

fn invalid<T>(detail: String) -> Result<T> {
    Err(Error::InvalidArgument { what: "permission", detail })
}
