//! Folder trees: which files there are, and which keys are safe to become paths again.
//!
//! A file's key is its path relative to the folder, components joined by `/`, in the system's own bytes.
//! Only regular files have contents to keep: links, pipes, sockets and devices are reported and skipped, and
//! nothing is ever read or written through a link. Empty folders and permissions are not kept.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use strongroom::types::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use crate::bytes::escaped;
use crate::failure::{Failure, Result};
use crate::output::{grouped, note, size};

/// So many names are listed in a message before "and N more".
const NAMES_LISTED: usize = 10;

/// What lies under a folder.
pub struct Tree {
    pub root: PathBuf,
    /// In key order.
    pub files: Vec<Leaf>,
    pub bytes: u64,
    pub folders_empty: u64,
    /// Links, pipes, sockets and devices.
    pub skipped: Vec<String>,
}

/// A regular file.
pub struct Leaf {
    pub key: Vec<u8>,
    pub len_bytes: u64,
}

impl Tree {
    /// Walk `root`. What cannot be listed is an error: an import that silently lacks a folder is worse than none.
    pub fn walk(root: &Path) -> Result<Tree> {
        let root = root.canonicalize().map_err(|source| Failure::file("read the folder", root, source))?;
        let mut tree = Tree { root: root.clone(), files: Vec::new(), bytes: 0, folders_empty: 0, skipped: Vec::new() };
        // Relative folders still to be listed; empty for the root itself.
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            tree.list(&folder, &mut folders)?;
        }
        tree.files.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        tree.bytes = tree.files.iter().map(|file| file.len_bytes).sum();
        Ok(tree)
    }

    fn list(&mut self, folder: &[u8], folders: &mut Vec<Vec<u8>>) -> Result<()> {
        let path = self.path(folder);
        let failed = |source| Failure::file("read the folder", &path, source);
        let mut is_empty = true;
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            is_empty = false;
            let name = entry.file_name();
            let key =
                if folder.is_empty() { name.as_bytes().to_vec() } else { [folder, b"/", name.as_bytes()].concat() };
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(key);
            } else if kind.is_file() {
                // `DirEntry::metadata` does not follow links.
                let len_bytes = entry.metadata().map_err(failed)?.len();
                self.files.push(Leaf { key, len_bytes });
            } else {
                self.skipped.push(escaped(&key));
            }
        }
        if is_empty && !folder.is_empty() {
            self.folders_empty += 1;
        }
        Ok(())
    }

    /// Where the file with this key lies.
    pub fn path(&self, key: &[u8]) -> PathBuf {
        if key.is_empty() { self.root.clone() } else { self.root.join(OsStr::from_bytes(key)) }
    }

    /// Take out what is over the engine's limits: refuse by name, or report by name and skip.
    pub fn apply_limits(&mut self, skip: bool) -> Result<()> {
        let (fitting, large) = std::mem::take(&mut self.files)
            .into_iter()
            .partition::<Vec<_>, _>(|file| file.len_bytes <= VALUE_BYTES_MAX as u64 && file.key.len() <= KEY_BYTES_MAX);
        self.files = fitting;
        if large.is_empty() {
            return Ok(());
        }
        self.bytes = self.files.iter().map(|file| file.len_bytes).sum();
        let names: Vec<String> =
            large.iter().map(|file| format!("{} ({})", escaped(&file.key), size(file.len_bytes))).collect();
        let what = format!("over the limit of {} a file: {}", size(VALUE_BYTES_MAX as u64), some_of(&names));
        if skip {
            note!("skipped, {what}");
            return Ok(());
        }
        Err(Failure::OverLimit { what, advice: "leave these files out, or give --skip-large; nothing was imported" })
    }

    /// Say what of the folder a table does not keep.
    pub fn report_skipped(&self) {
        if !self.skipped.is_empty() {
            note!("skipped, because only regular files have contents: {}", some_of(&self.skipped));
        }
        if self.folders_empty > 0 {
            note!("empty folders are not kept: {}", grouped(self.folders_empty));
        }
    }
}

/// The contents of a regular file, at most what a value may hold. Links are not followed.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    contents(path, open(path))
}

/// The same for a file that the user named: links, pipes and devices are hers to choose.
pub fn read_named(path: &Path) -> Result<Vec<u8>> {
    contents(path, File::open(path))
}

/// Open a regular file for reading without following a link in its last component, and without waiting for a
/// writer should it have become a pipe since the folder was listed.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no longer a regular file"));
    }
    Ok(file)
}

fn contents(path: &Path, opened: io::Result<File>) -> Result<Vec<u8>> {
    let failed = |source| Failure::file("read", path, source);
    let file = opened.map_err(failed)?;
    let len_bytes = file.metadata().map_err(failed)?.len();
    read_value(&path.display().to_string(), file, len_bytes)
}

/// Everything that `source` holds, as a value. More than a value may hold is refused by `name`.
pub fn read_value(name: &str, source: impl Read, expected_bytes: u64) -> Result<Vec<u8>> {
    let limit = VALUE_BYTES_MAX as u64;
    let over_limit = || Failure::OverLimit {
        what: format!("{name} is over the limit of {} a value", size(limit)),
        advice: "split it into several values; nothing was written",
    };
    // Said before half a gigabyte is read for nothing.
    if expected_bytes > limit {
        return Err(over_limit());
    }
    // The expected length spares growing; it is only a hint, since files change and pipes have none.
    let mut contents = Vec::with_capacity(expected_bytes as usize + 1);
    source
        // One byte more, so that a longer source shows.
        .take(limit + 1)
        .read_to_end(&mut contents)
        .map_err(|source| Failure::File { what: format!("cannot read {name}"), source })?;
    if contents.len() as u64 > limit {
        return Err(over_limit());
    }
    Ok(contents)
}

/// Create the file for `key` under `root`, which holds nothing but what this made, and the folders above it.
pub fn create(root: &Path, key: &[u8], contents: &[u8]) -> Result<()> {
    let path = root.join(OsStr::from_bytes(key));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| Failure::file("create the folder", folder, source))?;
    }
    let failed = |source| Failure::file("create", &path, source);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    file.write_all(contents).map_err(failed)
}

/// Why `key` must not become a path under a folder, if so.
pub fn unsafe_path(key: &[u8]) -> Option<&'static str> {
    if key.contains(&0) {
        return Some("it holds a zero byte");
    }
    key.split(|&byte| byte == b'/').find_map(|component| match component {
        b"" => Some("it begins or ends with a slash, or has two in a row"),
        b"." | b".." => Some("it would lead out of the folder"),
        _ => None,
    })
}

/// The first few of `names`, and how many more there are.
pub fn some_of(names: &[String]) -> String {
    let listed = names[..names.len().min(NAMES_LISTED)].join(", ");
    match names.len().saturating_sub(NAMES_LISTED) {
        0 => listed,
        more => format!("{listed} and {} more", grouped(more as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_escape_the_folder_are_unsafe_paths() {
        let refused: [&[u8]; 9] = [b"/etc/passwd", b"..", b"../x", b"a/../b", b"a/./b", b"a//b", b"a/", b"a\0b", b"."];
        for key in refused {
            assert!(unsafe_path(key).is_some(), "{}", escaped(key));
        }
        let fine: [&[u8]; 5] = [b"a", b"a/b", b"...", b"..a/b..", b"\xff\n/\\"];
        for key in fine {
            assert!(unsafe_path(key).is_none(), "{}", escaped(key));
        }
    }
}
