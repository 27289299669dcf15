//! A store answers as one `BTreeMap` per table would, whatever the order of operations.
//!
//! Random operations run against a store in simulation, with settings so small that they reach every level, and against the maps.
//! Any answer that differs is shrunk to the fewest operations that show it. `STRONGROOM_MODEL_CASES` says how many
//! rows of operations are tried.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use strongroom::io::mem::Loss;
use strongroom::options::Durability;
use strongroom::{ErrorKind, KeyChange, MasterKey, Snapshot, Store, Table, Value};

use crate::world::{Row, World, row, setting, tiny_table};

const TABLES: usize = 3;

/// One operation. Tables and snapshots are named by numbers that are taken modulo how many there are, so that any part of a row of
/// operations is a row of operations.
#[derive(Clone, Debug)]
enum Op {
    Put {
        table: usize,
        key: u8,
        value: u8,
        sync: bool,
    },
    Delete {
        table: usize,
        key: u8,
    },
    Batch {
        writes: Vec<(usize, u8, Option<u8>)>,
        sync: bool,
    },
    /// Many puts of rising keys, to fill memtables.
    Fill {
        table: usize,
        from: u8,
        count: u8,
        value: u8,
    },
    Get {
        at: At,
        key: u8,
    },
    Scan {
        at: At,
        span: Span,
        steps: Vec<bool>,
    },
    Walk {
        at: At,
        moves: Vec<Move>,
    },
    TakeSnapshot,
    DropSnapshot(usize),
    Sync,
    Flush(Option<usize>),
    Compact(Option<usize>),
    /// Background work, and time.
    Run {
        steps: usize,
        millis: u64,
    },
    Recreate(usize),
    /// Begin a new generation of the table's key.
    Rotate(usize),
    /// Take the table to another kind of master key.
    Update {
        table: usize,
        kind: usize,
        rewrap_only: bool,
    },
    RotateSystem,
    Reopen,
    /// The process ends without a word; the machine goes on.
    Kill,
    /// Everything is synced, then the power goes.
    PowerCut,
}

/// A table, now or as a snapshot shows it.
#[derive(Clone, Debug)]
struct At {
    table: usize,
    snapshot: Option<usize>,
}

#[derive(Clone, Debug)]
enum Span {
    All,
    Prefix(u8),
    Between { lower: Option<(u8, bool)>, upper: Option<(u8, bool)> },
}

#[derive(Clone, Debug)]
enum Move {
    Seek(u8),
    SeekBefore(u8),
    First,
    Last,
    Next,
    Prev,
}

/// Keys that are prefixes of others, that end in 0xff and 0x00, that are long, and that agree in their first 8 bytes.
fn key(number: u8) -> Vec<u8> {
    match number % 64 {
        n @ 0..8 => vec![b'p'; usize::from(n) + 1],
        n @ 8..12 => vec![0xff; usize::from(n) - 7],
        n @ 12..16 => [b"p".as_slice(), &vec![0; usize::from(n) - 11]].concat(),
        n @ 16..20 => [b"p".as_slice(), &vec![0xff; usize::from(n) - 15]].concat(),
        n @ 20..22 => vec![b'x'; 300 + usize::from(n)],
        n => format!("eight-bytes-{:02}", n - 22).into_bytes(),
    }
}

/// Values of every size that is treated in a way of its own: inline, copied, shared, allocated apart, out of the block.
fn value(number: u8) -> Vec<u8> {
    let len = match number {
        0..16 => 0,
        16..128 => 12,
        128..200 => 100,
        200..230 => 300,
        230..250 => 1000,
        250..254 => 5000,
        _ => 70_000,
    };
    vec![number; len]
}

