//! Blobs, and which repository has them.

use vdkr_core::digest::Digest;

use super::durable::{Batch, Staged};
use super::locks::Shared;
use super::{Condition, Result, Storage, paths};
use crate::fs::{File, Kind, Stamp, Stat};

/// A blob that a repository has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The digest under which its content is stored; another algorithm's than the one asked for when
    /// the tree was written so.
    pub stored: Digest,
    /// Bytes.
    pub size: u64,
    stamp: Stamp,
}

impl Storage {
    /// Looks for a blob of a repository.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Result<Option<Blob>> {
        match self.read_link(&paths::layer_link(repository, digest))? {
            Some(link) => self.content(link.target),
            None => Ok(None),
        }
    }

    /// [`Storage::blob`] from memory, checked by two system calls that find everything cached: `None`
    /// says nothing.
    pub fn known_blob(&self, repository: &str, digest: &Digest) -> Result<Option<Blob>> {
        match self.known_link(&paths::layer_link(repository, digest))? {
            Some(link) => self.content(link.target),
            None => Ok(None),
        }
    }

    /// Opens a blob of a repository for reading.
    pub fn open_blob(&self, repository: &str, digest: &Digest) -> Result<Option<(File, Blob)>> {
        let Some(link) = self.read_link(&paths::layer_link(repository, digest))? else {
            return Ok(None);
        };
        match self.fs.open_file(&paths::blob_data(&link.target)) {
            Ok((file, stat)) => Ok(whole(link.target, stat).map(|blob| (file, blob))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a blob from a repository, if the condition holds for it. The content stays for others.
    /// `false`: it was not there.
    pub fn delete_blob(
        &self,
        repository: &str,
        digest: &Digest,
        condition: &Condition,
    ) -> Result<bool> {
        let _alone = self.locks.exclude(repository)?;
        if self.blob(repository, digest)?.is_none() {
            return Ok(false);
        }
        condition.check(digest)?;
        self.remove_link(&paths::layer_link(repository, digest))?;
        Ok(true)
    }

    /// Gives a repository a blob that another one has, or with `from` unset that any has; durable on
    /// return. `None`: it is not there.
    pub fn mount(
        &self,
        repository: &str,
        from: Option<&str>,
        digest: &Digest,
    ) -> Result<Option<Blob>> {
        let _shared = self.locks.share(repository)?;
        self.claim(digest);
        let found = match from {
            Some(from) => self.blob(from, digest)?,
            None => self.content(digest.clone())?,
        };
        let Some(blob) = found else { return Ok(None) };
        self.claim(&blob.stored);
        // For collectors in other processes, which see no claims.
        self.used(&paths::blob_data(&blob.stored));
        let mut batch = self.durable.batch();
        batch.require(paths::blob_data(&blob.stored), blob.stamp);
        self.put_link(
            &mut batch,
            paths::layer_link(repository, digest),
            &blob.stored,
        )?;
        batch.commit()?;
        // A link that was there already may be an old one.
        self.used(&paths::layer_link(repository, digest));
        Ok(Some(blob))
    }

    /// Gives a checked file the name of its content and the repository, which the caller holds, its link;
    /// durable on return.
    pub(super) fn commit_blob(
        &self,
        _: &Shared<'_>,
        repository: &str,
        digest: &Digest,
        staged: Staged,
    ) -> Result<()> {
        self.claim(digest);
        let mut batch = self.durable.batch();
        // Over what is there: only what has just arrived is known to be right, and this is how damaged
        // content is mended.
        batch.place(staged, paths::blob_data(digest));
        let link = paths::layer_link(repository, digest);
        self.put_link(&mut batch, link.clone(), digest)?;
        batch.commit()?;
        // A link that was there already may be an old one.
        self.used(&link);
        Ok(())
    }

    /// Asks for a blob of the repository to be durable. Its size; `None`: it is not there.
    pub(super) fn require_blob(
        &self,
        batch: &mut Batch<'_>,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        let path = paths::layer_link(repository, digest);
        let Some(link) = self.read_link(&path)? else {
            return Ok(None);
        };
        let Some(blob) = self.content(link.target)? else {
            return Ok(None);
        };
        batch.require(paths::blob_data(&blob.stored), blob.stamp);
        batch.require(path, link.stamp);
        Ok(Some(blob.size))
    }

    /// Looks for stored content, whoever has it.
    pub(super) fn content(&self, digest: Digest) -> Result<Option<Blob>> {
        let stat = self.fs.stat(&paths::blob_data(&digest))?;
        Ok(stat.and_then(|stat| whole(digest, stat)))
    }

    /// Removes a link durably, with the directory that was made for it.
    pub(super) fn remove_link(&self, path: &str) -> Result<()> {
        let dir = paths::parent(path);
        self.durable.forget(dir);
        self.links.remove(path);
        self.fs.remove_file(path)?;
        let mut batch = self.durable.batch();
        batch.removed_from(dir);
        batch.commit()?;
        // Distribution leaves the empty directory; without it the tree stays readable for people.
        let _ = self.fs.remove_dir(dir);
        Ok(())
    }
}

/// A stored file as a blob, unless it cannot be one: content that never reached the disk leaves an
/// empty file, and only one content is empty.
fn whole(stored: Digest, stat: Stat) -> Option<Blob> {
    let possible =
        stat.kind == Kind::File && (stat.size > 0 || stored == Digest::of(stored.algorithm(), b""));
    possible.then_some(Blob {
        stored,
        size: stat.size,
        stamp: stat.stamp,
    })
}
