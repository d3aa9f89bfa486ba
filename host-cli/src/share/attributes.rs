//! Attributes: what a file looks like in the guest, and what the guest may change about it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
        XattrFlags, chmodat, fstat, fstatvfs, ftruncate, getxattr, getxattr_query, listxattr,
        openat, removexattr, setxattr, utimensat,
    },
    io::Errno,
};
use vdkr_core::fuse::{Answer, Attr, FileSystem, MAX_XATTR, ROOT, SetAttr, Time, XattrName};

use super::{
    nodes::own_path,
    server::{Owner, Result, Server},
};

/// Owner in the guest of what does not belong to the serving user.
const NOBODY: u32 = 65534;
/// For how long the guest may believe attributes without asking. Opening and looking up a file
/// asks in any case.
const SECONDS: u64 = 1;
/// What programs take for a good size of their reads and writes.
const BLOCK: u32 = 128 * 1024;

impl Owner {
    /// What the guest is told about a file.
    pub(super) fn attr(&self, stat: &Stat) -> Attr {
        let nanos = |nanos: u64| u32::try_from(nanos).unwrap_or_default();
        let ours = |gid: u32| self.gids.contains(&gid);
        let other_device = stat.st_dev.wrapping_sub(self.dev);
        Attr {
            // Files of other devices below may have the same numbers.
            ino: stat.st_ino ^ other_device.rotate_right(16),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
            atime: (stat.st_atime, nanos(stat.st_atime_nsec)),
            mtime: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            ctime: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: if stat.st_uid == self.uid { 0 } else { NOBODY },
            gid: if ours(stat.st_gid) { 0 } else { NOBODY },
            blksize: BLOCK,
        }
    }
}

/// For how long attributes of a node hold. The root is never looked up, so they do not hold there.
pub(super) fn seconds(node: u64) -> u64 {
    if node == ROOT { 0 } else { SECONDS }
}

/// Permissions that the guest may give. No program gets the serving user's rights by a bit that
/// was set in a guest.
pub(super) fn permissions(mode: u32, kind: FileType) -> Mode {
    let allowed = match kind {
        FileType::Directory => 0o3777,
        _ => 0o1777,
    };
    Mode::from_raw_mode(mode & allowed)
}

impl Server {
    fn stat(&self, node: u64, handle: Option<u64>) -> Result<Stat> {
        // An open file is reached even when its name is gone.
        if let Some(handle) = handle.and_then(|number| self.handle(number).ok())
            && let Ok(fd) = handle.file()
        {
            return fstat(fd);
        }
        fstat(&self.place(node)?)
    }

    pub(super) fn get_attr(&self, unique: u64, node: u64, handle: Option<u64>) -> Result {
        let stat = self.stat(node, handle)?;
        Ok(Answer::attr(unique, &self.owner.attr(&stat), seconds(node)))
    }

    pub(super) fn set_attr(&self, unique: u64, node: u64, set: &SetAttr) -> Result {
        let place = self.place(node)?;
        let kind = self.nodes().kind(node)?;
        if let Some(size) = set.size {
            let handle = set.handle.and_then(|number| self.handle(number).ok());
            match handle.as_ref().map(|handle| handle.file()) {
                Some(Ok(fd)) => ftruncate(fd, size)?,
                _ => ftruncate(self.reopen(&place, kind, OFlags::WRONLY)?, size)?,
            }
        }
        if let Some(mode) = set.mode {
            change_mode(&place, kind, permissions(mode, kind))?;
        }
        // Owners other than the serving user cannot be expressed: they are taken and stay as
        // they are, so that `tar` and `cp -a` work as root inside.
        if set.kill || set.uid.is_some() || set.gid.is_some() {
            drop_set_id(&place, kind)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = Timestamps {
                last_access: time(set.atime),
                last_modification: time(set.mtime),
            };
            if kind == FileType::Symlink {
                utimensat(&place, "", &times, AtFlags::EMPTY_PATH)?;
            } else {
                utimensat(CWD, own_path(&place), &times, AtFlags::empty())?;
            }
        }
        self.get_attr(unique, node, set.handle)
    }

