//! Who may use a store's tables: sessions, grants, and what is decided before anything else.
//!
//! Simulated time, the real local keyring, and a provider in between that counts and fails on demand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom::error::ProviderReason;
use strongroom::event::Event;
use strongroom::io::mem::Loss;
use strongroom::io::sim::Simulation;
use strongroom::io::{Clock, Environment};
use strongroom::keys::faulty::{Asked, FaultyProvider, Operation, Rule};
use strongroom::keys::{
    DecryptRequest, DecryptedDataKey, DescribeKeyRequest, GenerateDataKeyRequest, GeneratedDataKey, KeyDescription,
    KeyOperation, KeyPolicy, PolicyStatement, ProviderDescription, ProviderResult,
};
use strongroom::{
    AccessKeys, AccessRequest, Action, Authorizer, Builder, Error, ErrorKind, KeyProvider, LocalKms, MasterKey,
    Principal, Store, TableOptions,
};

use crate::world::Heard;

const KEY: &str = "alias/tenant";

struct World {
    simulation: Simulation,
    kms: LocalKms,
    provider: FaultyProvider,
    heard: Arc<Heard>,
}

fn named(name: &str) -> Principal {
    Principal::Named(name.to_owned())
}

fn under(key: &str) -> TableOptions {
    TableOptions::new().master_key(MasterKey::customer(key))
}

impl World {
    fn new(seed: u64) -> World {
        let simulation = Simulation::new(seed);
        let kms = LocalKms::in_memory(Environment::simulated(seed ^ 0x5e55)).unwrap();
        kms.create_key(Some(KEY), "a tenant's").unwrap();
        let provider = FaultyProvider::new(kms.clone()).in_environment(&simulation.environment());
        World { simulation, kms, provider, heard: Arc::default() }
    }

    fn builder(&self) -> Builder {
        Store::builder("/store")
            .environment(self.simulation.environment())
            .key_provider(self.provider.clone())
            .events(self.heard.clone())
    }

    /// Let exactly these principals, besides the owner, use the tenant's key; the creators may also hand its use to the engine.
    fn allow(&self, users: &[&str], creators: &[&str]) {
        let mut statements = vec![PolicyStatement::allow([Principal::Owner], KeyOperation::ALL)];
        if !users.is_empty() {
            statements.push(PolicyStatement::allow(users.iter().map(|name| named(name)), [KeyOperation::Decrypt]));
        }
        if !creators.is_empty() {
            let operations = [KeyOperation::DescribeKey, KeyOperation::CreateGrant];
            statements.push(PolicyStatement::allow(creators.iter().map(|name| named(name)), operations));
        }
        self.kms.put_policy(KEY, KeyPolicy::new(statements)).unwrap();
    }

    fn pass(&self, seconds: u64, mut during: impl FnMut()) {
        let end = self.simulation.clock.tick().after(Duration::from_secs(seconds));
        while self.simulation.clock.tick() < end {
            self.simulation.clock.advance(Duration::from_millis(500));
            self.simulation.scheduler.run_until_idle();
            during();
        }
    }

    fn decrypts(&self, name: &str) -> u64 {
        self.provider.count_by(Operation::Decrypt, &named(name))
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.simulation.vfs.snapshot()
    }

    fn grants(&self) -> usize {
        self.kms.list_grants(KEY).unwrap().len()
    }

    /// The requests about the tenant's key from the `from`-th on.
    fn asked(&self, from: usize) -> Vec<(Operation, Principal)> {
        let arn = self.kms.key(KEY).unwrap().arn;
        let about = |asked: &Asked| asked.key == arn || asked.key == KEY;
        let requests = self.provider.requests();
        requests[from..]
            .iter()
            .filter(|asked| about(asked))
            .map(|asked| (asked.operation, asked.principal.clone()))
            .collect()
    }
}

/// A keyring whose requests all look alike to it.
#[derive(Debug)]
struct Undiscerning(LocalKms);

