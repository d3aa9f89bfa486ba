//! Tags as indexes: adding platforms to what a tag already points to, without losing what somebody
//! else adds at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{Descriptor, ManifestKind, media_type, merge_index};
use vdkr_core::reference::Selector;
use vdkr_transfer::copy::read_config;
use vdkr_transfer::{
    Client, FetchedManifest, IfMatch, ImageSource, RegistryImages, Repository, TransferError,
};

/// How often a tag that keeps moving is tried.
const ATTEMPTS: u32 = 30;
/// How long a registry without conditional requests is given until its tag is read again: twice
/// what reading and writing took, within these bounds. Whoever read the tag before we wrote it has
/// written it by then.
const SETTLE: (Duration, Duration) = (Duration::from_millis(40), Duration::from_secs(2));

/// Makes `tag` an index that has these entries, beside the other platforms it already has.
/// Returns the index's digest.
///
/// Registries that know conditional requests never lose an update. Others ignore the condition, so
/// the tag is read again a little later, and written again if somebody's write took our entries away.
pub async fn add_to_tag(
    client: &Client,
    repository: &Repository,
    tag: &str,
    entries: &[Descriptor],
) -> Result<Digest> {
    let selector = Selector::Tag(tag);
    let mut existing = find(client, repository, selector).await?;
    for attempt in 0..ATTEMPTS {
        let begun = Instant::now();
        let merged = merge(client, repository, existing.as_ref(), entries).await?;
        if let Some(existing) = &existing
            && existing.raw == merged
        {
            return Ok(existing.digest.clone());
        }
        let only_if = existing
            .as_ref()
            .map_or(IfMatch::Absent, |e| IfMatch::Digest(&e.digest));
        let put = client
            .put_manifest(
                repository,
                selector,
                merged,
                media_type::OCI_INDEX,
                Some(only_if),
            )
            .await;
        match put {
            Ok(put) if put.conditional => return Ok(put.digest),
            Ok(_) => {
                let pause = begun.elapsed().saturating_mul(2).clamp(SETTLE.0, SETTLE.1);
                tokio::time::sleep(pause + spread(attempt)).await;
            }
            Err(TransferError::Conflict { .. }) => tokio::time::sleep(spread(attempt)).await,
            Err(error) => return Err(error.into()),
        }
        // What is there now either has our entries, or gets them.
        existing = find(client, repository, selector).await?;
    }
    bail!("tag {tag} of {repository} kept changing while it was written; push again");
}

/// What a tag points to. One that the registry says is damaged counts as absent, there and here: this
/// is how it is mended.
async fn find(
    client: &Client,
    repository: &Repository,
    selector: Selector<'_>,
) -> Result<Option<FetchedManifest>> {
    match client.find_manifest(repository, selector).await {
        Err(error) if error.is_damaged() => {
            eprintln!("warning: {repository}:{selector} was damaged there, and is made anew");
            Ok(None)
        }
        found => Ok(found?),
    }
}

/// Keeps competitors apart; the process id and the time differ between them.
fn spread(attempt: u32) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    let own = u64::from((std::process::id() ^ (nanos >> 10)) % 17 + 3);
    Duration::from_millis(own * u64::from(attempt.min(10) + 1))
}

async fn merge(
    client: &Client,
    repository: &Repository,
    existing: Option<&FetchedManifest>,
    entries: &[Descriptor],
) -> Result<Bytes> {
    let Some(existing) = existing else {
        return Ok(merge_index(None, entries)?.into());
    };
    match existing.parse()?.kind {
        ManifestKind::Index(_) => Ok(merge_index(Some(&existing.raw), entries)?.into()),
        // An imported image of one platform: it becomes the index's first entry.
        ManifestKind::Image(image) => {
            let mut first = existing.descriptor();
            let images: Arc<dyn ImageSource> =
                Arc::new(RegistryImages::new(client.clone(), repository.clone()));
            // An artifact has no platform; what is no configuration says nothing about one.
            first.platform = match read_config(&images, &image.config).await {
                Ok(config) => Some(config.platform()),
                Err(TransferError::Manifest { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let all: Vec<_> = std::iter::once(first)
                .chain(entries.iter().cloned())
                .collect();
            Ok(merge_index(None, &all)?.into())
        }
    }
}
