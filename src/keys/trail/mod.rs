//! The trail: every use of a key that is not the store's own, as a record that cannot be taken out again unnoticed.
//!
//! ```text
//! KeyBroker ── every request to a provider ──┐                                               manifest
//! db        ── calls that change tables ─────┤                                                  ^ head: count, MAC
//!                                            v                                                  │
//!                        Trail: who, when, what ── number, previous, MAC ── TrailSink ── folder/YYYY/MM/DD/*.jsonl
//!
//! record.rs    a record, and the text that it is written as        calls.rs     what a record shows of which request
//! chain.rs     what makes a missing or altered record show         calendar.rs  days
//! lines.rs     the sink that writes files                          reader.rs    reads them
//! verify.rs    checks them                                         uses.rs      which tables use a key, by the trail
//! ```
//! Off by default, and then it costs the broker one comparison per request to a provider, and nothing per operation.
//!
//! # What is in it
//! Each request to a provider about a managed or customer key, those that failed too, and each call that creates, changes or drops a table. Not in
//! it: the owned key's requests, as at DynamoDB, and reads and writes of data. A record shows names, numbers and encryption contexts, never key bytes,
//! wrapped or not. Who stands in it is who asked the provider: the creator for `CreateGrant`, the accessing principal for `Decrypt`, the
//! engine for what it does on its own account.
//!
//! # The order of things
//! A record is made once the answer is there, and before it is used. Records are numbered and written one after the other under the trail's own lock;
//! no other lock is held. So numbers, times and lines come in the same order, unless somebody sets the clock back.
//!
//! # When it cannot be written
//! By default the store goes on: [`Event::TrailFailed`] says so, and the next record that can be written is preceded by a `TrailGap` that counts what is
//! missing. With [`TrailOptions::required`] the provider's answer is thrown away instead, and its use fails as
//! [`NotRecorded`](ProviderReason::NotRecorded), a transient failure: permits that were given live on until they end.

mod calendar;
mod calls;
mod chain;
#[cfg(feature = "trail")]
mod lines;
#[cfg(feature = "trail")]
mod reader;
mod record;
#[cfg(feature = "trail")]
mod uses;
#[cfg(feature = "trail")]
mod verify;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

pub use self::calendar::Day;
pub(super) use self::calls::{Call, Managed, Owned, Retire};
use self::chain::{ChainKeys, Point};
#[cfg(feature = "trail")]
pub use self::lines::JsonLinesTrail;
#[cfg(feature = "trail")]
pub use self::reader::{TrailEntry, TrailFile, TrailFolder};
pub use self::record::{ENGINE, KMS, PROGRAM, TrailIdentity, TrailLink, TrailRecord, TrailResource, TrailValue};
#[cfg(feature = "trail")]
pub use self::uses::KeyUse;
#[cfg(feature = "trail")]
pub use self::verify::{TrailDamage, TrailFault, TrailReport};
use super::lease::KeySet;
use super::provider::{Principal, ProviderResult};
use super::system::SystemKeys;
use crate::crypto::TrailKey;
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::event::{Event, EventSink};
use crate::format::manifest::TrailHead;
use crate::io::{Clock, Environment, Tick, Vfs};
use crate::options::TrailOptions;
use crate::types::{StoreId, TableId};

/// The longest that records wait for the manifest to attest them.
const ATTEST_PERIOD: Duration = Duration::from_secs(3600);

/// Keeps records. [`JsonLinesTrail`] writes them to files; another one may send them away.
///
/// Called by one thread at a time, with no lock of the store held, while a request's caller waits.
pub trait TrailSink: Send + Sync + Debug {
    /// Keep a record, whole or not at all: once this returns `Ok`, a crash must not lose it. What is to be kept is
    /// [`TrailRecord::json`], byte for byte.
    ///
    /// # Errors
    /// Whatever kept it from being kept, or from being kept for certain. The next record has the same number.
    fn record(&self, record: &TrailRecord) -> io::Result<()>;

    /// The records of this store that were kept and whose number is `from` or higher, oldest first, as they were given: asked when the store is
    /// opened, so that the chain goes on from what survived a crash. `None` if this sink cannot tell; the chain then goes on from what the
    /// store itself remembers.
    ///
    /// # Errors
    /// Whatever kept them from being read. The store is then not opened.
    fn records_from(&self, store: StoreId, from: u64) -> io::Result<Option<Vec<String>>> {
        let _ = (store, from);
        Ok(None)
    }

    /// The folder that it writes to, if it does. A store refuses one that lies inside of it.
    fn folder(&self) -> Option<&Path> {
        None
    }
}

