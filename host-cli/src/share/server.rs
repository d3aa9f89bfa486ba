//! Answers the requests of one shared directory.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;
use vdkr_core::fuse::{
    Answer, Init, InitAnswer, MAJOR, MAX_DATA, MIN_MINOR, Operation, Request, RequestError, errno,
    init_flag,
};

use super::{
    Limits, Source,
    budget::{Budget, Slot},
    handles::{Handle, Handles},
    nodes::Nodes,
};

/// Capabilities that are used when the kernel has them.
const WANTED: u32 = init_flag::ASYNC_READ
    | init_flag::ATOMIC_O_TRUNC
    | init_flag::BIG_WRITES
    | init_flag::AUTO_INVAL_DATA
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::HANDLE_KILLPRIV_V2;
/// Requests that the kernel has under way in the background, such as reads ahead.
const BACKGROUND: u16 = 16;
/// Pages in a request where the kernel has no say about it.
const OLD_PAGES: u16 = 32;

/// What a request comes to: the whole answer, or an error number.
pub(super) type Result<T = Vec<u8>> = std::result::Result<T, Errno>;

/// Serves one directory or file. All methods may be called from several threads at a time.
#[derive(Debug)]
pub struct Server {
    pub(super) owner: Owner,
    budget: Arc<Budget>,
    nodes: Arc<Mutex<Nodes>>,
    handles: Mutex<Handles>,
    read_only: bool,
}

/// Whose files appear as the guest's root's.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gids: Vec<u32>,
    /// The device of the shared directory: inode numbers of others are told apart.
    pub(super) dev: u64,
    /// Its file system says all about a write at the write: nothing is left for the closing.
    pub(super) local: bool,
}

/// Whether closing a file of this file system says nothing new: it does on those of networks, which
/// write later, and on those that are not known.
fn is_local(place: &OwnedFd) -> bool {
    const LOCAL: [u64; 6] = [
        0xef53,      // ext2 to ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
        0x2fc1_2fc1, // ZFS
        0x0102_1994, // tmpfs
    ];
    // The field has another width on other machines.
    let kind = |stat: rustix::fs::StatFs| u64::try_from(stat.f_type).unwrap_or_default();
    rustix::fs::fstatfs(place).is_ok_and(|stat| LOCAL.contains(&kind(stat)))
}

impl Server {
    /// A server of this directory or file.
    pub fn new(source: Source, read_only: bool, limits: Limits) -> std::io::Result<Self> {
        Self::with_budget(source, read_only, limits, Budget::of_this_process())
    }

    pub(super) fn with_budget(
        source: Source,
        read_only: bool,
        limits: Limits,
        budget: Arc<Budget>,
    ) -> std::io::Result<Self> {
        let mut gids = vec![rustix::process::getegid().as_raw()];
        gids.extend(rustix::process::getgroups()?.iter().map(|gid| gid.as_raw()));
        let dev = rustix::fs::fstat(&source.fd)?.st_dev;
        let local = is_local(&source.fd);
        let nodes = Nodes::new(source.fd, limits, Arc::clone(&budget))?;
        let nodes = Arc::new(Mutex::new(nodes));
        budget.add(&nodes);
        Ok(Self {
            owner: Owner {
                uid: rustix::process::geteuid().as_raw(),
                gids,
                dev,
                local,
            },
            budget,
            nodes,
            handles: Mutex::new(Handles::new(limits.handles)),
            read_only,
        })
    }

    /// Answers one message; `None` when it wants no answer. The error means that the guest breaks
    /// the protocol.
    pub fn answer(&self, message: &[u8]) -> std::result::Result<Option<Vec<u8>>, RequestError> {
        let request = match Request::parse(message) {
            Ok(request) => request,
            Err(RequestError::Malformed { unique, errno, .. }) => {
                return Ok(Some(Answer::error(unique, errno)));
            }
            Err(error) => return Err(error),
        };
        match request.operation {
            Operation::Forget { lookups } => {
                self.nodes().forget(request.node, lookups);
                return Ok(None);
            }
            Operation::BatchForget(forgets) => {
                let mut nodes = self.nodes();
                for (node, lookups) in forgets {
                    nodes.forget(node, lookups);
                }
                return Ok(None);
            }
            // Nothing here takes long enough to be given up.
            Operation::Interrupt { .. } => return Ok(None),
            _ => {}
        }
        let unique = request.unique;
        let answered = if self.read_only && request.operation.changes() {
            Err(Errno::ROFS)
        } else {
            self.carry_out(&request)
        };
        Ok(Some(answered.unwrap_or_else(|error| {
            Answer::error(unique, error.raw_os_error())
        })))
    }

