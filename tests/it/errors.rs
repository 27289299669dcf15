//! A call that cannot be meant so is refused with the right kind of error, and leaves the directory byte for byte as it was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use strongroom::io::mem::MemVfs;
use strongroom::io::os::OsEntropy;
use strongroom::io::{Environment, Vfs};
use strongroom::options::{Durability, MasterKey, StoreOptions, TableOptions};
use strongroom::types::{Epoch, KEY_BYTES_MAX, TABLE_NAME_BYTES_MAX, VALUE_BYTES_MAX};
use strongroom::{Batch, Builder, Error, ErrorKind, LocalKms, Result, Store, Table, Unlock};

use crate::tamper::with_right_crc;
use crate::world::{DIR, World, closed_world, contents, files_below, tiny_table};

fn kind<T>(outcome: Result<T>) -> ErrorKind {
    match outcome {
        Ok(_) => panic!("that should have been refused"),
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.advice().is_empty());
            error.kind()
        }
    }
}

/// That opening is refused with `expected` and changes nothing.
fn refuses(world: &World, builder: Builder, expected: ErrorKind) -> Error {
    let before = world.sim.vfs.snapshot();
    let error = builder.open().err().unwrap_or_else(|| panic!("opened, though {expected:?} was expected"));
    assert_eq!(error.kind(), expected, "{error}");
    assert_eq!(world.sim.vfs.snapshot(), before, "{error}: the directory has changed");
    error
}

#[test]
fn keys_and_values_beyond_their_limits_are_refused_and_nothing_is_written() {
    // A failure means that something is taken that can never be read back, or that a limit holds on one way in and not on another.
    let world = World::new(1);
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    table.put(b"k", b"v").unwrap();
    let before = world.sim.vfs.snapshot();
    let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
    // Never touched, so it costs address space only.
    let long_value = vec![0; VALUE_BYTES_MAX + 1];
    assert_eq!(kind(table.put(b"", b"v")), ErrorKind::InvalidArgument);
    assert_eq!(kind(table.put(&long_key, b"v")), ErrorKind::LimitExceeded);
    assert_eq!(kind(table.put(b"k", &long_value)), ErrorKind::LimitExceeded);
    assert_eq!(kind(table.delete(b"")), ErrorKind::InvalidArgument);
    assert_eq!(kind(table.delete(&long_key)), ErrorKind::LimitExceeded);
    type Add = fn(&mut Batch, &Table, &[u8], &[u8]);
    let bad: [Add; 4] = [
        |batch, table, _, _| _ = batch.put(table, b"", b"v"),
        |batch, table, key, _| _ = batch.put(table, key, b"v"),
        |batch, table, _, value| _ = batch.put(table, b"k", value),
        |batch, table, key, _| _ = batch.delete(table, key),
    ];
    for add in bad {
        let mut batch = store.batch();
        batch.put(&table, b"first", b"of the batch");
        add(&mut batch, &table, &long_key, &long_value);
        batch.put(&table, b"last", b"of the batch");
        assert!(matches!(kind(batch.commit()), ErrorKind::InvalidArgument | ErrorKind::LimitExceeded));
    }
    assert_eq!(world.sim.vfs.snapshot(), before);
    assert_eq!(table.get(b"first").unwrap(), None);
    // Reading what cannot be is refused too, or simply finds nothing; it never panics.
    for key in [&b""[..], &long_key] {
        assert!(table.get(key).is_ok_and(|value| value.is_none()) || table.get(key).is_err());
        assert!(table.cursor().unwrap().seek(key).is_ok());
    }

    // The limits themselves are allowed.
    table.put(&long_key[1..], b"the longest key").unwrap();
    table.put(b"x", vec![]).unwrap();
    store.flush().unwrap();
    assert_eq!(table.get(&long_key[1..]).unwrap().as_deref(), Some(&b"the longest key"[..]));
    assert_eq!(table.get(b"x").unwrap().as_deref(), Some(&b""[..]));
}

