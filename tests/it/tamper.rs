//! Every rule of sealing, broken on purpose: what was changed is refused, whatever it is that was changed.
//!
//! A small store is written, then its files are changed as a failing disk, a careless hand or an attacker could: bits turned, frames
//! and files exchanged, older ones put back, ends cut off and put on. Whoever opens the store and reads all of it either gets
//! an error, or exactly what was written and a report that something is wrong. Never anything else.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use strongroom::inspect::Inspection;
use strongroom::io::Clock;
use strongroom::io::mem::{Loss, MemVfs};
use strongroom::options::Durability;
use strongroom::{Error, ErrorKind, LocalKms, MasterKey, Store, Unlock};

use crate::world::{Contents, DIR, Dice, Row, World, closed_world, contents, files_below, small_store, tiny_table};

/// Bytes of every file's header.
const HEADER_BYTES: usize = 160;

/// What became of a store whose files were changed.
enum Outcome {
    Refused(Error),
    /// Everything was there, and the damage was reported: by `verify` with these errors, or at least by an event.
    Reported(Vec<Error>),
    /// Everything was there, and nobody said anything.
    Unnoticed,
    /// Something else than what was written.
    Wrong(String),
}

/// Open the store on `disk` and read all of it, in every way there is.
fn look(world: &World, disk: MemVfs, life: u64, expected: &dyn Fn(&Contents) -> Result<(), String>) -> Outcome {
    let untouched = disk.copy();
    let world = world.over(disk, life);
    let read = || {
        let store = world.open()?;
        let found = contents(&store)?;
        for (name, (_, row)) in &found {
            let table = store.table(name)?;
            for (key, value) in row {
                if table.get(key)?.as_deref() != Some(value) {
                    return Ok(Err(format!("get finds something else than a scan in {name}")));
                }
            }
        }
        let clean = store.recovery().clean && world.heard.damage().is_empty();
        Ok(Ok((found, clean)))
    };
    match read() {
        Err(error) => Outcome::Refused(error),
        Ok(Err(problem)) => Outcome::Wrong(problem),
        Ok(Ok((found, clean))) => match expected(&found) {
            Err(problem) => Outcome::Wrong(problem),
            Ok(()) => match damages(&world, untouched) {
                damages if clean && damages.is_empty() => Outcome::Unnoticed,
                damages => Outcome::Reported(damages),
            },
        },
    }
}

/// What a check of the whole store, with the key, finds.
fn damages(world: &World, disk: MemVfs) -> Vec<Error> {
    let world = world.over(disk, u64::MAX);
    let inspection = Inspection::of(DIR).key_provider(Arc::new(world.kms.clone())).environment(world.sim.environment());
    match inspection.verify(&mut |_| {}) {
        Ok(report) => report.damages,
        Err(error) => vec![error],
    }
}

/// What a check without any key finds.
fn rot(disk: MemVfs) -> Vec<Error> {
    let world = strongroom::io::sim::Simulation::over(disk, u64::MAX);
    match Inspection::of(DIR).environment(world.environment()).scrub(&mut |_| {}) {
        Ok(report) => report.damages.into_iter().chain(report.unfinished).collect(),
        Err(error) => vec![error],
    }
}

/// Look at a changed store; what was wrong with it, and whether it could be read in full all the same.
#[track_caller]
fn noticed(world: &World, disk: MemVfs, expected: &Contents, what: &str) -> (Vec<Error>, bool) {
    static LIVES: AtomicUsize = AtomicUsize::new(0);
    let life = 1 << 50 | LIVES.fetch_add(1, Ordering::Relaxed) as u64;
    let equals = |found: &Contents| if found == expected { Ok(()) } else { Err(difference(found, expected)) };
    match catch_unwind(AssertUnwindSafe(|| look(world, disk, life, &equals))) {
        Ok(Outcome::Refused(error)) => (vec![error], false),
        Ok(Outcome::Reported(errors)) => (errors, true),
        Ok(Outcome::Unnoticed) => panic!("{what}: nobody noticed"),
        Ok(Outcome::Wrong(problem)) => panic!("{what}: {problem}"),
        Err(_) => panic!("{what}: panicked"),
    }
}

/// That a changed store is refused; the error.
#[track_caller]
fn refused(world: &World, disk: MemVfs, expected: &Contents, what: &str) -> Error {
    match noticed(world, disk, expected, what) {
        (mut errors, false) => errors.remove(0),
        (errors, true) => panic!("{what}: reported ({errors:?}), but taken"),
    }
}

fn difference(found: &Contents, expected: &Contents) -> String {
    let count = |contents: &Contents| {
        contents.iter().map(|(name, (_, row))| format!("{name}: {} entries", row.len())).collect::<Vec<_>>().join(", ")
    };
    format!("read without an error, but it is something else: {} instead of {}", count(found), count(expected))
}

