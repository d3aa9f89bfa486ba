//! Keeps one machine and shares its agent among many commands, over a socket in the state
//! directory that speaks the channel's own protocol.

mod emulator;
mod idle;
mod pipes;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{OnceCell, OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until, timeout},
};
use vdkr_core::channel::{
    Frame, Kind,
    message::{
        ContainerRequest, Done, Failure, FailureCode, GuestHello, MachineState, Message as _,
        Reply, Request,
    },
};

use self::{
    emulator::{Emulator, Ports},
    idle::Idle,
    pipes::{read_from_client, read_from_guest, write_to_client, write_to_guest},
};
use super::{
    channel::Connection,
    disks::Health,
    forward::{Forwards, Owner},
    kept::{self, Description, GREETING},
    pipe::{FrameReader, greet_guest, greet_host},
    router::{ClientId, Router, Verdict, client_queue, own_request},
    start::Started,
};
use crate::share::{ShareError, Shares, Source};

/// Frames on the way from clients and the agent to the router.
const INBOX: usize = 256;
/// How long the agent may take to say whether a container runs.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the agent may take to stop its containers and power off.
const POWER_OFF: Duration = Duration::from_secs(30);
/// What a request is answered that came when the machine was being stopped.
const STOPPING: &str = "the virtual machine is being stopped";
/// Failures of disks that are remembered.
const MAX_DISK_ERRORS: usize = 16;

/// Why a monitor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Somebody asked for it.
    Asked,
    /// Nobody had a request for long enough.
    Idle,
    /// The machine ended by itself.
    MachineGone,
}

/// Serves until the machine is to stop, then stops it. The socket and the description are gone
/// when this returns.
pub async fn serve(
    started: Started,
    listener: UnixListener,
    state_dir: &Path,
    description: &Description,
) -> io::Result<Ending> {
    let Started {
        mut qemu,
        reader,
        writer,
        hello,
        ..
    } = started;
    description.write(state_dir)?;
    let idle = Some(description.idle_timeout).filter(|&seconds| seconds > 0);
    let hub = Hub::new(reader, writer, hello, idle.map(Duration::from_secs));
    hub.serve(listener, state_dir, &mut qemu).await
}

/// The answer to a request that came when the machine was being stopped, and that nobody has begun
/// to carry out.
fn too_late() -> Failure {
    Failure::new(FailureCode::Unreachable, STOPPING)
        .with_hint("run the command again: it waits for that, and starts a new machine")
}

/// Whether a request came when the machine was being stopped, and nobody has begun to carry it out.
pub fn is_too_late(failure: &Failure) -> bool {
    failure.code == FailureCode::Unreachable && failure.message == STOPPING
}

enum Input {
    Client(ClientId, Frame, OwnedSemaphorePermit),
    ClientGone(ClientId),
    ClientGreeted(
        FrameReader<tokio::net::unix::OwnedReadHalf>,
        tokio::net::unix::OwnedWriteHalf,
        By,
    ),
    NotGreeted(By),
    Guest(Frame),
    GuestGone,
    Shared(ClientId, u32, Result<String, Failure>),
}

/// Who greets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A command.
    Other,
    /// This process, which serves directories.
    Own,
}

struct Hub {
    router: Router,
    inbox: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    hello: Arc<GuestHello>,
    idle: Idle,
    /// The question whether a container runs, before an idle machine stops.
    asked: Option<u32>,
    /// The ports that are open.
    forwards: Forwards,
    waiting_for_stop: Vec<(ClientId, u32)>,
    /// What is served to the machine, by a client of this process's own.
    shares: Arc<OnceCell<Shares>>,
    /// Which client asked for which mounts.
    granted: HashMap<ClientId, Vec<String>>,
    /// What went wrong with the machine's disks since its start.
    disk_errors: Vec<String>,
    writers: tokio::task::JoinSet<()>,
}

