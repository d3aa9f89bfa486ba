//! `prune`: images that nothing names, and what interrupted pulls left.

use tokio::task::spawn_blocking;
use vdkr_core::channel::message::{Done, Failure, FailureCode, PruneRequest, Reply};

use super::Agent;

/// Removes, or says what would be removed.
pub async fn prune(agent: &Agent, request: PruneRequest) -> Done {
    let store = agent.store()?.clone();
    let pruned =
        spawn_blocking(move || store.prune(request.all, request.only.as_deref(), request.dry_run));
    match pruned.await {
        Ok(pruned) => {
            let (removed, freed) = pruned?;
            Ok(Reply::Pruned { removed, freed })
        }
        Err(error) => Err(Failure::new(FailureCode::Failed, error.to_string())),
    }
}
