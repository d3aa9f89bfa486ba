//! Keeps one machine and shares its agent among many commands, over a socket in the state
//! directory that speaks the channel's own protocol.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use vdkr_core::channel::{
    Frame, HEADER_LEN,
    message::{Done, Failure, FailureCode, GuestHello, MachineState, Reply, Request},
};

use super::{
    kept::{self, Description, GREETING},
    pipe::{FrameReader, greet_host},
    process::Qemu,
    router::{ClientFrames, ClientId, Router, ToGuest, Verdict, client_queue},
    start::Started,
};

/// Bytes that one client may have on the way to the agent.
const CLIENT_SHARE: usize = 1 << 20;
/// Frames on the way from clients and the agent to the router.
const INBOX: usize = 256;
/// How long the agent may take to stop its containers and power off.
const POWER_OFF: Duration = Duration::from_secs(30);

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

/// What the monitor needs of an emulator.
trait Emulator {
    async fn ended(&mut self);
    async fn finish(&mut self, patience: Duration);
    /// Attaches or detaches a disk.
    async fn disks(&mut self, request: &Request) -> Done;
    /// Serial numbers of the disks that are attached.
    fn attached(&mut self) -> Vec<String>;
}

impl Emulator for Qemu {
    async fn ended(&mut self) {
        // An error means that there is nothing to wait for.
        let _ = Qemu::ended(self).await;
    }

    async fn finish(&mut self, patience: Duration) {
        Qemu::finish(self, patience).await;
    }

    async fn disks(&mut self, request: &Request) -> Done {
        match request {
            Request::AttachDisk(disk) => self.attach(disk).await.map(|()| Reply::Attached),
            Request::DetachDisk { serial } => self.detach(serial).await.map(|()| Reply::Detached),
            _ => {
                return Err(Failure::new(
                    FailureCode::Unsupported,
                    "no request about disks",
                ));
            }
        }
        .map_err(Failure::from)
    }

    fn attached(&mut self) -> Vec<String> {
        Qemu::attached(self)
    }
}

enum Input {
    Client(ClientId, Frame, OwnedSemaphorePermit),
    ClientGone(ClientId),
    ClientGreeted(
        FrameReader<tokio::net::unix::OwnedReadHalf>,
        tokio::net::unix::OwnedWriteHalf,
    ),
    Guest(Frame),
    GuestGone,
}

