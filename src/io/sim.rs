//! A world that follows from one seed: clock, randomness and scheduling, all on one thread.
//!
//! ```text
//! test ── calls the store ── store waits ── SimScheduler::wait_until
//!                                              │  ready?            return
//!                                              │  a task can run?   step one, chosen by the seed
//!                                              │  none can?         let time pass to the nearest deadline
//!                                              └  no deadline?      panic: deadlock, with all who wait
//! ```
//!
//! Nothing happens but inside a call: background work runs while somebody waits or joins, and when a test asks for it
//! ([`SimScheduler::run_some`], [`SimScheduler::run_until_idle`]). So the same seed and the same calls give the same run, to
//! the byte.
//!
//! A task may itself wait within a step; the others go on beneath it. What such a nested wait waits for
//! must not need the one that waits below it on the same stack: threads could do that, one stack cannot, and it is reported as
//! a deadlock. Time never passes while anything can run, so a wait without work to do is as long as its deadline says.
//!
//! A panic of a task goes up through whoever waits, so that a test fails where it happened.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::mem::MemVfs;
use super::{Clock, Entropy, Environment, Join, Scheduler, Signal, Step, Task, TaskPanicked, Tick};

/// Where a simulated clock starts: one second after boot.
const TICK_START: Tick = Tick(1_000_000_000);
/// What a simulated calendar shows then: 2026-01-01 00:00 UTC.
const WALL_START_MS: u64 = 1_767_225_600_000;
/// Steps within one wait after which it is called a livelock.
const STEPS_MAX: u64 = 10_000_000;
/// Deadlines that may pass within one wait without a deadline of its own, before it is called a deadlock: a periodic task
/// would otherwise keep the clock going for ever.
const LEAPS_MAX: u64 = 100_000;

/// The parts of a simulated world, for tests that also move its clock, run its tasks and cut its power.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The disk.
    pub vfs: Arc<MemVfs>,
    /// The clocks.
    pub clock: Arc<SimClock>,
    /// The randomness.
    pub entropy: Arc<SeededEntropy>,
    /// The one thread.
    pub scheduler: Arc<SimScheduler>,
}

impl Simulation {
    /// A world with an empty disk.
    pub fn new(seed: u64) -> Simulation {
        Simulation::over(MemVfs::new(), seed)
    }

    /// A world with this disk, such as one that a power cut left. A store that is opened again needs
    /// another seed than before, or it would draw the salts of its earlier life.
    pub fn over(vfs: MemVfs, seed: u64) -> Simulation {
        let clock = Arc::new(SimClock::new());
        Simulation {
            vfs: Arc::new(vfs),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(seed)),
            scheduler: Arc::new(SimScheduler::new(clock, seed)),
        }
    }

    /// What a store is opened with.
    pub fn environment(&self) -> Environment {
        Environment {
            vfs: self.vfs.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            scheduler: self.scheduler.clone(),
        }
    }
}

/// Clocks that stand still until somebody moves them.
///
/// Boot time and wall time go on together with [`advance`](SimClock::advance), and can be set apart. A
/// waiter on a real thread does not notice until its signal is raised.
#[derive(Debug)]
pub struct SimClock {
    tick: AtomicU64,
    wall_ns: AtomicU64,
}

impl Default for SimClock {
    fn default() -> SimClock {
        SimClock::new()
    }
}

impl SimClock {
    /// One second after boot, at the beginning of 2026.
    pub fn new() -> SimClock {
        SimClock { tick: AtomicU64::new(TICK_START.0), wall_ns: AtomicU64::new(WALL_START_MS * 1_000_000) }
    }

    /// Let time pass, on both clocks.
    pub fn advance(&self, duration: Duration) {
        self.advance_to(self.tick().after(duration));
    }

    /// Let time pass until boot time is `tick`, on both clocks. Does nothing if that is past.
    pub fn advance_to(&self, tick: Tick) {
        let passed = tick.0.saturating_sub(self.tick.fetch_max(tick.0, Ordering::SeqCst));
        self.wall_ns.fetch_add(passed, Ordering::SeqCst);
    }

