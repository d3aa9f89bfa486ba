//! The emulator as a child process: it inherits its sockets, and never outlives this program.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{net::UnixStream as StdUnixStream, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{
    console::{Console, last_lines},
    disks::HotDisks,
    qemu::{Machine, Sockets, StateDisk},
    qmp::Qmp,
};

/// Bytes of the emulator's own complaints that are kept.
const MAX_COMPLAINTS: usize = 16 * 1024;

/// A running emulator.
///
/// It has a process group of its own, so that a terminal's Ctrl-C reaches the container through
/// the agent and not the machine, and it is killed when this value is dropped or this process dies
/// in whatever way.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    control: Qmp,
    disks: Option<HotDisks>,
    /// Path of the disk with the agent's state.
    state_disk: Option<String>,
    console: Console,
    complaints: Arc<Mutex<Vec<u8>>>,
    listening: Option<JoinHandle<()>>,
}

/// The emulator could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}: {source}", program.display())]
pub struct SpawnError {
    program: PathBuf,
    source: io::Error,
}

impl Qemu {
    /// Starts the emulator, and gives the host's end of the agent's channel.
    ///
    /// `keep_open` is inherited too: a lock that has to hold for as long as either process lives,
    /// and files that the machine names by their descriptors.
    ///
    /// Must be called on a thread that lives as long as the machine shall: the kernel takes the
    /// end of that thread for the end of the parent.
    pub fn spawn(
        program: &Path,
        machine: &Machine,
        console_log: Option<&Path>,
        keep_open: Vec<OwnedFd>,
    ) -> Result<(Self, UnixStream), SpawnError> {
        spawn(program, machine, console_log, keep_open).map_err(|source| SpawnError {
            program: program.to_owned(),
            source,
        })
    }

    /// The guest's console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The emulator's control connection.
    pub fn control(&mut self) -> &mut Qmp {
        &mut self.control
    }

    /// The control connection, and the disks that were attached by it; none on a machine that
    /// takes no disks while it runs.
    pub(super) fn disks(&mut self) -> (&mut Qmp, Option<&mut HotDisks>) {
        (&mut self.control, self.disks.as_mut())
    }

    /// Whether it takes disks while it runs.
    pub fn takes_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// Path of the disk with the agent's state.
    pub(super) fn state_disk(&self) -> Option<&str> {
        self.state_disk.as_deref()
    }

    /// The emulator's process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What the emulator itself had to say.
    pub fn complaints(&self) -> String {
        last_lines(
            &self
                .complaints
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Waits until everything that an emulator that has ended said is known; not for ever, since a
    /// child of its own may hold a pipe open.
    pub async fn heard_out(&mut self) {
        let listening = self.listening.take();
        let heard = async {
            if let Some(listening) = listening {
                let _ = listening.await;
            }
            self.console.closed().await;
        };
        let _ = timeout(Duration::from_secs(2), heard).await;
    }

    /// Waits until the emulator has ended.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Gives a guest that is going down `patience` to do so, then ends the emulator, at first in
    /// a way that lets it finish its writes. `true` when the guest went by itself.
    pub async fn finish(&mut self, patience: Duration) -> bool {
        if timeout(patience, self.child.wait()).await.is_ok() {
            return true;
        }
        let asked = timeout(Duration::from_secs(2), self.control.execute("quit")).await;
        if matches!(asked, Ok(Ok(_)))
            && timeout(Duration::from_secs(5), self.child.wait())
                .await
                .is_ok()
        {
            return false;
        }
        self.kill().await;
        false
    }

    /// Ends the emulator at once.
    pub async fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill().await;
    }
}

/// Says how a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

fn spawn(
    program: &Path,
    machine: &Machine,
    console_log: Option<&Path>,
    keep_open: Vec<OwnedFd>,
) -> io::Result<(Qemu, UnixStream)> {
    let (agent, agent_end) = socket_pair()?;
    let (console, console_end) = socket_pair()?;
    let (control, control_end) = socket_pair()?;
    let sockets = Sockets {
        agent: agent_end.as_raw_fd(),
        console: console_end.as_raw_fd(),
        control: control_end.as_raw_fd(),
    };
    let mut command = Command::new(program);
    command
        .args(machine.arguments(sockets))
        // The environment of a process can be read for as long as it runs.
        .env_remove("VDKR_REGISTRY_PASSWORD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut inherited = vec![agent_end, console_end, control_end];
    inherited.extend(keep_open);
    bind_to_parent(&mut command, inherited);
    let mut child = command.spawn()?;
    // The command holds the emulator's ends; they must close here to be seen closing there.
    drop(command);

    let complaints = Arc::new(Mutex::new(Vec::new()));
    let listening = child
        .stderr
        .take()
        .map(|stderr| tokio::spawn(collect(stderr, Arc::clone(&complaints))));
    let console = Console::follow(console, console_log)?;
    Ok((
        Qemu {
            child,
            control: Qmp::new(control),
            disks: machine.hot_disks.then(HotDisks::default),
            state_disk: match &machine.state_disk {
                StateDisk::File(path) => Some(path.clone()),
                StateDisk::Absent | StateDisk::Blank(_) => None,
            },
            console,
            complaints,
            listening,
        },
        agent,
    ))
}

fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// Makes the child keep `inherited` open and die with this process.
#[allow(
    unsafe_code,
    reason = "only a hook between fork and exec can ask for the parent's death signal"
)]
fn bind_to_parent(command: &mut Command, inherited: Vec<OwnedFd>) {
    let parent = Pid::this();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the call above.
        if getppid() != parent {
            return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        for fd in &inherited {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: the hook only makes the system calls prctl, getppid and fcntl, which are
    // async-signal-safe; it neither allocates nor takes locks, and its errors hold plain numbers.
    unsafe { command.pre_exec(prepare) };
}

async fn collect(mut stderr: tokio::process::ChildStderr, complaints: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        let mut kept = complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_COMPLAINTS.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
}
