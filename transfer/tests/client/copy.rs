//! Whole images from one place to another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{OCI_INDEX, OCI_MANIFEST};
use vdkr_core::manifest::{Descriptor, ImageManifest};
use vdkr_core::platform::Platform;
use vdkr_core::reference::Selector;
use vdkr_transfer::copy::{copy_registry, push_layout};
use vdkr_transfer::{
    Copier, CopyOptions, ImageSource, LayoutWriter, OciLayout, Outcome, ProgressEvent,
    RegistryImages, TransferError,
};

use super::layout::{image, index};
use super::memory::Registry;
use super::*;

struct Images {
    dir: tempfile::TempDir,
    writer: LayoutWriter,
}

impl Images {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let writer = LayoutWriter::create(dir.path()).unwrap();
        Self { dir, writer }
    }

    fn layout(&self) -> OciLayout {
        OciLayout::open(self.dir.path()).unwrap()
    }

    /// Two platforms that share a layer, under an index.
    fn two_platforms(&self) -> Descriptor {
        let shared = pattern(2_000_000);
        let entries: Vec<_> = ["amd64", "arm64"]
            .iter()
            .map(|architecture| Descriptor {
                platform: Some(Platform::linux(architecture)),
                ..image(
                    &self.writer,
                    architecture,
                    &[&shared, architecture.as_bytes()],
                )
            })
            .collect();
        index(&self.writer, &entries)
    }
}

fn to(registry: &Registry, name: &str) -> RegistryImages {
    RegistryImages::new(client(), repository(&registry.host(), name))
}

async fn push(
    copier: &Copier,
    images: &Images,
    root: &Descriptor,
    registry: &Registry,
    name: &str,
) -> Result<vdkr_transfer::CopyReport, TransferError> {
    let source: Arc<dyn ImageSource> = Arc::new(images.layout());
    let manifest = source.manifest(root).await?;
    copier
        .copy(source, manifest, Arc::new(to(registry, name)), Some("t"))
        .await
}

fn copier() -> Copier {
    Copier::new(CopyOptions::default())
}

#[tokio::test]
async fn an_index_arrives_whole_and_in_order() {
    let images = Images::new();
    let root = images.two_platforms();
    // The registry takes no manifest before what it names.
    let registry = Registry::start().await;
    let report = push(&copier(), &images, &root, &registry, "a/b")
        .await
        .unwrap();
    assert_eq!(report.root.digest, root.digest);
    assert!(!report.subset);
    // Two configurations, the shared layer, two of their own.
    assert_eq!((report.written.0, report.manifests), (5, 3));
    let raw = registry.manifest("a/b", "t").unwrap();
    assert_eq!(Digest::sha256(&raw), root.digest);
    assert_eq!(registry.uploads(), 5);
}

/// The images of the index that is `a:t`.
fn children(registry: &Registry) -> Vec<Digest> {
    let raw = registry.manifest("a", "t").unwrap();
    let index = vdkr_core::manifest::parse(&raw, None).unwrap();
    let children = index.manifests().iter();
    children.map(|child| child.digest.clone()).collect()
}

#[tokio::test]
async fn again_it_takes_a_question_for_each_name() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    let before = registry.requests().len();
    let report = push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    assert_eq!((report.written.0, report.manifests), (0, 0));
    let after = registry.requests();
    let asked: BTreeSet<&str> = after[before..].iter().map(String::as_str).collect();
    let children = children(&registry);
    let manifests: Vec<_> = std::iter::once(&root.digest)
        .chain(&children)
        .map(|digest| format!("HEAD /v2/a/manifests/{digest}"))
        .collect();
    let expected = ["GET /v2/", "HEAD /v2/a/manifests/t"];
    let expected = expected
        .into_iter()
        .chain(manifests.iter().map(String::as_str));
    assert_eq!(asked, expected.collect());
}

#[tokio::test]
async fn an_image_that_went_from_under_its_index_is_sent_again() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    let lost = children(&registry).pop().unwrap();
    registry.lose_manifest("a", &lost);
    let report = push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    // The image, and the index after it.
    assert_eq!((report.written.0, report.manifests), (0, 2));
    assert!(registry.manifest("a", lost.as_str()).is_some());
}

