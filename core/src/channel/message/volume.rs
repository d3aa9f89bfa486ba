//! Mounts of containers, and the volumes that an agent keeps.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// Something that a container gets beside its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Where: absolute, and as [`check_target`](crate::volume::check_target) gives it.
    pub target: String,
    /// What.
    #[serde(default)]
    pub source: MountSource,
    /// The container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MountSource {
    /// What [`Request::MountShare`](super::Request::MountShare) made under this name.
    Share {
        /// The name.
        share: String,
        /// The host's path, for users to read: the agent has no way to it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        path: String,
    },
    /// A volume that the agent keeps, made when it is missing.
    Volume {
        /// Its name; a new volume that goes with its container when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// An empty volume stays empty, instead of getting what the image has in its place.
        #[serde(default)]
        no_copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Permissions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// A source of a later version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What to do with volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum VolumeAction {
    /// Make one: [`Reply::Volumes`](super::Reply::Volumes) with it. One that is there stays.
    Create {
        /// Its name; a new one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Labels of a new one.
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    /// Describe all, or those with these names: [`Reply::Volumes`](super::Reply::Volumes).
    List {
        /// Names; none for all.
        #[serde(default)]
        names: Vec<String>,
    },
    /// Remove some: [`Reply::VolumesRemoved`](super::Reply::VolumesRemoved).
    Remove {
        /// Names.
        names: Vec<String>,
        /// Names that no volume has are no failure.
        #[serde(default)]
        force: bool,
    },
    /// Remove what no container uses: [`Reply::VolumesRemoved`](super::Reply::VolumesRemoved).
    Prune {
        /// Also those that a user has named.
        #[serde(default)]
        all: bool,
    },
    /// An action of a later version.
    #[serde(other)]
    Unknown,
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeRow {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Nobody gave it its name.
    pub anonymous: bool,
    /// A container has it.
    pub in_use: bool,
    /// Where its content is, inside the machine.
    pub mountpoint: String,
}
