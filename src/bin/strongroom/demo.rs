//! The whole promise in one command: a store of a real folder tree, read back, compared, and searched for plaintext.
//!
//! ```text
//! survey        choose canaries from the folder (plaintext.rs), and prove that the search finds every one there
//! import        every file, in batches from several threads; then a clean close
//! search        every file of the store, while it still holds its log
//! settle        reopen, read the log back, flush, and wait for compaction
//! compare       every file again: what the table gives against what the folder has, byte for byte
//! scan          every entry once in key order: exactly the folder's files, no more
//! search        every file of the store again, now that it consists of sorted tables
//! verify        every seal of every file
//! ```
//! The keyring lies beside the store, never in it. Without `--keep` both are removed at the end; after a failure they
//! stay, because they are the evidence.

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::time::Instant;

use strongroom::{LocalKms, Store, Table};
use zeroize::Zeroizing;

use crate::args::{self, Layout, Place};
use crate::bytes::escaped;
use crate::check;
use crate::failure::{Failure, Result};
use crate::folder;
use crate::output::{grouped, line, note, size};
use crate::parallel;
use crate::plaintext::{Canaries, Sampler};
use crate::progress::{Progress, Rate};
use crate::secrets::Secret;
use crate::session;
use crate::tables;
use crate::tree::{self, Tree};

const TABLE: &str = "files";
/// Canaries at most, so that they fit in memory whatever the size of the folder.
const CANARIES_MAX: u64 = 1 << 20;
/// One canary per so many bytes, at most.
const STRETCH_BYTES_MIN: u64 = 4 << 10;

pub fn run(place: &Place, args: args::Demo) -> Result<()> {
    let mut tree = Tree::walk(&args.folder)?;
    tree.apply_limits(args.skip_large)?;
    tree.report_skipped();
    if tree.files.is_empty() {
        return Err(Failure::usage(
            format!("there are no files in {}", args.folder.display()),
            "name a folder with real files, such as ~/.cargo/registry/src",
        ));
    }
    let site = Site::choose(place, &args.folder)?;
    say(
        "folder",
        format_args!("{}: {} files, {}", tree.root.display(), grouped(tree.files.len() as u64), size(tree.bytes)),
    )?;
    let canaries = survey(&tree)?;
    let outcome = site.build().and_then(|secret| prove(&site, &secret, &tree, &canaries, &args.layout));
    match outcome {
        Ok(()) if args.keep => site.tell(),
        Ok(()) => site.remove(),
        Err(failure) => {
            if site.store.exists() {
                note!("left for inspection: {} and {}", site.store.display(), site.keys.display());
            }
            Err(failure)
        }
    }
}

fn prove(site: &Site, secret: &Secret, tree: &Tree, canaries: &Canaries, layout: &Layout) -> Result<()> {
    say("store", format_args!("{}", site.store.display()))?;
    say("keyring", format_args!("{}", site.keyring.display()))?;
    let store = Store::builder(&site.store).key_provider(session::create_keyring(&site.keyring, secret)?).create()?;
    let table = store.create_table(TABLE, tables::options(layout))?;
    say("import", folder::load(&store, &table, tree)?)?;
    drop(table);
    store.close()?;
    say("search", search(site, canaries)?)?;

    let store = Store::builder(&site.store).key_provider(site.open_keyring(secret)?).open()?;
    let table = store.table(TABLE)?;
    say("settle", settle(&table)?)?;
    say("compare", compare(&table, tree)?)?;
    say("scan", scan(&table, tree)?)?;
    let description = table.describe()?;
    drop(table);
    store.close()?;
    say("search", search(site, canaries)?)?;
    say("verify", verify(site, secret)?)?;
    say("result", "every byte came back; no plaintext in the store")?;
    line(tables::described(&description))
}

/// One line of the report.
fn say(what: &str, text: impl std::fmt::Display) -> Result<()> {
    line(format_args!("{what:8} {text}"))
}

