use proptest::prelude::*;

use super::*;
use crate::crypto::Commitment;
use crate::error::ErrorKind;
use crate::format::codec::Refusal;
use crate::format::frame::{HEADER_BYTES, JournalHead};
use crate::format::keyfile::MasterKind;
use crate::format::log::LogPoint;
use crate::format::testing::*;
use crate::options::Compression;
use crate::types::{Generation, LEVELS, Seq, Slot, TABLE_NAME_BYTES_MAX};

const NUMBER: FileNumber = FileNumber(7);

fn expected() -> Expected {
    Expected { kind: FileKind::Manifest, number: NUMBER, subject: TableId::SYSTEM, suite: None, salt: None }
}

fn create(out: &mut Vec<u8>) -> ManifestSealer {
    ManifestSealer::create(&system_key(), Suite::Aes256Gcm, NUMBER, &Counting::default(), out).unwrap()
}

pub(crate) fn pin() -> KeyPin {
    let commitment = |fill| Commitment::from_bytes([fill; 32]);
    KeyPin {
        version: 5,
        tag: [3; 16],
        generations: vec![(Generation(1), commitment(1)), (Generation(4), commitment(4))],
    }
}

pub(crate) fn record() -> TableRecord {
    TableRecord {
        slot: Slot(3),
        id: TABLE,
        name: "größen".into(),
        created_ms: 1_790_000_000_000,
        suite: Suite::ChaCha20Poly1305,
        compression: Compression::Lz4,
        block_bytes: 4096,
        filter_bits_per_key: 10,
        filter_seed: 0x0123_4567_89ab_cdef,
        master: MasterKind::Customer,
        key: pin(),
        dropping: false,
    }
}

pub(crate) fn file() -> FileRecord {
    FileRecord {
        number: FileNumber(34),
        extent: Extent { container: FileNumber(34), offset_bytes: 0, len_bytes: 70_000 },
        salt: Salt::from_bytes([8; 32]),
        final_tag: [9; 16],
        generation: Generation(4),
        suite: Suite::Aes256Gcm,
        entries: 1000,
        tombstones: 7,
        raw_bytes: 65_000,
        min_seq: Seq::new(10).unwrap(),
        max_seq: Seq::new(2000).unwrap(),
        bounds: noise(90),
        bounds_ordinal: 21,
    }
}

pub(crate) fn parked() -> ParkedRecord {
    ParkedRecord {
        number: FileNumber(36),
        slot: Slot(3),
        salt: Salt::from_bytes([7; 32]),
        final_tag: [4; 16],
        len_bytes: 9000,
        last_seq: Seq::new(80).unwrap(),
        generations: vec![(Generation(1), 5000), (Generation(4), 3000)],
    }
}

pub(crate) fn grant() -> GrantRecord {
    GrantRecord {
        master: MasterKind::Customer,
        key_arn: "arn:strongroom:kms:local:00:key/1".to_owned(),
        grant_id: "grant".to_owned(),
        token: "token".to_owned(),
    }
}

/// One of each kind.
pub(crate) fn edits() -> Vec<Edit> {
    let slot = Slot(3);
    let seq = Seq::new(77).unwrap();
    let segment = FileNumber(12);
    vec![
        Edit::Store { store: STORE, lineage: [4; 16], created_ms: 9, real_entropy: true, suite: Suite::Aes256Gcm },
        Edit::SystemKey(pin()),
        Edit::Counters { next_file: FileNumber(35), next_slot: Slot(4), last_seq: seq },
        Edit::CreateTable(Box::new(record())),
        Edit::TableKey { slot, key: pin(), master: MasterKind::Managed },
        Edit::DropTable { slot },
        Edit::ForgetTable { slot },
        Edit::AddFile { slot, level: 6, file: file() },
        Edit::RemoveFile { slot, level: 0, number: FileNumber(33) },
        Edit::Flushed { slot, seq },
        Edit::AddSegment { number: segment, salt: Salt::from_bytes([5; 32]) },
        Edit::RemoveSegment { number: FileNumber(11) },
        Edit::LogEnds { segment, end_bytes: 4000, tag: [1; 16], seq },
        Edit::CleanClose { segment, end_bytes: 4001, tag: [2; 16], seq },
        Edit::PictureEnds,
        Edit::LogSynced { point: LogPoint { segment, end_bytes: 4002 } },
        Edit::Access { slot, since_ms: Some(1_790_000_000_001) },
        Edit::Park(Box::new(parked())),
        Edit::Unpark { number: FileNumber(36) },
        Edit::Schedule { slot: Some(slot), schedule: Some(Schedule { every_ms: 86_400_000, next_ms: 7 }) },
        Edit::KeyChanged { slot, at_ms: 1_790_000_000_002 },
        Edit::TrailHead(TrailHead { events: 12, mac: [6; 32], at_ms: 1_790_000_000_003 }),
        Edit::Grant(Box::new(grant())),
        Edit::GrantEnded { key_arn: grant().key_arn },
        Edit::Creator { slot, principal: "owner".to_owned() },
    ]
}

