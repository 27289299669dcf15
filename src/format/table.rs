//! A sorted table's file: what its frames hold, and how a reader finds its way in.
//!
//! ```text
//! header                    format/frame.rs
//! Data | ValueRun ...       data blocks (block.rs); a value above 64 KiB is a run of ValueRun frames before its block
//! Filter ...                the bloom filter's lines, cut into frames; absent if the table has none
//! Index ...                 blocks whose keys are separators and whose values are handles of data blocks
//! IndexTop ...              the same over Index frames, if there is more than one
//! Properties                fixed size, below
//! Bounds                    smallest and largest user key; a copy of this frame lies in the manifest
//! Footer                    fixed size, below; the last frame
//! ```
//!
//! # Handle of a block (20 bytes, a value of an index block)
//! ```text
//! offset  size  field
//!      0     8  offset_bytes   where the frame begins, from the file's beginning
//!      8     4  len_bytes      the whole frame: head, body, tag
//!     12     8  ordinal        the frame's number in the file
//! ```
//! Its key is a *separator*: at or after the block's last entry, before the next block's first. It is the shortest such user key
//! with the oldest trailer, or the last entry itself where one key's versions go on in the next block.
//!
//! # Pointer to a run (28 bytes, the value of a [`Kind::PutRun`](crate::types::Kind::PutRun))
//! ```text
//! offset  size  field
//!      0     8  first_ordinal
//!      8     8  offset_bytes   of the first frame, from the file's beginning
//!     16     4  len_bytes      of all frames together
//!     20     4  value_bytes    length of the value
//!     24     4  frames         each of the first frames - 1 holds RUN_CHUNK_BYTES of the value, the last the rest
//! ```
//!
//! # Properties
//! ```text
//! offset  size  field
//!      0     1  data_layout    layout of data blocks: 1 = columnar (block.rs)
//!      1     1  index_layout   layout of index blocks: 1 = columnar
//!      2     1  filter         0 = none, 1 = blocked bloom (below)
//!      3     1  comparator     0 = bytes
//!      4     1  suite          as in the header
//!      5     1  compression    of data blocks
//!      6     1  probes         bits set per key; 0 without a filter
//!      7     1  reserved       0
//!      8     8  filter_seed    of the keys' hashes
//!     16     8  filter_lines   lines of 64 bytes
//!     24     8  entries
//!     32     8  keys           different user keys
//!     40     8  tombstones
//!     48     8  raw_bytes      keys and values of all entries, uncompressed
//!     56     8  runs           values that lie outside data blocks
//!     64     8  blocks         data blocks
//!     72     8  seq_min
//!     80     8  seq_max
//! ```
//!
//! # Footer
//! ```text
//! offset  size  field
//!      0     8  frames         in the whole file, this one included
//!      8     8  len_bytes      of the whole file
//!     16   8*32 sections       in the order of their numbers, below; all zero if there is none
//!
//! a section:
//!      0     8  offset_bytes   where its first frame begins
//!      8     8  len_bytes      of all its frames together
//!     16     8  first_ordinal
//!     24     8  frames
//!
//! 0 data   1 filter   2 index   3 index top   4 properties   5 bounds   6 range deletes (reserved)   7 blob references (reserved)
//! ```
//!
//! # Blocked bloom filter
//! One key touches one line of 64 bytes, which is one cache line. Of the key's 64-bit hash (xxh3 under the table's random seed, so that nobody
//! who chooses keys can choose collisions), the upper bits choose the line, and the lower half, multiplied by an odd
//! constant for each probe, gives a bit in its top nine bits.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::crypto::{Suite, Wiped};
use crate::format::block::LAYOUT_COLUMNAR;
use crate::format::codec::{Decoded, Put, Reader, Refusal, require};
use crate::options::Compression;
use crate::types::{KEY_BYTES_MAX, Seq, UserKey, VALUE_BYTES_MAX};

