//! What the store counts about itself, always, and how that is read.
//!
//! ```text
//! counters.rs    sums, one tally to a thread         counted into while the store works
//! histogram.rs   distributions, in fixed buckets
//! snapshot.rs    Metrics: the figures of one moment, what each is, differences, a table for people
//! ```
//! A `Meters` goes with the store's directory to everything that reads or writes there, and with the broker to everything that asks a
//! provider; there is none but the store's own. What is a matter of looking (bytes in memory, segments, permits) is not
//! counted but looked up when somebody wants the figures (`db/metrics.rs`).
//!
//! # What it costs
//! A count is a load and a store on a line of this thread's own: about 2 ns with finding the tally, 1 ns for each further one in the same
//! `Meters::tally`. No clock is read for it: durations are of things that take longer than reading a clock by far, or are sampled, one in
//! `SAMPLED_ONE_IN`.
//!
//! # What it never says
//! No figure names a table, key, value or principal: metrics are read by more people than data is.

mod counters;
mod histogram;
mod snapshot;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::histogram::Distribution;
pub use self::snapshot::{
    Cache, Compactions, Filters, Flushes, Frames, KeyFigures, LogFigures, ManifestFigures, Memtables, Metric,
    MetricKind, MetricValue, Metrics, Pins, Provider, ProviderCalls, Reads, Rewrites, Stalls, StoreFigures, Writes,
};

use self::counters::Counters;
pub(crate) use self::counters::Tally;
pub(crate) use self::histogram::Histogram;
use crate::error::{ProviderClass, ProviderError};
use crate::types::{FileKind, LEVELS};

/// Of so many operations on a thread, the time of one is taken. Prime, so that a thread that does the same few things in turn has each of them
/// sampled.
const SAMPLED_ONE_IN: u32 = 1021;

thread_local! {
    /// Operations until the next is sampled.
    static UNTIL_SAMPLE: Cell<u32> = const { Cell::new(0) };
}

/// Whether the time of the operation that begins is to be taken.
#[inline]
pub(crate) fn is_sampled() -> bool {
    UNTIL_SAMPLE.with(|left| match left.get().checked_sub(1) {
        Some(next) => {
            left.set(next);
            false
        }
        None => {
            left.set(SAMPLED_ONE_IN - 1);
            true
        }
    })
}

/// What is counted. The order is that in which the counts lie in memory: what is counted together lies together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Count {
    // A point read. The levels stand in a row: `Count::level` counts on it.
    GetMemtable,
    GetLevel0,
    #[allow(dead_code, reason = "the end of the row")]
    GetLevel6 = Count::GetLevel0 as usize + LEVELS - 1,
    GetAbsent,
    CacheHits,
    CacheMisses,
    FilterUseful,
    FilterPassed,
    FilterFalse,
    OpenedTableFrames,
    OpenedTableBytes,
    Cursors,
    // A commit.
    Commits,
    Groups,
    Puts,
    Deletes,
    UserBytes,
    SealedLogFrames,
    SealedLogBytes,
    // Everything else.
    SealedTableFrames,
    SealedTableBytes,
    SealedManifestFrames,
    SealedManifestBytes,
    SealedKeyFrames,
    SealedKeyBytes,
    OpenedLogFrames,
    OpenedLogBytes,
    OpenedManifestFrames,
    OpenedManifestBytes,
    OpenedKeyFrames,
    OpenedKeyBytes,
    SegmentsBegun,
    SegmentsRemoved,
    ManifestAppends,
    ManifestEdits,
    ManifestRewrites,
    FlushBatches,
    FlushMemtables,
    FlushMemtableBytes,
    FlushFiles,
    FlushBytes,
    FlushFailures,
    Compactions,
    CompactionMoves,
    CompactionReadFiles,
    CompactionReadBytes,
    CompactionWrittenFiles,
    CompactionWrittenBytes,
    CompactionFailures,
    RewrittenFiles,
    RewriteReadBytes,
    RewriteWrittenBytes,
    RotationFailures,
    RefusedCommits,
}

impl Count {
    /// Where point reads are counted that a sorted table of this level answered.
    #[inline]
    pub(crate) const fn level(level: usize) -> usize {
        let level = if level < LEVELS { level } else { LEVELS - 1 };
        Count::GetLevel0 as usize + level
    }
}

