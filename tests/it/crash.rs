//! Whatever moment the power or the process goes at, what was acknowledged is there again, and nothing else.
//!
//! Each workload runs once, in simulation, on a disk that remembers every event. Then the disk is rebuilt as a crash
//! behind *each* event could have left it, under each kind of loss, and the store is opened from it:
//!
//! * it opens, without an error, whatever was lost;
//! * it holds what a prefix of the commits left, over all tables at once: no half batch, no deleted key that is back, nothing
//!   lost that was acknowledged as durable (or acknowledged at all, if only the process ended);
//! * a dropped table stays dropped;
//! * a table whose key was refused, then or for the whole time, has everything once the key is there;
//! * it takes new commits, and a second opening finds the same;
//! * no key seals twice with one nonce, over all these lives of the store.
//!
//! For a part of them, the crash comes again at every event of the recovery. `STRONGROOM_CRASH_SEEDS` multiplies the workloads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom::io::mem::{Loss, MemVfs};
use strongroom::keys::{KeyOperation, KeyPolicy, PolicyStatement, Principal};
use strongroom::options::Durability::{self, Buffered, Sync};
use strongroom::{KeyChange, MasterKey, Store};

use crate::history::{Expected, Recorder, Write};
use crate::world::{Contents, Dice, World, contents, setting, tiny_table};

/// What is done to a store before the crash.
type Workload = fn(&mut Recorder, &mut Dice);

const WORKLOADS: [(&str, Workload); 12] = [
    ("single writes", single_writes),
    ("batches over three tables", batches),
    ("flush and compaction behind the writes", churn),
    ("tables come and go", tables_come_and_go),
    ("closed and reopened in between", reopened),
    ("large values", large_values),
    ("idle tables are put away", idle),
    ("the process is killed in between", killed),
    ("tables go to other master keys", rewrapped),
    ("table keys rotate", rotated),
    ("many log segments without a sync", unsynced),
    ("many small tables share files", shared),
];

/// The same, where a table's key is refused for a while.
const REFUSALS: [(&str, Workload); 3] = [
    ("a key is refused under load and comes back", refused),
    ("what a refused key leaves in the log is parked", parked),
    ("a table with parked sections is dropped, the store killed and reopened", parked_and_dropped),
];

fn workload(number: usize) -> (&'static str, Workload) {
    WORKLOADS.iter().chain(&REFUSALS).copied().nth(number).unwrap()
}

fn durability(dice: &mut Dice, sync_percent: usize) -> Durability {
    if dice.percent(sync_percent) { Sync } else { Buffered }
}

/// A key of a small set, so that most writes overwrite or delete something.
fn key(dice: &mut Dice) -> Vec<u8> {
    format!("key {:02}", dice.below(24)).into_bytes()
}

fn single_write(recorder: &mut Recorder, dice: &mut Dice, table: &str, len: usize, sync_percent: usize) {
    let (key, durability) = (key(dice), durability(dice, sync_percent));
    if dice.percent(25) {
        recorder.delete(table, key, durability);
    } else {
        recorder.put(table, key, dice.bytes(len), durability);
    }
}

fn single_writes(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["t"], &tiny_table(0));
    for _ in 0..110 {
        let len = dice.below(60);
        single_write(recorder, dice, "t", len, 20);
        recorder.run(dice.below(3));
        if dice.percent(3) {
            recorder.sync();
        }
    }
}

fn batches(recorder: &mut Recorder, dice: &mut Dice) {
    let names = ["a", "b", "c"];
    recorder.create_tables(&names, &tiny_table(1));
    for _ in 0..60 {
        let writes = Vec::from_iter((0..1 + dice.below(8)).map(|_| {
            let value = (!dice.percent(25)).then(|| dice.bytes(30));
            (names[dice.below(3)], key(dice), value)
        }));
        let writes: Vec<Write<'_>> = writes.iter().map(|(t, k, v)| (*t, k.as_slice(), v.as_deref())).collect();
        recorder.batch(&writes, durability(dice, 15));
        recorder.run(dice.below(4));
    }
}

