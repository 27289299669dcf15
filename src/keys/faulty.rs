//! A provider that fails on a plan and remembers what it was asked: for tests of the engine, and of programs on it.
//!
//! ```text
//! store ── FaultyProvider ── rules: "the owner's 3rd decrypt under this key: throttled"     any provider
//!               │            outage: "the 2nd request is carried out, but nobody learns of it"  beneath
//!               ├─ counts: how often each operation was asked for, and by whom
//!               └─ log: the latest requests, without anything secret
//! ```
//!
//! It is to a key provider what [`io::fault`](crate::io::fault) is to files, and its rules read alike. Each request is counted, then
//! held against the rules in the order in which they were given; all that match befall it. A [`Rule`] has its own count of the
//! requests that it matches, so "the 3rd decrypt" does not depend on what happened before the rule was given.
//!
//! # Example
//! A program that must survive a throttled KMS and stop at a disabled key can be shown both:
//!
//! ```
//! use std::sync::Arc;
//! use strongroom::error::ProviderReason;
//! use strongroom::io::Environment;
//! use strongroom::keys::faulty::{FaultyProvider, Operation, Rule};
//! use strongroom::{ErrorKind, LocalKms, MasterKey, Store, TableOptions};
//!
//! # fn main() -> strongroom::Result<()> {
//! let world = Environment::simulated(1);
//! let kms = LocalKms::in_memory(world.clone())?;
//! kms.create_key(Some("alias/orders"), "")?;
//! let faulty = FaultyProvider::new(kms);
//! let store = Store::builder("/store").key_provider(faulty.clone()).environment(world.clone()).create()?;
//! let orders = TableOptions::new().master_key(MasterKey::customer("alias/orders"));
//!
//! // No key, no table, and nothing is left behind.
//! faulty.inject(Rule::on(Operation::GenerateDataKey).nth(1).fail(ProviderReason::Throttled));
//! let refused = store.create_table("orders", orders.clone()).unwrap_err();
//! assert_eq!(refused.kind(), ErrorKind::KeyUnavailable);
//!
//! // The second attempt gets through: the rule was about the first request alone.
//! let table = store.create_table("orders", orders)?;
//! table.put("1", "an apple")?;
//! assert_eq!(faulty.count(Operation::GenerateDataKey), 3); // The store's own key was the first.
//! # store.close()
//! # }
//! ```

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::provider::*;
use crate::error::{ProviderError, ProviderReason};
use crate::io::{Environment, Signal};

/// How many of the latest requests are remembered. The counts are of all.
const LOG_MAX: usize = 10_000;

/// What a provider is asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the method of `KeyProvider` of that name")]
pub enum Operation {
    DescribeKey,
    GenerateDataKey,
    Decrypt,
    Encrypt,
    ReEncrypt,
    ManagedKey,
    OwnedKey,
    CreateGrant,
    RetireGrant,
    RevokeGrant,
    ScheduleKeyDeletion,
}

/// What shall befall some requests: of which operation, by whom, for which key, the how-manieth, and what.
///
/// ```
/// use std::time::Duration;
/// use strongroom::error::ProviderReason;
/// use strongroom::keys::Principal;
/// use strongroom::keys::faulty::{Operation, Rule};
///
/// // The engine's own first three decrypts from now on are throttled, the fourth is not.
/// let throttled = Rule::on(Operation::Decrypt).principal(Principal::Service).first(3).fail(ProviderReason::Throttled);
/// // Every request takes 50 ms.
/// let slow = Rule::on_any().always().delay(Duration::from_millis(50));
/// # let _ = (throttled, slow);
/// ```
#[derive(Clone)]
pub struct Rule {
    operation: Option<Operation>,
    principal: Option<Principal>,
    key: Option<String>,
    first: u64,
    last: u64,
    effect: Effect,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone)]
enum Effect {
    Fail(ProviderReason),
    Delay(Duration),
    Call(Hook),
    Panic,
    Outage,
    KeyBytes(usize),
    OtherDataKey,
    OtherArn(String),
    OtherKey(String),
    CiphertextBytes(usize),
    Lifetime(Lifetime),
}

