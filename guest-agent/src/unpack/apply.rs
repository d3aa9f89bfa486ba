//! Members of a layer, made on disk.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use vdkr_transfer::layer::archive::{Archive, Kind, Member};
use vdkr_transfer::layer::name::{LayerPath, Meaning, NameError, meaning};
use vdkr_transfer::layer::pax::Time;
use vdkr_transfer::layer::{Namespace, Sink};

use super::overlay::{is_whiteout, make_whiteout};
use super::remove::remove_tree;
use super::root::Root;
use super::{Devices, Options, Refusal, UnpackError, Unpacked};

/// Bytes of directory names kept until their times can be set, all together.
const MAX_DEFERRED: usize = 64 << 20;

/// Makes members beneath a root.
pub(super) struct Writer<'a> {
    root: &'a Root,
    options: &'a Options,
    /// The directory that the last member went to: archives list a directory's members together.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories whose times (and, for an ordinary user, modes) are set when nothing more is
    /// written into them.
    deferred: Vec<Deferred>,
    deferred_bytes: usize,
    total: u64,
    limit: u64,
    /// Directories that were made in the root without being named before this layer.
    implied_before: u64,
    counts: Unpacked,
}

struct Deferred {
    path: LayerPath,
    mtime: Time,
    mode: Option<Mode>,
}

impl<'a> Writer<'a> {
    /// Writes beneath `root`, `limit` bytes of files at most.
    pub(super) fn new(root: &'a Root, options: &'a Options, limit: u64) -> Self {
        Self {
            root,
            options,
            parent: None,
            deferred: Vec::new(),
            deferred_bytes: 0,
            total: 0,
            limit,
            implied_before: root.implied(),
            counts: Unpacked::default(),
        }
    }

    /// Sets what had to wait, and says what was done.
    pub(super) fn finish(mut self) -> Result<Unpacked, UnpackError> {
        // Deepest first: a directory may lose the mode that lets its user reach what is in it. Of
        // two records of one directory the later stands (the sort is stable).
        self.deferred
            .sort_by_key(|late| std::cmp::Reverse(late.path.depth()));
        for late in &self.deferred {
            let set = |parent: BorrowedFd<'_>, name: &[u8]| {
                let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Err(Errno::NOTDIR);
                }
                fs::utimensat(parent, name, &times(late.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
                late.mode.map_or(Ok(()), |mode| chmod(parent, name, mode))
            };
            let done = match late.path.split() {
                None => fs::futimens(self.root.fd(), &times(late.mtime)).and_then(|()| {
                    late.mode
                        .map_or(Ok(()), |mode| fs::fchmod(self.root.fd(), mode))
                }),
                Some((parent, name)) => self
                    .root
                    .directory(parent)
                    .and_then(|parent| set(parent.as_fd(), name)),
            };
            match done {
                // Replaced by something else since.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(UnpackError::write(late.path.as_bytes(), error)),
            }
        }
        Ok(self.counts)
    }

