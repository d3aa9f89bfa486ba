//! What the host asks for.

use alloc::{
    string::{String, ToString as _},
    vec::Vec,
};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    AdmitRequest, ContainerRequest, KeptLayer, LayerDisk, Life, MountSpec, PublishRequest, Sandbox,
    VolumeAction, exposed,
};
use crate::{
    candidates::Scheme,
    credentials::{Credential, Secret},
    digest::Digest,
    emit::vdkr::RegistryConf,
};

/// What the host asks for; opens a stream.
#[expect(
    clippy::large_enum_variant,
    reason = "one is made a command, and read at once"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Put an image into the store whose layers the host keeps:
    /// [`Reply::Pulled`](super::Reply::Pulled).
    Admit(AdmitRequest),
    /// Say which layers the host keeps for an image, or for all of them:
    /// [`Reply::Layers`](super::Reply::Layers).
    Layers {
        /// Name or id; all images when absent.
        #[serde(default)]
        image: Option<String>,
        /// The name is that of a container, whose image is meant.
        #[serde(default)]
        of_container: bool,
        /// Which registry a name without host means.
        #[serde(default)]
        settings: RegistrySettings,
    },
    /// Mount disks with layers: [`Reply::Mounted`](super::Reply::Mounted).
    Mount {
        /// Disks that the host has attached.
        layers: Vec<LayerDisk>,
    },
    /// Hand a file to the machine as a disk: [`Reply::Attached`](super::Reply::Attached). For the
    /// monitor of a kept machine, on the host; an agent does not know it.
    AttachDisk(DiskRequest),
    /// Take a disk away that the guest no longer uses: [`Reply::Detached`](super::Reply::Detached).
    /// For the monitor as well.
    DetachDisk {
        /// Its serial number.
        serial: String,
    },
    /// Describe the machine from outside: [`Reply::Machine`](super::Reply::Machine). For the
    /// monitor as well.
    Machine,
    /// Fetch an image into the agent's store: [`Reply::Pulled`](super::Reply::Pulled).
    Pull(PullRequest),
    /// Run a container to its end: [`Reply::Ran`](super::Reply::Ran).
    Run(RunRequest),
    /// Something about containers: what [`ContainerRequest`] says.
    Container(ContainerRequest),
    /// List the store: [`Reply::Images`](super::Reply::Images).
    Images,
    /// Describe images: [`Reply::Inspected`](super::Reply::Inspected).
    Inspect {
        /// Names or ids.
        names: Vec<String>,
    },
    /// Remove names and what nothing else names: [`Reply::Removed`](super::Reply::Removed).
    Remove {
        /// Names or ids.
        names: Vec<String>,
        /// Also when several names share an id, or a container uses it, whose image stays.
        #[serde(default)]
        force: bool,
    },
    /// Give an image one more name: [`Reply::Tagged`](super::Reply::Tagged).
    Tag {
        /// Name or id of an image in the store.
        source: String,
        /// The new name.
        target: String,
    },
    /// Describe the agent and its machine: [`Reply::Info`](super::Reply::Info).
    Info,
    /// Put an image whose layers are there, or kept by the host, into the store:
    /// [`Reply::Added`](super::Reply::Added).
    AddImage(AddImage),
    /// Take a layer from standard input, plain or compressed:
    /// [`Reply::LayerAdded`](super::Reply::LayerAdded), at once when the store has it.
    AddLayer {
        /// Digest of the plain archive.
        diff_id: Digest,
    },
    /// Name the parts of images, so that they can be read one by one:
    /// [`Reply::Exported`](super::Reply::Exported).
    Export {
        /// Names or ids.
        names: Vec<String>,
    },
    /// Send a part of an image on standard output: a manifest, a configuration, or a layer as the
    /// plain archive that it came as: [`Reply::Sent`](super::Reply::Sent).
    ReadBlob {
        /// Digest of the document, or the layer's diff_id.
        digest: Digest,
    },
    /// Remove images that nothing names, and layers of interrupted pulls:
    /// [`Reply::Pruned`](super::Reply::Pruned).
    Prune(PruneRequest),
    /// Say how much room everything takes: [`Reply::Usage`](super::Reply::Usage).
    Usage,
    /// Stop containers, sync, power off: [`Reply::Bye`](super::Reply::Bye) or
    /// [`Reply::Settled`](super::Reply::Settled) comes first. The monitor of a machine whose disks
    /// failed answers with [`Reply::Machine`](super::Reply::Machine).
    Shutdown,
    /// Have the ports that this connection published belong to a container, by its id, until that
    /// ends: [`Reply::Published`](super::Reply::Published).
    AdoptPorts {
        /// The container.
        id: String,
    },
    /// Lead ports of the host to a container that is about to be run. They are closed with the
    /// connection: [`Reply::Published`](super::Reply::Published).
    Publish(PublishRequest),
    /// List the ports that are open: [`Reply::Published`](super::Reply::Published).
    Published,
    /// Mount a file system that the host serves: [`Event::Mounted`](super::Event::Mounted) when it
    /// is there, then requests of the machine's kernel as standard output and the host's answers
    /// as standard input, until [`Reply::Unmounted`](super::Reply::Unmounted).
    MountShare {
        /// Its name, 8 to 64 lower-case hex digits.
        share: String,
        /// It is a directory, not a file.
        #[serde(default)]
        directory: bool,
        /// Nobody may write to it.
        #[serde(default)]
        read_only: bool,
    },
    /// No new container will use a mount; it goes with its last one:
    /// [`Reply::Released`](super::Reply::Released).
    Release {
        /// Its name.
        share: String,
    },
    /// A mount that was released is wanted again, if it is still there:
    /// [`Reply::Shared`](super::Reply::Shared).
    KeepShare {
        /// Its name.
        share: String,
    },
    /// Serve a path of this computer to the machine, until this client has gone and no container
    /// uses it: [`Reply::Shared`](super::Reply::Shared). Only the one who keeps a machine can do
    /// that; an agent cannot.
    Share {
        /// Absolute path.
        path: String,
        /// The machine may not change anything.
        #[serde(default)]
        read_only: bool,
        /// The name that it had in an earlier machine, for a container that knows it by that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Work with the volumes that the agent keeps.
    Volume {
        /// What to do.
        action: VolumeAction,
    },
    /// A request of a later version.
    #[serde(other)]
    Unknown,
}

