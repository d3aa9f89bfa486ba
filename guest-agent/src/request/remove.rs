//! `remove`: names and content out of the store.

use std::time::Duration;

use tokio::task::spawn_blocking;
use vdkr_core::channel::message::{Done, Failure, FailureCode};

use super::Agent;
use crate::image;

/// How long a container that has ended may still be cleaned up, and how often that is looked at.
const CLEANING: (u32, Duration) = (250, Duration::from_millis(20));

/// Removes images by name or id. One that a container has stays, by force without a name.
///
/// A container's end is told before it is cleaned up; what comes right after must not find its
/// image in use.
pub async fn remove(agent: &Agent, names: &[String], force: bool) -> Done {
    let (mut looks, pause) = CLEANING;
    loop {
        let cleaning = agent.book().cleaning.get() > 0 && looks > 0;
        let (store, names) = (agent.store()?.clone(), names.to_vec());
        let force = force && !cleaning;
        // The disk may take its time.
        let removed = spawn_blocking(move || image::remove(&store, &names, force)).await;
        match removed.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))? {
            Err(_) if cleaning => {
                looks -= 1;
                tokio::time::sleep(pause).await;
            }
            removed => return Ok(removed?),
        }
    }
}
