//! A registry that answers by script, and remembers what it was asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use vdkr_core::digest::Digest;

/// One answer.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: String,
    pub(super) body: Vec<u8>,
    /// Of the whole answer: nothing, or the head and half of the body, and then silence.
    pub(super) stall: Option<Stall>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Stall {
    Silent,
    Halfway,
}

impl Answer {
    pub(super) fn new(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: format!("Content-Type: {media_type}\r\n"),
            body: body.into(),
            stall: None,
        }
    }
}

#[derive(Default)]
struct Script {
    answers: HashMap<String, Answer>,
    /// For paths without an answer of their own.
    other: Option<Answer>,
    asked: Vec<String>,
}

pub(super) struct Server {
    port: u16,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = script.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, shared.clone()));
            }
        });
        let server = Self { port, script, task };
        server.set("/v2/", Answer::new(200, "application/json", "{}"));
        server
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set(&self, path: &str, answer: Answer) {
        let mut script = self.script.lock().unwrap();
        script.answers.insert(path.to_owned(), answer);
    }

    /// What every path gets that was not set.
    pub(super) fn set_other(&self, answer: Answer) {
        self.script.lock().unwrap().other = Some(answer);
    }

    pub(super) fn manifest(&self, repository: &str, tag: &str, media_type: &str, body: &[u8]) {
        for selector in [tag.to_owned(), Digest::sha256(body).to_string()] {
            let path = format!("/v2/{repository}/manifests/{selector}");
            self.set(&path, Answer::new(200, media_type, body));
        }
    }

    pub(super) fn blob_path(repository: &str, digest: &Digest) -> String {
        format!("/v2/{repository}/blobs/{digest}")
    }

    pub(super) fn blob(&self, repository: &str, body: &[u8]) -> Digest {
        let digest = Digest::sha256(body);
        let answer = Answer::new(200, "application/octet-stream", body);
        self.set(&Self::blob_path(repository, &digest), answer);
        digest
    }

    /// Changes an answer.
    pub(super) fn change(&self, path: &str, change: impl FnOnce(&mut Answer)) {
        change(self.script.lock().unwrap().answers.get_mut(path).unwrap());
    }

    /// The request heads so far.
    pub(super) fn heads(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    /// The paths asked for so far, `/v2/` itself left out.
    pub(super) fn asked(&self) -> Vec<String> {
        let heads = self.heads();
        let paths = heads.iter().filter_map(|head| head.split(' ').nth(1));
        paths
            .filter(|path| *path != "/v2/")
            .map(ToOwned::to_owned)
            .collect()
    }

    pub(super) fn times(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| *asked == path).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let is_head = head.starts_with("HEAD ");
    let answer = {
        let mut script = script.lock().unwrap();
        script.asked.push(head);
        let known = script.answers.get(&path).or(script.other.as_ref());
        known
            .cloned()
            .unwrap_or_else(|| Answer::new(404, "text/plain", ""))
    };
    if answer.stall == Some(Stall::Silent) {
        std::future::pending::<()>().await;
    }
    let (status, length) = (answer.status, answer.body.len());
    let start = format!(
        "HTTP/1.1 {status} X\r\n{}Content-Length: {length}\r\nConnection: close\r\n\r\n",
        answer.headers
    );
    let half = answer.stall.is_some();
    let body = if is_head { &[][..] } else { &answer.body[..] };
    let body = if half { &body[..body.len() / 2] } else { body };
    let _ = stream.write_all(start.as_bytes()).await;
    let _ = stream.write_all(body).await;
    let _ = stream.flush().await;
    if half {
        std::future::pending::<()>().await;
    }
}
