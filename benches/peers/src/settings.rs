//! What is compared, and how large: the same for the driver and its workers, which get it passed on.

use std::path::PathBuf;

use crate::Result;

/// What can be set, for whoever asks wrongly.
pub const USAGE: &str = "  --entries N          entries that are filled in, of 16 + 100 bytes (default 2000000)
  --reads N            point reads per round (default 1000000)
  --seeks N            seeks per round, each followed by 50 steps (default 50000)
  --overwrites N       entries written over (default 1000000)
  --synced N           entries filled in with a sync each (default 2000)
  --rounds N           rounds (default 5)
  --compression C      lz4 or none, for all engines (default lz4)
  --engines A,B,..     some of them only (default: all of this build; none needs --baseline)
  --workloads A,B,..   some of them only (default: all)
  --baseline PATH      this program, built with RUSTFLAGS='--cfg strongroom_plaintext_baseline'
  --data PATH          directory for the data, emptied afterwards (default: a new one in the temporary directory)
  --json PATH          where one JSON line per figure goes (default: nowhere)";

/// The size of a key and of a value.
pub const KEY_BYTES: usize = 16;
pub const VALUE_BYTES: usize = 100;

/// Sizes at which the engines freeze a memtable, and of the caches that they read through.
pub const MEMTABLE_BYTES: usize = 32 << 20;
pub const WARM_CACHE_BYTES: usize = 1 << 30;
pub const SMALL_CACHE_BYTES: usize = 32 << 20;

/// What is compared, and how large.
#[derive(Clone, Debug)]
pub struct Settings {
    pub entries: u64,
    pub reads: u64,
    pub seeks: u64,
    pub overwrites: u64,
    pub synced: u64,
    pub rounds: usize,
    pub lz4: bool,
    pub engines: Option<Vec<String>>,
    pub workloads: Option<Vec<String>>,
    pub baseline: Option<PathBuf>,
    pub data: Option<PathBuf>,
    pub json: Option<PathBuf>,
}

impl Settings {
    /// Read `--name value` pairs.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Settings> {
        let mut settings = Settings {
            entries: 2_000_000,
            reads: 1_000_000,
            seeks: 50_000,
            overwrites: 1_000_000,
            synced: 2_000,
            rounds: 5,
            lz4: true,
            engines: None,
            workloads: None,
            baseline: None,
            data: None,
            json: None,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
            let list = || Some(value.split(',').map(str::to_owned).collect());
            match name.as_str() {
                "--entries" => settings.entries = value.parse()?,
                "--reads" => settings.reads = value.parse()?,
                "--seeks" => settings.seeks = value.parse()?,
                "--overwrites" => settings.overwrites = value.parse()?,
                "--synced" => settings.synced = value.parse()?,
                "--rounds" => settings.rounds = value.parse()?,
                "--compression" => settings.lz4 = value != "none",
                "--engines" => settings.engines = list(),
                "--workloads" => settings.workloads = list(),
                "--baseline" => settings.baseline = Some(value.into()),
                "--data" => settings.data = Some(value.into()),
                "--json" => settings.json = Some(value.into()),
                _ => return Err(format!("unknown setting {name}\n{USAGE}").into()),
            }
        }
        Ok(settings)
    }

    /// How compression is named on the command line.
    pub fn compression(&self) -> &'static str {
        if self.lz4 { "lz4" } else { "none" }
    }

    /// The arguments that make a worker run `engine` with these settings on data in `data`.
    pub fn for_worker(&self, engine: &str, data: &str) -> Vec<String> {
        let pairs = [
            ("--entries", self.entries.to_string()),
            ("--reads", self.reads.to_string()),
            ("--seeks", self.seeks.to_string()),
            ("--overwrites", self.overwrites.to_string()),
            ("--synced", self.synced.to_string()),
            ("--compression", self.compression().to_owned()),
            ("--engines", engine.to_owned()),
            ("--data", data.to_owned()),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}
