//! Key pages: memory that is left out of core dumps, kept off the swap where the limit allows, and gone in a forked child.
//!
//! ```text
//! chunk   16 pages of 4 KiB, mapped at once and never given back
//! page    ┌────────┬────────┬────────┬────────┬ ─ ─ ─ ┬────────┐
//!         │ header │ slot 0 │ slot 1 │ slot 2 │       │        │     cells of 64 bytes; a slot is one or more of them,
//!         └────────┴────────┴────────┴────────┴ ─ ─ ─ ┴────────┘     as many in every slot of a page
//!          alive    a Strongbox each, zeros when free
//!          taken
//! ```
//! An allocator of its own, because the ordinary heap can promise none of this: its pages hold everybody's data, so that excluding them
//! from dumps or locking them would take all of it along, and what is freed there is handed on as it is.
//!
//! - **Core dumps**: `MADV_DONTDUMP`. Linux alone can do that.
//! - **Swap**: `mlock`, until `RLIMIT_MEMLOCK` is used up. What is beyond it works all the same; [`KeyMemory`] says how much that is.
//! - **Fork**: `MADV_WIPEONFORK`. A child finds zeros where keys were, in the header too, and a [`Strongbox`] that finds its page
//!   so does not open: a key of zeros that somebody could seal with would be worse than a key too many. Where the kernel has no such
//!   advice the child inherits the keys, and only the calls of the store and of the keyring are refused to it.
//! - **Freed**: a slot is zeros before anybody else gets it, whatever its type did about that itself.
//!
//! All of it is best effort, and no failure here keeps anybody from working: a kernel without an advice is not told of, and
//! without `mmap` (and under Miri) the pages come from the ordinary heap.
//!
//! The pages are one per process, like the heap that they stand beside: keys are made where nothing is at hand but the
//! key, and pages of every store's own would use up the limit with what is empty in them.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::optimization_barrier;

const CELL_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
/// A multiple of every page size there is, and what `RLIMIT_MEMLOCK` was by default before Linux 5.16.
const CHUNK_BYTES: usize = 64 << 10;
/// Cells of a page behind its header.
const CELLS_PER_PAGE: usize = PAGE_BYTES / CELL_BYTES - 1;
/// In a header whose page was not wiped by a fork.
const ALIVE: u64 = u64::from_le_bytes(*b"key page");

/// How much memory of this process is set apart for keys, and how well it is protected: [`KeyMemory::now`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct KeyMemory {
    /// All of it. Never given back, and used again by later keys.
    pub bytes: u64,
    /// What the kernel keeps off the swap. Less than `bytes` means that `RLIMIT_MEMLOCK` is too low for the number of keys.
    pub locked_bytes: u64,
    /// What the kernel leaves out of core dumps.
    pub undumped_bytes: u64,
}

impl KeyMemory {
    /// As it is now, over all stores and keyrings of this process.
    pub fn now() -> KeyMemory {
        PAGES.lock().memory
    }
}

/// One value in key pages: dropped, and then overwritten with zeros, cell by cell.
pub(crate) struct Strongbox<T> {
    value: NonNull<T>,
}

// SAFETY: it owns its value, as a `Box` does, and no other box ever shares a slot with it.
unsafe impl<T: Send> Send for Strongbox<T> {}
// SAFETY: a shared box gives out shared references to its value and nothing else.
unsafe impl<T: Sync> Sync for Strongbox<T> {}

impl<T> Strongbox<T> {
    const CELLS: usize = {
        assert!(align_of::<T>() <= CELL_BYTES, "a slot is aligned to its cells");
        let cells = size_of::<T>().div_ceil(CELL_BYTES);
        assert!(cells <= CELLS_PER_PAGE, "a slot lies within one page");
        if cells == 0 { 1 } else { cells }
    };

    /// Move `value` into key pages. The stack keeps what it holds of it.
    pub(crate) fn new(value: T) -> Strongbox<T> {
        let slot: NonNull<T> = PAGES.lock().take(Self::CELLS).cast();
        // SAFETY: the slot is large and aligned enough (`CELLS`), and nobody else's until it is given back.
        unsafe { slot.write(value) };
        Strongbox { value: slot }
    }

    /// Whether this is the process that made it. False in a forked child, where the value is zeros.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        Page::of(self.value.cast()).is_alive()
    }
}

impl<T> Deref for Strongbox<T> {
    type Target = T;

    /// # Panics
    /// In a forked child. Whoever may be called there asks before ([`Strongbox::is_ours`], [`TickCell`](super::TickCell)).
    #[inline]
    fn deref(&self) -> &T {
        assert!(self.is_ours(), "keys do not live on in a forked process");
        // SAFETY: written by `new`, not wiped since, and borrowed as long as `self` is.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Strongbox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        assert!(self.is_ours(), "keys do not live on in a forked process");
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Strongbox<T> {
    fn drop(&mut self) {
        // In a forked child there is no value any more that could be dropped.
        if !self.is_ours() {
            return;
        }
        // SAFETY: the value was written by `new` and is not used again.
        unsafe { self.value.drop_in_place() };
        let slot = self.value.cast::<u8>();
        // SAFETY: the slot is this many bytes long, all of them ours, and holds no value any more.
        unsafe { slot.write_bytes(0, Self::CELLS * CELL_BYTES) };
        optimization_barrier(&slot);
        PAGES.lock().put_back(slot, Self::CELLS);
    }
}

impl<T> fmt::Debug for Strongbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Strongbox({} bytes)", size_of::<T>())
    }
}

