use std::collections::VecDeque;
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::writer::Lie;
use super::*;
use crate::crypto::{Salt, Secret};
use crate::cursor::Cursor;
use crate::format::table::{RUN_CHUNK_BYTES, hash};
use crate::io::fault::{FaultVfs, Rule};
use crate::io::mem::MemVfs;
use crate::io::sim::SeededEntropy;
use crate::io::{Step, Task, Vfs};
use crate::types::{FileNumber, Generation, StoreId, VALUE_INLINE_BYTES_MAX};

/// Entries in the engine's order.
type Entries = Vec<(Vec<u8>, Trailer, Vec<u8>)>;

const NAME: &str = "sst/01/000001.sst";

struct Fixture {
    disk: MemVfs,
    key: Arc<TableKey>,
    settings: TableSettings,
    cache: Arc<BlockCache>,
}

impl Fixture {
    fn new(block_bytes: usize, compression: Compression) -> Fixture {
        let settings = TableSettings {
            table: TableId::from_bytes([2; 16]),
            suite: Suite::Aes256Gcm,
            compression,
            block_bytes,
            filter_bits_per_key: 10,
            filter_seed: 99,
        };
        Fixture {
            disk: MemVfs::unjournaled(),
            key: Arc::new(table_key(7)),
            settings,
            cache: Arc::new(BlockCache::new(1 << 20)),
        }
    }

    fn writer(&self, number: u64) -> TableWriter {
        self.writer_on(&(Arc::new(self.disk.clone()) as Arc<dyn Vfs>), number).unwrap()
    }

    fn writer_on(&self, vfs: &Arc<dyn Vfs>, number: u64) -> Result<TableWriter> {
        let path = path(number);
        let entropy = SeededEntropy::new(number);
        TableWriter::create(vfs, Path::new(&path), NAME, &self.key, &self.settings, FileNumber(number), &entropy)
    }

    fn write(&self, number: u64, entries: &Entries) -> FinishedTable {
        let mut writer = self.writer(number);
        for (key, trailer, value) in entries {
            writer.add(key, *trailer, value).unwrap();
        }
        writer.finish().unwrap()
    }

    fn open(&self, record: &FileRecord) -> Result<Arc<TableReader>> {
        self.open_with(record, &self.key)
    }

    fn open_with(&self, record: &FileRecord, key: &TableKey) -> Result<Arc<TableReader>> {
        let file = self.disk.open(Path::new(&path(record.number.0))).unwrap();
        TableReader::open(file, NAME, key, record, &self.settings, self.cache.clone())
    }

    fn get(&self, reader: &TableReader, key: &[u8], seq: u64) -> Result<Option<(Trailer, Value)>> {
        reader.get(key, hash(self.settings.filter_seed, key), Seq::new(seq).unwrap())
    }
}

fn path(number: u64) -> String {
    format!("/{number}.sst")
}

fn table_key(byte: u8) -> TableKey {
    let secret = Secret::fill_with(|bytes| bytes.fill(byte));
    TableKey::new(secret, StoreId::from_bytes([1; 16]), TableId::from_bytes([2; 16]), Generation(3))
}

fn put(key: &[u8], seq: u64, value: &[u8]) -> (Vec<u8>, Trailer, Vec<u8>) {
    (key.to_vec(), Trailer::new(Seq::new(seq).unwrap(), Kind::Put), value.to_vec())
}

fn delete(key: &[u8], seq: u64) -> (Vec<u8>, Trailer, Vec<u8>) {
    (key.to_vec(), Trailer::new(Seq::new(seq).unwrap(), Kind::Delete), Vec::new())
}

/// Forty keys over some ten blocks, every fifth deleted, every seventh with three versions.
fn small() -> Entries {
    let mut entries = Entries::new();
    for i in 0..40u64 {
        let key = format!("key-{i:04}").into_bytes();
        if i % 7 == 0 {
            entries.push(put(&key, 300 + i, &[i as u8; 20]));
            entries.push(delete(&key, 200 + i));
        }
        entries.push(if i % 5 == 0 { delete(&key, i) } else { put(&key, i, &i.to_be_bytes().repeat(3)) });
    }
    entries
}

fn order(entry: &(Vec<u8>, Trailer, Vec<u8>), key: &[u8], trailer: Trailer) -> std::cmp::Ordering {
    entry.0.as_slice().cmp(key).then(trailer.cmp(&entry.1))
}

/// What a reader at `seq` must find.
fn expected(entries: &Entries, key: &[u8], seq: u64) -> Option<(Trailer, Vec<u8>)> {
    let visible = |entry: &&(Vec<u8>, Trailer, Vec<u8>)| entry.0 == key && entry.1.seq().get() <= seq;
    entries.iter().find(visible).map(|entry| (entry.1, entry.2.clone()))
}

fn found(answer: Option<(Trailer, Value)>) -> Option<(Trailer, Vec<u8>)> {
    answer.map(|(trailer, value)| (trailer, value.to_vec()))
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xff)], 1..6),
        vec(any::<u8>(), 1..30),
        (0u8..20, 100usize..3000).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn entries() -> impl Strategy<Value = Entries> {
    let value = prop_oneof![
        20 => vec(any::<u8>(), 0..100),
        5 => (any::<u8>(), 0..1000usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), VALUE_INLINE_BYTES_MAX - 1..VALUE_INLINE_BYTES_MAX + 3).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), RUN_CHUNK_BYTES - 1..2 * RUN_CHUNK_BYTES + 2).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let version = prop_oneof![1 => Just(None), 4 => value.prop_map(Some)];
    let versions =
        prop_oneof![8 => btree_map(0u64..100, version.clone(), 1..3), 1 => btree_map(0u64..100, version, 10..40)];
    btree_map(key(), versions, 1..60).prop_map(|keys| {
        let mut entries = Entries::new();
        for (key, versions) in keys {
            for (seq, value) in versions.into_iter().rev() {
                entries.push(value.map_or_else(|| delete(&key, seq), |value| put(&key, seq, &value)));
            }
        }
        entries
    })
}

