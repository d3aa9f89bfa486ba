//! `tag`: one more name for an image.

use tokio::task::spawn_blocking;
use vdkr_core::channel::message::{Done, Failure, FailureCode};

use super::Agent;
use crate::image;

/// Gives the image `source` the name `target` as well.
pub async fn tag(agent: &Agent, source: String, target: String) -> Done {
    let store = agent.store()?.clone();
    // The disk may take its time.
    let tagged = spawn_blocking(move || image::tag(&store, &source, &target)).await;
    Ok(tagged.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))??)
}
