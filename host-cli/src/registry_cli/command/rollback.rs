//! `rollback`: points a tag to what it pointed to before.

use anyhow::{Result, anyhow};
use clap::Args;
use vdkr_core::digest::Digest;
use vdkr_core::reference::{Reference, Selector};
use vdkr_transfer::{IfMatch, TransferError};

use super::history;
use crate::exit::Exit;
use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;

/// Options of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// IMAGE:TAG
    pub image: String,
    /// The image to go back to, instead of the one before [see: history]
    #[arg(long, value_name = "DIGEST")]
    pub to: Option<String>,
}

/// Moves the tag, if nobody else moves it meanwhile.
pub async fn run(config: &Config, args: &RollbackArgs) -> Result<()> {
    let image = in_registry(&args.image, &config.registry()?)?;
    let Some(tag) = image.tag().filter(|_| image.digest().is_none()) else {
        return Err(anyhow!(
            "{}: name the tag to roll back, IMAGE:TAG",
            args.image
        ))
        .exit(Exit::Usage);
    };
    let to = args
        .to
        .as_deref()
        .map(|to| Digest::parse(to).map_err(|error| anyhow!("--to {to}: {error}")))
        .transpose()
        .exit(Exit::Usage)?;
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let repository = remote.repository(image.repository())?;
    let client = &remote.client;
    let current = match client
        .head_manifest_at_origin(&repository, Selector::Tag(tag))
        .await
    {
        // Neither keeps it from pointing to something else again.
        Err(error) if error.is_damaged() => None,
        found => found?.map(|found| found.digest),
    };
    let to = match to {
        Some(to) => to,
        None => before(&remote, &image).await?,
    };
    if current.as_ref() == Some(&to) {
        out!("{image} is {to} already");
        return Ok(());
    }
    let manifest = client
        .find_manifest(&repository, Selector::Digest(&to))
        .await?
        .ok_or_else(|| {
            anyhow!("{repository} does not have {to} any more; see: container-registry history")
        })
        .exit(Exit::NotFound)?;
    let put = client
        .put_manifest(
            &repository,
            Selector::Tag(tag),
            manifest.raw,
            &manifest.media_type,
            Some(current.as_ref().map_or(IfMatch::Absent, IfMatch::Digest)),
        )
        .await;
    match put {
        Ok(_) => {}
        Err(TransferError::Conflict { .. }) => {
            return Err(anyhow!(
                "{image} was moved by somebody else meanwhile; nothing was changed"
            ));
        }
        Err(error) => return Err(error.into()),
    }
    out!("{image} {to}");
    match current {
        Some(current) => eprintln!("It was {current}"),
        None => eprintln!("It was deleted or damaged"),
    }
    Ok(())
}

async fn before(remote: &Remote, image: &Reference) -> Result<Digest> {
    let history = history::of(remote, image)
        .await?
        .ok_or_else(|| {
            anyhow!(
                "{} keeps no history of its tags; say where to go with --to DIGEST",
                remote.host()
            )
        })
        .exit(Exit::Usage)?;
    history
        .entries
        .into_iter()
        .find(|entry| !entry.current && entry.available)
        .map(|entry| entry.digest)
        .ok_or_else(|| anyhow!("{image} has no earlier image to go back to"))
        .exit(Exit::NotFound)
}
