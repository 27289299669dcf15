//! The manifest: a log of edits from which the picture of the whole store follows.
//!
//! A file header and journal frames ([`frame`](crate::format::frame)) of kind *edits*, ordinals 0, 1, 2, ..., each frame under a key of its
//! own that comes from the system key. A *group* of edits is atomic: it takes effect when all its frames are there.
//!
//! ```text
//! payload of a frame: more u8 (1: the group goes on in the next frame), then the next piece of the group
//!
//! group
//! offset  size  field
//!      0     8  epoch            of this group; one more than the group's before (u64)
//!      8     1  synced known     0 while the picture is being written, 1 afterwards
//!      9     8  synced ordinal   highest ordinal of this manifest known durable when this was written, or zero (u64)
//!     17     4  edits            how many follow (u32); none: a mark, which attests what was durable
//!     21     -  edits
//!
//! edit: number u8, then
//!   1 Store          store 16 | lineage 16 | created_ms u64 | real_entropy bool | suite u8
//!   2 SystemKey      pin
//!   3 Counters       next_file u64 | next_slot u32 | last_seq u64
//!   4 CreateTable    slot u32 | id 16 | name prefixed | created_ms u64 | suite u8 | compression u8 | order u8 (0: bytewise)
//!                    | block_bytes u32 | filter_bits_per_key u8 | filter_seed u64 | master u8 | dropping bool | pin
//!   5 TableKey       slot u32 | master u8 | pin
//!   6 DropTable      slot u32
//!   7 ForgetTable    slot u32
//!   8 AddFile        slot u32 | level u8 | file
//!   9 RemoveFile     slot u32 | level u8 | number u64
//!  10 Flushed        slot u32 | seq u64
//!  11 AddSegment     number u64 | salt 32
//!  12 RemoveSegment  number u64
//!  13 LogEnds        segment u64 | end_bytes u64 | tag 16 | seq u64
//!  14 CleanClose     segment u64 | end_bytes u64 | tag 16 | seq u64
//!  15 PictureEnds
//!  16 LogSynced      segment u64 | end_bytes u64
//!
//! pin   version u64 | tag 16 | count varint | count times: generation u32, commitment 32
//! file  number u64 | container u64 | offset_bytes u64 | len_bytes u64 | salt 32 | final tag 16 | generation u32 | suite u8
//!       | entries u64 | tombstones u64 | raw_bytes u64 | min_seq u64 | max_seq u64 | bounds_ordinal u64 | bounds prefixed
//! ```
//! A file's key bounds stand here as the sealed frame that they are in the file: opaque until the table's key is there.
//! What the edits mean together is `version`'s and `db`'s affair; here they are only bytes.

use crate::crypto::{Authentic, Commitment, Salt, Suite, TableKey, Tag, Wiped};
use crate::error::{Error, Result};
use crate::format::codec::{Decoded, Put, Reader, Refusal, Where, require};
use crate::format::frame::{
    Expected, FileOpener, FileSealer, FrameKind, JOURNAL_PAYLOAD_BYTES_MAX, decode_number, decode_suite,
};
use crate::format::keyfile::MasterKind;
use crate::format::log::{LogPoint, decode_seq};
use crate::io::Entropy;
use crate::options::Compression;
use crate::types::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Epoch, FileKind, FileNumber, Generation, LEVELS, Seq, Slot, StoreId,
    TABLE_NAME_BYTES_MAX, TableId,
};

/// The most bytes that one group of edits has, so that reading one is bounded (64 MiB). A picture is many groups.
pub(crate) const GROUP_BYTES_MAX: usize = 64 << 20;
/// What of a group fits one frame, behind the byte that says whether it goes on.
const PIECE_BYTES_MAX: usize = JOURNAL_PAYLOAD_BYTES_MAX - 1;

/// Edits that take effect together or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EditGroup {
    /// The epoch that the store is at once the group is durable.
    pub(crate) epoch: Epoch,
    /// Highest ordinal of this manifest known durable when this was written; `None` until its picture is.
    pub(crate) synced_ordinal: Option<u64>,
    /// What changed; nothing in a mark.
    pub(crate) edits: Vec<Edit>,
}

