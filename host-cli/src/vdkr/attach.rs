//! The user's streams, signals and terminal, bound to a process in the machine.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use vdkr_core::{
    channel::{
        Pipe,
        message::{ContainerReply, Done, Event, Reply, Request},
    },
    container::detach::{self, DetachKeys, DetachWatch},
};

use super::{
    command::wrong_reply,
    error::{Error, Result},
    news::News,
    session::{Session, interruptible},
    terminal::{self, RawMode},
    words::say,
};
use crate::vm::{
    channel::{Call, CallSender, ChannelError, Incoming},
    processor,
};

/// Status of a command whose process never ran.
pub const FAILED: u8 = 125;
/// Status of a process that SIGILL has ended.
const ILLEGAL_INSTRUCTION: i32 = 128 + 4;
/// So many signals from the user mean that the container does not listen to them.
const PATIENCE: u32 = 3;
/// How long a cancelled container may take to be gone.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// How a user is bound to a process.
#[derive(Clone, Debug)]
pub struct Terms {
    /// It has a terminal.
    pub tty: bool,
    /// Standard input is passed on.
    pub interactive: bool,
    /// Signals are passed on.
    pub sig_proxy: bool,
    /// What the user types to leave it alone with a terminal.
    pub detach_keys: DetachKeys,
}

impl Terms {
    /// The keys of an option, or docker's.
    pub fn keys(option: Option<&str>) -> Result<DetachKeys> {
        DetachKeys::parse(option.unwrap_or(detach::DEFAULT))
            .map_err(|error| Error::usage(error.to_string()))
    }
}

/// What ends the waiting for the container.
enum End {
    Done(Done),
    Lost(ChannelError),
    /// Nobody reads standard output any more.
    OutputClosed,
    /// The user insists.
    Interrupted(SignalKind),
    /// The user leaves it alone.
    Detached,
}

