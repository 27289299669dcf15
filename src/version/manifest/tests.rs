//! What a manifest says after its file was cut, torn or damaged.

use std::path::PathBuf;

use super::*;
use crate::crypto::Secret;
use crate::error::ErrorKind;
use crate::format::keyfile::MasterKind;
use crate::format::manifest::{KeyPin, TableRecord};
use crate::io::Vfs;
use crate::io::fault::{FaultVfs, Operation, Rule};
use crate::io::mem::MemVfs;
use crate::io::sim::Simulation;
use crate::options::Compression;
use crate::types::{Generation, Slot, StoreId};
use crate::version::state::StoreMeta;

const STORE: StoreId = StoreId::from_bytes([9; 16]);

struct World {
    disk: Arc<MemVfs>,
    dir: Arc<Directory>,
    system: SystemKeys,
    manifest: Manifest,
}

impl World {
    fn new() -> World {
        let world = Simulation::new(3);
        let disk = world.vfs.clone();
        disk.create_dir(&PathBuf::from("/store")).unwrap();
        let dir = Arc::new(Directory::new(disk.clone(), PathBuf::from("/store")));
        dir.ensure_dir("manifest").unwrap();
        let secret = Secret::fill_with(|key| key.fill(1));
        let system = SystemKeys::new(KeySet::one(TableKey::new(secret, STORE, TableId::SYSTEM, Generation(1))));
        let pin = KeyPin {
            version: 1,
            tag: [1; 16],
            generations: vec![(Generation(1), *system.sealing().unwrap().commitment())],
        };
        let suite = Suite::Aes256Gcm;
        let meta = StoreMeta { store: STORE, lineage: [4; 16], created_ms: 5, real_entropy: false, suite };
        let (entropy, state) = (world.entropy.clone(), State::new(meta, pin));
        let manifest = Manifest::create(dir.clone(), entropy, system.clone(), suite, FileNumber(1), state).unwrap();
        World { disk, dir, system, manifest }
    }

    fn add_table(&self, slot: u32) {
        let key = KeyPin {
            version: 1,
            tag: [2; 16],
            generations: vec![(Generation(1), *self.system.sealing().unwrap().commitment())],
        };
        let record = TableRecord {
            slot: Slot(slot),
            id: TableId::from_bytes([slot as u8; 16]),
            name: format!("table {slot}").into(),
            created_ms: 1,
            suite: Suite::Aes256Gcm,
            compression: Compression::Lz4,
            block_bytes: 4096,
            filter_bits_per_key: 10,
            filter_seed: 7,
            master: MasterKind::Owned,
            key,
            dropping: false,
        };
        self.manifest.append(vec![Edit::CreateTable(Box::new(record))]).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path(&FileName::Manifest(self.manifest.number()).path())
    }

    fn len(&self) -> usize {
        self.disk.read(self.path()).unwrap().len()
    }

    fn flip(&self, path: &PathBuf, offset: usize) {
        let byte = self.disk.read(path).unwrap()[offset];
        self.disk.overwrite(path, offset as u64, &[byte ^ 1]).unwrap();
    }

    fn read(&self) -> Result<Found> {
        read(&self.dir, &self.system.all().unwrap())
    }

    fn tables(&self) -> usize {
        self.read().unwrap().state.tables.len()
    }
}

#[test]
fn what_was_appended_is_read_back() {
    let world = World::new();
    world.add_table(1);
    world.add_table(2);
    let found = world.read().unwrap();
    assert_eq!((found.state.tables.len(), found.state.epoch), (2, world.manifest.epoch()));
    assert_eq!((found.closed, found.discarded_bytes), (false, 0));
}

