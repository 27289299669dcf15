//! Key files: the wrapped keys of one table, or of the store itself.
//!
//! ```text
//! keys/5e/5e..91   unit | the same unit again        unit: header, one frame of kind *key record* sealed under the system key
//! keys/system      unit | the same unit again        unit: header, one such frame in clear, its tag made with the system key
//! ```
//! Losing this file is losing the table, so it stands twice: one sealing, its bytes written two times, so that one
//! tag pins both. A unit is a multiple of 512 bytes (zeros behind the record, inside the seal), so that no
//! sector holds parts of both. The file's number is the record's version; its pin (version, tag) is in the
//! manifest.
//!
//! The system key's own file cannot be sealed under a key that is wrapped in it. Its record is read first, unbelieved
//! ([`SystemKeyFile::decode_unauthenticated`]); what it says gets the key unwrapped, and the key then checks the
//! record ([`SystemKeyFile::authenticate`]) before anything else is done with either.
//!
//! ```text
//! record
//! offset  size  field
//!      0    16  table        zeros for the system key
//!     16     8  version      one more with each rewrite (u64)
//!     24     1  state        KeyState
//!     25     8  since_ms     wall time since when it is so (u64)
//!     33     1  master       MasterKind
//!     34     -  wraps        count varint, at least 1; then each, in rising order of generation
//!      -     -  padding      zeros, fewer than 512
//!
//! wrap
//!      0     4  generation   (u32)
//!      4     1  retired      1 once nothing new is sealed under it
//!      5     8  created_ms   wall time (u64)
//!     13    32  commitment   of the key that is wrapped
//!     45     -  key ARN      prefixed UTF-8: the master key
//!      -     -  context      prefixed canonical encoding, as it was sent with the wrap
//!      -     -  wrapped      prefixed: what the provider gave
//!
//! canonical encryption context
//!      0     4  count        pairs (u32)
//!      4     -  pairs        name length u32, name, value length u32, value; names rising in byte order, none twice
//! ```
//! The context is authenticated by the provider as associated data of the wrap, so one context has one encoding.

use crate::crypto::{Authentic, Commitment, Suite, TAG_BYTES, TableKey, Tag};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, Where, require};
use crate::format::frame::{
    Expected, FRAME_HEAD_BYTES, FRAME_OVERHEAD_BYTES, FileHeader, FileOpener, FileSealer, FrameHead, FrameKind,
    HEADER_BYTES, authenticate_in_clear, decode_number, read_in_clear, seal_in_clear,
};
use crate::io::Entropy;
use crate::options::Compression;
use crate::types::{FRAME_BYTES_MAX, FileKind, FileNumber, Generation, TableId};

/// The longest key ARN, in bytes.
pub(crate) const KEY_ARN_BYTES_MAX: usize = 2048;
/// The longest encryption context, encoded, in bytes.
pub(crate) const CONTEXT_BYTES_MAX: usize = 8192;
/// The longest wrapped key, in bytes.
pub(crate) const WRAPPED_BYTES_MAX: usize = 8192;
/// The longest key file, both units.
pub(crate) const KEY_FILE_BYTES_MAX: usize = 2 * (HEADER_BYTES + FRAME_BYTES_MAX);
/// Units begin at multiples of this many bytes.
const UNIT_ALIGN_BYTES: usize = 512;

/// What kind of master key wraps a table's key. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum MasterKind {
    /// The store's default.
    Owned = 1,
    /// Made in the user's provider for this engine.
    Managed = 2,
    /// Named by the user.
    Customer = 3,
}

impl MasterKind {
    /// The kind with this number on disk.
    pub(crate) const fn from_u8(number: u8) -> Option<MasterKind> {
        match number {
            1 => Some(MasterKind::Owned),
            2 => Some(MasterKind::Managed),
            3 => Some(MasterKind::Customer),
            _ => None,
        }
    }
}

/// The state of a table as its key decides it. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum KeyState {
    /// The key unwraps.
    Active = 1,
    /// The provider refuses the key itself.
    Inaccessible = 2,
    /// The table is being dropped; the wraps are about to be erased.
    Dropping = 3,
}

