//! What happens in between: calls that meet a close, a drop, a second creator, a refused key or a full budget.
//!
//! Most of it runs in simulated time, where a wait that nobody ends is reported as a deadlock.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use strongroom::error::{ProviderError, ProviderReason};
use strongroom::io::fault::{FaultVfs, Operation, Rule};
use strongroom::io::sim::Simulation;
use strongroom::io::{Clock, Environment, Vfs};
use strongroom::keys::{DecryptRequest, GenerateDataKeyRequest, ProviderResult};
use strongroom::{Durability, ErrorKind, LocalKms, MasterKey, Store, StoreOptions, TableOptions};

use crate::providers::{Watch, Watched};

/// Does something else first when a new key is asked for, or cannot be reached.
#[derive(Default)]
struct Hooked {
    is_away: AtomicBool,
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Hooked {
    fn watching(environment: Environment) -> Arc<Watched<Hooked>> {
        let kms = LocalKms::in_memory(environment).unwrap();
        kms.create_key(Some("alias/tenant"), "a tenant's").unwrap();
        Arc::new(Watched::new(&kms, Hooked::default()))
    }

    fn before_the_next_key(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock() = Some(Box::new(hook));
    }
}

impl Watch for Hooked {
    fn before_generate(&self, _: &GenerateDataKeyRequest) -> ProviderResult<()> {
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    fn before_decrypt(&self, _: &DecryptRequest) -> ProviderResult<()> {
        match self.is_away.load(Ordering::SeqCst) {
            true => Err(ProviderError::new(ProviderReason::Unreachable, "away")),
            false => Ok(()),
        }
    }
}

fn small() -> StoreOptions {
    StoreOptions {
        memtable_bytes: 4 << 10,
        write_budget_bytes: 64 << 10,
        log_segment_bytes: 64 << 10,
        table_file_bytes: 4 << 10,
        level_one_bytes: 16 << 10,
        ..StoreOptions::default()
    }
}

struct World {
    simulation: Simulation,
    disk: FaultVfs,
    provider: Arc<Watched<Hooked>>,
}

impl World {
    fn new(seed: u64) -> World {
        let simulation = Simulation::new(seed);
        let disk = FaultVfs::new(simulation.vfs.clone());
        let provider = Hooked::watching(simulation.environment());
        World { simulation, disk, provider }
    }

    fn builder(&self, options: StoreOptions) -> strongroom::Builder {
        let environment = Environment { vfs: Arc::new(self.disk.clone()), ..self.simulation.environment() };
        Store::builder("/store").environment(environment).shared_key_provider(self.provider.clone()).options(options)
    }

    /// A store with one table for each of these names.
    fn store(&self, tables: &[&str]) -> Store {
        let store = self.builder(small()).create().unwrap();
        for name in tables {
            store.create_table(name, TableOptions::new()).unwrap();
        }
        store
    }

