//! Every corpus is replayed, and every target has one.
//!
//! A seed is what a format writes, and a few damaged copies of it. `cargo test --lib fuzzing -- --ignored` writes seeds that are
//! missing; seeds that are there stay as they are, so that a changed format does not take old inputs away.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{TARGETS, table};
use crate::crypto::Suite;
use crate::format::codec::Put;
use crate::format::frame::{FRAME_HEAD_BYTES, FileOpener, FrameHead, FrameKind, HEADER_BYTES};
use crate::format::log::{Envelope, LogPoint, Section};
use crate::format::manifest::{EditGroup, tests as edits};
use crate::format::parked::{self, IndexPiece, ParkedEnd};
use crate::format::testing::*;
use crate::io::Vfs;
use crate::io::mem::MemVfs;
use crate::io::sim::{SeededEntropy, Simulation};
use crate::keys::{
    CreateGrantRequest, EncryptionContext, EngineKeyRequest, GrantConstraint, GrantOperation, KeyOperation, KeyPolicy,
    KeyProvider, LocalKms, PolicyPrincipal, PolicyStatement, Principal, local_fuzz,
};
use crate::options::Compression;
use crate::sstable::{TableSettings, TableWriter};
use crate::types::{Epoch, FileKind, FileNumber, Generation, Kind, Seq, Slot, Trailer};

/// All corpora together, so that a clone stays small.
const CORPUS_BYTES_MAX: usize = 300 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(folder) = std::fs::read_dir(root().join("corpus").join(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn replay(target: &str) {
    let (_, run) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for (path, bytes) in inputs {
        // Shown if the run fails: which input it was.
        println!("{}", path.display());
        run(&bytes);
    }
    // What no corpus has to hold.
    for bytes in [&[][..], &[0], &[0xff; 400]] {
        run(bytes);
    }
}

/// A test for each target, so that they run side by side and a failure names its own.
macro_rules! replay {
    ($($target:ident)*) => {
        const REPLAYED: &[&str] = &[$(stringify!($target)),*];

        mod replay {
            $(
                #[test]
                fn $target() {
                    super::replay(stringify!($target));
                }
            )*
        }
    };
}

replay! { block codec current frame keyfile keyring log manifest names operations parked scrub table }

#[test]
fn every_target_is_a_program_has_a_corpus_and_is_replayed() {
    // A failure would mean that a format is not fuzzed, and nobody notices.
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, REPLAYED.iter().map(|name| (*name).to_owned()).collect());
    let folder = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(folder("fuzz_targets"), names);
    assert_eq!(folder("corpus"), names);
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml does not build {name}");
    }
    let formats = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/format")).unwrap();
    let formats = formats.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let missing: Vec<String> = formats.filter(|name| !names.contains(name)).collect();
    let known = |name: &&String| !matches!(name.as_str(), "mod" | "golden" | "testing");
    assert_eq!(missing.iter().find(known), None, "every file of format/ has a target");
}

#[test]
fn the_corpora_are_small() {
    let bytes: usize = TARGETS.iter().flat_map(|(name, _)| corpus(name)).map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

#[test]
#[ignore = "writes seeds that are missing"]
fn write_missing_seeds() {
    for (target, name, bytes) in seeds() {
        let folder = root().join("corpus").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        if !folder.join(&name).exists() {
            std::fs::write(folder.join(&name), bytes).unwrap();
        }
    }
}

#[test]
fn the_seed_of_a_sorted_table_is_one_that_verifies() {
    // A seed that the reader refuses at once would leave everything behind its checks unreached.
    let seed = table::listed(&sorted_table());
    let frames = table::frames(&seed).unwrap();
    assert!(table::verifies(&frames));
}

fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| {
        for (damage, damaged) in damages(&bytes) {
            seeds.push((target, format!("{name}-{damage}"), damaged));
        }
        seeds.push((target, name.to_owned(), bytes));
    };
    add("codec", "numbers", codec_seed());
    for (name, bytes) in golden_files() {
        let target = match name.split('-').next() {
            Some("current") => "current",
            Some("keyfile" | "systemkey") => "keyfile",
            _ => "frame",
        };
        add(target, &name, bytes.clone());
        add("scrub", &name, [&[kind_for_scrub(&name)][..], &bytes].concat());
    }
    add("frame", "journal", golden("v1/manifest-aes.bin")[HEADER_BYTES..].to_vec());
    add("frame", "lz4", [&lz4_flex::block::compress(&[42; 500])[..], &[1, 0xf4, 1, 0, 0]].concat());
    add("block", "entries", block_entries());
    add("block", "block", block());
    add("log", "envelope", envelope().encode());
    add("log", "section", section(40));
    add("log", "section-small-frames", section(2));
    for (name, more) in [("index", false), ("index-more", true)] {
        let (origin, sections, _) = parked::tests::sections(Suite::Aes256Gcm, 2, &Counting::default());
        add("parked", name, IndexPiece { origin, sections, more }.encode());
    }
    add("parked", "end", ParkedEnd { sections: 2, frames: 2, len_bytes: 600 }.encode());
    let group = EditGroup { epoch: Epoch(41), synced_ordinal: Some(3), edits: edits::edits() };
    add("manifest", "group", group.encode().to_vec());
    add("manifest", "picture", EditGroup { edits: picture(), ..group.clone() }.encode().to_vec());
    add("manifest", "frames", [&[60, 0][..], &group.encode()].concat());
    add("keyfile", "record", crate::format::keyfile::tests::record().encode());
    add("keyfile", "system-record", crate::format::keyfile::tests::system_record().encode());
    add("keyfile", "context", context());
    add("current", "open", crate::format::current::tests::current(false).encode());
    add("current", "closed", crate::format::current::tests::current(true).encode());
    for (number, name) in names().into_iter().enumerate() {
        add("names", &format!("name-{number}"), name.into_bytes());
    }
    add("keyring", "file", golden("keyring-1"));
    add("keyring", "contents-2", keyring());
    add("keyring", "file-2", golden("keyring-2"));
    add("keyring", "wrap", golden("data-key-wrap-1"));
    add("keyring", "alias", b"alias/some-name".to_vec());
    table_seeds(&mut add);
    for (name, bytes) in operations() {
        seeds.push(("operations", name.to_owned(), bytes));
    }
    seeds
}

