//! A folder tree in and out of a table: path relative to the folder → contents, identical bytes back.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use strongroom::{Batch, Store, Table};

use crate::args::{ExportFolder, ImportFolder, Place};
use crate::bytes::escaped;
use crate::failure::{Failure, Result};
use crate::output::note;
use crate::parallel;
use crate::progress::{Progress, Rate};
use crate::session::{lies_within, store_path, with_table};
use crate::tree::{self, Tree};

/// A batch is committed once it holds this much: large enough that commits cost nothing per file, small
/// enough that every thread may hold one.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_FILES: usize = 4_096;
/// Files above this are read by one thread at a time, so that memory holds one of them and not eight.
const LARGE_BYTES: u64 = 32 << 20;

pub fn import(place: &Place, args: ImportFolder) -> Result<()> {
    refuse_store_inside(store_path(place)?, &args.folder)?;
    let mut tree = Tree::walk(&args.folder)?;
    tree.apply_limits(args.skip_large)?;
    tree.report_skipped();
    with_table(place, &args.table, |store, table| {
        let rate = load(store, table, &tree)?;
        note!("imported {rate}");
        Ok(())
    })
}

/// A folder that holds the store would be imported with the store's own files, which grow by what is imported.
pub fn refuse_store_inside(store: &Path, folder: &Path) -> Result<()> {
    if lies_within(store, folder) {
        return Err(Failure::usage(
            format!("the store {} lies inside the folder to import", store.display()),
            "choose a store outside the folder, or a folder without the store",
        ));
    }
    Ok(())
}

/// Put every file of the tree into the table, and make it durable.
pub fn load(store: &Store, table: &Table, tree: &Tree) -> Result<Rate> {
    let progress = Progress::begin("import", "files", Some(tree.bytes));
    let large = Mutex::new(());
    parallel::deal(&tree.files, |deal| {
        let mut pending = Pending::new(store);
        while let Some(file) = deal.take() {
            // The guard protects memory, not data: if its holder panicked there is nothing to distrust.
            let alone =
                (file.len_bytes > LARGE_BYTES).then(|| large.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            let contents = tree::read(&tree.path(&file.key))?;
            pending.put(table, &file.key, &contents, &progress)?;
            drop(alone);
        }
        pending.commit(&progress)
    })?;
    store.sync()?;
    Ok(progress.end())
}

/// One thread's batch.
struct Pending<'a> {
    store: &'a Store,
    batch: Batch,
    files: usize,
    bytes: usize,
}

impl<'a> Pending<'a> {
    fn new(store: &'a Store) -> Pending<'a> {
        Pending { store, batch: store.batch(), files: 0, bytes: 0 }
    }

    fn put(&mut self, table: &Table, key: &[u8], contents: &[u8], progress: &Progress) -> Result<()> {
        self.batch.put(table, key, contents);
        self.files += 1;
        self.bytes += contents.len();
        if self.bytes >= BATCH_BYTES || self.files >= BATCH_FILES {
            self.commit(progress)?;
        }
        Ok(())
    }

    fn commit(&mut self, progress: &Progress) -> Result<()> {
        if self.files == 0 {
            return Ok(());
        }
        std::mem::replace(&mut self.batch, self.store.batch()).commit()?;
        progress.add(self.files as u64, self.bytes as u64);
        (self.files, self.bytes) = (0, 0);
        Ok(())
    }
}

pub fn export(place: &Place, args: ExportFolder) -> Result<()> {
    with_table(place, &args.table, |store, table| {
        // One snapshot for both passes: what was found safe is what is written.
        let snapshot = store.snapshot();
        for key in snapshot.iter(table).keys() {
            let key = key?;
            if let Some(reason) = tree::unsafe_path(&key) {
                return Err(Failure::usage(
                    format!("the key {} cannot become a path: {reason}", escaped(&key)),
                    "export a table that was filled with `import folder`; nothing was written",
                ));
            }
        }
        prepare(&args.folder)?;
        let progress = Progress::begin("export", "files", None);
        for entry in snapshot.iter(table) {
            let (key, contents) = entry?;
            tree::create(&args.folder, &key, &contents)?;
            progress.add(1, contents.len() as u64);
        }
        note!("exported {}", progress.end());
        Ok(())
    })
}

/// Make the target folder, or see that it is empty.
fn prepare(folder: &Path) -> Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::Exists {
                what: format!("{} is not empty", folder.display()),
                advice: "export into an empty or a new folder; nothing was written",
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(|source| Failure::file("create the folder", folder, source))
        }
        Err(source) => Err(Failure::file("read the folder", folder, source)),
    }
}
