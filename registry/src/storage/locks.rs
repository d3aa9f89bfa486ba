//! Who may change a repository's names at the same time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Result, StorageError, paths};
use crate::fs::Fs;

/// How long another process may keep something locked. Ours are done before that.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Locks by repository and by tag.
///
/// Pushing a manifest shares its repository with other pushes and has its tag alone; deleting has the
/// repository alone, so that nothing is removed between the check and the promise of a push. The same
/// is asked of other processes on this tree by locking the directories, where the file system can. That
/// is waited for within bounds, and by nobody who wants something else: anybody who may read a directory
/// may lock it.
#[derive(Debug)]
pub(super) struct Locks {
    fs: Fs,
    patience: Duration,
    repositories: Names,
    tags: Names,
}

/// A repository that nobody deletes from.
#[derive(Debug)]
pub(super) struct Shared<'l> {
    _directory: Option<OwnedFd>,
    _name: Held<'l>,
}

/// A repository that nobody else changes.
#[derive(Debug)]
pub(super) struct Exclusive<'l> {
    _directory: Option<OwnedFd>,
    _name: Held<'l>,
}

/// Tags that nobody else changes.
#[derive(Debug)]
pub(super) struct Tags<'l> {
    _directories: Vec<OwnedFd>,
    _names: Vec<Held<'l>>,
}

impl Locks {
    pub(super) fn new(fs: Fs, patience: Duration) -> Self {
        Self {
            fs,
            patience,
            repositories: Names::default(),
            tags: Names::default(),
        }
    }

    pub(super) fn share(&self, repository: &str) -> Result<Shared<'_>> {
        let begun = Instant::now();
        let name = self.repositories.share(repository);
        let directory = paths::repository(repository);
        Ok(Shared {
            _directory: self.lock_directory(&directory, false, begun)?,
            _name: name,
        })
    }

    pub(super) fn exclude(&self, repository: &str) -> Result<Exclusive<'_>> {
        let begun = Instant::now();
        let name = self.repositories.exclude(repository);
        let directory = paths::repository(repository);
        Ok(Exclusive {
            _directory: self.lock_directory(&directory, true, begun)?,
            _name: name,
        })
    }

    /// Returns when everybody who shares or excludes a repository now has let go of it.
    pub(super) fn quiesce(&self) {
        for name in self.repositories.all() {
            drop(self.repositories.exclude(&name));
        }
    }

    pub(super) fn tags<'t>(
        &self,
        repository: &str,
        tags: impl IntoIterator<Item = &'t str>,
    ) -> Result<Tags<'_>> {
        // In order, so that nobody waits crosswise.
        let mut tags: Vec<_> = tags.into_iter().collect();
        tags.sort_unstable();
        tags.dedup();
        let begun = Instant::now();
        let names = tags
            .iter()
            .map(|tag| self.tags.exclude(&format!("{repository}:{tag}")))
            .collect();
        let mut directories = Vec::new();
        for tag in tags {
            let directory = paths::tag(repository, tag);
            directories.extend(self.lock_directory(&directory, true, begun)?);
        }
        Ok(Tags {
            _directories: directories,
            _names: names,
        })
    }

    /// `None`: there is nothing yet to be deleted here, or this file system cannot lock, which takes
    /// nothing from the locks above. Whoever has waited for them since `begun` waits no longer here:
    /// many who wait for one another would take all threads.
    fn lock_directory(
        &self,
        dir: &str,
        exclusive: bool,
        begun: Instant,
    ) -> Result<Option<OwnedFd>> {
        let left = self.patience.saturating_sub(begun.elapsed());
        match self.fs.lock_dir(dir, exclusive, left) {
            Err(error) if error.is_locked() => Err(StorageError::Locked(error.path)),
            locked => Ok(locked.ok().flatten()),
        }
    }
}

/// Locks by name, among the threads of this process.
#[derive(Debug, Default)]
struct Names {
    held: Mutex<HashMap<String, Holders>>,
    freed: Condvar,
}

/// Who has a name, and how many wait to have it alone: those who would share it come after them.
#[derive(Debug, Default)]
struct Holders {
    sharing: usize,
    alone: bool,
    waiting: usize,
}

