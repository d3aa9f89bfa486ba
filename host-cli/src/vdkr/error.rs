//! What went wrong, what the user can do about it, and the exit status it has.

use std::{fmt, io};

use tokio::signal::unix::SignalKind;
use vdkr_core::{
    channel::message::{Failure, FailureCode},
    reference::ReferenceError,
};
use vdkr_transfer::{TransferError, pull::ImageError};

use super::{config::ConfigError, state::StateError, words::printable};
use crate::{
    exit::Exit,
    registry_cli::error::{exit_of, words},
    vm::{
        channel::ChannelError, locate::LocateError, pipe::PipeError, start::StartError,
        target::TargetError,
    },
};

/// An error as the user reads it.
#[derive(Debug)]
pub struct Error {
    exit: Exit,
    signal: Option<u8>,
    message: String,
    hint: Option<String>,
    /// The other side cannot do what was asked at all.
    unsupported: bool,
}

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with this exit status.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            signal: None,
            message: message.into(),
            hint: None,
            unsupported: false,
        }
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The user ended the command by a signal.
    pub fn interrupted(signal: SignalKind) -> Self {
        let number = u8::try_from(signal.as_raw_value()).unwrap_or_default();
        Self {
            signal: Some(number),
            ..Self::new(Exit::Failed, "interrupted")
        }
    }

    /// Whether the other side cannot do what was asked at all, so that another way is worth a try.
    pub fn is_unsupported(&self) -> bool {
        self.unsupported
    }

    /// The exit status by the table.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The status of a process that a signal ended, when one did.
    pub fn signalled(&self) -> Option<u8> {
        self.signal.map(|number| 128 + number)
    }
}

/// What others had a say in, as one line: what follows it is ours.
fn one_line(text: &str) -> String {
    printable(text).replace('\n', " ")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let told = Self {
            unsupported: failure.code == FailureCode::Unsupported,
            ..Self::new(failure.code.into(), one_line(&failure.message))
        };
        match failure.hint {
            Some(hint) => told.with_hint(hint),
            None => told,
        }
    }
}

impl From<TargetError> for Error {
    fn from(error: TargetError) -> Self {
        Self::new(Exit::Unreachable, error.to_string())
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Blob(error) => (*error).into(),
            error => Failure::from(error).into(),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        let exit = match error {
            ConfigError::Io { .. } => Exit::Failed,
            _ => Exit::Usage,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        let exit = match error {
            StateError::Name(_) | StateError::NoHome => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<ReferenceError> for Error {
    fn from(error: ReferenceError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::Board { .. }
            | StartError::StatePath(_)
            | StartError::Locate(LocateError::NotAKernel { .. }) => Exit::Usage,
            StartError::Boot(_) | StartError::Pipe(_) => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<ChannelError> for Error {
    fn from(error: ChannelError) -> Self {
        let exit = match error {
            ChannelError::Lost(_) => Exit::Unreachable,
            ChannelError::Request(_) => Exit::Usage,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<PipeError> for Error {
    fn from(error: PipeError) -> Self {
        let told = Self::new(Exit::Unreachable, error.to_string());
        match error {
            PipeError::Message(_) => told.with_hint("restart it with: vdkr memres restart"),
            PipeError::Silent(_) => told.with_hint(
                "the process that keeps the machine is there, and may only be slow: try again; to \
                 give it up, with what runs in it: vdkr memres stop",
            ),
            _ => told,
        }
    }
}

impl From<TransferError> for Error {
    fn from(error: TransferError) -> Self {
        let told = Self::new((&error).into(), one_line(&error.to_string()));
        match error {
            TransferError::Tls { .. } => told.with_hint(
                "give the certificate of the registry's CA with --ca-cert, or name the host with \
                 --insecure-registry",
            ),
            TransferError::Denied { .. } => {
                told.with_hint("log in with: vdkr login HOST (or --registry-user, --config FILE)")
            }
            _ => told,
        }
    }
}

impl From<anyhow::Error> for Error {
    /// An error of a part that `container-registry` shares.
    fn from(error: anyhow::Error) -> Self {
        Self::new(exit_of(&error), words(&error))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_foreign_drives_the_terminal_or_adds_lines() {
        let failure = Failure::new(
            FailureCode::NotFound,
            "it has \u{1b}[2Jlinux/\u{9b}arm64\r\nvdkr: all is well\u{7}",
        );
        let shown = Error::from(failure.with_hint("try\nthis")).to_string();
        assert_eq!(
            printable(&shown),
            "it has  [2Jlinux/ arm64  vdkr: all is well \ntry\nthis"
        );
        let image = ImageError::NoPlatform {
            reference: "r".into(),
            wanted: "linux/amd64".into(),
            available: vec!["linux/\u{1b}]0;x\u{7}\n".into()],
        };
        let shown = Error::from(image).to_string();
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }

    #[test]
    fn whoever_is_not_trusted_is_not_reached() {
        let tls = || TransferError::Tls {
            url: "https://h/v2/".into(),
            reason: "UnknownIssuer".into(),
        };
        assert_eq!(Error::from(tls()).exit(), Exit::Unreachable);
        let shared = anyhow::Error::from(tls()).context("cannot log in");
        assert_eq!(Error::from(shared).exit(), Exit::Unreachable);
        let other = anyhow::anyhow!("no file").context("cannot log in");
        assert_eq!(Error::from(other).exit(), Exit::Failed);
    }
}
