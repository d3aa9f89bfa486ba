//! Configuration of `container-registry`: options, then environment, then `<storage>/config.toml`,
//! then defaults. Every value remembers where it came from, so `config` can say so.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vdkr_core::candidates::RegistryPrefix;
use vdkr_core::reference::{Host, check_repository};

mod keys;

pub use keys::{KEYS, Key, listing};

/// Largest `config.toml` that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// Port used when the URL names a host of this machine without one.
pub const DEFAULT_PORT: u16 = 5000;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A command-line option, by its name.
    Option(&'static str),
    /// An environment variable.
    Environment(&'static str),
    /// The configuration file at this path.
    File(PathBuf),
    /// The built-in default.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Option(name) => write!(f, "option {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A configuration that cannot be used; all of them are the user's to mend (exit code 2).
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value that its key does not accept.
    #[error("{name} = {value:?} ({origin}): {reason}")]
    Value {
        /// Key.
        name: &'static str,
        /// What was given.
        value: String,
        /// Where it was given.
        origin: Origin,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The configuration file cannot be read or parsed.
    #[error("configuration file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither `CONTAINER_REGISTRY_STORAGE`, a build directory nor a home directory is known.
    #[error("no storage directory: set CONTAINER_REGISTRY_STORAGE or pass --storage DIR")]
    NoStorage,
}

/// Options that override the environment, by key name.
pub type Overrides = Vec<(&'static str, &'static str, String)>;

/// The resolved configuration.
#[derive(Debug, Clone)]
pub struct Config {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Config {
    /// Resolves every key. `overrides` holds `(key, option name, value)`; `env` looks a variable up.
    pub fn resolve(
        overrides: &Overrides,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        let strong = |key: &Key| {
            overrides
                .iter()
                .rev()
                .find(|(name, ..)| *name == key.name)
                .map(|(_, option, value)| (value.clone(), Origin::Option(option)))
                .or_else(|| {
                    env(key.env)
                        .filter(|v| !v.is_empty())
                        .map(|v| (v, Origin::Environment(key.env)))
                })
        };
        // The file lives in the storage, so the storage cannot come from the file.
        let storage = match KEYS.iter().find(|k| k.name == "storage").and_then(strong) {
            Some(found) => found,
            None => (
                default_storage(env).ok_or(ConfigError::NoStorage)?,
                Origin::Default,
            ),
        };
        let file_path = Path::new(&storage.0).join("config.toml");
        let file = read_file(&file_path)?;
        values.insert("storage", storage);
        for key in KEYS.iter().filter(|k| k.name != "storage") {
            let value = strong(key)
                .or_else(|| {
                    file.get(key.name)
                        .map(|v| (v.clone(), Origin::File(file_path.clone())))
                })
                .or_else(|| default_of(key, env).map(|v| (v, Origin::Default)));
            if let Some(value) = value {
                values.insert(key.name, value);
            }
        }
        let config = Self { values };
        config.check_secure()?;
        Ok(config)
    }

    /// The value of a key and its origin.
    pub fn get(&self, name: &str) -> Option<(&str, &Origin)> {
        self.values
            .get(name)
            .map(|(value, origin)| (value.as_str(), origin))
    }

    /// The value of a key.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(|(value, _)| value)
    }

    fn bad(&self, name: &'static str, reason: impl Into<String>) -> ConfigError {
        let (value, origin) = self
            .values
            .get(name)
            .cloned()
            .unwrap_or_else(|| (String::new(), Origin::Default));
        ConfigError::Value {
            name,
            value,
            origin,
            reason: reason.into(),
        }
    }

    /// A 0/1, true/false, yes/no value; unset is false.
    pub fn flag(&self, name: &'static str) -> Result<bool, ConfigError> {
        match self.value(name).map(truth) {
            None => Ok(false),
            Some(Some(said)) => Ok(said),
            Some(None) => Err(self.bad(name, "expected 1 or 0")),
        }
    }

    /// Whether the registry is to be spoken to in TLS. A password for all to read would be none, so
    /// `auth` alone means TLS too.
    pub fn wants_tls(&self) -> Result<bool, ConfigError> {
        Ok(self.flag("secure")? || self.flag("auth")?)
    }

    /// Whether the registry asks for a password: in secure mode, unless `auth` says no.
    pub fn wants_auth(&self) -> Result<bool, ConfigError> {
        match self.value("auth") {
            None | Some("") => self.flag("secure"),
            Some(_) => self.flag("auth"),
        }
    }

    /// Whether anybody said so: an option, the environment or the file.
    pub fn is_given(&self, name: &str) -> bool {
        !matches!(self.get(name), None | Some((_, Origin::Default)))
    }

    /// A whole number within these bounds.
    pub fn number(
        &self,
        name: &'static str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Result<u32, ConfigError> {
        self.value(name)
            .and_then(|value| value.trim().parse().ok())
            .filter(|number| bounds.contains(number))
            .ok_or_else(|| {
                let reason = format!(
                    "expected a number from {} to {}",
                    bounds.start(),
                    bounds.end()
                );
                self.bad(name, reason)
            })
    }

    /// What is odd about this configuration without being wrong.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let (Ok(false), Ok(true)) = (self.flag("secure"), self.flag("auth")) {
            warnings.push("CONTAINER_REGISTRY_AUTH=1 without CONTAINER_REGISTRY_SECURE=1: passwords need TLS, so the registry is spoken to in secure mode".to_owned());
        }
        let secret =
            KEYS.iter()
                .filter(|key| key.secret)
                .find_map(|key| match self.get(key.name) {
                    Some((_, Origin::File(path))) => Some((key.name, path)),
                    _ => None,
                });
        if let Some((name, path)) = secret
            && std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
        {
            warnings.push(format!(
                "{} holds `{name}` and can be read by others; put that right with: chmod 600 {0}",
                path.display()
            ));
        }
        warnings
    }

    /// Secure mode stands no word to the contrary.
    fn check_secure(&self) -> Result<(), ConfigError> {
        if !self.wants_tls()? {
            return Ok(());
        }
        if self.insecure_everywhere() {
            return Err(self.bad("insecure", "CONTAINER_REGISTRY_SECURE=1 and CONTAINER_REGISTRY_INSECURE=1 contradict each other; unset one"));
        }
        let registry = self.registry()?;
        if registry
            .scheme()
            .is_some_and(|scheme| scheme.as_str() == "http")
        {
            return Err(self.bad(
                "url",
                "secure mode (CONTAINER_REGISTRY_SECURE=1) speaks https; leave http:// out",
            ));
        }
        let host = registry.host();
        let named = self.insecure_hosts()?.into_iter().any(|entry| {
            entry.name().eq_ignore_ascii_case(host.name())
                && (entry.port().is_none() || entry.port() == host.port())
        });
        if named {
            return Err(self.bad("insecure", format!("{host} is in secure mode (CONTAINER_REGISTRY_SECURE=1) and cannot be insecure as well")));
        }
        Ok(())
    }

    /// The error of a key's value.
    pub(crate) fn bad_value(&self, name: &'static str, reason: impl Into<String>) -> ConfigError {
        let secret = KEYS.iter().any(|key| key.name == name && key.secret);
        match self.bad(name, reason) {
            ConfigError::Value {
                name,
                origin,
                reason,
                ..
            } if secret => ConfigError::Value {
                name,
                value: "***".to_owned(),
                origin,
                reason,
            },
            error => error,
        }
    }

    fn insecure_everywhere(&self) -> bool {
        self.value("insecure").and_then(truth) == Some(true)
    }

    /// Registries that the user named insecure: the configured one with `INSECURE=1`, or a list.
    /// Hosts of this machine may use plain HTTP without being named.
    pub fn insecure_hosts(&self) -> Result<Vec<Host>, ConfigError> {
        let value = self.value("insecure").unwrap_or_default();
        match truth(value) {
            Some(false) => Ok(Vec::new()),
            Some(true) => Ok(vec![self.registry()?.host().clone()]),
            None => value
                .split([' ', ','])
                .filter(|entry| !entry.is_empty())
                .map(|entry| {
                    Host::parse(entry).map_err(|error| self.bad("insecure", error.to_string()))
                })
                .collect(),
        }
    }

    /// The configured registry: host with port, and the namespace.
    pub fn registry(&self) -> Result<RegistryPrefix, ConfigError> {
        let url = self.value("url").unwrap_or_default();
        let prefix =
            RegistryPrefix::parse(url).map_err(|error| self.bad("url", error.to_string()))?;
        if prefix.namespace().is_some() {
            let reason = "expected host[:port]; put the path in CONTAINER_REGISTRY_NAMESPACE";
            return Err(self.bad("url", reason));
        }
        let mut host = prefix.host().clone();
        if host.port().is_none() && prefix.scheme().is_none() && host.is_loopback() {
            host = host.with_port(Some(DEFAULT_PORT));
        }
        let scheme = prefix
            .scheme()
            .map(|s| format!("{}://", s.as_str()))
            .unwrap_or_default();
        let namespace = self.value("namespace").unwrap_or_default();
        if !namespace.is_empty() {
            check_repository(namespace)
                .map_err(|error| self.bad("namespace", error.to_string()))?;
        }
        RegistryPrefix::parse(&format!("{scheme}{host}/{namespace}"))
            .map_err(|error| self.bad("url", error.to_string()))
    }

    /// Storage directory.
    pub fn storage(&self) -> PathBuf {
        PathBuf::from(self.value("storage").unwrap_or_default())
    }

    /// Directories that hold OCI layouts, each with the machine's name: all machines beneath
    /// `DEPLOY_DIR_IMAGES`, or the one `DEPLOY_DIR_IMAGE` when it was given as strongly.
    pub fn deploy_roots(&self) -> DeployRoots {
        let strength = |name: &str| match self.get(name) {
            Some((_, Origin::Option(_))) => 3,
            Some((_, Origin::Environment(_))) => 2,
            Some((_, Origin::File(_))) => 1,
            _ => 0,
        };
        match (
            self.value("deploy_dir_image"),
            self.value("deploy_dir_images"),
        ) {
            // Who names one machine means that one.
            (Some(one), _) if strength("deploy_dir_image") >= strength("deploy_dir_images") => {
                DeployRoots::Machine(PathBuf::from(one))
            }
            (_, Some(all)) => DeployRoots::AllMachines(PathBuf::from(all)),
            (Some(one), None) => DeployRoots::Machine(PathBuf::from(one)),
            (None, None) => DeployRoots::Unknown,
        }
    }
}

