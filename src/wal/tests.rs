//! Where the log ends, and why: each kind of missing or damaged byte, judged with the system key alone.

use std::path::PathBuf;

use super::replay::{Replayed, SegmentInput, replay};
use super::segment::FILL_BYTES;
use super::*;
use crate::crypto::Secret;
use crate::error::ErrorKind;
use crate::io::fault::{FaultVfs, Operation, Rule};
use crate::io::mem::MemVfs;
use crate::io::sim::Simulation;
use crate::io::{LogFile, Vfs};
use crate::keys::KeySet;
use crate::types::{StoreId, TableId};

const STORE: StoreId = StoreId::from_bytes([9; 16]);

/// A log on a disk that tests can damage.
struct World {
    disk: Arc<MemVfs>,
    dir: Arc<Directory>,
    system: SystemKeys,
    table: TableKey,
    log: Log,
    writer: LogWriter,
    segments: Vec<SegmentInput>,
    next_seq: u64,
}

impl World {
    fn new() -> World {
        let world = Simulation::new(1);
        let disk = world.vfs.clone();
        let root = PathBuf::from("/store");
        disk.create_dir(&root).unwrap();
        let dir = Arc::new(Directory::new(disk.clone(), root));
        dir.ensure_dir("wal").unwrap();
        let key = |table, fill: u8| TableKey::new(Secret::fill_with(|key| key.fill(fill)), STORE, table, Generation(1));
        let system = SystemKeys::new(KeySet::one(key(TableId::SYSTEM, 1)));
        let table = key(TableId::from_bytes([2; 16]), 2);
        let (log, writer) = Log::new(
            dir.clone(),
            world.entropy.clone(),
            system.clone(),
            Suite::Aes256Gcm,
            BTreeMap::new(),
            Tag::default(),
        );
        let mut made = World { disk, dir, system, table, log, writer, segments: Vec::new(), next_seq: 1 };
        made.begin_segment();
        made
    }

    fn begin_segment(&mut self) {
        let number = FileNumber(self.segments.len() as u64 + 1);
        let segment = self.log.create_segment(number).unwrap();
        self.segments.push(SegmentInput { number, salt: segment.salt(), end: None });
        self.log.offer_spare(segment);
        assert!(self.log.take_spare(&mut self.writer));
    }

    /// One group with one entry; where it ends.
    fn commit(&mut self) -> LogPoint {
        let first_seq = Seq::new(self.next_seq).unwrap();
        self.next_seq += 1;
        let ops = [Op { kind: Kind::Put, key: b"key", value: b"value" }];
        let input = SectionInput { slot: Slot(1), suite: Suite::ChaCha20Poly1305, key: &self.table, ops: &ops };
        self.log.append(&mut self.writer, Epoch(5), first_seq, &[input]).unwrap()
    }

    fn sync_and_mark(&mut self) -> LogPoint {
        self.log.sync(self.log.end()).unwrap();
        let synced = self.log.synced();
        self.log.mark(&mut self.writer, Epoch(5), Seq::new(self.next_seq).unwrap()).unwrap();
        synced
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.dir.path(&FileName::Log(FileNumber(segment)).path())
    }

    fn flip(&self, segment: u64, offset_bytes: u64) {
        let bytes = self.disk.read(self.path(segment)).unwrap();
        self.disk.overwrite(self.path(segment), offset_bytes, &[bytes[offset_bytes as usize] ^ 1]).unwrap();
    }

    /// Shorten the first segment.
    fn cut(&self, len_bytes: u64) {
        self.disk.truncate(self.path(1), len_bytes as usize).unwrap();
    }

    fn replay_from(&self, attested: LogPoint, closed: bool) -> Result<Replayed> {
        replay(&self.dir, &self.system.all().unwrap(), &self.segments, attested, closed)
    }

    fn replay(&self) -> Result<Replayed> {
        self.replay_from(LogPoint::default(), false)
    }

    fn last_seq(&self) -> u64 {
        self.replay().unwrap().last_seq.get()
    }
}

#[test]
fn a_whole_log_is_read_to_its_end() {
    let mut world = World::new();
    for _ in 0..3 {
        world.commit();
    }
    world.begin_segment();
    let end = world.commit();
    let found = world.replay_from(LogPoint::default(), true).unwrap();
    assert_eq!((found.last_seq.get(), found.end, found.epoch), (4, end, Epoch(5)));
    assert_eq!((found.discarded_bytes, found.last_tag), (0, world.writer.last_tag()));
    assert_eq!(found.sections[&Slot(1)].len(), 4);
}

