//! AWS KMS, as moto's server plays it at `STRONGROOM_KMS_ENDPOINT`: signatures and policies are checked there, encryption contexts bound.
//!
//! moto lets disabled keys be used, and knows grants without honouring them; what KMS says then is in `src/keys/aws/tests.rs`, and how the
//! engine takes it is shown with a `FaultyProvider` in between.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kms::config::{BehaviorVersion, Credentials, HttpClient, Region, RuntimeComponents};
use aws_sdk_kms::error::ConnectorError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use strongroom::error::ProviderReason;
use strongroom::keys::faulty::{FaultyProvider, Operation as Asked, Rule};
use strongroom::keys::{
    AwsKms, DataKey, DecryptRequest, DescribeKeyRequest, EncryptRequest, EncryptionContext, EngineKeyRequest,
    GenerateDataKeyRequest, GeneratedDataKey, KeyProvider, KeyState, MANAGED_ALIAS, OWNED_ALIAS, Principal,
    ProviderResult, ReEncryptRequest,
};
use strongroom::{ErrorKind, MasterKey, Store, TableOptions};

use crate::expectations::{self, Expected, Operation, Row, Situation, Who};
use crate::{real_thing, reason_of, store_lives_on};

/// The smallest HTTP client there is: plain text, one connection per request. A real program hands in one with TLS.
#[derive(Clone, Debug)]
struct PlainHttp;

impl HttpClient for PlainHttp {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(PlainHttp)
    }
}

impl HttpConnector for PlainHttp {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (answer, answered) = tokio::sync::oneshot::channel();
        thread::spawn(move || answer.send(exchange(&request)));
        HttpConnectorFuture::new(async move {
            let exchanged = answered.await.map_err(|error| ConnectorError::other(error.into(), None))?;
            let (status, body) = exchanged.map_err(|error| ConnectorError::io(error.into()))?;
            Ok(HttpResponse::new(status.try_into().unwrap(), body.into()))
        })
    }
}

fn exchange(request: &HttpRequest) -> std::io::Result<(u16, Vec<u8>)> {
    let authority = request.uri().strip_prefix("http://").unwrap().trim_end_matches('/');
    let body = request.body().bytes().unwrap_or_default();
    let mut head = format!("{} / HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n", request.method());
    for (name, value) in request.headers() {
        if !["host", "content-length", "connection"].contains(&name) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let status = String::from_utf8_lossy(&answer[..end]).split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, answer.split_off(end + 4)))
}

/// A client of this user's, who is named in a variable as `id:secret`.
fn client(user: &str) -> Option<Client> {
    let endpoint = real_thing("STRONGROOM_KMS_ENDPOINT")?;
    let user = real_thing(&format!("STRONGROOM_KMS_{user}"))?;
    let (id, secret) = user.split_once(':').unwrap();
    Some(client_with(&endpoint, id, secret))
}

fn client_with(endpoint: &str, id: &str, secret: &str) -> Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(id, secret, None, None, "test"))
        .http_client(PlainHttp)
        .build();
    Client::from_conf(config)
}

fn owner() -> Option<AwsKms> {
    Some(AwsKms::new(client("OWNER")?).unwrap())
}

/// A new master key.
fn new_key() -> String {
    let client = client("OWNER").unwrap();
    let made = async move { client.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap() };
    wait_for(made)
}

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn context(table: &str) -> EncryptionContext {
    EncryptionContext::from_pairs([("strongroom:table", table), ("strongroom:store", "s")]).unwrap()
}

fn generate(provider: &dyn KeyProvider, key: &str) -> ProviderResult<GeneratedDataKey> {
    provider.generate_data_key(&GenerateDataKeyRequest::new(key, context("t"), Principal::Owner))
}

fn decrypt(provider: &dyn KeyProvider, made: &GeneratedDataKey, context: EncryptionContext) -> ProviderResult<DataKey> {
    let request = DecryptRequest::new(made.key_arn.clone(), made.ciphertext.clone(), context, Principal::Owner);
    let opened = provider.decrypt(&request)?;
    assert_eq!(opened.key_arn, made.key_arn);
    Ok(opened.plaintext)
}

