//! The promises of `io/mem.rs`: what each kind of loss keeps, and what none may touch.

use std::collections::BTreeSet;

use super::*;

const SEEDS: std::ops::Range<u64> = 0..200;

/// A disk with the durable directory `/s`.
fn world() -> MemVfs {
    let vfs = MemVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    vfs
}

/// A durable file with durable bytes in `/s`.
fn durable_file(vfs: &MemVfs, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = vfs.create(Path::new(name)).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync().unwrap();
    vfs.sync_dir(Path::new("/s")).unwrap();
    file
}

/// All that may be left of `path` behind the last event.
fn outcomes(vfs: &MemVfs, loss: Loss, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    SEEDS.map(|seed| vfs.crash_at(vfs.events(), loss, seed).read(path).ok()).collect()
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

/// If the simulator forgot synced bytes, the engine would be blamed for losing them; were it to keep unsynced ones
/// always, a forgotten sync would never be found.
#[test]
fn what_was_synced_is_there_under_every_loss() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", b"synced");
    file.write_all_at(b" and not", 6).unwrap();
    for loss in Loss::ALL {
        for left in outcomes(&vfs, loss, "/s/a") {
            let left = left.expect("its name was synced");
            assert!(left.starts_with(b"synced") && left.len() <= 14, "{loss:?}: {left:?}");
        }
    }
}

#[test]
fn losing_the_unsynced_loses_bytes_and_names() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", b"synced");
    file.write_all_at(b"SYN", 0).unwrap();
    let unnamed = vfs.create(Path::new("/s/b")).unwrap();
    unnamed.write_all_at(b"bytes", 0).unwrap();
    unnamed.sync().unwrap();
    vfs.remove_file(Path::new("/s/a")).unwrap();
    let left = vfs.crash_at(vfs.events(), Loss::LoseUnsynced, 0);
    assert_eq!(left.snapshot(), BTreeMap::from([("/s/a".into(), b"synced".to_vec())]));
}

#[test]
fn keeping_all_keeps_all_at_every_event() {
    let vfs = world();
    let mut expected = vec![(vfs.events(), vfs.snapshot())];
    let file = vfs.create(Path::new("/s/a")).unwrap();
    expected.push((vfs.events(), vfs.snapshot()));
    for i in 0..20u64 {
        file.write_all_at(&[i as u8; 7], i * 5).unwrap();
        expected.push((vfs.events(), vfs.snapshot()));
    }
    vfs.rename(Path::new("/s/a"), Path::new("/s/b")).unwrap();
    expected.push((vfs.events(), vfs.snapshot()));
    vfs.remove_file(Path::new("/s/b")).unwrap();
    expected.push((vfs.events(), vfs.snapshot()));
    for (event, snapshot) in expected {
        assert_eq!(vfs.crash_at(event, Loss::KeepAll, 0).snapshot(), snapshot, "event {event}");
    }
}

#[test]
fn a_write_cut_short_is_the_last_one_and_keeps_its_beginning() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", b"");
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(b"xyz", 5).unwrap();
    let left = outcomes(&vfs, Loss::CutShort, "/s/a");
    let expected = ["first", "firstx", "firstxy", "firstxyz"].map(|bytes| Some(bytes.as_bytes().to_vec()));
    assert_eq!(left, BTreeSet::from(expected));
    file.sync().unwrap();
    assert_eq!(outcomes(&vfs, Loss::CutShort, "/s/a").len(), 1, "the last event is no write");
}

#[test]
fn torn_writes_lose_whole_sectors_each_on_its_own() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", &[b'-'; 20]);
    file.write_all_at(&[b'x'; 20], 4).unwrap();
    let left = outcomes(&vfs, Loss::Torn { sector_bytes: 8 }, "/s/a");
    // Sectors 0..8, 8..16, 16..24, of which the write touches the last four bytes of the first: each old or new.
    assert_eq!(left.len(), 8);
    for bytes in left {
        let bytes = bytes.unwrap();
        assert!(bytes.len() == 20 || bytes.len() == 24);
        assert!(bytes.starts_with(b"----"));
        for sector in [4..8, 8..16, 16..bytes.len()] {
            assert!(bytes[sector.clone()].iter().all(|byte| *byte == bytes[sector.start]), "{bytes:?}");
        }
    }
}

#[test]
fn reordered_writes_are_whole_and_later_ones_may_be_alone() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", b"");
    file.write_all_at(b"aa", 0).unwrap();
    file.write_all_at(b"bb", 2).unwrap();
    let left = outcomes(&vfs, Loss::Reordered, "/s/a");
    let expected: [&[u8]; 4] = [b"", b"aa", b"\0\0bb", b"aabb"];
    assert_eq!(left, expected.into_iter().map(|bytes| Some(bytes.to_vec())).collect());
}

