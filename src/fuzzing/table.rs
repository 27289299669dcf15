//! Sorted tables: the decoders of `format/table.rs`, and whole files in which every seal is right and every content may be wrong.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use crate::crypto::TableKey;
use crate::cursor::Cursor;
use crate::format::codec::Reader;
use crate::format::frame::{FileSealer, FrameKind, HEADER_BYTES};
use crate::format::manifest::{Extent, FileRecord};
use crate::format::table::{
    Filter, FilterKind, Footer, Handle, Properties, RunPointer, decode_bounds, encode_bounds, hash, separator,
};
use crate::format::testing::{Counting, TABLE, table_key};
use crate::io::Vfs;
use crate::io::mem::MemVfs;
use crate::options::Compression;
use crate::sstable::{BlockCache, ReadMode, TableReader, TableSettings, bounds};
use crate::types::{FileKind, FileNumber, Generation, Seq, Trailer};

static OWNER: LazyLock<TableKey> = LazyLock::new(table_key);
pub(super) const NUMBER: FileNumber = FileNumber(34);
/// Steps of a cursor after which it is left alone: an index that names one block often makes long walks.
const STEPS_MAX: usize = 500;

/// The parts of a sorted table, and a whole one that consists of the frames that the input lists.
pub fn table(data: &[u8]) {
    decoders(data);
    filters(data);
    keys(data);
    if let Some(frames) = frames(data) {
        whole(&frames);
    }
}

fn decoders(data: &[u8]) {
    if let Ok(handle) = Handle::decode(data) {
        assert_eq!(handle.encode(), data);
    }
    if let Ok(pointer) = RunPointer::decode(data) {
        assert_eq!(pointer.encode(), data);
        let chunks = (0..pointer.frames).map(|i| pointer.chunk_bytes(i)).sum::<usize>();
        assert_eq!(chunks, pointer.value_bytes as usize);
    }
    if let Ok(properties) = Properties::decode(data) {
        assert_eq!(properties.encode(), data);
    }
    if let Ok(footer) = Footer::decode(data, HEADER_BYTES as u64) {
        assert_eq!(footer.encode(), data);
    }
    if let Ok((smallest, largest)) = decode_bounds(data) {
        assert_eq!(*encode_bounds(&smallest, &largest), *data);
    }
}

/// Hashes from the input are all found again; lines from the input answer without a panic.
fn filters(data: &[u8]) {
    let Some((&bits, bytes)) = data.split_first() else { return };
    let hashes: Vec<u64> = bytes.chunks(8).map(|chunk| hash(1, chunk)).collect();
    if let Some(filter) = Filter::build(&hashes, bits % 33) {
        let properties = Properties { probes: filter.probes(), filter_lines: filter.lines(), ..plain_properties() };
        let chunks: Vec<Vec<u8>> = filter.chunks().collect();
        let again = Filter::from_bytes(&chunks, &properties).unwrap();
        assert!(again.memory_bytes() == filter.memory_bytes() && again.chunks().eq(filter.chunks()));
        assert!(hashes.iter().all(|&hash| filter.may_hold(hash) && again.may_hold(hash)));
    }
    let properties = Properties { probes: bits, filter_lines: bytes.len() as u64 / 64, ..plain_properties() };
    if let Ok(filter) = Filter::from_bytes(&[bytes], &properties) {
        assert!(filter.memory_bytes() <= bytes.len());
        hashes.iter().for_each(|&hash| _ = filter.may_hold(hash));
    }
}

fn plain_properties() -> Properties {
    Properties {
        filter: FilterKind::BlockedBloom,
        suite: crate::crypto::Suite::Aes256Gcm,
        compression: Compression::None,
        probes: 6,
        filter_seed: 0,
        filter_lines: 1,
        entries: 1,
        keys: 1,
        tombstones: 0,
        raw_bytes: 1,
        runs: 0,
        blocks: 1,
        seq_min: Seq::ZERO,
        seq_max: Seq::ZERO,
    }
}

fn keys(data: &[u8]) {
    let (a, b) = data.split_at(data.len() / 2);
    let (last, next) = if a < b { (a, b) } else { (b, a) };
    if last != next {
        let separator = separator(last, next);
        assert!(last <= separator && separator < next && separator.len() <= last.len());
    }
}

/// The number of a frame's kind, the length of its payload (u16), the payload; and again.
pub(super) fn frames(data: &[u8]) -> Option<Vec<(FrameKind, &[u8])>> {
    let mut reader = Reader::new(data);
    let mut frames = Vec::new();
    while reader.remaining() > 0 {
        let kind = FrameKind::from_u8(reader.u8().ok()?)?;
        let len = usize::from(reader.u16().ok()?);
        let payload = reader.bytes(len).ok()?;
        if kind.is_journal() || payload.len() + 64 > kind.frame_bytes_max() {
            return None;
        }
        frames.push((kind, payload));
    }
    Some(frames)
}

