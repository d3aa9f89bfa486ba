//! The client's side of a channel: many calls on one connection, with flow control.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, mpsc},
    time::Instant,
};
use vdkr_core::channel::{
    Assembler, Frame, Kind, MAX_PAYLOAD, Pipe, ReceiveWindow, SendWindow, encode,
    frame::{Credit, Resize, signal_payload},
    message::{Done, Event, GuestHello, Message as _, MessageError, Request},
};

use super::pipe::{FrameReader, PipeError};

/// Events of one call that wait to be shown. What comes beyond is dropped: news, not data.
const MAX_EVENTS: usize = 256;
/// Encoded frames that wait to be written.
const OUTGOING: usize = 256;

/// A call cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection is gone; the reason is the first thing that went wrong on it.
    #[error("{0}")]
    Lost(Arc<PipeError>),
    /// The request cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(#[from] MessageError),
}

/// What comes from the agent on a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Output of the process; to be acknowledged with [`CallSender::consumed`].
    Data(Pipe, Vec<u8>),
    /// News.
    Event(Event),
    /// The answer; nothing comes after it.
    Done(Done),
}

/// A connection on which the greetings were exchanged. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    hello: Arc<GuestHello>,
}

#[derive(Debug)]
struct Shared {
    outgoing: mpsc::Sender<Vec<u8>>,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    open: HashMap<u32, Arc<Mailbox>>,
    last: u32,
    lost: Option<Arc<PipeError>>,
    /// When something came last, or when the first call began that waits.
    heard: Option<Instant>,
}

/// What one call has received and may send.
#[derive(Debug, Default)]
struct Mailbox {
    state: Mutex<MailboxState>,
    /// Something arrived.
    arrived: Notify,
    /// Credit arrived, or the call ended.
    credited: Notify,
}

#[derive(Debug, Default)]
struct MailboxState {
    queue: VecDeque<Incoming>,
    events: usize,
    stdout: ReceiveWindow,
    stderr: ReceiveWindow,
    stdin: SendWindow,
    ended: bool,
    lost: Option<Arc<PipeError>>,
}

impl Connection {
    /// Takes over a pipe after the greetings and works it in the background.
    pub fn new<R, W>(reader: FrameReader<R>, writer: W, hello: GuestHello) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let shared = Arc::new(Shared {
            outgoing,
            calls: Mutex::default(),
        });
        tokio::spawn(write_frames(writer, frames));
        tokio::spawn(read_frames(reader, Arc::clone(&shared)));
        Self {
            shared,
            hello: Arc::new(hello),
        }
    }

    /// The agent's greeting.
    pub fn hello(&self) -> &GuestHello {
        &self.hello
    }

    /// Sends a request.
    pub async fn call(&self, request: &Request) -> Result<Call, ChannelError> {
        let mailbox = Arc::new(Mailbox::default());
        let stream = {
            let mut calls = lock(&self.shared.calls);
            if let Some(reason) = &calls.lost {
                return Err(ChannelError::Lost(Arc::clone(reason)));
            }
            if calls.open.is_empty() {
                calls.heard = Some(Instant::now());
            }
            calls.last += 1;
            let stream = calls.last;
            calls.open.insert(stream, Arc::clone(&mailbox));
            stream
        };
        let call = Call {
            sender: CallSender {
                shared: Arc::clone(&self.shared),
                stream,
                mailbox,
            },
        };
        let mut frames = Vec::new();
        request.encode(&mut frames, stream)?;
        call.sender.send(frames).await?;
        Ok(call)
    }

    /// For how long nothing has come while a call waits.
    pub fn silence(&self) -> Duration {
        let calls = lock(&self.shared.calls);
        let heard = calls.heard.filter(|_| !calls.open.is_empty());
        heard.map_or(Duration::ZERO, |heard| heard.elapsed())
    }

    /// Sends a request whose news and output do not matter, and gives its answer.
    pub async fn ask(&self, request: &Request) -> Result<Done, ChannelError> {
        let mut call = self.call(request).await?;
        loop {
            match call.next().await? {
                Incoming::Done(done) => return Ok(done),
                Incoming::Data(pipe, bytes) => call.sender.consumed(pipe, bytes.len()).await?,
                Incoming::Event(_) => {}
            }
        }
    }
}

/// A request under way. Dropping it before its answer cancels it.
#[derive(Debug)]
pub struct Call {
    sender: CallSender,
}

/// The sending half of a call.
#[derive(Clone, Debug)]
pub struct CallSender {
    shared: Arc<Shared>,
    stream: u32,
    mailbox: Arc<Mailbox>,
}

