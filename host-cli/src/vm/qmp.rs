//! The emulator's control protocol: one JSON object a line.

use std::io;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

/// Longest line of the emulator in bytes.
const MAX_LINE: u64 = 1024 * 1024;

/// A connection to the emulator's monitor. The greeting is exchanged at the first command.
#[derive(Debug)]
pub struct Qmp {
    socket: BufReader<UnixStream>,
    greeted: bool,
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
        }
    }

    /// Carries out a command without arguments and gives its result.
    pub async fn execute(&mut self, command: &str) -> Result<Value, QmpError> {
        if !self.greeted {
            let greeting = self.message().await?;
            if greeting.get("QMP").is_none() {
                return Err(QmpError::Malformed);
            }
            self.command("qmp_capabilities").await?;
            self.greeted = true;
        }
        self.command(command).await
    }

    async fn command(&mut self, command: &str) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command }).to_string();
        line.push('\n');
        self.socket.write_all(line.as_bytes()).await?;
        loop {
            let mut message = self.message().await?;
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
            // Anything else is an event.
        }
    }

    async fn message(&mut self) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        (&mut self.socket)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await?;
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
        assert_eq!(commands, ["qmp_capabilities", "query-status", "odd"]);
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
