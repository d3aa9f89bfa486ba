//! `stop`: ends the server and waits until it is gone.

use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};

use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::instance::Instance;
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
    kill(pid, Signal::SIGTERM)?;
    if !gone(&instance, GRACE).await? {
        eprintln!("the server did not stop within {GRACE:?}; killing it (pid {pid})");
        kill(pid, Signal::SIGKILL)?;
        if !gone(&instance, KILL_GRACE).await? {
            bail!("process {pid} does not end; see what it waits for with: cat /proc/{pid}/wchan");
        }
    }
    out!("Registry stopped");
    Ok(())
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
