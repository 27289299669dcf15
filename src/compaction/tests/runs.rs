use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::super::Readers;
use super::super::plan::{Busy, Plan, Reason, flush_level, grandparents, plan, split};
use super::super::run::{FileNumbers, Job, JobContext, Progress};
use crate::crypto::{Secret, Suite, TableKey};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::format::FileName;
use crate::format::table::hash;
use crate::io::Environment;
use crate::io::directory::Directory;
use crate::io::fault::{FaultVfs, Rule};
use crate::io::mem::{Loss, MemVfs};
use crate::io::sim::Simulation;
use crate::memtable::Memtable;
use crate::merge::{KeyRange, MergeCursor, Source, VisibleCursor};
use crate::options::{Compression, StoreOptions};
use crate::sstable::{BlockCache, FinishedTable, ReadMode, TableReader, TableSettings};
use crate::types::{FileNumber, Generation, Kind, LEVELS, Seq, StoreId, TableId, Trailer};
use crate::version::{Change, LevelCursor, OpenTable, TableFile, Version};

/// Every version that was ever written: key, then number, to the value or none for a delete.
type Model = BTreeMap<Vec<u8>, BTreeMap<u64, Option<Vec<u8>>>>;

fn seq(number: u64) -> Seq {
    Seq::new(number).unwrap()
}

/// A table without log and manifest: what flushes and compactions need, and a model of what was written.
struct World {
    disk: MemVfs,
    fault: FaultVfs,
    environment: Environment,
    directory: Arc<Directory>,
    key: Arc<TableKey>,
    settings: TableSettings,
    options: StoreOptions,
    cache: Arc<BlockCache>,
    number: Arc<AtomicU64>,
    version: Arc<Version>,
    busy: Busy,
    memtable: Arc<Memtable>,
    snapshots: Vec<Seq>,
    visible: u64,
    model: Model,
}

impl World {
    /// Files of a kilobyte, blocks of 256 bytes: a few hundred entries reach three levels.
    fn new() -> World {
        let disk = MemVfs::new();
        let fault = FaultVfs::new(Arc::new(disk.clone()));
        let environment = Environment { vfs: Arc::new(fault.clone()), ..Simulation::new(7).environment() };
        let root = PathBuf::from("/store");
        for path in ["/store", "/store/sst"] {
            environment.vfs.create_dir(Path::new(path)).unwrap();
        }
        for path in ["/", "/store"] {
            environment.vfs.sync_dir(Path::new(path)).unwrap();
        }
        let table = TableId::from_bytes([2; 16]);
        let secret = Secret::fill_with(|bytes| bytes.fill(9));
        World {
            directory: Arc::new(Directory::new(environment.vfs.clone(), root)),
            disk,
            fault,
            environment,
            key: Arc::new(TableKey::new(secret, StoreId::from_bytes([1; 16]), table, Generation(1))),
            settings: TableSettings {
                table,
                suite: Suite::Aes256Gcm,
                compression: Compression::None,
                block_bytes: 256,
                filter_bits_per_key: 10,
                filter_seed: 5,
            },
            options: StoreOptions {
                table_file_bytes: 1 << 10,
                level_one_bytes: 4 << 10,
                level_factor: 3,
                level_zero_files: 2,
                ..StoreOptions::default()
            },
            cache: Arc::new(BlockCache::new(1 << 20)),
            number: Arc::new(AtomicU64::new(0)),
            version: Arc::new(Version::empty()),
            busy: Busy::default(),
            memtable: Arc::new(Memtable::new()),
            snapshots: Vec::new(),
            visible: 0,
            model: Model::new(),
        }
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.visible += 1;
        let kind = if value.is_some() { Kind::Put } else { Kind::Delete };
        self.memtable.insert(key, Trailer::new(seq(self.visible), kind), value.unwrap_or_default()).unwrap();
        self.model.entry(key.to_vec()).or_default().insert(self.visible, value.map(<[u8]>::to_vec));
    }

    fn readers(&self) -> Readers {
        Readers::new(self.snapshots.clone(), seq(self.visible))
    }

    fn context(&self, file_bytes: u64) -> JobContext {
        let number = self.number.clone();
        let numbers: FileNumbers = Arc::new(move || Ok(FileNumber(number.fetch_add(1, Ordering::Relaxed) + 1)));
        JobContext {
            environment: self.environment.clone(),
            directory: self.directory.clone(),
            key: self.key.clone(),
            settings: self.settings.clone(),
            numbers,
            file_bytes,
            sync_directories: true,
            container: None,
        }
    }