/// What a store holds that was closed cleanly, without changing its disk.
fn contents_of(world: &World) -> Contents {
    let world = world.over(world.sim.vfs.copy(), u64::MAX - 1);
    contents(&world.open().unwrap()).unwrap()
}

/// All files but the lock, which is empty.
fn files(disk: &MemVfs) -> Vec<PathBuf> {
    disk.list().into_iter().filter(|path| !path.ends_with("LOCK")).collect()
}

fn files_in(disk: &MemVfs, folder: &str) -> Vec<PathBuf> {
    files(disk).into_iter().filter(|path| path.starts_with(Path::new(DIR).join(folder))).collect()
}

fn is_key_file(path: &Path) -> bool {
    path.starts_with(Path::new(DIR).join("keys"))
}

fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal" || extension == "manifest" || extension == "log")
}

/// A changed copy of a disk.
fn changed(disk: &MemVfs, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> MemVfs {
    let copy = disk.copy();
    let mut bytes = copy.read(path).unwrap();
    change(&mut bytes);
    copy.plant(path, &bytes).unwrap();
    copy
}

/// Give a header the checksum that its bytes ask for, as somebody would who changes it on purpose.
pub fn with_right_crc(header: &mut [u8]) {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..140]);
    hasher.update(&header[144..160]);
    header[140..144].copy_from_slice(&hasher.finalize().to_le_bytes());
}

/// Where the frames of a file lie: written against the description of the format, not with the engine's code.
fn frames(path: &Path, bytes: &[u8]) -> Vec<Range<usize>> {
    // Head and tag: 8 + 16, in a journal 24 + 16.
    let around = if is_journal(path) { 40 } else { 24 };
    let mut frames = Vec::new();
    let mut at = HEADER_BYTES;
    // A segment of the log that is not closed may end in reserved zeros.
    while at + 4 <= bytes.len() && bytes[at..].iter().any(|byte| *byte != 0) {
        let body = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let end = at + around + body;
        assert!(end <= bytes.len(), "{}: a frame that goes beyond the file", path.display());
        frames.push(at..end);
        at = end;
    }
    frames
}

/// Give a frame the checksums that its bytes ask for.
fn frame_with_right_crc(path: &Path, frame: &mut [u8]) {
    let crc = |parts: &[&[u8]]| {
        let mut hasher = crc32fast::Hasher::new();
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finalize().to_le_bytes()
    };
    if is_journal(path) {
        let head = crc(&[&frame[..16]]);
        frame[16..20].copy_from_slice(&head);
        let body = crc(&[&frame[24..]]);
        frame[20..24].copy_from_slice(&body);
    } else {
        let all = crc(&[&frame[..4], &frame[8..]]);
        frame[4..8].copy_from_slice(&all);
    }
}

#[test]
fn every_file_of_a_store_is_sealed_and_knows_what_it_is() {
    // Rule 1. A failure means that something is written past the one layer that seals.
    let world = closed_world(1);
    let disk = &world.sim.vfs;
    for path in files(disk) {
        let bytes = disk.read(&path).unwrap();
        assert_eq!(&bytes[..8], b"strngrm\x1a", "{}", path.display());
        if !is_key_file(&path) {
            // A log segment that was not taken into use is a header and nothing else.
            let end = frames(&path, &bytes).last().map_or(160, |frame| frame.end);
            assert_eq!(end, bytes.len(), "{}", path.display());
        }
    }
    for folder in ["manifest", "wal", "keys", "sst"] {
        assert!(!files_in(disk, folder).is_empty(), "the store of these tests has nothing in {folder}");
    }
    assert_eq!(disk.read(format!("{DIR}/LOCK")).unwrap(), b"");
    assert!(damages(&world, disk.copy()).is_empty(), "{:?}", damages(&world, disk.copy()));
    assert!(rot(disk.copy()).is_empty(), "{:?}", rot(disk.copy()));
}

#[test]
fn no_file_of_an_earlier_opening_is_written_to_again() {
    // Rule 2. A failure means that a copy that was restored, or a crash, can make one key seal twice.
    let world = closed_world(1);
    let mut disk = world.sim.vfs.copy();
    for life in 2..6 {
        let before = disk.snapshot();
        let world = world.over(disk, life);
        let store = world.open().unwrap();
        let first = store.table("first").unwrap();
        for number in 0..40 {
            first.put(format!("life {life} number {number}"), vec![1; 100]).unwrap();
            world.sim.scheduler.run_some(3);
            for (path, bytes) in &before {
                // CURRENT is another file each time; a key that is shredded is overwritten.
                if let Ok(now) = world.sim.vfs.read(path)
                    && !path.ends_with("CURRENT")
                {
                    assert!(now == *bytes, "{} was written to", path.display());
                }
            }
        }
        store.close().unwrap();
        disk = world.sim.vfs.copy();
    }
}

