//! Claims about who may load a table, about what is dropped meanwhile, and about what is left of it once nobody uses it.

use std::path::Path;
use std::sync::Arc;

use super::Loading;
use crate::db::Store;
use crate::error::ErrorKind;
use crate::io::Environment;
use crate::io::fault::{self, FaultVfs};
use crate::io::sim::Simulation;
use crate::keys::LocalKms;
use crate::keys::faulty::{self, FaultyProvider};
use crate::options::TableOptions;

#[test]
fn whoever_is_refused_the_right_to_load_a_table_does_not_end_that_of_another() {
    // Otherwise a table is carried to another container, or parked, while it is being loaded from where it was: its rows are then
    // looked for in a file that is gone.
    let store = Store::temporary().unwrap();
    store.create_table("t", TableOptions::new()).unwrap();
    let engine = store.handle.engine();
    let table = engine.catalog.named("t").unwrap();
    let loading = Loading::begin(engine, table.clone()).unwrap();
    for _ in 0..2 {
        assert!(Loading::begin(engine, table.clone()).is_none());
        assert!(table.is_loading());
    }
    drop(loading);
    assert!(Loading::begin(engine, table).is_some());
}

#[test]
fn a_table_that_is_dropped_while_it_is_loaded_holds_no_part_of_the_log() {
    // Otherwise the log grows from there on until the store is opened again: by a year's writes, where it is never closed.
    let store = Store::temporary().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    let engine = store.handle.engine();
    // Its key was refused and is back: what the log holds of it has to be looked up.
    assert!(engine.seclude(&engine.catalog.named("t").unwrap()));
    let dropping = store.clone();
    engine.background.between.search_and_note.expect(1, move || dropping.drop_table("t").unwrap());
    assert_eq!(table.get("k").unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(engine.background.oldest_segment(), None);
}

#[test]
fn a_first_use_that_a_close_overtakes_leaves_nothing_in_memory() {
    // Otherwise the table's key and what was written to it stay in memory for as long as somebody has a handle of the closed store.
    for overtaken_at_provider in [true, false] {
        let world = Simulation::new(0x10ad);
        let disk = FaultVfs::new(world.vfs.clone());
        let provider = FaultyProvider::new(LocalKms::in_memory(world.environment()).unwrap());
        let environment = Environment { vfs: Arc::new(disk.clone()), ..world.environment() };
        let builder = || Store::builder("/store").key_provider(provider.clone()).environment(environment.clone());
        let store = builder().create().unwrap();
        store.create_table("t", TableOptions::new()).unwrap().put("k", "v").unwrap();
        store.close().unwrap();
        drop(store);

        let store = builder().open().unwrap();
        let table = store.table("t").unwrap();
        let state = store.handle.engine().catalog.named("t").unwrap();
        let closer = store.clone();
        if overtaken_at_provider {
            let rule = faulty::Rule::on(faulty::Operation::Decrypt);
            provider.inject(rule.nth(1).call(move || closer.close().unwrap()));
        } else {
            let rule = fault::Rule::on(fault::Operation::Read).path(|path| path.starts_with(Path::new("/store/wal")));
            disk.inject(rule.call(move |_, _| closer.close().unwrap()));
        }
        assert_eq!(table.get("k").unwrap_err().kind(), ErrorKind::Closed);
        assert!(state.view.load().is_none());
        assert!(state.lease.material().is_none());
    }
}