#[tokio::test]
async fn what_one_copy_brought_is_mounted_by_the_next() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    let copier = copier();
    push(&copier, &images, &root, &registry, "a").await.unwrap();
    let report = push(&copier, &images, &root, &registry, "b").await.unwrap();
    assert_eq!((report.written.0, report.mounted), (0, 5));
    assert_eq!(registry.uploads(), 5);
    assert!(registry.manifest("b", "t").is_some());
}

#[tokio::test]
async fn a_registry_that_mounts_of_itself_is_sent_nothing_twice() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    registry.be_generous();
    // A new copier does not know where anything is.
    let report = push(&copier(), &images, &root, &registry, "b")
        .await
        .unwrap();
    assert_eq!((report.written.0, report.mounted), (0, 5));
    assert_eq!((registry.uploads(), registry.open_sessions()), (5, 0));
}

#[tokio::test]
async fn a_part_that_is_there_is_not_looked_into() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    let amd64 = images
        .layout()
        .manifest(&root)
        .unwrap()
        .parse()
        .unwrap()
        .manifests()[0]
        .clone();
    push(&copier(), &images, &amd64, &registry, "a")
        .await
        .unwrap();
    let before = registry.requests().len();
    let report = push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    // Of the other platform, the shared layer is there.
    assert_eq!(
        (report.written.0, report.present, report.manifests),
        (2, 1, 2)
    );
    let own = Digest::sha256(b"amd64").to_string();
    let asked = registry.requests();
    assert!(
        asked[before..]
            .iter()
            .all(|request| !request.contains(&own))
    );
}

#[tokio::test]
async fn a_thorough_copy_mends_what_a_registry_lost() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    let lost = blob(&pattern(2_000_000)).digest;
    registry.lose("a", &lost);
    push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    assert!(!registry.has_blob("a", &lost), "the manifest stands for it");
    let thorough = Copier::new(CopyOptions {
        thorough: true,
        ..CopyOptions::default()
    });
    let report = push(&thorough, &images, &root, &registry, "a")
        .await
        .unwrap();
    assert_eq!((report.written.0, report.present), (1, 4));
    assert!(registry.has_blob("a", &lost));
}