impl Hub {
    fn new<R, W>(
        reader: FrameReader<R>,
        writer: W,
        hello: GuestHello,
        idle: Option<Duration>,
    ) -> Self
    where
        R: tokio::io::AsyncRead + Unpin + Send + 'static,
        W: tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, inbox) = mpsc::channel(INBOX);
        let (to_guest, frames) = mpsc::unbounded_channel();
        tokio::spawn(write_to_guest(writer, frames));
        tokio::spawn(read_from_guest(reader, sender.clone()));
        Self {
            router: Router::new(to_guest),
            inbox,
            sender,
            hello: Arc::new(hello),
            idle: Idle::new(idle),
            asked: None,
            forwards: Forwards::default(),
            waiting_for_stop: Vec::new(),
            shares: Arc::default(),
            granted: HashMap::new(),
            disk_errors: Vec::new(),
            writers: tokio::task::JoinSet::new(),
        }
    }

    async fn serve(
        mut self,
        listener: UnixListener,
        state_dir: &Path,
        qemu: &mut impl Emulator,
    ) -> io::Result<Ending> {
        let ending = self.run(listener, qemu).await;
        // From here on a new command finds nothing here, and waits for the lock instead.
        kept::remove_socket(state_dir)?;
        match ending {
            Ending::MachineGone => qemu.finish(Duration::from_secs(2)).await,
            Ending::Asked | Ending::Idle => self.power_off(qemu).await,
        }
        kept::clear(state_dir)?;
        self.farewell().await;
        Ok(ending)
    }

    async fn run(&mut self, listener: UnixListener, qemu: &mut impl Emulator) -> Ending {
        let mut terminate = signal(SignalKind::terminate()).ok();
        loop {
            let idle_at = self.idle_at();
            let idle = async {
                match idle_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let terminated = async {
                match &mut terminate {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => {
                        self.idle.comes();
                        self.greet(socket, By::Other);
                    }
                    // Out of descriptors: others will be given back.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(input) = self.inbox.recv() => {
                    if let Some(ending) = self.handle(input, qemu).await {
                        return ending;
                    }
                }
                () = qemu.ended() => return Ending::MachineGone,
                _ = terminated => return Ending::Asked,
                // An agent that does not answer is no reason to go on.
                () = idle => match self.asked {
                    Some(_) => return Ending::Idle,
                    None => self.ask_for_containers(),
                },
            }
        }
    }

    /// When the machine has been idle for long enough, if it is idle now.
    fn idle_at(&self) -> Option<Instant> {
        let own = self.own_requests();
        let patience = if self.asked.is_some() {
            ANSWER
        } else {
            Duration::ZERO
        };
        let at = self.idle.at().filter(|_| self.router.busy() <= own);
        at.map(|at| at + patience)
    }

    /// Requests that are under way on nobody's behalf.
    fn own_requests(&self) -> usize {
        usize::from(self.asked.is_some()) + self.forwards.waits()
    }

    /// A container that runs is nobody's request, and keeps the machine all the same.
    fn ask_for_containers(&mut self) {
        self.asked = self.router.own_request(&Request::Info);
    }

    /// Takes the agent's answer: `true` when the machine is idle.
    fn answered(&mut self, frame: &Frame) -> bool {
        self.asked = None;
        let running = match Done::decode(&frame.payload) {
            Ok(Ok(Reply::Info(info))) => info.containers,
            _ => 0,
        };
        if running > 0 {
            self.idle.used();
        }
        self.idle_at().is_some_and(|at| at <= Instant::now())
    }

    /// Carries out what is the monitor's own. Short: the emulator answers in milliseconds.
    async fn carry_out(
        &mut self,
        id: ClientId,
        request: Request,
        qemu: &mut impl Emulator,
    ) -> Done {
        let publications = match request {
            Request::Publish(request) => {
                let owner = Owner::Client(id);
                let opened = self.forwards.open(&mut Ports(qemu), owner, &request).await;
                vec![opened.map_err(Failure::from)?]
            }
            Request::AdoptPorts { id: container } => {
                let wait = Request::Container(ContainerRequest::Wait {
                    name: container.clone(),
                });
                let nothing = !self.forwards.has(&Owner::Client(id));
                match (!nothing).then(|| self.router.own_request(&wait)).flatten() {
                    Some(stream) => self.forwards.adopt(id, &container, stream),
                    None => Vec::new(),
                }
            }
            Request::Published => self.forwards.list(),
            other => return qemu.disks(&other).await,
        };
        Ok(Reply::Published { publications })
    }

    async fn handle(&mut self, input: Input, qemu: &mut impl Emulator) -> Option<Ending> {
        let mut busy = self.router.busy() > self.own_requests();
        match input {
            Input::ClientGreeted(reader, writer, by) => self.add_client(reader, writer, by),
            Input::NotGreeted(By::Other) => self.idle.came(None),
            Input::NotGreeted(By::Own) => {}
            Input::ClientGone(id) => {
                self.disconnect(id);
                let owner = Owner::Client(id);
                self.forwards.close(&mut Ports(qemu), &owner).await;
            }
            Input::Client(id, frame, share) => {
                let verdict = self.router.from_client(id, &frame, Some(share));
                // Who only looks does not keep the machine.
                let looks = matches!(
                    &verdict,
                    Verdict::Own(_, request)
                        if matches!(**request, Request::Machine | Request::Published)
                );
                self.idle.sends(id, looks);
                match verdict {
                    Verdict::Routed => {}
                    Verdict::CutOff => self.disconnect(id),
                    Verdict::Own(stream, request) => match *request {
                        Request::Share {
                            path,
                            read_only,
                            name,
                        } => {
                            self.share(id, stream, path.into(), read_only, name);
                        }
                        Request::Shutdown => {
                            self.waiting_for_stop.push((id, stream));
                            return Some(Ending::Asked);
                        }
                        Request::Machine => {
                            let state = self.state(qemu).await;
                            self.router.answer(id, stream, &Ok(Reply::Machine(state)));
                        }
                        // Short: the emulator answers in milliseconds, and is given up when it
                        // does not.
                        request => {
                            let done = self.carry_out(id, request, qemu).await;
                            self.router.answer(id, stream, &done);
                            busy |= !looks;
                        }
                    },
                }
            }
            Input::Guest(frame) if frame.kind == Kind::Done && self.asked == Some(frame.stream) => {
                self.router.from_guest(&frame);
                if self.answered(&frame) {
                    return Some(Ending::Idle);
                }
                return None;
            }
            Input::Guest(frame) => {
                let owner = Owner::Container(frame.stream);
                if frame.kind == Kind::Done && self.forwards.has(&owner) {
                    self.forwards.close(&mut Ports(qemu), &owner).await;
                }
                if let Some(slow) = self.router.from_guest(&frame) {
                    self.disconnect(slow);
                }
            }
            Input::Shared(id, stream, shared) => self.answer_share(id, stream, shared),
            Input::GuestGone => return Some(Ending::MachineGone),
        }
        if busy || self.router.busy() > self.own_requests() {
            self.idle.used();
        }
        None
    }

    async fn state(&mut self, qemu: &mut impl Emulator) -> MachineState {
        let stopped = self.look(qemu).await;
        let left = self
            .idle_at()
            .map(|at| at.saturating_duration_since(Instant::now()));
        MachineState {
            busy: self.router.busy() as u64,
            idle_left_ms: left.map(|left| left.as_millis().try_into().unwrap_or(u64::MAX)),
            disks: qemu.attached(),
            disk_errors: self.disk_errors.clone(),
            stopped,
        }
    }

    /// Notes what went wrong with the machine's disks. Why its processor stands still, if it does.
    async fn look(&mut self, qemu: &mut impl Emulator) -> Option<String> {
        let Health {
            disk_errors,
            stopped,
        } = qemu.health().await;
        for error in disk_errors {
            if self.disk_errors.len() < MAX_DISK_ERRORS && !self.disk_errors.contains(&error) {
                self.disk_errors.push(error);
            }
        }
        stopped
    }

    /// Removes a client. What it had mounted goes with the last container that uses it.
    fn disconnect(&mut self, id: ClientId) {
        self.router.disconnect(id);
        self.idle.goes(id);
        for name in self.granted.remove(&id).unwrap_or_default() {
            self.release(name);
        }
    }

    /// Serves a path to the machine for a client, who is one of this user's.
    fn share(
        &self,
        id: ClientId,
        stream: u32,
        path: PathBuf,
        read_only: bool,
        name: Option<String>,
    ) {
        let (shares, sender) = (Arc::clone(&self.shares), self.sender.clone());
        // A connection like every other's, so that the router keeps this process's calls apart too.
        let pair = match UnixStream::pair() {
            Ok((ours, theirs)) if !shares.initialized() => {
                self.greet(theirs, By::Own);
                Ok(Some(ours))
            }
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        };
        tokio::spawn(async move {
            let shared = async {
                let failed = |error: String| Failure::new(FailureCode::Failed, error);
                let ours = pair.map_err(|error| failed(error.to_string()))?;
                let connect = || async {
                    let closed = || io::Error::from(io::ErrorKind::NotConnected);
                    let (reader, mut writer) = ours.ok_or_else(closed)?.into_split();
                    let greeted = greet_guest(reader, &mut writer, super::SOFTWARE).await;
                    let (reader, hello) = greeted.map_err(io::Error::other)?;
                    Ok::<_, io::Error>(Shares::new(Connection::new(reader, writer, hello)))
                };
                let shares = shares.get_or_try_init(connect).await;
                let shares = shares.map_err(|error| failed(error.to_string()))?;
                // The client has looked at the path already; what came to stand there since is not
                // followed.
                let source = Source::open(&path).map_err(ShareError::from)?;
                let shared = shares.share(source, read_only, name).await;
                shared.map_err(|error: ShareError| error.into())
            };
            let shared: Result<String, Failure> = shared.await;
            // Closed only when the monitor ends.
            let _ = sender.send(Input::Shared(id, stream, shared)).await;
        });
    }

    fn answer_share(&mut self, id: ClientId, stream: u32, shared: Result<String, Failure>) {
        match shared {
            Ok(name) if self.router.is_connected(id) => {
                self.granted.entry(id).or_default().push(name.clone());
                let reply = Reply::Shared { share: name };
                self.router.answer(id, stream, &Ok(reply));
            }
            Ok(name) => self.release(name),
            Err(failure) => self.router.answer(id, stream, &Err(failure)),
        }
    }

    fn release(&self, name: String) {
        let shares = Arc::clone(&self.shares);
        tokio::spawn(async move {
            if let Some(shares) = shares.get() {
                // A connection that is gone has taken the mount with it.
                let _ = shares.release(&name).await;
            }
        });
    }

    fn greet(&self, socket: UnixStream, by: By) {
        let (sender, hello) = (self.sender.clone(), Arc::clone(&self.hello));
        tokio::spawn(async move {
            let (reader, mut writer) = socket.into_split();
            let greeted = timeout(GREETING, greet_host(reader, &mut writer, &hello)).await;
            let input = match greeted {
                Ok(Ok((reader, _))) => Input::ClientGreeted(reader, writer, by),
                _ => Input::NotGreeted(by),
            };
            // Closed only when the monitor ends.
            let _ = sender.send(input).await;
        });
    }

    fn add_client(
        &mut self,
        reader: FrameReader<tokio::net::unix::OwnedReadHalf>,
        writer: tokio::net::unix::OwnedWriteHalf,
        by: By,
    ) {
        let (queue, frames) = client_queue();
        let id = self.router.connect(queue, by == By::Own);
        if by == By::Other {
            self.idle.came(Some(id));
        }
        // Those of clients that have gone keep their room until somebody looks.
        while self.writers.try_join_next().is_some() {}
        self.writers.spawn(write_to_client(writer, frames));
        tokio::spawn(read_from_client(reader, id, self.sender.clone()));
    }

    /// Stops the guest cleanly, or by force when it does not go.
    async fn power_off(&mut self, qemu: &mut impl Emulator) {
        self.look(qemu).await;
        let stop = self.router.own_request(&Request::Shutdown);
        let gone = async {
            loop {
                tokio::select! {
                    () = qemu.ended() => return,
                    Some(input) = self.inbox.recv() => match input {
                        Input::Guest(frame) => {
                            let _ = self.router.from_guest(&frame);
                            // The last writes are made; the emulator goes in a moment.
                            if frame.kind == Kind::Done && stop == Some(frame.stream) {
                                self.look(qemu).await;
                            }
                        }
                        // What is under way goes on, above all the directories that are served
                        // and are needed until they are unmounted. Nothing new begins.
                        Input::Client(id, frame, share) => match frame.kind {
                            Kind::Open => self.turn_away(id, &frame),
                            Kind::Part => {}
                            _ => drop(self.router.from_client(id, &frame, Some(share))),
                        },
                        Input::ClientGreeted(reader, writer, by) => {
                            self.add_client(reader, writer, by);
                        }
                        Input::Shared(id, stream, shared) => {
                            self.answer_share(id, stream, shared);
                        }
                        Input::ClientGone(id) => self.disconnect(id),
                        // The agent has closed its port: the end is near.
                        Input::GuestGone => {
                            let _ = timeout(POWER_OFF, qemu.ended()).await;
                            return;
                        }
                        Input::NotGreeted(_) => {}
                    },
                }
            }
        };
        if timeout(POWER_OFF, gone).await.is_err() {
            qemu.finish(Duration::ZERO).await;
        }
    }

    /// Answers a request that came too late.
    fn turn_away(&mut self, id: ClientId, open: &Frame) {
        if own_request(&open.payload) == Some(Request::Shutdown) {
            self.waiting_for_stop.push((id, open.stream));
            return;
        }
        self.router.answer(id, open.stream, &Err(too_late()));
    }

    /// Answers those who asked for the stop, and lets the last bytes out.
    async fn farewell(mut self) {
        let reply = match self.disk_errors.is_empty() {
            true => Reply::Bye,
            false => Reply::Machine(MachineState {
                disk_errors: std::mem::take(&mut self.disk_errors),
                ..MachineState::default()
            }),
        };
        for (id, stream) in std::mem::take(&mut self.waiting_for_stop) {
            self.router.answer(id, stream, &Ok(reply.clone()));
        }
        let Self {
            router,
            mut writers,
            ..
        } = self;
        drop(router);
        let _ = timeout(Duration::from_secs(2), async {
            while writers.join_next().await.is_some() {}
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
