//! Many sorted streams into one, and which version of a key a snapshot sees.
//!
//! [`MergeCursor`] walks the union of its sources in the engine's order. [`VisibleCursor`] walks what a reader at one
//! sequence number sees of it: the newest visible version of each key, deletes hidden.
//!
//! Both go both ways and may turn around at any entry. The merge keeps every source where the *current direction* wants it:
//!
//! ```text
//! forward   every source stands on its first entry at or after the merge's place; the smallest is the merge's
//! backward  every source stands on its last entry at or before the merge's place; the largest is the merge's
//! ```
//!
//! A turn re-seeks all sources but the current one, and costs as much as a seek; walking on costs one step of one source
//! and one replay of its path in the loser tree: log2(n) comparisons, each of which is one of two numbers unless keys agree
//! in their first eight bytes. Sources never hold the same (key, trailer) twice between them; if they did, the one
//! with the lower index would come first forward, and last backward.

use std::cmp::Ordering;

use zeroize::{DefaultIsZeroes, Zeroizing};

use crate::crypto::Wiped;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::format::block::head;
use crate::types::{Kind, Seq, Trailer, UserKey};
use crate::value::{SHARE_BYTES_MIN, Value};

/// Hidden entries in a row after which a scan seeks past them instead of stepping over them.
const HIDDEN_STEPS_MAX: usize = 8;

/// A sorted source of any kind.
pub(crate) type Source = Box<dyn Cursor + Send>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// The union of several sorted sources, in order.
pub(crate) struct MergeCursor<S = Source> {
    sources: Vec<S>,
    /// Per source: whether it is valid and the first eight bytes of its key, which are plaintext as the key is.
    heads: Zeroizing<Vec<Head>>,
    /// A loser tree: `tree[0]` is the winner, `tree[k]` for k in 1..n the loser of the match at inner node k;
    /// source i is the leaf n + i. Empty when there are fewer than two sources.
    tree: Vec<usize>,
    /// How many sources are not exhausted in this direction.
    valid_sources: usize,
    /// How often in a row the same source has won: it pays to ask how long it will only if it does so often.
    wins_in_a_row: u32,
    direction: Direction,
}

#[derive(Clone, Copy, Default)]
struct Head {
    valid: bool,
    key: u64,
}

impl DefaultIsZeroes for Head {}

/// Wins in a row from which on it pays to ask how long they go on.
const WINS_MIN: u32 = 2;

impl<S: Cursor> MergeCursor<S> {
    /// The union of `sources`. It stands on no entry until it is told where to go.
    pub(crate) fn new(sources: Vec<S>) -> MergeCursor<S> {
        let count = sources.len();
        MergeCursor {
            sources,
            heads: Zeroizing::new(vec![Head::default(); count]),
            tree: if count > 1 { vec![0; count] } else { Vec::new() },
            valid_sources: 0,
            wins_in_a_row: 0,
            direction: Direction::Forward,
        }
    }

    #[inline]
    fn winner(&self) -> usize {
        self.tree.first().copied().unwrap_or(0)
    }

    #[inline]
    fn current(&self) -> &S {
        &self.sources[self.winner()]
    }

    /// Take every source to where `position` puts it, then play all matches.
    fn place_all(&mut self, direction: Direction, mut position: impl FnMut(&mut S) -> Result<()>) -> Result<()> {
        self.direction = direction;
        self.forget();
        for source in &mut self.sources {
            position(source)?;
        }
        self.play_all();
        Ok(())
    }

    /// Stand on no entry: a source that fails must not leave the merge on a wrong one.
    fn forget(&mut self) {
        self.heads.fill(Head::default());
        self.valid_sources = 0;
    }

    fn refresh_head(&mut self, i: usize) {
        let source = &self.sources[i];
        self.heads[i] = match source.valid() {
            true => Head { valid: true, key: head(source.key()) },
            false => Head::default(),
        };
    }