impl KeyState {
    /// The state with this number on disk.
    pub(crate) const fn from_u8(number: u8) -> Option<KeyState> {
        match number {
            1 => Some(KeyState::Active),
            2 => Some(KeyState::Inaccessible),
            3 => Some(KeyState::Dropping),
            _ => None,
        }
    }
}

/// A key file's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyFile {
    /// The table, or [`TableId::SYSTEM`].
    pub(crate) table: TableId,
    /// One more with each rewrite.
    pub(crate) version: u64,
    /// What the key's provider last said.
    pub(crate) state: KeyState,
    /// Wall time since when.
    pub(crate) since_ms: u64,
    /// The kind of its master key.
    pub(crate) master: MasterKind,
    /// The wrapped keys, at least one, in rising order of generation.
    pub(crate) wraps: Vec<Wrap>,
}

/// One generation of a key, wrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wrap {
    /// Which of the table's keys.
    pub(crate) generation: Generation,
    /// The master key that wraps it, never an alias.
    pub(crate) key_arn: String,
    /// The encryption context that was sent with the wrap.
    pub(crate) context: Vec<(String, String)>,
    /// What the provider gave.
    pub(crate) wrapped: Vec<u8>,
    /// Commitment of the key inside.
    pub(crate) commitment: Commitment,
    /// Wall time when it was wrapped.
    pub(crate) created_ms: u64,
    /// Whether nothing new is sealed under it.
    pub(crate) retired: bool,
}

/// A key file that was opened.
#[derive(Debug)]
pub(crate) struct OpenedKeyFile {
    /// What it says.
    pub(crate) record: Authentic<KeyFile>,
    /// Its tag, to compare with the manifest's pin.
    pub(crate) tag: Tag,
    /// Whether both units are whole. If not, the file should be written again.
    pub(crate) both_copies_good: bool,
}

impl KeyFile {
    /// All bytes of a table's key file, and the tag to pin.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a record that could not be read again; what sealing fails with.
    pub(crate) fn seal(&self, system: &TableKey, suite: Suite, entropy: &dyn Entropy) -> Result<(Vec<u8>, Tag)> {
        let payload = self.encode_padded(HEADER_BYTES + FRAME_OVERHEAD_BYTES)?;
        let mut unit = Vec::new();
        let number = FileNumber(self.version);
        let mut sealer = FileSealer::create(system, suite, FileKind::KeyFile, number, self.table, entropy, &mut unit)?;
        let frame = sealer.seal(FrameKind::KeyRecord, true, Compression::None, &payload, &mut unit)?;
        Ok((twice(unit), frame.tag))
    }

    /// Open the bytes of this table's key file.
    ///
    /// # Errors
    /// If neither unit opens, why the first does not. [`Error::Tampered`] if both open and differ.
    pub(crate) fn open(bytes: &[u8], system: &TableKey, table: TableId, place: &Where<'_>) -> Result<OpenedKeyFile> {
        let (opened, both_copies_good) =
            either_copy(bytes, place, |unit, place| KeyFile::open_unit(unit, system, table, place))?;
        let (record, tag) = opened;
        Ok(OpenedKeyFile { record, tag, both_copies_good })
    }

    fn open_unit(
        unit: &[u8],
        system: &TableKey,
        table: TableId,
        place: &Where<'_>,
    ) -> Result<(Authentic<KeyFile>, Tag)> {
        let header = FileHeader::decode(unit, place)?;
        let expected =
            Expected { kind: FileKind::KeyFile, number: header.number, subject: table, suite: None, salt: None };
        let opener = FileOpener::open(unit, system, &expected, place)?;
        let place = place.at(place.offset_bytes + HEADER_BYTES as u64);
        let frame = unit.get(HEADER_BYTES..).unwrap_or_default().to_vec();
        let tag = *frame.last_chunk::<TAG_BYTES>().ok_or_else(|| place.bit_rot("the frame is cut off"))?;
        let payload = opener.open_frame(FrameKind::KeyRecord, true, 0, frame, &place)?;
        let record = payload.try_map(|payload| {
            let record = KeyFile::decode(&payload)?;
            record.check_header(&header)?;
            Ok(record)
        });
        Ok((record.map_err(|refusal: Refusal| refusal.at(&place))?, tag))
    }

