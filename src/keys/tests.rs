//! Permits, single flight, and what each failure of a provider does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::faulty::{FaultyProvider, Operation, Rule};
use super::lease::Ending;
use super::*;
use crate::error::ErrorKind;
use crate::event::PermitEnd;
use crate::io::sim::{SimClock, Simulation};

const TABLE: TableId = TableId::from_bytes([2; 16]);
const PERMIT: Duration = Duration::from_secs(300);

/// A broker over a local keyring with faults, and a table with one key.
struct Scene {
    clock: Arc<SimClock>,
    kms: LocalKms,
    provider: FaultyProvider,
    broker: Arc<KeyBroker>,
    lease: TableLease,
    master: Master,
    wraps: Mutex<Vec<Wrap>>,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<Event>>);

impl EventSink for Told {
    fn event(&self, event: &Event) {
        self.0.lock().push(event.clone());
    }
}

fn on_decrypt() -> Rule {
    Rule::on(Operation::Decrypt).always()
}

fn scene() -> Scene {
    scene_in(&Simulation::new(1), None)
}

fn scene_in(simulation: &Simulation, scheduler: Option<Arc<dyn Scheduler>>) -> Scene {
    let mut environment = simulation.environment();
    if let Some(scheduler) = scheduler {
        environment.scheduler = scheduler;
    }
    let kms = LocalKms::in_memory(environment.clone()).unwrap();
    kms.create_key(Some("alias/ratings"), "").unwrap();
    let provider = FaultyProvider::new(kms.clone());
    let told = Arc::new(Told::default());
    let store = StoreId::from_bytes([1; 16]);
    let broker = KeyBroker::new(store, Arc::new(provider.clone()), None, &environment, PERMIT, Some(told.clone()));
    let master = broker.resolve(&MasterKey::customer("alias/ratings"), &Principal::Owner).unwrap();
    broker.create_grant(&master, &Principal::Owner).unwrap();
    let new = broker.new_table_key(TABLE, Generation(1), &master, &Principal::Service).unwrap();
    Scene {
        clock: simulation.clock.clone(),
        kms,
        provider,
        broker: Arc::new(broker),
        lease: TableLease::new(TABLE),
        master,
        wraps: Mutex::new(vec![new.wrap]),
        told,
    }
}

fn record(table: TableId, master: MasterKind, wraps: &[Wrap]) -> KeyFile {
    let state = crate::format::keyfile::KeyState::Active;
    KeyFile { table, version: 1, state, since_ms: 0, master, wraps: wraps.to_vec() }
}

impl Scene {
    fn acquire(&self, principal: &Principal) -> Result<Arc<KeySet>> {
        self.broker.acquire(&self.lease, &self.lease.permit(principal), &|| {
            Ok(record(TABLE, MasterKind::Customer, &self.wraps.lock()))
        })
    }

    fn refresh(&self, principal: &Principal) -> Result<Renewal> {
        self.broker.refresh(&self.lease, &self.lease.permit(principal), &|| {
            Ok(record(TABLE, MasterKind::Customer, &self.wraps.lock()))
        })
    }

    fn check(&self, principal: &Principal) -> bool {
        self.lease.permit(principal).check(self.broker.advance())
    }

    fn look(&self, principal: &Principal) -> Look {
        let permit = self.lease.permit(principal);
        self.broker.look(&self.lease, &permit, permit.begun())
    }

    fn is_due(&self, principal: &Principal) -> bool {
        self.look(principal) == Look::Renew
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Until shortly before the end of a permit that begins now, in use.
    fn until_refresh(&self) {
        assert!(self.check(&Principal::Owner));
        self.pass(290);
        assert!(self.is_due(&Principal::Owner));
    }
}

#[test]
fn a_permit_lasts_five_minutes_and_the_next_use_asks_again() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.pass(299);
    assert!(scene.check(&Principal::Owner));
    scene.acquire(&Principal::Owner).unwrap();
    assert_eq!(scene.provider.count(Operation::Decrypt), 1);
    scene.pass(1);
    assert!(!scene.check(&Principal::Owner));
    scene.acquire(&Principal::Owner).unwrap();
    assert_eq!(scene.provider.count(Operation::Decrypt), 2);
}

