//! The engine's own right to use the master keys of tables: a grant per store and master key.
//!
//! ```text
//! create a table    DescribeKey (creator) ─ CreateGrant (creator) ─ GenerateDataKey, Decrypt (service) ─ key files ─ manifest: Grant, CreateTable, Creator
//! in use            flush, compaction, rotation unwrap as the service, under the grant; users unwrap as themselves
//! drop, re-key      the last table under the key has gone ─ RetireGrant (service) ─ manifest: GrantEnded
//! ```
//! So maintenance does not depend on any user's rights: one whose access is revoked leaves a table that is still flushed and compacted. Who takes the grant away
//! makes every table under that key inaccessible.
//!
//! **Why one per master key, not per table.** DynamoDB makes a set of grants for each table. At KMS a key can have 50,000 grants, each is a
//! request against a quota and rewrites a local keyring as a whole; and a store of 100,000 tables under one key would get nothing for it: each of those grants
//! would allow the same principal the same operations. What the grant allows is bound to this store by its constraint instead (the encryption context names the store).
//!
//! A creation asks for the grant whether or not there is one: it has a name, so that the provider answers with the one that there is, and only to
//! a creator who may hand out the use of that key. A creation that fails ends a grant that nobody else needs, and leaves the directory as it was.
//!
//! Owned keys need none: they are the engine's. Providers without grants ([`Unsupported`](crate::error::ProviderReason::Unsupported)) decide by principal alone.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::Engine;
use crate::error::{ProviderReason, Result};
use crate::format::keyfile::{KeyFile, MasterKind};
use crate::format::manifest::{Edit, GrantRecord};
use crate::io::Signal;
use crate::keys::{Master, Principal};
use crate::types::Slot;

/// Who needs which grant.
#[derive(Default)]
pub(crate) struct Grants {
    claims: Mutex<BTreeMap<String, Claim>>,
    /// Raised when a grant has been ended, or was found to be needed.
    settled: Signal,
    /// Which tables are under which key: known from the first time that a table goes, since until then nobody asks.
    index: Mutex<Option<Index>>,
    /// Grants that nobody seems to need, by key.
    idle: Mutex<BTreeMap<String, GrantRecord>>,
}

/// What is going on about the grant of one master key.
#[derive(Default)]
struct Claim {
    /// Creations that count on the grant.
    holders: usize,
    /// Somebody is ending it: who wants it must wait, and ask for another.
    ending: bool,
}

/// Grants that a creation counts on, until [`Engine::release_grants`].
#[derive(Debug, Default)]
pub(super) struct Held {
    keys: BTreeSet<String>,
    /// What the manifest does not say yet.
    fresh: Vec<GrantRecord>,
}

impl Held {
    /// What must be appended to the manifest together with the tables.
    pub(super) fn edits(&self) -> impl Iterator<Item = Edit> {
        self.fresh.iter().map(|grant| Edit::Grant(Box::new(grant.clone())))
    }
}

/// The master keys of tables whose master key is not the owned one.
#[derive(Default)]
struct Index {
    keys: BTreeMap<Slot, BTreeSet<String>>,
    tables: BTreeMap<String, usize>,
}

impl Index {
    fn note(&mut self, slot: Slot, keys: BTreeSet<String>) {
        for key in &keys {
            *self.tables.entry(key.clone()).or_default() += 1;
        }
        let before = if keys.is_empty() { self.keys.remove(&slot) } else { self.keys.insert(slot, keys) };
        for key in before.into_iter().flatten() {
            if let Some(count) = self.tables.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.tables.remove(&key);
                }
            }
        }
    }
}

