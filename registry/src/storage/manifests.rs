//! Manifests: content that repositories have revisions of.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{MAX_MANIFEST, media_type};

use super::durable::Batch;
use super::{Result, Storage, StorageError, paths};
use crate::fs::Stamp;

/// A manifest of a repository.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The digest that it was asked for by, or that the tag points to.
    pub digest: Digest,
    /// What it is. The layout does not keep what the client declared; the body tells.
    pub media_type: Arc<str>,
    /// The bytes as they were pushed.
    pub body: Bytes,
}

/// A manifest to be stored, and what it needs. Made from checked content.
#[derive(Clone, Debug)]
pub struct NewManifest {
    /// Digest of the body.
    pub digest: Digest,
    /// The bytes.
    pub body: Bytes,
    /// Blobs that the repository must have, with their sizes.
    pub blobs: Vec<(Digest, u64)>,
    /// Manifests (of an index; blobs, in the indexes of some builders) that it must have.
    pub children: Vec<(Digest, u64)>,
    /// Whether it is taken although some of these are missing.
    pub sparse: bool,
}

/// The state that a request wants the tag, or a manifest put by digest, to be in (RFC 9110, section
/// 13.1). The empty condition always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// `If-Match`.
    pub matches: Option<Wanted>,
    /// `If-None-Match`.
    pub none_match: Option<Wanted>,
}

/// What a condition compares with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `*`: anything that is there.
    Any,
    /// One of these. What was no digest in the header matches nothing.
    OneOf(Vec<Digest>),
}

impl Condition {
    /// Whether it holds for what is there.
    pub fn holds(&self, current: Option<&Digest>) -> bool {
        let fits = |wanted: &Wanted| match (wanted, current) {
            (_, None) => false,
            (Wanted::Any, Some(_)) => true,
            (Wanted::OneOf(digests), Some(current)) => digests.contains(current),
        };
        self.matches.as_ref().is_none_or(fits) && !self.none_match.as_ref().is_some_and(fits)
    }

    /// The same as an error, for something that is there.
    pub(super) fn check(&self, current: &Digest) -> Result<()> {
        if self.holds(Some(current)) {
            return Ok(());
        }
        Err(StorageError::ConditionFailed {
            current: Some(current.clone()),
        })
    }

    fn is_empty(&self) -> bool {
        self.matches.is_none() && self.none_match.is_none()
    }
}

/// A manifest in memory, as long as its file is the one that was read.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) stamp: Stamp,
    pub(super) media_type: Arc<str>,
    pub(super) body: Bytes,
}

impl Storage {
    /// Finds what a tag points to.
    pub fn tag(&self, repository: &str, tag: &str) -> Result<Option<Digest>> {
        let link = self.read_link(&paths::tag_current(repository, tag))?;
        Ok(link.map(|link| link.target))
    }

    /// Finds a manifest of a repository.
    pub fn manifest(&self, repository: &str, digest: &Digest) -> Result<Option<Manifest>> {
        let Some(link) = self.read_link(&paths::revision_link(repository, digest))? else {
            return Ok(None);
        };
        let found = self.manifest_content(&link.target)?;
        Ok(found.map(|cached| cached.under(digest)))
    }

    /// Finds a manifest of a repository to be served. One that is there and cannot be read as what it
    /// was is [`StorageError::Damaged`].
    pub fn sound_manifest(&self, repository: &str, digest: &Digest) -> Result<Option<Manifest>> {
        let what = format!("{repository}@{digest}");
        let path = paths::revision_link(repository, digest);
        let Some(link) = self.sound_link(&path, &what)? else {
            return Ok(None);
        };
        match self.manifest_content(&link.target)? {
            Some(cached) => Ok(Some(cached.under(digest))),
            // Collected, content and all, between the two looks.
            None if self.fs.stat(&path)?.is_none() => Ok(None),
            None => Err(StorageError::Damaged(what)),
        }
    }

