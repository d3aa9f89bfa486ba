//! `serve`: the registry in the foreground.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, FromRawFd as _};
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vdkr_registry::{Registry, ServerConfig};

use crate::registry_cli::config::Config;
use crate::registry_cli::error::words;
use crate::registry_cli::instance::{Announced, Instance};
use crate::registry_cli::listen;
use crate::registry_cli::notify::notify;
use crate::registry_cli::secure::{self, Mode};

/// How often certificates and addresses are looked at.
const UPKEEP: Duration = Duration::from_mins(1);

/// Serves until SIGTERM or SIGINT, then lets requests under way finish.
pub async fn run(config: &Config) -> Result<()> {
    let mode = secure::checked(config)?;
    let (addresses, port) = listen::addresses(config)?;
    secure::warn_of_downgrade(config, mode);
    let storage = config.storage();
    vdkr_registry::fs::make_root(&storage)
        .with_context(|| format!("cannot create the storage directory {}", storage.display()))?;
    let registry = open(config, mode).await?;
    let mut lock = match Instance::new(&storage, port).lock() {
        // Nothing changes there that another server could get in the way of.
        Err(error) if error.is_read_only() => {
            eprintln!("warning: {error}; status and stop will not know of this server");
            None
        }
        locked => Some(locked?),
    };
    let listeners = match activated()? {
        Some(listeners) => listeners,
        None => {
            // It may be meant for a proxy, whose clients use another URL.
            if let Err(error) = listen::check_port(config, port) {
                eprintln!("warning: {error}");
            }
            bind(&addresses).await?
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // On a terminal, hanging up means the end; elsewhere, that files have changed.
    let hangup = if std::io::stdin().is_terminal() {
        None
    } else {
        Some(signal(SignalKind::hangup())?)
    };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut servers = tokio::task::JoinSet::new();
    let mut announced = Announced {
        mode: mode.word().to_owned(),
        settings: secure::settings(config, mode),
        ..Announced::default()
    };
    for listener in listeners {
        let scheme = if mode.is_secure() { "https" } else { "http" };
        let address = listener.local_addr()?;
        eprintln!("listening on {scheme}://{address}");
        announced.addresses.push(address);
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
    if let Some(lock) = &mut lock {
        lock.announce(&announced)?;
    }
    let upkeep = tokio::spawn(upkeep(config.clone(), registry, mode, hangup));
    let supervisor = std::env::var_os("NOTIFY_SOCKET");
    notify(supervisor.as_deref(), "READY=1")
        .context("cannot tell the supervisor (NOTIFY_SOCKET)")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = servers.join_next() => ended??,
    }
    upkeep.abort();
    eprintln!("stopping; requests under way may finish");
    let _ = notify(supervisor.as_deref(), "STOPPING=1");
    stop.send_replace(true);
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Opens the storage, with the keys, certificates and users of secure mode.
async fn open(config: &Config, mode: Mode) -> Result<Registry> {
    let mut server = ServerConfig::new(config.storage());
    let config = config.clone();
    // Hashing a password takes its time.
    let opened = tokio::task::spawn_blocking(move || {
        secure::prepare(&config, mode, &mut server)?;
        anyhow::Ok(Registry::open(server)?)
    });
    opened.await?
}

/// Issues the server's certificate again before it ends, and when this machine gets a new address;
/// at SIGHUP at once. The server sees new files by itself, at SIGHUP at once as well.
async fn upkeep(config: Config, registry: Registry, mode: Mode, mut hangup: Option<Signal>) {
    if !mode.is_secure() {
        return;
    }
    let mut told = None;
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = hung_up => {}
            () = tokio::time::sleep(UPKEEP) => {}
        }
        let (config, registry) = (config.clone(), registry.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let kept = secure::renew_if_due(&config);
            registry.refresh();
            kept
        });
        // A trouble that lasts is told once.
        let trouble = match kept.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(words(&error)),
            Err(error) => Some(error.to_string()),
        };
        if trouble != told
            && let Some(trouble) = &trouble
        {
            eprintln!("warning: the certificates cannot be kept up to date: {trouble}");
        }
        told = trouble;
    }
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
        let refuse = || {
            format!(
                "LISTEN_FDS promises {count} listening sockets, and descriptor {fd} is none; \
                 is the socket unit one with ListenStream=?"
            )
        };
        let kind = std::fs::metadata(format!("/proc/self/fd/{fd}")).map(|meta| meta.file_type());
        if !kind.is_ok_and(|kind| kind.is_socket()) {
            bail!(refuse());
        }
        // SAFETY: it was seen to be open, and nothing closes it while it is asked what it is.
        #[allow(
            unsafe_code,
            reason = "descriptors that systemd hands over come as bare numbers"
        )]
        let lent = unsafe { BorrowedFd::borrow_raw(fd) };
        // A socket that was promised and not handed over may be one of our own by now.
        if !getsockopt(&lent, AcceptConn).unwrap_or(false) {
            bail!(refuse());
        }
        fcntl_setfd(lent, FdFlags::CLOEXEC)?;
        // SAFETY: with LISTEN_PID naming this process, descriptors 3 and up are ours alone
        // (sd_listen_fds(3)), and nothing else in this program listens yet.
        #[allow(
            unsafe_code,
            reason = "descriptors that systemd hands over come as bare numbers"
        )]
        let listener = unsafe { std::net::TcpListener::from_raw_fd(fd) };
        listener
            .local_addr()
            .with_context(|| format!("descriptor {fd} (LISTEN_FDS) does not listen for TCP"))?;
        listener.set_nonblocking(true)?;
        listeners.push(TcpListener::from_std(listener)?);
    }
    Ok((!listeners.is_empty()).then_some(listeners))
}
