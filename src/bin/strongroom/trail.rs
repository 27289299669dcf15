//! What the audit trail says: calls of a day, of a table, by kind, by key; and whether it is whole.
//!
//! Reading needs neither store nor keyring. `verify` needs the keyring, because the key of the chain comes from the store's own; and where
//! the store can be opened, `key` asks it, too, and says where the two differ.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use strongroom::inspect::Inspection;
use strongroom::keys::trail::{Day, ENGINE, KMS, TrailEntry, TrailFolder, TrailRecord, TrailReport};
use strongroom::{Error, Store};

use crate::args::{Place, Trail, TrailCommand, TrailSource};
use crate::failure::{Failure, Result};
use crate::output::{finish, note, stdout};
use crate::session;

pub fn run(place: &Place, args: Trail) -> Result<()> {
    let path =
        place.trail.as_deref().ok_or_else(|| Failure::usage("which trail?", "name its folder with --trail FOLDER"))?;
    if !path.is_dir() {
        return Err(Failure::file("read the trail", path, std::io::ErrorKind::NotFound.into()));
    }
    let trail = Reading { place, path, folder: TrailFolder::at(path), json: args.json };
    match args.command {
        TrailCommand::Calls { day, source } => trail.calls(day, source),
        TrailCommand::Table { table } => trail.table(&table),
        TrailCommand::Count { day } => trail.count(day),
        TrailCommand::Key { key } => trail.key(&key),
        TrailCommand::Verify => trail.verify(),
    }
}

struct Reading<'a> {
    place: &'a Place,
    path: &'a Path,
    folder: TrailFolder,
    json: bool,
}

impl Reading<'_> {
    fn calls(&self, day: Day, source: Option<TrailSource>) -> Result<()> {
        let wanted = |record: &TrailRecord| match source {
            None => true,
            Some(TrailSource::Tables) => record.source == ENGINE,
            Some(TrailSource::Keys) => record.source == KMS,
        };
        self.print_calls(self.records(Some(day))?.into_iter().filter(|entry| wanted(&entry.record)))
    }

    fn table(&self, table: &str) -> Result<()> {
        let entries = self.records(None)?;
        let id = self.table_id(table, &entries)?;
        let is_its = |record: &TrailRecord| record.source == KMS && record.table_id() == Some(&id);
        self.print_calls(entries.into_iter().filter(|entry| is_its(&entry.record)))
    }

    fn count(&self, day: Option<Day>) -> Result<()> {
        let mut counts: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
        for TrailEntry { record, .. } in self.records(day)? {
            let (calls, failed) = counts.entry((record.source, record.name)).or_default();
            *calls += 1;
            *failed += u64::from(record.error.is_some());
        }
        let rows = counts.into_iter().map(|((source, name), (calls, failed))| {
            let json = json!({ "eventSource": source, "eventName": name, "calls": calls, "failed": failed });
            (json, vec![source, name, calls.to_string(), failed.to_string()])
        });
        self.print(&["SOURCE", "CALL", "CALLS", "FAILED"], rows)
    }

    fn key(&self, key: &str) -> Result<()> {
        let arn = if key.starts_with("arn:") { key.to_owned() } else { session::keyring(self.place)?.key(key)?.arn };
        let uses = self.folder.uses_of_key(&arn).map_err(|error| Failure::file("read", self.path, error))?;
        let live = self.live_view(|store| store.tables_using_key(&arn))?;
        // By id: whether it is in use by the trail, and by the store.
        let mut tables: BTreeMap<String, KeyRow> = BTreeMap::new();
        for one in uses.into_iter().filter(|one| live.as_ref().is_none_or(|(store, _)| *store == one.store)) {
            let row = KeyRow { name: one.name, requests: one.requests, by_trail: one.in_use, by_store: None };
            tables.insert(one.table, row);
        }
        if let Some((_, live)) = live {
            tables.values_mut().for_each(|row| row.by_store = Some(false));
            for table in live {
                let row = tables.entry(table.id.to_string()).or_default();
                row.name = Some(table.name);
                row.by_store = Some(true);
            }
        }
        let differing =
            tables.values().filter(|row| row.by_store.is_some_and(|by_store| by_store != row.by_trail)).count();
        self.print(&["TABLE", "NAME", "REQUESTS", "TRAIL", "STORE"], tables.into_iter().map(KeyRow::shown))?;
        if differing > 0 {
            note!("trail and store differ about {differing} of them: the trail knows only what was recorded");
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        let store = session::existing_store(self.place)?;
        let inspection = Inspection::of(store).key_provider(Arc::new(session::keyring(self.place)?));
        let report = inspection.verify_trail(&self.folder)?;
        let mut out = stdout();
        let written =
            if self.json { writeln!(out, "{}", report_json(&report)) } else { write_report(&mut out, &report) };
        written.map_err(Failure::output)?;
        finish(out)?;
        match report.damages.len() {
            0 => Ok(()),
            count => Err(Failure::TrailDamaged(count)),
        }
    }

    fn records(&self, day: Option<Day>) -> Result<Vec<TrailEntry>> {
        self.folder.records(day).map_err(|error| Failure::file("read", self.path, error))
    }

    /// The id that `table` is, or is the name of: in the trail, or else in the store.
    fn table_id(&self, table: &str, entries: &[TrailEntry]) -> Result<String> {
        let digits: String = table.to_lowercase().chars().filter(|c| *c != '-').collect();
        if digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(digits);
        }
        // The last one, if several tables had the name.
        let has_it = |record: &TrailRecord| record.table_name() == Some(table);
        let shown = entries.iter().rev().filter(|entry| has_it(&entry.record));
        if let Some(id) = shown.filter_map(|entry| entry.record.table_id()).next() {
            return Ok(id.to_owned());
        }
        if self.place.store.is_none() {
            return Err(Failure::usage(
                format!("the trail shows no table named {table:?}"),
                "give the table's id, or --store and what opens it, so that the store can be asked for it",
            ));
        }
        let store = session::look(self.place)?;
        let id = store.table(table).map(|table| table.id().to_string());
        store.close()?;
        Ok(id?)
    }

    /// What the store says, if the options name one that is not open elsewhere.
    fn live_view<T>(
        &self,
        ask: impl FnOnce(&Store) -> strongroom::Result<T>,
    ) -> Result<Option<(strongroom::types::StoreId, T)>> {
        if self.place.store.is_none() {
            return Ok(None);
        }
        let store = match session::look(self.place) {
            Err(Failure::Store(error @ Error::Locked { .. })) => {
                note!("the store was not asked: {error}");
                return Ok(None);
            }
            outcome => outcome?,
        };
        let answer = ask(&store);
        let id = store.id();
        store.close()?;
        Ok(Some((id, answer?)))
    }

    fn print_calls(&self, entries: impl Iterator<Item = TrailEntry>) -> Result<()> {
        if self.json {
            let mut out = stdout();
            for entry in entries {
                writeln!(out, "{}", entry.line).map_err(Failure::output)?;
            }
            return finish(out);
        }
        let rows = entries.map(|TrailEntry { record, line, .. }| {
            let table = record.table_name().or(record.table_id()).unwrap_or("-").to_owned();
            let key = record.resources.iter().rev().find(|resource| resource.kind == "AWS::KMS::Key");
            let key = key.map_or("-", |key| key.arn.as_str()).to_owned();
            let outcome = record.error.map_or_else(|| "ok".to_owned(), |(code, _)| code);
            // The time stands in the line as it is to be shown.
            let time =
                line.split_once("\"eventTime\":\"").and_then(|(_, rest)| rest.get(..24)).unwrap_or("-").to_owned();
            (json!(null), vec![time, record.name, record.identity.id, table, outcome, key])
        });
        self.print(&["TIME", "CALL", "BY", "TABLE", "OUTCOME", "KEY"], rows)
    }

    /// Rows as JSON, or as columns.
    fn print(&self, heads: &[&str], rows: impl Iterator<Item = (serde_json::Value, Vec<String>)>) -> Result<()> {
        let mut out = stdout();
        if self.json {
            for (json, _) in rows {
                writeln!(out, "{json}").map_err(Failure::output)?;
            }
            return finish(out);
        }
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        // What stands in the trail came from elsewhere, and must not steer a terminal.
        let plain = |text: String| text.replace(char::is_control, "\u{fffd}");
        let rows: Vec<Vec<String>> =
            std::iter::once(heads).chain(rows.map(|(_, row)| row.into_iter().map(plain).collect())).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            writeln!(out, "{}", cells.join("  ").trim_end()).map_err(Failure::output)?;
        }
        finish(out)
    }
}