#[test]
#[cfg(debug_assertions)]
fn two_copies_of_a_store_never_use_one_key_and_nonce_twice() {
    // Rule 2. A failure means that whoever restores a backup, and goes on with both, gives two texts away that were sealed alike.
    strongroom::crypto_audit::start();
    let world = World::new(1);
    let store = world.create();
    small_store(&store);
    let disk = &world.sim.vfs;
    let copies: Vec<MemVfs> = (0..4)
        .map(|number| match number {
            0 => disk.copy(),
            _ => disk.crash_at(disk.events(), Loss::ALL[number], number as u64),
        })
        .collect();
    store.table("first").unwrap().put(b"after", b"the copy").unwrap();
    store.close().unwrap();
    for (life, copy) in copies.into_iter().enumerate() {
        let world = world.over(copy, 10 + life as u64);
        let store = world.open().unwrap();
        store.table("first").unwrap().put(b"after", format!("the copy {life}")).unwrap();
        store.compact().unwrap();
        store.close().unwrap();
    }
    let pairs = strongroom::crypto_audit::finish();
    let distinct: std::collections::HashSet<_> = pairs.iter().collect();
    assert!(pairs.len() > 100);
    assert_eq!(distinct.len(), pairs.len());
}

#[test]
fn frames_moved_repeated_or_left_out_within_a_file_do_not_open() {
    // Rule 3. A failure means that somebody without the key rearranges data, and it is read as if it were in order.
    let world = closed_world(1);
    let paths: Vec<PathBuf> = files(&world.sim.vfs).into_iter().filter(|path| !is_key_file(path)).collect();
    let tried = rearrange(&world, &paths);
    assert!(tried > 40, "only {tried} frames");
}

/// Leave each frame of these files out, repeat it, exchange it with the next ones; how many there are.
fn rearrange(world: &World, paths: &[PathBuf]) -> usize {
    let expected = contents_of(world);
    let disk = &world.sim.vfs;
    let mut tried = 0;
    for path in paths {
        let bytes = disk.read(path).unwrap();
        let frames = frames(path, &bytes);
        let part = |range: &Range<usize>| &bytes[range.clone()];
        let with = |order: Vec<usize>| {
            let mut file = bytes[..HEADER_BYTES].to_vec();
            order.iter().for_each(|&index| file.extend_from_slice(part(&frames[index])));
            changed(disk, path, |bytes| *bytes = file)
        };
        for i in 0..frames.len() {
            let what = |change: &str| format!("{}: frame {i} of {} {change}", path.display(), frames.len());
            let all = || (0..frames.len()).collect::<Vec<_>>();
            let mut left_out = all();
            left_out.remove(i);
            noticed(world, with(left_out), &expected, &what("left out"));
            let mut repeated = all();
            repeated.insert(i, i);
            noticed(world, with(repeated), &expected, &what("repeated"));
            for j in i + 1..frames.len().min(i + 4) {
                let mut swapped = all();
                swapped.swap(i, j);
                noticed(world, with(swapped), &expected, &what(&format!("exchanged with frame {j}")));
            }
            tried += 1;
        }
    }
    tried
}

#[test]
fn frames_moved_between_files_do_not_open() {
    // Rule 3. A failure means that blocks of one table can be shown as another's, or old ones as new ones.
    let world = closed_world(1);
    let tried = transplant(&world, &files(&world.sim.vfs));
    assert!(tried > 20, "only {tried} frames");
}

/// Put frames of every other file in the place of those of these files; how many.
fn transplant(world: &World, paths: &[PathBuf]) -> usize {
    let expected = contents_of(world);
    let disk = &world.sim.vfs;
    let all = files(disk);
    let mut tried = 0;
    for path in paths.iter().filter(|path| !is_key_file(path)) {
        let bytes = disk.read(path).unwrap();
        for other in
            all.iter().filter(|other| *other != path && is_journal(other) == is_journal(path) && !is_key_file(other))
        {
            let others = disk.read(other).unwrap();
            for (own, foreign) in frames(path, &bytes).into_iter().zip(frames(other, &others)) {
                let planted = changed(disk, path, |bytes| {
                    drop(bytes.splice(own.clone(), others[foreign.clone()].iter().copied()))
                });
                noticed(
                    world,
                    planted,
                    &expected,
                    &format!("{}: frame at {} from {}", path.display(), own.start, other.display()),
                );
                tried += 1;
            }
        }
    }
    tried
}

#[test]
fn files_exchanged_within_a_store_do_not_open() {
    // Rule 3. A failure means that one tenant is shown another tenant's table.
    let world = closed_world(1);
    exchange(&world, &["sst", "keys", "wal", "manifest"]);
}

