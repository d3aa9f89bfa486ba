//! When a name on the disk may be promised.
//!
//! A file may get its name once its content is synced, and the name is durable once the directory that
//! holds it was synced, and so on up to the root. A [`Batch`] collects what a request needs and does each
//! kind of step for all of it together, so that a journaling file system commits twice for a batch and
//! not once for each file and directory; requests that need the same directory at the same time share
//! one sync of it. What this process has synced itself is remembered; nothing else is trusted, for
//! another process, or this one before a crash, may have left it in memory only.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::cache::Cache;
use super::paths;
use crate::fs::{File, Fs, FsError, Result, Stamp};

/// How many syncs a batch waits for at the same time, beside its own thread's.
const AT_ONCE: usize = 7;
/// How often directories are made for one name while somebody else removes empty ones.
pub(super) const TRIES: usize = 16;
/// Stack of a thread that syncs, in bytes.
const STACK: usize = 64 << 10;

/// What this process knows to be durable.
#[derive(Debug)]
pub(crate) struct Durable {
    fs: Fs,
    syncs: Mutex<Syncs>,
    turn: Condvar,
    /// Directories with a durable name.
    dirs: Cache<String, ()>,
    /// Files with the state in which they were made durable.
    files: Cache<String, Stamp>,
}

#[derive(Debug, Default)]
struct Syncs {
    under_way: HashMap<String, Rounds>,
    /// Files and directories whose sync failed. What the kernel could not write it may have dropped,
    /// and the next sync of the same thing would report success: they stay untrusted until the
    /// process is started again.
    failed: HashMap<String, FsError>,
}

/// Syncs of one directory, numbered from 1. One runs at a time.
#[derive(Debug, Default)]
struct Rounds {
    running: bool,
    started: u64,
    finished: u64,
    failed: Option<(u64, FsError)>,
    waiting: usize,
}