impl Rule {
    /// The first request for this operation fails as [unreachable](ProviderReason::Unreachable); the methods below say otherwise.
    pub fn on(operation: Operation) -> Rule {
        Rule { operation: Some(operation), ..Rule::on_any() }
    }

    /// The first request for whatever operation fails as [unreachable](ProviderReason::Unreachable).
    pub fn on_any() -> Rule {
        let effect = Effect::Fail(ProviderReason::Unreachable);
        Rule { operation: None, principal: None, key: None, first: 1, last: 1, effect }
    }

    /// Only requests of this principal.
    pub fn principal(mut self, principal: Principal) -> Rule {
        self.principal = Some(principal);
        self
    }

    /// Only requests that name this key so: by its ARN, except where the engine does not know it yet and asks by alias or id. A
    /// re-encryption names two keys, and either will do.
    pub fn key(mut self, key: impl Into<String>) -> Rule {
        self.key = Some(key.into());
        self
    }

    /// Only the `n`-th such request, counted from 1.
    pub fn nth(mut self, n: u64) -> Rule {
        (self.first, self.last) = (n, n);
        self
    }

    /// The first `n` such requests; the next one finds everything well.
    pub fn first(mut self, n: u64) -> Rule {
        (self.first, self.last) = (1, n);
        self
    }

    /// The `n`-th such request, counted from 1, and all after it.
    pub fn from_nth(mut self, n: u64) -> Rule {
        (self.first, self.last) = (n, u64::MAX);
        self
    }

    /// Every such request.
    pub fn always(self) -> Rule {
        self.from_nth(1)
    }

    /// Fail for this reason, without asking the provider beneath.
    pub fn fail(self, reason: ProviderReason) -> Rule {
        self.with(Effect::Fail(reason))
    }

    /// Let this much time pass, then go on: simulated time if the provider was given
    /// [an environment](FaultyProvider::in_environment), real time otherwise.
    pub fn delay(self, duration: Duration) -> Rule {
        self.with(Effect::Delay(duration))
    }

    /// Call `hook`, then go on: to wait for something else, or to change something while the request is on its way.
    pub fn call(self, hook: impl Fn() + Send + Sync + 'static) -> Rule {
        self.with(Effect::Call(Arc::new(hook)))
    }

    /// Panic.
    pub fn panic(self) -> Rule {
        self.with(Effect::Panic)
    }

    /// The connection breaks while this request is being answered: it is carried out, but its answer is lost, and nothing can be
    /// reached until [`heal`](FaultyProvider::heal).
    pub fn outage(self) -> Rule {
        self.with(Effect::Outage)
    }

    /// Find a data key of this many bytes in the answer. Only for answers with a plaintext.
    pub fn key_bytes(self, len_bytes: usize) -> Rule {
        self.with(Effect::KeyBytes(len_bytes))
    }

    /// Answer with another data key (32 times the byte 7). Only for answers with a plaintext.
    pub fn other_data_key(self) -> Rule {
        self.with(Effect::OtherDataKey)
    }

    /// Say that the right answer comes from the master key of this ARN.
    pub fn other_arn(self, arn: impl Into<String>) -> Rule {
        self.with(Effect::OtherArn(arn.into()))
    }

    /// Do what was asked, but with this master key of the provider's, say that of another tenant. Where a plaintext was
    /// asked for, it is a fresh one under that key.
    pub fn other_key(self, key: impl Into<String>) -> Rule {
        self.with(Effect::OtherKey(key.into()))
    }

    /// Cut the wrapped key off, or fill it up with zeros, to this length: in the request if it has one, else in the answer.
    pub fn ciphertext_bytes(self, len_bytes: usize) -> Rule {
        self.with(Effect::CiphertextBytes(len_bytes))
    }

    /// Answer right, with this lifetime. Only for answers with a plaintext.
    pub fn lifetime(self, lifetime: Lifetime) -> Rule {
        self.with(Effect::Lifetime(lifetime))
    }

    fn with(mut self, effect: Effect) -> Rule {
        self.effect = effect;
        self
    }

