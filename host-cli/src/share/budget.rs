//! Descriptors: how many all shares of this process have open together.

use std::sync::{
    Arc, LazyLock, Mutex, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{nodes::Nodes, server::lock};

/// Files that this process shall be able to have open, if the system allows it.
const OPEN_FILES: u64 = 16 * 1024;
/// Of these, what is left to whoever keeps the machine, and to requests under way: each thread has
/// a few open for a moment.
const RESERVED: usize = 2048;

/// What may be open between two requests.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// The last reclaim was for nothing, and nothing was given back since.
    spent: AtomicBool,
    tables: Mutex<Vec<Weak<Mutex<Nodes>>>>,
}

/// Room for one descriptor, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Budget>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
        self.0.spent.store(false, Ordering::Relaxed);
    }
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            spent: AtomicBool::new(false),
            tables: Mutex::default(),
        })
    }

    /// The one that everything in this process shares.
    pub(super) fn of_this_process() -> Arc<Self> {
        static BUDGET: LazyLock<Arc<Budget>> = LazyLock::new(|| {
            let limit = raise_open_files();
            Budget::new(limit - RESERVED.min(limit / 2))
        });
        Arc::clone(&BUDGET)
    }

    /// Adds a table that can give descriptors back.
    pub(super) fn add(&self, nodes: &Arc<Mutex<Nodes>>) {
        let mut tables = lock(&self.tables);
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(nodes));
    }

    /// Room for one more, if there is any.
    pub(super) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let more = |used: usize| (used < self.limit).then_some(used + 1);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Slot(Arc::clone(self)))
    }

    /// Has every share give back what it can. One that is at work is passed over; so the caller may
    /// hold a table of its own.
    pub(super) fn reclaim(&self) {
        if self.spent.swap(true, Ordering::Relaxed) {
            return;
        }
        let tables: Vec<_> = lock(&self.tables)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for table in tables {
            if let Ok(mut nodes) = table.try_lock() {
                nodes.give_back(0);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A shared tree takes many descriptors; more is not asked for than the system allows anyway. Gives
/// how many there may be.
fn raise_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(OPEN_FILES);
    let wanted = OPEN_FILES.min(maximum);
    let current = limit.current.unwrap_or(OPEN_FILES);
    let mut now = current;
    if current < wanted {
        let raised = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        // Fewer files are only slower.
        if setrlimit(Resource::Nofile, raised).is_ok() {
            now = wanted;
        }
    }
    usize::try_from(now).unwrap_or(usize::MAX)
}
