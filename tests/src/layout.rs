//! Layouts of a wanted size and shape, written independently of the code under test.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// `sha256:` and the hex digest of the bytes.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("write to a string");
    }
    text
}

/// Writes a blob and returns its digest.
pub fn put_blob(layout: &Path, bytes: &[u8]) -> String {
    let digest = digest(bytes);
    let dir = layout.join("blobs/sha256");
    std::fs::create_dir_all(&dir).expect("create a directory");
    std::fs::write(dir.join(&digest["sha256:".len()..]), bytes).expect("write a blob");
    digest
}

fn put_json(layout: &Path, value: &Value) -> (String, usize) {
    let bytes = serde_json::to_vec(value).expect("serialise");
    (put_blob(layout, &bytes), bytes.len())
}

/// Deterministic bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A layout of one image whose layers are the given bytes (declared as gzip; nobody unpacks them).
/// Returns the manifest's digest.
pub fn write_image(layout: &Path, architecture: &str, layers: &[Vec<u8>]) -> String {
    std::fs::create_dir_all(layout).expect("create a directory");
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("write oci-layout");
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let (config, config_size) = put_json(
        layout,
        &json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }),
    );
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": put_blob(layout, layer), "size": layer.len(),
            })
        })
        .collect();
    let (manifest, manifest_size) = put_json(
        layout,
        &json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config, "size": config_size,
            },
            "layers": layers,
        }),
    );
    write_index(
        layout,
        &json!([{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest, "size": manifest_size,
            "platform": {"os": "linux", "architecture": architecture},
        }]),
    );
    manifest
}

/// A layout of the image in `base` with one more layer, a plain archive, above its own.
pub fn write_above(base: &Path, layout: &Path, archive: &[u8]) {
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(path).expect("read a document")).expect("JSON")
    };
    let blob = |place: &Path, descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        place.join("blobs/sha256").join(&digest["sha256:".len()..])
    };
    crate::fixtures::copy_tree(base, layout);
    let index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(layout, &index["manifests"][0]));
    let mut config = read(&blob(layout, &manifest["config"]));
    let (diff_ids, layers) = (&mut config["rootfs"]["diff_ids"], &mut manifest["layers"]);
    let layer = put_blob(layout, archive);
    diff_ids.as_array_mut().expect("a list").push(json!(layer));
    layers.as_array_mut().expect("a list").push(json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": layer, "size": archive.len(),
    }));
    if let Some(history) = config["history"].as_array_mut() {
        history.push(json!({"created_by": "one more layer"}));
    }
    let (digest, size) = put_json(layout, &config);
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    let (digest, size) = put_json(layout, &manifest);
    write_index(
        layout,
        &json!([{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": size,
            "platform": {"os": "linux", "architecture": config["architecture"]},
        }]),
    );
}

/// Writes `index.json` with these descriptors.
pub fn write_index(layout: &Path, manifests: &Value) {
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    std::fs::write(layout.join("index.json"), index.to_string()).expect("write index.json");
}
