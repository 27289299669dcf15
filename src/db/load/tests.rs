//! Claims about who may load a table.

use super::Loading;
use crate::db::Store;
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
