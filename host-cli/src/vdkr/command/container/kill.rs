//! `vdkr kill`: a signal for containers.

use vdkr_core::channel::message::ContainerRequest;

use super::{each, read_signal};
use crate::vdkr::{container_args::KillArgs, error::Result, settings::Settings};

/// Sends it to one after the other and prints their names.
pub async fn run(settings: &Settings, args: &KillArgs) -> Result<u8> {
    let signal = read_signal(&args.signal)?;
    each(settings, "vdkr kill", &args.containers, |name| {
        ContainerRequest::Kill { name, signal }
    })
    .await
}