/// What a point read found in the files that it looked into.
#[derive(Default)]
pub(crate) struct Probes {
    /// Files that a filter ruled out.
    pub(crate) useful: u64,
    /// Files that a filter let pass and that had the key.
    pub(crate) passed: u64,
    /// Files that a filter let pass and that did not have the key.
    pub(crate) false_positives: u64,
    /// Data blocks that were there.
    pub(crate) hits: u64,
    /// Data blocks that were not.
    pub(crate) misses: u64,
}

/// How many counts there are.
const COUNTS: usize = Count::RefusedCommits as usize + 1;

/// What a provider is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum ProviderOperation {
    DescribeKey,
    OwnedKey,
    ManagedKey,
    GenerateDataKey,
    Decrypt,
    Encrypt,
    ReEncrypt,
    CreateGrant,
    RetireGrant,
    ScheduleKeyDeletion,
}

impl ProviderOperation {
    /// In a word.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            ProviderOperation::DescribeKey => "describe_key",
            ProviderOperation::OwnedKey => "owned_key",
            ProviderOperation::ManagedKey => "managed_key",
            ProviderOperation::GenerateDataKey => "generate_data_key",
            ProviderOperation::Decrypt => "decrypt",
            ProviderOperation::Encrypt => "encrypt",
            ProviderOperation::ReEncrypt => "re_encrypt",
            ProviderOperation::CreateGrant => "create_grant",
            ProviderOperation::RetireGrant => "retire_grant",
            ProviderOperation::ScheduleKeyDeletion => "schedule_key_deletion",
        }
    }
}

const OPERATIONS: usize = ProviderOperation::ScheduleKeyDeletion as usize + 1;
/// An answer, or one of the classes of failures.
const OUTCOMES: usize = 6;

/// Everything that a store counts while it is open.
pub(crate) struct Meters {
    counters: Counters,
    /// Commits in a group. Recorded by who holds the writer's lock.
    pub(crate) group_commits: Histogram,
    pub(crate) commit_ns: Histogram,
    pub(crate) get_ns: Histogram,
    pub(crate) sync_ns: Histogram,
    pub(crate) slowed_by_memory_ns: Histogram,
    pub(crate) slowed_by_level_zero_ns: Histogram,
    pub(crate) stopped_by_memory_ns: Histogram,
    pub(crate) stopped_by_level_zero_ns: Histogram,
    pub(crate) flush_ns: Histogram,
    pub(crate) compaction_ns: Histogram,
    provider: [Requests; OPERATIONS],
}

/// Requests of one kind.
struct Requests {
    outcomes: [AtomicU64; OUTCOMES],
    lasted_ns: Histogram,
}

impl Meters {
    /// Nothing was counted yet.
    pub(crate) fn new() -> Meters {
        let requests = || Requests { outcomes: [const { AtomicU64::new(0) }; OUTCOMES], lasted_ns: Histogram::new() };
        Meters {
            counters: Counters::new(),
            group_commits: Histogram::new(),
            commit_ns: Histogram::new(),
            get_ns: Histogram::new(),
            sync_ns: Histogram::new(),
            slowed_by_memory_ns: Histogram::new(),
            slowed_by_level_zero_ns: Histogram::new(),
            stopped_by_memory_ns: Histogram::new(),
            stopped_by_level_zero_ns: Histogram::new(),
            flush_ns: Histogram::new(),
            compaction_ns: Histogram::new(),
            provider: std::array::from_fn(|_| requests()),
        }
    }

    /// Count `n` of something. What was counted of it on this thread before, for who samples.
    #[inline]
    pub(crate) fn count(&self, what: Count, n: u64) -> u64 {
        self.tally(|tally| tally.add(what, n))
    }

    /// Count several things at once. `count` is called once.
    #[inline]
    pub(crate) fn tally<T>(&self, count: impl FnMut(&Tally) -> T) -> T {
        self.counters.tally(count)
    }

    /// A point read was answered in this place ([`Count`]), after these files were looked into.
    #[inline]
    pub(crate) fn read(&self, place: usize, probes: &Probes) {
        self.tally(|tally| {
            tally.add_at(place, 1);
            for (what, n) in [
                (Count::FilterUseful, probes.useful),
                (Count::FilterPassed, probes.passed),
                (Count::FilterFalse, probes.false_positives),
                (Count::CacheHits, probes.hits),
                (Count::CacheMisses, probes.misses),
            ] {
                // Mostly there is nothing of most of them.
                if n > 0 {
                    tally.add(what, n);
                }
            }
        });
    }

