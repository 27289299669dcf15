//! What the engine's operations cost through its public face: entries of 16 + 100 bytes on a real file system.
//!
//! ```text
//! cargo bench --bench engine                                    both ciphers, small
//! STRONGROOM_BENCH_ENTRIES=2000000 cargo bench --bench engine   as many entries as the published figures have
//! RUSTFLAGS="--cfg strongroom_plaintext_baseline" cargo bench --bench engine      without encryption as well
//! ```
//! Fills are timed until the last entry is acknowledged; flushes and compactions that are still under way then are not waited
//! for, but those before slow the fill down. Data lies in the temporary directory (`TMPDIR`) and is removed afterwards. For other
//! engines beside this one, and for figures that are interleaved, see `benches/peers`.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "what is measured is time")]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use strongroom::{Builder, Cipher, Durability, LocalKms, Store, StoreOptions, Table, TableOptions, Unlock};
use tempfile::TempDir;

const ENTRIES: u32 = 50_000;
/// Entries of a fill in which each is synced.
const SYNCED: u32 = 200;
const WARM_CACHE_BYTES: usize = 1 << 30;
const SMALL_CACHE_BYTES: usize = 32 << 20;

/// How a store is sealed.
#[derive(Clone, Copy)]
enum Suite {
    Sealed(Cipher),
    #[cfg(strongroom_plaintext_baseline)]
    None,
}

const SUITES: &[(&str, Suite)] = &[
    ("aes-256-gcm", Suite::Sealed(Cipher::Aes256Gcm)),
    ("chacha20-poly1305", Suite::Sealed(Cipher::ChaCha20Poly1305)),
    #[cfg(strongroom_plaintext_baseline)]
    ("none", Suite::None),
];

impl Suite {
    fn builder(self, builder: Builder) -> Builder {
        match self {
            Suite::Sealed(_) => builder,
            #[cfg(strongroom_plaintext_baseline)]
            Suite::None => builder.plaintext_baseline(),
        }
    }

    fn table(self) -> TableOptions {
        match self {
            Suite::Sealed(cipher) => TableOptions::new().cipher(cipher),
            #[cfg(strongroom_plaintext_baseline)]
            Suite::None => TableOptions::new(),
        }
    }
}

fn builder(folder: &Path, suite: Suite, cache_bytes: usize) -> Builder {
    let keyring = folder.join("keyring");
    let unlock = Unlock::key(|key| key.fill(7));
    let kms = if keyring.exists() { LocalKms::open(keyring, unlock) } else { LocalKms::create(keyring, unlock) };
    let options = StoreOptions { cache_bytes, ..StoreOptions::default() };
    suite.builder(Store::builder(folder.join("data")).key_provider(kms.expect("a keyring")).options(options))
}

/// A new store, and the directory that it lies in.
fn create(suite: Suite) -> (TempDir, Store, Table) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = builder(folder.path(), suite, WARM_CACHE_BYTES).create().expect("a new store");
    let table = store.create_table("entries", suite.table()).expect("a new table");
    (folder, store, table)
}

/// Keys that are stored have even numbers, so that odd ones are missing but lie between them.
fn key(number: u32) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[8..].copy_from_slice(&u64::from(number).to_be_bytes());
    key
}

/// Half noise, half not, so that it compresses to about half.
fn value(number: u32) -> [u8; 100] {
    let mut value = [b'.'; 100];
    StdRng::seed_from_u64(u64::from(number)).fill(&mut value[..50]);
    value
}

struct Entries {
    values: Vec<[u8; 100]>,
    /// All of their numbers, in an order that looks random.
    shuffled: Vec<u32>,
}

impl Entries {
    fn new() -> Entries {
        let count = std::env::var("STRONGROOM_BENCH_ENTRIES").ok().and_then(|count| count.parse().ok());
        let count: u32 = count.unwrap_or(ENTRIES);
        let mut shuffled: Vec<u32> = (0..count).collect();
        shuffled.shuffle(&mut StdRng::seed_from_u64(1));
        Entries { values: (0..count).map(value).collect(), shuffled }
    }

    fn count(&self) -> u64 {
        self.shuffled.len() as u64
    }

