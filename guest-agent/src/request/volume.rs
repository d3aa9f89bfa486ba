//! `volume`: what containers leave behind and find again.

use std::rc::Rc;

use vdkr_core::channel::message::{Done, Failure, FailureCode, Reply, VolumeAction};

use super::{Agent, mounts};
use crate::volume::{Gone, NewVolume, VolumeError};

/// Carries out one action.
pub async fn volume(agent: &Rc<Agent>, action: VolumeAction) -> Done {
    // Without a usable state disk there is no place for them either.
    agent.store()?;
    let volumes = &agent.volumes;
    let used = |name: &str| mounts::is_used(agent, name);
    match action {
        VolumeAction::Create { name, labels } => {
            let new = NewVolume::named(name).map_err(failed)?;
            let name = create(agent, new.labelled(labels)).await?;
            let volumes = volumes.list(&[name], &used).map_err(failed)?;
            Ok(Reply::Volumes { volumes })
        }
        VolumeAction::List { names } => {
            let volumes = volumes.list(&names, &used).map_err(failed)?;
            Ok(Reply::Volumes { volumes })
        }
        VolumeAction::Remove { names, force } => {
            remove(volumes.discard(&names, force, &used).map_err(failed)?).await
        }
        VolumeAction::Prune { all } => {
            remove(volumes.discard_unused(all, &used).map_err(failed)?).await
        }
        VolumeAction::Unknown => Err(Failure::new(
            FailureCode::Unsupported,
            "the agent does not know this action on volumes",
        )),
    }
}

/// Makes a volume, on a thread that may wait for the disk.
pub(crate) async fn create(agent: &Agent, new: NewVolume) -> Result<String, Failure> {
    let volumes = agent.volumes.clone();
    let made = tokio::task::spawn_blocking(move || volumes.create(new)).await;
    made.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?
        .map_err(failed)
}

async fn remove(mut gone: Gone) -> Done {
    let names = std::mem::take(&mut gone.names);
    let removed = tokio::task::spawn_blocking(move || gone.remove()).await;
    let freed = removed.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?;
    Ok(Reply::VolumesRemoved {
        names,
        freed: freed.map_err(failed)?,
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is given to map_err as it is"
)]
pub(crate) fn failed(error: VolumeError) -> Failure {
    let code = match error {
        VolumeError::Missing(_) => FailureCode::NotFound,
        VolumeError::Name(_) => FailureCode::Usage,
        VolumeError::InUse(_) | VolumeError::Io { .. } => FailureCode::Failed,
    };
    let failure = Failure::new(code, error.to_string());
    match error {
        VolumeError::InUse(_) => failure.with_hint("remove the container first: vdkr rm"),
        _ => failure,
    }
}
