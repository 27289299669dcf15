//! What a process remembers of keys and values once they may not be used any more, seen from outside it.
//!
//! The test starts itself as a child that runs a store through the life of its keys, and stops it at each turn. It knows every
//! secret of the child's: master keys and data keys, because the randomness that they are drawn from follows from a seed; the keys below
//! them, because it derives them itself from the headers in the store's files; keys and values of entries, because they follow from
//! numbers. Then it reads all of the child's writable memory and looks for each of them.
//!
//! ```text
//! child    ── in use ── idle ── revoked ── dropped ── closed ── over
//! parent        │         │        │          │          │        │     SIGSTOP, /proc/PID/smaps and mem, SIGCONT
//!            all there   gone: what the turn ended, and nothing that came of it
//! ```
#![cfg(all(target_os = "linux", not(strongroom_plaintext_baseline)))]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hkdf::Hkdf;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use sha2::Sha256;
use strongroom::event::Event;
use strongroom::io::{Entropy, Environment};
use strongroom::keys::{
    CreateGrantRequest, DecryptRequest, DecryptedDataKey, DescribeKeyRequest, EndGrantRequest, EngineKeyRequest,
    GenerateDataKeyRequest, GeneratedDataKey, Grant, KeyDescription, ProviderDescription, ProviderResult,
};
use strongroom::options::StoreOptions;
use strongroom::{KeyProvider, LocalKms, MasterKey, Store, Table, TableOptions, Unlock};

use crate::world::{Dice, Heard, files_below};

/// Tells the child where it shall work.
const CHILD_DIR: &str = "STRONGROOM_MEMORY_CHILD_DIR";
const PERMIT: Duration = Duration::from_secs(4);
/// Entries per table. Several blocks' worth, of all ways in which a value is kept and handed out.
const ENTRIES: u64 = 60;
const TABLES: [&str; 3] = ["kept", "revoked", "dropped"];

// ---- what both sides know ----

/// Draw `n` of the keyring's randomness. Made in place, by arithmetic that leaves nothing on the stack.
fn draw(n: u64, bytes: &mut [u8]) {
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = Dice::new(!n.rotate_left(32) ^ i as u64).roll();
        chunk.iter_mut().zip(word.to_le_bytes()).for_each(|(byte, random)| *byte = random);
    }
}

fn unlock_key(bytes: &mut [u8; 32]) {
    draw(u64::MAX, bytes);
}

/// The key and the value of entry `i` of a table: the value's length goes through all that are treated differently.
fn entry(table: usize, i: u64) -> (Vec<u8>, Vec<u8>) {
    let mut dice = Dice::new(0x5eed_0000 + ((table as u64) << 16) + i);
    let len = [30, 100, 250, 1000, 5000, 70_000][i as usize % 6];
    // Filled in place: a vector that grows would leave copies behind that are not the engine's.
    let (mut key, mut value) = (vec![0; 32], vec![b'.'; 2 * len]);
    key[..4].copy_from_slice(&[b'0' + (i / 10) as u8, b'0' + (i % 10) as u8, b' ', b' ']);
    // Compressible, so that LZ4 has something to do; what is searched for lies in the first half.
    for bytes in [&mut key[4..], &mut value[..len]] {
        for chunk in bytes.chunks_mut(8) {
            let word = dice.roll().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
    (key, value)
}

// ---- the child ----

/// Randomness that follows from a number.
#[derive(Debug, Default)]
struct Known(AtomicU64);

impl Entropy for Known {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        draw(self.0.fetch_add(1, Ordering::SeqCst), bytes);
        Ok(())
    }

    fn is_real(&self) -> bool {
        true
    }
}

/// The local provider, telling the parent what it wrapped.
#[derive(Debug)]
struct Telling {
    kms: LocalKms,
    entropy: Arc<Known>,
}

impl KeyProvider for Telling {
    fn describe(&self) -> ProviderDescription {
        self.kms.describe()
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.kms.describe_key(request)
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        let before = self.entropy.0.load(Ordering::SeqCst);
        let made = self.kms.generate_data_key(request)?;
        let after = self.entropy.0.load(Ordering::SeqCst);
        let of = |name| request.context.value(name).unwrap_or_default().to_owned();
        let (table, generation) = (of("strongroom:table"), of("strongroom:generation"));
        say(&format!("wrap {table} {generation} {before} {after} {}", hex(&made.ciphertext)));
        Ok(made)
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        self.kms.decrypt(request)
    }

    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        self.kms.create_grant(request)
    }

    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.kms.retire_grant(request)
    }

    fn revoke_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.kms.revoke_grant(request)
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.kms.managed_key(request)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.kms.owned_key(request)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {line}").unwrap();
    out.flush().unwrap();
}