/// Bytes of a value in each frame of a run but the last: a reader holds this much besides the value itself.
pub(crate) const RUN_CHUNK_BYTES: usize = 256 << 10;
/// Bytes of filter in each frame but the last.
pub(crate) const FILTER_CHUNK_BYTES: usize = 512 << 10;
/// An index block is closed at this size, and a table with more than one has a top index.
pub(crate) const INDEX_BLOCK_BYTES: usize = 512 << 10;

/// The hash of a user key, computed once per operation and used by every filter of its table.
#[inline]
pub(crate) fn hash(filter_seed: u64, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, filter_seed)
}

/// Where a block's frame lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle {
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
    pub(crate) ordinal: u64,
}

impl Handle {
    /// Bytes of an encoded handle.
    pub(crate) const BYTES: usize = 20;

    pub(crate) fn encode(&self) -> [u8; Handle::BYTES] {
        let mut bytes = [0; Handle::BYTES];
        bytes[..8].copy_from_slice(&self.offset_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[12..].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes
    }

    /// Where the frame ends; at the end of numbers if it is a handle that makes no sense.
    pub(crate) fn end_bytes(&self) -> u64 {
        self.offset_bytes.saturating_add(u64::from(self.len_bytes))
    }

    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Handle> {
        let mut reader = Reader::new(bytes);
        let handle = Handle { offset_bytes: reader.u64()?, len_bytes: reader.u32()?, ordinal: reader.u64()? };
        reader.finish()?;
        Ok(handle)
    }
}

/// Where a value lies that is too large for a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RunPointer {
    pub(crate) first_ordinal: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
    pub(crate) value_bytes: u32,
    pub(crate) frames: u32,
}

impl RunPointer {
    /// Bytes of an encoded pointer.
    pub(crate) const BYTES: usize = 28;

    pub(crate) fn encode(&self) -> [u8; RunPointer::BYTES] {
        let mut bytes = [0; RunPointer::BYTES];
        bytes[..8].copy_from_slice(&self.first_ordinal.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset_bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.value_bytes.to_le_bytes());
        bytes[24..].copy_from_slice(&self.frames.to_le_bytes());
        bytes
    }

    /// A pointer whose counts agree with one another, so that its lengths may size a buffer.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<RunPointer> {
        let mut reader = Reader::new(bytes);
        let pointer = RunPointer {
            first_ordinal: reader.u64()?,
            offset_bytes: reader.u64()?,
            len_bytes: reader.u32()?,
            value_bytes: reader.u32()?,
            frames: reader.u32()?,
        };
        reader.finish()?;
        require(pointer.value_bytes as usize <= VALUE_BYTES_MAX)?;
        require(
            pointer.frames >= 1 && pointer.frames as usize == (pointer.value_bytes as usize).div_ceil(RUN_CHUNK_BYTES),
        )?;
        Ok(pointer)
    }

    /// Bytes of the value in the `i`-th frame.
    pub(crate) fn chunk_bytes(&self, i: u32) -> usize {
        let before = i as usize * RUN_CHUNK_BYTES;
        (self.value_bytes as usize).saturating_sub(before).min(RUN_CHUNK_BYTES)
    }
}

/// How the keys of a table are filtered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum FilterKind {
    None = 0,
    BlockedBloom = 1,
}

/// What a table says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Properties {
    pub(crate) filter: FilterKind,
    pub(crate) suite: Suite,
    pub(crate) compression: Compression,
    pub(crate) probes: u8,
    pub(crate) filter_seed: u64,
    pub(crate) filter_lines: u64,
    pub(crate) entries: u64,
    pub(crate) keys: u64,
    pub(crate) tombstones: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) runs: u64,
    pub(crate) blocks: u64,
    pub(crate) seq_min: Seq,
    pub(crate) seq_max: Seq,
}

/// The one order of keys there is.
const COMPARATOR_BYTES: u8 = 0;