/// Exchange the files of each of these folders with each other.
fn exchange(world: &World, folders: &[&str]) {
    let expected = contents_of(world);
    let disk = &world.sim.vfs;
    for folder in folders {
        let files = files_in(disk, folder);
        for (i, one) in files.iter().enumerate() {
            for other in &files[i + 1..] {
                let what = format!("{} and {}", one.display(), other.display());
                let swapped = changed(disk, one, |bytes| *bytes = disk.read(other).unwrap());
                swapped.plant(other, &disk.read(one).unwrap()).unwrap();
                refused(world, swapped, &expected, &format!("{what} exchanged"));
                let copied = changed(disk, one, |bytes| *bytes = disk.read(other).unwrap());
                refused(world, copied, &expected, &format!("{what}: the second in place of the first"));
                let copied = changed(disk, other, |bytes| *bytes = disk.read(one).unwrap());
                refused(world, copied, &expected, &format!("{what}: the first in place of the second"));
            }
        }
    }
}

#[test]
fn files_of_another_store_under_the_same_master_key_do_not_open() {
    // Rule 3. A failure means that data from a test system can be put under a live one, with its key file and all.
    let world = closed_world(1);
    let expected = contents_of(&world);
    let other = world.over(MemVfs::new(), 2);
    let store = other.create();
    small_store(&store);
    store.close().unwrap();
    let foreign = |folder: &str| files_in(&other.sim.vfs, folder);
    let disk = &world.sim.vfs;
    for path in files(disk) {
        let folder = path.strip_prefix(DIR).unwrap().iter().next().unwrap().to_str().unwrap();
        for other_path in if folder == "CURRENT" { vec![path.clone()] } else { foreign(folder) } {
            let bytes = other.sim.vfs.read(&other_path).unwrap();
            let planted = changed(disk, &path, |own| *own = bytes);
            let error = refused(
                &world,
                planted,
                &expected,
                &format!("{} of another store as {}", other_path.display(), path.display()),
            );
            assert!(
                matches!(error.kind(), ErrorKind::Tampering | ErrorKind::WrongKey | ErrorKind::KeyUnavailable),
                "{} as {}: {error}",
                other_path.display(),
                path.display()
            );
        }
    }
}

#[test]
fn an_older_file_put_back_is_refused() {
    // Rule 3. A failure means that what was deleted or overwritten can be brought back, file by file.
    let world = closed_world(1);
    let mut disks = vec![world.sim.vfs.copy()];
    for life in 2..5 {
        let world = world.over(disks.last().unwrap().copy(), life);
        let store = world.open().unwrap();
        let first = store.table("first").unwrap();
        for number in 0..30 {
            first.put(format!("key {:02}", number % 12), format!("life {life}")).unwrap();
        }
        if life == 3 {
            store.compact().unwrap();
        }
        store.close().unwrap();
        disks.push(world.sim.vfs.copy());
    }
    let now = disks.pop().unwrap();
    let world = world.over(now.copy(), 9);
    let expected = contents_of(&world);
    let mut tried = 0;
    for (age, old) in disks.iter().rev().enumerate() {
        for path in files(old) {
            let bytes = old.read(&path).unwrap();
            if now.read(&path).is_ok_and(|now| now != bytes) {
                let what = format!("{} as it was {} openings ago", path.display(), age + 1);
                refused(&world, changed(&now, &path, |now| *now = bytes), &expected, &what);
                tried += 1;
            }
        }
        // CURRENT together with the manifest that it names, and with the log of that time: all that says what is new.
        for folders in [&["manifest"][..], &["manifest", "wal"], &["manifest", "sst"]] {
            let mixed = now.copy();
            mixed.plant(format!("{DIR}/CURRENT"), &old.read(format!("{DIR}/CURRENT")).unwrap()).unwrap();
            for path in folders.iter().flat_map(|folder| files_in(old, folder)) {
                mixed.plant(&path, &old.read(&path).unwrap()).unwrap();
            }
            refused(&world, mixed, &expected, &format!("CURRENT and {folders:?} of {} openings ago", age + 1));
            tried += 1;
        }
    }
    assert!(tried > 10, "only {tried} old files");
}

#[test]
fn files_cut_off_or_extended_after_a_clean_close_are_refused() {
    // Rule 3. A failure means that the newest data can be cut off, and the store looks complete.
    let world = closed_world(1);
    cut_and_extend(&world, &files(&world.sim.vfs));
}

