//! Which files to merge next: pure functions of a picture, the options and what is being worked on.
//!
//! # How large a level may be
//! The last level holds most of the data, and each level above it at most a `level_factor`th of the one
//! below, up to the *base*: the first level that fits into `level_one_bytes`. Level 0 is merged straight into the base, and no level between
//! has files. So a small table has two levels, deletes reach the last one soon, and at most about a `level_factor`th of
//! a table is old versions, whatever its size. (Levels of fixed sizes, counted from the top, leave the last one nearly empty for
//! most of a table's life, and then old versions take as much room as new ones.)
//!
//! ```text
//! bytes in all   30 MiB     level 0 -> level 6
//!               400 MiB     level 0 -> level 5 (40 MiB) -> level 6
//!                 9 GiB     level 0 -> level 4 (92 MiB) -> level 5 (920 MiB) -> level 6
//! ```
//!
//! # What comes first
//! Every level has a score: level 0 its number of files by `level_zero_files`, others their bytes by what they may have; files in a job do not
//! count. The highest score of at least one goes first; if all its files are kept from moving by other jobs, the next. When no score
//! reaches one, files of which more than a quarter is deletes go.
//!
//! When level 0 cannot go down because other jobs are at what it would go to, its newest files are merged among themselves into one, so
//! that reads have fewer to look into and writers are not stopped. It is written once more for that, and so only then.
//!
//! Within a level the *oldest* file (lowest number) goes first. What a job writes gets new numbers, so each file of a level has its turn
//! before any file that was written since: no range of keys waits forever. Level 0 begins with its oldest file too, for no file
//! of it may pass an older one that it overlaps.
//!
//! # Parts
//! A large job is [split] by keys into parts that several threads can work on. The cuts are smallest keys of its input files, so that outputs end
//! there as they would anyway, about; a key's versions never come into two parts.

use std::sync::Arc;

use super::Readers;
use crate::merge::KeyRange;
use crate::options::StoreOptions;
use crate::sync::Empty;
use crate::types::{FileNumber, Generation, LEVELS, Seq, UserKey};
use crate::version::{TableFile, Version};

/// The deepest level.
const LAST: usize = LEVELS - 1;
/// An output may overlap this many full-size files of the level below the one it is written into, so that moving it on is bounded too.
const GRANDPARENT_FILES_MAX: u64 = 10;
/// A job takes more than the one file that it began with only up to this many full-size files.
const EXPANDED_FILES_MAX: u64 = 25;
/// Files of level 0 are merged among themselves up to this many full-size files: what comes out goes down yet.
const CROWDED_FILES_MAX: u64 = 2;
/// A part of a job has at least this many full-size files of input.
const PART_FILES_MIN: u64 = 2;
/// A job has at most so many parts.
const PARTS_MAX: u64 = 16;
/// A flush reads and writes at most this much of a table along with its memtable, and no more than makes one file.
const FLUSH_MERGE_BYTES_MAX: u64 = 4 << 20;
/// It takes the base along if that makes it at most so many times as large.
const FLUSH_MERGE_FACTOR: u64 = 4;

/// A smallest and a largest key.
pub(crate) type Bounds = (UserKey, UserKey);

/// A job to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Why.
    pub(crate) reason: Reason,
    /// The level that `upper` comes from.
    pub(crate) source: usize,
    /// The level that all goes to; the same as `source` when a file is only rewritten.
    pub(crate) target: usize,
    /// Files of the source level: newest first at level 0, by key otherwise.
    pub(crate) upper: Vec<Arc<TableFile>>,
    /// All files of the target level that overlap them, by key.
    pub(crate) lower: Vec<Arc<TableFile>>,
    /// The one upper file may change its level as it is: nothing is read or written.
    pub(crate) is_move: bool,
}

/// Why a job is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// Level 0 has many files, which every read looks into.
    LevelZero,
    /// It has, and they cannot go down at present: some are made one.
    Crowded,
    /// A level is larger than it may be.
    Size,
    /// A file consists of deletes to a good part.
    Tombstones,
    /// A file is sealed under an old generation of the table's key.
    Generation,
}

