//! What an image has in a volume's place comes into the volume when that is new, as with docker.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fchmod, fgetxattr, flistxattr, fremovexattr, fsetxattr, mkdirat, mknodat, openat,
        readlinkat, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Longest list of attributes and longest value.
const MAX_XATTR: usize = 64 * 1024;
/// Bytes copied in one go.
const PIECE: usize = 64 * 1024;
/// On a volume whose copy has begun and not ended; containers cannot see it.
const UNFINISHED: &str = "trusted.vdkr.unfinished";
/// Directories within directories; each is held open.
const MAX_DEPTH: usize = 500;

/// Copies the directory `from` to an empty volume, with owners, permissions, times and attributes;
/// not what is mounted below it. A volume that has anything stays as it is, unless that is the
/// beginning of a copy that did not come to its end.
pub(super) fn copy_up(from: &OwnedFd, volume: &OwnedFd) -> io::Result<()> {
    let to = openat(volume, ".", DIRECTORY, Mode::empty())?;
    let begun = is_marked(&to)?;
    if !begun && !entries(&to)?.is_empty() {
        return Ok(());
    }
    if begun {
        clear(&to, 0)?;
    }
    let marked = mark(&to)?;
    let from = openat(from, ".", DIRECTORY, Mode::empty())?;
    let stat = statat(&from, "", AtFlags::EMPTY_PATH)?;
    copy_directory(&from, &to, stat.st_dev, 0)?;
    finish(&from, &to, &stat)?;
    if marked {
        fremovexattr(&to, UNFINISHED)?;
    }
    Ok(())
}

