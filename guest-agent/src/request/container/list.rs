//! `list`: every container in short.

use std::collections::BTreeMap;

use vdkr_core::channel::message::{ContainerReply, ContainerRow, Reply};

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
