//! What `docker save` writes, read as a layout.
//!
//! `manifest.json` lists images: the file of the configuration, the files of the layers from the
//! lowest to the highest, the names. Old versions name layers `<id>/layer.tar` and link those that
//! occur twice; skopeo and podman name them by digest; Docker since 25 puts them where an OCI layout has
//! them, and `index.json` beside them.

use std::collections::HashMap;
use std::io::Read as _;

use bytes::Bytes;
use vdkr_core::digest::{Digest, Hasher};
use vdkr_core::manifest::media_type::{
    OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, is_image, is_index,
};
use vdkr_core::manifest::{
    Descriptor, ImageConfig, ImageIndex, ImageManifest, MAX_CONFIG, MAX_DESCRIPTORS, ManifestError,
};

use super::spool::Compressed;
use super::tar::Members;
use super::{MANIFEST, digest_of};
use crate::error::{TransferError, printable};
use crate::layout::read::Files;
use crate::layout::{INDEX, MARKER, OciLayout, REF_NAME};
use crate::source::{BlobSource as _, ChunkStream, Content};

/// Most images of an archive.
const MAX_IMAGES: usize = 4096;
/// Most bytes that a compressed layer is inflated to while its digest is checked.
const MAX_LAYER: u64 = 256 << 30;

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Reads the archive's images.
pub(super) fn layout(members: &Members) -> Result<OciLayout, TransferError> {
    if members.find(MARKER).is_some() && members.find(INDEX).is_some() {
        let layout = super::oci(members)?;
        // With an image store of containerd, the index may name platforms that were not saved.
        if is_complete(&layout)? {
            return Ok(layout);
        }
    }
    let raw = super::read(members, MANIFEST)?;
    let saved: Vec<Saved> = serde_json::from_slice(&raw).map_err(|error| {
        let reason = format!("its {MANIFEST} cannot be read: {error}");
        TransferError::archive(members.path(), reason)
    })?;
    if saved.len() > MAX_IMAGES {
        let reason = format!("it has more than {MAX_IMAGES} images");
        return Err(TransferError::archive(members.path(), reason));
    }
    let mut reading = Reading {
        members,
        blobs: HashMap::new(),
        layers: HashMap::new(),
    };
    let mut index = ImageIndex::default();
    for image in &saved {
        let descriptor = reading.image(image)?;
        let names = image.repo_tags.as_deref().unwrap_or_default();
        if names.is_empty() {
            index.manifests.push(descriptor);
            continue;
        }
        for name in names {
            let mut named = descriptor.clone();
            let name = printable(name, 512);
            named.annotations.insert(REF_NAME.to_owned(), name);
            index.manifests.push(named);
        }
    }
    let raw = index.to_json().map_err(|error| reading.unusable(&error))?;
    let path = members.path().to_owned();
    OciLayout::from_parts(path, Files::Packed(reading.blobs), raw.into())
}

/// Whether everything that the index names is in the archive.
fn is_complete(layout: &OciLayout) -> Result<bool, TransferError> {
    let mut todo: Vec<(Descriptor, usize)> = Vec::new();
    todo.extend(
        layout
            .index()
            .manifests
            .iter()
            .map(|entry| (entry.clone(), 0)),
    );
    let mut seen = std::collections::HashSet::new();
    while let Some((entry, depth)) = todo.pop() {
        if !layout.has(&entry) || depth > 8 || seen.len() > MAX_DESCRIPTORS {
            return Ok(false);
        }
        if !(is_image(&entry.media_type) || is_index(&entry.media_type))
            || !seen.insert(entry.digest.clone())
        {
            continue;
        }
        let parsed = layout.manifest(&entry)?.parse()?;
        let below = parsed.manifests().iter().cloned();
        todo.extend(below.map(|entry| (entry, depth + 1)));
        if !parsed.blobs().all(|blob| layout.has(blob)) {
            return Ok(false);
        }
    }
    Ok(!seen.is_empty())
}

struct Reading<'a> {
    members: &'a Members,
    blobs: HashMap<Digest, Content>,
    /// Layers that were looked at, by their names: images of one archive share them.
    layers: HashMap<String, Descriptor>,
}

