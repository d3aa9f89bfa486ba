//! Volumes inside the new root: directories and files of the machine, taken along as trees of
//! their own, and memory. All of it happens after the change of root, so no link of the image leads
//! out of the container.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::mount::{MsFlags, mount};
use rustix::{
    fs::{CWD, FileType, fstat},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    RunError, copy_up, point,
    spec::{Volume, VolumeSource},
};

/// A volume on its way into a container.
#[derive(Debug)]
pub struct Taken<'a> {
    volume: &'a Volume,
    tree: Option<OwnedFd>,
}

/// Takes the volumes out of the agent's mounts.
pub fn take(volumes: &[Volume]) -> Result<Vec<Taken<'_>>, RunError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    volumes
        .iter()
        .map(|volume| {
            let tree = match &volume.source {
                VolumeSource::Tree(path) => {
                    let tree = open_tree(CWD, path, flags)
                        .map_err(io::Error::from)
                        .map_err(RunError::io(format!("open {}", path.display())))?;
                    Some(tree)
                }
                VolumeSource::Tmpfs { .. } => None,
            };
            Ok(Taken { volume, tree })
        })
        .collect()
}

/// Mounts them, in their order; mount points are made when missing.
pub fn attach(taken: Vec<Taken<'_>>) -> Result<(), RunError> {
    for Taken { volume, tree } in taken {
        attach_one(volume, tree)
            .map_err(RunError::io(format!("mount volume {}", volume.target)))?;
    }
    Ok(())
}

fn attach_one(volume: &Volume, tree: Option<OwnedFd>) -> io::Result<()> {
    let target = Path::new(&volume.target);
    match (&volume.source, tree) {
        (VolumeSource::Tree(_), Some(tree)) => {
            let kind = FileType::from_raw_mode(fstat(&tree)?.st_mode);
            let point = point::open(target, kind == FileType::Directory)?;
            if volume.copy && kind == FileType::Directory {
                copy_up::copy_up(&point, &tree)?;
            }
            let flags =
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&tree, "", &point, "", flags)?;
            if volume.read_only {
                let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                super::mounts::remount_readonly(point::path(&tree), kept)?;
            }
        }
        (VolumeSource::Tmpfs { size, mode }, _) => {
            let point = point::open(target, true)?;
            let mut data = format!("mode={:o}", mode.unwrap_or(0o1777));
            if let Some(size) = size {
                data += &format!(",size={size}");
            }
            let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            flags.set(MsFlags::MS_RDONLY, volume.read_only);
            let kind = Some("tmpfs");
            mount(kind, &point::path(&point), kind, flags, Some(&*data))?;
        }
        (VolumeSource::Tree(_), None) => {}
    }
    Ok(())
}
