//! Writing archives: each blob goes straight to its place in the file, several at a time, and the
//! same content always gives the same file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::is_image;
use vdkr_core::manifest::{Descriptor, ImageIndex, ManifestKind, parse};
use vdkr_core::tar::header::BLOCK;

use super::{BLOBS, MANIFEST, tar};
use crate::error::TransferError;
use crate::layout::{INDEX, MARKER, REF_NAME};
use crate::source::BlobSource;
use crate::verify::Verifier;

const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// What kind of archive is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveKind {
    /// An OCI layout.
    Oci,
    /// What `docker load` reads, old and new: an OCI layout with Docker's list beside it. The list can
    /// only hold images, each of one platform.
    Docker,
}

/// An archive that is being written. It gets its name when it is finished; until then, and for good
/// when it is dropped unfinished, nothing of that name is touched. Clones share it.
#[derive(Clone, Debug)]
pub struct ArchiveWriter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    draft: PathBuf,
    kind: ArchiveKind,
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the next member goes, bytes from the start.
    end: u64,
    /// Blobs that have a place: where their data goes, and whether all of it is there.
    blobs: HashMap<Digest, (u64, bool)>,
    manifests: BTreeMap<String, Bytes>,
    index: ImageIndex,
    finished: bool,
}

impl ArchiveWriter {
    /// Begins an archive that will be at `path`.
    pub fn create(path: impl Into<PathBuf>, kind: ArchiveKind) -> Result<Self, TransferError> {
        let path = path.into();
        let Some(name) = path.file_name() else {
            return Err(TransferError::archive(path, "it is no name for a file"));
        };
        if path.is_dir() {
            return Err(TransferError::archive(path, "a directory is in its place"));
        }
        let mut draft_name = std::ffi::OsString::from(".");
        draft_name.push(name);
        draft_name.push(format!(".draft-{}", std::process::id()));
        let draft = path.with_file_name(draft_name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from(0o644);
        let file = rustix::fs::open(&draft, flags | OFlags::NOFOLLOW, mode)
            .map_err(|error| TransferError::io("create", &draft, error.into()))?;
        let writer = Self {
            inner: Arc::new(Inner {
                path,
                draft,
                kind,
                file: file.into(),
                state: Mutex::default(),
            }),
        };
        let mut state = writer.state();
        writer.append(&mut state, MARKER, VERSION)?;
        writer.append(&mut state, BLOBS, b"")?;
        writer.append(&mut state, "blobs/sha256/", b"")?;
        drop(state);
        Ok(writer)
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Gives these blobs their places, in this order, so that it does not matter in which order
    /// they come. A blob that was not announced gets the next place.
    pub fn announce(&self, blobs: &[Descriptor]) -> Result<(), TransferError> {
        let mut state = self.state();
        for blob in blobs {
            self.place(&mut state, blob)?;
        }
        Ok(())
    }

    /// Whether this blob was written.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.state()
            .blobs
            .get(digest)
            .is_some_and(|(_, whole)| *whole)
    }

    /// Writes a blob, verified as it passes. `moved` hears how many bytes have passed.
    pub fn put_blob(
        &self,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        moved: &dyn Fn(u64),
    ) -> Result<(), TransferError> {
        let start = {
            let mut state = self.state();
            self.place(&mut state, descriptor)?
        };
        let mut reader = source.open(0)?;
        let mut verifier = Verifier::new(&descriptor.digest, descriptor.size);
        while let Some(piece) = reader.next_chunk()? {
            let at = start + verifier.seen();
            verifier.update(&piece)?;
            self.write(&piece, at)?;
            moved(verifier.seen());
        }
        verifier.finish()?;
        if let Some((_, whole)) = self.state().blobs.get_mut(&descriptor.digest) {
            *whole = true;
        }
        Ok(())
    }

    /// Takes a manifest.
    pub fn put_manifest(&self, digest: &Digest, raw: Bytes) -> Result<(), TransferError> {
        Verifier::check(&raw, digest, raw.len() as u64)?;
        let name = member_name(digest);
        self.state().manifests.insert(name, raw);
        Ok(())
    }

    /// Lists `descriptor` in `index.json`, under `name` if there is one; without a name, one entry
    /// of a digest is enough.
    pub fn list(&self, descriptor: &Descriptor, name: Option<&str>) {
        let mut entry = descriptor.clone();
        let mut state = self.state();
        let listed = &mut state.index.manifests;
        match name {
            Some(name) => {
                let name = name.to_owned();
                listed.retain(|other| other.annotations.get(REF_NAME) != Some(&name));
                entry.annotations.insert(REF_NAME.to_owned(), name);
            }
            None if listed.iter().any(|other| other.digest == entry.digest) => return,
            None => {}
        }
        listed.push(entry);
    }

    /// Writes what is left and gives the archive its name. `names` are what Docker's list calls the
    /// image.
    pub fn finish(&self, names: &[String]) -> Result<(), TransferError> {
        let mut state = self.state();
        if state.blobs.values().any(|(_, whole)| !whole) {
            return Err(TransferError::archive(
                self.path(),
                "a blob of it never came",
            ));
        }
        for (name, raw) in std::mem::take(&mut state.manifests) {
            let digest = name.rsplit('/').next().unwrap_or_default();
            let known = state.blobs.keys().any(|blob| blob.hex() == digest);
            if !known {
                self.append(&mut state, &name, &raw)?;
            }
            // Docker's list is made from them.
            state.manifests.insert(name, raw);
        }
        let failed = |source| TransferError::Manifest {
            what: INDEX.to_owned(),
            source,
        };
        let index = state.index.to_json().map_err(failed)?;
        if self.inner.kind == ArchiveKind::Docker {
            let list = self.docker_list(&state, names)?;
            self.append(&mut state, MANIFEST, &list)?;
        }
        self.append(&mut state, INDEX, &index)?;
        let end = state.end;
        // Two blocks of zeros end an archive.
        self.write(&[0; 2 * BLOCK], end)?;
        rustix::fs::rename(&self.inner.draft, &self.inner.path)
            .map_err(|error| TransferError::io("write", &self.inner.path, error.into()))?;
        state.finished = true;
        Ok(())
    }

    fn docker_list(&self, state: &State, names: &[String]) -> Result<Vec<u8>, TransferError> {
        let mut list = Vec::new();
        for entry in &state.index.manifests {
            let raw = state.manifests.get(&member_name(&entry.digest));
            let several = || {
                let reason = "docker load takes images of one platform; choose one with --platform";
                TransferError::archive(self.path(), reason)
            };
            let raw = raw.ok_or_else(several)?;
            let parsed = parse(raw, Some(&entry.media_type));
            let parsed = parsed.map_err(|source| TransferError::Manifest {
                what: format!("manifest {}", entry.digest),
                source,
            })?;
            let image = match parsed.kind {
                ManifestKind::Image(image) => image,
                // An index around one image is that image.
                ManifestKind::Index(index) => {
                    let mut images = index.manifests.iter().filter(|e| is_image(&e.media_type));
                    let (Some(only), None) = (images.next(), images.next()) else {
                        return Err(several());
                    };
                    let raw = state.manifests.get(&member_name(&only.digest));
                    let parsed = parse(raw.ok_or_else(several)?, Some(&only.media_type));
                    match parsed.map(|parsed| parsed.kind) {
                        Ok(ManifestKind::Image(image)) => image,
                        _ => return Err(several()),
                    }
                }
            };
            let layers: Vec<_> = image
                .layers
                .iter()
                .map(|l| member_name(&l.digest))
                .collect();
            list.push(serde_json::json!({
                "Config": member_name(&image.config.digest),
                "RepoTags": names,
                "Layers": layers,
            }));
        }
        serde_json::to_vec(&list).map_err(|error| {
            TransferError::archive(self.path(), format!("its list cannot be written: {error}"))
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the data of a blob goes. Its header is written on the way.
    fn place(&self, state: &mut State, blob: &Descriptor) -> Result<u64, TransferError> {
        if let Some((start, _)) = state.blobs.get(&blob.digest) {
            return Ok(*start);
        }
        let start = self.header(state, &member_name(&blob.digest), blob.size)?;
        state.blobs.insert(blob.digest.clone(), (start, false));
        Ok(start)
    }

    fn append(&self, state: &mut State, name: &str, data: &[u8]) -> Result<(), TransferError> {
        let start = self.header(state, name, data.len() as u64)?;
        self.write(data, start)
    }

    fn header(&self, state: &mut State, name: &str, size: u64) -> Result<u64, TransferError> {
        let header = tar::written(name, size);
        let start = state.end + header.len() as u64;
        let end = start
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(BLOCK as u64))
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or_else(|| TransferError::archive(self.path(), "it would be too large"))?;
        self.write(&header, state.end)?;
        state.end = end;
        Ok(start)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), TransferError> {
        self.inner
            .file
            .write_all_at(bytes, at)
            .map_err(|error| TransferError::io("write", &self.inner.draft, error))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !state.finished {
            // A draft that stays is litter, not harm.
            let _ = rustix::fs::unlink(&self.draft);
        }
    }
}

fn member_name(digest: &Digest) -> String {
    format!("{BLOBS}{}/{}", digest.algorithm(), digest.hex())
}
