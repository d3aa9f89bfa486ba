//! The archive of a layer, made again from its files and its recipe.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};
use vdkr_core::digest::Digest;
use vdkr_core::tar::recipe::Record;
use vdkr_transfer::layer::recipe::Records;
pub use vdkr_transfer::layer::recipe::{ReadError, Recorder, plain_length};
use vdkr_transfer::layer::{Hash, printable};

use super::name::LayerPath;
use super::root::Root;

/// Bytes that are read at once.
const PIECE: usize = 128 * 1024;

/// Why a layer's archive cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] ReadError),
    /// A file of the layer is not there, or shorter than it was.
    #[error("its file {name} cannot be read: {source}")]
    File {
        /// Path in the layer, made printable.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// What came out is not what was unpacked: the archive had a file twice, or the layer changed.
    #[error("its archive comes out as {got}")]
    Digest {
        /// What came out.
        got: Digest,
    },
    /// The receiver is gone.
    #[error("cancelled")]
    Cancelled,
}

/// Makes the archive of the layer that was unpacked into `root` again. `sink` takes its pieces, and
/// says `false` when it wants no more. When this fails, what `sink` was given is not the archive.
pub fn restore(
    recipe: &Path,
    root: &Root,
    diff_id: &Digest,
    sink: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<(), RestoreError> {
    let mut records = Records::open(recipe)?;
    let mut hash = Hash::new(diff_id.algorithm());
    let mut buffer = vec![0; PIECE];
    let mut emit = |bytes: &[u8]| {
        hash.update(bytes);
        if sink(bytes) {
            Ok(())
        } else {
            Err(RestoreError::Cancelled)
        }
    };
    loop {
        match records.next_record()? {
            Record::Bytes(bytes) => emit(&bytes)?,
            Record::File { length, path } => {
                let failed = |source: io::Error| RestoreError::File {
                    name: printable(&path),
                    source,
                };
                let mut file = open(root, &path).map_err(failed)?;
                let mut left = length;
                while left > 0 {
                    let most = buffer
                        .len()
                        .min(usize::try_from(left).unwrap_or(usize::MAX));
                    match file.read(&mut buffer[..most]).map_err(failed)? {
                        0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                        count => {
                            emit(&buffer[..count])?;
                            left -= count as u64;
                        }
                    }
                }
            }
            Record::End { .. } => break,
        }
    }
    let got = hash.finish();
    if got == *diff_id {
        Ok(())
    } else {
        Err(RestoreError::Digest { got })
    }
}

/// Opens a regular file of a layer; a pipe that took its place is not waited for.
fn open(root: &Root, path: &[u8]) -> io::Result<File> {
    let path = LayerPath::parse(path).map_err(io::Error::other)?;
    let (parent, name) = path.split().ok_or(io::ErrorKind::IsADirectory)?;
    let parent = root.directory(parent)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = fs::openat(parent.as_fd(), name, flags, Mode::empty())?.into();
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file any more"));
    }
    Ok(file)
}
