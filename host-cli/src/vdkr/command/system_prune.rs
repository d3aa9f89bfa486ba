//! `vdkr system prune`: containers that do not run, then the images and volumes that nothing needs.

use vdkr_core::channel::message::{Reply, Request, VolumeAction};

use super::{
    container::prune as containers,
    prune::{confirm, images, tell, tell_removed},
    wrong_reply,
};
use crate::vdkr::{
    error::{Error, Result},
    image_args::SystemPruneArgs,
    session::{interruptible, with_session},
    settings::Settings,
};

/// Asks unless told not to, and removes.
pub async fn run(settings: &Settings, args: &SystemPruneArgs) -> Result<u8> {
    let filters = containers::filters(&args.filter)?;
    if args.volumes && !filters.is_empty() {
        return Err(Error::usage("--filter does not tell volumes apart")
            .with_hint("prune them on their own: vdkr volume prune"));
    }
    let dry_run = args.dry_run;
    let question = format!(
        "all containers that do not run, {}{}, and what interrupted pulls left",
        match args.all {
            true => "all images that no other container uses",
            false => "all images without a name",
        },
        match args.volumes {
            true => ", all anonymous volumes that no other container uses",
            false => "",
        },
    );
    if !args.force && !dry_run && !interruptible(async { confirm(&question) }).await? {
        return Ok(0);
    }
    let (removed, volumes, pruned) = with_session(settings, "vdkr system prune", async |session| {
        let removed = containers::remove(session, settings, &filters, dry_run).await?;
        let volumes = match args.volumes && !dry_run {
            true => {
                let action = VolumeAction::Prune { all: false };
                match session.ask(&Request::Volume { action }).await? {
                    Reply::VolumesRemoved { names, freed } => (names, freed),
                    other => return Err(wrong_reply(&other)),
                }
            }
            false => (Vec::new(), 0),
        };
        let pruned = images(session, settings, args.all, dry_run, &filters).await?;
        Ok((removed, volumes, pruned))
    })
    .await?;
    tell_removed("Containers", &removed, dry_run);
    tell_removed("Volumes", &volumes.0, dry_run);
    tell(&(pruned.0, pruned.1.saturating_add(volumes.1)), dry_run);
    Ok(0)
}
