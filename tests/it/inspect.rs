//! Whoever keeps data for years must hear of every byte that changed, with the keys and without them, and asking must change nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strongroom::inspect::{self, DumpOptions, Inspection, ScrubReport, VerifyReport};
use strongroom::io::Environment;
use strongroom::io::mem::{Loss, MemVfs};
use strongroom::keys::KeyProvider;
use strongroom::{Durability, Error, ErrorKind, LocalKms, MasterKey, Store, Table, TableOptions, Unlock};

const PATH: &str = "/store";

/// A store in memory, closed, and the provider of its keys.
struct Closed {
    vfs: MemVfs,
    kms: Arc<LocalKms>,
    owned: Arc<LocalKms>,
}

impl Closed {
    fn world(vfs: &MemVfs) -> Environment {
        Environment { vfs: Arc::new(vfs.clone()), ..Environment::os() }
    }

    /// Two tables, under keys of two providers, with entries in sorted tables and in the log.
    fn new() -> Closed {
        Closed::with_value_of(100 << 10)
    }

    /// The same, with one value of so many bytes.
    fn with_value_of(large_bytes: usize) -> Closed {
        let vfs = MemVfs::new();
        let env = Closed::world(&vfs);
        let kms = Arc::new(LocalKms::in_memory(env.clone()).unwrap());
        let owned = Arc::new(LocalKms::in_memory(env.clone()).unwrap());
        kms.create_key(Some("alias/ada"), "").unwrap();
        let closed = Closed { vfs, kms, owned };
        let store = closed.builder().create().unwrap();
        let ada = MasterKey::customer("alias/ada");
        let ada = store.create_table("ada", TableOptions::new().block_bytes(256).master_key(ada)).unwrap();
        let own = store.create_table("own", TableOptions::new().block_bytes(256)).unwrap();
        fill(&store, &ada, 0..40);
        fill(&store, &own, 0..40);
        own.put("large", vec![7; large_bytes]).unwrap();
        store.flush().unwrap();
        fill(&store, &ada, 20..30);
        own.delete("key-00003").unwrap();
        let mut batch = store.batch();
        batch.put(&ada, "both", "ada").put(&own, "both", "own");
        batch.commit_with(Durability::Sync).unwrap();
        store.close().unwrap();
        closed
    }

    fn builder(&self) -> strongroom::Builder {
        Store::builder(PATH)
            .shared_key_provider(self.kms.clone())
            .owned_key_provider(self.owned.clone())
            .environment(Closed::world(&self.vfs))
    }

    fn inspection(&self, vfs: &MemVfs) -> Inspection {
        Inspection::of(PATH)
            .key_provider(self.kms.clone())
            .owned_key_provider(self.owned.clone())
            .environment(Closed::world(vfs))
    }

    fn verify(&self, vfs: &MemVfs) -> VerifyReport {
        self.inspection(vfs).verify(&mut |_| ()).unwrap()
    }

    fn scrub(&self, vfs: &MemVfs) -> ScrubReport {
        self.inspection(vfs).scrub(&mut |_| ()).unwrap()
    }

    /// Every file of the store that has bytes.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.vfs.snapshot();
        files.retain(|path, bytes| path.starts_with(PATH) && !bytes.is_empty());
        assert!(files.len() >= 8, "{:?}", files.keys());
        files
    }
}

fn fill(store: &Store, table: &Table, range: std::ops::Range<u32>) {
    let mut batch = store.batch();
    for i in range {
        batch.put(table, format!("key-{i:05}"), format!("value-{i}"));
    }
    batch.commit().unwrap();
}

fn is_of(error: &Error, path: &Path) -> bool {
    let name = path.strip_prefix(PATH).unwrap().to_str().unwrap();
    match error {
        Error::BitRot { file, .. }
        | Error::Tampered { file, .. }
        | Error::LogDamaged { file, .. }
        | Error::MissingFile { file } => file == name,
        _ => false,
    }
}