    fn open(&self) -> OpenTable {
        let (directory, key, settings) = (self.directory.clone(), self.key.clone(), self.settings.clone());
        let cache = self.cache.clone();
        Arc::new(move |file| {
            if let Some(reader) = &*file.reader() {
                return Ok(reader.clone());
            }
            let name = FileName::Table(file.number()).path();
            let reader =
                TableReader::open(directory.open(&name)?, &name, &key, &file.record, &settings, cache.clone())?;
            file.set_reader(Some(reader.clone()));
            Ok(reader)
        })
    }

    fn flush_job(&self, memtables: &[Arc<Memtable>]) -> Job {
        Job::flush(self.context(u64::MAX), memtables, self.readers())
    }

    fn compaction_job(&self, plan: &Plan) -> Result<Job> {
        self.part_job(plan, KeyRange::default())
    }

    fn part_job(&self, plan: &Plan, part: KeyRange) -> Result<Job> {
        let grandparents = grandparents(&self.version, plan, &self.options);
        let context = self.context(if plan.target == 0 { u64::MAX } else { self.options.table_file_bytes });
        Job::compaction(context, (plan, part), &self.version, self.readers(), grandparents, self.open())
    }

    /// What a plan writes when its parts are worked on in turn, a step each: they may be at any place at the same time.
    fn run_in_parts(&self, plan: &Plan) -> Vec<FinishedTable> {
        let parts = split(plan, &self.options).into_iter();
        let mut jobs: Vec<_> = parts.map(|part| (self.part_job(plan, part).unwrap(), None)).collect();
        while jobs.iter().any(|(_, files)| files.is_none()) {
            for (job, files) in jobs.iter_mut().filter(|(_, files)| files.is_none()) {
                if let Progress::Done(written) = job.step().unwrap() {
                    *files = Some(written);
                }
            }
        }
        jobs.into_iter().filter_map(|(_, files)| files).flatten().collect()
    }

    /// All entries of these files, in their order.
    fn entries(&self, files: &[FinishedTable]) -> Vec<(Vec<u8>, Trailer, Vec<u8>)> {
        let mut entries = Vec::new();
        for file in files {
            let (record, low, high) = (file.record.clone(), file.smallest.clone(), file.largest.clone());
            let reader = self.open()(&Arc::new(TableFile::new(record, low, high))).unwrap();
            let mut cursor = reader.cursor(ReadMode::Bypass);
            cursor.seek_to_first().unwrap();
            while cursor.valid() {
                entries.push((cursor.key().to_vec(), cursor.trailer(), cursor.value().unwrap().to_vec()));
                cursor.next().unwrap();
            }
        }
        entries
    }

    /// Freeze the memtable and write it, with the frozen one given as if it had waited.
    fn flush(&mut self, waiting: Option<Arc<Memtable>>) {
        let frozen = std::mem::replace(&mut self.memtable, Arc::new(Memtable::new()));
        let memtables: Vec<_> = waiting.into_iter().chain([frozen]).collect();
        for file in finish(self.flush_job(&memtables)).unwrap() {
            let file = Arc::new(TableFile::new(file.record, file.smallest, file.largest));
            let level = flush_level(&self.version, &self.options, &self.busy, &file.smallest, &file.largest);
            self.version = Arc::new(self.version.apply(&[Change::Add { level, file }]).unwrap());
        }
    }

    fn plan(&self) -> Option<Plan> {
        plan(&self.version, &self.options, &self.busy, &self.readers())
    }

    fn install(&mut self, plan: &Plan, outputs: Vec<FinishedTable>) {
        let mut changes: Vec<Change> =
            plan.inputs().map(|(level, file)| Change::Remove { level, number: file.number() }).collect();
        if plan.is_move {
            changes.push(Change::Add { level: plan.target, file: plan.upper[0].clone() });
        }
        changes.extend(outputs.into_iter().map(|file| Change::Add {
            level: plan.target,
            file: Arc::new(TableFile::new(file.record, file.smallest, file.largest)),
        }));
        self.version = Arc::new(self.version.apply(&changes).expect("outputs keep a key's versions together"));
        if !plan.is_move {
            for (_, file) in plan.inputs() {
                self.directory.remove(&FileName::Table(file.number()).path()).unwrap();
            }
        }
    }

    fn compact_once(&mut self) -> bool {
        let Some(plan) = self.plan() else { return false };
        let outputs = if plan.is_move { Vec::new() } else { self.run_in_parts(&plan) };
        self.install(&plan, outputs);
        true
    }

