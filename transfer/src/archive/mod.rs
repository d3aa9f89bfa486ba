//! Archives of images: OCI layouts in a tar file (`oci-archive`), and what `docker save` writes
//! (`docker-archive`); plain, or compressed with gzip or zstd.
//!
//! An archive is foreign input, and is never unpacked: its members are listed once, with bounds, and
//! read from where they stand. What is read of it is an [`OciLayout`], so that everything that works
//! with layouts works with archives.

mod docker;
mod spool;
mod tar;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::MAX_MANIFEST;

use crate::error::TransferError;
use crate::layout::read::{Files, check_version};
use crate::layout::{INDEX, MARKER, OciLayout};
use crate::source::Content;
use tar::Members;

pub use write::{ArchiveKind, ArchiveWriter};

/// The list of images that `docker save` writes.
const MANIFEST: &str = "manifest.json";
/// Where an archive's blobs are.
const BLOBS: &str = "blobs/";

/// What an archive turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An OCI layout.
    Oci,
    /// What `docker save` writes.
    Docker,
}

/// Opens an archive of either kind. Reads it in full when it is compressed. May block.
pub fn open(path: impl Into<PathBuf>) -> Result<(OciLayout, Found), TransferError> {
    let path = path.into();
    let members = members(&path)?;
    // Docker writes both since version 25; then its list has the names.
    if members.find(MANIFEST).is_some() {
        return Ok((docker::layout(&members)?, Found::Docker));
    }
    if members.find(INDEX).is_some() {
        return Ok((oci(&members)?, Found::Oci));
    }
    let reason = format!("it has neither {INDEX} (an OCI layout) nor {MANIFEST} (docker save)");
    Err(TransferError::archive(path, reason))
}

/// A regular file's content, inflated into a temporary file when it is compressed with gzip or zstd, and
/// not a bomb. May block.
pub fn open_plain(path: &Path) -> Result<File, TransferError> {
    spool::open_plain(path)
}

/// A file in a directory that is gone when it is closed, readable for nobody else, whatever the file
/// system can do.
pub fn unnamed_file(directory: &Path) -> Result<File, TransferError> {
    spool::unnamed(directory)
}

/// The header of a member of an archive, for writers that send one as it is made: a regular file of
/// this name and size, or a directory where the name ends in `/`. Behind its data the next header begins at a multiple of 512 bytes.
pub fn member_header(name: &str, size: u64) -> Vec<u8> {
    tar::written(name, size)
}

/// Opens an archive of an OCI layout. May block.
pub fn open_oci(path: impl Into<PathBuf>) -> Result<OciLayout, TransferError> {
    let path = path.into();
    let members = members(&path)?;
    if members.find(INDEX).is_none() && members.find(MANIFEST).is_some() {
        let reason = "docker save wrote it; its transport is docker-archive";
        return Err(TransferError::archive(path, reason));
    }
    oci(&members)
}

/// Opens what `docker save` wrote. The images keep the bytes of their configurations and layers; where
/// the archive has no manifests of its own, OCI manifests are made. May block: a layer that is
/// compressed within the archive is read in full.
pub fn open_docker(path: impl Into<PathBuf>) -> Result<OciLayout, TransferError> {
    let path = path.into();
    let members = members(&path)?;
    if members.find(MANIFEST).is_none() {
        let reason = format!("docker save did not write it: it has no {MANIFEST}");
        return Err(TransferError::archive(path, reason));
    }
    docker::layout(&members)
}

fn members(path: &Path) -> Result<Members, TransferError> {
    Members::read(spool::open_plain(path)?, path)
}

fn oci(members: &Members) -> Result<OciLayout, TransferError> {
    let path = members.path();
    let marker = read(members, MARKER)?;
    check_version(&path.join(MARKER), &marker)?;
    let index = read(members, INDEX)?;
    OciLayout::from_parts(path.to_owned(), Files::Packed(blobs(members)), index)
}

fn read(members: &Members, name: &str) -> Result<bytes::Bytes, TransferError> {
    let content = members
        .find(name)
        .ok_or_else(|| TransferError::archive(members.path(), format!("it has no {name}")))?;
    let what = format!("{name} of {}", members.path().display());
    content.read(&what, MAX_MANIFEST as u64)
}

/// What stands under the names of digests. Whether it has them is checked when it is read.
fn blobs(members: &Members) -> HashMap<Digest, Content> {
    let named = members.names().filter_map(|name| {
        let (algorithm, hex) = name.strip_prefix(BLOBS)?.split_once('/')?;
        let digest = Digest::parse(&format!("{algorithm}:{hex}")).ok()?;
        Some((digest, members.find(name)?))
    });
    named.collect()
}

/// The digest of some content, which is read in full.
fn digest_of(content: &Content, algorithm: Algorithm) -> Result<Digest, TransferError> {
    use crate::source::BlobSource as _;
    let mut hasher = vdkr_core::digest::Hasher::new(algorithm);
    let mut reader = content.open(0)?;
    while let Some(piece) = reader.next_chunk()? {
        hasher.update(&piece);
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_name_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = unnamed_file(dir.path()).unwrap();
        std::io::Write::write_all(&mut file, b"x").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(unnamed_file(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_header_is_read_back() {
        for (name, size) in [("blobs/sha256/ab", 12), (&*"n".repeat(150), 1 << 34)] {
            let header = member_header(name, size);
            assert_eq!(header.len() % 512, 0);
            let mut block = [0; 512];
            block.copy_from_slice(&header[header.len() - 512..]);
            let read = vdkr_core::tar::header::decode(&block).unwrap().unwrap();
            assert_eq!(read.size, size);
        }
    }
}
