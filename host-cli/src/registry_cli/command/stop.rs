//! `stop`: ends the server and waits until it is gone.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::instance::{Instance, is_ours};
use crate::registry_cli::listen;

/// Time for requests under way, before the server is killed.
const GRACE: Duration = Duration::from_secs(20);
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Stops the server of this storage and port; a server that does not run is success.
pub async fn run(config: &Config) -> Result<()> {
    let (_, port) = listen::addresses(config)?;
    let instance = Instance::new(&config.storage(), port);
    let Some(pid) = instance.running()? else {
        out!("Registry not running");
        return Ok(());
    };
    // From here on it is this process and no other, whoever gets its id later.
    let process = Process::of(pid)?;
    // One that is ending already keeps the lock for longer than its name.
    if !is_ours(pid) && !gone(&instance, KILL_GRACE).await? {
        bail!(
            "process {pid} keeps {} locked and is no container-registry; nothing was done to it. If it is \
             the registry all the same, end it with: kill {pid}; if not, see what it wants there, and let \
             nobody else read that file (chmod 600)",
            instance.pid_file().display()
        );
    }
    if instance.running()?.is_some() {
        process.signal(Signal::SIGTERM)?;
    }
    if !gone(&instance, GRACE).await? {
        eprintln!("the server did not stop within {GRACE:?}; killing it (pid {pid})");
        process.signal(Signal::SIGKILL)?;
        if !gone(&instance, KILL_GRACE).await? {
            bail!("process {pid} does not end; see what it waits for with: cat /proc/{pid}/wchan");
        }
    }
    out!("Registry stopped");
    Ok(())
}

/// A process that signals go to.
struct Process {
    pid: Pid,
    /// None where the kernel is too old for that, or the process is gone.
    handle: Option<OwnedFd>,
}

impl Process {
    fn of(pid: Pid) -> Result<Self> {
        let raw = rustix::process::Pid::from_raw(pid.as_raw());
        let handle = match raw.map(|raw| pidfd_open(raw, PidfdFlags::empty())) {
            Some(Ok(handle)) => Some(handle),
            None | Some(Err(Errno::NOSYS | Errno::PERM | Errno::SRCH | Errno::INVAL)) => None,
            Some(Err(error)) => return Err(error.into()),
        };
        Ok(Self { pid, handle })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(handle) = &self.handle else {
            return Ok(kill(self.pid, signal)?);
        };
        let wanted = match signal {
            Signal::SIGKILL => rustix::process::Signal::KILL,
            _ => rustix::process::Signal::TERM,
        };
        match pidfd_send_signal(handle, wanted) {
            // It has ended by itself; whether it has gone is looked at next.
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

async fn gone(instance: &Instance, patience: Duration) -> Result<bool> {
    let deadline = tokio::time::Instant::now() + patience;
    while instance.running()?.is_some() {
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}
