//! Claims about background tasks: how they end, and what may come to pass between two of their steps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Flusher;
use crate::db::load::Loading;
use crate::db::{Engine, Store};
use crate::io::fault::{FaultVfs, Operation, Rule};
use crate::io::mem::Loss;
use crate::io::sim::Simulation;
use crate::io::{Clock, Environment, Join, Scheduler, Signal, Step, Task, TaskPanicked, Tick};
use crate::keys::LocalKms;
use crate::options::{Compression, Durability, TableOptions};

/// Moments between two steps of the engine, for tests that have something come to pass there.
#[derive(Default)]
pub(in crate::db) struct Between {
    /// A task's look at whether the store is being closed, and whatever it does next.
    pub(in crate::db) look_and_work: Moment,
    /// A table is marked as dropped, and the manifest says so.
    pub(in crate::db) mark_and_drop: Moment,
    /// The oldest log segment that is needed is found, and those before it are taken.
    pub(in crate::db) need_and_take: Moment,
    /// Somebody wants a log segment to be prepared, and begins with it.
    pub(in crate::db) want_and_prepare: Moment,
    /// It is found what the log holds of a table, and noted.
    pub(in crate::db) search_and_note: Moment,
}

/// What comes to pass there, once.
#[derive(Default)]
pub(in crate::db) struct Moment(Mutex<Option<Coming>>);

struct Coming {
    /// So many times the moment comes until then.
    times: usize,
    what: Box<dyn FnOnce() + Send>,
}

impl Moment {
    pub(in crate::db) fn expect(&self, times: usize, what: impl FnOnce() + Send + 'static) {
        *self.0.lock() = Some(Coming { times, what: Box::new(what) });
    }

    pub(in crate::db) fn came(&self) {
        let mut coming = self.0.lock();
        if let Some(next) = &mut *coming {
            next.times -= 1;
            if next.times > 0 {
                return;
            }
        }
        let come = coming.take();
        drop(coming);
        if let Some(come) = come {
            (come.what)();
        }
    }
}

/// A store whose tasks do not run by themselves, with something to flush and a rotation under way.
fn store(seed: u64) -> (Store, Arc<Engine>) {
    let world = Environment::simulated(seed);
    let kms = LocalKms::in_memory(world.clone()).unwrap();
    let store = Store::builder("/store").key_provider(kms).environment(world).create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    store.rotate_table_key("t").unwrap();
    table.put("k", "w").unwrap();
    let engine = store.handle.engine().clone();
    (store, engine)
}

#[test]
fn no_task_sleeps_through_the_end_that_comes_right_behind_its_look() {
    // A failure means that closing a store hangs, for minutes or for ever, one time in a million.
    let (_store, engine) = store(0x7a5);
    let count = engine.background_tasks().len();
    for index in 0..count {
        for looks in 1..=8 {
            let (_store, engine) = store(0x1_0000 + (index * 100 + looks) as u64);
            let (name, mut task) = engine.background_tasks().swap_remove(index);
            let ending = engine.clone();
            engine.background.between.look_and_work.expect(looks, move || ending.background.stop());
            let is_over = || engine.background.stopping();
            // It may sleep as long as the end has not come, and is woken for its next look.
            for _ in 0..200 {
                match task.step() {
                    Step::Done => break,
                    Step::Again => {}
                    Step::Wait { signal, seen, .. } => {
                        assert!(!is_over() || signal.count() != seen, "{name} sleeps through the end, look {looks}");
                    }
                }
            }
            // Those that look again at each step have seen it.
            engine.background.stop();
            assert!(matches!(task.step(), Step::Done), "{name} goes on after the end");
        }
    }
}

/// A simulated machine whose disk fails when it is told to, with a store of two tables.
struct World {
    simulation: Simulation,
    disk: FaultVfs,
    kms: LocalKms,
    store: Store,
    engine: Arc<Engine>,
}

impl World {
    fn new(seed: u64) -> World {
        let simulation = Simulation::new(seed);
        let disk = FaultVfs::new(simulation.vfs.clone());
        let kms = LocalKms::in_memory(simulation.environment()).unwrap();
        let environment = Environment { vfs: Arc::new(disk.clone()), ..simulation.environment() };
        let store = Store::builder("/store").key_provider(kms.clone()).environment(environment).create().unwrap();
        for name in ["a", "b"] {
            store.create_table(name, TableOptions::new()).unwrap();
        }
        let engine = store.handle.engine().clone();
        World { simulation, disk, kms, store, engine }
    }

