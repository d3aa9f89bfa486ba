//! `usage`: how much room images, containers and volumes take.

use std::path::PathBuf;

use tokio::task::spawn_blocking;
use vdkr_core::channel::message::{Done, Failure, FailureCode, Reply, Usage};

use super::Agent;
use crate::volume::size;

/// Adds up what the store has, and what is written in containers and volumes.
pub async fn usage(agent: &Agent) -> Done {
    let (state_total, state_available) = super::info::space(agent.state_dir());
    let mut usage = Usage {
        state_total,
        state_available,
        ..agent.store()?.usage()
    };
    let volumes = agent.volumes.list(&[], &|_| false);
    let volumes = volumes.map_err(super::volume::failed)?.into_iter();
    let volumes: Vec<_> = volumes
        .map(|row| (row.name, row.mountpoint.into()))
        .collect();
    let containers = agent.book().all();
    let containers = containers.iter();
    let containers: Vec<_> = containers
        .map(|entry| (entry.id.clone(), entry.dir.join("upper")))
        .collect();
    // As long as there are files.
    let measured = spawn_blocking(move || {
        let [containers, volumes] = [containers, volumes].map(|dirs: Vec<(String, PathBuf)>| {
            let sizes = dirs.into_iter().map(|(name, dir)| (name, size(&dir)));
            sizes.collect()
        });
        (containers, volumes)
    });
    let failed =
        |error: tokio::task::JoinError| Failure::new(FailureCode::Failed, error.to_string());
    let (containers, volumes) = measured.await.map_err(failed)?;
    usage.containers = Some(containers);
    usage.volumes = volumes;
    Ok(Reply::Usage(usage))
}