#[test]
fn a_store_that_was_closed_is_whole_clean_and_without_orphans() {
    // A false alarm teaches people not to look.
    let closed = Closed::new();
    let report = closed.verify(&closed.vfs);
    assert!(report.is_whole() && report.closed, "{report:?}");
    assert_eq!((report.unopened_frames, report.discarded_bytes), (0, 0), "{report:?}");
    assert_eq!(report.orphans, Vec::<String>::new());
    // One more than have bytes: the lock.
    assert_eq!(report.files, closed.files().len() as u64 + 1);
    assert_eq!(report.bytes, closed.files().values().map(|bytes| bytes.len() as u64).sum::<u64>());
    assert!(report.entries >= 94, "{report:?}");
    let scrub = closed.scrub(&closed.vfs);
    assert!(scrub.is_clean() && scrub.strays.is_empty(), "{scrub:?}");
    assert_eq!((scrub.frames, scrub.bytes), (report.frames, report.bytes));
}

#[test]
fn a_bit_flipped_in_any_byte_is_reported_by_scrub_and_by_verify() {
    // A flip that is not seen is data that is lost without a word.
    let closed = Closed::with_value_of(100);
    let copy = closed.vfs.copy();
    for (path, bytes) in closed.files() {
        for offset in 0..bytes.len() {
            let flipped = bytes[offset] ^ (1 << (offset % 8));
            copy.overwrite(&path, offset as u64, &[flipped]).unwrap();
            let scrub = closed.scrub(&copy);
            let found = scrub.damages.iter().chain(&scrub.unfinished);
            assert!(
                found.into_iter().any(|error| is_of(error, &path)),
                "scrub: {} at {offset}: {scrub:?}",
                path.display()
            );
            let verify = closed.inspection(&copy).verify(&mut |_| ());
            let verify = verify.unwrap_or_else(|error| panic!("{} at {offset}: {error}", path.display()));
            let found = verify.damages.iter().any(|error| is_of(error, &path));
            assert!(found, "verify: {} at {offset}: {verify:?}", path.display());
            copy.overwrite(&path, offset as u64, &bytes[offset..=offset]).unwrap();
        }
    }
    assert!(closed.verify(&copy).is_whole());
}

#[test]
fn a_file_that_is_missing_cut_or_longer_is_reported_by_verify() {
    // After a clean close there is no tail that a crash could have torn.
    let closed = Closed::new();
    for (path, bytes) in closed.files() {
        let copy = closed.vfs.copy();
        copy.delete(&path).unwrap();
        let report = closed.verify(&copy);
        assert!(report.damages.iter().any(|error| is_of(error, &path)), "{} is missing: {report:?}", path.display());
        for len in [
            0,
            1,
            159,
            160,
            161,
            bytes.len() / 2,
            bytes.len() - 17,
            bytes.len() - 1,
            bytes.len() + 1,
            bytes.len() + 4096,
        ] {
            if len == bytes.len() {
                continue;
            }
            let copy = closed.vfs.copy();
            copy.truncate(&path, len).unwrap();
            let report = closed.verify(&copy);
            let found = report.damages.iter().any(|error| is_of(error, &path));
            assert!(found, "{} of {} has {len} bytes: {report:?}", path.display(), bytes.len());
        }
    }
}

#[test]
fn a_file_under_another_name_is_reported_by_scrub_and_by_verify() {
    let closed = Closed::new();
    let files = closed.files();
    let tables: Vec<&PathBuf> = files.keys().filter(|path| path.extension().is_some_and(|ext| ext == "sst")).collect();
    assert!(tables.len() >= 2, "{:?}", files.keys());
    let copy = closed.vfs.copy();
    copy.plant(tables[0], &files[tables[1]]).unwrap();
    copy.plant(tables[1], &files[tables[0]]).unwrap();
    for table in [tables[0], tables[1]] {
        assert!(closed.verify(&copy).damages.iter().any(|error| is_of(error, table)));
        assert!(closed.scrub(&copy).damages.iter().any(|error| is_of(error, table)));
    }
}

#[test]
fn a_file_of_another_store_is_reported_by_scrub_and_by_verify() {
    let (one, other) = (Closed::new(), Closed::new());
    for path in one.files().keys().filter(|path| !path.starts_with("/store/keys")) {
        let copy = one.vfs.copy();
        let Ok(bytes) = other.vfs.read(path) else { continue };
        copy.plant(path, &bytes).unwrap();
        assert!(one.verify(&copy).damages.iter().any(|error| is_of(error, path)), "{}", path.display());
        assert!(one.scrub(&copy).damages.iter().any(|error| is_of(error, path)), "{}", path.display());
    }
}