    fn get(&self, key: &[u8], at: Seq) -> Option<Vec<u8>> {
        let (open, hash) = (self.open(), hash(self.settings.filter_seed, key));
        let found = self.memtable.get(key, at).or_else(|| {
            self.version.candidates(key).find_map(|(_, file)| open(file).unwrap().get(key, hash, at).unwrap())
        });
        found.and_then(|(trailer, value)| (trailer.kind() != Kind::Delete).then(|| value.to_vec()))
    }

    fn cursor(&self, at: Seq) -> VisibleCursor<MergeCursor> {
        let mut sources: Vec<Source> = vec![Box::new(self.memtable.cursor())];
        for level in 0..LEVELS {
            let files = self.version.files(level);
            let rows = if level == 0 { files.chunks(1).collect() } else { vec![files] };
            for row in rows {
                sources.push(Box::new(LevelCursor::new(row.to_vec(), self.open(), ReadMode::Scan(None))));
            }
        }
        VisibleCursor::new(MergeCursor::new(sources), at, KeyRange::default())
    }

    fn expected(&self, key: &[u8], at: Seq) -> Option<Vec<u8>> {
        self.model.get(key)?.range(..=at.get()).next_back()?.1.clone()
    }

    /// Everything that any reader can ask for is what the model says.
    fn check(&self) {
        for at in self.snapshots.iter().copied().chain([seq(self.visible)]) {
            let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            for key in self.model.keys() {
                let expected = self.expected(key, at);
                assert_eq!(self.get(key, at).as_ref().map(Vec::len), expected.as_ref().map(Vec::len), "{key:?} {at:?}");
                assert!(self.get(key, at) == expected, "{key:?} {at:?}");
                rows.extend(expected.map(|value| (key.clone(), value)));
            }
            let mut cursor = self.cursor(at);
            cursor.seek_to_first().unwrap();
            for (key, value) in &rows {
                assert_eq!(cursor.key(), &key[..]);
                assert!(cursor.value().unwrap() == value[..]);
                cursor.next().unwrap();
            }
            assert!(!cursor.valid());
            cursor.seek_to_last().unwrap();
            for (key, _) in rows.iter().rev() {
                assert_eq!(cursor.key(), &key[..]);
                cursor.prev().unwrap();
            }
            assert!(!cursor.valid());
        }
    }

    /// Sorted tables on the disk.
    fn tables(&self) -> Vec<PathBuf> {
        let mut paths = self.disk.list();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "sst"));
        paths
    }
}

