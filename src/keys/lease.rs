//! A table's keys in memory, and who may use them until when. Material is shared, permission is not.
//!
//! ```text
//!            TableLease (one per table)
//!              material   KeySet: one key per generation, shared by everybody
//!              permits    owner: deadline        service: deadline
//!                            │ set by the owner's own unwrap, by nothing else
//! ```
//!
//! # The life of a permit
//! A permit begins when its principal has unwrapped **every** live generation of the table, and ends five minutes (or what the
//! provider allows, if less) after that request was *sent*: what the provider decided later is not in its answer. Each use compares the
//! deadline with the store's time, which costs one load beside the one of the time. Under traffic the permit is renewed
//! in the background shortly before its end; without traffic it is not, and the next use unwraps again.
//!
//! The deadline's lowest bit says whether the permit was used since use was last noted. So a use that finds it set writes nothing, and
//! the line of memory is shared by all cores.
//!
//! # One request at a time
//! Of all threads that need the same permit one asks (*leads*), outside every lock, and the others wait for its answer
//! and share it, good or bad. Whatever ends a table's permits while a request is under way also voids the answer (`era`): an answer
//! from before a revocation was seen must not undo it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::provider::{Lifetime, Principal};
use super::time::StoreTime;
use crate::crypto::TableKey;
use crate::error::{Error, ProviderClass, ProviderError, ProviderReason, Result};
use crate::format::Where;
use crate::format::frame::FileHeader;
use crate::io::{Scheduler, Signal, Tick};
use crate::types::{Generation, TableId};

/// The unwrapped keys of a table: at least one, by generation.
#[derive(Debug)]
pub(crate) struct KeySet {
    /// Ascending by generation.
    older: Vec<Arc<TableKey>>,
    current: Arc<TableKey>,
}

impl KeySet {
    /// A set of these keys, or `None` of none.
    pub(crate) fn new(mut keys: Vec<Arc<TableKey>>) -> Option<KeySet> {
        keys.sort_by_key(|key| key.generation());
        let current = keys.pop()?;
        Some(KeySet { older: keys, current })
    }

    /// The set of this key alone.
    pub(crate) fn one(key: TableKey) -> KeySet {
        KeySet { older: Vec::new(), current: Arc::new(key) }
    }

    /// The key that new files and log sections are sealed under.
    pub(crate) fn current(&self) -> &Arc<TableKey> {
        &self.current
    }

    /// The key of one generation, if it is live.
    pub(crate) fn generation(&self, generation: Generation) -> Option<&Arc<TableKey>> {
        self.iter().find(|key| key.generation() == generation)
    }

    /// All keys, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<TableKey>> {
        self.older.iter().chain([&self.current])
    }

    /// The key for the file that begins with `header`: of the generation that the header names, which is not believed yet. A header that
    /// names none of these is left to the newest key to refuse.
    ///
    /// # Errors
    /// If there is no header that can be read, what is wrong with it.
    pub(crate) fn opening(&self, header: &[u8], place: &Where<'_>) -> Result<&TableKey> {
        let header = FileHeader::decode(header, place)?;
        Ok(self.generation(header.generation).unwrap_or(&self.current))
    }

    /// These keys, where `held` has the same generation as the very objects that others hold already.
    fn sharing(self, held: Option<&KeySet>) -> Option<KeySet> {
        let shared = |key: Arc<TableKey>| {
            let twin = held.and_then(|held| held.generation(key.generation()));
            twin.cloned().unwrap_or(key)
        };
        KeySet::new(self.older.into_iter().chain([self.current]).map(shared).collect())
    }
}

/// Which of a table's permits: so far one for the opener and one for the engine's own work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Seat {
    /// Whoever opened the store.
    Owner = 0,
    /// Flush, compaction, recovery, the store's own metadata.
    Service = 1,
}

impl Seat {
    pub(crate) const ALL: [Seat; 2] = [Seat::Owner, Seat::Service];

    pub(crate) fn principal(self) -> Principal {
        match self {
            Seat::Owner => Principal::Owner,
            Seat::Service => Principal::Service,
        }
    }
}

/// What an unwrap of all live generations gave.
#[derive(Debug)]
pub(crate) struct Unwrapped {
    pub(crate) keys: KeySet,
    /// The shortest of all answers.
    pub(crate) lifetime: Lifetime,
}

/// What leases wait with and reckon by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) time: &'a StoreTime,
    pub(crate) scheduler: &'a dyn Scheduler,
    /// The longest that a permit lasts.
    pub(crate) permit: Duration,
}

/// Why a table's keys should leave memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Nobody used the table for as long as a permit lasts. Its memtable can be flushed first, as the service.
    Idle,
    /// The master key, or the engine's own use of it, is refused: nothing can be flushed any more.
    Refused(ProviderError),
}

