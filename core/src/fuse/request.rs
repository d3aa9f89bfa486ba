//! What a guest's kernel asks.

use core::fmt;

use super::{MAX_LINK, MAX_NAME, MAX_XATTR, errno};

/// Bytes of the header of a request.
const HEADER: usize = 40;
/// Longest name of an extended attribute.
const MAX_XATTR_NAME: usize = 255;

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
        let operation =
            Body { rest: body }
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

/// Little-endian fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*field))
    }

    fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*field))
    }
}

/// What follows the header.
struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn u32(&mut self) -> Result<u32, i32> {
        let mut fields = Fields(self.rest);
        let field = fields.u32().ok_or(errno::EINVAL)?;
        self.rest = fields.0;
        Ok(field)
    }

    fn u64(&mut self) -> Result<u64, i32> {
        let mut fields = Fields(self.rest);
        let field = fields.u64().ok_or(errno::EINVAL)?;
        self.rest = fields.0;
        Ok(field)
    }

    /// Bytes up to the next NUL.
    fn text(&mut self) -> Result<&'a [u8], i32> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(errno::EINVAL)?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(text)
    }

    /// A name that means an entry of its directory and nothing else.
    fn name(&mut self) -> Result<&'a [u8], i32> {
        const ENAMETOOLONG: i32 = 36;
        let name = self.text()?;
        if name.len() > MAX_NAME {
            return Err(ENAMETOOLONG);
        }
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(errno::EINVAL);
        }
        Ok(name)
    }

    fn xattr_name(&mut self) -> Result<XattrName<'a>, i32> {
        const ERANGE: i32 = 34;
        let name = self.text()?;
        match name.len() {
            0 => Err(errno::EINVAL),
            1..=MAX_XATTR_NAME => Ok(XattrName(name)),
            _ => Err(ERANGE),
        }
    }

    fn data(&mut self, size: u32) -> Result<&'a [u8], i32> {
        self.rest.get(..size as usize).ok_or(errno::EINVAL)
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    fn operation(&mut self, opcode: u32) -> Result<Operation<'a>, i32> {
        const KILL: u32 = 1 << 2;
        Ok(match opcode {
            1 => Operation::Lookup { name: self.name()? },
            2 => Operation::Forget {
                lookups: self.u64()?,
            },
            3 => {
                let flags = self.u32()?;
                self.u32()?;
                let handle = self.u64()?;
                Operation::GetAttr {
                    handle: (flags & 1 != 0).then_some(handle),
                }
            }
            4 => Operation::SetAttr(self.set_attr()?),
            5 => Operation::ReadLink,
            6 => {
                let name = self.name()?;
                let target = self.text()?;
                if target.is_empty() || target.len() > MAX_LINK {
                    return Err(errno::EINVAL);
                }
                Operation::SymLink { name, target }
            }
            8 => {
                let mode = self.u32()?;
                // Device number, umask (already applied), padding.
                self.u32()?;
                self.u32()?;
                self.u32()?;
                Operation::MkNod {
                    name: self.name()?,
                    mode,
                }
            }
            9 => {
                let mode = self.u32()?;
                self.u32()?;
                Operation::MkDir {
                    name: self.name()?,
                    mode,
                }
            }
            10 => Operation::Unlink { name: self.name()? },
            11 => Operation::RmDir { name: self.name()? },
            12 | 45 => {
                let directory = self.u64()?;
                let flags = if opcode == 45 { self.u32()? } else { 0 };
                if opcode == 45 {
                    self.u32()?;
                }
                Operation::Rename {
                    name: self.name()?,
                    directory,
                    new_name: self.name()?,
                    flags,
                }
            }
            13 => Operation::Link {
                target: self.u64()?,
                name: self.name()?,
            },
            14 => Operation::Open {
                flags: self.u32()?,
                kill: self.u32()? & 1 != 0,
            },
            15 | 28 | 44 => {
                let (handle, offset, size) = (self.u64()?, self.u64()?, self.u32()?);
                match opcode {
                    15 => Operation::Read {
                        handle,
                        offset,
                        size,
                    },
                    _ => Operation::ReadDir {
                        handle,
                        offset,
                        size,
                        plus: opcode == 44,
                    },
                }
            }
            16 => {
                let (handle, offset) = (self.u64()?, self.u64()?);
                let (size, flags) = (self.u32()?, self.u32()?);
                // Lock owner, open flags, padding.
                self.u64()?;
                self.u32()?;
                self.u32()?;
                Operation::Write {
                    handle,
                    offset,
                    data: self.data(size)?,
                    cached: flags & 1 != 0,
                    kill: flags & KILL != 0,
                }
            }
            17 => Operation::StatFs,
            18 => Operation::Release {
                handle: self.u64()?,
            },
            20 | 30 => {
                let (handle, flags) = (self.u64()?, self.u32()?);
                let data_only = flags & 1 != 0;
                match opcode {
                    20 => Operation::FSync { handle, data_only },
                    _ => Operation::FSyncDir { handle, data_only },
                }
            }
            21 => {
                let (size, flags) = (self.u32()?, self.u32()?);
                let name = self.xattr_name()?;
                if size as usize > MAX_XATTR {
                    return Err(errno::EINVAL);
                }
                Operation::SetXattr {
                    name,
                    value: self.data(size)?,
                    flags,
                }
            }
            22 => {
                let size = self.u32()?;
                self.u32()?;
                Operation::GetXattr {
                    name: self.xattr_name()?,
                    size,
                }
            }
            23 => Operation::ListXattr { size: self.u32()? },
            24 => Operation::RemoveXattr {
                name: self.xattr_name()?,
            },
            25 => Operation::Flush {
                handle: self.u64()?,
            },
            26 => Operation::Init(Init {
                major: self.u32()?,
                minor: self.u32()?,
                max_readahead: self.u32()?,
                flags: self.u32()?,
            }),
            27 => Operation::OpenDir,
            29 => Operation::ReleaseDir {
                handle: self.u64()?,
            },
            35 => {
                let (flags, mode) = (self.u32()?, self.u32()?);
                // Umask (already applied) and flags of no interest for a new file.
                self.u32()?;
                self.u32()?;
                Operation::Create {
                    name: self.name()?,
                    flags,
                    mode,
                }
            }
            36 => Operation::Interrupt {
                unique: self.u64()?,
            },
            38 => Operation::Destroy,
            42 => {
                let count = self.u32()? as usize;
                self.u32()?;
                let length = count.checked_mul(16).ok_or(errno::EINVAL)?;
                let rest = self.rest.get(..length).ok_or(errno::EINVAL)?;
                Operation::BatchForget(Forgets { rest })
            }
            43 => Operation::FAllocate {
                handle: self.u64()?,
                offset: self.u64()?,
                length: self.u64()?,
                mode: self.u32()?,
            },
            46 => Operation::LSeek {
                handle: self.u64()?,
                offset: self.u64()?,
                whence: self.u32()?,
            },
            47 => {
                let (from, from_offset) = (self.u64()?, self.u64()?);
                // The node that the second handle belongs to.
                self.u64()?;
                let (to, to_offset, length) = (self.u64()?, self.u64()?, self.u64()?);
                if self.u64()? != 0 {
                    return Err(errno::EINVAL);
                }
                Operation::CopyFileRange {
                    from,
                    from_offset,
                    to,
                    to_offset,
                    length,
                }
            }
            opcode => Operation::Unsupported { opcode },
        })
    }

    fn set_attr(&mut self) -> Result<SetAttr, i32> {
        let valid = self.u32()?;
        self.u32()?;
        let (handle, size) = (self.u64()?, self.u64()?);
        // The owner of locks.
        self.u64()?;
        let (atime, mtime, _ctime) = (self.u64()?, self.u64()?, self.u64()?);
        let (atime_nsec, mtime_nsec) = (self.u32()?, self.u32()?);
        self.u32()?;
        let mode = self.u32()?;
        self.u32()?;
        let (uid, gid) = (self.u32()?, self.u32()?);
        let has = |bit: u32| valid & (1 << bit) != 0;
        let time = |bit: u32, now: u32, seconds: u64, nanos: u32| {
            if has(now) {
                Some(Time::Now)
            } else {
                has(bit).then_some(Time::At(seconds.cast_signed(), nanos))
            }
        };
        if atime_nsec >= 1_000_000_000 || mtime_nsec >= 1_000_000_000 {
            return Err(errno::EINVAL);
        }
        Ok(SetAttr {
            handle: has(6).then_some(handle),
            mode: has(0).then_some(mode),
            uid: has(1).then_some(uid),
            gid: has(2).then_some(gid),
            size: has(3).then_some(size),
            atime: time(4, 7, atime, atime_nsec),
            mtime: time(5, 8, mtime, mtime_nsec),
            kill: has(11),
        })
    }
}

#[cfg(test)]
mod tests;
