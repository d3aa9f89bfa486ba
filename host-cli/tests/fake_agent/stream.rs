//! One stream at the fake agent, with the rules of the protocol.

use std::sync::Arc;

use tokio::{
    io::AsyncWriteExt as _,
    net::unix::OwnedWriteHalf,
    sync::{Mutex as AsyncMutex, mpsc},
};
use vdkr_core::channel::{
    Frame, Kind, Pipe, ReceiveWindow, SendWindow, encode, encode_data,
    frame::{Credit, Resize, signal_from_payload},
    message::{Done, Event, Message as _},
};

pub(super) type Writer = Arc<AsyncMutex<OwnedWriteHalf>>;

/// One stream at the agent: what came for it.
pub(super) struct Stream {
    pub(super) number: u32,
    pub(super) frames: mpsc::UnboundedReceiver<Frame>,
    pub(super) writer: Writer,
    windows: [SendWindow; 2],
    input: ReceiveWindow,
    pub(super) stdin: Vec<u8>,
    pub(super) stdin_ended: bool,
    pub(super) signals: Vec<u8>,
    pub(super) sizes: Vec<(u16, u16)>,
    pub(super) cancelled: bool,
}

impl Stream {
    pub(super) fn new(number: u32, frames: mpsc::UnboundedReceiver<Frame>, writer: Writer) -> Self {
        Self {
            number,
            frames,
            writer,
            windows: [SendWindow::new(); 2],
            input: ReceiveWindow::new(),
            stdin: Vec::new(),
            stdin_ended: false,
            signals: Vec::new(),
            sizes: Vec::new(),
            cancelled: false,
        }
    }

    async fn write(&self, bytes: &[u8]) {
        let _ = self.writer.lock().await.write_all(bytes).await;
    }

    pub(super) async fn event(&self, event: &Event) {
        let mut bytes = Vec::new();
        event.encode(&mut bytes, self.number).unwrap();
        self.write(&bytes).await;
    }

    pub(super) async fn done(&self, done: &Done) {
        let mut bytes = Vec::new();
        done.encode(&mut bytes, self.number).unwrap();
        self.write(&bytes).await;
    }

    /// Says that input was used.
    pub(super) async fn consumed(&mut self, bytes: usize) {
        if let Some(bytes) = self.input.consumed(bytes) {
            let mut frame = Vec::new();
            let credit = Credit {
                pipe: Pipe::Stdin,
                bytes,
            };
            encode(&mut frame, Kind::Credit, self.number, &credit.to_payload()).unwrap();
            self.write(&frame).await;
        }
    }

    /// Sends output within the credit; `false` when the host cancelled.
    pub(super) async fn output(&mut self, pipe: Pipe, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && !self.cancelled {
            let window = &mut self.windows[usize::from(pipe == Pipe::Stderr)];
            let (now, later) = bytes.split_at(window.reserve(bytes.len().min(32 * 1024)));
            bytes = later;
            if now.is_empty() {
                if !self.wait().await {
                    return false;
                }
                continue;
            }
            let mut frames = Vec::new();
            encode_data(&mut frames, pipe, self.number, now);
            self.write(&frames).await;
            while let Ok(frame) = self.frames.try_recv() {
                self.take(&frame);
            }
        }
        !self.cancelled
    }

    /// Takes the next frame of the host; `false` when there will be none.
    pub(super) async fn wait(&mut self) -> bool {
        let Some(frame) = self.frames.recv().await else {
            return false;
        };
        self.take(&frame);
        true
    }

    fn take(&mut self, frame: &Frame) {
        match frame.kind {
            Kind::Stdin => {
                self.input
                    .received(frame.payload.len())
                    .expect("input within the credit");
                self.stdin.extend(&frame.payload);
            }
            Kind::Eof => self.stdin_ended = true,
            Kind::Credit => {
                let credit = Credit::from_payload(&frame.payload).unwrap();
                self.windows[usize::from(credit.pipe == Pipe::Stderr)]
                    .grant(credit.bytes)
                    .unwrap();
            }
            Kind::Signal => self
                .signals
                .push(signal_from_payload(&frame.payload).unwrap()),
            Kind::Resize => {
                let size = Resize::from_payload(&frame.payload).unwrap();
                self.sizes.push((size.rows, size.cols));
            }
            Kind::Cancel => self.cancelled = true,
            _ => {}
        }
    }
}
