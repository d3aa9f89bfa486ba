//! Tags as indexes: adding platforms to what a tag already points to, without losing what somebody
//! else adds at the same time.

use std::sync::Arc;
use std::time::Duration;

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

/// Makes `tag` an index that has these entries, beside the other platforms it already has.
/// Returns the index's digest.
///
/// Registries that know conditional requests never lose an update. Others ignore the condition, so
/// the tag is read again afterwards, and written again if somebody's write came in between.
pub async fn add_to_tag(
    client: &Client,
    repository: &Repository,
    tag: &str,
    entries: &[Descriptor],
) -> Result<Digest> {
    let selector = Selector::Tag(tag);
    for attempt in 0..ATTEMPTS {
        let existing = client.find_manifest(repository, selector).await?;
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
            Ok(put) => {
                let now = client.head_manifest_at_origin(repository, selector).await?;
                if now.is_some_and(|now| now.digest == put.digest) {
                    return Ok(put.digest);
                }
            }
            Err(TransferError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // Spread competitors out; the process id differs between them.
        let spread = u64::from(std::process::id() % 17 + 3);
        tokio::time::sleep(Duration::from_millis(spread * u64::from(attempt.min(10)))).await;
    }
    bail!("tag {tag} of {repository} kept changing while it was written; push again");
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