    /// [`Storage::sound_manifest`] of what a tag points to, which it relies on from the moment it is
    /// known.
    pub fn sound_tag(&self, repository: &str, tag: &str) -> Result<Option<Manifest>> {
        let (what, path) = (
            format!("{repository}:{tag}"),
            paths::tag_current(repository, tag),
        );
        let damaged = || Err(StorageError::Damaged(what.clone()));
        let mut seen = None;
        // A tag and its manifest may be deleted between the two looks, or the tag moved.
        while let Some(link) = self.sound_link(&path, &what)? {
            if seen.as_ref() == Some(&link.target) {
                return damaged();
            }
            self.claim(&link.target);
            match self.sound_manifest(repository, &link.target) {
                Ok(None) => seen = Some(link.target),
                Err(StorageError::Damaged(_)) => return damaged(),
                found => return found,
            }
        }
        Ok(None)
    }

    /// What a tag points to, as far as memory knows it and the disk confirms it.
    pub fn known_tag(&self, repository: &str, tag: &str) -> Result<Option<Digest>> {
        let link = self.known_link(&paths::tag_current(repository, tag))?;
        Ok(link.map(|link| link.target))
    }

    /// [`Storage::manifest`] from memory, checked by two system calls that find everything cached:
    /// `None` says nothing.
    pub fn known_manifest(&self, repository: &str, digest: &Digest) -> Result<Option<Manifest>> {
        let Some(link) = self.known_link(&paths::revision_link(repository, digest))? else {
            return Ok(None);
        };
        Ok(self
            .known_content(&link.target)?
            .map(|cached| cached.under(digest)))
    }

    /// Stores a manifest, gives the repository a revision of it and points `tags` to it; durable on
    /// return. The condition is about the first tag, or without tags about the manifest itself.
    pub fn put_manifest(
        &self,
        repository: &str,
        manifest: &NewManifest,
        tags: &[&str],
        condition: &Condition,
    ) -> Result<()> {
        let _shared = self.locks.share(repository)?;
        let _tags = self.locks.tags(repository, tags.iter().copied())?;
        if !condition.is_empty() {
            let current = match tags.first() {
                // A tag whose manifest is damaged or gone is as good as none: whoever asks is told so,
                // and pushes it again.
                Some(tag) => match self.tag(repository, tag)? {
                    Some(current) => self
                        .manifest(repository, &current)?
                        .map(|found| found.digest),
                    None => None,
                },
                None => self
                    .manifest(repository, &manifest.digest)?
                    .map(|found| found.digest),
            };
            if !condition.holds(current.as_ref()) {
                return Err(StorageError::ConditionFailed { current });
            }
        }

        self.claim(&manifest.digest);

        // First wave: all that it names, and its own content, which means nothing yet.
        let digest = &manifest.digest;
        let mut batch = self.durable.batch();
        self.require_references(&mut batch, repository, manifest)?;
        let target = paths::blob_data(digest);
        match self.manifest_content(digest)? {
            Some(cached) => batch.require(target, cached.stamp),
            None => batch.place(self.staged(&manifest.body)?, target),
        }
        batch.commit()?;

        // Second wave: the repository has it. A revision without content is damage, and must not come
        // from a power cut.
        let mut batch = self.durable.batch();
        self.put_link(&mut batch, paths::revision_link(repository, digest), digest)?;
        let mut returns = Vec::new();
        for tag in tags {
            let path = paths::tag_index_link(repository, tag, digest);
            if self.read_link(&path)?.is_some()
                && self.tag(repository, tag)?.as_ref() != Some(digest)
            {
                returns.push(paths::parent(&path).to_owned());
            }
            self.put_link(&mut batch, path, digest)?;
        }
        let mut last = self.durable.batch();
        for tag in tags {
            self.put_link(&mut last, paths::tag_current(repository, tag), digest)?;
        }
        batch.commit()?;

        // Third wave: the tags.
        last.commit()?;
        // Nothing depends on these times but the order of the history, and what is old enough to go.
        for entry in returns {
            if let Err(error) = self.fs.touch(&entry) {
                tracing::debug!(%error, "the history of a tag keeps an older time");
            }
        }
        self.used(&paths::revision_link(repository, digest));
        Ok(())
    }

    /// Takes a tag, and nothing else, from a repository, if the condition holds for what it points to.
    /// `false`: it was not there.
    pub fn delete_tag(&self, repository: &str, tag: &str, condition: &Condition) -> Result<bool> {
        let _alone = self.locks.exclude(repository)?;
        match self.tag(repository, tag)? {
            Some(current) => condition.check(&current)?,
            // A torn one is there as well, with whatever it pointed to.
            None if self.is_torn(&paths::tag_current(repository, tag))? && condition.is_empty() => {
            }
            None => return Ok(false),
        }
        self.remove_tag(repository, tag)?;
        self.remove_if_empty(repository);
        Ok(true)
    }

