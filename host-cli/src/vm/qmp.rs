//! The emulator's control protocol: one JSON object a line.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest},
    net::UnixStream,
    time::timeout,
};

/// How long the emulator may take for a command for people.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line of the emulator in bytes.
const MAX_LINE: u64 = 1024 * 1024;
/// Events that are kept until somebody waits for one; older ones are forgotten.
const MAX_EVENTS: usize = 64;

/// A connection to the emulator's monitor. The greeting is exchanged at the first command.
#[derive(Debug)]
pub struct Qmp {
    socket: BufReader<UnixStream>,
    greeted: bool,
    events: VecDeque<Value>,
    /// What was read of the line that is under way.
    line: Vec<u8>,
    /// Number of the last command.
    last: u64,
}

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection broke.
    #[error("the emulator's control connection failed: {0}")]
    Io(#[from] io::Error),
    /// The emulator's answer is not in its protocol.
    #[error("the emulator sent a control message that cannot be read")]
    Malformed,
    /// The emulator refuses.
    #[error("the emulator refused {command}: {reason}")]
    Refused {
        /// What it was asked.
        command: String,
        /// Its words.
        reason: String,
    },
}

impl Qmp {
    /// Takes over a connection on which nothing was said yet.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket: BufReader::new(socket),
            greeted: false,
            events: VecDeque::new(),
            line: Vec::new(),
            last: 0,
        }
    }

    /// Carries out a command without arguments and gives its result.
    pub async fn execute(&mut self, command: &str) -> Result<Value, QmpError> {
        self.execute_with(command, Value::Null).await
    }

    /// Carries out a command for people and gives what it printed.
    pub async fn human(&mut self, line: &str) -> Result<String, QmpError> {
        let arguments = json!({ "command-line": line });
        let printed = timeout(
            PATIENCE,
            self.execute_with("human-monitor-command", arguments),
        );
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let printed = printed.await.map_err(late)??;
        Ok(printed.as_str().unwrap_or_default().to_owned())
    }

    /// Carries out a command; `arguments` is an object, or null for none.
    pub async fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.greet().await?;
        self.command(command, arguments).await
    }

    /// Gives the emulator a file under a name, for a later command.
    pub async fn send_file(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.greet().await?;
        // The file travels beside the first byte of the command that takes it; a blank will do.
        let socket = self.socket.get_ref();
        socket
            .async_io(Interest::WRITABLE, || {
                let files = [file.as_raw_fd()];
                let sent = sendmsg::<()>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(b" ")],
                    &[ControlMessage::ScmRights(&files)],
                    MsgFlags::empty(),
                    None,
                );
                sent.map(drop).map_err(io::Error::from)
            })
            .await?;
        self.command("getfd", json!({ "fdname": name })).await?;
        Ok(())
    }

    /// Waits for an event of this name for which `matches` holds of its data. Those that come
    /// meanwhile are kept.
    pub async fn event(
        &mut self,
        name: &str,
        mut matches: impl FnMut(&Value) -> bool,
    ) -> Result<(), QmpError> {
        self.greet().await?;
        let mut wanted = |event: &Value| event["event"] == name && matches(&event["data"]);
        if let Some(at) = self.events.iter().position(&mut wanted) {
            self.events.remove(at);
            return Ok(());
        }
        loop {
            let message = self.message().await?;
            if wanted(&message) {
                return Ok(());
            }
            self.keep(message);
        }
    }

    async fn greet(&mut self) -> Result<(), QmpError> {
        if self.greeted {
            return Ok(());
        }
        let greeting = self.message().await?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Malformed);
        }
        self.command("qmp_capabilities", Value::Null).await?;
        self.greeted = true;
        Ok(())
    }

    /// The data of all events of this name that came and that nobody waited for.
    pub fn take_events(&mut self, name: &str) -> Vec<Value> {
        let named = |event: &Value| event["event"] == name;
        let (taken, left): (VecDeque<Value>, VecDeque<Value>) =
            self.events.drain(..).partition(named);
        self.events = left;
        let data = taken.into_iter().map(|mut event| event["data"].take());
        data.collect()
    }

    async fn command(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.last += 1;
        let mut object = json!({ "execute": command, "id": self.last });
        if !arguments.is_null() {
            object["arguments"] = arguments;
        }
        let mut line = object.to_string();
        line.push('\n');
        self.socket.write_all(line.as_bytes()).await?;
        loop {
            let mut message = self.message().await?;
            // The answer to a command that was not waited for.
            if message.get("id").is_some_and(|id| *id != self.last) {
                continue;
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("no reason given");
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: reason.to_owned(),
                });
            }
            self.keep(message);
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next message. Safe to abandon: a line that has come in part is gone on with.
    async fn message(&mut self) -> Result<Value, QmpError> {
        let room = MAX_LINE.saturating_sub(self.line.len() as u64);
        (&mut self.socket)
            .take(room)
            .read_until(b'\n', &mut self.line)
            .await?;
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        serde_json::from_slice(&line).map_err(|_| QmpError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn emulator(socket: UnixStream) -> Vec<Value> {
        let (reader, mut writer) = socket.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut seen = Vec::new();
        writer
            .write_all(b"{\"QMP\":{\"version\":{}}}\r\n")
            .await
            .unwrap();
        while let Some(line) = lines.next_line().await.unwrap() {
            let message: Value = serde_json::from_str(&line).unwrap();
            let answer = match message["execute"].as_str().unwrap() {
                "human-monitor-command" => {
                    assert_eq!(message["arguments"]["command-line"], "info usernet");
                    r#"{"return":"Hub 0\r\n"}"#
                }
                "odd" => r#"{"error":{"class":"CommandNotFound","desc":"no such command"}}"#,
                "query-status" => "{\"event\":\"RESUME\"}\r\n{\"return\":{\"running\":true}}",
                _ => r#"{"return":{}}"#,
            };
            writer
                .write_all(format!("{answer}\r\n").as_bytes())
                .await
                .unwrap();
            seen.push(message);
        }
        seen
    }

    #[tokio::test]
    async fn commands_events_and_refusals() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let emulator = tokio::spawn(emulator(theirs));
        let mut qmp = Qmp::new(ours);
        assert_eq!(
            qmp.execute("query-status").await.unwrap(),
            json!({ "running": true })
        );
        assert_eq!(qmp.human("info usernet").await.unwrap(), "Hub 0\r\n");
        let error = qmp.execute("odd").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the emulator refused odd: no such command"
        );
        drop(qmp);
        let commands: Vec<_> = emulator
            .await
            .unwrap()
            .iter()
            .map(|m| m["execute"].clone())
            .collect();
        let expected = [
            "qmp_capabilities",
            "query-status",
            "human-monitor-command",
            "odd",
        ];
        assert_eq!(commands, expected);
    }

    #[tokio::test]
    async fn events_wait_for_those_who_want_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let emulator = tokio::spawn(emulator(theirs));
        let mut qmp = Qmp::new(ours);
        qmp.execute("query-status").await.unwrap();
        // It came before the answer, and is there once.
        qmp.event("RESUME", |_| true).await.unwrap();
        let again = qmp.event("RESUME", |_| true);
        let patience = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(patience, again).await.is_err());
        qmp.execute("query-status").await.unwrap();
        let other = qmp.event("RESUME", |data| data["open"] == true);
        assert!(tokio::time::timeout(patience, other).await.is_err());
        qmp.event("RESUME", Value::is_null).await.unwrap();
        drop(qmp);
        emulator.await.unwrap();
    }

    #[tokio::test]
    async fn a_file_goes_before_its_name() {
        use std::{
            io::{BufRead as _, Write as _},
            os::{fd::AsFd as _, unix::net::UnixStream as StdUnixStream},
        };
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        // Blocking: what comes with a file is read apart, which tokio takes for all there is.
        let emulator = tokio::task::spawn_blocking(move || {
            let mut writer = theirs.try_clone().unwrap();
            writer.write_all(b"{\"QMP\":{}}\n").unwrap();
            let lines = std::io::BufReader::new(theirs).lines();
            let mut answer = |line: &str| {
                writer.write_all(b"{\"return\":{}}\n").unwrap();
                serde_json::from_str::<Value>(line).unwrap()
            };
            lines
                .map_while(Result::ok)
                .map(|line| answer(&line))
                .collect::<Vec<_>>()
        });
        let mut qmp = Qmp::new(UnixStream::from_std(ours).unwrap());
        let file = std::fs::File::open("/dev/null").unwrap();
        qmp.send_file("a", file.as_fd()).await.unwrap();
        drop(qmp);
        let commands = emulator.await.unwrap();
        assert_eq!(commands[1]["arguments"], json!({ "fdname": "a" }));
    }

    #[tokio::test]
    async fn a_dead_emulator_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(
            Qmp::new(ours).execute("quit").await,
            Err(QmpError::Io(_))
        ));
    }
}