/// Cut short, a byte more, and a byte changed at the beginning, in the middle and at the end.
fn damages(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let changed = |place: usize| {
        let mut bytes = bytes.to_vec();
        bytes[place] = bytes[place].wrapping_add(1);
        bytes
    };
    let middle = bytes.len() / 2;
    vec![
        ("cut", bytes[..middle].to_vec()),
        ("longer", [bytes, &[0]].concat()),
        ("first", changed(0)),
        ("middle", changed(middle)),
        ("last", changed(bytes.len() - 1)),
    ]
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

/// One suite's files are enough.
fn golden_files() -> Vec<(String, Vec<u8>)> {
    let names = ["current-aes", "frames-lz4", "keyfile-aes", "log-aes", "manifest-aes", "systemkey-aes"];
    names.into_iter().map(|name| (name.to_owned(), golden(&format!("v1/{name}.bin")))).collect()
}

/// The place of a file's kind in the list that `scrub` chooses from.
fn kind_for_scrub(name: &str) -> u8 {
    match name {
        "systemkey-aes" => 0,
        "current-aes" => 1,
        "manifest-aes" => 2,
        "log-aes" => 3,
        "frames-lz4" => 4,
        _ => 5,
    }
}

fn codec_seed() -> Vec<u8> {
    let mut out = vec![12, 0, 1, 2, 3, 4, 5, 6, 0x58, 0x99, 10, 11, 0x3c];
    out.put_u8(1);
    out.put_u16(2);
    out.put_u32(3);
    out.put_u64(4);
    out.put_bool(true);
    out.put_reserved::<3>();
    out.put_varint(300);
    out.put_prefixed(b"five5");
    out.put_prefixed("größe".as_bytes());
    out.put_varint(4);
    out.put(&[7; 7]);
    out.put(&[3; 3]);
    out
}

/// As `formats::block_entries` reads them.
fn block_entries() -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..12u8 {
        out.put_u8(if i == 0 { 0 } else { 5 });
        let rest = if i == 0 { b"prefix".to_vec() } else { vec![b'a', i] };
        out.put_prefixed(&rest);
        out.put_varint(u64::from(i) * 1000);
        out.put_u8(i % 3);
        out.put_prefixed(&vec![i; usize::from(i)]);
    }
    out
}

fn block() -> Vec<u8> {
    let mut builder = crate::format::block::BlockBuilder::new();
    for i in 0..10u8 {
        let trailer =
            Trailer::new(Seq::new(900 - u64::from(i) * 70).unwrap(), if i % 4 == 3 { Kind::Delete } else { Kind::Put });
        builder.add(&[b'k', b'e', b'y', i / 2], trailer, &[i; 3][..usize::from(i % 4)]);
    }
    builder.finish().to_vec()
}

fn envelope() -> Envelope {
    let section = |slot, first_ordinal, first_seq| Section {
        slot: Slot(slot),
        generation: Generation(3),
        suite: Suite::Aes256Gcm,
        first_seq: Seq::new(first_seq).unwrap(),
        entries: 5,
        first_ordinal,
        frames: 1,
        len_bytes: 100,
        tag: [7; 16],
    };
    Envelope {
        epoch: Epoch(41),
        first_seq: Seq::new(100).unwrap(),
        previous: [9; 16],
        synced: LogPoint { segment: FileNumber(12), end_bytes: 4711 },
        sections: vec![section(3, 1, 100), section(4, 2, 105)],
    }
}

