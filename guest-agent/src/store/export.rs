//! The parts of images, as they came.

use std::{
    fs,
    path::{Path, PathBuf},
};

use vdkr_core::{
    channel::message::{ExportedImage, ExportedLayer},
    digest::Digest,
    manifest::{MAX_CONFIG, MAX_MANIFEST},
};

use super::{
    ImageError, Lease, Store, disk,
    state::{LayerRecord, Target},
};
use crate::unpack::{
    recipe::{self, RestoreError},
    root::Root,
};

/// A part of an image that can be read.
#[derive(Debug)]
pub enum Part {
    /// A manifest or configuration.
    Document(Vec<u8>),
    /// A layer, to be made into its archive again.
    Layer(LayerArchive),
}

/// A layer that stays while this lives.
#[derive(Debug)]
pub struct LayerArchive {
    diff_id: Digest,
    directory: PathBuf,
    recipe: PathBuf,
    _lease: Lease,
}

impl LayerArchive {
    /// Gives the pieces of the archive to `sink` until that says `false`. Blocks.
    pub fn restore(&self, sink: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), ImageError> {
        let root = Root::open(&self.directory);
        let root = root.map_err(ImageError::io("open", &self.directory))?;
        recipe::restore(&self.recipe, &root, &self.diff_id, sink).map_err(|error| match error {
            RestoreError::Cancelled => ImageError::Cancelled,
            error => ImageError::NoArchive {
                layer: self.diff_id.clone(),
                reason: error.to_string(),
            },
        })
    }
}

impl Store {
    /// The parts of the image that a name or id means. Reads the recipes of its layers; may block.
    pub fn export(&self, name: &str) -> Result<ExportedImage, ImageError> {
        let (target, record, names, layers) = self.view(|state| {
            let target = state.find_either(name, None)?;
            let record = state.images[target.image()].clone();
            let names: Vec<String> = state
                .names_of(target.image())
                .map(|(name, _)| name.to_owned())
                .collect();
            let layers: Vec<(Digest, Option<LayerRecord>)> = record
                .layers
                .iter()
                .map(|layer| (layer.clone(), state.layers.get(layer).cloned()))
                .collect();
            Ok::<_, ImageError>((target, record, names, layers))
        })?;
        let id = target.image().clone();
        let config = self.inner.blob_path(&id);
        let config = fs::metadata(&config).map_err(ImageError::io("read", config))?;
        let layers = layers.into_iter().map(|(diff_id, layer)| {
            let recipe = layer.as_ref().map(|layer| self.recipe(&layer.name));
            ExportedLayer {
                size: layer.map_or(0, |layer| layer.size),
                plain: recipe.and_then(|recipe| recipe::plain_length(&recipe).ok()),
                diff_id,
            }
        });
        Ok(ExportedImage {
            config_size: config.len(),
            manifest: record.manifest,
            name: match target {
                Target::Name(name, _) => Some(name),
                Target::ByDigest(..) | Target::Id(_) => None,
            },
            names,
            digests: record.digests.into_iter().collect(),
            layers: layers.collect(),
            id,
        })
    }

    /// A part of an image of the store, by its digest or diff_id.
    pub fn part(&self, digest: &Digest) -> Result<Part, ImageError> {
        let (is_document, layer) = self.view(|state| {
            let layer = state.layers.get(digest).map(|layer| layer.name.clone());
            (state.used_blobs().contains(digest), layer)
        });
        if is_document {
            let path = self.inner.blob_path(digest);
            let raw = disk::read_bounded(&path, MAX_CONFIG.max(MAX_MANIFEST) as u64)?;
            return Ok(Part::Document(raw));
        }
        let Some(name) = layer else {
            return Err(ImageError::NoLayer(digest.clone()));
        };
        let recipe = self.recipe(&name);
        if !recipe.exists() {
            return Err(ImageError::NoArchive {
                layer: digest.clone(),
                reason: "how it was archived was not kept".to_owned(),
            });
        }
        Ok(Part::Layer(LayerArchive {
            diff_id: digest.clone(),
            directory: self.layers_dir().join(name),
            recipe,
            _lease: self.keep([digest.clone()]),
        }))
    }

    fn recipe(&self, layer: &str) -> PathBuf {
        self.inner.recipes_dir.join(Path::new(layer))
    }
}
