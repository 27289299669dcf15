//! `Authentic<T>`: proof that a tag was checked.

use std::ops::Deref;

/// A value that comes from bytes whose tag has been checked under the right key.
///
/// It is made in `crypto` alone, where the check just happened, so a function that takes an `Authentic<Block>` cannot be
/// handed bytes from anywhere else. A reader turns opened bytes into something better with [`map`](Authentic::map) and
/// [`try_map`](Authentic::try_map); such a closure makes its result from its argument, and takes nothing from elsewhere.
#[derive(Debug)]
pub(crate) struct Authentic<T>(T);

impl<T> Authentic<T> {
    /// For callers inside `crypto` that have checked the tag in the lines above.
    pub(super) fn vouch(value: T) -> Authentic<T> {
        Authentic(value)
    }

    /// Something made from the value: parsed, decompressed, a part of it.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U) -> Authentic<U> {
        Authentic(make(self.0))
    }

    /// Something made from the value, if it can be. Bytes that are authentic and yet make no sense were sealed so.
    pub(crate) fn try_map<U, E>(self, make: impl FnOnce(T) -> Result<U, E>) -> Result<Authentic<U>, E> {
        make(self.0).map(Authentic)
    }

    /// The value alone; from here on nothing says that it is authentic.
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

impl<T: Default> Authentic<T> {
    /// The value alone, for who may not take this apart; what is left vouches for an empty one.
    pub(crate) fn take(&mut self) -> T {
        std::mem::take(&mut self.0)
    }
}

impl<T> Deref for Authentic<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
