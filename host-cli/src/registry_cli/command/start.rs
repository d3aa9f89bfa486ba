//! `start`: the registry in the background, ready when the command returns.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::inherited;
use crate::out;
use crate::registry_cli::config::{Config, Origin};
use crate::registry_cli::error::is_silent;
use crate::registry_cli::instance::Instance;
use crate::registry_cli::listen;
use crate::registry_cli::notify::Listener;
use crate::registry_cli::remote::Remote;
use crate::registry_cli::secure::{self, Mode};

/// A server that is not up by then has something to say in its log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that runs already may be silent.
const SETTLING: Duration = Duration::from_secs(5);
/// How much of a failed server's log is shown, in bytes.
const LOG_TAIL: usize = 4096;
/// Where a new server's warnings are looked for, in bytes.
const LOG_HEAD: usize = 64 * 1024;

/// Starts `serve` in a session of its own and waits for its word that it listens.
pub async fn run(config: &Config) -> Result<()> {
    let mode = secure::checked(config)?;
    let (addresses, port) = listen::addresses(config)?;
    let storage = config.storage();
    let instance = Instance::new(&storage, port);
    if runs_already(config, mode, &instance).await? {
        return Ok(());
    }
    // A server that its own URL does not reach would be of no use, and is not begun.
    listen::check_url(config, &addresses, port).await?;
    vdkr_registry::fs::make_root(&storage)
        .with_context(|| format!("cannot create the storage directory {}", storage.display()))?;
    let prepared = match instance.prepare() {
        Ok(()) => instance.turn(PATIENCE + SETTLING).await,
        Err(error) => Err(error),
    };
    let _turn = match prepared {
        // Nothing can be noted there, and several servers do no harm.
        Err(error) if error.is_read_only() => None,
        turn => match turn? {
            Some(turn) => Some(turn),
            None => bail!(
                "another start of this registry has been under way for a long time; see {}",
                instance.log_file().display()
            ),
        },
    };
    // Another start may have done it meanwhile; a `serve` may come between at any time.
    let pid = loop {
        if runs_already(config, mode, &instance).await? {
            return Ok(());
        }
        if let Some(pid) = launch(config, &instance).await? {
            break pid;
        }
    };
    out!("Registry started (PID: {pid})");
    let registry = config.registry()?;
    eprintln!("URL: {}", secure::url(&registry, mode));
    eprintln!("Storage: {}", storage.display());
    eprintln!("Log: {}", instance.log_file().display());
    if mode.is_secure() {
        introduce(config, mode, port)?;
    }
    Ok(())
}

/// Whether a server runs and answers, which is told. One that is silent is an error, as is one in another
/// mode than the configuration asks for.
async fn runs_already(config: &Config, mode: Mode, instance: &Instance) -> Result<bool> {
    let settled = Instant::now() + SETTLING;
    while let Some(live) = instance.live()? {
        if let Some(other) = live.mode().filter(|word| *word != mode.word())
            && (config.is_given("secure") || config.is_given("auth"))
        {
            bail!(
                "a registry already runs here (PID: {}) in the mode {other}, not {}; stop it first with: container-registry stop",
                live.pid,
                mode.word()
            );
        }
        match Remote::probe(config).await {
            // Another one's start is under way, or it was killed and is not gone yet.
            Err(error) if is_silent(&error) => {
                if Instant::now() > settled {
                    return Err(error.context(format!(
                        "a registry runs here (PID: {}) and does not answer; stop it first with: container-registry stop",
                        live.pid
                    )));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ => {
                out!("Registry already running (PID: {})", live.pid);
                let unused = secure::unused_settings(config, &live)?;
                if !unused.is_empty() {
                    eprintln!(
                        "warning: it was started with another {}; to apply what is set now: container-registry stop, then start",
                        unused.join(", ")
                    );
                }
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Starts the server's process and gives its id once it answers. `None`: it found another one running.
async fn launch(config: &Config, instance: &Instance) -> Result<Option<u32>> {
    let log_path = instance.log_file();
    let open = |path: &Path| {
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(instance.file_mode() & 0o640)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
    };
    let log = match open(&log_path) {
        // The server can do without; of a full disk it is what frees room there.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            open(Path::new("/dev/null"))
        }
        opened => opened,
    };
    let log = log.with_context(|| format!("cannot write the log {}", log_path.display()))?;
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
    inherited::withhold();
    let mut child = command.spawn().context("cannot start the server process")?;
    let pid = child.id().unwrap_or_default();
    tokio::select! {
        ready = listener.ready() => ready?,
        ended = child.wait() => {
            let status = ended?;
            if instance.live()?.is_some() {
                return Ok(None);
            }
            let text = std::fs::read(&log_path).unwrap_or_default();
            let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]);
            let tail = tail.trim_end();
            // Warnings may stand before it.
            let words = match tail.find("\nerror: ") {
                Some(at) => &tail[at + "\nerror: ".len()..],
                None => tail.strip_prefix("error: ").unwrap_or(tail),
            };
            if words.is_empty() {
                bail!("the server ended at once ({status}); its log {} is empty", log_path.display());
            }
            bail!("{words}");
        }
        () = tokio::time::sleep(PATIENCE) => {
            end(&mut child).await;
            bail!("the server was not ready after {PATIENCE:?}; see {}", log_path.display());
        }
    }
    if let Err(error) = Remote::probe(config).await {
        end(&mut child).await;
        return Err(error
            .context("the server came up, but does not answer at its URL; it was stopped again"));
    }
    // Nobody else sees them.
    let said = std::fs::read(&log_path).unwrap_or_default();
    for warning in String::from_utf8_lossy(&said[..said.len().min(LOG_HEAD)]).lines() {
        if warning.starts_with("warning: ") {
            eprintln!("{warning}");
        }
    }
    Ok(Some(pid))
}

/// Nothing that this command started stays when it fails.
async fn end(child: &mut tokio::process::Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(SETTLING, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// How clients come to trust a registry in secure mode.
fn introduce(config: &Config, mode: Mode, port: u16) -> Result<()> {
    let pki = secure::pki(config);
    let ca = pki.ca_certificate();
    eprintln!("Mode: secure ({})", mode.label());
    eprintln!("CA: {}", ca.display());
    if mode == Mode::TlsAuth {
        eprintln!("User: {}", secure::username(config)?);
        eprintln!("Password: in {}", secure::password_file(config).display());
    }
    eprintln!(
        "The commands of this program use them by themselves. Others trust the registry with:"
    );
    eprintln!("  vdkr vconfig ca-cert {}", ca.display());
    if mode == Mode::TlsAuth {
        eprintln!(
            "  vdkr login -u {} --password-stdin {} < {}",
            secure::username(config)?,
            config.registry()?.host(),
            secure::password_file(config).display()
        );
    }
    eprintln!(
        "  skopeo, podman: --cert-dir {}",
        pki.client_directory().display()
    );
    eprintln!(
        "  a target: the CA as /etc/docker/certs.d/10.0.2.2:{port}/ca.crt (docker) or \
         /etc/containers/certs.d/10.0.2.2:{port}/ca.crt (podman)"
    );
    Ok(())
}
