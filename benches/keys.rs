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
use std::time::{Duration, Instant};

use strongroom::keys::{
    CreateGrantRequest, DecryptRequest, DecryptedDataKey, DescribeKeyRequest, EndGrantRequest, EngineKeyRequest,
    GenerateDataKeyRequest, GeneratedDataKey, Grant, KeyDescription, ProviderDescription, ProviderResult,
};
use strongroom::{Builder, KeyProvider, LocalKms, Store, StoreOptions, TableOptions, Unlock};
use tempfile::TempDir;

/// Tables are made in batches of this size.
const BATCH: usize = 10_000;

/// A provider that counts what it is asked.
#[derive(Debug)]
struct Counting {
    kms: LocalKms,
    calls: AtomicU64,
    /// How long an unwrap takes, in milliseconds.
    delay_ms: AtomicU64,
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
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed)));
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
        Bench { folder, provider: Arc::new(Counting { kms, calls: AtomicU64::new(0), delay_ms: AtomicU64::new(0) }) }
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

/// What a provider that takes 50 ms costs: the first access, and then nobody, because permits are renewed in the background.
fn access() {
    const PERMIT: Duration = Duration::from_secs(2);
    let options = StoreOptions { permit: PERMIT, ..StoreOptions::default() };
    let bench = Bench::new();
    let store = bench.builder().create().expect("a store");
    let table = store.create_table("entries", TableOptions::new()).expect("a table");
    (0..10_000_u32).for_each(|number| table.put(number.to_be_bytes(), [7; 100]).expect("room"));
    store.close().expect("a clean end");
    let store = bench.builder().options(options).open().expect("the store");
    let table = store.table("entries").expect("the table");
    bench.provider.delay_ms.store(50, Ordering::Relaxed);

    let calls = bench.provider.calls();
    let began = Instant::now();
    table.get(1_u32.to_be_bytes()).expect("an answer");
    println!("access: the first one with a provider that takes 50 ms  {:>9.1} ms", began.elapsed().as_secs_f64() * 1e3);

    let (began, mut reads, mut worst) = (Instant::now(), 0_u64, Duration::ZERO);
    let mut slow = [0_u64; 3];
    while began.elapsed() < 5 * PERMIT {
        for _ in 0..100 {
            let one = Instant::now();
            table.get(((reads % 10_000) as u32).to_be_bytes()).expect("an answer");
            let took = one.elapsed();
            worst = worst.max(took);
            for (count, limit_ms) in slow.iter_mut().zip([1, 10, 50]) {
                *count += u64::from(took >= Duration::from_millis(limit_ms));
            }
            reads += 1;
        }
    }
    let asked = bench.provider.calls() - calls;
    println!(
        "access: reads during {} s of permits of {} s           {reads:>9}",
        5 * PERMIT.as_secs(),
        PERMIT.as_secs()
    );
    println!("access: provider calls for them                         {asked:>9}");
    println!("access: provider calls per million reads                {:>9.2}", asked as f64 * 1e6 / reads as f64);
    // Under traffic a permit of five minutes is renewed every 285 seconds.
    let at_five_minutes = 1e6 / (reads as f64 / (5.0 * PERMIT.as_secs_f64()) * 285.0);
    println!("access:   the same with permits of 5 minutes            {at_five_minutes:>9.4}");
    println!("access: slowest read, renewals included                 {:>9.3} ms", worst.as_secs_f64() * 1e3);
    println!(
        "access: reads over 1, 10, 50 ms                         {:>9}",
        format!("{} {} {}", slow[0], slow[1], slow[2])
    );
}

const BENCHES: [(&str, fn()); 2] = [("open", open), ("access", access)];

fn main() {
    // What cargo passes along for benchmarks of its own kind begins with dashes.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, bench) in BENCHES {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            bench();
        }
    }
}
