//! Key/value block: the columns in which entries lie in a sorted table, and in which its index lies too.
//!
//! ```text
//! offset  size  field         meaning
//!      0     4  entries       number of entries n, at least 1 (u32 LE)
//!      4     2  flags         below (u16 LE); bits not named must be 0
//!      6     2  prefix_len    bytes that all keys begin with (u16 LE)
//!      8     8  seq_base      smallest sequence number (u64 LE)
//!     16     4  suffix_len    bytes of the suffix column (u32 LE)
//!     20     4  value_len     bytes of the value column (u32 LE)
//!     24     p  prefix        p = prefix_len
//!            .  suffix_offset n + 1 offsets into the suffix column, 2 or 4 bytes each; absent if uniform
//!            .  suffix        what is left of each key behind the prefix
//!            .  seq_delta     n numbers above seq_base, 1, 2, 4 or 8 bytes each; absent if all are 0
//!            .  kind          n bytes; absent if all are puts
//!            .  value_offset  n + 1 offsets into the value column, 2 or 4 bytes each; absent if uniform
//!            .  value         the values
//!
//! bit  flag            meaning
//!   0  UNIQUE_KEYS     no key has two versions in this block
//!   1  ALL_PUTS        no kind column: every entry is a put
//!   2  SUFFIX_UNIFORM  no suffix_offset: every suffix is suffix_len / n bytes long
//!   3  VALUE_UNIFORM   no value_offset: every value is value_len / n bytes long
//!   4  SUFFIX_WIDE     suffix offsets have 4 bytes, not 2
//!   5  VALUE_WIDE      value offsets have 4 bytes, not 2
//! 6-8  delta width     0: no seq_delta; 1, 2, 3, 4: 1, 2, 4, 8 bytes
//! ```
//!
//! Columns instead of records one after the other: the n-th key, in either direction, is two loads and a
//! subtraction, with nothing to decode and nothing to restart from, and a search touches keys only.
//!
//! Entries are in the engine's order (key ascending, trailer descending). [`Block::parse`] checks every length and offset
//! once; what comes after is arithmetic, and an index past the end reads as an empty entry, never as a panic. That the
//! *order* is right is for the sorted table's `verify`: a block that is not in order is authentic nonsense, harmless to memory.

use crate::crypto::{Authentic, Wiped};
use crate::error::Result;
use crate::format::codec::Where;
use crate::types::{KEY_BYTES_MAX, Kind, Seq, Trailer};
use crate::value::Backing;
use zeroize::Zeroize;

/// The number of this layout in a table's properties. Reaches the disk: never reused.
pub(crate) const LAYOUT_COLUMNAR: u8 = 1;
/// Bytes before the prefix.
const HEAD_BYTES: usize = 24;

/// Bytes of a line of the CPU's cache, and how many of keys are asked for before a search: more than lines that are waited for at once gain nothing.
const LINE_BYTES: usize = 64;
const WARM_BYTES_MAX: usize = 8 * LINE_BYTES;

const UNIQUE_KEYS: u16 = 1 << 0;
const ALL_PUTS: u16 = 1 << 1;
const SUFFIX_UNIFORM: u16 = 1 << 2;
const VALUE_UNIFORM: u16 = 1 << 3;
const SUFFIX_WIDE: u16 = 1 << 4;
const VALUE_WIDE: u16 = 1 << 5;
const DELTA_WIDTH_SHIFT: u16 = 6;
const FLAGS_KNOWN: u16 = (1 << 9) - 1;

/// An opened and checked block.
pub(crate) struct Block {
    bytes: Authentic<Wiped>,
    layout: Layout,
    /// The first eight bytes of every suffix, for blocks that are searched so often that it pays: the index.
    heads: Box<[u64]>,
}

impl Block {
    /// The block in these bytes.
    ///
    /// # Errors
    /// `Tampered` if any length, offset, flag or kind is not what a builder writes: the bytes were sealed, so somebody
    /// sealed nonsense.
    pub(crate) fn parse(bytes: Authentic<Wiped>, at: &Where<'_>) -> Result<Block> {
        let layout = Layout::parse(&bytes).map_err(|detail| at.tampered(detail))?;
        Ok(Block { bytes, layout, heads: Box::default() })
    }