/// One change of the store's picture. The numbers reach the disk and are never reused; see the module's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Edit {
    /// What the store is. The first edit of every picture.
    Store {
        /// Its identity.
        store: StoreId,
        /// Random; new for each copy that is opened for writing.
        lineage: [u8; 16],
        /// Wall time of its creation.
        created_ms: u64,
        /// Whether its keys and salts come from the operating system's randomness.
        real_entropy: bool,
        /// How its own metadata is sealed.
        suite: Suite,
    },
    /// The system key file that counts.
    SystemKey(KeyPin),
    /// Numbers that must not be given out again.
    Counters {
        /// The next file's.
        next_file: FileNumber,
        /// The next table's.
        next_slot: Slot,
        /// The last one that was given to an entry.
        last_seq: Seq,
    },
    /// A new table.
    CreateTable(Box<TableRecord>),
    /// A table's key file was replaced.
    TableKey {
        /// The table.
        slot: Slot,
        /// The key file that counts from now on.
        key: KeyPin,
        /// The kind of its master key.
        master: MasterKind,
    },
    /// A table is being dropped: it answers no more, and its key will be shredded.
    DropTable {
        /// The table.
        slot: Slot,
    },
    /// A dropped table is gone, key and files.
    ForgetTable {
        /// The table.
        slot: Slot,
    },
    /// A sorted table came to a level.
    AddFile {
        /// The table.
        slot: Slot,
        /// The level.
        level: u8,
        /// The sorted table.
        file: FileRecord,
    },
    /// A sorted table left a level.
    RemoveFile {
        /// The table.
        slot: Slot,
        /// The level.
        level: u8,
        /// The sorted table's number.
        number: FileNumber,
    },
    /// Every entry of the table up to this one is in sorted tables.
    Flushed {
        /// The table.
        slot: Slot,
        /// The last such entry's sequence number.
        seq: Seq,
    },
    /// A segment of the log, named before anything in it is acknowledged.
    AddSegment {
        /// Its number.
        number: FileNumber,
        /// Its salt.
        salt: Salt,
    },
    /// No table needs the segment any more.
    RemoveSegment {
        /// Its number.
        number: FileNumber,
    },
    /// What recovery decided: the log ended here, and whatever lies behind was discarded.
    LogEnds {
        /// The segment.
        segment: FileNumber,
        /// Bytes of it that count.
        end_bytes: u64,
        /// Tag of the last envelope that counts.
        tag: Tag,
        /// The last sequence number that counts.
        seq: Seq,
    },
    /// The store was closed with everything durable: from here on a missing byte is an error.
    CleanClose {
        /// The last segment.
        segment: FileNumber,
        /// Its length.
        end_bytes: u64,
        /// Tag of its last envelope.
        tag: Tag,
        /// The last sequence number.
        seq: Seq,
    },
    /// The picture with which a manifest begins is complete.
    PictureEnds,
    /// The log was durable up to this point when this was written.
    LogSynced {
        /// The point.
        point: LogPoint,
    },
}

/// Which key file counts: an older one than this is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyPin {
    /// Its version.
    pub(crate) version: u64,
    /// Its tag.
    pub(crate) tag: Tag,
    /// Every generation that something may be sealed under, in rising order. The last one seals new files.
    pub(crate) generations: Vec<(Generation, Commitment)>,
}

impl KeyPin {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.version);
        out.put(&self.tag);
        out.put_varint(self.generations.len() as u64);
        for (generation, commitment) in &self.generations {
            out.put_u32(generation.0);
            out.put(commitment.as_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Decoded<KeyPin> {
        let version = reader.u64()?;
        let tag = reader.array()?;
        let count = reader.count(4 + 32)?;
        let mut generations: Vec<(Generation, Commitment)> = Vec::with_capacity(count);
        for _ in 0..count {
            let generation = Generation(reader.u32()?);
            require(generations.last().is_none_or(|(before, _)| *before < generation))?;
            generations.push((generation, Commitment::from_bytes(reader.array()?)));
        }
        require(!generations.is_empty())?;
        Ok(KeyPin { version, tag, generations })
    }
}

/// What is fixed when a table is created, and its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableRecord {
    /// Its short name.
    pub(crate) slot: Slot,
    /// Its identity.
    pub(crate) id: TableId,
    /// Its name.
    pub(crate) name: String,
    /// Wall time of its creation.
    pub(crate) created_ms: u64,
    /// How it is sealed.
    pub(crate) suite: Suite,
    /// How its blocks are compressed.
    pub(crate) compression: Compression,
    /// Target size of a block before compression.
    pub(crate) block_bytes: u32,
    /// Bits of filter per key.
    pub(crate) filter_bits_per_key: u8,
    /// Seed of the hashes in its filters.
    pub(crate) filter_seed: u64,
    /// The kind of its master key.
    pub(crate) master: MasterKind,
    /// The key file that counts.
    pub(crate) key: KeyPin,
    /// Whether it is being dropped.
    pub(crate) dropping: bool,
}

