//! From a stream to files.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown,
        futimens, openat,
    },
    io::Errno,
};

use super::{
    TreeError,
    read::{Member, Reader},
};

/// How deep directories may nest.
const MAX_DEPTH: usize = 512;
/// Longest name, in bytes.
const MAX_NAME: usize = 32 * 1024;
/// Bytes of directory names that are kept until their modes and times can be set.
const MAX_DEFERRED: usize = 64 << 20;

/// What a stream may do.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Files get the owners and set-id bits that the stream names. Needs root.
    pub owners: bool,
    /// Links to directories on the way are followed: only where the root of this process is all
    /// that they can reach.
    pub follow: bool,
}

/// Makes the members of a stream beneath `root`. `rename` gives each name its place, or `None` for
/// one that is not wanted; a hard link to such a name is refused.
pub fn unpack(
    stream: impl Read,
    root: BorrowedFd<'_>,
    policy: Policy,
    rename: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<(), TreeError> {
    let mut reader = Reader::new(stream);
    let mut writer = Writer {
        root,
        policy,
        parent: None,
        deferred: Vec::new(),
        deferred_bytes: 0,
    };
    while let Some(member) = reader.next_member()? {
        let Some(name) = rename(&member.name) else {
            continue;
        };
        let path = components(&name)?;
        let target = match member.kind {
            b'1' => rename(&member.link),
            _ => None,
        };
        writer.member(&member, &path, target.as_deref(), &mut reader)?;
    }
    writer.finish()
}

/// The parts of a name; one that leads outside is refused.
fn components(name: &[u8]) -> Result<Vec<&[u8]>, TreeError> {
    let refuse = |reason| TreeError::Refused {
        name: String::from_utf8_lossy(name).chars().take(200).collect(),
        reason,
    };
    if name.len() > MAX_NAME {
        return Err(refuse("its name is too long"));
    }
    if name.contains(&0) {
        return Err(refuse("its name holds a NUL byte"));
    }
    let parts: Vec<&[u8]> = name
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    if parts.contains(&&b".."[..]) {
        return Err(refuse("its name leads upwards"));
    }
    if parts.len() > MAX_DEPTH {
        return Err(refuse("it lies too deep"));
    }
    Ok(parts)
}

struct Writer<'a> {
    root: BorrowedFd<'a>,
    policy: Policy,
    /// The directory of the last member.
    parent: Option<(Vec<u8>, OwnedFd)>,
    deferred: Vec<(OwnedParts, Member)>,
    deferred_bytes: usize,
}

type OwnedParts = Vec<Vec<u8>>;

