//! Is the audit trail whole? Its records lie outside the store; the key of their chain, and how many there must be, lie inside.

use super::verify::lock;
use super::{Inspection, list, provider};
use crate::error::{Error, Result};
use crate::keys::KeyBroker;
use crate::keys::trail::{TrailFolder, TrailReport};
use crate::version::manifest;
use crate::version::system::SystemFile;

pub(super) fn verify_trail(inspection: &Inspection, folder: &TrailFolder) -> Result<TrailReport> {
    let main = provider(inspection)?;
    let dir = inspection.directory();
    // Looked at before the lock is taken, which would make a lock file in a directory that is no store.
    list(&dir)?;
    let _lock = lock(&dir)?;
    let file = SystemFile::read(&dir)?;
    let (environment, owned) = (&inspection.environment, inspection.owned.clone());
    // Permits are for those who use tables.
    let permit = std::time::Duration::from_secs(1);
    let broker = KeyBroker::new(file.store(), main, owned, environment, permit, None);
    let system = file.unlock(&broker)?;
    let state = manifest::read(&dir, &system.keys)?.state;
    system.check_pin(&state.system_key)?;
    let report = folder.verify(state.store.store, &system.keys, state.trail.as_ref());
    report.map_err(|error| Error::io("read", "the trail", error))
}