fn refusal<T: std::fmt::Debug>(answer: ProviderResult<T>) -> ProviderReason {
    answer.unwrap_err().reason
}

#[test]
fn kms_answers_as_every_provider_does() {
    let Some(owner) = client("OWNER") else { return };
    let nobody = client("NOBODY").unwrap();
    let provider = AwsKms::per_principal(move |principal| match principal {
        Principal::Owner | Principal::Service => Some(owner.clone()),
        _ => Some(nobody.clone()),
    });
    let provider = provider.unwrap();
    // moto says "access denied" to bytes that it did not make, and to those of another key.
    let told_apart = |row: &Row| !matches!(row.2, Operation::DecryptGarbage | Operation::DecryptOthers);
    let honoured = |row: &Row| row.0 == Situation::Enabled || row.0 == Situation::Rotated;
    let rows: Vec<Row> = expectations::ROWS.iter().copied().filter(|row| told_apart(row) && honoured(row)).collect();
    let skipped = expectations::check_rows(
        &expectations::Provider {
            provider: &provider,
            new_key: &|_| new_key(),
            arrange: &|arn, situation| {
                if situation == Situation::Rotated {
                    let client = client("OWNER").unwrap();
                    wait_for(async move { client.rotate_key_on_demand().key_id(arn).send().await.unwrap() });
                }
                true
            },
            exact: true,
        },
        &rows,
    );
    assert_eq!(skipped.len(), 0, "{skipped:?}");
    let denied = rows.iter().filter(|row| row.1 == Who::Bob && matches!(row.3, Expected::Refusal(_))).count();
    assert!(denied >= 7, "{denied} rows are about somebody who may nothing");
}

/// If wrong credentials looked like an outage, a program would wait for something that does not come.
#[test]
fn wrong_signatures_and_unknown_users_are_bad_credentials() {
    let Some(endpoint) = real_thing("STRONGROOM_KMS_ENDPOINT") else { return };
    let user = real_thing("STRONGROOM_KMS_OWNER").unwrap();
    let (id, secret) = user.split_once(':').unwrap();
    let reason = |id: &str, secret: &str| {
        let kms = AwsKms::new(client_with(&endpoint, id, secret)).unwrap();
        refusal(kms.describe_key(&DescribeKeyRequest::new(MANAGED_ALIAS, Principal::Owner)))
    };
    assert_eq!(reason(id, "another secret"), ProviderReason::BadCredentials);
    assert_eq!(reason("AKIAUNKNOWN000000000", secret), ProviderReason::BadCredentials);
    let nowhere = AwsKms::new(client_with("http://127.0.0.1:1", id, secret)).unwrap();
    assert_eq!(refusal(generate(&nowhere, "k")), ProviderReason::Unreachable);
}

#[test]
fn who_may_wrap_and_not_unwrap_is_denied_just_that() {
    let Some(writer) = client("WRITER") else { return };
    let (arn, owner) = (new_key(), owner().unwrap());
    let writer = AwsKms::new(writer).unwrap();
    let made = generate(&writer, &arn).unwrap();
    assert_eq!(refusal(decrypt(&writer, &made, context("t"))), ProviderReason::Denied);
    assert_eq!(decrypt(&owner, &made, context("t")).unwrap().expose(), made.plaintext.expose());
    let key = DataKey::from_fn(|key| key.fill(1));
    let encrypt = EncryptRequest::new(arn, key, context("t"), Principal::Owner);
    assert_eq!(refusal(writer.encrypt(&encrypt)), ProviderReason::Denied);
}

