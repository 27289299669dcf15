//! A store under operations, power cuts and reopening, against a map.
//!
//! ```text
//! byte   operation              behind it
//!  0-5   put                    table, key, length of the value, durability
//!  6-7   delete                 table, key, durability
//!    8   batch                  count; then per entry: table, key, length or delete; durability
//!    9   get                    table, key
//!   10   scan                   table, two keys, direction
//!   11   whole table            table, direction
//!   12   snapshot               slot: taken, or compared and let go
//!   13   flush / compact        which, and of which table
//!   14   background work        steps
//!   15   create a table         name, options
//!   16   drop a table           name
//!   17   close and reopen
//!   18   crash and reopen       events to go back within the last operation, kind of loss, seed
//!   19   sync the log
//! ```
//! Bytes that are missing read as zeros, so that every input is a run. All of it happens in simulation, on one thread, with settings so
//! small that some tens of writes reach several levels.
//!
//! After a crash the store must hold what a prefix of the commits left: all that were acknowledged as durable (all that
//! were acknowledged at all, if only the process ended), and none that was not begun.

use std::collections::{BTreeMap, BTreeSet};

use crate::io::mem::Loss;
use crate::io::sim::Simulation;
use crate::{Cipher, Compression, Durability, LocalKms, Range, Snapshot, Store, StoreOptions, Table, TableOptions};

const DIR: &str = "/store";
const NAMES: [&str; 3] = ["one", "two", "three"];
/// More would make one input slow without reaching anything new.
const OPERATIONS_MAX: usize = 200;

/// What a table holds.
type Row = BTreeMap<Vec<u8>, Vec<u8>>;
/// What tables hold, by a number of their own that no later table of the same name has.
type Rows = BTreeMap<u32, Row>;

/// Run the operations that these bytes stand for.
pub fn operations(data: &[u8]) {
    let mut input = Input(data);
    let mut run = Run::new();
    for _ in 0..OPERATIONS_MAX {
        if input.0.is_empty() {
            break;
        }
        run.step(&mut input);
    }
    run.compare();
    run.reopen();
    run.compare();
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&byte, rest)) => {
                self.0 = rest;
                byte
            }
            None => 0,
        }
    }

    /// One of few keys, so that most writes meet an earlier one; some are prefixes of others, some are long.
    fn key(&mut self) -> Vec<u8> {
        let byte = self.byte();
        match byte >> 5 {
            0 => vec![byte & 3; 1 + usize::from(byte >> 2 & 7)],
            1 => vec![0xff; 1 + usize::from(byte & 3)],
            2 => format!("a rather long key, of which many blocks hold only a few: {:02}", byte & 31).into_bytes(),
            _ => format!("key {:02}", byte & 31).into_bytes(),
        }
    }

    /// A value that no other operation writes.
    fn value(&mut self, commit: usize) -> Vec<u8> {
        let len = match self.byte() {
            255 => 70_000,
            len @ 250.. => usize::from(len - 249) * 1000,
            len => usize::from(len),
        };
        let mut value = commit.to_le_bytes().to_vec();
        value.resize(len, commit as u8);
        value
    }

    fn durability(&mut self) -> Durability {
        if self.byte() & 3 == 3 { Durability::Sync } else { Durability::Buffered }
    }
}

/// A table that is there.
#[derive(Clone)]
struct Live {
    number: u32,
    table: Table,
}

struct Run {
    sim: Simulation,
    kms: LocalKms,
    store: Store,
    tables: BTreeMap<&'static str, Live>,
    tables_ever: u32,
    /// What the tables held after so many commits, dropped ones included.
    states: Vec<Rows>,
    /// So many of the commits are durable.
    durable: usize,
    snapshots: [Option<(Snapshot, Rows)>; 2],
    seed: u64,
    before: Before,
}

/// What was true before the last operation.
struct Before {
    events: u64,
    commits: usize,
    durable: usize,
    tables: BTreeMap<&'static str, u32>,
}

