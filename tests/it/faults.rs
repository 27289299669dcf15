//! A disk that fails once, or from some moment on, or is full for a while, costs nobody what was acknowledged.
//!
//! A workload of 200 operations runs in simulation over a file system in which one operation fails: every write, sync,
//! creation, rename and removal in turn, once and for good. Afterwards the power is cut, or only the process ended, the disk is
//! well again, and the store is opened:
//!
//! * it opens, and holds what a prefix of the commits left, with everything in it that was acknowledged;
//! * nothing was acknowledged after a write to the log, or its sync, had failed;
//! * a store that was poisoned stays so.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom::io::Vfs;
use strongroom::io::fault::{FaultVfs, Operation, Rule};
use strongroom::io::mem::{Loss, MemVfs};
use strongroom::options::Durability::{Buffered, Sync};
use strongroom::{Error, ErrorKind, Result, Store, Table};

use crate::world::{Contents, DIR, Dice, Row, World, contents, row, setting, tiny_table};

/// Bytes of every file's header: a log segment that is longer has commits in it.
const HEADER_BYTES: u64 = 160;
const NAMES: [&str; 2] = ["a", "b"];

/// A table, a key, and the value unless the key is deleted.
type Write = (usize, Vec<u8>, Option<Vec<u8>>);

/// What one commit wrote, and how it ended.
struct Commit {
    writes: Vec<Write>,
    outcome: Result<()>,
    sync: bool,
}

/// A run of the workload.
struct Run {
    world: World,
    faulty: FaultVfs,
    store: Store,
    commits: Vec<Commit>,
    /// Commits that were tried before the last explicit sync or flush that was acknowledged.
    durable: usize,
}

impl Run {
    fn new(seed: u64) -> Run {
        let world = World::new(seed);
        let faulty = FaultVfs::new(world.sim.vfs.clone());
        let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
        store.create_tables(&NAMES.map(|name| (name, tiny_table(0)))).unwrap();
        Run { world, faulty, store, commits: Vec::new(), durable: 0 }
    }

    /// One operation of the workload, whatever comes of it.
    fn step(&mut self, step: usize, dice: &mut Dice) {
        match step % 40 {
            39 => {
                if self.store.flush().is_ok() {
                    self.durable = self.commits.len();
                }
            }
            19 => {
                if self.store.sync().is_ok() {
                    self.durable = self.commits.len();
                }
            }
            29 => drop(self.store.compact()),
            _ => self.commit(dice),
        }
        if step.is_multiple_of(8) {
            self.world.sim.clock.advance(Duration::from_millis(150));
        }
        self.world.sim.scheduler.run_some(dice.below(6));
    }

    fn commit(&mut self, dice: &mut Dice) {
        let writes: Vec<_> = (0..1 + dice.below(3))
            .map(|_| {
                let key = format!("key {:02}", dice.below(30)).into_bytes();
                (dice.below(NAMES.len()), key, (!dice.percent(20)).then(|| dice.bytes(150)))
            })
            .collect();
        let sync = dice.percent(20);
        let outcome = self.try_commit(&writes, sync);
        self.commits.push(Commit { writes, outcome, sync });
    }

    fn try_commit(&self, writes: &[Write], sync: bool) -> Result<()> {
        let tables: Vec<Table> = NAMES.iter().map(|name| self.store.table(name)).collect::<Result<_>>()?;
        let mut batch = self.store.batch();
        for (table, key, value) in writes {
            match value {
                Some(value) => batch.put(&tables[*table], key, value),
                None => batch.delete(&tables[*table], key),
            };
        }
        batch.commit_with(if sync { Sync } else { Buffered })
    }

    /// The disk after the process ended, or after a power cut, without any fault.
    fn disk(&self, loss: Loss) -> MemVfs {
        let disk = &self.world.sim.vfs;
        disk.crash_at(disk.events(), loss, 1)
    }

    /// Open the store from `disk` and check what it holds against what was acknowledged.
    fn check(&self, loss: Loss, life: u64, what: &str) {
        let world = self.world.over(self.disk(loss), life);
        let store = world.open().unwrap_or_else(|error| panic!("{what}, {loss:?}: open: {error}"));
        let found = contents(&store).unwrap_or_else(|error| panic!("{what}, {loss:?}: read: {error}"));
        let acked = |commit: &Commit| commit.outcome.is_ok() && (commit.sync || !loss.is_power_cut());
        let last_acked = self.commits.iter().rposition(acked).map_or(0, |index| index + 1);
        let at_least = if loss.is_power_cut() { last_acked.max(self.durable) } else { last_acked };
        check_prefix(&self.commits, at_least, &found).unwrap_or_else(|problem| panic!("{what}, {loss:?}: {problem}"));
        let table = store.table(NAMES[0]).unwrap();
        table.put_with(b"again", b"well", Sync).unwrap_or_else(|error| panic!("{what}, {loss:?}: write: {error}"));
        store.flush().unwrap_or_else(|error| panic!("{what}, {loss:?}: flush: {error}"));
    }
}

