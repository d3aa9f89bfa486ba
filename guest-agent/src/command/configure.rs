//! `configure`: the registry of `/etc/vdkr/registry.conf`, made known to the engines of this target.
//!
//! What is written, merged and remembered is the same as what `container-registry bake` does from a
//! host, so that either can change or undo what the other did.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use vdkr_core::emit::{
    Profile, Settings, Trust,
    diff::unified,
    state::{self, Action, Change},
    vdkr::CONF,
};
use vdkr_core::loopback::{DEFAULT_GATEWAY, translate_insecure};
use vdkr_transfer::target::{RootFs, TargetFiles, apply, home, read_state};

use super::{CommandError, given, host_address, open, registry};
use crate::{
    baked::{Baked, CA},
    boot::network,
};

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
    /// Keep loopback hosts as they are.
    pub no_translate: bool,
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
            no_translate: false,
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
        let settings = settings(&root, options, &System::of(options))?;
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

/// What is known of the system that is configured.
struct System {
    /// What loopback hosts become there.
    gateway: Option<String>,
    /// The address that is the host's there, so that it may do without TLS.
    host: &'static str,
}

impl System {
    fn of(options: &ConfigureOptions) -> Self {
        let root = options.root.canonicalize();
        match root.is_ok_and(|root| root == Path::new("/")) {
            true => Self::running(network::gateway(), options.no_translate),
            false => Self::elsewhere(),
        }
    }

    /// The running system, by its default route.
    fn running(route: Option<Ipv4Addr>, no_translate: bool) -> Self {
        let host = host_address(route);
        Self {
            gateway: host.filter(|_| !no_translate).map(str::to_owned),
            host: host.unwrap_or_default(),
        }
    }

    /// Of another system nothing is known: it stays with what its files say.
    fn elsewhere() -> Self {
        Self {
            gateway: None,
            host: DEFAULT_GATEWAY,
        }
    }
}

fn settings(
    root: &RootFs,
    options: &ConfigureOptions,
    system: &System,
) -> Result<Settings, CommandError> {
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
    // As it will be called there.
    let called = |text: &str| match &system.gateway {
        Some(gateway) => translate_insecure(text, gateway),
        None => text.to_owned(),
    };
    let host = called(&own.host().to_string());
    let is_own = |entry: &String| called(entry) == host;
    let insecure = baked.conf.insecure.iter().any(is_own);
    let trust = match ca {
        Some(_) if insecure => {
            return Err(CommandError::Usage(format!(
                "{host} cannot be insecure and have a CA: take it out of \
                 VDKR_INSECURE_REGISTRIES in {CONF}, or remove {CA}"
            )));
        }
        Some(ca) => Trust::Authority(ca),
        None if insecure => Trust::Insecure,
        None => Trust::implied(&own, system.host),
    };
    let others = baked.conf.insecure.iter();
    Ok(Settings {
        insecure: others.filter(|entry| !is_own(entry)).cloned().collect(),
        gateway: system.gateway.clone(),
        home: home(root)?,
        ..Settings::new(own, trust)
    })
}

/// The engines of this target, and the agent itself.
fn found(root: &RootFs) -> Result<Vec<Profile>, CommandError> {
    let engines: [(Profile, &[&str]); 4] = [
        (Profile::Docker, &["dockerd"]),
        // They share podman's files, and each comes without the others.
        (Profile::Podman, &["podman", "buildah", "skopeo"]),
        (Profile::Containerd, &["containerd"]),
        (Profile::CriO, &["crio"]),
    ];
    let mut profiles = Vec::new();
    for (profile, programs) in engines {
        for directory in ["/usr/bin", "/usr/sbin", "/usr/local/bin"] {
            let names = root.names(directory)?;
            if names.iter().any(|name| programs.contains(&name.as_str())) {
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

#[cfg(test)]
mod tests {
    use vdkr_core::emit::{Emission, Present, emit};

    use super::*;

    /// What docker's files say for a registry, on a system of this kind.
    fn docker(conf: &str, system: &System) -> (Emission, String) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/vdkr")).unwrap();
        std::fs::write(dir.path().join("etc/vdkr/registry.conf"), conf).unwrap();
        let root = RootFs::open_to_read(dir.path()).unwrap();
        let settings = settings(&root, &ConfigureOptions::default(), system).unwrap();
        let emission = emit(&[Profile::Docker], &settings, &Present::new()).unwrap();
        let daemon = emission
            .files
            .iter()
            .find(|file| file.path.ends_with("daemon.json"));
        let daemon = daemon.map(|file| file.content.clone());
        (emission, daemon.unwrap_or_default())
    }

    const QEMU: Option<Ipv4Addr> = Some(Ipv4Addr::new(10, 0, 2, 2));
    const LAN: Option<Ipv4Addr> = Some(Ipv4Addr::new(192, 168, 7, 1));

    #[test]
    fn localhost_is_the_host_of_a_guest_and_of_nobody_else() {
        let conf = "VDKR_DEFAULT_REGISTRY=localhost:5000/yocto\n\
                    VDKR_INSECURE_REGISTRIES=\"10.0.2.2:5000 127.0.0.1:5001\"\n";
        let (emission, daemon) = docker(conf, &System::running(QEMU, false));
        assert!(
            daemon.contains("10.0.2.2:5000") && daemon.contains("10.0.2.2:5001"),
            "{daemon}"
        );
        assert!(!daemon.contains("localhost"), "{daemon}");
        assert!(
            emission.notes[0].contains("--no-translate"),
            "{:?}",
            emission.notes
        );
        for system in [
            System::running(QEMU, true),
            System::running(LAN, false),
            System::running(None, false),
            System::elsewhere(),
        ] {
            let (emission, daemon) = docker(conf, &system);
            assert!(daemon.contains("\"localhost:5000\""), "{daemon}");
            assert!(daemon.contains("\"127.0.0.1:5001\""), "{daemon}");
            assert!(
                emission
                    .notes
                    .iter()
                    .all(|note| !note.contains("localhost"))
            );
        }
    }

    #[test]
    fn the_hosts_address_is_verified_where_it_is_another_machine() {
        let conf = "VDKR_DEFAULT_REGISTRY=10.0.2.2:5000/yocto\n";
        for (system, plain) in [
            (System::running(QEMU, false), true),
            (System::running(LAN, false), false),
            (System::running(None, false), false),
        ] {
            let (_, daemon) = docker(conf, &system);
            assert_eq!(daemon.contains("10.0.2.2:5000"), plain, "{daemon}");
        }
    }
}