/// A name, until it is dropped.
#[derive(Debug)]
struct Held<'n> {
    names: &'n Names,
    name: String,
    alone: bool,
}

impl Names {
    fn share(&self, name: &str) -> Held<'_> {
        let mut held = self.lock();
        loop {
            let holders = held.entry(name.to_owned()).or_default();
            if !holders.alone && holders.waiting == 0 {
                holders.sharing += 1;
                return self.holding(name, false);
            }
            held = self.wait(held);
        }
    }

    fn exclude(&self, name: &str) -> Held<'_> {
        let mut held = self.lock();
        held.entry(name.to_owned()).or_default().waiting += 1;
        loop {
            let holders = held.entry(name.to_owned()).or_default();
            if !holders.alone && holders.sharing == 0 {
                holders.waiting -= 1;
                holders.alone = true;
                return self.holding(name, true);
            }
            held = self.wait(held);
        }
    }

    /// The names that somebody has, or waits for.
    fn all(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn holding(&self, name: &str, alone: bool) -> Held<'_> {
        Held {
            names: self,
            name: name.to_owned(),
            alone,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Holders>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(
        &self,
        held: MutexGuard<'g, HashMap<String, Holders>>,
    ) -> MutexGuard<'g, HashMap<String, Holders>> {
        self.freed
            .wait(held)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.names.lock();
        if let Some(holders) = held.get_mut(&self.name) {
            match self.alone {
                true => holders.alone = false,
                false => holders.sharing -= 1,
            }
            if holders.sharing == 0 && holders.waiting == 0 {
                held.remove(&self.name);
            }
        }
        drop(held);
        self.names.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    #[test]
    fn names_are_shared_or_had_alone() {
        let names = Names::default();
        let shared = [names.share("a"), names.share("a")];
        let other = names.exclude("b");
        let excluded = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            scope.spawn(|| {
                let _alone = names.exclude("a");
                excluded.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                excluded.store(false, Ordering::SeqCst);
            });
            while names.lock()["a"].waiting == 0 {
                std::thread::yield_now();
            }
            scope.spawn(|| {
                let tell = tell;
                let _shared = names.share("a");
                assert!(!excluded.load(Ordering::SeqCst));
                tell.send(()).unwrap();
            });
            assert!(told.recv_timeout(Duration::from_millis(20)).is_err());
            drop(shared);
            told.recv().unwrap();
        });
        drop(other);
        assert!(names.all().is_empty());
    }

    #[test]
    fn quiet_is_when_those_who_are_there_have_gone() {
        let dir = tempfile::tempdir().unwrap();
        let fs = Fs::open(dir.path()).unwrap();
        let locks = Arc::new(Locks::new(fs, PATIENCE));
        locks.quiesce();
        let held = locks.share("a").unwrap();
        std::thread::scope(|scope| {
            let quiet = scope.spawn(|| locks.quiesce());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!quiet.is_finished());
            drop(held);
        });
    }

    #[test]
    fn what_somebody_else_keeps_locked_stops_that_alone_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (paths::repository("a"), paths::repository("b"));
        for path in [&a, &b, &paths::tag("b", "1")] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let fs = Fs::open(dir.path()).unwrap();
        let foreign = fs.try_lock_dir(&a, true).unwrap().unwrap();
        let tag = fs.try_lock_dir(&paths::tag("b", "1"), false);
        let locks = Locks::new(fs.clone(), Duration::from_millis(100));
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..20)
                .map(|_| scope.spawn(|| locks.exclude("a").map(drop).unwrap_err()))
                .collect();
            while locks.repositories.all().is_empty() {
                std::thread::yield_now();
            }
            let begun = Instant::now();
            drop(locks.exclude("b").unwrap());
            drop(locks.share("b").unwrap());
            for one in waiting {
                let error = one.join().unwrap();
                assert!(error.to_string().contains(&a), "{error}");
            }
            assert!(
                begun.elapsed() < Duration::from_secs(1),
                "one after the other"
            );
        });
        assert!(locks.tags("b", ["2", "1"]).is_err());
        drop((foreign, tag));
        drop(locks.exclude("a").unwrap());
        drop(locks.tags("b", ["2", "1"]).unwrap());
    }
}
