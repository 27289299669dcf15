//! One engine, which runs what it is told on standard input, one workload a line, and answers with a figure.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use crate::figures::Figure;
use crate::settings::{SMALL_CACHE_BYTES, Settings, WARM_CACHE_BYTES};
use crate::workload::{Access, Open, Peer, Random, Values, Workload, key, shuffled};
use crate::{Result, engines};

/// Entries after each seek.
const STEPS: usize = 50;
/// Entries of a batch.
const BATCH: usize = 100;

/// Read workloads from standard input, run them, write figures to standard output.
pub fn serve(settings: &Settings) -> Result<()> {
    let engine = settings.engines.as_deref().and_then(|engines| engines.first()).map_or("", String::as_str);
    let engine = engines::named(engine).ok_or_else(|| format!("this build has no engine {engine:?}"))?;
    let open = (engine.open)(settings);
    let folder = settings.data.clone().ok_or("a worker needs --data")?;
    let values = Values::new();
    let mut worker = Worker { settings, open, folder, values, order: shuffled(settings.entries), filled: None };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let workload = Workload::named(&line).ok_or_else(|| format!("there is no workload {line:?}"))?;
        let figure = worker.run(workload)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{figure}")?;
        out.flush()?;
    }
    Ok(())
}

struct Worker<'a> {
    settings: &'a Settings,
    open: Box<Open>,
    folder: PathBuf,
    values: Values,
    order: Vec<u32>,
    /// The store that the last random fill left, which reads go to.
    filled: Option<Filled>,
}

struct Filled {
    path: PathBuf,
    /// Open with a cache that holds everything, once something read from it.
    warm: Option<Box<dyn Peer>>,
}

impl Worker<'_> {
    fn run(&mut self, workload: Workload) -> Result<Figure> {
        let (entries, settings) = (self.settings.entries, self.settings);
        match workload {
            Workload::FillSeq | Workload::FillBatch => {
                let path = self.folder.join("sequential");
                let batch = if workload == Workload::FillBatch { BATCH } else { 1 };
                let figure = self.fill(&path, &mut (0..entries), entries, batch, false)?;
                remove(&path)?;
                Ok(figure)
            }
            Workload::FillRandom => {
                let path = self.folder.join("random");
                self.filled = None;
                remove(&path)?;
                let mut numbers = self.order.iter().map(|&number| u64::from(number));
                let figure = self.fill(&path, &mut numbers, entries, 1, false)?;
                self.filled = Some(Filled { path, warm: None });
                Ok(figure)
            }
            Workload::FillSync => {
                let path = self.folder.join("synced");
                let mut numbers = self.order.iter().map(|&number| u64::from(number));
                let figure = self.fill(&path, &mut numbers, settings.synced.min(entries), 1, true)?;
                remove(&path)?;
                Ok(figure)
            }
            Workload::Overwrite => {
                let values = Values::new();
                self.warm(|peer| overwrite(peer, &values, entries, settings.overwrites))
            }
            Workload::ReadRandom => self.warm(|peer| read(peer, entries, settings.reads, 0)),
            Workload::ReadMissing => self.warm(|peer| read(peer, entries, settings.reads, 1)),
            Workload::ReadRandomSmallCache => {
                let Some(filled) = &self.filled else { return Err("reads need fillrandom first".into()) };
                // A store is open once at a time.
                if filled.warm.is_some() {
                    return Err("the small cache comes before the warm one".into());
                }
                let peer =
                    (self.open)(&filled.path, &Access { create: false, cache_bytes: SMALL_CACHE_BYTES, sync: false })?;
                read(&*peer, entries, settings.reads / 4, 0)?;
                read(&*peer, entries, settings.reads, 0)
            }
            Workload::ReadSeq => self.warm(|peer| walk(entries, || peer.scan())),
            Workload::Iterate => self.warm(|peer| walk(entries, || peer.iterate())),
            Workload::SeekRandom => self.warm(|peer| seek(peer, entries, settings.seeks)),
        }
    }

    fn fill(
        &self,
        path: &Path,
        numbers: &mut dyn Iterator<Item = u64>,
        count: u64,
        batch: usize,
        sync: bool,
    ) -> Result<Figure> {
        let peer = (self.open)(path, &Access { create: true, cache_bytes: WARM_CACHE_BYTES, sync })?;
        let mut entries = Vec::with_capacity(batch);
        let clock = Clock::start();
        for number in numbers.take(count as usize) {
            if batch == 1 {
                peer.put(&key(number * 2), &self.values.of(number))?;
                continue;
            }
            entries.push((key(number * 2), self.values.of(number)));
            if entries.len() == batch {
                peer.put_batch(&entries)?;
                entries.clear();
            }
        }
        if !entries.is_empty() {
            peer.put_batch(&entries)?;
        }
        let wall_ns = clock.wall_ns();
        peer.settle()?;
        let figure = clock.figure(count, wall_ns);
        drop(peer);
        Ok(Figure { disk_bytes: disk_bytes(path)?, ..figure })
    }

    /// Run on the filled store, opened with a cache that holds everything and has been read into.
    fn warm(&mut self, work: impl FnOnce(&dyn Peer) -> Result<Figure>) -> Result<Figure> {
        let Some(filled) = &mut self.filled else { return Err("reads need fillrandom first".into()) };
        let peer = match &filled.warm {
            Some(peer) => peer,
            None => {
                let peer =
                    (self.open)(&filled.path, &Access { create: false, cache_bytes: WARM_CACHE_BYTES, sync: false })?;
                // Every block once.
                for number in (0..self.settings.entries).step_by(16) {
                    peer.get(&key(number * 2))?;
                }
                filled.warm.insert(peer)
            }
        };
        work(&**peer)
    }
}

