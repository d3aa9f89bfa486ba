//! From any error to the exit status of the process.

use std::error::Error;
use std::fmt;

use vdkr_core::reference::ReferenceError;
use vdkr_transfer::TransferError;

use super::config::ConfigError;
use crate::exit::Exit;

/// An error that brings its exit status along.
#[derive(Debug)]
pub struct Coded {
    exit: Exit,
    error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// Gives the error of a result an exit status of its own.
pub trait WithExit<T> {
    /// The status, should this be an error.
    fn exit(self, exit: Exit) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|error| {
            anyhow::Error::new(Coded {
                exit,
                error: error.into(),
            })
        })
    }
}

/// The error and its causes on one line. A cause that the words before it end with already is not
/// said twice: many errors name their cause themselves.
pub fn words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if words.is_empty() {
            words = cause;
        } else if !words.ends_with(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

/// The status for an error: the outermost cause that knows one decides.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|cause| {
            if let Some(coded) = cause.downcast_ref::<Coded>() {
                Some(coded.exit)
            } else if let Some(error) = cause.downcast_ref::<TransferError>() {
                Some(Exit::from(error))
            } else if cause.is::<ConfigError>() || cause.is::<ReferenceError>() {
                Some(Exit::Usage)
            } else {
                None
            }
        })
        .unwrap_or(Exit::Failed)
}

/// Whether nobody answered. A server that is not trusted has.
pub fn is_silent(error: &anyhow::Error) -> bool {
    let is_tls = |cause: &(dyn Error + 'static)| {
        matches!(cause.downcast_ref(), Some(TransferError::Tls { .. }))
    };
    exit_of(error) == Exit::Unreachable && !error.chain().any(is_tls)
}

/// A message as it may be shown: names in it may have come from anywhere and be of any length. Of
/// a long one the middle is left out.
pub fn printable(message: &str) -> String {
    const HEAD: usize = 3000;
    const TAIL: usize = 500;
    let legible = |c: char| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    let count = message.chars().count();
    let all = message.chars().map(legible);
    if count <= HEAD + TAIL {
        return all.collect();
    }
    let mut shown: String = all.clone().take(HEAD).collect();
    shown.push('…');
    shown.extend(all.skip(count - TAIL));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("disk on fire");
        let error = anyhow::anyhow!("cannot open x: {io}");
        assert_eq!(
            words(&error.context("copying")),
            "copying: cannot open x: disk on fire"
        );
        let named = vdkr_registry::OpenError::Create {
            path: "/x".into(),
            source: std::io::Error::other("disk on fire"),
        };
        let words = words(&anyhow::Error::new(named).context("serving"));
        assert_eq!(words.matches("disk on fire").count(), 1, "{words}");
    }

    #[test]
    fn status_survives_context() {
        let error = Err::<(), _>(anyhow::anyhow!("gone")).exit(Exit::NotFound);
        let error = error.context("while looking").unwrap_err();
        assert_eq!(exit_of(&error), Exit::NotFound);
        assert_eq!(format!("{error:#}"), "while looking: gone");
        assert_eq!(exit_of(&anyhow::anyhow!("anything")), Exit::Failed);
        let config = anyhow::Error::new(ConfigError::NoStorage).context("outer");
        assert_eq!(exit_of(&config), Exit::Usage);
    }

    #[test]
    fn who_is_not_trusted_is_there() {
        let tls = TransferError::Tls {
            url: "https://h/v2/".into(),
            reason: "UnknownIssuer".into(),
        };
        let tls = anyhow::Error::new(tls).context("outer");
        assert_eq!(exit_of(&tls), Exit::Unreachable);
        assert!(!is_silent(&tls));
        let down = TransferError::Unreachable {
            url: "https://h/v2/".into(),
            reason: "Connection refused".into(),
        };
        assert!(is_silent(&anyhow::Error::new(down).context("outer")));
        assert!(!is_silent(&anyhow::anyhow!("anything")));
    }

    #[test]
    fn messages_cannot_drive_the_terminal_or_fill_it() {
        assert_eq!(printable("a\u{1b}[1m\nb"), "a\u{fffd}[1m\nb");
        let shown = printable(&format!("{}: what to do", "é".repeat(100_000)));
        assert_eq!(shown.chars().count(), 3501);
        assert!(shown.contains("é…é") && shown.ends_with(": what to do"));
    }
}
