//! A table's keys in memory, and who may use them until when. Material is shared, permission is not.
//!
//! ```text
//!            TableLease (one per table)
//!              material   KeySet: one key per generation, shared by everybody
//!              users      owner ─ Permit      ada ─ Permit      service ─ Permit      as many as there are principals
//!                                   ▲ deadline, set by ada's own unwrap and by nothing else
//!              Table handles of ada ┘ each operation: the store's tick, the permit's deadline
//! ```
//!
//! # The life of a permit
//! A permit begins when its principal has unwrapped **every** live generation of the table, and ends five minutes (or what the
//! provider allows, if less) after that request was *sent*: what the provider decided later is not in its answer. Each use compares the
//! deadline with the store's tick: two loads, no call to a clock, no lock. The tick may be a moment behind, so a permit ends that moment
//! early. Under traffic the permit is renewed in the background shortly before its end; without traffic it is not, and the next use unwraps again.
//!
//! The deadline's lowest bit says whether the permit was used since that was last asked. So a use that finds it set writes nothing, and
//! the line of memory is shared by all cores.
//!
//! # Who looks at a permit, and when
//! Nobody walks over permits. One that begins is put on the warden's agenda, which asks [`TableLease::look`] what is to be done and when to look again:
//! ```text
//!  sent                      refresh - 60 s        refresh (285 s)      300 s
//!   ├───────────────────────────┼─────────────────────┼──────────────────┤
//!   begins                   use is noted      used? then renewed    ended: if nobody else has
//!                            from here on      else looked at        a permit, the table is put away
//!                                              every 3 s
//! ```
//!
//! # One request at a time
//! Of all threads that need the same permit one asks (*leads*), outside every lock, and the others wait for its answer
//! and share it, good or bad. Whatever ends a table's permits while a request is under way also voids the answer (`era`): an answer
//! from before a revocation was seen must not undo it.
//!
//! # What ends a permit early
//! A refusal that is about a principal ends that principal's permit, and nobody else's. One that is about the master key, and any of the
//! service's, ends all of them: the table is *refused* until an unwrap succeeds, and after a refusal of the service until one of the service's does,
//! or else a user and the service would take the table back and forth.
//!
//! # When the provider does not answer
//! By default access ends with the permit. With `serve_stale`, a permit that lasts, or ended by time alone, is prolonged by transient failures, a permit's
//! length at a time and up to the limit after its regular end, as long as the keys are in memory. Any other answer ends that at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::provider::{Lifetime, Principal};
use super::time::StoreTime;
use crate::crypto::TableKey;
use crate::error::{Error, ProviderClass, ProviderError, ProviderReason, Result};
use crate::event::PermitEnd;
use crate::format::Where;
use crate::format::frame::FileHeader;
use crate::io::{Scheduler, Signal, Tick};
use crate::sync::{Empty, Seldom};
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

    /// As [`opening`](KeySet::opening), for a file that stands twice and of which the first copy may be damaged.
    ///
    /// # Errors
    /// If neither copy has a header that can be read, what is wrong with the first.
    pub(crate) fn opening_twin(&self, copies: &[u8], place: &Where<'_>) -> Result<&TableKey> {
        let second = || self.opening(&copies[copies.len() / 2..], place);
        self.opening(copies, place).or_else(|refusal| second().map_err(|_| refusal))
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
    /// How long after its regular end a permit may be used while the provider does not answer. Zero: not at all.
    pub(crate) stale: Duration,
}

/// Why a table's keys should leave memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Nobody used the table for as long as a permit lasts. Its memtable can be flushed first, as the service.
    Idle,
    /// The master key, or the engine's own use of it, is refused: nothing can be flushed any more.
    Refused(ProviderError),
}

/// How a renewal went that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Renewal {
    /// The permit was renewed.
    Renewed,
    /// Somebody else is at it, or nothing was due any more.
    NotDue,
}

/// What is to be done about a permit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Nothing before then.
    Later(Tick),
    /// It should be renewed: it is in use, and about to end.
    Renew,
    /// It has ended.
    Ended,
    /// Nothing: it began anew since, and whoever saw that looks after it.
    Superseded,
}

/// What became of a principal's permit, for those who watch the store. Taken by who asked, and told without a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum News {
    /// It ended.
    Ended(PermitEnd),
    /// It lasts beyond its end for now, because the provider does not answer.
    StaleBegan,
    /// It does so no longer.
    StaleEnded,
}

