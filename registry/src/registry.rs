//! The registry: one storage, asked by HTTP requests.

use std::error::Error;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use vdkr_core::distribution::ErrorCode;

use crate::access::htpasswd::Users;
use crate::body::{Body, Buffers};
use crate::budget::{Budget, busy};
use crate::config::ServerConfig;
use crate::error::{OpenError, Refusal};
use crate::fs::{self, Fs};
use crate::jobs::Jobs;
use crate::receive::Incoming;
use crate::router;
use crate::server::{self, Places};
use crate::storage::{self, Standing, Storage, StorageError, Swept};
use crate::tls::Tls;

static API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
static NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// Requests at a time that look through whole repositories.
const SCANS: usize = 4;

/// Whatever is stored, a browser that is led here runs nothing of it.
const NO_PAGE: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

/// A registry. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ServerConfig,
    storage: Arc<Storage>,
    tls: Option<Tls>,
    users: Option<Users>,
    buffers: Arc<Buffers>,
    budget: Budget,
    places: OnceLock<Arc<Places>>,
    scans: Arc<Semaphore>,
    jobs: Arc<Jobs>,
}

impl Registry {
    /// Opens the storage of a configuration: makes what is missing, proves that it can be written, and
    /// clears what dead processes left behind. Takes the same short time however much is stored.
    ///
    /// On a full disk it is opened all the same: pushes are refused there until something is removed.
    /// What lies on a file system that is mounted read-only is served read-only.
    pub fn open(mut config: ServerConfig) -> Result<Self, OpenError> {
        let tls = config.tls.as_ref().map(Tls::open).transpose()?;
        let users = config.htpasswd.as_deref().map(Users::open).transpose()?;
        let path = config.storage.clone();
        fs::make_root(&path).map_err(|source| OpenError::Create {
            path: path.clone(),
            source,
        })?;
        let open = || {
            let fs = Fs::open_with(&path, config.fault_plan.clone())?;
            Storage::open(fs, config.memory)
        };
        let storage = match open() {
            Ok(storage) => Arc::new(storage),
            Err(error @ StorageError::NoDirectory(_)) => return Err(OpenError::Storage(error)),
            Err(source) => return Err(OpenError::NotWritable { path, source }),
        };
        match storage.standing() {
            Standing::Writable => {}
            Standing::Full(error) => tracing::warn!(
                %error,
                "the disk of the storage is full: nothing can be pushed until something is removed; \
                 delete images and collect garbage"
            ),
            Standing::ReadOnly(error) => {
                tracing::warn!(%error, "the storage is served read-only");
                config.read_only = true;
            }
        }
        let budget = Budget::new(&config.limits);
        Ok(Self(Arc::new(Inner {
            config,
            storage,
            tls,
            users,
            buffers: Arc::default(),
            budget,
            places: OnceLock::new(),
            scans: Arc::new(Semaphore::new(SCANS)),
            jobs: Arc::default(),
        })))
    }

