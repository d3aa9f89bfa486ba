//! What users and broken builds really hand in: each a clear sentence, the right exit status, and
//! nothing lost.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vdkr_tests::fixtures::{copy_tree, layout as fixture};
use vdkr_tests::layout::{noise, write_image};
use vdkr_tests::process::{Ran, free_port, run, run_tool};
use vdkr_tests::registry::{Registry, container_registry};

struct Scene {
    registry: Registry,
    dir: TempDir,
    layout: PathBuf,
}

/// A registry that already holds a good image, and a copy of a real layout to damage.
fn scene() -> Scene {
    let registry = Registry::start();
    let dir = TempDir::new().unwrap();
    let good = fixture("qemux86-64", "container-base-latest-oci");
    registry
        .run(["push", good.to_str().unwrap(), "--tag", "good"])
        .expect(0);
    let layout = dir.path().join("damaged-latest-oci");
    // Of content that the registry does not have: what it has, it would rightly take from there.
    copy_tree(&fixture("qemuarm64", "container-base-latest-oci"), &layout);
    Scene {
        registry,
        dir,
        layout,
    }
}

impl Scene {
    /// Pushes the damaged layout, expects this status, and that no tag came of it and the good
    /// image is as it was.
    #[track_caller]
    fn push_fails(&self, code: i32, words: &[&str]) -> Ran {
        let ran = self
            .registry
            .run(["push", self.layout.to_str().unwrap(), "--tag", "bad"]);
        let ran = ran.expect(code);
        for word in words {
            assert!(
                ran.stderr.contains(word),
                "{word:?} is not in:\n{}",
                ran.stderr
            );
        }
        self.registry.run(["tags", "damaged"]).expect(5);
        assert_eq!(
            self.registry
                .run(["tags", "container-base"])
                .expect(0)
                .text()
                .trim(),
            "good"
        );
        ran
    }

    fn largest_blob(&self) -> PathBuf {
        let blobs = fs::read_dir(self.layout.join("blobs/sha256")).unwrap();
        let paths = blobs.map(|entry| entry.unwrap().path());
        paths
            .max_by_key(|path| path.metadata().unwrap().len())
            .unwrap()
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_blob_that_does_not_match_its_digest() {
    let scene = scene();
    let blob = scene.largest_blob();
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&blob, bytes).unwrap();
    scene.push_fails(6, &[name_of(&blob), "digest"]);
}

#[test]
fn a_blob_of_the_wrong_size() {
    let scene = scene();
    let blob = scene.largest_blob();
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, &bytes[..bytes.len() / 2]).unwrap();
    scene.push_fails(6, &[name_of(&blob)]);
}

#[test]
fn a_missing_blob() {
    let scene = scene();
    let blob = scene.largest_blob();
    fs::remove_file(&blob).unwrap();
    scene.push_fails(1, &[name_of(&blob), "does not have it"]);
}

#[test]
fn a_symlinked_blob_is_not_followed() {
    let scene = scene();
    let blob = scene.largest_blob();
    let elsewhere = scene.dir.path().join("elsewhere");
    fs::rename(&blob, &elsewhere).unwrap();
    symlink(&elsewhere, &blob).unwrap();
    scene.push_fails(1, &[name_of(&blob), "symbolic link"]);
}

#[test]
fn a_huge_index_is_refused_without_reading_it() {
    let scene = scene();
    let index = fs::OpenOptions::new()
        .write(true)
        .open(scene.layout.join("index.json"))
        .unwrap();
    index.set_len(1 << 30).unwrap();
    scene.push_fails(1, &["index.json", "large"]);
}

#[test]
fn an_index_that_is_not_json() {
    let scene = scene();
    fs::write(scene.layout.join("index.json"), "{\"schemaVersion\": 2,").unwrap();
    scene.push_fails(1, &["index.json"]);
}

#[test]
fn one_bad_image_does_not_stop_the_others() {
    let scene = scene();
    fs::remove_file(scene.largest_blob()).unwrap();
    let machine = scene.dir.path().join("images/board");
    fs::create_dir_all(&machine).unwrap();
    fs::rename(&scene.layout, machine.join("damaged-latest-oci")).unwrap();
    write_image(
        &machine.join("sound-latest-oci"),
        "amd64",
        &[noise(7, 1000)],
    );
    let images = scene.dir.path().join("images");
    let ran = scene.registry.run([
        "push",
        "--strategy",
        "latest",
        "--deploy-dir-images",
        images.to_str().unwrap(),
    ]);
    let ran = ran.expect(7);
    assert!(ran.stderr.contains("damaged"), "{}", ran.stderr);
    assert_eq!(
        scene
            .registry
            .run(["tags", "sound"])
            .expect(0)
            .text()
            .trim(),
        "latest"
    );
}

