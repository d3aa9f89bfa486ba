//! Mistakes, and what is said about them.

mod rig;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use rig::{User, status, stderr, stdout, write_layout};

#[test]
fn with_json_lines_everything_on_stderr_is_json() {
    let mut user = User::with_registry();
    user.image("a-board", "app");
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap());
    let lines: &[&[&str]] = &[
        &["push", "--strategy", "version latest"],
        &["list"],
        &["gc", "--dry-run"],
        &["gc"],
        &["fsck"],
        &["prune", "--keep-last", "1", "--dry-run"],
        &["delete", "app:latest"],
        &["delete", "app:latest"],
        &["tags", "unknown"],
        &["push", "unknown"],
    ];
    for line in lines {
        let mut words = vec!["--progress", "jsonl"];
        words.extend(*line);
        let output = user.run(&words);
        let said = stderr(&output);
        assert!(!said.is_empty(), "{line:?}");
        for text in said.lines() {
            let event: Value = serde_json::from_str(text)
                .unwrap_or_else(|error| panic!("{line:?}: {error}: {text}"));
            assert_eq!(event["v"], 1, "{text}");
        }
    }
}

#[test]
fn what_is_asked_for_and_not_there_is_named() {
    let user = User::with_registry();
    let tags = user.run(["tags", "unknown"]);
    status(&tags, 5);
    assert!(
        stderr(&tags).contains("image not found"),
        "{}",
        stderr(&tags)
    );
    write_layout(&user.path("app"), "content");
    status(&user.run(["push", "./app", "--tag", "v1"]), 0);
    let source = format!("{}/yocto/app:v1", user.host());
    let import = user.run(["import", &source, "other", "--platform", "linux/riscv64"]);
    status(&import, 5);
    let inspect = user.run(["inspect", "app:v1", "--platform", "linux/riscv64"]);
    status(&inspect, 5);
    fs::write(user.path("app.tar.xz"), b"\xfd7zXZ\0rest").unwrap();
    let push = user.run(["push", "./app.tar.xz"]);
    status(&push, 1);
    assert!(
        stderr(&push).contains("xz is not supported"),
        "{}",
        stderr(&push)
    );
    let down = user.run(["--url", "localhost:1", "list"]);
    status(&down, 3);
    let said = stderr(&down);
    assert!(
        said.contains("(start one with: container-registry start): "),
        "{said}"
    );
}

#[test]
fn nonsense_in_files_and_variables_is_refused_where_it_is_read() {
    let mut user = User::new();
    let list = "[[image]]\nsource = 'a.example/app:1'\n[[image]]\nsource = 'b.example/app:1'\n";
    let list = user.write("images.toml", list);
    let import = user.run(["import", "--file", list.to_str().unwrap()]);
    status(&import, 2);
    let said = stderr(&import);
    assert!(
        said.contains("would both become") && said.contains("yocto/app:1"),
        "{said}"
    );
    write_layout(&user.path("app"), "content");
    for (name, value) in [
        ("OCI_IMAGE_BUILD_DATE", "bogus"),
        ("OCI_IMAGE_AUTO_LABELS", "bogus"),
    ] {
        let label = user
            .command(["label", "app"])
            .env(name, value)
            .output()
            .unwrap();
        status(&label, 2);
        assert!(stderr(&label).contains(name), "{}", stderr(&label));
    }
    for line in [
        "listen = 'bogus'",
        "namespace = 'a b'",
        "tag_strategy = 'latset'",
    ] {
        user.write("storage/config.toml", line);
        status(&user.run(["config"]), 2);
    }
    user.env.push(("CONTAINER_REGISTRY_URL".into(), "5".into()));
    user.write("storage/config.toml", "");
    status(&user.run(["config"]), 2);
    user.env.clear();
    let file = user.write("storage/config.toml", "password = 'hunter2'\n");
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let shown = user.run(["config"]);
        status(&shown, 0);
        assert_eq!(
            stderr(&shown).contains("chmod 600"),
            warned,
            "{}",
            stderr(&shown)
        );
    }
    let rootfs = user.path("rootfs");
    user.write("rootfs/etc/docker/daemon.json", "{ torn");
    let rootfs = rootfs.to_str().unwrap();
    let bake = user.run(["bake", "--rootfs", rootfs, "--profile", "docker"]);
    status(&bake, 1);
    assert!(stderr(&bake).contains(rootfs), "{}", stderr(&bake));
}

#[test]
fn after_a_new_ca_the_commands_work_at_once() {
    let mut user = User::new();
    user.set("CONTAINER_REGISTRY_SECURE", "1");
    user.start();
    status(&user.run(["pki", "renew", "--ca"]), 0);
    let list = user.run(["list"]);
    status(&list, 0);
    assert_eq!(stdout(&list), "");
}
