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

/// What one manifest that refers to none weighs in memory.
const PLAIN: usize = 64;

/// What is remembered of a manifest that refers to another: to which, and how it is listed there.
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

    fn referrer(&self, repository: &str, digest: &Digest) -> Result<Option<Arc<Referrer>>> {
        // Nearly all manifests refer to none: of these the digest alone is kept, as short as it gets.
        let key = short(digest);
        if self.plain.get(&key).is_some() {
            return Ok(None);
        }
        if let Some(known) = self.subjects.get(digest) {
            return Ok(Some(known));
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
        match &entry {
            None => self.plain.insert(key, (), PLAIN),
            Some(referrer) => {
                let weight = 256 + referrer.length();
                self.subjects
                    .insert(digest.clone(), Arc::clone(referrer), weight);
            }
        }
        Ok(entry)
    }
}

/// The first 32 bytes of a digest: all of a SHA-256, and enough of a SHA-512.
fn short(digest: &Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (byte, digits) in bytes
        .iter_mut()
        .zip(digest.hex().as_bytes().chunks_exact(2))
    {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => digit - b'0',
            _ => digit.wrapping_sub(b'a').wrapping_add(10),
        };
        *byte = value(digits[0]) << 4 | value(digits[1]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn short_digests_are_their_first_bytes(content: Vec<u8>) {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let digest = Digest::of(algorithm, &content);
                for (at, byte) in short(&digest).into_iter().enumerate() {
                    prop_assert_eq!(&digest.hex()[2 * at..][..2], format!("{byte:02x}"));
                }
            }
        }
    }
}
