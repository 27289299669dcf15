//! The page: one file with everything in it, no script, nothing from elsewhere; light, dark, and black on white when printed.
//!
//! ```text
//! head            one figure per suite: what encryption costs here
//! cost            per workload, CPU time and time, against suite none          (with a baseline)
//! value sizes     the same against the size of values                         (with several sizes)
//! workloads       per workload: throughput, latency, throughput over the run
//! figures         all of it as a table; settings; machine
//! ```
//! Elements are all closed, as in XML, so that any parser can check the page.

use std::fmt::Write;

use clap::ValueEnum;

use super::args::SuiteName;
use super::plot::{self, Axes, Mark, NARROW, class, escaped, rate, round_rate, short, time};
use super::record::Record;
use super::summary::{Group, Spread, Summary, figure, percent, wall_us};
use super::workload::Workload;
use crate::output::grouped;

const STYLE: &str = include_str!("report.css");

/// The whole page.
pub fn page(records: &[Record], summary: &Summary<'_>) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Strongroom: what encryption costs here</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    if let Some(first) = records.first() {
        head(&mut out, first, summary);
        if records.iter().any(|record| record.build == "debug") {
            out.push_str(
                "<p><b>A build that checks itself with debug assertions ran here: its figures mean little.</b></p>\n",
            );
        }
        if summary.has_baseline() {
            costs(&mut out, summary);
            value_sizes(&mut out, summary);
        }
        workloads(&mut out, summary);
        figures(&mut out, summary);
        circumstances(&mut out, records, summary);
    } else {
        out.push_str("<h1>Strongroom</h1>\n<p>There are no results.</p>\n");
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The suites that cost something.
fn sealing<'a>(summary: &'a Summary<'a>) -> impl Iterator<Item = &'a str> {
    summary.suites.iter().copied().filter(|suite| *suite != SuiteName::None.name())
}

/// The size of values that plots of single workloads are of: 100 bytes where there is such a run.
fn main_size(summary: &Summary<'_>) -> u64 {
    let sizes = &summary.value_sizes;
    sizes.iter().copied().find(|size| *size == 100).unwrap_or(sizes[0])
}

fn head(out: &mut String, first: &Record, summary: &Summary<'_>) {
    let title = if summary.has_baseline() { "What encryption costs here" } else { "How fast Strongroom is here" };
    let rounds = summary.groups.iter().map(|group| group.records.len()).max().unwrap_or(0);
    let _ = write!(
        out,
        "<h1>{title}</h1>\n<p class=\"soft\">Strongroom {} on {}, {} cores, {}. Keys of {} and values of {} bytes, {} entries, {} {}, \
         rounds: {rounds}.</p>\n",
        escaped(&first.version),
        escaped(&first.machine.cpu),
        first.machine.cores,
        escaped(&first.machine.kernel),
        first.key_bytes,
        listed(&summary.value_sizes),
        grouped(entries(summary, main_size(summary))),
        first.threads,
        if first.threads == 1 { "thread" } else { "threads" },
    );
    if summary.has_baseline() {
        out.push_str("<div class=\"keys\">\n");
        for suite in sealing(summary) {
            let middle = |figure: fn(&Record) -> f64| {
                let costs = summary.workloads.iter().flat_map(|workload| {
                    summary.value_sizes.iter().filter_map(|size| summary.cost(workload, suite, *size, figure))
                });
                Spread::of(costs.map(|cost| cost.median)).map_or_else(String::new, |spread| percent(spread.median))
            };
            let _ = writeln!(
                out,
                "<div class=\"key\"><span><i class=\"swatch {}\"></i>{}</span><b>{}</b><span>CPU time; {} time. Median of workloads</span></div>",
                class(suite),
                escaped(suite),
                middle(Record::cpu_us),
                middle(wall_us)
            );
        }
        out.push_str("</div>\n");
    } else {
        out.push_str(
            "<p>What encryption costs needs results of suite none beside these: see <code>strongroom bench --help</code>, <code>--baseline</code>.</p>\n",
        );
    }
}

/// How many entries a fill writes. Some workloads add to them.
fn entries(summary: &Summary<'_>, value_bytes: u64) -> u64 {
    let of_size = summary.groups.iter().filter(|group| group.value_bytes == value_bytes);
    of_size.map(|group| group.records[0].entries).min().unwrap_or(0)
}

fn listed<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn legend(out: &mut String, suites: &[&str]) {
    out.push_str("<div class=\"legend\">");
    for suite in suites {
        let _ = write!(out, "<span><i class=\"swatch {}\"></i>{}</span>", class(suite), escaped(suite));
    }
    out.push_str("</div>\n");
}

fn costs(out: &mut String, summary: &Summary<'_>) {
    out.push_str(
        "<h2>Cost of encryption</h2>\n<p class=\"soft\">More time per operation than suite none, which does everything else the same. Each round is compared with \
         itself; bars are medians, thin lines go from the least to the most, and on over the edge if they reach it. CPU time counts all threads and is the \
         steadier figure; time depends on what else the machine does.</p>\n",
    );
    legend(out, &sealing(summary).collect::<Vec<_>>());
    let size = main_size(summary);
    let rows = |figure: fn(&Record) -> f64| {
        let mut rows = Vec::new();
        for &workload in &summary.workloads {
            let marks = sealing(summary)
                .filter_map(|suite| Some(Mark { suite, spread: summary.cost(workload, suite, size, figure)? }));
            let marks: Vec<Mark<'_>> = marks.collect();
            if !marks.is_empty() {
                rows.push((workload, marks));
            }
        }
        rows
    };
    out.push_str("<div class=\"card two costs\">\n");
    for (label, figure) in
        [("CPU time per operation", Record::cpu_us as fn(&Record) -> f64), ("Time per operation", wall_us)]
    {
        let plot = plot::costs(label, &rows(figure));
        let _ = writeln!(out, "<figure><figcaption>{label}, against suite none</figcaption>{plot}</figure>");
    }
    out.push_str("</div>\n");
}

fn value_sizes(out: &mut String, summary: &Summary<'_>) {
    let mut sizes = summary.value_sizes.clone();
    // A logarithmic scale has no zero.
    sizes.retain(|size| *size > 0);
    sizes.sort_unstable();
    if sizes.len() < 2 {
        return;
    }
    out.push_str(
        "<h2>Cost against the size of values</h2>\n<p class=\"soft\">CPU time per operation, against suite none. Every size with as many entries as make the same amount of data.</p>\n",
    );
    legend(out, &sealing(summary).collect::<Vec<_>>());
    out.push_str("<div class=\"card three sizes\">\n");
    for &workload in &summary.workloads {
        let runs: Vec<(&str, Vec<(f64, f64)>)> = sealing(summary)
            .map(|suite| {
                let cost = |size: u64| Some((size as f64, summary.cost(workload, suite, size, Record::cpu_us)?.median));
                (suite, sizes.iter().filter_map(|size| cost(*size)).collect())
            })
            .collect();
        let axes = Axes {
            width: NARROW,
            height: 160.0,
            sizes: Some(sizes.iter().map(|size| *size as f64).collect()),
            unit_x: " B",
            label_y: |cost| format!("{:+.0} %", cost * 100.0).replace("+0 %", "0"),
        };
        let plot = plot::lines(&format!("cost of {workload} against value size"), &axes, &runs);
        let _ = writeln!(out, "<figure><figcaption>{}</figcaption>{plot}</figure>", escaped(workload));
    }
    out.push_str("</div>\n");
}

fn workloads(out: &mut String, summary: &Summary<'_>) {
    let size = main_size(summary);
    let _ = write!(
        out,
        "<h2>Throughput and latency</h2>\n<p class=\"soft\">Values of {size} bytes. Left: operations a second, median of the rounds, with the least and the most. Middle: how long \
         one took, on a logarithmic scale; dots from large to small are the medians of p50, p90, p99, p99.9 and the longest. Right: operations a second in the course of each \
         round.</p>\n",
    );
    legend(out, &summary.suites);
    for &workload in &summary.workloads {
        let groups: Vec<&Group<'_>> = summary.suites_of(workload, size).collect();
        let Some(first) = groups.first() else { continue };
        let step = first.records[0].latency_step;
        let _ = write!(
            out,
            "<section class=\"card\"><header><h3>{}</h3><span>{}{}</span></header>\n<div class=\"three\">",
            escaped(workload),
            description(workload),
            if step > 1 { format!(". One latency is that of {step} entries") } else { String::new() },
        );
        let marks: Vec<Mark<'_>> = groups
            .iter()
            .map(|group| Mark { suite: group.suite, spread: group.spread(Record::operations_per_second) })
            .collect();
        let rows: Vec<_> = groups.iter().map(|group| (group.suite, group.latency().named())).collect();
        let least = rows.iter().map(|(_, named)| named[0].1).fold(f64::INFINITY, f64::min);
        let most = rows.iter().map(|(_, named)| named[4].1).fold(0.0, f64::max);
        let axes = Axes { width: NARROW, height: 108.0, sizes: None, unit_x: " s", label_y: round_rate };
        for (caption, plot) in [
            ("operations a second", plot::bars(&format!("throughput of {workload}"), &marks)),
            ("latency", plot::dots(&format!("latency of {workload}"), &rows, (least, most))),
            ("operations a second, over time", plot::lines(&format!("{workload} over time"), &axes, &runs(&groups))),
        ] {
            let _ = write!(out, "<figure><figcaption>{caption}</figcaption>{plot}</figure>");
        }
        out.push_str("</div></section>\n");
    }
}

/// What `--help` says about a workload; nothing about one that this version does not know.
fn description(workload: &str) -> String {
    let known = Workload::from_str(workload, false).ok().and_then(|workload| workload.to_possible_value());
    known.and_then(|value| value.get_help().map(|help| escaped(&help.to_string()))).unwrap_or_default()
}

/// Per suite and round, the rate between two looks at the counters, placed in the middle between them.
fn runs<'a>(groups: &[&Group<'a>]) -> Vec<(&'a str, Vec<(f64, f64)>)> {
    let mut runs = Vec::new();
    for group in groups {
        for record in &group.records {
            let between =
                record.series.windows(2).filter(|pair| pair[1][0] - pair[0][0] > 0.02 || record.series.len() == 2);
            let rates = between.map(|pair| {
                let [[from, before], [to, after]] = [pair[0], pair[1]];
                (f64::midpoint(from, to), (after - before).max(0.0) / (to - from).max(1e-9))
            });
            runs.push((group.suite, rates.collect()));
        }
    }
    runs
}

