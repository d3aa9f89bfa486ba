//! Reading a layout.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{
    self, Descriptor, ImageConfig, ImageIndex, MAX_CONFIG, MAX_MANIFEST, ManifestKind,
};

use super::images::Walk;
use super::{INDEX, MARKER, beneath, blob_path};
use crate::error::TransferError;
use crate::json;
use crate::manifests::FetchedManifest;
use crate::source::{BlobSource, ChunkReader, ChunkStream, Content, FileSource};
use crate::upload::local::WholeFile;
use crate::verify::VerifyingReader;

/// Longest `oci-layout` file, bytes. Real ones have thirty.
const MAX_MARKER: u64 = 64 * 1024;

/// An OCI layout that was opened for reading: a directory, or what reads like one
/// ([`archive`](crate::archive), [`dir`](crate::dir)). Clones share it.
#[derive(Clone, Debug)]
pub struct OciLayout {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    files: Files,
    index: ImageIndex,
    raw_index: Bytes,
}

/// Where the blobs are.
#[derive(Debug)]
pub(crate) enum Files {
    /// Beneath a directory, under the path that this gives a digest; a few are at hand.
    Beneath {
        root: OwnedFd,
        place: fn(&Digest) -> String,
        at_hand: HashMap<Digest, Bytes>,
    },
    /// In parts of other files.
    Packed(HashMap<Digest, Content>),
}

/// An image of a layout, wherever in the tree of indexes it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutImage {
    /// Points to the manifest. Its platform is what the index says or, where that says nothing, what
    /// the image's configuration says.
    pub descriptor: Descriptor,
    /// The name that the layout gives it (`org.opencontainers.image.ref.name`, or in full
    /// `io.containerd.image.name`), or gives the index it is part of.
    pub name: Option<String>,
    /// The indexes between `index.json` and the manifest, outermost first.
    pub path: Vec<Digest>,
}

impl OciLayout {
    /// Opens the layout in a directory: `oci-layout` of version 1, and an `index.json` of at most
    /// 4 MiB. The directory itself may be a symbolic link, nothing in it may.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let path = path.into();
        let root = beneath::root(&path).map_err(|error| TransferError::io("open", &path, error))?;
        let marker = read_capped(&root, &path, MARKER, MAX_MARKER)?;
        check_version(&path.join(MARKER), &marker)?;
        let raw = read_capped(&root, &path, INDEX, MAX_MANIFEST as u64)?;
        let files = Files::Beneath {
            root,
            place: blob_path,
            at_hand: HashMap::new(),
        };
        Self::from_parts(path, files, raw)
    }

    /// A layout whose `index.json` and blobs come from elsewhere.
    pub(crate) fn from_parts(
        path: PathBuf,
        files: Files,
        raw_index: Bytes,
    ) -> Result<Self, TransferError> {
        let index =
            manifest::parse(&raw_index, None).map_err(|source| TransferError::Manifest {
                what: path.join(INDEX).display().to_string(),
                source,
            })?;
        let ManifestKind::Index(index) = index.kind else {
            let reason = "it is an image manifest, not a list of images";
            return Err(TransferError::layout(path.join(INDEX), reason));
        };
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                files,
                index,
                raw_index,
            }),
        })
    }

    /// The directory or archive.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What `index.json` says.
    pub fn index(&self) -> &ImageIndex {
        &self.inner.index
    }

    /// The bytes of `index.json`.
    pub fn raw_index(&self) -> &[u8] {
        &self.inner.raw_index
    }

    /// All images, flat: what nested indexes list stands beside what `index.json` lists, in order.
    /// An image that is listed twice comes once, with its first name. What only refers to another
    /// image (a signature, say) is none.
    pub fn images(&self) -> Result<Vec<LayoutImage>, TransferError> {
        Walk::new(self).all()
    }

    /// A manifest or index, verified.
    pub fn manifest(&self, descriptor: &Descriptor) -> Result<FetchedManifest, TransferError> {
        let raw = self.read_verified(descriptor, MAX_MANIFEST as u64)?;
        Ok(FetchedManifest {
            raw: raw.into(),
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
        })
    }

    /// An image's configuration, verified.
    pub fn config(&self, descriptor: &Descriptor) -> Result<ImageConfig, TransferError> {
        let raw = self.read_verified(descriptor, MAX_CONFIG as u64)?;
        ImageConfig::parse(&raw).map_err(|source| TransferError::Manifest {
            what: format!("configuration {}", descriptor.digest),
            source,
        })
    }

    fn read_verified(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, TransferError> {
        if descriptor.size > limit {
            return Err(TransferError::TooLarge {
                what: descriptor.digest.to_string(),
                limit,
            });
        }
        self.open_blob(descriptor)?.read_verified()
    }

    /// Opens a blob of the size that its descriptor says.
    pub fn open_blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<VerifyingReader<ChunkStream>, TransferError> {
        let stream = ChunkStream::new(self.content(descriptor)?.open(0)?);
        Ok(VerifyingReader::new(stream, descriptor))
    }

    /// A blob as something to send; opened when it is needed.
    pub fn blob_source(&self, descriptor: &Descriptor) -> LayoutBlob {
        LayoutBlob {
            layout: self.clone(),
            descriptor: descriptor.clone(),
        }
    }

    /// Whether there is a blob of this digest and size. It is not read.
    pub(crate) fn has(&self, descriptor: &Descriptor) -> bool {
        self.content(descriptor).is_ok()
    }

    fn content(&self, descriptor: &Descriptor) -> Result<Content, TransferError> {
        let digest = &descriptor.digest;
        let content = match &self.inner.files {
            Files::Packed(blobs) => blobs.get(digest).cloned(),
            Files::Beneath {
                root,
                place,
                at_hand,
            } => match at_hand.get(digest) {
                Some(bytes) => Some(Content::Bytes(bytes.clone())),
                None => Some(self.beneath(root, &place(digest))?),
            },
        };
        let content = content.ok_or_else(|| {
            let reason = format!("it names the blob {digest} but does not have it");
            TransferError::layout(self.path(), reason)
        })?;
        if content.size() != descriptor.size {
            return Err(TransferError::SizeMismatch {
                what: format!("blob {digest} of {}", self.path().display()),
                expected: descriptor.size,
                got: content.size(),
            });
        }
        Ok(content)
    }

    fn beneath(&self, root: &OwnedFd, name: &str) -> Result<Content, TransferError> {
        let path = self.path().join(name);
        let file = beneath::file(root, name).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                TransferError::layout(&path, "the layout names this blob but does not have it")
            }
            _ if beneath::is_link_error(&error) => {
                TransferError::layout(&path, "it is, or is reached by, a symbolic link")
            }
            _ => TransferError::io("open", &path, error),
        })?;
        let metadata = file
            .metadata()
            .map_err(|error| TransferError::io("read", &path, error))?;
        let size = metadata.len();
        Ok(Content::Part(FileSource::new(file, path), size))
    }
}

