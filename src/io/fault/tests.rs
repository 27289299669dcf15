//! The promises of `io/fault.rs`.

use super::super::mem::MemVfs;
use super::*;

fn world() -> (MemVfs, FaultVfs) {
    let disk = MemVfs::new();
    (disk.clone(), FaultVfs::new(Arc::new(disk)))
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn the_nth_matching_operation_fails_and_no_other() {
    let (_, vfs) = world();
    let (log, table) = (vfs.create(Path::new("a.wal")).unwrap(), vfs.create(Path::new("b.sst")).unwrap());
    log.write_all_at(b"before the rule", 0).unwrap();
    let is_log = |path: &Path| path.extension().is_some_and(|extension| extension == "wal");
    vfs.inject(Rule::on(Operation::Write).path(is_log).nth(2).fail(io::ErrorKind::TimedOut));
    log.write_all_at(b"1", 0).unwrap();
    table.write_all_at(b"x", 0).unwrap();
    table.write_all_at(b"y", 0).unwrap();
    assert_eq!(kind(log.write_all_at(b"2", 0)), io::ErrorKind::TimedOut);
    log.write_all_at(b"3", 0).unwrap();
    assert_eq!((vfs.count(Operation::Write), vfs.count(Operation::Create)), (6, 2));
    assert_eq!(vfs.count_all(), 8);
}

#[test]
fn a_rule_can_go_on_failing_until_cleared() {
    let (_, vfs) = world();
    vfs.inject(Rule::on_any().from_nth(3).fail_os(5));
    let file = vfs.create(Path::new("f")).unwrap();
    file.sync().unwrap();
    for _ in 0..3 {
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
    }
    assert!(vfs.rename(Path::new("f"), Path::new("g")).is_err());
    vfs.clear();
    vfs.rename(Path::new("f"), Path::new("g")).unwrap();
}

#[test]
fn a_rename_matches_by_either_name() {
    let (_, vfs) = world();
    vfs.create(Path::new("tmp")).unwrap();
    vfs.inject(Rule::on(Operation::Rename).path(|path| path == Path::new("CURRENT")));
    assert!(vfs.rename(Path::new("tmp"), Path::new("CURRENT")).is_err());
    vfs.rename(Path::new("tmp"), Path::new("CURRENT")).unwrap();
}

#[test]
fn a_torn_write_leaves_its_beginning() {
    let (disk, vfs) = world();
    vfs.inject(Rule::on(Operation::Write).torn_after(3).fail_os(5));
    let file = vfs.create(Path::new("f")).unwrap();
    assert_eq!(file.write_all_at(b"hello", 0).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(disk.read("f").unwrap(), b"hel");
}

/// A failed sync that is taken for a good one loses acknowledged data at the next power cut.
#[test]
fn a_failed_sync_makes_nothing_durable() {
    use super::super::mem::Loss;
    let (disk, vfs) = world();
    vfs.inject(Rule::on(Operation::Sync));
    let file = vfs.create(Path::new("f")).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    file.write_all_at(b"bytes", 0).unwrap();
    file.sync().unwrap_err();
    assert_eq!(disk.crash_at(disk.events(), Loss::LoseUnsynced, 0).read("f").unwrap(), b"");
    file.sync().unwrap();
    assert_eq!(disk.crash_at(disk.events(), Loss::LoseUnsynced, 0).read("f").unwrap(), b"bytes");
}

#[test]
fn a_full_disk_takes_what_fits_and_gets_room_back() {
    let (disk, vfs) = world();
    vfs.set_room(Some(10));
    let (a, b) = (vfs.create(Path::new("a")).unwrap(), vfs.create(Path::new("b")).unwrap());
    a.write_all_at(b"12345678", 0).unwrap();
    assert_eq!(kind(b.write_all_at(b"12345", 0)), io::ErrorKind::StorageFull);
    assert_eq!(disk.read("b").unwrap(), b"12");
    a.write_all_at(b"overwritten".split_at(8).0, 0).unwrap();
    vfs.remove_file(Path::new("a")).unwrap();
    b.write_all_at(b"1234567890", 0).unwrap();
    assert_eq!(kind(b.write_all_at(b"1", 10)), io::ErrorKind::StorageFull);
    vfs.set_room(None);
    b.write_all_at(b"1", 10).unwrap();
}

#[test]
fn a_hook_sees_the_operation_before_it_happens() {
    let (disk, vfs) = world();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, beneath) = (seen.clone(), disk.clone());
    vfs.inject(Rule::on(Operation::Sync).always().call(move |operation, path| {
        log.lock().push((operation, path.to_owned(), beneath.events()));
    }));
    let file = vfs.create(Path::new("f")).unwrap();
    file.sync().unwrap();
    assert_eq!(*seen.lock(), [(Operation::Sync, PathBuf::from("f"), 1)]);
    assert_eq!(disk.events(), 2);
}
