//! The registry: one storage, asked by HTTP requests.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use vdkr_core::distribution::ErrorCode;

use crate::access::htpasswd::Users;
use crate::body::{Body, Buffers};
use crate::config::ServerConfig;
use crate::error::{OpenError, Refusal};
use crate::fs::Fs;
use crate::jobs::Jobs;
use crate::receive::Incoming;
use crate::router;
use crate::storage::{self, Storage, StorageError, Swept};
use crate::tls::Tls;

/// What a manifest is weighed in while it is received.
pub(crate) const BUDGET_UNIT: usize = 1024;

static API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
static NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

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
    manifest_budget: Semaphore,
    jobs: Arc<Jobs>,
}

impl Registry {
    /// Opens the storage of a configuration: makes what is missing, proves that it can be written, and
    /// clears what dead processes left behind. Takes the same short time however much is stored.
    pub fn open(config: ServerConfig) -> Result<Self, OpenError> {
        let tls = config.tls.as_ref().map(Tls::open).transpose()?;
        let users = config.htpasswd.as_deref().map(Users::open).transpose()?;
        let path = config.storage.clone();
        std::fs::create_dir_all(&path).map_err(|source| OpenError::Create {
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
        let budget = config
            .limits
            .manifest_budget
            .div_ceil(BUDGET_UNIT)
            .min(Semaphore::MAX_PERMITS);
        Ok(Self(Arc::new(Inner {
            config,
            storage,
            tls,
            users,
            buffers: Arc::default(),
            manifest_budget: Semaphore::new(budget),
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
            Incoming::new(body, exact, self.0.config.limits.idle_timeout)
        };
        let mut response = router::answer(self, &head, body).await;
        let headers = response.headers_mut();
        headers.insert(&API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.insert(&NO_SNIFF, HeaderValue::from_static("nosniff"));
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

    pub(crate) fn manifest_budget(&self) -> &Semaphore {
        &self.0.manifest_budget
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
