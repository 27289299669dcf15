//! [`AwsKms`]: master keys in AWS KMS, which never leave it. Feature `aws-kms`.
//!
//! ```text
//! mod.rs       the provider: one KMS call per operation
//! driver.rs    a thread of its own with an async runtime, and the waiting side of it
//! trouble.rs   what each of KMS's errors means to the engine
//! ```
//!
//! The client is the caller's, with the credentials, region, HTTP client, TLS stack and time-outs that it was built with. Nothing is
//! read from the environment here.
//!
//! # Where plaintext stays
//! A data key arrives in KMS's answer. The buffer in which the SDK hands it over is wiped. What the SDK, the HTTP client and the TLS
//! stack held before that is theirs, and they do not wipe it: the JSON body with the key in Base64, the decrypted TLS record. For
//! [`encrypt`](KeyProvider::encrypt), which only moves a key here from another provider, the SDK keeps a copy of the key until the request is
//! done and does not wipe it either. [`re_encrypt`](KeyProvider::re_encrypt) shows the key to KMS alone.

mod driver;
mod trouble;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::{Blob, DateTime};
use aws_sdk_kms::types;

use self::driver::Driver;
use self::trouble::{trouble, unexpected};
use super::provider::*;
use crate::crypto::Wiped;
use crate::error::{ProviderError, ProviderReason};

/// How long an operation may take in all, retries included, unless the caller says otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The shortest waiting time that KMS allows before it deletes a key.
const DELETION_DAYS_MIN: i32 = 7;
/// What the engine's keys say that they are for.
const DESCRIPTION: &str = "made by strongroom";

/// A key provider whose master keys lie in AWS KMS.
///
/// Cheap to clone; all clones share one thread, on which the SDK's asynchronous calls run. The provider itself blocks, and can be
/// called from anywhere, inside an async runtime too (where it holds up the thread that it is called on, like everything in this crate).
/// The client should be built for it alone: HTTP connections belong to the runtime that opened them.
///
/// # Time and retries
/// An operation takes at most ten seconds in all ([`time_limit`](AwsKms::time_limit)), and fails as
/// [timed out](ProviderReason::TimedOut) after that. One side alone retries, so that retries do not multiply: **the client**, if its retry
/// configuration says so, which is the SDK's default (three attempts); **this provider**, if the client's retries are
/// [disabled](aws_sdk_kms::config::retry::RetryConfig::disabled). It then tries again whatever is
/// [transient](crate::error::ProviderClass::Transient) until time is up, with random waits of up to 50 ms, 100 ms, and so on to 2 s.
///
/// # Example
/// ```no_run
/// use strongroom::keys::AwsKms;
/// use strongroom::{MasterKey, Store, TableOptions};
///
/// # fn program(client: aws_sdk_kms::Client) -> Result<(), Box<dyn std::error::Error>> {
/// // let client = aws_sdk_kms::Client::new(&aws_config::load_from_env().await);
/// let store = Store::builder("data").key_provider(AwsKms::new(client)?).create()?;
/// store.create_table("orders", TableOptions::new().master_key(MasterKey::customer("alias/orders")))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AwsKms {
    clients: Clients,
    arn_of: ArnOf,
    driver: Arc<Driver>,
    time_limit: Duration,
}

type ClientOf = Arc<dyn Fn(&Principal) -> Option<Client> + Send + Sync>;
type ArnOf = Arc<dyn Fn(&Principal) -> Option<String> + Send + Sync>;

#[derive(Clone)]
enum Clients {
    /// For owner and service alike.
    One(Client),
    PerPrincipal(ClientOf),
}

impl AwsKms {
    /// All requests are made with this client, so that KMS sees one identity: owner and service are the same, other principals are refused.
    ///
    /// # Errors
    /// [`ProviderReason::Unreachable`] if the operating system gives no thread.
    pub fn new(client: Client) -> ProviderResult<AwsKms> {
        AwsKms::with_clients(Clients::One(client))
    }

    /// Each request is made with the client that `client_of` gives for its principal, under whose identity KMS then decides; `None`
    /// refuses the principal. `client_of` is asked for every request: keep the clients.
    ///
    /// # Errors
    /// As for [`new`](AwsKms::new).
    pub fn per_principal(
        client_of: impl Fn(&Principal) -> Option<Client> + Send + Sync + 'static,
    ) -> ProviderResult<AwsKms> {
        AwsKms::with_clients(Clients::PerPrincipal(Arc::new(client_of)))
    }

