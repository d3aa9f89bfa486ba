//! A registry in memory that records what it is asked, and can be slow-witted, strict or broken in the
//! ways of real ones.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::{Query, Route, Target};
use vdkr_core::manifest;

/// How it behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manners {
    /// Looks at `If-Match` and `If-None-Match`, and answers with entity tags.
    pub(crate) conditional: bool,
    /// Wants a bearer token of its token server, which wants this user and password.
    pub(crate) token: Option<(String, String)>,
    /// Takes no token any more that was given before this method comes to an upload; once.
    pub(crate) revoke_at: Option<&'static str>,
    /// Closes the connection after so many bytes of the body of a `PATCH`, keeping them; once.
    pub(crate) break_patch_after: Option<usize>,
    /// Takes so many bytes of the body of a `PATCH`, keeps them, and says no more; once.
    pub(crate) stall_patch_after: Option<usize>,
    /// Hears of each manifest right before it is stored under a tag.
    pub(crate) before_tag: Option<fn()>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Method.
    pub(crate) method: String,
    /// Path without the query.
    pub(crate) path: String,
    /// `Authorization`.
    pub(crate) authorization: Option<String>,
    /// `Content-Range`.
    pub(crate) content_range: Option<String>,
}

#[derive(Default)]
struct Content {
    bytes: HashMap<Digest, Vec<u8>>,
    blobs: HashSet<(String, Digest)>,
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    sessions: HashMap<String, Vec<u8>>,
    opened: usize,
    /// How often the tokens were revoked; stands in each.
    revoked: usize,
    seen: Vec<Seen>,
    manners: Manners,
}

/// The registry. Its threads end with the process of the test.
pub(crate) struct Double {
    port: u16,
    content: Arc<Mutex<Content>>,
}

impl Double {
    /// Starts one.
    pub(crate) fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let content = Arc::new(Mutex::new(Content {
            manners,
            ..Content::default()
        }));
        let shared = content.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let content = shared.clone();
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while serve_one(&mut reader, &stream, &content, port).is_some() {}
                });
            }
        });
        Self { port, content }
    }

    /// `localhost:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    /// Changes how it behaves from now on.
    pub(crate) fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.content().manners);
    }

    /// Everything that was asked since the last time.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.content().seen)
    }

    /// A manifest by tag or digest.
    pub(crate) fn manifest(&self, name: &str, selector: &str) -> Option<Vec<u8>> {
        let key = (name.to_owned(), selector.to_owned());
        self.content()
            .manifests
            .get(&key)
            .map(|(_, raw)| raw.clone())
    }

    /// Stores a manifest, whatever it names.
    pub(crate) fn put_manifest(
        &self,
        name: &str,
        tag: &str,
        media_type: &str,
        raw: &[u8],
    ) -> Digest {
        let digest = Digest::sha256(raw);
        let mut content = self.content();
        for selector in [tag, digest.as_str()] {
            let entry = (media_type.to_owned(), raw.to_vec());
            content
                .manifests
                .insert((name.to_owned(), selector.to_owned()), entry);
        }
        digest
    }

    /// Stores a blob.
    pub(crate) fn put_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let mut content = self.content();
        content.bytes.insert(digest.clone(), bytes.to_vec());
        content.blobs.insert((name.to_owned(), digest.clone()));
        digest
    }

    /// The most bytes that an open upload has.
    pub(crate) fn received(&self) -> usize {
        let content = self.content();
        content.sessions.values().map(Vec::len).max().unwrap_or(0)
    }

    /// Uploads that are open.
    pub(crate) fn open_sessions(&self) -> usize {
        self.content().sessions.len()
    }

    /// The tags of a repository.
    pub(crate) fn tags(&self, name: &str) -> Vec<String> {
        self.content().tags(name)
    }
}

