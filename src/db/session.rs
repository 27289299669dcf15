//! Who uses the store: sessions, and what each may ask for.
//!
//! ```text
//!  call ── authenticate: whose session is it? ── decided when the session was made, never again
//!       ── authorise:    is it the owner's alone? does the Authorizer allow it?       no provider is asked yet
//!       ── key:          the principal's own permit for the table, or an unwrap       (load.rs, keys/lease.rs)
//!       ── data
//! ```
//! In this order, so that who may not learns nothing from how he is refused, costs no request, and leaves no trace in the store.
//!
//! # What is whose
//! A [`Store`](super::Store) handle is an engine and a principal, and everything that is made from it acts for that principal. Named principals read, write, create
//! tables and sync. What concerns others is the owner's: dropping tables, changing keys, flush, compaction, quiescing, closing, and making sessions.
//! A batch or snapshot takes tables of its own principal's session only: it would otherwise write or read in another's name.
//!
//! A session keeps apart what a program does for different people, as a database does for its connections. It is no wall within a
//! process: code that runs in it can read its memory (`docs/THREATS.md`).

use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

use super::Engine;
use super::catalog::{Seat, TableState};
use super::table::Table;
use crate::error::{Error, Result};
use crate::keys::Principal;
use crate::merge::KeyRange;
use crate::types::TableId;

/// Longest name of a principal, in bytes: an ARN of AWS is never longer.
const PRINCIPAL_BYTES_MAX: usize = 2048;

/// An open store as one principal sees it. The last one of all principals to go closes the store.
pub(crate) struct Handle {
    engine: Arc<Engine>,
    principal: Principal,
    /// Asked before everything that this principal does. Nobody is asked about the owner.
    authorizer: Option<Arc<dyn Authorizer>>,
    open: Arc<Open>,
}

/// Keeps the store open.
struct Open {
    engine: Arc<Engine>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // Nobody is left to tell: an error here means that the next open recovers, which loses nothing.
        let _ = self.engine.close();
    }
}

impl Deref for Handle {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Handle {
    /// The owner's, for a store that has just been opened.
    pub(super) fn new(engine: Arc<Engine>) -> Handle {
        let open = Arc::new(Open { engine: engine.clone() });
        Handle { engine, principal: Principal::Owner, authorizer: None, open }
    }

    /// The same store for somebody else.
    pub(super) fn session(&self, principal: Principal) -> Result<Handle> {
        self.check_open()?;
        if self.principal != principal {
            self.check_owner("make a session for somebody else")?;
        }
        let authorizer = match &principal {
            Principal::Owner => None,
            Principal::Service => {
                let detail = "the service is the engine itself, and nobody's session".to_owned();
                return Err(Error::InvalidArgument { what: "principal", detail });
            }
            Principal::Named(name) => {
                check_name(name)?;
                self.keys.check_tells_apart(&principal)?;
                self.engine.authorizer.clone()
            }
        };
        Ok(Handle { engine: self.engine.clone(), principal, authorizer, open: self.open.clone() })
    }

    /// The engine, for what outlives the call.
    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Whose handle it is.
    pub(super) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// A table for this principal.
    pub(super) fn seat(&self, table: Arc<TableState>) -> Seat {
        let permit = table.lease.permit(&self.principal);
        Seat { table, permit }
    }

    /// Fails unless this is the owner's handle.
    pub(super) fn check_owner(&self, action: &'static str) -> Result<()> {
        match self.principal {
            Principal::Owner => Ok(()),
            _ => Err(self.denied(action)),
        }
    }

    /// Fails for a table of another store or another principal's session.
    pub(super) fn check_own(self: &Arc<Handle>, table: &Table) -> Result<()> {
        let other = table.engine();
        let same = Arc::ptr_eq(self, other);
        if same || Arc::ptr_eq(&self.engine, &other.engine) && self.principal == other.principal {
            return Ok(());
        }
        Err(Error::InvalidArgument { what: "table", detail: "it belongs to another store or another session".into() })
    }

    /// Fails unless this principal may do this with these keys of the table.
    #[inline]
    pub(super) fn authorise(&self, table: &TableState, action: Action, keys: AccessKeys<'_>) -> Result<()> {
        match &self.authorizer {
            None => Ok(()),
            Some(authorizer) => self.ask(&**authorizer, &table.name, Some(table.id), action, keys),
        }
    }

    /// As [`authorise`](Handle::authorise), for a range of keys.
    pub(super) fn authorise_range(&self, table: &TableState, range: &KeyRange) -> Result<()> {
        let keys = AccessKeys::Range { from: range.lower.as_deref(), before: range.upper.as_deref() };
        self.authorise(table, Action::Read, keys)
    }

    /// Fails unless this principal may create a table of this name.
    pub(super) fn authorise_create(&self, name: &str) -> Result<()> {
        match &self.authorizer {
            None => Ok(()),
            Some(authorizer) => self.ask(&**authorizer, name, None, Action::Create, AccessKeys::All),
        }
    }