    fn with_clients(clients: Clients) -> ProviderResult<AwsKms> {
        // A name is an ARN already, unless the caller knows better.
        let arn_of: ArnOf = Arc::new(|principal| match principal {
            Principal::Named(name) => Some(name.clone()),
            _ => None,
        });
        Ok(AwsKms { clients, arn_of, driver: Arc::new(Driver::start()?), time_limit: TIME_LIMIT })
    }

    /// How long an operation may take in all. Default: ten seconds.
    pub fn time_limit(mut self, time_limit: Duration) -> AwsKms {
        self.time_limit = time_limit;
        self
    }

    /// The ARN of the IAM identity behind each principal, for grants. Default: a named principal's name is its ARN, and grants for owner or
    /// service are [not supported](ProviderReason::Unsupported).
    pub fn principal_arns(mut self, arn_of: impl Fn(&Principal) -> Option<String> + Send + Sync + 'static) -> AwsKms {
        self.arn_of = Arc::new(arn_of);
        self
    }

    fn client(&self, principal: &Principal) -> ProviderResult<Client> {
        let client = match (&self.clients, principal) {
            (Clients::One(client), Principal::Owner | Principal::Service) => Some(client.clone()),
            (Clients::One(_), Principal::Named(_)) => None,
            (Clients::PerPrincipal(client_of), principal) => client_of(principal),
        };
        client.ok_or_else(|| {
            let message = format!("there is no KMS client for {principal}");
            ProviderError::new(ProviderReason::PrincipalUnsupported, message)
        })
    }

    /// Make a request as `principal`, again if it has to be, and wait for what comes of it.
    fn call<T, F>(&self, principal: &Principal, request: impl Fn(Client) -> F + Send + 'static) -> ProviderResult<T>
    where
        T: Send + 'static,
        F: Future<Output = ProviderResult<T>> + Send + 'static,
    {
        let client = self.client(principal)?;
        let client_retries = client.config().retry_config().is_none_or(|retries| retries.has_retry());
        self.driver.call(self.time_limit, !client_retries, move || request(client.clone()))
    }

    fn arn(&self, principal: &Principal) -> ProviderResult<String> {
        (self.arn_of)(principal).ok_or_else(|| {
            let message = format!("no ARN is known for {principal}: see AwsKms::principal_arns");
            ProviderError::new(ProviderReason::Unsupported, message)
        })
    }

    fn engine_key(&self, alias: &'static str, principal: &Principal) -> ProviderResult<KeyDescription> {
        let described = self.describe_key(&DescribeKeyRequest::new(alias, principal.clone()));
        match described {
            Err(error) if error.reason == ProviderReason::KeyNotFound => {}
            described => return described,
        }
        let made = self.call(principal, |client| async move {
            let made = client.create_key().description(DESCRIPTION).send().await.map_err(trouble)?;
            description(made.key_metadata)
        })?;
        let target = made.id.clone();
        let named = self.call(principal, move |client| {
            let request = client.create_alias().alias_name(alias).target_key_id(&target);
            async move { request.send().await.map(drop).map_err(trouble) }
        });
        let Err(error) = named else { return Ok(made) };
        // Somebody else may have been faster; or ours was there after all, and only its answer was lost.
        match self.describe_key(&DescribeKeyRequest::new(alias, principal.clone())) {
            Ok(described) if described.id == made.id => Ok(made),
            Ok(described) => {
                self.give_up(made.id, principal);
                Ok(described)
            }
            // KMS's servers learn of an alias one after the other, so that it is not certain whose it is: a key too many does no
            // harm, a key too few does.
            Err(_) if error.reason == ProviderReason::InvalidRequest => {
                Err(ProviderError::new(ProviderReason::Unreachable, format!("{alias} is not there yet: {error}")))
            }
            Err(_) => Err(error),
        }
    }

    /// Have a key deleted that nobody but us knows of, and nothing is wrapped under. It costs money, and could be taken for
    /// the engine's. If that fails, it stays.
    fn give_up(&self, id: String, principal: &Principal) {
        let _ = self.call(principal, move |client| {
            let request = client.schedule_key_deletion().key_id(&id).pending_window_in_days(DELETION_DAYS_MIN);
            async move { request.send().await.map(drop).map_err(trouble) }
        });
    }
}

impl KeyProvider for AwsKms {
    fn describe(&self) -> ProviderDescription {
        ProviderDescription::new("AWS KMS", matches!(self.clients, Clients::PerPrincipal(_)))
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        let DescribeKeyRequest { key, grant_tokens, .. } = request.clone();
        self.call(&request.principal, move |client| {
            let request = client.describe_key().key_id(&key).set_grant_tokens(tokens(&grant_tokens));
            async move { description(request.send().await.map_err(trouble)?.key_metadata) }
        })
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        let GenerateDataKeyRequest { key, context, grant_tokens, .. } = request.clone();
        self.call(&request.principal, move |client| {
            let request = client
                .generate_data_key()
                .key_id(&key)
                .key_spec(types::DataKeySpec::Aes256)
                .set_encryption_context(Some(map(&context)))
                .set_grant_tokens(tokens(&grant_tokens));
            async move {
                let made = request.send().await.map_err(trouble)?;
                let plaintext = data_key(made.plaintext)?;
                Ok(GeneratedDataKey::new(plaintext, bytes(made.ciphertext_blob)?, present(made.key_id)?))
            }
        })
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        let DecryptRequest { key_arn, ciphertext, context, grant_tokens, .. } = request.clone();
        self.call(&request.principal, move |client| {
            let request = client
                .decrypt()
                .key_id(&key_arn)
                .ciphertext_blob(Blob::new(ciphertext.clone()))
                .set_encryption_context(Some(map(&context)))
                .set_grant_tokens(tokens(&grant_tokens));
            async move {
                let opened = request.send().await.map_err(trouble)?;
                Ok(DecryptedDataKey::new(data_key(opened.plaintext)?, present(opened.key_id)?))
            }
        })
    }

    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        let EncryptRequest { key, context, grant_tokens, .. } = request;
        let (key, context, grant_tokens) = (key.clone(), context.clone(), grant_tokens.clone());
        let plaintext = DataKey::from_fn(|copy| *copy = *request.plaintext.expose());
        self.call(&request.principal, move |client| {
            let request = client
                .encrypt()
                .key_id(&key)
                .plaintext(Blob::new(plaintext.expose()))
                .set_encryption_context(Some(map(&context)))
                .set_grant_tokens(tokens(&grant_tokens));
            async move {
                let wrapped = request.send().await.map_err(trouble)?;
                Ok(EncryptedDataKey::new(bytes(wrapped.ciphertext_blob)?, present(wrapped.key_id)?))
            }
        })
    }

