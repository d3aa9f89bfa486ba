//! skopeo's directory: `manifest.json`, one file for each blob under the digits of its digest, the
//! manifests of an index as `<digits>.manifest.json`, and `version`.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::media_type::{is_image, is_index};
use vdkr_core::manifest::{Descriptor, ImageIndex, MAX_MANIFEST};

use crate::error::TransferError;
use crate::layout::OciLayout;
use crate::layout::beneath;
use crate::layout::read::{Files, read_capped};
use crate::layout::write::Drafts;
use crate::manifests::FetchedManifest;
use crate::source::BlobSource;

const MANIFEST: &str = "manifest.json";
const VERSION: &str = "version";
const VERSION_TEXT: &[u8] = b"Directory Transport Version: 1.1\n";
/// Longest `version`, bytes.
const MAX_VERSION: u64 = 1024;
/// Most manifests of an index.
const MAX_MANIFESTS: usize = 16 * 1024;

/// Opens a directory that skopeo, or [`DirWriter`], wrote. Its image is the only one of the layout.
/// May block.
pub fn open(path: impl Into<PathBuf>) -> Result<OciLayout, TransferError> {
    let path = path.into();
    let root = beneath::root(&path).map_err(|error| TransferError::io("open", &path, error))?;
    let version = read_capped(&root, &path, VERSION, MAX_VERSION);
    if version.is_ok_and(|text| !text.starts_with(b"Directory Transport Version: 1.")) {
        let reason = "its version is not known, only 1.x is";
        return Err(TransferError::archive(path, reason));
    }
    let raw =
        read_capped(&root, &path, MANIFEST, MAX_MANIFEST as u64).map_err(|error| match error {
            TransferError::Layout { .. } => {
                TransferError::archive(&path, format!("it has no {MANIFEST}"))
            }
            other => other,
        })?;
    let top = FetchedManifest::new(raw)?;
    let mut at_hand = HashMap::new();
    let mut todo = vec![top.clone()];
    while let Some(manifest) = todo.pop() {
        let entries = manifest.parse()?.manifests().to_vec();
        if at_hand.insert(manifest.digest, manifest.raw).is_some() {
            continue;
        }
        for entry in entries {
            let name = format!("{}.manifest.json", digits(&entry.digest));
            if !(is_image(&entry.media_type) || is_index(&entry.media_type))
                || at_hand.contains_key(&entry.digest)
            {
                continue;
            }
            if at_hand.len() + todo.len() > MAX_MANIFESTS {
                let reason = format!("it has more than {MAX_MANIFESTS} manifests");
                return Err(TransferError::archive(path, reason));
            }
            // skopeo leaves out what was not asked for; who wants it is told so then.
            let Ok(raw) = read_capped(&root, &path, &name, MAX_MANIFEST as u64) else {
                continue;
            };
            if Digest::of(entry.digest.algorithm(), &raw) == entry.digest {
                todo.push(FetchedManifest {
                    raw,
                    media_type: entry.media_type,
                    digest: entry.digest,
                });
            }
        }
    }
    let index = ImageIndex {
        manifests: vec![top.descriptor()],
        ..ImageIndex::default()
    };
    let index = index.to_json().map_err(|source| TransferError::Manifest {
        what: path.display().to_string(),
        source,
    })?;
    let files = Files::Beneath {
        root,
        place: digits,
        at_hand,
    };
    OciLayout::from_parts(path, files, index.into())
}

/// The name of a blob's file.
fn digits(digest: &Digest) -> String {
    match digest.algorithm() {
        Algorithm::Sha256 => digest.hex().to_owned(),
        other @ Algorithm::Sha512 => format!("{other}-{}", digest.hex()),
    }
}

/// A directory that is being filled. Files appear whole or not at all; nothing is synced to disk.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct DirWriter {
    drafts: Drafts,
}

impl DirWriter {
    /// Makes the directory, or takes an empty one, or one that was written before.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let path = path.into();
        let drafts = Drafts::create(path)?;
        let ours = beneath::file(drafts.root(), VERSION).is_ok();
        let mut entries = std::fs::read_dir(drafts.path())
            .map_err(|error| TransferError::io("read", drafts.path(), error))?;
        if !ours && entries.next().is_some() {
            let reason = "it holds other files; give a new or empty directory";
            return Err(TransferError::archive(drafts.path(), reason));
        }
        drafts.write(VERSION, VERSION_TEXT)?;
        Ok(Self { drafts })
    }

    /// The directory.
    pub fn path(&self) -> &std::path::Path {
        self.drafts.path()
    }

    /// Whether this blob is there with the right bytes. It is read in full.
    pub fn has_blob(&self, descriptor: &Descriptor) -> bool {
        let Ok(file) = beneath::file(self.drafts.root(), &digits(&descriptor.digest)) else {
            return false;
        };
        let reader = crate::verify::VerifyingReader::new(file, descriptor);
        std::io::copy(&mut { reader }, &mut std::io::sink()).is_ok()
    }

    /// Writes a blob, verified as it passes. `moved` hears how many bytes have passed.
    pub fn put_blob(
        &self,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        moved: &dyn Fn(u64),
    ) -> Result<(), TransferError> {
        self.drafts
            .put_blob(&digits(&descriptor.digest), descriptor, source, moved)
    }

    /// Writes a manifest beside the blobs.
    pub fn put_manifest(&self, digest: &Digest, raw: &Bytes) -> Result<(), TransferError> {
        crate::verify::Verifier::check(raw, digest, raw.len() as u64)?;
        self.drafts
            .write(&format!("{}.manifest.json", digits(digest)), raw)
    }

    /// Makes a manifest the directory's image. It comes last, so that the directory is an image
    /// only when all of it is there.
    pub fn finish(&self, raw: &Bytes) -> Result<(), TransferError> {
        self.drafts.write(MANIFEST, raw)
    }
}