fn group() -> EditGroup {
    EditGroup { epoch: Epoch(41), synced_ordinal: Some(6), edits: edits() }
}

fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut offset = HEADER_BYTES;
    let mut frames = Vec::new();
    while offset < bytes.len() {
        let len = JournalHead::decode(&bytes[offset..], &here()).unwrap().frame_bytes() as usize;
        frames.push(bytes[offset..offset + len].to_vec());
        offset += len;
    }
    frames
}

fn open(bytes: &[u8]) -> ManifestOpener {
    ManifestOpener::open(bytes, &system_key(), &expected(), &here()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_selection_of_edits_reads_back(picks in prop::collection::vec(0usize..25, 0..30), epoch: u64, synced: Option<u64>) {
        let all = edits();
        let edits = picks.iter().map(|&pick| all[pick].clone()).collect();
        let group = EditGroup { epoch: Epoch(epoch), synced_ordinal: synced, edits };
        prop_assert_eq!(EditGroup::decode(&group.encode()), Ok(group));
    }

    #[test]
    fn damaged_groups_never_panic_and_encode_back(at: prop::sample::Index, to: u8, cut: prop::sample::Index, noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = group().encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let cut = bytes[..cut.index(bytes.len())].to_vec();
        for bytes in [bytes, cut, noise] {
            if let Ok(group) = EditGroup::decode(&bytes) {
                prop_assert_eq!(&*group.encode(), &bytes[..]);
            }
        }
    }
}

#[test]
fn every_kind_of_edit_has_one_length() {
    for edit in edits() {
        let group = EditGroup { epoch: Epoch(1), synced_ordinal: None, edits: vec![edit] };
        every_other_length_is_refused(&group.encode(), EditGroup::decode);
    }
    every_other_length_is_refused(&group().encode(), EditGroup::decode);
}

#[test]
fn every_edit_keeps_its_number() {
    // A failure would make every store that exists unreadable, or readable as something else.
    for (index, edit) in edits().iter().enumerate() {
        let mut bytes = Vec::new();
        edit.encode(&mut bytes);
        assert_eq!(usize::from(bytes[0]), index + 1);
    }
    let mut bytes =
        EditGroup { epoch: Epoch(1), synced_ordinal: None, edits: vec![Edit::PictureEnds] }.encode().to_vec();
    *bytes.last_mut().unwrap() = 26;
    assert_eq!(EditGroup::decode(&bytes), Err(Refusal::Unknown { what: "manifest edit", number: 26 }));
}

#[test]
fn records_that_contradict_themselves_are_refused() {
    let refused = |edit: Edit| {
        let group = EditGroup { epoch: Epoch(1), synced_ordinal: None, edits: vec![edit] };
        EditGroup::decode(&group.encode()).unwrap_err()
    };
    let table = |change: &dyn Fn(&mut TableRecord)| {
        let mut record = record();
        change(&mut record);
        refused(Edit::CreateTable(Box::new(record)))
    };
    assert_eq!(table(&|record| record.name = "".into()), Refusal::Malformed);
    assert_eq!(table(&|record| record.name = "x".repeat(TABLE_NAME_BYTES_MAX + 1).into()), Refusal::Malformed);
    assert_eq!(table(&|record| record.id = TableId::SYSTEM), Refusal::Malformed);
    assert_eq!(table(&|record| record.block_bytes = 1), Refusal::Malformed);
    assert_eq!(table(&|record| record.filter_bits_per_key = 33), Refusal::Malformed);
    assert_eq!(table(&|record| record.key.generations.clear()), Refusal::Malformed);
    assert_eq!(table(&|record| record.key.generations.swap(0, 1)), Refusal::Malformed);
    let with = |change: &dyn Fn(&mut FileRecord)| {
        let mut file = file();
        change(&mut file);
        refused(Edit::AddFile { slot: Slot(1), level: 0, file })
    };
    assert_eq!(with(&|file| file.extent.offset_bytes = u64::MAX), Refusal::Malformed);
    assert_eq!(with(&|file| file.tombstones = 1001), Refusal::Malformed);
    assert_eq!(with(&|file| file.min_seq = Seq::MAX), Refusal::Malformed);
    assert_eq!(with(&|file| file.bounds = vec![0; FrameKind::Bounds.frame_bytes_max() + 1]), Refusal::Malformed);
    assert_eq!(refused(Edit::AddFile { slot: Slot(1), level: LEVELS as u8, file: file() }), Refusal::Malformed);
    assert_eq!(refused(Edit::RemoveFile { slot: Slot(1), level: 7, number: NUMBER }), Refusal::Malformed);
    let never = Schedule { every_ms: 0, next_ms: 1 };
    assert_eq!(refused(Edit::Schedule { slot: None, schedule: Some(never) }), Refusal::Malformed);
    let with = |generations| refused(Edit::Park(Box::new(ParkedRecord { generations, ..parked() })));
    assert_eq!(with(Vec::new()), Refusal::Malformed);
    assert_eq!(with(vec![(Generation(2), 1), (Generation(1), 1)]), Refusal::Malformed);
}

#[test]
fn a_claimed_number_of_edits_sizes_nothing() {
    let mut bytes = EditGroup { epoch: Epoch(1), synced_ordinal: None, edits: Vec::new() }.encode().to_vec();
    bytes[17..21].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(EditGroup::decode(&bytes), Err(Refusal::Malformed));
    bytes[9] = 1;
    assert_eq!(EditGroup::decode(&bytes), Err(Refusal::Malformed), "an ordinal that is not known is zero");
}

#[test]
fn groups_and_marks_read_back_in_order() {
    let mut bytes = Vec::new();
    let mut sealer = create(&mut bytes);
    let mark = EditGroup { epoch: Epoch(42), synced_ordinal: Some(0), edits: Vec::new() };
    assert_eq!(sealer.append(&group(), &mut bytes).unwrap(), 0);
    assert_eq!(sealer.append(&mark, &mut bytes).unwrap(), 1);
    assert_eq!((sealer.len_bytes(), sealer.frames()), (bytes.len() as u64, 2));
    let mut opener = open(&bytes);
    let frames = frames(&bytes);
    assert_eq!(*opener.feed(frames[0].clone(), &here()).unwrap().unwrap(), group());
    assert_eq!(*opener.feed(frames[1].clone(), &here()).unwrap().unwrap(), mark);
    assert_eq!(opener.next_ordinal(), 2);
}

#[test]
fn a_group_over_several_frames_takes_effect_when_the_last_is_there() {
    let file = FileRecord { bounds: noise(200_000), ..file() };
    let edits = vec![Edit::AddFile { slot: Slot(1), level: 0, file }; 13];
    let group = EditGroup { epoch: Epoch(1), synced_ordinal: None, edits };
    let mut bytes = Vec::new();
    let mut sealer = create(&mut bytes);
    assert_eq!(sealer.append(&group, &mut bytes).unwrap(), 2, "2.6 MB in three frames");
    let frames = frames(&bytes);
    let mut opener = open(&bytes);
    for frame in &frames[..2] {
        assert!(opener.feed(frame.clone(), &here()).unwrap().is_none());
        assert!(opener.is_within_group());
    }
    assert!(*opener.feed(frames[2].clone(), &here()).unwrap().unwrap() == group);
    assert!(!opener.is_within_group());

    // A frame left out, repeated or from elsewhere does not make a group.
    let mut opener = open(&bytes);
    opener.feed(frames[0].clone(), &here()).unwrap();
    assert_eq!(refusal(opener.feed(frames[2].clone(), &here())), ErrorKind::Tampering);
    assert_eq!(refusal(opener.feed(frames[0].clone(), &here())), ErrorKind::Tampering);
    assert!(opener.attest(2, frames[2].clone(), &here()).is_ok());
    assert!(opener.feed(frames[1].clone(), &here()).unwrap().is_none());
}

#[test]
fn every_bit_of_a_manifest_matters() {
    let mut bytes = Vec::new();
    let mut sealer = create(&mut bytes);
    sealer
        .append(&EditGroup { epoch: Epoch(1), synced_ordinal: None, edits: vec![edits()[2].clone()] }, &mut bytes)
        .unwrap();
    every_flip_is_refused(&bytes, |bytes| {
        let mut opener = ManifestOpener::open(bytes, &system_key(), &expected(), &here())?;
        opener.feed(bytes[HEADER_BYTES..].to_vec(), &here())
    });
}

#[test]
fn a_group_above_the_limit_is_refused_before_it_is_written() {
    let file = FileRecord { bounds: vec![0; 250_000], ..file() };
    let edits = vec![Edit::AddFile { slot: Slot(1), level: 0, file }; GROUP_BYTES_MAX / 250_000 + 1];
    let mut bytes = Vec::new();
    let mut sealer = create(&mut bytes);
    let refused = sealer.append(&EditGroup { epoch: Epoch(1), synced_ordinal: None, edits }, &mut bytes);
    assert_eq!(refusal(refused), ErrorKind::LimitExceeded);
    assert_eq!(bytes.len(), HEADER_BYTES);
}
