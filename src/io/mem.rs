//! Files in memory that know what was synced, and what a power cut may leave of them.
//!
//! Every change is an *event* with a number, counted from 1. One run of a workload therefore holds all
//! its crash points: [`MemVfs::crash_at`] rebuilds the disk as it may look after the power went right behind
//! any event, under any kind of [`Loss`], as often as a test likes and without running the workload again.
//!
//! ```text
//! names   event 1 create_dir /s      file /s/a   event 3 write 0..100
//!         event 2 create /s/a                    event 5 sync
//!         event 4 sync_dir /s                    event 6 write 100..180
//!
//! crash_at(3): may hold nothing, /s, /s/a, and any part of the first 100 bytes
//! crash_at(6): holds the first 100 bytes of /s/a for certain, if /s itself was synced into its directory
//! ```
//!
//! # What is durable
//! * Of a file: what was written before its last [`File::sync`].
//! * Of a name: creations, removals and renames before the last [`Vfs::sync_dir`] of its directory. A rename between two
//!   directories is durable once both are synced, and never half done. A directory that is lost takes along what is in it,
//!   synced or not.
//!
//! This is less than any real file system keeps: ext4, for one, makes a new name durable with its file. Of names that were not
//! synced some may survive and others not, but changes to *one* name survive in order.
//!
//! # How it stays cheap
//! A file keeps the bytes ever written to it in one row, and where each write lies in it. Files of the engine are appended
//! to, so that their content at any event is the beginning of that row: one copy. Only a file that is
//! overwritten, such as a key file being shredded, keeps an image apart and is put together write by write.
//!
//! Without the journal ([`MemVfs::unjournaled`]) files are plain bytes: that is what temporary stores live in.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::sim::Dice;
use super::{DirEntry, EntryKind, File, Lock, Metadata, Vfs};

/// What a power cut, or the end of the process, does to all that was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// All of it is gone: bytes, lengths and names.
    LoseUnsynced,
    /// All of it is there: the process was killed, the machine went on.
    KeepAll,
    /// As [`Loss::KeepAll`], but the last event, if a write, was cut short: the process was killed in its midst.
    CutShort,
    /// Each sector of each write is there or not, and each change of a name.
    Torn {
        /// What the medium writes in one piece: 8, 512 or 4,096 are the usual ones.
        sector_bytes: usize,
    },
    /// Each write is there as a whole or not, later ones without earlier ones, and each change of a name.
    Reordered,
    /// Names and lengths are there, but from some write on the file holds only zeros.
    ZeroTail,
    /// Names and lengths are there, but from some write on the file holds what lay on the medium before.
    GarbageTail,
}

impl Loss {
    /// Every kind of loss, torn at each of the usual sizes.
    pub const ALL: [Loss; 9] = [
        Loss::LoseUnsynced,
        Loss::KeepAll,
        Loss::CutShort,
        Loss::Torn { sector_bytes: 8 },
        Loss::Torn { sector_bytes: 512 },
        Loss::Torn { sector_bytes: 4096 },
        Loss::Reordered,
        Loss::ZeroTail,
        Loss::GarbageTail,
    ];

    /// Whether the machine, and not only the process, went down: then buffered commits may be lost.
    pub fn is_power_cut(self) -> bool {
        !matches!(self, Loss::KeepAll | Loss::CutShort)
    }
}

/// A file system in memory. Clones share it. Relative paths are taken from its root, which exists.
#[derive(Clone)]
pub struct MemVfs(Arc<Disk>);

struct Disk {
    journaled: bool,
    events: AtomicU64,
    names: Mutex<Names>,
}

impl Default for MemVfs {
    fn default() -> MemVfs {
        MemVfs::new()
    }
}

impl MemVfs {
    /// An empty file system that records every change.
    pub fn new() -> MemVfs {
        MemVfs::with(true)
    }

    /// An empty file system that records nothing, and so cannot crash.
    pub fn unjournaled() -> MemVfs {
        MemVfs::with(false)
    }

