//! The header that begins every file, and the sealed frames that are all there is behind it.
//!
//! # Header
//!
//! ```text
//! offset  size  field        meaning
//!      0     8  magic        "strngrm\x1a"; files of suite none carry another
//!      8     4  version      format version (u32), 1
//!     12     1  kind         FileKind
//!     13     1  suite        Suite
//!     14     2  reserved     zero
//!     16     4  required     feature bits that a reader must know (u32); none yet
//!     20     4  optional     feature bits that a reader may ignore (u32); none yet
//!     24     4  generation   of the key that seals the file (u32)
//!     28     4  reserved     zero
//!     32     8  number       FileNumber (u64)
//!     40    16  store        StoreId
//!     56    16  subject      the table that the file is about, zeros for the store's own metadata
//!     72    32  salt         makes this instance's keys its own
//!    104    32  commitment   of the key that seals the file
//!    136     4  reserved     zero
//!    140     4  crc          CRC-32 of bytes 0 to 140 and of the tag (u32)
//!    144    16  tag          header tag over bytes 0 to 140
//!    160
//! ```
//! All of it is in clear. Size, magic, version and CRC keep their places in every version to come, so that any
//! build can tell rot from news. A key file is about a table and sealed under the system key, so *subject* is not
//! always the table whose key seals.
//!
//! # Frame
//!
//! ```text
//! offset  size  field      meaning
//!      0     4  body_len   bytes of body (u32), at most the kind's maximum
//!      4     4  crc        CRC-32 of body_len, body and tag (u32): bit rot seen without a key
//!      8     n  body       ciphertext of: payload, compression u8, raw_len u32
//!    8+n    16  tag        over body, associated data and place
//!
//! associated data, 16 bytes: kind u8, last u8, zero u16, body_len u32, ordinal u64
//! ```
//! *Place* (file salt, kind of file, ordinal) is authenticated and not stored: a frame that was copied elsewhere does not open, and
//! readers know which ordinal they want. Compression and the length before it are inside the seal, behind the payload, so that
//! payloads begin where bodies begin, and so that what is decompressed and how large it gets is authentic.
//!
//! # Journal frame
//! Manifest and log are read from front to back, perhaps over a hole, so their frames can be found again.
//!
//! ```text
//! offset  size  field      meaning
//!      0     4  body_len   bytes of body (u32), 1 to the kind's maximum
//!      4     8  ordinal    (u64)
//!     12     1  kind       FrameKind
//!     13     3  reserved   zero
//!     16     4  head_crc   CRC-32 of bytes 0 to 16 (u32)
//!     20     4  body_crc   CRC-32 of body and tag (u32)
//!     24     n  body       ciphertext of the payload, never compressed
//!   24+n    16  tag        over body, associated data (as above) and place
//! ```
//! Nothing in the head is believed because it is there: the ordinal stands in the nonce or the key, and all the
//! rest in the associated data, so a head that was changed together with its CRC makes a frame that does not open.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::crypto::{
    Authentic, Commitment, FORMAT_VERSION, FileKey, NotAuthentic, Salt, SealingKey, StreamKey, Suite, TAG_BYTES,
    TableKey, Tag, Wiped,
};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, Where, crc32, require};
use crate::format::{MAGIC, MAGIC_PLAINTEXT};
use crate::io::Entropy;
use crate::options::Compression;
use crate::types::{FRAME_BYTES_MAX, FileKind, FileNumber, Generation, StoreId, TableId};

/// Bytes of every file's header.
pub(crate) const HEADER_BYTES: usize = 160;
/// What the header's tag covers.
const HEADER_TAGGED_BYTES: usize = 140;
/// Bytes of a frame's head.
pub(crate) const FRAME_HEAD_BYTES: usize = 8;
/// Bytes of a journal frame's head.
pub(crate) const JOURNAL_HEAD_BYTES: usize = 24;
/// Compression and raw length, behind the payload and inside the seal.
const SUFFIX_BYTES: usize = 5;
/// What a frame has more than its payload: head 8, suffix 5, tag 16.
pub(crate) const FRAME_OVERHEAD_BYTES: usize = FRAME_HEAD_BYTES + SUFFIX_BYTES + TAG_BYTES;
/// What a journal frame has more than its payload: head 24, tag 16.
pub(crate) const JOURNAL_OVERHEAD_BYTES: usize = JOURNAL_HEAD_BYTES + TAG_BYTES;
/// The largest payload of a frame, before compression.
pub(crate) const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES;
/// The largest payload of a journal frame.
pub(crate) const JOURNAL_PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - JOURNAL_OVERHEAD_BYTES;

/// Required feature bits that this build knows.
const FEATURES_KNOWN: u32 = 0;
/// The number of the suite that seals nothing, which only builds made for measuring know.
const SUITE_NUMBER_PLAINTEXT: u8 = 0x80;

/// What a frame holds. Reaches the disk and the associated data: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum FrameKind {
    /// Entries of a sorted table.
    Data = 1,
    /// Part of a large value of a sorted table.
    ValueRun = 2,
    /// A partition of a sorted table's index.
    Index = 3,
    /// The index of the partitions.
    IndexTop = 4,
    /// Part of a sorted table's filter.
    Filter = 5,
    /// Counts and sizes of a sorted table.
    Properties = 6,
    /// Smallest and largest key of a sorted table.
    Bounds = 7,
    /// Where everything in a sorted table lies.
    Footer = 8,
    /// Edits of the manifest; a journal frame.
    Edits = 9,
    /// A key file's record.
    KeyRecord = 10,
    /// The contents of `CURRENT`.
    Current = 11,
    /// What attests a group of the log; a journal frame.
    Envelope = 12,
    /// Entries of one table in a group of the log; a journal frame.
    Section = 13,
    /// What a file of parked sections holds; a journal frame.
    ParkedIndex = 14,
    /// The end of a file of parked sections; a journal frame.
    ParkedEnd = 15,
}