    fn re_encrypt(&self, request: &ReEncryptRequest) -> ProviderResult<EncryptedDataKey> {
        let asked = request.clone();
        self.call(&request.principal, move |client| {
            let request = client
                .re_encrypt()
                .source_key_id(&asked.source_key_arn)
                .ciphertext_blob(Blob::new(asked.ciphertext.clone()))
                .set_source_encryption_context(Some(map(&asked.source_context)))
                .destination_key_id(&asked.destination_key)
                .set_destination_encryption_context(Some(map(&asked.destination_context)))
                .set_grant_tokens(tokens(&asked.grant_tokens));
            async move {
                let wrapped = request.send().await.map_err(trouble)?;
                Ok(EncryptedDataKey::new(bytes(wrapped.ciphertext_blob)?, present(wrapped.key_id)?))
            }
        })
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.engine_key(MANAGED_ALIAS, &request.principal)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.engine_key(OWNED_ALIAS, &request.principal)
    }

    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        let grantee = self.arn(&request.grantee)?;
        let retiring = request.retiring_principal.as_ref().map(|principal| self.arn(principal)).transpose()?;
        let asked = request.clone();
        self.call(&request.principal, move |client| {
            let request = client
                .create_grant()
                .key_id(&asked.key)
                .grantee_principal(&grantee)
                .set_retiring_principal(retiring.clone())
                .set_operations(Some(asked.operations.iter().map(operation).collect()))
                .set_constraints(asked.constraint.as_ref().map(constraints))
                .set_name(asked.name.clone())
                .set_grant_tokens(tokens(&asked.grant_tokens));
            // A grant's answer does not name the key, which may have been named by its id.
            let key = client.describe_key().key_id(&asked.key).set_grant_tokens(tokens(&asked.grant_tokens));
            let arn = asked.key.starts_with("arn:").then(|| asked.key.clone());
            async move {
                let arn = match arn {
                    Some(arn) => arn,
                    None => description(key.send().await.map_err(trouble)?.key_metadata)?.arn,
                };
                let made = request.send().await.map_err(trouble)?;
                Ok(Grant::new(present(made.grant_id)?, present(made.grant_token)?, arn))
            }
        })
    }

    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        let EndGrantRequest { key_arn, grant_id, .. } = request.clone();
        let ended = self.call(&request.principal, move |client| {
            let request = client.retire_grant().key_id(&key_arn).grant_id(&grant_id);
            async move { request.send().await.map(drop).map_err(trouble) }
        });
        ended.map_err(about_the_grant)
    }

    fn revoke_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        let EndGrantRequest { key_arn, grant_id, .. } = request.clone();
        let ended = self.call(&request.principal, move |client| {
            let request = client.revoke_grant().key_id(&key_arn).grant_id(&grant_id);
            async move { request.send().await.map(drop).map_err(trouble) }
        });
        ended.map_err(about_the_grant)
    }

    fn schedule_key_deletion(&self, request: &ScheduleKeyDeletionRequest) -> ProviderResult<KeyDescription> {
        let ScheduleKeyDeletionRequest { key_arn, days, .. } = request.clone();
        self.call(&request.principal, move |client| {
            let days = i32::try_from(days).unwrap_or(i32::MAX);
            let request = client.schedule_key_deletion().key_id(&key_arn).pending_window_in_days(days);
            // Its answer names the key, and nothing else of it.
            let described = client.describe_key().key_id(&key_arn);
            async move {
                request.send().await.map_err(trouble)?;
                description(described.send().await.map_err(trouble)?.key_metadata)
            }
        })
    }
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AwsKms { clients, time_limit, .. } = self;
        let one = matches!(clients, Clients::One(_));
        f.debug_struct("AwsKms").field("one_client", &one).field("time_limit", time_limit).finish_non_exhaustive()
    }
}

