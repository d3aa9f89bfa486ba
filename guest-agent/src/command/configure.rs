//! `configure`: the registry of `/etc/vdkr/registry.conf`, made known to the engines of this target.
//!
//! What is written, merged and remembered is the same as what `container-registry bake` does from a
//! host, so that either can change or undo what the other did.

use std::path::PathBuf;

use vdkr_core::emit::{
    Profile, Settings, Trust,
    diff::unified,
    state::{self, Action, Change},
    vdkr::CONF,
};
use vdkr_core::loopback::DEFAULT_GATEWAY;
use vdkr_transfer::target::{RootFs, TargetFiles, apply, home, read_state};

use super::{CommandError, given, open, registry};
use crate::baked::{Baked, CA};

/// Options of `configure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigureOptions {
    /// The root file system; `/` is the running system.
    pub root: PathBuf,
    /// Engines; those that are found when there are none.
    pub profiles: Vec<Profile>,
    /// The registry instead of the configured one.
    pub registry: Option<String>,
    /// Its CA instead of the configured one.
    pub ca: Option<PathBuf>,
    /// Show what would change and write nothing.
    pub diff: bool,
    /// Take back what was configured.
    pub undo: bool,
}

impl Default for ConfigureOptions {
    fn default() -> Self {
        Self {
            root: "/".into(),
            profiles: Vec::new(),
            registry: None,
            ca: None,
            diff: false,
            undo: false,
        }
    }
}

/// Configures, or takes it back, or shows what either would change.
pub fn configure(options: &ConfigureOptions) -> Result<(), CommandError> {
    let root = open(&options.root)?;
    let state = read_state(&root)?;
    let mut files = TargetFiles(&root);
    let plan = if options.undo {
        state::undo(&state, &mut files)?
    } else {
        let settings = settings(&root, options)?;
        let profiles = match &options.profiles[..] {
            [] => found(&root)?,
            named => named.to_vec(),
        };
        state::bake(&profiles, &settings, &state, &mut files)?
    };
    if !options.diff {
        apply(&root, &state, &plan)?;
    }
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    for change in &plan.changes {
        show(change, options.diff);
    }
    if !plan.does_something() {
        eprintln!("nothing to change in {}", root.path().display());
    } else if !options.diff && plan.changes.iter().any(needs_restart) {
        eprintln!("restart the engines whose files changed: they read them when they start");
    }
    let left: Vec<_> = plan
        .changes
        .iter()
        .filter(|change| change.action == Action::Leave)
        .map(|change| change.path.as_str())
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(CommandError::Failed(format!(
        "changed since they were configured, and left as they are: {}",
        left.join(", ")
    )))
}

fn settings(root: &RootFs, options: &ConfigureOptions) -> Result<Settings, CommandError> {
    let baked = Baked::read(root)?;
    let own = match &options.registry {
        Some(text) => Some(registry(text)?),
        None => baked.conf.registry,
    };
    let own = own.ok_or_else(|| {
        CommandError::NotFound(format!(
            "no registry is configured: set VDKR_DEFAULT_REGISTRY in {CONF}, or give --registry"
        ))
    })?;
    let ca = match &options.ca {
        Some(path) => Some(given(path)?),
        None => baked.ca.map(|(text, _)| text),
    };
    let host = own.host().to_string();
    let insecure = baked.conf.insecure.contains(&host);
    let trust = match ca {
        Some(_) if insecure => {
            return Err(CommandError::Usage(format!(
                "{host} cannot be insecure and have a CA: take it out of \
                 VDKR_INSECURE_REGISTRIES in {CONF}, or remove {CA}"
            )));
        }
        Some(ca) => Trust::Authority(ca),
        None if insecure => Trust::Insecure,
        None => Trust::implied(&own, DEFAULT_GATEWAY),
    };
    let others = baked.conf.insecure.into_iter();
    Ok(Settings {
        insecure: others.filter(|entry| *entry != host).collect(),
        home: home(root)?,
        ..Settings::new(own, trust)
    })
}

/// The engines of this target, and the agent itself.
fn found(root: &RootFs) -> Result<Vec<Profile>, CommandError> {
    let engines = [
        (Profile::Docker, "dockerd"),
        (Profile::Podman, "podman"),
        (Profile::Containerd, "containerd"),
        (Profile::CriO, "crio"),
    ];
    let mut profiles = Vec::new();
    for (profile, program) in engines {
        for directory in ["/usr/bin", "/usr/sbin", "/usr/local/bin"] {
            if root.names(directory)?.iter().any(|name| name == program) {
                profiles.push(profile);
                break;
            }
        }
    }
    profiles.push(Profile::Vdkr);
    Ok(profiles)
}

fn needs_restart(change: &Change) -> bool {
    change.path.ends_with("daemon.json") || change.path.ends_with("config.toml")
}

fn show(change: &Change, diff: bool) {
    let word = match change.action {
        Action::Create => "created",
        Action::Change => "changed",
        Action::Keep => "unchanged",
        Action::Remove => "removed",
        Action::Leave => "left",
    };
    let moves = !matches!(change.action, Action::Keep | Action::Leave);
    if diff && moves && !change.secret {
        print!(
            "{}",
            unified(&change.path, change.old.as_deref(), change.new.as_deref())
        );
    } else if !diff || moves {
        println!("{word:9} {}", change.path);
    }
}
