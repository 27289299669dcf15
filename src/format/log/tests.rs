use proptest::prelude::*;

use super::read::entry_len;
use super::*;
use crate::crypto::TableKey;
use crate::error::ErrorKind;
use crate::format::frame::{Expected, HEADER_BYTES, JournalHead};
use crate::format::testing::*;
use crate::types::{FileKind, KEY_BYTES_MAX, Kind, TableId, VALUE_BYTES_MAX};

const NUMBER: FileNumber = FileNumber(12);
/// Of the envelope.
const ORDINAL: u64 = 7;

fn expected() -> Expected {
    Expected { kind: FileKind::Log, number: NUMBER, subject: TableId::SYSTEM, suite: None, salt: None }
}

fn section() -> Section {
    Section {
        slot: Slot(4),
        generation: Generation(3),
        suite: Suite::ChaCha20Poly1305,
        first_seq: Seq::new(100).unwrap(),
        entries: 5,
        first_ordinal: ORDINAL + 1,
        frames: 1,
        len_bytes: 77,
        tag: [6; 16],
    }
}

fn envelope() -> Envelope {
    let later = Section { slot: Slot(5), first_seq: Seq::new(105).unwrap(), first_ordinal: ORDINAL + 2, ..section() };
    Envelope {
        epoch: Epoch(9),
        first_seq: Seq::new(100).unwrap(),
        previous: [7; 16],
        synced: LogPoint { segment: FileNumber(11), end_bytes: 4096 },
        sections: vec![section(), later],
    }
}

type Entries = Vec<(Vec<u8>, Option<Vec<u8>>)>;
/// An entry with its sequence number.
type Numbered = (Seq, Vec<u8>, Option<Vec<u8>>);

fn raw_bytes(entries: &Entries) -> u64 {
    entries.iter().map(|(key, value)| entry_bytes(key.len(), value.as_ref().map(Vec::len))).sum()
}

type Drain = fn(&mut Vec<u8>) -> Result<()>;

fn write(writer: &mut SectionWriter<'_, Drain>, entries: &Entries) -> Result<()> {
    entries.iter().try_for_each(|(key, value)| match value {
        Some(value) => writer.put(key, value),
        None => writer.delete(key),
    })
}

/// A segment of one group with a section for each of `tables`.
struct Written {
    bytes: Vec<u8>,
    segment: SegmentSealer,
    tag: Tag,
}

fn written(tables: &[&Entries]) -> Written {
    let mut bytes = Vec::new();
    let segment =
        SegmentSealer::create(&system_key(), Suite::Aes256Gcm, NUMBER, &Counting::default(), &mut bytes).unwrap();
    let sealer = table_key().stream_sealer(Suite::ChaCha20Poly1305, segment.ordinals());
    let shape = (tables.len(), tables.iter().map(|entries| section_frames(raw_bytes(entries))).sum());
    let first_seq = Seq::new(100).unwrap();
    let mut group = GroupWriter::begin(segment.ordinals(), shape, first_seq, &mut bytes, keep as Drain).unwrap();
    for (slot, entries) in tables.iter().enumerate() {
        let mut writer = group.section(&sealer, Slot(slot as u32), Generation(3), raw_bytes(entries)).unwrap();
        write(&mut writer, entries).unwrap();
        let section = writer.finish();
        group.add(&section);
    }
    let tag = group.finish(segment.system(), Epoch(1), [0; 16], LogPoint::default()).unwrap();
    Written { bytes, segment, tag }
}

fn frame_at(bytes: &[u8], offset: usize) -> Vec<u8> {
    let head = JournalHead::decode(&bytes[offset..], &here()).unwrap();
    bytes[offset..offset + head.frame_bytes() as usize].to_vec()
}

fn opener(bytes: &[u8]) -> SegmentOpener {
    SegmentOpener::open(bytes, &system_key(), &expected(), &here()).unwrap()
}

/// Everything in a segment of one group.
fn read(bytes: &[u8]) -> Result<Vec<Vec<Numbered>>> {
    let opener = SegmentOpener::open(bytes, &system_key(), &expected(), &here())?;
    let frame = frame_at(bytes, HEADER_BYTES);
    let mut offset = HEADER_BYTES + frame.len();
    let (envelope, _) = opener.open_envelope(frame, &here())?;
    assert_eq!(envelope.group_bytes(), (bytes.len() - HEADER_BYTES) as u64);
    let mut tables = Vec::new();
    for section in &envelope.sections {
        let mut reader = SectionReader::new(opener.table_key(&table_key(), section.suite), section);
        let mut entries = Vec::new();
        while reader.frames_left() > 0 {
            let frame = frame_at(bytes, offset);
            offset += frame.len();
            reader.feed(frame, &here())?;
            while let Some(entry) = reader.next_entry(&here())? {
                let value = (entry.kind == Kind::Put).then(|| entry.value.to_vec());
                entries.push((entry.seq, entry.key.to_vec(), value));
            }
        }
        reader.finish(&here())?;
        tables.push(entries);
    }
    assert_eq!(offset, bytes.len());
    Ok(tables)
}