    /// The wrap of a generation.
    pub(crate) fn wrap(&self, generation: Generation) -> Option<&Wrap> {
        self.wraps.iter().find(|wrap| wrap.generation == generation)
    }

    /// The header of the file must be about this record.
    fn check_header(&self, header: &FileHeader) -> Decoded<()> {
        require(self.table == header.subject && self.version == header.number.0)
    }

    /// The record with zeros behind it, so that with `overhead` bytes more it is a multiple of [`UNIT_ALIGN_BYTES`].
    fn encode_padded(&self, overhead: usize) -> Result<Vec<u8>> {
        let mut bytes = self.encode();
        bytes.resize((bytes.len() + overhead).next_multiple_of(UNIT_ALIGN_BYTES) - overhead, 0);
        // Key files are rare and everything hangs on them: what could not be read again is never written.
        match KeyFile::decode(&bytes) {
            Ok(record) if record == self.with_sorted_contexts() => Ok(bytes),
            _ => Err(Error::InvalidArgument {
                what: "key record",
                detail: "a name, context or wrapped key is too long, or out of order".to_owned(),
            }),
        }
    }

    fn with_sorted_contexts(&self) -> KeyFile {
        let mut record = self.clone();
        record.wraps.iter_mut().for_each(|wrap| wrap.context.sort());
        record
    }

    /// The record's bytes, without padding.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put(self.table.as_bytes());
        out.put_u64(self.version);
        out.put_u8(self.state as u8);
        out.put_u64(self.since_ms);
        out.put_u8(self.master as u8);
        out.put_varint(self.wraps.len() as u64);
        for wrap in &self.wraps {
            out.put_u32(wrap.generation.0);
            out.put_bool(wrap.retired);
            out.put_u64(wrap.created_ms);
            out.put(wrap.commitment.as_bytes());
            out.put_prefixed(wrap.key_arn.as_bytes());
            out.put_prefixed(&encode_sorted(&wrap.context));
            out.put_prefixed(&wrap.wrapped);
        }
        out
    }

    /// Read a record, padded or not.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<KeyFile> {
        let mut reader = Reader::new(bytes);
        let table = TableId::from_bytes(reader.array()?);
        let version = reader.u64()?;
        let state = decode_number(&mut reader, "key state", KeyState::from_u8)?;
        let since_ms = reader.u64()?;
        let master = decode_number(&mut reader, "master key kind", MasterKind::from_u8)?;
        // 48 = the fixed 45 bytes of a wrap and three lengths.
        let count = reader.count(48)?;
        require(count >= 1)?;
        let mut wraps: Vec<Wrap> = Vec::with_capacity(count);
        for _ in 0..count {
            let wrap = Wrap::decode(&mut reader)?;
            require(wraps.last().is_none_or(|before| before.generation < wrap.generation))?;
            wraps.push(wrap);
        }
        let padding = reader.rest();
        require(padding.len() < UNIT_ALIGN_BYTES && padding.iter().all(|&byte| byte == 0))?;
        Ok(KeyFile { table, version, state, since_ms, master, wraps })
    }
}

impl Wrap {
    fn decode(reader: &mut Reader<'_>) -> Decoded<Wrap> {
        let generation = Generation(reader.u32()?);
        let retired = reader.bool()?;
        let created_ms = reader.u64()?;
        let commitment = Commitment::from_bytes(reader.array()?);
        let key_arn = reader.string(KEY_ARN_BYTES_MAX)?;
        let context = decode_context(reader.prefixed(CONTEXT_BYTES_MAX)?)?;
        let wrapped = reader.prefixed(WRAPPED_BYTES_MAX)?.to_vec();
        Ok(Wrap { generation, key_arn, context, wrapped, commitment, created_ms, retired })
    }
}

/// The system key's file, read and not believed yet.
#[derive(Debug)]
pub(crate) struct SystemKeyFile {
    header: FileHeader,
    record: KeyFile,
    body: Vec<u8>,
    tag: Tag,
    both_copies_good: bool,
}

