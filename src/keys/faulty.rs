//! A provider that fails on a plan, for tests. It counts what it is asked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::provider::*;
use crate::error::{ProviderError, ProviderReason};

/// What an answer is replaced by, from when it is planned until it is planned otherwise.
#[derive(Clone)]
pub(crate) enum Fault {
    /// This failure.
    Fail(ProviderReason),
    /// A right-looking answer with another data key in it.
    OtherDataKey,
    /// The right data key, said to come from this key.
    OtherArn(String),
    /// A data key of this many bytes.
    Length(usize),
    /// A panic.
    Panic,
    /// The right answer, with this lifetime.
    Lasts(Lifetime),
    /// The right answer, after something has happened: time passed, a thread waited, the key was disabled.
    After(Arc<dyn Fn() + Send + Sync>),
}

/// Wraps a provider. Faults befall [`KeyProvider::decrypt`], for one principal or all.
pub(crate) struct FaultyProvider {
    inner: Arc<dyn KeyProvider>,
    plan: Mutex<Vec<(Option<Principal>, Fault)>>,
    decrypts: AtomicU64,
    generates: AtomicU64,
}

impl FaultyProvider {
    pub(crate) fn new(inner: impl KeyProvider + 'static) -> Arc<FaultyProvider> {
        Arc::new(FaultyProvider {
            inner: Arc::new(inner),
            plan: Mutex::default(),
            decrypts: AtomicU64::new(0),
            generates: AtomicU64::new(0),
        })
    }

    /// From now on, do this to every decrypt.
    pub(crate) fn inject(&self, fault: Fault) {
        *self.plan.lock() = vec![(None, fault)];
    }

    /// From now on, do this to the decrypts of one principal.
    pub(crate) fn inject_for(&self, principal: Principal, fault: Fault) {
        *self.plan.lock() = vec![(Some(principal), fault)];
    }

    /// From now on, answer as the wrapped provider does.
    pub(crate) fn heal(&self) {
        self.plan.lock().clear();
    }

    pub(crate) fn decrypts(&self) -> u64 {
        self.decrypts.load(Ordering::SeqCst)
    }

    pub(crate) fn generates(&self) -> u64 {
        self.generates.load(Ordering::SeqCst)
    }

    fn fault_for(&self, principal: &Principal) -> Option<Fault> {
        let plan = self.plan.lock();
        let applies = |whom: &Option<Principal>| whom.as_ref().is_none_or(|whom| whom == principal);
        plan.iter().find(|(whom, _)| applies(whom)).map(|(_, fault)| fault.clone())
    }
}

impl KeyProvider for FaultyProvider {
    fn describe(&self) -> ProviderDescription {
        self.inner.describe()
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.inner.describe_key(request)
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        self.generates.fetch_add(1, Ordering::SeqCst);
        self.inner.generate_data_key(request)
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        self.decrypts.fetch_add(1, Ordering::SeqCst);
        let answer = || self.inner.decrypt(request);
        let Some(fault) = self.fault_for(&request.principal) else {
            return answer();
        };
        match fault {
            Fault::Fail(reason) => Err(ProviderError::new(reason, "as planned")),
            Fault::OtherDataKey => {
                Ok(DecryptedDataKey::new(DataKey::from_fn(|key| key.fill(7)), request.key_arn.clone()))
            }
            Fault::OtherArn(arn) => Ok(DecryptedDataKey::new(answer()?.plaintext, arn)),
            Fault::Length(len) => {
                Ok(DecryptedDataKey::new(DataKey::try_from_slice(&vec![7; len])?, request.key_arn.clone()))
            }
            Fault::Panic => panic!("as planned"),
            Fault::Lasts(lifetime) => {
                let mut answer = answer()?;
                answer.lifetime = lifetime;
                Ok(answer)
            }
            Fault::After(event) => {
                event();
                answer()
            }
        }
    }

    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        self.inner.encrypt(request)
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.inner.managed_key(request)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.inner.owned_key(request)
    }
}

impl fmt::Debug for FaultyProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyProvider").field("inner", &self.inner).finish_non_exhaustive()
    }
}
