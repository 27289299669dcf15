//! The figures of one moment: plain structs, one list of what each is, and how they are shown.
//!
//! Each group of figures is written down once, with the kind and the unit of every field; the struct, the list, differences and the
//! table that people read follow from that.

use std::fmt;

use super::Distribution;
use crate::types::LEVELS;

/// What a figure is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MetricKind {
    /// Only rises while the store is open; 0 when it is opened. Of two snapshots the difference is what counts.
    Counter,
    /// How it is at the moment.
    Gauge,
    /// How a quantity was distributed since the store was opened.
    Distribution,
}

/// One figure, by name.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// The fields that lead to it, such as `cache.hits`, or `reads.level.3` for one of a level.
    pub name: String,
    /// What it is.
    pub kind: MetricKind,
    /// What it counts or is measured in.
    pub unit: &'static str,
    /// The figure.
    pub value: MetricValue,
}

/// A figure's value.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum MetricValue {
    /// Of a counter or a gauge.
    Number(u64),
    /// Of a distribution.
    Distribution(Distribution),
}

/// A group of figures.
trait Group {
    /// Add every figure to the list, with names that begin so.
    fn list_to(&self, prefix: &str, list: &mut Vec<Metric>);

    /// Counters and distributions since `earlier`, gauges as they are.
    fn since(&self, earlier: &Self) -> Self;
}

/// What a field is: how it is listed, and what is left of it since an earlier snapshot.
trait Figure {
    fn list_to(&self, name: String, kind: MetricKind, unit: &'static str, list: &mut Vec<Metric>);
    fn since(&self, earlier: &Self) -> Self;
}

impl Figure for u64 {
    fn list_to(&self, name: String, kind: MetricKind, unit: &'static str, list: &mut Vec<Metric>) {
        list.push(Metric { name, kind, unit, value: MetricValue::Number(*self) });
    }

    fn since(&self, earlier: &u64) -> u64 {
        self.saturating_sub(*earlier)
    }
}

impl Figure for [u64; LEVELS] {
    fn list_to(&self, name: String, kind: MetricKind, unit: &'static str, list: &mut Vec<Metric>) {
        for (level, figure) in self.iter().enumerate() {
            figure.list_to(format!("{name}.{level}"), kind, unit, list);
        }
    }

    fn since(&self, earlier: &[u64; LEVELS]) -> [u64; LEVELS] {
        std::array::from_fn(|level| self[level].saturating_sub(earlier[level]))
    }
}

impl Figure for Distribution {
    fn list_to(&self, name: String, kind: MetricKind, unit: &'static str, list: &mut Vec<Metric>) {
        list.push(Metric { name, kind, unit, value: MetricValue::Distribution(self.clone()) });
    }

    fn since(&self, earlier: &Distribution) -> Distribution {
        Distribution::since(self, earlier)
    }
}

/// A group: `kind name: type, "unit"`.
macro_rules! group {
    ($(#[$doc:meta])* $group:ident { $($(#[$about:meta])* $kind:ident $field:ident: $type:ty, $unit:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug, Default)]
        #[non_exhaustive]
        pub struct $group {
            $($(#[$about])* pub $field: $type,)*
        }

        impl Group for $group {
            fn list_to(&self, prefix: &str, list: &mut Vec<Metric>) {
                $(self.$field.list_to(format!("{prefix}.{}", stringify!($field)), MetricKind::$kind, $unit, list);)*
            }

            fn since(&self, earlier: &$group) -> $group {
                $group { $($field: match MetricKind::$kind {
                    MetricKind::Gauge => self.$field.clone(),
                    _ => Figure::since(&self.$field, &earlier.$field),
                },)* }
            }
        }
    };
}

/// What consists of groups.
macro_rules! groups {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $type:ty;)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug, Default)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$about])* pub $field: $type,)*
        }

        impl Group for $name {
            fn list_to(&self, prefix: &str, list: &mut Vec<Metric>) {
                $(self.$field.list_to(&join(prefix, stringify!($field)), list);)*
            }

            fn since(&self, earlier: &$name) -> $name {
                $name { $($field: Group::since(&self.$field, &earlier.$field),)* }
            }
        }
    };
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

