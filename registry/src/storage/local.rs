//! The storage as a client on the same machine sees it: one that may write there puts the bytes of an
//! upload session where the server keeps them, and the server hashes them from there.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use vdkr_core::reference::check_repository;

use super::{UploadId, paths};
use crate::fs::Fs;

/// The upload sessions of a storage.
#[derive(Clone, Debug)]
pub struct LocalUploads(Fs);

impl LocalUploads {
    /// Looks at the storage in `directory`; `None` when there is none that can be read.
    pub fn open(directory: &Path) -> Option<Self> {
        Fs::open(directory).ok().map(Self)
    }

    /// The file with the bytes of a session, open for reading and writing; made when there is none yet.
    /// `None`: the session is not one of this storage, or its server runs as another user, who could
    /// not use what we write.
    pub fn session(&self, repository: &str, session: &str) -> Option<std::fs::File> {
        check_repository(repository).ok()?;
        let id = UploadId::parse(session)?;
        let started = format!("{}/startedat", paths::upload(repository, id.as_str()));
        let (started, _) = self.0.open_file(&started).ok()?;
        let owner = started.into_std().metadata().ok()?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return None;
        }
        let data = paths::upload_data(repository, id.as_str());
        let file = match self.0.reopen(&data) {
            Ok((file, _)) => file,
            Err(error) if error.is_not_found() => self.0.create(&data).ok()?,
            Err(_) => return None,
        };
        Some(file.into_std())
    }
}