fn serve_one(
    reader: &mut BufReader<TcpStream>,
    mut stream: &TcpStream,
    content: &Mutex<Content>,
    port: u16,
) -> Option<()> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let mut first = lines.first()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |text| text.parse().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    {
        let mut content = content.lock().unwrap();
        content.seen.push(Seen {
            method: method.clone(),
            path: path.to_owned(),
            authorization: headers.get("authorization").cloned(),
            content_range: headers.get("content-range").cloned(),
        });
    }
    let (broken, stalls) = if method == "PATCH" {
        let manners = &content.lock().unwrap().manners;
        let stalls = manners.stall_patch_after.is_some();
        let after = manners.break_patch_after.or(manners.stall_patch_after);
        (after.filter(|after| *after < length), stalls)
    } else {
        (None, false)
    };
    let mut body = vec![0; broken.unwrap_or(length)];
    reader.read_exact(&mut body).ok()?;
    if broken.is_some() {
        let mut content = content.lock().unwrap();
        content.manners.break_patch_after = None;
        content.manners.stall_patch_after = None;
        if let Ok(Route::Upload { session, .. }) = Route::parse(path) {
            content.sessions.get_mut(&session)?.extend(body);
        }
        drop(content);
        if stalls {
            // Until the other side is gone.
            let _ = std::io::copy(reader, &mut std::io::sink());
        }
        return None;
    }
    let hook = content.lock().unwrap().manners.before_tag;
    if let (
        Some(hook),
        "PUT",
        Ok(Route::Manifest {
            target: Target::Tag(_),
            ..
        }),
    ) = (hook, method.as_str(), Route::parse(path))
    {
        hook();
    }
    let reply = content
        .lock()
        .unwrap()
        .answer(&method, path, query, &headers, body, port);
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
    stream.write_all(&answer).ok()
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

impl Reply {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }
}

/// `user:password` in base64, as a header has it.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        vdkr_core::base64::encode(format!("{user}:{password}").as_bytes())
    )
}

impl Content {
    fn tags(&self, name: &str) -> Vec<String> {
        let of = self.manifests.keys().filter(|(of, _)| of == name);
        let mut tags: Vec<_> = of
            .map(|(_, tag)| tag.clone())
            .filter(|tag| !tag.contains(':'))
            .collect();
        tags.sort();
        tags
    }