/// Say where the child stands, and go on once the parent has looked.
fn stand(place: &str) {
    say(&format!("at {place}"));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Overwrites a buffer of the caller's, who is this test: what is left then is the engine's.
fn wipe(mut bytes: Vec<u8>) {
    bytes.fill(0);
    std::hint::black_box(&bytes);
}

/// Put and read back half of a table's entries, in every way there is.
fn use_table(store: &Store, table: &Table, number: usize, half: u64) {
    let entries = || (0..ENTRIES).filter(|i| i % 2 == half).map(|i| entry(number, i));
    for (i, (key, value)) in entries().enumerate() {
        if i % 3 == 0 {
            let mut batch = store.batch();
            batch.put(table, &key, &value);
            batch.commit().unwrap();
        } else {
            table.put(&key, &value).unwrap();
        }
        wipe(key);
        wipe(value);
    }
    read_table(table, number, half);
}

fn read_table(table: &Table, number: usize, half: u64) {
    for (key, value) in (0..ENTRIES).filter(|i| i % 2 == half).map(|i| entry(number, i)) {
        assert!(*table.get(&key).unwrap().unwrap() == *value);
        wipe(key);
        wipe(value);
    }
    assert!(table.iter().map(Result::unwrap).count() as u64 >= ENTRIES / 2);
    let mut cursor = table.cursor().unwrap();
    while cursor.next().unwrap().is_some() {}
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test: what the tests below start.
#[test]
#[ignore = "started by the tests of this module"]
fn child_that_is_looked_at() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    // On a thread of its own, as a program would: the stack that is looked at is nobody else's.
    let child = std::thread::spawn(move || live(Path::new(&dir)));
    child.join().unwrap();
}

fn live(dir: &Path) {
    let entropy = Arc::new(Known::default());
    let world = Environment { entropy: entropy.clone(), ..Environment::os() };
    let kms = LocalKms::create_in(world, dir.join("keyring"), Unlock::key(unlock_key)).unwrap();
    for name in TABLES {
        kms.create_key(Some(&format!("alias/{name}")), "").unwrap();
    }
    let heard = Arc::new(Heard::default());
    let options = StoreOptions { permit: PERMIT, cache_bytes: 1 << 20, ..StoreOptions::default() };
    let store = Store::builder(dir.join("store"))
        .key_provider(Telling { kms: kms.clone(), entropy })
        .events(heard.clone())
        .options(options)
        .create()
        .unwrap();
    let tables = TABLES.map(|name| {
        let master = MasterKey::customer(format!("alias/{name}"));
        store.create_table(name, TableOptions::new().master_key(master)).unwrap()
    });
    say(&format!("tables {}", tables.each_ref().map(|table| table.id().to_string()).join(" ")));
    let [kept, revoked, dropped] = &tables;
    // Put away, and not taken into use again since.
    let is_away = |table: &Table| {
        let events = heard.all();
        let purged = |event: &Event| matches!(event, Event::TablePurged { table: id } if *id == table.id());
        let unwrapped = |event: &Event| matches!(event, Event::KeyUnwrapped { table: id, .. } if *id == table.id());
        let purged = events.iter().rposition(purged);
        purged.is_some() && purged > events.iter().rposition(unwrapped)
    };

    // One half of the entries lies in sorted tables, compacted once, the other in memtables.
    for (number, table) in tables.iter().enumerate() {
        use_table(&store, table, number, 0);
    }
    store.flush().unwrap();
    for (number, table) in tables.iter().enumerate() {
        use_table(&store, table, number, 0);
    }
    store.flush().unwrap();
    store.compact().unwrap();
    for (number, table) in tables.iter().enumerate() {
        use_table(&store, table, number, 1);
        read_table(table, number, 0);
    }
    // On a machine that is busy some may have been put away on the way here.
    wait_for("the use of all tables", || {
        tables.iter().enumerate().for_each(|(number, table)| read_table(table, number, 1));
        !tables.iter().any(is_away)
    });
    stand("in use");

    wait_for("the end of the permits", || tables.iter().all(is_away));
    stand("idle");

    use_table(&store, revoked, 1, 1);
    store.flush().unwrap();
    read_table(revoked, 1, 0);
    read_table(revoked, 1, 1);
    // Some of it is in the log and a memtable alone.
    use_table(&store, revoked, 1, 0);
    let snapshot = store.snapshot();
    let mut range = revoked.iter();
    range.next().unwrap().unwrap();
    let mut cursor = revoked.cursor().unwrap();
    cursor.next().unwrap().unwrap();
    kms.disable("alias/revoked").unwrap();
    wait_for("the revocation", || revoked.get(b"anything").is_err());
    wait_for("the end of the revoked table's use", || is_away(revoked));
    assert!(range.next().unwrap().is_err(), "an iterator fails at its next step");
    assert!(cursor.next().is_err(), "a cursor fails at its next step");
    assert!(snapshot.get(revoked, b"anything").is_err(), "a snapshot fails");
    drop((range, cursor, snapshot));
    stand("revoked");

    use_table(&store, dropped, 2, 1);
    store.drop_table(TABLES[2]).unwrap();
    wait_for("the shredding", || heard.all().iter().any(|event| matches!(event, Event::TableShredded { .. })));
    // Frozen memtables go when the flusher finds them.
    std::thread::sleep(Duration::from_millis(500));
    stand("dropped");

    use_table(&store, kept, 0, 1);
    store.close().unwrap();
    stand("closed");

    drop((tables, store, kms));
    stand("over");
}

// ---- the parent ----

/// What something that is searched for is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Secret {
    /// Whose: a table's id, zeros for the system key's, or "keyring".
    owner: String,
    what: String,
    /// Whether AEADs of the backend in C may keep it on C's heap, which goes into core dumps.
    stream: bool,
    data: bool,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.what, self.owner)
    }
}

