//! Every request that a provider can be asked, with what the trail says of it.
//!
//! [`Call`] is how the broker asks: one type per request, so that there is one function through which all of them go, and no request that the
//! trail does not know. (The engine gives grants up and never takes one away, so there is none for that.) What a record shows is chosen here, field by field: key names, contexts, grants. Plaintext and ciphertext are never looked at.

use super::record::{ENGINE, TrailResource, TrailValue};
use crate::error::ProviderError;
use crate::keys::provider::*;
use crate::metrics::ProviderOperation;

/// A request to a provider.
pub(in crate::keys) trait Call {
    /// What comes back.
    type Answer;

    /// As what it is counted.
    const OPERATION: ProviderOperation;

    /// Ask.
    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<Self::Answer>;

    /// What the trail says of it.
    fn shown(&self, answer: Result<&Self::Answer, &ProviderError>) -> Shown<'_>;
}

/// What the trail says of a request.
pub(in crate::keys) struct Shown<'a> {
    /// As KMS calls it.
    pub(super) name: &'static str,
    /// Who asked.
    pub(super) principal: &'a Principal,
    /// What was asked with.
    pub(super) request: TrailValue,
    /// What came back, of a call that changes something.
    pub(super) response: TrailValue,
    pub(super) additional: Vec<(&'static str, TrailValue)>,
    pub(super) read_only: bool,
    /// The keys that were used, as far as they are known.
    pub(super) keys: Vec<String>,
}

impl<'a> Shown<'a> {
    /// A cryptographic or describing request, of which no answer is shown.
    fn new(name: &'static str, principal: &'a Principal, keys: Vec<String>, request: TrailValue) -> Shown<'a> {
        Shown { name, principal, request, response: TrailValue::Null, additional: Vec::new(), read_only: true, keys }
    }

    pub(super) fn resources(&self) -> Vec<TrailResource> {
        self.keys.iter().map(|arn| TrailResource::key(arn)).collect()
    }
}

/// Asks for the key under [`MANAGED_ALIAS`]. At KMS that is a `DescribeKey` by alias, and so it is shown.
pub(in crate::keys) struct Managed<'a>(pub(in crate::keys) &'a EngineKeyRequest);
/// Asks for the key under [`OWNED_ALIAS`].
pub(in crate::keys) struct Owned<'a>(pub(in crate::keys) &'a EngineKeyRequest);
/// Gives a grant up.
pub(in crate::keys) struct Retire<'a>(pub(in crate::keys) &'a EndGrantRequest);

impl Call for DescribeKeyRequest {
    type Answer = KeyDescription;
    const OPERATION: ProviderOperation = ProviderOperation::DescribeKey;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<KeyDescription> {
        provider.describe_key(self)
    }

    fn shown(&self, answer: Result<&KeyDescription, &ProviderError>) -> Shown<'_> {
        describing(&self.key, &self.principal, answer)
    }
}

impl Call for Managed<'_> {
    type Answer = KeyDescription;
    const OPERATION: ProviderOperation = ProviderOperation::ManagedKey;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<KeyDescription> {
        provider.managed_key(self.0)
    }

    fn shown(&self, answer: Result<&KeyDescription, &ProviderError>) -> Shown<'_> {
        describing(MANAGED_ALIAS, &self.0.principal, answer)
    }
}

impl Call for Owned<'_> {
    type Answer = KeyDescription;
    const OPERATION: ProviderOperation = ProviderOperation::OwnedKey;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<KeyDescription> {
        provider.owned_key(self.0)
    }

    fn shown(&self, answer: Result<&KeyDescription, &ProviderError>) -> Shown<'_> {
        describing(OWNED_ALIAS, &self.0.principal, answer)
    }
}

impl Call for ScheduleKeyDeletionRequest {
    type Answer = KeyDescription;
    const OPERATION: ProviderOperation = ProviderOperation::ScheduleKeyDeletion;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<KeyDescription> {
        provider.schedule_key_deletion(self)
    }

    fn shown(&self, answer: Result<&KeyDescription, &ProviderError>) -> Shown<'_> {
        let request = TrailValue::object([
            ("keyId", self.key_arn.as_str().into()),
            ("pendingWindowInDays", u64::from(self.days).into()),
        ]);
        let mut shown = Shown::new("ScheduleKeyDeletion", &self.principal, vec![self.key_arn.clone()], request);
        shown.read_only = false;
        if answer.is_ok() {
            shown.response = TrailValue::object([("keyId", self.key_arn.as_str().into())]);
        }
        shown
    }
}

impl Call for GenerateDataKeyRequest {
    type Answer = GeneratedDataKey;
    const OPERATION: ProviderOperation = ProviderOperation::GenerateDataKey;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<GeneratedDataKey> {
        provider.generate_data_key(self)
    }

    fn shown(&self, answer: Result<&GeneratedDataKey, &ProviderError>) -> Shown<'_> {
        let request = TrailValue::object([
            ("keyId", self.key.as_str().into()),
            ("keySpec", "AES_256".into()),
            ("encryptionContext", context(&self.context)),
        ]);
        let key = answer.map_or(&self.key, |made| &made.key_arn);
        Shown::new("GenerateDataKey", &self.principal, vec![key.clone()], request)
    }
}

