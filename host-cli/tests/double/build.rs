//! Layouts as builds make them, and the program run on them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use vdkr_core::manifest::{Descriptor, ImageIndex, ImageManifest};
use vdkr_core::platform::Platform;
use vdkr_transfer::LayoutWriter;

/// Bytes that do not repeat in a way that would hide a shift.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Writes an image for `arch` or `arch/variant` into a layout and gives its descriptor, without a
/// platform.
pub(crate) fn put_image(writer: &LayoutWriter, platform: &str, layers: &[&[u8]]) -> Descriptor {
    let put = |media_type: &str, content: &[u8]| {
        let digest = Digest::sha256(content);
        writer.put_bytes(&digest, content).unwrap();
        Descriptor::new(media_type, digest, content.len() as u64)
    };
    let (architecture, variant) = match platform.split_once('/') {
        Some((architecture, variant)) => (architecture, Some(variant)),
        None => (platform, None),
    };
    let config = json!({
        "architecture": architecture, "variant": variant, "os": "linux",
        "created": "2026-01-12T14:30:22Z",
        "config": {"Env": ["PATH=/bin"], "Labels": {"org.opencontainers.image.version": "1.2"}},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let manifest = ImageManifest {
        artifact_type: None,
        config: put(OCI_CONFIG, config.to_string().as_bytes()),
        layers: layers
            .iter()
            .map(|layer| put(OCI_LAYER_GZIP, layer))
            .collect(),
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    put(OCI_MANIFEST, &manifest.to_json().unwrap())
}

/// A layout of one image at `path`; gives the manifest's digest.
pub(crate) fn layout(path: &Path, platform: &str, layers: &[&[u8]]) -> Digest {
    let writer = LayoutWriter::create(path).unwrap();
    let image = put_image(&writer, platform, layers);
    writer.list(&image, Some("latest")).unwrap();
    image.digest
}

/// A layout with one index of these platforms, as `oci-multiarch` makes it.
pub(crate) fn multiarch(path: &Path, platforms: &[&str]) -> Vec<Digest> {
    let writer = LayoutWriter::create(path).unwrap();
    let manifests: Vec<_> = platforms
        .iter()
        .map(|platform| Descriptor {
            platform: Some(Platform::linux(platform)),
            ..put_image(&writer, platform, &[platform.as_bytes()])
        })
        .collect();
    let index = ImageIndex {
        manifests: manifests.clone(),
        ..ImageIndex::default()
    };
    let raw = index.to_json().unwrap();
    let digest = Digest::sha256(&raw);
    writer.put_bytes(&digest, &raw).unwrap();
    let media_type = vdkr_core::manifest::media_type::OCI_INDEX;
    let descriptor = Descriptor::new(media_type, digest, raw.len() as u64);
    writer.list(&descriptor, Some("latest")).unwrap();
    manifests.into_iter().map(|entry| entry.digest).collect()
}

/// The program, with a home and none of the caller's configuration.
pub(crate) fn program(home: &Path, registry: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_container-registry"));
    command.env_clear();
    for name in ["PATH", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("HOME", home)
        .env("CONTAINER_REGISTRY_STORAGE", home.join("storage"))
        .env("CONTAINER_REGISTRY_URL", registry)
        .current_dir(home);
    command
}

/// What a program did, as text.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit status.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(std::process::Stdio::null()).output().unwrap();
    Ran {
        code: status.code().unwrap_or(128),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

impl Ran {
    /// Fails the test unless the status is `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        self
    }
}