impl FrameKind {
    /// The kind with this number on disk, or `None` for numbers that this version does not know.
    pub(crate) const fn from_u8(number: u8) -> Option<FrameKind> {
        Some(match number {
            1 => FrameKind::Data,
            2 => FrameKind::ValueRun,
            3 => FrameKind::Index,
            4 => FrameKind::IndexTop,
            5 => FrameKind::Filter,
            6 => FrameKind::Properties,
            7 => FrameKind::Bounds,
            8 => FrameKind::Footer,
            9 => FrameKind::Edits,
            10 => FrameKind::KeyRecord,
            11 => FrameKind::Current,
            12 => FrameKind::Envelope,
            13 => FrameKind::Section,
            14 => FrameKind::ParkedIndex,
            15 => FrameKind::ParkedEnd,
            _ => return None,
        })
    }

    /// The most bytes that a frame of this kind has on disk, head and tag included.
    pub(crate) const fn frame_bytes_max(self) -> usize {
        match self {
            // Two keys of 64 KiB, their lengths, and the overhead.
            FrameKind::Bounds => 256 << 10,
            FrameKind::Properties => 64 << 10,
            FrameKind::Footer | FrameKind::Current | FrameKind::ParkedEnd => 4 << 10,
            _ => FRAME_BYTES_MAX,
        }
    }

    /// Whether frames of this kind are journal frames.
    pub(crate) const fn is_journal(self) -> bool {
        use FrameKind::*;
        matches!(self, Edits | Envelope | Section | ParkedIndex | ParkedEnd)
    }
}

// ---- header --------------------------------------------------------------------------------------------------

/// What every file begins with; see the module's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileHeader {
    /// What the file is.
    pub(crate) kind: FileKind,
    /// How it is sealed.
    pub(crate) suite: Suite,
    /// Feature bits that a reader may ignore.
    pub(crate) optional: u32,
    /// Generation of the key that seals it.
    pub(crate) generation: Generation,
    /// Its number.
    pub(crate) number: FileNumber,
    /// The store that it belongs to.
    pub(crate) store: StoreId,
    /// The table that it is about.
    pub(crate) subject: TableId,
    /// What makes this instance's keys its own.
    pub(crate) salt: Salt,
    /// Commitment of the key that seals it.
    pub(crate) commitment: Commitment,
    /// Over all the bytes before; checked by whoever has the key.
    pub(crate) tag: Tag,
}

impl FileHeader {
    /// The header of a new instance of a file, with the tag that `header_tag` computes over its bytes.
    pub(crate) fn seal(
        key: &TableKey,
        suite: Suite,
        (kind, number, subject): (FileKind, FileNumber, TableId),
        salt: &Salt,
        header_tag: impl FnOnce(&[u8]) -> Tag,
    ) -> FileHeader {
        let mut header = FileHeader {
            kind,
            suite,
            optional: 0,
            generation: key.generation(),
            number,
            store: key.store(),
            subject,
            salt: *salt,
            commitment: *key.commitment(),
            tag: [0; TAG_BYTES],
        };
        header.tag = header_tag(&header.tagged());
        header
    }

