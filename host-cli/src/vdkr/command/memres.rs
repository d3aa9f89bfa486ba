//! `vdkr memres`: a machine that stays, kept by a monitor process.

mod monitor;

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use monitor::{hear, keep, spawn_monitor};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use vdkr_core::channel::message::{ContainerReply, ContainerRequest, MachineState, Reply, Request};

use super::vstorage;
use crate::{
    exit::Exit,
    out, out_line,
    vdkr::{
        error::{Error, Result},
        granted, health, human, layers,
        machine_args::{MemresCommand, MemresStartArgs, MemresStatusArgs},
        old,
        session::{Session, interruptible, no_machine, tell_of_the_last},
        settings::{Settings, StatePlace},
        state, value,
        words::{say, telling},
    },
    vm::{
        SOFTWARE,
        channel::Connection,
        kept::{self, Description},
    },
};

/// File that is locked while a command starts a machine for containers that stay.
const STARTING: &str = "starting.lock";
/// How often such a command looks whether it is its turn.
const TURN_PAUSE: Duration = Duration::from_millis(20);
/// How long a clean stop may take before the monitor is ended by force.
const STOP_PATIENCE: Duration = Duration::from_mins(1);

/// How long a monitor may take to say how it is.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Does what follows `memres`.
pub async fn run(settings: &Settings, command: &MemresCommand) -> Result<u8> {
    no_machine(settings, "memres")?;
    match command {
        MemresCommand::Start(args) => begin(settings, args).await,
        MemresCommand::Stop(_) => stop(settings).await,
        MemresCommand::Status(args) => status(settings, args).await,
        MemresCommand::List(args) => list(settings, args).await,
        MemresCommand::Restart(args) => {
            idle_timeout(settings, &args.start)?;
            if args.clean {
                vstorage::clean_state(settings, directory(settings)?).await?;
            } else {
                stop(settings).await?;
            }
            begin(settings, &args.start).await
        }
        MemresCommand::CleanPorts => Err(old::no_ports_to_clean()),
        MemresCommand::Monitor(args) => Ok(keep(settings, args).await),
    }
}

fn directory(settings: &Settings) -> Result<&Path> {
    match &settings.state {
        StatePlace::Directory(dir) => Ok(dir),
        StatePlace::Nowhere => Err(Error::usage(
            "a machine without state lives for one command and cannot be kept",
        )
        .with_hint("use an instance of its own instead: vdkr -I NAME memres start")),
    }
}

fn idle_timeout(settings: &Settings, args: &MemresStartArgs) -> Result<u64> {
    if !args.publish.is_empty() {
        return Err(old::no_ports_of_machine());
    }
    match &args.idle_timeout {
        Some(text) => value::parse_seconds(text).map_err(Error::usage),
        None => Ok(settings.idle_timeout),
    }
}

async fn begin(settings: &Settings, args: &MemresStartArgs) -> Result<u8> {
    let dir = directory(settings)?;
    let idle = idle_timeout(settings, args)?;
    if let Some(connection) = kept::connect(dir).await? {
        let agent = &connection.hello().software;
        say(&format!("already running ({agent}) in {}", dir.display()));
        let runs_with = Description::read(dir).map(|running| running.idle_timeout);
        if args.idle_timeout.is_some() && runs_with != Some(idle) {
            say(
                "--idle-timeout has no effect on the machine that is running; set it with: vdkr memres restart --idle-timeout SECONDS",
            );
        }
        return Ok(0);
    }
    tell_of_the_last(dir);
    state::prepare(dir, settings.arch)?;
    if let Some(holder) = state::locked_by(dir) {
        say(&format!(
            "waiting for {holder}, which uses {}",
            dir.display()
        ));
    }
    let begun = Instant::now();
    let description = interruptible(async {
        let child = spawn_monitor(settings, dir, idle)?;
        hear(child).await
    })
    .await?;
    resume(settings, dir).await?;
    out!(
        "Started {} machine in {:.1} s ({} {}, {} MiB, process {})",
        description.arch,
        begun.elapsed().as_secs_f64(),
        description.machine,
        description.accel,
        description.memory_mib,
        description.pid
    );
    say(&match idle {
        0 => "it runs until: vdkr memres stop".to_owned(),
        seconds => format!("it stops after {} without a command", spell(seconds)),
    });
    Ok(0)
}