    /// The same block, with eight bytes of each key copied out, so that a search reads one dense array.
    pub(crate) fn with_heads(mut self) -> Block {
        self.heads = (0..self.len()).map(|i| self.layout.suffix_head(&self.bytes, i)).collect();
        self
    }

    /// Take the buffer, wiped, to be used again. What is left of the block is empty, and for nothing but to be dropped.
    pub(crate) fn take_buffer(&mut self) -> Wiped {
        let mut buffer = self.bytes.take();
        buffer.reset(usize::MAX);
        buffer
    }

    /// Number of entries, at least 1.
    pub(crate) fn len(&self) -> usize {
        self.layout.entries()
    }

    /// Memory that this block holds.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Block>() + self.bytes.capacity_bytes() + self.heads.len() * size_of::<u64>()
    }

    /// What all keys begin with.
    pub(crate) fn key_prefix(&self) -> &[u8] {
        self.layout.prefix(&self.bytes)
    }

    /// What is left of the `i`-th key behind the prefix.
    #[inline]
    pub(crate) fn suffix(&self, i: usize) -> &[u8] {
        self.layout.suffixes.item(&self.bytes, i)
    }

    /// Sequence number and kind of the `i`-th entry.
    #[inline]
    pub(crate) fn trailer(&self, i: usize) -> Trailer {
        self.layout.trailer(&self.bytes, i)
    }

    /// What the `i`-th entry is.
    #[inline]
    pub(crate) fn kind(&self, i: usize) -> Kind {
        self.layout.kind(&self.bytes, i)
    }

    /// Whether every entry is a put with its value in the block, of a key of its own, that a reader at `seq` sees.
    #[inline]
    pub(crate) fn is_plain(&self, seq: Seq) -> bool {
        self.layout.unique_keys && self.layout.kinds.is_none() && self.layout.seq_max <= seq
    }

    /// The `i`-th value: the bytes of a put, nothing for a delete, a pointer for a run.
    #[inline]
    pub(crate) fn value(&self, i: usize) -> &[u8] {
        self.layout.values.item(&self.bytes, i)
    }

    /// Where the `i`-th value lies in [`Backing::bytes`]: start and length, always inside.
    #[inline]
    pub(crate) fn value_range(&self, i: usize) -> (usize, usize) {
        let (start, end) = self.layout.values.range(&self.bytes, i);
        let end = end.min(self.bytes.len());
        (start.min(end), end - start.min(end))
    }

    /// Whether the `i`-th key is `key`.
    #[inline]
    pub(crate) fn key_is(&self, i: usize, key: &[u8]) -> bool {
        i < self.len() && key.strip_prefix(self.key_prefix()).is_some_and(|rest| rest == self.suffix(i))
    }

    /// Whether no key has two versions in this block.
    pub(crate) fn unique_keys(&self) -> bool {
        self.layout.unique_keys
    }

    /// The first entry at or after (`key`, `trailer`); [`Block::len`] if there is none.
    #[inline]
    pub(crate) fn lower_bound(&self, key: &[u8], trailer: Trailer) -> usize {
        if self.heads.is_empty() {
            self.layout.warm(&self.bytes);
        }
        let prefix = self.key_prefix();
        let Some(rest) = key.strip_prefix(prefix) else {
            // Every key begins with the prefix, so that all of them lie on one side of this one.
            return if key < prefix { 0 } else { self.len() };
        };
        let rest_head = head(rest);
        let (low, high) = if self.heads.is_empty() {
            (0, self.len())
        } else {
            // Equal heads decide nothing; only among those, which are seldom more than one, is the column itself read.
            let low = self.heads.partition_point(|&head| head < rest_head);
            let equal = match self.heads.get(low..) {
                Some(heads @ [first, ..]) if *first == rest_head => heads.partition_point(|&head| head == rest_head),
                _ => 0,
            };
            (low, low + equal)
        };
        self.layout.lower_bound(&self.bytes, low, high, rest, rest_head, trailer)
    }

    /// Whether entries are in order and the flag on unique keys is true: what [`Block::parse`] leaves to `verify`.
    pub(crate) fn is_ordered(&self) -> bool {
        let ordered = |i: usize| {
            let same_key = self.suffix(i - 1) == self.suffix(i);
            self.suffix(i - 1) < self.suffix(i)
                || same_key && !self.unique_keys() && self.trailer(i - 1) > self.trailer(i)
        };
        (1..self.len()).all(ordered)
    }
}

