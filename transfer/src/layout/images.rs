//! All images of a layout, however its indexes nest.

use std::collections::{HashMap, HashSet};

use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{DOCKER_CONFIG, OCI_CONFIG, is_image, is_index};
use vdkr_core::manifest::{Descriptor, ParsedManifest};
use vdkr_core::platform::Platform;

use super::pick::names_of;
use super::{LayoutImage, OciLayout};
use crate::error::TransferError;

/// How deep an index may nest. Real ones nest once.
const MAX_DEPTH: usize = 8;
/// How many manifests a layout may list altogether.
const MAX_IMAGES: usize = 16 * 1024;

/// What says whether a document was read already: nothing is read for every entry that names it, as a few
/// small indexes can name the same one millions of times.
type Known = (String, Digest, u64);

fn known(entry: &Descriptor) -> Known {
    (entry.media_type.clone(), entry.digest.clone(), entry.size)
}

/// A walk through the indexes of a layout.
pub(super) struct Walk<'a> {
    layout: &'a OciLayout,
    images: Vec<LayoutImage>,
    /// Digests of `images`.
    listed: HashSet<Digest>,
    /// Indexes that were gone through, and how deep: all their images are in `images`. Deeper, one may
    /// nest too deep.
    indexes: HashMap<Known, usize>,
    /// What `index.json` lists and only refers to an image.
    referring: HashSet<Known>,
    /// What configurations say.
    platforms: HashMap<Known, Option<Platform>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(layout: &'a OciLayout) -> Self {
        Self {
            layout,
            images: Vec::new(),
            listed: HashSet::new(),
            indexes: HashMap::new(),
            referring: HashSet::new(),
            platforms: HashMap::new(),
        }
    }

    /// The images of the whole layout.
    pub(super) fn all(mut self) -> Result<Vec<LayoutImage>, TransferError> {
        for entry in &self.layout.index().manifests {
            let name = names_of(entry).next();
            self.entry(entry, name, &mut Vec::new())?;
        }
        Ok(self.images)
    }

    fn entry(
        &mut self,
        entry: &Descriptor,
        name: Option<&str>,
        path: &mut Vec<Digest>,
    ) -> Result<(), TransferError> {
        if is_index(&entry.media_type) {
            return self.index(entry, name, path);
        }
        // Anything else is content that is no image; it goes with the index it stands in.
        if !is_image(&entry.media_type) || self.listed.contains(&entry.digest) {
            return Ok(());
        }
        if self.images.len() == MAX_IMAGES {
            return self.refuse(format!("it lists more than {MAX_IMAGES} images"));
        }
        let mut descriptor = entry.clone();
        if descriptor.platform.is_none() {
            let known = known(entry);
            if path.is_empty() && self.referring.contains(&known) {
                return Ok(());
            }
            let parsed = self.layout.manifest(entry)?.parse()?;
            if path.is_empty() && parsed.subject().is_some() {
                self.referring.insert(known);
                return Ok(());
            }
            descriptor.platform = self.platform(&parsed)?;
        }
        self.listed.insert(descriptor.digest.clone());
        self.images.push(LayoutImage {
            descriptor,
            name: name.map(str::to_owned),
            path: path.clone(),
        });
        Ok(())
    }

    fn index(
        &mut self,
        entry: &Descriptor,
        name: Option<&str>,
        path: &mut Vec<Digest>,
    ) -> Result<(), TransferError> {
        let known = known(entry);
        if self
            .indexes
            .get(&known)
            .is_some_and(|&depth| depth >= path.len())
        {
            return Ok(());
        }
        self.indexes.insert(known, path.len());
        if path.len() == MAX_DEPTH {
            return self.refuse(format!("its indexes nest more than {MAX_DEPTH} deep"));
        }
        let index = self.layout.manifest(entry)?.parse()?;
        path.push(entry.digest.clone());
        for child in index.manifests() {
            self.entry(child, name.or(names_of(child).next()), path)?;
        }
        path.pop();
        Ok(())
    }

    fn refuse(&self, reason: String) -> Result<(), TransferError> {
        Err(TransferError::layout(self.layout.path(), reason))
    }

    /// The platform in an image's configuration; `None` for artifacts.
    fn platform(&mut self, parsed: &ParsedManifest) -> Result<Option<Platform>, TransferError> {
        let Some(image) = parsed.as_image() else {
            return Ok(None);
        };
        let config = &image.config;
        if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Ok(None);
        }
        let known = known(config);
        if let Some(platform) = self.platforms.get(&known) {
            return Ok(platform.clone());
        }
        let platform = self.layout.config(config)?.platform();
        let platform = (!platform.architecture.is_empty()).then_some(platform);
        self.platforms.insert(known, platform.clone());
        Ok(platform)
    }
}
