//! Master keys of the local keyring. None of these commands needs, or opens, a store.

use std::io::Write;

use strongroom::keys::KeyState;

use crate::args::{CreateKey, Place};
use crate::failure::{Failure, Result};
use crate::output::{finish, line, stdout};
use crate::session;

pub fn create(place: &Place, args: CreateKey) -> Result<()> {
    let kms = session::keyring(place)?;
    let key = kms.create_key(args.alias.as_deref(), &args.description)?;
    line(key.arn)
}

/// One line per key: ARN, state, aliases, description.
pub fn list(place: &Place) -> Result<()> {
    let kms = session::keyring(place)?;
    let mut out = stdout();
    for key in kms.list_keys()? {
        writeln!(out, "{}\t{}\t{}\t{}", key.arn, state(key.state), key.aliases.join(" "), key.description)
            .map_err(Failure::output)?;
    }
    finish(out)
}

pub fn set_enabled(place: &Place, key: &str, enabled: bool) -> Result<()> {
    let kms = session::keyring(place)?;
    let outcome = if enabled { kms.enable(key) } else { kms.disable(key) };
    Ok(outcome?)
}

fn state(state: KeyState) -> &'static str {
    match state {
        KeyState::Enabled => "enabled",
        KeyState::Disabled => "disabled",
        KeyState::PendingDeletion => "pending deletion",
        KeyState::PendingImport => "pending import",
        KeyState::Unavailable => "unavailable",
        _ => "unknown",
    }
}
