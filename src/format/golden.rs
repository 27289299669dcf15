//! Files of each version as they were first written: they must open, and be written again byte for byte.
//!
//! A failure means that stores which exist cannot be read any more, or that two builds of one version write
//! different bytes. **Never write these files again** for a version that was released; a new version gets a folder of
//! its own beside them, and this one stays.
//!
//! `cargo test --lib golden -- --ignored` writes what is missing.

use std::path::PathBuf;

use crate::crypto::{Ordinals, Suite};
use crate::format::current::{Closed, Current};
use crate::format::frame::{Expected, FileHeader, FileOpener, FileSealer, FrameKind, HEADER_BYTES, JournalHead};
use crate::format::keyfile::{KeyFile, KeyState, MasterKind, SystemKeyFile, Wrap};
use crate::format::log::{GroupWriter, LogPoint, SectionReader, SegmentOpener, SegmentSealer, entry_bytes, keep};
use crate::format::manifest::{Edit, EditGroup, ManifestOpener, ManifestSealer};
use crate::format::parked::ParkedOpener;
use crate::format::testing::*;
use crate::options::Compression;
use crate::types::{Epoch, FileKind, FileNumber, Generation, Kind, Seq, Slot, TableId};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Everything that is written again, in the suite that its name says.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (suite, name) in [(Suite::Aes256Gcm, "aes"), (Suite::ChaCha20Poly1305, "chacha")] {
        let entropy = Counting::default();
        let current = current().seal(&system_key(), suite, &entropy).unwrap();
        let (key, _) = key_file().seal(&system_key(), suite, &entropy).unwrap();
        let (system, _) = SystemKeyFile::seal(&system_key_file(), &system_key(), suite, &entropy).unwrap();
        files.push((format!("current-{name}.bin"), current));
        files.push((format!("keyfile-{name}.bin"), key));
        files.push((format!("systemkey-{name}.bin"), system));
        files.push((format!("manifest-{name}.bin"), manifest(suite, &entropy, groups())));
        files.push((format!("log-{name}.bin"), log(suite, &entropy)));
        files.push((format!("frames-{name}.bin"), frames(suite, &entropy, Compression::None)));
        files.push((format!("manifest-keys-{name}.bin"), manifest(suite, &entropy, key_groups())));
        files.push((format!("parked-{name}.bin"), crate::format::parked::tests::file(suite, 2, &entropy).0));
    }
    files
}

fn current() -> Current {
    let closed = Closed { len_bytes: 10_000, last_tag: [6; 16], epoch: Epoch(43) };
    Current {
        manifest: FileNumber(7),
        salt: crate::crypto::Salt::from_bytes([5; 32]),
        epoch: Epoch(40),
        picture_end_bytes: 9000,
        picture_last_ordinal: 2,
        closed: Some(closed),
    }
}

fn wrap(generation: u32, commitment: crate::crypto::Commitment) -> Wrap {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Wrap {
        generation: Generation(generation),
        key_arn: "arn:strongroom:kms:local:0123:key/4567".to_owned(),
        context: vec![pair("generation", "3"), pair("purpose", "table"), pair("store", "61")],
        wrapped: (0..92).collect(),
        commitment,
        created_ms: 1_790_000_000_000,
        retired: false,
    }
}

fn key_file() -> KeyFile {
    KeyFile {
        table: TABLE,
        version: 5,
        state: KeyState::Active,
        since_ms: 1_790_000_000_001,
        master: MasterKind::Customer,
        wraps: vec![wrap(3, *table_key().commitment())],
    }
}

fn system_key_file() -> KeyFile {
    let wraps = vec![wrap(1, *system_key().commitment())];
    KeyFile {
        table: TableId::SYSTEM,
        version: 2,
        state: KeyState::Active,
        since_ms: 3,
        master: MasterKind::Owned,
        wraps,
    }
}

/// How many kinds of edits there were when the first manifests were written.
const FIRST_EDITS: usize = 16;

/// The edits that there were at first.
fn groups() -> Vec<EditGroup> {
    groups_of(&crate::format::manifest::tests::edits()[..FIRST_EDITS])
}

/// The edits that came with the life of keys.
fn key_groups() -> Vec<EditGroup> {
    groups_of(&crate::format::manifest::tests::edits()[FIRST_EDITS..])
}

fn groups_of(edits: &[Edit]) -> Vec<EditGroup> {
    let edits = edits.to_vec();
    vec![
        EditGroup { epoch: Epoch(41), synced_ordinal: None, edits },
        EditGroup { epoch: Epoch(42), synced_ordinal: Some(0), edits: Vec::new() },
    ]
}