groups! {
    /// The figures of a store at one moment: [`Store::metrics`](crate::Store::metrics).
    ///
    /// Counters and distributions begin at 0 when the store is opened. Nothing in here names a key, a value or a table. The page
    /// `docs/METRICS.md` of the repository says what each figure means for operation.
    ///
    /// Shown with `{}` it is a table for people; [`list`](Metrics::list) gives every figure with its name, kind and unit, for a program that passes
    /// them on.
    ///
    /// # Example
    /// ```
    /// # let store = strongroom::Store::temporary()?;
    /// # let table = store.create_table("t", Default::default())?;
    /// let before = store.metrics();
    /// table.put("k", "v")?;
    /// table.get("k")?;
    /// let since = store.metrics().since(&before);
    /// assert_eq!((since.writes.puts, since.reads.memtable), (1, 1));
    /// # Ok::<(), strongroom::Error>(())
    /// ```
    Metrics {
        /// The store and what it holds.
        store: StoreFigures;
        /// What callers wrote.
        writes: Writes;
        /// What callers read, and where it was found.
        reads: Reads;
        /// Cached blocks.
        cache: Cache;
        /// What filters spared.
        filters: Filters;
        /// What is in memory and not in sorted tables yet.
        memtables: Memtables;
        /// How writers were held up.
        stalls: Stalls;
        /// The log.
        log: LogFigures;
        /// The log of metadata.
        manifest: ManifestFigures;
        /// Memtables that became sorted tables.
        flushes: Flushes;
        /// Sorted tables that were merged.
        compactions: Compactions;
        /// Sorted tables that were written anew under another key.
        rewrites: Rewrites;
        /// Frames that were sealed, by the kind of the file.
        sealed: Frames;
        /// Frames that were opened, by the kind of the file.
        opened: Frames;
        /// Keys, and who may use them.
        keys: KeyFigures;
        /// Requests to key providers, by operation.
        provider: Provider;
        /// Moments that snapshots, cursors and iterators hold.
        pins: Pins;
    }
}

group! {
    /// The store and what it holds.
    StoreFigures {
        /// How long it has been open.
        Gauge open_ms: u64, "ms";
        /// Tables.
        Gauge tables: u64, "tables";
        /// Files of sorted tables that the store's metadata names, by level.
        Gauge level_files: [u64; LEVELS], "files";
        /// Their bytes, by level.
        Gauge level_bytes: [u64; LEVELS], "bytes";
        /// Sorted tables that are open.
        Gauge open_files: u64, "files";
        /// Sorted tables that were replaced and that somebody still looks at, or that are to be removed.
        Gauge obsolete_files: u64, "files";
    }
}

group! {
    /// What callers wrote.
    Writes {
        /// Calls that committed something: single writes and batches.
        Counter commits: u64, "commits";
        /// Groups in which they went to the log, each with one write.
        Counter groups: u64, "groups";
        /// Commits in a group.
        Distribution group_commits: Distribution, "commits";
        /// Entries that were set.
        Counter puts: u64, "entries";
        /// Entries that were deleted.
        Counter deletes: u64, "entries";
        /// Bytes of their keys and values.
        Counter user_bytes: u64, "bytes";
        /// How long a commit took, waits for room and for the disk included: of one commit in about a thousand.
        Distribution sampled_ns: Distribution, "ns";
    }
}

group! {
    /// What callers read, and where it was found. An entry that was found deleted was found.
    Reads {
        /// Point reads that a memtable answered.
        Counter memtable: u64, "reads";
        /// Point reads that a sorted table answered, by level.
        Counter level: [u64; LEVELS], "reads";
        /// Point reads of keys that are nowhere.
        Counter absent: u64, "reads";
        /// Cursors and iterators that were made.
        Counter cursors: u64, "cursors";
        /// How long a point read took: of one read in about a thousand.
        Distribution sampled_ns: Distribution, "ns";
    }
}