    fn put(&self, table: &Table, number: u32, durability: Durability) {
        table.put_with(key(2 * number), self.values[number as usize], durability).expect("room");
    }

    /// How long it takes to fill a new store, so many times over.
    fn fill(&self, suite: Suite, times: u64, numbers: impl Iterator<Item = u32> + Clone, sync: Durability) -> Duration {
        (0..times)
            .map(|_| {
                let (_folder, store, table) = create(suite);
                let began = Instant::now();
                numbers.clone().for_each(|number| self.put(&table, number, sync));
                let took = began.elapsed();
                store.close().expect("a good end");
                took
            })
            .sum()
    }
}

fn fills(criterion: &mut Criterion) {
    let entries = Entries::new();
    let count = entries.count() as u32;
    for &(name, suite) in SUITES {
        let mut group = criterion.benchmark_group(format!("fill {name}"));
        group.sample_size(10).throughput(Throughput::Elements(entries.count()));
        group.bench_function("sequential", |bencher| {
            bencher.iter_custom(|times| entries.fill(suite, times, 0..count, Durability::Buffered));
        });
        group.bench_function("random", |bencher| {
            let numbers = entries.shuffled.iter().copied();
            bencher.iter_custom(|times| entries.fill(suite, times, numbers.clone(), Durability::Buffered));
        });
        group.throughput(Throughput::Elements(u64::from(SYNCED.min(count))));
        group.bench_function("with sync", |bencher| {
            let numbers = entries.shuffled.iter().copied().take(SYNCED as usize);
            bencher.iter_custom(|times| entries.fill(suite, times, numbers.clone(), Durability::Sync));
        });
        group.finish();
    }
}

fn reads(criterion: &mut Criterion) {
    let entries = Entries::new();
    let count = entries.count() as u32;
    for &(name, suite) in SUITES {
        let (folder, store, table) = create(suite);
        entries.shuffled.iter().for_each(|&number| entries.put(&table, number, Durability::Buffered));
        store.flush().and_then(|()| store.compact()).and_then(|()| store.close()).expect("a filled store");
        drop((store, table));

        let mut group = criterion.benchmark_group(format!("read {name}"));
        group.sample_size(20);
        let mut random = StdRng::seed_from_u64(2);
        for (cache, cache_bytes) in [("32 MiB cache", SMALL_CACHE_BYTES), ("warm cache", WARM_CACHE_BYTES)] {
            let store = builder(folder.path(), suite, cache_bytes).open().expect("the filled store");
            let table = store.table("entries").expect("the filled table");
            assert_eq!(table.iter().count(), count as usize);
            group.throughput(Throughput::Elements(1));
            group.bench_function(format!("random, {cache}"), |bencher| {
                bencher.iter(|| assert!(table.get(key(2 * random.random_range(0..count))).expect("a read").is_some()));
            });
            if cache_bytes == SMALL_CACHE_BYTES {
                store.close().expect("a good end");
                continue;
            }
            group.bench_function("missing", |bencher| {
                let mut missing = || table.get(key(2 * random.random_range(0..count) + 1)).expect("a read");
                bencher.iter(|| assert!(missing().is_none()));
            });
            group.bench_function("seek and next 50", |bencher| {
                bencher.iter(|| {
                    let mut cursor = table.cursor().expect("a cursor");
                    let mut entry = cursor.seek(key(2 * random.random_range(0..count))).expect("a read");
                    for _ in 0..50 {
                        black_box(&entry);
                        entry = cursor.next().expect("a read");
                    }
                });
            });
            group.sample_size(10).throughput(Throughput::Elements(entries.count()));
            group.bench_function("scan, cursor", |bencher| {
                bencher.iter(|| {
                    let mut cursor = table.cursor().expect("a cursor");
                    let mut met = 0;
                    while let Some(entry) = cursor.next().expect("a read") {
                        black_box(entry);
                        met += 1;
                    }
                    assert_eq!(met, count);
                });
            });
            group.bench_function("scan, iterator", |bencher| {
                bencher.iter(|| {
                    let met = table.iter().fold(0, |met, entry| {
                        black_box(entry.expect("a read"));
                        met + 1
                    });
                    assert_eq!(met, count as usize);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, fills, reads);
criterion_main!(benches);
