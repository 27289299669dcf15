//! Keys change while the store is in use, and nobody notices but the keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use strongroom::error::ProviderReason;
use strongroom::event::Event;
use strongroom::io::fault::{FaultVfs, Operation as DiskOperation, Rule as FaultRule};
use strongroom::io::mem::{Loss, MemVfs};
use strongroom::keys::faulty::{FaultyProvider, Operation, Rule};
use strongroom::{
    Delay, ErrorKind, KeyChange, LocalKms, MasterKey, SseStatus, Store, StoreOptions, Table, TableOptions, TableStatus,
};

use crate::world::{DIR, Dice, Row, World, row, setting, tiny_options, tiny_table};

/// A world whose provider has two keys of the user's.
fn world(seed: u64) -> World {
    let world = World::new(seed);
    world.kms.create_key(Some("alias/old"), "").unwrap();
    world.kms.create_key(Some("alias/new"), "").unwrap();
    world
}

fn under(alias: &str) -> TableOptions {
    tiny_table(1).master_key(MasterKey::customer(alias))
}

fn fill(table: &Table, range: std::ops::Range<u32>) {
    for number in range {
        table.put(format!("key {number:04}"), format!("value {number} {}", "x".repeat(40))).unwrap();
    }
}

fn arn(world: &World, alias: &str) -> String {
    world.kms.key(alias).unwrap().arn
}

fn files(disk: &MemVfs) -> BTreeMap<PathBuf, Vec<u8>> {
    disk.snapshot()
}

/// Close the store, and open it after all time that a permit could last has passed.
fn reopened(world: &World, store: Store) -> Store {
    store.close().unwrap();
    drop(store);
    world.open().unwrap()
}

#[test]
fn after_a_change_the_old_master_key_is_not_needed_for_anything() {
    // Whoever deletes the old key because the change is over would lose the table.
    for rewrap_only in [false, true] {
        let world = world(500 + u64::from(rewrap_only));
        let store = world.create();
        let table = store.create_table("t", under("alias/old")).unwrap();
        fill(&table, 0..300);
        store.flush().unwrap();
        fill(&table, 300..320);
        let before = row(&table).unwrap();
        let change = KeyChange::new(MasterKey::customer("alias/new"));
        store.update_table_with("t", if rewrap_only { change.rewrap_only() } else { change }).unwrap();
        world.kms.disable("alias/old").unwrap();

        let description = store.describe_table("t").unwrap();
        assert_eq!((description.status, description.sse.status), (TableStatus::Active, SseStatus::Enabled));
        assert_eq!(description.sse.master_key_arn, Some(arn(&world, "alias/new")));
        fill(&table, 320..340);
        let store = reopened(&world, store);
        let table = store.table("t").unwrap();
        assert!(before.iter().all(|(key, value)| table.get(key).unwrap().as_deref() == Some(&value[..])));
        assert_eq!(row(&table).unwrap().len(), 340);
        let report = store.key_report("t").unwrap();
        assert!(report.generations.iter().all(|one| one.master_key_arn == arn(&world, "alias/new")));
        if rewrap_only {
            assert_eq!(report.generations.len(), 1, "the same key, wrapped anew");
        }
    }
}

#[test]
fn a_table_goes_between_all_kinds_of_master_keys() {
    // A table that cannot leave its master key holds its owner.
    let world = world(510);
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    fill(&table, 0..30);
    let kinds = [MasterKey::managed(), MasterKey::customer("alias/old"), MasterKey::owned()];
    for from in &kinds {
        for to in &kinds {
            store.update_table("t", from.clone()).unwrap();
            store.update_table("t", to.clone()).unwrap();
            let shown = store.describe_table("t").unwrap().sse;
            assert_eq!(shown.master_key_arn.is_some(), *to != MasterKey::owned(), "{to:?}");
            assert_eq!(shown.sse_type.is_some(), *to != MasterKey::owned(), "{to:?}");
        }
    }
    store.rotation("t").unwrap().wait().unwrap();
    assert_eq!(store.key_report("t").unwrap().generations.len(), 1);
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 30);
}

