//! What `push` takes, in which spelling, and what it says of it.

mod rig;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use rig::{User, status, stderr, stdout, write_layout};

#[track_caller]
fn tar(args: &[&str]) {
    assert!(Command::new("tar").args(args).status().unwrap().success());
}

/// What `docker save` writes for one image with these names.
fn saved(user: &User, names: &[&str]) -> String {
    let first = user.path("first.tar");
    write_layout(&user.path("mr"), "content");
    let place = format!("docker-archive:{}:any:1", first.display());
    status(&user.run(["copy", "oci:mr", &place]), 0);
    let dir = user.path("unpacked");
    fs::create_dir(&dir).unwrap();
    let (dir_name, archive) = (dir.to_str().unwrap(), user.path("saved.tar"));
    tar(&["-xf", first.to_str().unwrap(), "-C", dir_name]);
    let list = dir.join("manifest.json");
    let mut images: Value = serde_json::from_slice(&fs::read(&list).unwrap()).unwrap();
    images[0]["RepoTags"] = json!(names);
    fs::write(&list, images.to_string()).unwrap();
    let archive = archive.to_str().unwrap().to_owned();
    let packed = ["-cf", &archive, "-C", dir_name, "manifest.json", "blobs"];
    tar(&packed);
    archive
}

#[test]
fn an_archive_of_docker_save_is_pushed_under_each_of_its_names() {
    let user = User::with_registry();
    let archive = saved(&user, &["app:1", "lab.example/x/other:2", "app:3"]);
    let push = user.run(["push", &archive, "--tag", "v"]);
    status(&push, 0);
    assert_eq!(stdout(&user.run(["catalog"])), "yocto/app\nyocto/other\n");
    let said = stderr(&push);
    assert!(said.contains("app: the archive calls it 1, 3"), "{said}");
    // Named as the archive has it, there is nothing to say.
    let push = user.run(["push", &archive, "--tag", "1", "--tag", "2", "--tag", "3"]);
    assert!(!stderr(&push).contains("calls it"), "{}", stderr(&push));
    // The same through a pipe.
    let bytes = fs::read(&archive).unwrap();
    let piped = user.run_with_input(["push", "-", "--tag", "piped", "--json"], &bytes);
    status(&piped, 0);
    assert!(stdout(&user.run(["tags", "other"])).contains("piped\n"));
    let fifo = user.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, &bytes).unwrap());
        status(
            &user.run(["push", fifo.to_str().unwrap(), "--tag", "fifo"]),
            0,
        );
    });
    assert!(stdout(&user.run(["tags", "app"])).contains("fifo\n"));
    status(
        &user.run_with_input(["push", "-"], b"nothing of the kind"),
        1,
    );
}

#[test]
fn places_and_options_in_the_spelling_of_skopeo() {
    let user = User::with_registry();
    write_layout(&user.path("mr"), "content");
    status(&user.run(["copy", "oci:mr", "oci:named:v1"]), 0);
    status(&user.run(["push", "oci:./named:v1", "--tag", "v1"]), 0);
    status(&user.run(["push", "oci:./mr", "--tag", "v1"]), 0);
    assert_eq!(stdout(&user.run(["catalog"])), "yocto/mr\nyocto/named\n");
    assert_ne!(user.run(["push", "oci:./named:v2"]).status.code(), Some(0));
    status(&user.run(["push", "dir:./mr"]), 2);
    let shown = user.run(["inspect", "--format", "{{.Digest}}", "mr:v1"]);
    status(&shown, 0);
    let listed: Value = serde_json::from_str(&stdout(&user.run(["list", "--json"]))).unwrap();
    let entry = &listed.as_array().unwrap()[0];
    assert_eq!(stdout(&shown).trim_end(), entry["digest"].as_str().unwrap());
    status(&user.run(["inspect", "--format", "{{.Digest", "mr:v1"]), 2);
    let place = |tag: &str| format!("docker://{}/yocto/mr:{tag}", user.host());
    status(
        &user.run(["inspect", "--tls-verify=false", &place("v1")]),
        0,
    );
    let copy = user.run([
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--dest-creds",
        "user:pass",
        &place("v1"),
        &place("v2"),
    ]);
    status(&copy, 0);
    assert_eq!(stdout(&user.run(["tags", "mr"])), "v1\nv2\n");
}

#[test]
fn a_digest_is_told_of_the_machine_that_has_it() {
    let mut user = User::with_registry();
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap());
    for machine in ["a-board", "b-board"] {
        let layout = user.deploy_dir().join(machine).join("app-latest-oci");
        write_layout(&layout, machine);
    }
    let push = user.run(["push", "--strategy", "latest", "--json"]);
    status(&push, 0);
    let lines: Vec<Value> = stdout(&push)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let winners: Vec<_> = lines
        .iter()
        .filter(|line| line["tags"][0].get("replaced").is_none())
        .collect();
    assert_eq!((lines.len(), winners.len()), (2, 1), "{lines:?}");
    let push = user.run(["push", "--strategy", "latest"]);
    let line = stdout(&push);
    assert_eq!(line.lines().count(), 1, "{line}");
    let winner = winners[0]["machine"].as_str().unwrap();
    assert!(line.contains(&format!("from {winner}")), "{line}");
}

#[test]
fn a_deploy_directory_of_the_other_kind_is_recognised() {
    let mut user = User::new();
    user.image("a-board", "app");
    let (parent, machine) = (user.deploy_dir(), user.deploy_dir().join("a-board"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (variable, dir, advice) in [
        ("DEPLOY_DIR_IMAGES", &machine, "--deploy-dir-image "),
        ("DEPLOY_DIR_IMAGE", &parent, "--deploy-dir-images "),
    ] {
        user.env.clear();
        user.set(variable, text(dir));
        let push = user.run(["push"]);
        status(&push, 0);
        let said = stderr(&push);
        assert!(said.contains(advice) && said.contains(&text(dir)), "{said}");
    }
}
