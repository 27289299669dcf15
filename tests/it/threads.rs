//! Many threads on one store: everybody reads what was written, and nobody sees half of anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strongroom::options::{Durability, StoreOptions};
use strongroom::{ErrorKind, LocalKms, Store, Table, Unlock};

use crate::world::{Dice, setting, tiny_options, tiny_table};

const WRITERS: usize = 3;
const KEYS: usize = 200;

/// A store on the real file system, with real threads behind it.
fn store(dir: &std::path::Path, options: StoreOptions) -> Store {
    let keyring = dir.join("keyring");
    let unlock = || Unlock::key(|key| key.fill(7));
    let kms = if keyring.exists() { LocalKms::open(&keyring, unlock()) } else { LocalKms::create(&keyring, unlock()) };
    Store::builder(dir.join("store")).key_provider(kms.unwrap()).options(options).open_or_create().unwrap()
}

fn key(writer: usize, number: usize) -> Vec<u8> {
    format!("writer {writer} key {number:04}").into_bytes()
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

#[test]
fn threads_read_their_own_writes_and_snapshots_stand_still() {
    // A failure means that a thread is told that something is written which it, or another one, then does not find.
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        memtable_bytes: 32 << 10,
        write_budget_bytes: 128 << 10,
        compaction_threads: 2,
        ..tiny_options()
    };
    let store = store(dir.path(), options.clone());
    let tables = store.create_tables(&[("left", tiny_table(0)), ("right", tiny_table(1))]).unwrap();
    let (left, right) = (&tables[0], &tables[1]);
    let done = AtomicBool::new(false);
    let commits = AtomicU64::new(0);
    let seconds = setting("STRONGROOM_THREAD_SECONDS", 6) as u64;
    std::thread::scope(|scope| {
        // What a panic in one thread must not leave the others waiting for.
        let stop = StopOnDrop(&done);
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let (store, done, commits) = (&store, &done, &commits);
            writers.push(scope.spawn(move || write(store, [left, right], writer, done, commits)));
        }
        scope.spawn(|| read_pairs(&store, [left, right], &done));
        scope.spawn(|| scan(&store, [left, right], &done));
        scope.spawn(|| come_and_go(&store, &done));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.flush().unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end && !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(stop);
        let models: Vec<BTreeMap<usize, u64>> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        check_all([left, right], &models);
        store.compact().unwrap();
        check_all([left, right], &models);
        store.close().unwrap();
        let again = self::store(dir.path(), options.clone());
        let tables = [again.table("left").unwrap(), again.table("right").unwrap()];
        check_all([&tables[0], &tables[1]], &models);
    });
    println!("{} commits in {seconds} s", commits.load(Ordering::Relaxed));
    assert!(commits.load(Ordering::Relaxed) > 1_000);
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Write the same rising number to both tables under keys of this writer's own, and read it back at once.
fn write(
    store: &Store,
    [left, right]: [&Table; 2],
    writer: usize,
    done: &AtomicBool,
    commits: &AtomicU64,
) -> BTreeMap<usize, u64> {
    let _stop = StopOnDrop(done);
    let mut dice = Dice::new(writer as u64);
    let mut model = BTreeMap::new();
    let mut count = 0u64;
    while !done.load(Ordering::Relaxed) {
        count += 1;
        let which = dice.below(KEYS);
        let key = key(writer, which);
        let mut batch = store.batch();
        if dice.percent(15) {
            batch.delete(left, &key).delete(right, &key);
            model.remove(&which);
        } else {
            let mut value = count.to_le_bytes().to_vec();
            value.resize(8 + dice.below(300), writer as u8);
            batch.put(left, &key, &value).put(right, &key, &value);
            model.insert(which, count);
        }
        let durability = if dice.percent(1) { Durability::Sync } else { Durability::Buffered };
        batch.commit_with(durability).unwrap();
        commits.fetch_add(1, Ordering::Relaxed);
        // Own writes are read at once, from the table and from a snapshot.
        let expected = model.get(&which).copied();
        assert_eq!(left.get(&key).unwrap().map(|value| number(&value)), expected);
        let other = dice.below(KEYS);
        let found = store.snapshot().get(right, self::key(writer, other)).unwrap();
        assert_eq!(found.map(|value| number(&value)), model.get(&other).copied());
    }
    model
}