fn op() -> impl Strategy<Value = Op> {
    let table = || 0..TABLES;
    let at = || (table(), prop::option::weighted(0.4, 0..8usize)).prop_map(|(table, snapshot)| At { table, snapshot });
    let bound = || prop::option::of((any::<u8>(), any::<bool>()));
    let span = prop_oneof![
        Just(Span::All),
        any::<u8>().prop_map(Span::Prefix),
        (bound(), bound()).prop_map(|(lower, upper)| Span::Between { lower, upper }),
    ];
    let moves = prop_oneof![
        2 => any::<u8>().prop_map(Move::Seek),
        2 => any::<u8>().prop_map(Move::SeekBefore),
        1 => Just(Move::First),
        1 => Just(Move::Last),
        4 => Just(Move::Next),
        4 => Just(Move::Prev),
    ];
    let write = (table(), any::<u8>(), prop::option::weighted(0.7, any::<u8>()));
    prop_oneof![
        20 => (table(), any::<u8>(), any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|(table, key, value, sync)| Op::Put { table, key, value, sync }),
        8 => (table(), any::<u8>()).prop_map(|(table, key)| Op::Delete { table, key }),
        8 => (prop::collection::vec(write, 1..12), any::<bool>()).prop_map(|(writes, sync)| Op::Batch { writes, sync }),
        5 => (table(), any::<u8>(), 10..40u8, 16..230u8)
            .prop_map(|(table, from, count, value)| Op::Fill { table, from, count, value }),
        8 => (at(), any::<u8>()).prop_map(|(at, key)| Op::Get { at, key }),
        8 => (at(), span, prop::collection::vec(any::<bool>(), 0..12))
            .prop_map(|(at, span, steps)| Op::Scan { at, span, steps }),
        8 => (at(), prop::collection::vec(moves, 1..16)).prop_map(|(at, moves)| Op::Walk { at, moves }),
        4 => Just(Op::TakeSnapshot),
        2 => (0..8usize).prop_map(Op::DropSnapshot),
        1 => Just(Op::Sync),
        3 => prop::option::of(table()).prop_map(Op::Flush),
        2 => prop::option::of(table()).prop_map(Op::Compact),
        8 => (0..12usize, prop_oneof![Just(0), Just(0), Just(150), Just(400_000u64)])
            .prop_map(|(steps, millis)| Op::Run { steps, millis }),
        1 => table().prop_map(Op::Recreate),
        2 => table().prop_map(Op::Rotate),
        2 => (table(), 0..4usize, any::<bool>())
            .prop_map(|(table, kind, rewrap_only)| Op::Update { table, kind, rewrap_only }),
        1 => Just(Op::RotateSystem),
        2 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        1 => Just(Op::PowerCut),
    ]
}

/// A store and the maps that it shall agree with.
struct Pair {
    world: World,
    store: Store,
    tables: Vec<Table>,
    rows: Vec<Row>,
    /// Each with the tables of its time, some of which may have been dropped.
    snapshots: Vec<(Snapshot, Vec<Table>, Vec<Row>)>,
    worlds: u64,
}

