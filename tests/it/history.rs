//! What a workload did, in the order of its commits, and what a store may hold after a crash in its midst.
//!
//! ```text
//! events of the disk   ──1──2──3──4──5──6──7──8──9──▶
//! step "put, sync"        begun 2 └────┘ acked 5          crash at 3 or 4: there or not
//! step "batch"                       begun 5 └──┘ acked 7 crash at 5: not there; at 6: there or not
//! ```
//! A store that comes back must hold, over all tables, what the first `n` commits left, for *one* `n`: not fewer than were
//! promised, not more than were begun. Tables are there or not as their creation and dropping says; these are durable when
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use strongroom::io::mem::Loss;
use strongroom::options::{Durability, TableOptions};
use strongroom::types::TableId;
use strongroom::{Batch, ErrorKind, KeyChange, Store, Table};

use crate::world::{Contents, DIR, Row, World, contents};

/// One write of a commit: table, key, and the value unless the key is deleted.
pub type Write<'a> = (&'a str, &'a [u8], Option<&'a [u8]>);

/// Tables' contents, dropped ones included.
type State = BTreeMap<TableId, Arc<Row>>;

/// What was done, and what was there after each commit.
pub struct History {
    steps: Vec<Step>,
    /// What the tables held after so many commits.
    states: Vec<State>,
    tables: BTreeMap<String, TableId>,
}

struct Step {
    /// Events of the disk before the call.
    begun: u64,
    /// Events of the disk when the call returned.
    acked: u64,
    what: What,
}

enum What {
    Commit {
        sync: bool,
    },
    /// Everything before it is durable once it is acknowledged.
    Barrier,
    Create(Vec<(String, TableId)>),
    Drop(String),
}

/// What a crash must leave and may leave.
pub struct Expected<'a> {
    history: &'a History,
    tables: BTreeMap<String, TableId>,
    in_flight: Option<&'a What>,
    /// Commits that must be there, and that may be there.
    pub commits_min: usize,
    pub commits_max: usize,
}

impl History {
    pub fn new() -> History {
        History { steps: Vec::new(), states: vec![State::new()], tables: BTreeMap::new() }
    }

    /// What a crash behind `event` must and may leave.
    pub fn expected(&self, event: u64, loss: Loss) -> Expected<'_> {
        // A write that was cut short is one that never came back.
        let seen = if loss == Loss::CutShort { event - 1 } else { event };
        let mut expected =
            Expected { history: self, tables: BTreeMap::new(), in_flight: None, commits_min: 0, commits_max: 0 };
        for step in self.steps.iter().take_while(|step| step.begun < event) {
            let acked = step.acked <= seen;
            match &step.what {
                What::Commit { sync } => {
                    expected.commits_max += 1;
                    if acked && (*sync || !loss.is_power_cut()) {
                        expected.commits_min = expected.commits_max;
                    }
                }
                What::Barrier if acked => expected.commits_min = expected.commits_max,
                What::Barrier => {}
                What::Create(tables) if acked => expected.tables.extend(tables.iter().cloned()),
                What::Drop(name) if acked => drop(expected.tables.remove(name)),
                what => expected.in_flight = Some(what),
            }
        }
        expected
    }

    /// What is there if nothing is lost.
    pub fn now(&self) -> Contents {
        let state = self.states.last().unwrap();
        let row = |id: &TableId| state.get(id).map_or_else(Row::new, |row| Row::clone(row));
        self.tables.iter().map(|(name, id)| (name.clone(), (*id, row(id)))).collect()
    }
}

