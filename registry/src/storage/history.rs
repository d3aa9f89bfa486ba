//! What tags pointed to before, and pins.
//!
//! Distribution's layout has an entry for everything that a tag ever pointed to. The link is as old as the
//! first time, and its directory is touched whenever the tag comes back to it. How long such manifests
//! live is decided when garbage is collected.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::extension::HistoryEntry;

use super::{Result, Storage, now, paths};
use crate::fs::Kind;

/// Most targets of a deleted tag that are kept in mind, and the longest file that holds them.
const FORMER: usize = 100;
const LONGEST: usize = 64 << 10;

/// One target of a tag before the tag was deleted. They lie in a file of ours as JSON, the newest first,
/// and keep nothing from being collected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    digest: Digest,
    since: u64,
    deleted: u64,
}

/// One target of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) digest: Digest,
    /// When the tag last came to point there, in seconds since the epoch.
    pub(super) since: u64,
    /// When it came to point elsewhere; `None` for the current target.
    pub(super) until: Option<u64>,
}

impl Storage {
    /// What a tag points to and pointed to, newest first, at most `limit` entries after the one with the
    /// digest `last`, and whether there are more; those before it was deleted come last. After one that
    /// has gone meanwhile, the list begins again. `None`: there is no such tag, and was none.
    pub fn history(
        &self,
        repository: &str,
        tag: &str,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<Option<(Vec<HistoryEntry>, bool)>> {
        let past = self.past(repository, tag)?;
        let former = self.former(repository, tag)?;
        if past.is_none() && former.is_empty() {
            return Ok(None);
        }
        let past = past.unwrap_or_default().into_iter();
        let mut entries: Vec<_> = past
            .map(|past| HistoryEntry {
                digest: past.digest,
                since: past.since,
                current: past.until.is_none(),
                available: false,
                deleted: None,
            })
            .collect();
        let known: HashSet<_> = entries.iter().map(|entry| entry.digest.clone()).collect();
        for former in former {
            if !known.contains(&former.digest) {
                entries.push(HistoryEntry {
                    digest: former.digest,
                    since: former.since,
                    current: false,
                    available: false,
                    deleted: Some(former.deleted),
                });
            }
        }
        let before = last.and_then(|last| entries.iter().position(|entry| entry.digest == *last));
        entries.drain(..before.map_or(0, |at| at + 1));
        let more = entries.len() > limit && limit > 0;
        entries.truncate(limit);
        for entry in &mut entries {
            entry.available = self.manifest(repository, &entry.digest)?.is_some();
        }
        Ok(Some((entries, more)))
    }

    /// Keeps in mind what a tag points to and pointed to, for it is about to be deleted.
    pub(super) fn note_deletion(&self, repository: &str, tag: &str) -> Result<()> {
        let deleted = now();
        let past = self.past(repository, tag)?.unwrap_or_default();
        let mut former: Vec<_> = past
            .into_iter()
            .take(FORMER)
            .map(|past| Former {
                digest: past.digest,
                since: past.since,
                deleted,
            })
            .collect();
        for before in self.former(repository, tag)? {
            if former.len() < FORMER && former.iter().all(|one| one.digest != before.digest) {
                former.push(before);
            }
        }
        if former.is_empty() {
            return Ok(());
        }
        let content = serde_json::to_vec(&former).unwrap_or_default();
        let mut batch = self.durable.batch();
        let path = format!("{}/{tag}", paths::deleted(repository));
        batch.place(self.staged(&content)?, path);
        Ok(batch.commit()?)
    }

    /// What a tag pointed to before it was deleted. A file that cannot be understood says nothing.
    fn former(&self, repository: &str, tag: &str) -> Result<Vec<Former>> {
        let path = format!("{}/{tag}", paths::deleted(repository));
        match self.fs.read(&path, LONGEST) {
            Ok((content, _)) => Ok(serde_json::from_slice(&content).unwrap_or_default()),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets deleted tags that have nothing left to go back to. To be called with the repository
    /// excluded.
    pub(super) fn forget_deleted(&self, repository: &str) -> Result<()> {
        let mut tags = Vec::new();
        match self.fs.list(&paths::deleted(repository), |name, kind| {
            if kind == Kind::File {
                tags.push(name.to_owned());
            }
        }) {
            Err(error) if error.is_not_found() => return Ok(()),
            listed => listed?,
        }
        for tag in tags {
            let mut left = false;
            for former in self.former(repository, &tag)? {
                let path = paths::revision_link(repository, &former.digest);
                left |= self.read_link(&path)?.is_some();
            }
            if !left {
                let path = format!("{}/{tag}", paths::deleted(repository));
                self.durable.forget_file(&path);
                self.fs.remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The targets of a tag, the current one first, then by time. `None`: there is no such tag.
    pub(super) fn past(&self, repository: &str, tag: &str) -> Result<Option<Vec<Past>>> {
        let path = paths::tag_current(repository, tag);
        let Some(current) = self.read_link(&path)? else {
            return Ok(None);
        };
        let moved = u64::try_from(current.stamp.modified_secs()).unwrap_or(0);
        let mut before = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = paths::tag_index(repository, tag, algorithm);
            let mut names = Vec::new();
            match self.fs.list(&dir, |name, kind| {
                if kind == Kind::Directory {
                    names.extend(Digest::parse(&format!("{}:{name}", algorithm.name())));
                }
            }) {
                Err(error) if error.is_not_found() => {}
                listed => listed?,
            }
            for digest in names {
                let link = paths::tag_index_link(repository, tag, &digest);
                if digest != current.target && self.read_link(&link)?.is_some() {
                    let since = now().saturating_sub(self.age(&link, now()));
                    before.push((since, digest));
                }
            }
        }
        before.sort_unstable_by(|a, b| b.cmp(a));
        let mut past = vec![Past {
            digest: current.target,
            since: moved,
            until: None,
        }];
        let mut until = moved;
        for (since, digest) in before {
            past.push(Past {
                digest,
                since,
                until: Some(until.max(since)),
            });
            until = since;
        }
        Ok(Some(past))
    }

    /// Pins a manifest of a repository: it is kept whether a tag names it or not. `false`: it is not
    /// there.
    pub fn pin(&self, repository: &str, digest: &Digest) -> Result<bool> {
        let _shared = self.locks.share(repository)?;
        if self.manifest(repository, digest)?.is_none() {
            return Ok(false);
        }
        let mut batch = self.durable.batch();
        self.put_link(&mut batch, paths::pin_link(repository, digest), digest)?;
        batch.commit()?;
        Ok(true)
    }

    /// Takes a pin away. `false`: there was none.
    pub fn unpin(&self, repository: &str, digest: &Digest) -> Result<bool> {
        let _alone = self.locks.exclude(repository)?;
        let path = paths::pin_link(repository, digest);
        if self.read_link(&path)?.is_none() {
            return Ok(false);
        }
        self.remove_link(&path)?;
        Ok(true)
    }

    /// The digests that a repository has pinned.
    pub fn pins(&self, repository: &str) -> Result<Vec<Digest>> {
        let mut pins = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = paths::pins(repository, algorithm);
            match self.fs.list(&dir, |name, kind| {
                if kind == Kind::Directory {
                    pins.extend(Digest::parse(&format!("{}:{name}", algorithm.name())));
                }
            }) {
                Err(error) if error.is_not_found() => {}
                listed => listed?,
            }
        }
        // A directory whose link was never written, or was removed, is no pin.
        let mut kept = Vec::new();
        for digest in pins {
            if self
                .read_link(&paths::pin_link(repository, &digest))?
                .is_some()
            {
                kept.push(digest);
            }
        }
        Ok(kept)
    }
}
