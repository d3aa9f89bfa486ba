//! File systems that the host serves: mounted by FUSE, their requests relayed over a stream.
//!
//! The agent cannot ask for anything by itself: each mount belongs to a stream that the host
//! opened. It stays until the host has released it and the last container that uses it is gone, or
//! until the host goes away; then whoever still uses it gets errors.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags, umount2};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::sync::CancellationToken;
use vdkr_core::{
    channel::{HEADER_LEN, Pipe},
    fuse::{MAX_DATA, MAX_MESSAGE, Splitter},
};

use crate::{channel::stream::SharedStream, watch::watch};

/// The kernel's side of FUSE.
const DEVICE: &str = "/dev/fuse";
/// Where file systems of the host are mounted.
const DIR: &str = "/run/vdkr/shares";
/// How long what is under way may take once a mount is to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mount cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Not a name that a host gives.
    #[error("{0:?} is no name of a shared directory")]
    Name(String),
    /// It is there already.
    #[error("shared directory {0} is mounted already")]
    Twice(String),
    /// It is not there, or goes away.
    #[error("shared directory {0} is not mounted")]
    Missing(String),
    /// The kernel has no FUSE.
    #[error(
        "this machine's kernel cannot mount directories of the host: {DEVICE}: {0}; it needs \
         CONFIG_FUSE_FS"
    )]
    NoFuse(io::Error),
    /// A step failed.
    #[error("{step}: {source}")]
    Io {
        /// What was done, on what.
        step: String,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> ShareError {
    let step = step.into();
    move |source| ShareError::Io { step, source }
}

/// What is mounted, by name.
#[derive(Debug, Default)]
pub struct Shares {
    mounted: RefCell<HashMap<String, Rc<Share>>>,
}

#[derive(Debug)]
struct Share {
    point: PathBuf,
    uses: Cell<usize>,
    released: Cell<bool>,
    /// Fires when nobody will use it any more.
    over: CancellationToken,
}

impl Share {
    fn new(point: PathBuf) -> Self {
        Self {
            point,
            uses: Cell::new(0),
            released: Cell::new(false),
            over: CancellationToken::new(),
        }
    }

    fn judge(&self) {
        if self.released.get() && self.uses.get() == 0 {
            self.over.cancel();
        }
    }
}

/// Keeps a mount, for a container.
#[derive(Debug)]
pub struct ShareUse(Rc<Share>);

impl ShareUse {
    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.0.point
    }
}

impl Drop for ShareUse {
    fn drop(&mut self) {
        self.0.uses.set(self.0.uses.get() - 1);
        self.0.judge();
    }
}

/// A mount and the kernel's end of it.
#[derive(Debug)]
pub struct Mounted<'a> {
    shares: &'a Shares,
    name: String,
    share: Rc<Share>,
    device: AsyncFd<OwnedFd>,
}

impl Shares {
    /// Mounts a file system. The kernel's first request waits when this returns.
    pub fn mount(
        &self,
        name: &str,
        directory: bool,
        read_only: bool,
    ) -> Result<Mounted<'_>, ShareError> {
        let legal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !(8..=64).contains(&name.len()) || !name.bytes().all(legal) {
            return Err(ShareError::Name(name.to_owned()));
        }
        if self.mounted.borrow().contains_key(name) {
            return Err(ShareError::Twice(name.to_owned()));
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open(DEVICE, flags, Mode::empty())
            .map_err(|error| ShareError::NoFuse(error.into()))?;
        let point = Path::new(DIR).join(name);
        make_point(&point, directory).map_err(failed(format!("make {}", point.display())))?;
        let mode = if directory { 0o40000 } else { 0o100_000 };
        let options = format!(
            "fd={},rootmode={mode:o},user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        flags.set(MsFlags::MS_RDONLY, read_only);
        let kind = Some("fuse");
        let mounted = nix::mount::mount(Some("vdkr"), &point, kind, flags, Some(&*options));
        if let Err(error) = mounted {
            remove_point(&point);
            return Err(match error {
                nix::Error::ENODEV => ShareError::NoFuse(error.into()),
                _ => failed(format!("mount {}", point.display()))(error.into()),
            });
        }
        let device = match watch(device, Interest::READABLE) {
            Ok(device) => device,
            Err(error) => {
                let _ = umount2(&point, MntFlags::MNT_DETACH);
                remove_point(&point);
                return Err(failed("watch the file system's requests")(error));
            }
        };
        let share = Rc::new(Share::new(point));
        self.mounted
            .borrow_mut()
            .insert(name.to_owned(), share.clone());
        Ok(Mounted {
            shares: self,
            name: name.to_owned(),
            share,
            device,
        })
    }

    /// Keeps a mount for a container.
    pub fn hold(&self, name: &str) -> Result<ShareUse, ShareError> {
        let missing = || ShareError::Missing(name.to_owned());
        let mounted = self.mounted.borrow();
        let share = mounted.get(name).ok_or_else(missing)?;
        if share.over.is_cancelled() {
            return Err(missing());
        }
        share.uses.set(share.uses.get() + 1);
        Ok(ShareUse(share.clone()))
    }

    /// A released mount is wanted again.
    pub fn keep(&self, name: &str) -> Result<(), ShareError> {
        let mounted = self.mounted.borrow();
        match mounted.get(name).filter(|share| !share.over.is_cancelled()) {
            Some(share) => {
                share.released.set(false);
                Ok(())
            }
            None => Err(ShareError::Missing(name.to_owned())),
        }
    }

    /// No new container will use a mount.
    pub fn release(&self, name: &str) {
        if let Some(share) = self.mounted.borrow().get(name) {
            share.released.set(true);
            share.judge();
        }
    }
}

impl Mounted<'_> {
    /// Relays requests and answers until the mount is over or the host has gone. `stopping` fires
    /// when the agent ends: the host is still there then, and what is under way is finished.
    pub async fn relay(&self, stream: &SharedStream, stopping: &CancellationToken) {
        let requests = forward_requests(&self.device, stream);
        let answers = forward_answers(&self.device, stream);
        let over = async {
            tokio::select! {
                () = self.share.over.cancelled() => {}
                () = stopping.cancelled() => {}
            }
            // The kernel writes back what programs left, which needs the relay.
            let point = self.share.point.clone();
            let unmount = move || umount2(&point, MntFlags::MNT_DETACH);
            let _ = tokio::task::spawn_blocking(unmount).await;
            tokio::time::sleep(PATIENCE).await;
        };
        let gone = async {
            stream.cancelled().cancelled().await;
            if stopping.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        let read_ahead = tokio::task::spawn_blocking({
            let point = self.share.point.clone();
            move || read_ahead(&point)
        });
        let ended = tokio::select! {
            ended = requests => ended,
            ended = answers => ended,
            () = over => Ok(()),
            () = gone => Ok(()),
        };
        read_ahead.abort();
        if let Err(error) = ended {
            eprintln!("vdkr-agent: shared directory {}: {error}", self.name);
        }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.share.over.cancel();
        self.shares.mounted.borrow_mut().remove(&self.name);
        let _ = umount2(&self.share.point, MntFlags::MNT_DETACH);
        remove_point(&self.share.point);
        // With the device goes the connection: whoever still waits gets an error.
    }
}

fn make_point(point: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return fs::create_dir_all(point);
    }
    fs::create_dir_all(DIR)?;
    fs::write(point, b"")
}

