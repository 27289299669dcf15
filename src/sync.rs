//! The few atomics that reads need: publishing a picture without a shared count, and the visible number.
//!
//! A point read pins the picture of a table (memtables and version), then loads the visible sequence
//! number, in this order: whatever the number covers was published before the number rose, so the pinned
//! picture holds it. The other way round, a flush between the two loads could hide an entry that the number
//! promises.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use crate::types::Seq;

/// A value alone on its cache line (two lines, which is what Intel and Apple cores fetch at once), so that
/// writing it does not slow down readers of its neighbours.
#[derive(Default, Debug)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub T);

impl<T> Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// An immutable picture that is replaced as a whole, or missing, and read without writing to a count that other readers
/// share: a reader notes what it pinned in a slot of its own thread.
pub(crate) struct Published<T>(ArcSwapOption<T>);

/// A pinned picture, if there is one. Meant for the length of one call; what lives longer takes [`Published::load_owned`].
pub(crate) type Pinned<T> = arc_swap::Guard<Option<Arc<T>>>;

impl<T> Published<T> {
    /// A place that shows nothing yet.
    pub(crate) fn nothing() -> Published<T> {
        Published(ArcSwapOption::empty())
    }

    /// Pin what is shown now.
    pub(crate) fn load(&self) -> Pinned<T> {
        self.0.load()
    }

    /// What is shown now, counted, for iterators and jobs.
    pub(crate) fn load_owned(&self) -> Option<Arc<T>> {
        self.0.load_full()
    }

    /// Show `next` from now on. Who replaces a picture by one that was made from it holds a lock around both steps,
    /// or one of two changes is lost.
    pub(crate) fn store(&self, next: Option<Arc<T>>) {
        self.0.store(next);
    }
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published")
    }
}

/// What is nearly always [`Empty`], behind one pointer: for what every table has and few use, since there are very many tables. Looking at it
/// costs nothing; changing it makes room for it.
#[derive(Debug)]
pub(crate) struct Seldom<T>(Option<Box<T>>);

/// What there is as long as nobody changed anything.
pub(crate) trait Empty: Default + 'static {
    /// The same for all.
    fn empty() -> &'static Self;
}

impl<T> Default for Seldom<T> {
    fn default() -> Seldom<T> {
        Seldom(None)
    }
}

impl<T: Clone> Clone for Seldom<T> {
    fn clone(&self) -> Seldom<T> {
        Seldom(self.0.clone())
    }
}

impl<T: Empty> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::empty())
    }
}

impl<T: Empty> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

/// The sequence number up to which every commit can be seen, gapless. It only rises.
#[derive(Debug, Default)]
pub(crate) struct VisibleSeq(CachePadded<AtomicU64>);

impl VisibleSeq {
    /// Everything up to `seq` can be seen.
    pub(crate) fn new(seq: Seq) -> VisibleSeq {
        VisibleSeq(CachePadded(AtomicU64::new(seq.get())))
    }

    /// The number as of now. Everything that was inserted before it rose to this is seen by who loaded it.
    pub(crate) fn load(&self) -> Seq {
        // Pairs with the Release in `raise`. Only numbers that were a `Seq` are ever stored.
        Seq::new(self.0.load(Ordering::Acquire)).unwrap_or(Seq::MAX)
    }

    /// Let everything up to `seq` be seen. A lower number than the present one changes nothing.
    pub(crate) fn raise(&self, seq: Seq) {
        // Release: the inserts that this number covers come before it for whoever sees it.
        self.0.fetch_max(seq.get(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_visible_number_never_falls() {
        // A number that falls would hide a commit that was acknowledged.
        let visible = VisibleSeq::new(Seq::new(7).unwrap());
        visible.raise(Seq::new(5).unwrap());
        assert_eq!(visible.load(), Seq::new(7).unwrap());
        visible.raise(Seq::new(9).unwrap());
        assert_eq!(visible.load(), Seq::new(9).unwrap());
    }

    #[test]
    fn a_pinned_picture_outlives_its_replacement() {
        // A reader whose picture is freed under it would read freed memory.
        let published = Published::nothing();
        assert!(published.load().is_none());
        let first = Arc::new(1);
        let weak = Arc::downgrade(&first);
        published.store(Some(first));
        let pinned = published.load();
        published.store(Some(Arc::new(2)));
        assert_eq!((pinned.as_deref(), published.load_owned().as_deref()), (Some(&1), Some(&2)));
        drop(pinned);
        assert!(weak.upgrade().is_none(), "nobody holds the old picture any more");
    }

    #[test]
    fn a_reader_that_sees_the_number_sees_what_it_covers() {
        // A read at a number whose entry is missing would lose an acknowledged write.
        let shared = Arc::new((VisibleSeq::default(), Published::nothing()));
        shared.1.store(Some(Arc::new(0u64)));
        let writer = {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for seq in 1..200 {
                    shared.1.store(Some(Arc::new(seq)));
                    shared.0.raise(Seq::new(seq).unwrap());
                }
            })
        };
        while shared.0.load().get() < 199 {
            let seq = shared.0.load().get();
            assert!(shared.1.load().as_deref().is_some_and(|shown| *shown >= seq));
        }
        writer.join().unwrap();
    }
}
