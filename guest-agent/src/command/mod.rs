//! What a user of a full image types: one file per command. In the small VM nobody does.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use thiserror::Error;
use vdkr_core::{
    candidates::RegistryPrefix,
    channel::message::{Failure, FailureCode},
    emit::MAX_FILE,
    loopback::DEFAULT_GATEWAY,
};
use vdkr_transfer::target::{RootFs, RootFsError, TargetError};

use crate::{boot::network::GATEWAY, store::ImageError};

pub mod configure;
mod from;
pub mod local;
pub mod pull;
pub mod run;
pub mod status;

pub use from::PullFrom;

/// The status of a container that could not be made, as docker has it.
const NOT_CREATED: u8 = 125;

/// A command did not get to its end.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The words make no sense.
    #[error("{0}")]
    Usage(String),
    /// Something that was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// Files of the target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The agent that does the work says no.
    #[error("{0}")]
    Refused(#[from] Failure),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<RootFsError> for CommandError {
    fn from(error: RootFsError) -> Self {
        Self::Target(error.into())
    }
}

impl CommandError {
    /// The exit status, as the host programs have it.
    fn status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NotFound(_) => 5,
            Self::Image(error) => error.code().exit_code(),
            Self::Refused(failure) => failure.code.exit_code(),
            Self::Target(_) | Self::Failed(_) => 1,
        }
    }
}

/// Says what went wrong, and gives the exit status.
pub fn finish(result: Result<(), CommandError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let status = error.status();
            complain(error);
            ExitCode::from(status)
        }
    }
}

/// The same for a container that was run: its status, or 125 when it did not come to one.
pub fn run_finish(result: Result<u8, CommandError>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        complain(error);
        NOT_CREATED
    }))
}

/// Says what went wrong.
fn complain(error: CommandError) {
    eprintln!("vdkr-agent: {error}");
    let failure = match error {
        CommandError::Image(error) => Failure::from(error),
        CommandError::Refused(failure) => failure,
        _ => return,
    };
    // The failure's own words are for a user of vdkr.
    if failure.code == FailureCode::Denied {
        eprintln!("give a login with --authfile FILE, or keep it in root's .docker/config.json");
    } else if let Some(hint) = failure.hint {
        eprintln!("{hint}");
    }
}

/// The address of the computer that this system is a guest of, by where its default route leads: in
/// QEMU's user network that is known, and everywhere else there is none.
fn host_address(route: Option<Ipv4Addr>) -> Option<&'static str> {
    (route == Some(GATEWAY)).then_some(DEFAULT_GATEWAY)
}

/// Opens a root file system.
pub(crate) fn open(root: &Path) -> Result<RootFs, CommandError> {
    RootFs::open(root).map_err(|error| {
        let words = format!(
            "cannot use {} as a root file system: {error}",
            root.display()
        );
        if root.exists() {
            CommandError::Failed(words)
        } else {
            CommandError::NotFound(words)
        }
    })
}

fn registry(text: &str) -> Result<RegistryPrefix, CommandError> {
    RegistryPrefix::parse(text)
        .map_err(|error| CommandError::Usage(format!("--registry {text}: {error}")))
}

/// A file that the command line names.
fn given(path: &PathBuf) -> Result<String, CommandError> {
    let failed = |error: std::io::Error| {
        let words = format!("cannot read {}: {error}", path.display());
        if error.kind() == std::io::ErrorKind::NotFound {
            CommandError::NotFound(words)
        } else {
            CommandError::Failed(words)
        }
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(CommandError::Failed(format!(
            "{}: expected a regular file of at most {MAX_FILE} bytes",
            path.display()
        )));
    }
    std::fs::read_to_string(path).map_err(failed)
}
