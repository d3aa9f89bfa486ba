//! `images`: the list of the store.

use vdkr_core::channel::message::Done;

use super::Agent;
use crate::image;

/// Lists every name in the store.
pub fn images(agent: &Agent) -> Done {
    Ok(image::images(agent.store()?)?)
}