#[test]
fn nobody_gets_in_on_the_permit_of_another() {
    let scene = scene();
    let owners = scene.acquire(&Principal::Owner).unwrap();
    assert!(!scene.check(&Principal::Service));
    scene.provider.inject(on_decrypt().principal(Principal::Service).fail(ProviderReason::Unreachable));
    assert_eq!(scene.acquire(&Principal::Service).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    scene.provider.heal();
    let services = scene.acquire(&Principal::Service).unwrap();
    assert_eq!(scene.provider.count(Operation::Decrypt), 3);
    // The bytes exist once, however many may use them.
    assert!(Arc::ptr_eq(owners.current(), services.current()));
}

#[test]
fn the_deadline_counts_from_when_the_request_was_sent() {
    // Or a revocation right after the provider decided could be five minutes and a slow answer late.
    let scene = scene();
    let clock = scene.clock.clone();
    scene.provider.inject(on_decrypt().call(move || clock.advance(Duration::from_secs(60))));
    scene.acquire(&Principal::Owner).unwrap();
    scene.pass(239);
    assert!(scene.check(&Principal::Owner));
    scene.pass(1);
    assert!(!scene.check(&Principal::Owner));
}

#[test]
fn an_answer_that_took_longer_than_its_permit_is_no_permission() {
    let scene = scene();
    let clock = scene.clock.clone();
    scene.provider.inject(on_decrypt().call(move || clock.advance(PERMIT)));
    let error = scene.acquire(&Principal::Owner).unwrap_err();
    assert!(matches!(error, Error::KeyUnavailable { source, .. } if source.reason == ProviderReason::TimedOut));
    assert!(scene.lease.material().is_none());
}

#[test]
fn a_provider_can_shorten_a_permit_and_not_lengthen_it() {
    let scene = scene();
    let mut lifetime = Lifetime::new();
    lifetime.expire_after = Some(Duration::from_secs(40));
    lifetime.refresh_after = Some(Duration::from_secs(10));
    scene.provider.inject(on_decrypt().lifetime(lifetime));
    scene.acquire(&Principal::Owner).unwrap();
    assert!(scene.check(&Principal::Owner));
    scene.pass(10);
    assert!(scene.is_due(&Principal::Owner));
    scene.pass(30);
    assert!(!scene.check(&Principal::Owner));

    lifetime.expire_after = Some(PERMIT * 10);
    lifetime.refresh_after = Some(PERMIT * 10);
    scene.provider.inject(on_decrypt().lifetime(lifetime));
    scene.acquire(&Principal::Owner).unwrap();
    scene.pass(300);
    assert!(!scene.check(&Principal::Owner));
}

#[test]
fn an_hour_of_traffic_asks_about_twelve_times_and_never_waits() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    for _ in 0..3600 {
        scene.pass(1);
        assert!(scene.check(&Principal::Owner));
        if scene.is_due(&Principal::Owner) {
            assert!(matches!(scene.refresh(&Principal::Owner), Ok(Renewal::Renewed)));
        }
    }
    assert!(
        (11..=13).contains(&scene.provider.count(Operation::Decrypt)),
        "{} requests",
        scene.provider.count(Operation::Decrypt)
    );
}

#[test]
fn a_table_without_traffic_is_not_refreshed_and_its_keys_go() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.pass(290);
    assert!(!scene.is_due(&Principal::Owner));
    assert_eq!(scene.lease.ending(scene.broker.advance()), None);
    scene.pass(10);
    assert_eq!(scene.lease.ending(scene.broker.advance()), Some(Ending::Idle));
    // The memtable is flushed by the service, which does not count as a user.
    scene.acquire(&Principal::Service).unwrap();
    assert_eq!(scene.lease.ending(scene.broker.advance()), Some(Ending::Idle));
    assert!(scene.broker.purge(&scene.lease));
    assert!(scene.lease.material().is_none());
    assert!(!scene.check(&Principal::Service));
    assert!(scene.told.0.lock().contains(&Event::TablePurged { table: TABLE }));
}

