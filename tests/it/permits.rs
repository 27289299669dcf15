//! How long a table may be used, and what ends with it: the five-minute rule, seen from a whole store.
//!
//! Everything runs in simulated time; the provider is the real local one, behind a counter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom::error::ProviderReason;
use strongroom::event::{Event, EventSink, PermitEnd};
use strongroom::io::sim::Simulation;
use strongroom::io::{Clock, Vfs};
use strongroom::keys::faulty::{FaultyProvider, Operation, Rule};
use strongroom::keys::{KeyOperation, KeyPolicy, PolicyPrincipal, PolicyStatement};
use strongroom::{ErrorKind, LocalKms, MasterKey, Principal, Store, StoreOptions, Table, TableOptions};

use crate::world::Dice;

#[derive(Debug, Default)]
struct Heard(Mutex<Vec<Event>>);

impl EventSink for Heard {
    fn event(&self, event: &Event) {
        self.0.lock().push(event.clone());
    }
}

struct World {
    simulation: Simulation,
    kms: LocalKms,
    provider: FaultyProvider,
    heard: Arc<Heard>,
    store: Store,
    table: Table,
}

impl World {
    fn new() -> World {
        let simulation = Simulation::new(11);
        let kms = LocalKms::in_memory(simulation.environment()).unwrap();
        kms.create_key(Some("alias/tenant"), "a tenant's").unwrap();
        let provider = FaultyProvider::new(kms.clone()).in_environment(&simulation.environment());
        let heard = Arc::new(Heard::default());
        let store = Store::builder("/store")
            .environment(simulation.environment())
            .key_provider(provider.clone())
            .events(heard.clone())
            .create()
            .unwrap();
        let options = TableOptions::new().master_key(MasterKey::customer("alias/tenant"));
        let table = store.create_table("tenant", options).unwrap();
        table.put("k", "v").unwrap();
        World { simulation, kms, provider, heard, store, table }
    }

    /// Let time pass as it does for a running store: its background tasks see every step of it.
    fn pass(&self, total: Duration, mut during: impl FnMut()) {
        let step = Duration::from_millis(500);
        let end = self.simulation.clock.tick().after(total);
        while self.simulation.clock.tick() < end {
            self.simulation.clock.advance(step);
            self.simulation.scheduler.run_until_idle();
            during();
        }
    }

    /// Requests for the table's key. The store's own is asked for every five minutes, too.
    fn unwraps(&self) -> u64 {
        let tenant = self.kms.key("alias/tenant").unwrap().arn;
        let asked = self.provider.requests().into_iter();
        asked.filter(|asked| asked.operation == Operation::Decrypt && asked.key == tenant).count() as u64
    }

    fn purged(&self) -> bool {
        self.heard.0.lock().iter().any(|event| *event == Event::TablePurged { table: self.table.id() })
    }
}

#[test]
fn under_traffic_the_provider_is_asked_once_per_permit_and_nobody_waits() {
    // More calls cost money at a KMS; fewer would let a revoked key live on.
    let world = World::new();
    let before = world.unwraps();
    let hour = Duration::from_secs(3600);
    world.pass(hour, || {
        world.table.put("k", "w").unwrap();
        assert!(world.table.get("k").unwrap().is_some());
    });
    let asked = world.unwraps() - before;
    assert!((12..=14).contains(&asked), "{asked} unwraps in an hour of five-minute permits");
    assert!(!world.purged());
}