fn manifest(suite: Suite, entropy: &Counting, groups: Vec<EditGroup>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut sealer = ManifestSealer::create(&system_key(), suite, FileNumber(7), entropy, &mut out).unwrap();
    for group in groups {
        sealer.append(&group, &mut out).unwrap();
    }
    out
}

/// A group of one section, and a sync mark.
fn log(suite: Suite, entropy: &Counting) -> Vec<u8> {
    let mut out = Vec::new();
    let segment = SegmentSealer::create(&system_key(), suite, FileNumber(12), entropy, &mut out).unwrap();
    let sealer = table_key().stream_sealer(suite, segment.ordinals());
    let seq = |number| Seq::new(number).unwrap();
    let raw_bytes = entry_bytes(3, Some(5)) + entry_bytes(4, None);
    let mut group = GroupWriter::begin(segment.ordinals(), (1, 1), seq(100), &mut out, keep).unwrap();
    let mut writer = group.section(&sealer, Slot(3), Generation(3), raw_bytes).unwrap();
    writer.put(b"key", b"value").unwrap();
    writer.delete(b"gone").unwrap();
    let section = writer.finish();
    group.add(&section);
    let tag = group.finish(segment.system(), Epoch(41), [0; 16], LogPoint::default()).unwrap();
    let synced = LogPoint { segment: FileNumber(12), end_bytes: out.len() as u64 };
    mark(segment.ordinals(), &segment, tag, synced, &mut out);
    out
}

fn mark(ordinals: &Ordinals, segment: &SegmentSealer, previous: [u8; 16], synced: LogPoint, out: &mut Vec<u8>) {
    let mark = GroupWriter::begin(ordinals, (0, 0), Seq::new(102).unwrap(), out, keep).unwrap();
    mark.finish(segment.system(), Epoch(41), previous, synced).unwrap();
}

const PAYLOADS: [(FrameKind, &[u8]); 3] =
    [(FrameKind::Data, &[42; 500]), (FrameKind::Bounds, b"smallest, largest"), (FrameKind::Footer, b"footer")];

fn frames(suite: Suite, entropy: &Counting, compression: Compression) -> Vec<u8> {
    let mut out = Vec::new();
    let (kind, number) = (FileKind::Table, FileNumber(34));
    let mut sealer = FileSealer::create(&table_key(), suite, kind, number, TABLE, entropy, &mut out).unwrap();
    for (kind, payload) in PAYLOADS {
        sealer.seal(kind, kind == FrameKind::Footer, compression, payload, &mut out).unwrap();
    }
    out
}

#[test]
#[ignore = "writes golden files that are missing"]
fn write_golden_files() {
    std::fs::create_dir_all(path("")).unwrap();
    let mut files = files();
    // What LZ4 makes of a payload may change with the library, so this one is only ever read.
    files.push(("frames-lz4.bin".to_owned(), frames(Suite::Aes256Gcm, &Counting::default(), Compression::Lz4)));
    for (name, bytes) in files {
        if !path(&name).exists() {
            std::fs::write(path(&name), bytes).unwrap();
        }
    }
}

#[test]
fn what_is_written_today_is_what_was_written_then() {
    for (name, bytes) in files() {
        assert!(golden(&name) == bytes, "{name} differs from what this build writes");
    }
}

#[test]
fn golden_frames_open() {
    for name in ["frames-aes.bin", "frames-chacha.bin", "frames-lz4.bin"] {
        let bytes = golden(name);
        let expected =
            Expected { kind: FileKind::Table, number: FileNumber(34), subject: TABLE, suite: None, salt: None };
        let opener = FileOpener::open(&bytes, &table_key(), &expected, &here()).unwrap();
        let mut offset = HEADER_BYTES;
        for (ordinal, (kind, payload)) in PAYLOADS.into_iter().enumerate() {
            let body_len = u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap()) as usize;
            let frame = bytes[offset..offset + 8 + body_len + 16].to_vec();
            offset += frame.len();
            let opened = opener.open_frame(kind, kind == FrameKind::Footer, ordinal as u64, frame, &here()).unwrap();
            assert_eq!(&**opened, payload, "{name}");
        }
        assert_eq!(offset, bytes.len());
    }
}

