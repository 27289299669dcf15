//! Claims about who may load a table, about what is dropped meanwhile, and about what is left of it once nobody uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Loading;
use crate::db::{Range, Store, Table};
use crate::error::ErrorKind;
use crate::io::Environment;
use crate::io::fault::{self, FaultVfs};
use crate::io::sim::Simulation;
use crate::keys::LocalKms;
use crate::keys::faulty::{self, FaultyProvider};
use crate::options::{MasterKey, StoreOptions, TableOptions};

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

#[test]
fn a_table_that_is_put_away_leaves_no_block_in_the_cache_for_an_iterator_that_stands_still() {
    // Otherwise who leaves an iterator open keeps a table's plaintext in memory, whatever has become of the key.
    for (seed, is_refused, is_evicted) in [(1, false, false), (2, false, true), (3, true, false), (4, true, true)] {
        let what = format!("refused: {is_refused}, evicted: {is_evicted}");
        let world = Simulation::new(0xb10c + seed);
        let kms = LocalKms::in_memory(world.environment()).unwrap();
        kms.create_key(Some("alias/own"), "").unwrap();
        // As few open files as may be.
        let options = StoreOptions { open_tables_max: 8, permit: Duration::from_secs(10), ..StoreOptions::default() };
        let builder = Store::builder("/store").key_provider(kms.clone()).options(options);
        let store = builder.environment(world.environment()).create().unwrap();
        let own = TableOptions::new().master_key(MasterKey::customer("alias/own"));
        let table = store.create_table("t", own).unwrap();
        let others: Vec<Table> =
            (0..8).map(|number| store.create_table(&format!("{number}"), TableOptions::new()).unwrap()).collect();
        for table in others.iter().chain([&table]) {
            (0..400_u32).for_each(|key| table.put(key.to_be_bytes(), [7; 100]).unwrap());
        }
        store.flush().unwrap();
        let engine = store.handle.engine();
        let state = engine.catalog.named("t").unwrap();
        let mut range = table.iter();
        let go_on = |range: &mut Range| (0..100).for_each(|_| drop(range.next().unwrap().unwrap()));
        go_on(&mut range);
        if is_evicted {
            others.iter().for_each(|other| drop(other.get(0_u32.to_be_bytes()).unwrap()));
            let view = state.view.load_owned().unwrap();
            assert!(view.version.all_files().all(|(_, file)| file.reader().is_none()), "{what}");
        } else {
            // Writes the file anew.
            let _rotation = store.rotate_table_key("t").unwrap();
            for _ in 0..20 {
                world.clock.advance(Duration::from_millis(250));
                world.scheduler.run_until_idle();
            }
            assert!(store.metrics().store.obsolete_files > 0, "{what}");
        }
        let kept_bytes = || engine.readers.cache().kept_bytes();
        assert!(kept_bytes() > 0, "{what}");
        if is_refused {
            kms.disable("alias/own").unwrap();
            world.clock.advance(Duration::from_secs(11));
            assert!(engine.acquire_for_service(&state).is_err(), "{what}");
        }
        let put_away = || {
            for _ in 0..200 {
                world.clock.advance(Duration::from_millis(250));
                world.scheduler.run_until_idle();
            }
            assert!(state.view.load().is_none() && state.lease.material().is_none(), "{what}");
        };
        put_away();
        assert_eq!(kept_bytes(), 0, "{what}");
        if !is_refused {
            // Under another permit, and without the table being loaded for it.
            go_on(&mut range);
            assert!(state.view.load().is_none() && kept_bytes() > 0, "{what}");
            put_away();
            assert_eq!(kept_bytes(), 0, "{what}");
        }
    }
}