impl Expected<'_> {
    /// How many commits `found` holds, or what is wrong with it.
    pub fn check(&self, found: &Contents) -> Result<usize, String> {
        let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
        let before: BTreeSet<&str> = self.tables.keys().map(String::as_str).collect();
        let after = match self.in_flight {
            Some(What::Create(tables)) => {
                before.iter().copied().chain(tables.iter().map(|(n, _)| n.as_str())).collect()
            }
            Some(What::Drop(name)) => before.iter().copied().filter(|other| other != name).collect(),
            _ => before.clone(),
        };
        if names != before && names != after {
            return Err(format!("tables {names:?} are neither {before:?} nor {after:?}"));
        }
        let mut differences = String::new();
        for commits in (self.commits_min..=self.commits_max).rev() {
            match self.difference(found, &self.history.states[commits]) {
                None => return Ok(commits),
                Some(difference) => differences += &format!("\n  after {commits} commits {difference}"),
            }
        }
        Err(format!("no prefix of the commits leaves this:{differences}"))
    }

    fn difference(&self, found: &Contents, state: &State) -> Option<String> {
        for (name, (id, row)) in found {
            let empty = Row::new();
            // A table that was about to be created has nothing in it, and an identity that nobody heard of.
            let expected = match self.tables.get(name) {
                Some(known) if known != id => return Some(format!("{name} would be another table")),
                Some(known) => state.get(known).map_or(&empty, |row| &**row),
                None => &empty,
            };
            if row != expected {
                let keys: BTreeSet<_> = row.keys().chain(expected.keys()).collect();
                let key = keys.into_iter().find(|key| row.get(*key) != expected.get(*key)).unwrap();
                let brief = |row: &Row| {
                    row.get(key).map(|value| String::from_utf8_lossy(&value[..value.len().min(24)]).into_owned())
                };
                return Some(format!(
                    "{name} would hold {:?} = {:?}, not {:?}",
                    String::from_utf8_lossy(&key[..key.len().min(24)]),
                    brief(expected),
                    brief(row),
                ));
            }
        }
        None
    }
}

/// Does things to a store in simulation, and notes them down.
pub struct Recorder {
    pub world: World,
    pub store: Store,
    pub history: History,
    handles: BTreeMap<String, Table>,
}

impl Recorder {
    /// A new store. What happens on the disk before [`Recorder::events`] here is its creation.
    pub fn new(world: World) -> Recorder {
        let store = world.create();
        Recorder { world, store, history: History::new(), handles: BTreeMap::new() }
    }

    /// Events of the disk so far.
    pub fn events(&self) -> u64 {
        self.world.sim.vfs.events()
    }

    pub fn put(&mut self, table: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, durability: Durability) {
        let handle = self.handles[table].clone();
        let write = (table, key.as_ref(), Some(value.as_ref()));
        self.commit(&[write], durability, |_| handle.put_with(write.1, value.as_ref(), durability));
    }

    pub fn delete(&mut self, table: &str, key: impl AsRef<[u8]>, durability: Durability) {
        let handle = self.handles[table].clone();
        let key = key.as_ref();
        self.commit(&[(table, key, None)], durability, |_| handle.delete_with(key, durability));
    }