#[test]
fn a_disabled_key_ends_access_within_five_minutes_and_comes_back_with_its_data() {
    // A tenant who disables a key must be able to rely on it; and nothing acknowledged may be lost by it.
    let world = World::new();
    let other = world.store.create_table("other", TableOptions::new()).unwrap();
    world.kms.disable("alias/tenant").unwrap();
    let mut refused_after = None;
    let begin = world.simulation.clock.tick();
    world.pass(Duration::from_secs(301), || {
        other.put("k", "v").unwrap();
        if world.table.get("k").is_err() && refused_after.is_none() {
            refused_after = Some(Duration::from_nanos(world.simulation.clock.tick().0 - begin.0));
        }
    });
    assert!(refused_after.is_some_and(|after| after <= Duration::from_secs(301)), "{refused_after:?}");
    assert_eq!(world.table.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert_eq!(world.table.put("k", "w").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert!(world.table.iter().next().unwrap().is_err());
    assert_eq!(other.get("k").unwrap().as_deref(), Some(&b"v"[..]), "nobody else notices");

    world.kms.enable("alias/tenant").unwrap();
    // For so long a refusal is shared.
    world.pass(Duration::from_secs(1), || {});
    assert_eq!(world.table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn an_idle_table_is_flushed_and_put_away_and_comes_back_with_one_request() {
    // A key that nobody uses has no business in memory.
    let world = World::new();
    world.pass(Duration::from_secs(310), || {});
    assert!(world.purged(), "{:?}", world.heard.0.lock());
    let sorted = world.simulation.vfs.list().iter().filter(|path| path.to_string_lossy().ends_with(".sst")).count();
    assert_eq!(sorted, 1, "what was in memory is in a sorted table");
    let before = world.unwraps();
    assert_eq!(world.table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    world.table.put("l", "w").unwrap();
    assert_eq!(world.unwraps() - before, 1);
    assert_eq!(world.table.iter().count(), 2);
}

#[test]
fn a_cursor_checks_its_permit_at_every_step() {
    // A scan that was begun before a key was disabled must not go on for ever.
    let world = World::new();
    for i in 0..100 {
        world.table.put(format!("{i:03}"), "v").unwrap();
    }
    let mut cursor = world.table.cursor().unwrap();
    assert!(cursor.first().unwrap().is_some());
    world.kms.disable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(301), || {});
    assert_eq!(cursor.next().unwrap_err().kind(), ErrorKind::KeyUnavailable);
}

#[test]
fn a_wall_clock_that_runs_ahead_ends_all_permits() {
    // A machine that was asleep without its boot clock knowing it must not use keys that were revoked meanwhile.
    let world = World::new();
    world.kms.disable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(1), || assert!(world.table.get("k").unwrap().is_some()));
    world.simulation.clock.set_wall_ms(world.simulation.clock.wall_ms() + 3_600_000);
    world.pass(Duration::from_secs(1), || {});
    assert_eq!(world.table.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
}

#[test]
fn a_refused_table_leaves_the_directory_as_it_was() {
    let world = World::new();
    world.kms.disable("alias/tenant").unwrap();
    world.pass(Duration::from_secs(1), || {});
    let before = world.simulation.vfs.snapshot();
    let options = TableOptions::new().master_key(MasterKey::customer("alias/tenant"));
    assert_eq!(world.store.create_table("second", options).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    let options = TableOptions::new().master_key(MasterKey::customer("alias/nobody"));
    assert_eq!(world.store.create_table("third", options).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert_eq!(world.simulation.vfs.snapshot(), before);
    assert!(world.simulation.vfs.metadata(std::path::Path::new("/store/CURRENT")).is_ok());
}

// ---- several principals --------------------------------------------------------------------------------------------

fn named(name: &str) -> Principal {
    Principal::Named(name.to_owned())
}

impl World {
    /// A world with options of one's own, where anybody may use the tenant's key.
    fn with(options: StoreOptions) -> World {
        let simulation = Simulation::new(12);
        let kms = LocalKms::in_memory(simulation.environment()).unwrap();
        kms.create_key(Some("alias/tenant"), "a tenant's").unwrap();
        let statements = [
            PolicyStatement::allow([Principal::Owner], KeyOperation::ALL),
            PolicyStatement::allow([PolicyPrincipal::Everyone], [KeyOperation::Decrypt]),
        ];
        kms.put_policy("alias/tenant", KeyPolicy::new(statements)).unwrap();
        let provider = FaultyProvider::new(kms.clone()).in_environment(&simulation.environment());
        let heard = Arc::new(Heard::default());
        let builder = Store::builder("/store").environment(simulation.environment()).key_provider(provider.clone());
        let store = builder.events(heard.clone()).options(options).create().unwrap();
        let table = store.create_table("tenant", under_tenant()).unwrap();
        table.put("k", "v").unwrap();
        World { simulation, kms, provider, heard, store, table }
    }

    fn table_of(&self, name: &str) -> Table {
        self.store.session(named(name)).unwrap().table("tenant").unwrap()
    }

    fn unwraps_by(&self, principal: &Principal) -> u64 {
        self.provider.count_by(Operation::Decrypt, principal)
    }

    fn heard(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.heard.0.lock().iter().filter(|event| what(event)).count()
    }

    fn fail_all(&self, reason: ProviderReason) {
        let tenant = self.kms.key("alias/tenant").unwrap().arn;
        self.provider.inject(Rule::on(Operation::Decrypt).key(tenant).always().fail(reason));
    }
}

fn under_tenant() -> TableOptions {
    TableOptions::new().master_key(MasterKey::customer("alias/tenant"))
}

fn serving_stale(seconds: u64) -> StoreOptions {
    StoreOptions { serve_stale: Duration::from_secs(seconds), ..StoreOptions::default() }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn each_of_several_principals_is_renewed_for_itself_while_it_is_active() {
    // One permit for all would outlive a revocation; one request per operation would be slow.
    let world = World::with(StoreOptions::default());
    let [ada, bob] = ["ada", "bob"].map(|name| world.table_of(name));
    let mut seconds = 0;
    world.pass(3600 * SECOND, || {
        seconds += 1;
        ada.get("k").unwrap();
        // Bob comes once a second, too, but in the first half of the hour only.
        if seconds < 3600 && seconds % 2 == 0 {
            bob.get("k").unwrap();
        }
    });
    let (hers, his) = (world.unwraps_by(&named("ada")), world.unwraps_by(&named("bob")));
    assert!((12..=14).contains(&hers), "{hers}");
    assert!((6..=7).contains(&his), "{his}");
    let ended = |event: &Event| matches!(event, Event::PermitEnded { principal, why: PermitEnd::Idle, .. } if principal.contains("bob"));
    assert_eq!(world.heard(ended), 1);
    assert!(!world.purged(), "ada is there");
    // The owner has not been there since the beginning.
    assert_eq!(world.unwraps_by(&Principal::Owner), 0);
    world.pass(310 * SECOND, || {});
    assert!(world.purged(), "with the last one's permit the key goes");
}

#[test]
fn an_idle_principal_asks_again_after_five_minutes_and_not_before() {
    // Sooner would cost; later would let a revoked principal in.
    let world = World::with(StoreOptions::default());
    let ada = world.table_of("ada");
    ada.get("k").unwrap();
    world.pass(299 * SECOND, || {});
    ada.get("k").unwrap();
    assert_eq!(world.unwraps_by(&named("ada")), 1);
    world.pass(2 * SECOND, || {});
    ada.get("k").unwrap();
    assert_eq!(world.unwraps_by(&named("ada")), 2);
}

#[test]
fn a_suspended_hour_ends_all_permits() {
    // What was revoked while the lid was closed must be closed when it opens.
    let world = World::with(StoreOptions::default());
    let ada = world.table_of("ada");
    ada.get("k").unwrap();
    world.kms.disable("alias/tenant").unwrap();
    world.simulation.clock.advance(3600 * SECOND);
    world.simulation.scheduler.run_until_idle();
    assert!(ada.get("k").is_err() && world.table.get("k").is_err());
}

#[test]
fn a_wall_clock_that_is_set_back_or_a_little_ahead_ends_nothing() {
    // Daylight saving and time servers must not cost requests, or worse: lengthen a permit.
    let world = World::with(StoreOptions::default());
    let ada = world.table_of("ada");
    ada.get("k").unwrap();
    let clock = world.simulation.clock.clone();
    for jump_ms in [-3_600_000_i64, 5_000, -86_400_000] {
        clock.set_wall_ms(clock.wall_ms().checked_add_signed(jump_ms).unwrap());
        world.pass(SECOND, || assert!(ada.get("k").unwrap().is_some()));
    }
    assert_eq!(world.unwraps_by(&named("ada")), 1);
    world.pass(299 * SECOND, || {});
    ada.get("k").unwrap();
    assert_eq!(world.unwraps_by(&named("ada")), 2, "and none was lengthened");
}

#[test]
fn nobody_uses_a_key_more_than_five_minutes_after_he_last_asked_for_it() {
    // This is the promise, whatever happens: faults, slow answers, sessions that come and go.
    let world = World::with(StoreOptions::default());
    let names = ["ada", "bob", "eve"];
    let asked: Arc<Mutex<BTreeMap<&str, u64>>> = Arc::default();
    let watch = || {
        for name in names {
            let (asked, clock) = (asked.clone(), world.simulation.clock.clone());
            let rule = Rule::on(Operation::Decrypt).principal(named(name)).always();
            world.provider.inject(rule.call(move || {
                asked.lock().insert(name, clock.tick().0);
            }));
        }
    };
    let mut dice = Dice::new(5);
    let mut tables = names.map(|name| world.table_of(name));
    let mut served = 0;
    for _ in 0..400 {
        world.provider.heal();
        watch();
        match dice.below(6) {
            0 => world.fail_all(ProviderReason::Unreachable),
            1 => world.fail_all(ProviderReason::Denied),
            2 => world.provider.inject(Rule::on(Operation::Decrypt).always().delay(dice.below(90) as u32 * SECOND)),
            3 => {
                let who = dice.below(3);
                tables[who] = world.table_of(names[who]);
            }
            _ => {}
        }
        let active = dice.below(8);
        world.pass((1 + dice.below(120)) as u32 * SECOND, || {
            for (who, table) in tables.iter().enumerate() {
                if active & (1 << who) != 0 && table.get("k").is_ok_and(|value| value.is_some()) {
                    served += 1;
                    let age = world.simulation.clock.tick().0 - asked.lock()[names[who]];
                    assert!(age <= 300 * 1_000_000_000, "{} after {age} ns", names[who]);
                }
            }
        });
    }
    assert!(served > 10_000, "{served}");
}

#[test]
fn a_slow_provider_for_one_table_delays_no_permit_of_another() {
    // One tenant's KMS in trouble would be everybody's.
    let world = World::with(StoreOptions::default());
    let arn = world.kms.create_key(Some("alias/slow"), "").unwrap().arn;
    let slow = TableOptions::new().master_key(MasterKey::customer("alias/slow"));
    let slow: Vec<Table> =
        (0..3).map(|number| world.store.create_table(&format!("slow {number}"), slow.clone()).unwrap()).collect();
    world.provider.inject(Rule::on(Operation::Decrypt).key(arn).always().delay(20 * SECOND));
    let ada = world.table_of("ada");
    world.pass(1800 * SECOND, || {
        ada.get("k").unwrap();
        slow.iter().for_each(|table| drop(table.get("k").unwrap()));
    });
    let ended = |event: &Event| matches!(event, Event::PermitEnded { .. });
    // The owner's, who did not come back to the first table.
    assert!(world.heard(ended) <= 1, "{:?}", world.heard.0.lock());
    assert!((6..=7).contains(&world.unwraps_by(&named("ada"))), "{}", world.unwraps_by(&named("ada")));
}

#[test]
fn snapshots_and_iterators_end_with_the_permit_and_go_on_with_the_next() {
    // A scan must not be a way around a revocation, nor be cut off by five minutes having passed.
    let world = World::with(StoreOptions::default());
    let mut batch = world.store.batch();
    for i in 0..100 {
        batch.put(&world.table, format!("{i:03}"), "v");
    }
    batch.commit().unwrap();
    let session = world.store.session(named("ada")).unwrap();
    let ada = session.table("tenant").unwrap();
    let (snapshot, mut range) = (session.snapshot(), ada.iter());
    assert!(range.next().unwrap().is_ok() && snapshot.get(&ada, "000").unwrap().is_some());
    world.pass(301 * SECOND, || {});
    assert!(range.next().unwrap().is_ok() && snapshot.get(&ada, "001").unwrap().is_some(), "renewed by use");
    world.kms.disable("alias/tenant").unwrap();
    world.pass(301 * SECOND, || {});
    assert!(range.next().unwrap().is_err() && snapshot.get(&ada, "001").is_err());
    assert!(range.next().is_none());
    world.kms.enable("alias/tenant").unwrap();
    world.pass(SECOND, || {});
    assert_eq!(snapshot.iter(&ada).count(), 101);
}

// ---- when the provider does not answer -----------------------------------------------------------------------------

fn stale_began(event: &Event) -> bool {
    matches!(event, Event::StaleBegan { .. })
}

fn stale_ended(event: &Event) -> bool {
    matches!(event, Event::StaleEnded { .. })
}

#[test]
fn by_default_access_ends_with_the_permit_when_the_provider_is_away() {
    // Who did not choose to go on without his KMS must not.
    let world = World::with(StoreOptions::default());
    world.fail_all(ProviderReason::Unreachable);
    world.pass(299 * SECOND, || assert!(world.table.get("k").is_ok()));
    world.pass(2 * SECOND, || {});
    assert!(world.table.get("k").is_err());
    assert_eq!(world.heard(stale_began), 0);
}

#[test]
fn with_serve_stale_an_outage_is_bridged_up_to_its_limit_and_said_so() {
    // An outage of the KMS would be one of everything; and a limit that is not kept is none.
    for reason in [ProviderReason::Unreachable, ProviderReason::Throttled, ProviderReason::TimedOut] {
        let world = World::with(serving_stale(3600));
        world.fail_all(reason);
        let mut seconds = 0.0;
        let mut last = 0.0;
        world.pass(4500 * SECOND, || {
            seconds += 0.5;
            if world.table.get("k").is_ok() {
                last = seconds;
            }
        });
        assert!((3890.0..=3901.0).contains(&last), "{last}");
        assert_eq!((world.heard(stale_began), world.heard(stale_ended)), (1, 1));
        world.provider.heal();
        world.pass(2 * SECOND, || {});
        assert!(world.table.get("k").unwrap().is_some());
    }
}

#[test]
fn an_outage_that_ends_ends_the_stale_permit_with_a_true_one() {
    // Or an operator would look for an outage that is over.
    let world = World::with(serving_stale(3600));
    world.fail_all(ProviderReason::Unreachable);
    world.pass(1000 * SECOND, || assert!(world.table.get("k").is_ok()));
    assert_eq!((world.heard(stale_began), world.heard(stale_ended)), (1, 0));
    world.provider.heal();
    world.pass(10 * SECOND, || assert!(world.table.get("k").is_ok()));
    assert_eq!((world.heard(stale_began), world.heard(stale_ended)), (1, 1));
}

#[test]
fn a_definitive_answer_ends_a_stale_permit_at_once_and_a_wrong_one_never_prolongs() {
    // Serving stale is for outages: a provider that answers decides.
    let cases = [ProviderReason::Denied, ProviderReason::KeyDisabled, ProviderReason::InvalidCiphertext];
    for reason in cases {
        let world = World::with(serving_stale(3600));
        world.fail_all(ProviderReason::Unreachable);
        world.pass(600 * SECOND, || assert!(world.table.get("k").is_ok()));
        world.provider.heal();
        world.fail_all(reason);
        world.pass(5 * SECOND, || drop(world.table.get("k")));
        assert!(world.table.get("k").is_err(), "{reason:?}");
        assert_eq!(world.heard(stale_ended), 1, "{reason:?}");
    }
    let world = World::with(serving_stale(3600));
    world.fail_all(ProviderReason::InvalidCiphertext);
    world.pass(301 * SECOND, || drop(world.table.get("k")));
    assert!(world.table.get("k").is_err());
    assert_eq!(world.heard(stale_began), 0);
}

#[test]
fn a_table_that_nobody_uses_is_put_away_in_an_outage_too() {
    // Serving stale keeps a key for those who use it, and for nobody else.
    let world = World::with(serving_stale(3600));
    world.fail_all(ProviderReason::Unreachable);
    world.pass(400 * SECOND, || assert!(world.table.get("k").is_ok()));
    world.pass(320 * SECOND, || {});
    assert!(world.purged(), "{:?}", world.heard.0.lock());
    assert!(world.table.get("k").is_err());
}

// ---- in real time --------------------------------------------------------------------------------------------------

/// A real store whose provider takes 50 ms for each unwrap, and a table in it.
fn slow_store(permit: Duration) -> (tempfile::TempDir, FaultyProvider, Store) {
    let folder = tempfile::tempdir().unwrap();
    let kms = LocalKms::in_memory(strongroom::io::Environment::os()).unwrap();
    kms.create_key(Some("alias/tenant"), "a tenant's").unwrap();
    let provider = FaultyProvider::new(kms);
    let options = StoreOptions { permit, ..StoreOptions::default() };
    let open = |create: bool| {
        let builder =
            Store::builder(folder.path().join("data")).key_provider(provider.clone()).options(options.clone());
        if create { builder.create().unwrap() } else { builder.open().unwrap() }
    };
    let store = open(true);
    store.create_table("tenant", under_tenant()).unwrap().put("k", "v").unwrap();
    store.close().unwrap();
    let store = open(false);
    provider.inject(Rule::on(Operation::Decrypt).always().delay(Duration::from_millis(50)));
    (folder, provider, store)
}

#[test]
fn a_thousand_threads_cost_one_request_and_wait_for_it_once() {
    // A stampede at a KMS is throttled, and then nobody gets in.
    let (_folder, provider, store) = slow_store(Duration::from_secs(300));
    let table = store.table("tenant").unwrap();
    let (before, barrier) = (provider.count(Operation::Decrypt), std::sync::Barrier::new(1000));
    let slowest = Mutex::new(Duration::ZERO);
    std::thread::scope(|scope| {
        for _ in 0..1000 {
            let work = || {
                barrier.wait();
                let began = std::time::Instant::now();
                assert!(table.get("k").unwrap().is_some());
                let took = began.elapsed();
                let mut slowest = slowest.lock();
                *slowest = took.max(*slowest);
                drop(slowest);
                (0..100).for_each(|_| drop(table.get("k").unwrap()));
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).unwrap();
        }
    });
    assert_eq!(provider.count(Operation::Decrypt) - before, 1);
    // Far more than 50 ms, because a thousand threads want two cores; far less than one request after the other, which is 50 s.
    assert!(*slowest.lock() < Duration::from_secs(10), "{:?}", slowest.lock());
}

#[test]
fn threads_that_come_when_a_permit_has_ended_cost_one_request() {
    let (_folder, provider, store) = slow_store(Duration::from_millis(1500));
    let table = store.table("tenant").unwrap();
    table.get("k").unwrap();
    let barrier = std::sync::Barrier::new(64);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(2000));
        let before = provider.count_by(Operation::Decrypt, &Principal::Owner);
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    barrier.wait();
                    assert!(table.get("k").unwrap().is_some());
                });
            }
        });
        assert_eq!(provider.count_by(Operation::Decrypt, &Principal::Owner) - before, 1);
    }
}