/// A table that uses a key, or used it.
#[derive(Default)]
struct KeyRow {
    name: Option<String>,
    requests: u64,
    by_trail: bool,
    /// None if the store was not asked.
    by_store: Option<bool>,
}

impl KeyRow {
    fn shown((table, row): (String, KeyRow)) -> (serde_json::Value, Vec<String>) {
        let json = json!({
            "tableId": table,
            "tableName": row.name,
            "requests": row.requests,
            "inUseByTrail": row.by_trail,
            "inUseByStore": row.by_store,
        });
        let said = |uses: bool| if uses { "in use" } else { "no more" }.to_owned();
        let store = row.by_store.map_or("-".to_owned(), said);
        let name = row.name.unwrap_or("-".to_owned());
        (json, vec![table, name, row.requests.to_string(), said(row.by_trail), store])
    }
}

fn report_json(report: &TrailReport) -> serde_json::Value {
    let damages: Vec<_> = report
        .damages
        .iter()
        .map(|damage| json!({ "file": damage.file, "line": damage.line, "fault": damage.fault.to_string() }))
        .collect();
    json!({
        "records": report.records,
        "first": report.first,
        "last": report.last,
        "attested": report.attested,
        "unattested": report.unattested,
        "unchecked": report.unchecked,
        "superseded": report.superseded,
        "unfinishedFiles": report.unfinished_files,
        "damages": damages,
    })
}

fn write_report(out: &mut impl Write, report: &TrailReport) -> std::io::Result<()> {
    for damage in &report.damages {
        writeln!(out, "{damage}")?;
    }
    for file in &report.unfinished_files {
        writeln!(out, "{file}: the end was not finished, as a crash leaves it; it does not count")?;
    }
    match report.first {
        None => writeln!(out, "no records")?,
        Some(first) => writeln!(out, "{} records, {first} to {}", report.records, report.last)?,
    }
    if let Some(first) = report.first.filter(|first| *first > 1) {
        writeln!(out, "records before {first} are not here: moved away, or removed")?;
    }
    writeln!(out, "attested by the store: {}", report.attested)?;
    if report.unattested > 0 {
        writeln!(out, "not attested: the last {}; that none is missing behind them, nothing says", report.unattested)?;
    }
    if report.unchecked > 0 {
        writeln!(out, "not checked: {}, whose key went with a rotation of the system key", report.unchecked)?;
    }
    if report.superseded > 0 {
        writeln!(out, "replaced: {}, which were written without the store knowing for certain", report.superseded)?;
    }
    Ok(())
}