impl Properties {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(88);
        out.put_u8(LAYOUT_COLUMNAR);
        out.put_u8(LAYOUT_COLUMNAR);
        out.put_u8(self.filter as u8);
        out.put_u8(COMPARATOR_BYTES);
        out.put_u8(self.suite as u8);
        out.put_u8(self.compression as u8);
        out.put_u8(self.probes);
        out.put_reserved::<1>();
        out.put_u64(self.filter_seed);
        out.put_u64(self.filter_lines);
        out.put_u64(self.entries);
        out.put_u64(self.keys);
        out.put_u64(self.tombstones);
        out.put_u64(self.raw_bytes);
        out.put_u64(self.runs);
        out.put_u64(self.blocks);
        out.put_u64(self.seq_min.get());
        out.put_u64(self.seq_max.get());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Properties> {
        let mut reader = Reader::new(bytes);
        known("layout of data blocks", reader.u8()?, LAYOUT_COLUMNAR)?;
        known("layout of index blocks", reader.u8()?, LAYOUT_COLUMNAR)?;
        let filter = match reader.u8()? {
            0 => FilterKind::None,
            1 => FilterKind::BlockedBloom,
            number => return Err(Refusal::Unknown { what: "filter", number: number.into() }),
        };
        known("comparator", reader.u8()?, COMPARATOR_BYTES)?;
        let suite = reader.u8()?;
        let suite = Suite::from_u8(suite).ok_or(Refusal::Unknown { what: "suite", number: suite.into() })?;
        let compression = reader.u8()?;
        let compression = Compression::from_u8(compression)
            .ok_or(Refusal::Unknown { what: "compression", number: compression.into() })?;
        let probes = reader.u8()?;
        reader.reserved::<1>()?;
        let properties = Properties {
            filter,
            suite,
            compression,
            probes,
            filter_seed: reader.u64()?,
            filter_lines: reader.u64()?,
            entries: reader.u64()?,
            keys: reader.u64()?,
            tombstones: reader.u64()?,
            raw_bytes: reader.u64()?,
            runs: reader.u64()?,
            blocks: reader.u64()?,
            seq_min: seq(reader.u64()?)?,
            seq_max: seq(reader.u64()?)?,
        };
        reader.finish()?;
        match filter {
            FilterKind::None => require(probes == 0 && properties.filter_lines == 0)?,
            FilterKind::BlockedBloom => require((1..=PROBES_MAX).contains(&probes) && properties.filter_lines > 0)?,
        }
        Ok(properties)
    }
}

fn known(what: &'static str, number: u8, only: u8) -> Decoded<()> {
    if number == only { Ok(()) } else { Err(Refusal::Unknown { what, number: number.into() }) }
}

fn seq(raw: u64) -> Decoded<Seq> {
    Seq::new(raw).ok_or(Refusal::Malformed)
}

/// A row of frames with one purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Section {
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    pub(crate) first_ordinal: u64,
    pub(crate) frames: u64,
}

impl Section {
    /// Whether the table has such a section at all.
    pub(crate) fn is_there(&self) -> bool {
        self.frames > 0
    }
}

/// The directory at a table's end.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Footer {
    pub(crate) frames: u64,
    pub(crate) len_bytes: u64,
    pub(crate) data: Section,
    pub(crate) filter: Section,
    pub(crate) index: Section,
    pub(crate) index_top: Section,
    pub(crate) properties: Section,
    pub(crate) bounds: Section,
}