/// A wrap that opens with another context hands one tenant's key to another.
#[test]
fn a_wrap_opens_with_its_own_context_alone() {
    let Some(kms) = owner() else { return };
    let made = generate(&kms, &new_key()).unwrap();
    let pairs = |pairs: &[(&str, &str)]| EncryptionContext::from_pairs(pairs.iter().copied()).unwrap();
    let (table, store) = (("strongroom:table", "t"), ("strongroom:store", "s"));
    for wrong in [
        pairs(&[]),
        pairs(&[table]),
        pairs(&[table, ("strongroom:store", "S")]),
        pairs(&[table, store, ("strongroom:more", "m")]),
        context("u"),
    ] {
        assert_eq!(refusal(decrypt(&kms, &made, wrong)), ProviderReason::InvalidCiphertext);
    }
    // In whatever order.
    assert_eq!(decrypt(&kms, &made, pairs(&[store, table])).unwrap().expose(), made.plaintext.expose());
    let mut changed = generate(&kms, &made.key_arn).unwrap();
    *changed.ciphertext.last_mut().unwrap() ^= 1;
    assert_eq!(refusal(decrypt(&kms, &changed, context("t"))), ProviderReason::InvalidCiphertext);
}

#[test]
fn an_alias_stands_for_its_key_and_the_wrap_names_the_key() {
    let Some(kms) = owner() else { return };
    let (arn, client) = (new_key(), client("OWNER").unwrap());
    let alias = format!("alias/{}", arn.rsplit('/').next().unwrap());
    let target = arn.clone();
    let name = alias.clone();
    wait_for(async move { client.create_alias().alias_name(name).target_key_id(target).send().await.unwrap() });
    let described = kms.describe_key(&DescribeKeyRequest::new(alias.clone(), Principal::Owner)).unwrap();
    assert_eq!((&described.arn, described.state), (&arn, KeyState::Enabled));
    assert!(described.created_ms.is_some());
    assert_eq!(generate(&kms, &alias).unwrap().key_arn, arn);
    let none = kms.describe_key(&DescribeKeyRequest::new("alias/none", Principal::Owner));
    assert_eq!(refusal(none), ProviderReason::KeyNotFound);
}

#[test]
fn the_engines_keys_are_made_on_first_use_and_found_from_then_on() {
    let Some(kms) = owner() else { return };
    let engine = EngineKeyRequest::new(Principal::Owner);
    // At once: whoever loses the race must find what the winner made.
    let arns = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| kms.managed_key(&engine).unwrap().arn)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(arns.iter().all(|arn| *arn == arns[0]), "{arns:?}");
    let described = kms.describe_key(&DescribeKeyRequest::new(MANAGED_ALIAS, Principal::Service)).unwrap();
    assert_eq!((&described.arn, described.state), (&arns[0], KeyState::Enabled));
    let owned = kms.owned_key(&engine).unwrap();
    assert_ne!(owned.arn, arns[0]);
    assert_eq!(owner().unwrap().owned_key(&engine).unwrap(), owned);
    assert_eq!(kms.describe_key(&DescribeKeyRequest::new(OWNED_ALIAS, Principal::Owner)).unwrap(), owned);
}

#[test]
fn a_wrap_moves_to_another_key_and_context_inside_kms() {
    let Some(kms) = owner() else { return };
    let (from, to) = (new_key(), new_key());
    let made = generate(&kms, &from).unwrap();
    let request = |source: EncryptionContext| {
        let (key, wrapped) = (from.clone(), made.ciphertext.clone());
        ReEncryptRequest::new(key, wrapped, source, to.clone(), context("elsewhere"), Principal::Service)
    };
    let moved = kms.re_encrypt(&request(context("t"))).unwrap();
    assert_eq!(moved.key_arn, to);
    let moved = GeneratedDataKey::new(DataKey::from_fn(|_| {}), moved.ciphertext, moved.key_arn);
    assert_eq!(decrypt(&kms, &moved, context("elsewhere")).unwrap().expose(), made.plaintext.expose());
    assert_eq!(refusal(decrypt(&kms, &moved, context("t"))), ProviderReason::InvalidCiphertext);
    assert_eq!(refusal(kms.re_encrypt(&request(context("u")))), ProviderReason::InvalidCiphertext);
}

