//! One request's end of the channel: events and output towards the host, input and control from it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use vdkr_core::channel::{
    Frame, FrameError, HEADER_LEN, Kind, Pipe, ReceiveWindow, SendWindow, WindowError, encode,
    frame::{Credit, Resize, signal_from_payload},
    message::{Done, Event, Failure, FailureCode, Message},
};

/// Bytes of output in one frame. With its header it is what a virtio-serial port takes in one
/// write.
pub const OUTPUT_CHUNK: usize = 32 * 1024 - HEADER_LEN;
/// Signals and sizes that wait for a container; later ones push out the oldest.
const MAX_CONTROLS: usize = 64;

/// What is on its way to the host.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Encoded frames.
    Frames(Vec<u8>),
    /// Tells when everything before it was written.
    Flush(oneshot::Sender<()>),
}

/// The way to the host, bounded.
pub(super) type Outbox = mpsc::Sender<Outgoing>;

/// What the host says to a running container besides its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Send this signal to its first process.
    Signal(u8),
    /// Its terminal has this size now.
    Resize(Resize),
    /// The host lets go of it, and it goes on.
    Detach,
}

/// The host broke the rules of the channel; the connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A payload that cannot be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// More input than was granted, or more credit than there may be.
    #[error(transparent)]
    Window(#[from] WindowError),
}

/// One open request. Everything that it holds is bounded: input by its window, output by the
/// outbox, control by [`MAX_CONTROLS`].
#[derive(Debug)]
pub struct Stream {
    id: u32,
    outbox: Outbox,
    cancel: CancellationToken,
    stdin: Input,
    stdout: Output,
    stderr: Output,
    controls: RefCell<VecDeque<Control>>,
    controlled: Notify,
}

#[derive(Debug, Default)]
struct Input {
    bytes: RefCell<Vec<u8>>,
    window: RefCell<ReceiveWindow>,
    ended: Cell<bool>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Output {
    window: RefCell<SendWindow>,
    granted: Notify,
}

impl Stream {
    pub(super) fn new(id: u32, outbox: Outbox) -> Self {
        Self {
            id,
            outbox,
            cancel: CancellationToken::new(),
            stdin: Input::default(),
            stdout: Output::default(),
            stderr: Output::default(),
            controls: RefCell::default(),
            controlled: Notify::new(),
        }
    }

    /// Fires when the host cancels the request or goes away.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Sends an event without waiting: news of progress are dropped while the host is slow, the
    /// rest follows when there is room.
    pub fn event(&self, event: &Event) {
        let mut bytes = Vec::new();
        if event.encode(&mut bytes, self.id).is_err() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(frames)) =
            self.outbox.try_send(Outgoing::Frames(bytes))
            && !matches!(event, Event::Progress { .. })
        {
            let outbox = self.outbox.clone();
            tokio::task::spawn_local(async move { outbox.send(frames).await });
        }
    }

    /// Waits for credit on an output pipe and gives how many bytes may be read for it, at most
    /// [`OUTPUT_CHUNK`].
    pub async fn writable(&self, pipe: Pipe) -> usize {
        let output = self.output(pipe);
        loop {
            let available = output.window.borrow().available();
            if available > 0 {
                return available.min(OUTPUT_CHUNK);
            }
            output.granted.notified().await;
        }
    }

    /// Sends bytes of an output pipe; `frame` holds [`HEADER_LEN`] free bytes in front of them.
    /// There must be credit for them ([`Stream::writable`]). An error means that the host is gone.
    pub async fn write(&self, pipe: Pipe, mut frame: Vec<u8>) -> Result<(), HostGone> {
        let length = frame.len() - HEADER_LEN;
        self.output(pipe).window.borrow_mut().reserve(length);
        let announced = u32::try_from(length).map_err(|_| HostGone)?;
        frame[..4].copy_from_slice(&announced.to_le_bytes());
        frame[4] = pipe.kind().to_byte();
        frame[5..HEADER_LEN].copy_from_slice(&self.id.to_le_bytes());
        self.send(frame).await
    }

    /// Says that no more bytes come on an output pipe.
    pub async fn end(&self, pipe: Pipe) {
        let _ = self.frame(Kind::Eof, &pipe.to_payload()).await;
    }

    /// The next input, in pieces of any size; `None` at its end. Call [`Stream::consumed`] when
    /// they are handed on.
    pub async fn read(&self) -> Option<Vec<u8>> {
        loop {
            let bytes = std::mem::take(&mut *self.stdin.bytes.borrow_mut());
            if !bytes.is_empty() {
                return Some(bytes);
            }
            if self.stdin.ended.get() {
                return None;
            }
            self.stdin.arrived.notified().await;
        }
    }

