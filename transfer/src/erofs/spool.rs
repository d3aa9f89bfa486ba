//! Bytes on their way into a file, front to back, in large pieces; what is skipped is a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes written at once.
const PIECE: usize = 1 << 20;

/// Writes to a file.
#[derive(Debug)]
pub(super) struct Spool<'a> {
    file: &'a File,
    /// What is not written yet, and where it belongs.
    buffer: Vec<u8>,
    start: u64,
}

impl<'a> Spool<'a> {
    /// Writes from `start` on.
    pub(super) fn new(file: &'a File, start: u64) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(PIECE),
            start,
        }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        if bytes.len() >= PIECE {
            self.file.write_all_at(bytes, self.start)?;
            self.start += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Goes on at `position`, which is not before this one; what is between reads as zeros.
    pub(super) fn skip_to(&mut self, position: u64) -> io::Result<()> {
        let gap = position.saturating_sub(self.position());
        if gap < super::BLOCK as u64 {
            return self.write(&[0; super::BLOCK][..gap as usize]);
        }
        self.flush()?;
        self.start = position;
        Ok(())
    }

    /// Goes on at the next multiple of a block.
    pub(super) fn align(&mut self) -> io::Result<()> {
        self.skip_to(self.position().next_multiple_of(super::BLOCK as u64))
    }

    /// Hands everything to the file.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