/// Cut these files off at many lengths, and put things behind them.
fn cut_and_extend(world: &World, paths: &[PathBuf]) {
    let expected = contents_of(world);
    let disk = &world.sim.vfs;
    let mut dice = Dice::new(1);
    for path in paths {
        let bytes = disk.read(path).unwrap();
        let mut lengths: Vec<usize> = (0..48).map(|_| dice.below(bytes.len())).collect();
        lengths.extend([0, 1, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1, bytes.len() - 16, bytes.len() / 2]);
        if !is_key_file(path) {
            lengths.extend(frames(path, &bytes).into_iter().map(|frame| frame.start));
        }
        // A segment that was not taken into use is a header and nothing else.
        lengths.retain(|len| *len < bytes.len());
        for len in lengths {
            let what = format!("{} cut to {len} of {} bytes", path.display(), bytes.len());
            let cut = changed(disk, path, |bytes| bytes.truncate(len));
            let zeroed = changed(disk, path, |bytes| bytes[len..].fill(0));
            // A key file stands there twice, so that one lost half costs nothing but a report.
            if is_key_file(path) {
                noticed(world, cut, &expected, &what);
                noticed(world, zeroed, &expected, &format!("{what}, zeros behind"));
            } else {
                refused(world, cut, &expected, &what);
                noticed(world, zeroed, &expected, &format!("{what}, zeros behind"));
            }
        }
        for (what, more) in
            [("a zero", vec![0]), ("zeros", vec![0; 4096]), ("itself", bytes.clone()), ("noise", dice.bytes(100))]
        {
            let extended = changed(disk, path, |bytes| bytes.extend_from_slice(&more));
            noticed(world, extended, &expected, &format!("{what} behind {}", path.display()));
        }
    }
}

#[test]
fn lengths_in_clear_are_checked_before_they_are_believed() {
    // Rule 5. A failure means that four bytes on disk make the process allocate or read whatever an attacker likes.
    let world = closed_world(1);
    let expected = contents_of(&world);
    let disk = &world.sim.vfs;
    for path in files(disk) {
        let bytes = disk.read(&path).unwrap();
        let body_end =
            |start: usize| start + 24 + u32::from_le_bytes(bytes[start..start + 4].try_into().unwrap()) as usize;
        let frames = match is_key_file(&path) {
            true => Vec::from_iter([HEADER_BYTES].map(|start| start..body_end(start))),
            false => frames(&path, &bytes),
        };
        for frame in frames {
            let body = u32::from_le_bytes(bytes[frame.start..frame.start + 4].try_into().unwrap());
            for len in [0, 1, body - 1, body + 1, 1 << 20, 1 << 31, u32::MAX] {
                let what = format!("{}: length {len} instead of {body} at {}", path.display(), frame.start);
                let lied = changed(disk, &path, |bytes| {
                    bytes[frame.start..frame.start + 4].copy_from_slice(&len.to_le_bytes());
                    frame_with_right_crc(&path, &mut bytes[frame.clone()]);
                });
                noticed(&world, lied, &expected, &what);
            }
        }
    }
}

#[test]
fn a_turned_bit_a_forged_byte_and_another_key_are_told_apart() {
    // Rule 6. A failure means that somebody looks for an attacker where a disk is failing, or the other way round.
    let world = closed_world(1);
    let expected = contents_of(&world);
    let disk = &world.sim.vfs;
    for path in files(disk).into_iter().filter(|path| !is_key_file(path)) {
        let bytes = disk.read(&path).unwrap();
        let frames = frames(&path, &bytes);
        for frame in &frames {
            let body = frame.start + if is_journal(&path) { 24 } else { 8 };
            let what = format!("{}: frame at {}", path.display(), frame.start);
            let rotten = changed(disk, &path, |bytes| bytes[body] ^= 4);
            assert_kind(noticed(&world, rotten, &expected, &what), ErrorKind::BitRot, &what);
            let forged = changed(disk, &path, |bytes| {
                bytes[body] ^= 4;
                frame_with_right_crc(&path, &mut bytes[frame.clone()]);
            });
            let what = format!("{what}, with the right checksum");
            assert_kind(noticed(&world, forged, &expected, &what), ErrorKind::Tampering, &what);
        }
        // Suite, generation, number, store, table, salt, commitment, tag.
        for (offset, kind) in [
            (13, ErrorKind::Tampering),
            (24, ErrorKind::Tampering),
            (32, ErrorKind::Tampering),
            (40, ErrorKind::Tampering),
            (56, ErrorKind::Tampering),
            (72, ErrorKind::Tampering),
            (104, ErrorKind::WrongKey),
            (144, ErrorKind::Tampering),
        ] {
            let what = format!("{}: byte {offset} of the header", path.display());
            let rotten = changed(disk, &path, |bytes| bytes[offset] ^= 3);
            assert_kind(noticed(&world, rotten, &expected, &what), ErrorKind::BitRot, &what);
            let forged = changed(disk, &path, |bytes| {
                bytes[offset] ^= 3;
                with_right_crc(&mut bytes[..HEADER_BYTES]);
            });
            let what = format!("{what}, with the right checksum");
            assert_kind(noticed(&world, forged, &expected, &what), kind, &what);
        }
    }
}

