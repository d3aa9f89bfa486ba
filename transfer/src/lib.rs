//! Moves image content between registries, layouts and stores, verifying every byte.
//!
//! [`Client`] speaks OCI Distribution v1.1 with any registry; [`layout`] reads and writes OCI image
//! layouts, [`archive`] tar archives of images, [`dir`] skopeo's directories; [`copy`] moves whole images
//! between all of them; [`tree`] moves plain files. Content passes a check of digest and size
//! ([`VerifyingReader`]) at each boundary, and no length is believed before it is bounded.
//!
//! Everything runs on any tokio runtime, with one thread or several, that has time and I/O
//! enabled. Files are read and hashed on the runtime's blocking threads.

pub mod archive;
mod auth;
mod blob;
mod client;
mod config;
pub mod copy;
pub mod dir;
mod endpoint;
pub mod erofs;
mod error;
mod extension;
mod feed;
mod guard;
mod http;
mod json;
pub mod layer;
pub mod layout;
mod listing;
mod manifests;
pub mod pem;
mod progress;
pub mod pull;
mod referrers;
mod request;
mod retry;
mod scope;
mod source;
pub mod target;
mod tls;
mod token;
pub mod tree;
mod upload;
mod verify;

pub use archive::{ArchiveKind, ArchiveWriter};
pub use blob::{BlobReader, RegistryBlob};
pub use client::{Client, Repository};
pub use config::{ClientConfig, CredentialSource, Mirror, Trust, TrustRule, anonymous, trust_rule};
pub use copy::{Copier, CopyOptions, CopyReport, ImageDestination, ImageSource, RegistryImages};
pub use dir::DirWriter;
pub use error::{Answer, TransferError};
pub use layout::{LayoutImage, LayoutWriter, OciLayout};
pub use manifests::{FetchedManifest, IfMatch, PutManifest};
pub use progress::{Item, Outcome, Progress, ProgressEvent, ProgressSink, silent};
pub use referrers::referrers_tag;
pub use retry::RetryPolicy;
pub use source::{BlobSource, ChunkReader, FileSource};
pub use tls::Roots;
pub use upload::journal::UploadJournal;
pub use upload::local::{LocalSessions, WholeFile};
pub use upload::{MountOutcome, UploadOptions, UploadSession};
pub use verify::{Verifier, VerifyingReader};
