//! Every operation that may need a key, while everything goes wrong that can go wrong at a key provider.
//!
//! ```text
//! arrange ── inject the fault ── act ── as the table says? ── heal ── act again ── close ── open ── every row there?
//!                                 └ if it failed: no byte of the directory is another (creations, openings, rotations)
//! ```
//! Everything runs on one thread in simulated time. A deadlock is a panic there, and so is a panic of the provider that gets through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use strongroom::error::ProviderReason;
use strongroom::io::Clock;
use strongroom::io::sim::Simulation;
use strongroom::keys::faulty::{FaultyProvider, Operation as Asked, Rule};
use strongroom::{Builder, Error, ErrorKind, LocalKms, MasterKey, Result, Store, Table, TableOptions};

use crate::world::{DIR, Row, contents, row, tiny_options, tiny_table};

use self::Expected::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    CreateStore,
    Open,
    CreateTable,
    /// After the store was opened again: nobody has a permit.
    FirstRead,
    /// Within a permit.
    CachedRead,
    /// After the store was opened again, like the first read.
    Write,
    Rotate,
    Drop,
    Close,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Timeout,
    /// The right answer, seconds later.
    Slow,
    /// Two requests are throttled, the next is not.
    Transient,
    Denied,
    NotFound,
    /// Another data key in the answer.
    WrongKey,
    Truncated,
    Oversized,
    Panic,
    /// The request reached the provider, its answer was lost, and nothing can be reached from then on.
    Outage,
}

/// What comes of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Done,
    /// `ErrorKind::KeyUnavailable` for this reason.
    Refused(ProviderReason),
    /// `ErrorKind::WrongKey`: the answer is not the key that was pinned.
    Wrong,
    /// `ErrorKind::Tampering`: the provider does not recognise what it wrapped.
    Tampering,
}

const FAULTS: [Fault; 10] = [
    Fault::Timeout,
    Fault::Slow,
    Fault::Transient,
    Fault::Denied,
    Fault::NotFound,
    Fault::WrongKey,
    Fault::Truncated,
    Fault::Oversized,
    Fault::Panic,
    Fault::Outage,
];

const LATE: Expected = Refused(ProviderReason::TimedOut);
const BUSY: Expected = Refused(ProviderReason::Throttled);
const DENIED: Expected = Refused(ProviderReason::Denied);
const NO_KEY: Expected = Refused(ProviderReason::KeyNotFound);
const ODD: Expected = Refused(ProviderReason::UnexpectedAnswer);
const AWAY: Expected = Refused(ProviderReason::Unreachable);

/// What comes of each operation under each of [`FAULTS`], in that order.
#[rustfmt::skip]
const TABLE: [(Operation, [Expected; 10]); 9] = [
    //                         timeout slow  transient denied  not found wrong key truncated  oversized panic outage
    (Operation::CreateStore,  [LATE,   Done, BUSY,     DENIED, NO_KEY,   ODD,      ODD,       ODD,      ODD,  AWAY]),
    (Operation::Open,         [LATE,   Done, BUSY,     DENIED, NO_KEY,   Wrong,    Tampering, ODD,      ODD,  AWAY]),
    (Operation::CreateTable,  [LATE,   Done, BUSY,     DENIED, NO_KEY,   ODD,      ODD,       ODD,      ODD,  AWAY]),
    (Operation::FirstRead,    [LATE,   Done, BUSY,     DENIED, NO_KEY,   Wrong,    Tampering, ODD,      ODD,  AWAY]),
    (Operation::CachedRead,   [Done,   Done, Done,     Done,   Done,     Done,     Done,      Done,     Done, Done]),
    (Operation::Write,        [LATE,   Done, BUSY,     DENIED, NO_KEY,   Wrong,    Tampering, ODD,      ODD,  AWAY]),
    (Operation::Rotate,       [LATE,   Done, BUSY,     DENIED, NO_KEY,   ODD,      ODD,       ODD,      ODD,  AWAY]),
    // Neither needs a key. That the service's grant is not given up at once does not keep a table from being dropped.
    (Operation::Drop,         [Done,   Done, Done,     Done,   Done,     Done,     Done,      Done,     Done, Done]),
    (Operation::Close,        [Done,   Done, Done,     Done,   Done,     Done,     Done,      Done,     Done, Done]),
];

/// The longest that an operation may take, in simulated time: a few slow answers.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOW: Duration = Duration::from_secs(4);
/// Steps of background work between two operations, at most.
const STEPS_MAX: usize = 20_000;

impl Operation {
    /// The request that it stands or falls with. One that needs none has them all go wrong.
    fn asks(self) -> Option<Asked> {
        match self {
            Operation::CreateStore | Operation::CreateTable | Operation::Rotate => Some(Asked::GenerateDataKey),
            Operation::Open | Operation::FirstRead | Operation::Write => Some(Asked::Decrypt),
            Operation::CachedRead | Operation::Drop | Operation::Close => None,
        }
    }

    /// Whether it leaves the directory as it was if it fails.
    fn is_all_or_nothing(self) -> bool {
        matches!(self, Operation::CreateStore | Operation::Open | Operation::CreateTable | Operation::Rotate)
    }