#[test]
fn owned_keys_of_a_provider_of_their_own_move_to_the_users_and_back() {
    // Between two providers there is no re-encrypt: a store that asked for one would refuse the change, or worse, mix them up.
    let world = world(515);
    let owned = LocalKms::in_memory(strongroom::io::sim::Simulation::new(516).environment()).unwrap();
    let store = world.builder().owned_key_provider(Arc::new(owned.clone())).create().unwrap();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    fill(&table, 0..40);
    store.update_table("t", MasterKey::customer("alias/new")).unwrap();
    fill(&table, 40..60);
    store.close().unwrap();
    let store = world.builder().owned_key_provider(Arc::new(owned.clone())).open().unwrap();
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 60);
    store.update_table_with("t", KeyChange::new(MasterKey::owned()).rewrap_only()).unwrap();
    world.kms.disable("alias/new").unwrap();
    store.close().unwrap();
    let store = world.builder().owned_key_provider(Arc::new(owned)).open().unwrap();
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 60);
}

#[test]
fn a_refused_change_leaves_the_directory_byte_for_byte() {
    // Half a change would leave a table that neither key opens.
    let world = world(520);
    let faulty = FaultyProvider::new(world.kms.clone());
    let store = world.builder().shared_key_provider(Arc::new(faulty.clone())).create().unwrap();
    let table = store.create_table("t", under("alias/old")).unwrap();
    fill(&table, 0..50);
    store.flush().unwrap();
    let disk = files(&world.sim.vfs);
    let target = || MasterKey::customer("alias/new");
    for operation in [Operation::DescribeKey, Operation::ReEncrypt, Operation::GenerateDataKey, Operation::Decrypt] {
        for reason in [ProviderReason::Throttled, ProviderReason::Denied, ProviderReason::KeyDisabled] {
            faulty.inject(Rule::on(operation).nth(1).fail(reason));
            let error = store.update_table("t", target()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{operation:?} {reason:?}: {error}");
            assert_eq!(files(&world.sim.vfs), disk, "{operation:?} {reason:?}");
        }
    }
    for rule in [
        Rule::on(Operation::ReEncrypt).nth(1).other_arn(arn(&world, "alias/old")),
        Rule::on(Operation::GenerateDataKey).nth(1).other_arn(arn(&world, "alias/old")),
        Rule::on(Operation::GenerateDataKey).nth(1).other_data_key(),
        Rule::on(Operation::Decrypt).nth(1).other_data_key(),
        Rule::on(Operation::ReEncrypt).nth(1).ciphertext_bytes(20_000),
        Rule::on(Operation::ReEncrypt).nth(1).panic(),
    ] {
        faulty.inject(rule);
        store.update_table("t", target()).unwrap_err();
        assert_eq!(files(&world.sim.vfs), disk);
    }
    store.update_table("t", target()).unwrap();
    assert_eq!(row(&table).unwrap().len(), 50);
}

#[test]
fn a_change_of_many_tables_reaches_all_that_can_be_changed() {
    // One table whose key is refused must not keep a thousand others under a key that is about to go.
    let world = world(530);
    let faulty = FaultyProvider::new(world.kms.clone());
    let store = world.builder().shared_key_provider(Arc::new(faulty.clone())).create().unwrap();
    let names: Vec<String> = (0..600).map(|number| format!("t{number}")).collect();
    let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), under("alias/old"))).collect();
    store.create_tables(&wanted).unwrap();
    store.create_table("other", under("alias/new")).unwrap();
    for name in &names[..5] {
        store.table(name).unwrap().put("key", name).unwrap();
    }
    faulty.inject(Rule::on(Operation::ReEncrypt).nth(7).fail(ProviderReason::Throttled));
    let epoch = store.epoch();
    let report = store.rewrap_all(&arn(&world, "alias/old"), MasterKey::customer("alias/new")).unwrap();
    assert_eq!((report.changed, report.failed.len()), (599, 1));
    assert!(store.epoch().0 - epoch.0 < 6, "many tables share an append to the manifest");
    let again = store.rewrap_all(&arn(&world, "alias/old"), MasterKey::customer("alias/new")).unwrap();
    assert_eq!((again.changed, again.failed.len()), (1, 0), "what is under the new key is left alone");
    world.kms.disable("alias/old").unwrap();
    let store = reopened(&world, store);
    for name in &names {
        let value = store.table(name).unwrap().get("key").unwrap();
        assert_eq!(value.is_some(), names[..5].contains(name));
    }
}

#[test]
fn changes_of_the_master_key_are_limited_and_the_way_to_the_owned_key_is_not() {
    // Without the limit a loop in somebody's program fills the provider's trail; with one that is too wide, a key that must be left cannot be.
    let mut world = world(540);
    world.options.key_changes_per_day = Some(2);
    let store = world.create();
    store.create_table("t", tiny_table(0)).unwrap();
    let change = |store: &Store, key| store.update_table("t", key);
    change(&store, MasterKey::customer("alias/old")).unwrap();
    change(&store, MasterKey::customer("alias/new")).unwrap();
    let error = change(&store, MasterKey::customer("alias/old")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("2 times"), "{error}");
    store.rotate_table_key("t").unwrap();
    let store = reopened(&world, store);
    change(&store, MasterKey::managed()).unwrap_err();
    change(&store, MasterKey::owned()).unwrap();
    world.sim.clock.advance(std::time::Duration::from_secs(6 * 3600));
    change(&store, MasterKey::managed()).unwrap();
    change(&store, MasterKey::customer("alias/old")).unwrap_err();
}

