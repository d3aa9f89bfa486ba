//! `mount_share`, `release` and `keep_share`: directories of the host.

use std::{path::Path, rc::Rc};

use vdkr_core::channel::message::{Done, Event, Failure, FailureCode, Reply};

use super::Agent;
use crate::{boot::modules, channel::stream::SharedStream, share::ShareError};

/// Mounts what the host serves on this stream, and relays until it is over.
pub async fn mount(
    agent: &Rc<Agent>,
    share: &str,
    directory: bool,
    read_only: bool,
    stream: &SharedStream,
) -> Done {
    if agent.own_machine {
        let dir = Path::new(modules::DIR);
        let loaded = tokio::task::spawn_blocking(|| modules::load_later(dir, "fuse")).await;
        if let Ok(Err(error)) = loaded {
            return Err(failed(&ShareError::NoFuse(error)));
        }
    }
    let mounted = agent
        .shares
        .mount(share, directory, read_only)
        .map_err(|error| failed(&error))?;
    stream.event(&Event::Mounted);
    mounted.relay(stream, &agent.stopping).await;
    drop(mounted);
    if stream.cancelled().is_cancelled() {
        return Err(Failure::new(FailureCode::Cancelled, "cancelled"));
    }
    Ok(Reply::Unmounted)
}

/// Lets a mount go with its last container.
pub fn release(agent: &Agent, share: &str) -> Done {
    agent.shares.release(share);
    Ok(Reply::Released)
}

/// Takes a release back.
pub fn keep(agent: &Agent, share: String) -> Done {
    match agent.shares.keep(&share) {
        Ok(()) => Ok(Reply::Shared { share }),
        Err(error) => Err(failed(&error)),
    }
}

pub(crate) fn failed(error: &ShareError) -> Failure {
    let code = match error {
        ShareError::Name(_) => FailureCode::Usage,
        ShareError::NoFuse(_) => FailureCode::Unsupported,
        ShareError::Missing(_) => FailureCode::NotFound,
        _ => FailureCode::Failed,
    };
    Failure::new(code, error.to_string())
}