#[tokio::test]
async fn two_copies_at_once_send_each_blob_once() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    let copier = copier();
    let (a, b) = tokio::join!(
        push(&copier, &images, &root, &registry, "a"),
        push(&copier, &images, &root, &registry, "a"),
    );
    assert_eq!(a.unwrap().root, b.unwrap().root);
    assert_eq!(registry.uploads(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_blobs_under_a_tiny_budget_all_arrive() {
    let images = Images::new();
    let layers: Vec<Vec<u8>> = (0..40usize).map(|n| pattern(1000 * n + n)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let big = pattern(5_000_000);
    let root = image(&images.writer, "amd64", &[&layers[..], &[&big]].concat());
    let registry = Registry::start().await;
    let copier = Copier::new(CopyOptions {
        parallel: 16,
        byte_budget: 1,
        ..CopyOptions::default()
    });
    let report = push(&copier, &images, &root, &registry, "a").await.unwrap();
    assert_eq!(report.written.0, 42);
}

#[tokio::test]
async fn a_wrong_blob_stops_the_copy_before_any_manifest() {
    let images = Images::new();
    let root = images.two_platforms();
    let layer = blob(&pattern(2_000_000));
    let path = images
        .dir
        .path()
        .join("blobs/sha256")
        .join(layer.digest.hex());
    let mut wrong = pattern(2_000_000);
    wrong[1_999_999] ^= 1;
    std::fs::write(&path, wrong).unwrap();
    let registry = Registry::start().await;
    let error = push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransferError::DigestMismatch { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(layer.digest.short()), "{error}");
    assert!(registry.manifest("a", "t").is_none());
    assert!(!registry.has_blob("a", &layer.digest));

    std::fs::remove_file(&path).unwrap();
    let error = push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("does not have it"), "{error}");
}

#[tokio::test]
async fn from_registry_to_registry_bit_for_bit() {
    let images = Images::new();
    let root = images.two_platforms();
    let (from, other) = (Registry::start().await, Registry::start().await);
    push(&copier(), &images, &root, &from, "a").await.unwrap();
    let report = copy_registry(
        &copier(),
        to(&from, "a"),
        Selector::Tag("t"),
        to(&other, "b"),
        Some("u"),
    )
    .await
    .unwrap();
    assert_eq!(report.root.digest, root.digest);
    assert_eq!(from.manifest("a", "t"), other.manifest("b", "u"));
    // Within one registry nothing travels.
    let before = from.uploads();
    let report = copy_registry(
        &copier(),
        to(&from, "a"),
        Selector::Digest(&root.digest),
        to(&from, "c"),
        Some("t"),
    )
    .await
    .unwrap();
    assert_eq!((report.mounted, from.uploads()), (5, before));
}

#[tokio::test]
async fn from_a_registry_into_a_layout_and_back() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    push(&copier(), &images, &root, &registry, "a")
        .await
        .unwrap();
    let fresh = Images::new();
    let from = to(&registry, "a");
    let manifest = from
        .client()
        .get_manifest(&repository(&registry.host(), "a"), Selector::Tag("t"))
        .await
        .unwrap();
    for written in [5, 0] {
        let report = copier()
            .copy(
                Arc::new(from.clone()),
                manifest.clone(),
                Arc::new(fresh.writer.clone()),
                Some("t"),
            )
            .await
            .unwrap();
        assert_eq!(report.written.0, written);
    }
    let listed = fresh.layout().images().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(fresh.layout().index().manifests[0].digest, root.digest);
}

#[tokio::test]
async fn a_subset_is_a_new_index_of_untouched_entries() {
    let images = Images::new();
    let root = images.two_platforms();
    let registry = Registry::start().await;
    let copier = |platform: &str| {
        Copier::new(CopyOptions {
            platforms: vec![Platform::parse(platform).unwrap()],
            ..CopyOptions::default()
        })
    };
    let report = push(&copier("linux/arm64"), &images, &root, &registry, "a")
        .await
        .unwrap();
    assert!(report.subset);
    assert_ne!(report.root.digest, root.digest);
    assert_eq!(
        (report.root.media_type.as_str(), report.written.0),
        (OCI_INDEX, 3)
    );
    let raw = registry.manifest("a", "t").unwrap();
    assert_eq!(Digest::sha256(&raw), report.root.digest);
    let parsed = vdkr_core::manifest::parse(&raw, None).unwrap();
    let whole = images.layout().manifest(&root).unwrap().parse().unwrap();
    assert_eq!(parsed.manifests(), &whole.manifests()[1..]);

    let error = push(&copier("linux/riscv64"), &images, &root, &registry, "a")
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("linux/amd64, linux/arm64"),
        "{error}"
    );

    // An image that is no index is what its configuration says.
    let single = image(&images.writer, "amd64", &[]);
    let report = push(&copier("linux/amd64"), &images, &single, &registry, "b")
        .await
        .unwrap();
    assert!(!report.subset);
    let error = push(&copier("linux/arm64"), &images, &single, &registry, "b")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("linux/amd64"), "{error}");
}

#[tokio::test]
async fn pushing_a_layout_gives_what_an_index_needs() {
    let images = Images::new();
    let amd64 = image(&images.writer, "amd64", &[b"x"]);
    images.writer.list(&amd64, Some("latest")).unwrap();
    let registry = Registry::start().await;
    let layout = images.layout();
    let found = layout.images().unwrap();
    let repository = repository(&registry.host(), "a");
    let pushed = push_layout(&copier(), &layout, &found, &client(), &repository)
        .await
        .unwrap();
    assert_eq!(pushed[0].digest, amd64.digest);
    assert_eq!(pushed[0].platform, Some(Platform::linux("amd64")));
    assert!(
        pushed[0].annotations.is_empty(),
        "the name was the layout's"
    );
    assert!(registry.manifest("a", amd64.digest.as_str()).is_some());
}

