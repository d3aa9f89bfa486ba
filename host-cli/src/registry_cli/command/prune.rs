//! `prune`: deletes the tags that no rule keeps.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::extension::ImageEntry;
use vdkr_core::retention::{Candidate, Pattern, Policy, Verdict, decide, parse_age};
use vdkr_transfer::TransferError;

use super::history::time;
use crate::exit::Exit;
use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::confirm::confirm;
use crate::registry_cli::error::{WithExit as _, exit_of, words};
use crate::registry_cli::remote::Remote;
use crate::vdkr::human::columns;

/// Tags that are deleted at the same time.
const PARALLEL: usize = 8;

/// Options of `prune`.
#[derive(Debug, Args)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own on the command line"
)]
pub struct PruneArgs {
    /// Repositories; '*' and '?' match, a name without a slash gets the namespace [default: all]
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Keep the newest N images of each repository; tags of one image count as one
    #[arg(long, value_name = "N")]
    pub keep_last: Option<usize>,
    /// Keep what was pushed within this time (12h, 30d, 8w)
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub younger_than: Option<u64>,
    /// Keep tags that match ('*' and '?'; repeatable)
    #[arg(long, value_name = "GLOB", value_parser = Pattern::parse)]
    pub keep: Vec<Pattern>,
    /// Judge only tags that match; others stay ('*' and '?'; repeatable)
    #[arg(long = "match", value_name = "GLOB", value_parser = Pattern::parse)]
    pub only: Vec<Pattern>,
    /// Let a repository lose its last tag
    #[arg(long)]
    pub allow_empty: bool,
    /// Show for each tag why it stays or goes
    #[arg(long)]
    pub explain: bool,
    /// Only show what would be deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A tag and what becomes of it.
struct Judged {
    repository: String,
    candidate: Candidate,
    verdict: Verdict,
}

/// Judges every tag, and deletes those that no rule keeps.
pub async fn run(config: &Config, args: &PruneArgs) -> Result<Exit> {
    let policy = Policy {
        keep_last: args.keep_last,
        younger_than: args.younger_than,
        keep: args.keep.clone(),
        only: args.only.clone(),
        may_empty: args.allow_empty,
    };
    if !policy.has_rule() {
        return Err(anyhow!(
            "nothing says what to keep: give --keep-last N, --younger-than AGE or --keep GLOB"
        ))
        .exit(Exit::Usage);
    }
    let wanted = repositories(config, &args.images)?;
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let images = remote.client.images(remote.host()).await?;
    let images = images.ok_or_else(|| {
        anyhow!(
            "{} does not tell when tags were pushed: it is another kind of registry; use its own \
             retention",
            remote.host()
        )
    })?;
    let judged = judge(images, &wanted, &policy, now());
    if judged.is_empty() && !args.images.is_empty() {
        return Err(anyhow!("not found: {}", args.images.join(" "))).exit(Exit::NotFound);
    }
    if args.json {
        out!("{}", serde_json::to_string_pretty(&as_json(&judged))?);
    } else if args.explain {
        explain(&judged);
    }
    let doomed: Vec<_> = judged.iter().filter(|tag| !tag.verdict.keeps()).collect();
    if doomed.is_empty() || args.dry_run {
        if !args.json && !args.explain {
            for tag in &doomed {
                out!("{}:{}", tag.repository, tag.candidate.tag);
            }
        }
        eprintln!("{} of {} tags would be deleted", doomed.len(), judged.len());
        return Ok(Exit::Done);
    }
    if !args.yes {
        if !args.explain && !args.json {
            for tag in &doomed {
                eprintln!("{}:{}: {}", tag.repository, tag.candidate.tag, tag.verdict);
            }
        }
        let question = format!("Delete {} of {} tags?", doomed.len(), judged.len());
        if !confirm(&question, false)? {
            eprintln!("Cancelled.");
            return Ok(Exit::Done);
        }
    }
    delete(&remote, &doomed, args.json).await
}

async fn delete(remote: &Remote, doomed: &[&Judged], quiet: bool) -> Result<Exit> {
    let outcomes: Vec<Exit> = stream::iter(doomed)
        .map(|tag| async move {
            let name = format!("{}:{}", tag.repository, tag.candidate.tag);
            let (tag, digest) = (tag, &tag.candidate.digest);
            let done = match remote.repository(&tag.repository) {
                Ok(repository) => remote
                    .client
                    .delete_tag_at(&repository, &tag.candidate.tag, digest)
                    .await
                    .map_err(anyhow::Error::from),
                Err(error) => Err(error),
            };
            match done {
                // Gone already is what was wanted.
                Ok(_) => {
                    if !quiet {
                        out!("Deleted {name}");
                    }
                    Exit::Done
                }
                Err(error) => {
                    let cause = error.downcast_ref::<TransferError>();
                    if matches!(cause, Some(TransferError::Conflict { .. })) {
                        eprintln!("{name} was pushed again meanwhile, and stays");
                        Exit::Done
                    } else {
                        eprintln!("error: {name}: {}", words(&error));
                        exit_of(&error)
                    }
                }
            }
        })
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    eprintln!("Free the space with: container-registry gc");
    Ok(Exit::of_several(outcomes))
}

/// The repositories that the arguments mean.
fn repositories(config: &Config, images: &[String]) -> Result<Vec<Pattern>> {
    let namespace = config.registry()?.namespace().map(str::to_owned);
    images
        .iter()
        .map(|image| {
            let name = match &namespace {
                Some(namespace) if !image.contains('/') => format!("{namespace}/{image}"),
                _ => image.clone(),
            };
            Pattern::parse(&name).map_err(|error| anyhow!("{image}: {error}"))
        })
        .collect::<Result<_>>()
        .exit(Exit::Usage)
}

fn judge(images: Vec<ImageEntry>, wanted: &[Pattern], policy: &Policy, now: u64) -> Vec<Judged> {
    let mut by_repository: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for image in images {
        let meant = wanted.is_empty() || wanted.iter().any(|want| want.matches(&image.repository));
        let (Some(tag), Some(digest)) = (image.tag, image.digest) else {
            continue;
        };
        if meant {
            by_repository
                .entry(image.repository)
                .or_default()
                .push(Candidate {
                    tag,
                    digest,
                    time: image.pushed,
                    nanos: image.pushed_nanos,
                    pinned: image.pinned,
                });
        }
    }
    let mut judged = Vec::new();
    for (repository, tags) in by_repository {
        let verdicts = decide(policy, &tags, now);
        judged.extend(
            tags.into_iter()
                .zip(verdicts)
                .map(|(candidate, verdict)| Judged {
                    repository: repository.clone(),
                    candidate,
                    verdict,
                }),
        );
    }
    judged
}

fn explain(judged: &[Judged]) {
    let mut rows = vec![["IMAGE", "PUSHED", "", "WHY"].map(str::to_owned).to_vec()];
    for tag in judged {
        rows.push(vec![
            format!("{}:{}", tag.repository, tag.candidate.tag),
            tag.candidate.time.map_or_else(|| "-".to_owned(), time),
            if tag.verdict.keeps() {
                "keep"
            } else {
                "delete"
            }
            .to_owned(),
            tag.verdict.to_string(),
        ]);
    }
    out!("{}", columns(&rows).trim_end());
}

fn as_json(judged: &[Judged]) -> Vec<serde_json::Value> {
    let entry = |tag: &Judged| {
        let digest: &Digest = &tag.candidate.digest;
        json!({
            "repository": tag.repository,
            "tag": tag.candidate.tag,
            "digest": digest,
            "pushed": tag.candidate.time,
            "keep": tag.verdict.keeps(),
            "reason": tag.verdict.to_string(),
        })
    };
    judged.iter().map(entry).collect()
}

/// Seconds since the epoch.
fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
