//! Images for tests: real archives, made up on the spot.

use std::collections::BTreeSet;

use serde_json::json;
use vdkr_core::{
    channel::message::RegistrySettings,
    digest::Digest,
    manifest::{Descriptor, media_type::OCI_MANIFEST},
    reference::Reference,
};

use super::{
    NewImage, Store,
    state::{ImageRecord, NameRecord},
};
use crate::unpack::fixture::{Entry, archive};

/// A layer with one file.
pub(crate) fn layer(file: &str, content: &str) -> Vec<u8> {
    archive(&[Entry::directory("."), Entry::file(file, content)])
}

/// A configuration for layers.
pub(crate) fn config(layers: &[Vec<u8>], created: &str) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let config = json!({
        "created": created,
        "architecture": crate::machine::architecture(),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

/// Adds an image by a name with a tag, as a pull would; its id.
pub(crate) fn add(store: &Store, name: &str, layers: &[Vec<u8>]) -> Digest {
    let config = config(layers, "2026-01-12T14:30:22Z");
    let id = Digest::sha256(&config);
    let manifest = format!("the manifest of {id}").into_bytes();
    let digest = Digest::sha256(&manifest);
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let lease = store.keep(diff_ids.clone());
    for (layer, diff_id) in layers.iter().zip(&diff_ids) {
        if !store.has_layer(diff_id) {
            let unpacked = store.unpack_layer(layer.as_slice(), diff_id, &|| false);
            unpacked.unwrap().unwrap();
        }
    }
    let reference = Reference::parse(name).unwrap().or_latest();
    let by_digest = reference.without_tag().with_digest(digest.clone());
    let record = ImageRecord {
        manifest: Descriptor::new(OCI_MANIFEST, digest.clone(), manifest.len() as u64),
        layers: diff_ids,
        compressed: 100,
        digests: BTreeSet::from([by_digest.to_string()]),
        created: Some("2026-01-12T14:30:22Z".into()),
        source: reference.to_string(),
        pulled_at: 1,
    };
    let name_record = NameRecord {
        image: id.clone(),
        digest: Some(digest),
    };
    let image = NewImage {
        config: &config,
        id: &id,
        manifest: &manifest,
        record,
        name: Some((reference.to_string(), name_record)),
    };
    store.add(image).unwrap();
    drop(lease);
    id
}

/// Settings with this registry.
pub(crate) fn registry(registry: &str) -> RegistrySettings {
    RegistrySettings {
        registry: Some(registry.into()),
        ..RegistrySettings::default()
    }
}
