//! What every key provider answers: one table for all of them.
//!
//! A [`Row`] says: a master key in this situation, this principal, this operation → this answer. [`check`] runs a provider through all
//! rows. What only the provider's owner can bring about (disabling a key, a policy) comes in as the closures of a [`Provider`]; a
//! situation that a provider does not know is skipped, and reported as skipped, so that a test can say what it
//! expects to have been left out.
//!
//! The order of checks is in the table: a key that does not exist before a principal who may not, that before the key's
//! state, that before the wrapped bytes. A provider that mixed them up would make the engine do the wrong thing: end one principal's
//! permit where all tables of a key have to go, or cry tampering where a key is only disabled.
//!
//! `LocalKms` satisfies every row to the reason (`tests/it/kms.rs`). Others may be held to the class of the reason alone, which is what
//! the engine acts on.
#![allow(dead_code, reason = "every provider's test uses the part that it can express")]

use strongroom::error::ProviderReason;
use strongroom::keys::{
    CreateGrantRequest, DataKey, DecryptRequest, DescribeKeyRequest, EncryptRequest, EncryptionContext,
    EndGrantRequest, GenerateDataKeyRequest, Grant, GrantConstraint, GrantOperation, KeyProvider, Principal,
    ProviderResult, ReEncryptRequest,
};

/// The provider under test, and what its owner can do with it.
pub struct Provider<'a> {
    pub provider: &'a dyn KeyProvider,
    /// Make an enabled key that the owner may use and nobody else, for a situation that it will come into, and give its ARN. (Only an imported
    /// key can lose its bytes.)
    pub new_key: &'a dyn Fn(Situation) -> String,
    /// Bring a key that `new_key` made into a situation. False if the provider knows no such thing.
    pub arrange: &'a dyn Fn(&str, Situation) -> bool,
    /// Compare reasons, not only classes.
    pub exact: bool,
}

/// What has happened to the key since a data key was wrapped under it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Situation {
    Enabled,
    Disabled,
    /// Disabled, and enabled again.
    EnabledAgain,
    /// It waits for its deletion.
    PendingDeletion,
    /// Its deletion was called off, which leaves it disabled.
    DeletionCancelled,
    /// Its deletion time has come, or it was destroyed.
    Deleted,
    /// It was imported, and its bytes were taken away.
    MaterialTakenAway,
    /// Its bytes were taken away, and imported again.
    MaterialBack,
    /// It has got new bytes; the old ones are kept.
    Rotated,
    /// Ada has a grant for [`GrantOperation::Decrypt`] with any context.
    AdaMayDecrypt,
    /// Ada has a grant for all data-key operations, with contexts that contain [`TABLE`] alone.
    AdaMayUseTable,
    /// Ada has a grant for all data-key operations, with exactly the context [`TABLE`] alone.
    AdaMayUseExactly,
    /// Ada had a grant for everything, and has given it up.
    AdaRetired,
    /// Ada had a grant for everything, and it was taken away.
    AdaRevoked,
    /// The policy allows Ada everything with data keys, except to decrypt, which it denies her; a grant allows it all.
    AdaDenied,
    /// Ada has a grant to describe, decrypt, and create grants. Nothing else.
    AdaMayGrant,
}

/// The pair that every context of these tests has, and that constraints ask for.
pub const TABLE: (&str, &str) = ("strongroom:table", "one");
/// The pair that the usual context has besides.
pub const STORE: (&str, &str) = ("strongroom:store", "s");

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Owner,
    /// A principal by the name of "ada".
    Ada,
    /// A principal by the name of "bob", to whom nothing is ever allowed.
    Bob,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Describe,
    Generate,
    /// Generate with [`TABLE`] alone as the context.
    GenerateShort,
    /// Generate with a context of another table.
    GenerateElsewhere,
    /// What was wrapped before the situation came about.
    Decrypt,
    /// The same with another context than it was wrapped with.
    DecryptOtherContext,
    /// The same with one bit changed.
    DecryptChanged,
    /// Bytes that no provider made.
    DecryptGarbage,
    /// What was wrapped under another key of the same provider.
    DecryptOthers,
    Encrypt,
    /// From the key to another one.
    ReEncryptFrom,
    /// From another key to this one.
    ReEncryptTo,
    /// A grant for Bob to decrypt.
    CreateGrant,
    /// A grant for Bob to generate data keys.
    CreateWiderGrant,
    /// Take a grant away that is not there.
    RevokeNothing,
}

