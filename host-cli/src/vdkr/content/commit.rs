//! An image of a container: that of its image, and its changes as one more layer.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vdkr_core::{
    digest::Digest,
    manifest::{
        ContainerConfig, Descriptor, ImageManifest,
        media_type::{DOCKER_LAYER_GZIP, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP},
    },
};

/// What a new image is made of.
#[derive(Debug)]
pub struct Basis<'a> {
    /// Configuration of the container's image.
    pub config: &'a [u8],
    /// Its manifest.
    pub manifest: &'a ImageManifest,
    /// The container as `inspect` shows it.
    pub container: &'a Value,
    /// The container's changes.
    pub layer: Descriptor,
    /// Time of the making, RFC 3339.
    pub created: String,
    /// Who made it.
    pub author: Option<&'a str>,
    /// What its history says.
    pub comment: Option<&'a str>,
}

/// Configuration and manifest of the new image; what is unknown of the old one stays.
pub fn committed(
    basis: Basis<'_>,
    change: impl FnOnce(&mut ContainerConfig) -> Result<(), String>,
) -> Result<(Vec<u8>, ImageManifest), String> {
    let failed = |error: serde_json::Error| format!("the image's configuration: {error}");
    let mut whole: Map<String, Value> = serde_json::from_slice(basis.config).map_err(failed)?;
    let old = whole.remove("config").unwrap_or_default();
    let mut config: ContainerConfig = match &old {
        Value::Null => ContainerConfig::default(),
        old => serde_json::from_value(old.clone()).map_err(failed)?,
    };
    take_over(&mut config, &basis.container["Config"]).map_err(failed)?;
    change(&mut config)?;
    whole.insert("config".to_owned(), merged(old, &config).map_err(failed)?);
    whole.insert("created".to_owned(), json!(basis.created));
    if let Some(author) = basis.author {
        whole.insert("author".to_owned(), json!(author));
    }
    // What docker says about the container that an image was made of, or an image before layers.
    for key in [
        "container",
        "container_config",
        "docker_version",
        "id",
        "parent",
    ] {
        whole.remove(key);
    }
    let diff_id = &basis.layer.digest;
    list(&mut whole, &["rootfs", "diff_ids"])?.push(json!(diff_id));
    let mut step = json!({
        "created": basis.created,
        "created_by": words(&basis.container["Path"], &basis.container["Args"]),
    });
    for (key, text) in [("author", basis.author), ("comment", basis.comment)] {
        if let Some(text) = text {
            step[key] = json!(text);
        }
    }
    list(&mut whole, &["history"])?.push(step);
    let config = serde_json::to_vec(&whole).map_err(failed)?;
    let id = Digest::sha256(&config);
    let mut layers = basis.manifest.layers.clone();
    for layer in &mut layers {
        if layer.media_type == DOCKER_LAYER_GZIP {
            OCI_LAYER_GZIP.clone_into(&mut layer.media_type);
        }
    }
    layers.push(basis.layer);
    let manifest = ImageManifest {
        config: Descriptor::new(OCI_CONFIG, id, config.len() as u64),
        layers,
        artifact_type: None,
        subject: None,
        annotations: BTreeMap::new(),
    };
    Ok((config, manifest))
}

/// A layer that is stored as it is.
pub fn layer(diff_id: Digest, size: u64) -> Descriptor {
    Descriptor::new(OCI_LAYER, diff_id, size)
}

/// What the container was run with becomes what the image is run with.
fn take_over(config: &mut ContainerConfig, container: &Value) -> serde_json::Result<()> {
    let mut run: ContainerConfig = serde_json::from_value(container.clone())?;
    // What every container is given anew.
    let given = format!(
        "HOSTNAME={}",
        container["Hostname"].as_str().unwrap_or_default()
    );
    let own = |entry: &String| *entry == given || *entry == "TERM=xterm";
    run.env
        .retain(|entry| !own(entry) || config.env.contains(entry));
    let signal = run.stop_signal.filter(|signal| signal != "SIGTERM");
    *config = ContainerConfig {
        user: run.user,
        env: run.env,
        entrypoint: run.entrypoint,
        cmd: run.cmd,
        working_dir: run.working_dir,
        labels: run.labels,
        stop_signal: signal.or_else(|| config.stop_signal.take()),
        ..std::mem::take(config)
    };
    Ok(())
}

