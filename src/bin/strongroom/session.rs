//! Where store and keyring lie; creating and opening them.

use std::env;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use strongroom::keys::trail::JsonLinesTrail;
use strongroom::{Builder, Error, LocalKms, Store, Table, TrailOptions};

use crate::args::Place;
use crate::failure::{Failure, Result};
use crate::output::{line, note};
use crate::secrets::Secret;

/// `init`: the keyring if it is missing, then the store.
pub fn init(place: &Place) -> Result<()> {
    let store_path = store_path(place)?;
    let keyring_path = keyring_path(place)?;
    refuse_keyring_inside(&keyring_path, store_path)?;
    let keyring_is_new = !keyring_path.exists();
    let secret = Secret::obtain(place, keyring_is_new)?;
    let kms =
        if keyring_is_new { create_keyring(&keyring_path, &secret)? } else { open_keyring(&keyring_path, &secret)? };
    let store = builder(place, store_path, kms).create()?;
    let id = store.id();
    store.close()?;
    line(format_args!("created store {id} in {}", store_path.display()))?;
    if keyring_is_new {
        note!("created its keyring {}", keyring_path.display());
        note!("keep a copy of the keyring and its passphrase elsewhere: without both, nobody can read the store");
    }
    Ok(())
}

/// Open the store that the options name.
pub fn open(place: &Place) -> Result<Store> {
    let store_path = existing_store(place)?;
    Ok(builder(place, store_path, keyring(place)?).open()?)
}

/// Settings of the store at `path`, with the trail that the options name.
fn builder(place: &Place, path: &Path, kms: LocalKms) -> Builder {
    let builder = Store::builder(path).key_provider(kms);
    match &place.trail {
        None => builder,
        Some(folder) => {
            let options = TrailOptions::new().required(place.trail_required).table_names(place.trail_names);
            builder.trail(Arc::new(JsonLinesTrail::new(folder)), options)
        }
    }
}

/// Look at the store that the options name, without a word in the trail.
pub fn look(place: &Place) -> Result<Store> {
    Ok(Store::builder(existing_store(place)?).key_provider(keyring(place)?).open()?)
}

/// Open the store, let `work` use one of its tables, and close it: a clean close makes all of it durable.
pub fn with_table(place: &Place, table: &str, work: impl FnOnce(&Store, &Table) -> Result<()>) -> Result<()> {
    let store = open(place)?;
    let outcome = store.table(table).map_err(Failure::from).and_then(|table| work(&store, &table));
    // What the work says matters more than what closing says.
    outcome.and(store.close().map_err(Failure::from))
}

/// Open the keyring that the options name.
pub fn keyring(place: &Place) -> Result<LocalKms> {
    let path = keyring_path(place)?;
    if let Some(store) = &place.store {
        refuse_keyring_inside(&path, store)?;
    }
    if !path.exists() {
        return Err(Failure::usage(
            format!("there is no keyring at {}", path.display()),
            "name it with --keyring, or create a store and a keyring with `strongroom init`",
        ));
    }
    open_keyring(&path, &Secret::obtain(place, false)?)
}

pub fn store_path(place: &Place) -> Result<&Path> {
    place.store.as_deref().ok_or_else(|| Failure::usage("which store?", "name its directory with --store DIR"))
}

/// Where the store is: that there is none is worth saying before a passphrase is asked for.
pub fn existing_store(place: &Place) -> Result<&Path> {
    let path = store_path(place)?;
    if path.exists() { Ok(path) } else { Err(Error::NotAStore { path: path.display().to_string() }.into()) }
}

/// Create a keyring and the folder that it lies in.
pub fn create_keyring(path: &Path, secret: &Secret) -> Result<LocalKms> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| Failure::file("create the folder", folder, source))?;
    }
    Ok(LocalKms::create(path, secret.unlock()?)?)
}

fn open_keyring(path: &Path, secret: &Secret) -> Result<LocalKms> {
    Ok(LocalKms::open(path, secret.unlock()?)?)
}

fn keyring_path(place: &Place) -> Result<PathBuf> {
    if let Some(path) = &place.keyring {
        return Ok(path.clone());
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("strongroom").join("keyring"))
        .ok_or_else(|| Failure::usage("which keyring?", "name it with --keyring FILE"))
}

/// A keyring that lies in the store travels with every copy of it, and then protects nothing.
fn refuse_keyring_inside(keyring: &Path, store: &Path) -> Result<()> {
    if lies_within(keyring, store) {
        return Err(Failure::usage(
            format!("the keyring {} would lie inside the store", keyring.display()),
            "keep the keyring elsewhere, best on another medium: whoever copies the store must not get its keys",
        ));
    }
    Ok(())
}

/// Whether `path` is `folder` or lies under it, links resolved as far as things exist.
pub fn lies_within(path: &Path, folder: &Path) -> bool {
    resolved(path).starts_with(resolved(folder))
}

/// `path` with links resolved. What does not exist yet has no links, so that `..` in it is a matter of names.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    for ancestor in absolute.ancestors() {
        if let (Ok(mut real), Ok(rest)) = (ancestor.canonicalize(), absolute.strip_prefix(ancestor)) {
            for component in rest.components() {
                match component {
                    Component::ParentDir => drop(real.pop()),
                    component => real.push(component),
                }
            }
            return real;
        }
    }
    absolute
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_exist_yet_is_still_seen_to_lie_inside() {
        let base = std::env::temp_dir();
        assert!(lies_within(&base.join("no-such-store/keyring"), &base.join("no-such-store")));
        assert!(lies_within(&base.join("no-such-store"), &base.join("no-such-store")));
        assert!(lies_within(&base.join("no-such/../no-such-store/keyring"), &base.join("no-such-store")));
        assert!(!lies_within(&base.join("no-such-store.keyring"), &base.join("no-such-store")));
    }
}