/// What comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// An answer, and where there is a data key in it, the right one.
    Answer,
    Refusal(ProviderReason),
}

/// One expectation.
#[derive(Clone, Copy, Debug)]
pub struct Row(pub Situation, pub Who, pub Operation, pub Expected);

use Expected::{Answer, Refusal};
use Operation::*;
use ProviderReason::{
    Denied, GrantNotFound, InvalidCiphertext, KeyDisabled, KeyNotFound, KeyPendingDeletion, KeyPendingImport,
};
use Situation::*;
use Who::{Ada, Bob, Owner};

/// The table.
pub const ROWS: &[Row] = &[
    Row(Enabled, Owner, Describe, Answer),
    Row(Enabled, Owner, Generate, Answer),
    Row(Enabled, Owner, Decrypt, Answer),
    Row(Enabled, Owner, DecryptOtherContext, Refusal(InvalidCiphertext)),
    Row(Enabled, Owner, DecryptChanged, Refusal(InvalidCiphertext)),
    Row(Enabled, Owner, DecryptGarbage, Refusal(InvalidCiphertext)),
    Row(Enabled, Owner, DecryptOthers, Refusal(InvalidCiphertext)),
    Row(Enabled, Owner, Encrypt, Answer),
    Row(Enabled, Owner, ReEncryptFrom, Answer),
    Row(Enabled, Owner, ReEncryptTo, Answer),
    Row(Enabled, Owner, CreateGrant, Answer),
    Row(Enabled, Owner, RevokeNothing, Refusal(GrantNotFound)),
    // Somebody to whom nothing was allowed.
    Row(Enabled, Bob, Describe, Refusal(Denied)),
    Row(Enabled, Bob, Generate, Refusal(Denied)),
    Row(Enabled, Bob, Decrypt, Refusal(Denied)),
    Row(Enabled, Bob, DecryptGarbage, Refusal(Denied)),
    Row(Enabled, Bob, Encrypt, Refusal(Denied)),
    Row(Enabled, Bob, ReEncryptFrom, Refusal(Denied)),
    Row(Enabled, Bob, ReEncryptTo, Refusal(Denied)),
    Row(Enabled, Bob, CreateGrant, Refusal(Denied)),
    // Disabled: everything but describing, whatever the bytes; and whoever may not, may not know.
    Row(Disabled, Owner, Describe, Answer),
    Row(Disabled, Owner, Generate, Refusal(KeyDisabled)),
    Row(Disabled, Owner, Decrypt, Refusal(KeyDisabled)),
    Row(Disabled, Owner, DecryptGarbage, Refusal(KeyDisabled)),
    Row(Disabled, Owner, Encrypt, Refusal(KeyDisabled)),
    Row(Disabled, Owner, ReEncryptFrom, Refusal(KeyDisabled)),
    Row(Disabled, Owner, ReEncryptTo, Refusal(KeyDisabled)),
    Row(Disabled, Owner, CreateGrant, Refusal(KeyDisabled)),
    Row(Disabled, Owner, RevokeNothing, Refusal(GrantNotFound)),
    Row(Disabled, Bob, Decrypt, Refusal(Denied)),
    Row(EnabledAgain, Owner, Generate, Answer),
    Row(EnabledAgain, Owner, Decrypt, Answer),
    Row(PendingDeletion, Owner, Describe, Answer),
    Row(PendingDeletion, Owner, Generate, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, Decrypt, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, DecryptGarbage, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, Encrypt, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, ReEncryptFrom, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, ReEncryptTo, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, CreateGrant, Refusal(KeyPendingDeletion)),
    Row(PendingDeletion, Owner, RevokeNothing, Refusal(GrantNotFound)),
    Row(PendingDeletion, Bob, Decrypt, Refusal(Denied)),
    Row(DeletionCancelled, Owner, Describe, Answer),
    Row(DeletionCancelled, Owner, Decrypt, Refusal(KeyDisabled)),
    Row(Deleted, Owner, Describe, Refusal(KeyNotFound)),
    Row(Deleted, Owner, Generate, Refusal(KeyNotFound)),
    Row(Deleted, Owner, Decrypt, Refusal(KeyNotFound)),
    Row(Deleted, Owner, DecryptGarbage, Refusal(KeyNotFound)),
    Row(Deleted, Owner, Encrypt, Refusal(KeyNotFound)),
    Row(Deleted, Owner, ReEncryptFrom, Refusal(KeyNotFound)),
    Row(Deleted, Owner, ReEncryptTo, Refusal(KeyNotFound)),
    Row(Deleted, Owner, CreateGrant, Refusal(KeyNotFound)),
    Row(Deleted, Owner, RevokeNothing, Refusal(KeyNotFound)),
    Row(Deleted, Bob, Decrypt, Refusal(KeyNotFound)),
    Row(MaterialTakenAway, Owner, Describe, Answer),
    Row(MaterialTakenAway, Owner, Generate, Refusal(KeyPendingImport)),
    Row(MaterialTakenAway, Owner, Decrypt, Refusal(KeyPendingImport)),
    Row(MaterialTakenAway, Owner, DecryptGarbage, Refusal(KeyPendingImport)),
    Row(MaterialTakenAway, Owner, Encrypt, Refusal(KeyPendingImport)),
    Row(MaterialTakenAway, Owner, CreateGrant, Refusal(KeyPendingImport)),
    Row(MaterialTakenAway, Bob, Generate, Refusal(Denied)),
    Row(MaterialBack, Owner, Generate, Answer),
    Row(MaterialBack, Owner, Decrypt, Answer),
    Row(Rotated, Owner, Generate, Answer),
    Row(Rotated, Owner, Decrypt, Answer),
    Row(Rotated, Owner, ReEncryptFrom, Answer),
    Row(Rotated, Owner, DecryptOtherContext, Refusal(InvalidCiphertext)),
    // Grants.
    Row(AdaMayDecrypt, Ada, Decrypt, Answer),
    Row(AdaMayDecrypt, Ada, DecryptOtherContext, Refusal(InvalidCiphertext)),
    Row(AdaMayDecrypt, Ada, Generate, Refusal(Denied)),
    Row(AdaMayDecrypt, Ada, Describe, Refusal(Denied)),
    Row(AdaMayDecrypt, Ada, CreateGrant, Refusal(Denied)),
    Row(AdaMayDecrypt, Bob, Decrypt, Refusal(Denied)),
    Row(AdaMayDecrypt, Owner, Decrypt, Answer),
    Row(AdaMayUseTable, Ada, Generate, Answer),
    Row(AdaMayUseTable, Ada, GenerateShort, Answer),
    Row(AdaMayUseTable, Ada, GenerateElsewhere, Refusal(Denied)),
    Row(AdaMayUseTable, Ada, Decrypt, Answer),
    // The constraint is looked at before the bytes are.
    Row(AdaMayUseTable, Ada, DecryptOtherContext, Refusal(Denied)),
    Row(AdaMayUseTable, Ada, Encrypt, Answer),
    // There is no context in it that a constraint could be about.
    Row(AdaMayUseTable, Ada, Describe, Answer),
    Row(AdaMayUseExactly, Ada, Generate, Refusal(Denied)),
    Row(AdaMayUseExactly, Ada, GenerateShort, Answer),
    Row(AdaMayUseExactly, Ada, Decrypt, Refusal(Denied)),
    Row(AdaRetired, Ada, Generate, Refusal(Denied)),
    Row(AdaRetired, Ada, Decrypt, Refusal(Denied)),
    Row(AdaRetired, Owner, Decrypt, Answer),
    Row(AdaRevoked, Ada, Decrypt, Refusal(Denied)),
    Row(AdaDenied, Ada, Generate, Answer),
    Row(AdaDenied, Ada, Decrypt, Refusal(Denied)),
    Row(AdaDenied, Owner, Decrypt, Answer),
    Row(AdaMayGrant, Ada, CreateGrant, Answer),
    // Nobody passes on what he has not got.
    Row(AdaMayGrant, Ada, CreateWiderGrant, Refusal(Denied)),
    Row(AdaMayGrant, Bob, CreateGrant, Refusal(Denied)),
];

