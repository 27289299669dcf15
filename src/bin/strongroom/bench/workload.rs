//! What can be run: the workloads, and the keys, values and random choices that they are made of.
//!
//! ```text
//! number   of an entry, 0 to entries - 1
//! key      2 x number in decimal digits, filled up with zeros: odd numbers are missing keys that lie between present ones
//! value    number (8 bytes, LE; what is read is checked against it), noise to the half, dots to the end
//! ```
//! Everything follows from the seed, so that every suite and every run sees the same operations in the same order.

use clap::ValueEnum;

/// Names as db_bench has them, and the core workloads of YCSB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Workload {
    /// Write all entries in key order, into an empty table
    Fillseq,
    /// Write all entries in random order, into an empty table
    Fillrandom,
    /// As fillseq, in batches of 100
    Fillbatch,
    /// Write random entries that are there
    Overwrite,
    /// Read random entries that are there
    Readrandom,
    /// Read keys that are not there
    Readmissing,
    /// Walk the table with a cursor
    Readseq,
    /// Go to a random entry and read the next 50
    Seekrandom,
    /// As readrandom, while one more thread overwrites
    Readwhilewriting,
    /// As fillrandom, each write on the medium before the next; a thousandth of the entries, in a table of their own
    Fillsync,
    /// As fillrandom, over many tables of their own: each entry goes to another one
    Filltables,
    /// Half reads, half updates; zipfian
    YcsbA,
    /// 95 % reads, 5 % updates; zipfian
    YcsbB,
    /// Reads; zipfian
    YcsbC,
    /// 95 % reads of what is new, 5 % inserts
    YcsbD,
    /// 95 % scans of 1 to 100 entries, 5 % inserts; zipfian
    YcsbE,
    /// Half reads, half read-modify-writes; zipfian
    YcsbF,
}

/// Entries of a batch of `fillbatch`, and of a stretch of `readseq` that is timed at once.
pub const BATCH: u64 = 100;
/// Entries behind the one that `seekrandom` goes to.
pub const STEPS: u64 = 50;
/// Longest scan of `ycsb-e`.
pub const SCAN_MAX: u64 = 100;

impl Workload {
    /// As it is typed and recorded.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it writes the table that the others use.
    pub fn fills(self) -> bool {
        matches!(self, Workload::Fillseq | Workload::Fillrandom | Workload::Fillbatch)
    }

    /// Whether background work follows from it, which is then waited for.
    pub fn writes(self) -> bool {
        use Workload::*;
        !matches!(self, Readrandom | Readmissing | Readseq | Seekrandom | YcsbC)
    }

    /// Whether it writes into a store of its own, which is removed afterwards.
    pub fn is_apart(self) -> bool {
        matches!(self, Workload::Fillsync | Workload::Filltables)
    }

    /// How many operations it has, unless somebody says so.
    pub fn operations(self, entries: u64) -> u64 {
        use Workload::*;
        match self {
            Fillsync => (entries / 1000).max(1),
            Seekrandom | YcsbE => (entries / 20).max(1),
            _ => entries,
        }
    }

    /// What one value of its latency is the time of, in entries or operations.
    pub fn step(self) -> u64 {
        if matches!(self, Workload::Fillbatch | Workload::Readseq) { BATCH } else { 1 }
    }
}

/// Write the key with this number.
pub fn write_key(key: &mut [u8], number: u64) {
    let mut rest = number;
    for digit in key.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Noise that all values take their parts from.
pub struct Noise(Vec<u8>);

impl Noise {
    pub fn new(seed: u64, value_bytes: usize) -> Noise {
        let mut random = Random::new(seed);
        Noise((0..value_bytes + (1 << 20)).map(|_| random.next() as u8).collect())
    }

    /// Write the value of an entry over another one of the same size, `version` being how often it was written before.
    pub fn write_value(&self, value: &mut [u8], number: u64, version: u64) {
        let half = value.len() / 2;
        let start = (number ^ version).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - 20);
        value[..half].copy_from_slice(&self.0[start as usize..][..half]);
        let mark = number.to_le_bytes();
        let len = mark.len().min(value.len());
        value[..len].copy_from_slice(&mark[..len]);
    }
}

/// Whether this can be the value of that entry.
pub fn is_value(value: &[u8], number: u64, value_bytes: usize) -> bool {
    let mark = number.to_le_bytes();
    let len = mark.len().min(value_bytes);
    value.len() == value_bytes && value[..len] == mark[..len]
}

/// A fixed sequence of numbers (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A number from 0 to less than 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn mix(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// All numbers below `count`, each once, in an order that looks random and takes no memory.
#[derive(Clone, Copy)]
pub struct Shuffle {
    count: u64,
    mask: u64,
    shift: u32,
    seed: u64,
}

impl Shuffle {
    pub fn new(count: u64, seed: u64) -> Shuffle {
        let bits = (64 - (count - 1).leading_zeros()).max(2);
        Shuffle { count, mask: u64::MAX >> (64 - bits), shift: bits.div_ceil(2), seed: mix(seed) }
    }

