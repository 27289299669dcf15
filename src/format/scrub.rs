//! Every checksum of a file, without any key: a walker that says which bytes it wants next.
//!
//! ```text
//! let mut walk = Scrub::new(kind, len_bytes);
//! while let Some(range) = walk.wants() {
//!     let bytes = read(range)?;                       // never more than a frame, or a window of SEARCH_BYTES
//!     if let Err(finding) = walk.feed(&bytes, name) { report(finding) }    // and go on
//! }
//! ```
//! It does no I/O itself, and ends after a number of steps bounded by the file's length, whatever the bytes are.
//!
//! What a finding ends differs by kind. Behind a frame whose body rotted, the next one is where the head says. Where the head
//! itself is not to be trusted, frames of a journal are searched for; the second unit of a key file begins in the middle;
//! a sorted table's other frames cannot be found without its sealed footer, so the walk ends.
//!
//! The log alone may end in zeros: room that was reserved and not written to.
//!
//! Without a key, nothing here says that a file is authentic, complete, or the right one. The log's live segment may end in
//! a torn frame after a power cut; whoever reports findings says so.

use std::ops::Range;

use crate::error::Result;
use crate::format::codec::Where;
use crate::format::frame::{
    FRAME_HEAD_BYTES, FileHeader, FrameHead, HEADER_BYTES, JOURNAL_HEAD_BYTES, JournalHead, next_head_within,
};
use crate::types::{FRAME_BYTES_MAX, FileKind};

/// Bytes that are asked for at once when frames are searched for behind a hole.
const SEARCH_BYTES: u64 = 256 << 10;

/// The walk through one file.
#[derive(Debug)]
pub(crate) struct Scrub {
    kind: FileKind,
    len_bytes: u64,
    position: u64,
    state: State,
    frames: u64,
    /// Whether what was looked at last was cut.
    breaks_off: bool,
    /// Headers that were looked at: a key file has two.
    headers: u8,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// A header stands at the position.
    Header,
    /// A frame begins at the position.
    Head,
    /// A frame with this head begins at the position.
    Frame(FrameHead),
    /// A journal frame with this head begins at the position.
    Journal(JournalHead),
    /// A journal frame begins at the position or behind it.
    Search,
    /// Nothing but zeros stands from this offset to the position: room of a log segment, unless something comes behind it.
    Reserved(u64),
    Done,
}

