//! Files and directories that the guest has open.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use rustix::io::Errno;

use super::budget::Slot;

/// One of them.
#[derive(Debug)]
pub(super) enum Handle {
    /// A regular file.
    File {
        fd: OwnedFd,
        /// The node that was opened.
        node: u64,
        /// Writes go to the end.
        append: bool,
    },
    /// A directory; the lock is for its position.
    Directory {
        fd: Mutex<OwnedFd>,
        /// The node that was opened.
        node: u64,
    },
}

impl Handle {
    pub(super) fn node(&self) -> u64 {
        match self {
            Self::File { node, .. } | Self::Directory { node, .. } => *node,
        }
    }

    /// A file's descriptor.
    pub(super) fn file(&self) -> Result<&OwnedFd, Errno> {
        match self {
            Self::File { fd, .. } => Ok(fd),
            Self::Directory { .. } => Err(Errno::ISDIR),
        }
    }
}

/// The table of handles.
#[derive(Debug)]
pub(super) struct Handles {
    open: HashMap<u64, (Arc<Handle>, Slot)>,
    last: u64,
    limit: usize,
}

impl Handles {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            open: HashMap::new(),
            last: 0,
            limit,
        }
    }

    /// Whether one more may be opened.
    pub(super) fn room(&self) -> Result<(), Errno> {
        if self.open.len() < self.limit {
            Ok(())
        } else {
            Err(Errno::NFILE)
        }
    }

    pub(super) fn add(&mut self, handle: Handle, slot: Slot) -> Result<u64, Errno> {
        self.room()?;
        self.last += 1;
        self.open.insert(self.last, (Arc::new(handle), slot));
        Ok(self.last)
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        let open = self.open.get(&number);
        open.map(|(handle, _)| Arc::clone(handle))
            .ok_or(Errno::BADF)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Arc<Handle>> {
        self.open.remove(&number).map(|(handle, _)| handle)
    }
}