/// How a renewal went.
#[derive(Debug)]
pub(crate) enum Renewal {
    /// The permit was renewed.
    Renewed,
    /// Somebody else is at it, or nothing was due any more.
    NotDue,
    /// It was not renewed. `ended` says whether that ended the permit, or only leaves it to run out.
    Failed { error: Error, ended: bool },
}

/// One table's keys and permits. Every handle of the table shares it.
#[derive(Debug)]
pub(crate) struct TableLease {
    table: TableId,
    material: ArcSwapOption<KeySet>,
    permits: [Permit; 2],
    requests: Mutex<Requests>,
    landed: Signal,
}

/// 0 and 1 are "ended": no moment is 0, and the bit for use counts for nothing.
#[derive(Debug, Default)]
struct Permit {
    /// Nanoseconds of store time; the lowest bit is [`USED`].
    deadline: AtomicU64,
    refresh_at: AtomicU64,
    /// When use was last noted, in nanoseconds of store time.
    used_at: AtomicU64,
}

const USED: u64 = 1;
/// A table that was used this recently has traffic: its permit is renewed. One that was not is left to end, five minutes after
/// its keys were last asked for.
const TRAFFIC: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Requests {
    /// Counts what voids the answers that are under way.
    era: u64,
    seats: [Request; 2],
    /// Boxed, like the failures, because most tables never have one and there are very many tables.
    refused: Option<Box<ProviderError>>,
    /// The table is dropped, or the store closed: for good.
    closed: bool,
}

#[derive(Debug, Default)]
struct Request {
    under_way: bool,
    /// How many have been answered.
    landed: u64,
    /// What was wrong with the last answer.
    failure: Option<Box<Error>>,
}

enum Turn {
    Live(Arc<KeySet>),
    Lead { era: u64 },
    Follow { landed: u64 },
}

enum Landing {
    Granted(Arc<KeySet>),
    /// Something ended the table's permits in the meantime.
    Void,
}

impl TableLease {
    /// A lease without keys.
    pub(crate) fn new(table: TableId) -> TableLease {
        TableLease {
            table,
            material: ArcSwapOption::empty(),
            permits: Default::default(),
            requests: Mutex::default(),
            landed: Signal::new(),
        }
    }

    pub(crate) fn table(&self) -> TableId {
        self.table
    }

    /// Whether this principal may use the table now. Before every operation, and every block that a scan enters.
    #[inline]
    pub(crate) fn check(&self, seat: Seat, now: Tick) -> bool {
        let deadline = &self.permits[seat as usize].deadline;
        let word = deadline.load(Ordering::Acquire);
        if now.0 >= word {
            return false;
        }
        if word & USED == 0 {
            // If it fails, somebody marked it or a new permit began: neither needs this mark.
            let _ = deadline.compare_exchange(word, word | USED, Ordering::Relaxed, Ordering::Relaxed);
        }
        true
    }

    /// The keys, if they are in memory: for those whose permit was checked.
    pub(crate) fn material(&self) -> Option<Arc<KeySet>> {
        self.material.load_full()
    }

    /// The keys, for a principal who has or gets a permit. Asks the provider, through `ask`, unless there is one; waits
    /// if another thread does. No lock may be held by the caller.
    ///
    /// # Errors
    /// What `ask` gave; [`Error::TableDropped`] after [`close`](TableLease::close).
    pub(crate) fn acquire(
        &self,
        seat: Seat,
        terms: Terms<'_>,
        ask: &dyn Fn() -> Result<Unwrapped>,
    ) -> Result<Arc<KeySet>> {
        loop {
            match self.turn(seat, terms.time.advance())? {
                Turn::Live(keys) => return Ok(keys),
                Turn::Follow { landed } => self.follow(seat, terms, landed)?,
                Turn::Lead { era } => {
                    if let Landing::Granted(keys) = self.lead(seat, era, terms, ask)? {
                        return Ok(keys);
                    }
                }
            }
        }
    }

