//! `bake`: a target's registry configuration, CA and credentials, written into its file system.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, ValueEnum};
use serde_json::json;
use vdkr_core::candidates::{RegistryPrefix, Scheme};
use vdkr_core::emit::diff::unified;
use vdkr_core::emit::state::{self, Action, Change, Plan};
use vdkr_core::emit::{
    EmitError, Logins, MAX_FILE, Profile, Search, Settings, Trust, parse_logins,
};
use vdkr_core::loopback::DEFAULT_GATEWAY;
use vdkr_core::reference::Host;
use vdkr_transfer::target::{RootFs, TargetError, TargetFiles, apply, home, read_state};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::{Config, Overrides};
use crate::registry_cli::error::{WithExit as _, printable};
use crate::registry_cli::secure::{self, Mode};

const PROFILES: &str = "\
Profiles and what they write:
  docker      /etc/docker/daemon.json (merged), /etc/docker/certs.d
  podman      /etc/containers/registries.conf.d, /etc/containers/certs.d (also buildah, skopeo)
  cri-o       as podman; /etc/crio/crio.conf.d for credentials
  containerd  /etc/containerd/certs.d, config_path in /etc/containerd/config.toml
  vdkr        /etc/vdkr/registry.conf, certs.d
With a CA all of them also extend the system's trust store. What was there before is remembered in
/etc/vdkr/baked.json, so that --undo takes back exactly what was added.

Examples:
  container-registry bake --rootfs build/rootfs --profile docker
  container-registry bake --rootfs / --profile podman --registry build-host:5000 --ca ca.crt
  container-registry bake --rootfs build/rootfs --profile docker --diff
  container-registry bake --rootfs build/rootfs --undo";

/// Options of `bake`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
#[command(after_help = PROFILES)]
pub struct BakeArgs {
    /// Root file system of the target; / is the running system
    #[arg(long, value_name = "DIR")]
    pub rootfs: PathBuf,
    /// Container engine of the target (repeatable): docker, podman, containerd, cri-o, vdkr
    #[arg(
        long = "profile",
        value_name = "NAME",
        value_delimiter = ',',
        required_unless_present = "undo"
    )]
    pub profiles: Vec<String>,
    /// Registry as this machine calls it, instead of --url and --namespace
    #[arg(long, value_name = "HOST[:PORT][/NAMESPACE]")]
    pub registry: Option<String>,
    /// CA certificate that the target shall trust [default: the registry's own in secure mode]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Docker-style credential file whose credentials go into the target, readable by root alone
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// The target is emulated: localhost becomes QEMU's gateway, 10.0.2.2 (the default, except for /)
    #[arg(long)]
    pub emulated: bool,
    /// The host's address as the target sees it, instead of 10.0.2.2
    #[arg(long, value_name = "HOST")]
    pub gateway: Option<String>,
    /// Keep localhost as it is
    #[arg(long, conflicts_with_all = ["gateway", "emulated"])]
    pub no_translate: bool,
    /// Where short names are searched in the registry (podman, cri-o)
    #[arg(long, value_enum, default_value = "first", value_name = "WHEN")]
    pub search: SearchOrder,
    /// Short name that always means the registry's image of that name (podman, cri-o; repeatable)
    #[arg(long = "alias", value_name = "NAME", value_delimiter = ',')]
    pub aliases: Vec<String>,
    /// Show what would change, as a unified diff, and write nothing
    #[arg(long)]
    pub diff: bool,
    /// Take back what was baked; files that were changed since are left
    #[arg(long, conflicts_with_all = ["profiles", "registry", "ca", "authfile", "emulated", "gateway", "no_translate", "aliases"])]
    pub undo: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "diff")]
    pub json: bool,
}

/// The values of `--search`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SearchOrder {
    /// Before the registries that are configured
    First,
    /// Behind them
    Last,
    /// Not at all
    Off,
}

