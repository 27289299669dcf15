//! Changing master keys, rotating table keys, and what is under which key.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value as Json, json};
use strongroom::{Delay, KeyChange, KeyReport, MasterKey, Rotation, Store};

use crate::args::{Keys, Place, Rotate, UpdateTable};
use crate::failure::{Failure, Result};
use crate::output::{finish, grouped, line, note, size, stdout};
use crate::progress::Progress;
use crate::session;

/// How often a rotation's progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The master key that an argument names.
pub fn master_key(argument: &str) -> MasterKey {
    match argument {
        "owned" => MasterKey::owned(),
        "managed" => MasterKey::managed(),
        key => MasterKey::customer(key),
    }
}

pub fn update_table(place: &Place, args: &UpdateTable) -> Result<()> {
    let change = KeyChange::new(master_key(&args.master_key));
    let store = session::open(place)?;
    let changed = match args.rewrap_only {
        true => store.update_table_with(&args.table, change.rewrap_only()),
        false => store.update_table_with(&args.table, change),
    };
    let outcome = changed.map_err(Failure::from).and_then(|()| match args.rewrap_only {
        true => Ok(()),
        // The command's end would interrupt it: it goes on whenever the store is opened.
        false => follow(&store, &args.table),
    });
    store.close()?;
    outcome?;
    line(format_args!("table {:?} is under {}; its old master key is not needed any more", args.table, args.master_key))
}

pub fn rotate(place: &Place, args: &Rotate) -> Result<()> {
    let store = session::open(place)?;
    let outcome = try_rotate(&store, args);
    store.close()?;
    outcome
}

fn try_rotate(store: &Store, args: &Rotate) -> Result<()> {
    let every = args.every_days.map(|days| Duration::from_secs(u64::from(days) * 24 * 3600));
    match (&args.table, args.system) {
        (Some(table), _) if args.every_days.is_some() => {
            let every = every.filter(|every| !every.is_zero());
            store.set_rotation_schedule(table, every)?;
            line(format_args!(
                "the key of table {table:?} is rotated every {} days (0: never)",
                args.every_days.unwrap_or(0)
            ))
        }
        (None, true) if args.every_days.is_some() => {
            store.set_system_rotation_schedule(every.filter(|every| !every.is_zero()))?;
            line(format_args!("the system key is rotated every {} days (0: never)", args.every_days.unwrap_or(0)))
        }
        (Some(table), _) => {
            let rotation = store.rotate_table_key(table)?;
            watch(&rotation)?;
            let generation = rotation.progress()?.generation.0;
            line(format_args!("everything in table {table:?} is under generation {generation} of its key"))
        }
        (None, _) => {
            store.rotate_system_key()?;
            store.wait_for_system_rotation()?;
            line("the store's metadata is under a new system key")
        }
    }
}

fn follow(store: &Store, table: &str) -> Result<()> {
    watch(&store.rotation(table)?)
}

/// Show how far a rotation is until it is over.
fn watch(rotation: &Rotation) -> Result<()> {
    let before = rotation.progress()?;
    let progress = Progress::begin("rotate", "tables", Some(before.bytes_done + before.bytes_left));
    while !rotation.wait_for(LOOK_EVERY)? {
        let now = rotation.progress()?;
        progress.expect(now.bytes_done + now.bytes_left);
        progress.reach(0, now.bytes_done);
    }
    progress.reach(1, rotation.progress()?.bytes_done);
    note!("{}", progress.end());
    Ok(())
}

/// What is under which generation of which key, for one table or all.
pub fn status(place: &Place, args: &Keys) -> Result<()> {
    let store = session::look(place)?;
    let names = args.table.clone().map_or_else(|| store.table_names(), |table| vec![table]);
    let reports = names.iter().map(|name| store.key_report(name)).collect::<strongroom::Result<Vec<_>>>();
    let system = store.system_key_generations();
    store.close()?;
    let (reports, system) = (reports?, system?);
    if args.json {
        let tables: Vec<Json> = reports.iter().map(report_json).collect();
        let system: Vec<u32> = system.iter().map(|generation| generation.0).collect();
        return line(format!("{:#}", json!({ "SystemKeyGenerations": system, "Tables": tables })));
    }
    let mut out = stdout();
    for report in &reports {
        text(&mut out, report).map_err(Failure::output)?;
    }
    finish(out)
}

fn kind(master: &MasterKey) -> &'static str {
    match master {
        MasterKey::Owned => "owned",
        MasterKey::Managed => "managed",
        MasterKey::Customer(_) => "customer",
    }
}

fn text(out: &mut impl Write, report: &KeyReport) -> std::io::Result<()> {
    writeln!(out, "{}: {} key", report.name, kind(&report.master))?;
    for one in &report.generations {
        let bytes = one.bytes;
        writeln!(
            out,
            "  generation {}: {} (tables {}, log {}, parked {}, pinned {}, checkpoints {}), wrapped under {}",
            one.generation.0,
            size(bytes.total()),
            grouped(bytes.tables),
            grouped(bytes.log),
            grouped(bytes.parked),
            grouped(bytes.pinned),
            grouped(bytes.checkpoints),
            one.master_key_arn,
        )?;
    }
    match report.generations.len() {
        1 => writeln!(out, "  every other master key may be destroyed as far as this table goes")?,
        _ => writeln!(
            out,
            "  older generations are erased when nothing is under them; the master keys above are needed"
        )?,
    }
    for delay in &report.delays {
        writeln!(out, "  delayed by {}", told(delay))?;
    }
    Ok(())
}

fn told(delay: &Delay) -> String {
    match delay {
        Delay::Pinned { files } => format!("{files} files that iterators look at"),
        Delay::Log { segment, tables } => {
            format!("log segment {}, which is needed by {}", segment.0, tables.join(", "))
        }
        Delay::Inaccessible { since_ms } => {
            format!("its master key, refused since {since_ms} ms after 1970-01-01 00:00 UTC")
        }
        Delay::Parked { files } => format!("{files} files of parked log sections"),
        _ => "something that this command does not know".to_owned(),
    }
}

fn report_json(report: &KeyReport) -> Json {
    let generations = report.generations.iter().map(|one| {
        json!({
            "Generation": one.generation.0,
            "MasterKeyArn": one.master_key_arn,
            "CreatedMs": one.created_ms,
            "Retired": one.retired,
            "Bytes": {
                "Tables": one.bytes.tables,
                "Log": one.bytes.log,
                "Parked": one.bytes.parked,
                "Pinned": one.bytes.pinned,
                "Checkpoints": one.bytes.checkpoints,
            },
        })
    });
    json!({
        "TableName": report.name,
        "MasterKey": kind(&report.master),
        "Generations": generations.collect::<Vec<_>>(),
        "Delays": report.delays.iter().map(told).collect::<Vec<_>>(),
    })
}
