//! Claims about tables that leave memory because their key is refused.

use std::time::Duration;

use crate::db::Store;
use crate::db::maintenance::Flusher;
use crate::format::manifest::Edit;
use crate::io::sim::Simulation;
use crate::io::{Step, Task};
use crate::keys::LocalKms;
use crate::options::{MasterKey, TableOptions};

#[test]
fn a_refusal_that_comes_while_its_table_is_being_dropped_lets_go_of_nothing_twice() {
    // Otherwise what memtables take wraps around, so that every writer waits until the store is opened again; and a log segment goes
    // that another table has its only copy of a commit in.
    let world = Simulation::new(0xacc);
    let kms = LocalKms::in_memory(world.environment()).unwrap();
    let store = Store::builder("/store").key_provider(kms).environment(world.environment()).create().unwrap();
    for name in ["stays", "goes"] {
        store.create_table(name, TableOptions::new()).unwrap().put("k", "v").unwrap();
    }
    let engine = store.handle.engine();
    let [stays, goes] = ["stays", "goes"].map(|name| engine.catalog.named(name).unwrap());
    let memory = stays.view.load_owned().unwrap().active.clone();
    let segment = memory.first_segment().unwrap();
    assert_eq!(engine.background.holders_of(segment), 2);
    {
        let _writer = engine.writer.lock();
        engine.freeze(&goes);
    }
    let mut flusher = Flusher::new(engine.clone());
    let mut flush = || while matches!(flusher.step(), Step::Again) {};

    // The steps of a drop, with the flusher and the custodian between the first and the second.
    goes.mark_dropped();
    flush();
    assert!(engine.seclude(&goes));
    engine.manifest.append(vec![Edit::DropTable { slot: goes.slot }]).unwrap();
    goes.mark_gone();
    engine.catalog.remove(&goes);
    engine.forget(&goes);
    flush();
    assert_eq!(engine.metrics().memtables.bytes, memory.charged_bytes() as u64);
    assert_eq!(engine.background.holders_of(segment), 1);
}

#[test]
fn a_table_whose_key_is_refused_gives_it_up_also_if_nothing_else_of_it_is_in_memory() {
    // Otherwise the key of a table that nobody has read or written yet stays in memory for as long as it is refused.
    let world = Simulation::new(0xacd);
    let kms = LocalKms::in_memory(world.environment()).unwrap();
    kms.create_key(Some("alias/own"), "").unwrap();
    let store = Store::builder("/store").key_provider(kms.clone()).environment(world.environment()).create().unwrap();
    let own = TableOptions::new().master_key(MasterKey::customer("alias/own"));
    store.create_table("t", own).unwrap();
    let engine = store.handle.engine();
    let table = engine.catalog.named("t").unwrap();
    assert!(table.view.load().is_none() && table.lease.material().is_some());
    kms.disable("alias/own").unwrap();
    assert!(engine.acquire_for_service(&table).is_err());
    for _ in 0..8 {
        world.clock.advance(Duration::from_millis(250));
        world.scheduler.run_until_idle();
    }
    assert!(table.lease.material().is_none());
}