fn churn(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["x", "y"], &tiny_table(0));
    for round in 0..70 {
        let (table, len) = (["x", "y"][dice.below(2)], 100 + dice.below(300));
        single_write(recorder, dice, table, len, 5);
        recorder.run(dice.below(6));
        if round % 24 == 23 {
            recorder.flush();
        }
        if round == 50 {
            recorder.compact();
        }
        if dice.percent(10) {
            recorder.pass(150);
        }
    }
}

fn tables_come_and_go(recorder: &mut Recorder, dice: &mut Dice) {
    let names = ["one", "two", "three"];
    recorder.create_tables(&["stays"], &tiny_table(0));
    for _ in 0..6 {
        let many = 1 + dice.below(3);
        recorder.create_tables(&names[..many], &tiny_table(dice.below(2)));
        for _ in 0..8 {
            let (own, other) = (key(dice), key(dice));
            let (first, second) = (dice.bytes(40), dice.bytes(40));
            let table = names[dice.below(many)];
            recorder.batch(&[("stays", &own, Some(&first)), (table, &other, Some(&second))], durability(dice, 10));
            recorder.run(dice.below(3));
        }
        if dice.percent(50) {
            recorder.flush();
        }
        for name in &names[..many] {
            recorder.drop_table(name);
            recorder.run(dice.below(3));
        }
    }
}

fn reopened(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["t", "u"], &tiny_table(0));
    for round in 0..5 {
        for _ in 0..12 {
            let table = ["t", "u"][dice.below(2)];
            single_write(recorder, dice, table, 80, 20);
            recorder.run(dice.below(2));
        }
        if round % 2 == 0 {
            recorder.flush();
        }
        recorder.reopen();
    }
    single_write(recorder, dice, "t", 20, 0);
}

fn large_values(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["t", "u"], &tiny_table(0));
    for _ in 0..16 {
        let len = [10, 3_000, 9_000, 70_000][dice.below(4)];
        single_write(recorder, dice, "t", len, 20);
        single_write(recorder, dice, "u", 20, 20);
        recorder.run(dice.below(6));
    }
}

fn idle(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["t", "u", "v"], &tiny_table(1));
    for _ in 0..8 {
        for _ in 0..5 {
            let table = ["t", "u", "v"][dice.below(3)];
            single_write(recorder, dice, table, 60, 10);
        }
        // Longer than any permit lasts without use.
        for _ in 0..3 {
            recorder.pass(200_000);
        }
    }
}

fn shared(recorder: &mut Recorder, dice: &mut Dice) {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    recorder.create_tables(&names, &tiny_table(1));
    for round in 0..5 {
        let in_use = if round < 3 { 8 } else { 4 };
        for _ in 0..14 {
            let (len, table) = (dice.below(50), names[dice.below(in_use)]);
            single_write(recorder, dice, table, len, 10);
        }
        recorder.flush();
        // What is left of the first containers is carried over.
        if round == 2 {
            names[5..].iter().for_each(|name| recorder.drop_table(name));
        }
        recorder.pass(200);
        recorder.pass(200);
    }
}

fn killed(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["t", "u"], &tiny_table(0));
    for _ in 0..6 {
        for _ in 0..10 {
            let table = ["t", "u"][dice.below(2)];
            single_write(recorder, dice, table, 120, 5);
            recorder.run(dice.below(3));
        }
        recorder.kill();
    }
    single_write(recorder, dice, "t", 20, 0);
}

fn rewrapped(recorder: &mut Recorder, dice: &mut Dice) {
    let names = ["t", "u"];
    recorder.create_tables(&names, &tiny_table(1));
    for _ in 0..8 {
        for _ in 0..6 {
            let table = names[dice.below(2)];
            single_write(recorder, dice, table, 60, 20);
            recorder.run(dice.below(3));
        }
        let master = match dice.below(3) {
            0 => MasterKey::owned(),
            1 => MasterKey::managed(),
            _ => MasterKey::customer(CUSTOMER_KEY),
        };
        let change = KeyChange::new(master);
        let change = if dice.percent(30) { change.rewrap_only() } else { change };
        recorder.update_table(names[dice.below(2)], change);
        recorder.run(dice.below(6));
    }
}

fn rotated(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["t", "u"], &tiny_table(0));
    for round in 0..4 {
        for _ in 0..14 {
            let (table, len) = (["t", "u"][dice.below(2)], 60 + dice.below(300));
            single_write(recorder, dice, table, len, 10);
            recorder.run(dice.below(3));
        }
        recorder.rotate("t");
        for _ in 0..6 {
            single_write(recorder, dice, "t", 100, 10);
            recorder.run(dice.below(8));
            recorder.pass(120);
        }
        if round % 2 == 1 {
            recorder.wait_for_rotation("t");
        }
    }
}