/// One table's keys and permits. Every handle of the table shares it.
#[derive(Debug)]
pub(crate) struct TableLease {
    table: TableId,
    material: ArcSwapOption<KeySet>,
    requests: Mutex<Seldom<Requests>>,
    landed: Signal,
}

/// One principal's permission to use one table. Alone on its line of memory, which is read by every operation.
///
/// 0 and 1 are "ended": no moment is 0, and the bit for use counts for nothing.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Permit {
    /// Nanoseconds of store time; the lowest bit is [`USED`].
    deadline: AtomicU64,
    refresh_at: AtomicU64,
    /// Where it ends by what the provider allowed. The deadline is later than that only while the provider does not answer.
    allowed_until: AtomicU64,
    /// How often it began.
    begun: AtomicU64,
    /// The last beginning that is on the warden's agenda.
    listed: AtomicU64,
    principal: Principal,
}

const USED: u64 = 1;
/// How far the tick that operations compare with may be behind.
pub(crate) const TICK_PERIOD: Duration = Duration::from_millis(100);
/// The least time that there should be for a renewal.
const RENEWAL_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Requests {
    /// Counts what voids the answers that are under way.
    era: u64,
    users: BTreeMap<Principal, User>,
    /// As many users as there may be before those who are gone are looked for.
    users_max: usize,
    /// Boxed, like the failures, because most tables never have one and there are very many tables.
    refused: Option<Box<Refusal>>,
    news: Vec<(Principal, News)>,
    /// The table is dropped, or the store closed: for good.
    closed: bool,
}

/// A principal who has, had or wants a permit. Kept while anybody holds the permit, or it lasts.
#[derive(Debug)]
struct User {
    permit: Arc<Permit>,
    /// Its permit began and its end was not told yet.
    live: bool,
    /// It was told that the permit is used beyond its end.
    stale: bool,
    under_way: bool,
    /// How many requests have been answered.
    landed: u64,
    /// What was wrong with the last answer.
    failure: Option<Box<Error>>,
}

#[derive(Debug)]
struct Refusal {
    source: ProviderError,
    /// Whether it was the service who was refused: then nobody else's success means anything.
    of_service: bool,
}

impl Empty for Requests {
    fn empty() -> &'static Requests {
        static EMPTY: Requests =
            Requests { era: 0, users: BTreeMap::new(), users_max: 0, refused: None, news: Vec::new(), closed: false };
        &EMPTY
    }
}

enum Turn {
    Live(Arc<KeySet>),
    Lead { era: u64 },
    Follow { landed: u64 },
}

enum Landing {
    Granted(Arc<KeySet>),
    /// The provider did not answer, and the permit was prolonged.
    Stale {
        keys: Arc<KeySet>,
        error: Error,
    },
    /// Something ended the table's permits in the meantime.
    Void,
}

impl Permit {
    fn new(principal: Principal) -> Permit {
        let zero = || AtomicU64::new(0);
        Permit { deadline: zero(), refresh_at: zero(), allowed_until: zero(), begun: zero(), listed: zero(), principal }
    }

    /// Whose it is.
    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Whether its principal may use the table now. Before every operation, and every block that a scan enters.
    #[inline]
    pub(crate) fn check(&self, now: Tick) -> bool {
        let word = self.deadline.load(Ordering::Acquire);
        if now.0 >= word {
            return false;
        }
        if word & USED == 0 {
            self.mark_used(word);
        }
        true
    }