/// Choose canaries, and show that the search can fail: it must find every one of them in the folder itself.
fn survey(tree: &Tree) -> Result<Canaries> {
    let stretch_bytes = (tree.bytes / CANARIES_MAX).max(STRETCH_BYTES_MIN) as usize;
    let all = Mutex::new(Sampler::default());
    let progress = Progress::begin("survey", "files", Some(2 * tree.bytes));
    parallel::deal(&tree.files, |deal| {
        let mut sampler = Sampler::default();
        while let Some(file) = deal.take() {
            let contents = tree::read(&tree.path(&file.key))?;
            sampler.contents(&contents, stretch_bytes);
            sampler.path(&file.key);
            progress.add(1, contents.len() as u64);
        }
        if let Ok(mut all) = all.lock() {
            all.merge(sampler);
        }
        Ok(())
    })?;
    let canaries = all.into_inner().unwrap_or_default().finish();
    parallel::deal(&tree.files, |deal| {
        while let Some(file) = deal.take() {
            let path = tree.path(&file.key);
            let failed = |source| Failure::file("read", &path, source);
            let found = canaries.search_file(tree::open(&path).map_err(failed)?).map_err(failed)?;
            canaries.search_bytes(&file.key);
            progress.add(1, found.bytes_searched);
        }
        Ok(())
    })?;
    progress.end();
    let unfound = canaries.unfound();
    if canaries.len() == 0 || unfound > 0 {
        return Err(Failure::usage(
            match canaries.len() {
                0 => "the folder has nothing in it that could be told from chance in a store".to_string(),
                all => format!(
                    "the search found {} of {all} canaries in the folder that they were taken from",
                    all - unfound
                ),
            },
            "name a folder with ordinary files that nobody changes meanwhile",
        ));
    }
    say(
        "survey",
        format_args!("{} canaries chosen; the search finds all of them in the folder", grouped(canaries.len() as u64)),
    )?;
    canaries.reset();
    Ok(canaries)
}

/// Look for every canary in every file, and every file name, of the store.
fn search(site: &Site, canaries: &Canaries) -> Result<String> {
    let store = Tree::walk(&site.store)?;
    let progress = Progress::begin("search", "files", Some(store.bytes));
    parallel::deal(&store.files, |deal| {
        while let Some(file) = deal.take() {
            let path = store.path(&file.key);
            let failed = |source| Failure::file("read", &path, source);
            let found = canaries.search_file(tree::open(&path).map_err(failed)?).map_err(failed)?;
            let named = canaries.search_bytes(&file.key);
            if found.first_at.or(named.first_at).is_some() {
                let place = found.first_at.map_or("in its name".to_string(), |at| format!("at byte {at}"));
                return Err(Failure::BrokenPromise {
                    what: format!("plaintext of the folder stands in {} {place}", path.display()),
                });
            }
            progress.add(1, found.bytes_searched);
        }
        Ok(())
    })?;
    Ok(format!("{}: no plaintext", progress.end()))
}

/// Flush and compact until nothing is left to do.
fn settle(table: &Table) -> Result<String> {
    let started = Instant::now();
    // Through the table, whose part of the log is read back at its first use.
    table.flush()?;
    table.compact()?;
    Ok(format!("read the log back, flushed and compacted in {:.2} s", started.elapsed().as_secs_f64()))
}

/// Read every key, and compare its value with the file.
fn compare(table: &Table, tree: &Tree) -> Result<Rate> {
    let progress = Progress::begin("compare", "files", Some(tree.bytes));
    parallel::deal(&tree.files, |deal| {
        while let Some(file) = deal.take() {
            let differs = |how: &str| Failure::BrokenPromise { what: format!("{} {how}", escaped(&file.key)) };
            let value = table.get(&file.key)?.ok_or_else(|| differs("is missing from the table"))?;
            if *value != *tree::read(&tree.path(&file.key))? {
                return Err(differs("differs from the file (or the file changed meanwhile)"));
            }
            progress.add(1, value.len() as u64);
        }
        Ok(())
    })?;
    Ok(progress.end())
}