/// KMS says "not found" of a key and of a grant with the same error.
fn about_the_grant(mut error: ProviderError) -> ProviderError {
    if error.reason == ProviderReason::KeyNotFound && error.message.to_ascii_lowercase().contains("grant") {
        error.reason = ProviderReason::GrantNotFound;
    }
    error
}

fn description(metadata: Option<types::KeyMetadata>) -> ProviderResult<KeyDescription> {
    let metadata = metadata.ok_or_else(|| unexpected("no key"))?;
    let arn = present(metadata.arn)?;
    if metadata.key_spec.is_some_and(|spec| spec != types::KeySpec::SymmetricDefault) {
        let message = format!("{arn} is not a symmetric encryption key");
        return Err(ProviderError::new(ProviderReason::InvalidRequest, message));
    }
    let state = match metadata.key_state {
        // A multi-region key whose primary region is being changed works as before.
        Some(types::KeyState::Enabled | types::KeyState::Updating) => KeyState::Enabled,
        Some(types::KeyState::Disabled) => KeyState::Disabled,
        Some(types::KeyState::PendingDeletion | types::KeyState::PendingReplicaDeletion) => KeyState::PendingDeletion,
        Some(types::KeyState::PendingImport) => KeyState::PendingImport,
        _ => KeyState::Unavailable,
    };
    let mut described = KeyDescription::new(arn, metadata.key_id, state);
    described.description = metadata.description.unwrap_or_default();
    described.created_ms = milliseconds(metadata.creation_date);
    described.deletion_ms = milliseconds(metadata.deletion_date);
    Ok(described)
}

fn milliseconds(time: Option<DateTime>) -> Option<u64> {
    u64::try_from(time?.to_millis().ok()?).ok()
}

/// The data key in an answer, whose buffer is wiped.
fn data_key(plaintext: Option<Blob>) -> ProviderResult<DataKey> {
    DataKey::try_from_slice(&Wiped::from(present(plaintext)?.into_inner()))
}

fn bytes(blob: Option<Blob>) -> ProviderResult<Vec<u8>> {
    present(blob).map(Blob::into_inner)
}

fn present<T>(field: Option<T>) -> ProviderResult<T> {
    field.ok_or_else(|| unexpected("a field is missing"))
}

fn map(context: &EncryptionContext) -> HashMap<String, String> {
    context.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn tokens(tokens: &[String]) -> Option<Vec<String>> {
    (!tokens.is_empty()).then(|| tokens.to_vec())
}

fn operation(operation: &GrantOperation) -> types::GrantOperation {
    match operation {
        GrantOperation::DescribeKey => types::GrantOperation::DescribeKey,
        GrantOperation::GenerateDataKey => types::GrantOperation::GenerateDataKey,
        GrantOperation::Decrypt => types::GrantOperation::Decrypt,
        GrantOperation::Encrypt => types::GrantOperation::Encrypt,
        GrantOperation::ReEncryptFrom => types::GrantOperation::ReEncryptFrom,
        GrantOperation::ReEncryptTo => types::GrantOperation::ReEncryptTo,
        GrantOperation::CreateGrant => types::GrantOperation::CreateGrant,
        GrantOperation::RetireGrant => types::GrantOperation::RetireGrant,
    }
}

fn constraints(constraint: &GrantConstraint) -> types::GrantConstraints {
    let constraints = types::GrantConstraints::builder();
    match constraint {
        GrantConstraint::Equals(context) => constraints.set_encryption_context_equals(Some(map(context))),
        GrantConstraint::Contains(context) => constraints.set_encryption_context_subset(Some(map(context))),
    }
    .build()
}
