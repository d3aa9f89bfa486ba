//! Containers whose processes stand still.

use std::rc::Rc;

use vdkr_core::channel::message::{ContainerState, Failure, FailureCode};

use super::Entry;

/// Freezes or thaws a container.
pub fn freeze(entry: &Entry, frozen: bool) -> Result<(), Failure> {
    let name = entry.name();
    let failure = |message: String| Failure::new(FailureCode::Failed, message);
    let state = entry.state();
    let (Some(live), true) = (entry.live(), state.is_live()) else {
        return Err(failure(format!("container {name} is not running")));
    };
    match (state, frozen) {
        (ContainerState::Paused, true) => {
            return Err(failure(format!("container {name} is already paused")));
        }
        (ContainerState::Running, false) => {
            return Err(failure(format!("container {name} is not paused")));
        }
        _ => {}
    }
    let Some(group) = live.container.cgroup() else {
        return Err(failure(
            "this machine has no cgroups to freeze with".to_owned(),
        ));
    };
    crate::run::cgroup::freeze(group, frozen)
        .map_err(|error| failure(format!("cannot freeze container {name}: {error}")))?;
    entry.update(|now| {
        now.state = if frozen {
            ContainerState::Paused
        } else {
            ContainerState::Running
        };
    });
    Ok(())
}

/// A container that is frozen as long as this lives.
#[derive(Debug)]
pub struct Frozen(Rc<Entry>);

/// Freezes a container until the answer is dropped; nothing for one that does not run, or that is
/// frozen already.
pub fn for_a_while(entry: &Rc<Entry>) -> Result<Option<Frozen>, Failure> {
    if entry.state() != ContainerState::Running {
        return Ok(None);
    }
    freeze(entry, true)?;
    Ok(Some(Frozen(Rc::clone(entry))))
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed, or thawed by somebody else.
        if self.0.state() == ContainerState::Paused {
            let _ = freeze(&self.0, false);
        }
    }
}