impl KeyProvider for Undiscerning {
    fn describe(&self) -> ProviderDescription {
        ProviderDescription::new("one for all", false)
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.0.describe_key(&DescribeKeyRequest::new(request.key.clone(), Principal::Owner))
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        let context = request.context.clone();
        self.0.generate_data_key(&GenerateDataKeyRequest::new(request.key.clone(), context, Principal::Owner))
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        let mut request = request.clone();
        request.principal = Principal::Owner;
        self.0.decrypt(&request)
    }
}

#[test]
fn a_provider_that_does_not_tell_principals_apart_has_the_owner_alone() {
    // A session that was the owner in disguise would promise a protection that is not there.
    let world = World::new(1201);
    world.kms.owned_key(&strongroom::keys::EngineKeyRequest::new(Principal::Owner)).unwrap();
    let builder = Store::builder("/store").environment(world.simulation.environment());
    let store = builder.key_provider(Undiscerning(world.kms.clone())).create().unwrap();
    let Err(Error::SessionRefused { source, .. }) = store.session(named("ada")) else { panic!("a session") };
    assert_eq!(source.reason, ProviderReason::PrincipalUnsupported);
    // And it has no grants: the key is used all the same.
    let table = store.session(Principal::Owner).unwrap().create_table("t", under(KEY)).unwrap();
    table.put("k", "v").unwrap();
    assert_eq!(world.grants(), 0);
}

