//! Claims about which sorted tables are open.

use std::sync::mpsc::channel;
use std::time::Duration;

use crate::db::Store;
use crate::io::Environment;
use crate::keys::LocalKms;
use crate::options::{StoreOptions, TableOptions};

/// Open a store's only file as those do who came at once and all found it closed, and then again and again, closed each time while a cursor
/// still holds it; how many places are taken among the open files, after each.
fn open_one_file_over_and_over() -> (u64, u64) {
    let world = Environment::simulated(0x0be7);
    let kms = LocalKms::in_memory(world.clone()).unwrap();
    let options = StoreOptions { open_tables_max: 8, ..StoreOptions::default() };
    let store = Store::builder("/store").key_provider(kms).environment(world).options(options).create().unwrap();
    store.create_table("t", TableOptions::new()).unwrap().put("k", "v").unwrap();
    store.flush().unwrap();
    let engine = store.handle.engine();
    let table = engine.catalog.named("t").unwrap();
    let view = table.view.load_owned().unwrap();
    let file = view.version.all_files().next().unwrap().1;
    let open = || drop(engine.readers.open(file, &table.settings, &view.keys).unwrap());
    (0..9).for_each(|_| open());
    let at_once = engine.readers.counts().0;
    for _ in 0..9 {
        file.close();
        open();
    }
    (at_once, engine.readers.counts().0)
}

#[test]
fn opening_one_file_over_and_over_comes_to_an_end_and_takes_no_more_than_the_places_there_are() {
    // Otherwise a thread looks for a place for ever, with the lock that every reader takes: the store hangs.
    let (done, outcome) = channel();
    std::thread::spawn(move || done.send(open_one_file_over_and_over()));
    let (at_once, again) = outcome.recv_timeout(Duration::from_secs(60)).expect("it looks for a place for ever");
    assert_eq!(at_once, 1, "those who open a file at once share a reader");
    assert!(again <= 8, "{again} places");
}