/// The only order of keys so far: by bytes.
const ORDER_BYTEWISE: u8 = 0;

impl TableRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.slot.0);
        out.put(self.id.as_bytes());
        out.put_prefixed(self.name.as_bytes());
        out.put_u64(self.created_ms);
        out.put_u8(self.suite as u8);
        out.put_u8(self.compression as u8);
        out.put_u8(ORDER_BYTEWISE);
        out.put_u32(self.block_bytes);
        out.put_u8(self.filter_bits_per_key);
        out.put_u64(self.filter_seed);
        out.put_u8(self.master as u8);
        out.put_bool(self.dropping);
        self.key.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Decoded<TableRecord> {
        let slot = Slot(reader.u32()?);
        let id = TableId::from_bytes(reader.array()?);
        let name = reader.string(TABLE_NAME_BYTES_MAX)?;
        let created_ms = reader.u64()?;
        let suite = decode_suite(reader)?;
        let compression = decode_number(reader, "compression", Compression::from_u8)?;
        decode_number(reader, "order of keys", |number| (number == ORDER_BYTEWISE).then_some(()))?;
        let block_bytes = reader.u32()?;
        let filter_bits_per_key = reader.u8()?;
        let filter_seed = reader.u64()?;
        let master = decode_number(reader, "master key kind", MasterKind::from_u8)?;
        let dropping = reader.bool()?;
        let key = KeyPin::decode(reader)?;
        require(!name.is_empty() && id != TableId::SYSTEM)?;
        require((BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&(block_bytes as usize)) && filter_bits_per_key <= 32)?;
        Ok(TableRecord {
            slot,
            id,
            name,
            created_ms,
            suite,
            compression,
            block_bytes,
            filter_bits_per_key,
            filter_seed,
            master,
            key,
            dropping,
        })
    }
}

/// Where the bytes of a sorted table lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// The file that contains it; so far always the sorted table's own.
    pub(crate) container: FileNumber,
    /// Where in that file it begins.
    pub(crate) offset_bytes: u64,
    /// How long it is.
    pub(crate) len_bytes: u64,
}

/// All that the manifest says about a sorted table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileRecord {
    /// Its number.
    pub(crate) number: FileNumber,
    /// Where its bytes lie.
    pub(crate) extent: Extent,
    /// The salt in its header.
    pub(crate) salt: Salt,
    /// The tag of its last frame.
    pub(crate) final_tag: Tag,
    /// Which of the table's keys seals it.
    pub(crate) generation: Generation,
    /// How it is sealed.
    pub(crate) suite: Suite,
    /// Entries in it, deletes included.
    pub(crate) entries: u64,
    /// Deletes in it.
    pub(crate) tombstones: u64,
    /// Bytes of keys and values in it.
    pub(crate) raw_bytes: u64,
    /// The smallest sequence number in it.
    pub(crate) min_seq: Seq,
    /// The largest sequence number in it.
    pub(crate) max_seq: Seq,
    /// Its smallest and largest key: the whole sealed frame of kind *bounds*.
    pub(crate) bounds: Vec<u8>,
    /// The ordinal that the frame was sealed at.
    pub(crate) bounds_ordinal: u64,
}

