//! `strongroom bench`: how fast the engine is on this machine, and what its encryption costs.
//!
//! ```text
//! mod ── args       what can be typed
//!     ├─ workload   what is run: operations, keys, values, random choices
//!     ├─ worker     runs it, in a process per suite             record     what came out, as a line of JSON
//!     ├─ summary    medians, spreads, ratios; the table
//!     └─ report     the page with plots                         plot       plots as SVG
//! ```
//! Suites take turns: each runs a workload before any runs the next, and the one that begins changes with the round. So a machine whose speed
//! changes slows all of them, and the ratio within a round says more than any absolute figure.

pub mod args;
mod plot;
mod record;
mod report;
mod summary;
mod worker;
mod workload;

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value as Json;

use self::args::{Bench, SuiteName};
use self::record::Record;
use self::summary::{Summary, figure};
use self::worker::Order;
use crate::args::Place;
use crate::failure::{Failure, Result};
use crate::output::{line, note};

pub fn run(place: &Place, args: &Bench) -> Result<()> {
    if place.store.is_some() || place.keyring.is_some() {
        return Err(Failure::usage(
            "bench makes stores and keyrings of its own",
            "leave --store and --keyring away; --directory says where the stores lie",
        ));
    }
    if let [suite, folder] = &args.worker[..] {
        let suite =
            SuiteName::from_str(suite, false).map_err(|_| Failure::usage("no such suite", "leave --worker away"))?;
        return worker::serve(args, suite, Path::new(folder));
    }
    // A place that cannot be written is worth knowing before an hour of measuring.
    let page = args.report.as_deref().map(create).transpose()?;
    let records = if args.from.is_empty() { measure(args)? } else { read(&args.from)? };
    if records.windows(2).any(|pair| (&pair[0].build, &pair[0].version) != (&pair[1].build, &pair[1].version)) {
        note!("these results come from different builds: what they cost against each other means nothing");
    }
    let summary = Summary::of(&records);
    line(summary.to_string().trim_end())?;
    if let (Some(mut page), Some(path)) = (page, &args.report) {
        page.write_all(report::page(&records, &summary).as_bytes())
            .map_err(|source| Failure::file("write", path, source))?;
    }
    Ok(())
}

/// Why there is no suite none.
fn no_baseline() -> Failure {
    Failure::usage(
        "this build encrypts everything, and has no suite none",
        "build another one and name it with --baseline: RUSTFLAGS='--cfg strongroom_plaintext_baseline' cargo build --release --features cli --target-dir target/baseline",
    )
}

fn suites(args: &Bench) -> Result<Vec<SuiteName>> {
    let plaintext = cfg!(strongroom_plaintext_baseline) || args.baseline.is_some();
    let mut suites = args.suites.clone();
    if suites.is_empty() {
        suites.extend(plaintext.then_some(SuiteName::None));
        suites.extend([SuiteName::Aes256Gcm, SuiteName::ChaCha20Poly1305]);
    }
    if suites.contains(&SuiteName::None) && !plaintext { Err(no_baseline()) } else { Ok(suites) }
}

/// Run every workload on every suite, round after round.
fn measure(args: &Bench) -> Result<Vec<Record>> {
    let suites = suites(args)?;
    if cfg!(debug_assertions) {
        note!("this build checks itself with debug assertions: its figures mean little");
    }
    let json = args.json.as_deref().map(|path| Ok::<_, Failure>((create(path)?, path))).transpose()?;
    let site = Site::create(args)?;
    let outcome = rounds(args, &suites, &site.folder, json);
    // Also after a failure: what is in there is worth nothing.
    outcome.and_then(|records| site.remove().map(|()| records))
}

fn rounds(args: &Bench, suites: &[SuiteName], folder: &Path, mut json: Option<(File, &Path)>) -> Result<Vec<Record>> {
    let mut workers =
        suites.iter().map(|&suite| Worker::start(args, suite, folder)).collect::<Result<Vec<Worker>>>()?;
    let rounds = args.rounds.get();
    let mut records = Vec::new();
    for &value_bytes in &args.value_size {
        for round in 0..rounds {
            for &workload in &args.workloads {
                for turn in 0..workers.len() {
                    let worker = &mut workers[(round + turn) % suites.len()];
                    let title = format!("{}/{rounds} {} {}", round + 1, workload.name(), worker.suite.name());
                    let record = worker.run(Order { workload, value_bytes, round }, title)?;
                    if let Some((file, path)) = &mut json {
                        writeln!(file, "{}", record.to_json())
                            .map_err(|source| Failure::file("write", path, source))?;
                    }
                    records.push(record);
                }
            }
        }
    }
    workers.into_iter().try_for_each(Worker::end)?;
    Ok(records)
}

