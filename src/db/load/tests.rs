//! Claims about who may load a table, and about what is dropped meanwhile.

use super::Loading;
use crate::db::Store;
use crate::error::ErrorKind;
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
