//! The monitor process: how it is started, what it tells, what it does.

use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{ExitStatus, Stdio},
    time::SystemTime,
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::setsid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, Command},
};

use super::{directory, idle_timeout, spell};
use crate::{
    exit::Exit,
    inherited,
    vdkr::{
        error::{Error, Result},
        machine_args::MemresStartArgs,
        session::LOCK_PATIENCE,
        settings::Settings,
        state::{self, Wait},
        words::{say, telling},
    },
    vm::{
        SOFTWARE,
        kept::{self, Description},
        monitor::{self, Ending},
        start::start,
        timing::Stages,
    },
};

/// File of a monitor's own words in a state directory.
const LOG: &str = "monitor.log";
/// Longest message of a starting monitor, in bytes.
const MAX_REPORT: u64 = 64 * 1024;

/// What a monitor tells the command that started it: one JSON line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Ready(Box<Description>),
    Failed { exit: u8, message: String },
}

/// The monitor gets what this command was told, resolved, and nothing that is secret.
pub(super) fn spawn_monitor(settings: &Settings, dir: &Path, idle: u64) -> Result<Child> {
    let log = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(dir.join(LOG))?;
    let mut command = Command::new(env::current_exe()?);
    command
        .args(["--arch", settings.arch.name()])
        .arg("--state-dir")
        .arg(dir);
    for key in ["accel", "machine", "memory", "cpu", "cpus"] {
        command.arg(format!("--{key}")).arg(settings.value(key).0);
    }
    if let Some((blob_dir, _)) = &settings.start.search.blob_dir {
        command.arg("--blob-dir").arg(blob_dir);
    }
    for (option, path) in [
        ("--kernel", &settings.global.kernel),
        ("--initrd", &settings.global.initrd),
    ] {
        if let Some(path) = path {
            command.arg(option).arg(std::path::absolute(path)?);
        }
    }
    if let Some(dir) = settings.config.path().parent() {
        command.arg("--config-dir").arg(std::path::absolute(dir)?);
    }
    command.args(["memres", "monitor", "--idle-timeout", &idle.to_string()]);
    command
        .env_remove("VDKR_STATELESS")
        .env_remove("VDKR_REGISTRY_PASSWORD");
    // Its own place, so that it holds no file system busy.
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    inherited::withhold();
    Ok(command.spawn()?)
}

pub(super) async fn hear(mut child: Child) -> Result<Description> {
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // It keeps its end open for as long as it lives, so the line is what is waited for.
        let mut lines = tokio::io::BufReader::new(stdout).take(MAX_REPORT);
        let line = tokio::io::AsyncBufReadExt::read_until(&mut lines, b'\n', &mut text);
        telling(
            "the machine is still starting; this computer may be very busy",
            line,
        )
        .await?;
    }
    match serde_json::from_slice(&text) {
        Ok(Report::Ready(description)) => Ok(*description),
        Ok(Report::Failed { exit, message }) => {
            let exit = match exit {
                2 => Exit::Usage,
                3 => Exit::Unreachable,
                _ => Exit::Failed,
            };
            Err(Error::new(exit, message))
        }
        Err(_) => {
            let status = child.wait().await.ok().as_ref().map(ExitStatus::to_string);
            let status = status.unwrap_or_else(|| "no status".to_owned());
            Err(Error::new(
                Exit::Failed,
                format!("the monitor ended without a word ({status})"),
            ))
        }
    }
}

/// The monitor's own life.
pub(super) async fn keep(settings: &Settings, args: &MemresStartArgs) -> u8 {
    // A session of its own: no signal of the terminal's reaches it.
    let _ = setsid();
    // What it makes is the user's alone, whatever the state directory's mode.
    umask(Mode::from_bits_truncate(0o077));
    let (report, status) = match try_keep(settings, args).await {
        Ok(()) => return 0,
        Err(error) => {
            say(&error.to_string());
            let exit = error.exit().code();
            (
                Report::Failed {
                    exit,
                    message: error.to_string(),
                },
                exit,
            )
        }
    };
    tell(&report);
    status
}

/// One line on standard output. Nobody may be listening any more.
fn tell(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

async fn try_keep(settings: &Settings, args: &MemresStartArgs) -> Result<()> {
    let dir = directory(settings)?;
    let idle_timeout = idle_timeout(settings, args)?;
    let lock = state::lock(dir, "vdkr memres", LOCK_PATIENCE, async |_| Wait::Go).await?;
    let mut stages = Stages::new();
    let file = lock.as_ref().map(state::Lock::file);
    let started = start(&settings.start, file, &mut stages, &mut say).await?;
    let listener = kept::bind(dir)?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let description = Description {
        pid: std::process::id(),
        qemu_pid: started.qemu.pid(),
        software: SOFTWARE.to_owned(),
        agent: started.hello.software.clone(),
        arch: settings.arch.to_string(),
        accel: started.accel.name().to_owned(),
        machine: started.board.name().to_owned(),
        cpu: started.cpu.clone(),
        cpus: settings.start.cpus,
        memory_mib: settings.start.memory_mib,
        kernel: started.kernel.clone(),
        initrd: started.initrd.clone(),
        hot_disks: Some(started.qemu.takes_disks()),
        started_unix_ms: now.as_millis().try_into().unwrap_or(u64::MAX),
        idle_timeout,
    };
    say(&format!("running; stages: {}", stages.json()));
    tell(&Report::Ready(Box::new(description.clone())));
    let ending = monitor::serve(started, listener, dir, &description).await?;
    match ending {
        Ending::Asked => say("stopped"),
        Ending::Idle => say(&format!(
            "stopped after {} without a command",
            spell(idle_timeout)
        )),
        Ending::MachineGone => say("the machine has ended by itself; see console.log"),
    }
    Ok(())
}
