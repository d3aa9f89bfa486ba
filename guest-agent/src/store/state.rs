//! What the store knows: one document, replaced as a whole, so that every change is either there or
//! not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vdkr_core::{
    candidates::{LocalMatch, RegistryPrefix, resolve_local},
    channel::message::Removed,
    digest::Digest,
    loopback::{DEFAULT_GATEWAY, translate_host},
    manifest::Descriptor,
    reference::{Host, Reference},
};

use super::ImageError;

/// The version of the document that this agent writes.
pub const FORMAT: u32 = 1;

/// After how many openings of the store a layer without an image goes. An interrupted pull that is
/// repeated soon finds what it had finished; the clock of a small machine cannot be asked.
pub const SPARE_OPENINGS: u32 = 3;

/// The whole document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// By id: the digest of the configuration.
    #[serde(default)]
    pub images: BTreeMap<Digest, ImageRecord>,
    /// By canonical reference with a tag.
    #[serde(default)]
    pub names: BTreeMap<String, NameRecord>,
    /// By diff_id.
    #[serde(default)]
    pub layers: BTreeMap<Digest, LayerRecord>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its manifest, of which the store has a copy.
    pub manifest: Descriptor,
    /// The diff_ids of its layers, lowest first.
    pub layers: Vec<Digest>,
    /// Compressed bytes of its layers.
    pub compressed: u64,
    /// `host/repository@digest` of every manifest or index that led to it.
    #[serde(default)]
    pub digests: BTreeSet<String>,
    /// Time of the making, as the configuration says.
    #[serde(default)]
    pub created: Option<String>,
    /// The reference that it was last pulled by.
    #[serde(default)]
    pub source: String,
    /// Seconds since 1970, by the machine's clock.
    #[serde(default)]
    pub pulled_at: u64,
}

/// A name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The image.
    pub image: Digest,
    /// What the name pointed to in its registry; absent for names given here.
    #[serde(default)]
    pub digest: Option<Digest>,
}

/// An unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its directory's name.
    pub name: String,
    /// Bytes of data in its files.
    pub size: u64,
    /// Nothing of the layers below can be seen.
    #[serde(default)]
    pub opaque: bool,
    /// The host keeps it and hands it over as a disk; the directory is where that is mounted.
    #[serde(default)]
    pub kept_by_host: bool,
    /// How often the store was opened since no image had it.
    #[serde(default)]
    pub spare: u32,
}

/// What a user's words mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A tag: canonical reference, image.
    Name(String, Digest),
    /// A name by digest: `host/repository@digest`, image.
    ByDigest(String, Digest),
    /// An image by its id.
    Id(Digest),
}

impl Target {
    /// The image.
    pub fn image(&self) -> &Digest {
        match self {
            Self::Name(_, image) | Self::ByDigest(_, image) | Self::Id(image) => image,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            format: FORMAT,
            images: BTreeMap::new(),
            names: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }
}

impl State {
    /// Finds what a user means by a name or an id.
    pub fn find(
        &self,
        text: &str,
        registry: Option<&RegistryPrefix>,
    ) -> Result<Target, ImageError> {
        let by_digest: BTreeMap<&str, &Digest> = self
            .images
            .iter()
            .flat_map(|(id, image)| image.digests.iter().map(move |name| (name.as_str(), id)))
            .collect();
        let stored: Vec<&str> = self
            .names
            .keys()
            .map(String::as_str)
            .chain(by_digest.keys().copied())
            .collect();
        let found = resolve_local(text, registry, &stored).map_err(|source| ImageError::Name {
            name: text.to_owned(),
            source,
        })?;
        match found {
            LocalMatch::Name(name) => match self.names.get(&name) {
                Some(record) => Ok(Target::Name(name, record.image.clone())),
                None => match by_digest.get(name.as_str()) {
                    Some(&image) => Ok(Target::ByDigest(name.clone(), image.clone())),
                    None => Err(ImageError::NoImage(text.to_owned())),
                },
            },
            LocalMatch::Id => self.find_id(text).map(Target::Id),
            LocalMatch::Ambiguous(matches) => Err(ImageError::Ambiguous {
                name: text.to_owned(),
                matches,
            }),
            // Names win, so that only what names nothing may be the start of an id.
            LocalMatch::None if is_start_of_id(text) => self.find_id(text).map(Target::Id),
            LocalMatch::None => Err(ImageError::NoImage(text.to_owned())),
        }
    }

    /// As [`State::find`], where a registry of the host may be called by either of its names.
    pub fn find_either(
        &self,
        text: &str,
        registry: Option<&RegistryPrefix>,
    ) -> Result<Target, ImageError> {
        let error = match self.find(text, registry) {
            Err(error @ ImageError::NoImage(_)) => error,
            other => return other,
        };
        // Found or not, errors name what the user wrote.
        let other = other_side(text).and_then(|other| self.find(&other, registry).ok());
        other.ok_or(error)
    }

    fn find_id(&self, text: &str) -> Result<Digest, ImageError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let mut found = self.images.keys().filter(|id| id.hex().starts_with(hex));
        let Some(first) = found.next() else {
            return Err(ImageError::NoImage(text.to_owned()));
        };
        let others: Vec<&Digest> = found.collect();
        if others.is_empty() {
            return Ok(first.clone());
        }
        let matches = std::iter::once(first).chain(others);
        Err(ImageError::Ambiguous {
            name: text.to_owned(),
            matches: matches.map(ToString::to_string).collect(),
        })
    }

