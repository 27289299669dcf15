//! Bounded reading and plain writing of the numbers that formats consist of. Little-endian only.
//!
//! A [`Reader`] never looks behind the end of its bytes, never panics and never allocates: a count from
//! disk passes [`Reader::count`], which compares it with the bytes that are left, before anything is
//! sized by it. Every number has exactly one encoding (a varint with a needless byte is refused), and
//! bytes behind the last field are refused by [`Reader::finish`], so that what decodes also encodes
//! back to the same bytes.
//!
//! A decoder says *what* was wrong with a [`Refusal`], which is two words wide; *where* it was comes in
//! with a [`Where`] at the border of `format`, where the public [`Error`] is made.

use crate::crypto::Wiped;
use crate::error::Error;

/// The file and position that an error is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Where<'a> {
    /// The file, relative to the store.
    pub(crate) file: &'a str,
    /// Where the bytes in question begin.
    pub(crate) offset_bytes: u64,
}

impl<'a> Where<'a> {
    /// Byte `offset_bytes` of `file`.
    pub(crate) fn new(file: &'a str, offset_bytes: u64) -> Where<'a> {
        Where { file, offset_bytes }
    }

    /// The same file, at another position.
    pub(crate) fn at(&self, offset_bytes: u64) -> Where<'a> {
        Where { file: self.file, offset_bytes }
    }

    /// The bytes here carry a wrong tag, or contradict what is known about them.
    #[cold]
    pub(crate) fn tampered(&self, detail: &'static str) -> Error {
        Error::Tampered { file: self.file.to_owned(), offset_bytes: self.offset_bytes, detail }
    }

    /// The bytes here do not match their checksum.
    #[cold]
    pub(crate) fn bit_rot(&self, detail: &'static str) -> Error {
        Error::BitRot { file: self.file.to_owned(), offset_bytes: self.offset_bytes, detail }
    }

    /// The bytes here need something that this build does not know.
    #[cold]
    pub(crate) fn unknown(&self, what: &'static str, number: u64) -> Error {
        Error::UnknownVersion { file: self.file.to_owned(), what, number }
    }
}

/// Why authentic bytes could not be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The bytes are not what any version of this engine encodes.
    Malformed,
    /// The bytes are of a kind or version that this build does not know.
    Unknown { what: &'static str, number: u64 },
}

impl Refusal {
    /// The public error for a refusal of bytes at `place`.
    #[cold]
    pub(crate) fn at(self, place: &Where<'_>) -> Error {
        match self {
            Refusal::Malformed => place.tampered("sealed content cannot be decoded"),
            Refusal::Unknown { what, number } => place.unknown(what, number),
        }
    }
}

/// What a decoder returns before it is known where the bytes came from.
pub(crate) type Decoded<T> = Result<T, Refusal>;

/// `Ok` if `condition` holds, [`Refusal::Malformed`] otherwise.
pub(crate) fn require(condition: bool) -> Decoded<()> {
    if condition { Ok(()) } else { Err(Refusal::Malformed) }
}

/// Reads numbers and byte strings from the front of a slice.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes that are left, without taking them.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Refusal::Malformed)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(Refusal::Malformed)?;
        self.bytes = rest;
        Ok(*taken)
    }

    /// One byte.
    pub(crate) fn u8(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes, little-endian.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn u16(&mut self) -> Decoded<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian.
    pub(crate) fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    pub(crate) fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte that is 0 or 1.
    pub(crate) fn bool(&mut self) -> Decoded<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Refusal::Malformed),
        }
    }

    /// `N` reserved bytes, which must be zero until a later version gives them a meaning.
    pub(crate) fn reserved<const N: usize>(&mut self) -> Decoded<()> {
        require(self.array::<N>()? == [0; N])
    }

    /// An unsigned LEB128 number of at most ten bytes, in its shortest encoding.
    pub(crate) fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for (index, &byte) in self.bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
            let low = u64::from(byte & 0x7f);
            // 9 * 7 = 63: the tenth byte has room for one bit.
            require(index < 9 || low <= 1)?;
            value |= low << (7 * index);
            if byte & 0x80 == 0 {
                require(index == 0 || byte != 0)?;
                self.bytes = &self.bytes[index + 1..];
                return Ok(value);
            }
        }
        Err(Refusal::Malformed)
    }

    /// A length as a varint, at most `len_max`, and that many bytes.
    pub(crate) fn prefixed(&mut self, len_max: usize) -> Decoded<&'a [u8]> {
        let len = usize::try_from(self.varint()?).map_err(|_| Refusal::Malformed)?;
        require(len <= len_max)?;
        self.bytes(len)
    }

    /// A length-prefixed string of UTF-8 of at most `len_max` bytes.
    pub(crate) fn string(&mut self, len_max: usize) -> Decoded<String> {
        let bytes = self.prefixed(len_max)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Refusal::Malformed)
    }

    /// A count of items, each of at least `item_bytes_min` bytes, as a varint: no larger than what is left
    /// can hold, so that it may size an allocation.
    pub(crate) fn count(&mut self, item_bytes_min: usize) -> Decoded<usize> {
        let count = usize::try_from(self.varint()?).map_err(|_| Refusal::Malformed)?;
        require(count <= self.remaining() / item_bytes_min.max(1))?;
        Ok(count)
    }

    /// That nothing is left.
    pub(crate) fn finish(self) -> Decoded<()> {
        require(self.bytes.is_empty())
    }
}

