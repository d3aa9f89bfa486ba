//! One attempt to get a machine: booted, booted to be saved, or begun where a saved one stands.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};

use super::{
    pipe::{PipeError, greet_machine},
    process::{Qemu, SpawnError, ending},
    qemu::{AGENT_CHANNEL, AGENT_DEVICE, Machine, MemoryFile},
    qmp::{Qmp, QmpError},
    snapshot::{Saved, Unfinished},
    start::{CONSOLE_LOG, StartError, StartOptions, Started},
    timing::Stages,
};

/// How long a machine may take to be written or read.
const SAVING: Duration = Duration::from_mins(1);
/// How often is looked whether it is written.
const PAUSE: Duration = Duration::from_millis(2);
/// What a machine still has to do after its agent has begun to listen; once here, or at each start.
const SETTLING: Duration = Duration::from_millis(500);
/// From the restored machine's first instruction to its agent's greeting, on a busy host.
const WAKING: Duration = Duration::from_secs(30);
/// Memory that is a file of its own is left out of the devices' state.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// What all attempts have in common.
pub(super) struct Boot<'a> {
    pub(super) program: &'a Path,
    pub(super) options: &'a StartOptions,
    /// Held by the emulator too.
    pub(super) lock: Option<&'a File>,
    /// Path of the disk with the agent's state.
    pub(super) state_disk: Option<&'a str>,
}

/// An attempt that came to nothing.
pub(super) enum Failed {
    Spawn(SpawnError),
    /// The emulator ended; its own words.
    Ended {
        how: String,
        words: String,
        console: String,
    },
    /// Nothing was heard of the guest, or not enough, within the time.
    Late {
        waited: Duration,
        silent: bool,
        console: String,
    },
    Pipe(PipeError),
    Qmp(QmpError),
}

impl Boot<'_> {
    /// Boots once. `first_output` limits the time to the guest's first word, `patience` the time
    /// to the agent's greeting.
    pub(super) async fn once(
        &self,
        machine: &Machine,
        first_output: Option<Duration>,
        patience: Duration,
        stages: &mut Stages,
    ) -> Result<Started, Failed> {
        let (qemu, agent) = self.spawn(machine, self.console_log().as_deref(), None)?;
        stages.mark("spawn");
        let spawned = Instant::now();
        let started = self
            .greet(qemu, agent, machine, first_output, patience)
            .await?;
        stages.boot(spawned.elapsed(), &started.hello);
        Ok(started)
    }

    /// Boots a machine to the point where its agent listens, writes it down, and ends it. Its state
    /// disk must be blank: what a kernel has read of a disk, it believes later.
    pub(super) async fn take(
        &self,
        machine: &Machine,
        unfinished: &Unfinished,
        patience: Duration,
    ) -> Result<(), Failed> {
        let log = unfinished.console_log();
        let (mut qemu, agent) =
            self.spawn(machine, Some(&log), Some((&unfinished.memory, true)))?;
        let begun = Instant::now();
        match timeout(patience, port_is_open(qemu.control())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failed::control(error, &mut qemu).await),
            Err(_) => return Err(Failed::late(begun, &mut qemu).await),
        }
        tokio::time::sleep(SETTLING).await;
        let saved = match timeout(SAVING, save(&mut qemu, unfinished)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Failed::control(error, &mut qemu).await),
            Err(_) => Err(Failed::late(begun, &mut qemu).await),
        };
        qemu.kill().await;
        // Until here the guest had a host.
        drop(agent);
        saved
    }

    /// Starts a machine that was saved, with another state disk.
    pub(super) async fn restore(
        &self,
        machine: &Machine,
        saved: &Saved,
        stages: &mut Stages,
    ) -> Result<Started, Failed> {
        let incoming = Machine {
            incoming: true,
            ..machine.clone()
        };
        let log = self.console_log();
        let memory = Some((&saved.memory, false));
        let (mut qemu, agent) = self.spawn(&incoming, log.as_deref(), memory)?;
        stages.mark("spawn");
        let begun = Instant::now();
        match timeout(SAVING, load(&mut qemu, saved)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failed::control(error, &mut qemu).await),
            Err(_) => return Err(Failed::late(begun, &mut qemu).await),
        }
        stages.mark("restore");
        let restored = Instant::now();
        let started = self.greet(qemu, agent, machine, None, WAKING).await?;
        stages.wake(restored.elapsed(), &started.hello);
        Ok(started)
    }

    fn console_log(&self) -> Option<PathBuf> {
        let dir = self.options.state_dir.as_ref();
        dir.map(|dir| dir.join(CONSOLE_LOG))
    }

    /// Starts the emulator, with a file for the machine's memory and whether it is written to.
    fn spawn(
        &self,
        machine: &Machine,
        console_log: Option<&Path>,
        memory: Option<(&File, bool)>,
    ) -> Result<(Qemu, UnixStream), Failed> {
        let mut inherited: Vec<OwnedFd> = Vec::new();
        inherited.extend(
            self.lock
                .and_then(|lock| lock.try_clone().ok())
                .map(Into::into),
        );
        let mut machine = machine.clone();
        if let Some((file, shared)) = memory {
            let file: OwnedFd = file
                .try_clone()
                .map_err(|error| Failed::Pipe(error.into()))?
                .into();
            let fd = file.as_raw_fd();
            machine.memory_file = Some(MemoryFile { fd, shared });
            inherited.push(file);
        }
        Qemu::spawn(self.program, &machine, console_log, inherited).map_err(Failed::Spawn)
    }

    async fn greet(
        &self,
        mut qemu: Qemu,
        agent: UnixStream,
        machine: &Machine,
        first_output: Option<Duration>,
        patience: Duration,
    ) -> Result<Started, Failed> {
        let begun = Instant::now();
        let state = match self.state_disk {
            Some(_) => "disk",
            None => "tmpfs",
        };
        let (reader, mut writer) = agent.into_split();
        let greeted = {
            let console = qemu.console().clone();
            let greeting = greet_machine(reader, &mut writer, super::SOFTWARE, state);
            let greeting = timeout(patience, greeting);
            let silence = async {
                // A console that closes belongs to an emulator that ends, which is told below.
                match first_output {
                    Some(limit) if timeout(limit, console.first_output()).await.is_err() => {}
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                greeted = greeting => greeted.ok(),
                _ = qemu.ended() => Some(Err(PipeError::Closed)),
                () = silence => None,
            }
        };
        match greeted {
            Some(Ok((reader, hello))) => Ok(Started {
                qemu,
                reader,
                writer,
                hello,
                accel: machine.accel,
                board: machine.board,
                cpu: machine.cpu.model(machine.accel, machine.arch).to_owned(),
                kernel: machine.kernel.clone(),
                initrd: machine.initrd.clone(),
            }),
            Some(Err(PipeError::Closed)) => Err(Failed::ended(&mut qemu).await),
            Some(Err(error)) => {
                qemu.kill().await;
                Err(Failed::Pipe(error))
            }
            None => Err(Failed::late(begun, &mut qemu).await),
        }
    }
}

