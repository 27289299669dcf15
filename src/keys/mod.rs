//! Key life: who may use which key of which table, until when, and what ends with it.
//!
//! ```text
//! provider.rs   the contract with whatever holds the master keys
//! local/        the embedded provider: a keyring of its own
//! aws/          a provider on AWS KMS (feature `aws-kms`)
//! pkcs11/       a provider on an HSM or smart card (feature `pkcs11`)
//! faulty.rs     a provider that fails on a plan, for tests
//! lease.rs      a table's keys in memory, and who may use them until when
//! rotation.rs   the key file that follows another: new generations, re-wrapped keys
//! system.rs     the system key of an open store, which a rotation replaces
//! time.rs       the time in which permits end
//! trail/        every use of a key, as a chained record
//! mod.rs        KeyBroker: asks providers, checks their answers, tells what happened
//! ```
//!
//! A `KeyBroker` is what the store has of its providers. It builds every encryption context, and believes no answer:
//! the ARN must be the recorded one, the length 32, and the commitment the pinned one, before a key is used for anything. A provider that
//! panics has not answered, and no more than that. Which wraps there are, and where, the broker does not know: that is
//! the key files' business, and the `db` layer's to bring together.

#[cfg(feature = "aws-kms")]
mod aws;
pub mod faulty;
mod lease;
mod local;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod provider;
mod rotation;
mod system;
mod time;
pub mod trail;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;

#[cfg(feature = "aws-kms")]
pub use self::aws::AwsKms;
pub(crate) use self::lease::{Ending, KeySet, Look, Permit, Renewal, TICK_PERIOD, TableLease, Unwrapped};
use self::lease::{News, Terms};
#[cfg(any(test, fuzzing))]
pub(crate) use self::local::fuzz as local_fuzz;
pub use self::local::{
    GrantDescription, KeyOperation, KeyPolicy, LocalKms, PolicyEffect, PolicyPrincipal, PolicyStatement,
    RotationStatus, Unlock,
};
#[cfg(feature = "pkcs11")]
pub use self::pkcs11::{Pin, Pkcs11Provider};
pub use self::provider::*;
pub(crate) use self::rotation::{Rekey, Successor, present_master};
pub(crate) use self::system::SystemKeys;
use self::time::StoreTime;
use self::trail::{Call, Managed, Owned, Retire, Trail};
use crate::crypto::TableKey;
use crate::error::{Error, ProviderClass, ProviderError, ProviderReason, Result};
use crate::event::{Event, EventSink};
use crate::format::keyfile::{KeyFile, MasterKind, WRAPPED_BYTES_MAX, Wrap};
use crate::format::manifest::GrantRecord;
use crate::io::{Clock, Environment, Scheduler, Tick, Vfs};
use crate::metrics::Meters;
use crate::options::MasterKey;
use crate::trace;
use crate::types::{Generation, StoreId, TableId};

/// Names the store in every encryption context.
const STORE_CONTEXT: &str = "strongroom:store";
/// What the service needs of a table's master key.
const GRANT_OPERATIONS: [GrantOperation; 7] = [
    GrantOperation::DescribeKey,
    GrantOperation::GenerateDataKey,
    GrantOperation::Decrypt,
    GrantOperation::Encrypt,
    GrantOperation::ReEncryptFrom,
    GrantOperation::ReEncryptTo,
    GrantOperation::RetireGrant,
];

/// A store's access to its key providers.
#[derive(Debug)]
pub(crate) struct KeyBroker {
    store: StoreId,
    main: Arc<dyn KeyProvider>,
    owned: Arc<dyn KeyProvider>,
    clock: Arc<dyn Clock>,
    scheduler: Arc<dyn Scheduler>,
    time: StoreTime,
    permit: Duration,
    stale: Duration,
    /// Tokens of the service's grants, by the ARN of the key.
    grant_tokens: RwLock<BTreeMap<String, String>>,
    meters: Arc<Meters>,
    events: Option<Arc<dyn EventSink>>,
    /// Where requests are recorded; empty if they are not, and until the system key is there, which is an owned key's and not recorded.
    trail: OnceLock<Trail>,
}

