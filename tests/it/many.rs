//! Many tables are the normal case: they share what each of them is too small for, and none of them holds the others up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom::event::Event;
use strongroom::inspect::Inspection;
use strongroom::io::Vfs;
use strongroom::io::fault::{FaultVfs, Operation, Rule};
use strongroom::options::StoreOptions;
use strongroom::{Result, Store, Table, TableOptions};

use crate::reads::allocated_bytes;
use crate::world::{DIR, Dice, World, contents, row, tiny_table};

/// A world whose memtables are frozen by nothing but a flush.
fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    world.options = StoreOptions { compaction_threads: 1, ..StoreOptions::default() };
    world
}

fn tables(store: &Store, count: usize) -> Vec<Table> {
    let names: Vec<String> = (0..count).map(|number| format!("table {number:03}")).collect();
    let wanted: Vec<(&str, TableOptions)> = names.iter().map(|name| (name.as_str(), tiny_table(0))).collect();
    store.create_tables(&wanted).unwrap()
}

fn fill(tables: &[Table], round: usize) {
    for (number, table) in tables.iter().enumerate() {
        for key in 0..5 {
            table.put(format!("key {key} {round}"), format!("{number} wrote {key} in {round}")).unwrap();
        }
        table.put("newest", format!("{number} in {round}")).unwrap();
    }
}

/// As [`fill`], with so much that few tables make a container of several megabytes.
fn fill_well(tables: &[Table], dice: &mut Dice) {
    for table in tables {
        for key in 0..50 {
            table.put(format!("key {key}"), dice.bytes(8 << 10)).unwrap();
        }
    }
}

fn is_container(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "set")
}

fn containers(world: &World) -> Vec<PathBuf> {
    world.sim.vfs.list().into_iter().filter(|path| is_container(path)).collect()
}

/// Files of sorted tables, by whether they are containers.
fn sorted_files(world: &World) -> (usize, usize) {
    let own = world.sim.vfs.list().into_iter().filter(|path| path.extension().is_some_and(|end| end == "sst"));
    (own.count(), containers(world).len())
}

/// Let the background do what there is to do.
fn settle(world: &World) {
    for _ in 0..20 {
        world.sim.clock.advance(std::time::Duration::from_millis(200));
        world.sim.scheduler.run_some(50);
    }
}

fn check_files(world: &World) {
    let inspection = Inspection::of(DIR).key_provider(Arc::new(world.kms.clone())).environment(world.sim.environment());
    let report = inspection.verify(&mut |_| ()).unwrap();
    assert!(report.is_whole() && report.orphans.is_empty(), "{report:?}");
    let inspection = Inspection::of(DIR).environment(world.sim.environment());
    let scrub = inspection.scrub(&mut |_| ()).unwrap();
    assert!(scrub.is_clean() && scrub.strays.is_empty(), "{scrub:?}");
}

#[test]
fn small_memtables_of_many_tables_go_into_one_file() {
    // A file for each would cost a creation and a sync for a few hundred bytes: ten thousand tables would wait for the disk.
    let world = world(1);
    let store = world.create();
    let tables = tables(&store, 60);
    fill(&tables, 0);
    store.flush().unwrap();
    assert_eq!(sorted_files(&world), (0, 1));
    let before = contents(&store).unwrap();
    assert!(before.values().all(|(_, row)| row.len() == 6));
    store.close().unwrap();
    check_files(&world);

    let store = world.open().unwrap();
    assert_eq!(contents(&store).unwrap(), before, "each finds its own in the file");
    for table in &["table 003", "table 059"] {
        store.rotate_table_key(table).unwrap();
    }
    settle(&world);
    assert_eq!(contents(&store).unwrap(), before);
    store.close().unwrap();
    check_files(&world);
}

#[test]
fn a_container_goes_with_its_last_table_and_not_before() {
    // Removed too soon it would take other tables' data along; never removed it would fill the disk.
    let world = world(2);
    let store = world.create();
    let tables = tables(&store, 8);
    fill(&tables, 0);
    store.flush().unwrap();
    for table in &tables[..7] {
        store.drop_table(table.name()).unwrap();
        settle(&world);
        assert_eq!(row(&tables[7]).unwrap().len(), 6);
        assert_eq!(sorted_files(&world), (0, 1));
    }
    store.drop_table(tables[7].name()).unwrap();
    settle(&world);
    assert_eq!(sorted_files(&world), (0, 0));
    store.close().unwrap();
    check_files(&world);
}

