//! A table's key as it is recorded: wrapped, with all that it takes to unwrap it and to recognise it.

use crate::crypto::Commitment;
use crate::types::Generation;

/// Whose a master key is. Reaches the disk: numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum MasterKind {
    /// The store's default key.
    Owned = 1,
    /// The engine's key in the user's provider.
    Managed = 2,
    /// A key of the user's.
    Customer = 3,
}

/// One generation of a table's key, wrapped under a master key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wrap {
    /// Which of the table's keys.
    pub(crate) generation: Generation,
    /// The master key.
    pub(crate) key_arn: String,
    /// The encryption context that was sent, and has to be sent again.
    pub(crate) context: Vec<(String, String)>,
    /// The provider's ciphertext.
    pub(crate) wrapped: Vec<u8>,
    /// What the key is recognised by.
    pub(crate) commitment: Commitment,
    /// When it was made, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// Whether nothing is sealed under it any more.
    pub(crate) retired: bool,
}