struct Hub {
    router: Router,
    inbox: mpsc::Receiver<Input>,
    sender: mpsc::Sender<Input>,
    hello: Arc<GuestHello>,
    idle: Option<Duration>,
    quiet_since: Instant,
    waiting_for_stop: Vec<(ClientId, u32)>,
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
            idle,
            quiet_since: Instant::now(),
            waiting_for_stop: Vec::new(),
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
                    Ok((socket, _)) => self.greet(socket),
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
                () = idle => return Ending::Idle,
            }
        }
    }

    /// When the machine has been idle for long enough, if it is idle now.
    fn idle_at(&self) -> Option<Instant> {
        self.idle
            .filter(|_| self.router.busy() == 0)
            .map(|idle| self.quiet_since + idle)
    }

    async fn handle(&mut self, input: Input, qemu: &mut impl Emulator) -> Option<Ending> {
        let mut busy = self.router.busy() > 0;
        match input {
            Input::ClientGreeted(reader, writer) => self.add_client(reader, writer),
            Input::ClientGone(id) => self.router.disconnect(id),
            Input::Client(id, frame, share) => {
                match self.router.from_client(id, &frame, Some(share)) {
                    Verdict::Routed => {}
                    Verdict::CutOff => self.router.disconnect(id),
                    Verdict::Own(stream, Request::Shutdown) => {
                        self.waiting_for_stop.push((id, stream));
                        return Some(Ending::Asked);
                    }
                    Verdict::Own(stream, Request::Machine) => {
                        let state = self.state(qemu.attached());
                        self.router.answer(id, stream, &Ok(Reply::Machine(state)));
                    }
                    // Short: the emulator answers in milliseconds, and is given up when it does not.
                    Verdict::Own(stream, request) => {
                        let done = qemu.disks(&request).await;
                        self.router.answer(id, stream, &done);
                        busy = true;
                    }
                }
            }
            Input::Guest(frame) => {
                if let Some(slow) = self.router.from_guest(&frame) {
                    self.router.disconnect(slow);
                }
            }
            Input::GuestGone => return Some(Ending::MachineGone),
        }
        if busy || self.router.busy() > 0 {
            self.quiet_since = Instant::now();
        }
        None
    }

    fn state(&self, disks: Vec<String>) -> MachineState {
        let left = self
            .idle_at()
            .map(|at| at.saturating_duration_since(Instant::now()));
        MachineState {
            busy: self.router.busy() as u64,
            idle_left_ms: left.map(|left| left.as_millis().try_into().unwrap_or(u64::MAX)),
            disks,
        }
    }

    fn greet(&self, socket: UnixStream) {
        let (sender, hello) = (self.sender.clone(), Arc::clone(&self.hello));
        tokio::spawn(async move {
            let (reader, mut writer) = socket.into_split();
            if let Ok(Ok((reader, _))) =
                timeout(GREETING, greet_host(reader, &mut writer, &hello)).await
            {
                // Closed only when the monitor ends.
                let _ = sender.send(Input::ClientGreeted(reader, writer)).await;
            }
        });
    }

    fn add_client(
        &mut self,
        reader: FrameReader<tokio::net::unix::OwnedReadHalf>,
        writer: tokio::net::unix::OwnedWriteHalf,
    ) {
        let (queue, frames) = client_queue();
        let id = self.router.connect(queue);
        self.writers.spawn(write_to_client(writer, frames));
        tokio::spawn(read_from_client(reader, id, self.sender.clone()));
    }

    /// Stops the guest cleanly, or by force when it does not go.
    async fn power_off(&mut self, qemu: &mut impl Emulator) {
        self.router.own_request(&Request::Shutdown);
        let gone = async {
            loop {
                tokio::select! {
                    () = qemu.ended() => return,
                    Some(input) = self.inbox.recv() => match input {
                        Input::Guest(frame) => drop(self.router.from_guest(&frame)),
                        Input::ClientGone(id) => self.router.disconnect(id),
                        // The agent has closed its port: the end is near.
                        Input::GuestGone => {
                            let _ = timeout(POWER_OFF, qemu.ended()).await;
                            return;
                        }
                        _ => {}
                    },
                }
            }
        };
        if timeout(POWER_OFF, gone).await.is_err() {
            qemu.finish(Duration::ZERO).await;
        }
    }

    /// Answers those who asked for the stop, and lets the last bytes out.
    async fn farewell(mut self) {
        for (id, stream) in std::mem::take(&mut self.waiting_for_stop) {
            self.router.answer(id, stream, &Ok(Reply::Bye));
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

async fn read_from_client<R: tokio::io::AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    id: ClientId,
    sender: mpsc::Sender<Input>,
) {
    let share = Arc::new(Semaphore::new(CLIENT_SHARE));
    while let Ok(frame) = reader.next().await {
        let size = u32::try_from(frame.payload.len() + HEADER_LEN).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&share).acquire_many_owned(size).await else {
            break;
        };
        if sender.send(Input::Client(id, frame, permit)).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Input::ClientGone(id)).await;
}

async fn write_to_client<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: ClientFrames,
) {
    while let Some(bytes) = frames.next().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_from_guest<R: tokio::io::AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    sender: mpsc::Sender<Input>,
) {
    // The end of the pipe and a broken protocol come to the same: this machine is of no more use.
    while let Ok(frame) = reader.next().await {
        if sender.send(Input::Guest(frame)).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Input::GuestGone).await;
}

