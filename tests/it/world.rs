//! What the tests of whole stores share: small settings, a world for a store to live in, and its contents as a plain map.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use strongroom::event::{Event, EventSink};
use strongroom::io::mem::MemVfs;
use strongroom::io::sim::Simulation;
use strongroom::io::{Environment, Vfs};
use strongroom::options::{Cipher, Compression, StoreOptions, TableOptions};
use strongroom::types::TableId;
use strongroom::{Builder, LocalKms, Result, Store, Table};

/// Where every simulated store lies.
pub const DIR: &str = "/store";

/// What a table holds.
pub type Row = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a store holds, by the names of its tables.
pub type Contents = BTreeMap<String, (TableId, Row)>;

/// Settings so small that a hundred operations reach three levels, many log segments and many evictions.
pub fn tiny_options() -> StoreOptions {
    StoreOptions {
        write_budget_bytes: 24 << 10,
        memtable_bytes: 4 << 10,
        cache_bytes: 32 << 10,
        log_segment_bytes: 8 << 10,
        log_bytes_max: 48 << 10,
        table_file_bytes: 4 << 10,
        level_one_bytes: 16 << 10,
        level_factor: 2,
        level_zero_files: 2,
        level_zero_slow_files: 6,
        level_zero_stop_files: 10,
        open_tables_max: 8,
        ..StoreOptions::default()
    }
}

/// Blocks so small that a handful of entries make an index. Every other table has the other cipher, and is compressed.
pub fn tiny_table(number: usize) -> TableOptions {
    let (cipher, compression) = match number.is_multiple_of(2) {
        true => (Cipher::Aes256Gcm, Compression::None),
        false => (Cipher::ChaCha20Poly1305, Compression::Lz4),
    };
    TableOptions::new().block_bytes(256).cipher(cipher).compression(compression)
}

/// A simulated machine, the keyring that lies elsewhere, and what the store said.
#[derive(Clone)]
pub struct World {
    pub sim: Simulation,
    pub kms: LocalKms,
    pub options: StoreOptions,
    pub heard: Arc<Heard>,
}

impl World {
    /// A machine with an empty disk. No two worlds of a test may have the same seed: they would draw the same salts.
    pub fn new(seed: u64) -> World {
        // The keyring draws from a row of its own, so that what it is asked does not change what the store draws.
        let kms = LocalKms::in_memory(Simulation::new(seed ^ 0x4b4d_5300_0000_0000).environment()).unwrap();
        World { sim: Simulation::new(seed), kms, options: tiny_options(), heard: Arc::default() }
    }

    /// Another machine with this disk and the same keyring.
    pub fn over(&self, disk: MemVfs, seed: u64) -> World {
        World {
            sim: Simulation::over(disk, seed),
            kms: self.kms.clone(),
            options: self.options.clone(),
            heard: Arc::default(),
        }
    }

    pub fn builder(&self) -> Builder {
        self.builder_over(self.sim.vfs.clone())
    }

    /// A builder whose store sees the disk through `vfs`.
    pub fn builder_over(&self, vfs: Arc<dyn Vfs>) -> Builder {
        let environment = Environment { vfs, ..self.sim.environment() };
        Store::builder(DIR)
            .key_provider(self.kms.clone())
            .options(self.options.clone())
            .environment(environment)
            .events(self.heard.clone())
    }

    pub fn create(&self) -> Store {
        self.builder().create().unwrap()
    }

    pub fn open(&self) -> Result<Store> {
        self.builder().open()
    }
}

/// A world with a store that holds a bit of everything, as [`small_store`] fills it, closed cleanly.
pub fn closed_world(seed: u64) -> World {
    let world = World::new(seed);
    let store = world.create();
    small_store(&store);
    store.close().unwrap();
    world
}

/// Two tables with sorted tables on two levels and something in the log.
pub fn small_store(store: &Store) {
    let first = store.create_table("first", tiny_table(0)).unwrap();
    let second = store.create_table("second", tiny_table(1)).unwrap();
    for round in 0..2 {
        for number in 0..12 {
            first.put(format!("key {number:02}"), format!("value {number} of round {round}")).unwrap();
        }
        first.delete(format!("key {round:02}")).unwrap();
        second.put(format!("round {round}"), vec![round; 300]).unwrap();
        store.flush().unwrap();
    }
    store.compact().unwrap();
    for number in 0..6 {
        let mut batch = store.batch();
        batch.put(&first, format!("late {number}"), b"in the log").put(&second, format!("late {number}"), b"too");
        batch.commit().unwrap();
    }
}

/// Keeps all events.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Vec<Event>>);

impl Heard {
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// Events that report that something was wrong with the files.
    pub fn damage(&self) -> Vec<Event> {
        let reports = |event: &Event| {
            matches!(
                event,
                Event::TailDiscarded { .. } | Event::KeyFileCopyDamaged { .. } | Event::OrphanSetAside { .. }
            )
        };
        self.all().into_iter().filter(reports).collect()
    }
}

impl EventSink for Heard {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// Everything that a store holds.
pub fn contents(store: &Store) -> Result<Contents> {
    let read = |name: String| {
        let table = store.table(&name)?;
        Ok((name, (table.id(), row(&table)?)))
    };
    store.table_names().into_iter().map(read).collect()
}

/// Everything that a table holds, by a scan.
pub fn row(table: &Table) -> Result<Row> {
    let mut row = Row::new();
    let mut last: Option<Vec<u8>> = None;
    for entry in table.iter() {
        let (key, value) = entry?;
        assert!(last.as_deref().is_none_or(|last| *last < *key), "a scan goes up, and shows no key twice");
        last = Some(key.to_vec());
        row.insert(key.to_vec(), value.to_vec());
    }
    Ok(row)
}

/// A small source of test data that follows from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.roll().to_le_bytes()).take(len).collect()
    }
}

/// A directory of the real file system: every file below it, with its bytes.
pub fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            files.insert(path, bytes);
        }
    }
    files
}

/// The number that an environment variable of the tests says, for longer runs than the usual one.
pub fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}
