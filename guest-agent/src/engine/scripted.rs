//! Engines that answer as a test tells them to.

use std::{
    future::Future,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::LocalSet;
use vdkr_core::{
    channel::{
        Kind,
        message::{Event, Message as _},
    },
    engine::EngineKind,
};

use super::{Engine, client::Client};
use crate::channel::{
    Stream,
    stream::{Sent, SharedStream},
};

/// How long a test waits at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does something on a runtime.
pub(super) fn run<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let ended = tokio::time::timeout(PATIENCE, work).await;
        ended.expect("the end of a test")
    })
}

/// An engine that reads until `until` has come and says something; gives what it read.
pub(super) fn scripted<T>(
    until: &'static [u8],
    says: &'static [u8],
    work: impl AsyncFnOnce(Client) -> T,
) -> (T, String) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let engine = thread::spawn(move || {
        let (mut pipe, _) = listener.accept().unwrap();
        let (mut read, mut piece) = (Vec::new(), [0; 4096]);
        while !read.windows(until.len()).any(|part| part == until) {
            match pipe.read(&mut piece).unwrap() {
                0 => break,
                length => read.extend(&piece[..length]),
            }
        }
        pipe.write_all(says).unwrap();
        String::from_utf8_lossy(&read).into_owned()
    });
    let client = Client::unversioned(EngineKind::Docker, socket);
    let done = run(work(client));
    (done, engine.join().unwrap())
}

/// A part of an answer.
#[derive(Clone)]
pub(super) enum Say {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing until a request that begins so has come.
    After(&'static str),
    /// Nothing more, and the connection stays open.
    Hold,
}

/// What is answered to requests that begin in the same way: the first answer to the first one, and the
/// last one to all others.
pub(super) struct Turn(&'static str, Vec<Vec<Say>>);

/// Answers to requests that begin with `asked`.
pub(super) fn turn(asked: &'static str, answers: impl Into<Vec<Vec<Say>>>) -> Turn {
    Turn(asked, answers.into())
}

/// A whole answer.
pub(super) fn answer(status: u16, document: &Value) -> Vec<Say> {
    let body = match document {
        Value::Null => String::new(),
        document => document.to_string(),
    };
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
    vec![Say::Bytes(text.into_bytes())]
}

/// The answer to a request that waits for an end: its head at once, and the status `after` a request.
pub(super) fn ends(after: &'static str, status: i32) -> Vec<Say> {
    vec![
        Say::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Say::After(after),
        Say::Bytes(format!("{{\"StatusCode\":{status}}}").into_bytes()),
    ]
}

/// Streams, with what follows.
pub(super) fn streams(more: impl IntoIterator<Item = Say>) -> Vec<Say> {
    let head = Say::Bytes(b"HTTP/1.1 101 UPGRADED\r\n\r\n".to_vec());
    std::iter::once(head).chain(more).collect()
}

/// Output in its frame.
pub(super) fn output(text: &str) -> Say {
    let mut frame = vec![1, 0, 0, 0];
    frame.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    frame.extend(text.as_bytes());
    Say::Bytes(frame)
}

/// A host of a test.
pub(super) struct Host {
    pub(super) stream: SharedStream,
    pub(super) sent: Sent,
    asked: Asked,
}

type Asked = Arc<Mutex<Vec<String>>>;

impl Host {
    /// Standard output, and what was told.
    pub(super) fn got(&mut self) -> (String, Vec<String>) {
        let (mut output, mut told) = (Vec::new(), Vec::new());
        for frame in self.sent.frames() {
            match frame.kind {
                Kind::Stdout => output.extend(frame.payload),
                Kind::Event => match Event::decode(&frame.payload).unwrap() {
                    Event::Log { message, .. } => told.push(message),
                    Event::Started { container, .. } => told.push(format!("started {container}")),
                    _ => {}
                },
                _ => {}
            }
        }
        (String::from_utf8(output).unwrap(), told)
    }

    /// Waits until the engine was asked so.
    pub(super) async fn asked(&self, begin: &str) {
        while !has_come(&self.asked, begin) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn has_come(asked: &Asked, begin: &str) -> bool {
    let asked = asked.lock().unwrap();
    asked.iter().any(|line| line.starts_with(begin))
}

/// An engine that answers in turns; gives the lines that it was asked with, in their order, with the
/// document that came.
pub(super) fn engine<T>(
    turns: Vec<Turn>,
    work: impl AsyncFnOnce(Rc<Engine>, &mut Host) -> T,
) -> (T, Vec<String>) {
    engine_of(EngineKind::Docker, turns, work)
}

/// The same with an engine of this kind.
pub(super) fn engine_of<T>(
    kind: EngineKind,
    turns: Vec<Turn>,
    work: impl AsyncFnOnce(Rc<Engine>, &mut Host) -> T,
) -> (T, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let asked = Asked::default();
    let over = Arc::new(AtomicBool::new(false));
    let (log, ended) = (asked.clone(), over.clone());
    let server = thread::spawn(move || {
        let turns = Arc::new(Mutex::new(turns));
        for pipe in listener.incoming() {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            let (turns, log) = (turns.clone(), log.clone());
            thread::spawn(move || converse(pipe.unwrap(), &turns, &log));
        }
    });
    let engine = Rc::new(Engine {
        client: Client::unversioned(kind, socket.clone()),
        spool: dir.path().to_owned(),
    });
    let done = run(async {
        let (stream, sent) = Stream::alone();
        let asked = asked.clone();
        let mut host = Host {
            stream,
            sent,
            asked,
        };
        work(engine, &mut host).await
    });
    over.store(true, Ordering::Relaxed);
    UnixStream::connect(&socket).unwrap();
    server.join().unwrap();
    let asked = asked.lock().unwrap().clone();
    (done, asked)
}

fn converse(mut pipe: UnixStream, turns: &Mutex<Vec<Turn>>, log: &Asked) {
    let (mut read, mut piece) = (Vec::new(), [0; 4096]);
    let (head, body) = loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let length = line.strip_prefix("Content-Length: ")?;
                length.parse::<usize>().ok()
            });
            if body.len() >= length.unwrap_or(0) {
                break (head.to_owned(), body.to_owned());
            }
        }
        match pipe.read(&mut piece) {
            Ok(length @ 1..) => read.extend(&piece[..length]),
            _ => return,
        }
    };
    let line = head.lines().next().unwrap_or_default();
    let line = line.trim_end_matches(" HTTP/1.1");
    let says = {
        let mut turns = turns.lock().unwrap();
        let turn = turns.iter_mut().find(|turn| line.starts_with(turn.0));
        turn.map(|turn| match turn.1.len() {
            1 => turn.1[0].clone(),
            _ => turn.1.remove(0),
        })
    };
    log.lock().unwrap().push(format!("{line} {body}"));
    let says = says.unwrap_or_else(|| {
        let words = format!("nobody expects {line}");
        answer(500, &serde_json::json!({ "message": words }))
    });
    for say in says {
        match say {
            Say::Bytes(bytes) => {
                if pipe.write_all(&bytes).is_err() {
                    return;
                }
            }
            Say::After(begin) => {
                let until = Instant::now() + PATIENCE;
                while !has_come(log, begin) && Instant::now() < until {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            Say::Hold => while matches!(pipe.read(&mut piece), Ok(1..)) {},
        }
    }
}