    /// Frames of a file of this kind were sealed.
    pub(crate) fn sealed(&self, kind: FileKind, frames: u64, bytes: u64) {
        if let Some((sealed, _)) = frames_of(kind) {
            self.tally(|tally| tally.add_frames(sealed, frames, bytes));
        }
    }

    /// Frames of a file of this kind were opened.
    #[inline]
    pub(crate) fn opened(&self, kind: FileKind, frames: u64, bytes: u64) {
        if let Some((_, opened)) = frames_of(kind) {
            self.tally(|tally| tally.add_frames(opened, frames, bytes));
        }
    }

    /// A provider was asked and has answered.
    pub(crate) fn provider_asked<T>(
        &self,
        operation: ProviderOperation,
        answer: Result<&T, &ProviderError>,
        lasted_ns: u64,
    ) {
        let requests = &self.provider[operation as usize];
        requests.outcomes[outcome_of(answer.map(drop))].fetch_add(1, Ordering::Relaxed);
        requests.lasted_ns.record(lasted_ns);
    }

    /// What was counted so far. Gauges are left at 0, for who can look them up.
    pub(crate) fn metrics(&self) -> Metrics {
        let sums = self.counters.sums();
        let sum = |what: Count| sums[what as usize];
        let mut metrics = Metrics::default();

        let writes = &mut metrics.writes;
        writes.commits = sum(Count::Commits);
        writes.groups = sum(Count::Groups);
        writes.group_commits = self.group_commits.distribution();
        writes.puts = sum(Count::Puts);
        writes.deletes = sum(Count::Deletes);
        writes.user_bytes = sum(Count::UserBytes);
        writes.sampled_ns = self.commit_ns.distribution();

        let reads = &mut metrics.reads;
        reads.memtable = sum(Count::GetMemtable);
        reads.level = std::array::from_fn(|level| sums[Count::GetLevel0 as usize + level]);
        reads.absent = sum(Count::GetAbsent);
        reads.cursors = sum(Count::Cursors);
        reads.sampled_ns = self.get_ns.distribution();

        metrics.cache.hits = sum(Count::CacheHits);
        metrics.cache.misses = sum(Count::CacheMisses);
        metrics.filters.useful = sum(Count::FilterUseful);
        metrics.filters.false_positives = sum(Count::FilterFalse);
        metrics.filters.passed = sum(Count::FilterPassed);

        let stalls = &mut metrics.stalls;
        stalls.slowed_by_memory_ns = self.slowed_by_memory_ns.distribution();
        stalls.slowed_by_level_zero_ns = self.slowed_by_level_zero_ns.distribution();
        stalls.stopped_by_memory_ns = self.stopped_by_memory_ns.distribution();
        stalls.stopped_by_level_zero_ns = self.stopped_by_level_zero_ns.distribution();
        stalls.refused_for_room = sum(Count::RefusedCommits);

        metrics.log.segments_begun = sum(Count::SegmentsBegun);
        metrics.log.segments_removed = sum(Count::SegmentsRemoved);
        metrics.log.sync_ns = self.sync_ns.distribution();
        metrics.manifest.appends = sum(Count::ManifestAppends);
        metrics.manifest.edits = sum(Count::ManifestEdits);
        metrics.manifest.rewrites = sum(Count::ManifestRewrites);

        let flushes = &mut metrics.flushes;
        flushes.batches = sum(Count::FlushBatches);
        flushes.memtables = sum(Count::FlushMemtables);
        flushes.memtable_bytes = sum(Count::FlushMemtableBytes);
        flushes.files = sum(Count::FlushFiles);
        flushes.written_bytes = sum(Count::FlushBytes);
        flushes.failures = sum(Count::FlushFailures);
        flushes.lasted_ns = self.flush_ns.distribution();

        let compactions = &mut metrics.compactions;
        compactions.jobs = sum(Count::Compactions);
        compactions.moves = sum(Count::CompactionMoves);
        compactions.read_files = sum(Count::CompactionReadFiles);
        compactions.read_bytes = sum(Count::CompactionReadBytes);
        compactions.written_files = sum(Count::CompactionWrittenFiles);
        compactions.written_bytes = sum(Count::CompactionWrittenBytes);
        compactions.failures = sum(Count::CompactionFailures);
        compactions.lasted_ns = self.compaction_ns.distribution();

        let rewrites = &mut metrics.rewrites;
        rewrites.files = sum(Count::RewrittenFiles);
        rewrites.read_bytes = sum(Count::RewriteReadBytes);
        rewrites.written_bytes = sum(Count::RewriteWrittenBytes);
        rewrites.failures = sum(Count::RotationFailures);

        metrics.sealed = Frames {
            table_frames: sum(Count::SealedTableFrames),
            table_bytes: sum(Count::SealedTableBytes),
            log_frames: sum(Count::SealedLogFrames),
            log_bytes: sum(Count::SealedLogBytes),
            manifest_frames: sum(Count::SealedManifestFrames),
            manifest_bytes: sum(Count::SealedManifestBytes),
            key_file_frames: sum(Count::SealedKeyFrames),
            key_file_bytes: sum(Count::SealedKeyBytes),
        };
        metrics.opened = Frames {
            table_frames: sum(Count::OpenedTableFrames),
            table_bytes: sum(Count::OpenedTableBytes),
            log_frames: sum(Count::OpenedLogFrames),
            log_bytes: sum(Count::OpenedLogBytes),
            manifest_frames: sum(Count::OpenedManifestFrames),
            manifest_bytes: sum(Count::OpenedManifestBytes),
            key_file_frames: sum(Count::OpenedKeyFrames),
            key_file_bytes: sum(Count::OpenedKeyBytes),
        };
        metrics.provider = self.provider();
        metrics
    }