    /// The header's bytes, all [`HEADER_BYTES`] of them.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.tagged();
        let crc = crc32(&[&bytes, &self.tag]);
        bytes.put_u32(crc);
        bytes.put(&self.tag);
        bytes
    }

    /// Whether a header stands where these bytes begin, and no frame: read as the head of one, the magic is a length that no frame has.
    pub(crate) fn begins_with(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC) || bytes.starts_with(&MAGIC_PLAINTEXT)
    }

    /// Read a header without any key: what it says is checked for rot, and nothing else, until a key is there.
    ///
    /// # Errors
    /// [`Error::BitRot`] for a wrong CRC or too few bytes, [`Error::Tampered`] for a wrong magic, and
    /// [`Error::UnknownVersion`].
    pub(crate) fn decode(bytes: &[u8], place: &Where<'_>) -> Result<FileHeader> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(place.bit_rot("the file ends within its header"));
        };
        let (tagged, rest) = bytes.split_at(HEADER_TAGGED_BYTES);
        let (crc, tag) = rest.split_at(4);
        if crc != crc32(&[tagged, tag]).to_le_bytes() {
            return Err(place.bit_rot("the header does not match its checksum"));
        }
        let mut reader = Reader::new(bytes);
        let magic = reader.array::<8>().map_err(|refusal| refusal.at(place))?;
        if magic != MAGIC && magic != MAGIC_PLAINTEXT {
            return Err(place.tampered("this is not a file of this engine"));
        }
        FileHeader::decode_fields(&mut reader, magic).map_err(|refusal| match refusal {
            Refusal::Malformed => place.tampered("the header cannot be decoded"),
            unknown => unknown.at(place),
        })
    }

    fn decode_fields(reader: &mut Reader<'_>, magic: [u8; 8]) -> Decoded<FileHeader> {
        let version = reader.u32()?;
        if version != FORMAT_VERSION {
            return Err(Refusal::Unknown { what: "format version", number: u64::from(version) });
        }
        let kind = decode_number(reader, "file kind", FileKind::from_u8)?;
        let suite = decode_suite(reader)?;
        // Suite none in a file with the magic of sealed ones would be a way back to plaintext.
        require((suite as u8 == SUITE_NUMBER_PLAINTEXT) == (magic == MAGIC_PLAINTEXT))?;
        reader.reserved::<2>()?;
        let required = reader.u32()?;
        if required & !FEATURES_KNOWN != 0 {
            return Err(Refusal::Unknown { what: "feature", number: u64::from(required & !FEATURES_KNOWN) });
        }
        let optional = reader.u32()?;
        let generation = Generation(reader.u32()?);
        reader.reserved::<4>()?;
        let number = FileNumber(reader.u64()?);
        let store = StoreId::from_bytes(reader.array()?);
        let subject = TableId::from_bytes(reader.array()?);
        let salt = Salt::from_bytes(reader.array()?);
        let commitment = Commitment::from_bytes(reader.array()?);
        reader.reserved::<4>()?;
        reader.u32()?; // The CRC, which was checked first.
        let tag = reader.array()?;
        Ok(FileHeader { kind, suite, optional, generation, number, store, subject, salt, commitment, tag })
    }

    /// Check that `key` seals this file and that the file is the one expected.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if the commitment is another key's, [`Error::Tampered`] for everything else.
    pub(crate) fn authenticate(&self, key: &TableKey, expected: &Expected, place: &Where<'_>) -> Result<FileKey> {
        if self.store != key.store() {
            return Err(place.tampered("the header names another store"));
        }
        if self.kind != expected.kind {
            return Err(place.tampered("the header names another kind of file"));
        }
        if self.number != expected.number {
            return Err(place.tampered("the header names another file number"));
        }
        if self.subject != expected.subject {
            return Err(place.tampered("the header names another table"));
        }
        if self.generation != key.generation() {
            return Err(place.tampered("the header names another generation of the key"));
        }
        if expected.suite.is_some_and(|suite| suite != self.suite) {
            return Err(place.tampered("the header names another suite"));
        }
        if expected.salt.is_some_and(|salt| salt != self.salt) {
            return Err(place.tampered("the header carries another salt"));
        }
        if self.commitment != *key.commitment() {
            return Err(Error::WrongKey { table: key.table(), generation: key.generation() });
        }
        let file_key = key.file_key(self.suite, self.kind, self.number, &self.salt);
        match file_key.check_header(&self.tagged(), &self.tag) {
            Ok(()) => Ok(file_key),
            Err(NotAuthentic) => Err(place.tampered("the header's tag is wrong")),
        }
    }

    /// The first 140 bytes.
    fn tagged(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.put(if self.suite as u8 == SUITE_NUMBER_PLAINTEXT { &MAGIC_PLAINTEXT } else { &MAGIC });
        bytes.put_u32(FORMAT_VERSION);
        bytes.put_u8(self.kind as u8);
        bytes.put_u8(self.suite as u8);
        bytes.put_reserved::<2>();
        bytes.put_u32(FEATURES_KNOWN);
        bytes.put_u32(self.optional);
        bytes.put_u32(self.generation.0);
        bytes.put_reserved::<4>();
        bytes.put_u64(self.number.0);
        bytes.put(self.store.as_bytes());
        bytes.put(self.subject.as_bytes());
        bytes.put(self.salt.as_bytes());
        bytes.put(self.commitment.as_bytes());
        bytes.put_reserved::<4>();
        bytes
    }
}

/// A byte that is the number of something on disk.
pub(crate) fn decode_number<T>(
    reader: &mut Reader<'_>,
    what: &'static str,
    from_u8: impl FnOnce(u8) -> Option<T>,
) -> Decoded<T> {
    let number = reader.u8()?;
    from_u8(number).ok_or(Refusal::Unknown { what, number: u64::from(number) })
}

/// The number of a suite.
pub(crate) fn decode_suite(reader: &mut Reader<'_>) -> Decoded<Suite> {
    decode_number(reader, "suite", Suite::from_u8)
}

/// What is known about a file before it is opened; its header must say the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The file's kind.
    pub(crate) kind: FileKind,
    /// The file's number.
    pub(crate) number: FileNumber,
    /// The table that it is about.
    pub(crate) subject: TableId,
    /// The suite, once the manifest has said it.
    pub(crate) suite: Option<Suite>,
    /// The salt, once the manifest has said it.
    pub(crate) salt: Option<Salt>,
}

// ---- sealing -------------------------------------------------------------------------------------------------

/// Where a frame was put, and its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SealedFrame {
    /// Its ordinal within the file.
    pub(crate) ordinal: u64,
    /// Where it begins in the file.
    pub(crate) offset_bytes: u64,
    /// Its bytes, head and tag included.
    pub(crate) len_bytes: u32,
    /// Its tag.
    pub(crate) tag: Tag,
}

/// Seals the frames of one new file, in order. After an error the file is abandoned.
#[derive(Debug)]
pub(crate) struct FileSealer {
    key: SealingKey,
    len_bytes: u64,
    compressor: Compressor,
}

