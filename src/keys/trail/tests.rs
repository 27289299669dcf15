use super::chain::Judged;
use super::*;
use crate::crypto::{Secret, TableKey};
use crate::io::sim::Simulation;
use crate::types::Generation;

fn system(generation: u32) -> TableKey {
    let secret = Secret::fill_with(|bytes| (0..).zip(bytes).for_each(|(value, byte)| *byte = value));
    TableKey::new(secret, store(), TableId::SYSTEM, Generation(generation))
}

fn store() -> StoreId {
    StoreId::from_bytes(std::array::from_fn(|i| 0xa0 + i as u8))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record with everything in it that could trouble a reader.
fn record() -> TrailRecord {
    let nasty = "a \"quoted\" \\ name\n\r\t\u{1}\u{7f}\u{85}\u{2028} ünïcödé \u{1f512}";
    let draft = Draft {
        principal: Principal::Named(nasty.to_owned()),
        invoked_by: true,
        source: KMS,
        source_address: ENGINE,
        name: "Decrypt",
        kind: "AwsApiCall",
        region: region(Some("arn:aws:kms:eu-west-1:1234:key/5")),
        error: Some(("Denied".to_owned(), Some(nasty.to_owned()))),
        request: TrailValue::object([
            ("keyId", nasty.into()),
            (nasty, TrailValue::List(vec![true.into(), u64::MAX.into(), TrailValue::Null])),
        ]),
        response: TrailValue::Null,
        additional: TrailValue::object([]),
        read_only: true,
        resources: vec![TrailResource::key(nasty), TrailResource::table(store(), "5")],
    };
    let link = TrailLink { sequence: 7, generation: 3, previous: [5; 32], mac: [6; 32] };
    draft.into_record(store(), 1_790_000_000_123, link)
}

#[test]
fn the_chain_is_frozen() {
    // Otherwise every trail that was kept so far would read as forged. The bytes were made by another implementation (Python's `hmac`).
    let expected = "551c1ed42ea7bb7baaece39415b824be99189150ad05ef22ec6220ce85e713a1";
    assert_eq!(hex(&system(3).trail_key().mac(b"a record up to its MAC")), expected);
}

#[cfg(feature = "trail")]
#[test]
fn whatever_stands_in_a_record_is_one_line_of_json_that_reads_back() {
    // A name with a line break in it would make up a record; one with a quote would hide what follows.
    let record = record();
    let line = record.json();
    assert!(!line.contains(char::is_control) && !line.contains('\u{2028}'), "{line}");
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["userIdentity"]["principalId"].as_str(), Some(record.identity.id.as_str()));
    assert_eq!(json["awsRegion"], "eu-west-1");
    let read = TrailRecord::from_json(&line).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.json(), line);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let mut record = record();
    record.error = None;
    let without = record.json().matches('ü').count();
    record.error = Some(("Denied".to_owned(), Some("ü".repeat(2000))));
    // 1,024 bytes of two each.
    assert_eq!(record.json().matches('ü').count() - without, 512);
}

#[test]
fn only_the_key_that_chained_a_record_finds_it_authentic() {
    // Who has a key of another generation, or none, can neither check nor make a record.
    let mut record = record();
    record.link.mac = system(3).trail_key().mac(record.unsealed().as_bytes());
    let keys = |generation| ChainKeys::of(&KeySet::one(system(generation)));
    let line = record.json();
    assert_eq!(keys(3).judge(&line), Judged::Authentic(record.link));
    assert_eq!(keys(4).judge(&line), Judged::Unknown(record.link));
    let other = line.replace("\"generation\":3", "\"generation\":4");
    assert!(matches!(keys(4).judge(&other), Judged::Altered(_)));
    for broken in
        ["", "{}", &line[1..], &line[..line.len() - 1], &line.replace(":7,", ":-7,"), &line.replace(":7,", ":+7,")]
    {
        assert!(!matches!(keys(3).judge(broken), Judged::Authentic(_)), "{broken}");
    }
}

/// Keeps records in memory.
#[derive(Debug, Default)]
struct Memory(Mutex<Vec<String>>);

impl TrailSink for Memory {
    fn record(&self, record: &TrailRecord) -> io::Result<()> {
        self.0.lock().push(record.json());
        Ok(())
    }
}

#[test]
fn the_chain_goes_on_over_a_rotation_of_the_system_key() {
    // A rotation must not look like a forgery, nor let one through.
    let sink = Arc::new(Memory::default());
    let setting = TrailSetting { sink: sink.clone(), options: TrailOptions::new() };
    let simulation = Simulation::new(1);
    let end = setting.find_end(store(), &KeySet::one(system(1)), None).unwrap();
    let trail_of = |generation, end: &TrailEnd| {
        let system = SystemKeys::new(KeySet::one(system(generation)));
        Trail::new(&setting, store(), end, system, &simulation.environment(), None)
    };
    let call = TableCall {
        name: "CreateTable",
        principal: &Principal::Owner,
        table: None,
        table_name: "t",
        master_key: None,
        master_key_arn: None,
    };
    let before = trail_of(1, &end);
    before.table_called(&call, None);
    let head = before.head_due(true).unwrap();
    let keys = KeySet::one(system(2));
    let after = trail_of(2, &setting.find_end(store(), &keys, Some(&head)).unwrap());
    after.table_called(&call, None);
    let lines = sink.0.lock();
    let both = ChainKeys::of(&KeySet::new(vec![Arc::new(system(1)), Arc::new(system(2))]).unwrap());
    let links: Vec<_> = lines
        .iter()
        .map(|line| match both.judge(line) {
            Judged::Authentic(link) => link,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(links.iter().map(|link| (link.sequence, link.generation)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    assert_eq!(links[1].previous, links[0].mac);
}
