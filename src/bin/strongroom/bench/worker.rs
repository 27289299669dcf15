//! One suite in a process of its own: runs the workloads that it is told, and answers with records.
//!
//! ```text
//! standard input    readrandom 100 2                   workload, size of values, round: a line each
//! standard output   {"operations":3100,"of":50000}     ten times a second while it runs
//!                   {"record":{...}}                   at the end
//! ```
//! A process per suite, because memory, caches and CPU time of one are then nobody else's, and because suite none may only exist in
//! another build.
//!
//! Workloads of a round use one table: the one that the last fill left, or that is filled before the first that does not. Before something is
//! timed, background work has come to rest and the cache has been read into; after it, what was written is flushed and compacted, which counts
//! as CPU time of the workload and not as its duration.

use std::fs;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value as Json, json};
use strongroom::{
    Builder, Cipher, Compression, Cursor, Durability, LocalKms, Store, StoreOptions, Table, TableOptions, Unlock,
};

use super::args::{Bench, SuiteName};
use super::record::{Latency, Record};
use super::workload::{BATCH, Noise, Random, SCAN_MAX, STEPS, Shuffle, Workload, Zipf, is_value, write_key};
use crate::args::CompressionName;
use crate::failure::{Failure, Result};
use crate::output;
use crate::stats;
use crate::tree::Tree;

/// How often a run says how far it is, and how fine its time series is at first.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Points of a time series at most.
const SAMPLES_MAX: usize = 200;
/// Reads of every so many entries reach every block, before something is timed.
const WARM_UP_STRIDE: usize = 16;
/// Latencies over a minute are recorded as one.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Serve the driver until it closes our standard input.
pub fn serve(args: &Bench, suite: SuiteName, folder: &Path) -> Result<()> {
    let mut worker = Worker { args, suite, folder, current: None };
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|source| Failure::File { what: "cannot read orders".to_string(), source })?;
        let order = Order::parse(&line)
            .ok_or_else(|| Failure::usage(format!("not an order: {line:?}"), "leave --worker to the command itself"))?;
        let record = worker.run(order)?;
        answer(&json!({ "record": record.to_json() }))?;
    }
    Ok(())
}

fn answer(message: &Json) -> Result<()> {
    output::line(message)
}

/// What the driver wants.
#[derive(Clone, Copy)]
pub struct Order {
    pub workload: Workload,
    pub value_bytes: u64,
    pub round: usize,
}

impl Order {
    pub fn line(&self) -> String {
        format!("{} {} {}", self.workload.name(), self.value_bytes, self.round)
    }

    fn parse(line: &str) -> Option<Order> {
        let mut words = line.split(' ');
        Some(Order {
            workload: clap::ValueEnum::from_str(words.next()?, false).ok()?,
            value_bytes: words.next()?.parse().ok()?,
            round: words.next()?.parse().ok()?,
        })
    }
}

struct Worker<'a> {
    args: &'a Bench,
    suite: SuiteName,
    folder: &'a Path,
    current: Option<Current>,
}

/// The table that workloads use.
struct Current {
    value_bytes: u64,
    round: usize,
    site: Site,
    /// How many entries it has: inserts of YCSB's workloads add to them.
    entries: AtomicU64,
    warm: bool,
}

