//! Open files: their content.

use std::{
    io::IoSlice,
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{
        FallocateFlags, FileType, OFlags, SeekFrom, Stat, copy_file_range, fallocate, fchmod,
        fdatasync, fstat, fsync, openat, seek,
    },
    io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2},
};
use vdkr_core::fuse::{Answer, open_flag};

use super::{
    attributes::{drop_set_id, permissions},
    budget::Slot,
    handles::Handle,
    nodes::Version,
    server::{Result, Server},
};

/// Flags of `open` that have a meaning here; their numbers are the same on all architectures.
const MEANT: OFlags = OFlags::RDWR
    .union(OFlags::WRONLY)
    .union(OFlags::TRUNC)
    .union(OFlags::DSYNC);
/// Content that one request copies from file to file.
const COPY: u64 = 64 << 20;
/// A file that changed so lately may change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(1);

impl Server {
    pub(super) fn open(&self, unique: u64, node: u64, flags: u32, kill: bool) -> Result {
        let room = self.room()?;
        let (given, append) = read_flags(flags)?;
        let place = self.place(node)?;
        let kind = self.nodes().kind(node)?;
        if kill && given.contains(OFlags::TRUNC) {
            drop_set_id(&place, kind)?;
        }
        let fd = self.reopen(&place, kind, given)?;
        let writes = given.intersects(OFlags::WRONLY | OFlags::RDWR);
        let stat = fstat(&fd)?;
        let mut answer = self.closing(&stat, writes);
        // What the guest has in its cache is good when nothing changed since it opened the file
        // before, and the last change was long enough ago then to have changed the times.
        let version = settled(&stat).then(|| version(&stat));
        if self.nodes().same_version(node, version) {
            answer |= open_flag::KEEP_CACHE;
        }
        let handle = self.add_handle(node, Handle::File { fd, node, append }, room)?;
        Ok(Answer::open(unique, handle, answer))
    }

    pub(super) fn create(
        &self,
        unique: u64,
        directory: u64,
        name: &[u8],
        flags: u32,
        mode: u32,
    ) -> Result {
        let room = self.room()?;
        let (given, append) = read_flags(flags)?;
        let exclusive = OFlags::from_bits_retain(flags).contains(OFlags::EXCL);
        let parent = self.place(directory)?;
        let mode = permissions(mode, FileType::RegularFile);
        let new = given | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOCTTY;
        let created = self.with_room(|| openat(&parent, name, new, mode));
        let (fd, entry) = match created {
            Ok(fd) => {
                // The guest has applied its own mask; this process's does not count.
                fchmod(&fd, mode)?;
                (fd, self.entry(directory, name)?)
            }
            // Somebody on this side was quicker.
            Err(Errno::EXIST) if !exclusive => {
                let entry = self.entry(directory, name)?;
                let opened = self.place(entry.node).and_then(|place| {
                    let kind = self.nodes().kind(entry.node)?;
                    self.reopen(&place, kind, given)
                });
                match opened {
                    Ok(fd) => (fd, entry),
                    Err(error) => {
                        self.nodes().forget(entry.node, 1);
                        return Err(error);
                    }
                }
            }
            Err(error) => return Err(error),
        };
        let node = entry.node;
        let answer = self.closing(&fstat(&fd)?, true);
        let added = self.add_handle(node, Handle::File { fd, node, append }, room);
        match added {
            Ok(handle) => Ok(Answer::created(unique, &entry, handle, answer)),
            Err(error) => {
                self.nodes().forget(node, 1);
                Err(error)
            }
        }
    }

    /// Whether the guest has to tell that it closes a file: not where closing says nothing.
    fn closing(&self, stat: &Stat, writes: bool) -> u32 {
        let silent = self.owner.local && stat.st_dev == self.owner.dev;
        if writes && !silent {
            0
        } else {
            open_flag::NO_FLUSH
        }
    }

    pub(super) fn add_handle(&self, node: u64, handle: Handle, room: Slot) -> Result<u64> {
        let number = self.handles().add(handle, room)?;
        self.nodes().opened(node, true);
        Ok(number)
    }

    pub(super) fn release(&self, handle: u64) {
        let removed = self.handles().remove(handle);
        if let Some(handle) = removed {
            self.nodes().opened(handle.node(), false);
        }
    }

