//! How keys change: other master keys, new generations, the end of old ones.
//!
//! ```text
//! change      another master key or a new generation, at once and for many tables
//! key_files   key files replaced and read, whatever a crash left of a replacement
//! report      what is under which generation, and who delays the end of an old one
//! rotation    the handle of a rotation that goes on in the background (maintenance/rotate.rs does the work)
//! schedule    rotations that are due by themselves
//! system      the system key's turn
//! shred       a table and the master key that it had to itself
//! ```
//!
//! # The order of a change
//! ```text
//! provider asked for everything, every answer checked      a refusal has changed nothing
//! next key file written and synced under its temporary name, directory synced
//! key file overwritten with zeros, synced                  the old wraps are gone; the next file is found under its temporary name
//! next key file renamed, directory synced
//! manifest: the pin, and that the master key was changed   one append for many tables
//! memtable frozen, view with the new keys published        log and files are under the new generation from here on
//! ```
//! # The end of a generation
//! ```text
//! nothing is under it: sorted tables, log, parked sections, files that somebody still looks at (rotate.rs brings that about)
//! next key file, without the wrap, written under its temporary name, directory synced
//! manifest: the pin without the generation                 the file with the wrap still is the pinned one
//! key file overwritten, renamed over, directory synced     as above
//! manifest: the pin of the new file
//! ```
//! Behind each step a crash leaves a key file, named or staged, that is the pinned one or its successor and holds every pinned
//! generation. What is to be done about it follows from the files alone ([`Engine::settle_key_files`](super::Engine)).

mod change;
mod key_files;
mod report;
mod rotation;
mod schedule;
mod shred;
mod system;
#[cfg(test)]
mod tests;

pub use self::change::{KeyChange, RewrapReport};
pub use self::report::{Delay, GenerationReport, KeyReport, SealedBytes};
pub use self::rotation::{Rotation, RotationProgress};

pub(super) use self::key_files::{Change, erase_key_file};
pub(super) use self::schedule::Schedules;
pub(super) use self::system::Progress as SystemProgress;