impl Pair {
    fn new() -> Pair {
        let world = World::new(1);
        world.kms.create_key(Some("alias/one"), "").unwrap();
        world.kms.create_key(Some("alias/two"), "").unwrap();
        let store = world.create();
        let tables = (0..TABLES).map(|i| store.create_table(&name(i), tiny_table(i)).unwrap()).collect();
        Pair { world, store, tables, rows: vec![Row::new(); TABLES], snapshots: Vec::new(), worlds: 1 }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Put { table, key: k, value: v, sync } => {
                let durability = if *sync { Durability::Sync } else { Durability::Buffered };
                self.tables[*table].put_with(key(*k), value(*v), durability).unwrap();
                self.rows[*table].insert(key(*k), value(*v));
            }
            Op::Delete { table, key: k } => {
                self.tables[*table].delete(key(*k)).unwrap();
                self.rows[*table].remove(&key(*k));
            }
            Op::Batch { writes, sync } => self.batch(writes, *sync),
            Op::Fill { table, from, count, value: v } => {
                for k in (0..*count).map(|i| from.wrapping_add(i)) {
                    self.tables[*table].put(key(k), value(*v)).unwrap();
                    self.rows[*table].insert(key(k), value(*v));
                }
            }
            Op::Get { at, key: k } => self.get(at, &key(*k)),
            Op::Scan { at, span, steps } => self.scan(at, span, steps),
            Op::Walk { at, moves } => self.walk(at, moves),
            Op::TakeSnapshot => {
                if self.snapshots.len() < 8 {
                    self.snapshots.push((self.store.snapshot(), self.tables.clone(), self.rows.clone()));
                }
            }
            Op::DropSnapshot(number) => {
                if let Some(number) = number.checked_rem(self.snapshots.len()) {
                    self.snapshots.swap_remove(number);
                }
            }
            Op::Sync => self.store.sync().unwrap(),
            Op::Flush(None) => self.store.flush().unwrap(),
            Op::Flush(Some(table)) => self.tables[*table].flush().unwrap(),
            Op::Compact(None) => self.store.compact().unwrap(),
            Op::Compact(Some(table)) => self.tables[*table].compact().unwrap(),
            Op::Run { steps, millis } => {
                self.world.sim.clock.advance(Duration::from_millis(*millis));
                self.world.sim.scheduler.run_some(*steps);
            }
            Op::Recreate(table) => {
                self.store.drop_table(&name(*table)).unwrap();
                assert_eq!(self.tables[*table].get(b"k").unwrap_err().kind(), ErrorKind::Closed);
                self.tables[*table] = self.store.create_table(&name(*table), tiny_table(*table)).unwrap();
                self.rows[*table].clear();
            }
            // How far the work that follows gets is up to the steps that it is given.
            Op::Rotate(table) => drop(self.store.rotate_table_key(&name(*table)).unwrap()),
            Op::Update { table, kind, rewrap_only } => {
                let to = match kind {
                    0 => MasterKey::owned(),
                    1 => MasterKey::managed(),
                    2 => MasterKey::customer("alias/one"),
                    _ => MasterKey::customer("alias/two"),
                };
                let change = KeyChange::new(to);
                let change = if *rewrap_only { change.rewrap_only() } else { change };
                self.store.update_table_with(&name(*table), change).unwrap();
            }
            Op::RotateSystem => self.store.rotate_system_key().unwrap(),
            Op::Reopen => {
                self.store.close().unwrap();
                let disk = self.world.sim.vfs.copy();
                self.reopen(disk);
                assert!(self.world.heard.damage().is_empty(), "nothing is discarded after a clean close");
            }
            Op::Kill => {
                let disk = self.world.sim.vfs.crash_at(self.world.sim.vfs.events(), Loss::KeepAll, 0);
                self.reopen(disk);
            }
            Op::PowerCut => {
                self.store.sync().unwrap();
                let disk = self.world.sim.vfs.crash_at(self.world.sim.vfs.events(), Loss::LoseUnsynced, 0);
                self.reopen(disk);
            }
        }
    }

    fn batch(&mut self, writes: &[(usize, u8, Option<u8>)], sync: bool) {
        let mut batch = self.store.batch();
        for (table, k, v) in writes {
            match v {
                Some(v) => {
                    batch.put(&self.tables[*table], key(*k), value(*v));
                    self.rows[*table].insert(key(*k), value(*v));
                }
                None => {
                    batch.delete(&self.tables[*table], key(*k));
                    self.rows[*table].remove(&key(*k));
                }
            }
        }
        batch.commit_with(if sync { Durability::Sync } else { Durability::Buffered }).unwrap();
    }

    /// The table, the snapshot if one is meant, and what should be seen; nothing if the table was dropped since.
    fn place(&self, at: &At) -> Option<(&Table, Option<&Snapshot>, &Row)> {
        let snapshot = at.snapshot.and_then(|number| number.checked_rem(self.snapshots.len()));
        let Some((snapshot, tables, rows)) = snapshot.map(|number| &self.snapshots[number]) else {
            return Some((&self.tables[at.table], None, &self.rows[at.table]));
        };
        let table = &tables[at.table];
        if table.id() != self.tables[at.table].id() {
            assert_eq!(snapshot.get(table, b"k").unwrap_err().kind(), ErrorKind::Closed, "the table was dropped");
            return None;
        }
        Some((table, Some(snapshot), &rows[at.table]))
    }

    fn get(&self, at: &At, key: &[u8]) {
        let Some((table, snapshot, row)) = self.place(at) else { return };
        let found = match snapshot {
            Some(snapshot) => snapshot.get(table, key),
            None => table.get(key),
        };
        assert_eq!(found.unwrap().as_deref(), row.get(key).map(Vec::as_slice));
        assert!(snapshot.is_some() || table.contains_key(key).unwrap() == row.contains_key(key));
    }

    /// Take from both ends as `steps` say, then all that is left from the front.
    fn scan(&self, at: &At, span: &Span, steps: &[bool]) {
        let Some((table, snapshot, row)) = self.place(at) else { return };
        let (mut range, mut model) = match span {
            Span::All => (snapshot.map_or_else(|| table.iter(), |s| s.iter(table)), row.clone()),
            Span::Prefix(number) => {
                let prefix = &key(*number)[..1 + usize::from(*number) % 2];
                let prefix = if *number > 250 { &[][..] } else { prefix.get(..2).unwrap_or(prefix) };
                let range = snapshot.map_or_else(|| table.prefix(prefix), |s| s.prefix(table, prefix));
                let model = row.iter().filter(|(k, _)| k.starts_with(prefix));
                (range, model.map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            Span::Between { lower, upper } => {
                let bounds = (bound(lower), bound(upper));
                let range = snapshot.map_or_else(|| table.range(bounds.clone()), |s| s.range(table, bounds.clone()));
                let inside = |k: &Vec<u8>| {
                    let above = match &bounds.0 {
                        Bound::Included(lower) => k >= lower,
                        Bound::Excluded(lower) => k > lower,
                        Bound::Unbounded => true,
                    };
                    let below = match &bounds.1 {
                        Bound::Included(upper) => k <= upper,
                        Bound::Excluded(upper) => k < upper,
                        Bound::Unbounded => true,
                    };
                    above && below
                };
                (range, row.iter().filter(|(k, _)| inside(k)).map(|(k, v)| (k.clone(), v.clone())).collect())
            }
        };
        for front in steps.iter().copied().chain(std::iter::repeat_n(true, model.len() + 2)) {
            let (item, expected) = match front {
                true => (range.next(), model.pop_first()),
                false => (range.next_back(), model.pop_last()),
            };
            assert_eq!(plain(item), expected);
        }
    }

    /// Walk a cursor, and beside it a place between the keys of the map.
    fn walk(&self, at: &At, moves: &[Move]) {
        let Some((table, snapshot, row)) = self.place(at) else { return };
        let mut cursor = snapshot.map_or_else(|| table.cursor(), |s| s.cursor(table)).unwrap();
        let mut place = Place::BeforeFirst;
        for step in moves {
            let (found, expected) = match step {
                Move::Seek(number) => {
                    (cursor.seek(key(*number)), row.range(key(*number)..).next().ok_or(Place::BehindLast))
                }
                Move::SeekBefore(number) => {
                    (cursor.seek_before(key(*number)), row.range(..key(*number)).next_back().ok_or(Place::BeforeFirst))
                }
                Move::First => (cursor.first(), row.iter().next().ok_or(Place::BehindLast)),
                Move::Last => (cursor.last(), row.iter().next_back().ok_or(Place::BeforeFirst)),
                Move::Next => (cursor.next(), place.next(row)),
                Move::Prev => (cursor.prev(), place.prev(row)),
            };
            let found = found.unwrap().map(|(k, v)| (k.to_vec(), v.to_vec()));
            assert_eq!(found, expected.clone().ok().map(|(k, v)| (k.clone(), v.clone())), "{step:?} from {place:?}");
            place = match expected {
                Ok((key, _)) => Place::On(key.clone()),
                Err(place) => place,
            };
        }
    }

    fn reopen(&mut self, disk: strongroom::io::mem::MemVfs) {
        self.snapshots.clear();
        self.worlds += 1;
        let world = self.world.over(disk, self.worlds);
        self.store = world.open().unwrap();
        self.world = world;
        assert_eq!(self.store.table_names(), (0..TABLES).map(name).collect::<Vec<_>>());
        self.tables = (0..TABLES).map(|i| self.store.table(&name(i)).unwrap()).collect();
    }

    fn check_all(&self) {
        for (table, expected) in self.tables.iter().zip(&self.rows) {
            assert_eq!(&row(table).unwrap(), expected, "{}", table.name());
            for k in 0..64 {
                assert_eq!(table.get(key(k)).unwrap().as_deref(), expected.get(&key(k)).map(Vec::as_slice));
            }
        }
    }
}

/// Where a walk is, as far as the map is concerned.
#[derive(Clone, Debug)]
enum Place {
    BeforeFirst,
    On(Vec<u8>),
    BehindLast,
}

impl Place {
    fn next<'a>(&self, row: &'a Row) -> Result<(&'a Vec<u8>, &'a Vec<u8>), Place> {
        let next = match self {
            Place::BeforeFirst => row.iter().next(),
            Place::On(key) => row.range::<Vec<u8>, _>((Bound::Excluded(key), Bound::Unbounded)).next(),
            Place::BehindLast => None,
        };
        next.ok_or(Place::BehindLast)
    }

    fn prev<'a>(&self, row: &'a Row) -> Result<(&'a Vec<u8>, &'a Vec<u8>), Place> {
        let prev = match self {
            Place::BeforeFirst => None,
            Place::On(key) => row.range::<Vec<u8>, _>(..key).next_back(),
            Place::BehindLast => row.iter().next_back(),
        };
        prev.ok_or(Place::BeforeFirst)
    }
}

