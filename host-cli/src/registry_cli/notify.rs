//! The readiness protocol of systemd (`sd_notify`), both ends: `serve` tells, `start` waits.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends a state such as `READY=1` to the supervisor named by `NOTIFY_SOCKET`, if there is one.
pub fn notify(socket: Option<&OsStr>, state: &str) -> std::io::Result<()> {
    let Some(name) = socket.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

/// The waiting end, at a path that only this user can reach.
#[derive(Debug)]
pub struct Listener {
    socket: tokio::net::UnixDatagram,
    path: std::path::PathBuf,
}

impl Listener {
    /// Binds a socket at `path`, replacing what a killed predecessor left there.
    pub fn bind(path: std::path::PathBuf) -> std::io::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            socket: tokio::net::UnixDatagram::bind(&path)?,
            path,
        })
    }

    /// The value for `NOTIFY_SOCKET`.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Waits until the other end says that it is ready.
    pub async fn ready(&self) -> std::io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            let length = self.socket.recv(&mut buffer).await?;
            if buffer[..length]
                .split(|b| *b == b'\n')
                .any(|line| line == b"READY=1")
            {
                return Ok(());
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_crosses_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(dir.path().join("notify")).unwrap();
        notify(None, "READY=1").unwrap();
        notify(Some(listener.path().as_os_str()), "STATUS=binding").unwrap();
        notify(Some(listener.path().as_os_str()), "STATUS=up\nREADY=1").unwrap();
        listener.ready().await.unwrap();
    }
}
