//! The queries that the model's documentation gives for its trail, run by a database that never heard of us, over the files of a real workload.
//!
//! What the queries answer must be what the command line answers, and what the key provider itself counted. `.ci/trail` installs DuckDB and says where; without
//! it, the command line is still held against the provider.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use strongroom::error::ProviderReason;
use strongroom::io::sim::Simulation;
use strongroom::io::{Clock, Environment};
use strongroom::keys::faulty::{Asked, FaultyProvider, Operation, Rule};
use strongroom::keys::trail::JsonLinesTrail;
use strongroom::keys::{KeyOperation, KeyPolicy, OWNED_ALIAS, PolicyStatement, Principal};
use strongroom::{LocalKms, MasterKey, Store, TableOptions, TrailOptions, Unlock};

/// The simulated calendar's second day, on which most of it happens.
const DAY: [&str; 3] = ["2026", "01", "02"];

/// A store with a trail in real files, under a clock that is moved.
struct Desk {
    dir: tempfile::TempDir,
    simulation: Simulation,
    environment: Environment,
    kms: LocalKms,
    provider: FaultyProvider,
}

impl Desk {
    fn new() -> Desk {
        let dir = tempfile::tempdir().unwrap();
        let simulation = Simulation::new(1201);
        // Files and randomness are real, so that the command line opens what is made here.
        let os = Environment::os();
        let environment = Environment { vfs: os.vfs, entropy: os.entropy, ..simulation.environment() };
        std::fs::write(dir.path().join("key"), [7; 32]).unwrap();
        let unlock = Unlock::key(|key| key.fill(7));
        let kms = LocalKms::create_in(environment.clone(), dir.path().join("keyring"), unlock).unwrap();
        let provider = FaultyProvider::new(kms.clone()).in_environment(&environment);
        Desk { dir, simulation, environment, kms, provider }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn builder(&self) -> strongroom::Builder {
        let sink = JsonLinesTrail::in_environment(self.path("trail"), &self.environment);
        Store::builder(self.path("store"))
            .environment(self.environment.clone())
            .shared_key_provider(Arc::new(self.provider.clone()))
            .trail(Arc::new(sink), TrailOptions::new())
    }

    fn pass(&self, total: Duration) {
        let end = self.simulation.clock.tick().after(total);
        while self.simulation.clock.tick() < end {
            self.simulation.clock.advance(Duration::from_millis(500));
            self.simulation.scheduler.run_until_idle();
        }
    }

    /// What the command line says, line by line.
    fn command(&self, args: &[&str]) -> Vec<Json> {
        let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(["--store", &self.path("store"), "--keyring", &self.path("keyring"), "--key-file", &self.path("key")])
            .args(["--trail", &self.path("trail"), "trail", "--json"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn arn(&self, alias: &str) -> String {
        self.kms.key(alias).unwrap().arn
    }

    /// The provider's own account, without the owned key's requests.
    fn asked(&self) -> Vec<Asked> {
        let owned = self.arn(OWNED_ALIAS);
        let shown = |asked: &Asked| asked.operation != Operation::OwnedKey && asked.key != owned;
        self.provider.requests().into_iter().filter(shown).collect()
    }
}

/// Two days: tables under two customers' keys and the managed one, readers who may and who may not, an outage, a drop. Returns the id of a table.
fn workload(desk: &Desk) -> String {
    let under = |key: &str| TableOptions::new().master_key(MasterKey::customer(key));
    desk.kms.create_key(Some("alias/one"), "").unwrap();
    desk.kms.create_key(Some("alias/two"), "").unwrap();
    let owner = PolicyStatement::allow([Principal::Owner, Principal::Service], KeyOperation::ALL);
    let ada = PolicyStatement::allow([Principal::Named("ada".into())], KeyOperation::DATA_KEYS);
    desk.kms.put_policy("alias/one", KeyPolicy::new([owner, ada])).unwrap();
    let store = desk.builder().create().unwrap();
    store.create_table("orders", under("alias/one")).unwrap().put("k", "v").unwrap();
    desk.simulation.clock.advance(Duration::from_secs(86_400 - 5));
    store.create_table("late", under("alias/one")).unwrap();
    store.close().unwrap();

    desk.simulation.clock.advance(Duration::from_secs(3_600));
    let store = desk.builder().open().unwrap();
    let orders = store.table("orders").unwrap();
    let sessions = ["ada", "eve"].map(|name| store.session(Principal::Named(name.into())).unwrap());
    for _ in 0..3 {
        assert!(orders.get("k").unwrap().is_some());
        orders.put("k", "w").unwrap();
        assert!(sessions[0].table("orders").unwrap().get("k").unwrap().is_some());
        assert!(sessions[1].table("orders").unwrap().get("k").is_err());
        desk.pass(Duration::from_secs(400));
    }
    store.create_table("returns", under("alias/two")).unwrap().put("k", "v").unwrap();
    store.create_table("more", under("alias/two")).unwrap();
    store.create_table("managed", TableOptions::new().master_key(MasterKey::managed())).unwrap();
    store.create_table("owned", TableOptions::new()).unwrap().put("k", "v").unwrap();
    store.update_table("late", MasterKey::customer("alias/two")).unwrap();
    store.update_table("more", MasterKey::owned()).unwrap();
    assert!(sessions[1].update_table("orders", MasterKey::owned()).is_err());
    desk.provider.inject(Rule::on(Operation::GenerateDataKey).nth(1).fail(ProviderReason::Throttled));
    assert!(store.create_table("never", under("alias/two")).is_err());
    desk.provider.heal();
    assert!(store.create_table("orders", under("alias/two")).is_err());
    assert!(sessions[1].drop_table("more").is_err());
    store.drop_table("returns").unwrap();
    let id = orders.id().to_string();
    store.close().unwrap();
    id
}

fn text<'a>(json: &'a Json, name: &str) -> &'a str {
    json[name].as_str().unwrap_or_default()
}

fn name_of(operation: Operation) -> String {
    match operation {
        Operation::ManagedKey => "DescribeKey".to_owned(),
        operation => format!("{operation:?}"),
    }
}

#[test]
fn queries_command_line_and_provider_give_the_same_answers() {
    // An auditor asks with his own tools. If they say something else than ours, one of the two hides something.
    let desk = Desk::new();
    let table = workload(&desk);
    let [year, month, day] = DAY;
    let date = DAY.join("-");

    // The command line against the provider.
    let mut asked: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for one in desk.asked() {
        let (calls, failed) = asked.entry(name_of(one.operation)).or_default();
        *calls += 1;
        *failed += u64::from(one.outcome != Some(Ok(())));
    }
    let counts = desk.command(&["count"]);
    let of_keys = counts.iter().filter(|count| text(count, "eventSource") == "kms.strongroom");
    let counted: BTreeMap<String, (u64, u64)> = of_keys
        .map(|count| {
            let number = |name: &str| count[name].as_u64().unwrap();
            (text(count, "eventName").to_owned(), (number("calls"), number("failed")))
        })
        .collect();
    assert_eq!(counted, asked);
    let for_table = |one: &&Asked| one.context.value("strongroom:table") == Some(&table);
    let of_table = desk.command(&["table", "orders"]);
    assert_eq!(of_table, desk.command(&["table", &table]));
    assert!(
        of_table.iter().map(|call| text(call, "eventName").to_owned()).eq(desk
            .asked()
            .iter()
            .filter(for_table)
            .map(|one| name_of(one.operation)))
    );
    for alias in ["alias/one", "alias/two", "alias/strongroom"] {
        let uses = desk.command(&["key", alias]);
        assert!(!uses.is_empty());
        assert!(uses.iter().all(|one| one["inUseByTrail"] == one["inUseByStore"]), "{alias}: {uses:#?}");
    }
    assert_eq!(desk.command(&["verify"])[0]["damages"], serde_json::json!([]));

    // The queries against the command line.
    let Ok(python) = std::env::var("STRONGROOM_DUCKDB") else {
        println!("no DuckDB: .ci/trail installs it");
        return;
    };
    let query = |key: &str, names: &[&str]| -> BTreeMap<String, Vec<Json>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trail/query.py");
        let mut command = Command::new(&python);
        command.arg(script).args([&desk.path("trail"), year, month, day, &table, key]).args(names);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for alias in ["alias/one", "alias/two", "alias/strongroom"] {
        let key = desk.arn(alias);
        check_queries(&desk, &query(&key, &[]), &table, &key, &date);
    }

    // Not a record, on a day that is not asked for: a query for a day that read it would fail.
    let elsewhere = Path::new(&desk.path("trail")).join("2025/12/31");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("broken.jsonl"), "not a record\n").unwrap();
    assert_eq!(query(&desk.arn("alias/one"), &QUERIES).len(), QUERIES.len());
}

/// The four of the documentation.
const QUERIES: [&str; 4] = [
    "calls of tables on a day",
    "requests for keys that the store made on a day",
    "requests for keys for one table, in the order of time",
    "tables that use a key",
];

/// Each query's answer is the command's.
fn check_queries(desk: &Desk, answers: &BTreeMap<String, Vec<Json>>, table: &str, key: &str, date: &str) {
    let rows = |name: &str| answers.get(name).unwrap_or_else(|| panic!("no query {name:?}"));
    let ids = |rows: &[Json], name: &str| -> Vec<String> {
        let mut ids: Vec<_> = rows.iter().map(|row| text(row, name).to_owned()).collect();
        ids.sort();
        ids
    };

    let calls = desk.command(&["calls", "--day", date, "--source", "tables"]);
    assert!(calls.len() > 5);
    assert_eq!(ids(rows(QUERIES[0]), "eventid"), ids(&calls, "eventID"));

    let brief = |row: &Json, time: &str, name: &str, who: &str| {
        let who = text(&row[who], "principalId").to_owned();
        (text(row, time).to_owned(), text(row, name).to_owned(), who)
    };
    let by_query = |rows: &[Json]| -> Vec<_> {
        rows.iter().map(|row| brief(row, "eventtime", "eventname", "useridentity")).collect()
    };
    let by_command = |rows: &[Json]| -> Vec<_> {
        rows.iter().map(|row| brief(row, "eventTime", "eventName", "userIdentity")).collect()
    };
    let mut requests = by_query(rows(QUERIES[1]));
    let mut expected = by_command(&desk.command(&["calls", "--day", date, "--source", "keys"]));
    requests.sort();
    expected.sort();
    assert!(expected.len() > 10);
    assert_eq!(requests, expected);

    // In the order of time; those of one moment in any order.
    let mut of_table = by_query(rows(QUERIES[2]));
    assert!(of_table.is_sorted_by(|one, next| one.0 <= next.0));
    let on_day = |row: &&Json| text(row, "eventTime").starts_with(date);
    let mut expected = by_command(&desk.command(&["table", table]).iter().filter(on_day).cloned().collect::<Vec<_>>());
    of_table.sort();
    expected.sort();
    assert!(expected.iter().any(|(_, name, who)| name == "Decrypt" && who == "eve"));
    assert_eq!(of_table, expected);

    // Over both days, as the command answers: the table of the first day may not be used on the second.
    let mut using: Vec<_> = rows(QUERIES[3]).iter().map(|row| text(row, "ddbtbl").to_owned()).collect();
    using.retain(|table| !table.is_empty());
    using.dedup();
    let known: Vec<_> = desk.command(&["key", key]).iter().map(|row| text(row, "tableId").to_owned()).collect();
    assert!(!using.is_empty() && using.iter().all(|table| known.contains(table)), "{using:?} of {known:?}");

    let counts: Vec<_> = rows("how many of each kind")
        .iter()
        .map(|row| {
            let numbers: Vec<_> = ["calls", "failed"].iter().map(|name| row[name].as_u64()).collect();
            (text(row, "eventsource").to_owned(), text(row, "eventname").to_owned(), numbers)
        })
        .collect();
    let expected: Vec<_> = desk
        .command(&["count"])
        .iter()
        .map(|row| {
            let numbers = vec![row["calls"].as_u64(), row["failed"].as_u64()];
            (text(row, "eventSource").to_owned(), text(row, "eventName").to_owned(), numbers)
        })
        .collect();
    assert_eq!(counts, expected);
}
