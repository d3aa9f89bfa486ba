//! Pushing: tags by strategy, platforms that join in one tag, and deletions that take nothing else.

use std::path::PathBuf;
use std::sync::Barrier;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::layout::{noise, write_image};
use vdkr_tests::peers::skopeo_raw;
use vdkr_tests::process::{run, run_tool};
use vdkr_tests::registry::Registry;

fn image(dir: &TempDir, architecture: &str) -> PathBuf {
    let path = dir.path().join(architecture).join("app-latest-oci");
    write_image(
        &path,
        architecture,
        &[noise(architecture.len() as u64, 5000)],
    );
    path
}

fn architectures(registry: &Registry, image: &str) -> Vec<String> {
    let raw = skopeo_raw(&format!("docker://{}/{image}", registry.host()));
    let index: Value = serde_json::from_slice(&raw).unwrap();
    let entries = index["manifests"].as_array().unwrap().iter();
    let mut names: Vec<_> = entries
        .map(|e| e["platform"]["architecture"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn tags(registry: &Registry, image: &str) -> Vec<String> {
    registry
        .run(["tags", image])
        .expect(0)
        .text()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_deploy_directory_is_pushed_whole() {
    let registry = Registry::start();
    let deploy = deploy_dir();
    registry
        .run(["push", "--deploy-dir-images", deploy.to_str().unwrap()])
        .expect(0);
    let catalog = registry.run(["catalog"]).expect(0).text();
    for name in ["yocto/container-base", "yocto/debian-base"] {
        assert!(
            catalog.lines().any(|line| line == name),
            "{name} is not in:\n{catalog}"
        );
    }
    assert_eq!(
        architectures(&registry, "yocto/container-base:latest"),
        ["amd64", "arm64"]
    );
    let tags = tags(&registry, "container-base");
    assert_eq!(tags.len(), 2, "{tags:?}");
    assert_eq!(tags[1], "latest");
    assert!(
        tags[0].len() == 15 && tags[0].as_bytes()[8] == b'-',
        "{tags:?}"
    );
}

#[test]
fn strategies_name_what_is_pushed() {
    let registry = Registry::start();
    let dir = TempDir::new().unwrap();
    let image = image(&dir, "amd64");
    let repository = dir.path().join("source");
    for args in [
        &["init", "-q", "-b", "feature/login"][..],
        &[
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ],
    ] {
        if args[0] == "init" {
            std::fs::create_dir(&repository).unwrap();
        }
        let mut git = vdkr_tests::process::tool("git");
        run(git.current_dir(&repository).args(args)).expect(0);
    }
    let mut push = registry.command();
    push.env("BUILDDIR", &repository)
        .arg("push")
        .arg(&image)
        .args([
            "--strategy",
            "semver sha branch latest arch",
            "--version",
            "1.2.3+4",
        ]);
    run(&mut push).expect(0);
    let sha = run_tool(
        "git",
        [
            "-C",
            repository.to_str().unwrap(),
            "rev-parse",
            "--short",
            "HEAD",
        ],
    );
    let sha = sha.expect(0).text().trim().to_owned();
    let mut expected: Vec<String> = ["1.2.3", "1.2", "1", &sha, "feature-login"]
        .into_iter()
        .flat_map(|tag| [tag.to_owned(), format!("{tag}-x86_64")])
        .collect();
    expected.push("latest".to_owned());
    expected.sort();
    assert_eq!(tags(&registry, "app"), expected);
}

#[test]
fn concurrent_pushes_of_two_architectures_lose_nothing() {
    let dir = TempDir::new().unwrap();
    let images = ["amd64", "arm64", "riscv64"].map(|architecture| image(&dir, architecture));
    for _ in 0..5 {
        let registry = Registry::start();
        let start = Barrier::new(images.len());
        std::thread::scope(|scope| {
            for image in &images {
                let (registry, start) = (&registry, &start);
                scope.spawn(move || {
                    start.wait();
                    registry
                        .run(["push", image.to_str().unwrap(), "--tag", "v1"])
                        .expect(0);
                });
            }
        });
        assert_eq!(
            architectures(&registry, "yocto/app:v1"),
            ["amd64", "arm64", "riscv64"]
        );
    }
}

#[test]
fn the_same_architecture_is_replaced_and_a_repeated_push_changes_nothing() {
    let registry = Registry::start();
    let dir = TempDir::new().unwrap();
    let path = image(&dir, "amd64");
    let push = ["push", path.to_str().unwrap(), "--tag", "v1"];
    let first = registry.run(push).expect(0).text();
    assert_eq!(registry.run(push).expect(0).text(), first);
    std::fs::remove_dir_all(&path).unwrap();
    write_image(&path, "amd64", &[noise(99, 5000)]);
    assert_ne!(registry.run(push).expect(0).text(), first);
    assert_eq!(architectures(&registry, "yocto/app:v1"), ["amd64"]);
}

#[test]
fn deleting_a_tag_leaves_its_twins() {
    let registry = Registry::start();
    let dir = TempDir::new().unwrap();
    let path = image(&dir, "amd64");
    let push = [
        "push",
        path.to_str().unwrap(),
        "--tag",
        "a",
        "--tag",
        "b",
        "--tag",
        "c",
    ];
    let pushed = registry.run(push).expect(0).text();
    registry.run(["delete", "app:a"]).expect(0);
    assert_eq!(tags(&registry, "app"), ["b", "c"]);
    registry.run(["delete", "app:a"]).expect(5);
    // A digest takes the tags that name it along, so it asks first; a closed stdin is a no.
    let digest = pushed.split_whitespace().nth(1).unwrap();
    let by_digest = format!("app@{digest}");
    let refused = registry.run(["delete", &by_digest]).expect(1);
    assert!(refused.stderr.contains("b c"), "{}", refused.stderr);
    assert_eq!(tags(&registry, "app"), ["b", "c"]);
    registry.run(["delete", "--yes", &by_digest]).expect(0);
    registry.run(["tags", "app"]).expect(5);
}

#[test]
fn configuration_says_where_values_come_from() {
    let registry = Registry::start();
    std::fs::write(
        registry.storage().join("config.toml"),
        "namespace = \"team\"\n",
    )
    .unwrap();
    let mut command = registry.command();
    command
        .env("CONTAINER_REGISTRY_PASSWORD", "hunter2")
        .args(["config"]);
    let shown = run(&mut command).expect(0).text();
    let line = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("{name} is not in:\n{shown}"))
            .to_owned()
    };
    assert!(line("CONTAINER_REGISTRY_NAMESPACE").contains("config.toml"));
    assert!(line("CONTAINER_REGISTRY_URL").contains("environment"));
    assert!(line("CONTAINER_REGISTRY_TAG_STRATEGY").contains("default"));
    assert!(!shown.contains("hunter2"), "a secret is shown");
}

#[test]
fn starting_twice_and_stopping_twice_are_success() {
    let registry = Registry::start();
    let again = registry.run(["start"]).expect(0).text();
    assert!(again.contains("already running"), "{again}");
    registry.run(["status"]).expect(0);
    registry.stop();
    registry.run(["status"]).expect(3);
    registry.stop();
}
