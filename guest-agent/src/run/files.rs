//! The files of a container, from a process that has the container's root for its own: whatever
//! links there are, none leads out of it.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::stat::{Mode, umask},
    unistd::chdir,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use vdkr_transfer::tree::{Policy, pack, pack_root, unpack};

use super::{
    EXIT_NOT_CREATED, Report, RunError,
    changes::{self, Form},
    rootfs,
    sandbox::step,
    spec::{FilesJob, IdleRoot},
    volumes,
};

/// Exit statuses of [`FilesJob::Look`].
pub const NOTHING: i32 = 0;
/// A directory.
pub const DIRECTORY: i32 = 1;
/// A file.
pub const FILE: i32 = 2;
/// A symbolic link.
pub const LINK: i32 = 3;
/// Anything else.
pub const OTHER: i32 = 4;

/// Bytes that are moved at once.
const BUFFER: usize = 128 * 1024;

/// Enters the root of a container and does the work.
pub fn work(
    agent: BorrowedFd<'_>,
    root: Option<&IdleRoot>,
    target: Option<BorrowedFd<'_>>,
    job: &FilesJob,
    stdio: Vec<OwnedFd>,
) -> Result<Report, RunError> {
    let own = getpid();
    let pidfd = pidfd_open(own, PidfdFlags::empty())
        .map_err(io::Error::from)
        .map_err(RunError::io("open the own process"))?;
    let created = Report::Created {
        pid: own.as_raw_nonzero().get().unsigned_abs(),
    };
    created
        .send(agent, &[pidfd.as_fd()])
        .map_err(step("report to the agent"))?;
    let form = match job {
        FilesJob::PackChanges => Some(Form::Layer),
        FilesJob::ListChanges => Some(Form::List),
        _ => None,
    };
    match (root, target) {
        (Some(root), _) if let Some(form) = form => {
            let mut out = BufWriter::with_capacity(BUFFER, stream(stdio, 1)?);
            changes::write(&root.root, form, &mut out)?;
            return Ok(Report::Exited { status: 0 });
        }
        (Some(IdleRoot { root, volumes }), _) => {
            unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
            let taken = volumes::take(volumes)?;
            rootfs::mount_overlay(root, false)?;
            rootfs::enter(&root.merged)?;
            volumes::attach(taken)?;
        }
        (None, Some(target)) => {
            let mounts = CloneFlags::CLONE_NEWNS;
            setns(target, mounts).map_err(step("enter the container's files"))?;
        }
        (None, None) => return Err(RunError::Setup("no container is given".to_owned())),
    }
    chdir("/").map_err(step("enter the container's root"))?;
    umask(Mode::empty());
    let failed = |message: String| Report::Failed {
        status: EXIT_NOT_CREATED,
        message,
    };
    let done = match job {
        FilesJob::Look { path, follow } => return Ok(look(&from_root(path), *follow)),
        FilesJob::Pack {
            path,
            entry,
            follow,
        } => {
            let mut out = BufWriter::with_capacity(BUFFER, stream(stdio, 1)?);
            pack(&from_root(path), entry, *follow, true, &mut out)
        }
        FilesJob::PackRoot => {
            let mut out = BufWriter::with_capacity(BUFFER, stream(stdio, 1)?);
            pack_root(Path::new("/"), &mut out)
        }
        FilesJob::PackChanges | FilesJob::ListChanges => {
            let text = "changes are looked at without the container";
            return Err(RunError::Setup(text.to_owned()));
        }
        FilesJob::Unpack { path } => {
            let directory = match open_directory(&from_root(path)) {
                Ok(directory) => directory,
                Err(error) => return Ok(failed(format!("{path}: {error}"))),
            };
            let policy = Policy {
                owners: true,
                follow: true,
            };
            let from = BufReader::with_capacity(BUFFER, stream(stdio, 0)?);
            unpack(from, directory.as_fd(), policy, |name| Some(name.to_vec()))
        }
    };
    Ok(match done {
        Ok(()) => Report::Exited { status: 0 },
        Err(error) => failed(error.to_string()),
    })
}

/// A path as the container's own root sees it.
fn from_root(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn stream(stdio: Vec<OwnedFd>, number: usize) -> Result<File, RunError> {
    // The others are closed here.
    let stream = stdio.into_iter().nth(number).map(File::from);
    stream.ok_or_else(|| RunError::Setup("a stream is missing".to_owned()))
}

fn open_directory(path: &Path) -> io::Result<File> {
    let directory = File::open(path)?;
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(directory)
}

fn look(path: &Path, follow: bool) -> Report {
    let meta = if follow {
        fs::metadata(path)
    } else {
        fs::symlink_metadata(path)
    };
    let status = match meta {
        Ok(meta) if meta.is_dir() => DIRECTORY,
        Ok(meta) if meta.is_file() => FILE,
        Ok(meta) if meta.is_symlink() => LINK,
        Ok(_) => OTHER,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            NOTHING
        }
        Err(error) => {
            return Report::Failed {
                status: EXIT_NOT_CREATED,
                message: format!("{}: {error}", path.display()),
            };
        }
    };
    Report::Exited { status }
}
