//! `vdkr rename`: another name for a container.

use vdkr_core::channel::message::ContainerRequest;

use super::ask;
use crate::vdkr::{
    container_args::RenameArgs, error::Result, session::with_session, settings::Settings,
};

/// Renames it.
pub async fn run(settings: &Settings, args: &RenameArgs) -> Result<u8> {
    with_session(settings, "vdkr rename", async |session| {
        let request = ContainerRequest::Rename {
            name: args.container.clone(),
            new_name: args.new_name.clone(),
        };
        ask(session, request).await
    })
    .await?;
    Ok(0)
}
