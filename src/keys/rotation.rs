//! The key file that follows another: a new generation, or the same keys under another master key.
//!
//! ```text
//!                  wraps under the old master key      wraps in the successor
//!  rewrap          1  2                                1' 2'           the same keys, wrapped anew
//!  new generation  1  2                                1  2  3         a new key under the present master key
//!  both            1  2                                1' 2' 3'        what changes a table's master key
//! ```
//! All of it is asked of the providers here, and nothing is written: a refusal, of whatever wrap, leaves no trace. Every new
//! wrap is opened again with the master key that it will depend on, and the key in it compared with the pinned commitment. So the file that is
//! written afterwards needs the new master key and is known to need nothing else.
//!
//! Within one provider a key moves by `re_encrypt`, which a KMS does without showing it to anyone. Between two (owned keys may have one
//! of their own) it is decrypted by one and encrypted by the other.

use super::provider::{DecryptRequest, EncryptRequest, EncryptionContext, Principal, ReEncryptRequest};
use super::{KeyBroker, Master, NewKey, other_key, tampered};
use crate::crypto::TableKey;
use crate::error::{Error, ProviderError, ProviderReason, Result};
use crate::format::keyfile::{KeyFile, KeyState, MasterKind, Wrap};
use crate::types::{Generation, TableId};

/// What changes from one key file to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rekey {
    /// The same keys, wrapped anew.
    Rewrap,
    /// A new key; the others stay wrapped as they are.
    NewGeneration,
    /// A new key, and the others wrapped anew.
    Both,
}

/// The key file that follows another, and what in it is new.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) record: KeyFile,
    /// The key of the new generation.
    pub(crate) key: Option<TableKey>,
}

impl KeyBroker {
    /// What follows `record`, with `master` as the master key of what is wrapped. Asks providers; no lock may be held.
    ///
    /// # Errors
    /// [`Error::KeyUnavailable`] with a provider's reason, [`Error::WrongKey`] or [`Error::Tampered`] for an answer that is not what
    /// it must be, [`Error::LimitExceeded`] at the end of the generations.
    pub(crate) fn successor(
        &self,
        record: &KeyFile,
        master: &Master,
        rekey: Rekey,
        principal: &Principal,
    ) -> Result<Successor> {
        let table = record.table;
        let mut wraps = match rekey {
            Rekey::NewGeneration => record.wraps.clone(),
            Rekey::Rewrap | Rekey::Both => {
                let rewrapped =
                    record.wraps.iter().map(|wrap| self.rewrap(table, wrap, record.master, master, principal));
                rewrapped.collect::<Result<_>>()?
            }
        };
        let mut key = None;
        if rekey != Rekey::Rewrap {
            let newest = wraps.last().map_or(Generation(0), |wrap| wrap.generation);
            let generation = newest.next().ok_or_else(|| exhausted("generation of a key", u64::from(u32::MAX)))?;
            let NewKey { key: made, wrap, .. } = self.proven_key(table, generation, master, principal)?;
            wraps.iter_mut().for_each(|wrap| wrap.retired = true);
            wraps.push(wrap);
            key = Some(made);
        }
        let version = record.version.checked_add(1).ok_or_else(|| exhausted("version of a key file", u64::MAX))?;
        let since_ms = self.clock.wall_ms();
        let record = KeyFile { table, version, state: KeyState::Active, since_ms, master: master.kind, wraps };
        Ok(Successor { record, key })
    }

    /// The same key, wrapped under `master`.
    fn rewrap(
        &self,
        table: TableId,
        wrap: &Wrap,
        from: MasterKind,
        master: &Master,
        principal: &Principal,
    ) -> Result<Wrap> {
        let unavailable = |source| Error::KeyUnavailable { table, source };
        let context = EncryptionContext::from_pairs(wrap.context.iter().cloned()).map_err(unavailable)?;
        let (old, new) = (self.provider(from), self.provider(master.kind));
        let wrapped = if std::ptr::addr_eq(old, new) {
            // On record as a request about the key that is not the store's own, if one of the two is not.
            let kind = if from == MasterKind::Owned { master.kind } else { from };
            let request = ReEncryptRequest::new(
                wrap.key_arn.clone(),
                wrap.wrapped.clone(),
                context.clone(),
                master.arn.clone(),
                context,
                principal.clone(),
            );
            self.ask(kind, &request)
        } else {
            let decrypt =
                DecryptRequest::new(wrap.key_arn.clone(), wrap.wrapped.clone(), context.clone(), principal.clone());
            self.ask(from, &decrypt).and_then(|opened| {
                let encrypt = EncryptRequest::new(master.arn.clone(), opened.plaintext, context, principal.clone());
                self.ask(master.kind, &encrypt)
            })
        };
        let wrapped = wrapped
            .and_then(|made| if made.key_arn == master.arn { Ok(made) } else { Err(other_key(&made.key_arn)) })
            .map_err(|source: ProviderError| match source.reason {
                ProviderReason::InvalidCiphertext => tampered(table, "the provider does not recognise the wrapped key"),
                _ => unavailable(source),
            })?;
        let next = Wrap { key_arn: wrapped.key_arn, wrapped: wrapped.ciphertext, ..wrap.clone() };
        self.unwrap(table, master.kind, &next, principal)?;
        Ok(next)
    }
}

/// The master key of a key file's newest wrap: what another generation is made under.
pub(crate) fn present_master(record: &KeyFile) -> Option<Master> {
    record.wraps.last().map(|wrap| Master { kind: record.master, arn: wrap.key_arn.clone() })
}

fn exhausted(what: &'static str, limit: u64) -> Error {
    Error::LimitExceeded { what, limit, actual: limit }
}