    /// The names of an image that have a tag.
    pub fn names_of(&self, image: &Digest) -> impl Iterator<Item = (&str, &NameRecord)> {
        self.names
            .iter()
            .filter(move |(_, record)| record.image == *image)
            .map(|(name, record)| (name.as_str(), record))
    }

    /// Bytes of data in an image's layers.
    pub fn size_of(&self, image: &ImageRecord) -> u64 {
        let unique: BTreeSet<&Digest> = image.layers.iter().collect();
        let sizes = unique
            .into_iter()
            .filter_map(|layer| Some(self.layers.get(layer)?.size));
        sizes.fold(0, u64::saturating_add)
    }

    /// Layers that an image has.
    pub fn used_layers(&self) -> BTreeSet<Digest> {
        let layers = self.images.values().flat_map(|image| &image.layers);
        layers.cloned().collect()
    }

    /// Manifests and configurations that an image has.
    pub fn used_blobs(&self) -> BTreeSet<Digest> {
        let blobs = self
            .images
            .iter()
            .flat_map(|(id, image)| [id, &image.manifest.digest]);
        blobs.cloned().collect()
    }

    /// Takes away what `targets` mean, and images that no name is left of. Without `force` an id
    /// with several names, and an image that `in_use` says is used, are refused.
    pub fn remove(
        &mut self,
        targets: &[Target],
        force: bool,
        in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<Vec<Removed>, ImageError> {
        let mut removed = Vec::new();
        for target in targets {
            let id = target.image();
            // An earlier target may have taken it along.
            if !self.images.contains_key(id) {
                continue;
            }
            match target {
                Target::Name(name, _) => self.untag(name, &mut removed),
                Target::ByDigest(name, _) => self.forget_digest(id, name, &mut removed),
                Target::Id(_) => {
                    let names: Vec<String> =
                        self.names_of(id).map(|(name, _)| name.to_owned()).collect();
                    if names.len() > 1 && !force {
                        return Err(ImageError::SeveralNames {
                            id: id.short().to_owned(),
                            names: names.iter().map(|name| familiar(name)).collect(),
                        });
                    }
                    for name in &names {
                        self.untag(name, &mut removed);
                    }
                    let digests = self.images.get(id).map(|image| image.digests.clone());
                    for name in digests.iter().flatten() {
                        self.forget_digest(id, name, &mut removed);
                    }
                }
            }
            let digests = self.images.get(id).map_or(0, |image| image.digests.len());
            if digests == 0 && self.names_of(id).next().is_none() {
                if in_use(id) && !force {
                    return Err(ImageError::InUse(id.short().to_owned()));
                }
                self.images.remove(id);
                removed.push(Removed::Deleted(id.to_string()));
            }
        }
        Ok(removed)
    }

    /// Takes a tag away; with the last tag of a repository, its digests go too.
    fn untag(&mut self, name: &str, removed: &mut Vec<Removed>) {
        let Some(record) = self.names.remove(name) else {
            return;
        };
        removed.push(Removed::Untagged(familiar(name)));
        let repository = repository(name);
        let id = record.image;
        if self
            .names_of(&id)
            .any(|(other, _)| self::repository(other) == repository)
        {
            return;
        }
        let digests = self.images.get(&id).map(|image| image.digests.clone());
        for digest in digests.iter().flatten() {
            if self::repository(digest) == repository {
                self.forget_digest(&id, digest, removed);
            }
        }
    }

    fn forget_digest(&mut self, id: &Digest, name: &str, removed: &mut Vec<Removed>) {
        if let Some(image) = self.images.get_mut(id)
            && image.digests.remove(name)
        {
            removed.push(Removed::Untagged(familiar(name)));
        }
    }

    /// Drops what points nowhere; an honest document has none of it.
    pub fn drop_dangling(&mut self) {
        self.names
            .retain(|_, record| self.images.contains_key(&record.image));
    }
}

/// Whether the text may be the start of an id: lower-case hexadecimal digits, perhaps behind
/// `sha256:`.
fn is_start_of_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (1..=64).contains(&hex.len()) && hex.bytes().all(is_hex)
}

/// The same registry as the other side of the machine's network calls it: what is pulled from
/// `localhost` is stored under the gateway, and a name that was given here may say either.
fn other_side(text: &str) -> Option<String> {
    let reference = Reference::parse(text).ok()?;
    let host = reference.host();
    if !reference.has_explicit_host() {
        return None;
    }
    let host = if host.is_loopback() {
        translate_host(host, DEFAULT_GATEWAY)
    } else if host.name() == DEFAULT_GATEWAY {
        Host::parse("localhost").ok()?.with_port(host.port())
    } else {
        return None;
    };
    let digest = reference.digest().cloned();
    let other = Reference::from_parts(host, reference.repository(), reference.tag(), digest);
    Some(other.ok()?.to_string())
}

/// Host and repository of a canonical reference.
pub fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

/// A canonical reference as users write it.
pub fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}