    /// Bring about what it starts from.
    fn arrange(self, scene: &mut Scene) -> Result<()> {
        if self == Operation::CreateStore {
            return Ok(());
        }
        let store = scene.builder().create()?;
        for (name, options) in [("t", tenants()), ("kept", tiny_table(1))] {
            let table = store.create_table(name, options)?;
            let rows = scene.expected.entry(name.to_owned()).or_default();
            for number in 0..40 {
                put(&table, rows, &format!("key {number:02}"))?;
            }
        }
        scene.store = Some(store);
        match self {
            Operation::Open => scene.close()?,
            Operation::FirstRead | Operation::Write => {
                scene.close()?;
                scene.store = Some(scene.builder().open()?);
                scene.bystander_reads();
            }
            _ => {}
        }
        Ok(())
    }

    fn act(self, scene: &mut Scene) -> Result<()> {
        match self {
            Operation::CreateStore => scene.store = Some(scene.builder().create()?),
            Operation::Open => scene.store = Some(scene.builder().open()?),
            Operation::CreateTable => {
                let table = scene.store().create_table("new", tenants())?;
                put(&table, scene.expected.entry("new".to_owned()).or_default(), "first")?;
            }
            Operation::FirstRead | Operation::CachedRead => {
                let rows = row(&scene.store().table("t")?)?;
                assert_eq!(rows, scene.expected["t"]);
            }
            Operation::Write => {
                let table = scene.store().table("t")?;
                put(&table, scene.expected.entry("t".to_owned()).or_default(), "written")?;
            }
            Operation::Rotate => drop(scene.store().rotate_table_key("t")?),
            Operation::Drop => {
                scene.store().drop_table("t")?;
                scene.expected.remove("t");
            }
            Operation::Close => scene.store().close()?,
        }
        Ok(())
    }
}

impl Fault {
    fn inject(self, provider: &FaultyProvider, asked: Option<Asked>) {
        let rule = || asked.map_or_else(Rule::on_any, Rule::on);
        provider.inject(match self {
            Fault::Timeout => rule().always().fail(ProviderReason::TimedOut),
            Fault::Slow => rule().always().delay(SLOW),
            Fault::Transient => rule().first(2).fail(ProviderReason::Throttled),
            Fault::Denied => rule().always().fail(ProviderReason::Denied),
            Fault::NotFound => rule().always().fail(ProviderReason::KeyNotFound),
            Fault::WrongKey => rule().always().other_data_key(),
            Fault::Truncated => rule().always().ciphertext_bytes(20),
            // Where the wrapped key is in the request, it is the data key that is too long.
            Fault::Oversized if asked == Some(Asked::Decrypt) => rule().always().key_bytes(1 << 20),
            Fault::Oversized => rule().always().ciphertext_bytes(1 << 20),
            Fault::Panic => rule().always().panic(),
            Fault::Outage => rule().outage(),
        });
    }
}

/// A simulated machine, a provider elsewhere, and what has been acknowledged.
struct Scene {
    sim: Simulation,
    provider: Arc<FaultyProvider>,
    store: Option<Store>,
    expected: BTreeMap<String, Row>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let sim = Simulation::new(seed);
        let kms = LocalKms::in_memory(Simulation::new(!seed).environment()).unwrap();
        kms.create_key(Some("alias/tenant"), "a tenant's").unwrap();
        let provider = Arc::new(FaultyProvider::new(kms).in_environment(&sim.environment()));
        Scene { sim, provider, store: None, expected: BTreeMap::new() }
    }

    fn builder(&self) -> Builder {
        Store::builder(DIR)
            .shared_key_provider(self.provider.clone())
            .options(tiny_options())
            .environment(self.sim.environment())
    }

    fn store(&self) -> Store {
        self.store.clone().expect("there is a store in this operation")
    }

    fn close(&mut self) -> Result<()> {
        self.store.take().map_or(Ok(()), |store| store.close())
    }

    /// The other table, under another master key, answers from its permit whatever happens to this one.
    fn bystander_reads(&self) {
        let kept = self.store().table("kept").unwrap();
        assert_eq!(row(&kept).unwrap(), self.expected["kept"]);
    }

    /// Let background work come to rest.
    fn settle(&self) {
        assert!(self.sim.scheduler.run_some(STEPS_MAX) < STEPS_MAX, "background work does not come to rest");
    }

    /// Longer than a refusal is shared, with background work.
    fn pass(&self) {
        for _ in 0..8 {
            self.sim.clock.advance(Duration::from_millis(250));
            self.settle();
        }
    }

    /// Act, within the time that there is for it.
    fn act(&mut self, operation: Operation) -> Result<()> {
        let end = self.sim.clock.tick().after(PATIENCE);
        let outcome = operation.act(self);
        assert!(self.sim.clock.tick() < end, "it took too long");
        outcome
    }
}

fn tenants() -> TableOptions {
    tiny_table(0).master_key(MasterKey::customer("alias/tenant"))
}