fn unsynced(recorder: &mut Recorder, dice: &mut Dice) {
    recorder.create_tables(&["a", "b"], &tiny_table(0));
    for number in 0..100 {
        let table = ["a", "b"][dice.below(2)];
        single_write(recorder, dice, table, 280, 0);
        // The keeper prepares the next segment before this one is full.
        if number % 8 == 0 {
            recorder.pass(150);
        }
    }
}

/// Writes to a table with a key of its own, and batches over it and another one.
fn both(recorder: &mut Recorder, dice: &mut Dice, count: usize) {
    for _ in 0..count {
        if dice.percent(40) {
            let (one, two, value) = (key(dice), key(dice), dice.bytes(40));
            let durability = durability(dice, 10);
            recorder.batch(&[("tenant", &one, Some(&value)), ("other", &two, Some(&value))], durability);
        } else {
            let len = dice.below(120);
            single_write(recorder, dice, "tenant", len, 5);
        }
        recorder.run(dice.below(3));
    }
}

/// The tenant's key is disabled, and noticed: its permit ends.
fn refuse(recorder: &mut Recorder) {
    recorder.world.kms.disable("alias/tenant").unwrap();
    recorder.pass(301_000);
    recorder.refused("tenant");
    recorder.pass(300);
}

/// It is enabled again, and so much later nobody shares the refusal any more.
fn enable(recorder: &mut Recorder) {
    recorder.world.kms.enable("alias/tenant").unwrap();
    recorder.pass(1_000);
}

fn tenant_and_other(recorder: &mut Recorder) {
    let kms = &recorder.world.kms;
    kms.create_key(Some("alias/tenant"), "a tenant's").unwrap();
    // For those who look at the store as it was before the last drop under this key, after which the engine gives its grant back.
    let statements = [
        PolicyStatement::allow([Principal::Owner], KeyOperation::ALL),
        PolicyStatement::allow([Principal::Service], [KeyOperation::Decrypt]),
    ];
    kms.put_policy("alias/tenant", KeyPolicy::new(statements)).unwrap();
    recorder.create_tables(&["tenant"], &tiny_table(1).master_key(MasterKey::customer("alias/tenant")));
    recorder.create_tables(&["other"], &tiny_table(0));
}

fn refused(recorder: &mut Recorder, dice: &mut Dice) {
    tenant_and_other(recorder);
    for round in 0..2 {
        both(recorder, dice, 14);
        if round == 0 {
            // Part of it is in sorted tables.
            recorder.flush();
            both(recorder, dice, 6);
        }
        refuse(recorder);
        for _ in 0..6 {
            single_write(recorder, dice, "other", 60, 20);
            recorder.run(dice.below(3));
        }
        recorder.refused("tenant");
        enable(recorder);
        both(recorder, dice, 4);
    }
    recorder.flush();
}

/// Commits to the other table until the log is over its limit, while background work goes on.
fn crowd(recorder: &mut Recorder, dice: &mut Dice, count: usize) {
    for _ in 0..count {
        single_write(recorder, dice, "other", 700, 10);
        recorder.pass(150);
    }
}

fn parked(recorder: &mut Recorder, dice: &mut Dice) {
    tenant_and_other(recorder);
    // Over several segments.
    for _ in 0..3 {
        both(recorder, dice, 8);
        crowd(recorder, dice, 3);
    }
    both(recorder, dice, 3);
    refuse(recorder);
    crowd(recorder, dice, 26);
    assert!(recorder.parked_files() > 0, "something was parked");
    enable(recorder);
    both(recorder, dice, 6);
    crowd(recorder, dice, 4);
    recorder.flush();
    assert_eq!(recorder.parked_files(), 0, "nothing is parked any more");
}