/// Run a provider through the table. Panics with every row that is not as expected; gives the rows that were skipped, because the
/// provider does not know the situation, the operation, or principals.
pub fn check(under_test: &Provider<'_>) -> Vec<Row> {
    check_rows(under_test, ROWS)
}

/// Like [`check`], for some rows of the table: where a stand-in for the real provider is known not to be like it in the others.
pub fn check_rows(under_test: &Provider<'_>, rows: &[Row]) -> Vec<Row> {
    let mut skipped = Vec::new();
    let mut wrong = Vec::new();
    for &row in rows {
        match run(under_test, row) {
            None => skipped.push(row),
            Some(outcome) if as_expected(under_test.exact, row.3, &outcome) => {}
            Some(outcome) => wrong.push(format!("{row:?}, but it was {outcome:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    skipped
}

fn as_expected(exact: bool, expected: Expected, outcome: &ProviderResult<()>) -> bool {
    match (expected, outcome) {
        (Answer, Ok(())) => true,
        (Refusal(reason), Err(error)) if exact => error.reason == reason,
        (Refusal(reason), Err(error)) => error.class() == reason.class(),
        _ => false,
    }
}

/// The outcome of one row, or `None` if this provider cannot say.
fn run(under_test: &Provider<'_>, Row(situation, who, operation, _): Row) -> Option<ProviderResult<()>> {
    let provider = under_test.provider;
    if who != Owner && !provider.describe().tells_principals_apart {
        return None;
    }
    let key = (under_test.new_key)(situation);
    let other = (under_test.new_key)(Enabled);
    let made = generate(provider, &key, &usual(), Principal::Owner).expect("the owner may use a new key");
    if !(under_test.arrange)(&key, situation) {
        return None;
    }
    let outcome = ask(provider, &key, &other, made, principal(who), operation);
    match &outcome {
        Err(error) if error.reason == ProviderReason::Unsupported => None,
        _ => Some(outcome),
    }
}

struct Wrapped {
    plaintext: DataKey,
    ciphertext: Vec<u8>,
}

fn ask(
    provider: &dyn KeyProvider,
    key: &str,
    other: &str,
    mut made: Wrapped,
    principal: Principal,
    operation: Operation,
) -> ProviderResult<()> {
    let opens = |ciphertext: &[u8], context: EncryptionContext, expected: &DataKey| {
        let opened = provider.decrypt(&DecryptRequest::new(key, ciphertext, context, principal.clone()))?;
        assert_eq!(opened.key_arn, key, "the answer names the key that it was asked for");
        assert_eq!(opened.plaintext.expose(), expected.expose(), "another data key than the one that was wrapped");
        Ok(())
    };
    match operation {
        Describe => {
            let described = provider.describe_key(&DescribeKeyRequest::new(key, principal))?;
            assert_eq!(described.arn, key);
            Ok(())
        }
        Generate => generate(provider, key, &usual(), principal).map(drop),
        GenerateShort => generate(provider, key, &context(&[TABLE]), principal).map(drop),
        GenerateElsewhere => generate(provider, key, &elsewhere(), principal).map(drop),
        Decrypt => opens(&made.ciphertext, usual(), &made.plaintext),
        DecryptOtherContext => opens(&made.ciphertext, elsewhere(), &made.plaintext),
        DecryptChanged => {
            // The middle: at the ends some providers keep what they read before anything is checked.
            let middle = made.ciphertext.len() / 2;
            made.ciphertext[middle] ^= 1;
            opens(&made.ciphertext, usual(), &made.plaintext)
        }
        DecryptGarbage => opens(b"no provider made these bytes", usual(), &DataKey::from_fn(|_| {})),
        DecryptOthers => {
            let made = generate(provider, other, &usual(), Principal::Owner)?;
            opens(&made.ciphertext, usual(), &made.plaintext)
        }
        Encrypt => {
            let data_key = || DataKey::from_fn(|bytes| bytes.fill(9));
            let wrapped = provider.encrypt(&EncryptRequest::new(key, data_key(), usual(), principal))?;
            let request = DecryptRequest::new(key, wrapped.ciphertext, usual(), Principal::Owner);
            assert_eq!(provider.decrypt(&request)?.plaintext.expose(), data_key().expose());
            Ok(())
        }
        ReEncryptFrom => {
            let request = ReEncryptRequest::new(key, made.ciphertext, usual(), other, elsewhere(), principal);
            provider.re_encrypt(&request).map(drop)
        }
        ReEncryptTo => {
            let ciphertext = generate(provider, other, &usual(), Principal::Owner)?.ciphertext;
            let request = ReEncryptRequest::new(other, ciphertext, usual(), key, elsewhere(), principal);
            provider.re_encrypt(&request).map(drop)
        }
        CreateGrant => grant(provider, key, principal, "bob", &[GrantOperation::Decrypt], None).map(drop),
        CreateWiderGrant => grant(provider, key, principal, "bob", &[GrantOperation::GenerateDataKey], None).map(drop),
        // In the form of an id that both a keyring and AWS could have given.
        RevokeNothing => provider.revoke_grant(&EndGrantRequest::new(key, "0".repeat(64), principal)),
    }
}

/// The situations that the contract itself can bring about, for `arrange`: false for the others.
pub fn arrange_grants(provider: &dyn KeyProvider, key: &str, situation: Situation) -> bool {
    use GrantOperation as G;
    const DATA_KEYS: &[GrantOperation] =
        &[G::DescribeKey, G::GenerateDataKey, G::Decrypt, G::Encrypt, G::ReEncryptFrom, G::ReEncryptTo];
    let to_ada = |operations: &[GrantOperation], constraint| {
        grant(provider, key, Principal::Owner, "ada", operations, constraint).expect("the owner may grant")
    };
    match situation {
        Enabled => {}
        AdaMayDecrypt => drop(to_ada(&[G::Decrypt], None)),
        AdaMayUseTable => drop(to_ada(DATA_KEYS, Some(GrantConstraint::Contains(context(&[TABLE]))))),
        AdaMayUseExactly => drop(to_ada(DATA_KEYS, Some(GrantConstraint::Equals(context(&[TABLE]))))),
        AdaRetired => {
            let grant = to_ada(&G::ALL, None);
            provider.retire_grant(&EndGrantRequest::new(key, grant.id, ada())).expect("a grantee may give it up");
        }
        AdaRevoked => {
            let grant = to_ada(&G::ALL, None);
            provider.revoke_grant(&EndGrantRequest::new(key, grant.id, Principal::Owner)).expect("the owner may");
        }
        AdaMayGrant => drop(to_ada(&[G::DescribeKey, G::Decrypt, G::CreateGrant], None)),
        _ => return false,
    }
    true
}

/// Grant Ada these operations, with any context.
pub fn grant_to_ada(provider: &dyn KeyProvider, key: &str, operations: &[GrantOperation]) -> bool {
    grant(provider, key, Principal::Owner, "ada", operations, None).expect("the owner may grant");
    true
}

fn grant(
    provider: &dyn KeyProvider,
    key: &str,
    principal: Principal,
    grantee: &str,
    operations: &[GrantOperation],
    constraint: Option<GrantConstraint>,
) -> ProviderResult<Grant> {
    let mut request =
        CreateGrantRequest::new(key, Principal::Named(grantee.to_owned()), operations.to_vec(), principal);
    request.constraint = constraint;
    let grant = provider.create_grant(&request)?;
    assert_eq!(grant.key_arn, key);
    Ok(grant)
}

fn generate(
    provider: &dyn KeyProvider,
    key: &str,
    context: &EncryptionContext,
    principal: Principal,
) -> ProviderResult<Wrapped> {
    let made = provider.generate_data_key(&GenerateDataKeyRequest::new(key, context.clone(), principal))?;
    assert_eq!(made.key_arn, key, "the answer names the key that it was asked for");
    Ok(Wrapped { plaintext: made.plaintext, ciphertext: made.ciphertext })
}

pub fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::from_pairs(pairs.iter().copied()).expect("the pairs are few and differ")
}

/// The context that everything is wrapped with unless the operation says otherwise.
pub fn usual() -> EncryptionContext {
    context(&[STORE, TABLE])
}

fn elsewhere() -> EncryptionContext {
    context(&[STORE, ("strongroom:table", "two")])
}

pub fn ada() -> Principal {
    Principal::Named("ada".to_owned())
}

fn principal(who: Who) -> Principal {
    match who {
        Owner => Principal::Owner,
        Ada => ada(),
        Bob => Principal::Named("bob".to_owned()),
    }
}
