//! A store under more load than it can take, and on a disk with less room than it needs: writers are held back, nothing is lost, and
//! everything goes on by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strongroom::event::Event;
use strongroom::io::fault::FaultVfs;
use strongroom::io::mem::Loss;
use strongroom::{ErrorKind, Table};

use crate::world::{Dice, Row, World, contents, row, tiny_table};

fn sorted_tables(world: &World) -> Vec<PathBuf> {
    let mut paths = world.sim.vfs.list();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sst"));
    paths
}

/// Random writes over a key space that is small enough for overwriting and large enough for several levels.
fn churn(world: &World, table: &Table, model: &mut Row, dice: &mut Dice, commits: usize) {
    for _ in 0..commits {
        let key = format!("key {:04}", dice.below(600)).into_bytes();
        if dice.percent(15) {
            table.delete(&key).unwrap();
            model.remove(&key);
        } else {
            let value = {
                let len = 20 + dice.below(100);
                dice.bytes(len)
            };
            table.put(&key, &value).unwrap();
            model.insert(key, value);
        }
        world.sim.scheduler.run_some(dice.below(4));
        if dice.percent(1) {
            world.sim.clock.advance(Duration::from_millis(30));
        }
    }
}

#[test]
fn several_compactors_and_a_helper_lose_nothing_and_the_same_seed_gives_the_same_disk() {
    // Parts of one merge that overlap, or are installed without each other, lose keys; a run that cannot be repeated hides why.
    let run = |seed: u64, threads: usize| {
        let mut world = World::new(seed);
        world.options.compaction_threads = threads;
        let store = world.create();
        let table = store.create_table("t", tiny_table(seed as usize)).unwrap();
        let (mut model, mut dice) = (Row::new(), Dice::new(seed));
        for round in 0..6 {
            churn(&world, &table, &mut model, &mut dice, 500);
            // Time in which nobody commits, so that the helper has its turn.
            for _ in 0..10 {
                world.sim.clock.advance(Duration::from_millis(15));
                world.sim.scheduler.run_some(20);
            }
            if round == 3 {
                // Whoever is at a part of a merge gives it up.
                store.quiesce().unwrap();
            }
            assert!(row(&table).unwrap() == model, "{threads} threads, round {round}");
        }
        store.compact().unwrap();
        assert!(row(&table).unwrap() == model, "{threads} threads");
        store.close().unwrap();
        assert!(contents(&world.open().unwrap()).unwrap()["t"].1 == model);
        world.sim.vfs.snapshot()
    };
    for threads in [1, 3] {
        assert!(run(5, threads) == run(5, threads), "{threads} threads");
    }
    run(6, 2);
}

#[test]
fn a_full_disk_refuses_commits_before_it_does_harm_and_everything_goes_on_by_itself() {
    // A disk that fills up over night must not cost data, nor a restart in the morning.
    let world = World::new(11);
    let faulty = FaultVfs::new(world.sim.vfs.clone());
    let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    let (mut model, mut dice) = (Row::new(), Dice::new(11));
    for round in 0..3 {
        faulty.set_room(Some(200_000));
        let refusal = loop {
            let (key, value) = (format!("key {:05}", dice.below(100_000)).into_bytes(), dice.bytes(100));
            match table.put(&key, &value) {
                Ok(()) => drop(model.insert(key, value)),
                Err(error) => break error,
            }
            world.sim.scheduler.run_some(dice.below(6));
        };
        assert_eq!(refusal.kind(), ErrorKind::DiskFull, "round {round}: {refusal}");
        assert!(row(&table).unwrap() == model, "what was acknowledged can be read, and nothing of what was refused");
        let heard = world.heard.all();
        assert!(heard.iter().any(|event| matches!(event, Event::DiskFull { .. })), "round {round}: {heard:?}");

        // What is in memory has its room kept: it can be brought to the disk now.
        store.flush().unwrap_or_else(|error| panic!("round {round}: flush on a full disk: {error}"));
        let after = world.over(world.sim.vfs.crash_at(world.sim.vfs.events(), Loss::LoseUnsynced, 3), 100 + round);
        assert!(contents(&after.open().unwrap()).unwrap()["t"].1 == model);

        faulty.set_room(None);
        // Jobs that were refused are tried again after a pause of at most five seconds.
        world.sim.clock.advance(Duration::from_secs(6));
        world.sim.scheduler.run_until_idle();
        table.put(b"again", b"well").unwrap();
        model.insert(b"again".to_vec(), b"well".to_vec());
        store.compact().unwrap();
        assert!(row(&table).unwrap() == model);
    }
    let full = |event: &&Event| matches!(event, Event::DiskFull { .. });
    let room = |event: &&Event| matches!(event, Event::DiskHasRoom { .. });
    let heard = world.heard.all();
    assert_eq!((heard.iter().filter(full).count(), heard.iter().filter(room).count()), (3, 3), "{heard:?}");
}

#[test]
fn no_compaction_is_begun_that_the_disk_has_no_room_for() {
    // One that is begun all the same fills the disk with half of its output, and then nothing can be flushed either.
    let world = World::new(12);
    let faulty = FaultVfs::new(world.sim.vfs.clone());
    let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    let (mut model, mut dice) = (Row::new(), Dice::new(12));
    churn(&world, &table, &mut model, &mut dice, 800);
    store.compact().unwrap();
    let before = sorted_tables(&world);
    // Room for the log segment and a few flushes, and by far not for all of the last level again.
    for _ in 0..3 {
        for _ in 0..30 {
            let (key, value) = (format!("key {:04}", dice.below(600)).into_bytes(), dice.bytes(80));
            table.put(&key, &value).unwrap();
            model.insert(key, value);
        }
        faulty.set_room(Some(26_000));
        store.flush().unwrap();
    }
    let flushed = sorted_tables(&world).len() - before.len();
    for _ in 0..20 {
        world.sim.clock.advance(Duration::from_secs(1));
        world.sim.scheduler.run_until_idle();
    }
    let error = store.compact().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
    assert_eq!(sorted_tables(&world).len(), before.len() + flushed, "not a file was begun");
    assert!(row(&table).unwrap() == model);

    faulty.set_room(None);
    for _ in 0..6 {
        world.sim.clock.advance(Duration::from_secs(1));
        world.sim.scheduler.run_until_idle();
    }
    assert!(!before.iter().all(|path| sorted_tables(&world).contains(path)), "it was done without anybody calling");
    store.compact().unwrap();
    assert!(row(&table).unwrap() == model);
}

#[test]
fn writers_of_many_small_tables_stay_within_the_budget_and_the_largest_are_flushed() {
    // A budget that only counts large memtables is none: ten thousand small ones take all memory.
    let world = World::new(13);
    let store = world.create();
    let names: Vec<String> = (0..40).map(|number| format!("t{number}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), tiny_table(0))).collect();
    let tables = store.create_tables(&wanted).unwrap();
    let mut dice = Dice::new(13);
    let mut models = vec![Row::new(); tables.len()];
    for round in 0..3000 {
        let at = dice.below(tables.len());
        let (key, value) = (format!("{round}").into_bytes(), dice.bytes(60));
        tables[at].put(&key, &value).unwrap();
        models[at].insert(key, value);
        world.sim.scheduler.run_some(dice.below(3));
    }
    assert!(sorted_tables(&world).len() > tables.len(), "no memtable reaches its own size: it was the budget");
    for (table, model) in tables.iter().zip(&models) {
        assert!(row(table).unwrap() == *model);
    }
}
