//! Requests to an engine over its socket, one connection for each. Waiting for an answer may be given up
//! at any time: the connection is closed then.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use vdkr_core::{
    channel::message::{Failure, FailureCode},
    engine::{
        EngineKind,
        http::{Body, Head, HttpError, encode_value},
        rows::text,
    },
};

/// Most bytes of a document.
const MAX_DOCUMENT: usize = 32 << 20;
/// Most bytes of what an engine says of a failure.
const MAX_WORDS: usize = 1024;
/// Bytes taken in one go.
const PIECE: usize = 32 * 1024;

/// An engine at its socket.
#[derive(Clone, Debug)]
pub struct Client {
    kind: EngineKind,
    socket: PathBuf,
}

/// What is sent with a request.
enum Content<'a> {
    /// Nothing.
    None,
    /// A document.
    Json(&'a Value),
    /// Something that follows in pieces.
    Pieces,
    /// Nothing; afterwards the connection is the engine's and ours alone.
    Hijack(Option<&'a Value>),
}

impl Client {
    /// An engine of this kind at `socket`.
    pub fn new(kind: EngineKind, socket: PathBuf) -> Self {
        Self { kind, socket }
    }

    /// Which engine it is.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A failure to read the engine's answer.
    fn broken(&self, why: &dyn std::fmt::Display) -> Failure {
        let text = format!("{}: the connection failed: {why}", self.kind);
        Failure::new(FailureCode::Failed, text)
    }

    async fn begin(
        &self,
        method: &str,
        target: &str,
        content: Content<'_>,
    ) -> Result<Connection, Failure> {
        let (kind, socket) = (self.kind, self.socket.display());
        let pipe = UnixStream::connect(&self.socket).await.map_err(|error| {
            Failure::new(
                FailureCode::Unreachable,
                format!("{kind} does not answer at {socket}: {error}"),
            )
            .with_hint(format!(
                "start it (systemctl start {}), or use --engine native",
                kind.unit()
            ))
        })?;
        let (body, fields) = match &content {
            Content::None => (Vec::new(), "Content-Length: 0\r\nConnection: close\r\n"),
            Content::Json(value) => (to_bytes(value), "Connection: close\r\n"),
            Content::Pieces => (
                Vec::new(),
                "Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\
                 Connection: close\r\n",
            ),
            Content::Hijack(value) => (
                value.map(to_bytes).unwrap_or_default(),
                "Connection: Upgrade\r\nUpgrade: tcp\r\n",
            ),
        };
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: engine\r\n{fields}");
        if !body.is_empty() {
            head += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        } else if matches!(content, Content::Hijack(_)) {
            head += "Content-Length: 0\r\n";
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend(body);
        let (reader, writer) = pipe.into_split();
        let mut connection = Connection {
            client: self.clone(),
            reader,
            writer,
            waiting: Vec::new(),
            bodiless: method == "HEAD",
        };
        connection
            .writer
            .write_all(&bytes)
            .await
            .map_err(|error| self.broken(&error))?;
        Ok(connection)
    }

    /// `GET` of something that comes in pieces.
    pub async fn open(&self, target: &str) -> Result<Answer, Failure> {
        self.begin("GET", target, Content::None)
            .await?
            .answer()
            .await
    }

    /// `GET` of a document.
    pub async fn get(&self, target: &str) -> Result<Value, Failure> {
        self.open(target).await?.document().await
    }

    /// `HEAD`.
    pub async fn head(&self, target: &str) -> Result<Head, Failure> {
        let begun = self.begin("HEAD", target, Content::None).await?;
        Ok(begun.answer().await?.head)
    }

    /// `POST` with a document or without one; gives the document that is answered, if there is one.
    pub async fn post(&self, target: &str, value: Option<&Value>) -> Result<Value, Failure> {
        let content = value.map_or(Content::None, Content::Json);
        let begun = self.begin("POST", target, content).await?;
        begun.answer().await?.document().await
    }

    /// `DELETE`.
    pub async fn delete(&self, target: &str) -> Result<Value, Failure> {
        let begun = self.begin("DELETE", target, Content::None).await?;
        begun.answer().await?.document().await
    }

    /// Begins to send something in pieces.
    pub async fn upload(&self, method: &str, target: &str) -> Result<Upload, Failure> {
        let begun = self.begin(method, target, Content::Pieces).await?;
        Ok(Upload(begun))
    }

    /// A request whose connection carries streams in both directions afterwards.
    pub async fn hijack(&self, target: &str, value: Option<&Value>) -> Result<Raw, Failure> {
        let begun = self.begin("POST", target, Content::Hijack(value)).await?;
        let answer = begun.answer().await?;
        let Connection {
            reader,
            writer,
            waiting,
            ..
        } = answer.connection;
        Ok(Raw {
            reader,
            writer,
            waiting,
        })
    }
}

fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A request under way.
struct Connection {
    client: Client,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    /// What has come and was not taken.
    waiting: Vec<u8>,
    bodiless: bool,
}

impl Connection {
    /// Reads more. `false` at the end.
    async fn fill(&mut self) -> Result<bool, Failure> {
        self.waiting.reserve(PIECE);
        match self.reader.read_buf(&mut self.waiting).await {
            Ok(length) => Ok(length > 0),
            Err(error) => Err(self.client.broken(&error)),
        }
    }

    /// The answer, or the failure that it tells of.
    async fn answer(mut self) -> Result<Answer, Failure> {
        let broken = |client: &Client, error: HttpError| client.broken(&error);
        let head = loop {
            let parsed = Head::parse(&self.waiting);
            match parsed.map_err(|error| broken(&self.client, error))? {
                Some((head, length)) => {
                    self.waiting.drain(..length);
                    // News before the answer.
                    if matches!(head.status, 100 | 102..=199) {
                        continue;
                    }
                    break head;
                }
                None if self.fill().await? => {}
                None => return Err(self.client.broken(&"it ended before the answer")),
            }
        };
        let body = head.body().map_err(|error| broken(&self.client, error))?;
        let answer = Answer {
            body: (!self.bodiless).then_some(body),
            connection: self,
            head,
        };
        match answer.head.status {
            101 | 200..=299 | 304 => Ok(answer),
            status => Err(answer.failure(status).await),
        }
    }
}

/// An engine's answer that is a success.
pub struct Answer {
    connection: Connection,
    body: Option<Body>,
    /// Its head.
    pub head: Head,
}

impl Answer {
    /// The next piece of what comes with it; `None` at its end.
    pub async fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        loop {
            let mut input = self.connection.waiting.as_slice();
            let client = &self.connection.client;
            let piece = body.next(&mut input).map_err(|error| client.broken(&error));
            let piece = piece?.map(<[u8]>::to_vec);
            let left = input.len();
            let used = self.connection.waiting.len() - left;
            self.connection.waiting.drain(..used);
            match piece {
                Some(piece) if !piece.is_empty() => return Ok(Some(piece)),
                Some(_) => {}
                None if body.is_over() => return Ok(None),
                None if self.connection.fill().await? => {}
                None if body.ends_with_connection() => return Ok(None),
                None => return Err(self.connection.client.broken(&"it ended within an answer")),
            }
        }
    }

    /// All of it.
    pub async fn bytes(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece().await? {
            if bytes.len() + piece.len() > most {
                let why = format!("an answer has more than {most} bytes");
                return Err(self.connection.client.broken(&why));
            }
            bytes.extend(piece);
        }
        Ok(bytes)
    }

    /// A document; `null` for an empty answer.
    async fn document(mut self) -> Result<Value, Failure> {
        let bytes = self.bytes(MAX_DOCUMENT).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        let client = &self.connection.client;
        serde_json::from_slice(&bytes).map_err(|error| client.broken(&error))
    }

    async fn failure(mut self, status: u16) -> Failure {
        let bytes = self.bytes(MAX_DOCUMENT).await.unwrap_or_default();
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let words = match text(&document, "message") {
            "" => String::from_utf8_lossy(&bytes).into_owned(),
            words => words.to_owned(),
        };
        let words: String = words.trim().chars().take(MAX_WORDS).collect();
        let kind = self.connection.client.kind;
        let code = match status {
            404 => FailureCode::NotFound,
            400 => FailureCode::Usage,
            _ => FailureCode::Failed,
        };
        Failure::new(
            code,
            match words.as_str() {
                "" => format!("{kind} answers with status {status}"),
                words => format!("{kind}: {words}"),
            },
        )
    }
}

/// Something on its way to an engine. Dropping it breaks it off: the engine has no end of it then, and
/// takes nothing.
pub struct Upload(Connection);

impl Upload {
    /// Sends a piece.
    pub async fn send(&mut self, piece: &[u8]) -> Result<(), Failure> {
        if piece.is_empty() {
            return Ok(());
        }
        let line = format!("{:x}\r\n", piece.len());
        let sent = async {
            self.0.writer.write_all(line.as_bytes()).await?;
            self.0.writer.write_all(piece).await?;
            self.0.writer.write_all(b"\r\n").await
        };
        match sent.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refused(&error).await),
        }
    }

    /// What the engine says that does not take any more.
    async fn refused(&mut self, error: &io::Error) -> Failure {
        while self.0.waiting.len() < MAX_WORDS && matches!(self.0.fill().await, Ok(true)) {}
        let said = String::from_utf8_lossy(&self.0.waiting);
        let words = said.rsplit("\r\n\r\n").next().unwrap_or_default();
        match words.trim() {
            "" => self.0.client.broken(error),
            words => {
                let text = format!("{}: {words}", self.0.client.kind);
                Failure::new(FailureCode::Failed, text)
            }
        }
    }

    /// Ends it and waits for the answer, all of it.
    pub async fn finish(mut self) -> Result<Vec<u8>, Failure> {
        if let Err(error) = self.0.writer.write_all(b"0\r\n\r\n").await {
            return Err(self.refused(&error).await);
        }
        self.0.answer().await?.bytes(MAX_DOCUMENT).await
    }
}

