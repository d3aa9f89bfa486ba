//! The agent's own commands as a host of the agent: of the service when one runs on this state
//! directory, else of an agent within this process, for as long as the command lasts.
//!
//! So a board's user and its host see the same images and containers, and nobody takes the state
//! from the other.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::LocalSet,
};
use vdkr_core::{
    channel::{
        Assembler, Decoder, Frame, Kind, MAX_PAYLOAD, Pipe, ReceiveWindow, SendWindow, SyncMarker,
        SyncScanner, encode,
        frame::{Credit, signal_payload},
        message::{
            Done, Event, Failure, FailureCode, GuestHello, HostHello, LogLevel, Message as _,
            Reply, Request, negotiate,
        },
    },
    engine::EngineKind,
};

use super::CommandError;
use crate::{
    args::{EngineWish, ServeOptions},
    channel::serve,
    machine,
    request::{self, Agent},
};

/// Name of the service's socket in the state directory.
pub const SOCKET: &str = "agent.sock";

/// The socket of the service on a state directory.
pub fn socket(state: &Path) -> PathBuf {
    state.join(SOCKET)
}

/// Whether a service runs on a state directory.
pub fn is_served(state: &Path) -> bool {
    StdStream::connect(socket(state)).is_ok()
}

/// The answer does not belong to the request.
pub fn wrong_reply() -> CommandError {
    CommandError::Failed("the service gave an unexpected answer; is it of another release?".into())
}

/// Does something with the agent of a state directory. Another engine keeps everything itself: for that
/// one no service is needed, nor asked.
pub fn within<T>(
    state: &Path,
    engine: &EngineWish,
    work: impl AsyncFnOnce(&mut Local) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let failed = |error: io::Error| CommandError::Failed(format!("cannot start: {error}"));
    let runtime = request::runtime().map_err(failed)?;
    let native = engine.choice()?.kind == EngineKind::Native;
    let result = LocalSet::new().block_on(&runtime, async {
        if native && let Ok(pipe) = UnixStream::connect(socket(state)).await {
            let (mut local, its) = Local::greet(pipe).await?;
            if its != EngineKind::Native.as_str() {
                return Err(CommandError::Failed(format!(
                    "the service on {} uses {its}, and not the agent's own store: use --engine \
                     {its}, or stop the service",
                    state.display()
                )));
            }
            return work(&mut local).await;
        }
        let mut options = ServeOptions::of_state(state.to_owned());
        options.engine = engine.clone();
        let agent = Rc::new(Agent::open(&options).map_err(failed)?);
        if native {
            agent.store()?;
        }
        let (mine, its) = UnixStream::pair().map_err(failed)?;
        let service = agent.clone();
        tokio::task::spawn_local(async move { serve(its, service).await });
        let (mut local, _) = Local::greet(mine).await?;
        let result = work(&mut local).await;
        agent.end_requests().await;
        result
    });
    // A thread that waits for input would be waited for.
    runtime.shutdown_background();
    result
}

/// What a request has from this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// Its standard input.
    pub stdin: bool,
    /// Its signals.
    pub signals: bool,
}

/// A connection to an agent, for one request after the other.
pub struct Local {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    decoder: Decoder,
    assembler: Assembler,
    buffer: Vec<u8>,
    /// The one stream that is open.
    stream: u32,
}