#[track_caller]
fn assert_kind((errors, _): (Vec<Error>, bool), kind: ErrorKind, what: &str) {
    assert!(errors.first().is_some_and(|error| error.kind() == kind), "{what}: {errors:?} instead of {kind:?}");
}

/// Turn bits, one at a time, over two threads; how many, and what was not noticed.
fn sweep(
    world: &World,
    disk: &MemVfs,
    flips: &[(PathBuf, usize, u8)],
    expected: &(dyn Fn(&PathBuf, usize, &Contents) -> Result<(), String> + Sync),
) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let one_thread = || {
        let mut silent = Vec::new();
        while let Some((path, offset, bit)) = flips.get(next.fetch_add(1, Ordering::Relaxed)) {
            let turned = changed(disk, path, |bytes| bytes[*offset] ^= 1 << bit);
            let what = format!("{}: bit {bit} of byte {offset}", path.display());
            if rot(turned.copy()).is_empty() {
                silent.push(format!("{what}: a scrub without the key finds nothing"));
            }
            match catch_unwind(AssertUnwindSafe(|| {
                look(world, turned, 1 << 51, &|found| expected(path, *offset, found))
            })) {
                Ok(Outcome::Refused(_) | Outcome::Reported(_)) => {}
                Ok(Outcome::Unnoticed) => silent.push(format!("{what}: not noticed")),
                Ok(Outcome::Wrong(problem)) => silent.push(format!("{what}: {problem}")),
                Err(_) => silent.push(format!("{what}: panicked")),
            }
        }
        silent
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(one_thread);
        let mut silent = one_thread();
        silent.extend(other.join().unwrap());
        silent
    })
}

#[test]
fn no_turned_bit_of_a_closed_store_goes_unnoticed() {
    // Rule 4. A failure means that a failing disk changes what is read, and nobody is told.
    let world = closed_world(1);
    let turned = turn_bits(&world, &files(&world.sim.vfs), 1);
    assert!(turned > 10_000, "only {turned} bits");
}

/// Turn all bits of heads and ends of these files, and one of every so many bytes between; how many.
fn turn_bits(world: &World, paths: &[PathBuf], every: usize) -> usize {
    let expected = contents_of(world);
    let disk = world.sim.vfs.copy();
    let mut dice = Dice::new(3);
    let mut flips = Vec::new();
    for path in paths {
        let len = disk.read(path).unwrap().len();
        for offset in 0..len {
            // Headers and footers in full, a random bit of every other byte.
            if offset < HEADER_BYTES || offset + 48 > len {
                flips.extend((0..8).map(|bit| (path.clone(), offset, bit)));
            } else if offset.is_multiple_of(every) {
                flips.push((path.clone(), offset, dice.below(8) as u8));
            }
        }
    }
    let equals =
        |_: &PathBuf, _, found: &Contents| if *found == expected { Ok(()) } else { Err(difference(found, &expected)) };
    let silent = sweep(world, &disk, &flips, &equals);
    println!("{} bits turned", flips.len());
    assert!(silent.is_empty(), "{} of {}: {:#?}", silent.len(), flips.len(), &silent[..silent.len().min(20)]);
    flips.len()
}

#[test]
fn no_turned_bit_before_the_last_sync_of_an_open_log_goes_unnoticed() {
    // A failure means that acknowledged data is lost to one bit and the store does as if it had never been written.
    let mut world = World::new(1);
    world.options.log_segment_bytes = 4 << 10;
    world.options.memtable_bytes = 1 << 20;
    world.options.write_budget_bytes = 1 << 20;
    world.options.log_bytes_max = 1 << 20;
    let store = world.create();
    let tables = store.create_tables(&[("a", tiny_table(0)), ("b", tiny_table(1))]).unwrap();
    let ids = [tables[0].id(), tables[1].id()];
    // What is there after each commit.
    let mut states = vec![[Row::new(), Row::new()]];
    let mut synced = 0;
    for number in 0..65 {
        let mut rows = states.last().unwrap().clone();
        let mut batch = store.batch();
        for (table, row) in tables.iter().zip(&mut rows) {
            let (key, value) = (format!("key {number}").into_bytes(), format!("value {number}").into_bytes());
            batch.put(table, &key, &value);
            row.insert(key, value);
        }
        let sync = number % 10 == 9;
        batch.commit_with(if sync { Durability::Sync } else { Durability::Buffered }).unwrap();
        states.push(rows);
        world.sim.clock.advance(std::time::Duration::from_millis(60));
        world.sim.scheduler.run_some(4);
        if sync {
            synced = states.len() - 1;
        }
    }
    let disk = world.sim.vfs.crash_at(world.sim.vfs.events(), Loss::KeepAll, 0);
    drop::<Store>(store);
    let segments = files_in(&disk, "wal").len();
    assert!(segments > 2, "only {segments} segments");
    let mut dice = Dice::new(4);
    let flips: Vec<_> = files(&disk)
        .into_iter()
        .flat_map(|path| {
            let len = disk.read(&path).unwrap().len();
            (0..len).map(|offset| (path.clone(), offset, dice.below(8) as u8)).collect::<Vec<_>>()
        })
        .collect();
    let prefix = |_: &PathBuf, _, found: &Contents| {
        let rows = ["a", "b"].map(|name| found.get(name).map(|(id, row)| (*id, row)));
        let matches = |state: &[Row; 2]| (0..2).all(|i| rows[i] == Some((ids[i], &state[i])));
        match states.iter().rposition(matches) {
            Some(commits) if commits >= synced => Ok(()),
            Some(commits) => Err(format!("{} durable commits are missing without an error", synced - commits)),
            None => Err("no prefix of the commits leaves this".to_owned()),
        }
    };
    let silent = sweep(&world, &disk, &flips, &prefix);
    println!("{} bits turned", flips.len());
    assert!(flips.len() > 8_000, "only {} bits", flips.len());
    assert!(silent.is_empty(), "{} of {}: {:#?}", silent.len(), flips.len(), &silent[..silent.len().min(20)]);
}