    /// Begin a permit with keys that this principal has just had made: the first use of a new table asks nobody.
    /// `sent` is when the request for them was sent.
    pub(crate) fn prime(&self, seat: Seat, terms: Terms<'_>, sent: Tick, unwrapped: Unwrapped) -> Result<Arc<KeySet>> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(Error::TableDropped { table: self.table });
        }
        self.grant(&mut requests, seat, terms, sent, unwrapped)
    }

    /// Note whether a permit was used since this was last asked. To be called a few times a second while the table is in use.
    pub(crate) fn note_use(&self, seat: Seat, now: Tick) {
        let permit = &self.permits[seat as usize];
        if permit.deadline.fetch_and(!USED, Ordering::Relaxed) & USED != 0 {
            permit.used_at.store(now.0, Ordering::Relaxed);
        }
    }

    /// Whether this permit should be renewed now: it lasts, is in use, and is about to end.
    pub(crate) fn refresh_due(&self, seat: Seat, now: Tick) -> bool {
        let permit = &self.permits[seat as usize];
        let word = permit.deadline.load(Ordering::Acquire);
        let used = word & USED != 0 || now <= Tick(permit.used_at.load(Ordering::Relaxed)).after(TRAFFIC);
        now.0 < word && used && now.0 >= permit.refresh_at.load(Ordering::Relaxed)
    }

    /// Renew a permit that is due. For the background: no lock may be held by the caller.
    pub(crate) fn refresh(&self, seat: Seat, terms: Terms<'_>, ask: &dyn Fn() -> Result<Unwrapped>) -> Renewal {
        let era = {
            let mut requests = self.requests.lock();
            let request = &requests.seats[seat as usize];
            if requests.closed || request.under_way || !self.refresh_due(seat, terms.time.now()) {
                return Renewal::NotDue;
            }
            requests.seats[seat as usize].under_way = true;
            requests.era
        };
        match self.lead(seat, era, terms, ask) {
            Ok(Landing::Granted(_)) => Renewal::Renewed,
            Ok(Landing::Void) => Renewal::NotDue,
            Err(error) => Renewal::Failed { error, ended: !self.check(seat, terms.time.now()) },
        }
    }

    /// Whether the keys should leave memory now, and why: when the last user's permit has ended, or the table is refused. The caller
    /// brings the table's data to safety and then calls [`forget_if_ended`](TableLease::forget_if_ended).
    pub(crate) fn ending(&self, now: Tick) -> Option<Ending> {
        let requests = self.requests.lock();
        self.ending_of(&requests, now)
    }

    /// Let go of the keys if there is still reason to. They are wiped when the last reader lets go of them, too.
    pub(crate) fn forget_if_ended(&self, now: Tick) -> Option<Ending> {
        let mut requests = self.requests.lock();
        let ending = self.ending_of(&requests, now)?;
        self.end_all(&mut requests);
        self.material.store(None);
        Some(ending)
    }

    /// End every permit and let go of the keys. The next use asks the provider.
    pub(crate) fn forget(&self) {
        let mut requests = self.requests.lock();
        self.end_all(&mut requests);
        self.material.store(None);
    }

    /// As [`forget`](TableLease::forget), for good: the table is dropped or the store closed.
    pub(crate) fn close(&self) {
        self.requests.lock().closed = true;
        self.forget();
    }

    /// The provider's refusal that ended all permits, if the last thing heard from it was that.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn refused(&self) -> Option<ProviderError> {
        self.requests.lock().refused.as_deref().cloned()
    }

    fn turn(&self, seat: Seat, now: Tick) -> Result<Turn> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(Error::TableDropped { table: self.table });
        }
        if let (true, Some(keys)) = (self.check(seat, now), self.material()) {
            return Ok(Turn::Live(keys));
        }
        let era = requests.era;
        let request = &mut requests.seats[seat as usize];
        if request.under_way {
            return Ok(Turn::Follow { landed: request.landed });
        }
        request.under_way = true;
        Ok(Turn::Lead { era })
    }

    fn follow(&self, seat: Seat, terms: Terms<'_>, landed: u64) -> Result<()> {
        let answered = || self.requests.lock().seats[seat as usize].landed != landed;
        terms.scheduler.wait_until(&self.landed, terms.time.clock(), None, &mut { answered });
        match &self.requests.lock().seats[seat as usize].failure {
            Some(error) => Err((**error).clone()),
            None => Ok(()),
        }
    }

    /// Ask, and share the answer. The caller has marked the request as under way.
    fn lead(&self, seat: Seat, era: u64, terms: Terms<'_>, ask: &dyn Fn() -> Result<Unwrapped>) -> Result<Landing> {
        // Ends the request whatever happens in `ask`, so that nobody waits for ever.
        let mut end = EndOfRequest { lease: self, seat, failure: None };
        let sent = terms.time.advance();
        let answer = ask();
        let outcome = self.land(seat, era, terms, sent, answer);
        end.failure = Some(outcome.as_ref().err().cloned());
        outcome
    }

    fn land(&self, seat: Seat, era: u64, terms: Terms<'_>, sent: Tick, answer: Result<Unwrapped>) -> Result<Landing> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(Error::TableDropped { table: self.table });
        }
        match answer {
            // A refusal is the newest there is to know even then.
            Ok(_) if requests.era != era => match &requests.refused {
                Some(source) => Err(Error::KeyUnavailable { table: self.table, source: (**source).clone() }),
                None => Ok(Landing::Void),
            },
            Ok(unwrapped) => self.grant(&mut requests, seat, terms, sent, unwrapped).map(Landing::Granted),
            Err(error) => {
                self.refuse(&mut requests, seat, terms, &error);
                Err(error)
            }
        }
    }

    fn grant(
        &self,
        requests: &mut Requests,
        seat: Seat,
        terms: Terms<'_>,
        sent: Tick,
        unwrapped: Unwrapped,
    ) -> Result<Arc<KeySet>> {
        let lasts = unwrapped.lifetime.expire_after.map_or(terms.permit, |limit| limit.min(terms.permit));
        let refresh = unwrapped.lifetime.refresh_after.map_or(lasts, |limit| limit.min(lasts));
        // A twentieth early (15 seconds of five minutes): time enough for a slow answer and for some to fail.
        let refresh = refresh.min(lasts - lasts / 20);
        let deadline = sent.after(lasts);
        if terms.time.now() >= deadline {
            let message = "the answer came after the permission in it had ended";
            let source = ProviderError::new(ProviderReason::TimedOut, message);
            return Err(Error::KeyUnavailable { table: self.table, source });
        }
        let held = self.material();
        let Some(keys) = unwrapped.keys.sharing(held.as_deref()).map(Arc::new) else {
            return Err(Error::InvalidArgument { what: "keys of a table", detail: "there are none".to_owned() });
        };
        requests.refused = None;
        // The keys first: who sees the new deadline must find them.
        self.material.store(Some(keys.clone()));
        let permit = &self.permits[seat as usize];
        permit.refresh_at.store(sent.after(refresh).0, Ordering::Relaxed);
        // One less, so that the bit for use never makes it later than it is.
        permit.deadline.store(deadline.0.saturating_sub(1) & !USED, Ordering::Release);
        Ok(keys)
    }

    /// Do what a failure's class asks for (`provider.rs` has the table).
    fn refuse(&self, requests: &mut Requests, seat: Seat, terms: Terms<'_>, error: &Error) {
        let source = match error {
            Error::KeyUnavailable { source, .. } => source,
            // An integrity error, or a key file that cannot be read: no reason to forget a good key.
            _ => return self.try_later(seat, terms),
        };
        match (source.class(), seat) {
            (ProviderClass::Key, _) | (ProviderClass::Principal, Seat::Service) => {
                self.end_all(requests);
                requests.refused = Some(Box::new(source.clone()));
            }
            (ProviderClass::Principal, Seat::Owner) => self.end(Seat::Owner),
            _ => self.try_later(seat, terms),
        }
    }

    /// Let the permit run on, and ask again a hundredth of its length later (3 seconds of five minutes).
    fn try_later(&self, seat: Seat, terms: Terms<'_>) {
        let again = terms.time.now().after(terms.permit / 100);
        self.permits[seat as usize].refresh_at.store(again.0, Ordering::Relaxed);
    }

    fn end(&self, seat: Seat) {
        self.permits[seat as usize].deadline.store(0, Ordering::Release);
    }

    fn end_all(&self, requests: &mut Requests) {
        requests.era += 1;
        Seat::ALL.into_iter().for_each(|seat| self.end(seat));
    }

    fn ending_of(&self, requests: &Requests, now: Tick) -> Option<Ending> {
        self.material.load().as_ref()?;
        if let Some(refused) = &requests.refused {
            return Some(Ending::Refused((**refused).clone()));
        }
        let owner = Seat::Owner as usize;
        let in_use = self.table == TableId::SYSTEM
            || requests.seats[owner].under_way
            || now.0 < self.permits[owner].deadline.load(Ordering::Acquire);
        (!in_use).then_some(Ending::Idle)
    }
}

/// Tells those who wait that a request is over, also when the thread that made it unwinds.
struct EndOfRequest<'a> {
    lease: &'a TableLease,
    seat: Seat,
    /// The outcome's failure; `None` if there was no outcome at all.
    failure: Option<Option<Error>>,
}

impl Drop for EndOfRequest<'_> {
    fn drop(&mut self) {
        let failure = self.failure.take().unwrap_or_else(|| {
            let source =
                ProviderError::new(ProviderReason::UnexpectedAnswer, "the request for the key was not finished");
            Some(Error::KeyUnavailable { table: self.lease.table, source })
        });
        let mut requests = self.lease.requests.lock();
        let request = &mut requests.seats[self.seat as usize];
        request.under_way = false;
        request.landed += 1;
        request.failure = failure.map(Box::new);
        drop(requests);
        self.lease.landed.raise();
    }
}