impl FileRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.number.0);
        out.put_u64(self.extent.container.0);
        out.put_u64(self.extent.offset_bytes);
        out.put_u64(self.extent.len_bytes);
        out.put(self.salt.as_bytes());
        out.put(&self.final_tag);
        out.put_u32(self.generation.0);
        out.put_u8(self.suite as u8);
        out.put_u64(self.entries);
        out.put_u64(self.tombstones);
        out.put_u64(self.raw_bytes);
        out.put_u64(self.min_seq.get());
        out.put_u64(self.max_seq.get());
        out.put_u64(self.bounds_ordinal);
        out.put_prefixed(&self.bounds);
    }

    fn decode(reader: &mut Reader<'_>) -> Decoded<FileRecord> {
        let number = FileNumber(reader.u64()?);
        let container = FileNumber(reader.u64()?);
        let (offset_bytes, len_bytes) = (reader.u64()?, reader.u64()?);
        require(offset_bytes.checked_add(len_bytes).is_some())?;
        let salt = Salt::from_bytes(reader.array()?);
        let final_tag = reader.array()?;
        let generation = Generation(reader.u32()?);
        let suite = decode_suite(reader)?;
        let (entries, tombstones, raw_bytes) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (min_seq, max_seq) = (decode_seq(reader)?, decode_seq(reader)?);
        require(tombstones <= entries && min_seq <= max_seq)?;
        let bounds_ordinal = reader.u64()?;
        let bounds = reader.prefixed(FrameKind::Bounds.frame_bytes_max())?.to_vec();
        Ok(FileRecord {
            number,
            extent: Extent { container, offset_bytes, len_bytes },
            salt,
            final_tag,
            generation,
            suite,
            entries,
            tombstones,
            raw_bytes,
            min_seq,
            max_seq,
            bounds,
            bounds_ordinal,
        })
    }
}

impl Edit {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Edit::Store { store, lineage, created_ms, real_entropy, suite } => {
                out.put_u8(1);
                out.put(store.as_bytes());
                out.put(lineage);
                out.put_u64(*created_ms);
                out.put_bool(*real_entropy);
                out.put_u8(*suite as u8);
            }
            Edit::SystemKey(pin) => {
                out.put_u8(2);
                pin.encode(out);
            }
            Edit::Counters { next_file, next_slot, last_seq } => {
                out.put_u8(3);
                out.put_u64(next_file.0);
                out.put_u32(next_slot.0);
                out.put_u64(last_seq.get());
            }
            Edit::CreateTable(record) => {
                out.put_u8(4);
                record.encode(out);
            }
            Edit::TableKey { slot, key, master } => {
                out.put_u8(5);
                out.put_u32(slot.0);
                out.put_u8(*master as u8);
                key.encode(out);
            }
            Edit::DropTable { slot } => {
                out.put_u8(6);
                out.put_u32(slot.0);
            }
            Edit::ForgetTable { slot } => {
                out.put_u8(7);
                out.put_u32(slot.0);
            }
            Edit::AddFile { slot, level, file } => {
                out.put_u8(8);
                out.put_u32(slot.0);
                out.put_u8(*level);
                file.encode(out);
            }
            Edit::RemoveFile { slot, level, number } => {
                out.put_u8(9);
                out.put_u32(slot.0);
                out.put_u8(*level);
                out.put_u64(number.0);
            }
            Edit::Flushed { slot, seq } => {
                out.put_u8(10);
                out.put_u32(slot.0);
                out.put_u64(seq.get());
            }
            Edit::AddSegment { number, salt } => {
                out.put_u8(11);
                out.put_u64(number.0);
                out.put(salt.as_bytes());
            }
            Edit::RemoveSegment { number } => {
                out.put_u8(12);
                out.put_u64(number.0);
            }
            Edit::LogEnds { segment, end_bytes, tag, seq } => {
                out.put_u8(13);
                encode_log_end(*segment, *end_bytes, tag, *seq, out);
            }
            Edit::CleanClose { segment, end_bytes, tag, seq } => {
                out.put_u8(14);
                encode_log_end(*segment, *end_bytes, tag, *seq, out);
            }
            Edit::PictureEnds => out.put_u8(15),
            Edit::LogSynced { point } => {
                out.put_u8(16);
                out.put_u64(point.segment.0);
                out.put_u64(point.end_bytes);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Decoded<Edit> {
        Ok(match reader.u8()? {
            1 => Edit::Store {
                store: StoreId::from_bytes(reader.array()?),
                lineage: reader.array()?,
                created_ms: reader.u64()?,
                real_entropy: reader.bool()?,
                suite: decode_suite(reader)?,
            },
            2 => Edit::SystemKey(KeyPin::decode(reader)?),
            3 => Edit::Counters {
                next_file: FileNumber(reader.u64()?),
                next_slot: Slot(reader.u32()?),
                last_seq: decode_seq(reader)?,
            },
            4 => Edit::CreateTable(Box::new(TableRecord::decode(reader)?)),
            5 => {
                let slot = Slot(reader.u32()?);
                let master = decode_number(reader, "master key kind", MasterKind::from_u8)?;
                Edit::TableKey { slot, key: KeyPin::decode(reader)?, master }
            }
            6 => Edit::DropTable { slot: Slot(reader.u32()?) },
            7 => Edit::ForgetTable { slot: Slot(reader.u32()?) },
            8 => Edit::AddFile {
                slot: Slot(reader.u32()?),
                level: decode_level(reader)?,
                file: FileRecord::decode(reader)?,
            },
            9 => Edit::RemoveFile {
                slot: Slot(reader.u32()?),
                level: decode_level(reader)?,
                number: FileNumber(reader.u64()?),
            },
            10 => Edit::Flushed { slot: Slot(reader.u32()?), seq: decode_seq(reader)? },
            11 => Edit::AddSegment { number: FileNumber(reader.u64()?), salt: Salt::from_bytes(reader.array()?) },
            12 => Edit::RemoveSegment { number: FileNumber(reader.u64()?) },
            13 => {
                let (segment, end_bytes, tag, seq) = decode_log_end(reader)?;
                Edit::LogEnds { segment, end_bytes, tag, seq }
            }
            14 => {
                let (segment, end_bytes, tag, seq) = decode_log_end(reader)?;
                Edit::CleanClose { segment, end_bytes, tag, seq }
            }
            15 => Edit::PictureEnds,
            16 => Edit::LogSynced { point: LogPoint { segment: FileNumber(reader.u64()?), end_bytes: reader.u64()? } },
            number => return Err(Refusal::Unknown { what: "manifest edit", number: u64::from(number) }),
        })
    }
}

fn encode_log_end(segment: FileNumber, end_bytes: u64, tag: &Tag, seq: Seq, out: &mut Vec<u8>) {
    out.put_u64(segment.0);
    out.put_u64(end_bytes);
    out.put(tag);
    out.put_u64(seq.get());
}

fn decode_log_end(reader: &mut Reader<'_>) -> Decoded<(FileNumber, u64, Tag, Seq)> {
    Ok((FileNumber(reader.u64()?), reader.u64()?, reader.array()?, decode_seq(reader)?))
}

fn decode_level(reader: &mut Reader<'_>) -> Decoded<u8> {
    let level = reader.u8()?;
    require(usize::from(level) < LEVELS)?;
    Ok(level)
}

impl EditGroup {
    /// The group's bytes, before they are cut into frames. They hold table names, so they are wiped when dropped.
    pub(crate) fn encode(&self) -> Wiped {
        let mut out = Wiped::new();
        // Each edit is encoded in a small vector, because a growing one would free old bytes as they are.
        let mut edit_bytes = Vec::with_capacity(4096);
        edit_bytes.put_u64(self.epoch.0);
        edit_bytes.put_bool(self.synced_ordinal.is_some());
        edit_bytes.put_u64(self.synced_ordinal.unwrap_or(0));
        edit_bytes.put_u32(self.edits.len() as u32);
        out.extend_from_slice(&edit_bytes);
        for edit in &self.edits {
            edit_bytes.clear();
            edit.encode(&mut edit_bytes);
            out.extend_from_slice(&edit_bytes);
            edit_bytes.fill(0);
        }
        out
    }

