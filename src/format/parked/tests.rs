//! What stands around parked sections: index and end.

use super::*;
use crate::crypto::Ordinals;
use crate::error::ErrorKind;
use crate::format::frame::HEADER_BYTES;
use crate::format::log::{SectionWriter, entry_bytes, keep, section_frames};
use crate::format::testing::*;
use crate::types::{Generation, Slot};

const NUMBER: FileNumber = FileNumber(34);

/// Sections of one entry each, written to a segment of the log, and their bytes.
pub(crate) fn sections(suite: Suite, count: usize, entropy: &Counting) -> (Origin, Vec<Section>, Vec<u8>) {
    let ordinals = Ordinals::fresh(FileKind::Log, FileNumber(12), entropy).unwrap();
    let key = table_key();
    let sealer = key.stream_sealer(suite, &ordinals);
    let (mut listed, mut bytes) = (Vec::new(), Vec::new());
    for number in 0..count as u64 {
        // An envelope, and the sections of others.
        let _ = ordinals.take().unwrap();
        let raw_bytes = entry_bytes(3, Some(5));
        let mut places = ordinals.take_run(section_frames(raw_bytes)).unwrap();
        let whose = (Slot(3), Generation(3), Seq::new(100 + 3 * number).unwrap());
        let mut drain = keep;
        let mut writer = SectionWriter::new(&sealer, &mut places, whose, raw_bytes, &mut bytes, &mut drain);
        writer.put(b"key", b"value").unwrap();
        listed.push(writer.finish());
    }
    (Origin { segment: FileNumber(12), salt: *ordinals.salt() }, listed, bytes)
}

/// A whole file of these sections, with its last tag.
pub(crate) fn file(suite: Suite, count: usize, entropy: &Counting) -> (Vec<u8>, Tag) {
    let (origin, listed, bytes) = sections(suite, count, entropy);
    let mut out = Vec::new();
    let sealer =
        ParkedSealer::create(&system_key(), suite, (NUMBER, TABLE), origin, &listed, entropy, &mut out).unwrap();
    out.put(&bytes);
    let (tag, len_bytes) = sealer.finish(&mut out).unwrap();
    assert_eq!(len_bytes, out.len() as u64);
    (out, tag)
}

fn expected() -> Expected {
    Expected { kind: FileKind::Parked, number: NUMBER, subject: TABLE, suite: None, salt: None }
}

#[test]
fn an_index_of_many_frames_is_read_as_one() {
    // A long segment has more sections of one table than one frame can list: none of them may be lost.
    let entropy = Counting::default();
    let count = 2 * INDEX_SECTIONS_MAX + 7;
    let (origin, mut listed, _) = sections(Suite::Aes256Gcm, 1, &entropy);
    for number in 1..count as u64 {
        let mut next = listed[0];
        next.first_seq = next.first_seq.advanced(number).unwrap();
        next.first_ordinal += number;
        listed.push(next);
    }
    let mut out = Vec::new();
    let (system, suite) = (system_key(), Suite::Aes256Gcm);
    let sealer = ParkedSealer::create(&system, suite, (NUMBER, TABLE), origin, &listed, &entropy, &mut out).unwrap();
    let index_bytes = out.len();
    let (tag, len_bytes) = sealer.finish(&mut out).unwrap();
    let mut opener = ParkedOpener::open(&out, &system, &expected(), &here()).unwrap();
    let mut offset = HEADER_BYTES;
    let mut frames = 0;
    loop {
        let len = crate::format::frame::JournalHead::decode(&out[offset..], &here()).unwrap().frame_bytes() as usize;
        let complete = opener.feed_index(out[offset..offset + len].to_vec(), &here()).unwrap();
        (offset, frames) = (offset + len, frames + 1);
        if complete {
            break;
        }
    }
    assert_eq!((frames, offset), (3, index_bytes));
    let (read_origin, read) = opener.finish(out[offset..].to_vec(), (tag, len_bytes), len_bytes, &here()).unwrap();
    assert_eq!((read_origin, read), (origin, listed));
}

#[test]
fn an_index_in_another_order_or_of_two_tables_is_refused() {
    // Entries that are replayed in another order than they were committed would bring old values back.
    let (origin, listed, _) = sections(Suite::Aes256Gcm, 3, &Counting::default());
    let decodes =
        |sections: Vec<Section>| IndexPiece::decode(&IndexPiece { origin, sections, more: false }.encode()).is_ok();
    assert!(decodes(listed.clone()));
    assert!(!decodes(listed.iter().rev().copied().collect()));
    assert!(!decodes(vec![listed[0], listed[0]]), "repeated");
    assert!(!decodes(vec![listed[0], Section { slot: Slot(4), ..listed[1] }]), "another table's");
    assert!(!decodes(Vec::new()));
}

#[test]
fn every_other_byte_or_length_of_index_and_end_is_refused() {
    let piece = {
        let (origin, sections, _) = sections(Suite::Aes256Gcm, 2, &Counting::default());
        IndexPiece { origin, sections, more: true }
    };
    every_other_length_is_refused(&piece.encode(), IndexPiece::decode);
    let end = ParkedEnd { sections: 2, frames: 3, len_bytes: 400 };
    every_other_length_is_refused(&end.encode(), ParkedEnd::decode);
    assert_eq!(IndexPiece::decode(&piece.encode()).unwrap(), piece);
    assert_eq!(ParkedEnd::decode(&end.encode()).unwrap(), end);
}

#[test]
fn the_header_says_whose_sections_these_are() {
    // A file that could be put in another table's place would be replayed into it.
    let (bytes, _) = file(Suite::Aes256Gcm, 2, &Counting::default());
    assert!(ParkedOpener::open(&bytes, &system_key(), &expected(), &here()).is_ok());
    let other = crate::types::TableId::from_bytes([7; 16]);
    for expected in [
        Expected { subject: other, ..expected() },
        Expected { number: FileNumber(35), ..expected() },
        Expected { kind: FileKind::Log, ..expected() },
        Expected { salt: Some(Salt::from_bytes([1; 32])), ..expected() },
    ] {
        let opened = ParkedOpener::open(&bytes, &system_key(), &expected, &here());
        assert_eq!(refusal(opened), ErrorKind::Tampering, "{expected:?}");
    }
}