/// A connection that carries streams.
pub struct Raw {
    /// From the engine.
    pub reader: OwnedReadHalf,
    /// To the engine; closing it ends the input.
    pub writer: OwnedWriteHalf,
    /// What has come already.
    pub waiting: Vec<u8>,
}

/// A target with a query; only these values need encoding.
pub fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (at, (name, value)) in query.iter().enumerate() {
        target += if at == 0 { "?" } else { "&" };
        target += &format!("{name}={}", encode_value(value));
    }
    target
}

#[cfg(test)]
mod tests {
    use std::{future::Future, io::Read as _, io::Write as _, os::unix::net::UnixListener};

    use super::*;

    /// An engine that reads until `until` has come and says something; gives what it read.
    fn scripted<T>(
        until: &'static [u8],
        says: &'static [u8],
        work: impl AsyncFnOnce(Client) -> T,
    ) -> (T, String) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let engine = std::thread::spawn(move || {
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
        let client = Client::new(EngineKind::Docker, socket);
        let done = run(work(client));
        (done, engine.join().unwrap())
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn documents_and_refusals() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\n5\r\na\":1}\r\n0\r\n\r\n";
        let (said, asked) = scripted(b"\r\n\r\n", chunked, async |client| {
            client.get("/info").await
        });
        assert_eq!(said.unwrap()["a"], 1);
        assert!(
            asked.starts_with("GET /info HTTP/1.1\r\nHost: engine\r\n"),
            "{asked}"
        );
        let refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 34\r\n\r\n{\"message\":\"No such container: x\"}";
        let (failed, asked) = scripted(b"{}", refusal, async |client| {
            client.post("/x", Some(&serde_json::json!({}))).await
        });
        let failure = failed.unwrap_err();
        assert_eq!(failure.code, FailureCode::NotFound);
        assert_eq!(failure.message, "docker: No such container: x");
        assert!(asked.contains("Content-Length: 2\r\n"), "{asked}");
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{";
        let (failed, _) = scripted(b"\r\n\r\n", cut, async |client| client.get("/x").await);
        assert!(failed.unwrap_err().message.contains("within an answer"));
        let (failed, _) = scripted(b"\r\n\r\n", b"", async |client| client.get("/x").await);
        assert!(failed.unwrap_err().message.contains("before the answer"));
    }

    #[test]
    fn an_engine_that_is_not_there_is_told_of_with_what_helps() {
        let client = Client::new(EngineKind::Podman, "/nowhere/podman.sock".into());
        let failure = run(client.get("/info")).unwrap_err();
        assert_eq!(failure.code, FailureCode::Unreachable);
        assert!(
            failure.message.contains("/nowhere/podman.sock"),
            "{failure}"
        );
        assert!(
            failure
                .hint
                .unwrap()
                .contains("systemctl start podman.socket")
        );
    }

    #[test]
    fn an_upload_ends_only_when_it_is_finished() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        let (said, sent) = scripted(b"0\r\n\r\n", ok, async |client| {
            let mut upload = client.upload("POST", "/images/load").await?;
            upload.send(b"abc").await?;
            upload.send(b"").await?;
            upload.finish().await
        });
        assert_eq!(said.unwrap(), b"{}");
        assert!(sent.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "{sent}");
        let ((), sent) = scripted(b"0\r\n\r\n", b"", async |client| {
            let mut upload = client.upload("POST", "/images/load").await.unwrap();
            upload.send(b"abc").await.unwrap();
        });
        assert!(sent.ends_with("\r\n\r\n3\r\nabc\r\n"), "{sent}");
        let full = b"HTTP/1.1 500 Internal Server Error\r\n\r\n{\"message\":\"no space left\"}";
        let (failed, _) = scripted(b"abc", full, async |client| {
            let mut upload = client.upload("POST", "/images/load").await?;
            loop {
                upload.send(b"abc").await?;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            Ok::<(), Failure>(())
        });
        assert!(failed.unwrap_err().message.contains("no space left"));
    }

    #[test]
    fn a_hijacked_connection_has_what_came_with_its_head() {
        let says = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst";
        let (raw, asked) = scripted(b"\r\n\r\n", says, async |client| {
            client.hijack("/containers/x/attach", None).await
        });
        let came = raw.map(|raw| raw.waiting.starts_with(b"f") || raw.waiting.is_empty());
        assert!(came.unwrap());
        assert!(asked.contains("Upgrade: tcp\r\n"), "{asked}");
    }
}
