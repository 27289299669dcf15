//! The audit trail: what is in it, that nothing can be taken out of it unnoticed, and what a crash leaves of it.
//!
//! Everything runs in a simulated world; store and trail lie on one disk, in folders of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use strongroom::error::ProviderReason;
use strongroom::event::Event;
use strongroom::inspect::Inspection;
use strongroom::io::fault::{self, FaultVfs};
use strongroom::io::mem::{Loss, MemVfs};
use strongroom::io::{Clock, Environment, Vfs};
use strongroom::keys::faulty::{FaultyProvider, Operation, Rule};
use strongroom::keys::trail::{
    Day, ENGINE, JsonLinesTrail, KMS, PROGRAM, TrailEntry, TrailFault, TrailFolder, TrailRecord, TrailReport, TrailSink,
};
use strongroom::keys::{
    DecryptRequest, DecryptedDataKey, GenerateDataKeyRequest, GeneratedDataKey, KeyOperation, KeyPolicy, OWNED_ALIAS,
    PolicyStatement, Principal,
};
use strongroom::{Builder, Error, ErrorKind, MasterKey, Result, Store, Table, TableOptions, TrailOptions};

use crate::providers::{Watch, Watched};
use crate::world::World;

const TRAIL: &str = "/trail";
const DAY: Duration = Duration::from_secs(86_400);

/// A world whose provider counts, with two customers' keys.
struct Scene {
    world: World,
    provider: FaultyProvider,
    options: TrailOptions,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let world = World::new(seed);
        world.kms.create_key(Some("alias/one"), "").unwrap();
        world.kms.create_key(Some("alias/two"), "").unwrap();
        let provider = FaultyProvider::new(world.kms.clone()).in_environment(&world.sim.environment());
        Scene { world, provider, options: TrailOptions::new() }
    }

    /// The same keys on another machine with this disk.
    fn over(&self, disk: MemVfs, seed: u64) -> Scene {
        let world = self.world.over(disk, seed);
        let now = self.world.sim.clock.tick();
        world.sim.clock.advance_to(now);
        let provider = FaultyProvider::new(world.kms.clone()).in_environment(&world.sim.environment());
        Scene { world, provider, options: self.options.clone() }
    }

    fn sink(&self) -> Arc<JsonLinesTrail> {
        Arc::new(JsonLinesTrail::in_environment(TRAIL, &self.world.sim.environment()))
    }

    fn builder(&self) -> Builder {
        let provider = Arc::new(self.provider.clone());
        self.world.builder().shared_key_provider(provider).trail(self.sink(), self.options.clone())
    }

    fn folder(&self) -> TrailFolder {
        TrailFolder::in_environment(TRAIL, &self.world.sim.environment())
    }

    fn records(&self) -> Vec<TrailRecord> {
        self.folder().records(None).unwrap().into_iter().map(|entry| entry.record).collect()
    }

    fn verify(&self) -> TrailReport {
        let inspection = Inspection::of(crate::world::DIR)
            .key_provider(Arc::new(self.world.kms.clone()))
            .environment(self.world.sim.environment());
        inspection.verify_trail(&self.folder()).unwrap()
    }

    fn pass(&self, total: Duration) {
        let end = self.world.sim.clock.tick().after(total);
        while self.world.sim.clock.tick() < end {
            self.world.sim.clock.advance(Duration::from_millis(500));
            self.world.sim.scheduler.run_until_idle();
        }
    }

    /// Files of the trail, by path.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let all = self.world.sim.vfs.snapshot();
        all.into_iter().filter(|(path, _)| path.starts_with(TRAIL)).collect()
    }

    /// Put other bytes in the place of a file, as somebody does who can write the folder.
    fn rewrite(&self, path: &Path, bytes: &[u8]) {
        let vfs = &self.world.sim.vfs;
        vfs.remove_file(path).unwrap();
        vfs.create(path).unwrap().write_all_at(bytes, 0).unwrap();
    }
}