/// Walk the table once from end to end: exactly the folder's files, in order.
fn scan(table: &Table, tree: &Tree) -> Result<Rate> {
    let progress = Progress::begin("scan", "files", Some(tree.bytes));
    let mut expected = tree.files.iter();
    for entry in table.iter() {
        let (key, value) = entry?;
        if expected.next().is_none_or(|file| file.key != *key) {
            return Err(Failure::BrokenPromise {
                what: format!("the scan met {} where another key was due", escaped(&key)),
            });
        }
        progress.add(1, value.len() as u64);
    }
    if let Some(file) = expected.next() {
        return Err(Failure::BrokenPromise { what: format!("the scan never met {}", escaped(&file.key)) });
    }
    Ok(progress.end())
}

fn verify(site: &Site, secret: &Secret) -> Result<String> {
    let (report, rate) = check::verified(&site.store, site.open_keyring(secret)?)?;
    if report.is_whole() {
        return Ok(format!("{rate}: every seal holds ({} frames)", grouped(report.frames)));
    }
    Err(Failure::Damages(report.damages))
}

/// Where the demonstration takes place.
struct Site {
    store: PathBuf,
    /// The folder of the keyring, beside the store.
    keys: PathBuf,
    keyring: PathBuf,
    /// The folder around all this, if it was made for it.
    around: Option<PathBuf>,
    given: Option<Secret>,
}

impl Site {
    fn choose(place: &Place, folder: &Path) -> Result<Site> {
        if place.keyring.is_some() {
            return Err(Failure::usage(
                "demo makes a keyring of its own",
                "leave --keyring away; the keyring will lie beside the store",
            ));
        }
        let given = Secret::given(place)?;
        let (store, around) = match &place.store {
            Some(store) => (store.clone(), None),
            None => {
                let around = scratch().join(format!("strongroom-demo-{}", process::id()));
                (around.join("store"), Some(around))
            }
        };
        let occupied = fs::read_dir(&store).is_ok_and(|mut entries| entries.next().is_some()) || store.is_file();
        let mut keys = store.clone().into_os_string();
        keys.push(".keys");
        let keys = PathBuf::from(keys);
        if let Some(path) = occupied.then_some(&store).or(keys.exists().then_some(&keys)) {
            return Err(Failure::Exists {
                what: format!("{} is there already", path.display()),
                advice: "name a place that does not exist yet with --store DIR",
            });
        }
        folder::refuse_store_inside(&store, folder)?;
        Ok(Site { store, keyring: keys.join("keyring"), keys, around, given })
    }

    /// Make the folders, and the key that opens the keyring unless the user gave a secret.
    fn build(&self) -> Result<Secret> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.keys)
            .map_err(|source| Failure::file("create the folder", &self.keys, source))?;
        if let Some(secret) = &self.given {
            return Ok(secret.clone());
        }
        let path = self.key_file();
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key)
            .map_err(|error| Failure::File { what: "no random bytes".to_string(), source: io::Error::other(error) })?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&*key))
            .map_err(|source| Failure::file("create", &path, source))?;
        Ok(Secret::KeyFile(path))
    }

    fn key_file(&self) -> PathBuf {
        self.keys.join("key")
    }

    fn open_keyring(&self, secret: &Secret) -> Result<LocalKms> {
        Ok(LocalKms::open(&self.keyring, secret.unlock()?)?)
    }

    /// How to go on with what was kept.
    fn tell(&self) -> Result<()> {
        let secret = match self.given {
            Some(_) => String::new(),
            None => format!(" --key-file {}", self.key_file().display()),
        };
        note!(
            "kept; try: strongroom --store {} --keyring {}{secret} scan {TABLE} --keys-only --limit 10",
            self.store.display(),
            self.keyring.display()
        );
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        for path in [Some(&self.store), Some(&self.keys), self.around.as_ref()].into_iter().flatten() {
            fs::remove_dir_all(path).map_err(|source| Failure::file("remove", path, source))?;
        }
        Ok(())
    }
}

/// A folder for what is only needed for a while: /var/tmp before /tmp, which is often memory.
fn scratch() -> PathBuf {
    let disk = Path::new("/var/tmp");
    if env::var_os("TMPDIR").is_none() && disk.is_dir() { disk.to_path_buf() } else { env::temp_dir() }
}