#[test]
fn a_torn_group_that_nothing_attests_ends_the_log() {
    // Refusing to open after every power cut would be as bad as losing what was synced.
    let mut world = World::new();
    let before = world.commit();
    let end = world.commit();
    for len in before.end_bytes + 1..end.end_bytes {
        world.cut(len);
        let found = world.replay().unwrap();
        assert_eq!((found.last_seq.get(), found.end), (1, before));
        assert_eq!(found.discarded_bytes, len - before.end_bytes);
    }
}

#[test]
fn commits_that_are_synced_one_by_one_go_into_room_that_was_reserved() {
    // Otherwise each of them waits for the file system to write down a new length, too.
    let mut world = World::new();
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..100 {
        world.commit();
        world.sync_and_mark();
        lengths.insert(world.disk.read(world.path(1)).unwrap().len());
    }
    assert!(lengths.len() < 10, "the file got {} lengths", lengths.len());
    let end = world.log.end();
    assert!(*lengths.last().unwrap() as u64 > end.end_bytes);
    let found = world.replay_from(world.log.synced(), false).unwrap();
    assert_eq!((found.last_seq.get(), found.end, found.discarded_bytes), (100, end, 0));
    // A segment with room left is followed by the next like one without, and gives the room back with the next sync.
    world.begin_segment();
    world.commit();
    assert_eq!(world.last_seq(), 101);
    let next = world.sync_and_mark();
    assert_eq!(world.disk.read(world.path(1)).unwrap().len() as u64, end.end_bytes);
    // Behind a clean close every file is as long as what is in it.
    world.log.finish(&world.writer).unwrap();
    assert!(world.disk.read(world.path(2)).unwrap().len() as u64 >= next.end_bytes);
    assert_eq!(world.replay_from(world.log.synced(), true).unwrap().end, world.log.end());
}

/// A log file that tells what was written to it and filled.
#[derive(Debug)]
struct Recording {
    file: Arc<dyn LogFile>,
    written: Mutex<Vec<(u64, u64)>>,
    filled: Mutex<Vec<(u64, u64)>>,
    /// What filling fails with.
    failure: Mutex<Option<std::io::ErrorKind>>,
}

impl Recording {
    /// In place of the file that a world writes to.
    fn put_before(world: &mut World) -> Arc<Recording> {
        let segment = world.writer.current.as_mut().unwrap();
        let inner = segment.file.clone();
        let [written, filled] = [Mutex::default(), Mutex::default()];
        let file = Arc::new(Recording { file: inner, written, filled, failure: Mutex::default() });
        segment.file = file.clone();
        world.log.shared.lock().unsynced.iter_mut().for_each(|entry| entry.file = file.clone());
        file
    }
}

impl LogFile for Recording {
    fn reserve(&self, len_bytes: u64) {
        self.file.reserve(len_bytes);
    }

    fn cut(&self, len_bytes: u64) -> std::io::Result<()> {
        self.file.cut(len_bytes)
    }

