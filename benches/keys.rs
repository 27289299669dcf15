//! What the life of keys costs: a number each, on a real file system, with `LocalKms` behind a counter.
//!
//! ```text
//! cargo bench --bench keys                         all of it, small
//! cargo bench --bench keys -- open                 one of it
//! STRONGROOM_BENCH_TABLES=100000 cargo bench --bench keys -- open
//! ```
//! Printed are times of this machine in this run and numbers of provider calls; the latter are the same everywhere. Data lies in the temporary
//! directory (`TMPDIR`) and is removed afterwards.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "what is measured is time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use strongroom::keys::{
    CreateGrantRequest, DecryptRequest, DecryptedDataKey, DescribeKeyRequest, EndGrantRequest, EngineKeyRequest,
    GenerateDataKeyRequest, GeneratedDataKey, Grant, KeyDescription, ProviderDescription, ProviderResult,
};
use strongroom::{Builder, KeyProvider, LocalKms, Store, TableOptions, Unlock};
use tempfile::TempDir;

/// Tables are made in batches of this size.
const BATCH: usize = 10_000;

/// A provider that counts what it is asked.
#[derive(Debug)]
struct Counting {
    kms: LocalKms,
    calls: AtomicU64,
}

impl Counting {
    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn counted<T>(&self, answer: ProviderResult<T>) -> ProviderResult<T> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        answer
    }
}

impl KeyProvider for Counting {
    fn describe(&self) -> ProviderDescription {
        self.kms.describe()
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.counted(self.kms.describe_key(request))
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        self.counted(self.kms.generate_data_key(request))
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        self.counted(self.kms.decrypt(request))
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.counted(self.kms.managed_key(request))
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.counted(self.kms.owned_key(request))
    }

    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        self.counted(self.kms.create_grant(request))
    }

    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.counted(self.kms.retire_grant(request))
    }
}

/// A folder with a keyring, and a provider over it.
struct Bench {
    folder: TempDir,
    provider: Arc<Counting>,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let kms = LocalKms::create(folder.path().join("keyring"), Unlock::key(|key| key.fill(7))).expect("a keyring");
        Bench { folder, provider: Arc::new(Counting { kms, calls: AtomicU64::new(0) }) }
    }

    fn builder(&self) -> Builder {
        Store::builder(self.folder.path().join("data")).shared_key_provider(self.provider.clone())
    }
}

fn tables() -> usize {
    let said = std::env::var("STRONGROOM_BENCH_TABLES").ok().and_then(|number| number.parse().ok());
    said.unwrap_or(10_000)
}

/// Opening a store asks the provider for the system key alone, however many tables there are.
fn open() {
    let (bench, count) = (Bench::new(), tables());
    let store = bench.builder().create().expect("a store");
    let began = Instant::now();
    for batch in (0..count).collect::<Vec<_>>().chunks(BATCH) {
        let names: Vec<String> = batch.iter().map(|number| format!("table {number}")).collect();
        let drafts: Vec<_> = names.iter().map(|name| (name.as_str(), TableOptions::new())).collect();
        store.create_tables(&drafts).expect("tables");
    }
    println!(
        "create {count} tables: {:.2} s, {} provider calls",
        began.elapsed().as_secs_f64(),
        bench.provider.calls()
    );
    store.close().expect("a clean close");
    let (before, began) = (bench.provider.calls(), Instant::now());
    let store = bench.builder().open().expect("the store");
    let took = began.elapsed();
    println!("open {count} tables: {:.3} s, {} provider calls", took.as_secs_f64(), bench.provider.calls() - before);
    store.close().expect("a clean close");
}

const BENCHES: [(&str, fn()); 1] = [("open", open)];

fn main() {
    // What cargo passes along for benchmarks of its own kind begins with dashes.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, bench) in BENCHES {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            bench();
        }
    }
}
