//! One more process in a container that runs.
//!
//! The monitor enters the container's namespaces; its child is the new process, and becomes what
//! the first one is in everything but the set-up of the root.

use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};
use rustix::process::DumpableBehavior;

use super::{
    EXIT_NOT_CREATED, Report, RunError,
    sandbox::{self, Inherited, step},
    spec::ContainerSpec,
    user,
};

/// Enters the namespaces of a container, given by its first process.
pub fn enter(target: BorrowedFd<'_>) -> Result<(), RunError> {
    // Until it executes the command, this process shows the agent's own file and memory to those
    // in the container.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(std::io::Error::from)
        .map_err(RunError::io("hide the agent from the container"))?;
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID;
    setns(target, all).map_err(step("enter the container's namespaces"))
}

/// Makes this process the command. Only returns when that fails, with the report of it.
pub fn become_process(spec: &ContainerSpec, privileged: bool, inherited: Inherited) -> Report {
    match prepare(spec, privileged, inherited) {
        Ok(env) => sandbox::run_command(spec, &env),
        Err(error) => Report::Failed {
            status: EXIT_NOT_CREATED,
            message: error.to_string(),
        },
    }
}

fn prepare(
    spec: &ContainerSpec,
    privileged: bool,
    inherited: Inherited,
) -> Result<Vec<String>, RunError> {
    let Inherited {
        agent,
        cgroup,
        stdio,
    } = inherited;
    sandbox::join_cgroup(cgroup)?;
    let identity = user::resolve_here(&spec.process.user, &spec.isolation.groups)
        .map_err(|error| RunError::Setup(error.to_string()))?;
    let _ = nix::unistd::setsid();
    sandbox::attach_streams(spec, &agent, &stdio, identity.uid, false)?;
    drop((agent, stdio));
    sandbox::take_on(spec, &identity, privileged)
}
