use std::cell::Cell;

use tokio::{
    io::DuplexStream,
    task::{JoinHandle, LocalSet, spawn_local},
};
use vdkr_core::channel::{
    INITIAL_CREDIT, MAX_PAYLOAD, Pipe, SyncMarker,
    frame::{Credit, signal_payload},
    message::{PullRequest, Reply},
};

use super::*;
use crate::channel::Control;

/// Answers `info` at once, echoes input for `images`, waits for the end for everything else.
#[derive(Default)]
struct Echo {
    cancelled: Cell<u32>,
    answered: Cell<u32>,
}

impl Service for Echo {
    fn greet(self: Rc<Self>, _: HostHello) -> LocalFuture<GuestHello> {
        Box::pin(std::future::ready(GuestHello {
            software: "test".into(),
            ..GuestHello::default()
        }))
    }

    fn handle(self: Rc<Self>, request: Request, stream: SharedStream) -> LocalFuture<Done> {
        Box::pin(async move {
            match request {
                Request::Info => Ok(Reply::Tagged),
                Request::Images => {
                    while let Some(bytes) = stream.read().await {
                        for piece in bytes.chunks(1000) {
                            let mut left = piece;
                            while !left.is_empty() {
                                let room = stream.writable(Pipe::Stdout).await.min(left.len());
                                let mut frame = vec![0; vdkr_core::channel::HEADER_LEN];
                                frame.extend_from_slice(&left[..room]);
                                stream.write(Pipe::Stdout, frame).await.unwrap();
                                left = &left[room..];
                            }
                        }
                        stream.consumed(bytes.len()).await;
                    }
                    stream.end(Pipe::Stdout).await;
                    Ok(Reply::Tagged)
                }
                Request::Shutdown => match stream.control().await {
                    Control::Signal(number) => Ok(Reply::Ran {
                        status: number.into(),
                    }),
                    Control::Resize(_) | Control::Detach => Ok(Reply::Tagged),
                },
                _ => {
                    stream.cancelled().cancelled().await;
                    self.cancelled.set(self.cancelled.get() + 1);
                    Err(Failure::new(FailureCode::Cancelled, "cancelled"))
                }
            }
        })
    }

    fn answered(&self, _: &Done) {
        self.answered.set(self.answered.get() + 1);
    }
}

struct Host {
    pipe: DuplexStream,
    decoder: Decoder,
}

impl Host {
    async fn greet(mut pipe: DuplexStream, nonce: u8) -> Self {
        let marker = SyncMarker::new([nonce; 8]);
        pipe.write_all(&marker.to_bytes()).await.unwrap();
        Self::greeted(pipe, marker).await
    }

    /// Waits for the answer to a marker and says hello.
    async fn greeted(pipe: DuplexStream, marker: SyncMarker) -> Self {
        let mut host = Self {
            pipe,
            decoder: Decoder::new(),
        };
        let mut scanner = SyncScanner::exactly(marker);
        let mut buffer = [0; 4096];
        loop {
            let length = host.pipe.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the agent hung up");
            if let Some((_, rest)) = scanner.push(&buffer[..length]) {
                host.decoder.push(rest);
                break;
            }
        }
        let mut bytes = Vec::new();
        HostHello::new("test", 0, &[1; 32])
            .encode(&mut bytes, 0)
            .unwrap();
        host.pipe.write_all(&bytes).await.unwrap();
        assert_eq!(host.next().await.kind, Kind::Hello);
        host
    }

    async fn send(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode(&mut bytes, kind, stream, payload).unwrap();
        self.pipe.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes, stream).unwrap();
        self.pipe.write_all(&bytes).await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        let mut buffer = vec![0; 70_000];
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return frame;
            }
            let length = self.pipe.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the agent hung up");
            self.decoder.push(&buffer[..length]);
        }
    }

    async fn done(&mut self, stream: u32) -> Done {
        loop {
            let frame = self.next().await;
            if frame.kind == Kind::Done && frame.stream == stream {
                return Done::decode(&frame.payload).unwrap();
            }
        }
    }
}

