//! What holds for one command: options before variables before the configuration file before
//! defaults, and where each value came from.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use vdkr_core::target::TargetAddress;

use super::{
    args::Global,
    config::{self, Config, ConfigError, Key},
    error::{Error, Result},
    state,
    value::{parse_bool, parse_memory, parse_seconds},
};
use crate::vm::{
    accel::AccelWish,
    arch::Arch,
    locate::Search,
    processor::{CpuWish, parse_cpus},
    start::{BoardWish, StartOptions},
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An option of the command line.
    Option(&'static str),
    /// The name of the program (`vdkr-aarch64`).
    ProgramName,
    /// An environment variable.
    Variable(&'static str),
    /// The configuration file.
    File,
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(name) => write!(f, "option {name}"),
            Self::ProgramName => f.write_str("program name"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File => f.write_str("file"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The parts of the outside that settings depend on; a test gives its own.
pub struct Surroundings<'a> {
    /// Reads an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Name under which the program was called.
    pub program: String,
    /// Directory of the running program, links followed.
    pub exe_dir: Option<PathBuf>,
}

impl Surroundings<'static> {
    /// Those of this process.
    pub fn real() -> Self {
        let program = env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let exe = env::current_exe().and_then(std::fs::canonicalize).ok();
        Self {
            variable: &|name| env::var(name).ok().filter(|value| !value.is_empty()),
            program: name,
            exe_dir: exe.and_then(|exe| exe.parent().map(Path::to_owned)),
        }
    }
}

/// Where a command's machine keeps its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlace {
    /// In this directory.
    Directory(PathBuf),
    /// In memory, to be forgotten.
    Nowhere,
}

/// Everything that a command was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration file.
    pub config: Config,
    /// The options, for what is particular to one command.
    pub global: Global,
    /// Architecture of the target.
    pub arch: Arch,
    /// The board or full image to talk to, instead of a machine of this program.
    pub target: Option<TargetAddress>,
    /// Where state is kept.
    pub state: StatePlace,
    /// The directory with all state directories.
    pub state_root: PathBuf,
    /// What to boot and how.
    pub start: StartOptions,
    /// Seconds after which an idle memres machine stops; 0 for never.
    pub idle_timeout: u64,
    /// Whether to say more.
    pub verbose: bool,
    /// Whether a machine that a command starts is kept.
    pub auto_daemon: bool,
    layers: Vec<(&'static Key, String, Origin)>,
}

/// The directory with the configuration file.
pub fn config_dir(global: &Global, outside: &Surroundings<'_>) -> Result<PathBuf, ConfigError> {
    let variable = outside.variable;
    if let Some(dir) = &global.config_dir {
        return Ok(dir.clone());
    }
    if let Some(dir) = variable("VDKR_CONFIG_DIR") {
        return Ok(dir.into());
    }
    match (absolute(variable("XDG_CONFIG_HOME")), variable("HOME")) {
        (Some(dir), _) => Ok(dir.join("vdkr")),
        (None, Some(home)) => Ok(PathBuf::from(home).join(".config/vdkr")),
        (None, None) => Err(ConfigError::NoHome),
    }
}

impl Settings {
    /// Puts the layers together.
    pub fn resolve(global: Global, outside: &Surroundings<'_>) -> Result<Self> {
        let variable = outside.variable;
        let home = variable("HOME").map(PathBuf::from);
        let config = Config::load(&config_dir(&global, outside)?)?;
        let layers = layers(&global, outside, &config)?;
        let value = |name: &str| {
            let layer = layers.iter().find(|(key, ..)| key.name == name);
            layer
                .map(|(_, value, _)| value.as_str())
                .unwrap_or_default()
        };
        let path = |name: &str| {
            let text = value(name);
            (!text.is_empty()).then(|| expand(text, home.as_deref()))
        };
        let usage = |reason: String| Error::usage(reason);

        let arch: Arch = value("arch")
            .parse()
            .map_err(|error| usage(format!("{error}")))?;
        let state_root = match (value("state-dir"), &home) {
            (text, None) if text.starts_with('~') => {
                PathBuf::from(if global.state_dir.is_some() || global.stateless {
                    "/nonexistent"
                } else {
                    return Err(state::StateError::NoHome.into());
                })
            }
            (text, home) => expand(text, home.as_deref()),
        };
        let stateless = match variable("VDKR_STATELESS") {
            _ if global.stateless => true,
            Some(text) => parse_bool(&text).map_err(|e| usage(format!("VDKR_STATELESS: {e}")))?,
            None => false,
        };
        let named = global.state_dir.clone().or_else(|| match global.instance {
            Some(_) => None,
            None => variable("VDKR_STATE_DIR").map(PathBuf::from),
        });
        let target = match value("target") {
            "" | config::NO_TARGET => None,
            text => Some(text.parse().map_err(|error| usage(format!("{error}")))?),
        };
        let state = match named {
            // A target keeps its own.
            _ if stateless || target.is_some() => StatePlace::Nowhere,
            Some(dir) => StatePlace::Directory(std::path::absolute(dir)?),
            None => {
                let name = state::directory_name(arch, global.instance.as_deref())?;
                StatePlace::Directory(state_root.join(name))
            }
        };
        let cache_dir = match (absolute(variable("XDG_CACHE_HOME")), &home) {
            (Some(dir), _) => dir.join("vdkr"),
            (None, Some(home)) => home.join(".cache/vdkr"),
            (None, None) => {
                let dir = env::temp_dir().join(format!("vdkr-{}", nix::unistd::geteuid()));
                state::private_directory(&dir)?;
                dir
            }
        };
        let blob_origin = match &layers.iter().find(|(key, ..)| key.name == "blob-dir") {
            Some((_, _, Origin::Option(name) | Origin::Variable(name))) => name,
            _ => "the configuration",
        };
        let seconds = |name: &str| parse_seconds(value(name)).map_err(usage);
        let truth = |name: &str| parse_bool(value(name)).map_err(usage);
        let (verbose, auto_daemon) = (truth("verbose")?, truth("auto-daemon")?);
        let start = StartOptions {
            arch,
            search: Search {
                blob_dir: path("blob-dir").map(|dir| (dir, blob_origin)),
                kernel: global.kernel.clone(),
                initrd: global.initrd.clone(),
                exe_dir: outside.exe_dir.clone(),
            },
            board: value("machine")
                .parse::<BoardWish>()
                .map_err(|e| usage(e.to_string()))?,
            accel: value("accel")
                .parse::<AccelWish>()
                .map_err(|e| usage(e.to_string()))?,
            cpu: value("cpu")
                .parse::<CpuWish>()
                .map_err(|e| usage(e.to_string()))?,
            cpus: parse_cpus(value("cpus")).map_err(usage)?,
            memory_mib: parse_memory(value("memory")).map_err(usage)?,
            state_dir: match &state {
                StatePlace::Directory(dir) => Some(dir.clone()),
                StatePlace::Nowhere => None,
            },
            cache_dir,
            boot_timeout: Duration::from_secs(seconds("boot-timeout")?),
            snapshot: parse_bool(value("snapshot")).map_err(usage)?,
            verbose,
        };
        let idle_timeout = seconds("idle-timeout")?;
        Ok(Self {
            config,
            global,
            arch,
            target,
            state,
            state_root,
            start,
            idle_timeout,
            verbose,
            auto_daemon,
            layers,
        })
    }

    /// A key's value and where it came from; empty when there is none.
    pub fn value(&self, name: &str) -> (&str, &Origin) {
        let layer = self.layers.iter().find(|(key, ..)| key.name == name);
        layer.map_or(("", &Origin::Default), |(_, value, origin)| (value, origin))
    }

    /// Every key with its value and where it came from.
    pub fn all(&self) -> impl Iterator<Item = (&'static Key, &str, &Origin)> {
        self.layers
            .iter()
            .map(|(key, value, origin)| (*key, value.as_str(), origin))
    }

    /// A path that a key names, with `~` as the user's home.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let (text, _) = self.value(name);
        let home = env::var_os("HOME").map(PathBuf::from);
        (!text.is_empty()).then(|| expand(text, home.as_deref()))
    }
}

/// The value of every key: the strongest layer that has one, checked.
fn layers(
    global: &Global,
    outside: &Surroundings<'_>,
    config: &Config,
) -> Result<Vec<(&'static Key, String, Origin)>> {
    let mut layers = Vec::new();
    for key in config::KEYS {
        let layer = if let Some((option, value)) = option(global, key.name)? {
            (key, key.check(&value, option)?, Origin::Option(option))
        } else if let Some(arch) = Arch::of_program(&outside.program).filter(|_| key.name == "arch")
        {
            (key, arch.to_string(), Origin::ProgramName)
        } else if let Some(value) = (outside.variable)(key.variable) {
            (
                key,
                key.check(&value, key.variable)?,
                Origin::Variable(key.variable),
            )
        } else if let Some(value) = config.get(key)? {
            (key, key.check(&value, key.name)?, Origin::File)
        } else if key.name == "arch" {
            (
                key,
                Arch::host().unwrap_or(Arch::X86_64).to_string(),
                Origin::Default,
            )
        } else {
            (key, key.default.to_owned(), Origin::Default)
        };
        layers.push(layer);
    }
    Ok(layers)
}

/// The option that beats a key, with its value.
fn option(global: &Global, key: &str) -> Result<Option<(&'static str, String)>> {
    let text =
        |option: &'static str, value: &Option<String>| value.clone().map(|value| (option, value));
    let path = |option: &'static str, value: &Option<PathBuf>| {
        let Some(path) = value else { return Ok(None) };
        let path = std::path::absolute(path)?.into_os_string().into_string();
        let path = path.map_err(|path| {
            Error::usage(format!("{option}: {} is not valid UTF-8", path.display()))
        })?;
        Ok::<_, Error>(Some((option, path)))
    };
    Ok(match key {
        "arch" => text("--arch", &global.arch),
        "target" => text("--target", &global.target),
        "registry" => text("--registry", &global.registry),
        "insecure-registry" if !global.insecure_registry.is_empty() => {
            Some(("--insecure-registry", global.insecure_registry.join(",")))
        }
        "secure-registry" if global.secure_registry => Some(("--secure-registry", "true".into())),
        "ca-cert" => path("--ca-cert", &global.ca_cert)?,
        "verbose" if global.verbose => Some(("--verbose", "true".into())),
        "pull-in" => text("--pull-in", &global.pull_in),
        "auto-daemon" if global.old.no_daemon => Some(("--no-daemon", "false".into())),
        "accel" if global.no_kvm => Some(("--no-kvm", "tcg".into())),
        "accel" => text("--accel", &global.accel),
        "machine" => text("--machine", &global.machine),
        "memory" => text("--memory", &global.memory),
        "cpu" => text("--cpu", &global.cpu),
        "cpus" => text("--cpus", &global.cpus),
        "blob-dir" => path("--blob-dir", &global.blob_dir)?,
        _ => None,
    })
}

