//! What a commit allocates. A binary of its own, because it counts all allocations of its process.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests prepare files as a user would")]
#![allow(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom::options::{Compression, StoreOptions, TableOptions};
use strongroom::{LocalKms, Store, Unlock};

struct Counting;

thread_local! {
    /// Allocations of this thread.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Bytes of the whole process, now and at most.
static BYTES: AtomicUsize = AtomicUsize::new(0);
static BYTES_MAX: AtomicUsize = AtomicUsize::new(0);

fn allocated(bytes: usize) {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    let now = BYTES.fetch_add(bytes, Ordering::SeqCst) + bytes;
    BYTES_MAX.fetch_max(now, Ordering::SeqCst);
}

// SAFETY: every call is handed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: the caller keeps the promises that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        allocated(bytes);
        BYTES.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test at a time: what is counted is the whole process's.
static ALONE: Mutex<()> = Mutex::new(());

struct World {
    store: Store,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(options: StoreOptions) -> World {
        let folder = tempfile::tempdir().unwrap();
        let kms = LocalKms::create(folder.path().join("keyring"), Unlock::key(|key| key.fill(7))).unwrap();
        let store = Store::builder(folder.path().join("data")).key_provider(kms).options(options).create().unwrap();
        World { store, _folder: folder }
    }
}

/// A budget far below the values.
fn small_options() -> StoreOptions {
    StoreOptions { write_budget_bytes: 8 << 20, memtable_bytes: 4 << 20, ..StoreOptions::default() }
}

#[test]
fn a_put_to_one_table_allocates_nothing_but_the_memtables_memory() {
    // An allocation costs as much as a tenth of a put, and one that waits for another thread's lock much more.
    let _alone = ALONE.lock();
    let world = World::new(StoreOptions::default());
    let table = world.store.create_table("t", TableOptions::new()).unwrap();
    let put = |number: u64| table.put(number.to_be_bytes(), [number as u8; 100]).unwrap();
    // Chunks of the memtable double up to a MiB, and buffers grow to what they need.
    (0..20_000).for_each(put);
    let allocations = || ALLOCATIONS.with(Cell::get);
    let with_allocations = (20_000..22_000u64)
        .filter(|number| {
            let before = allocations();
            put(*number);
            allocations() > before
        })
        .count();
    // Every put goes the same way but for the memtable, which needs a node for every dozen or so of entries, and a chunk now and then.
    assert!(with_allocations <= 200, "{with_allocations} of 2,000 puts allocated something");
}

#[test]
fn a_large_put_takes_one_copy_besides_the_callers() {
    // With a copy for the log and one for the queue, a value of 512 MiB would take 2 GiB, and the process with it.
    let _alone = ALONE.lock();
    const VALUE_BYTES: usize = 64 << 20;
    let world = World::new(small_options());
    let table = world.store.create_table("t", TableOptions::new().compression(Compression::None)).unwrap();
    let value = vec![0x5a; VALUE_BYTES];
    table.put(b"small", b"value").unwrap();
    for round in 0..3u8 {
        BYTES_MAX.store(BYTES.load(Ordering::SeqCst), Ordering::SeqCst);
        let before = BYTES.load(Ordering::SeqCst);
        table.put([round], &value).unwrap();
        let more = BYTES_MAX.load(Ordering::SeqCst).saturating_sub(before);
        // The memtable's copy; from the second round on, its predecessor was flushed before this one was copied. And buffers:
        // of the log two pieces, of the flush a few MiB.
        assert!(more <= VALUE_BYTES + (24 << 20), "round {round}: {} MiB more", more >> 20);
    }
    world.store.flush().unwrap();
    assert_eq!(table.get([2]).unwrap().unwrap().len(), VALUE_BYTES);
}

#[test]
fn large_puts_that_come_at_once_wait_for_their_room() {
    // Each was below the budget when it looked: together they would have held all of their values in memory.
    let _alone = ALONE.lock();
    const VALUE_BYTES: usize = 32 << 20;
    let world = World::new(small_options());
    let table = world.store.create_table("t", TableOptions::new().compression(Compression::None)).unwrap();
    let value = vec![0x5a; VALUE_BYTES];
    BYTES_MAX.store(BYTES.load(Ordering::SeqCst), Ordering::SeqCst);
    let before = BYTES.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (table, value) = (&table, &value);
            scope.spawn(move || table.put([thread], value).unwrap());
        }
    });
    let more = BYTES_MAX.load(Ordering::SeqCst).saturating_sub(before);
    // One, and perhaps one that has been flushed and is just being wiped.
    assert!(more <= 2 * VALUE_BYTES + (24 << 20), "{} MiB for four values of 32", more >> 20);
    for thread in 0..4u8 {
        assert_eq!(table.get([thread]).unwrap().unwrap().len(), VALUE_BYTES);
    }
}

#[test]
fn a_large_value_comes_back_from_the_log_with_two_copies() {
    // A store that a machine could write and cannot open is lost to it.
    let _alone = ALONE.lock();
    const VALUE_BYTES: usize = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let kms = LocalKms::create(folder.path().join("keyring"), Unlock::key(|key| key.fill(7))).unwrap();
    let options = StoreOptions { memtable_bytes: 256 << 20, write_budget_bytes: 512 << 20, ..StoreOptions::default() };
    let open = || Store::builder(folder.path().join("data")).key_provider(kms.clone()).options(options.clone());
    let store = open().create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put(b"k", vec![0x5a; VALUE_BYTES]).unwrap();
    store.close().unwrap();
    drop((store, table));
    BYTES_MAX.store(BYTES.load(Ordering::SeqCst), Ordering::SeqCst);
    let before = BYTES.load(Ordering::SeqCst);
    let store = open().open().unwrap();
    assert_eq!(store.table("t").unwrap().get(b"k").unwrap().unwrap().len(), VALUE_BYTES);
    let more = BYTES_MAX.load(Ordering::SeqCst).saturating_sub(before);
    assert!(more <= 2 * VALUE_BYTES + (16 << 20), "{} MiB", more >> 20);
}

/// `cargo test --release --test allocations -- --ignored --nocapture`: figures for `docs/BENCHMARKS.md`.
#[test]
#[ignore = "takes 1 GiB of memory; prints figures"]
fn measure_the_memory_of_the_largest_put() {
    let _alone = ALONE.lock();
    const VALUE_BYTES: usize = 512 << 20;
    let world = World::new(StoreOptions::default());
    let table = world.store.create_table("t", TableOptions::new()).unwrap();
    let value = vec![0x5a; VALUE_BYTES];
    let show = |what: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
        println!("{what}: {} MiB allocated at most, {resident}", BYTES_MAX.load(Ordering::SeqCst) >> 20);
    };
    show("before the put, with the value");
    table.put(b"largest", &value).unwrap();
    show("after the put");
    world.store.flush().unwrap();
    show("after the flush");
}