    /// The number at this place of the order.
    pub fn at(&self, place: u64) -> u64 {
        // Each line maps the numbers below a power of two onto themselves; what lands behind the count goes around again, and
        // since that is at most every second one, it comes back soon.
        let mut number = place;
        loop {
            for factor in [0x9E37_79B9_7F4A_7C15_u64, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB] {
                number = number.wrapping_mul(factor).wrapping_add(self.seed) & self.mask;
                number ^= number >> self.shift;
            }
            if number < self.count {
                return number;
            }
        }
    }
}

/// Ranks from 0 that become rarer as YCSB's do: rank r with a probability that goes with 1 / (r + 1)^0.99. By the approximation of
/// Gray and others, "Quickly generating billion-record synthetic databases" (1994), which YCSB uses, too.
#[derive(Clone, Copy)]
pub struct Zipf {
    count: f64,
    zeta: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    pub fn new(count: u64) -> Zipf {
        let zeta = zeta(count);
        let count = count as f64;
        let eta = (1.0 - (2.0 / count).powf(1.0 - THETA)) / (1.0 - (1.0 + 0.5_f64.powf(THETA)) / zeta);
        Zipf { count, zeta, eta }
    }

    pub fn rank(&self, random: &mut Random) -> u64 {
        let unit = random.unit();
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            0
        } else if scaled < 1.0 + 0.5_f64.powf(THETA) {
            1.min(self.count as u64 - 1)
        } else {
            let rank = self.count * (self.eta * unit - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
            (rank as u64).min(self.count as u64 - 1)
        }
    }

    /// A number below `count` whose popularity says nothing about its place: the popular ones lie all over the table.
    pub fn scrambled(&self, random: &mut Random) -> u64 {
        mix(self.rank(random).wrapping_add(0x5DEE_CE66)) % self.count as u64
    }
}

/// The sum of 1 / i^0.99 for i from 1 to `count`; behind the first million terms by the integral, which is exact to ten digits there.
fn zeta(count: u64) -> f64 {
    const SUMMED: u64 = 1_000_000;
    let sum: f64 = (1..=count.min(SUMMED)).map(|i| (i as f64).powf(-THETA)).sum();
    let antiderivative = |x: f64| x.powf(1.0 - THETA) / (1.0 - THETA);
    if count <= SUMMED { sum } else { sum + antiderivative(count as f64 + 0.5) - antiderivative(SUMMED as f64 + 0.5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a fill would leave holes, and readrandom would look for what is not there.
    #[test]
    fn a_shuffle_meets_every_number_once_and_in_no_order() {
        for count in [1, 2, 3, 10, 1000, 1024, 1025, 65_537] {
            let shuffle = Shuffle::new(count, 7);
            let mut met: Vec<u64> = (0..count).map(|place| shuffle.at(place)).collect();
            if count > 1000 {
                let rising = met.windows(2).filter(|pair| pair[0] < pair[1]).count() as f64 / count as f64;
                assert!((0.4..0.6).contains(&rising), "{count}: {rising}");
            }
            met.sort_unstable();
            assert!(met.into_iter().eq(0..count), "{count}");
        }
    }

    /// Otherwise the figures of YCSB's workloads could not be compared with anybody else's.
    #[test]
    fn ranks_are_as_frequent_as_the_zipfian_law_says() {
        let (count, draws) = (1000, 200_000);
        let (zipf, mut random) = (Zipf::new(count), Random::new(1));
        let mut met = vec![0_u32; count as usize];
        for _ in 0..draws {
            met[zipf.rank(&mut random) as usize] += 1;
        }
        let expected = |rank: u64| f64::from(draws) * ((rank + 1) as f64).powf(-THETA) / zeta(count);
        for (rank, within) in [(0, 0.03), (1, 0.03), (10, 0.25), (100, 0.25)] {
            let ratio = f64::from(met[rank as usize]) / expected(rank);
            assert!((ratio - 1.0).abs() < within, "{rank}: {ratio}");
        }
        assert!((zeta(2_000_000) / (1..=2_000_000).map(|i| f64::from(i).powf(-THETA)).sum::<f64>() - 1.0).abs() < 1e-9);
        for count in [1, 2, 3] {
            let zipf = Zipf::new(count);
            assert!((0..1000).all(|_| zipf.rank(&mut random) < count && zipf.scrambled(&mut random) < count));
        }
    }

    #[test]
    fn keys_sort_as_their_numbers_and_values_name_their_entry() {
        let key = |number| {
            let mut key = [0; 8];
            write_key(&mut key, number);
            key
        };
        assert_eq!(&key(1234), b"00001234");
        assert!(key(9) < key(10) && key(10) < key(11));
        for bytes in [0, 1, 8, 9, 100] {
            let noise = Noise::new(3, bytes);
            let mut value = vec![b'.'; bytes];
            noise.write_value(&mut value, 7, 1);
            assert!(is_value(&value, 7, bytes) && !is_value(&value, 7, bytes + 1));
            assert!(bytes == 0 || !is_value(&value, 8, bytes));
        }
    }
}