#[test]
fn a_batch_beyond_its_limit_is_refused_whole() {
    // A failure means that a batch is written of which the log could not hold the rest.
    let world = World::new(1);
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    let before = world.sim.vfs.snapshot();
    let mut batch = store.batch();
    let value = vec![0; 400 << 20];
    batch.put(&table, b"a", &value[..16]);
    for key in [b"b", b"c", b"d"] {
        batch.put(&table, key, &value);
    }
    assert_eq!(kind(batch.commit_with(Durability::Sync)), ErrorKind::LimitExceeded);
    assert_eq!(world.sim.vfs.snapshot(), before);
    assert_eq!(table.iter().count(), 0);
}

#[test]
fn tables_that_cannot_be_are_not_made() {
    // A failure means a table whose name nobody can say again, or whose settings no reader takes.
    let world = World::new(1);
    let store = world.create();
    store.create_table("t", tiny_table(0)).unwrap();
    let before = world.sim.vfs.snapshot();
    let long = "n".repeat(TABLE_NAME_BYTES_MAX + 1);
    assert_eq!(kind(store.create_table("", tiny_table(0))), ErrorKind::InvalidArgument);
    assert_eq!(kind(store.create_table(&long, tiny_table(0))), ErrorKind::LimitExceeded);
    assert_eq!(kind(store.create_table("t", tiny_table(0))), ErrorKind::AlreadyExists);
    assert_eq!(kind(store.create_table("u", TableOptions::new().block_bytes(255))), ErrorKind::InvalidArgument);
    assert_eq!(kind(store.create_table("u", TableOptions::new().filter_bits_per_key(33))), ErrorKind::InvalidArgument);
    let unknown_key = TableOptions::new().master_key(MasterKey::customer("alias/nobody"));
    assert_eq!(kind(store.create_table("u", unknown_key.clone())), ErrorKind::KeyUnavailable);
    // All or none; and none is fine, and no harm.
    assert_eq!(store.create_tables(&[]).unwrap().len(), 0);
    let fine = tiny_table(0);
    assert_eq!(kind(store.create_tables(&[("u", fine.clone()), ("t", fine.clone())])), ErrorKind::AlreadyExists);
    assert_eq!(kind(store.create_tables(&[("u", fine.clone()), ("u", fine.clone())])), ErrorKind::AlreadyExists);
    assert_eq!(kind(store.create_tables(&[("u", fine.clone()), ("v", unknown_key)])), ErrorKind::KeyUnavailable);
    assert_eq!(kind(store.create_tables(&[("u", fine.clone()), (&long, fine.clone())])), ErrorKind::LimitExceeded);
    assert_eq!(world.sim.vfs.snapshot(), before);
    assert_eq!(store.table_names(), ["t"]);

    assert_eq!(kind(store.table("u")), ErrorKind::NotFound);
    assert_eq!(kind(store.describe_table("u")), ErrorKind::NotFound);
    assert_eq!(kind(store.drop_table("u")), ErrorKind::NotFound);
    assert_eq!(world.sim.vfs.snapshot(), before);
    // Any other name is only a name.
    for name in ["../../etc/passwd", "a/b", ".", "\0", "naïve \u{202e} name", &long[1..]] {
        store.create_table(name, fine.clone()).unwrap().put(b"k", name).unwrap();
    }
    store.close().unwrap();
    let world = world.over(world.sim.vfs.copy(), 2);
    let found = contents(&world.open().unwrap()).unwrap();
    assert_eq!(found.len(), 7);
    assert!(found.iter().all(|(name, (_, row))| name == "t" || row[&b"k"[..]] == name.as_bytes()));
    assert!(world.sim.vfs.list().iter().all(|path| path.starts_with(DIR)));
}

