//! Files and directories as a tar stream, between a container and the outside.
//!
//! [`pack`] writes what lies at a path; [`unpack`] makes what a stream says beneath a directory,
//! and nothing anywhere else, whoever wrote the stream. [`pack_changes`] and [`pack_root`] write
//! layers and whole root file systems; [`find`] looks into a directory that others write.

use std::io;

mod find;
mod layer;
mod pack;
mod read;
#[cfg(test)]
mod tests;
mod unpack;

pub use find::{Found, entries, find};
pub use layer::{Mark, Step, pack_changes, pack_root, walk_changes};
pub use pack::pack;
pub use unpack::{Policy, unpack};

/// Files could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The stream is no tar archive that can be read.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// A member would lie outside the target, or is of a kind that is not taken.
    #[error("the archive's member {name:?} is refused: {reason}")]
    Refused {
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The stream broke.
    #[error(transparent)]
    Stream(#[from] io::Error),
}

impl TreeError {
    fn io(path: impl AsRef<[u8]>) -> impl FnOnce(io::Error) -> Self {
        let path = String::from_utf8_lossy(path.as_ref()).into_owned();
        move |source| Self::Io { path, source }
    }
}
