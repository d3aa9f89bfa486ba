//! Target configuration: what a target's file system holds so that its container engine finds the
//! registry, trusts it and has credentials for it.
//!
//! [`emit`] takes the settings and the files that are there, and gives the files as they shall be.
//! What belongs to somebody else is merged, not replaced. [`bake`](state::bake) adds the memory of
//! what was there before, so that a second run changes nothing and [`undo`](state::undo) removes
//! exactly what was added.

mod containerd;
mod crio;
pub mod diff;
mod docker;
mod logins;
mod pem;
mod podman;
pub mod state;
mod subject;
mod toml;
mod trust;
pub mod vdkr;

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::logins::{CONTAINERS as CONTAINERS_LOGINS, Login, Logins, docker_path, parse_logins};
pub use self::pem::certificates;
use crate::candidates::{RegistryPrefix, Scheme};
use crate::json_text::JsonTextError;
use crate::loopback;
use crate::reference::check_repository;

/// Longest file of a target that is read, in bytes. A bundle of certificates has 250 kB.
pub const MAX_FILE: u64 = 8 * 1024 * 1024;

/// The files as they are, by absolute path within the target.
pub type Present = BTreeMap<String, String>;

/// The container engine that a target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Profile {
    /// Docker: `daemon.json`, `certs.d`.
    #[serde(rename = "docker")]
    Docker,
    /// Podman, Buildah and Skopeo: `registries.conf.d`, `certs.d`.
    #[serde(rename = "podman")]
    Podman,
    /// containerd with its CRI plugin, `ctr` or nerdctl: `hosts.toml`.
    #[serde(rename = "containerd")]
    Containerd,
    /// CRI-O: as Podman, and a drop-in of its own for credentials.
    #[serde(rename = "cri-o")]
    CriO,
    /// The agent of `vdkr`: `registry.conf`.
    #[serde(rename = "vdkr")]
    Vdkr,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Docker,
        Self::Podman,
        Self::Containerd,
        Self::CriO,
        Self::Vdkr,
    ];

    /// The name, as `CONTAINER_PROFILE` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Vdkr => "vdkr",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Profile {
    type Err = EmitError;

    fn from_str(text: &str) -> Result<Self, EmitError> {
        match text {
            "docker" | "docker-moby" | "docker-ce" => Ok(Self::Docker),
            "podman" | "skopeo" | "buildah" => Ok(Self::Podman),
            "containerd" | "k3s-host" | "nerdctl" => Ok(Self::Containerd),
            "cri-o" | "crio" => Ok(Self::CriO),
            "vdkr" => Ok(Self::Vdkr),
            _ => Err(EmitError::Profile(text.to_owned())),
        }
    }
}

/// How the target knows that the registry is the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// By TLS and the authorities that the target trusts anyway.
    Public,
    /// By TLS and this authority, in PEM.
    Authority(String),
    /// Not at all: plain HTTP, or TLS that nobody checks.
    Insecure,
}

impl Trust {
    /// What holds where nothing else is said: a registry of this machine, by whichever name the target
    /// calls it, and one written with `http://`, is not verified; every other is.
    pub fn implied(registry: &RegistryPrefix, gateway: &str) -> Self {
        let host = registry.host();
        let local = host.is_loopback() || host.name() == gateway.trim_matches(['[', ']']);
        match registry.scheme() {
            Some(Scheme::Http) => Self::Insecure,
            None if local => Self::Insecure,
            Some(Scheme::Https) | None => Self::Public,
        }
    }
}

/// Where short names are looked for (podman and CRI-O).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// The registry before those that are configured.
    #[default]
    First,
    /// Behind them.
    Last,
    /// Short names stay as they are.
    Off,
}

/// What is to be configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The registry as this machine calls it, with the namespace.
    pub registry: RegistryPrefix,
    /// How it is trusted.
    pub trust: Trust,
    /// Other registries that may be spoken to without verification: `host[:port]`, or networks.
    pub insecure: Vec<String>,
    /// What loopback hosts become, for targets that run in a virtual machine; `None` keeps them.
    pub gateway: Option<String>,
    /// Where short names are looked for.
    pub search: Search,
    /// Short names that mean an image of the registry whatever is searched (podman and CRI-O).
    pub aliases: Vec<String>,
    /// Credentials.
    pub logins: Logins,
    /// Root's home directory in the target ([`root_home`]).
    pub home: String,
}