#[test]
fn what_lives_in_a_container_that_is_mostly_dead_is_carried_to_another() {
    // One small table that is never written again would otherwise keep megabytes of dead ones on the disk.
    let world = world(3);
    let store = world.create();
    let tables = tables(&store, 40);
    fill(&tables, 0);
    store.flush().unwrap();
    let bytes = |world: &World| {
        containers(world).iter().map(|path| world.sim.vfs.metadata(path).unwrap().len_bytes).sum::<u64>()
    };
    let before = bytes(&world);
    // One is read from before the move to behind it, another not used at all.
    let mut walk = tables[38].iter();
    let first = walk.next().unwrap().unwrap();
    for table in &tables[..36] {
        store.drop_table(table.name()).unwrap();
    }
    settle(&world);
    assert!(bytes(&world) > before, "the old file is still looked at");
    let rest: Result<Vec<_>> = walk.collect();
    assert_eq!((first.0.as_ref(), rest.unwrap().len()), (&b"key 0 0"[..], 5));
    settle(&world);
    assert!(bytes(&world) < before * 3 / 10, "{} of {before} bytes", bytes(&world));
    let held = contents(&store).unwrap();
    assert_eq!(held.values().map(|(_, row)| row.len()).collect::<Vec<_>>(), [6; 4]);
    store.close().unwrap();
    check_files(&world);

    let store = world.open().unwrap();
    assert_eq!(contents(&store).unwrap(), held);
    store.flush().unwrap();
    store.compact().unwrap();
    assert_eq!(contents(&store).unwrap(), held);
}

#[test]
fn a_container_is_not_carried_while_the_disk_has_no_room_for_it_beside_what_is_kept_and_afterwards_it_is() {
    // Commits were let in because of that room: the first of them that finds it gone poisons the store.
    let world = world(7);
    let faulty = FaultVfs::new(world.sim.vfs.clone());
    let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
    let tables = tables(&store, 8);
    fill_well(&tables, &mut Dice::new(7));
    store.flush().unwrap();
    let before = containers(&world);
    assert_eq!(before.len(), 1);
    // As a copy it would fit, but not beside the four megabytes that are kept for the log and the manifest.
    faulty.set_room(Some(3 << 20));
    tables[..5].iter().for_each(|table| store.drop_table(table.name()).unwrap());
    settle(&world);
    assert_eq!(containers(&world), before);
    let heard = world.heard.all();
    assert_eq!(heard.iter().filter(|event| matches!(event, Event::DiskFull { .. })).count(), 1, "{heard:?}");

    faulty.set_room(None);
    settle(&world);
    let after = containers(&world);
    assert!(after.len() == 1 && after != before, "{after:?}");
    assert!(contents(&store).unwrap().values().all(|(_, row)| row.len() == 50));
    store.close().unwrap();
    check_files(&world);
}

#[test]
fn a_container_that_could_not_be_written_goes_and_what_was_to_be_in_it_does_not() {
    // Each attempt would leave another one: a disk that was full for a moment stays full, of files that nobody needs.
    let world = world(8);
    let faulty = FaultVfs::new(world.sim.vfs.clone());
    let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
    let tables = tables(&store, 8);
    fill_well(&tables, &mut Dice::new(8));
    faulty.inject(Rule::on(Operation::Write).path(is_container).always().fail_os(28));
    for _ in 0..3 {
        store.flush().unwrap_err();
        assert_eq!(containers(&world), [] as [PathBuf; 0]);
    }
    faulty.clear();
    store.flush().unwrap();
    assert_eq!(sorted_files(&world), (0, 1));
    assert!(contents(&store).unwrap().values().all(|(_, row)| row.len() == 50));
    store.close().unwrap();
    check_files(&world);
}

#[test]
fn flushes_that_are_given_up_in_their_midst_leave_no_container() {
    // A store that is quiesced every hour, for a snapshot of its machine, would fill the disk with half of its flushes.
    let (mut begun, mut flushed) = (0, 0);
    for steps in 0..60 {
        let mut world = world(0x900 + steps as u64);
        world.options.memtable_bytes = 4 << 10;
        let store = world.create();
        let tables = tables(&store, 6);
        // Each of them has one frozen memtable, and all of these make one flush.
        tables.iter().for_each(|table| table.put("key", vec![b'v'; 5 << 10]).unwrap());
        tables.iter().for_each(|table| table.put("late", "too").unwrap());
        world.sim.scheduler.run_some(steps);
        begun += containers(&world).len();
        store.quiesce().unwrap();
        // Whatever is there is named.
        let copy = world.over(world.sim.vfs.copy(), 0xa00 + steps as u64);
        check_files(&copy);
        flushed += containers(&world).len();
        store.flush().unwrap();
        assert!(contents(&store).unwrap().values().all(|(_, row)| row.len() == 2));
    }
    assert!(begun > flushed && flushed > 0, "{begun} were begun, {flushed} came to their end");
}