    /// Set the calendar, forward or back; boot time does not move.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.wall_ns.store(wall_ms.saturating_mul(1_000_000), Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn tick(&self) -> Tick {
        Tick(self.tick.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ns.load(Ordering::SeqCst) / 1_000_000
    }
}

/// "Random" bytes that follow from a seed: SHA-256 of the seed and a counter. Never for keys that protect anything.
#[derive(Debug)]
pub struct SeededEntropy {
    seed: u64,
    blocks: AtomicU64,
}

impl SeededEntropy {
    /// The bytes that follow from `seed`.
    pub fn new(seed: u64) -> SeededEntropy {
        SeededEntropy { seed, blocks: AtomicU64::new(0) }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        for chunk in bytes.chunks_mut(32) {
            let block = self.blocks.fetch_add(1, Ordering::SeqCst);
            let digest = Sha256::new()
                .chain_update(b"strongroom seeded entropy")
                .chain_update(self.seed.to_le_bytes())
                .chain_update(block.to_le_bytes())
                .finalize();
            chunk.copy_from_slice(&digest[..chunk.len()]);
        }
        Ok(())
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// SplitMix64: decides in which order a simulation goes and what a power cut keeps.
#[derive(Debug)]
pub(super) struct Dice {
    state: u64,
    /// Three random bits for each of the next so many decisions.
    bits: (u64, u32),
}

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice { state: seed, bits: (0, 0) }
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    /// True in about `eighths` of eight cases.
    pub(super) fn eighths(&mut self, eighths: u64) -> bool {
        if self.bits.1 == 0 {
            // 21 * 3 = 63 of the 64 bits of a roll.
            self.bits = (self.roll(), 21);
        }
        let decision = self.bits.0 & 7;
        self.bits = (self.bits.0 >> 3, self.bits.1 - 1);
        decision < eighths
    }
}

/// All tasks on the thread that calls, in an order that follows from a seed.
///
/// Dropping it drops the tasks that are left; those that own whoever owns the scheduler keep it alive until
/// [`abandon`](SimScheduler::abandon).
#[derive(Debug)]
pub struct SimScheduler(Arc<Core>);

/// What the scheduler shares with the handles on its tasks.
struct Core {
    clock: Arc<SimClock>,
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    tasks: Vec<Entry>,
    tasks_ever: u64,
    /// Tasks that are being stepped: each of them waits for the next.
    stack: Vec<u64>,
    /// The deadlines of the calls that wait, for the report of a deadlock.
    waits: Vec<Option<Tick>>,
}

struct Entry {
    id: u64,
    name: &'static str,
    state: TaskState,
}

enum TaskState {
    /// Can be stepped at any time.
    Ready(Box<dyn Task>),
    /// Can be stepped once the signal was raised or the deadline is past.
    Waiting { task: Box<dyn Task>, signal: Arc<Signal>, seen: u64, clock: Arc<dyn Clock>, deadline: Option<Tick> },
    /// Is being stepped: by a call below us on this stack.
    Running,
    /// Ended by a panic; kept for whoever joins it.
    Panicked,
}

impl TaskState {
    fn is_runnable(&self) -> bool {
        match self {
            TaskState::Ready(_) => true,
            TaskState::Waiting { signal, seen, clock, deadline, .. } => {
                signal.count() != *seen || deadline.is_some_and(|deadline| clock.tick() >= deadline)
            }
            TaskState::Running | TaskState::Panicked => false,
        }
    }
}

impl SimScheduler {
    /// A scheduler without tasks. When nothing can run, it moves `clock`.
    pub fn new(clock: Arc<SimClock>, seed: u64) -> SimScheduler {
        // Another row of numbers than a power cut's with the same seed.
        let dice = Dice::new(seed ^ 0x5343_4845_4455_4c45);
        let state = State { dice, tasks: Vec::new(), tasks_ever: 0, stack: Vec::new(), waits: Vec::new() };
        SimScheduler(Arc::new(Core { clock, state: Mutex::new(state) }))
    }

