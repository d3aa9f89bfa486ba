//! Carries requests and answers between a machine and the servers of this process.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use vdkr_core::{
    channel::message::{Event, Failure, FailureCode, Request},
    fuse::{MAX_MESSAGE, Splitter},
};

use super::{Limits, Server, Source, SourceError, server::lock, source::Identity};
use crate::vm::channel::{Call, ChannelError, Connection, Incoming};

/// Requests of one directory that are worked on at a time; each may take a message of memory.
const AT_ONCE: usize = 16;
/// How long a machine may take to mount something.
const MOUNT_PATIENCE: Duration = Duration::from_mins(1);

/// A directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Its path is unusable.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The agent refuses.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The agent answers something else.
    #[error("the machine did not mount {0}")]
    NoMount(String),
    /// The connection is gone.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// This side failed.
    #[error("cannot share {path}: {source}")]
    Io {
        /// What was to be shared.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl From<ShareError> for Failure {
    fn from(error: ShareError) -> Self {
        match error {
            ShareError::Refused(failure) => failure,
            ShareError::Source(source) => {
                let code = match source {
                    SourceError::Missing(_) => FailureCode::NotFound,
                    _ => FailureCode::Failed,
                };
                let failure = Failure::new(code, source.to_string());
                match source.hint() {
                    Some(hint) => failure.with_hint(hint),
                    None => failure,
                }
            }
            other => Failure::new(FailureCode::Failed, other.to_string()),
        }
    }
}

/// What this process serves to one machine. A directory or file that is shared several times takes
/// one mount.
#[derive(Clone, Debug)]
pub struct Shares {
    connection: Connection,
    serving: Arc<Mutex<JoinSet<()>>>,
    places: Arc<Mutex<Places>>,
}

/// What was shared, and whether it may be written to.
type Key = (Identity, bool);
/// The mount of a key, if there is one; locked while it is made or judged.
type Place = Arc<AsyncMutex<Option<Mount>>>;

#[derive(Debug, Default)]
struct Places {
    by_key: HashMap<Key, Place>,
    by_name: HashMap<String, Place>,
}

#[derive(Debug)]
struct Mount {
    name: String,
    /// Those who asked for it and have not released it. With none it goes when its last container
    /// does.
    users: usize,
    served: AbortHandle,
}

impl Places {
    /// The place of a key, or of a name that is to be had again.
    fn place(&mut self, key: Key, name: Option<&String>) -> Place {
        let over = |place: &Place| {
            place.try_lock().is_ok_and(|mount| match &*mount {
                Some(mount) => mount.served.is_finished(),
                // Somebody may be about to make it.
                None => Arc::strong_count(place) == 1,
            })
        };
        self.by_name.retain(|_, place| !over(place));
        self.by_key.retain(|_, place| !over(place));
        let Some(name) = name else {
            return Arc::clone(self.by_key.entry(key).or_default());
        };
        let place = Arc::clone(self.by_name.entry(name.clone()).or_default());
        // Another name that the same path has stays what others get.
        self.by_key.entry(key).or_insert_with(|| Arc::clone(&place));
        place
    }
}

impl Shares {
    /// Nothing yet, for the machine behind this connection.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            serving: Arc::default(),
            places: Arc::default(),
        }
    }

    /// Serves what was opened and has it mounted, unless it is already; by this name when there is one. Gives
    /// the name of the mount.
    ///
    /// It is served until the agent says that it is over, or this value and its clones are gone.
    pub async fn share(
        &self,
        source: Source,
        read_only: bool,
        name: Option<String>,
    ) -> Result<String, ShareError> {
        let failed = |error| ShareError::Io {
            path: source.path().display().to_string(),
            source: error,
        };
        let key = (source.identity().map_err(failed)?, read_only);
        let place = lock(&self.places).place(key, name.as_ref());
        let mut mount = place.lock().await;
        if let Some(mount) = &mut *mount
            && self.is_kept(mount).await
        {
            mount.users += 1;
            return Ok(mount.name.clone());
        }
        *mount = None;
        let wanted = name.clone();
        let mounted = self.mount(source, read_only, name).await;
        if let (Err(_), Some(name)) = (&mounted, &wanted) {
            lock(&self.places).by_name.remove(name);
        }
        let (name, served) = mounted?;
        let named = Arc::clone(&place);
        lock(&self.places).by_name.insert(name.clone(), named);
        *mount = Some(Mount {
            name: name.clone(),
            users: 1,
            served,
        });
        Ok(name)
    }

    /// Whether a mount is there and stays for one more who asks for it.
    async fn is_kept(&self, mount: &Mount) -> bool {
        if mount.served.is_finished() {
            return false;
        }
        // One that everybody has released may go at any moment. An older agent does not know the
        // request, and gets a mount more.
        let share = mount.name.clone();
        let keep = Request::KeepShare { share };
        mount.users > 0 || matches!(self.connection.ask(&keep).await, Ok(Ok(_)))
    }

    async fn mount(
        &self,
        source: Source,
        read_only: bool,
        name: Option<String>,
    ) -> Result<(String, AbortHandle), ShareError> {
        let path = source.path().display().to_string();
        let failed = |source| ShareError::Io {
            path: path.clone(),
            source,
        };
        let directory = source.is_directory();
        let server = Server::new(source, read_only, Limits::default()).map_err(failed)?;
        let name = match name {
            Some(name) => name,
            None => new_name().map_err(failed)?,
        };
        let call = self
            .connection
            .call(&Request::MountShare {
                share: name.clone(),
                directory,
                read_only,
            })
            .await?;
        let (told, mounted) = oneshot::channel();
        let served = {
            let mut serving = lock(&self.serving);
            while serving.try_join_next().is_some() {}
            serving.spawn(serve(call, Arc::new(server), told))
        };
        match timeout(MOUNT_PATIENCE, mounted).await {
            Ok(Ok(mounted)) => mounted.map(|()| (name, served)),
            _ => {
                // A mount that comes later is nobody's.
                served.abort();
                Err(ShareError::NoMount(path))
            }
        }
    }

    /// One who asked for a mount wants it no more: after the last one it goes with its last
    /// container.
    pub async fn release(&self, name: &str) -> Result<(), ChannelError> {
        let Some(place) = lock(&self.places).by_name.get(name).map(Arc::clone) else {
            return Ok(());
        };
        let mut place = place.lock().await;
        let Some(mount) = place.as_mut().filter(|mount| mount.name == name) else {
            return Ok(());
        };
        mount.users = mount.users.saturating_sub(1);
        if mount.users > 0 {
            return Ok(());
        }
        // Under the lock: who asks for it next asks behind this.
        let share = name.to_owned();
        self.connection
            .ask(&Request::Release { share })
            .await
            .map(drop)
    }
}