    /// Whether source `a` comes before source `b` in the current direction. Exhausted sources come last.
    fn wins(&self, a: usize, b: usize) -> bool {
        let (head_a, head_b) = (self.heads[a], self.heads[b]);
        if !(head_a.valid && head_b.valid) {
            return head_a.valid || (!head_b.valid && a < b);
        }
        let order = head_a.key.cmp(&head_b.key).then_with(|| {
            let (a, b) = (&self.sources[a], &self.sources[b]);
            // Trailers descend.
            a.key().cmp(b.key()).then_with(|| b.trailer().cmp(&a.trailer()))
        });
        match order.then(a.cmp(&b)) {
            Ordering::Less => self.direction == Direction::Forward,
            _ => self.direction == Direction::Backward,
        }
    }

    fn play_all(&mut self) {
        for i in 0..self.sources.len() {
            self.refresh_head(i);
        }
        self.valid_sources = self.heads.iter().filter(|head| head.valid).count();
        if !self.tree.is_empty() {
            self.tree[0] = self.play(1);
        }
    }

    /// Play all matches below inner node `node`; its winner is returned, its loser kept.
    fn play(&mut self, node: usize) -> usize {
        let count = self.sources.len();
        if node >= count {
            return node - count;
        }
        let (left, right) = (self.play(2 * node), self.play(2 * node + 1));
        let (winner, loser) = if self.wins(left, right) { (left, right) } else { (right, left) };
        self.tree[node] = loser;
        winner
    }

    /// Source `i`, the winner so far, has moved: play its matches again, up to the top.
    fn replay(&mut self, i: usize) {
        if self.valid_sources == 1 && self.sources[i].valid() {
            // Nobody left to play against. The head grows stale, and is read again only after a turn, which refreshes it.
            return;
        }
        self.refresh_head(i);
        if !self.heads[i].valid {
            self.valid_sources -= 1;
        }
        if self.tree.is_empty() {
            return;
        }
        let mut winner = i;
        let mut node = (i + self.sources.len()) / 2;
        while node > 0 {
            if self.wins(self.tree[node], winner) {
                std::mem::swap(&mut self.tree[node], &mut winner);
            }
            node /= 2;
        }
        self.wins_in_a_row = if winner == i { self.wins_in_a_row.saturating_add(1) } else { 0 };
        self.tree[0] = winner;
    }

    /// The source that would win if the winner were not there: it has lost to it, so it stands on its way to the top.
    fn runner_up(&self) -> Option<&S> {
        let mut best: Option<usize> = None;
        let mut node = (self.winner() + self.sources.len()) / 2;
        while node > 0 {
            let loser = self.tree[node];
            if self.heads[loser].valid && best.is_none_or(|best| self.wins(loser, best)) {
                best = Some(loser);
            }
            node /= 2;
        }
        best.map(|best| &self.sources[best])
    }

    /// Turn around: every other source goes to the far side of the current entry.
    fn turn(&mut self, direction: Direction) -> Result<()> {
        if self.direction == direction {
            return Ok(());
        }
        let winner = self.winner();
        let (before, from) = self.sources.split_at_mut(winner);
        let Some((current, after)) = from.split_first_mut() else { return Ok(()) };
        // Nothing is valid until every source is where it belongs.
        self.heads.fill(Head::default());
        self.valid_sources = 0;
        for other in before.iter_mut().chain(after) {
            match direction {
                Direction::Forward => other.seek(current.key(), current.trailer())?,
                Direction::Backward => other.seek_before(current.key(), current.trailer())?,
            }
        }
        self.direction = direction;
        self.play_all();
        Ok(())
    }

    fn step(&mut self, direction: Direction) -> Result<()> {
        debug_assert!(self.valid(), "a cursor on no entry has no neighbour");
        if !self.valid() {
            return Ok(());
        }
        self.turn(direction)?;
        let winner = self.winner();
        let source = &mut self.sources[winner];
        let moved = match direction {
            Direction::Forward => source.next(),
            Direction::Backward => source.prev(),
        };
        // Not handed on as it is: to copy a result that was written just now, bytes nobody wrote included, makes the processor
        // wait until all earlier stores are done.
        match moved {
            Ok(()) => {
                self.replay(winner);
                Ok(())
            }
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }
}

impl<S: Cursor> Cursor for MergeCursor<S> {
    #[inline]
    fn valid(&self) -> bool {
        self.heads.get(self.winner()).is_some_and(|head| head.valid)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.place_all(Direction::Forward, |source| source.seek_to_first())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.place_all(Direction::Backward, |source| source.seek_to_last())
    }

