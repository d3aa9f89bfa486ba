//! Upload sessions: blobs on their way in.
//!
//! A session lies on the disk as Distribution keeps it and survives a restart: its offset is the length
//! of its file. What is kept in memory beside (the state of the hash) only saves reading the file again
//! at the end.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use vdkr_core::digest::{Algorithm, Digest, Hasher};
use vdkr_core::time::rfc3339_seconds;

use super::durable::Staged;
use super::{Result, Storage, StorageError, make_dirs, now, paths, random_hex};
use crate::fs::Kind;

/// Sessions whose hash is kept; older idle ones are hashed again from the disk.
const REMEMBERED: usize = 4096;
/// How much is read at once to hash a file again.
const REHASH: usize = 1 << 20;
/// How much is written before the kernel is asked to begin moving it to the disk.
const WRITEBACK: u64 = 8 << 20;

/// The name of an upload session: a UUID, as Distribution has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// Accepts exactly the form `8-4-4-4-12` of hexadecimal digits: it becomes a directory's name.
    pub fn parse(text: &str) -> Option<Self> {
        let legal = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'),
            });
        legal.then(|| Self(text.to_owned()))
    }

    fn random() -> Self {
        let mut hex = random_hex(16);
        // Version 4, variant 1 (RFC 9562).
        hex.replace_range(12..13, "4");
        let variant = match hex.as_bytes()[16] {
            b'0' | b'4' | b'8' | b'c' => "8",
            b'1' | b'5' | b'9' | b'd' => "9",
            b'2' | b'6' | b'a' | b'e' => "a",
            _ => "b",
        };
        hex.replace_range(16..17, variant);
        let part = |from: usize, to: usize| &hex[from..to];
        Self(format!(
            "{}-{}-{}-{}-{}",
            part(0, 8),
            part(8, 12),
            part(12, 16),
            part(16, 20),
            part(20, 32)
        ))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One upload session.
#[derive(Debug)]
pub struct Session {
    repository: String,
    id: UploadId,
    busy: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    offset: u64,
    /// Of everything up to the offset, if known.
    hasher: Option<Hasher>,
    gone: bool,
}

impl Session {
    /// Its name.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// Bytes received so far.
    pub fn offset(&self) -> u64 {
        self.progress().offset
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self) -> String {
        paths::upload(&self.repository, self.id.as_str())
    }

    fn data(&self) -> String {
        paths::upload_data(&self.repository, self.id.as_str())
    }
}

/// The sessions that are in memory, by their directories: the same id under another repository is
/// another session, or none.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Arc<Session>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a session, unless another request has just done so: then that one counts.
    fn keep(&self, session: Session) -> Arc<Session> {
        let mut sessions = self.lock();
        if sessions.len() >= REMEMBERED {
            // Nothing is lost: whoever asks for one of them again finds it on the disk.
            sessions.retain(|_, session| Arc::strong_count(session) > 1);
        }
        let directory = session.directory();
        Arc::clone(
            sessions
                .entry(directory)
                .or_insert_with(|| Arc::new(session)),
        )
    }

    pub(super) fn forget(&self, directory: &str) {
        self.lock().remove(directory);
    }

    /// Whether a request is using it now.
    pub(super) fn in_use(&self, directory: &str) -> bool {
        self.lock()
            .get(directory)
            .is_some_and(|session| Arc::strong_count(session) > 1)
    }
}

/// Where the bytes of a request go: a session's file, or a file without a name.
#[derive(Debug)]
pub struct Sink {
    staged: Staged,
    offset: u64,
    hasher: Option<Hasher>,
    flushed: u64,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Nameless,
    Session(Turn),
}

/// The right to write to a session. One request has it at a time.
#[derive(Debug)]
struct Turn(Arc<Session>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Sink {
    /// Bytes so far, those of earlier requests included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes of the blob.
    pub fn write(&mut self, pieces: &[Bytes]) -> Result<()> {
        let mut hasher = self.hasher.take();
        for piece in pieces {
            self.staged.file().write_at(piece, self.offset)?;
            self.offset += piece.len() as u64;
            if let Some(hasher) = &mut hasher {
                hasher.update(piece);
            }
        }
        self.hasher = hasher;
        if let Origin::Session(Turn(session)) = &self.origin {
            let mut progress = session.progress();
            if progress.gone {
                return Err(StorageError::UploadUnknown);
            }
            progress.offset = self.offset;
            progress.hasher.clone_from(&self.hasher);
        }
        if self.offset - self.flushed >= WRITEBACK {
            self.staged.file().begin_writeback(self.flushed);
            self.flushed = self.offset;
        }
        Ok(())
    }

    fn digest(&mut self, algorithm: Algorithm) -> Result<Digest> {
        let known = self.hasher.take().map(Hasher::finish);
        if let Some(digest) = known.filter(|digest| digest.algorithm() == algorithm) {
            return Ok(digest);
        }
        // The session began in another process, or the client changed its mind about the algorithm.
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; REHASH];
        let mut at = 0;
        while at < self.offset {
            let n = self.staged.file().read_at(&mut buffer, at)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            at += n as u64;
        }
        Ok(hasher.finish())
    }
}

