//! The store's figures: they agree with what was done, say nothing secret, and every one of them is on the page.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use strongroom::error::ProviderReason;
use strongroom::keys::faulty::{FaultyProvider, Operation, Rule};
use strongroom::metrics::{MetricKind, MetricValue, Metrics, ProviderCalls};
use strongroom::{MasterKey, Store, TableOptions};

use crate::world::{DIR, World, tiny_table};

fn number(metrics: &Metrics, name: &str) -> u64 {
    match metrics.list().into_iter().find(|metric| metric.name == name).map(|metric| metric.value) {
        Some(MetricValue::Number(number)) => number,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn writes_and_reads_are_counted_where_they_were_answered() {
    // A failure means that somebody looks for a slow store's reason in the wrong place.
    let world = World::new(0x4d01);
    let store = world.create();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    let before = store.metrics();
    for i in 0..10u8 {
        table.put([b'k', i], [i; 100]).unwrap();
    }
    table.delete(b"k\x00").unwrap();
    let mut batch = store.batch();
    batch.put(&table, b"x", b"1").put(&table, b"y", b"2").delete(&table, b"z");
    batch.commit().unwrap();
    // Eight are in memory, one of them deleted.
    for i in 0..8u8 {
        table.get([b'k', i]).unwrap();
    }
    let since = store.metrics().since(&before);
    assert_eq!((since.writes.commits, since.writes.groups, since.writes.puts, since.writes.deletes), (12, 12, 12, 2));
    assert_eq!(since.writes.user_bytes, 10 * 102 + 2 + 2 + 2 + 1);
    assert_eq!((since.writes.group_commits.count(), since.writes.group_commits.sum()), (12, 12));
    assert_eq!((since.reads.memtable, since.reads.level, since.reads.absent), (8, [0; 7], 0));
    // Each group is an envelope and one section.
    assert_eq!(since.sealed.log_frames, 24);

    store.flush().unwrap();
    let flushed = store.metrics();
    let level = flushed.store.level_files.iter().position(|files| *files == 1).unwrap();
    for i in 0..10u8 {
        table.get([b'k', i]).unwrap();
    }
    for i in 0..5u8 {
        table.get([b'n', i]).unwrap();
    }
    let since = store.metrics().since(&flushed);
    assert_eq!((since.reads.memtable, since.reads.level[level], since.reads.absent), (0, 10, 5));
    // One block: read once, and then found in the cache. Those that are nowhere lie within the file's bounds.
    assert_eq!(since.cache.misses, 1);
    assert_eq!(since.cache.hits + since.cache.misses, since.filters.passed + since.filters.false_positives);
    assert_eq!(since.filters.passed, 10);
    assert_eq!(since.filters.useful + since.filters.false_positives, 5);
    assert_eq!(since.point_reads(), 15);
}

#[test]
fn flushes_and_compactions_are_counted_with_every_frame_that_they_seal() {
    // A failure means that write amplification, which decides how long a disk lives, is wrong.
    let world = World::new(0x4d02);
    let store = world.create();
    let table = store.create_table("t", tiny_table(0)).unwrap();
    for round in 0..3 {
        let before = store.metrics();
        for i in 0..20 {
            table.put(format!("key {i:02}"), format!("value {round}")).unwrap();
        }
        store.flush().unwrap();
        let since = store.metrics().since(&before);
        assert_eq!((since.flushes.batches, since.flushes.memtables, since.flushes.files), (1, 1, 1));
        assert_eq!(since.flushes.lasted_ns.count(), 1);
        let files = world.sim.vfs.snapshot();
        let newest = files.iter().rfind(|(path, _)| path.extension().is_some_and(|end| end == "sst"));
        assert_eq!(since.flushes.written_bytes, newest.unwrap().1.len() as u64);
        // 20 entries in blocks of 256 bytes, and index, filter, properties, bounds and footer.
        assert!(since.sealed.table_frames > 5, "{}", since.sealed.table_frames);
        assert_eq!(since.sealed.table_bytes, since.flushes.written_bytes);
    }
    let before = store.metrics();
    store.compact().unwrap();
    let now = store.metrics();
    let since = now.since(&before);
    assert!(since.compactions.jobs >= 1);
    assert_eq!(since.compactions.read_bytes, before.store.level_bytes.iter().sum::<u64>());
    assert_eq!(since.compactions.written_bytes, now.store.level_bytes.iter().sum::<u64>());
    assert_eq!(since.sealed.table_bytes, since.compactions.written_bytes);
    assert_eq!(now.store.level_files.iter().sum::<u64>(), 1);
    assert!(now.write_amplification().unwrap() > 1.0);
}

#[test]
fn provider_requests_are_counted_as_the_provider_counts_them() {
    // A failure means that a bill of the KMS cannot be explained.
    let world = World::new(0x4d03);
    world.kms.create_key(Some("alias/own"), "").unwrap();
    let faulty = FaultyProvider::new(world.kms.clone());
    let store = world.builder().shared_key_provider(std::sync::Arc::new(faulty.clone())).create().unwrap();
    faulty.inject(Rule::on(Operation::GenerateDataKey).nth(1).fail(ProviderReason::Throttled));
    let own = TableOptions::new().master_key(MasterKey::customer("alias/own"));
    store.create_table("t", own.clone()).unwrap_err();
    let table = store.create_table("t", own).unwrap();
    table.put("k", "v").unwrap();
    faulty.inject(Rule::on(Operation::Decrypt).always().fail(ProviderReason::KeyDisabled));
    world.sim.clock.advance(Duration::from_secs(600));
    world.sim.scheduler.run_until_idle();
    table.get("k").unwrap_err();
    let provider = store.metrics().provider;
    let all = |calls: &ProviderCalls| {
        let outcomes = [calls.ok, calls.transient, calls.principal, calls.key, calls.material, calls.request];
        assert_eq!(calls.lasted_ns.count(), outcomes.iter().sum::<u64>());
        calls.lasted_ns.count()
    };
    for (operation, calls) in [
        (Operation::DescribeKey, &provider.describe_key),
        (Operation::OwnedKey, &provider.owned_key),
        (Operation::ManagedKey, &provider.managed_key),
        (Operation::GenerateDataKey, &provider.generate_data_key),
        (Operation::Decrypt, &provider.decrypt),
        (Operation::Encrypt, &provider.encrypt),
        (Operation::ReEncrypt, &provider.re_encrypt),
        (Operation::CreateGrant, &provider.create_grant),
        (Operation::RetireGrant, &provider.retire_grant),
        (Operation::ScheduleKeyDeletion, &provider.schedule_key_deletion),
    ] {
        assert_eq!(all(calls), faulty.count(operation), "{operation:?}");
    }
    assert_eq!(provider.generate_data_key.transient, 1);
    assert!(provider.decrypt.key >= 1);
}

#[test]
fn gauges_show_what_is_held() {
    // A failure means that nobody finds the snapshot that keeps a disk from being freed.
    let world = World::new(0x4d04);
    let store = world.create();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    let empty = store.metrics();
    assert_eq!((empty.pins.moments, empty.pins.oldest_ms), (0, 0));
    assert_eq!(empty.pins.oldest_seq, empty.pins.visible_seq);
    let snapshot = store.snapshot();
    let other = snapshot.clone();
    table.put("k", "w").unwrap();
    world.sim.clock.advance(Duration::from_secs(60));
    let held = store.metrics();
    assert_eq!((held.pins.moments, held.pins.oldest_seq), (1, empty.pins.visible_seq));
    assert!((59_000..=61_000).contains(&held.pins.oldest_ms), "{}", held.pins.oldest_ms);
    drop(snapshot);
    assert_eq!(store.metrics().pins.moments, 1);
    drop(other);
    assert_eq!(store.metrics().pins.moments, 0);

    let full = store.metrics();
    assert_eq!((full.store.tables, full.memtables.dirty_tables), (1, 1));
    assert!(full.memtables.bytes > 0 && full.memtables.bytes <= full.memtables.budget_bytes);
    assert!(full.log.bytes > 0 && full.log.oldest_segment <= full.log.newest_segment);
    assert_eq!((full.keys.tables_in_use, full.keys.inaccessible_tables), (1, 0));
    store.flush().unwrap();
    assert_eq!(store.metrics().memtables.dirty_tables, 0);

    // A value that is held keeps its block, whatever becomes of the cache.
    table.put("large", vec![7; 1000]).unwrap();
    store.flush().unwrap();
    let value = table.get("large").unwrap().unwrap();
    assert_eq!(store.metrics().cache.pinned_bytes, 0, "it is in the cache");
    store.drop_table("t").unwrap();
    assert!(store.metrics().cache.pinned_bytes >= 1000);
    drop(value);
    assert_eq!(store.metrics().cache.pinned_bytes, 0);
}

#[test]
fn figures_name_nothing_secret() {
    // A failure means that a tenant's name or data shows on a page that everybody in operations reads.
    let store = Store::temporary().unwrap();
    let table = store.create_table("canary-table", TableOptions::new()).unwrap();
    table.put("canary-key", "canary-value").unwrap();
    store.flush().unwrap();
    table.get("canary-key").unwrap();
    let metrics = store.metrics();
    for shown in [format!("{metrics}"), format!("{metrics:?}"), format!("{:?}", metrics.list())] {
        assert!(!shown.contains("canary"), "{shown}");
    }
    assert!(format!("{metrics}").contains("puts"));
    assert_eq!(number(&metrics, "writes.puts"), 1);
}

#[test]
fn the_figures_of_a_closed_store_are_those_of_its_end() {
    // A failure means that a program which reports at its end panics, or reports nothing.
    let world = World::new(0x4d05);
    let store = world.create();
    let table = store.create_table("t", TableOptions::new()).unwrap();
    table.put("k", "v").unwrap();
    store.close().unwrap();
    assert_eq!(store.metrics().writes.puts, 1);
    // And the next opening begins at nothing.
    let again = world.open().unwrap();
    assert_eq!(again.metrics().writes.puts, 0);
    assert!(again.metrics().opened.manifest_frames > 0);
    again.table("t").unwrap().get("k").unwrap();
    assert!(again.metrics().opened.log_frames > 0);
    assert!(world.sim.vfs.snapshot().keys().all(|path| path.starts_with(DIR)));
}

/// First cells of the page's tables, with what stands behind them.
fn rows(page: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    page.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

#[test]
fn every_figure_is_on_the_page_with_its_kind_and_unit_and_no_other() {
    // A failure means that somebody sets an alarm at a figure that means something else.
    let page = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md")).unwrap();
    let store = Store::temporary().unwrap();
    let mut expected = BTreeSet::new();
    for metric in store.metrics().list() {
        // Levels and operations have a row for all of them.
        let mut name = metric.name.clone();
        if let Some((field, _)) = name.rsplit_once('.').filter(|(_, last)| last.parse::<usize>().is_ok()) {
            name = format!("{field}.N");
        }
        if let Some((_, figure)) = name.strip_prefix("provider.").and_then(|rest| rest.split_once('.')) {
            name = format!("provider.OPERATION.{figure}");
        }
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            _ => "distribution",
        };
        expected.insert((name, kind.to_owned(), metric.unit.to_owned()));
    }
    let rows = rows(&page);
    let found: BTreeSet<_> =
        rows.iter().map(|row| (row[0].trim_matches('`').to_owned(), row[1].clone(), row[2].clone())).collect();
    assert_eq!(found.len(), rows.len(), "a figure stands there twice");
    let missing: Vec<_> = expected.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing: {missing:#?}, unknown: {unknown:#?}");
    assert!(rows.iter().all(|row| row.len() == 4 && !row[3].is_empty()), "every figure is explained");
}
