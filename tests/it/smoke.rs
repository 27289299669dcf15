//! The shortest way through the whole engine: what breaks here breaks everything.

use strongroom::{Durability, LocalKms, MasterKey, Store, StoreOptions, TableOptions, Unlock};

fn small() -> StoreOptions {
    StoreOptions {
        memtable_bytes: 4 << 10,
        write_budget_bytes: 64 << 10,
        log_segment_bytes: 16 << 10,
        log_bytes_max: 64 << 10,
        table_file_bytes: 4 << 10,
        level_one_bytes: 16 << 10,
        ..StoreOptions::default()
    }
}

#[test]
fn what_was_written_is_read_back_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let (keyring, data) = (folder.path().join("keyring"), folder.path().join("data"));
    let kms = LocalKms::create(&keyring, Unlock::key(|key| key.fill(7))).unwrap();
    kms.create_key(Some("alias/ratings"), "").unwrap();
    let store = Store::builder(&data).key_provider(kms).options(small()).create().unwrap();
    let table = store
        .create_table("ratings", TableOptions::new().block_bytes(256).master_key(MasterKey::customer("alias/ratings")))
        .unwrap();
    for i in 0..5000u32 {
        table.put(format!("key-{:05}", i * 7919 % 5000), format!("value-{i}")).unwrap();
    }
    table.put_with("big", vec![7; 3 << 20], Durability::Sync).unwrap();
    assert_eq!(table.iter().count(), 5001);
    store.compact().unwrap();
    assert_eq!(table.iter().rev().count(), 5001);
    println!("{:?}", table.describe().unwrap());
    store.close().unwrap();
    drop((table, store));

    for round in 0..3 {
        let kms = LocalKms::open(&keyring, Unlock::key(|key| key.fill(7))).unwrap();
        let store = Store::builder(&data).key_provider(kms).options(small()).open().unwrap();
        assert!(store.recovery().clean, "{:?}", store.recovery());
        let table = store.table("ratings").unwrap();
        assert_eq!(table.iter().count(), 5001 + round);
        assert_eq!(table.get("big").unwrap().unwrap().len(), 3 << 20);
        table.put(format!("round-{round}"), "x").unwrap();
        if round == 1 {
            store.close().unwrap();
        }
    }
}

#[test]
fn after_quiesce_every_write_goes_to_new_files() {
    // Two machines resumed from one memory snapshot would otherwise seal different data under one key and nonce.
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let kms = LocalKms::create(folder.path().join("keyring"), Unlock::key(|key| key.fill(7))).unwrap();
    let store = Store::builder(&data).key_provider(kms.clone()).options(small()).create().unwrap();
    let table = store.create_table("t", TableOptions::new().block_bytes(256)).unwrap();
    let files = || {
        let mut files = std::collections::BTreeMap::new();
        for directory in ["wal", "manifest"] {
            for entry in std::fs::read_dir(data.join(directory)).unwrap() {
                let entry = entry.unwrap();
                files.insert(entry.path(), std::fs::read(entry.path()).unwrap());
            }
        }
        files
    };
    for round in 0..3 {
        for i in 0..300 {
            table.put(format!("{i}"), format!("{round}")).unwrap();
        }
        store.quiesce().unwrap();
        let before = files();
        table.put("after", "quiesce").unwrap();
        store.flush().unwrap();
        for (path, bytes) in files() {
            assert!(before.get(&path).is_none_or(|old| *old == bytes), "{} was written to again", path.display());
        }
    }
    store.close().unwrap();
    drop((table, store));
    let store = Store::builder(&data).key_provider(kms).options(small()).open().unwrap();
    assert_eq!(store.table("t").unwrap().iter().count(), 301);
}