#[test]
fn what_nobody_names_is_listed_and_no_damage() {
    let closed = Closed::new();
    let copy = closed.vfs.copy();
    let table =
        closed.files().into_iter().find(|(path, _)| path.extension().is_some_and(|ext| ext == "sst")).unwrap().1;
    copy.plant("/store/sst/ff/000255.sst", &table).unwrap();
    copy.plant("/store/CURRENT.tmp", b"half").unwrap();
    copy.plant("/store/notes/read me", b"mine").unwrap();
    let report = closed.verify(&copy);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.orphans, ["CURRENT.tmp", "notes", "sst/ff/000255.sst"]);
    assert_eq!(closed.scrub(&copy).strays, ["CURRENT.tmp", "notes"]);
}

#[test]
fn a_table_whose_key_is_not_to_be_had_is_reported_and_the_others_are_verified() {
    // One disabled key must not keep anybody from checking the rest.
    let closed = Closed::new();
    let whole = closed.verify(&closed.vfs);
    closed.kms.disable("alias/ada").unwrap();
    let report = closed.verify(&closed.vfs);
    assert!(report.damages.is_empty() && !report.is_whole(), "{report:?}");
    let [table] = &report.unavailable[..] else { panic!("{report:?}") };
    assert_eq!((table.name.as_str(), table.error.kind()), ("ada", ErrorKind::KeyUnavailable));
    assert!(table.frames > 0 && table.frames == report.unopened_frames, "{report:?}");
    assert_eq!(report.frames + report.unopened_frames, whole.frames);
    // Its checksums are checked all the same.
    for (path, bytes) in closed.files().into_iter().filter(|(path, _)| path.starts_with("/store/sst")) {
        let copy = closed.vfs.copy();
        copy.overwrite(&path, bytes.len() as u64 / 2, &[!bytes[bytes.len() / 2]]).unwrap();
        assert!(closed.verify(&copy).damages.iter().any(|error| is_of(error, &path)), "{}", path.display());
    }
    closed.kms.enable("alias/ada").unwrap();
    assert!(closed.verify(&closed.vfs).is_whole());
}

