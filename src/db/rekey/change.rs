//! Another master key for a table, or a new generation of its key: asked for, checked, and then in force at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Change;
use crate::db::catalog::TableState;
use crate::db::{Engine, Rotation, Store};
use crate::error::{Error, Result};
use crate::format::keyfile::MasterKind;
use crate::format::manifest::Edit;
use crate::keys::{Master, Principal, Rekey, Successor, present_master};
use crate::options::MasterKey;

/// So many tables are changed with one append to the manifest. Their key files are replaced while nobody can make or drop a table.
const GROUP_TABLES: usize = 256;
/// A day, and the time without a change after which one more is allowed.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const QUIET_MS: u64 = 6 * 60 * 60 * 1000;

/// What becomes of a table's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyChange {
    master: MasterKey,
    rewrap_only: bool,
}

impl KeyChange {
    /// Another master key, and a new generation of the table's key under it: what is written from now on is under a key that the master key before never
    /// wrapped, and the rest of the table is brought under it in the background.
    pub fn new(master: MasterKey) -> KeyChange {
        KeyChange { master, rewrap_only: false }
    }

    /// The table's keys stay as they are and are only wrapped anew: one call to the provider per key, and no data is touched. With the
    /// table's own master key this brings the wraps under that key's newest version.
    ///
    /// Whoever could use the old master key may have kept what it once unwrapped. Against him only a new generation helps.
    #[must_use]
    pub fn rewrap_only(mut self) -> KeyChange {
        self.rewrap_only = true;
        self
    }
}

/// What became of a change of many tables' keys.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RewrapReport {
    /// Tables that were changed.
    pub changed: u64,
    /// Names of those that were not, and why not. They are as they were.
    pub failed: Vec<(String, Error)>,
}

impl Store {
    /// Wrap a table's key under another master key, from any kind to any kind; and begin a new generation of it, which the rest of the table is
    /// brought under in the background ([`rotation`](Store::rotation) tells how far). Readers and writers are not disturbed. There is no way back to plaintext.
    ///
    /// Once this returns, the old master key is not needed any more: not for what lies there, and not after a crash. Until then the table's status is
    /// [`Updating`](crate::TableStatus::Updating), and should this process end meanwhile, one of the two keys suffices.
    ///
    /// # Errors
    /// [`Error::TableNotFound`]; [`Error::TableUpdating`] while another call is at it; [`Error::KeyChangesExceeded`];
    /// [`Error::MasterKeyUnavailable`], [`Error::KeyUnavailable`], [`Error::WrongKey`] or [`Error::Tampered`] if a provider refuses, for the old master key or for the
    /// new one, or gives what it must not. In these cases the directory is as it was. [`Error::Io`] if the key file or the manifest
    /// cannot be written.
    pub fn update_table(&self, name: &str, master: MasterKey) -> Result<()> {
        self.update_table_with(name, KeyChange::new(master))
    }

    /// As [`update_table`](Store::update_table), with a choice.
    ///
    /// # Errors
    /// As for [`update_table`](Store::update_table).
    pub fn update_table_with(&self, name: &str, change: KeyChange) -> Result<()> {
        let id = self.engine().catalog.named(name).ok().map(|table| table.id);
        let outcome = self.keyholder().and_then(|engine| {
            let (mut report, master) = engine.change_keys(vec![engine.catalog.named(name)?], &change)?;
            report.failed.pop().map_or(Ok(master), |(_, error)| Err(error))
        });
        self.handle.record_change(name, id, &change.master, outcome.as_ref());
        outcome.map(drop)
    }

    /// As [`update_table_with`](Store::update_table_with) for many tables: providers are asked at several places at once, and many tables
    /// share one write to the manifest. A table that cannot be changed keeps no other from it.
    ///
    /// # Errors
    /// [`Error::TableNotFound`] for any of them, [`Error::MasterKeyUnavailable`], or [`Error::Io`]. What concerns one table alone is in the report.
    pub fn update_tables(&self, names: &[&str], change: KeyChange) -> Result<RewrapReport> {
        self.engine().check_open()?;
        let tables: Vec<_> = names.iter().map(|name| self.engine().catalog.named(name)).collect::<Result<_>>()?;
        self.change_many(tables, &change)
    }

