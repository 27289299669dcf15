//! `kill -9` at any moment, on the real file system: what was acknowledged is there when the store is opened again.
//!
//! The test starts itself as a child, which writes numbered commits to several tables and says through a pipe which are
//! acknowledged. The child is killed at a random moment, the store is opened and compared, and the next child goes on where
//! it stands, with other settings. `STRONGROOM_KILLS` says how often.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use strongroom::options::{Durability, StoreOptions};
use strongroom::{LocalKms, Result, Store, Table, Unlock};

use crate::world::{Dice, Row, row, setting, tiny_options, tiny_table};

/// Tells the child where it shall write.
const CHILD_DIR: &str = "STRONGROOM_KILL_CHILD_DIR";
/// Tells the child its seed.
const CHILD_SEED: &str = "STRONGROOM_KILL_CHILD_SEED";
const TABLES: [&str; 3] = ["one", "two", "three"];
/// Where each commit leaves its number, in the first table.
const NUMBER: &[u8] = b"number of the last commit";

fn open(dir: &Path, options: StoreOptions) -> Result<Store> {
    let keyring = dir.join("keyring");
    let unlock = || Unlock::key(|key| key.fill(7));
    let kms = if keyring.exists() { LocalKms::open(&keyring, unlock()) } else { LocalKms::create(&keyring, unlock()) }?;
    Store::builder(dir.join("store")).key_provider(kms).options(options).open_or_create()
}

fn tables(store: &Store) -> Result<Vec<Table>> {
    let existing = store.table_names();
    let missing: Vec<_> = TABLES.iter().enumerate().filter(|(_, name)| !existing.iter().any(|n| n == *name)).collect();
    store.create_tables(&missing.iter().map(|(i, name)| (**name, tiny_table(*i))).collect::<Vec<_>>())?;
    TABLES.iter().map(|name| store.table(name)).collect()
}

/// What commit `number` writes: it follows from the number alone.
fn writes(number: u64) -> Vec<(usize, Vec<u8>, Option<Vec<u8>>)> {
    let mut dice = Dice::new(number);
    let mut writes = vec![(0, NUMBER.to_vec(), Some(number.to_le_bytes().to_vec()))];
    for _ in 0..1 + dice.below(6) {
        let key = format!("key {:03}", dice.below(400)).into_bytes();
        let len = 20 + dice.below(200);
        let value = (!dice.percent(25)).then(|| dice.bytes(len));
        writes.push((dice.below(TABLES.len()), key, value));
    }
    writes
}

fn apply(rows: &mut [Row], number: u64) {
    for (table, key, value) in writes(number) {
        match value {
            Some(value) => rows[table].insert(key, value),
            None => rows[table].remove(&key),
        };
    }
}

fn last_commit(table: &Table) -> Result<u64> {
    Ok(table.get(NUMBER)?.map_or(0, |number| u64::from_le_bytes(number[..].try_into().unwrap())))
}

/// Other settings at each start.
fn options(dice: &mut Dice) -> StoreOptions {
    let memtable_bytes = 4096 << dice.below(6);
    StoreOptions {
        memtable_bytes,
        write_budget_bytes: memtable_bytes * (2 + dice.below(6)),
        log_segment_bytes: 8192 << dice.below(5),
        log_bytes_max: 256 << 10,
        table_file_bytes: 4096 << dice.below(4),
        compaction_threads: 1 + dice.below(2),
        ..tiny_options()
    }
}

#[test]
fn killing_the_process_loses_nothing_acknowledged() {
    // A failure means that a crash of the program loses data, or leaves half a batch.
    // Kept if something is wrong, to be looked into.
    let dir = tempfile::Builder::new().prefix("strongroom-kill-").disable_cleanup(true).tempdir().unwrap();
    let kills = setting("STRONGROOM_KILLS", 60);
    let mut dice = Dice::new(std::process::id().into());
    let mut rows = vec![Row::new(); TABLES.len()];
    let (mut number, mut acked_ever) = (0, 0);
    for kill in 0..kills {
        let acked = run_child(dir.path(), dice.roll(), Duration::from_micros(dice.roll() % 200_000));
        acked_ever += u64::from(acked.is_some());
        let store = open(dir.path(), options(&mut dice))
            .unwrap_or_else(|error| panic!("kill {kill}, {}: {error}", dir.path().display()));
        let tables = tables(&store).unwrap();
        let found = last_commit(&tables[0]).unwrap();
        // One commit at a time: what was acknowledged, and perhaps the next.
        let at_least = acked.unwrap_or(number);
        assert!(
            (at_least..=at_least + 1).contains(&found) || acked.is_none(),
            "kill {kill}: commit {found}, acknowledged {at_least}"
        );
        assert!(found >= number, "kill {kill}: commit {found} after {number}");
        (number + 1..=found).for_each(|number| apply(&mut rows, number));
        number = found;
        for (table, expected) in tables.iter().zip(&rows) {
            assert!(row(table).unwrap() == *expected, "kill {kill}: {} after commit {found}", table.name());
        }
        // Every other time the next child finds a store that was closed in good order.
        if dice.percent(50) {
            store.close().unwrap();
        }
    }
    std::fs::remove_dir_all(dir.path()).unwrap();
    println!("{kills} kills, {acked_ever} of them after commits, {number} commits");
    assert!(acked_ever * 2 > kills as u64, "the children hardly ever got to write");
}

/// The last commit that a child saw acknowledged before it was killed, if any.
fn run_child(dir: &Path, seed: u64, life: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child_that_is_killed", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .env(CHILD_SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pipe = BufReader::new(child.stdout.take().unwrap());
    let (send, begun) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut last = None;
        for line in pipe.lines().map_while(std::result::Result::ok) {
            if line.contains("child begins") {
                let _ = send.send(());
            }
            // A number that was cut off with the pipe has no line end, and `lines` shows it all the same: hence the stop.
            if let Some(number) = line.strip_prefix("acknowledged ").and_then(|rest| rest.strip_suffix('.')) {
                last = Some(number.parse().unwrap());
            }
        }
        last
    });
    // The clock runs from when the child is about to open the store: recovery is killed as well.
    let _ = begun.recv_timeout(Duration::from_secs(20));
    std::thread::sleep(life);
    kill(&mut child);
    reader.join().unwrap()
}

fn kill(child: &mut Child) {
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    if ended.is_some() {
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        panic!("the child ended by itself: {stderr}");
    }
}

/// Not a test: what the test above starts.
#[test]
#[ignore = "started by killing_the_process_loses_nothing_acknowledged"]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let mut dice = Dice::new(std::env::var(CHILD_SEED).unwrap().parse().unwrap());
    println!("\nchild begins");
    let store = open(Path::new(&dir), options(&mut dice)).unwrap();
    let tables = tables(&store).unwrap();
    let mut number = last_commit(&tables[0]).unwrap();
    loop {
        number += 1;
        let mut batch = store.batch();
        for (table, key, value) in writes(number) {
            match value {
                Some(value) => batch.put(&tables[table], key, value),
                None => batch.delete(&tables[table], key),
            };
        }
        let durability = if dice.percent(5) { Durability::Sync } else { Durability::Buffered };
        batch.commit_with(durability).unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {number}.").unwrap();
        out.flush().unwrap();
    }
}
