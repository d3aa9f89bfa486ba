//! What a user of a full image types: one file per command. In the small VM nobody does.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use thiserror::Error;
use vdkr_core::{
    candidates::RegistryPrefix,
    channel::message::Failure,
    emit::{
        MAX_FILE,
        vdkr::{CONF, RegistryConf},
    },
};
use vdkr_transfer::target::{RootFs, RootFsError, TargetError};

use crate::store::ImageError;

pub mod configure;
pub mod pull;
pub mod status;

/// The CA of the registry, unless `--ca` names another.
pub const CA: &str = "/etc/vdkr/ca.crt";

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
            eprintln!("vdkr-agent: {error}");
            if let CommandError::Image(error) = error
                && let Some(hint) = Failure::from(error).hint
            {
                eprintln!("{hint}");
            }
            ExitCode::from(status)
        }
    }
}

/// What the target is set up to pull from.
#[derive(Debug, Default)]
struct Baked {
    conf: RegistryConf,
    /// The registry's CA, in PEM, and where it lies.
    ca: Option<(String, String)>,
}

impl Baked {
    fn read(root: &RootFs) -> Result<Self, CommandError> {
        let conf = match text(root, CONF)? {
            Some(text) => vdkr_core::emit::vdkr::parse(&text)
                .map_err(|error| CommandError::Failed(format!("{CONF}: {error}")))?,
            None => RegistryConf::default(),
        };
        let mut places = vec![CA.to_owned()];
        if let Some(registry) = &conf.registry {
            let host = registry.host();
            places.push(format!("/etc/docker/certs.d/{host}/ca.crt"));
            places.push(format!("/etc/containers/certs.d/{host}/ca.crt"));
        }
        for path in places {
            if let Some(text) = text(root, &path)? {
                return Ok(Self {
                    conf,
                    ca: Some((text, path)),
                });
            }
        }
        Ok(Self { conf, ca: None })
    }
}

fn text(root: &RootFs, path: &str) -> Result<Option<String>, CommandError> {
    let Some(found) = root.read(path, MAX_FILE)? else {
        return Ok(None);
    };
    match String::from_utf8(found.bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(CommandError::Failed(format!(
            "{path} in {} is not text",
            root.path().display()
        ))),
    }
}

fn open(root: &Path) -> Result<RootFs, CommandError> {
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
