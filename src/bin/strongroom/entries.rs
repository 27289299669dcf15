//! Single entries: put, get, delete; and many at once: scan.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::ffi::OsStringExt;

use serde_json::{Map, Value as Json};
use strongroom::options::Durability;
use strongroom::{Range, Table};

use crate::args::{Delete, Format, Get, Place, Put, Scan};
use crate::bytes::{self, escape_into, hex, hex_into};
use crate::failure::{Failure, Result};
use crate::output::{finish, stdout};
use crate::session::with_table;
use crate::tree;

pub fn put(place: &Place, args: Put) -> Result<()> {
    let key = bytes::key(&args.key, args.form)?;
    let value = match (args.value, &args.file) {
        (Some(value), _) => value.into_vec(),
        (None, Some(path)) => tree::read_named(path)?,
        (None, None) => tree::read_value("standard input", io::stdin().lock(), 0)?,
    };
    with_table(place, &args.table, |_, table| Ok(table.put_with(&key, &value, Durability::Sync)?))
}

pub fn get(place: &Place, args: Get) -> Result<()> {
    let key = bytes::key(&args.key, args.form)?;
    with_table(place, &args.table, |_, table| {
        let value = table.get(&key)?.ok_or(Failure::KeyMissing)?;
        let mut out = stdout();
        out.write_all(&value).map_err(Failure::output)?;
        finish(out)
    })
}

pub fn delete(place: &Place, args: Delete) -> Result<()> {
    let key = bytes::key(&args.key, args.form)?;
    with_table(place, &args.table, |_, table| Ok(table.delete_with(&key, Durability::Sync)?))
}

pub fn scan(place: &Place, args: Scan) -> Result<()> {
    let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    with_table(place, &args.table, |_, table| {
        let range = range(table, &args)?;
        let mut printer = Printer { out: stdout(), format: args.format, line: Vec::new() };
        // Four loops that differ in the iterator alone: the direction and whether values are read.
        match (args.keys_only, args.reverse) {
            (true, false) => range.keys().take(limit).try_for_each(|key| printer.print(&key?, None))?,
            (true, true) => range.keys().rev().take(limit).try_for_each(|key| printer.print(&key?, None))?,
            (false, false) => range.take(limit).try_for_each(|entry| {
                let (key, value) = entry?;
                printer.print(&key, Some(&value))
            })?,
            (false, true) => range.rev().take(limit).try_for_each(|entry| {
                let (key, value) = entry?;
                printer.print(&key, Some(&value))
            })?,
        }
        finish(printer.out)
    })
}

fn range(table: &Table, args: &Scan) -> Result<Range> {
    let typed =
        |key: &Option<std::ffi::OsString>| key.as_deref().map(|key: &OsStr| bytes::key(key, args.form)).transpose();
    if let Some(prefix) = typed(&args.prefix)? {
        return Ok(table.prefix(prefix));
    }
    let from = typed(&args.from)?.map_or(Bound::Unbounded, Bound::Included);
    let to = typed(&args.to)?.map_or(Bound::Unbounded, Bound::Excluded);
    Ok(table.range((from, to)))
}

/// Prints entries, one to a line.
struct Printer<W> {
    out: W,
    format: Format,
    line: Vec<u8>,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        self.line.clear();
        match self.format {
            Format::Text => columns(key, value, &mut self.line, escape_into),
            Format::Hex => columns(key, value, &mut self.line, hex_into),
            Format::Json => {
                let mut object = Map::new();
                insert(&mut object, "key", key);
                if let Some(value) = value {
                    insert(&mut object, "value", value);
                }
                self.line.extend_from_slice(Json::Object(object).to_string().as_bytes());
            }
        }
        self.line.push(b'\n');
        self.out.write_all(&self.line).map_err(Failure::output)
    }
}

fn columns(key: &[u8], value: Option<&[u8]>, line: &mut Vec<u8>, write: fn(&[u8], &mut Vec<u8>)) {
    write(key, line);
    if let Some(value) = value {
        line.push(b'\t');
        write(value, line);
    }
}

/// JSON strings are Unicode; bytes that are not go under another name, so that no reader takes one for the other.
fn insert(object: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_string(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}
