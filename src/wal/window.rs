//! A file of journal frames that is being read, through a window of bounded size.

use std::sync::Arc;

use crate::crypto::TAG_BYTES;
use crate::error::Result;
use crate::format::Where;
use crate::format::frame::{FrameKind, HEADER_BYTES, JOURNAL_HEAD_BYTES, JournalHead, next_head_within};
use crate::format::log::Section;
use crate::io::File;
use crate::io::directory::{Directory, refused};
use crate::metrics::Meters;
use crate::types::FRAME_BYTES_MAX;

/// Bytes of a file that are in memory at a time.
const WINDOW_BYTES: usize = 2 * FRAME_BYTES_MAX;

/// A log segment, a file of parked sections, or a manifest. How long it is, whoever can write the directory says: so no more than the window is
/// ever taken from memory for it.
pub(crate) struct Window {
    pub(crate) name: String,
    pub(crate) len_bytes: u64,
    /// Frames that are read through it are opened by others, and counted here.
    pub(crate) meters: Arc<Meters>,
    file: Arc<dyn File>,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub(crate) fn open(dir: &Directory, name: String) -> Result<Window> {
        let file = dir.open(&name)?;
        let len_bytes = file.len_bytes().map_err(|error| refused("measure", &name, error))?;
        Ok(Window { name, len_bytes, meters: dir.meters().clone(), file, start: 0, bytes: Vec::new() })
    }

    /// The bytes of the file's header.
    pub(crate) fn header(&mut self) -> Result<Vec<u8>> {
        if self.len_bytes < HEADER_BYTES as u64 {
            return Err(self.at(0).bit_rot("the file is shorter than its header"));
        }
        let mut header = vec![0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, 0).map_err(|error| refused("read", &self.name, error))?;
        Ok(header)
    }

    pub(crate) fn at(&self, offset_bytes: u64) -> Where<'_> {
        Where::new(&self.name, offset_bytes)
    }

    /// `len` bytes at `offset`; a hole if they are not all before `limit`.
    pub(crate) fn bytes(&mut self, offset: u64, len: u64, limit: u64) -> Result<&[u8]> {
        if offset.checked_add(len).is_none_or(|end| end > limit.min(self.len_bytes)) || len > FRAME_BYTES_MAX as u64 {
            return Err(self.at(offset).bit_rot("the frame is cut off"));
        }
        let in_window = offset >= self.start && offset + len <= self.start + self.bytes.len() as u64;
        if !in_window {
            self.fill(offset)?;
        }
        let start = (offset - self.start) as usize;
        Ok(&self.bytes[start..start + len as usize])
    }

    pub(crate) fn fill(&mut self, offset: u64) -> Result<()> {
        let len = (self.len_bytes - offset).min(WINDOW_BYTES as u64) as usize;
        self.bytes.resize(len, 0);
        self.start = offset;
        self.file.read_exact_at(&mut self.bytes, offset).map_err(|error| refused("read", &self.name, error))
    }

    /// The journal frame at `offset`, checked against its checksums.
    pub(crate) fn frame(&mut self, offset: u64, limit: u64) -> Result<(JournalHead, &[u8])> {
        let head = self.bytes(offset, JOURNAL_HEAD_BYTES as u64, limit)?.to_vec();
        let head = JournalHead::decode(&head, &self.at(offset))?;
        let name = self.name.clone();
        let frame = self.bytes(offset, head.frame_bytes(), limit)?;
        head.check_crc(frame, &Where::new(&name, offset))?;
        Ok((head, frame))
    }

    /// That all frames of a section are there, with the key of nobody but the system.
    pub(crate) fn check_section(&mut self, section: &Section, start: u64, limit: u64) -> Result<()> {
        let mut offset = start;
        let mut last_tag = None;
        for index in 0..section.frames {
            let (head, frame) = self.frame(offset, limit)?;
            last_tag = frame.last_chunk::<TAG_BYTES>().copied();
            if head.kind != FrameKind::Section || head.ordinal != section.first_ordinal + u64::from(index) {
                return Err(self.at(offset).tampered("a section's frame is not where its envelope says"));
            }
            offset += head.frame_bytes();
        }
        if last_tag != Some(section.tag) || offset - start != section.len_bytes {
            return Err(self.at(start).tampered("a section is not the one that its envelope names"));
        }
        Ok(())
    }

    /// Whether nothing but zeros stands from `from` to the end of the file.
    pub(crate) fn is_zero_from(&mut self, from: u64) -> Result<bool> {
        let mut start = from;
        while start < self.len_bytes {
            self.fill(start)?;
            if self.bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            start += self.bytes.len() as u64;
        }
        Ok(true)
    }

    /// The next offset at or after `from` where a head with a right checksum stands.
    pub(crate) fn next_head(&mut self, from: u64) -> Result<Option<(u64, JournalHead)>> {
        let mut start = from;
        while start < self.len_bytes {
            // What is in memory is looked through first: behind a hole there may be a head every few hundred bytes.
            let is_here = start >= self.start && start + JOURNAL_HEAD_BYTES as u64 <= self.end();
            if !is_here {
                self.fill(start)?;
            }
            let (first, from) = (self.start, (start - self.start) as usize);
            if let Some((offset, head)) = next_head_within(&self.bytes, from, self.len_bytes - first) {
                return Ok(Some((first + offset as u64, head)));
            }
            if self.end() >= self.len_bytes {
                return Ok(None);
            }
            // The last bytes may be the front of a head that goes on behind the window.
            start = self.end() - (JOURNAL_HEAD_BYTES as u64 - 1);
        }
        Ok(None)
    }

    /// Where what is in memory ends.
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}
