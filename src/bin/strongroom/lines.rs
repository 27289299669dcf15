//! JSON lines in and out of a table: one field is the key, the whole line is the value.
//!
//! The line is kept byte for byte without its line break, so that an export gives the same lines back, in key order. Empty
//! lines are left out; of several lines with one key the last stays.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use serde_json::Value as Json;
use strongroom::types::VALUE_BYTES_MAX;
use strongroom::{Store, Table};

use crate::args::{ExportLines, ImportLines, Place};
use crate::bytes::escaped;
use crate::failure::{Failure, Result};
use crate::output::{grouped, note, size, stdout};
use crate::progress::Progress;
use crate::session::with_table;

const BATCH_BYTES: usize = 4 << 20;
const BATCH_LINES: usize = 10_000;

pub fn import(place: &Place, args: ImportLines) -> Result<()> {
    let (input, total): (Box<dyn Read>, _) = match &args.file {
        Some(path) => {
            let failed = |source| Failure::file("read", path, source);
            let file = File::open(path).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
        None => (Box::new(io::stdin().lock()), None),
    };
    with_table(place, &args.table, |store, table| {
        load(store, table, BufReader::with_capacity(1 << 20, input), &args.key_field, total)
    })
}

fn load(store: &Store, table: &Table, mut input: impl BufRead, field: &str, total: Option<u64>) -> Result<()> {
    let progress = Progress::begin("import", "lines", total);
    let mut batch = store.batch();
    let (mut pending_lines, mut pending_bytes, mut committed) = (0, 0, 0_u64);
    let (mut line, mut number) = (Vec::new(), 0_u64);
    loop {
        number += 1;
        let more = read_line(&mut input, &mut line, number)?;
        if !line.iter().all(u8::is_ascii_whitespace) {
            let key = key_of(&line, field).map_err(|reason| refused(number, committed, reason))?;
            batch.put(table, &key, &line);
            pending_lines += 1;
            pending_bytes += line.len();
        }
        if !more || pending_bytes >= BATCH_BYTES || pending_lines >= BATCH_LINES {
            std::mem::replace(&mut batch, store.batch()).commit()?;
            committed += pending_lines as u64;
            progress.add(pending_lines as u64, pending_bytes as u64);
            (pending_lines, pending_bytes) = (0, 0);
        }
        if !more {
            break;
        }
    }
    store.sync()?;
    note!("imported {}", progress.end());
    Ok(())
}

fn refused(number: u64, committed: u64, reason: String) -> Failure {
    Failure::usage(
        format!("line {}: {reason} ({} lines before it were imported)", grouped(number), grouped(committed)),
        "correct the line, then import the whole file again: lines that are there already are replaced by themselves",
    )
}

/// The next line without its line break; false when it was the last.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>, number: u64) -> Result<bool> {
    line.clear();
    input
        .take(VALUE_BYTES_MAX as u64 + 1)
        .read_until(b'\n', line)
        .map_err(|source| Failure::File { what: format!("cannot read line {}", grouped(number)), source })?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(true);
    }
    if line.len() > VALUE_BYTES_MAX {
        return Err(Failure::OverLimit {
            what: format!("line {} is over the limit of {} a value", grouped(number), size(VALUE_BYTES_MAX as u64)),
            advice: "split the line",
        });
    }
    Ok(false)
}

/// The bytes of the key field: those of a string, or the digits of a whole number.
fn key_of(line: &[u8], field: &str) -> Result<Vec<u8>, String> {
    let object: Json = serde_json::from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
    let found = if field.starts_with('/') { object.pointer(field) } else { object.get(field) };
    match found {
        Some(Json::String(text)) if text.is_empty() => Err(format!("the field {field:?} is empty")),
        Some(Json::String(text)) => Ok(text.clone().into_bytes()),
        // Fractions and very long numbers would be rounded: two of them could become one key.
        Some(Json::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string().into_bytes()),
        Some(_) => Err(format!("the field {field:?} is neither a string nor a whole number of at most 64 bits")),
        None => Err(format!("there is no field {field:?}")),
    }
}

pub fn export(place: &Place, args: ExportLines) -> Result<()> {
    with_table(place, &args.table, |_, table| match &args.file {
        None => write_lines(table, stdout(), Failure::output),
        Some(path) => {
            let failed = |source| Failure::file("write", path, source);
            let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
            write_lines(table, BufWriter::with_capacity(1 << 20, file), failed)
        }
    })
}

fn write_lines(table: &Table, mut out: impl Write, failed: impl Fn(io::Error) -> Failure) -> Result<()> {
    let progress = Progress::begin("export", "lines", None);
    for entry in table.iter() {
        let (key, value) = entry?;
        if value.contains(&b'\n') {
            return Err(Failure::usage(
                format!("the value of {} holds a line break, so it is not one line", escaped(&key)),
                "use `scan --format json` or `export folder` for such a table",
            ));
        }
        out.write_all(&value).and_then(|()| out.write_all(b"\n")).map_err(&failed)?;
        progress.add(1, value.len() as u64 + 1);
    }
    out.flush().map_err(&failed)?;
    drop(out);
    note!("exported {}", progress.end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_by_name_and_by_pointer() {
        let line = br#"{"id": "ada", "user": {"n": 7}, "list": []}"#;
        assert_eq!(key_of(line, "id").as_deref(), Ok(&b"ada"[..]));
        assert_eq!(key_of(line, "/user/n").as_deref(), Ok(&b"7"[..]));
        assert!(key_of(line, "list").is_err());
        assert!(key_of(br#"{"id": 0.5}"#, "id").is_err());
        assert!(key_of(br#"{"id": 36893488147419103232}"#, "id").is_err());
        assert!(key_of(line, "none").is_err());
        assert!(key_of(b"{", "id").is_err());
        assert!(key_of(br#"{"id": ""}"#, "id").is_err());
    }

    #[test]
    fn the_last_line_needs_no_line_break() {
        let mut input = &b"a\n\nb"[..];
        let mut line = Vec::new();
        let mut lines = Vec::new();
        while read_line(&mut input, &mut line, 1).unwrap() {
            lines.push(line.clone());
        }
        assert_eq!(lines, [b"a".to_vec(), b"".to_vec()]);
        assert_eq!(line, b"b");
    }
}
