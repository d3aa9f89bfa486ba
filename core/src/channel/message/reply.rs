//! What the agent answers, and its news on the way.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ContainerReply, NeededLayers, Publication, VolumeRow};
use crate::{digest::Digest, manifest::Descriptor};

/// The answer that ends a stream.
pub type Done = Result<Reply, Failure>;

/// What a request gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Which layers the host keeps.
    Layers(NeededLayers),
    /// The layers of the disks can be used.
    Mounted,
    /// The disk is there, or the guest is about to see it.
    Attached,
    /// The disk is gone.
    Detached,
    /// The machine from outside.
    Machine(MachineState),
    /// An image is in the store.
    Pulled(Pulled),
    /// A container ended.
    Ran {
        /// Its exit status; 128 + n after signal n; 125 to 127 as docker gives them.
        status: i32,
    },
    /// Something about containers.
    Container(ContainerReply),
    /// The images in the store.
    Images {
        /// One for each name.
        images: Vec<ImageRow>,
    },
    /// Descriptions in the order of the names asked for.
    Inspected {
        /// Objects as `docker image inspect` shows them.
        documents: Vec<Value>,
    },
    /// What was removed, in order.
    Removed {
        /// One for each name or content.
        removed: Vec<Removed>,
    },
    /// The new name stands.
    Tagged,
    /// The image is in the store.
    Added {
        /// Digest of its configuration.
        id: Digest,
        /// The image that had the name before, when it was another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaced: Option<Digest>,
    },
    /// The layer is in the store.
    LayerAdded {
        /// It was there before.
        #[serde(default)]
        present: bool,
    },
    /// The parts of images, in the order of the names asked for.
    Exported {
        /// One for each name.
        images: Vec<ExportedImage>,
    },
    /// Everything asked for went out on standard output.
    Sent,
    /// What was removed, or would be.
    Pruned {
        /// One for each name or content.
        removed: Vec<Removed>,
        /// Bytes of layers that are free now.
        freed: u64,
    },
    /// How much room everything takes.
    Usage(Usage),
    /// The agent and its machine.
    Info(Info),
    /// The mount goes with its last container.
    Released,
    /// A path is served and mounted.
    Shared {
        /// Name of the mount.
        share: String,
    },
    /// A mount has ended.
    Unmounted,
    /// Volumes.
    Volumes {
        /// In the order of their names.
        volumes: Vec<VolumeRow>,
    },
    /// Volumes are gone.
    VolumesRemoved {
        /// Their names.
        names: Vec<String>,
        /// Bytes of their files.
        #[serde(default)]
        freed: u64,
    },
    /// The machine goes down now.
    Bye,
    /// The machine goes down now, and has nothing left to write: it may be switched off.
    Settled,
    /// Ports that lead to containers.
    Published {
        /// One for each container.
        publications: Vec<Publication>,
    },
    /// A reply of a later version.
    #[serde(other)]
    Unknown,
}

/// A kept machine as its monitor sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineState {
    /// Requests under way.
    pub busy: u64,
    /// Milliseconds until the machine stops if no request comes; absent while one is under way and
    /// when it never stops by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_left_ms: Option<u64>,
    /// Serial numbers of the disks that were attached while it runs.
    pub disks: Vec<String>,
    /// What went wrong with its disks on this computer since it was started, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk_errors: Vec<String>,
    /// The emulator's word for why its processor stands still, such as `paused`; absent while it
    /// runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// Result of a pull.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pulled {
    /// Canonical name under which the image is stored.
    pub name: String,
    /// Digest of what the name points to in the registry (manifest or index).
    pub digest: String,
    /// Digest of the image's configuration.
    pub id: String,
    /// Compressed size in bytes of its layers.
    pub size: u64,
}

/// One line of `images`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRow {
    /// Host and repository.
    pub name: String,
    /// Tag; absent for an image known by digest only.
    pub tag: Option<String>,
    /// Digest of the manifest or index.
    pub digest: Option<String>,
    /// Digest of the configuration.
    pub id: String,
    /// Time of the image's making, RFC 3339.
    pub created: Option<String>,
    /// Size of the unpacked layers in bytes.
    pub size: u64,
    /// Labels of the configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The parts of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedImage {
    /// Digest of the configuration.
    pub id: Digest,
    /// Bytes of the configuration.
    pub config_size: u64,
    /// The manifest that it was pulled or loaded with.
    pub manifest: Descriptor,
    /// The name asked for, in full with its tag; absent for an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All names with a tag, in full.
    #[serde(default)]
    pub names: Vec<String>,
    /// `host/repository@digest` of where it came from.
    #[serde(default)]
    pub digests: Vec<String>,
    /// Its layers, lowest first.
    #[serde(default)]
    pub layers: Vec<ExportedLayer>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedLayer {
    /// Digest of the plain archive.
    pub diff_id: Digest,
    /// Bytes of data in its files.
    #[serde(default)]
    pub size: u64,
    /// Bytes of the plain archive, when the store can make it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<u64>,
}