/// Positions that LZ4 remembers while it compresses: no plaintext, and 8 KiB that need not be allocated for each frame.
#[derive(Default)]
struct Compressor(Option<CompressTable>);

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl FileSealer {
    /// Begin a file: draw its salt and append its header to `out`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness.
    pub(crate) fn create(
        key: &TableKey,
        suite: Suite,
        kind: FileKind,
        number: FileNumber,
        subject: TableId,
        entropy: &dyn Entropy,
        out: &mut Vec<u8>,
    ) -> Result<FileSealer> {
        let sealing = key
            .sealing_key(suite, kind, number, entropy)
            .map_err(|source| Error::io("draw", "the salt of a new file", source))?;
        let header =
            FileHeader::seal(key, suite, (kind, number, subject), sealing.salt(), |bytes| sealing.header_tag(bytes));
        out.put(&header.encode());
        Ok(FileSealer { key: sealing, len_bytes: HEADER_BYTES as u64, compressor: Compressor::default() })
    }

    /// Seal `payload` and append the frame to `out`. It is compressed if that saves a sixteenth of it or more.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a payload above the kind's maximum or when ordinals run out, [`Error::Io`] if the cipher refused.
    pub(crate) fn seal(
        &mut self,
        kind: FrameKind,
        last: bool,
        compression: Compression,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<SealedFrame> {
        check_payload(payload.len(), kind.frame_bytes_max() - FRAME_OVERHEAD_BYTES)?;
        let place = self.key.take()?;
        let ordinal = place.ordinal();
        let start = out.len();
        // All the room at once: a vector that grew while it held plaintext would free the old bytes as they are.
        out.reserve(compression_room(compression, payload.len()) + FRAME_OVERHEAD_BYTES);
        out.put_reserved::<FRAME_HEAD_BYTES>();
        let compression = append_compressed(compression, &mut self.compressor.0, payload, out);
        out.put_u8(compression as u8);
        out.put_u32(payload.len() as u32);

        let body = start + FRAME_HEAD_BYTES;
        let body_len = (out.len() - body) as u32;
        let aad = associated_data(kind, last, body_len, ordinal);
        let tag = seal_or_wipe(out, body, |bytes| self.key.seal(place, &aad, bytes))?;
        out.put(&tag);
        let head = FrameHead::of(body_len, &out[body..]);
        out[start..body].copy_from_slice(&head.encode());
        Ok(self.advance(ordinal, out.len() - start, tag))
    }

    /// Seal `payload` as a journal frame and append it to `out`.
    ///
    /// # Errors
    /// As for [`seal`](FileSealer::seal).
    pub(crate) fn seal_journal(&mut self, kind: FrameKind, payload: &[u8], out: &mut Vec<u8>) -> Result<SealedFrame> {
        let place = self.key.take()?;
        let ordinal = place.ordinal();
        let frame = JournalFrame::begin(kind, payload.len(), out);
        out.put(payload);
        let tag = frame.finish(false, ordinal, out, |aad, body| self.key.seal(place, aad, body))?;
        let len_bytes = out.len() - frame.start;
        Ok(self.advance(ordinal, len_bytes, tag))
    }

    /// The salt of this instance.
    pub(crate) fn salt(&self) -> &Salt {
        self.key.salt()
    }

    /// Bytes of the file so far.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Frames of the file so far.
    pub(crate) fn frames(&self) -> u64 {
        self.key.taken()
    }

    /// What opens the frames again.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn opener(&self) -> FileOpener {
        FileOpener { key: self.key.key().clone() }
    }

    fn advance(&mut self, ordinal: u64, len_bytes: usize, tag: Tag) -> SealedFrame {
        let offset_bytes = self.len_bytes;
        self.len_bytes += len_bytes as u64;
        SealedFrame { ordinal, offset_bytes, len_bytes: len_bytes as u32, tag }
    }
}