    #[cold]
    fn mark_used(&self, word: u64) {
        // If it fails, somebody marked it or a new permit began: neither needs this mark.
        let _ = self.deadline.compare_exchange(word, word | USED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The beginning that is to be put on the agenda, and when it is first to be looked at; `None` if it stands there already.
    pub(crate) fn to_list(&self) -> Option<(u64, Tick)> {
        let begun = self.begun.load(Ordering::Acquire);
        if self.listed.swap(begun, Ordering::AcqRel) == begun {
            return None;
        }
        Some((begun, self.watch_from()))
    }

    /// When use begins to count as a reason to renew: a fifth of the permit's length before that (a minute of five).
    fn watch_from(&self) -> Tick {
        let refresh_at = self.refresh_at.load(Ordering::Relaxed);
        let left = self.allowed_until.load(Ordering::Relaxed).saturating_sub(refresh_at);
        // 4 * 15 seconds of five minutes, where nobody shortened anything.
        Tick(refresh_at.saturating_sub(left.saturating_mul(4)))
    }

    #[cfg(test)]
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    fn is_service(&self) -> bool {
        self.principal == Principal::Service
    }

    fn lasts(&self, now: Tick) -> bool {
        now.0 < self.deadline.load(Ordering::Acquire)
    }

    fn begin(&self, allowed_until: Tick, refresh_at: Tick) {
        self.refresh_at.store(refresh_at.0, Ordering::Relaxed);
        self.allowed_until.store(allowed_until.0, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Release);
        self.last_until(allowed_until);
    }

    fn last_until(&self, tick: Tick) {
        // One less, so that the bit for use never makes it later than it is.
        self.deadline.store(tick.0.saturating_sub(1) & !USED, Ordering::Release);
    }

    fn end(&self) {
        self.deadline.store(0, Ordering::Release);
        self.allowed_until.store(0, Ordering::Relaxed);
    }

    /// Let it last another while, within what may be served stale. False if it must not.
    fn prolong(&self, terms: Terms<'_>) -> bool {
        let now = terms.time.now();
        let allowed_until = self.allowed_until.load(Ordering::Relaxed);
        // One that was ended, rather than ended by time, has none.
        if terms.stale.is_zero() || allowed_until == 0 {
            return false;
        }
        let limit = Tick(allowed_until).after(terms.stale);
        if now >= limit {
            return false;
        }
        if !self.lasts(now) {
            // Nobody looks after it any more.
            self.begun.fetch_add(1, Ordering::Release);
        }
        self.last_until(now.after(terms.permit).min(limit));
        true
    }

    /// End what was prolonged.
    fn shorten(&self) {
        let allowed_until = self.allowed_until.load(Ordering::Relaxed);
        if self.deadline.load(Ordering::Relaxed) > allowed_until {
            self.last_until(Tick(allowed_until));
        }
    }
}

impl User {
    fn new(principal: Principal) -> User {
        let permit = Arc::new(Permit::new(principal));
        User { permit, live: false, stale: false, under_way: false, landed: 0, failure: None }
    }

    /// Whether nobody misses it.
    fn is_gone(&self) -> bool {
        // Others hold the permit only by a clone of this one, which cannot be cloned while the caller holds the lock.
        Arc::strong_count(&self.permit) == 1 && !self.under_way && !self.live
    }

    /// Note that the permit ended, for `why`, and what there is to tell about it.
    fn ended(&mut self, why: PermitEnd, news: &mut Vec<(Principal, News)>) {
        self.permit.end();
        self.not_stale(news);
        if std::mem::take(&mut self.live) {
            news.push((self.permit.principal.clone(), News::Ended(why)));
        }
    }

    fn not_stale(&mut self, news: &mut Vec<(Principal, News)>) {
        if std::mem::take(&mut self.stale) {
            news.push((self.permit.principal.clone(), News::StaleEnded));
        }
    }
}

impl Requests {
    fn user(&mut self, permit: &Arc<Permit>) -> &mut User {
        // There is one as long as somebody holds the permit.
        self.users.entry(permit.principal.clone()).or_insert_with(|| User::new(permit.principal.clone()))
    }

    fn end_all(&mut self, source: &ProviderError) {
        self.era += 1;
        let Requests { users, news, .. } = self;
        users.values_mut().for_each(|user| user.ended(PermitEnd::Refused(source.clone()), news));
    }
}

impl TableLease {
    /// A lease without keys.
    pub(crate) fn new(table: TableId) -> TableLease {
        TableLease { table, material: ArcSwapOption::empty(), requests: Mutex::default(), landed: Signal::new() }
    }

    pub(crate) fn table(&self) -> TableId {
        self.table
    }

    /// A principal's permit: the one that there is, or one that has yet to begin.
    pub(crate) fn permit(&self, principal: &Principal) -> Arc<Permit> {
        let mut requests = self.requests.lock();
        if let Some(user) = requests.users.get(principal) {
            return user.permit.clone();
        }
        if requests.users.len() >= requests.users_max {
            requests.users.retain(|_, user| !user.is_gone());
            requests.users_max = 2 * requests.users.len() + 4;
        }
        requests.users.entry(principal.clone()).or_insert_with(|| User::new(principal.clone())).permit.clone()
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
        permit: &Arc<Permit>,
        terms: Terms<'_>,
        ask: &dyn Fn() -> Result<Unwrapped>,
    ) -> Result<Arc<KeySet>> {
        loop {
            match self.turn(permit, terms.time.advance())? {
                Turn::Live(keys) => return Ok(keys),
                Turn::Follow { landed } => self.follow(permit, terms, landed)?,
                Turn::Lead { era } => match self.lead(permit, era, terms, ask)? {
                    Landing::Granted(keys) | Landing::Stale { keys, .. } => return Ok(keys),
                    Landing::Void => {}
                },
            }
        }
    }

    /// Begin a permit with keys that this principal has just had made: the first use of a new table asks nobody.
    /// `sent` is when the request for them was sent.
    pub(crate) fn prime(
        &self,
        permit: &Arc<Permit>,
        terms: Terms<'_>,
        sent: Tick,
        unwrapped: Unwrapped,
    ) -> Result<Arc<KeySet>> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(Error::TableDropped { table: self.table });
        }
        self.grant(&mut requests, permit, terms, sent, unwrapped)
    }

