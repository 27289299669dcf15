//! The contract between the engine and whatever holds the master keys.
//!
//! ```text
//!  engine ── request: key, encryption context, principal, grant tokens ──► provider (KMS, HSM, keyring)
//!         ◄─ answer: plaintext or wrapped key, the key's ARN, how long it may be used ──
//! ```
//!
//! A [`KeyProvider`] blocks, and is asked rarely: never while the engine holds a lock, never per file, never on
//! the path of an ordinary read or write. It may take its time and it may fail; what the engine does about a
//! failure depends on the failure's [`class`](crate::error::ProviderReason::class) alone, so that a provider's only duty is
//! to choose the right [`ProviderReason`]:
//!
//! | class | meaning | the engine |
//! |---|---|---|
//! | transient | cannot be reached, throttles, too slow | goes on until the permission at hand ends |
//! | principal | this principal may not | ends this principal's permission, nobody else notices |
//! | key | the master key is disabled or gone | ends every permission for the tables under it |
//! | material | wrong bytes came back | reports an integrity error, forgets nothing that was good |
//! | request | the call makes no sense here | hands the error to the caller |
//!
//! Nothing that a provider answers is trusted: the engine compares the ARN with the recorded one, and the key with
//! the commitment pinned in the manifest, before any use.
//!
//! Requests and answers are `#[non_exhaustive]` with constructors, so that a later field breaks no provider. Operations that
//! not every provider has come with a default; the four without one make a provider.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::crypto::Secret;
use crate::error::{ProviderError, ProviderReason};
use crate::format::codec::Put;
use crate::format::keyfile::CONTEXT_BYTES_MAX;
use crate::io::Entropy;

/// What a provider's operations return.
pub type ProviderResult<T> = Result<T, ProviderError>;

/// The alias of the key that a provider makes for [managed](crate::options::MasterKey::Managed) tables.
pub const MANAGED_ALIAS: &str = "alias/strongroom";
/// The alias of the key that a provider makes for [owned](crate::options::MasterKey::Owned) tables and the store's metadata.
pub const OWNED_ALIAS: &str = "alias/strongroom-owned";

/// Holds master keys; wraps and unwraps data keys with them. The master keys never have to leave it.
///
/// A provider that wraps another one passes every operation on, the ones with a default too: a store whose
/// [`create_grant`](KeyProvider::create_grant) goes nowhere takes it that principals alone decide, and the provider beneath refuses the service.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// What this provider is. Asked when a store is opened; must not fail and should not go anywhere.
    fn describe(&self) -> ProviderDescription;

    /// The master key that an id, an ARN or an alias stands for, in whatever state it is.
    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription>;

    /// A fresh data key of 32 bytes, in plaintext and wrapped under a master key, bound to the context.
    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey>;

    /// The data key that was wrapped under this master key with this context. The request names the key's ARN, and a
    /// ciphertext of another key is [`ProviderReason::InvalidCiphertext`].
    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey>;

    /// A given data key, wrapped: how a key moves here from another provider.
    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        let _ = request;
        Err(unsupported("encrypt"))
    }

    /// A wrapped data key, wrapped anew under another master key or context. A KMS does this without showing the
    /// plaintext to anyone; this default decrypts and encrypts.
    fn re_encrypt(&self, request: &ReEncryptRequest) -> ProviderResult<EncryptedDataKey> {
        let mut decrypt = DecryptRequest::new(
            request.source_key_arn.clone(),
            request.ciphertext.clone(),
            request.source_context.clone(),
            request.principal.clone(),
        );
        decrypt.grant_tokens.clone_from(&request.grant_tokens);
        let opened = self.decrypt(&decrypt)?;
        let mut encrypt = EncryptRequest::new(
            request.destination_key.clone(),
            opened.plaintext,
            request.destination_context.clone(),
            request.principal.clone(),
        );
        encrypt.grant_tokens.clone_from(&request.grant_tokens);
        self.encrypt(&encrypt)
    }

    /// The key under [`MANAGED_ALIAS`], made on first use where the provider can make keys. This default only looks for it.
    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.describe_key(&DescribeKeyRequest::new(MANAGED_ALIAS, request.principal.clone()))
    }

    /// The key under [`OWNED_ALIAS`], made on first use where the provider can make keys. This default only looks for it.
    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.describe_key(&DescribeKeyRequest::new(OWNED_ALIAS, request.principal.clone()))
    }

    /// Allow a principal some operations with a key, whatever the key's policy says.
    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        let _ = request;
        Err(unsupported("create_grant"))
    }

    /// Give up a grant: asked by the one who was granted, or by the grant's retiring principal.
    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        let _ = request;
        Err(unsupported("retire_grant"))
    }

    /// Take a grant away: asked by the one who manages the key.
    fn revoke_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        let _ = request;
        Err(unsupported("revoke_grant"))
    }

    /// Refuse every use of a master key from now on, and destroy it when so many days have passed.
    fn schedule_key_deletion(&self, request: &ScheduleKeyDeletionRequest) -> ProviderResult<KeyDescription> {
        let _ = request;
        Err(unsupported("schedule_key_deletion"))
    }

    /// The file that the master keys lie in, if they lie in one. A store refuses a provider whose keys lie inside the
    /// store: a key beside the data protects nothing.
    fn keyring_path(&self) -> Option<&Path> {
        None
    }
}

