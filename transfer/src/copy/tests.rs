//! Images that ask for more than a copy may take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use vdkr_core::manifest::media_type::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};

use super::*;
use crate::manifests::PutManifest;
use crate::upload::UploadSession;

/// Manifests in memory, and how many were asked for.
#[derive(Default)]
struct Manifests {
    raw: HashMap<Digest, Bytes>,
    asked: AtomicUsize,
}

impl Manifests {
    fn add(&mut self, media_type: &str, raw: String) -> Descriptor {
        let digest = Digest::sha256(raw.as_bytes());
        let descriptor = Descriptor::new(media_type, digest.clone(), raw.len() as u64);
        self.raw.insert(digest, raw.into());
        descriptor
    }

    /// An image with so many layers of its own, and a note.
    fn image(&mut self, name: &str, layers: usize, note: &str) -> Descriptor {
        let layers: Vec<_> = (0..layers)
            .map(|number| entry(OCI_LAYER, &format!("{name} {number}")))
            .collect();
        let config = entry(OCI_CONFIG, name);
        let layers = layers.join(",");
        let raw = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[{layers}],"annotations":{{"note":"{note}"}}}}"#
        );
        self.add(OCI_MANIFEST, raw)
    }

    fn index(entries: &[Descriptor]) -> FetchedManifest {
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| serde_json::to_string(entry).unwrap())
            .collect();
        let entries = entries.join(",");
        let raw =
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}"#);
        FetchedManifest::new(raw.into()).unwrap()
    }
}

fn entry(media_type: &str, content: &str) -> String {
    let descriptor = Descriptor::new(media_type, Digest::sha256(content.as_bytes()), 7);
    serde_json::to_string(&descriptor).unwrap()
}

impl ImageSource for Manifests {
    fn manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<FetchedManifest, TransferError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let raw = self.raw[&descriptor.digest].clone();
        Box::pin(async move { FetchedManifest::new(raw) })
    }

    fn blob(&self, _: &Descriptor) -> Arc<dyn BlobSource> {
        unreachable!()
    }
}

/// A destination that never says whether it has a blob.
struct Silent;

impl ImageDestination for Silent {
    fn place(&self) -> String {
        "here".to_owned()
    }

    fn find_blob<'a>(
        &'a self,
        _: &'a Descriptor,
        _: &'a [String],
    ) -> BoxFuture<'a, Result<BlobState, TransferError>> {
        Box::pin(std::future::pending())
    }

    fn put_blob<'a>(
        &'a self,
        _: &'a Descriptor,
        _: Arc<dyn BlobSource>,
        _: Option<UploadSession>,
        _: &'a Progress,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        unreachable!()
    }

    fn put_manifest<'a>(
        &'a self,
        _: &'a FetchedManifest,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PutManifest, TransferError>> {
        unreachable!()
    }

    fn list_referrer<'a>(
        &'a self,
        _: &'a Digest,
        _: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), TransferError>> {
        unreachable!()
    }
}

async fn refused(source: &Arc<Manifests>, root: FetchedManifest) -> String {
    let copier = Copier::new(CopyOptions::default());
    let copied = copier.copy(source.clone(), root, Arc::new(Silent), None);
    let copied = tokio::time::timeout(Duration::from_mins(1), copied).await;
    copied.expect("it began to copy").unwrap_err().to_string()
}

#[tokio::test]
async fn manifests_that_are_too_large_together_are_not_all_fetched() {
    let mut source = Manifests::default();
    let note = "x".repeat(4_000_000);
    let entries: Vec<_> = (0..40)
        .map(|number| source.image(&format!("{number}"), 1, &note))
        .collect();
    let root = Manifests::index(&entries);
    let source = Arc::new(source);
    let error = refused(&source, root).await;
    assert!(
        error.contains("manifests have more than 67108864 bytes"),
        "{error}"
    );
    // Those that fit, and what was under way.
    let asked = source.asked.load(Ordering::Relaxed);
    assert!((16..=26).contains(&asked), "{asked}");
}

#[tokio::test]
async fn more_blobs_than_any_image_has_are_refused() {
    let mut source = Manifests::default();
    let entries: Vec<_> = (0..5)
        .map(|number| source.image(&format!("{number}"), 16_000, ""))
        .collect();
    let root = Manifests::index(&entries);
    let error = refused(&Arc::new(source), root).await;
    assert!(error.contains("it has more than 65536 blobs"), "{error}");
}

#[tokio::test]
async fn blobs_wait_without_a_task_of_their_own() {
    let mut source = Manifests::default();
    let image = source.image("many", 1000, "");
    let root = Manifests::index(&[image]);
    let copier = Copier::new(CopyOptions {
        parallel: 4,
        ..CopyOptions::default()
    });
    let copied = copier.copy(Arc::new(source), root, Arc::new(Silent), None);
    let copied = tokio::time::timeout(Duration::from_millis(500), copied).await;
    assert!(copied.is_err(), "{copied:?}");
    let begun = copier.shared.blobs.lock().unwrap().len();
    assert_eq!(begun, 4);
}
