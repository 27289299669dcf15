//! What is in memory and not in sorted tables: the tables with an active memtable, and the frozen ones in their order.
//!
//! ```text
//! Dirty    tables by slot │ by size: the largest are frozen first │ by segment: who holds the oldest one
//! Frozen   memtables by ticket, which rises: a table's are flushed in the order in which they were frozen
//! ```
//! There may be very many of both, and the questions come with every group that is committed while memory is short. So each is answered without
//! a walk: a table's place in the orders is changed when its memtable takes another chunk of memory, which is seldom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::db::catalog::{Memory, TableState};
use crate::types::{FileNumber, Slot};

/// Tables whose active memtable has entries.
#[derive(Default)]
pub(super) struct Dirty {
    tables: BTreeMap<Slot, Entry>,
    by_size: BTreeSet<(u32, Slot)>,
    by_segment: BTreeSet<(FileNumber, Slot)>,
}

struct Entry {
    table: Arc<TableState>,
    size_class: u32,
    segment: FileNumber,
}

impl Dirty {
    /// A table has an active memtable of so many bytes that begins in this segment of the log.
    pub(super) fn note(&mut self, table: &Arc<TableState>, bytes: usize, segment: FileNumber) {
        let (size_class, slot) = (size_class(bytes), table.slot);
        let known = self.tables.get(&slot);
        if known.is_some_and(|entry| (entry.size_class, entry.segment) == (size_class, segment)) {
            return;
        }
        self.remove(slot);
        self.by_size.insert((size_class, slot));
        self.by_segment.insert((segment, slot));
        self.tables.insert(slot, Entry { table: table.clone(), size_class, segment });
    }

    /// The table has no active memtable with entries any more.
    pub(super) fn remove(&mut self, slot: Slot) {
        if let Some(entry) = self.tables.remove(&slot) {
            self.by_size.remove(&(entry.size_class, slot));
            self.by_segment.remove(&(entry.segment, slot));
        }
    }

    /// The largest, but for a quarter.
    pub(super) fn largest(&self) -> Option<Arc<TableState>> {
        let (_, slot) = self.by_size.last()?;
        self.tables.get(slot).map(|entry| entry.table.clone())
    }

    /// Tables whose memtables begin in this segment.
    pub(super) fn beginning_in(&self, segment: FileNumber) -> Vec<Arc<TableState>> {
        let own = self.by_segment.range((segment, Slot(0))..=(segment, Slot(u32::MAX)));
        own.filter_map(|(_, slot)| Some(self.tables.get(slot)?.table.clone())).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.tables.len()
    }

    /// All of them.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Arc<TableState>> {
        self.tables.values().map(|entry| &entry.table)
    }
}

/// Four classes between a power of two and the next, so that a memtable changes its class seldom as it grows.
fn size_class(bytes: usize) -> u32 {
    let bytes = bytes.max(4);
    let exponent = bytes.ilog2();
    exponent * 4 + (bytes >> (exponent - 2)) as u32 % 4
}

/// A memtable on its way to the disk.
#[derive(Clone)]
pub(super) struct FlushItem {
    /// Its place in the queue.
    pub(super) ticket: u64,
    pub(super) table: Arc<TableState>,
    pub(super) memory: Arc<Memory>,
}

/// Frozen memtables, oldest first. They leave the queue only once they are on disk, so that a batch that failed is still there, in order.
#[derive(Default)]
pub(super) struct Frozen {
    items: BTreeMap<u64, FlushItem>,
    tickets: u64,
}

impl Frozen {
    /// Put a memtable at the end.
    pub(super) fn push(&mut self, table: &Arc<TableState>, memory: Arc<Memory>) {
        self.tickets += 1;
        self.items.insert(self.tickets, FlushItem { ticket: self.tickets, table: table.clone(), memory });
    }

    /// Whether the item is still to be flushed.
    pub(super) fn holds(&self, item: &FlushItem) -> bool {
        self.items.contains_key(&item.ticket)
    }

    /// The item is done, or will never be.
    pub(super) fn remove(&mut self, item: &FlushItem) {
        self.items.remove(&item.ticket);
    }

    /// None of a table's memtables is to be flushed any more. Walks over all: only for what is seldom.
    pub(super) fn withdraw(&mut self, slot: Slot) {
        self.items.retain(|_, item| item.table.slot != slot);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &FlushItem> {
        self.items.values()
    }
}