impl BakeArgs {
    /// `--registry` as the settings that it stands for.
    pub fn overrides(&self, overrides: &mut Overrides) {
        if let Some(registry) = &self.registry {
            let start = registry.find("://").map_or(0, |at| at + 3);
            let slash = registry[start..].find('/').map(|at| start + at);
            let (url, path) = registry.split_at(slash.unwrap_or(registry.len()));
            overrides.push(("url", "--registry", url.to_owned()));
            let namespace = path.trim_matches('/');
            if !namespace.is_empty() {
                overrides.push(("namespace", "--registry", namespace.to_owned()));
            }
        }
    }
}

/// Bakes, or undoes it, or shows what either would change.
pub fn run(config: &Config, args: &BakeArgs) -> Result<Exit> {
    let root = RootFs::open(&args.rootfs)
        .with_context(|| format!("cannot use {} as a root file system", args.rootfs.display()))
        .exit(if args.rootfs.exists() {
            Exit::Failed
        } else {
            Exit::NotFound
        })?;
    let mut files = TargetFiles(&root);
    let state = read_state(&root)?;
    let plan = if args.undo {
        state::undo(&state, &mut files)?
    } else {
        let profiles = profiles(&args.profiles)?;
        let home = home(&root)?;
        let settings = settings(config, args, home)?;
        let plan = state::bake(&profiles, &settings, &state, &mut files);
        let is_present = matches!(&plan, Err(TargetError::Emit(EmitError::Present { .. })));
        let is_usage = matches!(&plan, Err(TargetError::Emit(_))) && !is_present;
        // Such an error names the file as the target calls it.
        let plan = plan.map_err(|error| {
            let error = anyhow::Error::new(error);
            if is_present {
                error.context(format!("in {}", root.path().display()))
            } else {
                error
            }
        });
        plan.exit(if is_usage { Exit::Usage } else { Exit::Failed })?
    };
    if !args.diff {
        apply(&root, &state, &plan)?;
    }
    report(args, &root, &plan)?;
    let some_left = plan
        .changes
        .iter()
        .any(|change| change.action == Action::Leave);
    Ok(if some_left { Exit::Partial } else { Exit::Done })
}

fn profiles(names: &[String]) -> Result<Vec<Profile>> {
    let mut profiles = Vec::new();
    for name in names {
        let profile: Profile = name.parse().exit(Exit::Usage)?;
        if !profiles.contains(&profile) {
            profiles.push(profile);
        }
    }
    Ok(profiles)
}

fn settings(config: &Config, args: &BakeArgs, home: String) -> Result<Settings> {
    let registry = config.registry()?;
    let gateway = args.gateway.as_deref().unwrap_or(DEFAULT_GATEWAY);
    Host::parse(gateway)
        .or_else(|_| Host::parse(&format!("[{gateway}]")))
        .with_context(|| format!("--gateway {gateway} is no host"))
        .exit(Exit::Usage)?;
    let asked = args.emulated || args.gateway.is_some();
    let is_running_system = args
        .rootfs
        .canonicalize()
        .is_ok_and(|path| path == Path::new("/"));
    let translate = asked || !(args.no_translate || is_running_system);
    let insecure = config.insecure_hosts()?;
    let logins = match &args.authfile {
        Some(path) => logins(path).exit(Exit::Usage)?,
        None => Logins::default(),
    };
    Ok(Settings {
        trust: trust(config, args, &registry, &insecure, gateway)?,
        insecure: insecure
            .iter()
            .filter(|host| *host != registry.host())
            .map(Host::to_string)
            .collect(),
        gateway: translate.then(|| gateway.to_owned()),
        search: match args.search {
            SearchOrder::First => Search::First,
            SearchOrder::Last => Search::Last,
            SearchOrder::Off => Search::Off,
        },
        aliases: args.aliases.clone(),
        logins,
        home,
        ..Settings::new(registry, Trust::Public)
    })
}

