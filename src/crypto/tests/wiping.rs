//! What is left in memory when secrets and plaintext have gone.

use super::*;
use crate::crypto::secret::last_words;

#[test]
fn dropped_secret_is_zero_before_its_memory_is_freed() {
    // Otherwise keys would lie in freed memory for whoever gets it next.
    let left = last_words::of(|| {
        let secret = Secret::fill_with(|bytes| bytes.fill(0xab));
        assert_eq!(secret.expose(), &[0xab; 32]);
        drop(secret);
        let failed = Secret::try_fill_with(|bytes| {
            bytes.fill(0xcd);
            Err(())
        });
        assert!(failed.is_err());
    });
    assert_eq!(left, [[0; 32]; 2]);
}

#[test]
fn dropped_buffer_is_zero_also_outside_its_window() {
    // Otherwise plaintext would outlive the block that it was read for.
    let left = last_words::of(|| {
        let mut buffer = Wiped::from(vec![0xab; 100]).window(10..90).unwrap();
        buffer.truncate(5);
        assert_eq!(*buffer, [0xab; 5]);
    });
    assert_eq!(left, [vec![0; 100]]);
}

#[test]
fn growing_buffer_leaves_no_old_bytes_behind() {
    // Otherwise every doubling would leave a copy of the plaintext in freed memory.
    let mut expected = Vec::new();
    let left = last_words::of(|| {
        let mut buffer = Wiped::with_capacity(1);
        for round in 0..1000_u32 {
            buffer.extend_from_slice(&round.to_le_bytes());
            buffer.push(0xff);
            expected.extend_from_slice(&round.to_le_bytes());
            expected.push(0xff);
        }
        assert_eq!(*buffer, expected[..]);
    });
    assert!(left.len() > 5, "the buffer has moved several times");
    assert!(left.iter().flatten().all(|byte| *byte == 0));
}

#[test]
fn buffer_that_fails_to_open_is_wiped() {
    // Otherwise a forged frame's plaintext could be read from freed memory.
    let (place, mut body, tag) = block_frame(Suite::Aes256Gcm);
    body[0] ^= 1;
    let key = place.file_key();
    let left = last_words::of(|| assert!(key.open(place.ordinal, place.aad, sealed(&body, &tag)).is_err()));
    assert_eq!(left, [vec![0; body.len() + TAG_BYTES]]);
}

#[test]
fn window_shows_a_part_and_grows_at_its_end() {
    // Otherwise a frame's tag would be read as the end of its plaintext.
    let buffer = Wiped::from(b"head body tag".to_vec());
    let mut buffer = buffer.window(5..9).unwrap();
    assert_eq!(*buffer, *b"body");
    buffer.extend_from_slice(b" and more than fits behind it");
    assert_eq!(*buffer, *b"body and more than fits behind it");
    let mut buffer = buffer.window(5..13).unwrap();
    assert_eq!(*buffer, *b"and more");
    buffer.resize(3, b'!');
    buffer.resize(6, b'!');
    assert_eq!(*buffer, *b"and!!!");
    buffer[0] = b'A';
    assert_eq!(*buffer.window(0..3).unwrap(), *b"And");

    assert!(Wiped::from(vec![0; 4]).window(0..5).is_none());
    assert!(Wiped::from(vec![0; 4]).window(4..4).is_some_and(|empty| empty.is_empty()));
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    let reversed = Wiped::from(vec![0; 4]).window(3..2);
    assert!(reversed.is_none());
    let mut cleared = Wiped::from(vec![1; 4]);
    cleared.clear();
    assert!(cleared.is_empty() && cleared.capacity_bytes() >= 4);
}

/// Looks for keys in all of this process's writable memory, its stacks too. An interpreter's memory is not that.
#[cfg(all(target_os = "linux", not(miri)))]
mod memory {
    use std::io::{Read, Seek, SeekFrom};

    use super::*;

    // All bits inverted, so that what is searched for is not found in the searcher.
    const SECRET_INVERTED: [u8; 32] = inverted_secret();
    const EXTRACTED_INVERTED: &str = "ef1fd5252315262efca2ce99e6734086f3333e695e40e4a581380a5fbc81f323";
    const FILE_KEY_INVERTED: &str = "9fdb7de93f721f2433318bdb267cf10be6452ad3ae665fa3f9a65c4e8890f9de";
    const STREAM_KEY_INVERTED: &str = "f896149f50df77c90802714ced0d237be423af978ff6e814e5025ef8c9afa316";

    const BLOCK_KEY_INVERTED: &str = "f2695fe8b5dc1d962cc6b9e6838d3955195ebc1dfe260e21edce3d1ce77c2ec2";
    /// What HMAC makes of the file key and keeps: as good as the key.
    const FILE_KEY_STATES_INVERTED: [[u32; 8]; 2] = [
        [0xa6c9_0a46, 0x3574_d450, 0x07ba_0ff8, 0xe3f5_9f08, 0x4cbf_ce13, 0x0caa_5473, 0xb76b_4d6a, 0x9ee7_ae51],
        [0x4aff_98f5, 0x81b5_7548, 0xaebb_6042, 0xe22c_de11, 0x07e2_8495, 0xccbb_59ae, 0x3b1a_84c9, 0xcd04_ae73],
    ];

