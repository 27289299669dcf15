//! Against a KMS that says what a test wants it to. Against one that keeps keys: `tests/providers/aws.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as ProvideCredentialsFuture;
use aws_sdk_kms::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, HttpClient, Region, RuntimeComponents};
use aws_sdk_kms::error::ConnectorError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use parking_lot::Mutex;

use super::*;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1";

/// A KMS in which each request is answered by a function.
#[derive(Clone)]
struct Fake {
    answer: AnswerTo,
    /// What was asked: the operation's name.
    asked: Arc<Mutex<Vec<String>>>,
}

/// From the operation's name and the request's body.
type AnswerTo = Arc<dyn Fn(&str, &str) -> Reply + Send + Sync>;

enum Reply {
    Http(u16, String),
    Broken(fn(Box<dyn std::error::Error + Send + Sync>) -> ConnectorError),
    Never,
    Panic,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

impl HttpClient for Fake {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Fake {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = String::from_utf8_lossy(request.body().bytes().unwrap_or_default()).into_owned();
        self.asked.lock().push(operation.clone());
        let reply = (self.answer)(&operation, &body);
        HttpConnectorFuture::new(async move {
            match reply {
                Reply::Http(status, body) => Ok(HttpResponse::new(status.try_into().unwrap(), body.into())),
                Reply::Broken(kind) => Err(kind("as planned".into())),
                Reply::Never => std::future::pending().await,
                Reply::Panic => panic!("as planned"),
            }
        })
    }
}

fn fake(answer: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Fake {
    Fake { answer: Arc::new(answer), asked: Arc::default() }
}

fn client(fake: &Fake, retries: RetryConfig) -> Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("AKIDEXAMPLE", "secret", None, None, "test"))
        .http_client(fake.clone())
        .retry_config(retries)
        .build();
    Client::from_conf(config)
}

/// A provider that retries itself, but not for long.
fn provider(fake: &Fake) -> AwsKms {
    AwsKms::new(client(fake, RetryConfig::disabled())).unwrap().time_limit(SHORT)
}

const SHORT: Duration = Duration::from_millis(400);

fn ask(kms: &AwsKms) -> ProviderResult<DecryptedDataKey> {
    kms.decrypt(&DecryptRequest::new(ARN, b"wrapped".to_vec(), EncryptionContext::new(), Principal::Owner))
}

fn error_json(code: &str, message: &str) -> String {
    format!("{{\"__type\":\"com.amazonaws.kms#{code}\",\"message\":\"{message}\"}}")
}

/// If a throttled KMS counted as a disabled key, a busy hour would take every table down.
#[test]
fn each_of_kmss_errors_concerns_whom_it_should() {
    use ProviderReason::*;
    let cases: &[(u16, &str, &str, ProviderReason)] = &[
        (400, "ThrottlingException", "Rate exceeded", Throttled),
        (500, "KMSInternalException", "", Unreachable),
        (500, "KeyUnavailableException", "", Unreachable),
        (503, "ServiceUnavailableException", "", Unreachable),
        (503, "DependencyTimeoutException", "", TimedOut),
        (400, "AccessDeniedException", "User: x is not authorized to perform: kms:Decrypt", Denied),
        (400, "InvalidGrantTokenException", "", NoGrant),
        (400, "UnrecognizedClientException", "The security token included in the request is invalid.", BadCredentials),
        (400, "ExpiredTokenException", "", BadCredentials),
        (400, "InvalidSignatureException", "Signature expired", BadCredentials),
        (400, "MissingAuthenticationTokenException", "", BadCredentials),
        (400, "DisabledException", "arn is disabled.", KeyDisabled),
        (400, "KMSInvalidStateException", "arn is pending deletion.", KeyPendingDeletion),
        (400, "KMSInvalidStateException", "arn is pending import.", KeyPendingImport),
        (400, "KMSInvalidStateException", "the key store is disconnected", KeyDisabled),
        (400, "NotFoundException", "Key 'arn' does not exist", KeyNotFound),
        (400, "InvalidCiphertextException", "", InvalidCiphertext),
        (400, "IncorrectKeyException", "The key ID in the request does not identify a CMK", InvalidCiphertext),
        (400, "LimitExceededException", "", LimitExceeded),
        (400, "UnsupportedOperationException", "", Unsupported),
        (400, "InvalidKeyUsageException", "", InvalidRequest),
        (400, "InvalidArnException", "", InvalidRequest),
        (400, "ValidationException", "", InvalidRequest),
        // Codes that are not known yet: by their status.
        (400, "SomethingNewException", "", InvalidRequest),
        (403, "SomethingNewException", "", Denied),
        (500, "SomethingNewException", "", Unreachable),
    ];
    for &(status, code, message, reason) in cases {
        let kms = provider(&fake(move |_, _| Reply::Http(status, error_json(code, message))));
        let error = ask(&kms).unwrap_err();
        assert_eq!(error.reason, reason, "{code} {message:?}: {error}");
        assert!(error.message.contains(code), "{error}");
    }
}

