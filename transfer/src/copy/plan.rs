//! What a copy consists of: which manifests, in which order, and which blobs.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::Descriptor;
use vdkr_core::manifest::media_type::{
    DOCKER_CONFIG, OCI_CONFIG, is_image, is_index, is_nondistributable,
};
use vdkr_core::platform::{Platform, choose};

use super::ends::{ImageDestination, ImageSource};
use super::{each, joined};
use crate::error::TransferError;
use crate::manifests::FetchedManifest;

/// How deep indexes may nest.
const MAX_DEPTH: usize = 8;
/// How many manifests one image may have.
const MAX_MANIFESTS: usize = 16 * 1024;
/// How many bytes the manifests of one image may have together: they are kept until their blobs are
/// there. Real ones have some kilobytes each.
const MAX_RAW: usize = 64 << 20;
/// How many blobs one image may have.
const MAX_BLOBS: usize = 64 * 1024;
/// How many manifests are asked for at a time.
const AT_ONCE: usize = 8;

/// The work that is left to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Manifests that are absent from the destination: level by level, the root alone in the first.
    pub(super) levels: Vec<Vec<FetchedManifest>>,
    /// Their blobs, each once.
    pub(super) blobs: Vec<Descriptor>,
    /// Blobs that stay where they are: their licence or their vendor wants it so.
    pub(super) skipped: Vec<Descriptor>,
    /// All manifests that were seen, present ones too.
    pub(super) seen: HashSet<Digest>,
}

impl Plan {
    /// Walks down from `root`, which is to be written. What the destination has complete is not
    /// looked into, unless the copy is `thorough`.
    pub(super) async fn make(
        source: &Arc<dyn ImageSource>,
        destination: &Arc<dyn ImageDestination>,
        root: &FetchedManifest,
        thorough: bool,
    ) -> Result<Self, TransferError> {
        let mut plan = Self::default();
        let mut blobs = HashSet::new();
        let mut room = MAX_RAW.saturating_sub(root.raw.len());
        plan.seen.insert(root.digest.clone());
        let mut level = vec![root.clone()];
        while !level.is_empty() {
            if plan.levels.len() == MAX_DEPTH {
                return Err(unusable(
                    root,
                    &format!("its indexes nest more than {MAX_DEPTH} deep"),
                ));
            }
            let mut children = Vec::new();
            for manifest in &level {
                let parsed = manifest.parse()?;
                let (below, other): (Vec<_>, Vec<_>) = parsed
                    .manifests()
                    .iter()
                    .partition(|entry| is_image(&entry.media_type) || is_index(&entry.media_type));
                children.extend(
                    below
                        .into_iter()
                        .filter(|entry| plan.seen.insert(entry.digest.clone()))
                        .map(plain),
                );
                // An entry of an index that is no manifest is content.
                for blob in parsed.blobs().chain(other) {
                    if blobs.insert(blob.digest.clone()) {
                        plan.add_blob(blob);
                    }
                }
                for (count, most, what) in [
                    (plan.seen.len(), MAX_MANIFESTS, "manifests"),
                    (blobs.len(), MAX_BLOBS, "blobs"),
                ] {
                    if count > most {
                        return Err(unusable(root, &format!("it has more than {most} {what}")));
                    }
                }
            }
            plan.levels.push(level);
            level = absent(source, destination, children, thorough, &mut room)
                .await?
                .ok_or_else(|| {
                    let reason = format!("its manifests have more than {MAX_RAW} bytes together");
                    unusable(root, &reason)
                })?;
        }
        Ok(plan)
    }

    fn add_blob(&mut self, blob: &Descriptor) {
        if is_nondistributable(&blob.media_type) {
            self.skipped.push(plain(blob));
        } else {
            self.blobs.push(plain(blob));
        }
    }
}

/// What moves content; the rest of what manifests say of it may be long.
fn plain(entry: &Descriptor) -> Descriptor {
    Descriptor::new(entry.media_type.as_str(), entry.digest.clone(), entry.size)
}