#[test]
fn a_torn_group_is_discarded_and_a_damaged_one_is_an_error() {
    // The mark behind a group is all that tells the two apart.
    let world = World::new();
    world.add_table(1);
    let before = world.len();
    world.add_table(2);
    let whole = world.disk.read(world.path()).unwrap();
    let mut outcomes = (0, 0);
    for len in before..whole.len() {
        world.disk.plant(world.path(), &whole[..len]).unwrap();
        let tables = world.tables();
        assert!(tables == 1 || tables == 2);
        if tables == 1 { outcomes.0 += 1 } else { outcomes.1 += 1 }
    }
    assert!(outcomes.0 > 0 && outcomes.1 > 0, "both a torn group and a torn mark were seen");
    world.disk.plant(world.path(), &whole).unwrap();
    // With its mark there, every byte of a group counts; a damaged mark loses nothing and is discarded.
    let mark_bytes = whole.len()
        - (before..whole.len())
            .find(|&len| {
                world.disk.plant(world.path(), &whole[..len]).unwrap();
                world.tables() == 2
            })
            .unwrap();
    world.disk.plant(world.path(), &whole).unwrap();
    for offset in 0..whole.len() {
        world.flip(&world.path(), offset);
        match world.read() {
            Err(_) => {}
            Ok(found) => {
                assert!(offset >= whole.len() - mark_bytes, "byte {offset}");
                assert!(found.state.tables.len() == 2 && found.discarded_bytes > 0);
            }
        }
        world.flip(&world.path(), offset);
    }
}

#[test]
fn a_hole_hides_nothing_however_long_it_is() {
    // What is read at a time is bounded: what attests the group that is missing must be found all the same, or the group is lost in silence.
    let world = World::new();
    world.add_table(1);
    let before = world.len();
    world.add_table(2);
    let whole = world.disk.read(world.path()).unwrap();
    for hole_bytes in [1, 1 << 20, (2 << 20) - 10, (2 << 20) + 10, 5 << 20] {
        let zeros = vec![0; hole_bytes];
        world.disk.plant(world.path(), &[&whole[..before], &zeros[..], &whole[before..]].concat()).unwrap();
        assert_eq!(world.read().err().map(|error| error.kind()), Some(ErrorKind::BitRot), "{hole_bytes} bytes");
        world.disk.plant(world.path(), &[&whole[..], &zeros[..]].concat()).unwrap();
        let found = world.read().unwrap();
        assert_eq!((found.state.tables.len(), found.discarded_bytes), (2, hole_bytes as u64));
    }
}

#[test]
fn after_a_clean_close_every_byte_counts() {
    let world = World::new();
    world.add_table(1);
    world
        .manifest
        .append(vec![Edit::AddSegment { number: FileNumber(7), salt: crate::crypto::Salt::from_bytes([3; 32]) }])
        .unwrap();
    let end = SegmentEnd { end_bytes: 160, tag: [0; 16] };
    world.manifest.close(FileNumber(7), end, Seq::ZERO).unwrap();
    assert!(world.read().unwrap().closed);
    let whole = world.disk.read(world.path()).unwrap();
    for len in 0..whole.len() {
        world.disk.plant(world.path(), &whole[..len]).unwrap();
        assert!(world.read().is_err(), "cut to {len} bytes");
        world.disk.plant(world.path(), &whole).unwrap();
    }
    for offset in 0..whole.len() {
        world.flip(&world.path(), offset);
        assert!(world.read().is_err(), "byte {offset}");
        world.flip(&world.path(), offset);
    }
    let mut longer = whole.clone();
    longer.push(0);
    world.disk.plant(world.path(), &longer).unwrap();
    assert_eq!(world.read().err().map(|error| error.kind()), Some(ErrorKind::BitRot));
}