fn finish(mut job: Job) -> Result<Vec<FinishedTable>> {
    loop {
        if let Progress::Done(files) = job.step()? {
            return Ok(files);
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, usize),
    Delete(u8),
    Snapshot,
    Release(usize),
    Freeze,
    Flush,
    Compact,
    Begin,
    End,
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        300 => (any::<u8>(), 0usize..120).prop_map(|(key, len)| Op::Put(key % 100, len)),
        1 => any::<u8>().prop_map(|key| Op::Put(key % 100, 70_000)),
        100 => any::<u8>().prop_map(|key| Op::Delete(key % 100)),
        8 => Just(Op::Snapshot),
        8 => any::<usize>().prop_map(Op::Release),
        5 => Just(Op::Freeze),
        20 => Just(Op::Flush),
        20 => Just(Op::Compact),
        10 => Just(Op::Begin),
        10 => Just(Op::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flushes_and_compactions_keep_exactly_what_every_snapshot_sees(ops in proptest::collection::vec(ops(), 1..1500)) {
        // What is lost here is lost for good: the inputs are deleted.
        let mut world = World::new();
        // A compaction under way while others begin and end; at most one, so that the test stays readable.
        let mut running = None;
        let mut frozen: Option<Arc<Memtable>> = None;
        for op in ops {
            match op {
                Op::Put(key, len) => {
                    let key = format!("key{key:03}");
                    let value = vec![world.visible as u8; len];
                    world.write(key.as_bytes(), Some(&value));
                }
                Op::Delete(key) => world.write(format!("key{key:03}").as_bytes(), None),
                Op::Snapshot => world.snapshots.push(seq(world.visible)),
                Op::Release(which) if !world.snapshots.is_empty() => {
                    let which = which % world.snapshots.len();
                    world.snapshots.remove(which);
                }
                Op::Release(_) => {}
                Op::Freeze if frozen.is_none() => {
                    frozen = Some(std::mem::replace(&mut world.memtable, Arc::new(Memtable::new())));
                }
                Op::Freeze => {}
                Op::Flush => {
                    world.flush(frozen.take());
                    world.check();
                }
                Op::Compact => {
                    if world.compact_once() && frozen.is_none() {
                        world.check();
                    }
                }
                Op::Begin if running.is_none() => {
                    if let Some(plan) = world.plan().filter(|plan| !plan.is_move) {
                        let id = world.busy.claim(&plan);
                        running = Some((id, world.compaction_job(&plan).unwrap(), plan));
                    }
                }
                Op::Begin => {}
                Op::End => {
                    if let Some((id, job, plan)) = running.take() {
                        world.install(&plan, finish(job).unwrap());
                        world.busy.release(id);
                    }
                }
            }
        }
        world.flush(frozen.take());
        if let Some((id, job, plan)) = running.take() {
            world.install(&plan, finish(job).unwrap());
            world.busy.release(id);
        }
        while world.compact_once() {}
        world.check();
        prop_assert_eq!(world.tables().len(), world.version.all_files().count(), "no file is left over");
    }
}

/// A world with some levels, and a job to do in it.
fn world_with_a_plan() -> (World, Plan) {
    let mut world = World::new();
    for round in 0..40u64 {
        for i in 0..40u64 {
            let key = format!("key{:05}", (i * 97 + round * 31) % 1000);
            world.write(key.as_bytes(), Some(&[round as u8; 60]));
        }
        world.flush(None);
        if round == 39 {
            break;
        }
        while world.compact_once() {}
    }
    let plan = world.plan().filter(|plan| !plan.is_move).expect("two files at level 0");
    (world, plan)
}

#[test]
fn a_job_in_parts_writes_what_it_would_have_written_in_one() {
    // A cut between two versions of a key would keep what is overwritten, or drop what a snapshot sees.
    let (mut world, plan) = world_with_a_plan();
    for snapshot in [world.visible / 3, world.visible - 20, world.visible - 3] {
        world.snapshots.push(seq(snapshot));
    }
    let parts = split(&plan, &world.options).len();
    assert!(parts > 2, "{parts}");
    let one = finish(world.compaction_job(&plan).unwrap()).unwrap();
    let several = world.run_in_parts(&plan);
    let expected = world.entries(&one);
    assert!(!expected.is_empty());
    assert!(world.entries(&several) == expected);
    let bounds = |files: &[FinishedTable]| (files[0].smallest.clone(), files[files.len() - 1].largest.clone());
    assert_eq!(bounds(&one), bounds(&several));
    assert!(several.len() <= one.len() + parts, "{} files instead of {}", several.len(), one.len());
}

#[test]
fn files_of_level_zero_become_one_that_hides_what_is_older_and_is_hidden_by_what_is_newer() {
    // A delete that is dropped there, or a version that passes a newer one, brings back what was overwritten.
    let mut world = World::new();
    (world.options.level_zero_files, world.options.table_file_bytes) = (3, 16 << 10);
    // The first file goes to the last level.
    for round in 0..10u64 {
        if round == 4 {
            // The oldest files are kept from going down by a job that is at them; so the next ones cannot pass either.
            let plan = world.plan().unwrap();
            assert_eq!((plan.reason, plan.source), (Reason::LevelZero, 0));
            world.busy.claim(&plan);
        }
        for i in 0..40u64 {
            let key = format!("key{:05}", i * 7 + round);
            world.write(key.as_bytes(), (i % 5 != round % 5).then_some(&[round as u8; 20]));
            world.write(b"key", Some(&[round as u8]));
        }
        world.flush(None);
        if round == 7 {
            world.snapshots.push(seq(world.visible));
        }
    }
    let plan = world.plan().expect("six files that no job is at");
    assert_eq!((plan.reason, plan.source, plan.target, plan.upper.len()), (Reason::Crowded, 0, 0, 6));
    let files = world.run_in_parts(&plan);
    assert_eq!(files.len(), 1, "every file of level 0 counts");
    world.install(&plan, files);
    assert_eq!(world.version.files(0).len(), 4);
    world.check();
    world.write(b"key", None);
    world.flush(None);
    world.check();
    world.busy = Busy::default();
    while world.compact_once() {}
    world.check();
    assert!(world.version.files(0).len() < 3);
}

#[test]
fn a_table_of_deletes_alone_becomes_nothing() {
    // Deletes that survive forever fill the disk of whoever empties his table.
    let mut world = World::new();
    world.options.level_zero_files = 1;
    for i in 0..600u64 {
        world.write(format!("key{i:05}").as_bytes(), Some(&[1; 60]));
        if i % 50 == 49 {
            world.flush(None);
            while world.compact_once() {}
        }
    }
    let levels = (0..LEVELS).filter(|level| !world.version.files(*level).is_empty()).count();
    assert!(world.version.files(LEVELS - 1).len() > 10, "files are cut at their size");
    assert!(levels >= 1 && world.version.bytes() > 20_000);
    for i in 0..600u64 {
        world.write(format!("key{i:05}").as_bytes(), None);
    }
    let held = seq(600);
    world.snapshots.push(held);
    world.flush(None);
    while world.compact_once() {}
    world.check();
    assert!(world.get(b"key00007", held).is_some() && world.version.bytes() > 20_000);
    world.snapshots.clear();
    while world.compact_once() {}
    world.check();
    assert!(world.version.is_empty(), "{:?}", world.version);
    assert!(world.tables().is_empty());
}

#[test]
fn at_the_bottom_numbers_become_zero_and_one_version_remains() {
    // Numbers that nobody compares any more take eight bytes per entry and slow down scans.
    let mut world = World::new();
    for round in 0..5u8 {
        for i in 0..50u64 {
            world.write(format!("key{i:05}").as_bytes(), Some(&[round; 20]));
        }
        world.flush(None);
    }
    while world.compact_once() {}
    let bottom = world.version.files(LEVELS - 1);
    assert_eq!(bottom.iter().map(|file| file.record.entries).sum::<u64>(), 50);
    assert!(bottom.iter().all(|file| file.record.max_seq == Seq::ZERO));
    world.check();
}

#[test]
fn a_failure_at_any_operation_leaves_no_output_behind_and_the_inputs_whole() {
    // Outputs of failed jobs would fill the disk exactly when it is full.
    let (world, plan) = world_with_a_plan();
    let before = world.tables();
    let mut failures = 0;
    for n in 1.. {
        for file in world.version.all_files() {
            file.1.set_reader(None);
        }
        world.fault.clear();
        world.fault.inject(Rule::on_any().nth(n));
        let outcome = world.compaction_job(&plan).and_then(finish);
        world.fault.clear();
        match outcome {
            Err(_) => {
                assert_eq!(world.tables(), before, "operation {n}");
                failures += 1;
            }
            Ok(outputs) => {
                for file in &outputs {
                    world.directory.remove(&FileName::Table(file.record.number).path()).unwrap();
                }
                assert_eq!(world.tables(), before);
                assert!(outputs.len() > 1, "the job writes several files");
                // Hints, lengths and directories that are known already are no failures; the rest is.
                if failures > 0 && n > failures + 50 {
                    break;
                }
            }
        }
        assert!(n < 10_000);
    }
    assert!(failures > 20, "{failures}");
    world.check();
}

#[test]
fn a_job_that_is_dropped_or_has_failed_leaves_nothing_and_does_nothing_more() {
    // A table that is dropped, or a store that is closed, ends its jobs midway.
    let (world, plan) = world_with_a_plan();
    let before = world.tables();
    let mut job = world.compaction_job(&plan).unwrap();
    assert!(matches!(job.step().unwrap(), Progress::More { read_bytes: 1.. }));
    assert!(world.tables().len() > before.len());
    drop(job);
    assert_eq!(world.tables(), before);

    world.fault.inject(Rule::on(crate::io::fault::Operation::Write));
    let mut job = world.compaction_job(&plan).unwrap();
    assert!(job.step().is_err());
    assert_eq!(world.tables(), before);
    assert!(job.step().is_err(), "it is over");
}

#[test]
fn files_of_a_job_that_is_done_survive_a_power_cut() {
    // The manifest names them next, and must not outlive them.
    let (world, plan) = world_with_a_plan();
    let outputs = finish(world.compaction_job(&plan).unwrap()).unwrap();
    for loss in Loss::ALL {
        let disk = world.disk.crash_at(world.disk.events(), loss, 3);
        for file in &outputs {
            let path = world.directory.path(&FileName::Table(file.record.number).path());
            assert!(disk.read(&path).unwrap() == world.disk.read(&path).unwrap(), "{loss:?}");
        }
    }
}

#[test]
fn a_large_flush_is_done_in_steps() {
    // A step that takes seconds stops everything else in a simulation, and a pause or a shutdown in a real store.
    let mut world = World::new();
    for i in 0..3000u64 {
        world.write(&i.to_be_bytes(), Some(&[3; 1000]));
    }
    let mut job = world.flush_job(&[world.memtable.clone()]);
    let mut steps = Vec::new();
    let files = loop {
        match job.step().unwrap() {
            Progress::More { read_bytes } => steps.push(read_bytes),
            Progress::Done(files) => break files,
        }
    };
    assert!((3..=4).contains(&steps.len()), "{steps:?}");
    assert!(steps.iter().all(|bytes| *bytes <= (1 << 20) + 2000), "{steps:?}");
    assert_eq!((files.len(), files[0].record.entries), (1, 3000));
}
