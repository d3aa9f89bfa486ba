//! Virtual machines: what they are made of, how they start, and how to talk to the agent inside.

pub mod accel;
pub mod arch;
mod boot;
pub mod channel;
pub mod console;
pub mod disk;
pub mod disks;
pub mod forward;
pub mod kept;
pub mod locate;
pub mod monitor;
pub mod pipe;
pub mod process;
pub mod processor;
pub mod qemu;
pub mod qmp;
pub mod router;
pub mod snapshot;
pub mod start;
pub mod target;
pub mod timing;
pub mod tsc;

#[cfg(test)]
#[path = "../../tests/fake_agent/mod.rs"]
pub(crate) mod fake_agent;

/// How this program names itself to an agent.
pub const SOFTWARE: &str = concat!("vdkr ", env!("CARGO_PKG_VERSION"));