/// A master key that was given by kind or name, resolved to what is recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Master {
    pub(crate) kind: MasterKind,
    pub(crate) arn: String,
}

/// A key that a provider has just made.
#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) key: TableKey,
    pub(crate) wrap: Wrap,
    sent: Tick,
    lifetime: Lifetime,
}

impl KeyBroker {
    /// The broker of `store`. Owned keys are asked of `owned`, or of `main` if there is no provider of their own.
    /// `permit` is the longest that a permission lasts.
    pub(crate) fn new(
        store: StoreId,
        main: Arc<dyn KeyProvider>,
        owned: Option<Arc<dyn KeyProvider>>,
        environment: &Environment,
        permit: Duration,
        events: Option<Arc<dyn EventSink>>,
    ) -> KeyBroker {
        KeyBroker {
            store,
            owned: owned.unwrap_or_else(|| main.clone()),
            main,
            clock: environment.clock.clone(),
            scheduler: environment.scheduler.clone(),
            time: StoreTime::new(environment.clock.clone()),
            permit,
            stale: Duration::ZERO,
            grant_tokens: RwLock::default(),
            meters: Arc::new(Meters::new()),
            events,
            trail: OnceLock::new(),
        }
    }

    /// As it is, but permits last this long beyond their end while the provider does not answer.
    pub(crate) fn serving_stale(self, stale: Duration) -> KeyBroker {
        KeyBroker { stale, ..self }
    }

    /// As it is, but what is asked is counted here.
    pub(crate) fn counting(self, meters: Arc<Meters>) -> KeyBroker {
        KeyBroker { meters, ..self }
    }

    /// Whether there can be sessions for others than the owner.
    ///
    /// # Errors
    /// [`Error::SessionRefused`] if a provider does not tell principals apart.
    pub(crate) fn check_tells_apart(&self, principal: &Principal) -> Result<()> {
        for provider in [&self.main, &self.owned] {
            let described = provider.describe();
            if !described.tells_principals_apart {
                let message = format!("the {} does not tell principals apart", described.name);
                let source = ProviderError::new(ProviderReason::PrincipalUnsupported, message);
                return Err(Error::SessionRefused { principal: principal.to_string(), source });
            }
        }
        Ok(())
    }

    /// Record what providers are asked from now on.
    pub(crate) fn set_trail(&self, trail: Trail) {
        let _ = self.trail.set(trail);
    }

    /// The store's trail, if there is one.
    pub(crate) fn trail(&self) -> Option<&Trail> {
        self.trail.get()
    }

    /// Store time now, by a call to the clocks, which are compared. The store keeps the answer where every operation can load it
    /// and calls this several times a second while it is in use: permits end in this time.
    pub(crate) fn advance(&self) -> Tick {
        self.time.advance()
    }

    /// The ARN of the key that is meant: found, or made where the engine may make it. Asks the provider; no lock may be held.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`] with the provider's reason, also if the key cannot be used at present.
    pub(crate) fn resolve(&self, key: &MasterKey, principal: &Principal) -> Result<Master> {
        let engine_key = EngineKeyRequest::new(principal.clone());
        let (kind, name, answer) = match key {
            MasterKey::Owned => (MasterKind::Owned, OWNED_ALIAS, self.ask(MasterKind::Owned, &Owned(&engine_key))),
            MasterKey::Managed => {
                (MasterKind::Managed, MANAGED_ALIAS, self.ask(MasterKind::Managed, &Managed(&engine_key)))
            }
            MasterKey::Customer(name) => {
                let request = DescribeKeyRequest::new(name.clone(), principal.clone());
                (MasterKind::Customer, name.as_str(), self.ask(MasterKind::Customer, &request))
            }
        };
        let refused = |source| Error::MasterKeyUnavailable { key: name.to_owned(), source };
        let described = answer.map_err(refused)?;
        let reason = match described.state {
            KeyState::Enabled => return Ok(Master { kind, arn: described.arn }),
            KeyState::PendingDeletion => ProviderReason::KeyPendingDeletion,
            KeyState::PendingImport => ProviderReason::KeyPendingImport,
            KeyState::Disabled | KeyState::Unavailable => ProviderReason::KeyDisabled,
        };
        Err(refused(ProviderError::new(reason, format!("{} is {:?}", described.arn, described.state))))
    }

