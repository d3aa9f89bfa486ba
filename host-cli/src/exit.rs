//! Exit statuses of both commands: one documented table.

use std::process::ExitCode;

use vdkr_core::channel::message::FailureCode;
use vdkr_transfer::TransferError;

/// How a command ended, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// It failed for a reason that has no number of its own.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The server, registry or virtual machine is not running or cannot be reached.
    Unreachable = 3,
    /// The registry refused the credentials, or wants some.
    Denied = 4,
    /// The image, tag or file does not exist.
    NotFound = 5,
    /// Content does not match its digest.
    Mismatch = 6,
    /// Some of several things failed, the others were done.
    Partial = 7,
}

impl Exit {
    /// The number that the process returns.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The outcome of a removal that was to be forced: what was not there is gone, as docker has it.
    #[must_use]
    pub fn of_removal(self, force: bool) -> Self {
        match self {
            Self::NotFound if force => Self::Done,
            other => other,
        }
    }

    /// The status of a command that did several things with these outcomes: the common one when
    /// they agree, [`Exit::Partial`] when some were done and some were not, [`Exit::Failed`] when
    /// all failed for different reasons.
    pub fn of_several(outcomes: impl IntoIterator<Item = Self>) -> Self {
        let mut outcomes = outcomes.into_iter();
        let Some(first) = outcomes.next() else {
            return Self::Done;
        };
        let (mut any_done, mut all_equal) = (first == Self::Done, true);
        for outcome in outcomes {
            any_done |= outcome == Self::Done;
            all_equal &= outcome == first;
        }
        match (all_equal, any_done) {
            (true, _) => first,
            (false, true) => Self::Partial,
            (false, false) => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

impl From<FailureCode> for Exit {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::NotFound => Self::NotFound,
            FailureCode::Denied => Self::Denied,
            FailureCode::Unreachable => Self::Unreachable,
            FailureCode::DigestMismatch => Self::Mismatch,
            FailureCode::Usage => Self::Usage,
            _ => Self::Failed,
        }
    }
}

impl From<&TransferError> for Exit {
    fn from(error: &TransferError) -> Self {
        match error {
            // Whoever is not trusted is not reached.
            TransferError::Unreachable { .. } | TransferError::Tls { .. } => Self::Unreachable,
            // The registry has looked, and says so.
            TransferError::Status { .. } if error.is_damaged() => Self::Mismatch,
            TransferError::Denied { .. } => Self::Denied,
            TransferError::NotFound { .. } | TransferError::NoPlatform(_) => Self::NotFound,
            TransferError::DigestMismatch { .. } | TransferError::SizeMismatch { .. } => {
                Self::Mismatch
            }
            TransferError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::NotFound
            }
            TransferError::Credentials { .. } | TransferError::Config(_) => Self::Usage,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::manifest::ManifestError;
    use vdkr_transfer::{Answer, TransferError};

    use super::Exit;

    #[test]
    fn transfers_end_by_the_table() {
        let status = |codes: &[&str]| TransferError::Status {
            method: "GET".into(),
            url: "http://h/v2/app/manifests/t".into(),
            answer: Box::new(Answer {
                status: 500,
                codes: codes.iter().map(|&code| code.into()).collect(),
                ..Answer::default()
            }),
        };
        let tls = TransferError::Tls {
            url: "https://h/v2/".into(),
            reason: "UnknownIssuer".into(),
        };
        // It has its digest, and is none that can be used.
        let manifest = TransferError::Manifest {
            what: "manifest".into(),
            source: ManifestError::Schema1,
        };
        for (error, exit) in [
            (status(&["MANIFEST_DAMAGED"]), Exit::Mismatch),
            (status(&["UNKNOWN"]), Exit::Failed),
            (status(&[]), Exit::Failed),
            (tls, Exit::Unreachable),
            (manifest, Exit::Failed),
        ] {
            assert_eq!(Exit::from(&error), exit, "{error}");
        }
    }

    #[test]
    fn what_is_gone_already_is_removed_by_force_alone() {
        assert_eq!(Exit::NotFound.of_removal(true), Exit::Done);
        assert_eq!(Exit::NotFound.of_removal(false), Exit::NotFound);
        assert_eq!(Exit::Failed.of_removal(true), Exit::Failed);
    }

    #[test]
    fn several_outcomes_give_one_status() {
        use Exit::{Denied, Done, Failed, NotFound, Partial};
        for (outcomes, expected) in [
            (&[][..], Done),
            (&[Done, Done], Done),
            (&[NotFound], NotFound),
            (&[NotFound, NotFound], NotFound),
            (&[NotFound, Done], Partial),
            (&[Done, Denied], Partial),
            (&[NotFound, Denied], Failed),
        ] {
            assert_eq!(
                Exit::of_several(outcomes.iter().copied()),
                expected,
                "{outcomes:?}"
            );
        }
    }
}