impl SystemKeyFile {
    /// All bytes of the system key's file, and the tag to pin. `system` is the record's generation that seals now.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a record that could not be read again or does not wrap `system`; what sealing fails with.
    pub(crate) fn seal(
        record: &KeyFile,
        system: &TableKey,
        suite: Suite,
        entropy: &dyn Entropy,
    ) -> Result<(Vec<u8>, Tag)> {
        let wraps_itself = record.wrap(system.generation()).is_some_and(|wrap| wrap.commitment == *system.commitment());
        if record.table != TableId::SYSTEM || !wraps_itself {
            return Err(Error::InvalidArgument {
                what: "system key record",
                detail: "it does not wrap the key that authenticates it".to_owned(),
            });
        }
        let body = record.encode_padded(HEADER_BYTES + FRAME_HEAD_BYTES + TAG_BYTES)?;
        let mut unit = Vec::new();
        let number = FileNumber(record.version);
        let mut sealer =
            FileSealer::create(system, suite, FileKind::SystemKey, number, TableId::SYSTEM, entropy, &mut unit)?;
        let frame = seal_in_clear(&mut sealer, FrameKind::KeyRecord, &body, &mut unit)?;
        Ok((twice(unit), frame.tag))
    }

    /// Read the file without any key. Only CRCs are checked: what it says is good for asking a provider and for nothing else.
    ///
    /// # Errors
    /// If neither unit can be read, why the first cannot. [`Error::Tampered`] if both can and differ.
    pub(crate) fn decode_unauthenticated(bytes: &[u8], place: &Where<'_>) -> Result<SystemKeyFile> {
        let (file, both_copies_good) = either_copy(bytes, place, SystemKeyFile::decode_unit)?;
        Ok(SystemKeyFile { both_copies_good, ..file })
    }

    fn decode_unit(unit: &[u8], place: &Where<'_>) -> Result<SystemKeyFile> {
        let header = FileHeader::decode(unit, place)?;
        // Another file's body is sealed, and reads as nonsense.
        if header.kind != FileKind::SystemKey {
            return Err(place.tampered("the header names another kind of file"));
        }
        let frame = unit.get(HEADER_BYTES..).unwrap_or_default();
        let (body, tag) =
            read_in_clear(FrameKind::KeyRecord, frame, &place.at(place.offset_bytes + HEADER_BYTES as u64))?;
        let record = KeyFile::decode(body).map_err(|refusal| refusal.at(place))?;
        record.check_header(&header).map_err(|refusal| refusal.at(place))?;
        Ok(SystemKeyFile { header, record, body: body.to_vec(), tag, both_copies_good: false })
    }

    /// The header: store, and which generation of the system key authenticates the record.
    pub(crate) fn header(&self) -> &FileHeader {
        &self.header
    }

    /// Whether both units are whole, as far as that can be told without a key.
    pub(crate) fn both_copies_good(&self) -> bool {
        self.both_copies_good
    }

    /// What the file says, unbelieved.
    pub(crate) fn unauthenticated(&self) -> &KeyFile {
        &self.record
    }

    /// Check the record with the key that was unwrapped with its help.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if that is another key than the header commits to, [`Error::Tampered`] if a tag is wrong.
    pub(crate) fn authenticate(self, system: &TableKey, place: &Where<'_>) -> Result<OpenedKeyFile> {
        let expected = Expected {
            kind: FileKind::SystemKey,
            number: self.header.number,
            subject: TableId::SYSTEM,
            suite: None,
            salt: None,
        };
        let opener = FileOpener::open(&self.header.encode(), system, &expected, place)?;
        let place = place.at(place.offset_bytes + HEADER_BYTES as u64);
        let record =
            authenticate_in_clear(&opener, FrameKind::KeyRecord, 0, &self.body, &self.tag, self.record, &place)?;
        Ok(OpenedKeyFile { record, tag: self.tag, both_copies_good: self.both_copies_good })
    }
}

/// The unit, and again the same bytes. It was sealed once.
fn twice(mut unit: Vec<u8>) -> Vec<u8> {
    unit.extend_from_within(..);
    unit
}

