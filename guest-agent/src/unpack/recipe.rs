//! The archive of a layer, made again from its files and its recipe.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};
use vdkr_core::digest::Digest;
use vdkr_transfer::layer::Hash;
use vdkr_transfer::layer::recipe::Restored;
pub use vdkr_transfer::layer::recipe::{Recorder, RestoreError, plain_length};

use super::name::LayerPath;
use super::root::Root;

/// Bytes that are read at once.
const PIECE: usize = 128 * 1024;

/// Makes the archive of the layer that was unpacked into `root` again. `sink` takes its pieces, and
/// says `false` when it wants no more. When this fails, what `sink` was given is not the archive.
pub fn restore(
    recipe: &Path,
    root: &Root,
    diff_id: &Digest,
    sink: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<(), RestoreError> {
    let mut archive = Restored::open(recipe, |path: &[u8]| open(root, path))?;
    let mut hash = Hash::new(diff_id.algorithm());
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = match archive.next_piece(&mut buffer)? {
            0 => break,
            count => &buffer[..count],
        };
        hash.update(piece);
        if !sink(piece) {
            return Err(RestoreError::Cancelled);
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