#[test]
fn a_rotated_master_key_needs_no_change_and_a_rewrap_takes_its_newest_version() {
    // A provider that rotates every year must not make anybody touch his data.
    let world = world(550);
    let store = world.create();
    let table = store.create_table("t", under("alias/old")).unwrap();
    fill(&table, 0..10);
    let disk = files(&world.sim.vfs);
    for _ in 0..3 {
        world.kms.rotate("alias/old").unwrap();
    }
    assert_eq!(files(&world.sim.vfs), disk);
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 10);
    let old = arn(&world, "alias/old");
    let report = store.rewrap_all(&old, MasterKey::customer(old.clone())).unwrap();
    assert_eq!(report.changed, 1);
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 10);
}

#[test]
fn two_calls_do_not_change_one_tables_keys_at_once() {
    // The second would wrap from a file that the first is about to replace.
    let world = world(560);
    let faulty = FaultyProvider::new(world.kms.clone());
    let store = world.builder().shared_key_provider(Arc::new(faulty.clone())).create().unwrap();
    store.create_table("t", under("alias/old")).unwrap();
    let (inner, seen) = (store.clone(), Arc::new(AtomicBool::new(false)));
    let told = seen.clone();
    faulty.inject(Rule::on(Operation::ReEncrypt).nth(1).call(move || {
        let description = inner.describe_table("t").unwrap();
        assert_eq!((description.status, description.sse.status), (TableStatus::Updating, SseStatus::Updating));
        let error = inner.update_table("t", MasterKey::owned()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        told.store(true, Ordering::SeqCst);
    }));
    store.update_table("t", MasterKey::customer("alias/new")).unwrap();
    assert!(seen.load(Ordering::SeqCst));
    faulty.heal();
    store.update_table("t", MasterKey::owned()).unwrap();
}

#[test]
fn a_rotation_ends_with_nothing_under_the_old_key() {
    // A proof that forgets a file would let the only key to that file be erased.
    let world = world(570);
    let store = world.create();
    let table = store.create_table("t", under("alias/old")).unwrap();
    let other = store.create_table("other", tiny_table(0)).unwrap();
    fill(&other, 0..10);
    fill(&table, 0..600);
    store.compact().unwrap();
    fill(&table, 600..640);
    let before = row(&table).unwrap();
    assert!(!old_files(&world.sim.vfs, &table, 1).is_empty());
    let rotation = store.rotate_table_key("t").unwrap();
    let progress = rotation.progress().unwrap();
    assert!(!progress.done && progress.bytes_left > 0 && progress.percent < 100.0, "{progress:?}");
    fill(&table, 640..660);
    rotation.wait().unwrap();
    let report = store.key_report("t").unwrap();
    assert_eq!(report.generations.len(), 1);
    assert_eq!(report.generations[0].generation.0, 2);
    assert_eq!(report.generations[0].bytes.parked + report.generations[0].bytes.pinned, 0);
    assert!(report.delays.is_empty());
    assert_eq!(rotation.progress().unwrap().percent, 100.0);
    assert!(world.heard.all().iter().any(|event| matches!(event, Event::GenerationsErased { .. })));
    let headers_under_one = old_files(&world.sim.vfs, &table, 1);
    assert!(headers_under_one.is_empty(), "{headers_under_one:?}");
    let store = reopened(&world, store);
    let after = row(&store.table("t").unwrap()).unwrap();
    assert_eq!(after.len(), 660);
    assert!(before.iter().all(|(key, value)| after.get(key) == Some(value)));
}

/// Sorted tables of a table whose header, which stands in clear, names this generation.
fn old_files(disk: &MemVfs, table: &Table, generation: u32) -> Vec<PathBuf> {
    let is_old = |bytes: &Vec<u8>| {
        let header = &bytes[..160];
        header.windows(16).any(|window| window == table.id().as_bytes())
            && header[GENERATION_AT..GENERATION_AT + 4] == generation.to_le_bytes()
    };
    let sorted = |path: &Path| path.to_string_lossy().contains("/sst/");
    disk.snapshot().into_iter().filter(|(path, bytes)| sorted(path) && is_old(bytes)).map(|(path, _)| path).collect()
}

#[test]
fn an_open_iterator_delays_the_end_of_the_old_key_and_is_named() {
    // The iterator would fail in its midst, or the proof would be wrong.
    let world = world(580);
    let store = world.create();
    let table = store.create_table("t", tiny_table(1)).unwrap();
    fill(&table, 0..400);
    store.compact().unwrap();
    let mut iterator = table.iter();
    assert!(iterator.next().is_some());
    let rotation = store.rotate_table_key("t").unwrap();
    assert!(!rotation.wait_for(std::time::Duration::from_secs(30)).unwrap());
    let report = store.key_report("t").unwrap();
    assert_eq!(report.generations.len(), 2);
    assert!(report.generations[0].retired && report.generations[0].bytes.pinned > 0);
    assert_eq!(report.generations[0].bytes.tables + report.generations[0].bytes.log, 0);
    assert!(matches!(report.delays[..], [Delay::Pinned { files }] if files > 0), "{:?}", report.delays);
    assert_eq!(iterator.count(), 399);
    rotation.wait().unwrap();
    assert_eq!(store.key_report("t").unwrap().generations.len(), 1);
}

#[test]
fn a_second_rotation_overtakes_the_first() {
    // Whoever rotates because of a leak cannot wait until the last rotation is over.
    let world = world(590);
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    fill(&table, 0..300);
    store.compact().unwrap();
    store.rotate_table_key("t").unwrap();
    fill(&table, 300..320);
    world.sim.scheduler.run_some(7);
    let second = store.rotate_table_key("t").unwrap();
    assert_eq!(store.key_report("t").unwrap().generations.len(), 3);
    second.wait().unwrap();
    let report = store.key_report("t").unwrap();
    assert_eq!((report.generations.len(), report.generations[0].generation.0), (1, 3));
    assert_eq!(row(&table).unwrap().len(), 320);
}

#[test]
fn a_rotation_ends_in_a_store_that_nobody_writes_to() {
    // A command that rotates and does nothing else would wait for ever.
    let world = world(595);
    let store = world.create();
    fill(&store.create_table("t", tiny_table(0)).unwrap(), 0..3);
    let store = reopened(&world, store);
    store.rotate_table_key("t").unwrap().wait().unwrap();
    store.rotate_table_key("t").unwrap().wait().unwrap();
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 3);
}

