//! Images whose layers the host keeps and hands over as disks.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// An image that the host has pulled: arguments of [`Request::Admit`](super::Request::Admit).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdmitRequest {
    /// The canonical reference that it was pulled by, as the guest sees it.
    pub reference: String,
    /// Digest of what the reference points to (manifest or index).
    pub digest: String,
    /// The manifest of the image, byte for byte.
    pub manifest: String,
    /// Its media type.
    pub media_type: String,
    /// The configuration, byte for byte.
    pub config: String,
    /// The layers that the host keeps; those that the store has itself may be among them.
    pub layers: Vec<KeptLayer>,
}

/// A layer that the host keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptLayer {
    /// Digest of its plain archive.
    pub diff_id: String,
    /// Bytes of data in its files.
    pub bytes: u64,
    /// It hides everything beneath it.
    pub opaque: bool,
}

/// A disk with a layer, which the host has attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerDisk {
    /// Digest of the layer's plain archive.
    pub diff_id: String,
    /// The disk's serial number.
    pub serial: String,
}

/// What an image needs of the layers that the host keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NeededLayers {
    /// Digest of the image's configuration; empty when no image was asked about.
    pub id: String,
    /// The reference that the image was pulled by; empty when the host brought it.
    pub source: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Those that the host has yet to hand over, lowest first.
    pub missing: Vec<String>,
    /// Those that the host keeps for the whole store.
    pub kept: Vec<String>,
}