group! {
    /// Cached blocks.
    Cache {
        /// Blocks that were asked for and there.
        Counter hits: u64, "blocks";
        /// Blocks that were asked for and had to be read and opened.
        Counter misses: u64, "blocks";
        /// Bytes of the cached blocks.
        Gauge bytes: u64, "bytes";
        /// Bytes that they may have.
        Gauge capacity_bytes: u64, "bytes";
        /// Bytes of blocks that are not in the cache, and that values or cursors hold.
        Gauge pinned_bytes: u64, "bytes";
    }
}

group! {
    /// What filters spared. A file without a filter counts nowhere.
    Filters {
        /// Files that a filter ruled out.
        Counter useful: u64, "files";
        /// Files that a filter let pass and that had the key.
        Counter passed: u64, "files";
        /// Files that a filter let pass and that did not have the key.
        Counter false_positives: u64, "files";
    }
}

group! {
    /// What is in memory and not in sorted tables yet.
    Memtables {
        /// Bytes of all memtables, those on their way to the disk included.
        Gauge bytes: u64, "bytes";
        /// Bytes that they may have before writers are slowed down.
        Gauge budget_bytes: u64, "bytes";
        /// Tables with entries in a memtable that is being written to.
        Gauge dirty_tables: u64, "tables";
        /// Memtables that wait to be flushed, or are being flushed.
        Gauge frozen: u64, "memtables";
    }
}

group! {
    /// How writers were held up: commits that waited, and how long each did.
    Stalls {
        /// Slowed, because memtables took more than the write budget.
        Distribution slowed_by_memory_ns: Distribution, "ns";
        /// Slowed, because a table had many files at level 0.
        Distribution slowed_by_level_zero_ns: Distribution, "ns";
        /// Stopped, because memtables took one and a half times the write budget.
        Distribution stopped_by_memory_ns: Distribution, "ns";
        /// Stopped, because a table had too many files at level 0.
        Distribution stopped_by_level_zero_ns: Distribution, "ns";
        /// Commits that were refused, because the disk had no room for them.
        Counter refused_for_room: u64, "commits";
        /// Bytes of the disk that are kept for what compactions under way may still write.
        Gauge reserved_bytes: u64, "bytes";
        /// How fast flushes have lately been, in bytes that writers wrote: what fills the token bucket of writers that memory slows.
        Gauge flush_bytes_per_s: u64, "bytes/s";
        /// The same of merging level 0, for writers of a table that its files slow.
        Gauge merge_bytes_per_s: u64, "bytes/s";
    }
}

group! {
    /// The log.
    LogFigures {
        /// Bytes of the segments that are there.
        Gauge bytes: u64, "bytes";
        /// Segments that are there.
        Gauge segments: u64, "segments";
        /// Number of the oldest segment.
        Gauge oldest_segment: u64, "number";
        /// Number of the segment that is being written.
        Gauge newest_segment: u64, "number";
        /// Files with sections of tables whose key is refused, carried out of segments that had to go.
        Gauge parked_files: u64, "files";
        /// Their bytes.
        Gauge parked_bytes: u64, "bytes";
        /// Segments that were begun.
        Counter segments_begun: u64, "segments";
        /// Segments that were removed.
        Counter segments_removed: u64, "segments";
        /// How long it took to make the log durable, each time.
        Distribution sync_ns: Distribution, "ns";
    }
}

group! {
    /// The log of metadata.
    ManifestFigures {
        /// Bytes of the live file.
        Gauge bytes: u64, "bytes";
        /// Number of the last durable change.
        Gauge epoch: u64, "number";
        /// Changes that were made durable, each with one sync.
        Counter appends: u64, "groups";
        /// Edits in them.
        Counter edits: u64, "edits";
        /// Files that were begun with a full picture.
        Counter rewrites: u64, "files";
    }
}

