//! What PID 1 does while the agent runs: bury orphans, and pass a wish to stop on.

use std::{
    io,
    process::Child,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

/// How the agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its own decision: the machine goes down.
    Done,
    /// By a fault; the text says which.
    Failed(String),
}

/// Signals that PID 1 waits for instead of being interrupted by them.
#[derive(Debug)]
pub struct Signals(SigSet);

impl Signals {
    /// Blocks them, so that none is lost. Children that `std` starts get an empty mask.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGPWR,
        ] {
            set.add(signal);
        }
        set.thread_block()?;
        // Ctrl-Alt-Del becomes SIGINT; it may not be available.
        let _ = nix::sys::reboot::set_cad_enabled(false);
        Ok(Self(set))
    }

    /// Waits for the agent's end, reaping every other process meanwhile. A signal to stop is
    /// passed on to the agent, which is killed when it takes longer than `patience`.
    pub fn run(&self, mut agent: Child, patience: Duration) -> io::Result<Ended> {
        let pid = Pid::from_raw(agent.id().cast_signed());
        let mut deadline: Option<Instant> = None;
        loop {
            reap_others(pid);
            if let Some(status) = agent.try_wait()? {
                return Ok(match (status.success(), deadline) {
                    (true, _) | (_, Some(_)) => Ended::Done,
                    _ => Ended::Failed(status.to_string()),
                });
            }
            let signal = match deadline {
                None => self.0.wait()?,
                Some(when) if Instant::now() >= when => {
                    agent.kill()?;
                    self.0.wait()?
                }
                Some(_) => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            if signal != Signal::SIGCHLD {
                kill(pid, Signal::SIGTERM)?;
                deadline = Some(Instant::now() + patience);
            }
        }
    }
}

/// Reaps every dead child but `agent`, whose status is its handle's.
fn reap_others(agent: Pid) {
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let dead = match waitid(Id::All, flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) => status.pid(),
            // A child that died of a signal that nix has no name for.
            Err(_) => None,
        };
        match dead {
            Some(pid) if pid == agent => return,
            Some(pid) => {
                let _ = waitpid(pid, None);
            }
            None => {
                let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
            }
        }
    }
}
