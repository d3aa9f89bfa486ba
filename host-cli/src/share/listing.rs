//! Listings of directories, a piece at a time.

use std::{mem::MaybeUninit, os::fd::OwnedFd, sync::Mutex};

use rustix::{
    fs::{FileType, Mode, OFlags, RawDir, SeekFrom, openat, seek},
    io::Errno,
};
use vdkr_core::fuse::{Answer, Attr, DirBuffer, Entry, MAX_NAME};

use super::{
    handles::Handle,
    server::{Result, Server, lock},
};

/// Bytes of names that are read from a directory in one go.
const PIECE: usize = 32 * 1024;

impl Server {
    pub(super) fn open_dir(&self, unique: u64, node: u64) -> Result {
        let room = self.room()?;
        let place = self.place(node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = self.with_room(|| openat(&place, ".", flags, Mode::empty()))?;
        let fd = Mutex::new(fd);
        let handle = self.add_handle(node, Handle::Directory { fd, node }, room)?;
        Ok(Answer::open(unique, handle, 0))
    }

    /// Entries from `offset`, which is where an earlier piece ended, or 0.
    pub(super) fn read_dir(
        &self,
        unique: u64,
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Result {
        let handle = self.handle(handle)?;
        let Handle::Directory { fd, node } = &*handle else {
            return Err(Errno::NOTDIR);
        };
        let fd = lock(fd);
        seek(&*fd, SeekFrom::Start(offset))?;
        let size = size as usize;
        let mut names = vec![MaybeUninit::uninit(); PIECE];
        // Of the names that are read more than fit would be read again for the next piece.
        let wanted = size.clamp(2 * (MAX_NAME + 32), PIECE);
        let mut names = RawDir::new(&*fd, names.get_mut(..wanted).unwrap_or_default());
        let mut listing = DirBuffer::new(unique, size);
        while let Some(entry) = names.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) if !listing.is_empty() => break,
                // The directory was removed.
                Err(Errno::NOENT) => break,
                Err(error) => return Err(error),
            };
            let (name, next) = (entry.file_name().to_bytes(), entry.next_entry_cookie());
            if !listing.fits(name.len(), plus) {
                break;
            }
            if plus {
                let entry = self.plus(&fd, *node, name, entry.ino(), entry.file_type());
                listing.push_plus(&entry, next, name);
            } else {
                listing.push(entry.ino(), next, entry.file_type().as_raw_mode(), name);
            }
        }
        Ok(listing.finish())
    }

    /// An entry with what is known about it. One of node 0 is a name and nothing else.
    fn plus(&self, fd: &OwnedFd, node: u64, name: &[u8], ino: u64, kind: FileType) -> Entry {
        let name_alone = Entry {
            attr: Attr {
                ino,
                mode: kind.as_raw_mode(),
                ..Attr::default()
            },
            ..Entry::default()
        };
        if matches!(name, b"." | b"..") {
            return name_alone;
        }
        self.listed(fd, node, name).unwrap_or(name_alone)
    }
}