#[test]
fn a_rotation_goes_on_where_it_was_when_the_store_is_reopened() {
    // A rotation that begins anew with each start of a short-lived program never ends.
    let mut world = world(600);
    world.options.rotation_bytes_per_sec = 1 << 10;
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    fill(&table, 0..600);
    store.compact().unwrap();
    let rotation = store.rotate_table_key("t").unwrap();
    let mut left = rotation.progress().unwrap().bytes_left;
    drop((rotation, table));
    let mut store = store;
    for _ in 0..200 {
        let rotation = store.rotation("t").unwrap();
        if rotation.wait_for(std::time::Duration::from_secs(6)).unwrap() {
            break;
        }
        let now = rotation.progress().unwrap().bytes_left;
        assert!(now <= left, "{now} of {left}");
        left = now;
        drop(rotation);
        store = reopened(&world, store);
    }
    assert!(store.rotation("t").unwrap().progress().unwrap().done);
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 600);
}

#[test]
fn a_table_is_shredded_with_the_master_key_that_it_had_to_itself() {
    // A key that wraps something else must not go with the table, and one that the provider keeps must not lose it.
    let world = world(593);
    let provider = FaultyProvider::new(world.kms.clone());
    let store = world.builder().key_provider(provider.clone()).create().unwrap();
    fill(&store.create_table("t", under("alias/old")).unwrap(), 0..50);
    store.create_table("shares", under("alias/old")).unwrap();
    store.create_table("owned", tiny_table(1)).unwrap();

    let refused = |name: &str, days, kind| {
        let before = files(&world.sim.vfs);
        assert_eq!(store.shred_table(name, days).unwrap_err().kind(), kind, "{name}");
        assert_eq!(files(&world.sim.vfs), before, "{name}");
    };
    refused("t", 7, ErrorKind::InvalidArgument);
    refused("owned", 7, ErrorKind::InvalidArgument);
    refused("nobody", 7, ErrorKind::NotFound);
    store.drop_table("shares").unwrap();
    refused("t", 6, ErrorKind::KeyUnavailable);
    provider.inject(Rule::on(Operation::ScheduleKeyDeletion).fail(ProviderReason::Denied));
    refused("t", 7, ErrorKind::KeyUnavailable);
    provider.heal();
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 50);

    let key_file = |files: BTreeMap<PathBuf, Vec<u8>>| files.keys().filter(|path| is_key_file(path)).count();
    assert_eq!(key_file(files(&world.sim.vfs)), 2);
    store.shred_table("t", 7).unwrap();
    assert_eq!(key_file(files(&world.sim.vfs)), 1);
    assert!(store.table("t").is_err());
    let key = world.kms.key("alias/old").unwrap();
    assert_eq!(key.state, strongroom::keys::KeyState::PendingDeletion);
    assert_eq!(store.shred_table("t", 7).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Whether a file of a store is a table's key file.
fn is_key_file(path: &Path) -> bool {
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    names.iter().any(|name| name == "keys") && !names.iter().any(|name| name == "system")
}

/// What is left of a disk after a crash, opened while one of the master keys is refused.
fn opens_without(world: &World, disk: &MemVfs, life: u64, refused: &str) -> Option<usize> {
    world.kms.disable(refused).unwrap();
    let again = world.over(disk.copy(), life);
    let store = again.open().unwrap_or_else(|error| panic!("the store itself does not open: {error}"));
    let found = store.table("t").unwrap();
    let rows = row(&found).ok().map(|row| row.len());
    drop((found, store));
    world.kms.enable(refused).unwrap();
    rows
}

#[test]
fn a_crash_within_a_change_leaves_a_table_that_one_of_the_two_keys_opens() {
    // Between two keys is the one place where a table can be lost for good.
    let world = world(700);
    let store = world.create();
    let table = store.create_table("t", under("alias/old")).unwrap();
    fill(&table, 0..20);
    store.sync().unwrap();
    let begun = world.sim.vfs.events();
    store.update_table("t", MasterKey::customer("alias/new")).unwrap();
    let ended = world.sim.vfs.events();
    let (mut dice, mut life, mut with_new) = (Dice::new(701), 701, 0);
    for event in begun..=ended {
        for loss in Loss::ALL {
            life += 10;
            let disk = world.sim.vfs.crash_at(event, loss, dice.roll());
            let old = opens_without(&world, &disk, life, "alias/new");
            let new = opens_without(&world, &disk, life + 1, "alias/old");
            assert!(old.is_some() != new.is_some(), "behind event {event}, {loss:?}: {old:?} and {new:?}");
            assert_eq!(old.or(new), Some(20), "behind event {event}, {loss:?}");
            with_new += usize::from(new.is_some());
            let over = event == ended && loss != Loss::CutShort;
            assert!(!over || new.is_some(), "the change was acknowledged, and the old key is needed still");
        }
    }
    assert!(with_new > Loss::ALL.len(), "some crashes come behind the change");
}

#[test]
fn readers_and_writers_run_through_changes_and_rotations() {
    // An operation that fails, or reads something else, while keys change is an outage for whoever rotates.
    let folder = tempfile::tempdir().unwrap();
    let kms = LocalKms::in_memory(strongroom::io::Environment::os()).unwrap();
    kms.create_key(Some("alias/one"), "").unwrap();
    kms.create_key(Some("alias/two"), "").unwrap();
    let options = StoreOptions { memtable_bytes: 64 << 10, write_budget_bytes: 256 << 10, ..tiny_options() };
    let open = |create: bool| {
        let builder = Store::builder(folder.path().join("data")).key_provider(kms.clone()).options(options.clone());
        if create { builder.create().unwrap() } else { builder.open().unwrap() }
    };
    let store = open(true);
    let table = store.create_table("t", tiny_table(1)).unwrap();
    let stop = AtomicBool::new(false);
    let rows = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u32)
            .map(|writer| {
                let (table, stop) = (table.clone(), &stop);
                scope.spawn(move || {
                    let (mut row, mut dice) = (Row::new(), Dice::new(u64::from(writer)));
                    while !stop.load(Ordering::Relaxed) {
                        let key = format!("{writer} {:03}", dice.below(400)).into_bytes();
                        if dice.percent(20) {
                            table.delete(&key).unwrap();
                            row.remove(&key);
                        } else {
                            let len = dice.below(200);
                            let value = dice.bytes(len);
                            table.put(&key, &value).unwrap();
                            row.insert(key.clone(), value);
                        }
                        let read = table.get(&key).unwrap();
                        assert_eq!(read.as_deref(), row.get(&key).map(Vec::as_slice));
                    }
                    row
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for entry in table.iter() {
                    entry.unwrap();
                }
            }
        });
        for round in 0..setting("STRONGROOM_ROTATIONS", 12) {
            match round % 4 {
                0 => drop(store.rotate_table_key("t").unwrap()),
                1 => store.update_table("t", MasterKey::customer("alias/one")).unwrap(),
                2 => store.update_table_with("t", KeyChange::new(MasterKey::owned()).rewrap_only()).unwrap(),
                _ => store.update_table("t", MasterKey::customer("alias/two")).unwrap(),
            }
            std::thread::sleep(std::time::Duration::from_millis(40));
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    store.rotation("t").unwrap().wait().unwrap();
    assert_eq!(store.key_report("t").unwrap().generations.len(), 1);
    let expected: Row = rows.into_iter().flatten().collect();
    assert_eq!(row(&table).unwrap(), expected);
    store.close().unwrap();
    kms.disable("alias/one").unwrap();
    let store = open(false);
    assert_eq!(row(&store.table("t").unwrap()).unwrap(), expected);
}

/// Files of a store whose header names this generation of the system key.
fn under_system_generation(disk: &MemVfs, generation: u32) -> Vec<PathBuf> {
    let of_system = |path: &Path| {
        let path = path.to_string_lossy();
        !path.contains("/sst/") && !path.ends_with("LOCK")
    };
    // The subject stands before the generation; that of key files is their table, and the key is the system's all the same.
    let names = |bytes: &Vec<u8>| bytes.get(GENERATION_AT..GENERATION_AT + 4) == Some(&generation.to_le_bytes()[..]);
    let found = disk.snapshot().into_iter().filter(|(path, bytes)| of_system(path) && names(bytes));
    found.map(|(path, _)| path).collect()
}

/// Where the generation stands in every file's header.
const GENERATION_AT: usize = 24;

#[test]
fn the_system_key_rotates_under_traffic_and_nothing_stays_under_the_old_one() {
    // Whoever has the old system key could forge the store's metadata for ever.
    let world = world(800);
    let store = world.create();
    let tables: Vec<Table> =
        (0..20).map(|number| store.create_table(&format!("t{number}"), tiny_table(number)).unwrap()).collect();
    for table in &tables {
        fill(table, 0..20);
    }
    assert!(!under_system_generation(&world.sim.vfs, 1).is_empty());
    store.rotate_system_key().unwrap();
    assert_eq!(store.system_key_generations().unwrap().len(), 2);
    fill(&tables[0], 20..60);
    store.wait_for_system_rotation().unwrap();
    assert_eq!(store.system_key_generations().unwrap().len(), 1);
    assert_eq!(under_system_generation(&world.sim.vfs, 1), Vec::<PathBuf>::new());
    fill(&tables[1], 20..40);
    store.rewrap_system_key().unwrap();
    drop(tables);
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t0").unwrap()).unwrap().len(), 60);
    assert_eq!(row(&store.table("t1").unwrap()).unwrap().len(), 40);
    assert_eq!(row(&store.table("t7").unwrap()).unwrap().len(), 20);
    for _ in 0..2 {
        store.rotate_system_key().unwrap();
        store.rotate_system_key().unwrap();
        store.wait_for_system_rotation().unwrap();
    }
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t0").unwrap()).unwrap().len(), 60);
}

#[test]
fn a_crash_within_a_rotation_of_the_system_key_leaves_a_store_that_opens_and_ends_it() {
    // The system key is the way to everything: a store without it is lost.
    let world = world(810);
    let store = world.create();
    let table = store.create_table("t", tiny_table(1)).unwrap();
    fill(&table, 0..20);
    store.sync().unwrap();
    let begun = world.sim.vfs.events();
    store.rotate_system_key().unwrap();
    let rotated = world.sim.vfs.events();
    table.put("late", "value").unwrap();
    store.sync().unwrap();
    let synced = world.sim.vfs.events();
    store.wait_for_system_rotation().unwrap();
    store.rewrap_system_key().unwrap();
    let ended = world.sim.vfs.events();
    let (mut dice, mut life) = (Dice::new(811), 811);
    for event in begun..=ended {
        for loss in Loss::ALL {
            life += 10;
            let disk = world.sim.vfs.crash_at(event, loss, dice.roll());
            let again = world.over(disk, life);
            let place = format!("behind event {event} of {begun}..{rotated}..{synced}..{ended}, {loss:?}");
            let store = again.open().unwrap_or_else(|error| panic!("{place}: {error}"));
            let rows = row(&store.table("t").unwrap()).unwrap_or_else(|error| panic!("{place}: {error}")).len();
            assert!(rows == 20 || rows == 21, "{place}: {rows}");
            assert!(rows == 21 || event <= synced, "{place}");
            store.table("t").unwrap().put("after", "the crash").unwrap();
            store.wait_for_system_rotation().unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(store.system_key_generations().unwrap().len(), 1, "{place}");
            let store = reopened(&again, store);
            assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), rows + 1, "{place}");
        }
    }
}