/// Has the containers start that start with a machine, which has just been started and stays. Their
/// layers come first; a container whose layers cannot be had is told of, and the others start.
async fn resume(settings: &Settings, dir: &Path) -> Result<()> {
    let Some(connection) = kept::connect(dir).await? else {
        return Ok(());
    };
    let mut session = Session::of_kept(connection, settings);
    let list = Request::Container(ContainerRequest::List);
    // An agent of an earlier version has none.
    let Ok(Reply::Container(ContainerReply::List { containers })) =
        session.ask_plainly(&list).await?
    else {
        return Ok(());
    };
    let resuming: Vec<_> = containers.into_iter().filter(|row| row.resumes).collect();
    if resuming.is_empty() {
        return Ok(());
    }
    let mut published = Vec::new();
    for row in &resuming {
        let id = std::slice::from_ref(&row.id);
        let given = match layers::prepare_containers(&mut session, settings, id).await {
            Ok(()) => granted::give_again(&mut session, settings, row).await,
            Err(error) => Err(error),
        };
        match given {
            Ok(true) => published.push(&row.id),
            Ok(false) => {}
            Err(error) => say(&format!("container {} does not start: {error}", row.name)),
        }
    }
    session
        .ask(&Request::Container(ContainerRequest::Resume))
        .await?;
    for id in published {
        session.adopt_ports(id).await?;
    }
    session.close().await;
    Ok(())
}

/// Has a machine run that stays, for containers that outlive the command that starts them.
pub async fn ensure(settings: &Settings) -> Result<()> {
    // A target stays anyway.
    if settings.target.is_some() {
        return Ok(());
    }
    let dir = directory(settings)?;
    if kept::connect(dir).await?.is_some() {
        return Ok(());
    }
    state::prepare(dir, settings.arch)?;
    // Several commands at once need one machine, not one each.
    let path = dir.join(STARTING);
    let turn = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)?;
    let description = interruptible(async {
        telling(
            "another command is starting the machine; waiting for it",
            async {
                while let Err(fs::TryLockError::WouldBlock) = turn.try_lock() {
                    sleep(TURN_PAUSE).await;
                }
            },
        )
        .await;
        if kept::connect(dir).await?.is_some() {
            return Ok(None);
        }
        let child = spawn_monitor(settings, dir, settings.idle_timeout)?;
        hear(child).await.map(Some)
    })
    .await?;
    if let Some(description) = description {
        resume(settings, dir).await?;
        let until = match settings.idle_timeout {
            0 => "until it is stopped".to_owned(),
            seconds => format!("until it had nothing to do for {}", spell(seconds)),
        };
        say(&format!(
            "started a machine that stays {until} (process {}); it can be stopped with: vdkr \
             memres stop",
            description.pid
        ));
    }
    Ok(())
}

async fn stop(settings: &Settings) -> Result<u8> {
    let ran = end(directory(settings)?).await?;
    say(if ran { "stopped" } else { "not running" });
    Ok(0)
}