    fn matches(&self, operation: Operation, principal: &Principal, keys: [&str; 2]) -> bool {
        self.operation.is_none_or(|wanted| wanted == operation)
            && self.principal.as_ref().is_none_or(|wanted| wanted == principal)
            && self.key.as_deref().is_none_or(|wanted| keys.contains(&wanted))
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { operation, principal, key, first, last, effect } = self;
        write!(f, "Rule({operation:?} by {principal:?} for {key:?}, {first} to {last}: {effect:?})")
    }
}

impl fmt::Debug for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Fail(reason) => write!(f, "fail: {reason}"),
            Effect::Delay(duration) => write!(f, "{duration:?} later"),
            Effect::Call(_) => f.write_str("call"),
            Effect::Panic => f.write_str("panic"),
            Effect::Outage => f.write_str("outage"),
            Effect::KeyBytes(len) => write!(f, "data key of {len} bytes"),
            Effect::OtherDataKey => f.write_str("other data key"),
            Effect::OtherArn(arn) => write!(f, "as if from {arn}"),
            Effect::OtherKey(key) => write!(f, "with {key}"),
            Effect::CiphertextBytes(len) => write!(f, "ciphertext of {len} bytes"),
            Effect::Lifetime(lifetime) => write!(f, "{lifetime:?}"),
        }
    }
}

/// A request that was made, as far as it is not secret.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Asked {
    /// What for.
    pub operation: Operation,
    /// By whom.
    pub principal: Principal,
    /// The master key, as the request named it; a re-encryption's source.
    pub key: String,
    /// The master key to wrap under, if it is a re-encryption.
    pub destination_key: Option<String>,
    /// The encryption context, if there is one; a re-encryption's source.
    pub context: EncryptionContext,
    /// What came of it. `None` while it is being answered, and if that ended by a panic.
    pub outcome: Option<Result<(), ProviderReason>>,
}

/// Wraps a provider, and does as it does until it is told otherwise. Clones share rules, counts and log.
#[derive(Clone)]
pub struct FaultyProvider {
    inner: Arc<dyn KeyProvider>,
    environment: Environment,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    rules: Vec<ActiveRule>,
    outage: bool,
    counts: BTreeMap<(Operation, Principal), u64>,
    log: VecDeque<Asked>,
    /// How many requests were logged and have fallen out of the log.
    forgotten: u64,
}

struct ActiveRule {
    rule: Rule,
    seen: u64,
}

impl FaultyProvider {
    /// A provider that does as `inner` does until it is told otherwise.
    pub fn new(inner: impl KeyProvider + 'static) -> FaultyProvider {
        FaultyProvider::over(Arc::new(inner))
    }

    /// Like [`new`](FaultyProvider::new), over a provider that is shared already.
    pub fn over(inner: Arc<dyn KeyProvider>) -> FaultyProvider {
        FaultyProvider { inner, environment: Environment::os(), shared: Arc::default() }
    }

    /// Let [delays](Rule::delay) take the time of this environment: in a simulated one other tasks run meanwhile, and nobody waits.
    pub fn in_environment(mut self, environment: &Environment) -> FaultyProvider {
        self.environment = environment.clone();
        self
    }

    /// Obey `rule` from now on, besides those that were given before.
    pub fn inject(&self, rule: Rule) {
        self.shared.lock().rules.push(ActiveRule { rule, seen: 0 });
    }

    /// Forget all rules and end an [outage](Rule::outage). Counts and log stay.
    pub fn heal(&self) {
        let mut shared = self.shared.lock();
        shared.rules.clear();
        shared.outage = false;
    }

    /// How often an operation was asked for, refused requests included.
    pub fn count(&self, operation: Operation) -> u64 {
        let shared = self.shared.lock();
        shared.counts.iter().filter(|((counted, _), _)| *counted == operation).map(|(_, count)| count).sum()
    }

    /// How often an operation was asked for by one principal, refused requests included.
    pub fn count_by(&self, operation: Operation, principal: &Principal) -> u64 {
        let shared = self.shared.lock();
        shared.counts.get(&(operation, principal.clone())).copied().unwrap_or(0)
    }

    /// How many requests there were in all.
    pub fn count_all(&self) -> u64 {
        self.shared.lock().counts.values().sum()
    }

    /// The requests, oldest first: all of them, or the latest 10,000.
    pub fn requests(&self) -> Vec<Asked> {
        self.shared.lock().log.iter().cloned().collect()
    }