/// How much room everything takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Images that a container uses.
    pub images_active: u64,
    /// Bytes of the layers of all images.
    pub layers_size: u64,
    /// Bytes of layers that only images without a container have.
    pub layers_reclaimable: u64,
    /// Bytes of layers without an image.
    pub spare_size: u64,
    /// Bytes of the place where images are kept.
    pub state_total: u64,
    /// Bytes left there.
    pub state_available: u64,
    /// Bytes that each container has written, by its id; absent from an agent of an earlier version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containers: Option<BTreeMap<String, u64>>,
    /// Bytes that each volume has, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, u64>,
}

/// One step of a removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removed {
    /// A name is gone.
    Untagged(String),
    /// Content is gone, by its digest.
    Deleted(String),
}

/// The agent and its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Name and version of the agent.
    pub software: String,
    /// `uname -r`.
    pub kernel: String,
    /// Architecture as in OCI platforms.
    pub arch: String,
    /// What runs containers: `native`, or another engine and its version.
    pub engine: String,
    /// `disk` or `tmpfs`.
    pub state: String,
    /// Milliseconds since the start of the kernel.
    pub uptime_ms: u64,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of memory that programs may still take.
    pub memory_available: u64,
    /// Bytes of the place where images are kept.
    pub state_total: u64,
    /// Bytes left there.
    pub state_available: u64,
    /// Images in the store.
    pub images: u64,
    /// Containers that run.
    pub containers: u64,
    /// Containers in all; absent from an agent that does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_containers: Option<u64>,
    /// Processors; 0 from an agent that does not say.
    pub cpus: u64,
    /// Serial numbers of the disks that the host gave the machine.
    pub disks: Vec<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The class of the failure.
    pub code: FailureCode,
    /// What failed, on what; lower-case, without secrets.
    pub message: String,
    /// What the user can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Classes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// No such image, name or container.
    NotFound,
    /// The registry refuses the credentials.
    Denied,
    /// A registry cannot be reached.
    Unreachable,
    /// Content does not have the digest or size that was promised.
    DigestMismatch,
    /// The request makes no sense.
    Usage,
    /// The agent does not know the request.
    Unsupported,
    /// The host cancelled it.
    Cancelled,
    /// Anything else, and codes of later versions.
    #[serde(other)]
    Failed,
}

impl FailureCode {
    /// The exit code of the host program (product table).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Denied => 4,
            Self::NotFound => 5,
            Self::DigestMismatch => 6,
            Self::Unsupported | Self::Cancelled | Self::Failed => 1,
        }
    }
}

/// News from a request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A pull asks for this name now.
    Trying {
        /// Canonical reference.
        reference: String,
    },
    /// Bytes of one blob.
    Progress {
        /// Digest of the blob.
        layer: String,
        /// What happens to it.
        phase: Phase,
        /// Bytes done.
        done: u64,
        /// Bytes in all, when known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// A line for the user.
    Log {
        /// How urgent it is.
        level: LogLevel,
        /// One line, without secrets.
        message: String,
    },
    /// The mount is there.
    Mounted,
    /// The container's process runs.
    Started {
        /// Its number inside the machine.
        pid: u32,
        /// Id of the container.
        #[serde(default)]
        container: String,
    },
    /// News of a later version.
    #[serde(other)]
    Unknown,
}

/// What happens to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its turn.
    Waiting,
    /// It comes over the network.
    Download,
    /// It is unpacked into the store.
    Unpack,
    /// The store had it already.
    Present,
    /// It is in the store.
    Complete,
    /// A phase of a later version.
    #[serde(other)]
    Unknown,
}

/// How urgent a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something is wrong, and the request goes on.
    Warn,
    /// Worth knowing.
    Info,
    /// For the one who looks for a fault.
    #[serde(other)]
    Debug,
}
