//! Figures, their medians and ratios, and the tables that show them.

use std::fmt;
use std::str::FromStr;

use crate::Result;
use crate::workload::Workload;

/// What one run of a workload cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figure {
    pub operations: u64,
    /// Until the last operation was answered.
    pub wall_ns: u64,
    /// Until background work had come to rest.
    pub settled_ns: u64,
    /// On a CPU, all threads, background work to the end included.
    pub cpu_ns: u64,
    /// Size of the store afterwards; 0 for reads.
    pub disk_bytes: u64,
}

impl Figure {
    /// Wall and CPU time per operation.
    pub fn per_operation(&self) -> [f64; 2] {
        let operations = self.operations.max(1) as f64;
        [self.wall_ns as f64 / operations, self.cpu_ns as f64 / operations]
    }
}

/// As a worker tells it to the driver.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { operations, wall_ns, settled_ns, cpu_ns, disk_bytes } = self;
        write!(f, "{operations} {wall_ns} {settled_ns} {cpu_ns} {disk_bytes}")
    }
}

impl FromStr for Figure {
    type Err = Box<dyn std::error::Error>;

    fn from_str(line: &str) -> Result<Figure> {
        let numbers = line.split_whitespace().map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
        let &[operations, wall_ns, settled_ns, cpu_ns, disk_bytes] = &numbers[..] else {
            return Err(format!("not a figure: {line:?}").into());
        };
        Ok(Figure { operations, wall_ns, settled_ns, cpu_ns, disk_bytes })
    }
}

/// All figures of a comparison: per workload and engine, one per round.
#[derive(Debug)]
pub struct Comparison {
    engines: Vec<String>,
    rows: Vec<(Workload, Vec<Vec<Figure>>)>,
}

impl Comparison {
    pub fn new(engines: &[String], workloads: &[Workload]) -> Comparison {
        let empty = vec![Vec::new(); engines.len()];
        Comparison { engines: engines.to_vec(), rows: workloads.iter().map(|&w| (w, empty.clone())).collect() }
    }

    pub fn add(&mut self, workload: Workload, engine: usize, figure: Figure) {
        for (row, figures) in &mut self.rows {
            if *row == workload {
                figures[engine].push(figure);
            }
        }
    }

    /// Markdown: medians per operation, then each Strongroom against every engine.
    pub fn report(&self) -> String {
        let mut out = self.medians();
        for of in ["aes", "chacha", "none"] {
            if let Some(of) = self.engines.iter().position(|engine| engine == of) {
                out += &self.ratios(of);
            }
        }
        out
    }

    fn medians(&self) -> String {
        let head: String = self.engines.iter().map(|engine| format!(" {engine} wall / CPU |")).collect();
        let rule: String = self.engines.iter().map(|_| " ---: |").collect();
        let mut out = format!(
            "\nMedian per operation, wall / CPU of all threads, in microseconds:\n\n| workload |{head}\n| --- |{rule}\n"
        );
        for (workload, engines) in &self.rows {
            out += &format!("| {} |", workload.name());
            for figures in engines {
                let [wall, cpu] = [0, 1].map(|which| spread(figures.iter().map(|f| f.per_operation()[which])).median);
                out += &format!(" {:.2} / {:.2} |", wall / 1e3, cpu / 1e3);
            }
            out.push('\n');
        }
        out += "\nSize on disk after the fill, in MB:\n\n";
        for (workload, engines) in &self.rows {
            let sizes: Vec<f64> = engines
                .iter()
                .map(|figures| spread(figures.iter().map(|f| f.disk_bytes as f64)).median / 1e6)
                .collect();
            if sizes.iter().any(|&size| size > 0.0) {
                let sizes = self.engines.iter().zip(sizes).map(|(engine, size)| format!("{engine} {size:.1}"));
                out += &format!("* {}: {}\n", workload.name(), sizes.collect::<Vec<_>>().join(", "));
            }
        }
        out
    }

    /// Times of one engine as multiples of every other's.
    fn ratios(&self, of: usize) -> String {
        let others: Vec<usize> = (0..self.engines.len()).filter(|other| *other != of).collect();
        let mut out = String::new();
        for (which, what) in ["Time", "CPU time of all threads"].into_iter().enumerate() {
            let head: String = others.iter().map(|&to| format!(" {} |", self.engines[to])).collect();
            let rule: String = others.iter().map(|_| " ---: |").collect();
            out += &format!(
                "\n{what} of {} as a multiple of the other's, below 1 is faster; median over rounds (smallest to largest):\n\n| workload |{head}\n| --- |{rule}\n",
                self.engines[of]
            );
            for (workload, engines) in &self.rows {
                out += &format!("| {} |", workload.name());
                for &to in &others {
                    let pairs = engines[of].iter().zip(&engines[to]);
                    out += &format!(
                        " {} |",
                        spread(pairs.map(|(a, b)| a.per_operation()[which] / b.per_operation()[which]))
                    );
                }
                out.push('\n');
            }
        }
        out
    }
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.least, self.most)
    }
}

fn spread(numbers: impl Iterator<Item = f64>) -> Spread {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    let at = |index: usize| numbers.get(index).copied().unwrap_or(f64::NAN);
    let middle = numbers.len() / 2;
    let median =
        if numbers.len().is_multiple_of(2) && middle > 0 { (at(middle - 1) + at(middle)) / 2.0 } else { at(middle) };
    Spread { least: at(0), median, most: at(numbers.len().wrapping_sub(1)) }
}
