//! What lies under a name of a directory in which somebody else may write meanwhile: what is said of a
//! file is true of what was opened, and no link leads anywhere.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use rustix::{
    fs::{Dir, Mode, OFlags, openat, readlinkat},
    io::Errno,
};

/// How often a name is looked at again that became something else between look and opening.
const TRIES: usize = 64;

/// What a name was found to be.
#[derive(Debug)]
pub enum Found {
    /// A directory, opened; [`entries`] lists it.
    Directory(File, Metadata),
    /// A file, opened for reading.
    File(File, Metadata),
    /// A symbolic link, and where it leads.
    Link(OsString, Metadata),
    /// A queue, device or socket. It was not opened.
    Other(Metadata),
}

/// Opens what has a name in a directory. A link at the end of the name is followed only if `follow` says
/// so; a name of several parts may lead through others. Waits for no other end of a queue.
pub fn find(directory: impl AsFd, name: impl AsRef<Path>, follow: bool) -> io::Result<Found> {
    let (directory, name) = (directory.as_fd(), name.as_ref());
    let mut common = OFlags::CLOEXEC;
    if !follow {
        common |= OFlags::NOFOLLOW;
    }
    for _ in 0..TRIES {
        // Opening a device may do something, and a link cannot be opened; this opens neither.
        let seen: File = openat(directory, name, common | OFlags::PATH, Mode::empty())?.into();
        let meta = seen.metadata()?;
        let kind = if meta.is_symlink() {
            let target = readlinkat(&seen, "", Vec::new())?;
            return Ok(Found::Link(OsString::from_vec(target.into_bytes()), meta));
        } else if meta.is_dir() {
            OFlags::DIRECTORY
        } else if meta.is_file() {
            OFlags::NONBLOCK | OFlags::NOCTTY
        } else {
            return Ok(Found::Other(meta));
        };
        match openat(
            directory,
            name,
            common | OFlags::RDONLY | kind,
            Mode::empty(),
        ) {
            Ok(opened) => {
                let file = File::from(opened);
                let meta = file.metadata()?;
                if meta.is_dir() {
                    return Ok(Found::Directory(file, meta));
                }
                if meta.is_file() {
                    return Ok(Found::File(file, meta));
                }
            }
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("it changes while it is read"))
}

/// The names in a directory that was opened, in order.
pub fn entries(directory: &File) -> io::Result<Vec<OsString>> {
    let directory = OwnedFd::from(directory.try_clone()?);
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
