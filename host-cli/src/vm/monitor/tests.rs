use tokio::{io::AsyncWriteExt as _, sync::Notify};
use vdkr_core::channel::{
    Pipe,
    message::{DiskRequest, PublishRequest, RunRequest},
};

use super::*;
use crate::vm::{
    channel::{Call, ChannelError, Connection, Incoming},
    fake_agent::FakeAgent,
    kept::{SOCKET, bind, connect, connect_socket},
    pipe::greet_guest,
    qmp::QmpError,
};

/// Ends when the fake agent has, or when it is told to.
#[derive(Clone, Default)]
struct FakeEmulator {
    end: Arc<Notify>,
    lines: Arc<std::sync::Mutex<Vec<String>>>,
    disks: Vec<String>,
    health: Arc<std::sync::Mutex<Health>>,
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

    async fn human(&mut self, line: &str) -> Result<String, QmpError> {
        self.lines.lock().unwrap().push(line.to_owned());
        Ok(String::new())
    }

    fn attached(&mut self) -> Vec<String> {
        self.disks.clone()
    }

    async fn health(&mut self) -> Health {
        let mut health = self.health.lock().unwrap();
        // Errors are told once.
        let disk_errors = std::mem::take(&mut health.disk_errors);
        let stopped = health.stopped.clone();
        Health {
            disk_errors,
            stopped,
        }
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

/// Asks from a process of its own, as it were, that ends: a connection of this one would stay.
async fn ask_and_go(state: &Path, requests: Vec<Request>) -> Vec<Done> {
    let state = state.to_owned();
    let client = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = connect(&state).await.unwrap().unwrap();
            let mut answers = Vec::new();
            for request in &requests {
                answers.push(client.ask(request).await.unwrap());
            }
            answers
        })
    });
    client.await.unwrap()
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
async fn failing_disks_are_told_to_everybody_until_the_machine_stops() {
    let bench = bench(None).await;
    let fails = |error: &str| {
        let mut health = bench.emulator.health.lock().unwrap();
        health.disk_errors.push(error.to_owned());
    };
    let (first, second) = (bench.connect().await, bench.connect().await);
    let look = async |client: &Connection| match client.ask(&Request::Machine).await.unwrap() {
        Ok(Reply::Machine(state)) => (state.disk_errors, state.stopped),
        other => panic!("{other:?}"),
    };
    assert_eq!(look(&first).await, (vec![], None));
    fails("no room in a");
    fails("no room in a");
    bench.emulator.health.lock().unwrap().stopped = Some("paused".into());
    for client in [&first, &second] {
        let told = (vec!["no room in a".to_owned()], Some("paused".to_owned()));
        assert_eq!(look(client).await, told);
    }
    for number in 0..100 {
        fails(&format!("error {number}"));
    }
    assert_eq!(look(&first).await.0.len(), MAX_DISK_ERRORS);
    // Who stops it is told as well.
    match second.ask(&Request::Shutdown).await.unwrap() {
        Ok(Reply::Machine(state)) => assert_eq!(state.disk_errors[0], "no room in a"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.served.await.unwrap().unwrap(), Ending::Asked);
}

#[tokio::test]
async fn a_disk_that_fails_at_the_last_write_is_told_of() {
    let bench = bench(None).await;
    let client = bench.connect().await;
    // Nobody looks between this and the end.
    let health = Arc::clone(&bench.emulator.health);
    health.lock().unwrap().disk_errors.push("too late".into());
    match client.ask(&Request::Shutdown).await.unwrap() {
        Ok(Reply::Machine(state)) => assert_eq!(state.disk_errors, ["too late"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn disks_and_idle_time_are_the_monitors_own() {
    let bench = bench(Some(Duration::from_secs(1000))).await;
    let disk = |path: &str, serial: &str| {
        Request::AttachDisk(DiskRequest {
            path: path.into(),
            serial: serial.into(),
            read_only: true,
        })
    };
    let long = format!("/{}", "x".repeat(4000));
    let requests = vec![
        disk("/a", "a"),
        disk(&long, "b"),
        disk("/missing", "c"),
        Request::DetachDisk { serial: "a".into() },
    ];
    let mut answers = ask_and_go(bench.dir.path(), requests).await;
    let refused = answers.remove(2).unwrap_err();
    assert_eq!(refused.message, "no such file");
    let done = [
        Ok(Reply::Attached),
        Ok(Reply::Attached),
        Ok(Reply::Detached),
    ];
    assert_eq!(answers, done);

    let onlooker = bench.connect().await;
    let state = async || match onlooker.ask(&Request::Machine).await.unwrap() {
        Ok(Reply::Machine(state)) => state,
        other => panic!("{other:?}"),
    };
    // One that looks keeps nothing; the one above goes in a moment.
    let idle = loop {
        let idle = state().await;
        if idle.idle_left_ms.is_some() {
            break idle;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((idle.busy, idle.disks), (0, vec!["b".to_owned()]));
    let left = idle.idle_left_ms.unwrap();
    assert!((900_000..=1_000_000).contains(&left), "{left}");
    // One that works keeps the machine, between its requests too.
    let connection = bench.connect().await;
    let waiting = connection.call(&run(&["signal"])).await.unwrap();
    while state().await.busy == 0 {
        tokio::task::yield_now().await;
    }
    drop(waiting);
    while state().await.busy > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(state().await.idle_left_ms, None);
    // None of it reached the agent.
    let requests = bench.agent.requests.lock().unwrap().clone();
    assert!(matches!(&requests[..], [Request::Run(_)]), "{requests:?}");
    bench.emulator.end.notify_one();
    bench.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_container_that_runs_keeps_the_machine() {
    use std::sync::atomic::Ordering;
    let bench = bench(Some(Duration::from_millis(50))).await;
    bench.agent.running.store(1, Ordering::SeqCst);
    let asked = || bench.agent.requests.lock().unwrap().len();
    while asked() < 3 {
        assert!(!bench.served.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.agent.running.store(0, Ordering::SeqCst);
    assert_eq!(bench.served.await.unwrap().unwrap(), Ending::Idle);
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
async fn ports_are_the_monitors_own_and_end_with_their_owner() {
    let bench = bench(None).await;
    let other = bench.connect().await;
    let ask = async |connection: &Connection, request: Request| match connection
        .ask(&request)
        .await
        .unwrap()
    {
        Ok(Reply::Published { publications }) => publications,
        other => panic!("{other:?}"),
    };
    let ports = vdkr_core::container::ports::parse_publish("80-81").unwrap();
    let request = Request::Publish(PublishRequest {
        ports,
        name: Some("web".into()),
        ..PublishRequest::default()
    });
    // A client that vanishes takes its ports with it.
    let socket = connect_socket(bench.dir.path()).await.unwrap().unwrap();
    let (reader, mut writer) = socket.into_split();
    let greeted = greet_guest(reader, &mut writer, "x").await.unwrap();
    let mut open = Vec::new();
    vdkr_core::channel::message::Message::encode(&request, &mut open, 1).unwrap();
    writer.write_all(&open).await.unwrap();
    let opened = loop {
        let opened = ask(&other, Request::Published).await;
        if !opened.is_empty() {
            break opened;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((opened.len(), opened[0].ports.len()), (1, 2));
    let kept = ask(&other, request).await.remove(0);
    assert_ne!(kept.address, opened[0].address);
    drop((greeted, writer));

    // A container that goes on keeps its ports; the fake agent says at once that it has ended.
    while ask(&other, Request::Published).await.len() > 1 {
        tokio::task::yield_now().await;
    }
    let id = "c".repeat(64);
    let adopted = ask(&other, Request::AdoptPorts { id: id.clone() }).await;
    assert_eq!(adopted[0].container, ["web".to_owned(), id]);
    while !ask(&other, Request::Published).await.is_empty() {
        tokio::task::yield_now().await;
    }
    let lines = bench.emulator.lines.lock().unwrap().clone();
    let removed = lines
        .iter()
        .filter(|line| line.starts_with("hostfwd_remove net0 tcp:"));
    assert_eq!((lines.len(), removed.count()), (8, 4));
    let requests = bench.agent.requests.lock().unwrap().clone();
    assert!(
        matches!(
            &requests[..],
            [Request::Container(ContainerRequest::Wait { .. })]
        ),
        "{requests:?}"
    );
    bench.emulator.end.notify_one();
    bench.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn stop_powers_off_and_answers() {
    let bench = bench(None).await;
    let (asking, other) = (bench.connect().await, bench.connect().await);
    let mut running = other.call(&run(&["signal"])).await.unwrap();
    while bench.agent.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
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
    // A client without a request pulls, perhaps.
    tokio::time::sleep(Duration::from_mins(100)).await;
    connection.ask(&Request::Info).await.unwrap().unwrap();
    bench.emulator.end.notify_one();
    assert_eq!(bench.served.await.unwrap().unwrap(), Ending::MachineGone);
}

#[tokio::test]
async fn requests_that_come_too_late_are_answered() {
    // An agent that says nothing more until it is told to end.
    let bench = bench(None).await;
    bench
        .agent
        .deaf_to_shutdown
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let (first, second, late) = (
        bench.connect().await,
        bench.connect().await,
        bench.connect().await,
    );
    let stop = tokio::spawn(async move { first.ask(&Request::Shutdown).await.unwrap() });
    while bench.agent.requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let again = tokio::spawn(async move { second.ask(&Request::Shutdown).await.unwrap() });
    for request in [run(&["cat"]), Request::Info] {
        let failure = late.ask(&request).await.unwrap().unwrap_err();
        assert_eq!(failure.code, FailureCode::Unreachable);
    }
    bench.emulator.end.notify_one();
    assert_eq!(bench.served.await.unwrap().unwrap(), Ending::Asked);
    for stop in [stop, again] {
        assert_eq!(stop.await.unwrap(), Ok(Reply::Bye));
    }
    assert_eq!(*bench.agent.requests.lock().unwrap(), [Request::Shutdown]);
}

#[tokio::test]
async fn a_container_with_a_directory_that_has_ended_keeps_no_machine() {
    let bench = bench(Some(Duration::from_millis(50))).await;
    let shared = tempfile::tempdir().unwrap();
    let request = Request::Share {
        path: shared.path().to_str().unwrap().to_owned(),
        read_only: false,
        name: None,
    };
    let answers = ask_and_go(bench.dir.path(), vec![request]).await;
    assert!(matches!(answers[..], [Ok(Reply::Shared { .. })]));
    // The mount is there until the end.
    assert_eq!(bench.served.await.unwrap().unwrap(), Ending::Idle);
    let asked = bench.agent.requests.lock().unwrap().clone();
    assert!(matches!(asked[0], Request::MountShare { .. }), "{asked:?}");
}

#[tokio::test]
async fn a_path_is_served_for_a_client_as_long_as_it_is_there() {
    let bench = bench(None).await;
    let shared = tempfile::tempdir().unwrap();
    let share = |path: &Path| Request::Share {
        path: path.to_str().unwrap().to_owned(),
        read_only: true,
        name: None,
    };
    let missing = shared.path().join("no");
    let paths = [shared.path(), shared.path(), &missing];
    let mut answers = ask_and_go(bench.dir.path(), paths.map(share).into()).await;
    let failure = answers.pop().unwrap().unwrap_err();
    assert_eq!(failure.code, FailureCode::NotFound);
    assert!(failure.hint.unwrap().contains("mkdir -p"));
    let names: Vec<String> = answers
        .into_iter()
        .map(|answer| match answer {
            Ok(Reply::Shared { share }) => share,
            other => panic!("{other:?}"),
        })
        .collect();
    // The same directory is there once.
    assert_eq!(names[0], names[1]);
    // The agent got a name and no path; the fake one goes on only when its request is answered.
    let asked = bench.agent.requests.lock().unwrap().clone();
    assert!(matches!(
        &asked[0],
        Request::MountShare { share, directory: true, read_only: true } if *share == names[0]
    ));

    let share_name = names[0].clone();
    let release = Request::Release {
        share: share_name.clone(),
    };
    let count = |what: &dyn Fn(&Request) -> bool| {
        let asked = bench.agent.requests.lock().unwrap();
        asked.iter().filter(|request| what(request)).count()
    };
    while count(&|request| *request == release) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // Containers that have ended hold it; many more runs take no second one.
    for runs in 1..=300 {
        let answers = ask_and_go(bench.dir.path(), vec![share(shared.path())]).await;
        let share = share_name.clone();
        assert_eq!(answers, [Ok(Reply::Shared { share })]);
        while count(&|request| *request == release) <= runs {
            tokio::task::yield_now().await;
        }
    }
    let mounts = |request: &Request| matches!(request, Request::MountShare { .. });
    assert_eq!(count(&mounts), 1);

    // A link that came after the client's look is not followed.
    let link = shared.path().join("link");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    let answers = ask_and_go(bench.dir.path(), vec![share(&link)]).await;
    let failure = answers[0].as_ref().unwrap_err();
    assert!(failure.message.contains("symbolic link"), "{failure:?}");
    assert!(failure.message.contains(link.to_str().unwrap()));

    // Another directory in its place is another one.
    let place = shared.path().join("a");
    let mut seen = vec![share_name];
    for _ in 0..2 {
        std::fs::create_dir(&place).unwrap();
        let client = bench.connect().await;
        match client.ask(&share(&place)).await.unwrap() {
            Ok(Reply::Shared { share }) if !seen.contains(&share) => seen.push(share),
            other => panic!("{other:?}"),
        }
        std::fs::remove_dir(&place).unwrap();
    }
    assert_eq!(count(&mounts), 3);
    bench.emulator.end.notify_one();
    bench.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn clients_that_have_gone_leave_no_task_behind() {
    let (host, _guest) = UnixStream::pair().unwrap();
    let (reader, writer) = host.into_split();
    let reader = FrameReader::new(reader);
    let mut hub = Hub::new(reader, writer, GuestHello::default(), None);
    for id in 1..=100 {
        let (near, far) = UnixStream::pair().unwrap();
        let (reader, writer) = near.into_split();
        hub.add_client(FrameReader::new(reader), writer, By::Other);
        drop(far);
        hub.disconnect(id);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(hub.writers.len() < 10, "{}", hub.writers.len());
}
