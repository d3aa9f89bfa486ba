//! Writing a layout: for pulls into a directory.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{Descriptor, ImageIndex};

use super::read::OciLayout;
use super::{INDEX, MARKER, REF_NAME, beneath, blob_path};
use crate::error::TransferError;
use crate::source::BlobSource;
use crate::verify::Verifier;

/// A layout that is being filled. Files appear whole or not at all; nothing is synced to disk.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct LayoutWriter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    drafts: Drafts,
    /// Held while `index.json` is changed.
    index: Mutex<()>,
}

impl LayoutWriter {
    /// Makes a layout in a directory that is new, empty, or has one already.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, TransferError> {
        let writer = Self {
            inner: Arc::new(Inner {
                drafts: Drafts::create(path.into())?,
                index: Mutex::default(),
            }),
        };
        for directory in ["blobs", "blobs/sha256"] {
            writer.make_directory(directory)?;
        }
        let drafts = &writer.inner.drafts;
        if beneath::file(drafts.root(), MARKER).is_err() {
            let empty = json(&ImageIndex::default())?;
            drafts.write(INDEX, &empty)?;
            drafts.write(MARKER, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        // From here on it is a layout like any other, or says why it is not.
        OciLayout::open(writer.path())?;
        Ok(writer)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.inner.drafts.path()
    }

    /// Whether this blob is there with the right bytes. It is read in full: it may be left over from
    /// a machine that lost power.
    pub fn has_blob(&self, descriptor: &Descriptor) -> bool {
        let Ok(layout) = OciLayout::open(self.path()) else {
            return false;
        };
        let Ok(mut reader) = layout.open_blob(descriptor) else {
            return false;
        };
        std::io::copy(&mut reader, &mut std::io::sink()).is_ok()
    }

    /// Writes a blob, verified as it passes. `moved` hears how many bytes have passed.
    pub fn put_blob(
        &self,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        moved: &dyn Fn(u64),
    ) -> Result<(), TransferError> {
        self.make_directory(&format!("blobs/{}", descriptor.digest.algorithm()))?;
        let place = blob_path(&descriptor.digest);
        self.inner
            .drafts
            .put_blob(&place, descriptor, source, moved)
    }

    /// Writes bytes that are at hand, such as a manifest.
    pub fn put_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), TransferError> {
        Verifier::check(bytes, digest, bytes.len() as u64)?;
        self.make_directory(&format!("blobs/{}", digest.algorithm()))?;
        self.inner.drafts.write(&blob_path(digest), bytes)
    }

    /// Lists `descriptor` in `index.json`, under `name` if there is one. An entry that had the name
    /// loses its place; without a name, one entry of a digest is enough.
    pub fn list(&self, descriptor: &Descriptor, name: Option<&str>) -> Result<(), TransferError> {
        let _held = self
            .inner
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let layout = OciLayout::open(self.path())?;
        let mut index = layout.index().clone();
        let mut entry = descriptor.clone();
        match name {
            Some(name) => {
                let name = name.to_owned();
                index
                    .manifests
                    .retain(|other| other.annotations.get(REF_NAME) != Some(&name));
                entry.annotations.insert(REF_NAME.to_owned(), name);
            }
            None if index
                .manifests
                .iter()
                .any(|other| other.digest == entry.digest) =>
            {
                return Ok(());
            }
            None => {}
        }
        index.manifests.push(entry);
        self.inner.drafts.write(INDEX, &json(&index)?)
    }

    fn make_directory(&self, name: &str) -> Result<(), TransferError> {
        let path = self.path().join(name);
        let root = self.inner.drafts.root();
        match mkdirat(root, name, Mode::from(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(TransferError::io("create", &path, error.into())),
        }
        // What was there may be a link that leads elsewhere.
        beneath::directory(root, name)
            .map(drop)
            .map_err(|error| TransferError::io("open", &path, error))
    }
}

/// A directory in which files appear whole or not at all. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Drafts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    root: OwnedFd,
    count: AtomicU64,
}