    /// Wrap every table's key that is under the master key `from` (an ARN) anew under `to`: what there is to do before `from` can be
    /// disabled or deleted. `from` itself brings the wraps under its newest version. Data is not touched.
    ///
    /// # Errors
    /// As for [`update_tables`](Store::update_tables).
    pub fn rewrap_all(&self, from: &str, to: MasterKey) -> Result<RewrapReport> {
        let engine = self.keyholder()?;
        let mut failed = Vec::new();
        let mut tables = engine.catalog.all();
        tables.retain(|table| match engine.read_key_file(table.slot, table.id) {
            Ok(record) => record.wraps.iter().any(|wrap| wrap.key_arn == from),
            Err(error) => {
                if !table.is_dropped() {
                    failed.push((table.name.to_string(), error));
                }
                false
            }
        });
        let mut report = self.change_many(tables, &KeyChange::new(to).rewrap_only())?;
        report.failed.append(&mut failed);
        Ok(report)
    }

    fn change_many(&self, tables: Vec<Arc<TableState>>, change: &KeyChange) -> Result<RewrapReport> {
        let outcome = self.keyholder().and_then(|engine| engine.change_keys(tables.clone(), change));
        let failed: BTreeMap<&str, &Error> = match &outcome {
            Ok((report, _)) => report.failed.iter().map(|(name, error)| (name.as_str(), error)).collect(),
            Err(error) => tables.iter().map(|table| (&*table.name, error)).collect(),
        };
        for table in &tables {
            let outcome = match (failed.get(&*table.name).copied(), &outcome) {
                (Some(error), _) | (None, Err(error)) => Err(error),
                (None, Ok((_, master))) => Ok(master),
            };
            self.handle.record_change(&table.name, Some(table.id), &change.master, outcome);
        }
        outcome.map(|(report, _)| report)
    }

    /// Begin a new generation of a table's key under its present master key. Log and files are under it from now on; what lies there is written anew in the
    /// background, in steps, at the pace of [`rotation_bytes_per_sec`](crate::StoreOptions::rotation_bytes_per_sec), and goes on when the
    /// store is reopened. When nothing is under the old generations any more, their wraps are erased.
    ///
    /// While a rotation goes on another may be begun: what the first had not come to yet is then brought under the newest key at once.
    ///
    /// # Errors
    /// As for [`update_table`](Store::update_table).
    pub fn rotate_table_key(&self, name: &str) -> Result<Rotation> {
        let table = self.table(name)?;
        self.keyholder()?.rotate(table.state(), Vec::new())?;
        Ok(Rotation::new(table))
    }

    /// The engine, if this handle's principal may change keys.
    pub(super) fn keyholder(&self) -> Result<&Arc<Engine>> {
        self.handle.check_owner("change keys")?;
        Ok(self.handle.engine())
    }

    /// The rotation of a table's key that goes on, or the last one that has ended.
    ///
    /// # Errors
    /// [`Error::TableNotFound`].
    pub fn rotation(&self, name: &str) -> Result<Rotation> {
        Ok(Rotation::new(self.table(name)?))
    }
}

impl Engine {
    /// Change the keys of many tables.
    fn change_keys(
        self: &Arc<Engine>,
        mut tables: Vec<Arc<TableState>>,
        change: &KeyChange,
    ) -> Result<(RewrapReport, Master)> {
        self.check_writable()?;
        // Their key files lie side by side then, and share syncs of directories.
        tables.sort_by_key(|table| table.id);
        tables.dedup_by_key(|table| table.id);
        let master = self.keys.resolve(&change.master, &Principal::Owner)?;
        let held = self.hold_grants([&master], &Principal::Owner)?;
        let rekey = if change.rewrap_only { Rekey::Rewrap } else { Rekey::Both };
        let outcome = self.change_to(&tables, &master, rekey, held.edits().collect());
        // Ends the grant for the new master key if nothing came of it, and those for the old ones if no other table needs them.
        self.release_grants(held);
        outcome.map(|report| (report, master))
    }

