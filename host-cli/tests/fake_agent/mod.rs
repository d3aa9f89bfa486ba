//! An agent without a machine: it speaks the channel's protocol on a unix socket and does what
//! the arguments of a `run` say, so that the host's side can be tested to the byte.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Mutex as AsyncMutex, mpsc},
};
use vdkr_core::channel::{
    Assembler, Decoder, Frame, Kind, Pipe, SyncScanner, encode_data,
    message::{
        ContainerReply, ContainerRequest, ContainerRow, ContainerState, Done, Event, Failure,
        FailureCode, GuestHello, ImageRow, Info, MachineState, Message as _, NeededLayers, Phase,
        Publication, Pulled, Removed, Reply, Request, RowMount, RunRequest, Until, VolumeAction,
        VolumeRow,
    },
};
use vdkr_core::container::ports::{Protocol, Published};

mod stream;

use stream::Stream;

/// An agent and what it was asked.
#[derive(Clone, Default)]
pub(crate) struct FakeAgent {
    /// Every request, in order.
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
    /// Numbers of the streams that were cancelled.
    pub(crate) cancelled: Arc<Mutex<Vec<u32>>>,
    /// What it says in its greeting.
    pub(crate) hello: GuestHello,
    /// How many containers it says that there are.
    pub(crate) running: Arc<AtomicU64>,
    /// Whether it takes no notice of being told to power off.
    pub(crate) deaf_to_shutdown: Arc<AtomicBool>,
    /// Whether mounts are never there.
    pub(crate) mounts_nothing: Arc<AtomicBool>,
    /// Whether it answers nothing about itself.
    pub(crate) mute: Arc<AtomicBool>,
    /// How often it says which layers it has, before it says nothing of them any more; none when it
    /// does not know of layers.
    pub(crate) layers: Arc<Mutex<Option<u64>>>,
    /// What it says of them.
    pub(crate) needed: Arc<Mutex<NeededLayers>>,
    /// What is told of its machine, as if a monitor stood before it.
    pub(crate) machine: Arc<Mutex<MachineState>>,
    /// How many requests it turns away, as a monitor does that stops its machine, or drops with the
    /// connection when `drops` says so.
    pub(crate) refuses: Arc<AtomicU64>,
    /// Whether it goes without an answer instead.
    pub(crate) drops: Arc<AtomicBool>,
}

