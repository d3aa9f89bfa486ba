//! `inspect`: descriptions of images, in the form of `docker image inspect`.

use serde_json::{Map, Value, json};
use vdkr_core::{
    channel::message::Reply,
    digest::Digest,
    manifest::{ContainerConfig, ImageConfig},
};

use crate::store::{
    ImageError, Store,
    state::{ImageRecord, familiar},
};

/// Describes images by name or id: all of them, or an error.
pub fn inspect(store: &Store, names: &[String]) -> Result<Reply, ImageError> {
    let documents = names
        .iter()
        .map(|name| {
            let (id, image, tags, size) = store.view(|state| {
                let id = state.find_either(name, None)?.image().clone();
                let image = state.images[&id].clone();
                let tags: Vec<String> = state
                    .names_of(&id)
                    .map(|(name, _)| familiar(name))
                    .collect();
                let size = state.size_of(&image);
                Ok::<_, ImageError>((id, image, tags, size))
            })?;
            let config = store.config(&id)?;
            Ok(document(&id, &image, &config, &tags, size))
        })
        .collect::<Result<_, ImageError>>()?;
    Ok(Reply::Inspected { documents })
}

fn document(
    id: &Digest,
    image: &ImageRecord,
    config: &ImageConfig,
    tags: &[String],
    size: u64,
) -> Value {
    let digests: Vec<String> = image.digests.iter().map(|name| familiar(name)).collect();
    let mut document = json!({
        "Id": id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config.created.as_deref().unwrap_or_default(),
        "Author": config.author.as_deref().unwrap_or_default(),
        "Config": container(&config.config),
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": size,
        "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
        "Descriptor": image.manifest,
    });
    if let (Some(variant), Value::Object(fields)) = (&config.variant, &mut document) {
        fields.insert("Variant".to_owned(), json!(variant));
    }
    document
}

fn container(config: &ContainerConfig) -> Value {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("User", json!(config.user));
    set("Env", json!(config.env));
    set("Entrypoint", list(&config.entrypoint));
    set("Cmd", list(&config.cmd));
    set("WorkingDir", json!(config.working_dir));
    set("Labels", json!(config.labels));
    let go_set = |names: &std::collections::BTreeSet<String>| {
        let entries = names.iter().map(|name| (name.clone(), json!({})));
        Value::Object(entries.collect())
    };
    if !config.exposed_ports.is_empty() {
        set("ExposedPorts", go_set(&config.exposed_ports));
    }
    if !config.volumes.is_empty() {
        set("Volumes", go_set(&config.volumes));
    }
    if let Some(signal) = &config.stop_signal {
        set("StopSignal", json!(signal));
    }
    Value::Object(fields)
}

/// Docker writes a list that is not set as `null`.
fn list(words: &[String]) -> Value {
    match words {
        [] => Value::Null,
        words => json!(words),
    }
}