    /// Do up to `steps` steps of background work, and say how many there were to do. Time does not pass.
    pub fn run_some(&self, steps: usize) -> usize {
        (0..steps).take_while(|_| self.0.step_one()).count()
    }

    /// Do background work until all tasks wait. Time does not pass.
    ///
    /// # Panics
    /// If there is no end to it.
    pub fn run_until_idle(&self) {
        let mut steps = 0;
        while self.0.step_one() {
            steps += 1;
            assert!(steps < STEPS_MAX, "livelock in simulation: the tasks do not come to rest\n{}", self.0.report());
        }
    }

    /// Forget all tasks, wherever they are, as the end of the process does. Whoever joins one of them returns at once.
    pub fn abandon(&self) {
        // Dropped outside the lock: a task's Drop may raise signals or reach this scheduler.
        let tasks = std::mem::take(&mut self.0.state.lock().tasks);
        drop(tasks);
    }

    /// The names of all tasks that are not done, in the order in which they were spawned.
    pub fn tasks(&self) -> Vec<&'static str> {
        self.0.state.lock().tasks.iter().map(|entry| entry.name).collect()
    }
}

impl Drop for SimScheduler {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Scheduler for SimScheduler {
    fn spawn(&self, name: &'static str, task: Box<dyn Task>) -> io::Result<Box<dyn Join>> {
        let mut state = self.0.state.lock();
        state.tasks_ever += 1;
        let id = state.tasks_ever;
        state.tasks.push(Entry { id, name, state: TaskState::Ready(task) });
        Ok(Box::new(SimJoin { core: self.0.clone(), id, name }))
    }

    fn wait_until(
        &self,
        _signal: &Signal,
        clock: &dyn Clock,
        deadline: Option<Tick>,
        ready: &mut dyn FnMut() -> bool,
    ) -> bool {
        self.0.run_until(clock, deadline, ready)
    }
}

#[derive(Debug)]
struct SimJoin {
    core: Arc<Core>,
    id: u64,
    name: &'static str,
}

impl Join for SimJoin {
    fn join(&self) -> Result<(), TaskPanicked> {
        if self.core.state.lock().stack.last() == Some(&self.id) {
            return Ok(());
        }
        let clock = self.core.clock.clone();
        self.core.run_until(&*clock, None, &mut || self.core.has_ended(self.id));
        if self.core.has_panicked(self.id) {
            let message = "in a step of the simulation, where the panic was reported".to_owned();
            return Err(TaskPanicked { name: self.name, message });
        }
        Ok(())
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report())
    }
}

impl Core {
    /// Step one task that can run; false if there is none.
    fn step_one(&self) -> bool {
        let Some((id, mut task)) = self.take_runnable() else { return false };
        let mut guard = StepGuard { core: self, id, returned: false };
        let step = task.step();
        guard.returned = true;
        drop(guard);
        let next = match step {
            Step::Again => TaskState::Ready(task),
            Step::Wait { signal, seen, clock, deadline } => TaskState::Waiting { task, signal, seen, clock, deadline },
            Step::Done => {
                // Dropped before it counts as done: who joins it may rely on what it held being free.
                drop(task);
                self.state.lock().tasks.retain(|entry| entry.id != id);
                return true;
            }
        };
        // A task that was abandoned during its own step is dropped here.
        let abandoned = self.put_back(id, next);
        drop(abandoned);
        true
    }

    /// Choose a task that can run and mark it as running.
    fn take_runnable(&self) -> Option<(u64, Box<dyn Task>)> {
        let state = &mut *self.state.lock();
        let runnable: Vec<usize> = (0..state.tasks.len()).filter(|&i| state.tasks[i].state.is_runnable()).collect();
        if runnable.is_empty() {
            return None;
        }
        let chosen = runnable[state.dice.below(runnable.len())];
        let entry = &mut state.tasks[chosen];
        match std::mem::replace(&mut entry.state, TaskState::Running) {
            TaskState::Ready(task) | TaskState::Waiting { task, .. } => {
                let id = entry.id;
                state.stack.push(id);
                Some((id, task))
            }
            TaskState::Running | TaskState::Panicked => unreachable!("such a task is not runnable"),
        }
    }

