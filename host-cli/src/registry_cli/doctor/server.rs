//! The registry itself: its storage, its port, its answer, and the machine below it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use vdkr_core::reference::Selector;
use vdkr_transfer::TransferError;

use super::{Ask, Check, Verdict};
use crate::progress::bytes;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::words;
use crate::registry_cli::instance::{Instance, InstanceError};
use crate::registry_cli::listen;
use crate::registry_cli::remote::Remote;

/// Free space below which pushes are about to fail, in bytes.
const SCARCE: u64 = 256 * 1024 * 1024;
/// Free space below which a build's images may not fit, in bytes.
const LITTLE: u64 = 4 * 1024 * 1024 * 1024;
/// How long the registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name that clients ask for where there is no image: what is unknown shows who is let in.
const NO_IMAGE: &str = "doctor:latest";
/// How long another program on the port may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// The findings, and what others can be made to ask the registry for.
pub(super) async fn checks(config: &Config) -> Result<(Vec<Check>, Ask)> {
    let (addresses, port) = listen::addresses(config)?;
    let local = config.registry()?.host().is_loopback();
    let running = Instance::new(&config.storage(), port).running();
    let mut checks = vec![storage(&config.storage(), local)];
    checks.extend(space(&config.storage()));
    checks.push(clock());
    match &running {
        Ok(Some(pid)) => {
            checks.push(Check::ok(
                "server",
                format!("runs on port {port} (pid {pid})"),
            ));
            checks.push(listening(&addresses));
        }
        Ok(None) if local => {
            let check = not_running(port).await;
            let silent = check.verdict == Verdict::Fail;
            checks.push(check);
            if silent {
                return Ok((checks, Ask::Nobody));
            }
        }
        Ok(None) => {}
        Err(error) => {
            let forbidden = matches!(error, InstanceError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied);
            let advice = if forbidden {
                "the storage is another user's: ask as that user, or choose another storage"
            } else {
                "remove what stands there, or choose another storage"
            };
            checks.push(Check::fail("server", error.to_string(), advice));
        }
    }
    let (check, ask) = answer(config, matches!(running, Ok(Some(_)))).await?;
    checks.push(check);
    Ok((checks, ask))
}