#[test]
fn an_answer_that_is_not_jsons_is_understood_as_far_as_it_goes() {
    use ProviderReason::*;
    let xml = |code: &str| {
        format!(
            "<ErrorResponse><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors></ErrorResponse>"
        )
    };
    let page = "<html><body>Proxy says no</body></html>".to_owned();
    for (status, body, reason) in [
        (403, xml("SignatureDoesNotMatch"), BadCredentials),
        (403, xml("InvalidClientTokenId"), BadCredentials),
        (403, xml("AccessDenied"), Denied),
        (400, xml("Throttling"), Throttled),
        (403, xml("<b>strange</b>"), Denied),
        (401, page.clone(), BadCredentials),
        (403, page.clone(), Denied),
        (429, page.clone(), Throttled),
        (502, page.clone(), Unreachable),
        (404, page.clone(), UnexpectedAnswer),
        (500, String::new(), Unreachable),
        (400, "{}".to_owned(), UnexpectedAnswer),
        // A success that is none.
        (200, page, UnexpectedAnswer),
        (200, "{}".to_owned(), UnexpectedAnswer),
        (200, format!("{{\"KeyId\":\"{ARN}\"}}"), UnexpectedAnswer),
        (200, format!("{{\"KeyId\":\"{ARN}\",\"Plaintext\":\"AAAA\"}}"), UnexpectedAnswer),
        (200, "{\"Plaintext\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}".to_owned(), UnexpectedAnswer),
    ] {
        let kms = provider(&fake({
            let body = body.clone();
            move |_, _| Reply::Http(status, body.clone())
        }));
        let error = ask(&kms).unwrap_err();
        assert_eq!(error.reason, reason, "{status} {body}: {error}");
    }
}

/// Gives no credentials, for this reason.
#[derive(Debug)]
struct Nobody(fn() -> CredentialsError);

impl ProvideCredentials for Nobody {
    fn provide_credentials<'a>(&'a self) -> ProvideCredentialsFuture<'a>
    where
        Self: 'a,
    {
        ProvideCredentialsFuture::ready(Err((self.0)()))
    }
}

/// An error message ends in logs.
#[test]
fn nothing_of_a_garbled_answer_is_repeated() {
    // The key is there, but the JSON is cut off.
    let body = format!("{{\"KeyId\":\"{ARN}\",\"Plaintext\":\"c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IDMyISE=\"");
    let kms = provider(&fake(move |_, _| Reply::Http(200, body.clone())));
    let error = ask(&kms).unwrap_err();
    assert_eq!(error.reason, ProviderReason::UnexpectedAnswer);
    assert!(!format!("{error} {error:?}").contains("c2Vj"), "{error:?}");
}