fn bound(bound: &Option<(u8, bool)>) -> Bound<Vec<u8>> {
    match bound {
        None => Bound::Unbounded,
        Some((number, true)) => Bound::Included(key(*number)),
        Some((number, false)) => Bound::Excluded(key(*number)),
    }
}

fn plain(item: Option<strongroom::Result<(Value, Value)>>) -> Option<(Vec<u8>, Vec<u8>)> {
    item.map(|entry| entry.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec()))
}

fn name(table: usize) -> String {
    format!("table {table}")
}

fn check(ops: &[Op]) {
    let mut pair = Pair::new();
    for op in ops {
        pair.run(op);
    }
    pair.check_all();
    let disk = pair.world.sim.vfs.crash_at(pair.world.sim.vfs.events(), Loss::KeepAll, 0);
    pair.reopen(disk);
    pair.check_all();
}

#[test]
fn any_operations_give_what_a_map_per_table_gives() {
    // A failure means that somebody reads something else than what was written.
    let config = Config {
        cases: setting("STRONGROOM_MODEL_CASES", 3_000) as u32,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(op(), 1..120), |ops| {
            // Proptest takes a panic for a failure, and shrinks it as well as a refusal.
            check(&ops);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn tiny_settings_flush_and_compact_within_a_hundred_operations() {
    // If they did not, none of the tests that rely on these settings would look at compaction.
    let mut pair = Pair::new();
    let mut ever = BTreeSet::new();
    for step in 0..100u8 {
        pair.run(&Op::Put { table: 0, key: step.wrapping_mul(7), value: 245, sync: false });
        pair.run(&Op::Run { steps: 4, millis: 50 });
        let sorted = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
        ever.extend(pair.world.sim.vfs.list().into_iter().filter(sorted));
    }
    pair.check_all();
    let left = ever.iter().filter(|path| pair.world.sim.vfs.read(path).is_ok()).count();
    assert!(ever.len() > 20 && left > 5 && left < ever.len(), "{} sorted tables, {left} left", ever.len());
}
