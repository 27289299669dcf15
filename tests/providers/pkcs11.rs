//! A PKCS#11 token: SoftHSM, through the module that `STRONGROOM_PKCS11_MODULE` names.
//!
//! Every test has a token of its own, because a token knows one login per process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use strongroom::error::ProviderReason;
use strongroom::keys::{
    DataKey, DecryptRequest, DescribeKeyRequest, EncryptRequest, EncryptionContext, EngineKeyRequest,
    GenerateDataKeyRequest, GeneratedDataKey, KeyProvider, KeyState, OWNED_ALIAS, Pin, Pkcs11Provider, Principal,
    ProviderResult,
};
use strongroom::{ErrorKind, Store};

use crate::expectations::{self, Situation};
use crate::{real_thing, reason_of, store_lives_on};

const PIN: &str = "98765";

/// A token of its own, seen as its administrator sees it.
struct Token {
    module_path: PathBuf,
    module: Pkcs11,
    slot: Slot,
    label: String,
}

/// Slots are renumbered while a token is made.
static MAKING: Mutex<()> = Mutex::new(());

fn token(label: &str) -> Option<Token> {
    let module_path = PathBuf::from(real_thing("STRONGROOM_PKCS11_MODULE")?);
    let _one_at_a_time = MAKING.lock().unwrap();
    let module = Pkcs11::new(&module_path).unwrap();
    // The first test of the process does it.
    let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slots = module.get_all_slots().unwrap();
    let free = slots.into_iter().find(|slot| !module.get_token_info(*slot).unwrap().token_initialized()).unwrap();
    let pin = |pin: &str| AuthPin::from(pin.to_owned());
    module.init_token(free, &pin("1234567"), label).unwrap();
    let named = |slot: &Slot| module.get_token_info(*slot).unwrap().label() == label;
    let slot = module.get_slots_with_initialized_token().unwrap().into_iter().find(named).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::So, Some(&pin("1234567"))).unwrap();
    session.init_pin(&pin(PIN)).unwrap();
    session.logout().unwrap();
    drop(session);
    Some(Token { module_path, module, slot, label: label.to_owned() })
}

impl Token {
    fn provider(&self) -> Pkcs11Provider {
        self.open(Pin::new(PIN)).unwrap()
    }

    fn open(&self, pin: Pin) -> ProviderResult<Pkcs11Provider> {
        Pkcs11Provider::open(&self.module_path, &self.label, pin)
    }

    /// A session of the administrator's. Logged in, if a provider is.
    fn session(&self) -> Session {
        let session = self.module.open_rw_session(self.slot).unwrap();
        let _ = session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned())));
        session
    }

    fn object(&self, session: &Session, arn_or_id: &str) -> ObjectHandle {
        let id = arn_or_id.rsplit('/').next().unwrap();
        let id: Vec<u8> = (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect();
        let found = session.find_objects(&[Attribute::Id(id)]).unwrap();
        assert_eq!(found.len(), 1);
        found[0]
    }

    /// What another part of the process can do: a login is the process's, and ends for all of its sessions.
    fn log_everybody_out(&self) {
        self.module.open_rw_session(self.slot).unwrap().logout().unwrap();
    }

    fn destroy(&self, arn: &str) {
        let session = self.session();
        session.destroy_object(self.object(&session, arn)).unwrap();
    }

    fn allow(&self, arn: &str, may: bool) {
        let session = self.session();
        let attributes = [Attribute::Encrypt(may), Attribute::Decrypt(may)];
        session.update_attributes(self.object(&session, arn), &attributes).unwrap();
    }
}

fn context() -> EncryptionContext {
    EncryptionContext::from_pairs([("strongroom:table", "one"), ("strongroom:store", "s")]).unwrap()
}

fn generate(provider: &dyn KeyProvider, key: &str) -> ProviderResult<GeneratedDataKey> {
    provider.generate_data_key(&GenerateDataKeyRequest::new(key, context(), Principal::Owner))
}

fn decrypt(provider: &dyn KeyProvider, arn: &str, ciphertext: &[u8]) -> ProviderResult<DataKey> {
    let request = DecryptRequest::new(arn, ciphertext, context(), Principal::Service);
    let opened = provider.decrypt(&request)?;
    assert_eq!(opened.key_arn, arn);
    Ok(opened.plaintext)
}

fn describe(provider: &dyn KeyProvider, name: &str) -> ProviderResult<strongroom::keys::KeyDescription> {
    provider.describe_key(&DescribeKeyRequest::new(name, Principal::Owner))
}

fn refusal<T: std::fmt::Debug>(answer: ProviderResult<T>) -> ProviderReason {
    answer.unwrap_err().reason
}