/// Entries, behind the length of the frames that they are cut into.
fn section(frame_bytes: u8) -> Vec<u8> {
    let mut out = vec![frame_bytes];
    for i in 0..6u8 {
        let key = [b"key ", &[i; 3][..]].concat();
        if i % 3 == 2 {
            out.put_u8(0);
            out.put_varint(key.len() as u64);
            out.put(&key);
        } else {
            out.put_u8(1);
            out.put_varint(key.len() as u64);
            out.put_varint(u64::from(i) * 40);
            out.put(&key);
            out.put(&vec![i; usize::from(i) * 40]);
        }
    }
    out
}

/// Edits that follow from each other.
fn picture() -> Vec<crate::format::manifest::Edit> {
    use crate::format::manifest::Edit;
    let edits = edits::edits();
    let removes = |edit: &Edit| {
        matches!(
            edit,
            Edit::DropTable { .. }
                | Edit::ForgetTable { .. }
                | Edit::RemoveFile { .. }
                | Edit::RemoveSegment { .. }
                | Edit::Unpark { .. }
        )
    };
    edits.into_iter().filter(|edit| !removes(edit)).collect()
}

fn context() -> Vec<u8> {
    let pairs = [("purpose", "table"), ("store", "61"), ("generation", "3")];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    crate::format::keyfile::encode_context(&pairs).unwrap()
}

fn names() -> Vec<String> {
    use crate::format::FileName;
    let name = |name: FileName| name.path();
    vec![
        name(FileName::Current),
        name(FileName::Manifest(FileNumber(7))),
        name(FileName::Log(FileNumber(1_234_567))),
        name(FileName::Parked(FileNumber(12), Slot(3))),
        name(FileName::KeyFile(TABLE)),
        name(FileName::SystemKey),
        name(FileName::Table(FileNumber(0x122))),
        FileName::Table(FileNumber(34)).temporary_path(),
    ]
}

/// The contents of a keyring with keys of every kind and state, a policy and a grant.
fn keyring() -> Vec<u8> {
    let kms = LocalKms::in_memory(Simulation::new(5).environment()).unwrap();
    kms.create_key(Some("alias/ratings"), "for the ratings").unwrap();
    kms.rotate("alias/ratings").unwrap();
    kms.set_rotation_period("alias/ratings", Some(365)).unwrap();
    kms.create_key(Some("alias/off"), "").unwrap();
    kms.disable("alias/off").unwrap();
    kms.create_key(Some("alias/going"), "").unwrap();
    kms.schedule_deletion("alias/going", 30).unwrap();
    kms.create_key_without_material(Some("alias/brought"), "").unwrap();
    kms.import_material("alias/brought", Some(1 << 45), |bytes| bytes.fill(3)).unwrap();
    kms.create_key_without_material(None, "").unwrap();
    kms.managed_key(&EngineKeyRequest::new(Principal::Service)).unwrap();
    kms.owned_key(&EngineKeyRequest::new(Principal::Service)).unwrap();
    let ada = || Principal::Named("ada".to_owned());
    let only = || EncryptionContext::from_pairs([("store", "s")]).unwrap();
    let policy = KeyPolicy::new([
        PolicyStatement::allow([Principal::Owner], KeyOperation::ALL),
        PolicyStatement::deny([PolicyPrincipal::Everyone], [KeyOperation::Encrypt])
            .with(GrantConstraint::Equals(only())),
    ]);
    kms.put_policy("alias/ratings", policy).unwrap();
    let mut grant = CreateGrantRequest::new("alias/ratings", ada(), vec![GrantOperation::Decrypt], Principal::Owner);
    grant.name = Some("a grant".to_owned());
    grant.constraint = Some(GrantConstraint::Contains(only()));
    grant.retiring_principal = Some(Principal::Service);
    kms.create_grant(&grant).unwrap();
    local_fuzz::contents(&kms).to_vec()
}

/// The frames of a sorted table with deletes, versions, a filter, and an index of more than one entry.
fn sorted_table() -> Vec<(FrameKind, Vec<u8>)> {
    let disk = MemVfs::unjournaled();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let settings = TableSettings {
        table: TABLE,
        suite: Suite::Aes256Gcm,
        compression: Compression::None,
        block_bytes: 256,
        filter_bits_per_key: 10,
        filter_seed: 99,
    };
    let (path, key, entropy) = (Path::new("/seed"), Arc::new(table_key()), SeededEntropy::new(1));
    let mut writer = TableWriter::create(&vfs, path, "seed", &key, &settings, table::NUMBER, &entropy).unwrap();
    for i in 0..40u64 {
        let user_key = format!("key-{:04}", i / 2);
        let kind = if i % 7 == 0 { Kind::Delete } else { Kind::Put };
        let value = if kind == Kind::Put { vec![i as u8; (i % 5) as usize * 9] } else { Vec::new() };
        writer.add(user_key.as_bytes(), Trailer::new(Seq::new(1000 - i).unwrap(), kind), &value).unwrap();
    }
    let record = writer.finish().unwrap().record;
    let file = disk.read("/seed").unwrap();
    let opener = FileOpener::from_pinned(&key, record.suite, FileKind::Table, record.number, &record.salt);
    open_frames(&file, &opener)
}

