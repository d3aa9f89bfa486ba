//! How the body of each operation is laid out.

use super::super::{MAX_LINK, MAX_NAME, MAX_XATTR, errno};
use super::{Forgets, Init, Operation, SetAttr, Time, XattrName};

/// Longest name of an extended attribute.
const MAX_XATTR_NAME: usize = 255;

/// Little-endian fields.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*field))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*field))
    }
}

/// What follows the header.
pub(super) struct Body<'a>(pub(super) &'a [u8]);

impl<'a> Body<'a> {
    fn u32(&mut self) -> Result<u32, i32> {
        let mut fields = Fields(self.0);
        let field = fields.u32().ok_or(errno::EINVAL)?;
        self.0 = fields.0;
        Ok(field)
    }

    fn u64(&mut self) -> Result<u64, i32> {
        let mut fields = Fields(self.0);
        let field = fields.u64().ok_or(errno::EINVAL)?;
        self.0 = fields.0;
        Ok(field)
    }

    /// Bytes up to the next NUL.
    fn text(&mut self) -> Result<&'a [u8], i32> {
        let end = self
            .0
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(errno::EINVAL)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
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
        self.0.get(..size as usize).ok_or(errno::EINVAL)
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    pub(super) fn operation(&mut self, opcode: u32) -> Result<Operation<'a>, i32> {
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
                let rest = self.0.get(..length).ok_or(errno::EINVAL)?;
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
