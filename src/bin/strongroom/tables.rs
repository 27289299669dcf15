//! Create, list, describe and drop tables.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::{Map, Value as Json, json};
use strongroom::options::{Cipher, Compression, TableOptions};
use strongroom::types::TableId;
use strongroom::{SseStatus, SseType, TableDescription, TableStatus};

use crate::args::{CipherName, CompressionName, CreateTable, Layout, Place};
use crate::failure::{Failure, Result};
use crate::output::{finish, grouped, line, note, stdout};
use crate::{rekey, session};

pub fn create(place: &Place, args: CreateTable) -> Result<()> {
    let master_key = rekey::master_key(&args.master_key);
    let store = session::open(place)?;
    let created = store.create_table(&args.table, options(&args.layout).master_key(master_key));
    let id = created.map(|table| table.id());
    store.close()?;
    line(format_args!("created table {:?} with id {}", args.table, hyphenated(id?)))
}

/// The table options that these arguments stand for.
pub fn options(layout: &Layout) -> TableOptions {
    let options = TableOptions::new().block_bytes(layout.block_size).compression(match layout.compression {
        CompressionName::None => Compression::None,
        CompressionName::Lz4 => Compression::Lz4,
    });
    match layout.cipher {
        None => options,
        Some(CipherName::Aes256Gcm) => options.cipher(Cipher::Aes256Gcm),
        Some(CipherName::ChaCha20Poly1305) => options.cipher(Cipher::ChaCha20Poly1305),
    }
}

pub fn list(place: &Place) -> Result<()> {
    let store = session::open(place)?;
    let names = store.table_names();
    store.close()?;
    let mut out = stdout();
    for name in names {
        writeln!(out, "{name}").map_err(Failure::output)?;
    }
    finish(out)
}

pub fn describe(place: &Place, table: &str) -> Result<()> {
    let store = session::open(place)?;
    let description = store.describe_table(table);
    store.close()?;
    line(described(&description?))
}

/// A description as indented JSON, in the shape of DynamoDB's `describe-table`.
pub fn described(description: &TableDescription) -> String {
    format!("{:#}", json!({ "Table": table_json(description) }))
}

fn table_json(table: &TableDescription) -> Json {
    let mut fields = Map::new();
    fields.insert("TableName".into(), table.name.as_str().into());
    fields.insert("TableId".into(), hyphenated(table.id).into());
    fields.insert("TableStatus".into(), status(table.status).into());
    fields.insert("CreationDateTime".into(), seconds(table.created_ms));
    fields.insert("ItemCount".into(), table.item_count.into());
    fields.insert("TableSizeBytes".into(), table.size_bytes.into());
    if let Some(sse) = sse_json(table) {
        fields.insert("SSEDescription".into(), sse);
    }
    Json::Object(fields)
}

/// Absent for the owned key, as at DynamoDB: encryption is on all the same, but the key is not the user's to see.
fn sse_json(table: &TableDescription) -> Option<Json> {
    let kind = match table.sse.sse_type? {
        SseType::Kms => "KMS",
        _ => "UNKNOWN",
    };
    let status = match table.sse.status {
        SseStatus::Enabled => "ENABLED",
        SseStatus::Updating => "UPDATING",
        _ => "UNKNOWN",
    };
    let mut fields = Map::new();
    fields.insert("Status".into(), status.into());
    fields.insert("SSEType".into(), kind.into());
    if let Some(arn) = &table.sse.master_key_arn {
        fields.insert("KMSMasterKeyArn".into(), arn.as_str().into());
    }
    if let Some(since_ms) = table.sse.inaccessible_since_ms {
        fields.insert("InaccessibleEncryptionDateTime".into(), seconds(since_ms));
    }
    Some(Json::Object(fields))
}

fn status(status: TableStatus) -> &'static str {
    match status {
        TableStatus::Active => "ACTIVE",
        TableStatus::Updating => "UPDATING",
        TableStatus::InaccessibleEncryptionCredentials => "INACCESSIBLE_ENCRYPTION_CREDENTIALS",
        TableStatus::Dropping => "DELETING",
        _ => "UNKNOWN",
    }
}

/// Seconds since 1970 with a fraction, as in DynamoDB's JSON. Milliseconds of the next 280,000 years are exact in an f64.
pub fn seconds(ms: u64) -> Json {
    json!(ms as f64 / 1000.0)
}

/// The sixteen bytes as 8-4-4-4-12 hexadecimal digits.
fn hyphenated(id: TableId) -> String {
    let digits = id.to_string();
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

pub fn drop(place: &Place, table: &str, yes: bool, destroy_key: Option<u32>) -> Result<()> {
    let store = session::open(place)?;
    let outcome = (|| {
        if !yes {
            confirm(&store.describe_table(table)?)?;
        }
        let dropped = match destroy_key {
            None => store.drop_table(table),
            Some(days) => store.shred_table(table, days),
        };
        Ok(dropped?)
    })();
    outcome.and(store.close().map_err(Failure::from))
}

fn confirm(table: &TableDescription) -> Result<()> {
    const ADVICE: &str = "type the table's name when asked, or give --yes";
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("drop-table asks first, and there is no terminal to ask at", ADVICE));
    }
    note!(
        "This drops {:?} with about {} entries and erases its key. It cannot be undone. Type its name to go on:",
        table.name,
        grouped(table.item_count)
    );
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|source| Failure::File { what: "cannot read the answer".to_string(), source })?;
    if answer.trim_end_matches(['\n', '\r']) != table.name {
        return Err(Failure::usage("not dropped", ADVICE));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_id_is_printed_as_a_uuid() {
        let id = TableId::from_bytes([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(hyphenated(id), "12345678-9abc-def0-0102-030405060708");
    }

    #[test]
    fn a_time_keeps_its_milliseconds() {
        assert_eq!(seconds(1_763_683_200_123).to_string(), "1763683200.123");
    }
}
