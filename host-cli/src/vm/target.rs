//! An agent that runs on a machine of its own: a board, or a full image. How it is reached.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::fcntl::OFlag;
use rustix::{
    fs::FlockOperation,
    termios::{ControlModes, OptionalActions, isatty, tcgetattr, tcsetattr},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, unix::AsyncFd},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use tokio_vsock::{VsockAddr, VsockStream};
use vdkr_core::target::TargetAddress;

use super::{
    channel::Connection,
    kept::GREETING,
    pipe::{PipeError, greet_guest},
};

/// How long a command waits for a target that does not answer, or for its turn on a line.
const PATIENCE: Duration = Duration::from_secs(40);
/// After this the user is told what is waited for.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// The longest line with which a monitor answers, in bytes.
const MAX_ANSWER: usize = 32;
/// How often a line is looked at that another command uses.
const TURN_PAUSE: Duration = Duration::from_millis(50);
/// How often a target is greeted again that does not answer. What got lost in another command's
/// half-sent words is sent again by that.
const AGAIN: Duration = Duration::from_secs(8);

/// There is no agent to talk to.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The way there cannot be opened.
    #[error("target {address} cannot be reached: {source}; is vdkr-agent serve running there?")]
    Connect {
        /// The target.
        address: TargetAddress,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers.
    #[error(
        "target {0} does not answer; is vdkr-agent serve running there, and nobody else talking to it?"
    )]
    Silent(TargetAddress),
    /// Somebody answers who is no agent, or one that is too different.
    #[error("target {address}: {source}")]
    Pipe {
        /// The target.
        address: TargetAddress,
        /// What went wrong.
        source: PipeError,
    },
}

/// Connects to the agent of a target and exchanges greetings. `say` is told what is waited for.
pub async fn connect(
    address: &TargetAddress,
    say: &mut dyn FnMut(&str),
) -> Result<Connection, TargetError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        // A socket is answered at once, or by somebody else than an agent.
        let patience = match address {
            TargetAddress::Serial(_) => AGAIN.min(left),
            _ => GREETING,
        };
        let attempt = timeout(patience, once(address));
        tokio::pin!(attempt);
        let ended = loop {
            if told {
                break attempt.await;
            }
            match timeout(TELL_AFTER, &mut attempt).await {
                Ok(ended) => break ended,
                Err(_) => {
                    say(&format!("waiting for the agent at {address}"));
                    told = true;
                }
            }
        };
        match ended {
            Ok(result) => return result,
            Err(_) if matches!(address, TargetAddress::Serial(_)) && begun.elapsed() < PATIENCE => {
            }
            Err(_) => return Err(TargetError::Silent(address.clone())),
        }
    }
}

async fn once(address: &TargetAddress) -> Result<Connection, TargetError> {
    let failed = |source| TargetError::Connect {
        address: address.clone(),
        source,
    };
    match address {
        TargetAddress::Vsock { cid, port } => {
            let stream = VsockStream::connect(VsockAddr::new(*cid, *port));
            let (reader, writer) = tokio::io::split(stream.await.map_err(failed)?);
            greet(address, reader, writer).await
        }
        TargetAddress::Hybrid { path, port } => {
            let mut stream = UnixStream::connect(path).await.map_err(failed)?;
            ask_for(&mut stream, *port).await.map_err(failed)?;
            let (reader, writer) = stream.into_split();
            greet(address, reader, writer).await
        }
        TargetAddress::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            let (reader, writer) = stream.into_split();
            greet(address, reader, writer).await
        }
        TargetAddress::Serial(path) => {
            let kind = fs::metadata(path).map_err(failed)?.file_type();
            if kind.is_socket() {
                // An emulator's end of the line. It takes one command after the other.
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                let (reader, writer) = stream.into_split();
                return greet(address, reader, writer).await;
            }
            let line = Line::open(path.as_ref()).await.map_err(failed)?;
            let (reader, writer) = tokio::io::split(line);
            greet(address, reader, writer).await
        }
    }
}

/// Asks a virtual machine monitor for a port of its guest, as Firecracker has it: `CONNECT PORT`,
/// which `OK` and a number answer, each on a line.
async fn ask_for(stream: &mut UnixStream, port: u32) -> io::Result<()> {
    let none = || io::Error::other(format!("nobody listens on vsock port {port} there"));
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut line = [0; MAX_ANSWER];
    for end in 0..line.len() {
        // What follows the line is the agent's already.
        if stream.read(&mut line[end..=end]).await? == 0 {
            return Err(none());
        }
        if line[end] == b'\n' {
            let number = line[..end].strip_prefix(b"OK ");
            return match number {
                Some(number) if number.iter().all(u8::is_ascii_digit) => Ok(()),
                _ => Err(none()),
            };
        }
    }
    Err(io::Error::other(
        "it is no vsock socket of a virtual machine",
    ))
}