fn parked_and_dropped(recorder: &mut Recorder, dice: &mut Dice) {
    tenant_and_other(recorder);
    both(recorder, dice, 10);
    refuse(recorder);
    recorder.kill_unread();
    crowd(recorder, dice, 24);
    assert!(recorder.parked_files() > 0, "something was parked");
    recorder.reopen();
    crowd(recorder, dice, 3);
    enable(recorder);
    both(recorder, dice, 5);
    refuse(recorder);
    crowd(recorder, dice, 24);
    recorder.drop_table("tenant");
    assert_eq!(recorder.parked_files(), 0, "what was parked of a dropped table is gone");
    crowd(recorder, dice, 3);
    // For those who look at it as it was before the drop.
    recorder.world.kms.enable("alias/tenant").unwrap();
}

/// A master key that every world's keyring has.
const CUSTOMER_KEY: &str = "alias/customer";

/// Settings of a workload: those of all, but in the last of the first ones nothing is flushed, because a flush would sync the log.
fn world(workload: usize, seed: u64) -> World {
    let mut world = World::new(seed);
    world.kms.create_key(Some(CUSTOMER_KEY), "").unwrap();
    if workload >= WORKLOADS.len() {
        world.options.log_segment_bytes = 4 << 10;
        world.options.log_bytes_max = 12 << 10;
    }
    if workload == WORKLOADS.len() - 1 {
        world.options.memtable_bytes = 1 << 20;
        world.options.write_budget_bytes = 1 << 20;
        world.options.log_bytes_max = 1 << 20;
    }
    world
}

/// How much was tried.
#[derive(Default)]
struct Tally {
    recoveries: AtomicUsize,
    second_crashes: AtomicUsize,
    seals: AtomicUsize,
}

#[test]
fn no_crash_loses_what_was_acknowledged_or_leaves_half_of_it() {
    // A failure means that a power cut, or the end of the process, costs somebody data that the store had promised to keep.
    crash_all(0..WORKLOADS.len(), (20_000, 2_000));
}

#[test]
fn no_crash_loses_what_a_refused_key_has_put_out_of_reach() {
    // A failure means that whoever disables a key for an hour loses data if the power goes in that hour.
    crash_all(WORKLOADS.len()..WORKLOADS.len() + REFUSALS.len(), (20_000, 1_500));
}

fn crash_all(workloads: Range<usize>, (recoveries_min, second_crashes_min): (usize, usize)) {
    let seeds = setting("STRONGROOM_CRASH_SEEDS", 2);
    let jobs: Vec<(usize, u64)> =
        (0..seeds as u64).flat_map(|seed| workloads.clone().map(move |workload| (workload, seed))).collect();
    let (next, tally) = (AtomicUsize::new(0), Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((workload, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    crash_everywhere(*workload, *seed, &tally);
                }
            });
        }
    });
    let (recoveries, second_crashes) = (tally.recoveries.into_inner(), tally.second_crashes.into_inner());
    println!("{recoveries} recoveries, {second_crashes} of recoveries, {} seals", tally.seals.into_inner());
    assert!(recoveries >= recoveries_min, "only {recoveries} recoveries: the workloads have become too small");
    assert!(second_crashes >= second_crashes_min, "only {second_crashes} crashes of recoveries");
}

fn crash_everywhere(workload: usize, seed: u64, tally: &Tally) {
    let (name, work) = self::workload(workload);
    #[cfg(debug_assertions)]
    strongroom::crypto_audit::start();
    let base = (seed << 16 | workload as u64) << 32;
    let mut recorder = Recorder::new(world(workload, base));
    let created = recorder.events();
    work(&mut recorder, &mut Dice::new(base));
    recorder.check_now();
    let mut dice = Dice::new(!base);
    let mut lives = base;
    for event in created..=recorder.events() {
        for loss in Loss::ALL {
            if loss == Loss::CutShort && event == created {
                continue;
            }
            let crash = Crash { name, seed, event, loss };
            let expected = recorder.history.expected(event, loss);
            let disk = recorder.world.sim.vfs.crash_at(event, loss, dice.roll());
            lives += 1;
            let life = recover(&recorder.world, disk, lives, &expected, &crash);
            tally.recoveries.fetch_add(1, Ordering::Relaxed);
            let second = match dice.below(5) {
                0 => None,
                _ => Some(recorder.world.over(life.power_cut(), lives | 1 << 31)),
            };
            if let Some(world) = second {
                let again = world.open().unwrap_or_else(|error| panic!("{crash}: second opening: {error}"));
                assert_eq!(contents(&again).unwrap(), life.after, "{crash}: second opening");
                tally.recoveries.fetch_add(1, Ordering::Relaxed);
            } else {
                life.closed_well(&crash);
            }
            if dice.below(150) == 0 {
                crash_recovery(&recorder.world, &life, &crash, &mut lives, &mut dice, tally);
            }
        }
    }
    #[cfg(debug_assertions)]
    {
        let pairs = strongroom::crypto_audit::finish();
        tally.seals.fetch_add(pairs.len(), Ordering::Relaxed);
        let mut seen = std::collections::HashSet::with_capacity(pairs.len());
        for pair in pairs {
            assert!(seen.insert(pair), "{name}, seed {seed}: a key sealed twice with one nonce");
        }
    }
}