impl Backing for Block {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // The heads are plaintext too; `bytes` wipes itself.
        self.heads.zeroize();
    }
}

/// First eight bytes in an order-preserving number, padded with zeros: unequal heads order their keys, equal ones say nothing.
#[inline]
pub(crate) fn head(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut padded = [0; 8];
            padded.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
            u64::from_be_bytes(padded)
        }
    }
}

/// Where the columns of a block lie: everything that a search needs, checked against the bytes once. In narrow numbers, because a search that finds its block in
/// memory mostly waits for memory, and this is one of the lines that it waits for.
struct Layout {
    entries: u32,
    prefix_len: u16,
    unique_keys: bool,
    seq_base: u64,
    /// Of the newest entry.
    seq_max: Seq,
    suffixes: Column,
    deltas: Numbers,
    /// Where the kinds begin; `None` if all are puts.
    kinds: Option<u32>,
    values: Column,
}

impl Layout {
    fn parse(bytes: &[u8]) -> Result<Layout, &'static str> {
        let mut taker = Taker { bytes, at: 0 };
        let head = taker.bytes::<HEAD_BYTES>()?;
        let entries = u32_of(head, 0) as usize;
        let flags = u16_of(head, 4);
        let prefix_len = usize::from(u16_of(head, 6));
        let seq_base = u64_of(head, 8);
        let suffix_len = u32_of(head, 16) as usize;
        let value_len = u32_of(head, 20) as usize;
        if u32::try_from(bytes.len()).is_err() {
            return Err("a block of more bytes than a frame");
        }
        if entries == 0 {
            return Err("a block without entries");
        }
        if entries > bytes.len() {
            // Two entries differ in their suffix or in their sequence number, so that each has a byte of its own
            // somewhere. Said here, because columns of no width would let a few bytes stand for billions of entries.
            return Err("a block with more entries than bytes");
        }
        if flags & !FLAGS_KNOWN != 0 {
            return Err("a block with unknown flags");
        }

        taker.skip(prefix_len)?;
        let suffixes = taker.column(entries, suffix_len, flags & SUFFIX_UNIFORM != 0, flags & SUFFIX_WIDE != 0)?;
        let deltas = taker.deltas(entries, flags >> DELTA_WIDTH_SHIFT)?;
        let kinds = if flags & ALL_PUTS != 0 { None } else { Some(taker.skip(entries)? as u32) };
        let values = taker.column(entries, value_len, flags & VALUE_UNIFORM != 0, flags & VALUE_WIDE != 0)?;
        if taker.at != bytes.len() {
            return Err("a block with bytes behind its last column");
        }

