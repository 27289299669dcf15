//! The end of a store comes whenever it likes: between any two steps of its background work.

use std::time::Duration;

use strongroom::{MasterKey, TableOptions};

use crate::world::{Dice, World, contents, setting};

/// A store with everything under way that goes on by itself: flushes, compactions, a rotation, a table whose key is refused and that is to leave
/// memory, permits to renew. It is closed after so many steps of all that.
fn closed_after(seed: u64, steps: usize) {
    let world = World::new(seed ^ (steps as u64) << 32);
    let mut dice = Dice::new(seed);
    let own = world.kms.create_key(Some("alias/own"), "").unwrap();
    let store = world.create();
    let refused = TableOptions::new().master_key(MasterKey::customer("alias/own"));
    let tables = [
        store.create_table("turning", TableOptions::new()).unwrap(),
        store.create_table("refused", refused).unwrap(),
        store.create_table("plain", TableOptions::new()).unwrap(),
    ];
    for round in 0..30 {
        let table = &tables[dice.below(3)];
        table.put(format!("key {:02}", dice.below(20)), dice.bytes(400 + round)).unwrap();
    }
    let before = contents(&store).unwrap();
    store.rotate_table_key("turning").unwrap();
    world.kms.disable(&own.arn).unwrap();
    // Far enough that permits are due, and the refused one ends.
    world.sim.clock.advance(Duration::from_secs(dice.below(400) as u64));
    world.sim.scheduler.run_some(steps);
    store.close().unwrap();
    drop((tables, store));
    assert!(world.sim.scheduler.tasks().is_empty(), "{:?} is still there", world.sim.scheduler.tasks());

    world.kms.enable(&own.arn).unwrap();
    let store = world.open().unwrap();
    assert_eq!(contents(&store).unwrap(), before);
}

#[test]
fn a_store_can_be_closed_between_any_two_steps_of_its_background_work() {
    // A failure means that a program hangs when it wants to end, or that what was acknowledged is gone.
    for seed in 0..setting("STRONGROOM_SHUTDOWN_SEEDS", 3) as u64 {
        for steps in 0..60 {
            closed_after(seed, steps);
        }
    }
}