#[test]
fn no_connection_and_no_credentials_are_told_apart() {
    let broken = |kind| ask(&provider(&fake(move |_, _| Reply::Broken(kind)))).unwrap_err().reason;
    assert_eq!(broken(ConnectorError::io), ProviderReason::Unreachable);
    assert_eq!(broken(ConnectorError::timeout), ProviderReason::TimedOut);
    assert_eq!(broken(ConnectorError::user), ProviderReason::InvalidRequest);

    let never = fake(|_, _| Reply::Never);
    for (error, reason) in [
        (Nobody(|| CredentialsError::not_loaded("none")), ProviderReason::BadCredentials),
        (Nobody(|| CredentialsError::invalid_configuration("nonsense")), ProviderReason::BadCredentials),
        // The service that gives them out could not be asked; that says nothing against them.
        (Nobody(|| CredentialsError::provider_error("down")), ProviderReason::Unreachable),
        (Nobody(|| CredentialsError::provider_timed_out(SHORT)), ProviderReason::TimedOut),
    ] {
        let config = client(&never, RetryConfig::disabled()).config().to_builder().credentials_provider(error).build();
        let kms = AwsKms::new(Client::from_conf(config)).unwrap().time_limit(SHORT);
        let error = ask(&kms).unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
    }
    assert!(never.asked.lock().is_empty());

    // The client's own time-out, which ends before ours.
    let timeouts = TimeoutConfig::builder().operation_timeout(Duration::from_millis(20)).build();
    let conf = client(&never, RetryConfig::disabled()).config().to_builder().timeout_config(timeouts).build();
    assert_eq!(
        ask(&AwsKms::new(Client::from_conf(conf)).unwrap().time_limit(SHORT)).unwrap_err().reason,
        ProviderReason::TimedOut
    );
}

#[test]
fn kms_that_does_not_answer_and_a_client_that_panics_come_back_as_errors() {
    let kms = provider(&fake(|_, _| Reply::Never)).time_limit(Duration::from_millis(50));
    assert_eq!(ask(&kms).unwrap_err().reason, ProviderReason::TimedOut);
    let kms = provider(&fake(|operation, _| if operation == "Decrypt" { Reply::Panic } else { Reply::Never }));
    assert_eq!(ask(&kms).unwrap_err().reason, ProviderReason::UnexpectedAnswer);
    // And the thread lives on.
    assert_eq!(ask(&kms).unwrap_err().reason, ProviderReason::UnexpectedAnswer);
}

/// Two layers that retry three times each make nine requests of one, when KMS can bear them least.
#[test]
fn one_side_alone_retries() {
    let count = |retries: RetryConfig, limit: Duration| {
        let throttled = fake(|_, _| Reply::Http(400, error_json("ThrottlingException", "Rate exceeded")));
        let kms = AwsKms::new(client(&throttled, retries)).unwrap().time_limit(limit);
        let error = ask(&kms).unwrap_err();
        assert_eq!(error.reason, ProviderReason::Throttled, "{error}");
        throttled.asked.lock().len()
    };
    let quick = || RetryConfig::standard().with_initial_backoff(Duration::from_millis(1));
    assert_eq!(count(quick().with_max_attempts(3), Duration::from_secs(30)), 3);
    // Ours goes on until the time is up: with waits of at most 50 + 100 + 200 ms at least four times.
    let attempts = count(RetryConfig::disabled(), Duration::from_millis(600));
    assert!((4..60).contains(&attempts), "{attempts} attempts");
}

