//! Many records as few figures: medians over rounds and how far the rounds lie apart, and the table for people.

use std::fmt;

use super::args::SuiteName;
use super::record::{Latency, Record};
use crate::output::grouped;

/// Median, smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    /// None of no numbers.
    pub fn of(numbers: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let (&least, &most) = (numbers.first()?, numbers.last()?);
        let middle = numbers.len() / 2;
        let upper = numbers[middle];
        let median = if numbers.len().is_multiple_of(2) { f64::midpoint(numbers[middle - 1], upper) } else { upper };
        Some(Spread { least, median, most })
    }
}

/// All rounds of one workload, suite and size of values.
pub struct Group<'a> {
    pub workload: &'a str,
    pub suite: &'a str,
    pub value_bytes: u64,
    pub records: Vec<&'a Record>,
}

impl Group<'_> {
    /// Over the rounds.
    pub fn spread(&self, figure: impl Fn(&Record) -> f64) -> Spread {
        let none = Spread { least: 0.0, median: 0.0, most: 0.0 };
        Spread::of(self.records.iter().map(|record| figure(record))).unwrap_or(none)
    }

    /// The median of each percentile.
    pub fn latency(&self) -> Latency {
        let median = |of: fn(&Latency) -> f64| self.spread(|record| of(&record.latency)).median;
        Latency {
            p50: median(|l| l.p50),
            p90: median(|l| l.p90),
            p99: median(|l| l.p99),
            p999: median(|l| l.p999),
            max: median(|l| l.max),
        }
    }
}

/// Groups in the order in which workloads were run, suites in the order of [`SuiteName`]. There is none without records.
pub struct Summary<'a> {
    pub groups: Vec<Group<'a>>,
    pub workloads: Vec<&'a str>,
    pub suites: Vec<&'a str>,
    pub value_sizes: Vec<u64>,
}

impl<'a> Summary<'a> {
    pub fn of(records: &'a [Record]) -> Summary<'a> {
        let mut summary =
            Summary { groups: Vec::new(), workloads: Vec::new(), suites: Vec::new(), value_sizes: Vec::new() };
        for record in records {
            let (workload, suite) = (record.workload.as_str(), record.suite.as_str());
            note_new(&mut summary.workloads, workload);
            note_new(&mut summary.suites, suite);
            note_new(&mut summary.value_sizes, record.value_bytes);
            match summary.groups.iter_mut().find(|group| group.is(workload, suite, record.value_bytes)) {
                Some(group) => group.records.push(record),
                None => {
                    let value_bytes = record.value_bytes;
                    summary.groups.push(Group { workload, suite, value_bytes, records: vec![record] });
                }
            }
        }
        let known = [SuiteName::None, SuiteName::Aes256Gcm, SuiteName::ChaCha20Poly1305].map(SuiteName::name);
        summary.suites.sort_by_key(|suite| known.iter().position(|name| name == suite));
        summary
    }

    pub fn group(&self, workload: &str, suite: &str, value_bytes: u64) -> Option<&Group<'a>> {
        self.groups.iter().find(|group| group.is(workload, suite, value_bytes))
    }

    /// The groups of a workload, one per suite that has one.
    pub fn suites_of(&self, workload: &str, value_bytes: u64) -> impl Iterator<Item = &Group<'a>> {
        self.suites.iter().filter_map(move |suite| self.group(workload, suite, value_bytes))
    }

    /// Whether there is a suite none, and another one to compare with it.
    pub fn has_baseline(&self) -> bool {
        self.suites.len() > 1 && self.suites.contains(&SuiteName::None.name())
    }

    /// How much more this suite took than suite none, 0.05 for 5 %: each round against the same round, because a machine that was slow then
    /// was slow for both.
    pub fn cost(
        &self,
        workload: &str,
        suite: &str,
        value_bytes: u64,
        figure: impl Fn(&Record) -> f64,
    ) -> Option<Spread> {
        let none = SuiteName::None.name();
        if suite == none {
            return None;
        }
        let (these, those) = (self.group(workload, suite, value_bytes)?, self.group(workload, none, value_bytes)?);
        Spread::of(these.records.iter().filter_map(|this| {
            let that = those.records.iter().find(|that| that.round == this.round)?;
            Some(figure(this) / figure(that) - 1.0)
        }))
    }
}

impl Group<'_> {
    fn is(&self, workload: &str, suite: &str, value_bytes: u64) -> bool {
        (self.workload, self.suite, self.value_bytes) == (workload, suite, value_bytes)
    }
}