impl Footer {
    /// Bytes of an encoded footer: two numbers and eight sections of four.
    pub(crate) const BYTES: usize = 16 + 8 * 32;

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Footer::BYTES);
        out.put_u64(self.frames);
        out.put_u64(self.len_bytes);
        for section in self.sections() {
            out.put_u64(section.offset_bytes);
            out.put_u64(section.len_bytes);
            out.put_u64(section.first_ordinal);
            out.put_u64(section.frames);
        }
        out.put_reserved::<64>();
        out
    }

    /// A footer whose sections follow each other without a gap from the first frame, at `header_bytes`, to the footer.
    pub(crate) fn decode(bytes: &[u8], header_bytes: u64) -> Decoded<Footer> {
        let mut reader = Reader::new(bytes);
        let (frames, len_bytes) = (reader.u64()?, reader.u64()?);
        let mut section = || -> Decoded<Section> {
            Ok(Section {
                offset_bytes: reader.u64()?,
                len_bytes: reader.u64()?,
                first_ordinal: reader.u64()?,
                frames: reader.u64()?,
            })
        };
        let footer = Footer {
            frames,
            len_bytes,
            data: section()?,
            filter: section()?,
            index: section()?,
            index_top: section()?,
            properties: section()?,
            bounds: section()?,
        };
        if reader.rest().iter().any(|&byte| byte != 0) {
            return Err(Refusal::Unknown { what: "section of a sorted table", number: 6 });
        }
        reader.reserved::<64>()?;
        reader.finish()?;
        footer.check_gapless(header_bytes)?;
        Ok(footer)
    }

    fn sections(&self) -> [Section; 6] {
        [self.data, self.filter, self.index, self.index_top, self.properties, self.bounds]
    }

    fn check_gapless(&self, header_bytes: u64) -> Decoded<()> {
        let (mut offset_bytes, mut ordinal) = (header_bytes, 0u64);
        for section in self.sections() {
            if !section.is_there() {
                require(section == Section::default())?;
                continue;
            }
            require(section.offset_bytes == offset_bytes && section.first_ordinal == ordinal)?;
            offset_bytes = offset_bytes.checked_add(section.len_bytes).ok_or(Refusal::Malformed)?;
            ordinal = ordinal.checked_add(section.frames).ok_or(Refusal::Malformed)?;
        }
        // The footer is the one frame that follows.
        require(ordinal.checked_add(1) == Some(self.frames) && offset_bytes < self.len_bytes)?;
        require(self.data.is_there() && self.index.is_there())?;
        require(self.index_top.is_there() == (self.index.frames > 1) && self.index_top.frames <= self.index.frames)?;
        require(self.properties.frames == 1 && self.bounds.frames == 1)
    }
}

/// The payload of a frame of bounds.
pub(crate) fn encode_bounds(smallest: &[u8], largest: &[u8]) -> Wiped {
    let mut out = Wiped::with_capacity(smallest.len() + largest.len() + 6);
    out.put_prefixed(smallest);
    out.put_prefixed(largest);
    out
}

/// Smallest and largest user key.
pub(crate) fn decode_bounds(bytes: &[u8]) -> Decoded<(UserKey, UserKey)> {
    let mut reader = Reader::new(bytes);
    let smallest = reader.prefixed(KEY_BYTES_MAX)?;
    let largest = reader.prefixed(KEY_BYTES_MAX)?;
    reader.finish()?;
    require(!smallest.is_empty() && smallest <= largest)?;
    Ok((smallest.into(), largest.into()))
}

/// The shortest key at or after `last` and before `next`, which come in this order: what an index needs of them.
pub(crate) fn separator<'a>(last: &'a [u8], next: &'a [u8]) -> &'a [u8] {
    let common = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    // `next` up to and with the first byte that differs is after `last`, and before `next` unless that is all of it.
    match next.get(..common + 1) {
        Some(shortest) if shortest.len() < next.len() && shortest.len() < last.len() => shortest,
        _ => last,
    }
}

/// Bits set per key at most, whatever the setting.
const PROBES_MAX: u8 = 12;

/// One cache line of a filter.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

/// A blocked bloom filter: says "not here" for certain, "here" wrongly about once in a hundred.
pub(crate) struct Filter {
    lines: Box<[Line]>,
    probes: u8,
}