    fn fill(&self, offset_bytes: u64, len_bytes: u64) -> std::io::Result<()> {
        self.filled.lock().push((offset_bytes, offset_bytes + len_bytes));
        if let Some(kind) = *self.failure.lock() {
            return Err(kind.into());
        }
        self.file.fill(offset_bytes, len_bytes)
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> std::io::Result<()> {
        self.written.lock().push((offset_bytes, offset_bytes + bytes.len() as u64));
        self.file.write_at(bytes, offset_bytes)
    }

    fn begin_write_back(&self, offset_bytes: u64, len_bytes: u64) {
        self.file.begin_write_back(offset_bytes, len_bytes);
    }

    fn sync_to(&self, end_bytes: u64) -> std::io::Result<()> {
        self.file.sync_to(end_bytes)
    }
}

#[test]
fn room_is_filled_ahead_of_commits_that_are_synced_one_by_one_and_never_behind_them() {
    // Zeros over a group that was acknowledged would lose it. None at all, and each page costs a synced commit a write to the journal.
    let mut world = World::new();
    let file = Recording::put_before(&mut world);
    let mut outside = 0;
    for round in 0..1000 {
        let filled = file.filled.lock().last().map_or(0, |&(_, end)| end);
        outside += u32::from(world.commit().end_bytes > filled);
        // Others write while one syncs.
        if round % 7 == 0 {
            world.commit();
        }
        let written = file.written.lock().iter().map(|&(_, end)| end).max().unwrap();
        let fills = file.filled.lock().len();
        world.sync_and_mark();
        let mark = file.written.lock().last().unwrap().1;
        for (from, to) in &file.filled.lock()[fills..] {
            assert!(
                *from >= written && *from >= mark && to - from <= FILL_BYTES,
                "{from} to {to}, behind {written}, {mark}"
            );
        }
    }
    assert!(outside < 20, "{outside} of 1,000 commits came to pages that nothing was written to");
    assert!(file.filled.lock().len() < 30, "{} times", file.filled.lock().len());
    let (end, synced) = (world.log.end(), world.log.synced());
    assert_eq!(world.replay_from(synced, false).unwrap().end, end);
    // The next segment is not synced: nothing is reserved there, nor filled, and this one is cut to what is in it.
    world.begin_segment();
    for _ in 0..100 {
        world.commit();
    }
    world.sync_and_mark();
    assert_eq!(world.disk.read(world.path(1)).unwrap().len() as u64, end.end_bytes);
    assert_eq!(world.replay_from(synced, false).unwrap().end, world.log.end());
}

#[test]
fn no_room_to_fill_costs_nothing_and_any_other_failure_is_the_logs() {
    // A full disk must not end the log where a commit was in time; a failing one must not be written to as if nothing were.
    use std::io::ErrorKind::{Other, QuotaExceeded, StorageFull};
    for (failure, is_the_logs) in [(StorageFull, false), (QuotaExceeded, false), (Other, true)] {
        let mut world = World::new();
        let file = Recording::put_before(&mut world);
        *file.failure.lock() = Some(failure);
        let mut failed = 0;
        for _ in 0..100 {
            world.commit();
            world.log.sync(world.log.end()).unwrap();
            let next = Seq::new(world.next_seq).unwrap();
            failed += u32::from(world.log.mark(&mut world.writer, Epoch(5), next).is_err());
        }
        assert!(!file.filled.lock().is_empty());
        assert_eq!(failed > 0, is_the_logs, "{failure:?}");
        assert_eq!(world.replay_from(world.log.synced(), false).unwrap().end, world.log.end());
    }
}

#[test]
fn syncs_that_are_far_apart_reserve_nothing() {
    let mut world = World::new();
    for commits in [50, 100, 200, 400, 800] {
        for _ in 0..commits {
            world.commit();
        }
        world.log.sync(world.log.end()).unwrap();
    }
    assert_eq!(world.disk.read(world.path(1)).unwrap().len() as u64, world.log.end().end_bytes);
}

#[test]
fn zeros_end_the_log_only_if_nothing_is_behind_them() {
    // Pages that a power cut lost read as zeros, and so does room that nothing was written to.
    let mut world = World::new();
    let first = world.commit();
    let second = world.commit();
    world.cut(second.end_bytes + 1000);
    assert_eq!(world.replay().unwrap().discarded_bytes, 0);
    world.disk.overwrite(world.path(1), second.end_bytes + 999, &[1]).unwrap();
    assert_eq!(world.replay().unwrap().discarded_bytes, 1000);
    // What an attested point lies behind is missing and not unwritten.
    world.cut(first.end_bytes);
    world.cut(second.end_bytes);
    assert_eq!(world.replay_from(first, false).unwrap().last_seq.get(), 1);
    assert_eq!(world.replay_from(second, false).unwrap_err().kind(), ErrorKind::BitRot);
}

#[test]
fn every_damaged_byte_before_a_mark_is_an_error() {
    // RocksDB and LevelDB lose acknowledged commits here without a word.
    let mut world = World::new();
    world.commit();
    world.commit();
    let synced = world.sync_and_mark();
    for offset in 0..synced.end_bytes {
        world.flip(1, offset);
        assert!(world.replay().is_err(), "byte {offset}");
        world.flip(1, offset);
    }
    assert_eq!(world.last_seq(), 2);
}

#[test]
fn the_manifest_attests_where_the_marks_are_gone() {
    let mut world = World::new();
    let first = world.commit();
    let second = world.commit();
    world.flip(1, first.end_bytes + 30);
    assert_eq!(world.replay_from(first, false).unwrap().last_seq.get(), 1);
    assert_eq!(world.replay_from(second, false).unwrap_err().kind(), ErrorKind::BitRot);
}

#[test]
fn a_log_cut_between_two_groups_before_an_attested_point_is_an_error() {
    // A cut at a group's end leaves no hole; what is missing was acknowledged as durable all the same.
    let mut world = World::new();
    let first = world.commit();
    let second = world.commit();
    world.cut(first.end_bytes);
    assert_eq!(world.replay_from(first, false).unwrap().last_seq.get(), 1);
    assert_eq!(world.replay_from(second, false).unwrap_err().kind(), ErrorKind::BitRot);
}

#[test]
fn a_missing_tail_of_an_older_segment_ends_the_log_there() {
    // What lies in the newer segment came later, so it may not be applied without what came before it.
    let mut world = World::new();
    let first = world.commit();
    world.commit();
    world.begin_segment();
    world.commit();
    world.cut(first.end_bytes);
    let found = world.replay().unwrap();
    assert_eq!((found.last_seq.get(), found.end), (1, first));
    assert_eq!(found.discarded_segments, [FileNumber(2)]);
    // Unless the newer segment says that the older one was durable.
    let mut world = World::new();
    let first = world.commit();
    world.commit();
    world.begin_segment();
    world.sync_and_mark();
    world.commit();
    world.cut(first.end_bytes);
    assert_eq!(world.replay().unwrap_err().kind(), ErrorKind::BitRot);
}

#[test]
fn a_decided_end_is_insisted_on() {
    let mut world = World::new();
    world.commit();
    let end = world.commit();
    world.segments[0].end = Some((end.end_bytes, world.writer.last_tag()));
    assert_eq!(world.last_seq(), 2);
    // Bytes behind it were discarded once already.
    let mut longer = world.disk.read(world.path(1)).unwrap();
    longer.extend_from_slice(&[7; 100]);
    world.disk.plant(world.path(1), &longer).unwrap();
    assert_eq!(world.last_seq(), 2);
    world.cut(end.end_bytes - 1);
    assert!(world.replay().is_err());
    world.segments[0].end = Some((end.end_bytes, [0; 16]));
    world.disk.plant(world.path(1), &longer).unwrap();
    assert!(world.replay().is_err(), "another last tag");
}

#[test]
fn a_hole_after_a_clean_close_is_an_error() {
    let mut world = World::new();
    let end = world.commit();
    world.cut(end.end_bytes - 1);
    assert!(world.replay_from(LogPoint::default(), false).is_ok());
    assert_eq!(world.replay_from(LogPoint::default(), true).unwrap_err().kind(), ErrorKind::BitRot);
}

#[test]
fn a_group_taken_out_or_played_again_is_tampering() {
    let mut world = World::new();
    let first = world.commit();
    let second = world.commit();
    world.commit();
    let bytes = world.disk.read(world.path(1)).unwrap();
    let (first, second) = (first.end_bytes as usize, second.end_bytes as usize);
    let without = [&bytes[..first], &bytes[second..]].concat();
    let twice = [&bytes[..second], &bytes[first..]].concat();
    for changed in [without, twice] {
        world.disk.plant(world.path(1), &changed).unwrap();
        assert_eq!(world.replay().unwrap_err().kind(), ErrorKind::Tampering);
    }
}

#[test]
fn a_sync_that_failed_is_never_said_to_have_succeeded() {
    // The system reports lost pages once. Whoever asks a second time must not be told that his commit is durable.
    let mut world = World::new();
    let faulty = FaultVfs::new(world.disk.clone());
    world.dir = Arc::new(Directory::new(Arc::new(faulty.clone()), PathBuf::from("/store")));
    let entropy = Simulation::new(2).entropy;
    let suite = Suite::Aes256Gcm;
    (world.log, world.writer) =
        Log::new(world.dir.clone(), entropy, world.system.clone(), suite, BTreeMap::new(), Tag::default());
    world.begin_segment();
    let point = world.commit();
    faulty.inject(Rule::on(Operation::Sync));
    assert!(world.log.sync(point).is_err());
    assert!(world.log.sync(point).is_err());
    assert!(!world.log.is_synced(point));
}

#[test]
fn a_segment_that_cannot_be_made_leaves_no_file() {
    // On a full disk it is tried several times a second, each time under another number.
    let mut world = World::new();
    let faulty = FaultVfs::new(world.disk.clone());
    world.dir = Arc::new(Directory::new(Arc::new(faulty.clone()), PathBuf::from("/store")));
    let entropy = Simulation::new(2).entropy;
    let suite = Suite::Aes256Gcm;
    (world.log, world.writer) =
        Log::new(world.dir.clone(), entropy, world.system.clone(), suite, BTreeMap::new(), Tag::default());
    faulty.inject(Rule::on(Operation::Write));
    assert!(world.log.create_segment(FileNumber(7)).is_err());
    assert_eq!(world.dir.list("wal").unwrap().len(), 1, "the one that was there before");
}

/// A group whose value takes more than two pieces; where it ends.
fn commit_large(world: &mut World) -> Result<LogPoint> {
    let first_seq = Seq::new(world.next_seq).unwrap();
    world.next_seq += 1;
    let value = vec![0x5a; 2 * PIECE_BYTES + 12_345];
    let ops = [Op { kind: Kind::Put, key: b"large", value: &value }];
    let input = SectionInput { slot: Slot(1), suite: Suite::Aes256Gcm, key: &world.table, ops: &ops };
    world.log.append(&mut world.writer, Epoch(5), first_seq, &[input])
}

#[test]
fn a_group_in_pieces_is_read_back_and_takes_no_more_than_a_few_pieces_of_memory() {
    // A put of 512 MiB that held a third copy for the log would take the process down on a small machine.
    let mut world = World::new();
    world.commit();
    let end = commit_large(&mut world).unwrap();
    assert!(end.end_bytes > 2 * PIECE_BYTES as u64);
    assert!(world.writer.buffer.capacity() <= BUFFER_BYTES_KEPT);
    world.commit();
    let found = world.replay_from(LogPoint::default(), true).unwrap();
    assert_eq!((found.last_seq.get(), found.discarded_bytes), (3, 0));
    let salts = |number: FileNumber| Some(world.segments[number.0 as usize - 1].salt);
    let mut values = Vec::new();
    replay::entries(
        &world.dir,
        &world.system.all().unwrap(),
        &salts,
        &|_| Ok(&world.table),
        &found.sections[&Slot(1)],
        Seq::ZERO,
        &mut |_, _, _, _, value| {
            values.push(value.len());
            assert!(value == b"value" || value.iter().all(|byte| *byte == 0x5a));
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(values, [5, 2 * PIECE_BYTES + 12_345, 5]);
}

#[test]
fn a_group_in_pieces_whose_envelope_was_not_written_ends_the_log() {
    // Sections without an envelope are what a crash in the middle of a large commit leaves: no part of it may appear.
    let mut world = World::new();
    let before = world.commit();
    let end = commit_large(&mut world).unwrap();
    world.disk.overwrite(world.path(1), before.end_bytes, &[0; 120]).unwrap();
    let found = world.replay().unwrap();
    assert_eq!((found.last_seq.get(), found.end), (1, before));
    assert_eq!(found.discarded_bytes, end.end_bytes - before.end_bytes);
    assert_eq!(world.replay_from(end, false).unwrap_err().kind(), ErrorKind::BitRot, "it was durable");
}

#[test]
fn a_write_that_fails_between_two_pieces_leaves_no_group() {
    let mut world = World::new();
    let faulty = FaultVfs::new(world.disk.clone());
    world.dir = Arc::new(Directory::new(Arc::new(faulty.clone()), PathBuf::from("/store")));
    let (entropy, suite) = (Simulation::new(2).entropy, Suite::Aes256Gcm);
    (world.log, world.writer) =
        Log::new(world.dir.clone(), entropy, world.system.clone(), suite, BTreeMap::new(), Tag::default());
    world.begin_segment();
    let before = world.commit();
    faulty.inject(Rule::on(Operation::Write).nth(2));
    assert!(commit_large(&mut world).is_err());
    assert_eq!(world.log.end(), before, "what failed is not part of the log");
    world.segments.remove(0);
    let found = world.replay().unwrap();
    assert_eq!((found.last_seq.get(), found.end), (1, before));
}