/// Sends a request whose answer is a process's status, and carries the user's streams, signals and
/// window size until then.
pub async fn attach(
    session: &mut Session,
    request: &Request,
    terms: Terms,
    mut news: News,
) -> Result<u8> {
    let mut signals = Signals::new(terms.tty)?;
    let mut call = match session.connection.call(request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let mut output = Output::start(call.sender());
    let (leave, mut left) = mpsc::channel(1);
    let sig_proxy = terms.sig_proxy;
    let mut attached = Attached {
        terms,
        sender: call.sender(),
        leave,
        input: None,
        raw: None,
    };
    let mut interrupts = 0;
    let end = loop {
        tokio::select! {
            incoming = call.next() => match incoming {
                Ok(Incoming::Event(event)) => {
                    if matches!(event, Event::Started { .. }) {
                        attached.begin().await?;
                    }
                    news.show(&event);
                }
                Ok(Incoming::Data(pipe, bytes)) => output.write(pipe, bytes),
                Ok(Incoming::Done(done)) => break End::Done(done),
                Err(error) => break End::Lost(error),
            },
            closed = output.closed() => match closed {
                Ok(()) => break End::OutputClosed,
                Err(error) => return Err(Error::from(error)),
            },
            Some(()) = left.recv() => break End::Detached,
            kind = signals.next() => {
                if kind == SignalKind::window_change() {
                    attached.resize().await;
                    continue;
                }
                let asks_to_end = kind == SignalKind::interrupt() || kind == SignalKind::terminate();
                interrupts += u32::from(asks_to_end);
                if !attached.running() || !sig_proxy || interrupts >= PATIENCE {
                    break End::Interrupted(kind);
                }
                attached.signal(kind).await;
            }
        }
    };
    let sender = attached.detach();
    match end {
        End::Done(done) => {
            // The rest of the output may be waiting for its reader, and the user for neither.
            tokio::select! {
                result = output.finish() => result?,
                kind = signals.interrupt() => return Err(Error::interrupted(kind)),
            }
            match session.answer(Ok(done)).await? {
                Reply::Ran { status } => {
                    if status == ILLEGAL_INSTRUCTION
                        && let Some(advice) = session.cpu().and_then(processor::advice)
                    {
                        say(&advice);
                    }
                    Ok(u8::try_from(status & 0xff).unwrap_or(FAILED))
                }
                other => Err(wrong_reply(&other)),
            }
        }
        End::Lost(error) => {
            // What came before the end is still the user's.
            let _ = timeout(CANCEL_PATIENCE, output.finish()).await;
            Err(session.explain(error).await)
        }
        End::Detached => {
            if sender.detach().await.is_ok() {
                gone(&sender, &mut call).await;
            }
            let _ = timeout(CANCEL_PATIENCE, output.finish()).await;
            eprintln!();
            say("detached");
            if session.adoption().is_none() {
                say(
                    "the machine was started for this command alone, and the container ends with \
                     it; keep one with: vdkr memres start",
                );
            }
            Ok(0)
        }
        End::OutputClosed => {
            cancel(&sender, &mut call).await;
            Ok(0)
        }
        End::Interrupted(kind) => {
            cancel(&sender, &mut call).await;
            Err(Error::interrupted(kind))
        }
    }
}

/// Sends a request that leaves a process behind, tells what happens meanwhile, and gives the answer.
pub async fn ask(session: &mut Session, request: &Request, news: &mut News) -> Result<Reply> {
    let mut call = match session.connection.call(request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let work = async {
        loop {
            match call.next().await {
                Ok(Incoming::Event(event)) => news.show(&event),
                Ok(Incoming::Data(..)) => {}
                Ok(Incoming::Done(done)) => return Ok(Ok(done)),
                Err(error) => return Ok(Err(error)),
            }
        }
    };
    let done = interruptible(work).await?;
    session.answer(done).await
}

/// Prints what a request gives on its output streams, until it is done or the user has seen enough.
pub async fn show(session: &mut Session, request: &Request) -> Result<u8> {
    let mut signals = Signals::new(false)?;
    let mut call = match session.connection.call(request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let mut output = Output::start(call.sender());
    let end = loop {
        tokio::select! {
            incoming = call.next() => match incoming {
                Ok(Incoming::Event(_)) => {}
                Ok(Incoming::Data(pipe, bytes)) => output.write(pipe, bytes),
                Ok(Incoming::Done(done)) => break Ok(done),
                Err(error) => break Err(error),
            },
            closed = output.closed() => {
                cancel(&call.sender(), &mut call).await;
                return closed.map(|()| 0).map_err(Error::from);
            }
            kind = signals.interrupt() => {
                cancel(&call.sender(), &mut call).await;
                return Err(Error::interrupted(kind));
            }
        }
    };
    tokio::select! {
        result = output.finish() => result?,
        kind = signals.interrupt() => return Err(Error::interrupted(kind)),
    }
    match session.answer(end).await? {
        Reply::Container(ContainerReply::Done) => Ok(0),
        other => Err(wrong_reply(&other)),
    }
}

/// Has the container ended, and throws away what it still says.
async fn cancel(sender: &CallSender, call: &mut Call) {
    if sender.cancel().await.is_ok() {
        gone(sender, call).await;
    }
}

/// Waits for the answer, and throws away what comes before it.
async fn gone(sender: &CallSender, call: &mut Call) {
    let gone = async {
        while let Ok(incoming) = call.next().await {
            match incoming {
                Incoming::Done(_) => return,
                Incoming::Data(pipe, bytes) => {
                    if sender.consumed(pipe, bytes.len()).await.is_err() {
                        return;
                    }
                }
                Incoming::Event(_) => {}
            }
        }
    };
    let _ = timeout(CANCEL_PATIENCE, gone).await;
}

/// The user's side of a container that runs.
struct Attached {
    terms: Terms,
    sender: CallSender,
    leave: mpsc::Sender<()>,
    input: Option<JoinHandle<()>>,
    raw: Option<RawMode>,
}

impl Attached {
    /// The container's process runs: from now on keys, input and signals are its own.
    async fn begin(&mut self) -> Result<()> {
        if self.running() {
            return Ok(());
        }
        if self.terms.tty {
            self.resize().await;
            if self.terms.interactive {
                self.raw = RawMode::enter()?;
            }
        }
        self.input = Some(if self.terms.interactive {
            // Without a terminal every byte is data.
            let keys = match self.terms.tty {
                true => self.terms.detach_keys.clone(),
                false => DetachKeys::default(),
            };
            let watch = DetachWatch::new(keys);
            tokio::spawn(copy_input(self.sender.clone(), watch, self.leave.clone()))
        } else {
            tokio::spawn(async {})
        });
        Ok(())
    }

    fn running(&self) -> bool {
        self.input.is_some()
    }

    async fn resize(&self) {
        if let (true, Some((rows, cols))) = (self.terms.tty, terminal::size()) {
            // A connection that is gone shows where its answers are awaited.
            let _ = self.sender.resize(rows, cols).await;
        }
    }

    async fn signal(&self, kind: SignalKind) {
        if let Ok(number) = u8::try_from(kind.as_raw_value()) {
            let _ = self.sender.signal(number).await;
        }
    }

    /// Gives the terminal back.
    fn detach(self) -> CallSender {
        if let Some(input) = &self.input {
            input.abort();
        }
        self.sender
    }
}

async fn copy_input(sender: CallSender, mut watch: DetachWatch, leave: mpsc::Sender<()>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let Ok(length @ 1..) = stdin.read(&mut buffer).await else {
            watch.rest(&mut bytes);
            if bytes.is_empty() || matches!(sender.stdin(&bytes).await, Ok(true)) {
                let _ = sender.end_stdin().await;
            }
            return;
        };
        let typed = buffer.get(..length).unwrap_or_default();
        let leaves = watch.push(typed, &mut bytes);
        if !bytes.is_empty() && !matches!(sender.stdin(&bytes).await, Ok(true)) {
            return;
        }
        if leaves {
            // The receiver is gone when the container has ended meanwhile.
            let _ = leave.send(()).await;
            return;
        }
    }
}

/// Writes output in the order in which it came, apart from everything else, so that a reader who
/// takes his time holds up nothing but the container.
struct Output {
    queue: Option<mpsc::UnboundedSender<(Pipe, Vec<u8>)>>,
    writer: JoinHandle<io::Result<()>>,
}

impl Output {
    fn start(sender: CallSender) -> Self {
        // What waits here is bounded by the credit that the agent has.
        let (queue, pieces) = mpsc::unbounded_channel();
        Self {
            queue: Some(queue),
            writer: tokio::spawn(write_output(pieces, sender)),
        }
    }

    fn write(&self, pipe: Pipe, bytes: Vec<u8>) {
        if let Some(queue) = &self.queue {
            // Closed when the writer has failed, which is noticed by `closed`.
            let _ = queue.send((pipe, bytes));
        }
    }

    /// Waits until standard output cannot be written to any more: `Ok` when its reader has left.
    async fn closed(&mut self) -> io::Result<()> {
        let result = (&mut self.writer).await;
        self.queue = None;
        match result {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until everything is written.
    async fn finish(&mut self) -> io::Result<()> {
        self.queue = None;
        match (&mut self.writer).await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

async fn write_output(
    mut pieces: mpsc::UnboundedReceiver<(Pipe, Vec<u8>)>,
    sender: CallSender,
) -> io::Result<()> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut stderr_open = true;
    while let Some((pipe, bytes)) = pieces.recv().await {
        if pipe == Pipe::Stderr {
            // Words without a reader are lost; the data goes on.
            stderr_open = stderr_open
                && stderr.write_all(&bytes).await.is_ok()
                && stderr.flush().await.is_ok();
        } else {
            stdout.write_all(&bytes).await?;
            stdout.flush().await?;
        }
        // The end of the connection is told by those who wait for its answer.
        let _ = sender.consumed(pipe, bytes.len()).await;
    }
    Ok(())
}

/// Signals that are the container's business.
struct Signals {
    streams: Vec<(SignalKind, Signal)>,
}

impl Signals {
    fn new(tty: bool) -> io::Result<Self> {
        let mut kinds = vec![
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        if tty {
            kinds.push(SignalKind::window_change());
        }
        let streams = kinds.into_iter().map(|kind| Ok((kind, signal(kind)?)));
        Ok(Self {
            streams: streams.collect::<io::Result<_>>()?,
        })
    }

    /// The next signal of any kind.
    async fn next(&mut self) -> SignalKind {
        std::future::poll_fn(|context| {
            for (kind, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*kind);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// The next signal that asks to end.
    async fn interrupt(&mut self) -> SignalKind {
        loop {
            let kind = self.next().await;
            if [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ]
            .contains(&kind)
            {
                return kind;
            }
        }
    }
}