    pub(super) fn read(&self, unique: u64, handle: u64, offset: u64, size: u32) -> Result {
        let handle = self.handle(handle)?;
        let fd = handle.file()?;
        Answer::data(unique, size as usize, |buffer| {
            let mut filled = 0;
            while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match pread(fd, rest, offset.saturating_add(filled as u64)) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(Errno::INTR) => {}
                    Err(_) if filled > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(filled)
        })
    }

    pub(super) fn write(
        &self,
        unique: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        (cached, kill): (bool, bool),
    ) -> Result {
        let handle = self.handle(handle)?;
        let fd = handle.file()?;
        if kill {
            drop_set_id(fd, FileType::RegularFile)?;
        }
        let append = !cached && matches!(*handle, Handle::File { append: true, .. });
        let mut written = 0;
        while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
            let result = if append {
                append_to(fd, rest)
            } else {
                pwrite(fd, rest, offset.saturating_add(written as u64))
            };
            match result {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Answer::size(unique, written as u32))
    }

    pub(super) fn copy_range(
        &self,
        unique: u64,
        (from, mut from_offset): (u64, u64),
        (to, mut to_offset): (u64, u64),
        length: u64,
    ) -> Result {
        let (from, to) = (self.handle(from)?, self.handle(to)?);
        let length = usize::try_from(length.min(COPY)).unwrap_or_default();
        let copied = copy_file_range(
            from.file()?,
            Some(&mut from_offset),
            to.file()?,
            Some(&mut to_offset),
            length,
        )?;
        Ok(Answer::size(unique, copied as u32))
    }

    /// A descriptor of the guest's was closed: what a file system says only then is told now.
    pub(super) fn flush(&self, unique: u64, handle: u64) -> Result {
        let handle = self.handle(handle)?;
        let copy = handle
            .file()?
            .try_clone()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        close(copy)?;
        Ok(Answer::done(unique))
    }

    pub(super) fn sync(&self, unique: u64, handle: u64, data_only: bool) -> Result {
        let sync = |fd: &OwnedFd| {
            if data_only { fdatasync(fd) } else { fsync(fd) }
        };
        match &*self.handle(handle)? {
            Handle::File { fd, .. } => sync(fd)?,
            Handle::Directory { fd, .. } => sync(&super::server::lock(fd))?,
        }
        Ok(Answer::done(unique))
    }

    pub(super) fn allocate(
        &self,
        unique: u64,
        handle: u64,
        (offset, length): (u64, u64),
        mode: u32,
    ) -> Result {
        let supported =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits(mode)
            .filter(|mode| supported.contains(*mode))
            .ok_or(Errno::OPNOTSUPP)?;
        fallocate(self.handle(handle)?.file()?, mode, offset, length)?;
        Ok(Answer::done(unique))
    }

    /// Only the search for holes and data comes here; the guest knows its own positions.
    pub(super) fn seek(&self, unique: u64, handle: u64, offset: u64, whence: u32) -> Result {
        let to = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let handle = self.handle(handle)?;
        Ok(Answer::offset(unique, seek(handle.file()?, to)?))
    }
}

/// The flags to open a file with, and whether writes go to its end.
fn read_flags(flags: u32) -> Result<(OFlags, bool)> {
    let flags = OFlags::from_bits_retain(flags);
    if flags.contains(OFlags::RDWR | OFlags::WRONLY) {
        return Err(Errno::INVAL);
    }
    // Appending is up to each write: content of the guest's page cache has a place of its own.
    Ok((flags & MEANT, flags.contains(OFlags::APPEND)))
}

/// Writes to the end wherever that is by now, as several writers on both sides want it.
fn append_to(fd: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    match pwritev2(fd, &[IoSlice::new(bytes)], 0, ReadWriteFlags::APPEND) {
        // A file system that cannot do it at once.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let end = u64::try_from(fstat(fd)?.st_size).unwrap_or_default();
            pwrite(fd, bytes, end)
        }
        result => result,
    }
}

fn version(stat: &Stat) -> Version {
    (
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec,
        stat.st_size.cast_unsigned(),
    )
}

fn settled(stat: &Stat) -> bool {
    let Ok(seconds) = u64::try_from(stat.st_ctime.max(stat.st_mtime)) else {
        return false;
    };
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.saturating_add(1));
    SystemTime::now()
        .duration_since(changed)
        .is_ok_and(|age| age > SETTLED)
}

/// Closes a file and gives the error that only closing shows.
fn close(fd: OwnedFd) -> Result<()> {
    use std::os::fd::IntoRawFd as _;
    let closed = nix::unistd::close(fd.into_raw_fd());
    closed.map_err(|error| Errno::from_raw_os_error(error as i32))
}
