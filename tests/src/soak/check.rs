//! The checker: every tag that is listed resolves to a whole image, at every moment.

use std::time::Duration;

use serde_json::Value;

use super::World;
use super::client::named;
use crate::layout::digest;

/// Looks at everything, over and over.
pub(super) fn run(world: &World) {
    while world.goes_on() {
        let Some(catalog) = world.get("/v2/_catalog") else {
            return;
        };
        let catalog: Value = serde_json::from_slice(&catalog.body).unwrap_or_default();
        for repository in texts(&catalog["repositories"]) {
            let Some(tags) = world.get(&format!("/v2/{repository}/tags/list")) else {
                return;
            };
            let tags: Value = serde_json::from_slice(&tags.body).unwrap_or_default();
            for tag in texts(&tags["tags"]) {
                if !world.goes_on() {
                    return;
                }
                check(world, &repository, &tag);
            }
        }
        world.count(|figures| &figures.checks, 1);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One tag. What it lacks counts only when the tag still points there afterwards: its owner may have
/// moved it meanwhile, and no digest ever comes back.
fn check(world: &World, repository: &str, tag: &str) {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let Some(first) = world.get(&path).filter(|answer| answer.status == 200) else {
        return;
    };
    let Err(problem) = whole(world, repository, &first.body) else {
        return;
    };
    let Some(second) = world.get(&path) else {
        return;
    };
    if second.status == 200 && second.body == first.body {
        world.violated(format!("{repository}:{tag}: {problem}"));
    }
}

/// Fetches all that a manifest needs, and holds it against the digests.
pub(super) fn whole(world: &World, repository: &str, manifest: &[u8]) -> Result<(), String> {
    let parsed: Value =
        serde_json::from_slice(manifest).map_err(|error| format!("a torn manifest: {error}"))?;
    let (blobs, manifests) = named(&parsed);
    for (kind, names) in [("manifests", &manifests), ("blobs", &blobs)] {
        for name in names {
            let path = format!("/v2/{repository}/{kind}/{name}");
            let Some(answer) = world.get(&path) else {
                return Ok(());
            };
            if answer.status != 200 {
                return Err(format!("{path} answered {}", answer.status));
            }
            if digest(&answer.body) != *name {
                return Err(format!("{path} has other content"));
            }
            if kind == "manifests" {
                whole(world, repository, &answer.body)?;
            }
        }
    }
    Ok(())
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}
