//! `delete`: one tag and nothing else, or a digest with the tags that name it.

use std::io::{IsTerminal as _, Write as _, stderr, stdin};

use anyhow::{Result, bail};
use vdkr_core::digest::Digest;
use vdkr_core::reference::{Reference, Selector};
use vdkr_transfer::Repository;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::args::DeleteArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;

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
    if let Some(digest) = image.digest() {
        let tags = tags_of(&remote, &repository, digest).await?;
        confirm(&image, &tags, args.yes)?;
    }
    if !remote
        .client
        .delete_manifest(&repository, image.selector())
        .await?
    {
        return Err(anyhow::anyhow!("not found: {image}")).exit(Exit::NotFound);
    }
    out!("Deleted {image}");
    Ok(())
}

async fn tags_of(remote: &Remote, repository: &Repository, digest: &Digest) -> Result<Vec<String>> {
    let mut naming = Vec::new();
    for tag in remote.client.tags(repository).await? {
        let head = remote
            .client
            .head_manifest_at_origin(repository, Selector::Tag(&tag))
            .await?;
        if head.is_some_and(|head| head.digest == *digest) {
            naming.push(tag);
        }
    }
    Ok(naming)
}

fn confirm(image: &Reference, tags: &[String], yes: bool) -> Result<()> {
    if tags.is_empty() || yes {
        return Ok(());
    }
    eprintln!("Deleting {image} also drops these tags: {}", tags.join(" "));
    if !stdin().is_terminal() {
        bail!("nothing was deleted; add --yes to delete it with its tags");
    }
    eprint!("Proceed? [y/N] ");
    stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was deleted");
    }
    Ok(())
}