#[test]
fn what_is_refused_is_not_asked_again_and_what_passes_is() {
    let denied = fake(|_, _| Reply::Http(400, error_json("AccessDeniedException", "")));
    ask(&AwsKms::new(client(&denied, RetryConfig::disabled())).unwrap()).unwrap_err();
    assert_eq!(denied.asked.lock().len(), 1);

    let failures = AtomicUsize::new(2);
    let recovering = fake(move |_, _| match failures.load(Ordering::SeqCst) {
        0 => Reply::Http(
            200,
            format!("{{\"KeyId\":\"{ARN}\",\"Plaintext\":\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"}}"),
        ),
        left => {
            failures.store(left - 1, Ordering::SeqCst);
            Reply::Http(500, error_json("KMSInternalException", ""))
        }
    });
    let opened = ask(&AwsKms::new(client(&recovering, RetryConfig::disabled())).unwrap()).unwrap();
    assert_eq!((opened.plaintext.expose(), opened.key_arn.as_str()), (&[1; 32], ARN));
    assert_eq!(recovering.asked.lock().len(), 3);
}

#[test]
fn a_principal_without_a_client_is_refused_before_anything_is_sent() {
    let silent = fake(|_, _| Reply::Never);
    let named = Principal::Named("arn:aws:iam::1:role/ada".to_owned());
    let describe = |kms: &AwsKms, principal: &Principal| {
        kms.describe_key(&DescribeKeyRequest::new(ARN, principal.clone())).unwrap_err().reason
    };
    let one = provider(&silent);
    assert!(!one.describe().tells_principals_apart);
    assert_eq!(describe(&one, &named), ProviderReason::PrincipalUnsupported);

    let many = AwsKms::per_principal({
        let silent = silent.clone();
        let ada = named.clone();
        move |principal| (*principal == ada).then(|| client(&silent, RetryConfig::disabled()))
    });
    let many = many.unwrap().time_limit(Duration::from_millis(20));
    assert!(many.describe().tells_principals_apart);
    assert_eq!(describe(&many, &Principal::Owner), ProviderReason::PrincipalUnsupported);
    assert!(silent.asked.lock().is_empty());
    assert_eq!(describe(&many, &named), ProviderReason::TimedOut);
    assert_eq!(*silent.asked.lock(), ["DescribeKey"]);
}

fn metadata(id: &str) -> String {
    format!(
        "{{\"KeyMetadata\":{{\"KeyId\":\"{id}\",\"Arn\":\"{ARN}{id}\",\"KeyState\":\"Enabled\",\"KeySpec\":\"SYMMETRIC_DEFAULT\",\"CreationDate\":1700000000.5}}}}"
    )
}

/// A race that is lost must not end with two keys in use, and never with the deletion of the one that has the alias.
#[test]
fn of_two_who_make_the_engines_key_one_gives_up_its_own() {
    let run = |settled: &'static str, alias_fails: &'static str| {
        let described = AtomicUsize::new(0);
        let kms = fake(move |operation, body| match operation {
            // Not there at first; then whoever was faster has given it to a key.
            "DescribeKey" if described.fetch_add(1, Ordering::SeqCst) == 0 || settled.is_empty() => {
                Reply::Http(400, error_json("NotFoundException", "Alias is not found."))
            }
            "DescribeKey" => Reply::Http(200, metadata(settled)),
            "CreateKey" => Reply::Http(200, metadata("mine")),
            "CreateAlias" if alias_fails.is_empty() => Reply::Http(200, "{}".to_owned()),
            "CreateAlias" => Reply::Http(400, error_json(alias_fails, "")),
            "ScheduleKeyDeletion" => {
                assert!(body.contains("\"mine\""), "{body}");
                Reply::Http(200, "{}".to_owned())
            }
            other => panic!("{other} was not expected"),
        });
        let answer = provider(&kms).managed_key(&EngineKeyRequest::new(Principal::Service));
        let asked = kms.asked.lock().clone();
        (answer.map(|key| key.id).map_err(|error| error.reason), asked.contains(&"ScheduleKeyDeletion".to_owned()))
    };
    assert_eq!(run("mine", ""), (Ok("mine".to_owned()), false));
    assert_eq!(run("theirs", "AlreadyExistsException"), (Ok("theirs".to_owned()), true));
    // The alias was ours: the first attempt had got through, and its answer was lost.
    assert_eq!(run("mine", "AlreadyExistsException"), (Ok("mine".to_owned()), false));
    // Not visible yet: nobody knows whose it is, so nothing is deleted.
    assert_eq!(run("", "AlreadyExistsException"), (Err(ProviderReason::Unreachable), false));
    assert_eq!(run("", "AccessDeniedException"), (Err(ProviderReason::Denied), false));
}

