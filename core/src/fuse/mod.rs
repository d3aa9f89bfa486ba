//! The part of the FUSE protocol that a shared directory needs.
//!
//! A guest's kernel writes requests, a file server on the host answers them. Both travel as bytes
//! whose first word is their length, little-endian on every machine that is served.
//! [`Splitter`] finds the messages in a stream of bytes, [`Request`] reads one from the kernel,
//! [`Answer`] writes one for it. Nothing here trusts a length that it was told, and nothing panics.

mod answer;
mod request;
mod splitter;

pub use answer::{Answer, Attr, DirBuffer, Entry, FileSystem, InitAnswer};
pub use request::{Forgets, Init, Operation, Request, RequestError, SetAttr, Time, XattrName};
pub use splitter::{SplitError, Splitter};

/// Protocol generation that is spoken.
pub const MAJOR: u32 = 7;
/// Newest minor version whose messages are understood.
pub const MINOR: u32 = 35;
/// Oldest minor version that is served (Linux 3.15).
pub const MIN_MINOR: u32 = 23;
/// Node of the root of a file system.
pub const ROOT: u64 = 1;
/// Bytes of file content in one request or answer.
pub const MAX_DATA: usize = 1 << 20;
/// Longest message: content, and a page for headers and names.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;
/// Longest name of a directory entry, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const MAX_LINK: usize = 4095;
/// Longest value of an extended attribute, in bytes.
pub const MAX_XATTR: usize = 64 * 1024;

/// Capabilities that both sides agree on in the first exchange.
pub mod init_flag {
    /// Several reads of one file at a time.
    pub const ASYNC_READ: u32 = 1;
    /// `open` truncates by itself.
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    /// Writes of more than a page.
    pub const BIG_WRITES: u32 = 1 << 5;
    /// Cached content is dropped when time or size of a file has changed.
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    /// Directory entries come with their attributes.
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    /// The kernel decides when they do.
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// Lookups and listings in one directory at a time.
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    /// [`InitAnswer::max_pages`](super::InitAnswer::max_pages) counts.
    pub const MAX_PAGES: u32 = 1 << 22;
    /// The server takes set-user-ID bits away when it is told to.
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Flags of an opened file, for [`Answer::open`].
pub mod open_flag {
    /// What the cache has of the file is still good.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Closing a descriptor is not reported.
    pub const NO_FLUSH: u32 = 1 << 5;
}

/// Error numbers, the same on every architecture that is served.
pub mod errno {
    /// Input or output error.
    pub const EIO: i32 = 5;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// Function not implemented: the kernel does without it from then on.
    pub const ENOSYS: i32 = 38;
    /// Protocol error.
    pub const EPROTO: i32 = 71;
}
