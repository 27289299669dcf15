//! Parked files as an attacker or a failing disk may leave them, and what they are refused with.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::crypto::{Secret, Tag};
use crate::error::ErrorKind;
use crate::format::log::LogPoint;
use crate::io::Vfs;
use crate::io::mem::MemVfs;
use crate::io::sim::Simulation;
use crate::keys::{KeySet, SystemKeys};
use crate::types::{Epoch, Kind, StoreId};
use crate::wal::replay::{KnownSegment, sections_of};
use crate::wal::{Log, Op, SectionInput};

const STORE: StoreId = StoreId::from_bytes([9; 16]);
const TABLES: [TableId; 2] = [TableId::from_bytes([2; 16]), TableId::from_bytes([3; 16])];

/// Two tables that wrote to one segment by turns, and both parked.
struct World {
    disk: Arc<MemVfs>,
    dir: Arc<Directory>,
    system: SystemKeys,
    keys: Vec<TableKey>,
    parked: Vec<ParkedRecord>,
}

impl World {
    fn new() -> World {
        let sim = Simulation::new(1);
        let (disk, root) = (sim.vfs.clone(), PathBuf::from("/store"));
        disk.create_dir(&root).unwrap();
        let dir = Arc::new(Directory::new(disk.clone(), root));
        ["wal", "parked"].into_iter().for_each(|name| dir.ensure_dir(name).unwrap());
        let key = |table, fill: u8| TableKey::new(Secret::fill_with(|key| key.fill(fill)), STORE, table, Generation(1));
        let system = SystemKeys::new(KeySet::one(key(TableId::SYSTEM, 1)));
        let keys = vec![key(TABLES[0], 2), key(TABLES[1], 3)];
        let suite = Suite::Aes256Gcm;
        let (log, mut writer) =
            Log::new(dir.clone(), sim.entropy.clone(), system.clone(), suite, BTreeMap::new(), Tag::default());
        let segment = log.create_segment(FileNumber(1)).unwrap();
        let origin = Origin { segment: FileNumber(1), salt: segment.salt() };
        log.offer_spare(segment);
        assert!(log.take_spare(&mut writer));
        for round in 0..6u64 {
            let value = vec![round as u8; 20];
            let ops = [Op { kind: Kind::Put, key: &round.to_be_bytes(), value: &value }];
            let first_seq = Seq::new(1 + 2 * round).unwrap();
            let input = |table: usize| SectionInput {
                slot: Slot(1 + table as u32),
                suite: Suite::ChaCha20Poly1305,
                key: &keys[table],
                ops: &ops,
            };
            log.append(&mut writer, Epoch(1), first_seq, &[input(0), input(1)]).unwrap();
        }
        let LogPoint { end_bytes, .. } = log.end();
        let known = KnownSegment { number: origin.segment, salt: origin.salt, end_bytes };
        let slots = [Slot(1), Slot(2)].into();
        let found = sections_of(&dir, &system.all().unwrap(), &[known], &slots).unwrap();
        let carrier = Carrier { dir: &dir, entropy: &*sim.entropy, system: &system.sealing().unwrap(), suite };
        let parked = (0..2).map(|table| {
            let (number, slot) = (FileNumber(10 + table), Slot(1 + table as u32));
            carrier.carry(number, (slot, TABLES[table as usize]), origin, &found[&slot]).unwrap()
        });
        let parked = parked.collect();
        World { disk, dir, system, keys, parked }
    }

    fn path(&self, table: usize) -> PathBuf {
        self.dir.path(&self.parked[table].name().path())
    }

    fn bytes(&self, table: usize) -> Vec<u8> {
        self.disk.read(self.path(table)).unwrap()
    }

    /// The sequence numbers that a table's file gives with the table's key, if it is this.
    fn read(&self, bytes: &[u8]) -> Result<Vec<u64>> {
        let _ = self.disk.delete(self.path(0));
        self.disk.plant(self.path(0), bytes).unwrap();
        let mut file = ParkedFile::open(&self.dir, &self.system.all().unwrap(), TABLES[0], &self.parked[0])?;
        let mut seqs = Vec::new();
        let key_of = |_| Ok(&self.keys[0]);
        file.entries(&key_of, Seq::ZERO, &mut |seq, _, _, _| {
            seqs.push(seq.get());
            Ok(())
        })?;
        // Whoever has no key of the table must come to the same conclusion.
        file.check()?;
        Ok(seqs)
    }