    fn seek(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        self.place_all(Direction::Forward, |source| source.seek(key, trailer))
    }

    fn seek_before(&mut self, key: &[u8], trailer: Trailer) -> Result<()> {
        self.place_all(Direction::Backward, |source| source.seek_before(key, trailer))
    }

    fn next(&mut self) -> Result<()> {
        self.step(Direction::Forward)
    }

    fn prev(&mut self) -> Result<()> {
        self.step(Direction::Backward)
    }

    #[inline]
    fn plain_ahead(&self, seq: Seq, before: Option<&[u8]>) -> usize {
        if self.direction == Direction::Backward {
            return 0;
        }
        if self.valid_sources == 1 {
            return self.current().plain_ahead(seq, before);
        }
        if self.wins_in_a_row < WINS_MIN {
            return 0;
        }
        // Before the next source's key nobody else has anything to say.
        let limit = match (self.runner_up().map(|next| next.key()), before) {
            (Some(next), Some(before)) => Some(next.min(before)),
            (next, before) => next.or(before),
        };
        self.current().plain_ahead(seq, limit)
    }

    /// The winner's head grows stale, and is read again by the next step that may find another winner.
    #[inline]
    fn next_plain(&mut self) {
        let winner = self.winner();
        self.sources[winner].next_plain();
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.current().key()
    }

    fn trailer(&self) -> Trailer {
        self.current().trailer()
    }

    #[inline]
    fn value_ref(&self) -> Option<&[u8]> {
        self.current().value_ref()
    }

    fn value(&self) -> Result<Value> {
        self.current().value()
    }
}

/// Some user keys: from `lower`, included, to `upper`, not included.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyRange {
    /// The first key in question; `None` for no limit.
    pub(crate) lower: Option<UserKey>,
    /// The first key behind; `None` for no limit.
    pub(crate) upper: Option<UserKey>,
}

impl KeyRange {
    pub(crate) fn is_below(&self, key: &[u8]) -> bool {
        self.lower.as_deref().is_some_and(|lower| key < lower)
    }

    pub(crate) fn is_above(&self, key: &[u8]) -> bool {
        self.upper.as_deref().is_some_and(|upper| key >= upper)
    }
}

/// What a reader at one sequence number sees of a sorted source: each key once, with its newest visible value.
///
/// A cursor of user keys, not of entries, so that it seeks by key alone. Walking past either end leads to no entry, and
/// only a seek leads back from there.
///
/// ```text
/// forward   the source stands on the entry shown; older versions of its key follow
/// backward  versions come oldest first, and which one is the newest visible shows only one step later. So the entry
///           shown is kept here (a small value copied, a large one shared), and the source stands further back
/// ```
pub(crate) struct VisibleCursor<C> {
    source: C,
    seq: Seq,
    range: KeyRange,
    place: Place,
    /// How many entries behind the one shown, which the source stands on, are to be shown as they are: see [`Cursor::plain_ahead`].
    plain: usize,
    /// The key shown when it is [`Place::Kept`]; otherwise room for the key that is to be passed.
    key: Wiped,
    trailer: Trailer,
    value: Kept,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On no entry.
    Nowhere,
    /// The source stands on the entry shown.
    OnSource,
    /// The entry shown is kept in the cursor; the source stands before all visible versions of its key.
    Kept,
}

/// A value that its source has moved away from.
#[derive(Default)]
struct Kept {
    copied: Wiped,
    shared: Option<Value>,
}

impl Kept {
    /// Take over the value that `source` stands on, without an allocation; false if it would take reading from a file.
    fn keep(&mut self, source: &impl Cursor) -> Result<bool> {
        self.shared = None;
        self.copied.clear();
        match source.value_ref() {
            Some(bytes) if bytes.len() < SHARE_BYTES_MIN => self.copied.extend_from_slice(bytes),
            Some(_) => self.shared = Some(source.value()?),
            None => return Ok(false),
        }
        Ok(true)
    }

