//! `vdkr system df`: the room that images, containers, volumes and layers take.

mod detail;

use serde_json::{Map, Value};
use vdkr_core::channel::message::{ContainerRow, Reply, Request, Usage, VolumeAction, VolumeRow};

use super::{container::list, wrong_reply};
use crate::vdkr::{
    error::{Error, Result},
    format::Format,
    human,
    image_args::DfArgs,
    layers::{self, CachedLayer},
    session::{Session, with_session},
    settings::Settings,
};

const COLUMNS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

/// Everything that takes room.
#[derive(Debug, Default)]
struct Room {
    usage: Usage,
    containers: Vec<ContainerRow>,
    volumes: Vec<VolumeRow>,
    /// Layers that this computer keeps for all machines, and those of them that none uses; none
    /// where the machine is not one of this computer's.
    layers: Option<(Vec<CachedLayer>, Vec<CachedLayer>)>,
}

/// Shows what the machine's store takes, and what of it could go.
pub async fn run(settings: &Settings, args: &DfArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    if args.verbose && matches!(format, Format::Template { .. }) {
        return Err(Error::usage(
            "--verbose shows tables of several kinds, which no template fits; use json",
        ));
    }
    let (room, images) = with_session(settings, "vdkr system df", async |session| {
        let room = room(session, settings).await?;
        let images = match args.verbose {
            true => Some(detail::images(session).await?),
            false => None,
        };
        Ok((room, images))
    })
    .await?;
    if let Some(images) = images {
        return detail::show(&room, &images, &format);
    }
    crate::output::write(format_args!("{}", format.rows(&rows(&room), &COLUMNS)?));
    if matches!(format, Format::Table) {
        let used = room
            .usage
            .state_total
            .saturating_sub(room.usage.state_available);
        eprintln!(
            "The machine's storage has {}, of which {} are used",
            human::size(room.usage.state_total),
            human::size(used)
        );
    }
    Ok(0)
}

async fn room(session: &mut Session, settings: &Settings) -> Result<Room> {
    let usage = match session.ask(&Request::Usage).await? {
        Reply::Usage(usage) => usage,
        other => return Err(wrong_reply(&other)),
    };
    let all = Request::Volume {
        action: VolumeAction::List { names: Vec::new() },
    };
    let volumes = match session.ask(&all).await? {
        Reply::Volumes { volumes } => volumes,
        other => return Err(wrong_reply(&other)),
    };
    let layers = match session.is_target() {
        true => None,
        false => {
            let cache = layers::cache(settings)?;
            Some((cache.layers()?, layers::unused(&cache)?))
        }
    };
    Ok(Room {
        usage,
        containers: list(session).await?,
        volumes,
        layers,
    })
}

impl Room {
    /// Bytes that a container has written, where that is known.
    fn of_container(&self, id: &str) -> Option<u64> {
        let sizes = self.usage.containers.as_ref()?;
        Some(sizes.get(id).copied().unwrap_or(0))
    }

    /// Bytes of a volume, where that is known.
    fn of_volume(&self, name: &str) -> Option<u64> {
        self.usage.containers.as_ref()?;
        Some(self.usage.volumes.get(name).copied().unwrap_or(0))
    }
}

/// A size, of which nothing may be known.
fn known(size: Option<u64>) -> String {
    size.map_or_else(|| "N/A".to_owned(), human::size)
}

/// The sum of sizes, when all are known.
fn sum(sizes: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    sizes.sum()
}