    const fn inverted_secret() -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut i = 0;
        while i < 32 {
            bytes[i] = !secret_byte(i as u8);
            i += 1;
        }
        bytes
    }

    const fn secret_byte(i: u8) -> u8 {
        i.wrapping_mul(37).wrapping_add(11) ^ 0x5a
    }

    /// HMAC hashes a key under these two masks, and leaves such blocks behind as readily as the key.
    fn with_hmac_masks(inverted: [[u8; 32]; 4]) -> Vec<[u8; 32]> {
        [0, 0x36, 0x5c].iter().flat_map(|mask| inverted.map(|needle| needle.map(|byte| byte ^ mask))).collect()
    }

    fn from_hex(digits: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
    }

    /// How often the inverse of each needle stands in memory.
    #[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "looks at the process, not at a store")]
    fn count(inverted: &[[u8; 32]]) -> Vec<usize> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut counts = vec![0; inverted.len()];
        let mut buffer = vec![0; 1 << 16];
        // The buffer itself is left out: read into itself, it would repeat what it has just read.
        let own = buffer.as_ptr_range();
        let (own_start, own_end) = (own.start.addr() as u64, own.end.addr() as u64);
        let ranges = maps
            .lines()
            .filter_map(writable)
            .flat_map(|(start, end)| [(start, end.min(own_start.max(start))), (start.max(own_end.min(end)), end)]);
        for (start, end) in ranges {
            let mut at = start;
            while at + 32 <= end {
                let len = buffer.len().min((end - at) as usize);
                // Another test's thread may have given the memory back in the meantime.
                if memory.seek(SeekFrom::Start(at)).is_err() || memory.read_exact(&mut buffer[..len]).is_err() {
                    break;
                }
                for (needle, count) in inverted.iter().zip(&mut counts) {
                    let same = |window: &&[u8]| window.iter().zip(needle).all(|(byte, inverse)| *byte == !*inverse);
                    *count += buffer[..len].windows(32).filter(same).count();
                }
                // Overlapping by 31 bytes, so that a key across the seam is seen, and seen once.
                at += (len - 31) as u64;
            }
        }
        buffer.fill(0);
        counts
    }

    /// The bounds of a mapping, if this process may write there.
    fn writable(line: &str) -> Option<(u64, u64)> {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        words.next().filter(|mode| mode.starts_with("rw"))?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    }

    /// Runs on a part of the stack that the search, which comes after it, does not overwrite by itself.
    #[inline(never)]
    fn deep_down<T>(scene: impl FnOnce() -> T) -> T {
        let above = [0_u8; 256 << 10];
        std::hint::black_box(&above);
        let outcome = scene();
        std::hint::black_box(&above);
        outcome
    }

    fn state_bytes(state: [u32; 8]) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_mut(4).zip(state) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn work_on_a_frame_leaves_no_key_on_the_stack() {
        // Otherwise every thread that ever read a block would keep the keys of its file, long after the table was revoked.
        let _alone = ALONE.lock();
        let [inner, outer] = FILE_KEY_STATES_INVERTED.map(state_bytes);
        let needles = [from_hex(BLOCK_KEY_INVERTED), inner, outer];
        let file_key = deep_down(|| table_key().file_key(Suite::Aes256Gcm, FileKind::Table, NUMBER, &salt()));
        let ready = count(&needles);
        assert!(ready[0] == 0 && ready[1] > 0 && ready[2] > 0, "the search finds the states that are ready: {ready:?}");
        deep_down(|| {
            assert!(file_key.open(0, b"", Wiped::from(vec![0; 48])).is_err());
            assert!(file_key.check_header(b"a header", &[0; TAG_BYTES]).is_err());
        });
        assert_eq!(count(&needles), ready);
        drop(file_key);
        assert_eq!(count(&needles), [0; 3]);
    }

    /// Both tests work with the same keys, and count them in all of memory.
    static ALONE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    const NUMBER: FileNumber = FileNumber(0x0102_0304_0506_0708);

    fn salt() -> Salt {
        Salt::from_bytes(std::array::from_fn(|i| 32 + i as u8))
    }

    fn table_key() -> TableKey {
        let store = StoreId::from_bytes(std::array::from_fn(|i| 0xa0 + i as u8));
        let table = TableId::from_bytes(std::array::from_fn(|i| 0xb0 + i as u8));
        let secret = Secret::fill_with(|bytes| (0..).zip(bytes).for_each(|(i, byte)| *byte = secret_byte(i)));
        TableKey::new(secret, store, table, Generation(7))
    }

    #[test]
    fn no_copy_of_a_key_stays_in_memory_after_set_up_and_drop() {
        // Otherwise a core dump or a swapped page would hold keys that were dropped long ago.
        let _alone = ALONE.lock();
        let needles = with_hmac_masks([
            SECRET_INVERTED,
            from_hex(EXTRACTED_INVERTED),
            from_hex(FILE_KEY_INVERTED),
            from_hex(STREAM_KEY_INVERTED),
        ]);
        let (table_key, file_key, stream_key) = deep_down(|| {
            let table_key = table_key();
            let file_key = table_key.file_key(Suite::Aes256Gcm, FileKind::Table, NUMBER, &salt());
            let stream_key = table_key.stream_key(Suite::Aes256Gcm, FileKind::Log, NUMBER, &salt());
            (table_key, file_key, stream_key)
        });
        let living = count(&needles);
        // The secret in its cell, and the stream key where an AES key schedule begins with its key.
        assert_eq!(living[..3], [1, 0, 0]);
        assert!(living[3] <= 1, "{living:?}");
        assert_eq!(living[4..], [0; 8]);
        drop((table_key, file_key, stream_key));
        assert_eq!(count(&needles), [0; 12]);
    }
}
