//! `strongroom bench` as its user meets it: what it writes for machines and for people, and what it leaves behind.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;
use tempfile::TempDir;

const WORKLOADS: [&str; 16] = [
    "fillseq",
    "fillbatch",
    "fillrandom",
    "overwrite",
    "readrandom",
    "readmissing",
    "readseq",
    "seekrandom",
    "readwhilewriting",
    "fillsync",
    "ycsb-a",
    "ycsb-b",
    "ycsb-c",
    "ycsb-d",
    "ycsb-e",
    "ycsb-f",
];

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command, whose temporary directory lies here, so that what it leaves behind is seen.
    fn bench(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command.env("TMPDIR", self.0.path()).current_dir(self.0.path()).arg("bench").args(args.split_whitespace());
        command.output().unwrap()
    }

    /// Run, expect success, and give the lines of `results.jsonl`.
    fn results(&self, args: &str) -> Vec<Json> {
        let output = self.bench(&format!("{args} --json results.jsonl"));
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        lines(&self.path("results.jsonl"))
    }

    fn fails(&self, args: &str, code: i32) -> String {
        let output = self.bench(args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args}: {message}");
        assert!(!message.contains("panicked"), "{args}: {message}");
        message
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn lines(path: &Path) -> Vec<Json> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(results: &'a [Json], workload: &str) -> &'a Json {
    results.iter().find(|result| result["workload"] == workload).unwrap_or_else(|| panic!("no {workload}"))
}

#[test]
fn every_workload_does_what_it_says_and_leaves_nothing_behind() {
    // Otherwise users would decide about encryption by figures of something else. That what is read is what was written, each workload checks
    // itself, and fails if not.
    let place = Place::new();
    let entries = 3000;
    let all = WORKLOADS.join(",");
    let results = place.results(&format!("--workloads {all} --entries {entries} --suites aes-256-gcm --rounds 1"));
    assert_eq!(place.names(), ["results.jsonl"]);
    assert_eq!(results.len(), WORKLOADS.len());
    for (result, workload) in results.iter().zip(WORKLOADS) {
        assert_eq!(result["workload"], workload);
        let expected = match workload {
            "fillsync" => entries / 1000,
            "seekrandom" | "ycsb-e" => entries / 20,
            _ => entries,
        };
        assert_eq!(result["operations"], expected, "{result}");
        assert_eq!(result["suite"], "aes-256-gcm");
        let bytes = match workload {
            "readmissing" => 0..1,
            "seekrandom" => expected * 51 * 116..expected * 51 * 116 + 1,
            "ycsb-e" => expected * 10 * 116..expected * 100 * 116,
            "ycsb-f" => expected * 116..2 * expected * 116,
            _ => expected * 116..expected * 116 + 1,
        };
        assert!(bytes.contains(&result["bytes"].as_i64().unwrap()), "{bytes:?} {result}");
        for figure in ["seconds", "settled_seconds", "cpu_seconds", "operations_per_second"] {
            assert!(result[figure].as_f64().unwrap() > 0.0, "{figure} {result}");
        }
        let latency = ["p50", "p90", "p99", "p99.9", "max"].map(|name| result["latency_us"][name].as_f64().unwrap());
        assert!(latency.is_sorted() && latency[0] > 0.0, "{result}");
        let series = result["series"].as_array().unwrap();
        assert_eq!(series.last().unwrap()[1], result["operations"]);
        assert!(series.is_sorted_by_key(|point| point[1].as_u64()));
    }
    assert!(of(&results, "readwhilewriting")["background_operations"].as_u64().unwrap() > 0);
    assert!(of(&results, "fillseq")["disk_bytes"].as_u64().unwrap() > 100_000);
    // What ycsb-d inserted was there when ycsb-e began.
    assert!(of(&results, "ycsb-e")["entries"].as_i64().unwrap() > entries);
}

#[test]
fn threads_share_the_work_and_operations_and_seconds_limit_it() {
    // Otherwise a run on eight threads would do the work of one eight times, or never end.
    let place = Place::new();
    let reads = "readrandom,readseq,ycsb-d,readwhilewriting";
    let common = "--entries 2000 --suites chacha20-poly1305 --rounds 1 --value-size 40 --compression none";
    let results = place
        .results(&format!("--workloads fillseq,fillrandom,fillbatch,{reads} {common} --threads 3 --operations 500"));
    for result in &results {
        let fills = result["workload"].as_str().unwrap().starts_with("fill");
        assert_eq!(result["operations"], if fills { 2000 } else { 500 }, "{result}");
    }
    let results = place.results(&format!("--workloads {reads} {common} --threads 2 --duration 0.3"));
    for result in &results {
        let seconds = result["seconds"].as_f64().unwrap();
        assert!((0.3..30.0).contains(&seconds), "{result}");
        assert!(result["series"].as_array().unwrap().len() >= 3, "{result}");
    }
}

#[test]
fn rounds_and_sizes_take_turns_and_the_seed_decides_what_is_done() {
    // Otherwise the suite that always came first would have the quietest disk, and nobody could repeat a result.
    let place = Place::new();
    let args = "--workloads ycsb-a,ycsb-e --entries 1000 --rounds 2 --value-size 100,484 --seed 9";
    let results = place.results(args);
    let suites: Vec<&str> = results.iter().map(|result| result["suite"].as_str().unwrap()).collect();
    let (first, second) = (suites[0], suites[1]);
    assert_ne!(first, second);
    assert_eq!(suites, [first, second, first, second, second, first, second, first].repeat(2));
    assert_eq!(results[8]["value_bytes"], 484);
    // 1000 entries of 116 bytes are as much as 232 of 500.
    assert_eq!(results[8]["entries"], 232);
    let bytes =
        |results: &[Json]| -> Vec<u64> { results.iter().map(|result| result["bytes"].as_u64().unwrap()).collect() };
    assert_eq!(bytes(&place.results(args)), bytes(&results));
    assert_ne!(bytes(&place.results(&args.replace("--seed 9", "--seed 10"))), bytes(&results));
}

/// Results of suite none, as another build would have written them.
fn with_baseline(results: &[Json]) -> String {
    let mut text = String::new();
    for result in results {
        let mut none = result.clone();
        none["suite"] = "none".into();
        none["version"] = "other".into();
        text += &format!("{result}\n{none}\n");
    }
    text
}

#[test]
fn a_report_is_one_well_formed_page_that_asks_nobody_for_anything() {
    // Otherwise it would be half empty without a network, or tell somebody that it is being read.
    let place = Place::new();
    let args = "--workloads fillrandom,readrandom --entries 500 --rounds 2 --value-size 100,200 --suites aes-256-gcm --report one.html";
    let results = place.results(args);
    fs::write(place.path("both.jsonl"), with_baseline(&results)).unwrap();
    let output = place.bench("--from both.jsonl --report both.html");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("+0.0 %"));
    // Unlike builds have unlike speeds, whatever they seal.
    assert!(String::from_utf8_lossy(&output.stderr).contains("different builds"));
    assert_eq!(place.names(), ["both.html", "both.jsonl", "one.html", "results.jsonl"]);

    for name in ["one.html", "both.html"] {
        let page = fs::read_to_string(place.path(name)).unwrap();
        for outside in ["http:", "https:", "//", "<script", "<link", "<img", "@import", "url(", "src="] {
            assert!(!page.contains(outside), "{name}: {outside}");
        }
        let body = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
        assert_well_formed(body);
        assert!(!page.contains("NaN") && !page.contains("inf\""), "{name}");
        for text in ["readrandom", "aes-256-gcm", "prefers-color-scheme: dark", "@media print"] {
            assert!(page.contains(text), "{name}: {text}");
        }
        assert_eq!(page.contains("Cost of encryption"), name == "both.html");
        assert_eq!(page.contains("against the size of values"), name == "both.html");
    }
}

/// Every element is closed, in order, and what is not markup holds none of its characters.
fn assert_well_formed(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        // Styles have selectors with `>`.
        assert!(open.last() == Some(&"style") || !before.contains('>'), "{before}");
        let (tag, after) = after.split_once('>').unwrap();
        rest = after;
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(rest.trim().is_empty(), "{rest}");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_written() {
    // Otherwise somebody's directory would be filled, removed, or a store of theirs be measured to death.
    let place = Place::new();
    fs::create_dir(place.path("mine")).unwrap();
    fs::write(place.path("mine/file"), "precious").unwrap();
    place.fails("--entries 10 --directory mine", 4);
    place.fails("--entries 10 --store mine", 2);
    place.fails("--workloads fillsomething", 2);
    place.fails("--entries 0", 2);
    place.fails("--value-size 5X", 2);
    place.fails("--from missing.jsonl", 3);
    fs::write(place.path("broken.jsonl"), "{\"workload\":\"fillseq\"}\n").unwrap();
    assert!(place.fails("--from broken.jsonl", 2).contains("line 1"));
    fs::remove_file(place.path("broken.jsonl")).unwrap();
    if !cfg!(strongroom_plaintext_baseline) {
        // It says how to get a build that has one.
        let message = place.fails("--entries 10 --suites none", 2);
        assert!(message.contains("--cfg strongroom_plaintext_baseline") && message.contains("--baseline"), "{message}");
    }
    // A worker that fails passes its exit code on, and the stores are removed all the same: no block is so small.
    let message = place.fails("--entries 10 --workloads fillseq --block-size 1", 2);
    assert!(message.contains("block_bytes"), "{message}");
    assert_eq!(place.names(), ["mine"]);
    assert_eq!(fs::read_to_string(place.path("mine/file")).unwrap(), "precious");
    let results = place.results("--entries 10 --workloads fillseq --rounds 1 --suites aes-256-gcm --directory new");
    assert_eq!(results.len(), 1);
    assert_eq!(place.names(), ["mine", "results.jsonl"]);
}

#[cfg(strongroom_plaintext_baseline)]
#[test]
fn a_baseline_build_measures_suite_none_beside_the_others() {
    // Otherwise nobody could say what encryption costs.
    let place = Place::new();
    let results = place.results("--workloads fillseq,readrandom --entries 1000 --rounds 1 --report page.html");
    let suites: Vec<&str> = results.iter().map(|result| result["suite"].as_str().unwrap()).collect();
    assert_eq!(suites, ["none", "aes-256-gcm", "chacha20-poly1305"].repeat(2));
    assert!(fs::read_to_string(place.path("page.html")).unwrap().contains("Cost of encryption"));
}
