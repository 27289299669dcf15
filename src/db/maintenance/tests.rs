//! Claims about how background tasks end.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::db::{Engine, Store};
use crate::io::{Environment, Step};
use crate::keys::LocalKms;
use crate::options::{Compression, TableOptions};

/// What comes to pass between a task's look at whether the store is being closed and whatever it does next.
#[derive(Default)]
pub(in crate::db) struct AfterLook(Mutex<Option<Coming>>);

struct Coming {
    /// Looks until then.
    looks: usize,
    what: Box<dyn FnOnce() + Send>,
}

impl AfterLook {
    fn expect(&self, looks: usize, what: impl FnOnce() + Send + 'static) {
        *self.0.lock() = Some(Coming { looks, what: Box::new(what) });
    }

    pub(in crate::db) fn came(&self) {
        let mut coming = self.0.lock();
        if let Some(next) = &mut *coming {
            next.looks -= 1;
            if next.looks > 0 {
                return;
            }
        }
        let come = coming.take();
        drop(coming);
        if let Some(come) = come {
            (come.what)();
        }
    }
}

/// A store whose tasks do not run by themselves, with something to flush and a rotation under way.
fn store(seed: u64) -> (Store, Arc<Engine>) {
    let world = Environment::simulated(seed);
    let kms = LocalKms::in_memory(world.clone()).unwrap();
    let store = Store::builder("/store").key_provider(kms).environment(world).create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    store.rotate_table_key("t").unwrap();
    table.put("k", "w").unwrap();
    let engine = store.handle.engine().clone();
    (store, engine)
}

#[test]
fn no_task_sleeps_through_the_end_that_comes_right_behind_its_look() {
    // A failure means that closing a store hangs, for minutes or for ever, one time in a million.
    let (_store, engine) = store(0x7a5);
    let count = engine.background_tasks().len();
    for index in 0..count {
        for looks in 1..=8 {
            let (_store, engine) = store(0x1_0000 + (index * 100 + looks) as u64);
            let (name, mut task) = engine.background_tasks().swap_remove(index);
            let ending = engine.clone();
            engine.background.after_look.expect(looks, move || ending.background.stop());
            let is_over = || engine.background.stopping();
            // It may sleep as long as the end has not come, and is woken for its next look.
            for _ in 0..200 {
                match task.step() {
                    Step::Done => break,
                    Step::Again => {}
                    Step::Wait { signal, seen, .. } => {
                        assert!(!is_over() || signal.count() != seen, "{name} sleeps through the end, look {looks}");
                    }
                }
            }
            // Those that look again at each step have seen it.
            engine.background.stop();
            assert!(matches!(task.step(), Step::Done), "{name} goes on after the end");
        }
    }
}

#[test]
fn a_scan_that_goes_on_while_the_store_is_closed_does_not_keep_the_store_in_memory() {
    // A failure means that a program which opens and closes stores loses the memory of each, keys of files and bounds included.
    let world = Environment::simulated(0x5ca9);
    let kms = LocalKms::in_memory(world.clone()).unwrap();
    let store = Store::builder("/store").key_provider(kms).environment(world).create().unwrap();
    let table = store.create_table("t", TableOptions::new().compression(Compression::None)).unwrap();
    (0..2000_u32).for_each(|key| table.put(key.to_be_bytes(), [7; 500]).unwrap());
    store.flush().unwrap();
    let range = table.iter();
    let engine = Arc::downgrade(store.handle.engine());
    // When a task has seen the end and the permits do not know of it yet.
    let scan = move || assert_eq!(range.map(Result::unwrap).count(), 2000);
    store.handle.engine().background.after_look.expect(1, scan);
    store.close().unwrap();
    assert!(store.handle.engine().background.after_look.0.lock().is_none(), "the scan has come to pass");
    drop((table, store));
    assert_eq!(engine.strong_count(), 0);
}
