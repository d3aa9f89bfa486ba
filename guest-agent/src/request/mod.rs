//! What a host may ask of the agent: one file per request.

use std::{
    cell::Cell,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    task::{JoinSet, LocalSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vdkr_core::channel::message::{
    Done, Failure, FailureCode, GuestHello, HostHello, Reply, Request,
};

use crate::{
    args::ServeOptions,
    boot::clock,
    channel::{Address, LocalFuture, Service, listen, stream::SharedStream},
    container::Book,
    machine::{self, BootReport},
    store::Store,
};

pub mod add;
pub mod admit;
pub mod container;
pub mod export;
pub mod images;
pub mod info;
pub mod inspect;
pub mod layers;
pub mod prune;
pub mod pull;
pub mod remove;
pub mod run;
pub mod shutdown;
pub mod tag;
pub mod usage;

/// How long requests may take to end once the agent is told to stop.
const STOP_TIME: Duration = Duration::from_secs(10);
/// Threads for unpacking and waiting; the machine is small.
const BLOCKING_THREADS: usize = 8;

/// The agent's whole state.
pub struct Agent {
    /// The images, or why there are none.
    store: Result<Store, Failure>,
    state_dir: PathBuf,
    report: BootReport,
    own_machine: bool,
    /// Ends the agent.
    stop: CancellationToken,
    /// Cancels what runs, before the end.
    stopping: CancellationToken,
    /// Requests and what they left to be cleaned up.
    tasks: TaskTracker,
    /// The containers.
    book: Book,
    greeted: Cell<bool>,
}

/// Serves hosts until one asks for the end, or a signal does.
pub fn serve(options: &ServeOptions) -> io::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let agent = Rc::new(Agent::open(options)?);
        if !options.own_machine {
            // A machine of its own is told by the host whether it stays.
            let agent = agent.clone();
            agent
                .clone()
                .tasks
                .spawn_local(async move { crate::container::life::resume(&agent).await });
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let result = tokio::select! {
            ended = listen_all(options.channels.clone(), &agent) => ended,
            () = agent.stop.cancelled() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        agent.end_requests().await;
        result
    });
    for channel in &options.channels {
        if let (Address::Unix(path), true) = (channel, result.is_ok()) {
            let _ = fs::remove_file(path);
        }
    }
    result
}

/// Listens on every channel until one of them fails.
async fn listen_all(channels: Vec<Address>, agent: &Rc<Agent>) -> io::Result<()> {
    let mut listeners = JoinSet::new();
    for channel in channels {
        let agent = agent.clone();
        listeners.spawn_local(async move {
            listen(&channel, agent)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("{channel}: {error}")))
        });
    }
    while let Some(ended) = listeners.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

