//! Directories and archives as the ends of a copy. Their work may block, so it runs where it may.

use std::sync::Arc;

use vdkr_core::digest::Digest;
use vdkr_core::manifest::Descriptor;
use vdkr_core::manifest::media_type::{is_image, is_index};

use super::ends::{BlobState, BoxFuture, ImageDestination, ImageSource};
use crate::archive::ArchiveWriter;
use crate::dir::DirWriter;
use crate::error::TransferError;
use crate::layout::{LayoutWriter, OciLayout, REF_NAME};
use crate::manifests::{FetchedManifest, PutManifest};
use crate::progress::{Progress, ProgressEvent};
use crate::referrers::referrers_tag;
use crate::source::BlobSource;
use crate::upload::UploadSession;

impl ImageSource for OciLayout {
    fn manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<FetchedManifest, TransferError>> {
        let layout = self.clone();
        let descriptor = descriptor.clone();
        Box::pin(blocking(move || OciLayout::manifest(&layout, &descriptor)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobSource> {
        Arc::new(self.blob_source(descriptor))
    }

    /// Referrers stand in `index.json` beside the images, or in the list that stands in for the
    /// referrers API.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, TransferError>> {
        let layout = self.clone();
        let subject = subject.clone();
        Box::pin(blocking(move || {
            let mut found = Vec::new();
            for entry in &layout.index().manifests {
                let known = is_image(&entry.media_type) || is_index(&entry.media_type);
                if !known || entry.platform.is_some() {
                    continue;
                }
                let parsed = OciLayout::manifest(&layout, entry)?.parse()?;
                if parsed.subject().is_some_and(|of| of.digest == subject) {
                    found.push(entry.clone());
                }
            }
            if let Some(list) = layout.named(&referrers_tag(&subject)) {
                let list = OciLayout::manifest(&layout, list)?.parse()?;
                found.extend_from_slice(list.manifests());
            }
            Ok(found)
        }))
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, TransferError>> {
        let listed = self.index().manifests.iter();
        let names = listed.filter_map(|entry| entry.annotations.get(REF_NAME).cloned());
        let names = names.collect();
        Box::pin(async { Ok(names) })
    }

    fn tagged<'a>(
        &'a self,
        tag: &'a str,
    ) -> BoxFuture<'a, Result<Option<FetchedManifest>, TransferError>> {
        let (layout, tag) = (self.clone(), tag.to_owned());
        Box::pin(blocking(move || {
            let entry = layout.named(&tag);
            entry
                .map(|entry| OciLayout::manifest(&layout, entry))
                .transpose()
        }))
    }
}

/// Images are listed in `index.json` under their tag.
impl ImageDestination for LayoutWriter {
    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn find_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        _: &'a [String],
    ) -> BoxFuture<'a, Result<BlobState, TransferError>> {
        let writer = self.clone();
        let descriptor = descriptor.clone();
        Box::pin(blocking(move || Ok(state(writer.has_blob(&descriptor)))))
    }

    fn put_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: Arc<dyn BlobSource>,
        _: Option<UploadSession>,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        let writer = self.clone();
        let descriptor = descriptor.clone();
        let moved = moved(progress, &descriptor.digest);
        Box::pin(blocking(move || {
            LayoutWriter::put_blob(&writer, &descriptor, &*source, &moved)
        }))
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a FetchedManifest,
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PutManifest, TransferError>> {
        let writer = self.clone();
        let manifest = manifest.clone();
        let tag = tag.map(str::to_owned);
        Box::pin(blocking(move || {
            writer.put_bytes(&manifest.digest, &manifest.raw)?;
            if let Some(tag) = tag {
                writer.list(&manifest.descriptor(), Some(&tag))?;
            }
            Ok(put(&manifest))
        }))
    }

    fn list_referrer<'a>(
        &'a self,
        _: &'a Digest,
        entry: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        let writer = self.clone();
        let entry = entry.clone();
        Box::pin(blocking(move || writer.list(&entry, None)))
    }
}

/// Images are listed in `index.json` under their tag.
impl ImageDestination for ArchiveWriter {
    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn announce<'a>(&'a self, blobs: &'a [Descriptor]) -> BoxFuture<'a, Result<(), TransferError>> {
        let (writer, blobs) = (self.clone(), blobs.to_vec());
        Box::pin(blocking(move || ArchiveWriter::announce(&writer, &blobs)))
    }

    fn find_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        _: &'a [String],
    ) -> BoxFuture<'a, Result<BlobState, TransferError>> {
        let there = self.has_blob(&descriptor.digest);
        Box::pin(async move { Ok(state(there)) })
    }

    fn put_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: Arc<dyn BlobSource>,
        _: Option<UploadSession>,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        let (writer, descriptor) = (self.clone(), descriptor.clone());
        let moved = moved(progress, &descriptor.digest);
        Box::pin(blocking(move || {
            ArchiveWriter::put_blob(&writer, &descriptor, &*source, &moved)
        }))
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a FetchedManifest,
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PutManifest, TransferError>> {
        Box::pin(async move {
            ArchiveWriter::put_manifest(self, &manifest.digest, manifest.raw.clone())?;
            if let Some(tag) = tag {
                self.list(&manifest.descriptor(), Some(tag));
            }
            Ok(put(manifest))
        })
    }

    fn list_referrer<'a>(
        &'a self,
        _: &'a Digest,
        entry: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        self.list(entry, None);
        Box::pin(async { Ok(()) })
    }
}

/// It has no names and holds one image, which [`DirWriter::finish`] names.
impl ImageDestination for DirWriter {
    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn find_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        _: &'a [String],
    ) -> BoxFuture<'a, Result<BlobState, TransferError>> {
        let (writer, descriptor) = (self.clone(), descriptor.clone());
        Box::pin(blocking(move || Ok(state(writer.has_blob(&descriptor)))))
    }

    fn put_blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        source: Arc<dyn BlobSource>,
        _: Option<UploadSession>,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        let (writer, descriptor) = (self.clone(), descriptor.clone());
        let moved = moved(progress, &descriptor.digest);
        Box::pin(blocking(move || {
            DirWriter::put_blob(&writer, &descriptor, &*source, &moved)
        }))
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a FetchedManifest,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PutManifest, TransferError>> {
        let (writer, manifest) = (self.clone(), manifest.clone());
        Box::pin(blocking(move || {
            DirWriter::put_manifest(&writer, &manifest.digest, &manifest.raw)?;
            Ok(put(&manifest))
        }))
    }

    fn list_referrer<'a>(
        &'a self,
        _: &'a Digest,
        _: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        Box::pin(async {
            let reason = "skopeo's directory has no place for what refers to an image";
            Err(TransferError::Unsupported(reason.to_owned()))
        })
    }
}

fn state(there: bool) -> BlobState {
    if there {
        BlobState::Present
    } else {
        BlobState::Missing(None)
    }
}

fn put(manifest: &FetchedManifest) -> PutManifest {
    PutManifest {
        digest: manifest.digest.clone(),
        subject_listed: false,
        conditional: false,
    }
}

/// Tells who watches how far a blob is.
fn moved(progress: &Progress, digest: &Digest) -> impl Fn(u64) + Send + 'static {
    let (progress, digest) = (progress.clone(), digest.clone());
    move |done| {
        progress.event(&ProgressEvent::Advanced {
            digest: digest.clone(),
            done,
        });
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| TransferError::Cancelled)?
}