static PAGES: Mutex<Pages> = Mutex::new(Pages::NONE);

/// Which pages have room.
struct Pages {
    /// Nobody's yet.
    fresh: Vec<Page>,
    /// By the number of cells in a slot; a page keeps that number for good.
    with_room: [Vec<Page>; CELLS_PER_PAGE + 1],
    memory: KeyMemory,
}

/// The start of a page, which is its header.
#[derive(Clone, Copy)]
struct Page(NonNull<Header>);

// SAFETY: pages are never given back; their headers are changed under the lock of `PAGES` alone.
unsafe impl Send for Page {}

#[repr(C)]
struct Header {
    alive: AtomicU64,
    /// One bit per slot, the first one lowest. Changed under the lock; atomic, because `alive` is read without it.
    taken: AtomicU64,
}

const _: () = assert!(size_of::<Header>() <= CELL_BYTES);

impl Pages {
    const NONE: Pages = Pages {
        fresh: Vec::new(),
        with_room: [const { Vec::new() }; CELLS_PER_PAGE + 1],
        memory: KeyMemory { bytes: 0, locked_bytes: 0, undumped_bytes: 0 },
    };

    /// A slot of this many cells, all zeros.
    fn take(&mut self, cells: usize) -> NonNull<u8> {
        let known = self.with_room[cells].last().or(self.fresh.last());
        if known.is_some_and(|page| !page.is_alive()) {
            // A forked child that has keys of its own: it begins anew, with pages that are not its parent's.
            *self = Pages::NONE;
        }
        let page = match self.with_room[cells].last() {
            Some(page) => *page,
            None => {
                let page = self.fresh_page();
                self.with_room[cells].push(page);
                page
            }
        };
        let slots = CELLS_PER_PAGE / cells;
        let taken = page.header().taken.load(Ordering::Relaxed);
        let slot = taken.trailing_ones() as usize;
        let taken = taken | 1 << slot;
        page.header().taken.store(taken, Ordering::Relaxed);
        if taken.count_ones() as usize == slots {
            self.with_room[cells].pop();
        }
        page.cell(1 + slot * cells)
    }

    /// Take back a slot that was wiped.
    fn put_back(&mut self, slot: NonNull<u8>, cells: usize) {
        let page = Page::of(slot);
        let offset = slot.addr().get() % PAGE_BYTES;
        let slot = (offset / CELL_BYTES - 1) / cells;
        let taken = page.header().taken.load(Ordering::Relaxed);
        page.header().taken.store(taken & !(1 << slot), Ordering::Relaxed);
        if taken.count_ones() as usize == CELLS_PER_PAGE / cells {
            self.with_room[cells].push(page);
        }
    }

    fn fresh_page(&mut self) -> Page {
        if let Some(page) = self.fresh.pop() {
            return page;
        }
        let chunk = Chunk::map().unwrap_or_else(Chunk::on_the_heap);
        self.memory.bytes += CHUNK_BYTES as u64;
        self.memory.locked_bytes += if chunk.locked { CHUNK_BYTES as u64 } else { 0 };
        self.memory.undumped_bytes += if chunk.undumped { CHUNK_BYTES as u64 } else { 0 };
        let pages = (0..CHUNK_BYTES / PAGE_BYTES).map(|number| {
            // SAFETY: within the chunk, which is a whole number of pages long.
            Page(unsafe { chunk.start.add(number * PAGE_BYTES) }.cast())
        });
        self.fresh.extend(pages.rev());
        self.fresh.iter().for_each(|page| page.header().alive.store(ALIVE, Ordering::Relaxed));
        self.fresh.pop().expect("a chunk has pages")
    }
}