fn unsupported(operation: &str) -> ProviderError {
    ProviderError::new(ProviderReason::Unsupported, format!("this provider does not offer {operation}"))
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Principal {
    /// The one who opened the store.
    Owner,
    /// The engine itself: flush, compaction, rotation, the store's own metadata.
    Service,
    /// Somebody whom the provider knows by this name.
    Named(String),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Owner => f.write_str("owner"),
            Principal::Service => f.write_str("service"),
            Principal::Named(name) => write!(f, "principal {name}"),
        }
    }
}

/// Pairs of text that are bound into a wrapped key: what was wrapped with one context opens with no other.
///
/// Not secret: it stands in a KMS's log. Canonical, because kept in the byte order of its names, each of which occurs
/// once; names and values are compared byte by byte.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// The empty context.
    pub fn new() -> EncryptionContext {
        EncryptionContext::default()
    }

    /// The context of these pairs, in whatever order they come.
    ///
    /// # Errors
    /// As for [`insert`](EncryptionContext::insert).
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> ProviderResult<EncryptionContext>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let mut context = EncryptionContext::new();
        pairs.into_iter().try_for_each(|(name, value)| context.insert(name, value))?;
        Ok(context)
    }

    /// Add a pair.
    ///
    /// # Errors
    /// [`ProviderReason::InvalidRequest`] if the name is empty or there already, or if the context would take more than 8 KiB.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> ProviderResult<()> {
        let (name, value) = (name.into(), value.into());
        let refuse = |detail: String| Err(ProviderError::new(ProviderReason::InvalidRequest, detail));
        if name.is_empty() {
            return refuse("the encryption context has an empty name".to_owned());
        }
        if self.0.contains_key(&name) {
            return refuse(format!("the encryption context names {name:?} twice"));
        }
        // 8 = two lengths.
        let len_bytes = self.canonical().len().saturating_add(8).saturating_add(name.len()).saturating_add(value.len());
        if len_bytes > CONTEXT_BYTES_MAX {
            return refuse(format!("the encryption context takes {len_bytes} bytes, the limit is {CONTEXT_BYTES_MAX}"));
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// The value of a name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All pairs, in the byte order of their names.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether every pair of `other` is in this context too.
    pub fn contains_all(&self, other: &EncryptionContext) -> bool {
        other.pairs().all(|(name, value)| self.value(name) == Some(value))
    }

    /// The one encoding of this context, fit to be the associated data of a wrap: the number of pairs, then each name
    /// and value behind its length in bytes, all numbers as u32 LE. It is also what key files hold
    /// (`format/keyfile.rs`; a test compares them).
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // The limit in `insert` keeps all of these far below 2^32.
        bytes.put_u32(self.0.len() as u32);
        for text in self.pairs().flat_map(|(name, value)| [name, value]) {
            bytes.put_u32(text.len() as u32);
            bytes.put(text.as_bytes());
        }
        bytes
    }
}