#[derive(Clone, Debug)]
enum Move {
    First,
    Last,
    Seek(Vec<u8>, u64),
    SeekBefore(Vec<u8>, u64),
    /// To the entry with this index, by its own key and trailer.
    SeekEntry(usize),
    SeekBeforeEntry(usize),
    Next(u8),
    Prev(u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        1 => Just(Move::First),
        1 => Just(Move::Last),
        2 => (key(), 0u64..110).prop_map(|(key, seq)| Move::Seek(key, seq)),
        2 => (key(), 0u64..110).prop_map(|(key, seq)| Move::SeekBefore(key, seq)),
        2 => any::<usize>().prop_map(Move::SeekEntry),
        2 => any::<usize>().prop_map(Move::SeekBeforeEntry),
        4 => (1u8..40).prop_map(Move::Next),
        4 => (1u8..40).prop_map(Move::Prev),
    ];
    vec(one, 1..30)
}

/// Walk `cursor` and an index into `entries` side by side.
fn walk(entries: &Entries, cursor: &mut TableCursor, moves: &[Move]) -> Result<(), TestCaseError> {
    let before = |key: &[u8], trailer| entries.partition_point(|entry| order(entry, key, trailer).is_lt());
    let mut at: Option<usize> = None;
    let check = |at: &Option<usize>, cursor: &TableCursor| -> Result<(), TestCaseError> {
        prop_assert_eq!(at.is_some(), cursor.valid());
        if let Some(at) = at {
            let (key, trailer, value) = &entries[*at];
            prop_assert_eq!((cursor.key(), cursor.trailer()), (&key[..], *trailer));
            match cursor.value_ref() {
                Some(bytes) => prop_assert_eq!(bytes, &value[..]),
                None => prop_assert!(value.len() > VALUE_INLINE_BYTES_MAX),
            }
            prop_assert!(*cursor.value()? == **value);
        }
        Ok(())
    };
    let inside = |at: usize| (at < entries.len()).then_some(at);
    for step in moves {
        let (times, forward) = match step {
            Move::First => (cursor.seek_to_first().map(|()| at = Some(0)).map(|()| 0)?, true),
            Move::Last => (cursor.seek_to_last().map(|()| at = Some(entries.len() - 1)).map(|()| 0)?, true),
            Move::Seek(key, seq) => {
                let trailer = Trailer::seek(Seq::new(*seq).unwrap());
                cursor.seek(key, trailer)?;
                at = inside(before(key, trailer));
                (0, true)
            }
            Move::SeekBefore(key, seq) => {
                let trailer = Trailer::new(Seq::new(*seq).unwrap(), Kind::Put);
                cursor.seek_before(key, trailer)?;
                at = before(key, trailer).checked_sub(1);
                (0, true)
            }
            Move::SeekEntry(i) => {
                let (key, trailer, _) = &entries[i % entries.len()];
                cursor.seek(key, *trailer)?;
                at = Some(i % entries.len());
                (0, true)
            }
            Move::SeekBeforeEntry(i) => {
                let (key, trailer, _) = &entries[i % entries.len()];
                cursor.seek_before(key, *trailer)?;
                at = (i % entries.len()).checked_sub(1);
                (0, true)
            }
            Move::Next(times) => (*times, true),
            Move::Prev(times) => (*times, false),
        };
        check(&at, cursor)?;
        for _ in 0..times {
            let Some(here) = at else { break };
            if forward {
                cursor.next()?
            } else {
                cursor.prev()?
            }
            at = if forward { inside(here + 1) } else { here.checked_sub(1) };
            check(&at, cursor)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_table_gives_back_what_was_written(
        entries in entries(),
        block_bytes in 256usize..6000,
        bits in 0u8..12,
        none: bool,
        moves in moves(),
        strange in vec(key(), 0..10),
        seq in 0u64..110,
    ) {
        // A failure would lose or change data at rest.
        let compression = if none { Compression::None } else { Compression::Lz4 };
        let mut fixture = Fixture::new(block_bytes, compression);
        fixture.settings.filter_bits_per_key = bits;
        let finished = fixture.write(1, &entries);
        prop_assert_eq!(&*finished.smallest, &*entries[0].0);
        prop_assert_eq!(&*finished.largest, &*entries[entries.len() - 1].0);
        let limits = bounds(&fixture.key, &finished.record, NAME)?;
        prop_assert_eq!(limits, (finished.smallest.clone(), finished.largest.clone()));
        prop_assert_eq!(finished.record.entries, entries.len() as u64);

        let reader = fixture.open(&finished.record)?;
        let mut verified = 0;
        reader.verify(&mut |bytes| verified += bytes)?;
        prop_assert_eq!(verified, finished.record.extent.len_bytes);
        for (key, trailer, _) in &entries {
            for seq in [trailer.seq().get(), seq, Seq::MAX.get()] {
                prop_assert_eq!(found(fixture.get(&reader, key, seq)?), expected(&entries, key, seq));
            }
        }
        for key in &strange {
            prop_assert_eq!(found(fixture.get(&reader, key, seq)?), expected(&entries, key, seq));
        }
        for mode in [ReadMode::Scan(None), ReadMode::Bypass] {
            walk(&entries, &mut reader.cursor(mode.clone()), &moves)?;
            walk(&entries, &mut reader.cursor(mode), &[Move::First, Move::Next(255), Move::Prev(255), Move::Last, Move::Prev(255)])?;
        }
    }
}

#[test]
fn a_deleted_key_is_found_as_deleted_and_an_absent_one_is_not_found() {
    let fixture = Fixture::new(256, Compression::Lz4);
    let entries = small();
    let reader = fixture.open(&fixture.write(1, &entries).record).unwrap();
    let (trailer, value) = fixture.get(&reader, b"key-0005", 400).unwrap().unwrap();
    assert_eq!((trailer.kind(), value.len()), (Kind::Delete, 0));
    for absent in [&b"key-00055"[..], b"key", b"a", b"z", b"key-0039\0"] {
        assert_eq!(found(fixture.get(&reader, absent, 400).unwrap()), None);
    }
    // Written at 20, so that a reader at 19 does not see it yet.
    assert!(fixture.get(&reader, b"key-0022", 21).unwrap().is_none());
    assert!(fixture.get(&reader, b"key-0022", 22).unwrap().is_some());
}

/// Groups of keys of 60,000 bytes that differ in their last byte: separators as long as keys, in more index blocks than one top block has
/// room for.
fn long_keys() -> Entries {
    let key = |i: u32| {
        let mut key = (i / 7).to_be_bytes().to_vec();
        key.resize(60_000, (i / 7) as u8);
        key.push(i as u8);
        key
    };
    (0..250u32).map(|i| put(&key(i), u64::from(i), &i.to_be_bytes())).collect()
}

#[test]
fn an_index_of_many_blocks_is_walked_like_one() {
    // A failure would lose keys of large tables.
    let mut fixture = Fixture::new(256, Compression::Lz4);
    fixture.cache = Arc::new(BlockCache::new(1 << 20));
    let entries = long_keys();
    let reader = fixture.open(&fixture.write(1, &entries).record).unwrap();
    assert!(reader.footer.index.frames > 8 && reader.footer.index_top.frames > 1);
    for (key, trailer, value) in &entries {
        assert_eq!(found(fixture.get(&reader, key, 1000).unwrap()), Some((*trailer, value.clone())));
    }
    for mode in [ReadMode::Scan(None), ReadMode::Bypass] {
        let mut moves = vec![Move::First, Move::Next(255), Move::Last, Move::Prev(255)];
        for i in (0..250).step_by(7) {
            moves.extend([Move::SeekEntry(i), Move::Prev(9), Move::SeekBeforeEntry(i), Move::Next(9)]);
        }
        walk(&entries, &mut reader.cursor(mode.clone()), &moves).unwrap();
    }
    reader.verify(&mut |_| ()).unwrap();
}

#[test]
fn every_changed_bit_is_refused_and_never_changes_an_answer() {
    // A failure is silent corruption.
    let fixture = Fixture::new(256, Compression::Lz4);
    let mut entries = small();
    entries.push(put(b"large", 5, &[9; VALUE_INLINE_BYTES_MAX + 1]));
    let record = fixture.write(1, &entries).record;
    let image = fixture.disk.read(path(1)).unwrap();
    for (offset, &byte) in image.iter().enumerate() {
        let bit = 1 << (offset % 8);
        fixture.disk.overwrite(path(1), offset as u64, &[byte ^ bit]).unwrap();
        check_refused(&fixture, &record, &entries, offset);
        fixture.disk.overwrite(path(1), offset as u64, &[byte]).unwrap();
    }
    fixture.open(&record).unwrap().verify(&mut |_| ()).unwrap();
}

/// Open, get, walk and verify a damaged table: right answers and refusals alone, and one refusal at least.
fn check_refused(fixture: &Fixture, record: &FileRecord, entries: &Entries, what: usize) {
    let reader = match fixture.open(record) {
        Ok(reader) => reader,
        Err(error) => return assert_damage(&error, what),
    };
    for (key, ..) in entries {
        match fixture.get(&reader, key, 400) {
            Ok(answer) => assert!(found(answer) == expected(entries, key, 400), "damage {what} changed an answer"),
            Err(error) => assert_damage(&error, what),
        }
    }
    let mut cursor = reader.cursor(ReadMode::Bypass);
    let mut walked = cursor.seek_to_first();
    for (key, trailer, value) in entries {
        if walked.is_err() {
            assert!(!cursor.valid());
            break;
        }
        assert!((cursor.key(), cursor.trailer()) == (key, *trailer), "damage {what} changed a scan");
        assert!(cursor.value().is_ok_and(|found| *found == **value) || value.len() > VALUE_INLINE_BYTES_MAX);
        walked = cursor.next();
    }
    assert_damage(&reader.verify(&mut |_| ()).expect_err("verify opens every byte"), what);
}

fn assert_damage(error: &Error, what: usize) {
    let is_damage = matches!(
        error,
        Error::Tampered { .. } | Error::BitRot { .. } | Error::UnknownVersion { .. } | Error::WrongKey { .. }
    );
    assert!(is_damage, "damage {what}: {error}");
}

#[test]
fn frames_that_change_places_do_not_open() {
    // Every checksum and every tag is right; only the places are not.
    let fixture = Fixture::new(256, Compression::None);
    let entries: Entries = (0..100u64).map(|i| put(format!("key-{i:04}").as_bytes(), 5, &[i as u8; 16])).collect();
    let record = fixture.write(1, &entries).record;
    let other = fixture.write(2, &entries).record;
    let reader = fixture.open(&record).unwrap();
    let leaf = reader.index.leaf(&reader, 0).unwrap().unwrap();
    let (first, second) = (leaf.handle(&reader, 0).unwrap(), leaf.handle(&reader, 1).unwrap());
    assert_eq!(first.len_bytes, second.len_bytes);
    let len = first.len_bytes as usize;
    let image = fixture.disk.read(path(1)).unwrap();
    let frame = |image: &[u8], handle: &Handle| image[handle.offset_bytes as usize..][..len].to_vec();

    for (from, to) in [
        (frame(&image, &first), &second),
        (frame(&image, &second), &first),
        // The same block of a table with the same entries, key and settings.
        (frame(&fixture.disk.read(path(2)).unwrap(), &first), &first),
    ] {
        fixture.disk.overwrite(path(1), to.offset_bytes, &from).unwrap();
        check_refused(&fixture, &record, &entries, 0);
        fixture.disk.plant(path(1), &image).unwrap();
    }
    fixture.disk.plant(path(1), &fixture.disk.read(path(2)).unwrap()).unwrap();
    check_refused(&fixture, &record, &entries, 1);
    let stolen = FileRecord { bounds: other.bounds.clone(), ..record };
    assert!(matches!(bounds(&fixture.key, &stolen, NAME), Err(Error::Tampered { .. })));
}

#[test]
fn a_table_that_is_not_the_one_in_the_manifest_is_refused() {
    let fixture = Fixture::new(256, Compression::Lz4);
    let entries = small();
    let record = fixture.write(1, &entries).record;
    let good = || record.clone();
    let mut tag = record.final_tag;
    tag[0] ^= 1;
    let lies = [
        FileRecord { final_tag: tag, ..good() },
        FileRecord { salt: Salt::from_bytes([1; 32]), ..good() },
        FileRecord { suite: Suite::ChaCha20Poly1305, ..good() },
        FileRecord { entries: record.entries + 1, ..good() },
        FileRecord { tombstones: record.tombstones + 1, ..good() },
        FileRecord { raw_bytes: record.raw_bytes + 1, ..good() },
        FileRecord { min_seq: Seq::MAX, ..good() },
        FileRecord { max_seq: Seq::MAX, ..good() },
        FileRecord { bounds_ordinal: record.bounds_ordinal + 1, ..good() },
        FileRecord { bounds_ordinal: u64::MAX, ..good() },
    ];
    for (i, lie) in lies.iter().enumerate() {
        assert!(matches!(fixture.open(lie), Err(Error::Tampered { .. })), "lie {i}");
    }
    for len_bytes in [0, 5, 200, record.extent.len_bytes - 1, record.extent.len_bytes + 1, u64::MAX] {
        let extent = crate::format::manifest::Extent { len_bytes, ..record.extent };
        assert!(matches!(fixture.open(&FileRecord { extent, ..good() }), Err(Error::Tampered { .. })), "{len_bytes}");
    }
    let wrong = fixture.open_with(&record, &table_key(8));
    assert!(matches!(wrong, Err(Error::WrongKey { .. })));
    // The bounds in the manifest are not looked at when a table is opened, but verified.
    let lie = FileRecord { bounds: vec![1; 40], ..good() };
    assert!(fixture.open(&lie).unwrap().verify(&mut |_| ()).is_err());
}

#[test]
fn a_table_cut_or_grown_is_refused() {
    let fixture = Fixture::new(256, Compression::Lz4);
    let record = fixture.write(1, &small()).record;
    let image = fixture.disk.read(path(1)).unwrap();
    for len in [0, 1, HEADER_BYTES, image.len() / 2, image.len() - 1, image.len() + 1] {
        fixture.disk.truncate(path(1), len).unwrap();
        assert!(matches!(fixture.open(&record), Err(Error::Tampered { .. })), "{len} bytes");
        fixture.disk.plant(path(1), &image).unwrap();
    }
    // Cut while open.
    let reader = fixture.open(&record).unwrap();
    fixture.disk.truncate(path(1), HEADER_BYTES + 100).unwrap();
    let error = fixture.get(&reader, b"key-0039", 400).unwrap_err();
    assert!(matches!(error, Error::Tampered { file, .. } if file == NAME));
}

#[test]
fn a_writer_refuses_what_no_table_may_hold_and_is_of_no_use_afterwards() {
    let fixture = Fixture::new(256, Compression::Lz4);
    let long = vec![0; 65_536];
    let trailer = Trailer::new(Seq::new(5).unwrap(), Kind::Put);
    let bad: [(&[u8], Trailer, &[u8]); 6] = [
        (b"a", trailer, b"out of order"),
        (b"b", trailer, b"the same again"),
        (b"b", Trailer::new(Seq::new(6).unwrap(), Kind::Put), b"a newer version behind an older one"),
        (b"", trailer, b"no key"),
        (&long, trailer, b"a key that is too long"),
        (b"c", Trailer::new(Seq::new(5).unwrap(), Kind::Delete), b"a delete with a value"),
    ];
    for (number, (key, trailer, value)) in bad.into_iter().enumerate() {
        let mut writer = fixture.writer(number as u64);
        writer.add(b"b", Trailer::new(Seq::new(5).unwrap(), Kind::Put), b"").unwrap();
        assert!(writer.add(key, trailer, value).is_err());
        assert!(writer.add(b"z", trailer, b"").is_err());
        assert!(writer.finish().is_err());
    }
    assert!(fixture.writer(10).finish().is_err(), "an empty table");
    assert_eq!(fixture.disk.list().len(), 0, "what was abandoned is removed");
}

#[test]
fn a_writer_whose_file_fails_leaves_nothing_that_could_be_taken_for_a_table() {
    let fixture = Fixture::new(4096, Compression::None);
    let entries: Entries = (0..50u32).map(|i| put(&i.to_be_bytes(), 1, &vec![i as u8; 64 << 10])).collect();
    for n in 1..20 {
        let faulty = FaultVfs::new(Arc::new(fixture.disk.clone()));
        faulty.inject(Rule::on_any().nth(n).fail(std::io::ErrorKind::Other));
        let vfs: Arc<dyn Vfs> = Arc::new(faulty);
        let outcome = fixture.writer_on(&vfs, 1).and_then(|mut writer| {
            let added = entries.iter().try_for_each(|(key, trailer, value)| writer.add(key, *trailer, value));
            match added {
                Ok(()) => writer.finish(),
                Err(error) => {
                    writer.abandon();
                    Err(error)
                }
            }
        });
        match outcome {
            Ok(finished) => {
                fixture.open(&finished.record).unwrap().verify(&mut |_| ()).unwrap();
                assert!(n > 3);
                return;
            }
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
        let _ = fixture.disk.delete(path(1));
    }
    panic!("twenty operations are more than a table of three MiB takes");
}

#[test]
fn a_purged_or_closed_table_leaves_no_blocks_in_the_cache() {
    // A failure would keep plaintext in memory after its key is gone.
    let fixture = Fixture::new(256, Compression::Lz4);
    let entries = small();
    let reader = fixture.open(&fixture.write(1, &entries).record).unwrap();
    let touch = || entries.iter().for_each(|(key, ..)| drop(fixture.get(&reader, key, 400).unwrap()));
    touch();
    assert!(fixture.cache.used_bytes() > 0);
    reader.purge();
    assert_eq!(fixture.cache.used_bytes(), 0);
    touch();
    assert!(fixture.cache.used_bytes() > 0);
    drop(reader);
    assert_eq!(fixture.cache.used_bytes(), 0);
}

#[test]
fn a_bypassing_cursor_leaves_the_cache_alone_and_a_scan_takes_free_space_only() {
    let mut fixture = Fixture::new(4096, Compression::None);
    let entries: Entries = (0..2000u32).map(|i| put(&i.to_be_bytes(), 1, &[i as u8; 100])).collect();
    let record = fixture.write(1, &entries).record;
    let reader = fixture.open(&record).unwrap();
    walk(&entries, &mut reader.cursor(ReadMode::Bypass), &[Move::First, Move::Next(200)]).unwrap();
    assert_eq!(fixture.cache.used_bytes(), 0);
    fixture.cache = Arc::new(BlockCache::new(64 << 10));
    let reader = fixture.open(&record).unwrap();
    let mut cursor = reader.cursor(ReadMode::Scan(None));
    cursor.seek_to_first().unwrap();
    while cursor.valid() {
        cursor.next().unwrap();
    }
    let used = fixture.cache.used_bytes();
    assert!(used > 0 && used <= 64 << 10);
}

#[test]
fn purging_a_table_leaves_the_blocks_of_others() {
    // A failure would make every compaction and every table that is put away cost all others their cache.
    let fixture = Fixture::new(256, Compression::Lz4);
    let entries = small();
    let readers = [1, 2].map(|number| fixture.open(&fixture.write(number, &entries).record).unwrap());
    let touch = |reader: &Arc<TableReader>| {
        entries.iter().for_each(|(key, ..)| drop(fixture.get(reader, key, 400).unwrap()));
        fixture.cache.used_bytes()
    };
    let one = touch(&readers[0]);
    assert_eq!(touch(&readers[1]), 2 * one);
    readers[0].purge();
    assert_eq!(fixture.cache.used_bytes(), one);
    let misses = || fixture.cache.meters().metrics().cache.misses;
    let before = misses();
    touch(&readers[1]);
    assert_eq!(misses(), before, "the other table's blocks are all there");
}

#[test]
fn blocks_in_memory_stay_within_the_room_whatever_is_read_and_held() {
    // A failure would let a store outgrow the memory that its opener gave it.
    let mut fixture = Fixture::new(1024, Compression::Lz4);
    let room = 64 << 10;
    fixture.cache = Arc::new(BlockCache::new(room));
    let entries: Entries = (0..4000u32).map(|i| put(&i.to_be_bytes(), 1, &[i as u8; 300])).collect();
    let reader = fixture.open(&fixture.write(1, &entries).record).unwrap();
    let mut scan = reader.cursor(ReadMode::Scan(None));
    scan.seek_to_first().unwrap();
    let mut held = VecDeque::new();
    for i in 0..20_000u64 {
        let i = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let key = ((i % 4000) as u32).to_be_bytes();
        // A value of 300 bytes holds its block: twenty of them are a third of the room.
        held.push_back(fixture.get(&reader, &key, 9).unwrap().unwrap().1);
        if held.len() > 20 {
            held.pop_front();
        }
        if scan.valid() {
            scan.next().unwrap();
        }
        // The block that is being handed out may be one too many for the moment.
        let used = fixture.cache.used_bytes() as usize;
        assert!(used <= room + (2 << 10), "{used} bytes in use");
        assert!(fixture.cache.kept_bytes() <= fixture.cache.used_bytes());
    }
    assert!(fixture.cache.used_bytes() as usize > room / 2, "the room is used");
    drop((held, scan, reader));
    assert_eq!(fixture.cache.used_bytes(), 0);
}

#[test]
fn what_is_used_often_stays_while_a_row_of_blocks_is_read_once() {
    // A failure would let one pass over a large table slow down everybody else's reads.
    let mut fixture = Fixture::new(1024, Compression::None);
    fixture.cache = Arc::new(BlockCache::new(64 << 10));
    let entries: Entries = (0..4000u32).map(|i| put(&i.to_be_bytes(), 1, &[i as u8; 300])).collect();
    let reader = fixture.open(&fixture.write(1, &entries).record).unwrap();
    let get = |i: u32| drop(fixture.get(&reader, &i.to_be_bytes(), 9).unwrap());
    let misses = || fixture.cache.meters().metrics().cache.misses;
    // Some twenty blocks that are read again and again, then hundreds that are read once.
    (0..5).for_each(|_| (0..60).for_each(get));
    for i in (100..4000).step_by(3) {
        get(i);
        get(i % 60);
    }
    let before = misses();
    (0..60).for_each(get);
    assert!(misses() - before <= 4, "{} of twenty blocks were pushed out", misses() - before);
}

#[test]
fn what_a_helper_opens_ahead_changes_nothing_that_a_cursor_gives() {
    // A failure would give another entry than the one that stands there, or miss one.
    let mut fixture = Fixture::new(512, Compression::Lz4);
    let noise = |i: u32| i.wrapping_mul(0x9e37_79b9).to_le_bytes().repeat(40);
    let entries: Entries = (0..6000u32).map(|i| put(&i.to_be_bytes(), 1, &noise(i))).collect();
    let record = fixture.write(1, &entries).record;
    let mut helped = 0;
    for seed in 0..24u64 {
        fixture.cache = Arc::new(BlockCache::new([0, 40 << 10, 4 << 20][seed as usize % 3]));
        let reader = fixture.open(&record).unwrap();
        let queue = Arc::new(HelpQueue::default());
        let clock = Arc::new(crate::io::sim::SimClock::new());
        let mut task = AheadTask::new(queue.clone(), clock);
        let may_read = std::sync::atomic::AtomicBool::new(true);
        let asked = Arc::new((may_read, std::sync::atomic::AtomicUsize::new(0)));
        let may_read = {
            let asked = asked.clone();
            Box::new(move || {
                asked.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                asked.0.load(std::sync::atomic::Ordering::Relaxed)
            })
        };
        let mut cursor = reader.cursor(ReadMode::Scan(Some(Arc::new(Helper { queue, may_read }))));
        let mut state = seed;
        let mut roll = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..30 {
            let start = roll(6000) as usize;
            let first = if roll(2) == 0 { Move::SeekEntry(start) } else { Move::SeekBeforeEntry(start) };
            walk(&entries, &mut cursor, &[first]).unwrap();
            let mut at = cursor.valid().then(|| u32::from_be_bytes(cursor.key().try_into().unwrap()) as usize);
            let forward = roll(3) > 0;
            for _ in 0..roll(1500) {
                let Some(here) = at else { break };
                if forward {
                    cursor.next().unwrap()
                } else {
                    cursor.prev().unwrap()
                };
                at = if forward { Some(here + 1).filter(|at| *at < entries.len()) } else { here.checked_sub(1) };
                assert_eq!(cursor.valid(), at.is_some());
                if let Some(at) = at {
                    assert_eq!((cursor.key(), cursor.value_ref().unwrap()), (&*entries[at].0, &*entries[at].2));
                }
                if roll(9) == 0 {
                    (0..roll(4)).for_each(|_| drop(task.step()));
                }
            }
            asked.0.store(roll(8) > 0, std::sync::atomic::Ordering::Relaxed);
        }
        helped += asked.1.load(std::sync::atomic::Ordering::Relaxed);
        drop((cursor, reader));
        (0..1000).for_each(|_| drop(task.step()));
        assert_eq!(fixture.cache.used_bytes(), 0, "nothing is left of what was opened ahead");
    }
    assert!(helped > 1000, "the helper was asked {helped} times");
}

#[test]
fn a_helper_opens_nothing_for_who_may_not_read_any_more_or_is_gone() {
    // A failure would bring plaintext into memory that nobody may have.
    let fixture = Fixture::new(512, Compression::None);
    let entries: Entries = (0..6000u32).map(|i| put(&i.to_be_bytes(), 1, &[i as u8; 100])).collect();
    let record = fixture.write(1, &entries).record;
    for (may, gone, opens) in [(true, false, true), (false, false, false), (true, true, false)] {
        let reader = fixture.open(&record).unwrap();
        let queue = Arc::new(HelpQueue::default());
        let mut task = AheadTask::new(queue.clone(), Arc::new(crate::io::sim::SimClock::new()));
        let may_read = Box::new(move || may);
        let mut cursor = reader.cursor(ReadMode::Scan(Some(Arc::new(Helper { queue, may_read }))));
        cursor.seek_to_first().unwrap();
        (0..3000).for_each(|_| cursor.next().unwrap());
        if gone {
            drop(cursor);
        }
        let before = fixture.cache.used_bytes();
        (0..5).for_each(|_| drop(task.step()));
        assert_eq!(fixture.cache.used_bytes() > before, opens, "may read: {may}, gone: {gone}");
    }
}

#[test]
fn a_large_value_shares_its_buffer_and_outlives_the_reader() {
    let fixture = Fixture::new(4096, Compression::Lz4);
    let value: Vec<u8> = (0..3 * RUN_CHUNK_BYTES + 17).map(|i| ((i * i) >> 7) as u8).collect();
    let finished = fixture.write(1, &vec![put(b"a", 1, b"small"), put(b"b", 2, &value), put(b"c", 3, &[1; 300])]);
    let reader = fixture.open(&finished.record).unwrap();
    let large = fixture.get(&reader, b"b", 9).unwrap().unwrap().1;
    let middle = fixture.get(&reader, b"c", 9).unwrap().unwrap().1;
    drop((reader, fixture));
    assert!(*large.clone() == *value);
    assert_eq!(*middle, [1; 300]);
}

#[test]
fn verify_notices_parts_that_contradict_the_data() {
    // A table that a broken program sealed: every tag is right. A failure would leave verify with nothing to say about it.
    let fixture = Fixture::new(256, Compression::Lz4);
    for lie in [Lie::None, Lie::FilterWithoutKeys, Lie::KeysMiscounted, Lie::BlocksMiscounted, Lie::SmallestKeyWrong] {
        let mut writer = fixture.writer(1);
        for (key, trailer, value) in small() {
            writer.add(&key, trailer, &value).unwrap();
        }
        writer.tell(lie);
        let record = writer.finish().unwrap().record;
        let verified = fixture.open(&record).unwrap().verify(&mut |_| ());
        match lie {
            Lie::None => verified.unwrap(),
            _ => assert!(matches!(verified, Err(Error::Tampered { .. })), "{lie:?}"),
        }
        fixture.disk.delete(path(1)).unwrap();
    }
}

/// What the golden files hold: every column of a block present, a delete, versions, a run, more than one block.
fn golden_entries() -> Entries {
    let mut entries = small();
    entries.push(put(b"large", 5, &b"0123456789abcdef".repeat((VALUE_INLINE_BYTES_MAX >> 4) + 1)));
    entries
}

#[test]
fn tables_of_version_1_open_and_are_written_the_same() {
    // A failure means that stores written by a released build no longer open: give the new layout a number of its own.
    let none = include_bytes!("../../tests/golden/table-1-none");
    let lz4 = include_bytes!("../../tests/golden/table-1-lz4");
    for (golden, compression) in [(&none[..], Compression::None), (&lz4[..], Compression::Lz4)] {
        let fixture = Fixture::new(256, compression);
        let entries = golden_entries();
        let written = fixture.write(1, &entries).record;
        if compression == Compression::None {
            // Compressed bytes may differ from one version of the compressor to the next.
            assert!(fixture.disk.read(path(1)).unwrap() == golden);
        }
        fixture.disk.plant(path(1), golden).unwrap();
        let record = golden_record(golden, written);
        let reader = fixture.open(&record).unwrap();
        reader.verify(&mut |_| ()).unwrap();
        for (key, ..) in &entries {
            assert_eq!(found(fixture.get(&reader, key, 400).unwrap()), expected(&entries, key, 400));
        }
    }
}

/// The manifest's record of a golden file: what depends on the compressor is taken from the file.
fn golden_record(golden: &[u8], written: FileRecord) -> FileRecord {
    let bounds_bytes = written.bounds.len();
    let footer_at = golden.len() - FOOTER_FRAME_BYTES;
    let extent = crate::format::manifest::Extent { len_bytes: golden.len() as u64, ..written.extent };
    FileRecord {
        extent,
        final_tag: *golden.last_chunk().unwrap(),
        bounds: golden[footer_at - bounds_bytes..footer_at].to_vec(),
        ..written
    }
}

#[test]
fn a_helper_that_is_told_to_end_while_it_opens_a_block_holds_nothing_of_a_cursor_any_more() {
    // A failure means that a store which is closed at that moment is never freed: it is what the helper asks before each block.
    let fixture = Fixture::new(512, Compression::None);
    let entries: Entries = (0..6000u32).map(|i| put(&i.to_be_bytes(), 1, &[i as u8; 100])).collect();
    let reader = fixture.open(&fixture.write(1, &entries).record).unwrap();
    let queue = Arc::new(HelpQueue::default());
    let mut task = AheadTask::new(queue.clone(), Arc::new(crate::io::sim::SimClock::new()));
    let store = Arc::new(());
    let may_read = {
        let (queue, store) = (queue.clone(), store.clone());
        Box::new(move || {
            queue.stop();
            Arc::strong_count(&store) > 0
        })
    };
    let mut cursor = reader.cursor(ReadMode::Scan(Some(Arc::new(Helper { queue, may_read }))));
    cursor.seek_to_first().unwrap();
    (0..3000).for_each(|_| cursor.next().unwrap());
    while matches!(task.step(), Step::Again) {}
    assert!(matches!(task.step(), Step::Done), "it was told to end");
    drop(cursor);
    assert_eq!(Arc::strong_count(&store), 1);
}

/// A file of which a range of bytes cannot be read.
#[derive(Debug)]
struct BadSector {
    file: Arc<dyn File>,
    bad: parking_lot::Mutex<std::ops::Range<u64>>,
}

impl File for BadSector {
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> std::io::Result<()> {
        let (bad, end) = (self.bad.lock().clone(), offset_bytes + buffer.len() as u64);
        if offset_bytes < bad.end && bad.start < end {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.file.read_exact_at(buffer, offset_bytes)
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        self.file.len_bytes()
    }

    fn will_read(&self, _: u64, _: u64) {}

    fn write_all_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
        unreachable!("a table that was written is only read")
    }

    fn sync(&self) -> std::io::Result<()> {
        unreachable!("a table that was written is only read")
    }

    fn reserve(&self, _: u64) -> std::io::Result<()> {
        unreachable!("a table that was written is only read")
    }

    fn cut(&self, _: u64) -> std::io::Result<()> {
        unreachable!("a table that was written is only read")
    }

    fn begin_write_back(&self, _: u64, _: u64) {}
}

#[test]
fn a_scan_reads_up_to_the_block_that_cannot_be_read_from_either_end() {
    // A failure means that one bad sector takes a quarter of a MiB with it that is well: a range that ends before it cannot be read.
    for block_bytes in [512, 4096] {
        let mut fixture = Fixture::new(block_bytes, Compression::None);
        let entries: Entries = (0..6000u32).map(|i| put(&i.to_be_bytes(), 1, &[i as u8; 100])).collect();
        let record = fixture.write(1, &entries).record;
        for number in [0, 1, 30, 500, 1500, 3000, 5998, 5999] {
            for is_helped in [false, true] {
                fixture.cache = Arc::new(BlockCache::new(4 << 20));
                let file = fixture.disk.open(Path::new(&path(1))).unwrap();
                let file = Arc::new(BadSector { file, bad: parking_lot::Mutex::new(0..0) });
                let cache = fixture.cache.clone();
                let reader =
                    TableReader::open(file.clone(), NAME, &fixture.key, &record, &fixture.settings, cache).unwrap();
                let place_of = |i: usize| {
                    let (leaf, place) =
                        reader.index.find(&reader, &entries[i].0, Trailer::seek(Seq::MAX)).unwrap().unwrap();
                    (place, leaf.handle(&reader, place.at).unwrap().offset_bytes)
                };
                let (place, offset_bytes) = place_of(number);
                let bad: Vec<usize> = (0..entries.len()).filter(|i| place_of(*i).0 == place).collect();
                *file.bad.lock() = offset_bytes..offset_bytes + 1;
                let helper = || {
                    let queue = Arc::new(HelpQueue::default());
                    is_helped.then(|| Arc::new(Helper { queue, may_read: Box::new(|| true) }))
                };
                let what = format!("entry {number} in blocks of {block_bytes} bytes, helped: {is_helped}");

                let mut cursor = reader.cursor(ReadMode::Scan(helper()));
                let (mut count, mut outcome) = (0, cursor.seek_to_first());
                while outcome.is_ok() && cursor.valid() {
                    count += 1;
                    outcome = cursor.next();
                }
                assert_eq!((count, outcome.is_err()), (bad[0], true), "{what}, forward");

                let mut cursor = reader.cursor(ReadMode::Scan(helper()));
                let (mut count, mut outcome) = (0, cursor.seek_to_last());
                while outcome.is_ok() && cursor.valid() {
                    count += 1;
                    outcome = cursor.prev();
                }
                let behind = entries.len() - 1 - bad[bad.len() - 1];
                assert_eq!((count, outcome.is_err()), (behind, true), "{what}, backward");
            }
        }
    }
}

#[test]
fn a_part_of_the_index_that_cannot_be_read_ends_a_scan_no_sooner_with_a_helper_than_without() {
    // As with a block: who reads a range that needs only the other parts must get it.
    let mut fixture = Fixture::new(256, Compression::Lz4);
    let entries = long_keys();
    let record = fixture.write(1, &entries).record;
    for from_end in 1..6 {
        let mut counts = [false, true].map(|is_helped| {
            fixture.cache = Arc::new(BlockCache::new(4 << 20));
            let file = fixture.disk.open(Path::new(&path(1))).unwrap();
            let file = Arc::new(BadSector { file, bad: parking_lot::Mutex::new(0..0) });
            let cache = fixture.cache.clone();
            let reader =
                TableReader::open(file.clone(), NAME, &fixture.key, &record, &fixture.settings, cache).unwrap();
            let index = &reader.footer.index;
            assert!(index.frames > 8, "{} leaves", index.frames);
            let end = index.offset_bytes + index.len_bytes;
            *file.bad.lock() = end - index.len_bytes * from_end / 6..end;
            let queue = Arc::new(HelpQueue::default());
            let helper = is_helped.then(|| Arc::new(Helper { queue, may_read: Box::new(|| true) }));
            let mut cursor = reader.cursor(ReadMode::Scan(helper));
            let (mut count, mut outcome) = (0, cursor.seek_to_first());
            while outcome.is_ok() && cursor.valid() {
                count += 1;
                outcome = cursor.next();
            }
            assert!(outcome.is_err());
            count
        });
        counts.sort_unstable();
        assert!(counts[0] > 20 && counts[0] == counts[1], "{counts:?}");
    }
}