#[test]
fn a_schedule_rotates_once_when_it_is_due_whatever_the_clock_and_the_store_do() {
    // A rotation that a policy demands and nobody does is found in the next audit.
    let day = std::time::Duration::from_secs(24 * 3600);
    let world = world(820);
    let store = world.create();
    store.create_table("t", under("alias/old")).unwrap();
    store.create_table("u", tiny_table(0)).unwrap();
    assert!(store.set_rotation_schedule("t", Some(std::time::Duration::from_secs(1))).is_err());
    store.set_rotation_schedule("t", Some(day * 30)).unwrap();
    store.set_system_rotation_schedule(Some(day * 90)).unwrap();
    let newest = |store: &Store| store.key_report("t").unwrap().generations.last().unwrap().generation.0;
    let pass = |days: u32| {
        world.sim.clock.advance(day * days);
        world.sim.scheduler.run_some(400);
    };
    pass(29);
    assert_eq!(newest(&store), 1);
    pass(2);
    assert_eq!(newest(&store), 2);
    let now_ms = strongroom::io::Clock::wall_ms(&*world.sim.clock);
    world.sim.clock.set_wall_ms(now_ms - 20 * 86_400_000);
    pass(1);
    assert_eq!(newest(&store), 2, "a clock that is put back rotates nothing twice");
    let store = reopened(&world, store);
    assert_eq!(store.rotation_schedule("t").unwrap().unwrap().0, day * 30);
    pass(60);
    assert_eq!(newest(&store), 3, "what came due is done, once");
    world.kms.disable("alias/old").unwrap();
    pass(31);
    assert!(world.heard.all().iter().any(|event| matches!(event, Event::RotationFailed { .. })));
    assert_eq!(newest(&store), 3);
    world.kms.enable("alias/old").unwrap();
    pass(1);
    assert_eq!(newest(&store), 4, "a rotation that failed is tried again");
    store.wait_for_system_rotation().unwrap();
    assert!(store.system_key_generations().unwrap()[0].0 >= 2);
    store.set_rotation_schedule("t", None).unwrap();
    pass(100);
    assert_eq!(newest(&store), 4);
    assert_eq!(store.rotation_schedule("t").unwrap(), None);
}