/// That `found` is what the first so many commits left, at least `at_least` of them. Commits that failed may count or not
/// where they would have been written: after a failed write nobody knows.
fn check_prefix(commits: &[Commit], at_least: usize, found: &Contents) -> std::result::Result<(), String> {
    let mut rows = vec![Row::new(); NAMES.len()];
    let matches =
        |rows: &[Row]| NAMES.iter().zip(rows).all(|(name, row)| found.get(*name).is_some_and(|(_, f)| f == row));
    if at_least == 0 && matches(&rows) {
        return Ok(());
    }
    for (index, commit) in commits.iter().enumerate() {
        // What was refused before it was written leaves nothing. What failed in the midst of writing poisoned the store, so
        // nothing comes behind it; it may have reached the log.
        let mut with = rows.clone();
        for (table, key, value) in &commit.writes {
            match value {
                Some(value) => with[*table].insert(key.clone(), value.clone()),
                None => with[*table].remove(key),
            };
        }
        if index + 1 >= at_least && matches(&with) {
            return Ok(());
        }
        if commit.outcome.is_ok() {
            rows = with;
        }
        if index + 1 >= at_least && matches(&rows) {
            return Ok(());
        }
    }
    Err(format!("no prefix of at least {at_least} of the commits leaves what is there"))
}

/// What the operation that failed was done to.
type Hit = Arc<Mutex<Option<(PathBuf, u64, usize)>>>;

/// One operation fails, the `nth` of its kind, once or from then on.
fn one_fault(operation: Operation, nth: u64, sticky: bool, life: u64) -> bool {
    let mut run = Run::new(life);
    let hit: Hit = Arc::default();
    let (seen, disk, faulty) = (hit.clone(), run.world.sim.vfs.clone(), run.faulty.clone());
    let note = move |_, path: &Path| {
        let len = disk.metadata(path).map_or(0, |metadata| metadata.len_bytes);
        let mut seen = seen.lock().unwrap();
        if seen.is_none() {
            *seen = Some((path.to_owned(), len, faulty.count(operation) as usize));
        }
    };
    run.faulty.inject(Rule::on(operation).nth(nth).call(note));
    let rule = if sticky { Rule::on(operation).from_nth(nth) } else { Rule::on(operation).nth(nth) };
    run.faulty.inject(rule.fail_os(5));

    let mut dice = Dice::new(7);
    let mut poisoned = false;
    for step in 0..200 {
        let before = hit.lock().unwrap().is_some();
        let commits = run.commits.len();
        run.step(step, &mut dice);
        let Some((path, len, _)) = hit.lock().unwrap().clone() else { continue };
        let what = || format!("{operation:?} {nth} of {} (sticky: {sticky}), step {step}", path.display());
        let log = path.extension().is_some_and(|extension| extension == "wal");
        for commit in &run.commits[commits..] {
            if poisoned {
                let error = commit.outcome.as_ref().expect_err(&what());
                assert_eq!(error.kind(), ErrorKind::Poisoned, "{}: {error}", what());
            }
            poisoned |= matches!(commit.outcome, Err(Error::Poisoned { .. }));
            // Once bytes of commits could not be written or synced, nobody is told that they are safe.
            if before && log && len > HEADER_BYTES && matches!(operation, Operation::Write | Operation::Sync) {
                assert!(commit.outcome.is_err(), "{}: acknowledged after the log failed", what());
            }
        }
    }
    let Some((path, ..)) = hit.lock().unwrap().clone() else { return false };
    let what = format!("{operation:?} {nth} of {} (sticky: {sticky})", path.display());
    for loss in [Loss::KeepAll, Loss::LoseUnsynced] {
        run.check(loss, life | 1 << 40 | (loss.is_power_cut() as u64) << 41, &what);
    }
    // What is in memory can be read as long as the files that it needs can.
    if !sticky {
        let found = contents(&run.store).unwrap_or_else(|error| panic!("{what}: read after the fault: {error}"));
        let acked = run.commits.iter().rposition(|commit| commit.outcome.is_ok()).map_or(0, |index| index + 1);
        check_prefix(&run.commits, acked, &found).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    }
    true
}

