//! Every checksum of every file, without any key.
//!
//! `format/scrub.rs` knows how to walk a file; here are the files, and what their headers and names say about each other in clear:
//! kind, number, table and store. Copies must be the same, and the two files without which no store opens must be there.
//!
//! # Why this needs no lock
//! A file of a store is written once, under a name of its own, and then only deleted. `CURRENT` and key files are replaced as a
//! whole. The exceptions are the log and the manifest, which grow at their ends, and a sorted table or segment that is just
//! being written. So a file that is gone is no news, and neither is one that breaks off: whether that is a crash's work, a writer's
//! or a failing disk's cannot be told without a key. It is reported apart ([`ScrubReport::unfinished`]).

use std::collections::BTreeSet;
use std::ops::Range;

use super::{DAMAGES_MAX, Inspection, Listed, Meter, Progress, Source, What, list};
use crate::error::{Error, Result};
use crate::format::frame::{FileHeader, HEADER_BYTES};
use crate::format::keyfile::KEY_FILE_BYTES_MAX;
use crate::format::scrub::Scrub;
use crate::format::{FileName, Where};
use crate::io::directory::Directory;
use crate::types::{FileKind, StoreId};

/// What [`scrub`](super::scrub) found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Files that were read.
    pub files: u64,
    /// Frames whose checksums are right.
    pub frames: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes that are not the bytes that were written, in order of files and offsets; of one file at most
    /// [`DAMAGES_MAX`] places.
    pub damages: Vec<Error>,
    /// Ends of files behind which nothing whole follows: of the log, of a manifest, or of a sorted table that breaks off.
    ///
    /// A crash leaves such ends, and a store that is open elsewhere has them from moment to moment. In a store that was
    /// closed they are damage. [`verify`](super::verify) can tell.
    pub unfinished: Vec<Error>,
    /// Names, relative to the store, that are none of a store's files: what a crash left of a file that was being replaced, and
    /// whatever somebody else put there. They were not read.
    pub strays: Vec<String>,
}

impl ScrubReport {
    /// Whether every checksum is right and no file breaks off.
    pub fn is_clean(&self) -> bool {
        self.damages.is_empty() && self.unfinished.is_empty()
    }
}

