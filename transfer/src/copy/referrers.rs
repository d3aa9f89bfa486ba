//! What refers to an image goes where the image goes (OCI distribution specification, "Listing
//! Referrers" and "Pushing Manifests with Subject").

use std::collections::HashSet;
use std::sync::Arc;

use vdkr_core::digest::Digest;
use vdkr_core::manifest::{Descriptor, ParsedManifest};

use super::ends::{ImageDestination, ImageSource};
use super::{Copier, CopyReport};
use crate::error::TransferError;
use crate::manifests::FetchedManifest;

/// How many referrers one copy takes along: a list is a stranger's word.
const MAX_REFERRERS: usize = 4096;

/// What the tags end in by which cosign finds signatures, attestations and bills of material of a
/// manifest: `sha256-<hex>.sig`.
const SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

/// How many tags are looked through.
const MAX_TAGS: usize = 1_000_000;

impl Copier {
    /// Copies what belongs to these manifests by the name of its tag.
    pub(super) async fn copy_tagged(
        &self,
        source: &Arc<dyn ImageSource>,
        destination: &Arc<dyn ImageDestination>,
        subjects: &HashSet<Digest>,
        report: &mut CopyReport,
    ) -> Result<(), TransferError> {
        let tags = match source.tags().await {
            Ok(tags) => tags,
            Err(error @ (TransferError::Denied { .. } | TransferError::NotFound { .. })) => {
                tracing::warn!(%error, "tags cannot be listed, signatures kept under tags are left");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for tag in tags.iter().take(MAX_TAGS) {
            if !subject_of(tag).is_some_and(|subject| subjects.contains(&subject)) {
                continue;
            }
            // Gone since the list was made is gone.
            let Some(manifest) = source.tagged(tag).await? else {
                continue;
            };
            self.copy_tree(source, &manifest, destination, Some(tag), report)
                .await?;
        }
        Ok(())
    }

    /// Copies the referrers of these manifests, and theirs in turn.
    pub(super) async fn copy_referrers(
        &self,
        source: &Arc<dyn ImageSource>,
        destination: &Arc<dyn ImageDestination>,
        subjects: HashSet<Digest>,
        report: &mut CopyReport,
    ) -> Result<(), TransferError> {
        let mut todo: Vec<Digest> = subjects.iter().cloned().collect();
        todo.sort();
        let mut seen = subjects;
        let mut count = 0;
        while let Some(subject) = todo.pop() {
            let found = source.referrers(&subject).await?;
            for entry in found {
                if !seen.insert(entry.digest.clone()) {
                    continue;
                }
                count += 1;
                if count > MAX_REFERRERS {
                    return Err(TransferError::Unsupported(format!(
                        "more than {MAX_REFERRERS} manifests refer to the image"
                    )));
                }
                let manifest = source.manifest(&entry).await?;
                let parsed = manifest.parse()?;
                if parsed.subject().map(|subject| &subject.digest) != Some(&subject) {
                    tracing::warn!(digest = %entry.digest, %subject, "listed as a referrer, but is none");
                    continue;
                }
                self.copy_tree(source, &manifest, destination, None, report)
                    .await?;
                destination
                    .list_referrer(&subject, &listed(&parsed, &manifest))
                    .await?;
                todo.push(entry.digest);
            }
        }
        Ok(())
    }
}

/// The manifest that a tag of [`SUFFIXES`] belongs to.
fn subject_of(tag: &str) -> Option<Digest> {
    let (stem, suffix) = tag.rsplit_once('.')?;
    let (algorithm, hex) = stem.split_once('-')?;
    let known = SUFFIXES.contains(&suffix);
    known.then(|| Digest::parse(&format!("{algorithm}:{hex}")).ok())?
}

/// A referrer as lists of them show it.
fn listed(parsed: &ParsedManifest, manifest: &FetchedManifest) -> Descriptor {
    Descriptor {
        artifact_type: parsed.artifact_type().map(str::to_owned),
        annotations: parsed.annotations().clone(),
        ..manifest.descriptor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_signatures_name_their_image() {
        let digest = Digest::sha256(b"x");
        let hex = digest.hex();
        for suffix in SUFFIXES {
            assert_eq!(
                subject_of(&format!("sha256-{hex}.{suffix}")),
                Some(digest.clone())
            );
        }
        for tag in [
            "latest",
            "sha256-00.sig",
            "v1.sig",
            &format!("sha256-{hex}"),
        ] {
            assert_eq!(subject_of(tag), None, "{tag}");
        }
    }
}
