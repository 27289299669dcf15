//! What a passphrase is stretched to: Argon2id (RFC 9106).
//!
//! The settings stand beside what is sealed, so that a file opens after the defaults have changed, and whoever can write
//! the file can change them. Hence limits in both directions, checked before any work is done: too little would let a
//! guesser pay less, too much would let a file exhaust the machine that opens it.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use super::secret::wipe_stack;
use super::{Salt, Secret};
use crate::error::{Error, Result};

const MEMORY_KIB_MIN: u32 = 19 << 10;
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 16;

/// How much work one guess at a passphrase costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretching {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Stretching {
    /// 64 MiB, 3 passes, 4 lanes: the second setting that RFC 9106 recommends.
    pub(crate) const DEFAULT: Stretching = Stretching { memory_kib: 64 << 10, passes: 3, lanes: 4 };

    /// The least that is allowed, for tests.
    #[cfg(any(test, fuzzing))]
    pub(crate) const LEAST: Stretching = Stretching { memory_kib: MEMORY_KIB_MIN, passes: 1, lanes: 1 };

    /// These settings, if they are within the limits: 19 MiB to 1 GiB of memory, 1 to 16 passes and lanes.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] above, [`Error::InvalidArgument`] below.
    pub(crate) fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Stretching> {
        in_limits("KiB of memory for a passphrase", memory_kib, MEMORY_KIB_MIN, MEMORY_KIB_MAX)?;
        in_limits("passes for a passphrase", passes, 1, PASSES_MAX)?;
        in_limits("lanes for a passphrase", lanes, 1, LANES_MAX)?;
        Ok(Stretching { memory_kib, passes, lanes })
    }

    /// Memory, passes and lanes, each as u32 little-endian. To be bound as associated data to what is sealed.
    pub(crate) fn encode(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.memory_kib.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.passes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.lanes.to_le_bytes());
        bytes
    }

    /// The settings that [`encode`](Stretching::encode) wrote.
    ///
    /// # Errors
    /// As for [`new`](Stretching::new): nothing that a file says gets past the limits.
    pub(crate) fn decode(bytes: &[u8; 12]) -> Result<Stretching> {
        let [m0, m1, m2, m3, t0, t1, t2, t3, p0, p1, p2, p3] = *bytes;
        let word = u32::from_le_bytes;
        Stretching::new(word([m0, m1, m2, m3]), word([t0, t1, t2, t3]), word([p0, p1, p2, p3]))
    }

    /// Stretch a passphrase. Takes a good part of a second with the default settings.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if there is not enough memory.
    pub(crate) fn stretch(&self, passphrase: &[u8], salt: &Salt) -> Result<Secret> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(refused)?;
        // Memory of our own, because the library frees its memory as it is, with everything that was made of the passphrase.
        let mut memory = Memory::new(params.block_count())?;
        let secret = argon2id(params, passphrase, salt, &mut memory);
        wipe_stack();
        secret.map_err(refused)
    }
}

#[inline(never)]
fn argon2id(params: Params, passphrase: &[u8], salt: &Salt, memory: &mut Memory) -> Result<Secret, argon2::Error> {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    Secret::try_fill_with(|bytes| {
        argon2.hash_password_into_with_memory(passphrase, salt.as_bytes(), bytes, &mut memory.0)
    })
}

struct Memory(Vec<Block>);

impl Memory {
    fn new(blocks: usize) -> Result<Memory> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(blocks).map_err(|_| Error::LimitExceeded {
            what: "KiB of memory for a passphrase",
            limit: 0,
            actual: blocks as u64,
        })?;
        memory.resize(blocks, Block::new());
        Ok(Memory(memory))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Zeroize::zeroize);
    }
}

fn in_limits(what: &'static str, actual: u32, least: u32, most: u32) -> Result<()> {
    if actual > most {
        return Err(Error::LimitExceeded { what, limit: most.into(), actual: actual.into() });
    }
    if actual < least {
        return Err(Error::InvalidArgument { what, detail: format!("{actual} is below {least}") });
    }
    Ok(())
}

/// Within the limits, the library refuses only a passphrase of more than 4 GiB.
fn refused(error: argon2::Error) -> Error {
    Error::InvalidArgument { what: "passphrase", detail: error.to_string() }
}
