//! Containers with a life of their own: what is known of them ([`record`]), how they live
//! ([`life`], [`process`]), what they write ([`log`], [`streams`]).
//!
//! ```text
//! containers/<id>/container.json   the record; a directory without one is swept at the start
//! containers/<id>/upper/           what the container has written to its root
//! containers/<id>/log, log.1       what it has written to its streams
//! ```
//!
//! A record is replaced as a whole, so that a crash at any moment leaves the old one or the new
//! one. A container that goes away at its end (`--rm`) never has one.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    rc::{Rc, Weak},
    sync::Arc,
};

use tokio::{
    sync::{Mutex, Notify},
    task::spawn_blocking,
};
use vdkr_core::{
    channel::{
        frame::Resize,
        message::{ContainerState, Failure, FailureCode, RegistrySettings, RunRequest},
    },
    container::name::{self, NameError},
};

use crate::{
    share::ShareUse,
    store::{Store, StoredImage},
};

mod ending;
pub mod freeze;
pub mod life;
pub mod log;
pub mod process;
pub mod record;
pub mod streams;

use log::Log;
use process::Live;
use record::{Record, Status};
use streams::Hub;

/// Every container of this machine.
#[derive(Debug)]
pub struct Book {
    dir: PathBuf,
    entries: RefCell<BTreeMap<String, Rc<Entry>>>,
    /// Containers that are being made.
    coming: RefCell<Vec<Weak<Coming>>>,
    /// Containers that have ended and whose remains still hold their image.
    pub cleaning: Cell<u64>,
}

/// A container that is being made: while this lives, nobody else gets its name, and its volumes stay.
#[derive(Debug)]
pub struct Coming {
    id: String,
    name: String,
    volumes: RefCell<Vec<String>>,
}

impl Coming {
    /// Has a volume stay for this container.
    pub fn has(&self, volume: &str) {
        self.volumes.borrow_mut().push(volume.to_owned());
    }
}

