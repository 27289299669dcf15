//! Reading a trail: days, files, records.
//!
//! ```text
//! folder/2026/11/21/<store id>_00000000000000000042_20261121T091403512Z.jsonl
//!        UTC day    store      its first record     when that was written
//! ```
//! A file ends with whole records, or, after a crash or a failed write, with a piece of one, which is left out. Numbers in names only say in which
//! order files are looked at; what counts is the chain.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::calendar::{Day, parse_timestamp};
use super::chain::{ChainKeys, Point, bytes};
use super::record::{TrailIdentity, TrailLink, TrailRecord, TrailResource, TrailValue};
use super::verify::{TrailReport, Verifier};
use crate::format::manifest::TrailHead;
use crate::io::{EntryKind, Environment, Vfs};
use crate::keys::lease::KeySet;
use crate::types::StoreId;

/// A file of a trail is smaller than this; a larger one is not read.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// A folder with trails, of one store or several.
#[derive(Clone, Debug)]
pub struct TrailFolder {
    vfs: Arc<dyn Vfs>,
    root: PathBuf,
}

/// One file of a trail.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub struct TrailFile {
    /// The store whose trail it is.
    pub store: StoreId,
    /// Number of its first record.
    pub first: u64,
    /// Its path, relative to the folder.
    pub path: String,
    /// The day of its records.
    pub day: Day,
}

/// A record, and the line that it stands on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TrailEntry {
    /// The record.
    pub record: TrailRecord,
    /// The line, as it stands in its file.
    pub line: String,
}

impl TrailFolder {
    /// The folder at `path`, which need not exist.
    pub fn at(path: impl AsRef<Path>) -> TrailFolder {
        TrailFolder::in_environment(path, &Environment::os())
    }

    /// The folder at `path` in another world than the operating system's.
    pub fn in_environment(path: impl AsRef<Path>, environment: &Environment) -> TrailFolder {
        TrailFolder { vfs: environment.vfs.clone(), root: path.as_ref().to_owned() }
    }

    pub(super) fn over(vfs: Arc<dyn Vfs>, root: PathBuf) -> TrailFolder {
        TrailFolder { vfs, root }
    }

    /// All files, those of a store one behind the other, in the order in which they were begun. What is not ours is left out.
    ///
    /// # Errors
    /// Whatever keeps a folder from being listed; one that is not there holds nothing.
    pub fn files(&self) -> io::Result<Vec<TrailFile>> {
        let mut files = Vec::new();
        for year in self.folders("", 4)? {
            for month in self.folders(&year, 2)? {
                for folder in self.folders(&month, 2)? {
                    let Some(day) = Day::parse(&folder.replace('/', "-")) else { continue };
                    self.list(&folder, &mut |name, kind| {
                        if let Some((store, first)) = parse_name(name).filter(|_| kind == EntryKind::File) {
                            files.push(TrailFile { store, first, path: format!("{folder}/{name}"), day });
                        }
                    })?;
                }
            }
        }
        let name = |file: &TrailFile| file.path.rsplit('/').next().unwrap_or_default().to_owned();
        files.sort_by_cached_key(|file| (file.store, file.first, name(file)));
        Ok(files)
    }

    /// The lines of a file. The last one may be a piece of one.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    pub fn lines(&self, file: &TrailFile) -> io::Result<Vec<String>> {
        let opened = self.vfs.open(&self.root.join(&file.path))?;
        let len = opened.len_bytes()?;
        if len > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{} has {len} bytes", file.path)));
        }
        let mut bytes = vec![0; len as usize];
        opened.read_exact_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.split_terminator('\n').map(str::to_owned).collect())
    }

    /// All records, or those of one day, in the order of time; those of the same moment in the order of the chain.
    ///
    /// Nothing is checked here but that a line has the shape of a record: that is what verifying is for.
    ///
    /// # Errors
    /// Whatever keeps a folder or file from being read.
    pub fn records(&self, day: Option<Day>) -> io::Result<Vec<TrailEntry>> {
        let mut entries = Vec::new();
        for file in self.files()?.iter().filter(|file| day.is_none_or(|day| file.day == day)) {
            let entry = |line: String| Some(TrailEntry { record: TrailRecord::from_json(&line)?, line });
            entries.extend(self.lines(file)?.into_iter().filter_map(entry));
        }
        entries.sort_by_key(|TrailEntry { record, .. }| (record.time_ms, record.store, record.link.sequence));
        Ok(entries)
    }

    /// Check the trail of `store`, with all generations of its system key, against what its manifest attests.
    pub(crate) fn verify(&self, store: StoreId, system: &KeySet, head: Option<&TrailHead>) -> io::Result<TrailReport> {
        let keys = ChainKeys::of(system);
        let mut verifier = Verifier::new(&keys);
        for file in self.files()?.iter().filter(|file| file.store == store) {
            verifier.file(&file.path, &self.lines(file)?);
        }
        let (head, attested_ms) =
            head.map_or((Point::default(), 0), |head| (Point { sequence: head.events, mac: head.mac }, head.at_ms));
        Ok(verifier.finish(head, attested_ms))
    }

    /// Records of `store` from number `from` on, oldest first, as they stand.
    pub(super) fn lines_from(&self, store: StoreId, from: u64) -> io::Result<Vec<String>> {
        let mut files = self.files()?;
        files.retain(|file| file.store == store);
        // The last file that begins at or before it holds it.
        let begin = files.partition_point(|file| file.first <= from).saturating_sub(1);
        // Several files may begin with the same number, if it could not be written at first.
        let first = files.get(begin).map_or(0, |file| file.first);
        let mut lines = Vec::new();
        for file in files.iter().filter(|file| file.first >= first) {
            lines.extend(self.lines(file)?);
        }
        Ok(lines)
    }

    /// Folders in `folder` whose names are so many digits.
    fn folders(&self, folder: &str, digits: usize) -> io::Result<Vec<String>> {
        let mut folders = Vec::new();
        self.list(folder, &mut |name, kind| {
            if kind == EntryKind::Directory && name.len() == digits && name.bytes().all(|byte| byte.is_ascii_digit()) {
                folders.push(if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") });
            }
        })?;
        Ok(folders)
    }

    fn list(&self, folder: &str, found: &mut dyn FnMut(&str, EntryKind)) -> io::Result<()> {
        match self.vfs.read_dir(&self.root.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => {
                outcome?.iter().for_each(|entry| found(&entry.name, entry.kind));
                Ok(())
            }
        }
    }
}

