//! The module, the token in it, the login, and sessions that are taken and given back.
//!
//! A session is used by one thread at a time. Those that nobody uses wait in a pool, up to a few; when one of them turns out to be
//! lost or logged out (the token was pulled out, another part of the process closed all sessions), all are given up, and the next call
//! looks for the token, opens a session and logs in anew.

use std::fmt;
use std::fmt::Write as _;
use std::mem;
use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use parking_lot::Mutex;

use super::super::provider::ProviderResult;
use super::trouble::{Outcome, Trouble};
use crate::error::{ProviderError, ProviderReason};

/// Sessions that are kept open without use. Providers are asked rarely; tokens have few sessions.
const IDLE_MAX: usize = 4;

/// How to log in to a token. Wiped when dropped, never printed.
pub struct Pin(Kind);

enum Kind {
    Given(AuthPin),
    Asked(Box<dyn Fn() -> ProviderResult<String> + Send + Sync>),
    AtDevice,
}

impl Pin {
    /// This PIN, whose buffer is taken over and wiped with the provider. It is tried once: a token that refused it is not asked again,
    /// or it would lock itself.
    pub fn new(pin: impl Into<String>) -> Pin {
        Pin(Kind::Given(AuthPin::from(pin.into())))
    }

    /// The PIN that `ask` gives at every login: when the provider is opened, and after the token was gone. It does not stay in memory.
    pub fn ask(ask: impl Fn() -> ProviderResult<String> + Send + Sync + 'static) -> Pin {
        Pin(Kind::Asked(Box::new(ask)))
    }

    /// The token has a keypad of its own, or asks for no login.
    pub fn at_device() -> Pin {
        Pin(Kind::AtDevice)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(..)")
    }
}

/// A token that one logs in to.
pub(super) struct Token {
    module: Pkcs11,
    /// Label or serial number, as the opener gave it.
    wanted: String,
    /// Label, or serial number if it has none.
    name: String,
    arn_prefix: String,
    pin: Pin,
    /// The token has private keys, which it shows to its user alone.
    needs_login: bool,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Session>,
    /// How often all sessions were given up: one that was taken before is not put back.
    era: u64,
    /// The token has refused the PIN.
    refused: bool,
}

impl Token {
    pub(super) fn open(module: &Path, wanted: &str, pin: Pin) -> ProviderResult<Token> {
        let module = load(module).map_err(|trouble| trouble.error)?;
        let Found { name, needs_login, .. } = find(&module, wanted).map_err(|trouble| trouble.error)?;
        let arn_prefix = format!("arn:strongroom:kms:pkcs11:{}:key/", escaped(&name));
        let pool = Mutex::default();
        let token = Token { module, wanted: wanted.to_owned(), name, arn_prefix, pin, needs_login, pool };
        token.with(|_| Ok(()))?;
        Ok(token)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn arn_prefix(&self) -> &str {
        &self.arn_prefix
    }

    /// Do something in a session that is logged in.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Session) -> Outcome<T>) -> ProviderResult<T> {
        let (session, era) = {
            let mut pool = self.pool.lock();
            (pool.idle.pop(), pool.era)
        };
        // Outside the lock: a token that takes its time holds up only who needs it.
        let outcome = match session.map_or_else(|| self.log_in(), Ok) {
            Ok(session) => {
                let outcome = work(&session).map_err(|trouble| self.explain(&session, trouble));
                if outcome.as_ref().err().is_none_or(|trouble| !trouble.session_lost) {
                    self.put_back(session, era);
                }
                outcome
            }
            Err(trouble) => Err(trouble),
        };
        outcome.map_err(|trouble| {
            if trouble.session_lost {
                self.give_up_sessions();
            }
            trouble.error
        })
    }

    /// Without a login a token shows no private keys, so that a key that was not found may only have been hidden.
    fn explain(&self, session: &Session, trouble: Trouble) -> Trouble {
        if trouble.error.reason != ProviderReason::KeyNotFound || !self.needs_login {
            return trouble;
        }
        match session.get_session_info().map(|info| info.session_state()) {
            Ok(SessionState::RoUser | SessionState::RwUser) => trouble,
            Ok(_) => Error::Pkcs11(RvError::UserNotLoggedIn, Function::FindObjects).into(),
            Err(error) => error.into(),
        }
    }

    fn put_back(&self, session: Session, era: u64) {
        let mut pool = self.pool.lock();
        if pool.era == era && pool.idle.len() < IDLE_MAX {
            pool.idle.push(session);
        } else {
            drop(pool);
            drop(session);
        }
    }

    fn give_up_sessions(&self) {
        let lost = {
            let mut pool = self.pool.lock();
            pool.era += 1;
            mem::take(&mut pool.idle)
        };
        drop(lost);
    }

    fn log_in(&self) -> Outcome<Session> {
        // The slot may be another one since the token was there last.
        let Found { slot, .. } = find(&self.module, &self.wanted)?;
        let session = self.module.open_rw_session(slot)?;
        if !self.needs_login {
            return Ok(session);
        }
        let pin = match &self.pin.0 {
            Kind::Given(_) if self.pool.lock().refused => {
                let message = "the token has refused this PIN before, and is not asked again";
                return Err(ProviderError::new(ProviderReason::BadCredentials, message).into());
            }
            Kind::Given(pin) => Some(pin),
            Kind::Asked(ask) => Some(&AuthPin::from(ask()?)),
            Kind::AtDevice => None,
        };
        match session.login(UserType::User, pin) {
            // All sessions of a process share one login.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => {
                use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
                if let Error::Pkcs11(PinExpired | PinIncorrect | PinInvalid | PinLenRange | PinLocked, _) = error {
                    self.pool.lock().refused = true;
                }
                Err(error.into())
            }
        }
    }
}

fn load(path: &Path) -> Outcome<Pkcs11> {
    let module = Pkcs11::new(path)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // By somebody else in this process, or by another provider of ours.
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(error.into()),
    }
    // Never unloaded: modules have threads and exit handlers of their own, which would run into unmapped memory.
    mem::forget(module.clone());
    Ok(module)
}

struct Found {
    slot: Slot,
    name: String,
    needs_login: bool,
}

/// The token that is called so.
fn find(module: &Pkcs11, wanted: &str) -> Outcome<Found> {
    let (mut labelled, mut numbered) = (Vec::new(), Vec::new());
    for slot in module.get_slots_with_initialized_token()? {
        let info = module.get_token_info(slot)?;
        let name = if info.label().is_empty() { info.serial_number() } else { info.label() }.to_owned();
        let found = Found { slot, name, needs_login: info.login_required() };
        if info.label() == wanted {
            labelled.push(found);
        } else if info.serial_number() == wanted {
            numbered.push(found);
        }
    }
    let mut found = if labelled.is_empty() { numbered } else { labelled };
    if found.len() > 1 {
        let message = format!("{} tokens are labelled {wanted:?}: name it by its serial number", found.len());
        return Err(ProviderError::new(ProviderReason::InvalidRequest, message).into());
    }
    found.pop().ok_or_else(|| {
        let message = format!("there is no token {wanted:?} at present");
        ProviderError::new(ProviderReason::Unreachable, message).into()
    })
}

/// A name as part of an ARN: what is not a letter, digit, `-`, `.` or `_` becomes `%` and two hexadecimal digits.
pub(super) fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => text.push(byte.into()),
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}