fn storage(path: &Path, needed: bool) -> Check {
    let shown = path.display();
    let Some(existing) = path.ancestors().find(|dir| dir.exists()) else {
        return Check::fail(
            "storage",
            format!("{shown} cannot be"),
            "choose another with --storage",
        );
    };
    let writable = access(existing, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    match (existing == path, writable && existing.is_dir()) {
        (true, true) => Check::ok("storage", format!("{shown} is writable")),
        (false, true) => Check::ok("storage", format!("{shown} will be created")),
        _ if !needed => Check::ok(
            "storage",
            format!("{shown} is not used: the registry is elsewhere"),
        ),
        _ => Check::fail(
            "storage",
            format!(
                "{} is not a directory that this user can write to",
                existing.display()
            ),
            "choose another with CONTAINER_REGISTRY_STORAGE, or change its owner",
        ),
    }
}

fn space(path: &Path) -> Option<Check> {
    let existing = path.ancestors().find(|dir| dir.exists())?;
    let stat = statvfs(existing).ok()?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let found = format!("{} free at {}", bytes(free), existing.display());
    let advice = "free some: container-registry gc, or move CONTAINER_REGISTRY_STORAGE";
    Some(if free < SCARCE {
        Check::fail("disk", found, advice)
    } else if free < LITTLE {
        Check::warn("disk", found, advice)
    } else {
        Check::ok("disk", found)
    })
}

/// A clock before this program was built is wrong, and certificates will not be valid by it.
fn clock() -> Check {
    let built = std::env::current_exe()
        .and_then(std::fs::metadata)
        .and_then(|meta| meta.modified());
    match built {
        Ok(built) if SystemTime::now() < built => Check::fail(
            "clock",
            "this machine's clock is behind the time of this program's file",
            "set the clock; certificates and timestamp tags depend on it",
        ),
        _ => Check::ok("clock", "is plausible"),
    }
}

fn listening(addresses: &[SocketAddr]) -> Check {
    let open: Vec<_> = addresses.iter().filter(|a| !a.ip().is_loopback()).collect();
    if open.is_empty() {
        return Check::ok(
            "listening",
            "on this machine's loopback alone; guests reach it there",
        );
    }
    let shown: Vec<_> = open.iter().map(ToString::to_string).collect();
    Check::warn(
        "listening",
        format!(
            "on {}: others in the network can reach it",
            shown.join(", ")
        ),
        "without secure mode everybody there can push; leave CONTAINER_REGISTRY_LISTEN unset unless boards must pull",
    )
}

async fn not_running(port: u16) -> Check {
    let taken = tokio::time::timeout(
        CONNECT,
        tokio::net::TcpStream::connect((IpAddr::from([127, 0, 0, 1]), port)),
    );
    if matches!(taken.await, Ok(Ok(_))) {
        return Check::warn(
            "server",
            format!("no registry of this storage runs, but something answers on port {port}"),
            "another storage's registry, or another program; choose a port with CONTAINER_REGISTRY_URL=localhost:PORT",
        );
    }
    Check::fail(
        "server",
        format!("does not run; port {port} is free"),
        "start it with: container-registry start",
    )
}

/// One request as every command sends it, and what other clients are to ask for.
async fn answer(config: &Config, running: bool) -> Result<(Check, Ask)> {
    let registry = config.registry()?;
    let host = registry.host().clone();
    let none = match registry.namespace() {
        Some(namespace) => format!("{host}/{namespace}/{NO_IMAGE}"),
        None => format!("{host}/{NO_IMAGE}"),
    };
    let credentials = match auth::configured(config) {
        Ok(credentials) => credentials,
        Err(error) => {
            let check = Check::fail(
                "credentials",
                words(&error),
                "container-registry auth explain shows where they are looked for",
            );
            return Ok((check, Ask::Unknown(none)));
        }
    };
    let remote = Remote::new(config, credentials)?;
    let found = match remote.ping(PATIENCE).await {
        Ok(()) => {
            let found = format!("answers at {host} and lets us in");
            let image = tokio::time::timeout(PATIENCE, some_image(&remote)).await;
            let ask = match image.ok().flatten() {
                Some(image) => Ask::Image(format!("{host}/{image}")),
                None => Ask::Unknown(none),
            };
            return Ok((Check::ok("registry", found), ask));
        }
        Err(error) => error,
    };
    let advice = match &found {
        TransferError::Denied { .. } | TransferError::Credentials { .. } => format!(
            "log in with: container-registry login {host}; see container-registry auth explain"
        ),
        TransferError::Tls { .. } => format!(
            "its certificate is not trusted here, or it speaks plain HTTP; the latter needs --insecure {host}"
        ),
        TransferError::Unreachable { .. } if running => {
            "the server runs but does not answer; see its log, or restart it".to_owned()
        }
        TransferError::Unreachable { .. } if host.is_loopback() => {
            "start it with: container-registry start".to_owned()
        }
        TransferError::Unreachable { .. } => "check its name, the port and the network".to_owned(),
        _ => format!("what answers at {host} is no working registry"),
    };
    let ask = match found {
        TransferError::Unreachable { .. } => Ask::Nobody,
        _ => Ask::Unknown(none),
    };
    Ok((Check::fail("registry", found.to_string(), advice), ask))
}

/// An image that the registry has, as `REPOSITORY:TAG`.
async fn some_image(remote: &Remote) -> Option<String> {
    for name in remote.client.catalog(remote.host()).await.ok()? {
        let Ok(repository) = remote.repository(&name) else {
            continue;
        };
        for tag in remote.client.tags(&repository).await.unwrap_or_default() {
            let head = remote
                .client
                .head_manifest(&repository, Selector::Tag(&tag));
            // What is damaged proves nothing about a client.
            if matches!(head.await, Ok(Some(_))) {
                return Some(format!("{name}:{tag}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_that_cannot_be_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(storage(dir.path(), true).verdict, Verdict::Ok);
        assert_eq!(storage(&dir.path().join("a/b"), true).verdict, Verdict::Ok);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(storage(&file, true).verdict, Verdict::Fail);
        assert_eq!(storage(&file.join("below"), true).verdict, Verdict::Fail);
        assert_eq!(storage(&file, false).verdict, Verdict::Ok);
        assert!(
            space(&dir.path().join("a/b"))
                .unwrap()
                .found
                .contains("free")
        );
    }

    #[test]
    fn open_ports_are_told() {
        let address = |text: &str| vec![text.parse().unwrap()];
        assert_eq!(listening(&address("127.0.0.1:5000")).verdict, Verdict::Ok);
        assert_eq!(listening(&address("0.0.0.0:5000")).verdict, Verdict::Warn);
    }

    #[tokio::test]
    async fn a_port_of_another_program_is_told_from_a_free_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(not_running(port).await.verdict, Verdict::Warn);
        drop(listener);
        assert_eq!(not_running(port).await.verdict, Verdict::Fail);
    }
}
