//! What is run, and what an engine must be able to do for it.

use std::path::Path;

use crate::Result;
use crate::settings::{KEY_BYTES, VALUE_BYTES};

/// A key.
pub type Key = [u8; KEY_BYTES];

/// A value.
pub type Value = [u8; VALUE_BYTES];

/// A store with one table, of whatever engine.
pub trait Peer {
    /// Set a key, acknowledged once the operating system has it, or on the medium if the store was opened so.
    fn put(&self, key: &Key, value: &[u8]) -> Result<()>;
    /// Set keys, all or none.
    fn put_batch(&self, entries: &[(Key, Value)]) -> Result<()>;
    /// Bytes of a key's value.
    fn get(&self, key: &Key) -> Result<Option<usize>>;
    /// Walk everything in the way that costs least; entries and bytes met.
    fn scan(&self) -> Result<(u64, u64)>;
    /// Walk everything with an iterator of owned entries, if that is another way; entries and bytes met.
    fn iterate(&self) -> Result<(u64, u64)> {
        self.scan()
    }
    /// Go to `key` and on over so many entries; entries met.
    fn seek(&self, key: &Key, steps: usize) -> Result<usize>;
    /// Write what is in memory to where it stays, and return once background work has come to rest.
    fn settle(&self) -> Result<()>;
}

/// How to open a store of an engine.
pub type Open = dyn Fn(&Path, &Access) -> Result<Box<dyn Peer>>;

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub create: bool,
    pub cache_bytes: usize,
    /// Whether every `put` is on the medium before it returns.
    pub sync: bool,
}

/// The workloads, in the order in which they are run. Names as in `strongroom bench`, and db_bench.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    FillSeq,
    FillBatch,
    FillRandom,
    ReadRandomSmallCache,
    ReadRandom,
    ReadMissing,
    ReadSeq,
    Iterate,
    SeekRandom,
    Overwrite,
    FillSync,
}

impl Workload {
    pub const ALL: [Workload; 11] = [
        Workload::FillSeq,
        Workload::FillBatch,
        Workload::FillRandom,
        Workload::ReadRandomSmallCache,
        Workload::ReadRandom,
        Workload::ReadMissing,
        Workload::ReadSeq,
        Workload::Iterate,
        Workload::SeekRandom,
        Workload::Overwrite,
        Workload::FillSync,
    ];

    /// The name in tables, JSON and between driver and worker.
    pub fn name(self) -> &'static str {
        match self {
            Workload::FillSeq => "fillseq",
            Workload::FillBatch => "fillbatch",
            Workload::FillRandom => "fillrandom",
            Workload::ReadRandomSmallCache => "readrandom-32MiB",
            Workload::ReadRandom => "readrandom",
            Workload::ReadMissing => "readmissing",
            Workload::ReadSeq => "readseq",
            Workload::Iterate => "readseq-iterator",
            Workload::SeekRandom => "seekrandom",
            Workload::Overwrite => "overwrite",
            Workload::FillSync => "fillsync",
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
    pub fn of(&self, number: u64) -> Value {
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
