//! The same workloads on Strongroom, with and without encryption, and on its peers.
//!
//! ```text
//! peers engines                what this build can compare, and what each of them promises
//! peers compare [settings]     the driver: starts one worker per engine, has them work in turn, prints medians and ratios
//! peers worker [settings]      a worker: one engine, told on its standard input what to run
//! ```
//! Only one worker works at a time, and all run a workload before any runs the next, the first to start changing from round to
//! round: so a machine that slows down slows all of them, and the ratio of a round says more than any absolute number. An
//! engine without encryption is another build of this program (`--baseline`), since suite none is not compiled into normal ones.

mod driver;
mod engines;
mod figures;
mod settings;
mod worker;
mod workload;

use std::error::Error;
use std::process::ExitCode;

/// Whatever went wrong: there is nobody to tell the kinds apart.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let outcome = settings::Settings::parse(arguments).and_then(|settings| match command.as_str() {
        "engines" => {
            print!("{}", driver::promises(engines::ALL.iter()));
            Ok(())
        }
        "compare" => driver::compare(&settings),
        "worker" => worker::serve(&settings),
        _ => Err(format!("usage: peers engines | peers compare [settings]\n\nsettings:\n{}", settings::USAGE).into()),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
