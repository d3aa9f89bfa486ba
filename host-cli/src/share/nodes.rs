//! What the guest knows: numbers for files and directories.
//!
//! A node is found again by an open handle, or by its directory and name when the handle was
//! given back; then it must still be the same file. Open handles are few, names are many.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat, fstat, openat},
    io::Errno,
};
use vdkr_core::fuse::ROOT;

use super::{
    Limits,
    budget::{Budget, Slot},
};

/// For a place in the file system and nothing else.
pub(super) const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Directories between a node and the next one that is open.
const MAX_DEPTH: usize = 1024;

/// Which file it is, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dev: u64,
    ino: u64,
    kind: u32,
}

impl Key {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            kind: stat.st_mode & 0o170_000,
        }
    }

    pub(super) fn kind(self) -> FileType {
        FileType::from_raw_mode(self.kind)
    }
}

/// What a file that had settled looked like when the guest opened it last: times and size.
pub(super) type Version = (i64, u64, i64, u64, u64);

/// A handle that stays open between requests.
#[derive(Debug)]
struct Held {
    fd: Arc<OwnedFd>,
    _slot: Slot,
}

#[derive(Debug)]
struct Node {
    key: Key,
    parent: u64,
    name: Box<[u8]>,
    /// How often the guest heard of it.
    lookups: u64,
    fd: Option<Held>,
    /// Open handles of the guest; the node stays open with them.
    opens: u32,
    /// It has lost its name, and only `fd` leads to it.
    nameless: bool,
    /// Used since the sweep last came by.
    fresh: bool,
    version: Option<Version>,
}

/// The table of nodes.
#[derive(Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "the table of nodes is the one of them"
)]
pub(super) struct Nodes {
    root: Arc<OwnedFd>,
    root_key: Key,
    nodes: HashMap<u64, Node>,
    numbers: HashMap<Key, u64>,
    last: u64,
    /// Nodes that may be open, in the order of opening.
    held: VecDeque<u64>,
    nameless: usize,
    limits: Limits,
    budget: Arc<Budget>,
}

impl Nodes {
    pub(super) fn new(root: OwnedFd, limits: Limits, budget: Arc<Budget>) -> Result<Self, Errno> {
        let root_key = Key::of(&fstat(&root)?);
        Ok(Self {
            root: Arc::new(root),
            root_key,
            nodes: HashMap::new(),
            numbers: HashMap::new(),
            last: ROOT,
            held: VecDeque::new(),
            nameless: 0,
            limits,
            budget,
        })
    }

