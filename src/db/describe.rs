//! What a table says about itself, in the terms of DynamoDB's `DescribeTable`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::catalog::TableState;
use crate::error::Result;
use crate::format::keyfile::{KeyFile, KeyState, MasterKind};
use crate::options::Compression;
use crate::types::TableId;

/// Status, key, sizes and counts of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TableDescription {
    /// The table's name.
    pub name: String,
    /// Its durable identity.
    pub id: TableId,
    /// Whether it can be used.
    pub status: TableStatus,
    /// When it was created, in milliseconds since 1970-01-01 00:00 UTC.
    pub created_ms: u64,
    /// Who created it, as that [principal](crate::Principal) is shown; empty if that was not recorded.
    pub creator: String,
    /// Entries, as of the last flush and compaction, plus those in memory: exact once everything is
    /// compacted, too high by overwritten and deleted ones before.
    pub item_count: u64,
    /// Bytes of its sorted tables on disk.
    pub size_bytes: u64,
    /// Name of the AEAD that seals it.
    pub cipher: &'static str,
    /// How its blocks are compressed.
    pub compression: Compression,
    /// The key that its key is wrapped under.
    pub sse: SseDescription,
}

/// Whether a table can be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum TableStatus {
    /// Yes.
    Active,
    /// Yes; a change of its keys is going on.
    Updating,
    /// No: its master key is disabled, about to be deleted, or gone, or no longer the engine's to use. Its data is safe, and it comes back by itself.
    InaccessibleEncryptionCredentials,
    /// No: it is being dropped.
    Dropping,
}

/// The master key of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SseDescription {
    /// Whether a change of keys is going on. Encryption is never off.
    pub status: SseStatus,
    /// `None` for the store's owned key, as at DynamoDB.
    pub sse_type: Option<SseType>,
    /// ARN of the master key; `None` for the store's owned key.
    pub master_key_arn: Option<String>,
    /// Since when the table is inaccessible, in milliseconds since 1970-01-01 00:00 UTC.
    pub inaccessible_since_ms: Option<u64>,
}

/// Whether a change of keys is going on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum SseStatus {
    /// No.
    Enabled,
    /// Yes.
    Updating,
}

/// Where the master key comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum SseType {
    /// A managed or customer key in the key provider.
    Kms,
}

impl Engine {
    /// Tables of which some generation is wrapped under this master key. Reads the key file of each table that is not under an owned key.
    pub(super) fn tables_using_key(&self, arn: &str) -> Result<Vec<TableDescription>> {
        self.check_open()?;
        let mut using = Vec::new();
        for table in self.catalog.all() {
            let kind = self.manifest.with_state(|state| state.tables.get(&table.slot).map(|meta| meta.record.master));
            if kind.is_none_or(|kind| kind == MasterKind::Owned) {
                continue;
            }
            let uses = |keys: KeyFile| keys.wraps.iter().any(|wrap| wrap.key_arn == arn);
            match self.read_key_file(table.slot, table.id).map(uses) {
                Ok(true) => using.push(self.describe(&table)?),
                Ok(false) => {}
                // It was dropped meanwhile, which takes its key file away.
                Err(_) if table.is_dropped() => {}
                Err(error) => return Err(error),
            }
        }
        using.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(using)
    }

    /// Describe a table. Reads its key file, and needs no permit: nothing of its contents is told.
    pub(super) fn describe(&self, table: &Arc<TableState>) -> Result<TableDescription> {
        self.check_open()?;
        self.check_not_dropped(table)?;
        let (mut item_count, size_bytes, record, creator) = self.manifest.with_state(|state| {
            state.tables.get(&table.slot).map_or((0, 0, None, String::new()), |meta| {
                let entries =
                    meta.files.values().map(|(_, file)| file.entries - file.tombstones.min(file.entries)).sum();
                let bytes = meta.files.values().map(|(_, file)| file.extent.len_bytes).sum();
                (
                    entries,
                    bytes,
                    Some(meta.record.clone()),
                    meta.creator.as_ref().map(|creator| creator.to_string()).unwrap_or_default(),
                )
            })
        });
        if let Some(view) = table.view.load_owned() {
            let memories = std::iter::once(&view.active).chain(&view.frozen);
            item_count += memories.map(|memory| memory.table.entries() as u64).sum::<u64>();
        }
        let keys = self.read_key_file(table.slot, table.id)?;
        let kind = record.map_or(keys.master, |record| record.master);
        let arn = keys.wraps.last().map(|wrap| wrap.key_arn.clone());
        let inaccessible_since_ms = table.access.since_ms();
        let status = match inaccessible_since_ms {
            _ if keys.state == KeyState::Dropping => TableStatus::Dropping,
            Some(_) => TableStatus::InaccessibleEncryptionCredentials,
            None if table.changing.load(Ordering::Acquire) => TableStatus::Updating,
            None => TableStatus::Active,
        };
        let owned = kind == MasterKind::Owned;
        Ok(TableDescription {
            name: table.name.to_string(),
            id: table.id,
            status,
            created_ms: table.created_ms,
            creator,
            item_count,
            size_bytes,
            cipher: table.settings.suite.name(),
            compression: table.compression(),
            sse: SseDescription {
                status: if status == TableStatus::Updating { SseStatus::Updating } else { SseStatus::Enabled },
                sse_type: (!owned).then_some(SseType::Kms),
                master_key_arn: arn.filter(|_| !owned),
                inaccessible_since_ms,
            },
        })
    }
}
