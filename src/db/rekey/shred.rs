//! The strong form of a drop: a table with a master key of its own, and the end of both.
//!
//! ```text
//! nothing else is wrapped under the table's master keys ─ provider: each is to be destroyed ─ the table is dropped
//! ```
//! The provider first: what it refuses leaves the table and the directory as they were, and dropping needs no key. Who is interrupted in
//! between finds the table inaccessible, and calls again.

use std::collections::BTreeSet;

use crate::db::{Engine, Store};
use crate::error::{Error, Result};
use crate::format::keyfile::MasterKind;
use crate::types::Slot;

impl Store {
    /// Drop a table and have its master key destroyed at the provider in so many days: the strong form of [`drop_table`](Store::drop_table). Once the key
    /// is gone, no copy of anything makes the table readable again: no backup, no snapshot, no block that a disk kept.
    ///
    /// The table's master key must be a customer's and wrap nothing else in this store; what other stores have under it, only their owners
    /// know. To see that, every table's key file is read. A table that is made under the key at the same moment is not seen: until the days have passed
    /// the provider can call the deletion off.
    ///
    /// # Errors
    /// [`Error::TableNotFound`]; [`Error::InvalidArgument`] if the master key is the engine's or wraps something else;
    /// [`Error::MasterKeyUnavailable`] if the provider refuses, or has no such operation. In these cases nothing was changed. Then as for
    /// [`drop_table`](Store::drop_table): a table that could not be dropped is dropped by calling this again.
    pub fn shred_table(&self, name: &str, days: u32) -> Result<()> {
        let engine = self.keyholder()?;
        engine.check_writable()?;
        for arn in engine.master_keys_of_its_own(name)? {
            engine.keys.destroy_master_key(&arn, days)?;
        }
        self.drop_table(name)
    }
}

impl Engine {
    /// The master keys that a table needs, if they are customers' and no other table needs them.
    fn master_keys_of_its_own(&self, name: &str) -> Result<BTreeSet<String>> {
        let refuse = |detail| Err(Error::InvalidArgument { what: "master key", detail });
        let table = self.catalog.named(name)?;
        let record = self.read_key_file(table.slot, table.id)?;
        if record.master != MasterKind::Customer {
            return refuse(format!("that of table {name:?} is the engine's, so it is not destroyed with the table"));
        }
        let own: BTreeSet<String> = record.wraps.into_iter().map(|wrap| wrap.key_arn).collect();
        let owned: BTreeSet<Slot> = self.manifest.with_state(|state| {
            let owned = state.tables.iter().filter(|(_, meta)| meta.record.master == MasterKind::Owned);
            owned.map(|(slot, _)| *slot).collect()
        });
        let others = self.catalog.all().into_iter().filter(|other| other.slot != table.slot);
        for other in others.filter(|other| !owned.contains(&other.slot)) {
            let record = match self.read_key_file(other.slot, other.id) {
                Err(Error::TableDropped { .. }) => continue,
                outcome => outcome?,
            };
            if let Some(shared) = record.wraps.iter().find(|wrap| own.contains(&wrap.key_arn)) {
                return refuse(format!("{} is also that of table {:?}", shared.key_arn, other.name));
            }
        }
        Ok(own)
    }
}