    fn provider(&self) -> Provider {
        let calls = |operation: ProviderOperation| {
            let Requests { outcomes, lasted_ns } = &self.provider[operation as usize];
            let [ok, transient, principal, key, material, request] =
                std::array::from_fn(|outcome| outcomes[outcome].load(Ordering::Relaxed));
            ProviderCalls { ok, transient, principal, key, material, request, lasted_ns: lasted_ns.distribution() }
        };
        Provider {
            describe_key: calls(ProviderOperation::DescribeKey),
            owned_key: calls(ProviderOperation::OwnedKey),
            managed_key: calls(ProviderOperation::ManagedKey),
            generate_data_key: calls(ProviderOperation::GenerateDataKey),
            decrypt: calls(ProviderOperation::Decrypt),
            encrypt: calls(ProviderOperation::Encrypt),
            re_encrypt: calls(ProviderOperation::ReEncrypt),
            create_grant: calls(ProviderOperation::CreateGrant),
            retire_grant: calls(ProviderOperation::RetireGrant),
            schedule_key_deletion: calls(ProviderOperation::ScheduleKeyDeletion),
        }
    }
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meters")
    }
}

impl Tally {
    /// Frames and their bytes, which stand beside each other.
    #[inline]
    pub(crate) fn add_frames(&self, frames_at: Count, frames: u64, bytes: u64) {
        self.add_at(frames_at as usize, frames);
        self.add_at(frames_at as usize + 1, bytes);
    }
}

/// Where frames of this kind of file are counted, when they are sealed and when they are opened. Bytes stand behind them.
#[inline]
const fn frames_of(kind: FileKind) -> Option<(Count, Count)> {
    match kind {
        FileKind::Table => Some((Count::SealedTableFrames, Count::OpenedTableFrames)),
        FileKind::Log => Some((Count::SealedLogFrames, Count::OpenedLogFrames)),
        // CURRENT is a frame of the store's metadata, too.
        FileKind::Manifest | FileKind::Current => Some((Count::SealedManifestFrames, Count::OpenedManifestFrames)),
        FileKind::KeyFile | FileKind::SystemKey => Some((Count::SealedKeyFrames, Count::OpenedKeyFrames)),
        // What is in them are frames of the log. A keyring lies outside of every store.
        FileKind::Parked | FileKind::Keyring => None,
    }
}

fn outcome_of(answer: Result<(), &ProviderError>) -> usize {
    match answer.map_err(ProviderError::class) {
        Ok(()) => 0,
        Err(ProviderClass::Transient) => 1,
        Err(ProviderClass::Principal) => 2,
        Err(ProviderClass::Key) => 3,
        Err(ProviderClass::Material) => 4,
        Err(ProviderClass::Request) => 5,
    }
}