/// Everything that is searched for, by its first eight bytes.
#[derive(Default)]
struct Needles {
    by_head: HashMap<u64, Vec<([u8; NEEDLE_BYTES], Secret)>>,
    heads: HashSet<u16>,
    known: HashSet<[u8; NEEDLE_BYTES]>,
}

/// Part of a secret is enough to recognise it by.
const NEEDLE_BYTES: usize = 16;

impl Needles {
    fn add(&mut self, bytes: &[u8], secret: &Secret) {
        for bytes in bytes.as_chunks::<NEEDLE_BYTES>().0 {
            if self.known.insert(*bytes) {
                let head = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                self.heads.insert(head as u16);
                self.by_head.entry(head).or_default().push((*bytes, secret.clone()));
            }
        }
    }

    /// A key, and what HMAC makes of it: the masked blocks that it hashes, and the two states that it keeps.
    fn add_key(&mut self, key: &[u8; 32], secret: &Secret) {
        self.add(key, secret);
        for mask in [0x36, 0x5c] {
            let mut block = [mask; 64];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            self.add(&block[..32], &Secret { what: format!("{} under a mask of HMAC", secret.what), ..secret.clone() });
            let mut state = [
                0x6a09_e667,
                0xbb67_ae85,
                0x3c6e_f372,
                0xa54f_f53a,
                0x510e_527f,
                0x9b05_688c,
                0x1f83_d9ab,
                0x5be0_cd19_u32,
            ];
            sha2::block_api::compress256(&mut state, &[block]);
            let bytes: Vec<u8> = state.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.add(&bytes, &Secret { what: format!("{} as a state of HMAC", secret.what), ..secret.clone() });
        }
    }