        let mut layout = Layout {
            // At most as many as bytes, of which there are fewer than 2^32; as is every place below.
            entries: entries as u32,
            prefix_len: prefix_len as u16,
            unique_keys: flags & UNIQUE_KEYS != 0,
            seq_base,
            seq_max: Seq::MAX,
            suffixes,
            deltas,
            kinds,
            values,
        };
        layout.seq_max = layout.check(bytes)?;
        Ok(layout)
    }

    /// Offsets within their columns, lengths of keys, sequence numbers, kinds. Gives the newest sequence number.
    fn check(&self, bytes: &[u8]) -> Result<Seq, &'static str> {
        let (suffix_min, suffix_max) = self.suffixes.lengths(bytes, self.entries())?;
        self.values.lengths(bytes, self.entries())?;
        if self.prefix_len() + suffix_min == 0 || self.prefix_len() + suffix_max > KEY_BYTES_MAX {
            return Err("a block with a key of impossible length");
        }
        let delta_max = (0..self.entries()).map(|i| self.deltas.at(bytes, i)).max().unwrap_or(0);
        let seq_max = self.seq_base.checked_add(delta_max).and_then(Seq::new);
        let seq_max = seq_max.ok_or("a block with a sequence number beyond the last")?;
        if let Some(start) = self.kinds {
            let start = start as usize;
            let kinds = bytes.get(start..start + self.entries()).unwrap_or(&[]);
            if kinds.iter().any(|&kind| Kind::from_u8(kind).is_none()) {
                return Err("a block with an unknown kind of entry");
            }
        }
        Ok(seq_max)
    }

    #[inline]
    fn entries(&self) -> usize {
        self.entries as usize
    }

    #[inline]
    fn prefix_len(&self) -> usize {
        usize::from(self.prefix_len)
    }

    #[inline]
    fn prefix<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(HEAD_BYTES..HEAD_BYTES + self.prefix_len()).unwrap_or(&[])
    }

    /// Ask for the memory that a search in the keys goes through, all of it at once: line by line, each would be waited for before the next is known.
    #[inline]
    fn warm(&self, bytes: &[u8]) {
        let end = (self.values.start as usize).min(WARM_BYTES_MAX).min(bytes.len());
        let lines = bytes[..end].iter().step_by(LINE_BYTES);
        // Nobody needs the sum, so that nobody waits for it.
        std::hint::black_box(lines.fold(0, |sum, byte| sum ^ byte));
    }

    #[inline]
    fn kind(&self, bytes: &[u8], i: usize) -> Kind {
        match self.kinds {
            None => Kind::Put,
            Some(start) => bytes.get(start as usize + i).and_then(|&kind| Kind::from_u8(kind)).unwrap_or(Kind::Delete),
        }
    }

    #[inline]
    fn trailer(&self, bytes: &[u8], i: usize) -> Trailer {
        let seq = Seq::new(self.seq_base + self.deltas.at(bytes, i)).unwrap_or(Seq::MAX);
        Trailer::new(seq, self.kind(bytes, i))
    }

    #[inline]
    fn lower_bound(
        &self,
        bytes: &[u8],
        mut low: usize,
        mut high: usize,
        rest: &[u8],
        rest_head: u64,
        trailer: Trailer,
    ) -> usize {
        while low < high {
            let middle = low + (high - low) / 2;
            if self.is_before(bytes, middle, rest, rest_head, trailer) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Whether the `i`-th entry comes before (`rest`, `trailer`).
    #[inline]
    fn is_before(&self, bytes: &[u8], i: usize, rest: &[u8], rest_head: u64, trailer: Trailer) -> bool {
        let suffix_head = self.suffix_head(bytes, i);
        if suffix_head != rest_head {
            return suffix_head < rest_head;
        }
        match self.suffixes.item(bytes, i).cmp(rest) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => self.trailer(bytes, i) > trailer,
        }
    }

    /// [`head`] of the `i`-th suffix, with one load wherever eight bytes can be read at all.
    #[inline]
    fn suffix_head(&self, bytes: &[u8], i: usize) -> u64 {
        let (start, end) = self.suffixes.range(bytes, i);
        let len = end.saturating_sub(start);
        match bytes.get(start..).and_then(|tail| tail.first_chunk::<8>()) {
            Some(first) if len >= 8 => u64::from_be_bytes(*first),
            // Bytes of the neighbour are masked away.
            Some(first) if len > 0 => u64::from_be_bytes(*first) & (u64::MAX << (64 - 8 * len)),
            Some(_) => 0,
            None => head(bytes.get(start..end).unwrap_or(&[])),
        }
    }
}

/// A column of byte strings.
struct Column {
    /// Where its bytes begin in the block.
    start: u32,
    len: u32,
    offsets: Offsets,
}

enum Offsets {
    /// Every item has this length.
    Uniform(u32),
    /// 16-bit offsets that begin here in the block.
    Narrow(u32),
    /// 32-bit offsets that begin here in the block.
    Wide(u32),
}

impl Column {
    #[inline]
    fn offset(&self, bytes: &[u8], i: usize) -> usize {
        match self.offsets {
            Offsets::Uniform(len) => i * len as usize,
            Offsets::Narrow(start) => usize::from(u16_of(bytes, start as usize + 2 * i)),
            Offsets::Wide(start) => u32_of(bytes, start as usize + 4 * i) as usize,
        }
    }

    /// Where the `i`-th item begins and ends in the block.
    #[inline]
    fn range(&self, bytes: &[u8], i: usize) -> (usize, usize) {
        (self.start as usize + self.offset(bytes, i), self.start as usize + self.offset(bytes, i + 1))
    }