    fn with(journaled: bool) -> MemVfs {
        MemVfs(Arc::new(Disk { journaled, events: AtomicU64::new(0), names: Mutex::new(Names::new()) }))
    }

    /// How many events there have been. What a test saw acknowledged while this read `n` must be there after a
    /// crash at `n` or later, as far as it was promised.
    pub fn events(&self) -> u64 {
        self.0.events.load(Ordering::SeqCst)
    }

    /// The disk as it may look after a crash right behind the `event`-th event (0: before the first), as a
    /// file system of its own in which all of that is durable. The same arguments give the same disk.
    ///
    /// # Panics
    /// If this file system is [unjournaled](MemVfs::unjournaled).
    pub fn crash_at(&self, event: u64, loss: Loss, seed: u64) -> MemVfs {
        assert!(self.0.journaled, "a file system without a journal cannot crash");
        let mut dice = Dice::new(seed ^ event.rotate_left(32));
        let names = self.0.names.lock();
        let nodes = names.nodes_at(event, loss, &mut dice);
        MemVfs::holding(nodes.into_iter().map(|(path, node)| {
            let contents = match node {
                Node::Directory => None,
                Node::File(inode) => Some(inode.contents.read().bytes_at(event, loss, &mut dice)),
            };
            (path, contents)
        }))
    }

    /// A file system of its own with the same directories and files as this one now, all of it durable.
    pub fn copy(&self) -> MemVfs {
        let names = self.0.names.lock();
        MemVfs::holding(names.live.iter().map(|(path, node)| match node {
            Node::Directory => (path.clone(), None),
            Node::File(inode) => (path.clone(), Some(inode.contents.read().bytes().to_vec())),
        }))
    }

    /// A journaled file system that holds these files, and directories where there are no bytes, as if for ever.
    fn holding(nodes: impl Iterator<Item = (Arc<Path>, Option<Vec<u8>>)>) -> MemVfs {
        let mut names = Names::new();
        for (path, bytes) in nodes {
            let node = match bytes {
                None => Node::Directory,
                Some(bytes) => Node::File(Arc::new(Inode::holding(bytes))),
            };
            let id = names.id_of(&path);
            names.base.push((id, node.clone()));
            names.live.insert(path, node);
        }
        MemVfs(Arc::new(Disk { journaled: true, events: AtomicU64::new(0), names: Mutex::new(names) }))
    }

    /// Every file and its bytes.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let names = self.0.names.lock();
        let files = names.live.iter().filter_map(|(path, node)| match node {
            Node::Directory => None,
            Node::File(inode) => Some((path.to_path_buf(), inode.contents.read().bytes().to_vec())),
        });
        files.collect()
    }

    /// The path of every file, in order.
    pub fn list(&self) -> Vec<PathBuf> {
        let names = self.0.names.lock();
        let files = names.live.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.to_path_buf()).collect()
    }

    /// All bytes of a file.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let inode = self.0.names.lock().file(&absolute(path.as_ref()))?;
        let bytes = inode.contents.read().bytes().to_vec();
        Ok(bytes)
    }

    /// Overwrite bytes of a file behind the store's back. Durable at once, and seen through open handles.
    pub fn overwrite(&self, path: impl AsRef<Path>, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.tamper(path.as_ref(), |image| place(image, offset_bytes, bytes))
    }

    /// Cut a file to `len_bytes`, or make it as long with zeros, behind the store's back. Durable at once, and seen through
    /// open handles.
    pub fn truncate(&self, path: impl AsRef<Path>, len_bytes: usize) -> io::Result<()> {
        self.tamper(path.as_ref(), |image| {
            image.resize(len_bytes, 0);
            Ok(())
        })
    }

    fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let inode = self.0.names.lock().file(&absolute(path))?;
        let mut contents = inode.contents.write();
        let mut image = contents.bytes().to_vec();
        change(&mut image)?;
        // Durable at once.
        let event = contents.replace(image, &self.0);
        contents.syncs.push(event);
        Ok(())
    }

    /// Remove a file behind the store's back. Durable at once.
    pub fn delete(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = absolute(path.as_ref());
        let mut names = self.0.names.lock();
        names.file(&path)?;
        self.0.record(&mut names, |names| Change::SetForGood { path: names.id_of(&path), node: None });
        names.live.remove(&*path);
        Ok(())
    }

    /// Put a file with these bytes behind the store's back, instead of what file was there, in directories that are made as
    /// needed. Durable at once.
    pub fn plant(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let path = absolute(path.as_ref());
        let mut names = self.0.names.lock();
        if let Some(Node::Directory) = names.live.get(&*path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        let mut nodes: Vec<(&Path, Node)> = Vec::new();
        for directory in above.into_iter().rev() {
            match names.live.get(directory) {
                Some(Node::Directory) => {}
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => nodes.push((directory, Node::Directory)),
            }
        }
        nodes.push((&path, Node::File(Arc::new(Inode::holding(bytes.to_vec())))));
        for (path, node) in nodes {
            let set = node.clone();
            self.0.record(&mut names, |names| Change::SetForGood { path: names.id_of(path), node: Some(set) });
            names.live.insert(path.into(), node);
        }
        Ok(())
    }
}

