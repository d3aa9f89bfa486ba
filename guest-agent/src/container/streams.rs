//! A container's streams on their way to its log and to the hosts that see them.

use std::{cell::RefCell, os::fd::OwnedFd, rc::Rc};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use vdkr_core::channel::{HEADER_LEN, Pipe};

use super::{Entry, log::Log};
use crate::{
    channel::stream::{OUTPUT_CHUNK, SharedStream},
    run::{
        pipes::{Reader, Writer},
        stdio::{END_OF_INPUT, Terminal, empty_frame},
    },
};

/// The hosts that see a container's output.
#[derive(Debug, Default)]
pub struct Hub {
    sinks: RefCell<Vec<Rc<Sink>>>,
}

#[derive(Debug)]
struct Sink {
    stream: SharedStream,
    gone: CancellationToken,
}

/// A host's place in a [`Hub`]; dropping it leaves.
#[derive(Debug)]
pub struct Seat(CancellationToken);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Hub {
    /// Shows the output to one more host, from now on. The container waits for hosts that take
    /// their time, and no longer for one that cancels.
    pub fn join(&self, stream: &SharedStream) -> Seat {
        let gone = stream.cancelled().child_token();
        let mut sinks = self.sinks.borrow_mut();
        sinks.retain(|sink| !sink.gone.is_cancelled());
        sinks.push(Rc::new(Sink {
            stream: stream.clone(),
            gone: gone.clone(),
        }));
        Seat(gone)
    }

    /// Has all hosts leave.
    pub fn dismiss(&self) {
        for sink in self.sinks.borrow_mut().drain(..) {
            sink.gone.cancel();
        }
    }

    /// Sends what came on a stream; `frame` has room for a header in front.
    async fn send(&self, pipe: Pipe, frame: Vec<u8>) {
        let mut sinks = self.sinks.borrow().clone();
        let Some(last) = sinks.pop() else {
            return;
        };
        let mut gone = false;
        for sink in sinks {
            gone |= sink.send(pipe, frame.clone()).await;
        }
        gone |= last.send(pipe, frame).await;
        if gone {
            self.sinks
                .borrow_mut()
                .retain(|sink| !sink.gone.is_cancelled());
        }
    }
}

impl Sink {
    /// `true` when the host has gone.
    async fn send(&self, pipe: Pipe, frame: Vec<u8>) -> bool {
        let sent = tokio::select! {
            sent = send_all(&self.stream, pipe, frame) => sent,
            () = self.gone.cancelled() => false,
        };
        if !sent {
            self.gone.cancel();
        }
        !sent
    }
}

/// Sends bytes within the host's credit; `frame` has room for a header in front. `false` when the
/// host has gone.
async fn send_all(stream: &SharedStream, pipe: Pipe, frame: Vec<u8>) -> bool {
    let length = frame.len() - HEADER_LEN;
    let room = stream.writable(pipe).await;
    if room >= length {
        return stream.write(pipe, frame).await.is_ok();
    }
    send_bytes(stream, pipe, frame.get(HEADER_LEN..).unwrap_or_default()).await
}

/// Sends bytes within the host's credit. `false` when the host has gone.
pub async fn send_bytes(stream: &SharedStream, pipe: Pipe, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let room = stream.writable(pipe).await.min(bytes.len());
        let (now, later) = bytes.split_at(room);
        let mut frame = empty_frame(room);
        frame.extend_from_slice(now);
        if stream.write(pipe, frame).await.is_err() {
            return false;
        }
        bytes = later;
    }
    true
}

/// Where output goes: to the hosts of a container, or of one process in it, and into the log.
#[derive(Debug)]
pub struct Outlet<'a> {
    /// The hosts.
    pub hub: &'a Hub,
    /// The log.
    pub log: Option<&'a Log>,
}

impl Outlet<'_> {
    async fn put(&self, pipe: Pipe, frame: Vec<u8>) {
        if let Some(log) = self.log {
            log.append(pipe, frame.get(HEADER_LEN..).unwrap_or_default());
        }
        self.hub.send(pipe, frame).await;
    }

    /// Everything that comes out of a pipe.
    pub async fn drain_pipe(&self, mut from: Reader, pipe: Pipe) {
        while let Some(frame) = from.read_frame(OUTPUT_CHUNK).await {
            self.put(pipe, frame).await;
        }
    }

    /// Everything that is shown on a terminal, until every program has closed it.
    pub async fn drain_terminal(&self, terminal: &Terminal) {
        while let Some(frame) = terminal.read_frame().await {
            self.put(Pipe::Stdout, frame).await;
        }
    }
}

/// Where input goes.
#[derive(Debug)]
pub enum Inlet {
    /// Nowhere: nothing was asked for.
    None,
    /// A pipe, until it is closed.
    Pipe(Mutex<Option<Writer>>),
    /// A terminal.
    Terminal(Terminal),
}

impl Inlet {
    /// A pipe, if there is one.
    pub fn pipe(writer: Option<Writer>) -> Self {
        writer.map_or(Self::None, |writer| Self::Pipe(Mutex::new(Some(writer))))
    }

    /// A terminal's master side.
    pub fn terminal(master: OwnedFd) -> std::io::Result<Self> {
        Ok(Self::Terminal(Terminal::new(master)?))
    }

    /// Hands input on. What the process does not want is thrown away.
    pub async fn write(&self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Pipe(pipe) => {
                let mut pipe = pipe.lock().await;
                if let Some(open) = pipe.as_mut()
                    && open.write_all(bytes).await.is_err()
                {
                    pipe.take();
                }
            }
            Self::Terminal(terminal) => {
                let _ = terminal.write_all(bytes).await;
            }
        }
    }

    /// Says that there is no more input.
    pub async fn end(&self) {
        match self {
            Self::None => {}
            Self::Pipe(pipe) => drop(pipe.lock().await.take()),
            Self::Terminal(terminal) => {
                let _ = terminal.write_all(&[END_OF_INPUT]).await;
            }
        }
    }
}

/// Hands a host's input to a container, whichever process it has at the time; `once` when nobody
/// else will have any.
pub async fn feed(stream: SharedStream, entry: Rc<Entry>, once: bool) {
    while let Some(bytes) = stream.read().await {
        if let Some(live) = entry.live() {
            live.input().write(&bytes).await;
        }
        stream.consumed(bytes.len()).await;
    }
    if once && let Some(live) = entry.live() {
        live.input().end().await;
    }
}

/// Takes input that nobody wants, so that the host need not wait.
pub async fn discard(stream: SharedStream) {
    while let Some(bytes) = stream.read().await {
        stream.consumed(bytes.len()).await;
    }
}