#[cfg(any(test, fuzzing))]
impl FileSealer {
    /// Seal a whole body, suffix included, whatever it says: what only a mistake of ours, or somebody with the key, could write.
    pub(crate) fn seal_body(
        &mut self,
        kind: FrameKind,
        last: bool,
        mut body: Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<SealedFrame> {
        let place = self.key.take()?;
        let (ordinal, body_len) = (place.ordinal(), body.len() as u32);
        let tag = self.key.seal(place, &associated_data(kind, last, body_len, ordinal), &mut body)?;
        body.put(&tag);
        out.put(&FrameHead::of(body_len, &body).encode());
        out.put(&body);
        Ok(self.advance(ordinal, FRAME_HEAD_BYTES + body.len(), tag))
    }
}

fn check_payload(len: usize, limit: usize) -> Result<()> {
    if len <= limit {
        return Ok(());
    }
    Err(Error::LimitExceeded { what: "bytes of one frame's payload", limit: limit as u64, actual: len as u64 })
}

/// What a frame's tag covers besides its body.
fn associated_data(kind: FrameKind, last: bool, body_len: u32, ordinal: u64) -> [u8; 16] {
    let mut aad = [0; 16];
    aad[0] = kind as u8;
    aad[1] = u8::from(last);
    aad[4..8].copy_from_slice(&body_len.to_le_bytes());
    aad[8..].copy_from_slice(&ordinal.to_le_bytes());
    aad
}

/// The most bytes that a payload takes before its seal, whether compressing it is worth it or not.
fn compression_room(wanted: Compression, payload_bytes: usize) -> usize {
    match wanted {
        Compression::None => payload_bytes,
        Compression::Lz4 => get_maximum_output_size(payload_bytes),
    }
}

/// Append `payload`, compressed if `wanted` and worth it, and say which it was. `out` has room for all of it.
fn append_compressed(
    wanted: Compression,
    table: &mut Option<CompressTable>,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Compression {
    let start = out.len();
    if wanted == Compression::Lz4 {
        out.resize(start + compression_room(wanted, payload.len()), 0);
        let table = table.get_or_insert_with(CompressTable::default);
        // It cannot fail in the room that the library asks for; if it did, the payload would stay as it is.
        let len = compress_into_with_table(payload, &mut out[start..], table).unwrap_or(usize::MAX);
        if len <= payload.len() - payload.len().div_ceil(16) {
            out.truncate(start + len);
            return Compression::Lz4;
        }
        // What the compressor wrote is plaintext too, and might be more than the payload that now goes over it.
        out[start..].fill(0);
        out.truncate(start);
    }
    out.put(payload);
    Compression::None
}

/// Seal what lies in `out` from `body` on; if that fails, wipe it, because it is plaintext.
fn seal_or_wipe(out: &mut Vec<u8>, body: usize, seal: impl FnOnce(&mut [u8]) -> Result<Tag>) -> Result<Tag> {
    let sealed = seal(&mut out[body..]);
    if sealed.is_err() {
        out[body..].fill(0);
        out.truncate(body);
    }
    sealed
}

// ---- opening -------------------------------------------------------------------------------------------------

/// Opens the frames of one file. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct FileOpener {
    key: FileKey,
}

impl FileOpener {
    /// For the file that begins with `header`.
    ///
    /// # Errors
    /// Those of [`FileHeader::decode`]; [`Error::WrongKey`] if the header's commitment is another key's;
    /// [`Error::Tampered`] if the header is not the expected one or its tag is wrong.
    pub(crate) fn open(header: &[u8], key: &TableKey, expected: &Expected, place: &Where<'_>) -> Result<FileOpener> {
        let header = FileHeader::decode(header, place)?;
        Ok(FileOpener { key: header.authenticate(key, expected, place)? })
    }

    /// For a file whose manifest entry is all that is known: a frame of it is opened without the file.
    pub(crate) fn from_pinned(
        key: &TableKey,
        suite: Suite,
        kind: FileKind,
        number: FileNumber,
        salt: &Salt,
    ) -> FileOpener {
        FileOpener { key: key.file_key(suite, kind, number, salt) }
    }

    /// Open a whole frame, head included, where it lies, and decompress it.
    ///
    /// # Errors
    /// [`Error::BitRot`] if it does not match its CRC or its length, [`Error::Tampered`] if the CRC is right and the
    /// tag is not.
    pub(crate) fn open_frame(
        &self,
        kind: FrameKind,
        last: bool,
        ordinal: u64,
        frame: Vec<u8>,
        place: &Where<'_>,
    ) -> Result<Authentic<Wiped>> {
        let head = frame.first_chunk().ok_or_else(|| place.bit_rot("the frame is cut off"))?;
        let head = FrameHead::decode(head, kind.frame_bytes_max(), place)?;
        head.check_crc(&frame, place)?;
        let aad = associated_data(kind, last, head.body_len, ordinal);
        let body = open_sealed(&self.key, ordinal, &aad, frame, FRAME_HEAD_BYTES, place)?;
        body.try_map(decompress).map_err(|refusal: Refusal| refusal.at(place))
    }

    /// As [`open_frame`](FileOpener::open_frame), with the payload in a buffer of its own, which `room` gives for its length, and the frame's buffer given
    /// back, to be used again.
    ///
    /// # Errors
    /// As for [`open_frame`](FileOpener::open_frame).
    pub(crate) fn open_frame_from(
        &self,
        kind: FrameKind,
        ordinal: u64,
        frame: Wiped,
        room: impl FnOnce(usize) -> Wiped,
        place: &Where<'_>,
    ) -> Result<(Authentic<Wiped>, Wiped)> {
        let head = frame.first_chunk().ok_or_else(|| place.bit_rot("the frame is cut off"))?;
        let head = FrameHead::decode(head, kind.frame_bytes_max(), place)?;
        head.check_crc(&frame, place)?;
        let aad = associated_data(kind, false, head.body_len, ordinal);
        let frame_len = frame.len();
        let sealed = frame.window(FRAME_HEAD_BYTES..frame_len).ok_or_else(|| place.bit_rot("the frame is cut off"))?;
        let body = self
            .key
            .open_body(ordinal, &aad, sealed)
            .map_err(|NotAuthentic| place.tampered("the frame's tag is wrong"))?;
        let mut used = Wiped::new();
        let payload = body.try_map(|body| {
            let payload = Suffixed::read(&body).and_then(|body| body.payload(room));
            used = body;
            payload
        });
        Ok((payload.map_err(|refusal: Refusal| refusal.at(place))?, used))
    }

    /// Open a whole journal frame, head included, that was sealed by [`FileSealer::seal_journal`].
    ///
    /// # Errors
    /// As for [`open_frame`](FileOpener::open_frame).
    pub(crate) fn open_journal(
        &self,
        kind: FrameKind,
        ordinal: u64,
        frame: Vec<u8>,
        place: &Where<'_>,
    ) -> Result<Authentic<Wiped>> {
        open_journal_frame(&self.key, kind, false, ordinal, frame, place)
    }
}

/// Take the suffix off, and decompress what it says is compressed.
fn decompress(mut body: Wiped) -> Decoded<Wiped> {
    let suffixed = Suffixed::read(&body)?;
    if suffixed.compression != Compression::None {
        return suffixed.payload(|len| Wiped::from(vec![0; len]));
    }
    let payload_len = suffixed.stored.len();
    body.truncate(payload_len);
    Ok(body)
}

/// An opened body: what is stored, and what the suffix says about it.
struct Suffixed<'a> {
    stored: &'a [u8],
    compression: Compression,
    raw_len: usize,
}