/// Otherwise the engine takes a disabled key for tampering, or a destroyed one for an outage.
#[test]
fn a_token_answers_as_every_provider_does() {
    let Some(token) = token("expectations") else { return };
    let provider = token.provider();
    let made = AtomicUsize::new(0);
    let skipped = expectations::check(&expectations::Provider {
        provider: &provider,
        new_key: &|_| provider.create_key(&format!("key {}", made.fetch_add(1, Ordering::SeqCst))).unwrap().arn,
        arrange: &|arn, situation| {
            match situation {
                Situation::Enabled => {}
                Situation::Disabled => token.allow(arn, false),
                Situation::EnabledAgain => {
                    token.allow(arn, false);
                    token.allow(arn, true);
                }
                Situation::Deleted => token.destroy(arn),
                _ => return false,
            }
            true
        },
        exact: true,
    });
    // Left out may be only what a token does not know: other situations, other principals, grants.
    for row in &skipped {
        let known =
            [Situation::Enabled, Situation::Disabled, Situation::EnabledAgain, Situation::Deleted].contains(&row.0);
        let grants = format!("{:?}", row.2).contains("Grant") || row.2 == expectations::Operation::RevokeNothing;
        assert!(!known || row.1 != expectations::Who::Owner || grants, "{row:?} was left out");
    }
    println!("{} of {} rows of the table", expectations::ROWS.len() - skipped.len(), expectations::ROWS.len());
}

/// A master key that can be read is a master key that can be stolen.
#[test]
fn a_master_keys_value_cannot_be_read() {
    let Some(token) = token("value") else { return };
    let provider = token.provider();
    let customer = provider.create_key("customer").unwrap().arn;
    let engine = EngineKeyRequest::new(Principal::Owner);
    let owned = provider.owned_key(&engine).unwrap().arn;
    let managed = provider.managed_key(&engine).unwrap().arn;
    let session = token.session();
    for arn in [customer, owned, managed] {
        let object = token.object(&session, &arn);
        assert_eq!(session.get_attributes(object, &[AttributeType::Value]).unwrap(), []);
        let asked = [AttributeType::Extractable, AttributeType::NeverExtractable, AttributeType::AlwaysSensitive];
        let expected =
            [Attribute::Extractable(false), Attribute::NeverExtractable(true), Attribute::AlwaysSensitive(true)];
        assert_eq!(session.get_attributes(object, &asked).unwrap(), expected, "{arn}");
    }
}

/// A wrap that opens in another place hands one tenant's key to another.
#[test]
fn no_bit_of_a_wrap_and_nothing_of_its_context_can_be_changed() {
    let Some(token) = token("bits") else { return };
    let provider = token.provider();
    let arn = provider.create_key("k").unwrap().arn;
    let made = generate(&provider, "k").unwrap();
    assert_eq!(made.key_arn, arn);
    assert_eq!(decrypt(&provider, &arn, &made.ciphertext).unwrap().expose(), made.plaintext.expose());
    for bit in 0..8 * made.ciphertext.len() {
        let mut changed = made.ciphertext.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(refusal(decrypt(&provider, &arn, &changed)), ProviderReason::InvalidCiphertext, "bit {bit}");
    }
    for len in 0..made.ciphertext.len() {
        let cut = &made.ciphertext[..len];
        assert_eq!(refusal(decrypt(&provider, &arn, cut)), ProviderReason::InvalidCiphertext, "{len} bytes");
    }
    for pairs in
        [vec![], vec![("strongroom:table", "one")], vec![("strongroom:table", "two"), ("strongroom:store", "s")]]
    {
        let other = EncryptionContext::from_pairs(pairs).unwrap();
        let request = DecryptRequest::new(arn.clone(), made.ciphertext.clone(), other, Principal::Owner);
        assert_eq!(refusal(provider.decrypt(&request)), ProviderReason::InvalidCiphertext);
    }
    // Two wraps of one key share neither IV nor anything behind it.
    let wrap = || {
        let key = DataKey::from_fn(|key| key.fill(3));
        let request = EncryptRequest::new("k", key, context(), Principal::Owner);
        provider.encrypt(&request).unwrap().ciphertext
    };
    let (one, other) = (wrap(), wrap());
    assert_eq!((one.len(), &one[..18]), (2 + 16 + 12 + 32 + 16, &other[..18]));
    assert_ne!(one[18..30], other[18..30]);
    assert_ne!(one[30..62], other[30..62]);
}