#[test]
fn a_user_who_comes_back_during_the_flush_keeps_the_keys() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.pass(300);
    assert_eq!(scene.lease.ending(scene.broker.advance()), Some(Ending::Idle));
    scene.acquire(&Principal::Owner).unwrap();
    assert!(!scene.broker.purge(&scene.lease));
    assert!(scene.check(&Principal::Owner));
}

#[test]
fn wiped_keys_are_gone_with_their_last_holder() {
    let scene = scene();
    let held = scene.acquire(&Principal::Owner).unwrap();
    let key = Arc::downgrade(held.current());
    scene.lease.forget();
    assert!(key.upgrade().is_some());
    drop(held);
    assert!(key.upgrade().is_none());
}

#[test]
fn a_transient_failure_leaves_the_permit_to_its_end_and_is_tried_again() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.until_refresh();
    for reason in [ProviderReason::Unreachable, ProviderReason::Throttled, ProviderReason::TimedOut] {
        scene.provider.heal();
        scene.provider.inject(on_decrypt().fail(reason));
        assert!(scene.refresh(&Principal::Owner).is_err() && scene.check(&Principal::Owner));
        assert!(matches!(scene.refresh(&Principal::Owner), Ok(Renewal::NotDue)));
        scene.pass(3);
    }
    assert!(scene.check(&Principal::Owner));
    scene.pass(1);
    // Fails closed.
    assert!(!scene.check(&Principal::Owner));
    assert!(scene.acquire(&Principal::Owner).is_err());
}

#[test]
fn a_principal_who_is_denied_loses_its_own_permit_alone() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.until_refresh();
    scene.acquire(&Principal::Service).unwrap();
    scene.provider.inject(on_decrypt().principal(Principal::Owner).fail(ProviderReason::Denied));
    assert!(scene.refresh(&Principal::Owner).is_err() && !scene.check(&Principal::Owner));
    assert!(!scene.check(&Principal::Owner));
    assert!(scene.check(&Principal::Service));
    assert_eq!(scene.lease.refused(), None);
    let told = scene.told.0.lock();
    assert!(matches!(told.last(), Some(Event::PermitEnded { why: PermitEnd::Refused(_), .. })));
}

#[test]
fn a_refused_key_ends_every_permit_until_it_is_back() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.acquire(&Principal::Service).unwrap();
    scene.until_refresh();
    scene.kms.disable(&scene.master.arn).unwrap();
    assert!(scene.refresh(&Principal::Owner).is_err() && !scene.check(&Principal::Owner));
    assert!(!scene.check(&Principal::Owner) && !scene.check(&Principal::Service));
    let ending = scene.lease.ending(scene.broker.advance());
    assert!(matches!(ending, Some(Ending::Refused(error)) if error.reason == ProviderReason::KeyDisabled));
    scene.kms.enable(&scene.master.arn).unwrap();
    scene.acquire(&Principal::Owner).unwrap();
    assert_eq!(scene.lease.refused(), None);
    assert_eq!(scene.lease.ending(scene.broker.advance()), None);
}

#[test]
fn a_refusal_of_the_service_is_a_refusal_of_the_table() {
    let scene = scene();
    scene.acquire(&Principal::Owner).unwrap();
    scene.provider.inject(on_decrypt().principal(Principal::Service).fail(ProviderReason::NoGrant));
    assert!(scene.acquire(&Principal::Service).is_err());
    assert!(!scene.check(&Principal::Owner));
    assert!(scene.lease.refused().is_some());
}