/// One container.
pub struct Entry {
    /// 64 hex digits.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What is known of it.
    pub record: RefCell<Record>,
    /// What it has written.
    pub log: Log,
    /// Hosts that see its streams.
    pub hub: Hub,
    /// Keeps what the host shares with it.
    pub shares: RefCell<Vec<ShareUse>>,
    /// The host has led its ports here for the next start.
    pub placed: Cell<bool>,
    /// Its image, as long as that is there.
    pub image: Option<StoredImage>,
    /// Its process.
    live: RefCell<Option<Rc<Live>>>,
    /// The last size of a host's window.
    size: Cell<Option<Resize>>,
    /// Somebody starts it, or it lives, or it is cleaned up.
    gate: Arc<Mutex<()>>,
    /// From the start until there is no process and no output to come.
    active: Cell<bool>,
    /// It was taken out of the book.
    removed: Cell<bool>,
    /// Something of the above has changed.
    changed: Notify,
    /// It shall stop and not start again.
    halt: Cell<bool>,
    halted: Notify,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Book {
    /// Reads the containers of the state directory. Gives, beside them, the directories that
    /// belong to none.
    pub fn open(dir: PathBuf, store: &Store) -> io::Result<(Self, Vec<PathBuf>)> {
        let mut entries = BTreeMap::new();
        let mut leftovers = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for path in list(&dir)? {
            match Record::load(&path) {
                Ok(mut record) => {
                    // A crash between two renames cannot give one name twice; a hand could.
                    if !names.insert(record.name.clone()) {
                        record.name.clone_from(&record.id);
                    }
                    let entry = Entry::new(path, record, store);
                    entries.insert(entry.id.clone(), Rc::new(entry));
                }
                // The rest of one that was being made or removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => leftovers.push(path),
                // A disk that fails, or a record of a later version: its data are not ours to remove.
                Err(error) => {
                    eprintln!("vdkr-agent: {} is left alone: {error}", path.display());
                }
            }
        }
        let book = Self {
            dir,
            entries: RefCell::new(entries),
            coming: RefCell::default(),
            cleaning: Cell::new(0),
        };
        Ok((book, leftovers))
    }

    /// A book of a machine that cannot keep anything.
    pub fn empty(dir: PathBuf) -> Self {
        Self {
            dir,
            entries: RefCell::default(),
            coming: RefCell::default(),
            cleaning: Cell::new(0),
        }
    }

    /// The container that a name or the start of an id means.
    pub fn find(&self, wanted: &str) -> Result<Rc<Entry>, Failure> {
        let entries = self.entries.borrow();
        let names: Vec<_> = entries
            .iter()
            .map(|(id, entry)| (id.as_str(), entry.name()))
            .collect();
        let id = name::find(wanted, names.iter().map(|(id, name)| (*id, name.as_str())))
            .map_err(|error| name_failure(&error))?;
        entries
            .get(id)
            .cloned()
            .ok_or_else(|| name_failure(&NameError::Unknown(wanted.to_owned())))
    }

    /// All containers, the newest first.
    pub fn all(&self) -> Vec<Rc<Entry>> {
        let mut all: Vec<_> = self.entries.borrow().values().cloned().collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.record.borrow().created_ms));
        all
    }

    /// How many run.
    pub fn running(&self) -> u64 {
        self.entries
            .borrow()
            .values()
            .filter(|entry| entry.active.get())
            .count() as u64
    }

    /// Begins to make a container of this name, or one of its own.
    pub fn begin(&self, name: Option<&str>) -> Result<Rc<Coming>, Failure> {
        let id = crate::run::container::new_id().map_err(io_failure("make a container id"))?;
        let name = if let Some(name) = name {
            self.free_name(name)?
        } else {
            let digits = id.get(..16);
            let random = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            name::random(random.unwrap_or_default(), |name| self.has_name(name))
        };
        let coming = Rc::new(Coming {
            id,
            name,
            volumes: RefCell::default(),
        });
        let mut others = self.coming.borrow_mut();
        others.retain(|other| other.strong_count() > 0);
        others.push(Rc::downgrade(&coming));
        Ok(coming)
    }

    /// A new container of an image. It is on the disk, unless it goes away at its end; nobody finds it
    /// before. Others are served while the disk writes.
    pub async fn add(
        &self,
        coming: Rc<Coming>,
        image: StoredImage,
        request: &RunRequest,
    ) -> Result<Rc<Entry>, Failure> {
        let dir = self.dir.join(&coming.id);
        let record = Record::new(
            coming.id.clone(),
            coming.name.clone(),
            image.id.clone(),
            image.config.clone(),
            request,
        );
        let (made, written) = (dir.clone(), record.clone());
        let write = spawn_blocking(move || {
            make_private(&made).map_err(io_failure("make the container's directory"))?;
            if !written.passing()
                && let Err(error) = written.save(&made, true)
            {
                let _ = fs::remove_dir_all(&made);
                return Err(io_failure("write the container's record")(error));
            }
            Ok(())
        });
        write
            .await
            .map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))??;
        let entry = Rc::new(Entry::with_image(dir, record, Some(image)));
        let id = entry.id.clone();
        self.entries.borrow_mut().insert(id, entry.clone());
        Ok(entry)
    }

    /// Whether a container that is being made has this volume.
    pub fn is_coming_with(&self, volume: &str) -> bool {
        let coming = self.coming.borrow();
        let mut coming = coming.iter().filter_map(Weak::upgrade);
        coming.any(|one| one.volumes.borrow().iter().any(|other| other == volume))
    }

    /// Gives a container another name.
    pub fn rename(&self, entry: &Entry, new_name: &str) -> Result<(), Failure> {
        let new_name = self.free_name(new_name)?;
        entry.record.borrow_mut().name = new_name;
        entry.save();
        Ok(())
    }

    /// Checks that a name is legal and nobody's.
    fn free_name(&self, name: &str) -> Result<String, Failure> {
        let name = name::check(name).map_err(|error| name_failure(&error))?;
        let entries = self.entries.borrow();
        if let Some(owner) = entries.values().find(|entry| entry.name() == name) {
            let short = name::short(&owner.id);
            return Err(Failure::new(
                FailureCode::Failed,
                format!("the name {name:?} is in use by container {short}"),
            )
            .with_hint("remove or rename that container to reuse the name"));
        }
        if self.is_coming(name) {
            return Err(Failure::new(
                FailureCode::Failed,
                format!("the name {name:?} is in use by a container that is being made"),
            )
            .with_hint("remove or rename that container to reuse the name"));
        }
        Ok(name.to_owned())
    }

    fn has_name(&self, name: &str) -> bool {
        let entries = self.entries.borrow();
        entries.values().any(|entry| entry.name() == name) || self.is_coming(name)
    }

    fn is_coming(&self, name: &str) -> bool {
        let coming = self.coming.borrow();
        let mut coming = coming.iter().filter_map(Weak::upgrade);
        coming.any(|one| one.name == name)
    }

    /// Takes a container out; its directory is the caller's to remove.
    fn forget(&self, entry: &Entry) {
        if let Err(error) = Record::forget(&entry.dir) {
            eprintln!("vdkr-agent: {}: {error}", entry.dir.display());
        }
        entry.removed.set(true);
        self.entries.borrow_mut().remove(&entry.id);
        entry.tell();
    }
}

