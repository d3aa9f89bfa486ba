//! What can be wrong with keys and certificates.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vdkr_transfer::TransferError;

/// Why keys and certificates cannot be used or made.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is not usable: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file is not the PEM that it should be; the text names it.
    #[error("{0}")]
    Pem(TransferError),
    /// Somebody else has been making certificates for too long.
    #[error("{} is locked by another container-registry; try again when it has ended", .0.display())]
    Locked(PathBuf),
    /// There is no key to sign with.
    #[error(
        "{} has no ca.key, so no server certificate can be made here; put server.crt and server.key \
         there, or the CA's key", .0.display()
    )]
    NoCaKey(PathBuf),
    /// There are no certificates.
    #[error("there is no certificate in {}; make them with: container-registry pki init", .0.display())]
    Missing(PathBuf),
    /// The certificate at hand is somebody else's and cannot be used or replaced.
    #[error("{} was not made by this program and {reason}; replace it, or remove it together with server.key to have one made", path.display())]
    Foreign {
        /// The certificate.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Making or signing failed.
    #[error("cannot make a certificate: {0}")]
    Sign(String),
}
