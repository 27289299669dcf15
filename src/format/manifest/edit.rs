//! Edits: what one change of the store's picture says, and its bytes.
//!
//! ```text
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
//!  17 Access         slot u32 | since_ms u64 (0: accessible)
//!  18 Park           number u64 | slot u32 | salt 32 | final tag 16 | len_bytes u64 | last_seq u64
//!                    | count varint | count times: generation u32, bytes u64
//!  19 Unpark         number u64
//!  20 Schedule       slot u32 (0: the system key) | every_ms u64 (0: none) | next_ms u64
//!  21 KeyChanged     slot u32 | at_ms u64
//!  22 TrailHead      events u64 | mac 32 | at_ms u64
//!  23 Grant          master u8 | key ARN prefixed | grant id prefixed | token prefixed
//!  24 GrantEnded     key ARN prefixed
//!  25 Creator        slot u32 | principal prefixed
//!
//! pin   version u64 | tag 16 | count varint | count times: generation u32, commitment 32
//! file  number u64 | container u64 | offset_bytes u64 | len_bytes u64 | salt 32 | final tag 16 | generation u32 | suite u8
//!       | entries u64 | tombstones u64 | raw_bytes u64 | min_seq u64 | max_seq u64 | bounds_ordinal u64 | bounds prefixed
//! ```
//! A file's key bounds stand here as the sealed frame that they are in the file: opaque until the table's key is there.
//! Numbers are never reused; a reader that does not know one refuses the manifest.

use std::sync::Arc;

use crate::crypto::{Commitment, Salt, Suite, Tag};
use crate::format::FileName;
use crate::format::codec::{Decoded, Put, Reader, Refusal, require};
use crate::format::frame::{FrameKind, decode_number, decode_suite};
use crate::format::keyfile::{KEY_ARN_BYTES_MAX, MasterKind};
use crate::format::log::{LogPoint, decode_seq};
use crate::options::Compression;
use crate::types::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, FileNumber, Generation, LEVELS, Seq, Slot, StoreId, TABLE_NAME_BYTES_MAX, TableId,
};

/// Longest grant id, grant token or principal, in bytes: what KMS gives out stays far below it.
const GRANT_TEXT_BYTES_MAX: usize = 8192;

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
    /// A table's master key began to be refused, or is usable again.
    Access {
        /// The table.
        slot: Slot,
        /// Wall time since when it is refused; `None` once it is usable again.
        since_ms: Option<u64>,
    },
    /// Log sections of a table were carried into a file of their own.
    Park(Box<ParkedRecord>),
    /// Nobody needs a file of parked sections any more.
    Unpark {
        /// The file.
        number: FileNumber,
    },
    /// When a table's key, or the system key, is to be rotated by itself.
    Schedule {
        /// The table; `None` for the system key.
        slot: Option<Slot>,
        /// The schedule; `None` ends it.
        schedule: Option<Schedule>,
    },
    /// The master key of a table was changed: counts against the limit of changes per day.
    KeyChanged {
        /// The table.
        slot: Slot,
        /// Wall time of the change.
        at_ms: u64,
    },
    /// How far the audit trail had come.
    TrailHead(TrailHead),
    /// The engine was granted the use of a master key.
    Grant(Box<GrantRecord>),
    /// A grant was given up, or taken away.
    GrantEnded {
        /// The master key.
        key_arn: String,
    },
    /// Who created a table.
    Creator {
        /// The table.
        slot: Slot,
        /// The principal, as it is shown.
        principal: String,
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
    /// Its name; shared, since whoever keeps it open needs it too.
    pub(crate) name: Arc<str>,
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
        let name: Arc<str> = reader.string(TABLE_NAME_BYTES_MAX)?.into();
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
    /// The file that contains it: the sorted table's own if it has the table's number, and one of several tables otherwise.
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
    /// The file that it lies in.
    pub(crate) fn file_name(&self) -> FileName {
        match self.extent.container {
            own if own == self.number => FileName::Table(own),
            container => FileName::Container(container),
        }
    }

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
        require(offset_bytes.checked_add(len_bytes).is_some() && (container != number || offset_bytes == 0))?;
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

/// A file of log sections whose table's key was refused when their segment had to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ParkedRecord {
    /// Its number.
    pub(crate) number: FileNumber,
    /// The table.
    pub(crate) slot: Slot,
    /// The salt in its header.
    pub(crate) salt: Salt,
    /// The tag of its last frame.
    pub(crate) final_tag: Tag,
    /// How long it is.
    pub(crate) len_bytes: u64,
    /// The largest sequence number in it.
    pub(crate) last_seq: Seq,
    /// Bytes of sections under each generation of the table's key, in rising order.
    pub(crate) generations: Vec<(Generation, u64)>,
}