/// Both tables agree in every snapshot: no batch is seen by halves. And a snapshot does not change.
fn read_pairs(store: &Store, [left, right]: [&Table; 2], done: &AtomicBool) {
    let _stop = StopOnDrop(done);
    let mut dice = Dice::new(77);
    while !done.load(Ordering::Relaxed) {
        let snapshot = store.snapshot();
        let keys: Vec<_> = (0..20).map(|_| (dice.below(WRITERS), dice.below(KEYS))).collect();
        let mut first = Vec::new();
        for (writer, which) in &keys {
            let key = key(*writer, *which);
            let (a, b) = (snapshot.get(left, &key).unwrap(), snapshot.get(right, &key).unwrap());
            assert_eq!(a, b, "half a batch in a snapshot");
            first.push(a);
        }
        std::thread::sleep(Duration::from_millis(dice.roll() % 3));
        for ((writer, which), before) in keys.iter().zip(first) {
            assert_eq!(snapshot.get(left, key(*writer, *which)).unwrap(), before, "a snapshot has changed");
        }
    }
}

/// Whole scans of one snapshot, forwards and backwards, are mirror images and agree between the tables.
fn scan(store: &Store, [left, right]: [&Table; 2], done: &AtomicBool) {
    let _stop = StopOnDrop(done);
    while !done.load(Ordering::Relaxed) {
        let snapshot = store.snapshot();
        let forwards: Vec<_> = snapshot.iter(left).map(|entry| entry.unwrap()).collect();
        let mut backwards: Vec<_> = snapshot.iter(right).rev().map(|entry| entry.unwrap()).collect();
        backwards.reverse();
        assert!(forwards.is_sorted_by(|a, b| *a.0 < *b.0), "a scan goes up");
        assert!(forwards == backwards, "two tables that are written together differ in one snapshot");
        let mut cursor = snapshot.cursor(left).unwrap();
        let mut entry = cursor.first().unwrap();
        for (key, value) in &forwards {
            assert_eq!(entry, Some((&**key, &**value)));
            entry = cursor.next().unwrap();
        }
        assert_eq!(entry, None);
    }
}

/// A table of its own comes and goes, while a second handle is used by nobody who waits for it.
fn come_and_go(store: &Store, done: &AtomicBool) {
    let _stop = StopOnDrop(done);
    let mut round = 0u64;
    while !done.load(Ordering::Relaxed) {
        round += 1;
        let table = store.create_table("guest", tiny_table(round as usize)).unwrap();
        assert_eq!(table.iter().count(), 0, "a table that was made anew has something in it");
        let writer = table.clone();
        let late = std::thread::spawn(move || {
            for number in 0..u64::MAX {
                match writer.put(number.to_be_bytes(), [1; 100]) {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                        return;
                    }
                }
            }
        });
        std::thread::sleep(Duration::from_millis(30));
        store.drop_table("guest").unwrap();
        late.join().unwrap();
        assert_eq!(table.get(b"k").unwrap_err().kind(), ErrorKind::Closed);
    }
}

fn check_all(tables: [&Table; 2], models: &[BTreeMap<usize, u64>]) {
    for table in tables {
        let mut found = 0;
        for (writer, model) in models.iter().enumerate() {
            for which in 0..KEYS {
                let value = table.get(key(writer, which)).unwrap().map(|value| number(&value));
                assert_eq!(value, model.get(&which).copied(), "{} of writer {writer}", table.name());
                found += usize::from(value.is_some());
            }
        }
        assert_eq!(table.iter().count(), found);
    }
}

#[test]
fn commits_of_many_threads_share_syncs_and_all_survive() {
    // A failure means that a commit that was acknowledged as durable in a crowd is not.
    let world = crate::world::World::new(1);
    let environment = strongroom::io::Environment {
        vfs: world.sim.vfs.clone(),
        scheduler: Arc::new(strongroom::io::os::Threads::new()),
        clock: Arc::new(strongroom::io::os::OsClock::new()),
        entropy: world.sim.entropy.clone(),
    };
    let store = world.builder().environment(environment).create().unwrap();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    let acked: Vec<(u64, usize, u64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4usize)
            .map(|thread| {
                let (table, disk) = (&table, &world.sim.vfs);
                scope.spawn(move || {
                    (0..200u64)
                        .map(|number| {
                            table.put_with(key(thread, 0), number.to_le_bytes(), Durability::Sync).unwrap();
                            (disk.events(), thread, number)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // The power goes at some of the moments in between; nothing that was acknowledged by then may be missing.
    let mut life = 10;
    for event in (1..=world.sim.vfs.events()).step_by(97) {
        life += 1;
        let disk = world.sim.vfs.crash_at(event, strongroom::io::mem::Loss::LoseUnsynced, 0);
        let world = world.over(disk, life);
        let Ok(store) = world.open() else { continue };
        let Ok(table) = store.table("t") else { continue };
        for thread in 0..4 {
            let acked =
                acked.iter().filter(|(at, other, _)| *at <= event && *other == thread).map(|(_, _, n)| *n).max();
            let found = table.get(key(thread, 0)).unwrap().map(|value| number(&value));
            assert!(found >= acked, "thread {thread}, event {event}: {found:?}, acknowledged {acked:?}");
        }
    }
}