async fn greet<R, W>(
    address: &TargetAddress,
    reader: R,
    mut writer: W,
) -> Result<Connection, TargetError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let greeted = greet_guest(reader, &mut writer, super::SOFTWARE).await;
    let (reader, hello) = greeted.map_err(|source| TargetError::Pipe {
        address: address.clone(),
        source,
    })?;
    Ok(Connection::new(reader, writer, hello))
}

/// A serial line, taken for this process.
#[derive(Debug)]
struct Line(AsyncFd<OwnedFd>);

impl Line {
    /// Opens the device and waits for its turn.
    async fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(path)?;
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::other("it is neither a serial line nor a socket"));
        }
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            sleep(TURN_PAUSE).await;
        }
        if isatty(&file) {
            let mut mode = tcgetattr(&file)?;
            mode.make_raw();
            // Without a modem there is nobody who would hang up.
            mode.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
            tcsetattr(&file, OptionalActions::Now, &mode)?;
        }
        Ok(Self(watch(file.into())?))
    }
}

/// Registers a nonblocking file with the runtime of the current task.
#[allow(
    unsafe_code,
    reason = "tokio cannot know that a file is not replaced under its hands"
)]
fn watch(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open file for as long as it lives, and `AsyncFd` owns it now.
    unsafe { Ok(AsyncFd::register(file)?) }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let read = guard.try_io(|file| {
                Ok(rustix::io::read(
                    file.get_ref(),
                    buffer.initialize_unfilled(),
                )?)
            });
            if let Ok(result) = read {
                buffer.advance(result?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            let written = guard.try_io(|file| Ok(rustix::io::write(file.get_ref(), bytes)?));
            if let Ok(result) = written {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use vdkr_core::channel::message::GuestHello;

    use super::super::pipe::greet_host;
    use super::*;

    #[tokio::test]
    async fn an_agent_of_a_later_version_is_refused_with_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let hello = GuestHello {
                version: 9,
                min_version: 8,
                ..GuestHello::default()
            };
            let _ = greet_host(reader, &mut writer, &hello).await;
        });
        let address = TargetAddress::Unix(path.to_str().unwrap().to_owned());
        let error = connect(&address, &mut |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("8 to 9"), "{error}");
    }

    /// A monitor that answers `CONNECT` with these bytes and hangs up.
    async fn monitor(answer: &'static [u8]) -> (String, TargetError) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8(asked.to_vec()).unwrap()
        });
        let address = format!("vsock:{}", path.display()).parse().unwrap();
        let error = connect(&address, &mut |_| {}).await.unwrap_err();
        (asked.await.unwrap(), error)
    }

    #[tokio::test]
    async fn a_monitor_is_asked_for_the_port_and_its_refusals_are_told() {
        for (answer, words) in [
            (&b""[..], "nobody listens on vsock port 1024"),
            (b"NO\n", "nobody listens on vsock port 1024"),
            (b"OK x\n", "nobody listens on vsock port 1024"),
            (&[b'x'; 64], "no vsock socket of a virtual machine"),
        ] {
            let (asked, error) = monitor(answer).await;
            assert_eq!(asked, "CONNECT 1024\n");
            assert!(error.to_string().contains(words), "{error}");
        }
        // Granted, and then nobody speaks.
        let (_, error) = monitor(b"OK 1073741824\n").await;
        assert!(matches!(error, TargetError::Pipe { .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let silent = tokio::spawn(async move {
            let mut all = Vec::new();
            loop {
                all.push(listener.accept().await.unwrap());
            }
        });
        let path = path.to_str().unwrap().to_owned();
        for address in [
            TargetAddress::Unix(path.clone()),
            TargetAddress::Serial(path),
        ] {
            let mut words = Vec::new();
            let ended = connect(&address, &mut |text| words.push(text.to_owned())).await;
            assert!(matches!(ended, Err(TargetError::Silent(_))), "{ended:?}");
            assert_eq!(words.len(), 1, "{words:?}");
        }
        silent.abort();
    }

    #[tokio::test]
    async fn what_is_not_there_or_no_line_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        for address in [
            TargetAddress::Unix(text(&dir.path().join("none"))),
            TargetAddress::Serial(text(&dir.path().join("none"))),
            TargetAddress::Serial(text(&file)),
        ] {
            let error = connect(&address, &mut |_| {}).await.unwrap_err();
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
    }
}