/// Which crash it was, to be able to repeat it.
struct Crash {
    name: &'static str,
    seed: u64,
    event: u64,
    loss: Loss,
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (seed {}), crash behind event {}, {:?}", self.name, self.seed, self.event, self.loss)
    }
}

/// A store that came back from a crash, and was written to.
struct Life {
    world: World,
    store: Store,
    /// The disk that the crash left.
    disk: MemVfs,
    /// What was found, and what is there since a marker was put into each table.
    found: Contents,
    after: Contents,
}

impl Life {
    /// The disk, without what was not synced since.
    fn power_cut(&self) -> MemVfs {
        let disk = &self.world.sim.vfs;
        disk.crash_at(disk.events(), Loss::LoseUnsynced, 0)
    }

    fn closed_well(&self, crash: &Crash) {
        self.store.close().unwrap_or_else(|error| panic!("{crash}: close: {error}"));
    }
}

const MARKER: &[u8] = b"\xffmarker";

fn recover(before: &World, disk: MemVfs, life: u64, expected: &Expected<'_>, crash: &Crash) -> Life {
    let world = before.over(disk.copy(), life);
    let store = world.open().unwrap_or_else(|error| panic!("{crash}: open: {error}"));
    let found = contents(&store).unwrap_or_else(|error| panic!("{crash}: read: {error}"));
    expected.check(&found).unwrap_or_else(|problem| panic!("{crash}: {problem}"));
    let report = store.recovery();
    if crash.loss == Loss::KeepAll {
        let discarded = (report.discarded_log_bytes, report.discarded_manifest_bytes);
        assert_eq!(discarded, (0, 0), "{crash}: nothing was torn, but something was discarded");
    }
    let after = mark(&store, &found).unwrap_or_else(|error| panic!("{crash}: write after recovery: {error}"));
    Life { world, store, disk, found, after }
}

/// Put a marker into every table, all at once and durably.
fn mark(store: &Store, found: &Contents) -> strongroom::Result<Contents> {
    let mut after = found.clone();
    let mut batch = store.batch();
    for (name, (_, row)) in &mut after {
        batch.put(&store.table(name)?, MARKER, name);
        row.insert(MARKER.to_vec(), name.clone().into_bytes());
    }
    batch.commit_with(Sync)?;
    Ok(after)
}

/// Crash at every event between the opening and the marker.
fn crash_recovery(before: &World, life: &Life, crash: &Crash, lives: &mut u64, dice: &mut Dice, tally: &Tally) {
    // The same recovery again, now watched.
    *lives += 1;
    let world = before.over(life.disk.copy(), *lives);
    let store = world.open().unwrap();
    let opened = world.sim.vfs.events();
    let after = mark(&store, &life.found).unwrap();
    let marked = world.sim.vfs.events();
    for event in 0..=marked {
        let loss = Loss::ALL[dice.below(Loss::ALL.len())];
        *lives += 1;
        let second = before.over(world.sim.vfs.crash_at(event, loss, dice.roll()), *lives);
        let place = || format!("{crash}, then behind event {event} of its recovery, {loss:?}");
        let store = second.open().unwrap_or_else(|error| panic!("{}: open: {error}", place()));
        let found = contents(&store).unwrap_or_else(|error| panic!("{}: read: {error}", place()));
        let acked = event == marked && loss != Loss::CutShort;
        let right = found == after && event >= opened || found == life.found && !acked;
        assert!(right, "{}: {found:?}", place());
        tally.second_crashes.fetch_add(1, Ordering::Relaxed);
    }
}
