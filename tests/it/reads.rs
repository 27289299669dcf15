//! What reading costs besides time, and that how files are read makes no difference to what is read.
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicIsize, Ordering};

use strongroom::options::StoreOptions;
use strongroom::{Error, LocalKms, Store, Table, TableOptions, Unlock};

use crate::world::{Dice, files_below};

/// The system's allocator, counting what each thread asks it for, and what all of them have.
struct Counting;

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });
static BYTES: AtomicIsize = AtomicIsize::new(0);

/// What the process has allocated and not freed, as its allocator rounds it.
pub fn allocated_bytes() -> isize {
    BYTES.load(Ordering::Relaxed)
}

/// As glibc does: eight bytes in front, in units of sixteen.
fn rounded(bytes: usize) -> isize {
    (bytes + 8).next_multiple_of(16).max(32) as isize
}

// SAFETY: everything is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        BYTES.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        BYTES.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread allocates in `scene`.
fn allocations(scene: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    scene();
    ALLOCATIONS.get() - before
}

fn open(dir: &Path, options: StoreOptions) -> Store {
    let keyring = dir.join("keyring");
    let unlock = || Unlock::key(|key| key.fill(7));
    let kms = if keyring.exists() { LocalKms::open(&keyring, unlock()) } else { LocalKms::create(&keyring, unlock()) };
    Store::builder(dir.join("store")).key_provider(kms.unwrap()).options(options).open_or_create().unwrap()
}

/// Made without an allocation, which would be counted.
fn key(mut i: u32) -> [u8; 12] {
    let mut key = *b"key 00000000";
    for digit in key.iter_mut().rev() {
        if i == 0 {
            break;
        }
        *digit += (i % 10) as u8;
        i /= 10;
    }
    key
}

/// A store whose entries lie in sorted tables: even numbers, with values of 20 bytes.
fn filled(dir: &Path, options: StoreOptions) -> (Store, Table) {
    let store = open(dir, options);
    let table = store.create_table("t", TableOptions::new()).unwrap();
    for i in 0..5000 {
        table.put(key(2 * i), [i as u8; 20]).unwrap();
    }
    store.flush().unwrap();
    store.compact().unwrap();
    (store, table)
}

#[test]
fn a_miss_a_small_hit_and_a_step_within_blocks_allocate_nothing() {
    // A failure makes every read wait for the allocator, and threads that read for each other.
    let dir = tempfile::tempdir().unwrap();
    let (_store, table) = filled(dir.path(), StoreOptions::default());
    // Everything is in the cache, and this thread is known to whoever knows threads.
    for i in 0..5000 {
        assert!(table.get(key(2 * i)).unwrap().is_some());
    }
    let missed = allocations(|| (0..5000).for_each(|i| assert!(table.get(key(2 * i + 1)).unwrap().is_none())));
    assert_eq!(missed, 0, "of 5000 misses");
    let hit = allocations(|| (0..5000).for_each(|i| assert!(table.get(key(2 * i)).unwrap().is_some())));
    assert_eq!(hit, 0, "of 5000 hits");

    let mut cursor = table.cursor().unwrap();
    assert!(cursor.first().unwrap().is_some());
    let walked = allocations(|| {
        let mut met = 1;
        while cursor.next().unwrap().is_some() {
            met += 1;
        }
        assert_eq!(met, 5000);
    });
    assert!(walked <= 2, "{walked} allocations in 5000 steps");
    let seeks = allocations(|| (0..5000).for_each(|i| assert!(cursor.seek(key(i)).unwrap().is_some())));
    assert!(seeks <= 2, "{seeks} allocations in 5000 seeks");
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything that is found with these options, or what kept it from being read.
fn contents(dir: &Path, options: StoreOptions) -> Result<Entries, String> {
    let store = open(dir, options);
    let read = || -> Result<Entries, Error> {
        let table = store.table("t")?;
        (0..10_000).step_by(97).try_for_each(|i| table.get(key(i)).map(drop))?;
        table.iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    };
    let outcome = read().map_err(|error| error.to_string());
    store.close().unwrap();
    outcome
}

#[test]
fn a_mapped_table_gives_the_same_entries_and_the_same_errors() {
    // A failure means that the setting decides whether damage is noticed.
    let dir = tempfile::tempdir().unwrap();
    let options = |map_tables| StoreOptions { map_tables, cache_bytes: 0, ..StoreOptions::default() };
    let (store, table) = filled(dir.path(), options(true));
    assert!(table.get(key(4)).unwrap().is_some());
    store.close().unwrap();
    drop((store, table));
    let whole = contents(dir.path(), options(false)).unwrap();
    assert_eq!(whole.len(), 5000);
    assert_eq!(contents(dir.path(), options(true)).unwrap(), whole);

    let tables = files_below(&dir.path().join("store/sst"));
    assert!(!tables.is_empty());
    let mut dice = Dice::new(7);
    for (path, image) in &tables {
        let path = dir.path().join("store/sst").join(path);
        for round in 0..12 {
            let mut damaged = image.clone();
            match round % 3 {
                0 => damaged.truncate(dice.below(image.len())),
                _ => damaged[dice.below(image.len())] ^= 1 << dice.below(8),
            }
            fs::write(&path, &damaged).unwrap();
            let (read, mapped) = (contents(dir.path(), options(false)), contents(dir.path(), options(true)));
            assert_eq!(read, mapped, "round {round}");
            assert!(read.is_err(), "round {round}");
        }
        fs::write(&path, image).unwrap();
    }
    assert_eq!(contents(dir.path(), options(true)).unwrap(), whole);
}