#[test]
fn another_key_or_garbage_is_an_integrity_error_and_harms_no_good_key() {
    let cases = [
        (on_decrypt().other_data_key(), ErrorKind::WrongKey),
        (on_decrypt().other_arn("arn:strongroom:kms:local:0:key/of-somebody-else"), ErrorKind::WrongKey),
        (on_decrypt().fail(ProviderReason::InvalidCiphertext), ErrorKind::Tampering),
        (on_decrypt().key_bytes(31), ErrorKind::KeyUnavailable),
        (on_decrypt().key_bytes(0), ErrorKind::KeyUnavailable),
        (on_decrypt().panic(), ErrorKind::KeyUnavailable),
    ];
    for (fault, kind) in cases {
        let scene = scene();
        let good = scene.acquire(&Principal::Owner).unwrap();
        scene.until_refresh();
        scene.provider.inject(fault.clone());
        let error = scene.refresh(&Principal::Owner).unwrap_err();
        assert!(scene.check(&Principal::Owner), "a good key was forgotten");
        assert_eq!(error.kind(), kind);
        assert!(Arc::ptr_eq(&scene.lease.material().unwrap(), &good));
        // And a first use gets nothing.
        scene.lease.forget();
        assert_eq!(scene.acquire(&Principal::Owner).unwrap_err().kind(), kind);
        assert!(scene.lease.material().is_none());
        scene.provider.heal();
        scene.acquire(&Principal::Owner).unwrap();
    }
}

#[test]
fn every_recorded_generation_is_unwrapped_retired_or_not() {
    let scene = scene();
    for generation in [2, 3] {
        let new =
            scene.broker.new_table_key(TABLE, Generation(generation), &scene.master, &Principal::Service).unwrap();
        scene.wraps.lock().push(new.wrap);
    }
    // Retired means that nothing new is sealed under it; old files still are.
    scene.wraps.lock()[0].retired = true;
    let keys = scene.acquire(&Principal::Owner).unwrap();
    assert_eq!(scene.provider.count(Operation::Decrypt), 3);
    assert_eq!(keys.current().generation(), Generation(3));
    assert!((1..=3).all(|generation| keys.generation(Generation(generation)).is_some()));
    // One that is refused is enough to refuse the permit.
    scene.lease.forget();
    scene.wraps.lock()[1].wrapped[40] ^= 1;
    assert_eq!(scene.acquire(&Principal::Owner).unwrap_err().kind(), ErrorKind::Tampering);
    assert!(scene.lease.material().is_none());
}

#[test]
fn another_tables_key_file_is_not_asked_about() {
    let scene = scene();
    let other = TableId::from_bytes([9; 16]);
    let wraps = scene.wraps.lock().clone();
    let error = scene
        .broker
        .acquire(&scene.lease, &scene.lease.permit(&Principal::Owner), &|| {
            Ok(record(other, MasterKind::Customer, &wraps))
        })
        .unwrap_err();
    assert_eq!((error.kind(), scene.provider.count(Operation::Decrypt)), (ErrorKind::Tampering, 0));
}

#[test]
fn the_wrap_of_another_table_or_generation_does_not_open() {
    let scene = scene();
    let other = scene
        .broker
        .new_table_key(TableId::from_bytes([3; 16]), Generation(1), &scene.master, &Principal::Service)
        .unwrap();
    *scene.wraps.lock() = vec![other.wrap.clone()];
    assert_eq!(scene.acquire(&Principal::Owner).unwrap_err().kind(), ErrorKind::WrongKey);
    // With the context of this table, the provider refuses.
    let own = scene.broker.new_table_key(TABLE, Generation(1), &scene.master, &Principal::Service).unwrap().wrap;
    *scene.wraps.lock() = vec![Wrap { context: own.context, ..other.wrap }];
    assert_eq!(scene.acquire(&Principal::Owner).unwrap_err().kind(), ErrorKind::Tampering);
}

#[test]
fn the_maker_of_a_table_uses_it_without_asking_again() {
    let scene = scene();
    let new = scene.broker.new_table_key(TABLE, Generation(1), &scene.master, &Principal::Service).unwrap();
    scene.broker.prime(&scene.lease, &scene.lease.permit(&Principal::Owner), new).unwrap();
    scene.acquire(&Principal::Owner).unwrap();
    assert_eq!(scene.provider.count(Operation::Decrypt), 0);
}