    fn put(&self, table: &str) {
        self.store.table(table).unwrap().put_with("k", "v", Durability::Sync).unwrap();
    }

    /// Have what a table has in memory flushed, by and by.
    fn freeze(&self, table: &str) {
        let _writer = self.engine.writer.lock();
        self.engine.freeze(&self.engine.catalog.named(table).unwrap());
    }

    /// What a table holds after a power cut.
    fn value_after_a_power_cut(&self, table: &str) -> Option<Vec<u8>> {
        let disk = &self.simulation.vfs;
        let simulation = Simulation::over(disk.crash_at(disk.events(), Loss::LoseUnsynced, 1), 0xaf7e);
        let builder = Store::builder("/store").key_provider(self.kms.clone());
        let store = builder.environment(simulation.environment()).open().unwrap();
        let value = store.table(table).unwrap().get("k").unwrap();
        value.map(|value| value.to_vec())
    }
}

/// Leave the current log segment for another.
fn next_segment(engine: &Engine) {
    engine.prepare_segment().unwrap();
    engine.begin_segment(&mut engine.writer.lock()).unwrap();
}

#[test]
fn a_drop_that_fails_costs_the_table_nothing() {
    // Otherwise a disk that is full just when a table is dropped leaves the table, and not the rows that were synced.
    for steps in 0..30 {
        let world = World::new(0x0d00 + steps as u64);
        world.put("a");
        world.freeze("a");
        next_segment(&world.engine);
        world.put("b");
        world.freeze("b");
        world.simulation.scheduler.run_some(steps);
        let (scheduler, disk) = (world.simulation.scheduler.clone(), world.disk.clone());
        world.engine.background.between.mark_and_drop.expect(1, move || {
            scheduler.run_until_idle();
            disk.inject(Rule::on(Operation::Write).path(|path| path.starts_with("/store/manifest")));
        });
        world.store.drop_table("a").unwrap_err();
        assert_eq!(world.value_after_a_power_cut("a").as_deref(), Some(&b"v"[..]), "after {steps} steps");
    }
}

#[test]
fn what_a_dropped_table_had_in_memory_is_let_go_of() {
    // Otherwise each table that is dropped while it is flushed takes from the write budget and from the log, for as long as the
    // store is open.
    for steps in 0..30 {
        let world = World::new(0x1e00 + steps as u64);
        world.put("a");
        world.freeze("a");
        world.simulation.scheduler.run_some(steps);
        let scheduler = world.simulation.scheduler.clone();
        world.engine.background.between.mark_and_drop.expect(1, move || scheduler.run_until_idle());
        world.store.drop_table("a").unwrap();
        world.simulation.scheduler.run_until_idle();
        let memtables = world.store.metrics().memtables;
        assert_eq!((memtables.bytes, memtables.frozen), (0, 0), "after {steps} steps");
        assert_eq!(world.engine.background.oldest_segment(), None, "after {steps} steps");
    }
}

#[test]
fn a_log_segment_stays_for_a_commit_that_came_while_others_let_go_of_it() {
    // Otherwise a commit that was synced is gone after a power cut, because another table was flushed at the same moment.
    let world = World::new(0x5e6);
    world.put("a");
    world.freeze("a");
    let (store, engine) = (world.store.clone(), world.engine.clone());
    world.engine.background.between.need_and_take.expect(1, move || {
        store.table("b").unwrap().put_with("k", "v", Durability::Sync).unwrap();
        next_segment(&engine);
    });
    world.simulation.scheduler.run_until_idle();
    assert_eq!(world.store.metrics().memtables.frozen, 0, "it was flushed");
    assert_eq!(world.value_after_a_power_cut("b").as_deref(), Some(&b"v"[..]));
}

/// Runs no task, and tells when somebody waits.
#[derive(Debug)]
struct Waiting {
    threads: Arc<dyn Scheduler>,
    waits: AtomicBool,
}

impl Scheduler for Waiting {
    fn spawn(&self, _name: &'static str, _task: Box<dyn Task>) -> io::Result<Box<dyn Join>> {
        Ok(Box::new(Over))
    }

    fn wait_until(
        &self,
        signal: &Signal,
        clock: &dyn Clock,
        deadline: Option<Tick>,
        ready: &mut dyn FnMut() -> bool,
    ) -> bool {
        if !ready() {
            self.waits.store(true, Ordering::SeqCst);
        }
        self.threads.wait_until(signal, clock, deadline, ready)
    }
}

#[derive(Debug)]
struct Over;