group! {
    /// Memtables that became sorted tables.
    Flushes {
        /// Batches of memtables that one change of the metadata named.
        Counter batches: u64, "batches";
        /// Memtables in them.
        Counter memtables: u64, "memtables";
        /// Bytes of these memtables in memory.
        Counter memtable_bytes: u64, "bytes";
        /// Files that were written.
        Counter files: u64, "files";
        /// Their bytes.
        Counter written_bytes: u64, "bytes";
        /// Jobs that failed. They are tried again.
        Counter failures: u64, "jobs";
        /// How long a batch took.
        Distribution lasted_ns: Distribution, "ns";
    }
}

group! {
    /// Sorted tables that were merged.
    Compactions {
        /// Compactions that came to their end, moves not included.
        Counter jobs: u64, "jobs";
        /// Files that changed their level as they are.
        Counter moves: u64, "files";
        /// Files that were read.
        Counter read_files: u64, "files";
        /// Their bytes.
        Counter read_bytes: u64, "bytes";
        /// Files that were written.
        Counter written_files: u64, "files";
        /// Their bytes.
        Counter written_bytes: u64, "bytes";
        /// Compactions that failed. They are tried again.
        Counter failures: u64, "jobs";
        /// How long one took.
        Distribution lasted_ns: Distribution, "ns";
        /// Tables whose levels are to be looked at, or that are being compacted.
        Gauge queued_tables: u64, "tables";
    }
}

group! {
    /// Sorted tables that were written anew under another key.
    Rewrites {
        /// Files that were replaced.
        Counter files: u64, "files";
        /// Bytes of these files.
        Counter read_bytes: u64, "bytes";
        /// Bytes of those that replaced them.
        Counter written_bytes: u64, "bytes";
        /// Steps of rotations that failed. They are tried again.
        Counter failures: u64, "jobs";
    }
}

group! {
    /// Frames, by the kind of the file that they are in. Bytes are those of whole frames, heads and tags included.
    Frames {
        /// Of sorted tables.
        Counter table_frames: u64, "frames";
        /// Of sorted tables.
        Counter table_bytes: u64, "bytes";
        /// Of the log: an envelope for each group, and its sections, also once they are parked.
        Counter log_frames: u64, "frames";
        /// Of the log.
        Counter log_bytes: u64, "bytes";
        /// Of the manifest.
        Counter manifest_frames: u64, "frames";
        /// Of the manifest.
        Counter manifest_bytes: u64, "bytes";
        /// Of key files.
        Counter key_file_frames: u64, "frames";
        /// Of key files.
        Counter key_file_bytes: u64, "bytes";
    }
}

group! {
    /// Keys, and who may use them.
    KeyFigures {
        /// Dates on which a permission is looked at again: about as many as there are permits.
        Gauge permits: u64, "permits";
        /// Tables whose keys are in memory.
        Gauge tables_in_use: u64, "tables";
        /// Tables whose key is refused.
        Gauge inaccessible_tables: u64, "tables";
        /// Tables with more than one generation of their key.
        Gauge rotating_tables: u64, "tables";
    }
}

groups! {
    /// Requests to key providers, by operation.
    Provider {
        /// Describe a master key.
        describe_key: ProviderCalls;
        /// Find or make the key under the owned alias.
        owned_key: ProviderCalls;
        /// Find or make the key under the managed alias.
        managed_key: ProviderCalls;
        /// Make a new wrapped key.
        generate_data_key: ProviderCalls;
        /// Unwrap a key.
        decrypt: ProviderCalls;
        /// Wrap a key.
        encrypt: ProviderCalls;
        /// Wrap a key under another master key.
        re_encrypt: ProviderCalls;
        /// Grant the engine the use of a master key.
        create_grant: ProviderCalls;
        /// Give a grant up.
        retire_grant: ProviderCalls;
        /// Have a master key destroyed.
        schedule_key_deletion: ProviderCalls;
    }
}

