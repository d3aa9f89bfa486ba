//! What a host may ask of the agent: one file per request.

use std::{
    cell::{OnceCell, RefCell},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    task::{JoinSet, LocalSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vdkr_core::{
    channel::message::{
        Done, Failure, FailureCode, GuestHello, HostHello, PullRequest, Reply, Request, RunRequest,
    },
    engine::EngineKind,
};

use crate::{
    args::ServeOptions,
    baked,
    boot::{
        identity, network,
        state::{self, Wish},
    },
    channel::{Address, LocalFuture, Service, listen, stream::SharedStream},
    command::local,
    container::Book,
    engine::{self, Engine},
    machine::{self, BootReport},
    run::{
        cgroup,
        networks::{Bridge, Networks},
    },
    share::{ShareUse, Shares},
    store::Store,
    volume::Volumes,
};

pub mod add;
pub mod admit;
pub mod container;
pub mod export;
pub mod images;
pub mod info;
pub mod inspect;
pub mod layers;
pub mod mounts;
pub mod prune;
pub mod pull;
pub mod remove;
pub mod run;
pub mod share;
pub mod shutdown;
pub mod tag;
pub mod usage;
pub mod volume;

/// How long requests may take to end once the agent is told to stop.
const STOP_TIME: Duration = Duration::from_secs(10);
/// Threads for unpacking and waiting; the machine is small.
const BLOCKING_THREADS: usize = 8;
/// How many of them are there from the beginning.
const READY_THREADS: usize = 2;
/// Bytes that requests find at hand, which the allocator keeps.
const READY_HEAP: usize = 512 << 10;
/// How long a thread without work stays. Under emulation it takes long to make one.
const THREAD_STAY: Duration = Duration::from_hours(1);

/// The agent's whole state.
pub struct Agent {
    /// The images, or why there are none; not known before the first host of an own machine came.
    store: OnceCell<Result<Store, Failure>>,
    state_dir: PathBuf,
    report: RefCell<BootReport>,
    /// Where the report is kept for an agent that takes this one's place.
    report_path: Option<PathBuf>,
    volumes: Volumes,
    shares: Shares,
    own_machine: bool,
    /// Ends the agent.
    stop: CancellationToken,
    /// Cancels what runs, before the end.
    stopping: CancellationToken,
    /// Requests and what they left to be cleaned up.
    tasks: TaskTracker,
    /// The containers; known when the images are.
    book: OnceCell<Book>,
    /// One greeting at a time: the first one makes the machine ready.
    greeting: tokio::sync::Mutex<()>,
    /// Their networks.
    networks: Rc<Networks>,
    prepared: Prepared,
    /// What takes the place of all that, or why nobody knows.
    engine: Result<Option<Rc<Engine>>, Failure>,
}

/// What a machine of the agent's own has looked up before it listens. A snapshot is taken then, so
/// that no start from it has to do it again.
#[derive(Default)]
struct Prepared {
    disk: Option<PathBuf>,
    gateway: Option<Ipv4Addr>,
}

impl Prepared {
    fn look() -> Self {
        Self {
            disk: state::find(),
            gateway: network::gateway(),
        }
    }
}

/// Serves hosts until one asks for the end, or a signal does.
pub fn serve(options: &ServeOptions) -> io::Result<()> {
    let runtime = runtime()?;
    let local = LocalSet::new();
    let mut channels = options.channels.clone();
    if !options.own_machine {
        channels.push(Address::Unix(local::socket(&options.state)));
        cgroup::take_delegated();
    }
    let result = local.block_on(&runtime, async {
        let agent = Rc::new(Agent::open(options)?);
        if options.own_machine {
            get_warm().await?;
        } else if let Ok(Some(engine)) = &agent.engine {
            // The socket is there all the same.
            fs::create_dir_all(&options.state)?;
            let (engine, stopping) = (engine.clone(), agent.stopping());
            let agent = agent.clone();
            agent.clone().tasks.spawn_local(async move {
                tokio::select! {
                    () = engine::take_over(&agent, &engine) => {}
                    () = stopping => {}
                }
            });
        } else {
            // Another agent may have the state: nobody shall come here for it.
            agent
                .store()
                .map_err(|failure| io::Error::other(failure.message))?;
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
            ended = listen_all(&channels, &agent) => ended,
            () = agent.stop.cancelled() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        agent.end_requests().await;
        result
    });
    for channel in &channels {
        if let (Address::Unix(path), true) = (channel, result.is_ok()) {
            let _ = fs::remove_file(path);
        }
    }
    result
}

/// Does once what a machine that starts from a snapshot would have to do each time: makes the threads
/// that wait for the first work, gets room for the first requests, and maps all pages of the agent.
async fn get_warm() -> io::Result<()> {
    let threads = [(); READY_THREADS].map(|()| tokio::task::spawn_blocking(|| {}));
    for thread in threads {
        thread.await.map_err(io::Error::other)?;
    }
    drop(std::hint::black_box(vec![1_u8; READY_HEAP]));
    // A machine with too little memory for it does without.
    let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT);
    Ok(())
}

/// The threads and timers of an agent.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_STAY)
        .build()
}

/// Listens on every channel. On a machine of the agent's own the end of one is the end: process 1
/// starts the agent again. Elsewhere a channel may be missing, such as vsock on a board; then the
/// others serve, unless none of those is left that were asked for.
async fn listen_all(channels: &[Address], agent: &Rc<Agent>) -> io::Result<()> {
    let mut listeners = JoinSet::new();
    for channel in channels {
        let (channel, agent) = (channel.clone(), agent.clone());
        listeners.spawn_local(async move {
            let ended = listen(&channel, agent).await;
            ended.map_err(|error| io::Error::new(error.kind(), format!("{channel}: {error}")))
        });
    }
    if !agent.own_machine {
        // What cannot be listened on has said so by now, or does so later.
        tokio::task::yield_now().await;
        machine::tell_ready();
    }
    while let Some(ended) = listeners.join_next().await {
        let ended = ended.map_err(io::Error::other)?;
        // One is the agent's own for the commands of this machine.
        if agent.own_machine || listeners.len() < 2 {
            ended?;
        } else if let Err(error) = ended {
            eprintln!("vdkr-agent: going on without {error}");
        }
    }
    Ok(())
}

impl Agent {
    pub(crate) fn open(options: &ServeOptions) -> io::Result<Self> {
        let report = match &options.boot_report {
            Some(path) => BootReport::load(path)?,
            None => BootReport {
                state: "disk".to_owned(),
                ..BootReport::default()
            },
        };
        let agent = Self {
            store: OnceCell::new(),
            state_dir: options.state.clone(),
            report: RefCell::new(report),
            report_path: options.boot_report.clone(),
            volumes: Volumes::new(options.state.join("volumes")),
            shares: Shares::default(),
            own_machine: options.own_machine,
            stop: CancellationToken::new(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            book: OnceCell::new(),
            greeting: tokio::sync::Mutex::new(()),
            networks: Rc::default(),
            prepared: match options.own_machine {
                true => Prepared::look(),
                false => Prepared::default(),
            },
            engine: match options.own_machine {
                true => Ok(None),
                false => options
                    .engine
                    .choice()
                    .map(|choice| Engine::chosen(&choice, &options.state).map(Rc::new)),
            },
        };
        if !agent.own_machine && agent.is_native() {
            agent.open_store();
        }
        Ok(agent)
    }

    /// Opens the images and clears up what a crash left of containers.
    fn open_store(&self) {
        let problem = self.report.borrow().problem.clone();
        let store = match problem {
            Some(problem) => Err(Failure::new(FailureCode::Failed, problem)),
            None => Store::open(&self.state_dir).map_err(Failure::from),
        };
        let dir = self.state_dir.join("containers");
        let opened = match &store {
            Ok(store) => Book::open(dir.clone(), store).map_err(|error| {
                Failure::new(
                    FailureCode::Failed,
                    format!("cannot read {}: {error}", dir.display()),
                )
            }),
            Err(failure) => Err(failure.clone()),
        };
        let (store, book) = match opened {
            Ok((book, leftovers)) => {
                let volumes = self.volumes.leftovers();
                self.tasks.spawn_blocking(move || {
                    if let Err(error) = volumes.remove() {
                        eprintln!("vdkr-agent: {error}");
                    }
                    for dir in leftovers {
                        if let Err(error) = fs::remove_dir_all(&dir) {
                            eprintln!("vdkr-agent: cannot remove {}: {error}", dir.display());
                        }
                    }
                });
                (store, book)
            }
            Err(failure) => (Err(failure), Book::empty(dir)),
        };
        let _ = self.book.set(book);
        let _ = self.store.set(store);
    }

    /// Makes a machine of the agent's own ready for its first host: time, randomness, state.
    async fn settle(&self, hello: &HostHello) {
        let mut report = self.report.borrow().clone();
        report.met_ms = machine::uptime().as_millis() as u64;
        let ready = match identity::assume(hello) {
            // An agent that failed has mounted it already.
            Ok(()) if !report.state.is_empty() => Ok(()),
            Ok(()) => self.mount_state(Wish::of(&hello.state), &mut report).await,
            Err(error) => Err(format!(
                "the machine cannot take time and randomness from the host: {error}"
            )),
        };
        report.problem = ready.err();
        if let Some(problem) = &report.problem {
            eprintln!("vdkr-agent: {problem}");
        }
        report.stage("state");
        self.report.replace(report);
        self.open_store();
        let mut report = self.report.borrow_mut();
        report.stage("store");
        if let Some(path) = &self.report_path
            && let Err(error) = report.save(path)
        {
            eprintln!("vdkr-agent: cannot keep the boot report: {error}");
        }
    }

    async fn mount_state(&self, wish: Wish, report: &mut BootReport) -> Result<(), String> {
        match identity::name_machine() {
            Ok(id) => report.machine_id = id,
            Err(error) => eprintln!("vdkr-agent: cannot write the machine's id: {error}"),
        }
        let dir = self.state_dir.clone();
        let disk = self.prepared.disk.clone();
        let mounted = tokio::task::spawn_blocking(move || state::mount(&dir, wish, disk));
        let word = mounted
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        word.clone_into(&mut report.state);
        Ok(())
    }

    /// Whether images and containers are the agent's own.
    pub(crate) fn is_native(&self) -> bool {
        !matches!(self.engine, Ok(Some(_)))
    }

    fn engine_name(&self) -> &'static str {
        match &self.engine {
            Ok(Some(engine)) => engine.kind().as_str(),
            _ => EngineKind::Native.as_str(),
        }
    }

    /// Keeps what the host shares under a name.
    pub(crate) fn hold_share(&self, name: &str) -> Result<ShareUse, Failure> {
        self.shares
            .hold(name)
            .map_err(|error| share::failed(&error))
    }

    /// Where images are kept, as greetings call it.
    pub(crate) fn state_word(&self) -> String {
        self.report.borrow().state.clone()
    }

    /// The containers' networks.
    pub fn networks(&self) -> &Rc<Networks> {
        &self.networks
    }

    /// Whether containers can have addresses of their own.
    pub fn bridge(&self) -> Bridge {
        Bridge::find(self.own_machine)
    }

    /// The images, or the failure that the host gets.
    pub fn store(&self) -> Result<&Store, Failure> {
        match self.store.get() {
            Some(store) => store.as_ref().map_err(Clone::clone),
            None => Err(Failure::new(FailureCode::Failed, "no host has greeted yet")),
        }
    }

    /// The containers.
    pub fn book(&self) -> &Book {
        self.book
            .get_or_init(|| Book::empty(self.state_dir.join("containers")))
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
    pub(crate) async fn end_requests(&self) {
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
        let mut request = request;
        match &mut request {
            Request::Pull(PullRequest { settings, .. })
            | Request::Run(RunRequest { settings, .. })
            | Request::Layers { settings, .. } => baked::fill(settings)?,
            _ => {}
        }
        match &self.engine {
            Ok(None) => {}
            Ok(Some(engine)) => {
                return Box::pin(engine::carry_out(&self, engine, request, &stream)).await;
            }
            Err(failure) if !matches!(request, Request::Shutdown) => return Err(failure.clone()),
            Err(_) => {}
        }
        match request {
            Request::Admit(request) => admit::admit(&self, &request).await,
            Request::Layers {
                image,
                of_container,
                settings,
            } => layers::layers(&self, image.as_deref(), of_container, &settings),
            Request::Mount { layers } => layers::mount(&self, layers).await,
            Request::Pull(request) => pull::pull(&self, &request, &stream).await,
            Request::Run(request) => run::run(&self, &request, &stream).await,
            Request::Container(request) => container::carry_out(&self, request, &stream).await,
            Request::Images => images::images(&self),
            Request::Inspect { names } => inspect::inspect(&self, &names),
            Request::Remove { names, force } => remove::remove(&self, &names, force).await,
            Request::Tag { source, target } => tag::tag(&self, source, target).await,
            Request::Info => info::info(&self),
            Request::AddImage(request) => add::image(&self, request, &stream).await,
            Request::AddLayer { diff_id } => add::layer(&self, diff_id, &stream).await,
            Request::Export { names } => export::export(&self, names).await,
            Request::ReadBlob { digest } => export::read_blob(&self, &digest, &stream).await,
            Request::Prune(request) => prune::prune(&self, request).await,
            Request::Usage => usage::usage(&self).await,
            Request::Shutdown => shutdown::shutdown(&self).await,
            Request::AttachDisk(_)
            | Request::DetachDisk { .. }
            | Request::Machine
            | Request::AdoptPorts { .. }
            | Request::Publish(_)
            | Request::Published
            | Request::Share { .. } => Err(monitors_own()),
            Request::MountShare {
                share,
                directory,
                read_only,
            } => share::mount(&self, &share, directory, read_only, &stream).await,
            Request::Release { share } => share::release(&self, &share),
            Request::KeepShare { share } => share::keep(&self, share),
            Request::Volume { action } => volume::volume(&self, action).await,
            Request::Unknown => Err(unknown()),
        }
    }
}

impl Service for Agent {
    fn greet(self: Rc<Self>, hello: HostHello) -> LocalFuture<GuestHello> {
        Box::pin(async move {
            let _one = self.greeting.lock().await;
            if self.own_machine && self.store.get().is_none() {
                self.settle(&hello).await;
            } else if self.own_machine
                && let Err(error) = identity::assume(&hello)
            {
                eprintln!("vdkr-agent: time and randomness of the host: {error}");
            }
            let report = self.report.borrow().clone();
            let gateway = self.prepared.gateway.or_else(network::gateway);
            GuestHello {
                software: machine::SOFTWARE.to_owned(),
                arch: machine::architecture().to_owned(),
                boot_ms: machine::uptime().as_millis() as u64,
                stages: report.stages,
                met_ms: report.met_ms,
                machine_id: report.machine_id,
                state: report.state,
                engine: self.engine_name().to_owned(),
                registry: baked::registry(),
                gateway: gateway.map(|address| address.to_string()),
                ..GuestHello::default()
            }
        })
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
        if matches!(done, Ok(Reply::Bye | Reply::Settled)) {
            // A host that keeps the machine for its log lets it go down by itself.
            state::thaw(&self.state_dir);
            self.stop.cancel();
        }
    }
}

/// The answer to a request that is no agent's.
pub(crate) fn monitors_own() -> Failure {
    Failure::new(
        FailureCode::Unsupported,
        "only the monitor of a kept machine does this",
    )
}

/// The answer to a request of a later release.
pub(crate) fn unknown() -> Failure {
    Failure::new(
        FailureCode::Unsupported,
        "the agent does not know this request",
    )
    .with_hint("use a host program and an agent of the same release")
}

/// The answer to a request that the host no longer wants.
pub(crate) fn cancelled() -> Failure {
    Failure::new(FailureCode::Cancelled, "cancelled")
}

#[cfg(test)]
mod tests;
