//! The build that measures what encryption costs: stores that seal nothing, in everything else the same. Run with
//! `RUSTFLAGS="--cfg strongroom_plaintext_baseline" cargo test`.

use strongroom::{Builder, Error, LocalKms, Store, Unlock};

fn builder(folder: &std::path::Path) -> Builder {
    let keyring = folder.join("keyring");
    let unlock = Unlock::key(|key| key.fill(7));
    let kms = if keyring.exists() { LocalKms::open(keyring, unlock) } else { LocalKms::create(keyring, unlock) };
    Store::builder(folder.join("data")).key_provider(kms.unwrap())
}

fn contents(folder: &std::path::Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        bytes.extend(if path.is_dir() { contents(&path) } else { std::fs::read(&path).unwrap() });
    }
    bytes
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn plaintext_baseline_seals_nothing_and_keeps_everything() {
    // Otherwise the cost of encryption would be measured against something else.
    let folder = tempfile::tempdir().unwrap();
    let store = builder(folder.path()).plaintext_baseline().create().unwrap();
    let table = store.create_table("table-in-clear", Default::default()).unwrap();
    table.put("key-in-clear", "value-in-clear").unwrap();
    store.flush().unwrap();
    table.put("key-in-log", "value-in-log").unwrap();
    assert_eq!(table.describe().unwrap().cipher, "none");
    store.close().unwrap();
    drop((table, store));

    let bytes = contents(&folder.path().join("data"));
    for text in ["PLAINkv", "table-in-clear", "key-in-clear", "value-in-clear", "key-in-log", "value-in-log"] {
        assert!(holds(&bytes, text.as_bytes()), "{text}");
    }
    assert!(!holds(&bytes, b"strngrm"));

    let store = builder(folder.path()).plaintext_baseline().open().unwrap();
    let table = store.table("table-in-clear").unwrap();
    assert_eq!(table.get("key-in-clear").unwrap().as_deref(), Some(&b"value-in-clear"[..]));
    assert_eq!(table.get("key-in-log").unwrap().as_deref(), Some(&b"value-in-log"[..]));
}

#[test]
fn neither_kind_of_store_opens_as_the_other() {
    // Otherwise a measurement would be of the other kind, or a sealed store would grow on in plaintext.
    for plaintext in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let as_kind = |plaintext: bool| match plaintext {
            true => builder(folder.path()).plaintext_baseline(),
            false => builder(folder.path()),
        };
        drop(as_kind(plaintext).create().unwrap());
        let before = contents(&folder.path().join("data"));
        assert!(matches!(as_kind(!plaintext).open(), Err(Error::InvalidArgument { .. })));
        assert_eq!(contents(&folder.path().join("data")), before);
        assert!(as_kind(plaintext).open().is_ok());
    }
}
