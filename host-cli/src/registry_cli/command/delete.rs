//! `delete`: one tag and nothing else, or a digest with the tags that need it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use vdkr_core::digest::Digest;
use vdkr_core::extension::{GcOptions, GcReport};
use vdkr_core::manifest::{Descriptor, ManifestKind, media_type};
use vdkr_core::reference::{Reference, Selector};
use vdkr_transfer::{Repository, TransferError};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::args::DeleteArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::confirm::confirm;
use crate::registry_cli::error::{WithExit as _, exit_of, words};
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;
use crate::vdkr::human::size;

/// Tags that are asked for at the same time.
const PARALLEL: usize = 8;
/// Most indexes below one tag that are looked into.
const MAX_INDEXES: usize = 100;
/// How long the sum of what can be freed may take; in a large registry it is left out.
const SUM: Duration = Duration::from_secs(10);

/// Deletes what each `IMAGE:TAG` or `IMAGE@DIGEST` names. One that fails does not stop the others.
pub async fn run(config: &Config, args: &DeleteArgs) -> Result<Exit> {
    let mut images = Vec::new();
    for typed in &args.images {
        let image = in_registry(typed, &config.registry()?)?;
        if image.tag().is_none() && image.digest().is_none() {
            return Err(anyhow!(
                "{typed}: a tag or a digest is required, so that nothing more is deleted than you mean: {typed}:TAG or {typed}@sha256:…"
            ))
            .exit(Exit::Usage);
        }
        images.push(image);
    }
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let mut outcomes = Vec::new();
    let mut deleted = false;
    for image in &images {
        match delete(&remote, image, args.yes).await {
            Ok(is_gone) => {
                deleted |= is_gone;
                outcomes.push(Exit::Done);
            }
            Err(error) if images.len() == 1 => return Err(error),
            Err(error) => {
                eprintln!("error: {}", words(&error));
                outcomes.push(exit_of(&error));
            }
        }
    }
    if deleted && let Some(report) = reclaimable(&remote).await {
        eprintln!("{}", sum(&report));
    }
    Ok(Exit::of_several(outcomes))
}

/// Deletes one, and says whether it is gone: who is asked may decide otherwise.
async fn delete(remote: &Remote, image: &Reference, yes: bool) -> Result<bool> {
    let repository = remote.repository(image.repository())?;
    let missing = || anyhow!("not found: {image}");
    // What is not there is said before anything is asked.
    let found = look(remote, &repository, image.selector()).await?;
    let Some(found) = found else {
        return Err(missing()).exit(Exit::NotFound);
    };
    if let Some(digest) = image.digest() {
        let users = Users::of(remote, &repository, digest).await?;
        for pinned in std::iter::once(digest).chain(&users.indexes) {
            if remote.client.is_pinned(&repository, pinned).await? {
                bail!(
                    "{repository}@{pinned} is pinned{}; unpin it first: container-registry unpin {repository}@{pinned}",
                    if pinned == digest {
                        ""
                    } else {
                        " and needs it"
                    }
                );
            }
        }
        if !users.ask(image, yes)? {
            eprintln!("Cancelled.");
            return Ok(false);
        }
    }
    let deleted = remote.client.delete_manifest(&repository, image.selector());
    let done = match (deleted.await, image.digest()) {
        (Err(error), None) if refuses_tags(&error) => {
            let users = Users::of(remote, &repository, &found.digest).await?;
            let others = users.tags.iter().filter(|tag| image.tag() != Some(tag));
            let others: Vec<_> = others.map(String::as_str).collect();
            let also = if others.is_empty() {
                String::new()
            } else {
                format!(" (also drops: {})", others.join(" "))
            };
            return Err(anyhow::Error::new(error).context(format!(
                "{} may delete by digest only: container-registry delete {repository}@{}{also}",
                remote.host(),
                found.digest
            )));
        }
        (done, _) => done?,
    };
    if !done {
        return Err(missing()).exit(Exit::NotFound);
    }
    out!("Deleted {image}");
    Ok(true)
}

/// What a tag or digest is. What the registry says is damaged there has neither type nor size, and can
/// be deleted all the same; what a damaged tag points to is in its history.
async fn look(
    remote: &Remote,
    repository: &Repository,
    selector: Selector<'_>,
) -> Result<Option<Descriptor>> {
    let head = remote.client.head_manifest_at_origin(repository, selector);
    let error = match head.await {
        Err(error) if error.is_damaged() => error,
        found => return Ok(found?),
    };
    let digest = match selector {
        Selector::Digest(digest) => Some(digest.clone()),
        Selector::Tag(tag) => {
            let history = remote.client.history(repository, tag).await.ok().flatten();
            let entries = history.map(|history| history.entries).unwrap_or_default();
            let current = entries.into_iter().find(|entry| entry.current);
            current.map(|entry| entry.digest)
        }
    };
    match digest {
        Some(digest) => Ok(Some(Descriptor::new("", digest, 0))),
        None => Err(error.into()),
    }
}

