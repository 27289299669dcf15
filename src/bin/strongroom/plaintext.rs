//! Searching files for canaries: pieces of the user's own data that must not stand anywhere in a store.
//!
//! ```text
//! windows   32 bytes of a file's contents, one in every few KiB, chosen where many different bytes stand
//! tails     the last 12 bytes of every path of at least 12 bytes: a block that were not encrypted may store
//!           the common beginning of its keys once, so that only their ends would stand there whole
//! ```
//! Both are searched at every byte position, not only at aligned ones. A window needs 12 different bytes, so that no
//! padding or run of zeros is one; that 12 or 32 such bytes turn up in ciphertext by chance does not happen.
//!
//! The search is only worth something if it can fail. So every canary must first be found in the folder it came from, by
//! the very same code ([`Canaries::unfound`]).
//!
//! Compressed data hides a canary that compression broke up. With LZ4 about as many windows survive as there are places
//! where 32 bytes have no earlier match; over a folder of any size that is plenty. `--compression none` leaves no such doubt.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_64;

const WINDOW_BYTES: usize = 32;
const TAIL_BYTES: usize = 12;
/// Canaries are recognised by their first bytes before all of them is hashed. No canary is shorter.
const HEAD_BYTES: usize = 12;
/// A window with fewer different bytes may be padding.
const DISTINCT_MIN: u32 = 12;
/// Distance at which a window is looked for again within one stretch of a file.
const TRY_EVERY_BYTES: usize = 16;
/// 2^25 bits, 4 MiB: about one position in sixty passes by chance with half a million canaries.
const FILTER_BITS_LOG2: u32 = 25;
const CHUNK_BYTES: usize = 1 << 20;

/// Chooses canaries.
#[derive(Default)]
pub struct Sampler {
    windows: HashSet<[u8; WINDOW_BYTES]>,
    tails: HashSet<[u8; TAIL_BYTES]>,
}

impl Sampler {
    /// Take one window, if there is a good one, from every `stretch_bytes` of a file's contents.
    pub fn contents(&mut self, contents: &[u8], stretch_bytes: usize) {
        for stretch in contents.chunks(stretch_bytes) {
            let good = stretch.windows(WINDOW_BYTES).step_by(TRY_EVERY_BYTES).find(|window| is_distinctive(window));
            if let Some(window) = good.and_then(|window| window.try_into().ok()) {
                self.windows.insert(window);
            }
        }
    }

    /// Take the end of a path, if it is long enough to be told from chance.
    pub fn path(&mut self, path: &[u8]) {
        if let Some(&tail) = path.last_chunk() {
            self.tails.insert(tail);
        }
    }

    /// What others have chosen as well.
    pub fn merge(&mut self, other: Sampler) {
        self.windows.extend(other.windows);
        self.tails.extend(other.tails);
    }

    /// Ready for searching.
    pub fn finish(self) -> Canaries {
        let mut filter = vec![0; 1 << (FILTER_BITS_LOG2 - 6)];
        let windows = self.windows.iter().filter_map(|window| window.first_chunk());
        let tails = self.tails.iter().filter_map(|tail| tail.first_chunk());
        for head in windows.chain(tails) {
            let bit = filter_bit(head);
            filter[bit / 64] |= 1_u64 << (bit % 64);
        }
        Canaries { filter, windows: Set::new(self.windows), tails: Set::new(self.tails) }
    }
}

/// Whether enough different bytes stand here for chance and padding to be out of the question.
fn is_distinctive(window: &[u8]) -> bool {
    let mut seen = [0_u64; 4];
    for &byte in window {
        seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }
    seen.iter().map(|bits| bits.count_ones()).sum::<u32>() >= DISTINCT_MIN
}

/// Pieces of plaintext to look for. May be used by several threads.
pub struct Canaries {
    filter: Vec<u64>,
    windows: Set<WINDOW_BYTES>,
    tails: Set<TAIL_BYTES>,
}

/// Canaries of one length, by the hash of their bytes.
struct Set<const N: usize>(HashMap<u64, Canary<N>, BuildHasherDefault<Hashed>>);

/// Hashes what is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Canary<const N: usize> {
    bytes: [u8; N],
    met: AtomicBool,
}

impl<const N: usize> Set<N> {
    fn new(canaries: HashSet<[u8; N]>) -> Set<N> {
        let canary = |bytes: [u8; N]| (xxh3_64(&bytes), Canary { bytes, met: AtomicBool::new(false) });
        Set(canaries.into_iter().map(canary).collect())
    }

    /// Whether `bytes` is one of the canaries, which is then marked.
    fn meet(&self, bytes: &[u8; N]) -> bool {
        match self.0.get(&xxh3_64(bytes)) {
            Some(canary) if canary.bytes == *bytes => {
                canary.met.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }
}

/// What one search came to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Found {
    pub bytes_searched: u64,
    /// Where the first canary stands, if one was met.
    pub first_at: Option<u64>,
}

impl Canaries {
    pub fn len(&self) -> usize {
        self.windows.0.len() + self.tails.0.len()
    }

