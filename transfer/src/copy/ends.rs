//! The two ends of a copy: what an image can be read from and written to.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use vdkr_core::digest::Digest;
use vdkr_core::manifest::Descriptor;
use vdkr_core::reference::{Host, Selector};

use crate::client::{Client, Repository};
use crate::error::TransferError;
use crate::manifests::{FetchedManifest, PutManifest};
use crate::progress::Progress;
use crate::source::BlobSource;
use crate::upload::{MountOutcome, UploadOptions, UploadSession};

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What images can be read from.
pub trait ImageSource: Send + Sync + 'static {
    /// A manifest or index, verified against its descriptor's digest.
    fn manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<FetchedManifest, TransferError>>;

    /// A blob. What it gives is verified by whoever receives it.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobSource>;

    /// The repository it is, when it is one: blobs may be mounted from there.
    fn repository(&self) -> Option<&Repository> {
        None
    }

    /// The manifests that refer to this one.
    fn referrers<'a>(
        &'a self,
        _subject: &'a Digest,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, TransferError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The tags beside this image: signatures may be found by theirs.
    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, TransferError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What a tag points to.
    fn tagged<'a>(
        &'a self,
        _tag: &'a str,
    ) -> BoxFuture<'a, Result<Option<FetchedManifest>, TransferError>> {
        Box::pin(async { Ok(None) })
    }
}

/// What images can be written to.
pub trait ImageDestination: Send + Sync + 'static {
    /// One text for one place, so that two copies into it do not do the same work twice.
    fn place(&self) -> String;

    /// The repository it is, when it is one.
    fn repository(&self) -> Option<&Repository> {
        None
    }

    /// Whether this manifest is there together with everything below it. Files never say so: what
    /// was left half done has manifests without their content.
    fn is_complete<'a>(
        &'a self,
        _digest: &'a Digest,
    ) -> BoxFuture<'a, Result<bool, TransferError>> {
        Box::pin(async { Ok(false) })
    }

    /// Whether this tag already points to this manifest.
    fn is_tagged<'a>(
        &'a self,
        _digest: &'a Digest,
        _tag: &'a str,
    ) -> BoxFuture<'a, Result<bool, TransferError>> {
        Box::pin(async { Ok(false) })
    }

    /// Hears which blobs will come, always in the same order, before the first of them.
    fn announce<'a>(
        &'a self,
        _blobs: &'a [Descriptor],
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(async { Ok(()) })
    }

    /// Looks for a blob; where it is absent, tries to have it mounted from one of these
    /// repositories of the same registry.
    fn find_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        mount_from: &'a [String],
    ) -> BoxFuture<'a, Result<BlobState, TransferError>>;

    /// Writes a blob, verified.
    fn put_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: Arc<dyn BlobSource>,
        session: Option<UploadSession>,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), TransferError>>;

    /// Writes a manifest whose content is complete, under its digest or a tag.
    fn put_manifest<'a>(
        &'a self,
        manifest: &'a FetchedManifest,
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PutManifest, TransferError>>;

    /// Sees to it that a manifest that is in place is found among the referrers of `subject`.
    fn list_referrer<'a>(
        &'a self,
        subject: &'a Digest,
        entry: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), TransferError>>;
}

/// Where a blob is before it is written.
#[derive(Clone, Debug)]
pub enum BlobState {
    /// In place already.
    Present,
    /// In place now, from another repository.
    Mounted,
    /// Absent. The registry may have opened an upload when it could not mount.
    Missing(Option<UploadSession>),
}

/// A repository of a registry, as a source and as a destination.
#[derive(Clone)]
pub struct RegistryImages {
    client: Client,
    repository: Repository,
}

impl RegistryImages {
    /// The images of `repository`.
    pub fn new(client: Client, repository: Repository) -> Self {
        Self { client, repository }
    }

    /// The client it works with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The registry.
    pub fn host(&self) -> &Host {
        self.repository.host()
    }
}