#[test]
fn a_store_lives_on_kms_and_loses_only_the_table_whose_key_is_disabled() {
    let Some(kms) = owner() else { return };
    let faulty = FaultyProvider::new(kms);
    store_lives_on(
        || faulty.clone(),
        new_key,
        |arn| faulty.inject(Rule::on(Asked::Decrypt).key(arn).always().fail(ProviderReason::KeyDisabled)),
        ProviderReason::KeyDisabled,
    );
}

/// Who may not at KMS must not read on somebody else's permission; and maintenance must not rest on a user's rights.
#[test]
fn each_principal_is_let_in_by_kms_and_the_service_by_a_grant() {
    let Some(owner) = client("OWNER") else { return };
    let (service, writer) = (owner.clone(), client("WRITER").unwrap());
    let admin = owner.clone();
    let role = "arn:aws:iam::111122223333:role/strongroom";
    let kms = AwsKms::per_principal(move |principal| match principal {
        Principal::Owner => Some(owner.clone()),
        Principal::Service => Some(service.clone()),
        Principal::Named(name) => (name == "writer").then(|| writer.clone()),
        _ => None,
    });
    let kms = kms.unwrap().principal_arns(move |_| Some(role.to_owned()));
    let folder = tempfile::tempdir().unwrap();
    let store = Store::builder(folder.path().join("store")).key_provider(kms).create().unwrap();
    let arn = new_key();
    let table = store.create_table("t", TableOptions::new().master_key(MasterKey::customer(&arn))).unwrap();
    table.put("k", "v").unwrap();

    let granted = wait_for(async move { admin.list_grants().key_id(arn).send().await.unwrap() });
    let [grant] = granted.grants() else { panic!("{granted:?}") };
    assert_eq!(grant.grantee_principal(), Some(role));
    let constraint = grant.constraints().and_then(|constraints| constraints.encryption_context_subset()).unwrap();
    assert_eq!(constraint.get("strongroom:store"), Some(&store.id().to_string()));

    let read = |name: &str| {
        let session = store.session(Principal::Named(name.to_owned()))?;
        session.table("t")?.get("k")
    };
    assert_eq!(reason_of(&read("writer").unwrap_err()), Some(ProviderReason::Denied));
    assert_eq!(reason_of(&read("stranger").unwrap_err()), Some(ProviderReason::PrincipalUnsupported));
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    store.drop_table("t").unwrap();
    store.close().unwrap();
}

/// A store that opens for somebody who may not decrypt would make every permission at KMS worthless.
#[test]
fn a_store_does_not_open_for_who_may_not_decrypt_and_is_as_it_was_after_it() {
    let Some(kms) = owner() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::builder(&path).key_provider(kms.clone()).create().unwrap();
    store.create_table("t", TableOptions::new().master_key(MasterKey::customer(new_key()))).unwrap();
    store.table("t").unwrap().put("k", "v").unwrap();
    store.close().unwrap();

    let writer = AwsKms::new(client("WRITER").unwrap()).unwrap();
    let error = Store::builder(&path).key_provider(writer).open().unwrap_err();
    assert_eq!((error.kind(), reason_of(&error)), (ErrorKind::KeyUnavailable, Some(ProviderReason::Denied)));

    let store = Store::builder(&path).key_provider(kms).open().unwrap();
    assert_eq!(store.table("t").unwrap().get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

/// Blocking inside a runtime must neither panic nor wait for a thread that it holds up itself.
#[test]
fn a_store_can_be_used_in_the_middle_of_an_async_function() {
    let Some(client) = client("OWNER") else { return };
    async fn program(client: Client) -> strongroom::Result<()> {
        let folder = tempfile::tempdir().unwrap();
        // The client has been used on this runtime before.
        client.list_keys().send().await.unwrap();
        let kms = AwsKms::new(client).unwrap();
        let store = Store::builder(folder.path().join("store")).key_provider(kms).create()?;
        let table = store.create_table("t", TableOptions::new().master_key(MasterKey::managed()))?;
        table.put("k", "v")?;
        tokio::task::yield_now().await;
        assert_eq!(table.get("k")?.as_deref(), Some(&b"v"[..]));
        store.close()
    }
    wait_for(program(client)).unwrap();
}