    /// The root.
    pub(super) fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root)
    }

    /// A node's handle, opened again when it was given back.
    pub(super) fn fd(&mut self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        // Down from the next directory that is open.
        let mut way = Vec::new();
        let mut at = number;
        let mut fd = loop {
            if at == ROOT {
                break self.root();
            }
            let node = self.nodes.get_mut(&at).ok_or(Errno::STALE)?;
            node.fresh = true;
            if let Some(held) = &node.fd {
                break Arc::clone(&held.fd);
            }
            if way.len() >= MAX_DEPTH {
                return Err(Errno::STALE);
            }
            way.push(at);
            at = node.parent;
        };
        while let Some(at) = way.pop() {
            fd = self.reopen(at, &fd)?;
        }
        Ok(fd)
    }

    fn reopen(&mut self, number: u64, parent: &OwnedFd) -> Result<Arc<OwnedFd>, Errno> {
        let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
        let (key, name) = (node.key, node.name.clone());
        let fd = self
            .open_place(parent, &name)
            .map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => Errno::STALE,
                error => error,
            })?;
        if Key::of(&fstat(&fd)?) != key {
            return Err(Errno::STALE);
        }
        let fd = Arc::new(fd);
        self.hold(number, Arc::clone(&fd));
        Ok(fd)
    }

    /// Opens an entry as a place, giving back handles when there are too many.
    fn open_place(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
        match openat(directory, name, PLACE, Mode::empty()) {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.give_back(0);
                self.budget.reclaim();
                openat(directory, name, PLACE, Mode::empty())
            }
            opened => opened,
        }
    }

    /// Keeps a node's handle, unless there is no room; then it is opened again when it is used.
    fn hold(&mut self, number: u64, fd: Arc<OwnedFd>) {
        let closed = |node: &Node| node.fd.is_none();
        if !self.nodes.get(&number).is_some_and(closed) {
            return;
        }
        let slot = self.slot();
        if let Some(node) = self.nodes.get_mut(&number)
            && let Some(slot) = slot
        {
            node.fd = Some(Held { fd, _slot: slot });
            node.fresh = true;
            self.held.push_back(number);
            self.give_back(self.limits.held);
        }
    }

    fn slot(&mut self) -> Option<Slot> {
        let slot = self.budget.slot().or_else(|| {
            self.give_back(self.held.len() / 2);
            self.budget.slot()
        });
        slot.or_else(|| {
            self.budget.reclaim();
            self.budget.slot()
        })
    }

    /// Gives handles back until at most so many are left, those that were used lately last.
    /// Open and nameless files keep theirs.
    pub(super) fn give_back(&mut self, left: usize) {
        let mut turns = 2 * self.held.len();
        while self.held.len() > left && turns > 0 {
            turns -= 1;
            let Some(number) = self.held.pop_front() else {
                return;
            };
            let Some(node) = self.nodes.get_mut(&number).filter(|node| node.fd.is_some()) else {
                continue;
            };
            if node.opens > 0 || node.nameless || std::mem::take(&mut node.fresh) {
                self.held.push_back(number);
            } else {
                node.fd = None;
            }
        }
    }

    /// The guest hears of an entry. Gives the node's number.
    pub(super) fn learn(
        &mut self,
        parent: u64,
        name: &[u8],
        stat: &Stat,
        fd: Option<OwnedFd>,
    ) -> Result<u64, Errno> {
        let key = Key::of(stat);
        let number = match self.numbers.get(&key) {
            Some(&number) => number,
            None if self.nodes.len() >= self.limits.nodes => return Err(Errno::NFILE),
            None => {
                self.last += 1;
                self.numbers.insert(key, self.last);
                self.last
            }
        };
        let node = self.nodes.entry(number).or_insert_with(|| Node {
            key,
            parent,
            name: Box::default(),
            lookups: 0,
            fd: None,
            opens: 0,
            nameless: false,
            fresh: false,
            version: None,
        });
        node.lookups = node.lookups.saturating_add(1);
        node.parent = parent;
        if *node.name != *name {
            node.name = name.into();
        }
        if std::mem::take(&mut node.nameless) {
            self.nameless -= 1;
        }
        if let Some(fd) = fd {
            self.hold(number, Arc::new(fd));
        }
        Ok(number)
    }

    /// The guest no longer knows a node so many times.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return;
        }
        if let Some(node) = self.nodes.remove(&number) {
            self.nameless -= usize::from(node.nameless);
            if self.numbers.get(&node.key) == Some(&number) {
                self.numbers.remove(&node.key);
            }
        }
        // Numbers of forgotten nodes are not left to pile up.
        if self.held.len() > 2 * self.limits.held {
            let nodes = &self.nodes;
            self.held
                .retain(|number| nodes.get(number).is_some_and(|node| node.fd.is_some()));
        }
    }

    /// A handle of a node was opened (`true`) or closed.
    pub(super) fn opened(&mut self, number: u64, opened: bool) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.opens = if opened {
                node.opens.saturating_add(1)
            } else {
                node.opens.saturating_sub(1)
            };
        }
    }

    /// Remembers what a file looks like, and says whether it looked so before. None for one that
    /// may change without looking different: nothing is remembered of it.
    pub(super) fn same_version(&mut self, number: u64, version: Option<Version>) -> bool {
        let Some(node) = self.nodes.get_mut(&number) else {
            return false;
        };
        let before = std::mem::replace(&mut node.version, version);
        version.is_some() && before == version
    }

    /// What kind of file a node is.
    pub(super) fn kind(&self, number: u64) -> Result<FileType, Errno> {
        if number == ROOT {
            return Ok(self.root_key.kind());
        }
        let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
        Ok(node.key.kind())
    }

    /// An entry is about to lose its name: a node that the guest knows stays open, so that whoever
    /// has it open there still reaches it. Gives the node's number.
    pub(super) fn keep(&mut self, directory: &OwnedFd, name: &[u8]) -> Option<u64> {
        let fd = self.open_place(directory, name).ok()?;
        let key = Key::of(&fstat(&fd).ok()?);
        let number = *self.numbers.get(&key)?;
        self.hold(number, Arc::new(fd));
        let room = self.nameless < self.limits.nameless;
        let node = self.nodes.get_mut(&number)?;
        if room && node.fd.is_some() && !node.nameless {
            node.nameless = true;
            self.nameless += 1;
        }
        Some(number)
    }

    /// A node has this name now; it had kept none, or another.
    pub(super) fn named(&mut self, number: Option<u64>, parent: u64, name: &[u8]) {
        if let Some(node) = number.and_then(|number| self.nodes.get_mut(&number)) {
            node.parent = parent;
            node.name = name.into();
            if std::mem::take(&mut node.nameless) {
                self.nameless -= 1;
            }
        }
    }

    /// How many nodes there are, and how many of them are open.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        let open = self.nodes.values().filter(|node| node.fd.is_some()).count();
        (self.nodes.len(), open)
    }
}

/// The path by which a handle's file can be opened, or changed, for itself.
pub(super) fn own_path(fd: &impl AsFd) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
