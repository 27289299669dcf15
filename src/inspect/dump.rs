//! One file, described for a person.

use std::io::Write;

use super::Inspection;
use crate::error::Result;

/// What a [dump](Inspection::dump) shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DumpOptions {
    keys: bool,
}

impl DumpOptions {
    /// Neither keys nor values.
    pub fn new() -> DumpOptions {
        DumpOptions::default()
    }

    /// Whether to show the keys of entries. They are data: whoever may not read the table must not read them.
    #[must_use]
    pub fn keys(mut self, keys: bool) -> DumpOptions {
        self.keys = keys;
        self
    }
}

pub(super) fn dump(inspection: &Inspection, file: &str, _options: &DumpOptions, _out: &mut dyn Write) -> Result<()> {
    inspection.directory().open(file).map(drop)
}
