//! The behaviour that is modelled, where no other test shows it, and the page that maps every statement to a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use strongroom::keys::{
    DecryptRequest, EncryptionContext, EngineKeyRequest, GenerateDataKeyRequest, MANAGED_ALIAS, OWNED_ALIAS, Principal,
    ProviderResult,
};
use strongroom::{ErrorKind, KeyProvider, LocalKms, MasterKey, SseStatus, SseType, TableOptions, TableStatus};

use crate::providers::{Watch, Watched};
use crate::world::World;

/// Remembers which key and context each request named.
#[derive(Default)]
struct Remembering {
    requests: Mutex<Vec<(String, EncryptionContext)>>,
}

impl Remembering {
    fn watching(kms: &LocalKms) -> Arc<Watched<Remembering>> {
        Arc::new(Watched::new(kms, Remembering::default()))
    }

    fn note(&self, key: &str, context: &EncryptionContext) {
        self.requests.lock().unwrap().push((key.to_owned(), context.clone()));
    }
}

impl Watch for Remembering {
    fn before_generate(&self, request: &GenerateDataKeyRequest) -> ProviderResult<()> {
        self.note(&request.key, &request.context);
        Ok(())
    }

    fn before_decrypt(&self, request: &DecryptRequest) -> ProviderResult<()> {
        self.note(&request.key_arn, &request.context);
        Ok(())
    }
}

#[test]
fn a_table_without_a_word_about_keys_is_under_the_owned_key() {
    // A failure means that somebody who says nothing about keys gets one that he did not ask for, or none.
    let world = World::new(701);
    let store = world.create();
    let description = store.create_table("plain", TableOptions::new()).unwrap().describe().unwrap();
    assert_eq!(description.status, TableStatus::Active);
    assert_eq!(description.sse.status, SseStatus::Enabled);
    assert_eq!((description.sse.sse_type, description.sse.master_key_arn), (None, None));
}

#[test]
fn the_three_kinds_of_master_keys_give_the_same_answers() {
    // A failure means that the choice of a key changes what a table keeps.
    let world = World::new(702);
    let customer = world.kms.create_key(Some("alias/mine"), "").unwrap();
    let store = world.create();
    let mut seen = Vec::new();
    for (name, key) in [
        ("owned", MasterKey::owned()),
        ("managed", MasterKey::managed()),
        ("customer", MasterKey::customer("alias/mine")),
    ] {
        let table = store.create_table(name, TableOptions::new().master_key(key)).unwrap();
        for number in 0..200 {
            table.put(format!("key {:03}", number * 7 % 150), format!("value {number}")).unwrap();
        }
        table.delete("key 003").unwrap();
        table.compact().unwrap();
        table.put("late", "one").unwrap();
        let sse = table.describe().unwrap().sse;
        let entries: Vec<_> = table.iter().map(|entry| entry.unwrap()).collect();
        seen.push((sse, entries));
    }
    assert!(seen[0].1 == seen[1].1 && seen[1].1 == seen[2].1);
    assert_eq!(seen[0].1.len(), 150);
    let managed = world.kms.key(MANAGED_ALIAS).unwrap();
    let arns: Vec<_> = seen.iter().map(|(sse, _)| (sse.status, sse.sse_type, sse.master_key_arn.clone())).collect();
    assert_eq!(
        arns,
        [
            (SseStatus::Enabled, None, None),
            (SseStatus::Enabled, Some(SseType::Kms), Some(managed.arn)),
            (SseStatus::Enabled, Some(SseType::Kms), Some(customer.arn)),
        ]
    );
}

#[test]
fn all_four_forms_of_a_name_stand_for_one_recorded_arn() {
    // A failure means that a table is lost when somebody points an alias elsewhere.
    let world = World::new(703);
    let key = world.kms.create_key(Some("alias/mine"), "").unwrap();
    let alias_arn = key.arn.replace(&format!("key/{}", key.id), "alias/mine");
    let provider = Remembering::watching(&world.kms);
    let builder = || world.builder().shared_key_provider(provider.clone());
    let store = builder().create().unwrap();
    for (number, name) in [&key.id, &key.arn, "alias/mine", &alias_arn].into_iter().enumerate() {
        let options = TableOptions::new().master_key(MasterKey::customer(name));
        store.create_table(&format!("table {number}"), options).unwrap().put("k", "v").unwrap();
    }
    store.close().unwrap();
    world.kms.remove_alias("alias/mine").unwrap();
    world.kms.create_key(Some("alias/mine"), "another key").unwrap();

    provider.requests.lock().unwrap().clear();
    let store = builder().open().unwrap();
    for number in 0..4 {
        let table = store.table(&format!("table {number}")).unwrap();
        assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        assert_eq!(table.describe().unwrap().sse.master_key_arn.as_ref(), Some(&key.arn));
    }
    let owned = world.kms.owned_key(&EngineKeyRequest::new(Principal::Service)).unwrap().arn;
    let named: BTreeSet<String> = provider.requests.lock().unwrap().iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(named, BTreeSet::from([owned, key.arn]), "the provider is asked by ARN alone");
}