#[test]
fn a_key_is_found_by_label_id_and_arn_and_by_nothing_else() {
    let Some(token) = token("names: of keys") else { return };
    let provider = token.provider();
    let made = provider.create_key("orders").unwrap();
    assert_eq!(made.arn, format!("arn:strongroom:kms:pkcs11:names%3A%20of%20keys:key/{}", made.id));
    assert_eq!((made.state, &made.aliases[..]), (KeyState::Enabled, &["orders".to_owned()][..]));
    for name in ["orders", &made.id, &made.arn] {
        assert_eq!(describe(&provider, name).unwrap(), made, "{name}");
    }
    let other_token = made.arn.replace("names", "others");
    for name in ["order", "alias/orders", "", &made.id[2..], &other_token, &format!("{}00", made.arn)] {
        assert_eq!(refusal(describe(&provider, name)), ProviderReason::KeyNotFound, "{name}");
    }
    for label in ["orders", "", OWNED_ALIAS] {
        assert_eq!(refusal(provider.create_key(label)), ProviderReason::InvalidRequest, "{label:?}");
    }
}

/// A key that could leave the token, or that another key could be mistaken for, is not to hold anybody's data.
#[test]
fn a_key_that_does_not_keep_what_it_should_is_refused() {
    let Some(token) = token("unfit") else { return };
    let provider = token.provider();
    let session = token.session();
    let make = |label: &str, id: &[u8], len: u64, extractable: bool| {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(len.into()),
            Attribute::Label(label.into()),
            Attribute::Id(id.to_vec()),
            Attribute::Token(true),
            Attribute::Sensitive(!extractable),
            Attribute::Extractable(extractable),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    };
    make("readable", &[1], 32, true);
    make("short", &[2], 16, false);
    make("twin", &[3], 32, false);
    make("twin", &[4], 32, false);
    make("nameless", &[], 32, false);
    for (label, reason) in [
        ("readable", ProviderReason::InvalidRequest),
        ("short", ProviderReason::InvalidRequest),
        ("twin", ProviderReason::InvalidRequest),
        ("nameless", ProviderReason::KeyNotFound),
    ] {
        assert_eq!(refusal(describe(&provider, label)), reason, "{label}");
        assert_eq!(refusal(generate(&provider, label)), reason, "{label}");
    }
    // By its id a twin is itself.
    generate(&provider, "04").unwrap();
}

/// A second engine key means that half of the tables are under a key that nobody looks after.
#[test]
fn engine_keys_are_made_once_also_by_two_at_once() {
    let Some(token) = token("engine") else { return };
    let provider = token.provider();
    let engine = EngineKeyRequest::new(Principal::Service);
    let start = Barrier::new(4);
    let arns = thread::scope(|scope| {
        let ask = || {
            start.wait();
            provider.owned_key(&engine).unwrap().arn
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let settled = provider.owned_key(&engine).unwrap();
    assert_eq!(settled.aliases, [OWNED_ALIAS]);
    // Whoever came first may have got one that a later one beats; each works, and from now on it is always the same.
    for arn in &arns {
        generate(&provider, arn).unwrap();
    }
    assert_eq!(token.provider().owned_key(&engine).unwrap(), settled);
    assert_eq!(describe(&provider, OWNED_ALIAS).unwrap(), settled);
    assert_ne!(provider.managed_key(&engine).unwrap().arn, settled.arn);
}

/// Without a login a token shows no keys. If that counted as a destroyed key, a logout elsewhere in the process would take every table down.
#[test]
fn a_lost_login_is_an_outage_and_the_next_call_logs_in_again() {
    let Some(token) = token("lost") else { return };
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let provider = token
        .open(Pin::ask(move || {
            counting.fetch_add(1, Ordering::SeqCst);
            Ok(PIN.to_owned())
        }))
        .unwrap();
    let arn = provider.create_key("k").unwrap().arn;
    let made = generate(&provider, &arn).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1, "one session serves one caller after the other");
    token.log_everybody_out();
    assert_eq!(refusal(decrypt(&provider, &arn, &made.ciphertext)), ProviderReason::Unreachable);
    assert_eq!(decrypt(&provider, &arn, &made.ciphertext).unwrap().expose(), made.plaintext.expose());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// A provider that tries a wrong PIN again with each refresh locks the token for everybody.
#[test]
fn a_wrong_pin_is_bad_credentials_and_is_not_tried_again() {
    let Some(token) = token("pin") else { return };
    assert_eq!(refusal(token.open(Pin::new("00000"))), ProviderReason::BadCredentials);
    assert_eq!(refusal(token.open(Pin::new(""))), ProviderReason::BadCredentials);
    let no_pin = Pin::ask(|| Err(strongroom::error::ProviderError::new(ProviderReason::Denied, "nobody there")));
    assert_eq!(refusal(token.open(no_pin)), ProviderReason::Denied);

    let provider = token.provider();
    provider.create_key("k").unwrap();
    // Somebody changes the PIN while the program runs, and the session is lost.
    let session = token.session();
    session.set_pin(&AuthPin::from(PIN.to_owned()), &AuthPin::from("55555".to_owned())).unwrap();
    drop(session);
    token.log_everybody_out();
    assert_eq!(refusal(describe(&provider, "k")), ProviderReason::Unreachable);
    assert_eq!(refusal(describe(&provider, "k")), ProviderReason::BadCredentials);
    let again = describe(&provider, "k").unwrap_err();
    assert_eq!(again.reason, ProviderReason::BadCredentials);
    assert!(again.message.contains("not asked again"), "{again}");
    token.open(Pin::new("55555")).unwrap();
}

#[test]
fn a_token_that_is_not_there_is_an_outage() {
    let Some(token) = token("there") else { return };
    let absent = Pkcs11Provider::open(&token.module_path, "not there", Pin::new(PIN));
    assert_eq!(refusal(absent), ProviderReason::Unreachable);
    let serial = token.module.get_token_info(token.slot).unwrap().serial_number().to_owned();
    let by_serial = Pkcs11Provider::open(&token.module_path, &serial, Pin::new(PIN)).unwrap();
    // It is named by its label all the same: serial numbers do not survive a restore onto another device.
    assert!(by_serial.create_key("k").unwrap().arn.contains(":there:"));
}

/// A token that let everybody in by the owner's login would make a session for somebody else a door for all.
#[test]
fn a_principal_whom_the_token_does_not_know_is_refused() {
    let Some(token) = token("principals") else { return };
    let provider = token.provider();
    assert!(!provider.describe().tells_principals_apart);
    let (arn, ada) = (provider.create_key("k").unwrap().arn, Principal::Named("ada".to_owned()));
    let made = generate(&provider, "k").unwrap();
    let asked = [
        provider.describe_key(&DescribeKeyRequest::new("k", ada.clone())).map(drop),
        provider.generate_data_key(&GenerateDataKeyRequest::new("k", context(), ada.clone())).map(drop),
        provider.decrypt(&DecryptRequest::new(arn, made.ciphertext, context(), ada.clone())).map(drop),
        provider.encrypt(&EncryptRequest::new("k", made.plaintext, context(), ada.clone())).map(drop),
        provider.managed_key(&EngineKeyRequest::new(ada.clone())).map(drop),
        provider.owned_key(&EngineKeyRequest::new(ada)).map(drop),
    ];
    for answer in asked {
        assert_eq!(refusal(answer), ProviderReason::PrincipalUnsupported);
    }
}

#[test]
fn many_threads_use_one_provider() {
    let Some(token) = token("threads") else { return };
    let provider = token.provider();
    let arn = provider.create_key("k").unwrap().arn;
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let made = generate(&provider, &arn).unwrap();
                    assert_eq!(decrypt(&provider, &arn, &made.ciphertext).unwrap().expose(), made.plaintext.expose());
                }
            });
        }
    });
}

