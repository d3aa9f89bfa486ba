//! What a guest's kernel asks.

mod body;

use core::fmt;

use body::{Body, Fields};

/// Bytes of the header of a request.
const HEADER: usize = 40;

/// A request that cannot be carried out as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no header, or its length is not that of the message: nobody can be answered.
    #[error("a file system request of {0} bytes without a valid header")]
    Header(usize),
    /// The rest does not have the form of its operation; to be answered by this error number.
    #[error("file system request {opcode} is malformed")]
    Malformed {
        /// Number of the operation.
        opcode: u32,
        /// Who waits for the answer.
        unique: u64,
        /// The answer.
        errno: i32,
    },
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Number that the answer repeats.
    pub unique: u64,
    /// The file or directory that is meant.
    pub node: u64,
    /// What to do.
    pub operation: Operation<'a>,
}

/// What to do with a node.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are named as in fuse(4)")]
pub enum Operation<'a> {
    /// The first request: versions and capabilities.
    Init(Init),
    /// Find an entry of a directory.
    Lookup {
        name: &'a [u8],
    },
    /// The kernel no longer knows the node so many times. No answer.
    Forget {
        lookups: u64,
    },
    /// The same for several nodes. No answer.
    BatchForget(Forgets<'a>),
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    SymLink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MkNod {
        name: &'a [u8],
        mode: u32,
    },
    MkDir {
        name: &'a [u8],
        mode: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        directory: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    /// Make an entry here for the node `target`.
    Link {
        target: u64,
        name: &'a [u8],
    },
    /// `kill` takes set-user-ID bits away, as it does below.
    Open {
        flags: u32,
        kill: bool,
    },
    Create {
        name: &'a [u8],
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    /// `cached` marks content of the page cache, which has its place whatever the handle's flags.
    Write {
        handle: u64,
        offset: u64,
        data: &'a [u8],
        cached: bool,
        kill: bool,
    },
    CopyFileRange {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
    },
    Flush {
        handle: u64,
    },
    Release {
        handle: u64,
    },
    FSync {
        handle: u64,
        data_only: bool,
    },
    FAllocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    LSeek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    StatFs,
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDir {
        handle: u64,
    },
    FSyncDir {
        handle: u64,
        data_only: bool,
    },
    /// A size of 0 asks how long the value is.
    GetXattr {
        name: XattrName<'a>,
        size: u32,
    },
    SetXattr {
        name: XattrName<'a>,
        value: &'a [u8],
        flags: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: XattrName<'a>,
    },
    /// Nobody waits for the request with this number any more. No answer.
    Interrupt {
        unique: u64,
    },
    /// The file system goes away.
    Destroy,
    /// An operation that is not served.
    Unsupported {
        opcode: u32,
    },
}

/// The kernel's version and capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Init {
    /// Protocol generation.
    pub major: u32,
    /// Version in it.
    pub minor: u32,
    /// Bytes that are read ahead.
    pub max_readahead: u32,
    /// See [`init_flag`](super::init_flag).
    pub flags: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The server's clock.
    Now,
    /// Seconds since 1970 and nanoseconds.
    At(i64, u32),
}

/// Attributes to set; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// An open file that stands for the node.
    pub handle: Option<u64>,
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<Time>,
    /// Time of last change.
    pub mtime: Option<Time>,
    /// Take set-user-ID bits away.
    pub kill: bool,
}

/// Name of an extended attribute: not empty, without a NUL byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct XattrName<'a>(&'a [u8]);

impl<'a> XattrName<'a> {
    /// The name.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it is one that users give (`user.…`).
    pub fn is_users(self) -> bool {
        self.0.starts_with(b"user.") && self.0.len() > b"user.".len()
    }
}

impl fmt::Debug for XattrName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Nodes and how often each is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgets<'a> {
    rest: &'a [u8],
}

#[expect(
    clippy::copy_iterator,
    reason = "it is a part of a request, which is copied as a whole"
)]
impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let (one, rest) = self.rest.split_first_chunk::<16>()?;
        self.rest = rest;
        let mut fields = Fields(one);
        Some((fields.u64()?, fields.u64()?))
    }
}

impl Operation<'_> {
    /// Whether it changes something, judged without looking at the file system.
    pub fn changes(&self) -> bool {
        /// Access mode, `O_CREAT` and `O_TRUNC`, the same on all architectures.
        const WRITES: u32 = 0o3 | 0o100 | 0o1000;
        match self {
            Self::Open { flags, .. } => flags & WRITES != 0,
            Self::SetAttr(_)
            | Self::SymLink { .. }
            | Self::MkNod { .. }
            | Self::MkDir { .. }
            | Self::Unlink { .. }
            | Self::RmDir { .. }
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::Create { .. }
            | Self::Write { .. }
            | Self::CopyFileRange { .. }
            | Self::FAllocate { .. }
            | Self::SetXattr { .. }
            | Self::RemoveXattr { .. } => true,
            _ => false,
        }
    }
}

impl<'a> Request<'a> {
    /// Reads one message, as a [`Splitter`](super::Splitter) gives it.
    pub fn parse(message: &'a [u8]) -> Result<Self, RequestError> {
        let broken = RequestError::Header(message.len());
        let (header, body) = message.split_at_checked(HEADER).ok_or(broken)?;
        let mut fields = Fields(header);
        let (length, opcode) = (fields.u32().ok_or(broken)?, fields.u32().ok_or(broken)?);
        let (unique, node) = (fields.u64().ok_or(broken)?, fields.u64().ok_or(broken)?);
        if length as usize != message.len() {
            return Err(broken);
        }
        let operation = Body(body)
            .operation(opcode)
            .map_err(|errno| RequestError::Malformed {
                opcode,
                unique,
                errno,
            })?;
        Ok(Self {
            unique,
            node,
            operation,
        })
    }
}

#[cfg(test)]
mod tests;