#[test]
fn a_request_says_what_the_contract_says() {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kms = provider(&fake({
        let bodies = bodies.clone();
        move |operation, body| {
            bodies.lock().push((operation.to_owned(), body.to_owned()));
            Reply::Http(400, error_json("ValidationException", ""))
        }
    }));
    let context = EncryptionContext::from_pairs([("strongroom:table", "t")]).unwrap();
    let mut request = GenerateDataKeyRequest::new(ARN, context.clone(), Principal::Service);
    request.grant_tokens.push("token".to_owned());
    kms.generate_data_key(&request).unwrap_err();
    let key = DataKey::from_fn(|key| key.fill(1));
    kms.encrypt(&EncryptRequest::new(ARN, key, context.clone(), Principal::Owner)).unwrap_err();
    let named = Principal::Named("arn:aws:iam::1:role/ada".to_owned());
    let mut grant = CreateGrantRequest::new(ARN, named.clone(), vec![GrantOperation::Decrypt], Principal::Owner);
    grant.constraint = Some(GrantConstraint::Contains(context));
    kms.create_grant(&grant).unwrap_err();
    kms.retire_grant(&EndGrantRequest::new(ARN, "g", Principal::Owner)).unwrap_err();

    let bodies = bodies.lock().clone();
    let contains = |operation: &str, parts: &[&str]| {
        let (_, body) = bodies.iter().find(|(asked, _)| asked == operation).unwrap();
        parts.iter().for_each(|part| assert!(body.contains(part), "{operation}: {part} is not in {body}"));
    };
    let pair = "{\"strongroom:table\":\"t\"}";
    contains("GenerateDataKey", &[ARN, "\"AES_256\"", pair, "\"GrantTokens\":[\"token\"]"]);
    contains("Encrypt", &[ARN, pair, "AQEBAQEB"]);
    contains(
        "CreateGrant",
        &["\"GranteePrincipal\":\"arn:aws:iam::1:role/ada\"", "\"Decrypt\"", "EncryptionContextSubset", pair],
    );
    contains("RetireGrant", &[ARN, "\"GrantId\":\"g\""]);

    // A grant for somebody without an ARN is not made up.
    grant.grantee = Principal::Service;
    assert_eq!(kms.create_grant(&grant).unwrap_err().reason, ProviderReason::Unsupported);
    let kms = kms.principal_arns(|_| Some("arn:aws:iam::1:role/service".to_owned()));
    assert_eq!(kms.create_grant(&grant).unwrap_err().reason, ProviderReason::InvalidRequest);
}

/// The engine blocks, and is called from async programs all the same.
#[test]
fn it_can_be_called_and_dropped_inside_an_async_runtime() {
    let kms = fake(|_, _| Reply::Http(200, metadata("k")));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let described = runtime.block_on(async {
        let provider = AwsKms::new(client(&kms, RetryConfig::standard())).unwrap();
        // Not in `spawn_blocking`: in the middle of an async function, on the runtime's only thread.
        let answer = provider.describe_key(&DescribeKeyRequest::new("alias/k", Principal::Owner));
        tokio::task::yield_now().await;
        drop(provider);
        answer
    });
    let described = described.unwrap();
    assert_eq!((described.id.as_str(), described.created_ms), ("k", Some(1_700_000_000_500)));
}

#[test]
fn nothing_of_the_client_is_printed() {
    let printed = format!("{:?}", provider(&fake(|_, _| Reply::Never)));
    assert!(printed.starts_with("AwsKms") && !printed.contains("AKID") && !printed.contains("secret"), "{printed}");
}
