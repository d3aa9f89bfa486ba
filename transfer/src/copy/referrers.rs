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

impl Copier {
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

/// A referrer as lists of them show it.
fn listed(parsed: &ParsedManifest, manifest: &FetchedManifest) -> Descriptor {
    Descriptor {
        artifact_type: parsed.artifact_type().map(str::to_owned),
        annotations: parsed.annotations().clone(),
        ..manifest.descriptor()
    }
}