/// A file's name: the store and its first record, and the moment of that.
pub(super) fn file_name(record: &TrailRecord, attempt: u32) -> String {
    let moment: String =
        super::calendar::timestamp(record.time_ms).chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
    let again = if attempt == 0 { String::new() } else { format!("-{attempt}") };
    format!("{}_{:020}_{moment}{again}.jsonl", record.store, record.link.sequence)
}

fn parse_name(name: &str) -> Option<(StoreId, u64)> {
    let mut parts = name.strip_suffix(".jsonl")?.split('_');
    let (store, first) = (parse_store(parts.next()?)?, parts.next()?);
    let digits = first.len() == 20 && first.bytes().all(|byte| byte.is_ascii_digit());
    Some((store, first.parse().ok().filter(|_| digits)?))
}

fn parse_store(hex: &str) -> Option<StoreId> {
    Some(StoreId::from_bytes(bytes(hex)?))
}

impl TrailRecord {
    /// The record that [`json`](TrailRecord::json) wrote so; `None` if it has not the shape of one.
    pub fn from_json(text: &str) -> Option<TrailRecord> {
        let json: Json = serde_json::from_str(text).ok()?;
        let text = |value: &Json, name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let own = |name: &str| text(&json, name);
        let identity = json.get("userIdentity")?;
        let link = json.get("strongroom")?;
        let resource = |one: &Json| Some(TrailResource { arn: text(one, "ARN")?, kind: text(one, "type")? });
        Some(TrailRecord {
            identity: TrailIdentity {
                kind: text(identity, "type")?,
                id: text(identity, "principalId")?,
                invoked_by: text(identity, "invokedBy"),
            },
            time_ms: parse_timestamp(&own("eventTime")?)?,
            source: own("eventSource")?,
            name: own("eventName")?,
            region: own("awsRegion")?,
            source_address: own("sourceIPAddress")?,
            error: own("errorCode").map(|code| (code, own("errorMessage"))),
            request: value(json.get("requestParameters")?),
            response: value(json.get("responseElements")?),
            additional: value(json.get("additionalEventData")?),
            request_id: own("requestID")?,
            event_id: own("eventID")?,
            read_only: json.get("readOnly")?.as_bool()?,
            resources: json.get("resources")?.as_array()?.iter().map(resource).collect::<Option<_>>()?,
            kind: own("eventType")?,
            store: parse_store(&own("recipientAccountId")?)?,
            link: TrailLink {
                sequence: link.get("sequence")?.as_u64()?,
                generation: u32::try_from(link.get("generation")?.as_u64()?).ok()?,
                previous: bytes(&text(link, "previous")?)?,
                mac: bytes(&text(link, "mac")?)?,
            },
        })
    }
}

fn value(json: &Json) -> TrailValue {
    match json {
        Json::Null => TrailValue::Null,
        Json::Bool(value) => TrailValue::Bool(*value),
        Json::Number(number) => number.as_u64().map_or_else(|| number.to_string().into(), TrailValue::Number),
        Json::String(text) => TrailValue::Text(text.clone()),
        Json::Array(values) => TrailValue::List(values.iter().map(value).collect()),
        Json::Object(members) => {
            TrailValue::Object(members.iter().map(|(name, member)| (name.clone(), value(member))).collect())
        }
    }
}
