//! A connection to an agent for one command: to a machine that is kept running, or to one that is
//! started for the command and stopped after it.

pub mod ignored;
mod interrupt;

use std::{collections::BTreeSet, env, path::Path, sync::Once, time::Duration};

use tokio::time::timeout;
use vdkr_core::channel::message::{
    DiskRequest, Done, Failure, FailureCode, Publication, PublishRequest, RegistrySettings, Reply,
    Request,
};
use vdkr_core::{digest::Digest, loopback::DEFAULT_GATEWAY};

use super::{
    command::{memres, wrong_reply},
    error::{Error, Result},
    health::{self, Watch, Whose},
    publish::no_ports,
    settings::{Settings, StatePlace},
    state::{self, Lock, Wait},
    words::{asking, say},
};
use crate::{
    exit::Exit,
    share::{Shares, Source},
    vm::{
        channel::{ChannelError, Connection},
        forward::{Forwards, Owner},
        kept::{self, Description},
        monitor,
        process::{Qemu, ending},
        start::{Started, start},
        target,
        timing::Stages,
    },
};

pub use interrupt::{interruptible, stoppable};

/// How long a command waits for another one that uses the same disk.
pub const LOCK_PATIENCE: Duration = Duration::from_mins(1);
/// How long the agent may take to end what runs and write everything down.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(15);
/// How long an emulator whose agent has gone may take to end too.
const ENDING_PATIENCE: Duration = Duration::from_secs(1);
/// How long the machine may take to go when nothing is left to be written.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(3);

/// An agent to talk to.
#[derive(Debug)]
pub struct Session {
    /// The connection.
    pub connection: Connection,
    machine: Option<Own>,
    /// The agent is that of a board or a full image.
    target: bool,
    /// The model of the machine's processors, where it is known.
    cpu: Option<String>,
    /// The machine takes disks of this computer while it runs.
    takes_disks: bool,
    told_of_disks: Once,
    /// Layers that this session has given to a machine whose state nobody keeps.
    given: BTreeSet<Digest>,
    shares: Option<Shares>,
    stages: Stages,
    timing: Timing,
    /// Until the machine's first answer, when it is a kept one that this session has found running.
    renewal: Option<Box<Renewal>>,
    _watch: Watch,
}

/// How another machine is had when the one that was found has ended before it did anything.
#[derive(Debug)]
struct Renewal {
    settings: Settings,
    purpose: String,
}

impl Renewal {
    /// Whether a request that ended like this may go to another machine: nobody has begun to carry
    /// it out, or it changes nothing.
    fn is_for(request: &Request, done: &Result<Done, ChannelError>) -> bool {
        match done {
            Ok(Err(failure)) => monitor::is_too_late(failure),
            Err(ChannelError::Lost(_)) => request.only_looks(),
            _ => false,
        }
    }
}

/// A machine that was started for this command.
#[derive(Debug)]
struct Own {
    qemu: Qemu,
    forwards: Forwards,
    _lock: Option<Lock>,
}

/// Whether and how the stages are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timing {
    Hidden,
    Table,
    Json,
}

impl Timing {
    fn wanted(settings: &Settings) -> Self {
        match env::var("VDKR_TIMING").as_deref() {
            Ok("json") => Self::Json,
            Ok("" | "0") | Err(_) if !settings.verbose => Self::Hidden,
            _ => Self::Table,
        }
    }
}

impl Session {
    /// Finds a running machine, or starts one. `purpose` names the command to others that wait.
    pub async fn open(settings: &Settings, purpose: &str) -> Result<Self> {
        let timing = Timing::wanted(settings);
        let mut stages = Stages::new();
        if let Some(address) = &settings.target {
            let connection = target::connect(address, &mut say).await?;
            stages.mark("connect");
            return Ok(Self {
                _watch: Watch::over(connection.clone(), Whose::Target),
                connection,
                machine: None,
                target: true,
                cpu: None,
                takes_disks: false,
                told_of_disks: Once::new(),
                given: BTreeSet::new(),
                shares: None,
                stages,
                timing,
                renewal: None,
            });
        }
        let StatePlace::Directory(dir) = &settings.state else {
            let started = start(&settings.start, None, &mut stages, &mut say).await?;
            return Ok(Self::own(started, None, stages, timing));
        };
        if let Some(connection) = kept::connect(dir).await? {
            let renewal = Renewal {
                settings: settings.clone(),
                purpose: purpose.to_owned(),
            };
            return Ok(Self {
                renewal: Some(Box::new(renewal)),
                ..Self::kept(connection, settings, stages, timing)
            });
        }
        tell_of_the_last(dir);
        if settings.auto_daemon {
            memres::ensure(settings).await?;
            stages.mark("daemon");
            if let Some(connection) = kept::connect(dir).await? {
                return Ok(Self::kept(connection, settings, stages, timing));
            }
        }
        state::prepare(dir, settings.arch)?;
        stages.mark("state");
        let mut found = None;
        let mut told = false;
        let lock = state::lock(dir, purpose, LOCK_PATIENCE, async |holder| {
            if !told {
                say(&format!(
                    "waiting for {holder}, which uses {}",
                    dir.display()
                ));
                told = true;
            }
            // It may be a machine that is kept from now on.
            match kept::connect(dir).await {
                Ok(Some(connection)) => {
                    found = Some(connection);
                    Wait::Stop
                }
                _ => Wait::Go,
            }
        })
        .await?;
        if told {
            stages.mark("wait");
        }
        if let Some(connection) = found {
            return Ok(Self::kept(connection, settings, stages, timing));
        }
        kept::clear(dir)?;
        let file = lock.as_ref().map(Lock::file);
        let started = start(&settings.start, file, &mut stages, &mut say).await?;
        Ok(Self::own(started, lock, stages, timing))
    }

