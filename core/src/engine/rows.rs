//! What an engine says about images and containers, in the agent's own words.

use alloc::{
    borrow::ToOwned as _,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};

use serde_json::Value;

use crate::{
    channel::message::{ContainerRow, ContainerState, ImageRow, RowMount, Sample, VolumeRow},
    digest::Digest,
    reference::Reference,
    time::{parse_rfc3339_ms, rfc3339_seconds},
};

/// A text, empty when it is not there.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A number, 0 when it is not there or below it.
pub fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// A list of texts; what is no text is left out.
pub fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let labels = value.as_object().into_iter().flatten();
    labels
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// An image of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineImage {
    /// `sha256:` and 64 hex digits.
    pub id: String,
    /// Names with a tag, in full.
    pub tags: Vec<String>,
    /// Names with a digest, in full.
    pub digests: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Bytes of its files.
    pub size: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl EngineImage {
    /// Reads an element of `GET /images/json`.
    pub fn read(value: &Value) -> Self {
        let full = |name: &str| {
            let names = value.get(name).map(texts).unwrap_or_default();
            let names = names.iter().filter_map(|name| Reference::parse(name).ok());
            names.map(|name| name.to_string()).collect()
        };
        Self {
            id: full_id(text(value, "Id")),
            tags: full("RepoTags"),
            digests: full("RepoDigests"),
            created: number(value, "Created"),
            size: number(value, "Size"),
            labels: value.get("Labels").map(labels).unwrap_or_default(),
        }
    }

    /// A line for each of its names.
    pub fn rows(&self) -> Vec<ImageRow> {
        let row = ImageRow {
            id: self.id.clone(),
            created: Some(rfc3339_seconds(self.created)),
            size: self.size,
            labels: self.labels.clone(),
            ..ImageRow::default()
        };
        let split = |name: &str| {
            let name = Reference::parse(name).ok()?;
            let repository = format!("{}/{}", name.host(), name.repository());
            Some((repository, name))
        };
        let digests: Vec<_> = self.digests.iter().filter_map(|name| split(name)).collect();
        let digest_of = |repository: &str| {
            let mut same = digests.iter().filter(|(known, _)| known == repository);
            same.next()
                .and_then(|(_, name)| Some(name.digest()?.to_string()))
        };
        let mut rows: Vec<_> = self
            .tags
            .iter()
            .filter_map(|name| split(name))
            .map(|(repository, name)| ImageRow {
                digest: digest_of(&repository),
                tag: name.tag().map(str::to_owned),
                name: repository,
                ..row.clone()
            })
            .collect();
        if rows.is_empty() {
            let of_digests = digests.iter().map(|(repository, name)| ImageRow {
                name: repository.clone(),
                digest: name.digest().map(ToString::to_string),
                ..row.clone()
            });
            rows.extend(of_digests);
        }
        if rows.is_empty() {
            rows.push(row);
        }
        rows
    }
}

/// An id as it is written here: engines leave the algorithm out at times.
pub fn full_id(id: &str) -> String {
    match id.contains(':') || id.is_empty() {
        true => id.to_owned(),
        false => format!("sha256:{id}"),
    }
}

/// Whether docker's engine keeps its images in containerd's store, where an id is a manifest's digest;
/// from what `GET /info` says.
pub fn keeps_manifests(info: &Value) -> bool {
    let words = info.get("DriverStatus").and_then(Value::as_array);
    words
        .into_iter()
        .flatten()
        .any(|pair| texts(pair) == ["driver-type", "io.containerd.snapshotter.v1"])
}

/// Whether what an engine says of an image is said of one with these layers.
pub fn has_layers<'a>(said: &Value, diff_ids: impl Iterator<Item = &'a Digest>) -> bool {
    let layers = said.pointer("/RootFS/Layers").map(texts);
    let wanted: Vec<_> = diff_ids.map(ToString::to_string).collect();
    layers.is_some_and(|layers| layers == wanted)
}

