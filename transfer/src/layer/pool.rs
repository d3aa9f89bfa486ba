//! What layers that are read at the same time may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Memory for names and attributes; two million ordinary files do with it.
const MAX_MEMORY: usize = 768 << 20;

/// Memory and room on the disk. Clones are the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: AtomicUsize,
    max_memory: usize,
    bytes: AtomicU64,
    max_bytes: u64,
}

impl Default for Pool {
    /// Memory for one large layer or a few ordinary ones, and any number of bytes.
    fn default() -> Self {
        Self::new(MAX_MEMORY, u64::MAX)
    }
}

impl Pool {
    /// So much memory at a time, and so many bytes of files in the end.
    pub fn new(max_memory: usize, max_bytes: u64) -> Self {
        Self(Arc::new(Inner {
            memory: AtomicUsize::new(0),
            max_memory,
            bytes: AtomicU64::new(0),
            max_bytes,
        }))
    }

    /// The usual memory, and so many bytes of files in the end.
    pub fn of_bytes(max_bytes: u64) -> Self {
        Self::new(MAX_MEMORY, max_bytes)
    }

    /// The bytes of files that there may be.
    pub fn max_bytes(&self) -> u64 {
        self.0.max_bytes
    }

    /// Takes memory, which is to be given back even when this says that it was too much.
    pub(crate) fn take_memory(&self, bytes: usize) -> bool {
        let before = self.0.memory.fetch_add(bytes, Ordering::Relaxed);
        before.saturating_add(bytes) <= self.0.max_memory
    }

    /// Gives memory back.
    pub(crate) fn give_back_memory(&self, bytes: usize) {
        self.0.memory.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes room on the disk; whether there was enough.
    pub(crate) fn take_bytes(&self, bytes: u64) -> bool {
        let taken = self
            .0
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                let taken = taken.checked_add(bytes)?;
                (taken <= self.0.max_bytes).then_some(taken)
            });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_and_memory_comes_back() {
        let pool = Pool::new(100, 10);
        let other = pool.clone();
        assert!(pool.take_memory(60));
        assert!(!other.take_memory(60));
        other.give_back_memory(60);
        assert!(other.take_memory(40));
        assert!(pool.take_bytes(6) && !other.take_bytes(5) && other.take_bytes(4));
        assert!(!pool.take_bytes(1) && !pool.take_bytes(u64::MAX));
    }
}