    /// Takes a manifest from a repository, and the tags that point to it, if the condition holds for it.
    /// The content stays for other repositories. `false`: it was not there.
    pub fn delete_manifest(
        &self,
        repository: &str,
        digest: &Digest,
        condition: &Condition,
    ) -> Result<bool> {
        let _alone = self.locks.exclude(repository)?;
        let path = paths::revision_link(repository, digest);
        if self.read_link(&path)?.is_none() && !self.is_torn(&path)? {
            return Ok(false);
        }
        condition.check(digest)?;
        // The tags go first: a tag never points to what is not there.
        for tag in self.tag_names(repository)?.unwrap_or_default() {
            if self.tag(repository, &tag)?.as_ref() == Some(digest) {
                self.remove_tag(repository, &tag)?;
            }
        }
        self.remove_link(&path)?;
        self.remove_if_empty(repository);
        Ok(true)
    }

    pub(super) fn remove_tag(&self, repository: &str, tag: &str) -> Result<()> {
        // On a full disk, too, a tag can be deleted.
        if let Err(error) = self.note_deletion(repository, tag) {
            tracing::warn!(%error, "a deleted tag leaves no history");
        }
        let dir = paths::tag(repository, tag);
        // Without this link there is no tag, whatever happens to the rest of the directory.
        self.remove_link(&paths::tag_current(repository, tag))?;
        self.durable.forget(&dir);
        self.links.retain(|path| !path.starts_with(&dir));
        if let Err(error) = self.remove_tree(&dir) {
            tracing::warn!(%error, "the history of a deleted tag stays");
        }
        Ok(())
    }

    fn require_references(
        &self,
        batch: &mut Batch<'_>,
        repository: &str,
        manifest: &NewManifest,
    ) -> Result<()> {
        let (mut missing, mut wrong) = (Vec::new(), Vec::new());
        let mut indexes = Vec::new();
        let blobs = manifest.blobs.iter().map(|named| (named, false));
        let children = manifest.children.iter().map(|named| (named, true));
        for ((digest, size), child) in blobs.chain(children) {
            let mut found = None;
            if child {
                let there = self.require_revision(batch, repository, digest)?;
                // Images, which nearly all of them are, have nothing below.
                indexes.extend(
                    there
                        .as_ref()
                        .filter(|there| media_type::is_index(&there.media_type))
                        .map(|_| digest.clone()),
                );
                found = there.map(|there| there.body.len() as u64);
            }
            if found.is_none() {
                found = self.require_blob(batch, repository, digest)?;
            }
            match found {
                None => missing.push(digest.clone()),
                Some(there) if there != *size => wrong.push((digest.clone(), *size, there)),
                Some(_) => {}
            }
        }
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() && !manifest.sparse {
            return Err(StorageError::MissingReferences(missing));
        }
        if let Some((digest, told, there)) = wrong.into_iter().next() {
            return Err(StorageError::WrongSize {
                digest,
                told,
                there,
            });
        }
        self.check_nesting(repository, &indexes)
    }

    /// Asks for a manifest of the repository to be durable. `None`: it is not there.
    fn require_revision(
        &self,
        batch: &mut Batch<'_>,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<Arc<Cached>>> {
        let path = paths::revision_link(repository, digest);
        let Some(link) = self.read_link(&path)? else {
            return Ok(None);
        };
        let Some(cached) = self.manifest_content(&link.target)? else {
            return Ok(None);
        };
        batch.require(paths::blob_data(&link.target), cached.stamp);
        batch.require(path, link.stamp);
        Ok(Some(cached))
    }

