//! Layouts as they come from strangers.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use vdkr_core::manifest::{Descriptor, ImageIndex, ImageManifest};
use vdkr_core::platform::Platform;
use vdkr_transfer::{LayoutWriter, OciLayout, TransferError};

use super::*;

/// Writes an image into a layout and gives its manifest's descriptor.
pub(crate) fn image(writer: &LayoutWriter, architecture: &str, layers: &[&[u8]]) -> Descriptor {
    let put = |media_type: &str, content: &[u8]| {
        let descriptor = Descriptor::new(media_type, Digest::sha256(content), content.len() as u64);
        writer.put_bytes(&descriptor.digest, content).unwrap();
        descriptor
    };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let manifest = ImageManifest {
        artifact_type: None,
        config: put(OCI_CONFIG, config.as_bytes()),
        layers: layers
            .iter()
            .map(|layer| put(OCI_LAYER_GZIP, layer))
            .collect(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    put(OCI_MANIFEST, &manifest.to_json().unwrap())
}

/// Writes an index into a layout and gives its descriptor.
pub(crate) fn index(writer: &LayoutWriter, manifests: &[Descriptor]) -> Descriptor {
    let index = ImageIndex {
        manifests: manifests.to_vec(),
        ..ImageIndex::default()
    };
    let raw = index.to_json().unwrap();
    let digest = Digest::sha256(&raw);
    writer.put_bytes(&digest, &raw).unwrap();
    Descriptor::new(OCI_INDEX, digest, raw.len() as u64)
}

fn error(path: &Path) -> String {
    OciLayout::open(path).unwrap_err().to_string()
}

#[test]
fn flat_and_nested_are_one_list() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let amd64 = image(&writer, "amd64", &[b"a"]);
    let arm64 = Descriptor {
        platform: Some(Platform::linux("arm64")),
        ..image(&writer, "arm64", &[b"b"])
    };
    let nested = index(&writer, &[amd64.clone(), arm64.clone()]);
    writer.list(&amd64, Some("latest")).unwrap();
    writer.list(&nested, Some("multi")).unwrap();
    let layout = OciLayout::open(dir.path()).unwrap();
    let images = layout.images().unwrap();
    let shown: Vec<_> = images
        .iter()
        .map(|image| {
            let platform = image.descriptor.platform.as_ref().unwrap().to_string();
            (platform, image.name.as_deref(), image.path.len())
        })
        .collect();
    // Where the index says nothing, the configuration does.
    assert_eq!(
        shown,
        [
            ("linux/amd64".to_owned(), Some("latest"), 0),
            ("linux/arm64".to_owned(), Some("multi"), 1),
        ]
    );
    assert_eq!(images[1].path, [nested.digest]);
}

#[test]
fn what_is_listed_again_comes_once_where_it_was_first() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let images = ["amd64", "arm64", "riscv64"].map(|name| image(&writer, name, &[name.as_bytes()]));
    let [amd64, arm64, riscv64] = images.clone();
    let inner = index(&writer, &[arm64.clone(), amd64.clone(), arm64]);
    let outer = index(&writer, &[riscv64, inner.clone(), inner.clone()]);
    writer.list(&outer, Some("outer")).unwrap();
    writer.list(&inner, Some("inner")).unwrap();
    writer.list(&amd64, Some("latest")).unwrap();
    let found = OciLayout::open(dir.path()).unwrap().images().unwrap();
    let shown: Vec<_> = found
        .iter()
        .map(|image| {
            (
                image.descriptor.digest.clone(),
                image.name.as_deref(),
                image.path.clone(),
            )
        })
        .collect();
    let [amd64, arm64, riscv64] = images.map(|image| image.digest);
    let (inner, outer) = (inner.digest, outer.digest);
    assert_eq!(
        shown,
        [
            (riscv64, Some("outer"), vec![outer.clone()]),
            (arm64, Some("outer"), vec![outer.clone(), inner.clone()]),
            (amd64, Some("outer"), vec![outer, inner]),
        ]
    );
}

#[test]
fn indexes_that_name_each_other_over_and_over_are_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let mut entry = image(&writer, "amd64", &[b"a"]);
    for _ in 0..3 {
        entry = index(&writer, &vec![entry; 1000]);
    }
    writer.list(&entry, None).unwrap();
    let layout = OciLayout::open(dir.path()).unwrap();
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(layout.images().unwrap().len()));
    let count = result.recv_timeout(std::time::Duration::from_mins(1));
    assert_eq!(count.expect("it reads them a thousand times"), 1);
}

