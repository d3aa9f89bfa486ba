//! `vdkr pause`: the processes of containers frozen.

use vdkr_core::channel::message::ContainerRequest;

use super::each;
use crate::vdkr::{container_args::NamesArgs, error::Result, settings::Settings};

/// Freezes one after the other and prints their names.
pub async fn run(settings: &Settings, args: &NamesArgs) -> Result<u8> {
    each(settings, "vdkr pause", &args.containers, |name| {
        ContainerRequest::Pause { name }
    })
    .await
}