    /// The token server and the gate that asks for its tokens.
    fn gate(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        headers: &HashMap<String, String>,
        port: u16,
    ) -> Option<Reply> {
        let (user, password) = self.manners.token.as_ref()?;
        let authorization = headers.get("authorization").map_or("", String::as_str);
        if path == "/token" {
            if authorization != basic(user, password) {
                return Some(status(401));
            }
            let scope = query
                .split('&')
                .filter_map(|pair| pair.strip_prefix("scope="))
                .collect::<Vec<_>>()
                .join(" ")
                .replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ",");
            let token = json!({
                "token": format!("token{}({scope})", self.revoked),
                "expires_in": 300,
            });
            return Some(status(200).body(token.to_string().into()));
        }
        let route = Route::parse(path);
        if matches!(route, Ok(Route::Upload { .. })) && self.manners.revoke_at == Some(method) {
            self.manners.revoke_at = None;
            self.revoked += 1;
        }
        let name = match route {
            Ok(
                Route::Blob { name, .. }
                | Route::Manifest { name, .. }
                | Route::Uploads { name }
                | Route::Upload { name, .. }
                | Route::Tags { name },
            ) => Some(name),
            _ => None,
        };
        let action = if matches!(method, "GET" | "HEAD") {
            "pull"
        } else {
            "push"
        };
        let valid = authorization.starts_with(&format!("Bearer token{}(", self.revoked));
        let granted = match &name {
            None => valid,
            Some(name) => {
                valid
                    && authorization.contains(&format!("repository:{name}:"))
                    && authorization.contains(action)
            }
        };
        if granted {
            return None;
        }
        let scope = name.map_or(String::new(), |name| {
            let actions = if action == "pull" {
                "pull"
            } else {
                "pull,push"
            };
            format!(",scope=\"repository:{name}:{actions}\"")
        });
        let challenge =
            format!("Bearer realm=\"http://localhost:{port}/token\",service=\"double\"{scope}");
        Some(status(401).with("Www-Authenticate", challenge))
    }

    fn answer(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        headers: &HashMap<String, String>,
        body: Vec<u8>,
        port: u16,
    ) -> Reply {
        if let Some(reply) = self.gate(method, path, query, headers, port) {
            return reply;
        }
        let query = Query::parse(query).unwrap();
        match (method, Route::parse(path).unwrap()) {
            ("GET", Route::Base) => status(200),
            ("HEAD" | "GET", Route::Blob { name, digest }) => {
                if !self.blobs.contains(&(name, digest.clone())) {
                    return status(404);
                }
                status(200).body(self.bytes[&digest].clone())
            }
            ("POST", Route::Uploads { name }) => {
                if let (Some(digest), Some(from)) = (query.mount, query.from)
                    && self.blobs.contains(&(from, digest.clone()))
                {
                    self.blobs.insert((name, digest));
                    return status(201);
                }
                self.opened += 1;
                let session = format!("s{}", self.opened);
                let location = format!("/v2/{name}/blobs/uploads/{session}");
                self.sessions.insert(session, Vec::new());
                status(202).with("Location", location)
            }
            (_, Route::Upload { name, session }) => {
                self.upload(method, name, &session, query, body)
            }
            ("HEAD" | "GET", Route::Manifest { name, target }) => {
                let Some((media_type, raw)) = self.manifests.get(&(name, text(&target))) else {
                    return status(404);
                };
                status(200)
                    .with("Content-Type", media_type)
                    .with("Docker-Content-Digest", Digest::sha256(raw).to_string())
                    .body(raw.clone())
            }
            ("PUT", Route::Manifest { name, target }) => self.put(name, &target, headers, body),
            ("GET", Route::Tags { name }) => {
                let tags = self.tags(&name);
                if tags.is_empty() {
                    return status(404);
                }
                status(200).body(json!({ "name": name, "tags": tags }).to_string().into())
            }
            _ => status(404),
        }
    }

    fn upload(
        &mut self,
        method: &str,
        name: String,
        session: &str,
        query: Query,
        body: Vec<u8>,
    ) -> Reply {
        let location = format!("/v2/{name}/blobs/uploads/{session}");
        let Some(received) = self.sessions.get_mut(session) else {
            return status(404);
        };
        let range = |length: usize| format!("0-{}", length.saturating_sub(1));
        match method {
            "GET" => status(204)
                .with("Location", location)
                .with("Range", range(received.len())),
            "PATCH" => {
                received.extend(body);
                let length = received.len();
                status(202)
                    .with("Location", location)
                    .with("Range", range(length))
            }
            "PUT" => {
                received.extend(body);
                let all = self.sessions.remove(session).unwrap();
                let digest = query.digest.unwrap();
                if Digest::of(digest.algorithm(), &all) != digest {
                    return status(400);
                }
                self.bytes.insert(digest.clone(), all);
                self.blobs.insert((name, digest));
                status(201)
            }
            _ => {
                self.sessions.remove(session);
                status(204)
            }
        }
    }

    fn put(
        &mut self,
        name: String,
        target: &Target,
        headers: &HashMap<String, String>,
        raw: Vec<u8>,
    ) -> Reply {
        let media_type = headers.get("content-type").cloned().unwrap_or_default();
        let parsed = manifest::parse(&raw, Some(&media_type)).unwrap();
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
        let key = (name.clone(), text(target));
        if self.manners.conditional {
            let now = self.manifests.get(&key);
            let now = now.map(|(_, raw)| format!("\"{}\"", Digest::sha256(raw)));
            let fits = match (headers.get("if-match"), headers.get("if-none-match")) {
                (Some(wanted), _) => now.as_ref() == Some(wanted),
                (None, Some(_)) => now.is_none(),
                (None, None) => true,
            };
            if !fits {
                return status(412);
            }
        }
        let digest = Digest::sha256(&raw);
        let entry = (media_type, raw);
        self.manifests
            .insert((name, digest.to_string()), entry.clone());
        self.manifests.insert(key, entry);
        let reply = status(201).with("Docker-Content-Digest", digest.to_string());
        if self.manners.conditional {
            return reply.with("ETag", format!("\"{digest}\""));
        }
        reply
    }
}

fn text(target: &Target) -> String {
    match target {
        Target::Tag(tag) => tag.clone(),
        Target::Digest(digest) => digest.to_string(),
    }
}