impl Plan {
    /// All files that the job replaces, with their levels.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = (usize, &Arc<TableFile>)> {
        let upper = self.upper.iter().map(|file| (self.source, file));
        upper.chain(self.lower.iter().map(|file| (self.target, file)))
    }

    /// Bytes of all input files: what a job that is no move reads, and at most about what it writes.
    pub(crate) fn input_bytes(&self) -> u64 {
        self.inputs().map(|(_, file)| file.bytes()).sum()
    }

    /// Smallest and largest key of the input.
    pub(crate) fn range(&self) -> Bounds {
        hull(self.inputs().map(|(_, file)| file)).unwrap_or_default()
    }
}

/// What the jobs of one table that are planned or run have taken. To be read and changed under the lock under which the table's
/// picture is replaced.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    claims: Vec<Claim>,
    claims_made: u64,
}

#[derive(Debug)]
struct Claim {
    id: ClaimId,
    numbers: Vec<FileNumber>,
    target: usize,
    smallest: UserKey,
    largest: UserKey,
}

/// What a job has taken, to be given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ClaimId(u64);

impl Empty for Busy {
    fn empty() -> &'static Busy {
        static EMPTY: Busy = Busy { claims: Vec::new(), claims_made: 0 };
        &EMPTY
    }
}

impl Busy {
    /// Take what `plan` needs. It must have been planned with this very state.
    pub(crate) fn claim(&mut self, plan: &Plan) -> ClaimId {
        debug_assert!(self.allows(plan));
        self.claims_made += 1;
        let id = ClaimId(self.claims_made);
        let (smallest, largest) = plan.range();
        let mut numbers: Vec<FileNumber> = plan.inputs().map(|(_, file)| file.number()).collect();
        numbers.sort_unstable();
        self.claims.push(Claim { id, numbers, target: plan.target, smallest, largest });
        id
    }

    /// Give it back, after the picture shows what became of the job.
    pub(crate) fn release(&mut self, id: ClaimId) {
        self.claims.retain(|claim| claim.id != id);
    }

    /// Whether no job has taken anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.claims.is_empty()
    }

    /// Whether a job works on this file.
    pub(crate) fn holds(&self, number: FileNumber) -> bool {
        self.claims.iter().any(|claim| claim.numbers.binary_search(&number).is_ok())
    }

    /// Whether a job may write into this range of a level.
    fn writes(&self, level: usize, smallest: &[u8], largest: &[u8]) -> bool {
        self.claims
            .iter()
            .any(|claim| claim.target == level && *claim.smallest <= *largest && *smallest <= *claim.largest)
    }

    /// How many claims were ever made.
    pub(crate) fn claims_made(&self) -> u64 {
        self.claims_made
    }

    /// Whether one of the first so many claims has not been given back.
    pub(crate) fn any_before(&self, claims_made: u64) -> bool {
        self.claims.iter().any(|claim| claim.id.0 <= claims_made)
    }

    fn allows(&self, plan: &Plan) -> bool {
        let (smallest, largest) = plan.range();
        !plan.inputs().any(|(_, file)| self.holds(file.number())) && !self.writes(plan.target, &smallest, &largest)
    }
}

/// The next job of a table, if there is anything to do that other jobs do not stand in the way of.
pub(crate) fn plan(version: &Version, options: &StoreOptions, busy: &Busy, readers: &Readers) -> Option<Plan> {
    let shape = Shape::of(version, options, busy);
    let mut scores: Vec<(f64, usize)> =
        (0..LAST).map(|level| (score(version, options, busy, &shape, level), level)).collect();
    // Stable: of equal scores the upper level goes first, level 0 before all.
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let due = scores.into_iter().take_while(|(score, _)| *score >= 1.0);
    due.filter_map(|(_, level)| match level {
        0 => level_zero(version, busy, &shape, options).or_else(|| within_level_zero(version, options, busy)),
        _ => level_down(version, options, busy, level, Reason::Size, |_| true),
    })
    .next()
    .or_else(|| tombstones(version, options, busy, readers.oldest()))
}

/// The deepest level that a file with these bounds, newer than all others, may be put at: nothing overlaps it there or above.
pub(crate) fn flush_level(
    version: &Version,
    options: &StoreOptions,
    busy: &Busy,
    smallest: &[u8],
    largest: &[u8],
) -> usize {
    let is_taken = |level| version.overlaps(level, smallest, largest) || busy.writes(level, smallest, largest);
    if is_taken(0) {
        return 0;
    }
    let base = Shape::of(version, options, busy).base;
    (base..LEVELS).take_while(|level| !is_taken(*level)).last().unwrap_or(0)
}