fn figures(out: &mut String, summary: &Summary<'_>) {
    out.push_str(
        "<h2>Figures</h2>\n<p class=\"soft\">Medians of the rounds; in brackets the least and the most. Under time and CPU, on the right: against suite none.</p>\n\
         <div class=\"scroll\"><table>\n<thead><tr><th class=\"left\">workload</th><th>value</th><th class=\"left\">suite</th><th>operations/s</th><th>least to most</th>\
         <th>MB/s</th><th>CPU/op</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th><th>disk</th><th>time</th><th>CPU</th></tr></thead>\n",
    );
    for &value_bytes in &summary.value_sizes {
        for &workload in &summary.workloads {
            let groups: Vec<&Group<'_>> = summary.suites_of(workload, value_bytes).collect();
            if groups.is_empty() {
                continue;
            }
            out.push_str("<tbody class=\"group\">");
            for (index, group) in groups.iter().enumerate() {
                row(out, summary, group, index == 0);
            }
            out.push_str("</tbody>\n");
        }
    }
    out.push_str("</table></div>\n");
}

fn row(out: &mut String, summary: &Summary<'_>, group: &Group<'_>, first: bool) {
    let operations = group.spread(Record::operations_per_second);
    let cost = |figure: fn(&Record) -> f64| {
        let cost = summary.cost(group.workload, group.suite, group.value_bytes, figure);
        cost.map_or_else(String::new, |cost| percent(cost.median))
    };
    let disk = group.spread(|record| record.disk_bytes as f64).median;
    let (workload, size) =
        if first { (escaped(group.workload), group.value_bytes.to_string()) } else { Default::default() };
    let _ = write!(
        out,
        "<tr><td class=\"left\">{workload}</td><td>{size}</td><td class=\"left\">{}</td><td>{}</td><td>{} to {}</td><td>{}</td><td>{}</td>",
        short(group.suite),
        figure(operations.median),
        rate(operations.least),
        rate(operations.most),
        figure(group.spread(Record::megabytes_per_second).median),
        time(group.spread(Record::cpu_us).median),
    );
    for (_, us) in group.latency().named() {
        let _ = write!(out, "<td>{}</td>", time(us));
    }
    let disk = if disk > 0.0 { format!("{} MB", figure(disk / 1e6)) } else { String::new() };
    let _ = write!(out, "<td>{disk}</td><td>{}</td><td>{}</td></tr>", cost(wall_us), cost(Record::cpu_us));
}