    fn change_to(
        self: &Arc<Engine>,
        tables: &[Arc<TableState>],
        master: &Master,
        rekey: Rekey,
        mut edits: Vec<Edit>,
    ) -> Result<RewrapReport> {
        let mut report = RewrapReport::default();
        for group in tables.chunks(GROUP_TABLES) {
            let mut marked = Vec::with_capacity(group.len());
            for table in group {
                match self.mark(table) {
                    Ok(mark) => marked.push(mark),
                    Err(error) => report.failed.push((table.name.to_string(), error)),
                }
            }
            self.change_group(marked, Some(master), rekey, &mut edits, &mut report)?;
        }
        Ok(report)
    }

    /// Begin a new generation of a table's key under its present master key. `edits` go into the manifest with it.
    pub(in crate::db) fn rotate(self: &Arc<Engine>, table: &Arc<TableState>, mut edits: Vec<Edit>) -> Result<()> {
        self.check_writable()?;
        let marked = vec![self.mark(table)?];
        let mut report = RewrapReport::default();
        self.change_group(marked, None, Rekey::NewGeneration, &mut edits, &mut report)?;
        report.failed.pop().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Ask for all that is needed, then write it. Without a `master` each table keeps its own. `edits` go into the manifest with the first tables.
    fn change_group(
        self: &Arc<Engine>,
        mut marked: Vec<Mark>,
        master: Option<&Master>,
        rekey: Rekey,
        edits: &mut Vec<Edit>,
        report: &mut RewrapReport,
    ) -> Result<()> {
        // A key file may be replaced by somebody else (an old wrap erased) while the provider is asked: then it is asked again.
        while !marked.is_empty() {
            let tables: Arc<Vec<Arc<TableState>>> = Arc::new(marked.iter().map(|mark| mark.0.clone()).collect());
            let (engine, of, master_key) = (self.clone(), tables.clone(), master.cloned());
            let drafted =
                self.share_out(tables.len(), move |index| engine.draft_change(&of[index], master_key.as_ref(), rekey));
            let mut changes = Vec::with_capacity(drafted.len());
            for (table, drafted) in tables.iter().zip(drafted) {
                match drafted {
                    Ok(change) => changes.push(change),
                    Err(error) => report.failed.push((table.name.to_string(), error)),
                }
            }
            let tried = changes.len();
            let stale = self.install_changes(changes, edits)?;
            report.changed += (tried - stale.len()) as u64;
            marked.retain(|mark| {
                let is_stale = stale.iter().any(|change| Arc::ptr_eq(&change.table, &mark.0));
                if is_stale && mark.0.is_dropped() {
                    report.failed.push((mark.0.name.to_string(), Error::TableDropped { table: mark.0.id }));
                }
                is_stale && !mark.0.is_dropped()
            });
        }
        Ok(())
    }

    /// The next key file of one table. Asks the provider and writes nothing.
    fn draft_change(&self, table: &Arc<TableState>, master: Option<&Master>, rekey: Rekey) -> Result<Change> {
        self.check_not_dropped(table)?;
        let record = self.read_key_file(table.slot, table.id)?;
        let present = present_master(&record);
        let Some(master) = master.or(present.as_ref()) else {
            return Err(Error::WrongKey { table: table.id, generation: Default::default() });
        };
        if present.as_ref() != Some(master) {
            self.check_limit(table, master)?;
        }
        // The keys are made and moved for the engine, which has been granted the use of both master keys.
        let Successor { record: next, key } = self.keys.successor(&record, master, rekey, &Principal::Service)?;
        let mut edits = Vec::new();
        if present.as_ref() != Some(master) && master.kind != MasterKind::Owned {
            edits.push(Edit::KeyChanged { slot: table.slot, at_ms: self.env.clock.wall_ms() });
        }
        Ok(Change { table: table.clone(), from: record, record: next, key: key.map(Arc::new), edits })
    }

    /// Fails if the table's master key was changed too often. Going back to the owned key is never refused.
    fn check_limit(&self, table: &TableState, master: &Master) -> Result<()> {
        let Some(limit) = self.options.key_changes_per_day.filter(|_| master.kind != MasterKind::Owned) else {
            return Ok(());
        };
        let now_ms = self.env.clock.wall_ms();
        let changes = self.manifest.with_state(|state| {
            state.tables.get(&table.slot).map(|meta| meta.rare.key_changes_ms.clone()).unwrap_or_default()
        });
        match wait_ms(limit, table.created_ms, &changes, now_ms) {
            Ok(()) => Ok(()),
            Err((changes, wait_ms)) => {
                Err(Error::KeyChangesExceeded { name: table.name.to_string(), limit, changes, wait_ms })
            }
        }
    }

    /// Mark a table as being changed, which nobody else may do meanwhile.
    pub(super) fn mark(&self, table: &Arc<TableState>) -> Result<Mark> {
        // Under this lock, so that nobody who looked at the mark under it is at the key file still.
        let _creating = self.creating.lock();
        if table.changing.swap(true, Ordering::AcqRel) {
            return Err(Error::TableUpdating { name: table.name.to_string() });
        }
        Ok(Mark(table.clone()))
    }
}

/// A table whose keys the holder changes.
pub(super) struct Mark(Arc<TableState>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.changing.store(false, Ordering::Release);
    }
}

