//! `inspect`: descriptions of images.

use vdkr_core::channel::message::Done;

use super::Agent;
use crate::image;

/// Describes images by name or id.
pub fn inspect(agent: &Agent, names: &[String]) -> Done {
    Ok(image::inspect(agent.store()?, names)?)
}
