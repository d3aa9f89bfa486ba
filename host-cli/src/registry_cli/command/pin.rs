//! `pin` and `unpin`: images that are kept whether a tag names them or not.

use anyhow::{Result, anyhow};
use clap::Args;
use vdkr_core::reference::Selector;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;

/// Options of `pin` and `unpin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// IMAGE:TAG (what it points to now) or IMAGE@DIGEST
    pub image: String,
}

/// Pins an image, or takes the pin away.
pub async fn run(config: &Config, args: &PinArgs, pinned: bool) -> Result<()> {
    let image = in_registry(&args.image, &config.registry()?)?.or_latest();
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let repository = remote.repository(image.repository())?;
    let digest = match image.selector() {
        Selector::Digest(digest) => digest.clone(),
        selector @ Selector::Tag(_) => {
            remote
                .client
                .head_manifest_at_origin(&repository, selector)
                .await?
                .ok_or_else(|| anyhow!("not found: {image}"))
                .exit(Exit::NotFound)?
                .digest
        }
    };
    if !remote.client.pin(&repository, &digest, pinned).await? {
        let what = if pinned { "not found" } else { "not pinned" };
        return Err(anyhow!("{what}: {repository}@{digest}")).exit(Exit::NotFound);
    }
    let verb = if pinned { "Pinned" } else { "Unpinned" };
    out!("{verb} {repository}@{digest}");
    Ok(())
}