/// Whether another change is allowed: fewer than `limit` in the present 24 hours since the table was created, or none for 6 hours. If not, how many there
/// were, and how long until it is.
fn wait_ms(limit: u32, created_ms: u64, changes_ms: &[u64], now_ms: u64) -> Result<(), (u32, u64)> {
    // A clock that was put back counts as standing still: what seems to come was.
    let age_ms = now_ms.saturating_sub(created_ms);
    let window_ms = created_ms + age_ms / DAY_MS * DAY_MS;
    let changes = changes_ms.iter().filter(|at_ms| **at_ms >= window_ms).count() as u32;
    let quiet_ms = changes_ms.iter().max().map_or(now_ms, |last| last + QUIET_MS);
    if changes < limit || quiet_ms <= now_ms {
        return Ok(());
    }
    Err((changes, quiet_ms.min(window_ms + DAY_MS).saturating_sub(now_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 60 * 60 * 1000;

    #[test]
    fn four_changes_a_day_and_one_more_after_six_quiet_hours() {
        // Too strict keeps an owner from leaving a compromised key; too lax is not the limit that was asked for.
        let created_ms = 1_000_000;
        let at = |hours: u64| created_ms + hours * HOUR_MS;
        let four = [at(0), at(1), at(1), at(2)];
        assert_eq!(wait_ms(4, created_ms, &four[..3], at(3)), Ok(()));
        assert_eq!(wait_ms(4, created_ms, &four, at(3)), Err((4, 5 * HOUR_MS)), "six hours after the last one");
        assert_eq!(wait_ms(4, created_ms, &four, at(8)), Ok(()), "none for six hours");
        let five = [at(0), at(1), at(1), at(2), at(20)];
        assert_eq!(wait_ms(4, created_ms, &five, at(23)), Err((5, HOUR_MS)), "the next day begins first");
        assert_eq!(wait_ms(4, created_ms, &five, at(24)), Ok(()), "counted from the table's creation");
        assert_eq!(
            wait_ms(4, created_ms, &four, created_ms - 1000),
            Err((4, 8 * HOUR_MS + 1000)),
            "a clock that was put back has the second to make up for, too"
        );
    }

    #[test]
    fn at_most_eight_changes_fit_into_a_day() {
        // The sum of both rules is what DynamoDB documents.
        let (created_ms, mut changes) = (7, Vec::new());
        for minute in 0..24 * 60 {
            let now_ms = created_ms + minute * 60_000;
            if wait_ms(4, created_ms, &changes, now_ms).is_ok() {
                changes.push(now_ms);
            }
        }
        assert_eq!(changes.len(), 7, "four at once, and one after each six hours that begin within the day");
    }
}