#[test]
fn a_link_to_a_layout_is_that_layout() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("image-20260101-oci");
    let writer = LayoutWriter::create(&real).unwrap();
    writer.list(&image(&writer, "amd64", &[]), None).unwrap();
    let link = dir.path().join("image-latest-oci");
    symlink("image-20260101-oci", &link).unwrap();
    assert_eq!(OciLayout::open(link).unwrap().images().unwrap().len(), 1);
}

#[test]
fn what_is_no_layout_says_why() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(&dir.path().join("none")).contains("none"));
    assert!(error(dir.path()).contains("no file oci-layout"));
    std::fs::write(
        dir.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    assert!(error(dir.path()).contains("no file index.json"));
    std::fs::write(dir.path().join("index.json"), "{").unwrap();
    assert!(error(dir.path()).contains("index.json"));
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{}","size":0}},"layers":[]}}"#,
        Digest::sha256(b"")
    );
    std::fs::write(dir.path().join("index.json"), manifest).unwrap();
    assert!(error(dir.path()).contains("not a list of images"));
}

#[test]
fn a_gigabyte_of_index_is_refused_by_its_size() {
    let dir = tempfile::tempdir().unwrap();
    LayoutWriter::create(dir.path()).unwrap();
    // A hole: it takes no room here, and would as zeros in memory.
    let file = std::fs::File::create(dir.path().join("index.json")).unwrap();
    file.set_len(1 << 30).unwrap();
    let error = OciLayout::open(dir.path()).unwrap_err();
    assert!(matches!(error, TransferError::TooLarge { .. }), "{error}");
}

#[test]
fn links_and_special_files_inside_are_refused() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    for victim in ["oci-layout", "index.json"] {
        let dir = tempfile::tempdir().unwrap();
        LayoutWriter::create(dir.path()).unwrap();
        let path = dir.path().join(victim);
        std::fs::copy(&path, outside.path()).unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(outside.path(), &path).unwrap();
        assert!(error(dir.path()).contains("symbolic link"), "{victim}");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(error(dir.path()).contains("not a regular file"), "{victim}");
    }
}

#[test]
fn blobs_are_what_and_where_they_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let content = pattern(1000);
    let descriptor = blob(&content);
    writer.put_bytes(&descriptor.digest, &content).unwrap();
    let layout = OciLayout::open(dir.path()).unwrap();
    let read =
        || -> Result<Vec<u8>, TransferError> { layout.open_blob(&descriptor)?.read_verified() };
    assert_eq!(read().unwrap(), content);

    let path = dir
        .path()
        .join("blobs/sha256")
        .join(descriptor.digest.hex());
    let mut wrong = content.clone();
    wrong[7] ^= 1;
    std::fs::write(&path, &wrong).unwrap();
    assert!(matches!(read(), Err(TransferError::DigestMismatch { .. })));
    std::fs::write(&path, &content[1..]).unwrap();
    assert!(matches!(read(), Err(TransferError::SizeMismatch { .. })));

    // The right bytes behind a link are refused all the same.
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, &content).unwrap();
    std::fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(read().unwrap_err().to_string().contains("symbolic link"));
    std::fs::remove_file(&path).unwrap();
    assert!(read().unwrap_err().to_string().contains("does not have it"));
    std::fs::rename(dir.path().join("blobs"), dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("blobs")).unwrap();
    std::fs::write(
        dir.path().join("real/sha256").join(descriptor.digest.hex()),
        &content,
    )
    .unwrap();
    assert!(read().unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn a_manifest_that_claims_a_terabyte_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let huge = Descriptor::new(OCI_INDEX, Digest::sha256(b""), 1 << 40);
    writer.list(&huge, None).unwrap();
    let error = OciLayout::open(dir.path()).unwrap().images().unwrap_err();
    assert!(matches!(error, TransferError::TooLarge { .. }), "{error}");
}

#[test]
fn indexes_nest_only_so_deep() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::create(dir.path()).unwrap();
    let mut top = image(&writer, "amd64", &[]);
    for _ in 0..8 {
        top = index(&writer, &[top]);
    }
    writer.list(&top, None).unwrap();
    let images = OciLayout::open(dir.path()).unwrap().images().unwrap();
    assert_eq!((images.len(), images[0].path.len()), (1, 8));
    writer
        .list(&index(&writer, &[top]), Some("deeper"))
        .unwrap();
    let error = OciLayout::open(dir.path()).unwrap().images().unwrap_err();
    assert!(error.to_string().contains("nest"), "{error}");
}