/// A blob of a layout as a source.
#[derive(Clone, Debug)]
pub struct LayoutBlob {
    layout: OciLayout,
    descriptor: Descriptor,
}

impl BlobSource for LayoutBlob {
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError> {
        self.layout.content(&self.descriptor)?.open(offset)
    }

    fn whole_file(&self) -> Option<WholeFile> {
        self.layout.content(&self.descriptor).ok()?.whole_file()
    }
}

/// Reads a file that may have at most `limit` bytes: by its size before, and by counting while it
/// is read, for it may grow.
pub(crate) fn read_capped(
    root: &OwnedFd,
    base: &Path,
    name: &str,
    limit: u64,
) -> Result<Bytes, TransferError> {
    let path = base.join(name);
    let too_large = || TransferError::TooLarge {
        what: path.display().to_string(),
        limit,
    };
    let file = beneath::file(root, name).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            TransferError::layout(base, format!("it has no file {name}"))
        }
        _ if beneath::is_link_error(&error) => {
            TransferError::layout(&path, "it is a symbolic link")
        }
        _ => TransferError::io("open", &path, error),
    })?;
    let failed = |error| TransferError::io("read", &path, error);
    let size = file.metadata().map_err(failed)?.len();
    if size > limit {
        return Err(too_large());
    }
    let mut content = Vec::with_capacity(size as usize);
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(content.into())
}

pub(crate) fn check_version(path: &Path, marker: &[u8]) -> Result<(), TransferError> {
    #[derive(serde::Deserialize)]
    struct Marker {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let Ok(Marker { version }) = json::object(marker) else {
        let reason = "it does not say which version of the layout this is";
        return Err(TransferError::layout(path, reason));
    };
    if version.split('.').next() == Some("1") {
        return Ok(());
    }
    let version = crate::error::printable(&version, 40);
    let reason = format!("version {version} of the layout is not known, only 1.x is");
    Err(TransferError::layout(path, reason))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marker(text: &str) -> bool {
        check_version(Path::new("oci-layout"), text.as_bytes()).is_ok()
    }

    #[test]
    fn layout_versions() {
        assert!(marker(r#"{"imageLayoutVersion":"1.0.0"}"#));
        assert!(marker(r#"{"imageLayoutVersion":"1.1.0","x":1}"#));
        for text in [
            "",
            "{}",
            r#"{"imageLayoutVersion":1}"#,
            r#"{"imageLayoutVersion":"2.0.0"}"#,
        ] {
            assert!(!marker(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_index_gives_an_answer(index in ".{0,200}") {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(MARKER), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            std::fs::write(dir.path().join(INDEX), index).unwrap();
            if let Ok(layout) = OciLayout::open(dir.path()) {
                let _ = layout.images();
            }
        }
    }
}