    #[inline]
    fn item<'a>(&self, bytes: &'a [u8], i: usize) -> &'a [u8] {
        let (start, end) = self.range(bytes, i);
        bytes.get(start..end).unwrap_or(&[])
    }

    /// Shortest and longest of `items`, or what is wrong with the offsets.
    fn lengths(&self, bytes: &[u8], items: usize) -> Result<(usize, usize), &'static str> {
        if let Offsets::Uniform(len) = self.offsets {
            return Ok((len as usize, len as usize));
        }
        let mut before = self.offset(bytes, 0);
        let (mut min, mut max) = (usize::MAX, 0);
        if before != 0 {
            return Err("a block whose column does not begin at its beginning");
        }
        for i in 1..=items {
            let offset = self.offset(bytes, i);
            let len = offset.checked_sub(before).ok_or("a block with an offset that goes back")?;
            (min, max) = (min.min(len), max.max(len));
            before = offset;
        }
        if before != self.len as usize {
            return Err("a block whose column does not end at its end");
        }
        Ok((min, max))
    }
}

/// A column of numbers of one width.
struct Numbers {
    start: u32,
    width: u8,
}

impl Numbers {
    #[inline]
    fn at(&self, bytes: &[u8], i: usize) -> u64 {
        let at = self.start as usize + i * usize::from(self.width);
        match self.width {
            0 => 0,
            1 => bytes.get(at).map_or(0, |&byte| u64::from(byte)),
            2 => u64::from(u16_of(bytes, at)),
            4 => u64::from(u32_of(bytes, at)),
            _ => u64_of(bytes, at),
        }
    }
}

/// Walks over the columns; every length is checked against what is there before it is believed.
struct Taker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Taker<'a> {
    /// Where the next `len` bytes begin.
    fn skip(&mut self, len: usize) -> Result<usize, &'static str> {
        let start = self.at;
        match start.checked_add(len) {
            Some(end) if end <= self.bytes.len() => self.at = end,
            _ => return Err("a block shorter than its columns"),
        }
        Ok(start)
    }

    fn bytes<const N: usize>(&mut self) -> Result<&'a [u8; N], &'static str> {
        let start = self.skip(N)?;
        self.bytes.get(start..).and_then(|tail| tail.first_chunk()).ok_or("a block shorter than its columns")
    }

    fn column(&mut self, items: usize, len: usize, uniform: bool, wide: bool) -> Result<Column, &'static str> {
        let offsets = match (uniform, wide) {
            (true, false) if len.is_multiple_of(items) => Offsets::Uniform((len / items) as u32),
            (true, _) => return Err("a block with a uniform column that does not divide"),
            (false, false) => Offsets::Narrow(self.skip((items + 1) * 2)? as u32),
            (false, true) => Offsets::Wide(self.skip((items + 1) * 4)? as u32),
        };
        Ok(Column { start: self.skip(len)? as u32, len: len as u32, offsets })
    }

    fn deltas(&mut self, items: usize, code: u16) -> Result<Numbers, &'static str> {
        let width = match code {
            0 => 0,
            1..=4 => 1 << (code - 1),
            _ => return Err("a block with unknown flags"),
        };
        Ok(Numbers { start: self.skip(items * width)? as u32, width: width as u8 })
    }
}

// Little-endian numbers at a place that was checked; 0 past the end.