#[test]
fn a_store_lives_on_a_token_and_loses_only_the_table_whose_key_is_destroyed() {
    let Some(token) = token("store") else { return };
    let admin = token.provider();
    let made = AtomicUsize::new(0);
    store_lives_on(
        || token.provider(),
        || admin.create_key(&format!("key {}", made.fetch_add(1, Ordering::SeqCst))).unwrap().arn,
        |arn| token.destroy(arn),
        ProviderReason::KeyNotFound,
    );
}

#[test]
fn a_store_does_not_open_with_a_wrong_pin_and_is_as_it_was_after_it() {
    let Some(token) = token("store pin") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::builder(&path).key_provider(token.provider()).create().unwrap();
    store.create_table("t", strongroom::TableOptions::new()).unwrap().put("k", "v").unwrap();
    store.close().unwrap();
    // The closed store holds on to nothing: all sessions are closed, and with the last one the login has ended.
    drop(store);

    let later = Arc::new(Mutex::new("00000".to_owned()));
    let pin = later.clone();
    let error = token.open(Pin::ask(move || Ok(pin.lock().unwrap().clone()))).unwrap_err();
    assert_eq!(error.reason, ProviderReason::BadCredentials);

    // The PIN goes bad behind an opened provider.
    PIN.clone_into(&mut later.lock().unwrap());
    let pin = later.clone();
    let provider = token.open(Pin::ask(move || Ok(pin.lock().unwrap().clone()))).unwrap();
    "00000".clone_into(&mut later.lock().unwrap());
    token.log_everybody_out();
    let _ = describe(&provider, "x");
    let error = Store::builder(&path).key_provider(provider.clone()).open().unwrap_err();
    assert_eq!((error.kind(), reason_of(&error)), (ErrorKind::KeyUnavailable, Some(ProviderReason::BadCredentials)));

    PIN.clone_into(&mut later.lock().unwrap());
    let store = Store::builder(&path).key_provider(provider).open().unwrap();
    assert_eq!(store.table("t").unwrap().get("k").unwrap().as_deref(), Some(&b"v"[..]));
}