impl Join for Over {
    fn join(&self) -> Result<(), TaskPanicked> {
        Ok(())
    }
}

#[test]
fn quiesce_waits_for_whoever_is_about_to_begin_a_log_segment() {
    // Two machines that go on from one snapshot of memory would otherwise write different commits to that segment, under the same
    // key and nonces.
    for name in ["strongroom-keeper", "strongroom-rotate"] {
        let simulation = Simulation::new(0x9_1e7);
        let scheduler = Arc::new(Waiting { threads: Environment::os().scheduler, waits: AtomicBool::new(false) });
        let environment = Environment { scheduler: scheduler.clone(), ..simulation.environment() };
        let kms = LocalKms::in_memory(simulation.environment()).unwrap();
        let options = crate::StoreOptions { log_segment_bytes: 8 << 10, ..crate::StoreOptions::default() };
        let builder = Store::builder("/store").key_provider(kms).environment(environment).options(options);
        let store = builder.create().unwrap();
        let table = store.create_table("t", TableOptions::new()).unwrap();
        table.put("k", vec![7; 6 << 10]).unwrap();
        store.rotate_table_key("t").unwrap();

        let engine = store.handle.engine().clone();
        let quiet: Arc<Mutex<Option<std::thread::JoinHandle<()>>>> = Arc::default();
        let (quieting, waiting) = (quiet.clone(), scheduler.clone());
        engine.background.between.want_and_prepare.expect(1, move || {
            let quieter = std::thread::spawn(move || store.quiesce().unwrap());
            while !quieter.is_finished() && !waiting.waits.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            *quieting.lock() = Some(quieter);
        });
        let (_, mut task) = engine.background_tasks().into_iter().find(|(other, _)| *other == name).unwrap();
        task.step();
        let quieter = quiet.lock().take();
        quieter.expect("it prepared a segment").join().unwrap();
        assert_eq!(engine.log.spare_end(), None, "{name}");
        assert!(!engine.writer.lock().has_segment(), "{name}");
    }
}

#[test]
fn a_container_that_cannot_be_carried_yet_keeps_its_turn() {
    // It would stay, mostly dead, until more of it is dead: when one small table lives in it, for ever.
    let world = Environment::simulated(0xca8);
    let kms = LocalKms::in_memory(world.clone()).unwrap();
    let store = Store::builder("/store").key_provider(kms).environment(world).create().unwrap();
    let names: Vec<String> = (0..8).map(|number| format!("t{number}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), TableOptions::new())).collect();
    store.create_tables(&wanted).unwrap().iter().for_each(|table| table.put("k", "v").unwrap());
    store.flush().unwrap();
    names[..6].iter().for_each(|name| store.drop_table(name).unwrap());
    let engine = store.handle.engine();
    let flusher = Flusher::new(engine.clone());
    let waits = || !flusher.carry_one() && engine.readers.has_sparse();

    engine.background.paused.store(true, Ordering::SeqCst);
    assert!(waits(), "while the store is quiet");
    engine.background.paused.store(false, Ordering::SeqCst);
    let living = names[6..].iter().map(|name| engine.catalog.named(name).unwrap());
    let loads: Vec<_> = living.map(|table| Loading::begin(engine, table).unwrap()).collect();
    assert!(waits(), "while all that lives in it is being loaded");
    drop(loads);
    assert!(flusher.carry_one() && !engine.readers.has_sparse());
}

#[test]
fn a_scan_that_goes_on_while_the_store_is_closed_does_not_keep_the_store_in_memory() {
    // A failure means that a program which opens and closes stores loses the memory of each, keys of files and bounds included.
    let world = Environment::simulated(0x5ca9);
    let kms = LocalKms::in_memory(world.clone()).unwrap();
    let store = Store::builder("/store").key_provider(kms).environment(world).create().unwrap();
    let table = store.create_table("t", TableOptions::new().compression(Compression::None)).unwrap();
    (0..2000_u32).for_each(|key| table.put(key.to_be_bytes(), [7; 500]).unwrap());
    store.flush().unwrap();
    let range = table.iter();
    let engine = Arc::downgrade(store.handle.engine());
    // When a task has seen the end and the permits do not know of it yet.
    let scan = move || assert_eq!(range.map(Result::unwrap).count(), 2000);
    store.handle.engine().background.between.look_and_work.expect(1, scan);
    store.close().unwrap();
    assert!(store.handle.engine().background.between.look_and_work.0.lock().is_none(), "the scan has come to pass");
    drop((table, store));
    assert_eq!(engine.strong_count(), 0);
}