impl Scrub {
    /// Walk a file of this kind and length.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn new(kind: FileKind, len_bytes: u64) -> Scrub {
        Scrub::within(kind, 0..len_bytes)
    }

    /// Walk a part of a file of this kind, which begins with a header and behind which nothing is looked at.
    pub(crate) fn within(kind: FileKind, part: Range<u64>) -> Scrub {
        let Range { start, end } = part;
        Scrub { kind, len_bytes: end, position: start, state: State::Header, frames: 0, headers: 0, breaks_off: false }
    }

    /// The bytes that [`feed`](Scrub::feed) takes next; `None` at the end. They lie within the file.
    pub(crate) fn wants(&self) -> Option<Range<u64>> {
        let len = match self.state {
            State::Header => HEADER_BYTES as u64,
            State::Head => self.head_bytes() as u64,
            State::Frame(head) => head.frame_bytes(),
            State::Journal(head) => head.frame_bytes(),
            State::Search | State::Reserved(_) => SEARCH_BYTES,
            State::Done => return None,
        };
        Some(self.position..self.len_bytes.min(self.position.saturating_add(len)))
    }

    /// Frames whose checksums were right so far.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether the file ended within the header or frame that was looked at last: it was cut, or is still being written.
    pub(crate) fn breaks_off(&self) -> bool {
        self.breaks_off
    }

    /// Bytes of the file behind which there is nothing left to check, as far as is known.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Check the bytes that were wanted.
    ///
    /// # Errors
    /// A finding. The walk goes on with what [`wants`](Scrub::wants) says then.
    pub(crate) fn feed(&mut self, bytes: &[u8], file: &str) -> Result<()> {
        let place = Where::new(file, self.position);
        self.breaks_off = false;
        match self.state {
            State::Header => self.header(bytes, &place),
            State::Head => self.head(bytes, &place),
            State::Frame(head) => {
                let checked = head.check_crc(bytes, &place);
                self.pass_frame(head.frame_bytes(), checked, &place)
            }
            State::Journal(head) => {
                let checked = head.check_crc(bytes, &place);
                self.pass_frame(head.frame_bytes(), checked, &place)
            }
            State::Search => {
                self.search(bytes);
                Ok(())
            }
            State::Reserved(from) => self.reserved(from, bytes, file),
            State::Done => Ok(()),
        }
    }

    fn header(&mut self, bytes: &[u8], place: &Where<'_>) -> Result<()> {
        let checked = FileHeader::decode(bytes, place).and_then(|header| {
            if header.kind == self.kind { Ok(()) } else { Err(place.tampered("the header names another kind of file")) }
        });
        self.breaks_off = bytes.len() < HEADER_BYTES;
        self.headers = self.headers.saturating_add(1);
        // Headers have one size for ever, so what follows can be looked at whatever this one says.
        self.go_to(self.position + HEADER_BYTES as u64, State::Head);
        checked
    }

    fn head(&mut self, bytes: &[u8], place: &Where<'_>) -> Result<()> {
        if self.kind == FileKind::Log && bytes.iter().all(|byte| *byte == 0) {
            self.state = State::Reserved(self.position);
            return Ok(());
        }
        self.breaks_off = bytes.len() < self.head_bytes();
        // Where a table ends, the next one of a container begins.
        if self.kind == FileKind::Table && FileHeader::begins_with(bytes) {
            self.state = State::Header;
            return Ok(());
        }
        let state = if self.is_journal() {
            JournalHead::decode(bytes, place).map(State::Journal)
        } else {
            match bytes.first_chunk::<FRAME_HEAD_BYTES>() {
                Some(head) => FrameHead::decode(head, FRAME_BYTES_MAX, place).map(State::Frame),
                None => Err(place.bit_rot("the frame is cut off")),
            }
        };
        match state {
            Ok(state) => {
                self.state = state;
                Ok(())
            }
            Err(finding) => {
                self.lose_the_way();
                Err(finding)
            }
        }
    }

    /// Go behind a frame whose head was right.
    fn pass_frame(&mut self, frame_bytes: u64, checked: Result<()>, place: &Where<'_>) -> Result<()> {
        let end = self.position.saturating_add(frame_bytes);
        if end > self.len_bytes {
            // A frame that is longer than the rest of the file may hide others.
            self.breaks_off = true;
            self.lose_the_way();
            return checked;
        }
        self.frames += u64::from(checked.is_ok());
        if self.is_twice() {
            // One frame a unit. A length that rotted must not lead past the second unit, which begins in the middle.
            let middle = self.len_bytes / 2;
            let second = if self.headers < 2 { middle } else { self.len_bytes };
            self.go_to(second, State::Header);
            if checked.is_ok() && end != second {
                return Err(place.bit_rot("a unit is not half of the file"));
            }
        } else {
            self.go_to(end, State::Head);
        }
        checked
    }

    fn search(&mut self, window: &[u8]) {
        let left = self.len_bytes - self.position;
        if let Some((offset, head)) = next_head_within(window, 0, left) {
            return self.go_to(self.position + offset as u64, State::Journal(head));
        }
        // The last bytes of a window may be the first of a head.
        let passed = (window.len() as u64).saturating_sub(JOURNAL_HEAD_BYTES as u64 - 1);
        if passed == 0 || self.position + window.len() as u64 >= self.len_bytes {
            self.state = State::Done;
        } else {
            self.go_to(self.position + passed, State::Search);
        }
    }

    fn reserved(&mut self, from: u64, window: &[u8], file: &str) -> Result<()> {
        if window.iter().all(|byte| *byte == 0) {
            self.go_to(self.position + window.len() as u64, State::Reserved(from));
            return Ok(());
        }
        self.go_to(from + 1, State::Search);
        Err(Where::new(file, from).bit_rot("zeros stand where a frame begins, and something behind them"))
    }

    /// What stands at the position says nothing about what follows.
    fn lose_the_way(&mut self) {
        let middle = self.len_bytes / 2;
        if self.is_journal() {
            self.go_to(self.position + 1, State::Search);
        } else if self.is_twice() && self.headers < 2 {
            self.go_to(middle, State::Header);
        } else {
            self.state = State::Done;
        }
    }

    fn go_to(&mut self, position: u64, state: State) {
        self.position = position;
        self.state = if position < self.len_bytes { state } else { State::Done };
    }

    fn head_bytes(&self) -> usize {
        if self.is_journal() { JOURNAL_HEAD_BYTES } else { FRAME_HEAD_BYTES }
    }

    fn is_journal(&self) -> bool {
        matches!(self.kind, FileKind::Manifest | FileKind::Log | FileKind::Parked)
    }

    fn is_twice(&self) -> bool {
        matches!(self.kind, FileKind::KeyFile | FileKind::SystemKey)
    }
}

#[cfg(test)]
mod tests;
