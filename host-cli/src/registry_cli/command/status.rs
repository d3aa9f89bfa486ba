//! `status`: whether the registry runs, where, and whether it is healthy.

use anyhow::Result;
use serde_json::json;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::words;
use crate::registry_cli::instance::Instance;
use crate::registry_cli::listen;
use crate::registry_cli::remote::Remote;
use crate::registry_cli::secure::{self, Mode};

/// Prints the state of the server of this storage and port. Not running is status 3, running
/// without answering properly is status 1.
pub async fn run(config: &Config, as_json: bool) -> Result<Exit> {
    let (_, port) = listen::addresses(config)?;
    let live = Instance::new(&config.storage(), port).live()?;
    let pid = live.as_ref().map(|live| live.pid);
    // What runs counts, whatever the configuration wants.
    let mode = match live.and_then(|live| Mode::from_word(live.mode()?)) {
        Some(mode) => mode,
        None => Mode::in_use(config)?,
    };
    let url = secure::url(&config.registry()?, mode);
    let answer = match pid {
        Some(_) => Remote::probe(config).await,
        None => Ok(()),
    };
    if as_json {
        out!(
            "{}",
            json!({
                "running": pid.is_some(),
                "pid": pid.map(nix::unistd::Pid::as_raw),
                "url": url,
                "healthy": pid.is_some() && answer.is_ok(),
                "mode": mode.word(),
                "storage": config.storage(),
            })
        );
    } else if let Some(pid) = pid {
        out!("Registry running (PID: {pid})");
        out!("URL: {url}");
        match &answer {
            Ok(()) => out!("Status: healthy"),
            Err(error) => out!("Status: not healthy: {}", words(error)),
        }
        match mode.is_secure() {
            true => out!("Mode: secure ({})", mode.label()),
            false => out!("Mode: plain HTTP"),
        }
        out!("Storage: {}", config.storage().display());
    } else {
        out!("Registry not running");
    }
    Ok(match (pid, answer) {
        (None, _) => Exit::Unreachable,
        (Some(_), Ok(())) => Exit::Done,
        (Some(_), Err(_)) => Exit::Failed,
    })
}
