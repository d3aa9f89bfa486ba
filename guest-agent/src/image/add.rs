//! `add-image` and `add-layer`: images that the host brings itself.

use std::{
    collections::BTreeSet,
    io::Read,
    time::{SystemTime, UNIX_EPOCH},
};

use vdkr_core::{
    channel::message::{KeptLayer, Reply},
    digest::Digest,
    manifest::{self, Descriptor, ImageConfig, ManifestError},
    reference::Reference,
};

use crate::store::{
    ImageError, NewImage, Store,
    state::{ImageRecord, NameRecord},
};

/// Unpacks a layer from `source` unless the store has it.
pub fn add_layer(
    store: &Store,
    source: impl Read + Send,
    diff_id: &Digest,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Reply, ImageError> {
    let unpacked = store.unpack_layer(source, diff_id, cancelled)?;
    unpacked.map_err(|source| ImageError::Layer {
        layer: diff_id.clone(),
        source: Box::new(source),
    })?;
    Ok(Reply::LayerAdded { present: false })
}

/// Puts an image into the store, all of whose layers are there or among those that the host keeps.
pub fn add_image(
    store: &Store,
    name: Option<&str>,
    media_type: &str,
    config_raw: &[u8],
    manifest_raw: &[u8],
    kept: &[KeptLayer],
) -> Result<Reply, ImageError> {
    let unusable = |what: &str| {
        let what = format!("the {what} of the image");
        move |source: ManifestError| ImageError::Manifest { what, source }
    };
    let name = name.map(reference).transpose()?;
    let config = ImageConfig::parse(config_raw).map_err(unusable("configuration"))?;
    let parsed = manifest::parse(manifest_raw, Some(media_type)).map_err(unusable("manifest"))?;
    let not_an_image = |reason: &str| ImageError::NotAnImage {
        reference: name
            .as_ref()
            .map_or_else(|| "this".to_owned(), ToString::to_string),
        reason: reason.to_owned(),
    };
    let Some(image) = parsed.as_image() else {
        return Err(not_an_image("its manifest is an index"));
    };
    let id = image.config.digest.clone();
    if Digest::of(id.algorithm(), config_raw) != id {
        return Err(not_an_image("its manifest names another configuration"));
    }
    if image.layers.len() != config.rootfs.diff_ids.len() {
        return Err(not_an_image(
            "manifest and configuration disagree about its layers",
        ));
    }
    let digest = Digest::of(id.algorithm(), manifest_raw);
    let compressed = image.layers.iter().map(|layer| layer.size);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let record = ImageRecord {
        manifest: Descriptor::new(media_type, digest, manifest_raw.len() as u64),
        layers: config.rootfs.diff_ids,
        compressed: compressed.fold(0, u64::saturating_add),
        digests: BTreeSet::new(),
        created: config.created,
        // A registry may have something else by its name.
        source: String::new(),
        pulled_at: now.map_or(0, |since| since.as_secs()),
    };
    // Until the image has them, nothing else does.
    let _lease = store.keep(record.layers.iter().cloned());
    for layer in &record.layers {
        if let Some(kept) = kept.iter().find(|kept| kept.diff_id == layer.as_str()) {
            store.expect_layer(layer, kept)?;
        }
    }
    let image = id.clone();
    let replaced = store.add(NewImage {
        config: config_raw,
        id: &id,
        manifest: manifest_raw,
        record,
        name: name.map(|name| {
            let digest = None;
            (name.to_string(), NameRecord { image, digest })
        }),
    })?;
    Ok(Reply::Added { id, replaced })
}

fn reference(name: &str) -> Result<Reference, ImageError> {
    let reference = Reference::parse(name).map_err(|source| ImageError::Name {
        name: name.to_owned(),
        source,
    })?;
    if reference.digest().is_some() {
        return Err(ImageError::Unfit {
            name: name.to_owned(),
            reason: "a name with a digest can only come from a registry",
        });
    }
    Ok(reference.or_latest())
}
