//! Commands of the host.

// First: its macros are for all that follows.
#[macro_use]
mod say;

pub mod exit;
pub mod inherited;
pub mod output;
pub mod pki;
pub mod progress;
pub mod random;
pub mod registry_cli;
pub mod share;
pub mod vdkr;
pub mod vm;