pub(super) fn scrub(inspection: &Inspection, progress: &mut dyn FnMut(Progress<'_>)) -> Result<ScrubReport> {
    let dir = inspection.directory();
    let listed = list(&dir)?;
    let mut meter = Meter::new(&listed, progress);
    let mut report = ScrubReport::default();
    check_presence(&dir, &listed, &mut report)?;
    let store = stated_store(&dir);
    for listed in &listed {
        match listed.what {
            What::Stray => report.strays.push(listed.name.clone()),
            What::File(name) => scrub_file(&dir, name, store, &mut meter, &mut report),
        }
    }
    meter.end();
    Ok(report)
}

/// `CURRENT`, the manifest that its header names, and the system key's file must be there.
fn check_presence(dir: &Directory, listed: &[Listed], report: &mut ScrubReport) -> Result<()> {
    let names: BTreeSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
    let mut needed = vec![FileName::SystemKey.path(), FileName::Current.path()];
    needed.extend(stated_manifest(dir));
    needed.retain(|name| !names.contains(name.as_str()));
    for name in needed {
        // A manifest may have been begun since the directory was listed.
        if dir.metadata(&name)?.is_none() {
            report.damages.push(Error::MissingFile { file: name });
        }
    }
    Ok(())
}

fn stated_manifest(dir: &Directory) -> Option<String> {
    let header = header(&Source::open(dir, &FileName::Current.path()).ok()?).ok()?;
    Some(FileName::Manifest(header.number).path())
}

/// The store that this is, as far as its headers say so.
fn stated_store(dir: &Directory) -> Option<StoreId> {
    let of = |name: FileName| header(&Source::open(dir, &name.path()).ok()?).ok();
    of(FileName::SystemKey).or_else(|| of(FileName::Current)).map(|header| header.store)
}

fn header(source: &Source) -> Result<FileHeader> {
    let bytes = source.read(0..source.len_bytes.min(HEADER_BYTES as u64))?;
    FileHeader::decode(&bytes, &Where::new(&source.name, 0))
}

fn scrub_file(
    dir: &Directory,
    name: FileName,
    store: Option<StoreId>,
    meter: &mut Meter<'_>,
    report: &mut ScrubReport,
) {
    let path = name.path();
    let source = match Source::open(dir, &path) {
        Ok(source) => source,
        // Deleted since the directory was listed.
        Err(Error::MissingFile { .. }) => return,
        Err(error) => return report.damages.push(error),
    };
    meter.begin(&path);
    report.files += 1;
    let walked = walk(&source, name, source.len_bytes, meter);
    report.frames += walked.frames;
    report.bytes += source.len_bytes;
    report.damages.extend(walked.damages);
    report.unfinished.extend(walked.unfinished);
    report.damages.extend(check_header(&source, name, store).err());
}

/// What the header says in clear against the file's name and the store's other files. A header that cannot be read is the walk's finding.
fn check_header(source: &Source, name: FileName, store: Option<StoreId>) -> Result<()> {
    let Ok(header) = header(source) else { return Ok(()) };
    let place = Where::new(&source.name, 0);
    if store.is_some_and(|store| store != header.store) {
        return Err(place.tampered("the header names another store"));
    }
    let as_named = match name {
        FileName::Manifest(number) | FileName::Log(number) | FileName::Table(number) | FileName::Parked(number, _) => {
            header.number == number
        }
        // Its tables have numbers of their own.
        FileName::Container(_) => true,
        FileName::KeyFile(table) => header.subject == table,
        FileName::Lock | FileName::Current | FileName::SystemKey => true,
    };
    if as_named { Ok(()) } else { Err(place.tampered("the header names another file")) }
}

/// What the walk through one file found.
#[derive(Default)]
pub(super) struct Walked {
    /// Frames whose checksums are right.
    pub(super) frames: u64,
    /// Bytes that are not those that were written.
    pub(super) damages: Vec<Error>,
    /// The same, where nothing whole follows and a crash may have left it.
    pub(super) unfinished: Vec<Error>,
}

/// Check the checksums of the first `len_bytes` bytes of a file, with bounded memory.
pub(super) fn walk(source: &Source, name: FileName, len_bytes: u64, meter: &mut Meter<'_>) -> Walked {
    walk_within(source, name, 0..len_bytes, meter)
}

/// The same for a part of a file that begins with a header.
pub(super) fn walk_within(source: &Source, name: FileName, part: Range<u64>, meter: &mut Meter<'_>) -> Walked {
    let Range { start, end: len_bytes } = part;
    let mut walked = Walked::default();
    let Some(kind) = name.kind() else {
        // The lock file has no content, so there is none to check.
        if source.len_bytes > 0 {
            walked.damages.push(Where::new(&source.name, 0).bit_rot("the lock file is not empty"));
        }
        return walked;
    };
    let mut scrub = Scrub::within(kind, part);
    let mut done = start;
    // Findings with no whole frame behind them so far, and how many there were before them.
    let mut last: (u64, Vec<(Error, bool)>) = (0, Vec::new());
    while let Some(range) = scrub.wants() {
        let bytes = match source.read(range) {
            Ok(bytes) => bytes,
            Err(error) => {
                last.1.push((error, false));
                break;
            }
        };
        let fed = scrub.feed(&bytes, &source.name);
        if scrub.frames() > last.0 {
            walked.damages.extend(last.1.drain(..).map(|(error, _)| error));
            last.0 = scrub.frames();
        }
        let listed = walked.damages.len() + last.1.len();
        if let Err(error) = fed
            && listed < DAMAGES_MAX
        {
            last.1.push((error, scrub.breaks_off()));
        }
        let position = scrub.position().min(len_bytes);
        meter.add(position.saturating_sub(done));
        done = done.max(position);
    }
    for (error, breaks_off) in last.1 {
        let may_be_unfinished = match kind {
            FileKind::Log | FileKind::Manifest | FileKind::Parked => matches!(error, Error::BitRot { .. }),
            FileKind::Table => breaks_off,
            _ => false,
        };
        if may_be_unfinished { walked.unfinished.push(error) } else { walked.damages.push(error) }
    }
    meter.add(len_bytes.saturating_sub(done));
    walked.frames = scrub.frames();
    if walked.damages.is_empty() {
        walked.damages.extend(check_copies(source, kind));
    }
    walked
}

/// Key files hold everything twice. A copy may be missing altogether, which no checksum tells.
fn check_copies(source: &Source, kind: FileKind) -> Option<Error> {
    if !matches!(kind, FileKind::KeyFile | FileKind::SystemKey) {
        return None;
    }
    let middle = source.len_bytes / 2;
    let place = Where::new(&source.name, middle);
    if source.len_bytes > KEY_FILE_BYTES_MAX as u64 {
        return Some(place.bit_rot("the key file is longer than any"));
    }
    let bytes = match source.read(0..source.len_bytes) {
        Ok(bytes) => bytes,
        Err(error) => return Some(error),
    };
    let (first, second) = bytes.split_at(middle as usize);
    (first != second).then(|| place.bit_rot("the two copies are not the same"))
}