    /// Read a whole group's bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<EditGroup> {
        let mut reader = Reader::new(bytes);
        let epoch = Epoch(reader.u64()?);
        let synced_ordinal = match (reader.bool()?, reader.u64()?) {
            (true, ordinal) => Some(ordinal),
            (false, 0) => None,
            (false, _) => return Err(Refusal::Malformed),
        };
        let count = reader.u32()?;
        let mut edits = Vec::new();
        for _ in 0..count {
            edits.push(Edit::decode(&mut reader)?);
        }
        reader.finish()?;
        Ok(EditGroup { epoch, synced_ordinal, edits })
    }
}

/// Writes a new manifest.
#[derive(Debug)]
pub(crate) struct ManifestSealer {
    sealer: FileSealer,
}

impl ManifestSealer {
    /// Begin a manifest: append its header to `out`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no randomness.
    pub(crate) fn create(
        system: &TableKey,
        suite: Suite,
        number: FileNumber,
        entropy: &dyn Entropy,
        out: &mut Vec<u8>,
    ) -> Result<ManifestSealer> {
        let sealer = FileSealer::create(system, suite, FileKind::Manifest, number, TableId::SYSTEM, entropy, out)?;
        Ok(ManifestSealer { sealer })
    }

    /// Append a group's frames to `out`; the result is the ordinal of the last one.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for a group above [`GROUP_BYTES_MAX`]; what sealing fails with. The manifest is abandoned then.
    pub(crate) fn append(&mut self, group: &EditGroup, out: &mut Vec<u8>) -> Result<u64> {
        let bytes = group.encode();
        debug_assert_eq!(EditGroup::decode(&bytes).as_ref(), Ok(group), "what is written can be read");
        if bytes.len() > GROUP_BYTES_MAX {
            let limit = GROUP_BYTES_MAX as u64;
            return Err(Error::LimitExceeded {
                what: "bytes of one group of edits",
                limit,
                actual: bytes.len() as u64,
            });
        }
        let mut last_ordinal = 0;
        let mut pieces = bytes.chunks(PIECE_BYTES_MAX).peekable();
        while let Some(piece) = pieces.next() {
            let mut payload = Wiped::with_capacity(1 + piece.len());
            payload.push(u8::from(pieces.peek().is_some()));
            payload.extend_from_slice(piece);
            last_ordinal = self.sealer.seal_journal(FrameKind::Edits, &payload, out)?.ordinal;
        }
        Ok(last_ordinal)
    }

