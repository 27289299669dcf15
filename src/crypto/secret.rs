//! Key bytes: in key pages, filled in place, zeroed on drop, never printed, compared in constant time.
//!
//! A secret has a place of its own because a move of an array leaves its bytes behind on the stack, and that place is in pages that
//! no core dump shows (`io/os/pages.rs`). It is filled in place for the same reason. Ciphers and hashes spill parts of a key while they
//! work, and nothing in their own crates cleans that up, so whoever sets up from a key does it in one never-inlined function
//! and wipes the stack after it: with [`wipe_stack`] behind what is done once per table or file, with [`wipe_frame_stack`] behind
//! what is done for every frame.

use std::fmt;
use std::io;

#[cfg(any(test, fuzzing))]
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, optimization_barrier};

use crate::error::{Error, Result};
use crate::io::Entropy;
use crate::io::os::pages::Strongbox;
use crate::io::os::registers::clear_vector_registers;

/// 32 bytes that nobody else may know.
///
/// Neither `Clone` nor `PartialEq`; [`ct_eq`](Secret::ct_eq) compares without telling by its duration where two differ.
pub(crate) struct Secret(Strongbox<[u8; 32]>);

impl Secret {
    /// 32 fresh random bytes.
    pub(crate) fn generate(entropy: &dyn Entropy) -> io::Result<Secret> {
        Secret::try_fill_with(|bytes| entropy.fill(bytes))
    }

    /// A secret that `fill` writes into its final place.
    pub(crate) fn fill_with(fill: impl FnOnce(&mut [u8; 32])) -> Secret {
        let mut secret = Secret(Strongbox::new([0; 32]));
        fill(&mut secret.0);
        secret
    }

    /// A secret that `fill` writes into its final place, unless it fails.
    pub(crate) fn try_fill_with<E>(fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Secret, E> {
        let mut secret = Secret(Strongbox::new([0; 32]));
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// The bytes, for the one call that needs them.
    ///
    /// # Panics
    /// In a forked child, which has no keys: rather than to go on with zeros. Who may be called there asks [`SameProcess`].
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are the same, in constant time.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn ct_eq(&self, other: &Secret) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // In a forked child there is nothing left to wipe.
        if !self.0.is_ours() {
            return;
        }
        self.0.zeroize();
        #[cfg(test)]
        last_words::record(&*self.0);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(32 bytes)")
    }
}

/// Made together with what holds secrets and lives on its own, outside a store: says whether this is still the process that they were
/// made in, or a fork of it, which has zeros for keys.
#[derive(Debug)]
pub(crate) struct SameProcess(Strongbox<()>);

impl SameProcess {
    /// The mark of this process.
    pub(crate) fn new() -> SameProcess {
        SameProcess(Strongbox::new(()))
    }

    /// # Errors
    /// [`Error::Forked`].
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }
}

/// Bytes of stack that [`wipe_stack`] overwrites. Setting up the widest cipher uses less than 8 KiB in an optimised build.
const STACK_WIPE_BYTES: usize = 64 << 10;

/// Overwrite the stack below the caller, where functions that have returned left what they worked on, and the vector registers.
#[inline(never)]
pub(super) fn wipe_stack() {
    let area = [0_u8; STACK_WIPE_BYTES];
    // Without it the array is never written, because nobody reads it.
    optimization_barrier(&area);
    clear_vector_registers();
}

/// Bytes of stack that [`wipe_frame_stack`] overwrites. Deriving a frame's key and setting its cipher up uses less than half of it in
/// an optimised build; a test looks for what is left.
const FRAME_STACK_WIPE_BYTES: usize = 8 << 10;

/// As [`wipe_stack`], behind the work on one frame: it goes less deep, and 64 KiB for every frame would show.
#[inline(never)]
pub(super) fn wipe_frame_stack() {
    let area = [0_u8; FRAME_STACK_WIPE_BYTES];
    optimization_barrier(&area);
    clear_vector_registers();
}

/// What buffers hold in the moment before they are freed: the only way to look at it that is not a use after free.
#[cfg(test)]
pub(super) mod last_words {
    use std::cell::RefCell;

    thread_local!(static RECORDED: RefCell<Option<Vec<Vec<u8>>>> = const { RefCell::new(None) });

    pub(in crate::crypto) fn record(bytes: &[u8]) {
        RECORDED.with_borrow_mut(|recorded| {
            if let Some(recorded) = recorded {
                recorded.push(bytes.to_vec());
            }
        });
    }

    /// Run `scene`, and return what every buffer freed by it on this thread held at its end.
    pub(in crate::crypto) fn of(scene: impl FnOnce()) -> Vec<Vec<u8>> {
        RECORDED.set(Some(Vec::new()));
        scene();
        RECORDED.take().unwrap_or_default()
    }
}
