//! Archives and directories of images: written, read, and read when strangers wrote them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{OCI_LAYER, OCI_LAYER_GZIP};
use vdkr_core::manifest::{Descriptor, ManifestKind};
use vdkr_core::platform::Platform;
use vdkr_core::transport::Pick;
use vdkr_transfer::archive::Found;
use vdkr_transfer::copy::push_layout;
use vdkr_transfer::{
    ArchiveKind, ArchiveWriter, Copier, CopyOptions, DirWriter, FetchedManifest, ImageDestination,
    ImageSource, LayoutWriter, OciLayout, TransferError, archive, dir,
};

use super::layout::{image, index};
use super::*;

/// A layout of two platforms under an index that is called `v1`.
fn layout(dir: &Path) -> (OciLayout, Descriptor) {
    let writer = LayoutWriter::create(dir).unwrap();
    let shared = pattern(700_000);
    let entries: Vec<_> = ["amd64", "arm64"]
        .iter()
        .map(|architecture| Descriptor {
            platform: Some(Platform::linux(architecture)),
            ..image(&writer, architecture, &[&shared, architecture.as_bytes()])
        })
        .collect();
    let root = index(&writer, &entries);
    writer.list(&root, Some("v1")).unwrap();
    (OciLayout::open(dir).unwrap(), root)
}

async fn copy(
    from: &OciLayout,
    pick: &Pick,
    to: Arc<dyn ImageDestination>,
) -> Result<FetchedManifest, TransferError> {
    let root = from.pick(pick)?;
    let copier = Copier::new(CopyOptions::default());
    let source: Arc<dyn ImageSource> = Arc::new(from.clone());
    Ok(copier.copy_root(source, root, to, None).await?.1)
}

async fn to_archive(from: &OciLayout, path: &Path, kind: ArchiveKind, pick: &Pick) {
    let writer = ArchiveWriter::create(path, kind).unwrap();
    let root = copy(from, pick, Arc::new(writer.clone())).await.unwrap();
    writer.list(&root.descriptor(), Some("v1"));
    writer.finish(&["app:v1".to_owned()]).unwrap();
}

fn compress(path: &Path) -> [PathBuf; 2] {
    let plain = std::fs::read(path).unwrap();
    let gzip = path.with_extension("tar.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    std::fs::write(&gzip, encoder.finish().unwrap()).unwrap();
    let zstd = path.with_extension("tar.zst");
    std::fs::write(&zstd, zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    [gzip, zstd]
}

/// Everything below the image is there and right.
async fn check_whole(layout: &OciLayout, root: &Digest) {
    let target = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(target.path()).unwrap();
    let copied = copy(layout, &Pick::Only, Arc::new(writer)).await.unwrap();
    assert_eq!(copied.digest, *root);
}

#[tokio::test]
async fn an_oci_archive_is_the_layout_bit_for_bit_and_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (from, root) = layout(&dir.path().join("layout"));
    let paths = ["a.tar", "b.tar"].map(|name| dir.path().join(name));
    for path in &paths {
        to_archive(&from, path, ArchiveKind::Oci, &Pick::Named("v1".into())).await;
    }
    assert!(std::fs::read(&paths[0]).unwrap() == std::fs::read(&paths[1]).unwrap());
    let [gzip, zstd] = compress(&paths[0]);
    for path in [&paths[0], &gzip, &zstd] {
        let (read, found) = archive::open(path).unwrap();
        assert_eq!(found, Found::Oci);
        assert_eq!(
            read.pick(&Pick::Named("v1".into())).unwrap().digest,
            root.digest
        );
        assert_eq!(read.images().unwrap().len(), 2);
        check_whole(&read, &root.digest).await;
    }
    // Nothing is left beside them.
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 5);
}

#[tokio::test]
async fn an_archive_goes_into_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (from, root) = layout(&dir.path().join("layout"));
    let path = dir.path().join("a.tar");
    to_archive(&from, &path, ArchiveKind::Oci, &Pick::Only).await;
    let registry = super::memory::Registry::start().await;
    let layout = archive::open_oci(&path).unwrap();
    let copier = Copier::new(CopyOptions::default());
    let to = repository(&registry.host(), "a");
    let images = layout.images().unwrap();
    let entries = push_layout(&copier, &layout, &images, &client(), &to)
        .await
        .unwrap();
    assert_eq!(entries.len(), 2);
    let ManifestKind::Index(index) = layout.pick(&Pick::Only).unwrap().parse().unwrap().kind else {
        panic!("an index")
    };
    let pushed: Vec<_> = entries.iter().map(|entry| &entry.digest).collect();
    let listed: Vec<_> = index.manifests.iter().map(|entry| &entry.digest).collect();
    assert_eq!(pushed, listed);
    assert_eq!(root.digest, layout.pick(&Pick::Only).unwrap().digest);
}

