//! Image manifests, indexes and configurations (OCI image specification; Docker schema 2).
//!
//! The digest of a manifest is the digest of its bytes, so the bytes stay beside the parsed form
//! ([`ParsedManifest::raw`]) and are what is stored and sent on. Parsing only answers questions
//! about them, and refuses what two programs could read in two ways.

pub mod change;
mod config;
mod descriptor;
pub mod media_type;
mod merge;
mod parse;

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use config::{ContainerConfig, History, ImageConfig, RootFs};
pub use descriptor::Descriptor;
pub use merge::merge_index;
pub use parse::parse;

use crate::digest::{Algorithm, Digest};

/// Longest manifest or index in bytes, the limit that common registries share.
pub const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Longest image configuration in bytes.
pub const MAX_CONFIG: usize = 8 * 1024 * 1024;
/// Most layers of a manifest, and most entries of an index.
pub const MAX_DESCRIPTORS: usize = 16 * 1024;
/// Most annotations of one manifest, or of one entry.
pub const MAX_ANNOTATIONS: usize = 4096;
/// Longest text that an error repeats, in bytes.
const MAX_QUOTED: usize = 200;

/// Why a manifest, an index or a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is longer than its cap.
    #[error("{what} of {length} bytes is longer than the {limit} bytes allowed")]
    TooLarge {
        /// Manifest or configuration.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The cap in bytes.
        limit: usize,
    },
    /// It is no JSON, or a field has the wrong form.
    #[error("{what} is malformed: {problem}")]
    Malformed {
        /// Manifest or configuration.
        what: &'static str,
        /// The reader's words, with line and column.
        problem: String,
    },
    /// A field that must be there is not.
    #[error("manifest of type {media_type} has no {field:?}")]
    Missing {
        /// The type it should have the form of.
        media_type: String,
        /// The field.
        field: &'static str,
    },
    /// It could be read as an image and as an index, or in another way by another program.
    #[error("manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// The type in the body and the declared one differ.
    #[error("manifest says it is {body:?} but was declared as {declared:?}")]
    MediaTypeMismatch {
        /// `Content-Type`, or the type in the descriptor that led here.
        declared: String,
        /// `mediaType` of the body.
        body: String,
    },
    /// Docker's first format.
    #[error(
        "manifest is in Docker's old schema 1 format, which is not supported; \
         push the image again with a current client"
    )]
    Schema1,
    /// A version other than 2.
    #[error("manifest has schemaVersion {0}, only 2 is known")]
    SchemaVersion(u64),
    /// Neither image manifest nor index.
    #[error("manifest type {0:?} is not supported")]
    UnsupportedMediaType(String),
    /// More entries than [`MAX_DESCRIPTORS`].
    #[error("manifest lists {count} entries, more than the {MAX_DESCRIPTORS} allowed")]
    TooManyEntries {
        /// How many there are.
        count: usize,
    },
    /// An index was expected.
    #[error("manifest of type {0} is not an index")]
    NotAnIndex(String),
}

impl ManifestError {
    fn malformed(what: &'static str, error: &serde_json::Error) -> Self {
        use alloc::string::ToString as _;
        Self::Malformed {
            what,
            problem: quoted(&error.to_string()),
        }
    }
}

/// Cuts a text that an error is going to repeat.
fn quoted(text: &str) -> String {
    let mut end = text.len().min(MAX_QUOTED);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut cut = String::from(text.get(..end).unwrap_or_default());
    if end < text.len() {
        cut.push('…');
    }
    cut
}

/// A manifest: its bytes, its type, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedManifest {
    /// The bytes as they came; only these are ever stored or sent.
    pub raw: Vec<u8>,
    /// The type, from the body, the declaration or the form, in this order.
    pub media_type: String,
    /// The parsed form.
    pub kind: ManifestKind,
}

/// The two forms of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, never in bulk")]
pub enum ManifestKind {
    /// One image, or one artifact.
    Image(ImageManifest),
    /// A list of manifests.
    Index(ImageIndex),
}

/// An image manifest (OCI image specification, "Image Manifest").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// What kind of artifact it is, when it is no image.
    pub artifact_type: Option<String>,
    /// The configuration; of an artifact, any blob.
    pub config: Descriptor,
    /// The layers from the lowest to the highest; of an artifact, any blobs.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one says something about.
    pub subject: Option<Descriptor>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// An image index (OCI image specification, "Image Index").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageIndex {
    /// What kind of artifact it is, when it is no image.
    pub artifact_type: Option<String>,
    /// The entries in their order.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one says something about.
    pub subject: Option<Descriptor>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

