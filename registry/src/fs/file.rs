//! An open file.

use std::os::fd::OwnedFd;

use rustix::fs::{self as sys, FlockOperation};
use rustix::io::Errno;

use super::{Fs, Op, Result, Stat, retry};

/// An open regular file of the storage.
#[derive(Debug)]
pub struct File {
    pub(super) fs: Fs,
    pub(super) fd: OwnedFd,
    pub(super) path: String,
    pub(super) id: u64,
}

impl File {
    /// The name that it was opened under.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        let fail = |errno| self.fs.error("write to", &self.path, errno);
        while !bytes.is_empty() {
            let allowed = match &self.fs.0.plan {
                None => bytes.len(),
                Some(plan) => match plan.before_write(self.id, offset, bytes) {
                    Ok(allowed) => allowed,
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(fail(errno)),
                },
            };
            let written =
                retry(|| rustix::io::pwrite(&self.fd, &bytes[..allowed], offset)).map_err(fail)?;
            if written == 0 {
                return Err(fail(Errno::IO));
            }
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }

    /// Reads at most `into.len()` bytes at `offset`; 0 at the end.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        self.fs
            .step(|| Op::Read { file: self.id })
            .and_then(|()| retry(|| rustix::io::pread(&self.fd, &mut *into, offset)))
            .map_err(|errno| self.fs.error("read", &self.path, errno))
    }

    /// Fills a buffer from `offset` on. A file that ends before is an error.
    pub fn read_exact_at(&self, mut into: &mut [u8], mut offset: u64) -> Result<()> {
        while !into.is_empty() {
            match self.read_at(into, offset)? {
                0 => {
                    return Err(self
                        .fs
                        .error("read to the end of", &self.path, Errno::NODATA));
                }
                n => {
                    into = &mut into[n..];
                    offset += n as u64;
                }
            }
        }
        Ok(())
    }

    /// Makes the content durable. After an error the content must not be trusted: a second call may
    /// succeed although the bytes never reached the disk.
    pub fn sync(&self) -> Result<()> {
        self.fs
            .step(|| Op::SyncFile { file: self.id })
            .and_then(|()| self.fs.flush(&self.fd))
            .map_err(|errno| self.fs.error("sync", &self.path, errno))
    }

    /// Locks the file against other openings of it, in this process or another, until this one is
    /// dropped. `false`: another holds it. A file system without locks says nothing against it.
    pub fn try_lock(&self) -> Result<bool> {
        self.fs
            .step(|| Op::Lock {
                path: self.path.clone(),
            })
            .map_err(|errno| self.fs.error("lock", &self.path, errno))?;
        let locked = retry(|| sys::flock(&self.fd, FlockOperation::NonBlockingLockExclusive));
        Ok(locked != Err(Errno::WOULDBLOCK))
    }

    /// Asks the kernel to begin writing everything from `offset` on to the disk, so that a later
    /// [`File::sync`] finds less to do. Only a hint.
    pub fn begin_writeback(&self, offset: u64) {
        // Dirty pages are queued for writing by this, and stay cached as long as they are dirty.
        let _ = sys::fadvise(&self.fd, offset, None, sys::Advice::DontNeed);
    }

    /// The file itself, for whoever works without the storage's watch.
    pub(crate) fn into_std(self) -> std::fs::File {
        self.fd.into()
    }

    /// Removes the name that it was opened under.
    pub fn remove(&self) -> Result<bool> {
        self.fs.remove_file(&self.path)
    }

    /// Its state now.
    pub fn stat(&self) -> Result<Stat> {
        retry(|| sys::fstat(&self.fd))
            .map(Stat::from)
            .map_err(|errno| self.fs.error("look at", &self.path, errno))
    }
}
