//! Claims about what an old key is good for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::TableKey;
use crate::db::Store;
use crate::format::Where;
use crate::format::frame::{
    FRAME_HEAD_BYTES, FileHeader, FileOpener, FrameHead, FrameKind, HEADER_BYTES, JOURNAL_HEAD_BYTES, JournalHead,
    open_journal_frame,
};
use crate::io::sim::Simulation;
use crate::keys::LocalKms;
use crate::options::{StoreOptions, TableOptions};
use crate::types::{FileKind, Generation};

/// Frames that `key` opens, by the kind of the file that they are in. Every frame of every file is tried, as every kind of frame, with the keys that
/// follow from `key` for a file and for a part of the log.
fn opened(files: &BTreeMap<PathBuf, Vec<u8>>, key: &TableKey) -> BTreeMap<u8, u64> {
    let mut opened = BTreeMap::new();
    for bytes in files.values() {
        // The lock file and the system key's file have no header of this kind, and hold nothing of tables.
        let Ok(header) = FileHeader::decode(bytes, &Where::new("file", 0)) else { continue };
        let count = match header.kind {
            FileKind::Log | FileKind::Manifest | FileKind::Parked => opened_of_journal(bytes, &header, key),
            _ => opened_of_file(bytes, &header, key),
        };
        *opened.entry(header.kind as u8).or_default() += count;
    }
    opened
}

fn kinds() -> impl Iterator<Item = FrameKind> {
    (0..=u8::MAX).filter_map(FrameKind::from_u8)
}

fn opened_of_file(bytes: &[u8], header: &FileHeader, key: &TableKey) -> u64 {
    let opener = FileOpener::from_pinned(key, header.suite, header.kind, header.number, &header.salt);
    let place = Where::new("file", 0);
    let (mut offset, mut ordinal, mut opened) = (HEADER_BYTES, 0, 0);
    while let Some(head) = bytes.get(offset..).and_then(|rest| rest.first_chunk::<FRAME_HEAD_BYTES>()) {
        let Ok(head) = FrameHead::decode(head, FrameKind::Data.frame_bytes_max(), &place) else { break };
        let Some(frame) = bytes.get(offset..offset + head.frame_bytes() as usize) else { break };
        let is_open = |(kind, last)| opener.open_frame(kind, last, ordinal, frame.to_vec(), &place).is_ok();
        opened += u64::from(kinds().flat_map(|kind| [(kind, false), (kind, true)]).any(is_open));
        offset += frame.len();
        ordinal += 1;
    }
    opened
}

fn opened_of_journal(bytes: &[u8], header: &FileHeader, key: &TableKey) -> u64 {
    let stream = key.stream_key(header.suite, FileKind::Log, header.number, &header.salt);
    let opener = FileOpener::from_pinned(key, header.suite, header.kind, header.number, &header.salt);
    let place = Where::new("file", 0);
    let (mut offset, mut opened) = (HEADER_BYTES, 0);
    while let Some(rest) = bytes.get(offset..).filter(|rest| rest.len() >= JOURNAL_HEAD_BYTES) {
        let Ok(head) = JournalHead::decode(rest, &place) else { break };
        let Some(frame) = rest.get(..head.frame_bytes() as usize) else { break };
        let section = |last| open_journal_frame(&stream, head.kind, last, head.ordinal, frame.to_vec(), &place).is_ok();
        let of_file = || opener.open_journal(head.kind, head.ordinal, frame.to_vec(), &place).is_ok();
        opened += u64::from(section(false) || section(true) || of_file());
        offset += frame.len();
    }
    opened
}

#[test]
fn an_old_key_opens_nothing_of_the_store_once_its_rotation_is_over() {
    // A failure means that who had copied a key before it was rotated goes on reading the table.
    let world = Simulation::new(0x01d);
    let kms = LocalKms::in_memory(Simulation::new(0x01e).environment()).unwrap();
    let options = StoreOptions { memtable_bytes: 4 << 10, log_segment_bytes: 8 << 10, ..StoreOptions::default() };
    let store = Store::builder("/store").key_provider(kms).options(options).environment(world.environment());
    let store = store.create().unwrap();
    let table = store.create_table("t", TableOptions::new().block_bytes(256)).unwrap();
    let fill = |round: u32| {
        for number in 0..150 {
            table.put(format!("key {number:03}"), format!("value {number} of round {round}")).unwrap();
        }
        table.put("large", vec![round as u8; 200_000]).unwrap();
    };
    fill(0);
    store.compact().unwrap();
    fill(1);
    let state = store.handle.engine().catalog.named("t").unwrap();
    let captured: Arc<TableKey> = state.view.load_owned().unwrap().keys.current().clone();
    assert_eq!(captured.generation(), Generation(1));
    let before = opened(&world.vfs.snapshot(), &captured);
    // Otherwise the test would show nothing.
    assert!(before[&(FileKind::Table as u8)] > 20, "{before:?}");
    assert!(before[&(FileKind::Log as u8)] > 20, "{before:?}");

    let rotation = store.rotate_table_key("t").unwrap();
    fill(2);
    rotation.wait().unwrap();
    fill(3);
    store.flush().unwrap();
    fill(4);

    let files = world.vfs.snapshot();
    let current = state.view.load_owned().unwrap().keys.current().clone();
    assert_eq!(current.generation(), Generation(2));
    let with_new = opened(&files, &current);
    assert!(with_new[&(FileKind::Table as u8)] > 20 && with_new[&(FileKind::Log as u8)] > 20, "{with_new:?}");
    for key in [&*captured, &captured.as_if_of(Generation(2)), &captured.as_if_of(Generation(3))] {
        let with_old = opened(&files, key);
        assert!(with_old.values().all(|count| *count == 0), "as generation {}: {with_old:?}", key.generation());
    }
    store.close().unwrap();
    let with_old = opened(&world.vfs.snapshot(), &captured);
    assert!(with_old.values().all(|count| *count == 0), "{with_old:?}");
}
