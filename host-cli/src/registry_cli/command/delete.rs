//! `delete`: one tag and nothing else, or a digest with the tags that name it.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use vdkr_core::digest::Digest;
use vdkr_core::extension::GcOptions;
use vdkr_core::reference::{Reference, Selector};
use vdkr_transfer::Repository;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::args::DeleteArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::confirm::confirm;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;
use crate::vdkr::human::size;

/// Tags that are asked for at the same time.
const PARALLEL: usize = 8;
/// How long the sum of what can be freed may take; in a large registry it is left out.
const SUM: Duration = Duration::from_secs(10);

/// Deletes what `IMAGE:TAG` or `IMAGE@DIGEST` names.
pub async fn run(config: &Config, args: &DeleteArgs) -> Result<()> {
    let image = in_registry(&args.image, &config.registry()?)?;
    if image.tag().is_none() && image.digest().is_none() {
        return Err(anyhow::anyhow!(
            "{}: a tag or a digest is required, so that nothing more is deleted than you mean: {0}:TAG or {0}@sha256:…",
            args.image
        ))
        .exit(Exit::Usage);
    }
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let repository = remote.repository(image.repository())?;
    // What is not there is said before anything is asked.
    if remote
        .client
        .head_manifest_at_origin(&repository, image.selector())
        .await?
        .is_none()
    {
        return Err(anyhow::anyhow!("not found: {image}")).exit(Exit::NotFound);
    }
    if let Some(digest) = image.digest() {
        let tags = tags_of(&remote, &repository, digest).await?;
        ask(&image, &tags, args.yes)?;
    }
    let before = reclaimable(&remote).await;
    if !remote
        .client
        .delete_manifest(&repository, image.selector())
        .await?
    {
        return Err(anyhow::anyhow!("not found: {image}")).exit(Exit::NotFound);
    }
    out!("Deleted {image}");
    if let Some(before) = before
        && let Some(after) = reclaimable(&remote).await
    {
        let freed = after.saturating_sub(before);
        eprintln!(
            "container-registry gc can free {} for it ({} bytes), {} in all, once unused for its grace",
            size(freed),
            freed,
            size(after)
        );
    }
    Ok(())
}

/// Bytes that garbage collection would free without any grace. `None`: the registry cannot tell, or not
/// soon.
async fn reclaimable(remote: &Remote) -> Option<u64> {
    let options = GcOptions {
        dry_run: true,
        grace: 0,
        ..GcOptions::default()
    };
    let sum = remote.client.collect_garbage(remote.host(), &options);
    let (report, _) = tokio::time::timeout(SUM, sum).await.ok()?.ok()??;
    Some(report.freed_bytes)
}

async fn tags_of(remote: &Remote, repository: &Repository, digest: &Digest) -> Result<Vec<String>> {
    let tags = remote.client.tags(repository).await?;
    let heads: Vec<(String, bool)> = stream::iter(tags)
        .map(|tag| async move {
            let head = remote
                .client
                .head_manifest_at_origin(repository, Selector::Tag(&tag))
                .await?;
            anyhow::Ok((tag, head.is_some_and(|head| head.digest == *digest)))
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let naming = heads.into_iter().filter(|(_, names)| *names);
    Ok(naming.map(|(tag, _)| tag).collect())
}

fn ask(image: &Reference, tags: &[String], yes: bool) -> Result<()> {
    if tags.is_empty() || yes {
        return Ok(());
    }
    eprintln!("Deleting {image} also drops these tags: {}", tags.join(" "));
    if !confirm("Proceed?", false)? {
        bail!("nothing was deleted");
    }
    Ok(())
}
