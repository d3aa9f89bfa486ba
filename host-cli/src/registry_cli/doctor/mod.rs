//! What `doctor` looks at: the server, the machine, the other clients, and the guest.
//!
//! Nothing is changed: files are read, the registry is asked a few questions, and the other clients, vdkr
//! among them, are made to ask one.

mod certificate;
mod clients;
mod guest;
mod server;
mod vdkr;

use std::path::PathBuf;

use anyhow::Result;

use super::config::Config;

/// What came of one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub subject: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, or is not needed by all; but somebody may stumble.
    Warn,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// The word that is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

impl Check {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Warn,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn fail(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(subject, found, advice)
        }
    }
}

/// Where this machine's configuration lies; a test has its own.
struct Places {
    etc: PathBuf,
    home: Option<PathBuf>,
    /// `$CONTAINERS_REGISTRIES_CONF`.
    registries_conf: Option<PathBuf>,
    /// `$SSL_CERT_FILE`, which stands for the system's trust store.
    ssl_cert_file: Option<PathBuf>,
}

/// What other clients are to ask the registry for, as `HOST/REPOSITORY:TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    /// An image that is there.
    Image(String),
    /// One that is not, as none is, or none that we may know of.
    Unknown(String),
    /// Nothing: there is nobody to ask.
    Nobody,
}

impl Places {
    fn real() -> Self {
        let path = |name| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        Self {
            etc: "/etc".into(),
            home: path("HOME"),
            registries_conf: path("CONTAINERS_REGISTRIES_CONF"),
            ssl_cert_file: path("SSL_CERT_FILE"),
        }
    }
}

/// Looks at everything.
pub async fn examine(config: &Config) -> Result<Vec<Check>> {
    let (mut checks, ask) = server::checks(config).await?;
    checks.extend(certificate::checks(config)?);
    checks.extend(clients::checks(config, &Places::real(), &ask).await?);
    checks.extend(guest::checks(config, &ask).await?);
    Ok(checks)
}