    /// Use these keys from now on: the table's keys were changed. Permits last; answers that are under way are void, because they are about
    /// the keys before. If the table's keys are not in memory, they are not brought there.
    pub(crate) fn replace(&self, keys: &Arc<KeySet>) {
        let mut requests = self.requests.lock();
        requests.era += 1;
        if self.material.load().is_some() {
            self.material.store(Some(keys.clone()));
        }
    }

    /// What is to be done about the permit that began as the `begun`th. For the warden, at the times that this gives.
    pub(crate) fn look(&self, permit: &Arc<Permit>, begun: u64, terms: Terms<'_>) -> Look {
        let now = terms.time.now();
        if permit.begun.load(Ordering::Acquire) != begun {
            return Look::Superseded;
        }
        let mut requests = self.requests.lock();
        let user = requests.user(permit);
        if user.under_way {
            return Look::Later(now.after(retry_after(terms)));
        }
        let word = permit.deadline.load(Ordering::Acquire);
        if now.0 >= word {
            let why = match user.failure.as_deref() {
                Some(Error::KeyUnavailable { source, .. }) => PermitEnd::Refused(source.clone()),
                _ => PermitEnd::Idle,
            };
            let Requests { users, news, .. } = &mut **requests;
            if let Some(user) = users.get_mut(&permit.principal) {
                // It stays what it is: one that ended by time may yet be prolonged.
                user.not_stale(news);
                if std::mem::take(&mut user.live) {
                    news.push((permit.principal.clone(), News::Ended(why)));
                }
            }
            return Look::Ended;
        }
        let refresh_at = Tick(permit.refresh_at.load(Ordering::Relaxed));
        if now < refresh_at {
            // From here on it is use that counts.
            permit.deadline.fetch_and(!USED, Ordering::Relaxed);
            return Look::Later(refresh_at);
        }
        match word & USED {
            0 => Look::Later(now.after(retry_after(terms)).min(Tick(word))),
            _ => Look::Renew,
        }
    }