#[cfg(feature = "cli")]
#[test]
fn the_command_line_changes_keys_rotates_and_says_what_is_under_them() {
    // Whoever must retire a master key needs to see that nothing depends on it.
    let desk = crate::cli::Desk::with_table();
    let arn = desk.ok(&["kms", "create-key", "--alias", "alias/tenant"]).trim().to_owned();
    desk.ok(&["put", "t", "key", "value"]);
    desk.ok(&["update-table", "t", "--master-key", "alias/tenant"]);
    assert!(desk.ok(&["keys", "status", "t"]).contains(&arn));
    desk.ok(&["rotate", "t"]);
    desk.ok(&["rotate", "--system"]);
    desk.ok(&["rotate", "t", "--every-days", "365"]);
    let status: serde_json::Value = serde_json::from_str(&desk.ok(&["keys", "status", "--json"])).unwrap();
    let generations = status["Tables"][0]["Generations"].as_array().unwrap();
    assert_eq!((generations.len(), generations[0]["Generation"].as_u64()), (1, Some(3)));
    assert_eq!(generations[0]["MasterKeyArn"], arn.as_str());
    assert_eq!(status["SystemKeyGenerations"], serde_json::json!([2]));
    desk.ok(&["update-table", "t", "--master-key", "owned", "--rewrap-only"]);
    desk.ok(&["kms", "disable", "alias/tenant"]);
    assert_eq!(desk.ok(&["get", "t", "key"]), "value");

    desk.ok(&["kms", "enable", "alias/tenant"]);
    desk.ok(&["create-table", "s", "--master-key", "alias/tenant"]);
    desk.fails(&["drop-table", "t", "--yes", "--destroy-key", "7"], 2);
    desk.ok(&["drop-table", "s", "--yes", "--destroy-key", "7"]);
    assert_eq!(desk.ok(&["list-tables"]), "t\n");
    assert!(desk.ok(&["kms", "list"]).to_lowercase().contains("pending"));
}