fn capabilities() -> Value {
    json!({ "capabilities": [{ "capability": IGNORE_SHARED, "state": true }] })
}

/// Waits until the guest has opened the agent's port.
async fn port_is_open(control: &mut Qmp) -> Result<(), QmpError> {
    // The emulator tells events to those who have spoken to it: an earlier one is not told.
    let ports = control.execute("query-chardev").await?;
    let is_open = |port: &Value| port["label"] == AGENT_CHANNEL && port["frontend-open"] == true;
    if ports
        .as_array()
        .is_some_and(|ports| ports.iter().any(is_open))
    {
        return Ok(());
    }
    let opened = |data: &Value| data["id"] == AGENT_DEVICE && data["open"] == true;
    control.event("VSERPORT_CHANGE", opened).await
}

/// Writes the devices' state; what is in memory is in its file already.
async fn save(qemu: &mut Qemu, unfinished: &Unfinished) -> Result<(), QmpError> {
    let control = qemu.control();
    control
        .execute_with("migrate-set-capabilities", capabilities())
        .await?;
    control.send_file("state", unfinished.state.as_fd()).await?;
    control
        .execute_with("migrate", json!({ "uri": "fd:state" }))
        .await?;
    loop {
        let progress = control.execute("query-migrate").await?;
        match progress["status"].as_str() {
            Some("completed") => return Ok(()),
            Some(status @ ("failed" | "cancelled")) => {
                let words = progress["error-desc"].as_str().unwrap_or(status);
                return Err(QmpError::Refused {
                    command: "to save the machine".to_owned(),
                    reason: words.to_owned(),
                });
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Reads the devices' state and lets the machine run.
async fn load(qemu: &mut Qemu, saved: &Saved) -> Result<(), QmpError> {
    let control = qemu.control();
    control
        .execute_with("migrate-set-capabilities", capabilities())
        .await?;
    control.send_file("state", saved.state.as_fd()).await?;
    control
        .execute_with("migrate-incoming", json!({ "uri": "fd:state" }))
        .await?;
    // The machine ran when it was saved, so it runs when it is whole; an emulator that cannot read
    // the state ends.
    control.event("RESUME", |_| true).await
}

impl Failed {
    /// The channel closed: the emulator has ended or is about to.
    pub(super) async fn ended(qemu: &mut Qemu) -> Self {
        let how = match timeout(Duration::from_secs(2), qemu.ended()).await {
            Ok(Ok(status)) => ending(status),
            Ok(Err(error)) => format!("cannot be waited for: {error}"),
            Err(_) => {
                qemu.kill().await;
                "closed the agent's channel".to_owned()
            }
        };
        qemu.heard_out().await;
        Self::Ended {
            how,
            words: qemu.complaints(),
            console: qemu.console().tail(),
        }
    }

    /// Nothing came in time.
    async fn late(begun: Instant, qemu: &mut Qemu) -> Self {
        let console = qemu.console().tail();
        qemu.kill().await;
        let silent = console.is_empty();
        Self::Late {
            waited: begun.elapsed(),
            silent,
            console,
        }
    }

    /// A command of the emulator failed, perhaps because there is no emulator any more.
    async fn control(error: QmpError, qemu: &mut Qemu) -> Self {
        if matches!(error, QmpError::Io(_)) {
            return Self::ended(qemu).await;
        }
        qemu.kill().await;
        Self::Qmp(error)
    }

    /// Whether it may be the guest that does not run. What failed on this computer would fail with
    /// every acceleration.
    pub(super) fn speaks_of_the_guest(&self) -> bool {
        match self {
            Self::Ended { .. } | Self::Late { .. } | Self::Pipe(_) => true,
            Self::Spawn(_) | Self::Qmp(_) => false,
        }
    }

    /// Whether the emulator ended for its state disk, which it names then.
    pub(super) fn speaks_of_the_disk(&self, path: Option<&str>) -> bool {
        matches!((self, path), (Self::Ended { words, .. }, Some(path)) if words.contains(path))
    }

    /// One line.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Spawn(error) => error.to_string(),
            Self::Ended { how, words, .. } => match words.lines().next() {
                Some(words) => format!("the emulator {how}: {words}"),
                None => format!("the emulator {how}"),
            },
            Self::Late {
                waited,
                silent: true,
                ..
            } => {
                format!("no sign of life in {:.1} s", waited.as_secs_f64())
            }
            Self::Late { waited, .. } => {
                format!("no answer of its agent in {:.1} s", waited.as_secs_f64())
            }
            Self::Pipe(error) => error.to_string(),
            Self::Qmp(error) => error.to_string(),
        }
    }

    pub(super) fn into_error(self, state_dir: Option<&Path>) -> StartError {
        let reason = self.reason();
        let (words, console) = match self {
            Self::Spawn(error) => return error.into(),
            Self::Pipe(error) => return error.into(),
            Self::Qmp(_) => (String::new(), String::new()),
            Self::Ended { words, console, .. } => (words, console),
            Self::Late { console, .. } => (String::new(), console),
        };
        let mut text = format!("the virtual machine did not start: {reason}");
        // The first line is in the reason.
        for line in words.lines().skip(1) {
            text.push_str("\n  ");
            text.push_str(line);
        }
        if !console.is_empty() {
            text.push_str("\nlast lines of its console:");
            for line in console.lines() {
                text.push_str("\n  ");
                text.push_str(line);
            }
        }
        if let Some(dir) = state_dir {
            text.push_str("\nits whole console is in ");
            text.push_str(&dir.join(CONSOLE_LOG).display().to_string());
        }
        StartError::Boot(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_own_failures_speak_of_acceleration() {
        let refused = || QmpError::Refused {
            command: "device_add".into(),
            reason: "no space".into(),
        };
        for (failed, speaks) in [
            (Failed::Qmp(refused()), false),
            (
                Failed::Late {
                    waited: Duration::ZERO,
                    silent: true,
                    console: String::new(),
                },
                true,
            ),
            (Failed::Pipe(PipeError::Closed), true),
        ] {
            assert_eq!(failed.speaks_of_the_guest(), speaks, "{}", failed.reason());
        }
    }

    #[test]
    fn a_disk_that_cannot_be_opened_is_no_fault_of_the_snapshot() {
        let ended = |words: &str| Failed::Ended {
            how: "ended with status 1".into(),
            words: words.into(),
            console: String::new(),
        };
        let disk = Some("/state/state.img");
        let refused = ended("qemu: -blockdev x: Could not open '/state/state.img': no");
        assert!(refused.speaks_of_the_disk(disk));
        assert!(!refused.speaks_of_the_disk(None));
        assert!(!ended("qemu: no such machine").speaks_of_the_disk(disk));
    }

    #[test]
    fn a_failed_boot_shows_its_last_words() {
        let failed = Failed::Ended {
            how: "ended with status 1".into(),
            words: "qemu: no such machine\nqemu: hint".into(),
            console: "Kernel panic".into(),
        };
        let text = failed.into_error(Some(Path::new("/state"))).to_string();
        assert_eq!(
            text,
            "the virtual machine did not start: the emulator ended with status 1: qemu: no such \
             machine\n  qemu: hint\nlast lines of its console:\n  Kernel panic\nits whole console \
             is in /state/console.log"
        );
    }
}