impl<'a> Suffixed<'a> {
    fn read(body: &'a [u8]) -> Decoded<Suffixed<'a>> {
        let payload_len = body.len().checked_sub(SUFFIX_BYTES).ok_or(Refusal::Malformed)?;
        let (stored, suffix) = body.split_at(payload_len);
        let mut suffix = Reader::new(suffix);
        let compression = decode_number(&mut suffix, "compression", Compression::from_u8)?;
        let raw_len = suffix.u32()? as usize;
        require(raw_len <= PAYLOAD_BYTES_MAX)?;
        require(compression != Compression::None || raw_len == payload_len)?;
        Ok(Suffixed { stored, compression, raw_len })
    }

    /// The payload, decompressed, in the buffer that `room` gives for it.
    fn payload(&self, room: impl FnOnce(usize) -> Wiped) -> Decoded<Wiped> {
        let mut raw = room(self.raw_len);
        match self.compression {
            Compression::None => raw.copy_from_slice(self.stored),
            Compression::Lz4 => {
                let len = lz4_flex::block::decompress_into(self.stored, &mut raw).map_err(|_| Refusal::Malformed)?;
                require(len == self.raw_len)?;
            }
        }
        Ok(raw)
    }
}

/// What can open a sealed body: a file's key, or a table's key in a log segment.
pub(crate) trait Opens {
    /// Open body ‖ tag, as [`FileKey::open`] and [`StreamKey::open`] do.
    fn open_body(&self, ordinal: u64, aad: &[u8], sealed: Wiped) -> Result<Authentic<Wiped>, NotAuthentic>;
}

impl Opens for FileKey {
    fn open_body(&self, ordinal: u64, aad: &[u8], sealed: Wiped) -> Result<Authentic<Wiped>, NotAuthentic> {
        self.open(ordinal, aad, sealed)
    }
}

impl Opens for StreamKey {
    fn open_body(&self, ordinal: u64, aad: &[u8], sealed: Wiped) -> Result<Authentic<Wiped>, NotAuthentic> {
        self.open(ordinal, aad, sealed)
    }
}

fn open_sealed(
    key: &impl Opens,
    ordinal: u64,
    aad: &[u8],
    frame: Vec<u8>,
    head_bytes: usize,
    place: &Where<'_>,
) -> Result<Authentic<Wiped>> {
    let frame_len = frame.len();
    let sealed =
        Wiped::from(frame).window(head_bytes..frame_len).ok_or_else(|| place.bit_rot("the frame is cut off"))?;
    key.open_body(ordinal, aad, sealed).map_err(|NotAuthentic| place.tampered("the frame's tag is wrong"))
}

/// The head of a frame, which locates it and says whether it rotted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHead {
    body_len: u32,
    crc: u32,
}

impl FrameHead {
    fn of(body_len: u32, body_and_tag: &[u8]) -> FrameHead {
        FrameHead { body_len, crc: crc32(&[&body_len.to_le_bytes(), body_and_tag]) }
    }

