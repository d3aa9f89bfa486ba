//! The server on a real socket: slow, silent, greedy and disappearing clients, and the end of it all.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Bench, noise};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vdkr_core::digest::Digest;
use vdkr_registry::{Limits, serve};

struct Server {
    bench: Bench,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Limits)) -> Self {
        let bench = Bench::with(|config| change(&mut config.limits));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let registry = bench.registry.clone();
        let done = tokio::spawn(serve(listener, registry, async { drop(stopped.await) }));
        Self {
            bench,
            address,
            stop: Some(stop),
            done,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn stop(mut self) -> Bench {
        self.stop.take().unwrap().send(()).unwrap();
        self.done.await.unwrap().unwrap();
        self.bench
    }
}

/// Reads an answer with a `content-length` body.
async fn read_answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let mut length = 0;
    for line in head.lines() {
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head, body)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test]
async fn requests_one_after_the_other_on_a_connection() {
    let server = Server::start(|_| {}).await;
    let content = noise(900_000, 1);
    let digest = Digest::sha256(&content);
    let mut stream = server.connect().await;
    let post = format!(
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        content.len()
    );
    stream.write_all(post.as_bytes()).await.unwrap();
    stream.write_all(&content).await.unwrap();
    let (head, _) = read_answer(&mut stream).await;
    assert!(head.starts_with("http/1.1 201"), "{head}");
    assert!(
        head.contains(&format!("location: /v2/a/blobs/{digest}\r\n")),
        "{head}"
    );
    for _ in 0..3 {
        let get = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(get.as_bytes()).await.unwrap();
        let (head, body) = read_answer(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(body == content);
        let head = format!("HEAD /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\n") {
            rest.push(stream.read_u8().await.unwrap());
        }
        let rest = String::from_utf8(rest).unwrap();
        assert!(
            rest.contains(&format!("content-length: {}\r\n", content.len())),
            "{rest}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn chunked_bodies() {
    let server = Server::start(|_| {}).await;
    let digest = Digest::sha256(b"hello world");
    let answer = server
        .exchange(
            format!(
                "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\n\
                 connection: close\r\ntransfer-encoding: chunked\r\n\r\n\
                 6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"
            )
            .as_bytes(),
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn nonsense_is_answered_or_closed() {
    let server = Server::start(|_| {}).await;
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ] {
        let answer = server.exchange(nonsense).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    let long = format!(
        "GET /v2/{}/tags/list HTTP/1.1\r\nhost: x\r\n\r\n",
        "a".repeat(200_000)
    );
    let mut stream = server.connect().await;
    // The server may close before it has read all of it.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    let many: String = "x: y\r\n".repeat(5000);
    let mut stream = server.connect().await;
    let _ = stream
        .write_all(format!("GET /v2/ HTTP/1.1\r\n{many}\r\n").as_bytes())
        .await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    server.bench.get("/v2/").await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn slow_heads_and_silent_bodies_are_given_up() {
    let server = Server::start(|limits| {
        limits.header_timeout = Duration::from_secs(2);
        limits.idle_timeout = Duration::from_secs(2);
    })
    .await;
    let answer = server.exchange(b"GET /v2/ HT").await;
    assert!(!answer.contains("200 OK"), "{answer}");
    let begun = server
        .bench
        .send("POST", "/v2/a/blobs/uploads/", &[], "")
        .await
        .expect(202);
    let location = begun.header("location");
    let patch =
        format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nonly this");
    let answer = server.exchange(patch.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    // What arrived is kept, and the client can go on.
    let status = server.bench.get(location).await.expect(204);
    assert_eq!(status.header("range"), "0-8");
    server.stop().await;
}

/// Begins to push a manifest of 4 MiB, and sends so many bytes of it.
async fn slow_manifest(server: &Server, sent: usize) -> TcpStream {
    let mut stream = server.connect().await;
    let head = "PUT /v2/a/manifests/slow HTTP/1.1\r\nhost: x\r\n\
         content-type: application/vnd.oci.image.index.v1+json\r\ncontent-length: 4194304\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; sent]).await.unwrap();
    stream
}

async fn push_small_index(server: &Server) -> String {
    let body = r#"{"schemaVersion":2,"manifests":[]}"#;
    let head = "PUT /v2/a/manifests/small HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/vnd.oci.image.index.v1+json\r\n";
    let put = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    server.exchange(put.as_bytes()).await
}

#[tokio::test]
async fn slow_manifests_keep_nobody_from_pushing() {
    let server = Server::start(|_| {}).await;
    let mut slow = Vec::new();
    for sent in 0..40 {
        slow.push(slow_manifest(&server, sent * 10_000).await);
    }
    let answer = push_small_index(&server).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    drop(slow);
    server.stop().await;
}

#[tokio::test]
async fn long_manifests_wait_a_bounded_time_for_room_and_short_ones_not_at_all() {
    let server = Server::start(|limits| {
        limits.manifest_budget = 256 << 10;
        limits.manifest_wait = Duration::from_millis(500);
    })
    .await;
    let mut slow = slow_manifest(&server, 300_000).await;
    // It may have all the room, or not have come so far yet; together they find none.
    let mut other = slow_manifest(&server, 300_000).await;
    let refused = tokio::select! {
        (head, _) = read_answer(&mut slow) => head,
        (head, _) = read_answer(&mut other) => head,
    };
    assert!(refused.starts_with("http/1.1 503"), "{refused}");
    assert!(refused.contains("\r\nretry-after: "), "{refused}");
    let answer = push_small_index(&server).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    drop((slow, other));
    server.stop().await;
}

#[tokio::test]
async fn a_manifest_that_drips_is_given_up() {
    let server = Server::start(|limits| limits.manifest_deadline = Duration::from_secs(1)).await;
    let mut slow = slow_manifest(&server, 1).await;
    let (mut reading, mut writing) = slow.split();
    let drip = async {
        // Never silent for as long as the limit on silence.
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        () = drip => {}
        read = reading.read_exact(&mut answer) => drop(read.unwrap()),
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
    drop(slow);
    server.stop().await;
}

#[tokio::test]
async fn clients_that_take_nothing_are_given_up() {
    let server = Server::start(|limits| {
        limits.idle_timeout = Duration::from_secs(2);
        limits.connections = 1;
    })
    .await;
    let digest = server.bench.push_blob("a", &vec![7; 48 << 20]).await;
    let mut greedy = server.connect().await;
    let get = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n");
    greedy.write_all(get.as_bytes()).await.unwrap();
    // The only place is taken until the server loses its patience.
    let answer = server
        .exchange(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(greedy);
    server.stop().await;
}

#[tokio::test]
async fn a_push_cut_at_any_byte_can_go_on() {
    let server = Server::start(|_| {}).await;
    let content = noise(3000, 3);
    let digest = Digest::sha256(&content);
    for cut in [0, 1, 100, 1500, 2999] {
        let begun = server
            .bench
            .send("POST", "/v2/a/blobs/uploads/", &[], "")
            .await
            .expect(202);
        let location = begun.header("location").to_owned();
        let mut stream = server.connect().await;
        let patch = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n");
        stream.write_all(patch.as_bytes()).await.unwrap();
        stream.write_all(&content[..cut]).await.unwrap();
        drop(stream);
        let id = location.rsplit('/').next().unwrap();
        let data = server.bench.repository("a/_uploads").join(id).join("data");
        until("what was sent", || {
            std::fs::metadata(&data).map_or(0, |m| m.len()) == cut as u64
        })
        .await;
        let range = format!("{cut}-2999");
        let path = format!("{location}?digest={digest}");
        let rest = content[cut..].to_vec();
        server
            .bench
            .send("PUT", &path, &[("content-range", &range)], rest)
            .await
            .expect(201);
        assert!(
            server
                .bench
                .get(&format!("/v2/a/blobs/{digest}"))
                .await
                .body
                == content
        );
        server
            .bench
            .delete(&format!("/v2/a/blobs/{digest}"))
            .await
            .expect(202);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_monolithic_push_cut_in_the_middle_leaves_nothing() {
    let server = Server::start(|_| {}).await;
    let content = noise(500_000, 4);
    let digest = Digest::sha256(&content);
    let mut stream = server.connect().await;
    let post = format!(
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n"
    );
    stream.write_all(post.as_bytes()).await.unwrap();
    stream.write_all(&content[..400_000]).await.unwrap();
    let temporary = server.bench.v2().join("_vdkr/tmp");
    let files = || {
        std::fs::read_dir(&temporary)
            .unwrap()
            .flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap())
            .count()
    };
    until("the beginning of the push", || files() == 1).await;
    drop(stream);
    until("its removal", || files() == 0).await;
    server
        .bench
        .head(&format!("/v2/a/blobs/{digest}"))
        .await
        .expect(404);
    server.stop().await;
}

#[tokio::test]
async fn refused_bodies_do_not_hide_the_answer() {
    let server = Server::start(|_| {}).await;
    let body = noise(100_000, 5);
    let mut request =
        b"PATCH /v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000 HTTP/1.1\r\nhost: x\r\n\
          connection: close\r\ncontent-length: 100000\r\n\r\n"
            .to_vec();
    request.extend_from_slice(&body);
    let answer = server.exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("BLOB_UPLOAD_UNKNOWN"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_waits_for_busy_ones() {
    let server = Server::start(|_| {}).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    read_answer(&mut idle).await;
    let digest = Digest::sha256(b"slowly");
    let mut busy = server.connect().await;
    let post = format!(
        "POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\
         expect: 100-continue\r\n\r\n"
    );
    busy.write_all(post.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    busy.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 Continue"));

    let address = server.address;
    let stopping = tokio::spawn(server.stop());
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0, "closed");
    assert!(!stopping.is_finished());
    busy.write_all(b"slowly").await.unwrap();
    let (head, _) = read_answer(&mut busy).await;
    assert!(head.starts_with("http/1.1 201"), "{head}");
    let bench = stopping.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    bench
        .head(&format!("/v2/a/blobs/{digest}"))
        .await
        .expect(200);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever_and_keeps_sessions() {
    let server = Server::start(|limits| limits.shutdown_deadline = Duration::from_secs(3)).await;
    let begun = server
        .bench
        .send("POST", "/v2/a/blobs/uploads/", &[], "")
        .await
        .expect(202);
    let location = begun.header("location").to_owned();
    let mut stalled = server.connect().await;
    let patch = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n");
    stalled.write_all(patch.as_bytes()).await.unwrap();
    stalled.write_all(&noise(600_000, 6)).await.unwrap();
    let id = location.rsplit('/').next().unwrap();
    let data = server.bench.repository("a/_uploads").join(id).join("data");
    until("the beginning of the upload", || {
        std::fs::metadata(&data).map_or(0, |m| m.len()) > 0
    })
    .await;
    let bench = server.stop().await.reopened();
    let status = bench.get(&location).await.expect(204);
    let received = std::fs::metadata(&data).unwrap().len();
    assert!(received >= 262_144, "{received}");
    assert_eq!(status.header("range"), format!("0-{}", received - 1));
    assert!(
        std::fs::read(&data).unwrap() == noise(600_000, 6)[..usize::try_from(received).unwrap()]
    );
}

/// A connection from another address of this machine.
async fn connect_from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(source.parse().unwrap(), 0))
        .unwrap();
    socket.connect(address).await.unwrap()
}

const PING: &[u8] = b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn one_address_does_not_get_all_places() {
    let server = Server::start(|limits| limits.connections = 4).await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(server.connect().await);
    }
    let mut other = connect_from("127.0.0.2", server.address).await;
    other.write_all(PING).await.unwrap();
    let answered = timeout(Duration::from_secs(20), read_answer(&mut other)).await;
    let (head, _) = answered.expect("another address has to wait");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    // Those that came first have places, some wait, and the last are told to come back.
    let last = silent.last_mut().unwrap();
    let (head, _) = read_answer(last).await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert!(head.contains("\r\nretry-after: "), "{head}");
    let mut waiting = silent.swap_remove(2);
    waiting.write_all(PING).await.unwrap();
    let early = timeout(Duration::from_millis(100), read_answer(&mut waiting)).await;
    assert!(early.is_err(), "there was no place for it");
    drop(silent);
    let (head, _) = read_answer(&mut waiting).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    server.stop().await;
}

#[tokio::test]
async fn idle_connections_end_sooner_when_few_places_are_left() {
    let server = Server::start(|limits| {
        limits.connections = 8;
        limits.crowded_timeout = Duration::from_millis(300);
    })
    .await;
    let mut early = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream
            .write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        read_answer(&mut stream).await;
        early.push(stream);
    }
    let mut late = server.connect().await;
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(20), late.read_to_end(&mut answer)).await;
    closed.expect("it holds the last place").unwrap();
    for mut stream in early {
        stream.write_all(PING).await.unwrap();
        let (head, _) = read_answer(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_blob_that_drips_is_given_up_and_can_go_on() {
    let server = Server::start(|limits| {
        limits.idle_timeout = Duration::from_secs(2);
        limits.body_rate = 1000;
    })
    .await;
    let begun = server
        .bench
        .send("POST", "/v2/a/blobs/uploads/", &[], "")
        .await
        .expect(202);
    let location = begun.header("location").to_owned();
    for (piece, status) in [(1, "408"), (400, "202")] {
        let mut stream = server.connect().await;
        let length = piece * 30;
        let patch =
            format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(patch.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let drip = async {
            // Never silent for as long as the limit on silence.
            for _ in 0..30 {
                if writing.write_all(&vec![b'x'; piece]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut answer = [0; 12];
        tokio::select! {
            () = drip => {}
            read = reading.read_exact(&mut answer) => drop(read.unwrap()),
        }
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes());
    }
    server.bench.get(&location).await.expect(204);
    server.stop().await;
}