group! {
    /// Requests of one kind, by what came of them.
    ProviderCalls {
        /// Answered.
        Counter ok: u64, "requests";
        /// Failed for a reason that is likely to pass.
        Counter transient: u64, "requests";
        /// Refused to who asked.
        Counter principal: u64, "requests";
        /// Refused because of the master key.
        Counter key: u64, "requests";
        /// The wrapped key or the answer was wrong.
        Counter material: u64, "requests";
        /// The request was wrong, or is not supported.
        Counter request: u64, "requests";
        /// How long the provider took, whatever came of it.
        Distribution lasted_ns: Distribution, "ns";
    }
}

group! {
    /// Moments that snapshots, cursors and iterators hold. What they can see is not dropped by compactions.
    Pins {
        /// Distinct moments that are held.
        Gauge moments: u64, "moments";
        /// Sequence number of the oldest; that of the present if none is held.
        Gauge oldest_seq: u64, "number";
        /// Since when the oldest is held, to a quarter of a second; 0 if none is.
        Gauge oldest_ms: u64, "ms";
        /// Sequence number of the last commit.
        Gauge visible_seq: u64, "number";
    }
}

impl Metrics {
    /// What was counted since `earlier`, a snapshot of the same open store. Gauges are as they are in this one.
    pub fn since(&self, earlier: &Metrics) -> Metrics {
        Group::since(self, earlier)
    }

    /// Every figure, with its name, kind and unit.
    pub fn list(&self) -> Vec<Metric> {
        let mut list = Vec::new();
        self.list_to("", &mut list);
        list
    }

    /// Bytes written to log, sorted tables and manifest for each byte that callers wrote; `None` if they wrote nothing. Flushes and compactions of what was
    /// written before count too, so over a short time it says little.
    pub fn write_amplification(&self) -> Option<f64> {
        let written = self.sealed.log_bytes
            + self.sealed.manifest_bytes
            + self.flushes.written_bytes
            + self.compactions.written_bytes
            + self.rewrites.written_bytes;
        (self.writes.user_bytes > 0).then(|| written as f64 / self.writes.user_bytes as f64)
    }

    /// Bytes of all sorted tables for each byte at the deepest level that has any; `None` without sorted tables. 1.11 is what levels that are ten times as large
    /// as the one above come to.
    pub fn space_amplification(&self) -> Option<f64> {
        let levels = &self.store.level_bytes;
        let deepest = levels.iter().rev().find(|bytes| **bytes > 0)?;
        Some(levels.iter().sum::<u64>() as f64 / *deepest as f64)
    }

    /// The part of the blocks asked for that was in the cache; `None` if none was asked for.
    pub fn cache_hit_rate(&self) -> Option<f64> {
        let asked = self.cache.hits + self.cache.misses;
        (asked > 0).then(|| self.cache.hits as f64 / asked as f64)
    }

    /// Point reads, wherever they were answered.
    pub fn point_reads(&self) -> u64 {
        self.reads.memtable + self.reads.level.iter().sum::<u64>() + self.reads.absent
    }
}

/// One figure to a line, grouped; figures that are 0 are left out.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut group = String::new();
        for metric in self.list() {
            let shown = match &metric.value {
                MetricValue::Number(0) => continue,
                MetricValue::Number(number) => format!("{:>20}", grouped(*number)),
                MetricValue::Distribution(found) if found.count() == 0 => continue,
                MetricValue::Distribution(found) => format!(
                    "{:>20} times, median {}, p99 {}, p99.9 {}, max {}, mean {:.1}",
                    grouped(found.count()),
                    grouped(found.percentile(50.0)),
                    grouped(found.percentile(99.0)),
                    grouped(found.percentile(99.9)),
                    grouped(found.max()),
                    found.mean(),
                ),
            };
            let (in_group, name) = metric.name.split_once('.').unwrap_or(("", &metric.name));
            if group != in_group {
                in_group.clone_into(&mut group);
                writeln!(f, "{group}")?;
            }
            writeln!(f, "  {name:<32} {shown} {}", metric.unit)?;
        }
        if let Some(amplification) = self.write_amplification() {
            writeln!(f, "write amplification {amplification:.2}")?;
        }
        if let Some(rate) = self.cache_hit_rate() {
            writeln!(f, "cache hit rate      {rate:.4}")?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