impl Reading<'_> {
    fn wrong(&self, reason: impl Into<String>) -> TransferError {
        TransferError::archive(self.members.path(), reason)
    }

    fn unusable(&self, source: &ManifestError) -> TransferError {
        TransferError::Manifest {
            what: self.members.path().display().to_string(),
            source: source.clone(),
        }
    }

    fn member(&self, name: &str) -> Result<Content, TransferError> {
        self.members.find(name).ok_or_else(|| {
            self.wrong(format!(
                "its {MANIFEST} names {}, which it does not have",
                printable(name, 200)
            ))
        })
    }

    /// Makes the manifest of one image.
    fn image(&mut self, saved: &Saved) -> Result<Descriptor, TransferError> {
        let raw = self.member(&saved.config)?.read(
            &format!(
                "{} of {}",
                printable(&saved.config, 200),
                self.members.path().display()
            ),
            MAX_CONFIG as u64,
        )?;
        let config = ImageConfig::parse(&raw).map_err(|error| self.unusable(&error))?;
        let files = saved.layers.as_deref().unwrap_or_default();
        let diff_ids = &config.rootfs.diff_ids;
        if files.len() != diff_ids.len() || files.len() > MAX_DESCRIPTORS {
            return Err(self.wrong(format!(
                "an image of it has {} layers, but its configuration says {}",
                files.len(),
                diff_ids.len()
            )));
        }
        let layers: Result<Vec<_>, _> = files
            .iter()
            .zip(diff_ids)
            .map(|(file, diff_id)| self.layer(file, diff_id))
            .collect();
        let manifest = ImageManifest {
            artifact_type: None,
            config: self.keep(OCI_CONFIG, Digest::sha256(&raw), Content::Bytes(raw)),
            layers: layers?,
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let json = manifest.to_json().map_err(|error| self.unusable(&error))?;
        let json = Bytes::from(json);
        let digest = Digest::sha256(&json);
        let mut descriptor = self.keep(OCI_MANIFEST, digest, Content::Bytes(json));
        let platform = config.platform();
        descriptor.platform = (!platform.architecture.is_empty()).then_some(platform);
        Ok(descriptor)
    }

    /// A plain layer's digest is its diff ID, and is checked when the layer is sent. A compressed one is
    /// read here.
    fn layer(&mut self, file: &str, diff_id: &Digest) -> Result<Descriptor, TransferError> {
        let content = self.member(file)?;
        let compressed = Compressed::of(&first(&content)?);
        let media_type = match compressed {
            Compressed::No => {
                return Ok(self.keep(OCI_LAYER, diff_id.clone(), content));
            }
            Compressed::Gzip => OCI_LAYER_GZIP,
            Compressed::Zstd => OCI_LAYER_ZSTD,
        };
        if let Some(known) = self.layers.get(file) {
            return Ok(known.clone());
        }
        let got = self.plain_digest(&content, compressed, diff_id)?;
        if got != *diff_id {
            return Err(TransferError::DigestMismatch {
                what: format!(
                    "layer {} of {}",
                    printable(file, 200),
                    self.members.path().display()
                ),
                expected: diff_id.clone(),
                got,
            });
        }
        let digest = digest_of(&content, diff_id.algorithm())?;
        let descriptor = self.keep(media_type, digest, content);
        self.layers.insert(file.to_owned(), descriptor.clone());
        Ok(descriptor)
    }

    fn plain_digest(
        &self,
        content: &Content,
        compressed: Compressed,
        diff_id: &Digest,
    ) -> Result<Digest, TransferError> {
        let damaged = |error: std::io::Error| {
            self.wrong(format!(
                "the layer {} cannot be inflated: {error}",
                diff_id.short()
            ))
        };
        let stream = ChunkStream::new(content.open(0)?);
        let mut plain = compressed.reader(stream).map_err(damaged)?.take(MAX_LAYER);
        let mut hasher = Hasher::new(diff_id.algorithm());
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match plain.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(damaged(error)),
            }
        }
    }

    fn keep(&mut self, media_type: &str, digest: Digest, content: Content) -> Descriptor {
        let descriptor = Descriptor::new(media_type, digest.clone(), content.size());
        self.blobs.insert(digest, content);
        descriptor
    }
}

fn first(content: &Content) -> Result<Vec<u8>, TransferError> {
    let mut first = Vec::new();
    let stream = ChunkStream::new(content.open(0)?);
    stream.take(4).read_to_end(&mut first)?;
    Ok(first)
}