    /// One atomic batch.
    pub fn batch(&mut self, writes: &[Write<'_>], durability: Durability) {
        let mut batch: Batch = self.store.batch();
        for (table, key, value) in writes {
            match value {
                Some(value) => batch.put(&self.handles[*table], key, value),
                None => batch.delete(&self.handles[*table], key),
            };
        }
        self.commit(writes, durability, |_| batch.commit_with(durability));
    }

    fn commit(
        &mut self,
        writes: &[Write<'_>],
        durability: Durability,
        commit: impl FnOnce(&Store) -> strongroom::Result<()>,
    ) {
        let mut state = self.history.states.last().unwrap().clone();
        for (table, key, value) in writes {
            let row = Arc::make_mut(state.entry(self.history.tables[*table]).or_default());
            match value {
                Some(value) => row.insert(key.to_vec(), value.to_vec()),
                None => row.remove(*key),
            };
        }
        self.history.states.push(state);
        self.step(|recorder| {
            commit(&recorder.store).unwrap();
            What::Commit { sync: durability == Durability::Sync }
        });
    }

    pub fn sync(&mut self) {
        self.barrier(|store| store.sync());
    }

    pub fn flush(&mut self) {
        self.barrier(|store| store.flush());
    }

    pub fn compact(&mut self) {
        let begun = self.events();
        self.store.compact().unwrap();
        assert!(begun <= self.events());
    }

    fn barrier(&mut self, call: impl FnOnce(&Store) -> strongroom::Result<()>) {
        self.step(|recorder| {
            call(&recorder.store).unwrap();
            What::Barrier
        });
    }

    pub fn create_tables(&mut self, names: &[&str], options: &TableOptions) {
        self.step(|recorder| {
            let wanted: Vec<_> = names.iter().map(|name| (*name, options.clone())).collect();
            let made = recorder.store.create_tables(&wanted).unwrap();
            let tables: Vec<_> = made.iter().map(|table| (table.name().to_owned(), table.id())).collect();
            recorder.handles.extend(made.into_iter().map(|table| (table.name().to_owned(), table)));
            recorder.history.tables.extend(tables.iter().cloned());
            What::Create(tables)
        });
    }

    /// Change a table's master key.
    pub fn update_table(&mut self, name: &str, change: KeyChange) {
        let begun = self.events();
        self.store.update_table_with(name, change).unwrap();
        assert!(begun < self.events());
    }

    /// Begin a new generation of a table's key.
    pub fn rotate(&mut self, name: &str) {
        let begun = self.events();
        self.store.rotate_table_key(name).unwrap();
        assert!(begun < self.events());
    }

    /// Wait until a table is under its newest key alone.
    pub fn wait_for_rotation(&mut self, name: &str) {
        self.store.rotation(name).unwrap().wait().unwrap();
    }

    pub fn drop_table(&mut self, name: &str) {
        self.step(|recorder| {
            recorder.store.drop_table(name).unwrap();
            recorder.handles.remove(name);
            recorder.history.tables.remove(name);
            What::Drop(name.to_owned())
        });
    }

    /// Close the store in good order and open it again, on the same disk.
    pub fn reopen(&mut self) {
        self.barrier(|store| store.close());
        // The same machine, which went on: its randomness goes on too.
        self.store = self.world.open().unwrap();
        assert!(self.world.heard.damage().is_empty(), "nothing is discarded after a clean close");
        self.handles = self.history.tables.keys().map(|name| (name.clone(), self.store.table(name).unwrap())).collect();
    }

    /// A table's key is refused, and a batch over it with it.
    pub fn refused(&self, table: &str) {
        let error = self.handles[table].get("key 00").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
        let mut batch = self.store.batch();
        for table in self.handles.values() {
            batch.put(table, "none", "of it");
        }
        assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::KeyUnavailable);
    }

    /// How many files of parked sections there are.
    pub fn parked_files(&self) -> usize {
        self.world.sim.vfs.snapshot().into_keys().filter(|path| path.starts_with(format!("{DIR}/parked"))).count()
    }

    /// The process ends without a word and another one opens the store, while the machine goes on: what was not synced is still
    /// not synced.
    pub fn kill(&mut self) {
        self.kill_unread();
        self.check_now();
    }

    /// As [`kill`](Recorder::kill), where not every table can be read.
    pub fn kill_unread(&mut self) {
        self.world.sim.scheduler.abandon();
        // Nobody closes the store; and the lock goes with the process.
        std::mem::forget(std::mem::take(&mut self.handles));
        self.world.sim.vfs.plant(format!("{DIR}/LOCK"), b"").unwrap();
        let begun = self.events();
        std::mem::forget(std::mem::replace(&mut self.store, self.world.open().unwrap()));
        // Recovery makes durable what it found before it goes on from there.
        let acked = self.events();
        self.history.steps.push(Step { begun, acked, what: What::Barrier });
        self.handles = self.history.tables.keys().map(|name| (name.clone(), self.store.table(name).unwrap())).collect();
    }

    /// Do some background work.
    pub fn run(&self, steps: usize) {
        self.world.sim.scheduler.run_some(steps);
    }

    /// Let time pass, and do what is due.
    pub fn pass(&self, millis: u64) {
        self.world.sim.clock.advance(std::time::Duration::from_millis(millis));
        self.world.sim.scheduler.run_some(20);
    }

    /// The recording is worth nothing if the store is not what it says.
    pub fn check_now(&self) {
        assert_eq!(contents(&self.store).unwrap(), self.history.now());
    }

    fn step(&mut self, act: impl FnOnce(&mut Recorder) -> What) {
        let begun = self.events();
        let what = act(self);
        let acked = self.events();
        self.history.steps.push(Step { begun, acked, what });
    }
}