/// A file of these frames, each under a right tag, opened as the manifest's record of it says, and asked everything.
fn whole(frames: &[(FrameKind, &[u8])]) {
    let (file, record, filter_seed) = seal(frames);
    let limits = bounds(&OWNER, &record, "table");
    let Some(reader) = open(&file, &record, filter_seed) else { return };
    let verified = reader.verify(&mut |_| ()).is_ok();
    assert!(!verified || limits.is_ok());
    let mut entries = Vec::new();
    let mut cursor = reader.cursor(ReadMode::Scan(None));
    let mut moved = cursor.seek_to_first();
    while moved.is_ok() && cursor.valid() && entries.len() < STEPS_MAX {
        entries.push((cursor.key().to_vec(), cursor.trailer()));
        assert!(cursor.value().is_ok() || !verified);
        moved = cursor.next();
    }
    assert!(!verified || moved.is_ok() && entries.is_sorted_by(|a, b| a.0 < b.0 || a.0 == b.0 && a.1 > b.1));
    for (key, trailer) in &entries {
        let got = reader.get(key, hash(filter_seed, key), trailer.seq());
        // A table that verifies finds each of its entries.
        assert!(!verified || got.unwrap().is_some_and(|(found, _)| found == *trailer));
        let mut cursor = reader.cursor(ReadMode::Bypass);
        let sought = cursor.seek(key, *trailer);
        assert!(!verified || sought.is_ok() && cursor.valid() && cursor.key() == key && cursor.trailer() == *trailer);
    }
    backwards(&reader, &entries, verified);
}

fn open(file: &[u8], record: &FileRecord, filter_seed: u64) -> Option<Arc<TableReader>> {
    let disk = MemVfs::unjournaled();
    disk.plant("/table", file).unwrap();
    let settings = TableSettings {
        table: TABLE,
        suite: record.suite,
        compression: Compression::None,
        block_bytes: 256,
        filter_bits_per_key: 10,
        filter_seed,
    };
    let cache = Arc::new(BlockCache::new(1 << 20));
    let file = disk.open(Path::new("/table")).unwrap();
    TableReader::open(file, "table", &OWNER, record, &settings, cache).ok()
}

/// Whether a file of these frames verifies.
#[cfg(test)]
pub(super) fn verifies(frames: &[(FrameKind, &[u8])]) -> bool {
    let (file, record, filter_seed) = seal(frames);
    open(&file, &record, filter_seed).is_some_and(|reader| reader.verify(&mut |_| ()).is_ok())
}

fn backwards(reader: &Arc<TableReader>, entries: &[(Vec<u8>, Trailer)], verified: bool) {
    let mut cursor = reader.cursor(ReadMode::Scan(None));
    let mut moved = cursor.seek_to_last();
    let mut seen = Vec::new();
    while moved.is_ok() && cursor.valid() && seen.len() < STEPS_MAX {
        seen.push((cursor.key().to_vec(), cursor.trailer()));
        moved = cursor.prev();
    }
    if verified && entries.len() < STEPS_MAX {
        assert!(moved.is_ok() && seen.iter().rev().eq(entries));
    }
    for key in [&b""[..], b"key-0010", &[0xff; 8]] {
        let _ = (cursor.seek_before(key, Trailer::seek(Seq::MAX)), cursor.valid());
        let _ = reader.get(key, hash(0, key), Seq::MAX);
    }
}

/// The file, the record that goes with it, and the seed of its filter.
fn seal(frames: &[(FrameKind, &[u8])]) -> (Vec<u8>, FileRecord, u64) {
    let properties = |(kind, payload): &(FrameKind, &[u8])| match kind {
        FrameKind::Properties => Properties::decode(payload).ok(),
        _ => None,
    };
    let properties = frames.iter().find_map(properties).unwrap_or_else(plain_properties);
    let mut file = Vec::new();
    let suite = properties.suite;
    let mut sealer =
        FileSealer::create(&OWNER, suite, FileKind::Table, NUMBER, TABLE, &Counting::default(), &mut file).unwrap();
    let mut record = FileRecord {
        number: NUMBER,
        extent: Extent { container: NUMBER, offset_bytes: 0, len_bytes: 0 },
        salt: *sealer.salt(),
        final_tag: [0; 16],
        generation: Generation(3),
        suite,
        entries: properties.entries,
        tombstones: properties.tombstones,
        raw_bytes: properties.raw_bytes,
        min_seq: properties.seq_min,
        max_seq: properties.seq_max,
        bounds: Vec::new(),
        bounds_ordinal: 0,
    };
    for &(kind, payload) in frames {
        let begin = file.len();
        let last = kind == FrameKind::Footer;
        let frame = sealer.seal(kind, last, Compression::None, payload, &mut file).expect("the payload fits");
        record.final_tag = frame.tag;
        if kind == FrameKind::Bounds {
            record.bounds = file[begin..].to_vec();
            record.bounds_ordinal = frame.ordinal;
        }
    }
    record.extent.len_bytes = file.len() as u64;
    (file, record, properties.filter_seed)
}

/// What [`table`] takes for these frames.
#[cfg(test)]
pub(super) fn listed(frames: &[(FrameKind, Vec<u8>)]) -> Vec<u8> {
    use crate::format::codec::Put;
    let mut out = Vec::new();
    for (kind, payload) in frames {
        out.put_u8(*kind as u8);
        out.put_u16(payload.len() as u16);
        out.put(payload);
    }
    out
}