#[test]
fn a_session_is_made_by_the_owner_and_never_for_the_service() {
    // Whoever could become the owner or the engine would be allowed everything.
    let world = World::new(1202);
    let store = world.builder().create().unwrap();
    assert_eq!(store.principal(), &Principal::Owner);
    let ada = store.session(named("ada")).unwrap();
    assert_eq!(ada.principal(), &named("ada"));
    assert_eq!(ada.session(named("ada")).unwrap().principal(), &named("ada"));
    for principal in [Principal::Owner, named("bob")] {
        assert_eq!(ada.session(principal).unwrap_err().kind(), ErrorKind::AccessDenied);
    }
    assert_eq!(store.session(Principal::Service).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(ada.session(Principal::Service).unwrap_err().kind(), ErrorKind::AccessDenied);
    assert_eq!(store.session(named("")).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(store.session(named(&"a".repeat(2049))).unwrap_err().kind(), ErrorKind::LimitExceeded);
    // The store lives as long as any of its sessions.
    drop(store);
    ada.create_table("t", TableOptions::new()).unwrap().put("k", "v").unwrap();
    drop(ada);
    assert!(world.builder().open().unwrap().recovery().clean);
}

#[test]
fn what_one_session_has_read_lets_no_other_in() {
    // A key that is in memory for ada would give bob the data that he is denied.
    let world = World::new(1203);
    world.allow(&["ada"], &[]);
    let store = world.builder().create().unwrap();
    store.create_table("t", under(KEY)).unwrap().put("k", "v").unwrap();
    let [ada, bob] = ["ada", "bob"].map(|name| store.session(named(name)).unwrap());
    let (hers, his) = (ada.table("t").unwrap(), bob.table("t").unwrap());
    for _ in 0..3 {
        assert_eq!(hers.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        for refused in [
            his.get("k").unwrap_err(),
            his.put("k", "w").unwrap_err(),
            his.cursor().err().unwrap(),
            his.range("a"..).next().unwrap().unwrap_err(),
            bob.snapshot().get(&his, "k").unwrap_err(),
        ] {
            let Error::KeyUnavailable { source, .. } = &refused else { panic!("{refused:?}") };
            assert_eq!(source.reason, ProviderReason::Denied);
        }
        // A key that is not there is refused in the same words.
        assert_eq!(his.get("nothing").unwrap_err().to_string(), his.get("k").unwrap_err().to_string());
    }
    assert_eq!(world.decrypts("ada"), 1);
    // Nor does a handle of hers help his batch or snapshot.
    let mut batch = bob.batch();
    batch.put(&hers, "k", "w");
    assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(bob.snapshot().get(&hers, "k").unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(bob.snapshot().iter(&hers).next().unwrap().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(hers.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn each_principal_asks_once_however_many_operations_and_handles_there_are() {
    // A request per operation would be slow and dear; none for a principal would be a hole.
    let world = World::new(1204);
    let names = ["ada", "bob", "eve"];
    world.allow(&names, &[]);
    let store = world.builder().create().unwrap();
    store.create_table("t", under(KEY)).unwrap().put("k", "v").unwrap();
    for _ in 0..100 {
        for name in names {
            let table = store.session(named(name)).unwrap().table("t").unwrap();
            for _ in 0..100 {
                table.get("k").unwrap();
            }
            table.put(name, "was here").unwrap();
        }
    }
    assert_eq!(names.map(|name| world.decrypts(name)), [1, 1, 1]);
    assert_eq!(world.provider.count_by(Operation::Decrypt, &Principal::Owner), 0, "its maker needs none");
}

#[test]
fn a_principal_whose_access_is_revoked_leaves_within_five_minutes_and_nobody_else_notices() {
    // Revoking must work, and must not be an outage for the others.
    let world = World::new(1205);
    world.allow(&["ada", "bob"], &[]);
    let store = world.builder().create().unwrap();
    let owners = store.create_table("t", under(KEY)).unwrap();
    owners.put("k", "v").unwrap();
    let [ada, bob] = ["ada", "bob"].map(|name| store.session(named(name)).unwrap().table("t").unwrap());
    let mut cursor = bob.cursor().unwrap();
    assert!(ada.get("k").unwrap().is_some() && cursor.first().unwrap().is_some());
    world.allow(&["ada"], &[]);
    let mut seconds = 0.0;
    let mut left = None;
    world.pass(400, || {
        seconds += 0.5;
        assert!(ada.get("k").unwrap().is_some() && owners.get("k").unwrap().is_some());
        if bob.get("k").is_err() && left.is_none() {
            left = Some(seconds);
        }
    });
    assert!(left.is_some_and(|left| left <= 300.0), "{left:?}");
    assert_eq!(cursor.next().unwrap_err().kind(), ErrorKind::KeyUnavailable);
    let heard = world.heard.all();
    assert!(
        heard.iter().any(|event| matches!(event, Event::PermitEnded { principal, .. } if principal.contains("bob")))
    );
    let others = |event: &Event| match event {
        Event::PermitEnded { principal, .. } => !principal.contains("bob"),
        Event::TablePurged { .. } | Event::TableInaccessible { .. } => true,
        _ => false,
    };
    assert!(!heard.iter().any(others), "{heard:?}");
    // And he is back as soon as he may be: an iterator goes on where it was.
    world.allow(&["ada", "bob"], &[]);
    assert!(bob.get("k").unwrap().is_some());
    assert_eq!(cursor.first().unwrap(), Some((&b"k"[..], &b"v"[..])));
}

#[test]
fn what_concerns_others_is_the_owners() {
    // A guest who could drop a table or close the store could take it from everybody.
    let world = World::new(1206);
    let store = world.builder().create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    let ada = store.session(named("ada")).unwrap();
    let hers = ada.table("t").unwrap();
    hers.put("l", "w").unwrap();
    ada.sync().unwrap();
    let (before, asked) = (world.files(), world.provider.count_all());
    for refused in
        [ada.drop_table("t"), ada.close(), ada.quiesce(), ada.flush(), ada.compact(), hers.flush(), hers.compact()]
    {
        let Err(Error::AccessDenied { principal, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(principal, "principal ada");
    }
    assert!(world.files() == before && world.provider.count_all() == asked);
    assert_eq!(table.get("l").unwrap().as_deref(), Some(&b"w"[..]));
    // Every session may use tables under the store's own key, and make some: under whose name is recorded.
    assert_eq!(ada.create_table("hers", TableOptions::new()).unwrap().describe().unwrap().creator, "principal ada");
    assert_eq!(table.describe().unwrap().creator, "owner");
    store.close().unwrap();
    assert_eq!(hers.get("l").unwrap_err().kind(), ErrorKind::Closed);
    let store = world.builder().open().unwrap();
    assert_eq!(store.describe_table("hers").unwrap().creator, "principal ada");
}

#[test]
fn a_table_is_made_by_its_creator_for_the_engine_in_the_documented_order() {
    // Who reads the provider's log must find who wanted the table, and that the engine made the key; and the first use must not wait.
    let world = World::new(1207);
    world.allow(&["ada"], &["ada"]);
    let store = world.builder().create().unwrap();
    let ada = store.session(named("ada")).unwrap();
    let from = world.provider.requests().len();
    let table = ada.create_table("t", under(KEY)).unwrap();
    table.put("k", "v").unwrap();
    assert!(table.get("k").unwrap().is_some());
    let expected = [
        (Operation::DescribeKey, named("ada")),
        (Operation::CreateGrant, named("ada")),
        (Operation::GenerateDataKey, Principal::Service),
        (Operation::Decrypt, Principal::Service),
    ];
    assert_eq!(world.asked(from), expected);
    let grant = world.kms.list_grants(KEY).unwrap().pop().unwrap();
    assert_eq!(grant.name, Some(format!("strongroom:{}", store.id())));
    assert_eq!((grant.grantee, grant.retiring_principal), (Principal::Service, Some(Principal::Service)));

    // A second one finds the grant, and whoever may not hand the key to the engine makes none.
    ada.create_table("u", under(KEY)).unwrap();
    assert_eq!(world.grants(), 1);
    world.allow(&["ada"], &[]);
    let before = world.files();
    assert_eq!(ada.create_table("v", under(KEY)).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert!(world.files() == before && store.table("v").is_err());
    // Owned keys are the engine's own.
    store.create_table("owned", TableOptions::new()).unwrap();
    assert_eq!((world.grants(), world.provider.count(Operation::CreateGrant)), (1, 2));
}

#[test]
fn a_creation_that_fails_behind_its_grant_leaves_no_grant_and_no_byte() {
    // A grant that nobody needs is a right that nobody watches.
    let world = World::new(1208);
    let store = world.builder().create().unwrap();
    world.simulation.scheduler.run_until_idle();
    let before = world.files();
    for reason in [ProviderReason::Throttled, ProviderReason::KeyDisabled] {
        world.provider.inject(Rule::on(Operation::GenerateDataKey).fail(reason));
        assert!(store.create_tables(&[("t", under(KEY)), ("u", under(KEY))]).is_err());
        assert_eq!((world.grants(), store.table_names().len()), (0, 0));
        assert!(world.files() == before);
        world.provider.heal();
    }
    assert_eq!(world.provider.count_by(Operation::RetireGrant, &Principal::Service), 2);
    store.create_tables(&[("t", under(KEY)), ("u", under(KEY))]).unwrap();
    assert_eq!(world.grants(), 1);
}

#[test]
fn a_creation_that_fails_leaves_the_grant_to_another_that_did_not() {
    // Ending a grant that a table rests on would take that table away.
    let world = Arc::new(World::new(1209));
    let store = world.builder().create().unwrap();
    let other = store.clone();
    let once = Mutex::new(Some(()));
    world.provider.inject(Rule::on(Operation::GenerateDataKey).nth(1).call(move || {
        if once.lock().take().is_some() {
            other.create_table("faster", under(KEY)).unwrap();
        }
    }));
    world.provider.inject(Rule::on(Operation::GenerateDataKey).nth(1).fail(ProviderReason::TimedOut));
    assert!(store.create_table("slower", under(KEY)).is_err());
    assert_eq!(world.grants(), 1);
    let table = store.table("faster").unwrap();
    table.put("k", "v").unwrap();
    store.flush().unwrap();
}

#[test]
fn maintenance_goes_on_under_the_grant_when_every_user_is_revoked() {
    // What a tenant wrote before he was locked out must not stay in the log for ever, nor its keys in memory.
    let world = World::new(1210);
    let store = world.builder().create().unwrap();
    let table = store.create_table("t", under(KEY)).unwrap();
    table.put("k", "v").unwrap();
    let deny = PolicyStatement::deny([Principal::Owner], [KeyOperation::Decrypt]);
    let allow = PolicyStatement::allow([Principal::Owner], KeyOperation::ALL);
    world.kms.put_policy(KEY, KeyPolicy::new([allow.clone(), deny])).unwrap();
    world.pass(310, || {});
    assert_eq!(table.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    let heard = world.heard.all();
    assert!(heard.contains(&Event::TablePurged { table: table.id() }), "{heard:?}");
    assert!(world.provider.count_by(Operation::Decrypt, &Principal::Service) > 0);
    let sorted = world.simulation.vfs.list().iter().filter(|path| path.to_string_lossy().ends_with(".sst")).count();
    assert_eq!(sorted, 1, "what was in memory is in a sorted table");
    world.kms.put_policy(KEY, KeyPolicy::new([allow])).unwrap();
    assert!(table.get("k").unwrap().is_some());
}

#[test]
fn a_grant_that_is_revoked_makes_its_tables_inaccessible_and_they_come_back_with_it() {
    // The engine's right is the key owner's to take, and his to give again.
    let world = World::new(1211);
    let store = world.builder().create().unwrap();
    let table = store.create_table("t", under(KEY)).unwrap();
    let other = store.create_table("other", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    let grant = world.kms.list_grants(KEY).unwrap().pop().unwrap();
    let arn = world.kms.key(KEY).unwrap().arn;
    let revoke = strongroom::keys::EndGrantRequest::new(arn, grant.id, Principal::Owner);
    world.kms.revoke_grant(&revoke).unwrap();
    // Its maker may use the key himself, and does until the engine has to.
    assert!(table.get("k").unwrap().is_some());
    let _ = table.flush();
    assert!(matches!(table.get("k"), Err(Error::TableInaccessible { .. })), "{:?}", table.get("k"));
    world.pass(20, || {
        assert!(table.get("k").is_err());
        other.put("k", "v").unwrap();
    });
    // Whoever makes another table under that key gives the engine its right back.
    store.create_table("second", under(KEY)).unwrap();
    world.pass(600, || {});
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    table.flush().unwrap();
}

#[test]
fn a_grant_is_given_up_with_the_last_table_under_its_key_and_not_before() {
    // A right that outlives what it was for is one too many; one that ends early is an outage.
    let world = World::new(1212);
    world.kms.create_key(Some("alias/second"), "").unwrap();
    let second = || world.kms.list_grants("alias/second").unwrap().len();
    let store = world.builder().create().unwrap();
    store.create_tables(&[("a", under(KEY)), ("b", under(KEY)), ("c", under("alias/second"))]).unwrap();
    store.create_table("owned", TableOptions::new()).unwrap();
    assert_eq!((world.grants(), second()), (1, 1));
    store.drop_table("a").unwrap();
    store.drop_table("owned").unwrap();
    store.close().unwrap();
    let store = world.builder().open().unwrap();
    assert_eq!((world.grants(), second()), (1, 1));
    store.create_table("d", under(KEY)).unwrap();
    store.drop_table("b").unwrap();
    assert_eq!(world.grants(), 1);
    // One that cannot be ended now is ended at the next occasion.
    world.provider.inject(Rule::on(Operation::RetireGrant).nth(1).fail(ProviderReason::Unreachable));
    store.drop_table("d").unwrap();
    assert_eq!((world.grants(), second()), (1, 1));
    store.drop_table("c").unwrap();
    assert_eq!((world.grants(), second()), (0, 0));
    // And begins anew with the next table.
    store.create_table("e", under(KEY)).unwrap();
    assert_eq!(world.grants(), 1);
    store.close().unwrap();
}

/// Notes what it is asked, and denies what begins with "secret".
#[derive(Debug, Default)]
struct NoSecrets(Mutex<Vec<String>>);

impl Authorizer for NoSecrets {
    fn allows(&self, request: &AccessRequest<'_>) -> bool {
        self.0.lock().push(format!("{} {:?} {} {:?}", request.principal, request.action, request.table, request.keys));
        match request.action {
            Action::Create => request.table != "secrets",
            _ => !request.keys.any_begins_with(b"secret"),
        }
    }
}

#[test]
fn what_the_authorizer_denies_asks_nobody_and_leaves_no_trace() {
    // Who may not must neither learn what is there, nor cost anything.
    let world = World::new(1213);
    world.allow(&["ada"], &["ada"]);
    let authorizer = Arc::new(NoSecrets::default());
    let store = world.builder().authorizer(authorizer.clone()).create().unwrap();
    let table = store.create_table("t", under(KEY)).unwrap();
    table.put("secret", "v").unwrap();
    table.put("open", "v").unwrap();
    assert!(table.iter().all(|entry| entry.is_ok()), "the owner is asked nothing");
    assert_eq!(authorizer.0.lock().len(), 0);

    let ada = store.session(named("ada")).unwrap();
    let hers = ada.table("t").unwrap();
    world.simulation.scheduler.run_until_idle();
    let (before, asked) = (world.files(), world.provider.count_all());
    let mut batch = ada.batch();
    batch.put(&hers, "open", "w").delete(&hers, "secret");
    for refused in [
        hers.get("secret").unwrap_err(),
        hers.get("secret that is not there").unwrap_err(),
        hers.put("secret", "w").unwrap_err(),
        hers.delete("secret").unwrap_err(),
        hers.iter().next().unwrap().unwrap_err(),
        hers.range("a".."t").next().unwrap().unwrap_err(),
        hers.prefix("sec").next_back().unwrap().unwrap_err(),
        hers.cursor().err().unwrap(),
        ada.snapshot().get(&hers, "secret").unwrap_err(),
        ada.snapshot().cursor(&hers).err().unwrap(),
        batch.commit().unwrap_err(),
        ada.create_table("secrets", under(KEY)).unwrap_err(),
    ] {
        assert_eq!(refused.kind(), ErrorKind::AccessDenied, "{refused:?}");
    }
    world.simulation.scheduler.run_until_idle();
    assert!(world.files() == before);
    assert_eq!(world.provider.count_all(), asked);

    assert!(hers.get("open").unwrap().is_some());
    hers.put("other", "w").unwrap();
    assert_eq!(hers.range("a".."secret").count(), 2);
    assert_eq!(hers.range("secreu"..).count(), 0);
    let log = authorizer.0.lock();
    assert!(log.iter().any(|line| line == r#"principal ada Write t One([111, 116, 104, 101, 114])"#), "{log:?}");
    assert!(log.iter().any(|line| line.contains("Range { from: Some([97]), before: Some([115, 101, 99")), "{log:?}");
}

#[test]
fn keys_that_are_asked_for_are_within_a_prefix_or_not() {
    // An authorizer that is told wrong lets the wrong ones in.
    let range = |from: Option<&'static str>, before: Option<&'static str>| AccessKeys::Range {
        from: from.map(str::as_bytes),
        before: before.map(str::as_bytes),
    };
    let cases = [
        (AccessKeys::One(b"ada#1"), true, true),
        (AccessKeys::One(b"ada"), false, false),
        (range(Some("ada#"), Some("ada$")), true, true),
        (range(Some("ada#1"), Some("ada#2")), true, true),
        (range(Some("ada#1"), None), false, true),
        (range(None, Some("ada#1")), false, true),
        (range(None, None), false, true),
        (range(Some("ada$"), None), false, false),
        (range(None, Some("ada#")), false, false),
        (range(Some("a"), Some("b")), false, true),
        (AccessKeys::All, false, true),
    ];
    for (keys, all, any) in cases {
        assert_eq!((keys.all_begin_with(b"ada#"), keys.any_begins_with(b"ada#")), (all, any), "{keys:?}");
    }
    // There is nothing behind this prefix.
    assert!(range(Some("\u{7f}"), None).any_begins_with(&[0xff, 0xff]));
    assert!(AccessKeys::Range { from: Some(&[0xff]), before: None }.all_begin_with(&[0xff]));
}

#[test]
fn a_call_that_the_provider_refuses_leaves_no_trace_in_the_store() {
    // A guest who is refused could otherwise fill the disk of his host.
    let world = World::new(1214);
    let store = world.builder().create().unwrap();
    store.create_table("t", under(KEY)).unwrap().put("k", "v").unwrap();
    let bob = store.session(named("bob")).unwrap();
    let his = bob.table("t").unwrap();
    world.simulation.scheduler.run_until_idle();
    let before = world.files();
    let mut batch = bob.batch();
    batch.put(&his, "k", "w");
    assert!(batch.commit().is_err() && his.put("k", "w").is_err() && his.get("k").is_err());
    assert!(bob.create_table("u", under(KEY)).is_err());
    world.simulation.scheduler.run_until_idle();
    assert!(world.files() == before);
    assert_eq!(world.grants(), 1);
}

#[test]
fn another_master_key_brings_its_grant_and_ends_that_of_the_one_before() {
    // Without the new one the engine could not flush; with the old one it keeps a right to a key that it has no table under.
    let world = World::new(1215);
    world.kms.create_key(Some("alias/second"), "").unwrap();
    let second = || world.kms.list_grants("alias/second").unwrap().len();
    let store = world.builder().create().unwrap();
    let table = store.create_table("t", under(KEY)).unwrap();
    store.create_table("u", under(KEY)).unwrap();
    store.update_table("t", MasterKey::customer("alias/second")).unwrap();
    assert_eq!((world.grants(), second()), (1, 1), "the other table still needs it");
    store.update_table("u", MasterKey::owned()).unwrap();
    assert_eq!((world.grants(), second()), (0, 1));
    table.put("k", "v").unwrap();
    // Maintenance asks as the service, which has no other right to the second key.
    world.pass(310, || {});
    assert!(world.heard.all().contains(&Event::TablePurged { table: table.id() }));
    assert!(table.get("k").unwrap().is_some());
    store.close().unwrap();
    let store = world.builder().open().unwrap();
    store.drop_table("t").unwrap();
    assert_eq!(second(), 0);

    // One that is refused leaves neither.
    world.provider.inject(Rule::on(Operation::GenerateDataKey).nth(1).fail(ProviderReason::Denied));
    assert!(store.update_table("u", MasterKey::customer(KEY)).is_err());
    assert_eq!(world.grants(), 0);
    store.drop_table("u").unwrap();
}

#[test]
fn a_drop_that_a_crash_cut_short_costs_the_grant_at_the_next_occasion() {
    // A right that a crash leaves behind would never be given up.
    let world = World::new(1216);
    let store = world.builder().create().unwrap();
    store.create_table("t", under(KEY)).unwrap();
    store.create_table("owned", TableOptions::new()).unwrap();
    store.create_table("later", TableOptions::new()).unwrap();
    let before = world.simulation.vfs.events();
    store.drop_table("t").unwrap();
    let after = world.simulation.vfs.events();
    let mut carried_on = 0;
    for event in before..=after {
        let disk = world.simulation.vfs.crash_at(event, Loss::LoseUnsynced, 3);
        let again = Simulation::over(disk, 2000 + event);
        let provider = FaultyProvider::new(world.kms.clone()).in_environment(&again.environment());
        let builder = Store::builder("/store").environment(again.environment()).key_provider(provider.clone());
        let store = builder.open().unwrap();
        if store.table("t").is_ok() {
            continue;
        }
        store.drop_table("owned").unwrap();
        let asked = provider.count_by(Operation::RetireGrant, &Principal::Service);
        carried_on += asked;
        // The keyring says that there is no such grant any more, which is good enough.
        store.drop_table("later").unwrap();
        assert_eq!(provider.count(Operation::RetireGrant), asked);
    }
    assert!(carried_on > 0);
}

#[test]
fn tables_that_come_and_go_at_once_never_lose_the_grant_that_they_rest_on() {
    // A grant that one thread gives up while another counts on it would take a tenant's new table away.
    let folder = tempfile::tempdir().unwrap();
    let kms = LocalKms::in_memory(Environment::os()).unwrap();
    kms.create_key(Some(KEY), "a tenant's").unwrap();
    let store = Store::builder(folder.path().join("data")).key_provider(kms.clone()).create().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..25 {
                    let name = format!("{thread} {round}");
                    let table = store.create_table(&name, under(KEY)).unwrap();
                    table.put("k", "v").unwrap();
                    // As the service, who has no other right.
                    table.flush().unwrap();
                    store.drop_table(&name).unwrap();
                }
            });
        }
    });
    assert_eq!(kms.list_grants(KEY).unwrap().len(), 0);
    store.create_table("last", under(KEY)).unwrap().flush().unwrap();
    assert_eq!(kms.list_grants(KEY).unwrap().len(), 1);
}