impl Settings {
    /// Settings for a registry, with nothing else set.
    pub fn new(registry: RegistryPrefix, trust: Trust) -> Self {
        Self {
            registry,
            trust,
            insecure: Vec::new(),
            gateway: None,
            search: Search::default(),
            aliases: Vec::new(),
            logins: Logins::default(),
            home: "/root".to_owned(),
        }
    }
}

/// A file as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute path within the target.
    pub path: String,
    /// Content.
    pub content: String,
    /// Whether only root may read it (mode 600, its directory 700); else 644 when it is new, and
    /// what it has when it is there.
    pub secret: bool,
    /// Who asked for it.
    pub profiles: Vec<Profile>,
}

/// What [`emit`] gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emission {
    /// The files, each path once.
    pub files: Vec<File>,
    /// What the user should know: sentences.
    pub notes: Vec<String>,
}

impl Emission {
    fn file(&mut self, profile: Profile, path: String, content: String, secret: bool) {
        if let Some(known) = self.files.iter_mut().find(|file| file.path == path) {
            // Two profiles that share a file say the same about it.
            known.content = content;
            known.profiles.push(profile);
            return;
        }
        self.files.push(File {
            path,
            content,
            secret,
            profiles: [profile].into(),
        });
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// No such profile.
    #[error("unknown profile {0:?}; known: docker, podman, containerd, cri-o, vdkr")]
    Profile(String),
    /// A file of the target cannot be merged with.
    #[error("{path}: {reason}; mend or remove it first")]
    Present {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate of the authority is none.
    #[error("the CA certificate cannot be used: {0}")]
    Authority(String),
    /// An entry of the list of insecure registries is neither host nor network.
    #[error("{0:?} is no registry: expected HOST[:PORT]")]
    Insecure(String),
    /// A short name is none.
    #[error("{0:?} is no short name: expected NAME or NAME/NAME, without host and tag")]
    Alias(String),
    /// A file of credentials cannot be used.
    #[error("credential file: {0}")]
    Logins(String),
}

impl EmitError {
    fn present(path: &str, reason: impl Into<String>) -> Self {
        Self::Present {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    fn json(path: &str) -> impl FnOnce(JsonTextError) -> Self {
        move |error| Self::present(path, error.to_string())
    }
}

/// What has to be read before [`emit`] can merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(String),
    /// The files of a directory whose names end in `.conf`.
    Drops(String),
}

/// The files of the target that matter to these profiles. `home` is root's home directory.
pub fn inputs(profiles: &[Profile], home: &str) -> Vec<Input> {
    let file = |path: &str| Input::File(path.to_owned());
    let mut inputs: Vec<Input> = [file(trust::CERTIFICATE), file(trust::BUNDLE)].into();
    for profile in profiles {
        match profile {
            Profile::Docker => inputs.push(file(docker::DAEMON)),
            Profile::Podman | Profile::CriO => {
                inputs.push(file(podman::MAIN));
                inputs.push(file(logins::CONTAINERS));
                inputs.push(Input::Drops(podman::DROPS.to_owned()));
                inputs.push(file(crio::DROP));
            }
            Profile::Containerd => inputs.push(file(containerd::MAIN)),
            Profile::Vdkr => inputs.push(file(vdkr::CONF)),
        }
    }
    inputs.push(Input::File(logins::docker_path(home)));
    inputs
}

/// The files of the target that matter because of what these settings trust.
fn trusted(settings: &Settings) -> Vec<String> {
    match &settings.trust {
        Trust::Authority(authority) => trust::hashed(authority),
        Trust::Public | Trust::Insecure => Vec::new(),
    }
}

/// The file that says where root's home directory is.
pub const PASSWD: &str = "/etc/passwd";

/// Root's home directory by the target's `/etc/passwd`, `/root` when that does not say.
pub fn root_home(passwd: Option<&str>) -> String {
    passwd
        .into_iter()
        .flat_map(str::lines)
        .find_map(|line| {
            let mut fields = line.strip_prefix("root:")?.split(':');
            fields.nth(4)
        })
        .filter(|home| is_plain_path(home))
        .unwrap_or("/root")
        .to_owned()
}

/// An absolute path that says nothing twice: what a hostile passwd may name.
fn is_plain_path(path: &str) -> bool {
    path.len() > 1
        && path.len() < 256
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.trim_end_matches('/').split('/').all(|part| {
                !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control())
            })
        })
}

