use proptest::prelude::*;

use super::*;
use crate::crypto::Suite;
use crate::error::ErrorKind;
use crate::format::frame::{FileSealer, FrameKind};
use crate::format::testing::*;
use crate::options::Compression;
use crate::types::{FileNumber, TableId};

/// Kinds of the findings, and the number of frames that are whole.
fn scrub(kind: FileKind, bytes: &[u8]) -> (Vec<ErrorKind>, u64) {
    let mut walk = Scrub::new(kind, bytes.len() as u64);
    let mut findings = Vec::new();
    let mut steps = 0;
    while let Some(range) = walk.wants() {
        assert!(range.end <= bytes.len() as u64 && range.end - range.start <= FRAME_BYTES_MAX as u64);
        let wanted = &bytes[range.start as usize..range.end as usize];
        if let Err(finding) = walk.feed(wanted, "file") {
            findings.push(finding.kind());
        }
        steps += 1;
        assert!(steps <= 10 + bytes.len(), "the walk ends");
    }
    (findings, walk.frames())
}

/// A file of four frames, the second a large one.
fn file(kind: FileKind) -> Vec<u8> {
    let mut out = Vec::new();
    let mut sealer = FileSealer::create(
        &system_key(),
        Suite::Aes256Gcm,
        kind,
        FileNumber(1),
        TableId::SYSTEM,
        &Counting::default(),
        &mut out,
    )
    .unwrap();
    for payload in [&b"one"[..], &noise(600_000), b"three", b"four"] {
        match kind {
            FileKind::Manifest | FileKind::Log => sealer.seal_journal(FrameKind::Edits, payload, &mut out).unwrap(),
            _ => sealer.seal(FrameKind::Data, false, Compression::None, payload, &mut out).unwrap(),
        };
    }
    out
}

/// A file of two equal units.
fn twice() -> Vec<u8> {
    let mut out = Vec::new();
    let mut sealer = FileSealer::create(
        &system_key(),
        Suite::Aes256Gcm,
        FileKind::KeyFile,
        FileNumber(1),
        TableId::SYSTEM,
        &Counting::default(),
        &mut out,
    )
    .unwrap();
    sealer.seal(FrameKind::KeyRecord, true, Compression::None, b"record", &mut out).unwrap();
    out.extend_from_within(..);
    out
}

#[test]
fn a_whole_file_has_no_findings() {
    for kind in [FileKind::Table, FileKind::Manifest, FileKind::Log] {
        assert_eq!(scrub(kind, &file(kind)), (Vec::new(), 4), "{kind:?}");
    }
    assert_eq!(scrub(FileKind::KeyFile, &twice()), (Vec::new(), 2));
}

#[test]
fn every_flipped_bit_is_found_and_the_rest_is_still_checked() {
    // A failure would call a rotting backup healthy.
    for (kind, bytes) in [(FileKind::Manifest, file(FileKind::Manifest)), (FileKind::Table, file(FileKind::Table))] {
        let large = 160 + 60..160 + 599_000;
        for byte in (0..bytes.len()).filter(|byte| !large.contains(byte) || byte % 100_003 == 0) {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 4;
            let (findings, frames) = scrub(kind, &damaged);
            assert!(findings.contains(&ErrorKind::BitRot), "{kind:?}, byte {byte}");
            if kind == FileKind::Manifest {
                assert_eq!(frames, if byte < 160 { 4 } else { 3 }, "one frame is lost to byte {byte}");
            }
        }
    }
    let bytes = twice();
    for byte in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[byte] ^= 4;
        let (findings, frames) = scrub(FileKind::KeyFile, &damaged);
        let rot = findings.iter().all(|kind| *kind == ErrorKind::BitRot);
        assert!(rot && !findings.is_empty(), "byte {byte}: {findings:?}");
        assert!(frames >= 1, "the other copy is whole");
    }
}

#[test]
fn a_cut_within_a_frame_is_found() {
    for kind in [FileKind::Table, FileKind::Manifest] {
        let bytes = file(kind);
        for cut in 1..40 {
            assert!(
                !scrub(kind, &bytes[..bytes.len() - cut]).0.is_empty() || cut == last_frame_bytes(kind),
                "{kind:?} {cut}"
            );
        }
        assert_eq!(scrub(kind, &bytes[..100]).0, [ErrorKind::BitRot]);
        assert_eq!(scrub(kind, &[]).0, [ErrorKind::BitRot]);
    }
}

fn last_frame_bytes(kind: FileKind) -> usize {
    if kind == FileKind::Table { 4 + 29 } else { 4 + 40 }
}

#[test]
fn a_file_of_another_kind_is_found() {
    assert_eq!(scrub(FileKind::Log, &file(FileKind::Manifest)), (vec![ErrorKind::Tampering], 4));
}

#[test]
fn frames_behind_a_hole_of_any_size_are_found_again() {
    let bytes = file(FileKind::Log);
    for hole in [1, 100, 300_000, SEARCH_BYTES as usize + 1, 600_000] {
        let mut damaged = bytes.clone();
        damaged[160..160 + hole].fill(0);
        let (findings, frames) = scrub(FileKind::Log, &damaged);
        assert!(!findings.is_empty());
        assert_eq!(frames, if hole == 1 { 3 } else { 2 }, "hole of {hole} bytes");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..3000), number in 1u8..9) {
        scrub(FileKind::from_u8(number).unwrap(), &bytes);
        scrub(FileKind::from_u8(number).unwrap(), &vec![0; bytes.len()]);
    }
}

#[test]
fn a_key_file_with_a_byte_too_many_or_too_few_is_found() {
    let mut bytes = twice();
    bytes.push(0);
    assert!(!scrub(FileKind::KeyFile, &bytes).0.is_empty());
    bytes.truncate(bytes.len() - 2);
    assert!(!scrub(FileKind::KeyFile, &bytes).0.is_empty());
    assert!(!scrub(FileKind::KeyFile, &bytes[..bytes.len() / 2 + 1]).0.is_empty(), "one unit of two");
}

#[test]
fn zeros_behind_the_log_are_room_and_zeros_anywhere_else_are_damage() {
    // Room is reserved in the log; a scrub that cried wolf at each such store would not be listened to.
    let whole = file(FileKind::Log);
    for zeros in [1, JOURNAL_HEAD_BYTES, 700_000] {
        let longer = [&whole[..], &vec![0; zeros]].concat();
        assert_eq!(scrub(FileKind::Log, &longer), (vec![], 4), "{zeros} zeros");
        assert!(!scrub(FileKind::Manifest, &[&file(FileKind::Manifest)[..], &vec![0; zeros]].concat()).0.is_empty());
        let (findings, frames) = scrub(FileKind::Log, &[&longer[..], &whole[HEADER_BYTES..]].concat());
        assert_eq!((findings, frames), (vec![ErrorKind::BitRot], 8), "{zeros} zeros between frames");
    }
}