impl Entry {
    fn new(dir: PathBuf, record: Record, store: &Store) -> Self {
        let image = store
            .resolve(record.image.as_ref(), &RegistrySettings::default())
            .ok();
        Self::with_image(dir, record, image)
    }

    fn with_image(dir: PathBuf, record: Record, image: Option<StoredImage>) -> Self {
        Self {
            id: record.id.clone(),
            log: Log::new(&dir),
            hub: Hub::default(),
            shares: RefCell::default(),
            placed: Cell::new(false),
            image,
            record: RefCell::new(record),
            live: RefCell::default(),
            size: Cell::default(),
            gate: Arc::default(),
            active: Cell::new(false),
            removed: Cell::new(false),
            changed: Notify::new(),
            halt: Cell::new(false),
            halted: Notify::new(),
            dir,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.record.borrow().name.clone()
    }

    /// What it is doing.
    pub fn state(&self) -> ContainerState {
        self.record.borrow().status.state
    }

    /// Whether it was removed.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Whether there is a process, or one to come, or output to come.
    pub fn is_active(&self) -> bool {
        self.active.get()
    }

    /// Its process, if it has one now.
    pub fn live(&self) -> Option<Rc<Live>> {
        self.live.borrow().clone()
    }

    /// Its process, or the failure that the host gets.
    pub fn running(&self) -> Result<Rc<Live>, Failure> {
        let not = |what: &str| {
            let name = self.name();
            Failure::new(FailureCode::Failed, format!("container {name} is {what}"))
        };
        match (self.live(), self.state()) {
            (_, ContainerState::Paused) => {
                Err(not("paused").with_hint("let it go on with: vdkr unpause"))
            }
            (Some(live), ContainerState::Running) => Ok(live),
            _ => Err(not("not running").with_hint("start it with: vdkr start")),
        }
    }

    /// Changes how it does, here and on the disk.
    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.record.borrow_mut().status);
        self.save();
        self.tell();
    }

    fn save(&self) {
        let record = self.record.borrow();
        if record.passing() || self.removed.get() {
            return;
        }
        // What cannot be written is known as long as the agent lives.
        if let Err(error) = record.save(&self.dir, false) {
            eprintln!("vdkr-agent: {}: {error}", self.dir.display());
        }
    }

    fn tell(&self) {
        self.changed.notify_waiters();
        self.log.grown.notify_waiters();
    }

    /// Waits until `done` says so.
    async fn until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            if done(self) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until it has ended, with all its output, and does not start again.
    pub async fn ended(&self) {
        self.until(|entry| !entry.active.get()).await;
    }

    /// Keeps it from starting; waits until it has ended and was cleaned up.
    pub async fn lock(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.gate.clone().lock_owned().await
    }

    /// Sends a signal to its first process.
    pub fn signal(&self, number: u8) -> io::Result<()> {
        match self.live() {
            Some(live) => live.container.signal(number),
            None => Ok(()),
        }
    }

    /// Has it end for good: it will not start again. `by_user` tells that from the machine's end.
    fn halt(&self, by_user: bool) {
        self.halt.set(true);
        if by_user {
            self.record.borrow_mut().status.stopped_by_user = true;
            self.save();
        }
        self.halted.notify_waiters();
    }

    /// Kills it for good.
    pub fn kill(&self, by_user: bool) {
        self.halt(by_user);
        if let Some(live) = self.live() {
            live.container.kill();
        }
    }

    /// Tells the programs on its terminal the size of the user's window.
    pub fn resize(&self, size: Resize) {
        self.size.set(Some(size));
        if let Some(live) = self.live() {
            live.resize(size);
        }
    }
}

fn io_failure(step: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(FailureCode::Failed, format!("{step}: {error}"))
}

fn name_failure(error: &NameError) -> Failure {
    let code = match error {
        NameError::Unknown(_) => FailureCode::NotFound,
        NameError::Illegal(_) | NameError::Ambiguous(_) => FailureCode::Usage,
    };
    Failure::new(code, error.to_string())
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(test)]
mod tests;