    /// Grants the host as much input as was handed on.
    pub async fn consumed(&self, bytes: usize) {
        let credit = self.stdin.window.borrow_mut().consumed(bytes);
        if let Some(bytes) = credit {
            let credit = Credit {
                pipe: Pipe::Stdin,
                bytes,
            };
            let _ = self.frame(Kind::Credit, &credit.to_payload()).await;
        }
    }

    /// The next signal or size.
    pub async fn control(&self) -> Control {
        loop {
            if let Some(control) = self.controls.borrow_mut().pop_front() {
                return control;
            }
            self.controlled.notified().await;
        }
    }

    /// Answers the request, after everything that was sent before, and waits until the answer is
    /// on its way.
    pub(super) async fn finish(&self, done: &Done) {
        let mut bytes = Vec::new();
        if let Err(error) = done.encode(&mut bytes, self.id) {
            let failure = Failure::new(FailureCode::Failed, format!("answer not sent: {error}"));
            bytes.clear();
            if Err(failure).encode(&mut bytes, self.id).is_err() {
                return;
            }
        }
        let (written, flushed) = oneshot::channel();
        if self.send(bytes).await.is_ok()
            && self.outbox.send(Outgoing::Flush(written)).await.is_ok()
        {
            let _ = flushed.await;
        }
    }

    /// Takes a frame of this stream that came from the host.
    pub(super) fn take(&self, frame: &Frame) -> Result<(), Violation> {
        match frame.kind {
            Kind::Stdin => {
                self.stdin
                    .window
                    .borrow_mut()
                    .received(frame.payload.len())?;
                self.stdin
                    .bytes
                    .borrow_mut()
                    .extend_from_slice(&frame.payload);
                self.stdin.arrived.notify_one();
            }
            Kind::Eof if Pipe::from_payload(&frame.payload)? == Pipe::Stdin => {
                self.stdin.ended.set(true);
                self.stdin.arrived.notify_one();
            }
            Kind::Credit => {
                let credit = Credit::from_payload(&frame.payload)?;
                if credit.pipe != Pipe::Stdin {
                    let output = self.output(credit.pipe);
                    output.window.borrow_mut().grant(credit.bytes)?;
                    output.granted.notify_one();
                }
            }
            Kind::Signal => self.push(Control::Signal(signal_from_payload(&frame.payload)?)),
            Kind::Detach => self.push(Control::Detach),
            Kind::Resize => self.push(Control::Resize(Resize::from_payload(&frame.payload)?)),
            Kind::Cancel => self.cancel.cancel(),
            _ => {}
        }
        Ok(())
    }

    fn push(&self, control: Control) {
        let mut controls = self.controls.borrow_mut();
        if controls.len() == MAX_CONTROLS {
            controls.pop_front();
        }
        controls.push_back(control);
        self.controlled.notify_one();
    }

    fn output(&self, pipe: Pipe) -> &Output {
        if pipe == Pipe::Stderr {
            &self.stderr
        } else {
            &self.stdout
        }
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), HostGone> {
        self.outbox
            .send(Outgoing::Frames(bytes))
            .await
            .map_err(|_| HostGone)
    }

    async fn frame(&self, kind: Kind, payload: &[u8]) -> Result<(), HostGone> {
        let mut bytes = Vec::new();
        encode(&mut bytes, kind, self.id, payload).map_err(|_| HostGone)?;
        self.send(bytes).await
    }
}

/// There is nobody to send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host is gone")]
pub struct HostGone;

/// A stream that several tasks of one request share.
pub type SharedStream = Rc<Stream>;

#[cfg(test)]
impl Stream {
    /// A stream without a connection, and what is sent on it.
    pub(crate) fn alone() -> (SharedStream, Sent) {
        let (outbox, sent) = mpsc::channel(1024);
        (Rc::new(Self::new(1, outbox)), Sent(sent))
    }

    /// Has the host say something.
    pub(crate) fn hear(&self, control: Control) {
        self.push(control);
    }
}

/// What a test finds sent.
#[cfg(test)]
pub(crate) struct Sent(mpsc::Receiver<Outgoing>);

#[cfg(test)]
impl Sent {
    /// Everything so far.
    pub(crate) fn frames(&mut self) -> Vec<Frame> {
        let mut decoder = vdkr_core::channel::Decoder::new();
        while let Ok(Outgoing::Frames(bytes)) = self.0.try_recv() {
            decoder.push(&bytes);
        }
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }
}
