//! What dead processes and forgetful clients left behind.

use std::os::fd::OwnedFd;

use super::uploads::UploadId;
use super::{Result, Storage, locks, now, paths, random_hex};
use crate::fs::{self, Fs, FsError, Kind};

/// How deep a directory of ours can be.
const DEEPEST: usize = 8;

/// The directory for this process's files without a name. It is locked as long as the process lives.
#[derive(Debug)]
pub(super) struct TemporaryDir {
    fs: Fs,
    path: String,
    _lock: Option<OwnedFd>,
}

impl TemporaryDir {
    /// Makes the directory and proves that files in it can be written and synced. With the error of a
    /// full disk, on which there was room for the directory.
    pub(super) fn make(fs: &Fs) -> fs::Result<(Self, Option<FsError>)> {
        loop {
            let path = format!("{}/{}", paths::TEMPORARY, random_hex(8));
            if !fs.mkdir(&path)? {
                continue;
            }
            let lock = fs.lock_dir(&path, true, locks::PATIENCE);
            // Another process that is starting may have taken it for a dead one's before it was locked.
            if matches!(&lock, Err(error) if error.is_not_found()) || fs.stat(&path)?.is_none() {
                continue;
            }
            let dir = Self {
                fs: fs.clone(),
                path,
                _lock: lock?,
            };
            return match dir.probe() {
                Ok(()) => Ok((dir, None)),
                Err(error) if error.is_no_space() => Ok((dir, Some(error))),
                Err(error) => Err(error),
            };
        }
    }

    fn probe(&self) -> fs::Result<()> {
        let probe = self.fs.create(&format!("{}/probe", self.path))?;
        let kept = probe.write_at(b"probe", 0).and_then(|()| probe.sync());
        let removed = probe.remove();
        kept.and(removed.map(drop))
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = self.fs.remove_dir(&self.path);
    }
}

/// Removes the directories of processes that are no more.
pub(super) fn clear_temporary(fs: &Fs) -> fs::Result<()> {
    let mut found = Vec::new();
    fs.list(paths::TEMPORARY, |name, kind| {
        if kind == Kind::Directory {
            found.push(format!("{}/{name}", paths::TEMPORARY));
        }
    })?;
    for dir in found {
        // Held by its process, or already being cleared by another that starts.
        if let Ok(Some(_lock)) = fs.try_lock_dir(&dir, true)
            && let Err(error) = remove_tree(fs, &dir, DEEPEST)
        {
            tracing::warn!(%error, "what a dead process left behind cannot be removed");
        }
    }
    Ok(())
}

/// What [`Storage::sweep_uploads`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sessions that stay.
    pub kept: usize,
    /// Sessions removed.
    pub removed: usize,
}

impl Storage {
    /// Removes upload sessions that nobody has touched for `idle` seconds.
    ///
    /// Looks at the directories of repositories only, never at blobs, manifests or tags. Safe while
    /// requests are served, and to be stopped at any point.
    pub fn sweep_uploads(&self, idle: u64) -> Result<Swept> {
        let mut swept = Swept::default();
        self.each_directory(paths::REPOSITORIES, "_uploads", &mut |uploads| {
            self.sweep_directory(uploads, idle, &mut swept);
        });
        Ok(swept)
    }

    /// Whether another living process has this storage open.
    pub fn is_shared(&self) -> Result<bool> {
        let mut others = Vec::new();
        let own = self
            .temporary_dir()
            .as_ref()
            .map(|own| own.path().to_owned());
        self.fs.list(paths::TEMPORARY, |name, kind| {
            let dir = format!("{}/{name}", paths::TEMPORARY);
            if kind == Kind::Directory && Some(&dir) != own.as_ref() {
                others.push(dir);
            }
        })?;
        for dir in others {
            match self.fs.try_lock_dir(&dir, true) {
                Ok(None) => return Ok(true),
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(false)
    }

    fn sweep_directory(&self, uploads: &str, idle: u64, swept: &mut Swept) {
        let mut ids = Vec::new();
        let _ = self.fs.list(uploads, |name, kind| {
            // What has no name of a session is not ours to judge.
            if kind == Kind::Directory {
                ids.extend(UploadId::parse(name));
            }
        });
        for id in ids {
            let directory = format!("{uploads}/{id}");
            let touched = [directory.clone(), format!("{directory}/data")]
                .iter()
                .filter_map(|path| self.fs.stat(path).ok().flatten())
                .map(|stat| u64::try_from(stat.stamp.modified_secs()).unwrap_or(0))
                .max();
            let fresh = touched.is_none_or(|touched| touched.saturating_add(idle) > now());
            if fresh || self.sessions.in_use(&directory) {
                swept.kept += 1;
            } else {
                self.sessions.forget(&directory);
                self.remove_upload(&directory);
                swept.removed += 1;
            }
        }
    }

    /// Calls `found` with each directory called `wanted` (one of the names with an underscore) in the
    /// repositories beneath `dir`.
    fn each_directory(&self, dir: &str, wanted: &str, found: &mut impl FnMut(&str)) {
        let mut below = Vec::new();
        let mut here = false;
        let _ = self.fs.list(dir, |name, kind| {
            if kind == Kind::Directory {
                here |= name == wanted;
                if !name.starts_with('_') {
                    below.push(format!("{dir}/{name}"));
                }
            }
        });
        if here {
            found(&format!("{dir}/{wanted}"));
        }
        for dir in below {
            // A path that the system can open bounds the depth.
            self.each_directory(&dir, wanted, found);
        }
    }

    /// Removes a directory of ours with all in it.
    pub(super) fn remove_tree(&self, dir: &str) -> Result<()> {
        Ok(remove_tree(&self.fs, dir, DEEPEST)?)
    }
}

fn remove_tree(fs: &Fs, dir: &str, depth: usize) -> fs::Result<()> {
    let mut entries = Vec::new();
    match fs.list(dir, |name, kind| {
        entries.push((format!("{dir}/{name}"), kind));
    }) {
        Err(error) if error.is_not_found() => return Ok(()),
        listed => listed?,
    }
    for (path, kind) in entries {
        match kind {
            Kind::Directory if depth > 0 => remove_tree(fs, &path, depth - 1)?,
            Kind::Directory => {}
            Kind::File | Kind::Other => drop(fs.remove_file(&path)?),
        }
    }
    fs.remove_dir(dir)?;
    Ok(())
}
