//! How long a table may be used, and what ends with it: the five-minute rule, seen from a whole store.
//!
//! Everything runs in simulated time; the provider is the real local one, behind a counter.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom::event::{Event, EventSink};
use strongroom::io::sim::Simulation;
use strongroom::io::{Clock, Vfs};
use strongroom::keys::faulty::{FaultyProvider, Operation};
use strongroom::{ErrorKind, LocalKms, MasterKey, Store, Table, TableOptions};

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

    fn unwraps(&self) -> u64 {
        self.provider.count(Operation::Decrypt)
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
