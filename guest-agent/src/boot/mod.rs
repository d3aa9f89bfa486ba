//! PID 1 of the small VM: from a bare kernel to a running agent, and to power off.
//!
//! PID 1 itself only sets the machine up, reaps and powers off; the agent proper is its child
//! (`vdkr-agent serve`). A fault of the agent therefore never panics the kernel or loses what the
//! state disk has: it is started again, without its containers, or the machine goes down cleanly.
//!
//! The host may take its snapshot as soon as the agent listens. So everything that is particular to
//! one machine comes after the greeting of the first host: time, randomness, state ([`identity`],
//! [`state`]).

use std::{
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use crate::{
    channel::Address,
    machine::{BootReport, uptime},
};

pub mod clock;
pub mod disks;
pub mod identity;
pub mod modules;
pub mod mounts;
pub mod netlink;
pub mod network;
pub mod power;
pub mod reaper;
pub mod root;
pub mod state;

/// Name of the virtio-serial port that the host's end of the channel is behind.
const PORT: &str = "vdkr.agent";
/// The port of the agent where the host offers vsock.
const VSOCK_PORT: u32 = 1024;
/// Where the state disk is mounted.
const STATE_DIR: &str = "/var/lib/vdkr";
/// Where the agent finds what PID 1 measured.
const REPORT: &str = "/run/vdkr/boot.json";
/// How often an agent that fails is started again before the machine goes down.
const RESTARTS: u32 = 3;
/// How long an agent that is told to stop may take.
const STOP_TIME: Duration = Duration::from_secs(20);

/// Brings the machine up, runs the agent, powers off.
pub fn main() -> ! {
    let mut report = BootReport::default();
    report.stage("kernel");
    bring_up(&mut report);
    match supervise() {
        Ok(()) => {}
        Err(error) => complain(&format!("the agent cannot be kept running: {error}")),
    }
    power::off(Path::new(STATE_DIR))
}

/// Every step goes on after a failure: a machine without network or disk can still say so.
fn bring_up(report: &mut BootReport) {
    attempt("mount the kernel's file systems", mounts::early());
    report.stage("mounts");
    modules::load_all(Path::new(modules::DIR));
    report.stage("modules");
    attempt("leave the initramfs", root::leave_initramfs());
    attempt("mount file systems", mounts::late());
    attempt("write files", mounts::write_files());
    report.stage("root");
    attempt("set up the network", network::configure());
    report.stage("network");
    attempt("keep the boot report", report.save(Path::new(REPORT)));
}

/// Runs the agent until it ends by itself, or is told to by a signal to PID 1.
fn supervise() -> std::io::Result<()> {
    let signals = reaper::Signals::block()?;
    for _ in 0..=RESTARTS {
        let agent = start_agent()?;
        match signals.run(agent, STOP_TIME)? {
            reaper::Ended::Done => return Ok(()),
            reaper::Ended::Failed(how) => {
                complain(&format!(
                    "the agent ended ({how}) after {} ms",
                    uptime().as_millis()
                ));
            }
        }
    }
    Err(std::io::Error::other("it failed too often"))
}

fn start_agent() -> std::io::Result<Child> {
    let mut channels = Vec::new();
    if Path::new("/dev/vsock").exists() {
        channels.push(Address::Vsock(VSOCK_PORT));
    }
    // The last: when it opens, the host takes the machine for ready.
    channels.push(Address::Port(PORT.to_owned()));
    let mut command = Command::new("/proc/self/exe");
    command.args(["serve", "--own-machine"]);
    command.args(["--state", STATE_DIR, "--boot-report", REPORT]);
    for channel in channels {
        command.arg(format!("--channel={channel}"));
    }
    command
        .env_clear()
        .env("PATH", crate::run::process::DEFAULT_PATH)
        .current_dir("/")
        .spawn()
}

fn attempt(what: &str, result: Result<(), impl std::fmt::Display>) {
    if let Err(error) = result {
        complain(&format!("cannot {what}: {error}"));
    }
}

/// Writes to the console, which the host keeps in a log.
fn complain(text: &str) {
    eprintln!("vdkr-agent: {text}");
}
