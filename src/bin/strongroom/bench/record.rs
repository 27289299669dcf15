//! What a run of a workload came to: one line of JSON, with everything that is needed to run it again.

use std::fs;
use std::thread;

use hdrhistogram::Histogram;
use serde_json::{Map, Value as Json, json};

/// One workload of one suite in one round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub workload: String,
    pub suite: String,
    pub round: u64,
    pub key_bytes: u64,
    pub value_bytes: u64,
    /// Of the table when the workload began, or that a fill writes.
    pub entries: u64,
    pub threads: u64,
    pub block_bytes: u64,
    pub compression: String,
    pub cache_bytes: u64,
    pub seed: u64,
    pub operations: u64,
    /// Of the thread that writes beside `readwhilewriting`.
    pub background_operations: u64,
    /// Until the last operation was answered.
    pub seconds: f64,
    /// Until what was written was flushed and compacted.
    pub settled_seconds: f64,
    /// User and system time of all threads, flush and compaction included.
    pub cpu_seconds: f64,
    /// Keys and values written or read.
    pub bytes: u64,
    /// The store's size behind a workload that writes, otherwise 0.
    pub disk_bytes: u64,
    /// What one latency is the time of, in operations.
    pub latency_step: u64,
    pub latency: Latency,
    /// Seconds since the start, and operations until then.
    pub series: Vec<[f64; 2]>,
    /// What the store counted meanwhile, by the names of docs/METRICS.md; figures that are 0 are left out.
    pub metrics: Map<String, Json>,
    pub version: String,
    pub build: String,
    pub machine: Machine,
}

/// Percentiles of the time of a step, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Where it ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub cpu: String,
    pub cores: u64,
    pub kernel: String,
    /// How many threads wanted to run in the last minute, on average; the workload's own among them.
    pub load: f64,
}

impl Latency {
    pub fn of(latencies_ns: &Histogram<u64>) -> Latency {
        let at = |quantile| latencies_ns.value_at_quantile(quantile) as f64 / 1e3;
        Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: latencies_ns.max() as f64 / 1e3 }
    }

    /// With their names, as they stand in tables and in JSON.
    pub fn named(&self) -> [(&'static str, f64); 5] {
        [("p50", self.p50), ("p90", self.p90), ("p99", self.p99), ("p99.9", self.p999), ("max", self.max)]
    }
}

impl Record {
    /// An empty record with what is known of this build and machine.
    pub fn here() -> Record {
        Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            machine: Machine::here(),
            ..Record::default()
        }
    }

    pub fn operations_per_second(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }

    /// Millions of bytes of keys and values.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds.max(1e-9)
    }

    /// CPU time per operation, those of a thread in the background among them: its time cannot be told from the others'.
    pub fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / (self.operations + self.background_operations).max(1) as f64
    }

    pub fn to_json(&self) -> Json {
        let latency: Map<String, Json> =
            self.latency.named().into_iter().map(|(name, us)| (name.to_owned(), json!(us))).collect();
        let series: Vec<Json> =
            self.series.iter().map(|[at, done]| json!([(at * 1e3).round() / 1e3, *done as u64])).collect();
        json!({
            "workload": self.workload,
            "suite": self.suite,
            "round": self.round,
            "key_bytes": self.key_bytes,
            "value_bytes": self.value_bytes,
            "entries": self.entries,
            "threads": self.threads,
            "block_bytes": self.block_bytes,
            "compression": self.compression,
            "cache_bytes": self.cache_bytes,
            "seed": self.seed,
            "operations": self.operations,
            "background_operations": self.background_operations,
            "seconds": self.seconds,
            "settled_seconds": self.settled_seconds,
            "cpu_seconds": self.cpu_seconds,
            "operations_per_second": self.operations_per_second(),
            "megabytes_per_second": self.megabytes_per_second(),
            "bytes": self.bytes,
            "disk_bytes": self.disk_bytes,
            "latency_step": self.latency_step,
            "latency_us": latency,
            "series": series,
            "metrics": self.metrics,
            "version": self.version,
            "build": self.build,
            "machine": {
                "cpu": self.machine.cpu,
                "cores": self.machine.cores,
                "kernel": self.machine.kernel,
                "load": self.machine.load,
            },
        })
    }

    /// The record that this object stands for; none if something is missing or of another type.
    pub fn from_json(json: &Json) -> Option<Record> {
        let text = |name: &str| Some(json.get(name)?.as_str()?.to_owned());
        let whole = |name: &str| json.get(name)?.as_u64();
        let number = |name: &str| json.get(name)?.as_f64();
        let latency = |name: &str| json.get("latency_us")?.get(name)?.as_f64();
        let machine = json.get("machine")?;
        let point = |point: &Json| Some([point.get(0)?.as_f64()?, point.get(1)?.as_f64()?]);
        Some(Record {
            workload: text("workload")?,
            suite: text("suite")?,
            round: whole("round")?,
            key_bytes: whole("key_bytes")?,
            value_bytes: whole("value_bytes")?,
            entries: whole("entries")?,
            threads: whole("threads")?,
            block_bytes: whole("block_bytes")?,
            compression: text("compression")?,
            cache_bytes: whole("cache_bytes")?,
            seed: whole("seed")?,
            operations: whole("operations")?,
            background_operations: whole("background_operations")?,
            seconds: number("seconds")?,
            settled_seconds: number("settled_seconds")?,
            cpu_seconds: number("cpu_seconds")?,
            bytes: whole("bytes")?,
            disk_bytes: whole("disk_bytes")?,
            latency_step: whole("latency_step")?,
            latency: Latency {
                p50: latency("p50")?,
                p90: latency("p90")?,
                p99: latency("p99")?,
                p999: latency("p99.9")?,
                max: latency("max")?,
            },
            series: json.get("series")?.as_array()?.iter().map(point).collect::<Option<_>>()?,
            // Files of earlier versions have none.
            metrics: json.get("metrics").and_then(Json::as_object).cloned().unwrap_or_default(),
            version: text("version")?,
            build: text("build")?,
            machine: Machine {
                cpu: machine.get("cpu")?.as_str()?.to_owned(),
                cores: machine.get("cores")?.as_u64()?,
                kernel: machine.get("kernel")?.as_str()?.to_owned(),
                load: machine.get("load")?.as_f64()?,
            },
        })
    }
}

impl Machine {
    /// As Linux tells it; elsewhere some of it stays unknown.
    fn here() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.trim().to_owned()));
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        Machine {
            cpu: cpu.unwrap_or_else(unknown),
            cores: thread::available_parallelism().map_or(0, |cores| cores.get() as u64),
            kernel: if kernel.is_empty() { unknown() } else { format!("Linux {kernel}") },
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a report made later from a file would differ from the one made at once.
    #[test]
    fn a_record_comes_back_from_its_line() {
        let mut latencies = Histogram::new(3).unwrap();
        (1..=1000).for_each(|ns| latencies.record(ns * 1000).unwrap());
        let record = Record {
            workload: "readrandom".to_owned(),
            suite: "none".to_owned(),
            operations: 1000,
            bytes: 116_000,
            seconds: 0.5,
            latency: Latency::of(&latencies),
            series: vec![[0.0, 0.0], [0.5, 1000.0]],
            ..Record::here()
        };
        assert_eq!(Record::from_json(&record.to_json()), Some(record.clone()));
        assert_eq!(Record::from_json(&json!({ "workload": "readrandom" })), None);
        assert!((record.operations_per_second() - 2000.0).abs() < 1e-6);
        assert!((record.latency.p99 - 990.0).abs() < 2.0, "{:?}", record.latency);
    }
}