/// Results of earlier runs.
fn read(paths: &[PathBuf]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path).map_err(|source| Failure::file("read", path, source))?;
        for (index, line) in text.lines().enumerate() {
            let record = serde_json::from_str::<Json>(line).ok().and_then(|json| Record::from_json(&json));
            records.push(record.ok_or_else(|| {
                Failure::usage(
                    format!("{}, line {}: not a result", path.display(), index + 1),
                    "give files that --json of this version wrote",
                )
            })?);
        }
    }
    Ok(records)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|source| Failure::file("create", path, source))
}

/// The directory that the stores lie in, removed when it is dropped.
struct Site {
    folder: PathBuf,
}

impl Site {
    fn create(args: &Bench) -> Result<Site> {
        let folder = args
            .directory
            .clone()
            .unwrap_or_else(|| env::temp_dir().join(format!("strongroom-bench-{}", std::process::id())));
        if folder.exists() {
            return Err(Failure::Exists {
                what: format!("{} is there already", folder.display()),
                advice: "name a directory that does not exist yet: it is removed afterwards",
            });
        }
        DirBuilder::new().mode(0o700).create(&folder).map_err(|source| Failure::file("create", &folder, source))?;
        Ok(Site { folder })
    }

    fn remove(mut self) -> Result<()> {
        let folder = std::mem::take(&mut self.folder);
        fs::remove_dir_all(&folder).map_err(|source| Failure::file("remove", &folder, source))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.folder.as_os_str().is_empty() {
            // A failure is under way, and is worth more than this one.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A worker process, and the two ends of our talk with it.
struct Worker {
    suite: SuiteName,
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(args: &Bench, suite: SuiteName, folder: &Path) -> Result<Worker> {
        let program = match (&args.baseline, suite) {
            (Some(baseline), SuiteName::None) => baseline.clone(),
            _ => env::current_exe()
                .map_err(|source| Failure::File { what: "cannot find this program".into(), source })?,
        };
        let folder = folder.join(suite.name());
        DirBuilder::new().mode(0o700).create(&folder).map_err(|source| Failure::file("create", &folder, source))?;
        // It reads the same settings that we were given, and knows by one more that it is a worker.
        let mut process = Command::new(&program)
            .args(env::args_os().skip(1))
            .args(["--worker", suite.name()])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Failure::file("run", &program, source))?;
        let (Some(orders), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Failure::BrokenPromise { what: "a worker without pipes".to_string() });
        };
        Ok(Worker { suite, process, orders: Some(orders), answers: BufReader::new(answers) })
    }

    /// Have it run a workload, and show how far it is.
    fn run(&mut self, order: Order, title: String) -> Result<Record> {
        // A worker that has ended says why by itself.
        let _ = self.orders.as_mut().map(|orders| writeln!(orders, "{}", order.line()));
        let progress = Progress::begin(title);
        loop {
            let mut answer = String::new();
            let read = self.answers.read_line(&mut answer);
            if !matches!(read, Ok(1..)) {
                return Err(self.failure());
            }
            let Ok(json) = serde_json::from_str::<Json>(&answer) else { return Err(self.failure()) };
            if let Some(record) = json.get("record").and_then(Record::from_json) {
                progress.end(&record);
                return Ok(record);
            }
            progress.reach(&json);
        }
    }

    /// What a worker that answers no more has ended with. It has said itself what was wrong.
    fn failure(&mut self) -> Failure {
        drop(self.orders.take());
        let code = self.process.wait().ok().and_then(|status| status.code());
        let what = format!("the worker for suite {} has ended", self.suite.name());
        Failure::Worker { what, code: code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code > 0) }
    }

    fn end(mut self) -> Result<()> {
        drop(self.orders.take());
        match self.process.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(self.failure()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Without orders it ends by itself, at the latest when what it is running is over; nobody waits for that after a failure.
        if self.orders.take().is_some() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A bar while a workload runs, and on no terminal a line when it has.
struct Progress {
    title: String,
    bar: Option<ProgressBar>,
}

const BAR: &str = "{prefix} [{bar:30}] {percent} %, {msg}";
const BAR_LENGTH: u64 = 1000;

impl Progress {
    fn begin(title: String) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(BAR_LENGTH).with_style(style.progress_chars("=> ")).with_prefix(title.clone());
            bar.set_message("preparing");
            bar.tick();
            bar
        });
        Progress { title, bar }
    }

    fn reach(&self, answer: &Json) {
        let number = |name: &str| answer.get(name).and_then(Json::as_f64);
        if let (Some(bar), Some(operations), Some(seconds), Some(part)) =
            (&self.bar, number("operations"), number("seconds"), number("part"))
        {
            let left = if part > 0.0 { seconds / part - seconds } else { 0.0 };
            let rate = figure(operations / seconds.max(1e-9));
            bar.set_message(if part < 1.0 { format!("{rate}/s, {left:.0} s left") } else { format!("{rate}/s") });
            bar.set_position((part * BAR_LENGTH as f64) as u64);
        }
    }

    fn end(self, record: &Record) {
        match self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => note!("{}: {} operations/s", self.title, figure(record.operations_per_second())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_the_bar_parses() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
