//! What becomes of a table whose key is refused: it is out of reach, and nothing of it is lost.
//!
//! Everything runs in simulated time over the embedded provider, behind one that counts and fails on a plan. What is told apart here:
//! what leaves memory, what stays in the log, what is carried out of it, what others notice, and what it takes to come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use strongroom::error::{ProviderError, ProviderReason};
use strongroom::event::Event;
use strongroom::inspect::Inspection;
use strongroom::io::Clock;
use strongroom::io::sim::Simulation;
use strongroom::keys::faulty::{FaultyProvider, Operation, Rule};
use strongroom::keys::{EngineKeyRequest, KeyProvider, Principal};
use strongroom::options::{StoreOptions, TableOptions};
use strongroom::{Error, ErrorKind, LocalKms, MasterKey, Store, Table, TableStatus};

use crate::world::{DIR, Heard, Row, row, tiny_options, tiny_table};

/// A simulated machine with a store, and a keyring elsewhere.
struct World {
    sim: Simulation,
    kms: LocalKms,
    provider: Arc<FaultyProvider>,
    options: StoreOptions,
    heard: Arc<Heard>,
}

impl World {
    fn new(seed: u64) -> World {
        let sim = Simulation::new(seed);
        let kms = LocalKms::in_memory(Simulation::new(!seed).environment()).unwrap();
        for alias in ["alias/tenant", "alias/other"] {
            kms.create_key(Some(alias), "a tenant's").unwrap();
        }
        let provider = Arc::new(FaultyProvider::new(kms.clone()));
        World { sim, kms, provider, options: tiny_options(), heard: Arc::default() }
    }

    fn builder(&self) -> strongroom::Builder {
        Store::builder(DIR)
            .shared_key_provider(self.provider.clone())
            .options(self.options.clone())
            .environment(self.sim.environment())
            .events(self.heard.clone())
    }

    fn create(&self) -> Store {
        self.builder().create().unwrap()
    }

    fn open(&self) -> Store {
        self.builder().open().unwrap()
    }

    fn pass(&self, total: Duration) {
        let end = self.sim.clock.tick().after(total);
        while self.sim.clock.tick() < end {
            self.sim.clock.advance(Duration::from_millis(250));
            self.sim.scheduler.run_until_idle();
        }
    }

    /// Requests for keys of tables that are not under the store's own master key, which is asked for when the store is opened and then every
    /// five minutes.
    fn decrypts(&self) -> u64 {
        let owned = self.kms.owned_key(&EngineKeyRequest::new(Principal::Service)).unwrap().arn;
        let asked = self.provider.requests().into_iter();
        asked.filter(|asked| asked.operation == Operation::Decrypt && asked.key != owned).count() as u64
    }