    /// Where each frame of the first table's file begins, and where the last one ends.
    fn frames(&self) -> Vec<usize> {
        let bytes = self.bytes(0);
        let mut offsets = vec![HEADER_BYTES];
        while let Some(&offset) = offsets.last().filter(|offset| **offset < bytes.len()) {
            let place = crate::format::Where::new("file", 0);
            let head = crate::format::frame::JournalHead::decode(&bytes[offset..], &place).unwrap();
            offsets.push(offset + head.frame_bytes() as usize);
        }
        offsets
    }
}

#[track_caller]
fn refused(outcome: Result<Vec<u64>>) -> ErrorKind {
    outcome.unwrap_err().kind()
}

#[test]
fn what_was_carried_out_of_a_segment_opens_without_it() {
    // A failure means that whoever disables a key for a while loses what was written before.
    let world = World::new();
    world.dir.remove(&FileName::Log(FileNumber(1)).path()).unwrap();
    assert_eq!(world.read(&world.bytes(0)).unwrap(), [1, 3, 5, 7, 9, 11]);
    let record = &world.parked[0];
    assert_eq!((record.last_seq.get(), record.len_bytes), (11, world.bytes(0).len() as u64));
    let sections: u64 = record.generations.iter().map(|(_, bytes)| bytes).sum();
    assert!(sections > 0 && sections < record.len_bytes);
}

#[test]
fn any_other_byte_is_refused_as_rot() {
    let world = World::new();
    let whole = world.bytes(0);
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 1;
        assert_eq!(refused(world.read(&damaged)), ErrorKind::BitRot, "byte {place}");
    }
}

#[test]
fn a_truncated_or_longer_file_is_refused() {
    let world = World::new();
    let whole = world.bytes(0);
    for len in 0..whole.len() {
        assert_eq!(refused(world.read(&whole[..len])), ErrorKind::BitRot, "{len} bytes");
    }
    // Whole frames are missing at the end: nothing is torn.
    for end in world.frames() {
        assert!(end == whole.len() || world.read(&whole[..end]).is_err());
    }
    assert_eq!(refused(world.read(&[&whole[..], &whole[whole.len() - 60..]].concat())), ErrorKind::Tampering);
}

#[test]
fn frames_moved_swapped_repeated_or_dropped_are_refused() {
    // Each leaves every checksum right; what is wrong is where things are.
    let world = World::new();
    let (whole, at) = (world.bytes(0), world.frames());
    let frame = |number: usize| &whole[at[number]..at[number + 1]];
    let last = at.len() - 2;
    let rebuilt = |order: &[usize]| {
        let frames: Vec<u8> = order.iter().flat_map(|number| frame(*number).to_vec()).collect();
        [&whole[..HEADER_BYTES], &frames[..]].concat()
    };
    let order: Vec<usize> = (0..=last).collect();
    assert!(world.read(&rebuilt(&order)).is_ok());
    for (one, other) in [(1, 2), (2, 5), (0, 1), (1, last), (0, last)] {
        let mut swapped = order.clone();
        swapped.swap(one, other);
        assert!(matches!(refused(world.read(&rebuilt(&swapped))), ErrorKind::Tampering | ErrorKind::BitRot));
    }
    for repeated in 1..last {
        // In the place of its neighbour, which has the same length.
        let mut order = order.clone();
        order[if repeated == 1 { 2 } else { repeated - 1 }] = repeated;
        assert_eq!(refused(world.read(&rebuilt(&order))), ErrorKind::Tampering);
    }
    for dropped in 0..=last {
        let mut order = order.clone();
        order.remove(dropped);
        assert!(world.read(&rebuilt(&order)).is_err());
    }
}

#[test]
fn another_tables_file_and_parts_of_it_are_refused() {
    // Tenants that could put their data into each other's tables would read it there.
    let world = World::new();
    let (own, other) = (world.bytes(0), world.bytes(1));
    assert_eq!(own.len(), other.len());
    assert_eq!(refused(world.read(&other)), ErrorKind::Tampering);
    let at = world.frames();
    for range in [0..at[0], at[0]..at[1], at[1]..at[2], at[2]..at[6], at[at.len() - 2]..own.len()] {
        let mut mixed = own.clone();
        mixed[range.clone()].copy_from_slice(&other[range.clone()]);
        assert_eq!(refused(world.read(&mixed)), ErrorKind::Tampering, "{range:?}");
    }
}

#[test]
fn sections_do_not_open_under_another_key() {
    let world = World::new();
    let mut file = ParkedFile::open(&world.dir, &world.system.all().unwrap(), TABLES[0], &world.parked[0]).unwrap();
    let key_of = |_| Ok(&world.keys[1]);
    let read = file.entries(&key_of, Seq::ZERO, &mut |_, _, _, _| Ok(()));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Tampering);
}
