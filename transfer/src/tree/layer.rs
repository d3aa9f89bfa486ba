//! A container's own changes, and a whole root file system, as a tar stream with all that a layer
//! keeps: owners, hard links, devices, queues and extended attributes.
//!
//! Paths are walked by name, so the caller has changed its root to the directory, or nobody else
//! writes there.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, StatxFlags, lgetxattr, lgetxattr_query, llistxattr,
        llistxattr_query, major, minor, statx,
    },
    io::Errno,
};
use vdkr_core::tar::write::{END, Member, Record, Type, extended, header};

use super::{TreeError, pack};

/// What overlayfs keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// Set on a directory that hides what lower layers have in it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Set on a directory that was moved, and on a file that is there by its attributes alone: a layer
/// cannot say either.
const ELSEWHERE: [&str; 2] = ["trusted.overlay.redirect", "trusted.overlay.metacopy"];
/// What a name without its layer's file becomes (OCI image specification, layer, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// What makes a directory opaque (the same section, "Opaque Whiteout").
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";

/// What a walk comes by.
#[derive(Debug)]
pub struct Step<'a> {
    /// Where it lies.
    pub path: &'a Path,
    /// Its name from the root, without a `/` before it.
    pub name: &'a [u8],
    /// What it is.
    pub meta: &'a Metadata,
    /// What it says about lower layers.
    pub mark: Mark,
}

/// What a member of an overlay's upper directory says about lower layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    None,
    /// The name is gone.
    Whiteout,
    /// All that they have in this directory is gone.
    Opaque,
}

/// Walks the upper directory of an overlay, parents first and names in order. What `skip` names is
/// left out, with all below.
pub fn walk_changes(
    upper: &Path,
    skip: &dyn Fn(&Step<'_>) -> bool,
    visit: &mut dyn FnMut(&Step<'_>) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    walk(upper, &mut |step| {
        let mut step = Step { ..*step };
        step.mark = mark(step.path, step.meta)?;
        if skip(&step) {
            return Ok(false);
        }
        visit(&step)?;
        Ok(step.meta.is_dir())
    })
}

/// Writes an overlay's upper directory as a layer.
pub fn pack_changes(
    upper: &Path,
    skip: &dyn Fn(&Step<'_>) -> bool,
    out: &mut dyn Write,
) -> Result<(), TreeError> {
    let mut writer = Writer::new(out);
    walk_changes(upper, skip, &mut |step| match step.mark {
        Mark::None => writer.member(step),
        Mark::Whiteout => writer.empty(&beside(step.name, WHITEOUT), step.meta),
        Mark::Opaque => {
            writer.member(step)?;
            let name = [step.name, b"/", OPAQUE_WHITEOUT].concat();
            writer.empty(&name, step.meta)
        }
    })?;
    writer.finish()
}

/// Writes all of a root file system. What is mounted on it comes as the empty file or directory
/// that it is mounted on.
pub fn pack_root(root: &Path, out: &mut dyn Write) -> Result<(), TreeError> {
    let mount = |path: &Path| {
        let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
        found.map(|found| found.stx_mnt_id)
    };
    let own = mount(root).map_err(|error| failed(root)(error.into()))?;
    let mut writer = Writer::new(out);
    walk(root, &mut |step| match mount(step.path) {
        Ok(id) if id == own => {
            writer.member(step)?;
            Ok(step.meta.is_dir())
        }
        Ok(_) if step.meta.is_dir() => writer.member(step).map(|()| false),
        Ok(_) => writer.empty(step.name, step.meta).map(|()| false),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(failed(step.path)(error.into())),
    })?;
    writer.finish()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    TreeError::io(path.as_os_str().as_bytes())
}

/// Goes through all below `root`; `visit` says whether to go into a directory.
fn walk(
    root: &Path,
    visit: &mut dyn FnMut(&Step<'_>) -> Result<bool, TreeError>,
) -> Result<(), TreeError> {
    let mut open: Vec<(PathBuf, Vec<u8>)> = vec![(root.to_owned(), Vec::new())];
    while let Some((path, name)) = open.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // Gone since its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !name.is_empty() => continue,
            Err(error) => return Err(failed(&path)(error)),
        };
        let step = Step {
            path: &path,
            name: &name,
            meta: &meta,
            mark: Mark::None,
        };
        if !name.is_empty() && !visit(&step)? {
            continue;
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !name.is_empty() => continue,
            Err(error) => return Err(failed(&path)(error)),
        };
        let mut below = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed(&path))?;
            let mut name = name.clone();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(entry.file_name().as_bytes());
            below.push((entry.path(), name));
        }
        // The last is taken first.
        below.sort_by(|left, right| right.1.cmp(&left.1));
        open.append(&mut below);
    }
    Ok(())
}