    /// Count and log a request, let befall it what shall, and pass it on.
    fn ask<Q: Question, A: Answer>(
        &self,
        operation: Operation,
        question: &Q,
        pass_on: impl FnOnce(&Q, Option<&str>) -> ProviderResult<A>,
    ) -> ProviderResult<A> {
        let (number, befalls) = self.shared.lock().enter(operation, question);
        let outcome = self.befall(question, &befalls, pass_on);
        self.shared.lock().leave(number, outcome.as_ref().map(|_| ()).map_err(|error| error.reason));
        outcome
    }

    fn befall<Q: Question, A: Answer>(
        &self,
        question: &Q,
        befalls: &[Effect],
        pass_on: impl FnOnce(&Q, Option<&str>) -> ProviderResult<A>,
    ) -> ProviderResult<A> {
        let mut asked = question.copy();
        let mut other_key = None;
        let mut lost = false;
        for effect in befalls {
            match effect {
                Effect::Fail(reason) => return Err(ProviderError::new(*reason, "as planned")),
                Effect::Delay(duration) => self.wait(*duration),
                Effect::Call(hook) => hook(),
                Effect::Panic => panic!("as planned"),
                Effect::Outage => lost = true,
                Effect::OtherKey(key) => {
                    asked.set_key(key);
                    other_key = Some(key.as_str());
                }
                Effect::CiphertextBytes(len) => resize(asked.ciphertext(), *len),
                Effect::KeyBytes(_) | Effect::OtherDataKey | Effect::OtherArn(_) | Effect::Lifetime(_) => {}
            }
        }
        let answer = pass_on(&asked, other_key);
        if lost {
            self.shared.lock().outage = true;
            return Err(ProviderError::new(ProviderReason::Unreachable, "as planned: the answer was lost"));
        }
        let mut answer = answer?;
        for effect in befalls {
            match effect {
                Effect::KeyBytes(len) if answer.plaintext().is_some() => {
                    let key = DataKey::try_from_slice(&vec![7; *len])?;
                    answer
                        .plaintext()
                        .into_iter()
                        .for_each(|place| *place = DataKey::from_fn(|to| *to = *key.expose()));
                }
                Effect::OtherDataKey => {
                    answer.plaintext().into_iter().for_each(|key| *key = DataKey::from_fn(|to| to.fill(7)));
                }
                Effect::OtherArn(arn) => answer.arn().into_iter().for_each(|place| place.clone_from(arn)),
                // What stands in the request was changed there.
                Effect::CiphertextBytes(len) if asked.ciphertext().is_none() => resize(answer.ciphertext(), *len),
                Effect::Lifetime(lifetime) => answer.lifetime().into_iter().for_each(|place| *place = *lifetime),
                _ => {}
            }
        }
        Ok(answer)
    }

    fn wait(&self, duration: Duration) {
        let Environment { clock, scheduler, .. } = &self.environment;
        let deadline = clock.tick().after(duration);
        scheduler.wait_until(&Signal::new(), &**clock, Some(deadline), &mut || false);
    }
}

impl Shared {
    /// The request's number, and what shall befall it.
    fn enter<Q: Question>(&mut self, operation: Operation, question: &Q) -> (u64, Vec<Effect>) {
        let principal = question.principal();
        let keys = [question.key(), question.destination().unwrap_or_default()];
        *self.counts.entry((operation, principal.clone())).or_default() += 1;
        self.log.push_back(Asked {
            operation,
            principal: principal.clone(),
            key: question.key().to_owned(),
            destination_key: question.destination().map(str::to_owned),
            context: question.context().cloned().unwrap_or_default(),
            outcome: None,
        });
        if self.log.len() > LOG_MAX {
            self.log.pop_front();
            self.forgotten += 1;
        }
        let number = self.forgotten + self.log.len() as u64;
        let mut befalls = Vec::new();
        for active in &mut self.rules {
            if active.rule.matches(operation, principal, keys) {
                active.seen += 1;
                if (active.rule.first..=active.rule.last).contains(&active.seen) {
                    befalls.push(active.rule.effect.clone());
                }
            }
        }
        if self.outage {
            befalls.insert(0, Effect::Fail(ProviderReason::Unreachable));
        }
        (number, befalls)
    }