/// The longest encoding of a varint: ten bytes of seven bits hold 64.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// How many bytes [`Put::put_varint`] writes for `value`.
pub(crate) const fn varint_bytes(value: u64) -> usize {
    // Seven bits a byte, and one byte for zero.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends what [`Reader`] reads.
pub(crate) trait Put {
    /// Append `bytes` as they are.
    fn put(&mut self, bytes: &[u8]);

    /// One byte.
    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Two bytes, little-endian.
    #[cfg(any(test, fuzzing))]
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// Four bytes, little-endian.
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Eight bytes, little-endian.
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// 0 or 1.
    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    /// `N` zeros.
    fn put_reserved<const N: usize>(&mut self) {
        self.put(&[0; N]);
    }

    /// Unsigned LEB128, the shortest encoding.
    fn put_varint(&mut self, mut value: u64) {
        let mut bytes = [0; VARINT_BYTES_MAX];
        let mut len = 0;
        while value >= 0x80 {
            bytes[len] = value as u8 | 0x80;
            value >>= 7;
            len += 1;
        }
        bytes[len] = value as u8;
        self.put(&bytes[..=len]);
    }

    /// The length as a varint, then the bytes.
    fn put_prefixed(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.put(bytes);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Put for Wiped {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// CRC-32 (IEEE) over several slices as if they were one.
pub(crate) fn crc32(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_number_reads_back_as_written(a: u8, b: u16, c: u32, d: u64, e: u64, f: bool, g: Vec<u8>) {
            let mut bytes = Vec::new();
            bytes.put_u8(a);
            bytes.put_u16(b);
            bytes.put_u32(c);
            bytes.put_u64(d);
            bytes.put_varint(e);
            bytes.put_bool(f);
            bytes.put_prefixed(&g);
            bytes.put_reserved::<3>();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.u8(), Ok(a));
            prop_assert_eq!(reader.u16(), Ok(b));
            prop_assert_eq!(reader.u32(), Ok(c));
            prop_assert_eq!(reader.u64(), Ok(d));
            prop_assert_eq!(reader.varint(), Ok(e));
            prop_assert_eq!(reader.bool(), Ok(f));
            prop_assert_eq!(reader.prefixed(g.len()), Ok(&g[..]));
            prop_assert_eq!(reader.reserved::<3>(), Ok(()));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn a_varint_has_one_encoding_and_a_known_length(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            prop_assert_eq!(bytes.len(), varint_bytes(value));
            prop_assert_eq!(Reader::new(&bytes).varint(), Ok(value));
            // The same number with a needless byte.
            if bytes.len() < VARINT_BYTES_MAX {
                *bytes.last_mut().unwrap() |= 0x80;
                bytes.push(0);
                prop_assert_eq!(Reader::new(&bytes).varint(), Err(Refusal::Malformed));
            }
        }

        #[test]
        fn any_bytes_read_as_a_varint_write_back_the_same(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                let mut again = Vec::new();
                again.put_varint(value);
                prop_assert_eq!(&again[..], &bytes[..bytes.len() - reader.remaining()]);
            }
        }
    }

    #[test]
    fn nothing_is_read_behind_the_end() {
        for len in 0..8 {
            let bytes = vec![0x80; len];
            assert_eq!(Reader::new(&bytes).u64(), Err(Refusal::Malformed));
            assert_eq!(Reader::new(&bytes).varint(), Err(Refusal::Malformed));
            assert_eq!(Reader::new(&bytes).bytes(len + 1), Err(Refusal::Malformed));
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        let mut bytes = [0xff; 10];
        bytes[9] = 2;
        assert_eq!(Reader::new(&bytes).varint(), Err(Refusal::Malformed));
        bytes[9] = 1;
        assert_eq!(Reader::new(&bytes).varint(), Ok(u64::MAX));
    }

    #[test]
    fn a_count_that_the_remaining_bytes_cannot_hold_is_refused() {
        // A failure would let four bytes on disk ask for gigabytes of memory.
        let mut bytes = Vec::new();
        bytes.put_varint(3);
        bytes.extend_from_slice(&[0; 11]);
        assert_eq!(Reader::new(&bytes).count(4), Err(Refusal::Malformed));
        assert_eq!(Reader::new(&bytes).count(3), Ok(3));
        bytes.clear();
        bytes.put_varint(u64::MAX);
        assert_eq!(Reader::new(&bytes).count(1), Err(Refusal::Malformed));
        assert_eq!(Reader::new(&bytes).prefixed(usize::MAX), Err(Refusal::Malformed));
    }

    #[test]
    fn bools_reserved_bytes_and_ends_are_strict() {
        assert_eq!(Reader::new(&[2]).bool(), Err(Refusal::Malformed));
        assert_eq!(Reader::new(&[0, 1]).reserved::<2>(), Err(Refusal::Malformed));
        assert_eq!(Reader::new(&[0]).finish(), Err(Refusal::Malformed));
        assert_eq!(Reader::new(&[1, 0xff]).string(9), Err(Refusal::Malformed));
        assert_eq!(Reader::new(&[2, 65, 66]).string(1), Err(Refusal::Malformed));
    }
}