impl Run {
    fn new() -> Run {
        let sim = Simulation::new(1);
        let kms = LocalKms::in_memory(Simulation::new(2).environment()).unwrap();
        let store = builder(&sim, &kms).create().unwrap();
        let before = Before { events: sim.vfs.events(), commits: 0, durable: 0, tables: BTreeMap::new() };
        Run {
            sim,
            kms,
            store,
            tables: BTreeMap::new(),
            tables_ever: 0,
            states: vec![Rows::new()],
            durable: 0,
            snapshots: [None, None],
            seed: 3,
            before,
        }
    }

    fn now(&self) -> &Rows {
        self.states.last().unwrap()
    }

    fn commits(&self) -> usize {
        self.states.len() - 1
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte() % 20;
        if operation == 18 {
            return self.crash(input);
        }
        self.note_before();
        match operation {
            0..=5 => self.put(input),
            6 | 7 => self.delete(input),
            8 => self.batch(input),
            9 => self.get(input),
            10 => self.scan(input),
            11 => self.whole(input),
            12 => self.snapshot(input),
            13 => self.reshape(input),
            14 => _ = self.sim.scheduler.run_some(usize::from(input.byte())),
            15 => self.create_table(input),
            16 => self.drop_table(input),
            17 => self.reopen(),
            _ => {
                self.store.sync().unwrap();
                self.durable = self.commits();
            }
        }
    }

    fn note_before(&mut self) {
        self.before = Before {
            events: self.sim.vfs.events(),
            commits: self.commits(),
            durable: self.durable,
            tables: self.numbers(),
        };
    }