impl Filter {
    /// The filter of keys with these hashes.
    ///
    /// `None` for 0 bits per key, or for no keys.
    pub(crate) fn build(hashes: &[u64], bits_per_key: u8) -> Option<Filter> {
        if hashes.is_empty() || bits_per_key == 0 {
            return None;
        }
        let lines = (hashes.len() as u64 * u64::from(bits_per_key)).div_ceil(512);
        // ln 2 bits per bit and key would be right for a filter without lines; lines fill unevenly, so a little less.
        let probes = (u32::from(bits_per_key) * 6 / 10).clamp(1, u32::from(PROBES_MAX)) as u8;
        let mut filter = Filter { lines: vec![Line([0; 8]); lines as usize].into_boxed_slice(), probes };
        for &hash in hashes {
            filter.insert(hash);
        }
        Some(filter)
    }

    /// The filter whose lines are these bytes.
    pub(crate) fn from_bytes(chunks: &[impl AsRef<[u8]>], properties: &Properties) -> Decoded<Filter> {
        let len_bytes: usize = chunks.iter().map(|chunk| chunk.as_ref().len()).sum();
        require(properties.filter_lines.checked_mul(64) == Some(len_bytes as u64))?;
        require(chunks.iter().all(|chunk| chunk.as_ref().len().is_multiple_of(64)))?;
        let words = |line: &[u8]| {
            let mut words = [0; 8];
            for (word, bytes) in words.iter_mut().zip(line.chunks_exact(8)) {
                *word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            }
            Line(words)
        };
        let lines = chunks.iter().flat_map(|chunk| chunk.as_ref().chunks_exact(64)).map(words).collect();
        Ok(Filter { lines, probes: properties.probes })
    }

    /// The lines' bytes, in pieces that each fit a frame.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Vec<u8>> {
        self.lines.chunks(FILTER_CHUNK_BYTES / 64).map(|lines| {
            let mut bytes = Vec::with_capacity(lines.len() * 64);
            lines.iter().flat_map(|line| line.0).for_each(|word| bytes.put_u64(word));
            bytes
        })
    }

    /// Lines of 64 bytes.
    pub(crate) fn lines(&self) -> u64 {
        self.lines.len() as u64
    }

    /// Bits set per key.
    pub(crate) fn probes(&self) -> u8 {
        self.probes
    }

    /// Memory that the filter holds.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Whether a key with this hash may be in the table; if not, it certainly is not.
    #[inline]
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        let Some(line) = self.lines.get(self.line_of(hash)) else { return true };
        probes(hash, self.probes).all(|(word, bit)| line.0[word] & bit != 0)
    }

    fn insert(&mut self, hash: u64) {
        let i = self.line_of(hash);
        if let Some(line) = self.lines.get_mut(i) {
            probes(hash, self.probes).for_each(|(word, bit)| line.0[word] |= bit);
        }
    }

    /// The hash as a fraction of 2^64, scaled to the number of lines: its upper bits decide.
    #[inline]
    fn line_of(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.lines.len() as u128) >> 64) as usize
    }
}

