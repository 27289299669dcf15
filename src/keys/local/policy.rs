//! Key policies: the one document, written by a key's manager, that says who may do what with it.
//!
//! A statement allows or denies some principals some operations, perhaps with some encryption contexts only. One that denies wins over all
//! that allow, here and in grants, so that one statement is enough to be sure; what nothing allows is denied. How policies and grants
//! decide together is in `grant.rs`.
//!
//! A statement with a **constraint** says nothing about operations that have no context (describing, grants): it neither allows nor
//! denies them, as at AWS KMS.
//!
//! Policies of keys that the engine manages are fixed and not stored ([`KeyPolicy::of`]); a customer's can be replaced, but never by one that
//! locks the owner out of replacing it again.

use super::grant::Asked;
use super::keyring::limit;
use crate::error::{Error, Result};
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
    /// [`KeyProvider::retire_grant`] of a grant that is somebody else's: its own parties may, unless it is denied them.
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

    /// The policy that a customer's key is made with: the owner may do everything, and nobody else anything. The engine's own work goes on under
    /// a grant, which the store asks for when a table is created.
    pub fn default_policy() -> KeyPolicy {
        KeyPolicy::new([PolicyStatement::allow([Principal::Owner], KeyOperation::ALL)])
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
                // Whoever creates a table lets the engine look after it.
                PolicyStatement::allow([PolicyPrincipal::Everyone], [KeyOperation::CreateGrant]),
                PolicyStatement::allow(
                    [Principal::Owner, Principal::Service],
                    [KeyOperation::RetireGrant, KeyOperation::RevokeGrant],
                ),
            ]),
            // It is the store's own: whoever has a session may use tables under it, so that the key of a table decides about its users only where
            // somebody chose one.
            KeyManager::Owned => KeyPolicy::new([
                PolicyStatement::allow([PolicyPrincipal::Everyone], KeyOperation::DATA_KEYS),
                PolicyStatement::allow(
                    [Principal::Owner, Principal::Service],
                    [KeyOperation::CreateGrant, KeyOperation::RetireGrant, KeyOperation::RevokeGrant],
                ),
            ]),
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

    pub(super) fn says(&self, request: &Asked<'_>) -> Option<PolicyEffect> {
        let effect =
            |effect| self.statements.iter().any(|statement| statement.effect == effect && statement.applies(request));
        match (effect(PolicyEffect::Deny), effect(PolicyEffect::Allow)) {
            (true, _) => Some(PolicyEffect::Deny),
            (false, true) => Some(PolicyEffect::Allow),
            (false, false) => None,
        }
    }
}

pub(super) fn check_principal(principal: &Principal) -> Result<()> {
    match principal {
        Principal::Owner | Principal::Service => Ok(()),
        Principal::Named(name) => check_name("a principal's name", name),
    }
}

pub(super) fn check_name(what: &'static str, name: &str) -> Result<()> {
    if name.is_empty() {
        return invalid(format!("{what} is empty"));
    }
    limit("bytes of a name", name.len(), NAME_BYTES_MAX)
}

pub(super) fn check_constraint(constraint: Option<&GrantConstraint>) -> Result<()> {
    let bytes = match constraint {
        None => 0,
        Some(GrantConstraint::Equals(context) | GrantConstraint::Contains(context)) => context.canonical().len(),
    };
    limit("bytes of a constraint", bytes, CONSTRAINT_BYTES_MAX)
}

pub(super) fn invalid<T>(detail: String) -> Result<T> {
    Err(Error::InvalidArgument { what: "permission", detail })
}