impl Engine {
    /// See to it that the service may use these master keys, as `creator`, who must be allowed to grant that. Asks the provider; no lock may be held.
    ///
    /// # Errors
    /// [`Error::MasterKeyUnavailable`](crate::Error::MasterKeyUnavailable). Then nothing is held, and what was granted meanwhile has been given up.
    pub(super) fn hold_grants<'a>(
        &self,
        masters: impl IntoIterator<Item = &'a Master>,
        creator: &Principal,
    ) -> Result<Held> {
        let mut held = Held::default();
        for master in masters {
            if master.kind == MasterKind::Owned || held.keys.contains(&master.arn) {
                continue;
            }
            self.claim(&master.arn);
            held.keys.insert(master.arn.clone());
            match self.keys.create_grant(master, creator) {
                Ok(None) => {}
                Ok(Some(grant)) => {
                    let grant = GrantRecord {
                        master: master.kind,
                        key_arn: master.arn.clone(),
                        grant_id: grant.id,
                        token: grant.token,
                    };
                    self.keys.know_grant(&grant);
                    if self.recorded_grant(&master.arn).as_ref() != Some(&grant) {
                        held.fresh.push(grant);
                    }
                }
                Err(error) => {
                    self.release_grants(held);
                    return Err(error);
                }
            }
        }
        Ok(held)
    }

    /// A creation is over. Ends the grants that it made if it failed, and nobody else needs them. No lock may be held.
    pub(super) fn release_grants(&self, held: Held) {
        for grant in held.fresh {
            if self.recorded_grant(&grant.key_arn).is_none() {
                self.grants.idle.lock().insert(grant.key_arn.clone(), grant);
            }
        }
        for key in &held.keys {
            let mut claims = self.grants.claims.lock();
            if let Some(claim) = claims.get_mut(key) {
                claim.holders -= 1;
                if claim.holders == 0 && !claim.ending {
                    claims.remove(key);
                }
            }
        }
        self.end_idle_grants();
    }

    /// Note under which master keys a table is from now on: none, once it has been dropped. Whoever replaces a key file calls this, and
    /// [`end_idle_grants`](Engine::end_idle_grants) once no lock is held.
    pub(super) fn note_master_keys(&self, slot: Slot, record: Option<&KeyFile>) {
        let keys = record.map(keys_of).unwrap_or_default();
        if let Some(index) = &mut *self.grants.index.lock() {
            index.note(slot, keys);
        }
    }

    /// That a table under these master keys has gone, or is about to be under others: the grants for them may be idle now.
    pub(super) fn suspect_grants(&self, record: &KeyFile) {
        for key in keys_of(record) {
            if let Some(grant) = self.recorded_grant(&key) {
                self.grants.idle.lock().insert(key, grant);
            }
        }
    }

    /// As [`suspect_grants`](Engine::suspect_grants), of a table about which nothing is known any more.
    pub(super) fn suspect_all_grants(&self) {
        let recorded = self.manifest.with_state(|state| state.grants.clone());
        self.grants.idle.lock().extend(recorded.into_iter().map(|(key, grant)| (key, (*grant).clone())));
    }

    /// End the grants that no table needs any more. Asks the provider; no lock may be held. One that cannot be ended is tried again the next time.
    pub(super) fn end_idle_grants(&self) {
        // What the manifest says after a failed write is not known: then tables may rest on a grant that it does not seem to name.
        if self.check_writable().is_err() {
            return;
        }
        let suspected: Vec<GrantRecord> = self.grants.idle.lock().values().cloned().collect();
        for grant in suspected {
            if self.begin_ending(&grant.key_arn) {
                self.end_grant(&grant);
                self.grants.claims.lock().remove(&grant.key_arn);
                self.grants.settled.raise();
            }
        }
    }

    fn end_grant(&self, grant: &GrantRecord) {
        let recorded = self.recorded_grant(&grant.key_arn).is_some();
        // A grant that was never recorded has no tables.
        match if recorded { self.tables_under(&grant.key_arn) } else { Some(0) } {
            Some(0) => {}
            Some(_) => return drop(self.grants.idle.lock().remove(&grant.key_arn)),
            // A key file cannot be read: the grant may be needed.
            None => return,
        }
        match self.keys.retire_grant(grant) {
            Err(source) if !matches!(source.reason, ProviderReason::GrantNotFound | ProviderReason::KeyNotFound) => {
                return;
            }
            // One that is gone already, alone or with its key, is as good as ended.
            _ => self.keys.forget_grant(&grant.key_arn),
        }
        self.grants.idle.lock().remove(&grant.key_arn);
        if recorded && self.check_writable().is_ok() {
            let ended = vec![Edit::GrantEnded { key_arn: grant.key_arn.clone() }];
            // A manifest that still names it names a grant that is not there: the next creation under this key corrects it.
            let _ = self.manifest.append(ended).map_err(|error| self.poison(error));
        }
    }

    /// Count on the grant for this key, once nobody is ending it.
    fn claim(&self, key: &str) {
        let mut claimed = || {
            let mut claims = self.grants.claims.lock();
            let claim = claims.entry(key.to_owned()).or_default();
            if !claim.ending {
                claim.holders += 1;
            }
            !claim.ending
        };
        self.env.scheduler.wait_until(&self.grants.settled, &*self.env.clock, None, &mut claimed);
    }

    /// Whether the caller may now find out if a grant is needed and end it: nobody counts on it, and nobody else is at it.
    fn begin_ending(&self, key: &str) -> bool {
        let mut claims = self.grants.claims.lock();
        let claim = claims.entry(key.to_owned()).or_default();
        // The last holder ends it if it must be.
        if claim.holders > 0 || claim.ending {
            return false;
        }
        claim.ending = true;
        true
    }

    fn recorded_grant(&self, key: &str) -> Option<GrantRecord> {
        self.manifest.with_state(|state| state.grants.get(key).map(|grant| (**grant).clone()))
    }

    /// How many tables are under this key; `None` if a key file does not say.
    fn tables_under(&self, key: &str) -> Option<usize> {
        let is_known = self.grants.index.lock().is_some();
        if !is_known {
            // Whoever replaces a key file notes it under this lock, so that what is read here is whole.
            let _creating = self.creating.lock();
            let tables = self.manifest.with_state(|state| {
                let tables = state.tables.values().filter(|meta| !meta.record.dropping);
                let others = tables.filter(|meta| meta.record.master != MasterKind::Owned);
                others.map(|meta| (meta.record.slot, meta.record.id)).collect::<Vec<_>>()
            });
            let mut read = Index::default();
            for (slot, table) in tables {
                read.note(slot, keys_of(&self.settle_key_file(slot, table).ok()?.record));
            }
            *self.grants.index.lock() = Some(read);
        }
        let index = self.grants.index.lock();
        index.as_ref().map(|index| index.tables.get(key).copied().unwrap_or(0))
    }
}

/// The master keys, other than the owned one, that a table needs.
fn keys_of(record: &KeyFile) -> BTreeSet<String> {
    match record.master {
        MasterKind::Owned => BTreeSet::new(),
        MasterKind::Managed | MasterKind::Customer => record.wraps.iter().map(|wrap| wrap.key_arn.clone()).collect(),
    }
}