fn open_frames(file: &[u8], opener: &FileOpener) -> Vec<(FrameKind, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut rest = &file[HEADER_BYTES..];
    while !rest.is_empty() {
        let head = rest.first_chunk::<FRAME_HEAD_BYTES>().unwrap();
        let head = FrameHead::decode(head, 1 << 20, &here()).unwrap();
        let (frame, behind) = rest.split_at(head.frame_bytes() as usize);
        rest = behind;
        let kinds = (1..=8).map(|number| FrameKind::from_u8(number).unwrap());
        // Which kind it is stands in no head: the one under which it opens.
        let opened = kinds.map(|kind| {
            let last = kind == FrameKind::Footer;
            let payload = opener.open_frame(kind, last, frames.len() as u64, frame.to_vec(), &here()).ok()?;
            Some((kind, payload.to_vec()))
        });
        frames.push(opened.flatten().next().unwrap());
    }
    frames
}

fn table_seeds(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    let frames = sorted_table();
    for (kind, payload) in &frames {
        if matches!(kind, FrameKind::Properties | FrameKind::Bounds | FrameKind::Footer) {
            add("table", &format!("{kind:?}").to_lowercase(), payload.clone());
        }
    }
    add("table", "whole", table::listed(&frames));
    // Damage within each frame in turn: lengths stay as they are, so that everything before it is still right.
    for i in 0..frames.len() {
        let mut frames = frames.clone();
        let payload = &mut frames[i].1;
        let place = payload.len() / 3;
        payload[place] = payload[place].wrapping_add(1);
        add("table", &format!("whole-frame-{i}"), table::listed(&frames));
    }
    add("table", "handle", vec![1; 20]);
    let mut pointer = vec![1; 28];
    pointer[16..].copy_from_slice(&[9, 9, 0, 0, 0, 0, 6, 0, 2, 0, 0, 0]);
    add("table", "pointer", pointer);
}

/// Runs of operations, each with something of its own in the foreground.
fn operations() -> Vec<(&'static str, Vec<u8>)> {
    let create = |name, options| vec![15, name, options];
    let put = |table, key, len, durability| vec![0, table, key, len, durability];
    let delete = |table, key| vec![6, table, key, 0];
    let rounds = |count: u8, round: &dyn Fn(u8) -> Vec<u8>| (0..count).flat_map(round).collect::<Vec<u8>>();
    let writes = rounds(60, &|i| put(0, 0x60 + i % 32, 200, i));
    vec![
        ("overwrites-to-three-levels", [create(0, 0), writes.clone(), vec![13, 1, 11, 0, 0, 11, 0, 1]].concat()),
        (
            "deletes-and-snapshots",
            [
                create(0, 4),
                writes.clone(),
                vec![12, 0],
                rounds(16, &|i| delete(0, 0x60 + i)),
                vec![13, 1, 12, 0, 10, 0, 0x60, 0x70, 1],
            ]
            .concat(),
        ),
        (
            "crash-after-each-write",
            rounds(20, &|i| [put(0, 0x60 + i, 50, if i % 4 == 0 { 3 } else { 0 }), vec![18, i % 3, i % 9, i]].concat()),
        ),
        (
            "crash-in-flush-and-compaction",
            rounds(9, &|i| {
                let writes = rounds(12, &|j| put(0, 0x60 + (i * 5 + j) % 32, 150, j));
                [writes, vec![13, i % 2, 18, i * 7, i, i]].concat()
            }),
        ),
        (
            "tables-come-and-go",
            rounds(8, &|i| {
                [create(i % 3, i * 4), put(i % 3, 0x61, 90, 0), vec![8, 3, 0, 0x62, 1, 9, 1, 0x62, 0, 2, 0x41, 1, 9, 3]]
                    .into_iter()
                    .chain([vec![14, 9], vec![16, (i + 1) % 3], vec![18, i, i, i]])
                    .flatten()
                    .collect()
            }),
        ),
        ("large-values", rounds(6, &|i| [put(0, 0x60 + i, 255, 0), vec![13, 0, 9, 0, 0x60 + i]].concat())),
        ("reopened", rounds(6, &|i| [put(0, 0x60 + i, 120, 0), vec![14, 3, 17, 19]].concat())),
    ]
}