impl ImageSource for RegistryImages {
    fn manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<FetchedManifest, TransferError>> {
        Box::pin(async {
            let selector = Selector::Digest(&descriptor.digest);
            self.client.get_manifest(&self.repository, selector).await
        })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobSource> {
        Arc::new(self.client.blob_source(&self.repository, descriptor))
    }

    fn repository(&self) -> Option<&Repository> {
        Some(&self.repository)
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, TransferError>> {
        Box::pin(self.client.referrers(&self.repository, subject, None))
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, TransferError>> {
        Box::pin(self.client.tags(&self.repository))
    }

    fn tagged<'a>(
        &'a self,
        tag: &'a str,
    ) -> BoxFuture<'a, Result<Option<FetchedManifest>, TransferError>> {
        let found = self
            .client
            .find_manifest(&self.repository, Selector::Tag(tag));
        Box::pin(found)
    }
}

/// What is damaged at the destination is to be written again.
fn unless_damaged<T>(found: Result<Option<T>, TransferError>) -> Result<Option<T>, TransferError> {
    match found {
        Err(error) if error.is_damaged() => Ok(None),
        found => found,
    }
}

impl ImageDestination for RegistryImages {
    fn place(&self) -> String {
        self.repository.to_string()
    }

    fn repository(&self) -> Option<&Repository> {
        Some(&self.repository)
    }

    /// A registry takes a manifest only when it has what the manifest names, so a manifest that is
    /// there stands for all of it.
    fn is_complete<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, TransferError>> {
        Box::pin(async {
            let selector = Selector::Digest(digest);
            let found = self
                .client
                .head_manifest_at_origin(&self.repository, selector);
            Ok(unless_damaged(found.await)?.is_some())
        })
    }

    fn is_tagged<'a>(
        &'a self,
        digest: &'a Digest,
        tag: &'a str,
    ) -> BoxFuture<'a, Result<bool, TransferError>> {
        Box::pin(async {
            let selector = Selector::Tag(tag);
            let found = self
                .client
                .head_manifest_at_origin(&self.repository, selector);
            let found = unless_damaged(found.await)?;
            Ok(found.is_some_and(|found| found.digest == *digest))
        })
    }

    fn find_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        mount_from: &'a [String],
    ) -> BoxFuture<'a, Result<BlobState, TransferError>> {
        Box::pin(async move {
            let (here, digest) = (&self.repository, &descriptor.digest);
            for from in mount_from {
                // A mount also tells when the blob is here already, so it comes before the question.
                match self.client.mount_blob(here, Some(from), digest).await? {
                    MountOutcome::Mounted => return Ok(BlobState::Mounted),
                    // It is not there after all, but perhaps it is here.
                    MountOutcome::Session(session) => {
                        let size = self.client.head_blob(here, digest).await?;
                        return Ok(match size {
                            Some(_) => BlobState::Present,
                            None => BlobState::Missing(Some(session)),
                        });
                    }
                    MountOutcome::Refused => {}
                }
            }
            if self.client.head_blob(here, digest).await?.is_some() {
                return Ok(BlobState::Present);
            }
            // One that an earlier run began goes on where it was.
            let journal = self.client.config().journal.as_ref();
            if journal.is_some_and(|journal| journal.knows(here, digest)) {
                return Ok(BlobState::Missing(None));
            }
            // An upload has to be opened anyway; asked this way, the registry may know better.
            Ok(match self.client.mount_blob(here, None, digest).await? {
                MountOutcome::Mounted => BlobState::Mounted,
                MountOutcome::Session(session) => BlobState::Missing(Some(session)),
                MountOutcome::Refused => BlobState::Missing(None),
            })
        })
    }

    fn put_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: Arc<dyn BlobSource>,
        session: Option<UploadSession>,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(async {
            let options = UploadOptions {
                session,
                chunk: None,
                progress: progress.clone(),
            };
            self.client
                .upload_blob(&self.repository, descriptor, source, options)
                .await
        })
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a FetchedManifest,
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PutManifest, TransferError>> {
        Box::pin(async move {
            let selector = match tag {
                Some(tag) => Selector::Tag(tag),
                None => Selector::Digest(&manifest.digest),
            };
            let raw = manifest.raw.clone();
            self.client
                .put_manifest(&self.repository, selector, raw, &manifest.media_type, None)
                .await
        })
    }

    fn list_referrer<'a>(
        &'a self,
        subject: &'a Digest,
        entry: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(self.client.list_referrer(&self.repository, subject, entry))
    }
}