/// Whether the destination has the manifests of an index that it has: a damaged one may have been put
/// aside since, with the index left for the sake of the others.
pub(super) async fn has_children(
    destination: &Arc<dyn ImageDestination>,
    root: &FetchedManifest,
) -> Result<bool, TransferError> {
    let mut running = JoinSet::new();
    // One of another kind is copied as it is, with nothing below it.
    let Ok(parsed) = root.parse() else {
        return Ok(true);
    };
    for entry in parsed.manifests() {
        if !is_image(&entry.media_type) && !is_index(&entry.media_type) {
            continue;
        }
        if running.len() == AT_ONCE && !joined(running.join_next().await)?.unwrap_or(true) {
            return Ok(false);
        }
        let (destination, digest) = (destination.clone(), entry.digest.clone());
        running.spawn(async move { destination.is_complete(&digest).await });
    }
    while let Some(done) = running.join_next().await {
        if !joined(Some(done))?.unwrap_or(true) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Fetches those manifests that the destination lacks; `None` when they have more bytes than there is
/// `room` for.
async fn absent(
    source: &Arc<dyn ImageSource>,
    destination: &Arc<dyn ImageDestination>,
    entries: Vec<Descriptor>,
    thorough: bool,
    room: &mut usize,
) -> Result<Option<Vec<FetchedManifest>>, TransferError> {
    let mut fetched = Vec::new();
    let work = entries.into_iter().map(|entry| {
        let (source, destination) = (source.clone(), destination.clone());
        async move {
            if !thorough && destination.is_complete(&entry.digest).await? {
                return Ok(None);
            }
            let manifest = source.manifest(&entry).await?;
            if manifest.raw.len() as u64 != entry.size {
                return Err(TransferError::SizeMismatch {
                    what: format!("manifest {}", entry.digest),
                    expected: entry.size,
                    got: manifest.raw.len() as u64,
                });
            }
            // What the parent says it is, so that both read it the same way.
            Ok(Some(FetchedManifest {
                media_type: entry.media_type,
                ..manifest
            }))
        }
    });
    let mut left = Some(*room);
    let all = each(work, AT_ONCE, |manifest: Option<FetchedManifest>| {
        let Some(manifest) = manifest else {
            return true;
        };
        left = left.and_then(|left| left.checked_sub(manifest.raw.len()));
        fetched.push(manifest);
        left.is_some()
    });
    all.await?;
    let Some(left) = left else {
        return Ok(None);
    };
    *room = left;
    Ok(Some(fetched))
}

/// The index of those entries of `root` that fit the platforms: a new index, with a digest of its own.
/// All fields of the entries that stay are kept.
pub(super) async fn subset(
    source: &Arc<dyn ImageSource>,
    root: FetchedManifest,
    platforms: &[Platform],
) -> Result<FetchedManifest, TransferError> {
    let parsed = root.parse()?;
    let Some(index) = parsed.as_index() else {
        return single(source, root, platforms).await;
    };
    let mut wanted = HashSet::new();
    for platform in platforms {
        let Some(entry) = choose(&index.manifests, platform) else {
            let there: Vec<String> = index
                .manifests
                .iter()
                .filter_map(|entry| entry.platform.as_ref())
                .map(ToString::to_string)
                .collect();
            let reason = format!("it has nothing for {platform}, only {}", there.join(", "));
            return Err(no_platform(&root, &reason));
        };
        wanted.insert(entry.digest.to_string());
    }
    let malformed = || unusable(&root, "it cannot be written again");
    let mut value: Value = serde_json::from_slice(&root.raw).map_err(|_| malformed())?;
    let entries = value.get_mut("manifests").and_then(Value::as_array_mut);
    entries.ok_or_else(malformed)?.retain(|entry| {
        entry
            .get("digest")
            .and_then(Value::as_str)
            .is_some_and(|digest| wanted.contains(digest))
    });
    let raw = serde_json::to_vec(&value).map_err(|_| malformed())?;
    let digest = Digest::sha256(&raw);
    Ok(FetchedManifest {
        raw: Bytes::from(raw),
        media_type: root.media_type,
        digest,
    })
}

/// An image that is no index is its own only platform.
async fn single(
    source: &Arc<dyn ImageSource>,
    root: FetchedManifest,
    platforms: &[Platform],
) -> Result<FetchedManifest, TransferError> {
    let parsed = root.parse()?;
    let Some(config) = parsed.as_image().map(|image| &image.config) else {
        return Ok(root);
    };
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Ok(root);
    }
    let own = super::read_config(source, config).await?.platform();
    let entry = Descriptor {
        platform: Some(own.clone()),
        ..root.descriptor()
    };
    for platform in platforms {
        if choose(std::slice::from_ref(&entry), platform).is_none() {
            return Err(no_platform(
                &root,
                &format!("it is for {own}, not for {platform}"),
            ));
        }
    }
    Ok(root)
}

fn no_platform(root: &FetchedManifest, reason: &str) -> TransferError {
    TransferError::NoPlatform(format!("image {}: {reason}", root.digest))
}

fn unusable(root: &FetchedManifest, reason: &str) -> TransferError {
    TransferError::Unsupported(format!("image {}: {reason}", root.digest))
}
