//! `list`: all images with their tags.

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use vdkr_transfer::TransferError;

use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::remote::Remote;

/// Repositories whose tags are asked for at the same time.
const PARALLEL: usize = 8;

/// Prints `repository: tag tag …` for each repository.
pub async fn run(config: &Config, as_json: bool) -> Result<()> {
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let names = remote.client.catalog(remote.host()).await?;
    let remote = &remote;
    let images: Vec<(String, Vec<String>)> = stream::iter(names)
        .map(|name| async move {
            let repository = remote.repository(&name)?;
            match remote.client.tags(&repository).await {
                Ok(tags) => anyhow::Ok((name, tags)),
                // Removed since the catalog was read, or never given a tag.
                Err(TransferError::NotFound { .. }) => Ok((name, Vec::new())),
                Err(error) => Err(error.into()),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    if as_json {
        let images: Vec<_> = images
            .iter()
            .map(|(name, tags)| json!({ "name": name, "tags": tags }))
            .collect();
        out!("{}", serde_json::to_string_pretty(&images)?);
        return Ok(());
    }
    eprintln!("Images in {}:", remote.host());
    if images.is_empty() {
        eprintln!("  (none)");
    }
    for (name, tags) in images {
        out!(
            "{name}: {}",
            if tags.is_empty() {
                "(no tags)".to_owned()
            } else {
                tags.join(" ")
            }
        );
    }
    Ok(())
}
