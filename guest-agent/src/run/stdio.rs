//! Between a container's streams and the channel.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use bytes::BufMut;
use rustix::termios::Winsize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
};
use vdkr_core::channel::{HEADER_LEN, Pipe, frame::Resize};

use crate::{
    channel::{Stream, stream::SharedStream},
    watch::watch,
};

/// What a terminal's line discipline reads as the end of input (`^D`).
const END_OF_INPUT: u8 = 4;

/// Sends everything that comes out of a pipe, as fast as the host takes it, and then its end.
pub async fn forward_output(mut from: pipe::Receiver, stream: SharedStream, pipe: Pipe) {
    loop {
        let room = stream.writable(pipe).await;
        let mut frame = empty_frame(room);
        match from.read_buf(&mut (&mut frame).limit(room)).await {
            Ok(length) if length > 0 => {
                if stream.write(pipe, frame).await.is_err() {
                    return;
                }
            }
            _ => break,
        }
    }
    stream.end(pipe).await;
}

/// Writes the host's input to the container until one of them has enough. Input that the container
/// does not want is thrown away, so that the host never waits.
pub async fn forward_input(stream: SharedStream, to: pipe::Sender) {
    let mut to = Some(to);
    while let Some(bytes) = stream.read().await {
        if let Some(open) = &mut to
            && open.write_all(&bytes).await.is_err()
        {
            to = None;
        }
        stream.consumed(bytes.len()).await;
    }
}

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

    /// Sends what is shown on it, as standard output, until every program has closed it.
    pub async fn forward_output(self, stream: SharedStream) {
        loop {
            let room = stream.writable(Pipe::Stdout).await;
            let mut frame = empty_frame(room);
            frame.resize(HEADER_LEN + room.min(4096), 0);
            let read = |fd: &OwnedFd| Ok(rustix::io::read(fd.as_fd(), &mut frame[HEADER_LEN..])?);
            // The last program's close reads as an input/output error.
            match self.0.async_io(Interest::READABLE, read).await {
                Ok(length) if length > 0 => {
                    frame.truncate(HEADER_LEN + length);
                    if stream.write(Pipe::Stdout, frame).await.is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        stream.end(Pipe::Stdout).await;
    }

    /// Types what the host sends.
    pub async fn forward_input(self, stream: SharedStream) {
        while let Some(bytes) = stream.read().await {
            let _ = self.write_all(&bytes).await;
            stream.consumed(bytes.len()).await;
        }
        let _ = self.write_all(&[END_OF_INPUT]).await;
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            let length = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Throws away input of a container that does not read any.
pub async fn discard_input(stream: &Stream) {
    while let Some(bytes) = stream.read().await {
        stream.consumed(bytes.len()).await;
    }
}

fn empty_frame(room: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_LEN + room);
    frame.resize(HEADER_LEN, 0);
    frame
}
