//! Directories and files of this computer inside containers.
//!
//! The machine's kernel asks by FUSE, the agent passes its requests on, and [`Server`] answers
//! them: it holds the shared directory open and reaches everything below it by handles and single
//! names, following no link, so that no request can name anything else. [`relay`] carries requests
//! and answers over a stream of the channel; [`Shares`] keeps what one process serves.
//!
//! What the guest may have in hands here (nodes, open files, requests under way) is bounded, for
//! each share and, where it takes descriptors, for all of them together.

mod attributes;
mod budget;
mod entries;
mod files;
mod handles;
mod listing;
mod nodes;
pub mod relay;
mod server;
mod source;

#[cfg(test)]
mod tests;

pub use relay::{ShareError, Shares};
pub use server::Server;
pub use source::{Mark, Source, SourceError};

/// Bounds of what one shared directory takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files and directories that the guest knows.
    pub nodes: usize,
    /// Of these, how many are held open between two requests.
    pub held: usize,
    /// Files without a name that are kept for the guest.
    pub nameless: usize,
    /// Files and directories that the guest has open.
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 500_000,
            held: 2048,
            nameless: 1024,
            handles: 4096,
        }
    }
}