    /// Reads a manifest's content, whoever has it. What does not match its digest is as good as none.
    pub(super) fn manifest_content(&self, digest: &Digest) -> Result<Option<Arc<Cached>>> {
        if let Some(cached) = self.known_content(digest)? {
            return Ok(Some(cached));
        }
        let (body, stat) = match self.fs.read(&paths::blob_data(digest), MAX_MANIFEST + 1) {
            Ok(read) => read,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if Digest::of(digest.algorithm(), &body) != *digest {
            tracing::warn!(%digest, "a stored manifest does not match its digest");
            return Ok(None);
        }
        let Some(media_type) = type_of(&body) else {
            tracing::warn!(%digest, "a stored manifest is of no known form");
            return Ok(None);
        };
        let cached = Cached {
            stamp: stat.stamp,
            media_type: media_type.into(),
            body: body.into(),
        };
        let cached = Arc::new(cached);
        let weight = cached.body.len() + 512;
        self.manifests
            .insert(digest.clone(), Arc::clone(&cached), weight);
        Ok(Some(cached))
    }

    fn known_content(&self, digest: &Digest) -> Result<Option<Arc<Cached>>> {
        let Some(cached) = self.manifests.get(digest) else {
            return Ok(None);
        };
        match self.fs.stat_known(&paths::blob_data(digest))? {
            Some(stat) if stat.stamp == cached.stamp => Ok(Some(cached)),
            _ => {
                self.manifests.remove(digest);
                Ok(None)
            }
        }
    }
}

impl Cached {
    fn under(&self, digest: &Digest) -> Manifest {
        Manifest {
            digest: digest.clone(),
            media_type: Arc::clone(&self.media_type),
            body: self.body.clone(),
        }
    }
}

/// The media type that a manifest's body says, or that its form tells as Distribution reads it.
/// `None`: it is none.
pub(crate) fn type_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Form {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
        signatures: Option<IgnoredAny>,
    }
    let form: Form = serde_json::from_slice(body).ok()?;
    let told = form
        .media_type
        .map(|told| media_type::essence(&told))
        .filter(|t| !t.is_empty());
    let by_form = || match (form.schema_version, form.manifests, form.signatures) {
        // Docker's first format, in trees that have it: served, no longer taken.
        (Some(1), _, Some(_)) => "application/vnd.docker.distribution.manifest.v1+prettyjws",
        (Some(1), _, None) => "application/vnd.docker.distribution.manifest.v1+json",
        (_, Some(_), _) => media_type::OCI_INDEX,
        _ => media_type::OCI_MANIFEST,
    };
    let known = told.unwrap_or_else(|| by_form().to_owned());
    // It becomes a header's value.
    known
        .bytes()
        .all(|byte| byte.is_ascii_graphic())
        .then_some(known)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_have_a_type_or_none(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let told = type_of(&body);
            prop_assert!(told.is_none_or(|told| http::HeaderValue::from_str(&told).is_ok()));
        }

        #[test]
        fn any_type_in_the_body_fits_a_header(told in ".{0,40}") {
            let body = serde_json::json!({ "mediaType": told }).to_string();
            let told = type_of(body.as_bytes());
            prop_assert!(told.is_none_or(|told| http::HeaderValue::from_str(&told).is_ok()));
        }
    }

    #[test]
    fn the_body_tells_its_type() {
        for (body, expected) in [
            (r#"{"schemaVersion":2,"mediaType":"a/b"}"#, Some("a/b")),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
                Some(media_type::OCI_MANIFEST),
            ),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                Some(media_type::OCI_INDEX),
            ),
            (
                r#"{"schemaVersion":2,"manifests":null}"#,
                Some(media_type::OCI_MANIFEST),
            ),
            (
                r#"{"schemaVersion":1,"signatures":[{}]}"#,
                Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            ),
            (r#"{"mediaType":"a/b\r\nSet-Cookie: x"}"#, None),
            ("[]", None),
            ("", None),
            ("\u{7f}ELF", None),
        ] {
            assert_eq!(type_of(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn conditions_follow_rfc_9110() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let any = || Some(Wanted::Any);
        let some = |digest: &Digest| Some(Wanted::OneOf(vec![digest.clone()]));
        let condition = |matches, none_match| Condition {
            matches,
            none_match,
        };
        for (condition, absent, at_one) in [
            (condition(None, None), true, true),
            (condition(any(), None), false, true),
            (condition(some(&one), None), false, true),
            (condition(some(&two), None), false, false),
            (condition(Some(Wanted::OneOf(vec![])), None), false, false),
            (condition(None, any()), true, false),
            (condition(None, some(&one)), true, false),
            (condition(None, some(&two)), true, true),
        ] {
            assert_eq!(condition.holds(None), absent, "{condition:?}");
            assert_eq!(condition.holds(Some(&one)), at_one, "{condition:?}");
        }
    }
}
