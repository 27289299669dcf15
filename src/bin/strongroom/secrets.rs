//! What opens the keyring: a passphrase from a file, the environment or a prompt, or a key from a file.
//!
//! Never an argument: other users of the machine can list those, and shells write them down. The library never
//! reads the environment; this program does, for scripts.

use std::env;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use strongroom::Unlock;
use zeroize::Zeroizing;

use crate::args::Place;
use crate::failure::{Failure, Result};
use crate::output::note;

const VARIABLE: &str = "STRONGROOM_PASSPHRASE";

/// Where the keyring's secret is. Files are read by the library, each time that it needs them.
#[derive(Clone)]
pub enum Secret {
    KeyFile(PathBuf),
    PassphraseFile(PathBuf),
    Passphrase(Zeroizing<Vec<u8>>),
}

impl Secret {
    /// From the options, else the environment, else by asking; asked twice for a new keyring.
    pub fn obtain(place: &Place, is_new: bool) -> Result<Secret> {
        match Secret::given(place)? {
            Some(secret) => Ok(secret),
            None => ask(is_new),
        }
    }

    /// From the options or the environment, if there.
    pub fn given(place: &Place) -> Result<Option<Secret>> {
        let secret = match (&place.key_file, &place.passphrase_file) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "--key-file and --passphrase-file exclude each other",
                    "give the one that the keyring was created with",
                ));
            }
            (Some(path), None) => Secret::KeyFile(path.clone()),
            (None, Some(path)) => Secret::PassphraseFile(path.clone()),
            (None, None) => match env::var_os(VARIABLE) {
                Some(value) => Secret::Passphrase(Zeroizing::new(value.into_vec())),
                None => return Ok(None),
            },
        };
        if let Secret::KeyFile(path) | Secret::PassphraseFile(path) = &secret {
            warn_if_open_to_others(path);
        }
        Ok(Some(secret))
    }

    /// As the library wants it.
    pub fn unlock(&self) -> Result<Unlock> {
        Ok(match self {
            Secret::KeyFile(path) => Unlock::key_file(path)?,
            Secret::PassphraseFile(path) => Unlock::passphrase_file(path)?,
            Secret::Passphrase(bytes) => Unlock::passphrase(bytes.to_vec()),
        })
    }
}

fn warn_if_open_to_others(path: &Path) {
    // A file that cannot be looked at cannot be read either, and that is an error with a message of its own.
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o077 != 0) {
        note!("strongroom: warning: others may read {}; `chmod 600` keeps them out", path.display());
    }
}

fn ask(is_new: bool) -> Result<Secret> {
    let nobody = |_: io::Error| {
        Failure::usage(
            "there is no passphrase, and no terminal to ask at",
            "give --passphrase-file or --key-file, or set STRONGROOM_PASSPHRASE",
        )
    };
    // A controlling terminal may be there without anybody at it, as in a scheduled job: then do not wait for ever.
    if !io::stdin().is_terminal() && !io::stderr().is_terminal() {
        return Err(nobody(io::ErrorKind::NotConnected.into()));
    }
    let question = if is_new { "Passphrase for the new keyring: " } else { "Passphrase of the keyring: " };
    let answer = Zeroizing::new(rpassword::prompt_password(question).map_err(nobody)?);
    if is_new {
        let again = Zeroizing::new(rpassword::prompt_password("The same again: ").map_err(nobody)?);
        if *answer != *again {
            return Err(Failure::usage("the two passphrases differ", "run the command again"));
        }
    }
    Ok(Secret::Passphrase(Zeroizing::new(answer.as_bytes().to_vec())))
}