/// The files of these profiles, as they shall be, from the files that are `present`.
pub fn emit(
    profiles: &[Profile],
    settings: &Settings,
    present: &Present,
) -> Result<Emission, EmitError> {
    let target = Target::new(settings)?;
    let mut emission = Emission::default();
    if let Some((from, to)) = &target.translated {
        emission.note(format!(
            "{from} is {to} for the target, whose own loopback is another; --no-translate keeps it"
        ));
    }
    for profile in profiles {
        let profile = *profile;
        match profile {
            Profile::Docker => docker::emit(&target, present, &mut emission)?,
            Profile::Podman => podman::emit(profile, &target, present, &mut emission)?,
            Profile::Containerd => containerd::emit(&target, present, &mut emission)?,
            Profile::CriO => {
                podman::emit(profile, &target, present, &mut emission)?;
                crio::emit(&target, &mut emission);
            }
            Profile::Vdkr => vdkr::emit(&target, present, &mut emission)?,
        }
        trust::emit(profile, &target, present, &mut emission)?;
        logins::emit(profile, &target, present, &mut emission)?;
    }
    for file in &mut emission.files {
        file.profiles.sort_unstable();
        file.profiles.dedup();
    }
    emission.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(emission)
}

/// The settings as the target sees them.
#[derive(Debug)]
struct Target {
    /// Registry and namespace, translated.
    registry: RegistryPrefix,
    /// The registry's host and port.
    host: String,
    /// Whether the registry itself is among `insecure`.
    is_insecure: bool,
    /// Registries that are not verified, translated, each once.
    insecure: Vec<String>,
    /// Certificates in PEM.
    authority: Option<String>,
    search: Search,
    aliases: Vec<String>,
    logins: Logins,
    home: String,
    /// The registry's host before and after translation, where these differ.
    translated: Option<(String, String)>,
}

impl Target {
    fn new(settings: &Settings) -> Result<Self, EmitError> {
        let gateway = settings.gateway.as_deref();
        let registry = match gateway {
            Some(gateway) => loopback::translate_prefix(&settings.registry, gateway),
            None => settings.registry.clone(),
        };
        let host = registry.host().to_string();
        let is_insecure = settings.trust == Trust::Insecure;
        let mut insecure = Vec::new();
        if is_insecure {
            insecure.push(host.clone());
        }
        for entry in &settings.insecure {
            let entry = match gateway {
                Some(gateway) => loopback::translate_insecure(entry, gateway),
                None => entry.clone(),
            };
            if !is_network(&entry) && crate::reference::Host::parse(&entry).is_err() {
                return Err(EmitError::Insecure(entry));
            }
            if !insecure.contains(&entry) {
                insecure.push(entry);
            }
        }
        let authority = match &settings.trust {
            Trust::Authority(text) => {
                Some(certificates(text).map_err(|reason| EmitError::Authority(reason.to_owned()))?)
            }
            Trust::Public | Trust::Insecure => None,
        };
        for alias in &settings.aliases {
            let first = alias.split('/').next().unwrap_or_default();
            if check_repository(alias).is_err() || first.contains('.') || first == "localhost" {
                return Err(EmitError::Alias(alias.clone()));
            }
        }
        let translated = (registry != settings.registry)
            .then(|| (settings.registry.host().to_string(), host.clone()));
        Ok(Self {
            registry,
            host,
            is_insecure,
            insecure,
            authority,
            search: settings.search,
            aliases: settings.aliases.clone(),
            logins: settings.logins.translated(gateway),
            home: settings.home.trim_end_matches('/').to_owned(),
            translated,
        })
    }

    /// Insecure registries that are single hosts.
    fn insecure_hosts(&self) -> impl Iterator<Item = &str> {
        self.insecure
            .iter()
            .map(String::as_str)
            .filter(|entry| !is_network(entry))
    }

    /// Whether the user wrote `https://` before the registry.
    fn is_https(&self) -> bool {
        self.registry.scheme() == Some(Scheme::Https)
    }
}

fn is_network(entry: &str) -> bool {
    entry.split_once('/').is_some_and(|(address, bits)| {
        let most = match address.parse::<core::net::IpAddr>() {
            Ok(core::net::IpAddr::V4(_)) => 32,
            Ok(core::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.parse::<u8>().is_ok_and(|bits| bits <= most)
    })
}

/// The first line of files that are wholly ours.
const HEADER: &str =
    "# Written by `container-registry bake`, which also changes it and removes it (--undo).\n";

#[cfg(test)]
mod tests;
