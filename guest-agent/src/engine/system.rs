//! `info` and `usage`: the engine and its machine.

use std::{fs, path::Path, rc::Rc};

use vdkr_core::{
    channel::message::{Done, Info, Reply, Usage},
    engine::rows::{number, text},
};

use super::Engine;
use crate::{
    machine,
    request::{Agent, info::space},
};

/// Describes the agent, the engine and their machine.
pub(super) async fn info(agent: &Rc<Agent>, engine: &Engine) -> Done {
    let said = engine.client.get("/info").await?;
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (memory_total, memory_available) = machine::parse_meminfo(&meminfo);
    let (state_total, state_available) = space(Path::new(text(&said, "DockerRootDir")));
    let version = match text(&said, "ServerVersion") {
        "" => engine.version().await.unwrap_or_default(),
        version => version.to_owned(),
    };
    Ok(Reply::Info(Info {
        software: machine::SOFTWARE.to_owned(),
        kernel: text(&said, "KernelVersion").to_owned(),
        arch: machine::architecture().to_owned(),
        engine: format!("{} {version}", engine.kind()),
        state: agent.state_word(),
        uptime_ms: machine::uptime().as_millis() as u64,
        memory_total,
        memory_available,
        state_total,
        state_available,
        images: number(&said, "Images"),
        containers: number(&said, "ContainersRunning"),
        all_containers: Some(number(&said, "Containers")),
        cpus: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u64),
        disks: Vec::new(),
    }))
}

/// Adds up what the engine says that images, containers and volumes take.
pub(super) async fn usage(engine: &Engine) -> Done {
    let said = engine.client.get("/system/df").await?;
    let list = |name: &str| {
        let list = said.get(name).and_then(serde_json::Value::as_array);
        list.into_iter().flatten()
    };
    let root = engine.client.get("/info").await?;
    let (state_total, state_available) = space(Path::new(text(&root, "DockerRootDir")));
    let idle = list("Images").filter(|image| number(image, "Containers") == 0);
    let sizes = |images: &mut dyn Iterator<Item = &serde_json::Value>| {
        images
            .map(|image| number(image, "Size").saturating_sub(number(image, "SharedSize")))
            .fold(0, u64::saturating_add)
    };
    let layers_reclaimable = sizes(&mut { idle });
    let all = match number(&said, "LayersSize") {
        0 => sizes(&mut list("Images")),
        size => size,
    };
    let containers = list("Containers");
    let volumes = list("Volumes");
    Ok(Reply::Usage(Usage {
        images: list("Images").count() as u64,
        images_active: list("Images")
            .filter(|image| number(image, "Containers") > 0)
            .count() as u64,
        layers_size: all,
        layers_reclaimable,
        spare_size: 0,
        state_total,
        state_available,
        containers: Some(
            containers
                .map(|one| (text(one, "Id").to_owned(), number(one, "SizeRw")))
                .collect(),
        ),
        volumes: volumes
            .map(|one| {
                let usage = one.get("UsageData").unwrap_or(&serde_json::Value::Null);
                (text(one, "Name").to_owned(), number(usage, "Size"))
            })
            .collect(),
    }))
}
