//! `vdkr rm`: containers removed.

use vdkr_core::channel::message::ContainerRequest;

use super::each_of;
use crate::{
    exit::Exit,
    vdkr::{
        container_args::RmArgs, error::Result, granted, session::with_session, settings::Settings,
    },
};

/// Removes one after the other and prints their names.
pub async fn run(settings: &Settings, args: &RmArgs) -> Result<u8> {
    let outcomes = with_session(settings, "vdkr rm", async |session| {
        let outcomes = each_of(session, &args.containers, |name| ContainerRequest::Remove {
            name,
            force: args.force,
            volumes: args.volumes,
        })
        .await?;
        granted::forget_gone(session, settings).await?;
        Ok(outcomes)
    });
    let outcomes = outcomes.await?.into_iter();
    Ok(Exit::of_several(outcomes.map(|outcome| outcome.of_removal(args.force))).code())
}
