//! Entries of directories: finding, making, removing, renaming.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, fstat, linkat, mkdirat, mknodat,
        openat, readlinkat, renameat_with, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use vdkr_core::fuse::{Answer, Entry, MAX_LINK};

use super::{
    attributes::{change_mode, permissions, seconds},
    nodes::{PLACE, own_path},
    server::{Result, Server},
};

/// For how long the guest may walk through a directory without asking whether it is still there.
/// A file is asked for each time, so that what was put in its place is seen at once.
const DIRECTORY_MILLIS: u32 = 1000;
/// For how long a listing stands for its entries: whoever lists a directory and looks at each entry
/// does not ask for all of it twice.
const LISTED_MILLIS: u32 = 250;

fn directory_millis(stat: &Stat) -> u32 {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DIRECTORY_MILLIS,
        _ => 0,
    }
}

impl Server {
    /// What the guest is told about an entry that is there.
    pub(super) fn entry(&self, directory: u64, name: &[u8]) -> Result<Entry> {
        let parent = self.place(directory)?;
        let fd = self.with_room(|| openat(&parent, name, PLACE, Mode::empty()))?;
        let stat = fstat(&fd)?;
        let node = self.nodes().learn(directory, name, &stat, Some(fd))?;
        Ok(Entry {
            node,
            attr: self.owner.attr(&stat),
            attr_seconds: seconds(node),
            name_millis: directory_millis(&stat),
        })
    }

    /// The same for a listing, where handles would be too many.
    pub(super) fn listed(&self, parent: &OwnedFd, directory: u64, name: &[u8]) -> Result<Entry> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let node = self.nodes().learn(directory, name, &stat, None)?;
        Ok(Entry {
            node,
            attr: self.owner.attr(&stat),
            attr_seconds: seconds(node),
            name_millis: directory_millis(&stat).max(LISTED_MILLIS),
        })
    }

    pub(super) fn lookup(&self, unique: u64, directory: u64, name: &[u8]) -> Result {
        Ok(Answer::entry(unique, &self.entry(directory, name)?))
    }

    pub(super) fn read_link(&self, unique: u64, node: u64) -> Result {
        let place = self.place(node)?;
        if self.nodes().kind(node)? != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(&place, "", Vec::with_capacity(256))?;
        let target = target.to_bytes();
        let shown = target.get(..target.len().min(MAX_LINK));
        Ok(Answer::bytes(unique, shown.unwrap_or_default()))
    }

    pub(super) fn make_link(
        &self,
        unique: u64,
        directory: u64,
        name: &[u8],
        target: &[u8],
    ) -> Result {
        symlinkat(target, self.place(directory)?, name)?;
        self.lookup(unique, directory, name)
    }

    pub(super) fn make_node(&self, unique: u64, directory: u64, name: &[u8], mode: u32) -> Result {
        let kind = FileType::from_raw_mode(mode);
        let parent = self.place(directory)?;
        match kind {
            FileType::RegularFile | FileType::Unknown => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = permissions(mode, kind);
                let file = self.with_room(|| openat(&parent, name, flags, mode))?;
                rustix::fs::fchmod(&file, mode)?;
            }
            FileType::Fifo | FileType::Socket => {
                let permissions = permissions(mode, kind);
                mknodat(&parent, name, kind, permissions, 0)?;
                let made = openat(&parent, name, PLACE, Mode::empty())?;
                if FileType::from_raw_mode(fstat(&made)?.st_mode) == kind {
                    change_mode(&made, kind, permissions)?;
                }
            }
            _ => return Err(Errno::PERM),
        }
        self.lookup(unique, directory, name)
    }

    pub(super) fn make_dir(&self, unique: u64, directory: u64, name: &[u8], mode: u32) -> Result {
        let kind = FileType::Directory;
        let parent = self.place(directory)?;
        let mode = permissions(mode, kind);
        mkdirat(&parent, name, mode)?;
        // The guest has applied its own mask; this process's does not count.
        let made = openat(&parent, name, PLACE | OFlags::DIRECTORY, Mode::empty())?;
        // A group that the directory inherits stays inherited.
        let inherited = Mode::from_raw_mode(fstat(&made)?.st_mode & 0o2000);
        change_mode(&made, kind, mode | inherited)?;
        self.lookup(unique, directory, name)
    }

    pub(super) fn remove(
        &self,
        unique: u64,
        directory: u64,
        name: &[u8],
        is_directory: bool,
    ) -> Result {
        let parent = self.place(directory)?;
        let flags = if is_directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        let mut nodes = self.nodes();
        let number = nodes.keep(&parent, name);
        if let Err(error) = unlinkat(&parent, name, flags) {
            nodes.named(number, directory, name);
            return Err(error);
        }
        Ok(Answer::done(unique))
    }

    pub(super) fn rename(
        &self,
        unique: u64,
        (directory, name): (u64, &[u8]),
        (new_directory, new_name): (u64, &[u8]),
        flags: u32,
    ) -> Result {
        let flags = RenameFlags::from_bits(flags)
            .filter(|flags| !flags.contains(RenameFlags::WHITEOUT))
            .ok_or(Errno::INVAL)?;
        let (parent, new_parent) = (self.place(directory)?, self.place(new_directory)?);
        let mut nodes = self.nodes();
        let moved = nodes.keep(&parent, name);
        let replaced = nodes.keep(&new_parent, new_name);
        let renamed = renameat_with(&parent, name, &new_parent, new_name, flags);
        match renamed {
            Ok(()) if flags.contains(RenameFlags::EXCHANGE) => {
                nodes.named(moved, new_directory, new_name);
                nodes.named(replaced, directory, name);
            }
            // Two names of one file: nothing happens.
            Ok(()) if moved.is_some() && moved == replaced => {
                nodes.named(moved, new_directory, new_name);
            }
            Ok(()) => nodes.named(moved, new_directory, new_name),
            Err(error) => {
                nodes.named(moved, directory, name);
                nodes.named(replaced, new_directory, new_name);
                return Err(error);
            }
        }
        Ok(Answer::done(unique))
    }

    pub(super) fn link(&self, unique: u64, target: u64, directory: u64, name: &[u8]) -> Result {
        let (place, parent) = (self.place(target)?, self.place(directory)?);
        if self.nodes().kind(target)? == FileType::Directory {
            return Err(Errno::PERM);
        }
        let flags = AtFlags::SYMLINK_FOLLOW;
        linkat(CWD, own_path(&place), &parent, name, flags)?;
        self.lookup(unique, directory, name)
    }
}
