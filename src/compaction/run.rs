//! Carry a plan out: merge the inputs, keep what the rules keep, write sorted tables.
//!
//! A [`Job`] does a flush or a compaction in steps of at most a MiB of input (or one entry, if that is larger), so that it can be paused,
//! paced and, in simulation, interleaved with everything else.
//!
//! ```text
//! merge ── step, step, ... ──> sync directories ──> done: the caller owns the files and tells the manifest
//!   │                               │
//!   └─ error, or dropped ───────────┴──> every file written so far is removed
//! ```
//!
//! A file is synced when it is finished, and its directory after the last file, before the job says that it is done: the manifest may then name them. Nothing
//! is ever retried into a file. Removal after an error is best effort: a file that no manifest names is removed by
//! recovery.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::plan::Plan;
use super::{Fate, Judge, Readers};
use crate::crypto::TableKey;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::io::Environment;
use crate::io::directory::Directory;
use crate::memtable::Memtable;
use crate::merge::{KeyRange, MergeCursor, Source};
use crate::sstable::{Container, FinishedTable, ReadMode, TableSettings, TableWriter};
use crate::types::{FileKind, FileNumber, LEVELS, Seq, Trailer};
use crate::version::{LevelCursor, OpenTable, TableFile, Version};

/// Bytes of keys and values after which a step ends.
const STEP_BYTES: usize = 1 << 20;
/// Counted per entry besides its key and value, so that a step over small ones ends too.
const ENTRY_BYTES: usize = 16;

/// Gives out file numbers; durably, so that none is given twice in a store's life.
pub(crate) type FileNumbers = Arc<dyn Fn() -> Result<FileNumber> + Send + Sync>;

/// What a job needs to write its files.
#[derive(Clone)]
pub(crate) struct JobContext {
    /// The outside world.
    pub(crate) environment: Environment,
    /// The store's directory.
    pub(crate) directory: Arc<Directory>,
    /// The table's current key.
    pub(crate) key: Arc<TableKey>,
    /// The table's settings.
    pub(crate) settings: TableSettings,
    /// Where numbers for new files come from.
    pub(crate) numbers: FileNumbers,
    /// Size at which a file ends and the next begins.
    pub(crate) file_bytes: u64,
    /// Whether the job syncs the directories of its files. If not, because many jobs end together, the caller does
    /// ([`sync_directories`]) before the manifest names any of them.
    pub(crate) sync_directories: bool,
    /// The file that takes the job's tables one behind the other, if each is not to have its own. The caller syncs it, and removes it if the manifest
    /// names nothing in it.
    pub(crate) container: Option<Arc<Container>>,
}

/// What a step of a job came to.
pub(crate) enum Progress {
    /// There is more to do.
    More {
        /// Bytes of keys and values read in this step.
        read_bytes: u64,
    },
    /// All is written and durable. The files are the caller's from now on.
    Done(Vec<FinishedTable>),
}

/// A flush or a compaction under way.
pub(crate) struct Job {
    stage: Stage,
    input: MergeCursor,
    /// The keys that the job is about; the input may have others.
    part: KeyRange,
    judge: Judge,
    deeper: Deeper,
    cutter: Cutter,
    output: Output,
}

enum Stage {
    Begin,
    Merge,
    SyncDirectories,
    Over,
}

impl Job {
    /// Write frozen memtables of one table into files that may be put at level 0 or, if
    /// [`flush_level`](super::plan::flush_level) allows it, deeper.
    ///
    /// Old versions that no reader sees are left out; deletes stay, for nothing is known about what they hide.
    pub(crate) fn flush(context: JobContext, memtables: &[Arc<Memtable>], readers: Readers) -> Job {
        let sources = memtables.iter().map(|memtable| Box::new(memtable.cursor()) as Source).collect();
        Job::new(context, sources, readers, Deeper::Unknown, Cutter::default())
    }

    /// As [`flush`](Job::flush), merged with the inputs of `plan`, which is one of [`flush_merge`](super::plan::flush_merge).
    pub(crate) fn merging_flush(
        context: JobContext,
        memtable: &Arc<Memtable>,
        plan: &Plan,
        readers: Readers,
        open: OpenTable,
    ) -> Job {
        let mut sources = vec![Box::new(memtable.cursor()) as Source];
        sources.extend(sources_of(plan, &KeyRange::default(), &open));
        // Level 0 is above all else; where it is not the target, the plan has all files of the table.
        let deeper = if plan.target == 0 { Deeper::Unknown } else { Deeper::Levels(Vec::new()) };
        Job::new(context, sources, readers, deeper, Cutter::default())
    }

