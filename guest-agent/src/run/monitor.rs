//! `vdkr-agent container-init`: the process between the agent and a container.
//!
//! It gets the [`InitMessage`] and the standard streams over the socket that is its standard
//! input (nothing stands in its arguments, where others could read it), forks the container's
//! first process, waits for it, and kills it when the agent goes away.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::ExitCode,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{CloneFlags, unshare},
    unistd::{ForkResult, fork, pipe2},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid},
};

use super::{
    EXIT_NOT_CREATED, Report, RunError, files, join,
    report::receive_with_fds,
    sandbox::{Inherited, become_container},
    spec::InitMessage,
};

/// Runs one container and reports what happens to it.
pub fn main() -> ExitCode {
    close_on_exec();
    let Ok(agent) = take_socket() else {
        eprintln!("container-init is started by the agent itself, with a socket as standard input");
        return ExitCode::from(2);
    };
    let last = match run(agent.as_fd()) {
        Ok(report) => report,
        Err(error) => Report::Failed {
            status: EXIT_NOT_CREATED,
            message: error.to_string(),
        },
    };
    // When this fails the agent is gone, and with it everyone who could be told.
    let _ = last.send(agent.as_fd(), &[]);
    ExitCode::SUCCESS
}

/// Moves the socket away from standard input, which becomes `/dev/null`.
fn take_socket() -> std::io::Result<OwnedFd> {
    let agent = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    rustix::net::sockopt::socket_type(&agent)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(agent)
}

fn run(agent: BorrowedFd<'_>) -> Result<Report, RunError> {
    let (message, mut stdio) = receive_spec(agent)?;
    let joins = match &message {
        InitMessage::Run(_) => false,
        InitMessage::Join { .. } => true,
        InitMessage::Files { root, .. } => root.is_none(),
    };
    let target = if joins { stdio.pop() } else { None };
    if joins && target.is_none() {
        let text = "the agent sent no container to join";
        return Err(RunError::Setup(text.to_owned()));
    }
    let spec = match &message {
        InitMessage::Run(spec) | InitMessage::Join { spec, .. } => spec,
        InitMessage::Files { root, job } => {
            let target = target.as_ref().map(AsFd::as_fd);
            return files::work(agent, root.as_ref(), target, job, stdio);
        }
    };
    let cgroup = spec
        .cgroup
        .as_ref()
        .map(|group| {
            let procs = group.join("cgroup.procs");
            let file = File::options().write(true).open(&procs);
            file.map_err(RunError::io(format!("open {}", procs.display())))
        })
        .transpose()?;
    let own_agent = agent
        .try_clone_to_owned()
        .map_err(RunError::io("duplicate the agent's socket"))?;
    match &target {
        None if !spec.isolation.own_pids => {}
        None => unshare(CloneFlags::CLONE_NEWPID).map_err(system("make a PID namespace"))?,
        Some(target) => join::enter(target.as_fd())?,
    }
    drop(target);
    let (error_in, error_out) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;

    let child = match fork_once().map_err(system("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(error_in);
            let inherited = Inherited {
                agent: own_agent,
                cgroup,
                stdio,
            };
            let report = match &message {
                InitMessage::Join { privileged, .. } => {
                    join::become_process(spec, *privileged, inherited)
                }
                _ => become_container(spec, inherited),
            };
            let text = serde_json::to_vec(&report).unwrap_or_default();
            let _ = File::from(error_out).write_all(&text);
            std::process::exit(EXIT_NOT_CREATED)
        }
    };
    // Only the container may hold its streams, else they never end.
    drop((own_agent, cgroup, stdio, error_out));

    let child = Pid::from_raw(child.as_raw())
        .ok_or_else(|| RunError::Setup("fork gave no process".to_owned()))?;
    let pidfd = pidfd_open(child, PidfdFlags::empty())
        .map_err(std::io::Error::from)
        .map_err(RunError::io("open the container's process"))?;
    let created = Report::Created {
        pid: child.as_raw_nonzero().get().unsigned_abs(),
    };
    if created.send(agent, &[pidfd.as_fd()]).is_err() {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }

    // Ends when the command is executed, which closes the pipe, or when the set-up failed.
    let mut text = Vec::new();
    let _ = File::from(error_in).read_to_end(&mut text);
    if !text.is_empty() {
        let _ = waitpid(Some(child), WaitOptions::empty());
        let unreadable = || RunError::Setup("the container's set-up failed".to_owned());
        return serde_json::from_slice(&text).map_err(|_| unreadable());
    }
    let _ = Report::Started.send(agent, &[]);
    wait(agent, pidfd.as_fd(), child)
}

/// Waits for the end of the container, and brings it about when the agent is gone.
fn wait(agent: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, child: Pid) -> Result<Report, RunError> {
    loop {
        let mut fds = [
            PollFd::new(&agent, PollFlags::empty()),
            PollFd::new(&pidfd, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                return Err(RunError::io("wait for the container")(error.into()));
            }
        }
        let [from_agent, from_child] = &fds;
        if from_child.revents().is_empty() && !from_agent.revents().is_empty() {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        } else if from_child.revents().is_empty() {
            continue;
        }
        let status = match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => status,
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(RunError::io("wait for the container")(error.into())),
        };
        let by_signal = || 128 + status.terminating_signal().unwrap_or_default();
        return Ok(Report::Exited {
            status: status.exit_status().unwrap_or_else(by_signal),
        });
    }
}

/// The first message: the spec as a file, and the standard streams beside it.
fn receive_spec(agent: BorrowedFd<'_>) -> Result<(InitMessage, Vec<OwnedFd>), RunError> {
    let (_, mut fds) = receive_with_fds(agent).map_err(system("receive the container's spec"))?;
    if fds.is_empty() {
        return Err(RunError::Setup("the agent sent no spec".to_owned()));
    }
    let mut file = File::from(fds.remove(0));
    let mut text = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut text))
        .map_err(RunError::io("read the container's spec"))?;
    let spec = serde_json::from_slice(&text)
        .map_err(|error| RunError::Setup(format!("the container's spec is broken: {error}")))?;
    Ok((spec, fds))
}

/// Keeps what the agent itself was started with out of the container.
#[allow(unsafe_code, reason = "close_range has no safe wrapper")]
fn close_on_exec() {
    const FIRST: nix::libc::c_uint = 3;
    const CLOSE_RANGE_CLOEXEC: nix::libc::c_uint = 4;
    let call = nix::libc::SYS_close_range;
    // SAFETY: marks descriptors and closes none of them.
    unsafe { nix::libc::syscall(call, FIRST, nix::libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
}

#[allow(
    unsafe_code,
    reason = "fork is only sound in a process with one thread"
)]
fn fork_once() -> Result<ForkResult, Errno> {
    // SAFETY: `container-init` never starts a thread, so the child has a consistent heap.
    unsafe { fork() }
}

fn system(name: &str) -> impl FnOnce(Errno) -> RunError {
    let name = name.to_owned();
    move |error| RunError::Io {
        step: name,
        source: error.into(),
    }
}