    /// Forget what searches have met so far.
    pub fn reset(&self) {
        self.met().for_each(|met| met.store(false, Ordering::Relaxed));
    }

    /// How many canaries no search has met since the last reset.
    pub fn unfound(&self) -> usize {
        self.met().filter(|met| !met.load(Ordering::Relaxed)).count()
    }

    fn met(&self) -> impl Iterator<Item = &AtomicBool> {
        let windows = self.windows.0.values().map(|canary| &canary.met);
        windows.chain(self.tails.0.values().map(|canary| &canary.met))
    }

    /// Search everything in a file.
    pub fn search_file(&self, mut file: File) -> io::Result<Found> {
        let mut found = Found::default();
        let mut buffer = vec![0; CHUNK_BYTES + WINDOW_BYTES];
        let mut kept = 0;
        loop {
            let read = read_full(&mut file, &mut buffer[kept..])?;
            let filled = kept + read;
            found.bytes_searched += read as u64;
            let at_end = filled < buffer.len();
            // A canary that begins in the last 31 bytes may end in the next chunk: these bytes are kept for it.
            let starts = if at_end { filled } else { filled - (WINDOW_BYTES - 1) };
            if let Some(position) = self.search(&buffer[..filled], starts) {
                let chunk_at = found.bytes_searched - filled as u64;
                found.first_at.get_or_insert(chunk_at + position as u64);
            }
            if at_end {
                return Ok(found);
            }
            buffer.copy_within(starts..filled, 0);
            kept = filled - starts;
        }
    }

    /// Search bytes in memory, such as a path.
    pub fn search_bytes(&self, bytes: &[u8]) -> Found {
        let first_at = self.search(bytes, bytes.len()).map(|position| position as u64);
        Found { bytes_searched: bytes.len() as u64, first_at }
    }

    /// Mark every canary that begins before `starts`; the position of the first.
    fn search(&self, bytes: &[u8], starts: usize) -> Option<usize> {
        let mut first = None;
        for (position, head) in bytes.windows(HEAD_BYTES).take(starts).enumerate() {
            let Some(head) = head.first_chunk() else { continue };
            let bit = filter_bit(head);
            if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
                continue;
            }
            let rest = &bytes[position..];
            // Both are asked, because both may stand here.
            let met_window = rest.first_chunk().is_some_and(|window| self.windows.meet(window));
            let met_tail = rest.first_chunk().is_some_and(|tail| self.tails.meet(tail));
            if met_window || met_tail {
                first.get_or_insert(position);
            }
        }
        first
    }
}

fn filter_bit(head: &[u8; HEAD_BYTES]) -> usize {
    // Twelve bytes as two overlapping words.
    let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (first, last) = (word(head.first_chunk()), word(head.last_chunk()));
    let mixed = first.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ last.rotate_left(32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    (mixed >> (64 - FILTER_BITS_LOG2)) as usize
}

fn read_full(file: &mut File, mut buffer: &mut [u8]) -> io::Result<usize> {
    let mut total = 0;
    while !buffer.is_empty() {
        match file.read(buffer) {
            Ok(0) => break,
            Ok(read) => {
                total += read;
                buffer = &mut buffer[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn canaries_of(contents: &[u8], path: &[u8]) -> Canaries {
        let mut sampler = Sampler::default();
        sampler.contents(contents, 4096);
        sampler.path(path);
        sampler.finish()
    }

    const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog";

    #[test]
    fn a_canary_is_found_wherever_it_stands() {
        let canaries = canaries_of(TEXT, b"");
        // Around the seam between two chunks, and at the very beginning and end.
        for at in [0, 1, CHUNK_BYTES - 40, CHUNK_BYTES, CHUNK_BYTES + 1, CHUNK_BYTES + 31, 2 * CHUNK_BYTES + 3] {
            let mut bytes = vec![0; at];
            bytes.extend_from_slice(&TEXT[..WINDOW_BYTES]);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            let found = canaries.search_file(file).unwrap();
            assert_eq!(found, Found { bytes_searched: bytes.len() as u64, first_at: Some(at as u64) });
            assert_eq!(canaries.unfound(), 0);
            canaries.reset();
            assert_eq!(canaries.unfound(), 1);
        }
    }

    #[test]
    fn the_end_of_a_path_is_found_without_its_beginning() {
        let canaries = canaries_of(b"", b"some/folder/secret-name.txt");
        assert_eq!(canaries.search_bytes(b"xx/secret-name.txt").first_at, Some(6));
        assert_eq!(canaries.search_bytes(b"ecret-name.tx").first_at, None);
    }

    #[test]
    fn padding_and_short_paths_are_no_canaries() {
        assert_eq!(canaries_of(&[0; 10_000], b"short").len(), 0);
        assert_eq!(canaries_of(&b"ab".repeat(5_000), b"src/lib.rs").len(), 0);
    }
}
