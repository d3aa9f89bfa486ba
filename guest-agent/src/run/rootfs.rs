//! The container's root: an overlay of the image's layers, entered by `pivot_root`.

use std::{
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    RunError,
    spec::{BoundFile, Root},
};

/// The kernel takes mount options from one page and wants a byte to end them.
const MAX_OPTIONS: usize = 4095;

/// The overlay's mount options. Names are relative to [`Root::base`] and so short that an image of
/// more than 100 layers fits into the page that the kernel allows.
pub fn overlay_options(root: &Root) -> Result<Vec<u8>, RunError> {
    let mut options = b"lowerdir=".to_vec();
    push_layers(&mut options, &root.lower);
    options.extend(b",upperdir=");
    push_escaped(&mut options, &root.upper);
    options.extend(b",workdir=");
    push_escaped(&mut options, &root.work);
    if options.len() > MAX_OPTIONS {
        let (count, length) = (root.lower.len(), options.len());
        return Err(RunError::Setup(format!(
            "the image has {count} layers, whose names take {length} bytes of the {MAX_OPTIONS} \
             that the kernel allows for one overlay; squash the image"
        )));
    }
    Ok(options)
}

/// Adds layers, highest first.
pub fn push_layers<'a>(options: &mut Vec<u8>, layers: impl IntoIterator<Item = &'a PathBuf>) {
    for (index, layer) in layers.into_iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        push_escaped(options, layer);
    }
}

/// Separators of the option list are escaped as overlayfs reads them.
fn push_escaped(options: &mut Vec<u8>, path: &Path) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
}

/// Nothing that is mounted from now on reaches the agent's namespace, or comes from it.
pub fn make_private() -> Result<(), RunError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(io::Error::from)
        .map_err(RunError::io("make mounts private"))
}

/// Mounts the overlay; device nodes on it work if `devices` says so. The caller has a mount
/// namespace of its own.
pub fn mount_overlay(root: &Root, devices: bool) -> Result<(), RunError> {
    make_private()?;
    chdir(&root.base)
        .map_err(io::Error::from)
        .map_err(RunError::io(format!("enter {}", root.base.display())))?;
    let mut options = overlay_options(root)?;
    // An upper directory that dies with the container needs no syncing (Linux 5.10).
    let durable = options.len();
    if !root.lasting && durable + b",volatile".len() <= MAX_OPTIONS {
        options.extend(b",volatile");
    }
    let overlay = |options: &[u8]| {
        let kind = Some("overlay");
        let flags = if devices {
            MsFlags::empty()
        } else {
            MsFlags::MS_NODEV
        };
        mount(kind, &root.merged, kind, flags, Some(options))
    };
    overlay(&options)
        .or_else(|_| overlay(&options[..durable]))
        .map_err(io::Error::from)
        .map_err(RunError::io(format!(
            "mount overlay of {} layers",
            root.lower.len()
        )))
}

/// Files of the agent, taken out of its mounts as trees of their own, to be attached inside.
pub fn take_files(files: &[BoundFile]) -> Result<Vec<(OwnedFd, PathBuf)>, RunError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    files
        .iter()
        .map(|file| {
            let tree = open_tree(CWD, &file.source, flags)
                .map_err(io::Error::from)
                .map_err(RunError::io(format!("open {}", file.source.display())))?;
            Ok((tree, PathBuf::from(&file.target)))
        })
        .collect()
}

/// Attaches what [`take_files`] gave over files inside the new root, which are made when missing.
pub fn attach_files(files: Vec<(OwnedFd, PathBuf)>) -> Result<(), RunError> {
    for (tree, target) in files {
        let step = || format!("bind {}", target.display());
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(RunError::io(step()))?;
        }
        if std::fs::metadata(&target).is_err() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOCTTY | OFlags::CLOEXEC;
            let create = || rustix::fs::open(&target, flags, Mode::from_raw_mode(0o644));
            create()
                .or_else(|_| {
                    // A link into a directory that only a running system has.
                    rustix::fs::unlink(&target)?;
                    create()
                })
                .map_err(io::Error::from)
                .map_err(RunError::io(step()))?;
        }
        move_mount(
            &tree,
            "",
            CWD,
            &target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(io::Error::from)
        .map_err(RunError::io(step()))?;
    }
    Ok(())
}

/// Makes `root` the root of this mount namespace and lets go of the old one.
pub fn enter(root: &Path) -> Result<(), RunError> {
    let step = |what: &str| RunError::io(format!("{what} {}", root.display()));
    chdir(root)
        .map_err(io::Error::from)
        .map_err(step("enter"))?;
    // Old and new root in one place: no directory of the image is needed for the old one.
    pivot_root(".", ".")
        .map_err(io::Error::from)
        .map_err(step("change root to"))?;
    umount2(".", MntFlags::MNT_DETACH)
        .map_err(io::Error::from)
        .map_err(step("leave"))?;
    chdir("/").map_err(io::Error::from).map_err(step("enter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(lower: Vec<PathBuf>) -> Root {
        Root {
            base: "/state/layers".into(),
            lower,
            upper: "../containers/a/upper".into(),
            work: "../containers/a/work".into(),
            merged: "/state/containers/a/merged".into(),
            read_only: false,
            lasting: false,
        }
    }

    #[test]
    fn layers_are_listed_as_given() {
        let options = overlay_options(&root(vec!["top".into(), "a:b,c\\".into()])).unwrap();
        let expected = "lowerdir=top:a\\:b\\,c\\\\,upperdir=../containers/a/upper,\
            workdir=../containers/a/work";
        assert_eq!(String::from_utf8(options).unwrap(), expected);
    }

    #[test]
    fn as_many_layers_as_docker_allows_fit_when_their_names_are_short() {
        let names = |length: usize| (0..127).map(|i| format!("{i:0length$}").into()).collect();
        assert!(overlay_options(&root(names(26))).is_ok());
        let error = overlay_options(&root(names(64))).unwrap_err();
        assert!(error.to_string().contains("127 layers"), "{error}");
    }
}