#[test]
fn a_small_table_that_is_flushed_again_and_again_keeps_few_files_without_a_compaction() {
    // Each round would leave a file of level 0, and ten thousand tables would queue for compactions of a few KiB.
    let world = world(4);
    let store = world.create();
    let tables = tables(&store, 12);
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..30 {
        fill(&tables, round);
        if round % 3 == 0 {
            tables.iter().for_each(|table| table.delete(format!("key 0 {round}")).unwrap());
        }
        store.flush().unwrap();
        *expected.entry("keys".to_owned()).or_default() += if round % 3 == 0 { 4 } else { 5 };
        settle(&world);
    }
    assert_eq!(store.metrics().compactions.jobs, 0);
    for table in &tables {
        assert_eq!(row(table).unwrap().len(), expected["keys"] + 1);
        assert!(table.get("newest").unwrap().is_some_and(|value| value.ends_with(b"in 29")));
    }
    let (own, containers) = sorted_files(&world);
    assert!(own == 0 && containers <= 8, "{own} and {containers}");
    store.close().unwrap();
    check_files(&world);
}

#[test]
fn a_snapshot_sees_what_it_saw_whatever_is_merged_with_a_flush() {
    // A merge that drops a version somebody still reads is data that changes under its reader.
    let world = world(5);
    let store = world.create();
    let tables = tables(&store, 6);
    let mut snapshots = Vec::new();
    for round in 0..12 {
        fill(&tables, round);
        tables[0].delete("key 1 0").unwrap();
        store.flush().unwrap();
        snapshots.push((round, store.snapshot()));
        for (round, snapshot) in &snapshots {
            let value = snapshot.get(&tables[3], "newest").unwrap();
            assert!(value.is_some_and(|value| value.ends_with(format!("in {round}").as_bytes())));
        }
    }
}

#[test]
fn a_batch_of_tables_is_made_with_one_wait_for_the_disk_per_folder_and_not_per_table() {
    // A hundred thousand tables would be a minute of waiting.
    let world = world(6);
    let store = world.create();
    let made = tables(&store, 300);
    assert_eq!(made.len(), 300);
    assert!(world.sim.vfs.metadata(Path::new(DIR)).is_ok());
    let leftovers = world.sim.vfs.list().into_iter().filter(|path| path.to_string_lossy().ends_with(".tmp"));
    assert_eq!(leftovers.count(), 0);
    store.close().unwrap();
    check_files(&world);
    let store = world.open().unwrap();
    assert_eq!(store.table_names().len(), 300);
}

/// All that an idle table takes, its name of 15 bytes and what the allocator rounds up included.
const IDLE_BYTES_MAX: isize = 640;

/// Tells the child of the next test where its store lies.
const IDLE_DIR: &str = "STRONGROOM_IDLE_DIR";

#[test]
fn an_idle_table_takes_little_memory() {
    // A hundred thousand tables are a normal store, and most of them are idle: at a few KiB each they would take more memory than data.
    let folder = tempfile::tempdir().unwrap();
    // Alone in a process, so that what other tests allocate is not counted.
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "many::idle_tables", "--ignored", "--nocapture"])
        .env(IDLE_DIR, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{said} {}", String::from_utf8_lossy(&child.stderr));
    let bytes = said.lines().find_map(|line| line.strip_prefix("bytes per idle table: ")).expect(&said);
    let bytes: isize = bytes.parse().unwrap();
    assert!((1..=IDLE_BYTES_MAX).contains(&bytes), "{bytes} bytes");
}

#[test]
#[ignore = "the child of an_idle_table_takes_little_memory"]
fn idle_tables() {
    const TABLES: usize = 4000;
    let Ok(folder) = std::env::var(IDLE_DIR) else { return };
    let folder = Path::new(&folder);
    let unlock = || strongroom::Unlock::key(|key| key.fill(7));
    let kms = strongroom::LocalKms::create(folder.join("keyring"), unlock()).unwrap();
    let open = |kms: &strongroom::LocalKms| Store::builder(folder.join("store")).key_provider(kms.clone());
    let store = open(&kms).create().unwrap();
    store.close().unwrap();
    drop(store);
    let cost = |count: usize| {
        let before = allocated_bytes();
        let store = open(&kms).open().unwrap();
        assert_eq!(store.table_names().len(), count);
        let after = allocated_bytes();
        (store, after - before)
    };
    let (store, empty) = cost(0);
    let names: Vec<String> = (0..TABLES).map(|number| format!("tenant-{number:08}")).collect();
    for names in names.chunks(1000) {
        let wanted: Vec<_> = names.iter().map(|name| (name.as_str(), TableOptions::new())).collect();
        drop(store.create_tables(&wanted).unwrap());
    }
    store.close().unwrap();
    drop(store);
    let (store, full) = cost(TABLES);
    println!("bytes per idle table: {}", (full - empty) / TABLES as isize);
    store.close().unwrap();
}