#[test]
fn golden_metadata_opens() {
    for suite in ["aes", "chacha"] {
        let file = |kind: &str| golden(&format!("{kind}-{suite}.bin"));
        assert_eq!(*Current::open(&file("current"), &system_key(), &here()).unwrap(), current());
        let opened = KeyFile::open(&file("keyfile"), &system_key(), TABLE, &here()).unwrap();
        assert!(opened.both_copies_good && *opened.record == key_file());
        let opened = SystemKeyFile::decode_unauthenticated(&file("systemkey"), &here()).unwrap();
        let opened = opened.authenticate(&system_key(), &here()).unwrap();
        assert!(opened.both_copies_good && *opened.record == system_key_file());
    }
}

#[test]
fn golden_manifests_and_segments_open() {
    for suite in ["aes", "chacha"] {
        for (name, groups) in [("manifest", groups()), ("manifest-keys", key_groups())] {
            let bytes = golden(&format!("{name}-{suite}.bin"));
            let of = Expected {
                kind: FileKind::Manifest,
                number: FileNumber(7),
                subject: TableId::SYSTEM,
                suite: None,
                salt: None,
            };
            let mut opener = ManifestOpener::open(&bytes, &system_key(), &of, &here()).unwrap();
            let read: Vec<EditGroup> = journal(&bytes)
                .into_iter()
                .filter_map(|frame| opener.feed(frame, &here()).unwrap())
                .map(|group| group.into_inner())
                .collect();
            assert_eq!(read, groups);
        }

        let bytes = golden(&format!("log-{suite}.bin"));
        let header = FileHeader::decode(&bytes, &here()).unwrap();
        let expected =
            |kind, number| Expected { kind, number, subject: TableId::SYSTEM, suite: Some(header.suite), salt: None };
        let of = expected(FileKind::Log, FileNumber(12));
        let segment = SegmentOpener::open(&bytes, &system_key(), &of, &here()).unwrap();
        let mut frames = journal(&bytes).into_iter();
        let (envelope, tag) = segment.open_envelope(frames.next().unwrap(), &here()).unwrap();
        let mut reader = SectionReader::new(segment.table_key(&table_key(), header.suite), &envelope.sections[0]);
        reader.feed(frames.next().unwrap(), &here()).unwrap();
        let entry = reader.next_entry(&here()).unwrap().unwrap();
        assert_eq!((entry.seq.get(), entry.kind, entry.key, entry.value), (100, Kind::Put, &b"key"[..], &b"value"[..]));
        let entry = reader.next_entry(&here()).unwrap().unwrap();
        assert_eq!((entry.seq.get(), entry.kind, entry.key), (101, Kind::Delete, &b"gone"[..]));
        reader.finish(&here()).unwrap();
        let (mark, _) = segment.open_envelope(frames.next().unwrap(), &here()).unwrap();
        assert_eq!((mark.previous, mark.sections.len()), (tag, 0));
    }
}

#[test]
fn golden_parked_sections_open() {
    for suite in ["aes", "chacha"] {
        let bytes = golden(&format!("parked-{suite}.bin"));
        let of = Expected { kind: FileKind::Parked, number: FileNumber(34), subject: TABLE, suite: None, salt: None };
        let mut opener = ParkedOpener::open(&bytes, &system_key(), &of, &here()).unwrap();
        let mut frames = journal(&bytes).into_iter();
        assert!(opener.feed_index(frames.next().unwrap(), &here()).unwrap());
        let sections: Vec<_> = [frames.next().unwrap(), frames.next().unwrap()].into();
        let end = frames.next().unwrap();
        let (tag, len_bytes) = (*end.last_chunk().unwrap(), bytes.len() as u64);
        let (origin, listed) = opener.finish(end, (tag, len_bytes), len_bytes, &here()).unwrap();
        let header = FileHeader::decode(&bytes, &here()).unwrap();
        for (number, (section, frame)) in listed.iter().zip(sections).enumerate() {
            let key = table_key().stream_key(header.suite, FileKind::Log, origin.segment, &origin.salt);
            let mut reader = SectionReader::new(key, section);
            reader.feed(frame, &here()).unwrap();
            let entry = reader.next_entry(&here()).unwrap().unwrap();
            assert_eq!(
                (entry.seq.get(), entry.key, entry.value),
                (100 + 3 * number as u64, &b"key"[..], &b"value"[..])
            );
            reader.finish(&here()).unwrap();
        }
    }
}

fn journal(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut offset = HEADER_BYTES;
    let mut frames = Vec::new();
    while offset < bytes.len() {
        let end = offset + JournalHead::decode(&bytes[offset..], &here()).unwrap().frame_bytes() as usize;
        frames.push(bytes[offset..end].to_vec());
        offset = end;
    }
    frames
}