fn remove_point(point: &Path) {
    let _ = fs::remove_file(point).or_else(|_| fs::remove_dir(point));
}

/// Has the kernel read as far ahead as one request goes: by itself it stops at 128 KiB.
fn read_ahead(point: &Path) {
    // Answered by the host, behind the first exchange, which sets the kernel's own value.
    let Ok(stat) = rustix::fs::stat(point) else {
        return;
    };
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let _ = fs::write(setting, (MAX_DATA / 1024).to_string());
}

/// Passes the kernel's requests to the host, until the file system is unmounted everywhere.
async fn forward_requests(device: &AsyncFd<OwnedFd>, stream: &SharedStream) -> io::Result<()> {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let read = device.async_io(Interest::READABLE, |fd| {
            rustix::io::read(fd, &mut buffer[..]).map_err(io::Error::from)
        });
        let length = match read.await {
            Ok(length) => length,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NODEV) => return Ok(()),
                // The program that asked was killed meanwhile.
                Some(Errno::NOENT | Errno::INTR) => continue,
                _ => return Err(error),
            },
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let room = stream.writable(Pipe::Stdout).await.min(rest.len());
            let (now, later) = rest.split_at(room);
            let mut frame = Vec::with_capacity(HEADER_LEN + now.len());
            frame.resize(HEADER_LEN, 0);
            frame.extend_from_slice(now);
            stream
                .write(Pipe::Stdout, frame)
                .await
                .map_err(io::Error::other)?;
            rest = later;
        }
    }
}

/// Passes the host's answers to the kernel.
async fn forward_answers(device: &AsyncFd<OwnedFd>, stream: &SharedStream) -> io::Result<()> {
    let mut splitter = Splitter::new(MAX_MESSAGE);
    while let Some(bytes) = stream.read().await {
        splitter.push(&bytes);
        stream.consumed(bytes.len()).await;
        while let Some(answer) = splitter.next().map_err(io::Error::other)? {
            match rustix::io::write(device.get_ref(), answer) {
                // Nobody waits for it any more.
                Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_goes_when_it_is_released_and_not_used_unless_it_is_wanted_again() {
        let shares = Shares::default();
        let share = Rc::new(Share::new("/nowhere".into()));
        let name = "00ff00ff";
        shares
            .mounted
            .borrow_mut()
            .insert(name.into(), share.clone());
        let held = shares.hold(name).unwrap();
        shares.release(name);
        // A container has it: a host that comes back finds it.
        shares.keep(name).unwrap();
        drop(held);
        assert!(!share.over.is_cancelled());
        let held = shares.hold(name).unwrap();
        shares.release(name);
        drop(held);
        assert!(share.over.is_cancelled());
        assert!(matches!(shares.keep(name), Err(ShareError::Missing(_))));
        assert!(matches!(shares.keep("11"), Err(ShareError::Missing(_))));
        assert!(matches!(shares.hold(name), Err(ShareError::Missing(_))));
    }
}
