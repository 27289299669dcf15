//! Every store that a released version has written stays readable.
//!
//! `tests/golden/store-v1` was written once, by [`write_the_golden_store`], and never changes; the keyring
//! lies beside it.

use std::path::{Path, PathBuf};

use strongroom::options::{Cipher, Compression, MasterKey, TableOptions};
use strongroom::{LocalKms, Store, Table, Unlock};

use crate::world::{Row, row, tiny_options};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn unlock() -> Unlock {
    Unlock::key(|key| key.fill(0x2a))
}

/// What is in each table, by its name.
fn expected() -> Vec<(&'static str, Row)> {
    let mut ratings = Row::new();
    for number in 0..200u32 {
        if number % 9 != 4 {
            let value = format!("{number} of 5, in words that repeat, repeat, repeat");
            ratings.insert(format!("user#{number:04}").into_bytes(), value.into_bytes());
        }
    }
    let large = (0..70_000u32).map(|byte| (byte % 251) as u8).collect();
    let files =
        Row::from([(b"empty".to_vec(), vec![]), (b"large".to_vec(), large), (vec![0xff; 300], b"long key".to_vec())]);
    let late = Row::from([(b"in the log".to_vec(), b"only".to_vec())]);
    vec![("ratings", ratings), ("files, naïve name", files), ("late", late), ("nothing", Row::new())]
}

#[test]
fn a_store_of_format_1_is_read_in_full() {
    // A failure means that an update of the library locks people out of their data.
    let dir = tempfile::tempdir().unwrap();
    copy(&golden().join("store-v1"), &dir.path().join("store"));
    std::fs::copy(golden().join("store-v1.keyring"), dir.path().join("keyring")).unwrap();
    let kms = LocalKms::open(dir.path().join("keyring"), unlock()).unwrap();
    // Read, written to and closed by this version, then read again.
    for round in 0..2 {
        let store = Store::builder(dir.path().join("store")).key_provider(kms.clone()).open().unwrap();
        assert!(store.recovery().clean);
        assert_eq!(store.table_names().len(), expected().len());
        for (name, mut expected) in expected() {
            let table = store.table(name).unwrap();
            if round > 0 {
                expected.insert(b"new".to_vec(), b"written by this version".to_vec());
            }
            assert_eq!(row(&table).unwrap(), expected, "{name}");
            expected.iter().for_each(|(key, value)| assert_eq!(table.get(key).unwrap().unwrap(), value[..]));
            table.put(b"new", b"written by this version").unwrap();
        }
        assert!(store.describe_table("late").unwrap().sse.master_key_arn.is_some());
        if round == 0 {
            store.compact().unwrap();
        }
        store.close().unwrap();
    }
}

/// Git keeps neither empty directories nor modes.
fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

/// Writes what the test above reads: once per format, before its release, never again.
#[test]
#[ignore = "writes tests/golden/store-v1, which must not change any more"]
fn write_the_golden_store() {
    let (path, keyring) = (golden().join("store-v1"), golden().join("store-v1.keyring"));
    let kms = LocalKms::create(&keyring, unlock()).unwrap();
    kms.create_key(Some("alias/golden"), "the golden store's").unwrap();
    let mut options = tiny_options();
    options.memtable_bytes = 16 << 10;
    options.write_budget_bytes = 1 << 20;
    let store = Store::builder(&path).key_provider(kms).options(options).create().unwrap();
    let settings = [
        TableOptions::new().cipher(Cipher::Aes256Gcm).block_bytes(512),
        TableOptions::new()
            .cipher(Cipher::ChaCha20Poly1305)
            .compression(Compression::None)
            .master_key(MasterKey::managed()),
        TableOptions::new().cipher(Cipher::Aes256Gcm).master_key(MasterKey::customer("alias/golden")),
        TableOptions::new().cipher(Cipher::ChaCha20Poly1305).filter_bits_per_key(0),
    ];
    let tables: Vec<Table> = expected()
        .iter()
        .zip(settings)
        .map(|((name, _), options)| store.create_table(name, options).unwrap())
        .collect();
    store.create_table("dropped", TableOptions::new()).unwrap().put(b"k", b"v").unwrap();
    store.drop_table("dropped").unwrap();
    for (table, (_, row)) in tables.iter().zip(expected()).take(2) {
        for (key, value) in &row {
            table.put(key, b"overwritten").unwrap();
            table.put(key, value).unwrap();
        }
        table.put(b"deleted", b"then").unwrap();
        store.flush().unwrap();
        table.delete(b"deleted").unwrap();
    }
    tables[2].put(b"in the log", b"only").unwrap();
    store.close().unwrap();
    let _ = std::fs::remove_file(golden().join("store-v1.keyring.lock"));
}