    /// Every secret in `bytes`.
    fn find(&self, bytes: &[u8], found: &mut impl FnMut(&Secret)) {
        let mut heads = vec![false; 1 << 16];
        self.heads.iter().for_each(|head| heads[usize::from(*head)] = true);
        // Most of a process's memory is zeros, which are passed over by the page.
        const PAGE_BYTES: usize = 4096;
        let zeros = [0; PAGE_BYTES + NEEDLE_BYTES];
        let pages = (0..bytes.len()).step_by(PAGE_BYTES);
        let pages = pages.map(|at| &bytes[at..bytes.len().min(at + PAGE_BYTES + NEEDLE_BYTES - 1)]);
        let pages = pages.filter(|page| *page != &zeros[..page.len()]);
        for window in pages.flat_map(|page| page.windows(NEEDLE_BYTES)) {
            if heads[usize::from(window[0]) | usize::from(window[1]) << 8] {
                let head = u64::from_le_bytes(window[..8].try_into().unwrap());
                for (needle, secret) in self.by_head.get(&head).into_iter().flatten() {
                    if needle == window {
                        found(secret);
                    }
                }
            }
        }
    }
}

/// A wrap that the child told of.
struct Wrap {
    table: String,
    generation: u32,
    draws: std::ops::Range<u64>,
    message: Vec<u8>,
}

struct Watched {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
    wraps: Vec<Wrap>,
    tables: Vec<String>,
    /// Every header of a file that was ever seen.
    headers: BTreeSet<Vec<u8>>,
}

