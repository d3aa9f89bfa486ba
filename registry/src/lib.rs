//! The embedded registry: a server of the OCI Distribution protocol, version 1.1, on a directory in
//! the layout of the CNCF Distribution project.
//!
//! [`Registry::open`] takes a storage, [`Registry::handle`] answers one request, and [`serve`] does it
//! for a listener. What was answered with 201 survives a power cut.

pub use access::htpasswd::{UsersError, hash_password, password_matches};
pub use body::Body;
pub use config::{Limits, ServerConfig};
pub use error::OpenError;
pub use registry::Registry;
pub use server::{serve, serve_connection};
pub use tls::{TlsError, TlsFiles};

mod access;
mod body;
mod budget;
mod config;
mod endpoint;
mod error;
pub mod fs;
mod jobs;
mod pace;
mod receive;
mod registry;
mod router;
mod server;
pub mod storage;
mod tls;
