//! A small registry in memory: as strict as a real one about digests and about the order of
//! blobs, manifests and indexes. It has no referrers API.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::{Query, Route, Target};
use vdkr_core::manifest;

#[derive(Default)]
struct Content {
    bytes: HashMap<Digest, Vec<u8>>,
    blobs: HashSet<(String, Digest)>,
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    sessions: HashSet<String>,
    opened: usize,
    uploads: usize,
    requests: Vec<String>,
    generous: bool,
}

pub(crate) struct Registry {
    host: String,
    content: Arc<Mutex<Content>>,
    task: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let content = Arc::new(Mutex::new(Content::default()));
        let shared = content.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let content = shared.clone();
                connections.spawn(async move {
                    while serve_one(&mut stream, &content).await.is_some() {}
                });
            }
        });
        Self {
            host,
            content,
            task,
        }
    }

    /// From now on, blobs are mounted from wherever they are when no place is named.
    pub(crate) fn be_generous(&self) {
        self.content().generous = true;
    }

    pub(crate) fn host(&self) -> String {
        self.host.clone()
    }

    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// By tag or digest.
    pub(crate) fn manifest(&self, name: &str, selector: &str) -> Option<Vec<u8>> {
        let key = (name.to_owned(), selector.to_owned());
        self.content()
            .manifests
            .get(&key)
            .map(|(_, raw)| raw.clone())
    }

    /// Has a manifest no more.
    pub(crate) fn lose_manifest(&self, name: &str, digest: &Digest) {
        let key = (name.to_owned(), digest.to_string());
        assert!(self.content().manifests.remove(&key).is_some());
    }

    pub(crate) fn has_blob(&self, name: &str, digest: &Digest) -> bool {
        self.content()
            .blobs
            .contains(&(name.to_owned(), digest.clone()))
    }

    pub(crate) fn lose(&self, name: &str, digest: &Digest) {
        let lost = (name.to_owned(), digest.clone());
        assert!(self.content().blobs.remove(&lost));
    }

    /// How many uploads came to their end.
    pub(crate) fn uploads(&self) -> usize {
        self.content().uploads
    }

    pub(crate) fn open_sessions(&self) -> usize {
        self.content().sessions.len()
    }

    /// Method and path of everything that was asked.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.content().requests.clone()
    }
}

async fn serve_one(stream: &mut TcpStream, content: &Mutex<Content>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut first = head.lines().next()?.split(' ');
    let (method, target) = (first.next()?, first.next()?);
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let length = header("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    let complete = stream.read_exact(&mut body).await.is_ok();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let reply = {
        let mut content = content.lock().unwrap();
        content.requests.push(format!("{method} {path}"));
        if !complete {
            return None;
        }
        let media_type = header("content-type").unwrap_or_default();
        content.answer(method, path, query, &media_type, body)
    };
    let mut answer = format!("HTTP/1.1 {} X\r\n", reply.status).into_bytes();
    for (name, value) in &reply.headers {
        answer.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if reply.status != 204 {
        answer.extend_from_slice(format!("Content-Length: {}\r\n", reply.body.len()).as_bytes());
    }
    answer.extend_from_slice(b"\r\n");
    if method != "HEAD" {
        answer.extend_from_slice(&reply.body);
    }
    stream.write_all(&answer).await.ok()
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn status(status: u16) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: Vec::new(),
    }
}

fn with(code: u16, name: &'static str, value: String) -> Reply {
    Reply {
        headers: vec![(name, value)],
        ..status(code)
    }
}

impl Content {
    fn answer(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> Reply {
        let query = Query::parse(query).unwrap();
        match (method, Route::parse(path).unwrap()) {
            ("GET", Route::Base) => status(200),
            ("HEAD" | "GET", Route::Blob { name, digest }) => {
                if !self.blobs.contains(&(name, digest.clone())) {
                    return status(404);
                }
                Reply {
                    body: self.bytes[&digest].clone(),
                    ..status(200)
                }
            }
            ("POST", Route::Uploads { name }) => self.open(name, query),
            ("PUT", Route::Upload { name, session }) => {
                let digest = query.digest.unwrap();
                if !self.sessions.remove(&session) {
                    return status(404);
                }
                if Digest::of(digest.algorithm(), &body) != digest {
                    return status(400);
                }
                self.uploads += 1;
                self.bytes.insert(digest.clone(), body);
                self.blobs.insert((name, digest));
                status(201)
            }
            ("DELETE", Route::Upload { session, .. }) => {
                status(if self.sessions.remove(&session) {
                    204
                } else {
                    404
                })
            }
            ("HEAD" | "GET", Route::Manifest { name, target }) => {
                let Some((media_type, raw)) = self.manifests.get(&(name, text(&target))) else {
                    return status(404);
                };
                Reply {
                    headers: vec![
                        ("Content-Type", media_type.clone()),
                        ("Docker-Content-Digest", Digest::sha256(raw).to_string()),
                    ],
                    body: raw.clone(),
                    ..status(200)
                }
            }
            ("PUT", Route::Manifest { name, target }) => self.put(name, &target, media_type, body),
            ("GET", Route::Referrers { .. }) => status(404),
            ("GET", Route::Tags { name }) => {
                let names = self.manifests.keys().filter(|(of, _)| *of == name);
                let tags: Vec<_> = names
                    .map(|(_, tag)| tag)
                    .filter(|t| !t.contains(':'))
                    .collect();
                Reply {
                    body: serde_json::json!({ "name": name, "tags": tags })
                        .to_string()
                        .into(),
                    ..status(200)
                }
            }
            (method, route) => panic!("{method} {route:?}"),
        }
    }

    fn open(&mut self, name: String, query: Query) -> Reply {
        if let Some(digest) = query.mount
            && match query.from {
                Some(from) => self.blobs.contains(&(from, digest.clone())),
                None => self.generous && self.bytes.contains_key(&digest),
            }
        {
            self.blobs.insert((name, digest));
            return status(201);
        }
        self.opened += 1;
        let session = format!("s{}", self.opened);
        let location = format!("/v2/{name}/blobs/uploads/{session}");
        self.sessions.insert(session);
        with(202, "Location", location)
    }

    /// A manifest comes after everything it names.
    fn put(&mut self, name: String, target: &Target, media_type: &str, raw: Vec<u8>) -> Reply {
        let parsed = manifest::parse(&raw, Some(media_type)).unwrap();
        let blobs_there = parsed
            .blobs()
            .all(|blob| self.blobs.contains(&(name.clone(), blob.digest.clone())));
        let manifests_there = parsed.manifests().iter().all(|entry| {
            let key = (name.clone(), entry.digest.to_string());
            self.manifests.contains_key(&key)
        });
        if !blobs_there || !manifests_there {
            return status(404);
        }
        let digest = Digest::sha256(&raw);
        let entry = (media_type.to_owned(), raw);
        self.manifests
            .insert((name.clone(), digest.to_string()), entry.clone());
        self.manifests.insert((name, text(target)), entry);
        with(201, "Docker-Content-Digest", digest.to_string())
    }
}

fn text(target: &Target) -> String {
    match target {
        Target::Tag(tag) => tag.clone(),
        Target::Digest(digest) => digest.to_string(),
    }
}
