//! What is run, and what an engine must be able to do for it.

use std::path::Path;

use crate::Result;
use crate::settings::{KEY_BYTES, VALUE_BYTES};

/// A key.
pub type Key = [u8; KEY_BYTES];

/// A store with one table, of whatever engine.
pub trait Peer {
    /// Set a key, acknowledged once the operating system has it, or with `sync` once it is on the medium.
    fn put(&self, key: &Key, value: &[u8], sync: bool) -> Result<()>;
    /// Bytes of a key's value.
    fn get(&self, key: &Key) -> Result<Option<usize>>;
    /// Walk everything in the way that costs least; entries and bytes met.
    fn scan(&self) -> Result<(u64, u64)>;
    /// Walk everything with an iterator of owned entries; entries and bytes met.
    fn iterate(&self) -> Result<(u64, u64)>;
    /// Go to `key` and on over so many entries; entries met.
    fn seek(&self, key: &Key, steps: usize) -> Result<usize>;
    /// Write what is in memory to sorted tables and return once background work has come to rest.
    fn settle(&self) -> Result<()>;
}

/// How to open a store of an engine.
pub type Open = dyn Fn(&Path, &Access) -> Result<Box<dyn Peer>>;

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub create: bool,
    pub cache_bytes: usize,
}

/// The workloads, in the order in which they are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    FillSequential,
    FillRandom,
    ReadRandomSmallCache,
    ReadRandom,
    ReadMissing,
    Scan,
    Iterate,
    Seek50,
    FillSync,
}

impl Workload {
    pub const ALL: [Workload; 9] = [
        Workload::FillSequential,
        Workload::FillRandom,
        Workload::ReadRandomSmallCache,
        Workload::ReadRandom,
        Workload::ReadMissing,
        Workload::Scan,
        Workload::Iterate,
        Workload::Seek50,
        Workload::FillSync,
    ];

    /// The name in tables, JSON and between driver and worker.
    pub fn name(self) -> &'static str {
        match self {
            Workload::FillSequential => "fill-sequential",
            Workload::FillRandom => "fill-random",
            Workload::ReadRandom => "read-random",
            Workload::ReadRandomSmallCache => "read-random-32MiB",
            Workload::ReadMissing => "read-missing",
            Workload::Scan => "scan-cursor",
            Workload::Iterate => "scan-iterator",
            Workload::Seek50 => "seek+50",
            Workload::FillSync => "fill-sync",
        }
    }

    /// The workload of this name.
    pub fn named(name: &str) -> Option<Workload> {
        Workload::ALL.into_iter().find(|workload| workload.name() == name)
    }
}

/// The key of an entry. Keys that are stored have even numbers, so that odd ones are missing but lie between them.
pub fn key(number: u64) -> Key {
    let mut key = [b'0'; KEY_BYTES];
    let mut rest = number;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// Values that differ and compress to about half: the first half is noise, the second one byte.
#[derive(Debug)]
pub struct Values(Vec<u8>);

impl Values {
    pub fn new() -> Values {
        let mut random = Random(0x5DEE_CE66);
        Values((0..1 << 20).map(|_| random.next() as u8).collect())
    }

    /// The value of an entry.
    pub fn of(&self, number: u64) -> [u8; VALUE_BYTES] {
        let mut value = [b'.'; VALUE_BYTES];
        let start = (number as usize).wrapping_mul(61) % (self.0.len() - VALUE_BYTES);
        value[..VALUE_BYTES / 2].copy_from_slice(&self.0[start..start + VALUE_BYTES / 2]);
        value
    }
}

/// A fixed sequence of numbers (splitmix64), the same for every engine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// 0 to `count` in an order that looks random.
pub fn shuffled(count: u64) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count as u32).collect();
    let mut random = Random(42);
    for i in (1..numbers.len()).rev() {
        numbers.swap(i, random.below(i as u64 + 1) as usize);
    }
    numbers
}
