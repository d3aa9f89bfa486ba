//! Links: small files that hold a digest.

use vdkr_core::digest::Digest;

use super::durable::Batch;
use super::{Result, Storage, StorageError, now};
use crate::fs::Stamp;

/// Longer than any digest; what is longer is no link.
const LONGEST: usize = 256;

/// Where a link points, and the state of the file that says so.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) target: Digest,
    pub(super) stamp: Stamp,
}

impl Storage {
    /// Reads a link. A torn one (empty, or no digest) is as good as none: whoever wrote it never came
    /// to the end, and the next push writes it again.
    pub(super) fn read_link(&self, path: &str) -> Result<Option<Link>> {
        if let Some(link) = self.known_link(path)? {
            return Ok(Some(link));
        }
        let (content, stat) = match self.fs.read(path, LONGEST) {
            Ok(read) => read,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = str::from_utf8(&content).unwrap_or_default();
        let Ok(target) = Digest::parse(text.trim_end()) else {
            tracing::warn!(path, "a link that holds no digest counts as missing");
            return Ok(None);
        };
        let stamp = stat.stamp;
        if stamp.settled(now()) {
            self.links
                .insert(path.to_owned(), (stamp, target.clone()), 1);
        }
        Ok(Some(Link { target, stamp }))
    }

    /// [`Storage::read_link`] for those who would look elsewhere for what is not there: a torn link is
    /// [`StorageError::Damaged`].
    pub(super) fn sound_link(
        &self,
        path: &str,
        what: &dyn std::fmt::Display,
    ) -> Result<Option<Link>> {
        match self.read_link(path)? {
            None if self.is_torn(path)? => {
                // It may have been put right between the two looks.
                let again = self.read_link(path)?;
                again
                    .map(Some)
                    .ok_or_else(|| StorageError::Damaged(what.to_string()))
            }
            found => Ok(found),
        }
    }

    /// Whether there is something under the name of a link that holds no digest, as seen just now.
    pub(super) fn is_torn(&self, path: &str) -> Result<bool> {
        Ok(self.fs.stat(path)?.is_some())
    }

    /// A link that was read before and has not changed since; costs one system call.
    pub(super) fn known_link(&self, path: &str) -> Result<Option<Link>> {
        let Some((stamp, target)) = self.links.get(path) else {
            return Ok(None);
        };
        match self.fs.stat_known(path)? {
            Some(stat) if stat.stamp == stamp => Ok(Some(Link { target, stamp })),
            _ => {
                self.links.remove(path);
                Ok(None)
            }
        }
    }

    /// Makes `path` a durable link to `target` with this batch.
    pub(super) fn put_link(
        &self,
        batch: &mut Batch<'_>,
        path: String,
        target: &Digest,
    ) -> Result<()> {
        match self.read_link(&path)? {
            Some(link) if link.target == *target => batch.require(path, link.stamp),
            _ => batch.place(self.staged(target.as_str().as_bytes())?, path),
        }
        Ok(())
    }
}
