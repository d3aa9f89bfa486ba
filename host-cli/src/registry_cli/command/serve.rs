//! `serve`: the registry in the foreground.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::FromRawFd as _;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use vdkr_registry::{Registry, ServerConfig};

use crate::exit::Exit;
use crate::registry_cli::config::{Config, DEFAULT_PORT};
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::instance::Instance;
use crate::registry_cli::notify::notify;

/// Serves until SIGTERM or SIGINT, then lets requests under way finish.
pub async fn run(config: &Config) -> Result<()> {
    refuse_secure(config)?;
    let (addresses, port) = addresses(config)?;
    let storage = config.storage();
    std::fs::create_dir_all(&storage)
        .with_context(|| format!("cannot create the storage directory {}", storage.display()))?;
    let registry = Registry::open(ServerConfig::new(&storage))?;
    let _lock = Instance::new(&storage, port).lock()?;
    let listeners = match activated()? {
        Some(listeners) => listeners,
        None => bind(&addresses).await?,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        eprintln!("listening on http://{}", listener.local_addr()?);
        let mut stopped = stopped.clone();
        servers.spawn(vdkr_registry::serve(
            listener,
            registry.clone(),
            async move {
                // An error means that the sender is gone, which is a stop as well.
                let _ = stopped.wait_for(|stop| *stop).await;
            },
        ));
    }
    let supervisor = std::env::var_os("NOTIFY_SOCKET");
    notify(supervisor.as_deref(), "READY=1")
        .context("cannot tell the supervisor (NOTIFY_SOCKET)")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = servers.join_next() => ended??,
    }
    eprintln!("stopping; requests under way may finish");
    let _ = notify(supervisor.as_deref(), "STOPPING=1");
    stop.send_replace(true);
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Secure mode must never come up as plain HTTP.
pub fn refuse_secure(config: &Config) -> Result<()> {
    if config.flag("secure")? {
        return Err(anyhow::anyhow!(
            "secure mode (CONTAINER_REGISTRY_SECURE=1) is not available in this version; unset it to serve plain HTTP on loopback"
        ))
        .exit(Exit::Usage);
    }
    Ok(())
}

/// Addresses to listen on, and the port. Loopback unless `listen` says otherwise.
pub fn addresses(config: &Config) -> Result<(Vec<SocketAddr>, u16)> {
    let registry = config.registry()?;
    let mut port = registry.host().port().unwrap_or(DEFAULT_PORT);
    let Some((listen, origin)) = config.get("listen") else {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        return Ok((vec![SocketAddr::from(([127, 0, 0, 1], port)), v6], port));
    };
    let mut addresses = Vec::new();
    for word in listen.split([' ', ',']).filter(|w| !w.is_empty()) {
        let address = if let Ok(address) = word.parse::<SocketAddr>() {
            port = address.port();
            address
        } else if let Ok(ip) = word.trim_matches(['[', ']']).parse::<IpAddr>() {
            SocketAddr::from((ip, port))
        } else {
            return Err(anyhow::anyhow!(
                "listen = {word:?} ({origin}): expected an address such as 0.0.0.0, [::] or 127.0.0.1:5000"
            ))
            .exit(Exit::Usage);
        };
        addresses.push(address);
    }
    Ok((addresses, port))
}

async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            // A machine without IPv6 has no ::1; loopback IPv4 alone will do there.
            Err(error)
                if !listeners.is_empty()
                    && address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST)
                    && error.kind() != std::io::ErrorKind::AddrInUse => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
                "port {} on {} is used by another program; stop it, or choose another port with CONTAINER_REGISTRY_URL=localhost:PORT",
                address.port(),
                address.ip()
            ),
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {address}")),
        }
    }
    Ok(listeners)
}

/// Sockets handed over by systemd (`LISTEN_PID`, `LISTEN_FDS`).
fn activated() -> Result<Option<Vec<TcpListener>>> {
    let var = |name| std::env::var(name).ok();
    if var("LISTEN_PID").and_then(|v| v.parse().ok()) != Some(std::process::id()) {
        return Ok(None);
    }
    let count: i32 = var("LISTEN_FDS").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut listeners = Vec::new();
    for fd in 3..3 + count.clamp(0, 16) {
        // SAFETY: with LISTEN_PID naming this process, descriptors 3 and up are ours alone
        // (sd_listen_fds(3)), and nothing else in this program takes them.
        #[allow(
            unsafe_code,
            reason = "descriptors that systemd hands over come as bare numbers"
        )]
        let listener = unsafe { std::net::TcpListener::from_raw_fd(fd) };
        listener.set_nonblocking(true)?;
        listeners.push(TcpListener::from_std(listener)?);
    }
    Ok((!listeners.is_empty()).then_some(listeners))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &'static [(&'static str, &'static str)]) -> Config {
        let env = |name: &str| {
            let base = ("CONTAINER_REGISTRY_STORAGE", "/nonexistent");
            pairs
                .iter()
                .chain([&base])
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Config::resolve(&vec![], &env).unwrap()
    }

    #[test]
    fn loopback_unless_told_otherwise() {
        let (addresses, port) = addresses(&config(&[])).unwrap();
        assert!(addresses.iter().all(|a| a.ip().is_loopback()));
        assert_eq!(port, 5000);
    }

    #[test]
    fn listen_takes_addresses_with_and_without_port() {
        let all = config(&[("CONTAINER_REGISTRY_LISTEN", "0.0.0.0")]);
        assert_eq!(
            addresses(&all).unwrap(),
            (vec!["0.0.0.0:5000".parse().unwrap()], 5000)
        );
        let port = config(&[("CONTAINER_REGISTRY_LISTEN", "127.0.0.1:7")]);
        assert_eq!(addresses(&port).unwrap().1, 7);
        assert!(addresses(&config(&[("CONTAINER_REGISTRY_LISTEN", "everywhere")])).is_err());
    }
}
