//! Harness of the end-to-end tests: real programs, free ports, temporary directories, and nothing
//! left running.
#![allow(
    clippy::missing_panics_doc,
    clippy::return_self_not_must_use,
    reason = "a harness fails its test by a panic, and an outcome that was checked may be dropped"
)]

pub mod board;
pub mod engine;
pub mod fixtures;
pub mod http;
pub mod layout;
pub mod namespaces;
pub mod newc;
pub mod peers;
pub mod process;
pub mod pty;
pub mod registry;
pub mod runs;
pub mod scripted;
pub mod shared;
pub mod soak;
pub mod stage;
pub mod tar;
pub mod target;
pub mod tokens;
pub mod vm;
