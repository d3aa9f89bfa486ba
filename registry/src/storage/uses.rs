//! When content was last counted on, so that garbage collection leaves it alone.
//!
//! A client that was told "it is there" does not send it, and names it in a manifest a little later.
//! The time of that answer is kept on the disk as the modification time of the directory that holds the
//! link: it survives restarts, other processes on the tree see it, and the link itself stays as it was
//! (its state is what caches compare). It is written at most once in [`PERSIST_EVERY`] for each link.
//!
//! While garbage is collected, whoever is about to rely on content that may have no link yet claims its
//! digest before looking for it. What is removed is removed with the claims locked, and what is claimed is
//! not removed: either the collector comes first and the content is found missing, or it stays.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vdkr_core::digest::Digest;

use super::cache::Cache;
use super::{Storage, now, paths};

/// Seconds between two touches of one link on the disk. Grace that is shorter than this does not
/// protect what was asked for a second time.
const PERSIST_EVERY: u64 = 60;

/// Claims that are told apart. Beyond it everything counts as claimed, and the collection frees no more:
/// whoever asks for millions of digests must not fill the memory.
const MOST_CLAIMS: usize = 1_000_000;

/// What is in use.
#[derive(Debug)]
pub(super) struct Uses {
    /// Directories of links, with the time of the last touch on the disk and of the last use.
    seen: Cache<String, (u64, u64)>,
    claims: Mutex<Option<HashSet<Digest>>>,
}

/// The claims, which nobody else changes now.
pub(super) struct Claims<'u>(MutexGuard<'u, Option<HashSet<Digest>>>);

/// As long as it lives, claims are collected.
#[derive(Debug)]
pub(super) struct Collecting<'u>(&'u Uses);

impl Uses {
    pub(super) fn new() -> Self {
        Self {
            seen: Cache::new(32_768),
            claims: Mutex::new(None),
        }
    }

    /// Begins to collect claims.
    pub(super) fn collect(&self) -> Collecting<'_> {
        *self.lock() = Some(HashSet::new());
        Collecting(self)
    }

    /// Locks the claims.
    pub(super) fn claims(&self) -> Claims<'_> {
        Claims(self.lock())
    }

    /// Seconds since the epoch of the last use that this process knows of.
    pub(super) fn last(&self, dir: &str) -> Option<u64> {
        self.seen.get(dir).map(|(_, last)| last)
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashSet<Digest>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims<'_> {
    /// Whether somebody relies on this digest since the collection began.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.0
            .as_ref()
            .is_some_and(|set| set.len() >= MOST_CLAIMS || set.contains(digest))
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Storage {
    /// Says that somebody is about to look for this content and to rely on what is found. To be called
    /// before looking.
    pub fn claim(&self, digest: &Digest) {
        if let Some(set) = self.uses.lock().as_mut()
            && set.len() < MOST_CLAIMS
            && !set.contains(digest)
        {
            set.insert(digest.clone());
        }
    }

    /// Notes that a client was told that the repository has this blob. `false`: it is gone by now.
    pub fn use_blob(&self, repository: &str, digest: &Digest) -> bool {
        self.used(&paths::layer_link(repository, digest))
    }

    /// Notes that a client was told that the repository has this manifest. `false`: it is gone by now.
    pub fn use_manifest(&self, repository: &str, digest: &Digest) -> bool {
        self.used(&paths::revision_link(repository, digest))
    }

    pub(super) fn used(&self, link: &str) -> bool {
        let (dir, now) = (paths::parent(link), now());
        let persisted = match self.uses.seen.get(dir) {
            // Noted within this second.
            Some((at, last)) if last == now && at <= now => return true,
            Some((at, _)) if at <= now && now - at < PERSIST_EVERY => at,
            _ => {
                match self.fs.touch(dir) {
                    Err(error) if error.is_not_found() => return false,
                    // A storage that is only read; nothing is collected there either.
                    Err(error) => tracing::debug!(%error, "the use of a link cannot be noted"),
                    Ok(()) => {}
                }
                now
            }
        };
        self.uses.seen.insert(dir.to_owned(), (persisted, now), 1);
        true
    }

    /// Seconds since a file, or the directory around it, was made or touched. What cannot be told is
    /// young.
    pub(super) fn age(&self, path: &str, now: u64) -> u64 {
        let dir = paths::parent(path);
        let mut youngest = self.uses.last(dir).unwrap_or(0);
        for place in [path, dir] {
            match self.fs.stat(place) {
                Ok(Some(stat)) => {
                    let modified = u64::try_from(stat.stamp.modified_secs()).unwrap_or(0);
                    youngest = youngest.max(modified);
                }
                Ok(None) => {}
                Err(_) => return 0,
            }
        }
        now.saturating_sub(youngest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_count_only_while_they_are_collected() {
        let uses = Uses::new();
        let digest = Digest::sha256(b"x");
        assert!(!uses.claims().has(&digest));
        let collecting = uses.collect();
        uses.lock().as_mut().unwrap().insert(digest.clone());
        assert!(uses.claims().has(&digest));
        drop(collecting);
        assert!(!uses.claims().has(&digest));
        let _again = uses.collect();
        assert!(!uses.claims().has(&digest), "of an earlier run");
    }
}