impl Drafts {
    /// Makes the directory, or takes the one that is there.
    pub(crate) fn create(path: PathBuf) -> Result<Self, TransferError> {
        std::fs::create_dir_all(&path)
            .map_err(|error| TransferError::io("create", &path, error))?;
        let root = beneath::root(&path).map_err(|error| TransferError::io("open", &path, error))?;
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                root,
                count: AtomicU64::new(0),
            }),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.shared.root
    }

    /// Writes a file. The directory that it is to be in has been seen to be one.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), TransferError> {
        let mut draft = self.draft()?;
        draft.write(content)?;
        draft.keep(name)
    }

    /// Writes a blob, verified as it passes.
    pub(crate) fn put_blob(
        &self,
        name: &str,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        moved: &dyn Fn(u64),
    ) -> Result<(), TransferError> {
        let mut reader = source.open(0)?;
        let mut verifier = Verifier::new(&descriptor.digest, descriptor.size);
        let mut draft = self.draft()?;
        while let Some(piece) = reader.next_chunk()? {
            verifier.update(&piece)?;
            draft.write(&piece)?;
            moved(verifier.seen());
        }
        verifier.finish()?;
        draft.keep(name)
    }

    fn draft(&self) -> Result<Draft<'_>, TransferError> {
        let number = self.shared.count.fetch_add(1, Ordering::Relaxed);
        let name = format!(".draft-{}-{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from(0o644);
        let opened = openat(self.root(), name.as_str(), flags | OFlags::NOFOLLOW, mode);
        let file = opened
            .map_err(|error| TransferError::io("create", &self.path().join(&name), error.into()))?;
        Ok(Draft {
            drafts: self,
            file: file.into(),
            name,
            kept: false,
        })
    }
}

/// A file without its name yet. It goes when it is dropped unkept.
struct Draft<'a> {
    drafts: &'a Drafts,
    file: File,
    name: String,
    kept: bool,
}

impl Draft<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        let path = || self.drafts.path().join(&self.name);
        self.file
            .write_all(bytes)
            .map_err(|error| TransferError::io("write", &path(), error))
    }

    fn keep(mut self, to: &str) -> Result<(), TransferError> {
        let root = self.drafts.root();
        renameat(root, self.name.as_str(), root, to).map_err(|error| {
            TransferError::io("write", &self.drafts.path().join(to), error.into())
        })?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // A draft that stays is litter, not harm.
            let _ = unlinkat(self.drafts.root(), self.name.as_str(), AtFlags::empty());
        }
    }
}

fn json(index: &ImageIndex) -> Result<Vec<u8>, TransferError> {
    index.to_json().map_err(|source| TransferError::Manifest {
        what: INDEX.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use vdkr_core::manifest::media_type::OCI_LAYER;

    use super::*;

    fn blob(bytes: &'static [u8]) -> (Descriptor, Bytes) {
        let descriptor = Descriptor::new(OCI_LAYER, Digest::sha256(bytes), bytes.len() as u64);
        (descriptor, Bytes::from_static(bytes))
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn blobs_come_back_and_wrong_ones_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let writer = LayoutWriter::create(dir.path()).unwrap();
        let (descriptor, content) = blob(b"hello");
        assert!(!writer.has_blob(&descriptor));
        writer.put_blob(&descriptor, &content, &|_| {}).unwrap();
        assert!(writer.has_blob(&descriptor));
        let layout = OciLayout::open(dir.path()).unwrap();
        let read = layout.open_blob(&descriptor).unwrap().read_verified();
        assert_eq!(read.unwrap(), b"hello");

        let (other, _) = blob(b"other");
        let error = writer.put_blob(&other, &content, &|_| {}).unwrap_err();
        assert!(error.is_content(), "{error}");
        assert!(!writer.has_blob(&other));
        assert_eq!(names(dir.path()), ["blobs", "index.json", "oci-layout"]);
        assert_eq!(names(&dir.path().join("blobs/sha256")).len(), 1);
    }

    #[test]
    fn a_damaged_blob_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let writer = LayoutWriter::create(dir.path()).unwrap();
        let (descriptor, content) = blob(b"hello");
        writer.put_blob(&descriptor, &content, &|_| {}).unwrap();
        std::fs::write(dir.path().join(blob_path(&descriptor.digest)), "hellO").unwrap();
        assert!(!writer.has_blob(&descriptor));
    }

    #[test]
    fn names_are_unique_in_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let writer = LayoutWriter::create(dir.path()).unwrap();
        let (a, _) = blob(b"a");
        let (b, _) = blob(b"b");
        writer.list(&a, Some("latest")).unwrap();
        writer.list(&b, Some("latest")).unwrap();
        writer.list(&a, None).unwrap();
        writer.list(&a, None).unwrap();
        // Opened again, it goes on where it was.
        let writer = LayoutWriter::create(dir.path()).unwrap();
        writer.list(&a, Some("1")).unwrap();
        let layout = OciLayout::open(dir.path()).unwrap();
        let listed: Vec<_> = layout
            .index()
            .manifests
            .iter()
            .map(|entry| {
                let name = entry.annotations.get(REF_NAME).map(String::as_str);
                (entry.digest.clone(), name)
            })
            .collect();
        let expected = [
            (b.digest, Some("latest")),
            (a.digest.clone(), None),
            (a.digest, Some("1")),
        ];
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_link_in_the_way_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("blobs")).unwrap();
        assert!(LayoutWriter::create(dir.path()).is_err());
        assert!(names(outside.path()).is_empty());
    }
}