/// Random point reads of keys that are there (`offset` 0) or lie between them (1).
fn read(peer: &dyn Peer, entries: u64, reads: u64, offset: u64) -> Result<Figure> {
    let mut random = Random(7);
    let mut found = 0;
    let clock = Clock::start();
    for _ in 0..reads {
        found += u64::from(peer.get(&key(random.below(entries) * 2 + offset))?.is_some());
    }
    let wall_ns = clock.wall_ns();
    if found != if offset == 0 { reads } else { 0 } {
        return Err(format!("{found} of {reads} reads found something").into());
    }
    Ok(clock.figure(reads, wall_ns))
}

/// Write over random entries.
fn overwrite(peer: &dyn Peer, values: &Values, entries: u64, count: u64) -> Result<Figure> {
    let mut random = Random(11);
    let clock = Clock::start();
    for turn in 0..count {
        let number = random.below(entries);
        peer.put(&key(number * 2), &values.of(number + turn))?;
    }
    let wall_ns = clock.wall_ns();
    peer.settle()?;
    Ok(clock.figure(count, wall_ns))
}

fn walk(entries: u64, walk: impl FnOnce() -> Result<(u64, u64)>) -> Result<Figure> {
    let clock = Clock::start();
    let (met, _) = std::hint::black_box(walk()?);
    let wall_ns = clock.wall_ns();
    if met != entries {
        return Err(format!("a scan met {met} of {entries} entries").into());
    }
    Ok(clock.figure(met, wall_ns))
}

fn seek(peer: &dyn Peer, entries: u64, seeks: u64) -> Result<Figure> {
    let mut random = Random(9);
    let mut met = 0;
    let clock = Clock::start();
    for _ in 0..seeks {
        met += peer.seek(&key(random.below(entries.saturating_sub(STEPS as u64)) * 2), STEPS)?;
    }
    let wall_ns = clock.wall_ns();
    if met as u64 != seeks * STEPS as u64 {
        return Err(format!("seeks met {met} entries").into());
    }
    Ok(clock.figure(seeks, wall_ns))
}

/// Wall time, and the time that all threads of the process were on a CPU.
struct Clock {
    began: Instant,
    cpu_ns: u64,
}

impl Clock {
    fn start() -> Clock {
        Clock { began: Instant::now(), cpu_ns: cpu_ns() }
    }

    fn wall_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// What was done until now; `wall_ns` is what the caller of the engine waited for.
    fn figure(&self, operations: u64, wall_ns: u64) -> Figure {
        Figure { operations, wall_ns, settled_ns: self.wall_ns(), cpu_ns: cpu_ns() - self.cpu_ns, disk_bytes: 0 }
    }
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn remove(path: &Path) -> Result<()> {
    let keyring = path.with_extension("keyring");
    if keyring.exists() {
        std::fs::remove_file(keyring)?;
    }
    if path.is_dir() {
        std::fs::remove_dir_all(path)?;
    }
    Ok(())
}

fn disk_bytes(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    if path.is_file() {
        return Ok(path.metadata()?.len());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