#[inline]
fn u16_of(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

#[inline]
fn u32_of(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[inline]
fn u64_of(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Gathers entries in order and lays them out as a block. Reused from block to block.
#[derive(Default)]
pub(crate) struct BlockBuilder {
    /// Whole keys, one after the other: the prefix is known only at the end.
    keys: Wiped,
    key_ends: Vec<u32>,
    values: Wiped,
    value_ends: Vec<u32>,
    trailers: Vec<Trailer>,
    shape: Shape,
    encoded: Wiped,
}

/// What the size of a block depends on, kept up to date entry by entry.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shape {
    entries: usize,
    key_bytes: usize,
    value_bytes: usize,
    /// Common prefix of all keys. Keys are in order, so that it is the first one's and the last one's.
    prefix_len: usize,
    /// The common length of all keys, if there is one.
    key_len: Option<usize>,
    value_len: Option<usize>,
    seq_min: u64,
    seq_max: u64,
    all_puts: bool,
    unique_keys: bool,
}

impl Shape {
    fn with(self, first: Option<&[u8]>, last: Option<&[u8]>, key: &[u8], trailer: Trailer, value_len: usize) -> Shape {
        let seq = trailer.seq().get();
        let is_put = trailer.kind() == Kind::Put;
        let Some(first) = first else {
            return Shape {
                entries: 1,
                key_bytes: key.len(),
                value_bytes: value_len,
                prefix_len: key.len(),
                key_len: Some(key.len()),
                value_len: Some(value_len),
                seq_min: seq,
                seq_max: seq,
                all_puts: is_put,
                unique_keys: true,
            };
        };
        Shape {
            entries: self.entries + 1,
            key_bytes: self.key_bytes + key.len(),
            value_bytes: self.value_bytes + value_len,
            // Most keys share the prefix of those before, which is one comparison.
            prefix_len: match key.get(..self.prefix_len) {
                Some(head) if head == &first[..self.prefix_len] => self.prefix_len,
                _ => first.iter().zip(key).take(self.prefix_len).take_while(|(a, b)| a == b).count(),
            },
            key_len: self.key_len.filter(|&len| len == key.len()),
            value_len: self.value_len.filter(|&len| len == value_len),
            seq_min: self.seq_min.min(seq),
            seq_max: self.seq_max.max(seq),
            all_puts: self.all_puts && is_put,
            unique_keys: self.unique_keys && last != Some(key),
        }
    }

    fn suffix_bytes(&self) -> usize {
        self.key_bytes - self.prefix_len * self.entries
    }

    fn delta_width_code(&self) -> u16 {
        match self.seq_max - self.seq_min {
            0 => 0,
            1..=0xff => 1,
            0x100..=0xffff => 2,
            0x1_0000..=0xffff_ffff => 3,
            _ => 4,
        }
    }

    fn delta_bytes(&self) -> usize {
        match self.delta_width_code() {
            0 => 0,
            code => self.entries << (code - 1),
        }
    }

    fn flags(&self) -> u16 {
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        flag(self.unique_keys, UNIQUE_KEYS)
            | flag(self.all_puts, ALL_PUTS)
            | flag(self.key_len.is_some(), SUFFIX_UNIFORM)
            | flag(self.value_len.is_some(), VALUE_UNIFORM)
            | flag(self.key_len.is_none() && self.suffix_bytes() > usize::from(u16::MAX), SUFFIX_WIDE)
            | flag(self.value_len.is_none() && self.value_bytes > usize::from(u16::MAX), VALUE_WIDE)
            | self.delta_width_code() << DELTA_WIDTH_SHIFT
    }

    /// Exact size of such a block; 0 without entries.
    pub(crate) fn encoded_bytes(&self) -> usize {
        if self.entries == 0 {
            return 0;
        }
        let offsets = |uniform: bool, column_bytes: usize| match (uniform, column_bytes > usize::from(u16::MAX)) {
            (true, _) => 0,
            (false, false) => (self.entries + 1) * 2,
            (false, true) => (self.entries + 1) * 4,
        };
        HEAD_BYTES
            + self.prefix_len
            + offsets(self.key_len.is_some(), self.suffix_bytes())
            + self.suffix_bytes()
            + self.delta_bytes()
            + if self.all_puts { 0 } else { self.entries }
            + offsets(self.value_len.is_some(), self.value_bytes)
            + self.value_bytes
    }
}

impl BlockBuilder {
    /// A builder without entries.
    pub(crate) fn new() -> BlockBuilder {
        BlockBuilder::default()
    }

    /// Append an entry. It must come after the last one in the engine's order.
    pub(crate) fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) {
        self.add_shaped(self.shape_with(key, trailer, value.len()), key, trailer, value);
    }

    /// As [`add`](BlockBuilder::add), for who has asked [`shape_with`](BlockBuilder::shape_with) for the very entry.
    pub(crate) fn add_shaped(&mut self, shape: Shape, key: &[u8], trailer: Trailer, value: &[u8]) {
        debug_assert!(
            self.last_key().is_none_or(|last| last < key || last == key && self.trailers.last() > Some(&trailer))
        );
        debug_assert_eq!(shape.entries, self.shape.entries + 1);
        self.shape = shape;
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len() as u32);
        self.values.extend_from_slice(value);
        self.value_ends.push(self.values.len() as u32);
        self.trailers.push(trailer);
    }

    /// Number of entries so far.
    pub(crate) fn entries(&self) -> usize {
        self.shape.entries
    }

    /// Exact size of the block so far; 0 without entries.
    pub(crate) fn bytes(&self) -> usize {
        self.shape.encoded_bytes()
    }

    /// Exact size that the block would have with one more entry: a key that breaks the common prefix can make it much larger.
    pub(crate) fn bytes_with(&self, key: &[u8], trailer: Trailer, value_len: usize) -> usize {
        self.shape_with(key, trailer, value_len).encoded_bytes()
    }

    /// Memory that the entries take until [`BlockBuilder::finish`].
    pub(crate) fn memory_bytes(&self) -> usize {
        self.keys.len() + self.values.len() + self.shape.entries * 16
    }

    /// The last key added.
    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        let end = *self.key_ends.last()? as usize;
        let start = self.key_ends.len().checked_sub(2).map_or(0, |i| self.key_ends[i] as usize);
        self.keys.get(start..end)
    }

    /// The trailer of the last entry added.
    pub(crate) fn last_trailer(&self) -> Option<Trailer> {
        self.trailers.last().copied()
    }

    /// The first key added.
    pub(crate) fn first_key(&self) -> Option<&[u8]> {
        self.keys.get(..*self.key_ends.first()? as usize)
    }

    /// The block, and a builder without entries.
    ///
    /// # Panics
    /// Without entries: there is no empty block.
    pub(crate) fn finish(&mut self) -> &[u8] {
        let shape = self.shape;
        assert!(shape.entries > 0, "an empty block is never written");
        let flags = shape.flags();
        self.encoded.clear();
        let out = &mut self.encoded;
        out.extend_from_slice(&(shape.entries as u32).to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        // A key has at most 65,535 bytes, and the prefix is part of one.
        out.extend_from_slice(&(shape.prefix_len as u16).to_le_bytes());
        out.extend_from_slice(&shape.seq_min.to_le_bytes());
        out.extend_from_slice(&(shape.suffix_bytes() as u32).to_le_bytes());
        out.extend_from_slice(&(shape.value_bytes as u32).to_le_bytes());
        out.extend_from_slice(&self.keys[..shape.prefix_len]);

        if flags & SUFFIX_UNIFORM == 0 {
            let ends = self.key_ends.iter().enumerate();
            let offsets = ends.map(|(i, &end)| end - ((i + 1) * shape.prefix_len) as u32);
            extend_offsets(out, offsets, flags & SUFFIX_WIDE != 0);
        }
        let mut start = 0;
        for &end in &self.key_ends {
            out.extend_from_slice(&self.keys[start + shape.prefix_len..end as usize]);
            start = end as usize;
        }
        if let Some(width) = shape.delta_width_code().checked_sub(1) {
            for trailer in &self.trailers {
                let delta = (trailer.seq().get() - shape.seq_min).to_le_bytes();
                out.extend_from_slice(&delta[..1 << width]);
            }
        }
        if flags & ALL_PUTS == 0 {
            for trailer in &self.trailers {
                out.extend_from_slice(&[trailer.kind() as u8]);
            }
        }
        if flags & VALUE_UNIFORM == 0 {
            extend_offsets(out, self.value_ends.iter().copied(), flags & VALUE_WIDE != 0);
        }
        out.extend_from_slice(&self.values);
        debug_assert_eq!(out.len(), shape.encoded_bytes());

        self.clear();
        &self.encoded
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.key_ends.clear();
        self.values.clear();
        self.value_ends.clear();
        self.trailers.clear();
        self.shape = Shape::default();
    }

    /// What the block would look like with one more entry.
    pub(crate) fn shape_with(&self, key: &[u8], trailer: Trailer, value_len: usize) -> Shape {
        self.shape.with(self.first_key(), self.last_key(), key, trailer, value_len)
    }
}

/// A zero and every end: n + 1 offsets.
fn extend_offsets(out: &mut Wiped, ends: impl Iterator<Item = u32>, wide: bool) {
    for offset in std::iter::once(0).chain(ends) {
        match wide {
            true => out.extend_from_slice(&offset.to_le_bytes()),
            false => out.extend_from_slice(&(offset as u16).to_le_bytes()),
        }
    }
}

#[cfg(test)]
mod tests;
