use alloc::{borrow::ToOwned, collections::BTreeMap, format, string::String, vec::Vec};
use core::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    Descriptor, ImageIndex, ImageManifest, MAX_DESCRIPTORS, MAX_MANIFEST, ManifestError,
    ManifestKind, ParsedManifest, annotations, media_type, quoted,
};

/// What errors call a manifest.
pub(super) const MANIFEST: &str = "manifest";

/// The top-level fields that decide how a manifest is read.
const DECISIVE: [&str; 10] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "fsLayers",
    "signatures",
];

/// Reads a manifest or an index.
///
/// `declared` is the type that the content was announced with: a `Content-Type`, or the media type
/// of the descriptor that led here. Refused are, beside what is malformed or longer than
/// [`MAX_MANIFEST`]: a type in the body that differs from the declared one; a body with the fields
/// of both forms; and keys that occur twice or that differ from a known key only in case, which
/// other programs read otherwise (CVE-2021-41190 and its relatives).
pub fn parse(raw: &[u8], declared: Option<&str>) -> Result<ParsedManifest, ManifestError> {
    check_length(raw)?;
    let text = core::str::from_utf8(raw).map_err(|error| ManifestError::Malformed {
        what: MANIFEST,
        problem: format!("not UTF-8 at byte {}", error.valid_up_to()),
    })?;
    let malformed = |error| ManifestError::malformed(MANIFEST, &error);
    let Keys { dubious } = serde_json::from_str(text).map_err(malformed)?;
    if let Some(dubious) = dubious {
        return Err(ManifestError::Ambiguous(dubious));
    }
    let body: Body = serde_json::from_str(text).map_err(malformed)?;
    let media_type = body.media_type(declared)?;
    let kind = body.into_kind(&media_type)?;
    Ok(ParsedManifest {
        raw: raw.to_vec(),
        media_type,
        kind,
    })
}

/// Compares a manifest's length with its cap.
pub(super) fn check_length(raw: &[u8]) -> Result<(), ManifestError> {
    if raw.len() > MAX_MANIFEST {
        return Err(ManifestError::TooLarge {
            what: MANIFEST,
            length: raw.len(),
            limit: MAX_MANIFEST,
        });
    }
    Ok(())
}

/// Every field of either form. Absent and `null` are the same.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Entries>,
    #[serde(default)]
    manifests: Option<Entries>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
    #[serde(default)]
    signatures: Option<IgnoredAny>,
}

impl Body {
    fn media_type(&self, declared: Option<&str>) -> Result<String, ManifestError> {
        let declared = declared
            .map(media_type::essence)
            .filter(|declared| !declared.is_empty());
        let body = self.media_type.as_deref().filter(|body| !body.is_empty());
        let schema1 = self.schema_version == Some(1)
            || self.fs_layers.is_some()
            || self.signatures.is_some()
            || declared.as_deref().is_some_and(media_type::is_schema1)
            || body.is_some_and(media_type::is_schema1);
        if schema1 {
            return Err(ManifestError::Schema1);
        }
        match (declared, body) {
            (Some(declared), Some(body)) if declared != body => {
                Err(ManifestError::MediaTypeMismatch {
                    declared: quoted(&declared),
                    body: quoted(body),
                })
            }
            (_, Some(body)) => Ok(body.to_owned()),
            (Some(declared), None) => Ok(declared),
            (None, None) if self.manifests.is_some() => Ok(media_type::OCI_INDEX.to_owned()),
            (None, None) => Ok(media_type::OCI_MANIFEST.to_owned()),
        }
    }

    fn into_kind(self, media_type: &str) -> Result<ManifestKind, ManifestError> {
        let is_index = media_type::is_index(media_type);
        if !is_index && !media_type::is_image(media_type) {
            return Err(ManifestError::UnsupportedMediaType(quoted(media_type)));
        }
        let missing = |field| ManifestError::Missing {
            media_type: media_type.to_owned(),
            field,
        };
        match self.schema_version {
            Some(2) => {}
            Some(other) => return Err(ManifestError::SchemaVersion(other)),
            None => return Err(missing("schemaVersion")),
        }
        if self.manifests.is_some() && (self.layers.is_some() || self.config.is_some()) {
            let problem = "it has both \"manifests\" and \"layers\" or \"config\"";
            return Err(ManifestError::Ambiguous(problem.to_owned()));
        }
        let entries = self
            .layers
            .as_ref()
            .or(self.manifests.as_ref())
            .map_or(0, |entries| entries.count);
        if entries > MAX_DESCRIPTORS {
            return Err(ManifestError::TooManyEntries { count: entries });
        }
        let Self {
            artifact_type,
            subject,
            annotations,
            ..
        } = self;
        if is_index {
            // Programs in Go write an empty list as `null`; an image's fields are another matter.
            if self.layers.is_some() || self.config.is_some() {
                return Err(missing("manifests"));
            }
            let manifests = self.manifests.unwrap_or_default().kept;
            Ok(ManifestKind::Index(ImageIndex {
                artifact_type,
                manifests,
                subject,
                annotations,
            }))
        } else {
            let config = self.config.ok_or_else(|| missing("config"))?;
            let layers = self.layers.unwrap_or_default().kept;
            Ok(ManifestKind::Image(ImageManifest {
                artifact_type,
                config,
                layers,
                subject,
                annotations,
            }))
        }
    }
}

/// The entries of a list: all are counted, and no more are kept than are allowed.
#[derive(Default)]
struct Entries {
    kept: Vec<Descriptor>,
    count: usize,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while entries.count < MAX_DESCRIPTORS
                    && let Some(entry) = list.next_element()?
                {
                    entries.kept.push(entry);
                    entries.count += 1;
                }
                while let Some(IgnoredAny) = list.next_element()? {
                    entries.count += 1;
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// Looks over the top-level keys alone.
struct Keys {
    dubious: Option<String>,
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut seen = [false; DECISIVE.len()];
        let mut dubious = None;
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            for (&name, seen) in DECISIVE.iter().zip(&mut seen) {
                if key == name {
                    if core::mem::replace(seen, true) {
                        dubious = Some(format!("it has {name:?} twice"));
                    }
                } else if folds_to(&key, name) {
                    dubious = Some(format!("it has {:?} for {name:?}", quoted(&key)));
                }
            }
        }
        Ok(Keys { dubious })
    }
}

/// Whether a reader that ignores case, as Go's does, takes `key` for `name` (ASCII): the letters
/// ſ and K (Kelvin) are cases of s and k.
fn folds_to(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests;