#[tokio::test]
async fn referrers_go_along_with_theirs() {
    let images = Images::new();
    let root = images.two_platforms();
    let signature = |subject: &Descriptor, text: &[u8]| {
        let config = Descriptor::new(
            "application/vnd.oci.empty.v1+json",
            Digest::sha256(b"{}"),
            2,
        );
        let layer = blob(text);
        images.writer.put_bytes(&config.digest, b"{}").unwrap();
        images.writer.put_bytes(&layer.digest, text).unwrap();
        let manifest = ImageManifest {
            artifact_type: Some("x/signature".to_owned()),
            config,
            layers: vec![layer],
            subject: Some(subject.clone()),
            annotations: BTreeMap::new(),
        };
        let raw = manifest.to_json().unwrap();
        let digest = Digest::sha256(&raw);
        images.writer.put_bytes(&digest, &raw).unwrap();
        Descriptor::new(OCI_MANIFEST, digest, raw.len() as u64)
    };
    let first = signature(&root, b"of the index");
    let second = signature(&first, b"of the signature");
    // Neither registry has the API, so the stand-in tags must be kept up.
    let (from, other) = (Registry::start().await, Registry::start().await);
    push(&copier(), &images, &root, &from, "a").await.unwrap();
    for (entry, subject) in [(&first, &root), (&second, &first)] {
        push(&copier(), &images, entry, &from, "a").await.unwrap();
        client()
            .list_referrer(&repository(&from.host(), "a"), &subject.digest, entry)
            .await
            .unwrap();
    }
    let copier = Copier::new(CopyOptions {
        referrers: true,
        ..CopyOptions::default()
    });
    copy_registry(
        &copier,
        to(&from, "a"),
        Selector::Digest(&root.digest),
        to(&other, "b"),
        Some("t"),
    )
    .await
    .unwrap();
    let there = repository(&other.host(), "b");
    for (entry, subject) in [(&first, &root), (&second, &first)] {
        assert!(other.manifest("b", entry.digest.as_str()).is_some());
        let listed = client()
            .referrers(&there, &subject.digest, None)
            .await
            .unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].digest, entry.digest);
        assert_eq!(listed[0].artifact_type.as_deref(), Some("x/signature"));
    }
}

#[tokio::test]
async fn what_cosign_keeps_under_tags_goes_along_into_a_layout_and_back() {
    let images = Images::new();
    let root = images.two_platforms();
    let (from, other) = (Registry::start().await, Registry::start().await);
    push(&copier(), &images, &root, &from, "a").await.unwrap();
    let signature = image(&images.writer, "none", &[b"signature"]);
    let tag = format!("sha256-{}.sig", root.digest.hex());
    let sign = |tag: String| {
        let (images, from) = (&images, &from);
        let signature = &signature;
        async move {
            let source: Arc<dyn ImageSource> = Arc::new(images.layout());
            let manifest = source.manifest(signature).await.unwrap();
            let to = Arc::new(to(from, "a"));
            copier()
                .copy(source, manifest, to, Some(&tag))
                .await
                .unwrap();
        }
    };
    sign(tag.clone()).await;
    // Of another image: stays where it is.
    let stranger = format!("sha256-{}.sig", Digest::sha256(b"stranger").hex());
    sign(stranger.clone()).await;
    let copier = Copier::new(CopyOptions {
        referrers: true,
        ..CopyOptions::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let source: Arc<dyn ImageSource> = Arc::new(to(&from, "a"));
    let manifest = source.manifest(&root).await.unwrap();
    copier
        .copy(source, manifest, Arc::new(writer), Some("v1"))
        .await
        .unwrap();
    let layout = OciLayout::open(dir.path()).unwrap();
    let source: Arc<dyn ImageSource> = Arc::new(layout.clone());
    let manifest = source.manifest(&root).await.unwrap();
    copier
        .copy(source, manifest, Arc::new(to(&other, "b")), Some("v1"))
        .await
        .unwrap();
    assert_eq!(other.manifest("b", &tag), from.manifest("a", &tag));
    assert!(other.manifest("b", &tag).is_some());
    assert!(other.manifest("b", &stranger).is_none());
}

#[tokio::test]
async fn every_start_has_its_end_in_the_events() {
    let images = Images::new();
    let root = images.two_platforms();
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    let copier = Copier::new(CopyOptions {
        progress: Arc::new(move |event: &ProgressEvent| heard.lock().unwrap().push(event.clone())),
        ..CopyOptions::default()
    });
    let registry = Registry::start().await;
    push(&copier, &images, &root, &registry, "a").await.unwrap();
    let events = events.lock().unwrap();
    let mut open = BTreeSet::new();
    let mut planned = None;
    let mut uploaded = 0;
    for event in events.iter() {
        match event {
            ProgressEvent::Planned { blobs, bytes } => planned = Some((*blobs, *bytes)),
            ProgressEvent::Started { digest, .. } => assert!(open.insert(digest.clone())),
            ProgressEvent::Finished { digest, outcome } => {
                assert!(open.remove(digest));
                uploaded += usize::from(*outcome == Outcome::Uploaded);
            }
            _ => {}
        }
    }
    assert!(open.is_empty());
    let (blobs, bytes) = planned.unwrap();
    assert_eq!((blobs, uploaded), (5, 8));
    assert!(bytes > 2_000_000);
}
