//! Which manifests refer to a manifest.
//!
//! The layout has no index of them, and other programs write to the tree: each answer comes from the
//! revisions that are there. What a manifest says of itself never changes, so it is read once and
//! remembered.

use std::sync::Arc;

use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::{self, Descriptor};

use super::{Result, Storage, paths};
use crate::fs::Kind;

/// What is remembered of a manifest: whom it refers to and how it is listed there.
pub(super) type Entry = Option<Arc<Referrer>>;

#[derive(Debug)]
pub(super) struct Referrer {
    subject: Digest,
    descriptor: Descriptor,
}

impl Referrer {
    /// Bytes of its descriptor in a list.
    fn length(&self) -> usize {
        serde_json::to_vec(&self.descriptor).map_or(0, |json| json.len() + 1)
    }
}

/// A page of referrers.
#[derive(Clone, Debug, Default)]
pub struct Referrers {
    /// Descriptors by the order of their digests.
    pub descriptors: Vec<Descriptor>,
    /// Whether there are more after the last of these.
    pub more: bool,
}

impl Storage {
    /// The manifests of a repository that refer to `subject` and have the artifact type wanted, after
    /// the digest `last`, up to `bytes` of JSON (one is always given).
    pub fn referrers(
        &self,
        repository: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&Digest>,
        bytes: usize,
    ) -> Result<Referrers> {
        let mut revisions = self.revisions(repository)?;
        revisions.retain(|digest| last.is_none_or(|last| digest > last));
        revisions.sort_unstable();
        let mut page = Referrers::default();
        let mut used = 0;
        for digest in revisions {
            let Some(referrer) = self.referrer(repository, &digest)? else {
                continue;
            };
            let wanted = referrer.subject == *subject
                && artifact_type
                    .is_none_or(|t| referrer.descriptor.artifact_type.as_deref() == Some(t));
            if !wanted
                || self
                    .read_link(&paths::revision_link(repository, &digest))?
                    .is_none()
            {
                continue;
            }
            used += referrer.length();
            if used > bytes && !page.descriptors.is_empty() {
                page.more = true;
                break;
            }
            page.descriptors.push(referrer.descriptor.clone());
        }
        Ok(page)
    }

    /// The digests that a repository has, or had, revisions of.
    pub(super) fn revisions(&self, repository: &str) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let listed = self
                .fs
                .list(&paths::revisions(repository, algorithm), |name, kind| {
                    if kind == Kind::Directory {
                        digests.extend(Digest::parse(&format!("{}:{name}", algorithm.name())));
                    }
                });
            match listed {
                Err(error) if error.is_not_found() => {}
                listed => listed?,
            }
        }
        Ok(digests)
    }

    fn referrer(&self, repository: &str, digest: &Digest) -> Result<Entry> {
        if let Some(known) = self.subjects.get(digest) {
            return Ok(known);
        }
        let Some(manifest) = self.manifest(repository, digest)? else {
            return Ok(None);
        };
        // One that does not parse is served as it is, and refers to nothing.
        let entry = manifest::parse(&manifest.body, None)
            .ok()
            .and_then(|parsed| {
                let subject = parsed.subject()?.digest.clone();
                let descriptor = Descriptor {
                    artifact_type: parsed
                        .artifact_type()
                        .filter(|t| !t.is_empty())
                        .map(str::to_owned),
                    annotations: parsed.annotations().clone(),
                    ..Descriptor::new(
                        &parsed.media_type,
                        digest.clone(),
                        manifest.body.len() as u64,
                    )
                };
                Some(Arc::new(Referrer {
                    subject,
                    descriptor,
                }))
            });
        let weight = 256 + entry.as_deref().map_or(0, Referrer::length);
        self.subjects.insert(digest.clone(), entry.clone(), weight);
        Ok(entry)
    }
}