impl fmt::Debug for MemVfs {
    /// How much there is, not what: stores hold more than a log line should.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.names.lock();
        write!(f, "MemVfs({} names, {} events)", names.live.len(), self.events())
    }
}

impl Disk {
    fn next_event(&self) -> u64 {
        self.events.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Count an event, and keep it if there is a journal.
    fn record(&self, names: &mut MutexGuard<'_, Names>, change: impl FnOnce(&mut Names) -> Change) {
        let number = self.next_event();
        if self.journaled {
            let change = change(names);
            names.journal.push(NameEvent { number, change });
        }
    }

    fn open(self: &Arc<Disk>, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        let inode = self.names.lock().file(&absolute(path))?;
        Ok(Arc::new(MemFile { disk: self.clone(), inode, writable }))
    }

    /// Make a name that must not exist yet.
    fn make(&self, path: &Path, node: Node) -> io::Result<()> {
        let path = absolute(path);
        let mut names = self.names.lock();
        if names.live.contains_key(&*path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.parent_must_be_directory(&path)?;
        self.record(&mut names, |names| Change::Set { path: names.id_of(&path), node: Some(node.clone()) });
        names.live.insert(path.into(), node);
        Ok(())
    }
}

impl Vfs for MemVfs {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.make(path, Node::Directory)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inode = Arc::new(Inode::default());
        self.0.make(path, Node::File(inode.clone()))?;
        Ok(Arc::new(MemFile { disk: self.0.clone(), inode, writable: true }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.open(path, false)
    }

    fn open_to_erase(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.open(path, true)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let made = self.0.make(path, Node::File(Arc::default()));
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let inode = self.0.names.lock().file(&absolute(path))?;
        if inode.locked.swap(true, Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock(inode)))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let path = absolute(path);
        let names = self.0.names.lock();
        names.must_be_directory(&path)?;
        // Paths are ordered by component, so what lies in a directory follows it.
        let inside = names.live.range::<Path, _>((Bound::Excluded(&*path), Bound::Unbounded));
        let inside = inside.take_while(|(name, _)| name.starts_with(&path));
        let children = inside.filter(|(name, _)| name.parent() == Some(&path));
        let entries = children.map(|(name, node)| DirEntry {
            name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            kind: node.kind(),
        });
        Ok(entries.collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let names = self.0.names.lock();
        let node = names.live.get(&*absolute(path)).ok_or(io::ErrorKind::NotFound)?;
        let len_bytes = match node {
            Node::Directory => 0,
            Node::File(inode) => inode.contents.read().bytes().len() as u64,
        };
        Ok(Metadata { kind: node.kind(), len_bytes })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (absolute(from), absolute(to));
        let mut names = self.0.names.lock();
        let node = Node::File(names.file(&from)?);
        names.parent_must_be_directory(&to)?;
        if let Some(Node::Directory) = names.live.get(&*to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.0.record(&mut names, |names| Change::Rename {
            from: names.id_of(&from),
            to: names.id_of(&to),
            node: node.clone(),
        });
        names.live.remove(&*from);
        names.live.insert(to.into(), node);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = absolute(path);
        let mut names = self.0.names.lock();
        names.file(&path)?;
        self.0.record(&mut names, |names| Change::Set { path: names.id_of(&path), node: None });
        names.live.remove(&*path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if !self.read_dir(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let path = absolute(path);
        if path.parent().is_none() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let mut names = self.0.names.lock();
        self.0.record(&mut names, |names| Change::Set { path: names.id_of(&path), node: None });
        names.live.remove(&*path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = absolute(path);
        let mut names = self.0.names.lock();
        names.must_be_directory(&path)?;
        self.0.record(&mut names, |names| Change::Sync { directory: names.id_of(&path) });
        Ok(())
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(absolute(path))
    }

    fn check_private(&self, dir: &Path) -> io::Result<()> {
        self.0.names.lock().must_be_directory(&absolute(dir))
    }
}

/// `path` from the root, without `.` and `..`: there are no links here that could make it mean something else.
fn absolute(path: &Path) -> PathBuf {
    let mut absolute = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => absolute.push(name),
            Component::ParentDir => drop(absolute.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    absolute
}

/// What a name stands for.
#[derive(Clone)]
enum Node {
    Directory,
    File(Arc<Inode>),
}

impl Node {
    fn kind(&self) -> EntryKind {
        match self {
            Node::Directory => EntryKind::Directory,
            Node::File(_) => EntryKind::File,
        }
    }
}

/// A path in the journal: paths are numbered in the order in which they are first named, a directory before what is in it.
type PathId = usize;

/// The root's number.
const ROOT: PathId = 0;

/// All names, now and at every event.
struct Names {
    live: BTreeMap<Arc<Path>, Node>,
    /// What was there before the first event.
    base: Vec<(PathId, Node)>,
    journal: Vec<NameEvent>,
    paths: Vec<Arc<Path>>,
    parents: Vec<PathId>,
    ids: HashMap<Arc<Path>, PathId>,
}

struct NameEvent {
    number: u64,
    change: Change,
}

enum Change {
    /// A name is created, or removed.
    Set { path: PathId, node: Option<Node> },
    /// The same behind the store's back: durable at once.
    SetForGood { path: PathId, node: Option<Node> },
    /// A file has another name.
    Rename { from: PathId, to: PathId, node: Node },
    /// What was done in this directory so far is durable.
    Sync { directory: PathId },
}

impl Names {
    fn new() -> Names {
        let root: Arc<Path> = Path::new("/").into();
        Names {
            live: BTreeMap::from([(root.clone(), Node::Directory)]),
            base: vec![(ROOT, Node::Directory)],
            journal: Vec::new(),
            paths: vec![root.clone()],
            parents: vec![ROOT],
            ids: HashMap::from([(root, ROOT)]),
        }
    }

    fn id_of(&mut self, path: &Path) -> PathId {
        if let Some(id) = self.ids.get(path) {
            return *id;
        }
        let parent = path.parent().map_or(ROOT, |parent| self.id_of(parent));
        let (id, path) = (self.paths.len(), Arc::<Path>::from(path));
        self.paths.push(path.clone());
        self.parents.push(parent);
        self.ids.insert(path, id);
        id
    }

    /// The file of this name. What is not a file is refused as the real file system does.
    fn file(&self, path: &Path) -> io::Result<Arc<Inode>> {
        match self.live.get(path) {
            Some(Node::File(inode)) => Ok(inode.clone()),
            Some(Node::Directory) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn must_be_directory(&self, path: &Path) -> io::Result<()> {
        match self.live.get(path) {
            Some(Node::Directory) => Ok(()),
            Some(Node::File(_)) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a directory")),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn parent_must_be_directory(&self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.must_be_directory(parent))
    }

    /// The names that a crash behind `event` leaves. Directories come before what is in them.
    fn nodes_at(&self, event: u64, loss: Loss, dice: &mut Dice) -> Vec<(Arc<Path>, Node)> {
        let journal = &self.journal[..self.journal.partition_point(|entry| entry.number <= event)];
        let durable = self.durable_changes(journal);
        let mut nodes: Vec<Option<&Node>> = vec![None; self.paths.len()];
        for (path, node) in &self.base {
            nodes[*path] = Some(node);
        }
        // A name of which a change was lost. Later changes to it are lost too: they happened to a name
        // that was never there, or that should have gone first.
        let mut lost = vec![false; self.paths.len()];
        let keep_eighths = 1 + dice.below(7) as u64;
        for (entry, durable) in journal.iter().zip(durable) {
            let mut kept = |paths: &[PathId]| {
                let kept = match loss {
                    _ if durable => true,
                    _ if paths.iter().any(|&path| lost[path]) => false,
                    Loss::LoseUnsynced => false,
                    Loss::KeepAll | Loss::CutShort | Loss::ZeroTail | Loss::GarbageTail => true,
                    Loss::Torn { .. } | Loss::Reordered => dice.eighths(keep_eighths),
                };
                if !kept {
                    paths.iter().for_each(|&path| lost[path] = true);
                }
                kept
            };
            match &entry.change {
                Change::Set { path, node } if kept(&[*path]) => nodes[*path] = node.as_ref(),
                Change::SetForGood { path, node } => nodes[*path] = node.as_ref(),
                Change::Rename { from, to, node } if kept(&[*from, *to]) => {
                    nodes[*from] = None;
                    nodes[*to] = Some(node);
                }
                Change::Set { .. } | Change::Rename { .. } | Change::Sync { .. } => {}
            }
        }
        self.reachable(&nodes)
    }

    /// Which of these changes were durable after the last of them.
    fn durable_changes(&self, journal: &[NameEvent]) -> Vec<bool> {
        let mut durable = vec![false; journal.len()];
        // Changes not yet durable, with the directories that must still be synced for it.
        let mut waiting: Vec<(usize, [Option<PathId>; 2])> = Vec::new();
        for (i, entry) in journal.iter().enumerate() {
            match entry.change {
                Change::Set { path, .. } => waiting.push((i, [Some(self.parents[path]), None])),
                Change::SetForGood { .. } => durable[i] = true,
                Change::Rename { from, to, .. } => {
                    waiting.push((i, [Some(self.parents[from]), Some(self.parents[to])]));
                }
                Change::Sync { directory } => waiting.retain_mut(|(change, directories)| {
                    directories
                        .iter_mut()
                        .filter(|needed| **needed == Some(directory))
                        .for_each(|needed| *needed = None);
                    durable[*change] = *directories == [None, None];
                    !durable[*change]
                }),
            }
        }
        durable
    }

    /// The nodes whose directories are all there.
    fn reachable(&self, nodes: &[Option<&Node>]) -> Vec<(Arc<Path>, Node)> {
        let mut is_directory = vec![false; nodes.len()];
        let mut reachable = Vec::new();
        for (path, node) in nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            if path == ROOT || is_directory[self.parents[path]] {
                is_directory[path] = matches!(node, Node::Directory);
                reachable.push((self.paths[path].clone(), (*node).clone()));
            }
        }
        reachable
    }
}

/// A file, whatever its name.
#[derive(Default)]
struct Inode {
    locked: AtomicBool,
    contents: RwLock<Contents>,
}

impl Inode {
    /// A file whose bytes have been durable for ever.
    fn holding(bytes: Vec<u8>) -> Inode {
        let contents = Contents {
            writes: vec![Write { event: 0, offset: 0, start: 0, len: bytes.len(), replaces: true }],
            appends: 1,
            syncs: vec![0],
            row: bytes,
            image: None,
        };
        Inode { locked: AtomicBool::new(false), contents: RwLock::new(contents) }
    }
}

/// The bytes of a file, now and at every event.
#[derive(Default)]
struct Contents {
    /// All bytes ever written, in the order of writing.
    row: Vec<u8>,
    /// The bytes now, once they are not just the row any more.
    image: Option<Vec<u8>>,
    writes: Vec<Write>,
    /// So many of the writes, from the first on, went to where the file ended: their bytes are the row's beginning.
    appends: usize,
    /// Events at which the file was synced.
    syncs: Vec<u64>,
}

struct Write {
    event: u64,
    /// Where in the file.
    offset: usize,
    /// Where in the row.
    start: usize,
    len: usize,
    /// Whether the file was emptied first.
    replaces: bool,
}

impl Write {
    /// Do this write to `image`.
    fn apply(&self, image: &mut Vec<u8>, row: &[u8]) {
        if self.replaces {
            image.clear();
        }
        self.apply_part(image, row, 0, self.len);
    }

    /// Do the part of this write that lies from `from` to `to` in it.
    fn apply_part(&self, image: &mut Vec<u8>, row: &[u8], from: usize, to: usize) {
        let (begin, end) = (self.offset + from, self.offset + to);
        if image.len() < end {
            image.resize(end, 0);
        }
        image[begin..end].copy_from_slice(&row[self.start + from..self.start + to]);
    }
}

/// Write `bytes` into `image`, which grows as needed.
fn place(image: &mut Vec<u8>, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
    let end = usize::try_from(offset_bytes).ok().and_then(|offset| offset.checked_add(bytes.len()));
    let end = end.ok_or(io::ErrorKind::FileTooLarge)?;
    if image.len() < end {
        image.try_reserve(end - image.len()).map_err(|_| io::ErrorKind::StorageFull)?;
        image.resize(end, 0);
    }
    image[end - bytes.len()..end].copy_from_slice(bytes);
    Ok(())
}

impl Contents {
    /// The bytes now.
    fn bytes(&self) -> &[u8] {
        self.image.as_ref().unwrap_or(&self.row)
    }

    /// Write into the file. The event is counted only if it can be done.
    fn write(&mut self, offset_bytes: u64, bytes: &[u8], disk: &Disk) -> io::Result<()> {
        if !disk.journaled {
            place(&mut self.row, offset_bytes, bytes)?;
            disk.next_event();
            return Ok(());
        }
        let start = self.row.len();
        if self.image.is_none() && offset_bytes == start as u64 {
            self.appends += 1;
        } else {
            place(self.image.get_or_insert_with(|| self.row.clone()), offset_bytes, bytes)?;
        }
        self.row.extend_from_slice(bytes);
        let offset = offset_bytes as usize; // `place` has checked it.
        self.writes.push(Write { event: disk.next_event(), offset, start, len: bytes.len(), replaces: false });
        Ok(())
    }

    /// Make the file `image`; the event.
    fn replace(&mut self, image: Vec<u8>, disk: &Disk) -> u64 {
        let event = disk.next_event();
        if !disk.journaled {
            self.row = image;
            return event;
        }
        self.writes.push(Write { event, offset: 0, start: self.row.len(), len: image.len(), replaces: true });
        self.row.extend_from_slice(&image);
        self.image = Some(image);
        event
    }

    /// The bytes that a crash behind `event` leaves.
    fn bytes_at(&self, event: u64, loss: Loss, dice: &mut Dice) -> Vec<u8> {
        let done = &self.writes[..self.writes.partition_point(|write| write.event <= event)];
        let syncs = self.syncs.partition_point(|sync| *sync <= event);
        let durable = match self.syncs[..syncs].last() {
            Some(sync) => done.partition_point(|write| write.event <= *sync),
            None => 0,
        };
        let pending = &done[durable..];
        match loss {
            Loss::LoseUnsynced => self.replay(durable),
            Loss::KeepAll => self.replay(done.len()),
            Loss::CutShort => self.cut_short(done, event, dice),
            Loss::Torn { sector_bytes } => self.torn(self.replay(durable), pending, sector_bytes, dice),
            Loss::Reordered => {
                let mut image = self.replay(durable);
                let keep_eighths = 1 + dice.below(7) as u64;
                for write in pending {
                    if dice.eighths(keep_eighths) {
                        write.apply(&mut image, &self.row);
                    }
                }
                image
            }
            Loss::ZeroTail | Loss::GarbageTail => {
                let cut = dice.below(pending.len() + 1);
                let mut image = self.replay(durable + cut);
                let kept_bytes = image.len();
                let len = pending[cut..].iter().map(|write| write.offset + write.len).max().unwrap_or(0);
                image.resize(len.max(kept_bytes), 0);
                if loss == Loss::GarbageTail {
                    let garbage = image[kept_bytes..].chunks_mut(8);
                    garbage.for_each(|chunk| chunk.copy_from_slice(&dice.roll().to_le_bytes()[..chunk.len()]));
                }
                image
            }
        }
    }

    /// The bytes after the first `count` writes.
    fn replay(&self, count: usize) -> Vec<u8> {
        let straight = count.min(self.appends);
        let end = self.writes[..straight].last().map_or(0, |write| write.start + write.len);
        let mut image = self.row[..end].to_vec();
        for write in &self.writes[straight..count] {
            write.apply(&mut image, &self.row);
        }
        image
    }

    /// All writes, but of one that is `event` itself only the beginning.
    fn cut_short(&self, done: &[Write], event: u64, dice: &mut Dice) -> Vec<u8> {
        match done.last() {
            Some(last) if last.event == event && !last.replaces => {
                let mut image = self.replay(done.len() - 1);
                last.apply_part(&mut image, &self.row, 0, dice.below(last.len + 1));
                image
            }
            _ => self.replay(done.len()),
        }
    }

    /// `image` with some of the sectors of the `pending` writes.
    fn torn(&self, mut image: Vec<u8>, pending: &[Write], sector_bytes: usize, dice: &mut Dice) -> Vec<u8> {
        let keep_eighths = 1 + dice.below(7) as u64;
        for write in pending {
            let mut from = 0;
            while from < write.len {
                // Sectors are the medium's: they begin at multiples of their size in the file.
                let to = write.len.min(from + sector_bytes - (write.offset + from) % sector_bytes);
                if dice.eighths(keep_eighths) {
                    write.apply_part(&mut image, &self.row, from, to);
                }
                from = to;
            }
        }
        image
    }
}

/// An open file.
struct MemFile {
    disk: Arc<Disk>,
    inode: Arc<Inode>,
    writable: bool,
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemFile({} bytes)", self.inode.contents.read().bytes().len())
    }
}

impl File for MemFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let contents = self.inode.contents.read();
        let start = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(contents.bytes().get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is open for reading only"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.inode.contents.write().write(offset_bytes, bytes, &self.disk)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.inode.contents.read().bytes().len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut contents = self.inode.contents.write();
        let event = self.disk.next_event();
        if self.disk.journaled {
            contents.syncs.push(event);
        }
        Ok(())
    }

    /// An event as a write of zeros is, so that a power cut may leave any part of it. Without a journal, memory is not taken before it is needed.
    fn reserve(&self, len_bytes: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut contents = self.inode.contents.write();
        let present = contents.bytes().len() as u64;
        if !self.disk.journaled || len_bytes <= present {
            return Ok(());
        }
        let missing = usize::try_from(len_bytes - present).map_err(|_| io::ErrorKind::StorageFull)?;
        contents.write(present, &vec![0; missing], &self.disk)
    }

    fn cut(&self, len_bytes: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut contents = self.inode.contents.write();
        let kept = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        if contents.bytes().len() > kept {
            let image = contents.bytes()[..kept].to_vec();
            contents.replace(image, &self.disk);
        }
        Ok(())
    }

    fn begin_write_back(&self, _offset_bytes: u64, _len_bytes: u64) {}

    fn will_read(&self, _offset_bytes: u64, _len_bytes: u64) {}
}

/// A lock file that is held.
struct MemLock(Arc<Inode>);

impl fmt::Debug for MemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemLock")
    }
}

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