    /// The head's bytes.
    pub(crate) fn encode(&self) -> [u8; FRAME_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[4..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Read a head, of a frame that has at most `frame_bytes_max` bytes on disk.
    ///
    /// # Errors
    /// [`Error::BitRot`] if the frame would be larger than that.
    pub(crate) fn decode(
        bytes: &[u8; FRAME_HEAD_BYTES],
        frame_bytes_max: usize,
        place: &Where<'_>,
    ) -> Result<FrameHead> {
        let [a, b, c, d, e, f, g, h] = *bytes;
        let head = FrameHead { body_len: u32::from_le_bytes([a, b, c, d]), crc: u32::from_le_bytes([e, f, g, h]) };
        if head.frame_bytes() > frame_bytes_max as u64 {
            return Err(place.bit_rot("the frame's length is impossible"));
        }
        Ok(head)
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        u64::from(self.body_len) + (FRAME_HEAD_BYTES + TAG_BYTES) as u64
    }

    /// That the whole `frame`, head included, has the length and the CRC that its head says.
    ///
    /// # Errors
    /// [`Error::BitRot`].
    pub(crate) fn check_crc(&self, frame: &[u8], place: &Where<'_>) -> Result<()> {
        if frame.len() as u64 != self.frame_bytes() {
            return Err(place.bit_rot("the frame has another length than its head says"));
        }
        if crc32(&[&frame[..4], &frame[FRAME_HEAD_BYTES..]]) != self.crc {
            return Err(place.bit_rot("the frame does not match its checksum"));
        }
        Ok(())
    }
}

// ---- frames whose body stands in clear ------------------------------------------------------------------------

/// Append a frame whose body is `body` in clear: authenticated, not sealed. Only the system key's file is written so, because
/// it must be read to get at the first key.
pub(crate) fn seal_in_clear(
    sealer: &mut FileSealer,
    kind: FrameKind,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<SealedFrame> {
    check_payload(body.len(), kind.frame_bytes_max() - FRAME_HEAD_BYTES - TAG_BYTES)?;
    let place = sealer.key.take()?;
    let ordinal = place.ordinal();
    let aad = clear_associated_data(kind, ordinal, body);
    let tag = sealer.key.seal(place, &aad, &mut [])?;
    let body_len = body.len() as u32;
    let crc = crc32(&[&body_len.to_le_bytes(), body, &tag]);
    out.put(&FrameHead { body_len, crc }.encode());
    out.put(body);
    out.put(&tag);
    Ok(sealer.advance(ordinal, FRAME_HEAD_BYTES + body.len() + TAG_BYTES, tag))
}

/// The body and the tag of a frame in clear, with its CRC checked and its tag not.
pub(crate) fn read_in_clear<'a>(kind: FrameKind, frame: &'a [u8], place: &Where<'_>) -> Result<(&'a [u8], Tag)> {
    let head = frame.first_chunk().ok_or_else(|| place.bit_rot("the frame is cut off"))?;
    FrameHead::decode(head, kind.frame_bytes_max(), place)?.check_crc(frame, place)?;
    match frame[FRAME_HEAD_BYTES..].split_last_chunk::<TAG_BYTES>() {
        Some((body, tag)) => Ok((body, *tag)),
        None => Err(place.bit_rot("the frame is cut off")),
    }
}

/// Check the tag of a body in clear, and vouch for a `value` that was decoded from that very body.
pub(crate) fn authenticate_in_clear<T>(
    opener: &FileOpener,
    kind: FrameKind,
    ordinal: u64,
    body: &[u8],
    tag: &Tag,
    value: T,
    place: &Where<'_>,
) -> Result<Authentic<T>> {
    let aad = clear_associated_data(kind, ordinal, body);
    match opener.key.open(ordinal, &aad, Wiped::from(tag.to_vec())) {
        // What was opened is empty: the body was associated data, and `value` is its content.
        Ok(opened) => Ok(opened.map(|_| value)),
        Err(NotAuthentic) => Err(place.tampered("the frame's tag is wrong")),
    }
}

fn clear_associated_data(kind: FrameKind, ordinal: u64, body: &[u8]) -> Vec<u8> {
    let mut aad = associated_data(kind, true, body.len() as u32, ordinal).to_vec();
    aad.put(body);
    aad
}

// ---- journal frames --------------------------------------------------------------------------------------------

/// The head of a journal frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JournalHead {
    /// Bytes of body, without the tag.
    pub(crate) body_len: u32,
    /// The frame's ordinal, which is true only if the frame opens.
    pub(crate) ordinal: u64,
    /// The frame's kind, which is true only if the frame opens.
    pub(crate) kind: FrameKind,
    body_crc: u32,
}

impl JournalHead {
    /// Read the head at the front of `bytes`.
    ///
    /// # Errors
    /// [`Error::BitRot`] if there is no head here, [`Error::UnknownVersion`] if there is one of a kind that this build
    /// does not know.
    pub(crate) fn decode(bytes: &[u8], place: &Where<'_>) -> Result<JournalHead> {
        let bytes = bytes.first_chunk().ok_or_else(|| place.bit_rot("the frame is cut off"))?;
        if crc32(&[&bytes[..16]]) != u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]) {
            return Err(place.bit_rot("the frame's head does not match its checksum"));
        }
        JournalHead::decode_fields(bytes).map_err(|refusal| match refusal {
            Refusal::Malformed => place.tampered("the frame's head cannot be decoded"),
            unknown => unknown.at(place),
        })
    }

    fn decode_fields(bytes: &[u8; JOURNAL_HEAD_BYTES]) -> Decoded<JournalHead> {
        let mut reader = Reader::new(bytes);
        let body_len = reader.u32()?;
        let ordinal = reader.u64()?;
        let kind = decode_number(&mut reader, "frame kind", FrameKind::from_u8)?;
        reader.reserved::<3>()?;
        reader.u32()?; // The head's CRC, which was checked first.
        let head = JournalHead { body_len, ordinal, kind, body_crc: reader.u32()? };
        require(kind.is_journal() && body_len >= 1 && head.frame_bytes() <= kind.frame_bytes_max() as u64)?;
        Ok(head)
    }

    /// The head's bytes.
    pub(crate) fn encode(&self) -> [u8; JOURNAL_HEAD_BYTES] {
        let mut bytes = [0; JOURNAL_HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes[12] = self.kind as u8;
        let head_crc = crc32(&[&bytes[..16]]);
        bytes[16..20].copy_from_slice(&head_crc.to_le_bytes());
        bytes[20..].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        u64::from(self.body_len) + JOURNAL_OVERHEAD_BYTES as u64
    }

    /// That the whole `frame`, head included, has the length and the body CRC that its head says.
    ///
    /// # Errors
    /// [`Error::BitRot`].
    pub(crate) fn check_crc(&self, frame: &[u8], place: &Where<'_>) -> Result<()> {
        if frame.len() as u64 != self.frame_bytes() {
            return Err(place.bit_rot("the frame is cut off"));
        }
        if crc32(&[&frame[JOURNAL_HEAD_BYTES..]]) != self.body_crc {
            return Err(place.bit_rot("the frame does not match its checksum"));
        }
        Ok(())
    }
}