#[test]
fn handles_that_outlive_what_they_stand_for_say_so() {
    // A failure means that somebody writes into a table that is gone, or into one that only has the same name.
    let world = World::new(1);
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    let other = store.create_table("o", tiny_table(0)).unwrap();
    table.put(b"k", b"v").unwrap();
    let snapshot = store.snapshot();
    let mut cursor = table.cursor().unwrap();
    let mut range = table.iter();
    let mut batch = store.batch();
    batch.put(&table, b"k", b"v").put(&other, b"k", b"v");
    store.drop_table("t").unwrap();
    let again = store.create_table("t", tiny_table(0)).unwrap();
    assert_ne!(again.id(), table.id());
    assert_eq!(kind(table.get(b"k")), ErrorKind::Closed);
    assert_eq!(kind(table.put(b"k", b"v")), ErrorKind::Closed);
    assert_eq!(kind(table.describe()), ErrorKind::Closed);
    assert_eq!(kind(table.cursor()), ErrorKind::Closed);
    assert_eq!(kind(table.iter().next().unwrap()), ErrorKind::Closed);
    assert_eq!(kind(snapshot.get(&table, b"k")), ErrorKind::Closed);
    assert_eq!(kind(cursor.first().map(drop)), ErrorKind::Closed);
    assert_eq!(kind(range.next().unwrap()), ErrorKind::Closed);
    assert_eq!(kind(batch.commit()), ErrorKind::Closed);
    assert_eq!((again.get(b"k").unwrap(), other.get(b"k").unwrap()), (None, None));
    // A table that was made after a snapshot was empty then.
    again.put(b"k", b"new").unwrap();
    assert_eq!(snapshot.get(&again, b"k").unwrap(), None);

    store.close().unwrap();
    store.close().unwrap();
    assert_eq!(kind(store.table("t")), ErrorKind::Closed);
    assert_eq!(kind(store.create_table("u", tiny_table(0))), ErrorKind::Closed);
    assert_eq!(kind(store.sync()), ErrorKind::Closed);
    assert_eq!(kind(store.flush()), ErrorKind::Closed);
    assert_eq!(kind(again.get(b"k")), ErrorKind::Closed);
    assert_eq!(kind(again.put(b"k", b"v")), ErrorKind::Closed);
    assert_eq!(kind(snapshot.get(&again, b"k")), ErrorKind::Closed);
}

#[test]
fn a_table_of_another_store_is_refused() {
    // A failure means that a batch writes into a store that its caller did not mean.
    let (one, two) = (World::new(1), World::new(2));
    let (first, second) = (one.create(), two.create());
    let foreign = second.create_table("t", tiny_table(0)).unwrap();
    let own = first.create_table("t", tiny_table(0)).unwrap();
    let mut batch = first.batch();
    batch.put(&own, b"k", b"v").put(&foreign, b"k", b"v");
    assert_eq!(kind(batch.commit()), ErrorKind::InvalidArgument);
    assert_eq!(kind(first.snapshot().get(&foreign, b"k")), ErrorKind::InvalidArgument);
    assert_eq!(own.get(b"k").unwrap(), None);
}

#[test]
fn a_store_that_is_open_is_not_opened_again() {
    // A failure means that two processes write into one log.
    let world = World::new(1);
    let store = world.create();
    small(&store);
    refuses(&world, world.builder(), ErrorKind::Locked);
    assert_eq!(kind(world.builder().create()), ErrorKind::AlreadyExists);
    store.table("t").unwrap().put(b"k2", b"v").unwrap();
    store.close().unwrap();
    world.open().unwrap();
}

fn small(store: &Store) {
    let table = store.create_table("t", tiny_table(0)).unwrap();
    table.put(b"k", b"v").unwrap();
}