    /// The salt of this manifest, for `CURRENT`.
    pub(crate) fn salt(&self) -> &Salt {
        self.sealer.salt()
    }

    /// Bytes of the file so far.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.sealer.len_bytes()
    }

    /// Frames so far, which is also the next ordinal.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn frames(&self) -> u64 {
        self.sealer.frames()
    }
}

/// Reads a manifest's groups from its frames, in order.
#[derive(Debug)]
pub(crate) struct ManifestOpener {
    opener: FileOpener,
    next_ordinal: u64,
    /// Pieces of a group of which more is to come.
    pending: Option<Authentic<Wiped>>,
}

impl ManifestOpener {
    /// For the manifest that begins with `header`.
    ///
    /// # Errors
    /// Those of [`FileOpener::open`].
    pub(crate) fn open(
        header: &[u8],
        system: &TableKey,
        expected: &Expected,
        place: &Where<'_>,
    ) -> Result<ManifestOpener> {
        let opener = FileOpener::open(header, system, expected, place)?;
        Ok(ManifestOpener { opener, next_ordinal: 0, pending: None })
    }

    /// The ordinal of the frame that [`feed`](ManifestOpener::feed) takes next.
    pub(crate) fn next_ordinal(&self) -> u64 {
        self.next_ordinal
    }

    /// Whether a group has begun and not ended.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_within_group(&self) -> bool {
        self.pending.is_some()
    }

    /// Open a whole frame anywhere in the manifest without reading it as the next: how a frame behind a hole attests
    /// something. The frame's group may have begun before it, so there is only the fact that it opens.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`].
    pub(crate) fn attest(&self, ordinal: u64, frame: Vec<u8>, place: &Where<'_>) -> Result<Authentic<Wiped>> {
        self.opener.open_journal(FrameKind::Edits, ordinal, frame, place)
    }

    /// Open the next whole frame; the result is the group that it completes, if it does.
    ///
    /// # Errors
    /// [`Error::BitRot`], [`Error::Tampered`], [`Error::UnknownVersion`]. What was fed stays as it was then.
    pub(crate) fn feed(&mut self, frame: Vec<u8>, place: &Where<'_>) -> Result<Option<Authentic<EditGroup>>> {
        let payload = self.opener.open_journal(FrameKind::Edits, self.next_ordinal, frame, place)?;
        let refuse = |refusal: Refusal| refusal.at(place);
        let more = Reader::new(&payload).bool().map_err(refuse)?;
        let piece = payload.try_map(|bytes| {
            let end = bytes.len();
            bytes.window(1..end).ok_or(Refusal::Malformed)
        });
        let piece = piece.map_err(refuse)?;
        let pending_bytes = self.pending.as_ref().map_or(0, |pending| pending.len());
        // The bytes are there, so this is no promise of a length; it keeps out a group without an end.
        if pending_bytes + piece.len() > GROUP_BYTES_MAX {
            return Err(Refusal::Malformed.at(place));
        }
        let bytes = match self.pending.take() {
            None => piece,
            Some(pending) => pending.map(|mut bytes| {
                bytes.extend_from_slice(&piece);
                bytes
            }),
        };
        self.next_ordinal += 1;
        if more {
            self.pending = Some(bytes);
            return Ok(None);
        }
        bytes.try_map(|bytes| EditGroup::decode(&bytes)).map(Some).map_err(refuse)
    }
}

#[cfg(test)]
pub(crate) mod tests;
