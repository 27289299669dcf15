//! How far a long job is, and how fast it was.
//!
//! A bar with rate and remaining time when standard error is a terminal; otherwise a plain line every
//! ten seconds, so that a log shows that the job lives without being flooded.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{grouped, note, size};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// A job under way. May be shared by threads.
pub struct Progress {
    what: &'static str,
    unit: &'static str,
    /// 0 if it is not known.
    total_bytes: AtomicU64,
    bar: Option<ProgressBar>,
    started: Instant,
    items: AtomicU64,
    bytes: AtomicU64,
    lines: AtomicU64,
}

impl Progress {
    /// Begin a job over `total_bytes`, if that is known, in items called `unit` ("files", "lines").
    pub fn begin(what: &'static str, unit: &'static str, total_bytes: Option<u64>) -> Progress {
        Progress {
            what,
            unit,
            total_bytes: AtomicU64::new(total_bytes.unwrap_or(0)),
            bar: io::stderr().is_terminal().then(|| bar(what, total_bytes)),
            started: Instant::now(),
            items: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        }
    }

    /// So many items and bytes more are done.
    pub fn add(&self, items: u64, bytes: u64) {
        self.set(
            self.items.fetch_add(items, Ordering::Relaxed) + items,
            self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes,
        );
    }

    /// So many items and bytes are done in all.
    pub fn reach(&self, items: u64, bytes: u64) {
        self.items.store(items, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.set(items, bytes);
    }

    /// The total has become known.
    pub fn expect(&self, total_bytes: u64) {
        if self.total_bytes.swap(total_bytes, Ordering::Relaxed) != total_bytes
            && let Some(bar) = &self.bar
        {
            bar.set_length(total_bytes);
            bar.set_style(style(TEMPLATE));
        }
    }

    fn set(&self, items: u64, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            // The bar redraws at most twenty times a second; formatting for each small file would cost more.
            if items.is_multiple_of(64) {
                bar.set_message(format!("{} {}", grouped(items), self.unit));
            }
            return;
        }
        let due = self.started.elapsed().as_secs() / LINE_EVERY.as_secs();
        if due > self.lines.fetch_max(due, Ordering::Relaxed) {
            let of = match self.total_bytes.load(Ordering::Relaxed) {
                0 => String::new(),
                total => format!(" of {}", size(total)),
            };
            note!("{}: {} {}, {}{of}", self.what, grouped(items), self.unit, size(bytes));
        }
    }

    /// The job is done: clear the bar and say what it came to.
    pub fn end(self) -> Rate {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        Rate {
            items: self.items.into_inner(),
            bytes: self.bytes.into_inner(),
            unit: self.unit,
            elapsed: self.started.elapsed(),
        }
    }
}

const TEMPLATE: &str =
    "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left, {msg}";
const TEMPLATE_WITHOUT_TOTAL: &str = "{prefix} {spinner} {decimal_bytes} {decimal_bytes_per_sec}, {elapsed}, {msg}";

fn bar(what: &'static str, total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (ProgressBar::new(total), TEMPLATE),
        None => (ProgressBar::new_spinner(), TEMPLATE_WITHOUT_TOTAL),
    };
    bar.set_style(style(template));
    bar.set_prefix(what);
    bar
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse would leave the plain style; a test sees to it that ours do.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// What a job came to.
#[derive(Clone, Copy)]
pub struct Rate {
    pub items: u64,
    pub bytes: u64,
    pub unit: &'static str,
    pub elapsed: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A job too short to time gets no division by zero and no infinite rate.
        let seconds = self.elapsed.as_secs_f64().max(1e-6);
        write!(
            f,
            "{} {}, {} in {seconds:.2} s ({:.1} MB/s, {} {}/s)",
            grouped(self.items),
            self.unit,
            size(self.bytes),
            self.bytes as f64 / 1e6 / seconds,
            grouped((self.items as f64 / seconds) as u64),
            self.unit,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_of_the_bars_parse() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        assert!(ProgressStyle::with_template(TEMPLATE_WITHOUT_TOTAL).is_ok());
    }

    #[test]
    fn a_rate_is_printed_with_its_units() {
        let rate = Rate { items: 3_000, bytes: 5_000_000, unit: "files", elapsed: Duration::from_millis(500) };
        assert_eq!(rate.to_string(), "3,000 files, 5.0 MB in 0.50 s (10.0 MB/s, 6,000 files/s)");
    }
}