impl FakeAgent {
    /// Serves every connection to a socket.
    pub(crate) async fn listen(self, listener: UnixListener) {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(self.clone().serve(socket));
        }
    }

    /// Serves one connection until it ends or a command says `die`.
    pub(crate) async fn serve(self, socket: UnixStream) {
        let (mut reader, writer) = socket.into_split();
        let writer = Arc::new(AsyncMutex::new(writer));
        let mut scanner = SyncScanner::any();
        let mut decoder = Decoder::new();
        let mut assembler = Assembler::new();
        let mut streams: HashMap<u32, mpsc::UnboundedSender<Frame>> = HashMap::new();
        let (die, mut dying) = mpsc::channel::<()>(1);
        let mut synced = false;
        let mut buffer = vec![0; 8192];
        loop {
            let length = tokio::select! {
                read = reader.read(&mut buffer) => read.unwrap_or(0),
                _ = dying.recv() => 0,
            };
            if length == 0 {
                let _ = writer.lock().await.shutdown().await;
                return;
            }
            if synced {
                decoder.push(&buffer[..length]);
            } else {
                let Some((marker, rest)) = scanner.push(&buffer[..length]) else {
                    continue;
                };
                synced = true;
                let mut greeting = marker.to_bytes().to_vec();
                self.hello.encode(&mut greeting, 0).unwrap();
                writer.lock().await.write_all(&greeting).await.unwrap();
                decoder.push(rest);
            }
            while let Some(frame) = decoder.next().unwrap() {
                let Some(frame) = assembler.push(frame).unwrap() else {
                    continue;
                };
                if frame.kind == Kind::Open {
                    let (sender, frames) = mpsc::unbounded_channel();
                    streams.insert(frame.stream, sender);
                    let request = Request::decode(&frame.payload).unwrap();
                    // Commands look after the machine at their end.
                    if request != Request::Machine {
                        self.requests.lock().unwrap().push(request.clone());
                    }
                    let stream = Stream::new(frame.stream, frames, Arc::clone(&writer));
                    tokio::spawn(self.clone().answer(stream, request, die.clone()));
                } else if let Some(stream) = streams.get(&frame.stream) {
                    if frame.kind == Kind::Cancel {
                        self.cancelled.lock().unwrap().push(frame.stream);
                    }
                    let _ = stream.send(frame);
                }
            }
        }
    }

    async fn answer(self, mut stream: Stream, request: Request, die: mpsc::Sender<()>) {
        let refused = |left: u64| left.checked_sub(1);
        let order = Ordering::SeqCst;
        if request != Request::Machine && self.refuses.fetch_update(order, order, refused).is_ok() {
            if self.drops.load(order) {
                let _ = die.send(()).await;
            } else {
                let failure = Failure::new(
                    FailureCode::Unreachable,
                    "the virtual machine is being stopped",
                );
                stream.done(&Err(failure)).await;
            }
            return;
        }
        let done = match request {
            Request::Machine => Ok(Reply::Machine(self.machine.lock().unwrap().clone())),
            Request::Info if self.mute.load(order) => {
                while stream.wait().await {}
                return;
            }
            Request::Layers { .. } if self.layers.lock().unwrap().is_some() => {
                let answers = {
                    let mut left = self.layers.lock().unwrap();
                    let answers = left.is_some_and(|left| left > 0);
                    *left = left.map(|left| left.saturating_sub(1));
                    answers
                };
                if !answers {
                    while !stream.cancelled && stream.wait().await {}
                    return;
                }
                Ok(Reply::Layers(self.needed.lock().unwrap().clone()))
            }
            Request::Pull(pull) => pull_image(&mut stream, &pull.reference).await,
            Request::Run(run) => {
                let Some(done) = run_container(&mut stream, &run).await else {
                    let _ = die.send(()).await;
                    return;
                };
                done
            }
            Request::Container(request) => containers(&request),
            Request::Images => Ok(Reply::Images { images: images() }),
            Request::Inspect { names } => inspect(&names),
            Request::Remove { names, .. } => {
                match names.iter().find(|name| name.contains("missing")) {
                    Some(name) => Err(not_found(name)),
                    None => Ok(Reply::Removed {
                        removed: names
                            .iter()
                            .flat_map(|name| {
                                [
                                    Removed::Untagged(format!("docker.io/library/{name}:latest")),
                                    Removed::Deleted(format!("sha256:{}", "ab".repeat(32))),
                                ]
                            })
                            .collect(),
                    }),
                }
            }
            Request::Tag { .. } => Ok(Reply::Tagged),
            Request::Info => Ok(Reply::Info(Info {
                software: "fake 1".into(),
                arch: "amd64".into(),
                containers: self.running.load(Ordering::SeqCst),
                all_containers: Some(2),
                cpus: 3,
                ..Info::default()
            })),
            Request::MountShare { .. } if self.mounts_nothing.load(Ordering::SeqCst) => {
                while !stream.cancelled && stream.wait().await {}
                Err(Failure::new(FailureCode::Cancelled, "cancelled"))
            }
            Request::MountShare { .. } => mount(&mut stream).await,
            Request::Published => Ok(Reply::Published {
                publications: vec![Publication {
                    container: vec!["web".into(), "a".repeat(64)],
                    address: Ipv4Addr::new(10, 0, 2, 128),
                    ports: vec![Published {
                        address: Ipv4Addr::LOCALHOST,
                        host: 8080,
                        container: 80,
                        protocol: Protocol::Tcp,
                    }],
                }],
            }),
            Request::Release { .. } => Ok(Reply::Released),
            Request::KeepShare { share } => Ok(Reply::Shared { share }),
            // As if a monitor stood before it.
            Request::Share { .. } => Ok(Reply::Shared {
                share: "feedfeed".into(),
            }),
            Request::Shutdown if self.deaf_to_shutdown.load(Ordering::SeqCst) => {
                while stream.wait().await {}
                return;
            }
            Request::Shutdown => Ok(Reply::Bye),
            Request::Volume { action } => volume(action),
            _ => Err(Failure::new(FailureCode::Unsupported, "what?")),
        };
        let last = done == Ok(Reply::Bye);
        stream.done(&done).await;
        if last {
            let _ = die.send(()).await;
        }
    }
}

/// Mounts nothing: it sends one request of a kernel, and is done when the answer has come.
async fn mount(stream: &mut Stream) -> Done {
    stream.event(&Event::Mounted).await;
    // FUSE_GETATTR for the root.
    let mut request = Vec::new();
    for word in [56_u32, 3, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0] {
        request.extend(word.to_le_bytes());
    }
    stream.output(Pipe::Stdout, &request).await;
    while stream.stdin.len() < 16 + 104 && !stream.cancelled {
        if !stream.wait().await {
            break;
        }
    }
    if stream.stdin.get(..4) == Some(&[120, 0, 0, 0]) {
        while !stream.cancelled && stream.wait().await {}
        return Ok(Reply::Unmounted);
    }
    Err(Failure::new(FailureCode::Failed, "no answer"))
}