#[test]
fn a_dropped_table_gives_no_keys_and_an_answer_on_its_way_is_void() {
    let scene = Arc::new(scene());
    let dropping = Arc::downgrade(&scene);
    scene.provider.inject(on_decrypt().call(move || dropping.upgrade().unwrap().lease.close()));
    assert!(matches!(scene.acquire(&Principal::Owner), Err(Error::TableDropped { .. })));
    assert!(scene.lease.material().is_none());
    assert!(matches!(scene.acquire(&Principal::Service), Err(Error::TableDropped { .. })));
}

#[test]
fn an_answer_from_before_a_refusal_does_not_undo_it() {
    let scene = Arc::new(scene());
    scene.acquire(&Principal::Service).unwrap();
    // While the owner's request is under way, the service hears that the key is disabled.
    let meanwhile = Arc::downgrade(&scene);
    let inner = Arc::new(AtomicBool::new(false));
    scene.provider.inject(on_decrypt().principal(Principal::Owner).call(move || {
        if inner.swap(true, Ordering::SeqCst) {
            return;
        }
        let scene = meanwhile.upgrade().unwrap();
        scene.pass(300);
        scene.provider.inject(on_decrypt().principal(Principal::Service).fail(ProviderReason::KeyDisabled));
        scene.acquire(&Principal::Service).unwrap_err();
    }));
    assert_eq!(scene.acquire(&Principal::Owner).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert!(!scene.check(&Principal::Owner));
}

#[test]
fn wall_time_that_runs_ahead_ends_all_permits_and_no_other_jump_does() {
    let scene = scene();
    let wall = |ahead_ms: i64| {
        let now = scene.broker.clock.wall_ms();
        scene.clock.set_wall_ms(now.saturating_add_signed(ahead_ms));
    };
    scene.acquire(&Principal::Owner).unwrap();
    wall(-3_600_000);
    assert!(scene.check(&Principal::Owner));
    wall(9_000);
    assert!(scene.check(&Principal::Owner));
    wall(3_600_000);
    assert!(!scene.check(&Principal::Owner));
    scene.acquire(&Principal::Owner).unwrap();
    assert!(scene.check(&Principal::Owner));
    scene.pass(299);
    assert!(scene.check(&Principal::Owner));
}

#[test]
fn a_thousand_threads_ask_once() {
    let scene = scene_in(&Simulation::new(1), Some(Environment::os().scheduler));
    let barrier = std::sync::Barrier::new(1000);
    std::thread::scope(|scope| {
        for _ in 0..1000 {
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, || {
                    barrier.wait();
                    scene.acquire(&Principal::Owner).unwrap();
                })
                .unwrap();
        }
    });
    assert_eq!(scene.provider.count(Operation::Decrypt), 1);
}

#[test]
fn a_provider_that_panics_lets_all_who_wait_go_with_an_error() {
    let scene = scene_in(&Simulation::new(1), Some(Environment::os().scheduler));
    scene.provider.inject(on_decrypt().panic());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let error = scene.acquire(&Principal::Owner).unwrap_err();
                assert!(matches!(error,
                    Error::KeyUnavailable { source, .. } if source.reason == ProviderReason::UnexpectedAnswer));
            });
        }
    });
    scene.provider.heal();
    scene.acquire(&Principal::Owner).unwrap();
}

