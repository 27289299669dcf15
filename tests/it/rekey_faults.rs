//! A disk that fails while keys are changed costs nobody what was acknowledged.
//!
//! Each way in which keys change runs over a file system in which one operation fails: every one in turn, once and from then on. Then
//! the power is cut, or only the process ended, the disk is well again, and the store is opened: it opens, everything acknowledged is in it, and
//! the change can be brought to its end. A change that was said to be done needs the old master key no more.

use std::sync::{Arc, Mutex};

use strongroom::io::fault::{FaultVfs, Rule};
use strongroom::io::mem::Loss;
use strongroom::{KeyChange, MasterKey, Result, Store, TableOptions};

use crate::world::{World, row, setting, tiny_table};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Rotate,
    Update,
    RewrapOnly,
    RotateSystem,
    RewrapAll,
}

impl Change {
    const ALL: [Change; 5] =
        [Change::Rotate, Change::Update, Change::RewrapOnly, Change::RotateSystem, Change::RewrapAll];

    fn carry_out(self, store: &Store, old_arn: &str) -> Result<()> {
        let new = || MasterKey::customer("alias/new");
        match self {
            Change::Rotate => store.rotate_table_key("t")?.wait(),
            Change::Update => {
                store.update_table("t", new())?;
                store.rotation("t")?.wait()
            }
            Change::RewrapOnly => store.update_table_with("t", KeyChange::new(new()).rewrap_only()),
            Change::RotateSystem => {
                store.rotate_system_key()?;
                store.wait_for_system_rotation()
            }
            Change::RewrapAll => {
                let report = store.rewrap_all(old_arn, new())?;
                report.failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
            }
        }
    }

    /// Whether the old master key is needed no more once it is done.
    fn leaves_the_old_key(self) -> bool {
        matches!(self, Change::Update | Change::RewrapOnly | Change::RewrapAll)
    }
}

fn under(alias: &str) -> TableOptions {
    tiny_table(0).master_key(MasterKey::customer(alias))
}

/// The `nth` operation from the beginning of the change on fails, or all from there on. False if there are not so many.
fn one_fault(change: Change, nth: u64, sticky: bool, loss: Loss) -> bool {
    let life = 0x4e00_0000_0000
        | (change as u64) << 40
        | u64::from(sticky) << 39
        | u64::from(loss.is_power_cut()) << 38
        | nth << 8;
    let world = World::new(life);
    let old = world.kms.create_key(Some("alias/old"), "").unwrap().arn;
    world.kms.create_key(Some("alias/new"), "").unwrap();
    let faulty = FaultVfs::new(world.sim.vfs.clone());
    let store = world.builder_over(Arc::new(faulty.clone())).create().unwrap();
    let table = store.create_table("t", under("alias/old")).unwrap();
    store.create_table("other", tiny_table(1)).unwrap().put("k", "v").unwrap();
    for number in 0..60 {
        table.put(format!("key {number:02}"), vec![number; 100]).unwrap();
    }
    store.flush().unwrap();
    table.put("in the log", "yes").unwrap();
    store.sync().unwrap();
    let mut expected = row(&table).unwrap();

    let hit: Arc<Mutex<Option<String>>> = Arc::default();
    let seen = hit.clone();
    faulty.inject(Rule::on_any().nth(nth).call(move |operation, path| {
        seen.lock().unwrap().get_or_insert_with(|| format!("{operation:?} of {}", path.display()));
    }));
    let rule = if sticky { Rule::on_any().from_nth(nth) } else { Rule::on_any().nth(nth) };
    faulty.inject(rule.fail_os(5));
    let outcome = change.carry_out(&store, &old);
    let Some(hit) = hit.lock().unwrap().clone() else {
        outcome.unwrap();
        return false;
    };
    let what = format!("{change:?}, operation {nth} ({hit}) fails (sticky: {sticky}), {:?}", outcome.as_ref().err());
    // What was acknowledged after the fault counts, too.
    let late = table.put("late", "value").and_then(|()| store.sync()).is_ok();
    if late {
        expected.insert(b"late".to_vec(), b"value".to_vec());
    }
    let disk = world.sim.vfs.crash_at(world.sim.vfs.events(), loss, nth);
    let again = world.over(disk, life | 1);
    if outcome.is_ok() && change.leaves_the_old_key() {
        world.kms.disable("alias/old").unwrap();
    }
    let store = again.open().unwrap_or_else(|error| panic!("{what}, {loss:?}: {error}"));
    let table = store.table("t").unwrap();
    let mut found = row(&table).unwrap_or_else(|error| panic!("{what}, {loss:?}: {error}"));
    if !late {
        found.remove(&b"late"[..]);
    }
    assert!(found == expected, "{what}, {loss:?}: {} entries of {}", found.len(), expected.len());
    assert_eq!(store.table("other").unwrap().get("k").unwrap().as_deref(), Some(&b"v"[..]), "{what}, {loss:?}");
    // And the same again, on a disk that is well.
    change.carry_out(&store, &old).unwrap_or_else(|error| panic!("{what}, {loss:?}, again: {error}"));
    store.close().unwrap_or_else(|error| panic!("{what}, {loss:?}, close: {error}"));
    true
}

#[test]
fn no_operation_that_fails_while_keys_change_costs_a_key_or_an_entry() {
    // A failure means that a bad sector at the wrong moment takes a whole table, because nothing opens its key any more.
    let stride = setting("STRONGROOM_FAULT_STRIDE", 1) as u64;
    for change in Change::ALL {
        for (sticky, loss) in [(false, Loss::KeepAll), (false, Loss::LoseUnsynced), (true, Loss::LoseUnsynced)] {
            let mut nth = 1;
            while one_fault(change, nth, sticky, loss) {
                nth += stride;
            }
            assert!(nth > 10, "{change:?} is more than {nth} operations");
        }
    }
}
