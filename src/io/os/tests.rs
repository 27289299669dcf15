//! The promises of `io/os.rs`, on a temporary directory of the real file system.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::AtomicUsize;

use super::*;

fn world() -> (tempfile::TempDir, OsVfs, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    (directory, OsVfs::new(), root)
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().expect("an error").kind()
}

/// Others would read or change the store's files, or the owner could not.
#[test]
#[cfg_attr(miri, ignore = "Miri starts no processes")]
fn permissions_do_not_depend_on_the_umask() {
    // The umask belongs to the whole process, and other tests run beside this one: so it is set in a process of its own.
    let test = std::env::current_exe().unwrap();
    let only = ["--exact", "io::os::tests::permissions_under_every_umask", "--ignored"];
    let output = std::process::Command::new(test).args(only).output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("1 passed"), "{report}");
}

#[test]
#[ignore = "changes the umask; run by the test above"]
fn permissions_under_every_umask() {
    let (_directory, vfs, root) = world();
    for mask in [0, 0o022, 0o177, 0o777] {
        rustix::process::umask(Mode::from_raw_mode(mask));
        let [file, dir, lock] = ["file", "dir", "lock"].map(|name| root.join(format!("{name}{mask}")));
        vfs.create(&file).unwrap();
        vfs.create_dir(&dir).unwrap();
        vfs.lock(&lock).unwrap();
        assert_eq!((mode(&file), mode(&dir), mode(&lock)), (0o600, 0o700, 0o600), "umask {mask:o}");
    }
}