    fn leave(&mut self, number: u64, outcome: Result<(), ProviderReason>) {
        let place = number.checked_sub(self.forgotten + 1).and_then(|place| usize::try_from(place).ok());
        if let Some(asked) = place.and_then(|place| self.log.get_mut(place)) {
            asked.outcome = Some(outcome);
        }
    }
}

fn resize(ciphertext: Option<&mut Vec<u8>>, len_bytes: usize) {
    if let Some(ciphertext) = ciphertext {
        ciphertext.resize(len_bytes, 0);
    }
}

impl KeyProvider for FaultyProvider {
    fn describe(&self) -> ProviderDescription {
        self.inner.describe()
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.ask(Operation::DescribeKey, request, |request, _| self.inner.describe_key(request))
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        self.ask(Operation::GenerateDataKey, request, |request, _| self.inner.generate_data_key(request))
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        self.ask(Operation::Decrypt, request, |request, other_key| {
            let Some(other_key) = other_key else { return self.inner.decrypt(request) };
            // No key opens another's wrap: a tenant who got his own opened in its place looks like this.
            let DecryptRequest { context, principal, .. } = request.clone();
            let other = self.inner.generate_data_key(&GenerateDataKeyRequest::new(other_key, context, principal))?;
            Ok(DecryptedDataKey::new(other.plaintext, other.key_arn))
        })
    }

    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        self.ask(Operation::Encrypt, request, |request, _| self.inner.encrypt(request))
    }

    fn re_encrypt(&self, request: &ReEncryptRequest) -> ProviderResult<EncryptedDataKey> {
        self.ask(Operation::ReEncrypt, request, |request, _| self.inner.re_encrypt(request))
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        let question = EngineQuestion(MANAGED_ALIAS, request);
        self.ask(Operation::ManagedKey, &question, |_, other| match other {
            Some(other) => self.inner.describe_key(&DescribeKeyRequest::new(other, request.principal.clone())),
            None => self.inner.managed_key(request),
        })
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        let question = EngineQuestion(OWNED_ALIAS, request);
        self.ask(Operation::OwnedKey, &question, |_, other| match other {
            Some(other) => self.inner.describe_key(&DescribeKeyRequest::new(other, request.principal.clone())),
            None => self.inner.owned_key(request),
        })
    }

    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        self.ask(Operation::CreateGrant, request, |request, _| self.inner.create_grant(request))
    }

    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.ask(Operation::RetireGrant, request, |request, _| self.inner.retire_grant(request))
    }

    fn revoke_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.ask(Operation::RevokeGrant, request, |request, _| self.inner.revoke_grant(request))
    }

    fn schedule_key_deletion(&self, request: &ScheduleKeyDeletionRequest) -> ProviderResult<KeyDescription> {
        self.ask(Operation::ScheduleKeyDeletion, request, |request, _| self.inner.schedule_key_deletion(request))
    }

    fn keyring_path(&self) -> Option<&Path> {
        self.inner.keyring_path()
    }
}

impl fmt::Debug for FaultyProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyProvider").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// What requests have in common, as far as faults are concerned.
trait Question: Sized {
    fn copy(&self) -> Self;
    fn principal(&self) -> &Principal;
    fn key(&self) -> &str;
    fn set_key(&mut self, key: &str);
    fn destination(&self) -> Option<&str> {
        None
    }
    fn context(&self) -> Option<&EncryptionContext> {
        None
    }
    fn ciphertext(&mut self) -> Option<&mut Vec<u8>> {
        None
    }
}

/// Implements [`Question`] for a request that names its key in `$key`.
macro_rules! question {
    ($request:ty, $key:ident $(, $($more:tt)*)?) => {
        impl Question for $request {
            fn copy(&self) -> $request {
                self.clone()
            }
            fn principal(&self) -> &Principal {
                &self.principal
            }
            fn key(&self) -> &str {
                &self.$key
            }
            fn set_key(&mut self, key: &str) {
                key.clone_into(&mut self.$key);
            }
            $($($more)*)?
        }
    };
}