/// 32 secret bytes on their way between a provider and the engine: wiped when dropped, never printed, not cloned.
pub struct DataKey(Secret);

impl DataKey {
    /// Length of a data key in bytes.
    pub const BYTES: usize = 32;

    /// A fresh random key.
    ///
    /// # Errors
    /// What the source of randomness says.
    pub fn generate(entropy: &dyn Entropy) -> std::io::Result<DataKey> {
        Secret::generate(entropy).map(DataKey)
    }

    /// The key that `fill` writes in place, so that no copy of it is left on the way here.
    pub fn from_fn(fill: impl FnOnce(&mut [u8; 32])) -> DataKey {
        DataKey(Secret::fill_with(fill))
    }

    /// The key that `fill` writes in place, unless it fails.
    pub fn try_from_fn<E>(fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<DataKey, E> {
        Secret::try_fill_with(fill).map(DataKey)
    }

    /// A copy of `bytes`, which the caller should wipe.
    ///
    /// # Errors
    /// [`ProviderReason::UnexpectedAnswer`] unless there are exactly 32 of them.
    pub fn try_from_slice(bytes: &[u8]) -> ProviderResult<DataKey> {
        if bytes.len() != DataKey::BYTES {
            let message = format!("a data key of {} bytes, not {}", bytes.len(), DataKey::BYTES);
            return Err(ProviderError::new(ProviderReason::UnexpectedAnswer, message));
        }
        Ok(DataKey::from_fn(|key| key.copy_from_slice(bytes)))
    }

    /// The bytes, for the provider that has to wrap them. Copies are the caller's to wipe.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    pub(crate) fn into_secret(self) -> Secret {
        self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// Declares a `#[non_exhaustive]` struct of public fields with a constructor for those that are always needed; the rest
/// begin empty.
macro_rules! message {
    (
        $(#[$doc:meta])* $name:ident derive($($derive:ident),*)
        needs { $($(#[$need_doc:meta])* $need:ident: $need_type:ty,)* }
        may { $($(#[$may_doc:meta])* $may:ident: $may_type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive($($derive),*)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$need_doc])* pub $need: $need_type,)*
            $($(#[$may_doc])* pub $may: $may_type,)*
        }

        impl $name {
            /// One with these fields; the others begin empty and can be set.
            pub fn new($($need: impl Into<$need_type>),*) -> $name {
                $name { $($need: $need.into(),)* $($may: Default::default(),)* }
            }
        }
    };
}

message! {
    /// What a provider is.
    ProviderDescription derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// Its name, for people.
        name: String,
        /// Whether it decides by principal. If not, a session for another principal than the owner is refused.
        tells_principals_apart: bool,
    }
    may {}
}

message! {
    /// Asks what an id, an ARN or an alias stands for.
    DescribeKeyRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// Key id, ARN or alias.
        key: String,
        /// Who asks.
        principal: Principal,
    }
    may {
        /// Tokens of grants that may not be known everywhere yet.
        grant_tokens: Vec<String>,
    }
}

message! {
    /// Asks for a fresh data key.
    GenerateDataKeyRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The master key's id, ARN or alias.
        key: String,
        /// What the wrap is bound to.
        context: EncryptionContext,
        /// Who asks.
        principal: Principal,
    }
    may {
        /// Tokens of grants that may not be known everywhere yet.
        grant_tokens: Vec<String>,
    }
}

message! {
    /// Asks for the plaintext of a wrapped data key.
    DecryptRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The ARN that was recorded when the key was wrapped; no other key may be used.
        key_arn: String,
        /// The wrapped key.
        ciphertext: Vec<u8>,
        /// What the wrap was bound to.
        context: EncryptionContext,
        /// Who asks.
        principal: Principal,
    }
    may {
        /// Tokens of grants that may not be known everywhere yet.
        grant_tokens: Vec<String>,
    }
}

message! {
    /// Asks for a given data key to be wrapped.
    EncryptRequest derive(Debug)
    needs {
        /// The master key's id, ARN or alias.
        key: String,
        /// The data key.
        plaintext: DataKey,
        /// What the wrap is bound to.
        context: EncryptionContext,
        /// Who asks.
        principal: Principal,
    }
    may {
        /// Tokens of grants that may not be known everywhere yet.
        grant_tokens: Vec<String>,
    }
}

message! {
    /// Asks for a wrapped data key to be wrapped anew.
    ReEncryptRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The ARN that was recorded when the key was wrapped.
        source_key_arn: String,
        /// The wrapped key.
        ciphertext: Vec<u8>,
        /// What the wrap was bound to.
        source_context: EncryptionContext,
        /// Id, ARN or alias of the master key to wrap under.
        destination_key: String,
        /// What the new wrap is bound to.
        destination_context: EncryptionContext,
        /// Who asks.
        principal: Principal,
    }
    may {
        /// Tokens of grants that may not be known everywhere yet.
        grant_tokens: Vec<String>,
    }
}

message! {
    /// Asks for one of the two keys that a provider holds for the engine.
    EngineKeyRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// Who asks.
        principal: Principal,
    }
    may {}
}

message! {
    /// Asks for a grant.
    CreateGrantRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The master key's id or ARN.
        key: String,
        /// Who is allowed something.
        grantee: Principal,
        /// What is allowed.
        operations: Vec<GrantOperation>,
        /// Who asks.
        principal: Principal,
    }
    may {
        /// Who besides the grantee may give the grant up.
        retiring_principal: Option<Principal>,
        /// Which encryption contexts it is allowed with; all, if none is named.
        constraint: Option<GrantConstraint>,
        /// A second request with the same name and contents gives the same grant.
        name: Option<String>,
        /// Tokens of grants that may not be known everywhere yet.
        grant_tokens: Vec<String>,
    }
}

message! {
    /// Asks for a grant to end.
    EndGrantRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The master key's ARN.
        key_arn: String,
        /// The grant's id.
        grant_id: String,
        /// Who asks.
        principal: Principal,
    }
    may {}
}

message! {
    /// Asks for a master key to be destroyed.
    ScheduleKeyDeletionRequest derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The master key's ARN.
        key_arn: String,
        /// How many days it can still be saved.
        days: u32,
        /// Who asks.
        principal: Principal,
    }
    may {}
}

message! {
    /// A master key, as its provider shows it.
    KeyDescription derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// Its ARN: the one name that never stands for another key.
        arn: String,
        /// Its id.
        id: String,
        /// Whether it can be used.
        state: KeyState,
    }
    may {
        /// Aliases that stand for it at present.
        aliases: Vec<String>,
        /// What it is for, in its maker's words.
        description: String,
        /// When it was made, in milliseconds since 1970, if known.
        created_ms: Option<u64>,
        /// When it will be deleted, in milliseconds since 1970, if it waits for that.
        deletion_ms: Option<u64>,
        /// When its imported bytes expire, in milliseconds since 1970, if they do.
        expiry_ms: Option<u64>,
        /// Who decides about it, if known.
        manager: Option<KeyManager>,
        /// Where its bytes came from, if known.
        origin: Option<KeyOrigin>,
    }
}