fn volume(action: VolumeAction) -> Done {
    let row = |name: &str| VolumeRow {
        name: name.into(),
        created: 1_577_934_245,
        mountpoint: format!("/var/lib/vdkr/volumes/{name}/_data"),
        ..VolumeRow::default()
    };
    match action {
        VolumeAction::Create { name, labels } => {
            let mut volume = row(&name.unwrap_or_else(|| "0123abcd".into()));
            volume.labels = labels;
            Ok(Reply::Volumes {
                volumes: vec![volume],
            })
        }
        VolumeAction::List { names } if names.is_empty() => Ok(Reply::Volumes {
            volumes: vec![row("data"), row("other")],
        }),
        VolumeAction::List { names } => match names.iter().find(|name| name.contains("missing")) {
            Some(name) => Err(Failure::new(
                FailureCode::NotFound,
                format!("no such volume: {name}"),
            )),
            None => Ok(Reply::Volumes {
                volumes: names.iter().map(|name| row(name)).collect(),
            }),
        },
        VolumeAction::Remove { names, .. } if names.iter().any(|name| name == "missing") => Err(
            Failure::new(FailureCode::NotFound, "no such volume: missing"),
        ),
        VolumeAction::Remove { names, .. } => Ok(Reply::VolumesRemoved { names, freed: 0 }),
        VolumeAction::Prune { .. } => Ok(Reply::VolumesRemoved {
            names: vec!["0123abcd".into()],
            freed: 4_261_550,
        }),
        VolumeAction::Unknown => Err(Failure::new(FailureCode::Unsupported, "what?")),
    }
}

fn not_found(name: &str) -> Failure {
    Failure::new(FailureCode::NotFound, format!("no such image: {name}"))
}

/// Two containers, `web` and `old`; others are missing.
fn containers(request: &ContainerRequest) -> Done {
    let row = |id: &str, name: &str, state| ContainerRow {
        id: id.repeat(64),
        name: name.into(),
        image: "base".into(),
        image_id: format!("sha256:{}", "0a".repeat(32)),
        command: vec!["sh".into()],
        state,
        exit_code: 3,
        network: "bridge".into(),
        ..ContainerRow::default()
    };
    match request {
        ContainerRequest::List => Ok(Reply::Container(ContainerReply::List {
            containers: vec![
                ContainerRow {
                    image: "10.0.2.2:5000/site".into(),
                    mounts: vec![RowMount {
                        source: "data".into(),
                        target: "/srv".into(),
                        volume: true,
                    }],
                    network: "host".into(),
                    ..row("a", "web", ContainerState::Running)
                },
                row("b", "old", ContainerState::Exited),
            ],
        })),
        ContainerRequest::Inspect { name } if name == "web" => Ok(Reply::Inspected {
            documents: vec![serde_json::json!({ "Name": "/web" })],
        }),
        ContainerRequest::Inspect { name } => Err(Failure::new(
            FailureCode::NotFound,
            format!("no such container: {name}"),
        )),
        ContainerRequest::Wait { .. } => Ok(Reply::Ran { status: 3 }),
        ContainerRequest::Exec(exec) if exec.args == ["missing"] => Ok(Reply::Ran { status: 127 }),
        ContainerRequest::Stop { name, .. } | ContainerRequest::Remove { name, .. }
            if name.contains("missing") =>
        {
            Err(Failure::new(
                FailureCode::NotFound,
                format!("no such container: {name}"),
            ))
        }
        _ => Ok(Reply::Container(ContainerReply::Done)),
    }
}

fn images() -> Vec<ImageRow> {
    let row = |name: &str, tag: Option<&str>, byte: &str, size| ImageRow {
        name: name.into(),
        tag: tag.map(Into::into),
        digest: Some(format!("sha256:{}", byte.repeat(32))),
        id: format!("sha256:{}", byte.repeat(32)),
        created: Some("2020-01-02T03:04:05Z".into()),
        size,
        ..ImageRow::default()
    };
    vec![
        row(
            "10.0.2.2:5000/yocto/container-base",
            Some("latest"),
            "0a",
            4_261_550,
        ),
        row("docker.io/library/alpine", None, "0b", 5_000),
    ]
}

fn inspect(names: &[String]) -> Done {
    match names.iter().find(|name| name.contains("missing")) {
        Some(name) => Err(not_found(name)),
        None => Ok(Reply::Inspected {
            documents: names
                .iter()
                .map(|name| serde_json::json!({ "Id": name }))
                .collect(),
        }),
    }
}

