//! What the store tells its trail besides what its key providers are asked: calls that create, change and drop tables, refused ones too; and how the
//! manifest attests the trail.

use super::{Engine, Handle};
use crate::error::{Error, Result};
use crate::format::keyfile::MasterKind;
use crate::format::manifest::Edit;
use crate::keys::Master;
use crate::keys::trail::TableCall;
use crate::options::{MasterKey, TableOptions};
use crate::types::TableId;

/// A table that may come to exist.
pub(super) struct Begun {
    table: TableId,
    /// Unless the store's own key is meant.
    master_key_arn: Option<String>,
}

impl Begun {
    /// Its id.
    pub(super) fn table(&self) -> TableId {
        self.table
    }

    /// It will be under this master key.
    pub(super) fn under(&mut self, master: &Master) {
        self.master_key_arn = (master.kind != MasterKind::Owned).then(|| master.arn.clone());
    }
}

impl Handle {
    /// Tables were created, or were not.
    pub(super) fn record_creations<T>(&self, tables: &[(&str, TableOptions)], begun: &[Begun], outcome: &Result<T>) {
        let Some(trail) = self.keys.trail() else { return };
        for (number, (name, options)) in tables.iter().enumerate() {
            let begun = begun.get(number);
            let call = TableCall {
                name: "CreateTable",
                principal: self.principal(),
                table: begun.map(|begun| begun.table),
                table_name: name,
                master_key: Some(options.master_key.name()),
                master_key_arn: begun.and_then(|begun| begun.master_key_arn.as_deref()),
            };
            trail.table_called(&call, outcome.as_ref().err());
        }
    }

    /// A table's master key was changed to `master_key`, which is the one in `outcome`, or was not.
    pub(super) fn record_change(
        &self,
        name: &str,
        table: Option<TableId>,
        master_key: &MasterKey,
        outcome: Result<&Master, &Error>,
    ) {
        let Some(trail) = self.keys.trail() else { return };
        let shown = outcome.ok().filter(|master| master.kind != MasterKind::Owned);
        let call = TableCall {
            name: "UpdateTable",
            principal: self.principal(),
            table,
            table_name: name,
            master_key: Some(master_key.name()),
            master_key_arn: shown.map(|master| master.arn.as_str()),
        };
        trail.table_called(&call, outcome.err());
    }

    /// A table was dropped, or was not. `table` is what had the name before.
    pub(super) fn record_drop(&self, name: &str, table: Option<TableId>, outcome: &Result<()>) {
        let Some(trail) = self.keys.trail() else { return };
        let call = TableCall {
            name: "DeleteTable",
            principal: self.principal(),
            table,
            table_name: name,
            master_key: None,
            master_key_arn: None,
        };
        trail.table_called(&call, outcome.as_ref().err());
    }
}

impl Engine {
    /// A table gets this id: from now on its name can be shown beside it.
    pub(super) fn begin_recording(&self, table: TableId, name: &str, begun: &mut Vec<Begun>) {
        if let Some(trail) = self.keys.trail() {
            trail.name_table(table, name);
        }
        begun.push(Begun { table, master_key_arn: None });
    }

    /// Have the manifest say how far the trail has come, if it is time to or `at_once`.
    pub(super) fn attest_trail(&self, at_once: bool) -> Result<()> {
        let Some(trail) = self.keys.trail() else { return Ok(()) };
        if let Some(head) = trail.head_due(at_once) {
            self.manifest.append(vec![Edit::TrailHead(head)]).map_err(|error| self.poison(error))?;
            trail.attested(&head);
        }
        Ok(())
    }
}