fn entries() -> impl Strategy<Value = Entries> {
    let key = prop::collection::vec(any::<u8>(), 1..40);
    let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..300));
    prop::collection::vec((key, value), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_in_a_group_reads_back(tables in prop::collection::vec(entries(), 0..4)) {
        let tables: Vec<&Entries> = tables.iter().collect();
        let written = written(&tables);
        let read = read(&written.bytes).unwrap();
        let mut seq = 100;
        for (entries, read) in tables.iter().zip(&read) {
            prop_assert_eq!(entries.len(), read.len());
            for ((key, value), (read_seq, read_key, read_value)) in entries.iter().zip(read) {
                prop_assert_eq!((read_seq.get(), read_key, read_value), (seq, key, value));
                seq += 1;
            }
        }
        let frames: u64 = 1 + tables.len() as u64;
        prop_assert_eq!(written.segment.ordinals().taken(), frames);
        prop_assert_eq!(written.bytes[..HEADER_BYTES + Envelope::disk_bytes(tables.len())].last_chunk(), Some(&written.tag));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_encode_back(bytes in prop::collection::vec(any::<u8>(), 0..300), flip in 0usize..112, to: u8) {
        let mut changed = envelope().encode();
        changed[flip] = to;
        for bytes in [bytes, changed] {
            if let Ok(envelope) = Envelope::decode(&bytes, ORDINAL) {
                prop_assert_eq!(envelope.encode(), &bytes[..]);
            }
            let _ = entry_len(&bytes, true);
            let _ = entry_len(&bytes, false);
        }
    }
}

#[test]
fn an_envelope_says_everything_once_and_in_whole_blocks_of_aes() {
    // Every commit has one: what stands twice in it is paid for by every put, and a mark may have no section more than it has.
    let decode = |bytes: &[u8]| Envelope::decode(bytes, ORDINAL);
    let bytes = envelope().encode();
    assert_eq!(bytes.len(), 48 + 2 * 32);
    assert!(bytes.len().is_multiple_of(16));
    assert_eq!(decode(&bytes).as_ref(), Ok(&envelope()));
    let mark = Envelope { sections: Vec::new(), ..envelope() };
    assert_eq!(decode(&mark.encode()).as_ref(), Ok(&mark));
    for len in (0..bytes.len()).filter(|len| ![48, 80].contains(len)) {
        assert_eq!(decode(&bytes[..len]), Err(Refusal::Malformed), "{len} bytes");
    }
}

#[test]
fn an_envelope_that_cannot_be_is_refused() {
    // What it says is added up, and sums that run over would make one section lie in another.
    let with = |offset: usize, change: &[u8]| {
        let mut bytes = envelope().encode();
        bytes[offset..offset + change.len()].copy_from_slice(change);
        Envelope::decode(&bytes, ORDINAL).map(drop)
    };
    assert_eq!(with(48, &[]), Ok(()));
    assert_eq!(with(8, &(Seq::MAX.get() - 8).to_le_bytes()), Err(Refusal::Malformed), "numbers beyond the last");
    assert_eq!(with(8, &(Seq::MAX.get() - 9).to_le_bytes()), Ok(()), "ten entries, the last number included");
    assert_eq!(with(8, &u64::MAX.to_le_bytes()), Err(Refusal::Malformed), "no number at all");
    assert_eq!(with(48 + 11, &[9]), Err(Refusal::Unknown { what: "suite", number: 9 }));
    assert_eq!(with(48 + 12, &[0; 4]), Err(Refusal::Malformed), "entries of no bytes");
    assert_eq!(with(48 + 12, &[0xff; 4]), Ok(()), "four thousand frames");
    let last = Envelope::decode(&envelope().encode(), u64::MAX - 2);
    assert_eq!(last.map(drop), Err(Refusal::Malformed), "ordinals beyond the last");
}

#[test]
fn every_bit_of_a_segment_matters() {
    // A failure would lose an acknowledged write without a word, or replay another.
    let one: Entries = vec![(b"key".to_vec(), Some(b"value".to_vec())), (b"gone".to_vec(), None)];
    let two: Entries = vec![(b"k".to_vec(), Some(Vec::new()))];
    let written = written(&[&one, &two]);
    let header_and_envelope = HEADER_BYTES + Envelope::disk_bytes(2);
    let guarded = |bytes: &[u8]| -> Result<()> {
        // `frame_at` walks by heads; a damaged one is what a reader would see first.
        let mut offset = HEADER_BYTES;
        while offset < bytes.len() {
            offset += JournalHead::decode(&bytes[offset..], &here())?.frame_bytes() as usize;
        }
        read(bytes).map(drop)
    };
    assert!(header_and_envelope < written.bytes.len());
    every_flip_is_refused(&written.bytes, guarded);
}

#[test]
fn a_section_exchanged_for_another_is_refused() {
    let one: Entries = vec![(b"key".to_vec(), Some(b"one".to_vec()))];
    let two: Entries = vec![(b"key".to_vec(), Some(b"two".to_vec()))];
    let mut written = written(&[&one, &two]).bytes;
    let first = HEADER_BYTES + Envelope::disk_bytes(2);
    let (left, right) = written[first..].split_at_mut((raw_bytes(&one)) as usize + JOURNAL_OVERHEAD_BYTES);
    left.swap_with_slice(right);
    assert_eq!(refusal(read(&written)), ErrorKind::Tampering);
}

#[test]
fn a_section_sealed_anew_is_not_the_one_that_its_envelope_names() {
    // Same key, same ordinal, same segment: only the tag in the envelope tells them apart.
    let one: Entries = vec![(b"key".to_vec(), Some(b"one".to_vec()))];
    let two: Entries = vec![(b"key".to_vec(), Some(b"two".to_vec()))];
    let (mut first, second) = (written(&[&one]).bytes, written(&[&two]).bytes);
    let start = HEADER_BYTES + Envelope::disk_bytes(1);
    assert_eq!(first.len(), second.len());
    first[start..].copy_from_slice(&second[start..]);
    assert_eq!(refusal(read(&first)), ErrorKind::Tampering);
}

#[test]
fn a_segment_of_another_number_or_key_does_not_open() {
    let bytes = written(&[]).bytes;
    let open = |key: &TableKey, number| {
        SegmentOpener::open(&bytes, key, &Expected { number, ..expected() }, &here()).map(drop)
    };
    assert!(open(&system_key(), NUMBER).is_ok());
    assert_eq!(refusal(open(&system_key(), FileNumber(13))), ErrorKind::Tampering);
    assert_eq!(refusal(open(&key_of(5, STORE, TableId::SYSTEM, 1), NUMBER)), ErrorKind::WrongKey);
}

#[test]
fn large_values_and_heads_that_straddle_frames_read_back() {
    // Frames are cut without regard to entries, so every part of an entry must survive a cut at every byte.
    const FRAME: usize = JOURNAL_PAYLOAD_BYTES_MAX;
    for cut in 0..12 {
        // 6 = kind, key length, value length of three bytes, key: the second entry's head begins `cut` bytes before a frame's end.
        let entries: Entries = vec![
            (b"k".to_vec(), Some(vec![1; FRAME - 6 - cut])),
            (vec![2; 300], Some(noise(200))),
            (b"big".to_vec(), Some(noise(2 * FRAME + 12_345))),
            (b"gone".to_vec(), None),
        ];
        assert_eq!(entry_bytes(1, entries[0].1.as_ref().map(Vec::len)) as usize, FRAME - cut);
        let bytes = written(&[&entries]).bytes;
        let expected_bytes =
            HEADER_BYTES as u64 + Envelope::disk_bytes(1) as u64 + section_disk_bytes(raw_bytes(&entries));
        assert_eq!(bytes.len() as u64, expected_bytes);
        let read = read(&bytes).unwrap();
        let read: Entries = read[0].iter().map(|(_, key, value)| (key.clone(), value.clone())).collect();
        assert!(read == entries, "cut {cut}");
    }
}

#[test]
fn a_section_cut_short_or_prolonged_is_refused() {
    let entries: Entries = vec![(b"big".to_vec(), Some(noise(JOURNAL_PAYLOAD_BYTES_MAX + 10)))];
    let bytes = written(&[&entries]).bytes;
    let opener = opener(&bytes);
    let (envelope, _) = opener.open_envelope(frame_at(&bytes, HEADER_BYTES), &here()).unwrap();
    let section = envelope.sections[0];
    let first_offset = HEADER_BYTES + Envelope::disk_bytes(1);
    let first = frame_at(&bytes, first_offset);
    let second = frame_at(&bytes, first_offset + first.len());
    let reader = |section: &Section| SectionReader::new(opener.table_key(&table_key(), section.suite), section);

    assert_eq!(section.frames, 2);
    let mut early = reader(&section);
    early.feed(first.clone(), &here()).unwrap();
    assert_eq!(early.next_entry(&here()).unwrap(), None);
    assert_eq!(refusal(early.finish(&here())), ErrorKind::Tampering);

    let as_last = Section { frames: 1, ..section };
    assert_eq!(
        refusal(reader(&as_last).feed(first.clone(), &here())),
        ErrorKind::Tampering,
        "the last frame says that it is"
    );
    let more_to_come = Section { frames: 3, ..section };
    let mut reader_of_more = reader(&more_to_come);
    reader_of_more.feed(first.clone(), &here()).unwrap();
    assert_eq!(refusal(reader_of_more.feed(second.clone(), &here())), ErrorKind::Tampering);

    let mut whole = reader(&section);
    whole.feed(first.clone(), &here()).unwrap();
    whole.feed(second, &here()).unwrap();
    assert!(whole.next_entry(&here()).unwrap().is_some());
    assert_eq!(refusal(whole.feed(first, &here())), ErrorKind::Tampering, "one frame too many");
    assert!(whole.finish(&here()).is_ok());

    let miscounted = Section { entries: 2, ..section };
    let mut miscounting = reader(&miscounted);
    miscounting.feed(frame_at(&bytes, first_offset), &here()).unwrap();
    miscounting
        .feed(frame_at(&bytes, first_offset + JOURNAL_PAYLOAD_BYTES_MAX + JOURNAL_OVERHEAD_BYTES), &here())
        .unwrap();
    while miscounting.next_entry(&here()).unwrap().is_some() {}
    assert_eq!(refusal(miscounting.finish(&here())), ErrorKind::Tampering);
}

#[test]
fn an_entry_head_that_is_none_is_refused_before_anything_is_sized() {
    let mut huge = vec![Kind::Put as u8];
    huge.put_varint(KEY_BYTES_MAX as u64 + 1);
    huge.put_varint(0);
    assert_eq!(entry_len(&huge, true), Err(Refusal::Malformed));
    huge.resize(ENTRY_HEAD_BYTES_MAX, 0);
    assert_eq!(entry_len(&huge, false), Err(Refusal::Malformed), "no matter what is to come");
    let mut huge = vec![Kind::Put as u8, 1];
    huge.put_varint(VALUE_BYTES_MAX as u64 + 1);
    assert_eq!(entry_len(&huge, true), Err(Refusal::Malformed));
    assert_eq!(entry_len(&[Kind::Delete as u8, 0], true), Err(Refusal::Malformed), "an empty key");
    assert_eq!(
        entry_len(&[Kind::PutRun as u8, 1, 1], false),
        Err(Refusal::Unknown { what: "kind of log entry", number: 2 })
    );
    assert_eq!(entry_len(&[Kind::Put as u8, 3], false), Ok(None), "goes on in the next frame");
    assert_eq!(entry_len(&[Kind::Put as u8, 3], true), Err(Refusal::Malformed));
    assert_eq!(entry_len(&[Kind::Delete as u8, 1, b'k'], true), Ok(Some(3)));
    assert_eq!(entry_len(&[Kind::Delete as u8, 2, b'k'], true), Err(Refusal::Malformed));
}

#[test]
fn a_section_that_is_given_up_leaves_no_plaintext() {
    let mut bytes = Vec::with_capacity(4096);
    let mut header = Vec::new();
    let segment =
        SegmentSealer::create(&system_key(), Suite::Aes256Gcm, NUMBER, &Counting::default(), &mut header).unwrap();
    let sealer = table_key().stream_sealer(Suite::Aes256Gcm, segment.ordinals());
    let mut places = segment.ordinals().take_run(1).unwrap();
    let (whose, mut drain) = ((Slot(0), Generation(3), Seq::ZERO), keep);
    let mut writer = SectionWriter::new(&sealer, &mut places, whose, 1000, &mut bytes, &mut drain);
    writer.put(b"secret key", b"secret value").unwrap();
    drop(writer);
    assert!(bytes.is_empty());
}

#[test]
fn keys_and_values_beyond_the_limits_are_refused() {
    let mut header = Vec::new();
    let segment =
        SegmentSealer::create(&system_key(), Suite::Aes256Gcm, NUMBER, &Counting::default(), &mut header).unwrap();
    let sealer = table_key().stream_sealer(Suite::Aes256Gcm, segment.ordinals());
    let mut bytes = Vec::new();
    let mut places = segment.ordinals().take_run(1).unwrap();
    let (whose, mut drain) = ((Slot(0), Generation(3), Seq::ZERO), keep);
    let mut writer = SectionWriter::new(&sealer, &mut places, whose, 1000, &mut bytes, &mut drain);
    assert_eq!(refusal(writer.put(b"", b"value")), ErrorKind::LimitExceeded);
    assert_eq!(refusal(writer.delete(&vec![0; KEY_BYTES_MAX + 1])), ErrorKind::LimitExceeded);
    let shape = (ENVELOPE_SECTIONS_MAX + 1, 0);
    let too_many = GroupWriter::begin(segment.ordinals(), shape, Seq::ZERO, &mut header, keep).map(drop);
    assert_eq!(refusal(too_many), ErrorKind::LimitExceeded);
}
