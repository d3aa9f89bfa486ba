//! Who may change a repository's names at the same time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::paths;
use crate::fs::Fs;

const SHARDS: usize = 64;

/// Locks by repository and by tag.
///
/// Pushing a manifest shares its repository with other pushes and has its tag alone; deleting has the
/// repository alone, so that nothing is removed between the check and the promise of a push. The same
/// is asked of other processes on this tree by locking the directories, where the file system can.
#[derive(Debug)]
pub(super) struct Locks {
    fs: Fs,
    hasher: RandomState,
    repositories: [RwLock<()>; SHARDS],
    tags: [Mutex<()>; SHARDS],
}

/// A repository that nobody deletes from.
#[derive(Debug)]
pub(super) struct Shared<'l> {
    _directory: Option<OwnedFd>,
    _guard: RwLockReadGuard<'l, ()>,
}

/// A repository that nobody else changes.
#[derive(Debug)]
pub(super) struct Exclusive<'l> {
    _directory: Option<OwnedFd>,
    _guard: RwLockWriteGuard<'l, ()>,
}

/// Tags that nobody else changes.
#[derive(Debug)]
pub(super) struct Tags<'l> {
    _directories: Vec<OwnedFd>,
    _guards: Vec<MutexGuard<'l, ()>>,
}

impl Locks {
    pub(super) fn new(fs: Fs) -> Self {
        Self {
            fs,
            hasher: RandomState::new(),
            repositories: std::array::from_fn(|_| RwLock::default()),
            tags: std::array::from_fn(|_| Mutex::default()),
        }
    }

    pub(super) fn share(&self, repository: &str) -> Shared<'_> {
        let lock = &self.repositories[self.shard(repository)];
        let guard = lock.read().unwrap_or_else(PoisonError::into_inner);
        Shared {
            _directory: self.lock_repository(repository, false),
            _guard: guard,
        }
    }

    pub(super) fn exclude(&self, repository: &str) -> Exclusive<'_> {
        let lock = &self.repositories[self.shard(repository)];
        let guard = lock.write().unwrap_or_else(PoisonError::into_inner);
        Exclusive {
            _directory: self.lock_repository(repository, true),
            _guard: guard,
        }
    }

    /// Returns when everybody who shares or excludes a repository now has let go of it.
    pub(super) fn quiesce(&self) {
        for lock in &self.repositories {
            drop(lock.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(super) fn tags<'t>(
        &self,
        repository: &str,
        tags: impl IntoIterator<Item = &'t str>,
    ) -> Tags<'_> {
        // By shard and in order: two tags of one shard are one lock, and nobody waits crosswise.
        let mut shards: HashMap<usize, Vec<&str>> = HashMap::new();
        for tag in tags {
            shards
                .entry(self.shard(&(repository, tag)))
                .or_default()
                .push(tag);
        }
        let mut order: Vec<_> = shards.keys().copied().collect();
        order.sort_unstable();
        let guards = order
            .iter()
            .map(|shard| {
                self.tags[*shard]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
            })
            .collect();
        let mut names: Vec<_> = shards.into_values().flatten().collect();
        names.sort_unstable();
        names.dedup();
        let directories = names
            .into_iter()
            .filter_map(|tag| self.lock_directory(&paths::tag(repository, tag), true))
            .collect();
        Tags {
            _directories: directories,
            _guards: guards,
        }
    }

    fn lock_repository(&self, repository: &str, exclusive: bool) -> Option<OwnedFd> {
        self.lock_directory(&paths::repository(repository), exclusive)
    }

    /// `None`: there is nothing yet to be deleted here, or this file system cannot lock, which takes
    /// nothing from the locks above.
    fn lock_directory(&self, dir: &str, exclusive: bool) -> Option<OwnedFd> {
        self.fs.lock_dir(dir, exclusive, true).ok().flatten()
    }

    fn shard(&self, key: &(impl std::hash::Hash + ?Sized)) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }
}
