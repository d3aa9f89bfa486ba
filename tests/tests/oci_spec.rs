//! Our reading of names and documents against an independent implementation's.

use oci_spec::distribution::Reference as Theirs;
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use vdkr_core::manifest::{ImageConfig, ManifestKind, parse};
use vdkr_core::reference::Reference;
use vdkr_tests::fixtures::layout;

#[test]
fn references_agree() {
    for text in [
        "alpine",
        "alpine:3.20",
        "user/app",
        "docker.io/library/alpine",
        "localhost:5000/yocto/container-base:v1",
        "10.0.2.2:5000/a/b/c",
        "registry.example.com/x__y/z-z.w:1.2.3",
        "ghcr.io/org/private@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ] {
        let theirs: Theirs = text.parse().unwrap();
        let ours = Reference::parse(text).unwrap();
        assert_eq!(ours.host().to_string(), theirs.registry(), "{text}");
        assert_eq!(ours.repository(), theirs.repository(), "{text}");
        assert_eq!(
            ours.digest().map(ToString::to_string).as_deref(),
            theirs.digest(),
            "{text}"
        );
        if theirs.digest().is_none() {
            assert_eq!(Some(ours.tag_or_latest()), theirs.tag(), "{text}");
        }
    }
    for text in [
        "a___b",
        "a..b",
        "a:",
        "a@sha256:short",
        "https://host/a",
        "a b",
    ] {
        assert!(Reference::parse(text).is_err(), "{text}");
        assert!(text.parse::<Theirs>().is_err(), "{text}");
    }
}

#[test]
fn documents_of_real_images_agree() {
    for name in ["container-base-latest-oci", "debian-base-latest-oci"] {
        let layout = layout("qemux86-64", name);
        let blob = |digest: &str| {
            std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap()
        };
        let raw = std::fs::read(layout.join("index.json")).unwrap();
        let theirs = ImageIndex::from_reader(&*raw).unwrap();
        let ours = parse(&raw, None).unwrap();
        let ManifestKind::Index(index) = &ours.kind else {
            panic!("an index")
        };
        assert_eq!(index.manifests.len(), theirs.manifests().len());
        let entry = &index.manifests[0];
        assert_eq!(
            entry.digest.to_string(),
            theirs.manifests()[0].digest().to_string()
        );
        assert_eq!(entry.size, theirs.manifests()[0].size());

        let raw = blob(entry.digest.as_str());
        let theirs = ImageManifest::from_reader(&*raw).unwrap();
        let ours = parse(&raw, Some(&entry.media_type)).unwrap();
        let image = ours.as_image().unwrap();
        let digests = |layers: &[oci_spec::image::Descriptor]| -> Vec<String> {
            layers
                .iter()
                .map(|layer| layer.digest().to_string())
                .collect()
        };
        let own: Vec<_> = image
            .layers
            .iter()
            .map(|layer| layer.digest.to_string())
            .collect();
        assert_eq!(own, digests(theirs.layers()));

        let raw = blob(image.config.digest.as_str());
        let theirs = ImageConfiguration::from_reader(&*raw).unwrap();
        let ours = ImageConfig::parse(&raw).unwrap();
        assert_eq!(ours.architecture, theirs.architecture().to_string());
        let diff_ids: Vec<_> = ours
            .rootfs
            .diff_ids
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(&diff_ids, theirs.rootfs().diff_ids());
        let cmd = theirs
            .config()
            .as_ref()
            .and_then(|c| c.cmd().clone())
            .unwrap_or_default();
        assert_eq!(ours.config.cmd, cmd);
    }
}