impl Call {
    /// What comes next. After [`Incoming::Done`] nothing does, and this waits for ever.
    pub async fn next(&mut self) -> Result<Incoming, ChannelError> {
        let mailbox = &self.sender.mailbox;
        loop {
            let arrived = mailbox.arrived.notified();
            {
                let mut state = lock(&mailbox.state);
                if let Some(incoming) = state.queue.pop_front() {
                    state.events -= usize::from(matches!(incoming, Incoming::Event(_)));
                    return Ok(incoming);
                }
                if let Some(reason) = &state.lost {
                    return Err(ChannelError::Lost(Arc::clone(reason)));
                }
            }
            arrived.await;
        }
    }

    /// The half that sends input, signals and so on.
    pub fn sender(&self) -> CallSender {
        self.sender.clone()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let CallSender {
            shared,
            stream,
            mailbox,
        } = &self.sender;
        let unfinished = lock(&shared.calls).open.remove(stream).is_some();
        if unfinished {
            let mut frame = Vec::new();
            if encode(&mut frame, Kind::Cancel, *stream, &[]).is_ok() {
                let sent = shared.outgoing.try_send(frame);
                // A queue that is full for the moment takes it later; without a runtime nobody
                // writes any more.
                if let Err(mpsc::error::TrySendError::Full(frame)) = sent
                    && let Ok(runtime) = tokio::runtime::Handle::try_current()
                {
                    let outgoing = shared.outgoing.clone();
                    runtime.spawn(async move { outgoing.send(frame).await });
                }
            }
        }
        lock(&mailbox.state).ended = true;
        mailbox.credited.notify_waiters();
    }
}

impl CallSender {
    /// Says that output was handed on, so that the agent may send more.
    pub async fn consumed(&self, pipe: Pipe, bytes: usize) -> Result<(), ChannelError> {
        let credit = {
            let mut state = lock(&self.mailbox.state);
            let ended = state.ended;
            state
                .window(pipe)
                .and_then(|window| window.consumed(bytes))
                .filter(|_| !ended)
        };
        match credit {
            Some(bytes) => {
                let payload = Credit { pipe, bytes }.to_payload();
                self.frame(Kind::Credit, &payload).await
            }
            None => Ok(()),
        }
    }

    /// Sends standard input, as fast as the process takes it. `false` when the call has ended and
    /// no input is wanted any more.
    pub async fn stdin(&self, mut bytes: &[u8]) -> Result<bool, ChannelError> {
        while !bytes.is_empty() {
            let credited = self.mailbox.credited.notified();
            let allowed = {
                let mut state = lock(&self.mailbox.state);
                if state.ended {
                    return Ok(false);
                }
                state.stdin.reserve(bytes.len().min(MAX_PAYLOAD))
            };
            if allowed == 0 {
                credited.await;
                continue;
            }
            let (now, later) = bytes.split_at(allowed);
            self.frame(Kind::Stdin, now).await?;
            bytes = later;
        }
        Ok(true)
    }

    /// Ends standard input.
    pub async fn end_stdin(&self) -> Result<(), ChannelError> {
        self.frame(Kind::Eof, &Pipe::Stdin.to_payload()).await
    }

    /// Passes on a signal.
    pub async fn signal(&self, number: u8) -> Result<(), ChannelError> {
        self.frame(Kind::Signal, &signal_payload(number)).await
    }

    /// Tells the size of the terminal.
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<(), ChannelError> {
        self.frame(Kind::Resize, &Resize { rows, cols }.to_payload())
            .await
    }

    /// Lets go of the process, which goes on; the agent's answer still comes. An agent of an earlier
    /// version does nothing.
    pub async fn detach(&self) -> Result<(), ChannelError> {
        self.frame(Kind::Detach, &[]).await
    }

    /// Asks the agent to end the work; its answer still comes.
    pub async fn cancel(&self) -> Result<(), ChannelError> {
        self.frame(Kind::Cancel, &[]).await
    }

    async fn frame(&self, kind: Kind, payload: &[u8]) -> Result<(), ChannelError> {
        let mut bytes = Vec::new();
        encode(&mut bytes, kind, self.stream, payload).map_err(MessageError::from)?;
        self.send(bytes).await
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), ChannelError> {
        if self.shared.outgoing.send(bytes).await.is_ok() {
            return Ok(());
        }
        // The writer has gone; the reader knows why, or will in a moment.
        let reason = lock(&self.shared.calls).lost.clone();
        Err(ChannelError::Lost(
            reason.unwrap_or_else(|| Arc::new(PipeError::Closed)),
        ))
    }
}