impl Request {
    /// Whether it takes streams off an agent rather than adding one that stays: such a request has
    /// to be heard however much the agent has to do.
    pub fn makes_room(&self) -> bool {
        matches!(
            self,
            Self::Release { .. }
                | Self::KeepShare { .. }
                | Self::Remove { .. }
                | Self::Prune(_)
                | Self::Shutdown
                | Self::Container(
                    ContainerRequest::Kill { .. }
                        | ContainerRequest::Remove { .. }
                        | ContainerRequest::Stop { .. }
                )
        )
    }

    /// Whether it changes nothing anywhere, so that it may be sent once more when nobody knows
    /// what has become of it.
    pub fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::Layers { .. }
                | Self::Machine
                | Self::Images
                | Self::Inspect { .. }
                | Self::Info
                | Self::Export { .. }
                | Self::Usage
                | Self::Published
                | Self::Volume {
                    action: VolumeAction::List { .. }
                }
                | Self::Container(
                    ContainerRequest::Inspect { .. }
                        | ContainerRequest::List
                        | ContainerRequest::Path { .. }
                        | ContainerRequest::Stats { .. }
                        | ContainerRequest::Top { .. }
                )
        )
    }
}

/// Arguments of [`Request::AddImage`]. The configuration comes on standard input, then the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddImage {
    /// The name to give it, if any; with a tag, as the agent is to store it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Media type of the manifest.
    pub media_type: String,
    /// Bytes of the configuration.
    pub config_size: u64,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// The layers that the host keeps; those that the store has itself may be among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptLayer>,
}

/// Arguments of [`Request::Prune`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PruneRequest {
    /// Also images with names, unless a container uses them.
    pub all: bool,
    /// Say what would go, and leave it.
    pub dry_run: bool,
    /// Only these of them, by id; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<Digest>>,
}

