//! What can go wrong, what to do about it, and the exit code that tells a script which it was.
//!
//! The table of exit codes stands in `args.rs`, where `--help` prints it.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use strongroom::{Error, ErrorKind};

use crate::output::note;

/// The command line or an argument is wrong; clap's own code for it, too.
pub const USAGE: u8 = 2;

const KEY_MISSING: u8 = 1;
const NOT_FOUND: u8 = 3;
const EXISTS: u8 = 4;
const WRONG_KEY: u8 = 5;
const KEY_UNAVAILABLE: u8 = 6;
const TAMPERING: u8 = 7;
const DAMAGE: u8 = 8;
const LOCKED: u8 = 9;
const NEWER_VERSION: u8 = 10;
const OVER_LIMIT: u8 = 11;
const SYSTEM: u8 = 12;
const BROKEN_PROMISE: u8 = 13;

pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// The engine's answer.
    Store(Error),
    /// `get` of a key that is not there.
    KeyMissing,
    /// The command cannot be meant so.
    Usage { what: String, advice: &'static str },
    /// A file or folder of the user's could not be used.
    File { what: String, source: io::Error },
    /// What was to be created is there already.
    Exists { what: String, advice: &'static str },
    /// Something is over a limit, by name.
    OverLimit { what: String, advice: &'static str },
    /// `verify` or `scrub` found these; they have been printed.
    Damages(Vec<Error>),
    /// `trail verify` found so many; they have been printed.
    TrailDamaged(usize),
    /// The demonstration or a benchmark found that the engine does not keep its word.
    BrokenPromise { what: String },
    /// A process that worked for `bench` has failed, with this exit code if it had one; it has said itself why.
    Worker { what: String, code: Option<u8> },
    /// Whoever read our output has had enough.
    ReaderLeft,
}

impl Failure {
    pub fn usage(what: impl Into<String>, advice: &'static str) -> Failure {
        Failure::Usage { what: what.into(), advice }
    }

    /// An operation on one of the user's files failed.
    pub fn file(operation: &str, path: &Path, source: io::Error) -> Failure {
        Failure::File { what: format!("cannot {operation} {}", path.display()), source }
    }

    /// Writing to standard output failed.
    pub fn output(source: io::Error) -> Failure {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderLeft,
            _ => Failure::File { what: "cannot write to standard output".to_string(), source },
        }
    }

    /// Say on standard error what went wrong and what to do, and give the exit code.
    pub fn report(&self) -> ExitCode {
        if let Failure::ReaderLeft = self {
            return ExitCode::SUCCESS;
        }
        note!("strongroom: {}", self.what());
        if let Some(advice) = self.advice() {
            note!("  what to do: {advice}");
        }
        ExitCode::from(self.exit_code())
    }

    fn what(&self) -> String {
        match self {
            Failure::Store(error) => error.to_string(),
            Failure::KeyMissing => "there is no such key".to_string(),
            Failure::Usage { what, .. } | Failure::Exists { what, .. } | Failure::OverLimit { what, .. } => {
                what.clone()
            }
            Failure::File { what, source } => format!("{what}: {source}"),
            Failure::Damages(damages) if damages.len() == 1 => "1 place is damaged".to_string(),
            Failure::Damages(damages) => format!("{} places are damaged", damages.len()),
            Failure::TrailDamaged(1) => "1 place of the trail is not as the store wrote it".to_string(),
            Failure::TrailDamaged(count) => format!("{count} places of the trail are not as the store wrote them"),
            Failure::BrokenPromise { what } | Failure::Worker { what, .. } => what.clone(),
            Failure::ReaderLeft => String::new(),
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Failure::Store(error) => Some(error.advice()),
            Failure::Usage { advice, .. } | Failure::Exists { advice, .. } | Failure::OverLimit { advice, .. } => {
                Some(advice)
            }
            Failure::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the path"),
                io::ErrorKind::PermissionDenied => Some("check who may read or write there"),
                io::ErrorKind::AlreadyExists => Some("choose another name"),
                io::ErrorKind::StorageFull => Some("free some space, then run the command again"),
                _ => Some("see the operating system's reason"),
            },
            Failure::Damages(damages) => worst(damages).map(Error::advice),
            Failure::TrailDamaged(_) => Some("keep a copy of the folder, and find out who can write there"),
            Failure::BrokenPromise { .. } => Some("keep the store and report this: it must not happen"),
            Failure::Worker { .. } => Some("see what it said before"),
            Failure::KeyMissing | Failure::ReaderLeft => None,
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Failure::Store(error) => code_of(error.kind()),
            Failure::KeyMissing => KEY_MISSING,
            Failure::Usage { .. } => USAGE,
            Failure::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                io::ErrorKind::AlreadyExists => EXISTS,
                _ => SYSTEM,
            },
            Failure::Exists { .. } => EXISTS,
            Failure::OverLimit { .. } => OVER_LIMIT,
            Failure::Damages(damages) => worst(damages).map_or(DAMAGE, |error| code_of(error.kind())),
            Failure::TrailDamaged(_) => TAMPERING,
            Failure::BrokenPromise { .. } => BROKEN_PROMISE,
            Failure::Worker { code, .. } => code.unwrap_or(SYSTEM),
            Failure::ReaderLeft => 0,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Store(error)
    }
}

/// The damage that decides the exit code: tampering before everything else.
fn worst(damages: &[Error]) -> Option<&Error> {
    damages.iter().find(|error| code_of(error.kind()) == TAMPERING).or(damages.first())
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidArgument => USAGE,
        ErrorKind::NotFound => NOT_FOUND,
        ErrorKind::AlreadyExists => EXISTS,
        ErrorKind::WrongKey | ErrorKind::WrongPassphrase => WRONG_KEY,
        ErrorKind::KeyUnavailable => KEY_UNAVAILABLE,
        ErrorKind::Tampering | ErrorKind::RolledBack => TAMPERING,
        ErrorKind::BitRot | ErrorKind::MissingFile => DAMAGE,
        ErrorKind::Locked | ErrorKind::Busy => LOCKED,
        ErrorKind::UnknownVersion => NEWER_VERSION,
        ErrorKind::LimitExceeded => OVER_LIMIT,
        // Kinds that later versions of the library may add are failures all the same.
        _ => SYSTEM,
    }
}