    /// What it was opened with.
    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// The storage beneath, for what is no request. Its methods block.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.0.storage
    }

    /// Takes up certificate, key and users if their files have changed; what cannot be used is told
    /// in the log, and the old ones stay. Blocks. [`serve`](crate::serve) looks every second, and
    /// waits until a change has come to rest.
    pub fn refresh(&self) {
        self.refresh_when(true);
    }

    pub(crate) fn refresh_when(&self, at_once: bool) {
        if let Some(tls) = &self.0.tls {
            tls.refresh(at_once);
        }
        if let Some(users) = &self.0.users {
            users.refresh(at_once);
        }
    }

    /// Removes upload sessions that have expired. Blocks; [`serve`](crate::serve) does it at its
    /// start and every hour.
    pub fn sweep_uploads(&self) -> Result<Swept, StorageError> {
        self.0
            .storage
            .sweep_uploads(self.0.config.limits.upload_expiry.as_secs())
    }

    /// Answers one request.
    ///
    /// A request that is dropped before it is answered leaves the storage in a legal state: what has
    /// begun to be stored is stored.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let body = if body.is_end_stream() {
            Incoming::none()
        } else {
            let exact = body.size_hint().exact();
            let body = body.map_err(Into::into).boxed_unsync();
            Incoming::new(body, exact, &self.0.config.limits)
        };
        let mut response = router::answer(self, &head, body).await;
        let headers = response.headers_mut();
        headers.insert(&API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.insert(&NO_SNIFF, HeaderValue::from_static("nosniff"));
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(NO_PAGE);
        response
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref()
    }

    pub(crate) fn users(&self) -> Option<&Users> {
        self.0.users.as_ref()
    }

    /// Ends maintenance that is under way, in a legal state: a server that stops does not wait for it.
    pub fn stop_maintenance(&self) {
        self.0.jobs.stop();
    }

    pub(crate) fn jobs(&self) -> &Arc<Jobs> {
        &self.0.jobs
    }

    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.0.buffers
    }

    /// Places of connections, those of all listeners together.
    pub(crate) fn places(&self) -> &Arc<Places> {
        self.0.places.get_or_init(|| {
            let wanted = self.0.config.limits.connections;
            let files = server::raise_open_files();
            let count = server::connections(wanted, files);
            if count < wanted {
                tracing::warn!(
                    places = count,
                    wanted,
                    "fewer connections at a time: this process may not have more files open (ulimit -n)"
                );
            }
            Places::new(count, server::spare(count, files))
        })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// [`Registry::blocking`] for what looks through a whole repository or all of them: a few do so at a
    /// time, and the others wait for a while.
    pub(crate) async fn scanning<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> storage::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = Arc::clone(&self.0.scans).acquire_owned();
        let Ok(Ok(turn)) = timeout(self.0.config.limits.list_wait, turn).await else {
            return Err(busy("too many lists are asked for at once"));
        };
        self.blocking(move |storage| {
            // Held to the end of the work, also when nobody waits for it.
            let _turn = turn;
            work(storage)
        })
        .await
    }

    /// Does something with the storage where it may block. It is done to its end even when nobody
    /// waits for it any more.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> storage::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let storage = Arc::clone(&self.0.storage);
        let task = tokio::task::spawn_blocking(move || {
            work(&storage).map_err(|error| Refusal::of_storage(&error, &storage))
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request was given up");
            Err(Refusal::new(
                ErrorCode::Unknown,
                "the registry failed; see its log",
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use http::header::RETRY_AFTER;
    use http_body_util::Empty;
    use vdkr_core::digest::Digest;

    use super::*;

    fn open(dir: &std::path::Path) -> Registry {
        let mut config = ServerConfig::new(dir);
        config.limits.list_wait = Duration::from_millis(50);
        Registry::open(config).unwrap()
    }

    #[tokio::test]
    async fn lists_wait_for_their_turn_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path());
        let get = async |path: &str| {
            let request = Request::get(path).body(Empty::<Bytes>::new()).unwrap();
            registry.handle(request).await
        };
        let paths = [
            "/v2/_catalog".to_owned(),
            "/v2/_vdkr/images/list".to_owned(),
            "/v2/a/tags/list".to_owned(),
            "/v2/a/_vdkr/history/v1".to_owned(),
            format!("/v2/a/referrers/{}", Digest::sha256(b"")),
        ];
        let turns = Arc::clone(&registry.0.scans).acquire_many_owned(SCANS as u32);
        let turns = turns.await.unwrap();
        for path in &paths {
            let answer = get(path).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert_eq!(answer.headers()[RETRY_AFTER], "5", "{path}");
        }
        assert_eq!(get("/v2/").await.status(), StatusCode::OK);
        drop(turns);
        for path in &paths {
            let status = get(path).await.status();
            assert!(
                matches!(status, StatusCode::OK | StatusCode::NOT_FOUND),
                "{path}: {status}"
            );
        }
    }

    #[tokio::test]
    async fn a_turn_ends_with_the_work_and_not_with_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(dir.path());
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let asking = registry.clone();
        let client = tokio::spawn(async move {
            let work = move |_: &Storage| {
                begin.send(()).unwrap();
                let _ = ended.recv();
                Ok(())
            };
            asking.scanning(work).await
        });
        while begun.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        assert_eq!(registry.0.scans.available_permits(), SCANS - 1);
        drop(end);
        let all = registry.0.scans.acquire_many(SCANS as u32);
        timeout(Duration::from_mins(1), all)
            .await
            .unwrap()
            .unwrap()
            .forget();
    }
}
