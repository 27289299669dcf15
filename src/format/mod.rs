//! Every byte on disk: kinds of file, their names, their headers and what is in them. Pure functions, no I/O.
//!
//! ```text
//! file                           header  then                                              code
//! CURRENT                        sealed  one frame                                          current.rs
//! manifest/000007.manifest       sealed  journal frames: groups of edits                    manifest.rs
//! wal/000012.wal                 sealed  journal frames: envelopes and sections             log.rs
//! parked/000012-3.log            sealed  journal frames: sections carried out of a segment  parked.rs
//! keys/system                    sealed  one frame, in clear but authenticated; all twice   keyfile.rs
//! keys/5e/5e..91                 sealed  one frame; all twice                               keyfile.rs
//! sst/22/000034.sst              sealed  frames: data, index, filter, footer                table.rs, block.rs
//! ```
//!
//! Every file begins with the same [`FileHeader`](frame::FileHeader), in clear with a CRC and a tag of its own, and
//! consists of nothing but sealed frames behind it ([`frame`]). `docs/FORMAT.md` is the tour.
//!
//! # What holds for all of them
//! * Little-endian; offset tables stand beside the code that encodes them, and nowhere else.
//! * Every number that reaches the disk is explicit in the source and never reused.
//! * Nothing is lenient: an unknown version, kind, suite or required feature is
//!   [`Error::UnknownVersion`](crate::Error::UnknownVersion); a reserved field that is not zero, a number in a longer encoding than needed
//!   and bytes behind the last field are refused.
//! * A length from disk is compared with its kind's maximum and with the bytes that are there before it sizes or
//!   indexes anything.
//! * What is wrong is told apart: a wrong CRC is [`BitRot`](crate::Error::BitRot), a right CRC with a wrong tag or
//!   a contradiction is [`Tampered`](crate::Error::Tampered), another commitment than the key's is
//!   [`WrongKey`](crate::Error::WrongKey).
//!
//! # Names
//! A name consists of a number or an id and says nothing about contents ([`FileName`]). Parsing is strict: only
//! what [`FileName::path`] writes is recognised, so that two spellings never stand for one file.

pub(crate) mod block;
pub(crate) mod codec;
pub(crate) mod current;
pub(crate) mod frame;
pub(crate) mod keyfile;
pub(crate) mod log;
pub(crate) mod manifest;
pub(crate) mod parked;
pub(crate) mod scrub;
pub(crate) mod table;

#[cfg(test)]
mod golden;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "unit tests use more of it than fuzz targets do"))]
pub(crate) mod testing;

pub(crate) use codec::Where;

use crate::types::{FileKind, FileNumber, Slot, TableId};

/// First eight bytes of every file whose suite seals.
pub(crate) const MAGIC: [u8; 8] = *b"strngrm\x1a";
/// First eight bytes of every file of suite none, which only exists to measure what encryption costs.
pub(crate) const MAGIC_PLAINTEXT: [u8; 8] = *b"PLAINkv\x1a";

/// Directories of a store, to be made when it is created. Those below `keys` and `sst` are made on first use.
pub(crate) const DIRECTORIES: [&str; 5] = ["manifest", "wal", "parked", "keys", "sst"];
/// What a file is called, behind its name, until it is complete and renamed.
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";

/// A file of a store, as its path relative to the store names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum FileName {
    /// `LOCK`: empty, locked by whoever has the store open.
    Lock,
    /// `CURRENT`.
    Current,
    /// `manifest/N.manifest`.
    Manifest(FileNumber),
    /// `wal/N.wal`.
    Log(FileNumber),
    /// `parked/N-n.log`: sections of the table with slot `n` that were carried out of a segment of the log.
    Parked(FileNumber, Slot),
    /// `keys/system`.
    SystemKey,
    /// `keys/xx/<table id>`, `xx` being the first byte of the id.
    KeyFile(TableId),
    /// `sst/xx/N.sst`, `xx` being the low byte of the number.
    Table(FileNumber),
    /// `sst/xx/N.set`: sorted tables one behind the other, none of them of this number.
    Container(FileNumber),
}

impl FileName {
    /// The path relative to the store, with `/` between its parts.
    pub(crate) fn path(&self) -> String {
        match self {
            FileName::Lock => "LOCK".to_owned(),
            FileName::Current => "CURRENT".to_owned(),
            FileName::Manifest(number) => format!("manifest/{:06}.manifest", number.0),
            FileName::Log(number) => format!("wal/{:06}.wal", number.0),
            FileName::Parked(number, slot) => format!("parked/{:06}-{}.log", number.0, slot.0),
            FileName::SystemKey => "keys/system".to_owned(),
            FileName::KeyFile(table) => format!("keys/{:02x}/{table}", table.as_bytes()[0]),
            FileName::Table(number) => format!("sst/{:02x}/{:06}.sst", number.0 as u8, number.0),
            FileName::Container(number) => format!("sst/{:02x}/{:06}.set", number.0 as u8, number.0),
        }
    }

    /// The directory that the file lies in, relative to the store; empty for the store itself.
    pub(crate) fn directory(&self) -> String {
        let path = self.path();
        path.rsplit_once('/').map_or_else(String::new, |(directory, _)| directory.to_owned())
    }

