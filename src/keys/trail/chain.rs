//! The chain: what makes a missing, altered, moved or repeated record show.
//!
//! ```text
//!            record 7                          record 8                          record 9
//! ... {.. "previous": mac 6, "mac": mac 7}  {.. "previous": mac 7, "mac": mac 8}  {.. "previous": mac 8, "mac": mac 9}
//!                                     └────────────────┘               └────────────────┘         │
//!                                             head in the manifest: 9 records, mac 9 <────────────┘   hourly, and at close
//!
//! mac = HMAC-SHA256(chain key, text of the record up to `"mac"` and the byte 1)          chain key: from the system key (crypto/hierarchy.rs)
//! ```
//! - *Altered*: the record's own MAC is wrong, and nobody without the system key makes a right one.
//! - *Missing*, *moved*, *repeated*: numbers and `previous` do not follow.
//! - *Cut off at the end*: the sealed manifest says how many records there were. What was written since then hangs on the chain alone, so whoever
//!   can write the folder can cut off a piece of it, and that is all that he can do. After a clean close there is no such piece.
//!
//! # Branches
//! A record that could not be written for certain may be there all the same. The engine writes the next one under the same number, behind the
//! same predecessor, into a new file. So of two authentic records with one number and one predecessor the later one counts. Only the engine can make
//! such a pair; a copy of a record is the same record, and shows as repeated.

use super::record::{LINK_OPENS, MAC_CLOSES, MAC_OPENS, TrailLink};
use crate::crypto::TrailKey;
use crate::keys::lease::KeySet;
use crate::types::Generation;

/// Where a chain is, and so how it goes on. Before the first record: 0 and zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Point {
    pub(crate) sequence: u64,
    pub(crate) mac: [u8; 32],
}

/// The keys of every generation of the system key that there is.
#[derive(Debug)]
pub(crate) struct ChainKeys(Vec<TrailKey>);

impl ChainKeys {
    /// Those that come from these generations of the system key.
    pub(crate) fn of(system: &KeySet) -> ChainKeys {
        ChainKeys(system.iter().map(|key| key.trail_key()).collect())
    }

    fn generation(&self, generation: u32) -> Option<&TrailKey> {
        self.0.iter().find(|key| key.generation() == Generation(generation))
    }

    /// What is to be thought of a line.
    pub(super) fn judge(&self, line: &str) -> Judged {
        let Some((text, link)) = parse(line) else { return Judged::NoRecord };
        match self.generation(link.generation) {
            Some(key) if key.is_mac(text.as_bytes(), &link.mac) => Judged::Authentic(link),
            Some(_) => Judged::Altered(link),
            None => Judged::Unknown(link),
        }
    }
}

/// What is to be thought of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Judged {
    /// The engine wrote it.
    Authentic(TrailLink),
    /// It has the form of a record, and is not what the engine wrote.
    Altered(TrailLink),
    /// It is chained with a key that is gone.
    Unknown(TrailLink),
    /// It has not the form of a record: not finished, or garbage.
    NoRecord,
}

/// The text that a line's MAC is over, and its place in the chain.
fn parse(line: &str) -> Option<(&str, TrailLink)> {
    let (text, mac) = line.strip_suffix(MAC_CLOSES)?.rsplit_once(MAC_OPENS)?;
    let (_, place) = text.rsplit_once(LINK_OPENS)?;
    let (sequence, rest) = place.split_once(",\"generation\":")?;
    let (generation, previous) = rest.strip_suffix('"')?.split_once(",\"previous\":\"")?;
    let link = TrailLink {
        sequence: number(sequence)?,
        generation: u32::try_from(number(generation)?).ok()?,
        previous: bytes(previous)?,
        mac: bytes(mac)?,
    };
    Some((text, link))
}

/// A number as it is written: digits, no sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Bytes that are written in hexadecimal.
pub(super) fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != 2 * N || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// How a record stands to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Joined {
    /// It follows.
    Next,
    /// It follows an earlier one: `discarded` records that had followed that one do not count.
    Branch { discarded: u64 },
    /// It was there already.
    Repeated,
    /// It does not follow anything that is there.
    Loose,
}

/// Records in the order in which they follow each other.
#[derive(Debug)]
pub(super) struct Path {
    points: Vec<Point>,
}

impl Path {
    /// That goes on from `start`.
    pub(super) fn from(start: Point) -> Path {
        Path { points: vec![start] }
    }

    pub(super) fn last(&self) -> Point {
        self.points.last().copied().unwrap_or_default()
    }

    pub(super) fn holds(&self, point: Point) -> bool {
        self.position(point.sequence).is_some_and(|at| self.points[at] == point)
    }

    /// Take in a record that the engine wrote, unless it is [`Joined::Loose`] or [`Joined::Repeated`].
    pub(super) fn join(&mut self, link: &TrailLink) -> Joined {
        let point = Point { sequence: link.sequence, mac: link.mac };
        if self.holds(point) {
            return Joined::Repeated;
        }
        let before = link.sequence.checked_sub(1).and_then(|sequence| self.position(sequence));
        let Some(before) = before.filter(|&at| self.points[at].mac == link.previous) else {
            return Joined::Loose;
        };
        let discarded = (self.points.len() - 1 - before) as u64;
        self.points.truncate(before + 1);
        self.points.push(point);
        if discarded == 0 { Joined::Next } else { Joined::Branch { discarded } }
    }

    /// Go on behind a gap.
    #[cfg(feature = "trail")]
    pub(super) fn jump(&mut self, link: &TrailLink) {
        self.points.push(Point { sequence: link.sequence, mac: link.mac });
    }

    /// Numbers rise along the path.
    fn position(&self, sequence: u64) -> Option<usize> {
        self.points.binary_search_by_key(&sequence, |point| point.sequence).ok()
    }
}

/// Where the chain ends that goes on from `head` in these lines, oldest first; and whether the head itself is among them.
pub(super) fn end(head: Point, lines: &[String], keys: &ChainKeys) -> (Point, bool) {
    let mut path = Path::from(head);
    let mut head_found = head.sequence == 0;
    for line in lines {
        if let Judged::Authentic(link) = keys.judge(line) {
            head_found |= link.sequence == head.sequence && link.mac == head.mac;
            path.join(&link);
        }
    }
    (path.last(), head_found)
}