impl Writer<'_> {
    fn member<R: Read>(
        &mut self,
        member: &Member,
        path: &[&[u8]],
        target: Option<&[u8]>,
        reader: &mut Reader<R>,
    ) -> Result<(), TreeError> {
        let refuse = |reason| TreeError::Refused {
            name: String::from_utf8_lossy(&member.name)
                .chars()
                .take(200)
                .collect(),
            reason,
        };
        let failed = |errno: Errno| TreeError::io(&member.name)(errno.into());
        let Some((&name, above)) = path.split_last() else {
            // The target itself stays as it is.
            return match member.kind {
                b'5' => Ok(()),
                _ => Err(refuse("it has no name")),
            };
        };
        let parent = self.parent(above).map_err(failed)?;
        let there = match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        if member.kind == b'5' {
            match there {
                Some(FileType::Directory) => {}
                // As on the way: where links may be followed, one to a directory is one.
                Some(FileType::Symlink) if self.policy.follow => {}
                Some(_) => return Err(refuse("something else than a directory is there")),
                None => fs::mkdirat(&parent, name, Mode::RWXU).map_err(failed)?,
            }
            if there != Some(FileType::Symlink) {
                self.defer(path, member)?;
            }
            return Ok(());
        }
        match there {
            Some(FileType::Directory) => return Err(refuse("a directory is there")),
            Some(_) => fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?,
            None => {}
        }
        match member.kind {
            b'0' => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let file: File = openat(&parent, name, flags, mode).map_err(failed)?.into();
                fill(&file, member, reader)?;
                self.finish_file(file.as_fd(), member).map_err(failed)
            }
            b'2' => {
                fs::symlinkat(&member.link[..], &parent, name).map_err(failed)?;
                if self.policy.owners {
                    let (uid, gid) = owners(member);
                    fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed)?;
                }
                Ok(())
            }
            b'1' => {
                let Some(target) = target else {
                    return Err(refuse("it is a link to a file that is not part of it"));
                };
                let target = components(target)?;
                let Some((&old, above)) = target.split_last() else {
                    return Err(refuse("it is a link to nothing"));
                };
                let from = self.open(above, false).map_err(failed)?;
                let parent = self.parent(path.split_last().map_or(&[], |(_, above)| above));
                let parent = parent.map_err(failed)?;
                fs::linkat(&from, old, &parent, name, AtFlags::empty()).map_err(failed)
            }
            b'3' | b'4' | b'6' => Err(refuse("it is a device or a queue")),
            _ => Err(refuse("it is of an unknown kind")),
        }
    }

    /// Sets modes and times of directories, the deepest first: one may lose the mode that lets its
    /// owner into it.
    fn finish(mut self) -> Result<(), TreeError> {
        let mut deferred = std::mem::take(&mut self.deferred);
        deferred.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        for (path, member) in deferred {
            let path: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
            match self.open(&path, false) {
                Ok(directory) => self
                    .finish_file(directory.as_fd(), &member)
                    .map_err(|errno| TreeError::io(&member.name)(errno.into()))?,
                // Replaced by something else since.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(TreeError::io(&member.name)(error.into())),
            }
        }
        Ok(())
    }

    fn defer(&mut self, path: &[&[u8]], member: &Member) -> Result<(), TreeError> {
        let path: OwnedParts = path.iter().map(|part| part.to_vec()).collect();
        let bytes: usize = path.iter().map(|part| part.len() + 24).sum();
        self.deferred_bytes += bytes + member.name.len() + member.link.len() + 128;
        if self.deferred_bytes > MAX_DEFERRED {
            return Err(TreeError::Damaged("it has too many directories".to_owned()));
        }
        self.deferred.push((path, member.clone()));
        Ok(())
    }

    fn finish_file(&self, file: BorrowedFd<'_>, member: &Member) -> Result<(), Errno> {
        let mut mode = member.mode & 0o777;
        if self.policy.owners {
            let (uid, gid) = owners(member);
            fchown(file, uid, gid)?;
            mode = member.mode & 0o7777;
        }
        fchmod(file, Mode::from_raw_mode(mode))?;
        let time = Timespec {
            tv_sec: member.mtime,
            tv_nsec: 0,
        };
        futimens(
            file,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
        )
    }

    /// The directory of a member, made when missing.
    fn parent(&mut self, path: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let key = path.join(&b'/');
        if let Some((known, directory)) = &self.parent
            && *known == key
        {
            return directory.try_clone().map_err(|_| Errno::MFILE);
        }
        let directory = self.open(path, true)?;
        let kept = directory.try_clone().map_err(|_| Errno::MFILE)?;
        self.parent = Some((key, kept));
        Ok(directory)
    }

    fn open(&self, path: &[&[u8]], make: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if !self.policy.follow {
            flags |= OFlags::NOFOLLOW;
        }
        let own = self.root.try_clone_to_owned();
        let mut directory = own.map_err(|_| Errno::MFILE)?;
        for &part in path {
            let opened = openat(&directory, part, flags, Mode::empty());
            directory = match opened {
                Err(Errno::NOENT) if make => {
                    fs::mkdirat(&directory, part, Mode::from_raw_mode(0o755))?;
                    openat(&directory, part, flags, Mode::empty())?
                }
                other => other?,
            };
        }
        Ok(directory)
    }
}

fn owners(member: &Member) -> (Option<Uid>, Option<Gid>) {
    // The highest number means no change to the kernel.
    let uid = Some(member.uid).filter(|uid| *uid != u32::MAX);
    let gid = Some(member.gid).filter(|gid| *gid != u32::MAX);
    (uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

fn fill<R: Read>(file: &File, member: &Member, reader: &mut Reader<R>) -> Result<(), TreeError> {
    let failed = |error: io::Error| TreeError::io(&member.name)(error);
    let mut buffer = vec![0; 64 * 1024];
    let mut file = file;
    loop {
        let length = reader.data(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        file.write_all(buffer.get(..length).unwrap_or_default())
            .map_err(failed)?;
    }
}