question! { DescribeKeyRequest, key }
question! { CreateGrantRequest, key }
question! { EndGrantRequest, key_arn }
question! { ScheduleKeyDeletionRequest, key_arn }
question! {
    GenerateDataKeyRequest, key,
    fn context(&self) -> Option<&EncryptionContext> {
        Some(&self.context)
    }
}
question! {
    DecryptRequest, key_arn,
    fn context(&self) -> Option<&EncryptionContext> {
        Some(&self.context)
    }
    fn ciphertext(&mut self) -> Option<&mut Vec<u8>> {
        Some(&mut self.ciphertext)
    }
}

impl Question for ReEncryptRequest {
    fn copy(&self) -> ReEncryptRequest {
        self.clone()
    }
    fn principal(&self) -> &Principal {
        &self.principal
    }
    fn key(&self) -> &str {
        &self.source_key_arn
    }
    fn set_key(&mut self, key: &str) {
        key.clone_into(&mut self.destination_key);
    }
    fn destination(&self) -> Option<&str> {
        Some(&self.destination_key)
    }
    fn context(&self) -> Option<&EncryptionContext> {
        Some(&self.source_context)
    }
    fn ciphertext(&mut self) -> Option<&mut Vec<u8>> {
        Some(&mut self.ciphertext)
    }
}

impl Question for EncryptRequest {
    fn copy(&self) -> EncryptRequest {
        let plaintext = DataKey::from_fn(|key| *key = *self.plaintext.expose());
        let mut copy = EncryptRequest::new(self.key.clone(), plaintext, self.context.clone(), self.principal.clone());
        copy.grant_tokens.clone_from(&self.grant_tokens);
        copy
    }
    fn principal(&self) -> &Principal {
        &self.principal
    }
    fn key(&self) -> &str {
        &self.key
    }
    fn set_key(&mut self, key: &str) {
        key.clone_into(&mut self.key);
    }
    fn context(&self) -> Option<&EncryptionContext> {
        Some(&self.context)
    }
}

/// The request for one of the engine's two keys, which it does not name itself.
struct EngineQuestion<'a>(&'static str, &'a EngineKeyRequest);

impl Question for EngineQuestion<'_> {
    fn copy(&self) -> Self {
        EngineQuestion(self.0, self.1)
    }
    fn principal(&self) -> &Principal {
        &self.1.principal
    }
    fn key(&self) -> &str {
        self.0
    }
    fn set_key(&mut self, _key: &str) {}
}

/// What answers have in common, as far as faults are concerned.
trait Answer {
    fn plaintext(&mut self) -> Option<&mut DataKey> {
        None
    }
    fn ciphertext(&mut self) -> Option<&mut Vec<u8>> {
        None
    }
    fn arn(&mut self) -> Option<&mut String> {
        None
    }
    fn lifetime(&mut self) -> Option<&mut Lifetime> {
        None
    }
}

impl Answer for () {}

impl Answer for KeyDescription {
    fn arn(&mut self) -> Option<&mut String> {
        Some(&mut self.arn)
    }
}

impl Answer for Grant {
    fn arn(&mut self) -> Option<&mut String> {
        Some(&mut self.key_arn)
    }
}

impl Answer for GeneratedDataKey {
    fn plaintext(&mut self) -> Option<&mut DataKey> {
        Some(&mut self.plaintext)
    }
    fn ciphertext(&mut self) -> Option<&mut Vec<u8>> {
        Some(&mut self.ciphertext)
    }
    fn arn(&mut self) -> Option<&mut String> {
        Some(&mut self.key_arn)
    }
    fn lifetime(&mut self) -> Option<&mut Lifetime> {
        Some(&mut self.lifetime)
    }
}

impl Answer for DecryptedDataKey {
    fn plaintext(&mut self) -> Option<&mut DataKey> {
        Some(&mut self.plaintext)
    }
    fn arn(&mut self) -> Option<&mut String> {
        Some(&mut self.key_arn)
    }
    fn lifetime(&mut self) -> Option<&mut Lifetime> {
        Some(&mut self.lifetime)
    }
}

impl Answer for EncryptedDataKey {
    fn ciphertext(&mut self) -> Option<&mut Vec<u8>> {
        Some(&mut self.ciphertext)
    }
    fn arn(&mut self) -> Option<&mut String> {
        Some(&mut self.key_arn)
    }
}