#[test]
fn a_hole_in_the_log_before_a_point_that_is_attested_is_refused() {
    // A failure means that durable commits are cut off, though what is left says that they were there.
    let mut world = World::new(1);
    world.options.log_segment_bytes = 1 << 20;
    world.options.log_bytes_max = 1 << 20;
    world.options.memtable_bytes = 1 << 20;
    world.options.write_budget_bytes = 1 << 20;
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    let mut synced = Vec::new();
    for number in 0..65 {
        let durability = if number % 10 == 9 { Durability::Sync } else { Durability::Buffered };
        table.put_with(format!("key {number:02}"), b"v", durability).unwrap();
        if durability == Durability::Sync {
            synced.push(number + 1);
        }
    }
    let disk = world.sim.vfs.crash_at(world.sim.vfs.events(), Loss::KeepAll, 0);
    let path = files_in(&disk, "wal").into_iter().max_by_key(|path| disk.read(path).unwrap().len()).unwrap();
    let bytes = disk.read(&path).unwrap();
    let frames = frames(&path, &bytes);
    let mut cut_short = 0;
    for frame in &frames {
        // Everything from here on is gone. Behind the last point that is attested this looks like any crash, and only an anchor
        // would notice.
        let cut = changed(&disk, &path, |bytes| bytes.truncate(frame.start));
        match world.over(cut, 7).open().and_then(|store| contents(&store)) {
            Ok(found) => cut_short += usize::from(found["t"].1.len() < 65),
            Err(error) => assert_eq!(error.kind(), ErrorKind::BitRot, "cut at {}: {error}", frame.start),
        }
        // This frame alone is gone, and what is behind it stands where it stood.
        for zeros in [true, false] {
            let hole = changed(&disk, &path, |bytes| match zeros {
                true => bytes[frame.clone()].fill(0),
                false => drop(bytes.drain(frame.clone())),
            });
            let world = world.over(hole, 8);
            match world.open().and_then(|store| contents(&store)) {
                Ok(found) => {
                    let count = found["t"].1.len();
                    assert!(
                        count >= *synced.last().unwrap(),
                        "{count} entries are left with a hole at {}",
                        frame.start
                    );
                    // Zeros up to the end are room that nothing was written to.
                    let is_room = zeros && frame.end == frames.last().unwrap().end;
                    assert!(is_room || !world.heard.damage().is_empty(), "a hole at {} is not reported", frame.start);
                }
                Err(error) => {
                    assert!(
                        matches!(error.kind(), ErrorKind::BitRot | ErrorKind::Tampering),
                        "{}: {error}",
                        frame.start
                    );
                }
            }
        }
    }
    assert!(cut_short > 30);
}

#[test]
fn a_key_file_with_one_good_copy_opens_and_says_so() {
    // A failure means that one bad sector costs a table.
    let world = closed_world(1);
    let expected = contents_of(&world);
    let disk = &world.sim.vfs;
    for path in files_in(disk, "keys") {
        let half = disk.read(&path).unwrap().len() / 2;
        for range in [0..half, half..2 * half] {
            let broken = changed(disk, &path, |bytes| bytes[range.clone()].fill(0x55));
            let what = format!("{}: bytes {range:?}", path.display());
            let equals = |found: &Contents| if *found == expected { Ok(()) } else { Err(difference(found, &expected)) };
            match look(&world, broken, 5, &equals) {
                Outcome::Reported(_) => {}
                Outcome::Refused(error) => panic!("{what}: {error}"),
                Outcome::Unnoticed => panic!("{what}: not reported"),
                Outcome::Wrong(problem) => panic!("{what}: {problem}"),
            }
        }
        let broken = changed(disk, &path, |bytes| {
            bytes[200] ^= 1;
            bytes[half + 200] ^= 1;
        });
        let error = refused(&world, broken, &expected, "both copies");
        assert_eq!(error.kind(), ErrorKind::BitRot, "{error}");
    }
}

