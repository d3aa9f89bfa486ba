//! Where hosts come in.

use std::{
    fmt, fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use super::{
    port::{self, Port},
    server::{Service, serve},
};

/// How often a port is looked for that the kernel does not have yet: at first, and in the long run.
const PORT_PAUSE: Duration = Duration::from_millis(2);
const PORT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a line that fails rests before it is opened again.
const LINE_PAUSE: Duration = Duration::from_secs(1);

/// An address that `--channel` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `port:NAME`: a virtio-serial port.
    Port(String),
    /// `serial:PATH`: a serial line, or the device of a virtio-serial port.
    Serial(PathBuf),
    /// `unix:PATH`: a unix socket, made by the agent.
    Unix(PathBuf),
    /// `vsock:PORT`: a port that the machine's host connects to, and nobody else.
    Vsock(u32),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(name) => write!(f, "port:{name}"),
            Self::Serial(path) => write!(f, "serial:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock(port) => write!(f, "vsock:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("port", name)) if !name.is_empty() => Ok(Self::Port(name.to_owned())),
            Some(("serial", path)) if !path.is_empty() => Ok(Self::Serial(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("vsock", port)) => match port.parse() {
                Ok(port) => Ok(Self::Vsock(port)),
                Err(_) => Err(format!("vsock port {port:?} is no number")),
            },
            _ => Err(format!(
                "channel {text:?} is neither port:NAME, serial:PATH, unix:PATH nor vsock:PORT"
            )),
        }
    }
}

/// Serves hosts at `address` until the task is dropped. Only fails when it cannot listen.
///
/// Must run in a [`tokio::task::LocalSet`].
pub async fn listen(address: &Address, service: Rc<impl Service + 'static>) -> io::Result<()> {
    match address {
        Address::Port(name) => {
            let mut pause = PORT_PAUSE;
            let path = loop {
                if let Some(path) = port::find(name) {
                    break path;
                }
                tokio::time::sleep(pause).await;
                pause = (pause + pause / 8).min(PORT_PAUSE_MAX);
            };
            let mut port = Port::open(&path)?;
            loop {
                port.wait_for_host().await?;
                serve(&mut port, service.clone()).await?;
            }
        }
        Address::Serial(path) => {
            // That it is there and free shows at the start; later it may be unplugged for a while.
            let mut port = Port::open(path)?;
            loop {
                if let Err(error) = serve_line(&mut port, &service).await {
                    eprintln!("vdkr-agent: {}: {error}", path.display());
                }
                tokio::time::sleep(LINE_PAUSE).await;
                if let Ok(again) = Port::open(path) {
                    port = again;
                }
            }
        }
        Address::Vsock(port) => {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port))?;
            loop {
                let (stream, peer) = listener.accept().await?;
                // Programs in the machine, containers among them, can connect as well.
                if peer.cid() == VMADDR_CID_HOST {
                    answer(stream, service.clone());
                }
            }
        }
        Address::Unix(path) => {
            let listener = bind(path)?;
            loop {
                let (stream, _) = listener.accept().await?;
                answer(stream, service.clone());
            }
        }
    }
}

/// Serves the hosts at the other end of a line, one after the other, until it fails.
async fn serve_line(port: &mut Port, service: &Rc<impl Service + 'static>) -> io::Result<()> {
    loop {
        port.wait_for_host().await?;
        serve(&mut *port, service.clone()).await?;
    }
}

/// Serves one of several hosts.
fn answer(pipe: impl AsyncRead + AsyncWrite + 'static, service: Rc<impl Service + 'static>) {
    tokio::task::spawn_local(async move {
        if let Err(error) = serve(pipe, service).await {
            eprintln!("vdkr-agent: connection ended: {error}");
        }
    });
}

/// Makes the socket, for its owner alone. A socket that nobody serves any more is replaced.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path).is_err()
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            "port:vdkr.agent".parse(),
            Ok(Address::Port("vdkr.agent".into()))
        );
        assert_eq!(
            "unix:/run/a:b".parse(),
            Ok(Address::Unix("/run/a:b".into()))
        );
        let line = Address::Serial("/dev/ttyS1".into());
        assert_eq!("serial:/dev/ttyS1".parse(), Ok(line));
        assert_eq!("vsock:1024".parse(), Ok(Address::Vsock(1024)));
        for bad in [
            "", "port:", "unix:", "vsock:x", "serial:", "/run/a", "tcp:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