impl MailboxState {
    fn window(&mut self, pipe: Pipe) -> Option<&mut ReceiveWindow> {
        match pipe {
            Pipe::Stdout => Some(&mut self.stdout),
            Pipe::Stderr => Some(&mut self.stderr),
            Pipe::Stdin => None,
        }
    }

    fn data(&mut self, pipe: Pipe, mut bytes: Vec<u8>) -> Result<(), PipeError> {
        let refused = |_| violation(pipe.kind(), bytes.len());
        self.window(pipe)
            .map_or(Ok(()), |window| window.received(bytes.len()))
            .map_err(refused)?;
        match self.queue.back_mut() {
            // Crumbs are joined: what waits is bounded in bytes, not in pieces.
            Some(Incoming::Data(last, waiting))
                if *last == pipe && waiting.len() + bytes.len() <= MAX_PAYLOAD =>
            {
                waiting.append(&mut bytes);
            }
            _ if bytes.is_empty() => {}
            _ => self.queue.push_back(Incoming::Data(pipe, bytes)),
        }
        Ok(())
    }
}

fn violation(kind: Kind, length: usize) -> PipeError {
    PipeError::Frame(vdkr_core::channel::FrameError::Malformed { kind, length })
}

async fn write_frames<W: AsyncWrite + Unpin>(mut writer: W, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(mut bytes) = frames.recv().await {
        while bytes.len() < MAX_PAYLOAD
            && let Ok(more) = frames.try_recv()
        {
            bytes.extend(more);
        }
        // A broken pipe shows on the reading side too, with the reason.
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn read_frames<R: AsyncRead + Unpin>(mut reader: FrameReader<R>, shared: Arc<Shared>) {
    let mut assembler = Assembler::new();
    let reason = loop {
        match reader.next_whole(&mut assembler).await {
            Ok(frame) => {
                if let Err(error) = deliver(&shared, frame) {
                    break error;
                }
            }
            Err(error) => break error,
        }
    };
    let reason = Arc::new(reason);
    let open = {
        let mut calls = lock(&shared.calls);
        calls.lost = Some(Arc::clone(&reason));
        std::mem::take(&mut calls.open)
    };
    for mailbox in open.into_values() {
        let mut state = lock(&mailbox.state);
        state.ended = true;
        state.lost = Some(Arc::clone(&reason));
        drop(state);
        mailbox.arrived.notify_one();
        mailbox.credited.notify_waiters();
    }
}

fn deliver(shared: &Shared, frame: Frame) -> Result<(), PipeError> {
    if frame.kind == Kind::Ping {
        let mut pong = Vec::new();
        encode(&mut pong, Kind::Pong, frame.stream, &[])?;
        // A flood of pings is not worth waiting for.
        let _ = shared.outgoing.try_send(pong);
        return Ok(());
    }
    // A stream that was given up may still talk until the agent has seen the cancel.
    let mailbox = {
        let mut calls = lock(&shared.calls);
        calls.heard = Some(Instant::now());
        calls.open.get(&frame.stream).map(Arc::clone)
    };
    let Some(mailbox) = mailbox else {
        return Ok(());
    };
    let mut state = lock(&mailbox.state);
    match frame.kind {
        Kind::Stdout => state.data(Pipe::Stdout, frame.payload)?,
        Kind::Stderr => state.data(Pipe::Stderr, frame.payload)?,
        Kind::Event => {
            if state.events < MAX_EVENTS {
                state.events += 1;
                state
                    .queue
                    .push_back(Incoming::Event(Event::decode(&frame.payload)?));
            }
        }
        Kind::Credit => {
            let credit = Credit::from_payload(&frame.payload)?;
            if credit.pipe == Pipe::Stdin {
                let refused = |_| violation(Kind::Credit, frame.payload.len());
                state.stdin.grant(credit.bytes).map_err(refused)?;
                mailbox.credited.notify_waiters();
            }
            return Ok(());
        }
        Kind::Done => {
            state
                .queue
                .push_back(Incoming::Done(Done::decode(&frame.payload)?));
            state.ended = true;
            mailbox.credited.notify_waiters();
            lock(&shared.calls).open.remove(&frame.stream);
        }
        // Ends of output are implied by the answer; the rest is of a later version.
        _ => return Ok(()),
    }
    drop(state);
    mailbox.arrived.notify_one();
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