/// How the target shall trust the registry: by a CA that was given or by the registry's own in secure
/// mode; not at all where this machine would not check either; else as any public registry.
fn trust(
    config: &Config,
    args: &BakeArgs,
    registry: &RegistryPrefix,
    insecure: &[Host],
    gateway: &str,
) -> Result<Trust> {
    let host = registry.host();
    let named = insecure.contains(host) || registry.scheme() == Some(Scheme::Http);
    let own = config.storage().join("pki/ca.crt");
    let in_secure_mode = Mode::in_use(config)?.is_secure();
    let ca = match &args.ca {
        Some(path) => Some(path.clone()),
        None => in_secure_mode.then(|| own.clone()),
    };
    if let Some(path) = ca {
        if named {
            return Err(anyhow!(
                "{host} cannot be insecure and have a CA; leave one of the two out"
            ))
            .exit(Exit::Usage);
        }
        let text = read_host(&path).with_context(|| {
            if args.ca.is_some() {
                "cannot read the CA certificate".to_owned()
            } else {
                "the registry has no CA certificate yet; `container-registry start` makes it in secure mode".to_owned()
            }
        });
        return Ok(Trust::Authority(text.exit(Exit::NotFound)?));
    }
    if named {
        return Ok(Trust::Insecure);
    }
    let implied = Trust::implied(registry, gateway);
    let told = config.is_given("secure") || config.is_given("auth");
    // A storage with a CA was served in secure mode, and will be again; a server that runs could tell.
    if implied == Trust::Insecure && !told && own.exists() && secure::live(config)?.is_none() {
        return Err(anyhow!(
            "{host} does not run, so it is not known whether it is in secure mode, as {} suggests; set CONTAINER_REGISTRY_SECURE=1 (or 0 for plain HTTP), or give its CA with --ca",
            own.display()
        ))
        .exit(Exit::Usage);
    }
    Ok(implied)
}

fn logins(path: &Path) -> Result<Logins> {
    let text = read_host(path).context("cannot read the credential file")?;
    parse_logins(&text).with_context(|| path.display().to_string())
}

/// A file of this machine, of a sane size.
fn read_host(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(anyhow!(
            "{}: expected a regular file of at most {MAX_FILE} bytes",
            path.display()
        ));
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn report(args: &BakeArgs, root: &RootFs, plan: &Plan) -> Result<()> {
    let place = root.path().display();
    for note in &plan.notes {
        eprintln!("note: {}", printable(note));
    }
    for change in plan.changes.iter().filter(|c| c.action == Action::Leave) {
        eprintln!(
            "warning: {} was changed since it was baked and is left as it is",
            change.path
        );
    }
    if args.json {
        let files: Vec<_> = plan
            .changes
            .iter()
            .map(|change| {
                json!({
                    "path": change.path,
                    "action": change.action,
                    "mode": change.mode.map(|mode| format!("{mode:04o}")),
                })
            })
            .collect();
        let report = json!({
            "rootfs": root.path().display().to_string(),
            "profiles": plan.state.profiles(),
            "changed": plan.does_something(),
            "files": files,
            "notes": plan.notes,
        });
        out!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    for change in &plan.changes {
        if args.diff {
            show(change);
            continue;
        }
        let action = match change.action {
            Action::Create => "created",
            Action::Change => "changed",
            Action::Keep => "unchanged",
            Action::Remove => "removed",
            Action::Leave => "left",
        };
        out!("{action:9} {}", change.path);
    }
    if !plan.does_something() {
        match (args.undo, plan.changes.is_empty()) {
            (true, true) => eprintln!("Nothing was baked into {place}"),
            _ => eprintln!("Nothing to change in {place}"),
        }
    }
    Ok(())
}

fn show(change: &Change) {
    let is_change = matches!(
        change.action,
        Action::Create | Action::Change | Action::Remove
    );
    if change.secret && is_change {
        out!(
            "# {}: {}; credentials are not shown",
            change.path,
            match change.action {
                Action::Create => "new",
                Action::Remove => "removed",
                _ => "changed",
            }
        );
    } else if is_change {
        let text = unified(&change.path, change.old.as_deref(), change.new.as_deref());
        if let Some(text) = text.strip_suffix('\n') {
            out!("{text}");
        }
    }
}
