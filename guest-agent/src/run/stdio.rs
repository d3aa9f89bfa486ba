//! Between a container's streams and the channel.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use rustix::termios::Winsize;
use tokio::io::{Interest, unix::AsyncFd};
use vdkr_core::channel::{HEADER_LEN, frame::Resize};

use crate::watch::watch;

/// What a terminal's line discipline reads as the end of input (`^D`).
pub const END_OF_INPUT: u8 = 4;
/// Most bytes that a terminal gives at once.
const CHUNK: usize = 4096;

/// The master side of a container's terminal.
#[derive(Clone, Debug)]
pub struct Terminal(Rc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Takes the file that came with [`super::Report::Terminal`].
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self(Rc::new(watch(
            master,
            Interest::READABLE | Interest::WRITABLE,
        )?)))
    }

    /// Tells the programs on it the size of the user's window.
    pub fn resize(&self, size: Resize) -> io::Result<()> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }

    /// What is shown on it next, behind room for a frame's header; `None` when every program has
    /// closed it.
    pub async fn read_frame(&self) -> Option<Vec<u8>> {
        let mut frame = empty_frame(CHUNK);
        frame.resize(HEADER_LEN + CHUNK, 0);
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd.as_fd(), &mut frame[HEADER_LEN..])?);
        // The last program's close reads as an input/output error.
        match self.0.async_io(Interest::READABLE, read).await {
            Ok(length) if length > 0 => {
                frame.truncate(HEADER_LEN + length);
                Some(frame)
            }
            _ => None,
        }
    }

    /// Types.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            let length = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// An empty frame with room for its header and so many bytes.
pub fn empty_frame(room: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_LEN + room);
    frame.resize(HEADER_LEN, 0);
    frame
}
