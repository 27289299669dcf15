//! `strongroom`, the command line: on the crate's public API alone, so that it also tests that API.
//!
//! ```text
//! main ── args       what can be typed
//!      ├─ failure    what can go wrong, what to do about it, and the exit code
//!      ├─ secrets    passphrase or key: from a file, the environment or a prompt, never an argument
//!      ├─ session    where store and keyring lie; creating and opening them
//!      ├─ kms        master keys of the local keyring, their policies and grants
//!      ├─ tables     create, list, describe, drop
//!      ├─ rekey      other master keys, rotation, what is under which key
//!      ├─ entries    put, get, delete, scan                    bytes      how keys are written and read
//!      ├─ folder     a folder tree in and out of a table       tree       walking folders, safe paths
//!      ├─ lines      JSON lines in and out of a table
//!      ├─ check      verify, scrub, dump
//!      ├─ stats      what a store holds and how it is
//!      ├─ trail      what the audit trail says
//!      ├─ demo       the whole promise in one command          plaintext  searching files for canaries
//!      └─ bench      throughput, latency, the cost of encryption; the page with plots
//!                                    progress, parallel, output: what the commands above share
//! ```
//!
//! Results go to standard output, everything else to standard error. A reader that goes away (`| head`)
//! ends the command quietly.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "only the library must reach the outside through its seams; this program reads the user's files"
)]

mod args;
mod bench;
mod bytes;
mod check;
mod demo;
mod entries;
mod failure;
mod folder;
mod kms;
mod lines;
mod output;
mod parallel;
mod plaintext;
mod progress;
mod rekey;
mod secrets;
mod session;
mod stats;
mod tables;
mod trail;
mod tree;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, Export, Import, KeysCommand};
use crate::failure::Result;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `print` instead of `exit`, which panics when nobody reads the help that it prints.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(Cli { place, command }: Cli) -> Result<()> {
    match command {
        Command::Init => session::init(&place),
        Command::Kms(args) => kms::run(&place, args),
        Command::CreateTable(args) => tables::create(&place, args),
        Command::ListTables => tables::list(&place),
        Command::DescribeTable { table } => tables::describe(&place, &table),
        Command::DropTable { table, yes, destroy_key } => tables::drop(&place, &table, yes, destroy_key),
        Command::UpdateTable(args) => rekey::update_table(&place, &args),
        Command::Rotate(args) => rekey::rotate(&place, &args),
        Command::Keys(KeysCommand::Status(args)) => rekey::status(&place, &args),
        Command::Put(args) => entries::put(&place, args),
        Command::Get(args) => entries::get(&place, args),
        Command::Delete(args) => entries::delete(&place, args),
        Command::Scan(args) => entries::scan(&place, args),
        Command::Import(Import::Folder(args)) => folder::import(&place, args),
        Command::Import(Import::Lines(args)) => lines::import(&place, args),
        Command::Export(Export::Folder(args)) => folder::export(&place, args),
        Command::Export(Export::Lines(args)) => lines::export(&place, args),
        Command::Verify => check::verify(&place),
        Command::Scrub => check::scrub(&place),
        Command::Stats { json } => stats::run(&place, json),
        Command::Dump(args) => check::dump(&place, args),
        Command::Trail(args) => trail::run(&place, args),
        Command::Demo(args) => demo::run(&place, args),
        Command::Bench(args) => bench::run(&place, &args),
    }
}
