use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::format::testing::*;

const NUMBER: FileNumber = FileNumber(34);

fn expected() -> Expected {
    Expected { kind: FileKind::Table, number: NUMBER, subject: TABLE, suite: None, salt: None }
}

fn create(key: &TableKey, suite: Suite, entropy: &Counting) -> (FileSealer, Vec<u8>) {
    let mut out = Vec::new();
    let sealer = FileSealer::create(key, suite, FileKind::Table, NUMBER, TABLE, entropy, &mut out).unwrap();
    (sealer, out)
}

/// One file of one frame, and what opens it.
fn one_frame(payload: &[u8], compression: Compression) -> (FileOpener, Vec<u8>) {
    let (mut sealer, mut out) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    sealer.seal(FrameKind::Data, false, compression, payload, &mut out).unwrap();
    (sealer.opener(), out.split_off(HEADER_BYTES))
}

/// Write a CRC that fits: what somebody who tampers would do.
fn fix_frame_crc(frame: &mut [u8]) {
    let crc = crc32(&[&frame[..4], &frame[8..]]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn fix_header_crc(header: &mut [u8]) {
    let crc = crc32(&[&header[..140], &header[144..160]]);
    header[140..144].copy_from_slice(&crc.to_le_bytes());
}

fn fix_journal_crc(frame: &mut [u8]) {
    let head_crc = crc32(&[&frame[..16]]);
    frame[16..20].copy_from_slice(&head_crc.to_le_bytes());
    let body_crc = crc32(&[&frame[24..]]);
    frame[20..24].copy_from_slice(&body_crc.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_sealed_opens_again(
        payload in prop_oneof![prop::collection::vec(any::<u8>(), 0..3000), prop::collection::vec(0u8..3, 0..9000)],
        lz4: bool,
        last: bool,
        chacha: bool,
    ) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let (mut sealer, mut out) = create(&table_key(), SUITES[usize::from(chacha)], &Counting::default());
        let opener = FileOpener::open(&out, &table_key(), &expected(), &here()).unwrap();
        for ordinal in 0..2 {
            let sealed = sealer.seal(FrameKind::Data, last, compression, &payload, &mut out).unwrap();
            prop_assert_eq!(sealed.ordinal, ordinal);
            prop_assert_eq!(sealer.len_bytes(), out.len() as u64);
            let frame = out[sealed.offset_bytes as usize..].to_vec();
            prop_assert_eq!(frame.len(), sealed.len_bytes as usize);
            prop_assert!(frame.len() <= payload.len() + FRAME_OVERHEAD_BYTES);
            prop_assert_eq!(frame.last_chunk(), Some(&sealed.tag));
            let opened = opener.open_frame(FrameKind::Data, last, ordinal, frame, &here()).unwrap();
            prop_assert_eq!(&**opened, &payload[..]);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let opener = one_frame(b"", Compression::None).0;
        let _ = FileHeader::decode(&bytes, &here());
        let _ = JournalHead::decode(&bytes, &here());
        let _ = next_head(&bytes, 0);
        let _ = opener.open_frame(FrameKind::Data, false, 0, bytes.clone(), &here());
        let _ = opener.open_journal(FrameKind::Edits, 0, bytes.clone(), &here());
        let mut frame = bytes;
        if frame.len() >= 24 {
            let body_len = frame.len() as u32 - 24;
            frame[..4].copy_from_slice(&body_len.to_le_bytes());
            fix_frame_crc(&mut frame);
            prop_assert_eq!(refusal(opener.open_frame(FrameKind::Data, false, 0, frame, &here())), ErrorKind::Tampering);
        }
    }
}

#[test]
fn compression_is_kept_only_where_it_saves_a_sixteenth() {
    let repetitive = vec![7; 4096];
    assert!(one_frame(&repetitive, Compression::Lz4).1.len() < 200);
    let random = noise(4096);
    assert_eq!(one_frame(&random, Compression::Lz4).1.len(), 4096 + FRAME_OVERHEAD_BYTES);
    assert_eq!(one_frame(&repetitive, Compression::None).1.len(), 4096 + FRAME_OVERHEAD_BYTES);
}

#[test]
fn sealing_leaves_no_plaintext_in_the_output() {
    // A failure would put a table's contents into freed memory, or into the file itself.
    let payload = b"a secret that is easy to find ".repeat(50);
    for compression in [Compression::None, Compression::Lz4] {
        let (mut sealer, _) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
        let mut out = Vec::new();
        sealer.seal(FrameKind::Data, true, compression, &payload, &mut out).unwrap();
        assert!(!out.windows(8).any(|window| window == &payload[..8]));
    }
}

#[test]
fn the_largest_frame_is_exactly_the_limit_and_one_byte_more_is_refused() {
    let (mut sealer, mut out) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    let payload = noise(PAYLOAD_BYTES_MAX + 1);
    let whole = &payload[..PAYLOAD_BYTES_MAX];
    for compression in [Compression::None, Compression::Lz4] {
        let sealed = sealer.seal(FrameKind::Data, true, compression, whole, &mut out).unwrap();
        assert_eq!(sealed.len_bytes as usize, FRAME_BYTES_MAX);
        let frame = out[sealed.offset_bytes as usize..].to_vec();
        assert!(sealer.opener().open_frame(FrameKind::Data, true, sealed.ordinal, frame, &here()).is_ok());
        let refused = sealer.seal(FrameKind::Data, true, compression, &payload, &mut out);
        assert_eq!(refusal(refused), ErrorKind::LimitExceeded);
        let refused = sealer.seal(FrameKind::Footer, true, compression, &payload[..8192], &mut out);
        assert_eq!(refusal(refused), ErrorKind::LimitExceeded);
    }
}

#[test]
fn every_bit_of_a_frame_matters() {
    for payload in [&b"some payload"[..], b"", &[9; 300]] {
        let (opener, frame) = one_frame(payload, Compression::Lz4);
        let open = |bytes: &[u8]| opener.open_frame(FrameKind::Data, false, 0, bytes.to_vec(), &here());
        every_flip_is_refused(&frame, open);
        every_other_length_is_refused(&frame, open);
    }
}

#[test]
fn a_changed_frame_with_a_fitting_checksum_is_tampering() {
    let (opener, frame) = one_frame(b"some payload", Compression::None);
    for byte in 8..frame.len() {
        let mut changed = frame.clone();
        changed[byte] ^= 1;
        fix_frame_crc(&mut changed);
        let opened = opener.open_frame(FrameKind::Data, false, 0, changed, &here());
        assert_eq!(refusal(opened), ErrorKind::Tampering);
    }
    // Shorter, with a length that says so.
    let mut shorter = frame.clone();
    shorter.remove(10);
    let body_len = (shorter.len() - 24) as u32;
    shorter[..4].copy_from_slice(&body_len.to_le_bytes());
    fix_frame_crc(&mut shorter);
    assert_eq!(refusal(opener.open_frame(FrameKind::Data, false, 0, shorter, &here())), ErrorKind::Tampering);
}

#[test]
fn a_frame_opens_at_its_own_place_only() {
    // A failure would let somebody who can write the directory put old or foreign data in the place of new.
    let entropy = Counting::default();
    let key = table_key();
    let (mut sealer, mut out) = create(&key, Suite::Aes256Gcm, &entropy);
    let sealed = sealer.seal(FrameKind::Data, false, Compression::None, b"payload", &mut out).unwrap();
    sealer.seal(FrameKind::Data, false, Compression::None, b"PAYLOAD", &mut out).unwrap();
    let frame = out[HEADER_BYTES..HEADER_BYTES + sealed.len_bytes as usize].to_vec();
    let opener = sealer.opener();
    let open =
        |opener: &FileOpener, kind, last, ordinal| opener.open_frame(kind, last, ordinal, frame.clone(), &here());
    assert!(open(&opener, FrameKind::Data, false, 0).is_ok());

    assert_eq!(refusal(open(&opener, FrameKind::Data, false, 1)), ErrorKind::Tampering, "another ordinal");
    assert_eq!(refusal(open(&opener, FrameKind::Data, true, 0)), ErrorKind::Tampering, "as the last frame");
    assert_eq!(refusal(open(&opener, FrameKind::Index, false, 0)), ErrorKind::Tampering, "as another kind");
    let (again, _) = create(&key, Suite::Aes256Gcm, &entropy);
    assert_eq!(refusal(open(&again.opener(), FrameKind::Data, false, 0)), ErrorKind::Tampering, "another salt");
    let pinned = |key: &TableKey, suite, kind, number| FileOpener::from_pinned(key, suite, kind, number, sealer.salt());
    let cases = [
        (pinned(&key, Suite::ChaCha20Poly1305, FileKind::Table, NUMBER), "another suite"),
        (pinned(&key, Suite::Aes256Gcm, FileKind::Manifest, NUMBER), "another kind of file"),
        (pinned(&key, Suite::Aes256Gcm, FileKind::Table, FileNumber(35)), "another file"),
        (pinned(&key_of(2, STORE, TABLE, 4), Suite::Aes256Gcm, FileKind::Table, NUMBER), "another generation"),
        (pinned(&key_of(2, STORE, TableId::SYSTEM, 3), Suite::Aes256Gcm, FileKind::Table, NUMBER), "another table"),
        (
            pinned(&key_of(2, StoreId::from_bytes([1; 16]), TABLE, 3), Suite::Aes256Gcm, FileKind::Table, NUMBER),
            "another store",
        ),
    ];
    for (opener, what) in cases {
        assert_eq!(refusal(open(&opener, FrameKind::Data, false, 0)), ErrorKind::Tampering, "{what}");
    }
    let same = pinned(&key, Suite::Aes256Gcm, FileKind::Table, NUMBER);
    assert!(open(&same, FrameKind::Data, false, 0).is_ok());
}

#[test]
fn authentic_content_that_makes_no_sense_is_refused() {
    // Only a mistake of ours, or somebody with the key, could write it; neither may crash a reader or size its memory.
    let key = table_key();
    for (suffix, kind) in [
        (&[0, 5, 0, 0, 0][..], ErrorKind::Tampering), // raw length of an uncompressed payload
        (&[1, 4, 0, 0, 0], ErrorKind::Tampering),     // not LZ4
        (&[1, 0xff, 0xff, 0xff, 0xff], ErrorKind::Tampering), // larger than a frame
        (&[2, 4, 0, 0, 0], ErrorKind::UnknownVersion), // a compression of the future
        (&[], ErrorKind::Tampering),
    ] {
        let (mut sealer, _) = create(&key, Suite::Aes256Gcm, &Counting::default());
        let mut body = if suffix.is_empty() { Vec::new() } else { vec![0xf0; 4] };
        body.extend_from_slice(suffix);
        let mut frame = Vec::new();
        sealer.seal_body(FrameKind::Data, false, body, &mut frame).unwrap();
        assert_eq!(refusal(sealer.opener().open_frame(FrameKind::Data, false, 0, frame, &here())), kind, "{suffix:?}");
    }
}

#[test]
fn every_bit_of_a_header_matters() {
    let (_, header) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    let open = |bytes: &[u8]| FileOpener::open(bytes, &table_key(), &expected(), &here());
    every_flip_is_refused(&header, open);
    for len in 0..HEADER_BYTES {
        assert_eq!(refusal(open(&header[..len])), ErrorKind::BitRot);
    }
}

#[test]
fn a_header_reads_back_as_written() {
    for suite in SUITES {
        let (sealer, bytes) = create(&table_key(), suite, &Counting::default());
        let header = FileHeader::decode(&bytes, &here()).unwrap();
        assert_eq!(header.salt, *sealer.salt());
        assert_eq!(header.encode(), bytes);
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!((header.suite, header.number, header.subject, header.store), (suite, NUMBER, TABLE, STORE));
    }
}

#[test]
fn a_changed_header_with_a_fitting_checksum_is_never_taken() {
    let (_, header) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    for byte in (0..140).chain(144..160) {
        let mut changed = header.clone();
        changed[byte] ^= 1;
        fix_header_crc(&mut changed);
        let kind = refusal(FileOpener::open(&changed, &table_key(), &expected(), &here()));
        let fitting = match byte {
            8..=11 | 16..=19 => ErrorKind::UnknownVersion,
            13 => ErrorKind::UnknownVersion, // AES-256-GCM is 1, and 0 is no suite
            104..=135 => ErrorKind::WrongKey,
            _ => ErrorKind::Tampering,
        };
        assert_eq!(kind, fitting, "byte {byte}");
    }
}

#[test]
fn unknown_versions_kinds_suites_and_features_are_refused_by_name() {
    let (_, header) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    for (byte, value, what, number) in [
        (8, 2, "format version", 2),
        (12, 99, "file kind", 99),
        (13, 3, "suite", 3),
        (13, 0x80, "suite", 0x80),
        (19, 0x80, "feature", 0x8000_0000),
    ] {
        let mut changed = header.clone();
        changed[byte] = value;
        fix_header_crc(&mut changed);
        match FileHeader::decode(&changed, &here()) {
            Err(Error::UnknownVersion { what: found, number: n, .. }) if found == what && n == number => {}
            #[cfg(strongroom_plaintext_baseline)]
            Err(Error::Tampered { .. }) if value == 0x80 => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    // A store of the measuring build, as a normal build meets it.
    #[cfg(not(strongroom_plaintext_baseline))]
    {
        let mut changed = header.clone();
        changed[..8].copy_from_slice(&MAGIC_PLAINTEXT);
        changed[13] = SUITE_NUMBER_PLAINTEXT;
        fix_header_crc(&mut changed);
        match FileHeader::decode(&changed, &here()) {
            Err(Error::UnknownVersion { what: "suite", number: 0x80, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_header_that_is_not_the_expected_one_is_refused() {
    let (sealer, header) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    let right = Expected { suite: Some(Suite::Aes256Gcm), salt: Some(*sealer.salt()), ..expected() };
    assert!(FileOpener::open(&header, &table_key(), &right, &here()).is_ok());
    for wrong in [
        Expected { kind: FileKind::Manifest, ..right },
        Expected { number: FileNumber(35), ..right },
        Expected { subject: TableId::SYSTEM, ..right },
        Expected { suite: Some(Suite::ChaCha20Poly1305), ..right },
        Expected { salt: Some(Salt::from_bytes([0; 32])), ..right },
    ] {
        assert_eq!(refusal(FileOpener::open(&header, &table_key(), &wrong, &here())), ErrorKind::Tampering);
    }
}

#[test]
fn a_wrong_key_is_told_from_tampering() {
    // A failure would call a mistyped key an attack, or an attack a mistyped key.
    let (_, header) = create(&table_key(), Suite::Aes256Gcm, &Counting::default());
    let open = |key: &TableKey| refusal(FileOpener::open(&header, key, &expected(), &here()));
    assert_eq!(open(&key_of(9, STORE, TABLE, 3)), ErrorKind::WrongKey);
    assert_eq!(open(&key_of(2, STORE, TABLE, 4)), ErrorKind::Tampering, "another generation is named");
    assert_eq!(
        open(&key_of(2, StoreId::from_bytes([1; 16]), TABLE, 3)),
        ErrorKind::Tampering,
        "another store is named"
    );
}

// ---- journal frames ----

fn journal(payloads: &[&[u8]]) -> (FileOpener, Vec<u8>, Vec<SealedFrame>) {
    let mut out = Vec::new();
    let what = (FileKind::Manifest, FileNumber(7));
    let mut sealer = FileSealer::create(
        &system_key(),
        Suite::Aes256Gcm,
        what.0,
        what.1,
        TableId::SYSTEM,
        &Counting::default(),
        &mut out,
    )
    .unwrap();
    let frames =
        payloads.iter().map(|payload| sealer.seal_journal(FrameKind::Edits, payload, &mut out).unwrap()).collect();
    (sealer.opener(), out, frames)
}

#[test]
fn every_bit_of_a_journal_frame_matters() {
    let (opener, bytes, _) = journal(&[b"payload"]);
    let open = |bytes: &[u8]| opener.open_journal(FrameKind::Edits, 0, bytes.to_vec(), &here());
    every_flip_is_refused(&bytes[HEADER_BYTES..], open);
    every_other_length_is_refused(&bytes[HEADER_BYTES..], open);
}

#[test]
fn a_changed_journal_frame_with_fitting_checksums_is_refused() {
    let (opener, bytes, _) = journal(&[b"payload"]);
    for byte in (0..16).chain(24..bytes.len() - HEADER_BYTES) {
        let mut frame = bytes[HEADER_BYTES..].to_vec();
        frame[byte] ^= 1;
        fix_journal_crc(&mut frame);
        let kind = refusal(opener.open_journal(FrameKind::Edits, 0, frame, &here()));
        let fitting = match byte {
            0..3 => ErrorKind::BitRot, // a length that is not the frame's
            3 => ErrorKind::Tampering, // a length that is no frame's
            _ => ErrorKind::Tampering,
        };
        assert_eq!(kind, fitting, "byte {byte}");
    }
}

#[test]
fn a_journal_frame_of_another_place_or_file_does_not_open() {
    let (opener, bytes, frames) = journal(&[b"one", b"two"]);
    let frame = |i: usize| {
        let start = frames[i].offset_bytes as usize;
        bytes[start..start + frames[i].len_bytes as usize].to_vec()
    };
    assert!(opener.open_journal(FrameKind::Edits, 1, frame(1), &here()).is_ok());
    assert_eq!(refusal(opener.open_journal(FrameKind::Edits, 0, frame(1), &here())), ErrorKind::Tampering);
    let mut renumbered = frame(1);
    renumbered[4] = 0;
    fix_journal_crc(&mut renumbered);
    assert_eq!(refusal(opener.open_journal(FrameKind::Edits, 0, renumbered, &here())), ErrorKind::Tampering);
    let other = FileOpener::from_pinned(
        &system_key(),
        Suite::Aes256Gcm,
        FileKind::Manifest,
        FileNumber(8),
        &Salt::from_bytes([0; 32]),
    );
    assert_eq!(refusal(other.open_journal(FrameKind::Edits, 1, frame(1), &here())), ErrorKind::Tampering);
}

#[test]
fn frames_are_found_again_behind_a_hole() {
    let (_, mut bytes, frames) = journal(&[b"one", &noise(5000), b"three"]);
    let offsets: Vec<usize> = frames.iter().map(|frame| frame.offset_bytes as usize).collect();
    assert_eq!(next_head(&bytes, 0).map(|(offset, head)| (offset, head.ordinal)), Some((offsets[0], 0)));
    assert_eq!(next_head(&bytes, offsets[0] + 1).map(|found| found.0), Some(offsets[1]));
    bytes[offsets[1] + 5] ^= 1;
    assert_eq!(next_head(&bytes, offsets[0] + 1).map(|(offset, head)| (offset, head.ordinal)), Some((offsets[2], 2)));
    assert_eq!(next_head(&bytes, offsets[2] + 1), None);
    bytes.pop();
    assert_eq!(next_head(&bytes, offsets[2]), None, "a frame that does not fit is none");
    assert_eq!(next_head(&bytes, usize::MAX), None);
    assert_eq!(next_head(&[0; 4096], 0), None, "zeros are no head");
    assert_eq!(next_head(&[0xff; 4096], 0), None);
}

#[test]
fn a_journal_head_of_the_future_is_named_and_is_no_head_to_a_search() {
    let (_, bytes, _) = journal(&[b"payload"]);
    let mut frame = bytes[HEADER_BYTES..].to_vec();
    frame[12] = 77;
    fix_journal_crc(&mut frame);
    assert_eq!(refusal(JournalHead::decode(&frame, &here())), ErrorKind::UnknownVersion);
    assert_eq!(next_head(&frame, 0), None);
    frame[12] = FrameKind::Data as u8;
    fix_journal_crc(&mut frame);
    assert_eq!(refusal(JournalHead::decode(&frame, &here())), ErrorKind::Tampering, "no kind of journal frame");
}

#[test]
fn a_sealed_body_in_clear_is_authenticated_with_its_place() {
    let mut out = Vec::new();
    let entropy = Counting::default();
    let (kind, number) = (FileKind::SystemKey, FileNumber(1));
    let key = system_key();
    let mut sealer =
        FileSealer::create(&key, Suite::Aes256Gcm, kind, number, TableId::SYSTEM, &entropy, &mut out).unwrap();
    seal_in_clear(&mut sealer, FrameKind::KeyRecord, b"in clear", &mut out).unwrap();
    let frame = &out[HEADER_BYTES..];
    let check = |frame: &[u8], ordinal| {
        let (body, tag) = read_in_clear(FrameKind::KeyRecord, frame, &here())?;
        authenticate_in_clear(&sealer.opener(), FrameKind::KeyRecord, ordinal, body, &tag, body.to_vec(), &here())
    };
    assert_eq!(&**check(frame, 0).unwrap(), b"in clear");
    every_flip_is_refused(frame, |frame| check(frame, 0));
    every_other_length_is_refused(frame, |frame| check(frame, 0));
    assert_eq!(refusal(check(frame, 1)), ErrorKind::Tampering);
    let mut changed = frame.to_vec();
    changed[8] ^= 1;
    fix_frame_crc(&mut changed);
    assert_eq!(refusal(check(&changed, 0)), ErrorKind::Tampering);
}