    /// The path that the file is written at until it is complete and renamed.
    pub(crate) fn temporary_path(&self) -> String {
        self.path() + TEMPORARY_SUFFIX
    }

    /// The file that this relative path names, or `None` if it is not exactly what [`path`](FileName::path) writes.
    pub(crate) fn parse(path: &str) -> Option<FileName> {
        let parts: Vec<&str> = path.split('/').collect();
        let name = match parts[..] {
            ["LOCK"] => FileName::Lock,
            ["CURRENT"] => FileName::Current,
            ["manifest", file] => FileName::Manifest(number(file.strip_suffix(".manifest")?)?),
            ["wal", file] => FileName::Log(number(file.strip_suffix(".wal")?)?),
            ["parked", file] => {
                let (digits, slot) = file.strip_suffix(".log")?.split_once('-')?;
                FileName::Parked(number(digits)?, slot.parse().ok().map(Slot)?)
            }
            ["keys", "system"] => FileName::SystemKey,
            ["keys", _, id] => FileName::KeyFile(table_id(id)?),
            ["sst", _, file] => match file.split_once('.')? {
                (digits, "sst") => FileName::Table(number(digits)?),
                (digits, "set") => FileName::Container(number(digits)?),
                _ => return None,
            },
            _ => return None,
        };
        // One spelling for each file: padding, case, signs and directories are all checked by writing it again.
        (name.path() == path).then_some(name)
    }

    /// The file that this relative path would have become, if it is a temporary one of ours.
    pub(crate) fn parse_temporary(path: &str) -> Option<FileName> {
        FileName::parse(path.strip_suffix(TEMPORARY_SUFFIX)?)
    }

    /// The kind that the file's header must state; `None` for the lock, which has no content.
    pub(crate) fn kind(&self) -> Option<FileKind> {
        match self {
            FileName::Lock => None,
            FileName::Current => Some(FileKind::Current),
            FileName::Manifest(_) => Some(FileKind::Manifest),
            FileName::Log(_) => Some(FileKind::Log),
            FileName::Parked(..) => Some(FileKind::Parked),
            FileName::SystemKey => Some(FileKind::SystemKey),
            FileName::KeyFile(_) => Some(FileKind::KeyFile),
            FileName::Table(_) | FileName::Container(_) => Some(FileKind::Table),
        }
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path())
    }
}

fn number(digits: &str) -> Option<FileNumber> {
    digits.parse().ok().map(FileNumber)
}

fn table_id(digits: &str) -> Option<TableId> {
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut id = [0; 16];
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(TableId::from_bytes(id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_file_has_the_name_that_the_documentation_gives_it() {
        let id = TableId::from_bytes([0x5e; 16]);
        for (name, path) in [
            (FileName::Lock, "LOCK".to_owned()),
            (FileName::Current, "CURRENT".to_owned()),
            (FileName::Manifest(FileNumber(7)), "manifest/000007.manifest".to_owned()),
            (FileName::Log(FileNumber(12)), "wal/000012.wal".to_owned()),
            (FileName::Parked(FileNumber(12), Slot(3)), "parked/000012-3.log".to_owned()),
            (FileName::SystemKey, "keys/system".to_owned()),
            (FileName::KeyFile(id), format!("keys/5e/{id}")),
            (FileName::Table(FileNumber(0x22)), "sst/22/000034.sst".to_owned()),
            (FileName::Container(FileNumber(0x123)), "sst/23/000291.set".to_owned()),
            (FileName::Table(FileNumber(u64::MAX)), format!("sst/ff/{}.sst", u64::MAX)),
        ] {
            assert_eq!(name.path(), path);
            assert_eq!(FileName::parse(&path), Some(name));
            assert_eq!(FileName::parse_temporary(&name.temporary_path()), Some(name));
        }
        assert_eq!(FileName::Table(FileNumber(0x22)).directory(), "sst/22");
        assert_eq!(FileName::Current.directory(), "");
    }

    #[test]
    fn another_spelling_of_a_name_is_not_recognised() {
        // A failure would let two files stand for one, and recovery delete the wrong one.
        for path in [
            "",
            "/",
            "current",
            "CURRENT/",
            "./CURRENT",
            "manifest/7.manifest",
            "manifest/0000007.manifest",
            "manifest/+00007.manifest",
            "manifest/000007.MANIFEST",
            "wal/000012.log",
            "wal//000012.wal",
            "wal/-00012.wal",
            "sst/23/000034.sst",
            "sst/000034.sst",
            "sst/22/000034.sst.tmp",
            "sst/22/000034.tmp.set",
            "sst/22/0034.set",
            "sst/22/99999999999999999999999.sst",
            "parked/000012.log",
            "parked/000012-03.log",
            "parked/000012-+3.log",
            "keys/5f/5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e",
            "keys/5e/5E5E5E5E5E5E5E5E5E5E5E5E5E5E5E5E",
            "keys/5e/5e",
            "keys/system/",
            "keys/é/ééééééééééééééééé",
        ] {
            assert_eq!(FileName::parse(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_string_that_parses_is_the_path_of_what_it_names(path in "(keys|sst|wal|parked|manifest)/[0-9a-f]{2}/?[0-9a-f-]{0,32}(\\.sst|\\.set|\\.wal)?") {
            if let Some(name) = FileName::parse(&path) {
                prop_assert_eq!(name.path(), path);
            }
        }
    }
}
