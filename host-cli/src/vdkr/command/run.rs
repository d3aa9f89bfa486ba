//! `vdkr run`: a container on the user's streams.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use vdkr_core::channel::{
    Pipe,
    message::{Done, Event, Reply, Request, RunRequest},
};

use super::wrong_reply;
use crate::{
    out,
    progress::Mode,
    vdkr::{
        environment,
        error::{Error, Result},
        layers,
        news::News,
        registry,
        run_options::{self, HELP, Parsed, RunOptions},
        session::{Session, say, with_session},
        settings::Settings,
        terminal::{self, RawMode},
    },
    vm::channel::{Call, CallSender, ChannelError, Incoming},
};

/// Status of a `run` that failed before the container did anything.
const FAILED: u8 = 125;
/// So many signals from the user mean that the container does not listen to them.
const PATIENCE: u32 = 3;
/// How long a cancelled container may take to be gone.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// Runs a container and returns its status. Wrong settings are a failure of `run` too.
pub async fn run(settings: Result<Settings>, words: Vec<OsString>) -> u8 {
    let status = match settings {
        Ok(settings) => try_run(&settings, words).await,
        Err(error) => Err(error),
    };
    match status {
        Ok(status) => status,
        Err(error) => {
            say(&error.to_string());
            error.signalled().unwrap_or(FAILED)
        }
    }
}

async fn try_run(settings: &Settings, words: Vec<OsString>) -> Result<u8> {
    let options = match run_options::parse(words).map_err(|e| Error::usage(e.to_string()))? {
        Parsed::Run(options) => options,
        Parsed::Help => {
            out!("{}", HELP.trim_end());
            return Ok(0);
        }
    };
    if options.tty && options.interactive && !io::stdin().is_terminal() {
        return Err(Error::usage("the input device is not a TTY"));
    }
    registry::check_name(&options.image)?;
    let registry_settings = registry::for_request(settings)?;
    let env = environment::assemble(&options.env, &|name| std::env::var(name).ok())?;
    with_session(settings, "vdkr run", async |session| {
        let mut request = RunRequest {
            image: registry::translate_name(&options.image),
            args: options.args.clone(),
            entrypoint: options
                .entrypoint
                .clone()
                .map(|program| match program.as_str() {
                    "" => Vec::new(),
                    _ => vec![program],
                }),
            env,
            workdir: options.workdir.clone(),
            user: options.user.clone(),
            hostname: options.hostname.clone(),
            tty: options.tty,
            stdin: options.interactive,
            name: options.name.clone(),
            rm: options.rm,
            read_only: options.read_only,
            pull: options.pull,
            settings: registry_settings,
        };
        let mode = if options.quiet {
            Mode::None
        } else {
            settings.global.progress
        };
        let mut news = News::new(mode, settings.verbose);
        layers::prepare(session, settings, &mut request, &mut news).await?;
        attach(session, &Request::Run(request), &options, news).await
    })
    .await
}

/// What ends the waiting for the container.
enum End {
    Done(Done),
    Lost(ChannelError),
    /// Nobody reads standard output any more.
    OutputClosed,
    /// The user insists.
    Interrupted(SignalKind),
}

async fn attach(
    session: &mut Session,
    request: &Request,
    options: &RunOptions,
    mut news: News,
) -> Result<u8> {
    let mut signals = Signals::new(options.tty)?;
    let mut call = match session.connection.call(request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let mut output = Output::start(call.sender());
    let mut attached = Attached {
        options,
        sender: call.sender(),
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
            kind = signals.next() => {
                if kind == SignalKind::window_change() {
                    attached.resize().await;
                    continue;
                }
                let asks_to_end = kind == SignalKind::interrupt() || kind == SignalKind::terminate();
                interrupts += u32::from(asks_to_end);
                if !attached.running() || !options.sig_proxy || interrupts >= PATIENCE {
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
                Reply::Ran { status } => Ok(u8::try_from(status & 0xff).unwrap_or(FAILED)),
                other => Err(wrong_reply(&other)),
            }
        }
        End::Lost(error) => {
            // What came before the end is still the user's.
            let _ = timeout(CANCEL_PATIENCE, output.finish()).await;
            Err(session.explain(error).await)
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

/// Has the container ended, and throws away what it still says.
async fn cancel(sender: &CallSender, call: &mut Call) {
    if sender.cancel().await.is_err() {
        return;
    }
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
struct Attached<'a> {
    options: &'a RunOptions,
    sender: CallSender,
    input: Option<JoinHandle<()>>,
    raw: Option<RawMode>,
}

impl Attached<'_> {
    /// The container's process runs: from now on keys, input and signals are its own.
    async fn begin(&mut self) -> Result<()> {
        if self.running() {
            return Ok(());
        }
        if self.options.tty {
            self.resize().await;
            if self.options.interactive {
                self.raw = RawMode::enter()?;
            }
        }
        self.input = Some(if self.options.interactive {
            tokio::spawn(copy_input(self.sender.clone()))
        } else {
            tokio::spawn(async {})
        });
        Ok(())
    }

    fn running(&self) -> bool {
        self.input.is_some()
    }

    async fn resize(&self) {
        if let (true, Some((rows, cols))) = (self.options.tty, terminal::size()) {
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

async fn copy_input(sender: CallSender) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let Ok(length @ 1..) = stdin.read(&mut buffer).await else {
            let _ = sender.end_stdin().await;
            return;
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if !matches!(sender.stdin(bytes).await, Ok(true)) {
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