#[test]
fn what_is_no_store_is_not_opened_and_what_is_there_is_not_overwritten() {
    // A failure means that a typing mistake in a path destroys somebody's files, or makes an empty store where one is missed.
    let world = World::new(1);
    let disk = world.sim.vfs.clone();
    refuses(&world, world.builder(), ErrorKind::NotFound);
    disk.create_dir(DIR.as_ref()).unwrap();
    refuses(&world, world.builder(), ErrorKind::NotFound);
    disk.plant(format!("{DIR}/holiday.jpg"), b"precious").unwrap();
    let before = disk.snapshot();
    refuses(&world, world.builder(), ErrorKind::NotFound);
    assert_eq!(kind(world.builder().create()), ErrorKind::AlreadyExists);
    assert_eq!(kind(world.builder().open_or_create()), ErrorKind::AlreadyExists);
    assert_eq!(disk.snapshot(), before);
    disk.delete(format!("{DIR}/holiday.jpg")).unwrap();
    disk.plant("/file", b"not a directory").unwrap();
    let builder = || Store::builder("/file").key_provider(world.kms.clone()).environment(world.sim.environment());
    assert_eq!(kind(builder().open()), ErrorKind::NotFound);
    assert_eq!(kind(builder().create()), ErrorKind::AlreadyExists);
    assert_eq!(disk.read("/file").unwrap(), b"not a directory");

    let store = world.builder().open_or_create().unwrap();
    small(&store);
    let before = disk.snapshot();
    assert_eq!(kind(world.builder().create()), ErrorKind::AlreadyExists);
    assert_eq!(disk.snapshot(), before);
    store.close().unwrap();
    let before = disk.snapshot();
    assert_eq!(kind(world.builder().create()), ErrorKind::AlreadyExists);
    assert_eq!(disk.snapshot(), before);
    assert_eq!(contents(&world.builder().open_or_create().unwrap()).unwrap().len(), 1);
}