async fn pull_image(stream: &mut Stream, reference: &str) -> Done {
    stream
        .event(&Event::Trying {
            reference: reference.into(),
        })
        .await;
    for done in [0, 50, 100] {
        let (layer, total) = (
            format!("sha256:{}", "0123456789abcdef".repeat(4)),
            Some(100),
        );
        stream
            .event(&Event::Progress {
                layer,
                phase: Phase::Download,
                done,
                total,
            })
            .await;
    }
    if reference.contains("missing") {
        return Err(not_found(reference));
    }
    if reference.contains("down") {
        return Err(
            Failure::new(FailureCode::Unreachable, "cannot reach 10.0.2.2:5000")
                .with_hint("use --no-registry to pull from docker hub"),
        );
    }
    Ok(Reply::Pulled(Pulled {
        name: format!("10.0.2.2:5000/yocto/{reference}:latest"),
        digest: format!("sha256:{}", "0a".repeat(32)),
        id: format!("sha256:{}", "0b".repeat(32)),
        size: 1234,
    }))
}

/// Does what the first argument says; `None` ends the connection.
async fn run_container(stream: &mut Stream, run: &RunRequest) -> Option<Done> {
    if run.image == "missing" {
        return Some(Err(not_found("missing")));
    }
    if run.life.until != Until::Ended {
        return Some(Ok(Reply::Container(ContainerReply::Created {
            id: "c".repeat(64),
        })));
    }
    let started = Event::Started {
        pid: 7,
        container: "c".repeat(64),
    };
    stream.event(&started).await;
    let args: Vec<&str> = run.args.iter().map(String::as_str).collect();
    let status = match args[..] {
        ["exit", status] => status.parse().unwrap(),
        // Output of a known pattern: byte i is i modulo 251.
        ["emit", length] => {
            let bytes: Vec<u8> = (0..length.parse::<usize>().unwrap())
                .map(|i| (i % 251) as u8)
                .collect();
            if !stream.output(Pipe::Stdout, &bytes).await {
                return Some(Err(Failure::new(FailureCode::Cancelled, "cancelled")));
            }
            0
        }
        ["endless"] => {
            while stream.output(Pipe::Stdout, &[b'y'; 8192]).await {}
            return Some(Err(Failure::new(FailureCode::Cancelled, "cancelled")));
        }
        ["both", out, err] => {
            stream.output(Pipe::Stderr, err.as_bytes()).await;
            stream.output(Pipe::Stdout, out.as_bytes()).await;
            3
        }
        ["cat"] => loop {
            let bytes = std::mem::take(&mut stream.stdin);
            stream.consumed(bytes.len()).await;
            stream.output(Pipe::Stdout, &bytes).await;
            if stream.stdin.is_empty() && stream.stdin_ended {
                break 0;
            }
            if stream.stdin.is_empty() && !stream.wait().await {
                return None;
            }
        },
        ["signal"] => {
            stream.output(Pipe::Stdout, b"ready\n").await;
            while stream.signals.is_empty() && !stream.cancelled {
                if !stream.wait().await {
                    return None;
                }
            }
            128 + i32::from(stream.signals.first().copied().unwrap_or(9))
        }
        // Says how often it was signalled, until it is cancelled.
        ["stubborn"] => {
            stream.output(Pipe::Stdout, b"ready\n").await;
            while !stream.cancelled {
                if !stream.wait().await {
                    return None;
                }
                while stream.signals.pop().is_some() {
                    stream.output(Pipe::Stdout, b"no\n").await;
                }
            }
            return Some(Err(Failure::new(FailureCode::Cancelled, "cancelled")));
        }
        ["size"] => {
            while stream.sizes.is_empty() {
                if !stream.wait().await {
                    return None;
                }
            }
            let (rows, cols) = stream.sizes[0];
            stream
                .output(Pipe::Stdout, format!("{rows}x{cols}\r\n").as_bytes())
                .await;
            0
        }
        // Breaks the rules: more than was granted.
        ["flood"] => {
            let mut frames = Vec::new();
            encode_data(
                &mut frames,
                Pipe::Stdout,
                stream.number,
                &vec![0; 512 * 1024],
            );
            let _ = stream.writer.lock().await.write_all(&frames).await;
            while stream.wait().await {}
            return None;
        }
        ["die"] => return None,
        // Shows its arguments as JSON.
        _ => {
            let text = serde_json::to_string(run).unwrap();
            stream.output(Pipe::Stdout, text.as_bytes()).await;
            0
        }
    };
    Some(Ok(Reply::Ran { status }))
}