impl Watched {
    fn start() -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "memory::child_that_is_looked_at", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Watched { child, stdin, stdout, dir, wraps: Vec::new(), tables: Vec::new(), headers: BTreeSet::new() }
    }

    /// Listen until the child stands somewhere, or has ended.
    fn listen(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.stdout.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            let Some((_, words)) = line.trim_end().split_once("child: ") else { continue };
            let words: Vec<&str> = words.split(' ').collect();
            match words[..] {
                ["wrap", table, generation, from, to, message] => self.wraps.push(Wrap {
                    table: table.to_owned(),
                    generation: generation.parse().unwrap(),
                    draws: from.parse().unwrap()..to.parse().unwrap(),
                    message: unhex(message),
                }),
                ["tables", ..] => self.tables = words[1..].iter().map(|id| (*id).to_owned()).collect(),
                ["at", ..] => return Some(words[1..].join(" ")),
                _ => panic!("{line}"),
            }
        }
    }

    /// Stop the child at `place`, look at it, and let it go on.
    fn at<T>(&mut self, place: &str, look: impl FnOnce(&Needles, &Memory) -> T) -> T {
        let stands = self.listen();
        assert_eq!(stands.as_deref(), Some(place), "the child ended");
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        let stat = format!("/proc/{}/stat", self.child.id());
        wait_for("the child's stop", || fs::read_to_string(&stat).unwrap().contains(") T "));
        self.note_headers();
        let needles = self.needles();
        let outcome = look(&needles, &Memory { pid: self.child.id() });
        kill_process(pid, Signal::CONT).unwrap();
        // It has gone if it was killed meanwhile, which the next look finds out.
        let _ = self.stdin.write_all(b"\n");
        outcome
    }

    fn note_headers(&mut self) {
        let files = files_below(&self.dir.path().join("store"));
        self.headers.extend(files.values().filter(|bytes| bytes.len() > 160).map(|bytes| bytes[..160].to_vec()));
    }

    /// Everything that the child must forget some time: all that follows from what it said and what lies in its files.
    fn needles(&self) -> Needles {
        let mut needles = Needles::default();
        let secret = |owner: &str, what: &str| Secret {
            owner: owner.to_owned(),
            what: what.to_owned(),
            stream: false,
            data: false,
        };
        let mut unlock = [0; 32];
        unlock_key(&mut unlock);
        needles.add_key(&unlock, &secret("keyring", "the key that opens it"));

        let draws = self.wraps.iter().map(|wrap| wrap.draws.end).max().unwrap_or(0);
        let drawn = |n| {
            let mut bytes = [0; 32];
            draw(n, &mut bytes);
            bytes
        };
        let mut masters = BTreeSet::new();
        let mut data_keys = Vec::new();
        for wrap in &self.wraps {
            // The one draw that stands in the message is its salt, with the check of the master key behind it.
            let salt_at = |n| wrap.message.windows(32).position(|window| window == drawn(n));
            let (salt, at) = wrap.draws.clone().find_map(|n| Some((n, salt_at(n)?))).unwrap();
            let check = &wrap.message[at + 32..at + 64];
            let key = wrap.draws.clone().find(|n| *n != salt).unwrap();
            data_keys.push((wrap, drawn(key)));
            for n in 0..draws {
                let (extracted, expander) = Hkdf::<Sha256>::extract(Some(&drawn(salt)), &drawn(n));
                let mut expected = [0; 32];
                expander.expand_multi_info(&[b"strongroom chck", &1_u32.to_le_bytes()], &mut expected).unwrap();
                // The label is sixteen bytes long like all others.
                let mut padded = [0; 32];
                expander.expand_multi_info(&[b"strongroom chck ", &1_u32.to_le_bytes()], &mut padded).unwrap();
                if expected == *check || padded == *check {
                    masters.insert(n);
                    needles.add_key(&extracted.into(), &secret("keyring", "what was extracted of a master key"));
                }
            }
        }
        assert_eq!(masters.len(), 1 + TABLES.len(), "the owned master key, and one per table");
        for n in masters {
            needles.add_key(&drawn(n), &secret("keyring", &format!("master key (draw {n})")));
        }

        for (wrap, key) in &data_keys {
            needles.add_key(key, &secret(&wrap.table, "the table key"));
            for header in &self.headers {
                let (suite, kind, number, salt) = (header[13], header[12], &header[32..40], &header[72..104]);
                let (extracted, expander) = Hkdf::<Sha256>::extract(Some(salt), key);
                let file = format!("of file {} kind {kind}", u64::from_le_bytes(number.try_into().unwrap()));
                needles.add_key(&extracted.into(), &secret(&wrap.table, &format!("what was extracted {file}")));
                for (label, stream) in [(b"strongroom file ", false), (b"strongroom strm ", true)] {
                    let mut info = label.to_vec();
                    info.extend(1_u32.to_le_bytes());
                    info.push(suite);
                    info.extend(&header[40..56]);
                    info.extend(unhex(&wrap.table));
                    info.extend(wrap.generation.to_le_bytes());
                    info.push(kind);
                    info.extend(number);
                    let mut derived = [0; 32];
                    expander.expand(&info, &mut derived).unwrap();
                    let what = if stream { format!("the stream key {file}") } else { format!("the file key {file}") };
                    needles.add_key(&derived, &Secret { stream, ..secret(&wrap.table, &what) });
                }
            }
        }

        for (number, id) in self.tables.iter().enumerate() {
            for i in 0..ENTRIES {
                let (key, value) = entry(number, i);
                let data = |what| Secret { data: true, ..secret(id, &format!("{what} of entry {i}")) };
                needles.add(&key[4..], &data("the key"));
                let random = value.len() / 2;
                needles.add(&value[..16], &data("the beginning of the value"));
                needles.add(&value[random / 2..][..random / 2], &data("the middle of the value"));
                needles.add(&value[random - 16..random], &data("the end of the value's first half"));
            }
        }
        needles
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A child that stands still would do so for ever if the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Memory {
    pid: u32,
}

/// One mapping.
struct Mapping {
    name: String,
    start: u64,
    end: u64,
    /// The two-letter names of what the kernel knows about it.
    flags: String,
}

/// Where a secret was found.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "shown when something is found")]
struct Place {
    mapping: String,
    dumped: bool,
    locked: bool,
}

impl Memory {
    fn mappings(&self) -> Vec<Mapping> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid)).unwrap();
        let mut mappings: Vec<Mapping> = Vec::new();
        let mut writable = false;
        for line in smaps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some((start, end)) = words[0].split_once('-') {
                let number = |text| u64::from_str_radix(text, 16).unwrap();
                writable = words[1].starts_with("rw");
                if writable {
                    let name = words.get(5).copied().unwrap_or("anonymous").to_owned();
                    mappings.push(Mapping { name, start: number(start), end: number(end), flags: String::new() });
                }
            } else if let (Some(flags), true, Some(last)) =
                (line.strip_prefix("VmFlags:"), writable, mappings.last_mut())
            {
                last.flags = flags.to_owned();
            }
        }
        mappings
    }

    /// Where each secret is.
    fn search(&self, needles: &Needles) -> BTreeMap<Secret, Vec<Place>> {
        let mut found: BTreeMap<Secret, Vec<Place>> = BTreeMap::new();
        let mut memory = fs::File::open(format!("/proc/{}/mem", self.pid)).unwrap();
        for mapping in self.mappings() {
            let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
            let read = memory.seek(SeekFrom::Start(mapping.start)).and_then(|_| memory.read_exact(&mut bytes));
            if read.is_err() {
                assert!(mapping.name.starts_with("[v"), "{} can be read", mapping.name);
                continue;
            }
            let has = |flag| mapping.flags.split_whitespace().any(|word| word == flag);
            needles.find(&bytes, &mut |secret| {
                found.entry(secret.clone()).or_default().push(Place {
                    mapping: mapping.name.clone(),
                    dumped: !has("dd"),
                    locked: has("lo"),
                });
            });
        }
        found
    }

    /// That nothing is found of those whose secrets have to be gone by now.
    fn assert_gone(&self, needles: &Needles, place: &str, gone: impl Fn(&Secret) -> bool) {
        let found: Vec<_> = self.search(needles).into_iter().filter(|(secret, _)| gone(secret)).collect();
        let shown = found.iter().map(|(secret, places)| format!("{secret:?}: {} times, {:?}", places.len(), places[0]));
        let shown: Vec<String> = shown.take(20).collect();
        assert!(found.is_empty(), "{place}, {} secrets are still there:\n{}", found.len(), shown.join("\n"));
    }
}