    /// See to it that the service may use a master key, as `creator`. `None` from a provider that has no grants. Asks the provider; no lock may be held.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`] with the provider's reason, also if `creator` may not grant that.
    pub(crate) fn create_grant(&self, master: &Master, creator: &Principal) -> Result<Option<Grant>> {
        let refused = |source| Error::MasterKeyUnavailable { key: master.arn.clone(), source };
        let store = EncryptionContext::from_pairs([(STORE_CONTEXT, self.store.to_string())]).map_err(refused)?;
        let operations = GRANT_OPERATIONS.to_vec();
        let mut request = CreateGrantRequest::new(master.arn.clone(), Principal::Service, operations, creator.clone());
        request.retiring_principal = Some(Principal::Service);
        request.constraint = Some(GrantConstraint::Contains(store));
        request.name = Some(format!("strongroom:{}", self.store));
        match self.ask(master.kind, &request) {
            Ok(grant) if grant.key_arn == master.arn => Ok(Some(grant)),
            Ok(grant) => Err(refused(other_key(&grant.key_arn))),
            Err(source) if source.reason == ProviderReason::Unsupported => Ok(None),
            Err(source) => Err(refused(source)),
        }
    }

    /// Give a grant up, as the service, to whom it was given. Asks the provider; no lock may be held.
    pub(crate) fn retire_grant(&self, grant: &GrantRecord) -> ProviderResult<()> {
        let request = EndGrantRequest::new(grant.key_arn.clone(), grant.grant_id.clone(), Principal::Service);
        self.ask(grant.master, &Retire(&request))
    }

    /// Have a customer's master key destroyed in so many days, as its owner. Asks the provider; no lock may be held.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`] with the provider's reason.
    pub(crate) fn destroy_master_key(&self, arn: &str, days: u32) -> Result<()> {
        let request = ScheduleKeyDeletionRequest::new(arn, days, Principal::Owner);
        let refused = |source| Error::MasterKeyUnavailable { key: arn.to_owned(), source };
        match self.ask(MasterKind::Customer, &request) {
            Ok(key) if key.arn == arn => Ok(()),
            Ok(key) => Err(refused(other_key(&key.arn))),
            Err(source) => Err(refused(source)),
        }
    }

    /// Send a grant's token along from now on.
    pub(crate) fn know_grant(&self, grant: &GrantRecord) {
        self.grant_tokens.write().insert(grant.key_arn.clone(), grant.token.clone());
    }

    /// Send it along no longer.
    pub(crate) fn forget_grant(&self, key_arn: &str) {
        self.grant_tokens.write().remove(key_arn);
    }