/// A store's end of its trail.
#[derive(Debug)]
pub(crate) struct Trail {
    store: StoreId,
    sink: Arc<dyn TrailSink>,
    options: TrailOptions,
    clock: Arc<dyn Clock>,
    events: Option<Arc<dyn EventSink>>,
    chain: Mutex<Chain>,
    /// When the manifest must attest what was written since it last did; 0 if nothing was. Boot time.
    attest_at: AtomicU64,
    /// Names of tables by their ids as they are written, if they are to be shown.
    names: Mutex<HashMap<String, String>>,
}

#[derive(Debug)]
struct Chain {
    system: SystemKeys,
    /// Of the generation of the system key that sealed last, once something was sealed.
    key: Option<TrailKey>,
    last: Point,
    gap: Gap,
}

/// What is known to be missing since the last record.
#[derive(Debug, Default)]
struct Gap {
    /// The last record that the manifest attests, if it is not where the sink keeps records.
    lost: Option<u64>,
    /// Events that could not be recorded.
    unwritten: u64,
}

/// Where a store's trail goes, as its opener said.
#[derive(Clone, Debug)]
pub(crate) struct TrailSetting {
    pub(crate) sink: Arc<dyn TrailSink>,
    pub(crate) options: TrailOptions,
}

/// What is recorded, before it has a time and a number.
struct Draft {
    principal: Principal,
    invoked_by: bool,
    source: &'static str,
    source_address: &'static str,
    name: &'static str,
    kind: &'static str,
    region: String,
    error: Option<(String, Option<String>)>,
    request: TrailValue,
    response: TrailValue,
    additional: TrailValue,
    read_only: bool,
    resources: Vec<TrailResource>,
}

/// A call of a table, for the trail.
#[derive(Debug)]
pub(crate) struct TableCall<'a> {
    /// As DynamoDB calls it.
    pub(crate) name: &'static str,
    pub(crate) principal: &'a Principal,
    /// The table, if it got so far that it had an id.
    pub(crate) table: Option<TableId>,
    pub(crate) table_name: &'a str,
    /// The master key that was asked for, as it was named.
    pub(crate) master_key: Option<&'a str>,
    /// ARN of the master key that the table is under afterwards, unless it is owned.
    pub(crate) master_key_arn: Option<&'a str>,
}

impl TrailSetting {
    /// Refuse a trail inside the store: it would stand there in clear, and be lost with it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], or [`Error::Io`] if one of the paths cannot be resolved.
    pub(crate) fn check_outside(&self, store: &Path, vfs: &dyn Vfs) -> Result<()> {
        let Some(folder) = self.sink.folder() else { return Ok(()) };
        let canonical = |path: &Path| vfs.canonical(path).map_err(|error| Error::io("resolve", path.display(), error));
        if canonical(folder)?.starts_with(canonical(store)?) {
            let detail = format!("{} lies inside the store {}", folder.display(), store.display());
            return Err(Error::InvalidArgument { what: "trail", detail });
        }
        Ok(())
    }
}

/// Where a trail goes on.
#[derive(Debug)]
pub(crate) struct TrailEnd {
    /// The record that the manifest attests.
    head: Point,
    /// The last record that follows from it.
    last: Point,
    /// Whether the sink lacks the record that the manifest attests.
    lost: bool,
}

impl TrailSetting {
    /// Where the trail of `store` goes on that had come as far as `head` says, and perhaps further. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if the sink cannot be read.
    pub(crate) fn find_end(&self, store: StoreId, keys: &KeySet, head: Option<&TrailHead>) -> Result<TrailEnd> {
        let head = head.map_or(Point::default(), |head| Point { sequence: head.events, mac: head.mac });
        // From the head itself on: if that one is missing, so may be others before it.
        let from = head.sequence.max(1);
        let lines = self.sink.records_from(store, from).map_err(|error| Error::io("read", "the trail", error))?;
        let Some(lines) = lines else {
            return Ok(TrailEnd { head, last: head, lost: false });
        };
        let (last, head_found) = chain::end(head, &lines, &ChainKeys::of(keys));
        Ok(TrailEnd { head, last, lost: !head_found })
    }
}

impl Trail {
    /// The trail of `store`, which goes on from `end`.
    pub(crate) fn new(
        setting: &TrailSetting,
        store: StoreId,
        end: &TrailEnd,
        system: SystemKeys,
        environment: &Environment,
        events: Option<Arc<dyn EventSink>>,
    ) -> Trail {
        let gap = Gap { lost: end.lost.then_some(end.head.sequence), unwritten: 0 };
        Trail {
            store,
            sink: setting.sink.clone(),
            options: setting.options.clone(),
            clock: environment.clock.clone(),
            events,
            chain: Mutex::new(Chain { system, key: None, last: end.last, gap }),
            attest_at: AtomicU64::new(u64::from(end.last != end.head)),
            names: Mutex::default(),
        }
    }