#[test]
#[ignore = "a measurement: run it alone, on the disk that is meant (TMPDIR), with optimisation"]
fn measure_rewrapping_many_tables_and_rotating_a_large_one() {
    let folder = tempfile::tempdir().unwrap();
    let kms = LocalKms::create(folder.path().join("keyring"), strongroom::Unlock::key(|key| key.fill(7))).unwrap();
    let old = kms.create_key(Some("alias/old"), "").unwrap().arn;
    kms.create_key(Some("alias/new"), "").unwrap();
    let options = StoreOptions { rotation_bytes_per_sec: u64::MAX, ..StoreOptions::default() };
    let store = Store::builder(folder.path().join("data")).key_provider(kms).options(options).create().unwrap();
    let count = setting("STRONGROOM_TABLES", 10_000);
    let names: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
    let options = TableOptions::new().master_key(MasterKey::customer("alias/old"));
    let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), options.clone())).collect();
    store.create_tables(&wanted).unwrap();
    let began = std::time::Instant::now();
    let report = store.rewrap_all(&old, MasterKey::customer("alias/new")).unwrap();
    println!("{} tables rewrapped in {:.2} s", report.changed, began.elapsed().as_secs_f64());
    assert_eq!((report.changed, report.failed.len()), (count as u64, 0));

    let large = store.create_table("large", TableOptions::new()).unwrap();
    let (mut dice, megabytes) = (Dice::new(1), setting("STRONGROOM_MEGABYTES", 1024));
    for number in 0..megabytes << 10 {
        // Half of it compresses.
        let mut value = dice.bytes(512);
        value.resize(1000, b'x');
        large.put(format!("key {:08}", number * 7919 % (megabytes << 10)), value).unwrap();
    }
    store.compact().unwrap();
    let bytes = store.describe_table("large").unwrap().size_bytes;
    let began = std::time::Instant::now();
    store.rotate_table_key("large").unwrap().wait().unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let raw = (megabytes << 20) as f64;
    println!(
        "{bytes} bytes on disk, {megabytes} MiB of data, rotated in {seconds:.2} s: {:.0} MB/s of data, {:.0} MB/s on disk",
        raw / 1e6 / seconds,
        bytes as f64 / 1e6 / seconds,
    );
}

