//! The streams of a container or of a process in it, between the engine and a host.

use std::time::{Duration, UNIX_EPOCH};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    task::spawn_local,
    time::timeout,
};
use vdkr_core::{
    channel::{
        Pipe,
        frame::Resize,
        message::{Failure, FailureCode},
    },
    engine::frames::Frames,
};

use super::{
    Engine,
    client::{Answer, Raw},
};
use crate::{
    channel::{Control, stream::SharedStream},
    container::streams::{discard, send_bytes},
    request::{cancelled, container::attach::Input},
};

/// Bytes taken in one go.
const PIECE: usize = 32 * 1024;

/// How long an engine has to hand on a signal or a size.
const PATIENCE: Duration = Duration::from_secs(10);

/// How an end came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// What the streams are those of has ended, with this status.
    Ended(i32),
    /// The host let go of it, and it goes on.
    Detached,
}

/// What the streams are those of.
#[derive(Clone, Debug)]
pub(super) enum Of {
    /// A container, by its id.
    Container(String),
    /// A process in one, by the id that the engine gave it.
    Exec(String),
}

impl Of {
    /// Hands a signal on. One that comes too late is none.
    async fn signal(&self, engine: &Engine, number: u8) {
        match self {
            Self::Container(id) => {
                let target = format!("/containers/{id}/kill?signal={number}");
                let _ = timeout(PATIENCE, engine.client.post(&target, None)).await;
            }
            Self::Exec(id) => {
                let _ = timeout(PATIENCE, engine.signal_exec(id, number)).await;
            }
        }
    }

    /// Tells its terminal its size.
    async fn resize(&self, engine: &Engine, size: Resize) {
        let path = match self {
            Self::Container(id) => format!("/containers/{id}"),
            Self::Exec(id) => format!("/exec/{id}"),
        };
        let target = format!("{path}/resize?h={}&w={}", size.rows, size.cols);
        let _ = timeout(PATIENCE, engine.client.post(&target, None)).await;
    }
}

/// Does what leads to a status, and hands signals and sizes on meanwhile, until the host lets go.
pub(super) async fn until_detached(
    engine: &Engine,
    stream: &SharedStream,
    of: &Of,
    work: impl Future<Output = Result<i32, Failure>>,
) -> Result<End, Failure> {
    let heard = async {
        loop {
            let handed_on = async {
                match stream.control().await {
                    Control::Signal(number) => of.signal(engine, number).await,
                    Control::Resize(size) => of.resize(engine, size).await,
                    Control::Detach => return true,
                }
                false
            };
            if handed_on.await {
                return;
            }
        }
    };
    tokio::select! {
        status = work => status.map(End::Ended),
        () = heard => Ok(End::Detached),
    }
}

/// Carries output and input until the streams end. Gives the time at which the last output came, if any
/// did, in milliseconds since the epoch.
pub(super) async fn carry(
    raw: Raw,
    tty: bool,
    stdin: bool,
    stream: &SharedStream,
) -> Result<Option<u64>, Failure> {
    let Raw {
        reader,
        writer,
        waiting,
    } = raw;
    // The half that is written to stays open as long as the streams do: engines take its end for that of
    // the input, and some for that of everything.
    let _input = Input(spawn_local(feed(writer, stream.clone(), stdin)));
    let mut output = Output::new(tty, stream);
    drain(reader, waiting, &mut output).await?;
    Ok(output.heard_ms)
}

async fn feed(mut writer: OwnedWriteHalf, stream: SharedStream, wanted: bool) {
    if wanted {
        let mut open = true;
        while let Some(bytes) = stream.read().await {
            open = open && writer.write_all(&bytes).await.is_ok();
            stream.consumed(bytes.len()).await;
        }
        let _ = writer.shutdown().await;
    } else {
        discard(stream).await;
    }
    std::future::pending::<()>().await;
}

async fn drain(
    mut reader: OwnedReadHalf,
    mut waiting: Vec<u8>,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    loop {
        if !waiting.is_empty() {
            output.put(&waiting).await?;
            waiting.clear();
        }
        waiting.reserve(PIECE);
        match reader.read_buf(&mut waiting).await {
            Ok(0) => return output.end(),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return output.end();
            }
            Err(error) => {
                let text = format!("the output of the engine broke off: {error}");
                return Err(Failure::new(FailureCode::Failed, text));
            }
        }
    }
}

/// Output on its way to a host.
pub(super) struct Output<'a> {
    /// Absent for a terminal, whose output is in no frames.
    frames: Option<Frames>,
    stream: &'a SharedStream,
    /// When the last of it came.
    heard_ms: Option<u64>,
}

impl<'a> Output<'a> {
    /// The output of a container with or without a terminal.
    pub(super) fn new(tty: bool, stream: &'a SharedStream) -> Self {
        Self {
            frames: (!tty).then(Frames::default),
            stream,
            heard_ms: None,
        }
    }

    async fn put(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.heard_ms = Some(now_ms());
        let Some(frames) = &mut self.frames else {
            return send(self.stream, Pipe::Stdout, bytes).await;
        };
        loop {
            let piece = frames.next(&mut bytes).map_err(|error| {
                let text = format!("cannot read the output of the engine: {error}");
                Failure::new(FailureCode::Failed, text)
            })?;
            let Some((pipe, data)) = piece else {
                return Ok(());
            };
            send(self.stream, pipe, data).await?;
        }
    }

    fn end(&self) -> Result<(), Failure> {
        match &self.frames {
            Some(frames) if frames.is_cut_off() => {
                let text = "the output of the engine was cut off";
                Err(Failure::new(FailureCode::Failed, text))
            }
            _ => Ok(()),
        }
    }

    /// Everything that comes with an answer; gives the time of [`carry`].
    pub(super) async fn put_all(mut self, mut answer: Answer) -> Result<Option<u64>, Failure> {
        while let Some(piece) = answer.piece().await? {
            self.put(&piece).await?;
        }
        self.end()?;
        Ok(self.heard_ms)
    }
}

/// The time of this machine, which is the engine's as well, in milliseconds since the epoch.
pub(super) fn now_ms() -> u64 {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Sends bytes to a host within its credit.
pub(super) async fn send(stream: &SharedStream, pipe: Pipe, bytes: &[u8]) -> Result<(), Failure> {
    tokio::select! {
        sent = send_bytes(stream, pipe, bytes) => sent.then_some(()).ok_or_else(cancelled),
        () = stream.cancelled().cancelled() => Err(cancelled()),
    }
}
