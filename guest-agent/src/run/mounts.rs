//! Mounts inside the new root. All of this runs after the change of root, so no link of the image
//! leads out of the container.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{RunError, point, spec::Mount};

/// Flags that stay when a mount point of `/proc` or `/sys` is made read-only.
const STRICT: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Splits mount options into flags and the data for the file system.
pub fn parse_options<'a>(options: impl IntoIterator<Item = &'a str>) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option {
            "rw" | "defaults" | "exec" | "suid" | "dev" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// Mounts `entries` in order, making mount points that are missing.
///
/// A mount point that is a link is refused: an image could otherwise move `/proc` to where the
/// masks of [`mask`] miss it. Those that the request names may be links. A cgroup hierarchy that
/// the kernel does not have is left out.
pub fn mount_all(entries: &[Mount]) -> Result<(), RunError> {
    for entry in entries {
        let target = entry.target.as_str();
        let no_point = || RunError::io(format!("make mount point {target}"));
        let point = if entry.asked {
            Some(point::open(Path::new(target), true).map_err(no_point())?)
        } else {
            make_dir(target).map_err(no_point())?;
            None
        };
        let place = point.as_ref().map_or_else(|| target.into(), point::path);
        let (flags, data) = parse_options(entry.options.iter().map(String::as_str));
        let source = entry.kind.as_str();
        let mounted = mount(
            Some(source),
            &place,
            Some(source),
            flags,
            Some(data.as_str()),
        );
        match mounted {
            Err(Errno::ENODEV | Errno::EPERM | Errno::EBUSY) if source == "cgroup2" => {}
            Err(Errno::ENODEV) if source == "mqueue" => {}
            other => other
                .map_err(io::Error::from)
                .map_err(RunError::io(format!("mount {source} on {target}")))?,
        }
    }
    Ok(())
}

fn make_dir(target: &str) -> io::Result<()> {
    match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::other(
            "the image has something else than a directory there",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(target),
        Err(error) => Err(error),
    }
}

/// Hides paths: a file behind `/dev/null`, a directory behind an empty one. Missing ones are fine.
pub fn mask(paths: &[String]) -> Result<(), RunError> {
    for path in paths {
        let Ok(meta) = fs::metadata(path) else {
            continue;
        };
        let hidden = if meta.is_dir() {
            mount(
                Some("tmpfs"),
                path.as_str(),
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                Some("size=0"),
            )
        } else {
            bind("/dev/null", path)
        };
        hidden
            .map_err(io::Error::from)
            .map_err(RunError::io(format!("mask {path}")))?;
    }
    Ok(())
}

/// Makes paths read-only. Missing ones are fine.
pub fn make_readonly(paths: &[String]) -> Result<(), RunError> {
    for path in paths {
        match bind(path, path).and_then(|()| remount_readonly(path, STRICT)) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => {
                let step = format!("make {path} read-only");
                return Err(RunError::Io {
                    step,
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}

/// Makes the root read-only.
pub fn make_root_readonly() -> Result<(), RunError> {
    remount_readonly("/", MsFlags::empty())
        .map_err(io::Error::from)
        .map_err(RunError::io("make the root read-only"))
}

/// Binds a file or directory over another.
pub fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<(), Errno> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(
        Some(source.as_ref()),
        target.as_ref(),
        None::<&str>,
        flags,
        None::<&str>,
    )
}

/// Makes one mount read-only; flags that are not `kept` are lost.
pub(super) fn remount_readonly(path: impl AsRef<Path>, kept: MsFlags) -> Result<(), Errno> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept;
    let path = path.as_ref();
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_into_flags_and_data() {
        let (flags, data) = parse_options(["nosuid", "mode=755", "ro", "rw", "size=64k"]);
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_RDONLY);
        assert_eq!(data, "mode=755,size=64k");
        assert_eq!(parse_options([]), (MsFlags::empty(), String::new()));
    }

    #[test]
    fn every_default_mount_is_strict_about_programs() {
        for entry in super::super::spec::default_mounts(super::super::spec::SHM_SIZE, false) {
            let (flags, data) = parse_options(entry.options.iter().map(String::as_str));
            assert!(flags.contains(MsFlags::MS_NOSUID), "{}", entry.target);
            assert!(
                !data.contains("no"),
                "unknown flag among the data of {}: {data}",
                entry.target
            );
        }
    }
}
