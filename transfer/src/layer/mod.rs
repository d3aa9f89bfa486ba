//! Layers as they are read, whatever becomes of them: directories of a store, or EROFS images.
//!
//! `archive` reads members, `name` judges what they are called, `stream` decompresses, counts and
//! hashes. A layer may come from anyone; nothing of it may be used before its whole stream has been
//! read and has the digest that the image's configuration names.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use vdkr_core::digest::Digest;

pub mod archive;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixture;
pub mod name;
pub mod pax;
mod pool;
pub mod recipe;
pub mod sparse;
mod stream;

pub use pool::Pool;
pub(crate) use stream::Plain;
pub use stream::{Hash, Measures, Sink, read_layer, read_layer_recorded};

use archive::ArchiveError;
use name::NameError;

/// How much an archive may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Members, and directories that are only on the way to one. Large images have some hundred
    /// thousand.
    pub entries: u64,
    /// Bytes of the plain archive, and of its files with their holes. What is free on the file
    /// system bounds both as well.
    pub total: u64,
    /// Plain bytes for each compressed byte, looked at once there are [`Limits::ratio_after`] of
    /// them. Software compresses 2 to 10 times and a long run of zeros 1000 times with gzip (its
    /// format ends there) and 30,000 times with zstd; a layer that keeps above 250 is zeros.
    pub ratio: u64,
    /// Plain bytes that may come at any ratio.
    pub ratio_after: u64,
    /// What the layers that become images at the same time may take together; clones of these limits
    /// share it.
    pub pool: Pool,
}

impl Limits {
    /// As these, but no more bytes than are free on the file system of `place`.
    #[must_use]
    pub fn within_free(mut self, place: impl AsFd) -> Self {
        let free =
            rustix::fs::fstatvfs(place).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        self.total = self.total.min(free.unwrap_or(u64::MAX));
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            total: 64 << 30,
            ratio: 250,
            ratio_after: 256 << 20,
            pool: Pool::default(),
        }
    }
}

/// What to do with device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Make them.
    Make,
    /// Leave them out and count them.
    Skip,
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Members of the archive.
    pub entries: u64,
    /// Bytes of data in files.
    pub bytes: u64,
    /// Bytes of the plain archive.
    pub plain: u64,
    /// Bytes read from the source.
    pub compressed: u64,
    /// The layer hides everything beneath it; layers below it need not be mounted.
    pub opaque_root: bool,
    /// Device nodes left out.
    pub skipped_devices: u64,
    /// Extended attributes left out.
    pub skipped_xattrs: u64,
}

/// Why a member is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name itself.
    #[error(transparent)]
    Name(NameError),
    /// The name that a hard link leads to.
    #[error("the name it links to is refused: {0}")]
    Link(NameError),
    /// The root of the layer as something else than a directory.
    #[error("it would replace the root directory")]
    Root,
    /// A part of its path is a file.
    #[error("a part of its path is not a directory")]
    NotADirectory,
    /// Its path goes through too many links.
    #[error("its path goes through more than 40 symbolic links")]
    Loop,
    /// A hard link to what this layer does not have, or to a directory.
    #[error("it links to a file that the layer does not have")]
    LinkTarget,
    /// An attribute that would steer the overlay.
    #[error("it carries overlay marks of its own")]
    OverlayMark,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is damaged.
    #[error("the layer's archive is damaged: {0}")]
    Archive(ArchiveError),
    /// The stream failed or its compression is damaged.
    #[error("the layer's stream is damaged: {0}")]
    Stream(io::Error),
    /// A compression that is not supported.
    #[error("layers compressed with {0} are not supported (gzip, zstd or none are)")]
    Compression(&'static str),
    /// A member that an honest layer does not have.
    #[error("the layer's entry {name} is refused: {refusal}")]
    Refused {
        /// Its name as archived, made printable.
        name: String,
        /// The rule broken.
        refusal: Refusal,
    },
    /// A member could not be made.
    #[error("cannot write the layer's entry {name}: {source}")]
    Write {
        /// Its name as archived, made printable.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system of the store is full.
    #[error("no space is left for the layer's entry {name}; remove images, or use a larger disk")]
    NoSpace {
        /// The member that did not fit.
        name: String,
    },
    /// More members than allowed.
    #[error("the layer has more than {limit} entries")]
    TooManyEntries {
        /// [`Limits::entries`].
        limit: u64,
    },
    /// Names and attributes that do not fit into memory.
    #[error("the layer's names and attributes need more memory than layers may take together")]
    TooMuchMemory,
    /// Paths that take hours to be followed.
    #[error(
        "the layer is refused: its paths lead through more than {limit} directories and links, far \
         more than those of any image"
    )]
    TooManySteps {
        /// How many there may be for so many members.
        limit: u64,
    },
    /// More bytes than allowed or free.
    #[error("the layer needs more than the {limit} bytes that are free or allowed")]
    TooLarge {
        /// The smaller of [`Limits::total`] and what was free.
        limit: u64,
    },
    /// Hardly anything compressed that becomes very much.
    #[error("the layer is a decompression bomb: {compressed} bytes became {plain} and more")]
    Bomb {
        /// Bytes read.
        compressed: u64,
        /// Bytes they became.
        plain: u64,
    },
    /// The plain archive is not the one that the configuration names.
    #[error("the layer's content is {got}, the image's configuration says {expected}")]
    DiffId {
        /// What the configuration lists.
        expected: Digest,
        /// What was unpacked.
        got: Digest,
    },
    /// Stopped on request.
    #[error("cancelled")]
    Cancelled,
}

