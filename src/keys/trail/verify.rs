//! Is the trail whole? Every record's MAC, that numbers and MACs follow each other, and that the record that the manifest attests is there.

use std::fmt;

use super::chain::{ChainKeys, Joined, Judged, Path, Point};
use super::record::TrailLink;

/// What came of checking a trail.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct TrailReport {
    /// Records that follow each other.
    pub records: u64,
    /// Number of the first one that is there. If it is not 1, older files were moved away, or removed: both look the same.
    pub first: Option<u64>,
    /// Number of the last one.
    pub last: u64,
    /// Number of the last one that the store attests; it had at least so many.
    pub attested: u64,
    /// When the store attested that, in milliseconds since 1970-01-01 00:00 UTC.
    pub attested_ms: u64,
    /// Records behind the attested one. They are authentic; that none is missing behind them, nothing says.
    pub unattested: u64,
    /// Records chained with a key that is gone, because the system key was rotated since. Their numbers follow; their words were not checked.
    pub unchecked: u64,
    /// Records that were written without the engine knowing for certain, and that another one with the same number replaces.
    pub superseded: u64,
    /// Files whose end was not finished, as a crash leaves it. What stood there was never relied on.
    pub unfinished_files: Vec<String>,
    /// What is wrong.
    pub damages: Vec<TrailDamage>,
}

/// Something that is wrong with a trail.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TrailDamage {
    /// The file, relative to the trail's folder; empty if it is about the trail as a whole.
    pub file: String,
    /// The line, from 1 on; 0 if it is about the trail as a whole.
    pub line: u64,
    /// What is wrong.
    pub fault: TrailFault,
}

/// What is wrong with a record, or a trail.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TrailFault {
    /// A line before the end of a file is no record.
    Unreadable,
    /// The record is not what the store wrote.
    Altered {
        /// The number that it has now.
        sequence: u64,
    },
    /// Records before this one are not there.
    Missing {
        /// Number of the first one.
        first: u64,
        /// Number of the last one.
        last: u64,
    },
    /// The record is there twice.
    Repeated {
        /// Its number.
        sequence: u64,
    },
    /// The record stands behind one that it does not follow.
    OutOfPlace {
        /// Its number.
        sequence: u64,
    },
    /// The trail ends before the last record that the store attests.
    CutOff {
        /// Number of the last record that is there.
        last: u64,
        /// Number of the last one that was there.
        attested: u64,
    },
    /// Another record has the number of the last one that the store attests.
    Replaced {
        /// The number.
        sequence: u64,
    },
}

impl fmt::Display for TrailFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrailFault::Unreadable => f.write_str("a line that is no record"),
            TrailFault::Altered { sequence } => write!(f, "record {sequence} is not what the store wrote"),
            TrailFault::Missing { first, last } if first == last => write!(f, "record {first} is missing"),
            TrailFault::Missing { first, last } => write!(f, "records {first} to {last} are missing"),
            TrailFault::Repeated { sequence } => write!(f, "record {sequence} is there twice"),
            TrailFault::OutOfPlace { sequence } => write!(f, "record {sequence} is out of its place"),
            TrailFault::CutOff { last, attested } => {
                write!(f, "the trail ends at record {last}, and the store attests {attested}")
            }
            TrailFault::Replaced { sequence } => write!(f, "record {sequence} is not the one that the store attests"),
        }
    }
}

impl fmt::Display for TrailDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { self.fault.fmt(f) } else { write!(f, "{}, line {}: {}", self.file, self.line, self.fault) }
    }
}

/// Takes in a trail file by file, oldest first.
#[derive(Debug)]
pub(crate) struct Verifier<'a> {
    keys: &'a ChainKeys,
    path: Option<Path>,
    report: TrailReport,
}

impl<'a> Verifier<'a> {
    pub(crate) fn new(keys: &'a ChainKeys) -> Verifier<'a> {
        Verifier { keys, path: None, report: TrailReport::default() }
    }

    /// The next file.
    pub(crate) fn file(&mut self, name: &str, lines: &[String]) {
        let judged: Vec<Judged> = lines.iter().map(|line| self.keys.judge(line)).collect();
        // What a crash tore stands behind the last whole record; there may be a hole in it. Somebody who changes what stands there gains
        // no more than by cutting it off: if anything follows, or the store attests it, it is missing.
        let is_whole = |judged: &Judged| matches!(judged, Judged::Authentic(_) | Judged::Unknown(_));
        let finished = judged.iter().rposition(is_whole).map_or(0, |last| last + 1);
        if finished < judged.len() {
            self.report.unfinished_files.push(name.to_owned());
        }
        for (line, judged) in (1..).zip(&judged[..finished]) {
            let fault = match judged {
                Judged::NoRecord => Some(TrailFault::Unreadable),
                Judged::Altered(link) => Some(TrailFault::Altered { sequence: link.sequence }),
                Judged::Authentic(link) => self.take(link),
                Judged::Unknown(link) => {
                    self.report.unchecked += 1;
                    self.take(link)
                }
            };
            self.report.damages.extend(fault.map(|fault| TrailDamage { file: name.to_owned(), line, fault }));
        }
    }

    fn take(&mut self, link: &TrailLink) -> Option<TrailFault> {
        let sequence = link.sequence;
        self.report.records += 1;
        let Some(path) = &mut self.path else {
            self.path = Some(Path::from(Point { sequence, mac: link.mac }));
            self.report.first = Some(sequence);
            return None;
        };
        let last = path.last().sequence;
        match path.join(link) {
            Joined::Next => None,
            Joined::Branch { discarded } => {
                self.report.superseded += discarded;
                self.report.records = self.report.records.saturating_sub(discarded);
                None
            }
            Joined::Repeated => {
                self.report.records -= 1;
                Some(TrailFault::Repeated { sequence })
            }
            // The one before may be there and altered; then both are said.
            Joined::Loose if sequence > last => {
                path.jump(link);
                let missing = TrailFault::Missing { first: last + 1, last: sequence - 1 };
                Some(if sequence == last + 1 { TrailFault::OutOfPlace { sequence } } else { missing })
            }
            Joined::Loose => {
                self.report.records -= 1;
                Some(TrailFault::OutOfPlace { sequence })
            }
        }
    }

    /// The end, and what the store attests.
    pub(crate) fn finish(self, head: Point, attested_ms: u64) -> TrailReport {
        let mut report = self.report;
        let last = self.path.as_ref().map(Path::last).unwrap_or_default();
        report.last = last.sequence;
        report.attested = head.sequence;
        report.attested_ms = attested_ms;
        report.unattested = last.sequence.saturating_sub(head.sequence);
        let attested_is_there = head.sequence == 0 || self.path.is_some_and(|path| path.holds(head));
        // One that lies before the first file that is left was moved away with its file.
        let moved_away = report.first.is_some_and(|first| head.sequence < first);
        if !attested_is_there && !moved_away {
            let fault = match last.sequence < head.sequence {
                true => TrailFault::CutOff { last: last.sequence, attested: head.sequence },
                false => TrailFault::Replaced { sequence: head.sequence },
            };
            report.damages.push(TrailDamage { file: String::new(), line: 0, fault });
        }
        report
    }
}