fn absolute(value: Option<String>) -> Option<PathBuf> {
    value.map(PathBuf::from).filter(|path| path.is_absolute())
}

fn expand(text: &str, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::HashMap, fs};

    use super::*;
    use crate::exit::Exit;

    /// Settings from options, variables and a file.
    pub(crate) fn settings(
        global: Global,
        variables: &[(&str, &str)],
        file: &str,
    ) -> Result<Settings> {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join(".config/vdkr")).unwrap();
        fs::write(home.path().join(".config/vdkr/config.toml"), file).unwrap();
        let mut known: HashMap<String, String> = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let home_path = home.path().to_str().unwrap().to_owned();
        known.entry("HOME".to_owned()).or_insert(home_path);
        let program = known.remove("program").unwrap_or_else(|| "vdkr".to_owned());
        let variable = |name: &str| known.get(name).cloned();
        let outside = Surroundings {
            variable: &variable,
            program,
            exe_dir: None,
        };
        Settings::resolve(global, &outside)
    }

    #[test]
    fn the_strongest_layer_wins() {
        let file = "registry = \"file:1\"\naccel = \"tcg\"\n";
        let option = Global {
            registry: Some("option:1".into()),
            ..Global::default()
        };
        let variable = [("VDKR_REGISTRY", "variable:1")];
        for (global, variables, file, value, origin) in [
            (
                option,
                &variable[..],
                file,
                "option:1",
                Origin::Option("--registry"),
            ),
            (
                Global::default(),
                &variable,
                file,
                "variable:1",
                Origin::Variable("VDKR_REGISTRY"),
            ),
            (Global::default(), &[], file, "file:1", Origin::File),
            (Global::default(), &[], "", "", Origin::Default),
        ] {
            let settings = settings(global, variables, file).unwrap();
            assert_eq!(settings.value("registry"), (value, &origin));
        }
    }

    #[test]
    fn architecture() {
        let arch = |global: Option<&str>, variables: &[(&str, &str)], file: &str| {
            let global = Global {
                arch: global.map(Into::into),
                ..Global::default()
            };
            settings(global, variables, file).unwrap().arch
        };
        let program = ("program", "vdkr-aarch64");
        assert_eq!(arch(Some("amd64"), &[program], ""), Arch::X86_64);
        assert_eq!(
            arch(None, &[program, ("VDKR_ARCH", "x86_64")], ""),
            Arch::Aarch64
        );
        assert_eq!(
            arch(None, &[("VDKR_ARCH", "arm64")], "arch = \"x86_64\""),
            Arch::Aarch64
        );
        assert_eq!(arch(None, &[], "arch = \"aarch64\""), Arch::Aarch64);
    }

    #[test]
    fn wrong_values_name_their_origin() {
        let arch = Global {
            arch: Some("mips".into()),
            ..Global::default()
        };
        for (global, variables, file, word) in [
            (arch, &[][..], "", "--arch"),
            (
                Global::default(),
                &[("VDKR_MEMORY", "much")],
                "",
                "VDKR_MEMORY",
            ),
            (Global::default(), &[], "accel = \"fast\"", "config.toml"),
            (
                Global::default(),
                &[("VDKR_STATELESS", "perhaps")],
                "",
                "VDKR_STATELESS",
            ),
        ] {
            let error = settings(global, variables, file).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.exit(), Exit::Usage);
        }
    }

    #[test]
    fn state_directories() {
        let place = |global: Global, variables: &[(&str, &str)], file: &str| {
            let variables = [
                variables,
                &[("HOME", "/h"), ("VDKR_CONFIG_DIR", "/nonexistent")],
            ];
            let file_settings = settings(global, &variables.concat(), file);
            file_settings.unwrap().state
        };
        let dir = |path: &str| StatePlace::Directory(path.into());
        let arm = || Global {
            arch: Some("aarch64".into()),
            ..Global::default()
        };
        assert_eq!(place(arm(), &[], ""), dir("/h/.vdkr/aarch64"));
        let instance = || Global {
            instance: Some("b".into()),
            ..arm()
        };
        assert_eq!(place(instance(), &[], ""), dir("/h/.vdkr/aarch64-b"));
        assert_eq!(place(arm(), &[("VDKR_STATE_DIR", "/s")], ""), dir("/s"));
        assert_eq!(
            place(instance(), &[("VDKR_STATE_DIR", "/s")], ""),
            dir("/h/.vdkr/aarch64-b")
        );
        let named = || Global {
            state_dir: Some("/n/./x".into()),
            ..arm()
        };
        assert_eq!(place(named(), &[("VDKR_STATE_DIR", "/s")], ""), dir("/n/x"));
        assert_eq!(
            place(arm(), &[("VDKR_STATE_ROOT", "/r")], ""),
            dir("/r/aarch64")
        );
        assert_eq!(
            place(arm(), &[("VDKR_STATELESS", "1")], ""),
            StatePlace::Nowhere
        );
        let stateless = Global {
            stateless: true,
            ..named()
        };
        assert_eq!(place(stateless, &[], ""), StatePlace::Nowhere);
    }

    #[test]
    fn no_daemon_keeps_no_machine() {
        let file = "auto-daemon = true";
        let mut global = Global::default();
        assert!(settings(global.clone(), &[], file).unwrap().auto_daemon);
        global.old.no_daemon = true;
        for variables in [&[][..], &[("VDKR_AUTO_DAEMON", "1")]] {
            let settings = settings(global.clone(), variables, file).unwrap();
            assert!(!settings.auto_daemon);
        }
    }

    #[test]
    fn no_kvm_is_tcg() {
        let global = Global {
            no_kvm: true,
            ..Global::default()
        };
        let settings = settings(global, &[("VDKR_ACCEL", "kvm")], "").unwrap();
        assert_eq!(settings.start.accel, AccelWish::Tcg);
    }
}