impl Call for DecryptRequest {
    type Answer = DecryptedDataKey;
    const OPERATION: ProviderOperation = ProviderOperation::Decrypt;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<DecryptedDataKey> {
        provider.decrypt(self)
    }

    fn shown(&self, _answer: Result<&DecryptedDataKey, &ProviderError>) -> Shown<'_> {
        Shown::new("Decrypt", &self.principal, vec![self.key_arn.clone()], keyed(&self.key_arn, &self.context))
    }
}

impl Call for EncryptRequest {
    type Answer = EncryptedDataKey;
    const OPERATION: ProviderOperation = ProviderOperation::Encrypt;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<EncryptedDataKey> {
        provider.encrypt(self)
    }

    fn shown(&self, answer: Result<&EncryptedDataKey, &ProviderError>) -> Shown<'_> {
        let key = answer.map_or(&self.key, |wrapped| &wrapped.key_arn);
        Shown::new("Encrypt", &self.principal, vec![key.clone()], keyed(&self.key, &self.context))
    }
}

impl Call for ReEncryptRequest {
    type Answer = EncryptedDataKey;
    const OPERATION: ProviderOperation = ProviderOperation::ReEncrypt;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<EncryptedDataKey> {
        provider.re_encrypt(self)
    }

    fn shown(&self, answer: Result<&EncryptedDataKey, &ProviderError>) -> Shown<'_> {
        let request = TrailValue::object([
            ("sourceKeyId", self.source_key_arn.as_str().into()),
            ("sourceEncryptionContext", context(&self.source_context)),
            ("destinationKeyId", self.destination_key.as_str().into()),
            ("destinationEncryptionContext", context(&self.destination_context)),
        ]);
        let destination = answer.map_or(&self.destination_key, |wrapped| &wrapped.key_arn);
        let keys = vec![self.source_key_arn.clone(), destination.clone()];
        Shown::new("ReEncrypt", &self.principal, keys, request)
    }
}

impl Call for CreateGrantRequest {
    type Answer = Grant;
    const OPERATION: ProviderOperation = ProviderOperation::CreateGrant;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<Grant> {
        provider.create_grant(self)
    }

    fn shown(&self, answer: Result<&Grant, &ProviderError>) -> Shown<'_> {
        let operations = self.operations.iter().map(|operation| format!("{operation:?}").into()).collect();
        let mut request = vec![
            ("keyId", self.key.as_str().into()),
            ("granteePrincipal", principal_id(&self.grantee).into()),
            ("operations", TrailValue::List(operations)),
        ];
        request.extend(self.retiring_principal.as_ref().map(|who| ("retiringPrincipal", principal_id(who).into())));
        request.extend(self.constraint.as_ref().map(|constraint| {
            let (name, pairs) = match constraint {
                GrantConstraint::Equals(pairs) => ("encryptionContextEquals", pairs),
                GrantConstraint::Contains(pairs) => ("encryptionContextSubset", pairs),
            };
            ("constraints", TrailValue::object([(name, context(pairs))]))
        }));
        request.extend(self.name.as_deref().map(|name| ("name", name.into())));
        let key = answer.map_or(&self.key, |grant| &grant.key_arn);
        let shown = Shown::new("CreateGrant", &self.principal, vec![key.clone()], TrailValue::object(request));
        // The id names the grant. The token stands for it, and is nobody else's business.
        let response =
            answer.map_or(TrailValue::Null, |grant| TrailValue::object([("grantId", grant.id.as_str().into())]));
        Shown { response, read_only: false, ..shown }
    }
}

impl Call for Retire<'_> {
    type Answer = ();
    const OPERATION: ProviderOperation = ProviderOperation::RetireGrant;

    fn send(&self, provider: &dyn KeyProvider) -> ProviderResult<()> {
        provider.retire_grant(self.0)
    }

    fn shown(&self, _answer: Result<&(), &ProviderError>) -> Shown<'_> {
        // As at KMS, which shows the grant's id not among the parameters, because a token can be given in its place.
        let request = TrailValue::object([("keyId", self.0.key_arn.as_str().into())]);
        let shown = Shown::new("RetireGrant", &self.0.principal, vec![self.0.key_arn.clone()], request);
        Shown { additional: vec![("grantId", self.0.grant_id.as_str().into())], read_only: false, ..shown }
    }
}

fn describing<'a>(key: &str, principal: &'a Principal, answer: Result<&KeyDescription, &ProviderError>) -> Shown<'a> {
    let keys = answer.map_or_else(|_| vec![key.to_owned()], |described| vec![described.arn.clone()]);
    Shown::new("DescribeKey", principal, keys, TrailValue::object([("keyId", key.into())]))
}

/// A principal, as the trail names it.
pub(super) fn principal_id(principal: &Principal) -> &str {
    match principal {
        Principal::Owner => "owner",
        Principal::Service => ENGINE,
        Principal::Named(name) => name,
    }
}

fn keyed(key: &str, pairs: &EncryptionContext) -> TrailValue {
    TrailValue::object([("keyId", key.into()), ("encryptionContext", context(pairs))])
}

fn context(pairs: &EncryptionContext) -> TrailValue {
    TrailValue::object(pairs.pairs().map(|(name, value)| (name, value.into())))
}