#[test]
fn without_the_system_key_there_is_no_report() {
    let closed = Closed::new();
    let strange = Arc::new(LocalKms::in_memory(Environment::os()).unwrap());
    let inspection = Inspection::of(PATH).key_provider(strange).environment(Closed::world(&closed.vfs));
    let kind = inspection.verify(&mut |_| ()).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::KeyUnavailable | ErrorKind::WrongKey), "{kind:?}");
    let inspection = Inspection::of(PATH).environment(Closed::world(&closed.vfs));
    assert_eq!(inspection.verify(&mut |_| ()).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn an_older_part_of_a_store_beside_a_newer_one_is_rolled_back() {
    // Whoever puts back an old manifest to undo a drop or a rotation must be noticed while the newer log is there.
    let closed = Closed::new();
    let old = closed.vfs.copy();
    let store = closed.builder().open().unwrap();
    let table = store.table("own").unwrap();
    store.create_table("later", TableOptions::new()).unwrap();
    table.put("later", "x").unwrap();
    store.close().unwrap();
    drop((table, store));
    let mixed = closed.vfs.copy();
    for path in old.list().into_iter().filter(|path| path.starts_with(PATH)) {
        let bytes = old.read(&path).unwrap();
        mixed.plant(&path, &bytes).unwrap();
    }
    let report = closed.verify(&mixed);
    assert!(report.damages.iter().any(|error| error.kind() == ErrorKind::RolledBack), "{report:?}");
}

#[test]
fn a_crash_leaves_a_store_that_verifies_and_no_damage() {
    // A torn tail that is reported as damage would send people to their backups after every crash.
    let vfs = MemVfs::new();
    let env = Closed::world(&vfs);
    let kms = Arc::new(LocalKms::in_memory(env.clone()).unwrap());
    let closed = Closed { vfs, owned: kms.clone(), kms };
    let store = closed.builder().create().unwrap();
    let table = store.create_table("t", TableOptions::new().block_bytes(256)).unwrap();
    let created = closed.vfs.events();
    for i in 0..60 {
        let durability = if i % 7 == 0 { Durability::Sync } else { Durability::Buffered };
        table.put_with(format!("key-{i}"), vec![i; 300], durability).unwrap();
        if i == 30 {
            store.flush().unwrap();
        }
    }
    let events = closed.vfs.events();
    for event in created..events {
        for loss in Loss::ALL {
            let cut = closed.vfs.crash_at(event, loss, event);
            let report = closed.verify(&cut);
            assert!(report.is_whole(), "event {event}, {loss:?}: {report:?}");
            // Where writes survive out of order, whole frames may stand behind a hole; without keys that is damage.
            if matches!(loss, Loss::LoseUnsynced | Loss::KeepAll | Loss::CutShort) {
                let scrub = closed.scrub(&cut);
                assert!(scrub.damages.is_empty(), "event {event}, {loss:?}: {scrub:?}");
            }
        }
    }
    store.close().unwrap();
}

#[test]
fn a_store_that_is_open_is_locked_for_verify_and_not_for_scrub() {
    let folder = tempfile::tempdir().unwrap();
    let (path, keyring) = (folder.path().join("data"), folder.path().join("keyring"));
    let kms = Arc::new(LocalKms::create(&keyring, Unlock::key(|key| key.fill(7))).unwrap());
    let store = Store::builder(&path).shared_key_provider(kms.clone()).create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("a", "b").unwrap();
    assert_eq!(inspect::verify(&path, kms.clone(), &mut |_| ()).unwrap_err().kind(), ErrorKind::Locked);
    let scrub = inspect::scrub(&path, &mut |_| ()).unwrap();
    assert!(scrub.damages.is_empty(), "{scrub:?}");
    store.close().unwrap();
    drop((table, store));
    assert!(inspect::verify(&path, kms, &mut |_| ()).unwrap().is_whole());
}

#[test]
fn a_directory_that_is_no_store_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let kms: Arc<dyn KeyProvider> = Arc::new(LocalKms::in_memory(Environment::os()).unwrap());
    for path in [folder.path().to_owned(), folder.path().join("nothing"), folder.path().join("file")] {
        let verify = inspect::verify(&path, kms.clone(), &mut |_| ()).unwrap_err();
        assert!(matches!(verify, Error::NotAStore { .. }), "{verify}");
        assert!(matches!(inspect::scrub(&path, &mut |_| ()).unwrap_err(), Error::NotAStore { .. }));
    }
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
}

/// Seconds and nanoseconds of the last change.
fn modified(path: &Path) -> (i64, i64) {
    let metadata = path.metadata().unwrap();
    (metadata.mtime(), metadata.mtime_nsec())
}

/// Bytes, if it is a file, and the time of the last change.
type Entry = (Option<Vec<u8>>, (i64, i64));

/// Every file and directory.
fn picture(folder: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        found.insert(folder.clone(), (None, modified(&folder)));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), (Some(std::fs::read(&path).unwrap()), modified(&path)));
            }
        }
    }
    found
}

#[test]
fn nothing_in_the_directory_changes_whatever_is_wrong_with_it() {
    // Inspecting the last copy of something must be safe.
    let folder = tempfile::tempdir().unwrap();
    let (path, keyring) = (folder.path().join("data"), folder.path().join("keyring"));
    let kms = Arc::new(LocalKms::create(&keyring, Unlock::key(|key| key.fill(7))).unwrap());
    let store = Store::builder(&path).shared_key_provider(kms.clone()).create().unwrap();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    fill(&store, &table, 0..100);
    store.flush().unwrap();
    fill(&store, &table, 50..150);
    store.close().unwrap();
    drop((table, store));

    let look = |expected: bool| {
        let before = picture(&path);
        let verify = inspect::verify(&path, kms.clone(), &mut |_| ()).unwrap();
        assert_eq!(verify.is_whole(), expected, "{verify:?}");
        inspect::scrub(&path, &mut |_| ()).unwrap();
        let inspection = Inspection::of(&path).key_provider(kms.clone());
        for file in before.keys().filter(|file| file.is_file()) {
            let name = file.strip_prefix(&path).unwrap().to_str().unwrap();
            // Whether it can be described depends on the damage; that nothing changes does not.
            let _ = inspection.dump(name, &DumpOptions::new(), &mut Vec::new());
        }
        assert!(picture(&path) == before);
    };
    look(true);
    let files: Vec<PathBuf> = picture(&path).into_keys().filter(|file| file.is_file()).collect();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        if bytes.is_empty() {
            continue;
        }
        std::fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
        look(false);
        std::fs::write(&file, &bytes).unwrap();
    }
    std::fs::remove_file(path.join("LOCK")).unwrap();
    look(true);
}