#[test]
fn process_forgets_keys_and_values_with_the_right_to_them() {
    // Otherwise whoever reads the process's memory, its swap or its core dump gets what was revoked, dropped or closed long ago.
    let mut watched = Watched::start();
    watched.at("in use", |needles, memory| {
        let found = memory.search(needles);
        // The search finds what is there: each table's key, and every entry in some memtable or cache.
        let there = |what: &str| found.keys().filter(|secret| secret.what.starts_with(what)).count();
        assert_eq!(there("the table key as") + there("the table key under"), 0, "{found:?}");
        assert!(there("the table key") == 1 + TABLES.len(), "{found:?}");
        assert!(there("master key") == 1 + TABLES.len(), "{found:?}");
        assert!(there("the stream key") > TABLES.len() && there("the file key") > 0, "{found:?}");
        assert!(there("the key of") > ENTRIES as usize && there("the beginning") > ENTRIES as usize, "{found:?}");
        check_placed(&found, memory);
    });
    let ids = watched.tables.clone();
    let is_table = |secret: &Secret| ids.contains(&secret.owner);
    watched.at("idle", |needles, memory| memory.assert_gone(needles, "after the permits' end", is_table));
    let of = |id: &str| {
        let id = id.to_owned();
        move |secret: &Secret| secret.owner == id
    };
    watched.at("revoked", |needles, memory| memory.assert_gone(needles, "after the revocation", of(&ids[1])));
    watched.at("dropped", |needles, memory| memory.assert_gone(needles, "after the drop", of(&ids[2])));
    watched.at("closed", |needles, memory| {
        memory.assert_gone(needles, "after the close", |secret| secret.owner != "keyring");
    });
    watched.at("over", |needles, memory| memory.assert_gone(needles, "at the end", |_| true));
    assert!(watched.listen().is_none());
    assert!(watched.child.wait().unwrap().success());
}

