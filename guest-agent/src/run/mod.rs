//! A small OCI runtime: one container from an image's layers to its exit status.
//!
//! The agent's side is [`container`]: it prepares directories and a cgroup, starts
//! `vdkr-agent container-init` and passes it a [`spec::ContainerSpec`] and the container's standard
//! streams over a socket. That process ([`sandbox`]) is single-threaded, so it may unshare and
//! fork: its child becomes PID 1 of the container, sets up root, mounts, devices, user and
//! capabilities, and executes the command; the parent waits for it and reports.

pub mod capabilities;
pub mod cgroup;
pub mod changes;
pub mod container;
mod copy_up;
pub mod device_filter;
pub mod devices;
pub mod exec;
pub mod files;
pub mod init;
pub mod isolation;
pub mod join;
pub mod monitor;
pub mod mounts;
pub mod names;
pub mod network;
pub mod networks;
pub mod pipes;
mod point;
pub mod process;
pub mod report;
pub mod rootfs;
pub mod sandbox;
pub mod seccomp;
pub mod spec;
pub mod stdio;
pub mod user;
pub mod volumes;

pub use container::{Container, Image, Options, Remains, Streams};
pub use report::Report;
pub use spec::ContainerSpec;

/// Exit status when a container could not be made (docker's table).
pub const EXIT_NOT_CREATED: i32 = 125;
/// Exit status when the command was found and could not be executed.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit status when the command was not found.
pub const EXIT_NOT_FOUND: i32 = 127;

/// Why a container did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Neither the image nor the request names a command.
    #[error("no command specified, and the image has none; name one after the image")]
    NoCommand,
    /// The kernel ends strings at a NUL byte.
    #[error("an {0} of the container holds a NUL byte")]
    NulByte(&'static str),
    /// `=value` without a name.
    #[error("environment entry {0:?} has no name; write NAME=value")]
    BadEnvironment(String),
    /// A working directory of the request that is not absolute.
    #[error("working directory {0:?} is not absolute")]
    RelativeWorkdir(String),
    /// A host name that the kernel or a client would refuse.
    #[error(
        "host name {0:?} is empty, longer than 63 characters or not made of letters, digits, '-' and '.'"
    )]
    BadHostname(String),
    /// The request asks for what cannot be had; the text says what and why.
    #[error("{0}")]
    Refused(String),
    /// A step of the set-up failed; the text names it.
    #[error("{0}")]
    Setup(String),
    /// A step of the set-up on the agent's side failed.
    #[error("{step}: {source}")]
    Io {
        /// What was done, on what.
        step: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RunError {
    /// Whether the request is wrong, rather than what came of it.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoCommand
                | Self::NulByte(_)
                | Self::BadEnvironment(_)
                | Self::RelativeWorkdir(_)
                | Self::BadHostname(_)
                | Self::Refused(_)
        )
    }

    /// Names the step that an error of the system belongs to.
    pub fn io(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let step = step.into();
        move |source| Self::Io { step, source }
    }
}