#[test]
fn a_rotation_writes_nothing_while_the_store_is_quiet() {
    // What is written then is sealed by something that a snapshot of memory holds: two machines that go on from it would use the same
    // key and nonces for different things.
    for steps in 0..60 {
        let world = world(7000 + steps as u64);
        let store = world.create();
        let table = store.create_table("t", under("alias/old")).unwrap();
        fill(&table, 0..3);
        store.rotate_table_key("t").unwrap();
        world.sim.scheduler.run_some(steps);
        store.quiesce().unwrap();
        let before = files(&world.sim.vfs);
        for _ in 0..20 {
            world.sim.clock.advance(std::time::Duration::from_millis(250));
            world.sim.scheduler.run_until_idle();
        }
        let after = files(&world.sim.vfs);
        assert!(after.iter().all(|(name, bytes)| before.get(name) == Some(bytes)), "after {steps} steps");
        store.rotation("t").unwrap().wait().unwrap();
        assert_eq!(row(&table).unwrap().len(), 3);
    }
}

#[test]
fn a_new_system_key_comes_into_use_though_a_manifest_is_begun_meanwhile() {
    // Whoever has the machine snapshotted while a key is rotated would find the store read-only.
    let world = world(7100);
    let faulty = FaultVfs::new(world.sim.vfs.clone());
    let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    fill(&table, 0..50);
    let (quieted, written) = (store.clone(), table.clone());
    let is_manifest = |path: &Path| path.starts_with(Path::new(DIR).join("manifest"));
    faulty.inject(FaultRule::on(DiskOperation::Create).path(is_manifest).call(move |_, _| {
        quieted.quiesce().unwrap();
        fill(&written, 50..60);
        quieted.flush().unwrap();
    }));
    store.rotate_system_key().unwrap();
    fill(&table, 60..70);
    store.wait_for_system_rotation().unwrap();
    assert_eq!(store.system_key_generations().unwrap().len(), 1);
    let manifests = files(&world.sim.vfs).into_keys().filter(|path| is_manifest(path)).count();
    assert_eq!(manifests, 1, "what was written beside is gone");
    let store = reopened(&world, store);
    assert_eq!(row(&store.table("t").unwrap()).unwrap().len(), 70);
}
