//! From files to a stream.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};
use vdkr_core::tar::write::{END, Member, Type, header, padding};

use super::TreeError;

/// Writes what lies at `path` as an archive whose first member is called `entry`, and the rest
/// after it; `.` names nothing, so that the content of a directory comes without its name. A link
/// at the end of the path is followed if `follow` says so, links below are not. Sockets, devices
/// and queues are left out.
///
/// Without `owners` everything belongs to root.
pub fn pack(
    path: &Path,
    entry: &str,
    follow: bool,
    owners: bool,
    out: &mut impl Write,
) -> Result<(), TreeError> {
    let mut open: Vec<(PathBuf, Vec<u8>)> = vec![(path.to_owned(), entry.as_bytes().to_vec())];
    let mut first = follow;
    while let Some((path, name)) = open.pop() {
        let failed = |error| TreeError::io(path.as_os_str().as_bytes())(error);
        let look = if std::mem::take(&mut first) {
            fs::metadata
        } else {
            fs::symlink_metadata
        };
        let meta = match look(&path) {
            Ok(meta) => meta,
            // Gone since its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.contains(&b'/') => {
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        if meta.is_dir() {
            out.write_all(&header(&member(Type::Directory, &name, b"", &meta, owners)))?;
            let mut below = Vec::new();
            for entry in fs::read_dir(&path).map_err(failed)? {
                let entry =
                    entry.map_err(|error| TreeError::io(path.as_os_str().as_bytes())(error))?;
                let name = [&name, &b"/"[..], entry.file_name().as_bytes()].concat();
                below.push((entry.path(), name));
            }
            // The last is taken first.
            below.sort_by(|left, right| right.1.cmp(&left.1));
            open.append(&mut below);
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).map_err(failed)?;
            let target = target.as_os_str().as_bytes();
            out.write_all(&header(&member(Type::Link, &name, target, &meta, owners)))?;
        } else if meta.is_file() {
            file(&path, &name, owners, &[], out)?;
        }
    }
    out.write_all(&END)?;
    out.flush()?;
    Ok(())
}

pub(super) fn member<'a>(
    kind: Type,
    name: &'a [u8],
    link: &'a [u8],
    meta: &Metadata,
    owners: bool,
) -> Member<'a> {
    let owner = |id: u32| if owners { id } else { 0 };
    Member {
        kind,
        name,
        link,
        mode: meta.mode(),
        uid: owner(meta.uid()),
        gid: owner(meta.gid()),
        size: meta.len(),
        mtime: meta.mtime(),
    }
}

/// A file after what stands `before` it: as many bytes as its header says, whatever happens to it
/// meanwhile. `false` when it is gone.
pub(super) fn file(
    path: &Path,
    name: &[u8],
    owners: bool,
    before: &[u8],
    out: &mut impl Write,
) -> Result<bool, TreeError> {
    let failed = || TreeError::io(path.as_os_str().as_bytes());
    // What was a file a moment ago may be a queue now.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = match openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(failed()(error.into())),
    };
    let meta = file.metadata().map_err(failed())?;
    if !meta.is_file() {
        return Ok(false);
    }
    out.write_all(before)?;
    out.write_all(&header(&member(Type::File, name, b"", &meta, owners)))?;
    let mut left = meta.len();
    let mut file = file.take(left);
    let mut buffer = vec![0; 256 * 1024];
    while left > 0 {
        let length = file.read(&mut buffer).map_err(failed())?;
        if length == 0 {
            break;
        }
        out.write_all(buffer.get(..length).unwrap_or_default())?;
        left -= length as u64;
    }
    buffer.fill(0);
    while left > 0 {
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        out.write_all(buffer.get(..length).unwrap_or_default())?;
        left -= length as u64;
    }
    out.write_all(&END[..padding(meta.len())])?;
    Ok(true)
}