/// A name that no other mount has.
fn new_name() -> io::Result<String> {
    let mut name = [0; 16];
    crate::random::fill(&mut name)?;
    let digits = name.iter().map(|byte| format!("{byte:02x}"));
    Ok(digits.collect())
}

/// Answers requests until the machine wants no more, or breaks the protocol. Dropping the call then
/// ends the mount.
///
/// `told` hears when the mount is there, or why it is not.
async fn serve(mut call: Call, server: Arc<Server>, told: oneshot::Sender<Result<(), ShareError>>) {
    let mut told = Some(told);
    let mut tell = |word| {
        if let Some(told) = told.take() {
            // Nobody waits any more: the mount goes when it is released.
            let _ = told.send(word);
        }
    };
    let sender = call.sender();
    let (answers, mut waiting) = mpsc::channel::<(Vec<u8>, OwnedSemaphorePermit)>(AT_ONCE);
    let writer = tokio::spawn({
        let sender = sender.clone();
        async move {
            while let Some((answer, share)) = waiting.recv().await {
                if !matches!(sender.stdin(&answer).await, Ok(true)) {
                    return;
                }
                drop(share);
            }
        }
    });
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut splitter = Splitter::new(MAX_MESSAGE);
    'requests: loop {
        let bytes = match call.next().await {
            Ok(Incoming::Data(_, bytes)) => bytes,
            Ok(Incoming::Event(Event::Mounted)) => {
                tell(Ok(()));
                continue;
            }
            Ok(Incoming::Event(_)) => continue,
            Ok(Incoming::Done(Err(failure))) => {
                tell(Err(ShareError::Refused(failure)));
                break;
            }
            Ok(Incoming::Done(Ok(_))) => break,
            Err(error) => {
                tell(Err(error.into()));
                break;
            }
        };
        splitter.push(&bytes);
        let consumed = sender.consumed(vdkr_core::channel::Pipe::Stdout, bytes.len());
        if consumed.await.is_err() {
            break;
        }
        loop {
            let request = match splitter.next() {
                Ok(Some(request)) => request.to_vec(),
                Ok(None) => break,
                Err(_) => break 'requests,
            };
            let Ok(share) = Arc::clone(&at_once).acquire_owned().await else {
                break 'requests;
            };
            let (server, answers) = (Arc::clone(&server), answers.clone());
            let broken = Arc::clone(&at_once);
            tokio::task::spawn_blocking(move || match server.answer(&request) {
                Ok(Some(answer)) => {
                    // Closed only when nobody is left to be answered.
                    let _ = answers.blocking_send((answer, share));
                }
                Ok(None) => {}
                Err(_) => broken.close(),
            });
        }
    }
    writer.abort();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::net::UnixStream;

    use super::*;
    use crate::vm::{fake_agent::FakeAgent, pipe::greet_guest};

    #[tokio::test]
    async fn a_mount_that_does_not_come_is_given_up_whole() {
        let agent = FakeAgent::default();
        agent.mounts_nothing.store(true, Ordering::SeqCst);
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(agent.clone().serve(guest));
        let (reader, mut writer) = host.into_split();
        let (reader, hello) = greet_guest(reader, &mut writer, "test").await.unwrap();
        let shares = Shares::new(Connection::new(reader, writer, hello));
        let dir = tempfile::tempdir().unwrap();
        let sharing = tokio::spawn({
            let (shares, source) = (shares.clone(), Source::open(dir.path()).unwrap());
            async move { shares.share(source, false, None).await }
        });
        while agent.requests.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        tokio::time::pause();
        let error = sharing.await.unwrap().unwrap_err();
        assert!(matches!(error, ShareError::NoMount(_)), "{error}");
        tokio::time::resume();
        while agent.cancelled.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        while lock(&shares.serving).try_join_next().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(lock(&shares.serving).is_empty());
        // The next one is a new attempt.
        agent.mounts_nothing.store(false, Ordering::SeqCst);
        let source = Source::open(dir.path()).unwrap();
        shares.share(source, false, None).await.unwrap();
        assert_eq!(agent.requests.lock().unwrap().len(), 2);
    }
}