    /// A machine that is kept, over a connection to it.
    pub fn of_kept(connection: Connection, settings: &Settings) -> Self {
        Self::kept(connection, settings, Stages::new(), Timing::Hidden)
    }

    fn own(started: Started, lock: Option<Lock>, stages: Stages, timing: Timing) -> Self {
        let Started {
            qemu,
            reader,
            writer,
            hello,
            cpu,
            ..
        } = started;
        let connection = Connection::new(reader, writer, hello);
        Self {
            _watch: Watch::over(connection.clone(), Whose::Own),
            connection,
            takes_disks: qemu.takes_disks(),
            told_of_disks: Once::new(),
            given: BTreeSet::new(),
            machine: Some(Own {
                qemu,
                forwards: Forwards::default(),
                _lock: lock,
            }),
            target: false,
            cpu: Some(cpu),
            shares: None,
            stages,
            timing,
            renewal: None,
        }
    }

    fn kept(
        connection: Connection,
        settings: &Settings,
        mut stages: Stages,
        timing: Timing,
    ) -> Self {
        stages.mark("connect");
        let running = settings
            .start
            .state_dir
            .as_deref()
            .and_then(Description::read);
        for given in ignored::by_command(settings, running.as_ref()) {
            say(&format!(
                "{given} has no effect on the machine that is running; it holds after: vdkr memres restart"
            ));
        }
        Self {
            _watch: Watch::over(connection.clone(), Whose::Kept),
            connection,
            machine: None,
            target: false,
            // An older monitor does not say, and answers when it is asked to attach one.
            takes_disks: running
                .as_ref()
                .and_then(|running| running.hot_disks)
                .unwrap_or(true),
            told_of_disks: Once::new(),
            given: BTreeSet::new(),
            cpu: running.map(|running| running.cpu),
            shares: None,
            stages,
            timing,
            renewal: None,
        }
    }

    /// The model of the processors that run containers, where it is known.
    pub fn cpu(&self) -> Option<&str> {
        self.cpu.as_deref()
    }

    /// Whether the machine takes disks of this computer, as far as is known: one that does not has to
    /// pull and unpack by itself. Who wants to know is told so, once.
    pub fn takes_disks(&self, verbose: bool) -> bool {
        if verbose && !self.takes_disks && !self.target {
            self.told_of_disks.call_once(|| {
                say(
                    "images are pulled and unpacked in the machine: it takes no disks of this \
                     computer, since its kernel was given with --kernel or --initrd, or its image \
                     is older than this program",
                );
            });
        }
        self.takes_disks
    }

    /// Whether the agent is that of a board or a full image, which takes no disks and no ports.
    pub fn is_target(&self) -> bool {
        self.target
    }

    /// Refuses a request that makes a target ask this computer's registry where it cannot: only
    /// a guest of QEMU's user network knows this computer as its gateway.
    pub fn check_reach(&self, name: &str, registries: &RegistrySettings) -> Result<()> {
        if !self.target || self.connection.hello().gateway.as_deref() == Some(DEFAULT_GATEWAY) {
            return Ok(());
        }
        let here = |host: &str| host.split([':', '/']).next() == Some(DEFAULT_GATEWAY);
        let by_registry = registries.registry.as_deref().is_some_and(here);
        if !by_registry && !here(name) {
            return Ok(());
        }
        Err(Error::usage(
            "the target does not reach this computer as localhost: it is no guest of QEMU's user \
             network",
        )
        .with_hint(
            "name the registry by an address of this computer that the target reaches, such as \
             --registry 192.168.7.1:5000/yocto, and have it listen there",
        ))
    }

