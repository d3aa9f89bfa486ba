//! The container's first process, from the fork to the command. Runs in a process of its own with
//! one thread, already PID 1 of a new PID namespace.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        signal::{
            SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
        },
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, chdir, setgroups, sethostname, setresgid, setresuid, setsid},
};
use rustix::{
    fs::FileType,
    process::{Resource, Rlimit, setrlimit},
    thread::CapabilitySet,
};
use vdkr_core::{
    container::capability::{self, Capabilities},
    seccomp::Instruction,
};

use super::{
    EXIT_NOT_CREATED, Report, RunError, capabilities, devices,
    exec::execute,
    init, mounts, network,
    report::borrow,
    rootfs, seccomp,
    spec::ContainerSpec,
    user::{self, Identity},
    volumes,
};

/// What the first process inherits from `container-init`; all of it close-on-exec.
#[derive(Debug)]
pub struct Inherited {
    /// The socket to the agent, for the terminal.
    pub agent: OwnedFd,
    /// `cgroup.procs` of the container's group.
    pub cgroup: Option<File>,
    /// Standard input, output and error; empty when the container gets a terminal.
    pub stdio: Vec<OwnedFd>,
}

/// Makes this process the container's first one and executes its command. Only returns when that
/// fails, with the report of it.
pub fn become_container(spec: &ContainerSpec, inherited: Inherited) -> Report {
    match prepare(spec, inherited) {
        Ok(env) => {
            if spec.init
                && let Err(error) = init::stand_before()
            {
                return Report::Failed {
                    status: EXIT_NOT_CREATED,
                    message: error.to_string(),
                };
            }
            run_command(spec, &env)
        }
        Err(error) => Report::Failed {
            status: EXIT_NOT_CREATED,
            message: error.to_string(),
        },
    }
}

/// Executes the command; only returns when that fails.
pub(super) fn run_command(spec: &ContainerSpec, env: &[String]) -> Report {
    let error = execute(&spec.process.args, env);
    Report::Failed {
        status: error.status,
        message: error.message,
    }
}

/// Does everything up to the execution and gives the final environment.
fn prepare(spec: &ContainerSpec, inherited: Inherited) -> Result<Vec<String>, RunError> {
    let Inherited {
        agent,
        cgroup,
        stdio,
    } = inherited;
    join_cgroup(cgroup)?;
    let isolation = &spec.isolation;
    network::enter(&isolation.network)?;
    // The group first: it becomes the root of the new cgroup namespace.
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    namespaces.set(CloneFlags::CLONE_NEWIPC, isolation.own_ipc);
    namespaces.set(CloneFlags::CLONE_NEWUTS, isolation.own_uts);
    unshare(namespaces).map_err(step("make namespaces"))?;
    if isolation.own_uts {
        sethostname(&spec.hostname).map_err(step("set the host name"))?;
        if let Some(domain) = &isolation.domainname {
            std::fs::write("/proc/sys/kernel/domainname", domain)
                .map_err(RunError::io("set the domain name"))?;
        }
    }

    let files = rootfs::take_files(&spec.files)?;
    let taken = volumes::take(&spec.volumes)?;
    rootfs::mount_overlay(&spec.root, spec.devices_filtered)?;
    rootfs::enter(&spec.root.merged)?;
    umask(Mode::from_bits_truncate(0o022));
    mounts::mount_all(&spec.mounts)?;
    devices::populate(&isolation.devices)?;
    rootfs::attach_files(files)?;
    volumes::attach(taken)?;
    set_parameters(&isolation.sysctls)?;

    let identity = user::resolve_here(&spec.process.user, &isolation.groups)
        .map_err(|error| RunError::Setup(error.to_string()))?;
    let _ = setsid();
    attach_streams(spec, &agent, &stdio, identity.uid, true)?;
    drop((agent, stdio));

    mounts::mask(&spec.masked_paths)?;
    mounts::make_readonly(&spec.readonly_paths)?;
    let cwd = spec.process.cwd.as_str();
    std::fs::create_dir_all(cwd).map_err(RunError::io(format!("make working directory {cwd}")))?;
    if spec.root.read_only {
        mounts::make_root_readonly()?;
    }
    take_on(spec, &identity, false)
}

/// Joins the group whose `cgroup.procs` this is.
pub(super) fn join_cgroup(procs: Option<File>) -> Result<(), RunError> {
    match procs {
        Some(mut procs) => procs
            .write_all(b"0")
            .map_err(RunError::io("join the container's cgroup")),
        None => Ok(()),
    }
}

/// Takes the streams, or a new terminal, which may be the container's `console`.
pub(super) fn attach_streams(
    spec: &ContainerSpec,
    agent: &OwnedFd,
    stdio: &[OwnedFd],
    uid: u32,
    console: bool,
) -> Result<(), RunError> {
    if spec.process.tty {
        attach_terminal(agent.as_fd(), uid, console)
    } else {
        attach_pipes(stdio, uid)
    }
}

/// Becomes the process that the command runs as, and gives its environment.
pub(super) fn take_on(
    spec: &ContainerSpec,
    identity: &Identity,
    privileged: bool,
) -> Result<Vec<String>, RunError> {
    let isolation = &spec.isolation;
    let cwd = spec.process.cwd.as_str();
    chdir(cwd).map_err(step(&format!("enter working directory {cwd}")))?;
    limit_resources(&isolation.rlimits)?;
    if let Some(value) = isolation.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", value.to_string()).map_err(RunError::io(
            "set the readiness to be killed when memory is short",
        ))?;
    }
    reset_signals()?;
    let mut kept = CapabilitySet::from_bits_retain(isolation.capabilities);
    if !spec.devices_filtered {
        kept.remove(CapabilitySet::MKNOD);
    }
    if privileged {
        kept = CapabilitySet::from_bits_retain(capability::ALL.0);
    }
    let filter = seccomp::filter(&isolation.seccomp, Capabilities(kept.bits()))?;
    if isolation.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(io::Error::from)
            .map_err(RunError::io("give up new privileges"))?;
    }
    become_user(
        identity,
        kept,
        filter.as_deref(),
        isolation.no_new_privileges,
    )?;

    let mut env = spec.process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    Ok(env)
}

