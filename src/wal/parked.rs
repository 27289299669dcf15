//! Files of parked sections: written when a segment of the log must go, read when the table's key is back.
//!
//! ```text
//! wal/12.wal     envelope | section of a | section of b | envelope | section of b | ...
//!                                 │              └───────────┬────────────┘
//!                       a is flushed: not needed             │ byte for byte
//! parked/34-2.log                      header | index | section | section | end
//! ```
//! Nothing is opened on the way but envelopes: the bytes of a section are compared with their checksums and with what the
//! envelope says, and copied. The file is durable, and its name too, before the manifest names it and drops the segment in one append.
//! So a crash leaves the sections in the log, or in the file, or in both while the manifest names the log alone: then the file is an orphan.

use std::collections::BTreeMap;

use super::replay::{SectionRef, VisitEntry, section_entries};
use super::window::Window;
use crate::crypto::{Suite, TableKey};
use crate::error::{Error, Result};
use crate::format::FileName;
use crate::format::frame::{Expected, HEADER_BYTES};
use crate::format::log::Section;
use crate::format::manifest::ParkedRecord;
use crate::format::parked::{Origin, ParkedOpener, ParkedSealer, check_len, last_seq};
use crate::io::directory::{Directory, refused};
use crate::io::{Entropy, File};
use crate::keys::KeySet;
use crate::types::{FileKind, FileNumber, Generation, Seq, Slot, TableId};

/// Bytes that are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// What a new file of parked sections is made with.
pub(crate) struct Carrier<'a> {
    pub dir: &'a Directory,
    pub entropy: &'a dyn Entropy,
    pub system: &'a TableKey,
    pub suite: Suite,
}

impl Carrier<'_> {
    /// Carry sections of one table out of their segment, in order, into the new file `number`. The file is durable afterwards;
    /// its directory is the caller's to sync. What was written of a file that failed is removed.
    pub(crate) fn carry(
        &self,
        number: FileNumber,
        (slot, table): (Slot, TableId),
        origin: Origin,
        sections: &[SectionRef],
    ) -> Result<ParkedRecord> {
        let name = FileName::Parked(number, slot).path();
        let file = self.dir.create(&name)?;
        let written = self.write(&*file, &name, number, (slot, table), origin, sections);
        if written.is_err() {
            let _ = self.dir.remove(&name);
        }
        written
    }

    fn write(
        &self,
        file: &dyn File,
        name: &str,
        number: FileNumber,
        (slot, table): (Slot, TableId),
        origin: Origin,
        sections: &[SectionRef],
    ) -> Result<ParkedRecord> {
        let listed: Vec<Section> = sections.iter().map(|part| part.section).collect();
        let (mut out, mut offset) = (Vec::new(), 0);
        let mut put = |out: &mut Vec<u8>| {
            file.write_all_at(out, offset).map_err(|error| refused("write", name, error))?;
            offset += out.len() as u64;
            out.clear();
            Ok::<_, Error>(())
        };
        let (system, suite) = (self.system, self.suite);
        let sealer = ParkedSealer::create(system, suite, (number, table), origin, &listed, self.entropy, &mut out)?;
        let mut segment = Window::open(self.dir, FileName::Log(origin.segment).path())?;
        let mut generations: BTreeMap<Generation, u64> = BTreeMap::new();
        for part in sections {
            // Checked again: what is carried must be what the envelope named, whatever the medium says today.
            segment.check_section(&part.section, part.offset_bytes, u64::MAX)?;
            let mut from = part.offset_bytes;
            for _ in 0..part.section.frames {
                let (head, frame) = segment.frame(from, u64::MAX)?;
                out.extend_from_slice(frame);
                from += head.frame_bytes();
                if out.len() >= WRITE_BYTES {
                    put(&mut out)?;
                }
            }
            *generations.entry(part.section.generation).or_default() += part.section.len_bytes;
        }
        let salt = sealer.salt();
        let (final_tag, len_bytes) = sealer.finish(&mut out)?;
        put(&mut out)?;
        file.sync().map_err(|error| refused("sync", name, error))?;
        let last_seq = last_seq(&listed);
        Ok(ParkedRecord {
            number,
            slot,
            salt,
            final_tag,
            len_bytes,
            last_seq,
            generations: generations.into_iter().collect(),
        })
    }
}

/// A file of parked sections, checked with the system key as far as that goes.
pub(crate) struct ParkedFile {
    window: Window,
    origin: Origin,
    /// With where they lie.
    sections: Vec<(u64, Section)>,
    /// All frames of the file.
    frames: u64,
}

impl ParkedFile {
    /// Open the file that the manifest describes so.
    pub(crate) fn open(dir: &Directory, system: &KeySet, table: TableId, record: &ParkedRecord) -> Result<ParkedFile> {
        let mut window = Window::open(dir, record.name().path())?;
        let header = window.header()?;
        let expected = Expected {
            kind: FileKind::Parked,
            number: record.number,
            subject: table,
            suite: None,
            salt: Some(record.salt),
        };
        let key = system.opening(&header, &window.at(0))?;
        let mut opener = ParkedOpener::open(&header, key, &expected, &window.at(0))?;
        check_len(window.len_bytes, record.len_bytes, &window.at(window.len_bytes.min(record.len_bytes)))?;
        let (mut offset, mut complete, mut frames) = (HEADER_BYTES as u64, false, 0);
        while !complete {
            let (head, frame) = window.frame(offset, u64::MAX)?;
            let frame = frame.to_vec();
            complete = opener.feed_index(frame, &window.at(offset))?;
            offset += head.frame_bytes();
            frames += 1;
        }
        let end = opener.sections().iter().try_fold(offset, |end, section| end.checked_add(section.len_bytes));
        let end = end.ok_or_else(|| window.at(offset).tampered("the index lists more than any file holds"))?;
        let (head, frame) = window.frame(end, u64::MAX)?;
        let frame = frame.to_vec();
        let pinned = (record.final_tag, record.len_bytes);
        let (origin, listed) = opener.finish(frame, pinned, end + head.frame_bytes(), &window.at(end))?;
        let is_whose = listed.iter().all(|section| section.slot == record.slot);
        if !is_whose || last_seq(&listed) != record.last_seq {
            return Err(window.at(HEADER_BYTES as u64).tampered("the index is not of what the manifest names"));
        }
        frames += 1 + listed.iter().map(|section| u64::from(section.frames)).sum::<u64>();
        let sections = listed.into_iter().map(|section| {
            let start = offset;
            offset += section.len_bytes;
            (start, section)
        });
        let sections = sections.collect();
        Ok(ParkedFile { window, origin, sections, frames })
    }

    /// Frames of the file, its sections' included.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Frames of its sections.
    pub(crate) fn section_frames(&self) -> u64 {
        self.sections.iter().map(|(_, section)| u64::from(section.frames)).sum()
    }

    /// That all sections are there and those that the index names, without the table's key.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.sections.iter().try_for_each(|(start, section)| self.window.check_section(section, *start, u64::MAX))
    }

    /// Open the sections in order and hand out their entries that are newer than `after`.
    pub(crate) fn entries<'k>(
        &mut self,
        key_of: &dyn Fn(Generation) -> Result<&'k TableKey>,
        after: Seq,
        visit: &mut VisitEntry<'_>,
    ) -> Result<()> {
        let Origin { segment, salt } = self.origin;
        for (start, section) in self.sections.iter().filter(|(_, section)| section.last_seq() > after) {
            let key = key_of(section.generation)?.stream_key(section.suite, FileKind::Log, segment, &salt);
            section_entries(&mut self.window, *start, section, key, after, visit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