/// Put a row, and remember it once it is acknowledged.
fn put(table: &Table, rows: &mut Row, key: &str) -> Result<()> {
    let value = format!("value of {key}");
    table.put(key, &value)?;
    rows.insert(key.as_bytes().to_vec(), value.into_bytes());
    Ok(())
}

fn outcome_of(outcome: &Result<()>) -> Expected {
    let Err(error) = outcome else { return Done };
    match (error.kind(), error) {
        (
            ErrorKind::KeyUnavailable,
            Error::KeyUnavailable { source, .. }
            | Error::TableInaccessible { source, .. }
            | Error::MasterKeyUnavailable { source, .. },
        ) => Refused(source.reason),
        (ErrorKind::WrongKey, _) => Wrong,
        (ErrorKind::Tampering, _) => Tampering,
        _ => panic!("neither done nor refused by the provider: {error}"),
    }
}

/// One operation under one fault, and what must be true whatever comes of it.
fn cell(seed: u64, operation: Operation, fault: Fault, expected: Expected) {
    let place = format!("{operation:?} under {fault:?}");
    let mut scene = Scene::new(seed);
    operation.arrange(&mut scene).unwrap_or_else(|error| panic!("{place}: {error}"));
    scene.settle();
    let before = scene.sim.vfs.snapshot();

    fault.inject(&scene.provider, operation.asks());
    let (begun, asked) = (scene.sim.clock.tick(), scene.provider.count_all());
    let outcome = scene.act(operation);
    assert_eq!(outcome_of(&outcome), expected, "{place}: {outcome:?}");
    let waited = scene.sim.clock.tick() >= begun.after(SLOW);
    let asks = !matches!(operation, Operation::CachedRead | Operation::Close);
    assert_eq!(scene.provider.count_all() > asked, asks, "{place}: whether a provider is asked");
    assert_eq!(waited, asks && fault == Fault::Slow, "{place}: whether there is anything to wait for");
    if outcome.is_err() && operation.is_all_or_nothing() {
        assert!(scene.sim.vfs.snapshot() == before, "{place}: it failed and has changed the directory");
    }
    if scene.expected.contains_key("kept") && scene.store.is_some() && operation != Operation::Close {
        scene.bystander_reads();
    }

    // A transient fault ends by itself, with the third request. All others end here, and one attempt must do.
    let attempts = if fault == Fault::Transient { 2 } else { 1 };
    if fault != Fault::Transient {
        scene.provider.heal();
    }
    if let Err(error) = outcome {
        let mut again = Err(error);
        for _ in 0..attempts {
            scene.pass();
            again = scene.act(operation);
        }
        again.unwrap_or_else(|error| panic!("{place}: the fault is over, and still: {error}"));
    }
    scene.provider.heal();

    // The store is as good as any other: it rotates, closes, and opens again with every row.
    if operation != Operation::Close {
        let store = scene.store();
        if operation == Operation::Rotate {
            store.rotation("t").unwrap().wait().unwrap();
        }
        let late = store.create_table("late", tenants()).unwrap();
        put(&late, scene.expected.entry("late".to_owned()).or_default(), "first").unwrap();
    }
    scene.close().unwrap_or_else(|error| panic!("{place}: {error}"));
    let store = scene.builder().open().unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(store.recovery().clean, "{place}");
    let found = contents(&store).unwrap_or_else(|error| panic!("{place}: {error}"));
    let found: BTreeMap<String, Row> = found.into_iter().map(|(name, (_, rows))| (name, rows)).collect();
    assert_eq!(found, scene.expected, "{place}");
    store.close().unwrap();
}

#[test]
fn every_operation_survives_every_fault_of_a_key_provider_and_works_once_it_is_over() {
    // A provider's bad hour must neither cost a row, nor a restart, nor leave half a table behind.
    let mut cells = 0;
    for (operation, outcomes) in TABLE {
        for (fault, expected) in FAULTS.into_iter().zip(outcomes) {
            cell(5000 + cells, operation, fault, expected);
            cells += 1;
        }
    }
    assert_eq!(cells, 90);
}

#[test]
fn a_new_key_is_unwrapped_by_the_engine_before_a_byte_is_written_and_not_again_for_the_first_use() {
    // A key that is not in its wrap is found out when its first permit has ended, and everything written until then is lost.
    let mut scene = Scene::new(5100);
    Operation::Open.arrange(&mut scene).unwrap();
    Operation::Open.act(&mut scene).unwrap();
    scene.settle();
    let from = scene.provider.requests().len();
    Operation::CreateTable.act(&mut scene).unwrap();
    let asked: Vec<Asked> = scene.provider.requests().split_off(from).iter().map(|asked| asked.operation).collect();
    assert_eq!(asked, [Asked::DescribeKey, Asked::CreateGrant, Asked::GenerateDataKey, Asked::Decrypt]);
    for wrong in [Rule::on(Asked::Decrypt).other_data_key(), Rule::on(Asked::Decrypt).fail(ProviderReason::Denied)] {
        let before = scene.sim.vfs.snapshot();
        scene.provider.inject(wrong);
        let refused = scene.store().create_table("another", tenants()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::KeyUnavailable);
        assert!(scene.sim.vfs.snapshot() == before);
    }
    scene.close().unwrap();
}
