//! Errors: of opening a storage, and answers that refuse a request.

use std::fmt::Write as _;
use std::path::PathBuf;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use vdkr_core::distribution::{ErrorBody, ErrorCode};
use vdkr_core::extension::{DAMAGED, DAMAGED_HEADER};

use crate::access::htpasswd::UsersError;
use crate::body::Body;
use crate::budget::busy;
use crate::storage::{Storage, StorageError};
use crate::tls::TlsError;

/// Why a storage cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The root is no directory and cannot be made one.
    #[error("cannot make the storage directory {}: {source}", path.display())]
    Create {
        /// The storage root.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The root is there, but files in it cannot be made, written and synced.
    #[error(
        "the storage directory {} cannot be written: {source}; \
         choose another one, or give this user the right to write there", path.display()
    )]
    NotWritable {
        /// The storage root.
        path: PathBuf,
        /// The operation that failed.
        source: StorageError,
    },
    /// A part of the storage is not where it should be.
    #[error("the storage cannot be opened: {0}")]
    Storage(StorageError),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The users cannot be read.
    #[error(transparent)]
    Users(#[from] UsersError),
}

/// An answer that refuses a request.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    body: ErrorBody,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let status = code.status();
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            body: ErrorBody::new(code, message),
            headers: Vec::new(),
        }
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn with_detail(mut self, detail: serde_json::Value) -> Self {
        self.body = self.body.with_detail(detail);
        self
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn body(&self) -> &ErrorBody {
        &self.body
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body.to_json()));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
            .headers_mut()
            .extend(self.headers.into_iter().map(|(k, v)| (Some(k), v)));
        response
    }

    /// The refusal for a failure of the storage. Paths stay in the log: they are nobody's business.
    pub(crate) fn of_storage(error: &StorageError, storage: &Storage) -> Self {
        match error {
            StorageError::Fs(error) if error.is_no_space() => Self::no_space(storage, None),
            StorageError::Fs(error) if error.is_too_many_files() => {
                tracing::warn!(%error, "the storage waits for files to be closed");
                busy("the registry has too many files open")
            }
            StorageError::Fs(error) => {
                tracing::error!(%error, "the storage failed");
                Self::new(
                    ErrorCode::Unknown,
                    format!(
                        "the registry's storage failed: cannot {}: {}",
                        error.action, error.errno
                    ),
                )
            }
            StorageError::DigestMismatch { expected, got } => {
                Self::new(ErrorCode::DigestInvalid, error.to_string())
                    .with_detail(serde_json::json!({ "expected": expected, "got": got }))
            }
            StorageError::MissingReferences(missing) => {
                Self::new(ErrorCode::ManifestBlobUnknown, error.to_string()).with_detail(
                    serde_json::json!({ "digests": missing.iter().take(100).collect::<Vec<_>>() }),
                )
            }
            StorageError::WrongSize { .. }
            | StorageError::NestsTooDeep
            | StorageError::HasTooMany => Self::new(ErrorCode::ManifestInvalid, error.to_string()),
            StorageError::ConditionFailed { current } => {
                let refusal = Self::new(ErrorCode::PreconditionFailed, error.to_string())
                    .with_detail(serde_json::json!({ "current": current }));
                match current.as_ref().and_then(|c| crate::endpoint::etag(c).ok()) {
                    Some(etag) => refusal.with_header(http::header::ETAG, etag),
                    None => refusal,
                }
            }
            StorageError::Damaged(what) => {
                tracing::error!(what, "damaged content was asked for");
                Self::new(ErrorCode::Other(DAMAGED.into()), error.to_string())
                    .with_status(StatusCode::INTERNAL_SERVER_ERROR)
                    // The answer to HEAD has no body.
                    .with_header(
                        HeaderName::from_static(DAMAGED_HEADER),
                        HeaderValue::from_static("1"),
                    )
            }
            StorageError::UploadUnknown => {
                Self::new(ErrorCode::BlobUploadUnknown, error.to_string())
            }
            StorageError::UploadDisturbed { .. } => {
                Self::new(ErrorCode::BlobUploadInvalid, error.to_string())
            }
            StorageError::NoDirectory(_) => {
                tracing::error!(%error, "the storage failed");
                Self::new(
                    ErrorCode::Unknown,
                    "the registry's storage failed; see its log",
                )
            }
            StorageError::Locked(_) => {
                tracing::error!(%error, "the storage waits in vain");
                busy("another process keeps a part of the registry's storage locked; see its log")
            }
            StorageError::Busy | StorageError::Stopped => {
                Self::new(ErrorCode::Unavailable, error.to_string())
            }
        }
    }

    /// The disk is full, or has no room for the `needed` bytes announced.
    pub(crate) fn no_space(storage: &Storage, needed: Option<u64>) -> Self {
        let mut message = "the registry's disk is full".to_owned();
        let mut detail = serde_json::Map::new();
        if let Ok(space) = storage.fs().space() {
            let _ = write!(
                message,
                ": {} of {} bytes are free",
                space.free, space.total
            );
            detail.insert("free_bytes".into(), space.free.into());
            detail.insert("total_bytes".into(), space.total.into());
        }
        if let Some(needed) = needed {
            let _ = write!(message, ", {needed} are needed");
            detail.insert("needed_bytes".into(), needed.into());
        }
        Self::new(ErrorCode::StorageFull, message).with_detail(detail.into())
    }
}
