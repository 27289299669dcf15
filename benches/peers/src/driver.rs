//! Starts one worker per engine and has them work in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::Result;
use crate::engines::{self, Engine};
use crate::figures::{Comparison, Figure};
use crate::settings::Settings;
use crate::workload::Workload;

/// Run every workload on every engine, round after round, and print what came out.
pub fn compare(settings: &Settings) -> Result<()> {
    let engines: Vec<String> = match &settings.engines {
        Some(engines) => engines.clone(),
        None => {
            let all = engines::ALL.iter().map(|engine| engine.name);
            all.filter(|name| *name != "none" || settings.baseline.is_some()).map(str::to_owned).collect()
        }
    };
    let known: Vec<&Engine> = engines
        .iter()
        .map(|name| engines::named(name).ok_or_else(|| format!("this build has no engine {name:?}")))
        .collect::<std::result::Result<_, _>>()?;
    let workloads: Vec<Workload> = match &settings.workloads {
        None => Workload::ALL.to_vec(),
        Some(names) => names
            .iter()
            .map(|name| Workload::named(name).ok_or_else(|| format!("there is no workload {name:?}")))
            .collect::<std::result::Result<_, _>>()?,
    };
    let scratch = Scratch::new(settings)?;
    let mut json = settings.json.as_ref().map(std::fs::File::create).transpose()?;
    let mut workers: Vec<Worker> =
        engines.iter().map(|engine| Worker::start(engine, settings, &scratch.path)).collect::<Result<_>>()?;
    let mut comparison = Comparison::new(&engines, &workloads);
    for round in 0..settings.rounds {
        for &workload in &workloads {
            for turn in 0..workers.len() {
                // Whoever starts has the quietest disk, so it is another one in each round.
                let which = (round + turn) % workers.len();
                let figure = workers[which].run(workload)?;
                comparison.add(workload, which, figure);
                let [wall, cpu] = figure.per_operation();
                let (engine, name) = (&engines[which], workload.name());
                eprintln!("round {round} {name:>18} {engine:>13}: {wall:10.0} ns wall, {cpu:10.0} ns CPU");
                if let Some(json) = &mut json {
                    let Figure { operations, wall_ns, settled_ns, cpu_ns, disk_bytes } = figure;
                    writeln!(
                        json,
                        "{{\"round\":{round},\"workload\":\"{name}\",\"engine\":\"{engine}\",\"entries\":{},\"compression\":\"{}\",\
                         \"operations\":{operations},\"wall_ns\":{wall_ns},\"settled_ns\":{settled_ns},\"cpu_ns\":{cpu_ns},\
                         \"disk_bytes\":{disk_bytes}}}",
                        settings.entries,
                        settings.compression()
                    )?;
                }
            }
        }
    }
    print!("{}{}", promises(known.into_iter()), comparison.report());
    for worker in workers {
        worker.end()?;
    }
    Ok(())
}

/// What each engine promises, as a table: a figure means little without it.
pub fn promises<'a>(engines: impl Iterator<Item = &'a Engine>) -> String {
    let mut out = "\n| engine | sealed | survives without a sync | notices changed bytes | differs |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for Engine { name, encryption, durability, integrity, differs, .. } in engines {
        out += &format!("| {name} | {encryption} | {durability} | {integrity} | {differs} |\n");
    }
    out
}

/// A directory for the data of all workers, removed with whatever is in it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(settings: &Settings) -> Result<Scratch> {
        let parent = settings.data.clone().unwrap_or_else(std::env::temp_dir);
        let path = parent.join(format!("strongroom-peers-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

/// An engine in a process of its own, so that its memory and threads are nobody else's.
struct Worker {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(engine: &str, settings: &Settings, scratch: &Path) -> Result<Worker> {
        let program = match (engine, &settings.baseline) {
            ("none", Some(baseline)) => baseline.clone(),
            _ => std::env::current_exe()?,
        };
        let data = scratch.join(engine);
        std::fs::create_dir(&data)?;
        let data = data.to_str().ok_or("the data directory's name is not UTF-8")?;
        let mut process = Command::new(program)
            .arg("worker")
            .args(settings.for_worker(engine, data))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().ok_or("a worker without standard input")?;
        let answers = process.stdout.take().ok_or("a worker without standard output")?;
        Ok(Worker { process, orders, answers: BufReader::new(answers) })
    }

    fn run(&mut self, workload: Workload) -> Result<Figure> {
        writeln!(self.orders, "{}", workload.name())?;
        self.orders.flush()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(format!("a worker ended in {}", workload.name()).into());
        }
        answer.parse()
    }

    fn end(mut self) -> Result<()> {
        drop(self.orders);
        self.process.wait()?;
        Ok(())
    }
}