/// Arguments of [`Request::AttachDisk`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Absolute path of a raw image on the host.
    pub path: String,
    /// The serial number under which the guest finds it: up to 36 letters, digits, `-` and `_`.
    pub serial: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// Arguments of [`Request::Pull`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// The name as the user wrote it.
    pub reference: String,
    /// How registries are reached.
    #[serde(default)]
    pub settings: RegistrySettings,
    /// `os/arch[/variant]`; the machine's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// Arguments of [`Request::Run`].
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The name as the user wrote it, or an id.
    pub image: String,
    /// Arguments after the image, exactly as given; they replace the image's command.
    #[serde(default)]
    pub args: Vec<String>,
    /// Replaces the image's entry point; empty resets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, on top of the image's.
    #[serde(default)]
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Replaces the image's user: `user[:group]`, names or numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host name inside; the container's short id when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Run on a terminal: standard error then comes on standard output.
    #[serde(default)]
    pub tty: bool,
    /// The host will send standard input; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Name of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Remove the container when it has ended.
    #[serde(default)]
    pub rm: bool,
    /// How it lives beyond that.
    #[serde(default)]
    pub life: Life,
    /// Mount the root file system read-only.
    #[serde(default)]
    pub read_only: bool,
    /// What the container may do and use.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// Directories and files beside the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountSpec>,
    /// Whether to pull first.
    #[serde(default)]
    pub pull: PullPolicy,
    /// How registries are reached when the image has to be pulled.
    #[serde(default)]
    pub settings: RegistrySettings,
}

/// When `run` pulls its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// When the store does not have it.
    #[default]
    Missing,
    /// Every time.
    Always,
    /// Not at all.
    Never,
}

/// How the agent reaches registries, sent with each request so that it holds for a running VM.
///
/// Host names are already translated for the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistrySettings {
    /// The registry to try first, `host[:port][/namespace]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// Hosts (`host[:port]`) that may be spoken to over plain HTTP or with any certificate.
    pub insecure: Vec<String>,
    /// TLS only, for the gateway too.
    pub secure: bool,
    /// Other places that have the content of a host.
    pub mirrors: Vec<Mirror>,
    /// PEM certificates that are trusted beside the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The host's own trust store as PEM: public authorities, for registries such as Docker Hub.
    /// What of it cannot be used is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_roots: Option<String>,
    /// One entry a host.
    pub credentials: Vec<HostCredential>,
    /// The address under which the guest reaches the host (`10.0.2.2`).
    pub gateway: String,
    /// Seconds that a registry may stay silent before it is tried again or given up; the agent's own
    /// patience when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// Nobody named a registry: what the agent's own machine is set up for holds
    /// ([`RegistrySettings::take_defaults`]).
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub defaults: bool,
}

/// What a machine is set up to pull from: what was baked into its image, or configured later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryDefaults {
    /// `/etc/vdkr/registry.conf`.
    pub conf: RegistryConf,
    /// The registry's CA, in PEM.
    pub ca_pem: Option<String>,
    /// The login at the registry.
    pub credential: Credential,
}

impl RegistrySettings {
    /// Takes up what the machine is set up for where the request leaves it open
    /// ([`RegistrySettings::defaults`]). What the request says wins, and a CA that came with it is
    /// the only one.
    pub fn take_defaults(&mut self, defaults: RegistryDefaults) {
        if !core::mem::take(&mut self.defaults) {
            return;
        }
        let RegistryDefaults {
            conf,
            ca_pem,
            credential,
        } = defaults;
        for entry in conf.insecure {
            if !self.insecure.contains(&entry) {
                self.insecure.push(entry);
            }
        }
        if self.ca_pem.is_none() {
            self.ca_pem = ca_pem;
        }
        let (None, Some(registry)) = (&self.registry, conf.registry) else {
            return;
        };
        let host = registry.host().to_string();
        match registry.scheme() {
            Some(Scheme::Http) if !self.insecure.contains(&host) => {
                self.insecure.push(host.clone());
            }
            Some(Scheme::Https) => self.secure = true,
            _ => {}
        }
        // Whoever bakes a CA means the registry to be proved by it.
        self.secure |= self.ca_pem.is_some() && !self.insecure.contains(&host);
        let known = |entry: &HostCredential| entry.host == host;
        if credential != Credential::Anonymous && !self.credentials.iter().any(known) {
            self.credentials.push(HostCredential::new(host, credential));
        }
        self.registry = Some(registry.to_string());
    }
}

/// Mirrors of one registry, tried in order before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The registry whose names are mirrored, such as `docker.io`.
    pub host: String,
    /// URLs (`http://10.0.2.2:5001`).
    #[serde(default)]
    pub endpoints: Vec<String>,
}

