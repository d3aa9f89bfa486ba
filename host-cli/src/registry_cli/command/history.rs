//! `history`: what a tag pointed to before.

use anyhow::{Result, anyhow};
use clap::Args;
use vdkr_core::extension::History;
use vdkr_core::reference::Reference;
use vdkr_transfer::TransferError;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;
use crate::vdkr::human::columns;

/// Options of `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// IMAGE[:TAG]; the tag is latest unless given
    pub image: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the targets of a tag, newest first.
pub async fn run(config: &Config, args: &HistoryArgs) -> Result<()> {
    let image = in_registry(&args.image, &config.registry()?)?;
    if image.digest().is_some() {
        return Err(anyhow!(
            "{}: a digest always means the same; give a tag",
            args.image
        ))
        .exit(Exit::Usage);
    }
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let history = of(&remote, &image).await?;
    let history = history.ok_or_else(|| {
        anyhow!(
            "{} keeps no history of its tags: it is another kind of registry",
            remote.host()
        )
    })?;
    if args.json {
        out!("{}", serde_json::to_string_pretty(&history)?);
        return Ok(());
    }
    let mut rows = vec![["DIGEST", "SINCE", "STATE"].map(str::to_owned).to_vec()];
    for entry in &history.entries {
        let state = match (entry.current, entry.available, entry.deleted) {
            (true, true, _) => "current",
            (true, false, _) => "current, damaged",
            (false, true, None) => "can be rolled back to",
            (false, true, Some(_)) => "deleted, can be rolled back to",
            (false, false, _) => "gone",
        };
        rows.push(vec![
            entry.digest.to_string(),
            time(entry.since),
            state.to_owned(),
        ]);
    }
    out!("{}", columns(&rows).trim_end());
    Ok(())
}

/// What a tag pointed to; `None`: the registry keeps no history.
pub async fn of(remote: &Remote, image: &Reference) -> Result<Option<History>> {
    let repository = remote.repository(image.repository())?;
    let tag = image.tag_or_latest();
    match remote.client.history(&repository, tag).await {
        Err(TransferError::NotFound { .. }) => {
            Err(anyhow!("not found: {image}")).exit(Exit::NotFound)
        }
        found => Ok(found?),
    }
}

/// Seconds since the epoch in the time zone of this machine.
pub fn time(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(
            || "-".to_owned(),
            |time| {
                let zoned = time.to_zoned(jiff::tz::TimeZone::system());
                zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
            },
        )
}