impl Worker<'_> {
    fn run(&mut self, order: Order) -> Result<Record> {
        let Order { workload, value_bytes, round } = order;
        let noise = Noise::new(self.args.seed, value_bytes as usize);
        if workload.is_apart() {
            let mut site = self.site("apart")?;
            if workload == Workload::Filltables {
                site.add_tables(self.args.tables.get(), &self.table_options())?;
            }
            let record = self.time(order, &site, &noise, &AtomicU64::new(0))?;
            site.remove()?;
            return Ok(record);
        }
        let fits = |current: &Current| (current.value_bytes, current.round) == (value_bytes, round);
        if workload.fills() || !self.current.as_ref().is_some_and(fits) {
            if let Some(old) = self.current.take() {
                old.site.remove()?;
            }
            let (site, entries) = (self.site("filled")?, AtomicU64::new(0));
            let mut record = None;
            if workload.fills() {
                record = Some(self.time(order, &site, &noise, &entries)?);
            } else {
                self.time(Order { workload: Workload::Fillrandom, ..order }, &site, &noise, &entries)?;
            }
            self.current = Some(Current { value_bytes, round, site, entries, warm: false });
            if let Some(record) = record {
                return Ok(record);
            }
        }
        let Some(mut current) = self.current.take() else {
            return Err(Failure::BrokenPromise { what: "a workload without a table".to_string() });
        };
        if !current.warm {
            warm_up(&current, self.args)?;
            current.warm = true;
        }
        let record = self.time(order, &current.site, &noise, &current.entries);
        self.current = Some(current);
        record
    }

    fn site(&self, name: &str) -> Result<Site> {
        let options = StoreOptions { cache_bytes: self.args.cache_size as usize, ..StoreOptions::default() };
        Site::create(self.folder.join(name), self.suite, options, self.table_options())
    }

    fn table_options(&self) -> TableOptions {
        let mut table =
            TableOptions::new().block_bytes(self.args.block_size as usize).compression(match self.args.compression {
                CompressionName::None => Compression::None,
                CompressionName::Lz4 => Compression::Lz4,
            });
        match self.suite {
            SuiteName::None => {}
            SuiteName::Aes256Gcm => table = table.cipher(Cipher::Aes256Gcm),
            SuiteName::ChaCha20Poly1305 => table = table.cipher(Cipher::ChaCha20Poly1305),
        }
        table
    }

    /// Run a workload and say what came out.
    fn time(&self, order: Order, site: &Site, noise: &Noise, entries: &AtomicU64) -> Result<Record> {
        let Order { workload, value_bytes, round } = order;
        let full = self.args.entries_of(value_bytes);
        let fills = workload.fills() || workload == Workload::Filltables;
        let asked = self.args.operations.map(u64::from).filter(|_| !fills);
        let deadline = self.args.duration.filter(|_| !fills);
        let operations = match deadline {
            Some(_) => u64::MAX,
            None => asked.unwrap_or(workload.operations(full)),
        };
        let present = if workload.fills() || workload.is_apart() { full } else { entries.load(Ordering::Relaxed) };
        let run = Run {
            workload,
            site,
            noise,
            seed: self.args.seed,
            key_bytes: self.args.key_size as usize,
            value_bytes: value_bytes as usize,
            shuffle: Shuffle::new(present, self.args.seed),
            zipf: Zipf::new(present),
            present,
            entries,
            operations,
            deadline,
            stopped: AtomicBool::new(false),
        };
        let before = site.store.metrics();
        let cpu_before = cpu_seconds();
        let outcome = run.carry_out(self.args.threads.into())?;
        if workload.fills() {
            entries.store(full, Ordering::Relaxed);
        }
        let settling = Instant::now();
        if workload.writes() {
            site.store.flush()?;
            site.store.compact()?;
        }
        let settled_seconds = outcome.seconds + settling.elapsed().as_secs_f64();
        Ok(Record {
            workload: workload.name(),
            suite: self.suite.name().to_owned(),
            round: round as u64,
            key_bytes: self.args.key_size.into(),
            value_bytes,
            entries: present,
            threads: self.args.threads.into(),
            block_bytes: self.args.block_size,
            compression: match self.args.compression {
                CompressionName::None => "none",
                CompressionName::Lz4 => "lz4",
            }
            .to_owned(),
            cache_bytes: self.args.cache_size,
            seed: self.args.seed,
            operations: outcome.operations,
            background_operations: outcome.background_operations,
            seconds: outcome.seconds,
            settled_seconds,
            cpu_seconds: cpu_seconds() - cpu_before,
            bytes: outcome.bytes,
            disk_bytes: if workload.writes() { Tree::walk(&site.path)?.bytes } else { 0 },
            latency_step: workload.step(),
            latency: Latency::of(&outcome.latencies),
            series: outcome.series,
            metrics: stats::counted(&site.store.metrics().since(&before)),
            ..Record::here()
        })
    }
}

/// User and system time of all threads of this process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Read something of every block, so that what is timed next finds the cache as it will stay.
fn warm_up(current: &Current, args: &Bench) -> Result<()> {
    let mut key = vec![0; args.key_size as usize];
    for number in (0..current.entries.load(Ordering::Relaxed)).step_by(WARM_UP_STRIDE) {
        write_key(&mut key, 2 * number);
        let value = current.site.table.get(&key)?;
        if !value.is_some_and(|value| is_value(&value, number, current.value_bytes as usize)) {
            return Err(broken(number));
        }
    }
    Ok(())
}

fn broken(number: u64) -> Failure {
    Failure::BrokenPromise { what: format!("entry {number} is missing, or is not what was written") }
}

/// A store with one table, and its keyring beside it.
struct Site {
    path: PathBuf,
    store: Store,
    table: Table,
    /// Those of `filltables`.
    many: Vec<Table>,
}