/// Whether what an engine says of an image agrees with a configuration, as far as it says what stands
/// there. For engines that do not tell the configuration's digest.
pub fn has_config(said: &Value, config: &Value) -> bool {
    const FIELDS: [&str; 9] = [
        "User",
        "Env",
        "Entrypoint",
        "Cmd",
        "WorkingDir",
        "Labels",
        "StopSignal",
        "ExposedPorts",
        "Volumes",
    ];
    let nothing = Value::Null;
    let own = said.get("Config").unwrap_or(&nothing);
    let wanted = config.get("config").unwrap_or(&nothing);
    // An empty field and none are the same.
    let given = |value: &Value, name: &str| {
        let field = value.get(name)?.clone();
        let is_empty = match &field {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        (!is_empty).then_some(field)
    };
    let time = |text: &str| parse_rfc3339_ms(text).unwrap_or(0);
    time(text(said, "Created")) == time(text(config, "created"))
        && FIELDS
            .iter()
            .all(|name| given(own, name) == given(wanted, name))
}

/// What `GET /containers/{id}/json` says of a container, in short.
pub fn container(value: &Value) -> ContainerRow {
    let nothing = Value::Null;
    let part = |name: &str| value.get(name).unwrap_or(&nothing);
    let (state, config, host) = (part("State"), part("Config"), part("HostConfig"));
    let flag = |value: &Value, name: &str| value.get(name).and_then(Value::as_bool) == Some(true);
    let policy = host.get("RestartPolicy").unwrap_or(&nothing);
    let mut command = Vec::from([text(value, "Path").to_owned()]);
    command.extend(texts(part("Args")));
    let exit_code = state.get("ExitCode").and_then(Value::as_i64).unwrap_or(0);
    ContainerRow {
        id: text(value, "Id").to_owned(),
        name: text(value, "Name").trim_start_matches('/').to_owned(),
        image: text(config, "Image").to_owned(),
        image_id: full_id(text(value, "Image")),
        command,
        created_ms: parse_rfc3339_ms(text(value, "Created")).unwrap_or(0),
        state: state_of(text(state, "Status")),
        started_ms: time(text(state, "StartedAt")),
        finished_ms: time(text(state, "FinishedAt")),
        exit_code: i32::try_from(exit_code).unwrap_or(-1),
        labels: config.get("Labels").map(labels).unwrap_or_default(),
        tty: flag(config, "Tty"),
        stdin: flag(config, "OpenStdin"),
        resumes: matches!(text(policy, "Name"), "always" | "unless-stopped"),
        mounts: part("Mounts")
            .as_array()
            .into_iter()
            .flatten()
            .map(mount)
            .collect(),
        network: network(text(host, "NetworkMode")).to_owned(),
    }
}

/// A time that has been: engines write the year 1 for the others.
fn time(text: &str) -> Option<u64> {
    parse_rfc3339_ms(text).filter(|time| *time > 0)
}

fn state_of(word: &str) -> ContainerState {
    match word {
        // podman has words of its own.
        "created" | "configured" | "initialized" => ContainerState::Created,
        "running" | "stopping" => ContainerState::Running,
        "paused" => ContainerState::Paused,
        "restarting" => ContainerState::Restarting,
        "exited" | "dead" | "stopped" | "removing" => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
}

fn network(mode: &str) -> &str {
    match mode {
        "default" => "bridge",
        mode if mode.starts_with("container:") => "",
        mode => mode,
    }
}

fn mount(value: &Value) -> RowMount {
    let volume = text(value, "Type") == "volume";
    let source = if volume { "Name" } else { "Source" };
    RowMount {
        source: text(value, source).to_owned(),
        target: text(value, "Destination").to_owned(),
        volume,
    }
}

/// What `GET /containers/{id}/stats` says.
pub fn sample(value: &Value, at_us: u64) -> Sample {
    let at = |path: &str| value.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let sum = |list: Option<&Value>, wanted: &dyn Fn(&Value) -> u64| -> u64 {
        let list = list.and_then(Value::as_array).into_iter().flatten();
        list.map(wanted).fold(0, u64::saturating_add)
    };
    let networks = value.get("networks").and_then(Value::as_object);
    let traffic = |name: &str| {
        let each = networks.into_iter().flat_map(serde_json::Map::values);
        each.map(|one| number(one, name))
            .fold(0, u64::saturating_add)
    };
    let io = value.pointer("/blkio_stats/io_service_bytes_recursive");
    let disk = |wanted: &str| {
        sum(
            io,
            &|entry| match text(entry, "op").eq_ignore_ascii_case(wanted) {
                true => number(entry, "value"),
                false => 0,
            },
        )
    };
    // As docker counts: without the file cache that can be dropped at once.
    let cache = at("/memory_stats/stats/inactive_file");
    Sample {
        id: text(value, "id").to_owned(),
        name: text(value, "name").trim_start_matches('/').to_owned(),
        at_us,
        cpu_us: at("/cpu_stats/cpu_usage/total_usage") / 1000,
        cpus: u32::try_from(at("/cpu_stats/online_cpus").max(1)).unwrap_or(u32::MAX),
        memory: at("/memory_stats/usage").saturating_sub(cache),
        memory_limit: at("/memory_stats/limit"),
        network: (traffic("rx_bytes"), traffic("tx_bytes")),
        disk: (disk("read"), disk("write")),
        pids: at("/pids_stats/current"),
    }
}

/// What an engine says of a volume.
pub fn volume(value: &Value, in_use: bool) -> VolumeRow {
    let name = text(value, "Name").to_owned();
    let digits = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    VolumeRow {
        created: parse_rfc3339_ms(text(value, "CreatedAt")).unwrap_or(0) / 1000,
        labels: value.get("Labels").map(labels).unwrap_or_default(),
        anonymous: name.len() == 64 && digits,
        in_use,
        mountpoint: text(value, "Mountpoint").to_owned(),
        name,
    }
}

/// The error in the lines of JSON that an engine sends while it works, if there is one.
pub fn error_in(lines: &[u8]) -> Option<String> {
    lines.split(|byte| *byte == b'\n').find_map(|line| {
        let value: Value = serde_json::from_slice(line).ok()?;
        let words = value.get("error")?.as_str()?;
        Some(words.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn images_have_a_line_for_each_name() {
        let image = EngineImage::read(&json!({
            "Id": "sha256:ab", "RepoTags": ["alpine:latest", "10.0.2.2:5000/yocto/alpine:latest"],
            "RepoDigests": [format!("alpine@sha256:{}", "0".repeat(64))],
            "Created": 1_700_000_000, "Size": 7, "Labels": null, "Containers": -1,
        }));
        let rows = image.rows();
        assert_eq!(rows[0].name, "docker.io/library/alpine");
        assert_eq!(rows[0].tag.as_deref(), Some("latest"));
        assert!(rows[0].digest.is_some());
        assert_eq!(rows[1].name, "10.0.2.2:5000/yocto/alpine");
        assert_eq!(rows[1].digest, None);
        assert_eq!(rows[0].created.as_deref(), Some("2023-11-14T22:13:20Z"));
        let bare = EngineImage::read(&json!({"Id": "ab", "RepoTags": ["<none>:<none>"]}));
        assert_eq!(bare.id, "sha256:ab");
        assert_eq!(bare.rows().len(), 1);
        assert_eq!(bare.rows()[0].tag, None);
    }

    #[test]
    fn an_image_is_known_by_its_layers_and_its_configuration() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let ids: Vec<Digest> = ["1", "2"]
            .map(|digit| Digest::parse(&digest(digit)).unwrap())
            .into();
        let said = json!({
            "Created": "2023-11-14T22:13:20Z",
            "Config": {"Cmd": ["sh"], "Env": ["A=1"], "Volumes": null, "Labels": {"a": "b"}},
            "RootFS": {"Layers": [digest("1"), digest("2")]},
        });
        assert!(keeps_manifests(&json!({"DriverStatus": [
            ["driver-type", "io.containerd.snapshotter.v1"]]})));
        assert!(!keeps_manifests(
            &json!({"DriverStatus": [["Backing Filesystem", "extfs"]]})
        ));
        assert!(!keeps_manifests(&json!({"DriverStatus": null})));
        assert!(has_layers(&said, ids.iter()));
        assert!(!has_layers(&said, ids[..1].iter()));
        assert!(!has_layers(&said, ids.iter().rev()));
        assert!(!has_layers(&json!({}), ids[..0].iter()));
        let config = json!({
            "created": "2023-11-14T22:13:20.000000000Z",
            "config": {"Cmd": ["sh"], "Env": ["A=1"], "WorkingDir": "", "Labels": {"a": "b"}},
        });
        assert!(has_config(&said, &config));
        for (path, other) in [
            ("/created", json!("2024-11-14T22:13:20Z")),
            ("/config/Cmd", json!(["ash"])),
            ("/config/Env", json!(null)),
            ("/config/WorkingDir", json!("/w")),
            ("/config/Labels", json!({"a": "c"})),
        ] {
            let mut changed = config.clone();
            *changed.pointer_mut(path).unwrap() = other;
            assert!(!has_config(&said, &changed), "{path}");
        }
    }

    #[test]
    fn containers_in_short() {
        let row = container(&json!({
            "Id": "ab", "Name": "/web", "Created": "2023-11-14T22:13:20.5Z", "Path": "sh",
            "Args": ["-c", "true"], "Image": "sha256:cd",
            "State": {"Status": "exited", "ExitCode": 3, "StartedAt": "2023-11-14T23:13:21+01:00",
                      "FinishedAt": "0001-01-01T00:00:00Z"},
            "Config": {"Image": "alpine", "Tty": true, "Labels": {"a": "b"}},
            "HostConfig": {"NetworkMode": "default", "RestartPolicy": {"Name": "always"}},
            "Mounts": [{"Type": "volume", "Name": "v", "Source": "/x", "Destination": "/y"}],
        }));
        assert_eq!(row.name, "web");
        assert_eq!(row.command, ["sh", "-c", "true"]);
        assert_eq!(row.created_ms, 1_700_000_000_500);
        assert_eq!(row.started_ms, Some(1_700_000_001_000));
        assert_eq!(row.finished_ms, None);
        assert_eq!(row.state, ContainerState::Exited);
        assert_eq!(row.exit_code, 3);
        assert!(row.tty && row.resumes && !row.stdin);
        assert_eq!(row.mounts[0].source, "v");
        assert_eq!(row.network, "bridge");
        assert_eq!(container(&json!([1])).state, ContainerState::Unknown);
    }

    #[test]
    fn samples_and_volumes() {
        let shown = sample(
            &json!({
                "id": "ab", "name": "/web", "pids_stats": {"current": 2},
                "cpu_stats": {"cpu_usage": {"total_usage": 5_000_000}, "online_cpus": 4},
                "memory_stats": {"usage": 100, "limit": 1000, "stats": {"inactive_file": 30}},
                "networks": {"eth0": {"rx_bytes": 1, "tx_bytes": 2}, "eth1": {"rx_bytes": 3}},
                "blkio_stats": {"io_service_bytes_recursive": [
                    {"op": "Read", "value": 5}, {"op": "write", "value": 6}]},
            }),
            9,
        );
        assert_eq!((shown.memory, shown.cpu_us, shown.cpus), (70, 5000, 4));
        assert_eq!((shown.network, shown.disk, shown.pids), ((4, 2), (5, 6), 2));
        let row = volume(&json!({"Name": "f".repeat(64), "Mountpoint": "/m"}), true);
        assert!(row.anonymous && row.in_use);
        assert!(!volume(&json!({"Name": "data"}), false).anonymous);
    }

    #[test]
    fn errors_between_lines_of_progress() {
        let lines = b"{\"stream\":\"Loaded\"}\r\n{\"errorDetail\":{\"message\":\"x\"},\"error\":\"no space\"}\n";
        assert_eq!(error_in(lines).as_deref(), Some("no space"));
        assert_eq!(error_in(b"{\"stream\":\"error\"}\n"), None);
        assert_eq!(error_in(b"nonsense"), None);
    }

    proptest! {
        #[test]
        fn any_document_gives_rows(text in r#"(\{|\}|\[|\]|"Id":|"State":|"Names":|"a"|1|,|null){0,12}"#) {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = (container(&value), EngineImage::read(&value).rows(), sample(&value, 0), volume(&value, true));
            }
            let _ = error_in(text.as_bytes());
        }
    }
}