fn under(key: &str) -> TableOptions {
    TableOptions::new().master_key(MasterKey::customer(key))
}

fn named(name: &str) -> Principal {
    Principal::Named(name.to_owned())
}

/// Let ada use a key as well as the owner.
fn allow_ada(scene: &Scene, key: &str) {
    let owner = PolicyStatement::allow([Principal::Owner, Principal::Service], KeyOperation::ALL);
    let ada = PolicyStatement::allow([named("ada")], KeyOperation::DATA_KEYS);
    scene.world.kms.put_policy(key, KeyPolicy::new([owner, ada])).unwrap();
}

/// Tables under every kind of key, several principals, refusals, an outage, a table that goes.
fn workload(scene: &Scene, store: &Store) {
    allow_ada(scene, "alias/one");
    let one = store.create_table("orders", under("alias/one")).unwrap();
    let two = store.create_table("returns", under("alias/two")).unwrap();
    store.create_table("managed", TableOptions::new().master_key(MasterKey::managed())).unwrap();
    store.create_table("owned", TableOptions::new()).unwrap();
    store.update_table("managed", MasterKey::customer("alias/two")).unwrap();
    one.put("secret key", "secret value").unwrap();
    two.put("secret key", "secret value").unwrap();
    let ada = store.session(named("ada")).unwrap();
    assert!(ada.table("orders").unwrap().get("secret key").unwrap().is_some());
    let eve = store.session(named("eve")).unwrap();
    assert_eq!(eve.table("orders").unwrap().get("secret key").unwrap_err().kind(), ErrorKind::KeyUnavailable);
    assert_eq!(store.create_table("orders", under("alias/one")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.create_table("lost", under("alias/none")).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    scene.provider.inject(Rule::on(Operation::GenerateDataKey).nth(1).fail(ProviderReason::Throttled));
    assert_eq!(store.create_table("late", under("alias/two")).unwrap_err().kind(), ErrorKind::KeyUnavailable);
    scene.provider.heal();
    // Long enough that permits end, and the owner's next access asks again.
    scene.pass(Duration::from_secs(310));
    assert!(one.get("secret key").unwrap().is_some());
    assert!(eve.drop_table("returns").is_err());
    assert!(eve.update_table("returns", MasterKey::owned()).is_err());
    store.drop_table("returns").unwrap();
}

#[test]
fn every_request_to_a_provider_is_one_record_in_the_same_order() {
    // Whoever relies on the trail would miss a use of a key, or see one that never was.
    let scene = Scene::new(1101);
    let store = scene.builder().create().unwrap();
    workload(&scene, &store);
    store.close().unwrap();
    let owned = scene.world.kms.key(OWNED_ALIAS).unwrap().arn;
    let asked: Vec<_> = scene
        .provider
        .requests()
        .into_iter()
        .filter(|asked| asked.operation != Operation::OwnedKey && asked.key != owned)
        .map(|asked| {
            let name = match asked.operation {
                Operation::ManagedKey => "DescribeKey".to_owned(),
                operation => format!("{operation:?}"),
            };
            let who = match asked.principal {
                Principal::Owner => "owner".to_owned(),
                Principal::Service => ENGINE.to_owned(),
                Principal::Named(name) => name,
                _ => unreachable!("there are no others"),
            };
            let context: Vec<_> = asked.context.pairs().map(|(_, value)| value.to_owned()).collect();
            (name, who, context, asked.outcome.unwrap().err().map(|reason| format!("{reason:?}")))
        })
        .collect();
    let recorded: Vec<_> = scene
        .records()
        .into_iter()
        .filter(|record| record.source == KMS)
        .map(|record| {
            let contexts = ["encryptionContext", "sourceEncryptionContext"];
            let context = contexts.iter().find_map(|name| record.request.member(name)).map(values).unwrap_or_default();
            (record.name, record.identity.id, context, record.error.map(|(code, _)| code))
        })
        .collect();
    assert_eq!(recorded, asked);
    let failed = |code: &str| recorded.iter().any(|(_, _, _, error)| error.as_deref() == Some(code));
    assert!(failed("Throttled") && failed("KeyNotFound"), "{recorded:#?}");
    assert!(recorded.iter().any(|(name, who, _, error)| name == "Decrypt" && who == "eve" && error.is_some()));
    assert!(recorded.iter().any(|(name, who, _, error)| name == "Decrypt" && who == "ada" && error.is_none()));
    let report = scene.verify();
    assert_eq!(report.damages, []);
    assert_eq!((report.records, report.unattested), (scene.records().len() as u64, 0));
}

fn values(context: &strongroom::keys::trail::TrailValue) -> Vec<String> {
    let strongroom::keys::trail::TrailValue::Object(members) = context else { panic!("{context:?}") };
    members.iter().filter_map(|(_, value)| Some(value.text()?.to_owned())).collect()
}

#[test]
fn calls_of_tables_are_there_with_who_called_and_what_came_of_it() {
    // A dropped table, or an attempt to drop one, is what an auditor asks for first.
    let scene = Scene::new(1102);
    let store = scene.builder().create().unwrap();
    workload(&scene, &store);
    let calls: Vec<_> = scene
        .records()
        .into_iter()
        .filter(|record| record.source == ENGINE)
        .map(|record| (record.name, record.identity.id, record.error.map(|(code, _)| code)))
        .collect();
    let call = |name: &str, who: &str, error: Option<&str>| (name.to_owned(), who.to_owned(), error.map(str::to_owned));
    let mut expected = vec![call("CreateTable", "owner", None); 4];
    expected.push(call("UpdateTable", "owner", None));
    expected.push(call("CreateTable", "owner", Some("AlreadyExists")));
    expected.push(call("CreateTable", "owner", Some("KeyUnavailable")));
    expected.push(call("CreateTable", "owner", Some("KeyUnavailable")));
    expected.push(call("DeleteTable", "eve", Some("AccessDenied")));
    expected.push(call("UpdateTable", "eve", Some("AccessDenied")));
    expected.push(call("DeleteTable", "owner", None));
    assert_eq!(calls, expected);
    assert!(scene.records().iter().all(|record| record.table_name().is_none()));
}

#[test]
fn every_record_has_cloudtrails_members_in_their_types() {
    // Tools that read CloudTrail would trip over another shape.
    let scene = Scene::new(1103);
    let store = scene.builder().create().unwrap();
    workload(&scene, &store);
    store.close().unwrap();
    let entries = scene.folder().records(None).unwrap();
    assert!(entries.len() > 15);
    let mut ids = BTreeSet::new();
    for TrailEntry { record, line, .. } in &entries {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("{name} in {line}")).to_owned();
        let identity = &json["userIdentity"];
        assert!(["Owner", "Service", "Principal"].contains(&identity["type"].as_str().unwrap()));
        assert!(identity["principalId"].is_string() && identity["arn"].is_string());
        assert!(["eventVersion", "userAgent", "awsRegion"].iter().all(|name| !text(name).is_empty()));
        assert!(Day::parse(&text("eventTime")[..10]).is_some());
        assert!(json["requestParameters"].is_object() && json["readOnly"].is_boolean());
        assert_eq!(text("eventCategory"), "Management");
        assert_eq!(text("recipientAccountId"), store.id().to_string());
        assert!(ids.insert(text("requestID")) && ids.insert(text("eventID")), "ids occur once");
        assert_eq!(json["errorCode"].is_string(), record.error.is_some());
        match text("eventSource").as_str() {
            KMS => {
                assert_eq!((text("sourceIPAddress").as_str(), identity["invokedBy"].as_str()), (ENGINE, Some(ENGINE)));
                assert_eq!(json["resources"][0]["type"], "AWS::KMS::Key");
                assert!(json["resources"][0]["ARN"].is_string());
                assert!(record.name == "CreateGrant" || json["responseElements"].is_null());
                let cryptographic = ["GenerateDataKey", "Decrypt"].contains(&record.name.as_str());
                assert!(!cryptographic || record.table_id().is_some_and(|id| id.len() == 32));
            }
            ENGINE => assert_eq!(text("sourceIPAddress"), PROGRAM),
            other => panic!("{other}"),
        }
        // What was read is what was written.
        assert_eq!(TrailRecord::from_json(line).unwrap().json(), *line);
    }
}

/// Remembers everything secret that passes through.
#[derive(Default)]
struct Confidant {
    secrets: Mutex<Vec<Vec<u8>>>,
}

impl Confidant {
    fn heard(&self, key: &[u8], wrapped: &[u8]) {
        self.secrets.lock().extend([key.to_vec(), wrapped.to_vec()]);
    }
}

impl Watch for Confidant {
    fn generated(&self, _: &GenerateDataKeyRequest, made: &GeneratedDataKey) {
        self.heard(made.plaintext.expose(), &made.ciphertext);
    }

    fn decrypted(&self, request: &DecryptRequest, opened: &DecryptedDataKey) {
        self.heard(opened.plaintext.expose(), &request.ciphertext);
    }
}

#[test]
fn nothing_secret_stands_in_the_trail() {
    // It lies in clear, and is carried to other machines.
    let scene = Scene::new(1104);
    let provider = Arc::new(Watched::new(&scene.world.kms, Confidant::default()));
    let builder =
        || scene.world.builder().shared_key_provider(provider.clone()).trail(scene.sink(), TrailOptions::new());
    let store = builder().create().unwrap();
    let table = store.create_table("CANARY name", under("alias/one")).unwrap();
    table.put("CANARY key", "CANARY value").unwrap();
    store.close().unwrap();
    let store = builder().open().unwrap();
    assert!(store.table("CANARY name").unwrap().get("CANARY key").unwrap().is_some());
    assert!(store.create_table("CANARY name", under("alias/one")).is_err());
    store.drop_table("CANARY name").unwrap();
    store.close().unwrap();
    let files = scene.files();
    let all: Vec<u8> =
        files.iter().flat_map(|(path, bytes)| [path.to_str().unwrap().as_bytes(), bytes].concat()).collect();
    assert!(all.len() > 3000);
    let secrets = provider.secrets.lock();
    assert!(secrets.len() >= 8);
    let canaries = ["CANARY", "canary"].map(|text| text.as_bytes().to_vec());
    for secret in secrets.iter().chain(&canaries) {
        // Eight bytes of a key are no accident.
        for piece in secret.chunks(8).filter(|piece| piece.len() >= 6) {
            let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
            let forms = [piece.to_vec(), hex.clone().into_bytes(), hex.to_uppercase().into_bytes(), base64(piece)];
            for form in forms {
                assert!(!all.windows(form.len()).any(|window| window == form), "{:?}", String::from_utf8_lossy(&form));
            }
        }
    }
}

/// Base64 of six bytes, which is the same wherever they stand in a longer text, if that begins at a multiple of three.
fn base64(bytes: &[u8]) -> Vec<u8> {
    let letter = |six: u32| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[six as usize & 63];
    let group = |three: &[u8]| {
        let number = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        [letter(number >> 18), letter(number >> 12), letter(number >> 6), letter(number)]
    };
    bytes[..6].chunks(3).flat_map(group).collect()
}

#[test]
fn names_of_tables_are_shown_only_if_the_opener_wants_it() {
    // A name in clear is the opener's to give away.
    let mut scene = Scene::new(1105);
    scene.options = TrailOptions::new().table_names(true);
    let store = scene.builder().create().unwrap();
    store.create_table("orders", under("alias/one")).unwrap().put("k", "v").unwrap();
    store.close().unwrap();
    let store = scene.builder().open().unwrap();
    store.table("orders").unwrap().get("k").unwrap();
    store.close().unwrap();
    let named: BTreeSet<_> = scene
        .records()
        .into_iter()
        .filter(|record| record.table_name() == Some("orders") && record.table_id().is_some())
        .map(|record| record.name)
        .collect();
    assert_eq!(named, ["CreateTable", "Decrypt", "GenerateDataKey"].map(str::to_owned).into());
}

#[test]
fn without_a_sink_nothing_is_written_and_nothing_remembered() {
    // Who did not ask for a trail must not find one, nor pay for it.
    let scene = Scene::new(1106);
    let store = scene.world.builder().shared_key_provider(Arc::new(scene.provider.clone())).create().unwrap();
    workload(&scene, &store);
    store.close().unwrap();
    assert!(scene.world.sim.vfs.list().iter().all(|path| path.starts_with(crate::world::DIR)));
    let report = scene.verify();
    assert_eq!((report.records, report.attested, report.damages.len()), (0, 0, 0));
}

#[test]
fn a_trail_inside_the_store_is_refused_before_anything_is_made() {
    // It would stand there in clear, and a copy of the store would carry it along.
    let scene = Scene::new(1107);
    let inside = Path::new(crate::world::DIR).join("trail");
    let sink = Arc::new(JsonLinesTrail::in_environment(inside, &scene.world.sim.environment()));
    let refused = scene.world.builder().trail(sink, TrailOptions::new()).create().unwrap_err();
    assert!(matches!(refused, Error::InvalidArgument { what: "trail", .. }), "{refused}");
    assert!(scene.world.sim.vfs.list().is_empty());
}

#[test]
fn records_lie_in_the_folder_of_their_day_and_a_day_is_asked_for_alone() {
    // A query for a day reads that day's folder and nothing else.
    let scene = Scene::new(1108);
    let store = scene.builder().create().unwrap();
    // The simulated calendar begins at midnight.
    scene.world.sim.clock.advance(DAY - Duration::from_secs(2));
    store.create_table("before", under("alias/one")).unwrap();
    scene.world.sim.clock.advance(Duration::from_millis(1_999));
    store.create_table("at the last moment", under("alias/one")).unwrap();
    scene.world.sim.clock.advance(Duration::from_millis(1));
    store.create_table("after", under("alias/one")).unwrap();
    store.close().unwrap();
    let [first, second] = ["2026-01-01", "2026-01-02"].map(|day| {
        let records = scene.folder().records(Day::parse(day)).unwrap();
        assert!(records.iter().all(|entry| entry.line.contains(&format!("\"eventTime\":\"{day}T"))));
        records.iter().filter(|entry| entry.record.name == "CreateTable").count()
    });
    assert_eq!((first, second), (2, 1));
    let folders: BTreeSet<_> = scene.files().keys().map(|path| path.parent().unwrap().to_owned()).collect();
    assert_eq!(folders, ["/trail/2026/01/01", "/trail/2026/01/02"].map(PathBuf::from).into());
    assert_eq!(scene.verify().damages, []);
}

#[test]
fn numbers_go_on_over_openings_each_in_a_file_of_its_own() {
    // A trail that begins anew with every opening shows nothing that was taken out between them.
    let scene = Scene::new(1109);
    let store = scene.builder().create().unwrap();
    store.create_table("t", under("alias/one")).unwrap();
    store.close().unwrap();
    for _ in 0..3 {
        scene.world.sim.clock.advance(Duration::from_secs(60));
        let store = scene.builder().open().unwrap();
        store.table("t").unwrap().put("k", "v").unwrap();
        store.close().unwrap();
    }
    let records = scene.records();
    assert!(records.iter().map(|record| record.link.sequence).eq(1..=records.len() as u64));
    assert_eq!(scene.files().len(), 4);
    let report = scene.verify();
    assert_eq!(
        (report.records, report.attested, report.damages.len()),
        (records.len() as u64, records.len() as u64, 0)
    );
}

/// A closed store with a trail in several files, for those who tamper with it.
fn closed_scene(seed: u64) -> Scene {
    let scene = Scene::new(seed);
    let store = scene.builder().create().unwrap();
    store.create_table("one", under("alias/one")).unwrap();
    store.create_table("two", under("alias/two")).unwrap();
    store.close().unwrap();
    scene.world.sim.clock.advance(DAY);
    let store = scene.builder().open().unwrap();
    store.table("one").unwrap().get("k").unwrap();
    store.table("two").unwrap().get("k").unwrap();
    store.drop_table("one").unwrap();
    store.close().unwrap();
    assert_eq!(scene.verify().damages, []);
    scene
}

#[test]
fn any_record_that_is_removed_altered_moved_or_repeated_shows() {
    // Otherwise whoever misused a key cleans up behind him.
    let scene = closed_scene(1110);
    let files: Vec<_> = scene.files().into_iter().collect();
    assert_eq!(files.len(), 2);
    let mut tampered = 0;
    for (path, bytes) in &files {
        let text = std::str::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let mut check = |what: &str, number: usize, changed: Vec<&str>| {
            let bytes: String = changed.iter().flat_map(|line| [*line, "\n"]).collect();
            scene.rewrite(path, bytes.as_bytes());
            let report = scene.verify();
            // The very first records may be gone with the file that they stood in, which says so.
            let front_is_gone = report.first != Some(1);
            assert!(!report.damages.is_empty() || front_is_gone, "{what} line {number} of {path:?}");
            tampered += 1;
        };
        for number in 0..lines.len() {
            let without = |number: usize| [&lines[..number], &lines[number + 1..]].concat();
            check("remove", number, without(number));
            check("repeat", number, [&lines[..=number], &lines[number..]].concat());
            check("repeat at the end", number, [&lines[..], &lines[number..=number]].concat());
            if number > 0 {
                let mut swapped = lines.clone();
                swapped.swap(number - 1, number);
                check("swap", number, swapped);
            }
            for place in (0..lines[number].len()).step_by(41) {
                let mut altered = lines[number].to_owned();
                let other = if &altered[place..=place] == "x" { "y" } else { "x" };
                altered.replace_range(place..=place, other);
                let mut changed = lines.clone();
                changed[number] = &altered;
                check("alter", number, changed);
            }
        }
        for end in 0..lines.len() {
            check("cut off", end, lines[..end].to_vec());
        }
        scene.rewrite(path, bytes);
    }
    assert_eq!(scene.verify().damages, []);
    assert!(tampered > 300, "{tampered}");
}

#[test]
fn a_trail_that_was_cut_off_shows_and_a_trail_whose_front_was_moved_away_says_so() {
    // The end is where the last traces are. The front goes to an archive by right.
    let scene = closed_scene(1111);
    let files: Vec<_> = scene.files().into_iter().collect();
    let vfs = &scene.world.sim.vfs;
    vfs.remove_file(&files[1].0).unwrap();
    let report = scene.verify();
    assert!(
        matches!(report.damages[..], [ref damage] if matches!(damage.fault, TrailFault::CutOff { .. })),
        "{report:?}"
    );
    vfs.create(&files[1].0).unwrap().write_all_at(&files[1].1, 0).unwrap();
    vfs.remove_file(&files[0].0).unwrap();
    let report = scene.verify();
    assert_eq!(report.damages, []);
    assert!(report.first > Some(1) && report.attested == report.last, "{report:?}");
}

#[test]
fn an_opening_that_misses_attested_records_says_so_and_the_gap_stays_visible() {
    // The engine must neither refuse to work for it nor paper over it.
    let scene = closed_scene(1112);
    let files: Vec<_> = scene.files().into_iter().collect();
    scene.world.sim.vfs.remove_file(&files[1].0).unwrap();
    let store = scene.builder().open().unwrap();
    store.table("two").unwrap().get("k").unwrap();
    store.close().unwrap();
    let gap = scene.records().into_iter().find(|record| record.name == "TrailGap").unwrap();
    assert_eq!(gap.kind, "AwsServiceEvent");
    assert!(gap.additional.member("attestedRecord").is_some());
    let report = scene.verify();
    assert!(report.damages.iter().any(|damage| matches!(damage.fault, TrailFault::Missing { .. })), "{report:?}");
}

#[test]
fn the_manifest_attests_the_trail_within_an_hour() {
    // After a crash, what was written more than an hour ago cannot be cut off unnoticed.
    let scene = Scene::new(1113);
    let store = scene.builder().create().unwrap();
    store.create_table("t", under("alias/one")).unwrap();
    let written = scene.records().len() as u64;
    scene.pass(Duration::from_secs(3_601));
    // Killed, not closed.
    let disk = scene.world.sim.vfs.crash_at(scene.world.sim.vfs.events(), Loss::KeepAll, 1);
    let crashed = scene.over(disk, 2113);
    let report = crashed.verify();
    assert!(report.attested >= written && report.damages.is_empty(), "{report:?}");
    let (path, _) = crashed.files().into_iter().next().unwrap();
    crashed.rewrite(&path, b"");
    assert!(!crashed.verify().damages.is_empty());
    drop(store);
}

#[test]
fn a_crash_anywhere_leaves_whole_records_and_the_chain_goes_on() {
    // A torn record would read as tampering for ever after; a lost one that was used would be a key used in secret.
    let scene = Scene::new(1114);
    let disk = scene.world.sim.vfs.clone();
    let store = scene.builder().create().unwrap();
    let mut kept = Vec::new();
    let mut step = |act: &mut dyn FnMut()| {
        act();
        kept.push((disk.events(), scene.records().len() as u64));
    };
    let begin = disk.events();
    let mut table: Option<Table> = None;
    step(&mut || table = Some(store.create_table("t", under("alias/one")).unwrap()));
    scene.world.sim.clock.advance(DAY);
    step(&mut || table.as_ref().unwrap().put("k", "v").unwrap());
    step(&mut || assert!(table.as_ref().unwrap().get("k").unwrap().is_some()));
    step(&mut || store.drop_table("t").unwrap());
    step(&mut || store.close().unwrap());
    let mut crashes = 0;
    for event in begin..=disk.events() {
        for (number, loss) in (0..).zip(Loss::ALL.into_iter().chain([Loss::Torn { sector_bytes: 512 }; 4])) {
            let crashed = scene.over(disk.crash_at(event, loss, 7 + number), 10_000 + event * 20 + number);
            crashes += 1;
            let report = crashed.verify();
            let place = format!("event {event}, {loss:?}: {report:?}");
            assert_eq!(report.damages, [], "{place}");
            let acknowledged = kept.iter().rev().find(|(at, _)| *at <= event).map_or(0, |(_, records)| *records);
            assert!(report.records >= acknowledged, "{acknowledged} were kept: {place}");
            let store = crashed.builder().open().unwrap();
            store.create_table("after", under("alias/two")).unwrap();
            store.close().unwrap();
            let after = crashed.verify();
            assert_eq!(after.damages, [], "{place}, then {after:?}");
            // DescribeKey, CreateGrant, GenerateDataKey, CreateTable.
            // Whatever the opening had to make up for comes on top.
            assert!(after.records >= report.records + 4 && after.attested == after.records, "{place}, then {after:?}");
        }
    }
    assert!(crashes > 200, "{crashes}");
}

#[test]
fn a_failing_disk_costs_records_and_not_the_chain_and_says_how_many() {
    // The store goes on by default; that records are missing must show, and must not look like tampering.
    let scene = Scene::new(1115);
    let vfs = FaultVfs::new(scene.world.sim.vfs.clone());
    let env = Environment { vfs: Arc::new(vfs.clone()), ..scene.world.sim.environment() };
    let sink = Arc::new(JsonLinesTrail::in_environment(TRAIL, &env));
    let store = scene.world.builder().trail(sink, TrailOptions::new()).create().unwrap();
    let mut failed = 0;
    for number in 1..40 {
        vfs.inject(fault::Rule::on_any().nth(number));
        store.create_table(&format!("t {number}"), under("alias/one")).unwrap();
        vfs.clear();
        scene.world.sim.clock.advance(Duration::from_secs(5_000));
    }
    store.close().unwrap();
    for event in scene.world.heard.all() {
        failed += u64::from(matches!(event, Event::TrailFailed { .. }));
    }
    assert!(failed > 3, "{failed}");
    let unwritten: u64 = scene
        .records()
        .iter()
        .filter_map(|record| match record.additional.member("unwrittenRecords") {
            Some(strongroom::keys::trail::TrailValue::Number(count)) => Some(*count),
            _ => None,
        })
        .sum();
    assert_eq!(unwritten, failed);
    let report = scene.verify();
    assert_eq!(report.damages, [], "{report:?}");
}

/// Keeps nothing.
#[derive(Debug)]
struct Broken;

impl TrailSink for Broken {
    fn record(&self, record: &TrailRecord) -> io::Result<()> {
        match record.name.as_str() {
            "Decrypt" => panic!("as planned"),
            _ => Err(io::Error::other("no room")),
        }
    }
}

#[test]
fn no_key_is_used_unrecorded_if_the_trail_is_required() {
    // Somebody who must answer for every use of a key would rather have none.
    let scene = Scene::new(1116);
    let store = scene.world.create();
    store.create_table("there", under("alias/one")).unwrap().put("k", "v").unwrap();
    store.close().unwrap();
    let open = |options| scene.world.builder().trail(Arc::new(Broken), options).open().unwrap();
    let store = open(TrailOptions::new().required(true));
    let reason = |error: Error| match error {
        Error::KeyUnavailable { source, .. } | Error::MasterKeyUnavailable { source, .. } => source.reason,
        other => panic!("{other}"),
    };
    let refused = store.table("there").unwrap().get("k").unwrap_err();
    assert_eq!(reason(refused), ProviderReason::NotRecorded);
    assert_eq!(reason(store.create_table("new", under("alias/one")).unwrap_err()), ProviderReason::NotRecorded);
    store.close().unwrap();
    let store = open(TrailOptions::new());
    assert!(store.table("there").unwrap().get("k").unwrap().is_some());
    store.create_table("new", under("alias/one")).unwrap();
    let lost = scene.world.heard.all().into_iter().filter_map(|event| match event {
        Event::TrailFailed { lost, .. } => Some(lost),
        _ => None,
    });
    assert!(lost.max() > Some(2));
    store.close().unwrap();
}

#[test]
fn the_live_view_names_the_tables_under_a_key() {
    // Whoever disables a key wants to know beforehand what he takes down.
    let scene = Scene::new(1117);
    let store = scene.builder().create().unwrap();
    workload(&scene, &store);
    let using = |alias: &str| -> Result<Vec<String>> {
        let arn = scene.world.kms.key(alias).unwrap().arn;
        Ok(store.tables_using_key(&arn)?.into_iter().map(|table| table.name).collect())
    };
    assert_eq!(using("alias/one").unwrap(), ["orders"]);
    assert_eq!(using("alias/two").unwrap(), ["managed"], "it was moved, and `returns` was dropped");
    assert_eq!(using("alias/strongroom").unwrap(), Vec::<String>::new());
    let by_trail = |alias: &str| -> Vec<String> {
        let uses = scene.folder().uses_of_key(&scene.world.kms.key(alias).unwrap().arn).unwrap();
        uses.into_iter().filter(|one| one.in_use).map(|one| one.table).collect()
    };
    for alias in ["alias/one", "alias/two", "alias/strongroom"] {
        let mut ids: Vec<_> =
            using(alias).unwrap().iter().map(|name| store.table(name).unwrap().id().to_string()).collect();
        ids.sort();
        assert_eq!(by_trail(alias), ids, "{alias}");
    }
    assert_eq!(using(OWNED_ALIAS).unwrap(), Vec::<String>::new());
}