#[test]
fn progress_rises_and_ends_at_the_totals() {
    let closed = Closed::new();
    for with_keys in [true, false] {
        let mut told = Vec::new();
        let mut progress = |progress: inspect::Progress<'_>| {
            assert!(progress.files_done <= progress.files_total && progress.bytes_done <= progress.bytes_total);
            told.push((progress.files_done, progress.bytes_done, progress.bytes_total));
        };
        let inspection = closed.inspection(&closed.vfs);
        match with_keys {
            true => drop(inspection.verify(&mut progress).unwrap()),
            false => drop(inspection.scrub(&mut progress).unwrap()),
        }
        assert!(told.is_sorted_by_key(|told| (told.0, told.1)), "{told:?}");
        let last = told.last().unwrap();
        assert_eq!(last.1, last.2, "{told:?}");
    }
}

#[test]
fn a_dump_names_what_is_sealed_and_shows_no_value_and_no_key_unasked() {
    let closed = Closed::new();
    let dump = |inspection: &Inspection, path: &Path, options: &DumpOptions| {
        let mut out = Vec::new();
        let name = path.strip_prefix(PATH).unwrap().to_str().unwrap();
        inspection.dump(name, options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let with_keys = closed.inspection(&closed.vfs);
    let without = Inspection::of(PATH).environment(Closed::world(&closed.vfs));
    let mut all = String::new();
    for path in closed.files().keys() {
        let text = dump(&with_keys, path, &DumpOptions::new());
        for wrong in
            ["does not open", "damaged", "not what was sealed", "breaks off", ": sealed", "not checked", "cannot"]
        {
            assert!(!text.contains(wrong), "{wrong}: {text}");
        }
        assert!(!text.contains("key-000") && !text.contains("value-"), "{text}");
        all += &text;
        let text = dump(&without, path, &DumpOptions::new().keys(true));
        assert!(text.contains("tag not checked"), "{text}");
        assert!(!text.contains("key-000") && !text.contains("value-") && !text.contains("\"ada\""), "{text}");
        let text = dump(&with_keys, path, &DumpOptions::new().keys(true));
        assert!(!text.contains("value-"), "{text}");
        let has_keys = path.extension().is_some_and(|extension| extension == "sst");
        assert!(!has_keys || text.contains("\"key-00007\" #"), "{text}");
    }
    for expected in [
        "closed cleanly",
        "picture ends",
        "as \"ada\"",
        "section of slot",
        "sync mark",
        "puts and",
        "filter BlockedBloom",
        "strongroom:purpose = system key",
        "index: @",
        "keys of ",
    ] {
        assert!(all.contains(expected), "{expected} in {all}");
    }
}

#[test]
fn a_dump_of_a_damaged_file_says_where_and_goes_on() {
    let closed = Closed::new();
    let inspection = closed.inspection(&closed.vfs);
    for (path, bytes) in closed.files() {
        let copy = closed.vfs.copy();
        let name = path.strip_prefix(PATH).unwrap().to_str().unwrap().to_owned();
        for offset in [0, 162, bytes.len() / 2 + 3, bytes.len() - 1] {
            copy.overwrite(&path, offset as u64, &[!bytes[offset]]).unwrap();
            let mut out = Vec::new();
            // Without keys, because some of these files are needed to have any.
            Inspection::of(PATH).environment(Closed::world(&copy)).dump(&name, &DumpOptions::new(), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            let says = ["damaged at byte", "not what was sealed", "breaks off", "does not know"];
            assert!(says.iter().any(|says| text.contains(says)), "{name} at {offset}: {text}");
            copy.overwrite(&path, offset as u64, &[bytes[offset]]).unwrap();
        }
    }
    let missing = inspection.dump("wal/999999.wal", &DumpOptions::new(), &mut Vec::new());
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::MissingFile);
}