/// That keys lie where no core dump takes them along, and locked if the machine lets us.
fn check_placed(found: &BTreeMap<Secret, Vec<Place>>, memory: &Memory) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", memory.pid)).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    let limit = limit.split_whitespace().nth(3).unwrap();
    let may_lock = limit == "unlimited" || limit.parse::<u64>().unwrap() >= 1 << 20;
    for (secret, places) in found.iter().filter(|(secret, _)| !secret.data) {
        if secret.stream && cfg!(feature = "aws-lc-rs") {
            continue;
        }
        assert!(places.iter().all(|place| !place.dumped), "{secret:?} would be dumped: {places:?}");
        assert!(!may_lock || places.iter().all(|place| place.locked), "{secret:?} may be swapped: {places:?}");
    }
}

#[test]
fn core_file_holds_no_key_of_what_is_in_use() {
    // Otherwise a crash report that is sent around would open every table of the store, and its backups.
    let mut watched = Watched::start();
    let pid = Pid::from_child(&watched.child);
    let dir = watched.dir.path().to_owned();
    let no_limit = Rlimit { current: None, maximum: None };
    let may_dump = prlimit(Some(pid), Resource::Core, no_limit).is_ok();
    let mut cores = 0;
    watched.at("in use", |needles, memory| {
        // A debugger's core first: CI machines often hand the kernel's to a program of theirs.
        let written = Command::new("gcore").arg("-o").arg(dir.join("debugger")).arg(memory.pid.to_string()).output();
        match written {
            Ok(output) if output.status.success() => {
                check_core(&dir.join(format!("debugger.{}", memory.pid)), needles);
                cores += 1;
            }
            _ => println!("there is no gcore here, or it may not look at processes"),
        }
        kill_process(pid, Signal::ABORT).unwrap();
    });
    assert!(watched.listen().is_none());
    let _ = watched.child.wait().unwrap();
    let kernels = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let core = kernels.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("core"));
    match core.filter(|_| may_dump) {
        Some(core) => {
            check_core(&core, &watched.needles());
            cores += 1;
        }
        None => println!("the kernel does not write core files to where a process works"),
    }
    println!("{cores} core files were searched");
}

/// That a core file shows what the process worked with, and none of its keys.
fn check_core(path: &Path, needles: &Needles) {
    let mut found: BTreeMap<Secret, usize> = BTreeMap::new();
    needles.find(&fs::read(path).unwrap(), &mut |secret| *found.entry(secret.clone()).or_default() += 1);
    assert!(found.keys().filter(|secret| secret.data).count() > ENTRIES as usize, "the core file shows memory");
    // The one thing that cannot be placed: what aws-lc keeps ready for log segments lies on the heap of C.
    found.retain(|secret, _| !(secret.data || secret.stream && cfg!(feature = "aws-lc-rs")));
    assert!(found.is_empty(), "{}: {found:?}", path.display());
}
