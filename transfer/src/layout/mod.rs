//! OCI image layouts (OCI image specification, "Image Layout"): directories that hold an image,
//! several, or a multi-platform index.
//!
//! A layout is foreign input. Its files are opened beneath its root without following symbolic
//! links, have size limits that hold before and while they are read, and give no byte that their
//! digest does not vouch for. Everything here may block.

pub(crate) mod beneath;
mod images;
mod pick;
pub(crate) mod read;
mod rewrite;
pub(crate) mod write;

pub use pick::FULL_NAME;
pub use read::{LayoutBlob, LayoutImage, OciLayout};
pub use rewrite::{ConfigEdit, Rewritten, RewrittenImage, rewrite_configs};
pub use write::LayoutWriter;

/// The file that marks a layout.
pub(crate) const MARKER: &str = "oci-layout";
/// The list of its images.
pub(crate) const INDEX: &str = "index.json";
/// The annotation by which an entry of the list is called.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where a blob is, from the root.
pub(crate) fn blob_path(digest: &vdkr_core::digest::Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
