//! A value as it is handed to the caller: small ones copied, large ones sharing memory with their source.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Values up to this many bytes lie in the [`Value`] itself.
const INLINE_BYTES: usize = 24;
/// Values above this many bytes share the memory of the block or memtable that they were found in.
pub(crate) const SHARE_BYTES_MIN: usize = 257;

/// Memory of the engine that a large [`Value`] shares: a block, a memtable's allocation, a run of frames.
pub(crate) trait Backing: Send + Sync {
    /// All bytes of the shared memory.
    fn bytes(&self) -> &[u8];
}

/// The value of a key: immutable bytes, cheap to clone, owned by the caller.
///
/// Values of up to 24 bytes need no allocation, values of up to 256 bytes are copied, and larger ones
/// share the memory that they were found in, which lives until the last such value is dropped.
#[derive(Clone)]
pub struct Value(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Copied(Arc<[u8]>),
    Shared { backing: Arc<dyn Backing>, start: u32, len: u32 },
}

impl Value {
    /// A copy of `bytes`.
    pub(crate) fn copied(bytes: &[u8]) -> Value {
        if bytes.len() <= INLINE_BYTES {
            let mut inline = [0; INLINE_BYTES];
            inline[..bytes.len()].copy_from_slice(bytes);
            Value(Repr::Inline { len: bytes.len() as u8, bytes: inline })
        } else {
            Value(Repr::Copied(bytes.into()))
        }
    }

    /// The `len` bytes at `start` of `backing`: shared if that is worth it, copied otherwise.
    ///
    /// # Panics
    /// If the range is not within the backing; a value's source has checked it.
    pub(crate) fn shared(backing: &Arc<impl Backing + 'static>, start: usize, len: usize) -> Value {
        let bytes = &backing.bytes()[start..start + len];
        match (len >= SHARE_BYTES_MIN, u32::try_from(start), u32::try_from(len)) {
            (true, Ok(start), Ok(len)) => Value(Repr::Shared { backing: backing.clone(), start, len }),
            _ => Value::copied(bytes),
        }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Copied(bytes) => bytes,
            Repr::Shared { backing, start, len } => &backing.bytes()[*start as usize..*start as usize + *len as usize],
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        **self == **other
    }
}

impl Eq for Value {}

impl PartialEq<[u8]> for Value {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<[u8; N]> for Value {
    fn eq(&self, other: &[u8; N]) -> bool {
        **self == other[..]
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Value {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Vec<u8> {
        value.to_vec()
    }
}

impl fmt::Debug for Value {
    /// The length alone: a value must not reach a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.len())
    }
}