    /// Merge a part of the inputs of `plan`, which was made from `version` and is no move. `part` is one of those that
    /// [`split`](super::plan::split) gives for it, and `grandparents` what [`grandparents`](super::plan::grandparents) does. What the
    /// parts write, in their order, is what one job would have written, but for where files end.
    ///
    /// # Errors
    /// What opening an input gives.
    pub(crate) fn compaction(
        context: JobContext,
        (plan, part): (&Plan, KeyRange),
        version: &Version,
        readers: Readers,
        (grandparents, overlap_bytes_max): (Vec<Arc<TableFile>>, u64),
        open: OpenTable,
    ) -> Result<Job> {
        let sources = sources_of(plan, &part, &open);
        let (smallest, largest) = plan.range();
        let deeper = |level| Row::new(version.overlapping(level, &smallest, &largest));
        let deeper = match plan.target {
            // Older files of level 0 are as deep as any.
            0 => Deeper::Unknown,
            target => Deeper::Levels((target + 1..LEVELS).map(deeper).collect()),
        };
        let cutter = Cutter { grandparents: Row::new(grandparents), overlap_bytes_max, ..Cutter::default() };
        Ok(Job { part, ..Job::new(context, sources, readers, deeper, cutter) })
    }

    /// Write the one file of `plan` anew, to stand where it stands. As in a flush, old versions that no reader sees are left out and deletes stay: what
    /// they hide may be in files that are older, at level 0 in the same level.
    pub(crate) fn rewrite(context: JobContext, plan: &Plan, readers: Readers, open: OpenTable) -> Job {
        let source = Box::new(LevelCursor::new(plan.upper.clone(), open, ReadMode::Bypass)) as Source;
        Job::new(context, vec![source], readers, Deeper::Unknown, Cutter::default())
    }

    fn new(context: JobContext, sources: Vec<Source>, readers: Readers, deeper: Deeper, cutter: Cutter) -> Job {
        Job {
            stage: Stage::Begin,
            input: MergeCursor::new(sources),
            part: KeyRange::default(),
            judge: Judge::new(readers),
            deeper,
            cutter,
            output: Output { context, writer: None, finished: Vec::new() },
        }
    }

    /// Bytes of sorted tables that it has written so far, about.
    pub(crate) fn written_bytes(&self) -> u64 {
        let finished: u64 = self.output.finished.iter().map(|file| file.record.extent.len_bytes).sum();
        finished + self.output.file_bytes().unwrap_or(0)
    }

    /// Do the next step.
    ///
    /// # Errors
    /// What reading an input or writing an output gives. The job is over then, and its files are removed.
    pub(crate) fn step(&mut self) -> Result<Progress> {
        let outcome = self.try_step();
        if outcome.is_err() {
            self.stage = Stage::Over;
            self.output.remove_all();
        }
        outcome
    }

    fn try_step(&mut self) -> Result<Progress> {
        match self.stage {
            Stage::Begin => {
                match self.part.lower.clone() {
                    Some(lower) => self.input.seek(&lower, Trailer::seek(Seq::MAX))?,
                    None => self.input.seek_to_first()?,
                }
                self.stage = Stage::Merge;
                self.merge_some()
            }
            Stage::Merge => self.merge_some(),
            Stage::SyncDirectories => {
                if self.output.context.sync_directories {
                    let numbers = self.output.finished.iter().map(|file| file.record.number);
                    sync_directories(&self.output.context.directory, numbers)?;
                }
                self.stage = Stage::Over;
                Ok(Progress::Done(std::mem::take(&mut self.output.finished)))
            }
            Stage::Over => Err(Error::InvalidArgument { what: "job", detail: "it is over".to_owned() }),
        }
    }

    fn merge_some(&mut self) -> Result<Progress> {
        let mut read_bytes = 0;
        while read_bytes < STEP_BYTES {
            if !self.input.valid() || self.part.is_above(self.input.key()) {
                self.output.end_file()?;
                self.stage = Stage::SyncDirectories;
                break;
            }
            read_bytes += self.take_entry()?;
            self.input.next()?;
        }
        Ok(Progress::More { read_bytes: read_bytes as u64 })
    }

    /// Judge the input's entry and write it if it stays.
    fn take_entry(&mut self) -> Result<usize> {
        let (key, trailer) = (self.input.key(), self.input.trailer());
        let is_new_key = self.judge.is_new_key(key);
        if is_new_key {
            self.cutter.meet(key);
        }
        let deeper = &mut self.deeper;
        let Fate::Stays(trailer) = self.judge.judge_known(key, trailer, is_new_key, || deeper.may_hold(key)) else {
            return Ok(key.len() + self.input.value_ref().map_or(0, <[u8]>::len) + ENTRY_BYTES);
        };
        if self.cutter.cuts(self.output.file_bytes(), self.output.context.file_bytes) {
            self.output.end_file()?;
        }
        match self.input.value_ref() {
            Some(value) => {
                self.output.add(key, trailer, value)?;
                Ok(key.len() + value.len() + ENTRY_BYTES)
            }
            None => {
                let value = self.input.value()?;
                self.output.add(key, trailer, &value)?;
                Ok(key.len() + value.len() + ENTRY_BYTES)
            }
        }
    }
}