/// What either unit of a file gives, and whether both are whole.
fn either_copy<T>(bytes: &[u8], place: &Where<'_>, open: impl Fn(&[u8], &Where<'_>) -> Result<T>) -> Result<(T, bool)> {
    if bytes.len() > KEY_FILE_BYTES_MAX {
        return Err(place.tampered("the key file is longer than any"));
    }
    // The first unit says its own length, so it can be read from a file that was cut; the second begins in the middle.
    let first = open(&bytes[..first_unit_bytes(bytes)], place);
    let middle = bytes.len() / 2;
    let second_place = place.at(place.offset_bytes + middle as u64);
    let same = bytes.len().is_multiple_of(2) && bytes[..middle] == bytes[middle..];
    match first {
        Ok(first) if same => Ok((first, true)),
        Ok(first) => match open(&bytes[middle..], &second_place) {
            // Two records that are both authentic: somebody put halves of two files together.
            Ok(_) => Err(second_place.tampered("the two copies differ")),
            Err(_) => Ok((first, false)),
        },
        Err(reason) if same => Err(reason),
        Err(reason) => open(&bytes[middle..], &second_place).map(|second| (second, false)).map_err(|_| reason),
    }
}

/// Bytes of the unit at the front, as far as they are there.
pub(super) fn first_unit_bytes(bytes: &[u8]) -> usize {
    let place = Where::new("", 0);
    let head = bytes.get(HEADER_BYTES..).and_then(<[u8]>::first_chunk);
    let head = head.and_then(|head| FrameHead::decode(head, FRAME_BYTES_MAX, &place).ok());
    let unit_bytes = head.map_or(usize::MAX, |head| HEADER_BYTES + head.frame_bytes() as usize);
    unit_bytes.min(bytes.len())
}

/// The canonical encoding of an encryption context, in whatever order the pairs are given.
///
/// # Errors
/// [`Error::InvalidArgument`] if a name is empty or stands twice, [`Error::LimitExceeded`] above [`CONTEXT_BYTES_MAX`].
#[cfg(any(test, fuzzing))]
pub(crate) fn encode_context(pairs: &[(String, String)]) -> Result<Vec<u8>> {
    let bytes = encode_sorted(pairs);
    if bytes.len() > CONTEXT_BYTES_MAX {
        let limit = CONTEXT_BYTES_MAX as u64;
        return Err(Error::LimitExceeded { what: "bytes of an encryption context", limit, actual: bytes.len() as u64 });
    }
    match decode_context(&bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(Error::InvalidArgument {
            what: "encryption context",
            detail: "a name is empty or stands twice".to_owned(),
        }),
    }
}

/// The pairs of a canonical encoding, in byte order of their names.
pub(crate) fn decode_context(bytes: &[u8]) -> Decoded<Vec<(String, String)>> {
    let mut reader = Reader::new(bytes);
    let count = reader.u32()? as usize;
    // 8 = two lengths.
    require(count <= reader.remaining() / 8)?;
    let mut pairs: Vec<(String, String)> = Vec::with_capacity(count);
    let string = |reader: &mut Reader<'_>| {
        let len = reader.u32()? as usize;
        let bytes = reader.bytes(len)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Refusal::Malformed)
    };
    for _ in 0..count {
        let pair = (string(&mut reader)?, string(&mut reader)?);
        require(!pair.0.is_empty() && pairs.last().is_none_or(|before| before.0 < pair.0))?;
        pairs.push(pair);
    }
    reader.finish()?;
    Ok(pairs)
}

fn encode_sorted(pairs: &[(String, String)]) -> Vec<u8> {
    let mut sorted: Vec<&(String, String)> = pairs.iter().collect();
    sorted.sort();
    let mut out = Vec::new();
    out.put_u32(sorted.len() as u32);
    for (name, value) in sorted {
        out.put_u32(name.len() as u32);
        out.put(name.as_bytes());
        out.put_u32(value.len() as u32);
        out.put(value.as_bytes());
    }
    out
}

#[cfg(test)]
pub(crate) mod tests;