fn mark(path: &Path, meta: &Metadata) -> Result<Mark, TreeError> {
    let kind = FileType::from_raw_mode(meta.mode());
    if kind == FileType::CharacterDevice && meta.rdev() == 0 {
        return Ok(Mark::Whiteout);
    }
    let has = |name: &str| lgetxattr_query(path, name).is_ok_and(|length| length > 0);
    if let Some(name) = ELSEWHERE.iter().find(|name| has(name)) {
        let reason = format!("overlayfs has its content elsewhere ({name}); no layer can say that");
        return Err(failed(path)(io::Error::other(reason)));
    }
    let mut value = [0_u8; 2];
    let opaque = meta.is_dir()
        && lgetxattr(path, OPAQUE, value.as_mut_slice()).is_ok_and(|count| value[..count] == *b"y");
    Ok(if opaque { Mark::Opaque } else { Mark::None })
}

/// A name's last part with something before it.
fn beside(name: &[u8], prefix: &[u8]) -> Vec<u8> {
    let at = name.iter().rposition(|&byte| byte == b'/');
    let (above, last) = name.split_at(at.map_or(0, |at| at + 1));
    [above, prefix, last].concat()
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    /// Files with several names, by device and number: the first of their names.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        let linked = HashMap::new();
        Self { out, linked }
    }

    fn member(&mut self, step: &Step<'_>) -> Result<(), TreeError> {
        let (path, name, meta) = (step.path, step.name, step.meta);
        let kind = FileType::from_raw_mode(meta.mode());
        let device = || (major(meta.rdev()), minor(meta.rdev()));
        let mut link = Vec::new();
        let kind = match kind {
            FileType::RegularFile => Type::File,
            FileType::Directory => Type::Directory,
            FileType::Symlink => {
                let target = fs::read_link(path).map_err(failed(path))?;
                link = target.into_os_string().into_encoded_bytes();
                Type::Link
            }
            FileType::CharacterDevice => Type::Character(device().0, device().1),
            FileType::BlockDevice => Type::Block(device().0, device().1),
            FileType::Fifo => Type::Fifo,
            // A socket without the process that listens is nothing.
            _ => return Ok(()),
        };
        let several = kind != Type::Directory && meta.nlink() > 1;
        let key = (meta.dev(), meta.ino());
        if several && let Some(first) = self.linked.get(&key) {
            let again = pack::member(Type::HardLink, name, first, meta, true);
            return Ok(self.out.write_all(&header(&again))?);
        }
        let before = match attributes(path)? {
            none if none.is_empty() => Vec::new(),
            some => extended(&some),
        };
        let written = if kind == Type::File {
            pack::file(path, name, true, &before, &mut self.out)?
        } else {
            let member = pack::member(kind, name, &link, meta, true);
            self.out.write_all(&before)?;
            self.out.write_all(&header(&member))?;
            true
        };
        if several && written {
            self.linked.insert(key, name.to_vec());
        }
        Ok(())
    }

    /// A file of no bytes.
    fn empty(&mut self, name: &[u8], meta: &Metadata) -> Result<(), TreeError> {
        let member = Member {
            size: 0,
            mode: 0o644,
            ..pack::member(Type::File, name, b"", meta, true)
        };
        Ok(self.out.write_all(&header(&member))?)
    }

    fn finish(self) -> Result<(), TreeError> {
        self.out.write_all(&END)?;
        Ok(self.out.flush()?)
    }
}

/// Extended attributes as records, but for those of overlayfs and those that only the host's own
/// rules give.
fn attributes(path: &Path) -> Result<Vec<Record>, TreeError> {
    let list = || {
        let mut names = vec![0; llistxattr_query(path)?];
        let length = llistxattr(path, names.as_mut_slice())?;
        names.truncate(length);
        Ok::<_, Errno>(names)
    };
    let names = match list() {
        Ok(names) => names,
        Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(failed(path)(error.into())),
    };
    let mut records = Vec::new();
    for name in names.split(|&byte| byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY) || name == b"security.selinux" {
            continue;
        }
        let read = || {
            let mut value = vec![0; lgetxattr_query(path, name)?];
            let length = lgetxattr(path, name, value.as_mut_slice())?;
            value.truncate(length);
            Ok::<_, Errno>(value)
        };
        match read() {
            Ok(value) => records.push(([b"SCHILY.xattr.", name].concat(), value)),
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(error) => return Err(failed(path)(error.into())),
        }
    }
    Ok(records)
}