/// Stops the machine that is kept in a directory; `false` when none is.
pub(super) async fn end(dir: &Path) -> Result<bool> {
    let patience = Instant::now() + STOP_PATIENCE;
    match timeout(STOP_PATIENCE, ask_to_stop(dir)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) if kept_by(dir).is_none() => {
            state::tidy(dir)?;
            return Ok(false);
        }
        // It is just starting, or cannot be talked to.
        Ok(Ok(false) | Err(_)) | Err(_) => signal_monitor(dir, Signal::SIGTERM),
    }
    // The lock is free when monitor and emulator have both gone.
    while kept_by(dir).is_some() {
        if Instant::now() > patience {
            say("it does not stop; ending it by force");
            signal_monitor(dir, Signal::SIGKILL);
            sleep(Duration::from_millis(500)).await;
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}

/// `false` when nobody listens.
async fn ask_to_stop(dir: &Path) -> Result<bool> {
    let Some(connection) = kept::connect(dir).await? else {
        return Ok(false);
    };
    // A monitor that goes without an answer has stopped too.
    if let Ok(Ok(Reply::Machine(state))) = connection.ask(&Request::Shutdown).await {
        health::tell_disk_errors(&state.disk_errors);
    }
    Ok(true)
}

/// The number of the monitor whose machine a directory is kept for: from when it starts until its
/// machine has gone.
fn kept_by(dir: &Path) -> Option<Pid> {
    let holder = state::locked_by(dir)?;
    let number = holder.strip_prefix("vdkr memres (process ")?;
    let number = number.strip_suffix(')')?.parse().ok()?;
    (number > 1).then(|| Pid::from_raw(number))
}

/// Signals the monitor of a directory, whose number is its own for as long as it holds the lock.
fn signal_monitor(dir: &Path, signal: Signal) {
    if let Some(pid) = kept_by(dir) {
        let _ = kill(pid, signal);
    }
}

async fn status(settings: &Settings, args: &MemresStatusArgs) -> Result<u8> {
    let dir = directory(settings)?;
    let connection = kept::connect(dir).await?;
    let description = Description::read(dir).filter(|_| connection.is_some());
    let Some(connection) = connection else {
        tell_of_the_last(dir);
        state::tidy(dir)?;
        if args.json {
            out!("{}", json!({ "running": false, "state_dir": dir }));
        } else {
            out!("Not running ({})", dir.display());
        }
        return Ok(Exit::Unreachable.code());
    };
    // An older monitor does not know the question.
    let state = match timeout(ANSWER_PATIENCE, connection.ask(&Request::Machine)).await {
        Ok(Ok(Ok(Reply::Machine(state)))) => Some(state),
        _ => None,
    };
    if let Some(state) = &state {
        health::tell_disk_errors(&state.disk_errors);
    }
    let hello = connection.hello();
    if args.json {
        out!(
            "{:#}",
            json!({
                "running": true,
                "state_dir": dir,
                "agent": hello.software,
                "machine_id": hello.machine_id,
                "state": hello.state,
                "monitor": description,
                "busy": state.as_ref().map(|state| state.busy),
                "idle_left_ms": state.as_ref().and_then(|state| state.idle_left_ms),
                "disk_errors": state.as_ref().map(|state| &state.disk_errors),
                "stopped": state.as_ref().and_then(|state| state.stopped.as_ref()),
            })
        );
        return Ok(0);
    }
    out!("Running ({})", dir.display());
    out_line!("  Agent:         {} ({})", hello.software, hello.arch);
    if let Some(description) = description {
        let Description {
            pid,
            machine,
            accel,
            memory_mib,
            cpu,
            cpus,
            idle_timeout,
            ..
        } = &description;
        out!("  Machine:       {machine} {accel}, {memory_mib} MiB");
        if *cpus > 0 {
            out!("  Processors:    {cpus} {cpu}");
        }
        out!("  Monitor:       process {pid}, {}", description.software);
        out!(
            "  Up:            {}",
            human::duration(seconds_up(&description))
        );
        out!("  Stops:         {}", stops(*idle_timeout, state.as_ref()));
        if let Some(word) = state.as_ref().and_then(|state| state.stopped.as_ref()) {
            out_line!("  Stands still:  {word}");
        }
        if description.software != SOFTWARE {
            say(&format!(
                "its monitor is {}, this is {SOFTWARE}; renew it with: vdkr memres restart",
                description.software
            ));
        }
    }
    Ok(0)
}

/// When a machine ends by itself, and how much of that is left.
fn stops(idle_timeout: u64, state: Option<&MachineState>) -> String {
    if idle_timeout == 0 {
        return "when asked to".to_owned();
    }
    let text = format!("after {} without a command", spell(idle_timeout));
    match state {
        Some(MachineState { busy, .. }) if *busy > 0 => format!("{text}; {busy} under way"),
        Some(MachineState {
            idle_left_ms: Some(left),
            ..
        }) => format!("{text}; {} left", spell(left.div_ceil(1000))),
        _ => text,
    }
}

async fn list(settings: &Settings, args: &MemresStatusArgs) -> Result<u8> {
    let places = vstorage::known_places(settings)?.into_iter();
    let mut dirs: Vec<_> = places
        .map(|place| {
            let instance = place.instance.unwrap_or_else(|| "-".to_owned());
            (place.arch.to_string(), instance, place.dir)
        })
        .collect();
    dirs.sort();
    let mut rows = vec![
        [
            "ARCH",
            "INSTANCE",
            "STATUS",
            "MACHINE",
            "UP",
            "PORTS",
            "DIRECTORY",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut objects = Vec::new();
    for (arch, instance, dir) in dirs {
        let connection = kept::connect(&dir).await;
        if matches!(connection, Ok(None)) {
            // Another user's directory may be listed too.
            let _ = state::tidy(&dir);
        }
        let connection = connection.ok().flatten();
        let ports = match &connection {
            Some(connection) => published(connection).await,
            None => Vec::new(),
        };
        let running = connection.is_some();
        let description = Description::read(&dir).filter(|_| running);
        let status = if running { "running" } else { "stopped" };
        let (machine, up) = match &description {
            Some(known) => (
                format!("{} {}", known.machine, known.accel),
                human::duration(seconds_up(known)),
            ),
            None => ("-".to_owned(), "-".to_owned()),
        };
        objects.push(json!({
            "arch": arch, "instance": instance, "running": running, "state_dir": dir,
            "monitor": description, "ports": ports,
        }));
        rows.push(vec![
            arch,
            instance,
            status.into(),
            machine,
            up,
            match ports.is_empty() {
                true => "-".to_owned(),
                false => ports.join(", "),
            },
            dir.display().to_string(),
        ]);
    }
    if args.json {
        out!("{:#}", serde_json::Value::Array(objects));
    } else {
        crate::output::write(format_args!("{}", human::columns(&rows)));
    }
    Ok(0)
}

/// The ports of this computer that lead to a machine's containers, as `ps` shows them; none where the
/// monitor is too old to say.
async fn published(connection: &Connection) -> Vec<String> {
    match timeout(ANSWER_PATIENCE, connection.ask(&Request::Published)).await {
        Ok(Ok(Ok(Reply::Published { publications }))) => {
            let ports = publications.iter().flat_map(|its| &its.ports);
            ports.map(ToString::to_string).collect()
        }
        _ => Vec::new(),
    }
}

fn seconds_up(description: &Description) -> i64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let started = Duration::from_millis(description.started_unix_ms);
    now.saturating_sub(started)
        .as_secs()
        .try_into()
        .unwrap_or(i64::MAX)
}

/// Seconds as a user sets them: in minutes where that is even.
fn spell(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (1, 0) => "1 minute".to_owned(),
        (minutes, 0) if minutes > 0 => format!("{minutes} minutes"),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_the_idle_time_shows() {
        let state = |busy, idle_left_ms| MachineState {
            busy,
            idle_left_ms,
            ..MachineState::default()
        };
        for (timeout, state, text) in [
            (0, Some(state(0, None)), "when asked to"),
            (1800, None, "after 30 minutes without a command"),
            (
                1800,
                Some(state(2, None)),
                "after 30 minutes without a command; 2 under way",
            ),
            (
                90,
                Some(state(0, Some(4200))),
                "after 90 s without a command; 5 s left",
            ),
            (
                60,
                Some(state(0, Some(59_900))),
                "after 1 minute without a command; 1 minute left",
            ),
        ] {
            assert_eq!(stops(timeout, state.as_ref()), text);
        }
    }
}
