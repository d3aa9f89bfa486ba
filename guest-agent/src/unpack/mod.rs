//! Layers, unpacked: a tar stream from anyone becomes a directory that overlayfs can use as a
//! lower layer, and nothing else on the system is touched.
//!
//! `vdkr_transfer::layer` reads members and judges what they are called, `root` resolves paths
//! beneath the target, `apply` makes them. A layer is visible to nobody until its whole stream has
//! been read and has the digest that the image's configuration names; the caller unpacks into a
//! temporary directory and renames it.

use std::io::Read;

use vdkr_core::digest::Digest;
use vdkr_transfer::layer::read_layer_recorded;

mod apply;
pub mod overlay;
pub mod recipe;
pub mod remove;
pub mod root;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use vdkr_transfer::layer::fixture;
pub use vdkr_transfer::layer::{
    Devices, Limits, Refusal, UnpackError, Unpacked, archive, name, pax, sparse,
};

use apply::Writer;
use overlay::Marks;
use recipe::Recorder;
use root::Root;

/// How layers are unpacked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bounds.
    pub limits: Limits,
    /// Give files the owners of the archive, and the attributes that only the privileged may set.
    pub keep_owners: bool,
    /// Device nodes.
    pub devices: Devices,
    /// Attributes that mark opaque directories.
    pub marks: Marks,
}

impl Options {
    /// What this process may do in `root`: everything, as the agent of a VM; or, as an ordinary
    /// user, files without owners and overlay marks for `userxattr`.
    pub fn detect(root: &Root) -> Self {
        use rustix::fs::{self, AtFlags, FileType, Mode, XattrFlags};
        const PROBE: &str = ".probe";
        let trusted = "trusted.overlay.probe";
        let privileged = rustix::process::geteuid().is_root();
        let marks = fs::fsetxattr(root.fd(), trusted, b"y", XattrFlags::empty())
            .and_then(|()| fs::fremovexattr(root.fd(), trusted));
        let null = fs::makedev(1, 3);
        let _ = fs::unlinkat(root.fd(), PROBE, AtFlags::empty());
        let devices = fs::mknodat(
            root.fd(),
            PROBE,
            FileType::CharacterDevice,
            Mode::empty(),
            null,
        )
        .and_then(|()| fs::unlinkat(root.fd(), PROBE, AtFlags::empty()));
        Self {
            limits: Limits::default(),
            keep_owners: privileged,
            devices: if devices.is_ok() {
                Devices::Make
            } else {
                Devices::Skip
            },
            marks: if marks.is_ok() {
                Marks::Trusted
            } else {
                Marks::User
            },
        }
    }
}

/// Unpacks the layer in `source` (a tar archive, plain or compressed with gzip or zstd) into
/// `root`, which should be empty. The stream is read to its end, whatever follows the archive's
/// end mark, and its plain content must have the digest `diff_id`. On an error `root` holds a part
/// of the layer and is to be thrown away. `cancelled` is asked at every piece.
pub fn unpack(
    source: impl Read + Send,
    root: &Root,
    diff_id: &Digest,
    options: &Options,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Unpacked, UnpackError> {
    unpack_recorded(source, root, diff_id, options, cancelled, None)
}

/// As [`unpack`], and notes down how the archive can be made again.
pub fn unpack_recorded(
    source: impl Read + Send,
    root: &Root,
    diff_id: &Digest,
    options: &Options,
    cancelled: &(dyn Fn() -> bool + Sync),
    recorder: Option<&mut Recorder>,
) -> Result<Unpacked, UnpackError> {
    let limits = options.limits.clone().within_free(root.fd());
    let mut writer = Writer::new(root, options, limits.total);
    let read = read_layer_recorded(source, diff_id, limits, cancelled, &mut writer, recorder)?;
    Ok(Unpacked {
        plain: read.plain,
        compressed: read.compressed,
        ..writer.finish()?
    })
}
