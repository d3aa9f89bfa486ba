//! `volume` with an engine's volumes.

use serde_json::{Value, json};
use vdkr_core::{
    channel::message::{Done, Failure, FailureCode, Reply, VolumeAction},
    engine::{
        is_container_name,
        rows::{self, text, texts},
    },
};

use super::{Engine, tell};
use crate::channel::stream::SharedStream;

/// Carries out one action.
pub(super) async fn volume(engine: &Engine, action: VolumeAction, stream: &SharedStream) -> Done {
    match action {
        VolumeAction::Create { name, labels } => {
            let mut wanted = json!({"Labels": labels});
            if let (Some(name), Some(fields)) = (name, wanted.as_object_mut()) {
                fields.insert("Name".to_owned(), json!(name));
            }
            let made = engine.client.post("/volumes/create", Some(&wanted)).await?;
            let volumes = vec![rows::volume(&made, false)];
            Ok(Reply::Volumes { volumes })
        }
        VolumeAction::List { names } => {
            let listed = engine.client.get("/volumes").await?;
            let used = used(engine).await?;
            let listed = listed.get("Volumes").and_then(Value::as_array);
            let listed = listed.into_iter().flatten();
            let mut volumes: Vec<_> = listed
                .map(|one| rows::volume(one, used.iter().any(|name| name == text(one, "Name"))))
                .collect();
            for name in &names {
                if !volumes.iter().any(|row| row.name == *name) {
                    return Err(missing(name));
                }
            }
            volumes.retain(|row| names.is_empty() || names.contains(&row.name));
            volumes.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(Reply::Volumes { volumes })
        }
        VolumeAction::Remove { names, force } => {
            let mut gone = Vec::new();
            for name in names {
                if !is_container_name(&name) {
                    return Err(missing(&name));
                }
                match engine.client.delete(&format!("/volumes/{name}")).await {
                    Ok(_) => gone.push(name),
                    Err(failure) if force && failure.code == FailureCode::NotFound => {}
                    Err(failure) => {
                        tell(stream, gone.iter().map(|name| format!("removed: {name}")));
                        return Err(failure);
                    }
                }
            }
            Ok(Reply::VolumesRemoved {
                names: gone,
                freed: 0,
            })
        }
        VolumeAction::Prune { all } => {
            // Engines differ in what they prune unless they are told.
            let used = used(engine).await?;
            let listed = engine.client.get("/volumes").await?;
            let listed = listed.get("Volumes").and_then(Value::as_array);
            let mut gone = Vec::new();
            for one in listed.into_iter().flatten() {
                let row = rows::volume(one, false);
                if used.contains(&row.name) || !(all || row.anonymous) {
                    continue;
                }
                let target = format!("/volumes/{}", row.name);
                // One that a container has by now stays.
                if engine.client.delete_unused(&target).await?.is_some() {
                    gone.push(row.name);
                }
            }
            Ok(Reply::VolumesRemoved {
                names: gone,
                freed: 0,
            })
        }
        VolumeAction::Unknown => Err(super::unknown()),
    }
}

/// The volumes that containers have.
async fn used(engine: &Engine) -> Result<Vec<String>, Failure> {
    let containers = engine.client.get("/containers/json?all=1").await?;
    let mut names = Vec::new();
    for container in containers.as_array().into_iter().flatten() {
        let described = engine.container(text(container, "Id")).await;
        let Ok(described) = described else { continue };
        let mounts = described.get("Mounts").and_then(Value::as_array);
        let volumes = mounts.into_iter().flatten();
        names.extend(texts(&volumes.map(|one| one["Name"].clone()).collect()));
    }
    Ok(names)
}

fn missing(name: &str) -> Failure {
    Failure::new(FailureCode::NotFound, format!("no such volume: {name}"))
}