/// The old fields, with those that are known as they are now.
fn merged(old: Value, config: &ContainerConfig) -> serde_json::Result<Value> {
    const KNOWN: [&str; 9] = [
        "User",
        "ExposedPorts",
        "Env",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Labels",
        "StopSignal",
    ];
    let mut fields = match old {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.retain(|key, _| !KNOWN.contains(&key.as_str()));
    if let Value::Object(known) = serde_json::to_value(config)? {
        fields.extend(known);
    }
    Ok(Value::Object(fields))
}

/// The list at a path, made when it is missing.
fn list<'a>(
    whole: &'a mut Map<String, Value>,
    path: &[&str],
) -> Result<&'a mut Vec<Value>, String> {
    let wrong = || {
        format!(
            "the image's configuration has no list at {}",
            path.join(".")
        )
    };
    let (last, above) = path.split_last().ok_or_else(wrong)?;
    let mut place = whole;
    for key in above {
        let next = place.entry(*key).or_insert_with(|| json!({}));
        place = next.as_object_mut().ok_or_else(wrong)?;
    }
    let list = place.entry(*last).or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().ok_or_else(wrong)
}

fn words(path: &Value, args: &Value) -> String {
    let args = args.as_array().into_iter().flatten();
    let words: Vec<&str> = std::iter::once(path)
        .chain(args)
        .filter_map(Value::as_str)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(layers: Vec<Descriptor>) -> ImageManifest {
        ImageManifest {
            artifact_type: None,
            config: Descriptor::new(OCI_CONFIG, Digest::sha256(b"{}"), 2),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn an_image_takes_over_what_its_container_was_run_with() {
        let base = json!({
            "architecture": "arm64", "os": "linux", "container_config": {"Cmd": ["x"]},
            "config": {
                "Env": ["PATH=/bin", "TERM=xterm"], "Cmd": ["old"], "User": "app",
                "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]},
                "StopSignal": "SIGINT",
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"1")]},
            "history": [{"created_by": "base"}],
        });
        let base = serde_json::to_vec(&base).unwrap();
        let gzip = Descriptor::new(DOCKER_LAYER_GZIP, Digest::sha256(b"z"), 9);
        let manifest = manifest(vec![gzip]);
        let container = json!({
            "Path": "sh", "Args": ["-c", "date > /now"],
            "Config": {
                "Hostname": "abc", "User": "root", "Cmd": ["sh", "-c", "date > /now"],
                "Env": ["PATH=/bin", "HOSTNAME=abc", "TERM=xterm", "A=b"], "Entrypoint": null,
                "Labels": {"l": "1"}, "StopSignal": "SIGTERM", "WorkingDir": "/w",
            },
        });
        let new = Digest::sha256(b"new");
        let basis = Basis {
            config: &base,
            manifest: &manifest,
            container: &container,
            layer: layer(new.clone(), 1024),
            created: "2026-01-01T00:00:00Z".into(),
            author: Some("me"),
            comment: None,
        };
        let (config, made) = committed(basis, |config| {
            config.cmd = vec!["run".into()];
            Ok(())
        })
        .unwrap();
        let read: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(
            read["config"],
            json!({
                "User": "root", "Env": ["PATH=/bin", "TERM=xterm", "A=b"], "Cmd": ["run"],
                "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]},
                "StopSignal": "SIGINT", "Labels": {"l": "1"}, "WorkingDir": "/w",
            })
        );
        assert_eq!(read["rootfs"]["diff_ids"][1], json!(new));
        assert_eq!(read["history"][1]["created_by"], "sh -c date > /now");
        assert_eq!(
            (&read["author"], &read["container_config"]),
            (&json!("me"), &Value::Null)
        );
        assert_eq!(made.config.digest, Digest::sha256(&config));
        assert_eq!(made.layers[0].media_type, OCI_LAYER_GZIP);
        assert_eq!(made.layers[1].digest, new);
    }

    #[test]
    fn a_configuration_without_lists_gets_them() {
        let container = json!({"Config": {}});
        let make = |config: &[u8]| {
            let manifest = manifest(Vec::new());
            let basis = Basis {
                config,
                manifest: &manifest,
                container: &container,
                layer: layer(Digest::sha256(b""), 1024),
                created: String::new(),
                author: None,
                comment: None,
            };
            committed(basis, |_| Ok(()))
        };
        assert!(make(b"{}").is_ok());
        for bad in [
            &b"[]"[..],
            b"{\"rootfs\": 1}",
            b"{\"history\": 1}",
            b"{\"config\": 1}",
        ] {
            assert!(make(bad).is_err());
        }
    }
}