    fn carry_out(&self, request: &Request<'_>) -> Result {
        let (unique, node) = (request.unique, request.node);
        match request.operation {
            Operation::Init(init) => Ok(first(unique, init)),
            Operation::Lookup { name } => self.lookup(unique, node, name),
            Operation::GetAttr { handle } => self.get_attr(unique, node, handle),
            Operation::SetAttr(set) => self.set_attr(unique, node, &set),
            Operation::ReadLink => self.read_link(unique, node),
            Operation::SymLink { name, target } => self.make_link(unique, node, name, target),
            Operation::MkNod { name, mode } => self.make_node(unique, node, name, mode),
            Operation::MkDir { name, mode } => self.make_dir(unique, node, name, mode),
            Operation::Unlink { name } => self.remove(unique, node, name, false),
            Operation::RmDir { name } => self.remove(unique, node, name, true),
            Operation::Rename {
                name,
                directory,
                new_name,
                flags,
            } => self.rename(unique, (node, name), (directory, new_name), flags),
            Operation::Link { target, name } => self.link(unique, target, node, name),
            Operation::Open { flags, kill } => self.open(unique, node, flags, kill),
            Operation::Create { name, flags, mode } => self.create(unique, node, name, flags, mode),
            Operation::Read {
                handle,
                offset,
                size,
            } => self.read(unique, handle, offset, size),
            Operation::Write {
                handle,
                offset,
                data,
                cached,
                kill,
            } => self.write(unique, handle, offset, data, (cached, kill)),
            Operation::CopyFileRange {
                from,
                from_offset,
                to,
                to_offset,
                length,
            } => self.copy_range(unique, (from, from_offset), (to, to_offset), length),
            Operation::Flush { handle } => self.flush(unique, handle),
            Operation::Release { handle } | Operation::ReleaseDir { handle } => {
                self.release(handle);
                Ok(Answer::done(unique))
            }
            Operation::FSync { handle, data_only } | Operation::FSyncDir { handle, data_only } => {
                self.sync(unique, handle, data_only)
            }
            Operation::FAllocate {
                handle,
                offset,
                length,
                mode,
            } => self.allocate(unique, handle, (offset, length), mode),
            Operation::LSeek {
                handle,
                offset,
                whence,
            } => self.seek(unique, handle, offset, whence),
            Operation::StatFs => self.stat_fs(unique),
            Operation::OpenDir => self.open_dir(unique, node),
            Operation::ReadDir {
                handle,
                offset,
                size,
                plus,
            } => self.read_dir(unique, handle, offset, size, plus),
            Operation::GetXattr { name, size } => self.get_xattr(unique, node, name, size),
            Operation::SetXattr { name, value, flags } => {
                self.set_xattr(unique, node, name, value, flags)
            }
            Operation::ListXattr { size } => self.list_xattr(unique, node, size),
            Operation::RemoveXattr { name } => self.remove_xattr(unique, node, name),
            Operation::Destroy => Ok(Answer::done(unique)),
            // Handled above, or unknown: locks and the like are the guest's own business.
            Operation::Forget { .. }
            | Operation::BatchForget(_)
            | Operation::Interrupt { .. }
            | Operation::Unsupported { .. } => Err(Errno::NOSYS),
        }
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles> {
        lock(&self.handles)
    }

    pub(super) fn place(&self, node: u64) -> Result<Arc<OwnedFd>> {
        self.nodes().fd(node)
    }

    pub(super) fn handle(&self, number: u64) -> Result<Arc<Handle>> {
        self.handles().get(number)
    }

    /// Room for one more open file.
    pub(super) fn room(&self) -> Result<Slot> {
        self.handles().room()?;
        let slot = self.budget.slot().or_else(|| {
            self.give_back();
            self.budget.slot()
        });
        slot.ok_or(Errno::NFILE)
    }

    /// Gives back what this and every other share can do without.
    fn give_back(&self) {
        self.nodes().give_back(0);
        self.budget.reclaim();
    }

    /// Does something that opens a file, again when there were too many open.
    pub(super) fn with_room<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.give_back();
                open()
            }
            opened => opened,
        }
    }
}

/// Agrees on versions and capabilities.
fn first(unique: u64, init: Init) -> Vec<u8> {
    if init.major != MAJOR || init.minor < MIN_MINOR {
        return Answer::error(unique, errno::EPROTO);
    }
    let flags = init.flags & WANTED;
    let pages = if flags & init_flag::MAX_PAGES != 0 {
        u16::try_from(MAX_DATA / 4096).unwrap_or(OLD_PAGES)
    } else {
        OLD_PAGES
    };
    Answer::init(
        unique,
        &InitAnswer {
            minor: init.minor,
            max_readahead: init.max_readahead.max(MAX_DATA as u32),
            flags,
            max_background: BACKGROUND,
            max_pages: pages,
        },
    )
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
