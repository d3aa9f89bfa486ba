//! A target's root file system and the registry configuration in it: what `bake` writes from a host,
//! and `vdkr-agent configure` on the target itself. What is written is decided in
//! `vdkr_core::emit`.

use std::path::Path;

use vdkr_core::emit::state::{Action, Content, Files, Plan, STATE, State};
use vdkr_core::emit::{EmitError, MAX_FILE, PASSWD, root_home};

pub mod baked;
mod rootfs;

pub use rootfs::{Found, RootFs, RootFsError};

/// The target's files cannot be read or written, or make no sense.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] RootFsError),
    /// What is there cannot be merged with.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// A file is no text.
    #[error("{path} in {root}: it is not UTF-8 text; mend or remove it first")]
    Text {
        /// The file, within the target.
        path: String,
        /// The target.
        root: String,
    },
    /// A file does not say what it should.
    #[error("{path}: {problem}")]
    Content {
        /// The file, within the target.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The memory of earlier runs may be somebody else's.
    #[error(
        "{STATE} in {root} could have been written by somebody else (owner {uid}, mode {mode:03o}); look at it, then remove it or set its mode to 600"
    )]
    Foreign {
        /// The target.
        root: String,
        /// The owner.
        uid: u32,
        /// The permission bits.
        mode: u32,
    },
}

/// The home directory of the target's root user.
pub fn home(root: &RootFs) -> Result<String, TargetError> {
    let passwd = root.read(PASSWD, MAX_FILE)?;
    let passwd = passwd.map(|found| String::from_utf8_lossy(&found.bytes).into_owned());
    Ok(root_home(passwd.as_deref()))
}

/// What earlier runs wrote.
pub fn read_state(root: &RootFs) -> Result<State, TargetError> {
    let Some(found) = root.read(STATE, MAX_FILE)? else {
        return Ok(State::default());
    };
    let own = rustix::process::geteuid().as_raw();
    if found.mode & 0o022 != 0 || (found.uid != own && found.uid != 0) {
        return Err(TargetError::Foreign {
            root: shown(root),
            uid: found.uid,
            mode: found.mode,
        });
    }
    Ok(State::parse(&text(root, STATE, found.bytes)?)?)
}

/// The target's files for the decisions in `core`.
#[derive(Debug)]
pub struct TargetFiles<'r>(pub &'r RootFs);

impl Files for TargetFiles<'_> {
    type Error = TargetError;

    fn read(&mut self, path: &str) -> Result<Option<Content>, TargetError> {
        let Some(found) = self.0.read(path, MAX_FILE)? else {
            return Ok(None);
        };
        Ok(Some(Content {
            text: text(self.0, path, found.bytes)?,
            mode: found.mode,
        }))
    }

    fn drops(&mut self, directory: &str) -> Result<Vec<String>, TargetError> {
        let mut names = self.0.names(directory)?;
        names.retain(|name| Path::new(name).extension().is_some_and(|end| end == "conf"));
        Ok(names)
    }
}

/// Does what the plan says: first the memory, then the files, last the memory as it shall stay.
pub fn apply(root: &RootFs, before: &State, plan: &Plan) -> Result<(), TargetError> {
    let mut interim = plan.interim.clone();
    let written = plan.changes.iter().filter(|change| change.new.is_some());
    let paths = written.map(|change| change.path.as_str()).chain([STATE]);
    for path in paths.filter(|_| !plan.state.is_empty()) {
        for directory in root.missing_directories(path)? {
            if !interim.directories.contains(&directory) {
                interim.directories.push(directory);
            }
        }
    }
    interim.directories.sort_unstable();
    if interim != *before {
        root.write(STATE, interim.to_json().as_bytes(), Some(0o600))?;
    }
    for change in &plan.changes {
        match (change.action, &change.new) {
            (Action::Create | Action::Change, Some(new)) => {
                root.write(&change.path, new.as_bytes(), change.mode)?;
            }
            (Action::Remove, _) => root.remove(&change.path)?,
            _ => {}
        }
    }
    let mut last = plan.state.clone();
    last.directories.clone_from(&interim.directories);
    let is_gone = plan.state.is_empty();
    if is_gone {
        root.remove(STATE)?;
    }
    // Children before parents; what still holds something stays, and is remembered.
    if is_gone
        || plan
            .changes
            .iter()
            .any(|change| change.action == Action::Remove)
    {
        for directory in interim.directories.iter().rev() {
            if root.remove_directory(directory)? {
                last.directories.retain(|kept| kept != directory);
            }
        }
    }
    if !is_gone && last != interim {
        root.write(STATE, last.to_json().as_bytes(), Some(0o600))?;
    }
    Ok(())
}

fn text(root: &RootFs, path: &str, bytes: Vec<u8>) -> Result<String, TargetError> {
    String::from_utf8(bytes).map_err(|_| TargetError::Text {
        path: path.to_owned(),
        root: shown(root),
    })
}

fn shown(root: &RootFs) -> String {
    root.path().display().to_string()
}