    /// The tenant's key is refused, and the store has heard of it: the table's permit ended without use, or at its renewal.
    fn revoke(&self, table: &Table) {
        self.kms.disable("alias/tenant").unwrap();
        self.pass(Duration::from_secs(301));
        assert_eq!(table.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
        self.pass(Duration::from_secs(1));
    }

    /// It is usable again, and so much time has passed that nobody shares the last refusal.
    fn restore(&self) {
        self.kms.enable("alias/tenant").unwrap();
        self.pass(Duration::from_secs(2));
    }

    /// Names of the files in a directory of the store.
    fn files(&self, directory: &str) -> Vec<String> {
        let prefix = format!("{DIR}/{directory}/");
        let names = self.sim.vfs.snapshot().into_keys().map(|path| path.display().to_string());
        names.filter_map(|path| path.strip_prefix(&prefix).map(str::to_owned)).collect()
    }
}

fn tenants(number: usize) -> TableOptions {
    tiny_table(number).master_key(MasterKey::customer("alias/tenant"))
}

fn status(table: &Table) -> (TableStatus, Option<u64>) {
    let description = table.describe().unwrap();
    (description.status, description.sse.inaccessible_since_ms)
}

/// The reason and the time that a refused call tells.
fn refusal(error: &Error) -> (u64, ProviderReason) {
    match error {
        Error::TableInaccessible { since_ms, source: ProviderError { reason, .. }, .. } => (*since_ms, *reason),
        other => panic!("not a refusal of the table: {other}"),
    }
}

/// Put so many entries and remember them.
fn fill(table: &Table, expected: &mut Row, round: usize, count: usize) {
    for number in 0..count {
        let (key, value) = (format!("{number:03}"), format!("{round} {number} {}", "x".repeat(40)));
        table.put(&key, &value).unwrap();
        expected.insert(key.into_bytes(), value.into_bytes());
    }
}

#[test]
fn a_refused_table_says_why_and_since_when_and_comes_back_with_everything_that_was_acknowledged() {
    // A tenant whose key was disabled for an hour must not lose the last commits before it.
    let world = World::new(1);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let mut expected = Row::new();
    fill(&table, &mut expected, 0, 60);
    table.delete("003").unwrap();
    expected.remove(&b"003"[..]);
    assert_eq!(status(&table), (TableStatus::Active, None));

    world.revoke(&table);
    let (state, since_ms) = status(&table);
    assert_eq!(state, TableStatus::InaccessibleEncryptionCredentials);
    let since_ms = since_ms.unwrap();
    for error in [table.get("000").unwrap_err(), table.put("a", "b").unwrap_err(), table.flush().unwrap_err()] {
        assert_eq!(refusal(&error), (since_ms, ProviderReason::KeyDisabled));
    }
    assert_eq!(refusal(&table.iter().next().unwrap().unwrap_err()), (since_ms, ProviderReason::KeyDisabled));
    let told = |event: &Event| matches!(event, Event::TableInaccessible { table: id, since_ms: ms, .. } if *id == table.id() && *ms == since_ms);
    assert_eq!(world.heard.all().iter().filter(|event| told(event)).count(), 1);

    world.pass(Duration::from_secs(3600));
    assert_eq!(status(&table).1, Some(since_ms), "the time is set once");
    world.restore();
    assert_eq!(row(&table).unwrap(), expected);
    world.pass(Duration::from_secs(1));
    assert_eq!(status(&table), (TableStatus::Active, None));
    assert!(world.heard.all().contains(&Event::TableAccessible { table: table.id() }));
    fill(&table, &mut expected, 1, 10);
    assert_eq!(row(&table).unwrap(), expected);
    store.close().unwrap();
}

#[test]
fn a_refusal_that_is_heard_just_before_the_close_is_remembered() {
    // A command that opens, is refused and ends would leave a table that is called active.
    let world = World::new(31);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    table.put("k", "v").unwrap();
    let arn = table.describe().unwrap().sse.master_key_arn.unwrap();
    store.close().unwrap();
    world.kms.disable(&arn).unwrap();
    let store = world.open();
    let table = store.table("tenant").unwrap();
    let (since_ms, _) = refusal(&table.get("k").unwrap_err());
    store.close().unwrap();
    let store = world.open();
    let expected = (TableStatus::InaccessibleEncryptionCredentials, Some(since_ms));
    assert_eq!(status(&store.table("tenant").unwrap()), expected);
}

#[test]
fn it_comes_back_without_anybody_calling() {
    // Flush and compaction of a table that nobody reads at the moment would wait for ever otherwise.
    let world = World::new(2);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    table.put("k", "v").unwrap();
    world.revoke(&table);
    world.kms.enable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(300));
    assert_eq!(status(&table), (TableStatus::Active, None));
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn what_does_not_fit_the_log_is_parked_and_replayed_in_order() {
    // A table that is refused for long must neither keep the log for ever nor lose what stands in it.
    let world = World::new(3);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let other = store.create_table("other", tiny_table(1)).unwrap();
    let (mut expected, mut others) = (Row::new(), Row::new());
    fill(&table, &mut expected, 0, 30);
    fill(&table, &mut expected, 1, 30);
    world.revoke(&table);
    let log = world.files("wal");
    for round in 0..12 {
        fill(&other, &mut others, round, 100);
        world.pass(Duration::from_secs(1));
    }
    let parked = world.files("parked");
    assert!(!parked.is_empty(), "something was parked");
    assert!(world.files("wal").iter().all(|segment| !log.contains(segment)), "and the segments are gone");
    assert_eq!(row(&other).unwrap(), others);

    // Across a restart, without a request for the table.
    let before = world.decrypts();
    drop(table);
    store.close().unwrap();
    let store = world.open();
    let (table, other) = (store.table("tenant").unwrap(), store.table("other").unwrap());
    assert_eq!(world.decrypts() - before, 0, "the system key alone was asked for");
    assert_eq!(status(&table).0, TableStatus::InaccessibleEncryptionCredentials);
    assert_eq!(world.files("parked"), parked);
    assert_eq!(row(&other).unwrap(), others);

    world.restore();
    assert_eq!(row(&table).unwrap(), expected);
    table.flush().unwrap();
    world.pass(Duration::from_secs(1));
    assert_eq!(world.files("parked"), Vec::<String>::new(), "what was flushed is parked no more");
    assert_eq!(row(&table).unwrap(), expected);
    store.close().unwrap();
}

#[test]
fn a_parked_file_that_is_missing_is_said_and_one_that_nobody_names_goes() {
    // A store that opened without it would have lost what was acknowledged, and say nothing.
    let world = World::new(14);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let other = store.create_table("other", tiny_table(1)).unwrap();
    let (mut expected, mut others) = (Row::new(), Row::new());
    fill(&table, &mut expected, 0, 60);
    world.revoke(&table);
    for round in 0..12 {
        fill(&other, &mut others, round, 100);
        world.pass(Duration::from_secs(1));
    }
    let parked = world.files("parked");
    drop((table, other));
    store.close().unwrap();
    let path = format!("{DIR}/parked/{}", parked[0]);
    let bytes = world.sim.vfs.read(&path).unwrap();
    world.sim.vfs.delete(&path).unwrap();
    let error = world.builder().open().unwrap_err();
    assert!(matches!(&error, Error::MissingFile { file } if *file == format!("parked/{}", parked[0])), "{error}");
    world.sim.vfs.plant(&path, &bytes).unwrap();
    world.sim.vfs.plant(format!("{DIR}/parked/999999-1.log"), &bytes).unwrap();
    let store = world.open();
    assert!(store.recovery().removed_files.contains(&"parked/999999-1.log".to_owned()));
    assert_eq!(world.files("parked"), parked);
    world.restore();
    assert_eq!(row(&store.table("tenant").unwrap()).unwrap(), expected);
}

#[test]
fn dropping_an_inaccessible_table_needs_no_key() {
    // A tenant that left, key and all, must not stay in the store for ever.
    let world = World::new(4);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let other = store.create_table("other", tiny_table(1)).unwrap();
    let (mut gone, mut others) = (Row::new(), Row::new());
    fill(&table, &mut gone, 0, 60);
    world.revoke(&table);
    for round in 0..12 {
        fill(&other, &mut others, round, 100);
        world.pass(Duration::from_secs(1));
    }
    assert!(!world.files("parked").is_empty());
    let before = world.decrypts();
    store.drop_table("tenant").unwrap();
    assert_eq!(world.decrypts(), before);
    assert!(world.files("parked").is_empty());
    assert_eq!(table.get("000").unwrap_err().kind(), ErrorKind::Closed);
    store.close().unwrap();
    let store = world.open();
    assert_eq!(store.table_names(), ["other"]);
    assert_eq!(row(&store.table("other").unwrap()).unwrap(), others);
}

#[test]
fn a_thousand_failing_calls_are_few_requests() {
    // An application that goes on calling must not have its provider throttle it, and everybody else with it.
    let world = World::new(5);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    table.put("k", "v").unwrap();
    world.revoke(&table);
    let before = world.decrypts();
    for _ in 0..10 {
        for _ in 0..100 {
            assert_eq!(table.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
        }
        world.pass(Duration::from_secs(1));
    }
    assert!(world.decrypts() - before <= 14, "{} requests in ten seconds", world.decrypts() - before);
    let before = world.decrypts();
    world.pass(Duration::from_secs(3600));
    let asked = world.decrypts() - before;
    assert!((10..=30).contains(&asked), "{asked} requests in an hour without calls");
}

#[test]
fn one_of_a_thousand_tables_is_revoked_and_the_others_see_nothing() {
    // A key that one tenant takes away must be that tenant's affair alone.
    let mut world = World::new(6);
    world.options = StoreOptions { write_budget_bytes: 64 << 20, ..StoreOptions::default() };
    let store = world.create();
    let names: Vec<String> = (0..1000).map(|number| format!("tenant {number:03}")).collect();
    let keys: Vec<String> = (0..1000).map(|number| format!("alias/key-{number:03}")).collect();
    for key in &keys {
        world.kms.create_key(Some(key), "one of a thousand").unwrap();
    }
    let wanted: Vec<_> = names
        .iter()
        .zip(&keys)
        .map(|(name, key)| (name.as_str(), TableOptions::new().master_key(MasterKey::customer(key))))
        .collect();
    let tables = store.create_tables(&wanted).unwrap();
    for table in &tables {
        table.put("k", table.name()).unwrap();
    }
    world.kms.disable(&keys[500]).unwrap();
    let before = world.decrypts();
    // Everybody is in use all the time: ten minutes are two renewals each.
    for _ in 0..20 {
        world.pass(Duration::from_secs(30));
        for (number, table) in tables.iter().enumerate().filter(|(number, _)| *number != 500) {
            assert_eq!(table.get("k").unwrap().as_deref(), Some(table.name().as_bytes()), "{number}");
        }
        let _ = tables[500].get("k");
    }
    assert_eq!(tables[500].get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    let refused: Vec<_> =
        tables.iter().filter(|table| status(table).0 != TableStatus::Active).map(|table| table.name()).collect();
    assert_eq!(refused, ["tenant 500"]);
    let asked = world.decrypts() - before;
    assert!(asked <= 3 * 1000 + 100, "{asked} requests for a thousand tables in ten minutes");
    world.kms.enable(&keys[500]).unwrap();
    world.pass(Duration::from_secs(2));
    assert_eq!(tables[500].get("k").unwrap().as_deref(), Some(&b"tenant 500"[..]));
}

#[test]
fn a_thousand_tables_under_one_refused_key_cost_one_request_at_a_time() {
    // The outage of one key must not become an outage of the provider.
    let mut world = World::new(7);
    world.options = StoreOptions { write_budget_bytes: 64 << 20, ..StoreOptions::default() };
    let store = world.create();
    let names: Vec<String> = (0..1000).map(|number| format!("table {number:03}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), tenants(0))).collect();
    let tables = store.create_tables(&wanted).unwrap();
    for table in &tables {
        table.put("k", table.name()).unwrap();
    }
    world.kms.disable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(301));
    for table in &tables {
        assert_eq!(table.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    }
    world.pass(Duration::from_secs(2));
    assert!(tables.iter().all(|table| status(table).0 == TableStatus::InaccessibleEncryptionCredentials));
    let before = world.decrypts();
    world.pass(Duration::from_secs(3600));
    let asked = world.decrypts() - before;
    assert!(asked <= 30, "{asked} requests in an hour");
    let before = world.decrypts();
    world.kms.enable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(300));
    assert!(tables.iter().all(|table| status(table).0 == TableStatus::Active));
    let asked = world.decrypts() - before;
    assert!(asked <= 1010, "{asked} requests for the return of a thousand tables");
    for table in &tables {
        assert_eq!(table.get("k").unwrap().as_deref(), Some(table.name().as_bytes()));
    }
}

#[test]
fn a_failure_that_may_pass_makes_no_table_inaccessible() {
    // A network that is down for an hour must not look like a key that was taken away.
    let world = World::new(8);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let mut expected = Row::new();
    fill(&table, &mut expected, 0, 20);
    world.provider.inject(Rule::on(Operation::Decrypt).always().fail(ProviderReason::Unreachable));
    world.pass(Duration::from_secs(700));
    let error = table.get("000").unwrap_err();
    assert!(matches!(error, Error::KeyUnavailable { .. }), "{error}");
    assert_eq!(status(&table), (TableStatus::Active, None));
    world.provider.heal();
    world.pass(Duration::from_secs(1));
    assert_eq!(row(&table).unwrap(), expected);
}

#[test]
fn the_services_own_refusal_makes_the_table_inaccessible_although_its_users_may() {
    // Without flush and compaction the table would grow in memory and in the log until the store stands still.
    let world = World::new(9);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let mut expected = Row::new();
    fill(&table, &mut expected, 0, 20);
    let revoked = || Rule::on(Operation::Decrypt).principal(Principal::Service).always().fail(ProviderReason::NoGrant);
    world.provider.inject(revoked());
    let error = table.flush().unwrap_err();
    assert_eq!(refusal(&error).1, ProviderReason::NoGrant);
    world.pass(Duration::from_secs(2));
    assert_eq!(refusal(&table.get("000").unwrap_err()).1, ProviderReason::NoGrant);
    world.provider.heal();
    world.pass(Duration::from_secs(2));
    assert_eq!(row(&table).unwrap(), expected);
    table.flush().unwrap();
    assert_eq!(row(&table).unwrap(), expected);
}

#[test]
fn a_batch_over_a_refused_table_is_refused_whole() {
    // Half a batch in the log would be half a transfer of somebody's money.
    let world = World::new(10);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let other = store.create_table("other", tiny_table(1)).unwrap();
    let mut batch = store.batch();
    batch.put(&table, "first", "both").put(&other, "first", "both");
    batch.commit().unwrap();
    world.revoke(&table);
    let log = || {
        world
            .sim
            .vfs
            .snapshot()
            .into_iter()
            .filter(|(path, _)| path.starts_with(format!("{DIR}/wal")))
            .collect::<BTreeMap<_, _>>()
    };
    let before = log();
    let mut batch = store.batch();
    batch.put(&other, "second", "alone").put(&table, "second", "alone");
    refusal(&batch.commit().unwrap_err());
    assert_eq!(log(), before, "nothing was written");
    assert_eq!(other.get("second").unwrap(), None);
    world.restore();
    assert_eq!(table.get("first").unwrap().as_deref(), Some(&b"both"[..]));
    assert_eq!(other.get("first").unwrap().as_deref(), Some(&b"both"[..]));
    assert_eq!(table.get("second").unwrap(), None);
}

#[test]
fn snapshots_and_scans_fail_at_their_next_step_and_a_value_stays() {
    // A reader that was begun before the key was taken away must not go on for ever.
    let world = World::new(11);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let mut expected = Row::new();
    fill(&table, &mut expected, 0, 40);
    let value = table.get("007").unwrap().unwrap();
    let (snapshot, mut scan) = (store.snapshot(), table.iter());
    assert!(scan.next().unwrap().is_ok());
    table.put("007", "later").unwrap();
    world.kms.disable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(301));
    assert_eq!(scan.next().unwrap().unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert_eq!(snapshot.get(&table, "007").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert_eq!(&*value, expected[&b"007"[..]]);
    world.restore();
    assert_eq!(snapshot.get(&table, "007").unwrap().as_deref(), Some(&*expected[&b"007"[..]]));
    assert_eq!(table.get("007").unwrap().as_deref(), Some(&b"later"[..]));
}

#[test]
fn a_store_whose_own_key_is_refused_answers_nobody_writes_nothing_and_comes_back() {
    // Whoever takes the store's own key away takes the whole store away, and must find all of it when he gives it back.
    let world = World::new(13);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let mut expected = Row::new();
    fill(&table, &mut expected, 0, 20);
    let owned = world.kms.owned_key(&EngineKeyRequest::new(Principal::Service)).unwrap().arn;
    // What may pass changes nothing.
    world.provider.inject(Rule::on(Operation::Decrypt).key(owned.as_str()).always().fail(ProviderReason::Unreachable));
    world.pass(Duration::from_secs(301));
    assert!(table.get("000").unwrap().is_some());
    world.provider.heal();
    world.provider.inject(Rule::on(Operation::Decrypt).key(owned.as_str()).always().fail(ProviderReason::KeyDisabled));
    world.pass(Duration::from_secs(301));
    let log = || {
        let files = world.sim.vfs.snapshot().into_iter();
        files.filter(|(path, _)| path.starts_with(format!("{DIR}/wal"))).collect::<BTreeMap<_, _>>()
    };
    let before = log();
    let refused = [
        table.get("000").map(drop).unwrap_err(),
        table.put("000", "none").unwrap_err(),
        store.sync().unwrap_err(),
        store.create_table("another", tiny_table(0)).map(drop).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, Error::StoreInaccessible { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    }
    assert_eq!(log(), before, "nothing was written");
    world.provider.heal();
    world.pass(Duration::from_secs(250));
    assert_eq!(row(&table).unwrap(), expected);
    assert!(world.heard.all().contains(&Event::StoreAccessible));
    fill(&table, &mut expected, 1, 5);
    store.close().unwrap();
    let store = world.open();
    assert!(store.recovery().clean);
    assert_eq!(row(&store.table("tenant").unwrap()).unwrap(), expected);
}

#[test]
fn verify_says_what_it_could_not_check_and_checks_parked_files_when_it_can() {
    // A key that is away for a while must not look like damage, nor damage like a key that is away.
    let world = World::new(12);
    let store = world.create();
    let table = store.create_table("tenant", tenants(0)).unwrap();
    let other = store.create_table("other", tiny_table(1)).unwrap();
    let (mut expected, mut others) = (Row::new(), Row::new());
    fill(&table, &mut expected, 0, 60);
    world.revoke(&table);
    for round in 0..12 {
        fill(&other, &mut others, round, 100);
        world.pass(Duration::from_secs(1));
    }
    assert!(!world.files("parked").is_empty());
    store.close().unwrap();
    let inspection = || Inspection::of(DIR).environment(world.sim.environment());
    let verify = || {
        let provider: Arc<dyn KeyProvider> = world.provider.clone();
        inspection().key_provider(provider).verify(&mut |_| {}).unwrap()
    };
    let report = verify();
    assert!(report.damages.is_empty() && report.orphans.is_empty(), "{report:?}");
    assert_eq!(report.unavailable.len(), 1);
    assert!(report.unavailable[0].frames > 0 && report.unopened_frames > 0);
    assert!(inspection().scrub(&mut |_| {}).unwrap().damages.is_empty());
    world.kms.enable("alias/tenant").unwrap();
    let report = verify();
    assert!(report.is_whole() && report.orphans.is_empty(), "{report:?}");
    assert_eq!(report.unopened_frames, 0);
}

#[test]
fn a_quiet_store_writes_nothing_about_a_key_that_is_refused_until_it_is_written_to() {
    // What is written then is sealed by something that a snapshot of memory holds: two machines that go on from it would use the same
    // key and nonces for different things.
    let world = World::new(2020);
    let store = world.create();
    let (table, other) = (store.create_table("tenant", tenants(0)), store.create_table("other", tiny_table(1)));
    let (table, other) = (table.unwrap(), other.unwrap());
    let mut expected = Row::new();
    fill(&table, &mut expected, 0, 60);
    store.quiesce().unwrap();
    let (before, epoch) = (world.sim.vfs.snapshot(), store.epoch());
    world.revoke(&table);
    assert!(world.sim.vfs.snapshot() == before, "something was written");
    assert_eq!(store.epoch(), epoch);
    let (state, since_ms) = status(&table);
    assert_eq!(state, TableStatus::InaccessibleEncryptionCredentials);
    let told = || world.heard.all().iter().any(|event| matches!(event, Event::TableInaccessible { .. }));
    assert!(!told());

    other.put("k", "v").unwrap();
    world.pass(Duration::from_secs(1));
    assert!(told());
    store.close().unwrap();
    drop((table, other, store));
    let store = world.open();
    let table = store.table("tenant").unwrap();
    assert_eq!(status(&table), (TableStatus::InaccessibleEncryptionCredentials, since_ms));
    world.restore();
    assert_eq!(row(&table).unwrap(), expected);
}
