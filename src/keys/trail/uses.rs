//! Which tables use a master key, by the trail alone: what was wrapped under which key, and what became of it.
//!
//! ```text
//! GenerateDataKey, Encrypt, Decrypt of (table, generation)    wrapped under the key that was used
//! ReEncrypt of (table, generation)                            wrapped under the key that it was moved to
//! UpdateTable to the owned key, DeleteTable, CreateTable that failed after all      nothing of the table is under any key that shows
//! ```
//! Requests that failed used nothing. The trail knows what was recorded: a table that was made, moved or dropped while no trail was kept shows otherwise
//! than in the store ([`Store::tables_using_key`](crate::Store::tables_using_key)).

use std::collections::BTreeMap;
use std::io;

use super::reader::{TrailEntry, TrailFolder};
use super::record::{ENGINE, KMS, TrailRecord};
use crate::types::StoreId;

/// A table that uses, or used, a key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyUse {
    /// The store.
    pub store: StoreId,
    /// The table's id, in hexadecimal.
    pub table: String,
    /// Its name, if the trail shows names.
    pub name: Option<String>,
    /// Requests about this table and key, failed ones too.
    pub requests: u64,
    /// When the first one was made, in milliseconds since 1970-01-01 00:00 UTC.
    pub first_ms: u64,
    /// When the last one was made.
    pub last_ms: u64,
    /// Whether anything of the table is wrapped under the key at the end of the trail.
    pub in_use: bool,
}

/// What the trail tells of a table.
#[derive(Default)]
struct Known {
    /// The key that each generation is wrapped under.
    wraps: BTreeMap<String, String>,
    name: Option<String>,
    /// Requests, and the times of the first and the last.
    requests: Option<(u64, u64, u64)>,
}

impl TrailFolder {
    /// The tables that use or used the key of this ARN, those of a store by id.
    ///
    /// # Errors
    /// Whatever keeps a folder or file from being read.
    pub fn uses_of_key(&self, arn: &str) -> io::Result<Vec<KeyUse>> {
        let mut tables: BTreeMap<(StoreId, String), Known> = BTreeMap::new();
        for TrailEntry { record, .. } in self.records(None)? {
            if let Some(id) = record.table_id() {
                tables.entry((record.store, id.to_owned())).or_default().learn(&record, arn);
            }
        }
        let uses = tables.into_iter().filter_map(|((store, table), known)| {
            let (requests, first_ms, last_ms) = known.requests?;
            let in_use = known.wraps.values().any(|wrapped_under| wrapped_under == arn);
            Some(KeyUse { store, table, name: known.name, requests, first_ms, last_ms, in_use })
        });
        Ok(uses.collect())
    }
}

impl Known {
    fn learn(&mut self, record: &TrailRecord, arn: &str) {
        if let Some(name) = record.table_name() {
            self.name = Some(name.to_owned());
        }
        if record.source == KMS && record.resources.iter().any(|resource| resource.arn == arn) {
            let (requests, first_ms, _) = self.requests.unwrap_or((0, record.time_ms, 0));
            self.requests = Some((requests + 1, first_ms, record.time_ms));
        }
        let failed = record.error.is_some();
        match (record.source.as_str(), record.name.as_str()) {
            (KMS, _) if !failed => self.wrapped(record),
            (ENGINE, "CreateTable") if failed => self.wraps.clear(),
            (ENGINE, "DeleteTable") if !failed => self.wraps.clear(),
            (ENGINE, "UpdateTable") if !failed && record.response.member("masterKeyArn").is_none() => {
                self.wraps.clear()
            }
            _ => {}
        }
    }

    fn wrapped(&mut self, record: &TrailRecord) {
        let contexts = ["encryptionContext", "destinationEncryptionContext"];
        let generation = |name: &&str| record.request.member(name)?.member("strongroom:generation")?.text();
        // Of a re-encryption the second resource is the key that it went to.
        if let (Some(generation), Some(key)) = (contexts.iter().find_map(generation), record.resources.last()) {
            self.wraps.insert(generation.to_owned(), key.arn.clone());
        }
    }
}
