use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny, ser::SerializeMap as _,
};

use super::{MAX_CONFIG, ManifestError, null_is_default};
use crate::digest::Digest;
use crate::platform::Platform;

/// What errors call a configuration.
const CONFIG: &str = "image configuration";

/// An image configuration (OCI image specification, "Image Configuration"). `null` stands for an
/// absent field everywhere, as Docker writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Time of the making, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// CPU architecture; empty when the image does not say.
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// Operating system; empty when the image does not say.
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// Version of the operating system.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Variant of the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How a container of the image is run.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// The root file system.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    /// How each layer came about, and the steps that made none.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
}

/// How a container of an image is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `user[:group]`, names or numbers; empty for root.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// `port/protocol` the program listens on.
    #[serde(
        deserialize_with = "keys",
        serialize_with = "keys_to_map",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub entrypoint: Vec<String>,
    /// Arguments that the user's arguments replace.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cmd: Vec<String>,
    /// Directories for data that outlives a container.
    #[serde(
        deserialize_with = "keys",
        serialize_with = "keys_to_map",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub volumes: BTreeSet<String>,
    /// Working directory; empty for `/`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Labels.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// The signal that stops the program, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// The root file system of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Digests of the uncompressed layers, from the lowest to the highest.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: "layers".into(),
            diff_ids: Vec::new(),
        }
    }
}

/// A step in the making of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Its time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(deserialize_with = "null_is_default")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a configuration of at most [`MAX_CONFIG`] bytes.
    pub fn parse(raw: &[u8]) -> Result<Self, ManifestError> {
        if raw.len() > MAX_CONFIG {
            return Err(ManifestError::TooLarge {
                what: CONFIG,
                length: raw.len(),
                limit: MAX_CONFIG,
            });
        }
        // The derived reader would take an array for the object.
        if raw.trim_ascii_start().first() == Some(&b'[') {
            let problem = "an array stands for the object".into();
            return Err(ManifestError::Malformed {
                what: CONFIG,
                problem,
            });
        }
        serde_json::from_slice(raw).map_err(|error| ManifestError::malformed(CONFIG, &error))
    }

    /// The platform the image runs on, for its entry in an index.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            variant: self.variant.clone(),
            ..Platform::default()
        }
    }
}

/// Reads a Go set, `{"name": {}}`.
#[expect(clippy::zero_sized_map_values, reason = "the values are read past")]
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map = Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn keys_to_map<S: Serializer>(keys: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(keys.len()))?;
    for key in keys {
        map.serialize_entry(key, &BTreeMap::<String, String>::new())?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_configuration_as_docker_writes_it() {
        let json = br#"{
            "architecture": "arm64", "variant": "v8", "os": "linux", "created": "2026-01-12T14:30:22Z",
            "container": "x", "docker_version": "20",
            "config": {
                "Hostname": "", "User": "1000:1000", "AttachStdin": false,
                "ExposedPorts": {"80/tcp": {}}, "Env": ["PATH=/bin", "A=b=c"], "Cmd": ["sh"],
                "Entrypoint": null, "Volumes": {"/data": {}, "/a": {}}, "WorkingDir": "/srv",
                "Labels": null, "StopSignal": "SIGTERM", "OnBuild": null
            },
            "rootfs": {"type": "layers", "diff_ids":
                ["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]},
            "history": [{"created_by": "x", "empty_layer": true}, {"comment": "y"}]
        }"#;
        let config = ImageConfig::parse(json).unwrap();
        assert_eq!(
            config.platform(),
            Platform {
                architecture: "arm64".into(),
                os: "linux".into(),
                variant: Some("v8".into()),
                ..Platform::default()
            }
        );
        assert_eq!(config.config.user, "1000:1000");
        assert_eq!(config.config.env, ["PATH=/bin", "A=b=c"]);
        assert_eq!(config.config.cmd, ["sh"]);
        assert!(config.config.entrypoint.is_empty());
        assert!(config.config.volumes.iter().eq(["/a", "/data"]));
        assert!(config.config.exposed_ports.contains("80/tcp"));
        assert_eq!(config.config.stop_signal.as_deref(), Some("SIGTERM"));
        assert_eq!(config.rootfs.diff_ids, [Digest::sha256(b"abc")]);
        assert!(config.history[0].empty_layer && !config.history[1].empty_layer);
        let again = serde_json::to_vec(&config).unwrap();
        assert_eq!(ImageConfig::parse(&again).unwrap(), config);
    }

    #[test]
    fn little_is_required_and_null_is_nothing() {
        assert_eq!(ImageConfig::parse(b"{}").unwrap(), ImageConfig::default());
        let nulls = br#"{"architecture":null,"os":null,"config":null,"rootfs":null,"history":null,
            "created":null,"author":null,"variant":null}"#;
        assert_eq!(ImageConfig::parse(nulls).unwrap(), ImageConfig::default());
    }

    #[test]
    fn wrong_forms_are_errors() {
        for bad in [
            &b""[..],
            b"[]",
            b"{\"rootfs\":{\"diff_ids\":[\"sha256:x\"]}}",
            b"{\"config\":{\"Env\":[1]}}",
            b"{\"config\":{\"Env\":[],\"Env\":[]}}",
        ] {
            assert!(matches!(
                ImageConfig::parse(bad),
                Err(ManifestError::Malformed { .. })
            ));
        }
        assert!(matches!(
            ImageConfig::parse(&vec![b' '; MAX_CONFIG + 1]),
            Err(ManifestError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn round_trip(
            env in proptest::collection::vec(".{0,10}", 0..4),
            volumes in proptest::collection::btree_set(".{0,10}", 0..4),
            labels in proptest::collection::btree_map(".{0,6}", ".{0,6}", 0..4),
            user in ".{0,6}",
        ) {
            let config = ImageConfig {
                config: ContainerConfig { user, env, volumes, labels, ..ContainerConfig::default() },
                ..ImageConfig::default()
            };
            let json = serde_json::to_vec(&config).unwrap();
            prop_assert_eq!(ImageConfig::parse(&json).unwrap(), config);
        }

        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ImageConfig::parse(&raw);
        }
    }
}