    /// Let go of the chain's key: the store is closed, and records nothing any more.
    pub(crate) fn forget_key(&self) {
        self.chain.lock().key = None;
    }

    /// Remember what a table is called, if names are to be shown.
    pub(crate) fn name_table(&self, table: TableId, name: &str) {
        if self.options.table_names {
            self.names.lock().insert(table.to_string(), name.to_owned());
        }
    }

    /// Record a request to a provider and what came of it.
    ///
    /// # Errors
    /// [`ProviderReason::NotRecorded`] if it could not be, and must be.
    pub(super) fn provider_asked<C: Call>(&self, call: &C, answer: &ProviderResult<C::Answer>) -> ProviderResult<()> {
        let mut shown = call.shown(answer.as_ref());
        self.show_name(&mut shown.request);
        let kept = self.keep(Draft {
            principal: shown.principal.clone(),
            invoked_by: true,
            source: KMS,
            source_address: ENGINE,
            name: shown.name,
            kind: "AwsApiCall",
            region: region(shown.keys.first().map(String::as_str)),
            error: answer.as_ref().err().map(|error| (format!("{:?}", error.reason), Some(error.message.clone()))),
            resources: shown.resources(),
            request: shown.request,
            response: shown.response,
            additional: if shown.additional.is_empty() {
                TrailValue::Null
            } else {
                TrailValue::object(shown.additional)
            },
            read_only: shown.read_only,
        });
        match kept {
            Err(reason) if self.options.required => Err(ProviderError::new(ProviderReason::NotRecorded, reason)),
            _ => Ok(()),
        }
    }

    /// Record a call of a table and what came of it. It has happened, so that failing to record it is told by an event alone.
    pub(crate) fn table_called(&self, call: &TableCall<'_>, failure: Option<&Error>) {
        let names = self.options.table_names;
        let id = call.table.map(|table| table.to_string());
        let mut request = Vec::new();
        request.extend(names.then(|| ("tableName", call.table_name.into())));
        request.extend(id.as_deref().map(|id| ("tableId", id.into())));
        request.extend(call.master_key.map(|key| ("masterKey", key.into())));
        let response = match (failure, call.master_key_arn) {
            (None, Some(arn)) => TrailValue::object([("masterKeyArn", arn.into())]),
            _ => TrailValue::Null,
        };
        // An error's words may hold the table's name.
        let error = failure.map(|error| (format!("{:?}", error.kind()), names.then(|| error.to_string())));
        let _ = self.keep(Draft {
            principal: call.principal.clone(),
            invoked_by: false,
            source: ENGINE,
            source_address: PROGRAM,
            name: call.name,
            kind: "AwsApiCall",
            region: region(call.master_key_arn),
            error,
            request: TrailValue::object(request),
            response,
            additional: TrailValue::Null,
            read_only: false,
            resources: id.iter().map(|id| TrailResource::table(self.store, id)).collect(),
        });
    }

    /// What the manifest should attest now, if there is anything: after an hour, or if `at_once`. Follow up with [`attested`](Trail::attested).
    pub(crate) fn head_due(&self, at_once: bool) -> Option<TrailHead> {
        let at = self.attest_at.load(Ordering::Acquire);
        if at == 0 || !at_once && self.clock.tick() < Tick(at) {
            return None;
        }
        let last = self.chain.lock().last;
        Some(TrailHead { events: last.sequence, mac: last.mac, at_ms: self.clock.wall_ms() })
    }

    /// The manifest attests this head.
    pub(crate) fn attested(&self, head: &TrailHead) {
        // What was written meanwhile keeps its own hour.
        let chain = self.chain.lock();
        if chain.last.sequence == head.events {
            self.attest_at.store(0, Ordering::Release);
        } else {
            self.attest_at.store(self.clock.tick().after(ATTEST_PERIOD).0, Ordering::Release);
        }
    }

    /// Put the table's name beside an encryption context that holds its id.
    fn show_name(&self, request: &mut TrailValue) {
        if !self.options.table_names {
            return;
        }
        let names = self.names.lock();
        let TrailValue::Object(members) = request else { return };
        let in_context =
            |(_, value): &(String, TrailValue)| names.get(value.member("strongroom:table")?.text()?).cloned();
        if let Some(name) = members.iter().find_map(in_context) {
            members.push(("tableName".to_owned(), name.into()));
        }
    }