fn rows(room: &Room) -> Vec<Map<String, Value>> {
    let share = |part: Option<u64>, whole: Option<u64>| {
        let text = known(part);
        let percent = part
            .zip(whole)
            .and_then(|(part, whole)| part.saturating_mul(100).checked_div(whole));
        match percent {
            Some(percent) => format!("{text} ({percent}%)"),
            None => text,
        }
    };
    let row = |kind: &str, total: usize, active: usize, size, reclaimable| {
        let fields = [
            ("Type", kind.to_owned()),
            ("TotalCount", total.to_string()),
            ("Active", active.to_string()),
            ("Size", known(size)),
            ("Reclaimable", share(reclaimable, size)),
        ];
        let fields = fields.into_iter();
        fields
            .map(|(name, text)| (name.to_owned(), text.into()))
            .collect::<Map<String, Value>>()
    };
    let usage = &room.usage;
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let containers = || room.containers.iter();
    let size = |container: &ContainerRow| room.of_container(&container.id);
    let idle = containers().filter(|container| !container.state.is_live());
    let volumes = || room.volumes.iter();
    let volume_size = |volume: &VolumeRow| room.of_volume(&volume.name);
    let mut rows = vec![
        row(
            "Images",
            count(usage.images),
            count(usage.images_active),
            Some(usage.layers_size),
            Some(usage.layers_reclaimable),
        ),
        row(
            "Containers",
            room.containers.len(),
            containers().filter(|row| row.state.is_live()).count(),
            sum(containers().map(size)),
            sum(idle.map(size)),
        ),
        row(
            "Local Volumes",
            room.volumes.len(),
            volumes().filter(|volume| volume.in_use).count(),
            sum(volumes().map(volume_size)),
            sum(volumes().filter(|volume| !volume.in_use).map(volume_size)),
        ),
    ];
    if let Some((all, unused)) = &room.layers {
        let size = |layers: &[CachedLayer]| layers.iter().map(|layer| layer.allocated).sum();
        rows.push(row(
            "Layer Cache",
            all.len(),
            all.len().saturating_sub(unused.len()),
            Some(size(all)),
            Some(size(unused)),
        ));
    }
    let mut spare = row(
        "Interrupted pulls",
        0,
        0,
        Some(usage.spare_size),
        Some(usage.spare_size),
    );
    spare.insert("TotalCount".to_owned(), "-".into());
    rows.push(spare);
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vdkr_core::{channel::message::ContainerState, digest::Digest};

    use super::*;

    pub(super) fn example() -> Room {
        let container = |id: &str, state| ContainerRow {
            id: id.repeat(64),
            name: id.into(),
            image: "base".into(),
            image_id: "sha256:0a".into(),
            state,
            ..ContainerRow::default()
        };
        let volume = |name: &str, in_use| VolumeRow {
            name: name.into(),
            in_use,
            ..VolumeRow::default()
        };
        let layer = |content: &[u8], allocated| CachedLayer {
            diff_id: Digest::sha256(content),
            path: "/cache/layer".into(),
            allocated,
            used: std::time::SystemTime::UNIX_EPOCH,
        };
        Room {
            usage: Usage {
                images: 2,
                images_active: 1,
                layers_size: 1000,
                layers_reclaimable: 250,
                containers: Some(BTreeMap::from([("a".repeat(64), 30), ("b".repeat(64), 10)])),
                volumes: BTreeMap::from([("data".to_owned(), 400), ("free".to_owned(), 100)]),
                ..Usage::default()
            },
            containers: vec![
                container("a", ContainerState::Running),
                container("b", ContainerState::Exited),
            ],
            volumes: vec![volume("data", true), volume("free", false)],
            layers: Some((
                vec![layer(b"a", 600), layer(b"b", 200)],
                vec![layer(b"b", 200)],
            )),
        }
    }

    #[test]
    fn shares() {
        let table = Format::Table.rows(&rows(&example()), &COLUMNS).unwrap();
        assert_eq!(
            table,
            "TYPE                TOTAL   ACTIVE   SIZE   RECLAIMABLE\n\
             Images              2       1        1kB    250B (25%)\n\
             Containers          2       1        40B    10B (25%)\n\
             Local Volumes       2       1        500B   100B (20%)\n\
             Layer Cache         2       1        800B   200B (25%)\n\
             Interrupted pulls   -       0        0B     0B\n"
        );
    }

    #[test]
    fn what_an_older_agent_does_not_say_is_not_made_up() {
        let mut room = example();
        room.usage.containers = None;
        room.layers = None;
        let table = Format::Table.rows(&rows(&room), &COLUMNS).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2], "Containers          2       1        N/A    N/A");
        assert_eq!(lines[3], "Local Volumes       2       1        N/A    N/A");
        assert!(!table.contains("Layer Cache"));
    }
}