/// What a memtable of so many bytes is merged with as it is flushed, if its table is so small that this costs less than jobs of its own: all files
/// of level 0, which would otherwise become too many, and all files of the base unless they are much larger. None while anything else is at work on
/// the table.
///
/// With the base, nothing of the table is left out, so there is nothing deeper. Without it the result stands at level 0, alone there.
pub(crate) fn flush_merge(version: &Version, options: &StoreOptions, busy: &Busy, memtable_bytes: u64) -> Option<Plan> {
    if !busy.is_idle() || version.files(0).len() + 1 < options.level_zero_files {
        return None;
    }
    let base = Shape::of(version, options, busy).base;
    if (1..LEVELS).any(|level| level != base && !version.files(level).is_empty()) {
        return None;
    }
    let newer = version.level_bytes(0) + memtable_bytes;
    let all = newer + version.level_bytes(base);
    let with_base = all <= newer.saturating_mul(FLUSH_MERGE_FACTOR);
    let bytes_max = FLUSH_MERGE_BYTES_MAX.min(options.table_file_bytes);
    if with_base && all > bytes_max || newer > bytes_max {
        return None;
    }
    let (target, lower) = if with_base { (base, version.files(base).to_vec()) } else { (0, Vec::new()) };
    let upper = version.files(0).to_vec();
    Some(Plan { reason: Reason::LevelZero, source: 0, target, upper, lower, is_move: false })
}

/// How urgent work on a table is: the highest score of a level, 1 or more if there is work to do. For choosing between tables.
pub(crate) fn urgency(version: &Version, options: &StoreOptions, busy: &Busy) -> f64 {
    let shape = Shape::of(version, options, busy);
    (0..LAST).map(|level| score(version, options, busy, &shape, level)).fold(0.0, f64::max)
}

/// The files of the level below a plan's target that limit how far one output may reach, and the limit in their bytes.
pub(crate) fn grandparents(version: &Version, plan: &Plan, options: &StoreOptions) -> (Vec<Arc<TableFile>>, u64) {
    if plan.target == 0 {
        // What is merged within level 0 is to become one file.
        return (Vec::new(), u64::MAX);
    }
    let (smallest, largest) = plan.range();
    (version.overlapping(plan.target + 1, &smallest, &largest), grandparent_bytes_max(options))
}

/// The parts of a plan, in the order of their keys: one, if the job is small or its input offers no place to cut.
pub(crate) fn split(plan: &Plan, options: &StoreOptions) -> Vec<KeyRange> {
    // Files of level 0 say nothing about where their keys lie, and what is merged within it is to become one file.
    let row = match plan.lower.len() {
        0 | 1 if plan.source > 0 => &plan.upper,
        _ => &plan.lower,
    };
    let bytes_min = options.table_file_bytes.saturating_mul(PART_FILES_MIN).max(1);
    let count = (plan.input_bytes() / bytes_min).min(PARTS_MAX).min(row.len() as u64);
    let mut parts = vec![KeyRange::default()];
    if plan.is_move || plan.target == 0 {
        return parts;
    }
    let (bytes, mut passed) = (row.iter().map(|file| file.bytes()).sum::<u64>(), 0u64);
    for (file, next) in row.iter().zip(row.iter().skip(1)) {
        passed = passed.saturating_add(file.bytes());
        // What is before the cut is as much as so many parts should have.
        let due = u128::from(passed) * u128::from(count) >= u128::from(bytes) * parts.len() as u128;
        if due && (parts.len() as u64) < count {
            let cut = next.smallest.clone();
            if let Some(last) = parts.last_mut() {
                last.upper = Some(cut.clone());
            }
            parts.push(KeyRange { lower: Some(cut), upper: None });
        }
    }
    parts
}

/// How large each level may be.
struct Shape {
    /// The level that level 0 goes to.
    base: usize,
    /// Bytes that each level may have.
    targets: [u64; LEVELS],
}

