//! Frames on an asynchronous byte pipe, and the greetings with which a connection starts.

use std::{io, time::SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use vdkr_core::channel::{
    Assembler, Decoder, Frame, FrameError, Kind, SyncMarker, SyncScanner,
    message::{GuestHello, HostHello, Message as _, MessageError, negotiate},
};

/// Bytes taken off the pipe at a time.
const CHUNK: usize = 64 * 1024;

/// The connection to an agent is unusable.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The other side has gone.
    #[error("the connection to the virtual machine was closed")]
    Closed,
    /// The pipe broke.
    #[error("the connection to the virtual machine failed: {0}")]
    Io(io::Error),
    /// The other side breaks the protocol.
    #[error("the virtual machine broke the channel's protocol: {0}")]
    Frame(#[from] FrameError),
    /// A message cannot be read, or the versions do not fit.
    #[error("the virtual machine and this program do not understand each other: {0}")]
    Message(#[from] MessageError),
    /// Somebody is there who says nothing.
    #[error("{} does not answer", .0.display())]
    Silent(std::path::PathBuf),
    /// Something else came in the place of the greeting.
    #[error("the virtual machine did not greet")]
    NoGreeting,
}

impl From<io::Error> for PipeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Reads frames, with messages in parts put together when an assembler is kept.
#[derive(Debug)]
pub struct FrameReader<R> {
    pipe: R,
    decoder: Decoder,
    chunk: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(pipe: R) -> Self {
        Self {
            pipe,
            decoder: Decoder::new(),
            chunk: vec![0; CHUNK].into(),
        }
    }

    /// The next frame as it came, parts included. Safe to abandon at its await.
    pub async fn next(&mut self) -> Result<Frame, PipeError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(frame);
            }
            let length = self.read().await?;
            self.decoder
                .push(self.chunk.get(..length).unwrap_or_default());
        }
    }

    /// The next frame with its message whole.
    pub async fn next_whole(&mut self, assembler: &mut Assembler) -> Result<Frame, PipeError> {
        loop {
            let frame = self.next().await?;
            if let Some(whole) = assembler.push(frame)? {
                return Ok(whole);
            }
        }
    }

    async fn sync(&mut self, mut scanner: SyncScanner) -> Result<SyncMarker, PipeError> {
        loop {
            let length = self.read().await?;
            let input = self.chunk.get(..length).unwrap_or_default();
            if let Some((marker, rest)) = scanner.push(input) {
                self.decoder.push(rest);
                return Ok(marker);
            }
        }
    }

    async fn read(&mut self) -> Result<usize, PipeError> {
        match self.pipe.read(&mut self.chunk).await {
            Ok(0) => Err(PipeError::Closed),
            Ok(length) => Ok(length),
            Err(error) => Err(error.into()),
        }
    }

    async fn greeting(&mut self) -> Result<Frame, PipeError> {
        let frame = self.next().await?;
        if frame.kind == Kind::Hello {
            Ok(frame)
        } else {
            Err(PipeError::NoGreeting)
        }
    }
}

/// Greets an agent, or a monitor that speaks for one. Waits for as long as the other side takes.
pub async fn greet_guest<R, W>(
    reader: R,
    writer: &mut W,
    software: &str,
) -> Result<(FrameReader<R>, GuestHello), PipeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    greet_machine(reader, writer, software, "").await
}

/// Greets the agent of a machine that was just started. `state` is where it shall keep its state:
/// `disk` or `tmpfs`.
pub async fn greet_machine<R, W>(
    reader: R,
    writer: &mut W,
    software: &str,
    state: &str,
) -> Result<(FrameReader<R>, GuestHello), PipeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reader = FrameReader::new(reader);
    let mut nonce = [0; 8];
    random(&mut nonce)?;
    let marker = SyncMarker::new(nonce);
    writer.write_all(&marker.to_bytes()).await?;
    writer.flush().await?;
    reader.sync(SyncScanner::exactly(marker)).await?;
    // Made only now that somebody reads: the guest sets its clock by it.
    let mut entropy = [0; 32];
    random(&mut entropy)?;
    let hello = HostHello {
        state: state.to_owned(),
        ..HostHello::new(software, unix_ms(), &entropy)
    };
    send(writer, &hello).await?;
    let frame = reader.greeting().await?;
    let hello = GuestHello::decode(&frame.payload)?;
    negotiate(hello.min_version, hello.version)?;
    Ok((reader, hello))
}

/// Answers a host's greeting on behalf of an agent.
pub async fn greet_host<R, W>(
    reader: R,
    writer: &mut W,
    hello: &GuestHello,
) -> Result<(FrameReader<R>, HostHello), PipeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reader = FrameReader::new(reader);
    let marker = reader.sync(SyncScanner::any()).await?;
    writer.write_all(&marker.to_bytes()).await?;
    send(writer, hello).await?;
    let frame = reader.greeting().await?;
    let host = HostHello::decode(&frame.payload)?;
    negotiate(host.min_version, host.version)?;
    Ok((reader, host))
}

async fn send<W: AsyncWrite + Unpin>(
    writer: &mut W,
    message: &impl vdkr_core::channel::message::Message,
) -> Result<(), PipeError> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes, 0)?;
    writer.write_all(&bytes).await?;
    writer.flush().await?;
    Ok(())
}

/// Fills a buffer with the system's randomness.
fn random(buffer: &mut [u8]) -> io::Result<()> {
    use std::io::Read as _;
    std::fs::File::open("/dev/urandom")?.read_exact(buffer)
}

/// The clock in milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn both_sides_greet_behind_rubbish() {
        let (host, guest) = UnixStream::pair().unwrap();
        let agent = tokio::spawn(async move {
            let (reader, mut writer) = guest.into_split();
            writer.write_all(b"booting...\0VDKR1\nxx").await.unwrap();
            let hello = GuestHello {
                software: "agent 1".into(),
                ..GuestHello::default()
            };
            greet_host(reader, &mut writer, &hello).await.unwrap().1
        });
        let (reader, mut writer) = host.into_split();
        let (_, hello) = greet_guest(reader, &mut writer, "vdkr 9").await.unwrap();
        assert_eq!(hello.software, "agent 1");
        let seen = agent.await.unwrap();
        assert_eq!(seen.software, "vdkr 9");
        assert!(seen.entropy().is_some());
        assert!(seen.now_unix_ms.abs_diff(unix_ms()) < 60_000);
    }

    #[tokio::test]
    async fn versions_that_have_nothing_in_common_part() {
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = guest.into_split();
            let hello = GuestHello {
                version: 9,
                min_version: 8,
                ..GuestHello::default()
            };
            let _ = greet_host(reader, &mut writer, &hello).await;
        });
        let (reader, mut writer) = host.into_split();
        let error = greet_guest(reader, &mut writer, "vdkr")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("8 to 9"), "{error}");
    }

    #[tokio::test]
    async fn an_end_before_the_greeting_is_an_error() {
        let (host, guest) = UnixStream::pair().unwrap();
        drop(guest);
        let (reader, mut writer) = host.into_split();
        assert!(greet_guest(reader, &mut writer, "vdkr").await.is_err());
    }
}