#[tokio::test]
async fn an_archive_that_was_not_finished_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    std::fs::write(&path, "what was there").unwrap();
    let writer = ArchiveWriter::create(&path, ArchiveKind::Oci).unwrap();
    let content = Bytes::from_static(b"content");
    let wrong = blob(b"CONTENT");
    let error = writer.put_blob(&wrong, &content, &|_| {}).unwrap_err();
    assert!(error.is_content(), "{error}");
    assert!(writer.finish(&[]).is_err(), "a blob is missing");
    drop(writer);
    assert_eq!(std::fs::read(&path).unwrap(), b"what was there");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_docker_archive_keeps_manifest_and_layers() {
    let dir = tempfile::tempdir().unwrap();
    let (from, root) = layout(&dir.path().join("layout"));
    let path = dir.path().join("saved.tar");
    // Of several platforms, somebody has to choose.
    let writer = ArchiveWriter::create(&path, ArchiveKind::Docker).unwrap();
    let copied = copy(&from, &Pick::Only, Arc::new(writer.clone()))
        .await
        .unwrap();
    assert_eq!(copied.digest, root.digest);
    writer.list(&copied.descriptor(), None);
    let error = writer.finish(&[]).unwrap_err().to_string();
    assert!(error.contains("--platform"), "{error}");
    drop(writer);

    let single = from.images().unwrap()[1].descriptor.clone();
    let writer = ArchiveWriter::create(&path, ArchiveKind::Docker).unwrap();
    let source: Arc<dyn ImageSource> = Arc::new(from.clone());
    let manifest = source.manifest(&single).await.unwrap();
    let copier = Copier::new(CopyOptions::default());
    copier
        .copy(source, manifest, Arc::new(writer.clone()), None)
        .await
        .unwrap();
    writer.list(&single, Some("v1"));
    writer.finish(&["app:v1".to_owned()]).unwrap();
    let read = archive::open_docker(&path).unwrap();
    assert_eq!(read.pick(&Pick::Only).unwrap().digest, single.digest);
    check_whole(&read, &single.digest).await;
}

/// What `docker save` wrote before version 25: layers under ids, and a link for one that occurs twice.
fn old_docker_save(layers: [&[u8]; 2], damage: bool) -> (Vec<u8>, Vec<Digest>) {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| {
            if layer.starts_with(&[0x1f, 0x8b]) {
                let mut plain = Vec::new();
                let mut decoder = flate2::read::GzDecoder::new(*layer);
                std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
                Digest::sha256(&plain)
            } else {
                Digest::sha256(layer)
            }
        })
        .collect();
    let config = json!({
        "architecture": "arm64", "os": "linux", "docker_version": "20.10",
        "rootfs": {"type": "layers", "diff_ids": [&diff_ids[0], &diff_ids[1], &diff_ids[0]]},
    })
    .to_string();
    let list = json!([{
        "Config": "abc.json", "RepoTags": ["localhost:5000/yocto/app:v1", "app:latest"],
        "Layers": ["id1/layer.tar", "id2/layer.tar", "id3/layer.tar"],
    }])
    .to_string();
    let mut first = layers[0].to_vec();
    if damage {
        first[0] ^= 1;
    }
    let mut tar = Vec::new();
    let mut add = |name: &str, kind: u8, link: &str, data: &[u8]| {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        block[136..148].copy_from_slice(b"00000000000\0");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum = vdkr_core::tar::header::checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    };
    add("id1/", b'5', "", b"");
    add("id1/layer.tar", b'0', "", &first);
    add("id2/layer.tar", b'0', "", layers[1]);
    add("id3/layer.tar", b'2', "../id1/layer.tar", b"");
    add("abc.json", b'0', "", config.as_bytes());
    add("manifest.json", b'0', "", list.as_bytes());
    tar.resize(tar.len() + 1024, 0);
    (tar, diff_ids)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn an_old_docker_archive_becomes_an_oci_image_of_the_same_layers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    let (plain, inner) = (pattern(60_000), gzip(b"compressed within"));
    let (tar, diff_ids) = old_docker_save([&plain, &inner], false);
    std::fs::write(&path, tar).unwrap();
    let (read, found) = archive::open(&path).unwrap();
    assert_eq!(found, Found::Docker);
    for name in [
        "app:latest",
        "docker.io/library/app",
        "localhost:5000/yocto/app:v1",
    ] {
        read.pick(&Pick::Named(name.to_owned())).unwrap();
    }
    assert!(read.pick(&Pick::Named("other".to_owned())).is_err());
    let manifest = read.pick(&Pick::Only).unwrap().parse().unwrap();
    let layers = &manifest.as_image().unwrap().layers;
    let shown: Vec<_> = layers
        .iter()
        .map(|layer| (layer.media_type.as_str(), layer.digest.clone()))
        .collect();
    let first = (OCI_LAYER, diff_ids[0].clone());
    let second = (OCI_LAYER_GZIP, Digest::sha256(&inner));
    assert_eq!(shown, [first.clone(), second, first]);
    let platform = read.images().unwrap()[0].descriptor.platform.clone();
    assert_eq!(platform.unwrap(), Platform::linux("arm64"));
    check_whole(&read, &read.pick(&Pick::Only).unwrap().digest).await;
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    let plain = pattern(60_000);
    std::fs::write(&path, old_docker_save([&plain, b"second"], true).0).unwrap();
    let read = archive::open_docker(&path).unwrap();
    let target = LayoutWriter::create(dir.path().join("to")).unwrap();
    let error = copy(&read, &Pick::Only, Arc::new(target))
        .await
        .unwrap_err();
    assert!(error.is_content(), "{error}");
}