impl Shape {
    fn of(version: &Version, options: &StoreOptions, busy: &Busy) -> Shape {
        let bytes_max = (1..LEVELS).map(|level| version.level_bytes(level)).max().unwrap_or(0);
        let mut targets = [0; LEVELS];
        let (mut ideal, mut bytes) = (LAST, bytes_max);
        targets[LAST] = u64::MAX;
        while bytes > options.level_one_bytes && ideal > 1 {
            ideal -= 1;
            bytes /= options.level_factor;
            // A base that may only just exist would be emptied for every few entries.
            targets[ideal] = bytes.max(options.level_one_bytes / options.level_factor);
        }
        // A level above the ideal base that has files (the table was larger once) may have none, and is drained. Until then, it is
        // what level 0 goes to: to pass it would put new versions below old ones.
        let has_files = |level: &usize| !version.files(*level).is_empty();
        let first = (1..LEVELS).find(has_files).unwrap_or(LAST);
        let claimed = busy.claims.iter().map(|claim| claim.target).filter(|target| *target > 0).min().unwrap_or(LAST);
        Shape { base: ideal.min(first).min(claimed), targets }
    }
}

fn score(version: &Version, options: &StoreOptions, busy: &Busy, shape: &Shape, level: usize) -> f64 {
    let idle = version.files(level).iter().filter(|file| !busy.holds(file.number()));
    if level == 0 {
        return idle.count() as f64 / options.level_zero_files as f64;
    }
    let bytes: u64 = idle.map(|file| file.bytes()).sum();
    match shape.targets[level] {
        // Has to go, but nothing suffers if it waits.
        0 if bytes > 0 => 1.0,
        0 => 0.0,
        // A level that has just what it may have is not too large.
        target => bytes as f64 / (target + 1) as f64,
    }
}

/// The oldest file of level 0 with all that overlaps it there, directly or by way of others, and all that these overlap at the base.
fn level_zero(version: &Version, busy: &Busy, shape: &Shape, options: &StoreOptions) -> Option<Plan> {
    let files = version.files(0);
    files.iter().rev().find_map(|seed| {
        let (mut smallest, mut largest) = (&seed.smallest, &seed.largest);
        let upper = loop {
            let upper = version.overlapping(0, smallest, largest);
            let reach = files.iter().filter(|file| file.overlaps(smallest, largest));
            let (low, high) =
                reach.fold((smallest, largest), |(low, high), file| (low.min(&file.smallest), high.max(&file.largest)));
            if (low, high) == (smallest, largest) {
                break upper;
            }
            (smallest, largest) = (low, high);
        };
        assemble(version, options, busy, Reason::LevelZero, (0, shape.base), upper)
    })
}

/// The newest files of level 0 that no job is at, to become one: neighbours in age, so that no other file's age lies between theirs.
fn within_level_zero(version: &Version, options: &StoreOptions, busy: &Busy) -> Option<Plan> {
    let bytes_max = options.table_file_bytes.saturating_mul(CROWDED_FILES_MAX);
    let mut bytes = 0u64;
    let fits = |file: &&Arc<TableFile>| {
        bytes = bytes.saturating_add(file.bytes());
        !busy.holds(file.number()) && bytes <= bytes_max
    };
    let upper: Vec<_> = version.files(0).iter().take_while(fits).cloned().collect();
    if upper.len() < options.level_zero_files.max(2) {
        return None;
    }
    let (reason, lower) = (Reason::Crowded, Vec::new());
    let plan = Plan { reason, source: 0, target: 0, upper, lower, is_move: false };
    busy.allows(&plan).then_some(plan)
}

/// The oldest file of a level that can go down by one, with its neighbours as far as they cost nothing more.
fn level_down(
    version: &Version,
    options: &StoreOptions,
    busy: &Busy,
    level: usize,
    reason: Reason,
    wanted: impl Fn(&TableFile) -> bool,
) -> Option<Plan> {
    let mut files: Vec<&Arc<TableFile>> = version.files(level).iter().filter(|file| wanted(file)).collect();
    files.sort_unstable_by_key(|file| file.number());
    files.into_iter().find_map(|file| {
        let plan = assemble(version, options, busy, reason, (level, level + 1), vec![file.clone()])?;
        Some(expand(version, options, busy, &plan).unwrap_or(plan))
    })
}

