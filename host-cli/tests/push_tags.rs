//! Which tags `push` makes of what a build says about itself.

#[path = "double/build.rs"]
mod build;
mod double;

use std::process::Command;

use build::{layout, multiarch, program, run};
use double::{Double, Manners};
use serde_json::Value;
use tempfile::TempDir;

fn push(home: &TempDir, registry: &Double) -> Command {
    let mut command = program(home.path(), &registry.host());
    command.arg("push");
    command
}

/// The architectures in a tag's index.
fn architectures(registry: &Double, name: &str, tag: &str) -> Vec<String> {
    let raw = registry.manifest(name, tag).expect("the tag exists");
    let index: Value = serde_json::from_slice(&raw).unwrap();
    let entries = index["manifests"].as_array().expect("an index");
    let architecture = |entry: &Value| {
        entry["platform"]["architecture"]
            .as_str()
            .map(str::to_owned)
    };
    entries.iter().filter_map(architecture).collect()
}

fn tags_of(home: &TempDir, words: &[&str]) -> Vec<String> {
    let registry = Double::start(Manners::default());
    let app = home.path().join("app-latest-oci");
    layout(&app, "amd64", &[b"x"]);
    let mut command = push(home, &registry);
    run(command.arg(&app).args(words)).expect(0);
    registry.tags("yocto/app")
}

#[test]
fn weakness_4b_14_versions_make_sense_as_tags() {
    let home = TempDir::new().unwrap();
    for (version, tags) in [
        ("1", &["1"][..]),
        ("1.2", &["1", "1.2"]),
        ("1.2.3", &["1", "1.2", "1.2.3"]),
        ("1.2.3-rc1", &["1.2.3-rc1"]),
        ("v1.2.3+meta", &["v1", "v1.2", "v1.2.3"]),
    ] {
        let pushed = tags_of(&home, &["--strategy", "semver", "--version", version]);
        assert_eq!(pushed, tags, "{version}");
    }
}

#[test]
fn each_image_is_tagged_with_its_own_architecture() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    let deploy = home.path().join("deploy");
    let machines = [("qemux86-64", "amd64"), ("qemuarm64", "arm64")];
    for (machine, architecture) in machines {
        let path = deploy.join(machine).join("app-latest-oci");
        layout(&path, architecture, &[architecture.as_bytes()]);
        let path = deploy.join(machine).join("all-multiarch-oci");
        multiarch(&path, &["amd64", "arm64"]);
    }
    let ran = run(push(&home, &registry)
        .env("DEPLOY_DIR_IMAGES", &deploy)
        .env("TARGET_ARCH", "x86_64")
        .args(["--strategy", "sha version arch", "--version", "1.2"]))
    .expect(0);
    assert_eq!(
        registry.tags("yocto/app"),
        ["1.2", "1.2-aarch64", "1.2-x86_64"]
    );
    for (machine, architecture) in [("x86_64", "amd64"), ("aarch64", "arm64")] {
        let tag = format!("1.2-{machine}");
        assert_eq!(architectures(&registry, "yocto/app", &tag), [architecture]);
    }
    assert_eq!(registry.tags("yocto/all"), ["1.2"]);
    for words in [
        "warning: sha: ",
        "warning: all: arch: it is for amd64, arm64",
    ] {
        assert_eq!(ran.stderr.matches(words).count(), 1, "{}", ran.stderr);
    }
}

#[test]
fn weakness_4b_15_any_branch_of_the_build_gives_a_legal_tag() {
    let home = TempDir::new().unwrap();
    let build = home.path().join("build");
    std::fs::create_dir(&build).unwrap();
    let long = format!("x/{}", "y".repeat(200));
    for branch in ["feature/log_in", "user@host/fix", "#42", long.as_str()] {
        let _ = std::fs::remove_dir_all(build.join(".git"));
        let git = |args: &[&str]| {
            let git = Command::new("git").current_dir(&build).args(args).output();
            assert!(git.unwrap().status.success());
        };
        git(&["init", "-q", "-b", branch]);
        git(&[
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ]);
        let registry = Double::start(Manners::default());
        let app = home.path().join("app-latest-oci");
        layout(&app, "amd64", &[b"x"]);
        // The facts come from the build, wherever the command is run.
        let mut command = push(&home, &registry);
        run(command
            .env("BUILDDIR", &build)
            .arg(&app)
            .args(["--strategy", "branch"]))
        .expect(0);
        let tags = registry.tags("yocto/app");
        assert_eq!(tags.len(), 1, "{tags:?}");
        assert!(
            vdkr_core::reference::check_tag(&tags[0]).is_ok(),
            "{tags:?}"
        );
        assert_ne!(tags[0], "latest");
    }
}