/// Where `push` looks for images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeployRoots {
    /// A directory with one folder per machine.
    AllMachines(PathBuf),
    /// The folder of one machine.
    Machine(PathBuf),
    /// Nothing says where.
    Unknown,
}

/// What a 0/1, true/false, yes/no word says, in any case; `None` when it is another word. Nothing at
/// all says no.
fn truth(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "" | "0" | "false" | "no" | "off" => Some(false),
        "1" | "true" | "yes" | "on" => Some(true),
        _ => None,
    }
}

fn default_storage(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let set = |name| env(name).filter(|v| !v.is_empty());
    set("BUILDDIR")
        .map(|dir| format!("{dir}/container-registry"))
        .or_else(|| {
            set("XDG_DATA_HOME")
                .or_else(|| set("HOME").map(|home| format!("{home}/.local/share")))
                .map(|data| format!("{data}/container-registry"))
        })
}

fn default_of(key: &Key, env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    match key.name {
        // `oe-init-build-env` exports BUILDDIR; a build's images lie at a fixed place beneath it.
        "deploy_dir_images" => env("BUILDDIR")
            .filter(|v| !v.is_empty())
            .map(|dir| format!("{dir}/tmp/deploy/images")),
        _ => key.default.map(str::to_owned),
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let problem = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    match std::fs::metadata(path) {
        // Where the storage cannot be at all, `start` says so better than a message about this file.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(problem(error.to_string())),
        Ok(meta) if !meta.is_file() => return Err(problem("not a regular file".into())),
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(problem(format!("larger than {MAX_FILE} bytes")));
        }
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error| problem(format!("{error}")))?;
    let mut values = BTreeMap::new();
    for (name, value) in table {
        if name == "storage" {
            return Err(problem(
                "`storage` cannot be set here: this file lies in it".into(),
            ));
        }
        if !KEYS.iter().any(|key| key.name == name) {
            let known: Vec<_> = KEYS
                .iter()
                .map(|k| k.name)
                .filter(|n| *n != "storage")
                .collect();
            return Err(problem(format!(
                "unknown key `{name}`; known: {}",
                known.join(", ")
            )));
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Boolean(flag) => u8::from(flag).to_string(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Array(items) => {
                let words: Option<Vec<_>> = items.iter().map(toml::Value::as_str).collect();
                words
                    .ok_or_else(|| problem(format!("`{name}`: a list may hold strings only")))?
                    .join(" ")
            }
            _ => {
                return Err(problem(format!(
                    "`{name}`: expected a string, a number or a list"
                )));
            }
        };
        values.insert(name, value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests;
