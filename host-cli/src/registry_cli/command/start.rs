//! `start`: the registry in the background, ready when the command returns.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::serve;
use super::status::probe;
use crate::out;
use crate::registry_cli::config::{Config, Origin};
use crate::registry_cli::instance::Instance;
use crate::registry_cli::notify::Listener;

/// A server that is not up by then has something to say in its log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a failed server's log is shown, in bytes.
const LOG_TAIL: usize = 4096;

/// Starts `serve` in a session of its own and waits for its word that it listens.
pub async fn run(config: &Config) -> Result<()> {
    serve::refuse_secure(config)?;
    let (_, port) = serve::addresses(config)?;
    let storage = config.storage();
    let instance = Instance::new(&storage, port);
    if let Some(pid) = instance.running()? {
        out!("Registry already running (PID: {pid})");
        return Ok(());
    }
    std::fs::create_dir_all(&storage)
        .with_context(|| format!("cannot create the storage directory {}", storage.display()))?;
    instance.prepare()?;
    let log_path = instance.log_file();
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o640)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&log_path)
        .with_context(|| format!("cannot write the log {}", log_path.display()))?;
    // The socket's name is limited to 108 bytes, which a storage path may exceed.
    let notify_dir = tempfile::Builder::new()
        .prefix("container-registry.")
        .tempdir()?;
    let listener = Listener::bind(notify_dir.path().join("notify"))?;

    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("serve");
    for key in ["url", "namespace", "storage", "listen"] {
        if let Some((value, Origin::Option(option))) = config.get(key) {
            command.arg(option).arg(value);
        }
    }
    command
        .env("NOTIFY_SOCKET", listener.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let mut child = command.spawn().context("cannot start the server process")?;
    let pid = child.id().unwrap_or_default();
    tokio::select! {
        ready = listener.ready() => ready?,
        ended = child.wait() => {
            let status = ended?;
            let text = std::fs::read(&log_path).unwrap_or_default();
            let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]);
            let tail = tail.trim_end();
            let words = tail.strip_prefix("error: ").unwrap_or(tail);
            if words.is_empty() {
                bail!("the server ended at once ({status}); its log {} is empty", log_path.display());
            }
            bail!("{words}");
        }
        () = tokio::time::sleep(PATIENCE) => {
            let _ = child.start_kill();
            bail!("the server was not ready after {PATIENCE:?}; see {}", log_path.display());
        }
    }
    probe(config).await?;
    out!("Registry started (PID: {pid})");
    eprintln!("URL: http://{}", config.registry()?.host());
    eprintln!("Storage: {}", storage.display());
    eprintln!("Log: {}", log_path.display());
    Ok(())
}