#[test]
fn an_unknown_image_name_lists_what_is_there() {
    let scene = scene();
    let images = vdkr_tests::fixtures::deploy_dir();
    let ran = scene.registry.run([
        "push",
        "no-such-image",
        "--deploy-dir-images",
        images.to_str().unwrap(),
    ]);
    let ran = ran.expect(5);
    assert!(ran.stderr.contains("container-base"), "{}", ran.stderr);
}

#[test]
fn illegal_references_say_what_is_wrong_and_where() {
    let scene = scene();
    for (reference, word) in [
        ("Foo//bar:", "at byte 4"),
        ("docker.io/UPPER/case", "lower"),
        ("a@sha256:xyz", "digest"),
    ] {
        let ran = scene.registry.run(["import", reference]).expect(2);
        assert!(
            ran.stderr.contains(word),
            "{reference}: {word:?} is not in {}",
            ran.stderr
        );
    }
    for tag in ["-x", "a b", "ä", &"t".repeat(129)] {
        let good = fixture("qemux86-64", "container-base-latest-oci");
        let option = format!("--tag={tag}");
        scene
            .registry
            .run(["push", good.to_str().unwrap(), &option])
            .expect(2);
    }
    scene
        .registry
        .run(["push", "--strategy", "sha nonsense"])
        .expect(2);
}

#[test]
fn a_port_in_use() {
    let dir = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut command = container_registry();
    command
        .env("CONTAINER_REGISTRY_URL", format!("localhost:{port}"))
        .env("CONTAINER_REGISTRY_STORAGE", dir.path())
        .arg("start");
    let ran = run(&mut command).expect(1);
    assert!(
        ran.stderr.contains(&port.to_string()) && ran.stderr.contains("used"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_storage_that_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    // A file where a directory is wanted stops root as well as anyone else.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let start = |storage: &Path| {
        let mut command = container_registry();
        command
            .env(
                "CONTAINER_REGISTRY_URL",
                format!("localhost:{}", free_port()),
            )
            .env("CONTAINER_REGISTRY_STORAGE", storage)
            .arg("start");
        run(&mut command)
    };
    let ran = start(&file.join("storage")).expect(1);
    assert!(ran.stderr.contains("storage"), "{}", ran.stderr);
    if !nix::unistd::geteuid().is_root() {
        let sealed = dir.path().join("sealed");
        fs::create_dir(&sealed).unwrap();
        fs::set_permissions(&sealed, fs::Permissions::from_mode(0o500)).unwrap();
        let ran = start(&sealed).expect(1);
        assert!(ran.stderr.contains("sealed"), "{}", ran.stderr);
    }
}

#[test]
fn no_registry_is_a_status_of_its_own() {
    let dir = TempDir::new().unwrap();
    let url = format!("localhost:{}", free_port());
    let good = fixture("qemux86-64", "container-base-latest-oci");
    for args in [
        &["push", good.to_str().unwrap()][..],
        &["list"],
        &["catalog"],
        &["tags", "x"],
        &["delete", "x:y"],
        &["status"],
    ] {
        let mut command = container_registry();
        command
            .env("CONTAINER_REGISTRY_URL", &url)
            .env("CONTAINER_REGISTRY_STORAGE", dir.path())
            .args(args);
        let ran = run(&mut command).expect(3);
        assert!(
            args == ["status"] || ran.stderr.contains(&url),
            "{args:?}: {}",
            ran.stderr
        );
    }
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for args in [
        &["frobnicate"][..],
        &["push", "--tag"],
        &["push", "--tag", "v1"],
        &["import"],
        &["delete"],
        &["delete", "image-without-tag"],
        &["--url", "localhost:99999", "list"],
        &["--url", "", "list"],
        &["--namespace", "Not/Legal", "list"],
    ] {
        let dir = TempDir::new().unwrap();
        let mut command = container_registry();
        command
            .env("CONTAINER_REGISTRY_STORAGE", dir.path())
            .args(args);
        let ran = run(&mut command).expect(2);
        assert!(!ran.stderr.trim().is_empty(), "{args:?} says nothing");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let scene = scene();
    let exe = vdkr_tests::process::program("container-registry");
    let script = format!(
        "set -o pipefail; {} --url {} --storage {} list | true",
        exe.display(),
        scene.registry.host(),
        scene.registry.storage().display()
    );
    run_tool("bash", ["-c", &script]).expect(0);
}