#[test]
fn engine_keys_are_made_once_and_customer_keys_must_exist() {
    let scene = scene();
    let owned = scene.broker.resolve(&MasterKey::owned(), &Principal::Service).unwrap();
    assert_eq!(scene.broker.resolve(&MasterKey::owned(), &Principal::Service).unwrap(), owned);
    let managed = scene.broker.resolve(&MasterKey::managed(), &Principal::Owner).unwrap();
    assert_ne!(owned.arn, managed.arn);
    let error = scene.broker.resolve(&MasterKey::customer("alias/nobody"), &Principal::Owner).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::KeyUnavailable);
    scene.kms.disable("alias/ratings").unwrap();
    assert!(scene.broker.resolve(&MasterKey::customer("alias/ratings"), &Principal::Owner).is_err());
    // Refused before a key is made.
    assert_eq!(scene.provider.count(Operation::GenerateDataKey), 1);
}

#[test]
fn a_system_key_opens_again_with_the_owned_key_alone() {
    let scene = scene();
    let new = scene.broker.new_system_key(Generation(1)).unwrap();
    let lease = TableLease::new(TableId::SYSTEM);
    let wraps = vec![new.wrap];
    scene
        .broker
        .acquire(&lease, &lease.permit(&Principal::Service), &|| Ok(record(TableId::SYSTEM, MasterKind::Owned, &wraps)))
        .unwrap();
    scene.pass(10_000);
    // The store itself is never idle.
    assert_eq!(lease.ending(scene.broker.advance()), None);
}

#[test]
fn a_context_is_canonical_and_names_nothing_twice() {
    let one = EncryptionContext::from_pairs([("b", "2"), ("a", "1")]).unwrap();
    let other = EncryptionContext::from_pairs([("a", "1"), ("b", "2")]).unwrap();
    assert_eq!(one.canonical(), other.canonical());
    // Lengths are part of it, so that text cannot wander from a name into a value.
    let shifted = EncryptionContext::from_pairs([("a", "1b"), ("2", "")]).unwrap();
    assert_ne!(one.canonical(), shifted.canonical());
    let pairs = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())];
    assert_eq!(one.canonical(), crate::format::keyfile::encode_context(&pairs).unwrap());
    let long = "x".repeat(9000);
    for bad in [[("a", "1"), ("a", "1")], [("a", "1"), ("", "2")], [("a", "1"), ("b", &long)]] {
        let refused = EncryptionContext::from_pairs(bad).unwrap_err();
        assert_eq!(refused.reason, ProviderReason::InvalidRequest);
    }
}

#[test]
fn nothing_secret_is_printed() {
    let key = DataKey::from_fn(|key| key.fill(0x41));
    let arn = "arn".to_owned();
    let printed = [
        format!("{key:?}"),
        format!("{:?}", DecryptedDataKey::new(DataKey::from_fn(|key| key.fill(0x41)), arn.clone())),
        format!("{:?}", EncryptRequest::new(arn, key, EncryptionContext::new(), Principal::Owner)),
        format!("{:?}", Unlock::passphrase("AAAAAAAA")),
        format!("{:?}", Unlock::key(|key| key.fill(0x41))),
        format!("{:?}", scene().acquire(&Principal::Owner).unwrap()),
    ];
    for text in printed {
        assert!(!text.contains("AAAA") && !text.contains("65, 65") && !text.contains("4141"), "{text}");
    }
}

#[test]
fn a_keyring_inside_the_store_is_refused() {
    let simulation = Simulation::new(1);
    let environment = simulation.environment();
    for directory in ["/store", "/store/keys", "/elsewhere"] {
        environment.vfs.create_dir(Path::new(directory)).unwrap();
    }
    let refused = |path: &str| {
        let kms = LocalKms::create_in(environment.clone(), path, Unlock::key(|key| key.fill(1))).unwrap();
        refuse_keyring_inside(&kms, Path::new("/store"), &*environment.vfs).is_err()
    };
    assert!(refused("/store/ring"));
    assert!(refused("/store/keys/ring"));
    assert!(!refused("/elsewhere/ring"));
    assert!(!refused("/store-ring"));
}

#[test]
fn a_table_that_is_not_in_use_costs_little_memory() {
    // 100,000 of them are a normal store, and a table may cost 512 bytes in all.
    assert!(size_of::<TableLease>() <= 224, "{} bytes", size_of::<TableLease>());
}