fn pull() -> Request {
    Request::Pull(PullRequest::default())
}

type Agent = (DuplexStream, Rc<Echo>, JoinHandle<io::Result<()>>);

fn start() -> Agent {
    let (host, agent) = tokio::io::duplex(256 * 1024);
    let service = Rc::new(Echo::default());
    let task = spawn_local(serve(agent, service.clone()));
    (host, service, task)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn streams_are_answered_each_on_its_own() {
    run(async {
        let (pipe, service, task) = start();
        let mut host = Host::greet(pipe, 1).await;
        host.open(1, &pull()).await;
        host.open(2, &Request::Info).await;
        assert_eq!(host.done(2).await, Ok(Reply::Tagged));
        host.open(3, &Request::Shutdown).await;
        host.send(Kind::Signal, 3, &signal_payload(15)).await;
        assert_eq!(host.done(3).await, Ok(Reply::Ran { status: 15 }));
        host.send(Kind::Cancel, 1, &[]).await;
        assert_eq!(host.done(1).await.unwrap_err().code, FailureCode::Cancelled);
        host.send(Kind::Ping, 0, &[]).await;
        assert_eq!(host.next().await.kind, Kind::Pong);
        assert_eq!(service.answered.get(), 3);
        drop(host);
        task.await.unwrap().unwrap();
    });
}

#[test]
fn output_stops_without_credit_and_goes_on_with_it() {
    run(async {
        let (pipe, ..) = start();
        let mut host = Host::greet(pipe, 1).await;
        host.open(1, &Request::Images).await;
        let window = INITIAL_CREDIT as usize;
        for _ in 0..window / MAX_PAYLOAD {
            host.send(Kind::Stdin, 1, &vec![7; MAX_PAYLOAD]).await;
        }
        let (mut received, mut granted) = (0, 0);
        while received < window {
            let frame = host.next().await;
            match frame.kind {
                Kind::Stdout => received += frame.payload.len(),
                Kind::Credit => {
                    granted += Credit::from_payload(&frame.payload).unwrap().bytes as usize;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, window);
        // All of the input was taken; one more piece finds no credit for its way back.
        while granted < window {
            let frame = host.next().await;
            assert_eq!(frame.kind, Kind::Credit);
            granted += Credit::from_payload(&frame.payload).unwrap().bytes as usize;
        }
        host.send(Kind::Stdin, 1, b"more").await;
        host.send(Kind::Eof, 1, &Pipe::Stdin.to_payload()).await;
        host.send(Kind::Ping, 0, &[]).await;
        assert_eq!(host.next().await.kind, Kind::Pong);
        let credit = Credit {
            pipe: Pipe::Stdout,
            bytes: 4,
        };
        host.send(Kind::Credit, 1, &credit.to_payload()).await;
        let frame = host.next().await;
        assert_eq!(
            (frame.kind, frame.payload),
            (Kind::Stdout, b"more".to_vec())
        );
        assert_eq!(host.next().await.kind, Kind::Eof);
        assert_eq!(host.done(1).await, Ok(Reply::Tagged));
    });
}

#[test]
fn a_host_that_breaks_the_rules_is_let_go_and_the_next_one_served() {
    run(async {
        let (pipe, service, _task) = start();
        let mut host = Host::greet(pipe, 1).await;
        host.open(1, &pull()).await;
        // More input than was granted.
        for _ in 0..=INITIAL_CREDIT as usize / MAX_PAYLOAD {
            host.send(Kind::Stdin, 1, &vec![0; MAX_PAYLOAD]).await;
        }
        let mut host = Host::greet(host.pipe, 2).await;
        assert_eq!(service.cancelled.get(), 1);
        host.open(1, &Request::Info).await;
        assert_eq!(host.done(1).await, Ok(Reply::Tagged));
    });
}

#[test]
fn a_new_host_is_noticed_wherever_the_old_one_stopped() {
    let mut old = Vec::new();
    encode(&mut old, Kind::Stdin, 1, &[3; 300]).unwrap();
    for cut in [0, 1, 2, 3, 4, 5, 8, 9, 10, 100, 308] {
        let old = old.clone();
        run(async move {
            let (pipe, service, _task) = start();
            let mut host = Host::greet(pipe, 1).await;
            host.open(1, &pull()).await;
            host.open(2, &Request::Info).await;
            assert_eq!(host.done(2).await, Ok(Reply::Tagged));
            host.pipe.write_all(&old[..cut]).await.unwrap();
            let mut host = Host::greet(host.pipe, 2).await;
            assert_eq!(service.cancelled.get(), 1, "cut at {cut}");
            host.open(1, &Request::Info).await;
            assert_eq!(host.done(1).await, Ok(Reply::Tagged));
        });
    }
}

#[test]
fn a_marker_within_input_is_input() {
    run(async {
        let (pipe, ..) = start();
        let mut host = Host::greet(pipe, 1).await;
        host.open(1, &Request::Images).await;
        let mut frame = Vec::new();
        let mut payload = SyncMarker::new([9; 8]).to_bytes().to_vec();
        payload.extend(b"and more");
        encode(&mut frame, Kind::Stdin, 1, &payload).unwrap();
        let (head, tail) = frame.split_at(frame.len() - b"and more".len());
        host.pipe.write_all(head).await.unwrap();
        tokio::task::yield_now().await;
        host.pipe.write_all(tail).await.unwrap();
        host.send(Kind::Eof, 1, &Pipe::Stdin.to_payload()).await;
        assert_eq!(host.next().await.payload, payload);
    });
}

#[test]
fn nothing_is_done_before_the_greeting() {
    run(async {
        let (mut pipe, service, _task) = start();
        let marker = SyncMarker::new([1; 8]);
        pipe.write_all(b"old rubbish").await.unwrap();
        pipe.write_all(&marker.to_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        Request::Info.encode(&mut bytes, 1).unwrap();
        pipe.write_all(&bytes).await.unwrap();
        let mut host = Host::greet(pipe, 2).await;
        assert_eq!(service.answered.get(), 0);
        host.open(1, &Request::Info).await;
        assert_eq!(host.done(1).await, Ok(Reply::Tagged));
    });
}

#[test]
fn unreadable_and_repeated_requests() {
    run(async {
        let (pipe, service, _task) = start();
        let mut host = Host::greet(pipe, 1).await;
        host.send(Kind::Open, 1, b"{").await;
        assert_eq!(host.done(1).await.unwrap_err().code, FailureCode::Usage);
        host.open(2, &pull()).await;
        host.open(2, &Request::Info).await;
        let mut host = Host::greet(host.pipe, 2).await;
        assert_eq!(service.cancelled.get(), 1);
        for id in 1..=MAX_STREAMS as u32 + 1 {
            host.open(id, &pull()).await;
        }
        let mut next = MAX_STREAMS as u32 + 1;
        let refused = host.done(next).await.unwrap_err();
        assert!(refused.message.contains("too many"), "{refused}");
        // What makes room is heard all the same, so many at a time; the end in any case.
        let release = Request::Release {
            share: "00ff".into(),
        };
        for _ in 0..=SPARE_STREAMS {
            next += 1;
            host.open(next, &release).await;
        }
        let refused = host.done(next).await.unwrap_err();
        assert!(refused.message.contains("too many"), "{refused}");
        host.send(Kind::Cancel, next - 1, &[]).await;
        let code = host.done(next - 1).await.unwrap_err().code;
        assert_eq!(code, FailureCode::Cancelled);
        host.open(next + 1, &Request::Shutdown).await;
        host.send(Kind::Signal, next + 1, &signal_payload(15)).await;
        assert_eq!(host.done(next + 1).await, Ok(Reply::Ran { status: 15 }));
    });
}