    /// What shows the provider that a principal has a grant for this key. Only the service has.
    fn grant_tokens(&self, key_arn: &str, principal: &Principal) -> Vec<String> {
        match principal {
            Principal::Service => self.grant_tokens.read().get(key_arn).cloned().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// A new key for a generation of a table, made by the provider of `master`. No lock may be held.
    ///
    /// # Errors
    /// [`Error::KeyUnavailable`] with the provider's reason.
    fn new_table_key(
        &self,
        table: TableId,
        generation: Generation,
        master: &Master,
        principal: &Principal,
    ) -> Result<NewKey> {
        let context = self.context(table, generation).map_err(|source| Error::KeyUnavailable { table, source })?;
        let mut request = GenerateDataKeyRequest::new(master.arn.clone(), context.clone(), principal.clone());
        request.grant_tokens = self.grant_tokens(&master.arn, principal);
        let sent = self.time.advance();
        let made = self
            .ask(master.kind, &request)
            .and_then(|made| if made.key_arn == master.arn { Ok(made) } else { Err(other_key(&made.key_arn)) })
            .and_then(|made| match made.ciphertext.len() {
                1..=WRAPPED_BYTES_MAX => Ok(made),
                len => Err(unexpected(format!("a wrapped key of {len} bytes, not of 1 to {WRAPPED_BYTES_MAX}"))),
            })
            .map_err(|source| Error::KeyUnavailable { table, source })?;
        let key = TableKey::new(made.plaintext.into_secret(), self.store, table, generation);
        let wrap = Wrap {
            generation,
            key_arn: made.key_arn,
            context: context.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            wrapped: made.ciphertext,
            commitment: *key.commitment(),
            created_ms: self.clock.wall_ms(),
            retired: false,
        };
        Ok(NewKey { key, wrap, sent, lifetime: made.lifetime })
    }

    /// As [`new_table_key`](KeyBroker::new_table_key), and believed to be in its wrap only once it has come out of it. Without that a wrong
    /// answer would be noticed when the first permit has ended, and all that was written until then lost.
    ///
    /// # Errors
    /// As for [`new_table_key`](KeyBroker::new_table_key); an answer that does not open is [`ProviderReason::UnexpectedAnswer`]. No data
    /// is under it yet, so it is neither tampering nor somebody else's key.
    pub(crate) fn proven_key(
        &self,
        table: TableId,
        generation: Generation,
        master: &Master,
        principal: &Principal,
    ) -> Result<NewKey> {
        let new = self.new_table_key(table, generation, master, principal)?;
        match self.unwrap(table, master.kind, &new.wrap, principal) {
            Ok(_) => Ok(new),
            Err(Error::WrongKey { .. } | Error::Tampered { .. }) => {
                let source = unexpected("the new wrapped key does not open to the key that came with it");
                Err(Error::KeyUnavailable { table, source })
            }
            Err(error) => Err(error),
        }
    }

    /// A new system key, under the owned master key.
    ///
    /// # Errors
    /// As for [`resolve`](KeyBroker::resolve) and [`proven_key`](KeyBroker::proven_key).
    pub(crate) fn new_system_key(&self, generation: Generation) -> Result<NewKey> {
        let master = self.resolve(&MasterKey::Owned, &Principal::Service)?;
        self.proven_key(TableId::SYSTEM, generation, &master, &Principal::Service)
    }

    /// Begin a principal's permit for a table with the key that was just made for it.
    ///
    /// # Errors
    /// [`Error::KeyUnavailable`] if the key may not be used any more, because the answer took so long.
    pub(crate) fn prime(&self, lease: &TableLease, permit: &Arc<Permit>, new: NewKey) -> Result<Arc<KeySet>> {
        let NewKey { key, sent, lifetime, .. } = new;
        lease.prime(permit, self.terms(), sent, Unwrapped { keys: KeySet::one(key), lifetime })
    }

    /// The keys of a table, for a principal who has or gets a permit. `record` reads the table's key file if the
    /// provider has to be asked. Waits; no lock may be held.
    ///
    /// # Errors
    /// [`Error::KeyUnavailable`] with the provider's reason, [`Error::WrongKey`] if another key came back,
    /// [`Error::Tampered`] if the provider does not recognise what it wrapped, and what `record` gives.
    pub(crate) fn acquire(
        &self,
        lease: &TableLease,
        permit: &Arc<Permit>,
        record: &dyn Fn() -> Result<KeyFile>,
    ) -> Result<Arc<KeySet>> {
        let keys = lease.acquire(permit, self.terms(), &self.asking(lease, permit, record));
        self.tell_news(lease);
        keys
    }

    /// What is to be done about a permit, for the warden.
    pub(crate) fn look(&self, lease: &TableLease, permit: &Arc<Permit>, begun: u64) -> Look {
        let look = lease.look(permit, begun, self.terms());
        if look == Look::Ended {
            self.tell_news(lease);
        }
        look
    }

    /// Renew a permit that is due ([`TableLease::look`]). For the background; no lock may be held.
    ///
    /// # Errors
    /// As for [`acquire`](KeyBroker::acquire).
    pub(crate) fn refresh(
        &self,
        lease: &TableLease,
        permit: &Arc<Permit>,
        record: &dyn Fn() -> Result<KeyFile>,
    ) -> Result<Renewal> {
        let renewal = lease.refresh(permit, self.terms(), &self.asking(lease, permit, record));
        if let Ok(Renewal::Renewed) = renewal {
            let principal = permit.principal().to_string();
            self.tell(Event::PermitRefreshed { table: lease.table(), principal });
        }
        self.tell_news(lease);
        renewal
    }

    /// Let go of a table's keys if there is still reason to ([`TableLease::ending`]), after its data was brought to
    /// safety. False if somebody got a permit in the meantime.
    pub(crate) fn purge(&self, lease: &TableLease) -> bool {
        if lease.forget_if_ended(self.time.advance()).is_none() {
            return false;
        }
        self.tell(Event::TablePurged { table: lease.table() });
        true
    }

    /// Asks the provider for every key of a table, for the principal of `permit`.
    fn asking<'a>(
        &'a self,
        lease: &'a TableLease,
        permit: &'a Arc<Permit>,
        record: &'a dyn Fn() -> Result<KeyFile>,
    ) -> impl Fn() -> Result<Unwrapped> + 'a {
        move || {
            let record = record()?;
            if record.table != lease.table() {
                return Err(tampered(lease.table(), "it is another table's"));
            }
            self.unwrap_all(&record, permit.principal())
        }
    }

