//! What the store knows: one document, replaced as a whole, so that every change is either there or
//! not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vdkr_core::{
    candidates::RegistryPrefix,
    channel::message::Removed,
    digest::Digest,
    loopback::DEFAULT_GATEWAY,
    manifest::Descriptor,
    reference::Reference,
    stored::{Meant, NotMeant, Shelf, find_stored, find_to_run},
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
        self.find_by(text, |shelf| find_stored(text, registry, None, shelf))
    }

    /// As [`State::find`], where a registry of the host may be called by either of its names.
    pub fn find_either(
        &self,
        text: &str,
        registry: Option<&RegistryPrefix>,
    ) -> Result<Target, ImageError> {
        let gateway = Some(DEFAULT_GATEWAY);
        self.find_by(text, |shelf| find_stored(text, registry, gateway, shelf))
    }

    /// Finds what a user means who wants it to be run, and pulled when it is not there.
    pub fn find_to_run(
        &self,
        text: &str,
        registry: Option<&RegistryPrefix>,
        gateway: Option<&str>,
    ) -> Result<Target, ImageError> {
        self.find_by(text, |shelf| find_to_run(text, registry, gateway, shelf))
    }

    fn find_by(
        &self,
        text: &str,
        find: impl for<'a> FnOnce(&Shelf<'a>) -> Result<Meant<'a>, NotMeant>,
    ) -> Result<Target, ImageError> {
        let mut shelf = Shelf::default();
        for (name, record) in &self.names {
            shelf.names.push((name, record.image.as_str()));
            if record.digest.is_none() {
                shelf.given.push(name);
            }
        }
        for (id, image) in &self.images {
            shelf.ids.push(id.as_str());
            for name in &image.digests {
                shelf.names.push((name, id.as_str()));
            }
        }
        let nothing = || ImageError::NoImage(text.to_owned());
        let meant = find(&shelf).map_err(|error| match error {
            NotMeant::Name(source) => ImageError::Name {
                name: text.to_owned(),
                source,
            },
            NotMeant::Nothing => nothing(),
            NotMeant::Several(matches) => ImageError::Ambiguous {
                name: text.to_owned(),
                matches,
            },
        })?;
        let id = Digest::parse(meant.id()).map_err(|_| nothing())?;
        Ok(match meant {
            Meant::Name { name, .. } if self.names.contains_key(name) => {
                Target::Name(name.to_owned(), id)
            }
            Meant::Name { name, .. } => Target::ByDigest(name.to_owned(), id),
            Meant::Id(_) => Target::Id(id),
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
    /// with several names, and an image that `in_use` says is used, are refused; with it such an
    /// image stays without a name, for its container to start again.
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
            let before = removed.len();
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
                if in_use(id) {
                    if force && removed.len() > before {
                        continue;
                    }
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