    /// Renew a permit for which [`look`](TableLease::look) asked it. For the background: no lock may be held by the caller.
    ///
    /// # Errors
    /// What `ask` gave. Whether that ended the permit, or leaves it to run out, the permit says.
    pub(crate) fn refresh(
        &self,
        permit: &Arc<Permit>,
        terms: Terms<'_>,
        ask: &dyn Fn() -> Result<Unwrapped>,
    ) -> Result<Renewal> {
        let era = {
            let mut requests = self.requests.lock();
            let (closed, era, now) = (requests.closed, requests.era, terms.time.now());
            let user = requests.user(permit);
            let due = permit.lasts(now) && now.0 >= permit.refresh_at.load(Ordering::Relaxed);
            if closed || user.under_way || !due {
                return Ok(Renewal::NotDue);
            }
            user.under_way = true;
            era
        };
        match self.lead(permit, era, terms, ask)? {
            Landing::Granted(_) => Ok(Renewal::Renewed),
            Landing::Void => Ok(Renewal::NotDue),
            Landing::Stale { error, .. } => Err(error),
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
        self.drop_keys(&mut requests);
        Some(ending)
    }

    /// End every permit and let go of the keys. The next use asks the provider.
    #[cfg(test)]
    pub(crate) fn forget(&self) {
        self.drop_keys(&mut self.requests.lock());
    }

    /// As [`forget`](TableLease::forget), for good: the table is dropped or the store closed.
    pub(crate) fn close(&self) {
        let mut requests = self.requests.lock();
        requests.closed = true;
        self.drop_keys(&mut requests);
    }

    /// The provider's refusal that ended all permits, if the last thing heard from it was that.
    #[cfg(test)]
    pub(crate) fn refused(&self) -> Option<ProviderError> {
        self.requests.lock().refused.as_ref().map(|refusal| refusal.source.clone())
    }

    /// What there is to tell. To be asked after each call that may have changed a permit.
    pub(crate) fn take_news(&self) -> Vec<(Principal, News)> {
        std::mem::take(&mut self.requests.lock().news)
    }

    fn turn(&self, permit: &Arc<Permit>, now: Tick) -> Result<Turn> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(Error::TableDropped { table: self.table });
        }
        if let (true, Some(keys)) = (permit.check(now), self.material()) {
            return Ok(Turn::Live(keys));
        }
        let era = requests.era;
        let user = requests.user(permit);
        if user.under_way {
            return Ok(Turn::Follow { landed: user.landed });
        }
        user.under_way = true;
        Ok(Turn::Lead { era })
    }

    fn follow(&self, permit: &Arc<Permit>, terms: Terms<'_>, landed: u64) -> Result<()> {
        let answered = || self.requests.lock().user(permit).landed != landed;
        terms.scheduler.wait_until(&self.landed, terms.time.clock(), None, &mut { answered });
        match &self.requests.lock().user(permit).failure {
            Some(error) => Err((**error).clone()),
            None => Ok(()),
        }
    }

    /// Ask, and share the answer. The caller has marked the request as under way.
    fn lead(
        &self,
        permit: &Arc<Permit>,
        era: u64,
        terms: Terms<'_>,
        ask: &dyn Fn() -> Result<Unwrapped>,
    ) -> Result<Landing> {
        // Ends the request whatever happens in `ask`, so that nobody waits for ever.
        let mut end = EndOfRequest { lease: self, permit, failure: None };
        let sent = terms.time.advance();
        let answer = ask();
        let outcome = self.land(permit, era, terms, sent, answer);
        end.failure = Some(outcome.as_ref().err().cloned());
        outcome
    }

    fn land(
        &self,
        permit: &Arc<Permit>,
        era: u64,
        terms: Terms<'_>,
        sent: Tick,
        answer: Result<Unwrapped>,
    ) -> Result<Landing> {
        let mut requests = self.requests.lock();
        if requests.closed {
            return Err(Error::TableDropped { table: self.table });
        }
        match answer {
            // A refusal is the newest there is to know even then.
            Ok(_) if requests.era != era => match &requests.refused {
                Some(refusal) => Err(self.unavailable(refusal.source.clone())),
                None => Ok(Landing::Void),
            },
            Ok(unwrapped) => self.grant(&mut requests, permit, terms, sent, unwrapped).map(Landing::Granted),
            Err(error) => {
                self.refuse(&mut requests, permit, terms, &error);
                match self.material() {
                    Some(keys) if requests.user(permit).stale => Ok(Landing::Stale { keys, error }),
                    _ => Err(error),
                }
            }
        }
    }

    fn grant(
        &self,
        requests: &mut Requests,
        permit: &Arc<Permit>,
        terms: Terms<'_>,
        sent: Tick,
        unwrapped: Unwrapped,
    ) -> Result<Arc<KeySet>> {
        if let Some(refusal) = requests.refused.as_deref().filter(|refusal| refusal.of_service)
            && !permit.is_service()
        {
            return Err(self.unavailable(refusal.source.clone()));
        }
        let lasts = unwrapped.lifetime.expire_after.map_or(terms.permit, |limit| limit.min(terms.permit));
        // Operations compare with a tick that may be behind.
        let lasts = lasts - TICK_PERIOD.min(lasts / 20);
        let allowed_until = sent.after(lasts);
        let refresh = unwrapped.lifetime.refresh_after.map_or(lasts, |limit| limit.min(lasts));
        // A twentieth early (15 seconds of five minutes): time enough for a slow answer and for some to fail. A short permit is renewed earlier.
        let refresh = refresh.min(lasts - (lasts / 20).max(RENEWAL_MIN).min(lasts / 2));
        if terms.time.now() >= allowed_until {
            let message = "the answer came after the permission in it had ended";
            return Err(self.unavailable(ProviderError::new(ProviderReason::TimedOut, message)));
        }
        let held = self.material();
        let Some(keys) = unwrapped.keys.sharing(held.as_deref()).map(Arc::new) else {
            return Err(Error::InvalidArgument { what: "keys of a table", detail: "there are none".to_owned() });
        };
        requests.refused = None;
        // The keys first: who sees the new deadline must find them.
        self.material.store(Some(keys.clone()));
        permit.begin(allowed_until, sent.after(refresh));
        let Requests { users, news, .. } = requests;
        let user = users.entry(permit.principal.clone()).or_insert_with(|| User::new(permit.principal.clone()));
        user.not_stale(news);
        user.live = true;
        Ok(keys)
    }

    /// Do what a failure's class asks for (`provider.rs` has the table).
    fn refuse(&self, requests: &mut Requests, permit: &Arc<Permit>, terms: Terms<'_>, error: &Error) {
        let Error::KeyUnavailable { source, .. } = error else {
            // An integrity error, or a key file that cannot be read: no reason to forget a good key.
            return self.try_later(requests, permit, terms);
        };
        let of_service = permit.is_service();
        match source.class() {
            ProviderClass::Principal if !of_service => {
                let Requests { users, news, .. } = requests;
                if let Some(user) = users.get_mut(&permit.principal) {
                    user.ended(PermitEnd::Refused(source.clone()), news);
                }
            }
            ProviderClass::Key | ProviderClass::Principal => {
                requests.end_all(source);
                requests.refused = Some(Box::new(Refusal { source: source.clone(), of_service }));
            }
            ProviderClass::Transient if permit.prolong(terms) => {
                ask_again(permit, terms);
                let Requests { users, news, .. } = requests;
                if let Some(user) = users.get_mut(&permit.principal) {
                    user.live = true;
                    if !std::mem::replace(&mut user.stale, true) {
                        news.push((permit.principal.clone(), News::StaleBegan));
                    }
                }
            }
            ProviderClass::Transient => ask_again(permit, terms),
            _ => self.try_later(requests, permit, terms),
        }
    }

    /// Let the permit run on to its regular end, and ask again.
    fn try_later(&self, requests: &mut Requests, permit: &Arc<Permit>, terms: Terms<'_>) {
        permit.shorten();
        ask_again(permit, terms);
        let Requests { users, news, .. } = requests;
        if let Some(user) = users.get_mut(&permit.principal) {
            user.not_stale(news);
        }
    }

    fn drop_keys(&self, requests: &mut Requests) {
        requests.era += 1;
        for user in requests.users.values_mut() {
            user.permit.end();
            (user.live, user.stale) = (false, false);
        }
        requests.users.retain(|_, user| !user.is_gone());
        requests.users_max = 0;
        self.material.store(None);
    }

    fn ending_of(&self, requests: &Requests, now: Tick) -> Option<Ending> {
        self.material.load().as_ref()?;
        if let Some(refusal) = &requests.refused {
            return Some(Ending::Refused(refusal.source.clone()));
        }
        let uses = |user: &User| !user.permit.is_service() && (user.under_way || user.permit.lasts(now));
        let in_use = self.table == TableId::SYSTEM || requests.users.values().any(uses);
        (!in_use).then_some(Ending::Idle)
    }

    fn unavailable(&self, source: ProviderError) -> Error {
        Error::KeyUnavailable { table: self.table, source }
    }
}

/// When to ask again about a permit that was not renewed: a hundredth of its length later (3 seconds of five minutes).
fn retry_after(terms: Terms<'_>) -> Duration {
    terms.permit / 100
}

fn ask_again(permit: &Permit, terms: Terms<'_>) {
    permit.refresh_at.store(terms.time.now().after(retry_after(terms)).0, Ordering::Relaxed);
}

/// Tells those who wait that a request is over, also when the thread that made it unwinds.
struct EndOfRequest<'a> {
    lease: &'a TableLease,
    permit: &'a Arc<Permit>,
    /// The outcome's failure; `None` if there was no outcome at all.
    failure: Option<Option<Error>>,
}

impl Drop for EndOfRequest<'_> {
    fn drop(&mut self) {
        let failure = self.failure.take().unwrap_or_else(|| {
            let message = "the request for the key was not finished";
            Some(self.lease.unavailable(ProviderError::new(ProviderReason::UnexpectedAnswer, message)))
        });
        let mut requests = self.lease.requests.lock();
        let user = requests.user(self.permit);
        user.under_way = false;
        user.landed += 1;
        user.failure = failure.map(Box::new);
        drop(requests);
        self.lease.landed.raise();
    }
}