impl ParkedRecord {
    /// The file's name.
    pub(crate) fn name(&self) -> FileName {
        FileName::Parked(self.number, self.slot)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.number.0);
        out.put_u32(self.slot.0);
        out.put(self.salt.as_bytes());
        out.put(&self.final_tag);
        out.put_u64(self.len_bytes);
        out.put_u64(self.last_seq.get());
        out.put_varint(self.generations.len() as u64);
        for (generation, bytes) in &self.generations {
            out.put_u32(generation.0);
            out.put_u64(*bytes);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Decoded<ParkedRecord> {
        let number = FileNumber(reader.u64()?);
        let slot = Slot(reader.u32()?);
        let salt = Salt::from_bytes(reader.array()?);
        let final_tag = reader.array()?;
        let len_bytes = reader.u64()?;
        let last_seq = decode_seq(reader)?;
        let count = reader.count(4 + 8)?;
        let mut generations: Vec<(Generation, u64)> = Vec::with_capacity(count);
        for _ in 0..count {
            let generation = Generation(reader.u32()?);
            require(generations.last().is_none_or(|(before, _)| *before < generation))?;
            generations.push((generation, reader.u64()?));
        }
        require(!generations.is_empty())?;
        Ok(ParkedRecord { number, slot, salt, final_tag, len_bytes, last_seq, generations })
    }
}

/// When a key is to be rotated by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Schedule {
    /// How often, in milliseconds; at least 1.
    pub(crate) every_ms: u64,
    /// Wall time of the next rotation.
    pub(crate) next_ms: u64,
}

/// How far the audit trail had come: what is behind may be lost in a crash, what is before may not be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TrailHead {
    /// How many events there were, ever.
    pub(crate) events: u64,
    /// The last one's link of the chain.
    pub(crate) mac: [u8; 32],
    /// Wall time when this was recorded.
    pub(crate) at_ms: u64,
}

/// A grant that lets the engine use a master key on its own account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GrantRecord {
    /// The kind of the master key.
    pub(crate) master: MasterKind,
    /// Its ARN.
    pub(crate) key_arn: String,
    /// The grant's id.
    pub(crate) grant_id: String,
    /// Shows the grant to parts of the provider that have not heard of it yet.
    pub(crate) token: String,
}

impl Edit {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
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
            Edit::Access { slot, since_ms } => {
                out.put_u8(17);
                out.put_u32(slot.0);
                out.put_u64(since_ms.unwrap_or(0));
            }
            Edit::Park(record) => {
                out.put_u8(18);
                record.encode(out);
            }
            Edit::Unpark { number } => {
                out.put_u8(19);
                out.put_u64(number.0);
            }
            Edit::Schedule { slot, schedule } => {
                out.put_u8(20);
                out.put_u32(slot.map_or(0, |slot| slot.0));
                out.put_u64(schedule.map_or(0, |schedule| schedule.every_ms));
                out.put_u64(schedule.map_or(0, |schedule| schedule.next_ms));
            }
            Edit::KeyChanged { slot, at_ms } => {
                out.put_u8(21);
                out.put_u32(slot.0);
                out.put_u64(*at_ms);
            }
            Edit::TrailHead(head) => {
                out.put_u8(22);
                out.put_u64(head.events);
                out.put(&head.mac);
                out.put_u64(head.at_ms);
            }
            Edit::Grant(grant) => {
                out.put_u8(23);
                out.put_u8(grant.master as u8);
                out.put_prefixed(grant.key_arn.as_bytes());
                out.put_prefixed(grant.grant_id.as_bytes());
                out.put_prefixed(grant.token.as_bytes());
            }
            Edit::GrantEnded { key_arn } => {
                out.put_u8(24);
                out.put_prefixed(key_arn.as_bytes());
            }
            Edit::Creator { slot, principal } => {
                out.put_u8(25);
                out.put_u32(slot.0);
                out.put_prefixed(principal.as_bytes());
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Decoded<Edit> {
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
            17 => {
                let slot = Slot(reader.u32()?);
                Edit::Access { slot, since_ms: Some(reader.u64()?).filter(|&ms| ms != 0) }
            }
            18 => Edit::Park(Box::new(ParkedRecord::decode(reader)?)),
            19 => Edit::Unpark { number: FileNumber(reader.u64()?) },
            20 => {
                let slot = Some(Slot(reader.u32()?)).filter(|slot| slot.0 != 0);
                let schedule = match (reader.u64()?, reader.u64()?) {
                    (0, 0) => None,
                    (0, _) => return Err(Refusal::Malformed),
                    (every_ms, next_ms) => Some(Schedule { every_ms, next_ms }),
                };
                Edit::Schedule { slot, schedule }
            }
            21 => Edit::KeyChanged { slot: Slot(reader.u32()?), at_ms: reader.u64()? },
            22 => Edit::TrailHead(TrailHead { events: reader.u64()?, mac: reader.array()?, at_ms: reader.u64()? }),
            23 => Edit::Grant(Box::new(GrantRecord {
                master: decode_number(reader, "master key kind", MasterKind::from_u8)?,
                key_arn: reader.string(KEY_ARN_BYTES_MAX)?,
                grant_id: reader.string(GRANT_TEXT_BYTES_MAX)?,
                token: reader.string(GRANT_TEXT_BYTES_MAX)?,
            })),
            24 => Edit::GrantEnded { key_arn: reader.string(KEY_ARN_BYTES_MAX)? },
            25 => Edit::Creator { slot: Slot(reader.u32()?), principal: reader.string(GRANT_TEXT_BYTES_MAX)? },
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