    /// Hands a disk to the machine, be it this command's own or a kept one. The guest sees it a
    /// moment later, under its serial number.
    pub async fn attach(&mut self, disk: DiskRequest) -> Result<()> {
        if self.target {
            let what = "a target takes no disks of this computer";
            return Err(Failure::new(FailureCode::Unsupported, what).into());
        }
        match &mut self.machine {
            Some(own) => match own.qemu.attach(&disk).await {
                Ok(()) => Ok(()),
                Err(error) => Err(Failure::from(error).into()),
            },
            None => match self.ask(&Request::AttachDisk(disk)).await? {
                Reply::Attached => Ok(()),
                other => Err(wrong_reply(&other)),
            },
        }
    }

    /// Takes a disk away that the guest has let go of.
    pub async fn detach(&mut self, serial: &str) -> Result<()> {
        match &mut self.machine {
            Some(own) => match own.qemu.detach(serial).await {
                Ok(()) => Ok(()),
                Err(error) => Err(Failure::from(error).into()),
            },
            None => {
                let serial = serial.to_owned();
                match self.ask(&Request::DetachDisk { serial }).await? {
                    Reply::Detached => Ok(()),
                    other => Err(wrong_reply(&other)),
                }
            }
        }
    }

    /// Sends a request and waits for its answer, which may be a failure, unless the user interrupts.
    pub async fn ask_plainly(&mut self, request: &Request) -> Result<Done> {
        match self.put(request).await? {
            Ok(done) => Ok(done),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Sends a request and waits for its answer, unless the user interrupts.
    pub async fn ask(&mut self, request: &Request) -> Result<Reply> {
        let done = self.put(request).await?;
        self.answer(done).await
    }

    /// Sends a request and waits for its answer. Where a kept machine ends just then, another one
    /// gets the request, unless this one may have begun with it.
    async fn put(&mut self, request: &Request) -> Result<Result<Done, ChannelError>> {
        let connection = self.connection.clone();
        let done = interruptible(async { Ok(asking(&connection, request).await) }).await?;
        let Some(renewal) = self.renewal.take() else {
            return Ok(done);
        };
        if !Renewal::is_for(request, &done) {
            return Ok(done);
        }
        let Renewal { settings, purpose } = &*renewal;
        let again = Box::pin(interruptible(Self::open(settings, purpose))).await?;
        *self = Self {
            renewal: None,
            ..again
        };
        let connection = self.connection.clone();
        interruptible(async { Ok(asking(&connection, request).await) }).await
    }

    /// Leads ports of this computer to a container that is about to be run. They are closed when
    /// this session is, or when the container ends that adopts them.
    pub async fn publish(&mut self, request: &PublishRequest) -> Result<Publication> {
        if self.target {
            return Err(no_ports());
        }
        if let Some(own) = &mut self.machine {
            let owner = Owner::Client(0);
            let opened = own.forwards.open(&mut own.qemu, owner, request).await;
            return opened.map_err(|error| Failure::from(error).into());
        }
        match self.ask(&Request::Publish(request.clone())).await? {
            Reply::Published { mut publications } if publications.len() == 1 => {
                Ok(publications.remove(0))
            }
            other => Err(wrong_reply(&other)),
        }
    }

    /// The ports of this computer that lead to containers, as far as is known.
    pub async fn published(&mut self) -> Vec<Publication> {
        if let Some(own) = &self.machine {
            return own.forwards.list();
        }
        if self.target {
            return Vec::new();
        }
        match self.connection.ask(&Request::Published).await {
            Ok(Ok(Reply::Published { publications })) => publications,
            _ => Vec::new(),
        }
    }

    /// The connection by which a container may take over the ports that this session has published,
    /// where the machine outlives the session.
    pub fn adoption(&self) -> Option<Connection> {
        self.machine.is_none().then(|| self.connection.clone())
    }

    /// Has the ports that were published belong to a container, until that ends.
    pub async fn adopt_ports(&mut self, id: &str) -> Result<()> {
        let request = Request::AdoptPorts { id: id.to_owned() };
        match self.ask(&request).await? {
            Reply::Published { .. } => Ok(()),
            other => Err(wrong_reply(&other)),
        }
    }

    /// Serves what was opened to the machine, by a name that it had before when there is one, and
    /// gives the name of its mount there. A machine that is kept is served by the one who keeps it,
    /// so that the mount outlives this command when a container does; that one opens the path again,
    /// and follows no link.
    pub async fn share(
        &mut self,
        source: Source,
        read_only: bool,
        name: Option<String>,
    ) -> Result<String> {
        if self.machine.is_some() || self.target {
            let connection = &self.connection;
            let shares = self
                .shares
                .get_or_insert_with(|| Shares::new(connection.clone()))
                .clone();
            let shared =
                interruptible(async { Ok(shares.share(source, read_only, name).await) }).await?;
            return Ok(shared.map_err(Failure::from)?);
        }
        let Some(path) = source.path().to_str() else {
            let shown = source.path().display();
            return Err(Error::usage(format!("{shown} is not valid UTF-8 text")));
        };
        let request = Request::Share {
            path: path.to_owned(),
            read_only,
            name,
        };
        match self.ask(&request).await? {
            Reply::Shared { share } => Ok(share),
            other => Err(wrong_reply(&other)),
        }
    }

    /// The reply in an answer, or the error in it.
    pub async fn answer(&mut self, done: Result<Done, ChannelError>) -> Result<Reply> {
        match done {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(failure)) => Err(failure.into()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// An error of the connection, with what is known about the machine's end.
    pub async fn explain(&mut self, error: ChannelError) -> Error {
        if matches!(error, ChannelError::Request(_)) {
            return error.into();
        }
        let Some(own) = &mut self.machine else {
            if self.target {
                return Error::from(error).with_hint(
                    "the target's agent has ended or cannot be reached any more; its log \
                     (journalctl -u vdkr-agent) tells why",
                );
            }
            return Error::from(error).with_hint(
                "whether the command was carried out is not known. If the machine has ended, its \
                 console.log and monitor.log tell why; the next command starts another one",
            );
        };
        let told = match timeout(ENDING_PATIENCE, own.qemu.ended()).await {
            Ok(Ok(status)) => {
                own.qemu.heard_out().await;
                let how = format!("the virtual machine's emulator {}", ending(status));
                Error::new(Exit::Unreachable, how)
            }
            _ => error.into(),
        };
        let words = [own.qemu.complaints(), own.qemu.console().tail()];
        let words: Vec<_> = words
            .into_iter()
            .filter(|words| !words.is_empty())
            .collect();
        if words.is_empty() {
            return told;
        }
        told.with_hint(format!("its last words:\n{}", words.join("\n")))
    }

    /// Layers that this session has given to a machine without state.
    pub fn given(&self) -> &BTreeSet<Digest> {
        &self.given
    }

    /// Notes that this session gives layers to a machine without state.
    pub fn gives(&mut self, layers: &BTreeSet<Digest>) {
        self.given.extend(layers.iter().cloned());
    }

    /// Ends a stage of the command.
    pub fn mark(&mut self, stage: &str) {
        self.stages.mark(stage);
    }

    /// Stops a machine of this command's own: cleanly, and without waiting for more than is
    /// needed to have everything written down.
    pub async fn close(mut self) {
        if let Some(own) = &mut self.machine {
            let mut errors = own.qemu.disk_errors().await;
            let stopped = timeout(SHUTDOWN_PATIENCE, self.connection.ask(&Request::Shutdown)).await;
            // The last writes are made at the end.
            errors.extend(own.qemu.disk_errors().await);
            errors.dedup();
            for words in errors {
                say(&words);
            }
            match stopped {
                // What it would still do concerns itself alone.
                Ok(Ok(Ok(Reply::Settled))) => own.qemu.kill().await,
                Ok(Ok(Ok(_))) => drop(own.qemu.finish(POWER_OFF_PATIENCE).await),
                _ => drop(own.qemu.finish(Duration::from_millis(100)).await),
            }
            self.stages.mark("shutdown");
        } else if !self.target {
            health::look(&self.connection).await;
        }
        match self.timing {
            Timing::Hidden => {}
            Timing::Table => eprint!("{}", self.stages.table()),
            Timing::Json => eprintln!("vdkr-timing: {}", self.stages.json()),
        }
    }
}

/// Says that the machine that was kept in a directory is no more, when nobody has stopped it.
pub fn tell_of_the_last(dir: &Path) {
    let locked = state::locked_by(dir).is_some();
    if let Some(last) = kept::left_behind(dir, locked) {
        say(&format!(
            "the machine that was kept here (process {}) has ended without being stopped; its \
             console.log and monitor.log in {} may tell why",
            last.pid,
            dir.display()
        ));
    }
}

/// What concerns a machine of this program makes no sense with a target.
pub fn no_machine(settings: &Settings, what: &str) -> Result<()> {
    match &settings.target {
        None => Ok(()),
        Some(target) => Err(Error::usage(format!(
            "{what} is about the virtual machine that vdkr starts, and target {target} is not one"
        ))
        .with_hint("for that machine add: --target none")),
    }
}

/// Opens a session, does the work of a command on it, and closes it whatever came of that.
pub async fn with_session<T>(
    settings: &Settings,
    purpose: &str,
    work: impl AsyncFnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let mut session = interruptible(Session::open(settings, purpose)).await?;
    let result = work(&mut session).await;
    session.mark("request");
    session.close().await;
    result
}