/// Tables that are made at once.
const TABLES_AT_ONCE: usize = 1000;

impl Site {
    fn create(path: PathBuf, suite: SuiteName, options: StoreOptions, table: TableOptions) -> Result<Site> {
        // The data is worth nothing, and so is what protects it.
        let kms = LocalKms::create(path.with_extension("keyring"), Unlock::key(|key| key.fill(7)))?;
        let builder = Store::builder(&path).key_provider(kms).options(options);
        let store = if suite == SuiteName::None { unsealed(builder)? } else { builder }.create()?;
        let table = store.create_table("entries", table)?;
        Ok(Site { path, store, table, many: Vec::new() })
    }

    fn add_tables(&mut self, count: u64, options: &TableOptions) -> Result<()> {
        let names: Vec<String> = (0..count).map(|number| format!("table {number}")).collect();
        for names in names.chunks(TABLES_AT_ONCE) {
            let tables: Vec<_> = names.iter().map(|name| (name.as_str(), options.clone())).collect();
            self.many.extend(self.store.create_tables(&tables)?);
        }
        Ok(())
    }

    fn remove(self) -> Result<()> {
        self.store.close()?;
        let keyring = self.path.with_extension("keyring");
        fs::remove_file(&keyring).map_err(|source| Failure::file("remove", &keyring, source))?;
        fs::remove_dir_all(&self.path).map_err(|source| Failure::file("remove", &self.path, source))
    }
}

#[cfg(strongroom_plaintext_baseline)]
fn unsealed(builder: Builder) -> Result<Builder> {
    Ok(builder.plaintext_baseline())
}

#[cfg(not(strongroom_plaintext_baseline))]
fn unsealed(_: Builder) -> Result<Builder> {
    Err(super::no_baseline())
}

/// A workload under way, as all of its threads see it.
struct Run<'a> {
    workload: Workload,
    site: &'a Site,
    noise: &'a Noise,
    seed: u64,
    key_bytes: usize,
    value_bytes: usize,
    shuffle: Shuffle,
    zipf: Zipf,
    /// Entries that are there from the beginning, or that a fill writes.
    present: u64,
    /// Entries that are there now, those included that are just being inserted.
    entries: &'a AtomicU64,
    operations: u64,
    deadline: Option<Duration>,
    /// Whoever fails, and whoever only accompanied the others, ends here.
    stopped: AtomicBool,
}

struct Outcome {
    operations: u64,
    background_operations: u64,
    seconds: f64,
    bytes: u64,
    latencies: Histogram<u64>,
    /// Seconds since the start, operations until then.
    series: Vec<[f64; 2]>,
}

/// What one thread did.
struct Share {
    operations: u64,
    bytes: u64,
    latencies: Histogram<u64>,
}

impl Run<'_> {
    fn carry_out(&self, threads: u64) -> Result<Outcome> {
        let began = Instant::now();
        let counters: Vec<AtomicU64> = (0..=threads).map(|_| AtomicU64::new(0)).collect();
        let (foreground, background) = counters.split_at(threads as usize);
        let mut outcome = Outcome {
            operations: 0,
            background_operations: 0,
            seconds: 0.0,
            bytes: 0,
            latencies: histogram(),
            series: vec![[0.0, 0.0]],
        };
        thread::scope(|scope| {
            let writer = (self.workload == Workload::Readwhilewriting).then(|| {
                scope.spawn(|| {
                    Actor::new(self, Workload::Overwrite, threads, 0).drive(u64::MAX, began, None, &background[0])
                })
            });
            let (sender, shares) = mpsc::channel();
            for (index, counter) in (0..threads).zip(foreground) {
                let sender = sender.clone();
                let (begin, end) = (self.part(index, threads), self.part(index + 1, threads));
                let start = if self.operations == u64::MAX { 0 } else { begin % self.present };
                scope.spawn(move || {
                    let deadline = self.deadline.map(|duration| began + duration);
                    let share =
                        Actor::new(self, self.workload, index, start).drive(end - begin, began, deadline, counter);
                    // The other end waits for every share, unless one has failed.
                    let _ = sender.send(share);
                });
            }
            drop(sender);
            let collected = self.collect(&shares, foreground, began, &mut outcome);
            outcome.seconds = began.elapsed().as_secs_f64();
            self.stopped.store(true, Ordering::Relaxed);
            if let Some(Ok(share)) = writer.map(thread::ScopedJoinHandle::join) {
                outcome.background_operations = share?.operations;
            }
            collected
        })?;
        outcome.series.push([outcome.seconds, outcome.operations as f64]);
        Ok(outcome)
    }

    /// Where the part of a thread begins.
    fn part(&self, index: u64, threads: u64) -> u64 {
        (u128::from(self.operations) * u128::from(index) / u128::from(threads)) as u64
    }

    /// Wait for all threads, and say meanwhile how far they are.
    fn collect(
        &self,
        shares: &mpsc::Receiver<Result<Share>>,
        counters: &[AtomicU64],
        began: Instant,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut due = SAMPLE_EVERY;
        let mut every = SAMPLE_EVERY;
        loop {
            match shares.recv_timeout(due.saturating_sub(began.elapsed())) {
                Ok(share) => {
                    let share = share?;
                    outcome.operations += share.operations;
                    outcome.bytes += share.bytes;
                    outcome.latencies.add(&share.latencies).map_err(|_| Failure::BrokenPromise {
                        what: "two histograms of one kind do not add up".to_string(),
                    })?;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = began.elapsed().as_secs_f64();
                    let operations = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum();
                    outcome.series.push([seconds, operations as f64]);
                    if outcome.series.len() > SAMPLES_MAX {
                        // A long run: half as many points from here on, and before.
                        let mut index = 0;
                        outcome.series.retain(|_| {
                            index += 1;
                            index % 2 == 1
                        });
                        every *= 2;
                    }
                    due += every;
                    self.tell(operations, seconds)?;
                }
            }
        }
    }

    fn tell(&self, operations: u64, seconds: f64) -> Result<()> {
        let part = match self.deadline {
            Some(deadline) => seconds / deadline.as_secs_f64(),
            None => operations as f64 / self.operations as f64,
        };
        answer(&json!({ "operations": operations, "seconds": seconds, "part": part.min(1.0) }))
    }
}