    fn make<R: BufRead>(
        &mut self,
        path: LayerPath,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let failed = |error: Errno| UnpackError::write(&member.name, error);
        let Some((parent_path, name)) = path.split() else {
            return Ok(());
        };
        let parent = self.parent(parent_path).map_err(failed)?;
        let at = parent.as_fd();
        match &member.kind {
            Kind::Directory => {
                let directory = self.directory(at, name).map_err(failed)?;
                self.directory_metadata(&directory, path, member)?;
            }
            Kind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let open = || fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR);
                let file = self.replacing(at, name, open).map_err(failed)?;
                self.fill(File::from(file), member, archive)?;
            }
            Kind::Symlink(target) => {
                if target.contains(&0) {
                    return Err(UnpackError::refused(
                        &member.name,
                        Refusal::Name(NameError::Nul),
                    ));
                }
                let link = || fs::symlinkat(target.as_slice(), at, name);
                self.replacing(at, name, link).map_err(failed)?;
                self.node_metadata(at, name, member, false)?;
            }
            Kind::HardLink(target) => self.hard_link(at, name, member, target)?,
            Kind::Fifo => {
                let mkfifo = || fs::mkfifoat(at, name, Mode::RUSR | Mode::WUSR);
                self.replacing(at, name, mkfifo).map_err(failed)?;
                self.node_metadata(at, name, member, true)?;
            }
            Kind::Character(major, minor) | Kind::Block(major, minor) => {
                let whiteout = matches!(member.kind, Kind::Character(0, 0));
                if self.options.devices == Devices::Skip && !whiteout {
                    self.counts.skipped_devices += 1;
                    return self
                        .replacing(at, name, || absent(at, name))
                        .map_err(failed);
                }
                let kind = match member.kind {
                    Kind::Block(..) => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                let device = fs::makedev(*major, *minor);
                let mknod = || fs::mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, device);
                self.replacing(at, name, mknod).map_err(failed)?;
                self.node_metadata(at, name, member, true)?;
            }
        }
        Ok(())
    }

    /// The directory at `path`, made if it is not there.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if let Some((known, fd)) = &self.parent
            && known == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(self.root.directory_or_make(path, self.options.marks)?);
        self.parent = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Runs `make`; if something of that name is there, removes it and runs `make` again.
    fn replacing<T>(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                // What a known path leads to may change by this.
                self.parent = None;
                remove_tree(at, name)?;
                make()
            }
            other => other,
        }
    }

    /// Makes or keeps the directory `name` in `at` and opens it.
    fn directory(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        let mut opaque = false;
        if let Err(error) = fs::mkdirat(at, name, Mode::RWXU) {
            if error != Errno::EXIST {
                return Err(error);
            }
            let stat = fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                // A whiteout hides what lower layers have here; the directory must go on hiding it.
                opaque = is_whiteout(&stat);
                self.parent = None;
                remove_tree(at, name)?;
                fs::mkdirat(at, name, Mode::RWXU)?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::openat(at, name, flags, Mode::empty())?;
        if opaque {
            self.options.marks.set_opaque(&directory)?;
        }
        Ok(directory)
    }

    fn fill<R: BufRead>(
        &mut self,
        mut file: File,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let failed = |error: io::Error| UnpackError::write(&member.name, io_errno(&error));
        if let Some(map) = &member.sparse {
            for segment in &map.segments {
                let mut offset = segment.offset;
                archive.data(segment.length, |piece| {
                    file.write_all_at(piece, offset).map_err(failed)?;
                    offset += piece.len() as u64;
                    Ok::<_, UnpackError>(())
                })?;
            }
            file.set_len(map.size).map_err(failed)?;
        } else {
            archive.data(member.stored, |piece| file.write_all(piece).map_err(failed))?;
        }
        self.counts.bytes += member.stored;
        self.owner_mode_xattrs(file.as_fd(), member, Mode::from_raw_mode(member.mode))?;
        fs::futimens(&file, &times(member.mtime)).map_err(|e| UnpackError::write(&member.name, e))
    }

    fn directory_metadata(
        &mut self,
        directory: &OwnedFd,
        path: LayerPath,
        member: &Member,
    ) -> Result<(), UnpackError> {
        let wanted = Mode::from_raw_mode(member.mode);
        // An ordinary user needs the rights of the owner until all is written.
        let now = if self.options.keep_owners {
            wanted
        } else {
            wanted | Mode::RWXU
        };
        self.owner_mode_xattrs(directory.as_fd(), member, now)?;
        self.deferred_bytes += path.as_bytes().len() + size_of::<Deferred>();
        if self.deferred_bytes > MAX_DEFERRED {
            return Err(UnpackError::TooManyEntries {
                limit: self.options.limits.entries,
            });
        }
        let mode = (now != wanted).then_some(wanted);
        self.deferred.push(Deferred {
            path,
            mtime: member.mtime,
            mode,
        });
        Ok(())
    }

    /// Owner first: a change of it takes away set-user-id bits and file capabilities.
    fn owner_mode_xattrs(
        &mut self,
        file: BorrowedFd<'_>,
        member: &Member,
        mode: Mode,
    ) -> Result<(), UnpackError> {
        let failed = |error: Errno| UnpackError::write(&member.name, error);
        if self.options.keep_owners {
            let (uid, gid) = owner(member);
            fs::fchown(file, Some(uid), Some(gid)).map_err(failed)?;
        }
        fs::fchmod(file, mode).map_err(failed)?;
        self.xattrs(member, |name, value| {
            fs::fsetxattr(file, name, value, fs::XattrFlags::empty())
        })
    }

    /// Owner, mode, attributes and time of what has just been made as `name` and is not opened:
    /// devices and pipes (`has_mode`), and symbolic links, which have no mode of their own.
    fn node_metadata(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        member: &Member,
        has_mode: bool,
    ) -> Result<(), UnpackError> {
        let failed = |error: Errno| UnpackError::write(&member.name, error);
        if self.options.keep_owners {
            let (uid, gid) = owner(member);
            fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed)?;
        }
        if has_mode {
            chmod(at, name, Mode::from_raw_mode(member.mode)).map_err(failed)?;
        }
        // The last component is not followed; the first ones are the kernel's own way to `at`.
        let path = [
            format!("/proc/self/fd/{}/", at.as_raw_fd()).as_bytes(),
            name,
        ]
        .concat();
        self.xattrs(member, |attribute, value| {
            fs::lsetxattr(path.as_slice(), attribute, value, fs::XattrFlags::empty())
        })?;
        fs::utimensat(at, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    fn xattrs(
        &mut self,
        member: &Member,
        set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
    ) -> Result<(), UnpackError> {
        for (name, value) in &member.xattrs {
            match Namespace::of(name) {
                Namespace::OverlayMark => {
                    return Err(UnpackError::refused(&member.name, Refusal::OverlayMark));
                }
                Namespace::Kept if self.options.keep_owners || name.starts_with(b"user.") => {}
                _ => {
                    self.counts.skipped_xattrs += 1;
                    continue;
                }
            }
            match set(name, value) {
                Ok(()) => {}
                // The file system does not have them, or not on this kind of file.
                Err(Errno::OPNOTSUPP | Errno::PERM) => self.counts.skipped_xattrs += 1,
                Err(error) => return Err(UnpackError::write(&member.name, error)),
            }
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        member: &Member,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let refuse = |refusal| UnpackError::refused(&member.name, refusal);
        let failed = |error: Errno| match error {
            Errno::NOENT | Errno::NOTDIR => refuse(Refusal::LinkTarget),
            error => UnpackError::write(&member.name, error),
        };
        let target = LayerPath::parse(target).map_err(|error| refuse(Refusal::Link(error)))?;
        let (directory, target_name) = target.split().ok_or_else(|| refuse(Refusal::LinkTarget))?;
        let directory = self.root.directory(directory).map_err(failed)?;
        let stat =
            |at, name| -> Result<_, Errno> { fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) };
        let linked = stat(directory.as_fd(), target_name).map_err(failed)?;
        if FileType::from_raw_mode(linked.st_mode) == FileType::Directory || is_whiteout(&linked) {
            return Err(refuse(Refusal::LinkTarget));
        }
        if let Ok(there) = stat(at, name)
            && (there.st_dev, there.st_ino) == (linked.st_dev, linked.st_ino)
        {
            return Ok(());
        }
        // Without AT_SYMLINK_FOLLOW a link's own name is linked, never what it points to.
        let link = || fs::linkat(&directory, target_name, at, name, AtFlags::empty());
        self.replacing(at, name, link).map_err(failed)
    }

    fn whiteout(&mut self, path: &LayerPath) -> Result<(), Errno> {
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        let parent = self.parent(parent)?;
        match make_whiteout(parent.as_fd(), name) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
        // A whiteout concerns lower layers only. What this layer has made itself stays, and hides
        // the lower one already, unless both are directories.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(&parent, name, flags, Mode::empty()) {
            Ok(directory) => self.options.marks.set_opaque(directory),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn opaque(&mut self, path: &LayerPath) -> Result<(), Errno> {
        let found = self
            .root
            .directory_or_make(path.as_bytes(), self.options.marks)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::openat(&found, ".", flags, Mode::empty())?;
        self.options.marks.set_opaque(directory)
    }
}

impl Sink for Writer<'_> {
    fn member<R: BufRead>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        self.counts.entries += 1;
        let implied = self.root.implied() - self.implied_before;
        if self.counts.entries + implied > self.options.limits.entries {
            return Err(UnpackError::TooManyEntries {
                limit: self.options.limits.entries,
            });
        }
        self.total = self.total.saturating_add(member.size());
        if self.total > self.limit {
            return Err(UnpackError::TooLarge { limit: self.limit });
        }
        let refuse = |refusal| UnpackError::refused(&member.name, refusal);
        let name = |error: NameError| refuse(Refusal::Name(error));
        let path = LayerPath::parse(&member.name).map_err(name)?;
        let failed = |error: Errno| UnpackError::write(&member.name, error);
        match meaning(path).map_err(name)? {
            Meaning::Ignored => {}
            Meaning::Whiteout(path) => self.whiteout(&path).map_err(failed)?,
            Meaning::Opaque(path) if path.is_root() => self.counts.opaque_root = true,
            Meaning::Opaque(path) => self.opaque(&path).map_err(failed)?,
            Meaning::Member(path) if path.is_root() => {
                if member.kind != Kind::Directory {
                    return Err(refuse(Refusal::Root));
                }
                let root = self
                    .root
                    .fd()
                    .try_clone_to_owned()
                    .map_err(|error| io_errno(&error))
                    .map_err(failed)?;
                self.directory_metadata(&root, path, member)?;
            }
            Meaning::Member(path) => self.make(path, member, archive)?,
        }
        Ok(())
    }
}

/// Succeeds if there is no such name.
fn absent(at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets the mode of what is not a link, without following one that may stand there meanwhile.
fn chmod(at: BorrowedFd<'_>, name: &[u8], mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = fs::openat(at, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(fs::fstat(&node)?.st_mode) == FileType::Symlink {
        return Ok(());
    }
    fs::chmodat(
        fs::CWD,
        format!("/proc/self/fd/{}", node.as_raw_fd()),
        mode,
        AtFlags::empty(),
    )
}

fn owner(member: &Member) -> (Uid, Gid) {
    (Uid::from_raw(member.uid), Gid::from_raw(member.gid))
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.seconds,
        tv_nsec: mtime.nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn io_errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