/// A link planted under one of our names would make us write where somebody else wants.
#[test]
fn links_are_not_followed() {
    let (_directory, vfs, root) = world();
    std::fs::write(root.join("target"), b"bytes").unwrap();
    std::fs::create_dir(root.join("inside")).unwrap();
    symlink("target", root.join("link")).unwrap();
    symlink("inside", root.join("dirlink")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let link = &root.join("link");
    assert_eq!(kind(vfs.open(link)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.open_to_erase(link)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.lock(link)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.lock(&root.join("dangling"))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.create(&root.join("dangling"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(vfs.create_dir(&root.join("dangling"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(vfs.read_dir(&root.join("dirlink"))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.sync_dir(&root.join("dirlink"))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(vfs.check_private(&root.join("dirlink"))), io::ErrorKind::InvalidInput);
    assert_eq!(vfs.metadata(link).unwrap().kind, EntryKind::Other);
    assert!(!root.join("nowhere").exists());
    vfs.remove_file(link).unwrap();
    assert_eq!(std::fs::read(root.join("target")).unwrap(), b"bytes");
}

/// Opening a pipe would wait for ever for somebody at its other end.
#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let (_directory, vfs, root) = world();
    let pipe = root.join("pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let socket = root.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [&pipe, &socket, &root] {
        assert_eq!(kind(vfs.open(path)), io::ErrorKind::InvalidInput, "{path:?}");
        assert_eq!(kind(vfs.open_to_erase(path)), io::ErrorKind::InvalidInput, "{path:?}");
        assert_eq!(kind(vfs.lock(path)), io::ErrorKind::InvalidInput, "{path:?}");
    }
    assert_eq!(kind(vfs.read_dir(&pipe)), io::ErrorKind::InvalidInput);
    assert_eq!(vfs.metadata(&pipe).unwrap(), Metadata { kind: EntryKind::Other, len_bytes: 0 });
}

/// A file that is already there may be sealed under the same key and ordinals.
#[test]
fn create_refuses_what_exists() {
    let (_directory, vfs, root) = world();
    let path = root.join("file");
    vfs.create(&path).unwrap().write_all_at(b"first", 0).unwrap();
    assert_eq!(kind(vfs.create(&path)), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(vfs.create_dir(&path)), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
}

#[test]
fn bytes_come_back_and_reading_past_the_end_is_an_error() {
    let (_directory, vfs, root) = world();
    let file = vfs.create(&root.join("a")).unwrap();
    file.write_all_at(b"hello world", 0).unwrap();
    file.write_all_at(b"W", 6).unwrap();
    file.begin_write_back(0, 11);
    file.sync().unwrap();
    vfs.rename(&root.join("a"), &root.join("b")).unwrap();
    vfs.sync_dir(&root).unwrap();
    let file = vfs.open(&root.join("b")).unwrap();
    file.will_read(0, 11);
    let mut buffer = [0; 5];
    file.read_exact_at(&mut buffer, 6).unwrap();
    assert_eq!((&buffer, file.len_bytes().unwrap()), (b"World", 11));
    assert_eq!(kind(file.read_exact_at(&mut buffer, 7)), io::ErrorKind::UnexpectedEof);
    assert!(file.write_all_at(b"x", 0).is_err(), "opened for reading only");
    vfs.open_to_erase(&root.join("b")).unwrap().write_all_at(&[0; 11], 0).unwrap();
    assert_eq!(std::fs::read(root.join("b")).unwrap(), [0; 11]);
}

/// The hint's outcome is ignored, so a wrong declaration of it would never be noticed.
#[test]
#[cfg(all(target_os = "linux", not(miri)))]
fn the_write_back_hint_is_understood_by_the_kernel() {
    use std::os::fd::AsRawFd;
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 8192], 0).unwrap();
    // SAFETY: the descriptor is open, and no memory is passed.
    let code = unsafe { linux::sync_file_range(file.as_raw_fd(), 4096, 4096, linux::SYNC_FILE_RANGE_WRITE) };
    assert_eq!(code, 0);
}

#[test]
fn a_directory_lists_what_is_in_it_and_goes_only_when_empty() {
    let (_directory, vfs, root) = world();
    vfs.create_dir(&root.join("d")).unwrap();
    vfs.create(&root.join("f")).unwrap();
    symlink("f", root.join("l")).unwrap();
    let mut entries = vfs.read_dir(&root).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let entries: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(entries, [("d", EntryKind::Directory), ("f", EntryKind::File), ("l", EntryKind::Other)]);
    vfs.create(&root.join("d/x")).unwrap();
    assert_eq!(kind(vfs.remove_dir(&root.join("d"))), io::ErrorKind::DirectoryNotEmpty);
    vfs.remove_file(&root.join("d/x")).unwrap();
    vfs.remove_dir(&root.join("d")).unwrap();
    assert_eq!(kind(vfs.metadata(&root.join("d"))), io::ErrorKind::NotFound);
}

/// Two writers in one directory destroy the store.
#[test]
fn a_lock_keeps_out_the_same_process_too_until_dropped() {
    let (_directory, vfs, root) = world();
    let path = root.join("LOCK");
    let held = vfs.lock(&path).unwrap();
    assert_eq!(kind(vfs.lock(&path)), io::ErrorKind::WouldBlock);
    assert_eq!(kind(OsVfs::new().lock(&path)), io::ErrorKind::WouldBlock);
    drop(held);
    vfs.lock(&path).unwrap();
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let (_directory, vfs, root) = world();
    let store = root.join("store");
    vfs.create_dir(&store).unwrap();
    for (bits, private) in [(0o700, true), (0o755, true), (0o775, false), (0o702, false), (0o1777, false)] {
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(bits)).unwrap();
        let checked = vfs.check_private(&store);
        assert_eq!(checked.is_ok(), private, "{bits:o}");
        assert!(private || kind(checked) == io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn two_spellings_of_one_place_are_the_same_canonical_path() {
    let (_directory, vfs, root) = world();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    symlink("a/b", root.join("link")).unwrap();
    let check = |path: &str, expected: &str| {
        assert_eq!(vfs.canonical(&root.join(path)).unwrap(), root.join(expected), "{path}");
    };
    check("link", "a/b");
    check("link/..", "a");
    check("link/new/file", "a/b/new/file");
    check("a/./b/../b/new/../other", "a/b/other");
    check("missing/../a/../x", "x");
    assert!(vfs.canonical(Path::new("not-there/at-all")).unwrap().is_absolute());
}

#[test]
fn clocks_go_forward_and_bytes_differ() {
    let clock = OsClock::new();
    let first = clock.tick();
    assert!(first.0 > 0 && clock.tick() >= first);
    assert!(clock.wall_ms() > 1_700_000_000_000, "later than 2023");
    let (mut a, mut b) = ([0; 32], [0; 32]);
    OsEntropy::new().fill(&mut a).unwrap();
    OsEntropy::new().fill(&mut b).unwrap();
    assert!(a != b && OsEntropy::new().is_real());
}

/// Counts to three, waiting for its signal each time, then ends as it is told.
struct Counter {
    signal: Arc<Signal>,
    count: Arc<AtomicUsize>,
    seen: Option<u64>,
    deadline: Option<Tick>,
    panics: bool,
}

impl Task for Counter {
    fn step(&mut self) -> Step {
        let seen = self.signal.count();
        if self.seen.replace(seen) != Some(seen) || self.deadline.is_some() {
            let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
            if count == 3 {
                assert!(!self.panics, "told to");
                return Step::Done;
            }
        }
        Step::Wait { signal: self.signal.clone(), seen, clock: Arc::new(OsClock::new()), deadline: self.deadline }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        assert_eq!(thread::panicking(), self.panics, "a task can tell in its Drop how it ended");
    }
}

fn count_to_three(deadline: Option<Tick>, panics: bool) -> Result<(), TaskPanicked> {
    let (signal, count) = (Arc::new(Signal::new()), Arc::new(AtomicUsize::new(0)));
    let task = Counter { signal: signal.clone(), count: count.clone(), seen: None, deadline, panics };
    let threads = Threads::new();
    let join = threads.spawn("counter", Box::new(task)).unwrap();
    let (clock, progress) = (OsClock::new(), Signal::new());
    for n in 1..=3 {
        let deadline = Some(clock.tick().after(Duration::from_millis(1)));
        while !threads.wait_until(&progress, &clock, deadline, &mut || count.load(Ordering::SeqCst) >= n) {
            thread::yield_now();
        }
        signal.raise();
    }
    assert_eq!(join.join(), join.join(), "the answer stays the same");
    join.join()
}

#[test]
fn a_task_runs_when_signalled_or_when_its_deadline_is_past() {
    assert_eq!(count_to_three(None, false), Ok(()));
    assert_eq!(count_to_three(Some(Tick(1)), false), Ok(()));
}

/// A flush thread that dies unnoticed would leave writers waiting for ever.
#[test]
fn a_panic_in_a_task_is_told_to_who_joins_it() {
    let panicked = count_to_three(None, true).unwrap_err();
    assert_eq!((panicked.name, panicked.message.as_str()), ("counter", "told to"));
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let (clock, signal) = (OsClock::new(), Signal::new());
    let deadline = clock.tick().after(Duration::from_millis(20));
    assert!(!Threads::new().wait_until(&signal, &clock, Some(deadline), &mut || false));
    assert!(clock.tick() >= deadline);
    assert!(Threads::new().wait_until(&signal, &clock, Some(deadline), &mut || true), "ready counts, even late");
}

#[test]
fn a_tick_cell_reads_what_was_stored_and_never_zero() {
    for cell in [TickCell::new(Tick(7)), TickCell(Word::Owned { tick: 7.into(), process: std::process::id() })] {
        assert_eq!(cell.load(), Some(Tick(7)));
        cell.store(Tick(9));
        assert_eq!(cell.load(), Some(Tick(9)));
        cell.store(Tick(0));
        assert_eq!(cell.load(), Some(Tick(1)));
    }
}

/// Reads through a mapping that differ from others would make good tables look damaged, or damaged ones good.
#[test]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn a_mapping_gives_the_bytes_and_the_ends_that_reads_give() {
    let (_directory, vfs, root) = world();
    let (path, empty) = (root.join("data"), root.join("empty"));
    let bytes: Vec<u8> = (0..10_000_u32).map(|i| ((i * i) >> 3) as u8).collect();
    vfs.create(&path).unwrap().write_all_at(&bytes, 0).unwrap();
    vfs.create(&empty).unwrap();
    let (read, mapped) = (vfs.open(&path).unwrap(), vfs.open_mapped(&path).unwrap());
    assert_eq!(mapped.len_bytes().unwrap(), 10_000);
    for (offset, len) in
        [(0, 0), (0, 10_000), (1, 4096), (9_999, 1), (10_000, 0), (9_999, 2), (10_000, 1), (u64::MAX, 1)]
    {
        let (mut one, mut other) = (vec![0; len], vec![0; len]);
        let outcomes = (read.read_exact_at(&mut one, offset), mapped.read_exact_at(&mut other, offset));
        match outcomes {
            (Ok(()), Ok(())) => assert_eq!(one, other),
            // A read from behind what an offset can be is refused in another way.
            (Err(_), Err(_)) if offset == u64::MAX => {}
            (Err(one), Err(other)) => assert_eq!(one.kind(), other.kind(), "{len} bytes at {offset}"),
            outcomes => panic!("{len} bytes at {offset}: {outcomes:?}"),
        }
    }
    assert!(mapped.write_all_at(b"x", 0).is_err());
    let empty = vfs.open_mapped(&empty).unwrap();
    assert_eq!(empty.read_exact_at(&mut [0], 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    std::os::unix::fs::symlink(&path, root.join("link")).unwrap();
    assert_eq!(vfs.open_mapped(&root.join("link")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

unsafe extern "C" {
    fn fork() -> std::ffi::c_int;
    fn _exit(status: std::ffi::c_int) -> !;
}

/// A child that goes on with its parent's keys and ordinals seals two things with one key and nonce.
#[test]
#[cfg_attr(miri, ignore = "Miri cannot fork")]
fn a_forked_child_reads_no_tick_for_good_while_its_parent_goes_on() {
    let cells = [TickCell::new(Tick(7)), TickCell(Word::Owned { tick: 7.into(), process: std::process::id() })];
    // SAFETY: the child does nothing but atomic loads and stores and `getpid`, all of which are allowed after a
    // fork of a process with threads, and leaves through `_exit`.
    let child = unsafe { fork() };
    assert!(child >= 0);
    if child == 0 {
        let mut forked = 0;
        for cell in &cells {
            forked += i32::from(cell.load().is_none());
            cell.store(Tick(8));
            forked += i32::from(cell.load().is_none());
        }
        // SAFETY: ends the child, and so touches nothing.
        unsafe { _exit(forked) }
    }
    let child = rustix::process::Pid::from_raw(child);
    let (_, status) = rustix::process::waitpid(child, rustix::process::WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(4), "of two looks at each of two cells");
    assert!(cells.iter().all(|cell| cell.load() == Some(Tick(7))));
}

/// A child that ends would take the store's lock from its parent.
#[test]
#[cfg_attr(miri, ignore = "Miri cannot fork")]
fn a_forked_child_does_not_unlock_and_does_not_keep_the_lock() {
    let (_directory, vfs, root) = world();
    let path = root.join("LOCK");
    let mut held = std::mem::ManuallyDrop::new(vfs.lock(&path).unwrap());
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: the child closes a descriptor, reads from another and leaves through `_exit`; all of that is
    // allowed after a fork of a process with threads.
    let child = unsafe { fork() };
    assert!(child >= 0);
    if child == 0 {
        use std::io::Read;
        drop(writer);
        let _ = (&reader).read(&mut [0]);
        // SAFETY: ends the child, and so touches nothing.
        unsafe { _exit(0) }
    }
    assert_eq!(kind(vfs.lock(&path)), io::ErrorKind::WouldBlock);
    // SAFETY: dropped once, and not used after.
    unsafe { std::mem::ManuallyDrop::drop(&mut held) };
    vfs.lock(&path).expect("free, although the child still has the file open");
    drop(writer);
    let child = rustix::process::Pid::from_raw(child);
    rustix::process::waitpid(child, rustix::process::WaitOptions::empty()).unwrap();
}

#[test]
fn a_file_system_says_how_much_room_it_has() {
    // A store that takes every disk for full refuses all writes; one that takes none for full runs into its end.
    let dir = tempfile::tempdir().unwrap();
    let free_bytes = OsVfs::new().free_bytes(dir.path()).unwrap();
    assert!(free_bytes.is_some_and(|bytes| bytes > 1 << 20), "{free_bytes:?}");
    assert!(OsVfs::new().free_bytes(&dir.path().join("missing")).is_err());
}
