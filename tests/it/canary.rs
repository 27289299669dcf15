//! Nothing that a user wrote stands in clear in any file or file name of a store.
//!
//! Keys, values and table names carry unmistakable texts, and go every way that the engine has for them: log, flush, compaction,
//! large values, batches, tables that are dropped, what a crash leaves, temporary files. Then every byte that the
//! disk was ever asked to write is searched for them, at every moment of the run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use strongroom::io::mem::Loss;
use strongroom::options::{Cipher, Compression, Durability, TableOptions};

use crate::world::{World, contents};

const IN_NAME: &str = "CANARY-IN-NAME";
const IN_KEY: &str = "CANARY-IN-KEY";
const IN_VALUE: &str = "CANARY-IN-VALUE";

/// Where a canary stands in the files or their names.
fn sightings(files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    let mut sightings = Vec::new();
    for canary in [IN_NAME, IN_KEY, IN_VALUE] {
        // Half of it would be bad enough, and so would another spelling.
        let half = &canary.as_bytes()[canary.len() - 8..];
        let lower = canary.to_lowercase();
        for (path, bytes) in files {
            let name = path.to_string_lossy();
            let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            if name.contains(canary) || name.contains(&lower) || holds(half) || holds(lower.as_bytes()) {
                sightings.push(format!("{canary} in {name}"));
            }
        }
    }
    sightings
}

fn options(number: usize) -> TableOptions {
    let cipher = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305][number % 2];
    let compression = [Compression::None, Compression::Lz4][number / 2 % 2];
    TableOptions::new().block_bytes(256).cipher(cipher).compression(compression)
}

#[test]
fn no_file_and_no_file_name_holds_what_was_written() {
    // A failure means that whoever gets hold of the disk reads the data without any key.
    let world = World::new(1);
    let disk = world.sim.vfs.clone();
    let store = world.create();
    let look = |when: &str| assert_eq!(sightings(&disk.snapshot()), Vec::<String>::new(), "{when}");
    for number in 0..4 {
        let name = format!("{IN_NAME} {number}");
        let table = store.create_table(&name, options(number)).unwrap();
        look("after a table was created");
        for entry in 0..150 {
            let value = format!("{IN_VALUE} {entry}").repeat(1 + entry % 7);
            table.put(format!("{IN_KEY} {:03}", entry % 90), value).unwrap();
            world.sim.scheduler.run_some(2);
            if entry % 10 == 0 {
                look("while writing");
            }
        }
        table.put_with(format!("{IN_KEY} large"), IN_VALUE.repeat(6_000), Durability::Sync).unwrap();
        table.put(IN_KEY.repeat(2_000), IN_VALUE).unwrap();
        table.delete(format!("{IN_KEY} 000")).unwrap();
        let mut batch = store.batch();
        for entry in 0..20 {
            batch.put(&table, format!("{IN_KEY} batch {entry}"), IN_VALUE.repeat(100));
        }
        batch.commit().unwrap();
        look("after large values and batches");
        store.flush().unwrap();
        look("after a flush");
        store.compact().unwrap();
        look("after compaction");
    }
    store.drop_table(&format!("{IN_NAME} 1")).unwrap();
    store.create_table(&format!("{IN_NAME} 1"), options(3)).unwrap().put(IN_KEY, IN_VALUE).unwrap();
    look("after a table was dropped and made again");
    store.close().unwrap();
    look("after closing");
    let written = disk.events();
    let mut looked = 0;
    for event in (0..=written).step_by(23) {
        for loss in [Loss::CutShort, Loss::Reordered] {
            if event == 0 {
                continue;
            }
            let left = disk.crash_at(event, loss, event);
            assert_eq!(
                sightings(&left.snapshot()),
                Vec::<String>::new(),
                "after a crash behind event {event}, {loss:?}"
            );
            if event.is_multiple_of(5) {
                // What recovery makes of it is no more open than what it found.
                let world = world.over(left, event);
                if let Ok(store) = world.open() {
                    contents(&store).unwrap();
                }
                assert_eq!(sightings(&world.sim.vfs.snapshot()), Vec::<String>::new(), "after recovery");
            }
            looked += 1;
        }
    }
    assert!(looked > 100, "only {looked} crashes");
}

#[test]
fn a_canary_is_seen_where_there_is_one() {
    // If the search could not fail, the test above would say nothing.
    let world = World::new(2);
    let store = world.create();
    store.create_table(IN_NAME, options(0)).unwrap().put(IN_KEY, IN_VALUE).unwrap();
    let disk = &world.sim.vfs;
    for canary in [IN_NAME, IN_KEY, IN_VALUE] {
        disk.plant("/store/wal/leak", format!("\0\0{canary}\0").as_bytes()).unwrap();
        assert_eq!(sightings(&disk.snapshot()).len(), 1, "{canary}");
        disk.delete("/store/wal/leak").unwrap();
    }
    disk.plant(format!("/store/{IN_NAME}"), b"").unwrap();
    assert_eq!(sightings(&disk.snapshot()).len(), 1);
}
