//! `catalog`: the repositories of the registry.

use anyhow::Result;
use serde_json::json;

use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::remote::Remote;

/// Prints every repository's name, one a line, or `{"repositories": […]}`.
pub async fn run(config: &Config, as_json: bool) -> Result<()> {
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let repositories = remote.client.catalog(remote.host()).await?;
    if as_json {
        out!("{}", json!({ "repositories": repositories }));
    } else {
        for name in repositories {
            out!("{name}");
        }
    }
    Ok(())
}
