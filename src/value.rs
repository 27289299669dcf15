//! A value as it is handed to the caller: small ones copied, large ones sharing memory with their source.
//!
//! It is the caller's from then on, whatever becomes of the table's key. When the last clone is dropped, its bytes are
//! overwritten. A value that lies in the [`Value`] itself is moved by plain copies, which the compiler leaves behind on the stack:
//! what must never stay there should be longer.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use zeroize::optimization_barrier;

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
/// share the memory that they were found in, which lives until the last such value is dropped. The bytes are overwritten then.
#[derive(Clone)]
pub struct Value(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Shared { backing: Arc<dyn Backing>, start: u32, len: u32 },
}

impl Value {
    /// A copy of `bytes`.
    pub(crate) fn copied(bytes: &[u8]) -> Value {
        // Sizes that are known when this is compiled need one allocation, and others two.
        let backing: Arc<dyn Backing> = match bytes.len() {
            0..=INLINE_BYTES => {
                let mut inline = [0; INLINE_BYTES];
                inline[..bytes.len()].copy_from_slice(bytes);
                return Value(Repr::Inline { len: bytes.len() as u8, bytes: inline });
            }
            25..=64 => copy_of::<64>(bytes),
            65..=128 => copy_of::<128>(bytes),
            129..SHARE_BYTES_MIN => copy_of::<256>(bytes),
            _ => Arc::new(Copied(Box::<[u8]>::from(bytes))),
        };
        // Only keys are copied that are longer, and they are at most 64 KiB.
        Value(Repr::Shared { backing, start: 0, len: bytes.len() as u32 })
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

impl Drop for Repr {
    fn drop(&mut self) {
        if let Repr::Inline { bytes, .. } = self {
            bytes.fill(0);
            optimization_barrier(bytes);
        }
    }
}

/// Bytes that are a value's own and its clones', overwritten when the last of them is dropped.
struct Copied<T: AsRef<[u8]> + AsMut<[u8]>>(T);

/// A copy with room for `N` bytes, of which the rest stays zero.
fn copy_of<const N: usize>(bytes: &[u8]) -> Arc<dyn Backing> {
    let mut copied = Arc::new(Copied([0; N]));
    if let Some(Copied(room)) = Arc::get_mut(&mut copied) {
        room[..bytes.len()].copy_from_slice(bytes);
    }
    copied
}

impl<T: AsRef<[u8]> + AsMut<[u8]> + Send + Sync> Backing for Copied<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Drop for Copied<T> {
    fn drop(&mut self) {
        let bytes = self.0.as_mut();
        bytes.fill(0);
        optimization_barrier(bytes);
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
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
