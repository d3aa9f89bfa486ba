//! Requests to an engine over its socket, one connection for each. Waiting for an answer may be given up
//! at any time: the connection is closed then.

use std::{
    cell::RefCell,
    io,
    path::{Path, PathBuf},
    rc::Rc,
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
        path_prefix,
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
    /// The version of the API, as it stands before paths; asked for before the first request.
    prefix: Rc<RefCell<Option<String>>>,
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
        Self {
            kind,
            socket,
            prefix: Rc::default(),
        }
    }

    /// A client that asks for nothing by itself.
    #[cfg(test)]
    pub(super) fn unversioned(kind: EngineKind, socket: PathBuf) -> Self {
        let client = Self::new(kind, socket);
        client.prefix.replace(Some(String::new()));
        client
    }

    /// What it says of its versions. Remembers the one that requests are made in.
    pub async fn versions(&self) -> Result<Value, Failure> {
        let begun = self.send("GET", "/version", Content::None).await?;
        let said = begun.answer().await?.document().await?;
        self.prefix.replace(Some(path_prefix(&said)));
        Ok(said)
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
        let known = self.prefix.borrow().clone();
        let prefix = match known {
            Some(prefix) => prefix,
            None => {
                self.versions().await?;
                self.prefix.borrow().clone().unwrap_or_default()
            }
        };
        self.send(method, &format!("{prefix}{target}"), content)
            .await
    }

    async fn send(
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
            taken: 0,
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
        let begun = self.begin("GET", target, Content::None).await?;
        Ok(begun.answer().await?)
    }

    /// `POST` whose answer's document comes later than its head.
    pub async fn open_post(&self, target: &str) -> Result<Answer, Failure> {
        let begun = self.begin("POST", target, Content::None).await?;
        Ok(begun.answer().await?)
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

    /// `DELETE` of something that nobody uses; `None` when somebody does, or it has gone.
    pub async fn delete_unused(&self, target: &str) -> Result<Option<Value>, Failure> {
        let begun = self.begin("DELETE", target, Content::None).await?;
        match begun.answer().await {
            Ok(answer) => answer.document().await.map(Some),
            Err(Refusal {
                status: Some(404 | 409),
                ..
            }) => Ok(None),
            Err(refusal) => Err(refusal.failure),
        }
    }

    /// Begins to send something in pieces.
    pub async fn upload(&self, method: &str, target: &str) -> Result<Upload, Failure> {
        let begun = self.begin(method, target, Content::Pieces).await?;
        Ok(Upload(Some(begun)))
    }

    /// A request whose connection carries streams in both directions afterwards.
    pub async fn hijack(&self, target: &str, value: Option<&Value>) -> Result<Raw, Failure> {
        let begun = self.begin("POST", target, Content::Hijack(value)).await?;
        let answer = begun.answer().await?;
        let Connection {
            reader,
            writer,
            mut waiting,
            taken,
            ..
        } = answer.connection;
        waiting.drain(..taken);
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
    /// What has come.
    waiting: Vec<u8>,
    /// How much of it is taken.
    taken: usize,
    bodiless: bool,
}

/// Why a request has no answer that is a success.
struct Refusal {
    /// The answer's status; none when there was no answer.
    status: Option<u16>,
    failure: Failure,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        refusal.failure
    }
}

impl Connection {
    /// What has come and was not taken.
    fn rest(&self) -> &[u8] {
        self.waiting.get(self.taken..).unwrap_or_default()
    }

    /// Reads more. `false` at the end.
    async fn fill(&mut self) -> Result<bool, Failure> {
        // Once for all pieces that were taken.
        self.waiting.drain(..self.taken);
        self.taken = 0;
        self.waiting.reserve(PIECE);
        match self.reader.read_buf(&mut self.waiting).await {
            Ok(length) => Ok(length > 0),
            Err(error) => Err(self.client.broken(&error)),
        }
    }

    async fn head(&mut self) -> Result<(Head, Body), Failure> {
        loop {
            let broken = |error: HttpError| self.client.broken(&error);
            match Head::parse(self.rest()).map_err(broken)? {
                Some((head, length)) => {
                    let body = head.body().map_err(broken)?;
                    self.taken += length;
                    // News before the answer.
                    if !matches!(head.status, 100 | 102..=199) {
                        return Ok((head, body));
                    }
                }
                None if self.fill().await? => {}
                None => return Err(self.client.broken(&"it ended before the answer")),
            }
        }
    }

    /// The answer, or the failure that it tells of.
    async fn answer(mut self) -> Result<Answer, Refusal> {
        let (head, body) = match self.head().await {
            Ok(come) => come,
            Err(failure) => {
                let status = None;
                return Err(Refusal { status, failure });
            }
        };
        let answer = Answer {
            body: (!self.bodiless).then_some(body),
            connection: self,
            head,
        };
        match answer.head.status {
            101 | 200..=299 | 304 => Ok(answer),
            status => {
                let client = answer.connection.client.clone();
                let mut failure = answer.failure(status).await;
                // It is another one than the one that was asked for its version.
                if status == 400 && failure.message.contains("client version") {
                    client.prefix.replace(None);
                    failure = failure.with_hint("the engine has been replaced; try again");
                }
                let status = Some(status);
                Err(Refusal { status, failure })
            }
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
            let mut input = self.connection.rest();
            let client = &self.connection.client;
            let piece = body.next(&mut input).map_err(|error| client.broken(&error));
            let piece = piece?.map(<[u8]>::to_vec);
            let left = input.len();
            self.connection.taken = self.connection.waiting.len() - left;
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
    pub async fn document(mut self) -> Result<Value, Failure> {
        let bytes = self.bytes(MAX_DOCUMENT).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        let client = &self.connection.client;
        serde_json::from_slice(&bytes).map_err(|error| client.broken(&error))
    }

    async fn failure(mut self, status: u16) -> Failure {
        let mut bytes = Vec::new();
        // What has come is worth telling, also when its end does not come.
        while let Ok(Some(piece)) = self.piece().await {
            bytes.extend(piece);
            if bytes.len() > MAX_DOCUMENT {
                break;
            }
        }
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
pub struct Upload(Option<Connection>);

impl Upload {
    /// Sends a piece.
    pub async fn send(&mut self, piece: &[u8]) -> Result<(), Failure> {
        if piece.is_empty() {
            return Ok(());
        }
        let line = format!("{:x}\r\n", piece.len());
        self.write(&[line.as_bytes(), piece, b"\r\n"]).await
    }

    async fn write(&mut self, parts: &[&[u8]]) -> Result<(), Failure> {
        let Some(connection) = &mut self.0 else {
            let text = "the engine takes no more of it";
            return Err(Failure::new(FailureCode::Failed, text));
        };
        for part in parts {
            if let Err(error) = connection.writer.write_all(part).await {
                return Err(self.refused(&error).await);
            }
        }
        Ok(())
    }

    /// What the engine says that does not take any more.
    async fn refused(&mut self, error: &io::Error) -> Failure {
        let Some(connection) = self.0.take() else {
            return Failure::new(FailureCode::Failed, error.to_string());
        };
        let client = connection.client.clone();
        match connection.answer().await {
            Err(Refusal {
                status: Some(_),
                failure,
            }) => failure,
            _ => client.broken(error),
        }
    }

    /// Ends it and waits for the answer, all of it.
    pub async fn finish(mut self) -> Result<Vec<u8>, Failure> {
        self.write(&[b"0\r\n\r\n"]).await?;
        match self.0 {
            Some(connection) => connection.answer().await?.bytes(MAX_DOCUMENT).await,
            None => Ok(Vec::new()),
        }
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
mod tests;
