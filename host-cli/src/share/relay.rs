//! Carries requests and answers between a machine and the servers of this process.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use vdkr_core::{
    channel::message::{Event, Failure, FailureCode, Request},
    fuse::{MAX_MESSAGE, Splitter},
};

use super::{Limits, Server, Source, SourceError, server::lock};
use crate::vm::channel::{Call, ChannelError, Connection, Incoming};

/// Requests of one directory that are worked on at a time; each may take a message of memory.
const AT_ONCE: usize = 16;
/// Files that this process shall be able to have open, if the system allows it.
const OPEN_FILES: u64 = 16 * 1024;
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

/// What this process serves to one machine.
#[derive(Clone, Debug)]
pub struct Shares {
    connection: Connection,
    serving: Arc<Mutex<JoinSet<()>>>,
    /// Names of what is mounted.
    mounted: Arc<Mutex<BTreeSet<String>>>,
}

impl Shares {
    /// Nothing yet, for the machine behind this connection.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            serving: Arc::default(),
            mounted: Arc::default(),
        }
    }

    /// Serves a path and has it mounted, by this name when there is one, which may be mounted
    /// already. Gives the name of the mount.
    ///
    /// It is served until the agent says that it is over, or this value and its clones are gone.
    pub async fn share(
        &self,
        path: &Path,
        read_only: bool,
        name: Option<String>,
    ) -> Result<String, ShareError> {
        if let Some(name) = name
            .as_ref()
            .filter(|name| lock(&self.mounted).contains(*name))
        {
            return Ok(name.clone());
        }
        let failed = |source| ShareError::Io {
            path: path.display().to_string(),
            source,
        };
        let source = Source::open(path)?;
        let directory = source.is_directory();
        raise_open_files();
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
        {
            let mut serving = lock(&self.serving);
            while serving.try_join_next().is_some() {}
            let (mounted, name) = (Arc::clone(&self.mounted), name.clone());
            lock(&mounted).insert(name.clone());
            serving.spawn(async move {
                serve(call, Arc::new(server), told).await;
                lock(&mounted).remove(&name);
            });
        }
        match timeout(MOUNT_PATIENCE, mounted).await {
            Ok(Ok(mounted)) => mounted.map(|()| name),
            _ => Err(ShareError::NoMount(path.display().to_string())),
        }
    }

    /// Lets a mount go with its last container.
    pub async fn release(&self, name: &str) -> Result<(), ChannelError> {
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

/// A shared tree takes many handles; more is not asked for than the system allows anyway.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(OPEN_FILES);
    let wanted = OPEN_FILES.min(maximum);
    if limit.current.is_some_and(|current| current < wanted) {
        // Fewer files are only slower.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            },
        );
    }
}