impl UnpackError {
    /// The member of this name breaks a rule.
    pub fn refused(name: &[u8], refusal: Refusal) -> Self {
        Self::Refused {
            name: printable(name),
            refusal,
        }
    }

    /// The member of this name could not be made.
    pub fn write(name: &[u8], error: Errno) -> Self {
        match error {
            Errno::NOTDIR => Self::refused(name, Refusal::NotADirectory),
            Errno::LOOP => Self::refused(name, Refusal::Loop),
            Errno::NAMETOOLONG => Self::refused(name, Refusal::Name(NameError::Length)),
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace {
                name: printable(name),
            },
            error => Self::Write {
                name: printable(name),
                source: error.into(),
            },
        }
    }
}

impl From<ArchiveError> for UnpackError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Stream(error) => error.into(),
            damaged @ ArchiveError::Damaged { .. } => Self::Archive(damaged),
        }
    }
}

impl From<io::Error> for UnpackError {
    /// Limits are found within reads and travel as their errors.
    fn from(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Stream)
    }
}

/// A name from an archive, short and without control characters.
pub fn printable(name: &[u8]) -> String {
    const MOST: usize = 200;
    let text = name[..name.len().min(MOST)].escape_ascii().to_string();
    if name.len() > MOST {
        format!("\"{text}…\"")
    } else {
        format!("\"{text}\"")
    }
}

/// How an extended attribute of an archive is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Part of the file: capabilities, access control lists, the user's own.
    Kept,
    /// Would steer the overlay that the layer becomes part of.
    OverlayMark,
    /// Belongs to the system that the archive was made on.
    Foreign,
}

impl Namespace {
    /// The namespace of an attribute's name.
    pub fn of(name: &[u8]) -> Self {
        let starts = |prefix: &str| name.starts_with(prefix.as_bytes());
        if starts("trusted.overlay.") || starts("user.overlay.") {
            Self::OverlayMark
        } else if starts("user.") || starts("security.capability") || starts("system.posix_acl_") {
            Self::Kept
        } else {
            Self::Foreign
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        for (name, want) in [
            ("user.note", Namespace::Kept),
            ("security.capability", Namespace::Kept),
            ("system.posix_acl_access", Namespace::Kept),
            ("security.selinux", Namespace::Foreign),
            ("trusted.other", Namespace::Foreign),
            ("trusted.overlay.opaque", Namespace::OverlayMark),
            ("user.overlay.whiteout", Namespace::OverlayMark),
        ] {
            assert_eq!(Namespace::of(name.as_bytes()), want, "{name}");
        }
    }
}