    /// Put a stepped task back, or return it if it was abandoned meanwhile.
    fn put_back(&self, id: u64, next: TaskState) -> Option<TaskState> {
        match self.state.lock().tasks.iter_mut().find(|entry| entry.id == id) {
            Some(entry) => {
                entry.state = next;
                None
            }
            None => Some(next),
        }
    }

    fn has_ended(&self, id: u64) -> bool {
        let state = self.state.lock();
        state.tasks.iter().all(|entry| entry.id != id || matches!(entry.state, TaskState::Panicked))
    }

    fn has_panicked(&self, id: u64) -> bool {
        let state = self.state.lock();
        state.tasks.iter().any(|entry| entry.id == id && matches!(entry.state, TaskState::Panicked))
    }

    /// Run tasks, and let time pass when none can run, until `ready` holds or `deadline` is past on `clock`.
    fn run_until(&self, clock: &dyn Clock, deadline: Option<Tick>, ready: &mut dyn FnMut() -> bool) -> bool {
        self.state.lock().waits.push(deadline);
        let _leaves = WaitGuard { core: self };
        let (mut steps, mut leaps) = (0, 0);
        loop {
            if ready() {
                return true;
            }
            if deadline.is_some_and(|deadline| clock.tick() >= deadline) {
                return false;
            }
            if self.step_one() {
                steps += 1;
                assert!(steps < STEPS_MAX, "livelock in simulation: what is waited for never comes\n{}", self.report());
                continue;
            }
            leaps += 1;
            assert!(
                deadline.is_some() || leaps < LEAPS_MAX,
                "deadlock in simulation: only periodic tasks still run\n{}",
                self.report()
            );
            let Some(nearest) = self.nearest_deadline(deadline) else {
                panic!("deadlock in simulation: nothing can run and nothing has a deadline\n{}", self.report());
            };
            let before = self.clock.tick();
            self.clock.advance_to(nearest);
            assert!(
                self.clock.tick() > before,
                "deadlock in simulation: a deadline lies on a clock that the simulation does not move\n{}",
                self.report()
            );
        }
    }

    /// The nearest deadline of a waiting task, or `own` if that is nearer.
    fn nearest_deadline(&self, own: Option<Tick>) -> Option<Tick> {
        let state = self.state.lock();
        let of_tasks = state.tasks.iter().filter_map(|entry| match &entry.state {
            TaskState::Waiting { deadline, .. } => *deadline,
            _ => None,
        });
        of_tasks.chain(own).min()
    }

    /// What every task and every waiting call is at, a line for each.
    fn report(&self) -> String {
        let state = self.state.lock();
        let mut report = format!("now: {:?}\n", self.clock.tick());
        for entry in &state.tasks {
            let what = match &entry.state {
                TaskState::Ready(_) => "ready".to_owned(),
                TaskState::Waiting { deadline: Some(deadline), .. } => format!("waits until {deadline:?}"),
                TaskState::Waiting { deadline: None, .. } => "waits".to_owned(),
                TaskState::Running => "in a step, below on this stack".to_owned(),
                TaskState::Panicked => "panicked".to_owned(),
            };
            report += &format!("task {}: {what}\n", entry.name);
        }
        for deadline in &state.waits {
            match deadline {
                Some(deadline) => report += &format!("call: waits until {deadline:?}\n"),
                None => report += "call: waits\n",
            }
        }
        report
    }
}

/// Takes a task off the stack, and marks it as panicked when its step did not return.
struct StepGuard<'a> {
    core: &'a Core,
    id: u64,
    returned: bool,
}

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        self.core.state.lock().stack.pop();
        if !self.returned {
            self.core.put_back(self.id, TaskState::Panicked);
        }
    }
}

/// Takes a waiting call off the list, also when it ends by a panic.
struct WaitGuard<'a> {
    core: &'a Core,
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.core.state.lock().waits.pop();
    }
}

#[cfg(test)]
mod tests;