impl Local {
    /// Greets an agent; gives the name of its engine as well.
    async fn greet(pipe: UnixStream) -> Result<(Self, String), CommandError> {
        let (reader, writer) = pipe.into_split();
        let mut local = Self {
            reader,
            writer,
            decoder: Decoder::new(),
            assembler: Assembler::new(),
            buffer: vec![0; 64 * 1024],
            stream: 0,
        };
        let mut random = [0; 40];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| lost(&error))?;
        let (entropy, nonce) = random.split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
        let marker = SyncMarker::new(nonce.try_into().unwrap_or_default());
        local.send(&marker.to_bytes()).await?;
        let mut scanner = SyncScanner::exactly(marker);
        loop {
            let length = local.read().await?;
            if let Some((_, rest)) = scanner.push(&local.buffer[..length]) {
                local.decoder.push(rest);
                break;
            }
        }
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        HostHello::new(machine::SOFTWARE, now, entropy)
            .encode(&mut bytes, 0)
            .map_err(|error| lost(&error))?;
        local.send(&bytes).await?;
        let frame = local.next().await?;
        let hello = GuestHello::decode(&frame.payload).map_err(|error| lost(&error))?;
        negotiate(hello.min_version, hello.version).map_err(|error| lost(&error))?;
        Ok((local, hello.engine))
    }

    /// Sends a request, shows what comes of it, and gives its answer.
    pub async fn ask(&mut self, request: &Request, terms: Terms) -> Result<Reply, CommandError> {
        self.stream += 1;
        let stream = self.stream;
        let mut bytes = Vec::new();
        request
            .encode(&mut bytes, stream)
            .map_err(|error| lost(&error))?;
        self.send(&bytes).await?;
        let mut windows = [ReceiveWindow::new(), ReceiveWindow::new()];
        let mut credit = SendWindow::new();
        let mut input = Input::new(terms.stdin);
        let mut signals = Signals::new(terms.signals).map_err(|error| lost(&error))?;
        loop {
            tokio::select! {
                frame = Self::frame(&mut self.reader, &mut self.decoder, &mut self.assembler, &mut self.buffer) => {
                    if let Some(done) = self.take(frame?, &mut windows, &mut credit).await? {
                        return Ok(done?);
                    }
                }
                wanted = input.next(credit.available()) => {
                    let mut bytes = Vec::new();
                    match wanted {
                        Some(data) => {
                            credit.reserve(data.len());
                            encode(&mut bytes, Kind::Stdin, stream, &data)
                        }
                        None => encode(&mut bytes, Kind::Eof, stream, &Pipe::Stdin.to_payload()),
                    }
                    .map_err(|error| lost(&error))?;
                    self.send(&bytes).await?;
                }
                number = signals.next() => {
                    let mut bytes = Vec::new();
                    encode(&mut bytes, Kind::Signal, stream, &signal_payload(number))
                        .map_err(|error| lost(&error))?;
                    self.send(&bytes).await?;
                }
            }
        }
    }

    async fn take(
        &mut self,
        frame: Frame,
        windows: &mut [ReceiveWindow; 2],
        credit: &mut SendWindow,
    ) -> Result<Option<Done>, CommandError> {
        if frame.stream != self.stream {
            return Ok(None);
        }
        match frame.kind {
            Kind::Done => {
                return Done::decode(&frame.payload)
                    .map(Some)
                    .map_err(|error| lost(&error));
            }
            Kind::Event => {
                if let Ok(event) = Event::decode(&frame.payload) {
                    say(event);
                }
            }
            Kind::Credit => {
                let granted = Credit::from_payload(&frame.payload).map_err(|error| lost(&error))?;
                if granted.pipe == Pipe::Stdin {
                    credit.grant(granted.bytes).map_err(|error| lost(&error))?;
                }
            }
            Kind::Stdout | Kind::Stderr => {
                let is_error = frame.kind == Kind::Stderr;
                let window = &mut windows[usize::from(is_error)];
                window
                    .received(frame.payload.len())
                    .map_err(|error| lost(&error))?;
                // Nobody who reads is no reason to end the container.
                let _ = match is_error {
                    true => io::stderr().write_all(&frame.payload),
                    false => {
                        let mut out = io::stdout();
                        out.write_all(&frame.payload).and_then(|()| out.flush())
                    }
                };
                let pipe = if is_error { Pipe::Stderr } else { Pipe::Stdout };
                if let Some(bytes) = window.consumed(frame.payload.len()) {
                    let mut frame = Vec::new();
                    let payload = Credit { pipe, bytes }.to_payload();
                    encode(&mut frame, Kind::Credit, self.stream, &payload)
                        .map_err(|error| lost(&error))?;
                    self.send(&frame).await?;
                }
            }
            _ => {}
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Frame, CommandError> {
        Self::frame(
            &mut self.reader,
            &mut self.decoder,
            &mut self.assembler,
            &mut self.buffer,
        )
        .await
    }

    /// The next message. Safe to abandon at its await.
    async fn frame(
        reader: &mut OwnedReadHalf,
        decoder: &mut Decoder,
        assembler: &mut Assembler,
        buffer: &mut [u8],
    ) -> Result<Frame, CommandError> {
        loop {
            while let Some(frame) = decoder.next().map_err(|error| lost(&error))? {
                if let Some(whole) = assembler.push(frame).map_err(|error| lost(&error))? {
                    return Ok(whole);
                }
            }
            let length = reader.read(buffer).await.map_err(|error| lost(&error))?;
            if length == 0 {
                return Err(gone());
            }
            decoder.push(&buffer[..length]);
        }
    }

    async fn read(&mut self) -> Result<usize, CommandError> {
        match self.reader.read(&mut self.buffer).await {
            Ok(0) => Err(gone()),
            Ok(length) => Ok(length),
            Err(error) => Err(lost(&error)),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        self.writer
            .write_all(bytes)
            .await
            .map_err(|error| lost(&error))
    }
}

fn gone() -> CommandError {
    Failure::new(FailureCode::Unreachable, "the service has ended meanwhile").into()
}

fn lost(error: &dyn std::fmt::Display) -> CommandError {
    Failure::new(
        FailureCode::Unreachable,
        format!("the connection to the service failed: {error}"),
    )
    .into()
}

/// The standard input of this process, read by a thread of its own.
struct Input {
    pieces: Option<mpsc::Receiver<Vec<u8>>>,
    waiting: Vec<u8>,
}

impl Input {
    fn new(wanted: bool) -> Self {
        let pieces = wanted.then(|| {
            let (sender, pieces) = mpsc::channel(1);
            std::thread::spawn(move || {
                use std::io::Read as _;
                let mut buffer = vec![0; MAX_PAYLOAD];
                while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
                    if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            });
            pieces
        });
        Self {
            pieces,
            waiting: Vec::new(),
        }
    }

    /// The next piece that may be sent, `None` at the end, once; then it waits for ever. Safe to
    /// abandon at its await.
    async fn next(&mut self, allowed: usize) -> Option<Vec<u8>> {
        if self.waiting.is_empty() {
            let Some(pieces) = &mut self.pieces else {
                return std::future::pending().await;
            };
            match pieces.recv().await {
                Some(piece) => self.waiting = piece,
                None => {
                    self.pieces = None;
                    return None;
                }
            }
        }
        if allowed == 0 {
            return std::future::pending().await;
        }
        let later = self.waiting.split_off(allowed.min(self.waiting.len()));
        Some(std::mem::replace(&mut self.waiting, later))
    }
}

/// Signals that a container gets in the place of this process.
struct Signals(Vec<(u8, tokio::signal::unix::Signal)>);

impl Signals {
    fn new(wanted: bool) -> io::Result<Self> {
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
        ];
        let kinds = kinds.into_iter().filter(|_| wanted);
        let signals = kinds.map(|kind| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or(15);
            Ok((number, signal(kind)?))
        });
        Ok(Self(signals.collect::<io::Result<_>>()?))
    }

    async fn next(&mut self) -> u8 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

fn say(event: Event) {
    match event {
        Event::Trying { reference } => eprintln!("asking for {reference}"),
        Event::Log { level, message } => match level {
            LogLevel::Warn => eprintln!("warning: {message}"),
            LogLevel::Info => eprintln!("{message}"),
            LogLevel::Debug => {}
        },
        _ => {}
    }
}
