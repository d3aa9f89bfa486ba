//! `pull`: an image into the store.

use vdkr_core::channel::message::{Done, PullRequest, Reply};

use super::{Agent, cancelled};
use crate::channel::Stream;

/// Pulls an image; progress goes out as events.
pub async fn pull(agent: &Agent, request: &PullRequest, stream: &Stream) -> Done {
    let store = agent.store()?;
    let cancel = stream.cancelled();
    let pulled = crate::pull::pull(
        store,
        &request.reference,
        &request.settings,
        request.platform.as_deref(),
        &|event| stream.event(&event),
        cancel,
    )
    .await;
    match pulled {
        Ok(pulled) => Ok(Reply::Pulled(pulled)),
        Err(_) if cancel.is_cancelled() => Err(cancelled()),
        Err(error) => Err(error.into()),
    }
}
