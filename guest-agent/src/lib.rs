//! The agent inside a target: PID 1 of the small VM, or a service of a full image.
//!
//! `boot` brings a bare kernel up, `channel` speaks the host's protocol, `request` carries out
//! one operation per file, `run` is the OCI runtime. `store`, `pull`, `unpack` and `image` keep
//! the images; `engine` is what
//! another engine of the target does in their place.

pub mod args;
pub mod baked;
pub mod boot;
pub mod channel;
pub mod command;
pub mod container;
pub mod engine;
pub mod image;
pub mod machine;
pub mod pull;
pub mod request;
pub mod run;
pub mod share;
pub mod store;
pub mod unpack;
pub mod volume;
pub mod watch;