    fn sorted_files(&self) -> usize {
        let folders = self.disk.read_dir(Path::new("/store/sst")).unwrap();
        let count = |name: &str| self.disk.read_dir(&Path::new("/store/sst").join(name)).unwrap().len();
        folders.iter().map(|folder| count(&folder.name)).sum()
    }
}

#[test]
fn a_creator_who_comes_second_does_not_clear_the_store_of_the_first() {
    // Both saw an empty place. The second gets the lock when the first has written, closed and gone: what it would clear
    // away as unfinished is somebody's data.
    let world = World::new(1);
    let first = world.builder(small());
    world.provider.before_the_next_key(move || {
        let store = first.create().unwrap();
        store.create_table("t", TableOptions::new()).unwrap().put("k", "v").unwrap();
        store.close().unwrap();
    });
    assert_eq!(world.builder(small()).create().unwrap_err().kind(), ErrorKind::AlreadyExists);
    let store = world.builder(small()).open().unwrap();
    assert_eq!(store.table("t").unwrap().get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_table_is_not_created_behind_a_close() {
    // What is written to the manifest behind the length that the close recorded makes the store unreadable.
    let world = World::new(2);
    let store = world.store(&["t"]);
    let closer = store.clone();
    world.provider.before_the_next_key(move || closer.close().unwrap());
    assert_eq!(store.create_table("late", TableOptions::new()).unwrap_err().kind(), ErrorKind::Closed);
    let store = world.builder(small()).open().unwrap();
    assert!(store.recovery().clean);
    assert_eq!(store.table_names(), ["t"]);
    assert!(store.recovery().set_aside_files.is_empty(), "{:?}", store.recovery());
}

#[test]
fn a_closed_store_answers_nothing() {
    // A cursor or table that still reads would do so under permits that nobody ends any more.
    let world = World::new(3);
    let store = world.store(&["t"]);
    let table = store.table("t").unwrap();
    table.put("a", "1").unwrap();
    table.put("b", "2").unwrap();
    let (mut cursor, mut range, snapshot) = (table.cursor().unwrap(), table.iter(), store.snapshot());
    cursor.first().unwrap();
    range.next().unwrap().unwrap();
    store.close().unwrap();
    let kinds = [
        table.get("a").unwrap_err().kind(),
        table.put("a", "2").unwrap_err().kind(),
        cursor.next().unwrap_err().kind(),
        range.next().unwrap().unwrap_err().kind(),
        snapshot.get(&table, "a").unwrap_err().kind(),
        store.sync().unwrap_err().kind(),
        store.flush().unwrap_err().kind(),
        store.quiesce().unwrap_err().kind(),
        store.drop_table("t").unwrap_err().kind(),
        table.describe().unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Closed; 10]);
}

#[test]
fn a_batch_over_too_many_tables_is_refused_and_harms_nothing() {
    // An envelope lists what a group consists of, and has an end. If that showed only while the group is written, the
    // store would be read-only afterwards.
    let store = Store::temporary().unwrap();
    let names: Vec<String> = (0..32_800).map(|number| number.to_string()).collect();
    let wanted: Vec<(&str, TableOptions)> = names.iter().map(|name| (name.as_str(), TableOptions::new())).collect();
    let tables = store.create_tables(&wanted).unwrap();
    let mut batch = store.batch();
    for table in &tables {
        batch.put(table, "k", "v");
    }
    assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::LimitExceeded);
    assert_eq!(tables[0].get("k").unwrap(), None);
    let mut batch = store.batch();
    for table in &tables[..32_000] {
        batch.put(table, "k", "v");
    }
    batch.commit_with(Durability::Sync).unwrap();
    assert!(tables[31_999].contains_key("k").unwrap());
}

#[test]
fn a_table_whose_key_is_refused_keeps_no_other_from_being_flushed_or_compacted() {
    // One tenant disables its key: the others must not notice.
    let world = World::new(4);
    let store = world.store(&["other"]);
    let options = TableOptions::new().master_key(MasterKey::customer("alias/tenant"));
    let tenant = store.create_table("tenant", options).unwrap();
    let other = store.table("other").unwrap();
    tenant.put("k", "v").unwrap();
    world.provider.kms.disable("alias/tenant").unwrap();
    assert_eq!(tenant.flush().unwrap_err().kind(), ErrorKind::KeyUnavailable);
    for round in 0..40 {
        for key in 0..20 {
            other.put(format!("{key}"), vec![round; 500]).unwrap();
        }
        other.flush().unwrap();
    }
    other.compact().unwrap();
    // Nothing of the tenant's is in memory any more that could be flushed.
    store.flush().unwrap();
    assert_eq!(tenant.get("k").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    world.provider.kms.enable("alias/tenant").unwrap();
    // For so long a refusal is shared.
    world.simulation.clock.advance(std::time::Duration::from_secs(1));
    tenant.flush().unwrap();
    store.flush().unwrap();
    assert_eq!(tenant.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(other.iter().count(), 20);
}

#[test]
fn a_dropped_table_neither_fails_the_work_of_others_nor_leaves_files() {
    // Whoever waits for a flush must not be told of a table that is none of his, and what was being written for the
    // dropped one is nobody's.
    for steps in (0..400).step_by(7) {
        let world = World::new(100 + steps as u64);
        let store = world.store(&["gone", "stays"]);
        let (gone, stays) = (store.table("gone").unwrap(), store.table("stays").unwrap());
        for key in 0..30u32 {
            // Each freezes a memtable.
            gone.put(key.to_string(), vec![1; 5000]).unwrap();
            stays.put(key.to_string(), vec![1; 5000]).unwrap();
        }
        world.simulation.scheduler.run_some(steps);
        store.drop_table("gone").unwrap();
        store.flush().unwrap();
        store.compact().unwrap();
        assert_eq!(stays.iter().count(), 30);
        assert_eq!(gone.get("1").unwrap_err().kind(), ErrorKind::Closed);
        drop((stays, gone));
        store.close().unwrap();
        drop(store);
        let store = world.builder(small()).open().unwrap();
        assert!(store.recovery().clean);
        let removed = store.recovery().removed_files.iter().filter(|file| file.ends_with(".sst"));
        assert_eq!(removed.count(), 0, "after {steps} steps: {:?}", store.recovery());
    }
}

#[test]
fn flush_waits_for_what_was_frozen_before() {
    // "Return once it is there" holds also for what began to be written before the call.
    let world = World::new(5);
    let store = world.store(&["t"]);
    store.table("t").unwrap().put("k", vec![1; 8000]).unwrap();
    assert_eq!(world.sorted_files(), 0);
    store.flush().unwrap();
    assert_eq!(world.sorted_files(), 1);
}

#[test]
fn what_was_replayed_is_flushed_when_it_leaves_no_room() {
    // The log of a store with a large budget, opened with a small one: if nobody froze what comes from the log, the first
    // write would wait until the tables are put away, which under traffic is never.
    let world = World::new(6);
    let mut options = small();
    (options.memtable_bytes, options.write_budget_bytes) = (1 << 20, 16 << 20);
    let names: Vec<String> = (0..10).map(|number| format!("t{number}")).collect();
    let store = world.builder(options).create().unwrap();
    for name in &names {
        let table = store.create_table(name, TableOptions::new()).unwrap();
        (0..10u8).for_each(|key| table.put([key], vec![7; 3000]).unwrap());
    }
    store.close().unwrap();
    drop(store);
    let mut options = small();
    (options.memtable_bytes, options.write_budget_bytes) = (64 << 10, 64 << 10);
    let store = world.builder(options).open().unwrap();
    for name in &names {
        assert_eq!(store.table(name).unwrap().iter().count(), 10);
    }
    let before = world.simulation.clock.tick();
    store.table("t0").unwrap().put("new", "entry").unwrap();
    assert!(world.simulation.clock.tick() < before.after(Duration::from_secs(1)), "not when the permits end at last");
}

#[test]
fn a_full_store_that_was_quieted_takes_writes_again() {
    // `quiesce` stops background work until the next write, which may have to wait for that very work.
    let world = World::new(7);
    let store = world.store(&["t"]);
    let table = store.table("t").unwrap();
    let mut batch = store.batch();
    for key in 0..40u8 {
        batch.put(&table, [key], vec![7; 3000]);
    }
    batch.commit().unwrap();
    store.quiesce().unwrap();
    table.put("k", "v").unwrap();
    assert_eq!(table.iter().count(), 41);
}

#[test]
fn a_cursor_that_failed_does_not_say_that_it_has_come_to_the_end() {
    // Whoever tries again after an error would take a part of the table for the whole.
    let world = World::new(8);
    let store = world.store(&["t"]);
    let table = store.table("t").unwrap();
    for key in 0..200u32 {
        table.put(format!("{key:05}"), vec![7; 300]).unwrap();
    }
    store.compact().unwrap();
    drop((table, store));
    let store = world.builder(small()).open().unwrap();
    let table = store.table("t").unwrap();
    let mut cursor = table.cursor().unwrap();
    cursor.first().unwrap();
    world.disk.inject(Rule::on(Operation::Read).path(|path| path.extension().is_some_and(|end| end == "sst")));
    let failed = loop {
        match cursor.next() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end came before the error"),
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(failed, ErrorKind::Io);
    assert!(cursor.next().is_err(), "where it stands is not known");
    assert!(cursor.prev().is_err());
    assert!(cursor.first().unwrap().is_some());
    let mut count = 1;
    while cursor.next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 200);
}

#[test]
fn permits_end_while_the_disk_hangs() {
    // The moment that permits are compared with must not stand still with whoever waits for a file: what is cached could be
    // read for as long as the disk hangs, whatever has become of the key.
    let provider = Hooked::watching(Environment::os());
    let disk = FaultVfs::new(Arc::new(strongroom::io::mem::MemVfs::unjournaled()));
    let mut options = small();
    options.permit = Duration::from_millis(300);
    options.memtable_bytes = 64 << 10;
    let store = Store::builder("/store")
        .environment(Environment { vfs: Arc::new(disk.clone()), ..Environment::os() })
        .shared_key_provider(provider.clone())
        .options(options)
        .create()
        .unwrap();
    let settings = TableOptions::new().master_key(MasterKey::customer("alias/tenant"));
    let table = store.create_table("tenant", settings).unwrap();
    let goes_on = Arc::new(AtomicBool::new(false));
    let hung = Arc::new(AtomicBool::new(false));
    let (waits, says) = (goes_on.clone(), hung.clone());
    let is_log = |path: &Path| path.starts_with("/store/wal");
    disk.inject(Rule::on(Operation::Create).path(is_log).call(move |_, _| {
        says.store(true, Ordering::SeqCst);
        while !waits.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }));
    // More than half a segment: the next one is prepared in the background, which hangs.
    table.put("k", vec![7; 40 << 10]).unwrap();
    while !hung.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(5));
    }
    provider.is_away.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(900));
    let answer = table.get("k").map(|_| ()).map_err(|error| error.kind());
    goes_on.store(true, Ordering::SeqCst);
    assert_eq!(answer, Err(ErrorKind::KeyUnavailable));
}

#[test]
fn a_store_that_was_quieted_before_its_first_write_closes_cleanly() {
    // The close names the place where the log ends, also when there is no log.
    let world = World::new(9);
    let store = world.store(&["t"]);
    store.quiesce().unwrap();
    store.close().unwrap();
    drop(store);
    let store = world.builder(small()).open().unwrap();
    assert!(store.recovery().clean);
    store.quiesce().unwrap();
    store.close().unwrap();
    drop(store);
    assert!(world.builder(small()).open().unwrap().recovery().clean);
}

#[test]
fn everything_at_once_ends_in_a_store_that_opens_cleanly() {
    // Threads that write, read, flush, compact, create and drop until somebody closes: no deadlock, no error but those of
    // what is gone, nothing lost.
    for round in 0..6 {
        everything_at_once(round);
    }
}

fn everything_at_once(round: u64) {
    let environment = Environment { vfs: Arc::new(strongroom::io::mem::MemVfs::unjournaled()), ..Environment::os() };
    let provider = Hooked::watching(environment.clone());
    let builder = || {
        let mut options = small();
        options.compaction_threads = 2;
        options.level_zero_files = 2;
        Store::builder("/store").environment(environment.clone()).shared_key_provider(provider.clone()).options(options)
    };
    let store = builder().create().unwrap();
    let steady: Vec<_> =
        (0..3).map(|n| store.create_table(&format!("steady {n}"), TableOptions::new()).unwrap()).collect();
    let gone = |error: &strongroom::Error| error.kind() == ErrorKind::Closed || error.kind() == ErrorKind::NotFound;
    let written: Vec<u32> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3usize)
            .map(|n| {
                let (store, steady) = (&store, &steady);
                scope.spawn(move || {
                    for number in 0.. {
                        let mut batch = store.batch();
                        let value = vec![n as u8; 300];
                        for table in steady.iter() {
                            batch.put(table, format!("{n} {number:06}"), &value);
                        }
                        match batch.commit() {
                            Ok(()) => {}
                            Err(error) if gone(&error) => return number,
                            Err(error) => panic!("writer {n}: {error}"),
                        }
                    }
                    0
                })
            })
            .collect();
        for n in 0..2 {
            let store = &store;
            scope.spawn(move || {
                let name = format!("passing {n}");
                let run = || -> strongroom::Result<()> {
                    loop {
                        let table = store.create_table(&name, TableOptions::new())?;
                        for key in 0..60u32 {
                            table.put(key.to_be_bytes(), vec![7; 600])?;
                        }
                        let walk = table.iter();
                        store.drop_table(&name)?;
                        for item in walk {
                            match item {
                                Err(error) if gone(&error) => break,
                                item => drop(item?),
                            }
                        }
                    }
                };
                let error = run().unwrap_err();
                assert!(gone(&error), "passing {n}: {error}");
            });
        }
        for n in 0..2 {
            let (store, steady) = (&store, &steady);
            scope.spawn(move || {
                let run = || -> strongroom::Result<()> {
                    loop {
                        match n {
                            0 => store.flush()?,
                            _ => steady[0].compact()?,
                        }
                        let snapshot = store.snapshot();
                        let counts: Vec<usize> =
                            steady.iter().map(|table| snapshot.iter(table).take_while(Result::is_ok).count()).collect();
                        snapshot.get(&steady[0], "x")?;
                        assert!(counts.iter().all(|count| *count == counts[0]), "a batch is seen whole: {counts:?}");
                    }
                };
                let error = run().unwrap_err();
                assert!(gone(&error), "maintenance {n}: {error}");
            });
        }
        std::thread::sleep(Duration::from_millis(150 + 70 * round));
        store.close().unwrap();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    drop((steady, store));
    let store = builder().open().unwrap();
    assert!(store.recovery().clean);
    for n in 0..3 {
        let table = store.table(&format!("steady {n}")).unwrap();
        // A commit that was refused for the close may still have been in time.
        let count = table.iter().map(Result::unwrap).count();
        let least: u32 = written.iter().sum();
        assert!((least as usize..=least as usize + 3).contains(&count), "{count} of {least}");
    }
}