fn histogram() -> Histogram<u64> {
    // Three digits, from a nanosecond to the longest: bounds that the crate takes.
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).unwrap_or_else(|_| unreachable!("the bounds are constants"))
}

/// One thread of a run.
struct Actor<'a> {
    run: &'a Run<'a>,
    workload: Workload,
    random: Random,
    /// How many steps were done: the next entry of a fill, the version of a value.
    done: u64,
    /// Where in the order of a fill, or in the table, this thread begins.
    start: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    cursor: Option<Cursor>,
    bytes: u64,
}

impl<'a> Actor<'a> {
    fn new(run: &'a Run<'a>, workload: Workload, index: u64, start: u64) -> Actor<'a> {
        Actor {
            run,
            workload,
            random: Random::new(run.seed ^ (index << 32)),
            done: 0,
            start,
            key: vec![0; run.key_bytes],
            value: vec![b'.'; run.value_bytes],
            cursor: None,
            bytes: 0,
        }
    }

    /// Step until the quota or the deadline is reached.
    fn drive(mut self, quota: u64, began: Instant, deadline: Option<Instant>, counter: &AtomicU64) -> Result<Share> {
        let mut latencies = histogram();
        let mut before = began.max(Instant::now());
        while self.done < quota && deadline.is_none_or(|end| before < end) && !self.run.stopped.load(Ordering::Relaxed)
        {
            self.done +=
                self.step(quota - self.done).inspect_err(|_| self.run.stopped.store(true, Ordering::Relaxed))?;
            let now = Instant::now();
            latencies.saturating_record((now - before).as_nanos() as u64);
            before = now;
            counter.store(self.done, Ordering::Relaxed);
        }
        Ok(Share { operations: self.done, bytes: self.bytes, latencies })
    }

    /// Do what is timed at once; gives the number of operations, at most `room`.
    fn step(&mut self, room: u64) -> Result<u64> {
        use Workload::*;
        let run = self.run;
        match self.workload {
            Fillseq => self.put(self.start + self.done, Durability::Buffered)?,
            Fillrandom => self.put(run.shuffle.at(self.start + self.done), Durability::Buffered)?,
            Fillsync => self.put(run.shuffle.at((self.start + self.done) % run.present), Durability::Sync)?,
            Filltables => {
                let number = run.shuffle.at(self.start + self.done);
                self.compose(number);
                run.site.many[(number % run.site.many.len() as u64) as usize].put(&self.key, &self.value)?;
            }
            Fillbatch => return self.put_batch(room.min(BATCH)),
            Overwrite => {
                let number = self.random.below(run.present);
                self.put(number, Durability::Buffered)?;
            }
            Readrandom | Readwhilewriting => {
                let number = self.random.below(run.present);
                self.read(number)?;
            }
            Readmissing => self.read_missing()?,
            Readseq => return self.walk(room.min(BATCH)),
            Seekrandom => {
                let number = self.random.below(run.present.saturating_sub(STEPS).max(1));
                let met = self.scan(number, 1 + STEPS)?;
                if met != run.present.min(1 + STEPS) {
                    return Err(broken(number + met));
                }
            }
            YcsbA => self.read_or_update(50)?,
            YcsbB => self.read_or_update(95)?,
            YcsbC => self.read_or_update(100)?,
            YcsbD if self.random.percent(95) => {
                let newest = run.entries.load(Ordering::Relaxed) - 1;
                let number = newest - run.zipf.rank(&mut self.random);
                self.read(number)?;
            }
            YcsbE if self.random.percent(95) => {
                let number = run.zipf.scrambled(&mut self.random);
                let entries = 1 + self.random.below(SCAN_MAX);
                if self.scan(number, entries)? == 0 {
                    return Err(broken(number));
                }
            }
            YcsbD | YcsbE => {
                let number = run.entries.fetch_add(1, Ordering::Relaxed);
                self.put(number, Durability::Buffered)?;
            }
            YcsbF => {
                let number = run.zipf.scrambled(&mut self.random);
                self.read(number)?;
                if self.random.percent(50) {
                    self.put(number, Durability::Buffered)?;
                }
            }
        }
        Ok(1)
    }

    fn read_or_update(&mut self, reads_percent: u64) -> Result<()> {
        let number = self.run.zipf.scrambled(&mut self.random);
        if self.random.percent(reads_percent) { self.read(number) } else { self.put(number, Durability::Buffered) }
    }

    fn compose(&mut self, number: u64) {
        write_key(&mut self.key, 2 * number);
        self.run.noise.write_value(&mut self.value, number, self.done);
        self.bytes += (self.key.len() + self.value.len()) as u64;
    }

    fn put(&mut self, number: u64, durability: Durability) -> Result<()> {
        self.compose(number);
        Ok(self.run.site.table.put_with(&self.key, &self.value, durability)?)
    }

    fn put_batch(&mut self, entries: u64) -> Result<u64> {
        let mut batch = self.run.site.store.batch();
        for number in self.start + self.done..self.start + self.done + entries {
            self.compose(number);
            batch.put(&self.run.site.table, &self.key, &self.value);
        }
        batch.commit()?;
        Ok(entries)
    }

    fn read(&mut self, number: u64) -> Result<()> {
        write_key(&mut self.key, 2 * number);
        match self.run.site.table.get(&self.key)? {
            Some(value) if is_value(&value, number, self.run.value_bytes) => {
                self.bytes += (self.key.len() + value.len()) as u64;
                Ok(())
            }
            // Another thread has taken the number and is about to insert it.
            None if number >= self.run.present => Ok(()),
            _ => Err(broken(number)),
        }
    }

    fn read_missing(&mut self) -> Result<()> {
        let number = self.random.below(self.run.present);
        write_key(&mut self.key, 2 * number + 1);
        match self.run.site.table.get(&self.key)? {
            None => Ok(()),
            Some(_) => Err(Failure::BrokenPromise { what: format!("something was found behind entry {number}") }),
        }
    }

    /// The next entries, or the first again behind the last.
    fn walk(&mut self, entries: u64) -> Result<u64> {
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => {
                write_key(&mut self.key, 2 * self.start);
                let mut cursor = self.run.site.table.cursor()?;
                // So that the first `next` gives that entry.
                cursor.seek_before(&self.key)?;
                cursor
            }
        };
        for _ in 0..entries {
            let entry = match cursor.next()? {
                Some((key, value)) => Some(key.len() + value.len()),
                None => cursor.first()?.map(|(key, value)| key.len() + value.len()),
            };
            let expected = self.run.key_bytes + self.run.value_bytes;
            if entry != Some(expected) {
                return Err(broken(self.start + self.done));
            }
            self.bytes += expected as u64;
        }
        self.cursor = Some(cursor);
        Ok(entries)
    }

    /// Entries met from this one on, at most so many.
    fn scan(&mut self, number: u64, entries: u64) -> Result<u64> {
        write_key(&mut self.key, 2 * number);
        let mut cursor = self.run.site.table.cursor()?;
        let mut met = 0;
        let mut entry = cursor.seek(&self.key)?;
        while let Some((key, value)) = entry {
            self.bytes += (key.len() + value.len()) as u64;
            met += 1;
            if met == entries {
                break;
            }
            entry = cursor.next()?;
        }
        Ok(met)
    }
}
