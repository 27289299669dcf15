//! The promises of `io/sim.rs`.

use std::sync::atomic::AtomicBool;

use super::*;

/// Writes its name into a shared log at every step, and waits after each `pause` steps.
struct Walker {
    name: char,
    steps: usize,
    period: Option<Duration>,
    log: Arc<Mutex<String>>,
    clock: Arc<SimClock>,
    signal: Arc<Signal>,
}

impl Task for Walker {
    fn step(&mut self) -> Step {
        self.log.lock().push(self.name);
        self.steps -= 1;
        match self.period {
            _ if self.steps == 0 => Step::Done,
            None => Step::Again,
            Some(period) => Step::Wait {
                signal: self.signal.clone(),
                seen: self.signal.count(),
                clock: self.clock.clone(),
                deadline: Some(self.clock.tick().after(period)),
            },
        }
    }
}

struct World {
    simulation: Simulation,
    log: Arc<Mutex<String>>,
    signal: Arc<Signal>,
}

impl World {
    fn new(seed: u64) -> World {
        World { simulation: Simulation::new(seed), log: Arc::default(), signal: Arc::default() }
    }

    fn walk(&self, name: char, steps: usize, period: Option<Duration>) -> Box<dyn Join> {
        let (log, clock, signal) = (self.log.clone(), self.simulation.clock.clone(), self.signal.clone());
        let walker = Walker { name, steps, period, log, clock, signal };
        self.simulation.scheduler.spawn("walker", Box::new(walker)).unwrap()
    }

    fn wait(&self, deadline: Option<Tick>, ready: &mut dyn FnMut() -> bool) -> bool {
        self.simulation.scheduler.wait_until(&self.signal, &*self.simulation.clock, deadline, ready)
    }
}

/// Runs its closure as its only step.
struct Once<F>(Option<F>);

impl<F: FnOnce() + Send> Task for Once<F> {
    fn step(&mut self) -> Step {
        if let Some(run) = self.0.take() {
            run();
        }
        Step::Done
    }
}

/// A failing seed that does not fail again cannot be debugged.
#[test]
fn the_same_seed_gives_the_same_order_and_another_seed_another() {
    let run = |seed| {
        let world = World::new(seed);
        let joins: Vec<_> = "abc".chars().map(|name| world.walk(name, 20, None)).collect();
        joins.iter().for_each(|join| join.join().unwrap());
        let log = world.log.lock().clone();
        assert_eq!(log.len(), 60);
        log
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let bytes = |seed| {
        let entropy = SeededEntropy::new(seed);
        let mut bytes = [[0; 40]; 2];
        bytes.iter_mut().for_each(|bytes| entropy.fill(bytes).unwrap());
        bytes
    };
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
    assert_ne!(bytes(1)[0], bytes(1)[1]);
    assert!(!SeededEntropy::new(1).is_real());
}

#[test]
fn time_passes_only_when_nothing_can_run() {
    let world = World::new(3);
    let start = world.simulation.clock.tick();
    world.walk('a', 5, None);
    world.walk('b', 3, Some(Duration::from_secs(10)));
    world.simulation.scheduler.run_until_idle();
    assert_eq!((world.simulation.clock.tick(), world.log.lock().matches('b').count()), (start, 1));
    let deadline = start.after(Duration::from_secs(15));
    assert!(!world.wait(Some(deadline), &mut || false));
    assert_eq!(world.simulation.clock.tick(), deadline);
    assert_eq!(world.log.lock().matches('b').count(), 2, "the task's deadline came first");
}

#[test]
fn a_raised_signal_wakes_a_task_before_its_deadline() {
    let world = World::new(4);
    world.walk('a', 9, Some(Duration::from_secs(10)));
    assert_eq!(world.simulation.scheduler.run_some(5), 1, "then it waits");
    world.signal.raise();
    assert_eq!(world.simulation.scheduler.run_some(5), 1);
    assert_eq!(world.simulation.scheduler.tasks(), ["walker"]);
}

#[test]
fn a_task_may_wait_within_its_step_for_what_others_do() {
    let world = World::new(5);
    let (flag, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let scheduler = world.simulation.scheduler.clone();
    let (clock, waits_for, sees) = (world.simulation.clock.clone(), flag.clone(), seen.clone());
    let weak = Arc::downgrade(&scheduler);
    let waiter = Once(Some(move || {
        let (scheduler, ready) = (weak.upgrade().unwrap(), &mut || waits_for.load(Ordering::SeqCst));
        sees.store(scheduler.wait_until(&Signal::new(), &*clock, None, ready), Ordering::SeqCst);
    }));
    let waiter = scheduler.spawn("waiter", Box::new(waiter)).unwrap();
    scheduler.spawn("doer", Box::new(Once(Some(move || flag.store(true, Ordering::SeqCst))))).unwrap();
    waiter.join().unwrap();
    assert!(seen.load(Ordering::SeqCst));
}

fn panic_message(run: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).expect_err("a panic");
    panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap()
}

/// A simulation that hangs tells nobody what it hangs on.
#[test]
fn a_deadlock_is_reported_with_who_waits() {
    let world = World::new(6);
    let message = panic_message(|| assert!(!world.wait(None, &mut || false)));
    assert!(message.contains("deadlock") && message.contains("call: waits"), "{message}");

    world.walk('p', usize::MAX, Some(Duration::from_secs(1)));
    let message = panic_message(|| assert!(!world.wait(None, &mut || false)));
    assert!(message.contains("only periodic tasks") && message.contains("task walker: waits until"), "{message}");
}

#[test]
fn a_panic_of_a_task_reaches_the_test_and_who_joins_later() {
    let world = World::new(7);
    let scheduler = &world.simulation.scheduler;
    let join = scheduler.spawn("bad", Box::new(Once(Some(|| panic!("as told"))))).unwrap();
    assert_eq!(panic_message(|| scheduler.run_until_idle()), "as told");
    assert_eq!(join.join().unwrap_err().name, "bad");
    assert_eq!(scheduler.run_some(1), 0);
}

/// The end of a process drops what its threads held; a crashed store must not go on writing.
#[test]
fn abandoned_tasks_are_dropped_and_joined_at_once() {
    let world = World::new(8);
    let held = Arc::new(());
    let owned = held.clone();
    let task = Once(Some(move || drop(owned)));
    let join = world.simulation.scheduler.spawn("never", Box::new(task)).unwrap();
    assert_eq!(Arc::strong_count(&held), 2);
    world.simulation.scheduler.abandon();
    assert_eq!(Arc::strong_count(&held), 1);
    join.join().unwrap();

    let owned = held.clone();
    world.simulation.scheduler.spawn("never", Box::new(Once(Some(move || drop(owned))))).unwrap();
    drop(world);
    assert_eq!(Arc::strong_count(&held), 1, "dropping the scheduler drops its tasks");
}

#[test]
fn the_two_clocks_go_on_together_and_can_be_set_apart() {
    let clock = SimClock::new();
    let (tick, wall_ms) = (clock.tick(), clock.wall_ms());
    clock.advance(Duration::from_millis(1500));
    assert_eq!((clock.tick(), clock.wall_ms()), (Tick(tick.0 + 1_500_000_000), wall_ms + 1500));
    clock.advance_to(tick);
    assert_eq!(clock.tick(), Tick(tick.0 + 1_500_000_000), "boot time never goes back");
    clock.set_wall_ms(5);
    assert_eq!((clock.tick(), clock.wall_ms()), (Tick(tick.0 + 1_500_000_000), 5));
}