#[test]
fn a_store_without_its_current_is_not_taken_for_an_empty_place() {
    // A failure means that one lost file makes `open_or_create` wipe a store.
    let world = closed_world(1);
    world.sim.vfs.delete(format!("{DIR}/CURRENT")).unwrap();
    let before = world.sim.vfs.snapshot();
    assert_ne!(kind(world.builder().open()), ErrorKind::NotFound);
    assert_eq!(kind(world.builder().create()), ErrorKind::AlreadyExists);
    assert!(world.builder().open_or_create().is_err());
    assert_eq!(world.sim.vfs.snapshot(), before);
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_is_touched() {
    // A failure means that a mistyped setting leaves half a store.
    let world = World::new(1);
    for change in [
        (|o| o.memtable_bytes = 10) as fn(&mut StoreOptions),
        |o| o.write_budget_bytes = 1,
        |o| o.log_segment_bytes = 0,
        |o| o.level_factor = 1,
        |o| o.level_zero_stop_files = 1,
        |o| o.compaction_threads = 0,
        |o| o.permit = std::time::Duration::from_secs(301),
    ] {
        let mut options = StoreOptions::default();
        change(&mut options);
        assert_eq!(kind(world.builder().options(options).create()), ErrorKind::InvalidArgument);
    }
    let without = Store::builder(DIR).environment(world.sim.environment());
    assert_eq!(kind(without.clone().create()), ErrorKind::InvalidArgument);
    assert_eq!(kind(without.open()), ErrorKind::InvalidArgument);
    assert_eq!(world.sim.vfs.events(), 0);
}

#[test]
fn a_keyring_inside_the_store_is_refused() {
    // A failure means a key that lies beside what it protects.
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("store");
    let kms = LocalKms::create(dir.path().join("keyring"), Unlock::key(|key| key.fill(7))).unwrap();
    // A store around the keyring is as bad as a keyring in the store.
    let before = files_below(dir.path());
    assert_eq!(kind(Store::builder(dir.path()).key_provider(kms.clone()).create()), ErrorKind::InvalidArgument);
    assert_eq!(kind(Store::builder(inside.join("..")).key_provider(kms.clone()).create()), ErrorKind::InvalidArgument);
    assert_eq!(
        kind(Store::builder(dir.path()).owned_key_provider(Arc::new(kms.clone())).key_provider(kms.clone()).open()),
        ErrorKind::InvalidArgument
    );
    assert_eq!(files_below(dir.path()), before);
    Store::builder(inside).key_provider(kms).create().unwrap();
}

#[test]
fn a_wrong_passphrase_or_key_opens_no_keyring_and_changes_nothing() {
    // A failure means that anybody opens a keyring, or that a wrong passphrase damages it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyring");
    LocalKms::create(&path, Unlock::passphrase("correct horse")).unwrap();
    let before = files_below(dir.path());
    assert_eq!(kind(LocalKms::open(&path, Unlock::passphrase("correct hors"))), ErrorKind::WrongPassphrase);
    assert_eq!(kind(LocalKms::open(&path, Unlock::key(|key| key.fill(7)))), ErrorKind::WrongPassphrase);
    assert_eq!(files_below(dir.path()), before);
    LocalKms::open(&path, Unlock::passphrase("correct horse")).unwrap();
}

#[test]
fn another_keyring_does_not_open_a_store() {
    // A failure means that a store opens without its key, or that trying the wrong one harms it.
    let world = closed_world(1);
    let other = World::new(2).kms;
    let error = refuses(&world, world.builder().key_provider(other), ErrorKind::KeyUnavailable);
    assert!(error.to_string().contains("not found") || matches!(error, Error::KeyUnavailable { .. }), "{error}");
    // One key on each side: the store's own, and that of a table.
    let customer = world.kms.create_key(Some("alias/mine"), "").unwrap();
    let store = world.open().unwrap();
    let options = tiny_table(0).master_key(MasterKey::customer("alias/mine"));
    store.create_table("mine", options).unwrap().put(b"k", b"v").unwrap();
    store.close().unwrap();
    world.kms.disable(&customer.arn).unwrap();
    let world = world.over(world.sim.vfs.copy(), 3);
    let store = world.open().unwrap();
    let before = world.sim.vfs.snapshot();
    assert_eq!(kind(store.table("mine").unwrap().get(b"k")), ErrorKind::KeyUnavailable);
    assert_eq!(kind(store.table("mine").unwrap().put(b"k", b"w")), ErrorKind::KeyUnavailable);
    assert_eq!(world.sim.vfs.snapshot(), before);
    store.table("first").unwrap().put(b"k", b"v").unwrap();
    world.kms.enable(&customer.arn).unwrap();
    // For so long a refusal is shared.
    world.sim.clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(store.table("mine").unwrap().get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_table_under_a_key_that_is_disabled_is_not_made() {
    // A failure means that a provider that says no leaves half a table behind.
    let world = World::new(1);
    let store = world.create();
    let key = world.kms.create_key(Some("alias/mine"), "").unwrap();
    world.kms.disable("alias/mine").unwrap();
    let before = world.sim.vfs.snapshot();
    let options = tiny_table(0).master_key(MasterKey::customer(&key.arn));
    assert_eq!(kind(store.create_table("t", options.clone())), ErrorKind::KeyUnavailable);
    assert_eq!(world.sim.vfs.snapshot(), before);
    world.kms.enable("alias/mine").unwrap();
    store.create_table("t", options).unwrap().put(b"k", b"v").unwrap();
}

#[test]
fn a_version_or_feature_that_this_build_does_not_know_is_refused() {
    // A failure means that an old build reads, or rewrites, what it does not understand.
    let world = closed_world(1);
    let files: Vec<PathBuf> = world.sim.vfs.list().into_iter().filter(|path| !path.ends_with("LOCK")).collect();
    assert!(files.len() > 6);
    for path in files {
        // Format version, required features, kind of file, suite.
        for (offset, byte) in [(8, 2), (16, 1), (12, 99), (13, 99)] {
            let world = world.over(world.sim.vfs.copy(), 2);
            let mut bytes = world.sim.vfs.read(&path).unwrap();
            let unit = bytes.len() / 2;
            let units = if path.starts_with(format!("{DIR}/keys")) { vec![0, unit] } else { vec![0] };
            for unit in units {
                bytes[unit + offset] = byte;
                with_right_crc(&mut bytes[unit..unit + 160]);
            }
            world.sim.vfs.overwrite(&path, 0, &bytes).unwrap();
            let before = world.sim.vfs.snapshot();
            let what = format!("{} with {byte} at {offset}", path.display());
            let error = match world.open() {
                Err(error) => {
                    assert_eq!(world.sim.vfs.snapshot(), before, "{what}: the directory has changed");
                    error
                }
                Ok(store) => contents(&store).expect_err(&what),
            };
            let expected = if offset < 13 && offset != 12 || offset == 16 {
                matches!(error.kind(), ErrorKind::UnknownVersion)
            } else {
                matches!(error.kind(), ErrorKind::UnknownVersion | ErrorKind::Tampering)
            };
            assert!(expected, "{what}: {error}");
        }
    }
}

#[test]
fn a_store_of_the_suite_that_seals_nothing_is_refused() {
    // A failure means that a store can be replaced by one without any encryption, and nobody notices.
    let world = closed_world(1);
    for path in world.sim.vfs.list() {
        if path.ends_with("LOCK") {
            continue;
        }
        let world = world.over(world.sim.vfs.copy(), 2);
        let mut bytes = world.sim.vfs.read(&path).unwrap();
        let unit = bytes.len() / 2;
        let units = if path.starts_with(format!("{DIR}/keys")) { vec![0, unit] } else { vec![0] };
        for unit in units {
            bytes[unit..unit + 8].copy_from_slice(b"PLAINkv\x1a");
            bytes[unit + 13] = 0x80;
            with_right_crc(&mut bytes[unit..unit + 160]);
        }
        world.sim.vfs.overwrite(&path, 0, &bytes).unwrap();
        let outcome = world.open().and_then(|store| contents(&store));
        assert!(outcome.is_err(), "{}", path.display());
    }
}

#[test]
fn a_store_made_from_a_seed_is_refused_where_randomness_is_real() {
    // A failure means that somebody keeps real data under keys that follow from a number.
    let world = closed_world(1);
    let entropy = Arc::new(OsEntropy::new());
    let environment = Environment { entropy, ..world.sim.environment() };
    refuses(&world, world.builder().environment(environment), ErrorKind::InvalidArgument);
}

#[test]
fn a_store_behind_the_epoch_that_was_kept_elsewhere_is_refused() {
    // A failure means that an older copy is put back and nobody notices.
    let world = World::new(1);
    let store = world.create();
    small(&store);
    let old = world.sim.vfs.copy();
    small_more(&store);
    store.close().unwrap();
    let epoch = store.epoch();
    let now = world.over(world.sim.vfs.copy(), 2);
    now.builder().min_epoch(epoch).open().unwrap();
    let old = world.over(old, 3);
    refuses(&old, old.builder().min_epoch(epoch), ErrorKind::RolledBack);
    let future = world.over(world.sim.vfs.copy(), 4);
    refuses(&future, future.builder().min_epoch(Epoch(epoch.0 + 1)), ErrorKind::RolledBack);
}

fn small_more(store: &Store) {
    store.table("t").unwrap().put(b"k3", b"v").unwrap();
    store.flush().unwrap();
}

#[test]
fn every_file_that_the_store_needs_is_missed() {
    // A failure means that part of the data is gone and the store does as if it had never been.
    let world = closed_world(1);
    for path in world.sim.vfs.list() {
        if path.ends_with("LOCK") {
            continue;
        }
        let world = world.over(world.sim.vfs.copy(), 2);
        world.sim.vfs.delete(&path).unwrap();
        let before: BTreeMap<_, _> = world.sim.vfs.snapshot();
        let error = world.open().err().unwrap_or_else(|| panic!("opened without {}", path.display()));
        assert_eq!(error.kind(), ErrorKind::MissingFile, "{}: {error}", path.display());
        let mut after = world.sim.vfs.snapshot();
        after.retain(|path, _| !path.ends_with("LOCK"));
        assert!(before.iter().all(|(path, bytes)| path.ends_with("LOCK") || after.get(path) == Some(bytes)));
    }
}

#[test]
fn an_unfinished_creation_is_not_a_store_and_can_be_done_again() {
    // A failure means that a crash in the very first moment makes a directory that can neither be opened nor created.
    let world = World::new(1);
    let store = world.create();
    let created = world.sim.vfs.events();
    small(&store);
    for event in 0..created {
        for loss in strongroom::io::mem::Loss::ALL {
            if event == 0 {
                continue;
            }
            let disk: MemVfs = world.sim.vfs.crash_at(event, loss, event);
            let world = world.over(disk, event << 8 | 2);
            match world.open() {
                Ok(store) => assert!(store.table_names().is_empty()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "behind event {event}, {loss:?}: {error}");
                    let store = world.builder().create().unwrap_or_else(|error| panic!("{event}, {loss:?}: {error}"));
                    small(&store);
                    store.close().unwrap();
                }
            }
        }
    }
}
