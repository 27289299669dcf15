//! `verify`, `scrub` and `dump`: look at a store's files from outside, and change nothing.

use std::sync::Arc;

use strongroom::inspect::{self, DumpOptions, Inspection};
use strongroom::{Error, LocalKms};

use crate::args::{Dump, Place};
use crate::failure::{Failure, Result};
use crate::output::{finish, grouped, line, note, size, stdout};
use crate::progress::{Progress, Rate};
use crate::session;
use crate::tree::some_of;

/// Every seal, with the keys.
pub fn verify(place: &Place) -> Result<()> {
    let store = session::existing_store(place)?;
    let (report, rate) = verified(store, session::keyring(place)?)?;
    for table in &report.unavailable {
        line(format_args!("not verified: table {:?}: {}", table.name, table.error))?;
    }
    if !report.closed {
        note!("the store was not closed; opening it discards {} that were never durable", size(report.discarded_bytes));
    }
    mention("no part of the store", &report.orphans);
    conclude("verified", report.frames, rate, &report.damages)?;
    match report.unavailable.into_iter().next() {
        Some(table) => Err(table.error.into()),
        None => Ok(()),
    }
}

/// What verifying the store comes to, with progress on the way.
pub fn verified(store: &std::path::Path, kms: LocalKms) -> Result<(inspect::VerifyReport, Rate)> {
    let progress = Progress::begin("verify", "files", None);
    let report = inspect::verify(store, Arc::new(kms), &mut |done| follow(&progress, done))?;
    progress.reach(report.files, report.bytes);
    Ok((report, progress.end()))
}

/// Every checksum, without any key.
pub fn scrub(place: &Place) -> Result<()> {
    let store = session::existing_store(place)?;
    let progress = Progress::begin("scrub", "files", None);
    let report = inspect::scrub(store, &mut |done| follow(&progress, done))?;
    progress.reach(report.files, report.bytes);
    let rate = progress.end();
    for end in &report.unfinished {
        line(format_args!("breaks off: {end}"))?;
    }
    if !report.unfinished.is_empty() {
        note!(
            "a crash leaves such ends, and so does a store that is open now; `verify` tells whether these are damage"
        );
    }
    mention("no file of a store's", &report.strays);
    conclude("scrubbed", report.frames, rate, &report.damages)
}

/// One file, described.
pub fn dump(place: &Place, args: Dump) -> Result<()> {
    let mut inspection = Inspection::of(session::existing_store(place)?);
    if args.open {
        inspection = inspection.key_provider(Arc::new(session::keyring(place)?));
    }
    let mut out = stdout();
    match inspection.dump(&args.file, &DumpOptions::new().keys(args.keys), &mut out) {
        Err(Error::Io { operation: "write", source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Failure::ReaderLeft)
        }
        outcome => outcome.map_err(Failure::from).and_then(|()| finish(out)),
    }
}

fn follow(progress: &Progress, done: inspect::Progress<'_>) {
    progress.expect(done.bytes_total);
    progress.reach(done.files_done, done.bytes_done);
}

fn mention(what: &str, names: &[String]) {
    if !names.is_empty() {
        note!("{what}: {}", some_of(names));
    }
}

fn conclude(what: &str, frames: u64, rate: Rate, damages: &[Error]) -> Result<()> {
    for damage in damages {
        line(format_args!("damaged: {damage}"))?;
    }
    let found = if damages.is_empty() { "no damage" } else { "DAMAGED" };
    line(format_args!("{what} {} frames, {rate}: {found}", grouped(frames)))?;
    if damages.is_empty() { Ok(()) } else { Err(Failure::Damages(damages.to_vec())) }
}