    fn bytes(&self) -> &[u8] {
        self.shared.as_deref().unwrap_or(&self.copied)
    }
}

/// Behind every version of a key.
const OLDEST: Trailer = Trailer::new(Seq::ZERO, Kind::Delete);
/// Before every version of a key.
const NEWEST: Trailer = Trailer::seek(Seq::MAX);

impl<C: Cursor> VisibleCursor<C> {
    /// What a reader at `seq` sees of `source` within `range`. It stands on no entry until it is told where to go.
    pub(crate) fn new(source: C, seq: Seq, range: KeyRange) -> VisibleCursor<C> {
        VisibleCursor {
            source,
            seq,
            range,
            place: Place::Nowhere,
            plain: 0,
            key: Wiped::new(),
            trailer: OLDEST,
            value: Kept::default(),
        }
    }

    /// Whether the cursor stands on an entry.
    pub(crate) fn valid(&self) -> bool {
        self.place != Place::Nowhere
    }

    /// The key shown. The cursor must be valid; the empty key, which nothing has, otherwise.
    pub(crate) fn key(&self) -> &[u8] {
        match self.place {
            Place::Nowhere => &[],
            Place::OnSource => self.source.key(),
            Place::Kept => &self.key,
        }
    }

    /// Which version of the key is shown. The cursor must be valid.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn trailer(&self) -> Trailer {
        match self.place {
            Place::OnSource => self.source.trailer(),
            Place::Nowhere | Place::Kept => self.trailer,
        }
    }

    /// The value where it lies in memory; `None` if it takes reading from a file. The cursor must be valid.
    pub(crate) fn value_ref(&self) -> Option<&[u8]> {
        match self.place {
            Place::Nowhere => None,
            Place::OnSource => self.source.value_ref(),
            Place::Kept => Some(self.value.bytes()),
        }
    }

    /// The value, copied if small, shared if large. The cursor must be valid; empty otherwise.
    pub(crate) fn value(&self) -> Result<Value> {
        match (self.place, &self.value.shared) {
            (Place::Nowhere, _) => Ok(Value::copied(&[])),
            (Place::OnSource, _) => self.source.value(),
            (Place::Kept, Some(shared)) => Ok(shared.clone()),
            (Place::Kept, None) => Ok(Value::copied(&self.value.copied)),
        }
    }

    /// Move to the first key of the range.
    pub(crate) fn seek_to_first(&mut self) -> Result<()> {
        self.leave();
        match self.range.lower.as_deref() {
            Some(lower) => self.source.seek(lower, Trailer::seek(self.seq))?,
            None => self.source.seek_to_first()?,
        }
        self.show_forward(false)
    }

    /// Move to the last key of the range.
    pub(crate) fn seek_to_last(&mut self) -> Result<()> {
        self.leave();
        match self.range.upper.as_deref() {
            Some(upper) => self.source.seek_before(upper, NEWEST)?,
            None => self.source.seek_to_last()?,
        }
        self.show_backward()
    }

    /// Move to the first key of the range at or after `key`.
    pub(crate) fn seek(&mut self, key: &[u8]) -> Result<()> {
        if self.range.is_below(key) {
            return self.seek_to_first();
        }
        self.leave();
        self.source.seek(key, Trailer::seek(self.seq))?;
        self.show_forward(false)
    }

    /// Move to the last key of the range strictly before `key`.
    pub(crate) fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        if self.range.is_above(key) {
            return self.seek_to_last();
        }
        self.leave();
        self.source.seek_before(key, NEWEST)?;
        self.show_backward()
    }

    /// Move to the next key if that takes no more than a step within a block that was looked at already; false otherwise.
    #[inline]
    pub(crate) fn next_plain(&mut self) -> bool {
        let Some(left) = self.plain.checked_sub(1) else { return false };
        self.plain = left;
        self.source.next_plain();
        true
    }

    /// Move to the next key.
    pub(crate) fn next(&mut self) -> Result<()> {
        if self.next_plain() {
            return Ok(());
        }
        match std::mem::replace(&mut self.place, Place::Nowhere) {
            Place::Nowhere => return Ok(()),
            Place::OnSource => {
                self.remember_key();
                self.source.next()?;
            }
            Place::Kept => self.source.seek(&self.key, OLDEST)?,
        }
        self.show_forward(true)
    }

    /// Move to the key before.
    pub(crate) fn prev(&mut self) -> Result<()> {
        self.plain = 0;
        match std::mem::replace(&mut self.place, Place::Nowhere) {
            Place::Nowhere => return Ok(()),
            Place::OnSource => {
                self.remember_key();
                self.source.prev()?;
            }
            Place::Kept => {}
        }
        self.pass_backward()?;
        self.show_backward()
    }

    fn leave(&mut self) {
        self.place = Place::Nowhere;
        self.plain = 0;
    }

    fn remember_key(&mut self) {
        self.key.overwrite(0, self.source.key());
    }

    /// Show the first visible key from where the source stands; `passed`: the key in `self.key` has had its turn.
    fn show_forward(&mut self, mut passed: bool) -> Result<()> {
        let mut hidden = 0;
        while self.source.valid() {
            let trailer = self.source.trailer();
            let is_old = passed && self.source.key() == &*self.key;
            let is_new = !is_old && trailer.seq() > self.seq;
            if !is_old && self.range.is_above(self.source.key()) {
                break;
            }
            if !is_old && !is_new && trailer.kind() != Kind::Delete {
                self.place = Place::OnSource;
                self.plain = self.source.plain_ahead(self.seq, self.range.upper.as_deref());
                break;
            }
            hidden += 1;
            if hidden < HIDDEN_STEPS_MAX {
                if !is_old && !is_new {
                    // A delete: it hides all that is older.
                    self.remember_key();
                    passed = true;
                }
                self.source.next()?;
                continue;
            }
            hidden = 0;
            if is_old {
                self.source.seek(&self.key, OLDEST)?;
            } else {
                self.remember_key();
                passed = !is_new;
                self.source.seek(&self.key, if is_new { Trailer::seek(self.seq) } else { OLDEST })?;
            }
        }
        Ok(())
    }

    /// Take the source to the last entry before all versions of `self.key`, from one of them or from there already.
    fn pass_backward(&mut self) -> Result<()> {
        for _ in 0..HIDDEN_STEPS_MAX {
            if !(self.source.valid() && self.source.key() == &*self.key) {
                return Ok(());
            }
            self.source.prev()?;
        }
        self.source.seek_before(&self.key, NEWEST)
    }

    /// Show the last visible key at or before where the source stands, which is the last entry of its key.
    fn show_backward(&mut self) -> Result<()> {
        while self.source.valid() && !self.range.is_below(self.source.key()) {
            self.remember_key();
            if self.keep_newest_visible()? {
                return Ok(());
            }
            self.pass_backward()?;
        }
        Ok(())
    }

    /// Walk back over the versions of `self.key`, oldest first, and show the newest visible one, unless there is none or
    /// it is a delete.
    fn keep_newest_visible(&mut self) -> Result<bool> {
        let mut found = None;
        let mut is_near = true;
        let mut steps = 0;
        while self.source.valid() && self.source.trailer().seq() <= self.seq && self.source.key() == &*self.key {
            found = Some(self.source.trailer());
            is_near = self.value.keep(&self.source)?;
            steps += 1;
            if steps == HIDDEN_STEPS_MAX {
                is_near = false;
                break;
            }
            self.source.prev()?;
        }
        let Some(mut trailer) = found else { return Ok(false) };
        if !is_near {
            // Many versions, or a value that only the source itself can read: go to the newest visible one and stay there.
            self.source.seek(&self.key, Trailer::seek(self.seq))?;
            if !self.source.valid() || self.source.key() != &*self.key {
                return Ok(false);
            }
            trailer = self.source.trailer();
        }
        if trailer.kind() == Kind::Delete {
            return Ok(false);
        }
        self.trailer = trailer;
        self.place = if is_near { Place::Kept } else { Place::OnSource };
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
