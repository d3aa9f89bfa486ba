//! A virtio-serial port as an asynchronous byte pipe.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::termios::{ControlModes, OptionalActions};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fs::{Mode, OFlags},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::watch::watch;

/// Where the kernel lists the ports.
const CLASS_DIR: &str = "/sys/class/virtio-ports";

/// Finds the device of the port with this name, when the kernel has it already.
pub fn find(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(CLASS_DIR).ok()?;
    ports.flatten().find_map(|port| {
        let found = fs::read_to_string(port.path().join("name")).ok()?;
        (found.trim_end() == name).then(|| Path::new("/dev").join(port.file_name()))
    })
}

/// An open port.
///
/// While no host is connected a port reads as ended, writes wait, and polling it says "hung up" at
/// once, for ever. tokio takes a hang-up for final, so the port sits in an epoll set of its own,
/// edge-triggered, and tokio watches that set: it wakes for changes only.
#[derive(Debug)]
pub struct Port {
    file: OwnedFd,
    readable: Edge,
    writable: Edge,
    pending: Vec<u8>,
    /// A serial line, which ends only when its device is gone.
    is_line: bool,
}

impl Port {
    /// Opens a port or a serial line. Fails when another process has the port; a line passes every
    /// byte from now on, at the speed that it has.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let is_line = rustix::termios::isatty(&file);
        if is_line {
            let mut line = rustix::termios::tcgetattr(&file)?;
            line.make_raw();
            // Without a modem there is nobody who would hang up.
            line.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
            rustix::termios::tcsetattr(&file, OptionalActions::Flush, &line)?;
        }
        let readable = Edge::new(&file, epoll::EventFlags::IN)?;
        let writable = Edge::new(&file, epoll::EventFlags::OUT)?;
        Ok(Self {
            file,
            readable,
            writable,
            pending: Vec::new(),
            is_line,
        })
    }

    /// Waits until a host has sent something.
    pub async fn wait_for_host(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            let mut buffer = [0; 4096];
            loop {
                match rustix::io::read(&self.file, &mut buffer) {
                    Ok(0) if self.is_line => {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Ok(0) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Ok(length) => {
                        self.pending.extend_from_slice(&buffer[..length]);
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
                ready!(self.readable.poll(context))?;
            }
        })
        .await
    }
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.pending.is_empty() {
            let length = self.pending.len().min(buffer.remaining());
            buffer.put_slice(&self.pending[..length]);
            self.pending.drain(..length);
            return Poll::Ready(Ok(()));
        }
        // The kernel gives at most a page at a time.
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            match rustix::io::read(&self.file, buffer.initialize_unfilled()) {
                Ok(0) => break,
                Ok(length) => buffer.advance(length),
                Err(rustix::io::Errno::AGAIN) if buffer.filled().len() > before => break,
                Err(rustix::io::Errno::AGAIN) => ready!(self.readable.poll(context))?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.file, bytes) {
                Ok(length) => return Poll::Ready(Ok(length)),
                Err(rustix::io::Errno::AGAIN) => ready!(self.writable.poll(context))?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Wakes one task when the state of a file changes.
#[derive(Debug)]
struct Edge {
    set: AsyncFd<OwnedFd>,
}

impl Edge {
    fn new(file: &OwnedFd, events: epoll::EventFlags) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = events | epoll::EventFlags::ET;
        epoll::add(&set, file, epoll::EventData::new_u64(0), events)?;
        Ok(Self {
            set: watch(set, Interest::READABLE)?,
        })
    }

    /// Ready when there was a change since the last call: try again then.
    fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.set.poll_read_ready(context))?;
        let mut events = Vec::with_capacity(2);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        epoll::wait(guard.get_inner(), spare_capacity(&mut events), Some(&now))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}