/// A store with files of parked sections of two tables whose key was refused for a while, closed cleanly. The key is back.
fn parked_world(seed: u64) -> World {
    let world = World::new(seed);
    world.kms.create_key(Some("alias/tenants"), "").unwrap();
    let store = world.create();
    let tenants = |number| tiny_table(number).master_key(MasterKey::customer("alias/tenants"));
    let refused = [store.create_table("one", tenants(0)).unwrap(), store.create_table("two", tenants(1)).unwrap()];
    let other = store.create_table("other", tiny_table(0)).unwrap();
    for number in 0..12 {
        for table in &refused {
            table.put(format!("key {number:02}"), format!("value {number}")).unwrap();
        }
    }
    world.kms.disable("alias/tenants").unwrap();
    let pass = |total: Duration| {
        let end = world.sim.clock.tick().after(total);
        while world.sim.clock.tick() < end {
            world.sim.clock.advance(Duration::from_millis(250));
            world.sim.scheduler.run_until_idle();
        }
    };
    pass(Duration::from_secs(301));
    for table in &refused {
        table.get("key 00").unwrap_err();
    }
    for round in 0..12 {
        for number in 0..100 {
            other.put(format!("{number:03}"), format!("{round} {number} {}", "x".repeat(40))).unwrap();
        }
        pass(Duration::from_secs(1));
    }
    drop((refused, other));
    store.close().unwrap();
    world.kms.enable("alias/tenants").unwrap();
    world
}

#[test]
fn parked_sections_that_were_moved_cut_exchanged_or_changed_do_not_open() {
    // Rules 3 and 4. A failure means that who can write the directory while a tenant's key is away decides what the tenant finds when it is back.
    let world = parked_world(40);
    let disk = &world.sim.vfs;
    let parked = files_in(disk, "parked");
    assert!(parked.len() >= 2, "{parked:?}");
    for path in &parked {
        let bytes = disk.read(path).unwrap();
        assert_eq!(frames(path, &bytes).last().unwrap().end, bytes.len(), "{}", path.display());
    }
    assert_eq!(contents_of(&world)["one"].1.len(), 12);
    assert!(damages(&world, disk.copy()).is_empty() && rot(disk.copy()).is_empty());

    let tried = rearrange(&world, &parked);
    assert!(tried > 20, "only {tried} frames");
    let tried = transplant(&world, &parked);
    assert!(tried > 20, "only {tried} frames");
    exchange(&world, &["parked"]);
    cut_and_extend(&world, &parked);
    let turned = turn_bits(&world, &parked, 3);
    assert!(turned > 3_000, "only {turned} bits");
}

#[test]
fn a_file_that_claims_to_be_longer_than_any_memory_is_refused_and_ends_nothing() {
    // Whoever can write the directory could otherwise end every process that opens the store, in the midst of whatever else it does.
    let folder = tempfile::tempdir().unwrap();
    let kms = LocalKms::create(folder.path().join("keyring"), Unlock::key(|key| key.fill(7))).unwrap();
    let builder = |dir: &Path| Store::builder(dir).key_provider(kms.clone());
    let original = folder.path().join("original");
    let store = builder(&original).create().unwrap();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    table.put("k", "v").unwrap();
    store.flush().unwrap();
    store.close().unwrap();
    let files = files_below(&original);
    // The log ends where the manifest says, whatever there is behind.
    let is_read = |path: &&PathBuf| !path.ends_with("LOCK") && path.extension().is_none_or(|end| end != "wal");
    let mut refused = Vec::new();
    for (index, longer) in files.keys().filter(is_read).enumerate() {
        let copy = folder.path().join(format!("copy {index}"));
        for (path, bytes) in &files {
            let path = copy.join(path.strip_prefix(&original).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let longer = longer.strip_prefix(&original).unwrap();
        std::fs::File::options().write(true).open(copy.join(longer)).unwrap().set_len(4 << 40).unwrap();
        let read = || builder(&copy).open()?.table("t")?.get("k");
        refused.push((longer, read().expect_err(&longer.display().to_string()).kind()));
    }
    assert_eq!(refused.len(), 5, "CURRENT, manifest, two key files and a sorted table: {refused:?}");
    assert!(
        refused.iter().any(|(path, kind)| path.starts_with("manifest") && *kind == ErrorKind::BitRot),
        "{refused:?}"
    );
    assert!(builder(&original).open().unwrap().table("t").unwrap().get("k").unwrap().is_some());
}