    fn keep(&self, draft: Draft) -> Result<(), String> {
        let failed = {
            let mut chain = self.chain.lock();
            let outcome = chain.fill_gap(self).and_then(|()| chain.put(self, draft));
            if outcome.is_err() {
                chain.gap.unwritten += 1;
            }
            outcome.err().map(|error| (error.to_string(), chain.gap.unwritten))
        };
        let Some((reason, lost)) = failed else { return Ok(()) };
        if let Some(events) = &self.events {
            events.event(&Event::TrailFailed { lost, reason: reason.clone() });
        }
        Err(reason)
    }
}

impl Chain {
    /// Say first what is missing.
    fn fill_gap(&mut self, trail: &Trail) -> io::Result<()> {
        let Gap { lost, unwritten } = self.gap;
        if lost.is_none() && unwritten == 0 {
            return Ok(());
        }
        let mut additional = Vec::new();
        additional.extend(lost.map(|attested| ("attestedRecord", TrailValue::from(attested))));
        additional.extend((unwritten > 0).then(|| ("unwrittenRecords", TrailValue::from(unwritten))));
        let gap = Draft {
            principal: Principal::Service,
            invoked_by: false,
            source: ENGINE,
            source_address: ENGINE,
            name: "TrailGap",
            kind: "AwsServiceEvent",
            region: region(None),
            error: None,
            request: TrailValue::Null,
            response: TrailValue::Null,
            additional: TrailValue::object(additional),
            read_only: true,
            resources: Vec::new(),
        };
        self.put(trail, gap)?;
        self.gap = Gap::default();
        Ok(())
    }

    /// Give a record its time, number and MAC, and hand it to the sink. The chain goes on behind it only once it was kept.
    fn put(&mut self, trail: &Trail, draft: Draft) -> io::Result<()> {
        let out_of = |what: &'static str| io::Error::other(what);
        let sequence = self.last.sequence.checked_add(1).ok_or_else(|| out_of("the trail's numbers have run out"))?;
        let system = self.system.sealing().map_err(io::Error::other)?;
        let key = match &self.key {
            Some(key) if key.generation() == system.generation() => key,
            _ => self.key.insert(system.trail_key()),
        };
        let generation = key.generation().0;
        let link = TrailLink { sequence, generation, previous: self.last.mac, mac: Default::default() };
        let mut record = draft.into_record(trail.store, trail.clock.wall_ms(), link);
        record.link.mac = key.mac(record.unsealed().as_bytes());
        catch_unwind(AssertUnwindSafe(|| trail.sink.record(&record)))
            .unwrap_or_else(|_| Err(out_of("the sink panicked")))?;
        self.last = Point { sequence, mac: record.link.mac };
        if trail.attest_at.load(Ordering::Acquire) == 0 {
            trail.attest_at.store(trail.clock.tick().after(ATTEST_PERIOD).0, Ordering::Release);
        }
        Ok(())
    }
}

impl Draft {
    fn into_record(self, store: StoreId, time_ms: u64, link: TrailLink) -> TrailRecord {
        let kind = match self.principal {
            Principal::Owner => "Owner",
            Principal::Service => "Service",
            Principal::Named(_) => "Principal",
        };
        let id = calls::principal_id(&self.principal).to_owned();
        let invoked_by = self.invoked_by.then(|| ENGINE.to_owned());
        let [request_id, event_id] = ids(store, time_ms, &link);
        TrailRecord {
            identity: TrailIdentity { kind: kind.to_owned(), id, invoked_by },
            time_ms,
            source: self.source.to_owned(),
            name: self.name.to_owned(),
            region: self.region,
            source_address: self.source_address.to_owned(),
            error: self.error,
            request: self.request,
            response: self.response,
            additional: self.additional,
            request_id,
            event_id,
            read_only: self.read_only,
            resources: self.resources,
            kind: self.kind.to_owned(),
            store,
            link,
        }
    }
}

/// Two ids in the form of UUIDs that no other record has. The time is in them for copies of a store, which go on from one point.
fn ids(store: StoreId, time_ms: u64, link: &TrailLink) -> [String; 2] {
    let mut hash = Sha256::new();
    hash.update(store.as_bytes());
    hash.update(link.sequence.to_le_bytes());
    hash.update(link.previous);
    hash.update(time_ms.to_le_bytes());
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = |digits: &str| [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-");
    [uuid(&digits[..32]), uuid(&digits[32..])]
}

/// The region in a key's ARN, `arn:partition:service:region:account:resource`.
fn region(arn: Option<&str>) -> String {
    let region = arn.filter(|arn| arn.starts_with("arn:")).and_then(|arn| arn.split(':').nth(3));
    region.filter(|region| !region.is_empty()).unwrap_or("local").to_owned()
}