#[test]
fn no_failing_operation_costs_what_was_acknowledged() {
    // A failure means that a bad sector or a full quota loses data of which the store had said that it is safe.
    let stride = setting("STRONGROOM_FAULT_STRIDE", 1) as u64;
    let operations = [
        Operation::Write,
        Operation::Sync,
        Operation::Create,
        Operation::Rename,
        Operation::SyncDir,
        Operation::RemoveFile,
        Operation::CreateDir,
        Operation::Len,
        Operation::Reserve,
        Operation::Open,
    ];
    let mut tried = 0;
    for operation in operations {
        for sticky in [false, true] {
            let mut nth = 1;
            let life = |nth: u64| (operation as u64) << 32 | u64::from(sticky) << 31 | nth;
            while one_fault(operation, nth, sticky, life(nth)) {
                tried += 1;
                nth += stride;
            }
        }
    }
    println!("{tried} faults");
    assert!(tried as u64 * stride >= 600, "only {tried} faults");
}

#[test]
fn a_disk_that_was_full_loses_nothing_and_work_goes_on() {
    // A failure means that running out of space once costs data, or leaves a store that has to be restarted by hand.
    let mut resumed = 0;
    for room in (0..60_000).step_by(997) {
        let mut run = Run::new(room);
        let what = format!("room for {room} bytes");
        let mut dice = Dice::new(7);
        for step in 0..200 {
            if step == 20 {
                run.faulty.set_room(Some(room));
            }
            run.step(step, &mut dice);
        }
        run.check(Loss::KeepAll, room | 1 << 40, &what);
        run.check(Loss::LoseUnsynced, room | 1 << 41, &what);
        run.faulty.set_room(None);
        // Background work that failed is tried again after a pause of at most five seconds.
        for _ in 0..6 {
            run.world.sim.clock.advance(Duration::from_secs(1));
            run.world.sim.scheduler.run_until_idle();
        }
        run.commit(&mut dice);
        match &run.commits.last().unwrap().outcome {
            Ok(()) => {
                run.store.flush().unwrap_or_else(|error| panic!("{what}: flush with room again: {error}"));
                run.store.compact().unwrap_or_else(|error| panic!("{what}: compact with room again: {error}"));
                run.durable = run.commits.len();
                let found = contents(&run.store).unwrap();
                check_prefix(&run.commits, run.commits.len(), &found)
                    .unwrap_or_else(|problem| panic!("{what}: {problem}"));
                resumed += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Poisoned, "{what}: {error}"),
        }
        run.check(Loss::KeepAll, room | 1 << 42, &what);
        run.check(Loss::LoseUnsynced, room | 1 << 43, &what);
    }
    println!("{resumed} of 61 went on without being opened again");
    assert!(resumed > 0, "space that came back was never noticed");
}

#[test]
fn a_read_that_fails_is_an_error_and_never_a_wrong_answer() {
    // A failure means that a bad sector makes a key look as if it had never been written.
    for nth in 1..400 {
        let world = World::new(nth);
        let faulty = FaultVfs::new(world.sim.vfs.clone());
        let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
        let table = store.create_table("t", tiny_table(0)).unwrap();
        let mut model = Row::new();
        let mut dice = Dice::new(nth);
        for number in 0..120 {
            let (key, value) = (format!("key {:03}", number % 70), dice.bytes(100));
            table.put(&key, &value).unwrap();
            model.insert(key.into_bytes(), value);
        }
        table.put(b"large", vec![7; 70_000]).unwrap();
        model.insert(b"large".to_vec(), vec![7; 70_000]);
        store.flush().unwrap();
        store.close().unwrap();

        let world = world.over(world.sim.vfs.copy(), nth | 1 << 40);
        let faulty = FaultVfs::new(world.sim.vfs.clone());
        let store = world.builder_over(Arc::new(faulty.clone())).open().unwrap();
        let table = store.table("t").unwrap();
        let sorted = |path: &Path| path.starts_with(Path::new(DIR).join("sst"));
        faulty.inject(Rule::on(Operation::Read).path(sorted).nth(nth).fail_os(5));
        let mut failed = 0;
        for (key, value) in &model {
            match table.get(key) {
                Ok(found) => assert_eq!(found.as_deref(), Some(value.as_slice()), "read {nth}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "read {nth}: {error}");
                    failed += 1;
                }
            }
        }
        for back in [false, true] {
            let mut range = table.iter();
            let mut expected: Vec<_> = model.iter().collect();
            if back {
                expected.reverse();
            }
            for (key, value) in expected {
                match if back { range.next_back() } else { range.next() } {
                    Some(Ok((k, v))) => assert_eq!((&*k, &*v), (key.as_slice(), value.as_slice()), "read {nth}"),
                    Some(Err(error)) => {
                        assert_eq!(error.kind(), ErrorKind::Io, "read {nth}: {error}");
                        failed += 1;
                        break;
                    }
                    None => panic!("read {nth}: the scan ended early, without an error"),
                }
            }
        }
        assert!(failed <= 1, "read {nth}: one failed read made {failed} answers fail");
        if failed == 0 {
            assert!(nth > 20, "only {nth} reads");
            return;
        }
        assert_eq!(row(&table).unwrap(), model, "read {nth}: what failed once is there when asked again");
    }
}
