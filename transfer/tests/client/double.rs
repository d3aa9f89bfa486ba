//! A scripted HTTP server: a table of requests and answers, with a count for each, and a record of
//! what came. What the table does not expect fails the test.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter();
        found
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// An answer, or what comes instead of one.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close after this many bytes of the body.
    cut: Option<usize>,
    /// Take this many bytes of the request's body and close without an answer.
    hang_up_after: Option<usize>,
    /// Answer before the request's body was read.
    early: bool,
    /// Never answer.
    stall: bool,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut: None,
            hang_up_after: None,
            early: false,
            stall: false,
        }
    }

    pub(crate) fn ok(body: impl AsRef<[u8]>) -> Self {
        Self::status(200).body(body)
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    pub(crate) fn early(mut self) -> Self {
        self.early = true;
        self
    }

    pub(crate) fn stall() -> Self {
        Self {
            stall: true,
            ..Self::status(0)
        }
    }

    pub(crate) fn hang_up(after: usize) -> Self {
        Self {
            hang_up_after: Some(after),
            ..Self::status(0)
        }
    }
}

type Guard = Arc<dyn Fn(&Seen) -> bool + Send + Sync>;

struct Rule {
    method: String,
    target: String,
    guard: Guard,
    reply: Reply,
    /// Uses left; `None` is any number.
    left: Option<usize>,
    used: bool,
    must: bool,
}

#[derive(Default)]
struct Script {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    unexpected: Vec<String>,
}

pub(crate) struct Double {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

/// A rule that is being written; it takes effect when it gets its reply.
pub(crate) struct Expect<'a> {
    double: &'a Double,
    method: String,
    target: String,
    guard: Guard,
    left: Option<usize>,
    must: bool,
}

impl Expect<'_> {
    pub(crate) fn times(mut self, count: usize) -> Self {
        self.left = Some(count);
        self
    }

    /// Any number of times, also never.
    pub(crate) fn maybe(mut self) -> Self {
        self.left = None;
        self.must = false;
        self
    }

    pub(crate) fn when(mut self, guard: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Self {
        self.guard = Arc::new(guard);
        self
    }

    /// Only with this `Authorization`; empty means without any.
    pub(crate) fn authorized(self, value: &str) -> Self {
        let value = value.to_owned();
        self.when(move |seen| seen.header("authorization").unwrap_or_default() == value)
    }

    pub(crate) fn reply(self, reply: Reply) {
        self.double.script.lock().unwrap().rules.push(Rule {
            method: self.method,
            target: self.target,
            guard: self.guard,
            reply,
            left: self.left,
            used: false,
            must: self.must,
        });
    }
}

impl Double {
    /// Serves plain HTTP. The bare `GET /v2/` by which clients find out how to speak is answered
    /// with 200 unless the script says otherwise.
    pub(crate) async fn start() -> Self {
        Self::serve(|stream| async { Some(stream) }).await
    }

    /// Serves what `wrap` makes of a connection; `None` closes it.
    pub(crate) async fn serve<S, F>(
        wrap: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<S>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = script.clone();
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, wrapped) = (shared.clone(), wrap(stream));
                connections.spawn(async move {
                    if let Some(mut stream) = wrapped.await {
                        while serve_one(&mut stream, &script).await.is_some() {}
                        let _ = stream.shutdown().await;
                    }
                });
            }
        });
        Self {
            address,
            script,
            task,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Expects a request, once unless said otherwise. Rules are tried in the order they were made.
    pub(crate) fn on(&self, method: &str, target: impl Display) -> Expect<'_> {
        Expect {
            double: self,
            method: method.to_owned(),
            target: target.to_string(),
            guard: Arc::new(|_| true),
            left: Some(1),
            must: true,
        }
    }

    /// Everything that came, without the bare `GET /v2/`.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.script.lock().unwrap().seen.clone()
    }

    /// Nothing came that was not expected, and everything that was expected came.
    pub(crate) fn finish(self) -> Vec<Seen> {
        self.task.abort();
        let script = self.script.lock().unwrap();
        assert!(
            script.unexpected.is_empty(),
            "unexpected: {:#?}",
            script.unexpected
        );
        for rule in &script.rules {
            let missing = rule.must && (!rule.used || rule.left.is_some_and(|left| left > 0));
            assert!(!missing, "never came: {} {}", rule.method, rule.target);
        }
        script.seen.clone()
    }
}

impl Script {
    fn answer(&mut self, seen: &Seen) -> Reply {
        let rule = self.rules.iter_mut().find(|rule| {
            rule.method == seen.method
                && rule.target == seen.target
                && rule.left != Some(0)
                && (rule.guard)(seen)
        });
        if let Some(rule) = rule {
            rule.left = rule.left.map(|left| left - 1);
            rule.used = true;
            return rule.reply.clone();
        }
        if seen.method == "GET" && seen.target == "/v2/" {
            return Reply::status(200);
        }
        self.unexpected.push(format!("{seen:?}"));
        Reply::status(418)
    }
}

/// One request and its answer; `None` when the connection is over.
async fn serve_one<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    script: &Mutex<Script>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head == [0x16] {
            // A TLS handshake, answered as HTTP servers do.
            let refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(refusal).await.ok()?;
            return None;
        }
        assert!(head.len() < 64 * 1024, "endless head");
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let mut seen = Seen {
        method: first.next()?.to_owned(),
        target: first.next()?.to_owned(),
        headers: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: Vec::new(),
    };
    let length: usize = seen
        .header("content-length")
        .map_or(0, |text| text.parse().unwrap());
    assert!(
        seen.header("transfer-encoding").is_none(),
        "lengths are known: {seen:?}"
    );
    let reply = script.lock().unwrap().answer(&seen);
    let taken = reply.hang_up_after.unwrap_or(length).min(length);
    if reply.early {
        stream.write_all(&head_of(&reply)).await.ok()?;
        stream.write_all(&reply.body).await.ok()?;
        // Takes nothing more until the client has gone on to something else: what it sends now is
        // what the sockets hold.
        let before = script.lock().unwrap().seen.len();
        for _ in 0..2000 {
            if script.lock().unwrap().seen.len() > before {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    seen.body.resize(taken, 0);
    let complete = stream.read_exact(&mut seen.body).await.is_ok();
    let probe = seen.method == "GET" && seen.target == "/v2/";
    let is_head = seen.method == "HEAD";
    if !probe {
        script.lock().unwrap().seen.push(seen);
    }
    if !complete || reply.hang_up_after.is_some() {
        return None;
    }
    if reply.early {
        return Some(());
    }
    if reply.stall {
        std::future::pending::<()>().await;
    }
    let mut answer = head_of(&reply);
    if !is_head {
        answer.extend_from_slice(&reply.body[..reply.cut.unwrap_or(reply.body.len())]);
    }
    stream.write_all(&answer).await.ok()?;
    stream.flush().await.ok()?;
    reply.cut.is_none().then_some(())
}

fn head_of(reply: &Reply) -> Vec<u8> {
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "Content-Length" || name == "Transfer-Encoding");
    let mut answer = format!("HTTP/1.1 {} Scripted\r\n", reply.status).into_bytes();
    for (name, value) in &reply.headers {
        answer.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !has_length && reply.status != 204 {
        answer.extend_from_slice(format!("Content-Length: {}\r\n", reply.body.len()).as_bytes());
    }
    answer.extend_from_slice(b"\r\n");
    answer
}
