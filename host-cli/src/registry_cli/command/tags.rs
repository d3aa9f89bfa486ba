//! `tags`: the tags of one image.

use anyhow::{Result, anyhow};
use serde_json::json;
use vdkr_transfer::TransferError;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::args::TagsArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;

/// Prints the tags, one a line, or `{"name": …, "tags": […]}`.
pub async fn run(config: &Config, args: &TagsArgs) -> Result<()> {
    let image = in_registry(&args.image, &config.registry()?)?;
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let repository = remote.repository(image.repository())?;
    let tags = match remote.client.tags(&repository).await {
        Err(TransferError::NotFound { .. }) => {
            return Err(anyhow!("image not found: {repository}")).exit(Exit::NotFound);
        }
        other => other?,
    };
    if tags.is_empty() {
        return Err(anyhow!("image not found: {repository} has no tags")).exit(Exit::NotFound);
    }
    if args.json {
        out!("{}", json!({ "name": image.repository(), "tags": tags }));
    } else {
        for tag in tags {
            out!("{tag}");
        }
    }
    Ok(())
}