#[test]
fn a_new_file_says_the_same_and_the_old_one_goes() {
    let world = World::new();
    (1..=3).for_each(|slot| world.add_table(slot));
    let old = world.path();
    world.manifest.rewrite(FileNumber(8)).unwrap();
    world.add_table(4);
    let found = world.read().unwrap();
    assert_eq!((found.number, found.state.tables.len()), (FileNumber(8), 4));
    assert!(world.disk.read(old).is_err());
    // An older manifest that is put back under the present name is not the one that CURRENT names.
    world.manifest.retire_file(FileNumber(9));
    world.add_table(5);
    assert_eq!((world.manifest.number(), world.tables()), (FileNumber(9), 5));
}

#[test]
fn nothing_is_appended_behind_a_failed_write() {
    // A group behind the gap would attest the gap as durable, and the store would never open again.
    let mut world = World::new();
    let faulty = FaultVfs::new(world.disk.clone());
    let dir = Arc::new(Directory::new(Arc::new(faulty.clone()), PathBuf::from("/store")));
    let state = world.read().unwrap().state;
    let entropy = Simulation::new(4).entropy;
    let suite = Suite::Aes256Gcm;
    world.manifest = Manifest::create(dir, entropy, world.system.clone(), suite, FileNumber(2), state).unwrap();
    world.add_table(1);
    for operation in [Operation::Write, Operation::Sync] {
        faulty.inject(Rule::on(operation).path(|path| path.extension().is_some_and(|end| end == "manifest")));
        let counters =
            || Edit::Counters { next_file: FileNumber(9), next_slot: Slot(9), last_seq: crate::types::Seq::ZERO };
        assert!(world.manifest.append(vec![counters()]).is_err());
        assert!(world.manifest.append(vec![counters()]).is_err(), "the second caller hears of it as well");
        assert!(world.manifest.rewrite(FileNumber(3)).is_err());
        assert_eq!(world.tables(), 1, "what came before is there");
    }
}

#[test]
fn a_picture_that_cannot_be_written_costs_nothing_but_itself() {
    // A full disk would otherwise make a store read-only that has room for everything but a second picture.
    let mut world = World::new();
    let faulty = FaultVfs::new(world.disk.clone());
    let dir = Arc::new(Directory::new(Arc::new(faulty.clone()), PathBuf::from("/store")));
    let state = world.read().unwrap().state;
    let entropy = Simulation::new(5).entropy;
    let suite = Suite::Aes256Gcm;
    world.manifest = Manifest::create(dir, entropy, world.system.clone(), suite, FileNumber(2), state).unwrap();
    world.add_table(1);
    for (number, operation) in [Operation::Create, Operation::Write, Operation::Sync].into_iter().enumerate() {
        let next = FileNumber(3 + number as u64);
        let name = FileName::Manifest(next).path();
        faulty.inject(Rule::on(operation).path(move |path| path.ends_with(&name)));
        assert!(world.manifest.rewrite(next).is_err());
        assert!(!world.manifest.has_ended());
        world.add_table(2 + number as u32);
        assert_eq!((world.manifest.number(), world.tables()), (FileNumber(2), 2 + number));
    }
    faulty.inject(Rule::on(Operation::Write).path(|path| path.ends_with("CURRENT.tmp")));
    assert!(world.manifest.rewrite(FileNumber(6)).is_err());
    world.manifest.rewrite(FileNumber(7)).unwrap();
    world.add_table(9);
    assert_eq!((world.manifest.number(), world.tables()), (FileNumber(7), 5));
}

#[test]
fn nothing_is_appended_behind_a_clean_close() {
    // CURRENT says where the file ends: one group more, and the store would be called damaged.
    let world = World::new();
    let end = SegmentEnd { end_bytes: 0, tag: [0; 16] };
    world
        .manifest
        .append(vec![Edit::AddSegment { number: FileNumber(5), salt: crate::crypto::Salt::from_bytes([1; 32]) }])
        .unwrap();
    world.manifest.close(FileNumber(5), end, Seq::ZERO).unwrap();
    assert_eq!(world.manifest.append(Vec::new()).unwrap_err().kind(), ErrorKind::Closed);
    assert!(world.read().unwrap().closed);
}
