//! What an insert and a lookup in a memtable cost: entries of 16 + 100 bytes, up to 100,000 of them.
//!
//! The memtable is no public interface, so its source is compiled in here, with the few files that it rests on.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "sources of the library, of which a part is measured")]

#[path = "../src/cursor.rs"]
mod cursor;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/memtable/mod.rs"]
mod memtable;
#[path = "../src/sync.rs"]
mod sync;
#[path = "../src/types.rs"]
mod types;
#[path = "../src/value.rs"]
mod value;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use cursor::Cursor;
use error::Error;
use memtable::Memtable;
use types::{Kind, Seq, Trailer};

const ENTRIES: u64 = 100_000;

fn key(i: u64, rising: bool) -> [u8; 16] {
    let scattered = if rising { i } else { i.wrapping_mul(0x9E37_79B9_7F4A_7C15) };
    let mut key = [b'0'; 16];
    key[..8].copy_from_slice(&scattered.to_be_bytes());
    key
}

fn filled(keys: &[[u8; 16]]) -> Memtable {
    let table = Memtable::new();
    for (i, key) in keys.iter().enumerate() {
        let seq = Seq::new(i as u64 + 1).unwrap_or(Seq::MAX);
        table.insert(key, Trailer::new(seq, Kind::Put), &[b'v'; 100]).expect("room");
    }
    table
}

fn memtable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memtable");
    group.throughput(Throughput::Elements(ENTRIES)).sample_size(10);
    for (name, rising) in [("random", false), ("rising", true)] {
        let keys: Vec<[u8; 16]> = (0..ENTRIES).map(|i| key(i, rising)).collect();
        group.bench_function(format!("insert {name}"), |bencher| {
            bencher.iter_batched(|| (), |()| filled(&keys), BatchSize::PerIteration);
        });
        let table = Arc::new(filled(&keys));
        group.bench_function(format!("get {name}"), |bencher| {
            bencher.iter(|| keys.iter().for_each(|key| assert!(black_box(table.get(key, Seq::MAX)).is_some())));
        });
        group.bench_function(format!("scan {name}"), |bencher| {
            bencher.iter(|| {
                let mut cursor = table.cursor();
                cursor.seek_to_first().expect("in memory");
                let mut bytes = 0;
                while cursor.valid() {
                    bytes += cursor.key().len() + cursor.value_ref().map_or(0, <[u8]>::len);
                    cursor.next().expect("in memory");
                }
                black_box(bytes)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, memtable);
criterion_main!(benches);
