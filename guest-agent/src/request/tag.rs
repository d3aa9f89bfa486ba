//! `tag`: one more name for an image.

use vdkr_core::channel::message::Done;

use super::Agent;
use crate::image;

/// Gives the image `source` the name `target` as well.
pub fn tag(agent: &Agent, source: &str, target: &str) -> Done {
    Ok(image::tag(agent.store()?, source, target)?)
}