impl Storage {
    /// Begins a session. `algorithm` is what its digest will probably be of.
    pub fn begin_upload(&self, repository: &str, algorithm: Algorithm) -> Result<Arc<Session>> {
        let id = UploadId::random();
        let progress = Progress {
            offset: 0,
            hasher: Some(Hasher::new(algorithm)),
            gone: false,
        };
        let session = Session {
            repository: repository.to_owned(),
            id,
            busy: AtomicBool::new(false),
            progress: Mutex::new(progress),
        };
        let directory = session.directory();
        // An emptied repository is not removed from under the new session.
        let _shared = self.locks.share(repository)?;
        let begun = make_dirs(&self.fs, &directory).and_then(|()| {
            let started = self.fs.create(&format!("{directory}/startedat"))?;
            started.write_at(rfc3339_seconds(now()).as_bytes(), 0)
        });
        if let Err(error) = begun {
            self.remove_upload(&directory);
            return Err(error.into());
        }
        Ok(self.sessions.keep(session))
    }

    /// Finds a session, in memory or on the disk.
    pub fn upload(&self, repository: &str, id: &UploadId) -> Result<Option<Arc<Session>>> {
        let directory = paths::upload(repository, id.as_str());
        let known = self.sessions.lock().get(&directory).cloned();
        let there = self
            .fs
            .stat(&directory)?
            .is_some_and(|stat| stat.kind == Kind::Directory);
        if !there {
            self.sessions.forget(&directory);
            return Ok(None);
        }
        if let Some(session) = known {
            // One that has ended may still be on its way from the disk.
            let gone = session.progress().gone;
            return Ok((!gone).then_some(session));
        }
        let data = self.fs.stat(&paths::upload_data(repository, id.as_str()))?;
        let offset = data.map_or(0, |stat| stat.size);
        let hasher = (offset == 0).then(|| Hasher::new(Algorithm::Sha256));
        Ok(Some(self.sessions.keep(Session {
            repository: repository.to_owned(),
            id: id.clone(),
            busy: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                offset,
                hasher,
                gone: false,
            }),
        })))
    }

    /// The right to write to a session at its offset. `None`: another request is doing so.
    pub fn resume(&self, session: &Arc<Session>) -> Result<Option<Sink>> {
        if session.busy.swap(true, Ordering::Acquire) {
            return Ok(None);
        }
        let turn = Turn(Arc::clone(session));
        let data = session.data();
        let file = match self.fs.reopen(&data) {
            Ok((file, _)) => file,
            Err(error) if error.is_not_found() => match self.fs.create(&data) {
                Err(error) if error.is_not_found() => return Err(StorageError::UploadUnknown),
                made => made?,
            },
            Err(error) => return Err(error.into()),
        };
        // Whoever else writes to this file, in another process perhaps, or of a session that has ended
        // and is still at it, comes first: bytes that are not hashed must not get into a blob.
        if !file.try_lock()? {
            return Ok(None);
        }
        let (named, opened) = (self.fs.stat(&data)?, file.stat()?);
        if !named.is_some_and(|named| named.stamp.same_file(&opened.stamp)) {
            // It became a blob between the opening and the lock.
            return Err(StorageError::UploadUnknown);
        }
        let mut progress = session.progress();
        if progress.gone {
            return Err(StorageError::UploadUnknown);
        }
        if progress.offset != opened.size {
            // Somebody else wrote there. The disk says how far it is, and is hashed again.
            (progress.offset, progress.hasher) = (opened.size, None);
        }
        let (offset, hasher) = (progress.offset, progress.hasher.clone());
        drop(progress);
        let staged = Staged::owned(Arc::new(file));
        Ok(Some(Sink {
            staged,
            offset,
            hasher,
            flushed: offset,
            origin: Origin::Session(turn),
        }))
    }

    /// A place for a blob that comes in one request.
    pub fn receive(&self, algorithm: Algorithm) -> Result<Sink> {
        Ok(Sink {
            staged: self.temporary()?,
            offset: 0,
            hasher: Some(Hasher::new(algorithm)),
            flushed: 0,
            origin: Origin::Nameless,
        })
    }

    /// Checks what was received against its digest and makes it a blob of the repository, durable on
    /// return. A session ends here, whether it succeeds or not; where the repository is not to be had at
    /// the moment, it stays as it is.
    pub fn finish(&self, repository: &str, mut sink: Sink, expected: &Digest) -> Result<u64> {
        let got = sink.digest(expected.algorithm());
        let shared = self.locks.share(repository)?;
        let Sink {
            staged,
            offset,
            flushed,
            origin,
            ..
        } = sink;
        let done = got.and_then(|got| {
            if got != *expected {
                return Err(StorageError::DigestMismatch {
                    expected: expected.clone(),
                    got,
                });
            }
            if let Origin::Session(Turn(session)) = &origin {
                if session.progress().gone {
                    return Err(StorageError::UploadUnknown);
                }
                let length = staged.file().stat()?.size;
                if length != offset {
                    return Err(StorageError::UploadDisturbed { length, offset });
                }
            }
            staged.file().begin_writeback(flushed);
            self.commit_blob(&shared, repository, expected, staged)
        });
        if let Origin::Session(Turn(session)) = &origin {
            self.cancel(session);
        }
        done.map(|()| offset)
    }

    /// Ends the session behind a sink after a failure that leaves nothing to go on with.
    pub fn abandon(&self, sink: &Sink) {
        if let Origin::Session(Turn(session)) = &sink.origin {
            self.cancel(session);
        }
    }

    /// Ends a session and removes what it received.
    pub fn cancel(&self, session: &Session) {
        session.progress().gone = true;
        let directory = session.directory();
        self.remove_upload(&directory);
        // Not before: until then it says to those who find the directory that this one has ended.
        self.sessions.forget(&directory);
    }

    /// Removes the directory of a session. What cannot be removed now is swept later.
    pub(super) fn remove_upload(&self, directory: &str) {
        if let Err(error) = self.remove_tree(directory) {
            tracing::warn!(%error, "an upload session could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_have_one_form() {
        for _ in 0..100 {
            let id = UploadId::random();
            assert_eq!(UploadId::parse(id.as_str()), Some(id.clone()), "{id}");
            assert_eq!(&id.as_str()[14..15], "4");
        }
        for bad in [
            "",
            "..",
            "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0",
            "0F0F0F0F-0f0f-4f0f-8f0f-0f0f0f0f0f0f",
            "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f0",
            "0f0f0f0f_0f0f-4f0f-8f0f-0f0f0f0f0f0f",
            "../../../../../../../../../etc/passwd",
        ] {
            assert_eq!(UploadId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_upload_outlives_that_its_repository_is_locked() {
        use std::time::Duration;

        use crate::fs::Fs;
        use crate::storage::{Memory, locks::Locks};

        let dir = tempfile::tempdir().unwrap();
        let fs = Fs::open(dir.path()).unwrap();
        let mut storage = Storage::open(fs.clone(), Memory::default()).unwrap();
        storage.locks = Locks::new(fs.clone(), Duration::from_millis(50));
        let session = storage.begin_upload("a", Algorithm::Sha256).unwrap();
        let mut sink = storage.resume(&session).unwrap().unwrap();
        sink.write(&[Bytes::from_static(b"content")]).unwrap();
        let digest = Digest::sha256(b"content");
        let foreign = fs.try_lock_dir(&paths::repository("a"), true).unwrap();
        let error = storage.finish("a", sink, &digest).unwrap_err();
        assert!(matches!(error, StorageError::Locked(_)), "{error}");
        drop(foreign.unwrap());
        let session = storage.upload("a", session.id()).unwrap().unwrap();
        let sink = storage.resume(&session).unwrap().unwrap();
        assert_eq!(sink.offset(), 7);
        assert_eq!(storage.finish("a", sink, &digest).unwrap(), 7);
        assert!(storage.blob("a", &digest).unwrap().is_some());
        assert!(storage.upload("a", session.id()).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn ids_never_leave_their_directory(text in ".{0,40}") {
            if let Some(id) = UploadId::parse(&text) {
                prop_assert!(!id.as_str().contains(['/', '.', '\0']));
            }
        }
    }
}
