//! What can go wrong while content moves, in the terms a caller acts on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vdkr_core::candidates::FetchOutcome;
use vdkr_core::digest::Digest;
use vdkr_core::extension::DAMAGED;
use vdkr_core::manifest::ManifestError;

/// A failed transfer. Cheap to clone: several waiters may receive the outcome of one request.
///
/// URLs in it carry neither query nor user name, because both may hold secrets.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// No answer: the name does not resolve, nothing listens, the connection broke or went silent.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why there was no answer.
        reason: String,
    },
    /// The server's certificate or handshake was refused.
    #[error("TLS with {url} failed: {reason}")]
    Tls {
        /// What was asked.
        url: String,
        /// What rustls says.
        reason: String,
    },
    /// 401 or 403, from the registry or its token server.
    #[error("{url} refused access ({answer}){}", hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Denied {
        /// What was asked.
        url: String,
        /// The answer.
        answer: Box<Answer>,
        /// What to do, where that is known.
        hint: Option<String>,
    },
    /// 404: the registry does not know the name, the manifest or the blob.
    #[error("{what} is not at {url} ({answer})")]
    NotFound {
        /// What was looked for.
        what: String,
        /// What was asked.
        url: String,
        /// The answer.
        answer: Box<Answer>,
    },
    /// 412: the tag was moved by somebody else since it was read.
    #[error("{url} has changed since it was read")]
    Conflict {
        /// The manifest's URL.
        url: String,
    },
    /// Any other answer that is not success.
    #[error("{method} {url} was answered with {answer}")]
    Status {
        /// The request method.
        method: String,
        /// What was asked.
        url: String,
        /// The answer.
        answer: Box<Answer>,
    },
    /// Content is not what its digest says.
    #[error("{what} does not match its digest: expected {expected}, got {got}")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// The digest it was asked for by.
        expected: Digest,
        /// The digest it has.
        got: Digest,
    },
    /// Content is shorter or longer than its descriptor says; `got` may be a lower bound.
    #[error("{what} has the wrong size: expected {expected} bytes, got {got}")]
    SizeMismatch {
        /// Which content.
        what: String,
        /// Size in the descriptor, bytes.
        expected: u64,
        /// Size seen, bytes.
        got: u64,
    },
    /// A document passes the limit that protects memory.
    #[error("{what} is larger than the {limit} bytes that are accepted")]
    TooLarge {
        /// Which document.
        what: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// An answer that the distribution specification does not allow.
    #[error("{url} answered against the protocol: {reason}")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A server pointed to a place that is not followed (redirect, `Location`, `Link`, `realm`).
    #[error("{origin} points to {target}, which is not followed: {reason}")]
    UnsafeTarget {
        /// The URL whose answer pointed there.
        origin: String,
        /// Where it pointed.
        target: String,
        /// Why it is refused.
        reason: String,
    },
    /// A manifest or configuration that cannot be used.
    #[error("{what} is not usable: {source}")]
    Manifest {
        /// Which manifest.
        what: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// An OCI layout that cannot be used.
    #[error("{} is not usable as an OCI layout: {reason}", path.display())]
    Layout {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An archive or directory of images that cannot be used.
    #[error("{} is not usable as an image archive: {reason}", path.display())]
    Archive {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: `open`, `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// Credentials for a host could not be determined.
    #[error("no usable credentials for {host}: {reason}")]
    Credentials {
        /// The registry.
        host: String,
        /// What failed, without secrets.
        reason: String,
    },
    /// The client was given settings that cannot work.
    #[error("{0}")]
    Config(String),
    /// The other side lacks something this operation needs.
    #[error("{0}")]
    Unsupported(String),
    /// The image is not there for a platform that was asked for.
    #[error("{0}")]
    NoPlatform(String),
    /// The work was stopped before it ended.
    #[error("cancelled")]
    Cancelled,
}

impl TransferError {
    /// Whether the same request may succeed when repeated a little later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { answer, .. } if !self.is_damaged() => {
                matches!(answer.status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }

    /// What pull candidates need to know. No error is "unknown there": a 404 on the way may be anybody's,
    /// and only [`crate::Client::find_manifest`] can tell the registry's own.
    pub fn outcome(&self) -> FetchOutcome {
        match self {
            Self::Unreachable { .. } => FetchOutcome::Unreachable,
            Self::Tls { .. } => FetchOutcome::Tls,
            Self::Denied { .. } | Self::Credentials { .. } => FetchOutcome::Denied,
            Self::Status { answer, .. } if answer.status == 429 => FetchOutcome::RateLimited,
            error if error.is_content() => FetchOutcome::Mismatch,
            Self::Status { .. } if self.is_damaged() => FetchOutcome::Mismatch,
            Self::Cancelled => FetchOutcome::Cancelled,
            _ => FetchOutcome::Failed,
        }
    }

    /// Whether the bytes are not what was promised (exit code 6 of the host programs).
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. }
        )
    }

    /// How long the server asked to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { answer, .. } => answer.retry_after,
            _ => None,
        }
    }

    /// The error codes of the answer's body (`MANIFEST_UNKNOWN`, …), empty when there were none.
    pub fn codes(&self) -> &[String] {
        match self {
            Self::Denied { answer, .. }
            | Self::NotFound { answer, .. }
            | Self::Status { answer, .. } => &answer.codes,
            _ => &[],
        }
    }

    /// Whether the registry has the manifest asked for, and its content is missing or damaged there. For
    /// those who read this is a failure; those who write may take it for absent, and mend it.
    pub fn is_damaged(&self) -> bool {
        self.codes().iter().any(|code| code == DAMAGED)
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        // A reader of ours hands its error through `io::Error`; take it out again.
        match source.downcast::<TransferError>() {
            Ok(inner) => inner,
            Err(source) => Self::Io {
                action,
                path: path.to_path_buf(),
                source: Arc::new(source),
            },
        }
    }

    pub(crate) fn archive(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Archive {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn layout(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Layout {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

impl From<TransferError> for io::Error {
    /// For readers: [`TransferError::from`] an error made here gives the original back.
    fn from(error: TransferError) -> Self {
        let kind = match &error {
            TransferError::NotFound { .. } => io::ErrorKind::NotFound,
            TransferError::Denied { .. } => io::ErrorKind::PermissionDenied,
            TransferError::DigestMismatch { .. } | TransferError::SizeMismatch { .. } => {
                io::ErrorKind::InvalidData
            }
            TransferError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

impl From<io::Error> for TransferError {
    /// Takes the transfer error out of an `io::Error` that one of this crate's readers returned.
    fn from(error: io::Error) -> Self {
        Self::io("read", Path::new("stream"), error)
    }
}

/// The readable part of an answer that is not success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The codes of the error body, in order; at most a handful.
    pub codes: Vec<String>,
    /// Codes and messages as one line, without control characters; empty when the body had none.
    pub message: String,
    /// `Retry-After`, already capped.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// An answer of which only the status is known.
    pub(crate) fn of(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if self.message.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.message)
    }
}

/// Makes foreign text fit for a terminal: one line, no control characters, bounded.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(limit)
        .collect();
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_error_survives_a_trip_through_io() {
        let digest = Digest::sha256(b"");
        let error = TransferError::DigestMismatch {
            what: "layer".into(),
            expected: digest.clone(),
            got: digest,
        };
        let text = error.to_string();
        let through: io::Error = error.into();
        assert_eq!(through.kind(), io::ErrorKind::InvalidData);
        let back = TransferError::from(through);
        assert!(back.is_content());
        assert_eq!(back.to_string(), text);
    }

    #[test]
    fn it_is_small_enough_to_be_returned_everywhere() {
        assert!(size_of::<TransferError>() < 128);
    }

    #[test]
    fn only_passing_states_are_retried() {
        for (status, again) in [
            (400, false),
            (404, false),
            (408, true),
            (413, false),
            (429, true),
            (500, true),
            (501, false),
            (503, true),
            (507, false),
        ] {
            let error = TransferError::Status {
                method: "GET".into(),
                url: "http://h/".into(),
                answer: Box::new(Answer::of(status)),
            };
            assert_eq!(error.retryable(), again, "{status}");
        }
    }

    #[test]
    fn a_manifest_that_says_nothing_is_what_was_asked_for() {
        let manifest = TransferError::Manifest {
            what: "manifest".into(),
            source: ManifestError::Schema1,
        };
        assert_eq!(manifest.outcome(), FetchOutcome::Failed);
        let mismatch = TransferError::SizeMismatch {
            what: "manifest".into(),
            expected: 1,
            got: 2,
        };
        assert_eq!(mismatch.outcome(), FetchOutcome::Mismatch);
    }

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[31m\r\nb\u{9b}c  ", 100), "a [31m  b c");
        assert_eq!(printable("aé€", 2), "aé");
    }
}