message! {
    /// How long an answer may be relied on, counted from when the request was sent. Can only shorten the engine's
    /// own setting.
    Lifetime derive(Clone, Copy, PartialEq, Eq, Debug, Default)
    needs {}
    may {
        /// Ask again after this long, in the background and only while the table is in use.
        refresh_after: Option<Duration>,
        /// Do not use the key any longer than this without asking again.
        expire_after: Option<Duration>,
    }
}

message! {
    /// A fresh data key.
    GeneratedDataKey derive(Debug)
    needs {
        /// The key.
        plaintext: DataKey,
        /// The key, wrapped.
        ciphertext: Vec<u8>,
        /// ARN of the master key that it is wrapped under.
        key_arn: String,
    }
    may {
        /// How long the plaintext may be used.
        lifetime: Lifetime,
    }
}

message! {
    /// An unwrapped data key.
    DecryptedDataKey derive(Debug)
    needs {
        /// The key.
        plaintext: DataKey,
        /// ARN of the master key that unwrapped it.
        key_arn: String,
    }
    may {
        /// How long the plaintext may be used.
        lifetime: Lifetime,
    }
}

message! {
    /// A wrapped data key.
    EncryptedDataKey derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// The key, wrapped.
        ciphertext: Vec<u8>,
        /// ARN of the master key that it is wrapped under.
        key_arn: String,
    }
    may {}
}