    fn numbers(&self) -> BTreeMap<&'static str, u32> {
        self.tables.iter().map(|(name, live)| (*name, live.number)).collect()
    }

    /// One of the tables that are there; one is made if there is none.
    fn table(&mut self, input: &mut Input<'_>) -> Live {
        if self.tables.is_empty() {
            self.make(NAMES[0], TableOptions::new().block_bytes(256));
        }
        let chosen = usize::from(input.byte()) % self.tables.len();
        self.tables.values().nth(chosen).unwrap().clone()
    }

    fn commit(&mut self, writes: Vec<(u32, Vec<u8>, Option<Vec<u8>>)>, durability: Durability) {
        let mut rows = self.now().clone();
        for (number, key, value) in writes {
            let row = rows.entry(number).or_default();
            match value {
                Some(value) => _ = row.insert(key, value),
                None => _ = row.remove(&key),
            }
        }
        self.states.push(rows);
        if durability == Durability::Sync {
            self.durable = self.commits();
        }
    }

    fn put(&mut self, input: &mut Input<'_>) {
        let Live { number, table } = self.table(input);
        let (key, value, durability) = (input.key(), input.value(self.states.len()), input.durability());
        table.put_with(&key, &value, durability).unwrap();
        self.commit(vec![(number, key, Some(value))], durability);
    }

    fn delete(&mut self, input: &mut Input<'_>) {
        let Live { number, table } = self.table(input);
        let (key, durability) = (input.key(), input.durability());
        table.delete_with(&key, durability).unwrap();
        self.commit(vec![(number, key, None)], durability);
    }

    fn batch(&mut self, input: &mut Input<'_>) {
        let count = input.byte() % 8;
        let mut writes = Vec::new();
        let mut batch = self.store.batch();
        for _ in 0..count {
            let Live { number, table } = self.table(input);
            let (key, choice) = (input.key(), input.byte());
            let value = (choice & 3 > 0).then(|| input.value(self.states.len()));
            match &value {
                Some(value) => batch.put(&table, &key, value),
                None => batch.delete(&table, &key),
            };
            writes.push((number, key, value));
        }
        let durability = input.durability();
        batch.commit_with(durability).unwrap();
        self.commit(writes, durability);
    }

    fn get(&mut self, input: &mut Input<'_>) {
        let Live { number, table } = self.table(input);
        let key = input.key();
        let expected = self.now().get(&number).and_then(|row| row.get(&key));
        assert_eq!(table.get(&key).unwrap().as_deref(), expected.map(Vec::as_slice));
        assert_eq!(table.contains_key(&key).unwrap(), expected.is_some());
    }

    fn scan(&mut self, input: &mut Input<'_>) {
        let Live { number, table } = self.table(input);
        let (a, b) = (input.key(), input.key());
        let (from, to) = if a <= b { (a, b) } else { (b, a) };
        let empty = Row::new();
        let row = self.now().get(&number).unwrap_or(&empty);
        let choice = input.byte();
        if choice & 2 == 0 {
            let expected: Vec<_> = row.range(from.clone()..to.clone()).collect();
            check(table.range(from..to), &expected, choice & 1 == 1);
        } else {
            let prefix = &from[..1];
            let expected: Vec<_> = row.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            check(table.prefix(prefix), &expected, choice & 1 == 1);
        }
    }

    fn whole(&mut self, input: &mut Input<'_>) {
        let Live { number, table } = self.table(input);
        let empty = Row::new();
        let expected: Vec<_> = self.now().get(&number).unwrap_or(&empty).iter().collect();
        check(table.iter(), &expected, input.byte() & 1 == 1);
    }

    fn snapshot(&mut self, input: &mut Input<'_>) {
        let slot = usize::from(input.byte()) % self.snapshots.len();
        match self.snapshots[slot].take() {
            None => self.snapshots[slot] = Some((self.store.snapshot(), self.now().clone())),
            Some((snapshot, rows)) => {
                for live in self.tables.values() {
                    let empty = Row::new();
                    let expected: Vec<_> = rows.get(&live.number).unwrap_or(&empty).iter().collect();
                    check(snapshot.iter(&live.table), &expected, false);
                }
            }
        }
    }

    /// Nothing that can be read changes.
    fn reshape(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        match choice % 4 {
            0 => self.store.flush().unwrap(),
            1 => self.store.compact().unwrap(),
            2 => self.table(input).table.flush().unwrap(),
            _ => self.table(input).table.compact().unwrap(),
        }
        if choice.is_multiple_of(4) {
            self.durable = self.commits();
        }
    }

    fn create_table(&mut self, input: &mut Input<'_>) {
        let (name, choice) = (NAMES[usize::from(input.byte()) % NAMES.len()], input.byte());
        let options = TableOptions::new()
            .block_bytes(256 << (choice & 3))
            .compression(if choice & 4 == 0 { Compression::Lz4 } else { Compression::None })
            .cipher(if choice & 8 == 0 { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 })
            .filter_bits_per_key(if choice & 16 == 0 { 10 } else { 0 });
        if self.tables.contains_key(name) {
            self.store.create_table(name, options).unwrap_err();
        } else {
            self.make(name, options);
        }
    }

    fn make(&mut self, name: &'static str, options: TableOptions) {
        let table = self.store.create_table(name, options).unwrap();
        self.tables_ever += 1;
        self.tables.insert(name, Live { number: self.tables_ever, table });
    }

    fn drop_table(&mut self, input: &mut Input<'_>) {
        let name = NAMES[usize::from(input.byte()) % NAMES.len()];
        match self.tables.remove(name) {
            Some(live) => {
                self.store.drop_table(name).unwrap();
                live.table.get(b"key 01").unwrap_err();
            }
            None => _ = self.store.drop_table(name).unwrap_err(),
        }
    }

    /// Close the store in good order, and open it again: everything is there.
    fn reopen(&mut self) {
        self.snapshots = [None, None];
        self.store.close().unwrap();
        assert!(self.sim.scheduler.tasks().is_empty(), "every task has an owner who joins it");
        let disk = self.sim.vfs.copy();
        self.open_over(disk);
        assert!(self.store.recovery().clean);
        self.durable = self.commits();
        // Another disk, which counts its own events: a crash that follows meets the store as it was opened.
        self.note_before();
    }

    fn open_over(&mut self, disk: crate::io::mem::MemVfs) {
        self.seed += 1;
        self.sim = Simulation::over(disk, self.seed);
        self.store = builder(&self.sim, &self.kms).open().expect("a store opens again, whatever a crash left of it");
        // A drop that the crash undid leaves the table that was there.
        let mut numbers = self.before.tables.clone();
        numbers.extend(self.numbers());
        self.tables.clear();
        for name in self.store.table_names() {
            let name = NAMES.into_iter().find(|known| *known == name).expect("nobody made another table");
            let number = numbers.get(name).copied().unwrap_or_else(|| {
                self.tables_ever += 1;
                self.tables_ever
            });
            self.tables.insert(name, Live { number, table: self.store.table(name).unwrap() });
        }
    }

    fn crash(&mut self, input: &mut Input<'_>) {
        let (back, mut loss) = (u64::from(input.byte()), Loss::ALL[usize::from(input.byte()) % Loss::ALL.len()]);
        let now = self.sim.vfs.events();
        let event = now - back % (now - self.before.events + 1);
        if event == self.before.events && loss == Loss::CutShort {
            // The event that would be cut short is not the last operation's: that one came back, so it was whole.
            loss = Loss::KeepAll;
        }
        let whole = event == now && loss != Loss::CutShort;
        let disk = self.sim.vfs.crash_at(event, loss, u64::from(input.byte()));

        let names: BTreeSet<&'static str> = self.tables.keys().copied().collect();
        let (commits, durable) =
            if whole { (self.commits(), self.durable) } else { (self.before.commits, self.before.durable) };
        let least = if loss.is_power_cut() { durable } else { commits };
        self.snapshots = [None, None];
        self.sim.scheduler.abandon();
        // What the old handles do when they are dropped reaches only the old disk.
        self.open_over(disk);

        let found: BTreeSet<&'static str> = self.tables.keys().copied().collect();
        assert!(found == names || !whole && found.iter().eq(self.before.tables.keys()), "{found:?}, not {names:?}");
        let held = self.held();
        let prefix = (least..=self.commits()).rev().find(|&commits| self.matches(&held, &self.states[commits]));
        let Some(prefix) = prefix else {
            panic!("{loss:?} at event {event} of {now}: no prefix of at least {least} commits leaves {held:?}");
        };
        self.states.truncate(prefix + 1);
        // What was recovered was made durable before the store opened.
        self.durable = prefix;
        self.note_before();
    }

    fn held(&self) -> BTreeMap<u32, Row> {
        let read = |live: &Live| {
            let row = live.table.iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())));
            (live.number, row.collect::<crate::Result<Row>>().unwrap())
        };
        self.tables.values().map(read).collect()
    }

    fn matches(&self, held: &BTreeMap<u32, Row>, rows: &Rows) -> bool {
        let empty = Row::new();
        held.iter().all(|(number, row)| row == rows.get(number).unwrap_or(&empty))
    }

    fn compare(&self) {
        assert!(self.matches(&self.held(), self.now()));
        for live in self.tables.values() {
            let empty = Row::new();
            let expected: Vec<_> = self.now().get(&live.number).unwrap_or(&empty).iter().collect();
            check(live.table.iter(), &expected, true);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // The tasks hold the store, and the store the scheduler: without this, every input would leave one behind.
        self.sim.scheduler.abandon();
    }
}

/// A scan gives these entries, forward or back.
fn check(range: Range, expected: &[(&Vec<u8>, &Vec<u8>)], back: bool) {
    let entries: crate::Result<Vec<_>> = if back { range.rev().collect() } else { range.collect() };
    let mut entries = entries.unwrap();
    if back {
        entries.reverse();
    }
    assert_eq!(entries.len(), expected.len());
    assert!(entries.iter().zip(expected).all(|(entry, expected)| *entry.0 == **expected.0 && *entry.1 == **expected.1));
}

fn builder(sim: &Simulation, kms: &LocalKms) -> crate::Builder {
    let options = StoreOptions {
        write_budget_bytes: 8 << 10,
        memtable_bytes: 2 << 10,
        cache_bytes: 16 << 10,
        log_segment_bytes: 4 << 10,
        log_bytes_max: 16 << 10,
        table_file_bytes: 2 << 10,
        level_one_bytes: 4 << 10,
        level_factor: 2,
        level_zero_files: 2,
        level_zero_slow_files: 4,
        level_zero_stop_files: 8,
        open_tables_max: 8,
        ..StoreOptions::default()
    };
    Store::builder(DIR).key_provider(kms.clone()).options(options).environment(sim.environment())
}