/// Registries that know no deletion of tags take the tag for a malformed digest, or the method for
/// one that is not allowed.
fn refuses_tags(error: &TransferError) -> bool {
    match error {
        TransferError::Unsupported(_) => true,
        TransferError::Status { answer, .. } => matches!(answer.status, 400 | 405),
        _ => false,
    }
}

/// What garbage collection would free without any grace. `None`: the registry cannot tell, or not soon.
async fn reclaimable(remote: &Remote) -> Option<GcReport> {
    let options = GcOptions {
        dry_run: true,
        grace: 0,
        ..GcOptions::default()
    };
    let sum = remote.client.collect_garbage(remote.host(), &options);
    let (report, _) = tokio::time::timeout(SUM, sum).await.ok()?.ok()??;
    Some(report)
}

/// How much of the disk a deletion can give back, and what keeps the rest.
fn sum(report: &GcReport) -> String {
    let mut text = format!(
        "container-registry gc can free {} in all ({} bytes), once unused for its grace",
        size(report.freed_bytes),
        report.freed_bytes
    );
    if report.history > 0 {
        let _ = write!(
            text,
            "; {} more are kept as the history of tags, for rollback (--keep-history 0 frees them)",
            size(report.history_bytes)
        );
    }
    text
}

/// Who needs a manifest.
#[derive(Debug, Default)]
struct Users {
    /// Tags that point to it.
    tags: Vec<String>,
    /// Tags of indexes that list it, themselves or through another index.
    listing: Vec<String>,
    /// The indexes of those.
    indexes: BTreeSet<Digest>,
}

impl Users {
    async fn of(remote: &Remote, repository: &Repository, digest: &Digest) -> Result<Self> {
        let tags = remote.client.tags(repository).await?;
        let heads: Vec<_> = stream::iter(tags)
            .map(|tag| async move {
                let head = look(remote, repository, Selector::Tag(&tag)).await?;
                anyhow::Ok((tag, head))
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut users = Self::default();
        let mut others = BTreeSet::new();
        for head in heads.iter().filter_map(|(_, head)| head.as_ref()) {
            if head.digest != *digest && media_type::is_index(&head.media_type) {
                others.insert(head.digest.clone());
            }
        }
        // Many tags point to the same.
        let listing: Vec<_> = stream::iter(others)
            .map(|index| async move {
                let lists = lists(remote, repository, &index, digest).await?;
                anyhow::Ok(lists.then_some(index))
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        users.indexes = listing.into_iter().flatten().collect();
        for (tag, head) in heads {
            match head {
                Some(head) if head.digest == *digest => users.tags.push(tag),
                Some(head) if users.indexes.contains(&head.digest) => users.listing.push(tag),
                _ => {}
            }
        }
        Ok(users)
    }

    /// Says which tags go or break, and asks where there are any. `false`: it is to stay.
    fn ask(&self, image: &Reference, yes: bool) -> Result<bool> {
        if !self.tags.is_empty() {
            eprintln!(
                "Deleting {image} also drops these tags: {}",
                self.tags.join(" ")
            );
        }
        if !self.listing.is_empty() {
            eprintln!(
                "Deleting {image} takes a platform away from these tags, which need it: {}",
                self.listing.join(" ")
            );
        }
        if self.tags.is_empty() && self.listing.is_empty() {
            return Ok(true);
        }
        confirm("Proceed?", yes)
    }
}

/// Whether an index, or one below it, lists this manifest.
async fn lists(
    remote: &Remote,
    repository: &Repository,
    index: &Digest,
    wanted: &Digest,
) -> Result<bool> {
    let mut waiting = vec![index.clone()];
    let mut seen = BTreeSet::new();
    while let Some(digest) = waiting.pop() {
        if seen.len() >= MAX_INDEXES || !seen.insert(digest.clone()) {
            continue;
        }
        let selector = Selector::Digest(&digest);
        let Some(found) = remote.client.find_manifest(repository, selector).await? else {
            continue;
        };
        // What cannot be read lists nothing.
        let Ok(ManifestKind::Index(index)) = found.parse().map(|parsed| parsed.kind) else {
            continue;
        };
        for entry in index.manifests {
            if entry.digest == *wanted {
                return Ok(true);
            }
            if media_type::is_index(&entry.media_type) {
                waiting.push(entry.digest);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use vdkr_transfer::Answer;

    use super::*;

    #[test]
    fn refused_tags_are_told_from_other_failures() {
        let status = |status: u16| TransferError::Status {
            method: "DELETE".into(),
            url: "http://r/v2/a/manifests/t".into(),
            answer: Box::new(Answer {
                status,
                ..Answer::default()
            }),
        };
        assert!(refuses_tags(&status(400)));
        assert!(refuses_tags(&TransferError::Unsupported("off".into())));
        assert!(!refuses_tags(&status(500)));
        assert!(!refuses_tags(&TransferError::Cancelled));
    }
}
