//! `list`: every container in short.

use std::collections::BTreeMap;

use vdkr_core::channel::message::{
    ContainerReply, ContainerRow, MountSource, MountSpec, Network, Reply, RowMount,
};

use super::Agent;
use crate::{container::record::Record, request::run, run::process};

/// All containers, the newest first.
pub fn list(agent: &Agent) -> Reply {
    let containers = agent
        .book()
        .all()
        .iter()
        .map(|entry| row(&entry.record.borrow()))
        .collect();
    Reply::Container(ContainerReply::List { containers })
}

fn row(record: &Record) -> ContainerRow {
    let status = &record.status;
    ContainerRow {
        id: record.id.clone(),
        name: record.name.clone(),
        image: record.request.image.clone(),
        image_id: record.image.to_string(),
        command: command(record),
        created_ms: record.created_ms,
        state: status.state,
        started_ms: status.started_ms,
        finished_ms: status.finished_ms,
        exit_code: status.exit_code,
        labels: labels(record),
        tty: record.request.tty,
        stdin: record.request.stdin,
        resumes: record.resumes(),
        mounts: record.request.mounts.iter().map(mount).collect(),
        network: network(&record.request.sandbox.network).to_owned(),
    }
}

fn mount(spec: &MountSpec) -> RowMount {
    let (source, volume) = match &spec.source {
        MountSource::Share { path, .. } => (path.clone(), false),
        MountSource::Volume { name, .. } => (name.clone().unwrap_or_default(), true),
        _ => (String::new(), false),
    };
    RowMount {
        source,
        target: spec.target.clone(),
        volume,
    }
}

/// As docker calls it; that of another container has no name there.
fn network(network: &Network) -> &'static str {
    match network {
        Network::Default | Network::Bridge => "bridge",
        Network::Host => "host",
        Network::None => "none",
        Network::Container(_) => "",
    }
}

/// What it executes.
pub(super) fn command(record: &Record) -> Vec<String> {
    let request = &record.request;
    let defaults = run::defaults(&record.config);
    process::argv(&defaults, request.entrypoint.as_deref(), &request.args).unwrap_or_default()
}

/// The image's labels and its own.
pub(super) fn labels(record: &Record) -> BTreeMap<String, String> {
    let image = record.config.config.labels.iter();
    let own = record.request.life.labels.iter();
    image
        .chain(own)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_networks_in_short() {
        let shown = |source: MountSource| {
            let target = "/x".to_owned();
            let read_only = false;
            let row = mount(&MountSpec {
                target,
                source,
                read_only,
            });
            assert_eq!(row.target, "/x");
            (row.source, row.volume)
        };
        let share = MountSource::Share {
            share: "0123".into(),
            path: "/home/me".into(),
        };
        assert_eq!(shown(share), ("/home/me".to_owned(), false));
        let volume = |name: Option<&str>| MountSource::Volume {
            name: name.map(str::to_owned),
            no_copy: false,
        };
        assert_eq!(shown(volume(Some("data"))), ("data".to_owned(), true));
        assert_eq!(shown(volume(None)), (String::new(), true));
        let tmpfs = MountSource::Tmpfs {
            size: None,
            mode: None,
        };
        assert_eq!(shown(tmpfs), (String::new(), false));
        for (wanted, name) in [
            (Network::Default, "bridge"),
            (Network::Bridge, "bridge"),
            (Network::Host, "host"),
            (Network::None, "none"),
            (Network::Container("web".into()), ""),
        ] {
            assert_eq!(network(&wanted), name);
        }
    }
}