    fn tell_news(&self, lease: &TableLease) {
        let table = lease.table();
        for (principal, news) in lease.take_news() {
            let principal = principal.to_string();
            self.tell(match news {
                News::Ended(why) => Event::PermitEnded { table, principal, why },
                News::StaleBegan => Event::StaleBegan { table, principal, limit_ms: self.stale.as_millis() as u64 },
                News::StaleEnded => Event::StaleEnded { table, principal },
            });
        }
    }

    /// Unwrap every generation that the record holds, and check each answer. A retired one is needed as long as something is
    /// sealed under it; when nothing is, its wrap is erased. Public to the crate for those who keep no permits (`inspect`);
    /// everybody else goes through [`acquire`](KeyBroker::acquire).
    ///
    /// # Errors
    /// As for [`acquire`](KeyBroker::acquire).
    pub(crate) fn unwrap_all(&self, record: &KeyFile, principal: &Principal) -> Result<Unwrapped> {
        let table = record.table;
        let mut lifetime = Lifetime::new();
        let mut keys = Vec::with_capacity(record.wraps.len());
        for wrap in &record.wraps {
            let (key, answered) = self.unwrap(table, record.master, wrap, principal)?;
            lifetime = shorter(lifetime, answered);
            keys.push(Arc::new(key));
        }
        let keys = KeySet::new(keys).ok_or_else(|| no_key(table))?;
        Ok(Unwrapped { keys, lifetime })
    }

    fn unwrap(
        &self,
        table: TableId,
        kind: MasterKind,
        wrap: &Wrap,
        principal: &Principal,
    ) -> Result<(TableKey, Lifetime)> {
        let context = EncryptionContext::from_pairs(wrap.context.iter().cloned())
            .map_err(|source| Error::KeyUnavailable { table, source })?;
        let mut request = DecryptRequest::new(wrap.key_arn.clone(), wrap.wrapped.clone(), context, principal.clone());
        request.grant_tokens = self.grant_tokens(&wrap.key_arn, principal);
        let opened = self.ask(kind, &request).map_err(|source| match source.reason {
            ProviderReason::InvalidCiphertext => tampered(table, "the provider does not recognise the wrapped key"),
            _ => Error::KeyUnavailable { table, source },
        })?;
        let wrong_key = Error::WrongKey { table, generation: wrap.generation };
        // Opened, but with a key of somebody else's: then whoever holds that key chose what is in the wrap.
        if opened.key_arn != wrap.key_arn {
            return Err(wrong_key);
        }
        let key = TableKey::new(opened.plaintext.into_secret(), self.store, table, wrap.generation);
        if *key.commitment() != wrap.commitment {
            return Err(wrong_key);
        }
        self.tell(Event::KeyUnwrapped { table, generation: wrap.generation });
        Ok((key, opened.lifetime))
    }

    /// What a generation of a table's key is bound to. The table's name is not in it: it would stand in clear in the provider's log.
    fn context(&self, table: TableId, generation: Generation) -> ProviderResult<EncryptionContext> {
        let purpose = if table == TableId::SYSTEM { "system key" } else { "table key" };
        EncryptionContext::from_pairs([
            ("strongroom:purpose", purpose.to_owned()),
            (STORE_CONTEXT, self.store.to_string()),
            ("strongroom:table", table.to_string()),
            ("strongroom:generation", generation.to_string()),
        ])
    }

