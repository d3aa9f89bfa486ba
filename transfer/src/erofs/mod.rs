//! Layers as EROFS images: what the agent's store would unpack into a directory, written by an
//! ordinary user into one file that a virtual machine mounts as it is.
//!
//! The image is uncompressed and made in one pass over the layer: data of files goes out while the
//! archive is read (`spool`), names and attributes are kept (`tree`) and written after it (`layout`,
//! `format`). The same layer gives the same bytes. The format is that of the kernel's documentation
//! (`filesystems/erofs`), as Linux 5.10 and later read it.

use std::fs::File;
use std::io;

use vdkr_core::digest::Digest;

use crate::layer::recipe::Recorder;
use crate::layer::{Limits, UnpackError, Unpacked, read_layer_recorded};

mod attributes;
mod builder;
mod format;
mod layout;
mod note;
mod read;
mod spool;
mod tree;

#[cfg(test)]
mod tests;

pub use note::{Note, NoteError};
pub use read::{Data, Files};

/// Bytes of a block of the image.
const BLOCK: usize = 4096;

/// Writes the layer in `source` (a tar archive, plain or compressed with gzip or zstd) as an EROFS
/// image into `image`, an empty file. `scratch` is another empty file that may go afterwards.
///
/// What is refused, and with which words, is what the agent refuses when it unpacks, and besides a layer
/// whose paths take hours to be followed, which the kernel does for the agent. After an error
/// both files are to be thrown away. `cancelled` is asked at every piece. `recorder` notes down how the
/// archive can be made again from the files of the image.
pub fn write_image(
    source: impl io::Read + Send,
    diff_id: &Digest,
    limits: &Limits,
    cancelled: &(dyn Fn() -> bool + Sync),
    image: &File,
    scratch: &File,
    recorder: Option<&mut Recorder>,
) -> Result<Unpacked, UnpackError> {
    let limits = limits.clone().within_free(image);
    let mut builder = builder::Builder::new(image, scratch, &limits);
    let read = read_layer_recorded(source, diff_id, limits, cancelled, &mut builder, recorder)?;
    let unpacked = Unpacked {
        plain: read.plain,
        compressed: read.compressed,
        ..builder.finish(diff_id)?
    };
    Ok(unpacked)
}
