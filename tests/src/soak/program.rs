//! `container-registry push` as a client that is killed: what it acknowledged is there, and what it did
//! not come to do is done by the next push.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::World;
use super::check::whole;
use crate::layout::{noise, write_image};
use crate::process::run_within;
use crate::registry::Registry;

const PATIENCE: Duration = Duration::from_mins(1);

pub(super) fn run(world: &World, registry: &Registry, scratch: &Path) {
    let mut dice = world.dice(300);
    let mut round = 0;
    while world.goes_on() {
        round += 1;
        let layout = scratch.join("cli-latest-oci");
        let _ = std::fs::remove_dir_all(&layout);
        let layers: Vec<_> = [round, 1 << 41, (1 << 42) | dice.below(3)]
            .map(|seed| noise(seed, 200_000))
            .into();
        let image = write_image(&layout, "amd64", &layers);
        let push = || {
            let mut command = registry.command();
            command.arg("push").arg(&layout).args(["--tag", "v1"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let Ok(mut child) = push().spawn() else {
            return world.violated("container-registry push does not run".to_owned());
        };
        std::thread::sleep(Duration::from_millis(dice.below(300)));
        if matches!(child.try_wait(), Ok(None)) && child.kill().is_ok() {
            world.count(|figures| &figures.client_kills, 1);
        }
        let _ = child.wait();

        // The server may be killed under this one, and blobs may be collected under it.
        let deadline = Instant::now() + PATIENCE;
        while run_within(&mut push(), b"", PATIENCE).code() != 0 {
            if !world.goes_on() {
                return;
            }
            if Instant::now() > deadline {
                return world.violated("container-registry push never came through".to_owned());
            }
        }
        world.count(|figures| &figures.pushes, 1);
        let Some(answer) = world.get("/v2/yocto/cli/manifests/v1") else {
            return;
        };
        let index: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status != 200 || index["manifests"][0]["digest"] != image.as_str() {
            let status = answer.status;
            return world.violated(format!("a push acknowledged is lost: {status} {index}"));
        }
        if let Err(problem) = whole(world, "yocto/cli", &answer.body) {
            return world.violated(format!("yocto/cli:v1: {problem}"));
        }
        world.count(|figures| &figures.pulls, 1);
    }
}