async fn write_to_guest<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: mpsc::UnboundedReceiver<ToGuest>,
) {
    while let Some(ToGuest { bytes, share }) = frames.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
        drop(share);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;
    use vdkr_core::channel::{
        Pipe,
        message::{DiskRequest, RunRequest},
    };

    use super::*;
    use crate::vm::{
        channel::{Call, ChannelError, Connection, Incoming},
        fake_agent::FakeAgent,
        kept::{SOCKET, bind, connect, connect_socket},
        pipe::greet_guest,
    };

    /// Ends when the fake agent has, or when it is told to.
    #[derive(Clone, Default)]
    struct FakeEmulator {
        end: Arc<Notify>,
        disks: Vec<String>,
    }

    impl Emulator for FakeEmulator {
        async fn ended(&mut self) {
            self.end.notified().await;
            self.end.notify_one();
        }

        async fn finish(&mut self, _: Duration) {}

        async fn disks(&mut self, request: &Request) -> Done {
            match request {
                Request::AttachDisk(disk) if disk.path == "/missing" => {
                    Err(Failure::new(FailureCode::Failed, "no such file"))
                }
                Request::AttachDisk(disk) => {
                    self.disks.push(disk.serial.clone());
                    Ok(Reply::Attached)
                }
                Request::DetachDisk { serial } => {
                    self.disks.retain(|known| known != serial);
                    Ok(Reply::Detached)
                }
                other => panic!("{other:?}"),
            }
        }

        fn attached(&mut self) -> Vec<String> {
            self.disks.clone()
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        agent: FakeAgent,
        emulator: FakeEmulator,
        served: tokio::task::JoinHandle<io::Result<Ending>>,
    }

    async fn bench(idle: Option<Duration>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let (host, guest) = UnixStream::pair().unwrap();
        let hello = GuestHello {
            software: "fake 1".into(),
            ..GuestHello::default()
        };
        let agent = FakeAgent {
            hello,
            ..FakeAgent::default()
        };
        let emulator = FakeEmulator::default();
        let (serving, end) = (agent.clone().serve(guest), Arc::clone(&emulator.end));
        tokio::spawn(async move {
            serving.await;
            end.notify_one();
        });
        let (reader, mut writer) = host.into_split();
        let (reader, hello) = greet_guest(reader, &mut writer, "monitor").await.unwrap();
        let listener = bind(dir.path()).unwrap();
        let (path, mut qemu) = (dir.path().to_owned(), emulator.clone());
        let hub = Hub::new(reader, writer, hello, idle);
        let served = tokio::spawn(async move { hub.serve(listener, &path, &mut qemu).await });
        Bench {
            dir,
            agent,
            emulator,
            served,
        }
    }

    impl Bench {
        async fn connect(&self) -> Connection {
            connect(self.dir.path()).await.unwrap().unwrap()
        }
    }

    fn run(args: &[&str]) -> Request {
        let args = args.iter().map(ToString::to_string).collect();
        Request::Run(RunRequest {
            image: "i".into(),
            args,
            ..RunRequest::default()
        })
    }

    async fn finish(call: &mut Call) -> Result<(Vec<u8>, Done), ChannelError> {
        let mut out = Vec::new();
        loop {
            match call.next().await? {
                Incoming::Data(pipe, bytes) => {
                    assert_eq!(pipe, Pipe::Stdout);
                    call.sender().consumed(pipe, bytes.len()).await?;
                    out.extend(bytes);
                }
                Incoming::Event(_) => {}
                Incoming::Done(done) => return Ok((out, done)),
            }
        }
    }

    #[tokio::test]
    async fn disks_and_idle_time_are_the_monitors_own() {
        let bench = bench(Some(Duration::from_secs(1000))).await;
        let connection = bench.connect().await;
        let disk = |path: &str, serial: &str| {
            Request::AttachDisk(DiskRequest {
                path: path.into(),
                serial: serial.into(),
                read_only: true,
            })
        };
        let long = format!("/{}", "x".repeat(4000));
        for request in [disk("/a", "a"), disk(&long, "b")] {
            assert_eq!(connection.ask(&request).await.unwrap(), Ok(Reply::Attached));
        }
        let refused = connection.ask(&disk("/missing", "c")).await.unwrap();
        assert_eq!(refused.unwrap_err().message, "no such file");
        let detach = Request::DetachDisk { serial: "a".into() };
        assert_eq!(connection.ask(&detach).await.unwrap(), Ok(Reply::Detached));

        let state = async || match connection.ask(&Request::Machine).await.unwrap() {
            Ok(Reply::Machine(state)) => state,
            other => panic!("{other:?}"),
        };
        let idle = state().await;
        assert_eq!((idle.busy, idle.disks), (0, vec!["b".to_owned()]));
        let left = idle.idle_left_ms.unwrap();
        assert!((900_000..=1_000_000).contains(&left), "{left}");
        let waiting = connection.call(&run(&["signal"])).await.unwrap();
        while state().await.busy == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(state().await.idle_left_ms, None);
        drop(waiting);
        // None of it reached the agent.
        let requests = bench.agent.requests.lock().unwrap().clone();
        assert!(matches!(&requests[..], [Request::Run(_)]), "{requests:?}");
        bench.emulator.end.notify_one();
        bench.served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn many_clients_at_once_get_their_own_output() {
        let bench = bench(None).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..20_usize {
            let connection = bench.connect().await;
            assert_eq!(connection.hello().software, "fake 1");
            tasks.spawn(async move {
                let length = 200_000 + number;
                let mut call = connection
                    .call(&run(&["emit", &length.to_string()]))
                    .await
                    .unwrap();
                let (out, done) = finish(&mut call).await.unwrap();
                assert_eq!(done, Ok(Reply::Ran { status: 0 }));
                assert_eq!(out.len(), length);
                assert!(
                    out.iter()
                        .enumerate()
                        .all(|(i, &byte)| byte == (i % 251) as u8)
                );
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        bench.emulator.end.notify_one();
        assert_eq!(bench.served.await.unwrap().unwrap(), Ending::MachineGone);
        assert!(!bench.dir.path().join(SOCKET).exists());
    }

    #[tokio::test]
    async fn a_client_that_vanishes_is_cancelled_and_the_others_go_on() {
        let bench = bench(None).await;
        let staying = bench.connect().await;
        let mut stays = staying.call(&run(&["cat"])).await.unwrap();
        let socket = connect_socket(bench.dir.path()).await.unwrap().unwrap();
        let (reader, mut writer) = socket.into_split();
        let greeted = greet_guest(reader, &mut writer, "x").await.unwrap();
        let mut open = Vec::new();
        vdkr_core::channel::message::Message::encode(&run(&["endless"]), &mut open, 1).unwrap();
        writer.write_all(&open).await.unwrap();
        while bench.agent.requests.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        drop((greeted, writer));
        while bench.agent.cancelled.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        stays.sender().stdin(b"still here").await.unwrap();
        stays.sender().end_stdin().await.unwrap();
        assert_eq!(finish(&mut stays).await.unwrap().0, b"still here");
    }

    #[tokio::test]
    async fn stop_powers_off_and_answers() {
        let bench = bench(None).await;
        let (asking, other) = (bench.connect().await, bench.connect().await);
        let mut running = other.call(&run(&["signal"])).await.unwrap();
        assert_eq!(
            asking.ask(&Request::Shutdown).await.unwrap(),
            Ok(Reply::Bye)
        );
        assert_eq!(bench.served.await.unwrap().unwrap(), Ending::Asked);
        assert!(finish(&mut running).await.is_err());
        assert_eq!(
            bench.agent.requests.lock().unwrap().last(),
            Some(&Request::Shutdown)
        );
        assert!(connect(bench.dir.path()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_idle_machine_stops_but_a_busy_one_does_not() {
        let bench = bench(Some(Duration::from_mins(10))).await;
        let connection = bench.connect().await;
        let mut call = connection.call(&run(&["cat"])).await.unwrap();
        // The answer to this shows that the request above has arrived.
        connection.ask(&Request::Info).await.unwrap().unwrap();
        tokio::time::pause();
        tokio::time::sleep(Duration::from_mins(100)).await;
        call.sender().end_stdin().await.unwrap();
        assert_eq!(
            finish(&mut call).await.unwrap().1,
            Ok(Reply::Ran { status: 0 })
        );
        assert_eq!(bench.served.await.unwrap().unwrap(), Ending::Idle);
    }
}