fn note_new<T: PartialEq>(known: &mut Vec<T>, one: T) {
    if !known.contains(&one) {
        known.push(one);
    }
}

/// Time per operation, in which costs are measured.
pub fn wall_us(record: &Record) -> f64 {
    record.seconds * 1e6 / record.operations.max(1) as f64
}

/// A cost as a percentage: `+4.8 %`.
pub fn percent(cost: f64) -> String {
    format!("{:+.1} %", cost * 100.0)
}

/// A number with three digits that mean something: `1,234,567`, `12.3`, `0.456`.
pub fn figure(number: f64) -> String {
    match number {
        n if n >= 99.5 => grouped(n.round() as u64),
        n if n >= 9.95 => format!("{n:.1}"),
        n if n >= 0.995 => format!("{n:.2}"),
        n => format!("{n:.3}"),
    }
}

/// The table for people: what a terminal shows.
impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![
            [
                "workload", "suite", "value", "ops/s", "least", "most", "MB/s", "CPU us", "p50 us", "p99 us",
                "p99.9 us", "max us", "time", "CPU",
            ]
            .map(str::to_owned),
        ];
        for &value_bytes in &self.value_sizes {
            for &workload in &self.workloads {
                for group in self.suites_of(workload, value_bytes) {
                    rows.push(self.row(group));
                }
            }
        }
        if !self.has_baseline() {
            // Nothing to compare with: no columns for it.
            rows.iter_mut().for_each(|row| row[12..].iter_mut().for_each(String::clear));
        }
        let widths: Vec<usize> = (0..rows[0].len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column < 2 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        let several = self.groups.iter().any(|group| group.records[0].latency_step > 1);
        if several {
            writeln!(f, "\nOne latency of fillbatch and readseq is that of 100 entries.")?;
        }
        writeln!(
            f,
            "Medians over rounds; least and most are those of ops/s. CPU: all threads, per operation, flush and compaction to the end."
        )?;
        if self.has_baseline() {
            writeln!(
                f,
                "The last two columns: time and CPU time per operation against suite none, each round against itself."
            )?;
        }
        Ok(())
    }
}

impl Summary<'_> {
    fn row(&self, group: &Group<'_>) -> [String; 14] {
        let rate = group.spread(Record::operations_per_second);
        let latency = group.latency();
        let cost = |figure: fn(&Record) -> f64| {
            let cost = self.cost(group.workload, group.suite, group.value_bytes, figure);
            cost.map_or_else(String::new, |cost| percent(cost.median))
        };
        [
            group.workload.to_owned(),
            group.suite.to_owned(),
            group.value_bytes.to_string(),
            figure(rate.median),
            figure(rate.least),
            figure(rate.most),
            figure(group.spread(Record::megabytes_per_second).median),
            figure(group.spread(Record::cpu_us).median),
            figure(latency.p50),
            figure(latency.p99),
            figure(latency.p999),
            figure(latency.max),
            cost(wall_us),
            cost(Record::cpu_us),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(suite: &str, round: u64, seconds: f64) -> Record {
        Record {
            workload: "readrandom".to_owned(),
            suite: suite.to_owned(),
            round,
            operations: 1,
            seconds,
            cpu_seconds: seconds,
            ..Record::default()
        }
    }

    /// A machine whose speed changes would otherwise look like a cost.
    #[test]
    fn costs_are_taken_within_a_round() {
        let rounds = [1.0, 10.0, 3.0];
        let mut records = Vec::new();
        for (round, seconds) in (0..).zip(rounds) {
            records.push(record("none", round, seconds));
            records.push(record("aes-256-gcm", round, seconds * 1.05));
        }
        let summary = Summary::of(&records);
        let cost = summary.cost("readrandom", "aes-256-gcm", 0, wall_us).unwrap();
        assert!((cost.median - 0.05).abs() < 1e-9 && cost.most - cost.least < 1e-9);
        assert_eq!(summary.cost("readrandom", "none", 0, wall_us), None);
        assert_eq!(summary.suites, ["none", "aes-256-gcm"]);
        assert!(summary.to_string().contains("+5.0 %"), "{summary}");
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_the_middle_ones() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter()).unwrap();
        assert_eq!(spread, Spread { least: 1.0, median: 2.5, most: 4.0 });
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn figures_have_three_digits_that_mean_something() {
        let check = |number, text: &str| assert_eq!(figure(number), text);
        check(1_234_567.8, "1,234,568");
        check(99.96, "100");
        check(12.34, "12.3");
        check(9.96, "10.0");
        check(1.0, "1.00");
        check(0.1234, "0.123");
        check(0.0, "0.000");
    }
}
