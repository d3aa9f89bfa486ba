//! From files to a stream.

use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::CWD;
use vdkr_core::tar::write::{END, Member, Type, header, padding};

use super::{
    TreeError,
    find::{Found, entries, find},
};

/// How deep directories may nest: each on the way to a file stays open.
const MAX_DEPTH: usize = 512;

/// A directory whose entries are under way.
struct Open {
    directory: File,
    path: PathBuf,
    name: Vec<u8>,
    entries: std::vec::IntoIter<OsString>,
}

/// Writes what lies at `path` as an archive whose first member is called `entry`, and the rest
/// after it; `.` names nothing, so that the content of a directory comes without its name. A link
/// at the end of the path is followed if `follow` says so, links below are not. Sockets, devices
/// and queues are left out.
///
/// Without `owners` everything belongs to root. Whoever changes the files meanwhile changes what is
/// written, and nothing outside of `path` becomes part of it.
pub fn pack(
    path: &Path,
    entry: &str,
    follow: bool,
    owners: bool,
    out: &mut impl Write,
) -> Result<(), TreeError> {
    let found = find(CWD, path, follow).map_err(failed(path))?;
    let name = entry.as_bytes().to_vec();
    let mut open: Vec<Open> = Vec::new();
    open.extend(write(found, path.to_owned(), name, owners, out)?);
    while let Some(above) = open.last_mut() {
        let Some(entry) = above.entries.next() else {
            open.pop();
            continue;
        };
        let path = above.path.join(&entry);
        let name = [&above.name, &b"/"[..], entry.as_bytes()].concat();
        let found = match find(&above.directory, &entry, false) {
            Ok(found) => found,
            // Gone since its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path)(error)),
        };
        if open.len() == MAX_DEPTH && matches!(found, Found::Directory(..)) {
            let error = format!("directories nest more than {MAX_DEPTH} deep");
            return Err(failed(&path)(io::Error::other(error)));
        }
        open.extend(write(found, path, name, owners, out)?);
    }
    out.write_all(&END)?;
    out.flush()?;
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    TreeError::io(path.as_os_str().as_bytes())
}

/// Writes a member; a directory is to be gone through then.
fn write(
    found: Found,
    path: PathBuf,
    name: Vec<u8>,
    owners: bool,
    out: &mut impl Write,
) -> Result<Option<Open>, TreeError> {
    match found {
        Found::Directory(directory, meta) => {
            out.write_all(&header(&member(Type::Directory, &name, b"", &meta, owners)))?;
            let entries = entries(&directory).map_err(failed(&path))?.into_iter();
            return Ok(Some(Open {
                directory,
                path,
                name,
                entries,
            }));
        }
        Found::Link(target, meta) => {
            let target = target.as_bytes();
            out.write_all(&header(&member(Type::Link, &name, target, &meta, owners)))?;
        }
        Found::File(file, meta) => content(file, &meta, &path, &name, owners, out)?,
        Found::Other(_) => {}
    }
    Ok(None)
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

/// A file after what stands `before` it. `false` when it is gone.
pub(super) fn file(
    path: &Path,
    name: &[u8],
    owners: bool,
    before: &[u8],
    out: &mut impl Write,
) -> Result<bool, TreeError> {
    let (file, meta) = match find(CWD, path, false) {
        Ok(Found::File(file, meta)) => (file, meta),
        // What was a file a moment ago may be a queue now.
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(path)(error)),
    };
    out.write_all(before)?;
    content(file, &meta, path, name, owners, out)?;
    Ok(true)
}

/// A file's header and data: as many bytes as the header says, whatever happens to it meanwhile.
fn content(
    file: File,
    meta: &Metadata,
    path: &Path,
    name: &[u8],
    owners: bool,
    out: &mut impl Write,
) -> Result<(), TreeError> {
    out.write_all(&header(&member(Type::File, name, b"", meta, owners)))?;
    let mut left = meta.len();
    let mut file = file.take(left);
    let mut buffer = vec![0; 256 * 1024];
    while left > 0 {
        let length = file.read(&mut buffer).map_err(failed(path))?;
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
    Ok(())
}