impl Durable {
    pub(crate) fn new(fs: Fs) -> Self {
        Self {
            fs,
            syncs: Mutex::default(),
            turn: Condvar::new(),
            dirs: Cache::new(8_192),
            files: Cache::new(16_384),
        }
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch {
            durable: self,
            staged: Vec::new(),
            required: Vec::new(),
            dirs: BTreeSet::new(),
            known: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Forgets a file or a directory with all in it, because it is being removed.
    pub(crate) fn forget(&self, path: &str) {
        let beneath = |key: &String| {
            key.strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.dirs.retain(|key| !beneath(key));
        self.files.retain(|key| !beneath(key));
    }

    /// Forgets one file and the directory around it, which are being removed.
    pub(crate) fn forget_file(&self, path: &str) {
        self.files.remove(path);
        self.dirs.remove(paths::parent(path));
    }

    /// Forgets that one directory has a durable name.
    pub(crate) fn forget_dir(&self, dir: &str) {
        self.dirs.remove(dir);
    }

    /// Forgets that the directories above `path` are there.
    fn doubt(&self, path: &str) {
        let mut dir = paths::parent(path);
        while dir != "." {
            self.dirs.remove(dir);
            dir = paths::parent(dir);
        }
    }

    /// Syncs one directory, with a sync that begins after this call.
    fn sync_dir(&self, path: &str) -> Result<()> {
        let mut syncs = self.lock();
        if let Some(error) = syncs.failed.get(path) {
            return Err(error.clone());
        }
        let rounds = syncs.under_way.entry(path.to_owned()).or_default();
        let mine = rounds.started + 1;
        rounds.waiting += 1;
        let outcome = loop {
            let rounds = syncs.under_way.entry(path.to_owned()).or_default();
            if rounds.finished >= mine {
                let failed = rounds.failed.as_ref().filter(|(round, _)| *round >= mine);
                break failed.map_or(Ok(()), |(_, error)| Err(error.clone()));
            }
            if rounds.running {
                syncs = self
                    .turn
                    .wait(syncs)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            let round = rounds.started;
            drop(syncs);
            let done = self.fs.sync_dir(path);
            syncs = self.lock();
            let rounds = syncs.under_way.entry(path.to_owned()).or_default();
            rounds.running = false;
            rounds.finished = round;
            if let Err(error) = &done {
                rounds.failed = Some((round, error.clone()));
                syncs.distrust(path, error);
            }
            self.turn.notify_all();
        };
        if let Some(rounds) = syncs.under_way.get_mut(path) {
            rounds.waiting -= 1;
            if rounds.waiting == 0 {
                syncs.under_way.remove(path);
            }
        }
        outcome
    }

    /// Syncs a file that another request or process wrote.
    fn sync_file(&self, path: &str) -> Result<()> {
        if let Some(error) = self.lock().failed.get(path) {
            return Err(error.clone());
        }
        let (file, _) = self.fs.open_file(path)?;
        file.sync()
            .inspect_err(|error| self.lock().distrust(path, error))
    }

    /// Syncs several things at the same time: waiting for one commit of a journal, they share it.
    fn together<T: Copy + Send + Sync>(
        &self,
        things: &[T],
        sync: impl Fn(T) -> Result<()> + Sync,
    ) -> Result<()> {
        let Some((&last, others)) = things.split_last() else {
            return Ok(());
        };
        if self.fs.is_watched() {
            // Tests want one order.
            return things.iter().try_for_each(|&thing| sync(thing));
        }
        std::thread::scope(|scope| {
            let sync = &sync;
            let chunk = others.len().div_ceil(AT_ONCE).max(1);
            let begun: Vec<_> = others
                .chunks(chunk)
                .map(|things| {
                    let work = move || things.iter().try_for_each(|&thing| sync(thing));
                    let thread = std::thread::Builder::new().stack_size(STACK);
                    thread.spawn_scoped(scope, work).map_err(|_| work)
                })
                .collect();
            let mut done = sync(last);
            for thread in begun {
                let other = match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|_| Err(self.fs.interrupted())),
                    // No thread to be had: one after the other, then.
                    Err(work) => work(),
                };
                done = done.and(other);
            }
            done
        })
    }

    fn lock(&self) -> MutexGuard<'_, Syncs> {
        self.syncs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Syncs {
    fn distrust(&mut self, path: &str, error: &FsError) {
        // A full disk is told before anything is dropped; trying again later is right.
        if !error.is_no_space() {
            self.failed.insert(path.to_owned(), error.clone());
        }
    }
}

/// A file with its whole content that waits for its name.
#[derive(Debug)]
pub(crate) struct Staged {
    file: Arc<File>,
    /// Whether the name that it has meanwhile goes when nothing comes of it.
    temporary: bool,
}

impl Staged {
    /// A file under a name that nobody looks at.
    pub(crate) fn temporary(file: File) -> Self {
        Self {
            file: Arc::new(file),
            temporary: true,
        }
    }

    /// A file that belongs to somebody who will remove it.
    pub(crate) fn owned(file: Arc<File>) -> Self {
        Self {
            file,
            temporary: false,
        }
    }

    /// The file.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = self.file.remove()
        {
            tracing::warn!(%error, "a temporary file stays until the next start");
        }
    }
}

/// A file whose content is to be synced.
#[derive(Clone, Copy)]
enum Content<'b> {
    New(&'b File),
    Old(&'b str),
}

/// Names that one request makes or relies on. Nothing happens before [`Batch::commit`].
#[derive(Debug)]
pub(crate) struct Batch<'d> {
    durable: &'d Durable,
    staged: Vec<(Staged, String)>,
    required: Vec<(String, Stamp)>,
    /// Directories to sync.
    dirs: BTreeSet<String>,
    /// Directories whose names will be durable with that.
    known: Vec<String>,
    /// Files that will be durable with that.
    files: Vec<(String, Stamp)>,
}

impl Batch<'_> {
    /// Asks for a file to get the name `to`, over whatever file has it.
    pub(crate) fn place(&mut self, staged: Staged, to: String) {
        self.staged.push((staged, to));
    }

    /// Asks for a file that is there already, in the state seen, to be durable with its name.
    pub(crate) fn require(&mut self, path: String, stamp: Stamp) {
        if self.durable.files.get(path.as_str()) != Some(stamp) {
            self.required.push((path, stamp));
        }
    }

    /// Asks for a directory to be synced because a name in it was removed.
    pub(crate) fn removed_from(&mut self, dir: &str) {
        self.dirs.insert(dir.to_owned());
    }

    /// Does all of it. After an error nothing of it may be promised.
    ///
    /// What a failed batch has placed stays: another request may have found it and made it durable for
    /// itself. It is whole, and garbage until then.
    pub(crate) fn commit(mut self) -> Result<()> {
        let durable = self.durable;
        let staged = self
            .staged
            .iter()
            .map(|(staged, _)| Content::New(&staged.file));
        // Of a file that is there already the writer may not have come to the sync yet, or have none.
        let required = self.required.iter().map(|(path, _)| Content::Old(path));
        let contents: Vec<_> = staged.chain(required).collect();
        durable.together(&contents, |content| match content {
            Content::New(file) => file.sync(),
            Content::Old(path) => durable.sync_file(path),
        })?;
        for (path, stamp) in std::mem::take(&mut self.required) {
            self.want(&path);
            self.files.push((path, stamp));
        }
        for (mut staged, to) in std::mem::take(&mut self.staged) {
            self.rename(staged.file.path(), &to)?;
            staged.temporary = false;
        }
        let dirs: Vec<_> = self.dirs.iter().collect();
        durable.together(&dirs, |dir| durable.sync_dir(dir))?;
        for dir in self.known {
            self.durable.dirs.insert(dir, (), 1);
        }
        for (file, stamp) in self.files {
            self.durable.files.insert(file, stamp, 1);
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let mut tries = 1;
        loop {
            let placed = self
                .make_dirs(paths::parent(to))
                .and_then(|()| self.durable.fs.rename(from, to));
            match placed {
                // A directory went away since it was last seen or made, with an emptied repository
                // perhaps.
                Err(error) if error.is_not_found() && tries < TRIES => {
                    tries += 1;
                    self.durable.doubt(to);
                }
                placed => break placed?,
            }
        }
        self.dirs.insert(paths::parent(to).to_owned());
        if let Some(stat) = self.durable.fs.stat_known(to)? {
            self.files.push((to.to_owned(), stat.stamp));
        }
        Ok(())
    }

    fn make_dirs(&mut self, dir: &str) -> Result<()> {
        // Synced even where it was there: whoever made it may not have come to that.
        for made in self.want_dirs(dir).into_iter().rev() {
            self.durable.fs.mkdir(made)?;
        }
        Ok(())
    }

    /// Asks for the name of an existing file to be durable.
    fn want(&mut self, path: &str) {
        self.dirs.insert(paths::parent(path).to_owned());
        self.want_dirs(paths::parent(path));
    }

    /// Asks for a directory's name to be durable, and for those above it. Returns those of which it is
    /// not known, from the lowest.
    fn want_dirs<'p>(&mut self, dir: &'p str) -> Vec<&'p str> {
        let mut unknown = Vec::new();
        let mut at = dir;
        while at != "." && self.durable.dirs.get(at).is_none() {
            self.dirs.insert(paths::parent(at).to_owned());
            self.known.push(at.to_owned());
            unknown.push(at);
            at = paths::parent(at);
        }
        unknown
    }
}

#[cfg(test)]
mod tests;
