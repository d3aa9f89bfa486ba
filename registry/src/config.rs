//! What a server is told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::fs::FaultPlan;
use crate::storage::Memory;
use crate::tls::TlsFiles;

/// How to serve one storage.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The storage root; made when missing. `docker/registry/v2` lies in it.
    pub storage: PathBuf,
    /// Whether tags, manifests and blobs may be deleted.
    pub delete_enabled: bool,
    /// Whether nothing at all may change.
    pub read_only: bool,
    /// Whether manifests are taken whose blobs or children the repository does not have, as for an
    /// index of which only some platforms are kept.
    pub sparse_manifests: bool,
    /// Certificate and key; without them, plain HTTP is spoken.
    pub tls: Option<TlsFiles>,
    /// The htpasswd file of those who may use the registry; without one, everybody may.
    pub htpasswd: Option<PathBuf>,
    /// Names that web pages may know the registry by, beside addresses, `localhost` and names of one
    /// part. Clients that are no browsers may use any.
    pub names: Vec<String>,
    /// Bounds on what clients may take up.
    pub limits: Limits,
    /// Bounds on what is kept in memory.
    pub memory: Memory,
    /// For tests: sees every file operation.
    pub fault_plan: Option<Arc<FaultPlan>>,
}

impl ServerConfig {
    /// The defaults for a storage root.
    pub fn new(storage: impl Into<PathBuf>) -> Self {
        Self {
            storage: storage.into(),
            delete_enabled: true,
            read_only: false,
            sparse_manifests: false,
            tls: None,
            htpasswd: None,
            names: Vec::new(),
            limits: Limits::default(),
            memory: Memory::default(),
            fault_plan: None,
        }
    }
}

/// Bounds on what clients may take up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted. One address has at most half of them.
    pub connections: usize,
    /// How long a client may take for the TLS handshake.
    pub handshake_timeout: Duration,
    /// How long a client may take to send the head of a request, and a connection may be idle.
    pub header_timeout: Duration,
    /// The same for connections that are made while few places are left.
    pub crowded_timeout: Duration,
    /// How long a client may leave a request's body, or the reading of an answer, without progress.
    pub idle_timeout: Duration,
    /// Bytes a second that a body, or an answer, must move on the mean of so long a time.
    pub body_rate: u64,
    /// How long requests may go on after the shutdown began.
    pub shutdown_deadline: Duration,
    /// Bytes of the head of a request.
    pub head_bytes: usize,
    /// Bytes of long manifests being received at a time, and as many of memory for reading manifests.
    pub manifest_budget: usize,
    /// How long a manifest may take to arrive.
    pub manifest_deadline: Duration,
    /// How long a manifest may wait for room within the budget.
    pub manifest_wait: Duration,
    /// How long the request for a list may wait until others that look through much are done.
    pub list_wait: Duration,
    /// Bytes of one list of referrers.
    pub referrers_bytes: usize,
    /// Upload sessions that nobody touched for so long are removed.
    pub upload_expiry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_mins(1),
            crowded_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            body_rate: 1 << 10,
            shutdown_deadline: Duration::from_secs(10),
            head_bytes: 64 << 10,
            manifest_budget: 64 << 20,
            manifest_deadline: Duration::from_mins(1),
            manifest_wait: Duration::from_secs(15),
            list_wait: Duration::from_secs(15),
            referrers_bytes: 4 << 20,
            upload_expiry: Duration::from_hours(7 * 24),
        }
    }
}