impl Page {
    /// The page that a slot lies in.
    #[inline]
    fn of(slot: NonNull<u8>) -> Page {
        // SAFETY: a page begins at a multiple of its size, below each of its slots and in the same chunk.
        Page(unsafe { slot.byte_sub(slot.addr().get() % PAGE_BYTES) }.cast())
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: chunks are never given back, begin as zeros, and this part of a page is used as a header alone.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn is_alive(&self) -> bool {
        self.header().alive.load(Ordering::Relaxed) == ALIVE
    }

    fn cell(&self, number: usize) -> NonNull<u8> {
        // SAFETY: within the page: cells are counted from its start, and there are `CELLS_PER_PAGE` behind the header.
        unsafe { self.0.cast::<u8>().add(number * CELL_BYTES) }
    }
}

/// Memory as the kernel gave it: zeros, at a multiple of the page size.
struct Chunk {
    start: NonNull<u8>,
    locked: bool,
    undumped: bool,
}

impl Chunk {
    #[cfg(not(miri))]
    fn map() -> Option<Chunk> {
        let mut map = memmap2::MmapMut::map_anon(CHUNK_BYTES).ok()?;
        let start = NonNull::new(map.as_mut_ptr())?;
        // Never given back: whoever holds a slot has nothing else to keep it mapped.
        std::mem::forget(map);
        // SAFETY: our own private mapping of this length, which nobody uses yet; locking changes none of its bytes.
        let locked = unsafe { rustix::mm::mlock(start.as_ptr().cast(), CHUNK_BYTES) }.is_ok();
        #[cfg(target_os = "linux")]
        let undumped = {
            use rustix::mm::{Advice, madvise};
            // SAFETY: as above; a child's copy is what changes, and a child is checked for it before every use.
            let _ = unsafe { madvise(start.as_ptr().cast(), CHUNK_BYTES, Advice::LinuxWipeOnFork) };
            // SAFETY: as above; only what a dump takes along changes.
            unsafe { madvise(start.as_ptr().cast(), CHUNK_BYTES, Advice::LinuxDontDump) }.is_ok()
        };
        #[cfg(not(target_os = "linux"))]
        let undumped = false;
        Some(Chunk { start, locked, undumped })
    }

    #[cfg(miri)]
    fn map() -> Option<Chunk> {
        None
    }

    fn on_the_heap() -> Chunk {
        use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
        const LAYOUT: Layout = match Layout::from_size_align(CHUNK_BYTES, PAGE_BYTES) {
            Ok(layout) => layout,
            Err(_) => unreachable!(),
        };
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(LAYOUT) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(LAYOUT) };
        Chunk { start, locked: false, undumped: false }
    }
}

/// Where a value lies and how long it is, for those who look at memory from outside.
#[cfg(test)]
impl<T> Strongbox<T> {
    fn bytes_of_slot(&self) -> &[u8] {
        // SAFETY: the whole slot is ours, and was zeros or written since.
        unsafe { std::slice::from_raw_parts(self.value.as_ptr().cast(), Self::CELLS * CELL_BYTES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_all_sizes_neither_overlap_nor_keep_what_they_held() {
        // Otherwise one key would overwrite another, or be read by whoever comes next.
        #[repr(align(16))]
        struct Wide([u8; 640]);
        let mut small = Vec::new();
        let mut wide = Vec::new();
        for i in 0..200_u8 {
            small.push(Strongbox::new([i; 32]));
            wide.push(Strongbox::new(Wide([!i; 640])));
            if i % 3 == 0 {
                small.swap_remove(usize::from(i) % small.len());
                wide.swap_remove(usize::from(i) % wide.len());
            }
        }
        for (small, wide) in small.iter().zip(&wide) {
            assert!(small.iter().all(|byte| *byte == small[0]));
            assert!(wide.0.iter().all(|byte| *byte == wide.0[0]));
            assert!(small.bytes_of_slot()[32..].iter().all(|byte| *byte == 0), "a slot begins as zeros");
            assert_eq!(std::ptr::from_ref(&**wide).addr() % 64, 0);
        }
        let memory = KeyMemory::now();
        assert!(memory.bytes >= CHUNK_BYTES as u64 && memory.locked_bytes <= memory.bytes);
    }

    #[cfg(target_os = "linux")]
    unsafe extern "C" {
        fn fork() -> std::ffi::c_int;
        fn _exit(status: std::ffi::c_int) -> !;
    }

    #[cfg(target_os = "linux")]
    #[test]
    #[cfg_attr(miri, ignore = "Miri cannot fork")]
    fn a_forked_child_has_no_keys_but_its_own() {
        // Otherwise a child could wrap its data with a key of zeros, or share its parent's pages with what it makes itself.
        let secret = Strongbox::new([7_u8; 32]);
        // Held across the fork by the thread that forks, so that it is free in the child, whatever other threads do.
        let pages = PAGES.lock();
        // SAFETY: the child allocates, which the C library prepares for, uses a lock that it holds, and leaves through `_exit`.
        let child = unsafe { fork() };
        assert!(child >= 0);
        drop(pages);
        if child == 0 {
            let mut right = i32::from(!secret.is_ours());
            right += i32::from(secret.bytes_of_slot().iter().all(|byte| *byte == 0));
            drop(secret);
            let own = Strongbox::new([8_u8; 32]);
            right += i32::from(own.is_ours() && own.iter().all(|byte| *byte == 8));
            // SAFETY: ends the child, and so touches nothing.
            unsafe { _exit(right) }
        }
        let child = rustix::process::Pid::from_raw(child);
        let (_, status) = rustix::process::waitpid(child, rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(3));
        assert!(secret.is_ours() && secret.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn empty_and_largest_values_have_a_slot() {
        // Otherwise a mark without bytes would share its place with somebody's key.
        let marks: Vec<_> = (0..100).map(|_| Strongbox::new(())).collect();
        let mut places: Vec<_> = marks.iter().map(|mark| mark.value.addr()).collect();
        places.dedup();
        assert_eq!(places.len(), 100);
        let large = Strongbox::new([7_u8; CELLS_PER_PAGE * CELL_BYTES]);
        assert!(large.is_ours() && large.iter().all(|byte| *byte == 7));
    }
}