    /// Opens a node's file for itself: only what is safe to open.
    pub(super) fn reopen(&self, place: &OwnedFd, kind: FileType, flags: OFlags) -> Result<OwnedFd> {
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            // Pipes, sockets and devices are the guest's own; here nothing is to be opened.
            _ => return Err(Errno::NXIO),
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        self.with_room(|| openat(CWD, own_path(place), flags, Mode::empty()))
    }

    pub(super) fn stat_fs(&self, unique: u64) -> Result {
        let stat = fstatvfs(self.nodes().root())?;
        let size = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        let answer = FileSystem {
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            block_size: size(stat.f_bsize),
            fragment_size: size(stat.f_frsize),
        };
        Ok(Answer::file_system(unique, &answer))
    }

    pub(super) fn get_xattr(
        &self,
        unique: u64,
        node: u64,
        name: XattrName<'_>,
        size: u32,
    ) -> Result {
        let place = self.xattr_place(node, Some(name))?;
        if size == 0 {
            let length = getxattr_query(own_path(&place), name.bytes())?;
            return Ok(Answer::size(unique, length.min(MAX_XATTR) as u32));
        }
        Answer::data(unique, (size as usize).min(MAX_XATTR), |buffer| {
            getxattr(own_path(&place), name.bytes(), buffer)
        })
    }

    pub(super) fn set_xattr(
        &self,
        unique: u64,
        node: u64,
        name: XattrName<'_>,
        value: &[u8],
        flags: u32,
    ) -> Result {
        let place = self.xattr_place(node, Some(name))?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        setxattr(own_path(&place), name.bytes(), value, flags)?;
        Ok(Answer::done(unique))
    }

    pub(super) fn remove_xattr(&self, unique: u64, node: u64, name: XattrName<'_>) -> Result {
        let place = self.xattr_place(node, Some(name))?;
        removexattr(own_path(&place), name.bytes())?;
        Ok(Answer::done(unique))
    }

    pub(super) fn list_xattr(&self, unique: u64, node: u64, size: u32) -> Result {
        let place = self.xattr_place(node, None)?;
        let mut list = vec![0_u8; MAX_XATTR];
        let length = listxattr(own_path(&place), &mut list[..])?;
        let mut shown = Vec::new();
        for name in list
            .get(..length)
            .unwrap_or_default()
            .split_inclusive(|&byte| byte == 0)
        {
            if name.starts_with(b"user.") {
                shown.extend_from_slice(name);
            }
        }
        match size as usize {
            0 => Ok(Answer::size(unique, shown.len() as u32)),
            size if size < shown.len() => Err(Errno::RANGE),
            _ => Ok(Answer::bytes(unique, &shown)),
        }
    }

    /// The place of a node that has attributes of users.
    fn xattr_place(
        &self,
        node: u64,
        name: Option<XattrName<'_>>,
    ) -> Result<std::sync::Arc<OwnedFd>> {
        let kind = self.nodes().kind(node)?;
        let has_them = matches!(kind, FileType::RegularFile | FileType::Directory);
        if !has_them || name.is_some_and(|name| !name.is_users()) {
            return Err(Errno::OPNOTSUPP);
        }
        self.place(node)
    }
}

/// Changes permissions of what is not a link.
pub(super) fn change_mode(place: &impl AsFd, kind: FileType, mode: Mode) -> Result<()> {
    if kind == FileType::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    chmodat(CWD, own_path(place), mode, AtFlags::empty())
}

/// Takes set-user-ID bits away, as the kernel does on a write by an ordinary user.
pub(super) fn drop_set_id(place: &impl AsFd, kind: FileType) -> Result<()> {
    let mode = fstat(place)?.st_mode;
    if kind == FileType::RegularFile && mode & 0o6000 != 0 {
        change_mode(place, kind, permissions(mode, kind))?;
    }
    Ok(())
}

fn time(time: Option<Time>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match time {
        None => special(UTIME_OMIT),
        Some(Time::Now) => special(UTIME_NOW),
        Some(Time::At(tv_sec, nanos)) => Timespec {
            tv_sec,
            tv_nsec: nanos.into(),
        },
    }
}