/// A plan to merge `upper` into the target level, unless other jobs stand in its way.
fn assemble(
    version: &Version,
    options: &StoreOptions,
    busy: &Busy,
    reason: Reason,
    (source, target): (usize, usize),
    upper: Vec<Arc<TableFile>>,
) -> Option<Plan> {
    let (smallest, largest) = hull(upper.iter())?;
    let lower = version.overlapping(target, &smallest, &largest);
    // A file that overlaps much of the level after next is rewritten after all: cut into several, each of which can move on
    // at a bounded cost.
    let below: u64 = version.overlapping(target + 1, &smallest, &largest).iter().map(|file| file.bytes()).sum();
    let is_move = upper.len() == 1 && lower.is_empty() && below <= grandparent_bytes_max(options);
    let plan = Plan { reason, source, target, upper, lower, is_move };
    busy.allows(&plan).then_some(plan)
}

/// The same plan with more files of its source level, if they lie in the range that is rewritten anyway.
fn expand(version: &Version, options: &StoreOptions, busy: &Busy, plan: &Plan) -> Option<Plan> {
    if plan.is_move || plan.reason == Reason::Tombstones {
        return None;
    }
    let (smallest, largest) = plan.range();
    let upper = version.overlapping(plan.source, &smallest, &largest);
    let wider = assemble(version, options, busy, plan.reason, (plan.source, plan.target), upper)?;
    let costs_nothing = wider.upper.len() > plan.upper.len() && wider.lower.len() == plan.lower.len();
    let bytes_max = options.table_file_bytes.saturating_mul(EXPANDED_FILES_MAX);
    (costs_nothing && wider.input_bytes() <= bytes_max).then_some(wider)
}

/// A file that consists of deletes to a good part, none of which any reader still needs.
fn tombstones(version: &Version, options: &StoreOptions, busy: &Busy, oldest: Seq) -> Option<Plan> {
    let wanted = |file: &TableFile| {
        file.record.tombstones.saturating_mul(4) > file.record.entries && file.record.max_seq <= oldest
    };
    (1..LEVELS).find_map(|level| {
        let is_bottom = |file: &TableFile| {
            !(level + 1..LEVELS).any(|deeper| version.overlaps(deeper, &file.smallest, &file.largest))
        };
        // With nothing deeper all its deletes go by rule 2, so that it is not wanted a second time.
        let mut bottom = version.files(level).iter().filter(|file| wanted(file) && is_bottom(file));
        let rewrite = bottom.find_map(|file| {
            let plan = Plan {
                reason: Reason::Tombstones,
                source: level,
                target: level,
                upper: vec![file.clone()],
                lower: Vec::new(),
                is_move: false,
            };
            busy.allows(&plan).then_some(plan)
        });
        // Otherwise it goes down one level, and ends where nothing is deeper.
        let down = || level_down(version, options, busy, level, Reason::Tombstones, |f| wanted(f) && !is_bottom(f));
        rewrite.or_else(|| if level < LAST { down() } else { None })
    })
}

/// The oldest file under an older generation than this that no job is at, to be written anew where it stands.
pub(crate) fn rewrite(version: &Version, busy: &Busy, newest: Generation) -> Option<Plan> {
    let mut files: Vec<_> = version.all_files().filter(|(_, file)| file.record.generation < newest).collect();
    files.sort_unstable_by_key(|(_, file)| file.number());
    files.into_iter().find_map(|(level, file)| {
        let plan = Plan {
            reason: Reason::Generation,
            source: level,
            target: level,
            upper: vec![file.clone()],
            lower: Vec::new(),
            is_move: false,
        };
        busy.allows(&plan).then_some(plan)
    })
}

fn grandparent_bytes_max(options: &StoreOptions) -> u64 {
    options.table_file_bytes.saturating_mul(GRANDPARENT_FILES_MAX)
}

fn hull<'a>(files: impl Iterator<Item = &'a Arc<TableFile>>) -> Option<Bounds> {
    let hull = files.fold(None, |hull: Option<(&[u8], &[u8])>, file| match hull {
        None => Some((&file.smallest, &file.largest)),
        Some((smallest, largest)) => Some((smallest.min(&file.smallest), largest.max(&file.largest))),
    });
    hull.map(|(smallest, largest)| (smallest.into(), largest.into()))
}
