//! A push killed at any point, and a server killed at any point, then both repeated.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::layout::{digest, noise, write_image};
use vdkr_tests::peers::{curl, curl_status};
use vdkr_tests::process::{free_port, run};
use vdkr_tests::registry::Registry;

const ROUNDS: u32 = 6;

/// Sizes of layers, bytes: those that go through a connection, and those that a client on the same
/// machine puts into the storage itself.
const SIZES: [usize; 2] = [3_000_000, 5_000_000];

/// Six layers of a few megabytes: enough for a kill to land in each phase of a push.
fn big_image(dir: &TempDir, size: usize) -> std::path::PathBuf {
    let path = dir.path().join(format!("big-{size}/big-latest-oci"));
    let layers: Vec<_> = (0..6).map(|n| noise(n + 1, size)).collect();
    write_image(&path, "amd64", &layers);
    path
}

/// Everything that the registry serves of `yocto/big` is whole: each tag's index, the manifests it
/// names, and the blobs those name.
fn assert_nothing_half_written(registry: &Registry) -> usize {
    let base = format!("{}/v2/yocto/big", registry.url());
    if curl_status(&[&format!("{base}/tags/list")]) != 200 {
        return 0;
    }
    let tags: Value = serde_json::from_slice(&curl(&format!("{base}/tags/list"))).unwrap();
    let tags = tags["tags"].as_array().cloned().unwrap_or_default();
    for tag in &tags {
        let index = curl(&format!("{base}/manifests/{}", tag.as_str().unwrap()));
        let index: Value = serde_json::from_slice(&index).unwrap();
        for entry in index["manifests"].as_array().unwrap() {
            let name = entry["digest"].as_str().unwrap();
            let manifest = curl(&format!("{base}/manifests/{name}"));
            assert_eq!(digest(&manifest), name);
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            let layers = manifest["layers"].as_array().unwrap();
            for blob in layers.iter().chain([&manifest["config"]]) {
                let name = blob["digest"].as_str().unwrap();
                assert_eq!(digest(&curl(&format!("{base}/blobs/{name}"))), name);
            }
        }
    }
    tags.len()
}

/// How long an undisturbed push takes here; kills are spread over that time.
fn undisturbed(source: &std::path::Path) -> Duration {
    let registry = Registry::start();
    let begun = Instant::now();
    registry
        .run(["push", source.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    begun.elapsed()
}

#[test]
fn a_push_killed_at_any_point_is_completed_by_the_next() {
    SIZES.into_iter().for_each(killed_pushes);
}

fn killed_pushes(size: usize) {
    let dir = TempDir::new().unwrap();
    let source = big_image(&dir, size);
    let whole = undisturbed(&source);
    let mut unfinished = 0;
    for round in 0..ROUNDS {
        let registry = Registry::start();
        let mut child = registry
            .command()
            .args(["push", source.to_str().unwrap(), "--tag", "v1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * round / ROUNDS);
        child.kill().unwrap();
        child.wait().unwrap();
        unfinished += usize::from(assert_nothing_half_written(&registry) == 0);
        registry
            .run(["push", source.to_str().unwrap(), "--tag", "v1"])
            .expect(0);
        assert_eq!(assert_nothing_half_written(&registry), 1);
    }
    assert!(
        unfinished > 0,
        "no kill landed before the tag: the test would prove nothing"
    );
}

#[test]
fn a_server_killed_at_any_point_serves_nothing_half_written() {
    SIZES.into_iter().for_each(killed_servers);
}

fn killed_servers(size: usize) {
    let dir = TempDir::new().unwrap();
    let source = big_image(&dir, size);
    let whole = undisturbed(&source);
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let storage = dir.path().join(format!("storage-{round}"));
        let registry = Registry::start_on(&storage, free_port());
        let status = registry.run(["status", "--json"]).expect(0).text();
        let status: Value = serde_json::from_str(&status).unwrap();
        let server = Pid::from_raw(i32::try_from(status["pid"].as_i64().unwrap()).unwrap());
        let pushing = std::thread::spawn({
            let mut command = registry.command();
            command.args(["push", source.to_str().unwrap(), "--tag", "v1"]);
            move || run(&mut command).code()
        });
        std::thread::sleep(whole * round / ROUNDS);
        kill(server, Signal::SIGKILL).unwrap();
        let code = pushing.join().unwrap();
        assert!([0, 1, 3].contains(&code), "push ended with {code}");
        interrupted += usize::from(code != 0);

        let registry = Registry::start_on(&storage, free_port());
        let tags = assert_nothing_half_written(&registry);
        assert!(code != 0 || tags == 1, "a push that succeeded was lost");
        registry
            .run(["push", source.to_str().unwrap(), "--tag", "v1"])
            .expect(0);
        assert_eq!(assert_nothing_half_written(&registry), 1);
    }
    assert!(
        interrupted > 0,
        "no kill landed during a push: the test would prove nothing"
    );
}
