//! Removal of unpacked layers in the background: it takes seconds, and nobody needs to wait.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
};

use crate::unpack::remove::remove_tree_while;

/// How directories start that are on their way out.
const GONE: &str = "gone-";

/// Removes directories of one parent. Dropped, it stops where it is; what is left is found by the
/// next opening of the store.
#[derive(Debug)]
pub(super) struct Sweeper {
    directory: PathBuf,
    serial: AtomicU64,
    stop: Arc<AtomicBool>,
    worker: Mutex<Option<(Sender<OsString>, JoinHandle<()>)>>,
}

impl Sweeper {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            serial: AtomicU64::new(0),
            stop: Arc::default(),
            worker: Mutex::new(None),
        }
    }

    /// Takes `name` out of sight at once, and removes it later. Absent is fine.
    pub(super) fn discard(&self, name: &OsStr) {
        let mut gone = OsString::from(name);
        if !name.as_bytes().starts_with(GONE.as_bytes()) {
            loop {
                let serial = self.serial.fetch_add(1, Ordering::Relaxed);
                gone = OsString::from(format!("{GONE}{serial}"));
                // Leftovers of an earlier life have such names too.
                if fs::symlink_metadata(self.directory.join(&gone)).is_err() {
                    break;
                }
            }
            if fs::rename(self.directory.join(name), self.directory.join(&gone)).is_err() {
                return;
            }
        }
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_none() {
            let (sender, names) = channel::<OsString>();
            let (directory, stop) = (self.directory.clone(), self.stop.clone());
            let started = thread::Builder::new().name("sweep".into()).spawn(move || {
                while let Ok(name) = names.recv() {
                    sweep(&directory, &name, &stop);
                }
            });
            *worker = started.ok().map(|thread| (sender, thread));
        }
        if let Some((sender, _)) = &*worker {
            let _ = sender.send(gone);
        }
    }

    /// Waits until everything discarded is gone.
    pub(super) fn finish(&self) {
        let worker = self
            .worker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((sender, thread)) = worker {
            drop(sender);
            let _ = thread.join();
        }
    }
}

fn sweep(directory: &Path, name: &OsStr, stop: &AtomicBool) {
    let go_on = || !stop.load(Ordering::Relaxed);
    if !go_on() {
        return;
    }
    let removed = File::open(directory)
        .and_then(|parent| Ok(remove_tree_while(parent.as_fd(), name.as_bytes(), go_on)?));
    if let Err(error) = removed {
        let path = directory.join(name);
        eprintln!("vdkr-agent: cannot remove {}: {error}", path.display());
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.finish();
    }
}