#[test]
fn a_tail_keeps_its_length_and_not_its_bytes() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", b"old");
    file.write_all_at(b"aa", 3).unwrap();
    file.write_all_at(b"bb", 5).unwrap();
    let expected: [&[u8]; 3] = [b"old\0\0\0\0", b"oldaa\0\0", b"oldaabb"];
    let expected = expected.into_iter().map(|bytes| Some(bytes.to_vec())).collect();
    assert_eq!(outcomes(&vfs, Loss::ZeroTail, "/s/a"), expected);
    let garbage = outcomes(&vfs, Loss::GarbageTail, "/s/a");
    assert!(garbage.len() > 10 && garbage.iter().flatten().all(|bytes| bytes.len() == 7 && bytes.starts_with(b"old")));
}

/// CURRENT is replaced by a rename: were it ever missing or mixed, the store could not be opened.
#[test]
fn an_unsynced_rename_leaves_the_old_or_the_new_and_never_neither() {
    let vfs = world();
    durable_file(&vfs, "/s/CURRENT", b"old");
    durable_file(&vfs, "/s/tmp", b"new");
    vfs.rename(Path::new("/s/tmp"), Path::new("/s/CURRENT")).unwrap();
    for loss in Loss::ALL {
        for seed in SEEDS {
            let left = vfs.crash_at(vfs.events(), loss, seed);
            match left.read("/s/CURRENT").unwrap().as_slice() {
                b"old" => assert_eq!(left.read("/s/tmp").unwrap(), b"new"),
                b"new" => assert_eq!(kind(left.read("/s/tmp")), io::ErrorKind::NotFound),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(outcomes(&vfs, Loss::Reordered, "/s/CURRENT").len(), 2, "both happen");
    vfs.sync_dir(Path::new("/s")).unwrap();
    assert_eq!(outcomes(&vfs, Loss::Reordered, "/s/CURRENT").len(), 1, "now it is durable");
}

#[test]
fn unsynced_names_survive_independently_but_one_name_changes_in_order() {
    let vfs = world();
    for name in ["/s/a", "/s/b"] {
        vfs.create(Path::new(name)).unwrap();
    }
    vfs.rename(Path::new("/s/a"), Path::new("/s/c")).unwrap();
    let left: BTreeSet<Vec<PathBuf>> = SEEDS.map(|s| vfs.crash_at(vfs.events(), Loss::Reordered, s).list()).collect();
    let expected: [&[&str]; 6] = [&[], &["/s/a"], &["/s/b"], &["/s/c"], &["/s/a", "/s/b"], &["/s/b", "/s/c"]];
    assert_eq!(left, expected.into_iter().map(|names| names.iter().map(PathBuf::from).collect()).collect());
}

#[test]
fn a_lost_directory_takes_along_what_was_synced_in_it() {
    let vfs = world();
    vfs.create_dir(Path::new("/s/d")).unwrap();
    let file = vfs.create(Path::new("/s/d/f")).unwrap();
    file.sync().unwrap();
    vfs.sync_dir(Path::new("/s/d")).unwrap();
    let lost = vfs.crash_at(vfs.events(), Loss::LoseUnsynced, 0);
    assert_eq!(kind(lost.metadata(Path::new("/s/d"))), io::ErrorKind::NotFound);
    assert_eq!(kind(lost.metadata(Path::new("/s/d/f"))), io::ErrorKind::NotFound);
    vfs.sync_dir(Path::new("/s")).unwrap();
    assert_eq!(vfs.crash_at(vfs.events(), Loss::LoseUnsynced, 0).list(), [PathBuf::from("/s/d/f")]);
}

#[test]
fn a_rename_between_directories_needs_both_synced() {
    let vfs = world();
    durable_file(&vfs, "/s/a", b"x");
    vfs.rename(Path::new("/s/a"), Path::new("/a")).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    assert_eq!(vfs.crash_at(vfs.events(), Loss::LoseUnsynced, 0).list(), [PathBuf::from("/s/a")]);
    vfs.sync_dir(Path::new("/s")).unwrap();
    assert_eq!(vfs.crash_at(vfs.events(), Loss::LoseUnsynced, 0).list(), [PathBuf::from("/a")]);
}

/// A second crash, during recovery from the first, is where engines lose data.
#[test]
fn a_crashed_disk_can_be_used_and_crash_again() {
    let vfs = world();
    durable_file(&vfs, "/s/a", b"one").write_all_at(b"two", 3).unwrap();
    let second = vfs.crash_at(vfs.events(), Loss::KeepAll, 0);
    assert_eq!(second.events(), 0);
    second.open_to_erase(Path::new("/s/a")).unwrap().write_all_at(b"XX", 1).unwrap();
    second.create(Path::new("/s/b")).unwrap();
    assert_eq!(second.read("/s/a").unwrap(), b"oXXtwo");
    let third = second.crash_at(second.events(), Loss::LoseUnsynced, 0);
    assert_eq!(third.snapshot(), BTreeMap::from([("/s/a".into(), b"onetwo".to_vec())]));
}

#[test]
fn the_same_seed_leaves_the_same_disk() {
    let vfs = world();
    let file = vfs.create(Path::new("/s/a")).unwrap();
    (0..50).for_each(|i| file.write_all_at(&[i; 100], u64::from(i) * 100).unwrap());
    for loss in Loss::ALL {
        let left = |seed| vfs.crash_at(vfs.events(), loss, seed).snapshot();
        assert_eq!(left(7), left(7), "{loss:?}");
    }
}

#[test]
fn tampering_is_seen_through_open_handles_and_survives_a_crash() {
    for vfs in [world(), MemVfs::unjournaled()] {
        vfs.plant("/s/deep/a", b"bytes").unwrap();
        let file = vfs.open_to_erase(Path::new("/s/deep/a")).unwrap();
        vfs.overwrite("/s/deep/a", 4, b"!?").unwrap();
        file.write_all_at(b"B", 0).unwrap();
        assert_eq!(vfs.read("/s/deep/a").unwrap(), b"Byte!?");
        vfs.truncate("/s/deep/a", 4).unwrap();
        assert_eq!(file.len_bytes().unwrap(), 4);
        file.write_all_at(b"SSS", 4).unwrap();
        assert_eq!(vfs.copy().read("/s/deep/a").unwrap(), b"ByteSSS");
        if vfs.0.journaled {
            let left = vfs.crash_at(vfs.events(), Loss::LoseUnsynced, 0);
            assert_eq!(left.read("/s/deep/a").unwrap(), b"Byte");
        }
        vfs.delete("/s/deep/a").unwrap();
        assert_eq!(vfs.list(), Vec::<PathBuf>::new());
        assert_eq!(kind(vfs.open(Path::new("/s/deep/a"))), io::ErrorKind::NotFound);
    }
}

/// The model must refuse what the real file system refuses, or tests pass that the real one fails.
#[test]
fn it_refuses_what_the_real_file_system_refuses() {
    let vfs = world();
    let file = durable_file(&vfs, "/s/a", b"bytes");
    let path = Path::new;
    assert_eq!(kind(vfs.create(path("/s/a"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(vfs.create_dir(path("/s"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(vfs.create(path("/none/a"))), io::ErrorKind::NotFound);
    assert_eq!(kind(vfs.open(path("/s"))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.open(path("/s/none"))), io::ErrorKind::NotFound);
    assert_eq!(kind(vfs.remove_dir(path("/s"))), io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(vfs.read_dir(path("/s/a"))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.rename(path("/s/none"), path("/s/b"))), io::ErrorKind::NotFound);
    assert_eq!(kind(file.read_exact_at(&mut [0; 2], 4)), io::ErrorKind::UnexpectedEof);
    assert!(vfs.open(path("/s/a")).unwrap().write_all_at(b"x", 0).is_err());
    assert_eq!(vfs.canonical(path("s/./x/../a")).unwrap(), path("/s/a"));
    let held = vfs.lock(path("/s/LOCK")).unwrap();
    assert_eq!(kind(vfs.lock(path("/s/LOCK"))), io::ErrorKind::WouldBlock);
    drop(held);
    vfs.lock(path("s/LOCK")).unwrap();
    vfs.create_dir(path("/s/d")).unwrap();
    vfs.create(path("/s/d/x")).unwrap();
    let mut entries = vfs.read_dir(path("/s")).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let entries: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(entries, [("LOCK", EntryKind::File), ("a", EntryKind::File), ("d", EntryKind::Directory)]);
    vfs.remove_file(path("/s/d/x")).unwrap();
    vfs.remove_dir(path("/s/d")).unwrap();
    assert_eq!(vfs.metadata(path("/s/a")).unwrap(), Metadata { kind: EntryKind::File, len_bytes: 5 });
}

/// The crash tests want tens of thousands of these. The limit is a hundred times what it takes: it is there to catch
/// work that grows with the square of the events.
#[test]
fn a_crash_point_is_cheap() {
    let vfs = world();
    for n in 0..30 {
        let file = durable_file(&vfs, &format!("/s/{n}.sst"), b"");
        (0..100).for_each(|i| file.write_all_at(&[n; 100], i * 100).unwrap());
        if n % 2 == 0 {
            file.sync().unwrap();
        }
    }
    let clock = super::super::os::OsClock::new();
    for loss in Loss::ALL {
        use super::super::Clock;
        let begin = clock.tick();
        (0..100).for_each(|seed| drop(vfs.crash_at(vfs.events(), loss, seed)));
        let each_us = (clock.tick().0 - begin.0) / 100_000;
        println!("{loss:?}: {each_us} us for 300 KB, {} events", vfs.events());
        assert!(each_us < 20_000, "{loss:?}");
    }
}
