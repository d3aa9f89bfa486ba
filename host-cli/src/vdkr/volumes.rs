//! Mounts of a `run`: host paths are opened before a machine is started, and shared before the
//! container is. What was opened is what is shared.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::PathBuf,
};

use vdkr_core::{
    channel::message::{MountSource, MountSpec},
    volume::{MountOption, Source as Wanted},
};

use super::{
    error::{Error, Result},
    session::Session,
};
use crate::{
    exit::Exit,
    share::{Source, SourceError},
};

/// A mount whose host path is known to be there.
#[derive(Debug)]
pub struct Checked {
    option: MountOption,
    /// What the host's path leads to.
    source: Option<Source>,
}

/// Checks what can be checked without a machine. Relative paths are seen from the working
/// directory. A path that is not there is never made: it may be misspelt.
pub fn check(options: &[MountOption]) -> Result<Vec<Checked>> {
    let mut targets = BTreeSet::new();
    options
        .iter()
        .map(|option| {
            if !targets.insert(&option.target) {
                let text = format!("two mounts on {}", option.target);
                return Err(Error::usage(text));
            }
            let source = match &option.source {
                Wanted::Host(path) => Some(open(path)?),
                _ => None,
            };
            Ok(Checked {
                option: option.clone(),
                source,
            })
        })
        .collect()
}

/// Opens what a path leads to, through links: the user has just named it.
fn open(path: &str) -> Result<Source> {
    let found = fs::canonicalize(path)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => SourceError::Missing(path.into()),
            _ => SourceError::Io {
                path: path.into(),
                source,
            },
        })
        .and_then(|found| Source::open(&found))
        .map_err(|error| told(&error))?;
    if found.path().to_str().is_none() {
        let shown = found.path().display();
        return Err(Error::usage(format!("{shown} is not valid UTF-8 text")));
    }
    Ok(found)
}

/// The words for a path that cannot be shared.
pub fn told(error: &SourceError) -> Error {
    let exit = match error {
        SourceError::Missing(_) => Exit::NotFound,
        _ => Exit::Failed,
    };
    let told = Error::new(exit, error.to_string());
    match error.hint() {
        Some(hint) => told.with_hint(hint),
        None => told,
    }
}

/// Shares the host's paths, each once, and gives the mounts for the agent.
pub async fn share(session: &mut Session, mounts: Vec<Checked>) -> Result<Vec<MountSpec>> {
    let mut shared: HashMap<(PathBuf, bool), String> = HashMap::new();
    let mut specs = Vec::new();
    for Checked { option, source } in mounts {
        let read_only = option.read_only;
        let source = match (&option.source, source) {
            (_, Some(source)) => {
                let path = source.path().to_owned();
                let key = (path.clone(), read_only);
                let share = match shared.get(&key) {
                    Some(share) => share.clone(),
                    None => session.share(source, read_only, None).await?,
                };
                shared.insert(key, share.clone());
                MountSource::Share {
                    share,
                    path: path.display().to_string(),
                }
            }
            (Wanted::Tmpfs { size, mode }, None) => MountSource::Tmpfs {
                size: *size,
                mode: *mode,
            },
            (source, None) => MountSource::Volume {
                name: match source {
                    Wanted::Named(name) => Some(name.clone()),
                    _ => None,
                },
                no_copy: option.no_copy,
            },
        };
        specs.push(MountSpec {
            target: option.target,
            source,
            read_only,
        });
    }
    Ok(specs)
}
