//! A row for each image, container, volume and layer.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use vdkr_core::{
    channel::message::{ContainerRow, ExportedImage, ImageRow, VolumeRow},
    digest::Digest,
};

use super::{CachedLayer, Room, known};
use crate::vdkr::{
    command::{
        container::ps,
        images::{self as list, created, shorten},
    },
    content::export,
    error::Result,
    format::Format,
    human,
    session::Session,
};

const IMAGES: [(&str, &str); 8] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const CONTAINERS: [(&str, &str); 8] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Size", "SIZE"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Names", "NAMES"),
];
const VOLUMES: [(&str, &str); 3] = [
    ("Name", "VOLUME NAME"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
];
const LAYERS: [(&str, &str); 3] = [("ID", "LAYER"), ("InUse", "IN USE"), ("Size", "SIZE")];

/// The stored images, with their layers.
#[derive(Debug)]
pub(super) struct Images {
    rows: Vec<ImageRow>,
    parts: Vec<ExportedImage>,
}

/// Asks for the images and what they are made of.
pub(super) async fn images(session: &mut Session) -> Result<Images> {
    let rows = list::rows(session).await?;
    let ids: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    let ids: Vec<String> = ids.into_iter().collect();
    let parts = match ids.is_empty() {
        true => Vec::new(),
        false => export(session, &ids).await?,
    };
    Ok(Images { rows, parts })
}

/// Writes the tables, or one object.
pub(super) fn show(room: &Room, images: &Images, format: &Format) -> Result<u8> {
    let tables = tables(room, images, Timestamp::now(), &TimeZone::system());
    let text = match format {
        Format::Json => format!("{}\n", tables.object()),
        _ => tables.text()?,
    };
    crate::output::write(format_args!("{text}"));
    Ok(0)
}

#[derive(Debug)]
struct Tables {
    images: Vec<Value>,
    containers: Vec<Value>,
    volumes: Vec<Value>,
    /// None where there is no cache.
    layers: Option<Vec<Value>>,
}

impl Tables {
    fn object(&self) -> Value {
        let mut object = json!({
            "Images": self.images,
            "Containers": self.containers,
            "Volumes": self.volumes,
            "BuildCache": [],
        });
        if let (Some(layers), Value::Object(fields)) = (&self.layers, &mut object) {
            fields.insert("LayerCache".to_owned(), json!(layers));
        }
        object
    }

    fn text(&self) -> Result<String> {
        let mut text = String::new();
        let mut add = |head: &str, rows: &[Value], columns: &[(&str, &str)]| -> Result<()> {
            let gap = if text.is_empty() { "" } else { "\n" };
            let table = Format::Table.rows(rows, columns)?;
            text += &format!("{gap}{head} space usage:\n\n{table}");
            Ok(())
        };
        add("Images", &self.images, &IMAGES)?;
        add("Containers", &self.containers, &CONTAINERS)?;
        add("Local Volumes", &self.volumes, &VOLUMES)?;
        if let Some(layers) = &self.layers {
            add("Layer Cache", layers, &LAYERS)?;
        }
        Ok(text)
    }
}

fn tables(room: &Room, images: &Images, now: Timestamp, zone: &TimeZone) -> Tables {
    let shared = shared(&images.parts);
    let parts: BTreeMap<&str, &ExportedImage> = images
        .parts
        .iter()
        .map(|part| (part.id.as_str(), part))
        .collect();
    let image = |row: &ImageRow| {
        let users = room.containers.iter();
        let users = users.filter(|container| container.image_id == row.id);
        let part = parts.get(row.id.as_str()).copied();
        image(row, part, &shared, users.count(), now)
    };
    let containers = room.containers.iter().map(|row| {
        let mut value = ps::value(row, false, now, zone);
        value["Size"] = json!(known(room.of_container(&row.id)));
        value
    });
    let volumes = room.volumes.iter().map(|row| volume(row, room));
    let layers = room.layers.as_ref().map(|(all, unused)| {
        let unused: BTreeSet<&Digest> = unused.iter().map(|layer| &layer.diff_id).collect();
        all.iter().map(|one| layer(one, &unused)).collect()
    });
    Tables {
        images: images.rows.iter().map(image).collect(),
        containers: containers.collect(),
        volumes: volumes.collect(),
        layers,
    }
}

/// Layers that several images have.
fn shared(images: &[ExportedImage]) -> BTreeSet<&Digest> {
    let mut seen: BTreeMap<&Digest, usize> = BTreeMap::new();
    for image in images {
        let layers: BTreeSet<&Digest> = image.layers.iter().map(|layer| &layer.diff_id).collect();
        for layer in layers {
            *seen.entry(layer).or_default() += 1;
        }
    }
    let several = seen.into_iter().filter(|(_, images)| *images > 1);
    several.map(|(layer, _)| layer).collect()
}

fn image(
    row: &ImageRow,
    part: Option<&ExportedImage>,
    shared: &BTreeSet<&Digest>,
    containers: usize,
    now: Timestamp,
) -> Value {
    // The same layer twice in an image takes its room once.
    let layers: BTreeMap<&Digest, u64> = part
        .into_iter()
        .flat_map(|part| &part.layers)
        .map(|layer| (&layer.diff_id, layer.size))
        .collect();
    let common = layers.iter().filter(|(layer, _)| shared.contains(*layer));
    let common: u64 = common.map(|(_, size)| size).sum();
    let mut value = list::fields(row, false, now);
    let mut set = |name: &str, text: String| value.insert(name.to_owned(), text.into());
    set("SharedSize", human::size(common));
    set("UniqueSize", human::size(row.size.saturating_sub(common)));
    set("Containers", containers.to_string());
    set("CreatedSince", created(row.created.as_deref(), now));
    value.into()
}

fn volume(row: &VolumeRow, room: &Room) -> Value {
    let has = |container: &&ContainerRow| {
        let mut mounts = container.mounts.iter();
        mounts.any(|mount| mount.volume && mount.source == row.name)
    };
    let links = room.containers.iter().filter(has).count();
    let labels: Vec<String> = row.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    json!({
        "Name": row.name,
        "Links": links.max(usize::from(row.in_use)).to_string(),
        "Size": known(room.of_volume(&row.name)),
        "Driver": "local",
        "Scope": "local",
        "Labels": labels.join(","),
        "Mountpoint": row.mountpoint,
    })
}

fn layer(layer: &CachedLayer, unused: &BTreeSet<&Digest>) -> Value {
    json!({
        "ID": shorten(layer.diff_id.as_str(), false),
        "InUse": if unused.contains(&layer.diff_id) { "no" } else { "yes" },
        "Size": human::size(layer.allocated),
        "Path": layer.path,
    })
}

#[cfg(test)]
mod tests {
    use vdkr_core::{channel::message::ExportedLayer, manifest::Descriptor};

    use super::{super::tests::example, *};

    fn stored() -> Images {
        let row = |name: &str, id: &Digest, size| ImageRow {
            name: name.into(),
            tag: Some("1".into()),
            id: id.to_string(),
            size,
            ..ImageRow::default()
        };
        let layer = |content: &[u8], size| ExportedLayer {
            diff_id: Digest::sha256(content),
            size,
            plain: None,
        };
        let part = |id: &Digest, layers| ExportedImage {
            id: id.clone(),
            config_size: 1,
            manifest: Descriptor::new("x", Digest::sha256(b"m"), 1),
            name: None,
            names: vec![],
            digests: vec![],
            layers,
        };
        let (base, app) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        Images {
            rows: vec![row("base", &base, 500), row("app", &app, 700)],
            parts: vec![
                part(&base, vec![layer(b"a", 500)]),
                part(
                    &app,
                    vec![layer(b"a", 500), layer(b"b", 200), layer(b"b", 200)],
                ),
            ],
        }
    }

    #[test]
    fn everything_has_its_row() {
        let mut room = example();
        room.containers[0].image_id = stored().rows[1].id.clone();
        room.containers[0]
            .mounts
            .push(vdkr_core::channel::message::RowMount {
                source: "data".into(),
                target: "/d".into(),
                volume: true,
            });
        let tables = tables(&room, &stored(), Timestamp::UNIX_EPOCH, &TimeZone::UTC);
        let text = tables.text().unwrap();
        let line = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            let line = line.unwrap_or_else(|| panic!("{start}: {text}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert!(line("base").ends_with("500B 500B 0B 0"), "{text}");
        assert!(line("app").ends_with("700B 500B 200B 1"), "{text}");
        assert!(line("aaaaaaaaaaaa").contains(" 1 30B "), "{text}");
        assert_eq!(line("data"), "data 1 400B");
        assert_eq!(line("free"), "free 0 100B");
        let unused = shorten(Digest::sha256(b"b").as_str(), false);
        assert_eq!(line(&unused), format!("{unused} no 200B"));
        let object = tables.object();
        assert_eq!(object["Volumes"][1]["Size"], "100B");
        assert_eq!(object["LayerCache"].as_array().unwrap().len(), 2);
        assert_eq!(object["BuildCache"], json!([]));
    }
}