    #[cold]
    fn ask(
        &self,
        authorizer: &dyn Authorizer,
        table: &str,
        id: Option<TableId>,
        action: Action,
        keys: AccessKeys<'_>,
    ) -> Result<()> {
        let request = AccessRequest { principal: &self.principal, table, id, action, keys };
        if authorizer.allows(&request) {
            return Ok(());
        }
        Err(self.denied(match action {
            Action::Read => "read this",
            Action::Write => "write this",
            Action::Create => "create this table",
        }))
    }

    fn denied(&self, action: &'static str) -> Error {
        Error::AccessDenied { principal: self.principal.to_string(), action }
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::InvalidArgument { what: "principal", detail: "a name has at least one byte".to_owned() });
    }
    if name.len() > PRINCIPAL_BYTES_MAX {
        let (limit, actual) = (PRINCIPAL_BYTES_MAX as u64, name.len() as u64);
        return Err(Error::LimitExceeded { what: "length of a principal's name in bytes", limit, actual });
    }
    Ok(())
}

/// Decides what named principals may do with which keys, beside the key provider, who decides about whole tables.
///
/// Asked before anything else about every read, write and creation in a session, except the owner's; so it should answer from memory. What it denies is refused with
/// [`Error::AccessDenied`] whether or not there is such a key, asks no provider, and changes nothing.
///
/// # Example
/// Everybody may use the entries below a prefix of his own:
/// ```
/// use strongroom::{AccessRequest, Authorizer, Principal};
///
/// #[derive(Debug)]
/// struct OwnPrefix;
///
/// impl Authorizer for OwnPrefix {
///     fn allows(&self, request: &AccessRequest<'_>) -> bool {
///         let Principal::Named(name) = request.principal else { return true };
///         request.keys.all_begin_with(format!("{name}#").as_bytes())
///     }
/// }
/// # let kms = strongroom::LocalKms::in_memory(strongroom::io::Environment::os())?;
/// # let folder = tempfile::tempdir().unwrap();
/// # let store = strongroom::Store::builder(folder.path().join("data")).key_provider(kms).authorizer(std::sync::Arc::new(OwnPrefix)).create()?;
/// # store.create_table("t", Default::default())?;
/// # Ok::<(), strongroom::Error>(())
/// ```
pub trait Authorizer: Send + Sync + Debug {
    /// Whether this may be done.
    fn allows(&self, request: &AccessRequest<'_>) -> bool;
}

/// Who wants to do what with which keys.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AccessRequest<'a> {
    /// Whose session it is: a named one.
    pub principal: &'a Principal,
    /// The table's name.
    pub table: &'a str,
    /// The table, unless it is yet to be created.
    pub id: Option<TableId>,
    /// What is to be done.
    pub action: Action,
    /// With which keys.
    pub keys: AccessKeys<'a>,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Read a value, or whether there is one, or walk a range.
    Read,
    /// Set or remove a value.
    Write,
    /// Create a table.
    Create,
}

/// The keys that are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AccessKeys<'a> {
    /// One.
    One(&'a [u8]),
    /// All from the first, inclusive, to the second, exclusive; an end that is missing is open.
    Range {
        /// The least key.
        from: Option<&'a [u8]>,
        /// The key behind the greatest.
        before: Option<&'a [u8]>,
    },
    /// The table as a whole.
    All,
}

impl AccessKeys<'_> {
    /// Whether no other keys are meant than such as begin with `prefix`.
    pub fn all_begin_with(&self, prefix: &[u8]) -> bool {
        match *self {
            AccessKeys::One(key) => key.starts_with(prefix),
            AccessKeys::Range { from, before } => {
                let end = super::scan::prefix_range(prefix).upper;
                let within = match (before, end.as_deref()) {
                    (_, None) => true,
                    (Some(before), Some(end)) => before <= end,
                    (None, Some(_)) => false,
                };
                from.unwrap_or_default() >= prefix && within
            }
            AccessKeys::All => prefix.is_empty(),
        }
    }

    /// Whether any of them may begin with `prefix`.
    pub fn any_begins_with(&self, prefix: &[u8]) -> bool {
        match *self {
            AccessKeys::One(key) => key.starts_with(prefix),
            AccessKeys::Range { from, before } => {
                let end = super::scan::prefix_range(prefix).upper;
                let ends_behind = before.is_none_or(|before| before > prefix);
                let begins_before = end.as_deref().is_none_or(|end| from.unwrap_or_default() < end);
                ends_behind && begins_before && !is_empty(from, before)
            }
            AccessKeys::All => true,
        }
    }
}

fn is_empty(from: Option<&[u8]>, before: Option<&[u8]>) -> bool {
    before.is_some_and(|before| from.unwrap_or_default() >= before)
}
