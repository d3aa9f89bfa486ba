//! `vdkr unpause`: frozen containers that go on.

use vdkr_core::channel::message::ContainerRequest;

use super::each;
use crate::vdkr::{container_args::NamesArgs, error::Result, settings::Settings};

/// Lets one after the other go on and prints their names.
pub async fn run(settings: &Settings, args: &NamesArgs) -> Result<u8> {
    each(settings, "vdkr unpause", &args.containers, |name| {
        ContainerRequest::Unpause { name }
    })
    .await
}