/// The next offset at or after `from` where a head with a right CRC stands whose whole frame lies within a file: how readers find frames
/// again behind a hole. `window` is a part of the file, of which `end_bytes` bytes, counted from the window's first, are left.
///
/// Linear in the bytes searched: a CRC is computed only where kind, reserved bytes and length could be a head's.
pub(crate) fn next_head_within(window: &[u8], from: usize, end_bytes: u64) -> Option<(usize, JournalHead)> {
    let last = window.len().checked_sub(JOURNAL_HEAD_BYTES)?;
    (from..=last).find_map(|offset| {
        let bytes: &[u8; JOURNAL_HEAD_BYTES] = window[offset..].first_chunk()?;
        // Cheapest first: three zeros behind a known kind are one offset in two hundred million of ciphertext.
        if bytes[13..16] != [0; 3] {
            return None;
        }
        let head = JournalHead::decode_fields(bytes).ok()?;
        let fits = head.frame_bytes() <= end_bytes.saturating_sub(offset as u64);
        (fits && bytes[16..20] == crc32(&[&bytes[..16]]).to_le_bytes()).then_some((offset, head))
    })
}

/// As [`next_head_within`], of bytes that are the whole file.
#[cfg(any(test, fuzzing))]
pub(crate) fn next_head(bytes: &[u8], from: usize) -> Option<(usize, JournalHead)> {
    next_head_within(bytes, from, bytes.len() as u64)
}

/// A journal frame that is being put together at the end of a vector: between `begin` and `finish`, the body is appended.
#[derive(Debug)]
pub(crate) struct JournalFrame {
    kind: FrameKind,
    /// Where the head lies in the vector.
    pub(crate) start: usize,
    /// The announced room, which is also the most that may be appended.
    pub(crate) body_bytes_max: usize,
}

impl JournalFrame {
    /// Begin a frame with room for a body of this many bytes.
    pub(crate) fn begin(kind: FrameKind, body_bytes_max: usize, out: &mut Vec<u8>) -> JournalFrame {
        let start = out.len();
        // All the room at once, because a vector that grew while it held plaintext would free the old bytes as they are.
        out.reserve(body_bytes_max + JOURNAL_OVERHEAD_BYTES);
        out.put_reserved::<JOURNAL_HEAD_BYTES>();
        JournalFrame { kind, start, body_bytes_max }
    }

    /// Seal the body that was appended.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for an empty or too large body, or what `seal` fails with; the body is wiped then.
    pub(crate) fn finish(
        &self,
        last: bool,
        ordinal: u64,
        out: &mut Vec<u8>,
        seal: impl FnOnce(&[u8], &mut [u8]) -> Result<Tag>,
    ) -> Result<Tag> {
        let filled_bytes = self.body_bytes_max - self.room(out);
        assert!(filled_bytes >= 1, "a journal frame is filled as announced");
        // The room was made when the frame was begun.
        out.put_reserved::<TAG_BYTES>();
        let sealed = finish_journal_frame(&mut out[self.start..], self.kind, last, ordinal, seal);
        if sealed.is_err() {
            out.truncate(self.start);
        }
        sealed
    }

    /// Bytes that may still be appended.
    ///
    /// # Panics
    /// If more were appended than was announced.
    pub(crate) fn room(&self, out: &[u8]) -> usize {
        let filled_bytes = out.len() - self.start - JOURNAL_HEAD_BYTES;
        assert!(filled_bytes <= self.body_bytes_max, "a journal frame is filled as announced");
        self.body_bytes_max - filled_bytes
    }
}

/// Seal a journal frame where it lies: `frame` has room for head and tag around a body in clear, and is a whole frame afterwards.
///
/// # Errors
/// [`Error::LimitExceeded`] for a body that is too large, or what `seal` fails with; the body is wiped then.
pub(crate) fn finish_journal_frame(
    frame: &mut [u8],
    kind: FrameKind,
    last: bool,
    ordinal: u64,
    seal: impl FnOnce(&[u8], &mut [u8]) -> Result<Tag>,
) -> Result<Tag> {
    let (head, rest) = frame.split_at_mut(JOURNAL_HEAD_BYTES);
    let (body, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
    let body_len = body.len() as u32;
    let aad = associated_data(kind, last, body_len, ordinal);
    let sealed =
        check_payload(body.len(), kind.frame_bytes_max() - JOURNAL_OVERHEAD_BYTES).and_then(|()| seal(&aad, body));
    match &sealed {
        Ok(made) => tag.copy_from_slice(made),
        Err(_) => body.fill(0),
    }
    head.copy_from_slice(&JournalHead { body_len, ordinal, kind, body_crc: crc32(&[rest]) }.encode());
    sealed
}

/// Open a whole journal frame, head included.
///
/// # Errors
/// [`Error::BitRot`] if it does not match its CRCs or its length; [`Error::Tampered`] if its head names another kind or ordinal, or
/// the tag is wrong.
pub(crate) fn open_journal_frame(
    key: &impl Opens,
    kind: FrameKind,
    last: bool,
    ordinal: u64,
    frame: Vec<u8>,
    place: &Where<'_>,
) -> Result<Authentic<Wiped>> {
    let head = JournalHead::decode(&frame, place)?;
    head.check_crc(&frame, place)?;
    if head.kind != kind || head.ordinal != ordinal {
        return Err(place.tampered("the frame's head names another kind or ordinal"));
    }
    let aad = associated_data(kind, last, head.body_len, ordinal);
    open_sealed(key, ordinal, &aad, frame, JOURNAL_HEAD_BYTES, place)
}

#[cfg(test)]
mod tests;