/// Settings and machine, as far as they are the same in all results; where they differ, all that occur.
fn circumstances(out: &mut String, records: &[Record], summary: &Summary<'_>) {
    let all = |of: &dyn Fn(&Record) -> String| {
        let mut seen: Vec<String> = Vec::new();
        for value in records.iter().map(of) {
            if !seen.contains(&value) {
                seen.push(value);
            }
        }
        escaped(&seen.join("; "))
    };
    let load = Spread::of(records.iter().map(|record| record.machine.load));
    let load = load
        .map_or_else(String::new, |load| format!("{:.1} to {:.1}, median {:.1}", load.least, load.most, load.median));
    let entries = summary.value_sizes.iter().map(|size| {
        let count = grouped(entries(summary, *size));
        if summary.value_sizes.len() > 1 { format!("{count} with {size} bytes") } else { count }
    });
    let settings = [
        ("Entries", entries.collect::<Vec<_>>().join("; ")),
        ("Key", all(&|record| format!("{} bytes", record.key_bytes))),
        ("Value", format!("{} bytes, half of them noise", listed(&summary.value_sizes))),
        ("Threads", all(&|record| record.threads.to_string())),
        ("Block", all(&|record| format!("{} bytes", record.block_bytes))),
        ("Compression", all(&|record| record.compression.clone())),
        ("Cache", all(&|record| format!("{} MiB", record.cache_bytes >> 20))),
        ("Seed", all(&|record| record.seed.to_string())),
        ("Durability", "log on; no sync per operation, except in fillsync".to_owned()),
        ("Version", all(&|record| format!("{}, {} build", record.version, record.build))),
        ("CPU", all(&|record| format!("{}, {} cores", record.machine.cpu, record.machine.cores))),
        ("System", all(&|record| record.machine.kernel.clone())),
        ("Load average", format!("{load} (this run's own threads included)")),
    ];
    out.push_str("<h2>Settings and machine</h2>\n<dl>\n");
    for (name, value) in settings {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{value}</dd>");
    }
    out.push_str("</dl>\n");
}