message! {
    /// A grant that was made.
    Grant derive(Clone, PartialEq, Eq, Debug)
    needs {
        /// Its id.
        id: String,
        /// Shows the grant to parts of the provider that have not heard of it yet.
        token: String,
        /// ARN of the key that it is for.
        key_arn: String,
    }
    may {}
}

/// Whether a master key can be used. Reaches a keyring's bytes: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum KeyState {
    /// It can.
    Enabled = 1,
    /// It cannot until it is enabled again.
    Disabled = 2,
    /// It cannot, and will be deleted unless that is called off.
    PendingDeletion = 3,
    /// It cannot, because its bytes have not been imported yet.
    PendingImport = 4,
    /// It cannot at present, for reasons of the provider's.
    Unavailable = 5,
}

impl KeyState {
    /// The state with this number on disk.
    pub(crate) const fn from_u8(number: u8) -> Option<KeyState> {
        match number {
            1 => Some(KeyState::Enabled),
            2 => Some(KeyState::Disabled),
            3 => Some(KeyState::PendingDeletion),
            4 => Some(KeyState::PendingImport),
            5 => Some(KeyState::Unavailable),
            _ => None,
        }
    }
}

/// Who decides about a master key. Reaches a keyring's bytes: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum KeyManager {
    /// The user.
    Customer = 1,
    /// The engine, in the user's sight.
    Managed = 2,
    /// The engine, out of the user's sight.
    Owned = 3,
}

/// Where a master key's bytes came from. Reaches a keyring's bytes: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum KeyOrigin {
    /// The provider drew them.
    Generated = 1,
    /// The user brought them.
    Imported = 2,
}

/// What a grant can allow. Reaches a keyring's bytes: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum GrantOperation {
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
    /// [`KeyProvider::retire_grant`].
    RetireGrant = 8,
}

impl GrantOperation {
    /// All of them, in the order of their numbers.
    pub const ALL: [GrantOperation; 8] = [
        GrantOperation::DescribeKey,
        GrantOperation::GenerateDataKey,
        GrantOperation::Decrypt,
        GrantOperation::Encrypt,
        GrantOperation::ReEncryptFrom,
        GrantOperation::ReEncryptTo,
        GrantOperation::CreateGrant,
        GrantOperation::RetireGrant,
    ];
}

/// Which encryption contexts a grant is good for.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GrantConstraint {
    /// Exactly this one.
    Equals(EncryptionContext),
    /// Those that hold all these pairs.
    Contains(EncryptionContext),
}

impl GrantConstraint {
    /// Whether a request with this context is meant.
    pub fn permits(&self, context: &EncryptionContext) -> bool {
        match self {
            GrantConstraint::Equals(exactly) => context == exactly,
            GrantConstraint::Contains(some) => context.contains_all(some),
        }
    }
}
