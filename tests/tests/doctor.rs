//! What `doctor` says of other clients is what they do.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{free_port, program, run};
use vdkr_tests::registry::Registry;
use vdkr_tests::target::Target;

const REPOSITORY: &str = "yocto/container-base";

/// What is found about each client: whether it is well, the finding, the advice.
fn doctor(target: &Target, registry: &Registry) -> BTreeMap<String, (bool, String, String)> {
    let mut command = target.within(&program("container-registry"));
    for (name, value) in registry.command().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ran = run(command.args(["doctor", "--json"])).expect(0);
    let report: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().expect("checks").iter();
    checks
        .map(|check| {
            let verdict = check["verdict"] == "ok";
            let (found, advice) = (text(check, "found"), text(check, "advice"));
            (text(check, "subject"), (verdict, found, advice))
        })
        .filter(|(subject, _)| ["docker", "podman", "skopeo"].contains(&subject.as_str()))
        .collect()
}

fn succeeds(command: &mut Command) -> bool {
    run(command).code() == 0
}

/// What a client really does.
fn pulls(target: &Target, client: &str, image: &str) -> bool {
    match client {
        // Its own check of every byte.
        "skopeo" => {
            let copy = TempDir::new().unwrap();
            let mut command = target.inside("skopeo");
            command.args(["copy", "--quiet", "--all"]);
            command.arg(format!("docker://{image}"));
            succeeds(command.arg(format!("dir:{}", copy.path().display())))
        }
        "podman" => {
            let pulled = succeeds(target.podman().args(["pull", "--quiet", image]));
            run(target.podman().args(["rmi", "--all", "--force"])).expect(0);
            pulled
        }
        // The daemon does so for every registry of this machine.
        "docker" => {
            let mut command = target.inside("docker");
            succeeds(command.args(["manifest", "inspect", "--insecure", image]))
        }
        other => panic!("{other}"),
    }
}

/// Every client's verdict is what the client does, and that is `wanted` for podman and skopeo.
#[track_caller]
fn agrees(target: &Target, registry: &Registry, wanted: bool, docker: bool, words: &str) {
    let image = format!("{}/{REPOSITORY}:latest", registry.host());
    let found = doctor(target, registry);
    for name in ["podman", "skopeo"] {
        assert!(found.contains_key(name), "{found:?}");
    }
    for (name, (well, words_found, advice)) in &found {
        let expected = if name == "docker" { docker } else { wanted };
        assert_eq!(pulls(target, name, &image), expected, "{name} itself");
        assert_eq!(*well, expected, "{name}: {words_found}");
        if *well {
            assert!(words_found.contains(&image), "{name}: {words_found}");
        } else {
            assert!(!advice.is_empty(), "{name}: {words_found}");
            if name != "docker" {
                assert!(words_found.contains(words), "{name}: {words_found}");
            }
        }
    }
}

fn push(registry: &Registry) {
    let layout = layout("qemux86-64", "container-base-latest-oci");
    let layout = layout.to_str().unwrap();
    registry.run(["push", layout, "--tag", "latest"]).expect(0);
}

#[test]
fn a_registry_of_plain_http_before_and_after_bake() {
    let registry = Registry::start();
    let target = Target::new();
    // Nothing is stored yet, and still it shows who gets in.
    let found = doctor(&target, &registry);
    assert!(!found["skopeo"].0, "{found:?}");
    assert!(found["skopeo"].2.contains("bake"), "{found:?}");
    target.bake(&registry, &["--profile", "podman", "--no-translate"]);
    let found = doctor(&target, &registry);
    for name in ["podman", "skopeo"] {
        let (well, words, _) = &found[name];
        assert!(*well && words.contains("no image"), "{name}: {words}");
    }

    push(&registry);
    agrees(&target, &registry, true, true, "");
    // Who is let in may still not be allowed to take it.
    let policy = target.root().join("etc/containers/policy.json");
    let allows = std::fs::read(&policy).unwrap();
    std::fs::write(&policy, r#"{"default":[{"type":"reject"}]}"#).unwrap();
    agrees(&target, &registry, false, true, "rejects");
    std::fs::remove_file(&policy).unwrap();
    agrees(&target, &registry, false, true, "no policy.json");
    std::fs::write(&policy, allows).unwrap();
    let mut undo = registry.command();
    run(undo.args(["bake", "--undo", "--rootfs"]).arg(target.root())).expect(0);
    agrees(&target, &registry, false, true, "insists on TLS");
}

#[test]
fn a_secure_registry_before_and_after_bake_without_and_with_a_login() {
    let storage = TempDir::new().unwrap();
    let secure = [("CONTAINER_REGISTRY_SECURE", "1")];
    let registry = Registry::start_with(storage.path(), free_port(), &secure);
    push(&registry);
    let target = Target::new();
    agrees(&target, &registry, false, false, "does not know the CA");
    target.bake(&registry, &["--profile", "podman", "--no-translate"]);
    agrees(&target, &registry, false, false, "has no login");

    // What it says to do does it; the password is in no command line.
    let password = std::fs::read_to_string(storage.path().join("auth/password")).unwrap();
    let found = doctor(&target, &registry);
    for (name, (_, words, advice)) in &found {
        assert!(advice.starts_with(&format!("{name} login")), "{advice}");
        for text in [words, advice] {
            assert!(!text.contains(password.trim()), "{text}");
        }
    }
    // podman and skopeo share their logins.
    let mut shell = target.within(Path::new("/bin/sh"));
    run(shell.args(["-c", &found["skopeo"].2])).expect(0);
    let mut docker = registry.command();
    docker
        .args(["login", "-u", "yocto", "--password-stdin"])
        .env("HOME", target.dir())
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE");
    vdkr_tests::process::run_within(
        &mut docker,
        password.as_bytes(),
        std::time::Duration::from_mins(1),
    )
    .expect(0);
    agrees(&target, &registry, true, true, "");
    let found = doctor(&target, &registry);
    assert!(found["skopeo"].1.contains("as yocto"), "{found:?}");

    // A login that is refused is told from none.
    let wrong = r#"{"auths":{"HOST":{"auth":"c29tZWJvZHk6d3Jvbmc="}}}"#;
    let wrong = wrong.replace("HOST", &registry.host());
    for file in ["runtime/containers/auth.json", ".docker/config.json"] {
        std::fs::create_dir_all(target.dir().join(file).parent().unwrap()).unwrap();
        std::fs::write(target.dir().join(file), &wrong).unwrap();
    }
    agrees(&target, &registry, false, false, "as somebody");
}
