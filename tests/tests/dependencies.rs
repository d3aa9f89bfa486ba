//! The dependency lists of `core` and of the agent, pinned so that neither grows by accident, and
//! the direction of imports between the rooms.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--no-deps"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The ordinary (not development, not build) dependencies of a member.
fn dependencies(metadata: &Value, package: &str) -> BTreeSet<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|p| p["name"] == package).unwrap();
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    dependencies
        .filter(|d| d["kind"].is_null())
        .map(|d| d["name"].as_str().unwrap().to_owned())
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn core_depends_on_four_crates() {
    assert_eq!(
        dependencies(&metadata(), "vdkr-core"),
        set(&["serde", "serde_json", "sha2", "thiserror"])
    );
}

#[test]
fn agent_depends_on_these_crates() {
    assert_eq!(
        dependencies(&metadata(), "vdkr-agent"),
        set(&[
            "bytes",
            "dlmalloc",
            "flate2",
            "hickory-resolver",
            // Only for their words to be left out.
            "log",
            "nix",
            "reqwest",
            "ring",
            "rustix",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio-util",
            "tokio-vsock",
            "tracing",
            "vdkr-core",
            "vdkr-transfer",
            "zstd",
        ])
    );
}

#[test]
fn imports_point_one_way() {
    let metadata = metadata();
    let rooms = |package: &str| -> BTreeSet<String> {
        let all = dependencies(&metadata, package);
        all.into_iter()
            .filter(|name| name.starts_with("vdkr-"))
            .collect()
    };
    assert_eq!(rooms("vdkr-core"), set(&[]));
    assert_eq!(rooms("vdkr-transfer"), set(&["vdkr-core"]));
    assert_eq!(rooms("vdkr-registry"), set(&["vdkr-core"]));
    assert_eq!(rooms("vdkr-agent"), set(&["vdkr-core", "vdkr-transfer"]));
    assert_eq!(
        rooms("vdkr-host"),
        set(&["vdkr-core", "vdkr-registry", "vdkr-transfer"])
    );
    assert_eq!(rooms("vdkr-wasm"), set(&["vdkr-core"]));
}
