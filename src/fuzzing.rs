//! What the fuzz targets do with their bytes.
//!
//! ```text
//! fuzz/fuzz_targets/<target>.rs    cargo-fuzz: hands bytes in, one line each
//! fuzz/corpus/<target>/            small inputs to begin with, and what was once found
//! fuzzing.rs                       here: the list of targets
//! fuzzing/formats.rs               one target for each file of format/, and the keyring
//! fuzzing/table.rs                 sorted tables: decoders, and whole files of any contents
//! fuzzing/operations.rs            a store under operations, crashes and reopening, against a map
//! fuzzing/tests.rs                 `cargo test` replays every corpus
//! ```
//! Every format is fed twice with the same bytes: *raw*, as a file that somebody damaged, and *re-sealed*, as the plaintext of a
//! frame with a right tag, because a tag would otherwise keep everything from the decoders behind it.
//!
//! What must hold is more than "no panic": what decodes encodes back to the same bytes; nothing behind the last field is
//! accepted; memory is bounded by the input.
//!
//! Compiled for tests and under `--cfg fuzzing` alone, and above all other parts.

mod formats;
mod operations;
mod table;
#[cfg(test)]
mod tests;

pub use formats::{block, codec, current, frame, keyfile, keyring, log, manifest, names, parked, scrub};
pub use operations::operations;
pub use table::table;

/// What a fuzzer runs on each input.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 13] = [
    ("block", block),
    ("codec", codec),
    ("current", current),
    ("frame", frame),
    ("keyfile", keyfile),
    ("keyring", keyring),
    ("log", log),
    ("manifest", manifest),
    ("names", names),
    ("operations", operations),
    ("parked", parked),
    ("scrub", scrub),
    ("table", table),
];
