//! Decisions of the project, without I/O, clock or randomness: everything here is a function of
//! its arguments, runs without `std`, and is linked into the host programs, the agent and the web page.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod base64;
pub mod candidates;
pub mod certificate;
pub mod channel;
pub mod container;
pub mod credentials;
pub mod deploy;
pub mod digest;
pub mod distribution;
pub mod emit;
pub mod engine;
pub mod extension;
pub mod fuse;
pub mod json_text;
pub mod labels;
pub mod loopback;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod retention;
pub mod seccomp;
pub mod stored;
pub mod tags;
pub mod tar;
pub mod target;
pub mod template;
pub mod time;
pub mod transport;
pub mod volume;