pub(super) fn step(name: &str) -> impl FnOnce(nix::errno::Errno) -> RunError {
    let name = name.to_owned();
    move |error| RunError::Io {
        step: name,
        source: error.into(),
    }
}

/// Makes a new terminal this session's own and sends its other side to the agent.
fn attach_terminal(agent: BorrowedFd<'_>, uid: u32, console: bool) -> Result<(), RunError> {
    let devices::Terminal { master, slave } = devices::open_terminal(uid, console)?;
    rustix::process::ioctl_tiocsctty(&slave)
        .map_err(io::Error::from)
        .map_err(RunError::io("take the terminal"))?;
    dup_stdio(slave.as_fd(), slave.as_fd(), slave.as_fd())?;
    Report::Terminal
        .send(agent, &borrow(&[master]))
        .map_err(step("hand the terminal over"))
}

/// Takes the pipes and gives them to the user, so that `/dev/stdout` can be opened again.
fn attach_pipes(stdio: &[OwnedFd], uid: u32) -> Result<(), RunError> {
    let [stdin, stdout, stderr] = stdio else {
        return Err(RunError::Setup("standard streams are missing".to_owned()));
    };
    if uid != 0 {
        for fd in stdio.iter().filter(|fd| is_pipe(fd)) {
            let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
    // The agent's null device is not the container's to own or to change.
    let null = if is_pipe(stdin) {
        None
    } else {
        devices::open_null()
    };
    let stdin = null.as_ref().unwrap_or(stdin);
    dup_stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
}

fn is_pipe(fd: &OwnedFd) -> bool {
    let stat = rustix::fs::fstat(fd);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

fn dup_stdio(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<(), RunError> {
    rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr))
        .map_err(io::Error::from)
        .map_err(RunError::io("set up the standard streams"))
}

/// Sets kernel parameters of the container's own namespaces.
fn set_parameters(parameters: &BTreeMap<String, String>) -> Result<(), RunError> {
    for (name, value) in parameters {
        std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
            .map_err(RunError::io(format!("set the kernel parameter {name}")))?;
    }
    Ok(())
}

/// Every limit of a process, by the kernel's number.
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// Limits as a fresh system has them, whatever the agent's own are, and those asked for. The soft
/// limit of open files stays low because old programs close every number below it.
fn limit_resources(asked: &[(u32, Option<u64>, Option<u64>)]) -> Result<(), RunError> {
    let limits = [
        (Resource::Nofile, Some(1024), Some(524_288)),
        (Resource::Core, Some(0), None),
        (Resource::Nproc, None, None),
    ];
    for (resource, current, maximum) in limits {
        // An agent without the right to raise limits passes its own on.
        let raised = setrlimit(resource, Rlimit { current, maximum });
        if raised == Err(rustix::io::Errno::PERM) {
            continue;
        }
        raised
            .map_err(io::Error::from)
            .map_err(RunError::io(format!("set the limit {resource:?}")))?;
    }
    for &(number, current, maximum) in asked {
        let resource = usize::try_from(number)
            .ok()
            .and_then(|at| RESOURCES.get(at));
        let resource = *resource.ok_or_else(|| {
            RunError::Refused(format!("there is no process limit of number {number}"))
        })?;
        setrlimit(resource, Rlimit { current, maximum })
            .map_err(io::Error::from)
            .map_err(RunError::io(format!("set the limit {resource:?}")))?;
    }
    Ok(())
}

/// Every signal does its default again and none is blocked.
#[allow(
    unsafe_code,
    reason = "sigaction can install handlers; here it only removes them"
)]
fn reset_signals() -> Result<(), RunError> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|&s| s != Signal::SIGKILL && s != Signal::SIGSTOP) {
        // SAFETY: the default disposition runs no code of this process.
        unsafe { sigaction(signal, &default) }.map_err(step("reset signals"))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(step("unblock signals"))
}

/// Gives up what the container's user shall not have. The order matters: groups and capabilities
/// can only be changed while this is still root, and so can the filter of system calls be set unless
/// new privileges are given up; then it comes last and need not let through what is done here.
fn become_user(
    identity: &Identity,
    kept: CapabilitySet,
    filter: Option<&[Instruction]>,
    no_new_privileges: bool,
) -> Result<(), RunError> {
    let groups: Vec<_> = identity
        .groups
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&groups).map_err(step("set supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(step("set the group"))?;
    if let Some(filter) = filter.filter(|_| !no_new_privileges) {
        seccomp::install(filter)?;
    }
    capabilities::bound(kept)
        .map_err(io::Error::from)
        .map_err(RunError::io("restrict capabilities"))?;
    setresuid(uid, uid, uid).map_err(step("set the user"))?;
    // Whoever stops being root has none from here on. What root loses it loses last: changing the
    // user takes one, too.
    let held = match identity.uid {
        0 => kept,
        _ => CapabilitySet::empty(),
    };
    capabilities::hold(held)
        .map_err(io::Error::from)
        .map_err(RunError::io("restrict capabilities"))?;
    // The container never outlives the process that waits for it.
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill)
        .map_err(io::Error::from)
        .map_err(RunError::io("tie the container to its monitor"))?;
    match filter.filter(|_| no_new_privileges) {
        Some(filter) => seccomp::install(filter),
        None => Ok(()),
    }
}