/// The input files of a plan, as few sources as they can be.
fn sources_of(plan: &Plan, part: &KeyRange, open: &OpenTable) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    let mut add = |files: &[Arc<TableFile>]| {
        let within = |file: &&Arc<TableFile>| !part.is_below(&file.largest) && !part.is_above(&file.smallest);
        let files: Vec<_> = files.iter().filter(within).cloned().collect();
        if !files.is_empty() {
            sources.push(Box::new(LevelCursor::new(files, open.clone(), ReadMode::Bypass)));
        }
    };
    match plan.source {
        // Its files overlap: each is a source of its own.
        0 => plan.upper.iter().for_each(|file| add(std::slice::from_ref(file))),
        _ => add(&plan.upper),
    }
    add(&plan.lower);
    sources
}

/// Make the names of these sorted tables durable: each directory is synced once.
pub(crate) fn sync_directories(directory: &Directory, numbers: impl Iterator<Item = FileNumber>) -> Result<()> {
    let names: BTreeSet<String> = numbers.map(|number| FileName::Table(number).directory()).collect();
    names.iter().try_for_each(|name| directory.sync_dir(name))
}

/// Sorted disjoint files, met by keys that only rise.
#[derive(Default)]
struct Row {
    files: Vec<Arc<TableFile>>,
    at: usize,
}

impl Row {
    fn new(files: Vec<Arc<TableFile>>) -> Row {
        Row { files, at: 0 }
    }

    /// Pass the files that end before `key`, and give their bytes.
    fn pass(&mut self, key: &[u8]) -> u64 {
        let mut bytes = 0;
        while let Some(file) = self.files.get(self.at).filter(|file| *file.largest < *key) {
            bytes += file.bytes();
            self.at += 1;
        }
        bytes
    }

    fn may_hold(&mut self, key: &[u8]) -> bool {
        self.pass(key);
        self.files.get(self.at).is_some_and(|file| *file.smallest <= *key)
    }
}

/// What is below the level that a job writes into.
enum Deeper {
    /// Anything.
    Unknown,
    /// These files.
    Levels(Vec<Row>),
}

impl Deeper {
    fn may_hold(&mut self, key: &[u8]) -> bool {
        match self {
            Deeper::Unknown => true,
            Deeper::Levels(rows) => rows.iter_mut().any(|row| row.may_hold(key)),
        }
    }
}

/// Decides where one output ends and the next begins: only before the first version of a key.
#[derive(Default)]
struct Cutter {
    grandparents: Row,
    overlap_bytes_max: u64,
    /// Bytes of grandparents passed since the last cut.
    overlap_bytes: u64,
    /// Nothing of the key met last was written.
    is_between_keys: bool,
}

impl Cutter {
    /// The input has come to another key.
    fn meet(&mut self, key: &[u8]) {
        self.overlap_bytes += self.grandparents.pass(key);
        self.is_between_keys = true;
    }

    /// Whether the entry that is about to be written begins a new file.
    fn cuts(&mut self, file_bytes: Option<u64>, file_bytes_max: u64) -> bool {
        let is_between_keys = std::mem::take(&mut self.is_between_keys);
        let Some(file_bytes) = file_bytes else {
            // What was passed before a file began does not overlap it.
            self.overlap_bytes = 0;
            return false;
        };
        let cuts = is_between_keys && (file_bytes >= file_bytes_max || self.overlap_bytes > self.overlap_bytes_max);
        if cuts {
            self.overlap_bytes = 0;
        }
        cuts
    }
}

/// The files of a job, removed if it does not come to its end.
struct Output {
    context: JobContext,
    writer: Option<TableWriter>,
    finished: Vec<FinishedTable>,
}

impl Output {
    /// Bytes of the file that is being written, if one is.
    fn file_bytes(&self) -> Option<u64> {
        self.writer.as_ref().map(TableWriter::estimated_bytes)
    }

    fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let writer = self.begin_file()?;
                self.writer.insert(writer)
            }
        };
        writer.add(key, trailer, value)
    }

    fn begin_file(&self) -> Result<TableWriter> {
        let JobContext { environment, directory, key, settings, numbers, container, .. } = &self.context;
        let number = numbers()?;
        if let Some(container) = container {
            return TableWriter::create_in(container, key, settings, number, &*environment.entropy);
        }
        let name = FileName::Table(number);
        directory.ensure_dir(&name.directory())?;
        let path = directory.path(&name.path());
        TableWriter::create(&environment.vfs, &path, &name.path(), key, settings, number, &*environment.entropy)
    }

    fn end_file(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            let finished = writer.finish()?;
            // The footer is the last frame, the bounds lie before it.
            let (frames, bytes) = (finished.record.bounds_ordinal + 2, finished.record.extent.len_bytes);
            self.context.directory.meters().sealed(FileKind::Table, frames, bytes);
            self.finished.push(finished);
        }
        Ok(())
    }

    fn remove_all(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.abandon();
        }
        if self.context.container.is_some() {
            return self.finished.clear();
        }
        for file in self.finished.drain(..) {
            // No manifest names it: if this fails, recovery removes it.
            let _ = self.context.directory.remove_if_there(&FileName::Table(file.record.number).path());
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.remove_all();
    }
}
