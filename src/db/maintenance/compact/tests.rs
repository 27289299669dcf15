//! Claims about compactions that end while parts of them are under way.

use std::path::PathBuf;

use super::*;
use crate::compaction::plan::Reason;
use crate::db::Store;
use crate::io::sim::Simulation;
use crate::keys::LocalKms;
use crate::options::TableOptions;

#[test]
fn what_a_helper_writes_for_a_merge_that_has_ended_meanwhile_does_not_stay() {
    // Nobody would remove it before the store is opened again: with each merge that fails or is given up, the disk becomes fuller.
    let world = Simulation::new(0x3e1);
    let kms = LocalKms::in_memory(world.environment()).unwrap();
    let builder = Store::builder("/store").key_provider(kms).environment(world.environment());
    let store = builder.create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    for round in 0..2 {
        table.put("k", round.to_string()).unwrap();
        store.flush().unwrap();
    }
    let sorted = || -> Vec<PathBuf> {
        world.vfs.list().into_iter().filter(|path| path.extension().is_some_and(|end| end == "sst")).collect()
    };
    let before = sorted();

    let engine = store.handle.engine();
    let owner = Compactor::new(engine.clone());
    let state = engine.catalog.named("t").unwrap();
    let view = state.view.load_owned().unwrap();
    let (reason, upper) = (Reason::LevelZero, view.version.files(0).to_vec());
    let plan = Plan { reason, source: 0, target: 1, upper, lower: Vec::new(), is_move: false };
    let claim = state.structure.lock().busy.claim(&plan);
    let jobs = owner.jobs(&state, &view, &plan, &engine.moments.readers(&engine.visible)).unwrap();
    let room = engine.reserve(&plan).unwrap();
    let merge = Merge::new(&state, (plan, claim, room), Priority::default(), engine.env.clock.tick(), jobs);

    // Between a helper's look whether the merge goes on and the end of its step, it fails and its owner cleans up.
    let mut part = merge.take().unwrap();
    let files = loop {
        if let Progress::Done(files) = part.job.step().unwrap() {
            break files;
        }
    };
    assert_eq!(sorted().len(), before.len() + 1);
    merge.end(None);
    owner.release(&merge);
    owner.finish(&merge, part, files);
    assert_eq!(sorted(), before);
}
