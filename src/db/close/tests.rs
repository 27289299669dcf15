//! Claims about what a closed store has in memory.

use std::sync::Arc;
use std::time::Duration;

use crate::db::Store;
use crate::error::Error;
use crate::io::sim::Simulation;
use crate::keys::LocalKms;
use crate::options::TableOptions;

#[test]
fn a_closed_store_has_no_frozen_memtable_and_no_open_file_for_who_kept_a_handle() {
    // Otherwise a program that closes a store and keeps a table or an iterator of it has plaintext and keys of files in memory.
    for is_poisoned in [false, true] {
        let world = Simulation::new(0xc105e);
        let kms = LocalKms::in_memory(world.environment()).unwrap();
        let store = Store::builder("/store").key_provider(kms).environment(world.environment()).create().unwrap();
        let table = store.create_table("t", TableOptions::new()).unwrap();
        table.put("k", "v").unwrap();
        store.flush().unwrap();
        // It looks at the file that there is, and has not opened it.
        let range = table.iter();
        table.get("k").unwrap();
        let engine = store.handle.engine();
        let state = engine.catalog.named("t").unwrap();
        let view = state.view.load_owned().unwrap();
        let reader = view.version.all_files().find_map(|(_, file)| file.reader().as_ref().map(Arc::downgrade)).unwrap();
        drop(view);
        table.put("k", "w").unwrap();
        store.flush().unwrap();
        // Writes the file anew, if that was not done along with the flush.
        let _rotation = store.rotate_table_key("t").unwrap();
        for _ in 0..20 {
            world.clock.advance(Duration::from_millis(250));
            world.scheduler.run_until_idle();
        }
        table.put("k", "x").unwrap();
        {
            let _writer = engine.writer.lock();
            engine.freeze(&state);
        }
        let frozen = Arc::downgrade(&state.view.load_owned().unwrap().frozen[0]);
        assert!(reader.upgrade().is_some() && engine.metrics().store.obsolete_files > 0);
        if is_poisoned {
            engine.poison(Error::io("sync", "log", std::io::ErrorKind::Other.into()));
        }
        assert_eq!(store.close().is_err(), is_poisoned);
        assert!(frozen.upgrade().is_none(), "a memtable, poisoned: {is_poisoned}");
        assert!(reader.upgrade().is_none(), "a reader, poisoned: {is_poisoned}");
        drop(range);
    }
}