    /// Ask the provider of this kind of key: the one way on which requests leave the store. They are recorded once the answer is there and
    /// before it is used, unless they are about the owned key. No lock may be held.
    fn ask<C: Call>(&self, kind: MasterKind, call: &C) -> ProviderResult<C::Answer> {
        let _span = trace::span!(DEBUG, "provider"; operation = C::OPERATION.name()).entered();
        let asked = self.clock.tick();
        let answer = guarded(|| call.send(self.provider(kind)));
        let lasted_ns = self.clock.tick().since(asked);
        self.meters.provider_asked(C::OPERATION, answer.as_ref(), lasted_ns);
        trace::event!(DEBUG, "answered"; outcome = outcome(answer.as_ref().err()), lasted_ns = lasted_ns);
        match self.trail.get() {
            Some(trail) if kind != MasterKind::Owned => trail.provider_asked(call, &answer).and(answer),
            _ => answer,
        }
    }

    fn provider(&self, kind: MasterKind) -> &dyn KeyProvider {
        match kind {
            MasterKind::Owned => &*self.owned,
            MasterKind::Managed | MasterKind::Customer => &*self.main,
        }
    }

    fn terms(&self) -> Terms<'_> {
        Terms { time: &self.time, scheduler: &*self.scheduler, permit: self.permit, stale: self.stale }
    }

    fn tell(&self, event: Event) {
        if let Some(events) = &self.events {
            events.event(&event);
        }
    }
}

/// What came of a request, in a word.
fn outcome(error: Option<&ProviderError>) -> &'static str {
    match error.map(ProviderError::class) {
        None => "ok",
        Some(ProviderClass::Transient) => "transient",
        Some(ProviderClass::Principal) => "principal",
        Some(ProviderClass::Key) => "key",
        Some(ProviderClass::Material) => "material",
        Some(ProviderClass::Request) => "request",
    }
}

/// Refuse a provider whose keyring lies inside the store: a key beside the data protects nothing. Asked before anything is created.
///
/// # Errors
/// [`Error::InvalidArgument`], or [`Error::Io`] if one of the paths cannot be resolved.
pub(crate) fn refuse_keyring_inside(provider: &dyn KeyProvider, store: &Path, vfs: &dyn Vfs) -> Result<()> {
    let Some(keyring) = provider.keyring_path() else {
        return Ok(());
    };
    let canonical = |path: &Path| vfs.canonical(path).map_err(|error| Error::io("resolve", path.display(), error));
    if canonical(keyring)?.starts_with(canonical(store)?) {
        let detail = format!("{} lies inside the store {}", keyring.display(), store.display());
        return Err(Error::InvalidArgument { what: "keyring", detail });
    }
    Ok(())
}

/// Call a provider. A panic in it is an answer like any other wrong one: nothing of ours was locked or half done.
fn guarded<T>(call: impl FnOnce() -> ProviderResult<T>) -> ProviderResult<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(ProviderError::new(ProviderReason::UnexpectedAnswer, "the provider panicked")))
}

fn other_key(arn: &str) -> ProviderError {
    unexpected(format!("it is wrapped under {arn}, which was not asked for"))
}

fn unexpected(message: impl Into<String>) -> ProviderError {
    ProviderError::new(ProviderReason::UnexpectedAnswer, message)
}

fn no_key(table: TableId) -> Error {
    tampered(table, "it holds no key")
}

fn tampered(table: TableId, detail: &'static str) -> Error {
    Error::Tampered { file: format!("key file of table {table}"), offset_bytes: 0, detail }
}

fn shorter(one: Lifetime, other: Lifetime) -> Lifetime {
    let min = |one: Option<Duration>, other: Option<Duration>| match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let mut shorter = Lifetime::new();
    shorter.refresh_after = min(one.refresh_after, other.refresh_after);
    shorter.expire_after = min(one.expire_after, other.expire_after);
    shorter
}