impl Agent {
    fn open(options: &ServeOptions) -> io::Result<Self> {
        let report = match &options.boot_report {
            Some(path) => BootReport::load(path)?,
            None => BootReport {
                state: "disk".to_owned(),
                ..BootReport::default()
            },
        };
        let store = match &report.problem {
            Some(problem) => Err(Failure::new(FailureCode::Failed, problem.clone())),
            None => Store::open(&options.state).map_err(Failure::from),
        };
        let containers = options.state.join("containers");
        let (book, leftovers) = match &store {
            Ok(store) => Book::open(containers, store)?,
            Err(_) => (Book::empty(containers), Vec::new()),
        };
        let agent = Self {
            store,
            state_dir: options.state.clone(),
            report,
            own_machine: options.own_machine,
            stop: CancellationToken::new(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            book,
            greeted: Cell::new(false),
        };
        agent.tasks.spawn_blocking(move || {
            for dir in leftovers {
                if let Err(error) = fs::remove_dir_all(&dir) {
                    eprintln!("vdkr-agent: cannot remove {}: {error}", dir.display());
                }
            }
        });
        Ok(agent)
    }

    /// The images, or the failure that the host gets.
    pub fn store(&self) -> Result<&Store, Failure> {
        self.store.as_ref().map_err(Clone::clone)
    }

    /// The containers.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// What is under way: requests, containers, cleaning.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Whether the end has begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Fires when the end begins.
    pub fn stopping(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.stopping.clone().cancelled_owned())
    }

    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Cancels every request and waits until they have cleaned up.
    async fn end_requests(&self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_TIME, self.tasks.wait())
            .await
            .is_err()
        {
            eprintln!("vdkr-agent: {} requests do not end", self.tasks.len());
        }
    }

    async fn carry_out(self: Rc<Self>, request: Request, stream: SharedStream) -> Done {
        if self.stopping.is_cancelled() {
            return Err(Failure::new(
                FailureCode::Unreachable,
                "the agent is shutting down",
            ));
        }
        match request {
            Request::Admit(request) => admit::admit(&self, &request).await,
            Request::Layers { image, settings } => {
                layers::layers(&self, image.as_deref(), &settings)
            }
            Request::Mount { layers } => layers::mount(&self, layers).await,
            Request::Pull(request) => pull::pull(&self, &request, &stream).await,
            Request::Run(request) => run::run(&self, &request, &stream).await,
            Request::Container(request) => container::carry_out(&self, request, &stream).await,
            Request::Images => images::images(&self),
            Request::Inspect { names } => inspect::inspect(&self, &names),
            Request::Remove { names, force } => remove::remove(&self, &names, force).await,
            Request::Tag { source, target } => tag::tag(&self, &source, &target),
            Request::Info => info::info(&self),
            Request::AddImage(request) => add::image(&self, request, &stream).await,
            Request::AddLayer { diff_id } => add::layer(&self, diff_id, &stream).await,
            Request::Export { names } => export::export(&self, names).await,
            Request::ReadBlob { digest } => export::read_blob(&self, &digest, &stream).await,
            Request::Prune(request) => prune::prune(&self, request).await,
            Request::Usage => usage::usage(&self),
            Request::Shutdown => shutdown::shutdown(&self).await,
            Request::Unknown => Err(Failure::new(
                FailureCode::Unsupported,
                "the agent does not know this request",
            )
            .with_hint("use a host program and an agent of the same release")),
        }
    }
}

impl Service for Agent {
    fn greet(&self, hello: &HostHello) -> GuestHello {
        if self.own_machine {
            let entropy = hello
                .entropy()
                .map_or(Ok(()), |bytes| clock::add_entropy(&bytes));
            if let Err(error) = clock::set(hello.now_unix_ms).and(entropy) {
                eprintln!("vdkr-agent: clock and entropy of the host: {error}");
            }
        }
        let mut report = self.report.clone();
        if !self.greeted.replace(true) {
            report.stage("hello");
        }
        GuestHello {
            software: machine::SOFTWARE.to_owned(),
            arch: machine::architecture().to_owned(),
            boot_ms: machine::uptime().as_millis() as u64,
            stages: report.stages,
            state: report.state,
            engine: "native".to_owned(),
            ..GuestHello::default()
        }
    }

    fn handle(self: Rc<Self>, request: Request, stream: SharedStream) -> LocalFuture<Done> {
        let tasks = self.tasks.clone();
        Box::pin(tasks.track_future(async move {
            // The end of the agent is the end of every request, but not of the one that asks for it.
            let cancel = stream.cancelled().clone();
            let stopping = self.stopping.clone();
            let work = self.carry_out(request, stream);
            tokio::pin!(work);
            tokio::select! {
                done = &mut work => return done,
                () = stopping.cancelled() => cancel.cancel(),
            }
            work.await
        }))
    }

    fn answered(&self, done: &Done) {
        if matches!(done, Ok(Reply::Bye)) {
            self.stop.cancel();
        }
    }
}

/// The answer to a request that the host no longer wants.
fn cancelled() -> Failure {
    Failure::new(FailureCode::Cancelled, "cancelled")
}