/// The bits of a hash within its line: word and mask.
#[inline]
fn probes(hash: u64, count: u8) -> impl Iterator<Item = (usize, u64)> {
    let mut low = hash as u32;
    (0..count).map(move |_| {
        low = low.wrapping_mul(0x9e37_79b9);
        // The top nine bits number one of the line's 512.
        let bit = low >> 23;
        ((bit >> 6) as usize, 1u64 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_in_the_filter_is_never_denied(keys: Vec<Vec<u8>>, seed: u64, bits in 1u8..33) {
            // A failure would make a value that was written unreadable.
            let hashes: Vec<u64> = keys.iter().map(|key| hash(seed, key)).collect();
            if let Some(filter) = Filter::build(&hashes, bits) {
                let properties = Properties {
                    filter_lines: filter.lines(), probes: filter.probes(), ..properties()
                };
                let chunks: Vec<Vec<u8>> = filter.chunks().collect();
                let again = Filter::from_bytes(&chunks, &properties).unwrap();
                prop_assert!(hashes.iter().all(|&hash| filter.may_hold(hash) && again.may_hold(hash)));
            }
        }

        #[test]
        fn a_separator_is_between_its_keys_and_no_longer_than_the_first(a: Vec<u8>, b: Vec<u8>) {
            // A failure would send a search to the wrong block.
            let (last, next) = if a < b { (&a, &b) } else { (&b, &a) };
            prop_assume!(last != next);
            let separator = separator(last, next);
            prop_assert!(&last[..] <= separator && separator < &next[..] && separator.len() <= last.len());
        }

        #[test]
        fn arbitrary_bytes_decode_to_a_refusal_or_back_to_themselves(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(properties) = Properties::decode(&bytes) {
                prop_assert_eq!(properties.encode(), &bytes[..]);
            }
            if let Ok(footer) = Footer::decode(&bytes, 100) {
                prop_assert_eq!(footer.encode(), &bytes[..]);
            }
            if let Ok(pointer) = RunPointer::decode(&bytes) {
                prop_assert_eq!(&pointer.encode()[..], &bytes[..]);
            }
            if let Ok((smallest, largest)) = decode_bounds(&bytes) {
                prop_assert_eq!(&*encode_bounds(&smallest, &largest), &bytes[..]);
            }
        }
    }

    fn properties() -> Properties {
        Properties {
            filter: FilterKind::BlockedBloom,
            suite: Suite::Aes256Gcm,
            compression: Compression::Lz4,
            probes: 6,
            filter_seed: 7,
            filter_lines: 1,
            entries: 3,
            keys: 2,
            tombstones: 1,
            raw_bytes: 30,
            runs: 0,
            blocks: 1,
            seq_min: Seq::ZERO,
            seq_max: Seq::MAX,
        }
    }

    #[test]
    fn ten_bits_per_key_answer_wrongly_at_most_once_in_seventy() {
        // A failure would cost a block read for many keys that are not there.
        let hashes: Vec<u64> = (0..100_000u64).map(|i| hash(1, &i.to_be_bytes())).collect();
        let filter = Filter::build(&hashes, 10).unwrap();
        let wrong = (0..100_000u64).filter(|i| filter.may_hold(hash(1, &(i + 1_000_000).to_be_bytes()))).count();
        assert!(wrong < 100_000 / 70, "{wrong} of 100,000");
    }

    #[test]
    fn properties_of_unknown_layout_filter_or_order_are_refused() {
        let good = properties().encode();
        assert_eq!(Properties::decode(&good), Ok(properties()));
        for place in [0, 1, 2, 3, 4, 5] {
            let mut bytes = good.clone();
            bytes[place] = 0x7f;
            assert!(matches!(Properties::decode(&bytes), Err(Refusal::Unknown { .. })), "byte {place}");
        }
    }

    #[test]
    fn a_footer_with_a_gap_an_overlap_or_a_reserved_section_is_refused() {
        let section =
            |offset_bytes, len_bytes, first_ordinal, frames| Section { offset_bytes, len_bytes, first_ordinal, frames };
        let good = Footer {
            frames: 6,
            len_bytes: 1000,
            data: section(100, 200, 0, 2),
            filter: Section::default(),
            index: section(300, 50, 2, 1),
            index_top: Section::default(),
            properties: section(350, 100, 3, 1),
            bounds: section(450, 100, 4, 1),
        };
        assert_eq!(Footer::decode(&good.encode(), 100), Ok(good.clone()));
        assert_eq!(good.encode().len(), Footer::BYTES);
        let gap = Footer { index: section(301, 49, 2, 1), ..good.clone() };
        assert!(Footer::decode(&gap.encode(), 100).is_err());
        let miscounted = Footer { frames: 7, ..good.clone() };
        assert!(Footer::decode(&miscounted.encode(), 100).is_err());
        let mut reserved = good.encode();
        reserved[16 + 6 * 32] = 1;
        assert!(matches!(Footer::decode(&reserved, 100), Err(Refusal::Unknown { .. })));
    }
}