impl ParsedManifest {
    /// The digest of the bytes.
    pub fn digest(&self, algorithm: Algorithm) -> Digest {
        Digest::of(algorithm, &self.raw)
    }

    /// A descriptor of this manifest (SHA-256), without platform and annotations.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            artifact_type: self.artifact_type().map(String::from),
            ..Descriptor::new(
                &self.media_type,
                Digest::sha256(&self.raw),
                self.raw.len() as u64,
            )
        }
    }

    /// The image, when it is one.
    pub fn as_image(&self) -> Option<&ImageManifest> {
        match &self.kind {
            ManifestKind::Image(image) => Some(image),
            ManifestKind::Index(_) => None,
        }
    }

    /// The index, when it is one.
    pub fn as_index(&self) -> Option<&ImageIndex> {
        match &self.kind {
            ManifestKind::Image(_) => None,
            ManifestKind::Index(index) => Some(index),
        }
    }

    /// The blobs that a registry must have before this manifest: configuration, then layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.as_image().into_iter().flat_map(ImageManifest::blobs)
    }

    /// The manifests that an index lists; none for an image.
    pub fn manifests(&self) -> &[Descriptor] {
        self.as_index().map_or(&[], |index| &index.manifests)
    }

    /// The manifest that this one refers to (OCI distribution specification, "Referrers").
    pub fn subject(&self) -> Option<&Descriptor> {
        match &self.kind {
            ManifestKind::Image(image) => image.subject.as_ref(),
            ManifestKind::Index(index) => index.subject.as_ref(),
        }
    }

    /// The annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match &self.kind {
            ManifestKind::Image(image) => &image.annotations,
            ManifestKind::Index(index) => &index.annotations,
        }
    }

    /// The artifact type that a list of referrers shows: the one in the body, else the
    /// configuration's media type of an image manifest.
    pub fn artifact_type(&self) -> Option<&str> {
        match &self.kind {
            ManifestKind::Image(image) => {
                let own = image.artifact_type.as_deref().filter(|own| !own.is_empty());
                Some(own.unwrap_or(&image.config.media_type))
            }
            ManifestKind::Index(index) => index.artifact_type.as_deref(),
        }
    }
}

impl ImageManifest {
    /// Configuration, then layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        core::iter::once(&self.config).chain(&self.layers)
    }

    /// This manifest as JSON of the OCI type. For a manifest that came from elsewhere use its
    /// bytes instead: writing it again changes its digest.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        Written {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST,
            artifact_type: self.artifact_type.as_deref(),
            config: Some(&self.config),
            layers: Some(&self.layers),
            manifests: None,
            subject: self.subject.as_ref(),
            annotations: &self.annotations,
        }
        .to_json()
    }
}

impl ImageIndex {
    /// This index as JSON of the OCI type; see [`ImageManifest::to_json`].
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        Written {
            schema_version: 2,
            media_type: media_type::OCI_INDEX,
            artifact_type: self.artifact_type.as_deref(),
            config: None,
            layers: None,
            manifests: Some(&self.manifests),
            subject: self.subject.as_ref(),
            annotations: &self.annotations,
        }
        .to_json()
    }
}

/// Both forms as they are written; the order of the fields is the order of the output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    schema_version: u8,
    media_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a Descriptor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<&'a [Descriptor]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifests: Option<&'a [Descriptor]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a Descriptor>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Written<'_> {
    fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let json = serde_json::to_vec(self)
            .map_err(|error| ManifestError::malformed(parse::MANIFEST, &error))?;
        parse::check_length(&json)?;
        Ok(json)
    }
}

/// Reads `null` as the default, as programs written in Go do and expect of others.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads annotations, at most [`MAX_ANNOTATIONS`] of them; `null` stands for none.
fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Notes;
    impl<'de> Visitor<'de> for Notes {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut read = BTreeMap::new();
            while let Some((key, value)) = map.next_entry()? {
                if read.len() == MAX_ANNOTATIONS {
                    let problem = format!("it has more than {MAX_ANNOTATIONS} annotations");
                    return Err(de::Error::custom(problem));
                }
                read.insert(key, value);
            }
            Ok(read)
        }
    }
    deserializer.deserialize_any(Notes)
}