#[test]
fn the_owned_key_is_in_nobodys_sight() {
    // A failure means that users see, and can break, a key that is the engine's own affair.
    let world = World::new(704);
    let store = world.create();
    store.create_table("plain", TableOptions::new()).unwrap().put("k", "v").unwrap();
    assert!(world.kms.list_keys().unwrap().is_empty());
    assert_eq!(world.kms.disable(OWNED_ALIAS).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(world.kms.add_alias(OWNED_ALIAS, "alias/mine").unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn the_managed_key_is_made_at_first_use_and_not_the_users_to_manage() {
    // A failure means two managed keys where one is expected, or a table lost by a slip of the hand.
    let world = World::new(705);
    let store = world.create();
    store.create_table("plain", TableOptions::new()).unwrap();
    assert!(world.kms.list_keys().unwrap().is_empty(), "nobody has asked for it yet");
    let managed = || TableOptions::new().master_key(MasterKey::managed());
    let first = store.create_table("one", managed()).unwrap().describe().unwrap().sse;
    let second = store.create_table("two", managed()).unwrap().describe().unwrap().sse;
    let listed = world.kms.list_keys().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(first.master_key_arn.as_ref(), Some(&listed[0].arn));
    assert_eq!(first, second);
    assert_eq!(listed[0].aliases, [MANAGED_ALIAS]);
    assert_eq!(world.kms.disable(MANAGED_ALIAS).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn the_context_names_ids_and_never_the_table() {
    // A failure means that table names stand in clear in a KMS's log, or that a wrap opens for another table.
    let world = World::new(706);
    let provider = Remembering::watching(&world.kms);
    let store = world.builder().shared_key_provider(provider.clone()).create().unwrap();
    let table = store.create_table("CANARY-NAME", TableOptions::new()).unwrap();
    let other = store.create_table("CANARY-OTHER", TableOptions::new()).unwrap();
    let requests = provider.requests.lock().unwrap();
    let contexts: Vec<BTreeMap<&str, &str>> = requests.iter().map(|(_, context)| context.pairs().collect()).collect();
    assert!(!format!("{contexts:?}").contains("CANARY"));
    let (store_id, table_id) = (store.id().to_string(), table.id().to_string());
    let expected = BTreeMap::from([
        ("strongroom:generation", "1"),
        ("strongroom:purpose", "table key"),
        ("strongroom:store", &*store_id),
        ("strongroom:table", &*table_id),
    ]);
    assert!(contexts.contains(&expected), "{contexts:?}");
    assert_ne!(table.id(), other.id());
    assert_eq!(contexts.iter().collect::<BTreeSet<_>>().len(), 3, "system key and two tables");
}

#[test]
fn a_table_made_again_under_its_name_shares_nothing_with_the_one_before() {
    // A failure means that somebody who kept files of a dropped table gets its contents into the new one.
    let world = World::new(707);
    let store = world.create();
    let fill = |word: &str| {
        let table = store.create_table("t", TableOptions::new()).unwrap();
        for number in 0..100 {
            table.put(format!("key {number}"), format!("{word} {number}")).unwrap();
        }
        table.flush().unwrap();
        table.id()
    };
    let sorted_tables = || {
        let files = world.sim.vfs.snapshot();
        files.into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "sst")).collect::<Vec<_>>()
    };
    let first = fill("old");
    let old = sorted_tables();
    store.drop_table("t").unwrap();
    assert!(sorted_tables().is_empty());
    let second = fill("new");
    assert_ne!(first, second);
    assert_eq!(store.table("t").unwrap().get("key 7").unwrap().as_deref(), Some(&b"new 7"[..]));
    let new = sorted_tables();
    store.close().unwrap();
    for ((path, _), (_, bytes)) in new.iter().zip(&old) {
        world.sim.vfs.plant(path, bytes).unwrap();
    }
    let store = world.open().unwrap();
    let refused = store.table("t").unwrap().get("key 7").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Tampering, "{refused}");
}

/// The rows of the page: first cell and last cell.
fn rows(page: &str) -> Vec<(String, String)> {
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    page.lines()
        .filter(|line| line.starts_with("| S") || line.starts_with("| M-"))
        .map(|line| {
            let cells = cells(line);
            (cells[0].clone(), cells[cells.len() - 1].clone())
        })
        .collect()
}

fn sources(directory: &Path, found: &mut String) {
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(entry).unwrap());
        }
    }
}

#[test]
fn every_statement_is_on_the_page_once_and_every_test_that_it_names_exists() {
    // A failure means that the page promises what nothing shows.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/DYNAMODB.md")).unwrap();
    let (mapped, left_out) = page.split_once("## Statements that do not concern").unwrap();
    let rows_of = |part| rows(part);

    let mut statements: Vec<String> = Vec::new();
    for (first, _) in rows_of(mapped).into_iter().chain(rows_of(left_out)) {
        statements.extend(first.split(", ").map(str::to_owned));
    }
    statements.sort();
    let numbers =
        |prefix: &str, count: usize| (1..=count).map(|number| format!("{prefix}{number}")).collect::<Vec<_>>();
    let mut expected = [numbers("S0-", 22), numbers("S4-", 57), numbers("M-", 24)].concat();
    expected.sort();
    assert_eq!(statements, expected);

    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    sources(&root.join("tests"), &mut code);
    for (statement, shown_by) in rows_of(mapped) {
        let tests: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{statement} names no test: {shown_by}");
        for test in tests {
            let exists = match test.strip_prefix(".ci/") {
                Some(script) => root.join(".ci").join(script).exists(),
                None => code.contains(&format!("fn {test}(")),
            };
            assert!(exists, "{statement} names {test}, which does not exist");
        }
    }
}