/// Whether a copy to this directory has begun and not ended.
fn is_marked(directory: &OwnedFd) -> io::Result<bool> {
    match fgetxattr(directory, UNFINISHED, &mut [0_u8; 0][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Marks a directory as one with a part of a copy. `false` when its file system has no room for
/// such a word.
fn mark(directory: &OwnedFd) -> io::Result<bool> {
    match fsetxattr(directory, UNFINISHED, b"", XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Empties a directory.
fn clear(directory: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the volume's directories are too deep"));
    }
    for name in entries(directory)? {
        let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            clear(
                &openat(directory, &name, DIRECTORY, Mode::empty())?,
                depth + 1,
            )?;
            unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
        } else {
            unlinkat(directory, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, device: u64, depth: usize) -> io::Result<()> {
    if depth >= MAX_DEPTH {
        return Err(io::Error::other("the image's directories are too deep"));
    }
    for name in entries(from)? {
        copy_entry(from, to, &name, device, depth)
            .map_err(|error| io::Error::new(error.kind(), format!("{name:?}: {error}")))?;
    }
    Ok(())
}

fn copy_entry(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &CStr,
    device: u64,
    depth: usize,
) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        // The kernel's files, or another volume. Files of an overlay may be of other devices.
        FileType::Directory if stat.st_dev != device => Ok(mkdirat(to, name, Mode::RWXU)?),
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let (from, to) = (
                openat(from, name, DIRECTORY, Mode::empty())?,
                openat(to, name, DIRECTORY, Mode::empty())?,
            );
            copy_directory(&from, &to, device, depth + 1)?;
            finish(&from, &to, &stat)
        }
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let from = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
            let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let to = openat(to, name, new, Mode::RUSR | Mode::WUSR)?;
            copy_content(&from, &to)?;
            finish(&from, &to, &stat)
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            symlinkat(&target, to, name)?;
            chownat(
                to,
                name,
                Some(Uid::from_raw(stat.st_uid)),
                Some(Gid::from_raw(stat.st_gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            Ok(utimensat(to, name, &times(&stat), flags)?)
        }
        FileType::Fifo => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            Ok(mknodat(to, name, FileType::Fifo, mode, 0)?)
        }
        // Sockets have nobody behind them; devices are the container's business.
        _ => Ok(()),
    }
}

fn copy_content(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = match rustix::io::read(from, &mut piece[..]) {
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => continue,
            read => read?,
        };
        let mut rest = piece.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let written = rustix::io::write(to, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

/// Owner first: changing it takes set-user-ID bits away.
fn finish(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_attributes(from, to)?;
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

/// Attributes that belong to the overlay are not the file's.
fn copy_attributes(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    let mut list = vec![0; MAX_XATTR];
    let length = match flistxattr(from, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed?,
    };
    let names = list.get(..length).unwrap_or_default();
    let mut value = vec![0; MAX_XATTR];
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"trusted.") {
            continue;
        }
        let length = fgetxattr(from, name, &mut value[..])?;
        let value = value.get(..length).unwrap_or_default();
        match fsetxattr(to, name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.cast_signed(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    use super::*;

    #[test]
    fn a_new_volume_gets_what_the_image_has_and_an_old_one_does_not() {
        let place = tempfile::tempdir().unwrap();
        let (image, volume) = (place.path().join("image"), place.path().join("volume"));
        fs::create_dir_all(image.join("deep/er")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(image.join(".hidden"), "dot").unwrap();
        fs::write(image.join("deep/er/file"), vec![7; 200_000]).unwrap();
        fs::set_permissions(image.join("deep"), fs::Permissions::from_mode(0o1750)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/etc/passwd", image.join("out")).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let file = fs::File::options()
            .write(true)
            .open(image.join(".hidden"))
            .unwrap();
        file.set_modified(old).unwrap();

        let to: OwnedFd = fs::File::open(&volume).unwrap().into();
        let from: OwnedFd = fs::File::open(&image).unwrap().into();
        copy_up(&from, &to).unwrap();
        assert!(!is_marked(&to).unwrap());
        assert_eq!(fs::read(volume.join(".hidden")).unwrap(), b"dot");
        assert_eq!(
            fs::read(volume.join("deep/er/file")).unwrap(),
            vec![7; 200_000]
        );
        assert_eq!(
            fs::read_link(volume.join("out")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(
            fs::metadata(volume.join("deep")).unwrap().mode() & 0o7777,
            0o1750
        );
        assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(
            fs::metadata(volume.join(".hidden"))
                .unwrap()
                .modified()
                .unwrap(),
            old
        );

        fs::remove_file(volume.join(".hidden")).unwrap();
        copy_up(&from, &to).unwrap();
        assert!(!volume.join(".hidden").exists());
    }

    #[test]
    fn a_copy_that_was_cut_off_is_made_again() {
        let place = tempfile::tempdir().unwrap();
        let (image, volume) = (place.path().join("image"), place.path().join("volume"));
        fs::create_dir_all(image.join("data")).unwrap();
        fs::write(image.join("data/base"), "whole").unwrap();
        fs::create_dir_all(volume.join("data/half")).unwrap();
        fs::write(volume.join("data/half/base"), "who").unwrap();
        symlink("/etc", volume.join("link")).unwrap();
        let to: OwnedFd = fs::File::open(&volume).unwrap().into();
        let from: OwnedFd = fs::File::open(&image).unwrap().into();
        if !mark(&to).unwrap() {
            // Not root, or not on this file system: nothing is ever marked then.
            assert!(!is_marked(&to).unwrap());
            return;
        }
        copy_up(&from, &to).unwrap();
        assert!(!is_marked(&to).unwrap());
        let names: Vec<_> = entries(&to).unwrap();
        assert_eq!(names, [c"data".to_owned()]);
        assert_eq!(fs::read(volume.join("data/base")).unwrap(), b"whole");
        assert!(!volume.join("data/half").exists());
    }

    #[test]
    fn a_tree_without_end_is_given_up() {
        let place = tempfile::tempdir().unwrap();
        let image = place.path().join("image");
        let mut deep = image.clone();
        for _ in 0..=MAX_DEPTH {
            deep.push("d");
        }
        fs::create_dir_all(deep).unwrap();
        let volume = place.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let to: OwnedFd = fs::File::open(&volume).unwrap().into();
        let from: OwnedFd = fs::File::open(&image).unwrap().into();
        let error = copy_up(&from, &to).unwrap_err();
        assert!(error.to_string().contains("too deep"), "{error}");
    }
}
