//! What can be typed behind `strongroom bench`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::workload::Workload;
use crate::args::CompressionName;

/// The workloads that run unless others are named: all of db_bench's, and none of YCSB's.
const WORKLOADS: &str =
    "fillseq,fillbatch,fillrandom,overwrite,readrandom,readmissing,readseq,seekrandom,readwhilewriting,fillsync";

#[derive(Args, Clone)]
pub struct Bench {
    /// What to run, in this order. Without a fill before them, the others get a table that is filled in random order first, untimed
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',', default_value = WORKLOADS)]
    pub workloads: Vec<Workload>,
    /// Cipher suites, run in turn [default: both; and none, where there is one]
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    pub suites: Vec<SuiteName>,
    /// Another build of this command, which runs suite none: one made with RUSTFLAGS='--cfg strongroom_plaintext_baseline'
    #[arg(long, value_name = "PROGRAM")]
    pub baseline: Option<PathBuf>,
    /// How often to run everything, every time on a new store; the suite that begins changes
    #[arg(long, default_value = "3")]
    pub rounds: NonZeroUsize,

    /// Entries that a fill writes
    #[arg(long, value_name = "COUNT", default_value = "1000000")]
    pub entries: NonZeroU64,
    /// Operations of workloads that do not fill [default: as many as entries; a twentieth of that for seekrandom and ycsb-e]
    #[arg(long, value_name = "COUNT")]
    pub operations: Option<NonZeroU64>,
    /// End workloads that do not fill after so many seconds instead
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "operations")]
    pub duration: Option<Duration>,
    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value = "16", value_parser = clap::value_parser!(u32).range(8..=1024))]
    pub key_size: u32,
    /// Bytes of a value, half of them noise. Several sizes, separated by commas, run one after the other, each with as many entries as
    /// make as many bytes as those of the first
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "100", value_parser = size)]
    pub value_size: Vec<u64>,
    /// Tables that filltables spreads its entries over
    #[arg(long, value_name = "COUNT", default_value = "10000")]
    pub tables: NonZeroU64,
    /// Threads that run a workload at the same time
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Compression before sealing
    #[arg(long, value_enum, default_value_t = CompressionName::Lz4)]
    pub compression: CompressionName,
    /// Size of a block before compression
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = size)]
    pub block_size: u64,
    /// Size of the cache; k, M and G stand for KiB, MiB and GiB
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = size)]
    pub cache_size: u64,
    /// What random choices follow from
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Where the stores lie while it runs: a directory that does not exist yet [default: in the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Write each result to this file, as a line of JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with plots of the results to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Run nothing: take the results from these files, which --json wrote
    #[arg(long, value_name = "FILES", value_delimiter = ',', conflicts_with_all = ["baseline", "json"])]
    pub from: Vec<PathBuf>,

    /// Be a worker for this suite, in this directory: told on standard input what to run
    #[arg(long, hide = true, num_args = 2, value_names = ["SUITE", "DIR"])]
    pub worker: Vec<String>,
}

/// How a store is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SuiteName {
    /// Nothing is: what the others are compared with
    None,
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl SuiteName {
    pub fn name(self) -> &'static str {
        match self {
            SuiteName::None => "none",
            SuiteName::Aes256Gcm => "aes-256-gcm",
            SuiteName::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

impl Bench {
    /// Entries of a table with values of this size.
    pub fn entries_of(&self, value_bytes: u64) -> u64 {
        let key_bytes = u64::from(self.key_size);
        let all = self.entries.get().saturating_mul(key_bytes + self.value_size[0]);
        (all / (key_bytes + value_bytes)).max(1)
    }
}

/// A number of bytes: `4096`, `32M`.
fn size(text: &str) -> Result<u64, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(format!("{unit:?} is none of k, M and G")),
    };
    let number: u64 = text[..text.len() - unit.len()].parse().map_err(|_| "not a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes <= 1 << 40).ok_or_else(|| "more than 1 TiB".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let sensible = (0.001..=1e6).contains(&seconds);
    sensible.then(|| Duration::from_secs_f64(seconds)).ok_or_else(|| "not between 0.001 and 1000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_a_unit_and_refuse_nonsense() {
        assert_eq!(size("100"), Ok(100));
        assert_eq!(size("32M"), Ok(32 << 20));
        assert!(
            size("M").is_err()
                && size("1.5G").is_err()
                && size("12kB").is_err()
                && size("99999999999999999999").is_err()
        );
        assert!(size("18446744073709551615G").is_err());
    }
}