/// A credential of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostCredential {
    /// `host[:port]`, or `host[:port]/namespace` for a part of it.
    pub host: String,
    /// User name, with `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password of `username`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "exposed_option"
    )]
    pub password: Option<Secret>,
    /// A token to be sent as it is.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "exposed_option"
    )]
    pub token: Option<Secret>,
    /// A refresh token for the registry's token server.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "exposed_option"
    )]
    pub identity_token: Option<Secret>,
}

impl HostCredential {
    /// Puts a credential into its form on the channel.
    pub fn new(host: impl Into<String>, credential: Credential) -> Self {
        let mut entry = Self {
            host: host.into(),
            ..Self::default()
        };
        match credential {
            Credential::Anonymous => {}
            Credential::Basic { username, password } => {
                entry.username = Some(username);
                entry.password = Some(password);
            }
            Credential::Bearer(token) => entry.token = Some(token),
            Credential::IdentityToken(token) => entry.identity_token = Some(token),
        }
        entry
    }

    /// The credential; a token wins over an identity token, that over a password.
    pub fn credential(&self) -> Credential {
        if let Some(token) = &self.token {
            Credential::Bearer(token.clone())
        } else if let Some(token) = &self.identity_token {
            Credential::IdentityToken(token.clone())
        } else if let Some(username) = &self.username {
            let password = self.password.clone().unwrap_or_default();
            Credential::Basic {
                username: username.clone(),
                password,
            }
        } else {
            Credential::Anonymous
        }
    }
}

#[expect(
    clippy::ref_option,
    reason = "serde hands over a reference to the field"
)]
fn exposed_option<S: Serializer>(
    secret: &Option<Secret>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => exposed(secret, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use alloc::{borrow::ToOwned as _, vec};

    use super::*;
    use crate::emit::vdkr::parse;

    fn baked(conf: &str) -> RegistryDefaults {
        RegistryDefaults {
            conf: parse(conf).unwrap(),
            ca_pem: Some("baked".to_owned()),
            credential: Credential::Bearer(Secret::new("t")),
        }
    }

    fn open() -> RegistrySettings {
        RegistrySettings {
            defaults: true,
            ..RegistrySettings::default()
        }
    }

    #[test]
    fn a_request_that_names_no_registry_gets_the_machines() {
        let mut settings = open();
        settings.take_defaults(baked("VDKR_DEFAULT_REGISTRY=10.0.2.2:5000/yocto"));
        assert_eq!(settings.registry.as_deref(), Some("10.0.2.2:5000/yocto"));
        assert_eq!(settings.ca_pem.as_deref(), Some("baked"));
        assert!(settings.secure && !settings.defaults);
        assert_eq!(settings.credentials[0].host, "10.0.2.2:5000");

        let mut settings = open();
        settings.take_defaults(baked(
            "VDKR_DEFAULT_REGISTRY=h:1\nVDKR_INSECURE_REGISTRIES=\"h:1 10.0.0.0/8\"",
        ));
        assert!(!settings.secure, "the file says that it is not verified");
        assert_eq!(settings.insecure, ["h:1", "10.0.0.0/8"]);
    }

    #[test]
    fn what_the_request_says_wins() {
        let defaults = || baked("VDKR_DEFAULT_REGISTRY=h:1");
        let none = RegistrySettings::default();
        let mut settings = none.clone();
        settings.take_defaults(defaults());
        assert_eq!(settings, none, "no registry at all was asked for");

        let mut settings = RegistrySettings {
            registry: Some("other:2".to_owned()),
            ca_pem: Some("mine".to_owned()),
            ..open()
        };
        settings.take_defaults(defaults());
        assert_eq!(settings.registry.as_deref(), Some("other:2"));
        assert_eq!(settings.ca_pem.as_deref(), Some("mine"));
        assert_eq!(settings.credentials, [], "they belong to another registry");

        let mine = HostCredential::new("h:1", Credential::Bearer(Secret::new("mine")));
        let mut settings = RegistrySettings {
            credentials: vec![mine.clone()],
            ..open()
        };
        settings.take_defaults(defaults());
        assert_eq!(settings.credentials, [mine]);
    }
}