#[test]
fn what_is_no_archive_of_images_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let mut reasons = Vec::new();
    for content in [&b""[..], &[0; 1024], b"PK\x03\x04", &[7; 5000]] {
        std::fs::write(&path, content).unwrap();
        reasons.push(archive::open(&path).unwrap_err().to_string());
    }
    assert!(reasons[0].contains("neither"), "{}", reasons[0]);
    assert!(
        reasons.iter().all(|reason| reason.contains("a.tar")),
        "{reasons:?}"
    );
    let (tar, _) = old_docker_save([b"a", b"b"], false);
    std::fs::write(&path, tar).unwrap();
    let error = archive::open_oci(&path).unwrap_err().to_string();
    assert!(error.contains("docker-archive"), "{error}");
}

#[tokio::test]
async fn skopeos_directory_holds_an_index_with_all_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let (from, root) = layout(&dir.path().join("layout"));
    let to = dir.path().join("dir");
    let writer = DirWriter::create(&to).unwrap();
    let copied = copy(&from, &Pick::Only, Arc::new(writer.clone()))
        .await
        .unwrap();
    assert!(dir::open(&to).is_err(), "no image before its end");
    writer.finish(&copied.raw).unwrap();
    let read = dir::open(&to).unwrap();
    assert_eq!(read.pick(&Pick::Only).unwrap().digest, root.digest);
    check_whole(&read, &root.digest).await;
    // A directory of something else is left alone.
    assert!(DirWriter::create(dir.path().join("layout")).is_err());
}

#[test]
fn of_several_images_one_is_chosen_by_name_or_place() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let (one, two) = (
        image(&writer, "amd64", &[b"1"]),
        image(&writer, "amd64", &[b"2"]),
    );
    writer.list(&one, Some("one")).unwrap();
    writer.list(&two, Some("two")).unwrap();
    let layout = OciLayout::open(dir.path()).unwrap();
    let digest = |pick: Pick| layout.pick(&pick).map(|found| found.digest);
    assert_eq!(digest(Pick::Named("two".into())).unwrap(), two.digest);
    assert_eq!(digest(Pick::At(0)).unwrap(), one.digest);
    for pick in [Pick::Only, Pick::At(2), Pick::Named("three".into())] {
        let error = digest(pick).unwrap_err().to_string();
        assert!(
            error.contains("images") || error.contains("one, two"),
            "{error}"
        );
    }
}

#[test]
fn platforms_side_by_side_are_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    for architecture in ["amd64", "arm64"] {
        let entry = Descriptor {
            platform: Some(Platform::linux(architecture)),
            ..image(&writer, architecture, &[b"x"])
        };
        writer.list(&entry, None).unwrap();
    }
    let layout = OciLayout::open(dir.path()).unwrap();
    let whole = layout.pick(&Pick::Only).unwrap();
    assert_eq!(whole.raw, layout.raw_index());
}
