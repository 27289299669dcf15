//! The sorted-source trait that memtables, sorted tables and merges share.
//!
//! A cursor stands on an entry or on none ("not valid": before the first or behind the last). Entries
//! come in the engine's order: user key ascending in byte order, then trailer descending, so that of one
//! key's versions the newest comes first. What `key` and `value` return is valid until the cursor moves.

use crate::error::Result;
use crate::types::{Seq, Trailer};
use crate::value::Value;

/// A sorted row of entries that can be walked both ways.
pub(crate) trait Cursor {
    /// Whether the cursor stands on an entry.
    fn valid(&self) -> bool;

    /// Move to the first entry.
    fn seek_to_first(&mut self) -> Result<()>;

    /// Move to the last entry.
    fn seek_to_last(&mut self) -> Result<()>;

    /// Move to the first entry at or after (`key`, `trailer`).
    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()>;

    /// Move to the last entry strictly before (`key`, `trailer`).
    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()>;

    /// Move to the next entry. The cursor must be valid.
    fn next(&mut self) -> Result<()>;

    /// Move to the entry before. The cursor must be valid.
    fn prev(&mut self) -> Result<()>;

    /// How many of the entries that follow are reached by [`next_plain`](Cursor::next_plain): each a put of a key of its own, near in memory, seen by a
    /// reader at `seq`, and of a key less than `before`. A source that cannot tell cheaply says none. The cursor must be valid.
    fn plain_ahead(&self, _seq: Seq, _before: Option<&[u8]>) -> usize {
        0
    }

    /// Move to the next entry, which [`plain_ahead`](Cursor::plain_ahead) has counted.
    fn next_plain(&mut self) {}

    /// The user key. The cursor must be valid.
    fn key(&self) -> &[u8];

    /// Sequence number and kind; never [`Kind::PutRun`](crate::types::Kind::PutRun), which sources resolve. The cursor must be valid.
    fn trailer(&self) -> Trailer;

    /// The value where it lies in memory already, empty for a delete; `None` if it takes reading from
    /// a file ([`Cursor::value`]). The cursor must be valid.
    fn value_ref(&self) -> Option<&[u8]>;

    /// The value, copied if small, sharing memory with its source if large. The cursor must be valid.
    fn value(&self) -> Result<Value>;
}

impl<C: Cursor + ?Sized> Cursor for Box<C> {
    fn valid(&self) -> bool {
        (**self).valid()
    }

    fn seek_to_first(&mut self) -> Result<()> {
        (**self).seek_to_first()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        (**self).seek_to_last()
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        (**self).seek(key, trailer)
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        (**self).seek_before(key, trailer)
    }

    fn next(&mut self) -> Result<()> {
        (**self).next()
    }

    fn prev(&mut self) -> Result<()> {
        (**self).prev()
    }

    fn plain_ahead(&self, seq: Seq, before: Option<&[u8]>) -> usize {
        (**self).plain_ahead(seq, before)
    }

    fn next_plain(&mut self) {
        (**self).next_plain();
    }

    fn key(&self) -> &[u8] {
        (**self).key()
    }

    fn trailer(&self) -> Trailer {
        (**self).trailer()
    }

    fn value_ref(&self) -> Option<&[u8]> {
        (**self).value_ref()
    }

    fn value(&self) -> Result<Value> {
        (**self).value()
    }
}
