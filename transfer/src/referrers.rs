//! What refers to a manifest: signatures, attestations, bills of material (OCI distribution
//! specification, "Listing Referrers", "Referrers Tag Schema").

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{self, Descriptor, ImageIndex, media_type};
use vdkr_core::reference::Selector;

use crate::client::{Client, Repository};
use crate::error::TransferError;
use crate::manifests::{FetchedManifest, IfMatch};

/// How often the stand-in list is read and written again when others change it meanwhile.
const ATTEMPTS: usize = 8;

impl Client {
    /// The manifests that refer to `subject`, of one artifact type or of all. Registries without
    /// the referrers API are asked for the tag that stands in for it (`sha256-…`).
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, TransferError> {
        let listed = self.api(repository, subject, artifact_type).await?;
        let mut found = if let Some(found) = listed {
            found
        } else {
            let tag = referrers_tag(subject);
            let list = self.find_manifest(repository, Selector::Tag(&tag)).await?;
            let parsed = list.map(|list| list.parse()).transpose()?;
            parsed.map_or(Vec::new(), |list| list.manifests().to_vec())
        };
        if let Some(wanted) = artifact_type {
            // A registry may leave the filter to its client.
            found.retain(|entry| entry.artifact_type.as_deref() == Some(wanted));
        }
        Ok(found)
    }

    /// Sees to it that a manifest that was put is among the referrers of its subject. Registries
    /// with the referrers API do that themselves; for others the stand-in tag is kept here.
    pub async fn list_referrer(
        &self,
        repository: &Repository,
        subject: &Digest,
        entry: &Descriptor,
    ) -> Result<(), TransferError> {
        if self.api(repository, subject, None).await?.is_some() {
            return Ok(());
        }
        let tag = referrers_tag(subject);
        let selector = Selector::Tag(&tag);
        let mut attempt = 0;
        loop {
            let list = self.find_manifest(repository, selector).await?;
            let Some(raw) = with_entry(list.as_ref(), entry)? else {
                return Ok(());
            };
            let only_if = match &list {
                Some(list) => IfMatch::Digest(&list.digest),
                None => IfMatch::Absent,
            };
            let put = self
                .put_manifest(
                    repository,
                    selector,
                    raw,
                    media_type::OCI_INDEX,
                    Some(only_if),
                )
                .await;
            attempt += 1;
            match put {
                Err(TransferError::Conflict { .. }) if attempt < ATTEMPTS => {}
                other => return other.map(drop),
            }
        }
    }

    /// What the referrers API says; `None` where there is none.
    async fn api(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, TransferError> {
        let places = self.places(repository.host())?;
        let path = format!("referrers/{subject}");
        let mut request = self
            .request(places.registry(), Method::GET, repository, &path, &["pull"])
            .await?;
        if let Some(artifact_type) = artifact_type {
            request
                .url
                .query_pairs_mut()
                .append_pair("artifactType", artifact_type);
        }
        request
            .headers
            .insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let mut found = Vec::new();
        let listed = self
            .pages(&places, request, "referrers", |page| {
                found.extend(entries(page)?);
                Ok(())
            })
            .await;
        match listed {
            Ok(()) => Ok(Some(found)),
            Err(TransferError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn entries(page: &Bytes) -> Result<Vec<Descriptor>, serde_json::Error> {
    use serde::de::Error as _;
    let index = manifest::parse(page, Some(media_type::OCI_INDEX));
    let index = index.map_err(serde_json::Error::custom)?;
    Ok(index.manifests().to_vec())
}

/// A list with one more entry; `None` when it is there already.
fn with_entry(
    list: Option<&FetchedManifest>,
    entry: &Descriptor,
) -> Result<Option<Bytes>, TransferError> {
    let mut index = ImageIndex::default();
    if let Some(list) = list {
        index.manifests = list.parse()?.manifests().to_vec();
    }
    if index
        .manifests
        .iter()
        .any(|known| known.digest == entry.digest)
    {
        return Ok(None);
    }
    index.manifests.push(entry.clone());
    let raw = index.to_json().map_err(|source| TransferError::Manifest {
        what: "the list of referrers".to_owned(),
        source,
    })?;
    Ok(Some(raw.into()))
}

/// The tag under which clients keep the list of referrers where the registry does not.
pub fn referrers_tag(subject: &Digest) -> String {
    // The specification cuts longer digests, so that the tag stays legal.
    const DIGITS: usize = 64;
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(DIGITS)])
}

#[cfg(test)]
mod tests {
    use vdkr_core::digest::Algorithm;
    use vdkr_core::manifest::media_type::OCI_MANIFEST;
    use vdkr_core::reference::check_tag;

    use super::*;

    #[test]
    fn the_stand_in_tag_is_a_legal_tag() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let tag = referrers_tag(&Digest::of(algorithm, b""));
            assert!(check_tag(&tag).is_ok(), "{tag}");
        }
    }

    #[test]
    fn an_entry_is_added_once() {
        let entry = |text: &[u8]| Descriptor::new(OCI_MANIFEST, Digest::sha256(text), 1);
        let (a, b) = (entry(b"a"), entry(b"b"));
        let first = FetchedManifest::new(with_entry(None, &a).unwrap().unwrap()).unwrap();
        assert_eq!(with_entry(Some(&first), &a).unwrap(), None);
        let both = FetchedManifest::new(with_entry(Some(&first), &b).unwrap().unwrap()).unwrap();
        assert_eq!(both.parse().unwrap().manifests(), [a, b]);
    }
}
